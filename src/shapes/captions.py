"""Captions: sentences that tell several things of a scene, all true, and that are false of nearly every other scene.

A `Form` is one way to tell: what may fill its templates, and when that holds. A caption is a form filled with what is found in
the scene; draws that do not hold there are thrown away, so that every caption is true by the same rule that can be asked of
any other scene.
"""
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product

from shapes.questions import (
    EDGE_WORDS,
    FIELDS,
    NUMBER_WORDS,
    SIDES,
    WHERE_WORDS,
    WORDS,
    Description,
    clear,
    describe,
    furthest,
    placed,
    sentence,
)
from shapes.scene import Scene, Thing

TOKENS = 8, 18  # of a caption, full stop and commas included: more would be cut
TRIES = 40  # draws of one form for one caption, and forms for it

PLACE_WORDS = {'left': ('on the left', 'in the left half'), 'right': ('on the right', 'in the right half'),
               'above': ('at the top', 'in the upper half'), 'below': ('at the bottom', 'in the lower half')}
NUMBERS = {**NUMBER_WORDS, 5: ('five', '5'), 6: ('six', '6')}
SAID = {**WORDS, 'there': WHERE_WORDS, 'place': PLACE_WORDS, 'spot': PLACE_WORDS, 'end': EDGE_WORDS, 'number': NUMBERS,
        'total': NUMBERS, 'up': {'above': ('upper', 'top'), 'below': ('lower', 'bottom')}}


@dataclass(frozen=True)
class Form:
    """One way to tell something of a scene."""
    weight: float  # how often it is tried; some fit few scenes
    templates: tuple[str, ...]
    choices: dict[str, tuple]  # of each slot; of a description the names that it may give, of `number` and `total` nothing
    holds: Callable[..., bool]  # of a scene and what fills the slots

    def draw(self, scene: Scene, rng: random.Random) -> tuple[dict, frozenset[Thing]]:
        """What might fill the slots, whether it holds or not, and the things that it is about. `many` is of several things, x,
        y and z of one each."""
        things, slots, about = rng.sample(scene.things, len(scene.things)), {}, set()
        for slot, options in self.choices.items():
            if slot in ('x', 'y', 'z', 'many'):
                thing = things.pop()
                slots[slot] = describe(thing, rng.choice(options))
                about |= {*slots[slot].among(scene)} if slot == 'many' else {thing}
            elif options:
                slots[slot] = rng.choice(options)
            else:
                slots[slot] = len(scene.things if slot == 'total' else slots['many'].among(scene))
        return slots, frozenset(about)


@dataclass(frozen=True)
class Caption:
    sent: str
    form: Form
    slots: dict

    def holds(self, scene: Scene) -> bool:
        """Whether it is true of `scene`, be that the one it was made for or another."""
        return self.form.holds(scene, **self.slots)


# ---- when it holds, a function a form

def apart(slots: dict) -> bool:
    """Whether nothing could be two of x, y and z, as a red star could be a large star too."""
    return all(any('' != getattr(one, field) != getattr(other, field) != '' for field in FIELDS)
               for one, other in combinations([slots[slot] for slot in 'xyz' if slot in slots], 2))


def shown(scene: Scene, *wanted: Description, such: Callable[..., bool] = lambda *things: True) -> bool:
    """Whether there are things of these descriptions, which are `apart`, and `such` says yes to them."""
    return any(such(*things) for things in product(*(x.among(scene) for x in wanted)))


def _listed(scene, x, y, z):
    return shown(scene, x, y, z)


def _beside(scene, x, where, y):
    return shown(scene, x, y, such=lambda one, other: clear(one, other, where))


def _chain(scene, x, where, y, there, z):
    return shown(scene, x, y, z, such=lambda one, other, third: clear(one, other, where) and clear(one, third, there))


def _smaller(scene, x, y):
    return shown(scene, x, y, such=lambda one, other: (one.size, other.size) == ('large', 'small'))


def _with_many(scene, many, number, *others, such=lambda *things: True):
    """Whether there are exactly so many, and other things such as these."""
    group = {*many.among(scene)}
    return len(group) == number > 1 and shown(scene, *others, such=lambda *things: not group & {*things} and such(*things))


def _counted(scene, many, number, x, y):
    return _with_many(scene, many, number, x, y)


def _among(scene, total, many, number, x):
    return len(scene.things) == total and _with_many(scene, many, number, x)


def _many_beside(scene, many, number, where, x):
    return _with_many(scene, many, number, x, such=lambda one: all(clear(thing, one, where) for thing in many.among(scene)))


def _beside_many(scene, x, where, many, number):
    return _with_many(scene, many, number, x, such=lambda one: all(clear(one, thing, where) for thing in many.among(scene)))


def _only_two(scene, many, x, y):
    return len(many.among(scene)) == 2 and shown(scene, x, y, such=lambda *things: {*things} == {*many.among(scene)})


def _only_one(scene, value, x):
    return shown(scene, x, such=lambda one: [one] == Description(size=value).among(scene))


def _places(scene, x, place, y, spot):
    return shown(scene, x, y, such=lambda one, other: placed(one, place) and placed(other, spot))


def _quarter(scene, x, up, across):
    return shown(scene, x, such=lambda one: placed(one, up) and placed(one, across))


def _edges(scene, x, edge, y, end):
    return shown(scene, x, y, such=lambda one, other: (one, other) == (furthest(scene, edge), furthest(scene, end)))


def _absent(scene, x, y, absent):
    return not Description(colour=absent).among(scene) and shown(scene, x, y)


# ---- the forms

LIST = ('{x.a}, {y.a} and {z.a}.', 'There are {x.a}, {y.a} and {z.a}.', 'The {picture} shows {x.a}, {y.a} and {z.a}.',
        'You can see {x.a}, {y.a} and {z.a}.', '{x.a} and {y.a} together with {z.a}.')
BESIDE = ('{x.a} {where} {y.a}.', '{x.a} is {where} {y.a}.', 'There is {x.a} {where} {y.a}.', '{where} {y.a} there is {x.a}.',
          'The {picture} shows {x.a} {where} {y.a}.')
CHAIN = ('{x.a} {where} {y.a} and {there} {z.a}.', '{x.a} is {where} {y.a} and {there} {z.a}.')
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
EDGES = ('{x.a} is {edge} and {y.a} is {end}.', '{edge} is {x.a} and {end} is {y.a}.')
ABSENT = ('{x.a} and {y.a}, but nothing {absent}.', 'Nothing is {absent}, but there are {x.a} and {y.a}.')

_SIDES, _HEIGHTS = tuple(SIDES), ('above', 'below')
_ONE = (('size', 'colour', 'shape'), ('size', 'colour', 'shape'), ('colour', 'shape'))
_TWO = (('colour', 'shape'), ('size', 'shape'), ('size', 'colour'))
_MANY = (*_TWO, ('colour',), ('shape',))
FORMS = (
    Form(0.12, LIST, {'x': _TWO, 'y': _ONE, 'z': _ONE}, _listed),
    Form(0.20, BESIDE, {'x': _ONE, 'where': _SIDES, 'y': _ONE}, _beside),
    Form(0.09, CHAIN, {'x': _ONE, 'where': _SIDES, 'y': _TWO, 'there': _SIDES, 'z': _TWO}, _chain),
    Form(0.06, SMALLER, {'x': _TWO[:1], 'y': _TWO[:1]}, _smaller),
    Form(0.06, MANY_BESIDE, {'many': _MANY, 'number': (), 'where': _SIDES, 'x': _ONE}, _many_beside),
    Form(0.06, BESIDE_MANY, {'x': _ONE, 'where': _SIDES, 'many': _MANY, 'number': ()}, _beside_many),
    Form(0.08, COUNT, {'many': _MANY, 'number': (), 'x': _ONE, 'y': _TWO}, _counted),
    Form(0.07, AMONG, {'total': (), 'many': _MANY, 'number': (), 'x': _ONE}, _among),
    Form(0.04, ONLY_TWO, {'many': (('size', 'colour'), ('colour',)), 'x': (('shape',),), 'y': (('shape',),)}, _only_two),
    Form(0.06, ONLY_ONE, {'value': FIELDS['size'], 'x': _TWO[:1]}, _only_one),
    Form(0.08, PLACES, {'x': _ONE, 'place': _SIDES, 'y': _ONE, 'spot': _SIDES}, _places),
    Form(0.04, QUARTER, {'x': _ONE[:1], 'up': _HEIGHTS, 'across': ('left', 'right')}, _quarter),
    Form(0.08, EDGES, {'x': _ONE, 'edge': _SIDES, 'y': _ONE, 'end': _SIDES}, _edges),
    Form(0.02, ABSENT, {'x': _ONE, 'y': _TWO, 'absent': FIELDS['colour']}, _absent),
)


# ---- telling

def tell(scenes: dict[str, Scene], per_image: int, rng: random.Random) -> dict[str, list[Caption]]:
    """The captions of pictures, by image id as `scenes`: `per_image` of each, no two of one form that say the same or
    are about the same things.

    Raises:
        ValueError: a scene does not give so many.
    """
    told, weights = {}, [form.weight for form in FORMS]
    for img_id, scene in scenes.items():
        told[img_id], topics = [], set()
        for _ in range(per_image):
            forms = rng.choices(FORMS, weights, k=TRIES)
            found = next(filter(None, (_caption(form, scene, topics, rng) for form in forms)), None)
            if found is None:
                raise ValueError(f'{img_id}: nothing more to tell; choose fewer --captions')
            told[img_id].append(found)
    return told


def _caption(form: Form, scene: Scene, topics: set, rng: random.Random) -> Caption | None:
    """A caption of that form, whose topics go into `topics`; None if none was drawn that is new and holds."""
    for _ in range(TRIES):
        slots, about = form.draw(scene, rng)
        own = {(form.templates, about), (form.templates, frozenset(slots.values()))}
        if not own & topics and apart(slots) and form.holds(scene, **slots):
            said = sentence(form.templates, slots, rng, SAID)
            if TOKENS[0] <= len(re.findall(r'\w+|[^\w\s]', said)) <= TOKENS[1]:
                topics |= own
                return Caption(said[0].upper() + said[1:], form, slots)
    return None
