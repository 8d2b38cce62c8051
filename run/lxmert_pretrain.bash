#!/usr/bin/env bash
# Pre-trains LXMERT on captions and questions: bash run/lxmert_pretrain.bash 0,1,2,3 --multiGPU [--tiny] [flags]
# The original: 20 epochs of 9 million sentences, 8.5 days on four 2019 GPUs (Titan Xp). Objectives: all, or those that are typed.
# Writes snap/pretrain/lxmert: EpochNN_LXRT.pth, BEST_EVAL_LOSS_LXRT.pth, log.log, TensorBoard events. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 1 ] && [[ $1 != -* ]] || usage "GPUS|cpu [flags]"
objectives=(--taskMaskLM --taskMatched --taskObjPredict --taskQA)
for flag in "$@"; do
    case $flag in --taskMaskLM | --taskMatched | --taskObjPredict | --taskQA) objectives=() ;; esac
done
export RESTARTS=${RESTARTS:-3}  # a rank that dies costs what was done since the last saved state, not the run
launch src/pretrain/program.py --fromScratch "$1" "${objectives[@]}" \
    --train mscoco_train,mscoco_nominival,vgnococo --valid mscoco_minival \
    --output snap/pretrain/lxmert "${@:2}"
