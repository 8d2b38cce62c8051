"""VCR-like questions of the sample world: four answers and four rationales, whose words point at things of the scene.

In half of the questions the things that are named have a shape of their own, so that their name, the shape, tells which they are;
in the others only the regions that the words point at may tell it. Of four answers, and of four rationales, exactly one is true.
"""
import random
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from annotations.object_masks import mask, packed
from regions import tsv
from shapes.draw import polygon
from shapes.features import extract
from shapes.questions import FIELDS, MARGIN, SIDES, clearly_beside, offset
from shapes.scene import COLOURS, HEIGHT, SHAPES, WIDTH, Scene, Thing

SPLITS = {'train2014': 'train', 'val2014': 'val', 'test2015': 'test'}  # folder of images -> split; the last has no labels
LABELS = ('answer_label', 'rationale_label')
PER_IMAGE = 6
SHARE_COLOUR, SHARE_UNIQUE = 0.7, 0.5
OPPOSITE = {'left': 'right', 'right': 'left', 'above': 'below', 'below': 'above'}
SIDE_WORDS = {'left': ['left', 'of'], 'right': ['right', 'of'], 'above': ['above'], 'below': ['below']}
TRIES = 20


def regions(images: Path, img_id: str, scene: Scene) -> tsv.ImageRegions:
    """The things of a scene, in its order, as regions of the picture in a folder: as extracted for given boxes."""
    boxes = np.clip(np.array([thing.box for thing in scene.things], np.float32), 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
    boxes = boxes.astype(np.float32)
    with Image.open(images / f'{img_id}.png') as picture:
        pixels = np.asarray(picture.convert('RGB'))
    classes, attributes = (np.array(column, np.int64) for column in zip(*(
        (SHAPES.index(thing.shape), list(COLOURS).index(thing.colour)) for thing in scene.things), strict=True))
    sure = np.ones(len(boxes), np.float32)
    return tsv.ImageRegions(img_id=img_id, height=HEIGHT, width=WIDTH, classes=classes, class_conf=sure, attributes=attributes,
                            attribute_conf=sure, boxes=boxes, features=extract(pixels, boxes))


def boxes_and_masks(image: tsv.ImageRegions, scene: Scene) -> dict:
    """What a file of boxes holds about the `regions` of a scene."""
    boxes = image.boxes.tolist()
    masks = [packed(mask([polygon(thing)], box)) for thing, box in zip(scene.things, boxes, strict=True)]
    return {'img_id': image.img_id, 'width': image.width, 'height': image.height, 'boxes': boxes, 'masks': masks}


def generate(scenes: dict[str, Scene], rng: random.Random, prefix: str) -> Iterator[dict]:
    """PER_IMAGE examples about each of {img_id: scene} that allows as many."""
    number, frequency = 0, Counter(dict.fromkeys(product(SIDES, FIELDS['size']), 0))
    for img_id, scene in scenes.items():
        names = [thing.shape for thing in scene.things]
        for _ in range(PER_IMAGE):
            kind = rng.random() < SHARE_COLOUR, rng.random() < SHARE_UNIQUE
            # The rarest side and size first, so that all are about equally frequent.
            wanted = sorted(frequency, key=lambda pair: (frequency[pair], rng.random()))
            samples = ((pair, _sample(scene, rng, *pair, *kind)) for pair in wanted for _ in range(TRIES))
            pair, example = next((sample for sample in samples if sample[1]), (None, None))
            if example:
                frequency[pair] += 1
                yield {'annot_id': f'{prefix}-{number}', 'img_id': img_id, 'names': names,
                       'classes': [1 + SHAPES.index(name) for name in names], **example}
                number += 1


def _sample(scene: Scene, rng: random.Random, side: str, size: str, about_colour: bool, unique: bool) -> dict | None:
    shapes = Counter(thing.shape for thing in scene.things)
    places = [i for i, thing in enumerate(scene.things) if shapes[thing.shape] == 1 or not unique]
    if len(places) < 2:
        return None
    one, other = rng.sample(places, 2)
    thing, neighbour = scene.things[one], scene.things[other]
    if thing.size != size or not clearly_beside(thing, neighbour, side) or not (about_colour or _only_side(thing, neighbour)):
        return None
    colours = [thing.colour, *rng.sample([colour for colour in FIELDS['colour'] if colour != thing.colour], 3)]
    sizes = (size, next(value for value in FIELDS['size'] if value != size))
    if about_colour:
        question, answers = ['What', 'color', 'is', [one], '?'], [[[one], 'is', colour, '.'] for colour in colours]
        rationales = [[[one], 'is', value, 'and', [other], 'is', *SIDE_WORDS[where], [one], '.']
                      for value, where in product(sizes, (OPPOSITE[side], side))]
    else:
        question = ['Where', 'is', [one], '?']
        answers = [[[one], 'is', *SIDE_WORDS[each], [other], '.'] for each in (side, *(each for each in SIDES if each != side))]
        rationales = [[[one], 'is', value, 'and', colour, '.'] for value, colour in product(sizes, colours[:2])]
    order, why = rng.sample(range(4), 4), rng.sample(range(4), 4)
    return {'question': question, 'answer_choices': [answers[i] for i in order], 'answer_label': order.index(0),
            'rationale_choices': [rationales[i] for i in why], 'rationale_label': why.index(0)}


def _only_side(thing: Thing, other: Thing) -> str | None:
    """The one side of another thing on which a thing clearly lies, or None: it lies askew, or on no side."""
    sides = [side for side in SIDES if clearly_beside(thing, other, side)]
    askew = [side for side in SIDES if side not in sides and offset(thing, other, side) > MARGIN / 2]
    return sides[0] if len(sides) == 1 and not askew else None


def text_only(train: list[dict], evaluated: list[dict], kind: str) -> float:
    """The best score, per cent, of choosing by words alone. kind: 'answer' or 'rationale'.

    A choice is scored by how often its words were right in training: those of the choice, with question and answer, and those of
    the choice without the names of things, whichever of the three is best.
    """
    def words(text, names):
        return ' '.join(' '.join(names[i] for i in word) if isinstance(word, list) else word for word in text)

    keys = (lambda item, choice: words(choice, item['names']),
            lambda item, choice: (words(item['question'], item['names']), words(choice, item['names'])) + (
                (words(item['answer_choices'][item['answer_label']], item['names']),) if kind == 'rationale' else ()),
            lambda item, choice: ' '.join(word for word in choice if isinstance(word, str)))
    best = 0.0
    for key in keys:
        choices, right = Counter(), Counter()
        for item in train:
            for place, choice in enumerate(item[f'{kind}_choices']):
                choices[key(item, choice)] += 1
                right[key(item, choice)] += place == item[f'{kind}_label']
        hits = 0
        for item in evaluated:
            shares = [(right[key(item, choice)] + 1) / (choices[key(item, choice)] + 4) for choice in item[f'{kind}_choices']]
            hits += shares.index(max(shares)) == item[f'{kind}_label']
        best = max(best, 100 * hits / max(len(evaluated), 1))
    return best
