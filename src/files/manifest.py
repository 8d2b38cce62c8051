"""The published files (data/manifest.json), and the folder that they are downloaded to."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from files.atomic import locked, sha256, write_json
from files.json_files import DataError, read_json

NAME = r'\w[\w.-]*'
PATH = rf'{NAME}(/{NAME})+'
ADDRESS = r'(https?|s3)://\S+|hf://[^/\s]+/[^/\s]+/\S+'
KEYS = {'size', 'sha256', 'mtime_ns', 'address', 'date'}  # of an entry of the record
MISSING, COMPLETE, UNKNOWN, CHANGED = 'missing', 'complete', 'not downloaded by this command', 'changed since it was downloaded'


@dataclass(frozen=True)
class File:
    """A published file.

    path: below the target folder; addresses: the best first; members: names of the files to extract from a zip, into its folder;
    size: bytes, where known; format: 'jsonl' for a .json with one value a line; note: for people.
    """

    path: str
    addresses: list
    members: list = ()
    size: int | None = None
    format: str = ''
    note: str = ''

    def __post_init__(self):
        valid = {
            'path': matches(PATH, [self.path]), 'addresses': self.addresses and matches(ADDRESS, self.addresses),
            'members': matches(NAME, self.members), 'size': self.size is None or type(self.size) is int,
            'format': self.format in ('', 'jsonl')}
        for key, is_valid in valid.items():
            if not is_valid:
                raise ValueError(f'invalid {key}: {getattr(self, key)!r}')

    @property
    def results(self):
        """The paths to have in the end: of the members, or of the file itself."""
        return [f'{self.path.rpartition("/")[0]}/{member}' for member in self.members] or [self.path]


@dataclass(frozen=True)
class FileSet:
    """What one argument of the command stands for.

    about: a sentence; files: list of File; size, source (whose it is, and its licence): for people; instead: how to get or make
    the files without this command, and also the paths `made`, which are not published.
    """

    about: str
    files: list
    size: str = ''
    source: str = ''
    instead: str = ''
    made: list = ()


def matches(pattern, texts):
    return isinstance(texts, list | tuple) and all(isinstance(text, str) and re.fullmatch(pattern, text) for text in texts)


def read(path):
    """{name: FileSet} of a manifest. Raises FileNotFoundError, or DataError that names the file, the set and the key."""
    sets = read_json(path, 'the manifest of what can be downloaded')
    name, paths = 'expected an object of sets', []
    try:
        for name, values in sets.items():
            sets[name] = FileSet(**values | {'files': [File(**file) for file in values['files']]})
            paths += [path for file in sets[name].files for path in {file.path, *file.results}]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f'{path}: {name}: {error}') from None
    if twice := {path for path in paths if paths.count(path) > 1}:
        raise DataError(f'{path}: expected each path once, found {", ".join(sorted(twice))} twice')
    return sets


class Target:
    """The folder that files are downloaded to, and the record of those downloaded, its manifest.lock.json: {path in the manifest:
    size, sha256, mtime_ns, address, date}. The record is read anew each time, since another process may write it.

    folder: default data, but snap for the pre-trained weights, where training looks for them.
    """

    def __init__(self, folder=None):
        self.folder = Path(folder or 'data')
        self.weights = self.folder if folder else Path('snap')
        self.record = self.folder / 'manifest.lock.json'

    def file(self, path):
        """Where the file of a path of the manifest is."""
        return (self.weights if path.startswith('pretrained/') else self.folder) / path

    def locked(self, path, on_wait=None):
        """Holds the lock of a path of the manifest. Locks lie in one folder, so that none remain beside the files."""
        return locked(self.folder / '.locks' / path.replace('/', '-'), on_wait)

    def entries(self):
        """The record. Raises DataError if it is broken."""
        entries = read_json(self.record, 'a record of downloaded files') if self.record.exists() else {}
        if not isinstance(entries, dict) or any(not isinstance(entry, dict) or KEYS - entry.keys() for entry in entries.values()):
            raise DataError(f'{self.record}: expected {", ".join(sorted(KEYS))} of each file; correct it, or remove it: then '
                            'existing files are not verified')
        return entries

    def add(self, path, file, sha256, address, date=None):
        """Records a complete `file`, which has, or gets afterwards, the name of this path."""
        status = file.stat()
        entry = {'size': status.st_size, 'sha256': sha256, 'mtime_ns': status.st_mtime_ns, 'address': address,
                 'date': date or datetime.now(UTC).isoformat(timespec='seconds')}
        with self.locked(self.record.name):
            write_json(self.record, self.entries() | {path: entry})

    def size(self, path, published=None):
        """Bytes of the existing file of a path, else of the one that was downloaded, else the published number or None."""
        file = self.file(path)
        return file.stat().st_size if file.is_file() else self.entries().get(path, {}).get('size', published)

    def state(self, path, verify=False):
        """MISSING, UNKNOWN, COMPLETE or CHANGED, by the size and modification time of a file; with verify by its sha256."""
        file, entry = self.file(path), self.entries().get(path)
        if not file.is_file():
            return MISSING
        if entry is None:
            return UNKNOWN
        if verify:
            return COMPLETE if sha256(file) == entry['sha256'] else CHANGED
        status = file.stat()
        return COMPLETE if (status.st_size, status.st_mtime_ns) == (entry['size'], entry['mtime_ns']) else CHANGED

    def exists(self, path, verify):
        """Whether the file of a path is there. Raises DataError if it is not the one that was downloaded.

        verify: compare the sha256 also where size and modification time are those of the record.
        """
        state, file = self.state(path), self.file(path)
        if state == CHANGED or (verify and state == COMPLETE):
            entry, digest = self.entries()[path], sha256(file)
            if digest != entry['sha256']:
                raise DataError(
                    f'{file}: expected {entry["size"]:,} bytes, sha256 {entry["sha256"]}, downloaded from {entry["address"]} on '
                    f'{entry["date"]}; found {file.stat().st_size:,} bytes, sha256 {digest}. Remove it to download it again, or '
                    f'remove its entry "{path}" in {self.record} to keep it')
            self.add(path, file, digest, entry['address'], entry['date'])  # only copied or touched
        return state != MISSING
