"""Is a TSV or a store whole? Every fault in one pass; and `repair`, which keeps the lines that are."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from regions import origin, source, tsv
from regions.store import RegionStore
from regions.tsv import RegionError

PUBLISHED = {'train2014': 82_783, 'val2014': 40_504, 'test2015': 81_434}  # images, by what the file's name begins with
NAMED = 5  # how many missing images a message names


def check(path, on_fault: Callable[[RegionError], None]) -> list[str]:
    """Hand every fault of a TSV or store to `on_fault`; return the ids of the whole images, in order."""
    return check_store(path, on_fault) if source.is_store(path) else check_tsv(path, on_fault)


def check_tsv(path, on_fault: Callable[[RegionError], None]) -> list[str]:
    with source.reading(path) as bar:
        img_ids = [image.img_id for _, image in tsv.read(path, on_fault, lambda line: bar.update(len(line)))]
    if not Path(path).stat().st_size:
        on_fault(RegionError(f'{path}: expected an image a line, found an empty file; fetch or extract it again'))
    return img_ids


def check_store(folder, on_fault: Callable[[RegionError], None]) -> list[str]:
    """The arrays against meta.json, each other and the rules of a TSV's line; the TSV, if it is there, by its digest."""
    again = 'remove the store and convert its TSV again'
    try:
        store = RegionStore(folder)
    except RegionError as error:
        on_fault(RegionError(f'{error}; {again}'))
        return []
    meta, offsets = store.meta, store.arrays['offsets']
    counts = np.diff(offsets)
    if offsets[0] != 0 or (counts < 1).any():
        wrong = int(np.argmax(counts < 1)) if (counts < 1).any() else 0
        on_fault(RegionError(f'{store.folder}/offsets.npy: expected numbers that grow from 0, found {offsets[wrong]} and '
                             f'then {offsets[wrong + 1]} at row {wrong}; {again}'))
        return []  # without them no region belongs to an image
    for key, found in (('min_regions', counts.min()), ('max_regions', counts.max())):
        if meta[key] != found:
            on_fault(RegionError(f'{store.folder}/meta.json: key "{key}": expected {found}, as in offsets.npy, found '
                                 f'{meta[key]}; {again}'))
    order = store.arrays['order']
    if not np.array_equal(np.sort(order), np.arange(len(store))):
        on_fault(RegionError(f'{store.folder}/order.npy: expected each row from 0 to {len(store) - 1} once; {again}'))
    elif (unsorted := np.flatnonzero(store.ids[order][:-1] >= store.ids[order][1:])).size:
        one, other = order[unsorted[0]:unsorted[0] + 2]
        on_fault(RegionError(f'{store.folder}/ids.npy: expected different ids, in order by order.npy, found '
                             f'{_shown(store, one)} (row {one}) before {_shown(store, other)} (row {other}); {again}'))
    img_ids = []
    for row in tqdm(range(len(store)), desc=store.folder.name, unit=' images', disable=None):
        try:
            image = source.stored_image(store, row)
            tsv.check(image, store.feature_size)
            img_ids.append(image.img_id)
        except (RegionError, UnicodeDecodeError) as error:
            on_fault(RegionError(f'{store.folder}: row {row}: image {_shown(store, row)}: {error}; {again}'))
    if fault := _digest_fault(store):
        on_fault(fault)
    return img_ids


def check_published(path, found: int) -> RegionError | None:
    """The fault if a published file has not the images that were published. Raises ValueError for other names."""
    name = _name(path)
    begin = next((begin for begin in PUBLISHED if name.startswith(begin)), None)
    if begin is None:
        raise ValueError(f'{path}: --published: expected a name that begins with {", ".join(PUBLISHED)}, found {name}')
    if found == PUBLISHED[begin]:
        return None
    return RegionError(f'{path}: expected the {PUBLISHED[begin]:,} images of the published {begin}, found {found:,} whole '
                       'ones; fetch the file again')


def check_questions(path, img_ids: Iterable[str], question_files) -> tuple[list[RegionError], str]:
    """Images that questions name and that have no regions, a fault a file; and a line on regions without questions.

    Questions are a json list of objects with img_id (or img0 and img1, as in NLVR2). Raises RegionError for other files.
    """
    there, asked, faults = set(img_ids), set(), []
    for file in question_files:
        named = _asked(file)
        asked |= named
        if missing := named - there:
            faults.append(RegionError(f'{file}: expected regions in {path} for its {len(named):,} images, found none for '
                                      f'{len(missing):,}: {_some(missing)}; extract them, or leave their questions out'))
    unasked = there - asked
    return faults, (f'{path}: {len(there):,} images with regions, {len(unasked):,} of them without questions'
                    + (f': {_some(unasked)}' if unasked else ''))


def repair(path, out, on_fault: Callable[[RegionError], None]) -> int:
    """Write the whole lines of a TSV to `out`, byte for byte, and return how many; faults go to `on_fault`.

    Of two lines of one id the first is kept. `out` appears when complete; it is never overwritten, nor written empty.
    Raises FileExistsError, or RegionError if it cannot be written.
    """
    out, line, lines = Path(out), b'', 0
    if out.exists():
        raise FileExistsError(f'{out}: is there already, and is not overwritten; name another file by --out')
    temporary = out.with_name(f'{out.name}.tmp-{os.getpid()}')
    try:
        with source.reading(path) as bar, open(temporary, 'wb') as file:
            def on_line(raw: bytes) -> None:
                nonlocal line
                line = raw
                bar.update(len(raw))

            for _ in tsv.read(path, on_fault, on_line):
                file.write(line)
                lines += 1
            file.flush()
            os.fsync(file.fileno())
        if lines:
            _name_new(temporary, out)
    except FileExistsError:
        raise FileExistsError(f'{out}: came into being meanwhile, and is not overwritten; name another file') from None
    except OSError as error:
        raise RegionError(f'{out}: cannot be written ({error}); name a place with room by --out') from None
    finally:
        temporary.unlink(missing_ok=True)
    return lines


def sha256(tsv_source: origin.Source) -> str:
    """The digest of a TSV's bytes, also of one in a zip."""
    digest = hashlib.sha256()
    with tsv_source.open() as file, source.progress(tsv_source.path.name, tsv_source.size) as bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def tsv_of(store: RegionStore) -> origin.Source | None:
    """The TSV (or the zip with it) that a store was made from, if it is where it was then or beside the store."""
    if not store.meta['source']:
        return None
    provenance = store.meta.get('provenance')
    places = [store.folder.with_name(store.meta['source']['name'])]
    if isinstance(provenance, dict) and isinstance(provenance.get('converted from'), str):
        places.append(Path(provenance['converted from']))
    return next((found for place in places if (found := origin.find(place.with_suffix('.tsv')))), None)


def _name_new(temporary: Path, out: Path) -> None:
    """Give a file its name unless there is one of that name, which a rename would replace."""
    try:
        os.link(temporary, out)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if out.exists():
            raise FileExistsError from None
        os.rename(temporary, out)


def _digest_fault(store: RegionStore) -> RegionError | None:
    try:
        made_from = tsv_of(store)
        if made_from is None or (found := sha256(made_from)) == store.meta['source']['sha256']:
            return None
    except RegionError as error:
        return error
    return RegionError(f'{store.folder}/meta.json: key "source.sha256": expected the digest of {made_from.where}, {found}, found '
                       f'{store.meta["source"]["sha256"]}: the file is not that from which the store was made; convert it again')


def _shown(store: RegionStore, row: int) -> str:
    """An image id fit to stand in a message, whatever is in the file."""
    img_id = bytes(store.ids[row]).decode('utf-8', 'backslashreplace')
    return img_id if img_id and img_id.isprintable() else repr(img_id)


def _name(path) -> str:
    """The file name of a TSV, or of the TSV that a store was made from."""
    if source.is_store(path):
        made_from = RegionStore(path).meta['source']
        return made_from['name'] if made_from else Path(path).name
    return Path(path).name


def _asked(file) -> set[str]:
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


def _some(names: set[str]) -> str:
    listed = ', '.join(sorted(names)[:NAMED])
    return listed + (f' and {len(names) - NAMED:,} more' if len(names) > NAMED else '')
