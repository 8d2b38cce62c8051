#!/usr/bin/env bash
# What pre-training is worth in the sample world: bash run/study.bash [--jobs 2] [flags]; --help
# Pre-trains a small model six times (all objectives, and each left out once), fine-tunes it on a tenth of VQA, GQA and NLVR2, and
# prints the scores beside those from nothing. Needs data/shapes (run/shapes.bash). Killed, it goes on with the same command.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" src/shapes/study.py "$@"
