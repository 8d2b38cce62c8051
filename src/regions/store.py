"""The region store: what training reads. A folder of plain .npy files, made from a TSV once, opened by memory map.

`train2014_obj36.store` beside `train2014_obj36.tsv` holds, for n images with `total` regions of f numbers each:

    features (total, f) float32, boxes (total, 4) float32 pixels, classes and attributes (total,) int64,
    class_conf and attribute_conf (total,) float32: the regions, image after image, in the order of the TSV
    offsets (n + 1,) int64: image i's regions are offsets[i] to offsets[i + 1]
    sizes (n, 2) int32: height, width; ids (n,) bytes: UTF-8; order (n,) int64: the argsort of ids, for looking up
    meta.json: format version, counts, dtypes, source (name, size, mtime_ns, sha256 of the TSV), provenance

Opening costs the same for any number of images, and every process shares the pages. A row is an image's position in
the order of the file. The store appears under its name only when complete; writers hold a lock beside it.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from regions import store_files, tsv
from regions.tsv import ImageRegions, RegionError

OBJECTS = ('classes', 'class_conf', 'attributes', 'attribute_conf')
LISTED_FAULTS = 20


class RegionStore:
    """The regions of n images in one folder. Picklable: the copy maps the same files again, or says they changed.

    `arrays` are the memory-mapped arrays by name (see the head of this file), `meta` is meta.json. Raises
    RegionError, naming the file, if one is missing, damaged, or of another format version.
    """

    def __init__(self, folder, stamp: str | None = None):
        self.folder = Path(os.path.abspath(folder))
        self.meta = store_files.read_meta(self.folder)
        self.arrays = {name: store_files.map_array(self.folder / f'{name}.npy', *layout)
                       for name, layout in store_files.layout(self.meta).items()}
        if self.arrays['offsets'][-1] != self.meta['regions']:
            raise RegionError(f'{self.folder}/offsets.npy: expected it to end in {self.meta["regions"]}, found '
                              f'{self.arrays["offsets"][-1]}')
        # Another process may have put a new store in this one's place, since it was pickled or just now.
        if store_files.read_meta(self.folder)['stamp'] != (stamp or self.meta['stamp']):
            raise RegionError(f'{self.folder}: was made anew while it was in use; start the program again')

    def __reduce__(self):
        return RegionStore, (self.folder, self.meta['stamp'])

    def __len__(self) -> int:
        return self.meta['images']

    @property
    def feature_size(self) -> int:
        return self.meta['feature_size']

    @property
    def max_regions(self) -> int:
        return self.meta['max_regions']

    @property
    def ids(self) -> np.ndarray:
        """(n,) bytes: the image ids in UTF-8, row by row, so in file order."""
        return self.arrays['ids']

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        """The row of each image id, (len(img_ids),) int64; -1 for ids that are not here."""
        keys = np.array([img_id.encode() for img_id in img_ids], np.bytes_)
        width = self.ids.dtype.itemsize
        too_long = np.char.str_len(keys) > width
        keys = keys.astype(self.ids.dtype)  # the same dtype, or searchsorted would copy all ids; cuts long keys
        place = np.searchsorted(self.ids, keys, sorter=self.arrays['order'])
        rows = self.arrays['order'][np.minimum(place, len(self) - 1)]
        return np.where((self.ids[rows] == keys) & ~too_long, rows, -1)

    def gather(self, rows) -> dict[str, np.ndarray]:
        """Features and boxes of b images, o being the most regions any of them has.

        Returns features (b, o, f) float32; boxes (b, o, 4) float32, x1, y1, x2, y2 divided by the picture's width
        and height; mask (b, o) bool, False where an image has fewer regions and the entries are 0.
        Raises IndexError for a row that is not in 0..n-1, such as the -1 of an unknown id.
        """
        rows, index, mask = self._index(rows)
        height_width = self.arrays['sizes'][rows].astype(np.float32)  # (b, 2)
        boxes = self._take('boxes', index, mask)
        boxes /= height_width[:, [1, 0, 1, 0]][:, None]  # (b, o, 4) / (b, 1, 4)
        return {'features': self._take('features', index, mask), 'boxes': boxes, 'mask': mask}

    def objects(self, rows) -> dict[str, np.ndarray]:
        """What the detector saw: classes, attributes (b, o) int64 and class_conf, attribute_conf (b, o) float32.

        Padded with 0 as in `gather`, whose mask holds here too.
        """
        _, index, mask = self._index(rows)
        return {name: self._take(name, index, mask) for name in OBJECTS}

    def _index(self, rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (b,), the place of each of their regions (b, o), and its mask (b, o); padding points at a real one."""
        rows = np.asarray(rows, np.int64)
        _check_rows(rows, len(self), self.folder)
        start = self.arrays['offsets'][rows]
        counts = self.arrays['offsets'][rows + 1] - start
        step = np.arange(counts.max(initial=0))
        mask = step < counts[:, None]
        return rows, start[:, None] + np.minimum(step, counts[:, None] - 1), mask

    def _take(self, name: str, index: np.ndarray, mask: np.ndarray) -> np.ndarray:
        taken = self.arrays[name].take(index, axis=0)
        if not mask.all():
            taken[~mask] = 0
        return taken


class RegionView:
    """Several stores as one, without copying: the rows of the second follow those of the first, and so on.

    An id that is in several stores means the first of them. Raises RegionError if feature sizes differ.
    """

    def __init__(self, stores: Sequence[RegionStore]):
        if not stores:
            raise RegionError('expected at least one region store, found none; name a feature file')
        self.stores = list(stores)
        self.feature_size = stores[0].feature_size
        for store in stores:
            if store.feature_size != self.feature_size:
                raise RegionError(f'{store.folder}: expected features of {self.feature_size} as in {stores[0].folder}, '
                                  f'found {store.feature_size}; use files made by one detector')
        self.max_regions = max(store.max_regions for store in stores)
        self._starts = np.cumsum([0] + [len(store) for store in stores])  # (stores + 1,)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def ids(self) -> np.ndarray:
        """(n,) bytes, as RegionStore.ids, but copied together on each call."""
        return np.concatenate([store.ids for store in self.stores])

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        """As RegionStore.rows, over all stores."""
        rows = np.full(len(img_ids), -1, np.int64)
        for store, start in zip(self.stores, self._starts, strict=False):
            unknown = np.flatnonzero(rows < 0)
            found = store.rows([img_ids[i] for i in unknown])
            rows[unknown] = np.where(found < 0, -1, found + start)
        return rows

    def gather(self, rows) -> dict[str, np.ndarray]:
        """As RegionStore.gather; o is the most regions over the whole batch."""
        return self._each(RegionStore.gather, rows)

    def objects(self, rows) -> dict[str, np.ndarray]:
        """As RegionStore.objects; o is the most regions over the whole batch."""
        return self._each(RegionStore.objects, rows)

    def _each(self, read, rows) -> dict[str, np.ndarray]:
        rows = np.asarray(rows, np.int64)
        _check_rows(rows, len(self), ' + '.join(str(store.folder) for store in self.stores))
        owner = np.searchsorted(self._starts, rows, side='right') - 1  # (b,)
        owners = np.unique(owner)
        if len(owners) <= 1:  # the usual batch is of one store: nothing to put together
            which = int(owners[0]) if len(owners) else 0
            return read(self.stores[which], rows - self._starts[which])
        parts = [read(self.stores[which], rows[owner == which] - self._starts[which]) for which in owners]
        batch = {}
        for key in parts[0]:
            o = max(part[key].shape[1] for part in parts)
            batch[key] = np.zeros((len(rows), o, *parts[0][key].shape[2:]), parts[0][key].dtype)
            for which, part in zip(owners, parts, strict=True):
                batch[key][owner == which, :part[key].shape[1]] = part[key]
        return batch


def open_all(tsv_paths: Sequence, store_root=None) -> RegionStore | RegionView:
    """Open the stores of several TSVs (see `open_regions`) as one; a single one is returned as it is."""
    stores = [open_regions(path, store_root) for path in tsv_paths]
    return stores[0] if len(stores) == 1 else RegionView(stores)


def store_folder(tsv_path, store_root=None) -> Path:
    """Where the store of a TSV lies: beside it, or under `store_root` with a name no other TSV's store has."""
    path = Path(os.path.abspath(tsv_path))
    stem = path.name.removesuffix('.tsv')
    if store_root is None:
        return path.with_name(f'{stem}.store')
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return Path(os.path.abspath(store_root)) / f'{path.parent.name}-{stem}-{digest}.store'


def open_regions(tsv_path, store_root=None) -> RegionStore:
    """Open the store of a TSV, making it first if it is missing, damaged, or older than the TSV.

    Of several processes one makes it, under a lock, and the others wait. A store whose TSV is gone is opened as it
    is. Raises RegionError, saying what to do, if there is neither, if the TSV has faulty lines (all are read; the
    first 20 are listed), or if the store cannot be written.
    """
    path, folder = Path(tsv_path), store_folder(tsv_path, store_root)
    if not path.is_file():
        if not folder.is_dir():
            raise RegionError(f'{path}: expected this file or its region store {folder}, found neither; fetch or '
                              'extract the regions, or correct the path (--dataRoot)')
        try:
            return RegionStore(folder)
        except RegionError as error:
            raise RegionError(f'{error}; {path}, to make it anew from, is not there: bring it back') from None
    store, _ = _fresh_store(folder, path)
    if store is None:
        with store_files.lock(folder):
            store, why = _fresh_store(folder, path)  # another process may have made it while we waited
            if store is None:
                tqdm.write(f'{folder} is made from {path}: {why}', file=sys.stderr)
                _convert(path, folder)
                store = RegionStore(folder)
    return store


def write(folder, images: Iterable[ImageRegions], provenance: dict, source: dict | None = None) -> None:
    """Write a store of `images`, whatever their number, in the memory of one; it replaces an older one.

    `provenance` says how the features were made (anything json can hold); `source` is {name, size, mtime_ns, sha256}
    of the TSV they come from, None if there is none. Raises RegionError, and leaves no store, for an image that
    `tsv.check` refuses, an id that comes twice (naming both positions), no images, or a folder that cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    with store_files.lock(folder), store_files.Writer(folder) as writer:
        for image in images:
            writer.append(image)
        writer.commit(provenance, source)


def _fresh_store(folder: Path, path: Path) -> tuple[RegionStore | None, str]:
    """The store if it is whole and made from the TSV as it is now, else None and why not."""
    if not folder.exists():
        return None, 'there is none yet'
    try:
        store = RegionStore(folder)
    except RegionError as error:
        return None, str(error)
    source, stat = store.meta['source'], path.stat()
    if source is None:
        raise RegionError(f'{folder}: was not made from {path}, so that it is not clear which of them is meant; '
                          'remove one of the two')
    if stat.st_size != source['size']:
        return None, f'the file has {stat.st_size} bytes, the store was made from {source["size"]}'
    if stat.st_mtime_ns != source['mtime_ns']:
        with open(path, 'rb') as file:
            if hashlib.file_digest(file, 'sha256').hexdigest() != source['sha256']:
                return None, 'the file has changed'
        store.meta['source'] = source | {'mtime_ns': stat.st_mtime_ns}
        with contextlib.suppress(OSError):  # a read-only store is as good; the digest is only taken again next time
            store_files.write_json(folder / 'meta.json', store.meta)
    return store, ''


def _convert(path: Path, folder: Path) -> None:
    """Make the store from the TSV, or raise one RegionError about all its faulty lines."""
    before, digest, faults, images = path.stat(), hashlib.sha256(), [], 0
    with (store_files.Writer(folder) as writer,
          tqdm(total=before.st_size, unit='B', unit_scale=True, desc=path.name, disable=None) as bar):
        def on_line(line: bytes) -> None:
            digest.update(line)
            bar.update(len(line))

        for _, image in tsv.read(path, faults.append, on_line):
            images += 1
            bar.set_postfix_str(f'{images / max(bar.format_dict["elapsed"], 1e-3):.0f} images/s', refresh=False)
            if not faults:  # with one there will be no store: the rest is only read for what else is wrong
                writer.append(image)
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise RegionError(f'{path}: changed while it was read; start again when it is complete')
        if faults:
            listed = '\n'.join(f'  {fault}' for fault in faults[:LISTED_FAULTS])
            more = f'\n  and {len(faults) - LISTED_FAULTS} more' if len(faults) > LISTED_FAULTS else ''
            raise RegionError(f'{path}: expected whole lines only, found {len(faults)} faulty and {images} good '
                              'images; no region store was made. Mend the file or fetch it again, then start again:\n'
                              f'{listed}{more}')
        if not images:
            raise RegionError(f'{path}: expected an image a line, found no line at all; fetch or extract it again')
        source = {'name': path.name, 'size': before.st_size, 'mtime_ns': before.st_mtime_ns,
                  'sha256': digest.hexdigest()}
        writer.commit({'converted from': os.path.abspath(path)}, source)


def _check_rows(rows: np.ndarray, length: int, where) -> None:
    wrong = (rows < 0) | (rows >= length)
    if wrong.any():
        raise IndexError(f'{where}: expected rows from 0 to {length - 1}, found {rows[wrong][0]}; leave images out '
                         'whose id is unknown (row -1)')
