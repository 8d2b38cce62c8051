#!/usr/bin/env bash
# Checks a file of predictions and scores it as the official evaluators do, without a server, e.g. the leaderboard's score on val:
# bash run/evaluate.bash vqa|gqa|nlvr2|entailment|refcoco|retrieval|vcr PREDICTIONS ANNOTATIONS [--choices FILE] [--out FILE]   (--help says what each file is)
# A part of the questions: --only FILE of their ids, or --subset for annotations of a part (GQA-OOD head and tail).
# Prints a table, writes only --out. Exit status: 0 success, 1 invalid file, 2 wrong usage. One core: VQA's val (214,000 questions) 8 s
# in 0.3 GB, GQA's submission (4.2 million, checked only) 30 s in 1 GB.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m tools.evaluate "$@"
