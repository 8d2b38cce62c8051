"""The text of pre-training as columns of numbers on disk: made from its json once, memory mapped from then on.

Beside `mscoco_train.json` lies the folder `mscoco_train.columns`. For n sentences about m images, image after image in the order
of the file, it holds

    input_ids (n, max_length) uint16, or int32 for large vocabularies; source (n,) uint16, a place in meta's sources
    label_start (n + 1,) int64: sentence i has the answers label_start[i] to label_start[i + 1] of
    label_answer (l,) int32, a place in answers.json, and label_score (l,) float32
    image_start (m + 1,) int64: image i has the sentences image_start[i] to image_start[i + 1]; image_ids (m,) bytes in UTF-8
    answers.json: the answers that occur, normalised; meta.json: what it was made from; dtype, shape and sha256 of each array;
    statistics of the text (TextStatistics); a checksum of meta.json and answers.json

Opening compares all checksums, which takes half a second for the paper's nine million sentences; damaged columns are made again.
The answer table is no part of it: it is applied when a run opens the columns, so that one table or another costs nothing.
"""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from annotations import albef_files, answer_table, pretraining_text
from bert import tokenization
from files.atomic import atomic_folder, byte_bar, locked, sha256, write_json
from files.json_files import DataError, field, read_json
from files.progress import note
from files.text import shown
from regions import store_files
from regions.store_files import Column
from regions.tsv import path_text

CHUNK = 1 << 16  # sentences that are tokenised and written at once
MAX_SOURCES = 1000  # of sentences


class MappedColumns:
    """Columns in a folder, mapped: attributes of the arrays' names, `folder`, `meta` (what meta.json holds) and `digest`.

    digest: that of these columns where they were opened in another process; without it the checksums of all files are compared.
    Raises DataError, RegionError or FileNotFoundError, which name the file, if one is missing, damaged or cut off.
    """

    def __init__(self, folder, digest=None):
        self.folder, path = folder, folder / 'meta.json'
        self.meta, lists = read_meta(folder), self.read_lists()
        if self.meta.get('checksum') != checksum(self.meta, lists):
            files = 'meta.json' if lists is None else 'meta.json and answers.json'
            raise DataError(f'{path}: expected the checksum of {files}, found {shown(self.meta.get("checksum"))}')
        self.arrays = {name: store_files.map_array(folder / f'{name}.npy', dtype, tuple(shape))
                       for name, (dtype, shape, _) in self.meta['arrays'].items()}
        vars(self).update(self.arrays)
        self.digest = self.meta['digest']
        if digest is None:
            with byte_bar(f'checking {folder.name}', sum(array.nbytes for array in self.arrays.values()), delay=1) as bar:
                for name, (_, _, expected) in self.meta['arrays'].items():
                    if (actual := store_files.array_digest(self.arrays[name], bar)) != expected:
                        raise DataError(f'{folder}/{name}.npy: expected the sha256 {expected}, as in meta.json, found {actual}')
        elif digest != self.digest:
            raise DataError(f'{folder}: was rewritten while it was in use; start the program again')

    def read_lists(self):
        """The content of the json file beside the arrays, if there is one; the checksum in meta.json covers it."""

    def __reduce__(self):  # a copy in another process maps the same files
        return type(self), (self.folder, self.digest)

    def check_length(self):
        """Raises RegionError if a file was cut off since it was mapped."""
        store_files.check_length(self.arrays.values())


class Columns(MappedColumns):
    """The columns of sentences; also `sources`, `answers` (lists of str) and `text` (TextStatistics)."""

    def __init__(self, folder, digest=None):
        super().__init__(folder, digest)
        self.sources, self.text = self.meta['sources'], tokenization.TextStatistics(**self.meta['text'])

    def read_lists(self):
        self.answers = read_json(self.folder / 'answers.json', 'a list of answers')
        return self.answers

    def __len__(self):
        return len(self.source)


def open_columns(path, tokenizer, max_length, store_root=None, ending='columns'):
    """The Columns of a pre-training json, made first if there are none, or if those there were made from another file, with
    another vocabulary or max_length, or by other code. Of several processes one makes them and the others wait.

    ending: of the folder's name, since two models cut sentences to other lengths. Raises FileNotFoundError or DataError, which
    name the file, example and key.
    """
    path = Path(path)
    if not path.is_file():
        fault = 'is a folder' if path.is_dir() else 'no such file'
        raise FileNotFoundError(f'{path}: {fault}; expected the sentences of pre-training (data/README.md)')
    made_by = how_made(tokenizer, max_length)
    return open_made(Columns, columns_folder(path, store_root, ending), path, made_by,
                     lambda folder: make(folder, path, made_by, tokenizer, max_length))


def open_made(kind, folder, path, made_by, make_columns):
    """The columns in `folder`, made from the file `path` by make_columns(folder) if there are none that are complete and equal
    what would be made now. kind: a subclass of MappedColumns; made_by: all that they depend on, the file aside."""
    columns, _ = fresh(kind, folder, path, made_by)
    if columns is None:
        try:
            with locked(folder):
                columns, fault = fresh(kind, folder, path, made_by)  # another process may have made them in the meantime
                if fault:
                    note(f'Making {folder} from {path} again: {fault}')
                if columns is None:
                    make_columns(folder)
        except OSError as error:
            if error.filename == str(path):  # of reading
                raise
            raise DataError(f'{folder}: cannot be written ({error.strerror or error}); is the disk full? Name another place by '
                            '--storeRoot') from None
    return kind(folder) if columns is None else columns


def columns_folder(path, store_root=None, ending='columns'):
    """Where the columns of a file lie: beside it, or below store_root under a name that no other file's have."""
    path = Path(os.path.abspath(path))
    stem = path.name.removesuffix('.gz').removesuffix('.json')
    if store_root is None:
        return path.with_name(f'{stem}.{ending}')
    return Path(os.path.abspath(store_root)) / f'{stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}.{ending}'


def how_made(tokenizer, max_length, modules=()):
    """All that columns depend on, the file aside. modules: further ones whose code makes them."""
    code, vocabulary = hashlib.sha256(), hashlib.sha256('\n'.join(tokenizer.ids_to_tokens).encode())
    for module in (albef_files, answer_table, pretraining_text, tokenization):
        code.update(Path(module.__file__).read_bytes())
    for path in (__file__, *modules):
        code.update(Path(path).read_bytes())
    return {'code': code.hexdigest(), 'vocabulary': vocabulary.hexdigest(), 'max_length': max_length}


def read_meta(folder):
    """The content of meta.json, an object. Raises DataError or FileNotFoundError."""
    path = folder / 'meta.json'
    meta = read_json(path, 'the description of columns', dict)
    field(meta, 'source', dict, path)
    return meta


def checksum(meta, answers=None):
    """The digest of the values in meta.json, the source aside, and in answers.json, if there is one."""
    meta = {key: value for key, value in meta.items() if key not in ('source', 'checksum')}
    return hashlib.sha256(json.dumps([meta, answers], sort_keys=True).encode()).hexdigest()


def fresh(kind, folder, path, made_by):
    """(the columns, of a class `kind`, if they are complete and equal what would be made now, else None; what is damaged, ''
    if nothing is)."""
    if not folder.is_dir():
        return None, ''
    try:
        meta, stat = read_meta(folder), path.stat()
        source = meta['source']
        if meta.get('made_by') != made_by or source.get('size') != stat.st_size:
            return None, ''
        touched = source.get('mtime_ns') != stat.st_mtime_ns
        if touched and source.get('sha256') != sha256(path):
            return None, ''
        columns = kind(folder)
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)
    if touched:
        try:
            write_json(folder / 'meta.json', meta | {'source': source | {'mtime_ns': stat.st_mtime_ns}})
        except OSError as error:
            note(f'{folder}/meta.json: cannot be written ({error.strerror}), so that the next start compares the checksum '
                 f'of {path} again')
    return columns, ''


def make(folder, path, made_by, tokenizer, max_length):
    """Writes the columns of a json into `folder`, which appears when complete. Memory does not grow with the text."""
    stat = path.stat()
    with atomic_folder(folder) as building:
        writer = Writer(building, tokenizer, max_length)
        for i, example in enumerate(pretraining_text.read(path)):
            if len(writer.sources.keys() | example['sentf'].keys()) > MAX_SOURCES:
                raise DataError(f'{path}: example {i}: key "sentf": expected at most {MAX_SOURCES:,} sources, found more')
            writer.add(example)
        writer.close({'made_by': made_by, 'source': source_of(path, stat)})


def source_of(path, stat):
    """What meta.json says about the file `path`. stat: its state before it was read."""
    return {'name': path_text(path.name), 'size': stat.st_size, 'mtime_ns': stat.st_mtime_ns, 'sha256': sha256(path)}


def write_meta(folder, columns, meta, answers=None):
    """Closes Columns {name: Column} and writes meta.json. meta: what it is to hold besides; answers: the content of
    answers.json."""
    digests = {name: column.close() for name, column in columns.items()}
    meta = meta | {
        'arrays': {name: (column.dtype, (column.length, *column.row_shape), digests[name]) for name, column in columns.items()},
        'digest': hashlib.sha256(json.dumps(digests).encode()).hexdigest()}
    (folder / 'meta.json').write_text(json.dumps(meta | {'checksum': checksum(meta, answers)}, indent=1))


class Writer:
    """Collects the columns of images in a folder, CHUNK sentences at a time."""

    def __init__(self, folder, tokenizer, max_length):
        self.folder, self.tokenizer, self.max_length = folder, tokenizer, max_length
        tokens = '<u2' if len(tokenizer) <= 1 << 16 else '<i4'
        dtypes = {'input_ids': tokens, 'source': '<u2', 'label_start': '<i8', 'label_answer': '<i4', 'label_score': '<f4'}
        self.columns = {name: Column(folder / f'{name}.npy', dtype, (max_length,) if name == 'input_ids' else ())
                        for name, dtype in dtypes.items()}
        self.waiting = {name: [] for name in dtypes}
        self.waiting['label_start'].append(0)
        self.sources, self.answers, self.place = {}, {}, {}  # name -> place; the last: an answer as it was given -> place
        self.ids, self.counts, self.labels = [], [], 0
        self.text = tokenization.TextStatistics(max_length)

    def add(self, example):
        waiting = self.waiting
        before = len(waiting['source'])
        for source, sentence, label in pretraining_text.sentences(example):
            waiting['input_ids'].append(sentence)
            waiting['source'].append(self.sources.setdefault(source, len(self.sources)))
            # Answers that are the same once normalised: the last counts, as in the original code.
            scores = {self.answer(answer): score for answer, score in (label or {}).items()}
            waiting['label_answer'] += scores
            waiting['label_score'] += scores.values()
            self.labels += len(scores)
            waiting['label_start'].append(self.labels)
        self.ids.append(example['img_id'].encode())
        self.counts.append(len(waiting['source']) - before)
        if len(waiting['source']) >= CHUNK:
            self.flush()

    def answer(self, given):
        place = self.place.get(given)
        if place is None:
            place = self.place[given] = self.answers.setdefault(answer_table.normalise(given), len(self.answers))
        return place

    def flush(self):
        self.waiting['input_ids'], _, counts = self.tokenizer.encode_counted(self.waiting['input_ids'], self.max_length)
        self.text.add(counts)
        for name, column in self.columns.items():
            column.append(np.array(self.waiting[name], column.dtype))
            self.waiting[name] = []

    def close(self, meta):
        self.flush()
        per_image = {'image_start': np.cumsum([0, *self.counts]).astype('<i8'), 'image_ids': np.array(self.ids, np.bytes_)}
        for name, array in per_image.items():
            self.columns[name] = Column(self.folder / f'{name}.npy', array.dtype.str, ())
            self.columns[name].append(array)
        answers = list(self.answers)
        (self.folder / 'answers.json').write_text(json.dumps(answers))
        meta = meta | {'sources': list(self.sources), 'text': dataclasses.asdict(self.text)}
        write_meta(self.folder, self.columns, meta, answers)
