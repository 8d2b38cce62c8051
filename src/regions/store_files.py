"""The files of a region store: its layout, reading and checking them, and writing them so that the store appears complete.

`store` explains each array and is what others import.
"""

import contextlib
import hashlib
import math
import mmap
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from files.atomic import atomic_folder, locked, naming, sha256, write_json
from files.json_files import read_json
from files.text import printable, shown
from regions.arrays import DTYPES, per_image
from regions.image_regions import image_feature, mean_feature
from regions.tsv import OPTIONAL, ImageRegions, RegionError, array_sizes

VERSION = 1
FLOAT16_LIMIT = 65504.0
COUNTS = {'images': 1, 'regions': 1, 'feature_size': 0, 'min_regions': 1, 'max_regions': 1}  # key of meta.json -> least value
MOST = 2 ** 40  # of any count
PER_IMAGE = {'offsets': '<i8', 'sizes': '<i4', 'ids': r'\|S[1-9][0-9]{0,4}', 'order': '<i8'}  # small arrays and their dtypes
IMAGE_FEATURES = {'image_features': '<f4'}  # optional, with an entry an image, but not small
PATTERNS = DTYPES | OPTIONAL | PER_IMAGE | IMAGE_FEATURES | {'features': '<f[24]'}
SHA256 = '[0-9a-f]{64}'
NPY = b'\x93NUMPY\x01\x00'  # the first bytes of an .npy file of format 1.0; then the header's length in two bytes


# Reading

def read_meta(folder: Path) -> dict:
    """The content of meta.json. Raises RegionError if it is missing, damaged or of another format version, OSError if it cannot
    be read."""
    path, what = folder / 'meta.json', 'the description of a region store'
    try:
        meta = read_json(path, what)
    except FileNotFoundError:
        if not (folder / 'offsets.npy').exists() and folder.is_dir() and any(
                file.suffix in ('.npz', '.npy', '.json', '.h5', '.hdf5') for file in folder.iterdir()):
            raise RegionError(f'{folder}: expected a region store, found a folder of arrays; bash run/regions.bash import '
                              f'{folder} --out NEW.tsv reads them') from None
        raise RegionError(f'{path}: expected {what}, found no such file') from None
    except ValueError as error:
        raise RegionError(str(error)) from None
    version = meta.get('version') if isinstance(meta, dict) else None
    if type(version) is not int:
        raise RegionError(f'{path}: expected {what}, found {shown(meta)}')
    if version != VERSION:
        raise RegionError(f'{path}: expected format version {VERSION}, found {shown(version)}')
    if fault := _meta_fault(meta):
        key, expected = fault
        raise RegionError(f'{path}: key "{key}": expected {expected}, found {shown(meta.get(key))}')
    return meta


def _meta_fault(meta: dict) -> tuple[str, str] | None:
    """(key, what was expected there) of the first fault in a meta.json of this format version, or None."""
    for key, least in COUNTS.items():
        if not is_count(meta.get(key), least):
            return key, f'a whole number from {least} to {MOST}'
    optional = meta.get('optional_columns', {})
    names = OPTIONAL | IMAGE_FEATURES
    if (not has_items(optional, None, is_count) or optional.keys() - names.keys()
            or optional.get('image_features', meta['feature_size']) != meta['feature_size']):
        return 'optional_columns', f'an object with the size of {", ".join(names)} (as feature_size)'
    shapes = _shapes(meta)
    dtypes = meta.get('dtypes')
    if not has_items(dtypes, shapes) or not all(matches(dtypes[name], PATTERNS[name]) for name in shapes):
        return 'dtypes', f'an object with the dtypes of {", ".join(shapes)}'
    if 'digests' in meta and not has_items(meta['digests'], shapes, lambda value: matches(value, SHA256)):
        return 'digests', f'an object with the sha256 of {", ".join(shapes)}'
    if 'mtime_ns' in meta and not has_items(meta['mtime_ns'], shapes, lambda value: type(value) is int):
        return 'mtime_ns', f'an object with the times of {", ".join(shapes)}'
    if not matches(meta.get('stamp'), r'\S+'):
        return 'stamp', 'a text'
    source, checks = meta.get('source', ''), {
        'name': lambda value: matches(value, r'[^/\0]*[^/\0.][^/\0]*'), 'size': lambda value: is_count(value, 0),
        'mtime_ns': lambda value: type(value) is int, 'sha256': lambda value: matches(value, SHA256)}
    if source is not None and not (isinstance(source, dict) and all(check(source.get(key)) for key, check in checks.items())):
        return 'source', 'null, or an object with name, size, mtime_ns and sha256 of a TSV'
    return None


def is_count(value, least: int = 1) -> bool:
    return type(value) is int and least <= value <= MOST


def matches(value, pattern: str) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(pattern, value))


def has_items(value, names: Iterable[str] | None, is_valid=bool) -> bool:
    """Whether a value of a json file is an object with exactly these keys (None: any), whose values are valid."""
    return isinstance(value, dict) and (names is None or value.keys() == set(names)) and all(map(is_valid, value.values()))


def layout(meta: dict) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each array of a store."""
    return {name: (meta['dtypes'][name], shape) for name, shape in _shapes(meta).items()}


def _shapes(meta: dict) -> dict[str, tuple[int, ...]]:
    images, regions = meta['images'], meta['regions']
    sizes = {'boxes': 4, 'features': meta['feature_size'], **meta.get('optional_columns', {})}
    shapes = dict.fromkeys(DTYPES, (regions,)) | {
        name: (images if name in IMAGE_FEATURES else regions, size) for name, size in sizes.items()}
    if not meta['feature_size']:
        del shapes['features']
    return shapes | {'offsets': (images + 1,), 'sizes': (images, 2), 'ids': (images,), 'order': (images,)}


def map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """An .npy file, memory-mapped. Raises RegionError if it is missing or another array, OSError if it cannot be read."""
    expected = f'an array of {dtype} {shape}'
    if not path.is_file():  # a pipe of that name would be waited for
        raise RegionError(f'{path}: expected {expected}, found no such file')
    with naming(path, None), open(path, 'rb') as file:
        start = file.read(len(NPY) + 2)
        header = file.read(int.from_bytes(start[len(NPY):], 'little'))
        # The header is compared, never evaluated: all writers give it this form, with blanks behind.
        text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
        if not start.startswith(NPY) or not header.startswith(text) or header[len(text):].strip(b' ') != b'\n':
            raise RegionError(f'{path}: expected {expected}, found a file that begins with {shown(start + header.rstrip())}')
        offset, size = len(start) + len(header), os.fstat(file.fileno()).st_size
        if size != (right := offset + math.prod(shape) * np.dtype(dtype).itemsize):
            raise RegionError(f'{path}: expected {expected}, {right:,} bytes with the header, found {size:,}')
        array = np.memmap(file, dtype, 'r', offset, shape)
    return array.view(np.ndarray)  # what is taken from a memmap is one too, and slower


def check_length(arrays: Iterable[np.ndarray]) -> None:
    """Raise RegionError if a file was cut off since it was mapped. Reading beyond its end would kill the process (SIGBUS).

    This takes less than a microsecond an array. A file that is cut off between this check and the reading still does.
    """
    for array in arrays:
        expected, size = array.base.offset + array.nbytes, array.base.base.size()
        if size < expected:
            raise RegionError(f'{array.base.filename}: expected {expected:,} bytes, found {size:,}: it was cut off while in '
                              'use; restore it and start the program again')


def array_digest(array: np.ndarray, bar) -> str:
    """The sha256 of a mapped array's file, without its header. Reads the file, since errors of the disk in a mapping kill the
    process. bar: a progress bar, which advances by the bytes read."""
    return sha256(array.base.filename, array.base.offset, bar)


def modification_times(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """When the file of each mapped array was last written, in ns."""
    return {name: os.stat(array.base.filename).st_mtime_ns for name, array in arrays.items()}


def digest_faults(meta: dict, arrays: dict[str, np.ndarray], names: Iterable[str], bar) -> Iterator[str]:
    """Those of the arrays `names` whose digest differs from that in meta.json."""
    for name in names:
        if (digest := array_digest(arrays[name], bar)) != meta['digests'][name]:
            yield f'{name}.npy: expected the sha256 {meta["digests"][name]}, as in meta.json, found {digest}'


def index_faults(meta: dict, arrays: dict[str, np.ndarray]) -> Iterator[str]:
    """Inconsistencies between the arrays with one entry per image, and with meta.json. 4 ms for 100,000 images."""
    offsets, order, ids, images = arrays['offsets'], arrays['order'], arrays['ids'], meta['images']
    counts = np.diff(offsets)
    if not increase(offsets):
        row = int(np.argmax(counts < 1)) if (counts < 1).any() else 0
        yield f'offsets.npy: expected increasing numbers from 0, found {offsets[row]} and then {offsets[row + 1]} at row {row}'
    elif offsets[-1] != meta['regions']:
        yield f'offsets.npy: expected it to end in {meta["regions"]}, found {offsets[-1]}'
    elif (meta['min_regions'], meta['max_regions']) != (counts.min(), counts.max()):
        yield (f'meta.json: keys "min_regions", "max_regions": expected {counts.min()} and {counts.max()}, as in offsets.npy, '
               f'found {meta["min_regions"]} and {meta["max_regions"]}')
    if arrays['sizes'].min() < 1:
        row = int(np.argmin(arrays['sizes'].min(1)))
        yield f'sizes.npy: expected positive heights and widths, found {arrays["sizes"][row].tolist()} at row {row}'
    if order.min() < 0 or order.max() >= images or ((in_order := ids[order])[:-1] >= in_order[1:]).any():
        if not np.array_equal(np.sort(order), np.arange(images)):
            yield f'order.npy: expected each row from 0 to {images - 1} once'
            return
        place = int(np.argmax(in_order[:-1] >= in_order[1:]))
        one, other = order[place:place + 2]
        yield (f'ids.npy: expected distinct ids, sorted by order.npy, found {printable(ids[one])} (row {one}) before '
               f'{printable(ids[other])} (row {other})')
    if not ids.tobytes().isascii():
        for row, img_id in enumerate(ids.tolist()):
            try:
                img_id.decode()
            except UnicodeDecodeError:
                yield f'ids.npy: expected ids in UTF-8, found {printable(img_id)} at row {row}'
                return


def increase(offsets: np.ndarray) -> bool:
    return offsets[0] == 0 and bool((offsets[1:] > offsets[:-1]).all())


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
            self._add_image_feature(image)
            for name in self.columns.keys() - IMAGE_FEATURES.keys():
                self.columns[name].append(getattr(image, name))
        self.ids.append(image.img_id)
        self.image_sizes.append((image.height, image.width))
        self.counts.append(len(image.boxes))

    def finish(self, provenance: dict, source: dict | None) -> None:
        """Write the arrays that have an entry an image, and meta.json."""
        if not self.ids:
            raise RegionError(f'{self.folder}: expected at least one image to write, found none')
        sizes = {name: math.prod(column.row_shape) for name, column in self.columns.items()}
        optional = {name: sizes[name] for name in OPTIONAL | IMAGE_FEATURES if name in sizes}
        with explained(self.folder):
            for name, array in per_image(self.ids, self.image_sizes, self.counts).items():
                self.columns[name] = Column(self.temporary / f'{name}.npy', array.dtype.str, array.shape[1:])
                self.columns[name].append(array)
            meta = {'version': VERSION, 'stamp': uuid.uuid4().hex, 'images': len(self.counts), 'regions': sum(self.counts),
                    'feature_size': sizes.get('features', 0), 'min_regions': min(self.counts), 'max_regions': max(self.counts),
                    'dtypes': {name: column.dtype for name, column in self.columns.items()},
                    'source': source, 'provenance': provenance} | ({'optional_columns': optional} if optional else {})
            meta['digests'] = {name: column.close() for name, column in self.columns.items()}
            meta['mtime_ns'] = {name: os.stat(column.file.name).st_mtime_ns for name, column in self.columns.items()}
            write_json(self.temporary / 'meta.json', meta)

    def _add_image_feature(self, image: ImageRegions) -> None:
        """Write the feature of the image as a whole; the mean of its regions where only other images have one."""
        if image.image_feature is None and 'image_features' not in self.columns:
            return
        features = self.columns['features']
        if 'image_features' not in self.columns:
            self.columns['image_features'] = Column(self.temporary / 'image_features.npy', '<f4', features.row_shape)
            if self.counts:  # the images before the first one that has such a feature
                features.file.flush()
                shape = features.length, *features.row_shape
                stored = np.memmap(features.file.name, features.dtype, 'r', features.start, shape)
                for part in np.split(stored, np.cumsum(self.counts)[:-1]):
                    self.columns['image_features'].append(mean_feature(part)[None])
        self.columns['image_features'].append(image_feature(image)[None])

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
