"""Names of the detector's classes and attributes."""

from pathlib import Path

from files.json_files import read_text
from files.text import printable

FILES = {'classes': 'objects_vocab.txt', 'attributes': 'attributes_vocab.txt'}


class ClassNames:
    """Names by id, from the files of the published detector.

    folder: with objects_vocab.txt and, optionally, attributes_vocab.txt, one class per line. Line 1 is id 0: the background is
    not in the files. Of synonyms (`gray,grey`) the first is used. None: no names. Raises FileNotFoundError or DataError.
    """

    def __init__(self, folder=None):
        self.lists = {kind: [] for kind in FILES}
        for kind, file in FILES.items() if folder else ():
            path = Path(folder) / file
            if kind == 'attributes' and not path.exists():
                continue
            lines = read_text(path, 'text with one name per line; correct --names').splitlines()
            self.lists[kind] = [printable(line.split(',')[0].strip()) or f'line {number}' for number, line in enumerate(lines, 1)]

    def name(self, kind: str, number: int) -> str:
        """The name of an id of kind 'classes' or 'attributes', else 'object 7' or 'attribute 7'."""
        names = self.lists[kind]
        return names[number] if 0 <= number < len(names) else f'{"object" if kind == "classes" else "attribute"} {number}'


def names_folder(root):
    """The folder of the names below a data folder: `detector` or itself; None if neither has them."""
    return next((folder for folder in (root / 'detector', root) if (folder / FILES['classes']).is_file()), None)
