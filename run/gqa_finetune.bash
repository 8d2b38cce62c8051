#!/usr/bin/env bash
# Fine-tunes LXMERT, or VL-BERT with --model vlbert, on GQA: bash run/gqa_finetune.bash 0 gqa_lxr955 [--tiny] [flags]
# Published score of LXMERT: 59.80 on testdev after 4 epochs, 16 hours on one 2019 GPU.
# Writes snap/gqa/<name>: BEST.pth, LAST.pth, log.log, TensorBoard events. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME [flags]"
launch src/tasks/gqa.py "--loadLXMERTQA snap/pretrained/model" "$1" \
    --train train,valid --valid testdev --output "snap/gqa/$2" "${@:3}"
