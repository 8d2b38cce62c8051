"""From pictures to regions: the program of run/extract.bash. Above `regions` and `shapes`, between whose detectors it chooses."""
