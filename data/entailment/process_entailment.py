"""Make train, dev and test.json of visual entailment from SNLI-VE's or XVNLI's json lines, or ALBEF's json.

Dropped, and counted: pairs on whose label the annotators did not agree ("-"), and pairs with an empty sentence.
"""
import argparse
from collections import Counter, defaultdict
from pathlib import Path

from annotations.raw_data import Outputs, examples_of, find, run
from annotations.snli_ve import LABELS, has_labels, read_pairs
from files.json_files import DataError
from images.ids import ENDINGS, ImageIds

SOURCE = 'https://github.com/necla-ml/SNLI-VE'
SPLITS = ('train', 'dev', 'test')
NAMES = ('snli_ve_{}.jsonl', '{}.jsonl', 've_{}.json')  # of SNLI-VE, XVNLI, ALBEF


def convert(split, path, folder, images, out):
    """Adds the pairs of a file to Outputs and prints what was kept, dropped, and is unusual. images: ids of the pictures in
    `folder`, or None. Raises DataError that names the first pair that is wrong."""
    labelled, dropped, labels, pictures, sentences = has_labels(path), Counter(), Counter(), Counter(), defaultdict(set)
    for pair in read_pairs(path):
        if labelled and not pair.label:
            dropped['without a label'] += 1
        elif not pair.sent:
            dropped['with an empty sentence'] += 1
        else:
            labels[pair.label] += 1
            pictures[pair.img_id] += 1
            sentences[pair.img_id, pair.sent.lower()].add(pair.label)
            out.add(f'{split}.json', {'pairID': pair.id, 'img_id': pair.img_id, 'sent': pair.sent}
                    | ({'label': pair.label} if labelled else {}))
    if not labels:
        raise DataError(f'{path}: expected pairs with a label and a sentence, found none; get the file again from {SOURCE}')
    shares = ', '.join(f'{label} {labels[label]:,}' for label in LABELS) if labelled else 'no labels'
    total = labels.total() + dropped.total()
    print(f'{split}: {labels.total():,} of {total:,} pairs kept, about {len(pictures):,} pictures; {shares}.')
    for what, count in dropped.items():
        print(f'{split}: {count:,} pairs {what} dropped.')
    if repeated := labels.total() - len(sentences):
        several = [key for key, names in sentences.items() if len(names) > 1]
        print(f'{split}: {repeated:,} pairs repeat the sentence of another about the same picture; {len(several):,} of these '
              f'sentences have several labels{examples_of((sent for _, sent in several), 2)}.')
    if images is not None and (missing := [img_id for img_id in pictures if img_id not in images]):
        print(f'{split}: {len(missing):,} pictures{examples_of(missing)} are not in {folder}; their '
              f'{sum(pictures[img_id] for img_id in missing):,} pairs are kept.')


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    expected = ', '.join(name.format('SPLIT') for name in NAMES)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     epilog=f'SNLI-VE: {SOURCE}. Missing files are skipped.')
    parser.add_argument('--raw', type=Path, help=f'folder of {expected}, also with .gz; SPLIT is train, dev, test')
    parser.add_argument('--split', nargs=2, action='append', metavar=('NAME', 'FILE'), default=[],
                        help='a file of another name, also several times')
    parser.add_argument('--images', type=Path, help='folder of the pictures: report those that are missing')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the outputs; this one')
    args = parser.parse_args(argv)

    files = {split: Path(path) for split, path in args.split}
    for split in SPLITS if args.raw else ():
        paths = [path for name in NAMES if (path := find(args.raw, name.format(split)))]
        if paths and split not in files:
            files[split] = paths[0]
        elif not paths:
            print(f'{expected.replace("SPLIT", split)} are not in {args.raw}: no {split}.json.')
    if not files:
        raise FileNotFoundError(f'{args.raw or "--raw"}: found none of {expected}; get them from {SOURCE}, or name them: --split')
    if args.images and not args.images.is_dir():
        raise FileNotFoundError(f'--images {args.images}: no such folder; correct the path')
    images = {ImageIds()(path) for path in args.images.rglob('*') if path.suffix.lower() in ENDINGS} if args.images else None
    with Outputs(args.out, [f'{split}.json' for split in files]) as out:
        for split, path in files.items():
            convert(split, path, args.images, images, out)
    print(f'made {", ".join(out.files)} in {args.out}')


if __name__ == '__main__':
    run(main)
