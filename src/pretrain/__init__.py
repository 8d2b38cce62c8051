"""Pre-training: its answer table."""
