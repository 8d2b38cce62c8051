"""Files: written atomically, read as streams, downloaded."""
