#!/usr/bin/env bash
# Answers questions about pictures and draws what the answers rest on: bash run/ask.bash cpu photo.jpg "What is the man holding?"
# --help (after the GPU or cpu) says what is taken. Photographs need the detector (bash run/download.bash detector) and a snapshot
# trained on its features; pictures of the sample world only a snapshot of it. Writes snap/ask/*.png, replacing those of that name.
source "$(dirname "$0")/launch.bash"
[ "${1:-}" != --help ] || set -- cpu --help
[ $# -ge 2 ] || usage "GPU|cpu PICTURE... QUESTION... [--load SNAPSHOT] [flags]"
NNODES=1 launch src/predict/ask.py "" "$@"
