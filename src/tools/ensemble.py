"""Writes a submission from the mean of several models' probabilities, as written by --dumpProbs (run/ensemble.bash).

An answer that a file does not list has probability 0, so --dumpProbs should be at least 10, or the number of answers.
"""

import argparse
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from cli import run_main
from files.atomic import write_atomically
from files.json_files import DataError, field, stream
from files.progress import ProgressBar
from files.text import shown
from tasks.registry import task_class

TASKS = ('vqa', 'gqa', 'nlvr2', 'nlvr', 'entailment')  # with one answer per example in their submissions


def mean(paths):
    """Yields (id, Counter of {answer: mean probability}) for each example.

    Raises DataError for an invalid item, or if the files do not have the same examples in the same order.
    """
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
                if not isinstance(pair, list) or [*map(type, pair)] not in ([str, float], [str, int]) or not 0 <= pair[1] <= 1:
                    raise DataError(f'{path}: prediction {number}: key "answers": expected pairs [answer, probability from 0 to '
                                    f'1], found {shown(pair)}; give a _probs.json written by --dumpProbs')
                total[pair[0]] += pair[1] / len(paths)
        yield rows[0]['id'], total


def ensemble(options):
    """Writes the submission; returns the exit status."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = ((key, total.most_common(1)[0][0]) for key, total in mean(options.files))
    bar, count = ProgressBar(rows, 'Averaging', unit=' predictions', delay=3), []
    write_atomically(options.out, lambda path: count.append(task_class(options.task).write(path, bar)))
    print(f'{count[0]:,} predictions of {len(options.files)} models: {options.out}')
    return 0


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog='ensemble.bash', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('task', choices=TASKS)
    parser.add_argument('--out', type=Path, required=True, help="the submission file to write, in the leaderboard's format")
    parser.add_argument('files', nargs='+', type=Path, help='SPLIT_probs.json of each model, written by --dumpProbs')
    options = parser.parse_args(argv)
    return run_main('ensemble.bash', lambda: ensemble(options))


if __name__ == '__main__':
    sys.exit(main())
