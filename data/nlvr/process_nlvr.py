"""Make the datasets of NLVR v1 (Suhr et al., ACL 2017): is a statement true of a picture? And those of pre-training for it.

The corpus lists every object of every picture, so the regions are exact and no detector is needed. A picture is three boxes of
100 x 100 pixels, 50 pixels apart. The order of the boxes never changes the truth of a statement, so each training picture is made
in all six orders, as in the corpus. Pre-training has statements of known truth and questions for numbers, which `grammar`
generates in the language of the corpus.
"""
import argparse
import dataclasses
import itertools
import json
import re
import reprlib
import string
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import BertWordPieceTokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tqdm import tqdm

import grammar
from annotations.raw_data import json_lines, run
from bert.tokenization import SPECIAL_TOKENS
from files.atomic import atomic_folder, locked, sha256
from files.json_files import DataError, read_json
from regions import store, tsv

SOURCE = 'https://github.com/lil-lab/nlvr (folder nlvr)'
SPLITS = ('train', 'dev')
ORDERS = {'train': tuple(itertools.permutations(range(3))), 'dev': ((0, 1, 2),)}
TYPES = tuple(grammar.SHAPES)  # class ids 0..2; 3 is a box
COLOURS = grammar.COLOURS | {'#0099ff': grammar.COLOURS['blue']}  # attribute ids, 3 is none; the corpus writes blue as #0099ff
SIDE, PITCH, WIDTH = grammar.SIDE, 150, 400  # pixels: side of a box, distance between boxes, width of the picture
SIZES = (*grammar.SIZES.values(), SIDE)
BOX = (3, 3, SIDE, 0, 0)  # a box as an object: type, colour, size, x, y
FEATURES = 33
POSITIONS = 64
# Pre-training. Each PART of so many sentences has its own seed and its own POOL of pictures.
PART, POOL, MIN_STATEMENTS = 1500, 500, 12
# Arguments of grammar.generate. Easy: few objects, short sentences.
EASY = {'questions': 0.85, 'most': 2, 'longest': 7, 'each': 6}
FULL = {'questions': 0.7}


class Example(NamedTuple):
    """One statement about one picture; boxes: three int64 arrays (n, 5) of type, colour, size, x, y (pixels)."""
    identifier: str
    sentence: str
    label: str
    boxes: tuple[np.ndarray, ...]


def checked(row, key, place, expected, accepts):
    """row[key] if `accepts` of it is true. Raises DataError that says what was expected and found at `place`."""
    value = row.get(key) if isinstance(row, dict) else row
    if not isinstance(row, dict) or not accepts(value):
        found = reprlib.repr(value) if not isinstance(row, dict) or key in row else 'nothing'
        raise DataError(f'{place}: key "{key}": expected {expected}, found {found}; get the file again from {SOURCE}')
    return value


def parse_object(item, place):
    """The columns type, colour, size, x, y of one object of `structured_rep`; it must lie inside its box."""
    kind = checked(item, 'type', place, f'one of {", ".join(TYPES)}', lambda v: v in TYPES)
    colour = checked(item, 'color', place, f'one of {", ".join(COLOURS)}', lambda v: str(v).lower() in COLOURS)
    size = checked(item, 'size', place, '10, 20 or 30', lambda v: type(v) is int and v in SIZES[:3])
    coordinate = f'a whole number from 0 to {SIDE - size}, so that the object lies in its box'
    x, y = (checked(item, key, place, coordinate, lambda v: type(v) is int and 0 <= v <= SIDE - size)
            for key in ('x_loc', 'y_loc'))
    return TYPES.index(kind), COLOURS[colour.lower()], size, x, y


def parse(row, place):
    """The Example of one line of the corpus. Raises DataError with `place` (file:line) if it is not one."""
    identifier = checked(row, 'identifier', place, 'text like 1304-0', lambda v: re.fullmatch(r'\d+-\d+', v))
    sentence = checked(row, 'sentence', place, 'a statement', lambda v: isinstance(v, str) and v.strip())
    label = checked(row, 'label', place, '"true" or "false"', lambda v: v in ('true', 'false'))
    scene = checked(row, 'structured_rep', place, f'a list of 3 boxes, each a list of up to {grammar.MAX_OBJECTS} objects',
                    lambda v: isinstance(v, list) and len(v) == 3 and all(
                        isinstance(box, list) and len(box) <= grammar.MAX_OBJECTS for box in v))
    boxes = (np.array([parse_object(item, f'{place}: structured_rep[{b}][{i}]') for i, item in enumerate(box)],
                      np.int64).reshape(-1, 5) for b, box in enumerate(scene))
    return Example(identifier, sentence.strip(), label, tuple(boxes))


def read(path):
    """All Examples of a corpus file, in file order. Raises DataError that names the first line that is wrong."""
    return [parse(row, place) for row, place in json_lines(path, 'identifier', SOURCE)]


def regions(img_id, boxes):
    """The picture of three boxes, (n, 5) each, from left to right: a region for each object, then one for each box.

    A feature is, in this order: type (4) and colour (4), size 10, 20, 30, box (4) and which box (3), all one-hot, times 3,
    3, 1.5 and 1.5, so that the many numbers of positions do not outweigh them; centre x, y in -1..1 of the box (2), half its sine
    and cosine with periods of 50 and 25 pixels (8; for small differences, such as a gap of one pixel); touches the
    left, top, right, bottom wall (4); is the lowest, second lowest, highest, second highest object of its box (4).
    """
    kind, colour, size, x, y = np.concatenate([*boxes, [BOX] * 3]).T
    which = np.concatenate([np.repeat(range(3), [len(box) for box in boxes]), range(3)])
    corner = np.stack([x, y], 1)  # (o, 2)
    centre = (corner + size[:, None] / 2) / (SIDE / 2) - 1
    waves = np.concatenate([2 * np.pi * centre, 4 * np.pi * centre], 1)  # (o, 4)
    four, three = np.eye(4), np.eye(3)
    item = kind < len(TYPES)
    same_box = (which[:, None] == which) & item[:, None] & item  # (o, o)
    lower, higher = ((same_box & other).sum(1) for other in (y > y[:, None], y < y[:, None]))
    features = np.concatenate([
        3 * four[kind], 3 * four[colour], 1.5 * four[np.searchsorted(SIZES, size)], 1.5 * three[which],
        centre, np.sin(waves) / 2, np.cos(waves) / 2,
        # touching means a gap of 0: that fits the labels as well as up to 1 pixel does, and up to 2 pixels fit them worse
        corner == 0, corner + size[:, None] == SIDE,
        np.stack([item & (n == i) for n in (lower, higher) for i in (0, 1)], 1)], 1, dtype=np.float32)  # (o, FEATURES)
    corner = corner + np.stack([PITCH * which, 0 * which], 1)
    confidence = np.ones(len(kind), np.float32)
    return tsv.ImageRegions(img_id, SIDE, WIDTH, kind, confidence, colour, confidence,
                            np.concatenate([corner, corner + size[:, None]], 1, dtype=np.float32), features)


# Every picture of --withoutPictures: one region, always the same.
BLANK = tsv.ImageRegions('', SIDE, WIDTH, np.array([3]), np.ones(1, np.float32), np.array([3]), np.ones(1, np.float32),
                         np.array([[0, 0, WIDTH, SIDE]], np.float32), np.ones((1, FEATURES), np.float32))


def pictures(split, examples):
    """Yields (img_id, Example, boxes in order) for each Example and each order; p0 is the corpus's own order."""
    for example in examples:
        for p, order in enumerate(ORDERS[split]):
            suffix = f'-p{p}' if split == 'train' else ''
            yield f'nlvr-{split}-{example.identifier}{suffix}', example, [example.boxes[box] for box in order]


def annotate(img_id, example):
    """The annotation of one picture; its type is `tower` if all objects are blocks stacked in the middle of their boxes, else
    `scatter`."""
    tower = grammar.is_tower(example.boxes)
    return {'img_id': img_id, 'identifier': img_id, 'sent': example.sentence, 'label': int(example.label == 'true'),
            'answer_type': 'yes/no', 'question_type': 'tower' if tower else 'scatter'}


def vocabulary(sentences):
    """Special pieces, single characters, then the words that occur at least twice, most frequent first.

    The trainer of `tokenizers` breaks ties by a random hash and gives another vocabulary at each run; the corpus has so
    few words that complete words need no trainer. Other words are split into characters.
    """
    normalize, split = BertNormalizer(lowercase=True).normalize_str, BertPreTokenizer().pre_tokenize_str
    words = Counter(word for sentence in sentences for word, _ in split(normalize(sentence)))
    characters = sorted({*''.join(words), *string.ascii_lowercase, *string.digits, *string.punctuation})
    frequent = [word for word in sorted(words, key=lambda w: (-words[w], w)) if words[word] > 1 and len(word) > 1]
    return [*SPECIAL_TOKENS, *characters, *('##' + c for c in characters), *frequent]


def generate_pretraining(examples, statements, seed):
    """The pictures of pre-training: {split: list of (img_id, boxes, {source: [(sentence, answer)]})}."""
    corpus = [(example.sentence, example.boxes) for example in examples if grammar.parse_statement(example.sentence)]
    # First easy ones, to learn which word names which object; then all kinds, a sixth of them easy.
    amounts = ('easy', statements // 12, EASY), ('full', statements // 6, EASY), ('full', statements - statements // 6, FULL)
    jobs = [(split, {'statements': min(PART, amount - done), 'size': POOL, **kind})
            for split, amount, kind in amounts for done in range(0, amount, PART)]
    jobs = [(split, job | {'seed': [seed, i]}) for i, (split, job) in enumerate(jobs)]
    pictures_of = {'easy': [], 'full': []}
    results = tqdm(grammar.generate_all(corpus, [job for _, job in jobs]), 'generating', len(jobs), unit='part', disable=None)
    for (split, _), (scenes, texts) in zip(jobs, results, strict=True):
        sentences = [defaultdict(list) for _ in scenes]
        for picture, source, sentence, answer in texts:
            sentences[picture][source].append((sentence, answer))
        first = len(pictures_of[split])
        pictures_of[split] += [(f'nlvr-{split}-{first + i}', scene, sentences[i]) for i, scene in enumerate(scenes)]
    return pictures_of


def write_regions(path, images, total, with_pictures):
    """Writes the TSV of `total` images, an iterable of (img_id, boxes)."""
    rows = (regions(img_id, boxes) if with_pictures else dataclasses.replace(BLANK, img_id=img_id) for img_id, boxes in images)
    tsv.write(path, tqdm(rows, path.name, total, unit='picture', disable=None))


def write_pretraining(out, pictures_of, max_length, with_pictures):
    """Writes the pictures of `generate_pretraining` into the folder `out`; pretraining.json describes them."""
    answer_sources = {(answer, source) for pictures in pictures_of.values() for *_, texts in pictures
                      for source, pairs in texts.items() for _, answer in pairs}
    answers = sorted({answer for answer, _ in answer_sources}, key=('false', 'true', *map(str, range(100))).index)
    dump([{'ans': answer, 'dsets': sorted(source for other, source in answer_sources if other == answer)} for answer in answers],
         out / 'all_ans.json')
    for split, pictures in pictures_of.items():
        if not pictures:
            raise DataError(f'--nlvr: no picture could be made for {split} of pre-training: too few sentences of train can be '
                            'parsed, or --statements asks for too few; give --statements 0 for none')
        dump([{'img_id': img_id, 'sentf': {source: [sentence for sentence, _ in texts[source]] for source in texts},
               'labelf': {source: [{answer: 1.0} for _, answer in texts[source]] for source in texts}}
              for img_id, _, texts in pictures], out / f'{split}.json')
        write_regions(out / f'{split}_obj.tsv', ((img_id, scene) for img_id, scene, _ in pictures), len(pictures), with_pictures)
        count = Counter(source for *_, texts in pictures for source in texts for _ in texts[source])
        print(f'pre-training, {split}: {len(pictures):,} pictures, {count["statements"]:,} statements, as many true as false, '
              f'{count["counts"]:,} questions for numbers')
    dump({'kind': 'lxmert', 'name': 'nlvr-pretraining', 'max_length': max_length, 'answers': 'all_ans.json',
          'splits': {split: {'annotations': f'{split}.json', 'features': [f'{split}_obj.tsv']} for split in pictures_of}},
         out / 'pretraining.json')


def dump(value, path):
    path.write_text(json.dumps(value) + '\n', encoding='utf-8')


def write(out, corpus, made_from, with_pictures):
    """Writes the datasets of a corpus {split: Examples} into the new folder `out` and prints statistics."""
    pretraining = generate_pretraining(corpus['train'], made_from['statements'], made_from['seed'])
    vocab = vocabulary([*(example.sentence for example in corpus['train']),
                        *(sentence for pictures in pretraining.values() for *_, texts in pictures for pairs in texts.values()
                          for sentence, _ in pairs)])
    (out / 'bert').mkdir()
    (out / 'bert' / 'vocab.txt').write_text('\n'.join(vocab) + '\n', encoding='utf-8')
    dump({'vocab_size': len(vocab), 'hidden_size': 128, 'num_attention_heads': 4, 'intermediate_size': 256,
          'l_layers': 1, 'r_layers': 1, 'x_layers': 2, 'hidden_act': 'gelu', 'hidden_dropout_prob': 0.0,
          'attention_probs_dropout_prob': 0.0, 'max_position_embeddings': POSITIONS, 'type_vocab_size': 2,
          'initializer_range': 0.05, 'visual_feat_dim': FEATURES, 'visual_pos_dim': 4,
          'num_object_labels': len(TYPES) + 1, 'num_attr_labels': len(TYPES) + 1}, out / 'bert' / 'config.json')
    tokenizer = BertWordPieceTokenizer({piece: i for i, piece in enumerate(vocab)}, lowercase=True)
    lengths = {split: [len(e.ids) for e in tokenizer.encode_batch([example.sentence for example in examples])]
               for split, examples in corpus.items()}  # with [CLS] and [SEP]
    max_length = min(max(lengths['train']), POSITIONS)

    for split, examples in corpus.items():
        dump([annotate(img_id, example) for img_id, example, _ in pictures(split, examples)], out / f'{split}.json')
        total = len(examples) * len(ORDERS[split])
        write_regions(out / f'{split}_obj.tsv', ((img_id, boxes) for img_id, _, boxes in pictures(split, examples)), total,
                      with_pictures)
        counts = [sum(map(len, example.boxes)) + 3 for example in examples] if with_pictures else [1]
        label, most = Counter(example.label for example in examples).most_common(1)[0]
        print(f'{split}: {len(examples):,} statements, {total:,} pictures, regions a picture {min(counts)} / '
              f'{np.mean(counts):.1f} / {max(counts)} (min / mean / max), always "{label}" scores '
              f'{100 * most / len(examples):.1f}, {sum(n > max_length for n in lengths[split])} statements are longer '
              f'than {max_length} pieces and will be cut')

    if made_from['statements']:
        write_pretraining(out, pretraining, max_length, with_pictures)
    dump({'kind': 'nlvr', 'name': 'nlvr', 'max_length': max_length,
          'splits': {split: {'annotations': f'{split}.json', 'features': [f'{split}_obj.tsv']} for split in corpus},
          'made_from': made_from}, out / 'dataset.json')


def find(folder, split):
    """The corpus file of a split: <split>.json or, as in the repository, <split>/<split>.json below `folder`."""
    paths = [folder / f'{split}.json', folder / split / f'{split}.json']
    for path in paths:
        if path.is_file():
            return path
    raise DataError(f'--nlvr: expected {paths[0]} or {paths[1]}, found neither; get the corpus from {SOURCE}')


def made_before(description):
    """What this program made the dataset at `description` (a dataset.json) from; None if it did not make it."""
    try:
        content = read_json(description, 'the description of a dataset')
    except (OSError, ValueError):
        return None
    return content.get('made_from') if isinstance(content, dict) else None


def main(argv):
    """Makes the datasets, unless `--out` already holds them; see `--help`. Raises DataError for a bad corpus or `--out`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--nlvr', type=Path, required=True, help=f'folder of the corpus, from {SOURCE}')
    parser.add_argument('--out', type=Path, help='folder to make; made or made_without_pictures beside this script')
    parser.add_argument('--withoutPictures', action='store_true',
                        help='give each picture one constant region: a baseline that sees the statements alone')
    parser.add_argument('--statements', type=int, default=60000,
                        help='sentences to generate for pre-training, and a twelfth more of easy ones; 0: none')
    parser.add_argument('--seed', type=int, default=9595, help='seed of what is generated')
    args = parser.parse_args(argv)
    if args.statements and args.statements < MIN_STATEMENTS:
        parser.error(f'--statements: expected 0 or at least {MIN_STATEMENTS}, found {args.statements}')
    out = args.out or Path(__file__).parent / ('made_without_pictures' if args.withoutPictures else 'made')
    files = {split: find(args.nlvr, split) for split in SPLITS}
    with locked(out):
        make(out, files, args)


def make(out, files, args):
    """Makes the datasets of corpus files {split: path}; its caller holds the lock of `out`."""
    made_from = {path.name: sha256(path) for path in [*files.values(), Path(__file__), Path(grammar.__file__)]}
    made_from |= {'pictures': not args.withoutPictures, 'statements': args.statements, 'seed': args.seed}
    description = out / 'dataset.json'
    before = made_before(description)
    if before == made_from:
        print(f'{out} is already made from these files; nothing to do')
        return
    if out.exists() and any(out.iterdir()) and before is None:
        raise DataError(f'--out {out}: expected a new folder or one made by this program, found other files; name another folder')
    corpus = {split: read(path) for split, path in files.items()}
    with atomic_folder(out) as folder:
        write(folder, corpus, made_from, with_pictures=not args.withoutPictures)
    for split in (*SPLITS, 'easy', 'full')[:4 if args.statements else 2]:
        store.open_regions(out / f'{split}_obj.tsv')  # converts it now and not when training starts
    print(f'made {description}')


if __name__ == '__main__':
    run(main)
