"""Explanations of a model: attention, relevance of words and regions, error reports."""
