"""Finds the pictures of a folder or a list, and gives each its image id."""

import os
import re
import sys
from pathlib import Path, PurePosixPath

from files.json_files import DataError, read_json, some
from files.text import shown

ENDINGS = ('.jpg', '.jpeg', '.png', '.gif', '.bmp', '.webp', '.tif', '.tiff')  # of pictures
# Pattern and example of the image ids of each dataset. The id is the file name without its ending.
SPLITS = {'coco': (r'COCO_(train2014|val2014|test2014|test2015)_\d{12}', 'COCO_val2014_000000000042.jpg'),
          'gqa': (r'n?\d+', '2335684.jpg or n161313.jpg'),
          'nlvr2': (r'(train|dev|test1|test2)-\d+-\d+-img[01]', 'dev-896-0-img0.png')}
FILE_ENDINGS = (*ENDINGS, '.npz', '.npy', '.json', '.h5', '.hdf5')  # that are no part of an image id
HELP = 'stem: the name without folder and ending; path: the path without its ending, such as a/source; FILE: lines id<TAB>path'


class ImageIds:
    """Image ids of paths, or of the ids in a file, as --ids says.

    choice: 'stem', the file name without its ending; 'path', the path without its ending; or a file of lines id<TAB>path, or a
    json object {id: anything}, whose values `values` holds. Endings are those of pictures and of files of regions. Raises what
    read_json does, or DataError.
    """

    def __init__(self, choice='stem'):
        self.choice = str(choice)
        self.values = None if self.choice in ('stem', 'path') else read_ids(choice)
        self.ids = {without_ending(str(value)): img_id for img_id, value in (self.values or {}).items()}

    def __call__(self, path):
        """The id of a path (str or Path). Raises DataError if a FILE does not name it."""
        short = without_ending(path) if isinstance(path, str) else path.with_suffix('').as_posix()
        if self.values is None:
            return short.rpartition('/')[2] if self.choice == 'stem' else short
        if (img_id := self.ids.get(short)) is None:
            raise DataError(f'{self.choice}: expected a line id<TAB>{short}, found none; its paths are such as {some(self.ids)}')
        return img_id


def read_ids(file):
    """{image id: path or other value} of a text file of lines id<TAB>path, or of a json object, or of a json list of ids, whose
    values are their positions. Raises OSError or DataError."""
    file = Path(file)
    if file.suffix == '.json':
        values = read_json(file, 'image ids: an object {id: row}, or a list of ids')
        if isinstance(values, list):
            values = {str(img_id): row for row, img_id in enumerate(values)}
        if not isinstance(values, dict) or not values:
            raise DataError(f'{file}: expected an object {{id: row}} or a list of ids, found {type(values).__name__}')
        return values
    values, taken = {}, {}
    for number, line in enumerate(read_lines(file, f'--ids {file}: neither stem nor path, nor a file of lines id<TAB>path'), 1):
        img_id, tab, path = line.strip().partition('\t')
        if not tab or not img_id.strip() or not path.strip():
            raise DataError(f'{file}:{number}: expected id<TAB>path, found {shown(line)}')
        img_id, path = img_id.strip(), path.strip()
        if img_id in values or path in taken:
            raise DataError(f'{file}:{number}: expected each id and each path once, found {img_id} {path} again')
        values[img_id] = taken[path] = path
    return values


def read_lines(file, missing):
    """The lines of a text file that are not empty. missing: what to say if there is no such file. Raises OSError or DataError."""
    if not Path(file).is_file():
        raise FileNotFoundError(f'{missing}; correct the path')
    try:
        lines = Path(file).read_text(encoding='utf-8-sig').splitlines()  # editors on Windows begin files with a byte order mark
    except UnicodeDecodeError as error:
        raise DataError(f'{file}: expected a list of pictures in UTF-8, one path per line, found none ({error}); is it a picture?'
                        ) from None
    return [line for line in lines if line.strip()]


def without_ending(path):
    """A path as text with / between folders, without the ending of a picture or of a file of regions."""
    path = path.replace('\\', '/').removeprefix('./')
    return path[:-len(suffix)] if (suffix := PurePosixPath(path).suffix).lower() in FILE_ENDINGS else path


def find_pictures(source, split=None, ids='stem', members=None):
    """{image id: path} of a folder with all its subfolders, in the order of the paths, or of a list, in its order, or of a zip
    with the names `members`, sorted.

    A list is a text file with one path per line, relative to its own folder, or with lines id<TAB>path. split: a key of SPLITS,
    whose file names are then required. ids: as ImageIds takes it; paths are relative to the folder of pictures, or of the list.
    Files of a folder without a picture's ending are skipped and listed on stderr. Raises OSError, or DataError that names two
    files of one id, or names that do not fit.
    """
    source, id_of = Path(source), ImageIds(ids)
    if members is not None:
        paths = sorted(path for path in map(PurePosixPath, members) if path.suffix.lower() in ENDINGS and path.name[0] != '.')
    else:
        paths = _pictures_in_folder(source) if source.is_dir() else _pictures_in_list(source)
    if not paths:
        raise DataError(f'{source}: expected pictures ({", ".join(ENDINGS)}), found none; correct --images')
    pictures = {}
    folder = source if source.is_dir() else source.parent
    for path in paths:
        img_id = id_of(path.relative_to(folder) if path.is_relative_to(folder) else path)
        if (first := pictures.setdefault(img_id, path)) is not path:
            raise DataError(f'{path}: its image id would be {img_id}, which is that of {first}; leave one of the two out, rename '
                            'it, or give --ids path to use the path as the id')
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
    lines = read_lines(file, f'--images {file}: no such folder, nor a list of pictures')
    return [file.parent / line.rpartition('\t')[2].strip() for line in lines]
