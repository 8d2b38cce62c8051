"""The sample world: pictures that we draw, their regions and questions about them, in seconds and without downloads."""
