#!/usr/bin/env bash
# Predicts a split of SNLI-VE: bash run/entailment_test.bash 0 ve_lxr955_results --test test --load snap/entailment/ve_lxr955/BEST
# Prints the accuracy and the confusion matrix. No published score of LXMERT or VL-BERT is known; ALBEF reports 80.91 on test.
# Writes snap/entailment/<name>/test_predict.json, [{"pairID", "label"}], see run/evaluate.bash. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --test SPLIT --load SNAPSHOT [flags]"
launch src/tasks/entailment.py "" "$1" --test test --batchSize 256 --output "snap/entailment/$2" "${@:3}"
