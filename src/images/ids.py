"""Finds the pictures of a folder or a list, and gives each its image id."""

import os
import re
import sys
from pathlib import Path

from files.json_files import DataError, some
from images.pictures import ENDINGS

# Pattern and example of the image ids of each dataset. The id is the file name without its ending.
SPLITS = {'coco': (r'COCO_(train2014|val2014|test2014|test2015)_\d{12}', 'COCO_val2014_000000000042.jpg'),
          'gqa': (r'n?\d+', '2335684.jpg or n161313.jpg'),
          'nlvr2': (r'(train|dev|test1|test2)-\d+-\d+-img[01]', 'dev-896-0-img0.png')}


def find_pictures(source, split=None):
    """{image id: path} of a folder with all its subfolders, in the order of the paths, or of a list, in its order.

    A list is a text file with one path per line, relative to its own folder. split: a key of SPLITS, whose file names are then
    required. Files of a folder without a picture's ending are skipped and listed on stderr. Raises OSError, or DataError that
    names two files of one id, or names that do not fit.
    """
    source = Path(source)
    paths = _pictures_in_folder(source) if source.is_dir() else _pictures_in_list(source)
    if not paths:
        raise DataError(f'{source}: expected pictures ({", ".join(ENDINGS)}), found none; correct --images')
    pictures = {}
    for path in paths:
        if (first := pictures.setdefault(path.stem, path)) is not path:
            raise DataError(f'{path}: its image id would be {path.stem}, which is that of {first}; leave one of the two out, or '
                            'rename it')
    if invalid := [str(path) for img_id, path in pictures.items() if not img_id.isprintable() or img_id != img_id.strip()]:
        raise DataError(f'{invalid[0]!a}: expected a name that can be an image id, without white space around it and '
                        'control characters; rename it')
    if split:
        pattern, example = SPLITS[split]
        if others := [path.name for img_id, path in pictures.items() if not re.fullmatch(pattern, img_id)]:
            raise DataError(f'--split {split}: expected file names such as {example}, found {len(others):,} others: '
                            f'{some(others)}; rename them, leave them out, or leave out --split')
    return pictures


def _pictures_in_folder(folder):
    def stop(error):
        raise error

    pictures, skipped, visited = [], [], set()
    for subfolder, subfolders, names in os.walk(folder, onerror=stop, followlinks=True):  # pictures often lie on another disk
        if (real := os.path.realpath(subfolder)) in visited:  # links may form a cycle
            subfolders.clear()
            continue
        visited.add(real)
        for name in names:
            if not name.startswith('.'):
                (pictures if Path(name).suffix.lower() in ENDINGS else skipped).append(Path(subfolder, name))
    if skipped:
        print(f'{folder}: skipped {len(skipped):,} files whose names do not end as those of pictures: '
              f'{some(ascii(str(path.relative_to(folder))) for path in sorted(skipped))}', file=sys.stderr)
    return sorted(pictures)


def _pictures_in_list(file):
    if not file.is_file():
        raise FileNotFoundError(f'--images {file}: no such folder, nor a list of pictures; correct the path')
    try:
        lines = file.read_text(encoding='utf-8-sig').splitlines()  # editors on Windows begin files with a byte order mark
    except UnicodeDecodeError as error:
        raise DataError(f'{file}: expected a list of pictures in UTF-8, one path per line, found none ({error}); is it a picture?'
                        ) from None
    return [file.parent / line.strip() for line in lines if line.strip()]
