"""Hand-made features of the boxes of a picture, from the pixels inside them: they take the place of a CNN's.

Nothing is learned. Sums over boxes come from one integral image, so 36 boxes take a few milliseconds.
"""
import numpy as np

from shapes.draw import template
from shapes.scene import COLOURS, SHAPES

GRID = 8  # a box is divided into GRID x GRID cells
ORIENTATIONS = 8
PROTOTYPES = np.array(list(COLOURS.values()), np.float32)  # (8, 3)
COLOUR_SCALE = 34.0  # distance in RGB between a pixel and a prototype at which it still counts as that colour
SHAPE_SCALE = 0.09  # the same for the distance, per cell of 0..1, between a mask and that of a shape

# Parts of the feature: (length, mean that becomes 0, spread that becomes 1). Constants, not statistics of one dataset, so that
# the same pixels give the same feature in every world. Colours and shapes, the most informative parts, get the largest scale,
# since a model trained from scratch first sees a region through a random projection of all parts.
PARTS = {'rgb': (12, 0.5, 0.5),  # mean colour of the four quarters
         'colours': (3 * 9, 0.1, 0.1),  # shares of the 8 colours and of none, in the middle, at the border, overall
         'mask': (GRID * GRID, 0.35, 1.6),  # cells that look like the middle: the outline, whatever the colour
         'shapes': (len(SHAPES) + 1, 0.14, 0.075),  # similarity of that outline to each shape that fills the box, and to none
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

    # The share of no colour is left out, so that the mask of a piece of background is empty.
    core = colours[:, half - 1:half + 1, half - 1:half + 1, :-1].mean((1, 2))  # (o, 8)
    mask = np.einsum('oijc,oc->oij', colours[..., :-1], core) / ((core ** 2).sum(1) + 0.05)[:, None, None]

    quarters = edges.reshape(o, 2, half, 2, half, ORIENTATIONS).sum((2, 4))  # (o, 2, 2, 8)
    quarters = quarters / (quarters.sum((1, 2, 3), keepdims=True) + 0.5)

    templates = np.stack([template(shape, GRID / 2, GRID, 16) for shape in SHAPES])  # (6, GRID, GRID), each fills its box
    distances = ((mask[:, None] - templates) ** 2).mean((2, 3))
    parts = {'rgb': rgb.reshape(o, 2, half, 2, half, 3).mean((2, 4)),
             'colours': np.concatenate([middle, border, overall], axis=1), 'mask': mask,
             'shapes': _shares(distances, SHAPE_SCALE), 'edges': quarters,
             'extent': np.log2(np.maximum(boxes[:, 2:] - boxes[:, :2], 1))}
    scaled = [(parts[name].reshape(o, -1) - mean) / spread for name, (_, mean, spread) in PARTS.items()]
    return np.concatenate(scaled, axis=1).astype(np.float32)


def _colour_shares(pixels: np.ndarray) -> np.ndarray:
    """The share of each prototype colour, and of none, in each pixel: (height, width, 9), sums to 1."""
    # Channel by channel: a matrix product would start BLAS threads in every worker process.
    squares = sum((pixels[..., [channel]] - PROTOTYPES[:, channel]) ** 2 for channel in range(3))
    return _shares(squares, COLOUR_SCALE)


def _shares(squares: np.ndarray, scale: float) -> np.ndarray:
    """A softmax over squared distances (..., n) to n prototypes, and none: (..., n + 1), sums to 1."""
    none = np.full_like(squares[..., :1], (2 * scale) ** 2)  # as likely as a prototype at a distance of 2 * scale
    weights = np.exp(-np.concatenate([squares, none], axis=-1) / (2 * scale ** 2))
    return weights / weights.sum(-1, keepdims=True)


def _edges(pixels: np.ndarray) -> np.ndarray:
    """The strength of the edge at each pixel, in the bin of its direction: (height, width, ORIENTATIONS)."""
    down, right = np.gradient(pixels / 255, axis=(0, 1))  # (height, width, 3) each
    strength = down ** 2 + right ** 2
    best = strength.argmax(2)[..., None]  # the channel with the strongest edge
    down, right, strength = (np.take_along_axis(a, best, 2) for a in (down, right, strength))
    direction = np.floor(np.arctan2(down, right) / np.pi * ORIENTATIONS).astype(int) % ORIENTATIONS
    return np.sqrt(strength) * (direction == np.arange(ORIENTATIONS))


def _cell_means(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Means of `maps` (height, width, c) over the cells of each box: (o, GRID, GRID, c)."""
    height, width, channels = maps.shape
    integral = np.zeros((height + 1, width + 1, channels))
    np.cumsum(maps, axis=0, dtype=np.float64, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    steps = np.linspace(0, 1, GRID + 1)
    xs = boxes[:, [0]] * (1 - steps) + boxes[:, [2]] * steps  # (o, GRID + 1)
    ys = boxes[:, [1]] * (1 - steps) + boxes[:, [3]] * steps
    x0 = np.clip(xs.astype(int), 0, width - 1)
    y0 = np.clip(ys.astype(int), 0, height - 1)
    fx, fy = (xs - x0)[:, None, :, None], (ys - y0)[:, :, None, None]

    def at(dy: int, dx: int) -> np.ndarray:
        return integral[(y0 + dy)[:, :, None], (x0 + dx)[:, None, :]]  # (o, GRID + 1, GRID + 1, c)

    # Bilinear interpolation of the integral image, so cells may begin and end between pixels.
    corners = (at(0, 0) * (1 - fx) + at(0, 1) * fx) * (1 - fy) + (at(1, 0) * (1 - fx) + at(1, 1) * fx) * fy
    sums = corners[:, 1:, 1:] - corners[:, :-1, 1:] - corners[:, 1:, :-1] + corners[:, :-1, :-1]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / GRID ** 2
    return sums / area[:, None, None, None]
