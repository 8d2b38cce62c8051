"""Regions that another program saved, as ImageRegions: a folder of .npz or .npy files, or an HDF5 file.

An image has these arrays, o being its regions; the first name is ours, the others are taken as well:

    features (o, f) float; boxes (o, 4) pixels x1, y1, x2, y2; size (2,) height, width, or height and width
    optional: classes, attributes (o,) whole numbers, without the background; class_conf, attribute_conf (o,) 0..1
    optional, for a region store only: class_probabilities (o, num_classes) 0..1

Missing classes, attributes and confidences become 0: with confidence 0 a class has no weight in pre-training.

    folder of .npz      <id>.npz with these arrays
    folder of .npy      <id>.npy is features, <id>.boxes.npy, <id>.size.npy and so on the others
    HDF5, by image      a group <id> with these datasets; height and width may be attributes of the group
    HDF5, all at once   datasets ids (n,), features (n, o, f), boxes (n, o, 4), size (n, 2) and so on, with num_boxes (n,) where
                        images have fewer than o; or features (total, f) and so on with offsets (n + 1,)

Nothing is unpickled: a file of Python objects is a fault.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from regions import tsv
from regions.tsv import ImageRegions, RegionError

ALIASES = {'features': ('x', 'feature'), 'boxes': ('bbox', 'bboxes'), 'size': ('image_size', 'img_size'),
           'height': ('img_h', 'image_h', 'image_height'), 'width': ('img_w', 'image_w', 'image_width'),
           'classes': ('objects_id', 'object_ids', 'objects'), 'class_conf': ('objects_conf', 'confidences', 'conf', 'scores'),
           'attributes': ('attrs_id', 'attribute_ids'), 'attribute_conf': ('attrs_conf',), 'class_probabilities': ('cls_prob',)}
KNOWN = {key for name, others in ALIASES.items() for key in (name, *others)}
WIDE = ('features', 'boxes', *tsv.OPTIONAL)  # arrays with a row a region; the others have a number a region
PER_REGION_KEYS = {key for name in tsv.COLUMNS for key in (name, *ALIASES[name])}

Get = Callable[[str], np.ndarray | None]  # an array by the name it is saved under; None: there is none
Images = Iterator[tuple[str, str, Callable[[], Get]]]  # the id of each, where it is for messages, and what opens it


def read(path) -> Iterator[ImageRegions]:
    """The images of a folder or .h5 file, in the order of their names, each checked as `tsv.check` does.

    Faulty images are left out until the end; then RegionError lists them, so that a writer leaves nothing.
    """
    path, faults, f = Path(path), [], None
    if not path.exists():
        raise RegionError(f'{path}: expected a folder of .npz or .npy files, or an HDF5 file, found nothing there')
    for img_id, where, load in _files(path) if path.is_dir() else _hdf5(path):
        try:
            image = tsv.check(_image(img_id, load()), f)
        except (ValueError, *tsv.ZIP_ERRORS) as error:
            faults.append(f'{where}: {error}')
            continue
        f = image.features.shape[1]
        yield image
    if faults:
        raise RegionError(f'{path}: expected whole images only, found {len(faults)} faulty; nothing was written. Mend or remove '
                          f'them:\n{tsv.listed(faults)}')
    if f is None:
        raise RegionError(f'{path}: expected at least one image, found none')


def _image(img_id: str, get: Get) -> ImageRegions:
    values = {name: next((array for key in (name, *others) if (array := get(key)) is not None), None)
              for name, others in ALIASES.items()}
    for name in ('features', 'boxes'):
        if values[name] is None:
            raise RegionError(f'key "{name}": expected an array, found none of this name, nor of '
                              f'{", ".join(ALIASES[name])}; save it under one of them')
    size = values['size']
    if size is None:
        if values['height'] is None or values['width'] is None:
            raise RegionError('key "size": expected the height and width of the picture in pixels, found neither size nor '
                              'height and width; save it')
        size = np.concatenate([np.ravel(values['height']), np.ravel(values['width'])])
    size = np.asarray(size)
    if size.shape != (2,) or size.dtype.kind not in 'iuf' or (size != np.round(size)).any():
        raise RegionError(f'key "size": expected height and width, two whole numbers, found {size.tolist()!r:.60}')
    o = len(values['features']) if np.ndim(values['features']) else 0
    arrays = {}
    for name, (_, dtype) in tsv.COLUMNS.items():
        if values[name] is None and name in tsv.OPTIONAL:
            continue
        dtype = np.dtype(dtype)
        array = np.zeros(o, dtype) if values[name] is None else np.asarray(values[name])
        if array.dtype.kind not in ('iu' if dtype.kind == 'i' else 'iuf'):
            raise RegionError(f'key "{name}": expected {"whole " if dtype.kind == "i" else ""}numbers, found {array.dtype}')
        if array.ndim != (2 if name in WIDE else 1):
            raise RegionError(f'key "{name}": expected {"a row" if name in WIDE else "a number"} a region, '
                              f'found an array of shape {array.shape}')
        with np.errstate(over='ignore'):  # a number that is too large for the dtype becomes infinite, and a fault
            arrays[name] = np.ascontiguousarray(array, dtype)
    return ImageRegions(img_id, int(size[0]), int(size[1]), **arrays)


def _files(folder: Path) -> Images:
    names = sorted(path.name for path in folder.iterdir() if path.suffix in ('.npz', '.npy') and path.is_file())
    parts = tuple(f'.{key}.npy' for key in KNOWN)
    images = [name for name in names if name.endswith('.npz') or not name.endswith(parts)]
    if not images:
        raise RegionError(f'{folder}: expected files <id>.npz, or <id>.npy with <id>.boxes.npy and <id>.size.npy, found none')
    for name in tqdm(images, desc=folder.name, unit=' images', disable=None):
        path = folder / name
        yield path.stem, str(path), partial(_npz if path.suffix == '.npz' else _npy, path)


def _npz(path: Path) -> Get:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise RegionError('expected an .npz archive, found a single array; name it .npy')
    with file:
        return {key: file[key] for key in file.files if key in KNOWN}.get


def _npy(path: Path) -> Get:
    def get(key):
        file = path if key == 'features' else path.with_name(f'{path.stem}.{key}.npy')
        return np.load(file, allow_pickle=False) if file.is_file() else None

    return get


def _hdf5(path: Path) -> Images:
    try:
        import h5py
    except ImportError:
        raise RegionError(f'{path}: reading HDF5 needs h5py, which is not installed; .venv/bin/pip install h5py') from None
    try:
        file = h5py.File(path, 'r')
    except OSError as error:
        raise RegionError(f'{path}: expected a folder of .npz or .npy files, or an HDF5 file, found neither ({error})') from None
    with file:
        if any(isinstance(item, h5py.Dataset) for item in file.values()):
            yield from _columns(path, file)
            return
        if not len(file):
            raise RegionError(f'{path}: expected a group an image, or datasets of all images, found an empty file')
        for img_id, group in tqdm(file.items(), desc=path.name, unit=' images', disable=None):
            yield img_id, f'{path}: group {img_id}', lambda group=group: lambda key: (
                np.asarray(group[key]) if key in group else np.asarray(group.attrs[key]) if key in group.attrs else None)


def _columns(path: Path, file) -> Images:
    """The images of an HDF5 file whose datasets hold all of them, by row or by offsets."""
    if 'ids' not in file:
        raise RegionError(f'{path}: key "ids": expected the image ids, (n,) text, found only {", ".join(sorted(file))}')
    img_ids = [img_id.decode() if isinstance(img_id, bytes) else str(img_id) for img_id in file['ids'][:]]
    n = len(img_ids)
    offsets, counts = (file[key][:] if key in file else None for key in ('offsets', 'num_boxes'))
    length = n if offsets is None else int(offsets[-1]) if len(offsets) == n + 1 else -1
    if length < 0 or (offsets is not None and (np.diff(offsets, prepend=0) < 0).any()):
        raise RegionError(f'{path}: key "offsets": expected {n + 1} numbers that grow from 0, found {len(offsets)}')
    if counts is not None and len(counts) != n:
        raise RegionError(f'{path}: key "num_boxes": expected {n} numbers, one an image, found {len(counts)}')
    for key in sorted(KNOWN & set(file)):
        expected = length if key in PER_REGION_KEYS else n
        if not file[key].ndim or len(file[key]) != expected:
            raise RegionError(f'{path}: key "{key}": expected {expected} rows, found an array of shape {file[key].shape}')
    for row, img_id in enumerate(tqdm(img_ids, desc=path.name, unit=' images', disable=None)):
        def get(key, row=row):
            if key not in file:
                return None
            if key in PER_REGION_KEYS and offsets is not None:
                return file[key][int(offsets[row]):int(offsets[row + 1])]
            return file[key][row] if counts is None or key not in PER_REGION_KEYS else file[key][row][:int(counts[row])]

        yield img_id, f'{path}: row {row}, image {img_id}', lambda get=get: get
