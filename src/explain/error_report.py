"""The error report: a validation run as one self-contained HTML page. `run/show.bash errors`."""

import base64
import io
import json
import tempfile
from pathlib import Path

import numpy as np
from tqdm import tqdm

import dist
from explain.drawing import check_shape, label, open_photo, photo_path, surest
from explain.error_analysis import ErrorAnalysis
from files.atomic import write_atomically
from files.json_files import DataError, some
from param import Options, add_flags
from regions.class_names import ClassNames, names_folder
from tasks.predictor import read_run
from tasks.program import Program
from tasks.registry import TASKS, task_class
from tasks.task import warn_same_predictions
from train import evaluate

TEMPLATE = Path(__file__).with_name('error_report.html')
MARK = '"DATA"'  # in the template, where the json goes
BEST = 10  # answers of each example whose probabilities are known
REGIONS = 12  # drawn on a picture, the surest
SIDE, QUALITY = 384, 75  # pixels of the longer side of a photograph in the page, and how well JPEG keeps it
FLAGS = ('load', 'test', 'dataRoot', 'dataset', 'storeRoot', 'bert', 'batchSize', 'offline')  # passed on as they are
EPILOG = '''
Example: bash run/show.bash errors --load snap/vqa/mine/BEST --test minival --images data/mscoco/val2014
'''


def add_arguments(parser):
    """Adds the flags of the subcommand to an argparse parser."""
    parser.epilog = EPILOG
    parser.add_argument('--load', required=True, metavar='SNAPSHOT', help='such as snap/vqa/NAME/BEST')
    parser.add_argument('--test', required=True, metavar='SPLIT', help='a split with labels; several, separated by commas')
    parser.add_argument('--task', choices=TASKS, default='vqa', help='(vqa)')
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of <img_id>.jpg or .png; without it: a blank canvas')
    parser.add_argument('--names', type=Path, metavar='DIR',
                        help='folder of objects_vocab.txt and attributes_vocab.txt (detector/ of --dataRoot, or itself)')
    parser.add_argument('--out', type=Path, metavar='FILE.html', help='(snap/show/TASK_SPLIT_errors.html)')
    parser.add_argument('--most', type=int, default=1000, metavar='N',
                        help='examples in the page (1000): a third the surest mistakes, a third those whose right answer seemed '
                        'least probable, the rest from all over the split; scores are of all examples in any case')
    add_flags(parser, 'batchSize', 'dataRoot', 'dataset', 'storeRoot', 'bert', 'offline', 'device')


def run(args):
    """Predicts a split and writes the page; returns exit status 0. Raises ValueError or OSError for what does not fit."""
    out = args.out or Path('snap/show') / f'{args.task}_{args.test}_errors.html'
    if out.suffix != '.html':
        raise ValueError(f'--out {out}: expected a name ending in .html')
    if args.most < 1:
        raise ValueError(f'--most: expected at least 1, found {args.most}')
    if args.images and not args.images.is_dir():
        raise FileNotFoundError(f'--images {args.images}: no such folder')
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:  # a program needs the folder of a run; nothing of it is kept
        data = predict_split(args, folder)
    write_atomically(out, lambda part: part.write_text(page(data), encoding='utf-8'))
    dist.print0(f'Score on {args.test}: {data["score"]:.2f}\n{len(data["examples"]):,} of {data["questions"]:,} examples, '
                f'{out.stat().st_size / 1e6:.1f} MB: {out}')
    return 0


def predict_split(args, folder):
    """All that the page shows, as json holds it. folder: of the program, for its lock."""
    names = ClassNames(args.names or names_folder(Path(args.dataRoot)))
    options = Options(output=folder, dumpProbs=BEST, **{name: getattr(args, name) for name in FLAGS})
    program = Program.prepare(task_class(args.task), options, dist.start(args.device))
    task = program.task_class(options)
    try:
        options.mceLoss = bool(read_run(program.weights).get('options', {}).get('mceLoss'))  # decides what a probability is
        examples = program.labelled('test', args.test)
        sentences, head = examples.sentences, program.build()
        dataset = program.load(args.test, examples, head)
        predictions = evaluate(head, dataset, options, program.device, f'Testing on {args.test}', BEST)
    finally:
        program.folder.close()
    warn_same_predictions(dataset, predictions)
    analysis = ErrorAnalysis(dataset, *predictions)
    shown, rows = analysis.examples(sentences, args.most)
    used, places = np.unique(rows, return_inverse=True)
    for example, images in zip(shown['examples'], places.reshape(rows.shape).tolist(), strict=True):
        example['images'] = images
    return {'task': args.task, 'split': args.test, 'snapshot': str(program.weights), 'independent': head.recipe.loss == 'BCE',
            'images': pictures((dataset.regions.image(row) for row in used.tolist()), len(used), names, args.images),
            **analysis.figures(task), **shown}


def pictures(images, n, names, folder):
    """What is drawn of n ImageRegions: [{'id', 'width', 'height', 'boxes': [[x1, y1, x2, y2, text], ...], 'photo'}, ...].

    images: one at a time is in memory, since thousands with their features may be gigabytes; folder: of their photographs, or
    None; 'photo' is a data: URI or None. Raises RegionError for a photograph that is broken or of another picture, DataError if
    none is there; if some are not, it is said.
    """
    entries, lacking = [], []
    for image in tqdm(images, 'Pictures', n, delay=3, disable=None):
        path = photo_path(folder, image.img_id) if folder else None
        if folder and not path:
            lacking.append(image.img_id)
        entries.append({'id': image.img_id, 'width': image.width, 'height': image.height, 'photo': embedded(path, image),
                      'boxes': [[*image.boxes[region].round().astype(int).tolist(), label(image, region, names)]
                                for region in surest(image, REGIONS)]})
    if lacking:
        if len(lacking) == n:
            raise DataError(f'--images {folder}: none of the {n:,} pictures is there as .jpg or .png, such as {some(lacking)}; '
                            'is it the folder of this split?')
        dist.print0(f'{len(lacking):,} of {n:,} pictures are not in {folder} ({some(lacking)}): a blank canvas stands for them.')
    return entries


def embedded(path, image):
    """A small copy of a photograph as a data: URI; None for no path."""
    if path is None:
        return None
    photo = open_photo(path)
    check_shape(photo, image)
    return as_uri(photo)


def as_uri(photo, side=SIDE):
    """A picture in RGB as a data: URI of a JPEG; made smaller, in place, until no side is longer than `side` pixels."""
    data = io.BytesIO()
    photo.thumbnail((side, side))
    photo.save(data, 'JPEG', quality=QUALITY)
    return f'data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'


def page(data):
    """A page with its data, as a text. Nothing of the data can end the script that holds it."""
    return TEMPLATE.read_text(encoding='utf-8').replace(MARK, json.dumps(data, separators=(',', ':')).replace('<', '\\u003c'))
