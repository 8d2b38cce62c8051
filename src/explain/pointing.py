"""The pointing game on the sample world: does relevance point at the object that a question names? `bash run/show.bash pointing`.

After Zhang et al. (ECCV 2016), with regions in the place of pixels.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from explain.relevance import relevance
from files.json_files import DataError, field, read_json
from regions import readers
from shapes import world
from shapes.questions import named
from shapes.scene import covered
from tasks.predictor import Predictor

KINDS = ('verification', 'colour', 'shape', 'size')  # of questions that are about one thing, which they name
ON = 0.5  # share of a region that must lie in an object's box for the region to be on it
NORMAL = 1.96  # standard deviations to either side that hold 95 %


@dataclass(frozen=True)
class Game:
    """Of n questions: whether the most relevant region is on the named object, the share of relevance that lies on regions that
    are, and the share of regions that are, which is what uniform relevance would get of both."""

    hits: np.ndarray  # (n,) bool
    mass: np.ndarray  # (n,)
    chance: np.ndarray  # (n,)
    right: np.ndarray  # (n,): the score of the model's answer, which is the one explained


def seed_of(folder):
    """The seed of the world in a folder. Raises FileNotFoundError or DataError for what is no world of this version."""
    path = folder / 'world.json'
    record = read_json(path, "the settings of a sample world; give --world the folder that run/shapes.bash made")
    if (found := field(record, 'format', int, path)) != world.FORMAT:
        raise DataError(f'{path}: key "format": expected {world.FORMAT}, found {found}; make the world again '
                        'with run/shapes.bash')
    return field(record, 'seed', int, path)


def about_one_thing(folder):
    """Yields (question as in minival.json, the box of the one thing that it names) of the KINDS."""
    path, seed = folder / 'vqa/minival.json', seed_of(folder)
    for question in read_json(path, "the world's questions"):
        if question['question_type'] in KINDS:
            description, = named(question['sent'])
            thing, = description.among(world.scene_of(seed, question['img_id']))
            yield question, thing.box


def play(answerer, asked, regions, batch_size=50):
    """The Game of some (question, box) about the images of {img_id: ImageRegions}."""
    images = [regions[question['img_id']] for question, _ in asked]
    hits, mass, chance, right = [], [], [], []
    rest = iter(zip(asked, images, strict=True))
    for batch in answerer.batches(images, [question['sent'] for question, _ in asked], batch_size):
        found = relevance(answerer.head, batch)
        for weights, place in zip(found.regions[:, 0].cpu().numpy(), found.answers.tolist(), strict=True):
            (question, box), image = next(rest)
            weights = weights[:len(image.boxes)]
            on = np.array([covered(region, box) >= ON for region in image.boxes])
            hits.append(on[weights.argmax()])
            mass.append(weights[on].sum() / weights.sum())
            chance.append(on.mean())
            right.append(question['label'].get(answerer.answers[place], 0.0))
    return Game(*map(np.array, (hits, mass, chance, right)))


def wilson(hits, n):
    """The 95 % interval of a share of which `hits` of n were seen (Wilson, 1927)."""
    share, part = hits / n, NORMAL ** 2 / n
    half = NORMAL * math.sqrt(share * (1 - share) / n + part / (4 * n))
    return (share + part / 2 - half) / (1 + part), (share + part / 2 + half) / (1 + part)


def report(game):
    """The figures as a text."""
    n = len(game.hits)
    half = NORMAL * game.mass.std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
    rows = (('most relevant region on the object', game.hits.mean(), wilson(game.hits.sum(), n)),
            ('relevance on the object, share', game.mass.mean(), (game.mass.mean() - half, game.mass.mean() + half)))
    lines = [f'{n} questions that name one object, {100 * game.right.mean():.1f} % answered right', '',
             f'{"":36s}per cent  95 % interval  chance']
    return '\n'.join([*lines, *(f'{name:36s}{100 * value:8.1f}  {f"{100 * low:.1f} to {100 * high:.1f}":>13s}  '
                                f'{100 * game.chance.mean():6.1f}' for name, value, (low, high) in rows)])


def run(flags):
    """Plays the game and prints the figures; returns the exit status."""
    if flags.questions < 1:
        raise ValueError(f'--questions: expected at least 1, found {flags.questions}')
    answerer = Predictor.from_snapshot(flags.load)
    if (k := answerer.images) > 1:
        raise ValueError(f'--load {flags.load}: expected a snapshot of VQA, found one that answers about {k} pictures at a time')
    asked = list(about_one_thing(flags.world))
    if not asked:
        raise DataError(f'{flags.world}/vqa/minival.json: expected questions of the kinds {", ".join(KINDS)}, found none; make a '
                        'world with more --images')
    asked = random.Random(flags.seed).sample(asked, min(flags.questions, len(asked)))
    ids = sorted({question['img_id'] for question, _ in asked})
    regions = readers.chosen(flags.world / 'mscoco_imgfeat/val2014_obj36.tsv', ids)
    print(report(play(answerer, asked, {image.img_id: image for image in regions})))
    return 0


def add_arguments(made):
    """Adds the flags of the subcommand to its parser."""
    made.add_argument('--load', required=True, metavar='SNAPSHOT', help='of VQA on the sample world, such as snap/vqa/NAME/BEST')
    made.add_argument('--world', type=Path, default=Path('data/shapes'), metavar='DIR', help='the sample world (data/shapes)')
    made.add_argument('--questions', type=int, default=200, metavar='N', help='of minival, at most (200)')
    made.add_argument('--seed', type=int, default=9595, help='of the choice of questions (9595)')
