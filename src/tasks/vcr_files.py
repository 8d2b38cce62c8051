"""The file of predictions of VCR, as its leaderboard takes it, and its metrics: Q->A, QA->R and Q->AR."""

import csv
import math

import numpy as np

from files.json_files import DataError, numbered_lines, stream
from files.text import shown
from tasks.scoring import CORRECT, KEEP_ONE, PredictionFaults, Question, Scores, match_predictions

CHOICES = 4
ANSWERS = tuple(f'answer_{i}' for i in range(CHOICES))
RATIONALES = tuple(f'rationale_{i}' for i in range(CHOICES))  # of the right answer
GIVEN = tuple(tuple(f'rationale_conditioned_on_a{a}_{i}' for i in range(CHOICES)) for a in range(CHOICES))
HEADERS = (ANSWERS, RATIONALES, (*ANSWERS, *(name for names in GIVEN for name in names)))  # behind annot_id


def write_csv(path, ids, columns):
    """ids: n str; columns: {names of columns: (n, columns)}."""
    with open(path, 'w', encoding='utf-8', newline='') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(['annot_id', *(name for names in columns for name in names)])
        writer.writerows([key, *(f'{value:.8g}' for value in row)]
                         for key, row in zip(ids, np.concatenate(list(columns.values()), 1).tolist(), strict=True))


def scores(probabilities, answer, rationale):
    """{metric: (n,) bool}. probabilities (n, 4), or (n, 20) as in the last of HEADERS; answer, rationale (n,): the right ones."""
    right = {'Q->A': probabilities[:, :CHOICES].argmax(1) == answer}
    if probabilities.shape[1] > CHOICES:
        of_answer = probabilities[:, CHOICES:].reshape(len(answer), CHOICES, CHOICES)[np.arange(len(answer)), answer]
        right['QA->R'] = of_answer.argmax(1) == rationale  # of the right answer, whichever was chosen
        right['Q->AR'] = right['Q->A'] & right['QA->R']
    return right


def summary(right):
    """'Q->A 73.10, ...', per cent. right: {metric: (n,) bool}."""
    return ', '.join(f'{name} {100 * values.mean():.2f}' for name, values in right.items())


def read_csv(path, faults):
    """(one of HEADERS, {annot_id: probabilities}) of a file of predictions. Raises DataError for another header, and for a file
    that is no csv."""
    rows = csv.reader(line.decode(errors='replace') for _, line in numbered_lines(path))
    try:
        header = tuple(next(rows, ()))
        if header[1:] not in HEADERS or header[0] != 'annot_id':
            raise DataError(f'{path}: expected the columns annot_id, {ANSWERS[0]}, ..., {GIVEN[-1][-1]}, or only the former, or '
                            f'{RATIONALES[0]}, ...; found {shown(", ".join(header))}; is it a file of run/vcr_test.bash?')
        predictions = {}
        for key, *values in filter(None, rows):
            try:
                row = [float(value) for value in values]
            except ValueError:
                row = []
            if len(row) != len(header) - 1 or not all(map(math.isfinite, row)):
                faults.add(f'lines without {len(header) - 1} numbers', f'line {rows.line_num}, {key}', CORRECT)
            elif key in predictions:
                faults.add('questions answered again', key, KEEP_ONE)
            else:
                predictions[key] = row
    except csv.Error as error:
        raise DataError(f'{path}:{rows.line_num}: expected an id and numbers separated by commas, found no csv ({error}); is it '
                        'a file of run/vcr_test.bash?') from None
    return header[1:], predictions


def read_questions(path, keys):
    """Yields the Questions of the official json lines or of this project's json; the label has the values of `keys`."""
    for i, item in enumerate(stream(path, 'item', 'questions')):
        if not isinstance(item, dict) or not isinstance(item.get('annot_id'), str):
            raise DataError(f'{path}: example {i}: key "annot_id": expected a text, found {shown(item)}; name annotations of VCR')
        label = [item[key] for key in keys if key in item]
        if label and (len(label) < len(keys) or not all(type(one) is int and 0 <= one < CHOICES for one in label)):
            raise DataError(f'{path}: example {i}: {" and ".join(keys)}: expected 0 to {CHOICES - 1}, found {shown(label)}; '
                            'correct it')
        yield Question(item['annot_id'], label or None)


def evaluate(predictions, annotations, subset=None):
    """The metrics of a file of predictions, see Scores.figures. annotations: the official json lines, or this project's json."""
    faults = PredictionFaults(predictions)
    header, rows = read_csv(predictions, faults)
    keys = {ANSWERS: ('answer_label',), RATIONALES: ('rationale_label',)}.get(header, ('answer_label', 'rationale_label'))
    all_scores, sums, count = Scores(), {}, 0

    def score(row, label):
        right = scores(np.array([row]), np.array(label[:1]), np.array(label[1:]))
        for name, values in right.items():
            sums[name] = sums.get(name, 0) + int(values[0])
        return float(right.get('Q->AR', right['Q->A'])[0])

    for _, value in match_predictions(read_questions(annotations, keys), rows, annotations, faults, score, subset):
        count += 1
        if value is not None:
            all_scores.add(value, {})
    measure = {ANSWERS: 'Q->A', RATIONALES: 'QA->R'}.get(header, 'Q->AR')
    figures = all_scores.figures(count, f'{measure} accuracy')
    return figures | ({name: 100 * total / figures['questions'] for name, total in sums.items()} if len(sums) > 1 else {})
