#!/usr/bin/env bash
# Several models, one submission: the mean of their probabilities.
# bash run/ensemble.bash vqa 0 ensemble --test test --load snap/vqa/a/BEST,snap/vqa/b/BEST,snap/vqa/c/BEST [flags]
# Runs run/<task>_test.bash for each snapshot with --dumpProbs 10, into snap/<task>/<name>/1, 2, ..., then writes
# snap/<task>/<name>/<split>_predict.json (.csv for nlvr2). In place of a snapshot a file that --dumpProbs wrote will do.
source "$(dirname "$0")/launch.bash"
help="TASK GPUS|cpu NAME --test SPLIT --load SNAPSHOT,SNAPSHOT,... [flags]"
[ $# -ge 3 ] && [[ $3 != -* ]] || usage "$help"
task=$1 gpus=$2 name=$3 split='' snapshots='' flags=() files=()
shift 3
while [ $# -gt 0 ]; do
    case $1 in
        --test) split=${2:-}; shift 2 || usage "$help" ;;
        --load) snapshots=${2:-}; shift 2 || usage "$help" ;;
        *) flags+=("$1"); shift ;;
    esac
done
[ -n "$split" ] && [ -n "$snapshots" ] && [ -f "run/${task}_test.bash" ] || usage "$help"
IFS=, read -ra snapshots <<<"$snapshots"
for i in "${!snapshots[@]}"; do
    [[ ${snapshots[i]} != *.json ]] || { files+=("${snapshots[i]}"); continue; }
    run_program bash "run/${task}_test.bash" "$gpus" "$name/$((i + 1))" --test "$split" --load "${snapshots[i]}" --dumpProbs 10 \
        "${flags[@]}" || exit
    files+=("snap/$task/$name/$((i + 1))/${split}_probs.json")
done
[ "$task" = nlvr2 ] && ending=csv || ending=json
exec "$PYTHON" -m tools.ensemble "$task" "${files[@]}" --out "snap/$task/$name/${split}_predict.$ending"
