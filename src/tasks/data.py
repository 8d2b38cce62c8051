"""Datasets: from annotations and regions on disk to batches. Text is tokenised once; a batch is an indexing of columns."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dist import say
from regions import arrays, residence, store


class DataError(ValueError):
    """Annotations or a description of a dataset that cannot be used."""


def read_json(path, what):
    """The content of a json file. Raises FileNotFoundError or DataError, which name the file and what it should be."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; expected {what}')
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: not whole, valid json ({error}); expected {what}') from None


@dataclass(frozen=True)
class Split:
    """One split of a dataset: a file of annotations and the TSV files that hold its images' regions."""

    annotations: Path
    features: tuple


@dataclass(frozen=True)
class DatasetSpec:
    """Which files make a dataset. `answers` lists the answer vocabulary in the order of the answer head."""

    kind: str
    name: str
    max_length: int
    answers: Path
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
            splits[name] = Split(annotations, tuple(root / path for path in features))
        length = get(values, 'max_length', int, '')
        if length < 3:
            raise DataError(f'{where}: key "max_length": expected at least 3 ([CLS], a word, [SEP]), found {length}')
        return cls(get(values, 'kind', str, ''), get(values, 'name', str, ''), length,
                   root / get(values, 'answers', str, ''), splits)

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
        answers = read_json(self.answers, 'a list of answers, in the order of the answer head')
        if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
            raise DataError(f'{self.answers}: expected a list of answers')
        if len(set(answers)) < len(answers):
            twice = next(answer for i, answer in enumerate(answers) if answer in answers[:i])
            raise DataError(f'{self.answers}: the answer "{twice}" stands there twice')
        return answers


def read_examples(path, id_type):
    """The examples of an annotations file, checked. id_type: the type of question ids, int or str.

    Raises DataError that names the file, the example's number (from 0) and the key.
    """
    examples = read_json(path, 'a list of questions with img_id, question_id, sent and, but for test, label')
    if not isinstance(examples, list) or not examples:
        raise DataError(f'{path}: expected a list of questions, found {"none" if examples == [] else "something else"}')
    seen = {}
    for i, example in enumerate(examples):
        if wrong := first_fault(example, id_type):
            key, expected = wrong
        elif seen.setdefault(example['question_id'], i) != i:
            key, expected = 'question_id', f'a new id (example {seen[example["question_id"]]} has the same)'
        elif ('label' in example) != ('label' in examples[0]):
            key, expected = 'label', 'labels on all questions of a file or on none'
        else:
            continue
        found = example.get(key, 'nothing') if isinstance(example, dict) else example
        raise DataError(f'{path}: example {i}: key "{key}": expected {expected}, found {found!r}')
    return examples


def first_fault(example, id_type):
    """(key, what was expected there) of the first fault of an example, or None."""
    if not isinstance(example, dict) or not isinstance(example.get('img_id'), str) or not example['img_id'].isprintable():
        return 'img_id', 'an image id (text)'
    if not isinstance(example.get('sent'), str):
        return 'sent', 'a sentence'
    if not isinstance(example.get('question_id'), id_type) or isinstance(example['question_id'], bool):
        return 'question_id', 'a whole number' if id_type is int else 'a text'
    for key in ('answer_type', 'question_type'):
        if not isinstance(example.get(key, ''), str):
            return key, 'a text, or no such key'
    label = example.get('label', {})
    if not isinstance(label, dict) or not all(isinstance(score, (int, float)) and 0 <= score <= 1 for score in label.values()):
        return 'label', 'an object {answer: score from 0 to 1}'
    return None


def read_splits(spec, names, id_type):
    """[(Split, its examples), ...] of a comma-separated list of splits, with labels on all or on none."""
    splits = [(split, read_examples(split.annotations, id_type)) for split in spec.named(names)]
    if len({'label' in examples[0] for _, examples in splits}) > 1:
        raise DataError(f'splits {names}: some have labels and others have none')
    return splits


def some(names, most=3):
    """The first names of a list, for a message."""
    names = list(dict.fromkeys(names))
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')


class QuestionDataset(torch.utils.data.Dataset):
    """Questions about images as columns over n questions; dataset[array of indices] is a batch.

    A batch: input_ids (b, t) int64, cut to its longest sentence; features (b, o, f) and boxes (b, o, 4) float32 scaled to
    0..1, or, of regions on the GPU, places (b, o) int64; `finish` makes them of those, and float32 of half features;
    visual_attention_mask (b, o) bool, only where numbers of regions differ; target (b, answers) float32, the soft
    scores, only where the questions have labels.
    """

    def __init__(self, examples, regions, rows, tokenizer, answers, max_length):
        """examples: list of dicts as in the annotations; regions: a store; rows (n,): each one's row there, or -1 for an
        image without regions. Labels that are no answer of the vocabulary are left out and counted in `unknown`."""
        self.regions, self.rows, self.answers = regions, np.asarray(rows), answers
        self.input_ids = tokenizer.encode([example['sent'] for example in examples], max_length)
        self.lengths = ((self.input_ids != 0) * np.arange(1, max_length + 1)).max(1)
        self.image_ids = np.array([example['img_id'].encode() for example in examples], np.bytes_)
        self.question_ids = [example['question_id'] for example in examples]
        self.types = {key: [example.get(key) for example in examples] for key in ('answer_type', 'question_type')}
        self.labelled = 'label' in examples[0]
        place = {answer: index for index, answer in enumerate(answers)}
        labels = [(i, place[answer], score) for i, example in enumerate(examples)
                  for answer, score in example.get('label', {}).items() if answer in place]
        self.unknown = [answer for example in examples for answer in example.get('label', {}) if answer not in place]
        # Column form of the labels: which question, which answer, which score; ordered by question.
        self.label_question = np.array([i for i, _, _ in labels], dtype=np.int64)
        self.label_answer = np.array([answer for _, answer, _ in labels], dtype=np.int64)
        self.label_score = np.array([score for _, _, score in labels], dtype=np.float32)
        self.label_start = np.searchsorted(self.label_question, np.arange(len(examples) + 1))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, indices):
        seen = self.see(self.rows[indices])
        mask = seen.pop('mask')
        batch = {'input_ids': self.input_ids[indices, :self.lengths[indices].max()].astype(np.int64), **seen}
        if not mask.all():
            batch['visual_attention_mask'] = mask.astype(bool)
        if self.labelled:
            batch['target'] = self.target(indices)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def see(self, rows):
        """The regions of b rows and their mask (b, o); of a row that is -1, every region is masked and empty."""
        if isinstance(self.regions, residence.OnDevice):
            places = self.regions.places(rows)
            return {'places': places, 'mask': places >= 0}
        seen = self.regions.gather(np.maximum(rows, 0))
        blind = rows < 0
        if blind.any():
            seen = {name: np.where(blind.reshape(-1, *[1] * (array.ndim - 1)), 0, array) for name, array in seen.items()}
        return seen

    def finish(self, batch):
        """A batch that has reached the device, with the regions that were there before, or features that crossed in half."""
        if 'places' in batch:
            return batch | self.regions.look_up(batch.pop('places'))
        return batch | {'features': batch['features'].float()}

    def digest(self):
        """Tells whether two datasets hold the same questions, labels and images."""
        whole = hashlib.sha256()
        for column in (self.input_ids, self.image_ids, self.rows >= 0, self.label_question, self.label_answer, self.label_score):
            whole.update(np.ascontiguousarray(column))
        return whole.hexdigest()

    def target(self, indices):
        """Soft scores (b, answers) of some questions."""
        counts = self.label_start[indices + 1] - self.label_start[indices]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        labels = np.repeat(self.label_start[indices], counts) + within
        target = np.zeros((len(indices), len(self.answers)), dtype=np.float32)
        target[np.repeat(np.arange(len(indices)), counts), self.label_answer[labels]] = self.label_score[labels]
        return target

    def scores(self, predictions):
        """Each question's soft score of a predicted answer: (n,) answer indices -> (n,) float64 from 0 to 1."""
        hit = self.label_answer == np.asarray(predictions)[self.label_question]
        return np.bincount(self.label_question, weights=self.label_score * hit, minlength=len(self))

    def oracle(self):
        """The score, per cent, of the best prediction within the vocabulary for every question."""
        best = np.zeros(len(self))
        np.maximum.at(best, self.label_question, self.label_score)
        return 100 * best.mean()


def open_regions(splits, options, submit):
    """The regions of some splits (see read_splits) as one, and whether they are all that their files hold.

    With --tiny or --fast, a TSV without a store is not converted: the images needed are read into RAM.
    """
    users = {}  # path -> the image ids that each split wants of it, in the order of the files
    for split, examples in splits:
        for path in split.features:
            users.setdefault(path, []).append({example['img_id'] for example in examples})
    if submit or options.image_limit is None or all(store.fresh(path, options.storeRoot) for path in users):
        return store.open_all(list(users), options.storeRoot), True
    few = [store.fresh(path, options.storeRoot) or store.read_few(path, wanted, [options.image_limit] * len(wanted))
           for path, wanted in users.items()]
    few = [regions for regions in few if regions is not None]
    if not few:
        raise DataError(f'none of the images of {", ".join(str(split.annotations) for split, _ in splits)} has regions in '
                        f'{", ".join(map(str, users))}; do they belong together?')
    return arrays.RegionView(few) if len(few) > 1 else few[0], False


def load_questions(spec, names, splits, tokenizer, answers, options, submit=False, device=None):
    """The QuestionDataset of some splits, with what was left out said on the screen.

    names: what to call them; splits: as read_splits returns them. submit: the predictions are to be handed in, so that
    no question may be left out and --tiny and --fast do not apply; an image without regions is then an error unless
    --allowMissing. device: where regions go with --featDevice cuda.
    """
    regions, whole = open_regions(splits, options, submit)
    ids = list({example['img_id'] for _, examples in splits for example in examples})
    twice = sum((part.rows(ids) >= 0).astype(int) for part in getattr(regions, 'stores', [regions])) > 1
    if twice.any():
        say(f'{twice.sum():,} images are in several of the TSV files of {names}: the regions of the first file count.')
    kept, kept_rows, missing, total = [], [], [], 0
    for split, examples in splits:
        rows = regions.rows([example['img_id'] for example in examples])
        lacking = [example['img_id'] for example, row in zip(examples, rows, strict=True) if row < 0]
        if len(lacking) == len(examples) and not options.allowMissing:
            raise DataError(f'{split.annotations}: none of its images has regions, {some(lacking)} among them; do they belong '
                            f'to {split.features[0]}?')
        missing, total = missing + lacking, total + len(examples)
        keep = np.ones(len(rows), dtype=bool) if submit else rows >= 0
        if options.image_limit is not None and not submit:
            chosen = np.unique(rows[keep])[:options.image_limit]  # rows are in file order
            keep &= np.isin(rows, chosen)
            if not whole and len(chosen) == options.image_limit:
                missing = missing[:len(missing) - len(lacking)]  # there may be regions of them in what was not read
        kept += [example for example, kept_one in zip(examples, keep, strict=True) if kept_one]
        kept_rows.append(rows[keep])
    if missing:
        what = (f'{len(missing):,} of {total:,} questions of {names} are about {len(set(missing)):,} images without regions '
                f'({some(missing)})')
        if submit and not options.allowMissing:
            raise DataError(f'{what}; all must be answered: add their regions, or give --allowMissing to answer them '
                            'from the words alone')
        say(f'{what}: ' + ('answered from the words alone.' if submit else 'skipped.'))
    regions = residence.place(regions, options.featDevice, device)
    dataset = QuestionDataset(kept, regions, np.concatenate(kept_rows), tokenizer, answers, spec.max_length)
    if dataset.unknown:
        say(f'{len(dataset.unknown):,} labels of {names} are no answers of {spec.answers} ({some(dataset.unknown)}): left out.')
    say(f'{names}: {len(dataset):,} questions on {len(np.unique(dataset.rows)):,} images.')
    return dataset
