"""Checks the files of your own dataset (a --dataset json) without training: `python -m tools.check_dataset`, see --help.

Reports the first fault of each file of annotations. Of boxes and features only the first are checked, and of images whether they
can be read as far as their sizes; run/regions.bash check and run/images.bash check check all.
"""

import argparse
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from annotations import pretraining_text
from annotations.answer_table import normalise, read_table
from annotations.corpus import find
from annotations.examples import read_examples, repeated_captions
from annotations.spec import DatasetSpec
from annotations.split_images import check_sizes, given_regions, open_split_images
from annotations.split_regions import check_probabilities
from annotations.tagged_texts import TaggedSchema
from bert.tokenization import CHUNK, BertTokenizer, TextStatistics
from cli import run_main
from files.json_files import DataError, some
from files.text import printable, printable_lines
from param import Options, add_flags
from regions import store, tsv
from regions.readers import check_start, id_difference
from tasks.registry import TASKS, task_class

KINDS = (*TASKS, pretraining_text.KIND, pretraining_text.CAPTIONS)


@dataclass
class Contents:
    """Statistics of a file of annotations."""

    sentences: int = 0
    labelled: int = 0
    answered: bool = True  # whether any label says something
    known: int = 0  # number of answers that are in the list of answers
    unknown: Counter = field(default_factory=Counter)  # answers that are not
    images: np.ndarray = ()  # (images,) bytes, distinct image ids in UTF-8
    classes: dict = field(default_factory=dict)  # of a task with classes: the number of examples that have each
    repeated: tuple = (0, 0)  # of captions, see annotations.examples.repeated_captions


def read_task(path, schema, answers, count):
    """The Contents of a task's annotations. count: is called with sentences, a list of str, and how often each occurs. Raises
    DataError or FileNotFoundError."""
    examples = read_examples([path], schema, answers)
    times = np.bincount(examples.sentence.ravel(), minlength=len(examples.sentences))
    count([schema.plain(text) for text in examples.sentences], times)
    classes = np.bincount(examples.label_answer, minlength=len(answers)).tolist() if schema.classes else ()
    return Contents(len(examples), len(examples) * examples.labelled, not examples.labelled or examples.learnable(),
                    len(examples.label_answer), examples.unknown, np.unique(examples.images),
                    dict(zip(answers, classes, strict=False)),
                    repeated_captions(examples) if schema.captions else (0, 0))


def read_text(path, answers, count):
    """The Contents of pre-training's annotations. answers: set of str."""
    contents, images, chunk = Contents(), set(), []
    for example in pretraining_text.read(path):
        images.add(example['img_id'].encode())
        for _, sentence, label in pretraining_text.sentences(example):
            chunk.append(sentence)
            contents.sentences += 1
            contents.labelled += label is not None
            unknown = [answer for answer in map(normalise, label or ()) if answer not in answers]
            contents.known += len(label or ()) - len(unknown)
            contents.unknown.update(unknown)
        if len(chunk) >= CHUNK:
            count(chunk)
            chunk = []
    count(chunk)
    contents.images = np.array(sorted(images), np.bytes_)
    return contents


def region_ids(path, store_root, probabilities=False):
    """The sorted image ids of a TSV, (n,) bytes: from its store if it exists, else from the first field of each line. Raises
    RegionError if its first images have a fault, such as boxes that are no pixels. probabilities: or if it has no class
    probabilities."""
    regions = store.fresh(path, store_root) or tsv.need(path)
    check_start(regions)
    if probabilities:
        check_probabilities(regions)
    ids = [line.split(b'\t', 1)[0] for line in regions.lines()] if isinstance(regions, tsv.TsvFile) else regions.ids
    return np.unique(np.array(ids, np.bytes_))


def findings(contents, with_regions, answers, spec, features=()):
    """Yields (faulty key or None, message) for a split's Contents.

    with_regions: ids of the images with regions, (n,) bytes; answers: the list of answers; each None if it could not be read.
    features: the files of regions.
    """
    if not contents.answered and not contents.unknown:
        yield 'annotations', 'no sentence has an answer with a score above 0: nothing can be learned from it; add the labels'
    if contents.labelled and contents.classes:
        common = sorted(contents.classes.items(), key=lambda item: -item[1])
        yield None, 'examples of the classes: ' + some((f'{name} {count:,}' for name, count in common), 10)
        if rare := [name for name, count in common if not count]:
            yield None, f'{len(rare):,} classes have no example ({some(rare)}): nothing is learned about them'
    if any(contents.repeated):
        again, shared = contents.repeated
        yield None, f'{again:,} captions repeat one of the same image; {shared:,} are those of several images'
    if answers is not None and contents.unknown:
        message = f'{contents.unknown.total():,} answers are not in {spec.answers} ({some(contents.unknown)})'
        yield (None, f'{message}: left out') if contents.known else (
            'annotations', f'all its {message}; do they belong together?')
    if with_regions is not None:
        missing = [img_id.decode() for img_id in np.setdiff1d(contents.images, with_regions).tolist()]
        message = f'{len(missing):,} images have no regions ({some(missing)})'
        if len(missing) == len(contents.images):
            existing = [img_id.decode('utf-8', 'replace') for img_id in with_regions.tolist()]
            yield 'features', f'all {message}: {id_difference(missing, features[0], existing)}'
        elif missing:
            yield None, f'{message}: not trained on, and --test needs --allowMissing'
        yield None, f'{len(np.setdiff1d(with_regions, contents.images)):,} images with regions have no sentences'


def check_images(name, split, ids, store_root, masks, attempt):
    """Yields what `findings` does, about the images of a split and given boxes in them. ids: (n,) bytes, as in its annotations;
    masks: whether the boxes need masks; attempt(key, function, *arguments): reports faults, and returns None for these."""
    images = attempt('images', open_split_images, [split], ids, name, Options(storeRoot=store_root))
    if images is None:
        return
    ids = [img_id.decode() for img_id in ids.tolist() if img_id]
    missing = [img_id for img_id, row in zip(ids, images.rows(ids), strict=True) if row < 0]
    message = f'{len(missing):,} of {len(ids):,} images have no file in {images.name} ({some(missing)})'
    if missing:
        yield 'images' if len(missing) == len(ids) else None, message
    for regions in filter(None, (store.fresh(file, store_root) for file in split.features)):
        attempt('images', check_sizes, ids, regions, images)
    if split.boxes and (regions := attempt('boxes', given_regions, [split], images, masks)) is not None:
        without = [img_id for img_id, row in zip(ids, regions.rows(ids), strict=True) if row < 0]
        if without:
            yield 'boxes' if len(without) == len(ids) else None, f'{len(without):,} images have no boxes ({some(without)})'


def check(path, tokenizer, store_root, report_fault):
    """Prints the statistics of each split and calls report_fault(message) for each fault. tokenizer: BertTokenizer or None.
    Raises DataError for a fault that prevents further checks."""
    def attempt(key, read, *args):
        try:
            return read(*args)
        except (ValueError, OSError) as error:
            report_fault(f'{path}: key "{key}": {error}')

    def count(sentences, times=None):
        if tokenizer:
            text.add(tokenizer.encode_counted(sentences, spec.max_length)[2], times)

    spec = DatasetSpec.from_json(path)
    if spec.kind not in KINDS:
        raise DataError(f'{path}: key "kind": expected one of {", ".join(KINDS)}, found "{spec.kind}"')
    schema = task_class(spec.kind).schema if spec.kind in TASKS else None
    captions = spec.kind == pretraining_text.CAPTIONS
    without_answers = captions or bool(schema and schema.output != 'answer')
    fixed = schema.answers if schema else None
    if bool(fixed or without_answers) == bool(spec.answers):
        what = spec.kind if captions else f'examples of {spec.kind}'
        raise DataError(f'{path}: key "answers": expected ' + (
            f'no such key, since {spec.kind} answers {" or ".join(fixed)}' if fixed else
            f'no such key, since {what} have none' if without_answers else 'a path, found no such key'))
    if without_answers:
        answers = None
        for i, pattern in enumerate(spec.corpus):
            attempt(f'corpus[{i}]', find, pattern)
    else:
        answers = fixed or attempt('answers', spec.read_answers if schema else lambda: set(read_table(spec.answers)))
    ids_of_file = {}
    for name, split in spec.splits.items():
        read = (read_task, split.annotations, schema) if schema else (read_text, split.annotations)
        text = TextStatistics(spec.max_length) if tokenizer else None
        contents = attempt(f'splits.{name}.annotations', *read, answers or (), count)
        for i, file in enumerate(split.features):
            if ids_of_file.get(file) is None:
                ids_of_file[file] = attempt(f'splits.{name}.features[{i}]', region_ids, file, store_root, captions)
        if contents is None:
            continue
        print(f'{name}: {contents.sentences:,} sentences on {len(contents.images):,} images, {contents.labelled:,} with labels')
        if tokenizer:
            print(printable_lines('\n'.join(f'  {line}' for line in text.lines('text', tokenizer.vocab_file))))
        ids = [ids_of_file[file] for file in split.features]
        with_regions = np.unique(np.concatenate(ids)) if ids and all(file_ids is not None for file_ids in ids) else None
        lines = list(findings(contents, with_regions, answers, spec, split.features))
        if split.images:
            lines += check_images(name, split, contents.images, store_root, isinstance(schema, TaggedSchema),
                                  lambda key, *call, name=name: attempt(f'splits.{name}.{key}', *call))
        for key, message in lines:
            if key:
                report_fault(f'{path}: key "splits.{name}.{key}": {message}')
            else:
                print(printable(f'  {message}'))


def main(argv=None):
    """Runs the check; returns the exit status."""
    parser = argparse.ArgumentParser(prog='check_dataset.bash', description='Checks your own dataset without training.',
                                     epilog='Exit status: 0 success, 1 faults, 2 wrong usage.', allow_abbrev=False)
    parser.add_argument('dataset', type=Path, help='the json file that describes it (data/README.md, "A dataset of your own")')
    parser.add_argument('--bert', type=Path, metavar='FOLDER', help='folder with vocab.txt; count sentences over max_length')
    add_flags(parser, 'storeRoot')
    options = parser.parse_args(argv)
    faults = 0

    def report_fault(message):
        nonlocal faults
        faults += 1
        print(printable_lines(message))

    def run():
        try:
            tokenizer = options.bert and BertTokenizer.from_pretrained(options.bert)
            check(options.dataset, tokenizer, options.storeRoot, report_fault)
        except (ValueError, OSError) as error:
            report_fault(error)
        print(f'{options.dataset}: {faults} fault{"s" * (faults != 1)}')
        return int(faults > 0)

    return run_main('check_dataset.bash', run)


if __name__ == '__main__':
    sys.exit(main())
