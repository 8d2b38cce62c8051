"""Scores whether images and sentences match, and fills [MASK], with pre-trained weights, or matches with a snapshot of
retrieval. The program behind run/match.bash."""

import argparse
import csv
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

import dist
from bert.tokenization import MASK
from cli import run_main
from detector.registry import FASTER_RCNN, HELP, WEIGHTS, DetectorConfig, load_detector
from files.atomic import write_atomically
from files.json_files import DataError, field, numbered_lines, some, stream
from files.progress import ProgressBar
from files.text import printable
from images.pictures import open_picture
from param import add_flags
from predict.ask import check_feature_size, detector_of, is_file
from regions import store
from regions.image_regions import ImageRegions
from tasks.matcher import Matcher

CHUNK = 256  # pairs whose regions are in memory at a time
EPILOG = '''
Every sentence is scored with every image. A sentence with [MASK] is not scored; its masked words are predicted. Images are
pictures, or with --features the ids of its images. --pairs FILE scores pairs instead: lines image<TAB>sentence, or
image<TAB>sentence<TAB>foil with a wrong sentence to compare; or json (lines) with img_id, sent (a text, or a list of several
captions) and, optionally, foil.

--out writes a csv, or with .json a list, with a row for each pair: image, sentence, match (the probability) and rank (of the
sentence among those of the image, from 1), or for pairs with foils: image, sentence, match, foil, foil_match.

Examples:
  bash run/match.bash cpu photo.jpg "a man rides a horse" "a man rides a bike" "a man rides a [MASK]"
  bash run/match.bash 0 --pairs foils.tsv --features data/mscoco_imgfeat/val2014_obj36.tsv --out snap/foils.csv

Exit status: 0 success, 1 invalid input, 2 wrong usage.
'''


def read_pairs(path):
    """[(image, sentence, foil or None), ...] of --pairs. Raises DataError, which names the line or the key."""
    if {'.json', '.jsonl'} & {*path.suffixes[-2:]}:
        pairs = []
        for item in stream(path, 'item', 'pairs'):
            name, sentences = field(item, 'img_id', str, path), item.get('sent')
            sentences = sentences if isinstance(sentences, list) else [field(item, 'sent', str, path)]
            foil = field(item, 'foil', str, path) if item.get('foil') is not None else None
            pairs += [(name, sentence, foil) for sentence in sentences]
    else:
        pairs = []
        for number, line in numbered_lines(path):
            parts = [part.strip() for part in line.decode(errors='replace').rstrip('\r\n').split('\t')]
            if len(parts) not in (2, 3) or not all(parts):
                raise DataError(f'{path}:{number}: expected image<TAB>sentence, or image<TAB>sentence<TAB>foil, found '
                                f'{printable(line[:80].decode(errors="replace"))!r}; correct the line')
            pairs.append((*parts, None)[:3])
    if not pairs:
        raise DataError(f'{path}: expected lines image<TAB>sentence, found none')
    if len({foil is None for *_, foil in pairs}) > 1:
        raise DataError(f'{path}: expected a foil in every row or in none, found both; complete them, or write two files')
    for number, texts in enumerate(pairs):
        if not all(isinstance(text, str) and text.strip() for text in texts[:2 + (texts[2] is not None)]):
            raise DataError(f'{path}: row {number}: expected texts that are not empty, found {texts!r:.200}; correct it')
    return pairs


class Images:
    """The ImageRegions of images by name: of ids in the files --features, or of pictures."""

    def __init__(self, flags, matcher):
        self.flags, self.matcher, self.detector, self.last = flags, matcher, None, {}
        self.files = [file for file in (flags.features or '').split(',') if file]
        if self.files and 'pixels' in matcher.needs:
            raise DataError(f'--features {flags.features}: {flags.load} reads pixels; name pictures, and leave --features out')
        self.store = store.open_all(self.files, flags.storeRoot) if self.files else None

    def check(self, names):
        """Raises RegionError or DataError if an image does not exist, before anything is computed."""
        if self.store is None:
            for name in names:
                open_picture(Path(name))
            return
        check_feature_size(self.matcher, ', '.join(self.files), self.store.feature_size)
        if missing := [name for name, row in zip(names, self.store.rows(names), strict=True) if row < 0]:
            raise DataError(f'--features {self.flags.features}: {len(missing):,} of {len(names):,} images are not in it '
                            f'({some(missing)}); correct the ids, or name the file that has them')

    def __call__(self, names):
        """{name: ImageRegions} of some images; those of the call before are not read again."""
        names = list(dict.fromkeys(names))
        new = [name for name in names if name not in self.last]
        if self.store is not None:
            images = [self.store.image(row) for row in self.store.rows(new)] if new else []
        else:
            images = [self.detect(name) for name in new]
        self.last = {name: self.last[name] for name in names if name in self.last} | dict(zip(new, images, strict=True))
        return self.last

    def detect(self, name):
        picture = open_picture(Path(name))
        if not self.matcher.needs_regions:
            return ImageRegions.without_regions(name, *picture.shape[:2], picture)
        if self.detector is None:
            kind = self.flags.detector or detector_of(self.matcher.options)
            config = DetectorConfig(kind, self.flags.weights, self.flags.bf16)
            self.detector = load_detector(config, next(self.matcher.head.parameters()).device)
        image, = self.detector.regions([picture], [name], self.flags.minBoxes, self.flags.maxBoxes)
        check_feature_size(self.matcher, self.detector.provenance['detector'], image.features.shape[1])
        return replace(image, picture=picture) if 'pixels' in self.matcher.needs else image


def ranks(scores):
    """The rank from 1 of each number, the highest first; equal ones in their order."""
    order = np.argsort(-np.asarray(scores), kind='stable')
    result = np.empty(len(order), int)
    result[order] = np.arange(1, len(order) + 1)
    return result.tolist()


def match_items(flags, matcher, images):
    """Scores every sentence with every image and prints a table; returns the rows for --out."""
    is_image = is_file if images.store is None else lambda item: images.store.rows([item])[0] >= 0
    names, sentences = [item for item in flags.items if is_image(item)], [item for item in flags.items if not is_image(item)]
    if not names or not sentences:
        what = 'pictures' if images.store is None else f'ids of images of {flags.features}'
        raise DataError(f'expected {what} and sentences, found only {"sentences" if sentences else "images"}: '
                        f'{some(names or sentences)}; ' + ('add a sentence' if names else 'correct the ids or paths'))
    masked, plain = [one for one in sentences if MASK in one], [one for one in sentences if MASK not in one]
    for objective, texts in (('match', plain), ('words', masked)):
        if texts:
            matcher.check_objective(objective)
    images.check(names)
    rows = []
    for name in names:
        image = images([name])[name]
        scores = matcher.match(image, plain, flags.batchSize).tolist() if plain else []
        of_image = [{'image': name, 'sentence': sentence, 'match': score, 'rank': rank}
                    for sentence, score, rank in zip(plain, scores, ranks(scores), strict=True)]
        print('\n' + printable(name))
        for row in sorted(of_image, key=lambda row: row['rank']):
            print(printable(f'  {row["match"]:6.1%}  {row["sentence"]}'))
        filled = matcher.fill(image, masked, flags.best, flags.batchSize) if masked else []
        for sentence, words in zip(masked, filled, strict=True):
            print(printable(f'  {sentence}'))
            for best in words:
                print(printable('    ' + ', '.join(f'{word} {probability:.1%}' for word, probability in best)))
            of_image.append({'image': name, 'sentence': sentence, 'words': words})
        rows += of_image
        for sentence in sentences:
            for line in matcher.unread(sentence):
                print(printable(f'  {line}'))
    if len(names) > 1:
        for sentence in plain:
            best = max((row for row in rows if row['sentence'] == sentence), key=lambda row: row['match'])
            print('\n' + printable(f'{sentence}\n  {best["match"]:6.1%}  {best["image"]}'.replace('\n', ' ')))
    return rows


def match_pairs(flags, matcher, images):
    """Scores the pairs of a file and prints what they come to; returns the rows for --out."""
    matcher.check_objective('match')
    pairs = read_pairs(flags.pairs)
    images.check(list(dict.fromkeys(name for name, *_ in pairs)))
    foils, rows = pairs[0][2] is not None, []
    with ProgressBar(total=len(pairs), desc='Matching', unit=' pairs') as bar:
        for chunk in (pairs[start:start + CHUNK] for start in range(0, len(pairs), CHUNK)):
            regions = images(name for name, *_ in chunk)
            of_pairs = [regions[name] for name, *_ in chunk]
            score = partial(matcher.match, of_pairs, batch_size=flags.batchSize)
            scores = score([sentence for _, sentence, _ in chunk]).tolist()
            others = score([foil for *_, foil in chunk]).tolist() if foils else [None] * len(chunk)
            for (name, sentence, foil), one, other in zip(chunk, scores, others, strict=True):
                row = {'image': name, 'sentence': sentence, 'match': one}
                rows.append(row | ({'foil': foil, 'foil_match': other} if foils else {}))
            bar.update(len(chunk))
    by_image = {}
    for row in rows:
        by_image.setdefault(row['image'], []).append(row)
    for of_image in by_image.values() if not foils else ():
        for row, rank in zip(of_image, ranks([row['match'] for row in of_image]), strict=True):
            row['rank'] = rank
    matched = np.array([row['match'] for row in rows])
    print(f'{len(rows):,} pairs of {len(by_image):,} images\n  match, mean probability  {matched.mean():6.1%}\n'
          f'  match above 50 %         {(matched > 0.5).mean():6.1%}')
    if foils:
        wrong = np.array([row['foil_match'] for row in rows])
        print(f'  foil, mean probability   {wrong.mean():6.1%}\n  foil below 50 %          {(wrong < 0.5).mean():6.1%}\n'
              f'  sentence above its foil  {(matched > wrong).mean():6.1%}')
    texts = sorted({text for row in rows for text in (row['sentence'], row.get('foil')) if text})
    for line in matcher.text_statistics(texts).lines(str(flags.pairs), matcher.tokenizer.vocab_file):
        print(printable(f'  {line}'))
    return rows


def write_rows(path, rows):
    """Writes rows (dicts) as .json or .csv; words of [MASK] become columns of json."""
    def write(file):
        if path.suffix == '.json':
            Path(file).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
            return
        with open(file, 'w', encoding='utf-8', newline='') as out:
            writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator='\n')
            writer.writeheader()
            writer.writerows({key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()}
                             for row in rows)

    write_atomically(path, write)


def run(flags):
    device = dist.start(flags.device)
    if flags.pairs and not flags.pairs.is_file():
        raise FileNotFoundError(f'--pairs {flags.pairs}: no such file; correct its name')
    matcher = Matcher.from_pretrained(flags.load, device, flags.maxLength, flags.bert)
    print(printable(f'Weights: {matcher.source}'))
    rows = (match_pairs if flags.pairs else match_items)(flags, matcher, Images(flags, matcher))
    if flags.out:
        write_rows(flags.out, rows)
        print(f'\n{len(rows):,} rows: {flags.out}')
    return 0


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog='run/match.bash', allow_abbrev=False, epilog=EPILOG,
                                     description='Scores whether images and sentences match, and fills [MASK].',
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     usage='bash run/match.bash GPU|cpu IMAGE... SENTENCE... [--load PRETRAINED] [flags]')
    parser.add_argument('items', nargs='*', metavar='IMAGE|SENTENCE', help='pictures, or ids of --features, and sentences')
    parser.add_argument('--load', default='snap/pretrained/model', metavar='FILE', help='pre-trained weights, or a snapshot of '
                        'run/retrieval_finetune.bash (%(default)s)')
    parser.add_argument('--features', metavar='A.tsv,B.tsv', help='the regions of the images; without it they are pictures')
    parser.add_argument('--pairs', type=Path, metavar='FILE', help='the pairs to score')
    parser.add_argument('--out', type=Path, metavar='X.csv|X.json', help='file for the scores (overwritten)')
    parser.add_argument('--best', type=int, default=5, help='how many words to print for a [MASK] (5)')
    parser.add_argument('--maxLength', type=int, help='maximum tokens of a sentence (20; of retrieval as in its training)')
    parser.add_argument('--detector', metavar='NAME', help=f'{HELP} (the one whose regions the weights were trained on)')
    parser.add_argument('--weights', metavar='FILE', help=f'of the Faster R-CNN ({WEIGHTS})')
    parser.add_argument('--minBoxes', type=int, default=36, help='the fewest regions of a picture (36)')
    parser.add_argument('--maxBoxes', type=int, default=36, help='the most (36)')
    add_flags(parser, 'batchSize', 'bert', 'storeRoot', 'bf16', 'device')
    flags = parser.parse_args(argv)
    if bool(flags.items) == bool(flags.pairs):
        parser.error('expected images and sentences, or --pairs FILE')
    if flags.out and (flags.out.suffix not in ('.csv', '.json') or not flags.out.parent.is_dir()):
        parser.error(f'--out {flags.out}: expected a name ending in .csv or .json, in a folder that exists')
    if flags.best < 1 or flags.batchSize < 1 or (flags.maxLength is not None and flags.maxLength < 3):
        parser.error('--best, --batchSize: expected at least 1; --maxLength: at least 3')
    if flags.detector not in (None, FASTER_RCNN) and (flags.weights or flags.bf16):
        parser.error(f'--weights and --bf16 are those of --detector {FASTER_RCNN}; leave them out with {flags.detector}')
    return run_main('match.bash', lambda: run(flags))


if __name__ == '__main__':
    sys.exit(main())
