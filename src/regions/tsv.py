"""The TSV files of bottom-up attention (`*_obj36.tsv`): one image a line, every line checked.

Ten fields, tab separated, no header: img_id, img_h, img_w, objects_id (int64), objects_conf (float32), attrs_id
(int64), attrs_conf (float32), num_boxes, boxes (float32, pixels, num_boxes x 4), features (float32, num_boxes x f).
The arrays are base64 of their little-endian bytes. Lines end in CR LF, as Python's csv.DictWriter left them in the
published files; a bare LF is read as well. num_boxes may differ from line to line, f may not.

The published .zip files are read as streams, never unpacked: if `train2014_obj36.tsv` is missing, or the zip itself is named,
`train2014_obj36.zip` is opened and its member of that name (in any folder inside), or else its only `.tsv`, is read.
"""

import base64
import binascii
import contextlib
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pybase64

from files.atomic import atomic_file, byte_bar
from files.json_files import read_json
from files.text import InputError

FIELDS = ('img_id', 'img_h', 'img_w', 'objects_id', 'objects_conf', 'attrs_id', 'attrs_conf', 'num_boxes', 'boxes',
          'features')
# Array of ImageRegions -> its field in the file and its dtype, in the file's order.
ARRAYS = {'classes': ('objects_id', '<i8'), 'class_conf': ('objects_conf', '<f4'), 'attributes': ('attrs_id', '<i8'),
          'attribute_conf': ('attrs_conf', '<f4'), 'boxes': ('boxes', '<f4'), 'features': ('features', '<f4')}
OPTIONAL = {'class_probabilities': '<f2'}  # arrays (o, any number) that a region store may hold in addition, not a TSV
COLUMNS = ARRAYS | {name: (name, dtype) for name, dtype in OPTIONAL.items()}
PROBABILITIES = {'class_conf': 1e-3, 'attribute_conf': 1e-3, 'class_probabilities': 0}  # column -> how far above 1 by rounding
DAMAGED = 'damaged: fetch the file again, or extract the image anew'
ROUNDING = 1.0  # pixels a detector's rounding may put a box outside its picture
BUFFER, LINE_LIMIT = 1 << 20, 64 << 20  # bytes
ZIP_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)  # the last: encrypted, or unknown compression


class RegionError(InputError):
    """Regions that cannot be used; the message names file, line or image, what was expected, found, and what to do."""


@dataclass(frozen=True, eq=False)
class ImageRegions:
    """The o regions of one image, with f numbers a region; height and width in pixels.

    The background column is already removed from the ids: classes are 0..1599 and attributes 0..399 for the
    published Visual Genome detector. class_probabilities keeps the detector's order of classes; VL-BERT expects 1601, the
    background first.
    """

    img_id: str
    height: int
    width: int
    classes: np.ndarray  # (o,) int64
    class_conf: np.ndarray  # (o,) float32
    attributes: np.ndarray  # (o,) int64
    attribute_conf: np.ndarray  # (o,) float32
    boxes: np.ndarray  # (o, 4) float32, pixels x1, y1, x2, y2
    features: np.ndarray | None  # (o, f) float32; None: boxes only
    class_probabilities: np.ndarray | None = None  # (o, num_classes) float16, 0..1


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
        """Each line with its end, one at a time, under a progress bar in bytes. Raises RegionError as `open`."""
        with self.open() as stream, byte_bar(self.path.name, self.size) as bar:
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
        return {'name': self.path.name, 'size': self.size, 'mtime_ns': self.mtime_ns, 'sha256': sha256}


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


def provenance_path(tsv_path) -> Path:
    """The json file that says how a TSV was made, for which the TSV itself has no room."""
    path = Path(tsv_path)
    return Path(f'{path.with_suffix(".tsv") if path.suffix == ".zip" else path}.provenance.json')


def provenance(file: TsvFile) -> dict:
    """How the TSV was made, {} if no file at `provenance_path` says so. Raises DataError or RegionError if that is no object."""
    path, what = provenance_path(file.path), f'a json object that says how {file.path.name} was made'
    content = read_json(path, what) if path.exists() else {}
    if not isinstance(content, dict):
        raise RegionError(f'{path}: expected {what}, found {type(content).__name__}; mend or remove it')
    return content


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
    f, f_line, lines_of = None, 0, {}
    for number, line in enumerate(file.lines(), 1):
        if wanted and not wanted(line.split(b'\t', 1)[0]):
            continue
        try:
            image = parse(line, f, f_line)
            if image.img_id in lines_of:
                raise RegionError(f'field "img_id": expected a new id, found that of line {lines_of[image.img_id]}; remove one '
                                  'of the two lines')
        except RegionError as error:
            fault = RegionError(f'{file.where}:{number}: image {label(line)}: {error}')
            if on_fault is None:
                raise fault from None
            on_fault(fault)
            continue
        if f is None:
            f, f_line = image.features.shape[1], number
        lines_of[image.img_id] = number
        yield number, line, image


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


def encode(image: ImageRegions) -> bytes:
    """The line of an image, which has been checked."""
    columns = {field: base64.b64encode(np.ascontiguousarray(getattr(image, name), dtype)).decode()
               for name, (field, dtype) in ARRAYS.items()}
    columns |= {'img_id': image.img_id, 'img_h': image.height, 'img_w': image.width, 'num_boxes': len(image.boxes)}
    return ('\t'.join(str(columns[field]) for field in FIELDS) + '\r\n').encode()


# Checks

def check(image: ImageRegions, f: int | None = None) -> ImageRegions:
    """Return `image` with its boxes clipped to the picture, or raise RegionError saying which field is wrong.

    Boxes may lie up to a pixel outside, for a detector's rounding. `f` is the feature size expected, if known; without
    it, or with 0, features may be None.
    """
    img_id = image.img_id
    if (not isinstance(img_id, str) or not img_id or img_id != img_id.strip() or not img_id.isprintable()
            or '..' in img_id.split('/')):  # as a file's name it would leave its folder
        raise RegionError(f'field "img_id": expected a name with no white space around it, no control characters and no "..", '
                          f'found {img_id!r:.100}')
    for field, size in (('img_h', image.height), ('img_w', image.width)):
        if not isinstance(size, int | np.integer) or not 0 < size < 2**31:
            raise RegionError(f'field "{field}": expected a positive number of pixels, found {size!r}')
    o = len(image.classes) if np.ndim(image.classes) else 0
    if o < 1:
        raise RegionError('field "num_boxes": expected at least 1, found 0')
    for name, (field, dtype) in COLUMNS.items():
        array = getattr(image, name)
        if array is None and (name in OPTIONAL or (name == 'features' and not f)):
            continue
        if name == 'features' or name in OPTIONAL:
            size = f if name == 'features' else None
            shape = (o, size or max(1, np.shape(array)[-1] if np.ndim(array) else 1))
        else:
            shape = (o, 4) if name == 'boxes' else (o,)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
            how = f'; .astype(np.{np.dtype(dtype)}) converts it' if getattr(array, 'dtype', dtype) != dtype else ''
            raise RegionError(f'field "{field}": expected an array of {np.dtype(dtype)} {shape}, found '
                              f'{getattr(array, "dtype", type(array).__name__)} {np.shape(array)}{how}')
        if dtype == '<i8' and array.min() < 0:
            raise RegionError(f'field "{field}": expected ids of 0 and more, found {array.min()} in region '
                              f'{array.argmin()}')
        if dtype != '<i8' and not np.isfinite(array).all():
            region = np.argwhere(~np.isfinite(array))[0, 0]
            raise RegionError(f'field "{field}": expected finite numbers, found NaN or infinity in region {region}')
        if name in PROBABILITIES and not (array.min() >= 0 and array.max() <= 1 + PROBABILITIES[name]):
            raise RegionError(f'field "{field}": expected numbers from 0 to 1, found {array.min()} to {array.max()}')
    limits = np.array([image.width, image.height] * 2, np.float32)
    boxes = image.boxes
    wrong = (boxes[:, :2] > boxes[:, 2:]) | (boxes < -ROUNDING)[:, :2] | (boxes > limits + ROUNDING)[:, 2:]  # (o, 2)
    if wrong.any():
        region = np.argwhere(wrong)[0, 0]
        raise RegionError(f'field "boxes": expected 0 <= x1 <= x2 <= {image.width} and 0 <= y1 <= y2 <= '
                          f'{image.height}, found {boxes[region].tolist()} in region {region}')
    if (boxes < 0).any() or (boxes > limits).any():
        image = replace(image, boxes=np.clip(boxes, np.float32(0), limits))
    return image


def check_for_tsv(image: ImageRegions) -> ImageRegions:
    """As `check`, but also raises RegionError for what a TSV has no field for."""
    if image.features is None:
        raise RegionError('field "features": expected an array, found none: a TSV always has features; write a region store')
    for name in OPTIONAL:
        if getattr(image, name) is not None:
            raise RegionError(f'field "{name}": a TSV has no such field; write a region store, or leave it out '
                              f'(dataclasses.replace(image, {name}=None))')
    return check(image)


def array_sizes(image: ImageRegions) -> dict[str, int]:
    """Numbers a region of the arrays that may be missing or of any size; 0 of those that are missing."""
    arrays = {name: getattr(image, name) for name in ('features', *OPTIONAL)}
    return {name: 0 if array is None else array.shape[1] for name, array in arrays.items()}


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
            for name, size in array_sizes(image).items():
                if size != sizes[name]:
                    raise RegionError(f'field "{name}": expected {sizes[name]} numbers a region as in the first image, '
                                      f'found {size}')
        except RegionError as error:
            raise RegionError(f'{path}: image {image.img_id} (number {position} to be written): {error}; nothing was '
                              'written, mend the regions that were given') from None
        positions[image.img_id] = position
        yield image


# A line

def parse(line: bytes, f: int | None, f_line: int) -> ImageRegions:
    """One line of the file as ImageRegions; `f` is the feature size that line `f_line` set, if any did."""
    end = len(line) - line.endswith(b'\n') - line.endswith(b'\r\n')
    count, ends = line.count(b'\t', 0, end) + 1, [-1]
    if count != len(FIELDS):
        raise RegionError(f'expected {len(FIELDS)} fields separated by tabs, found {count}; the line is cut off or {DAMAGED}')
    while len(ends) < count:
        ends.append(line.index(b'\t', ends[-1] + 1))
    view = memoryview(line)  # copies of nearly half a megabyte would take longer than all the rest
    fields = {field: view[start + 1:stop] for field, (start, stop) in zip(FIELDS, pairwise([*ends, end]), strict=True)}
    try:
        img_id = str(fields['img_id'], 'utf-8')
    except UnicodeDecodeError as error:
        raise RegionError(f'field "img_id": expected UTF-8, found byte 0x{fields["img_id"][error.start]:02x}; write '
                          'the file anew in UTF-8') from None
    height, width, o = (_whole_number(fields, field) for field in ('img_h', 'img_w', 'num_boxes'))
    if o < 1:
        raise RegionError('field "num_boxes": expected at least 1, found 0; extract the image anew, or leave it out')
    arrays = {}
    for name, (field, dtype) in ARRAYS.items():
        columns = {'boxes': 4, 'features': f}.get(name, 1)
        array = _array(fields, field, np.dtype(dtype), o, columns, f'; line {f_line} set {f} a region' if f else '')
        arrays[name] = array if name in ('boxes', 'features') else array[:, 0]  # (o, 4), (o, f) or (o,)
    try:
        return check(ImageRegions(img_id, height, width, **arrays), f)
    except RegionError as error:
        raise RegionError(f'{error}; correct it where the file was made, or remove the line') from None


def _whole_number(fields: dict[str, memoryview], field: str) -> int:
    text = bytes(fields[field])
    if not text.isdigit() or len(text) > 9:  # int() takes blanks, signs and underscores, and any length
        raise RegionError(f'field "{field}": expected a whole number, found {text[:40]!r}; the line is {DAMAGED}')
    return int(text)


def _array(fields: dict[str, memoryview], field: str, dtype: np.dtype, o: int, columns: int | None, why: str) -> np.ndarray:
    """Decode a field as (o, columns); `columns` None takes as many as there are. `why` explains feature sizes."""
    text = fields[field]
    try:
        data = np.frombuffer(pybase64.b64decode_as_bytearray(text, validate=True), np.uint8)
    except binascii.Error as error:
        raise RegionError(f'field "{field}": expected base64, found {len(text)} characters that are not ({error}); '
                          f'the line is cut off or {DAMAGED}') from None
    if columns is None:
        columns = max(1, len(data) // (o * dtype.itemsize))
    expected = o * columns * dtype.itemsize
    if len(data) != expected:
        shape = f'{o} x {columns}' if field in ('boxes', 'features') else f'{o}'
        raise RegionError(f'field "{field}": expected {shape} x {dtype.itemsize} = {expected} bytes, found {len(data)}'
                          f'{why if field == "features" else ""}; the line is cut off or {DAMAGED}')
    return data.view(dtype).reshape(o, columns)


def label(line: bytes) -> str:
    """The image id of a complete or incomplete line, shortened for a message."""
    label = line.split(b'\t', 1)[0][:80].decode('utf-8', 'backslashreplace').rstrip('\r\n')
    return label if label and label.isprintable() else repr(label)
