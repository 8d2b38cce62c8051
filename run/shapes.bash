#!/usr/bin/env bash
# The sample world in data/shapes: pictures, regions, and VQA, GQA and NLVR2 in the layout of the real data, no download.
# bash run/shapes.bash [--images 2000] [--out data/shapes]
# 2,000 images: about 35 seconds on 2 CPU cores, 152 MB, and 43 MB a task for the region stores that training makes of them.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" src/shapes/make.py "$@"
