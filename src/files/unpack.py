"""Files extracted from a zip that was downloaded."""

import contextlib
import errno
import hashlib
import io
import stat
import struct
import zipfile
import zlib
from pathlib import PurePosixPath

from files.atomic import BLOCK, byte_bar, check_free_space
from files.json_files import FREE_EXPANSION, MAX_EXPANSION, DataError, some

# What zipfile raises where a zip is damaged; RuntimeError: encrypted.
DAMAGED = (EOFError, RuntimeError, ValueError, struct.error, zlib.error, zipfile.BadZipFile)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others can ask for gigabytes of memory
MAX_DIRECTORY = 8_000_000  # bytes that the names of the members take; in memory ten times as much


class LimitedFile(io.FileIO):
    """A zip, whose directory zipfile reads at once."""

    most = MAX_DIRECTORY

    def read(self, size=-1):
        if size > self.most:
            raise DataError(f'expected at most {self.most:,} bytes of names, found {size:,}')
        return super().read(size)


def check(archive, names):
    """Raises DataError, which names the zip, if it is damaged or has not exactly one safe member of each file name."""
    for name in names:
        with opened_member(archive, name, ''):
            pass


def extract(archive, name, file):
    """Writes the member of this file name, in whatever folder of the zip, to an open binary file; returns its sha256 in hex.

    zipfile compares the CRC. Raises DataError that names the zip: if it is damaged, has not exactly one such member, or the
    member has an unsafe path, is a link or expands too far; OSError where the disk is full or cannot be read.
    """
    digest = hashlib.sha256()
    with opened_member(archive, name, '; remove the zip and its entry in manifest.lock.json, and download it again') as (
            member, size):
        check_free_space(archive.parent, size, name, 'make room, or choose another folder (--to)')
        with byte_bar(f'extracting {name}', size) as bar:
            while block := member.read(BLOCK):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
    return digest.hexdigest()


@contextlib.contextmanager
def opened_member(archive, name, advice):
    """(the member of this name, opened to read; its size). Raises DataError, which ends with `advice`, also for errors inside."""
    try:
        with LimitedFile(archive) as file, zipfile.ZipFile(file) as opened:
            info = find(opened.infolist(), name)
            with opened.open(info) as member:
                yield member, info.file_size
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is an offset outside of the file
            if error.errno is None or error.filename:
                raise
            raise OSError(error.errno, error.strerror, f'{name} of {archive}') from None
        raise DataError(f'{archive}: {name} cannot be extracted: {error}{advice}') from None


def find(members, name):
    """The one member (ZipInfo) of this file name. Raises DataError if it is missing, ambiguous, unsafe, a link or a bomb."""
    named = [info for info in members if PurePosixPath(info.filename).name == name and not info.is_dir()]
    if len(named) != 1:
        raise DataError(f'expected it once, found {len(named)} in {some(info.filename for info in named or members)}')
    info, path = named[0], PurePosixPath(named[0].filename)
    if path.is_absolute() or '..' in path.parts:
        raise DataError(f'{path} is a path outside the folder')
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise DataError(f'{path} is a link or a special file')
    if info.compress_type not in METHODS:
        raise DataError(f'expected it stored or deflated, found compression method {info.compress_type}')
    if info.file_size > max(FREE_EXPANSION, MAX_EXPANSION * info.compress_size):
        raise DataError(f'expected at most {MAX_EXPANSION} times its {info.compress_size:,} bytes in the zip, found '
                        f'{info.file_size:,}')
    return info
