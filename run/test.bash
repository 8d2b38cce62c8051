#!/usr/bin/env bash
# Sets everything up, checks the style and runs the tests: bash run/test.bash [pytest arguments]
# It prints the cases that take more than 8 seconds. Tests that need a GPU, Chromium or sample data that is not here skip
# and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
bash run/setup.bash --tests
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n auto --maxprocesses 8 --durations=0 --durations-min=8 "$@"
