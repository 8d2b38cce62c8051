"""Writes a submission from the mean of several models' probabilities (run/ensemble.bash): of files written by --dumpProbs, and
of VCR of the predictions, which have all probabilities.

An answer that a file does not list has probability 0, so --dumpProbs should be at least 10, or the number of answers. Of regions
all files list the same ones.
"""

import argparse
import sys
from collections import Counter
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from cli import run_main
from files.atomic import write_atomically
from files.json_files import DataError, field, stream
from files.progress import ProgressBar
from files.text import shown
from tasks import vcr_files
from tasks.registry import TASKS, task_class
from tasks.scoring import PredictionFaults

WITHOUT = 'retrieval', 'classify', 'multilabel'  # predictions are ranks, or the probabilities of all classes


def mean(paths, output):
    """Yields (id, Counter of {answer: mean probability}) for each example. output: of the task.

    Raises DataError for an invalid item, or if the files do not have the same examples in the same order.
    """
    what, valid = PREDICTED[output]
    for number, rows in enumerate(zip_longest(*(stream(path, 'item', 'predictions') for path in paths))):
        total = Counter()
        for path, row in zip(paths, rows, strict=True):
            if row is None:
                raise DataError(f'{path}: expected as many predictions as in the other files, found {number:,}; make the '
                                'files from one split')
            if not isinstance(row, dict) or 'id' not in row or not field(row, 'answers', list, path):
                raise DataError(f'{path}: prediction {number}: expected {{"id": ..., "answers": [[answer, probability], ...]}}, '
                                f'found {shown(row)}; give a _probs.json written by --dumpProbs')
            if type(row['id']) not in (int, str) or not str(row['id']).isprintable():
                raise DataError(f'{path}: prediction {number}: key "id": expected a whole number or a text, found '
                                f'{shown(row["id"])}; give a _probs.json written by --dumpProbs')
            if row['id'] != rows[0]['id']:
                raise DataError(f'{path}: prediction {number}: key "id": expected {shown(rows[0]["id"])} as in {paths[0]}, found '
                                f'{shown(row["id"])}; make the files from one split')
            for pair in row['answers']:
                if not (isinstance(pair, list) and len(pair) == 2 and valid(pair[0])
                        and type(pair[1]) in (int, float) and 0 <= pair[1] <= 1):
                    raise DataError(f'{path}: prediction {number}: key "answers": expected pairs '
                                    f'[{what}, probability from 0 to 1], found {shown(pair)}; give a '
                                    '_probs.json of this task, written by --dumpProbs')
                total[tuple(pair[0]) if isinstance(pair[0], list) else pair[0]] += pair[1] / len(paths)
        for path, row in zip(paths, rows, strict=True):
            boxes = {tuple(name) for name, _ in row['answers'] if isinstance(name, list)}
            lacking = {name for name in total if isinstance(name, tuple)} - boxes
            if any(box[:2] != (0, 0) for box in lacking) or len(lacking) > 1:  # VL-BERT's first region is the whole image
                raise DataError(f'{path}: prediction {number}: expected the same boxes as in the other files, found others; make '
                                'the files from the same regions, with all of them (--dumpProbs 1000)')
        yield rows[0]['id'], total


def is_box(value):
    return isinstance(value, list) and len(value) == 4 and all(type(side) in (int, float) for side in value)


# Output of a task -> what is predicted, and whether a value is that.
PREDICTED = {'answer': ('answer', lambda value: isinstance(value, str)), 'choice': ('choice', lambda value: type(value) is int),
             'region': ('box', is_box)}


def mean_csv(paths):
    """(ids, columns as of vcr_files.write_csv): the means of files of VCR's predictions.

    Raises DataError unless all have the same columns and examples.
    """
    headers, tables = [], []
    for path in paths:
        header, rows = vcr_files.read_csv(path, faults := PredictionFaults(path))
        faults.check()
        headers.append(header)
        tables.append(rows)
        if header != headers[0]:
            raise DataError(f'{path}: expected the {len(headers[0])} columns of {paths[0]}, {headers[0][0]}, ..., found '
                            f'{len(header)}, {header[0]}, ...; average files of one part of the task')
        if others := rows.keys() ^ tables[0].keys():
            raise DataError(f'{path}: expected the examples of {paths[0]}, found {len(others):,} that only one of them has, '
                            f'such as {shown(min(others))}; make the files from one split')
    return [*tables[0]], {headers[0]: np.mean([[rows[key] for key in tables[0]] for rows in tables], 0)}


def ensemble(options):
    """Writes the submission; returns the exit status."""
    for path in options.files:
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such file; correct the path')
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.task == 'vcr':
        ids, columns = mean_csv(options.files)
        write_atomically(options.out, partial(vcr_files.write_csv, ids=ids, columns=columns))
        print(f'{len(ids):,} predictions of {len(options.files)} models: {options.out}')
        return 0
    if (output := task_class(options.task).output) not in PREDICTED:
        raise DataError(f'{options.task}: predictions are ranks, of which there is no mean; test one snapshot')
    rows = ((key, total.most_common(1)[0][0]) for key, total in mean(options.files, output))
    bar, count = ProgressBar(rows, 'Averaging', unit=' predictions', delay=3), []
    write_atomically(options.out, lambda path: count.append(task_class(options.task).write(path, bar)))
    print(f'{count[0]:,} predictions of {len(options.files)} models: {options.out}')
    return 0


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog='ensemble.bash', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('task', choices=[task for task in TASKS if task not in WITHOUT])
    parser.add_argument('--out', type=Path, required=True, help="the submission file to write, in the leaderboard's format")
    parser.add_argument('files', nargs='+', type=Path,
                        help='SPLIT_probs.json of each model, written by --dumpProbs; of VCR SPLIT_predict.csv')
    options = parser.parse_args(argv)
    return run_main('ensemble.bash', lambda: ensemble(options))


if __name__ == '__main__':
    sys.exit(main())
