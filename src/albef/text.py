"""ALBEF's rules for texts, and its tokenisation: a sentence is [CLS] and its word pieces, without [SEP]."""

import re

import numpy as np

from bert.tokenization import CLS, SEP, SURROGATES, TEXT, UNK
from files.progress import ProgressBar

DELETED = re.compile(r'[,.\'!?"()*#:;~]')
CHUNK = 10_000  # texts per tick of the progress bar


def _without_marks(text):
    return DELETED.sub('', text.lower()).replace('-', ' ').replace('/', ' ')


def pre_caption(text, words):
    """A caption in lower case, without punctuation, cut to so many words."""
    text = re.sub(r'\s{2,}', ' ', _without_marks(text).replace('<person>', 'person'))
    return ' '.join(text.rstrip('\n').strip(' ').split(' ')[:words])


def pre_question(text, words):
    """The same for a question: runs of spaces stay, so that the empty words between them count."""
    return ' '.join(_without_marks(text).rstrip(' ').split(' ')[:words])


def encode(tokenizer, texts, max_length=None, separator=False):
    """(input_ids (n, t) int32, 0 at padding, cut to the longest; counts (n, 4) as of BertTokenizer.encode_counted).

    max_length: tokens, [CLS] included; None: no cut. Special tokens in a text, such as [SEP], become their ids. separator: end
    with [SEP], within max_length.
    """
    cls, unk, end = tokenizer.vocab[CLS], tokenizer.vocab[UNK], [tokenizer.vocab[SEP]] * separator
    rows, counts = [], np.zeros((len(texts), 4), np.int32)
    for start in ProgressBar(range(0, len(texts), CHUNK), 'Tokenising', unit=f' x {CHUNK:,} texts', delay=3):
        chunk = [SURROGATES.sub('', text[:TEXT]) for text in texts[start:start + CHUNK]]
        for row, encoding in enumerate(tokenizer.encodings(chunk), start):
            pieces, tokens = encoding.ids, len(encoding.ids) + 1 + separator
            most = max(max_length or tokens, 1 + separator)
            rows.append(np.array([cls, *pieces[:most - 1 - separator], *end], np.int32))
            counts[row] = len(pieces), pieces.count(unk), tokens > most, tokens
    ids = np.zeros((len(rows), max(map(len, rows), default=1)), np.int32)
    for row, pieces in zip(ids, rows, strict=True):
        row[:len(pieces)] = pieces
    return ids, counts


def encode_answers(tokenizer, answers):
    """[CLS] answer [SEP], not cut: (n, t) int64, 0 at padding."""
    return encode(tokenizer, [f'{answer}{SEP}' for answer in answers])[0].astype(np.int64)
