"""The files of a region store: how the folder is locked, written so that it appears whole, read and checked.

`store` has the meaning of each array and is what others import.
"""

import contextlib
import hashlib
import itertools
import json
import math
import mmap
import os
import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from regions import arrays, tsv
from regions.arrays import DTYPES
from regions.tsv import ImageRegions, RegionError

VERSION = 1
FLOAT16_LIMIT = 65504.0
DIGEST_BLOCK = 1 << 20  # bytes
INDEX, PROGRESS = 'images.jsonl', 'progress.json'  # a writer's notes of what is on disk


class Writer:
    """Collects images in `<folder>.tmp`; `commit` gives it its name. Its user holds the lock.

    So whatever lies under the temporary names on entering was left by a writer that died, and is removed, unless
    `resume` finds a checkpoint there. `dtype` is that of the features, float32 or float16.
    """

    def __init__(self, folder: Path, dtype: str = 'float32', keep: bool = False):
        self.folder, self.keep = folder, keep
        self.dtypes = DTYPES | {'features': feature_dtype(dtype)}
        self.temporary, self.replaced = (folder.with_name(folder.name + ending) for ending in ('.tmp', '.old'))
        self.columns, self.index = {}, None
        self.syncing = self.saving = None  # the thread that puts checkpoints on disk; the one that is on its way

    def __enter__(self):
        with _explained(self.folder):
            if self.replaced.exists():
                shutil.rmtree(self.replaced)
            if not self.keep:
                self.clear()
        return self

    def __exit__(self, kind, *_):
        if self.syncing:
            self.syncing.shutdown()
        for file in filter(None, (self.index, *(column.file for column in self.columns.values()))):
            with contextlib.suppress(OSError):  # a full disk has been reported by the write that met it
                file.close()
        if kind is not KeyboardInterrupt or not self.keep:  # Ctrl-C is a kill like others
            shutil.rmtree(self.temporary, ignore_errors=True)  # gone already if committed; else the next writer's job

    def clear(self) -> None:
        """Begin with nothing."""
        if self.temporary.exists():
            shutil.rmtree(self.temporary)
        self.temporary.mkdir()
        self._begin('wb')

    def resume(self, fits: Callable[[dict], bool]) -> dict | None:
        """Go on from the last checkpoint if there is one whose note fits, and return that; else begin with nothing."""
        with _explained(self.folder):
            try:
                state = json.loads((self.temporary / PROGRESS).read_text())
                if state['version'] == VERSION and fits(state['note']):
                    self._begin('r+b')
                    self.index.truncate(state['index'])
                    for line in self.index:
                        img_id, height, width, count, position = json.loads(line)
                        self.positions[img_id] = position
                        self.sizes.append((height, width))
                        self.counts.append(count)
                    self.index.seek(0, os.SEEK_END)
                    self._open_columns(state['feature_size'], 'r+b', sum(self.counts))
                    return state['note']
            except (OSError, ValueError, KeyError, TypeError):
                pass  # cut off, of another version, or none: nothing to go on from
            self.clear()

    def append(self, image: ImageRegions) -> None:
        """Check an image and add it. Raises RegionError naming it and its number."""
        image = tsv.check_next(image, self.feature_size, self.positions, len(self.positions) + 1, self.folder)
        columns = {name: getattr(image, name) for name in self.dtypes}
        try:
            columns['features'] = as_dtype(image.features, self.dtypes['features'])
        except RegionError as error:
            raise RegionError(f'{self.folder}: image {image.img_id}: {error}') from None
        self.extend({image.img_id: len(self.positions)}, [(image.height, image.width)], [len(image.boxes)], columns)

    def extend(self, positions: dict[str, int], sizes: list, counts: list, columns: dict[str, np.ndarray]) -> None:
        """Add images that are checked: id -> position in the source, (height, width) and number of regions of each; arrays."""
        with _explained(self.folder):
            if self.feature_size is None:
                self._open_columns(columns['features'].shape[1], 'wb')
            for name, column in self.columns.items():
                column.append(columns[name])
        self.positions |= positions
        self.sizes += sizes
        self.counts += counts

    def checkpoint(self, note: dict, least: int) -> None:
        """Once `least` bytes have come since the last time, put all on disk, beside the work, and then the note.

        Nothing is done while the last checkpoint is still on its way.
        """
        size = sum(column.size for column in self.columns.values())
        if size - self.synced < least or (self.saving and not self.saving.done()):
            return
        with _explained(self.folder):
            if self.saving:
                self.saving.result()
            done = len(self.counts)
            for (img_id, position), (height, width), count in zip(
                    itertools.islice(self.positions.items(), self.indexed, None), self.sizes[self.indexed:],
                    self.counts[self.indexed:], strict=True):
                self.index.write(json.dumps([img_id, height, width, count, position]).encode() + b'\n')
            files = [self.index, *(column.file for column in self.columns.values())]
            for file in files:
                file.flush()
            state = {'version': VERSION, 'feature_size': self.feature_size, 'index': self.index.tell(), 'note': note}
        self.synced, self.indexed = size, done

        def save():
            for file in files:
                os.fsync(file.fileno())
            write_json(self.temporary / PROGRESS, state)

        self.syncing = self.syncing or ThreadPoolExecutor(1)
        self.saving = self.syncing.submit(save)

    def commit(self, provenance: dict, source: dict | None) -> None:
        if not self.positions:
            raise RegionError(f'{self.folder}: expected at least one image to write, found none')
        per_image = arrays.per_image(list(self.positions), self.sizes, self.counts)
        meta = {'version': VERSION, 'stamp': uuid.uuid4().hex, 'images': len(self.counts), 'regions': sum(self.counts),
                'feature_size': self.feature_size, 'min_regions': min(self.counts), 'max_regions': max(self.counts),
                'dtypes': self.dtypes | {name: array.dtype.str for name, array in per_image.items()},
                'source': source, 'provenance': provenance}
        with _explained(self.folder):
            if self.saving:
                self.saving.result()
            for name, array in per_image.items():
                self.columns[name] = Column(self.temporary / f'{name}.npy', array.dtype.str, array.shape[1:])
                self.columns[name].append(array)
            meta['digests'] = {name: column.close() for name, column in self.columns.items()}
            write_json(self.temporary / 'meta.json', meta)
            for name in (INDEX, PROGRESS):
                (self.temporary / name).unlink(missing_ok=True)
            _sync(self.temporary)
            if self.folder.exists():
                self.folder.rename(self.replaced)
            self.temporary.rename(self.folder)
            _sync(self.folder.parent)
        shutil.rmtree(self.replaced, ignore_errors=True)

    def _begin(self, mode: str) -> None:
        self.columns = {}
        self.positions = {}  # image id -> position from 1; ids, counts and sizes are all that is kept in memory
        self.counts, self.sizes, self.feature_size = [], [], None
        self.synced = self.indexed = 0
        self.saving = None
        if self.index:
            self.index.close()
        self.index = open(self.temporary / INDEX, mode)  # noqa: SIM115, closed on leaving

    def _open_columns(self, feature_size: int, mode: str, length: int = 0) -> None:
        self.feature_size = feature_size
        widths = {'boxes': (4,), 'features': (feature_size,)}
        self.columns = {name: Column(self.temporary / f'{name}.npy', dtype, widths.get(name, ()), mode, length)
                        for name, dtype in self.dtypes.items()}
        self.synced, self.indexed = sum(column.size for column in self.columns.values()), len(self.counts)


class Column:
    """An .npy file that grows by rows; numpy leaves room in the header for the length, known when it is closed."""

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...], mode: str = 'wb', length: int = 0):
        """`mode` 'r+b': go on after `length` rows, cutting off what follows. Raises ValueError if there are fewer."""
        self.file = open(path, mode)  # noqa: SIM115, closed by close() or its writer
        self.dtype, self.row_shape, self.length = dtype, row_shape, 0
        self.start = self._write_header()
        self.length, self.digest = length, hashlib.sha256()
        if mode != 'wb':
            self.file.flush()
            self.digest, found = _digest(self.file, self.size)
            if found < self.size:
                raise ValueError(f'{path}: shorter than when it was put on disk')
            self.file.truncate()

    @property
    def size(self) -> int:
        """Bytes of all rows so far."""
        return self.length * math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    def append(self, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows, self.dtype)
        self.file.write(rows)
        self.digest.update(rows)
        self.length += len(rows)

    def close(self) -> str:
        """Put all on disk; returns the digest of the rows."""
        self.file.seek(0)
        if self._write_header() != self.start:
            raise RegionError(f'{self.file.name}: its header outgrew the room numpy left for it; use numpy >= 1.26')
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return self.digest.hexdigest()

    def _write_header(self) -> int:
        header = {'descr': self.dtype, 'fortran_order': False, 'shape': (self.length, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self.file.tell()


def _digest(file: BinaryIO, most: int = -1):
    """(sha256, number) of the bytes from where the file is to its end, or of the first `most` of them."""
    digest, count = hashlib.sha256(), 0
    while block := file.read(min(DIGEST_BLOCK, most - count) if most >= 0 else DIGEST_BLOCK):
        digest.update(block)
        count += len(block)
    return digest, count


@contextlib.contextmanager
def lock(folder: Path):
    """Hold the lock that writers of `folder` hold, waiting for it; its file stays beside the store."""
    with _explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f'{folder}.lock')
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _explained(folder: Path):
    try:
        yield
    except OSError as error:
        raise RegionError(f'{folder}: the region store cannot be written ({error}); name a folder that can be written '
                          'and has room by --storeRoot') from error


def feature_dtype(name: str) -> str:
    """'<f4' or '<f2' of 'float32' or 'float16'. Raises ValueError for another."""
    if name not in ('float32', 'float16'):
        raise ValueError(f'dtype of features: expected float32 or float16, found {name!r}')
    return np.dtype(name).newbyteorder('<').str


def as_dtype(features: np.ndarray, dtype: str) -> np.ndarray:
    """float32 features as '<f4' or '<f2'. Raises RegionError if they would become infinite in half precision."""
    largest = np.abs(features).max(initial=0) if dtype == '<f2' else 0
    if largest > FLOAT16_LIMIT:
        raise RegionError(f'field "features": expected numbers up to {FLOAT16_LIMIT:.0f}, which is what float16 can hold, '
                          f'found {largest:g}; make the store with float32')
    return features.astype(dtype, copy=False)


def read_meta(folder: Path) -> dict:
    path = folder / 'meta.json'
    try:
        meta = json.loads(path.read_text())
        version = meta['version']
        if version == VERSION:
            layout(meta), meta['stamp'], meta['source']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RegionError(f'{path}: expected the description of a region store, found none ({error!r})') from None
    if version != VERSION:
        raise RegionError(f'{path}: expected format version {VERSION}, found {version!r}')
    return meta


def layout(meta: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each array of a store."""
    images, regions = meta['images'], meta['regions']
    shapes = dict.fromkeys(DTYPES, (regions,))
    shapes |= {'boxes': (regions, 4), 'features': (regions, meta['feature_size']), 'offsets': (images + 1,),
               'sizes': (images, 2), 'ids': (images,), 'order': (images,)}
    return {name: (meta['dtypes'][name], shape) for name, shape in shapes.items()}


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError) as error:
        raise RegionError(f'{path}: expected an array of {dtype} {shape}, found no such file ({error})') from None
    if (array.dtype.str, array.shape) != (dtype, shape):
        raise RegionError(f'{path}: expected an array of {dtype} {shape}, found {array.dtype.str} {array.shape}')
    return array.view(np.ndarray)  # what is taken from a memmap is one too, and slower


def read_ahead(array: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
    """Ask the system to fetch some spans of rows of a mapped array, if they are not in memory, without waiting."""
    mapping, header = array.base.base, array.base.offset
    row = array.strides[0]
    for start, end in zip((header + starts * row).tolist(), (header + (starts + counts) * row).tolist(), strict=True):
        page = start - start % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_WILLNEED, page, end - page)


def write_json(path: Path, content: dict) -> None:
    """Write `path` so that it is either the old or the new one, whole."""
    temporary = path.with_name(f'{path.name}.tmp-{os.getpid()}')
    with open(temporary, 'w') as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _sync(folder: Path) -> None:
    """Put the names in a folder on disk, as fsync does for a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
