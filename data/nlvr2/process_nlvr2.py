"""Make train, valid, test and hidden.json of NLVR2 from the official files of json lines: is a statement true of two photographs?

An identifier such as dev-354-0-1 is split, set, pair and sentence; its photographs are dev-354-0-img0 (left) and -img1 (right).
"""
import argparse
import re
from collections import Counter
from pathlib import Path

from annotations.raw_data import Outputs, find, json_lines, run
from files.json_files import DataError, field

SOURCE = 'https://github.com/lil-lab/nlvr (folder nlvr2/data)'
SPLITS = {'train': 'train.json', 'valid': 'dev.json', 'test': 'test1.json', 'hidden': 'test2.json'}
LABELS = {'True': 1, 'False': 0}


def read(path):
    """Yields the examples of a file, without uid. Raises DataError that names the first line that is wrong."""
    labelled = None
    for row, place in json_lines(path, 'identifier', SOURCE):
        identifier = row['identifier']
        pair = re.fullmatch(r'(\w+-\d+-\d+)-\d+', identifier)
        if not pair:
            raise DataError(f'{place}: key "identifier": expected a text like dev-354-0-1, found {identifier!r}')
        example = {'identifier': identifier, 'img0': f'{pair[1]}-img0', 'img1': f'{pair[1]}-img1',
                   'sent': field(row, 'sentence', str, place)}
        if 'label' in row:
            if row['label'] not in LABELS:
                raise DataError(f'{place}: key "label": expected "True" or "False", found {row["label"]!r}')
            example['label'] = LABELS[row['label']]
        labelled = 'label' in row if labelled is None else labelled
        if ('label' in row) != labelled:
            raise DataError(f'{place}: key "label": expected labels on all lines of a file or on none')
        yield example


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     epilog=f'The official files: {SOURCE}. Missing files are skipped.')
    parser.add_argument('--raw', type=Path, required=True, help='folder of ' + ', '.join(SPLITS.values()) + ', also with .gz')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the outputs; this one')
    args = parser.parse_args(argv)

    files = {split: find(args.raw, name) for split, name in SPLITS.items()}
    if not any(files.values()):
        raise FileNotFoundError(f'{args.raw}: found none of {", ".join(SPLITS.values())}; get them from {SOURCE}')
    for split, path in files.items():
        if path is None:
            print(f'{SPLITS[split]} is not in {args.raw}: no {split}.json.')
    with Outputs(args.out, [f'{split}.json' for split, path in files.items() if path]) as out:
        for split, path in files.items():
            if path is None:
                continue
            pairs, labels = set(), Counter()
            for i, example in enumerate(read(path)):
                pairs.add(example['img0'])
                labels[example.get('label')] += 1
                out.add(f'{split}.json', example | {'uid': f'nlvr2_{split}_{i}'})
            true = f'{100 * labels[1] / labels.total():.1f} % of them true' if None not in labels else 'no labels'
            print(f'{split}: {labels.total():,} statements about {len(pairs):,} pairs of photographs, {true}.')
    print(f'made {", ".join(out.files)} in {args.out}')


if __name__ == '__main__':
    run(main)
