"""Measurements: programs that print figures and ratios taken side by side in one run. See run/bench.bash."""
