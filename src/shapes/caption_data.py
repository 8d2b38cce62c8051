"""Data of pre-training on captions: regions with class probabilities, and a corpus of text about scenes that nobody draws."""
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from files.atomic import write_json
from files.json_files import read_json
from regions import tsv
from regions.store_files import StoreWriter
from shapes import captions, scene, simulate_regions
from shapes.questions import FIELDS, SIDES, Description, ambiguous, fill

SPLITS = {'train2014': 'train', 'val2014': 'val'}  # folder of images -> split
SOURCE = 'cc'  # of the captions
LEAST, THRESHOLD = 10, 0.3  # regions of an image: those of this confidence, but at least so many
UNSEEN = 10**6  # number of the corpus's first scene, beyond those of any world
OPPOSITES = {'left': 'right', 'right': 'left', 'above': 'below', 'below': 'above'}
LARGER = ('{x.a} is {more} than {y.a}.', 'Each {x.one} is {more} than {y.a}.')
BESIDE = ('With {x.a} {where} {y.a}, the {y.one} is {there} the {x.one}.',
          '{x.a} is {where} {y.a} and the {y.one} is {there} the {x.one}.')
DIFFERENT = ('No {x.one} is {y.a}.', '{x.a} is not {y.a}.')


def caption_regions(image: tsv.ImageRegions) -> tsv.ImageRegions:
    """10 to 36 regions of an image with class probabilities, by falling highest probability."""
    image = simulate_regions.most_confident(image, LEAST, simulate_regions.NUM_BOXES, THRESHOLD)
    return simulate_regions.take(image, np.argsort(-image.class_probabilities.max(1), kind='stable'))


@contextmanager
def storing(folder: Path, images: Iterable[tsv.ImageRegions]) -> Iterator[Iterator[tsv.ImageRegions]]:
    """An iterator over the images without class probabilities; as they pass, their `caption_regions` go to the store `folder`,
    whose bytes are the same each time."""
    with reproducible_store(folder) as writer:
        def pass_on():
            for image in images:
                writer.add(caption_regions(image))
                yield replace(image, class_probabilities=None)

        yield pass_on()


@contextmanager
def reproducible_store(folder: Path) -> Iterator[StoreWriter]:
    """The writer of the store `folder`, whose bytes are the same each time."""
    with StoreWriter(folder) as writer:
        yield writer
        writer.finish({'detector': 'shapes.simulate_regions'}, None)
    meta = read_json(folder / 'meta.json', 'the description of a region store', dict)
    del meta['mtime_ns']
    write_json(folder / 'meta.json', meta | {'stamp': hashlib.sha256(json.dumps(meta['digests']).encode()).hexdigest()[:32]})


def corpus(seed: int, rules: scene.Rules, first: int, scenes: int, per_scene: int) -> list[str]:
    """Lines of a corpus: `per_scene` captions of each scene from number `first` on, and after each scene a general statement."""
    rng = random.Random(f'corpus {seed} {first}')
    truths = {str(i): scene.sample(seed, UNSEEN + i, rules) for i in range(first, first + scenes)}
    texts = captions.generate(truths, per_scene, rng)
    return [line for of_scene in texts.values() for line in (*(caption.sent for caption in of_scene), statement(rng))]


def statement(rng: random.Random) -> str:
    """A sentence that is true of any scene."""
    colour, shape, size = (rng.sample(FIELDS[field], 2) for field in ('colour', 'shape', 'size'))
    shape[1] = 'circle' if ambiguous(*shape) else shape[1]
    kind, where = rng.randrange(3), rng.choice(tuple(SIDES))
    if kind == 0:
        things, templates = (Description('large', '', shape[0]), Description('small', '', shape[0])), LARGER
    elif kind == 1:
        things, templates = (Description('', colour[0], shape[0]), Description('', colour[1], shape[1])), BESIDE
    else:
        field = rng.randrange(3)
        things = [Description(*(values[i] if field == place else '' for place, values in enumerate((size, colour, shape))))
                  for i in range(2)]
        templates = DIFFERENT
    slots = {'x': things[0], 'y': things[1], 'more': 'large', 'where': where, 'there': OPPOSITES[where]}
    sentence = fill(templates, slots, rng, captions.WORDINGS)
    return sentence[0].upper() + sentence[1:]
