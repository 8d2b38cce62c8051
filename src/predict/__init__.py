"""Answers to questions about pictures: on the command line and in the browser."""
