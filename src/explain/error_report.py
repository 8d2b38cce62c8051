"""The error report: a validation run as one self-contained HTML page. `run/show.bash errors`."""

import base64
import io
import json
from pathlib import Path

import numpy as np

import dist
from explain.drawing import check_shape, label, open_photo, photo_path, surest
from explain.error_analysis import ErrorAnalysis
from files.atomic import temporary_folder, write_atomically
from files.json_files import DataError, some
from files.progress import ProgressBar
from param import Options, add_flags
from regions.class_names import ClassNames, names_folder
from run_folder import read_run
from tasks.checkpoints import SNAPSHOT, find_weights
from tasks.program import TaskProgram, check_batch
from tasks.registry import TASKS, task_class
from tasks.task import warn_same_predictions
from train import evaluate

TEMPLATE = Path(__file__).with_name('error_report.html')
MARK = '"DATA"'  # in the template, where the json goes
BEST = 10  # answers of each example whose probabilities are known
REGIONS = 12  # drawn on a picture: those with the highest class confidence
SIDE, QUALITY = 384, 75  # pixels of the longer side of a photograph in the page, and its JPEG quality
SHARED_FLAGS = 'batchSize', 'dataRoot', 'dataset', 'storeRoot', 'bert', 'offline'  # of Options
EPILOG = '''
Example: bash run/show.bash errors --load snap/vqa/mine/BEST --test minival --images data/mscoco/val2014
'''


def add_arguments(parser):
    """Adds the flags of the subcommand to an argparse parser."""
    parser.epilog = EPILOG
    parser.add_argument('--load', required=True, metavar='SNAPSHOT', help='such as snap/vqa/NAME/BEST')
    parser.add_argument('--test', required=True, metavar='SPLIT', help='a split with labels; several, separated by commas')
    parser.add_argument('--task', choices=TASKS, help='(that of the run of --load, where it is known, else vqa)')
    parser.add_argument('--images', type=Path, metavar='DIR', help='folder of <img_id>.jpg or .png; without it: a blank canvas')
    parser.add_argument('--names', type=Path, metavar='DIR',
                        help='folder of objects_vocab.txt and attributes_vocab.txt (detector/ of --dataRoot, or itself)')
    parser.add_argument('--out', type=Path, metavar='FILE.html', help='(snap/show/TASK_SPLIT_errors.html)')
    parser.add_argument('--most', type=int, default=1000, metavar='N',
                        help='examples in the page (1000): a third the mistakes with the highest confidence, a third those whose '
                        'right answer has the lowest probability, the rest evenly from the split; scores are of all examples')
    add_flags(parser, *SHARED_FLAGS, 'device')


def run(args):
    """Predicts a split and writes the page; returns exit status 0. Raises ValueError or OSError for what does not fit."""
    if args.task is None:
        run_task = read_run(find_weights(args.load, SNAPSHOT).parent).get('task')
        args.task = run_task if run_task in TASKS else 'vqa'
    out = args.out or Path('snap/show') / f'{args.task}_{args.test}_errors.html'
    if out.suffix != '.html':
        raise ValueError(f'--out {out}: expected a name ending in .html')
    if args.most < 1:
        raise ValueError(f'--most: expected at least 1, found {args.most}')
    if args.images and not args.images.is_dir():
        raise FileNotFoundError(f'--images {args.images}: no such folder')
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder('lxmert-') as folder:  # TaskProgram needs a run folder
        data = predict_split(args, str(folder))
    write_atomically(out, lambda part: part.write_text(page(data), encoding='utf-8'))
    dist.print0(f'Score on {args.test}: {data["score"]:.2f}', f'{len(data["examples"]):,} of {data["questions"]:,} examples, '
                f'{out.stat().st_size / 1e6:.1f} MB: {out}')
    return 0


def predict_split(args, folder):
    """The data of the page, for json. folder: the run folder of the program."""
    names = ClassNames(args.names or names_folder(Path(args.dataRoot)))
    options = Options(output=folder, dumpProbs=BEST, **{name: getattr(args, name) for name in ('load', 'test', *SHARED_FLAGS)})
    program = TaskProgram.prepare(task_class(args.task), options, dist.start(args.device))
    task = program.task_class(options)
    try:
        options.mceLoss = bool(read_run(program.weights.parent).get('options', {}).get('mceLoss'))  # softmax or sigmoid
        examples = program.labelled('test', args.test)
        sentences, head = examples.sentences, program.build_head()
        dataset = program.load(args.test, examples, head)
        check_batch(dataset, options.batchSize, 'batchSize', program.device)
        predictions = evaluate(head, dataset, options, program.device, f'Testing on {args.test}', max(task.k, BEST))
    finally:
        program.folder.close()
    warn_same_predictions(dataset, predictions)
    analysis = ErrorAnalysis(dataset, *(array[:, :BEST] for array in predictions))
    shown, rows = analysis.examples(sentences, args.most)
    used, places = np.unique(rows, return_inverse=True)
    for example, images in zip(shown['examples'], places.reshape(rows.shape).tolist(), strict=True):
        example['images'] = images
    return {'task': args.task, 'split': args.test, 'snapshot': str(program.weights), 'independent': head.recipe.loss == 'BCE',
            'images': pictures((dataset.image(row) for row in used.tolist()), len(used), names, args.images),
            'score': task.score(dataset, predictions), **analysis.figures(task), **shown}


def pictures(images, n, names, folder):
    """n ImageRegions for json: [{'id', 'width', 'height', 'boxes': [[x1, y1, x2, y2, text], ...], 'photo': data: URI or None}].

    images: an iterator, since thousands with their features may be gigabytes. folder: of the photographs, or None. Prints which
    photographs are missing. Raises RegionError for one that is damaged or has another shape, DataError if all are missing.
    """
    entries, missing = [], []
    for image in ProgressBar(images, 'Pictures', n, delay=3):
        path = photo_path(folder, image.img_id) if folder else None
        if folder and not path:
            missing.append(image.img_id)
        entries.append({
            'id': image.img_id, 'width': image.width, 'height': image.height, 'photo': embed(path, image) if path else None,
            'boxes': [[*image.boxes[region].round().astype(int).tolist(), label(image, region, names)]
                      for region in surest(image, REGIONS)]})
    if missing:
        if len(missing) == n:
            raise DataError(f'--images {folder}: has none of the {n:,} pictures as .jpg or .png, such as {some(missing)}; '
                            'is it the folder of this split?')
        dist.print0(f'{len(missing):,} of {n:,} pictures are not in {folder} ({some(missing)}): drawn as a blank canvas.')
    return entries


def embed(path, image):
    """A copy of the photograph of an ImageRegions, reduced to SIDE pixels, as a data: URI of a JPEG."""
    photo, data = open_photo(path), io.BytesIO()
    check_shape(photo, image)
    photo.thumbnail((SIDE, SIDE))
    photo.save(data, 'JPEG', quality=QUALITY)
    return f'data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}'


def page(data):
    """The HTML of the page. `<` is escaped in the data, so that no text of it can end its script element."""
    return TEMPLATE.read_text(encoding='utf-8').replace(MARK, json.dumps(data, separators=(',', ':')).replace('<', '\\u003c'))
