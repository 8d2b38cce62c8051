"""Looking after regions: `python -m tools.regions SUBCOMMAND ...` (run/regions.bash), see --help.

Exit status 0: well; 1: something is wrong with the regions; 2: wrong usage.
"""

import argparse
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from explain import region_drawing
from regions import checks, importers, readers, source, stats, store, store_files, tsv
from regions.class_names import Names
from regions.readers import RegionError
from regions.store import RegionStore


class UsageError(Exception):
    """The command asks for what cannot be done; the message names the flag."""


def convert(options) -> int:
    """Make the store of each TSV, unless it is there and made from the file as it is now; go on with one begun."""
    for path in map(Path, options.tsv):
        if path.is_dir():
            raise UsageError(f'{path}: expected a TSV or a zip with one, found a folder')
        opened = store.convert(_tsv_path(path), options.storeRoot, options.dtype)
        print(f'{opened.folder}: {_counts(opened.meta)}')
    return 0


def info(options) -> int:
    regions = source.opened(options.path)
    if isinstance(regions, RegionStore):
        _store_info(regions)
        return 0
    digest, count = hashlib.sha256(), 0
    for line in regions.lines():
        digest.update(line)
        count += 1
    _, first = next(tsv.read(regions, lambda fault: None), (0, None))
    print(f'{regions.where}: TSV of {regions.size:,} bytes, {count:,} lines')
    print(f'  first whole line: image {first.img_id}, {len(first.boxes)} regions of {first.features.shape[1]} numbers' if first
          else '  no whole line; bash run/regions.bash check says why')
    print(f'  sha256      {digest.hexdigest()}')
    print(f'  provenance  {json.dumps(readers.provenance(regions) or None)}')
    folder = store.store_folder(_tsv_path(options.path), options.storeRoot)
    if folder.is_dir():
        _store_info(RegionStore(folder))
    else:
        print(f'  no store yet ({folder}); bash run/regions.bash convert {options.path}')
    return 0


def check(options) -> int:
    path, faults = options.path, 0

    def on_fault(fault):
        nonlocal faults
        faults += 1
        print(fault)

    # What is wrong with the command is told before the file is read.
    if options.published and (published := checks.published(path)) is None:
        raise UsageError(f'{path}: --published: expected a name that begins with {", ".join(checks.PUBLISHED)}')
    asked = {file: checks.asked(file) for file in options.questions or ()}
    img_ids = checks.check(path, on_fault, print)
    if options.published and len(img_ids) != published:
        on_fault(f'{path}: expected the {published:,} images that were published under this name, found {len(img_ids):,} whole '
                 'ones; fetch the file again')
    there = set(img_ids)
    for file, named in asked.items():
        if missing := named - there:
            on_fault(f'{file}: expected regions in {path} for its {len(named):,} images, found none for {len(missing):,}: '
                     f'{checks.some(missing)}; extract them, or leave their questions out')
    if asked:
        unasked = there.difference(*asked.values())
        print(f'{path}: {len(there):,} images with regions, {len(unasked):,} of them without questions'
              + (f': {checks.some(unasked)}' if unasked else ''))
    print(f'{path}: {len(img_ids):,} whole images, {faults:,} fault{"s" * (faults != 1)}'
          + ('; bash run/regions.bash repair writes the whole lines' if faults and not Path(path).is_dir() else ''))
    return 1 if faults else 0


def repair(options) -> int:
    if Path(options.tsv).is_dir():
        raise UsageError(f'{options.tsv}: expected a TSV, found a folder; a store is made anew from its TSV')
    faults = []
    try:
        lines = checks.repair(options.tsv, options.out, lambda fault: (faults.append(fault), print(fault)))
    except FileExistsError as error:
        raise UsageError(error) from None
    print(f'{options.out}: {lines:,} whole lines; {len(faults):,} left out')
    return 0


def statistics(options) -> int:
    names = Names(options.names)
    one = stats.summarise(options.path, options.sample)
    print(stats.report(one, names))
    if not options.against:
        return 0
    other = stats.summarise(options.against, options.sample)
    print(stats.report(other, names))
    text, alike = stats.compare(one, other)
    print(text)
    return 0 if alike else 1


def draw(options) -> int:
    names, out = Names(options.names), Path(options.out)
    if options.most < 1:
        raise UsageError(f'--most: expected a number above 0, found {options.most}')
    out.mkdir(parents=True, exist_ok=True)
    status = 0
    for image in source.chosen(options.path, options.ids):
        file = out / region_drawing.file_name(image.img_id)
        try:
            photo = region_drawing.find_photo(options.photos, image.img_id) if options.photos else None
            region_drawing.draw(image, names, photo, options.most).save(file)
        except RegionError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        print(f'{file}: ' + ', '.join(region_drawing.label(image, region, names) for region in region_drawing.surest(image, options.most)))
    return status


def import_regions(options) -> int:
    path, out = Path(options.path), Path(options.out)
    if out.suffix not in ('.tsv', '.store'):
        raise UsageError(f'--out: expected a name ending in .tsv or .store, found {out}')
    if out.suffix == '.tsv' and options.dtype != 'float32':
        raise UsageError(f'--dtype: expected float32 for a TSV, found {options.dtype}; write a .store')
    note = readers.provenance_path(out)
    for there in (out, note):
        if there.exists():
            raise UsageError(f'--out: {there} is there already, and is not overwritten; name another')
    provenance = {'imported from': str(path.resolve()), 'imported at': datetime.now(UTC).isoformat(timespec='seconds'),
                  'made by': options.madeBy}
    images = importers.read(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == '.store':
        store.write(out, images, provenance, dtype=options.dtype)
        print(f'{out}: {_counts(RegionStore(out).meta)}')
        return 0
    print(f'{out}: {tsv.write(out, images):,} images')
    store_files.write_json(note, provenance)
    return 0


def _store_info(opened: RegionStore) -> None:
    meta = opened.meta
    print(f'{opened.folder}: region store, format {meta["version"]}, {_counts(meta)}')
    print(f'  digest      {checks.store_digest(meta) or "made without digests"}')
    for name, array in opened.arrays.items():
        print(f'  {name:15}{array.dtype!s:9}{array.shape!s:20}{array.nbytes:18,} bytes')
    if made_from := meta['source']:
        print(f'  made from   {made_from["name"]}, {made_from["size"]:,} bytes, sha256 {made_from["sha256"]}')
    else:
        print('  made from   no TSV')
    print(f'  provenance  {json.dumps(meta.get("provenance"))}')


def _tsv_path(path) -> Path:
    """The name of the TSV for which a zip stands (see `origin`), after which its store is named."""
    path = Path(path)
    return path.with_suffix('.tsv') if path.suffix == '.zip' else path


def _counts(meta: dict) -> str:
    return (f'{meta["images"]:,} images, {meta["regions"]:,} regions ({meta["min_regions"]} to {meta["max_regions"]} an image) '
            f'of {meta["feature_size"]} {np.dtype(meta["dtypes"]["features"])}')


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog='run/regions.bash', description='Looks after regions: TSV files and region stores.',
                                  epilog='Exit status: 0 well, 1 something is wrong with the regions, 2 wrong usage.')
    commands = top.add_subparsers(metavar='SUBCOMMAND', required=True)

    def command(name, run, text, path='path'):
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.', allow_abbrev=False)
        made.set_defaults(run=run)
        if path:
            made.add_argument(path, metavar={'path': 'TSV|ZIP|STORE', 'tsv': 'TSV|ZIP'}[path])
        return made

    made = command('convert', convert, 'make the region store of each TSV, as training does on first use', path=None)
    made.add_argument('tsv', metavar='TSV|ZIP', nargs='+', help='a published zip is not unpacked')
    made.add_argument('--dtype', choices=('float32', 'float16'), default='float32', help='of the features (float32, exact)')
    made.add_argument('--storeRoot', help='folder for stores where that of the TSV cannot be written')
    made = command('info', info, 'counts, sizes, dtypes, provenance and digest')
    made.add_argument('--storeRoot', help='where the store of a TSV is, if not beside it')
    made = command('check', check, 'find every fault in one pass, with line and image')
    made.add_argument('--published', action='store_true', help='also count the images of a published file, known by its name: '
                      + ', '.join(f'{name} {count:,}' for name, count in checks.PUBLISHED.items()))
    made.add_argument('--questions', nargs='+', metavar='JSON', help='also name images of these questions without regions')
    made = command('repair', repair, 'write the whole lines byte for byte and list the others', path='tsv')
    made.add_argument('--out', required=True, metavar='TSV', help='a new file; nothing is overwritten')
    made = command('stats', statistics, 'features, boxes and classes in numbers')
    made.add_argument('--against', metavar='TSV|STORE', help='compare: status 1 if another detector seems to have made it')
    made.add_argument('--names', metavar='DIR', help='folder of objects_vocab.txt and attributes_vocab.txt')
    made.add_argument('--sample', type=int, default=5000, help='images taken from a store at random (5000; 0: all)')
    made = command('show', draw, 'draw the regions of images, as PNG')
    made.add_argument('--ids', nargs='+', required=True, metavar='ID')
    made.add_argument('--photos', metavar='DIR', help='folder of <id>.jpg or .png; without it on a blank canvas')
    made.add_argument('--names', metavar='DIR', help='folder of objects_vocab.txt and attributes_vocab.txt')
    made.add_argument('--most', type=int, default=20, metavar='N', help='the N surest regions of each image (20)')
    made.add_argument('--out', required=True, metavar='DIR')
    made = command('import', import_regions, 'make a TSV or store of a folder of .npz or .npy files, or of HDF5', path=None)
    made.add_argument('path', metavar='FOLDER|FILE.h5', help='keys and layouts: the head of src/regions/importers.py')
    made.add_argument('--out', required=True, metavar='X.tsv|X.store', help='a new file or folder; nothing is overwritten')
    made.add_argument('--dtype', choices=('float32', 'float16'), default='float32', help='of the features of a store (float32)')
    made.add_argument('--madeBy', metavar='TEXT', help='which detector and weights made the features, for the record')
    return top


def main(argv: list[str]) -> int:
    """Run a subcommand; returns the exit status."""
    options = parser().parse_args(argv)
    try:
        return options.run(options)
    except RegionError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f'run/regions.bash: {error}; look whether it can be written, and has room', file=sys.stderr)
        return 1
    except UsageError as error:
        print(f'run/regions.bash: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
