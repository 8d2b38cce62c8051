"""Which files make a dataset: those of the published ones lie below a data folder, a json file describes one of your own."""

from dataclasses import dataclass
from pathlib import Path

from annotations.vqa_answers import without_punctuation
from files.json_files import DataError, first_duplicate, read_json, read_text
from files.text import shown
from regions.store import tsv_of

KEYS = ('kind', 'name', 'max_length', 'answers', 'splits', 'detector', 'made_from')  # the last: anything, for the record
KEYS_OF_KIND = {'captions': ('corpus',)}  # further keys
SPLIT_KEYS = ('annotations', 'features', 'images', 'boxes', 'whole')
UNKNOWN = '<unk>'  # an answer of published vocabularies that stands for all others
MAX_LENGTH = 1000  # tokens; BERT has 512 position embeddings
EXPECTED = {str: 'a text', int: 'a whole number above 0', dict: 'an object', list: 'a list of paths'}


@dataclass(frozen=True)
class Split:
    """One split of a dataset: a file of annotations, and the TSV files with the regions of its images, or the images, or both.

    `whole`: --tiny and --fast do not cut it. `images`: for models that read pixels, folders, lists, zips or pixel stores.
    `boxes`: a file of boxes in them, and masks, which such models read in place of the regions of `features`.
    """

    annotations: Path
    features: tuple = ()
    whole: bool = False
    images: tuple = ()
    boxes: Path | None = None


@dataclass(frozen=True)
class DatasetSpec:
    """Which files make a dataset.

    `answers` lists the answer vocabulary in the order of the answer head; None where the task has its own, as true and false.
    `detector` is the name of the detector that found the regions; None: the published Faster R-CNN.
    `corpus`: paths of text files, or patterns such as corpus/*.txt.
    """

    kind: str
    name: str
    max_length: int
    answers: Path | None
    splits: dict
    detector: str | None = None
    corpus: tuple = ()

    @classmethod
    def from_dict(cls, values, root, where):
        """From the object of a `--dataset` file (data/README.md shows one); paths are relative to root.

        Raises DataError that names `where` (the file) and the key.
        """
        def get(holder, key, kind, path=''):
            value = holder.get(key) if isinstance(holder, dict) else None
            if not isinstance(value, kind) or isinstance(value, bool) or not value:
                raise DataError(f'{where}: key "{path}{key}": expected {EXPECTED[kind]}, found {shown(value)}; correct the '
                                'file')
            return value

        def check_keys(holder, keys, path=''):
            if not isinstance(holder, dict):
                place = f'key "{path[:-1]}": ' if path else ''
                raise DataError(f'{where}: {place}expected an object with the keys {", ".join(keys)}, found {shown(holder)}; '
                                'correct the file')
            for key in holder:
                if key not in keys:
                    of_kind = f' for the kind {shown(kind)}' if any(key in keys for keys in KEYS_OF_KIND.values()) else ''
                    raise DataError(f'{where}: key "{path}{key}": there is no such key{of_kind}; expected {", ".join(keys)}')

        def paths(holder, key, path=''):
            for place, value in enumerate(values := get(holder, key, list, path)):
                if not isinstance(value, str) or not value:
                    raise DataError(f'{where}: key "{path}{key}[{place}]": expected a path, found {shown(value)}; correct it')
            return values

        def read_split(split, path):
            check_keys(split, SPLIT_KEYS, path)
            images = split.get('images', [])
            images = [images] if isinstance(images, str) and images else paths(split, 'images', path) if 'images' in split else []
            boxes = root / get(split, 'boxes', str, path) if 'boxes' in split else None
            features = paths(split, 'features', path) if not images or 'features' in split else []
            if not isinstance(whole := split.get('whole', False), bool):
                raise DataError(f'{where}: key "{path}whole": expected true or false, found {shown(whole)}; correct it')
            annotations = root / get(split, 'annotations', str, path)
            return Split(annotations, tuple(tsv_of(root / feature) for feature in features), whole,
                         tuple(root / image for image in images), boxes)

        kind = values.get('kind') if isinstance(values, dict) else None
        check_keys(values, KEYS + (KEYS_OF_KIND.get(kind, ()) if isinstance(kind, str) else ()))
        for name in get(values, 'splits', dict):
            if len(name) > 100 or not name.isprintable() or name != name.strip() or name[:1] in ('', '.') or {*name} & {*'/\\,'}:
                raise DataError(f'{where}: key "splits": expected names, of files too, of 1 to 100 characters without commas and '
                                f'slashes, that do not begin with a dot, found {shown(name)}')
        splits = {name: read_split(split, f'splits.{name}.') for name, split in get(values, 'splits', dict).items()}
        length = get(values, 'max_length', int)
        if length > MAX_LENGTH:
            raise DataError(f'{where}: key "max_length": expected at most {MAX_LENGTH}, found {length}; correct it')
        if length < 3:
            raise DataError(f'{where}: key "max_length": expected at least 3 ([CLS], a word, [SEP]), found {length}; correct it')
        answers = root / get(values, 'answers', str) if 'answers' in values else None
        detector = get(values, 'detector', str) if 'detector' in values else None
        corpus = tuple(root / path for path in paths(values, 'corpus')) if 'corpus' in values else ()
        return cls(get(values, 'kind', str), get(values, 'name', str), length, answers, splits, detector, corpus)

    @classmethod
    def from_json(cls, path):
        values = read_json(path, 'the description of a dataset')
        return cls.from_dict(values, Path(path).parent, path)

    def named(self, text, flag=None):
        """The splits of a comma-separated list. Raises DataError as `names`."""
        return [self.splits[name] for name in self.names(text, flag)]

    def names(self, text, flag=None):
        """The names in a comma-separated list of splits, each once. Raises DataError that names an unknown one, the known ones,
        and the flag, if any."""
        names = [name.strip() for name in text.split(',') if name.strip()]
        for name in names or [text]:
            if name not in self.splits:
                given = f'--{flag} {text}: ' if flag else ''
                raise DataError(f'{given}unknown split "{name}" of {self.name}; there are: {", ".join(self.splits)}')
        return list(dict.fromkeys(names))

    def read_answers(self):
        """The answer vocabulary, a list of distinct str."""
        return read_answers(self.answers)


def read_answers(path):
    """A list of distinct answers, in the order of the answer head, from json, or from text with one a line (answers_vqa.txt):
    these lose capitals and punctuation, as in the code that they come from. Raises DataError."""
    if Path(path).suffix == '.txt':
        lines = read_text(path, 'answers, one a line, in the order of the answer head').splitlines()
        lines = [line.lower().strip() for line in lines]
        return check_answers([line if line == UNKNOWN else without_punctuation(line) for line in lines], path)
    return check_answers(read_json(path, 'a list of answers, in the order of the answer head; --dataRoot names the folder of the '
                                         'data, bash run/download.bash answers fetches the published ones'), path)


def check_answers(answers, where):
    """The answers, if they are a list of distinct texts, else DataError; where: they come from, for the message."""
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f'{where}: expected a list of answers, texts in order; correct the file')
    if (twice := first_duplicate(answers)) is not None:
        raise DataError(f'{where}: the answer {shown(twice)} is listed twice; list it once')
    return answers
