#!/usr/bin/env bash
# A look inside a model: bash run/show.bash errors|attention|pointing ... (--help says what each takes)
# errors: one HTML page of a validation run, to be opened without a network; predicts as --test does, on a GPU where there is one, and
# in as much time; a page of 1,000 examples takes 3 MB, with photographs about 20. attention: an answer, the words and regions that it
# rests on, what every head looks at, as PNG and json (one core, lxr955 with all of its 60 cross heads: 43 s, 1.7 GB). pointing: how
# often relevance points at the object that is named, on the sample world (4 s). Exit status 0 well, 1 a fault of what was given, 2
# wrong usage. Writes only into --out.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m shapes.show "$@"
