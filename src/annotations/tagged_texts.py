"""Multiple choice whose texts point at objects of the image, as in VCR: a text is a list of words and of lists of object indices,
["Where", "are", [0, 1], "?"].

The words of an object list are the names of its objects, joined by "and"; every word piece of a name points at its object's
region.
"""

import re
from dataclasses import dataclass

import numpy as np

from annotations.examples import ExampleSchema, is_id
from bert.tokenization import CLS, SEP
from files.progress import ProgressBar

CLASSES = 80  # of objects, numbered from 1; 0 is the whole image
MAX_OBJECTS = 1000  # of an image; a word's object is a number of 16 bits
SPECIAL = 3  # [CLS], [SEP], [SEP]
TAG = re.compile('\t[0-9]+')  # behind a word: its region


@dataclass(frozen=True)
class TaggedSchema(ExampleSchema):
    """Examples with `names`, a text for each object, `question`, `answer_choices`, `rationale_choices`, `answer_label` and
    `rationale_label`, and optionally `classes`, the class of each object. Chosen is an answer, or a rationale."""

    choices: str = 'answer_choices'
    rationale: bool = False
    given: int | None = None  # the answer that a rationale follows; None: the right one

    @property
    def label_key(self):
        return self.choices.replace('choices', 'label')

    def _fault_of_texts(self, example):
        names = example.get('names')
        if not isinstance(names, list) or len(names) > MAX_OBJECTS or not all(
                isinstance(name, str) and name.split() for name in names):
            return 'names', f'a list with a name, a text, for each object, of which there are at most {MAX_OBJECTS:,}'

        def is_text(value):
            return isinstance(value, list) and all(isinstance(word, str) or (isinstance(word, list) and word and all(
                type(place) is int and 0 <= place < len(names) for place in word)) for word in value)

        what = f'words, and lists of indices of objects, 0 to {len(names) - 1}' if names else 'words (there are no objects)'
        if not is_text(example.get('question')):
            return 'question', f'a list of {what}'
        for key in ('answer_choices', 'rationale_choices')[:1 + (self.rationale or 'rationale_choices' in example)]:
            value = example.get(key)
            if not isinstance(value, list) or len(value) != self.num_choices or not all(map(is_text, value)):
                return key, f'a list of {self.num_choices} lists of {what}'
        if not is_id(example.get(self.id)):
            return self.id, 'a text that is an id'
        classes = example.get('classes', [1] * len(names))
        if not isinstance(classes, list) or len(classes) != len(names) or not all(
                type(one) is int and 1 <= one <= CLASSES for one in classes):
            return 'classes', f'the class of each of the {len(names)} objects, 1 to {CLASSES}, or no such key'
        return None

    def _fault_of_label(self, example, answers):
        keys = [key for key in ('answer_label', 'rationale_label') if key in example]
        keys += ['answer_label'] * (self.rationale and self.given is None)
        for key in keys:
            if type(example.get(key)) is not int or not 0 <= example[key] < self.num_choices:
                return key, f'the index of the right choice, 0 to {self.num_choices - 1}'
        return None

    def texts(self, example):
        """Of each choice (question, answer, choice), the answer '' where answers are chosen; see `tagged`."""
        names, answer = example['names'], ''
        if self.rationale:
            place = example['answer_label'] if self.given is None else self.given
            answer = tagged(example['answer_choices'][place], names)
        question = tagged(example['question'], names)
        return [(question, answer, tagged(choice, names)) for choice in example[self.choices]]

    @staticmethod
    def plain(text):
        """The words of one of `texts`, as (first, second)."""
        question, answer, choice = (TAG.sub('', part).replace('\n', ' ') for part in text)
        return f'{question} {answer}'.strip(), choice


def tagged(words, names):
    """A text as a str, with a line for each word, and behind a tab its region, if it names one: "where\\nis\\ncasey\\t1"."""
    lines = []
    for word in words:
        if isinstance(word, str):
            lines.append(' '.join(word.split()))
        else:
            for i, place in enumerate(word):
                lines += ['and'] * (i > 0) + [f'{" ".join(names[place].split())}\t{place + 1}']
    return '\n'.join(lines)


def cut_answers(question, answers, room):
    """Cuts lists of pieces so that the question and each answer have `room` together, for each answer in turn: off the longer,
    off the question if equal. The question, which all share, stays short, as in the original code of VL-BERT."""
    for answer in answers:
        while len(question) + len(answer) > room:
            (answer if len(answer) > len(question) else question).pop()


def cut_rationales(question, answer, rationales, room):
    """The same for question, answer and rationale: off the rationale if it is longer than both, else off the question while it
    has more than one piece, else off the answer."""
    for rationale in rationales:
        while (length := len(question) + len(answer)) + len(rationale) > room:
            (rationale if len(rationale) > length else question if len(question) > 1 else answer).pop()


class Pieces:
    """Word pieces of tagged texts, whose words are cut into pieces one at a time."""

    def __init__(self, tokenizer):
        self.tokenizer, self.of_word = tokenizer, {}

    def __call__(self, text):
        """[(token id, region), ...] of one of `tagged`; region 0 is the whole image."""
        pieces = []
        for line in text.split('\n'):
            word, _, region = line.partition('\t')
            if (ids := self.of_word.get(word)) is None:
                ids = self.of_word[word] = self.tokenizer.convert_tokens_to_ids(self.tokenizer.tokenize(word))
            pieces += zip(ids, [int(region or 0)] * len(ids), strict=True)
        return pieces


def encode(tokenizer, texts, choices, max_length, cut=True):
    """{name: array} as heads.Encoder.write, and word_regions (N, t) int16, the region that each word names, 0 for none.

    texts: N of TaggedSchema.texts, `choices` of an example in turn. A sequence is [CLS] question answer [SEP] choice [SEP], the
    second part with token type 1. cut: as VL-BERT's original code cuts texts; else only what exceeds max_length is left out.
    """
    pieces_of, special = Pieces(tokenizer), [tokenizer.vocab[CLS], tokenizer.vocab[SEP]]
    unknown, room = tokenizer.vocab['[UNK]'], max_length - SPECIAL
    ids, regions, types = (np.zeros((len(texts), max_length), kind) for kind in (np.int32, np.int16, np.int8))
    counts = np.zeros((len(texts), 4), np.int32)
    for start in ProgressBar(range(0, len(texts), choices), 'Tokenising', unit=' examples', delay=3):
        group = texts[start:start + choices]
        question, answer, second = pieces_of(group[0][0]), pieces_of(group[0][1]), [pieces_of(text[2]) for text in group]
        for row, choice in enumerate(second, start):
            length = len(question) + len(answer) + len(choice)
            counts[row] = (length, sum(piece == unknown for part in (question, answer, choice) for piece, _ in part),
                           length > room, length + SPECIAL)
        if cut and answer:
            cut_rationales(question, answer, second, room)
        elif cut:
            cut_answers(question, second, room)
        first = [(special[0], 0), *question, *answer, (special[1], 0)]
        for row, choice in enumerate(second, start):
            sequence = [*first, *choice, (special[1], 0)][:max_length]
            ids[row, :len(sequence)], regions[row, :len(sequence)] = np.array(sequence).T
            types[row, len(first):len(sequence)] = 1
    longest = int((ids != 0).sum(1).max(initial=1))
    return {'input_ids': ids[:, :longest].copy(), 'token_type_ids': types[:, :longest].copy(),
            'word_regions': regions[:, :longest].copy(), 'counts': counts}
