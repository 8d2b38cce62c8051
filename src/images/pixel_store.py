"""Pixel stores: images of a folder, list or zip, decoded and resized once, as uint8 in one memory-mapped file.

X.pixels is a folder: pixels.bin, the rows of all images, red, green, blue; table.npy, of each image its id, its size in pixels,
its size and place in pixels.bin, a checksum of its pixels, and path and digest of its file; states.npy, the state of its file,
see `image_files`; meta.json, how the images were resized, and what from.
"""

import contextlib
import hashlib
import mmap
import os
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from files.atomic import atomic_file, atomic_folder, check_free_space, locked, write_json
from files.json_files import read_json, some
from files.progress import ProgressBar, note
from files.text import printable, shown
from images.decoder import fitted
from images.image_files import AGAIN, find_files, open_files
from images.pictures import PictureError, in_parallel
from images.transforms import resized

VERSION = 1
FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
META = {'source': str, 'ids': str, 'left out': list, 'sha256 of the table': str}  # keys of meta.json that are needed


class PixelStore:
    """n images. Attributes and methods are those of `image_files.Folder`, and sizes those of the images before they were resized.

    Raises PictureError if the store is damaged, or if images that it was made from have changed; a store whose images are not
    there is opened as it is.
    """

    def __init__(self, folder, ids=None):
        """ids: how images must be named in it, as of `images.ids.ImageIds`; None: in any way."""
        self.folder, self.name = Path(folder), str(folder)
        self.meta = read_json(self.folder / 'meta.json', 'the description of a pixel store', dict)
        if self.meta.get('version') != VERSION:
            raise PictureError(f'{folder}/meta.json: expected version {VERSION}, found {shown(self.meta.get("version"))}')
        if wrong := [key for key, kind in META.items() if not isinstance(self.meta.get(key), kind)]:
            raise PictureError(f'{folder}/meta.json: expected the key "{wrong[0]}" of a pixel store, found none; make it again')
        if ids is not None and self.meta['ids'] != (ids := absolute(ids)):
            raise PictureError(f'{folder}: expected images named by --ids {ids}, found those of --ids {self.meta["ids"]}; choose '
                               'the same, or make it again')
        try:
            table = np.load(self.folder / 'table.npy', allow_pickle=False)
            self.ids, self.paths, self.sizes, self.stored, self.start, self.crc, self.digests = (
                np.ascontiguousarray(table[name]) for name in ('id', 'path', 'size', 'stored', 'start', 'crc', 'sha256'))
            self.states = np.load(self.folder / 'states.npy', allow_pickle=False)
            self.lengths = self.states[:, 0]
        except (ValueError, IndexError, EOFError) as error:
            raise PictureError(printable(f'{folder}: expected the tables of a pixel store, found others ({error}); make it again'
                                         )) from None
        self.file = open(self.folder / 'pixels.bin', 'rb')  # noqa: SIM115, as long as this object lives
        self.file_state, size = self._file_state(), int((self.stored.astype(np.int64).prod(1) * 3).sum())
        if self.file_state[0] != size or digest(table) != self.meta['sha256 of the table'] or len(self.states) != len(table):
            raise PictureError(f'{folder}: expected {size:,} bytes of pixels and the tables that were written with them, found '
                               f'{self.file_state[0]:,} or other tables; make it again')
        self.pixels = np.frombuffer(mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        self._check_source()

    @staticmethod
    def is_store(path):
        return (Path(path) / 'meta.json').is_file() and (Path(path) / 'pixels.bin').is_file()

    def _file_state(self):
        status = os.fstat(self.file.fileno())
        return status.st_size, status.st_mtime_ns

    def _check_source(self):
        """Raises PictureError if images were changed, added or removed since the store was made."""
        source = self.meta['source']
        if not os.path.exists(source):
            return
        files = find_files(source, self.meta['ids'])
        places = {path: i for i, path in enumerate(files.paths.tolist())}
        left_out = set(self.meta['left out'])
        new = [img_id.decode() for img_id in np.setdiff1d(files.ids, self.ids).tolist() if img_id.decode() not in left_out]
        changed, copied = [], []
        for i, path in enumerate(self.paths.tolist()):
            if (place := places.get(path)) is None or files.lengths[place] != self.lengths[i]:
                changed.append(i)
            elif files.states[place].tolist() != self.states[i].tolist():
                copied.append((i, place))
        if copied:
            note(f'{source}: {len(copied):,} images have another time than when {self.name} was made; comparing their checksums')
            changed += [i for i, place in copied if (files.read(place)[1] != self.digests[i]).any()]
        if changed or new:
            names = [self.ids[i].decode() for i in changed]
            raise PictureError(printable(
                f'{self.name}: was made from {source}, where {len(names):,} images have changed or are gone ({some(names)}) and '
                f'{len(new):,} are new ({some(new)}); make it again: bash run/images.bash convert'))
        if copied:
            rows, places = np.array(copied).T
            self.states[rows] = files.states[places]
            with contextlib.suppress(OSError), atomic_file(self.folder / 'states.npy') as file:  # a read-only store is as good
                np.save(file, self.states)

    def check_unchanged(self, i=None):
        if self._file_state() != self.file_state:  # beyond the end of a file that was cut off, the process would be killed
            raise PictureError(f'{self.name}: was changed while it was in use; {AGAIN}')

    def where(self, i):
        return f'{self.name}/{self.ids[i].decode()}'

    def picture(self, i):
        """The stored pixels of an image, uint8 (h, w, 3), memory mapped."""
        self.check_unchanged()
        (height, width), start = self.stored[i].tolist(), int(self.start[i])
        return self.pixels[start:start + height * width * 3].reshape(height, width, 3)

    def resized(self, i, box, size, resample, reduced):
        """As `pictures.open_resized`, from the stored pixels: exact if they are those of the file, or have the size asked for."""
        picture = self.picture(i)
        if box is None and picture.shape[1::-1] == tuple(size):
            return picture
        return np.asarray(fitted(Image.fromarray(picture), tuple(self.sizes[i, ::-1].tolist()), box, size, resample))

    def faults(self):
        """Yields of each image a message if its pixels are not those that were written, else ''."""
        for i in range(len(self.ids)):
            intact = zlib.crc32(self.picture(i)) == self.crc[i]
            yield '' if intact else f'{self.where(i)}: expected the pixels that were written, found others; make the store again'


def absolute(ids):
    """--ids as meta.json holds it: a file by its path from the root."""
    return str(ids) if str(ids) in ('stem', 'path') else os.path.abspath(ids)


def digest(table):
    return hashlib.sha256(np.ascontiguousarray(table)).hexdigest()


def stored_size(height, width, size, longest=None, square=False):
    """(height, width) in a store. square: size x size; longest: VL-BERT's rule; else the shorter side becomes `size`, and smaller
    images stay as they are."""
    if square:
        return size, size
    if not longest and min(height, width) <= size:
        return height, width
    return resized(height, width, size, longest or size * max(height, width))  # which no side exceeds


def write(source, out, size, longest=None, square=False, resample=None, ids='stem', allow_broken=False, reduced=False):
    """Make a pixel store of a folder, list or zip, in as many processes as there are processors; it replaces an older one when it
    is complete. Other arguments as of `stored_size`, `image_files.open_files` and `pictures.open_resized`. Returns the number of
    images. Raises OSError, DataError, or PictureError, and then writes nothing."""
    resample = resample or ('bilinear' if longest else 'bicubic')
    ids, out = absolute(ids), Path(os.path.abspath(out))
    files = open_files(source, ids, allow_broken)
    count = len(files.ids)
    stored = np.array([stored_size(*sides, size, longest, square) for sides in files.sizes.tolist()], np.int64)
    needed = stored.prod(1) * 3
    table = np.zeros(count, [('id', files.ids.dtype), ('path', files.paths.dtype), ('size', '<i4', 2), ('stored', '<i4', 2),
                             ('start', '<i8'), ('crc', '<u4'), ('sha256', 'u1', 32)])
    for name, column in (('id', files.ids), ('path', files.paths), ('size', files.sizes), ('stored', stored),
                         ('start', np.cumsum(needed) - needed)):
        table[name] = column

    def work(decoder, i):
        data, sha256 = files.read(i)
        picture, original = decoder.decode(files.where(i), data, (None, stored[i, ::-1].tolist(), FILTERS[resample], reduced))
        files.check_unchanged(i)
        files.check_size(i, original)
        return picture, sha256

    out.parent.mkdir(parents=True, exist_ok=True)
    check_free_space(out.parent, needed.sum(), out.name, 'make room, choose another --out, or a smaller --size')
    with locked(out, lambda: note(f'{out}: waiting for the process that makes it')), atomic_folder(out) as folder:
        with (open(folder / 'pixels.bin', 'wb') as file,
              ProgressBar(in_parallel(work, range(count)), f'Converting {Path(source).name}', count, unit=' images') as bar):
            for row, (picture, sha256) in zip(table, bar, strict=True):
                row['crc'], row['sha256'] = zlib.crc32(picture), sha256
                file.write(picture)
        np.save(folder / 'table.npy', table)
        np.save(folder / 'states.npy', files.states)
        write_json(folder / 'meta.json', {
            'version': VERSION, 'images': count, 'bytes': int(needed.sum()), 'size': size, 'longest': longest, 'square': square,
            'filter': resample, 'reduced': reduced, 'source': os.path.abspath(source), 'ids': ids, 'left out': files.left_out,
            'sha256 of the images': digest(table['sha256']),
            'sha256 of the table': digest(table)})
    return count
