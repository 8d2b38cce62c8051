"""A page to try a snapshot: pictures and a question in, answers and what they rest on out."""
