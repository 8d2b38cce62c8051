"""Checks a dataset of your own, as a json file describes it, without training: `python -m tools.check_dataset`, see --help.

Of a file of annotations the first fault is reported. The numbers of the regions are not checked: that is run/regions.bash check.
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
from param import add_flags
from regions import store, tsv
from tasks.registry import TASKS, task_class


@dataclass
class Contents:
    """What a file of annotations holds."""

    sentences: int = 0
    labelled: int = 0
    truncated: int = 0  # sentences of more than max_length tokens
    known: int = 0  # answers in the vocabulary
    unknown: Counter = field(default_factory=Counter)  # answers that are not
    images: np.ndarray = ()  # (images,) bytes: their ids in UTF-8, each once


def read_task(path, schema, answers, is_too_long):
    """The Contents of a task's examples. Raises DataError or FileNotFoundError that names file, example and key."""
    examples = read_examples([path], schema, answers)
    return Contents(len(examples), len(examples) * examples.labelled,
                    int(is_too_long(examples.sentences)[examples.sentence].sum()), len(examples.label_answer), examples.unknown,
                    np.unique(examples.images))


def read_text(path, answers, is_too_long):
    """The same of pre-training's sentences. answers: a set."""
    contents, images, chunk = Contents(), set(), []
    for i, example in enumerate(stream(path, 'item', 'images')):
        if fault := pretraining_text.first_fault(example):
            raise DataError(f'{path}: example {i}: key "{fault[0]}": expected {fault[1]}')
        images.add(example['img_id'].encode())
        for _, sentence, label in pretraining_text.sentences(example):
            chunk.append(sentence)
            contents.sentences += 1
            contents.labelled += label is not None
            unknown = [answer for answer in map(normalise, label or ()) if answer not in answers]
            contents.known += len(label or ()) - len(unknown)
            contents.unknown.update(unknown)
        if len(chunk) >= CHUNK:
            contents.truncated, chunk = contents.truncated + int(is_too_long(chunk).sum()), []
    contents.truncated += int(is_too_long(chunk).sum())
    contents.images = np.array(sorted(images), np.bytes_)
    return contents


def region_ids(path, store_root):
    """The image ids of a TSV, (n,) bytes, sorted: from its store if there is one, else the first field of each line."""
    regions = store.fresh(path, store_root)
    ids = regions.ids if regions else [line.split(b'\t', 1)[0] for line in tsv.need(path).lines()]
    return np.unique(np.array(ids, np.bytes_))


def findings(contents, with_regions, answers, spec):
    """Yields (faulty key or None, message) of a split's Contents.

    with_regions: the ids of the images with regions; answers: the vocabulary; each None if it could not be read.
    """
    if contents.truncated:
        yield None, f'{contents.truncated:,} sentences have more than {spec.max_length} tokens: cut'
    if answers is not None and contents.unknown:
        message = f'{contents.unknown.total():,} answers are not in {spec.answers} ({some(contents.unknown)})'
        yield (None, f'{message}: left out') if contents.known else (
            'annotations', f'all its {message}; do they belong together?')
    if with_regions is not None:
        lacking = [img_id.decode() for img_id in np.setdiff1d(contents.images, with_regions).tolist()]
        message = f'{len(lacking):,} images have no regions ({some(lacking)})'
        if len(lacking) == len(contents.images):
            yield 'features', f'all {message}; do they belong together?'
        elif lacking:
            yield None, f'{message}: not trained on, and --test needs --allowMissing'
        yield None, f'{len(np.setdiff1d(with_regions, contents.images)):,} images with regions have no sentences'


def check(path, tokenizer, store_root, report_fault):
    """Prints what each split holds; calls report_fault(message) for what is wrong, and raises it where nothing else can be
    checked."""
    def attempt(key, read, *args):
        try:
            return read(*args)
        except (ValueError, OSError) as error:
            report_fault(f'{path}: key "{key}": {error}')

    def is_too_long(sentences):  # room for one token more shows it
        return (tokenizer.encode(sentences, spec.max_length + 1)[:, -1] if tokenizer else np.zeros(len(sentences))) != 0

    spec = DatasetSpec.from_json(path)
    if spec.kind not in (*TASKS, pretraining_text.KIND):
        raise DataError(f'{path}: key "kind": expected one of {", ".join((*TASKS, pretraining_text.KIND))}, found "{spec.kind}"')
    schema = task_class(spec.kind).schema if spec.kind in TASKS else None
    fixed = schema.answers if schema else None
    if bool(fixed) == bool(spec.answers):
        raise DataError(f'{path}: key "answers": expected ' + (
            f'no such key, since {spec.kind} answers {" or ".join(fixed)}' if fixed else 'a path, found no such key'))
    answers = fixed or attempt('answers', spec.read_answers if schema else lambda: set(read_table(spec.answers)))
    ids_of_file = {}
    for name, split in spec.splits.items():
        read = (read_task, split.annotations, schema) if schema else (read_text, split.annotations)
        contents = attempt(f'splits.{name}.annotations', *read, answers or (), is_too_long)
        for place, file in enumerate(split.features):
            if ids_of_file.get(file) is None:
                ids_of_file[file] = attempt(f'splits.{name}.features[{place}]', region_ids, file, store_root)
        if contents is None:
            continue
        print(f'{name}: {contents.sentences:,} sentences on {len(contents.images):,} images, {contents.labelled:,} with labels')
        ids = [ids_of_file[file] for file in split.features]
        with_regions = None if not ids or any(one is None for one in ids) else np.unique(np.concatenate(ids))
        for key, message in findings(contents, with_regions, answers, spec):
            if key:
                report_fault(f'{path}: key "splits.{name}.{key}": {message}')
            else:
                print(f'  {message}')


def main(argv=None):
    """Runs the check; returns the exit status."""
    parser = argparse.ArgumentParser(prog='check_dataset.bash', description='Checks a dataset of your own without training.',
                                     epilog='Exit status: 0 well, 1 faults, 2 wrong usage.', allow_abbrev=False)
    parser.add_argument('dataset', type=Path, help='the json file that describes it (data/README.md, "A dataset of your own")')
    parser.add_argument('--bert', type=Path, metavar='FOLDER', help='with vocab.txt: count sentences too long for max_length')
    add_flags(parser, 'storeRoot')
    options = parser.parse_args(argv)
    faults = 0

    def report_fault(message):
        nonlocal faults
        faults += 1
        print(message)

    try:
        tokenizer = options.bert and BertTokenizer.from_pretrained(options.bert)
        check(options.dataset, tokenizer, options.storeRoot, report_fault)
    except (ValueError, OSError) as error:
        report_fault(error)
    print(f'{options.dataset}: {faults} fault{"s" * (faults != 1)}')
    return int(faults > 0)


if __name__ == '__main__':
    sys.exit(main())
