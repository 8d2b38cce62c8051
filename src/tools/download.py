"""Downloads the published files: `python -m tools.download WHAT ...` (run/download.bash), see --help.

Exit status 0: all files are there; 1: some are missing, the others were downloaded; 2: wrong usage; 130: stopped by Ctrl-C, the
same command resumes.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from cli import run_main
from files import download, manifest, unpack
from files.atomic import atomic_file, sha256
from files.download import DownloadError, is_offline
from files.json_files import DataError, check_json
from files.manifest import COMPLETE, MISSING, Target

MANIFEST = Path(__file__).resolve().parents[2] / 'data/manifest.json'
PROGRAM = 'run/download.bash'


def get(file, target, options):
    """Downloads and extracts one file of the manifest, unless it is there. Raises DataError or OSError."""
    archive = target.file(file.path)
    archive.parent.mkdir(parents=True, exist_ok=True)
    with target.locked(file.path, lambda: print(f'{file.path}: another process downloads it; waiting', flush=True)):
        missing = [path for path in file.results if not target.exists(path, options.verify)]
        if missing and not target.exists(file.path, options.verify):
            fetch(file, target, options.offline)
        if not file.members or options.keepZips:
            return
        source = target.entries().get(file.path, {}).get('address', str(archive))
        for path in missing:
            with atomic_file(target.file(path)) as output:
                digest = unpack.extract(archive, Path(path).name, output)
                output.flush()
                target.add(path, Path(output.name), digest, source)
        # Zips and members that this command did not download are kept.
        if all(target.state(path) == COMPLETE for path in (file.path, *file.results)):
            archive.unlink()


def fetch(file, target, offline):
    """Downloads a file from the first address that gives it, checks it, and records it."""
    path, entry = target.file(file.path), target.entries().get(file.path, {})
    if is_offline(offline):
        raise DownloadError(f'{path}: missing, and nothing is downloaded offline; leave --offline out, or put it there')
    # One temporary name for each address, so that a download is not lost while another address is tried.
    names = {path.with_name(f'{path.name}.from{number}'): address for number, address in enumerate(file.addresses, 1)}
    try:
        for name in sorted(names, key=lambda name: not name.with_name(f'{name.name}.part').exists()):
            print(f'{path}: from {names[name]}', flush=True)
            try:
                download.fetch(names[name], name, entry.get('size', file.size), entry.get('sha256'))
                if path.suffix == '.json':
                    check_json(name, file.format == 'jsonl')
                unpack.check(name, file.members)
                target.add(file.path, name, sha256(name), names[name])
                os.replace(name, path)
                return
            except (OSError, DataError) as error:  # whatever is wrong with one address, the next may be right
                name.unlink(missing_ok=True)
                print(error, file=sys.stderr, flush=True)
    finally:
        for leftover in path.parent.glob(f'{path.name}.from*' if path.exists() else f'{path.name}.from*.lock'):
            leftover.unlink()
    known = entry and (f'. The file of {entry["date"]} from {entry["address"]} had {entry["size"]:,} bytes and sha256 '
                       f'{entry["sha256"]}. To accept a new edition, remove the entry "{file.path}" in {target.record}, and '
                       'what was made of the old one')
    raise DownloadError(f'{path}: no address gave it{known or ""}; try again later, or download it by hand')


def show(sets, target, options):
    """Prints path, size and state of every file, and how to get those that are missing, with --list how to get each.

    Returns whether none is missing.
    """
    is_complete = True
    for name, files in sets.items():
        print(f'{name}: {files.about}' + ''.join(f' ({text})' for text in (files.size, files.source) if text))
        missing = False
        for file in files.files:
            is_zipped = options.keepZips and target.state(file.path) != MISSING
            paths = {file.path} if is_zipped else dict.fromkeys([*file.results, file.path] if options.list else file.results)
            states = {path: target.state(path, options.list and options.verify) for path in paths}
            for path, state in states.items():
                size = target.size(path, file.size if path == file.path else None)
                print(f'  {target.file(path)!s:48}{"size unknown" if size is None else f"{size:,} bytes":>22}  {state}')
            if options.list or MISSING in states.values():
                print(''.join(f'    {line}\n' for line in (*file.addresses, file.note) if line), end='')
            missing |= MISSING in states.values()
        if options.list and files.made:
            print(f'  not published: {", ".join(str(target.file(path)) for path in files.made)}')
        if files.instead and (options.list or missing):
            print(f'  {files.instead}')
        is_complete &= not missing
    return is_complete


def make_parser(sets):
    words = '\n'.join(f'  {name:16}{files.about}' + (f' ({files.size})' if files.size else '') for name, files in sets.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        description=f'Downloads published files, resumes interrupted downloads, verifies them. WHAT: one or more of\n\n{words}',
        epilog='Exit status: 0 all files are there, 1 some are missing (the others were downloaded), 2 wrong usage.')
    parser.add_argument('what', nargs='+', metavar='WHAT', choices=sets, help='see above')
    parser.add_argument('--to', metavar='FOLDER', help='target folder (default: data, and snap/pretrained for the pre-trained '
                        'weights; with --to FOLDER/pretrained)')
    parser.add_argument('--list', action='store_true', help='only show each file, its path, size, state and addresses, without '
                        'a network')
    parser.add_argument('--offline', action='store_true', help='download nothing: only verify, extract, and list what is missing')
    parser.add_argument('--verify', action='store_true', help='also compare the sha256 of existing files')
    parser.add_argument('--keepZips', action='store_true', help='keep zips and do not extract them: training reads features from '
                        'zips too, and a region store is made from either')
    return parser


def run(sets, options):
    """Runs the program on {name: FileSet}; returns the exit status."""
    target, failed = Target(options.to), False
    if options.list:
        show(sets, target, options)
        return 0
    for file in (file for files in sets.values() for file in files.files):
        try:
            get(file, target, options)
        except (OSError, DataError) as error:  # the other files are downloaded all the same
            failed = True
            print(f'{file.path}: {error}', file=sys.stderr, flush=True)
    if show(sets, target, options):
        return int(failed)
    print(f'The same command {"without --offline " if is_offline(options.offline) else ""}downloads what is missing, and resumes '
          'what was interrupted. Files can also be downloaded by hand from the addresses above.')
    return 1


def main(argv, path=MANIFEST):
    """Runs the program with a manifest; returns the exit status."""
    try:
        sets = manifest.read(path)
    except (DataError, OSError) as error:
        print(f'{PROGRAM}: error: {error}', file=sys.stderr)
        return 2
    options = make_parser(sets).parse_args(argv)
    chosen = {name: sets[name] for name in options.what}
    return run_main(PROGRAM, lambda: run(chosen, options), 'interrupted; what was downloaded is kept, and the same command '
                    f'resumes: bash {PROGRAM} {shlex.join(argv)}')


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
