"""Annotations as columns of numbers, read one example at a time, so that millions of questions take little memory."""

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from annotations.albef_files import example_of
from dist import print0
from files.json_files import DataError, some, stream
from files.text import printable, shown
from images.ids import ImageIds

CHUNK = 1 << 16  # values that are collected as Python objects
MAX_ID = 255  # characters of an id, which is a row of a column as wide as the longest one
MAX_SIDE = 1e6  # pixels


@dataclass(frozen=True)
class ExampleSchema:
    """The keys of an example, and what their values are.

    A label is {answer: score from 0 to 1}, or, where `answers` is given, the index of the right one in it, or, with `choices`,
    the index of the right one of them; with `box` there is no label but a box. With `classes` it is a class of `answers`, or
    of the answer vocabulary, or a list of classes, by name or by index.
    """

    id: str
    id_type: type
    images: tuple[str, ...] = ('img_id',)
    answers: tuple[str, ...] | None = None
    choices: str | None = None  # key of the list of texts of which one completes the sentence (output 'choice')
    num_choices: int = 4
    box: str | None = None  # key of the target box, x1, y1, x2, y2 in pixels (output 'region'); several examples may have an id
    captions: bool = False  # 'sent' is a list of sentences, each of which becomes an example (output 'match')
    text_only: bool = False  # the images may be missing
    classes: str | None = None  # 'one' or 'several' of an example

    @property
    def output(self):
        """What a task of these examples predicts: heads.Recipe.output."""
        return 'choice' if self.choices else 'region' if self.box else 'match' if self.captions else 'answer'

    def renamed(self, example):
        """An example with the keys of this project. With `classes` also those of hateful memes are read: `text` and `img`, the
        path of a picture, whose name without folder and ending is the image id."""
        if not self.classes or not isinstance(example, dict):
            return example
        others = {'sent': example['text']} if 'text' in example else {}
        if isinstance(path := example.get('img'), str):
            others['img_id'] = ImageIds()(path)
        return others | example

    def first_fault(self, example, answers=()):
        """(key, what was expected there) of the first fault of an example, or None. answers: the vocabulary, with `classes`;
        empty if it is not known."""
        if not isinstance(example, dict):
            return self.images[0], 'an object'
        for key in self.images if not self.text_only or any(key in example for key in self.images) else ():
            image = example.get(key)
            if not is_id(image):
                return key, f'an image id (text of 1 to {MAX_ID} characters)'
        for key in ('answer_type', 'question_type'):
            if not isinstance(example.get(key, ''), str):
                return key, 'a text, or no such key'
        return self._fault_of_texts(example) or self._fault_of_label(example, answers)

    def _fault_of_texts(self, example):
        sentences = example.get('sent')
        if self.captions and (not isinstance(sentences, list) or not sentences
                              or not all(isinstance(one, str) and one.strip() for one in sentences)):
            return 'sent', 'a list of sentences, at least one, none of them empty'
        if not self.captions and not isinstance(sentences, str):
            return 'sent', 'a sentence'
        if self.choices:
            choices = example.get(self.choices)
            if not isinstance(choices, list) or len(choices) != self.num_choices or not all(isinstance(c, str) for c in choices):
                return self.choices, f'a list of {self.num_choices} texts'
        key = example.get(self.id)
        kinds = (int, str) if self.classes else (self.id_type,)
        if type(key) not in kinds or not is_id(str(key)):
            text = f'a text of 1 to {MAX_ID} characters'
            return self.id, ' or '.join('a whole number' if kind is int else text for kind in kinds)
        return None

    def _fault_of_label(self, example, answers):
        if self.box:
            box = example.get(self.box, [0, 0, 1, 1])
            if not isinstance(box, list) or len(box) != 4 or not all(
                    isinstance(side, (int, float)) and abs(side) < MAX_SIDE for side in box) or not (
                        box[0] < box[2] and box[1] < box[3]):
                return self.box, 'a box, x1, y1, x2, y2 in pixels, x1 below x2 and y1 below y2'
            return None
        if self.choices or (self.answers and not self.classes):
            names = self.answers or ('',) * self.num_choices
            label = example.get('label', 0)
            if type(label) is not int or not 0 <= label < len(names):
                if self.choices:
                    return 'label', f'the index of the right choice, 0 to {len(names) - 1}'
                return 'label', ' or '.join(f'{place} ({answer})' for place, answer in enumerate(names))
            return None
        if self.classes:
            answers = answers or self.answers or ()
            labels = example.get('label', []) if self.classes == 'several' else [example.get('label', 0)]
            if isinstance(labels, list) and all(
                    type(one) in (str, int) and (not answers or one in (answers if type(one) is str else range(len(answers))))
                    for one in labels):
                return None
            what = 'a list of classes, each' if self.classes == 'several' else 'a class,'
            where = '' if self.answers else ' in "answers"'
            return 'label', f'{what} by its name{where} ({some(answers)}) or by its index there, 0 to {len(answers) - 1}'
        label = example.get('label', {})
        if not isinstance(label, dict) or not all(
                isinstance(score, (int, float)) and 0 <= score <= 1 for score in label.values()):
            return 'label', 'an object {answer: score from 0 to 1}'
        return None

    @property
    def label_key(self):
        return self.box or ('sent' if self.captions else 'label')

    def scores(self, example, answers=()):
        """{answer: score} of an example with a label. answers: the vocabulary, with `classes`."""
        if self.classes:
            answers = answers or self.answers or ()
            labels = example['label'] if self.classes == 'several' else [example['label']]
            return {(answers[one] if type(one) is int and answers else str(one)): 1.0 for one in labels}
        return {self.answers[example['label']]: 1.0} if self.answers else example['label']

    def texts(self, example):
        """The texts of an example: a str, or a tuple of the sentence and a choice, of each of its choices."""
        return [(example['sent'], choice) for choice in example[self.choices]] if self.choices else [example['sent']]

    @staticmethod
    def plain(text):
        """One of `texts` as a tokenizer takes it, for statistics."""
        return text


QUESTION = ExampleSchema('question_id', int)  # VQA's
TEXT_QUESTION = ExampleSchema('question_id', str)  # GQA's, whose ids are texts
PAIR = ExampleSchema('identifier', str, ('img0', 'img1'), ('False', 'True'))  # NLVR2's statements about two images


@dataclass
class Examples:
    """n examples with k images and c texts each, as columns. Labels are columns of their own, ordered by example."""

    schema: ExampleSchema
    ids: np.ndarray  # (n,) int64, or bytes in UTF-8
    images: np.ndarray  # (n, k) bytes: image ids in UTF-8; empty where an example has none
    split: np.ndarray  # (n,) int8: which of the files
    sentence: np.ndarray  # (n,) int32, or (n, c): index in `sentences`
    sentences: list  # each once: str, or tuples of two
    label_example: np.ndarray  # (l,) int64
    label_answer: np.ndarray  # (l,) int32: index in the answer vocabulary
    label_score: np.ndarray  # (l,) float32
    types: dict[str, tuple[np.ndarray, list]]  # of answer_type and question_type, (n,) int32 indices in the list of their names
    labelled: bool
    unknown: Counter = field(default_factory=Counter)  # answers of labels that are not in the vocabulary, and were left out
    further: list = field(default_factory=list)  # such answers that were kept, whose indices follow those of the vocabulary
    choice: np.ndarray | None = None  # (n,) int64: the right one of the c texts
    boxes: np.ndarray | None = None  # (n, 4) float64: the target box in pixels
    classes: np.ndarray | None = None  # (n, m) uint8: the class of each region of the image, 0 at padding

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

    def learnable(self, rows=slice(None)):
        """Whether any label of some labelled examples says something: of answers, a score above 0."""
        if self.choice is not None or self.boxes is not None or self.schema.captions:
            return True
        answered = np.zeros(len(self), bool)
        answered[self.label_example[self.label_score > 0]] = True
        return bool(answered[rows].any())

    def names(self, rows=slice(None)):
        """The ids of some examples as they are in the annotations."""
        ids = self.ids[rows].tolist()
        return ids if self.schema.id_type is int else [key.decode() for key in ids]

    def select(self, keep):
        """The examples where keep (n,) bool is True."""
        labels = keep[self.label_example]
        return replace(
            self, ids=self.ids[keep], images=self.images[keep], split=self.split[keep], sentence=self.sentence[keep],
            label_example=(np.cumsum(keep) - 1)[self.label_example[labels]], label_answer=self.label_answer[labels],
            label_score=self.label_score[labels], types={key: (codes[keep], names) for key, (codes, names) in self.types.items()},
            choice=None if self.choice is None else self.choice[keep], boxes=None if self.boxes is None else self.boxes[keep],
            classes=None if self.classes is None else self.classes[keep])


def is_id(value):
    """Whether a value can be the id of an image or an example: a text that a terminal shows as it is."""
    return isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable()


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


def read_examples(paths, schema, answers, further=False):
    """The Examples of annotation files. answers: the answer vocabulary; further: keep answers of labels that are not in it, as
    Examples.further, instead of leaving them out.

    Files of ALBEF are read too (albef_files). Raises DataError that names the file, the example's number (from 0) and the key.
    """
    ids, split, sentence = Column(np.bytes_ if schema.id_type is str else np.int64), Column(np.int16), Column(np.int32)
    images = [Column(np.bytes_) for _ in schema.images]
    labels = Column(np.int64), Column(np.int32), Column(np.float32)
    choice, boxes, classes = Column(np.int64), Column(np.float64), Column(np.bytes_)
    types = {key: (Column(np.int32), {}) for key in ('answer_type', 'question_type')}
    sentences, place, unknown = {}, {answer: i for i, answer in enumerate(answers)}, Counter()
    n, starts, labelled, undecided = 0, [], [], 0
    for number, path in enumerate(paths):
        starts.append(n)
        for i, item in enumerate(stream(path, 'item', 'examples')):
            item = schema.renamed(example_of(item, i, path))
            if item is None:
                undecided += 1
                continue
            fault = schema.first_fault(item, place)
            if len(labelled) == number and not fault:
                labelled.append(schema.label_key in item)
            if not fault and (schema.label_key in item) != labelled[-1]:
                fault = schema.label_key, 'labels on all examples of a file or on none'
            if fault:
                missing = isinstance(item, dict) and fault[0] not in item
                value = item.get(fault[0]) if isinstance(item, dict) else item
                what = f'no such key among {printable(", ".join(item))[:200] or "none"}' if missing else shown(value)
                raise DataError(f'{path}: example {i}: key "{fault[0]}": expected {fault[1]}, found {what}; correct the file')
            for example in captions_of(item) if schema.captions else (item,):
                ids.append(example[schema.id] if schema.id_type is int else str(example[schema.id]).encode())
                for key, column in zip(schema.images, images, strict=True):
                    column.append(example.get(key, '').encode())
                split.append(number)
                rows = [sentences.setdefault(text, len(sentences)) for text in schema.texts(example)]
                sentence.append(rows if schema.choices else rows[0])
                for key, (column, names) in types.items():
                    column.append(names.setdefault(example.get(key), len(names)))
                if labelled[-1] and schema.choices:
                    choice.append(example[schema.label_key])
                elif labelled[-1] and schema.box:
                    boxes.append(example[schema.box])
                elif labelled[-1] and not schema.captions:
                    for answer, score in schema.scores(example, answers).items():
                        if further and answer not in place:
                            place[answer] = len(place)
                        if answer in place:
                            for column, value in zip(labels, (n, place[answer], score), strict=True):
                                column.append(value)
                        else:
                            unknown[answer] += 1
                if 'names' in example and schema.choices:
                    classes.append(bytes(example.get('classes', ())))
                n += 1
        if len(labelled) == number:
            raise DataError(f'{path}: expected pairs with a label, found only such as the annotators did not agree on ("-")')
    if undecided:
        print0(f'{undecided:,} pairs without an agreed label ("-") in {", ".join(map(str, paths))}: left out.')
    if len(set(labelled)) > 1:
        raise DataError(f'{", ".join(map(str, paths))}: some have labels and others have none; train on those with '
                        'labels only')
    ids, starts = ids.array(), [*starts, n]
    for path, (start, end) in zip(paths, pairwise(starts), strict=True):
        if not schema.captions and not schema.box:
            check_distinct(path, schema, ids[start:end])
    types, further = {key: (codes.array(), list(names)) for key, (codes, names) in types.items()}, list(place)[len(answers):]
    return Examples(schema, ids, np.stack([column.array() for column in images], 1), split.array(), sentence.array(),
                    list(sentences), *(column.array() for column in labels), types, labelled[0], unknown, further,
                    choice.array() if schema.choices and labelled[0] else None,
                    boxes.array() if schema.box and labelled[0] else None, classes_of(classes))


def classes_of(column):
    """Examples.classes of a Column of bytes, a class each; None if there are no classes."""
    column = column.array() if column.values or column.chunks else np.zeros(0, 'S1')
    return column.view(np.uint8).reshape(len(column), -1) if (column != b'').any() else None


def captions_of(item):
    """An example for each of the sentences of an item, which have its id."""
    return ({**item, 'sent': sentence} for sentence in item['sent'])


def repeated_captions(examples):
    """(captions that their image has already, captions that several images share) of examples with schema.captions."""
    _, image = np.unique(examples.images[:, 0], return_inverse=True)
    pairs = np.unique(np.stack([image, examples.sentence], 1), axis=0)
    images_of_text = np.bincount(pairs[:, 1])
    return len(image) - len(pairs), int(images_of_text[images_of_text > 1].sum())


def check_distinct(path, schema, ids):
    """Raises DataError that names two examples of one id."""
    order = np.argsort(ids, kind='stable')
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if twice.size:
        one, other = order[twice[0]], order[twice[0] + 1]
        key = ids[one].decode() if schema.id_type is str else int(ids[one])
        raise DataError(f'{path}: example {other}: key "{schema.id}": expected a new id (example {one} has the same), found '
                        f'{key!r}; number the examples anew')
