#!/usr/bin/env bash
# Fine-tunes LXMERT or VL-BERT to match images and captions: bash run/retrieval_finetune.bash 0 coco [--model vlbert] [flags]
# The original codes have no such task, so that there is no published score. Flickr30k: --train flickr30k_train --valid flickr30k_valid
# Writes snap/retrieval/<name>: BEST.pth, LAST.pth, log.log, TensorBoard events. Each epoch validates on 200 images. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME [flags]"
launch src/tasks/retrieval.py "--loadLXMERT snap/pretrained/model" "$1" \
    --train coco_train --valid coco_valid --output "snap/retrieval/$2" "${@:3}"
