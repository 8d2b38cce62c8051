#!/usr/bin/env bash
# Fine-tunes LXMERT, or VL-BERT with --model vlbert, on VQA v2: bash run/vqa_finetune.bash 0 vqa_lxr955 [--tiny] [flags]
# Published scores of the original codes: LXMERT 69.90 on minival after 4 epochs, 8 hours on one 2019 GPU; VL-BERT base 71.16 on
# test-dev after 5 epochs on train and val.
# Writes snap/vqa/<name>: BEST.pth, LAST.pth, log.log, TensorBoard events. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME [flags]"
launch src/tasks/vqa.py "--loadLXMERTQA snap/pretrained/model" "$1" \
    --train train,nominival --valid minival --output "snap/vqa/$2" "${@:3}"
