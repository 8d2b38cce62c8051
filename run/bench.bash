#!/usr/bin/env bash
# Measures what the design promises, on data that it makes: bash run/bench.bash regions [--images 123000] [flags]; --help
# Prints a table, writes snap/bench/regions.json and removes its data; needs 23 GB of disk and 8 GB of memory.
# Time: about 7 minutes on 2 CPU cores and a disk of 200 MB/s; --images 3000 --convert 300 --batches 100 takes one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
case ${1:-} in
    regions) shift; PYTHONPATH=src exec "$python" -m regions.bench "$@" ;;
    *) echo "Usage: bash run/bench.bash regions [flags]; --help lists them" >&2; exit 2 ;;
esac
