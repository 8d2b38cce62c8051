#!/usr/bin/env bash
# Sets everything up, checks the style and runs the tests: bash run/test.bash [pytest arguments]
# All tests take 13 minutes on 2 idle cores of a slow Xeon. Cases that take over 8 s are listed at the end. Tests that need a GPU,
# Chromium or sample data that is not here are skipped and say so.
set -euo pipefail
cd "$(dirname "$0")/.."
source run/signals.bash
run_program bash run/setup.bash --tests
.venv/bin/ruff check .
workers=$(($(nproc) * 3 / 2))  # some tests wait, for processes that end or start again
exec .venv/bin/python -m pytest -n "$workers" --maxprocesses 8 --dist worksteal --durations=0 --durations-min=8 "$@"
