"""Shared code of data/*/process_*.py, which convert the official downloads to the project's json.

They read and write an item at a time, so that memory does not grow with the files.
"""

import json
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from cli import run_main
from files.atomic import atomic_file, naming
from files.json_files import DataError, field, first_duplicate, numbered_lines, parse_json
from files.text import shown
from regions import store, tsv

MAX_NAME = 120  # characters of the name of a file


def find(folder, name):
    """The file folder/name, or the same with .gz; None if there is neither."""
    return next((path for path in (Path(folder) / name, Path(folder) / f'{name}.gz') if path.is_file()), None)


def json_lines(path, key, source):
    """Yields (row, its place for messages as file:line) for each line of a file of json objects, also if it ends in .gz.

    key: of an id, a text that no two rows share; source: where the file comes from. Raises DataError for a line that is no object
    with such an id, and for an empty file.
    """
    lines = {}  # {id: line number}
    for number, line in numbered_lines(path):
        if line.isspace():
            continue
        place = f'{path}:{number}'
        row = parse_json(line, place, f'one json object a line; get the file again from {source}')
        if lines.setdefault(name := field(row, key, str, place), number) != number:
            raise DataError(f'{place}: key "{key}": expected a new one, found {name}, which line {lines[name]} has; get the '
                            f'file again from {source}')
        yield row, place
    if not lines:
        raise DataError(f'{path}: expected one json object a line, found an empty file; get it again from {source}')


def image_ids(path):
    """The set of image ids (str) in a region store or TSV. Raises an error that names it if there is none."""
    regions = store.fresh(path, None) or tsv.need(path)
    ids = [line.split(b'\t', 1)[0] for line in regions.lines()] if isinstance(regions, tsv.TsvFile) else regions.ids.tolist()
    return {img_id.decode() for img_id in ids}


class Outputs:
    """The json files that a script writes to one folder, lists one item at a time.

    Used in a `with`: the files get their names when all are complete; after an error none is left. Raises FileExistsError if one
    of them exists already, DataError for a name that is no file in the folder and for one name of two files, OSError that names
    the file where the disk is full.
    """

    def __init__(self, folder, names):
        self.folder, self.counts, self.values = Path(folder), Counter(), set()
        for name in names:
            if '/' in name or name[0] == '.' or len(name) > MAX_NAME or not name.isprintable():
                raise DataError(f'{shown(name)}: expected the name of a file in {folder}, of at most {MAX_NAME} characters, '
                                'that does not begin with a dot; name the split otherwise')
        if twice := first_duplicate(names):
            raise DataError(f'{self.folder / twice}: expected one file of this name, found two; name the split otherwise')
        existing = [str(self.folder / name) for name in names if (self.folder / name).exists()]
        if existing:
            raise FileExistsError(f'{", ".join(existing)}: already exists; move it, or name another --out')
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stack = ExitStack()
        self.files = {name: self.stack.enter_context(atomic_file(self.folder / name, 'w', encoding='utf-8')) for name in names}

    def __enter__(self):
        return self

    def add(self, name, item):
        """Appends an item to the list in file `name`."""
        self.write(name, (',\n' if self.counts[name] else '[\n') + json.dumps(item))
        self.counts[name] += 1

    def dump(self, name, value):
        """Writes a value as the content of file `name`."""
        self.values.add(name)
        self.write(name, json.dumps(value, indent=0))

    def write(self, name, text):
        with naming(self.folder / name):
            self.files[name].write(text)

    def __exit__(self, kind, error, traceback):
        with self.stack:  # renames the files at its end; removes them after an error
            if error:
                raise error
            for name in self.files:
                self.write(name, '\n' if name in self.values else '\n]\n' if self.counts[name] else '[]\n')
            for name, file in self.files.items():
                with naming(self.folder / name):
                    file.flush()  # before the first file gets its name


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
