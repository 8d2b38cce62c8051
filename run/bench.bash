#!/usr/bin/env bash
# Measures what the design promises, on data that it makes and removes: bash run/bench.bash regions|submit [flags]; --help
# regions: opening, reading and converting 18 GB of features (25 GB of disk, 8 GB of memory; 3 minutes on 2 CPU cores; --images
# 3000 --convert 300 --batches 100 takes half a minute). submit: answering 448,000 and 4.2 million questions beside the model.
# Prints a table and writes snap/bench/<part>.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
part=${1:-}
case $part in
    regions) program=regions.bench ;;
    submit) program=tasks.bench ;;
    *) echo "Usage: bash run/bench.bash regions|submit [flags]; --help lists them" >&2; exit 2 ;;
esac
PYTHONPATH=src exec "$python" -m $program "${@:2}"
