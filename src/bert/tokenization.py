"""BERT's lower-casing WordPiece tokenizer, on the Rust `tokenizers` library."""

import json
import re
from pathlib import Path

import numpy as np
from tokenizers import BertWordPieceTokenizer
from tqdm import tqdm

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
SURROGATES = re.compile('[\ud800-\udfff]')  # halves of characters, which json can carry and Rust's text cannot
VOCABULARIES = ('vocab.txt', 'tokenizer.json')  # files of a folder, the first that is there
CHUNK = 10_000  # sentences tokenised between two ticks of the progress bar


class BertTokenizer:
    """Words to pieces to ids, over a vocabulary file with one word piece a line, or a tokenizer.json of Hugging Face.

    Raises FileNotFoundError, or ValueError if a special token is missing or [PAD] is not the first line.
    """

    def __init__(self, vocab_file):
        self.vocab_file = Path(vocab_file)
        if not self.vocab_file.is_file():
            raise FileNotFoundError(f'{vocab_file}: no such vocabulary; expected a text file with one word piece a line')
        pieces = self._read()
        self.vocab = {piece: index for index, piece in enumerate(pieces)}
        for token in SPECIAL_TOKENS:
            if token not in self.vocab:
                raise ValueError(f'{vocab_file}: expected a line {token}, found none; is this a BERT vocabulary?')
        if self.vocab[PAD] != 0:
            raise ValueError(f'{vocab_file}: expected [PAD] on line 1, found it on line {self.vocab[PAD] + 1}')
        self.ids_to_tokens = pieces
        self._tokenizer = BertWordPieceTokenizer(vocab=self.vocab, lowercase=True)

    @classmethod
    def from_pretrained(cls, path):
        """From a vocabulary file, or a folder that holds vocab.txt or, as transformers writes since its version 5, only
        tokenizer.json."""
        path = Path(path)
        if not path.is_dir():
            return cls(path)
        settings = path / 'tokenizer_config.json'
        try:
            cased = settings.is_file() and json.loads(settings.read_text(encoding='utf-8')).get('do_lower_case') is False
        except (ValueError, AttributeError) as error:
            raise ValueError(f'{settings}: expected a json object, found a fault ({error})') from None
        if cased:
            raise ValueError(f'{settings}: do_lower_case is false, but LXMERT reads lower-cased words; give an uncased BERT')
        return cls(next((path / name for name in VOCABULARIES if (path / name).is_file()), path / VOCABULARIES[0]))

    def _read(self):
        """The word pieces of the file, in the order of their ids."""
        if self.vocab_file.suffix == '.json':
            try:
                ids = json.loads(self.vocab_file.read_text(encoding='utf-8'))['model']['vocab']
                return sorted(ids, key=dict(ids).get)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f'{self.vocab_file}: expected a tokenizer.json with model.vocab, found {error!r}') from None
        try:
            pieces = self.vocab_file.read_text(encoding='utf-8').split('\n')
        except UnicodeDecodeError as error:
            raise ValueError(f'{self.vocab_file}: expected a text file in UTF-8, found {error}') from None
        return pieces[:-1] if pieces[-1] == '' else pieces  # without the end of the last line

    def __len__(self):
        return len(self.ids_to_tokens)

    def tokenize(self, text):
        """The word pieces of a text, without [CLS] and [SEP]."""
        return self._tokenizer.encode(SURROGATES.sub('', text), add_special_tokens=False).tokens

    def convert_tokens_to_ids(self, tokens):
        return [self.vocab.get(token, self.vocab[UNK]) for token in tokens]

    def convert_ids_to_tokens(self, ids):
        return [self.ids_to_tokens[i] for i in ids]

    def encode(self, sentences, max_length=20):
        """Token ids (n, max_length) int32 of n sentences: [CLS], at most max_length - 2 pieces, [SEP], padded with 0."""
        ids = np.zeros((len(sentences), max_length), dtype=np.int32)
        cls, sep = self.vocab[CLS], self.vocab[SEP]
        starts = range(0, len(sentences), CHUNK)
        for start in tqdm(starts, desc='Tokenising', unit=f' x {CHUNK:,} sentences', delay=3, disable=None):
            chunk = [SURROGATES.sub('', sentence).strip() for sentence in sentences[start:start + CHUNK]]
            for row, encoding in enumerate(self._tokenizer.encode_batch(chunk, add_special_tokens=False), start):
                pieces = [cls, *encoding.ids[:max_length - 2], sep]
                ids[row, :len(pieces)] = pieces
        return ids

    def encode_pairs(self, texts, max_length):
        ids = self.encode([' '.join(text) for text in texts], max_length)
        return ids, np.zeros_like(ids)
