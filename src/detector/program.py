"""Extracts the regions of pictures to a TSV or a region store. The program of run/extract.bash.

Exit status 0: success; 1: faulty input or broken pictures; 2: wrong usage.
"""

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from cli import run_main
from detector.checkpoint import ExtractionCheckpoint
from detector.given_boxes import read_boxes
from detector.registry import FASTER_RCNN, HELP, LAYOUTS, WEIGHTS, DetectorConfig
from detector.workers import WorkerPool
from files.atomic import atomic_file, check_free_space, sha256
from files.json_files import DataError, some
from files.progress import ProgressBar
from images.ids import HELP as IDS_HELP
from images.ids import SPLITS, find_pictures
from regions import tsv

PROPOSALS = 300  # the most boxes that the Faster R-CNN has per picture
SAMPLE = 20  # pictures whose lines predict the size of the result

EPILOG = '''
--images is a folder, searched with all its subfolders and links to folders, or a text file with one path per line, relative to
the file's own folder. Files whose names do not end in .jpg, .jpeg, .png, .gif, .bmp, .webp, .tif or .tiff are listed and skipped.
The file name without its ending becomes the image id; --split checks that the names are those of a dataset:
  coco   COCO_val2014_000000000042.jpg         for data/mscoco_imgfeat
  gqa    2335684.jpg, n161313.jpg              for data/vg_gqa_imgfeat
  nlvr2  dev-896-0-img0.png                    for data/nlvr2_imgfeat
data/mscoco_imgfeat/README.md and so on list the commands for each published file.

--boxes FILE gives boxes in pixels, of the picture as rotated by EXIF: .json, {"image id": [[x1, y1, x2, y2], ...]}, or a list
or json lines of {"img_id": ..., "boxes": [...]}; or .tsv, a line id<TAB>x1<TAB>y1<TAB>x2<TAB>y2 for each box. Boxes keep their
order; classes, attributes and confidences are predicted. A picture without boxes counts as broken.

One process runs on each GPU, or on the CPU; NPROC=2 starts two on each, so that one reads pictures while the other computes.
Finished images are kept in X.unfinished. To resume a killed run, repeat its command; the result is identical to the byte. A run
with other --images, or with flags that change the regions, is not resumed but refused.
Pictures that cannot be used are listed in X.broken.txt; then the result is not written, unless --allowBroken is given.

Examples:
  bash run/extract.bash 0,1 --images pictures/val2014 --split coco --out data/mscoco_imgfeat/val2014_obj36.tsv
  NPROC=2 bash run/extract.bash cpu --images mine --minBoxes 10 --maxBoxes 100 --bf16 --out data/mine/mine.store
  bash run/extract.bash 0 --images pictures --layout vlbert --probabilities --out data/mine/captions.store
  bash run/extract.bash cpu --images list.txt --detector my_package --out data/mine/list_obj36.tsv

Exit status: 0 success, 1 faulty input or broken pictures, 2 wrong usage.
'''


def devices(device):
    """The device of each process, NPROC of them on the CPU or on each GPU. device: 'cpu' or None for GPUs. Raises ValueError."""
    count = os.environ.get('NPROC') or '1'
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        raise ValueError(f'NPROC: expected the number of processes, found {count!r}')
    names = int(count) * (['cpu'] if device == 'cpu' else _gpus())
    # Processes that each use all cores wait for each other.
    os.environ.setdefault('OMP_NUM_THREADS', str(-(-len(os.sched_getaffinity(0)) // len(names))))
    return names


def _gpus():
    """The GPUs of CUDA_VISIBLE_DEVICES; the CPU on a machine without any NVIDIA device."""
    import torch  # imported here: on the CPU the program starts several times faster without PyTorch

    import dist
    if dist.start().type == 'cpu':
        return ['cpu']
    count, visible = torch.cuda.device_count(), os.environ.get('CUDA_VISIBLE_DEVICES')
    if visible and count != len(visible.split(',')):
        raise ValueError(f'GPUs {visible}: expected {len(visible.split(","))}, found {count}; nvidia-smi lists them')
    return [f'cuda:{number}' for number in range(count)]


def extract(args):
    """Extracts the regions and writes them; returns the exit status."""
    pictures = find_pictures(args.images, args.split, args.ids)
    boxes = read_boxes(args.boxes) if args.boxes else None
    broken = without_boxes(pictures, boxes, args.boxes) if args.boxes else {}
    threshold = LAYOUTS[args.layout][2]
    config = DetectorConfig(args.detector, args.weights, args.bf16, args.minBoxes, args.maxBoxes, boxes is not None, threshold,
                            args.probabilities)
    counts = {'min_boxes': args.minBoxes, 'max_boxes': args.maxBoxes} if boxes is None else {
        'boxes': str(args.boxes.resolve()), 'sha256 of the boxes': sha256(args.boxes)}
    counts |= {} if threshold is None else {'threshold': threshold}
    counts |= {'class probabilities': 'background first'} if args.probabilities else {}
    places = devices(args.device)
    if args.bf16:
        from bert.speed import warn_slow_bf16  # imports PyTorch
        warn_slow_bf16(places[0])
    with ExtractionCheckpoint(args.out) as checkpoint, WorkerPool(config, places) as pool:
        provenance = pool.provenance() | counts | {
            'device': places[0].split(':')[0],
            'extracted from': str(Path(args.images).resolve())} | ({} if args.ids == 'stem' else {'ids': args.ids})
        checkpoint.resume(provenance)
        remaining = [(img_id, path) if boxes is None else (img_id, path, boxes[img_id]) for img_id, path in pictures.items()
                     if img_id not in checkpoint.done and img_id not in broken]
        resumed, start = len(pictures) - len(remaining) - len(broken), time.monotonic()
        if resumed:
            print(f'{args.out}: resumed after {resumed:,} of {len(pictures):,} images')
        with ProgressBar(total=len(pictures), initial=resumed, desc='Extracting', unit=' images') as bar:
            for img_id, line, fault in pool.run(remaining):
                if fault:
                    broken[img_id] = fault
                else:
                    checkpoint.append(img_id, line)
                    check_room(checkpoint, len(pictures))
                bar.update()
        seconds = time.monotonic() - start
        broken = {img_id: broken[img_id] for img_id in pictures if img_id in broken}  # in the order of the pictures
        report_broken(args.out, broken, len(pictures))
        if broken and not (args.allowBroken and len(broken) < len(pictures)):
            hint = '' if args.allowBroken else ', or give --allowBroken to leave them out'
            raise ValueError(f'{args.out} was not written: repair or remove these pictures and start again (finished images are '
                             f'kept){hint}')
        checkpoint.finish(pictures, provenance | {
            'left out': list(broken), 'extracted at': datetime.now(UTC).isoformat(timespec='seconds')})
    extracted = len(pictures) - len(broken)
    print(f'{args.out}: {extracted:,} images, {len(broken):,} left out, {(extracted - resumed) / seconds:.1f} images a second')
    return 0


def without_boxes(pictures, boxes, file):
    """{image id: error message} of the pictures that have no boxes in the file. Raises DataError if none has."""
    missing = {img_id: f'{path}: no boxes of {img_id} in {file}' for img_id, path in pictures.items() if img_id not in boxes}
    if len(missing) == len(pictures):
        raise DataError(f'{file}: has boxes of none of the {len(pictures):,} pictures, but of images such as {some(boxes)}; the '
                        f'pictures have ids such as {some(pictures)}: correct the file, or choose the ids with --ids')
    if others := [img_id for img_id in boxes if img_id not in pictures]:
        print(f'{file}: boxes of {len(others):,} images that are not among the pictures ({some(others)}): not used')
    return missing


def check_room(checkpoint, images):
    """Raises OSError if the disk has no room for the remaining lines and the result, judged by the lines so far."""
    if len(checkpoint.done) < min(SAMPLE, images):
        return
    line = checkpoint.size / len(checkpoint.done)
    needed = line * (images - len(checkpoint.done)) + line * images  # lines are removed only after the result is written
    check_free_space(checkpoint.folder, needed, checkpoint.out, 'make room and start again, or choose another --out')


def report_broken(out, broken, images):
    """Lists the broken pictures on stderr and in OUT.broken.txt. broken: {image id: error message}."""
    path = out.with_name(f'{out.name}.broken.txt')
    path.unlink(missing_ok=True)
    if broken:
        with atomic_file(path, 'w', encoding='utf-8', errors='backslashreplace') as file:
            file.writelines(f'{fault}\n' for fault in broken.values())
        print(f'{len(broken):,} of {images:,} pictures cannot be used (all in {path}):\n'
              + tsv.listed(list(broken.values())), file=sys.stderr)


def build_parser():
    parser = argparse.ArgumentParser(prog='run/extract.bash', allow_abbrev=False, epilog=EPILOG,
                                     description='Extracts the regions of pictures to a TSV or a region store.',
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage='bash run/extract.bash GPUS|cpu --images DIR|LIST --out X.tsv|X.store [flags]')
    parser.add_argument('--images', type=Path, required=True, metavar='DIR|LIST', help='a folder of pictures, or a list of them')
    parser.add_argument('--out', type=Path, required=True, metavar='X.tsv|X.store', help='a new file or folder')
    parser.add_argument('--ids', default='stem', metavar='stem|path|FILE', help=f'image ids; {IDS_HELP}; default: stem')
    parser.add_argument('--split', choices=tuple(SPLITS), help='dataset whose file names are expected; default: any')
    parser.add_argument('--detector', default=FASTER_RCNN, metavar='NAME', help=f'{HELP}; default: {FASTER_RCNN}')
    parser.add_argument('--weights', metavar='FILE', help=f'of the Faster R-CNN, see bash run/download.bash detector ({WEIGHTS})')
    parser.add_argument('--layout', choices=tuple(LAYOUTS), default='lxmert', help='lxmert: 36 regions (default); vlbert: 10 to '
                        '100, those with a class score of at least 0.5')
    parser.add_argument('--minBoxes', type=int, help='the fewest regions of a picture (36; vlbert 10)')
    parser.add_argument('--maxBoxes', type=int, help='the most (36; vlbert 100)')
    parser.add_argument('--probabilities', action='store_true', help="also store each region's probabilities of all classes, "
                        "the background first, in half precision, for VL-BERT's pre-training; needs --out X.store")
    parser.add_argument('--boxes', type=Path, metavar='FILE', help='compute the features of these boxes instead, see below')
    parser.add_argument('--bf16', action='store_true', help='compute in bfloat16 where it is safe; what is written is float32')
    parser.add_argument('--allowBroken', action='store_true', help='leave out pictures that cannot be used, and list them')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help=argparse.SUPPRESS)  # the launcher's
    return parser


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.out.suffix not in ('.tsv', '.store'):
        parser.error(f'--out: expected a name ending in .tsv or .store, found {args.out}')
    if args.out.exists():
        parser.error(f'--out: {args.out} exists and is not overwritten; choose another name')
    if args.probabilities and args.out.suffix == '.tsv':
        parser.error(f'--probabilities: a TSV has no place for class probabilities, found --out {args.out}; name a .store')
    fewest, most, _ = LAYOUTS[args.layout]
    args.minBoxes = fewest if args.minBoxes is None else args.minBoxes
    args.maxBoxes = most if args.maxBoxes is None else args.maxBoxes
    if not 1 <= args.minBoxes <= args.maxBoxes <= PROPOSALS:
        parser.error(f'--minBoxes, --maxBoxes: expected 1 <= minBoxes <= maxBoxes <= {PROPOSALS}, found {args.minBoxes} and '
                     f'{args.maxBoxes}')
    if args.boxes and (args.minBoxes, args.maxBoxes, args.layout) != (36, 36, 'lxmert'):
        parser.error('--minBoxes, --maxBoxes, --layout: do not apply to --boxes, whose boxes are all kept; leave them out')
    if args.detector != FASTER_RCNN and (args.weights or args.bf16):
        parser.error(f'--weights and --bf16 are those of --detector {FASTER_RCNN}; leave them out with {args.detector}')
    return run_main('extract.bash', lambda: extract(args), 'interrupted; repeat the command to resume')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
