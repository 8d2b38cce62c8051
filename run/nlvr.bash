#!/usr/bin/env bash
# NLVR v1: makes the datasets, pre-trains on generated statements, fine-tunes, evaluates: bash run/nlvr.bash cpu nlvr --nlvr PATH [flags]
# PATH: the folder with the corpus's train.json and dev.json (folder nlvr of https://github.com/lil-lab/nlvr).
# --withoutPretraining, --withoutPictures: baselines. Expected accuracy on dev and time: docs/results.md.
# Writes snap/nlvr/<name>, with pretrain_easy and pretrain_full in it. To resume a killed run, repeat its command.
# Other flags go to all three runs: run/README.md
source "$(dirname "$0")/launch.bash"
help="GPUS|cpu NAME --nlvr PATH [--withoutPretraining] [--withoutPictures] [--statements N] [flags]"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "$help"
gpus=$1 name=$2 corpus='' data=data/nlvr/made pretraining=yes
shift 2
make=() flags=()
while [ $# -gt 0 ]; do
    case $1 in
        --nlvr) corpus=${2:-}; shift 2 || usage "$help" ;;
        --statements) make+=(--statements "${2:-}"); shift 2 || usage "$help" ;;
        --withoutPictures) data=data/nlvr/made_without_pictures; make+=(--withoutPictures); shift ;;
        --withoutPretraining) pretraining=no; shift ;;
        --epochs* | --output* | --load* | --train* | --valid* | --test* | --dataset* | --fromScratch)
            echo "nlvr.bash: $1: is not to be given, since three runs follow each other; call the programs that run/README.md names" >&2
            exit 2 ;;
        *) flags+=("$1"); shift ;;
    esac
done
[ -n "$corpus" ] || usage "$help"
run_program "$PYTHON" data/nlvr/process_nlvr.py --nlvr "$corpus" "${make[@]}" || exit 1
out=snap/nlvr/$name
train() {  # train START...
    launch src/tasks/nlvr.py '' "$gpus" --dataset $data/dataset.json --bert $data/bert --train train --valid dev \
        --evalBatchSize 256 --output "$out" --resume "$@" "${flags[@]}"
}
pretrain() {  # pretrain SPLIT START...
    run_program launch src/pretrain/program.py '' "$gpus" --dataset $data/pretraining.json --bert $data/bert --train "$1" \
        --valid '' --taskQA --batchSize 32 --lr 4e-4 --epochs 1 --output "$out/pretrain_$1" --resume "${@:2}" "${flags[@]}" || exit
}
[ $pretraining = yes ] || train --fromScratch --batchSize 64 --lr 5e-4 --epochs 2
pretrain easy --fromScratch
pretrain full --load "$out/pretrain_easy/Epoch01"
train --loadLXMERTQA "$out/pretrain_full/Epoch01" --batchSize 32 --lr 5e-5 --epochs 1
