"""The region store: what training reads. A folder of plain .npy files, made from a TSV once, opened by memory map.

`train2014_obj36.store` beside `train2014_obj36.tsv` holds, for n images with `total` regions of f numbers each:

    features (total, f) float32 or float16, boxes (total, 4) float32 pixels, classes and attributes (total,) int64,
    class_conf and attribute_conf (total,) float32: the regions, image after image, in the order of the TSV
    offsets (n + 1,) int64: image i's regions are offsets[i] to offsets[i + 1]
    sizes (n, 2) int32: height, width; ids (n,) bytes: UTF-8; order (n,) int64: the argsort of ids, to look them up
    meta.json: format version, counts, dtypes, source (name, size, mtime_ns, sha256 of the TSV), provenance, and of each array
    the sha256 (digests) and when its file was written (mtime_ns)

A store that was not made from a TSV may lack the features (feature_size 0), and may hold optional columns, which meta.json
lists with their sizes: class_probabilities (total, num_classes) float16, image_features (n, f) float32, a feature of each image
as a whole.

Opening checks what is small: meta.json, headers, sizes of files, and the arrays with an entry an image, with their digests (6 ms
for 100,000 images). A large file is only read, to compare its digest, if it was written after the store was made: copied, or
changed in place. `regions.bash check` compares all. Every process shares the pages of the files. A row is an image's position in
the order of the file. The store appears under its name only when complete; writers hold a lock beside it.
"""

import hashlib
import itertools
import os
import resource
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from files.atomic import byte_bar, write_json
from files.progress import note
from regions import store_files, tsv
from regions.arrays import RegionArrays, RegionView
from regions.image_regions import check_first_boxes
from regions.tsv import ImageRegions, RegionError, TsvFile

AHEAD = 16  # images that are decoded before they are written
LARGE = 1 << 28  # bytes whose checksum takes long enough to be announced


class RegionStore(RegionArrays):
    """The regions of n images in one folder. Picklable: the copy maps the same files again, or raises if they changed.

    `arrays` are the memory-mapped arrays by name (see the head of this file), `meta` is meta.json. Raises
    RegionError, naming the file, if one is missing, damaged, or of another format version; OSError if one cannot be read.
    stamp: that of a store which another process has opened; verify: check the content of the arrays, where there is no stamp.
    """

    def __init__(self, folder, stamp: str | None = None, verify: bool = True):
        self.folder = Path(os.path.abspath(folder))
        self.meta = store_files.read_meta(self.folder)
        arrays = {name: store_files.map_array(self.folder / f'{name}.npy', *layout)
                  for name, layout in store_files.layout(self.meta).items()}
        # Another process may have put a new store in this one's place, since it was pickled or just now.
        if store_files.read_meta(self.folder)['stamp'] != (stamp or self.meta['stamp']):
            raise RegionError(f'{self.folder}: was rewritten while it was in use; start the program again')
        super().__init__(self.folder, arrays, self.meta['max_regions'], self.meta.get('digests', {}))
        self.from_disk = True
        if verify and not stamp:
            self._verify()

    def _verify(self) -> None:
        """Check the small arrays, and the large ones that were written after the store was made."""
        times, digests = store_files.modification_times(self.arrays), self.meta.get('digests')
        recorded = self.meta.get('mtime_ns', times)
        changed = [name for name in self.arrays if times[name] != recorded[name]]
        size = sum(self.arrays[name].nbytes for name in changed)
        if size > LARGE and digests:
            note(f'{self.folder}: was copied or changed after it was made; comparing the checksums of {size / 1e6:,.0f} MB')
        names = sorted({*store_files.PER_IMAGE, *changed}) if digests else ()
        with byte_bar(self.folder.name, size, delay=1) as bar:
            faults = itertools.chain(store_files.digest_faults(self.meta, self.arrays, names, bar),
                                     store_files.index_faults(self.meta, self.arrays))
            if fault := next(faults, None):
                raise RegionError(f'{self.folder}/{fault}')
        if changed:
            self.meta['mtime_ns'] = times
            self.record()

    def record(self) -> None:
        """Write the times of files that turned out to be unchanged, so that the next start need not read them."""
        try:
            if store_files.read_meta(self.folder)['stamp'] == self.meta['stamp']:
                write_json(self.folder / 'meta.json', self.meta)
        except OSError as error:  # a read-only store is as good
            note(f'{self.folder}/meta.json: cannot be written ({error.strerror}), so that the next start compares the '
                 'checksums again')

    def check_length(self) -> None:
        store_files.check_length(self.arrays.values())

    def spans(self, rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self.check_length()
        return super().spans(rows)

    def gather(self, rows, lead: int = 0) -> dict[str, np.ndarray]:
        # If the last batch came from the disk, the system is asked for the whole next one first: reads one after the other
        # are several times slower. For what is in the page cache, asking would take half the time.
        before = _blocks_read()
        if self.from_disk and self.feature_size:
            _, starts, counts = self.spans(rows)
            store_files.read_ahead(self.arrays['features'], starts, counts)
        batch = super().gather(rows, lead)
        self.from_disk = _blocks_read() > before
        return batch

    def __reduce__(self):
        return RegionStore, (self.folder, self.meta['stamp'])


def _blocks_read() -> int:
    """Blocks that were read from disk for this thread so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock


# Opening

def open_all(tsv_paths: Sequence, store_root=None) -> RegionStore | RegionView:
    """Open the stores of several TSVs (see `open_regions`) as one; a single one is returned as it is."""
    stores = [open_regions(path, store_root) for path in tsv_paths]
    return stores[0] if len(stores) == 1 else RegionView(stores)


def open_regions(tsv_path, store_root=None) -> RegionStore:
    """Open the store of a TSV, named as either, making it first if it is missing, damaged, or older than the TSV.

    A zip of the TSV's name beside it stands for a TSV that is missing (see `tsv`). Of several processes one makes
    the store, under a lock, and the others wait. A store whose TSV is gone is opened as it is, and one whose features
    are float16 is used in place of one of float32. Raises RegionError with advice if there is neither, if the TSV has
    faulty lines (all are read; the first 20 are listed), if the store cannot be written, or holds normalised boxes.
    """
    store = _open(tsv_of(tsv_path), store_root, None)
    check_first_boxes(store.folder, store.arrays)
    return store


def convert(tsv_path, store_root=None, dtype: str = 'float32') -> RegionStore:
    """As `open_regions`, but a store whose features are not of `dtype`, float32 or float16, is rewritten too.

    Raises ValueError for another dtype.
    """
    return _open(tsv_path, store_root, store_files.feature_dtype(dtype))


def fresh(tsv_path, store_root=None) -> RegionStore | None:
    """The store of a TSV if it can be opened as it is and without reading the TSV; else None. Makes nothing."""
    file, folder = tsv.find(tsv_path), store_folder(tsv_path, store_root)
    if file is None:
        return _without_file(tsv_path, folder)
    return _fresh_store(folder, file, read=False)[0]


def tsv_of(path) -> Path:
    """The name of the TSV for a store that is named itself; any other path as it is."""
    path = Path(path)
    return path.with_suffix('.tsv') if path.suffix == '.store' else path


def store_folder(tsv_path, store_root=None) -> Path:
    """Where the store of a TSV lies: beside it, or under `store_root` with a name no other TSV's store has."""
    path = Path(os.path.abspath(tsv_path))
    stem = path.name.removesuffix('.tsv')
    if store_root is None:
        return path.with_name(f'{stem}.store')
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return Path(os.path.abspath(store_root)) / f'{path.parent.name}-{stem}-{digest}.store'


def _open(tsv_path, store_root, dtype: str | None) -> RegionStore:
    path, folder = Path(tsv_path), store_folder(tsv_path, store_root)
    file = tsv.find(path)
    if file is None:
        store = _without_file(path, folder)
        if dtype not in (None, store.meta['dtypes'].get('features', dtype)):
            raise RegionError(f'{store.folder}: its features are {np.dtype(store.meta["dtypes"]["features"])}; {path}, to make '
                              'others from, is not there: bring it back')
        return store
    store, _ = _fresh_store(folder, file, dtype)
    if store is None:
        with store_files.lock(folder):
            store, why = _fresh_store(folder, file, dtype)  # another process may have made it while we waited
            if store is None:
                note(f'Making {folder} from {file.path}' + (f' again: {why}' if folder.exists() else ''))
                _convert(file, folder, np.dtype(dtype or '<f4').name)
                store = RegionStore(folder)
    return store


def _without_file(path, folder: Path) -> RegionStore:
    """The store of a TSV that does not exist: `folder`, or that beside the TSV, which may have come without it."""
    if not folder.is_dir():
        folder = store_folder(path)
    if not folder.is_dir():
        if Path(path).is_dir():
            raise RegionError(f'{path}: expected a TSV or NAME.store, found another folder; of arrays, bash run/regions.bash '
                              f'import {path} --out NEW.tsv makes a TSV')
        raise RegionError(f'{path}: expected this file or its region store {folder}, found neither; fetch or '
                          'extract the regions, or correct the path (--dataRoot)')
    try:
        return RegionStore(folder)
    except RegionError as error:
        raise RegionError(f'{error}; {path}, to make it anew from, is not there: bring it back') from None


def _fresh_store(folder: Path, file: TsvFile, dtype: str | None = None, read: bool = True) -> tuple[RegionStore | None, str]:
    """The store if it is complete and made from the TSV as it is now, else None and the reason.

    `read` False: a TSV that may have changed is not read to find out, and counts as changed.
    """
    if not folder.exists():
        return None, 'there is none yet'
    try:
        store = RegionStore(folder)
    except RegionError as error:
        return None, str(error)
    source = store.meta['source']
    if source is None:
        raise RegionError(f'{folder}: was not made from {file.path}, so that it is not clear which of them is meant; '
                          'move one of the two to another folder')
    if file.size != source['size']:
        return None, f'the file has {file.size} bytes, the store was made from {source["size"]}'
    if dtype not in (None, store.meta['dtypes']['features']):
        return None, f'its features are {np.dtype(store.meta["dtypes"]["features"])}'
    if file.mtime_ns != source['mtime_ns']:
        if read and file.size > LARGE:
            note(f'{file.path}: has another time; comparing the checksum of {file.size / 1e6:,.0f} MB')
        if not read or file.sha256() != source['sha256']:
            return None, 'the file has changed'
        store.meta['source'] = file.meta(source['sha256'])
        store.record()
    return store, ''


# Making

def write(folder, images: Iterable[ImageRegions], provenance: dict, source: dict | None = None,
          dtype: str = 'float32') -> None:
    """Write a store of `images`, whatever their number, in the memory of one; it replaces an older one.

    All images have features, or none; the same for each optional array. If some images have an image_feature, the others get
    the mean of their regions. `provenance` says how the features were made (anything json can hold); `source` is {name, size,
    mtime_ns, sha256} of the TSV they come from, None if there is none; `dtype` is that of the features in the store, float32 or
    float16. Raises RegionError, and leaves no store, for an image that `tsv.check` refuses, an id that comes twice (naming both
    positions), no images, or a folder that cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    with store_files.lock(folder), store_files.StoreWriter(folder, dtype) as writer:
        for image in tsv.checked(folder, images):
            writer.add(image)
        writer.finish(provenance, source)


def _convert(file: TsvFile, folder: Path, dtype: str) -> None:
    """Make the store of a TSV, or raise one RegionError about all faulty lines. The caller holds the store's lock."""
    provenance, faults, digest, count = tsv.provenance(file), [], hashlib.sha256(), 0

    def images():
        for number, line, image in tsv.read_lines(file, faults.append):
            digest.update(line)  # all lines, if the store is made: faulty ones are not passed on
            try:
                if dtype == 'float16':
                    store_files.check_half(image.features)
            except RegionError as error:
                faults.append(RegionError(f'{file.where}:{number}: image {image.img_id}: {error}'))
            else:
                yield image

    with store_files.StoreWriter(folder, dtype) as writer:
        for image in prefetch(images(), AHEAD):
            count += 1
            if not faults:
                writer.add(image)
        stat = file.path.stat()
        if stat.st_mtime_ns != file.mtime_ns or (file.member is None and stat.st_size != file.size):
            raise RegionError(f'{file.path}: changed while it was read; start again when it is complete')
        if faults:
            raise RegionError(f'{file.where}: expected complete lines only, found {len(faults)} faulty and {count} '
                              'good images; no region store was made. Mend the file or fetch it again, then start again:\n'
                              + tsv.listed(faults))
        if not count:
            raise RegionError(f'{file.where}: expected an image a line, found no line at all; fetch or extract it again')
        writer.finish(provenance | {'converted from': tsv.path_text(os.path.abspath(file.path))}, file.meta(digest.hexdigest()))


def prefetch(items: Iterator, ahead: int) -> Iterator:
    """The items of an iterator, computed in a second thread, up to `ahead` of them in advance."""
    end, pending = object(), deque()
    with ThreadPoolExecutor(1) as thread:
        while True:
            while len(pending) <= ahead:
                pending.append(thread.submit(next, items, end))
            if (item := pending.popleft().result()) is end:
                return
            yield item


def read_few(tsv_path, wanted: Sequence[set[str]], limits: Sequence[int]) -> RegionArrays | None:
    """Into RAM, without a store: of each set of image ids so many images of the TSV, the first; None if there are none.

    Of other lines only the image id is read, and no line after the last that is needed. Raises RegionError that lists the
    faulty lines among those needed.
    """
    file, faults, images = tsv.find(tsv_path), [], []
    left, keys = list(limits), [{img_id.encode() for img_id in ids} for ids in wanted]

    def needed(img_id: bytes) -> bool:
        return any(more and img_id in ids for more, ids in zip(left, keys, strict=True))

    for _, image in tsv.read(file, faults.append, needed):
        images.append(image)
        left = [more - bool(more and image.img_id.encode() in ids) for more, ids in zip(left, keys, strict=True)]
        if not any(left):
            break
    if faults:
        raise RegionError(f'{file.where}: expected complete lines for the images asked for, found {len(faults)} faulty; mend '
                          f'the file or fetch it again:\n{tsv.listed(faults)}')
    return RegionArrays.of_images(file.where, images) if images else None
