"""Make the datasets of NLVR v1 (Suhr et al., ACL 2017), is a statement true of a picture?, and of pre-training for it.

The corpus lists every object of every picture, so that the regions are exact and no detector is needed. A picture is
three boxes of 100 x 100 pixels, 50 pixels apart; the order of the boxes never changes the truth of a statement, so
each training picture is made in all six orders (the corpus ships its pictures in six orders for the same reason).
Pre-training has statements of known truth and questions for numbers that `grammar` makes in the corpus's language.
"""
import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import re
import reprlib
import shutil
import string
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tqdm import tqdm

import grammar as language
from bert.tokenization import SPECIAL_TOKENS
from regions import store, tsv

SOURCE = 'https://github.com/lil-lab/nlvr (folder nlvr)'
SPLITS = ('train', 'dev')
ORDERS = {'train': tuple(itertools.permutations(range(3))), 'dev': ((0, 1, 2),)}
TYPES = tuple(language.SHAPES)                                     # class ids 0..2; 3 is a box itself
COLOURS = language.COLOURS | {'#0099ff': language.COLOURS['blue']}  # attribute ids; 3 is none. The corpus: #0099ff
SIDE, PITCH, WIDTH = language.SIDE, 150, 400                       # pixels: a box, from box to box, the whole picture
SIZES = (*language.SIZES.values(), SIDE)
BOX = (3, 3, SIDE, 0, 0)                                           # a box as an object: type, colour, size, x, y
FEATURES = 33
POSITIONS = 64
# The splits of pre-training: arguments of language.generate. A chunk of `part` sentences has pictures and a seed of its own.
PART, POOL, LEAST = 1500, 500, 12
EASY = {'questions': 0.85, 'most': 2, 'longest': 7, 'each': 6}                      # few objects, short sentences
FULL = {'questions': 0.7}


class CorpusError(ValueError):
    """The corpus is missing, broken or not NLVR v1; the message names the file and, where there is one, the line."""


class Example(NamedTuple):
    """One statement about one picture; boxes: three int64 arrays (n, 5) of type, colour, size, x, y (pixels)."""
    identifier: str
    sentence: str
    label: str
    boxes: tuple[np.ndarray, ...]


def field(row, key, where, expected, accepts):
    """row[key] if `accepts` says so; else a CorpusError that says what was expected at `where`."""
    value = row.get(key) if isinstance(row, dict) else row
    if not isinstance(row, dict) or not accepts(value):
        found = reprlib.repr(value) if not isinstance(row, dict) or key in row else 'nothing'
        raise CorpusError(f'{where}: {key}: expected {expected}, found {found}; get the file again from {SOURCE}')
    return value


def parse_object(item, where):
    """The columns type, colour, size, x, y of one object of `structured_rep`; it must lie inside its box."""
    kind = field(item, 'type', where, f'one of {", ".join(TYPES)}', lambda v: v in TYPES)
    colour = field(item, 'color', where, f'one of {", ".join(COLOURS)}', lambda v: str(v).lower() in COLOURS)
    size = field(item, 'size', where, '10, 20 or 30', lambda v: type(v) is int and v in SIZES[:3])
    room = f'a whole number from 0 to {SIDE - size}, so that the object lies in its box'
    x, y = (field(item, key, where, room, lambda v: type(v) is int and 0 <= v <= SIDE - size)
            for key in ('x_loc', 'y_loc'))
    return TYPES.index(kind), COLOURS[colour.lower()], size, x, y


def parse(line, where):
    """The Example of one line of the corpus (bytes); CorpusError with `where` (file:line) if it is not one."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise CorpusError(f'{where}: expected JSON, found {error}; get the file again from {SOURCE}') from error
    identifier = field(row, 'identifier', where, 'text like 1304-0', lambda v: re.fullmatch(r'\d+-\d+', str(v)))
    sentence = field(row, 'sentence', where, 'a statement', lambda v: isinstance(v, str) and v.strip())
    label = field(row, 'label', where, '"true" or "false"', lambda v: v in ('true', 'false'))
    scene = field(row, 'structured_rep', where, f'a list of 3 boxes, each a list of up to {language.MAX_OBJECTS} objects',
                  lambda v: isinstance(v, list) and len(v) == 3 and all(
                      isinstance(box, list) and len(box) <= language.MAX_OBJECTS for box in v))
    boxes = (np.array([parse_object(item, f'{where}: structured_rep[{b}][{i}]') for i, item in enumerate(box)],
                      np.int64).reshape(-1, 5) for b, box in enumerate(scene))
    return Example(identifier, sentence.strip(), label, tuple(boxes))


def read(path):
    """All Examples of a corpus file, in file order; CorpusError at the first bad line or repeated identifier."""
    examples, seen = [], {}
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            example = parse(line, f'{path}:{number}')
            if seen.setdefault(example.identifier, number) != number:
                raise CorpusError(f'{path}:{number}: identifier: expected a new one, found {example.identifier}, which '
                                  f'line {seen[example.identifier]} has; get the file again from {SOURCE}')
            examples.append(example)
    if not examples:
        raise CorpusError(f'{path}: expected one JSON object a line, found an empty file; get it again from {SOURCE}')
    return examples


def regions(img_id, boxes):
    """The picture of three boxes, (n, 5) each, from left to right: a region an object, then one for each box.

    A feature is, in this order: type (4) and colour (4), size 10, 20, 30, box (4) and which box (3), all one-hot, times 3,
    3, 1.5 and 1.5, so that the many numbers of places do not drown them; centre x, y in -1..1 of the box (2), half its sine
    and cosine with periods of 50 and 25 pixels (8; fine differences of place, such as a gap of one pixel); touches the
    left, top, right, bottom wall (4); is the lowest, second lowest, highest, second highest object of its box (4).
    """
    kind, colour, size, x, y = np.concatenate([*boxes, [BOX] * 3]).T
    which = np.concatenate([np.repeat(range(3), [len(box) for box in boxes]), range(3)])
    corner = np.stack([x, y], 1)                                                    # (o, 2)
    centre = (corner + size[:, None] / 2) / (SIDE / 2) - 1
    waves = np.concatenate([2 * np.pi * centre, 4 * np.pi * centre], 1)             # (o, 4)
    four, three = np.eye(4), np.eye(3)
    item = kind < len(TYPES)
    beside = (which[:, None] == which) & item[:, None] & item                       # (o, o): in the same box
    lower, higher = ((beside & other).sum(1) for other in (y > y[:, None], y < y[:, None]))
    features = np.concatenate([
        3 * four[kind], 3 * four[colour], 1.5 * four[np.searchsorted(SIZES, size)], 1.5 * three[which],
        centre, np.sin(waves) / 2, np.cos(waves) / 2,
        # touching is an exact 0 here: that fits the labels as well as 1 pixel does, and a gap of 2 fits them worse
        corner == 0, corner + size[:, None] == SIDE,
        np.stack([item & (n == i) for n in (lower, higher) for i in (0, 1)], 1)], 1, dtype=np.float32)  # (o, FEATURES)
    corner = corner + np.stack([PITCH * which, 0 * which], 1)
    sure = np.ones(len(kind), np.float32)
    return tsv.ImageRegions(img_id, SIDE, WIDTH, kind, sure, colour, sure,
                            np.concatenate([corner, corner + size[:, None]], 1, dtype=np.float32), features)


# what every picture is when the model must do without: one region that says nothing
BLANK = tsv.ImageRegions('', SIDE, WIDTH, np.array([3]), np.ones(1, np.float32), np.array([3]), np.ones(1, np.float32),
                         np.array([[0, 0, WIDTH, SIDE]], np.float32), np.ones((1, FEATURES), np.float32))


def pictures(split, examples):
    """Yields (img_id, Example, boxes in order) for each Example and each order; p0 is the corpus's own order."""
    for example in examples:
        for p, order in enumerate(ORDERS[split]):
            suffix = f'-p{p}' if split == 'train' else ''
            yield f'nlvr-{split}-{example.identifier}{suffix}', example, [example.boxes[box] for box in order]


def annotate(img_id, example):
    """The annotation of one picture: `tower` if all is blocks stacked in the middle of their boxes, else `scatter`."""
    tower = language.is_tower(example.boxes)
    return {'img_id': img_id, 'identifier': img_id, 'sent': example.sentence, 'label': int(example.label == 'true'),
            'answer_type': 'yes/no', 'question_type': 'tower' if tower else 'scatter'}


def vocabulary(sentences):
    """Special pieces, single characters, then the words seen at least twice, most frequent first.

    The trainer of `tokenizers` breaks ties by a random hash and gives another vocabulary at each run; the corpus has so
    few words that whole words need no trainer. Other words fall into characters.
    """
    normalize, split = BertNormalizer(lowercase=True).normalize_str, BertPreTokenizer().pre_tokenize_str
    words = Counter(word for sentence in sentences for word, _ in split(normalize(sentence)))
    characters = sorted({*''.join(words), *string.ascii_lowercase, *string.digits, *string.punctuation})
    whole = [word for word in sorted(words, key=lambda w: (-words[w], w)) if words[word] > 1 and len(word) > 1]
    return [*SPECIAL_TOKENS, *characters, *('##' + c for c in characters), *whole]


def invent(examples, statements, seed):
    """What pre-training reads: {split: list of (img_id, boxes, {source: [(sentence, answer)]})}."""
    corpus = [(example.sentence, example.boxes) for example in examples if language.parse_statement(example.sentence)]
    # first the easy ones, to find out which word goes with which object; then all, with a sixth of easy ones
    amounts = ('easy', statements // 12, EASY), ('full', statements // 6, EASY), ('full', statements - statements // 6, FULL)
    jobs = [(split, {'statements': min(PART, amount - done), 'size': POOL, **kind})
            for split, amount, kind in amounts for done in range(0, amount, PART)]
    jobs = [(split, job | {'seed': [seed, i]}) for i, (split, job) in enumerate(jobs)]
    made = {'easy': [], 'full': []}
    results = language.generate_all(corpus, [job for _, job in jobs])
    for (split, _), (scenes, said) in zip(jobs, tqdm(results, 'inventing', len(jobs), unit='part', disable=None), strict=True):
        sentences = [defaultdict(list) for _ in scenes]
        for picture, source, sentence, answer in said:
            sentences[picture][source].append((sentence, answer))
        first = len(made[split])
        made[split] += [(f'nlvr-{split}-{first + i}', scene, sentences[i]) for i, scene in enumerate(scenes)]
    return made


def write_pretraining(out, made, max_length, with_pictures):
    """Writes the pre-training dataset of `invent` into the folder `out`: pretraining.json describes it."""
    asked = {(answer, source) for pictures in made.values() for *_, said in pictures
             for source, told in said.items() for _, answer in told}
    answers = sorted({answer for answer, _ in asked}, key=('false', 'true', *map(str, range(100))).index)
    dump([{'ans': answer, 'dsets': sorted(source for other, source in asked if other == answer)} for answer in answers],
         out / 'all_ans.json')
    for split, pictures in made.items():
        if not pictures:
            raise CorpusError(f'--nlvr: no picture could be made for {split} of pre-training: too few sentences of train are '
                              'understood, or --statements asks for too few; give --statements 0 for none')
        dump([{'img_id': img_id, 'sentf': {source: [sentence for sentence, _ in said[source]] for source in said},
               'labelf': {source: [{answer: 1.0} for _, answer in said[source]] for source in said}}
              for img_id, _, said in pictures], out / f'{split}.json')
        images = (regions(img_id, scene) if with_pictures else dataclasses.replace(BLANK, img_id=img_id)
                  for img_id, scene, _ in pictures)
        tsv.write(out / f'{split}_obj.tsv', tqdm(images, split, len(pictures), unit='picture', disable=None))
        count = Counter(source for *_, said in pictures for source in said for _ in said[source])
        print(f'pre-training, {split}: {len(pictures):,} pictures, {count["statements"]:,} statements, as many true as false, '
              f'{count["counts"]:,} questions for numbers')
    dump({'kind': 'lxmert', 'name': 'nlvr-pretraining', 'max_length': max_length, 'answers': 'all_ans.json',
          'splits': {split: {'annotations': f'{split}.json', 'features': [f'{split}_obj.tsv']} for split in made}},
         out / 'pretraining.json')


def dump(value, path):
    path.write_text(json.dumps(value) + '\n', encoding='utf-8')


def write(out, corpus, made_from, with_pictures):
    """Writes the datasets of corpus {split: Examples} into the new folder `out` and prints their figures."""
    made = invent(corpus['train'], made_from['statements'], made_from['seed'])
    invented = (sentence for pictures in made.values() for *_, said in pictures for told in said.values() for sentence, _ in told)
    vocab = vocabulary([*(example.sentence for example in corpus['train']), *invented])
    (out / 'bert').mkdir(parents=True)
    (out / 'bert' / 'vocab.txt').write_text('\n'.join(vocab) + '\n', encoding='utf-8')
    dump({'vocab_size': len(vocab), 'hidden_size': 128, 'num_attention_heads': 4, 'intermediate_size': 256,
          'l_layers': 1, 'r_layers': 1, 'x_layers': 2, 'hidden_act': 'gelu', 'hidden_dropout_prob': 0.0,
          'attention_probs_dropout_prob': 0.0, 'max_position_embeddings': POSITIONS, 'type_vocab_size': 2,
          'initializer_range': 0.05, 'visual_feat_dim': FEATURES, 'visual_pos_dim': 4,
          'num_object_labels': len(TYPES) + 1, 'num_attr_labels': len(TYPES) + 1}, out / 'bert' / 'config.json')
    tokenizer = BertWordPieceTokenizer({piece: i for i, piece in enumerate(vocab)}, lowercase=True)
    lengths = {split: [len(e.ids) for e in tokenizer.encode_batch([example.sentence for example in examples])]
               for split, examples in corpus.items()}                               # with [CLS] and [SEP]
    max_length = min(max(lengths['train']), POSITIONS)

    for split, examples in corpus.items():
        dump([annotate(img_id, example) for img_id, example, _ in pictures(split, examples)],
             out / f'{split}.json')
        images = ((regions(img_id, boxes) if with_pictures else dataclasses.replace(BLANK, img_id=img_id))
                  for img_id, _, boxes in pictures(split, examples))
        total = len(examples) * len(ORDERS[split])
        tsv.write(out / f'{split}_obj.tsv', tqdm(images, split, total, unit='picture', disable=None))
        counts = [sum(map(len, example.boxes)) + 3 for example in examples] if with_pictures else [1]
        label, most = Counter(example.label for example in examples).most_common(1)[0]
        print(f'{split}: {len(examples):,} statements, {total:,} pictures, regions a picture {min(counts)} / '
              f'{np.mean(counts):.1f} / {max(counts)} (min / mean / max), always "{label}" scores '
              f'{100 * most / len(examples):.1f}, {sum(n > max_length for n in lengths[split])} statements are longer '
              f'than {max_length} pieces and will be cut')

    if made_from['statements']:
        write_pretraining(out, made, max_length, with_pictures)
    dump({'kind': 'nlvr', 'name': 'nlvr', 'max_length': max_length,
          'splits': {split: {'annotations': f'{split}.json', 'features': [f'{split}_obj.tsv']} for split in corpus},
          'made_from': made_from}, out / 'dataset.json')


def find(folder, split):
    """The corpus file of a split: <split>.json or, as in the repository, <split>/<split>.json below `folder`."""
    paths = [folder / f'{split}.json', folder / split / f'{split}.json']
    for path in paths:
        if path.is_file():
            return path
    raise CorpusError(f'--nlvr: expected {paths[0]} or {paths[1]}, found neither; get the corpus from {SOURCE}')


def made_before(described):
    """What the dataset at `described` (a dataset.json) was made from by this program; None if it was not."""
    try:
        content = json.loads(described.read_text('utf-8'))
    except (OSError, ValueError):
        return None
    return content.get('made_from') if isinstance(content, dict) else None


def main(argv):
    """Makes the dataset, unless `--out` has it already; see `--help`. CorpusError for a bad corpus or `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--nlvr', type=Path, required=True, help=f'folder of the corpus, from {SOURCE}')
    parser.add_argument('--out', type=Path, help='folder to make; made or made_without_pictures beside this script')
    parser.add_argument('--withoutPictures', action='store_true',
                        help='give each picture one constant region: what the statements alone give away')
    parser.add_argument('--statements', type=int, default=60000,
                        help='sentences to invent for pre-training, and a twelfth more of easy ones; 0: none')
    parser.add_argument('--seed', type=int, default=9595, help='seed of what is invented')
    args = parser.parse_args(argv)
    if args.statements and args.statements < LEAST:
        parser.error(f'--statements: expected 0 or at least {LEAST}, found {args.statements}')
    out = args.out or Path(__file__).parent / ('made_without_pictures' if args.withoutPictures else 'made')

    files = {split: find(args.nlvr, split) for split in SPLITS}
    made_from = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                 for path in [*files.values(), Path(__file__), Path(language.__file__)]}
    made_from |= {'pictures': not args.withoutPictures, 'statements': args.statements, 'seed': args.seed}
    described = out / 'dataset.json'
    before = made_before(described)
    if before == made_from:
        print(f'{out} is already made from these files; nothing to do')
        return
    if out.exists() and any(out.iterdir()) and before is None:
        raise CorpusError(f'--out {out}: expected a new folder or one made by this program, found other files; '
                          'name another folder')

    corpus = {split: read(path) for split, path in files.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.nlvr-', dir=out.parent) as making:
        write(Path(making) / 'made', corpus, made_from, with_pictures=not args.withoutPictures)
        shutil.rmtree(out, ignore_errors=True)
        os.rename(Path(making) / 'made', out)
    for split in (*SPLITS, 'easy', 'full')[:4 if args.statements else 2]:
        store.open_regions(out / f'{split}_obj.tsv')  # made now rather than when training starts
    print(f'made {described}')


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except CorpusError as error:
        sys.exit(str(error))
