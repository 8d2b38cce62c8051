#!/usr/bin/env bash
# Region features: bash run/regions.bash convert|info|check|repair|stats|show|import ... (--help explains each)
# Exit status: 0 success, 1 invalid regions, 2 wrong usage. Examples: data/README.md, "Checking and converting regions".
# One pass on one core, in the memory of one image: check reads about 200 MB of TSV a second, 120 out of a zip. Writes only what
# --out names, and convert the store. Only convert (a store that is older than its TSV) and show (pictures) replace what is there.
source "$(dirname "$0")/launch.bash"
exec "$PYTHON" -m tools.regions "$@"
