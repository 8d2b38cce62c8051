#!/usr/bin/env bash
# Predicts a split of VQA v2: bash run/vqa_test.bash 0 vqa_lxr955_results --test test --load snap/vqa/vqa_lxr955/BEST
# Published score of the original code: 72.42 on test-dev, 72.54 on test-std; minutes on one GPU. `--test minival` is scored here.
# Writes snap/vqa/<name>/test_predict.json, the file that the leaderboard takes. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --test SPLIT --load SNAPSHOT [flags]"
launch src/tasks/vqa.py "" "$1" --test test --batchSize 256 --output "snap/vqa/$2" "${@:3}"
