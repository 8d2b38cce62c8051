#!/usr/bin/env bash
# Measures what the design promises: bash run/bench.bash PART [flags]; each part has --help, prints a table and writes
# snap/bench/PART.json. Without a part: model, loop, scaling and project, one after the other.
# model: steps of training and inference beside Hugging Face's (on 2 CPU cores 20 minutes). loop: the real loop against its steps
# alone. scaling: 1 and 2 processes. project: hours of the published trainings from the rates of model.
# regions: opening, reading and converting 18 GB of features (25 GB of disk, 8 GB of memory; 3 minutes on 2 CPU cores; --images
# 3000 --convert 300 --batches 100 takes half a minute). submit: answering 448,000 and 4.2 million questions beside the model.
# detector: finding the regions of photographs with random weights (2 minutes; --images DIR).
# pretrain: starting on 9 million sentences about 180,000 images (3 GB of disk; 10 minutes, most of them to make the sentences).
source "$(dirname "$0")/launch.bash"
export PYTHONPATH=$PYTHONPATH:.
case ${1:-} in
    '')
        echo "Four measurements; the first takes 25 minutes on 2 CPU cores, the others 10. Each alone: bash run/bench.bash PART"
        for part in model loop scaling project; do
            echo "== $part"
            "$PYTHON" -m bench.$part || exit
        done
        ;;
    model | loop | scaling | project | regions | submit | pretrain | detector) exec "$PYTHON" -m "bench.$1" "${@:2}" ;;
    *) usage "[model|loop|scaling|project|regions|submit|pretrain|detector [flags]]" ;;
esac
