"""The TSV files of bottom-up attention (`*_obj36.tsv`): one image a line, every line checked.

Ten fields, tab separated, no header: img_id, img_h, img_w, objects_id (int64), objects_conf (float32), attrs_id
(int64), attrs_conf (float32), num_boxes, boxes (float32, pixels, num_boxes x 4), features (float32, num_boxes x f).
The arrays are base64 of their little-endian bytes. Lines end in CR LF, as Python's csv.DictWriter left them in the
published files; a bare LF is read as well. num_boxes may differ from line to line, f may not.

The published .zip files are read as streams, never unpacked: if `train2014_obj36.tsv` is missing, or the zip itself is named,
`train2014_obj36.zip` is opened and its member of that name (in any folder inside), or else its only `.tsv`, is read.
"""

import codecs
import contextlib
import hashlib
import io
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from files.atomic import atomic_file, byte_bar
from files.json_files import read_json
from regions.image_regions import ARRAYS, COLUMNS, OPTIONAL, ImageRegions, RegionError, array_sizes, check  # noqa: F401
from regions.tsv_lines import FIELDS, encode, label, other_form, parse, recognise  # noqa: F401

FEW = 20  # faults that are held back until the first valid line
BUFFER, LINE_LIMIT = 1 << 20, 64 << 20  # bytes
ZIP_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)  # the last: encrypted, or unknown compression

OTHER_FORMATS = {b'\x89HDF': 'HDF5', b'\x93NUMPY': 'a NumPy array', b'PK\x03\x04': 'a zip, as of NumPy (.npz) or PyTorch',
                 b'\x80': 'a pickle'}  # by their first bytes


# Where the lines come from

@dataclass(frozen=True)
class TsvFile:
    """`size` bytes of TSV in the file `path`; if that is a zip, `member` is their name in it. `where` is for messages."""

    path: Path
    size: int
    mtime_ns: int
    member: str | None = None

    @property
    def where(self) -> str:
        return f'{self.path}/{self.member}' if self.member else str(self.path)

    @contextlib.contextmanager
    def open(self):
        """The TSV's bytes from its start, a binary stream. Raises RegionError, also for read errors in the block."""
        errors = OSError if self.member is None else ZIP_ERRORS
        try:
            if self.member is None:
                with open(self.path, 'rb', BUFFER) as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                    yield io.BufferedReader(file, BUFFER)
        except errors as error:
            advice = 'check the path and its rights' if isinstance(error, OSError) else 'the zip is damaged, fetch it again'
            raise RegionError(f'{self.where}: cannot be read ({error}); {advice}') from error

    def lines(self) -> Iterator[bytes]:
        """Each line with its end, one at a time, under a progress bar in bytes, without a byte order mark. Raises RegionError as
        `open`."""
        with self.open() as stream, byte_bar(self.path.name, self.size) as bar:
            start = stream.peek(4)
            if form := next((form for begin, form in OTHER_FORMATS.items() if start.startswith(begin)), None):
                raise RegionError(f'{self.where}: expected a TSV, found {form}; bash run/regions.bash import {self.path} --out '
                                  'NEW.tsv reads it, or says how to convert it')
            if start.startswith(codecs.BOM_UTF8):
                stream.read(3)
            while line := stream.readline(LINE_LIMIT):
                if len(line) == LINE_LIMIT and not line.endswith(b'\n'):
                    raise RegionError(f'{self.where}: expected lines of up to {LINE_LIMIT} bytes, found a longer one that '
                                      f'begins with {line[:40]!r}; is it such a TSV? Fetch it again')
                bar.update(len(line))
                yield line

    def sha256(self) -> str:
        """The digest of the TSV, the same whether it comes from a zip or not."""
        digest = hashlib.sha256()
        for line in self.lines():
            digest.update(line)
        return digest.hexdigest()

    def meta(self, sha256: str) -> dict:
        """What a store's meta.json records as its source; size and sha256 are those of the TSV text."""
        return {'name': path_text(self.path.name), 'size': self.size, 'mtime_ns': self.mtime_ns, 'sha256': sha256}


def find(path) -> TsvFile | None:
    """The TSV at `path`, or in the zip of that name, or in `path` if that is a .zip. None if there is neither.

    Raises RegionError for a zip without it.
    """
    path = Path(path)
    archive = path.with_suffix('.zip') if path.suffix == '.tsv' and not path.exists() else path
    if not archive.is_file():
        return None
    stat = archive.stat()
    if archive.suffix != '.zip':
        return TsvFile(path, stat.st_size, stat.st_mtime_ns)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if info.filename.endswith('.tsv')]
    except ZIP_ERRORS as error:
        raise RegionError(f'{archive}: expected a whole zip file, found none ({error}); fetch it again') from None
    name = path.with_suffix('.tsv').name
    matches = [info for info in members if os.path.basename(info.filename) == name] or members
    if len(matches) != 1:
        names = ', '.join(info.filename for info in matches[:3]) or 'none'
        raise RegionError(f'{archive}: expected one {name} in it, found {names}; extract the file by hand')
    return TsvFile(archive, matches[0].file_size, stat.st_mtime_ns, matches[0].filename)


def need(path) -> TsvFile:
    """As `find`, but raises RegionError where that returns None."""
    if (file := find(path)) is None:
        raise RegionError(f'{path}: cannot be read, there is no such file (nor, of a .tsv, a .zip); correct the path')
    return file


def path_text(path) -> str:
    """A path as text that UTF-8 can hold; bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode(errors='backslashreplace')


def provenance_path(tsv_path) -> Path:
    """The json file that says how a TSV was made, for which the TSV itself has no room."""
    path = Path(tsv_path)
    return Path(f'{path.with_suffix(".tsv") if path.suffix == ".zip" else path}.provenance.json')


def provenance(file: TsvFile) -> dict:
    """How the TSV was made, {} if no file at `provenance_path` says so. Raises DataError if that is no object."""
    path = provenance_path(file.path)
    return read_json(path, f'json that says how {file.path.name} was made', dict) if path.exists() else {}


def listed(faults: list, most: int = 20) -> str:
    """Faults for a message, a line each: the first ones, and how many more there are."""
    more = f'\n  and {len(faults) - most} more' if len(faults) > most else ''
    return '\n'.join(f'  {fault}' for fault in faults[:most]) + more


# Reading and writing

def read(file, on_fault: Callable[[RegionError], None] | None = None,
         wanted: Callable[[bytes], bool] | None = None) -> Iterator[tuple[int, ImageRegions]]:
    """Yield (line number from 1, ImageRegions) for each complete line of a TSV, holding one line at a time.

    `file` is a TsvFile, or the path of a TSV or of a published zip. A faulty line, or one whose image id an earlier line
    has, raises RegionError; with `on_fault` the error is passed to it and reading goes on. The first complete line sets the
    feature size f. With `wanted` only lines for whose image id (bytes) it returns True are decoded and checked. Raises
    RegionError too if the file cannot be read to its end; lines before a zip's damage may be wrong.
    """
    for number, _, image in read_lines(file, on_fault, wanted):
        yield number, image


def read_lines(file, on_fault=None, wanted=None) -> Iterator[tuple[int, bytes, ImageRegions]]:
    """As `read`, but yields (line number, the line's bytes as they are in the file, ImageRegions)."""
    file = file if isinstance(file, TsvFile) else need(file)
    f, f_line, lines_of, early = None, 0, {}, EarlyFaults(file, on_fault)
    for number, line in enumerate(file.lines(), 1):
        if wanted and not wanted(line.split(b'\t', 1)[0]):
            continue
        try:
            image = parse(line, f, f_line)
            if image.img_id in lines_of:
                raise RegionError(f'field "img_id": expected a new id, found that of line {lines_of[image.img_id]}; remove one '
                                  'of the two lines')
        except RegionError as error:
            if f is None:
                early.add(number, line, error)
            else:
                early.report(number, line, error)
            continue
        if f is None:
            early.flush()
            f, f_line = image.features.shape[1], number
        lines_of[image.img_id] = number
        yield number, line, image
    if f is None:
        early.end()


class EarlyFaults:
    """Faults before the first valid line. If all are alike, the file has another layout, which is said once."""

    def __init__(self, file: TsvFile, on_fault):
        self.file, self.on_fault, self.layout = file, on_fault, None
        self.faults, self.kinds, self.count, self.unlisted = [], set(), 0, 0

    def report(self, number: int, line: bytes, error: RegionError) -> None:
        fault = RegionError(f'{self.file.where}:{number}: image {label(line)}: {error}')
        if self.on_fault is None:
            raise fault from None
        self.on_fault(fault)

    def add(self, number: int, line: bytes, error: RegionError) -> None:
        """Raises RegionError for a header line, or where the first two lines are those of one known layout."""
        layout, self.count = recognise([line]) if self.count < 2 else None, self.count + 1
        if layout and (layout.header or self.on_fault is None or (self.layout and layout.fields == self.layout.fields)):
            raise self._other_layout(layout)
        self.layout = layout if self.count == 1 else self.layout
        self.kinds.add(re.sub(r"[\d.e+-]+|'.*?'", '', str(error)))
        if self.on_fault is None or len(self.kinds) > 1:
            self.flush()
            self.report(number, line, error)
        elif len(self.faults) < FEW:
            self.faults.append((number, line[:200], error))
        else:
            self.unlisted += 1

    def flush(self) -> None:
        """Report the faults that were held back: they were not alike, or the file has a valid line."""
        for fault in self.faults:
            self.report(*fault)
        if self.unlisted:
            self.on_fault(RegionError(f'{self.file.where}: {self.unlisted:,} more lines have faults like these'))
        self.faults, self.unlisted = [], 0

    def end(self) -> None:
        """The file has no valid line. Raises RegionError if all lines have the same fault."""
        if self.count == 1 and self.layout:
            raise self._other_layout(self.layout)
        if self.count > 1 and self.faults:
            number, line, error = self.faults[0]
            raise RegionError(f'{self.file.where}: all its {self.count:,} lines have the same fault, so that the file is not '
                              f'damaged but of another form. Line {number}, image {label(line)}: {other_form(str(error))}')
        self.flush()

    def _other_layout(self, layout) -> RegionError:
        return RegionError(f'{self.file.where}: is a TSV of another layout ({layout.name}); bash run/regions.bash import '
                           f'{self.file.path} --out NEW.tsv reads it')


def write(path, images: Iterable[ImageRegions]) -> int:
    """Write `images` to `path` and return how many; the file appears under its name only when complete.

    Raises RegionError, naming the image and its position from 1, for one that `read` would refuse, or that has no features
    or has an optional array: a TSV has no field for these.
    """
    count = 0
    with atomic_file(path) as file:
        for count, image in enumerate(checked(path, images, check_for_tsv), 1):  # noqa: B007, returned after the loop
            file.write(encode(image))
    return count


# Checks

def check_for_tsv(image: ImageRegions) -> ImageRegions:
    """As `check`, but also raises RegionError for what a TSV has no field for."""
    if image.features is None:
        raise RegionError('field "features": expected an array, found none: a TSV always has features; write a region store')
    for name in (*OPTIONAL, 'image_feature'):
        if getattr(image, name) is not None:
            raise RegionError(f'field "{name}": a TSV has no such field; write a region store, or leave it out '
                              f'(dataclasses.replace(image, {name}=None))')
    return check(image)


def check_sizes(image: ImageRegions, sizes: dict[str, int]) -> None:
    """Raises RegionError if the arrays of an image have other sizes than those of the first, `sizes`."""
    for name, size in array_sizes(image).items():
        if size != sizes[name]:
            raise RegionError(f'field "{name}": expected {sizes[name]} numbers a region as in the first image, found {size}')


def checked(path, images: Iterable[ImageRegions], check_image=check) -> Iterator[ImageRegions]:
    """The images to be written to `path`, one after the other, as `check_image` returns them.

    Raises RegionError, naming image and position from 1, for one that is refused, whose id came before, or whose arrays are
    others than those of the first image.
    """
    sizes, positions = None, {}
    for position, image in enumerate(images, 1):
        try:
            image = check_image(image)
            if image.img_id in positions:
                raise RegionError(f'expected a new id, found that of number {positions[image.img_id]}')
            sizes = sizes or array_sizes(image)
            check_sizes(image, sizes)
        except RegionError as error:
            raise RegionError(f'{path}: image {image.img_id} (number {position} to be written): {error}; nothing was '
                              'written, mend the regions that were given') from None
        positions[image.img_id] = position
        yield image
