#!/usr/bin/env bash
# A page in the browser to ask a model about pictures: bash run/demo.bash [--load SNAPSHOT...] [--host 127.0.0.1] [--port 7860]
# All flags: --help. Needs Gradio (bash run/setup.bash --demo). Starts in seconds; an answer takes less than a second on the sample
# world, and with the Faster R-CNN on a CPU some seconds per picture. Listens on this machine only and needs no network.
# Exit status: 130 after Ctrl-C, 1 invalid input, 2 wrong usage.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m predict.demo "$@"
