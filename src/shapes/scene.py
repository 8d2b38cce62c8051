"""Scenes: the ground truth of a picture, a few coloured shapes with a size and a place.

A `Scene` is all that is needed to draw the picture and to answer any question about it. It depends on (seed, index) alone, so
every process can make any scene.
"""
import random
from dataclasses import dataclass
from functools import cached_property, lru_cache

WIDTH, HEIGHT = 160, 120  # of every picture, pixels

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'diamond')
COLOURS = {'red': (214, 32, 38), 'orange': (246, 138, 20), 'yellow': (248, 226, 46), 'green': (36, 150, 52),
           'blue': (32, 76, 214), 'purple': (138, 40, 166), 'black': (18, 18, 20), 'white': (248, 248, 248)}
RADII = {'small': (9.0, 11.0), 'large': (19.0, 22.0)}  # half the side of the box, pixels: the ranges lie far apart
BACKGROUNDS = ((158, 148, 134), (134, 148, 158), (146, 156, 138), (156, 140, 150), (142, 142, 146))

SIDES = {'left': (-1, 0), 'right': (1, 0), 'above': (0, -1), 'below': (0, 1)}  # unit steps, y points down
MARGIN = 14.0  # pixels between two centres from which on one lies clearly to a side of the other
PARTLY_HIDDEN = 0.10  # from this share on, a viewer may overlook the thing


@dataclass(frozen=True)
class Rules:
    """What the pictures of a world show, and how its texts describe a thing."""
    # Drawn from these. Few colours and shapes in one picture make counts of up to four common enough to ask for.
    counts: tuple[int, ...] = (3, 4, 4, 5, 5, 6, 6)  # of things
    kinds: tuple[int, ...] = (2, 2, 3, 4, 5, 6)  # of colours, and of shapes
    max_overlap: float = 0.25  # largest share of a thing's box that another thing's box may cover
    max_hidden: float = 1.0  # the same of all things in front of it, added up
    hops: int = 0  # at most so many relations describe a thing that its attributes alone do not single out


ORDINARY = Rules()
HARD = Rules(counts=tuple(range(6, 13)), kinds=(3, 4, 4, 5, 6), max_overlap=0.4, max_hidden=0.5, hops=2)


@dataclass(frozen=True)
class Thing:
    """An object: its attributes, and the centre and half side of its square box in pixels."""
    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2), pixels; every shape fills its box from edge to edge."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


@dataclass(frozen=True)
class Scene:
    """The things from back to front (a later one covers an earlier one) and the colour of the background."""
    background: tuple[int, int, int]
    things: tuple[Thing, ...]
    rules: Rules = ORDINARY

    @cached_property
    def places(self) -> dict[Thing, list[tuple[str, Thing]]]:
        """{thing: (side, other thing) for each other on whose side it clearly lies}."""
        return {thing: [(side, other) for other in self.things if other is not thing
                        for side in SIDES if clearly_beside(thing, other, side)] for thing in self.things}

    def partly_hidden(self, thing: Thing) -> bool:
        """Whether a thing in front covers so much of `thing` that a viewer may overlook it."""
        front = self.things[self.things.index(thing) + 1:]
        return any(covered(thing.box, other.box) >= PARTLY_HIDDEN for other in front)


def covered(box, other) -> float:
    """The share of the area of `box` (x1, y1, x2, y2) that lies inside `other`."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0.0) * max(height, 0.0) / ((box[2] - box[0]) * (box[3] - box[1]))


def offset(thing: Thing, other: Thing, side: str) -> float:
    """How far, in pixels, `thing` lies to that side of `other` (negative: to the opposite side)."""
    dx, dy = SIDES[side]
    return (thing.x - other.x) * dx + (thing.y - other.y) * dy


def clearly_beside(thing: Thing, other: Thing, side: str) -> bool:
    """Whether nobody would doubt that `thing` lies to that side of `other`: it is not, for example, far more above than left."""
    return offset(thing, other, side) >= max(MARGIN, 0.6 * max(abs(thing.x - other.x), abs(thing.y - other.y)))


@lru_cache(20_000)  # every task asks for it
def sample(seed: int, index: int, rules: Rules = ORDINARY) -> Scene:
    """Scene number `index` of the world `seed`."""
    rng = random.Random(f'scene {seed} {index}')
    while True:
        if things := _sample_things(rng, rules):
            return Scene(rng.choice(BACKGROUNDS), things, rules)


def _sample_things(rng: random.Random, rules: Rules) -> tuple[Thing, ...] | None:
    """Things of which no two have the same shape, colour and size; None if there was no room for them."""
    colours = rng.choices(tuple(COLOURS), k=rng.choice(rules.kinds))
    shapes = rng.choices(SHAPES, k=rng.choice(rules.kinds))
    share_large = rng.random()
    count = rng.choice(rules.counts)
    things, used, hidden = [], set(), []
    for _ in range(40 * count):
        size = 'large' if rng.random() < share_large else 'small'
        attributes = rng.choice(shapes), rng.choice(colours), size
        radius = rng.uniform(*RADII[size])
        x, y = rng.uniform(radius + 2, WIDTH - radius - 2), rng.uniform(radius + 2, HEIGHT - radius - 2)
        thing = Thing(*attributes, round(x, 2), round(y, 2), round(radius, 2))
        if attributes in used or not all(_distinguishable(thing, other, rules.max_overlap) for other in things):
            continue
        shares = [share + covered(other.box, thing.box) for other, share in zip(things, hidden, strict=True)]
        if max(shares, default=0.0) <= rules.max_hidden:
            things.append(thing)
            used.add(attributes)
            hidden = [*shares, 0.0]
        if len(things) == count:
            return tuple(things)
    return None


def _distinguishable(one: Thing, other: Thing, max_overlap: float) -> bool:
    """Whether two things of a picture can be told apart: they overlap little, and do not touch if their colours are equal."""
    if one.colour != other.colour:
        return max(covered(one.box, other.box), covered(other.box, one.box)) <= max_overlap
    return max(abs(one.x - other.x), abs(one.y - other.y)) > one.radius + other.radius + 2
