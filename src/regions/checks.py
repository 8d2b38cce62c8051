"""Checks TSV files and region stores, and reports all faults in one pass. `repair` copies the valid lines of a TSV."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from files.atomic import atomic_file, byte_bar
from files.json_files import field, stream
from files.progress import ProgressBar
from files.text import printable
from regions import store_files, tsv
from regions.image_regions import check_first_boxes, no_distribution
from regions.store import RegionStore
from regions.tsv import ImageRegions, RegionError, TsvFile
from regions.tsv_lines import plausible

PUBLISHED = {'train2014': 82_783, 'val2014': 40_504, 'test2015': 81_434}  # number of images, by prefix of the file's name
ADVICE = 'convert its TSV again (run/regions.bash convert), or copy the store again'
FIRST = 20  # images whose features' magnitudes are judged
REACH = 0.4  # of width or height: what boxes reach beyond in any real file


def _advised(fault) -> RegionError:
    """A fault of a store, with what to do if it does not say that itself."""
    return RegionError(f'{fault}' if 'regions.bash import' in str(fault) else f'{fault}; {ADVICE}')


def check(path, on_fault: Callable[[RegionError], None], warn: Callable[[str], None]) -> list[str]:
    """Check a TSV, its zip, or a store, and return the ids of the valid images, in order.

    on_fault: called with each fault; warn: called with a message about what cannot be checked. Raises RegionError if there is no
    such file.
    """
    totals = Totals()
    img_ids = _check_store(path, totals, on_fault, warn) if Path(path).is_dir() else _check_tsv(path, totals, on_fault)
    for warning in totals.warnings() if img_ids else ():
        warn(f'{path}: {warning}')
    return img_ids


class Totals:
    """What no image shows by itself: labels, features and boxes of a whole file."""

    def __init__(self):
        self.classes = self.attributes = self.features = self.area = False
        self.implausible, self.images = False, 0
        self.regions = self.no_distribution = 0  # regions with class probabilities, and those whose sum is not 1
        self.reach = 0.0  # the furthest that a box reaches into its image, as a share of its sides

    def add(self, image: ImageRegions) -> None:
        if self.images < FIRST and image.features is not None and not plausible(image.features):
            self.implausible = True
        self.images += 1
        if image.class_probabilities is not None:
            self.regions += len(image.class_probabilities)
            self.no_distribution += int(no_distribution(image.class_probabilities).sum())
        self.classes |= bool(image.class_conf.any())
        self.attributes |= bool(image.attribute_conf.any())
        self.features |= image.features is None or bool(image.features.any())
        self.area |= bool((image.boxes[:, 2:] > image.boxes[:, :2]).all(1).any())
        self.reach = max(self.reach, float((image.boxes[:, 2:].max(0) / (image.width, image.height)).max()))

    def warnings(self) -> Iterator[str]:
        for name, loss in (('classes', 'obj'), ('attributes', 'attr')):
            if not getattr(self, name):
                yield f'no region has {name} with a confidence above 0, so that pre-training learns none (--visualLosses {loss})'
        if self.no_distribution:
            yield (f'{self.no_distribution:,} of {self.regions:,} regions have class probabilities that do not sum to 1, and are '
                   'not predicted by pre-training')
        if not self.features:
            yield 'all features are 0; were they extracted?'
        if self.implausible:
            yield ('features of the first images have absurd magnitudes; were they written in half or double precision? bash '
                   'run/regions.bash import recognises this')
        if not self.area:
            yield 'no box has an area; were boxes written?'
        elif self.reach < REACH and self.images >= 10:
            yield (f'no box reaches further than {self.reach:.0%} of the width or height of its image; are boxes and sizes in '
                   'the same pixels?')


def _check_tsv(path, totals, on_fault) -> list[str]:
    file, img_ids = tsv.need(path), []
    if not file.size:
        on_fault(RegionError(f'{file.where}: expected one image per line, found an empty file; download or extract it again'))
    try:
        for _, image in tsv.read(file, on_fault):
            img_ids.append(image.img_id)
            totals.add(image)
    except RegionError as error:  # the rest cannot be read
        on_fault(error)
    return img_ids


def _check_store(path, totals, on_fault, warn) -> list[str]:
    img_ids = []
    try:
        store = RegionStore(path, verify=False)
    except RegionError as error:
        on_fault(_advised(error))
        return img_ids
    if not store.digests:
        warn(f'{store.folder}: the store has no digests; changed numbers are only detected if they are invalid')
    with byte_bar(store.folder.name, sum(array.nbytes for array in store.arrays.values())) as bar:
        names = store.arrays if store.digests else ()
        for fault in itertools.chain(store_files.digest_faults(store.meta, store.arrays, names, bar),
                                     store_files.index_faults(store.meta, store.arrays)):
            on_fault(RegionError(f'{store.folder}/{fault}; {ADVICE}'))
    # Without valid offsets no region belongs to an image.
    rows = range(len(store)) if store_files.increase(store.arrays['offsets']) else ()
    if rows:
        try:
            check_first_boxes(store.folder, store.arrays)
        except RegionError as error:  # boxes of another form, said once
            on_fault(error)
            rows = ()
    for row in ProgressBar(rows, desc=store.folder.name, unit=' images'):
        try:
            image = tsv.check(store.image(row), store.feature_size)
        except (RegionError, UnicodeDecodeError) as error:
            on_fault(_advised(f'{store.folder}: row {row}: image {printable(store.ids[row])}: {error}'))
            continue
        img_ids.append(image.img_id)
        totals.add(image)
    if fault := _source_fault(store):
        on_fault(fault)
    return img_ids


def published(path) -> int | None:
    """The number of images in the published file of this name (of a store: of its TSV's name); None for other names."""
    source = store_files.read_meta(Path(path))['source'] if Path(path).is_dir() else None
    name = source['name'] if source else Path(path).name
    return next((count for prefix, count in PUBLISHED.items() if name.startswith(prefix)), None)


def question_images(path) -> set[str]:
    """The image ids in a json list of questions, under img_id, or img0 and img1 as in NLVR2.

    Raises FileNotFoundError or DataError.
    """
    img_ids = set()
    for question in stream(path, 'item', 'questions'):
        pair = isinstance(question, dict) and 'img0' in question
        img_ids.update(field(question, key, str, path) for key in (('img0', 'img1') if pair else ('img_id',)))
    return img_ids


def repair(path, out, on_fault: Callable[[RegionError], None]) -> int:
    """Copy the valid lines of a TSV unchanged to `out`, and return their number. on_fault: called with each fault.

    Of lines with the same id the first is kept. `out` is written atomically. Raises OSError if `out` cannot be written;
    RegionError if the TSV cannot be read to its end, or has no valid line.
    """
    lines = 0
    with atomic_file(out) as file:
        for _, line, _ in tsv.read_lines(path, on_fault):
            file.write(line)
            lines += 1
        if not lines:
            raise RegionError(f'{path}: expected at least one valid line, found none; {out} was not written')
    return lines


def _source_fault(store: RegionStore) -> RegionError | None:
    """The fault if the TSV that the store was converted from exists, but is unreadable or has changed."""
    try:
        file = _source_file(store)
        if file is None or (digest := file.sha256()) == store.meta['source']['sha256']:
            return None
    except RegionError as error:
        return error
    return RegionError(f'{store.folder}/meta.json: key "source.sha256": expected the digest of {file.where}, {digest}, found '
                       f'{store.meta["source"]["sha256"]}: the store was converted from another file; convert it again')


def _source_file(store: RegionStore) -> TsvFile | None:
    """The TSV or zip that a store was converted from, if it exists at its original path or next to the store."""
    if not store.meta['source']:
        return None
    provenance = store.meta.get('provenance')
    paths = [store.folder.with_name(store.meta['source']['name'])]
    if isinstance(provenance, dict) and isinstance(provenance.get('converted from'), str):
        paths.append(Path(provenance['converted from']))
    return next((file for path in paths if (file := tsv.find(path) or tsv.find(path.with_suffix('.tsv')))), None)

