"""The boxes of --boxes: places in pictures whose features are wanted, from json, json lines or lines of text."""

from pathlib import Path

import numpy as np

from files.json_files import DataError, layout, numbered_lines, stream
from files.text import printable, shown
from regions.image_regions import RegionError, box_fault

EXPECTED = 'a list of boxes, each x1, y1, x2, y2 in pixels'


def read_boxes(path):
    """{image id: boxes (o, 4) float32 in the order of the file}.

    path: .json, an object {id: boxes}, or a list, or json lines, of {"img_id": id, "boxes": boxes}; or .tsv or .txt, lines
    id<TAB>x1<TAB>y1<TAB>x2<TAB>y2, a line for each box. Also compressed (.gz). Raises OSError, or DataError that names the line
    or the image. Whether boxes fit their pictures is checked where these are read.
    """
    path = Path(path)
    if not {'.json', '.jsonl'} & {*path.suffixes[-2:]}:
        return _read_lines(path)
    boxes = {}
    for img_id, values in _json_items(path):
        if not isinstance(img_id, str) or img_id in boxes:
            reason = 'each image once, found it again' if img_id in boxes else 'an image id (text) in "img_id"'
            raise DataError(f'{path}: image {shown(img_id)}: expected {reason}; correct it')
        if not isinstance(values, list) or not values or not all(map(_is_box, values)):
            wrong = next((one for one in values if not _is_box(one)), 'none') if isinstance(values, list) else values
            raise DataError(f'{path}: image {shown(img_id)}: expected {EXPECTED}, found {shown(wrong)}; correct it')
        boxes[img_id] = np.array(values, np.float32)
    return boxes


def _is_box(value):
    return isinstance(value, list) and len(value) == 4 and all(type(side) in (int, float) and abs(side) < 1e9 for side in value)


def _json_items(path):
    """Yields (image id, boxes)."""
    if layout(path) != 'list':
        first, _ = next(stream(path, '', 'boxes', pairs=True))
        if first not in ('img_id', 'boxes'):
            yield from stream(path, '', 'boxes', pairs=True)
            return
    for item in stream(path, 'item', 'images with boxes'):
        item = item if isinstance(item, dict) else {}
        yield item.get('img_id'), item.get('boxes')


def _read_lines(path):
    boxes = {}
    for number, line in numbered_lines(path):
        if line.isspace():
            continue
        img_id, *sides = line.decode(errors='replace').rstrip('\r\n').split('\t')
        try:
            box = [float(side) for side in sides]
        except ValueError:
            box = []
        if not img_id.strip() or not _is_box(box):
            raise DataError(f'{path}:{number}: expected id<TAB>x1<TAB>y1<TAB>x2<TAB>y2 in pixels, found '
                            f'{printable(line[:80].decode(errors="replace")).strip()!r}; correct the line')
        boxes.setdefault(img_id.strip(), []).append(box)
    if not boxes:
        raise DataError(f'{path}: expected lines id<TAB>x1<TAB>y1<TAB>x2<TAB>y2, found none')
    return {img_id: np.array(rows, np.float32) for img_id, rows in boxes.items()}


def checked_boxes(boxes, height, width, img_id):
    """Given boxes as float32 (o, 4) within the picture. Raises RegionError that names the picture and the box."""
    boxes = np.asarray(boxes, np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or not np.isfinite(boxes).all():
        raise RegionError(f'image {img_id}: boxes: expected finite numbers (boxes, 4), found an array {boxes.shape}')
    fault = box_fault(boxes, height, width)
    if not fault and (empty := (boxes[:, 2:] <= boxes[:, :2]).any(1)).any():
        fault = f'expected x1 < x2 and y1 < y2, found {boxes[empty.argmax()].tolist()} in box {empty.argmax()}'
    if fault:
        raise RegionError(f'image {img_id}: boxes: {fault}')
    return np.clip(boxes, 0, np.float32([width, height] * 2))
