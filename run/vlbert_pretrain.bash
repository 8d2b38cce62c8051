#!/usr/bin/env bash
# Pre-trains VL-BERT on captions and text: bash run/vlbert_pretrain.bash 0,1,2,3 --multiGPU [--withoutText] [flags]
# The original: 10 epochs of 3.3 million captions and as many texts in steps of 128 + 128, on four GPUs; time not published.
# Writes snap/pretrain/vlbert: EpochNN.pth, BEST.pth, log.log, TensorBoard events. Data: data/README.md. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 1 ] && [[ $1 != -* ]] || usage "GPUS|cpu [flags]"
export RESTARTS=${RESTARTS:-3}  # a rank that dies costs what was done since the last saved state, not the run
launch src/pretrain/captions.py '' "$1" --model vlbert --train train --valid val --output snap/pretrain/vlbert "${@:2}"
