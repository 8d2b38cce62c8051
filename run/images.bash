#!/usr/bin/env bash
# Images that models read as pixels: bash run/images.bash convert|check ... (--help explains each)
# bash run/images.bash convert data/mscoco_images/train2014 --out data/train2014_384.pixels --size 384
# bash run/images.bash check data/mscoco_images/train2014
# A process on each core. convert writes 0.4 MB of disk an image at 384 pixels, and nothing before all images are converted.
# Exit status: 0 success, 1 broken images, 2 wrong usage.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m tools.images "$@"
