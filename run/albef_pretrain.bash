#!/usr/bin/env bash
# Pre-trains ALBEF on images and their captions: bash run/albef_pretrain.bash 0,1,2,3 --multiGPU [flags]
# The original: 30 epochs of 4.0 million images in steps of 512, 5 to 6 hours an epoch on 8 V100. Objectives: all, that is
# --taskContrast --taskMatched --taskMaskLM, or those that are typed; --withoutDistillation: no targets by momentum models.
# Before NLVR2: --taskAssign --loadALBEF FILE --output snap/pretrain/albef_nlvr2.
# Writes snap/pretrain/albef: EpochNN.pth, BEST.pth, log.log, TensorBoard events. Data: data/README.md. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 1 ] && [[ $1 != -* ]] || usage "GPUS|cpu [flags]"
export RESTARTS=${RESTARTS:-3}  # a rank that dies costs what was done since the last saved state, not the run
launch src/pretrain/pairs.py '' "$1" --model albef --train train --valid val --output snap/pretrain/albef "${@:2}"
