#!/usr/bin/env bash
# Tests both models of VCR together, which gives Q->A, QA->R and Q->AR where a split has labels, and the file of the leaderboard:
#     bash run/vcr_test.bash 0 results --test val --load snap/vcr/answers/BEST --loadRationale snap/vcr/rationales/BEST
# or one of them: --load snap/vcr/answers/BEST, or --load snap/vcr/rationales/BEST --rationale
# Published Q->AR on val: VL-BERT base 55.2, large 58.9 (test 59.7).
# Writes snap/vcr/<name>/val_predict.csv: annot_id, answer_0, ..., rationale_conditioned_on_a3_3. Flags: run/README.md
source "$(dirname "$0")/launch.bash"
[ $# -ge 2 ] && [[ $2 != -* ]] || usage "GPUS|cpu NAME --test SPLIT --load SNAPSHOT [--loadRationale SNAPSHOT] [flags]"
launch src/tasks/vcr.py "" "$1" --test test --batchSize 64 --output "snap/vcr/$2" "${@:3}"
