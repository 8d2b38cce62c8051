"""Predictions and the questions that they answer, read from files and matched: every question must be answered exactly once."""

import gzip
import json
import sys
import zlib
from pathlib import Path
from typing import NamedTuple

from annotations.examples import PAIR, QUESTION, TEXT_QUESTION
from files.json_files import DataError, field, opened, stream
from tasks.metrics import vqa_accuracy


class Question(NamedTuple):
    """A question to be answered. label: {answer: score}, or people's answers (a list of str), or None if it is not known."""

    id: int | str
    label: dict | list | None
    types: dict = {}  # {'answer type': 'yes/no', ...}  # noqa: RUF012
    balanced: bool = True  # GQA scores only its balanced questions
    entailed: tuple = ()  # ids of questions whose answers follow from this one's
    detailed: str = ''  # GQA's most detailed type


class Faults:
    """Faults of a predictions file, collected so that one message tells them all."""

    def __init__(self, path):
        self.path, self.counts, self.first = path, {}, {}

    def add(self, kind, name):
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if self.counts[kind] <= 3:
            self.first.setdefault(kind, []).append(str(name))

    def check(self):
        """Raises DataError if there are any, with each kind's count and first offenders."""
        if self.counts:
            raise DataError(f'{self.path}: every question must be answered exactly once, but there are' + ''.join(
                f'\n  {count:,} {kind}: {"; ".join(self.first[kind])}{"; ..." if count > 3 else ""}'
                for kind, count in self.counts.items()))


def opens_with(path):
    """The first byte of a json file that is no space; none where it cannot be read, which reading it whole will tell."""
    try:
        with (gzip.open if Path(path).suffix == '.gz' else open)(path, 'rb') as file:
            return file.read(1000).lstrip()[:1]
    except (OSError, EOFError, zlib.error):
        return b''


def read_json_predictions(path, id_key, id_type, answer_key, faults):
    """{question id: answer} of a list [{id_key: ..., answer_key: ...}, ...]; what is wrong with items goes to `faults`."""
    expected = f'{{"{id_key}": {"a whole number" if id_type is int else "a text"}, "{answer_key}": a text}}'
    if opens_with(path) not in (b'[', b''):
        raise DataError(f'{path}: expected a list of predictions {expected}, found no list; is it the file of annotations?')
    predictions = {}
    for i, item in enumerate(stream(path, 'item', 'predictions')):
        key, answer = (item.get(id_key), item.get(answer_key)) if isinstance(item, dict) else (None, None)
        if type(key) is not id_type or not isinstance(answer, str):
            faults.add(f'predictions that are not {expected}', f'number {i} is {json.dumps(item)[:100]}')
        elif key in predictions:
            faults.add('questions answered again', key)
        else:
            predictions[key] = sys.intern(answer)  # few answers, millions of questions
    return predictions


def read_csv_predictions(path, faults):
    """{identifier: 'True' or 'False'} of lines `identifier,True`."""
    predictions = {}
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            key, _, answer = line.decode(errors='replace').strip().partition(',')
            if not key or answer.lower() not in ('true', 'false'):  # in any case, as in the official evaluator
                faults.add('lines that are not identifier,True or identifier,False', f'line {number} is {line[:100]!r}')
            elif key in predictions:
                faults.add('questions answered again', f'{key} in line {number}')
            else:
                predictions[key] = answer.capitalize()
    return predictions


def read_split(path, form, types):
    """Yields the Questions of the project's own json (data/README.md). types: what its keys are called, {key: name}."""
    for i, item in enumerate(stream(path, 'item', 'questions')):
        if wrong := form.first_fault(item):
            raise DataError(f'{path}: example {i}: key "{wrong[0]}": expected {wrong[1]}, found {json.dumps(item)[:200]}')
        label = form.scores(item) if 'label' in item else None
        yield Question(item[form.id], label, {name: item[key] for key, name in types.items() if key in item})


def read_vqa(path):
    """Yields the Questions of the official annotations, or of a split of the project."""
    types = {'answer_type': 'answer type', 'question_type': 'question type'}
    if opens_with(path) == b'[':
        yield from read_split(path, QUESTION, types)
        return
    for item in stream(path, 'annotations.item', 'annotations'):
        key = field(item, 'question_id', int, path)
        answers = [field(answer, 'answer', str, path) for answer in field(item, 'answers', list, path)]
        if not answers:
            raise DataError(f'{path}: question {key}: key "answers": expected answers of people, found none')
        yield Question(key, answers, {name: field(item, kind, str, path) for kind, name in types.items() if kind in item})


def read_gqa(path):
    """Yields the Questions of an official questions file, or of a split of the project."""
    if opens_with(path) == b'[':
        yield from read_split(path, TEXT_QUESTION, {'answer_type': 'answer type', 'question_type': 'structural type'})
        return
    for key, item in stream(path, '', 'questions', pairs=True):
        field(item, 'question', str, path)
        if 'answer' not in item:
            yield Question(key, None)  # of a split to be submitted all must be answered
            continue
        types = field(item, 'types', dict, path) if 'types' in item else {}
        names = {f'{kind} type': field(types, kind, str, path) for kind in ('structural', 'semantic') if kind in types}
        if 'structural' in types:
            names = {'answer type': 'open' if types['structural'] == 'query' else 'binary'} | names
        if not isinstance(balanced := item.get('isBalanced', True), bool):
            raise DataError(f'{path}: question {key}: key "isBalanced": expected true or false, found {balanced!r}')
        yield Question(key, {field(item, 'answer', str, path): 1.0}, names, balanced,
                       tuple(field(item, 'entailed', list, path)) if 'entailed' in item else (), types.get('detailed') or '')


def read_nlvr2(path):
    """Yields the Questions of the official file, a json object a line, or of a split of the project."""
    if opens_with(path) == b'[':
        yield from read_split(path, PAIR, {})
        return
    for where, item in read_lines(path):
        if (label := item.get('label') if isinstance(item, dict) else None) not in ('True', 'False', None):
            raise DataError(f'{where}: key "label": expected "True" or "False", found {label!r}')
        yield Question(field(item, 'identifier', str, where), None if label is None else {label: 1.0})


def read_lines(path):
    """Yields ('file:line', object) of a file with a json object a line."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                yield f'{path}:{number}', json.loads(line)
            except ValueError as error:
                raise DataError(f'{path}:{number}: expected one json object a line, found {error}') from None


def matched(questions, predictions, path, faults):
    """Yields (Question, its prediction's score from 0 to 1, or None without a label) of the questions that are answered.

    At the end raises DataError if the predictions are not exactly one for each question. Of GQA's unbalanced questions all
    or none may be answered. path: of the questions, for messages; raises DataError if one is there twice.
    """
    seen, spared, extra, labelled = set(), [], 0, None
    for question in questions:
        if question.id in seen:
            raise DataError(f'{path}: question {question.id} is there twice; expected each once')
        seen.add(question.id)
        labelled = question.label is not None if labelled is None else labelled
        if (question.label is not None) != labelled:
            raise DataError(f'{path}: question {question.id}: expected labels on all questions of a file or on none')
        if question.id in predictions:
            extra += not question.balanced
            yield question, score(predictions[question.id], question.label)
        elif question.balanced:
            faults.add('questions not answered', question.id)
        else:
            spared.append(question.id)
    if not seen:
        raise DataError(f'{path}: expected questions, found an empty file')
    for key in spared if extra else ():
        faults.add('unbalanced questions not answered, though others are', key)
    for key in predictions:
        if key not in seen:
            faults.add(f'answers to questions that are not in {path}', key)
    faults.check()


def score(prediction, label):
    if label is None:
        return None
    return vqa_accuracy(prediction, label) if isinstance(label, list) else label.get(prediction, 0.0)
