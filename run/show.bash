#!/usr/bin/env bash
# A look inside: bash run/show.bash errors --load SNAPSHOT --test SPLIT [--images DIR] ...   (--help says what each takes)
# errors: one HTML page of a validation run, to be opened without a network; one process, on a GPU where there is one. Predicts as
# --test does, and in as much time. A page of 1,000 examples takes 3 MB, with photographs about 20 MB.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m show.main "$@"
