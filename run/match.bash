#!/usr/bin/env bash
# Scores whether images and sentences match, and fills [MASK], with pre-trained weights:
# bash run/match.bash cpu photo.jpg "a man rides a horse" "a man rides a bike" "a man rides a [MASK]" [--load PRETRAINED] [flags]
# A snapshot of run/retrieval_finetune.bash scores pairs as well, but fills no [MASK].
# All flags, and files of pairs: bash run/match.bash cpu --help. Photographs need the detector (bash run/download.bash detector).
source "$(dirname "$0")/launch.bash"
[ "${1:-}" != --help ] || set -- cpu --help
[ $# -ge 2 ] || usage "GPU|cpu IMAGE... SENTENCE... [--load PRETRAINED] [--features TSV,...] [--pairs FILE] [flags]"
NNODES=1 launch src/predict/match.py "" "$@"
