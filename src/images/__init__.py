"""Finding and opening pictures."""
