"""From a scene to pixels."""
import math

import numpy as np
from PIL import Image, ImageDraw

from shapes.scene import COLOURS, HEIGHT, WIDTH, Scene, Thing

FINER = 3  # drawn at this many times the size, then averaged, so that edges are smooth


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


def picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw `scene`.

    Returns:
        (HEIGHT, WIDTH, 3) uint8. `rng` decides what no question asks for: the texture and the exact shades.
    """
    canvas = _background(scene.background, rng)
    pen = ImageDraw.Draw(canvas)
    for thing in scene.things:
        shade = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-10, 11, 3), 0, 255)
        _draw(pen, thing, tuple(int(value) for value in shade))
    return np.asarray(canvas.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def _background(tint: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """A soft, cloudy texture in one tint: coarse noise, smoothly enlarged."""
    noise = rng.normal(0, 9, (10, 13, 1)) + rng.normal(0, 3, (10, 13, 3)) + np.array(tint)
    small = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
    return small.resize((WIDTH * FINER, HEIGHT * FINER), Image.Resampling.BICUBIC)


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, shade: tuple[int, int, int]) -> None:
    if thing.shape == 'circle':
        # PIL counts the last pixel in, hence the 1.
        x1, y1, x2, y2 = (value * FINER for value in thing.box)
        pen.ellipse((x1, y1, x2 - 1, y2 - 1), fill=shade)
        return
    corners = [((thing.x + thing.radius * x) * FINER, (thing.y + thing.radius * y) * FINER)
               for x, y in OUTLINES[thing.shape]]
    pen.polygon(corners, fill=shade)
