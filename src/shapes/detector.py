"""From pixels to the things in a picture: the sample world's own detector, for pictures of which nobody knows the scene.

It finds patches of one colour, and of every shape, size and place the one that explains a patch best. What it finds becomes
regions by the same rules as the scenes of the world (`detect`), so that a model trained there answers about fresh pictures.
"""
import hashlib
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw

from images.pictures import PictureError
from regions import tsv
from shapes import simulate_regions
from shapes.draw import OUTLINES
from shapes.features import PROTOTYPES
from shapes.scene import BACKGROUNDS, COLOURS, HEIGHT, RADII, SHAPES, WIDTH, Scene, Thing

FAR = 45.0  # in RGB, from a colour to what is none
LEAST_PATCH = 24  # pixels; smaller ones are mixed colours at the edge of a thing
HIDDEN = 0.3  # how much a pixel counts against a shape that shows another colour: something in front may hide the thing
WORST = 0.35  # of a shape's pixels, how many may be unexplained
VISIBLE = 0.7  # of a thing's side, how much something in front leaves at least
RADIUS_STEP = 0.5


class Detector:
    """As detector.faster_rcnn.Detector, for pictures of the sample world."""

    @property
    def provenance(self):
        return {'detector': 'shapes.detector, from the pixels of pictures of the sample world'}

    def regions(self, pictures, ids, min_boxes=simulate_regions.NUM_BOXES, max_boxes=simulate_regions.NUM_BOXES):
        """A list of ImageRegions, one a picture, the same for the same pixels.

        pictures: list of uint8 (HEIGHT, WIDTH, 3) RGB; ids: their image ids. There are 36 regions in each, the `max_boxes` most
        confident of which are returned. Raises PictureError that names the id of a picture that is not of the sample world.
        """
        if not 1 <= min_boxes <= max_boxes or min_boxes > simulate_regions.NUM_BOXES:
            raise ValueError(f'minBoxes, maxBoxes: expected 1 <= minBoxes <= maxBoxes, and minBoxes up to {simulate_regions.NUM_BOXES} of '
                             f'the sample world, found {min_boxes} and {max_boxes}')
        return [_first(_regions(img_id, picture), max_boxes) for img_id, picture in zip(ids, pictures, strict=True)]


def _first(image, most):
    return tsv.ImageRegions(image.img_id, image.height, image.width, **{name: getattr(image, name)[:most] for name in tsv.ARRAYS})


def _regions(img_id, picture):
    things = find(picture) if picture.shape == (HEIGHT, WIDTH, 3) else ()
    if not things:
        height, width, _ = picture.shape
        raise PictureError(f'{img_id}: expected a picture of the sample world, {WIDTH} x {HEIGHT} pixels with coloured shapes, '
                           f'found {width} x {height} {"without any" if (height, width) == (HEIGHT, WIDTH) else ""}'.rstrip()
                           + '; photographs need the Faster R-CNN (bash run/download.bash detector) and a model trained on its '
                           'regions')
    seed = int.from_bytes(hashlib.sha256(picture.tobytes()).digest()[:8], 'little')
    return simulate_regions.regions(img_id, Scene(BACKGROUNDS[0], things), picture, np.random.default_rng(seed))


def find(pixels: np.ndarray) -> tuple[Thing, ...]:
    """The things in a picture, uint8 (HEIGHT, WIDTH, 3), the largest first."""
    squares = ((pixels.astype(np.float32)[:, :, None] - PROTOTYPES) ** 2).sum(3)  # (h, w, colours)
    colours = np.where(squares.min(2) < FAR ** 2, squares.argmin(2), -1)  # (h, w), -1: background
    patches = [(number, patch) for number in range(len(COLOURS)) for patch in _patches(colours == number)]
    things = []
    for number, patch in sorted(patches, key=lambda one: -one[1].sum()):
        if thing := _best(tuple(COLOURS)[number], patch, colours, number):
            things.append(thing)
    return tuple(things)


def _patches(mask: np.ndarray) -> list[np.ndarray]:
    """The connected pieces of a mask (h, w), each a mask of its own."""
    left, found = mask.copy(), []
    while left.any():
        patch = np.zeros_like(left)
        patch[np.unravel_index(left.argmax(), left.shape)] = True
        size = 0
        while size != (size := int(patch.sum())):
            for _ in range(8):  # the sum is taken less often
                patch[1:] |= patch[:-1]
                patch[:-1] |= patch[1:]
                patch[:, 1:] |= patch[:, :-1]
                patch[:, :-1] |= patch[:, 1:]
                patch &= mask
        left &= ~patch
        if size >= LEAST_PATCH:
            found.append(patch)
    return found


def _best(name: str, patch: np.ndarray, colours: np.ndarray, number: int) -> Thing | None:
    """The thing that explains a patch best; None where none does, as of the mixed colours along an edge."""
    y, x = np.nonzero(patch)
    box = x.min(), y.min(), x.max() + 1, y.max() + 1
    side = max(box[2] - box[0], box[3] - box[1])
    cost = np.where(colours == -1, 1.0, np.where(colours == number, 0.0, HIDDEN)) - patch
    found = []  # (share of the pixels that is not explained, thing)
    for size, (low, high) in RADII.items():
        for radius in np.arange(low, high + RADIUS_STEP / 2, RADIUS_STEP).tolist():
            if side / 2 - 1 <= radius <= side / 2 / VISIBLE + 1:
                for shape in SHAPES:
                    share, x, y = _fit(_template(shape, radius), cost, box, patch.sum())
                    found.append((share, Thing(shape, name, size, x, y, radius)))
    share, thing = min(found, key=lambda one: one[0], default=(np.inf, None))
    return thing if share < WORST else None


def _fit(template: np.ndarray, cost: np.ndarray, box: tuple[int, ...], patch: int) -> tuple[float, float, float]:
    """Where around the `box` of a patch of so many pixels a template (k, k) costs least: (cost a pixel, x, y of the middle)."""
    x1, y1, x2, y2 = box
    k = len(template)
    top, left = max(0, y2 - 1 - k), max(0, x2 - 1 - k)
    crop = cost[top:y1 + 2 + k, left:x1 + 2 + k]
    if min(crop.shape) < k:
        return np.inf, 0.0, 0.0
    sums = np.einsum('yxij,ij->yx', sliding_window_view(crop, (k, k)), template) + patch
    down, right = np.unravel_index(sums.argmin(), sums.shape)
    return sums[down, right] / template.sum(), float(left + right + k / 2), float(top + down + k / 2)


@cache
def _template(shape: str, radius: float) -> np.ndarray:
    """How much of each pixel a shape covers whose centre is the middle of the square."""
    k, finer = 2 * int(np.ceil(radius)), 8
    canvas = Image.new('L', (k * finer, k * finer))
    pen, middle = ImageDraw.Draw(canvas), k * finer / 2
    if shape in OUTLINES:
        pen.polygon([(middle + x * radius * finer, middle + y * radius * finer) for x, y in OUTLINES[shape]], fill=255)
    else:
        pen.ellipse((middle - radius * finer, middle - radius * finer, middle + radius * finer - 1, middle + radius * finer - 1),
                    fill=255)
    return np.asarray(canvas.resize((k, k), Image.Resampling.BOX)) / 255
