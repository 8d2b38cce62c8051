#!/usr/bin/env bash
# Measures what the design promises, on data that it makes: bash run/bench.bash regions [--images 123000] [flags]; --help
# Expected: experience_in_pretraining.md, "Regions"; needs 20 GB of disk and 8 GB of memory.
# Time: about 10 minutes on 2 CPU cores and a disk of 200 MB/s; --images 5000 --convert 500 takes one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
case ${1:-} in
    regions) shift; PYTHONPATH=src exec "$python" -m regions.bench "$@" ;;
    *) echo "Usage: bash run/bench.bash regions [flags]; --help lists them" >&2; exit 2 ;;
esac
