#!/usr/bin/env bash
# Measures speed and memory: bash run/bench.bash
# [model|loop|regions|detector|retrieval|images|pixels|albef|memory|rehearsal [flags]]; each has --help, prints a table and
# writes snap/bench/NAME.json. Without an argument: model and loop.
# model: steps of training and inference compared with Hugging Face's (25 minutes on 2 CPU cores; --model vlbert --evalBatchSize 0:
# 9 minutes). loop: the training loop compared with its steps alone, in one process and in two; hours of the published trainings
# (10 minutes).
# regions: opening, reading and converting 18 GB of features (25 GB of disk, 8 GB of memory; 4 minutes on 2 CPU cores; --images
# 3000 --convert 300 --batches 100 takes half a minute). detector: regions of photographs, random weights (2 minutes; --images DIR).
# images: decoding, augmenting and batching of images from a folder, a zip and a pixel store (10 minutes; --torchvision PYTHON).
# pixels: training steps of VL-BERT end to end, with and without --checkpointing (3 minutes; --images DIR).
# albef: training steps of the full-size ALBEF, its memory, and how long its pre-training takes (5 minutes).
# memory: of training steps at batch sizes 256 and 1,024, without running them (4 to 12 minutes; --measured 0: one).
# rehearsal: traces training steps as a GPU takes them (2 minutes).
# retrieval: ranking of 1,000 images and 5,000 captions without the model (half a minute).
source "$(dirname "$0")/launch.bash"
export PYTHONPATH=$PYTHONPATH:.
case ${1:-} in
    '')
        for name in model loop; do
            echo "== $name"
            run_program "$PYTHON" -m bench.$name || exit
        done
        ;;
    model | loop | regions | detector | retrieval | images | pixels | albef | memory | rehearsal) exec "$PYTHON" -m "bench.$1" "${@:2}" ;;
    *) usage "[model|loop|regions|detector|retrieval|images|pixels|albef|memory|rehearsal [flags]]" ;;
esac
