#!/usr/bin/env bash
# Measures what the design promises, on data that it makes and removes: bash run/bench.bash regions|submit|pretrain [flags]; --help
# regions: opening, reading and converting 18 GB of features (25 GB of disk, 8 GB of memory; 3 minutes on 2 CPU cores; --images
# 3000 --convert 300 --batches 100 takes half a minute). submit: answering 448,000 and 4.2 million questions beside the model.
# pretrain: starting on 9 million sentences about 180,000 images (3 GB of disk; 10 minutes, most of them to make the sentences).
# Prints a table and writes snap/bench/<part>.json.
source "$(dirname "$0")/launch.bash"
case ${1:-} in
    regions) program=regions.bench ;;
    submit) program=tasks.bench ;;
    pretrain) program=pretrain.bench ;;
    *) usage "regions|submit|pretrain [flags]" ;;
esac
exec "$PYTHON" -m $program "${@:2}"
