"""The registry of tasks: kind of dataset -> module and class."""

import importlib

TASKS = {
    'vqa': 'vqa.VQA', 'gqa': 'gqa.GQA', 'nlvr2': 'nlvr2.NLVR2', 'nlvr': 'nlvr.NLVR', 'classify': 'classify.Classify',
    'multilabel': 'classify.MultiLabel', 'entailment': 'entailment.Entailment', 'refcoco': 'refcoco.RefCOCO',
    'retrieval': 'retrieval.Retrieval', 'vcr': 'vcr.VCR',
}


def task_class(kind):
    """The Task class of a kind (a key of TASKS), imported on first use since it imports PyTorch."""
    module, name = TASKS[kind].split('.')
    return getattr(importlib.import_module(f'tasks.{module}'), name)
