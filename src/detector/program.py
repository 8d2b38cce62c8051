"""Regions of one's own pictures, many at a time, to a TSV or a region store. The program behind run/extract.bash.

Exit status 0: well; 1: a fault of what was given, or broken pictures; 2: wrong usage.
"""

import argparse
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm

from cli import run_main
from detector.unfinished import Unfinished
from detector.workers import DETECTORS, WEIGHTS, Recipe, Workers
from files.atomic import atomic_file
from images import ids
from regions import tsv

PROPOSALS = 300  # the most boxes that the detector has of a picture
SAMPLE = 20  # pictures whose lines tell how long those of all will be

EPILOG = '''
--images is a folder, with all folders in it, linked ones too, or a text with the path of a picture a line, relative to its own
folder. What does not end as pictures do (.jpg, .jpeg, .png, .gif, .bmp, .webp, .tif, .tiff) is told and left aside. The name of a
file without its ending becomes the image id; --split says of which dataset the names must be:
  coco   COCO_val2014_000000000042.jpg         for data/mscoco_imgfeat
  gqa    2335684.jpg, n161313.jpg              for data/vg_gqa_imgfeat
  nlvr2  dev-896-0-img0.png                    for data/nlvr2_imgfeat
data/mscoco_imgfeat/README.md and so on have the commands for each published file.

There is a process a GPU, or one with cpu; NPROC=2 makes it two on each, so that one reads pictures while the other computes.
What is done is kept in FILE.unfinished: killed, it goes on with the same command, and the result is the same to the byte; with
other flags that change the regions, or other --images, it says so and does not.
Pictures that cannot be used are listed in FILE.broken.txt; they keep the result from being written, unless --allowBroken is
given.

Examples:
  bash run/extract.bash 0,1 --images pictures/val2014 --split coco --out data/mscoco_imgfeat/val2014_obj36.tsv
  NPROC=2 bash run/extract.bash cpu --images mine --minBoxes 10 --maxBoxes 100 --bf16 --out data/mine/mine.store
  bash run/extract.bash cpu --images data/shapes/images/val2014 --detector shapes --out data/mine/shapes_obj36.tsv

Exit status: 0 well, 1 a fault of what was given, 2 wrong usage.
'''


def devices(wanted):
    """The device of each process, NPROC of them on each of `wanted`, 'cpu' or None for GPUs. Raises ValueError."""
    count = os.environ.get('NPROC') or '1'
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        raise ValueError(f'NPROC: expected the number of processes, found {count!r}')
    places = int(count) * (['cpu'] if wanted == 'cpu' else _gpus())
    # Processes that each take all cores wait for each other.
    os.environ.setdefault('OMP_NUM_THREADS', str(-(-len(os.sched_getaffinity(0)) // len(places))))
    return places


def _gpus():
    """The GPUs of CUDA_VISIBLE_DEVICES; the CPU on a machine without any NVIDIA device."""
    import torch  # the processes of a detector that needs no PyTorch start without, several times faster

    import dist
    if dist.start().type == 'cpu':
        return ['cpu']
    there, asked = torch.cuda.device_count(), os.environ.get('CUDA_VISIBLE_DEVICES')
    if asked and there != len(asked.split(',')):
        raise ValueError(f'GPUs {asked}: expected {len(asked.split(","))}, found {there}; nvidia-smi lists them')
    return [f'cuda:{number}' for number in range(there)]


def extract(flags):
    """Makes the regions and writes them; returns the exit status."""
    pictures = ids.find(flags.images, flags.split)
    recipe = Recipe(flags.detector, flags.weights or WEIGHTS, flags.bf16, flags.minBoxes, flags.maxBoxes)
    where = devices(flags.device)
    with Unfinished(flags.out) as part, Workers(recipe, where) as workers:
        provenance = workers.provenance() | {
            'min_boxes': flags.minBoxes, 'max_boxes': flags.maxBoxes, 'device': where[0].split(':')[0],
            'extracted from': str(Path(flags.images).resolve())}
        part.resume(provenance)
        todo, broken, began = [one for one in pictures.items() if one[0] not in part.done], {}, time.monotonic()
        done = len(pictures) - len(todo)
        if done:
            print(f'{flags.out}: goes on after {done:,} of {len(pictures):,} images')
        with tqdm(total=len(pictures), initial=done, desc='Extracting', unit=' images', disable=None) as bar:
            for img_id, line, fault in workers.run(todo):
                if fault:
                    broken[img_id] = fault
                else:
                    part.append(img_id, line)
                    check_room(part, len(pictures))
                bar.update()
        seconds = time.monotonic() - began
        tell_broken(part, broken, len(pictures))
        if broken and not (flags.allowBroken and len(broken) < len(pictures)):
            other = '' if flags.allowBroken else ', or give --allowBroken to go without them'
            raise ValueError(f'{flags.out} was not written: mend these pictures or leave them out, and start again (what is done '
                             f'is kept){other}')
        part.finish(pictures, provenance | {
            'left out': list(broken), 'extracted at': datetime.now(UTC).isoformat(timespec='seconds')})
    made = len(pictures) - len(broken)
    print(f'{flags.out}: {made:,} images, {len(broken):,} left out, {(made - done) / seconds:.1f} images a second')
    return 0


def check_room(part, images):
    """Raises OSError where the disk has no room for all that is still to come, as far as the lines so far tell."""
    if len(part.done) < min(SAMPLE, images):
        return
    line = part.size / len(part.done)
    needed = line * (images - len(part.done)) + line * images  # the lines, and the result, before they are removed
    if needed > (free := shutil.disk_usage(part.folder).free):
        raise OSError(f'{part.out}: needs some {needed / 1e9:.1f} GB of disk, found {free / 1e9:.1f} GB free; make room and '
                      'start again, or choose another --out')


def tell_broken(part, broken, images):
    """Names the broken pictures on the screen and in a file of their own."""
    part.broken.unlink(missing_ok=True)
    if broken:
        with atomic_file(part.broken) as file:
            file.writelines(f'{fault}\n'.encode(errors='backslashreplace') for fault in broken.values())
        print(f'{len(broken):,} of {images:,} pictures cannot be used (all in {part.broken}):\n'
              + tsv.listed(list(broken.values())), file=sys.stderr)


def parser():
    made = argparse.ArgumentParser(prog='run/extract.bash', allow_abbrev=False, epilog=EPILOG,
                                   description='Finds the regions of pictures and writes them to a TSV or a region store.',
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   usage='bash run/extract.bash GPUS|cpu --images DIR|LIST --out X.tsv|X.store [flags]')
    made.add_argument('--images', type=Path, required=True, metavar='DIR|LIST', help='a folder of pictures, or a list of them')
    made.add_argument('--out', type=Path, required=True, metavar='X.tsv|X.store', help='a new file or folder')
    made.add_argument('--split', choices=tuple(ids.SPLITS), help='of which dataset the file names are; default: any')
    made.add_argument('--detector', choices=DETECTORS, default=DETECTORS[0],
                      help=f'{DETECTORS[0]}; shapes: that of the sample world, which sees nothing else')
    made.add_argument('--weights', metavar='FILE', help=f"the detector's, see bash run/download.bash detector ({WEIGHTS})")
    made.add_argument('--minBoxes', type=int, default=36, help='the fewest regions of a picture (36)')
    made.add_argument('--maxBoxes', type=int, default=36, help='the most (36)')
    made.add_argument('--bf16', action='store_true', help='compute in bfloat16 where it is safe; what is written is float32')
    made.add_argument('--allowBroken', action='store_true', help='leave out pictures that cannot be used, and list them')
    made.add_argument('--device', choices=('cpu', 'cuda'), help=argparse.SUPPRESS)  # the launcher's
    return made


def main(argv=None):
    """Runs the program; returns its exit status."""
    made = parser()
    flags = made.parse_args(argv)
    if flags.out.suffix not in ('.tsv', '.store'):
        made.error(f'--out: expected a name ending in .tsv or .store, found {flags.out}')
    if flags.out.exists():
        made.error(f'--out: {flags.out} is there already, and is not overwritten; name another')
    if not 1 <= flags.minBoxes <= flags.maxBoxes <= PROPOSALS:
        made.error(f'--minBoxes, --maxBoxes: expected 1 <= minBoxes <= maxBoxes <= {PROPOSALS}, found {flags.minBoxes} and '
                   f'{flags.maxBoxes}')
    if flags.detector == 'shapes' and (flags.weights or flags.bf16):
        made.error('--detector shapes: has no weights and nothing to compute in bfloat16; leave out --weights and --bf16')
    return run_main('extract.bash', lambda: extract(flags), 'interrupted; the same command goes on')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
