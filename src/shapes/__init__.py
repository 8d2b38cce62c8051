"""The sample world: generated pictures with regions, questions and captions, made in seconds without downloads."""
