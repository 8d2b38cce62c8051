"""From the official downloads to the project's json: both read and written an item at a time, so that memory does not grow with
the files. What data/*/process_*.py share."""

import json
import os
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

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
    """The json files that a script makes in one folder, lists written an item at a time.

    Used in a `with`: they take their names when all are whole; an error removes all of them. Raises FileExistsError if one
    of them is there already.
    """

    def __init__(self, folder, names):
        self.folder, self.counts, self.values = Path(folder), Counter(), set()
        there = [str(self.folder / name) for name in names if (self.folder / name).exists()]
        if there:
            raise FileExistsError(f'{", ".join(there)}: already there; move what is there, or name another --out')
        self.folder.mkdir(parents=True, exist_ok=True)
        self.files = {name: open(self.folder / f'{name}.part', 'w', encoding='utf-8') for name in names}  # noqa: SIM115

    def __enter__(self):
        return self

    def add(self, name, item):
        """Appends an item to the list in file `name`."""
        self._write(name, (',\n' if self.counts[name] else '[\n') + json.dumps(item))
        self.counts[name] += 1

    def dump(self, name, value):
        """Makes a value the whole content of file `name`."""
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
                with suppress(OSError):  # what could not be written before
                    file.close()
                (self.folder / f'{name}.part').unlink(missing_ok=True)


def frequent(counts, least):
    """The keys of {answer: count} that count at least so many times, the most frequent first; alphabetical where equal."""
    return sorted((answer for answer, count in counts.items() if count >= least), key=lambda answer: (-counts[answer], answer))


VOCABULARY = ('trainval_label2ans.json', 'trainval_ans2label.json')


def dump_vocabulary(out, answers):
    """Writes both files of the answer vocabulary, list and {answer: place in it}, into Outputs."""
    out.dump('trainval_label2ans.json', answers)
    out.dump('trainval_ans2label.json', {answer: place for place, answer in enumerate(answers)})


def examples_of(names, most=5):
    """' (such as a, b, c)' for the first of some names, or nothing if there are none."""
    few = [repr(name) for name in list(names)[:most]]
    return f' (such as {", ".join(few)})' if few else ''


def run(main):
    """Runs a script's main(argv); faults of the input end it with one message, not a traceback."""
    try:
        main(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: error: {error}')
