#!/usr/bin/env bash
# A look inside a model: bash run/show.bash attention|pointing ... (--help says what each takes)
# attention: an answer, the words and regions that it rests on, what every head looks at, as PNG and json; pointing: how often
# relevance points at the object that is named, on the sample world. On one core: lxr955 with all of its 60 cross heads drawn 43 s
# and 1.7 GB (beside other jobs), the pointing game's 200 questions 4 s. Exit status 0 well, 1 a fault of what was given, 2 wrong
# usage. Writes only into --out.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m show.main "$@"
