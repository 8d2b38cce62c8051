#!/usr/bin/env bash
# Classifies a split: bash run/classify_test.bash 0 memes_results --dataset data/memes/dataset.json --test test --load snap/classify/memes/BEST
# Prints accuracy, macro F1 and AUROC if the split has labels; minutes on one GPU.
# Writes snap/classify/<name>/test_predict.csv: of two classes id,proba,label; of more the probability of each. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --dataset JSON --test SPLIT --load SNAPSHOT [flags]"
launch src/tasks/classify.py "" "$1" --test test --batchSize 256 --output "snap/classify/$2" "${@:3}"
