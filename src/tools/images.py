"""Converts images to pixel stores, and checks images. The program behind run/images.bash, see --help."""

import argparse
import os
import sys
from pathlib import Path

from cli import positive, run_main
from files.progress import ProgressBar
from images import pixel_store
from images.ids import HELP as IDS_HELP
from images.image_files import find_files
from images.pixel_store import FILTERS, PixelStore


def convert(options) -> int:
    out = Path(options.out)
    if out.suffix != '.pixels':
        options.error(f'--out: expected a name ending in .pixels, found {out}')
    if out.exists() and not PixelStore.is_store(out):
        options.error(f'--out: {out} exists and is no pixel store; name another folder')
    if options.square and options.longest:
        options.error('--square, --longest: expected one of them, found both; leave one out')
    if options.longest and options.longest < options.size:
        options.error(f'--longest: expected at least --size {options.size}, found {options.longest}')
    count = pixel_store.write(options.source, out, options.size, options.longest, options.square, options.filter, options.ids,
                              options.allowBroken, options.reduced)
    print(f'{out}: {count:,} images, {os.path.getsize(out / "pixels.bin") / 1e9:.2f} GB')
    return 0


def check(options) -> int:
    status = 0
    for path in options.source:
        files = PixelStore(path) if PixelStore.is_store(path) else find_files(path, options.ids)
        faults = 0
        with ProgressBar(files.faults(), f'Checking {Path(path).name}', len(files.ids), unit=' images') as bar:
            for fault in filter(None, bar):
                faults += 1
                print(fault)
        print(f'{path}: {len(files.ids):,} images, {faults:,} broken')
        status |= bool(faults)
    return status


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='run/images.bash', description='Looks after images that models read as pixels.',
                                     epilog='Exit status: 0 well, 1 something is wrong with the images, 2 wrong usage.')
    commands = parser.add_subparsers(metavar='SUBCOMMAND', required=True)

    def add(name, run, text):
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.', allow_abbrev=False)
        command.set_defaults(run=run, error=command.error)
        command.add_argument('--ids', default='stem', metavar='stem|path|FILE', help=f'{IDS_HELP}; default: stem')
        return command

    command = add('convert', convert, 'decode and resize images once, to a pixel store: for small datasets and slow disks')
    command.add_argument('source', metavar='FOLDER|LIST|ZIP', help='a zip is not unpacked')
    command.add_argument('--out', required=True, metavar='X.pixels', help='a folder; an older store is replaced')
    command.add_argument('--size', type=positive, required=True, metavar='N', help='pixels of the shorter side; smaller images '
                         'stay as they are')
    command.add_argument('--longest', type=positive, metavar='N', help="resize as VL-BERT does, with at most N pixels of the "
                         'longer side: --size 600 --longest 1000 (VCR 1200) stores exactly its input')
    command.add_argument('--square', action='store_true', help='resize to size x size, as ALBEF does outside of training: --size '
                         '384 --square stores exactly its input')
    command.add_argument('--filter', choices=tuple(FILTERS), help='default: bicubic, as in ALBEF; with --longest bilinear')
    command.add_argument('--reduced', action='store_true', help='decode JPEGs at 1/2, 1/4 or 1/8 of their size where that leaves '
                         'enough pixels: faster for large photographs, but pixels change')
    command.add_argument('--allowBroken', action='store_true', help='leave out images that cannot be used, and list them')
    command = add('check', check, 'decode all images, or compare the checksums of a pixel store, and list what is broken')
    command.add_argument('source', metavar='FOLDER|LIST|ZIP|X.pixels', nargs='+')
    return parser


def main(argv=None) -> int:
    options = make_parser().parse_args(argv)
    return run_main('images.bash', lambda: options.run(options), 'interrupted; repeat the command to start again')


if __name__ == '__main__':
    sys.exit(main())
