"""Annotations as columns of numbers, read an example at a time, so that millions of questions take little memory."""

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from files.json_files import DataError, stream

CHUNK = 1 << 16  # values that are collected as Python objects


@dataclass(frozen=True)
class Form:
    """What an example looks like: the key and the type of its id, the keys of its images, and its label.

    A label is {answer: score from 0 to 1}, or, where `answers` is given, the place of the right one in it.
    """

    id: str
    id_type: type
    images: tuple[str, ...] = ('img_id',)
    answers: tuple[str, ...] | None = None

    def first_fault(self, example):
        """(key, what was expected there) of the first fault of an example, or None."""
        for key in self.images:
            image = example.get(key) if isinstance(example, dict) else None
            if not isinstance(image, str) or not image.isprintable():
                return key, 'an image id (text)'
        if not isinstance(example.get('sent'), str):
            return 'sent', 'a sentence'
        key = example.get(self.id)
        if type(key) is not self.id_type or not str(key).isprintable():
            return self.id, 'a whole number' if self.id_type is int else 'a text'
        for key in ('answer_type', 'question_type'):
            if not isinstance(example.get(key, ''), str):
                return key, 'a text, or no such key'
        label = example.get('label', 0 if self.answers else {})
        if self.answers:
            if type(label) is not int or not 0 <= label < len(self.answers):
                return 'label', ' or '.join(f'{place} ({answer})' for place, answer in enumerate(self.answers))
        elif not isinstance(label, dict) or not all(isinstance(score, (int, float)) and 0 <= score <= 1
                                                    for score in label.values()):
            return 'label', 'an object {answer: score from 0 to 1}'
        return None

    def scores(self, example):
        """{answer: score} of an example with a label."""
        return {self.answers[example['label']]: 1.0} if self.answers else example['label']


QUESTION = Form('question_id', int)  # VQA's
TEXT_QUESTION = Form('question_id', str)  # GQA's, whose ids are texts
PAIR = Form('identifier', str, ('img0', 'img1'), ('False', 'True'))  # NLVR2's statements about two images


@dataclass
class Examples:
    """n examples with k images each, as columns. Labels are columns of their own, ordered by example."""

    form: Form
    ids: np.ndarray  # (n,) int64, or bytes in UTF-8
    images: np.ndarray  # (n, k) bytes: image ids in UTF-8
    part: np.ndarray  # (n,) int8: which of the files
    sentence: np.ndarray  # (n,) int32: place in `sentences`
    sentences: list[str]  # each once
    label_example: np.ndarray  # (l,) int64
    label_answer: np.ndarray  # (l,) int32: place in the answer vocabulary
    label_score: np.ndarray  # (l,) float32
    types: dict[str, tuple[np.ndarray, list]]  # of answer_type and question_type, (n,) int32 places in the list of their names
    labelled: bool
    unknown: Counter = field(default_factory=Counter)  # answers of labels that are not in the vocabulary, and were left out

    @classmethod
    def unlabelled(cls, images, sentences):
        """n sentences about k images each, image ids (n, k), numbered from 0."""
        place = {sentence: i for i, sentence in enumerate(dict.fromkeys(sentences))}
        n, none = len(sentences), np.zeros(0, np.int64)
        return cls(QUESTION, np.arange(n), np.array([[img_id.encode() for img_id in ids] for ids in images], np.bytes_),
                   np.zeros(n, np.int8), np.array([place[sentence] for sentence in sentences], np.int32), list(place),
                   none, none.astype(np.int32), none.astype(np.float32), {}, False)

    def __len__(self):
        return len(self.ids)

    def names(self, rows=slice(None)):
        """The ids of some examples as they are in the annotations."""
        ids = self.ids[rows].tolist()
        return ids if self.form.id_type is int else [key.decode() for key in ids]

    def select(self, keep):
        """The examples where keep (n,) bool is True."""
        labels = keep[self.label_example]
        return replace(
            self, ids=self.ids[keep], images=self.images[keep], part=self.part[keep], sentence=self.sentence[keep],
            label_example=(np.cumsum(keep) - 1)[self.label_example[labels]], label_answer=self.label_answer[labels],
            label_score=self.label_score[labels], types={key: (codes[keep], names) for key, (codes, names) in self.types.items()})


class Column:
    """Values that come one by one, kept as an array."""

    def __init__(self, dtype=None):
        self.dtype, self.chunks, self.values = dtype, [], []

    def append(self, value):
        self.values.append(value)
        if len(self.values) == CHUNK:
            self._close()

    def array(self):
        self._close()
        return np.concatenate(self.chunks)

    def _close(self):
        self.chunks.append(np.array(self.values, self.dtype))
        self.values = []


def read_examples(paths, form, answers):
    """The Examples of annotation files. answers: the answer vocabulary.

    Raises DataError that names the file, the example's number (from 0) and the key.
    """
    text = np.bytes_ if form.id_type is str else np.int64
    ids, part, sentence = Column(text), Column(np.int8), Column(np.int32)
    images = [Column(np.bytes_) for _ in form.images]
    labels = Column(np.int64), Column(np.int32), Column(np.float32)
    types = {key: (Column(np.int32), {}) for key in ('answer_type', 'question_type')}
    sentences, place, unknown = {}, {answer: i for i, answer in enumerate(answers)}, Counter()
    n, starts, labelled = 0, [], []
    for number, path in enumerate(paths):
        starts.append(n)
        for i, example in enumerate(stream(path, 'item', 'examples')):
            fault = form.first_fault(example)
            if not i and not fault:
                labelled.append('label' in example)
            if not fault and ('label' in example) != labelled[-1]:
                fault = 'label', 'labels on all examples of a file or on none'
            if fault:
                found = example.get(fault[0], 'nothing') if isinstance(example, dict) else example
                raise DataError(f'{path}: example {i}: key "{fault[0]}": expected {fault[1]}, found {found!r}')
            ids.append(example[form.id] if form.id_type is int else example[form.id].encode())
            for key, column in zip(form.images, images, strict=True):
                column.append(example[key].encode())
            part.append(number)
            sentence.append(sentences.setdefault(example['sent'], len(sentences)))
            for key, (column, names) in types.items():
                column.append(names.setdefault(example.get(key), len(names)))
            for answer, score in form.scores(example).items() if labelled[-1] else ():
                if answer in place:
                    for column, value in zip(labels, (n, place[answer], score), strict=True):
                        column.append(value)
                else:
                    unknown[answer] += 1
            n += 1
    if len(set(labelled)) > 1:
        raise DataError(f'{", ".join(map(str, paths))}: some have labels and others have none')
    ids, starts = ids.array(), [*starts, n]
    for path, (start, end) in zip(paths, pairwise(starts), strict=True):
        check_distinct(path, form, ids[start:end])
    types = {key: (codes.array(), list(names)) for key, (codes, names) in types.items()}
    return Examples(form, ids, np.stack([column.array() for column in images], 1), part.array(), sentence.array(),
                    list(sentences), *(column.array() for column in labels), types, labelled[0], unknown)


def check_distinct(path, form, ids):
    order = np.argsort(ids, kind='stable')
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if twice.size:
        one, other = order[twice[0]], order[twice[0] + 1]
        found = ids[one].decode() if form.id_type is str else int(ids[one])
        raise DataError(f'{path}: example {other}: key "{form.id}": expected a new id (example {one} has the same), found '
                        f'{found!r}')
