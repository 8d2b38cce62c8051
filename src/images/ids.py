"""Which pictures are meant, and the image ids that the datasets have for them."""

import os
import re
import sys
from pathlib import Path

from files.json_files import DataError, some
from images.pictures import ENDINGS

# In all of them the id is the name of the file without its ending; what else a name looks like would be of other pictures.
SPLITS = {'coco': (r'COCO_(train2014|val2014|test2014|test2015)_\d{12}', 'COCO_val2014_000000000042.jpg'),
          'gqa': (r'n?\d+', '2335684.jpg or n161313.jpg'),
          'nlvr2': (r'(train|dev|test1|test2)-\d+-\d+-img[01]', 'dev-896-0-img0.png')}


def find(source, split=None):
    """{image id: path} of the pictures of a folder, with all folders in it, in the order of their paths, or of a list.

    A list is a text with a path a line, relative to its own folder; its order is kept. split: a key of SPLITS, whose file names
    are then expected. Of a folder, what is left aside since its name has no picture's ending is told on stderr. Raises OSError,
    or DataError that names two files of one id, or names that do not fit.
    """
    source = Path(source)
    paths = _in_folder(source) if source.is_dir() else _listed(source)
    if not paths:
        raise DataError(f'{source}: expected pictures ({", ".join(ENDINGS)}), found none; correct --images')
    found = {}
    for path in paths:
        if (other := found.setdefault(path.stem, path)) is not path:
            raise DataError(f'{path}: its image id would be {path.stem}, which is that of {other}; leave one of the two out, or '
                            'rename it')
    if strange := [str(path) for img_id, path in found.items() if not img_id.isprintable() or img_id != img_id.strip()]:
        raise DataError(f'{strange[0]!a}: expected a name that can be an image id, without white space around it and '
                        'control characters; rename it')
    if split and (others := [path.name for img_id, path in found.items() if not re.fullmatch(SPLITS[split][0], img_id)]):
        raise DataError(f'--split {split}: expected file names such as {SPLITS[split][1]}, found {len(others):,} others: '
                        f'{some(others)}; rename them, leave them out, or leave out --split')
    return found


def _in_folder(folder):
    def stop(error):
        raise error

    found, others, seen = [], [], set()
    for place, folders, names in os.walk(folder, onerror=stop, followlinks=True):  # pictures often lie on another disk
        if (real := os.path.realpath(place)) in seen:  # a link to where it has been
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if not name.startswith('.'):
                (found if Path(name).suffix.lower() in ENDINGS else others).append(Path(place, name))
    if others:
        print(f'{folder}: left aside {len(others):,} files whose names do not end as those of pictures: '
              f'{some(ascii(str(path.relative_to(folder))) for path in sorted(others))}', file=sys.stderr)
    return sorted(found)


def _listed(file):
    if not file.is_file():
        raise FileNotFoundError(f'--images {file}: no such folder, nor a list of pictures; correct the path')
    try:
        lines = file.read_text(encoding='utf-8-sig').splitlines()  # Windows' editors put a mark before the first one
    except UnicodeDecodeError as error:
        raise DataError(f'{file}: expected a list of pictures in UTF-8, a path a line, found none ({error}); is it a picture?'
                        ) from None
    return [file.parent / line.strip() for line in lines if line.strip()]
