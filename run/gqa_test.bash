#!/usr/bin/env bash
# Predicts a split of GQA: bash run/gqa_test.bash 0 gqa_lxr955_results --test submit --load snap/gqa/gqa_lxr955/BEST
# Published score of the original code: 60.00 on test-dev, 60.33 on test-std; an hour on one GPU. `--test testdev` is scored here.
# Writes snap/gqa/<name>/submit_predict.json, the file that the leaderboard takes. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --test SPLIT --load SNAPSHOT [flags]"
launch src/tasks/gqa.py "" "$1" --test submit --batchSize 256 --output "snap/gqa/$2" "${@:3}"
