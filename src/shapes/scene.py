"""What is in a picture: a few coloured shapes with a size and a place.

A `Scene` is all that is needed to draw the picture and to answer any question about it. It is sampled from
(seed, index) alone, so any process can make any scene.
"""
import random
from dataclasses import dataclass

WIDTH, HEIGHT = 160, 120  # of every picture, pixels

SHAPES = ('circle', 'square', 'triangle', 'star', 'cross', 'diamond')
COLOURS = {'red': (214, 32, 38), 'orange': (246, 138, 20), 'yellow': (248, 226, 46), 'green': (36, 150, 52),
           'blue': (32, 76, 214), 'purple': (138, 40, 166), 'black': (18, 18, 20), 'white': (248, 248, 248)}
RADII = {'small': (9.0, 11.0), 'large': (19.0, 22.0)}  # half the side of the box, pixels: the ranges lie far apart
BACKGROUNDS = ((158, 148, 134), (134, 148, 158), (146, 156, 138), (156, 140, 150), (142, 142, 146))

MOST_HIDDEN = 0.25  # the largest share of a thing's box that the box of another may cover
PARTLY_HIDDEN = 0.10  # from this share on, a viewer may overlook the thing


@dataclass(frozen=True)
class Thing:
    """One thing: its names, and the centre and half side of its square box in pixels."""
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
    """The things from back to front (a later one covers an earlier one) and the colour behind them."""
    background: tuple[int, int, int]
    things: tuple[Thing, ...]

    def partly_hidden(self, thing: Thing) -> bool:
        """Whether something in front covers so much of `thing` that a viewer may overlook it."""
        front = self.things[self.things.index(thing) + 1:]
        return any(covered(thing.box, other.box) >= PARTLY_HIDDEN for other in front)


def covered(box, other) -> float:
    """The share of `box` (x1, y1, x2, y2) that lies inside `other`."""
    wide = min(box[2], other[2]) - max(box[0], other[0])
    high = min(box[3], other[3]) - max(box[1], other[1])
    return max(wide, 0.0) * max(high, 0.0) / ((box[2] - box[0]) * (box[3] - box[1]))


def sample(seed: int, index: int) -> Scene:
    """The scene number `index` of the world `seed`."""
    rng = random.Random(f'scene {seed} {index}')
    while True:
        things = _things(rng)
        if things:
            return Scene(rng.choice(BACKGROUNDS), things)


def _things(rng: random.Random) -> tuple[Thing, ...] | None:
    """3 to 6 things, no two with all three names in common; None if they found no room."""
    # Few colours and shapes in one picture, some of them likelier, make four of a kind common enough to ask for.
    colours = rng.choices(tuple(COLOURS), k=rng.choice((2, 2, 3, 4, 5, 6)))
    shapes = rng.choices(SHAPES, k=rng.choice((2, 2, 3, 4, 5, 6)))
    mostly_large = rng.random()
    wanted = rng.choice((3, 4, 4, 5, 5, 6, 6))
    things, names = [], set()
    for _ in range(40 * wanted):
        size = 'large' if rng.random() < mostly_large else 'small'
        name = rng.choice(shapes), rng.choice(colours), size
        radius = rng.uniform(*RADII[size])
        x, y = rng.uniform(radius + 2, WIDTH - radius - 2), rng.uniform(radius + 2, HEIGHT - radius - 2)
        thing = Thing(*name, round(x, 2), round(y, 2), round(radius, 2))
        if name not in names and all(_side_by_side(thing, other) for other in things):
            things.append(thing)
            names.add(name)
        if len(things) == wanted:
            return tuple(things)
    return None


def _side_by_side(one: Thing, other: Thing) -> bool:
    """Whether both can be told apart in one picture: little overlap, and none (not even touching) in one colour."""
    hidden = max(covered(one.box, other.box), covered(other.box, one.box))
    if one.colour != other.colour:
        return hidden <= MOST_HIDDEN
    return max(abs(one.x - other.x), abs(one.y - other.y)) > one.radius + other.radius + 2
