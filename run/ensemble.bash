#!/usr/bin/env bash
# Several models, one submission: the mean of their probabilities.
# bash run/ensemble.bash vqa 0 ensemble --test test --load snap/vqa/a/BEST,snap/vqa/b/BEST,snap/vqa/c/BEST [flags]
# Runs run/<task>_test.bash for each snapshot with --dumpProbs 10, into snap/<task>/<name>/1, 2, ..., then writes
# snap/<task>/<name>/<split>_predict.json (.csv for nlvr2 and vcr). In place of a snapshot a file that --dumpProbs wrote will do;
# for vcr, where --loadRationale takes as many snapshots as --load, a file of predictions.
source "$(dirname "$0")/launch.bash"
help="TASK GPUS|cpu NAME --test SPLIT --load SNAPSHOT,SNAPSHOT,... [flags]"
[ $# -ge 3 ] && [[ $3 != -* ]] || usage "$help"
task=$1 gpus=$2 name=$3 split='' snapshots='' rationales='' both=() flags=() files=()
shift 3
while [ $# -gt 0 ]; do
    case $1 in
        --test) split=${2:-}; shift 2 || usage "$help" ;;
        --load) snapshots=${2:-}; shift 2 || usage "$help" ;;
        --loadRationale) rationales=${2:-}; shift 2 || usage "$help" ;;
        *) flags+=("$1"); shift ;;
    esac
done
[ -n "$split" ] && [ -n "$snapshots" ] && [ -f "run/${task}_test.bash" ] || usage "$help"
IFS=, read -ra snapshots <<<"$snapshots"
IFS=, read -ra rationales <<<"$rationales"
[ ${#rationales[@]} = 0 ] || [ ${#rationales[@]} = ${#snapshots[@]} ] || {
    echo "--loadRationale: expected as many snapshots as --load has, ${#snapshots[@]}, found ${#rationales[@]}; name a pair for each" >&2
    exit 2
}
case $task in
    vcr) ending=csv output=predict.csv dump=() ;;
    retrieval) echo "retrieval: predictions are ranks, of which there is no mean; test one snapshot with run/retrieval_test.bash" >&2; exit 2 ;;
    nlvr2) ending=csv output=probs.json dump=(--dumpProbs 10) ;;
    refcoco) ending=json output=probs.json dump=(--dumpProbs 1000000) ;;  # all regions
    *) ending=json output=probs.json dump=(--dumpProbs 10) ;;
esac
for i in "${!snapshots[@]}"; do
    [[ ${snapshots[i]} != *.json && ${snapshots[i]} != *.csv ]] || { files+=("${snapshots[i]}"); continue; }
    [ ${#rationales[@]} = 0 ] || both=(--loadRationale "${rationales[i]}")
    run_program bash "run/${task}_test.bash" "$gpus" "$name/$((i + 1))" --test "$split" --load "${snapshots[i]}" \
        "${both[@]}" "${dump[@]}" "${flags[@]}" || exit
    files+=("snap/$task/$name/$((i + 1))/${split}_$output")
done
exec "$PYTHON" -m tools.ensemble "$task" "${files[@]}" --out "snap/$task/$name/${split}_predict.$ending"
