#!/usr/bin/env bash
# Weights to and from Hugging Face's form, and from .pth to .safetensors and back (--help says what each takes):
# bash run/convert.bash to-hf snap/vqa/vqa_lxr955/BEST out [--push owner/name]
# bash run/convert.bash from-hf out snap/vqa/back/BEST
# bash run/convert.bash card snap/vqa/vqa_lxr955/BEST
# bash run/convert.bash file snap/vqa/vqa_lxr955/BEST.pth BEST.safetensors
# The whole model takes seconds and 2 GB of memory. Replaces no file. Exit status: 0 success, 1 invalid input, 2 wrong usage.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m tools.convert "$@"
