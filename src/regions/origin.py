"""Where the lines of a TSV come from: the file itself, or the published .zip beside it, read as a stream, never unpacked.

Where `train2014_obj36.tsv` is missing but `train2014_obj36.zip` lies beside it, its member of that name (in whatever
folder inside), or else its only `.tsv`, is read instead.
"""

import contextlib
import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from regions.tsv import RegionError

READ_ERRORS = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


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
        with self._explained():
            if self.member is None:
                with open(self.path, 'rb') as file:
                    yield file
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                    yield file

    def sha256(self) -> str:
        """The digest of the TSV, the same whether it comes from a zip or not."""
        with self.open() as file:
            return hashlib.file_digest(file, 'sha256').hexdigest()

    def meta(self, sha256: str) -> dict:
        """What a store's meta.json records as its source; size and sha256 are those of the TSV text."""
        return {'name': self.path.name, 'size': self.size, 'mtime_ns': self.mtime_ns, 'sha256': sha256}

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except RegionError:
            raise
        except READ_ERRORS as error:
            todo = 'check the path and its rights' if isinstance(error, OSError) else 'the zip is damaged, fetch it again'
            raise RegionError(f'{self.where}: cannot be read ({error}); {todo}') from error


def find(tsv_path) -> Source | None:
    """The source of a TSV: the file, else the zip beside it, else None. Raises RegionError for a zip without it."""
    path = Path(tsv_path)
    if path.is_file():
        stat = path.stat()
        return Source(path, stat.st_size, stat.st_mtime_ns)
    archive = path.with_suffix('.zip')
    if path.suffix != '.tsv' or not archive.is_file():
        return None
    stat = archive.stat()
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if info.filename.endswith('.tsv')]
    except READ_ERRORS as error:
        raise RegionError(f'{archive}: expected a whole zip file, found none ({error}); fetch it again') from None
    found = [info for info in members if os.path.basename(info.filename) == path.name] or members
    if len(found) != 1:
        names = ', '.join(info.filename for info in found[:3]) or 'none'
        raise RegionError(f'{archive}: expected one {path.name} in it, found {names}; extract the file by hand')
    return Source(archive, found[0].file_size, stat.st_mtime_ns, found[0].filename)

