"""Detects the things in a picture of the sample world from its pixels alone, for pictures whose scene is unknown.

It segments the picture into patches of one colour, and fits to each patch the shape, size and place that explain it best. The
detections become regions by the rules of `simulate_regions`, so that a model trained in the world can answer about new pictures.
"""
import hashlib

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from images.pictures import PictureError
from shapes import simulate_regions
from shapes.draw import template
from shapes.features import PROTOTYPES
from shapes.scene import BACKGROUNDS, COLOURS, HEIGHT, RADII, SHAPES, WIDTH, Scene, Thing
from shapes.simulate_regions import NUM_BOXES

BACKGROUND = -1
MAX_COLOUR_DISTANCE = 45.0  # in RGB, from a pixel to the nearest colour; further away is background
MIN_PATCH = 24  # pixels; smaller patches are mixed colours at the edge of a thing
OCCLUSION_COST = 0.3  # of a pixel of another colour inside a shape: a thing in front may hide it; background costs 1
MAX_COST = 0.35  # per pixel of a shape; a worse fit is no detection
MIN_VISIBLE = 0.7  # of a thing's side that things in front leave visible
RADIUS_STEP = 0.5


class Detector:
    """Has the interface of detector.faster_rcnn.Detector, for pictures of the sample world."""

    @property
    def provenance(self):
        return {'detector': 'shapes.detector, from the pixels of pictures of the sample world'}

    def regions(self, pictures, ids, min_boxes=NUM_BOXES, max_boxes=NUM_BOXES, threshold=None, probabilities=False):
        """A list of ImageRegions, one per picture; equal pixels give equal regions.

        pictures: list of uint8 (HEIGHT, WIDTH, 3) RGB; ids: their image ids. Of the 36 regions of a picture the `max_boxes` most
        confident are returned, or with a threshold those of at least that confidence and the `min_boxes` most confident.
        probabilities: with class_probabilities. Raises ValueError for impossible numbers of boxes, and PictureError that names
        the id of a picture that is not of the sample world.
        """
        if not 1 <= min_boxes <= max_boxes or min_boxes > NUM_BOXES:
            raise ValueError(f'minBoxes, maxBoxes: expected 1 <= minBoxes <= maxBoxes, and minBoxes up to {NUM_BOXES} of the '
                             f'sample world, found {min_boxes} and {max_boxes}')
        images = [_regions(img_id, picture, probabilities) for img_id, picture in zip(ids, pictures, strict=True)]
        return [simulate_regions.most_confident(image, min_boxes, max_boxes, threshold or 0.0) for image in images]


def _regions(img_id, picture, probabilities):
    height, width, _ = picture.shape
    right_size = (height, width) == (HEIGHT, WIDTH)
    things = detect(picture) if right_size else ()
    if not things:
        raise PictureError(f'{img_id}: expected a picture of the sample world, {WIDTH} x {HEIGHT} pixels with coloured shapes, '
                           f'found {width} x {height}{" without any" if right_size else ""}; photographs need the Faster R-CNN '
                           '(bash run/download.bash detector) and a model trained on its regions')
    seed = int.from_bytes(hashlib.sha256(picture.tobytes()).digest()[:8], 'little')
    return simulate_regions.regions(img_id, Scene(BACKGROUNDS[0], things), picture, np.random.default_rng(seed),
                                    probabilities)


def detect(pixels: np.ndarray) -> tuple[Thing, ...]:
    """The things in a picture, uint8 (HEIGHT, WIDTH, 3), the largest first."""
    squares = ((pixels.astype(np.float32)[:, :, None] - PROTOTYPES) ** 2).sum(3)  # (h, w, colours)
    colours = np.where(squares.min(2) < MAX_COLOUR_DISTANCE ** 2, squares.argmin(2), BACKGROUND)  # (h, w)
    patches = [(colour, patch) for colour in range(len(COLOURS)) for patch in _connected_components(colours == colour)]
    fits = (_best_fit(colour, patch, colours) for colour, patch in sorted(patches, key=lambda item: -item[1].sum()))
    return tuple(thing for thing in fits if thing)


def _connected_components(mask: np.ndarray) -> list[np.ndarray]:
    """The connected components of a mask (h, w) with at least MIN_PATCH pixels, each as a mask."""
    rest, components = mask.copy(), []
    while rest.any():
        patch = np.zeros_like(rest)
        patch[np.unravel_index(rest.argmax(), rest.shape)] = True
        size = 0
        while size != (size := int(patch.sum())):
            for _ in range(8):  # several steps per sum, which is the slow part
                patch[1:] |= patch[:-1]
                patch[:-1] |= patch[1:]
                patch[:, 1:] |= patch[:, :-1]
                patch[:, :-1] |= patch[:, 1:]
                patch &= mask
        rest &= ~patch
        if size >= MIN_PATCH:
            components.append(patch)
    return components


def _best_fit(colour: int, patch: np.ndarray, colours: np.ndarray) -> Thing | None:
    """The thing that explains a patch of one colour best; None if none does, as for mixed colours along an edge.

    patch: mask (h, w); colours: (h, w), the colour of each pixel or BACKGROUND.
    """
    y, x = np.nonzero(patch)
    box = x.min(), y.min(), x.max() + 1, y.max() + 1
    side = max(box[2] - box[0], box[3] - box[1])
    cost = np.where(colours == BACKGROUND, 1.0, np.where(colours == colour, 0.0, OCCLUSION_COST)) - patch
    fits = []  # (cost per pixel, thing)
    for size, (low, high) in RADII.items():
        for radius in np.arange(low, high + RADIUS_STEP / 2, RADIUS_STEP).tolist():
            if side / 2 - 1 <= radius <= side / 2 / MIN_VISIBLE + 1:
                for shape in SHAPES:
                    share, x, y = _place(template(shape, radius, 2 * int(np.ceil(radius)), 8), cost, box, patch.sum())
                    fits.append((share, Thing(shape, tuple(COLOURS)[colour], size, x, y, radius)))
    share, thing = min(fits, key=lambda fit: fit[0], default=(np.inf, None))
    return thing if share < MAX_COST else None


def _place(shape: np.ndarray, cost: np.ndarray, box: tuple[int, ...], pixels: int) -> tuple[float, float, float]:
    """Where around the `box` of a patch of so many pixels a shape (k, k) costs least: (cost per pixel, x, y of its centre)."""
    x1, y1, x2, y2 = box
    k = len(shape)
    top, left = max(0, y2 - 1 - k), max(0, x2 - 1 - k)
    crop = cost[top:y1 + 2 + k, left:x1 + 2 + k]
    if min(crop.shape) < k:
        return np.inf, 0.0, 0.0
    sums = np.einsum('yxij,ij->yx', sliding_window_view(crop, (k, k)), shape) + pixels
    down, right = np.unravel_index(sums.argmin(), sums.shape)
    return sums[down, right] / shape.sum(), float(left + right + k / 2), float(top + down + k / 2)
