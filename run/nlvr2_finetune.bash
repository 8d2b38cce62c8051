#!/usr/bin/env bash
# Fine-tunes LXMERT, or VL-BERT with --model vlbert, on NLVR2: bash run/nlvr2_finetune.bash 0 nlvr2_lxr955 [--tiny] [flags]
# Published score of LXMERT: 74.95 on valid after 4 epochs.
# Writes snap/nlvr2/<name>: BEST.pth, LAST.pth, log.log, TensorBoard events. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME [flags]"
launch src/tasks/nlvr2.py "--loadLXMERT snap/pretrained/model" "$1" \
    --train train --valid valid --output "snap/nlvr2/$2" "${@:3}"
