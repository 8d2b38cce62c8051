#!/usr/bin/env bash
# Fetches published weights, annotations, features and the detector: bash run/download.bash WHAT... [--to data] (--help lists WHAT)
# Killed or cut off, the same command goes on; --list shows what there is and what is there, without a network. Exit status 0 all
# there, 1 something is missing, 2 wrong usage. Then on one core a second a GB for digests, and 7 a GB of TSV for unpacking.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m tools.download "$@"
