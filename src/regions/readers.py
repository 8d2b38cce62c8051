"""A TSV, its zip or a store, read alike: programs that look at regions need not know which of them they were given."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from regions import tsv
from regions.store import RegionStore
from regions.tsv import ImageRegions, RegionError, TsvFile


def open_file(path) -> RegionStore | TsvFile:
    """The store if `path` is a folder, else the TSV. Raises RegionError if there is neither."""
    return RegionStore(path) if Path(path).is_dir() else tsv.need(path)


def images(path, most: int = 0) -> Iterator[ImageRegions]:
    """The images, one at a time; of a store at most `most` (0: all), drawn with a fixed seed, in row order.

    A TSV is read to its end whatever `most` says: its lines cannot be reached without reading those before.
    Raises RegionError at the first fault.
    """
    regions = open_file(path)
    if isinstance(regions, TsvFile):
        yield from (image for _, image in tsv.read(regions))
        return
    rows = np.arange(len(regions))
    if 0 < most < len(rows):
        rows = np.sort(np.random.default_rng(9595).choice(rows, most, replace=False))
    for row in tqdm(rows, desc=regions.folder.name, unit=' images', disable=None):
        yield regions.image(row)


def chosen(path, img_ids: list[str]) -> Iterator[ImageRegions]:
    """The images of these ids, in the order of the file; of a TSV only their lines are decoded, none after the last.

    Raises RegionError that names the unknown ids, after the others, and for a faulty line among those needed.
    """
    regions, missing = open_file(path), set(img_ids)
    if isinstance(regions, TsvFile):
        # Only ids that are still missing are read: a second line with the same id is for `check` to report.
        images = (image for _, image in tsv.read(regions, wanted=lambda img_id: img_id.decode(errors='replace') in missing))
    else:
        images = (regions.image(row) for row in np.unique(regions.rows(img_ids)) if row >= 0)
    for image in images:
        missing.remove(image.img_id)
        yield image
        if not missing:
            return
    raise RegionError(f'{path}: expected regions of {len(img_ids)} images, found none of {", ".join(sorted(missing))}; '
                      'correct the ids')
