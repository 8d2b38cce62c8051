"""The registry of tasks: kind of dataset -> class."""

import importlib

TASKS = {'vqa': 'VQA', 'gqa': 'GQA', 'nlvr2': 'NLVR2', 'nlvr': 'NLVR'}


def task_class(kind):
    """The Task class of a kind (a key of TASKS), imported on first use since it imports PyTorch."""
    return getattr(importlib.import_module(f'tasks.{kind}'), TASKS[kind])
