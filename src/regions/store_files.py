"""The files of a region store: how the folder is locked, written so that it appears whole, read and checked.

`store` has the meaning of each array and is what others import.
"""

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path

import numpy as np
from filelock import FileLock

from regions import tsv
from regions.tsv import ImageRegions, RegionError

VERSION = 1
PER_REGION = {name: dtype for name, (_, dtype) in tsv.ARRAYS.items()}


class Writer:
    """Collects images in `<folder>.tmp`; `commit` gives it its name. Its user holds the lock.

    So whatever lies under the temporary names on entering was left by a writer that died, and is removed.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.temporary, self.replaced = (folder.with_name(folder.name + ending) for ending in ('.tmp', '.old'))
        self.columns = {}
        self.positions = {}  # image id -> position from 1; ids, offsets and sizes are all that is kept in memory
        self.offsets, self.sizes, self.feature_size = [0], [], None

    def __enter__(self):
        with _explained(self.folder):
            for leftover in (self.temporary, self.replaced):
                if leftover.exists():
                    shutil.rmtree(leftover)
            self.temporary.mkdir()
        return self

    def __exit__(self, *_):
        for column in self.columns.values():
            with contextlib.suppress(OSError):  # a full disk has been reported by the write that met it
                column.file.close()
        shutil.rmtree(self.temporary, ignore_errors=True)  # gone already if committed; else the next writer's job

    def append(self, image: ImageRegions) -> None:
        image = tsv.check_next(image, self.feature_size, self.positions, len(self.positions) + 1, self.folder)
        with _explained(self.folder):
            if self.feature_size is None:
                self.feature_size = image.features.shape[1]
                self.columns = {name: _Column(self.temporary / f'{name}.npy', dtype, getattr(image, name).shape[1:])
                                for name, dtype in PER_REGION.items()}
            for name, column in self.columns.items():
                column.append(getattr(image, name))
        self.offsets.append(self.offsets[-1] + len(image.boxes))
        self.sizes.append((image.height, image.width))

    def commit(self, provenance: dict, source: dict | None) -> None:
        if not self.positions:
            raise RegionError(f'{self.folder}: expected at least one image to write, found none')
        counts = np.diff(self.offsets)
        ids = np.array([img_id.encode() for img_id in self.positions], np.bytes_)
        per_image = {'offsets': np.array(self.offsets, '<i8'), 'sizes': np.array(self.sizes, '<i4'), 'ids': ids,
                     'order': np.argsort(ids).astype('<i8')}
        meta = {'version': VERSION, 'stamp': uuid.uuid4().hex, 'images': len(counts), 'regions': self.offsets[-1],
                'feature_size': self.feature_size, 'min_regions': int(counts.min()), 'max_regions': int(counts.max()),
                'dtypes': PER_REGION | {name: array.dtype.str for name, array in per_image.items()},
                'source': source, 'provenance': provenance}
        with _explained(self.folder):
            for column in self.columns.values():
                column.close()
            for name, array in per_image.items():
                column = _Column(self.temporary / f'{name}.npy', array.dtype.str, array.shape[1:])
                column.append(array)
                column.close()
            write_json(self.temporary / 'meta.json', meta)
            _sync(self.temporary)
            if self.folder.exists():
                self.folder.rename(self.replaced)
            self.temporary.rename(self.folder)
            _sync(self.folder.parent)
        shutil.rmtree(self.replaced, ignore_errors=True)


class _Column:
    """An .npy file that grows by rows; numpy leaves room in the header for the length, known when it is closed."""

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...]):
        self.file = open(path, 'wb')  # noqa: SIM115, closed by close() or its writer
        self.dtype, self.row_shape, self.length = dtype, row_shape, 0
        self.start = self._write_header()

    def append(self, rows: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(rows))
        self.length += len(rows)

    def close(self) -> None:
        self.file.seek(0)
        if self._write_header() != self.start:
            raise RegionError(f'{self.file.name}: its header outgrew the room numpy left for it; use numpy >= 1.26')
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def _write_header(self) -> int:
        header = {'descr': self.dtype, 'fortran_order': False, 'shape': (self.length, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self.file.tell()


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
    shapes = dict.fromkeys(PER_REGION, (regions,))
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
