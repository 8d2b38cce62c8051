"""The lines of TSV files of regions: decoding and encoding one image, also in other layouts, which `importers` reads."""

import base64
import binascii
import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pybase64

from files.text import printable, shown
from regions.image_regions import ARRAYS, NAMES, ImageRegions, RegionError, check

FIELDS = ('img_id', 'img_h', 'img_w', 'objects_id', 'objects_conf', 'attrs_id', 'attrs_conf', 'num_boxes', 'boxes',
          'features')
BOTTOM_UP = ('img_id', 'img_w', 'img_h', 'num_boxes', 'boxes', 'features')  # of the original bottom-up attention
NEEDED = set(BOTTOM_UP)
# Field -> all its names in header lines.
FIELD_NAMES = {{'ids': 'img_id', 'height': 'img_h', 'width': 'img_w'}.get(name, ARRAYS.get(name, (name,))[0]): (name, *names)
               for name, names in NAMES.items()}
DAMAGED = 'damaged: fetch the file again, or extract the image anew'


@dataclass(frozen=True)
class Layout:
    """How the lines of a TSV are written. name: for messages, '' for the layout that is not another one."""

    fields: tuple[str, ...] = FIELDS  # in the order of the file; '' for a column that is not read
    name: str = ''
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)  # of fields that are not written as in ARRAYS
    quoted: bool = False  # base64 is written as b'...', as Python prints bytes
    header: bool = False  # the first line names the columns


STANDARD = Layout()


def parse(line: bytes, f: int | None, f_line: int) -> ImageRegions:
    """One line of the file as ImageRegions; `f` is the feature size that line `f_line` set, if any did."""
    image = decode(line, STANDARD, f, f_line)
    try:
        return check(image, f)
    except RegionError as error:
        advice = '' if 'regions.bash import' in str(error) else '; correct it where the file was made, or remove the line'
        raise RegionError(f'{error}{advice}') from None


def decode(line: bytes, layout: Layout, f: int | None = None, f_line: int = 0) -> ImageRegions:
    """As `parse`, of a line in any layout, but unchecked. Missing classes, attributes and confidences are 0."""
    end = len(line) - line.endswith(b'\n') - line.endswith(b'\r\n')
    count, ends = line.count(b'\t', 0, end) + 1, [-1]
    if count != len(layout.fields):
        raise RegionError(f'expected {len(layout.fields)} fields separated by tabs, found {count}; the line is cut off or '
                          f'{DAMAGED}')
    while len(ends) < count:
        ends.append(line.index(b'\t', ends[-1] + 1))
    view = memoryview(line)  # copies of nearly half a megabyte would take longer than all the rest
    fields = {field: view[start + 1:stop] for field, (start, stop) in zip(layout.fields, pairwise([*ends, end]), strict=True)}
    if layout.quoted:
        fields = {field: memoryview(unquoted(bytes(text))) for field, text in fields.items()}
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
        if field not in fields:
            arrays[name] = np.zeros(o, dtype)
            continue
        written, columns = np.dtype(layout.dtypes.get(field, dtype)), {'boxes': 4, 'features': f}.get(name, 1)
        array = _array(fields, field, written, o, columns, f'; line {f_line} set {f} a region' if f else '')
        array = array.astype(dtype) if field in layout.dtypes else array
        arrays[name] = array if name in ('boxes', 'features') else array[:, 0]  # (o, 4), (o, f) or (o,)
    return ImageRegions(img_id, height, width, **arrays)


def encode(image: ImageRegions) -> bytes:
    """The line of an image, which has been checked."""
    columns = {field: base64.b64encode(np.ascontiguousarray(getattr(image, name), dtype)).decode()
               for name, (field, dtype) in ARRAYS.items()}
    columns |= {'img_id': image.img_id, 'img_h': image.height, 'img_w': image.width, 'num_boxes': len(image.boxes)}
    return ('\t'.join(str(columns[field]) for field in FIELDS) + '\r\n').encode()


def label(line: bytes) -> str:
    """The image id of a complete or incomplete line, shortened for a message."""
    return printable(line.split(b'\t', 1)[0][:80].rstrip(b'\r\n')) or "''"


def other_form(reason: str) -> str:
    """The reason of a fault that all lines or images have, without the advice for damaged lines, with what to do."""
    short = reason.replace(f'; the line is cut off or {DAMAGED}', '').replace(f'; the line is {DAMAGED}', '')
    if short != reason:
        return f'{short}; the columns are {", ".join(FIELDS)}; correct it where the file was made'
    short = reason.removesuffix(', or remove the line')
    return short if 'regions.bash' in short or short != reason else f'{short}; correct it where the file was made'


def unquoted(text: bytes) -> bytes:
    """The content of b'...', '...' or "..."; any other text as it is."""
    quoted = re.fullmatch(rb'b?([\'"])(.*)\1', text, re.S)
    return quoted[2] if quoted else text


# Other layouts

def recognise(lines: Sequence[bytes]) -> Layout | None:
    """The layout of a file that begins with these lines, one or two, if it is a known one other than the standard; else None."""
    texts = lines[0].rstrip(b'\r\n').removeprefix(b'\xef\xbb\xbf').split(b'\t')
    names = [text.decode('utf-8', 'replace').strip(' "#\'').lower() for text in texts]
    columns = _columns(names)
    if set(columns) >= NEEDED:
        unread = [name for name, column in zip(names, columns, strict=True) if not column]
        name = f'a header line, columns {", ".join(filter(None, columns))}' + (f', without {", ".join(unread)}' if unread else '')
        layout = Layout(columns, name, header=True)
        return _with_dtypes(lines[1], layout) if len(lines) > 1 else layout
    count = len(texts)
    more = ('',) * (count - 10)
    candidates = [(FIELDS, '')] if count == 10 else [
        (more + FIELDS, f'{count} columns, of which the last 10 are {", ".join(FIELDS)}'),
        (FIELDS + more, f'{count} columns, of which the first 10 are {", ".join(FIELDS)}')]
    candidates.append((BOTTOM_UP + ('',) * (count - 6), (f'{count} columns as of the original bottom-up attention'
                       f'{", of which the first 6 are" * (count > 6)}: {", ".join(BOTTOM_UP)}')))
    layouts = (_with_dtypes(lines[0], Layout(fields, name)) for fields, name in candidates if len(fields) == count)
    return next((layout for layout in layouts if layout and layout.name), None)


def _columns(names: Sequence[str]) -> tuple[str, ...]:
    """The fields that column names stand for, each at most once; '' for names of no field."""
    columns = ['' if name not in FIELDS else name for name in names]
    for i, name in enumerate(names):
        known = next((known for known, others in FIELD_NAMES.items() if name in (known, *others)), '')
        if known not in columns:
            columns[i] = known
    return tuple(columns)


def _with_dtypes(line: bytes, layout: Layout) -> Layout | None:
    """`layout` with the dtypes and quotes that a line is written with; None if the line is not of this layout."""
    texts = dict(zip(layout.fields, line.rstrip(b'\r\n').split(b'\t'), strict=False))
    dtypes, names = {}, [layout.name] if layout.name else []
    encoded = [field for field, _ in ARRAYS.values() if field in texts]
    if any(unquoted(texts[field]) != texts[field] for field in encoded):
        layout = replace(layout, quoted=True)
        quote = re.match(rb'b?[\'"]', texts[encoded[-1]])
        names.append(f'arrays written as {quote[0].decode()}...{quote[0][-1:].decode()}' if quote else 'quoted arrays')
        texts = {field: unquoted(text) for field, text in texts.items()}
    try:
        o = int(texts['num_boxes'])
        for name, (field, dtype) in ARRAYS.items():
            if field in encoded:
                raw = pybase64.b64decode(texts[field], validate=True)
                written = features_dtype(raw, o, dtypes.get('boxes')) if name == 'features' else dtype_of(name, len(raw), o)
                if written != dtype:
                    dtypes[field] = np.dtype(written).str
        layout = replace(layout, dtypes=dtypes)
        decode(line, layout)
    except (RegionError, ValueError, KeyError, ZeroDivisionError):
        return None
    names += [f'{field} of {np.dtype(dtype)}' for field, dtype in dtypes.items()]
    return replace(layout, name='; '.join(names))


def dtype_of(name: str, size: int, o: int) -> np.dtype:
    """The dtype of an array of ARRAYS, other than features, of o regions in `size` bytes. Raises RegionError."""
    integer, numbers = ARRAYS[name][1] == '<i8', o * (4 if name == 'boxes' else 1)
    for width in (8, 4, 2, 1) if integer else (4, 8, 2):
        if size == numbers * width:
            return np.dtype(f'<{"i" if integer else "f"}{width}')
    raise RegionError(f'field "{ARRAYS[name][0]}": expected {numbers} numbers, found {size} bytes')


def features_dtype(raw: bytes, o: int, boxes=None) -> np.dtype:
    """The float dtype in which the features of o regions are plausible numbers; float32, or that of the boxes, if none is."""
    first = np.dtype(boxes or '<f4')
    if len(raw) % (o * first.itemsize):  # cut off
        return first
    for dtype in dict.fromkeys((first, np.dtype('<f4'), np.dtype('<f8'), np.dtype('<f2'))):
        if len(raw) % (o * dtype.itemsize) == 0 and plausible(np.frombuffer(raw, dtype)):
            return dtype
    return first


def plausible(features: np.ndarray) -> bool:
    """Whether numbers may be features of regions. Half or double precision, read as single precision, has absurd magnitudes."""
    sizes = np.abs(features[features != 0].astype(np.float64))
    return bool(np.isfinite(sizes).all()) and (not sizes.size or (sizes.max() < 1e6 and sizes.min() > 1e-15))


def _whole_number(fields: dict[str, memoryview], field: str) -> int:
    text = bytes(fields[field])
    if not text.isdigit() or len(text) > 9:  # int() takes blanks, signs and underscores, and any length
        text = shown(text[:40].decode(errors='replace'))
        raise RegionError(f'field "{field}": expected a whole number, found {text}; the line is {DAMAGED}')
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
