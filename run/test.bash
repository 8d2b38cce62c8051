#!/usr/bin/env bash
# Sets everything up, checks the style and runs the tests: bash run/test.bash [pytest arguments]
# All tests take 10 to 11 minutes on 2 cores of an AMD EPYC. Cases that take over 8 s are listed at the end. Tests that need a GPU,
# Chromium or sample data that is not here are skipped and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
source run/signals.bash
run_program bash run/setup.bash --tests
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n auto --maxprocesses 8 --durations=0 --durations-min=8 "$@"
