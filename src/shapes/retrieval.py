"""Captions for retrieval, and near misses of them: the same caption with one word changed, so that it is false of the picture."""
import random
from collections.abc import Iterator
from dataclasses import replace
from math import comb

from shapes.captions import WORDINGS, Caption, disjoint, fits, generate
from shapes.questions import FIELDS, Description, ambiguous, fill
from shapes.scene import Scene
from tasks.ranking import RECALLS

OPPOSITES = {'left': 'right', 'right': 'left', 'above': 'below', 'below': 'above'}
# The split of VQA whose pictures each file is about.
FILES = {'coco_train': 'train', 'coco_valid': 'nominival', 'coco_test': 'minival', 'near_misses': 'minival'}
TRIES = 20  # wordings and changes of one caption


def near_misses(scenes: dict[str, Scene], rng: random.Random) -> list[dict]:
    """[{'img_id', 'sent', 'foil'}], one a picture as far as one is found: a caption, and one that differs in one word and is
    false of the picture."""
    pairs = []
    for img_id, (caption,) in generate(scenes, 1, rng).items():
        if foil := next(filter(None, (_near_miss(caption, scenes[img_id], rng) for _ in range(TRIES))), None):
            pairs.append({'img_id': img_id, 'sent': foil[0], 'foil': foil[1]})
    return pairs


def chance(annotations: list[dict]) -> float:
    """The mean of the six recalls, in per cent, that a ranking at random has."""
    counts = [len(image['sent']) for image in annotations]
    total, images = sum(counts), len(counts)
    by_text = [min(k / images, 1) for k in RECALLS]
    by_image = [sum(1 - comb(total - count, k) / comb(total, k) for count in counts) / images for k in RECALLS if k <= total]
    return 100 * (sum(by_text) + sum(by_image) + len(RECALLS) - len(by_image)) / (2 * len(RECALLS))


def _near_miss(caption: Caption, scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """(caption, near miss) of one change, or None if that is true as well, or changes more than one word."""
    slots = rng.choice(list(_changed(caption.slots, rng)))
    if not disjoint(slots) or caption.family.holds(scene, **slots):
        return None
    seed = rng.random()  # both sentences have the same template and wordings
    sentences = [fill(caption.family.templates, one, random.Random(seed), WORDINGS) for one in (caption.slots, slots)]
    words = [sentence.split() for sentence in sentences]
    if not fits(sentences[0]) or len(words[0]) != len(words[1]):
        return None
    if sum(one != other for one, other in zip(*words, strict=True)) != 1:
        return None
    return tuple(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _changed(slots: dict, rng: random.Random) -> Iterator[dict]:
    """The slots with another size, colour or shape of a thing, or with the opposite side."""
    for slot, value in slots.items():
        if isinstance(value, Description):
            for field, values in FIELDS.items():
                if old := getattr(value, field):
                    others = [one for one in values if one != old and not ambiguous(one, old)]
                    yield slots | {slot: replace(value, **{field: rng.choice(others)})}
        elif value in OPPOSITES:
            yield slots | {slot: OPPOSITES[value]}
        elif slot in ('value', 'absent'):
            values = FIELDS['size' if slot == 'value' else 'colour']
            yield slots | {slot: rng.choice([one for one in values if one != value])}
