"""Measures the detector of regions on photographs: seconds and memory of the whole model, with random weights.

Without --images on noise, whose content changes the cost only by the choice of boxes.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from bench import report
from cli import positive, run_main
from detector.faster_rcnn import Detector
from images.ids import ENDINGS
from images.pictures import open_picture

MODES = ('fp32', 'bf16')


def main(argv=None) -> int:
    parser = report.parser('detector', __doc__.split('\n')[0], folder=False)
    parser.add_argument('--images', type=Path, help='a folder of photographs (default: noise of 640 x 480)')
    parser.add_argument('--count', type=positive, default=3, help='number of images, after one to warm up (3)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='where to compute (cpu)')
    options = parser.parse_args(argv)
    if options.part:
        return run_main('bench.bash', lambda: print(json.dumps(measure(options.part, options))) or 0)
    flags = ['--count', options.count, '--device', options.device, *(['--images', options.images] if options.images else [])]
    figures = report.Figures(options.out)
    for mode in MODES:
        figures |= report.run_separately('detector', '--part', mode, *flags)
    figures['bf16, times as fast as fp32'] = figures['fp32, s an image'] / figures['bf16, s an image']
    return figures.finish()


def measure(mode, options):
    """The figures of one precision, in a process of its own."""
    warm = next(images(options.images, 1))
    detector = Detector.random(0, options.device, bf16=mode == 'bf16')
    detector.regions([warm], ['warm'])
    seconds = boxes = 0
    for image in images(options.images, options.count):
        begin = time.perf_counter()
        regions, = detector.regions([image], ['image'])
        seconds += (time.perf_counter() - begin) / options.count
        boxes += len(regions.boxes) / options.count
    return {f'{mode}, s an image': seconds, f'{mode}, images/s': 1 / seconds, f'{mode}, boxes an image': boxes,
            f'{mode}, peak resident memory, MB': report.peak_resident() / 1e6}


def images(folder, count):
    """Yields `count` images (h, w, 3): those of a folder, repeated if there are fewer, or noise."""
    if folder is None:
        rng = np.random.default_rng(0)
        yield from (rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(count))
        return
    files = sorted(path for path in folder.glob('*') if path.suffix.lower() in ENDINGS)
    if not files:
        raise FileNotFoundError(f'--images {folder}: expected a folder of pictures ({", ".join(ENDINGS)}), found none')
    yield from (open_picture(files[number % len(files)]) for number in range(count))


if __name__ == '__main__':
    sys.exit(main())
