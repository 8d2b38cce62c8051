#!/usr/bin/env bash
# Fine-tunes LXMERT, or VL-BERT with --model vlbert, on SNLI-VE: bash run/entailment_finetune.bash 0 ve_lxr955 [--tiny] [flags]
# No published score of LXMERT or VL-BERT is known; ALBEF reports 80.80 on dev. Not run on the 529,527 pairs of train yet.
# Writes snap/entailment/<name>: BEST.pth, LAST.pth, log.log, TensorBoard events. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME [flags]"
launch src/tasks/entailment.py "--loadLXMERT snap/pretrained/model" "$1" \
    --train train --valid dev --output "snap/entailment/$2" "${@:3}"
