"""Answers questions about pictures, chooses the regions that expressions describe or scores whether sentences match, and draws
which words and regions, or patches, are relevant. The program behind run/ask.bash."""

import argparse
import os
import re
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

import dist
from annotations.spec import DatasetSpec
from bert.speed import warn_slow_bf16
from bert.tokenization import TextWarning
from cli import run_main
from detector.registry import FASTER_RCNN, HELP, WEIGHTS, DetectorConfig, load_detector
from explain import drawing
from explain.attention import explain, name_of
from explain.explanation import TOP, most_relevant_words
from files.json_files import DataError, field, read_json
from files.text import printable
from images.ids import ENDINGS
from images.pictures import open_picture
from param import add_flags
from regions.class_names import ClassNames, names_folder
from regions.image_regions import ImageRegions
from run_folder import read_run
from tasks import snapshots
from tasks.checkpoints import SNAPSHOT, find_weights

FASTER_RCNN_FEATURES = 2048  # per region
EPILOG = '''
A snapshot of RefCOCO takes expressions in the place of questions, and answers with the regions that they describe; one of
retrieval takes sentences, and answers with the probability that picture and sentence match.

The detector, where the model needs regions, is the one whose regions the snapshot was trained on: that of its --dataset or of the
sample world below its --dataRoot, else the Faster R-CNN, whose weights `bash run/download.bash detector` fetches.

Examples:
  bash run/ask.bash cpu photo.jpg "What is the man holding?" "Is it raining?" --load snap/vqa/vqa_lxr955/BEST
  bash run/ask.bash cpu left.jpg right.jpg "Both have a dog." --load snap/nlvr2/nlvr2_lxr955/BEST
  bash run/ask.bash cpu photo.jpg "the dog on the left" --load snap/refcoco/mine/BEST

Exit status: 0 success, 1 invalid input, 2 wrong usage.
'''


@dataclass(frozen=True)
class ExplainedAnswer:
    """Answers to a question about k pictures, and what the first of them rests on."""

    question: str
    answers: list  # (answer, probability), the most probable first
    words: list  # texts of the most relevant words with their shares
    regions: list  # for each picture, texts of its most relevant regions with their shares of all; none with maps over patches
    drawings: list  # k PIL images
    written: str | None = None  # what a model with a decoder writes freely


class Pipeline:
    """A detector and a Predictor, Grounder or Matcher: from pictures and questions, expressions or sentences to answers.
    predictor.images pictures belong to a question. detector: None for a model that needs no regions."""

    def __init__(self, predictor, detector, names=None, min_boxes=36, max_boxes=36):
        """names: folder of the names of the detector's classes; None: they are numbered."""
        self.predictor, self.detector, self.names = predictor, detector, ClassNames(names)
        self.min_boxes, self.max_boxes = min_boxes, max_boxes

    @classmethod
    def load(cls, snapshot, detector=None, weights=None, device='cpu', bf16=False, names=None, **boxes):
        """From a snapshot, as tasks.snapshots.load takes it.

        detector: its name; None: that of the regions that the snapshot was trained on; a model without regions has none. weights,
        bf16: of the Faster R-CNN. names: as for Pipeline; None: below the run's --dataRoot, for the Faster R-CNN also below data.
        Raises what snapshots.load and load_detector do, and DataError.
        """
        predictor, options = snapshots.load(snapshot, device), run_options(snapshot)
        if not predictor.needs_regions:
            return cls(predictor, None, **boxes)
        detector = detector or detector_of(options)
        if detector == FASTER_RCNN:
            check_feature_size(predictor, detector, FASTER_RCNN_FEATURES)  # before its weights are asked for
        elif weights:
            raise DataError(f'--weights {weights}: expected only with --detector {FASTER_RCNN}, found {detector}; leave it out')
        roots = [options.get('dataRoot'), 'data' if detector == FASTER_RCNN else None]
        names = names or next(filter(None, (names_folder(Path(root)) for root in roots if root)), None)
        return cls(predictor, load_detector(DetectorConfig(detector, weights, bf16), device), names, **boxes)

    def detect(self, pictures, ids):
        """The ImageRegions of pictures, uint8 (h, w, 3) RGB; of a model that reads pixels with the pictures, or with these alone.
        Raises ValueError: PictureError, RegionError, DataError."""
        pictures, ids = list(pictures), list(ids)
        if self.detector is None:
            return [ImageRegions.without_regions(img_id, *picture.shape[:2], picture)
                    for img_id, picture in zip(ids, pictures, strict=True)]
        images = self.detector.regions(pictures, ids, self.min_boxes, self.max_boxes)
        for image in images:
            check_feature_size(self.predictor, self.detector.provenance['detector'], image.features.shape[1])
        if 'pixels' in self.predictor.needs:
            images = [replace(image, picture=picture) for image, picture in zip(images, pictures, strict=True)]
        return images

    def answer(self, question, images, best=TOP):
        """(the `best` answers as (explain.attention.name_of, probability), Explanation of the first). images: the ImageRegions of
        the pictures."""
        images = tuple(images)
        row, = self.predictor.predict([images], [question], best)
        answers = [(name_of(self.predictor, place, images, self.names), probability) for place, probability in row]
        return answers, explain(self.predictor, images, question, names=self.names)

    def ask(self, question, pictures, images, best=TOP):
        """An ExplainedAnswer. pictures: those of one question; images: their ImageRegions, as `detect` returns them."""
        answers, explanation = self.answer(question, images, best)
        photos = list(map(Image.fromarray, pictures))
        regions, drawings = zip(*explanation.draw(images, photos, self.names), strict=True)
        words = most_relevant_words(explanation.words, explanation.word_relevance.sum(0))
        written = self.predictor.write([tuple(images)], [question])[0] if getattr(self.predictor, 'writes', False) else None
        return ExplainedAnswer(question, answers, words, [list(texts.values()) for texts in regions], list(drawings), written)

    def ask_files(self, files, questions, best=TOP):
        """Yields (a tuple of the k files of a question, ExplainedAnswer) for each of the questions about each k files in a row.

        Only one k pictures at a time are in memory. Raises what `detect` does.
        """
        files, questions = [Path(file) for file in files], [questions] if isinstance(questions, str) else list(questions)
        k = self.predictor.images
        if len(files) % k:
            raise ValueError(f'for this model a question is about {k} pictures, found {len(files)} pictures; give {k} for each')
        for group in zip(*[iter(files)] * k, strict=True):
            pictures = [open_picture(file) for file in group]
            images = self.detect(pictures, [file.stem for file in group])
            for question in questions:
                yield group, self.ask(question, pictures, images, best)


def run_options(snapshot):
    """The options of the run that wrote a snapshot; {} where they are not known."""
    return read_run(find_weights(str(snapshot), SNAPSHOT).parent).get('options', {})


def detector_of(options):
    """The name of the detector whose regions a run with these options was trained on."""
    if options.get('dataset'):
        return DatasetSpec.from_json(options['dataset']).detector or FASTER_RCNN
    world = Path(options.get('dataRoot') or 'data') / 'world.json'
    settings = read_json(world, 'the settings of a sample world', dict) if world.is_file() else {}
    return field(settings, 'detector', str, world) if 'detector' in settings else FASTER_RCNN


def check_feature_size(predictor, detector, size):
    """Raises DataError if a detector's features, so many numbers a region, are not those that a snapshot was trained on."""
    if size != predictor.feature_size and 'regions' in predictor.needs:
        raise DataError(f'expected regions with {predictor.feature_size} features, as the snapshot was trained on, but the '
                        f'detector {detector} returns {size}; name the detector of the snapshot with --detector')


def default_snapshot(root=Path('snap/vqa')):
    """The snapshot of the published model's run if it exists, else the newest. Raises FileNotFoundError if there is none."""
    snapshots = sorted(root.glob('*/BEST.pth'), key=lambda path: (path.parent.name == 'vqa_lxr955', path.stat().st_mtime))
    if not snapshots:
        raise FileNotFoundError(f'{root}: found no */BEST.pth; train one (bash run/quickstart.bash), or name one with --load')
    return snapshots[-1]


def load_pipeline(flags):
    """(path of the snapshot, Pipeline) of the flags of `add_arguments`."""
    warnings.simplefilter('ignore', TextWarning)  # the programs print it
    snapshot, device = flags.load or default_snapshot(), dist.start(flags.device)
    if flags.bf16:
        warn_slow_bf16(device)
    return snapshot, Pipeline.load(snapshot, flags.detector, flags.weights, device, flags.bf16, flags.names,
                                   min_boxes=flags.minBoxes, max_boxes=flags.maxBoxes)


def run(flags):
    """Prints the answers and writes the drawings; returns the exit status."""
    files = [Path(item) for item in flags.items if is_file(item)]
    questions = [item for item in flags.items if not is_file(item)]
    if not files or not questions:
        raise DataError(f'expected pictures ({", ".join(ENDINGS)}) and questions, found {len(files)} and '
                        f'{len(questions)}; give at least one of each')
    if not all(question.strip() for question in questions):
        raise DataError('expected questions, found an empty one; type some words')
    if flags.best < 1:
        raise DataError(f'--best: expected at least 1, found {flags.best}; correct it')
    if missing := [file for file in files if not file.exists()]:
        raise DataError(f'{missing[0]}: no such file; correct its name (names without a folder are searched in {Path.cwd()})')
    for file in files:  # so that a broken one is an error before the model is loaded
        open_picture(file)
    snapshot, pipeline = load_pipeline(flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    print(printable(f'Answers of {snapshot}:'))
    written = set()
    for group, result in pipeline.ask_files(files, questions, flags.best):
        print('\n' + printable(f'{", ".join(map(str, group))}: {result.question}'))
        for line in pipeline.predictor.unread(result.question):
            print(printable(f'  {line}'))
        for answer, probability in result.answers:
            print(printable(f'  {probability:6.1%}  {answer}'))
        if result.written is not None:
            print(printable(f'  the decoder writes: {result.written}'))
        print(printable(f'  words: {", ".join(result.words)}'))
        for file, regions, picture in zip(group, result.regions, result.drawings, strict=True):
            path = flags.out / drawing_name(file, result.question, written)
            drawing.save(picture, path)
            print(*[f'  regions: {", ".join(regions)}\n'] * bool(regions), f'  {path}', sep='')
    return 0


def is_file(item):
    """Whether an argument is a file and not a question. An existing one is a file whatever its ending."""
    return Path(item).suffix.lower() in ENDINGS or os.path.exists(item)


def drawing_name(file, question, written):
    """A file name for a drawing that is not in the set `written`, to which it is added: pictures may share a name."""
    words = re.sub(r'\W+', '_', question.lower()).strip('_')
    name, number = (plain := f'{file.stem[:40]}_{words[:40]}'), 1
    while name in written:
        number += 1
        name = f'{plain}_{number}'
    written.add(name)
    return f'{name}.png'


def add_arguments(parser, several=False):
    """Adds the flags of model and detector. several: --load may name several snapshots, and is a list."""
    more = {'nargs': '+', 'action': 'extend'} if several else {}
    parser.add_argument('--load', metavar='SNAPSHOT', **more, help="a task's snapshot (snap/vqa/vqa_lxr955/BEST, else the newest)"
                        + ('; of several the page can choose one, and show two side by side' if several else ''))
    parser.add_argument('--detector', metavar='NAME', help=f'{HELP} (the one whose regions the snapshot was trained on)')
    parser.add_argument('--weights', metavar='FILE', help=f'of the Faster R-CNN ({WEIGHTS})')
    parser.add_argument('--minBoxes', type=int, default=36, help='the fewest regions of a picture (36)')
    parser.add_argument('--maxBoxes', type=int, default=36, help='the most (36)')
    parser.add_argument('--bf16', action='store_true', help='compute the regions in bfloat16 where it is safe')
    parser.add_argument('--names', metavar='DIR', help="folder of objects_vocab.txt and attributes_vocab.txt (that of the run's "
                        '--dataRoot, or data/detector)')
    add_flags(parser, 'device')


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog='run/ask.bash', allow_abbrev=False, epilog=EPILOG,
                                     description='Answers questions about pictures and draws the relevant regions.',
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage='bash run/ask.bash GPU|cpu PICTURE... QUESTION... [flags]')
    parser.add_argument('items', nargs='+', metavar='PICTURE|QUESTION', help='files, and texts that are asked about all of them')
    add_arguments(parser)
    parser.add_argument('--best', type=int, default=TOP, help=f'how many answers to print ({TOP})')
    parser.add_argument('--out', type=Path, default=Path('snap/ask'), metavar='FOLDER', help='for the drawings (snap/ask)')
    flags = parser.parse_args(argv)
    return run_main('ask.bash', lambda: run(flags))


if __name__ == '__main__':
    sys.exit(main())
