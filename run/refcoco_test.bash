#!/usr/bin/env bash
# Predicts a split of RefCOCO: bash run/refcoco_test.bash 0 refcoco_results --test testA --load snap/refcoco/refcoco/BEST
# Prints the accuracy at an overlap of half, as in VL-BERT's test program and strictly; minutes on one GPU.
# Writes snap/refcoco/<name>/testA_predict.json: [{"ref_id", "box"}], one an expression. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --test SPLIT --load SNAPSHOT [flags]"
launch src/tasks/refcoco.py "" "$1" --test testA --batchSize 256 --output "snap/refcoco/$2" "${@:3}"
