#!/usr/bin/env bash
# The sample world in data/shapes: pictures, regions, VQA, GQA, NLVR2 and pre-training, laid out as the real data, no download.
# bash run/shapes.bash [--images 2000] [--out data/shapes]
# 2,000 images: about 35 seconds on 2 CPU cores, 155 MB, and 43 MB a task for the region stores that training makes of them.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" src/shapes/make.py "$@"
