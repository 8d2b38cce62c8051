#!/usr/bin/env bash
# Ranks images and captions: bash run/retrieval_test.bash 0 coco_results --test flickr30k_test --load snap/retrieval/coco/BEST [flags]
# Without training: --load snap/pretrained/model, which has a matching head. All pairs are scored: 5 million for Flickr30k's test split,
# 125 million for COCO's; the duration is predicted at the start.
# Writes snap/retrieval/<name>/SPLIT_predict.json, the ranks, for run/evaluate.bash. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --test SPLIT --load SNAPSHOT|PRETRAINED [flags]"
launch src/tasks/retrieval.py "" "$1" --test coco_test --batchSize 256 --output "snap/retrieval/$2" "${@:3}"
