"""Is a TSV or a store whole? Every fault in one pass; and `repair`, which keeps the lines that are."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from regions import readers, tsv
from regions.readers import RegionError, Source
from regions.store import RegionStore

PUBLISHED = {'train2014': 82_783, 'val2014': 40_504, 'test2015': 81_434}  # images, by what the file's name begins with
NAMED = 5  # how many images a message names
BLOCK = 1 << 24  # bytes
AGAIN = 'remove the store and convert its TSV again'


def check(path, on_fault: Callable[[RegionError], None], say: Callable[[str], None]) -> list[str]:
    """Hand every fault of a TSV (or its zip) or of a store to `on_fault`; return the ids of the whole images, in order.

    `say` is told what could not be checked. Raises RegionError if there is nothing to check.
    """
    img_ids = []
    if not Path(path).is_dir():
        lines = readers.need(path)
        if not lines.size:
            on_fault(RegionError(f'{lines.where}: expected an image a line, found an empty file; fetch or extract it again'))
        try:
            img_ids.extend(image.img_id for _, image in tsv.read(lines, on_fault))
        except RegionError as error:  # it cannot be read on
            on_fault(error)
        return img_ids
    try:
        store = RegionStore(path)
    except RegionError as error:
        on_fault(RegionError(f'{error}; {AGAIN}'))
        return []
    if 'digests' not in store.meta:
        say(f'{store.folder}: made without digests, so that numbers that became other possible ones are not noticed')
    for fault in itertools.chain(_digest_faults(store), _index_faults(store)):
        on_fault(RegionError(f'{store.folder}/{fault}; {AGAIN}'))
    # Without good offsets no region belongs to an image.
    rows = range(len(store)) if _grow(store.arrays['offsets']) else ()
    for row in tqdm(rows, desc=store.folder.name, unit=' images', disable=None):
        try:
            img_ids.append(tsv.check(store.image(row), store.feature_size).img_id)
        except (RegionError, UnicodeDecodeError) as error:
            on_fault(RegionError(f'{store.folder}: row {row}: image {_shown(store, row)}: {error}; {AGAIN}'))
    if fault := _source_fault(store):
        on_fault(fault)
    return img_ids


def published(path) -> int | None:
    """How many images the published file has that a TSV, or that of a store, is named like; None for other names."""
    made_from = RegionStore(path).meta['source'] if Path(path).is_dir() else None
    name = made_from['name'] if made_from else Path(path).name
    return next((count for begin, count in PUBLISHED.items() if name.startswith(begin)), None)


def asked(file) -> set[str]:
    """The images that questions name: a json list of objects with img_id, or img0 and img1 as in NLVR2.

    Raises RegionError for other files.
    """
    expected = 'a json list of objects with "img_id" (or "img0" and "img1")'
    try:
        questions = json.loads(Path(file).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise RegionError(f'{file}: expected {expected}, found none ({error}); correct --questions') from None
    if not isinstance(questions, list):
        raise RegionError(f'{file}: expected {expected}, found {type(questions).__name__}; correct --questions')
    named = set()
    for number, question in enumerate(questions):
        found = [question.get(key) for key in ('img_id', 'img0', 'img1') if key in question] if isinstance(question, dict) else []
        if not found or not all(isinstance(img_id, str) for img_id in found):
            raise RegionError(f'{file}: question {number}: key "img_id": expected an image id (text), found '
                              f'{found[0] if found else "none"!r}; mend the file')
        named.update(found)
    return named


def some(names: set[str]) -> str:
    """The first few names, and how many more there are."""
    return ', '.join(sorted(names)[:NAMED]) + (f' and {len(names) - NAMED:,} more' if len(names) > NAMED else '')


def repair(path, out, on_fault: Callable[[RegionError], None]) -> int:
    """Write the whole lines of a TSV to `out`, byte for byte, and return how many; faults go to `on_fault`.

    Of two lines of one id the first is kept. `out` appears when complete; it is never overwritten, nor written empty.
    Raises FileExistsError, or another OSError if `out` cannot be written; RegionError if the TSV cannot be read to its
    end, or has no whole line.
    """
    lines = 0
    if Path(out).exists():
        raise FileExistsError(f'{out}: is there already, and is not overwritten; name another file by --out')
    with tsv.writing(out) as file:
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
    with readers.progress(store.folder.name, sum(array.nbytes for array in store.arrays.values())) as bar:
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
    if not _grow(offsets):
        wrong = int(np.argmax(counts < 1)) if (counts < 1).any() else 0
        yield (f'offsets.npy: expected numbers that grow from 0, found {offsets[wrong]} and then {offsets[wrong + 1]} at row '
               f'{wrong}')
    elif (meta['min_regions'], meta['max_regions']) != (counts.min(), counts.max()):
        yield (f'meta.json: keys "min_regions", "max_regions": expected {counts.min()} and {counts.max()}, as in offsets.npy, '
               f'found {meta["min_regions"]} and {meta["max_regions"]}')
    if not np.array_equal(np.sort(order), np.arange(len(store))):
        yield f'order.npy: expected each row from 0 to {len(store) - 1} once'
    elif (unsorted := np.flatnonzero(store.ids[order][:-1] >= store.ids[order][1:])).size:
        one, other = order[unsorted[0]:unsorted[0] + 2]
        yield (f'ids.npy: expected different ids, in order by order.npy, found {_shown(store, one)} (row {one}) before '
               f'{_shown(store, other)} (row {other})')


def _grow(offsets: np.ndarray) -> bool:
    return offsets[0] == 0 and bool((np.diff(offsets) > 0).all())


def _source_fault(store: RegionStore) -> RegionError | None:
    try:
        made_from = _source_of(store)
        if made_from is None or (found := made_from.sha256()) == store.meta['source']['sha256']:
            return None
    except RegionError as error:
        return error
    return RegionError(f'{store.folder}/meta.json: key "source.sha256": expected the digest of {made_from.where}, {found}, found '
                       f'{store.meta["source"]["sha256"]}: the file is not that from which the store was made; convert it again')


def _source_of(store: RegionStore) -> Source | None:
    """The TSV (or the zip with it) that a store was made from, if it is where it was then or beside the store."""
    if not store.meta['source']:
        return None
    provenance = store.meta.get('provenance')
    places = [store.folder.with_name(store.meta['source']['name'])]
    if isinstance(provenance, dict) and isinstance(provenance.get('converted from'), str):
        places.append(Path(provenance['converted from']))
    return next((found for place in places if (found := readers.find(place) or readers.find(place.with_suffix('.tsv')))), None)


def _shown(store: RegionStore, row: int) -> str:
    """An image id fit to stand in a message, whatever is in the file."""
    img_id = bytes(store.ids[row]).decode('utf-8', 'backslashreplace')
    return img_id if img_id and img_id.isprintable() else repr(img_id)
