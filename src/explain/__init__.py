"""A look inside a model: what it attends to, and what an answer rests on."""
