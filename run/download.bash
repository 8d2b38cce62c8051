#!/usr/bin/env bash
# Downloads published weights, annotations, features and the detector: bash run/download.bash WHAT... [--to data] (--help lists WHAT)
# The same command resumes an interrupted download; --list shows addresses and states without a network. Exit status: 0 all files
# are there, 1 some are missing, 2 wrong usage. One core takes 1 s per GB for sha256, and 7 s per GB of TSV to extract it.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m tools.download "$@"
