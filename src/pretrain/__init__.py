"""Pre-training: sentences and regions, objectives, the answer table."""
