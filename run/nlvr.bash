#!/usr/bin/env bash
# Makes the NLVR v1 dataset, trains on it and evaluates: bash run/nlvr.bash cpu nlvr --nlvr PATH [--withoutPictures] [flags]
# PATH: the folder with the corpus's train.json and dev.json (from the public repository lil-lab/nlvr, folder nlvr/).
# Expected on dev: 55.9, README.md says why so little; 10 minutes on one CPU core. Writes snap/nlvr/<name>. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
help="GPUS|cpu NAME --nlvr PATH [--withoutPictures] [flags]"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "$help"
gpus=$1 name=$2 corpus='' data=data/nlvr/made
shift 2
make=() flags=()
while [ $# -gt 0 ]; do
    case $1 in
        --nlvr) corpus=${2:-}; shift 2 || usage "$help" ;;
        --withoutPictures) data=data/nlvr/made_without_pictures; make=(--withoutPictures); shift ;;
        *) flags+=("$1"); shift ;;
    esac
done
[ -n "$corpus" ] || usage "$help"
"$PYTHON" data/nlvr/process_nlvr.py --nlvr "$corpus" "${make[@]}" || exit 1
launch src/tasks/nlvr.py --fromScratch "$gpus" --dataset $data/dataset.json --bert $data/bert --train train --valid dev \
    --batchSize 64 --evalBatchSize 256 --lr 5e-4 --epochs 2 --output "snap/nlvr/$name" "${flags[@]}"
