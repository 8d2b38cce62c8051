"""NLVR2: is a statement true of two photographs? (Suhr et al., 2019). The program behind run/nlvr2_{finetune,test}.bash."""

import sys

import numpy as np

from annotations.examples import PAIR
from annotations.spec import DatasetSpec
from files.json_files import DataError, field, layout, numbered_lines, parse_json
from tasks.program import main
from tasks.scoring import (
    CORRECT,
    KEEP_ONE,
    PredictionFaults,
    Question,
    Scores,
    label_score,
    match_predictions,
    read_split,
)
from tasks.task import Task

SPLITS = ('train', 'valid', 'test', 'hidden')


class NLVR2(Task):
    """Classifies a statement as false or true, with two images per statement."""

    kind = 'nlvr2'
    schema = PAIR
    suffix = 'csv'

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'nlvr2', 'name': 'nlvr2', 'max_length': 20,
            'splits': {split: {'annotations': f'nlvr2/{split}.json', 'features': [f'nlvr2_imgfeat/{split}_obj36.tsv'],
                               'images': 'images/nlvr2'}
                       for split in SPLITS},
        }, root, root)

    def table(self, dataset, predictions):
        """The accuracy and, if the identifiers have NLVR2's format, the consistency."""
        table = super().table(dataset, predictions)
        correct = dataset.scores(predictions[0][:, 0]) == 1
        try:
            share = consistency(dataset.examples.names(), correct)
        except ValueError:  # identifiers of another dataset
            return table
        return f'{table}\nConsistency (statements classified correctly for all of their image pairs): {share:.2f}'

    @classmethod
    def write(cls, path, rows):
        """Writes (identifier, True or False) rows in the leaderboard's format. Returns the number of rows."""
        with open(path, 'w', encoding='utf-8') as file:
            return sum(bool(file.write(f'{key},{answer}\n')) for key, answer in rows)

    @staticmethod
    def evaluate(predictions, annotations, subset=None):
        """The metrics of a file of predictions, see Scores.figures. annotations: the official json lines, or this project's json;
        subset: a scoring.Subset; None: all questions."""
        faults = PredictionFaults(predictions)
        answers = read_predictions(predictions, faults)
        scores, identifiers, correct, count = Scores(), [], [], 0
        for question, score in match_predictions(read_questions(annotations), answers, annotations, faults, label_score,
                                                 subset):
            count += 1
            if score is not None:
                scores.add(score, {})
                identifiers.append(question.id)
                correct.append(score == 1)
        figures = scores.figures(count, 'accuracy')
        if not all(map(str.isdecimal, identifiers)):  # in ALBEF's files examples are only numbered
            try:
                figures['consistency'] = consistency(identifiers, correct)
            except ValueError as error:
                raise DataError(f'{annotations}: {error}; correct them') from None
        return figures


def read_predictions(path, faults):
    """{identifier: 'True' or 'False'} of lines `identifier,True`."""
    predictions = {}
    for number, line in numbered_lines(path):
        key, _, answer = line.decode(errors='replace').strip().rpartition(',')  # identifiers may have commas
        if not key or answer.lower() not in ('true', 'false'):  # case does not matter, as in the official evaluator
            faults.add('lines that are not identifier,True or identifier,False', f'line {number} is {line[:100]!r}',
                       CORRECT)
        elif key in predictions:
            faults.add('questions answered again', f'{key} in line {number}', KEEP_ONE)
        else:
            predictions[key] = answer.capitalize()
    return predictions


def read_questions(path):
    """Yields the Questions of an official file (json lines) or of this project's json, also as json lines. Raises DataError."""
    if layout(path) == 'list':
        yield from read_split(path, PAIR, {})
        return
    lines = ((number, line) for number, line in numbered_lines(path) if not line.isspace())
    for i, (number, line) in enumerate(lines):
        location = f'{path}:{number}'
        item = parse_json(line, location, 'one json object per line; get the file again')
        if not i and isinstance(item, dict) and 'sent' in item:
            yield from read_split(path, PAIR, {})
            return
        if (label := item.get('label') if isinstance(item, dict) else None) not in ('True', 'False', None):
            raise DataError(f'{location}: key "label": expected "True" or "False", found {label!r}; get the '
                            'file again')
        yield Question(field(item, 'identifier', str, location), None if label is None else {label: 1.0})


def consistency(identifiers, correct):
    """Per cent of NLVR2's statements that are classified correctly for all their image pairs, as in the official metrics.py.

    identifiers: n strings such as dev-354-0-1 (split, set, pair, sentence); the fields other than the pair identify a statement.
    correct: n bool. Raises ValueError for an identifier without four fields.
    """
    fields = [identifier.split('-') for identifier in identifiers]
    if invalid := [identifier for identifier, parts in zip(identifiers, fields, strict=True) if len(parts) != 4]:
        raise ValueError(f'expected identifiers like dev-354-0-1, found {len(invalid):,} others, the first is {invalid[0]!r}')
    return all_correct([f'{split}-{collection}-{sentence}' for split, collection, _, sentence in fields], correct)


def all_correct(statements, correct):
    """Per cent of the statements of which all n examples are correct. statements: of each the name, n str; correct: n bool."""
    _, group = np.unique(statements, return_inverse=True)
    return 100 * float((np.bincount(group, weights=~np.asarray(correct, dtype=bool)) == 0).mean())


if __name__ == '__main__':
    sys.exit(main(NLVR2))
