"""A corpus of plain text for pre-training: files with a text a line, as one stream of word pieces on disk.

A sample is `length` word pieces from the start of a line on, through the lines that follow, without [CLS] and [SEP]; after the
last line comes the first, as in the original code. Hence a line is kept up to its first `length` pieces. Beside `wiki.txt` lies
the folder `wiki.txt.columns`, made once and memory mapped from then on, with

    pieces (p,) uint16, or int32 for large vocabularies; starts (n + 1,) int64: line i has the pieces starts[i] to starts[i + 1]
    meta.json: as that of pretraining_columns, with counts of the lines that were skipped
"""

import codecs
import glob
import itertools
import re
import resource
from math import gcd
from pathlib import Path

import numpy as np

from annotations.pretraining_columns import MappedColumns, columns_folder, how_made, open_made, source_of, write_meta
from bert.tokenization import UNK, TextStatistics
from dist import print0
from files.atomic import atomic_folder
from files.json_files import DataError, opened, some
from regions.store_files import Column

CHUNK = 1 << 14  # lines that are tokenised and written at once
CONTROL = re.compile('[\0-\x08\x0e-\x1f\x7f]')  # control characters but white space
NO_CORPUS = ('README.md', '.lock', '.columns', '.tmp', '.old')  # endings of files that a pattern does not mean
MAX_LINE = 1 << 20  # bytes of a line that are read, more than any sample needs
OTHER_FILES = 512  # that a program may have open besides those of a corpus
NUMBERS = 5  # of lines that were skipped, to report


class CorpusFile(MappedColumns):
    """The word pieces of one file; the counts of lines are in `meta`."""

    def lines(self, vocabulary):
        """Yields what to report: how many lines there are, which were skipped, and warnings. vocabulary: its file."""
        meta = self.meta
        skipped = f', {meta["empty"]:,} empty lines dropped' if meta['empty'] else ''
        yield f'{meta["source"]["name"]}: {len(self.starts) - 1:,} texts{skipped}.'
        if meta['binary']:
            numbers = ', '.join(map(str, meta['binary_lines']))
            yield (f'Warning: {meta["source"]["name"]}: {meta["binary"]:,} lines skipped that are no text in UTF-8 (line '
                   f'{numbers}{", ..." if meta["binary"] > NUMBERS else ""}).')
        statistics = TextStatistics(0, pieces=len(self.pieces), unknown=meta['unknown'])
        yield from (f'Warning: {meta["source"]["name"]}: {text}.' for text in statistics.warnings(vocabulary))


class Corpus:
    """Files of a corpus as one stream of lines. len(corpus): its lines."""

    def __init__(self, files, length):
        """files: list of CorpusFile; length: pieces of a sample."""
        self.files, self.length = files, length
        self.first_lines = np.cumsum([0, *(len(file.starts) - 1 for file in files)])  # of each file
        self.first_pieces = np.cumsum([0, *(len(file.pieces) for file in files)])

    def __len__(self):
        return int(self.first_lines[-1])

    def samples(self, lines):
        """(b, length) int64: the word pieces from the start of each line (b,) on."""
        for file in self.files:
            file.check_length()
        start = self._read(lines, self.first_lines, lambda file: file.starts) + self.first_pieces[self._file(lines)]
        return self._read((start[:, None] + np.arange(self.length)) % self.first_pieces[-1], self.first_pieces,
                          lambda file: file.pieces)

    def _file(self, places, firsts=None):
        return np.searchsorted(self.first_lines if firsts is None else firsts, places, side='right') - 1

    def _read(self, places, firsts, array_of):
        """Entries of one array of the files, joined. firsts: the place of each file's first entry."""
        file_of = self._file(places, firsts)
        values = np.empty(places.shape, np.int64)
        for i in np.unique(file_of).tolist():
            values[file_of == i] = array_of(self.files[i])[places[file_of == i] - firsts[i]]
        return values

    def order(self, places, seed):
        """The line (b,) of each place in an endless sequence, in which each round of len(self) places has every line once, each
        round in another order. It needs no memory: a line is an affine function of its place."""
        n = len(self)
        rounds, within = np.divmod(places, n)
        lines = np.empty_like(within)
        for number in np.unique(rounds).tolist():
            rng = np.random.default_rng([seed, number])
            factor, shift = (int(value) for value in rng.integers(1, n + 1, 2))
            while gcd(factor, n) != 1:
                factor += 1
            of_round = rounds == number
            lines[of_round] = (within[of_round] * (factor % n) + shift) % n
        return lines


def open_corpus(patterns, tokenizer, length, store_root=None):
    """The Corpus of some files, tokenised first where that has not been done; what was skipped is printed.

    patterns: paths or patterns of paths of files in UTF-8, also .gz. Raises FileNotFoundError or DataError.
    """
    paths = list(dict.fromkeys(path for pattern in patterns for path in find(Path(pattern))))
    allow_open_files(2 * len(paths), f'{some(paths)}: a corpus of {len(paths):,} files')
    files = [open_file(path, tokenizer, length, store_root) for path in paths]
    for file in files:
        print0(*file.lines(tokenizer.vocab_file))
    corpus = Corpus(files, length)
    if not len(corpus):
        raise DataError(f'{some(paths)}: expected a corpus, a text a line, found no text; put text there, or give --withoutText')
    return corpus


def allow_open_files(count, what):
    """Raises this process's limit of open files by `count`; mapped arrays count. Raises DataError if the system forbids it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + OTHER_FILES
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise DataError(f'{what} needs {needed:,} open files, but the system allows {hard:,} (ulimit -Hn); join '
                        'them into fewer files')
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def find(pattern):
    """The files that a path or a pattern means, sorted."""
    if pattern.is_file():
        return [pattern]
    root = next(parent for parent in pattern.parents if parent.is_dir())  # its name may have brackets
    paths = sorted(path for path in map(root.joinpath, glob.glob(str(pattern.relative_to(root)), root_dir=root))
                   if path.is_file() and not path.name.endswith(NO_CORPUS) and not path.name.startswith('.'))
    if not paths:
        fault = f'is a folder; name its files, such as {pattern}/*.txt' if pattern.is_dir() else 'no such file'
        raise FileNotFoundError(f'{pattern}: {fault}; expected a text corpus, a text a line (data/corpus/README.md); put it '
                                'there, or give --withoutText to pre-train on captions only')
    return paths


def open_file(path, tokenizer, length, store_root):
    made_by = how_made(tokenizer, length, [__file__])
    folder = columns_folder(path, store_root)
    return open_made(CorpusFile, folder, path, made_by, lambda folder: make(folder, path, made_by, tokenizer, length))


def make(folder, path, made_by, tokenizer, length):
    """Writes the columns of a file into `folder`, which appears when complete. Memory does not grow with the text."""
    stat, kind = path.stat(), '<u2' if len(tokenizer) <= 1 << 16 else '<i4'
    with atomic_folder(folder) as building:
        columns = {'pieces': Column(building / 'pieces.npy', kind), 'starts': Column(building / 'starts.npy', '<i8')}
        columns['starts'].append(np.zeros(1, np.int64))
        counts, texts = {'empty': 0, 'unknown': 0, 'binary': 0, 'binary_lines': []}, []

        def flush():
            pieces, lengths = encode(texts, tokenizer, length)
            lengths = lengths[lengths > 0]
            counts['empty'] += len(texts) - len(lengths)
            counts['unknown'] += int((pieces == tokenizer.vocab[UNK]).sum())
            columns['starts'].append(columns['pieces'].length + np.cumsum(lengths))
            columns['pieces'].append(pieces.astype(kind))
            texts.clear()

        for number, text in texts_of(path):
            if text is None:
                counts['binary'] += 1
                counts['binary_lines'] += [number] if len(counts['binary_lines']) < NUMBERS else []
            elif text:
                texts.append(text)
            else:
                counts['empty'] += 1
            if len(texts) >= CHUNK:
                flush()
        flush()
        write_meta(building, columns, {'made_by': made_by, 'source': source_of(path, stat), **counts})


def texts_of(path):
    """Yields (number from 1, text without white space at its ends) of each line; None for one that is not in UTF-8 or has control
    characters."""
    decode = codecs.getincrementaldecoder('utf-8')
    with opened(path) as file:
        for number in itertools.count(1):
            line = end = file.readline(MAX_LINE)
            while len(end) == MAX_LINE and not end.endswith(b'\n'):
                end = file.readline(MAX_LINE)
            if not line:
                return
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                text = decode().decode(line, final=end is line).strip()
            except UnicodeDecodeError:
                text = None
            yield number, None if text is None or CONTROL.search(text) else text


def encode(texts, tokenizer, length):
    """(word pieces of all texts, (p,), how many each has, (n,), at most `length`). [PAD], which a text may hold, is left out."""
    ids, _, counts = tokenizer.encode_counted(texts, length + 2)
    words = ids[:, 1:-1]
    kept = (np.arange(length) < counts[:, :1]) & (words != 0)  # without [SEP]
    return words[kept], kept.sum(1)
