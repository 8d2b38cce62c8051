"""The pointing game: does the relevance of regions point at the object that a question names?

After Zhang et al. (ECCV 2016), with regions in the place of pixels.
"""

import math
from dataclasses import dataclass

import numpy as np

from explain.relevance import relevance

MIN_INSIDE = 0.5  # share of a region that must lie in an object's box for the region to count as on it
NORMAL = 1.96  # standard deviations on either side that hold 95 %


@dataclass(frozen=True)
class Game:
    """Results for n questions.

    A uniform relevance would get `chance`, the share of regions on the object, of both `hits` and `mass`.
    """

    hits: np.ndarray  # (n,) bool: the most relevant region is on the object
    mass: np.ndarray  # (n,): share of the relevance that lies on regions on the object
    chance: np.ndarray  # (n,)
    scores: np.ndarray  # (n,): score of the model's answer, which is the one explained


def inside(boxes, box):
    """The share of the area of each of boxes (o, 4) that lies inside a box (4,), (o,). Boxes are x1, y1, x2, y2."""
    boxes, box = np.asarray(boxes, np.float64), np.asarray(box, np.float64)
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    return sides.clip(0).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)


def play(predictor, questions, regions, batch_size=50):
    """Plays the game.

    predictor: a Predictor of a task about one picture; questions: list of (question with img_id, sent and label, box of the
    object that it names); regions: {img_id: ImageRegions}. Returns a Game.
    """
    images = [regions[question['img_id']] for question, _ in questions]
    hits, mass, chance, scores = [], [], [], []
    rest = iter(zip(questions, images, strict=True))
    for batch in predictor.batches(images, [question['sent'] for question, _ in questions], batch_size):
        result = relevance(predictor.head, batch)
        for weights, answer in zip(result.regions[:, 0].cpu().numpy(), result.answers.tolist(), strict=True):
            (question, box), image = next(rest)
            weights = weights[:len(image.boxes)]
            on = inside(image.boxes, box) >= MIN_INSIDE
            hits.append(on[weights.argmax()])
            mass.append(weights[on].sum() / weights.sum())
            chance.append(on.mean())
            scores.append(question['label'].get(predictor.answers[answer], 0.0))
    return Game(*map(np.array, (hits, mass, chance, scores)))


def wilson(hits, n):
    """The 95 % confidence interval (low, high) of a share that was observed as hits / n (Wilson, 1927)."""
    share, part = hits / n, NORMAL ** 2 / n
    half = NORMAL * math.sqrt(share * (1 - share) / n + part / (4 * n))
    return (share + part / 2 - half) / (1 + part), (share + part / 2 + half) / (1 + part)


def report(game):
    """The results of a Game as a text table."""
    n = len(game.hits)
    half = NORMAL * game.mass.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    rows = (('most relevant region on the object', game.hits.mean(), wilson(game.hits.sum(), n)),
            ('relevance on the object, share', game.mass.mean(), (game.mass.mean() - half, game.mass.mean() + half)))
    lines = [f'{n} questions that name one object, {100 * game.scores.mean():.1f} % answered right', '',
             f'{"":36s}per cent  95 % interval  chance']
    return '\n'.join([*lines, *(f'{name:36s}{100 * value:8.1f}  {f"{100 * low:.1f} to {100 * high:.1f}":>13s}  '
                                f'{100 * game.chance.mean():6.1f}' for name, value, (low, high) in rows)])
