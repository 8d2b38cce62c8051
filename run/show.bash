#!/usr/bin/env bash
# Explains what a model does: bash run/show.bash errors|attention|pointing ... (--help explains each)
# errors: one HTML page about the predictions of a labelled split, which opens without a network. It predicts as --test does; a page
# of 1,000 examples takes 3 MB, with photographs about 20 MB.
# attention: an answer, a chosen region (RefCOCO) or a match (retrieval), the words and regions that it rests on, and the attention
# of every head, or, of ALBEF, the patches that each word looks at, as PNG and json (one core, lxr955 with all of its 60
# cross-attention heads: 43 s, 1.7 GB).
# pointing: how often the most relevant region is on the named object, on the sample world (4 s).
# Exit status: 0 success, 1 invalid input, 2 wrong usage. It writes only into --out.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m shapes.show "$@"
