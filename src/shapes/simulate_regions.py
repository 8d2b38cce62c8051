"""Fabricates the regions of a known scene as a detector would return them: accurate boxes, inaccurate ones, parts of things,
pieces of background."""
from dataclasses import replace

import numpy as np

from regions import tsv
from shapes.features import extract
from shapes.scene import COLOURS, HEIGHT, SHAPES, WIDTH, Scene, covered

NUM_BOXES = 36
CLASSES = (*SHAPES, 'background')
ATTRIBUTES = (*COLOURS, 'plain')
INACCURATE = 3  # inaccurate boxes per thing at most, besides an accurate one and a part: fewer where many things leave less room


def regions(img_id: str, scene: Scene, pixels: np.ndarray, rng: np.random.Generator,
            probabilities: bool = False) -> tsv.ImageRegions:
    """The 36 regions of a picture, sorted by falling confidence.

    Boxes, classes and confidences come from `scene` and `rng`; features from `pixels` (height, width, 3) alone. probabilities:
    with class_probabilities; the rest does not depend on it.
    """
    candidates = []  # (box, class, attribute, confidence)
    inaccurate = min(INACCURATE, max(0, (NUM_BOXES - 4) // len(scene.things) - 2))
    for thing in scene.things:
        names = SHAPES.index(thing.shape), ATTRIBUTES.index(thing.colour)
        candidates.append((_clip(np.array(thing.box) + rng.normal(0, 0.5, 4)), *names, rng.uniform(0.8, 0.98)))
        for _ in range(inaccurate):
            shift, scale = rng.uniform(-0.5, 0.5, 2) * thing.radius, rng.uniform(0.75, 1.4, 2) * thing.radius
            centre = np.array([thing.x, thing.y]) + shift
            box = _clip(np.concatenate([centre - scale, centre + scale]))
            fit = min(covered(box, thing.box), covered(thing.box, box))
            candidates.append((box, *names, rng.uniform(0.35, 0.7) * fit))
        part, edge = np.array(thing.box), rng.integers(4)
        part[edge] = (thing.x, thing.y)[edge % 2]  # one edge moved to the centre: half of the thing
        candidates.append((_clip(part), *names, rng.uniform(0.2, 0.4)))
    picture = np.array([0, 0, WIDTH, HEIGHT], float)
    candidates.append((picture, *_largest_inside(scene, picture), 0.15))
    while len(candidates) < NUM_BOXES:
        width, height = rng.uniform(14, 60, 2)
        x, y = rng.uniform(0, WIDTH - width), rng.uniform(0, HEIGHT - height)
        box = np.array([x, y, x + width, y + height])
        candidates.append((box, *_largest_inside(scene, box), rng.uniform(0.03, 0.15)))

    candidates.sort(key=lambda candidate: -candidate[3])
    boxes, classes, attributes, conf = (
        np.array(column, dtype) for column, dtype in
        zip(zip(*candidates, strict=True), (np.float32, np.int64, np.int64, np.float32), strict=True))
    return tsv.ImageRegions(
        img_id=img_id, height=HEIGHT, width=WIDTH, classes=classes, class_conf=conf, attributes=attributes,
        attribute_conf=conf * np.float32(0.9), boxes=boxes, features=extract(pixels, boxes),
        class_probabilities=_probabilities(classes, conf, rng.spawn(1)[0]) if probabilities else None)


def _probabilities(classes: np.ndarray, conf: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(o, 1 + len(CLASSES)) float16, what is no object first: of each region the confidence of its class, and what is left shared
    out at random, most of it to no object."""
    others = rng.dirichlet([6.0, *[0.3] * len(CLASSES)], len(classes))
    probabilities = (1 - conf[:, None]) * others
    probabilities[np.arange(len(classes)), 1 + classes] += conf
    return probabilities.astype(np.float16)


def most_confident(image: tsv.ImageRegions, least: int, most: int, threshold: float) -> tsv.ImageRegions:
    """The first regions of an image: those of a confidence of at least `threshold`, but from `least` to `most`."""
    count = int(np.clip((image.class_conf >= threshold).sum(), least, most))
    return take(image, np.arange(min(count, len(image.boxes))))


def take(image: tsv.ImageRegions, places: np.ndarray) -> tsv.ImageRegions:
    """Some regions of an image, in this order."""
    arrays = {name: getattr(image, name) for name in tsv.COLUMNS}
    return replace(image, **{name: array[places] for name, array in arrays.items() if array is not None})


def _clip(box: np.ndarray) -> np.ndarray:
    """The part of a box that lies inside the picture."""
    return np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])


def _largest_inside(scene: Scene, box) -> tuple[int, int]:
    """Class and attribute of a box drawn at random: of the thing that fills most of it, or background if none fills 20 %."""
    largest = max(scene.things, key=lambda thing: covered(box, thing.box))
    if covered(box, largest.box) < 0.2:
        return CLASSES.index('background'), ATTRIBUTES.index('plain')
    return SHAPES.index(largest.shape), ATTRIBUTES.index(largest.colour)
