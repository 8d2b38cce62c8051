"""Measures region stores on generated data: opening, memory, speed, conversion, several processes. See run/bench.bash."""

import base64
import csv
import functools
import json
import os
import shutil
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench import report
from bench.images import SIZE
from cli import positive, run_main
from files.atomic import check_free_space
from files.progress import ProgressBar
from regions import store, tsv
from regions.tsv import ImageRegions

REGIONS, FEATURES, BATCH = 36, 2048, 32  # regions per image, numbers per region, images per batch
RAM_BYTES = 4e9  # size of the array that is compared with the store


def main(argv=None) -> int:
    parser = report.parser('regions', __doc__)
    parser.add_argument('--images', type=positive, default=123_000, help='images of the large store (147 KB each)')
    parser.add_argument('--convert', type=positive, default=5_000, help='images to convert (0.4 MB of TSV each)')
    parser.add_argument('--batches', type=positive, default=1_000, help='random batches of 32 in each measurement')
    options = parser.parse_args(argv)
    if options.part:
        name, path, *workers = options.part.split(':')
        print(json.dumps(PARTS[name](Path(path), options.batches, *map(int, workers))))
        return 0

    def work():
        options.folder.mkdir(parents=True, exist_ok=True)
        try:
            check_free_space(options.folder, options.images * REGIONS * FEATURES * 2 + options.convert * REGIONS * FEATURES * 12
                             + 2e9, 'bench.bash regions', 'set --images or --folder')
            return measure(options, report.Figures(options.out)).finish()
        finally:
            shutil.rmtree(options.folder)

    return run_main('bench.bash', work)


def measure(options, figures) -> dict:
    """Adds all figures by name, with their units, and returns them."""
    figures |= {'cores': len(os.sched_getaffinity(0)), 'images': options.images}
    small, large = options.folder / 'small.store', options.folder / 'large.store'
    make_store(small, 100)
    figures['large store written, s'] = timed(lambda: make_store(large, options.images))
    figures['large store, GB'] = (large / 'features.npy').stat().st_size / 1e9

    def part(*names):
        return report.run_separately('regions', '--part', ':'.join(map(str, names)), '--batches', options.batches)

    for name, path in (('100 images', small), (f'{options.images:,} images', large)):
        evict(path)
        for state in ('cold', 'warm'):
            figures[f'open to first batch, {name}, {state}, s'] = part('first', path)
    evict(large)
    figures |= part('random', large)
    figures |= part('compare', large)
    for processes, workers in ((1, 0), (1, 4), (2, 4)):
        with ThreadPoolExecutor(processes) as pool:
            memory = np.sum(list(pool.map(lambda _, workers=workers: part('training', large, workers), range(processes))), 0)
        name = f'{processes} processes x {workers} workers'
        figures |= {f'{name}, memory after 100 batches, MB': memory[0],
                    f'{name}, growth over {options.batches:,} more, MB': memory[1] - memory[0]}
    shutil.rmtree(large)
    return measure_conversion(options, figures)


# Measurements in their own processes

def first(path, _):
    """Seconds from opening a store to its first batch."""
    begin = time.perf_counter()
    regions = store.RegionStore(path)
    middle = np.linspace(0, len(regions) - 1, BATCH).astype(int)
    regions.gather(regions.rows([regions.ids[row].decode() for row in middle]))
    return time.perf_counter() - begin


def random(path, batches):
    """Random batches of a store that is not in the page cache."""
    regions, rng = store.RegionStore(path), np.random.default_rng(0)
    seconds = timed(lambda: [regions.gather(rng.integers(0, len(regions), BATCH)) for _ in range(batches)])
    return {'batches/s, cold': batches / seconds, f'memory after {batches:,} batches, MB': own_memory(os.getpid()) / 1e6}


def compare(path, batches):
    """Random batches of the first 4 GB, in turns: from the store in the page cache, and from one array in RAM."""
    regions, rng = store.RegionStore(path), np.random.default_rng(0)
    images = min(len(regions), int(RAM_BYTES / (REGIONS * FEATURES * 2)))
    array = np.array(regions.arrays['features'][:images * REGIONS]).reshape(images, REGIONS, FEATURES)  # fills the page cache too
    seconds = {'store': 0.0, 'numpy indexing in RAM': 0.0}
    for _ in range(batches):
        rows = rng.integers(0, images, BATCH)
        seconds['store'] += timed(lambda rows=rows: regions.gather(rows))
        seconds['numpy indexing in RAM'] += timed(lambda rows=rows: array[rows])
    store_time, ram_time = seconds.values()
    return {f'batches/s, warm, {name}': batches / total for name, total in seconds.items()} | {
        'time of the store / of numpy indexing in RAM': store_time / ram_time}


def training(path, batches, workers):
    """MB of this process and its data workers after 100 batches, and after `batches` more."""
    import torch

    warnings.simplefilter('ignore')  # about more workers than cores
    regions, rng = store.RegionStore(path), np.random.default_rng()

    class Batches(torch.utils.data.Dataset):
        def __getitem__(self, rows):
            return {name: torch.from_numpy(array) for name, array in regions.gather(rows).items()}

    rows = [rng.integers(0, len(regions), BATCH) for _ in range(batches + 200)]  # more than are read, so that workers stay
    loader = iter(torch.utils.data.DataLoader(Batches(), sampler=rows, batch_size=None, num_workers=workers))
    memory = []
    for count in (100, batches):
        for _ in range(count):
            next(loader)
        children = Path(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read_text().split()
        memory.append(sum(own_memory(pid) for pid in (os.getpid(), *children)) / 1e6)
    return memory


PARTS = {'first': first, 'random': random, 'compare': compare, 'training': training}


def own_memory(pid) -> int:
    """Bytes of a process's resident memory without the page cache, with its share of memory that several processes use."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(('Pss_Anon', 'Pss_Shmem')))


# Conversion

def measure_conversion(options, figures) -> dict:
    """MB of TSV per second, in the page cache: into a store, and as the original code reads it."""
    path = options.folder / 'x_obj36.tsv'
    tsv.write(path, map(image, range(options.convert)))
    megabytes = path.stat().st_size / 1e6
    path.read_bytes()
    original = timed(lambda: read_as_original(path))
    figures |= {'TSV, MB': megabytes, 'csv + base64 into RAM, MB/s of TSV': megabytes / original}
    for dtype in ('float32', 'float16'):
        seconds = timed(lambda dtype=dtype: store.convert(path, dtype=dtype))
        shutil.rmtree(store.store_folder(path))
        figures |= {f'conversion to {dtype}, MB/s of TSV': megabytes / seconds,
                    f'conversion to {dtype}, times as fast': original / seconds}
    return figures


def read_as_original(path) -> list[dict]:
    """What the original code does at each start."""
    csv.field_size_limit(sys.maxsize)
    rows = []
    with open(path) as file:
        for item in csv.DictReader(file, tsv.FIELDS, delimiter='\t'):
            for field in ('img_h', 'img_w', 'num_boxes'):
                item[field] = int(item[field])
            for field, dtype in tsv.ARRAYS.values():
                shape = (item['num_boxes'], -1) if field in ('boxes', 'features') else -1
                item[field] = np.frombuffer(base64.b64decode(item[field]), dtype).reshape(shape)
            rows.append(item)
    return rows


# Data

@functools.cache
def random_regions(seed) -> ImageRegions:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((REGIONS, 2, 2), np.float32), axis=1).reshape(REGIONS, 4) * np.float32(min(SIZE))
    return ImageRegions('', SIZE[1], SIZE[0], rng.integers(0, 1600, REGIONS), rng.random(REGIONS, np.float32),
                        rng.integers(0, 400, REGIONS), rng.random(REGIONS, np.float32), corners,
                        np.maximum(rng.standard_normal((REGIONS, FEATURES), np.float32), 0))


def image(number) -> ImageRegions:
    """One of 50 sets of random regions, under its own id."""
    return replace(random_regions(number % 50), img_id=f'COCO_train2014_{number:012d}')


def make_store(folder, images) -> None:
    """A store of float16 features."""
    store.write(folder, map(image, ProgressBar(range(images), folder.name, unit=' images')), {}, dtype='float16')


def evict(folder) -> None:
    """Removes a store from the page cache; what was written must be on disk for that."""
    for path in folder.glob('*.npy'):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(call) -> float:
    """Seconds of a call."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == '__main__':
    sys.exit(main())
