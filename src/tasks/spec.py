"""Which files make a dataset: those of the published ones lie below a data folder, a json file describes one of your own."""

from dataclasses import dataclass
from pathlib import Path

from tasks.files import DataError, read_json


@dataclass(frozen=True)
class Split:
    """One split of a dataset: a file of annotations and the TSV files that hold its images' regions.

    `whole`: --tiny and --fast do not cut it.
    """

    annotations: Path
    features: tuple
    whole: bool = False


@dataclass(frozen=True)
class DatasetSpec:
    """Which files make a dataset.

    `answers` lists the answer vocabulary in the order of the answer head; None where the task has its own, as true and false.
    """

    kind: str
    name: str
    max_length: int
    answers: Path | None
    splits: dict

    @classmethod
    def from_dict(cls, values, root, where):
        """From the object of a `--dataset` file (data/README.md shows one); paths are relative to root.

        Raises DataError that names `where` (the file) and the key.
        """
        def get(holder, key, kind, path):
            found = holder.get(key) if isinstance(holder, dict) else None
            if not isinstance(found, kind) or isinstance(found, bool) or not found:
                raise DataError(f'{where}: key "{path}{key}": expected {expected[kind]}, found {found!r}')
            return found

        expected = {str: 'a text', int: 'a whole number above 0', dict: 'an object', list: 'a list of paths'}
        if not isinstance(values, dict):
            raise DataError(f'{where}: expected an object with kind, name, max_length, answers and splits')
        splits = {}
        for name, split in get(values, 'splits', dict, '').items():
            features = get(split, 'features', list, f'splits.{name}.')
            if not all(isinstance(path, str) for path in features):
                raise DataError(f'{where}: key "splits.{name}.features": expected a list of paths, found {features!r}')
            annotations = root / get(split, 'annotations', str, f'splits.{name}.')
            splits[name] = Split(annotations, tuple(root / path for path in features), split.get('whole') is True)
        length = get(values, 'max_length', int, '')
        if length < 3:
            raise DataError(f'{where}: key "max_length": expected at least 3 ([CLS], a word, [SEP]), found {length}')
        answers = root / get(values, 'answers', str, '') if 'answers' in values else None
        return cls(get(values, 'kind', str, ''), get(values, 'name', str, ''), length, answers, splits)

    @classmethod
    def from_json(cls, path):
        values = read_json(path, 'the description of a dataset')
        return cls.from_dict(values, Path(path).parent, path)

    def named(self, text):
        """The splits of a comma-separated list. Raises DataError naming an unknown one and those there are."""
        names = [name.strip() for name in text.split(',') if name.strip()]
        for name in names or [text]:
            if name not in self.splits:
                raise DataError(f'unknown split "{name}" of {self.name}; there are: {", ".join(self.splits)}')
        return [self.splits[name] for name in dict.fromkeys(names)]

    def read_answers(self):
        """The answer vocabulary, a list of distinct str."""
        return read_answers(self.answers)


def read_answers(path):
    """A list of distinct answers, in the order of the answer head, from json. Raises DataError."""
    answers = read_json(path, 'a list of answers, in the order of the answer head')
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise DataError(f'{path}: expected a list of answers')
    if len(set(answers)) < len(answers):
        twice = next(answer for i, answer in enumerate(answers) if answer in answers[:i])
        raise DataError(f'{path}: the answer "{twice}" stands there twice')
    return answers
