"""A TSV or a store, read alike: what looks at regions need not know which of the two it was given."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from regions import tsv
from regions.store import RegionStore
from regions.tsv import ImageRegions, RegionError


def is_store(path) -> bool:
    """Whether `path` is a folder, so a store, and not a TSV. Raises RegionError if there is neither."""
    path = Path(path)
    if not path.exists():
        raise RegionError(f'{path}: expected a TSV or a region store, found no such file or folder; correct the path')
    if path.suffix == '.zip':
        raise RegionError(f'{path}: expected a TSV or a region store, found a zip; bash run/regions.bash convert makes '
                          'a store of it, checking every line, and the store can be looked at')
    return path.is_dir()


def stored_image(store: RegionStore, row: int) -> ImageRegions:
    """The regions of one row, features as float32 whatever the store keeps; nothing is checked."""
    begin, end = (int(place) for place in store.arrays['offsets'][row:row + 2])
    arrays = {name: np.array(store.arrays[name][begin:end], dtype) for name, (_, dtype) in tsv.ARRAYS.items()}
    height, width = (int(size) for size in store.arrays['sizes'][row])
    return ImageRegions(store.ids[row].decode(), height, width, **arrays)


def images(path, most: int = 0, seed: int = 9595) -> Iterator[ImageRegions]:
    """The images of a TSV or store, one at a time; of a store at most `most` (0: all), drawn by `seed`, in row order.

    A TSV is read to its end whatever `most` says: its lines cannot be reached without reading those before.
    Raises RegionError at the first fault.
    """
    if is_store(path):
        store = RegionStore(path)
        rows = np.arange(len(store))
        if 0 < most < len(store):
            rows = np.sort(np.random.default_rng(seed).choice(len(store), most, replace=False))
        for row in tqdm(rows, desc=Path(path).name, unit=' images', disable=None):
            yield stored_image(store, row)
    else:
        with reading(path) as bar:
            for _, image in tsv.read(path, on_line=lambda line: bar.update(len(line))):
                yield image


def chosen(path, img_ids: list[str]) -> Iterator[ImageRegions]:
    """The images of these ids, in the order of the file; of a TSV only their lines are decoded.

    Raises RegionError that names the ids that are not there, after the others, and for a faulty line among them.
    """
    missing = set(img_ids)
    if is_store(path):
        store = RegionStore(path)
        for row in sorted(row for row in store.rows(img_ids).tolist() if row >= 0):
            image = stored_image(store, row)
            if image.img_id in missing:
                missing.discard(image.img_id)
                yield image
    else:
        for image in _chosen_lines(path, missing):
            missing.discard(image.img_id)
            yield image
    if missing:
        raise RegionError(f'{path}: expected regions of {len(img_ids)} images, found none of {", ".join(sorted(missing))}; '
                          'correct --ids')


def reading(path) -> tqdm:
    """A progress bar in bytes for reading a file from beginning to end."""
    return progress(Path(path).name, Path(path).stat().st_size)


def progress(name: str, size: int) -> tqdm:
    return tqdm(total=size, unit='B', unit_scale=True, desc=name, disable=None)


def _chosen_lines(path, wanted: set[str]) -> Iterator[ImageRegions]:
    keys = {img_id.encode() for img_id in wanted}
    with reading(path) as bar, open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            bar.update(len(line))
            if line.split(b'\t', 1)[0] in keys:
                try:
                    image = tsv._parse(line, None, 0)
                except RegionError as error:
                    raise RegionError(f'{path}:{number}: image {tsv._label(line)}: {error}') from None
                keys.discard(image.img_id.encode())  # a second line of the same id is for `check` to tell
                yield image
            if not keys:
                return
