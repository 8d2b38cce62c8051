"""From pictures to regions: the Faster R-CNN, detectors by name, the program of run/extract.bash."""
