"""The files of a region store: its layout, reading and checking them, and writing them so that the store appears complete.

`store` explains each array and is what others import.
"""

import contextlib
import hashlib
import json
import math
import mmap
import os
import uuid
from pathlib import Path

import numpy as np

from files.atomic import atomic_folder, locked, write_json
from regions.arrays import DTYPES, per_image
from regions.tsv import OPTIONAL, ImageRegions, RegionError, array_sizes

VERSION = 1
FLOAT16_LIMIT = 65504.0


# Reading

def read_meta(folder: Path) -> dict:
    """The content of meta.json. Raises RegionError if it is missing, damaged or of another format version."""
    path = folder / 'meta.json'
    try:
        meta = json.loads(path.read_text())
        version = meta['version']
        if version == VERSION:
            layout(meta), meta['stamp'], meta['source']
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegionError(f'{path}: expected the description of a region store, found none ({error!r})') from None
    if version != VERSION:
        raise RegionError(f'{path}: expected format version {VERSION}, found {version!r}')
    return meta


def layout(meta: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each array of a store."""
    images, regions = meta['images'], meta['regions']
    sizes = {'boxes': 4, 'features': meta['feature_size'], **meta.get('optional_columns', {})}
    shapes = dict.fromkeys(DTYPES, (regions,)) | {name: (regions, size) for name, size in sizes.items()}
    if not meta['feature_size']:
        del shapes['features']
    shapes |= {'offsets': (images + 1,), 'sizes': (images, 2), 'ids': (images,), 'order': (images,)}
    return {name: (meta['dtypes'][name], shape) for name, shape in shapes.items()}


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An .npy file, memory-mapped. Raises RegionError if it is missing, damaged or another array."""
    try:
        array = np.load(path, mmap_mode='r')
    except (OSError, ValueError, EOFError) as error:
        raise RegionError(f'{path}: expected an array of {dtype} {shape}, found no such file ({error})') from None
    if (array.dtype.str, array.shape) != (dtype, shape):
        raise RegionError(f'{path}: expected an array of {dtype} {shape}, found {array.dtype.str} {array.shape}')
    return array.view(np.ndarray)  # what is taken from a memmap is one too, and slower


def read_ahead(array: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
    """Ask the system to load some spans of rows of a mapped array into the page cache, without waiting."""
    mapping, header = array.base.base, array.base.offset
    row = array.strides[0]
    for start, end in zip((header + starts * row).tolist(), (header + (starts + counts) * row).tolist(), strict=True):
        page = start - start % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_WILLNEED, page, end - page)


# Writing

class StoreWriter:
    """A context in which a store is written image by image. It appears as `folder`, in place of an older one, when the block
    ends after `finish`; after an error nothing is left.

    Its user holds the lock of `folder`. dtype: of the features, float32 or float16. Only ids, sizes and counts are kept in
    memory. Raises RegionError if the folder cannot be written.
    """

    def __init__(self, folder: Path, dtype: str = 'float32'):
        self.folder, self.feature_dtype = folder, feature_dtype(dtype)
        self.columns, self.ids, self.image_sizes, self.counts = {}, [], [], []
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> 'StoreWriter':
        with explained(self.folder):
            self.temporary = self.stack.enter_context(atomic_folder(self.folder))
        return self

    def __exit__(self, *error):
        for column in self.columns.values():
            with contextlib.suppress(OSError):  # a full disk has been reported by the write that met it
                column.file.close()
        with explained(self.folder):
            return self.stack.__exit__(*error)

    def add(self, image: ImageRegions) -> None:
        """Write an image that is checked, with the same arrays as the first. Raises RegionError if float16 cannot hold it."""
        if self.feature_dtype == '<f2' and image.features is not None:
            try:
                check_half(image.features)
            except RegionError as error:
                raise RegionError(f'{self.folder}: image {image.img_id}: {error}') from None
        with explained(self.folder):
            if not self.columns:
                self._open_columns(array_sizes(image))
            for name, column in self.columns.items():
                column.append(getattr(image, name))
        self.ids.append(image.img_id)
        self.image_sizes.append((image.height, image.width))
        self.counts.append(len(image.boxes))

    def finish(self, provenance: dict, source: dict | None) -> None:
        """Write the arrays that have an entry an image, and meta.json."""
        if not self.ids:
            raise RegionError(f'{self.folder}: expected at least one image to write, found none')
        sizes = {name: math.prod(column.row_shape) for name, column in self.columns.items()}
        optional = {name: sizes[name] for name in OPTIONAL if name in sizes}
        with explained(self.folder):
            for name, array in per_image(self.ids, self.image_sizes, self.counts).items():
                self.columns[name] = Column(self.temporary / f'{name}.npy', array.dtype.str, array.shape[1:])
                self.columns[name].append(array)
            meta = {'version': VERSION, 'stamp': uuid.uuid4().hex, 'images': len(self.counts), 'regions': sum(self.counts),
                    'feature_size': sizes.get('features', 0), 'min_regions': min(self.counts), 'max_regions': max(self.counts),
                    'dtypes': {name: column.dtype for name, column in self.columns.items()},
                    'source': source, 'provenance': provenance} | ({'optional_columns': optional} if optional else {})
            meta['digests'] = {name: column.close() for name, column in self.columns.items()}
            write_json(self.temporary / 'meta.json', meta)

    def _open_columns(self, sizes: dict[str, int]) -> None:
        dtypes = DTYPES | OPTIONAL | {'features': self.feature_dtype}
        shapes = {'boxes': (4,)} | {name: (size,) for name, size in sizes.items()}
        self.columns = {name: Column(self.temporary / f'{name}.npy', dtype, shapes.get(name, ()))
                        for name, dtype in dtypes.items() if sizes.get(name, 1)}


class Column:
    """An .npy file that grows by rows; numpy leaves room in the header for the length, which is known when it is closed."""

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...] = ()):
        self.file = open(path, 'wb')  # noqa: SIM115, closed by close() or its user
        self.dtype, self.row_shape, self.length, self.digest = dtype, row_shape, 0, hashlib.sha256()
        self.start = self._write_header()

    def append(self, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows, self.dtype)
        self.file.write(rows)
        self.digest.update(rows)
        self.length += len(rows)

    def close(self) -> str:
        """Complete the file and put it on disk; returns the sha256 of the rows."""
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


@contextlib.contextmanager
def lock(folder: Path):
    """Hold the lock of those who write the store `folder`, waiting for it. Raises RegionError if it cannot be written."""
    with contextlib.ExitStack() as stack:
        with explained(folder):
            stack.enter_context(locked(folder))
        yield


@contextlib.contextmanager
def explained(folder: Path):
    """Raises a RegionError that says what to do, instead of an OSError of writing the store."""
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


def check_half(features: np.ndarray) -> None:
    """Raises RegionError if features would become infinite in half precision."""
    if (largest := np.abs(features).max(initial=0)) > FLOAT16_LIMIT:
        raise RegionError(f'field "features": expected numbers up to {FLOAT16_LIMIT:.0f}, which is what float16 can hold, '
                          f'found {largest:g}; make the store with float32')
