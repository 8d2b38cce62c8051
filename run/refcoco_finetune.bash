#!/usr/bin/env bash
# Fine-tunes LXMERT or VL-BERT on RefCOCO: bash run/refcoco_finetune.bash 0 refcoco [--model vlbert] [--train plus_train --valid plus_val] [flags]
# Published for VL-BERT base, trained end to end, on RefCOCO+: 79.88, 82.40, 75.01 on val, testA, testB with ground truth boxes, 71.60, 77.72,
# 60.99 with detected ones; LXMERT has no published score. Hours on one GPU.
# Writes snap/refcoco/<name>: BEST.pth, LAST.pth, log.log, TensorBoard events. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME [flags]"
launch src/tasks/refcoco.py "--loadLXMERT snap/pretrained/model" "$1" \
    --train train --valid val --output "snap/refcoco/$2" "${@:3}"
