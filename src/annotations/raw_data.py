"""Shared code of data/*/process_*.py, which convert the official downloads to the project's json.

They read and write an item at a time, so that memory does not grow with the files.
"""

import json
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from cli import run_main
from files.json_files import DataError, field, opened


def find(folder, name):
    """The file folder/name, or the same with .gz; None if there is neither."""
    return next((path for path in (Path(folder) / name, Path(folder) / f'{name}.gz') if path.is_file()), None)


def json_lines(path, key, source):
    """Yields (row, its place for messages as file:line) for each line of a file of json objects, also if it ends in .gz.

    key: of an id, a text that no two rows share; source: where the file comes from. Raises DataError for a line that is no object
    with such an id, and for an empty file.
    """
    lines = {}  # {id: line number}
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            place = f'{path}:{number}'
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f'{place}: expected one json object a line, found {error}; get the file again from '
                                f'{source}') from None
            if lines.setdefault(name := field(row, key, str, place), number) != number:
                raise DataError(f'{place}: key "{key}": expected a new one, found {name}, which line {lines[name]} has; get the '
                                f'file again from {source}')
            yield row, place
    if not lines:
        raise DataError(f'{path}: expected one json object a line, found an empty file; get it again from {source}')


class Outputs:
    """The json files that a script makes in one folder; lists are written an item at a time.

    A context manager: the files get their names when all are complete; an error removes all of them. Raises FileExistsError if
    one of them already exists.
    """

    def __init__(self, folder, names):
        self.folder, self.counts, self.values = Path(folder), Counter(), set()
        existing = [str(self.folder / name) for name in names if (self.folder / name).exists()]
        if existing:
            raise FileExistsError(f'{", ".join(existing)}: already exists; move it, or name another --out')
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = {name: open(self.folder / f'{name}.part', 'w', encoding='utf-8') for name in names}  # noqa: SIM115

    def __enter__(self):
        return self

    def add(self, name, item):
        """Appends an item to the list in file `name`."""
        self._write(name, (',\n' if self.counts[name] else '[\n') + json.dumps(item))
        self.counts[name] += 1

    def dump(self, name, value):
        """Writes a value as the content of file `name`."""
        self.values.add(name)
        self._write(name, json.dumps(value, indent=0))

    def _write(self, name, text, last=False):
        try:
            self.files[name].write(text)
            if last:
                self.files[name].flush()
                os.fsync(self.files[name].fileno())
        except OSError as error:
            raise OSError(f'{self.folder / name}: cannot be written ({error.strerror}); is the disk full?') from None

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                for name in self.files:
                    self._write(name, '\n' if name in self.values else '\n]\n' if self.counts[name] else '[]\n', last=True)
                for name in self.files:
                    os.replace(self.folder / f'{name}.part', self.folder / name)
        finally:
            for name, file in self.files.items():
                with suppress(OSError):  # of a buffer that could not be written before
                    file.close()
                (self.folder / f'{name}.part').unlink(missing_ok=True)


def frequent(counts, least):
    """The keys of {answer: count} with a count of at least `least`, by falling count, then alphabetically."""
    return sorted((answer for answer, count in counts.items() if count >= least), key=lambda answer: (-counts[answer], answer))


VOCABULARY = ('trainval_label2ans.json', 'trainval_ans2label.json')


def dump_vocabulary(out, answers):
    """Writes both files of the answer vocabulary, the list and {answer: its index}, into Outputs."""
    out.dump('trainval_label2ans.json', answers)
    out.dump('trainval_ans2label.json', {answer: index for index, answer in enumerate(answers)})


def examples_of(names, most=5):
    """' (such as a, b, c)' for the first of some names, or nothing if there are none."""
    few = [repr(name) for name in list(names)[:most]]
    return f' (such as {", ".join(few)})' if few else ''


def run(main):
    """Runs a script's main(argv) as a program, see cli.run_main."""
    sys.exit(run_main(Path(sys.argv[0]).name, lambda: main(sys.argv[1:])))
