#!/usr/bin/env bash
# A page to try a snapshot: bash run/demo.bash [--load SNAPSHOT] [--host 127.0.0.1] [--port 7860] (--help says the rest)
# Needs Gradio (bash run/setup.bash --demo). Opens in seconds; an answer takes less than a second on the sample world, with the
# Faster R-CNN on a CPU some seconds a picture. Listens on this machine alone and needs no network.
# Exit status 130 ended by Ctrl-C, 1 a fault of what was given, 2 wrong usage.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m predict.demo "$@"
