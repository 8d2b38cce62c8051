"""Programs around training: evaluation, conversion, checks, downloads."""
