"""Files and folders that appear under their final name only when complete; temporary ones, locks, free disk space, digests."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from files.progress import ProgressBar
from files.text import printable

BLOCK = 1 << 20  # bytes read at once for a digest
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a write, which do not name the file


@contextlib.contextmanager
def atomic_file(path, mode='wb', **options):
    """A file to write, which replaces `path` when the block ends without an error; else it is removed.

    mode, options: as for `open`. Its content is on disk (fsync) before it gets its name. Raises OSError that names the file.
    """
    path = Path(path)
    remove_leftovers(f'{path}.tmp-')
    temporary = path.with_name(f'{path.name}.tmp-{owner()}')
    file = open(temporary, mode, **options)  # noqa: SIM115
    try:
        with naming(path):
            yield file
            file.flush()
            os.fsync(file.fileno())
        file.close()
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # bytes that could not be written; the first error is the one to raise
            file.close()
        temporary.unlink(missing_ok=True)


def owner():
    """Names this process: PID@HOST. With it end the names of temporary files."""
    return f'{os.getpid()}@{socket.gethostname()}'


def remove_leftovers(prefix):
    """Removes files named `prefix`, anything, and the owner() of a process of this machine that was killed."""
    for name in glob.glob(f'{glob.escape(str(prefix))}*@{glob.escape(socket.gethostname())}'):
        try:
            os.kill(int(re.search(r'-(\d+)@[^@]*$', name)[1]), 0)
        except ProcessLookupError:
            with contextlib.suppress(OSError):  # removed by now
                os.unlink(name)
        except (TypeError, OSError):  # no such name, a process of another user
            pass


@contextlib.contextmanager
def naming(path, errors=FULL):
    """Adds the name of a file to an OSError in this block that has none. errors: of these numbers only; None: of all."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno and (errors is None or error.errno in errors):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_atomically(path, write):
    """Calls write(temporary path), then renames the file to `path`. For libraries that open the file themselves.

    Raises OSError that names the file, and leaves no temporary one, if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(path.name + '.part')
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError, with its own lines of code, where a disk is full
        internal = isinstance(error, RuntimeError) and ('enforce fail' in str(error) or 'Pytorch' in str(error))
        reason = 'a write failed' if internal else getattr(error, 'strerror', None) or str(error)
        free = ''
        with contextlib.suppress(OSError):
            free = f'{shutil.disk_usage(path.parent).free / 1e9:.1f} GB are free there; '
        raise OSError(f'{path}: cannot be written ({reason}); is the disk full? {free}earlier content is unchanged') from None
    finally:
        with contextlib.suppress(OSError):  # of a write that failed or was interrupted
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Replaces `path` by a text in UTF-8."""
    with atomic_file(path, 'w', encoding='utf-8') as file:
        file.write(text)


def write_json(path, value, indent=1):
    """Replaces `path` by a value as json."""
    write_text(path, json.dumps(value, indent=indent))


@contextlib.contextmanager
def atomic_folder(path):
    """A new folder to fill, which replaces the folder `path` when the block ends without an error; else it is removed.

    The caller holds the lock of `path`, so that temporary folders are those of a process that was killed; they are removed.
    """
    path = Path(path)
    temporary, replaced = (path.with_name(path.name + ending) for ending in ('.tmp', '.old'))
    if replaced.exists() and not path.exists():  # killed between the two renames
        replaced.rename(path)
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        if path.exists():
            path.rename(replaced)
        try:
            temporary.rename(path)
        except BaseException:
            if replaced.exists():
                replaced.rename(path)
            raise
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(prefix, parent=None, on_leftover=None):
    """A new folder below `parent`, or below $TMPDIR or /tmp, removed when the block ends.

    Those of processes that were killed are removed first, after on_leftover(folder). prefix: of the name, one for each program,
    such as 'lxmert-demo-'. A lock on the folder shows that its owner lives; processes forked from the owner hold it too.
    """
    parent = Path(parent or tempfile.gettempdir())
    for leftover in parent.glob(f'{glob.escape(prefix)}{8 * "[a-z0-9_]"}'):  # as mkdtemp names them
        with contextlib.suppress(OSError):  # in use, or of another user
            descriptor = _lock_folder(leftover, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if on_leftover:
                on_leftover(leftover)
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(descriptor)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FileNotFoundError):  # another process has removed it before it was locked
            descriptor = _lock_folder(folder, fcntl.LOCK_EX)
            if folder.exists():
                break
            os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _lock_folder(folder, flags):
    """Locks a folder of this user until the returned descriptor is closed. Raises OSError, with LOCK_NB also if it is locked."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.getuid():
            raise PermissionError(errno.EPERM, 'a folder of another user', str(folder))
        fcntl.flock(descriptor, flags)
    except OSError:
        if flags & fcntl.LOCK_NB:
            os.close(descriptor)
            raise  # so that nothing is removed; without LOCK_NB: a network disk without locks, where nobody removes anything
    return descriptor


def sync(path):
    """Puts the content of a file, or the names in a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path, on_wait=None, timeout=-1):
    """Holds the lock of those who write `path`: the file `path`.lock, which the system releases when its process ends or dies.

    on_wait: called once if another process holds it; timeout: seconds to wait after that, -1 for ever. Raises filelock.Timeout,
    or OSError where the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f'{path}.lock')
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait:
            on_wait()
        lock.acquire(timeout=timeout)
    try:
        yield
    finally:
        lock.release()


def check_free_space(folder, needed, what, advice):
    """Raises OSError if the disk of `folder` has less than `needed` bytes free. what: needs them; advice: what to do."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f'{what}: needs {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free; {advice}')


def byte_bar(name, size, delay=0):
    """A progress bar in bytes, shown on a terminal after `delay` seconds."""
    return ProgressBar(total=size, unit='B', unit_scale=True, desc=printable(name), delay=delay)


def sha256(path, start=0, bar=None):
    """The digest of a file from byte `start` on, in hexadecimal. bar: advances by the bytes read; None: a new progress bar."""
    path, digest = Path(path), hashlib.sha256()
    with (naming(path, None), open(path, 'rb', 0) as file,
          contextlib.nullcontext(bar) if bar is not None else byte_bar(f'checking {path.name}', path.stat().st_size) as bar):
        file.seek(start)
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
