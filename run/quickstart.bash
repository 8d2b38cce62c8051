#!/usr/bin/env bash
# From a fresh clone to answered questions: bash run/quickstart.bash [GPUS|cpu]
# Sets everything up, makes the sample world, trains LXMERT on it from scratch, tests it and writes the submission file.
# Expected: 68.1 on minival (34.8 without pictures); the time: README.md, "Results". Run again, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
gpus=${1:-0}
world=(--dataRoot data/shapes --bert data/shapes/bert)
step() { printf '\n== %s\n' "$*"; }

step "Setting up .venv"
bash run/setup.bash
step "Making the sample world in data/shapes"
bash run/shapes.bash
step "Training LXMERT from scratch on it (snap/vqa/quickstart)"
bash run/vqa_finetune.bash "$gpus" quickstart "${world[@]}" --fromScratch \
    --lr 5e-4 --batchSize 32 --epochs 5 --evalBatchSize 256 --resume
step "Testing it on minival, where answers are known"
bash run/vqa_test.bash "$gpus" quickstart_results "${world[@]}" --test minival --load snap/vqa/quickstart/BEST
step "Answering the test split, for a leaderboard"
bash run/vqa_test.bash "$gpus" quickstart_results "${world[@]}" --test test --load snap/vqa/quickstart/BEST

step "What came out"
PYTHONPATH=src .venv/bin/python src/shapes/report.py data/shapes snap/vqa/quickstart_results/minival_predict.json
cat <<TEXT

majority: always the commonest answer; text only: the best guess without looking at the picture.

Pictures             data/shapes/images/            questions  data/shapes/vqa/
Snapshots and log    snap/vqa/quickstart/           (BEST.pth, LAST.pth, log.log, options.json)
Submission file      snap/vqa/quickstart_results/test_predict.json

Next:
  bash run/vqa_test.bash $gpus quickstart_results ${world[*]} --test minival --load snap/vqa/quickstart/BEST
  .venv/bin/tensorboard --logdir snap/vqa/quickstart
  the commands for VQA itself and for a dataset of your own: README.md
TEXT
