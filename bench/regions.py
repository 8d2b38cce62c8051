"""Measures region stores on data that it makes: opening, memory, speed, conversion, processes. See run/bench.bash."""

import argparse
import base64
import csv
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bench import report
from regions import store, store_files, tsv
from regions.tsv import ImageRegions

O, F, BATCH = 36, 2048, 32  # noqa: E741, regions an image, numbers a region, images a batch
RAM_BYTES = 4e9  # of the array that is compared with the store


def main(argv=None) -> int:
    parser = report.parser('regions', __doc__)
    parser.add_argument('--images', type=int, default=123_000, help='images of the large store (147 KB each)')
    parser.add_argument('--convert', type=int, default=5_000, help='images that are converted (0.4 MB of TSV each)')
    parser.add_argument('--batches', type=int, default=1_000, help='random batches of 32 in each measurement')
    parser.add_argument('--workers', type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return 0
    need = options.images * O * F * 2 + options.convert * O * F * 4 * 3
    options.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.folder).free
    if free < need + 2e9:
        print(f'bench: {options.folder} has {free / 1e9:.1f} GB free, {need / 1e9 + 2:.1f} GB are needed; give --images or '
              '--folder', file=sys.stderr)
        return 1
    try:
        figures = measure(options)
    finally:
        shutil.rmtree(options.folder)
    return report.tell(figures, options.out)


def measure(options) -> dict:
    """All figures by name, with their units."""
    figures = {'cores': len(os.sched_getaffinity(0)), 'images': options.images}
    small, large = options.folder / 'small.store', options.folder / 'large.store'
    make_store(small, 100)
    figures['large store written, s'] = timed(lambda: make_store(large, options.images))
    figures['large store, GB'] = (large / 'features.npy').stat().st_size / 1e9
    for name, path in (('100 images', small), (f'{options.images:,} images', large)):
        evict(path)
        for state in ('cold', 'warm'):
            figures[f'open to first batch, {name}, {state}, s'] = part(options, 'first', path)['seconds']
    evict(large)
    figures |= part(options, 'random', large)
    figures |= part(options, 'compare', large)
    for processes, workers in ((1, 0), (1, 4), (2, 4)):
        figures |= together(options, large, processes, workers)
    shutil.rmtree(large)
    return figures | measure_conversion(options)


def part(options, name: str, path: Path) -> dict:
    return json.loads(start(options, name, path).communicate()[0])


def start(options, name: str, path: Path, workers: int = 0) -> subprocess.Popen:
    command = [sys.executable, '-m', 'bench.regions', '--part', name, '--folder', str(path), '--batches', str(options.batches),
               '--workers', str(workers)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


# In processes of their own

def first(options) -> dict:
    begin = time.perf_counter()
    regions = store.RegionStore(options.folder)
    middle = np.linspace(0, len(regions) - 1, BATCH).astype(int)
    regions.gather(regions.rows([regions.ids[row].decode() for row in middle]))
    return {'seconds': time.perf_counter() - begin}


def random(options) -> dict:
    """Random batches of a store that is not in the page cache."""
    regions, rng = store.RegionStore(options.folder), np.random.default_rng(0)
    seconds = timed(lambda: [regions.gather(rng.integers(0, len(regions), BATCH)) for _ in range(options.batches)])
    memory = anon(os.getpid()) / 1e6
    return {'batches/s, cold': options.batches / seconds, f'RssAnon after {options.batches:,} batches, MB': memory}


def compare(options) -> dict:
    """Random batches of the first 4 GB: from the store, in the page cache; from one array in RAM; turn by turn."""
    regions, rng = store.RegionStore(options.folder), np.random.default_rng(0)
    images = min(len(regions), int(RAM_BYTES / (O * F * 2)))
    array = np.array(regions.arrays['features'][:images * O]).reshape(images, O, F)  # and now it is in the page cache
    reads = {'store': regions.gather, 'numpy indexing in RAM': lambda rows: array[rows]}
    seconds = {name: [] for name in reads}
    for _ in range(options.batches):
        rows = rng.integers(0, images, BATCH)
        for name, read in reads.items():
            seconds[name].append(timed(lambda read=read, rows=rows: read(rows)))
    figures = {f'batches/s, warm, {name}': len(each) / sum(each) for name, each in seconds.items()}
    store_time, ram_time = map(sum, seconds.values())
    return figures | {'time of the store / of numpy indexing in RAM': store_time / ram_time}


def training(options) -> dict:
    """Batches through data workers, as in training; waits at the end until its memory has been read."""
    import torch

    warnings.simplefilter('ignore')  # of more workers than cores
    regions = store.RegionStore(options.folder)

    class Batches(torch.utils.data.Dataset):
        def __getitem__(self, rows):
            return {name: torch.from_numpy(array) for name, array in regions.gather(rows).items()}

    def wait(word):  # until the other process has read the memory
        print(word, flush=True)
        sys.stdin.readline()

    rng = np.random.default_rng()
    batches = [rng.integers(0, len(regions), BATCH) for _ in range(options.batches + 200)]
    loader = iter(torch.utils.data.DataLoader(Batches(), sampler=batches, batch_size=None, num_workers=options.workers))
    for _ in range(100):  # until every worker has its batches ahead
        next(loader)
    wait('started')
    for _ in range(options.batches):
        next(loader)
    wait('done')
    return {}


PARTS = {'first': first, 'random': random, 'compare': compare, 'training': training}


def together(options, path: Path, processes: int, workers: int) -> dict:
    """Memory of several training processes with data workers, after a hundred batches each and after many."""
    running = [start(options, 'training', path, workers) for _ in range(processes)]
    total = []
    for _ in range(2):
        for process in running:
            process.stdout.readline()
        total.append(sum(own(pid) for process in running for pid in (process.pid, *children(process.pid))) / 1e6)
        for process in running:
            process.stdin.write('\n')
            process.stdin.flush()
    for process in running:
        process.communicate()
    name = f'{processes} processes x {workers} workers'
    return {f'{name}, memory after 100 batches, MB': total[0],
            f'{name}, growth over {options.batches:,} more, MB': total[1] - total[0]}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def own(pid: int) -> int:
    """Bytes of a process's resident memory that is no page cache, its share of what it has in common with others."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(('Pss_Anon', 'Pss_Shmem')))


def anon(pid: int) -> int:
    """Bytes of a process's own resident memory: what is no page cache."""
    line = next(line for line in Path(f'/proc/{pid}/status').read_text().splitlines() if line.startswith('RssAnon'))
    return int(line.split()[1]) * 1024


# Conversion

def measure_conversion(options) -> dict:
    path = options.folder / 'x_obj36.tsv'
    tsv.write(path, (image(number) for number in range(options.convert)))
    megabytes = path.stat().st_size / 1e6
    figures = {'TSV, MB': megabytes}
    path.read_bytes()  # each finds it in the page cache
    base = timed(lambda: into_ram(path))
    figures['csv + base64 into RAM, MB/s of TSV'] = megabytes / base
    for dtype in ('float32', 'float16'):
        seconds = timed(lambda dtype=dtype: store.convert(path, dtype=dtype))
        shutil.rmtree(store.store_folder(path))
        figures |= {f'conversion to {dtype}, MB/s of TSV': megabytes / seconds,
                    f'conversion to {dtype}, times as fast': base / seconds}
    path.unlink()
    return figures


def into_ram(path: Path) -> list[dict]:
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

def image(number: int) -> ImageRegions:
    """One of 50 sets of random regions, under a name of its own."""
    rng = np.random.default_rng(number % 50)
    corners = np.sort(rng.random((O, 2, 2), np.float32), axis=1).reshape(O, 4) * np.float32(400)
    return ImageRegions(f'COCO_train2014_{number:012d}', 400, 400, rng.integers(0, 1600, O), rng.random(O, np.float32),
                        rng.integers(0, 400, O), rng.random(O, np.float32), corners,
                        np.maximum(rng.standard_normal((O, F), np.float32), 0))


def make_store(folder: Path, images: int) -> None:
    """A store of float16 features, written directly."""
    block = [image(number) for number in range(50)]
    block = [replace(one, features=one.features.astype('<f2')) for one in block]
    with store_files.lock(folder), store_files.StoreWriter(folder, 'float16') as writer:
        for number in tqdm(range(images), desc=folder.name, unit=' images', disable=None):
            writer.add(replace(block[number % 50], img_id=f'COCO_train2014_{number:012d}'))
        writer.finish({'made by': 'bench.regions'}, None)


def evict(folder: Path) -> None:
    """Out of the page cache, which needs what was written to be on disk."""
    for path in folder.glob('*.npy'):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == '__main__':
    sys.exit(main())
