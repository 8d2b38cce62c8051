#!/usr/bin/env bash
# Fetches published weights, annotations, features and the detector: bash run/download.bash WHAT... [--to data] (--help lists WHAT)
# Killed or cut off, the same command goes on; --list shows what there is and what is there, without a network. Exit status 0 all
# there, 1 something is missing, 2 wrong usage. As fast as the network; a digest takes a second a GB, unpacking some 10.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m downloads.main "$@"
