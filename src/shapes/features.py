"""A fixed feature for every box of a picture, from the pixels inside it: the sample world's Faster R-CNN.

It has no learnt part. Box sums come from one integral image, so a picture with 36 boxes takes a few milliseconds.
"""
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from shapes.draw import OUTLINES
from shapes.scene import COLOURS, SHAPES

GRID = 8  # a box is seen as GRID x GRID cells
ORIENTATIONS = 8
PROTOTYPES = np.array(list(COLOURS.values()), np.float32)  # (8, 3)
NEAR = 34.0  # how far, in RGB, a pixel may be from a prototype and still be of its colour
ALIKE = 0.09  # how far, per cell of 0..1, a mask may be from a shape's and still be of that shape

# Parts of the feature: (length, value that becomes 0, spread that becomes 1). Constants, not statistics of one dataset,
# so that the same pixels give the same feature in every world. What says most (colours, shapes) is given most room:
# a model that starts from nothing sees the region through a random projection of all parts at once.
PARTS = {'rgb': (12, 0.5, 0.5),  # mean colour of the four quarters
         'colours': (3 * 9, 0.1, 0.1),  # shares of the 8 colours and of none, in the middle, at the border, overall
         'mask': (GRID * GRID, 0.35, 1.6),  # which cells look like the middle: the outline, whatever the colour
         'shapes': (len(SHAPES) + 1, 0.14, 0.075),  # how well that outline is each shape, filling the box, or none
         'edges': (4 * ORIENTATIONS, 0.03, 0.16),  # directions of the edges in the four quarters
         'extent': (2, 5.0, 0.5)}  # how many pixels wide and high, as powers of 2
FEATURE_DIM = sum(length for length, _, _ in PARTS.values())  # 144


def extract(pixels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The features of the boxes of one picture.

    Args:
        pixels: (height, width, 3) uint8.
        boxes: (o, 4), pixels x1, y1, x2, y2, inside the picture.
    Returns:
        (o, FEATURE_DIM) float32, scaled as PARTS says.
    """
    pixels = pixels.astype(np.float32)
    shares = _colour_shares(pixels)
    maps = np.concatenate([pixels / 255, shares, _edges(pixels)], axis=2)  # (height, width, 3 + 9 + 8)
    cells = _cell_means(maps, np.asarray(boxes, np.float64))  # (o, GRID, GRID, 20)
    rgb, colours, edges = cells[..., :3], cells[..., 3:12], cells[..., 12:]

    o, half = len(cells), GRID // 2
    quarter = slice(GRID // 4, GRID - GRID // 4)
    middle = colours[:, quarter, quarter].mean((1, 2))  # (o, 9)
    overall = colours.mean((1, 2))
    inner = colours[:, 1:-1, 1:-1]
    border = (colours.sum((1, 2)) - inner.sum((1, 2))) / (GRID ** 2 - (GRID - 2) ** 2)

    # "None of the colours" does not count as a likeness: the mask of a piece of background is empty.
    core = colours[:, half - 1:half + 1, half - 1:half + 1, :-1].mean((1, 2))  # (o, 8)
    mask = np.einsum('oijc,oc->oij', colours[..., :-1], core) / ((core ** 2).sum(1) + 0.05)[:, None, None]

    quarters = edges.reshape(o, 2, half, 2, half, ORIENTATIONS).sum((2, 4))  # (o, 2, 2, 8)
    quarters = quarters / (quarters.sum((1, 2, 3), keepdims=True) + 0.5)

    parts = {'rgb': rgb.reshape(o, 2, half, 2, half, 3).mean((2, 4)),
             'colours': np.concatenate([middle, border, overall], axis=1), 'mask': mask,
             'shapes': _likeness(((mask[:, None] - _templates()) ** 2).mean((2, 3)), ALIKE), 'edges': quarters,
             'extent': np.log2(np.maximum(boxes[:, 2:] - boxes[:, :2], 1))}
    scaled = [(parts[name].reshape(o, -1) - mean) / spread for name, (_, mean, spread) in PARTS.items()]
    return np.concatenate(scaled, axis=1).astype(np.float32)


def _colour_shares(pixels: np.ndarray) -> np.ndarray:
    """How much each pixel is of each prototype colour, and of none: (height, width, 9), sums to 1."""
    # Channel by channel: a matrix product would start BLAS threads in every worker process.
    squares = sum((pixels[..., [channel]] - PROTOTYPES[:, channel]) ** 2 for channel in range(3))
    return _likeness(squares, NEAR)


def _likeness(squares: np.ndarray, near: float) -> np.ndarray:
    """Squared distances (..., n) to n prototypes -> shares (..., n + 1) of each, and of none, that sum to 1."""
    none = np.full_like(squares[..., :1], (2 * near) ** 2)  # as likely as a prototype 2 * near away
    likeness = np.exp(-np.concatenate([squares, none], axis=-1) / (2 * near ** 2))
    return likeness / likeness.sum(-1, keepdims=True)


@cache
def _templates() -> np.ndarray:
    """The mask of each shape that exactly fills its box: (6, GRID, GRID), 0 to 1."""
    side = 16 * GRID
    masks = []
    for shape in SHAPES:
        canvas = Image.new('L', (side, side))
        pen = ImageDraw.Draw(canvas)
        if shape in OUTLINES:
            pen.polygon([((x + 1) * side / 2, (y + 1) * side / 2) for x, y in OUTLINES[shape]], fill=255)
        else:
            pen.ellipse((0, 0, side - 1, side - 1), fill=255)
        masks.append(np.asarray(canvas.resize((GRID, GRID), Image.Resampling.BOX)) / 255)
    return np.stack(masks)


def _edges(pixels: np.ndarray) -> np.ndarray:
    """The strength of the edge at each pixel, in the bin of its direction: (height, width, ORIENTATIONS)."""
    down, right = np.gradient(pixels / 255, axis=(0, 1))  # (height, width, 3) each
    strength = down ** 2 + right ** 2
    best = strength.argmax(2)[..., None]  # of the three channels the one with the clearest edge
    down, right, strength = (np.take_along_axis(a, best, 2) for a in (down, right, strength))
    direction = np.floor(np.arctan2(down, right) / np.pi * ORIENTATIONS).astype(int) % ORIENTATIONS
    return np.sqrt(strength) * (direction == np.arange(ORIENTATIONS))


def _cell_means(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Means of `maps` (height, width, c) over the cells of each box: (o, GRID, GRID, c)."""
    height, width, channels = maps.shape
    integral = np.zeros((height + 1, width + 1, channels))
    inside = integral[1:, 1:]
    np.cumsum(maps, axis=0, dtype=np.float64, out=inside)
    np.cumsum(inside, axis=1, out=inside)
    steps = np.linspace(0, 1, GRID + 1)
    xs = boxes[:, [0]] * (1 - steps) + boxes[:, [2]] * steps  # (o, GRID + 1)
    ys = boxes[:, [1]] * (1 - steps) + boxes[:, [3]] * steps
    x0 = np.clip(xs.astype(int), 0, width - 1)
    y0 = np.clip(ys.astype(int), 0, height - 1)
    fx, fy = (xs - x0)[:, None, :, None], (ys - y0)[:, :, None, None]

    def at(dy: int, dx: int) -> np.ndarray:
        return integral[(y0 + dy)[:, :, None], (x0 + dx)[:, None, :]]  # (o, GRID + 1, GRID + 1, c)

    # Between the pixels the integral is bilinear, so cells may begin and end anywhere.
    corners = (at(0, 0) * (1 - fx) + at(0, 1) * fx) * (1 - fy) + (at(1, 0) * (1 - fx) + at(1, 1) * fx) * fy
    sums = corners[:, 1:, 1:] - corners[:, :-1, 1:] - corners[:, 1:, :-1] + corners[:, :-1, :-1]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / GRID ** 2
    return sums / area[:, None, None, None]
