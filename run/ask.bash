#!/usr/bin/env bash
# Answers questions about pictures and draws the relevant regions: bash run/ask.bash cpu photo.jpg "What is the man holding?"
# A snapshot of RefCOCO takes expressions and chooses regions; one of retrieval takes sentences and scores whether they match.
# All flags: bash run/ask.bash cpu --help. Photographs need the detector (bash run/download.bash detector) and a snapshot trained on
# its features; pictures of the sample world need a snapshot of it. Writes snap/ask/*.png and overwrites files of the same name.
source "$(dirname "$0")/launch.bash"
[ "${1:-}" != --help ] || set -- cpu --help
[ $# -ge 2 ] || usage "GPU|cpu PICTURE... QUESTION... [--load SNAPSHOT] [flags]"
NNODES=1 launch src/predict/ask.py "" "$@"
