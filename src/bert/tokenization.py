"""BERT's lower-casing WordPiece tokenizer, on the Rust `tokenizers` library."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer

from files.json_files import DataError, first_duplicate, read_json, read_text
from files.progress import ProgressBar
from files.text import shown

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
SURROGATES = re.compile('[\ud800-\udfff]')  # halves of characters, which json can hold and Rust cannot
VOCABULARIES = ('vocab.txt', 'tokenizer.json')  # in a folder; the first that exists is read
CHUNK = 10_000  # texts per tick of the progress bar
TEXT = 10_000  # characters of a text that are read
BATCH = 1 << 20  # characters tokenised at once
MAX_UNKNOWN = 0.05  # share of [UNK] from which the vocabulary is not that of the text
MAX_TRUNCATED = 0.5  # share of truncated sentences from which most are
MAX_CAPITALS = 0.01  # share of word pieces with capitals in a vocabulary of lower-cased text


class TextWarning(UserWarning):
    """Sentences that the model cannot read completely."""


@dataclass
class TextStatistics:
    """What tokenising made of sentences."""

    max_length: int
    sentences: int = 0
    truncated: int = 0  # sentences of more than max_length tokens
    pieces: int = 0  # word pieces before truncation, without [CLS] and [SEP]
    unknown: int = 0  # of these [UNK]
    longest: int = 0  # tokens of the longest sentence

    def add(self, counts, times=None):
        """Adds sentences. counts (n, 4): as from BertTokenizer.encode_counted; times (n,): how often each occurs; None: once."""
        times = np.ones(len(counts), np.int64) if times is None else times
        counts = counts[times > 0]
        times = times[times > 0]
        self.sentences += int(times.sum())
        self.pieces, self.unknown, self.truncated = (
            before + int(times @ column) for before, column in
            zip((self.pieces, self.unknown, self.truncated), counts.T[:3].astype(np.int64), strict=True))
        self.longest = max(self.longest, int(counts[:, 3].max(initial=0)))
        return self

    @property
    def unknown_share(self):
        return self.unknown / max(self.pieces, 1)

    def __str__(self):
        return (f'{100 * self.unknown_share:.1f} % of the word pieces are [UNK], {self.truncated:,} of {self.sentences:,} '
                f'sentences have more than {self.max_length} tokens and are truncated')

    def warnings(self, vocabulary):
        """Yields what makes training or answering pointless, and what to do. vocabulary: its file, for the message."""
        if self.sentences and not self.pieces:
            yield 'all sentences are empty; correct the annotations'
        if self.unknown_share > MAX_UNKNOWN:
            yield (f'{100 * self.unknown_share:.0f} % of the word pieces are [UNK]: the vocabulary {vocabulary} is not that of '
                   'this language or script; use a model with another one (--bert FOLDER)')
        if self.truncated > MAX_TRUNCATED * self.sentences:
            yield (f'most sentences have more than {self.max_length} tokens, and what exceeds them is not read; the longest has '
                   f'{self.longest}: raise max_length')

    def lines(self, name, vocabulary):
        """The lines that a program prints about the sentences of a split or file `name`."""
        return [f'{name}: {self}.', *(f'Warning: {name}: {text}.' for text in self.warnings(vocabulary))]

    def warn(self, vocabulary):
        """Issues TextWarning, as a library does, if the vocabulary is not that of the text or a sentence is truncated."""
        if self.truncated or self.unknown_share > MAX_UNKNOWN:
            warnings.warn(f'{self} (vocabulary: {vocabulary})', TextWarning, stacklevel=3)


class BertTokenizer:
    """Text to word pieces and their ids. The vocabulary is a file with one word piece a line, or Hugging Face's tokenizer.json.

    Raises FileNotFoundError, or ValueError if a special token is missing or [PAD] is not the first line.
    """

    def __init__(self, vocab_file):
        self.vocab_file = Path(vocab_file)
        if not self.vocab_file.is_file():
            raise FileNotFoundError(f'{vocab_file}: no such vocabulary; expected a text file with one word piece a '
                                    'line; correct the path, or get one: bash run/download.bash bert')
        pieces = self._read()
        self.vocab = {piece: index for index, piece in enumerate(pieces)}
        if len(self.vocab) < len(pieces):
            raise DataError(f'{vocab_file}: expected each word piece once, found {shown(first_duplicate(pieces))} twice; '
                            'bring back the file as it was published')
        for token in SPECIAL_TOKENS:
            if token not in self.vocab:
                raise ValueError(f'{vocab_file}: expected a line {token}, found none; is this a BERT vocabulary?')
        if self.vocab[PAD] != 0:
            raise ValueError(f'{vocab_file}: expected [PAD] on line 1, found it on line {self.vocab[PAD] + 1}; bring back '
                             'the file as it was published')
        self.ids_to_tokens = pieces
        self._tokenizer = BertWordPieceTokenizer(vocab=self.vocab, lowercase=True)

    @classmethod
    def from_pretrained(cls, path):
        """From a vocabulary file, or a folder with vocab.txt or only tokenizer.json, as transformers 5 writes.

        Raises ValueError also for a cased BERT."""
        path = Path(path)
        if not path.is_dir():
            return cls(path)
        settings = path / 'tokenizer_config.json'
        values = read_json(settings, 'the settings of a tokenizer', dict) if settings.is_file() else {}
        tokenizer = cls(next((path / name for name in VOCABULARIES if (path / name).is_file()), path / VOCABULARIES[0]))
        # bert-base-chinese says false although its vocabulary is one of lower-cased text.
        if values.get('do_lower_case') is False and (share := tokenizer.share_of_capitals()) > MAX_CAPITALS:
            raise ValueError(f'{settings}: do_lower_case is false, and {100 * share:.0f} % of the word pieces in '
                             f'{tokenizer.vocab_file.name} have capitals, but text is lower-cased here; use an uncased BERT')
        return tokenizer

    def _read(self):
        """The file's word pieces, in the order of their ids."""
        if self.vocab_file.suffix == '.json':
            ids = read_json(self.vocab_file, 'a tokenizer.json with model.vocab')
            for key in ('model', 'vocab'):
                ids = ids.get(key) if isinstance(ids, dict) else None
            if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
                raise DataError(f'{self.vocab_file}: expected a tokenizer.json with model.vocab, {{word piece: id}} with the ids '
                                f'from 0 on, found {shown(ids)}; give a folder with the vocab.txt of a BERT')
            return sorted(ids, key=ids.get)
        pieces = read_text(self.vocab_file, 'a text file with one word piece a line').split('\n')
        return pieces[:-1] if pieces[-1] == '' else pieces  # the last line has an end

    def __len__(self):
        return len(self.ids_to_tokens)

    def share_of_capitals(self):
        """The share of word pieces with a capital letter; special tokens, in brackets, aside."""
        pieces = [piece for piece in self.ids_to_tokens if not piece.startswith('[')]
        return sum(piece != piece.lower() for piece in pieces) / max(len(pieces), 1)

    def tokenize(self, text):
        """The word pieces of a text, without [CLS] and [SEP]."""
        return self._tokenizer.encode(SURROGATES.sub('', text), add_special_tokens=False).tokens

    def convert_tokens_to_ids(self, tokens):
        return [self.vocab.get(token, self.vocab[UNK]) for token in tokens]

    def convert_ids_to_tokens(self, ids):
        return [self.ids_to_tokens[i] for i in ids]

    def encode(self, texts, max_length=20):
        """The token ids of `encode_pairs`."""
        return self.encode_pairs(texts, max_length)[0]

    def encode_pairs(self, texts, max_length=20):
        """(token ids, token type ids), each (n, max_length) int32, of n texts.

        A text is a str or a tuple of one or two: [CLS] first [SEP] has type 0, second [SEP] type 1. Longer ones are cut to
        max_length as by transformers' `longest_first`, shorter ones padded with 0.
        """
        return self.encode_counted(texts, max_length)[:2]

    def encode_counted(self, texts, max_length=20):
        """encode_pairs, and counts (n, 4) int32 for TextStatistics: of each text the word pieces, those that are [UNK], whether
        it is truncated, and its tokens before that."""
        ids, types = (np.zeros((len(texts), max_length), dtype=np.int32) for _ in range(2))
        counts = np.zeros((len(texts), 4), np.int32)
        cls, sep, unk = self.vocab[CLS], self.vocab[SEP], self.vocab[UNK]
        starts = range(0, len(texts), CHUNK)
        for start in ProgressBar(starts, 'Tokenising', unit=f' x {CHUNK:,} texts', delay=3):
            chunk = [(item,) if isinstance(item, str) else item for item in texts[start:start + CHUNK]]
            encodings = self.encodings([SURROGATES.sub('', text[:TEXT]).strip() for item in chunk for text in item])
            for row, item in enumerate(chunk, start):
                parts = [next(encodings).ids for _ in item]
                length = sum(map(len, parts))
                tokens = length + 1 + len(parts)
                counts[row] = length, sum(part.count(unk) for part in parts), tokens > max_length, tokens
                cut_longest_first(parts, max_length - 1 - len(parts))
                pieces = [cls, *(piece for part in parts for piece in (*part, sep))]
                ids[row, :len(pieces)] = pieces
                types[row, len(parts[0]) + 2:len(pieces)] = 1  # nothing for one text
        return ids, types, counts

    def encodings(self, texts):
        """Yields the encodings of texts, BATCH characters at a time, since a character may take 300 bytes there."""
        batch, size = [], 0
        for text in texts:
            batch.append(text)
            size += len(text)
            if size > BATCH:
                yield from self._tokenizer.encode_batch(batch, add_special_tokens=False)
                batch, size = [], 0
        yield from self._tokenizer.encode_batch(batch, add_special_tokens=False)


def cut_longest_first(parts, room):
    """Cut lists of word pieces to `room` in all: one by one off the end of the longest list, of equals the last."""
    while sum(map(len, parts)) > room:
        max(reversed(parts), key=len).pop()
