#!/usr/bin/env bash
# Finds the regions of one's own pictures, to a TSV or a region store, which all other programs take:
# bash run/extract.bash 0,1 --images DIR|LIST --out X.tsv|X.store [--split coco|gqa|nlvr2] [--minBoxes 10 --maxBoxes 100] [--bf16]
# --help (after the GPUS or cpu) says what is taken and written. One process a GPU, or with cpu; NPROC=2: two on each. Killed,
# it goes on with the same command. A picture is 0.4 MB of disk, twice while the result is written; free disk is checked first.
source "$(dirname "$0")/launch.bash"
[ "${1:-}" != --help ] || set -- cpu --help
[ $# -ge 2 ] || usage "GPUS|cpu --images DIR|LIST --out X.tsv|X.store [flags]"
NNODES=1 launch src/detector/program.py "" "$@"
