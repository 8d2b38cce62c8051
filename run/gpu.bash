#!/usr/bin/env bash
# Runs every measurement that needs a GPU in under 25 minutes: bash run/gpu.bash [--rehearse] [--out FOLDER]
# Writes snap/gpu/figures.json, and snap/gpu/table.md with a row for each figure and its command; a part that fails does not stop the
# others. Needs `bash run/setup.bash --tests` before. --rehearse runs the same parts very small on a CPU, and traces the steps of
# training as a GPU takes them (11 minutes of CPU). How half an hour on a GPU fills the tables: docs/gpu.md.
source "$(dirname "$0")/launch.bash"
export PYTHONPATH=$PYTHONPATH:.
exec "$PYTHON" -m bench.gpu "$@"
