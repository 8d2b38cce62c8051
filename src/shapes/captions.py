"""Captions: sentences that say several things about a scene, true of it and false of nearly every other scene.

A caption is sampled: the slots of its family's templates are filled with descriptions of things of the scene and other words, and
samples that do not hold are rejected. The same rule tells whether the caption holds for any other scene.
"""
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product

from shapes import questions
from shapes.questions import FIELDS, NUMBER_WORDS, SIDES, WORDS, Description, clearly_beside, describe, fill, in_half, outermost
from shapes.scene import Scene, Thing

MIN_TOKENS = 8  # of a caption, full stop and commas included
TRIES = 40  # samples of one family for one caption, and families for it

PLACE_WORDS = {'left': ('on the left', 'in the left half'), 'right': ('on the right', 'in the right half'),
               'above': ('at the top', 'in the upper half'), 'below': ('at the bottom', 'in the lower half')}
NUMBERS = {**NUMBER_WORDS, 5: ('five', '5'), 6: ('six', '6')}
WORDINGS = {**WORDS, 'there': WORDS['where'], 'place': PLACE_WORDS, 'spot': PLACE_WORDS, 'end': WORDS['edge'],
            'number': NUMBERS, 'total': NUMBERS, 'up': {'above': ('upper', 'top'), 'below': ('lower', 'bottom')}}


@dataclass(frozen=True)
class CaptionFamily:
    """Templates of a caption, how their slots are sampled, and a rule that tells whether the result holds for a scene."""
    weight: float  # how often it is tried; some fit few scenes
    templates: tuple[str, ...]
    # Of each slot: for the descriptions x, y, z (of one thing each) and `many` (of several) the sets of attributes that they may
    # give; for other slots their values; () for the counts `number` (of the things that match `many`) and `total` (of all).
    choices: dict[str, tuple]
    holds: Callable[..., bool]  # of a scene, and the slots as keywords

    def sample(self, scene: Scene, rng: random.Random) -> tuple[dict, frozenset[Thing]]:
        """Slots of a caption that may or may not hold, and the things that it is about."""
        things, slots, about = rng.sample(scene.things, len(scene.things)), {}, set()
        for slot, options in self.choices.items():
            if slot in ('x', 'y', 'z', 'many'):
                thing = things.pop()
                slots[slot] = describe(thing, rng.choice(options))
                about |= {*slots[slot].matching(scene)} if slot == 'many' else {thing}
            elif options:
                slots[slot] = rng.choice(options)
            else:
                slots[slot] = len(scene.things if slot == 'total' else slots['many'].matching(scene))
        return slots, frozenset(about)


@dataclass(frozen=True)
class Caption:
    sent: str
    family: CaptionFamily
    slots: dict

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of a scene, the one it was made for or another."""
        return self.family.holds(scene, **self.slots)


# ---- parts of the rules

def disjoint(slots: dict) -> bool:
    """Whether no thing can match two of x, y and z: each two differ in an attribute that both give."""
    return all(any('' != getattr(one, field) != getattr(other, field) != '' for field in FIELDS)
               for one, other in combinations([slots[slot] for slot in 'xyz' if slot in slots], 2))


def exist(scene: Scene, *descriptions: Description, such: Callable[..., bool] = lambda *things: True) -> bool:
    """Whether there are things that match the (disjoint) descriptions and for which `such` is true."""
    return any(such(*things) for things in product(*(x.matching(scene) for x in descriptions)))


def exist_with_many(scene, many, number, *descriptions, such=lambda *things: True):
    """Whether exactly `number` > 1 things match `many`, and other things are as `exist` requires."""
    group = {*many.matching(scene)}
    return len(group) == number > 1 and exist(
        scene, *descriptions, such=lambda *things: not group & {*things} and such(*things))


# ---- the rules, a function per family

def _list(scene, x, y, z):
    return exist(scene, x, y, z)


def _relation(scene, x, where, y):
    return exist(scene, x, y, such=lambda one, other: clearly_beside(one, other, where))


def _chain(scene, x, where, y, there, z):
    return exist(scene, x, y, z, such=lambda one, other, third: (
        clearly_beside(one, other, where) and clearly_beside(one, third, there)))


def _ladder(scene, x, where, y, there, z):
    return exist(scene, x, y, z, such=lambda one, other, third: (
        clearly_beside(one, other, where) and clearly_beside(other, third, there)))


def _smaller(scene, x, y):
    return exist(scene, x, y, such=lambda one, other: (one.size, other.size) == ('large', 'small'))


def _many_beside(scene, many, number, where, x):
    group = many.matching(scene)
    return exist_with_many(scene, many, number, x, such=lambda one: all(clearly_beside(thing, one, where) for thing in group))


def _beside_many(scene, x, where, many, number):
    group = many.matching(scene)
    return exist_with_many(scene, many, number, x, such=lambda one: all(clearly_beside(one, thing, where) for thing in group))


def _count(scene, many, number, x, y):
    return exist_with_many(scene, many, number, x, y)


def _among(scene, total, many, number, x):
    return len(scene.things) == total and exist_with_many(scene, many, number, x)


def _only_two(scene, many, x, y):
    group = many.matching(scene)
    return len(group) == 2 and exist(scene, x, y, such=lambda *things: {*things} == {*group})


def _only_one(scene, value, x):
    return exist(scene, x, such=lambda one: [one] == Description(size=value).matching(scene))


def _places(scene, x, place, y, spot):
    return exist(scene, x, y, such=lambda one, other: in_half(one, place) and in_half(other, spot))


def _quarter(scene, x, up, across):
    return exist(scene, x, such=lambda one: in_half(one, up) and in_half(one, across))


def _outermost(scene, x, edge, y, end):
    return exist(scene, x, y, such=lambda one, other: (one, other) == (outermost(scene, edge), outermost(scene, end)))


def _absent(scene, x, y, absent):
    return not Description(colour=absent).matching(scene) and exist(scene, x, y)


# ---- the families

LIST = ('{x.a}, {y.a} and {z.a}.', 'There are {x.a}, {y.a} and {z.a}.', 'The {picture} shows {x.a}, {y.a} and {z.a}.',
        'You can see {x.a}, {y.a} and {z.a}.', '{x.a} and {y.a} together with {z.a}.')
RELATION = ('{x.a} {where} {y.a}.', '{x.a} is {where} {y.a}.', 'There is {x.a} {where} {y.a}.', '{where} {y.a} there is {x.a}.',
            'The {picture} shows {x.a} {where} {y.a}.')
CHAIN = ('{x.a} {where} {y.a} and {there} {z.a}.', '{x.a} is {where} {y.a} and {there} {z.a}.')
LADDER = ('{x.a} {where} {y.a} that is {there} {z.a}.', 'There is {x.a} {where} {y.a} that is {there} {z.a}.')
SMALLER = ('{x.a} and a smaller {y.one}.', '{x.a} that is larger than {y.a}.', '{y.a} that is smaller than {x.a}.',
           'There are {y.a} and a bigger {x.one}.', 'The {picture} shows {x.a} and a smaller {y.one}.')
MANY_BESIDE = ('{number} {many.many} {where} {x.a}.', 'There are {number} {many.many} {where} {x.a}.',
               '{where} {x.a} there are {number} {many.many}.', '{number} {many.many} are {where} {x.a}.')
BESIDE_MANY = ('{x.a} {where} {number} {many.many}.', 'There is {x.a} {where} {number} {many.many}.',
               '{x.a} is {where} {number} {many.many}.')
COUNT = ('{number} {many.many}, {x.a} and {y.a}.', 'There are {number} {many.many} as well as {x.a} and {y.a}.',
         '{x.a} and {y.a} with {number} {many.many}.')
AMONG = ('{total} things, among them {number} {many.many} and {x.a}.',
         'Among {total} things there are {number} {many.many} and {x.a}.',
         '{number} of the {total} things are {many.many}, and there is {x.a}.')
ONLY_TWO = ('The two {many.many} are {x.a} and {y.a}.', '{x.a} and {y.a} are the only {many.many}.',
            'The only {many.many} are {x.a} and {y.a}.')
ONLY_ONE = ('Only one thing is {value}, {x.a}.', 'The only {value} thing in the {picture} is {x.a}.',
            '{x.a} is the only {value} thing.')
PLACES = ('{x.a} {place} and {y.a} {spot}.', 'There is {x.a} {place} and {y.a} {spot}.',
          '{x.a} is {place} and {y.a} is {spot}.')
QUARTER = ('{x.a} in the {up} {across} quarter of the {picture}.', 'There is {x.a} in the {up} {across} quarter.',
           'In the {up} {across} quarter there is {x.a}.')
OUTERMOST = ('{x.a} is {edge} and {y.a} is {end}.', '{edge} is {x.a} and {end} is {y.a}.')
ABSENT = ('{x.a} and {y.a}, but nothing {absent}.', 'Nothing is {absent}, but there are {x.a} and {y.a}.')

_SIDES, _HEIGHTS = tuple(SIDES), ('above', 'below')
_ONE = (('size', 'colour', 'shape'), ('size', 'colour', 'shape'), ('colour', 'shape'))
_TWO = (('colour', 'shape'), ('size', 'shape'), ('size', 'colour'))
_MANY = (*_TWO, ('colour',), ('shape',))
FAMILIES = (
    CaptionFamily(0.12, LIST, {'x': _TWO, 'y': _ONE, 'z': _ONE}, _list),
    CaptionFamily(0.20, RELATION, {'x': _ONE, 'where': _SIDES, 'y': _ONE}, _relation),
    CaptionFamily(0.09, CHAIN, {'x': _ONE, 'where': _SIDES, 'y': _TWO, 'there': _SIDES, 'z': _TWO}, _chain),
    CaptionFamily(0.06, SMALLER, {'x': _TWO[:1], 'y': _TWO[:1]}, _smaller),
    CaptionFamily(0.06, MANY_BESIDE, {'many': _MANY, 'number': (), 'where': _SIDES, 'x': _ONE}, _many_beside),
    CaptionFamily(0.06, BESIDE_MANY, {'x': _ONE, 'where': _SIDES, 'many': _MANY, 'number': ()}, _beside_many),
    CaptionFamily(0.08, COUNT, {'many': _MANY, 'number': (), 'x': _ONE, 'y': _TWO}, _count),
    CaptionFamily(0.07, AMONG, {'total': (), 'many': _MANY, 'number': (), 'x': _ONE}, _among),
    CaptionFamily(0.04, ONLY_TWO, {'many': (('size', 'colour'), ('colour',)), 'x': (('shape',),), 'y': (('shape',),)}, _only_two),
    CaptionFamily(0.06, ONLY_ONE, {'value': FIELDS['size'], 'x': _TWO[:1]}, _only_one),
    CaptionFamily(0.08, PLACES, {'x': _ONE, 'place': _SIDES, 'y': _ONE, 'spot': _SIDES}, _places),
    CaptionFamily(0.04, QUARTER, {'x': _ONE[:1], 'up': _HEIGHTS, 'across': ('left', 'right')}, _quarter),
    CaptionFamily(0.08, OUTERMOST, {'x': _ONE, 'edge': _SIDES, 'y': _ONE, 'end': _SIDES}, _outermost),
    CaptionFamily(0.02, ABSENT, {'x': _ONE, 'y': _TWO, 'absent': FIELDS['colour']}, _absent),
)
LONG = (CaptionFamily(0.6, LADDER, {'x': _TWO, 'where': _SIDES, 'y': _TWO, 'there': _SIDES, 'z': _TWO}, _ladder),)  # hard world


# ---- generation

def generate(scenes: dict[str, Scene], per_image: int, rng: random.Random) -> dict[str, list[Caption]]:
    """{image id: `per_image` captions} of scenes by image id; no two of a family that say the same or are about the same things.

    Raises:
        ValueError: a scene has too few different captions.
    """
    captions = {}
    for img_id, scene in scenes.items():
        choices = FAMILIES + LONG if scene.rules.hops else FAMILIES
        weights = [family.weight for family in choices]
        captions[img_id], topics = [], set()
        for _ in range(per_image):
            families = rng.choices(choices, weights, k=TRIES)
            caption = next(filter(None, (_caption(family, scene, topics, rng) for family in families)), None)
            if caption is None:
                raise ValueError(f'{img_id}: no more different captions; choose fewer --captions')
            captions[img_id].append(caption)
    return captions


def fits(sentence: str) -> bool:
    """Whether a sentence has as many tokens as a caption is to have."""
    return questions.fits(sentence, MIN_TOKENS)


def _caption(family: CaptionFamily, scene: Scene, topics: set, rng: random.Random) -> Caption | None:
    """A caption of a family, whose topics are added to `topics`; None if no sample was new and held."""
    for _ in range(TRIES):
        slots, about = family.sample(scene, rng)
        new = {(family.templates, about), (family.templates, frozenset(slots.values()))}
        if not new & topics and disjoint(slots) and family.holds(scene, **slots):
            sentence = fill(family.templates, slots, rng, WORDINGS)
            if fits(sentence):
                topics |= new
                return Caption(sentence[0].upper() + sentence[1:], family, slots)
    return None
