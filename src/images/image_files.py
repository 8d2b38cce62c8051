"""Images in the files of a folder or a list, or in a zip: the state of each file, and its size in pixels, which an index keeps.

The index of FOLDER is the file FOLDER.index.npy: path, size in pixels and state of each image. A start measures only images that
are new or have changed since. It may be removed at any time.
"""

import contextlib
import hashlib
import os
import stat
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np

from files.atomic import atomic_file, locked
from files.progress import ProgressBar, note
from files.text import printable
from files.unpack import DAMAGED, METHODS, LimitedFile
from images.decoder import MAX_BYTES, PictureError
from images.ids import find_pictures
from images.pictures import in_parallel, open_resized

LISTED = 20  # broken images that a message names
LOCAL_HEADER = 30  # bytes before the name of a member of a zip
AGAIN = 'start again, so that every epoch sees the same images'


class Folder:
    """n images in files. paths (n,) bytes: of each, from `root`; states (n, 2) int64: its bytes and its time, see `state`."""

    def __init__(self, name, root, pictures):
        """name: of the folder or list; pictures: {image id: path}."""
        self.name, self.root = str(name), str(root)
        paths = [os.fsencode(self.relative(path)) for path in pictures.values()]
        self.ids, self.paths = np.array([img_id.encode() for img_id in pictures], np.bytes_), np.array(paths, np.bytes_)
        self.states = np.array([self.state(os.fsdecode(path)) for path in paths], np.int64)
        self.left_out = []  # ids of images that cannot be used

    @property
    def lengths(self):
        """(n,) int64: bytes of each image."""
        return self.states[:, 0]

    def relative(self, path):
        """A path from `root`, if it lies there: the index stays valid where the folder is named otherwise or moved."""
        return path.relative_to(self.root) if path.is_relative_to(self.root) else path

    def state(self, path):
        """What changes with a file: its bytes, -1 if it is no file, and its time in nanoseconds."""
        try:
            status = os.stat(os.path.join(self.root, path))
        except OSError:
            return -1, 0
        return status.st_size if stat.S_ISREG(status.st_mode) else -1, status.st_mtime_ns

    def where(self, i):
        """The name of an image for messages."""
        return os.path.join(self.root, os.fsdecode(self.paths[i]))

    def source(self, i):
        """What `pictures` opens: the path of an image, or its bytes."""
        return os.path.abspath(self.where(i))

    def read(self, i):
        """The bytes of an image, and their sha256, (32,) uint8."""
        source = self.source(i)
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        return data, np.frombuffer(hashlib.sha256(data).digest(), np.uint8)

    def check_unchanged(self, i):
        if self.state(os.fsdecode(self.paths[i])) != tuple(self.states[i].tolist()):
            raise PictureError(printable(f'{self.where(i)}: expected the file as it was at the start, found that it has changed '
                                         f'since; {AGAIN}'))

    def resized(self, i, box, size, resample, reduced):
        """As `pictures.open_resized`. Raises PictureError also for an image that has changed since the start."""
        try:
            picture, original = open_resized(self.source(i), self.where(i), box, size, resample, reduced)
        finally:
            self.check_unchanged(i)
        self.check_size(i, original)
        return picture

    def check_size(self, i, original):
        """Raises PictureError if an image is not as large as at the start. original: (width, height)."""
        height, width = self.sizes[i].tolist()
        if (width, height) != original:
            raise PictureError(printable(f'{self.where(i)}: expected {width} x {height} pixels as in the index of {self.name}, '
                                         f'found {original[0]} x {original[1]}; remove the index'))

    def faults(self):
        """Yields of each image the message of what is wrong with it, '' for none; all are decoded."""
        def fault(decoder, i):
            try:
                decoder.decode(self.where(i), self.source(i))
            except PictureError as error:
                return str(error)
            return ''

        return in_parallel(fault, range(len(self.ids)))


class Zip(Folder):
    """Images in a zip, which is not unpacked. states (n, 5): bytes, CRC, place, packed bytes, method of each member: the objects
    of zipfile would take a kilobyte each, in every process."""

    def __init__(self, name, ids):
        name = Path(name)
        self.file = open(name, 'rb', 0)  # noqa: SIM115, as long as this object lives
        self.members, self.zip_state = _members(name), self.file_state(name)
        super().__init__(name, '', find_pictures(name, ids=ids, members=self.members))
        del self.members

    def state(self, path):
        return self.members[path]

    @staticmethod
    def file_state(path):
        status = os.stat(path)
        return status.st_ino, status.st_size, status.st_mtime_ns

    def where(self, i):
        return f'{self.name}/{os.fsdecode(self.paths[i])}'

    def source(self, i):
        size, crc, place, packed, method = self.states[i].tolist()
        if method not in METHODS or max(size, packed) > MAX_BYTES:
            raise PictureError(printable(f'{self.where(i)}: expected at most {MAX_BYTES:,} bytes, stored or deflated, found '
                                         f'{size:,} and method {method}; leave it out, or zip it anew'))
        try:
            header = os.pread(self.file.fileno(), LOCAL_HEADER, place)
            data = os.pread(self.file.fileno(), packed, place + LOCAL_HEADER + sum(struct.unpack('<HH', header[26:])))
            if method == zipfile.ZIP_DEFLATED:
                data = zlib.decompressobj(-15).decompress(data, size + 1)
        except (struct.error, zlib.error):
            data = b''
        if len(data) != size or zlib.crc32(data) != crc:
            raise PictureError(printable(f'{self.where(i)}: expected a complete member of the zip, found a damaged one; fetch '
                                         'the zip again'))
        return data

    def check_unchanged(self, i):
        if self.file_state(self.name) != self.zip_state:
            raise PictureError(printable(f'{self.name}: expected the zip as it was at the start, found that it has changed '
                                         f'since; {AGAIN}'))


class Directory(LimitedFile):
    """A zip with the names of up to some million images."""

    most = 400_000_000


def _members(path):
    """{name: (bytes, CRC, place, packed bytes, method)} of a zip. Raises PictureError or OSError."""
    try:
        with Directory(path) as file, zipfile.ZipFile(file) as opened:
            return {info.filename: (info.file_size, info.CRC, max(info.header_offset, 0), info.compress_size, info.compress_type)
                    for info in opened.infolist() if not info.is_dir()}
    except DAMAGED as error:
        raise PictureError(printable(f'{path}: expected a zip of pictures, found one that cannot be read ({error}); fetch it '
                                     'again')) from None


def find_files(path, ids='stem'):
    """A Folder or Zip without the sizes of its images. Raises OSError, DataError, or PictureError."""
    path = Path(path)
    if path.suffix.lower() == '.zip' and path.is_file():
        return Zip(path, ids)
    return Folder(path, path if path.is_dir() else path.parent, find_pictures(path, ids=ids))


def open_files(path, ids='stem', allow_broken=False, index_root=None):
    """A Folder or Zip with `sizes` (n, 2) int32, height and width in pixels, upright.

    allow_broken: leave out images that cannot be used, and list them on stderr; index_root: folder for the index where that of
    `path` cannot be written. Raises as `find_files`, and PictureError that lists images that cannot be used.
    """
    files, index = find_files(path, ids), Path(os.path.abspath(path))
    if index_root:
        index = Path(index_root) / f'{index.name}-{hashlib.sha256(os.fsencode(index)).hexdigest()[:8]}'
    broken = _measure(files, index.with_name(index.name + '.index.npy'))
    if broken:
        known = known_sizes(files)
        more = f'\n  and {len(broken) - LISTED:,} more' if len(broken) > LISTED else ''
        advice = ' and are left out' if allow_broken else '; repair or remove them, or give --allowBroken to leave them out'
        text = (f'{path}: {len(broken):,} of {len(files.ids):,} images cannot be used{advice}:\n'
                + '\n'.join(f'  {fault}' for fault in broken[:LISTED]) + more)
        if not allow_broken or len(broken) == len(files.ids):
            raise PictureError(text)
        print(text, file=sys.stderr)
        files.left_out = [img_id.decode() for img_id in files.ids[~known].tolist()]
        for name in ('ids', 'paths', 'states', 'sizes'):
            setattr(files, name, getattr(files, name)[known])
    return files


def known_sizes(files):
    return files.sizes[:, 0] > 0


def _measure(files, index):
    """Sets the sizes of Files, from the index and, for others, from the images; returns messages of those that are broken."""
    _read_index(files, index)
    if known_sizes(files).all():
        return []
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a folder that cannot be written
            stack.enter_context(locked(index, lambda: note(f'{index}: waiting for the process that makes it')))
        _read_index(files, index)  # of a process that was waited for
        broken, missing = [], np.flatnonzero(~known_sizes(files)).tolist()
        with ProgressBar(in_parallel(lambda decoder, i: _size(files, decoder, i), missing), f'Measuring {Path(files.name).name}',
                         len(missing), unit=' images') as bar:
            for i, (size, fault) in zip(missing, bar, strict=True):
                files.sizes[i] = size
                if fault:
                    broken.append(fault)
        if len(broken) < len(missing):
            _write_index(files, index)
    return broken


def _size(files, decoder, i):
    """((height, width), '') of an image, or ((0, 0), message)."""
    try:
        return decoder.measure(files.where(i), files.source(i))[::-1], ''
    except PictureError as error:
        return (0, 0), str(error)


def _read_index(files, index):
    """Sets sizes: as in the index for images that are there as they are now, 0 for others."""
    files.sizes = np.zeros((len(files.ids), 2), np.int32)
    try:
        table = np.load(index, allow_pickle=False)
        paths, states, sizes = table['path'], table['state'], table['size']
        order = np.argsort(paths)
        if states.shape[1:] != files.states.shape[1:] or sizes.shape[1:] != (2,) or not len(order):
            return
    except (OSError, ValueError, TypeError, IndexError, EOFError):  # none, or not one that this code wrote
        return
    places = order[np.minimum(np.searchsorted(paths, files.paths, sorter=order), len(order) - 1)]
    same = (paths[places] == files.paths) & (states[places] == files.states).all(1)
    files.sizes[same] = sizes[places[same]]


def _write_index(files, index):
    known = known_sizes(files)
    dtype = [('path', files.paths.dtype), ('state', '<i8', files.states.shape[1:]), ('size', '<i4', 2)]
    table = np.empty(known.sum(), dtype)
    table['path'], table['state'], table['size'] = files.paths[known], files.states[known], files.sizes[known]
    try:
        with atomic_file(index) as file:
            np.save(file, table)
    except OSError as error:
        note(f'{index}: cannot be written ({error.strerror}), so that each start measures the images again')
