"""The list of the tasks: which class is that of which kind of dataset."""

import importlib

TASKS = {'vqa': 'VQA', 'gqa': 'GQA', 'nlvr2': 'NLVR2', 'nlvr': 'NLVR'}


def task_class(kind):
    """The class of a kind, one of TASKS; imported only now, since it brings PyTorch."""
    return getattr(importlib.import_module(f'tasks.{kind}'), TASKS[kind])
