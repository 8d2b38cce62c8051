#!/usr/bin/env bash
# Fine-tunes LXMERT to classify images with texts: bash run/classify_finetune.bash 0 memes --dataset data/memes/dataset.json [flags]
# No score of this code on published data; hateful memes' 8,500 examples take minutes an epoch on one GPU. Format: data/README.md
# Writes snap/classify/<name>: BEST.pth, LAST.pth, log.log, TensorBoard events. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --dataset JSON [flags]"
launch src/tasks/classify.py "--loadLXMERT snap/pretrained/model" "$1" \
    --train train --valid dev --output "snap/classify/$2" "${@:3}"
