"""Where the lines of a TSV come from: the file itself, or the published .zip, read as a stream, never unpacked.

Where `train2014_obj36.tsv` is missing but `train2014_obj36.zip` lies beside it, or where the zip itself is named, its
member of that name (in whatever folder inside), or else its only `.tsv`, is read instead.
"""

import contextlib
import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

BUFFER, LINE_LIMIT = 1 << 20, 64 << 20  # bytes
ZIP_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)  # the last: encrypted, or packed by unknown means


class RegionError(ValueError):
    """Regions that cannot be used; the message names file, line or image, what was expected, found, and what to do."""


@dataclass(frozen=True)
class Source:
    """`size` bytes of TSV in the file `path`; `member` is their name in it if that is a zip. `where` is for messages."""

    path: Path
    size: int
    mtime_ns: int
    member: str | None = None

    @property
    def where(self) -> str:
        return f'{self.path}/{self.member}' if self.member else str(self.path)

    @contextlib.contextmanager
    def open(self):
        """The TSV's bytes from its start, a binary stream. Raises RegionError, also for what goes wrong in the block."""
        errors = OSError if self.member is None else ZIP_ERRORS
        try:
            if self.member is None:
                with open(self.path, 'rb', BUFFER) as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                    yield io.BufferedReader(file, BUFFER)
        except errors as error:
            todo = 'check the path and its rights' if isinstance(error, OSError) else 'the zip is damaged, fetch it again'
            raise RegionError(f'{self.where}: cannot be read ({error}); {todo}') from error

    def lines(self) -> Iterator[bytes]:
        """Each line with its end, one at a time, under a progress bar in bytes. Raises RegionError as `open`."""
        with self.open() as stream, progress(self.path.name, self.size) as bar:
            for line in self.lines_of(stream):
                bar.update(len(line))
                yield line

    def lines_of(self, stream) -> Iterator[bytes]:
        """What `lines` yields, from where an open stream is."""
        while line := stream.readline(LINE_LIMIT):
            if len(line) == LINE_LIMIT and not line.endswith(b'\n'):
                raise RegionError(f'{self.where}: expected lines of up to {LINE_LIMIT} bytes, found a longer one that begins '
                                  f'with {line[:40]!r}; is it such a TSV? Fetch it again')
            yield line

    def sha256(self) -> str:
        """The digest of the TSV, the same whether it comes from a zip or not."""
        digest = hashlib.sha256()
        with self.open() as stream, progress(self.path.name, self.size) as bar:
            while block := stream.read(1 << 20):
                digest.update(block)
                bar.update(len(block))
        return digest.hexdigest()

    def meta(self, sha256: str) -> dict:
        """What a store's meta.json records as its source; size and sha256 are those of the TSV text."""
        return {'name': self.path.name, 'size': self.size, 'mtime_ns': self.mtime_ns, 'sha256': sha256}


def find(path) -> Source | None:
    """The source of a TSV: the file, else the zip of its name; or of a .zip. None if there is neither.

    Raises RegionError for a zip without it.
    """
    path = Path(path)
    archive = path.with_suffix('.zip') if path.suffix == '.tsv' and not path.exists() else path
    if not archive.is_file():
        return None
    stat = archive.stat()
    if archive.suffix != '.zip':
        return Source(path, stat.st_size, stat.st_mtime_ns)
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if info.filename.endswith('.tsv')]
    except ZIP_ERRORS as error:
        raise RegionError(f'{archive}: expected a whole zip file, found none ({error}); fetch it again') from None
    name = path.with_suffix('.tsv').name
    found = [info for info in members if os.path.basename(info.filename) == name] or members
    if len(found) != 1:
        names = ', '.join(info.filename for info in found[:3]) or 'none'
        raise RegionError(f'{archive}: expected one {name} in it, found {names}; extract the file by hand')
    return Source(archive, found[0].file_size, stat.st_mtime_ns, found[0].filename)


def need(path) -> Source:
    """As `find`, but raises RegionError where that returns None."""
    if (source := find(path)) is None:
        raise RegionError(f'{path}: cannot be read, there is no such file (nor, of a .tsv, a .zip); correct the path')
    return source


def provenance_path(tsv_path) -> Path:
    """Where it is written how a TSV was made, for which the TSV itself has no room."""
    path = Path(tsv_path)
    return Path(f'{path.with_suffix(".tsv") if path.suffix == ".zip" else path}.provenance.json')


def provenance(source: Source) -> dict:
    """How the TSV was made, as far as a file beside it tells, else {}. Raises RegionError if that is no json object."""
    path = provenance_path(source.path)
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RegionError(f'{path}: expected a json object that says how {source.path.name} was made, found none ({error}); '
                          'mend or remove it') from None
    if not isinstance(told, dict):
        raise RegionError(f'{path}: expected a json object that says how {source.path.name} was made, found '
                          f'{type(told).__name__}; mend or remove it')
    return told


def listed(faults: list, most: int = 20) -> str:
    """Faults for a message, a line each: the first ones, and how many more there are."""
    more = f'\n  and {len(faults) - most} more' if len(faults) > most else ''
    return '\n'.join(f'  {fault}' for fault in faults[:most]) + more


def progress(name: str, size: int) -> tqdm:
    """A progress bar in bytes."""
    return tqdm(total=size, unit='B', unit_scale=True, desc=name, disable=None)
