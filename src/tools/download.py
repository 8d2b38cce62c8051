"""Fetching published files: `python -m tools.download WHAT ...` (run/download.bash), see --help.

Exit status 0: all that was asked for is there; 1: something is missing, the rest was fetched all the same; 2: wrong usage; 130:
stopped by Ctrl-C, the same command goes on.
"""

import argparse
import os
import shlex
import sys
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import ijson
from filelock import FileLock, Timeout

from files import download, manifest
from files.download import DownloadError
from files.json_files import DataError, opened
from files.manifest import CHANGED, MISSING, WHOLE, Lock, sha256_of
from files.unpack import UnpackError, unpack

MANIFEST = Path(__file__).resolve().parents[2] / 'data/manifest.json'
FAULTS = (OSError, UnpackError, DataError)  # of one file; the others are fetched all the same


class Target:
    """Where files end: below `to`, which is data where it is None; then the pre-trained weights are in snap, where training
    looks for them."""

    def __init__(self, to):
        self.folder = Path(to or 'data')
        self.weights = Path('snap') if to is None else self.folder
        self.lock = Lock(self.folder, self.held)
        self.silent = set()  # hosts that gave nothing, which are asked but once for the next files

    def place(self, path):
        """Where the file of a path of the manifest is."""
        return (self.weights if path.startswith('pretrained/') else self.folder) / path

    @contextmanager
    def held(self, path):
        """Only one process at a time works on a path; another waits, and says so."""
        folder = self.folder / '.locks'
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / path.replace('/', '-'))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f'{path}: another process is at work on it; waiting', flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def state(self, path, verify=False):
        """What the lock says of a path's file: a state of `manifest`. verify: its digest is taken, also of what looks whole."""
        state = self.lock.state(path, self.place(path))
        if verify and state in (WHOLE, CHANGED):
            state = WHOLE if sha256_of(self.place(path)) == self.lock.get(path)['sha256'] else CHANGED
        return state

    def is_there(self, path, verify):
        """Whether a path's file is there; DownloadError if it is not what was fetched. Nothing is overwritten."""
        file, entry = self.place(path), self.lock.get(path)
        state = self.lock.state(path, file)
        if state == CHANGED or (verify and state == WHOLE):
            if (found := sha256_of(file)) != entry['sha256']:
                raise DownloadError(
                    f'{file}: expected {entry["size"]:,} bytes, sha256 {entry["sha256"]}, which came from {entry["address"]} on '
                    f'{entry["date"]}; found {file.stat().st_size:,} bytes, sha256 {found}. Remove it to fetch it again, or, to '
                    f'keep it, its entry "{path}" in {self.lock.path}')
            if state == CHANGED:  # only copied or touched
                self.lock.put(path, file, found, entry['address'])
        return state != MISSING


def get(file, target, options):
    """Brings one file of the manifest to its place, unless it is there, and unpacks it. Raises one of FAULTS."""
    archive = target.place(file.path)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with target.held(file.path):
        missing = [path for path in file.results if not target.is_there(path, options.verify)]
        if missing and not target.is_there(file.path, options.verify):
            try:
                fetch(file, target, options)
            finally:
                remove(archive, '.from*.lock')  # of file_utils, which nobody else waits for while this path is held
        if not file.members or options.keepZips:
            return

        def done(name, part, sha256):
            path = file.results[file.members.index(name)]
            target.lock.put(path, part, sha256, (target.lock.get(file.path) or {}).get('address', str(archive)))
            os.replace(part, target.place(path))

        if missing:
            unpack(archive, [Path(path).name for path in missing], archive.parent, done)
        # Not a zip that somebody put there, nor one of which something else lies there than what is in it.
        if all(target.state(path) == WHOLE for path in (file.path, *file.results)):
            archive.unlink()


def fetch(file, target, options):
    """Fetches a file under a temporary name from the first address that gives it, checks it, records it, renames it."""
    path, entry = target.place(file.path), target.lock.get(file.path) or {}
    if download.is_offline(options.offline):
        raise DownloadError(f'{path}: is missing, and nothing is fetched offline')
    # What has come from one address is not lost while another is tried.
    news = {path.with_name(f'{path.name}.from{number}'): address for number, address in enumerate(file.addresses, 1)}
    for new in sorted(news, key=lambda new: not new.with_name(f'{new.name}.part').exists()):
        print(f'{path}: from {news[new]}', flush=True)
        host = 'hf' if news[new].startswith('hf:') else urlsplit(news[new]).netloc
        if host == 'hf' and host in target.silent:  # whose library tries often by itself
            print('The hub gave nothing before: not asked again.', file=sys.stderr, flush=True)
            continue
        try:
            download.fetch(news[new], new, size=entry.get('size', file.size), sha256=entry.get('sha256'),
                             tries=1 if host in target.silent else download.TRIES)
            if path.suffix == '.json':
                check_json(new, file.format == 'jsonl')
            break
        except (DownloadError, DataError) as error:
            if getattr(error, 'silent', False):
                target.silent.add(host)
            new.unlink(missing_ok=True)
            print(error, file=sys.stderr, flush=True)
    else:
        known = entry and (f'. What came on {entry["date"]} from {entry["address"]} had {entry["size"]:,} bytes and sha256 '
                           f'{entry["sha256"]}; if there is a new edition, and it is wanted, remove the entry "{file.path}" '
                           f'of {target.lock.path}, and what was made of the old one')
        raise DownloadError(f'{path}: none of its addresses gave it{known or ""}')
    target.lock.put(file.path, new, sha256_of(new), news[new])
    os.replace(new, path)
    remove(path, '.from*')


def remove(path, endings):
    """Removes what lies beside a path under its name with more at the end, a pattern."""
    for left in path.parent.glob(path.name + endings):
        left.unlink()


def check_json(path, many):
    """Reads a json file to its end, or many values one after the other. Raises DataError if it is none, or broken off."""
    try:
        with opened(path) as file:
            deque(ijson.basic_parse(file, multiple_values=many), maxlen=0)
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: expected json, found something else, or only a part ({" ".join(str(error).split())}); it is '
                        'removed') from None


def show(sets, target, verify):
    """Prints every file: where it ends, its size, whether it is there and whole, and its addresses."""
    for one in sets:
        print(f'{one.name}: {one.about}' + ''.join(f' ({text})' for text in (one.size, one.source) if text))
        for file in one.files:
            for path in file.results:
                print(f'  {target.place(path)}  {size_of(path, file, target)}  {target.state(path, verify)}')
            if file.members:
                print(f'    out of {target.place(file.path)}  {size_of(file.path, file, target)}  '
                      f'{target.state(file.path, verify)}')
            print(''.join(f'    {address}\n' for address in file.addresses) + (f'    {file.note}\n' if file.note else ''), end='')
        if one.made:
            print(f'  {", ".join(str(target.place(path)) for path in one.made)}: not published. {one.instead}')


def size_of(path, file, target):
    """The size of a path's file as a text: as it is there, was fetched, or stands in the manifest."""
    there = target.place(path)
    size = there.stat().st_size if there.is_file() else (target.lock.get(path) or {}).get('size') or (
        file.size if path == file.path else None)
    return 'size unknown' if size is None else f'{size:,} bytes'


def report(sets, target, keep_zips, offline):
    """Prints what is where, then what is missing and how to get it. Returns whether all is there."""
    missing, instead = [], {}
    print()
    for one in sets:
        for file in one.files:
            zipped = keep_zips and target.state(file.path) != MISSING
            for path in (file.path,) if zipped else file.results:
                state = target.state(path)
                print(f'{one.name:16}{target.place(path)!s:48}{size_of(path, file, target):>22}  {state}')
                if state == MISSING:
                    missing.append(file)
                    instead[one.instead] = None
    if missing:
        again = 'The same command without --offline gets' if offline else 'The same command tries again to get'
        print(f'\n{again} what is missing, from where it stopped. Or put there by hand:')
    for file in dict.fromkeys(missing):
        print(f'  {target.place(file.path)}  from {" or ".join(file.addresses)}')
    print(''.join(f'\n{text}\n' for text in instead if text), end='')
    return not missing


def parser(sets):
    told = '\n'.join(f'  {one.name:16}{one.about}' + (f' ({one.size})' if one.size else '') for one in sets.values())
    made = argparse.ArgumentParser(
        prog='run/download.bash', formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description=f'Fetches published files, goes on where it stopped, checks what came. WHAT is one or more of:\n\n{told}',
        epilog='Exit status: 0 all there, 1 something is missing (the rest was fetched), 2 wrong usage.')
    made.add_argument('what', nargs='+', metavar='WHAT', choices=sets, help='see above')
    made.add_argument('--to', metavar='FOLDER', help='folder to put them below (data; the pre-trained weights into '
                      'snap/pretrained, but with --to into FOLDER/pretrained)')
    made.add_argument('--list', action='store_true', help='only show each file, where it ends, its size, whether it is there and '
                      'whole, and its addresses; touches no network')
    made.add_argument('--offline', action='store_true', help='fetch nothing: only check, unpack, and say what is missing')
    made.add_argument('--verify', action='store_true', help='also take the digests of files that are there')
    made.add_argument('--keepZips', action='store_true', help='keep zips and do not unpack them: training reads features from '
                      'them as well, and a region store is made from either')
    return made


def main(argv, path=MANIFEST):
    """Runs the program with a manifest; returns the exit status."""
    try:
        every = manifest.read(path)
    except (DataError, OSError) as error:
        print(f'run/download.bash: {error}', file=sys.stderr)
        return 2
    options = parser(every).parse_args(argv)
    target, sets = Target(options.to), [every[name] for name in dict.fromkeys(options.what)]
    try:
        if options.list:
            show(sets, target, options.verify)
            return 0
        failed = False
        for file in (file for one in sets for file in one.files):
            try:
                get(file, target, options)
            except FAULTS as error:
                failed = True
                told = isinstance(error, (ValueError, DownloadError))  # what to do, too
                print(error if told else f'{file.path}: {error}; look whether {target.folder} can be written', file=sys.stderr,
                      flush=True)
        return 0 if report(sets, target, options.keepZips, download.is_offline(options.offline)) and not failed else 1
    except (DataError, OSError) as error:  # of the lock
        print(f'run/download.bash: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        again = f'bash run/download.bash {shlex.join(argv)}'
        print(f'\nStopped. What came is kept; the same command goes on: {again}', file=sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
