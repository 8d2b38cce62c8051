# BertAdam, where the original code has it.
from bert.optimization import BertAdam

__all__ = ['BertAdam']
