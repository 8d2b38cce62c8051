"""Draws scenes and single shapes."""
import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from shapes.scene import COLOURS, HEIGHT, WIDTH, Scene, Thing

SUPERSAMPLING = 3  # a picture is drawn at this many times its size and averaged, so that edges are smooth


def _outlines() -> dict[str, list[tuple[float, float]]]:
    """The corners of every shape but the circle; each reaches from -1 to 1 in x and in y (y points down)."""
    star = [((1.0, 0.45)[i % 2] * math.sin(i * math.pi / 5), -(1.0, 0.45)[i % 2] * math.cos(i * math.pi / 5))
            for i in range(10)]
    bottom = max(y for _, y in star)
    arm = 0.36
    return {'square': [(-1, -1), (1, -1), (1, 1), (-1, 1)],
            'diamond': [(0, -1), (1, 0), (0, 1), (-1, 0)],
            'triangle': [(0, -1), (1, 1), (-1, 1)],
            'star': [(x / math.sin(2 * math.pi / 5), (y + 1) * 2 / (bottom + 1) - 1) for x, y in star],
            'cross': [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
                      (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]}


OUTLINES = _outlines()
CIRCLE = [(math.cos(i * math.pi / 16), math.sin(i * math.pi / 16)) for i in range(32)]


def polygon(thing: Thing) -> list[list[float]]:
    """The corners of a thing in its picture, pixels; a circle has 32."""
    return [[thing.x + thing.radius * dx, thing.y + thing.radius * dy] for dx, dy in OUTLINES.get(thing.shape, CIRCLE)]


def picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture of a scene, (HEIGHT, WIDTH, 3) uint8. `rng` draws its texture and the exact shades."""
    canvas = _background(scene.background, rng)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        shade = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-10, 11, 3), 0, 255)
        _draw_shape(pen, thing.shape, thing.x, thing.y, thing.radius, SUPERSAMPLING, tuple(shade.tolist()))
    return np.asarray(canvas.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


@cache
def template(shape: str, radius: float, size: int, supersampling: int) -> np.ndarray:
    """The share of each cell of a grid (size, size) that a shape in its middle covers; radius in cells."""
    canvas = Image.new('L', (size * supersampling, size * supersampling))
    _draw_shape(ImageDraw.Draw(canvas), shape, size / 2, size / 2, radius, supersampling, 255)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) / 255


def _background(tint: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """A cloudy texture in one tint: coarse noise, smoothly enlarged."""
    noise = rng.normal(0, 9, (10, 13, 1)) + rng.normal(0, 3, (10, 13, 3)) + np.array(tint)
    small = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    return small.resize((WIDTH * SUPERSAMPLING, HEIGHT * SUPERSAMPLING), Image.Resampling.BICUBIC)


def _draw_shape(pen, shape: str, x: float, y: float, radius: float, scale: int, fill) -> None:
    """Draws a shape of this centre and radius on a canvas that is enlarged `scale` times."""
    if shape == 'circle':
        left, top, right, bottom = ((centre + side) * scale for side in (-radius, radius) for centre in (x, y))
        pen.ellipse((left, top, right - 1, bottom - 1), fill=fill)  # PIL includes the last pixel
    else:
        pen.polygon([((x + radius * dx) * scale, (y + radius * dy) * scale) for dx, dy in OUTLINES[shape]], fill=fill)
