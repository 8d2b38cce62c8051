"""The TSV files of bottom-up attention (`*_obj36.tsv`): one image a line, every line checked.

Ten fields, tab separated, no header: img_id, img_h, img_w, objects_id (int64), objects_conf (float32), attrs_id
(int64), attrs_conf (float32), num_boxes, boxes (float32, pixels, num_boxes x 4), features (float32, num_boxes x f).
The arrays are base64 of their little-endian bytes. Lines end in CR LF, as Python's csv.DictWriter left them in the
published files; a bare LF is read as well. num_boxes may differ from line to line, f may not.
"""

import base64
import binascii
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pybase64

from regions import readers
from regions.readers import RegionError, Source

FIELDS = ('img_id', 'img_h', 'img_w', 'objects_id', 'objects_conf', 'attrs_id', 'attrs_conf', 'num_boxes', 'boxes',
          'features')
# Array of ImageRegions -> its field in the file and its dtype, in the file's order.
ARRAYS = {'classes': ('objects_id', '<i8'), 'class_conf': ('objects_conf', '<f4'), 'attributes': ('attrs_id', '<i8'),
          'attribute_conf': ('attrs_conf', '<f4'), 'boxes': ('boxes', '<f4'), 'features': ('features', '<f4')}
TWICE = 'field "img_id": expected a new id, found that of line {}; remove one of the two lines'
DAMAGED = 'damaged: fetch the file again, or extract the image anew'
ROUNDING = 1.0  # pixels a detector's rounding may put a box outside its picture


@dataclass(frozen=True, eq=False)
class ImageRegions:
    """The o regions of one image, with f numbers a region; height and width in pixels.

    The background column is already removed from the ids: classes are 0..1599 and attributes 0..399 for the
    published Visual Genome detector.
    """

    img_id: str
    height: int
    width: int
    classes: np.ndarray  # (o,) int64
    class_conf: np.ndarray  # (o,) float32
    attributes: np.ndarray  # (o,) int64
    attribute_conf: np.ndarray  # (o,) float32
    boxes: np.ndarray  # (o, 4) float32, pixels x1, y1, x2, y2
    features: np.ndarray  # (o, f) float32


def read(source, on_fault: Callable[[RegionError], None] | None = None,
         wanted: Callable[[bytes], bool] | None = None) -> Iterator[tuple[int, ImageRegions]]:
    """Yield (line number from 1, ImageRegions) for each whole line of a TSV, holding one line at a time.

    `source` is a path (of a TSV, or of a published zip) or an readers.Source. A faulty line, or one whose image id an
    earlier line has, raises RegionError; with `on_fault` the error is handed to it and reading goes on. The first whole
    line sets the feature size f. With `wanted` only lines for whose image id (bytes) it returns True are decoded and
    checked. Raises RegionError too if the file cannot be read to its end; lines before a zip's damage may have suffered.
    """
    for number, _, image in read_lines(source, on_fault, wanted):
        yield number, image


def read_lines(source, on_fault=None, wanted=None) -> Iterator[tuple[int, bytes, ImageRegions]]:
    """As `read`, but yields (line number, the line's bytes as they are in the file, ImageRegions)."""
    source = source if isinstance(source, Source) else readers.need(source)
    f, f_line, lines_of = None, 0, {}
    for number, line in enumerate(source.lines(), 1):
        if wanted and not wanted(line.split(b'\t', 1)[0]):
            continue
        try:
            image = parse(line, f, f_line)
            if image.img_id in lines_of:
                raise RegionError(TWICE.format(lines_of[image.img_id]))
        except RegionError as error:
            fault = RegionError(f'{source.where}:{number}: image {label(line)}: {error}')
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

    Raises RegionError for an image that `read` would refuse, naming it and its position from 1.
    """
    f, positions = None, {}
    with writing(path) as file:
        for position, image in enumerate(images, 1):
            image = check_next(image, f, positions, position, path)
            f = image.features.shape[1]
            file.write(encode(image))
    return len(positions)


def encode(image: ImageRegions) -> bytes:
    """The line of an image, which has been checked."""
    columns = {field: base64.b64encode(np.ascontiguousarray(getattr(image, name), dtype)).decode()
               for name, (field, dtype) in ARRAYS.items()}
    columns |= {'img_id': image.img_id, 'img_h': image.height, 'img_w': image.width, 'num_boxes': len(image.boxes)}
    return ('\t'.join(str(columns[field]) for field in FIELDS) + '\r\n').encode()


@contextlib.contextmanager
def writing(path):
    """A binary file to write, which appears as `path`, in place of what is there, when the block has run_main well."""
    temporary = Path(f'{path}.tmp-{os.getpid()}')
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_next(image: ImageRegions, f: int | None, positions: dict[str, int], position: int, path) -> ImageRegions:
    """`check` for writers: also refuses an id in `positions` (id -> position of the images before), then enters it."""
    try:
        image = check(image, f)
        if image.img_id in positions:
            raise RegionError(f'expected a new id, found that of number {positions[image.img_id]}')
    except RegionError as error:
        raise RegionError(f'{path}: image {image.img_id} (number {position} to be written): {error}; nothing was '
                          'written, mend the regions that were given') from None
    positions[image.img_id] = position
    return image


def check(image: ImageRegions, f: int | None = None) -> ImageRegions:
    """Return `image` with its boxes clipped to the picture, or raise RegionError saying which field is wrong.

    Boxes may lie up to a pixel outside, for a detector's rounding. `f` is the feature size expected, if known.
    """
    img_id = image.img_id
    if not isinstance(img_id, str) or not img_id or img_id != img_id.strip() or not img_id.isprintable():
        raise RegionError(f'field "img_id": expected a name with no white space around it and no control characters, '
                          f'found {img_id!r}')
    for field, size in (('img_h', image.height), ('img_w', image.width)):
        if not isinstance(size, int | np.integer) or not 0 < size < 2**31:
            raise RegionError(f'field "{field}": expected a positive number of pixels, found {size!r}')
    o = len(image.classes) if np.ndim(image.classes) else 0
    if o < 1:
        raise RegionError('field "num_boxes": expected at least 1, found 0')
    for name, (field, dtype) in ARRAYS.items():
        array = getattr(image, name)
        if name == 'features':
            shape = (o, f or max(1, np.shape(array)[-1] if np.ndim(array) else 1))
        else:
            shape = (o, 4) if name == 'boxes' else (o,)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
            how = f'; .astype(np.{np.dtype(dtype)}) converts it' if getattr(array, 'dtype', dtype) != dtype else ''
            raise RegionError(f'field "{field}": expected an array of {np.dtype(dtype)} {shape}, found '
                              f'{getattr(array, "dtype", type(array).__name__)} {np.shape(array)}{how}')
        if dtype == '<i8' and array.min() < 0:
            raise RegionError(f'field "{field}": expected ids of 0 and more, found {array.min()} in region '
                              f'{array.argmin()}')
        if dtype == '<f4' and not np.isfinite(array).all():
            region = np.argwhere(~np.isfinite(array))[0, 0]
            raise RegionError(f'field "{field}": expected finite numbers, found NaN or infinity in region {region}')
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
    """The image id of a line, whole or not, fit to stand in a message."""
    label = line.split(b'\t', 1)[0][:80].decode('utf-8', 'backslashreplace').rstrip('\r\n')
    return label if label and label.isprintable() else repr(label)
