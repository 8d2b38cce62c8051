#!/usr/bin/env bash
# From a fresh clone to answered questions: bash run/quickstart.bash [GPUS|cpu] [vqa|gqa|nlvr2]
# Sets everything up, makes the sample world, trains LXMERT on it from scratch, tests it and writes the submission file.
# NLVR2 starts from the VQA model, which is trained first. Expected scores and times: README.md, "Results". Run again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
usage() { echo "Usage: bash run/quickstart.bash [GPUS|cpu] [vqa|gqa|nlvr2]" >&2; exit 2; }
[ $# -le 2 ] && [[ ${1:-0} != -* ]] || usage
gpus=${1:-0} task=${2:-vqa} run=quickstart
world=(--dataRoot data/shapes --bert data/shapes/bert)
picture=data/shapes/images/val2014/COCO_val2014_00000000160
asked="${picture}1.png \"Is there a star?\""
case $task in
    vqa) known=minival hidden=test flags=(--fromScratch --lr 5e-4 --epochs 6) ;;
    gqa) known=testdev hidden=submit flags=(--fromScratch --lr 5e-4 --epochs 6) ;;
    nlvr2) known=test hidden=hidden flags=(--loadLXMERT snap/vqa/quickstart/BEST --lr 3e-4 --epochs 2)
        asked="${picture}1.png ${picture}2.png \"Both pictures show a star.\"" ;;
    *) usage ;;
esac
step() { printf '\n== %s\n' "$*"; }
# In the background, so that who ends this script ends the program.
trap 'kill $(jobs -p) 2>/dev/null; exit 130' INT
trap 'kill $(jobs -p) 2>/dev/null; exit 143' TERM
try() { "$@" & wait $!; }

step "Setting up .venv"
bash run/setup.bash
step "Making the sample world in data/shapes"
bash run/shapes.bash
if [ $task = nlvr2 ] && [ ! -f snap/vqa/quickstart_results/test_predict.json ]; then
    try bash run/quickstart.bash "$gpus" vqa
fi
step "Training LXMERT on it (snap/$task/$run)"
try bash "run/${task}_finetune.bash" "$gpus" $run "${world[@]}" "${flags[@]}" \
    --batchSize 32 --evalBatchSize 256 --resume
step "Testing it on $known, where answers are known"
try bash "run/${task}_test.bash" "$gpus" ${run}_results "${world[@]}" --test $known --load "snap/$task/$run/BEST"
step "Answering $hidden, for a leaderboard"
try bash "run/${task}_test.bash" "$gpus" ${run}_results "${world[@]}" --test $hidden --load "snap/$task/$run/BEST"

step "What came out"
results=(snap/"$task"/${run}_results/*_predict.*)
PYTHONPATH=src .venv/bin/python src/shapes/report.py data/shapes --task $task "snap/$task/${run}_results/${known}_predict.${results##*.}"
cat <<TEXT

majority: always the commonest answer; text only: the best guess without looking at the picture.

Pictures             data/shapes/images/            sentences  data/shapes/$task/
Snapshots and log    snap/$task/$run/           (BEST.pth, LAST.pth, log.log, options.json)
Submission file      snap/$task/${run}_results/${hidden}_predict.${results##*.}

Next:
  bash run/${task}_test.bash $gpus ${run}_results ${world[*]} --test $known --load snap/$task/$run/BEST
  bash run/ask.bash $gpus $asked --load snap/$task/$run/BEST
  bash run/show.bash errors --task $task --test $known --dataRoot data/shapes --load snap/$task/$run/BEST
  .venv/bin/tensorboard --logdir snap/$task/$run
  the commands for the real data and for a dataset of your own: README.md
TEXT
