"""Make train, nominival, minival and test.json and the answer vocabulary of VQA v2 from the official files.

The label of a question is {answer: soft score}: 0.3, 0.6, 0.9, 1 for an answer that 1, 2, 3, 4 or more of ten annotators gave.
As in the preprocessing that LXMERT's original code uses, the vocabulary holds the most common answers of questions after the
official evaluator's normalisation, but annotators' answers are compared with it as typed: "two" is no label, since the vocabulary
has "2".
"""
import argparse
import random
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from annotations.raw_data import VOCABULARY, Outputs, dump_vocabulary, examples_of, find, frequent, run
from annotations.spec import read_answers
from files.json_files import DataError, field, read_json, stream
from tasks.vqa_answers import normalise

SOURCE = 'https://visualqa.org/download.html'
QUESTIONS = 'v2_OpenEnded_mscoco_{}_questions.json'
ANNOTATIONS = 'v2_mscoco_{}_annotations.json'
IMAGES = {'train': 'train2014', 'val': 'val2014', 'test': 'test2015', 'testDev': 'test2015'}
OUTPUTS = {'train': ['train.json'], 'val': ['nominival.json', 'minival.json'], 'test': ['test.json'],
           'testDev': ['test-dev.json']}
NAMES = IMAGES | {'testDev': 'test-dev2015'}  # in the names of the official files
SCORES = (0, 0.3, 0.6, 0.9, 1)  # by the number of annotators who gave an answer
MINIVAL, SEED = 5000, 9595


def img_id(split, image_id):
    """COCO's name of an image: img_id('train', 9) is COCO_train2014_000000000009."""
    return f'COCO_{IMAGES[split]}_{image_id:012d}'


def soft_scores(answers, vocabulary):
    """{answer: soft score} of the annotators' raw answers (list of str), only for answers of the vocabulary (a set)."""
    return {answer: SCORES[min(count, 4)] for answer, count in Counter(answers).items() if answer in vocabulary}


def pair(questions, annotations):
    """Yields (question, annotation) with the same question_id; at the end those without a counterpart, with None.

    Both are iterables of (question_id, item). The official files are in the same order, so that hardly any item is kept waiting;
    in another order memory grows. Raises DataError if an id occurs twice while its counterpart is missing.
    """
    unpaired = ({}, {})  # of questions and annotations: {question_id: item}
    for both in zip_longest(questions, annotations):
        for side, (key, item) in ((side, entry) for side, entry in enumerate(both) if entry is not None):
            if key in unpaired[side]:
                raise DataError(f'question_id {key} occurs twice; expected each once: get the files again from {SOURCE}')
            unpaired[side][key] = item
            if key in unpaired[1 - side]:
                yield unpaired[0].pop(key), unpaired[1].pop(key)
    yield from ((question, None) for question in unpaired[0].values())
    yield from ((None, annotation) for annotation in unpaired[1].values())


def read_questions(path, split):
    """Yields (question_id, {img_id, question_id, sent}) of a questions file."""
    for item in stream(path, 'questions.item', 'questions'):
        key = field(item, 'question_id', int, path)
        yield key, {'img_id': img_id(split, field(item, 'image_id', int, path)), 'question_id': key,
                    'sent': field(item, 'question', str, path)}


def read_annotations(path):
    """Yields (question_id, annotation) of an annotations file."""
    for item in stream(path, 'annotations.item', 'annotations'):
        yield field(item, 'question_id', int, path), item


def labelled(split, paths, vocabulary, tally):
    """Yields the examples of a split; counts questions and answers in `tally`, a Counter.

    paths: of questions and annotations; vocabulary: a set of answers. Raises DataError if the files do not belong together.
    """
    unpaired = [], []  # question ids without annotation, without question
    for question, annotation in pair(read_questions(paths[0], split), read_annotations(paths[1])):
        if question is None or annotation is None:
            unpaired[annotation is not None].append((question or annotation)['question_id'])
            continue
        answers = [field(answer, 'answer', str, paths[1]) for answer in field(annotation, 'answers', list, paths[1])]
        label = soft_scores(answers, vocabulary)
        tally['questions'] += 1
        tally['answers'] += len(answers)
        tally['known'] += sum(answer in label for answer in answers)
        tally['known if normalised'] += sum(answer not in label and normalise(answer) in vocabulary for answer in answers)
        tally['no label'] += not label
        yield question | {'label': label, 'answer_type': field(annotation, 'answer_type', str, paths[1]),
                          'question_type': field(annotation, 'question_type', str, paths[1])}
    for ids, what, other in zip(unpaired, ('questions', 'annotations'), reversed(paths), strict=True):
        if ids:
            print(f'{split}: {len(ids):,} {what} dropped: {other} has nothing for their question_id{examples_of(ids)}.')
    if not tally['questions']:
        raise DataError(f'{paths[0]} and {paths[1]} have no question_id in common; do they belong together?')


def count_answers(paths):
    """How often each normalised answer is the most common one of a question, in all annotations files."""
    return Counter(normalise(field(item, 'multiple_choice_answer', str, path))
                   for path in paths for _, item in read_annotations(path))


def choose_minival(path, questions):
    """The img_ids of minival: those in `path`, a list of questions or image ids; without it 5,000 of val2014, by a fixed seed."""
    if path:
        listed = read_json(path, 'minival: a list of questions with img_id, or of image ids')
        if not isinstance(listed, list) or not listed:
            raise DataError(f'{path}: expected a list of questions with img_id, or of image ids')
        ids = [item.get('img_id') if isinstance(item, dict) else item for item in listed]
        ids = [img_id('val', item) if type(item) is int else item for item in ids]
        for item in ids:
            if not isinstance(item, str) or not item.startswith(f'COCO_{IMAGES["val"]}_'):
                raise DataError(f'{path}: expected image ids like {img_id("val", 42)} or 42, found {item!r}')
        return set(ids)
    images = sorted({question['img_id'] for _, question in read_questions(questions, 'val')})
    if len(images) <= MINIVAL:
        raise DataError(f'{questions}: expected more than the {MINIVAL:,} images of minival, found {len(images):,}; '
                        'name those of minival by --minival FILE')
    return set(random.Random(SEED).sample(images, MINIVAL))


def parse(argv):
    """The command line, with each of train, val (two paths), test, testDev (one) resolved to a tuple of paths, or None."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f'The official files: {SOURCE}, unzipped.')
    parser.add_argument('--raw', type=Path, help='folder of the files under their official names, also with .gz')
    for split in ('train', 'val'):
        parser.add_argument(f'--{split}', nargs=2, type=Path, metavar=('QUESTIONS', 'ANNOTATIONS'),
                            help=f'the files of {split}2014, under other names')
    for split in ('test', 'testDev'):
        parser.add_argument(f'--{split}', nargs=1, type=Path, metavar='QUESTIONS', help=f'the file of {NAMES[split]}')
    parser.add_argument('--minival', type=Path, metavar='FILE', help='json: a minival.json, or a list of image ids; '
                        f'else {MINIVAL:,} images of val2014 by a fixed seed')
    parser.add_argument('--like', type=Path, metavar='FILE', help='a trainval_label2ans.json whose answers and order are kept, '
                        'so that snapshots made with it fit')
    parser.add_argument('--least', type=int, default=9,
                        help='an answer of the vocabulary is the most common one of at least so many questions')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the outputs; this one')
    args = parser.parse_args(argv)
    for split, name in NAMES.items():
        if args.raw is None or getattr(args, split):
            continue
        names = [QUESTIONS.format(name)] + ([ANNOTATIONS.format(name)] if split in ('train', 'val') else [])
        paths = [find(args.raw, name) for name in names]
        if None in paths and len(names) == 2:
            raise FileNotFoundError(f'{args.raw / names[paths.index(None)]}: no such file, nor with .gz; get it from {SOURCE}')
        if None in paths:
            print(f'{names[0]} is not in {args.raw}: no {split}.')
        setattr(args, split, None if None in paths else paths)
    if not (args.train or args.val or args.test or args.testDev):
        parser.error('nothing to do: give --raw, or some of --train, --val, --test, --testDev')
    if not (args.train or args.val or args.like):
        parser.error('expected a source of the vocabulary: --train and --val, or --like')
    if args.minival and not args.val:
        parser.error('--minival: divides --val; expected --val too')
    return args


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    args = parse(argv)
    outputs = [name for split, names in OUTPUTS.items() if getattr(args, split) for name in names]
    with Outputs(args.out, [*outputs, *VOCABULARY]) as out:
        minival = choose_minival(args.minival, args.val[0]) if args.val else set()
        if args.like:
            answers = read_answers(args.like)
        else:
            counts = count_answers([paths[1] for paths in (args.train, args.val) if paths])
            # '' is the normalised form of "a" and "the"; it is label 0 of the published vocabulary, and never an answer
            answers = ['', *frequent(Counter({answer: n for answer, n in counts.items() if answer}), args.least)]
            share = 100 * sum(counts[answer] for answer in answers) / counts.total()
            print(f'vocabulary: {len(answers):,} answers: "" and, of {len(counts):,}, those that are the most common one of at '
                  f'least {args.least} questions, which cover {share:.1f} % of the questions; first: {", ".join(answers[1:11])}')
        dump_vocabulary(out, answers)
        for split in ('train', 'val'):
            if paths := getattr(args, split):
                write_labelled(out, split, paths, set(answers), minival)
        for split in ('test', 'testDev'):
            if paths := getattr(args, split):
                images = set()
                for _, question in read_questions(paths[0], split):
                    images.add(question['img_id'])
                    out.add(OUTPUTS[split][0], question)
                print(f'{OUTPUTS[split][0]}: {out.counts[OUTPUTS[split][0]]:,} questions on {len(images):,} images.')
    print(f'made {", ".join([*outputs, *VOCABULARY])} in {args.out}')


def write_labelled(out, split, paths, vocabulary, minival):
    """Writes the examples of train, or those of val as nominival and minival, and prints statistics."""
    tally, images = Counter(), {}
    for example in labelled(split, paths, vocabulary, tally):
        name = 'train.json' if split == 'train' else 'minival.json' if example['img_id'] in minival else 'nominival.json'
        images.setdefault(name, set()).add(example['img_id'])
        out.add(name, example)
    for name, ids in images.items():
        print(f'{name}: {out.counts[name]:,} questions on {len(ids):,} images.')
    print(f'{split}: of {tally["answers"]:,} answers of annotators {tally["known"]:,} are in the vocabulary, '
          f'{tally["known if normalised"]:,} more only if normalised, which do not count, as in the published labels; '
          f'{tally["no label"]:,} questions have no label and are kept: any answer to them scores 0.')
    if split == 'val':
        used = images.get('minival.json', set())
        if not used:
            raise DataError(f'{paths[0]}: none of its images is of minival; do the files belong together?')
        if len(used) < len(minival):
            print(f'{len(minival - used):,} of the {len(minival):,} images of minival have no questions here'
                  f'{examples_of(sorted(minival - used))}.')


if __name__ == '__main__':
    run(main)
