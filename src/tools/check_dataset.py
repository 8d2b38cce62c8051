"""Checks a dataset of your own, as a json file describes it, without training: `python -m tools.check_dataset`, see --help.

Of a file of annotations the first fault is told. The regions' numbers are not looked at: that is run/regions.bash check.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from annotations import pretraining_text
from annotations.answer_table import normalise, read_table
from annotations.examples import read_examples
from annotations.spec import DatasetSpec
from bert.tokenization import CHUNK, BertTokenizer
from files.json_files import DataError, some, stream
from regions import store, tsv
from tasks.registry import TASKS, task_class


@dataclass
class Contents:
    """What a file of annotations holds."""

    sentences: int = 0
    labelled: int = 0
    cut: int = 0  # sentences of more than max_length tokens
    known: int = 0  # answers in the vocabulary
    unknown: Counter = field(default_factory=Counter)  # answers that are not
    images: np.ndarray = ()  # (images,) bytes: their ids in UTF-8, each once


def read_task(path, form, answers, too_long):
    """The Contents of a task's examples. Raises DataError or FileNotFoundError that names file, example and key."""
    examples = read_examples([path], form, answers)
    return Contents(len(examples), len(examples) * examples.labelled, int(too_long(examples.sentences)[examples.sentence].sum()),
                    len(examples.label_answer), examples.unknown, np.unique(examples.images))


def read_text(path, answers, too_long):
    """The same of pre-training's sentences. answers: a set."""
    found, images, waiting = Contents(), set(), []
    for i, example in enumerate(stream(path, 'item', 'images')):
        if fault := pretraining_text.first_fault(example):
            raise DataError(f'{path}: example {i}: key "{fault[0]}": expected {fault[1]}')
        images.add(example['img_id'].encode())
        for _, sentence, label in pretraining_text.sentences(example):
            waiting.append(sentence)
            found.sentences += 1
            found.labelled += label is not None
            unknown = [answer for answer in map(normalise, label or ()) if answer not in answers]
            found.known += len(label or ()) - len(unknown)
            found.unknown.update(unknown)
        if len(waiting) >= CHUNK:
            found.cut, waiting = found.cut + int(too_long(waiting).sum()), []
    found.cut, found.images = found.cut + int(too_long(waiting).sum()), np.array(sorted(images), np.bytes_)
    return found


def region_ids(path, store_root):
    """The image ids of a TSV, (n,) bytes, sorted: from its store if there is one, else the first field of each line."""
    regions = store.fresh(path, store_root)
    ids = regions.ids if regions else [line.split(b'\t', 1)[0] for line in tsv.need(path).lines()]
    return np.unique(np.array(ids, np.bytes_))


def findings(found, there, answers, spec):
    """Yields (key that is at fault, or None, what there is to say) of a split's Contents.

    there: the ids of the images with regions; answers: the vocabulary; each None if it could not be read.
    """
    if found.cut:
        yield None, f'{found.cut:,} sentences have more than {spec.max_length} tokens: cut'
    if answers is not None and found.unknown:
        told = f'{found.unknown.total():,} answers are not in {spec.answers} ({some(found.unknown)})'
        yield (None, f'{told}: left out') if found.known else ('annotations', f'all its {told}; do they belong together?')
    if there is not None:
        lacking = [img_id.decode() for img_id in np.setdiff1d(found.images, there).tolist()]
        told = f'{len(lacking):,} images have no regions ({some(lacking)})'
        if len(lacking) == len(found.images):
            yield 'features', f'all {told}; do they belong together?'
        elif lacking:
            yield None, f'{told}: not trained on, and --test needs --allowMissing'
        yield None, f'{len(np.setdiff1d(there, found.images)):,} images with regions have no sentences'


def check(path, tokenizer, store_root, fault):
    """Prints what each split holds; calls fault(message) for what is wrong, and raises it where nothing else can be looked at."""
    def attempt(key, read, *args):
        try:
            return read(*args)
        except (ValueError, OSError) as error:
            fault(f'{path}: key "{key}": {error}')

    def too_long(sentences):  # room for one token more shows it
        return (tokenizer.encode(sentences, spec.max_length + 1)[:, -1] if tokenizer else np.zeros(len(sentences))) != 0

    spec = DatasetSpec.from_json(path)
    if spec.kind not in (*TASKS, pretraining_text.KIND):
        raise DataError(f'{path}: key "kind": expected one of {", ".join((*TASKS, pretraining_text.KIND))}, found "{spec.kind}"')
    form = task_class(spec.kind).schema if spec.kind in TASKS else None
    own = form.answers if form else None
    if bool(own) == bool(spec.answers):
        raise DataError(f'{path}: key "answers": expected '
                        + (f'no such key, since {spec.kind} answers {" or ".join(own)}' if own else 'a path, found no such key'))
    answers = own or attempt('answers', spec.read_answers if form else lambda: set(read_table(spec.answers)))
    files = {}
    for name, split in spec.splits.items():
        read = (read_task, split.annotations, form) if form else (read_text, split.annotations)
        found = attempt(f'splits.{name}.annotations', *read, answers or (), too_long)
        for place, file in enumerate(split.features):
            if files.get(file) is None:
                files[file] = attempt(f'splits.{name}.features[{place}]', region_ids, file, store_root)
        if found is None:
            continue
        print(f'{name}: {found.sentences:,} sentences on {len(found.images):,} images, {found.labelled:,} with labels')
        regions = [files[file] for file in split.features]
        there = None if any(ids is None for ids in regions) else np.unique(np.concatenate(regions))
        for key, told in findings(found, there, answers, spec):
            if key:
                fault(f'{path}: key "splits.{name}.{key}": {told}')
            else:
                print(f'  {told}')


def main(argv=None):
    """Runs the check; returns the exit status."""
    parser = argparse.ArgumentParser(prog='check_dataset.bash', description='Checks a dataset of your own without training.',
                                     epilog='Exit status: 0 well, 1 faults, 2 wrong usage.', allow_abbrev=False)
    parser.add_argument('dataset', type=Path, help='the json file that describes it (data/README.md, "A dataset of your own")')
    parser.add_argument('--bert', type=Path, metavar='FOLDER', help='with vocab.txt: count sentences too long for max_length')
    parser.add_argument('--storeRoot', metavar='FOLDER', help='where region stores are, if not beside the TSV files')
    options = parser.parse_args(argv)
    faults = 0

    def fault(message):
        nonlocal faults
        faults += 1
        print(message)

    try:
        tokenizer = options.bert and BertTokenizer.from_pretrained(options.bert)
        check(options.dataset, tokenizer, options.storeRoot, fault)
    except (ValueError, OSError) as error:
        fault(error)
    print(f'{options.dataset}: {faults} fault{"s" * (faults != 1)}')
    return int(faults > 0)


if __name__ == '__main__':
    sys.exit(main())
