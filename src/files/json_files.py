"""Json files read and written: at once where they are small, an item at a time where they may be large."""

import gzip
import io
import json
import zlib
from contextlib import contextmanager
from pathlib import Path

import ijson

from files.atomic import byte_bar


class DataError(ValueError):
    """Annotations or a description of a dataset that cannot be used."""


def read_json(path, what):
    """The content of a json file. Raises FileNotFoundError or DataError, which name the file and what it should be."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; expected {what}')
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: incomplete or invalid json ({error}); expected {what}') from None


class CountedFile(io.FileIO):
    """A binary file that advances a progress bar by the bytes read."""

    def __init__(self, path, bar):
        super().__init__(path)
        self.bar = bar

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.bar.update(count)
        return count


@contextmanager
def opened(path):
    """A file opened to read bytes, decompressed if its name ends in .gz, with a progress bar of what is read from disk.

    Raises FileNotFoundError, or DataError if the gzip file is damaged; both name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; download it, or check the name')
    with (byte_bar(path.name, path.stat().st_size, delay=1) as bar,
          io.BufferedReader(CountedFile(path, bar), 1 << 20) as file):
        try:
            yield gzip.GzipFile(fileobj=file) if path.suffix == '.gz' else file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f'{path}: incomplete or damaged gzip file ({error}); download it again') from None


def stream(path, prefix, what, pairs=False):
    """Yields the items of a json file one by one.

    path: .json or .json.gz; prefix: where they are, as in ijson ('questions.item'; '' with pairs); what: what they are, in the
    plural, for messages; pairs: yield the (key, value) pairs of an object. Raises FileNotFoundError, or DataError if the file
    is incomplete or no json, or has no such items.
    """
    count = 0
    with opened(path) as file:
        try:
            for item in (ijson.kvitems if pairs else ijson.items)(file, prefix, use_float=True):
                count += 1
                yield item
        except (ijson.JSONError, UnicodeDecodeError) as error:
            fault = ' '.join(str(error).split())  # the parser draws an arrow below the fault
            raise DataError(f'{path}: incomplete or invalid json after {count:,} {what} ({fault}); download it again') from None
    if not count:
        place = f'at {prefix.replace(".item", "[...]")}' if '.' in prefix else 'in a list'
        raise DataError(f'{path}: expected {what} {"as the values of one object" if pairs else place}, found none; is it the '
                        'file that its name says?')


def field(item, key, kind, path):
    """item[key], which must be a `kind` (a type). Raises DataError that names the file, the key and the value found."""
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        text = repr(item)
        raise DataError(f'{path}: key "{key}": expected {kind.__name__}, found {value!r} in '
                        f'{text[:200] + "..." if len(text) > 200 else text}; is it the file that its name says?')
    return value


def some(names, most=3):
    """The first names of a list, for a message."""
    names = list(dict.fromkeys(names))
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def write_list(path, items):
    """Writes a json list, an item a line and one at a time; returns how many."""
    count = 0
    with open(path, 'w', encoding='utf-8') as file:
        for count, item in enumerate(items, 1):
            file.write(('[\n' if count == 1 else ',\n') + json.dumps(item))
        file.write('\n]\n' if count else '[]\n')
    return count
