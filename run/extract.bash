#!/usr/bin/env bash
# Extracts the regions of your own pictures to a TSV or a region store, which all other programs read:
# bash run/extract.bash 0,1 --images DIR|LIST --out X.tsv|X.store [--split coco|gqa|nlvr2] [--minBoxes 10 --maxBoxes 100] [--bf16]
# --help (after the GPUS or cpu) explains input and output. One process per GPU, or on the CPU; NPROC=2: two on each. To resume a
# killed run, repeat its command. A picture takes 0.4 MB of disk, twice while the result is written; free space is checked. For
# VL-BERT's pre-training: --layout vlbert --probabilities --out X.store
source "$(dirname "$0")/launch.bash"
[ "${1:-}" != --help ] || set -- cpu --help
[ $# -ge 2 ] || usage "GPUS|cpu --images DIR|LIST --out X.tsv|X.store [flags]"
NNODES=1 launch src/detector/program.py "" "$@"
