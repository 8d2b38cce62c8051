#!/usr/bin/env bash
# Sets everything up, checks the style and runs the tests: bash run/test.bash [pytest arguments]
# All tests pass in under 10 minutes on 2 cores; those that need a GPU, Chromium or sample data that is not here skip
# and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
bash run/setup.bash --tests
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n auto --maxprocesses 8 "$@"
