#!/usr/bin/env bash
# Makes .venv and installs requirements.txt into it: bash run/setup.bash [--demo|--tests]
# --demo adds what run/demo.bash needs (Gradio, about 200 MB), --tests that and what the tests need.
# Takes half a minute where packages are cached, some minutes where PyTorch (up to 3 GB) must be downloaded.
# Needs Python 3.11 or later; PYTHON names another interpreter than python3. Does nothing where all is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
source run/signals.bash
python=${PYTHON:-python3}
wanted=requirements.txt
case "${1:-}" in
    "") ;;
    --demo) wanted=run/demo_requirements.txt ;;
    --tests) wanted=tests/requirements.txt ;;
    *) echo "Usage: bash run/setup.bash [--demo|--tests]" >&2; exit 2 ;;
esac

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup.bash: expected Python 3.11 or later, found $("$python" --version 2>&1); set PYTHON to another one" >&2
    exit 1
}
digest=$(cat requirements.txt run/demo_requirements.txt "$wanted" | cksum)
if [ "$(cat ".venv/${wanted//\//-}.done" 2>/dev/null)" = "$digest" ]; then
    exit 0
fi
# Without pip it was made half, by a process that was killed.
.venv/bin/python -m pip --version >/dev/null 2>&1 || run_program "$python" -m venv .venv || {
    echo "setup.bash: no virtual environment could be made; on Debian: apt-get install python3-venv" >&2
    exit 1
}
echo "Installing $wanted into .venv"
# PyTorch by itself first: pip then keeps to its pinned build, whatever the other packages ask for.
run_program .venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' requirements.txt)"
run_program .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$wanted"
echo "$digest" > ".venv/${wanted//\//-}.done"
