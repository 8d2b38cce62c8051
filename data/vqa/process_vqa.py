"""Make train, nominival, minival and test.json and the answer vocabulary of VQA v2, or with --split of other VQA files.

The label of a question is {answer: soft score}: 0.3, 0.6, 0.9, 1 for an answer that 1, 2, 3, 4 or more of ten annotators gave.
As in the preprocessing that LXMERT's original code uses, the vocabulary holds the most common answers of questions after the
official evaluator's normalisation, but annotators' answers are compared with it as typed: "two" is no label, since the vocabulary
has "2".

With --split NAME FILE...: files of other datasets in the layouts of annotations.vqa_files, and a dataset.json for --dataset.
Soft scores there, of normalised answers:
- annotators' answers: as above, see vqa_files.soft_score (fewer than four annotators: the share who gave it);
- one answer: 1; a list of alternative answers: 1 each; {answer: score}: as given.
"""
import argparse
import os
import random
import re
from collections import Counter
from itertools import islice
from pathlib import Path

from annotations.raw_data import VOCABULARY, Outputs, dump_vocabulary, examples_of, find, frequent, run
from annotations.spec import read_answers
from annotations.vqa_answers import normalise
from annotations.vqa_files import (
    KEYS,
    QuestionImages,
    answers_of,
    pair,
    read_rows,
    scores_of,
    soft_scores,
    text_of,
    types_of,
    value_of,
)
from files.json_files import DataError, field, read_json, some, stream
from regions import store, tsv

SOURCE = 'https://visualqa.org/download.html'
QUESTIONS = 'v2_OpenEnded_mscoco_{}_questions.json'
ANNOTATIONS = 'v2_mscoco_{}_annotations.json'
IMAGES = {'train': 'train2014', 'val': 'val2014', 'test': 'test2015', 'testDev': 'test2015'}
OUTPUTS = {'train': ['train.json'], 'val': ['nominival.json', 'minival.json'], 'test': ['test.json'],
           'testDev': ['test-dev.json']}
NAMES = IMAGES | {'testDev': 'test-dev2015'}  # in the names of the official files
MINIVAL, SEED = 5000, 9595
AGAIN = f'get the files again from {SOURCE}'
PEEK = 1000  # rows that tell annotators' answers from alternatives
MAX_REGIONS = 1 << 30  # bytes: image ids are read from a TSV without a store up to this size


def img_id(split, image_id):
    """COCO's name of an image: img_id('train', 9) is COCO_train2014_000000000009."""
    return f'COCO_{IMAGES[split]}_{image_id:012d}'


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
    for question, annotation in pair(read_questions(paths[0], split), read_annotations(paths[1]), AGAIN):
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


# ---- files of other datasets

class Rows:
    """The rows of one split as (row, path, place), from files of questions with answers, or of questions and of annotations with
    the same ids. Each iteration reads the files again."""

    def __init__(self, split, paths, where):
        """where: {key: list of text}: rows must have one of these."""
        self.split, self.where, self.dropped, self.values = split, where, Counter(), Counter()
        self.questions, self.annotations = [], []
        for path in paths:
            row, _ = next(read_rows(path))
            (self.annotations if value_of(row, 'question') is None else self.questions).append(path)
        if not self.questions:
            raise DataError(f'--split {split}: {", ".join(map(str, paths))}: expected a file with questions '
                            f'({", ".join(KEYS["question"])}), found only answers; name the file of their questions too')

    def read(self, paths):
        """Yields (question id or None, (row, path, place))."""
        for path in paths:
            for row, place in read_rows(path):
                key = text_of(value_of(row, 'id'))
                if self.annotations and key is None:
                    raise DataError(f'{place}: expected an id ({", ".join(KEYS["id"])}), which joins questions and annotations, '
                                    'found none; merge the files')
                yield key, (row, path, place)

    def joined(self):
        """Yields (row, path, place) of the questions, with the keys of their annotations."""
        questions, annotations = self.read(self.questions), self.read(self.annotations)
        if not self.annotations:
            yield from (item for _, item in questions)
            return
        for question, annotation in pair(questions, annotations, 'correct the files, of which one may be given twice'):
            if question is None or annotation is None:
                self.dropped['annotations without a question' if question is None else 'questions without an annotation'] += 1
            else:
                yield question[0] | annotation[0], *question[1:]

    def __iter__(self):
        self.dropped.clear()
        for row, path, place in self.joined():
            values = {key: text_of(row.get(key)) for key in self.where}
            if all(values[key] in texts for key, texts in self.where.items()):
                yield row, path, place
            else:
                self.dropped['questions left out by --where'] += 1
                self.values.update(f'{key}={value}' for key, value in values.items())


class Labels:
    """Answers of rows as {answer: soft score}. lists: 'annotators' or 'alternatives', or None to tell from the first rows."""

    def __init__(self, splits, lists):
        answered = (answers_of(row, place) for rows in splits.values() for row, _, place in islice(rows, PEEK))
        repeated = [annotators or len(set(answers)) < len(answers) for answers, annotators in answered if len(answers) > 1]
        self.annotators = lists == 'annotators' or (not lists and 20 * sum(repeated) > len(repeated))
        if repeated:
            print('lists of answers are ' + ('those of annotators, scored as in the VQA evaluator' if self.annotators else
                                             'alternatives, each of which scores 1') + '; --lists says otherwise.')

    def clean(self, answer):
        """As in the official evaluator where that counts annotators; else in lower case, with single spaces."""
        return normalise(answer) if self.annotators else ' '.join(answer.lower().split())

    def answers(self, row, place):
        """All normalised answers of a row; '' for one of which nothing is left."""
        return [self.clean(answer) for answer in answers_of(row, place)[0]]

    def counted(self, row, place):
        """The answers of a row that count for the vocabulary: of annotators the most common one, else all."""
        answers = [answer for answer in self.answers(row, place) if answer]
        if not self.annotators:
            return set(answers)
        most = self.clean(text_of(row.get('multiple_choice_answer')) or '')
        return {most} if most else {answer for answer, _ in Counter(answers).most_common(1)}

    def label(self, row, place, vocabulary):
        if scores := scores_of(row, place):
            return {answer: score for one, score in scores.items() if (answer := self.clean(one)) in vocabulary}
        answers = self.answers(row, place)
        return soft_scores(answers, vocabulary) if self.annotators else {one: 1 for one in answers if one in vocabulary}


class QuestionIds:
    """Question ids: those of the files, whole numbers if all are, else texts; numbers from 0 where no question has one."""

    def __init__(self, renumber):
        self.renumber, self.whole, self.missing, self.ids = renumber, True, [], set()

    def add(self, row, split, place):
        """Takes note of the id of a row. Raises DataError for a second question of this id in the split."""
        key = value_of(row, 'id')
        if self.renumber or key is None:
            self.missing += [place][len(self.missing):]
            return
        if (split, key) in self.ids or text_of(key) is None:
            raise DataError(f'{place}: expected a new question id, found {key!r:.100}; correct it, or give --renumber, which '
                            'numbers the questions')
        self.ids.add((split, key))
        self.whole &= isinstance(key, int) or (  # of an object {id: row}, as GQA's, they are texts
            'questionId' not in row and re.fullmatch(r'0|[1-9][0-9]{,17}', str(key)) is not None)

    def choose(self):
        if self.ids and self.missing:
            raise DataError(f'{self.missing[0]}: expected a question id ({", ".join(KEYS["id"])}) as in other rows, found none; '
                            'add it, or give --renumber, which numbers the questions')
        self.renumber = not self.ids

    def of(self, row, number):
        key = number if self.renumber else value_of(row, 'id')
        return int(key) if self.whole else str(key)


def known_regions(paths):
    """The image ids of all regions, if that takes no long reading; else an empty list. Raises RegionError if there are none."""
    from tools.check_dataset import region_ids

    for path in paths:
        file = tsv.find(path)
        if store.fresh(path) is None and file.size > MAX_REGIONS:
            print(f'{path}: large, and not converted yet: image ids are not compared with its ids. To do so, first run: '
                  f'bash run/regions.bash convert {path}')
            return []
    return [key.decode() for path in paths for key in region_ids(path, None).tolist()]


def convert(args):
    """Makes the files of --split: each read once to choose ids and answers, and once to write."""
    splits = {split: Rows(split, paths, args.where[split]) for split, paths in args.split.items()}
    labels, questions, images = Labels(splits, args.lists), QuestionIds(args.renumber), QuestionImages(args.ids, args.regions)
    counts = {split: Counter() for split in splits}
    for split, rows in splits.items():
        place = None
        for row, path, place in rows:
            if not isinstance(question := value_of(row, 'question'), str):
                raise DataError(f'{place}: expected a question as text ({", ".join(KEYS["question"])}), found {question!r:.100}; '
                                'write each row as an object of its own, with pandas as to_json(orient="records")')
            questions.add(row, split, place)
            images.add(row, path, place)
            counts[split].update(labels.counted(row, place))
        if place is None:
            raise DataError(f'--split {split}: no question is left: {rows.dropped.total():,} '
                            f'{", ".join(rows.dropped)}{examples_of(rows.values)}; correct --where or the files')
    questions.choose()
    images.choose()
    answers = read_answers(args.like) if args.like else frequent(counts[args.vocabulary], args.least)
    if not answers:
        raise DataError(f'--split {args.vocabulary}: no answer belongs to {args.least} questions; lower --least, name another '
                        'split by --vocabulary, or give --like')
    outputs = ['dataset.json', *(f'{split}.json' for split in splits), *VOCABULARY]
    with Outputs(args.out, outputs) as out:
        dump_vocabulary(out, answers)
        print(f'vocabulary: {len(answers):,} answers; first: {some(answers[:10], 10)}')
        for split, rows in splits.items():
            write_rows(out, rows, counts[split], labels, questions, images, set(answers))
        kind = 'vqa' if questions.whole else 'gqa'
        features = [os.path.relpath(path, args.out) for path in args.features] or [f'{args.out.name}_obj36.tsv']
        out.dump('dataset.json', {
            'kind': kind, 'name': args.out.name, 'max_length': args.maxLength, 'answers': VOCABULARY[0],
            'splits': {split: {'annotations': f'{split}.json', 'features': features} for split in splits},
            'made_from': {split: [str(path) for path in paths] for split, paths in args.split.items()}})
    print(f'made {", ".join(outputs)} in {args.out}')
    if not args.features:
        print(f'The regions are expected in {args.out / features[0]}; --features names other files.')
    if kind == 'gqa':
        print('Question ids are texts: train with run/gqa_finetune.bash, or give --renumber for run/vqa_finetune.bash.')
    train, *others = splits
    print(f'next: bash run/check_dataset.bash {args.out / "dataset.json"}\n'
          f'      bash run/{kind}_finetune.bash 0 {args.out.name} --dataset {args.out / "dataset.json"} --train {train} '
          f'--valid {next((split for split in others if counts[split]), repr(""))}')


def write_rows(out, rows, counts, labels, questions, images, vocabulary):
    """Writes the examples of a split and prints statistics. counts: of its answers; without any it gets no labels."""
    name, tally, img_ids = f'{rows.split}.json', Counter(), set()
    for row, path, place in rows:
        answered = bool(labels.counted(row, place))
        if counts and not answered:
            rows.dropped['questions without an answer'] += 1
            continue
        example = {'img_id': images.of(row, path, place), 'question_id': questions.of(row, tally['questions']),
                   'sent': value_of(row, 'question')}
        if answered:
            example['label'] = labels.label(row, place, vocabulary)
        out.add(name, example | types_of(row))
        img_ids.add(example['img_id'])
        tally['questions'] += 1
        tally['no label'] += answered and not example['label']
    missing = sorted(img_ids - images.regions) if images.regions else []
    if missing and len(missing) == len(img_ids):
        raise DataError(f'--split {rows.split}: none of its {len(img_ids):,} images has regions: images are {some(missing)}, '
                        f'regions {some(sorted(images.regions))}; correct --ids or --features')
    notes = [f'{count:,} {what}: dropped' for what, count in rows.dropped.items()]
    if tally['no label']:
        notes.append(f'{tally["no label"]:,} have no answer of the vocabulary and are kept: any answer to them scores 0')
    if missing:
        notes.append(f'{len(missing):,} images have no regions{examples_of(missing, 2)}')
    print(f'{name}: {tally["questions"]:,} questions{"" if counts else " without answers"} on {len(img_ids):,} images'
          f'{examples_of(sorted(img_ids), 2)}{"".join(f"; {note}" for note in notes)}.')


def parse(argv):
    """The command line, with each of train, val (two paths), test, testDev (one) resolved to a tuple of paths, or None."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f'The official files: {SOURCE}, unzipped.')
    parser.add_argument('--split', nargs='+', action='append', metavar=('NAME', 'FILE'), help='a split of another dataset and '
                        'its files (json, json lines, csv, also with .gz): of questions with answers, or of questions and of '
                        'annotations; KEY=TEXT after them is --where for this split; repeated for each split')
    other = parser.add_argument_group('with --split')
    other.add_argument('--features', nargs='+', type=Path, default=[], metavar='TSV', help='regions of the images, for the '
                       'description; image ids become those that they have')
    other.add_argument('--ids', metavar='RULE', help='image ids: name (as in the files), path (without its ending), stem, number '
                       '(the id of the regions that ends in it), or a pattern of a question\'s keys such as '
                       'COCO_val2014_{image_id:012d}; else the one that fits the regions')
    other.add_argument('--where', action='append', default=[], metavar='KEY=TEXT', help='only questions with this, such as '
                       'q_lang=en; of several for one key, with any of them')
    other.add_argument('--lists', choices=('annotators', 'alternatives'), help='what a list of answers is: of annotators, who '
                       'are counted, or alternatives, which score 1 each; else told from repeated answers')
    other.add_argument('--vocabulary', metavar='SPLIT', help='split whose answers make the vocabulary; the first')
    other.add_argument('--renumber', action='store_true', help='number the questions in place of their ids')
    other.add_argument('--maxLength', type=int, default=20, help='max_length of the description: tokens of a question')
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
    parser.add_argument('--least', type=int, help='an answer of the vocabulary is the most common one of at least so many '
                        'questions; 9, with --split 1')
    parser.add_argument('--out', type=Path, help='folder of the outputs; this one, with --split a new one')
    args = parser.parse_args(argv)
    args.least = args.least or (1 if args.split else 9)
    if args.split:
        return parse_splits(parser, args)
    args.out = args.out or Path(__file__).parent
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


def parse_splits(parser, args):
    """The arguments with split as {name: paths}, where as {name: {key: list of text}}, and the ids of known regions."""
    for flag in ('raw', 'train', 'val', 'test', 'testDev', 'minival'):
        if getattr(args, flag):
            parser.error(f'--{flag}: for the official files of VQA v2, not with --split')
    if args.out is None:
        parser.error('--split: expected --out too, a folder for its files')
    splits, args.split, common, args.where = args.split, {}, args.where, {}
    for name, *texts in splits:
        filters = [text for text in texts if '=' in text and not Path(text).exists()]
        args.split[name] = [Path(text) for text in texts if text not in filters]
        if not args.split[name] or not re.fullmatch(r'[\w.-]+', name) or [one[0] for one in splits].count(name) > 1:
            parser.error(f'--split {name}: expected a new name (letters, digits, . - _) and at least one file')
        args.where[name] = {}
        for text in (*common, *filters):
            key, equals, value = text.partition('=')
            if not equals:
                parser.error(f'--where {text}: expected KEY=TEXT, such as q_lang=en')
            args.where[name].setdefault(key, []).append(value)
    args.vocabulary = args.vocabulary or next(iter(args.split))
    if args.vocabulary not in args.split:
        parser.error(f'--vocabulary {args.vocabulary}: expected one of {", ".join(args.split)}')
    args.regions = known_regions(args.features)
    return args


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    args = parse(argv)
    if args.split:
        convert(args)
        return
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
                  f'least {args.least} questions, which cover {share:.1f} % of the questions; first: {some(answers[1:11], 10)}')
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
