"""What a dataset is made of: which files, and how they are read."""
