"""Referring expressions as in RefCOCO: each describes one thing of a picture and no other, and words alone do not tell where it
is. Those of the kinds relation and edge need more than the attributes of things."""
import random
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from shapes.baselines import masked
from shapes.questions import (
    CENTRE,
    FIELDS,
    MARGIN,
    SIDES,
    Description,
    Related,
    ambiguous,
    clearly_beside,
    describe,
    fill,
    fits,
    offset,
    single_out,
    unique_thing,
)
from shapes.scene import Scene, Thing, covered

FIELD_SETS = (('shape',), ('colour',), ('size', 'shape'), ('colour', 'shape'), ('size', 'colour', 'shape'))
TRIES = 120  # samples for each expression
Expression = tuple[dict[str, Description | str], Thing]  # what fills the slots of a template, and the thing


def candidates(scene: Scene, x: Description) -> list[Thing]:
    """The things that people could mean; a diamond is a square on its corner."""
    return [thing for thing in x.within(scene) if all(
        value in ('', getattr(thing, field)) or ambiguous(value, getattr(thing, field))
        for field, value in ((field, getattr(x, field)) for field in FIELDS))]


def by_attributes(scene: Scene, rng: random.Random) -> Expression | None:
    thing = rng.choice(scene.things)
    x = describe(thing, rng.choice(FIELD_SETS))
    return ({'x': x}, thing) if candidates(scene, x) == [thing] else None


def by_relation(scene: Scene, rng: random.Random) -> Expression | None:
    """The one thing of this description that lies to this side of another; there are more of the description."""
    side, thing = rng.choice(tuple(SIDES)), rng.choice(scene.things)
    if scene.rules.hops:
        x = single_out(scene, thing, rng.choice(FIELD_SETS[:3]), rng, scene.rules.hops)
        return (x.slots(), thing) if isinstance(x, Related) and candidates(scene, x) == [thing] else None
    x, match = describe(thing, rng.choice(FIELD_SETS[:3])), unique_thing(scene, rng, rng.choice(FIELD_SETS[2:]))
    if not match or candidates(scene, match[0]) != [match[1]] or match[1] == thing:
        return None
    y, anchor = match
    others = [other for other in candidates(scene, x) if other not in (thing, anchor)]
    clear = clearly_beside(thing, anchor, side) and all(offset(other, anchor, side) <= -MARGIN / 2 for other in others)
    return ({'x': x, 'where': side, 'y': y}, thing) if others and clear else None


def by_edge(scene: Scene, rng: random.Random) -> Expression | None:
    """Of several things of this description the one furthest to this side."""
    side, thing = rng.choice(tuple(SIDES)), rng.choice(scene.things)
    x = describe(thing, rng.choice(((), *FIELD_SETS[:3])))
    others = [other for other in candidates(scene, x) if other != thing]
    clear = all(offset(thing, CENTRE, side) - offset(other, CENTRE, side) >= MARGIN for other in others)
    return ({'x': x, 'edge': side}, thing) if others and clear else None


KINDS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    'attributes': (by_attributes, ('the {x.one}', '{x.one}')),
    'relation': (by_relation, ('the {x.one} {where} the {y.one}', '{x.one} {where} the {y.one}')),
    'edge': (by_edge, ('the {x.one} {edge}', '{x.one} {edge}'))}


def generate(scenes: dict[str, Scene], count: int, first_id: int, rng: random.Random) -> list[dict]:
    """Up to `count` different expressions for each {image id: scene}, as annotations."""
    items = []
    for img_id, scene in scenes.items():
        sentences = set()
        for i in range(count):
            kind = list(KINDS)[i % len(KINDS)]
            sample, templates = KINDS[kind]
            for _ in range(TRIES):
                if not (expression := sample(scene, rng)):
                    continue
                sent = fill(templates, expression[0], rng)
                if sent not in sentences and fits(sent):
                    sentences.add(sent)
                    items.append({'ref_id': first_id + len(items), 'img_id': img_id, 'sent': sent,
                                  'box': [round(side, 2) for side in expression[1].box], 'question_type': kind})
                    break
    return items


def text_only(train: list[dict], evaluated: list[dict]) -> float:
    """Per cent of `evaluated` where the mean box of the same words in `train`, else of the same words without attributes,
    overlaps the right one by half."""
    keys, boxes = (lambda item: item['sent'], lambda item: masked(item['sent']), lambda item: ''), defaultdict(list)
    for item in train:
        for key in keys:
            boxes[key(item)].append(item['box'])
    means = {words: np.mean(of_words, 0) for words, of_words in boxes.items()}
    hits = 0
    for item in evaluated:
        guess, box = next(means[key(item)] for key in keys if key(item) in means), item['box']
        shared = covered(guess, box) * (guess[2] - guess[0]) * (guess[3] - guess[1])
        hits += shared >= 0.5 * (sum((one[2] - one[0]) * (one[3] - one[1]) for one in (guess, box)) - shared)
    return 100 * hits / len(evaluated)
