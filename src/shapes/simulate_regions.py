"""Regions as a detector would return them: right boxes, sloppy ones, parts of things, pieces of background."""
import numpy as np

from regions import tsv
from shapes.features import extract
from shapes.scene import COLOURS, HEIGHT, SHAPES, WIDTH, Scene, Thing, covered

NUM_BOXES = 36
CLASSES = (*SHAPES, 'background')
ATTRIBUTES = (*COLOURS, 'plain')
SLOPPY, PARTS = 3, 1  # boxes a thing, besides the right one: 6 things and the whole picture still leave room


def regions(img_id: str, scene: Scene, pixels: np.ndarray, rng: np.random.Generator) -> tsv.ImageRegions:
    """The 36 regions of a picture, the most confident first.

    Boxes and class confidences come from `scene` and `rng`, as if a detector had found them; features from `pixels`
    (height, width, 3) alone.
    """
    found = []  # (box, class, attribute, confidence)
    for thing in scene.things:
        names = SHAPES.index(thing.shape), ATTRIBUTES.index(thing.colour)
        found.append((_inside(np.array(thing.box) + rng.normal(0, 0.5, 4)), *names, rng.uniform(0.8, 0.98)))
        for _ in range(SLOPPY):
            shift, scale = rng.uniform(-0.5, 0.5, 2) * thing.radius, rng.uniform(0.75, 1.4, 2) * thing.radius
            centre = np.array([thing.x, thing.y]) + shift
            box = _inside(np.concatenate([centre - scale, centre + scale]))
            found.append((box, *names, rng.uniform(0.35, 0.7) * _fit(box, thing)))
        for _ in range(PARTS):
            box, edge = np.array(thing.box), rng.integers(4)
            box[edge] = (thing.x, thing.y)[edge % 2]  # one edge moved to the middle: half of the thing
            found.append((_inside(box), *names, rng.uniform(0.2, 0.4)))
    found.append((np.array([0, 0, WIDTH, HEIGHT], float), *_names(scene, (0, 0, WIDTH, HEIGHT)), 0.15))
    while len(found) < NUM_BOXES:
        wide, high = rng.uniform(14, 60, 2)
        x, y = rng.uniform(0, WIDTH - wide), rng.uniform(0, HEIGHT - high)
        box = np.array([x, y, x + wide, y + high])
        found.append((box, *_names(scene, box), rng.uniform(0.03, 0.15)))

    found.sort(key=lambda one: -one[3])
    boxes = np.array([one[0] for one in found], np.float32)
    conf = np.array([one[3] for one in found], np.float32)
    return tsv.ImageRegions(
        img_id=img_id, height=HEIGHT, width=WIDTH,
        classes=np.array([one[1] for one in found], np.int64), class_conf=conf,
        attributes=np.array([one[2] for one in found], np.int64), attribute_conf=conf * np.float32(0.9),
        boxes=boxes, features=extract(pixels, boxes))


def _inside(box: np.ndarray) -> np.ndarray:
    """`box` cut to the picture."""
    return np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])


def _fit(box, thing: Thing) -> float:
    """How well a box fits a thing, 0 to 1: the smaller of the two shares that they have in common."""
    return min(covered(box, thing.box), covered(thing.box, box))


def _names(scene: Scene, box) -> tuple[int, int]:
    """Class and attribute of a box that aims at nothing: those of the thing that fills most of it, if one does."""
    best = max(scene.things, key=lambda thing: covered(box, thing.box))
    if covered(box, best.box) < 0.2:
        return CLASSES.index('background'), ATTRIBUTES.index('plain')
    return SHAPES.index(best.shape), ATTRIBUTES.index(best.colour)
