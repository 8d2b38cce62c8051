"""What finding the regions of a photograph costs: seconds and memory, of the whole detector with random weights.

Without --images of noise: what is in a picture changes nothing of the cost but the choice of its boxes.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from bench import report
from detector.faster_rcnn import Detector
from images.pictures import ENDINGS, open_picture

MODES = ('fp32', 'bf16')


def main(argv=None) -> int:
    parser = report.parser('detector', __doc__.split('\n')[0], folder=False)
    parser.add_argument('--images', type=Path, help='a folder of photographs (noise of 640 x 480)')
    parser.add_argument('--count', type=report.count, default=3, help='how many of them, after one to warm up (3)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='where to compute (cpu)')
    options = parser.parse_args(argv)
    if options.part:
        try:
            print(json.dumps(measure(options.part, options)))
        except (OSError, ValueError, RuntimeError) as error:  # the last: of CUDA
            parser.exit(1, f'bench.bash: error: {error}\n')
        return 0
    flags = ['--count', options.count, '--device', options.device, *(['--images', options.images] if options.images else [])]
    figures = {}
    for mode in MODES:
        figures |= report.measured_apart('detector', '--part', mode, *flags)
    figures['bf16, times as fast as fp32'] = figures['fp32, s an image'] / figures['bf16, s an image']
    return report.tell(figures, options.out)


def measure(mode, options):
    """The figures of one precision, by a process of its own."""
    warm = next(pictures(options.images, 1))
    detector = Detector.random(0, options.device, bf16=mode == 'bf16')
    detector.regions([warm], ['warm'])
    seconds = boxes = 0
    for picture in pictures(options.images, options.count):
        begin = time.perf_counter()
        found, = detector.regions([picture], ['picture'])
        seconds += (time.perf_counter() - begin) / options.count
        boxes += len(found.boxes) / options.count
    return {f'{mode}, s an image': seconds, f'{mode}, images/s': 1 / seconds, f'{mode}, boxes an image': boxes,
            f'{mode}, peak resident memory, MB': report.most_resident() / 1e6}


def pictures(folder, count):
    """Some pictures of a folder, over and over if there are fewer, or noise."""
    if folder is None:
        rng = np.random.default_rng(0)
        yield from (rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in range(count))
        return
    files = sorted(path for path in folder.glob('*') if path.suffix.lower() in ENDINGS)
    if not files:
        raise FileNotFoundError(f'--images {folder}: expected a folder of pictures ({", ".join(ENDINGS)}), found none')
    yield from (open_picture(files[place % len(files)]) for place in range(count))


if __name__ == '__main__':
    sys.exit(main())
