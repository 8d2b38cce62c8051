#!/usr/bin/env bash
# Writes representations of (image, sentence) pairs, pooled or of every word and region after any layer, to .npz:
# bash run/encode.bash 0 PAIRS --features A_obj36.tsv --load SNAPSHOT --out FILE.npz [--states pooled,words,regions] [--layers ...]
# --help (after 0 or cpu) says what PAIRS is, what the layers are called and what is written. One process, one GPU. In the memory
# of one batch; free disk is checked first. A pair of lxr955 takes about 3 KB pooled, and of each layer 60 KB of words, 110 of regions.
source "$(dirname "$0")/launch.bash"
[ "${1:-}" != --help ] || set -- cpu --help
[ $# -ge 2 ] || usage "GPU|cpu PAIRS --features TSV,... --load SNAPSHOT --out FILE.npz [flags]"
NNODES=1 launch src/tools/encode.py "" "$@"
