"""Converts, checks, repairs, compares, draws and imports regions. The program behind run/regions.bash, see --help.

Exit status 0: well; 1: something is wrong with the regions; 2: wrong usage.
"""

import argparse
import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from cli import run_main
from explain import drawing
from files.atomic import write_json
from files.json_files import some
from files.text import printable
from images.ids import HELP as IDS_HELP
from regions import checks, importers, readers, stats, store, tsv
from regions.class_names import ClassNames
from regions.image_regions import FORMS
from regions.store import RegionStore
from regions.tsv import RegionError

NAMED = 5  # how many images a message names


def convert(options) -> int:
    """Make the store of each TSV, unless it exists and was made from the file as it is now."""
    for path in map(Path, options.tsv):
        if path.is_dir():
            options.error(f'{path}: expected a TSV or a zip with one, found a folder')
        converted = store.convert(_tsv_path(path), options.storeRoot, options.dtype)
        print(f'{converted.folder}: {_counts(converted.meta)}')
    return 0


def info(options) -> int:
    regions = readers.open_file(options.path)
    if isinstance(regions, RegionStore):
        _store_info(regions)
        return 0
    digest, count = hashlib.sha256(), 0
    for line in regions.lines():
        digest.update(line)
        count += 1
    _, first = next(tsv.read(regions, lambda fault: None), (0, None))
    print(printable(f'{regions.where}: TSV of {regions.size:,} bytes, {count:,} lines'))
    print(f'  first complete line: image {first.img_id}, {len(first.boxes)} regions of {first.features.shape[1]} numbers' if first
          else '  no complete line; bash run/regions.bash check says why')
    print(f'  sha256      {digest.hexdigest()}')
    print(f'  provenance  {json.dumps(tsv.provenance(regions) or None)}')
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

    # What is wrong with the command is reported before the file is read.
    if options.published and (published := checks.published(path)) is None:
        options.error(f'{path}: --published: expected a name that begins with {", ".join(checks.PUBLISHED)}')
    questions = {file: checks.question_images(file) for file in options.questions or ()}
    valid = checks.check(path, on_fault, print)
    if options.published and len(valid) != published:
        on_fault(f'{path}: expected the {published:,} images that were published under this name, found {len(valid):,} whole '
                 'ones; fetch the file again')
    img_ids = set(valid)
    for file, asked in questions.items():
        if missing := asked - img_ids:
            difference = f'. {readers.id_difference(missing, path, img_ids)}' if len(missing) == len(asked) else ''
            on_fault(f'{file}: expected regions in {path} for its {len(asked):,} images, found none for {len(missing):,}: '
                     f'{some(sorted(missing), NAMED)}; extract them, or leave their questions out{difference}')
    if questions:
        unasked = img_ids.difference(*questions.values())
        print(f'{path}: {len(img_ids):,} images with regions, {len(unasked):,} of them without questions'
              + (f': {some(sorted(unasked), NAMED)}' if unasked else ''))
    print(f'{path}: {len(valid):,} whole images, {faults:,} fault{"s" * (faults != 1)}'
          + ('; bash run/regions.bash repair writes the complete lines' if faults and valid and not Path(path).is_dir() else ''))
    return 1 if faults else 0


def repair(options) -> int:
    if Path(options.tsv).is_dir():
        options.error(f'{options.tsv}: expected a TSV, found a folder; a store is made anew from its TSV')
    if Path(options.out).exists():
        options.error(f'--out: {options.out} exists, and is not overwritten; name another file')
    faults = []
    lines = checks.repair(options.tsv, options.out, lambda fault: (faults.append(fault), print(fault)))
    print(f'{options.out}: {lines:,} complete lines; {len(faults):,} left out')
    return 0


def statistics(options) -> int:
    names, files = ClassNames(options.names), [options.path, *([options.against] if options.against else ())]
    summaries = []
    for path in files:
        summaries.append(stats.summarise(path, options.sample))
        print(stats.report(summaries[-1], names))
    if options.against:
        print(stats.compare(*summaries))
    return 0


def draw(options) -> int:
    names, out = ClassNames(options.names), Path(options.out)
    if options.most < 1:
        options.error(f'--most: expected a number above 0, found {options.most}')
    out.mkdir(parents=True, exist_ok=True)
    status = 0
    for image in readers.chosen(options.path, options.ids):
        file = out / drawing.file_name(image.img_id)
        try:
            photo = drawing.find_photo(options.photos, image.img_id) if options.photos else None
            drawing.draw_regions(image, names, photo, options.most).save(file)
        except RegionError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        labels = [drawing.label(image, region, names) for region in drawing.surest(image, options.most)]
        print(f'{file}: {", ".join(labels)}')
    return status


def import_regions(options) -> int:
    path, out = Path(options.path), Path(options.out)
    if out.suffix not in ('.tsv', '.store'):
        options.error(f'--out: expected a name ending in .tsv or .store, found {out}')
    if out.suffix == '.tsv' and options.dtype != 'float32':
        options.error(f'--dtype: expected float32 for a TSV, found {options.dtype}; write a .store')
    note = tsv.provenance_path(out)
    for existing in (out, note):
        if existing.exists():
            options.error(f'--out: {existing} exists, and is not overwritten; name another')
    provenance = {'imported from': str(path.resolve()), 'imported at': datetime.now(UTC).isoformat(timespec='seconds'),
                  'made by': options.madeBy}
    images = importers.Importer(path, options.boxes, options.swapSize, options.ids, options.sizes, options.allowBroken)
    provenance['notes'] = images.notes  # complete when all images are read, and before the provenance is written
    if options.allowBroken:
        provenance['left out'] = images.left_out
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == '.store':
        store.write(out, images, provenance, dtype=options.dtype)
        print(f'{out}: {_counts(RegionStore(out).meta)}')
    else:
        print(f'{out}: {tsv.write(out, images):,} images')
        write_json(note, provenance)
    for text in images.notes:
        print(printable(f'  {text}'))
    if images.left_out:
        print(printable(f'  left out {len(images.left_out):,} faulty images (all in the provenance):'))
        print(tsv.listed(images.left_out))
    return 0


def _store_info(regions: RegionStore) -> None:
    meta = regions.meta
    print(f'{regions.folder}: region store, format {meta["version"]}, {_counts(meta)}')
    print(f'  digest      {regions.digest() or "made without digests"}')
    width = max(15, *(len(name) + 1 for name in regions.arrays))
    for name, array in regions.arrays.items():
        print(f'  {name:{width}}{array.dtype!s:9}{array.shape!s:20}{array.nbytes:18,} bytes')
    if source := meta['source']:
        print(printable(f'  made from   {source["name"]}, {source["size"]:,} bytes, sha256 {source["sha256"]}'))
    else:
        print('  made from   no TSV')
    print(f'  provenance  {json.dumps(meta.get("provenance"))}')


def _tsv_path(path) -> Path:
    """The name of the TSV in a zip, after which its store is named; any other path as it is."""
    path = Path(path)
    return path.with_suffix('.tsv') if path.suffix == '.zip' else path


def _counts(meta: dict) -> str:
    features = f'of {meta["feature_size"]} {np.dtype(meta["dtypes"]["features"])}' if meta['feature_size'] else 'without features'
    optional = ''.join(f', {name} of {size}' for name, size in meta.get('optional_columns', {}).items())
    return (f'{meta["images"]:,} images, {meta["regions"]:,} regions ({meta["min_regions"]} to {meta["max_regions"]} an image) '
            f'{features}{optional}')


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='run/regions.bash', description='Looks after regions: TSV files and region stores.',
                                     epilog='Exit status: 0 well, 1 something is wrong with the regions, 2 wrong usage.')
    commands = parser.add_subparsers(metavar='SUBCOMMAND', required=True)

    def add(name, run, text, **arguments):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.', allow_abbrev=False)
        command.set_defaults(run=run, error=command.error)
        for argument, settings in arguments.items():
            command.add_argument(argument, **settings)
        return command

    regions, names = {'metavar': 'TSV|ZIP|STORE'}, {'metavar': 'DIR', 'help': 'folder of objects_vocab.txt, attributes_vocab.txt'}
    dtype = {'choices': ('float32', 'float16'), 'default': 'float32', 'help': "of a store's features (float32, exact)"}
    command = add('convert', convert, 'make the region store of each TSV, as training does on first use',
                  tsv={'metavar': 'TSV|ZIP', 'nargs': '+', 'help': 'a published zip is not unpacked'})
    command.add_argument('--dtype', **dtype)
    command.add_argument('--storeRoot', help='folder for stores where that of the TSV cannot be written')
    command = add('info', info, 'counts, sizes, dtypes, provenance and digest', path=regions)
    command.add_argument('--storeRoot', help='where the store of a TSV is, if not beside it')
    command = add('check', check, 'find every fault in one pass, with line and image', path=regions)
    command.add_argument('--published', action='store_true', help='also count the images of a published file, known by its '
                         'name: ' + ', '.join(f'{name} {count:,}' for name, count in checks.PUBLISHED.items()))
    command.add_argument('--questions', nargs='+', metavar='JSON', help='also name images of these questions without regions')
    command = add('repair', repair, 'write the complete lines byte for byte and list the others', tsv={'metavar': 'TSV|ZIP'})
    command.add_argument('--out', required=True, metavar='TSV', help='a new file; nothing is overwritten')
    command = add('stats', statistics, 'features, boxes and classes in numbers', path=regions)
    command.add_argument('--against', metavar='TSV|STORE', help='print the same of these, and the differences')
    command.add_argument('--names', **names)
    command.add_argument('--sample', type=int, default=5000, help='images taken from a store at random (5000; 0: all)')
    command = add('show', draw, 'draw the regions of images, as PNG', path=regions)
    command.add_argument('--ids', nargs='+', required=True, metavar='ID')
    command.add_argument('--photos', metavar='DIR', help='folder of <id>.jpg or .png; without it on a blank canvas')
    command.add_argument('--names', **names)
    command.add_argument('--most', type=int, default=20, metavar='N', help='the N surest regions of each image (20)')
    command.add_argument('--out', required=True, metavar='DIR')
    command = add('import', import_regions, 'make a TSV or store of a folder of .npz, .npy or .json files, a zip of .json files, '
                  'HDF5, or a TSV of another layout',
                  path={'metavar': 'FOLDER|FILE', 'help': 'layouts and keys: the head of src/regions/importers.py'})
    command.add_argument('--out', required=True, metavar='X.tsv|X.store', help='a new file or folder; nothing is overwritten')
    command.add_argument('--dtype', **dtype)
    command.add_argument('--boxes', default='pixels', metavar='FORM', help='form of the boxes in the file, several with commas: '
                         + '; '.join(f'{name}: {text}' for name, text in FORMS.items()))
    command.add_argument('--swapSize', action='store_true', help='height and width are exchanged in the file')
    command.add_argument('--ids', metavar='stem|path|FILE', help=f'{IDS_HELP}; for HDF5 without ids also a json {{id: row}}')
    command.add_argument('--sizes', metavar='JSON', help="COCO's annotations, such as instances_val2014.json, for the sizes of "
                         'images that are not in the file')
    command.add_argument('--allowBroken', action='store_true', help='leave out faulty images, and list them')
    command.add_argument('--madeBy', metavar='TEXT', help='which detector and weights made the features, for the record')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    options = make_parser().parse_args(argv)
    return run_main('regions.bash', lambda: options.run(options))


if __name__ == '__main__':
    sys.exit(main())
