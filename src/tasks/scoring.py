"""Reads predictions and annotations, matches them (each question must be answered exactly once) and adds up scores."""

import json
import sys
from dataclasses import dataclass
from typing import NamedTuple

from annotations.albef_files import example_of
from files.json_files import DataError, layout, some, stream
from files.text import printable, shown

CORRECT, KEEP_ONE = 'Correct the predictions', 'Keep one answer to each question'


class Question(NamedTuple):
    """A question with its label: {answer: score}, the annotators' answers (list of str), or None without a label."""

    id: int | str
    label: dict | list | None
    types: dict = {}  # {'answer type': 'yes/no', ...}  # noqa: RUF012
    balanced: bool = True  # GQA scores only its balanced questions
    entailed: tuple = ()  # ids of the questions that GQA's annotations call entailed by this one
    detailed: str = ''  # GQA's detailed question type


class PredictionFaults:
    """Collects the faults of a file of predictions for one error message."""

    rule = 'every question must be answered exactly once'

    def __init__(self, path):
        self.path, self.counts, self.first, self.advice = path, {}, {}, {}

    def add(self, kind, name, advice):
        """A fault of a kind (plural), in `name`; advice: what to do."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        self.advice[advice] = None
        if self.counts[kind] <= 3:
            self.first.setdefault(kind, []).append(printable(name)[:200])

    def check(self):
        """Raises DataError if there are faults, with the number and the first examples of each kind."""
        if self.counts:
            raise DataError(f'{self.path}: {self.rule}, but there are' + ''.join(
                f'\n  {count:,} {kind}: {"; ".join(self.first[kind])}{"; ..." if count > 3 else ""}'
                for kind, count in self.counts.items()) + f'\n  {"; ".join(self.advice)}')


@dataclass
class Subset:
    """The questions that are scored."""

    only: set | None = None  # their ids as text; None: all
    path: object = None  # of the file of these ids
    partial: bool = False  # the annotations may lack questions that are answered
    ignored: int = 0  # predictions for other questions, counted by match_predictions


class Scores:
    """Accumulates scores over all questions and over the questions of each type."""

    def __init__(self):
        self.sums = {'all': {'': [0, 0.0]}}

    def add(self, score, types):
        for kind, name in (('all', ''), *types.items()):
            entry = self.sums.setdefault(kind, {}).setdefault(name, [0, 0.0])
            entry[0] += 1
            entry[1] += score

    def figures(self, count, measure, *notes):
        """The metrics: {'questions': n, 'accuracy': per cent, 'by': {kind: {type: {'questions', 'accuracy'}}}, 'measure',
        'notes'}; without labels only 'questions' (`count`) and 'notes'."""
        if not self.sums['all'][''][0]:
            return {'questions': count,
                    'notes': [f'All {count:,} questions are answered, but none to be scored has a label: no score.']}
        by = {kind: {name: {'questions': count, 'accuracy': 100 * total / count}
                     for name, (count, total) in sorted(names.items())} for kind, names in self.sums.items()}
        return by.pop('all')[''] | {'by': by, 'measure': measure, 'notes': list(notes)}


def read_json_predictions(path, id_key, id_type, answer_key, faults):
    """Reads a list [{id_key: ..., answer_key: ...}, ...] as {question id: answer}; adds invalid items to `faults`."""
    expected = f'{{"{id_key}": {"a whole number" if id_type is int else "a text"}, "{answer_key}": a text}}'
    if layout(path) == 'object':
        raise DataError(f'{path}: expected a list of predictions {expected}, found no list; is it the file of annotations? Name '
                        'the predictions first')
    predictions = {}
    for i, item in enumerate(stream(path, 'item', 'predictions')):
        key, answer = (item.get(id_key), item.get(answer_key)) if isinstance(item, dict) else (None, None)
        if type(key) is not id_type or not isinstance(answer, str):
            faults.add(f'predictions that are not {expected}', f'number {i} is {json.dumps(item)[:100]}', CORRECT)
        elif key in predictions:
            faults.add('questions answered again', key, KEEP_ONE)
        else:
            predictions[key] = sys.intern(answer)  # saves memory: few answers, millions of questions
    return predictions


def read_split(path, schema, types):
    """Yields the Questions of this project's json format (data/README.md), or of ALBEF's. types: {json key: name of the type}."""
    for i, item in enumerate(stream(path, 'item', 'questions')):
        if (item := example_of(item, i, path)) is None:
            continue
        if fault := schema.first_fault(item):
            raise DataError(f'{path}: example {i}: key "{fault[0]}": expected {fault[1]}, found {shown(item)}; '
                            'correct it, or name the official annotations')
        label = (item[schema.box] if schema.box else schema.scores(item)) if schema.label_key in item else None
        key = item[schema.id] if schema.id_type is int else str(item[schema.id])
        yield Question(key, label, {name: item[key] for key, name in types.items() if key in item})


def match_predictions(questions, predictions, path, faults, score, subset=None):
    """Yields (Question, score from 0 to 1, or None without a label) for each question with a prediction.

    questions: iterable of Question, read from path; predictions: {id: answer}; score: (answer, label) -> float. GQA's unbalanced
    questions may be answered all or not at all. subset: a Subset (None: all questions), outside of which questions and
    predictions are skipped. Raises DataError for duplicate questions and, at the end, for the faults.
    """
    subset = Subset() if subset is None else subset
    ids, skipped, unanswered_unbalanced, answered_unbalanced, labelled = set(), set(), [], False, None
    for question in questions:
        if question.id in ids or question.id in skipped:
            raise DataError(f'{path}: question {printable(question.id)} occurs twice; expected each once; get the file again, or '
                            'correct it')
        if subset.only is not None and str(question.id) not in subset.only:
            skipped.add(question.id)
            continue
        ids.add(question.id)
        labelled = question.label is not None if labelled is None else labelled
        if (question.label is not None) != labelled:
            raise DataError(f'{path}: question {printable(question.id)}: expected labels on all questions of a file or on none; '
                            'correct the file')
        if question.id in predictions:
            answered_unbalanced |= not question.balanced
            yield question, None if question.label is None else score(predictions[question.id], question.label)
        elif question.balanced:
            faults.add('questions not answered', question.id, 'Answer all, or name those to score: --only FILE')
        else:
            unanswered_unbalanced.append(question.id)
    if unknown := sorted((subset.only or set()) - set(map(str, ids))):
        raise DataError(f'--only {subset.path}: {len(unknown):,} of its {len(subset.only):,} ids are not in {path}: '
                        f'{some(unknown)}; give ids of these annotations')
    if not ids:
        raise DataError(f'{path}: expected questions, found an empty file; get it again')
    for key in unanswered_unbalanced if answered_unbalanced else ():
        faults.add('unbalanced questions not answered, though others are', key, 'Answer all or none of them')
    for key in predictions:
        if key in skipped or (key not in ids and subset.partial):
            subset.ignored += 1
        elif key not in ids:
            faults.add(f'answers to questions that are not in {path}', key, f'--subset scores only the questions of {path}')
    if subset.ignored and subset.ignored == len(predictions):
        faults.add('predictions, none of them to a question that is scored,', some(map(str, predictions)), CORRECT)
    faults.check()


def label_score(prediction, label):
    """The score of a predicted answer. label: {answer: score}."""
    return label.get(prediction, 0.0)


def confusion_table(counts):
    """A table (text) of {label: {predicted label: count}}, a row for each label."""
    width = max(8, *map(len, counts)) + 2
    lines = [f'{"label, and predicted as":24s}' + ''.join(f'{printable(answer):>{width}s}' for answer in counts)]
    return '\n'.join(lines + [f'{printable(label):24s}' + ''.join(f'{count:{width},d}' for count in row.values())
                              for label, row in counts.items()])
