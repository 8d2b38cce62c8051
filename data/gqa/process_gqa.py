"""Make train, valid, testdev, testdev_all and submit.json and the answer vocabulary of GQA from the official question files.

The label of a question is {answer: 1.0}. question_type is the official structural type (query, verify, logical, choose, compare);
answer_type is, as in the official evaluator, open for the type query and binary for all others.
"""
import argparse
from collections import Counter
from pathlib import Path

from annotations.raw_data import VOCABULARY, Outputs, dump_vocabulary, examples_of, find, frequent, run
from annotations.spec import read_answers
from files.json_files import field, some, stream

SOURCE = 'https://cs.stanford.edu/people/dorarad/gqa/download.html'
SPLITS = {'train': 'train_balanced_questions.json', 'valid': 'val_balanced_questions.json',
          'testdev': 'testdev_balanced_questions.json', 'testdev_all': 'testdev_all_questions.json',
          'submit': 'submission_all_questions.json'}
ALL = {'train_all': 'train_all_questions', 'valid_all': 'val_all_questions.json'}  # train_all_questions is a folder of ten files


def convert(key, question, path, with_label):
    """The example of one official question; key: its id. Raises DataError that names the file and the key."""
    example = {'img_id': field(question, 'imageId', str, path), 'question_id': key,
               'sent': field(question, 'question', str, path)}
    if with_label:
        example['label'] = {field(question, 'answer', str, path): 1.0}
    if 'types' in question:
        structural = field(question['types'], 'structural', str, path)
        example |= {'answer_type': 'open' if structural == 'query' else 'binary', 'question_type': structural}
    return example


def find_all(folder, name):
    """The files of an official name: the file itself, it with .gz, or those of a folder in the order of their numbers."""
    if (folder / name).is_dir():
        return sorted((folder / name).glob(f'{name}_*.json*'), key=lambda path: (len(path.name), path.name))
    return [path for path in [find(folder, name)] if path]


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f'The official files: {SOURCE}, "Questions", '
                                     'unzipped. Missing files are skipped.')
    parser.add_argument('--raw', type=Path, required=True, help='folder of the files under their official names, also with .gz')
    parser.add_argument('--all', action='store_true', help='also train_all.json and valid_all.json of the unbalanced questions')
    parser.add_argument('--like', type=Path, metavar='FILE', help='a trainval_label2ans.json whose answers and order are kept, '
                        'so that snapshots made with it fit; else all answers of train and valid')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the outputs; this one')
    args = parser.parse_args(argv)

    names = SPLITS | (ALL if args.all else {})
    files = {split: find_all(args.raw, name) for split, name in names.items()}
    needed = () if args.like else ('train', 'valid')
    if not any(files.values()) or not all(files[split] for split in needed):
        missing = next(names[split] for split in needed or names if not files[split])
        raise FileNotFoundError(f'{args.raw / missing}: no such file, nor with .gz; get it from {SOURCE}'
                                + ('' if args.like else '. The vocabulary comes from train and valid, or from --like FILE'))
    for split in names:
        if not files[split]:
            print(f'{names[split]} is not in {args.raw}: no {split}.json.')
    splits = [split for split in names if files[split]]
    with Outputs(args.out, [*(f'{split}.json' for split in splits), *VOCABULARY]) as out:
        answers = read_answers(args.like) if args.like else None
        counts = {split: write(out, split, files[split]) for split in splits}
        if answers is None:
            trained = counts['train'] + counts['valid']
            answers = frequent(trained, 1)
            print(f'vocabulary: the {len(answers):,} answers of train and valid; first: {some(answers, 10)}')
        dump_vocabulary(out, answers)
        for split in splits:
            unknown = counts[split] - Counter(dict.fromkeys(answers, counts[split].total()))
            if unknown:
                print(f'{split}: {unknown.total():,} questions have {len(unknown):,} answers that are not in the vocabulary'
                    f'{examples_of(unknown)}; they are kept, and no prediction can be right.')
    print(f'made {", ".join(out.files)} in {args.out}')


def write(out, split, paths):
    """Writes <split>.json from official files; returns how often each answer occurs (a Counter)."""
    counts, images, types = Counter(), set(), Counter()
    for path in paths:
        for key, question in stream(path, '', 'questions', pairs=True):
            example = convert(key, question, path, with_label=split != 'submit')
            counts.update(list(example.get('label', ())))  # a list, since Counter.update would add the scores of a dict
            images.add(example['img_id'])
            types[example.get('question_type', 'no type')] += 1
            out.add(f'{split}.json', example)
    total = types.total()
    print(f'{split}: {total:,} questions on {len(images):,} images, {len(counts):,} answers; '
        + ', '.join(f'{kind} {100 * count / total:.1f} %' for kind, count in types.most_common()))
    return counts


if __name__ == '__main__':
    run(main)
