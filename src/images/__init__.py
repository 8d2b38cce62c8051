"""Pictures: which, and from file to array."""
