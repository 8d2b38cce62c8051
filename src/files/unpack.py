"""Members of a zip that came from a network, unpacked without trust in what the zip says of itself."""

import errno
import hashlib
import os
import shutil
import stat
import struct
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

from files.atomic import byte_bar as progress
from files.json_files import DataError, some
from files.manifest import LOCK
from regions.tsv import ZIP_ERRORS

RATIO = 200  # most bytes that one packed byte may become: json of questions becomes 10 to 30, a bomb of zeros 1,000
BLOCK = 1 << 20  # bytes
AGAIN = f'remove it, and its entry in {LOCK}, and fetch it again'
DAMAGE = (*ZIP_ERRORS, ValueError, struct.error)  # what zipfile raises of numbers in a zip that make no sense, too
ENCRYPTED = 1 | 1 << 6 | 1 << 13  # bits of a member's flags: packed with a password, strongly, or its header hidden
FAULTS = {  # of a member's name (str) or ZipInfo; what is wrong with it where the function says so
    'an absolute path': lambda name, info: name.startswith('/'),
    'a drive letter': lambda name, info: name[1:2] == ':',
    'a backslash in its name': lambda name, info: '\\' in name,
    'a zero byte in its name': lambda name, info: '\0' in name,
    'a path with ..': lambda name, info: '..' in PurePosixPath(name).parts,
    'a link or special file': lambda name, info: stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR),
    'encrypted': lambda name, info: info.flag_bits & ENCRYPTED,
}


class UnpackError(ValueError):
    """A zip that is damaged, or is not to be unpacked; the message names it, and its member."""


def unpack(archive, names, folder, done):
    """Unpacks the members of these file names, in whatever folder inside, one at a time.

    archive: path of the zip; names: list of str, such as train2014_obj36.tsv; folder: where to. Calls done(name, path, sha256
    in hex) with each: a whole file under a temporary name, checked against the zip's CRC, which `done` renames; what it leaves
    is removed. Writes nothing before all members have passed: raises UnpackError for a zip that is not whole, that has not each
    name exactly once, or any member that leaves the folder, is no plain file, occurs twice, is encrypted, or would become more
    than RATIO times its packed size, and where the disk has no room or cannot be written.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = opened.infolist()
            check(infos, archive)
            chosen = [choose(infos, name, archive) for name in names]
            check_room(sum(info.file_size for info in chosen), archive, folder)
            for name, info in zip(names, chosen, strict=True):
                part = folder / f'{name}.unpacking'
                try:
                    done(name, part, copy(opened, info, part, archive))
                finally:
                    part.unlink(missing_ok=True)
    except (UnpackError, DataError):  # the second: of what `done` does
        raise
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # of the disk, not of what the zip holds
            raise UnpackError(f'{folder}: {archive.name} cannot be unpacked there ({error.strerror}); make room, or name '
                              'another folder by --to') from None
        raise UnpackError(f'{archive}: not a whole zip ({error}); {AGAIN}') from None


def check(infos, archive):
    """Raises UnpackError that names the first member (list of ZipInfo) which no zip of data has."""
    size = archive.stat().st_size
    for info in infos:
        name = info.orig_filename
        fault = next((fault for fault, found in FAULTS.items() if found(name, info)), None)
        if fault is None and info.file_size > RATIO * min(info.compress_size, size):
            fault = f'to become {info.file_size:,} bytes of {min(info.compress_size, size):,}, more than {RATIO} of one'
        if fault:
            raise refused(archive, name, fault)
    name, count = Counter(info.filename for info in infos).most_common(1)[0] if infos else ('', 0)
    if count > 1:
        raise refused(archive, name, f'there {count} times')


def choose(infos, name, archive):
    """The one member of this file name. Raises UnpackError that lists the members if there is none, or more than one."""
    found = [info for info in infos if not info.is_dir() and PurePosixPath(info.filename).name == name]
    if len(found) != 1:
        members = some(info.filename for info in found or infos) or 'nothing'
        raise UnpackError(f'{archive}: expected {name} once, in whatever folder, found {len(found) or "none"}; there is '
                          f'{members}. Is it the zip that its name says? Unpack it by hand, or {AGAIN}')
    return found[0]


def check_room(size, archive, folder):
    """Raises UnpackError if the disk of a folder has less than `size` bytes."""
    if size > (free := shutil.disk_usage(folder).free):
        raise UnpackError(f'{folder}: {archive.name} needs {size:,} bytes unpacked, and the disk has {free:,}; make room, or '
                          'name another folder by --to; feature files are also read from their zips (--keepZips)')


def copy(opened, info, part, archive):
    """Writes a member of an open ZipFile to `part`, never more than it declares, and returns its sha256."""
    digest, count = hashlib.sha256(), 0
    with opened.open(info) as packed, open(part, 'wb') as file, progress(f'unpacking {part.stem}', info.file_size) as bar:
        while block := packed.read(BLOCK):
            count += len(block)
            if count > info.file_size:
                break
            file.write(block)
            digest.update(block)
            bar.update(len(block))
        file.flush()
        os.fsync(file.fileno())
    if count != info.file_size:
        raise refused(archive, info.filename, f'said to be of {info.file_size:,} bytes, and is not')
    return digest.hexdigest()


def refused(archive, name, fault):
    return UnpackError(f'{archive}: member {name!r} is {fault}: nothing is unpacked of such a zip; {AGAIN}, '
                       'from another address')
