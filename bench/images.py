"""Measures images as a data source: images per second of decoding, a random crop, mirroring, batch and normalisation, from a
folder, a zip and a pixel store, with two data workers, next to torchvision's ImageFolder and transforms, or else a plain loop
with Pillow, in turns. With and without RandAugment; ratios compare what is measured in the same turns."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from batches import load_batches, training_batches
from bench import report
from cli import end_with_parent, positive, run_main
from images import pixel_store
from images.pictures import in_parallel
from images.source import open_source
from images.transforms import ALBEFTransform, random_crop
from param import Options

SIZE = 640, 480  # of generated photographs
SIDES = 256, 384


def main(argv=None) -> int:
    parser = report.parser('images', __doc__)
    parser.add_argument('--images', type=Path, help='a folder of .jpg, copied until there are --count (default: generated)')
    parser.add_argument('--count', type=positive, default=600, help='number of images (600)')
    parser.add_argument('--batchSize', type=positive, default=32)
    parser.add_argument('--numWorkers', type=positive, default=2)
    parser.add_argument('--turns', type=positive, default=3, help='of which the median counts (3)')
    parser.add_argument('--torchvision', metavar='PYTHON', help='the Python of an environment with torchvision, see '
                        'bench/images_torchvision.py (default: a plain loop with Pillow)')
    options = parser.parse_args(argv)
    if options.part:
        return run_main('bench.bash', lambda: print(json.dumps(measure(options))) or 0)

    def work():
        shutil.rmtree(options.folder, ignore_errors=True)
        figures = report.Figures(options.out)
        try:
            compare(options, figures)
        finally:
            shutil.rmtree(options.folder, ignore_errors=True)
        return figures.finish()

    return run_main('bench.bash', work)


def compare(options, figures):
    photographs = options.folder / 'photographs'
    make_photographs(photographs / 'all', [f'{i:05d}' for i in range(options.count)], options.images)
    with zipfile.ZipFile(options.folder / 'photographs.zip', 'w') as file:
        for path in sorted(photographs.glob('all/*')):
            file.write(path, path.name)
    begin = time.perf_counter()
    open_source(photographs)
    figures['sizes from headers, images/s'] = options.count / (time.perf_counter() - begin)
    for side in SIDES:
        begin = time.perf_counter()
        pixel_store.write(photographs, options.folder / f'{side}.pixels', side)
        figures[f'{side} pixels: conversion to a pixel store, images/s'] = options.count / (time.perf_counter() - begin)
    reference = "torchvision's ImageFolder" if options.torchvision else 'plain Pillow'
    for side in SIDES:
        for augmented, what in ((0, ''), (1, ', RandAugment')):
            sources = {'folder': photographs, 'zip': options.folder / 'photographs.zip', 'pixel store':
                       options.folder / f'{side}.pixels'}
            rates = {name: [] for name in (*sources, reference)}
            for _ in range(options.turns):
                for name, source in sources.items():
                    rates[name].append(separately(options, source, side, augmented))
                rates[reference].append(torchvision(options, photographs, side, augmented) if options.torchvision else
                                     separately(options, photographs, side, augmented, '--plain'))
            medians = {name: statistics.median(values) for name, values in rates.items()}
            figures |= {f'{side} pixels{what}: {name}, images/s': value for name, value in medians.items()}
            figures |= {f'{side} pixels{what}: {name}, times as fast as {reference}': medians[name] / medians[reference]
                        for name in sources}


def make_photographs(folder, names, images=None):
    """Writes NAME.jpg: copies of those in a folder of `images`, or generated with the content of a photograph: coarse and fine
    structure and some noise."""
    folder.mkdir(parents=True)
    if images:
        paths = sorted(path for path in images.iterdir() if path.suffix == '.jpg')
        if not paths:
            raise ValueError(f'--images {images}: expected .jpg files, found none; name another folder')
        for i, name in enumerate(names):
            shutil.copy(paths[i % len(paths)], folder / f'{name}.jpg')
        return

    def photograph(_, i):
        rng, picture = np.random.default_rng(i), 0
        for scale in (4, 16, 64, 160):
            layer = Image.fromarray(rng.integers(0, 256, (scale * 3 // 4, scale, 3), np.uint8))
            picture = picture + np.asarray(layer.resize(SIZE, Image.Resampling.BICUBIC), np.float32) / scale ** 0.5
        picture += rng.normal(0, 3, picture.shape[:2])[..., None]
        picture = (picture - picture.min()) / (picture.max() - picture.min()) * 255
        Image.fromarray(picture.astype(np.uint8)).save(folder / f'{names[i]}.jpg', quality=90)

    list(in_parallel(photograph, range(len(names))))


def separately(options, source, side, augmented, *flags):
    return report.run_separately('images', '--part', json.dumps([str(source), side, augmented, bool(flags)]), '--batchSize',
                                 options.batchSize, '--numWorkers', options.numWorkers, OMP_NUM_THREADS='1')


def torchvision(options, folder, side, augmented):
    command = [options.torchvision, Path(__file__).with_name('images_torchvision.py'), folder, side, options.numWorkers,
               options.batchSize, augmented]
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True,
                          env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': ''},
                          preexec_fn=partial(end_with_parent, os.getpid()))
    return float(done.stdout)


class Pixels(torch.utils.data.Dataset):
    """What a dataset does with a source."""

    def __init__(self, source, transform):
        self.source, self.transform = source, transform

    def __getitem__(self, batch):
        pixels = self.source.batch(batch.indices, self.transform, 0, batch.epoch, batch.first + np.arange(len(batch.indices)))
        return {name: torch.from_numpy(array) for name, array in pixels.items()}

    def to_device(self, batch):
        return self.transform.normalize(batch)


class PlainPixels(Pixels):
    """The same by Pillow, without a process for hostile pictures, in the data workers; paths as a list."""

    def __init__(self, source, transform):
        super().__init__(None, transform)
        self.paths = sorted(Path(source).glob('*/*.jpg'))

    def __getitem__(self, batch):
        rng, images = np.random.default_rng(batch.first), []
        for i in batch.indices:
            image = Image.open(self.paths[i]).convert('RGB')
            box = random_crop(image.height, image.width, self.transform.area, rng)
            picture = np.asarray(image.crop(box).resize(2 * (self.transform.side,), self.transform.resample))
            images.append(torch.from_numpy(self.transform.augment(picture, rng).copy()).permute(2, 0, 1))
        return {'pixels': torch.stack([self.transform.normalize({'pixels': one})['pixels'] for one in images])}

    def to_device(self, batch):
        return batch


def measure(options):
    """Images per second of an epoch, from the second batch on, when the workers have started."""
    source, side, augmented, plain = json.loads(options.part)
    torch.set_num_threads(1)
    transform = ALBEFTransform(side, (0.5, 1.0), True, bool(augmented))
    dataset = PlainPixels(source, transform) if plain else Pixels(open_source(source), transform)
    settings = Options(batchSize=options.batchSize, numWorkers=options.numWorkers, seed=0)
    order = list(training_batches(len(dataset.paths if plain else dataset.source), 0, 0, settings))
    batches = load_batches(dataset, order, settings, torch.device('cpu'))
    next(batches)
    begin, count = time.perf_counter(), 0
    for batch in batches:
        count += len(batch['pixels'])
    return count / (time.perf_counter() - begin)


if __name__ == '__main__':
    sys.exit(main())
