"""Statements that a picture entails, contradicts, or leaves open (neutral), as in SNLI-VE.

A statement says something of one thing, or of two: "The red star is left of the circle." If the picture shows such things, it
tells whether that is so. If it shows no such thing, it says nothing about it: the statement is neutral. As far as the pictures
allow each statement comes with three pictures, one for each label, so that the words say nothing of the label.
"""
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from shapes.captions import WORDINGS, disjoint
from shapes.questions import (
    FIELDS,
    SIDES,
    Description,
    ambiguous,
    clearly_beside,
    describe,
    fill,
    in_half,
    outermost,
    sample_kinds,
)
from shapes.scene import Scene, Thing

SHARES = {'colour': 0.2, 'shape': 0.15, 'size': 0.2, 'place': 0.2, 'relation': 0.1, 'comparison': 0.05, 'outermost': 0.1}
# In the hard world, too, where more than one thing has a shape or a colour.
LONG_SHARES = {kind: share * 0.8 for kind, share in SHARES.items()} | {'chain': 0.2}
LABELS = ('entailment', 'neutral', 'contradiction')
OPPOSITE = {'left': 'right', 'right': 'left', 'above': 'below', 'below': 'above', 'small': 'large', 'large': 'small'}
ALIKE = {'diamond': 'square', 'square': 'diamond'}  # see questions.ambiguous
TRIES = 30  # statements for one set


@dataclass(frozen=True)
class StatementFamily:
    """Templates of a statement, the attributes that describe its thing, or its two, and the values of its other slot."""
    templates: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]
    slot: str
    values: tuple[str, ...]
    holds: Callable[..., bool | None]  # of scene, value and the thing or the two; None: ambiguous
    things: str = 'x'


def _differ(field):
    """A rule: whether a thing has this colour or shape."""
    return lambda scene, value, x: None if ambiguous(value, getattr(x, field)) else getattr(x, field) == value


def _either(rule):
    """A rule that is true if `rule` holds for the value, false if it holds for the opposite value."""
    return lambda scene, value, *things: (
        True if rule(scene, value, *things) else False if rule(scene, OPPOSITE[value], *things) else None)


def _outermost(scene, value, x):
    first = outermost(scene, value)
    return None if first is None else first == x


def _beside_both(scene, side, x, y, z):
    sides = [clearly_beside(x, other, side) - clearly_beside(other, x, side) for other in (y, z)]
    return True if sides == [1, 1] else False if -1 in sides else None


_PAIR = (('colour',), ('shape',), ('colour', 'shape'))
FAMILIES = {
    'colour': StatementFamily(('The {x.one} is {colour}.',), (('shape',), ('size', 'shape')), 'colour', FIELDS['colour'],
                              _differ('colour')),
    'shape': StatementFamily(('The {x.one} is a {shape}.',), (('colour',), ('size', 'colour')), 'shape', FIELDS['shape'],
                             _differ('shape')),
    'size': StatementFamily(('The {x.one} is {value}.',), _PAIR, 'value', FIELDS['size'],
                            lambda scene, value, x: x.size == value),
    'place': StatementFamily(('The {x.one} is {place}.', '{place} there is the {x.one}.'), _PAIR, 'place', tuple(SIDES),
                             _either(lambda scene, side, x: in_half(x, side))),
    'relation': StatementFamily(('The {x.one} is {where} the {y.one}.',), _PAIR, 'where', tuple(SIDES),
                                _either(lambda scene, side, x, y: clearly_beside(x, y, side)), 'xy'),
    'comparison': StatementFamily(('The {x.one} is {more} than the {y.one}.',), _PAIR, 'more', FIELDS['size'],
                                  _either(lambda scene, size, x, y: x.size == size != y.size), 'xy'),
    'outermost': StatementFamily(('The {x.one} is {edge}.',), _PAIR, 'edge', tuple(SIDES), _outermost),
    'chain': StatementFamily(('The {x.one} is {where} both the {y.one} and the {z.one}.',), _PAIR[2:], 'where', tuple(SIDES),
                             _beside_both, 'xyz'),
}


class Pictures:
    """The scenes of a split, to be looked up by the things that they show."""

    def __init__(self, scenes: dict[str, Scene]):
        self.scenes, self.ids = scenes, [*scenes]
        self.showing = lru_cache(None)(self._showing)

    def _showing(self, x: Description) -> tuple[dict[str, Thing], set[str]]:
        """({image id: its only thing that matches x, which nothing hides}, image ids without anything that is like x)."""
        alike = Description(x.size, x.colour, ALIKE.get(x.shape, x.shape))
        matching = {img_id: x.matching(scene) for img_id, scene in self.scenes.items()}
        things = {img_id: group[0] for img_id, group in matching.items()
                  if len(group) == 1 and not self.scenes[img_id].partly_hidden(group[0])}
        return things, {img_id for img_id, group in matching.items() if not group and not alike.matching(self.scenes[img_id])}

    def by_label(self, family: StatementFamily, value: str, descriptions: list[Description],
                 rng: random.Random) -> dict[str, str]:
        """{label: image id} of a statement, as far as the scenes have one for a label."""
        shown = [self.showing(x) for x in descriptions]
        absent = sorted(set().union(*(without for _, without in shown)))
        chosen = {'neutral': rng.choice(absent)} if absent else {}
        present = sorted(set.intersection(*(set(things) for things, _ in shown)))
        for img_id in rng.sample(present, len(present)):
            truth = family.holds(self.scenes[img_id], value, *(things[img_id] for things, _ in shown))
            if truth is not None:
                chosen.setdefault('entailment' if truth else 'contradiction', img_id)
            if len(chosen) == len(LABELS):
                break
        return chosen


def generate(scenes: dict[str, Scene], sets: int, split: str, rng: random.Random) -> list[dict]:
    """The statements of one split, three examples a set where the scenes allow it.

    Returns:
        {'pairID', 'img_id', 'sent', 'label', 'question_type'} each.
    """
    pictures, examples = Pictures(scenes), []
    shares = LONG_SHARES if any(scene.rules.hops for scene in scenes.values()) else SHARES
    for kind in sample_kinds(shares, sets, rng):
        best = {}, '', ''
        for other in (*[kind] * TRIES, *[*shares] * TRIES):
            chosen, sentence = _statement(pictures, FAMILIES[other], rng)
            best = max(best, (chosen, sentence, other), key=lambda one: len(one[0]))
            if len(chosen) == len(LABELS):
                break
        chosen, sentence, kind = best
        for label in rng.sample([*chosen], len(chosen)):
            examples.append({'pairID': f'{split}-{len(examples)}', 'img_id': chosen[label], 'sent': sentence, 'label': label,
                             'question_type': kind})
    return examples


def _statement(pictures: Pictures, family: StatementFamily, rng: random.Random) -> tuple[dict[str, str], str]:
    """({label: image id}, the sentence) of a statement about things of one of the scenes."""
    scene = pictures.scenes[rng.choice(pictures.ids)]
    things = rng.sample(scene.things, len(family.things))
    slots = {name: describe(thing, rng.choice(family.fields)) for name, thing in zip(family.things, things, strict=True)}
    value = rng.choice(family.values)
    chosen = pictures.by_label(family, value, [*slots.values()], rng) if disjoint(slots) else {}
    sentence = fill(family.templates, {**slots, family.slot: value}, rng, WORDINGS)
    return chosen, sentence[0].upper() + sentence[1:]
