"""From photographs and questions to answers, and what they rest on, drawn. The program behind run/ask.bash.

Exit status 0: well; 1: a fault of what was given; 2: wrong usage.
"""

import argparse
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import dist
from cli import run_main
from detector.registry import HELP, WEIGHTS, DetectorConfig, load_detector
from explain import drawing
from explain.attention import MOST, drawings, look, most_relevant
from explain.error_report import names_folder
from files.json_files import DataError
from images.pictures import ENDINGS, open_picture
from regions.class_names import ClassNames
from shapes.features import FEATURE_DIM
from tasks.predictor import Predictor

EPILOG = '''
Which detector: the one whose features the snapshot was trained on, that is the sample world's for a snapshot of the sample world,
else the Faster R-CNN, whose weights `bash run/download.bash detector` fetches.

Examples:
  bash run/ask.bash cpu photo.jpg "What is the man holding?" "Is it raining?" --load snap/vqa/vqa_lxr955/BEST
  bash run/ask.bash cpu left.jpg right.jpg "Both have a dog." --load snap/nlvr2/nlvr2_lxr955/BEST

Exit status: 0 well, 1 a fault of what was given, 2 wrong usage.
'''


@dataclass(frozen=True)
class Asked:
    """A question about k pictures, answered: the best answers with their probabilities, and a drawing of each picture."""

    question: str
    answers: list  # (answer, probability), the best first
    words: list  # texts, the most relevant first
    regions: list  # of each picture the texts of its most relevant regions, shares of the relevance of all
    drawn: list  # k PIL images


class Asker:
    """Answers questions about pictures: a detector and an Answerer, kept for any number of questions."""

    def __init__(self, answerer, detector, names=None, min_boxes=36, max_boxes=36):
        self.answerer, self.detector, self.names = answerer, detector, ClassNames(names)
        self.boxes = min_boxes, max_boxes

    @classmethod
    def load(cls, snapshot, detector=None, weights=None, device='cpu', bf16=False, names=None, **boxes):
        """snapshot: as Predictor.from_snapshot takes it; detector: its name, None: that of the snapshot's features;
        weights: of the Faster R-CNN; names: folder of the names of the detector's classes, None: where they lie by themselves.
        Raises what is raised where files lack or do not fit."""
        answerer = Predictor.from_snapshot(snapshot, device)
        detector = detector or ('shapes' if answerer.feature_size == FEATURE_DIM else 'faster_rcnn')
        if detector == 'shapes' and weights:
            raise DataError(f'--weights {weights}: {snapshot} is of the sample world, whose detector has none; leave them out')
        names = names or names_folder(Path('data/shapes' if detector == 'shapes' else 'data'))
        return cls(answerer, load_detector(DetectorConfig(detector, weights, bf16), device), names, **boxes)

    @property
    def pictures(self):
        """How many pictures a question is about."""
        return self.answerer.images

    def see(self, pictures, ids):
        """The ImageRegions of pictures, a list of uint8 (h, w, 3) RGB."""
        return self.detector.regions(list(pictures), list(ids), *self.boxes)

    def answer(self, question, images, best=MOST):
        """The `best` (answer, probability), and a Look; images: the ImageRegions of those that the question is about."""
        images = tuple(images)
        (answers,) = self.answerer.answer([images if self.pictures > 1 else images[0]], [question], best)
        return answers, look(self.answerer, images, question)

    def ask(self, question, pictures, images, best=MOST):
        """An Asked. pictures: those that the question is about; images: their ImageRegions, as `see` gives them."""
        answers, seen = self.answer(question, images, best)
        texts, drawn = zip(*drawings(seen, images, map(Image.fromarray, pictures), self.names), strict=True)
        return Asked(question, answers, most_relevant(seen.words, seen.of_words.sum(0)),
                     [list(of_one.values()) for of_one in texts], list(drawn))

    def ask_files(self, files, questions, best=MOST):
        """Yields (the Path of a picture, or of the k that a question is about, in a tuple; an Asked) of each of the questions
        about each of the pictures, of which no more than these are in memory. Raises ValueError, PictureError or RegionError."""
        files, questions = [Path(file) for file in files], [questions] if isinstance(questions, str) else list(questions)
        if len(files) % self.pictures:
            raise ValueError(f'to this model a question is about {self.pictures} pictures, found {len(files)}; give as many for '
                             'each')
        for first in range(0, len(files), self.pictures):
            group = tuple(files[first:first + self.pictures])
            pictures = [open_picture(file) for file in group]
            images = self.see(pictures, [file.stem for file in group])
            for question in questions:
                yield group, self.ask(question, pictures, images, best)


def default_snapshot(root=Path('snap/vqa')):
    """The published model's own run if it is there, else the newest. Raises FileNotFoundError that says what to do."""
    found = sorted(root.glob('*/BEST.pth'), key=lambda path: (path.parent.name == 'vqa_lxr955', path.stat().st_mtime))
    if not found:
        raise FileNotFoundError(f'{root}: found no */BEST.pth; train one (bash run/quickstart.bash), or name one by --load')
    return found[-1]


def run(flags):
    """Answers, and writes the drawings; returns the exit status."""
    files = [Path(item) for item in flags.items if is_file(item)]
    questions = [item for item in flags.items if not is_file(item)]
    if not files or not questions:
        raise DataError(f'expected pictures ({", ".join(ENDINGS)}) and questions, found {len(files)} and {len(questions)}')
    if not all(question.strip() for question in questions):
        raise DataError('expected questions, found an empty one')
    if flags.best < 1:
        raise DataError(f'--best: expected at least 1, found {flags.best}')
    if lacking := [file for file in files if not file.exists()]:
        raise DataError(f'{lacking[0]}: no such file; correct its name (names without a folder are sought in {Path.cwd()})')
    for file in files:  # what is wrong with one is said before the long work on the others
        open_picture(file)
    snapshot, asker = asker_of(flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    print(f'Answers of {snapshot}:')
    written = set()
    for group, asked in asker.ask_files(files, questions, flags.best):
        print(f'\n{", ".join(map(str, group))}: {asked.question}')
        if rest := asker.answerer.truncated(asked.question):
            print(f'  too long, not read: {rest}')
        for answer, probability in asked.answers:
            print(f'  {probability:6.1%}  {answer}')
        print(f'  words: {", ".join(asked.words)}')
        for file, regions, picture in zip(group, asked.regions, asked.drawn, strict=True):
            path = flags.out / drawing_name(file, asked.question, written)
            drawing.save(picture, path)
            print(f'  regions: {", ".join(regions)}\n  {path}')
    return 0


def is_file(item):
    """Whether a word of the command line is meant as a file; one that is there is never a question, whatever its ending."""
    return Path(item).suffix.lower() in ENDINGS or os.path.exists(item)


def asker_of(flags):
    """(the snapshot's path, its Asker) of the flags of `add_arguments`. Raises what default_snapshot and Asker.load do."""
    snapshot = flags.load or default_snapshot()
    return snapshot, Asker.load(snapshot, flags.detector, flags.weights, dist.start(flags.device), flags.bf16, flags.names,
                                min_boxes=flags.minBoxes, max_boxes=flags.maxBoxes)


def drawing_name(file, question, taken):
    """The name of a drawing, unlike those in the set taken, to which it is added: pictures of two folders may be called alike."""
    words = re.sub(r'\W+', '_', question.lower()).strip('_')
    name, number = (plain := f'{file.stem[:40]}_{words[:40]}'), 1
    while name in taken:
        number += 1
        name = f'{plain}_{number}'
    taken.add(name)
    return f'{name}.png'


def add_arguments(made):
    """Adds the flags that say which model answers and what it sees."""
    made.add_argument('--load', metavar='SNAPSHOT', help="a task's snapshot (snap/vqa/vqa_lxr955/BEST, else the newest)")
    made.add_argument('--detector', metavar='NAME', help=f'{HELP} (the one whose regions the snapshot was trained on)')
    made.add_argument('--weights', metavar='FILE', help=f'of the Faster R-CNN ({WEIGHTS})')
    made.add_argument('--minBoxes', type=int, default=36, help='the fewest regions of a picture (36)')
    made.add_argument('--maxBoxes', type=int, default=36, help='the most (36)')
    made.add_argument('--bf16', action='store_true', help='compute the regions in bfloat16 where it is safe')
    made.add_argument('--names', metavar='DIR',
                      help='folder of objects_vocab.txt and attributes_vocab.txt (data/detector; sample world: data/shapes)')


def parser():
    made = argparse.ArgumentParser(prog='run/ask.bash', allow_abbrev=False, epilog=EPILOG,
                                   description='Answers questions about pictures and draws what the answers rest on.',
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   usage='bash run/ask.bash GPU|cpu PICTURE... QUESTION... [flags]')
    made.add_argument('items', nargs='+', metavar='PICTURE|QUESTION', help='files of pictures, and texts asked of all of them')
    add_arguments(made)
    made.add_argument('--best', type=int, default=MOST, help=f'how many answers to show ({MOST})')
    made.add_argument('--out', type=Path, default=Path('snap/ask'), metavar='FOLDER', help='of the drawings (snap/ask)')
    made.add_argument('--device', choices=('cpu', 'cuda'), help=argparse.SUPPRESS)  # the launcher's
    return made


def main(argv=None):
    """Runs the program; returns its exit status."""
    flags = parser().parse_args(argv)
    return run_main('ask.bash', lambda: run(flags))


if __name__ == '__main__':
    sys.exit(main())
