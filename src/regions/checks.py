"""Is a TSV or a store complete and valid? Every fault in one pass; and `repair`, which keeps the valid lines."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from files.atomic import atomic_file, byte_bar
from files.json_files import field, stream
from regions import tsv
from regions.store import RegionStore
from regions.tsv import RegionError, TsvFile

PUBLISHED = {'train2014': 82_783, 'val2014': 40_504, 'test2015': 81_434}  # images, by what the file's name begins with
BLOCK = 1 << 24  # bytes
AGAIN = 'remove the store and convert its TSV again'


def check(path, on_fault: Callable[[RegionError], None], warn: Callable[[str], None]) -> list[str]:
    """Pass every fault of a TSV (or its zip) or of a store to `on_fault`; return the ids of the valid images, in order.

    `warn` is called with what could not be checked. Raises RegionError if there is nothing to check.
    """
    return _check_store(path, on_fault, warn) if Path(path).is_dir() else _check_tsv(path, on_fault)


def _check_tsv(path, on_fault) -> list[str]:
    file, img_ids = tsv.need(path), []
    if not file.size:
        on_fault(RegionError(f'{file.where}: expected an image a line, found an empty file; fetch or extract it again'))
    try:
        img_ids.extend(image.img_id for _, image in tsv.read(file, on_fault))
    except RegionError as error:  # the rest cannot be read
        on_fault(error)
    return img_ids


def _check_store(path, on_fault, warn) -> list[str]:
    img_ids = []
    try:
        store = RegionStore(path)
    except RegionError as error:
        on_fault(RegionError(f'{error}; {AGAIN}'))
        return img_ids
    if 'digests' not in store.meta:
        warn(f'{store.folder}: made without digests, so that damaged numbers are only noticed if they are impossible ones')
    for fault in itertools.chain(_digest_faults(store), _index_faults(store)):
        on_fault(RegionError(f'{store.folder}/{fault}; {AGAIN}'))
    # Without valid offsets no region belongs to an image.
    rows = range(len(store)) if _increase(store.arrays['offsets']) else ()
    for row in tqdm(rows, desc=store.folder.name, unit=' images', disable=None):
        try:
            img_ids.append(tsv.check(store.image(row), store.feature_size).img_id)
        except (RegionError, UnicodeDecodeError) as error:
            on_fault(RegionError(f'{store.folder}: row {row}: image {_printable_id(store, row)}: {error}; {AGAIN}'))
    if fault := _source_fault(store):
        on_fault(fault)
    return img_ids


def published(path) -> int | None:
    """How many images the published file has that a TSV, or that of a store, is named like; None for other names."""
    source = RegionStore(path).meta['source'] if Path(path).is_dir() else None
    name = source['name'] if source else Path(path).name
    return next((count for begin, count in PUBLISHED.items() if name.startswith(begin)), None)


def question_images(path) -> set[str]:
    """The images that questions name: a json list of objects with img_id, or img0 and img1 as in NLVR2.

    Raises FileNotFoundError or DataError.
    """
    img_ids = set()
    for question in stream(path, 'item', 'questions'):
        pair = isinstance(question, dict) and 'img0' in question
        img_ids.update(field(question, key, str, path) for key in (('img0', 'img1') if pair else ('img_id',)))
    return img_ids


def repair(path, out, on_fault: Callable[[RegionError], None]) -> int:
    """Write the valid lines of a TSV to `out`, byte for byte, and return how many; faults are passed to `on_fault`.

    Of two lines of one id the first is kept. `out` appears when complete; it is never written empty. Raises OSError if `out`
    cannot be written; RegionError if the TSV cannot be read to its end, or has no valid line.
    """
    lines = 0
    with atomic_file(out) as file:
        for _, line, _ in tsv.read_lines(path, on_fault):
            file.write(line)
            lines += 1
        if not lines:
            raise RegionError(f'{path}: expected at least one whole line, found none; {out} was not written')
    return lines


def store_digest(meta: dict) -> str | None:
    """One digest of all arrays of a store, from those in its meta.json; None for a store made without."""
    digests = meta.get('digests')
    if not isinstance(digests, dict):
        return None
    return hashlib.sha256(''.join(f'{name}:{digest}\n' for name, digest in sorted(digests.items())).encode()).hexdigest()


def _digest_faults(store: RegionStore) -> Iterator[str]:
    """Arrays whose bytes are not those that were written, by the digests in meta.json (of all but the .npy headers)."""
    if 'digests' not in store.meta:
        return
    expected = store.meta['digests'] if isinstance(store.meta['digests'], dict) else {}
    with byte_bar(store.folder.name, sum(array.nbytes for array in store.arrays.values())) as bar:
        for name, array in store.arrays.items():
            digest, rows = hashlib.sha256(), max(1, BLOCK // array.strides[0])
            for start in range(0, len(array), rows):
                digest.update(array[start:start + rows].view(np.uint8))
                bar.update(array[start:start + rows].nbytes)
            if digest.hexdigest() != expected.get(name):
                yield f'{name}.npy: expected the sha256 {expected.get(name)}, as in meta.json, found {digest.hexdigest()}'


def _index_faults(store: RegionStore) -> Iterator[str]:
    """The arrays that have an entry an image, against meta.json and each other."""
    meta, offsets, order = store.meta, store.arrays['offsets'], store.arrays['order']
    counts = np.diff(offsets)
    if not _increase(offsets):
        row = int(np.argmax(counts < 1)) if (counts < 1).any() else 0
        yield f'offsets.npy: expected numbers that grow from 0, found {offsets[row]} and then {offsets[row + 1]} at row {row}'
    elif (meta['min_regions'], meta['max_regions']) != (counts.min(), counts.max()):
        yield (f'meta.json: keys "min_regions", "max_regions": expected {counts.min()} and {counts.max()}, as in offsets.npy, '
               f'found {meta["min_regions"]} and {meta["max_regions"]}')
    if not np.array_equal(np.sort(order), np.arange(len(store))):
        yield f'order.npy: expected each row from 0 to {len(store) - 1} once'
    elif (unsorted := np.flatnonzero(store.ids[order][:-1] >= store.ids[order][1:])).size:
        one, other = order[unsorted[0]:unsorted[0] + 2]
        yield (f'ids.npy: expected different ids, in order by order.npy, found {_printable_id(store, one)} (row {one}) before '
               f'{_printable_id(store, other)} (row {other})')


def _increase(offsets: np.ndarray) -> bool:
    return offsets[0] == 0 and bool((np.diff(offsets) > 0).all())


def _source_fault(store: RegionStore) -> RegionError | None:
    """What is wrong with the TSV that the store was made from, if it can be found."""
    try:
        file = _source_file(store)
        if file is None or (digest := file.sha256()) == store.meta['source']['sha256']:
            return None
    except RegionError as error:
        return error
    return RegionError(f'{store.folder}/meta.json: key "source.sha256": expected the digest of {file.where}, {digest}, found '
                       f'{store.meta["source"]["sha256"]}: the file is not that from which the store was made; convert it again')


def _source_file(store: RegionStore) -> TsvFile | None:
    """The TSV (or the zip with it) that a store was made from, if it is where it was then or beside the store."""
    if not store.meta['source']:
        return None
    provenance = store.meta.get('provenance')
    paths = [store.folder.with_name(store.meta['source']['name'])]
    if isinstance(provenance, dict) and isinstance(provenance.get('converted from'), str):
        paths.append(Path(provenance['converted from']))
    return next((file for path in paths if (file := tsv.find(path) or tsv.find(path.with_suffix('.tsv')))), None)


def _printable_id(store: RegionStore, row: int) -> str:
    """An image id fit to stand in a message, whatever is in the file."""
    img_id = bytes(store.ids[row]).decode('utf-8', 'backslashreplace')
    return img_id if img_id and img_id.isprintable() else repr(img_id)
