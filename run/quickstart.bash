#!/usr/bin/env bash
# From a fresh clone to answered questions: bash run/quickstart.bash [GPUS|cpu] [TASK] [MODEL] [hard]
# MODEL: a name in src/models.py; lxmert if none is given. hard: in the hard sample world.
# TASK: vqa, gqa, nlvr2, refcoco, vcr, entailment or retrieval; or pretrain, which pre-trains LXMERT, VL-BERT or ALBEF.
# Installs the packages, makes the sample world, trains the model on it from scratch, tests it and writes the submission file.
# NLVR2, VCR, entailment and retrieval start from the VQA model, which is trained first; ALBEF, which reads the pictures and knows
# no VCR, is pre-trained on their captions first. Expected scores and times: README.md, "Quickstart", and docs/results.md. To resume
# it, repeat the command.
set -euo pipefail
cd "$(dirname "$0")/.."
source run/signals.bash
models=$(sed -n "s/^MODELS = {\(.*\)}.*/\1/p" src/models.py | grep -o "'[a-z]*':" | tr -d "':" | paste -sd '|')
usage() {
    echo "Usage: bash run/quickstart.bash [GPUS|cpu] [vqa|gqa|nlvr2|refcoco|vcr|entailment|retrieval|pretrain] [$models] [hard]" >&2
    exit 2
}
[ $# -le 4 ] && [[ ${1:-0} =~ ^(cpu|[0-9]+(,[0-9]+)*)$ ]] || usage
gpus=${1:-0} task=${2:-vqa} model=${3:-lxmert}
[[ "|$models|" == *"|$model|"* && $task$model != vcralbef && $task$model != pretrainvisualbert ]] || usage
run=quickstart load=--loadEncoder
[ $model = lxmert ] || run=quickstart_$model
data=data/shapes hard=()
case ${4:-} in
    '') ;;
    hard) data=data/shapes_hard run+=_hard hard=(--hard) ;;
    *) usage ;;
esac
world=(--dataRoot $data --bert $data/bert)
picture=$data/images/val2014/COCO_val2014_00000000160
question="${picture}1.png \"Is there a star?\""
case $task in
    vqa) labelled=minival unlabelled=test flags=(--fromScratch --lr 5e-4 --epochs 6) ;;
    gqa) labelled=testdev unlabelled=submit flags=(--fromScratch --lr 5e-4 --epochs 6) ;;
    nlvr2) labelled=test unlabelled=hidden flags=($load snap/vqa/$run/BEST --lr 3e-4 --epochs 2)
        question="${picture}1.png ${picture}2.png \"Both pictures show a star.\"" ;;
    entailment) labelled=dev unlabelled=test flags=($load snap/vqa/$run/BEST --lr 3e-4 --epochs 4)
        question="${picture}1.png \"The star is red.\"" ;;
    refcoco) labelled=val unlabelled= flags=(--fromScratch --lr 5e-4 --epochs 6)
        question="${picture}1.png \"the yellow cross\"" ;;
    vcr) labelled=val unlabelled=test flags=($load snap/vqa/$run/BEST --lr 3e-4 --epochs 6) ;;
    retrieval) labelled=coco_test unlabelled= flags=($load snap/vqa/$run/BEST --lr 3e-4 --epochs 2)
        question="${picture}1.png \"There is a yellow cross.\"" ;;
    pretrain) flags=(--lr 3e-4 --epochs 4) ;;  # of what may follow
    *) usage ;;
esac
pretrained=snap/pretrain/$run
[ $model != albef ] || flags=($load $pretrained/Epoch10 --lr 5e-4 --schedule triangle --epochs 2)
[ $model = lxmert ] || flags+=(--model $model --batchSize 32)
[ $task$model != vcrvlbert ] || flags+=(--optim adamw)  # the published SGD needs more steps
step() { printf '\n== %s\n' "$*"; }

step "Installing packages in .venv"
run_program bash run/setup.bash
step "Making the sample world in $data"
run_program bash run/shapes.bash "${hard[@]}"
pretrain() {  # pretrain LAUNCHER OUTPUT FLAGS...
    run_program bash "run/$1" "$gpus" "${world[@]}" --lr $rate --batchSize 32 --output "$2" --resume "${@:3}"
}
rate=5e-4
case $task,$model in
    *,albef)
        step "Pre-training ALBEF on captions ($pretrained)"
        rate=1e-3 pretrain albef_pretrain.bash $pretrained --fromScratch --schedule triangle --epochs 10
        if [ $task = nlvr2 ]; then
            step "Text assignment: to which of two pictures does a caption belong? (${pretrained}_nlvr2)"
            pretrain albef_pretrain.bash ${pretrained}_nlvr2 --taskAssign $load $pretrained/Epoch10 --schedule triangle --epochs 2
            flags[1]=${pretrained}_nlvr2/Epoch02
        fi ;;
    pretrain,vlbert)
        step "Pre-training VL-BERT on captions and text ($pretrained)"
        pretrain vlbert_pretrain.bash $pretrained --fromScratch --epochs 20
        flags=($load $pretrained/Epoch20 "${flags[@]}") ;;
    pretrain,lxmert)  # in this order: experience_in_pretraining.md
        step "Pre-training LXMERT on questions and region labels (${pretrained}_questions)"
        pretrain lxmert_pretrain.bash ${pretrained}_questions --taskQA --taskObjPredict --fromScratch --epochs 5
        step "Pre-training LXMERT with all its objectives ($pretrained)"
        pretrain lxmert_pretrain.bash $pretrained --load ${pretrained}_questions/Epoch05 --epochs 5
        flags=($load $pretrained/Epoch05 "${flags[@]}") ;;
    *)
        if [[ ${flags[0]} == "$load" ]] && [ ! -f snap/vqa/${run}_results/test_predict.json ]; then
            run_program bash run/quickstart.bash "$gpus" vqa $model ${4:-}
        fi ;;
esac
if [ $task = pretrain ]; then
    cat <<TEXT

Snapshots and log    $pretrained/    (a file for each epoch, log.log, options.json)

Next, any task from it, such as
  bash run/entailment_finetune.bash $gpus NAME ${world[*]} ${flags[*]}
TEXT
    exit
fi
results=snap/$task/${run}_results tested=(--load "snap/$task/$run/BEST")
train() {
    step "Training $model (snap/$task/$1)"
    run_program bash "run/${task}_finetune.bash" "$gpus" "$1" "${world[@]}" "${flags[@]}" --evalBatchSize 256 --resume "${@:2}"
}
predict() { run_program bash "run/${task}_test.bash" "$gpus" "${run}_results" "${world[@]}" --test "$1" "${tested[@]}"; }
train "$run"
if [ "$task" = vcr ]; then  # a model for each of its two parts
    train "${run}_rationales" --rationale
    tested+=(--loadRationale "snap/vcr/${run}_rationales/BEST")
fi
step "Testing on $labelled, whose answers are known"
predict "$labelled"
if [ -n "$unlabelled" ]; then
    step "Predicting $unlabelled, for a leaderboard"
    predict "$unlabelled"
fi

step "Results"
files=("$results"/*_predict.*)
PYTHONPATH=src run_program .venv/bin/python -m shapes.report $data --task $task "$results/${labelled}_predict.${files##*.}"
next=() legend=
[ $task = vcr ] || next+=("  bash run/ask.bash $gpus $question --load snap/$task/$run/BEST")
if [[ ! $task =~ ^(refcoco|vcr|retrieval)$ ]]; then
    legend=$'\nmajority: always the most frequent answer; text only: the best answer to the question without the picture.\n'
    next+=("  bash run/show.bash errors --task $task --test $labelled --dataRoot $data --load snap/$task/$run/BEST")
fi
cat <<TEXT
$legend
Pictures             $data/images/            sentences  $data/$task/
Snapshots and log    snap/$task/$run/           (BEST.pth, LAST.pth, log.log, options.json)
Predictions          $results/${unlabelled:-$labelled}_predict.${files##*.}

Next:
  bash run/${task}_test.bash $gpus ${run}_results ${world[*]} --test $labelled ${tested[*]}
$(printf '%s\n' "${next[@]}" "  .venv/bin/tensorboard --logdir snap/$task/$run")
  README.md: the commands for the real data and for your own dataset
TEXT
