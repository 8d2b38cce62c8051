"""One submission of several models: the mean of their probabilities, as --dumpProbs wrote them (run/ensemble.bash).

An answer that a file does not list counts as 0, so --dumpProbs should be about 10, or all where answers are few.
"""

import argparse
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from tqdm import tqdm

from cli import run_main
from files.atomic import write_atomically
from files.json_files import DataError, field, stream
from tasks.registry import TASKS, task_class


def mean(paths):
    """Yields (id, {answer: mean probability}) of each example; all files must have the same examples, in the same order.

    Raises DataError that names the file and the example.
    """
    for number, rows in enumerate(zip_longest(*(stream(path, 'item', 'predictions') for path in paths))):
        total = Counter()
        for path, row in zip(paths, rows, strict=True):
            if row is None:
                raise DataError(f'{path}: expected as many predictions as in the other files, found {number:,}')
            if not isinstance(row, dict) or 'id' not in row or not field(row, 'answers', list, path):
                raise DataError(f'{path}: prediction {number}: expected {{"id": ..., "answers": [[answer, probability], ...]}}, '
                                f'found {row!r:.100}; give the _probs.json that --dumpProbs wrote')
            if row['id'] != rows[0]['id']:
                raise DataError(f'{path}: prediction {number}: key "id": expected {rows[0]["id"]!r} as in {paths[0]}, found '
                                f'{row["id"]!r}; make the files from one split')
            for answer, probability in row['answers']:
                total[answer] += probability / len(paths)
        yield rows[0]['id'], total


def ensemble(options):
    """Writes the submission; returns the exit status."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = ((key, total.most_common(1)[0][0]) for key, total in mean(options.files))
    bar, count = tqdm(rows, 'Averaging', unit=' predictions', delay=3, disable=None), []
    write_atomically(options.out, lambda path: count.append(task_class(options.task).write(path, bar)))
    print(f'{count[0]:,} predictions of {len(options.files)} models: {options.out}')
    return 0


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog='ensemble.bash', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('task', choices=TASKS)
    parser.add_argument('--out', type=Path, required=True, help='the file to write, as the leaderboard takes it')
    parser.add_argument('files', nargs='+', type=Path, help='what --dumpProbs wrote: SPLIT_probs.json of each model')
    options = parser.parse_args(argv)
    return run_main('ensemble.bash', lambda: ensemble(options))


if __name__ == '__main__':
    sys.exit(main())
