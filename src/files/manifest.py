"""What there is to download (data/manifest.json), and what came of it (manifest.lock.json beside what was fetched)."""

import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from files.atomic import byte_bar as progress
from files.atomic import write_json
from files.json_files import DataError, field, read_json

SET_KEYS = {'about': str, 'size': str, 'source': str, 'instead': str, 'made': list, 'files': list}
FILE_KEYS = {'path': str, 'addresses': list, 'members': list, 'size': int, 'format': str, 'note': str}
NAME = r'\w[\w.-]*'
ADDRESS = r'(https?|s3|hf)://\S+'
LOCK = 'manifest.lock.json'
MISSING, WHOLE, UNCHECKED, CHANGED = 'missing', 'whole', 'there, not fetched by this command', 'changed since it was fetched'


@dataclass(frozen=True)
class File:
    """A file to fetch: where it ends, below the target, and its addresses, the best first.

    members: of a zip, the names of the files that are wanted of it, which end beside it. size: bytes, where known. format:
    'jsonl' where a .json has a value a line. note: for people.
    """

    path: str
    addresses: tuple
    members: tuple = ()
    size: int | None = None
    format: str = ''
    note: str = ''

    @property
    def results(self):
        """The paths that are wanted in the end."""
        folder = self.path.rpartition('/')[0]
        return tuple(f'{folder}/{member}' for member in self.members) or (self.path,)


@dataclass(frozen=True)
class Set:
    """What one word of the command stands for.

    about: a sentence; size: a text, as published; source: whose it is, and its licence; instead: what to do where it cannot be
    fetched, which also makes the paths `made`.
    """

    name: str
    about: str
    files: tuple
    size: str = ''
    source: str = ''
    instead: str = ''
    made: tuple = ()


def read(path):
    """{name: Set} of a manifest. Raises FileNotFoundError or DataError that names the file and the key."""
    sets = read_json(path, 'the manifest of what can be downloaded')
    if not isinstance(sets, dict):
        raise DataError(f'{path}: expected an object of sets, found {type(sets).__name__}')
    found = {name: read_set(name, values, f'{path}: {name}') for name, values in sets.items()}
    seen = set()
    for one in (result for each in found.values() for file in each.files for result in {file.path, *file.results}):
        if one in seen:
            raise DataError(f'{path}: expected each path once, found {one} twice')
        seen.add(one)
    return found


def read_set(name, values, where):
    values = checked(values, SET_KEYS, ('about', 'files'), where)
    files = tuple(read_file(file, f'{where}.files[{place}]') for place, file in enumerate(values.pop('files')))
    made = matching(values.pop('made', ()), rf'{NAME}(/{NAME})+', f'{where}.made')
    return Set(name, files=files, made=made, **values)


def read_file(values, where):
    values = checked(values, FILE_KEYS, ('path', 'addresses'), where)
    matching([values['path']], rf'{NAME}(/{NAME})+', f'{where}.path')
    values['addresses'] = matching(values['addresses'], ADDRESS, f'{where}.addresses')
    values['members'] = matching(values.get('members', ()), NAME, f'{where}.members')
    if not values['addresses']:
        raise DataError(f'{where}.addresses: expected at least one, found none')
    if values.get('format', 'jsonl') != 'jsonl':
        raise DataError(f'{where}.format: expected jsonl, or none, found {values["format"]!r}')
    return File(**values)


def checked(values, keys, needed, where):
    """A copy of an object whose keys are of {key: type}, `needed` among them; DataError if they are not."""
    for key in values if isinstance(values, dict) else ():
        if key not in keys:
            raise DataError(f'{where}.{key}: there is no such key; expected {", ".join(keys)}')
    return {key: field(values, key, kind, where) for key, kind in keys.items() if key in needed or key in values}


def matching(texts, pattern, where):
    """The texts as a tuple, each of which must match a pattern, else DataError."""
    for text in texts:
        if not isinstance(text, str) or not re.fullmatch(pattern, text):
            raise DataError(f'{where}: expected texts like {pattern}, found {text!r}')
    return tuple(texts)


class Lock:
    """What was fetched into a folder, by path as in the manifest: size, sha256, address, date, and the time of the file's last
    change, so that what is whole is known without being read again. Read anew each time: another process may write too."""

    def __init__(self, folder, held):
        """held: what to hold while the file is read and written again, a function of a name that returns a context."""
        self.path, self.held = Path(folder) / LOCK, held

    def entries(self):
        """{path: {'size', 'sha256', 'mtime_ns', 'address', 'date'}}. Raises DataError if the file is broken."""
        if not self.path.exists():
            return {}
        entries = read_json(self.path, 'a record of what was fetched')
        try:
            {(entry['size'] + entry['mtime_ns'], entry['sha256'] + entry['address'] + entry['date'])
             for entry in entries.values()}
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(f'{self.path}: expected size, sha256, mtime_ns, address and date of each file, found a fault at '
                            f'{error!r}; mend it, or remove it: then nothing that is there is checked') from None
        return entries

    def get(self, path):
        return self.entries().get(path)

    def put(self, path, file, sha256, address):
        """Records `file`, which is whole and is, or will be, the one of this path."""
        status = file.stat()
        with self.held(LOCK):
            write_json(self.path, self.entries() | {path: {
                'size': status.st_size, 'sha256': sha256, 'mtime_ns': status.st_mtime_ns, 'address': address,
                'date': datetime.now(UTC).isoformat(timespec='seconds')}})

    def state(self, path, file):
        """MISSING, WHOLE, UNCHECKED or CHANGED; the file is not read."""
        if not file.is_file():
            return MISSING
        if (entry := self.get(path)) is None:
            return UNCHECKED
        status = file.stat()
        return WHOLE if (status.st_size, status.st_mtime_ns) == (entry['size'], entry['mtime_ns']) else CHANGED


def sha256_of(path):
    """The digest of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file, progress(f'checking {path.name}', path.stat().st_size) as bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
