"""RandAugment(2, 7) as in ALBEF's code, on uint8 pictures (h, w, 3). What looks like a mistake is that of the original.

The warps compute as OpenCV 4.5 without its optimizations: source coordinates are rounded to 1/32 pixel.
"""

import math

import numpy as np
from PIL import Image

COUNT, SHARE = 2, 0.5  # operations that are drawn for a picture, and the probability that each is done
LEVEL = 7 / 10
FACTOR, SHEAR, TRANSLATE, DEGREES = LEVEL * 1.8 + 0.1, LEVEL * 0.3, LEVEL * 10, LEVEL * 30
FILL = 128  # outside of a warped picture


def rand_augment(picture, rng):
    """Two operations drawn with replacement, each of which is done with probability 0.5."""
    for name in [OPERATIONS[i] for i in rng.integers(len(OPERATIONS), size=COUNT)]:
        if rng.random() <= SHARE:
            picture = apply(picture, name, rng.random())
    return picture


def apply(picture, name, draw):
    """An operation on a picture. draw: in [0, 1), the sign of a warp: negative above 0.5, of a rotation below."""
    height, width = picture.shape[:2]
    sign = -1 if (draw < 0.5 if name == 'Rotate' else draw > 0.5) else 1
    match name:
        case 'Identity':
            return picture
        case 'AutoContrast':
            return by_tables(picture, stretched)
        case 'Equalize':
            return by_tables(picture, equalized)
        case 'Brightness':
            return np.take(BRIGHTER, picture)
        case 'Sharpness':
            return sharpened(picture)
        case 'ShearX':
            return warped(picture, [[1, sign * SHEAR, 0], [0, 1, 0]])
        case 'ShearY':
            return warped(picture, [[1, 0, 0], [sign * SHEAR, 1, 0]])
        case 'TranslateX':
            return warped(picture, [[1, 0, -sign * TRANSLATE], [0, 1, 0]])
        case 'TranslateY':
            return warped(picture, [[1, 0, 0], [0, 1, -sign * TRANSLATE]])
        case 'Rotate':
            angle, x, y = math.radians(sign * DEGREES), width / 2, height / 2
            cos, sin = math.cos(angle), math.sin(angle)
            return warped(picture, [[cos, sin, (1 - cos) * x - sin * y], [-sin, cos, sin * x + (1 - cos) * y]])


OPERATIONS = ('Identity', 'AutoContrast', 'Equalize', 'Brightness', 'Sharpness', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY',
              'Rotate')
BRIGHTER = (np.arange(256, dtype=np.float32) * np.float32(FACTOR)).clip(0, 255).astype(np.uint8)


def by_tables(picture, make):
    """make: the counts of the 256 values of a channel -> their new values, (256,)."""
    image = Image.fromarray(picture)
    counts = np.array(image.histogram()).reshape(3, 256)
    return np.asarray(image.point([value for channel in counts for value in make(channel)]))


def stretched(counts):
    """Of a channel without 0 all values become 255: the original computes its offset in uint8."""
    low, high = np.flatnonzero(counts)[[0, -1]].tolist()
    if low == high:
        return range(256)
    return [255] * 256 if low else [min(int(value * (255 / high)), 255) for value in range(256)]


def equalized(counts):
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if not step:
        return range(256)
    return ((step // 2 + np.cumsum(counts) - counts) // step).clip(0, 255).tolist()


def _sharper():
    """(256, 256) uint8: the new value by the smooth value and the value. It wraps instead of being clipped."""
    smooth, value = np.meshgrid(*2 * [np.arange(256, dtype=np.float32)], indexing='ij')
    return (smooth + np.float32(FACTOR) * (value - smooth)).astype(np.int32).astype(np.uint8)


SHARPER = _sharper()


def sharpened(picture):
    """Each value moved away from the mean of its neighbours, in which it counts five times; the border stays."""
    result, wide = picture.copy(), picture.astype(np.uint16)
    rows = wide[:-2] + wide[1:-1] + wide[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
    smooth = (2 * total + 13) // 26  # / 13, rounded
    result[1:-1, 1:-1] = np.take(SHARPER, (smooth << 8) + wide[1:-1, 1:-1])
    return result


SCALE, FRACTION = 1 << 10, 1 << 5  # of the coordinates before they are rounded, and after
MARGIN = 2  # pixels around the picture, so that each place outside of it has four neighbours
# The channels of a pixel in a number of 64 bits have room for the sum of four products with weights below 2 ** 10.
GAP, WIDTH = 13, 21  # bits between channels, and from the beginning of one to that of the next
HALF = 512 * (1 | 1 << WIDTH | 1 << 2 * WIDTH)


def warped(picture, matrix):
    """The picture moved by a matrix (2, 3) of x and y to their new values, with linear interpolation."""
    height, width = picture.shape[:2]
    inverse = np.linalg.inv(np.array(matrix)[:, :2])
    x0, y0 = -inverse @ np.array(matrix)[:, 2]
    columns, rows = np.arange(width), np.arange(height)[:, None]

    def split(per_column, per_row, offset, most):
        """Whole coordinates in the picture with its margin, and the 32nds beyond them, (h, w) each."""
        start = np.rint((per_row * rows + offset) * SCALE).astype(np.int32) + SCALE // FRACTION // 2
        place = (start + np.rint(per_column * columns * SCALE).astype(np.int32)) >> 5  # (h, w), in 32nds
        return (place >> 5).clip(-MARGIN, most) + MARGIN, (place & FRACTION - 1).astype(np.uint64)

    (x, right), (y, below) = split(*inverse[0], x0, width), split(*inverse[1], y0, height)
    stride = width + 2 * MARGIN
    framed = np.full((height + 2 * MARGIN, stride, 4), FILL, np.uint8)
    framed[MARGIN:-MARGIN, MARGIN:-MARGIN, :3] = picture
    framed[..., 3] = 0
    pixels = framed.view(np.uint32).ravel().astype(np.uint64)
    pixels = pixels & 0xff | (pixels & 0xff00) << GAP | (pixels & 0xff0000) << 2 * GAP
    first = y * stride + x

    def row(first):
        total = pixels[first]
        if right.any():
            total *= FRACTION - right
            total += right * pixels[first + 1]
            return total
        return total << np.uint64(5)

    total = row(first)
    if below.any():
        total *= FRACTION - below
        total += below * row(first + stride)
    else:
        total <<= np.uint64(5)
    total += HALF  # to round
    total >>= np.uint64(10)
    result = (total & 0xff | total >> GAP & 0xff00 | total >> 2 * GAP & 0xff0000).astype(np.uint32)
    return result.view(np.uint8).reshape(height, width, 4)[:, :, :3]
