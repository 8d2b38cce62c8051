#!/usr/bin/env bash
# Predicts a split of NLVR2: bash run/nlvr2_test.bash 0 nlvr2_lxr955_results --test test --load snap/nlvr2/nlvr2_lxr955/BEST
# Published score of the original code: 74.45 on test-P (`test`), 76.18 on test-U (`hidden`). Labelled splits are scored here.
# Writes snap/nlvr2/<name>/test_predict.csv, the file that the leaderboard takes. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --test SPLIT --load SNAPSHOT [flags]"
launch src/tasks/nlvr2.py "" "$1" --test test --batchSize 256 --output "snap/nlvr2/$2" "${@:3}"
