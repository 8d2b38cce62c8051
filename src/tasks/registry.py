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


def output_of(kind):
    """The heads.Recipe.output of the tasks of a kind; None if it is not that of a task, as of a run of pre-training."""
    return task_class(kind).output if kind in TASKS else None
