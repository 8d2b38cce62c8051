#!/usr/bin/env bash
# Fine-tunes LXMERT, or VL-BERT with --model vlbert, on VCR, a model for each of the two parts:
#     bash run/vcr_finetune.bash 0 answers [flags]                  Q->A, which of four answers is right
#     bash run/vcr_finetune.bash 0 rationales --rationale [flags]   QA->R, which of four rationales of the right answer
# Published on val: VL-BERT base 73.8 and 74.4, large 75.5 and 77.9, from pixels, 20 epochs; LXMERT's code has no VCR.
# Writes snap/vcr/<name>: BEST.pth, LAST.pth, log.log, TensorBoard events. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME [--rationale] [flags]"
launch src/tasks/vcr.py "--loadLXMERT snap/pretrained/model" "$1" \
    --train train --valid val --output "snap/vcr/$2" "${@:3}"
