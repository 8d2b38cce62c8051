# BertTokenizer, where the original code has it.
from bert.tokenization import BertTokenizer

__all__ = ['BertTokenizer']
