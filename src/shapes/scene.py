"""Scenes: the ground truth of a picture, a few coloured shapes with a size and a place.

A `Scene` is all that is needed to draw the picture and to answer any question about it. It depends on (seed, index) alone, so
every process can make any scene.
"""
import random
from dataclasses import dataclass

WIDTH, HEIGHT = 160, 120  # of every picture, pixels

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'diamond')
COLOURS = {'red': (214, 32, 38), 'orange': (246, 138, 20), 'yellow': (248, 226, 46), 'green': (36, 150, 52),
           'blue': (32, 76, 214), 'purple': (138, 40, 166), 'black': (18, 18, 20), 'white': (248, 248, 248)}
RADII = {'small': (9.0, 11.0), 'large': (19.0, 22.0)}  # half the side of the box, pixels: the ranges lie far apart
BACKGROUNDS = ((158, 148, 134), (134, 148, 158), (146, 156, 138), (156, 140, 150), (142, 142, 146))

MAX_OVERLAP = 0.25  # largest share of a thing's box that another thing's box may cover
PARTLY_HIDDEN = 0.10  # from this share on, a viewer may overlook the thing


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

    def partly_hidden(self, thing: Thing) -> bool:
        """Whether a thing in front covers so much of `thing` that a viewer may overlook it."""
        front = self.things[self.things.index(thing) + 1:]
        return any(covered(thing.box, other.box) >= PARTLY_HIDDEN for other in front)


def covered(box, other) -> float:
    """The share of the area of `box` (x1, y1, x2, y2) that lies inside `other`."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    return max(width, 0.0) * max(height, 0.0) / ((box[2] - box[0]) * (box[3] - box[1]))


def sample(seed: int, index: int) -> Scene:
    """Scene number `index` of the world `seed`."""
    rng = random.Random(f'scene {seed} {index}')
    while True:
        if things := _sample_things(rng):
            return Scene(rng.choice(BACKGROUNDS), things)


def _sample_things(rng: random.Random) -> tuple[Thing, ...] | None:
    """3 to 6 things, no two with the same shape, colour and size; None if there was no room for them."""
    # Few colours and shapes in one picture make counts of up to four common enough to ask for.
    colours = rng.choices(tuple(COLOURS), k=rng.choice((2, 2, 3, 4, 5, 6)))
    shapes = rng.choices(SHAPES, k=rng.choice((2, 2, 3, 4, 5, 6)))
    share_large = rng.random()
    count = rng.choice((3, 4, 4, 5, 5, 6, 6))
    things, used = [], set()
    for _ in range(40 * count):
        size = 'large' if rng.random() < share_large else 'small'
        attributes = rng.choice(shapes), rng.choice(colours), size
        radius = rng.uniform(*RADII[size])
        x, y = rng.uniform(radius + 2, WIDTH - radius - 2), rng.uniform(radius + 2, HEIGHT - radius - 2)
        thing = Thing(*attributes, round(x, 2), round(y, 2), round(radius, 2))
        if attributes not in used and all(_distinguishable(thing, other) for other in things):
            things.append(thing)
            used.add(attributes)
        if len(things) == count:
            return tuple(things)
    return None


def _distinguishable(one: Thing, other: Thing) -> bool:
    """Whether two things of a picture can be told apart: they overlap little, and do not touch if their colours are equal."""
    if one.colour != other.colour:
        return max(covered(one.box, other.box), covered(other.box, one.box)) <= MAX_OVERLAP
    return max(abs(one.x - other.x), abs(one.y - other.y)) > one.radius + other.radius + 2
