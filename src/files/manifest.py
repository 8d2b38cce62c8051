"""The published files (data/manifest.json), and the folder that they are downloaded to."""

import json
import re
from dataclasses import MISSING as REQUIRED
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from files.atomic import locked, sha256, write_json
from files.json_files import DataError, first_duplicate, read_json
from files.text import shown

NAME = r'\w[\w.-]*'
PATH = rf'{NAME}(/{NAME})+'
ADDRESS = r'(https?|s3)://[!-~]+|hf://[!-.0-~]+/[!-.0-~]+/[!-~]+'
# Of an entry of the record: patterns of the values as json.
KEYS = {'size': r'\d{1,18}', 'sha256': r'"[0-9a-f]{64}"', 'mtime_ns': r'-?\d{1,20}', 'address': r'".+"', 'date': r'".+"'}
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
        require(self, path=matches(PATH, [self.path]), addresses=self.addresses and matches(ADDRESS, self.addresses),
                members=matches(NAME, self.members), format=self.format in ('', 'jsonl'), note=is_text(self.note),
                size=self.size is None or (type(self.size) is int and self.size >= 0))

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

    def __post_init__(self):
        texts = {key: is_text(getattr(self, key)) for key in ('about', 'size', 'source', 'instead')}
        require(self, made=matches(PATH, self.made), **texts)


def matches(pattern, texts):
    return isinstance(texts, list | tuple) and all(isinstance(text, str) and re.fullmatch(pattern, text) for text in texts)


def is_text(value):
    return isinstance(value, str) and value.isprintable()


def require(values, **valid):
    """Raises ValueError that names the first key of a dataclass that is not valid."""
    for key, is_valid in valid.items():
        if not is_valid:
            raise ValueError(f'invalid {key}: {shown(getattr(values, key))}')


def build(kind, values):
    """The File or FileSet of an object of the manifest. Raises ValueError."""
    keys = {field.name: field.default is REQUIRED for field in fields(kind)}
    if not isinstance(values, dict) or values.keys() - keys or any(keys[key] and key not in values for key in keys):
        raise ValueError(f'expected {", ".join(f"{key} (required)" if keys[key] else key for key in keys)}, found '
                         f'{shown(list(values) if isinstance(values, dict) else values)}')
    return kind(**values)


def read(path):
    """{name: FileSet} of a manifest. Raises FileNotFoundError, or DataError that names the file, the set and the key."""
    sets, paths = read_json(path, 'the manifest of what can be downloaded', dict), []
    for name, values in sets.items():
        if not re.fullmatch(NAME, name):
            raise DataError(f'{path}: expected names of sets, found {shown(name)}')
        try:
            files = values.get('files') if isinstance(values, dict) else None
            if not isinstance(files, list):
                raise ValueError(f'expected an object with a list of files, found {shown(values)}')
            sets[name] = build(FileSet, values | {'files': [build(File, file) for file in files]})
        except ValueError as error:
            raise DataError(f'{path}: {name}: {error}') from None
        paths += [path for file in sets[name].files for path in {file.path, *file.results}]
    if twice := first_duplicate(paths):
        raise DataError(f'{path}: expected each path once, found {twice} twice')
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
        entries = read_json(self.record, 'a record of downloaded files', dict) if self.record.exists() else {}
        for path, entry in entries.items():
            if not (isinstance(entry, dict) and all(re.fullmatch(pattern, json.dumps(entry.get(key)))
                                                    for key, pattern in KEYS.items())):
                raise DataError(f'{self.record}: {shown(path)}: expected {", ".join(sorted(KEYS))} of a file, found '
                                f'{shown(entry)}; correct it, or remove it: then existing files are not verified')
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
