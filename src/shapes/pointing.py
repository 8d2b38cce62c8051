"""The pointing game on the sample world, where the box of the object that a question names is known."""
import random
import re
from dataclasses import replace
from pathlib import Path

from explain import pointing
from files.json_files import DataError, field, read_json
from images.pictures import open_picture
from regions import readers
from shapes import hard_text, world
from shapes.questions import SIZE_WORDS, Description
from shapes.scene import COLOURS, SHAPES
from tasks.predictor import Predictor

KINDS = ('verification', 'colour', 'shape', 'size')  # kinds of questions that name exactly one thing

DESCRIPTION = re.compile(rf'\bthe (?:({"|".join(word for words in SIZE_WORDS.values() for word in words)}) )?'
                         rf'(?:({"|".join(COLOURS)}) )?({"|".join(SHAPES)}|thing|object)\b', re.IGNORECASE)
VALUES = {word: size for size, words in SIZE_WORDS.items() for word in words} | {'thing': '', 'object': ''}


def parse_descriptions(sentence):
    """The descriptions that follow a "the", in their order."""
    return [Description(*(VALUES.get(word.lower(), word.lower()) for word in match)) for match in DESCRIPTION.findall(sentence)]


def read_settings(folder):
    """The settings of the world in a folder that its scenes depend on. Raises FileNotFoundError or DataError if it holds no world
    of this version."""
    path = folder / 'world.json'
    settings = read_json(path, "the settings of a sample world; give --world the folder that run/shapes.bash made")
    if (version := field(settings, 'format', int, path)) != world.FORMAT:
        raise DataError(f'{path}: key "format": expected {world.FORMAT}, found {version}; make the world again with '
                        'run/shapes.bash')
    return world.Settings(seed=field(settings, 'seed', int, path), hard=settings.get('hard') is True)


def questions_with_boxes(folder):
    """Yields (question of minival.json, box of the one thing that it names), for the questions of KINDS."""
    path, settings = folder / 'vqa/minival.json', read_settings(folder)
    for question in read_json(path, "the world's questions", list):
        if field(question, 'question_type', str, path) in KINDS and 'nested' not in question.get('tags', ()):
            description, = parse_descriptions(hard_text.plain(question['sent']))
            thing, = description.matching(settings.scene_of(int(question['img_id'].rpartition('_')[2]) - 1))
            yield question, thing.box


def run(flags):
    """Plays the game and prints the results; returns the exit status."""
    if flags.questions < 1:
        raise ValueError(f'--questions: expected at least 1, found {flags.questions}')
    predictor = Predictor.from_snapshot(flags.load)
    if (k := predictor.images) > 1:
        raise ValueError(f'--load {flags.load}: expected a snapshot of VQA, found one that answers about {k} pictures at a time')
    if predictor.head.map_layer is not None:
        raise ValueError(f'--load {flags.load}: expected a snapshot of a model that reads regions, found one that reads '
                         'patches of pictures; name one of another model, or draw its maps with run/show.bash attention')
    questions = list(questions_with_boxes(flags.world))
    if not questions:
        raise DataError(f'{flags.world}/vqa/minival.json: expected questions of the kinds {", ".join(KINDS)}, found none; make a '
                        'world with more --images')
    questions = random.Random(flags.seed).sample(questions, min(flags.questions, len(questions)))
    ids = sorted({question['img_id'] for question, _ in questions})
    regions = {image.img_id: image for image in readers.chosen(flags.world / 'mscoco_imgfeat/val2014_obj36.tsv', ids)}
    if 'pixels' in predictor.needs:
        regions = {img_id: replace(image, picture=open_picture(flags.world / f'images/val2014/{img_id}.png'))
                   for img_id, image in regions.items()}
    print(pointing.report(pointing.play(predictor, questions, regions)))
    return 0


def add_arguments(parser):
    """Adds the flags of the subcommand to its parser."""
    parser.add_argument('--load', required=True, metavar='SNAPSHOT',
                        help='of VQA on the sample world, such as snap/vqa/NAME/BEST')
    parser.add_argument('--world', type=Path, default=Path('data/shapes'), metavar='DIR', help='the sample world (data/shapes)')
    parser.add_argument('--questions', type=int, default=200, metavar='N', help='of minival, at most (200)')
    parser.add_argument('--seed', type=int, default=9595, help='of the choice of questions (9595)')
