"""Reads images from a TSV, its zip, or a store, whichever the path names."""

import re
from collections.abc import Iterable, Iterator
from itertools import combinations, islice
from pathlib import Path

import numpy as np

from files.json_files import some
from files.progress import ProgressBar
from images.ids import without_ending
from regions import tsv
from regions.image_regions import check_first_boxes
from regions.store import RegionStore
from regions.tsv import ImageRegions, RegionError, TsvFile


def open_file(path) -> RegionStore | TsvFile:
    """The store if `path` is a folder, else the TSV. Raises RegionError if neither exists."""
    return RegionStore(path) if Path(path).is_dir() else tsv.need(path)


def images(path, most: int = 0) -> Iterator[ImageRegions]:
    """Yield the images; of a store at most `most` (0: all), sampled with a fixed seed, in row order.

    A TSV is always read to its end. Raises RegionError at the first fault.
    """
    regions = open_file(path)
    if isinstance(regions, TsvFile):
        yield from (image for _, image in tsv.read(regions))
        return
    rows = np.arange(len(regions))
    if 0 < most < len(rows):
        rows = np.sort(np.random.default_rng(9595).choice(rows, most, replace=False))
    for row in ProgressBar(rows, desc=regions.folder.name, unit=' images'):
        yield regions.image(row)


def chosen(path, img_ids: list[str]) -> Iterator[ImageRegions]:
    """Yield the images of these ids, in the order of the file. Of a TSV only their lines are decoded, and none after the last.

    Raises RegionError for a faulty line among these; after the known images, for unknown ids.
    """
    regions, missing = open_file(path), set(img_ids)
    if isinstance(regions, TsvFile):
        # A second line with the same id is ignored; `check` reports it.
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


def check_start(regions: RegionStore | TsvFile, images: int = 8) -> None:
    """Raises RegionError if the first images have a fault: in the lines of a TSV, or in the form of a store's boxes."""
    if isinstance(regions, TsvFile):
        for _ in islice(tsv.read(regions), images):
            pass
    else:
        check_first_boxes(regions.folder, regions.arrays, images)


def first_known(path, candidates: list[list[str]]) -> list[str]:
    """Of each list of image ids the first that the file has; the first of all if it has none."""
    if all(len(ids) == 1 for ids in candidates):
        return [ids[0] for ids in candidates]
    regions, everything = open_file(path), {img_id for ids in candidates for img_id in ids}
    if isinstance(regions, TsvFile):
        known = set()
        for line in regions.lines():
            if (img_id := line.split(b'\t', 1)[0].decode(errors='replace')) in everything:
                known.add(img_id)
                if all(known & set(ids) for ids in candidates):
                    break
    else:
        known = {img_id for img_id, row in zip(everything, regions.rows(list(everything)), strict=False) if row >= 0}
    return [next((img_id for img_id in ids if img_id in known), ids[0]) for ids in candidates]


# Image ids of two files that do not fit

SAMPLE = 1000  # lines of a TSV without a store whose ids are compared


def sample_ids(path) -> list[str]:
    """Image ids of a TSV, its zip or a store: all of a store, the first of a TSV. [] for a file that cannot be read."""
    try:
        regions = open_file(path)
        if isinstance(regions, TsvFile):
            return [line.split(b'\t', 1)[0].decode('utf-8', 'replace') for line in islice(regions.lines(), SAMPLE)]
        return [img_id.decode() for img_id in regions.ids.tolist()]
    except (RegionError, OSError, UnicodeDecodeError):
        return []


def id_difference(asked: Iterable[str], source, existing: Iterable[str] | None = None) -> str:
    """For a message: the annotations' ids and those of the regions in `source`, and what distinguishes them.

    existing: the ids in source, if they are known.
    """
    asked, existing = list(asked), list(sample_ids(source) if existing is None else existing)
    text = f'they name images such as {some(asked)}, {source} has {some(existing) or "none"}'
    if difference := _difference(asked, existing):
        return (f'{text}; the ids differ in {difference}. Correct the annotations, or write regions with their ids: bash '
                f'run/regions.bash import {source} --ids stem|path|FILE --out NEW.tsv (FILE: lines NEW_ID<TAB>OLD_ID)')
    return f'{text}; do they belong together?'


DIFFERENCES = {
    'the file ending': without_ending,
    'the folder': lambda img_id: img_id.rpartition('/')[2],
    'upper and lower case': str.lower,
    'the prefix of the dataset (such as COCO_train2014_) or leading zeros': lambda img_id: (
        re.sub(r'^.*?0*(\d+)$', r'\1', img_id)),
}


def _difference(asked: list[str], existing: list[str]) -> str:
    """The fewest of DIFFERENCES without which some ids are the same in both lists, for a message; '' if there are none."""
    for count in range(1, len(DIFFERENCES) + 1):
        for names in combinations(DIFFERENCES, count):
            one, other = asked, existing
            for name in names:
                one, other = ([DIFFERENCES[name](img_id) for img_id in ids] for ids in (one, other))
            sizes = len(set(one)), len(set(other))
            # What makes different ids the same is no way to find an image.
            if sizes == (len(set(asked)), len(set(existing))) and len(set(one) & set(other)) * 2 > min(sizes):
                return ' and '.join(names)
    return ''
