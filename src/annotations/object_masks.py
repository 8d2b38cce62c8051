"""Masks of objects, 14 x 14 cells of their boxes, as VL-BERT multiplies them with the feature maps of VCR's objects.

A file of boxes (detector.given_boxes) holds those of an image under `masks`: for each box 49 hexadecimal digits, whose 196 bits
are the cells row by row.
"""

import re

import numpy as np

from files.json_files import DataError, stream
from files.text import shown

GRID = 14  # cells in each direction
BYTES = -(-GRID * GRID // 8)
HEXADECIMAL = re.compile(f'[0-9a-f]{{{GRID * GRID // 4}}}')


def mask(polygons, box):
    """The union of polygons in the cells of their box x1, y1, x2, y2: (14, 14) bool, rows from the top. A cell is inside if its
    integer place is, by the even-odd rule with half-open sides, as in the original code of VL-BERT in 2019."""
    x1, y1, x2, y2 = box[:4]
    columns, rows = np.meshgrid(np.arange(GRID), np.arange(GRID))
    result = np.zeros((GRID, GRID), bool)
    for polygon in polygons:
        if len(polygon) < 3:
            continue
        points = np.array(polygon, np.float32)
        points = np.stack([(points[:, 0] - np.float32(x1)) * GRID / np.float32(x2 - x1 + 1),
                           (points[:, 1] - np.float32(y1)) * GRID / np.float32(y2 - y1 + 1)], 1).clip(0, GRID - 1)
        inside = np.zeros_like(result)
        for (xa, ya), (xb, yb) in zip(points, np.roll(points, -1, 0), strict=True):
            crosses = (min(ya, yb) <= rows) & (rows < max(ya, yb))
            if ya != yb:
                inside ^= crosses & (columns < xa + (rows - ya) * (xb - xa) / (yb - ya))
        result |= inside
    return result


def packed(values):
    """A mask as 49 hexadecimal digits, its bits row by row."""
    return np.packbits(np.asarray(values, bool).ravel()).tobytes().hex()[:GRID * GRID // 4]


def unpacked(rows):
    """Masks (..., 25) uint8, as `read_masks` returns them, as (..., 14, 14) float32, 0 and 1."""
    bits = np.unpackbits(rows, axis=-1)[..., :GRID * GRID]
    return bits.reshape(*rows.shape[:-1], GRID, GRID).astype(np.float32)


def read_masks(path):
    """{image id: masks (o, 25) uint8, a bit a cell, in the order of its boxes} of a file of boxes. Raises DataError that names an
    image whose masks are not those of its boxes."""
    masks = {}
    for item in stream(path, 'item', 'images with boxes and masks'):
        item = item if isinstance(item, dict) else {}
        values, boxes = item.get('masks'), item.get('boxes')
        if not isinstance(values, list) or not isinstance(boxes, list) or len(values) != len(boxes) or not all(
                isinstance(one, str) and HEXADECIMAL.fullmatch(one) for one in values):
            raise DataError(f'{path}: image {shown(item.get("img_id"))}: key "masks": expected 49 hexadecimal digits for each '
                            f'box, found {shown(values)}; data/vcr/process_vcr.py makes such files')
        rows = np.frombuffer(bytes.fromhex(''.join(f'{one}0' for one in values)), np.uint8)
        masks[item['img_id']] = rows.reshape(len(values), BYTES)
    return masks
