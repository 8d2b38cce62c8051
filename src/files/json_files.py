"""Json and text files read and written: at once where they are small, an item or a line at a time where they may be large.

Files may come from strangers. Nesting, the size of an item and what a gzip file expands to are limited, so that no file takes
more than about a gigabyte of memory. Texts are in UTF-8, with or without a byte order mark.
"""

import codecs
import gzip
import io
import itertools
import json
import math
import zlib
from collections import Counter, deque
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import ijson
import numpy as np

from files.atomic import byte_bar
from files.text import InputError, printable, shown

MAX_DEPTH = 100  # levels of brackets in brackets
MAX_BYTES = 32 << 20  # of a file that is read at once, and of a line; as Python objects up to 25 times
MAX_ITEM = 8 << 20  # bytes of an item that is streamed
MAX_TOKEN = 4 << 20  # bytes of a number or a text without commas, which the parser reads anew for each block
MAX_EXPANSION = 200  # times that a compressed file may grow; text that people wrote grows 3 to 20 times
FREE_EXPANSION = 256 << 20  # bytes that any compressed file may grow to
BLOCK = 1 << 16  # bytes checked at once
MAX_FIRST_LINE = 1 << 20  # bytes; a longer one is that of an object, not the first of json lines

# Of json only brackets (1 opens, -1 closes), commas (0) and quotes matter to its structure.
QUOTE = 2
STRUCTURE = b'[{]},"'
CODES = bytes.maketrans(STRUCTURE, bytes((1, 1, 255, 255, 0, QUOTE)))
OTHER_BYTES = bytes(set(range(256)) - set(STRUCTURE))


class DataError(InputError):
    """Annotations or a description of a dataset that cannot be used."""


class Structure:
    """Limits nesting and the size of items of json that is read block by block.

    path: for messages; items: the number of brackets around an item; most: bytes of an item. Brackets in strings do not count.
    """

    def __init__(self, path, items, most):
        self.path, self.items, self.most = path, items, most
        self.depth = self.in_string = 0
        self.size = self.token = 0  # bytes since the last item, and since the last bracket, comma or quote
        self.escape = b''

    def check(self, block):
        """Raises DataError if the json so far, up to this block of bytes, exceeds a limit."""
        text, self.escape = self.escape + block, b''
        if b'\\' in text:
            text = text.replace(rb'\\', b'').replace(rb'\"', b'')
            self.escape = b'\\' if text.endswith(b'\\') else b''
        codes = np.frombuffer(text.translate(CODES, OTHER_BYTES), np.int8)
        quotes = codes == QUOTE
        parity = np.cumsum(quotes) + self.in_string
        outside = codes[~quotes & (parity % 2 == 0)]
        depths = self.depth + np.cumsum(outside)
        self.size += len(block)
        self.token = 0 if codes.size else self.token + len(block)
        if depths.size:
            if depths.max() > MAX_DEPTH:
                raise DataError(f'{self.path}: more than {MAX_DEPTH} levels of brackets in brackets; expected fewer than ten; '
                                'is it the file that its name says?')
            if depths.min() <= self.items:
                self.size = 0
            self.depth = int(depths[-1])
        if quotes.size:
            self.in_string = int(parity[-1] % 2)
        if self.size > self.most or self.token > MAX_TOKEN:
            raise DataError(f'{self.path}: an item of more than {self.most >> 20} MB, or a number or text of more than '
                            f'{MAX_TOKEN >> 20} MB; is it the file that its name says?')


class JsonBlocks:
    """A binary file of json, as ijson reads it: without a byte order mark, its Structure checked."""

    def __init__(self, file, path, items):
        self.file, self.path, self.structure, self.at_start = file, path, Structure(path, items, MAX_ITEM), True

    def read(self, size):
        block = self.file.read(size)
        if self.at_start and size:
            self.at_start = False
            check_encoding(block, self.path)
            block = block.removeprefix(codecs.BOM_UTF8) or self.file.read(size)
        self.structure.check(block)
        return block


def check_encoding(head, path):
    """Raises DataError if the first bytes of a file are those of text in UTF-16 or UTF-32."""
    encoding = json.detect_encoding(head[:4])
    if not encoding.startswith('utf-8') and head.strip(b'\0'):
        raise DataError(f'{path}: text in {encoding.upper()}; expected UTF-8; save it as UTF-8')


def parse_json(text, place, expected):
    """The value of a json text in bytes. place, expected: for messages. Raises DataError, also for a key given twice, NaN, halves
    of characters and numbers of thousands of digits."""
    def invalid(fault):
        return DataError(f'{place}: incomplete or invalid json ({fault}); expected {expected}')

    def unique(pairs):
        values = dict(pairs)
        if len(values) < len(pairs):
            (key, _), = Counter(key for key, _ in pairs).most_common(1)
            raise invalid(f'key {key!a} is given twice')
        if constants:
            keys = [shown(key) for key, value in pairs if isinstance(value, float) and not math.isfinite(value)]
            raise invalid(f'{constants[0]} is no number of json{f", key {keys[0]}" if keys else ""}')
        return values

    def read_constant(name):
        constants.append(name)
        return float(name)

    constants = []  # NaN, Infinity, -Infinity
    check_encoding(text, place)
    if text.count(b'[') + text.count(b'{') > MAX_DEPTH:
        structure = Structure(place, 0, MAX_BYTES)
        for start in range(0, len(text), BLOCK):
            structure.check(text[start:start + BLOCK])
    try:
        text = text.decode('utf-8-sig')
        value = json.loads(text, object_pairs_hook=unique, parse_constant=read_constant)
        if constants:
            raise invalid(f'{constants[0]} is no number of json')
        if r'\ud' in text.lower():  # may be half of a character, which no text in UTF-8 can hold
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise invalid(f'half of a character, {error.object[error.start]!a}') from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise invalid(error) from None
    except ValueError as error:
        raise error if isinstance(error, DataError) else invalid('a number of thousands of digits') from None
    return value


def read_bytes(path, what):
    """The content of a small file. Raises FileNotFoundError or DataError, which name the file and what it should be."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(printable(f'{path}: no such file; expected {what}'))
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f'{path}: {size:,} bytes; expected at most {MAX_BYTES >> 20} MB: {what}')
    return path.read_bytes()


def read_json(path, what, kind=object):
    """The content of a json file, which must be a `kind` (dict or list). Raises FileNotFoundError or DataError, which name the
    file and what it should be."""
    value = parse_json(read_bytes(path, what), path, what)
    if not isinstance(value, kind):
        raise DataError(f'{path}: expected {what}, {"an object" if kind is dict else "a list"}, found {shown(value)}')
    return value


def read_text(path, what):
    """The text of a file in UTF-8. Raises FileNotFoundError or DataError, which name the file and what it should be."""
    content = read_bytes(path, what)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        check_encoding(content, path)
    try:
        return content.decode('utf-8-sig').replace('\r\n', '\n').replace('\r', '\n')
    except UnicodeDecodeError as error:
        line = content.count(b'\n', 0, error.start) + 1
        raise DataError(f'{path}: line {line}: a byte {content[error.start]:#x} that is no UTF-8; expected {what}') from None


class CountedFile(io.FileIO):
    """A binary file that advances a progress bar by the bytes read."""

    def __init__(self, path, bar):
        super().__init__(path)
        self.bar = bar

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.bar.update(count)
        return count


class ExpandedFile(io.RawIOBase):
    """The content of a gzip file. Raises DataError if it expands to more than people write."""

    def __init__(self, path, file):
        self.path, self.file = path, gzip.GzipFile(fileobj=file)
        self.left = max(FREE_EXPANSION, MAX_EXPANSION * path.stat().st_size)

    def readable(self):
        return True

    def readinto(self, buffer):
        count = self.file.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise DataError(f'{self.path}: expands to more than {MAX_EXPANSION} times its size; is it the file that its name '
                            'says?')
        return count


@contextmanager
def opened(path):
    """A file opened to read bytes, decompressed if its name ends in .gz, with a progress bar of what is read from disk.

    Raises FileNotFoundError, or DataError if the gzip file is damaged; both name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(printable(f'{path}: no such file; download it, or check the name'))
    with (byte_bar(path.name, path.stat().st_size, delay=1) as bar,
          io.BufferedReader(CountedFile(path, bar), 1 << 20) as file):
        try:
            yield io.BufferedReader(ExpandedFile(path, file), 1 << 20) if path.suffix == '.gz' else file
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f'{path}: incomplete or damaged gzip file ({error}); download it again') from None


def numbered_lines(path):
    """Yields (number from 1, line as bytes with its end) of a text file, decompressed if its name ends in .gz.

    Raises FileNotFoundError, or DataError for text in another encoding and for a line that is too long.
    """
    with opened(path) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_BYTES + 1)
            if number == 1:
                check_encoding(line, path)
                line = line.removeprefix(codecs.BOM_UTF8) or file.readline(MAX_BYTES + 1)
            if len(line) > MAX_BYTES:
                raise DataError(f'{path}:{number}: a line of more than {MAX_BYTES >> 20} MB; is it the file that its name says?')
            if not line:
                return
            yield number, line


def check_json(path, multiple_values=False):
    """Reads a json file to its end. multiple_values: one after the other. Raises DataError if it is incomplete or no json."""
    with opened(path) as file:
        try:
            deque(ijson.basic_parse(JsonBlocks(file, path, MAX_DEPTH), multiple_values=multiple_values), maxlen=0)
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(f'{path}: expected complete json ({" ".join(str(error).split())})') from None


def layout(path):
    """'list', 'object', or 'lines' for json lines (objects, each in a line of its own), of a json file that is to be read."""
    with opened(path) as file:
        line = file.readline(MAX_FIRST_LINE).removeprefix(codecs.BOM_UTF8)
        while line.isspace():
            line = file.readline(MAX_FIRST_LINE)
        if not line.lstrip().startswith(b'{'):
            return 'list'
        try:
            values = parse_json(line, path, 'an object').values()
        except DataError:
            return 'object'  # of several lines
        holds_rows = any(isinstance(value, list) and (not value or isinstance(value[0], dict)) for value in values)
        holds_rows |= all(isinstance(value, dict) for value in values)
        return 'lines' if not holds_rows or file.readline(MAX_FIRST_LINE).strip() else 'object'


def stream(path, prefix, what, pairs=False):
    """Yields the items of a json file one by one.

    path: .json or .json.gz; prefix: where they are, as in ijson ('questions.item'; '' with pairs); 'item', those of a list, also
    reads json lines; what: what they are, in the plural, for messages; pairs: yield the (key, value) pairs of an object. Raises
    FileNotFoundError, or DataError if the file is incomplete or no json, or has no such items.
    """
    count, lines = 0, prefix == 'item' and layout(path) == 'lines'
    with opened(path) as file:
        blocks = JsonBlocks(file, path, 0 if lines else 1 + prefix.count('.'))
        items = partial(ijson.items, multiple_values=True) if lines else ijson.kvitems if pairs else ijson.items
        try:
            for item in items(blocks, '' if lines else prefix, use_float=True):
                count += 1
                yield item
        except (ijson.JSONError, UnicodeDecodeError) as error:
            ending = Path(str(path).removesuffix('.gz')).suffix
            if not count and ending in ('.csv', '.tsv'):
                raise DataError(f'{path}: expected json or json lines, found {ending}; write its rows as json '
                                '(data/vqa/process_vqa.py --split converts questions and answers)') from None
            fault = ' '.join(str(error).split())  # the parser draws an arrow below the fault
            raise DataError(f'{path}: incomplete or invalid json after {count:,} {what} ({fault}); download it again') from None
    if not count:
        place = f'at {prefix.replace(".item", "[...]")}' if '.' in prefix else 'in a list or as json lines'
        raise DataError(f'{path}: expected {what} {"as the values of one object" if pairs else place}, found none; is it the '
                        'file that its name says?')


def field(item, key, kind, path):
    """item[key], which must be a `kind` (a type). Raises DataError that names the file, the key and the value found."""
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f'{path}: key "{key}": expected {kind.__name__}, found {shown(value)} in {shown(item)}; is it the file '
                        'that its name says?')
    return value


def first_duplicate(items):
    """The first of some items that equals an earlier one, or None."""
    earlier = set()
    return next((item for item in items if item in earlier or earlier.add(item)), None)


def some(names, most=3):
    """The first names of a list, for a message."""
    names = [printable(name) for name in dict.fromkeys(names)]
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


def write_list(path, items):
    """Writes a json list, an item a line and one at a time; returns how many."""
    count = 0
    with open(path, 'w', encoding='utf-8') as file:
        for count, item in enumerate(items, 1):
            file.write(('[\n' if count == 1 else ',\n') + json.dumps(item))
        file.write('\n]\n' if count else '[]\n')
    return count
