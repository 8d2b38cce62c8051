#!/usr/bin/env bash
# Compares models on the sample world with equal budgets: bash run/compare.bash GPUS|cpu [--tasks vqa,...] [--models ...] [--seeds 3]
# Pre-trains LXMERT, VL-BERT and ALBEF and fine-tunes them on every task that they know, with about the same number of parameters and
# the same seconds of training. A run on each core or GPU. Repeat the command to resume it.
# Writes snap/compare/NAME: table.md, results.json, figure.png. Scores and time: docs/compare.md. --fast tries it in minutes.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m shapes.compare "$@"
