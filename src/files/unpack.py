"""Files extracted from a zip that was downloaded."""

import hashlib
import stat
import struct
import zipfile
import zlib
from pathlib import PurePosixPath

from files.atomic import BLOCK, byte_bar, check_free_space
from files.json_files import DataError, some

# What zipfile raises where a zip is damaged; RuntimeError: encrypted, or compressed by an unknown method.
DAMAGED = (OSError, EOFError, RuntimeError, ValueError, struct.error, zlib.error, zipfile.BadZipFile)


def extract(archive, name, file):
    """Writes the member of this file name, in whatever folder of the zip, to an open binary file; returns its sha256 in hex.

    zipfile compares the CRC. Raises DataError that names the zip: if it is damaged, has not exactly one such member, or the
    member has an unsafe path or is a link, or the disk is full.
    """
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(archive) as opened:
            info = find(opened.infolist(), name)
            check_free_space(archive.parent, info.file_size, name, 'make room, or choose another folder (--to)')
            with opened.open(info) as member, byte_bar(f'extracting {name}', info.file_size) as bar:
                while block := member.read(BLOCK):
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
    except DAMAGED as error:
        raise DataError(f'{archive}: {name} cannot be extracted: {error}. Unless the disk is full, remove the zip and its entry '
                        'in manifest.lock.json, and download it again') from None
    return digest.hexdigest()


def find(members, name):
    """The one member (ZipInfo) of this file name. Raises DataError if it is missing, ambiguous, unsafe or a link."""
    named = [info for info in members if PurePosixPath(info.filename).name == name and not info.is_dir()]
    if len(named) != 1:
        raise DataError(f'expected it once, found {len(named)} in {some(info.filename for info in named or members)}')
    path = PurePosixPath(named[0].filename)
    if path.is_absolute() or '..' in path.parts:
        raise DataError(f'{path} is a path outside the folder')
    if stat.S_IFMT(named[0].external_attr >> 16) not in (0, stat.S_IFREG):
        raise DataError(f'{path} is a link or a special file')
    return named[0]
