"""Make the pre-training sentences and answers from COCO captions, Visual Genome (captions and questions), VQA and GQA.

Writes mscoco_train, mscoco_nominival, mscoco_minival and vgnococo.json, an object per image, and all_ans.json. As in the paper
(Table 1), sentences of Visual Genome and GQA about an image of COCO belong to that image, and vgnococo holds the other images.
Minival has the images of VQA's minival.json; sources are mscoco, vg, vqa, gqa and visual7w (the questions of Visual Genome).
Sentences and labels are not normalised.
"""
import argparse
import json
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from annotations.answer_table import normalise, read_table
from annotations.raw_data import Outputs, examples_of, find, frequent, run
from files.atomic import temporary_folder
from files.json_files import DataError, field, read_json, stream

COCO = {'train2014': 'captions_train2014.json', 'val2014': 'captions_val2014.json'}
VG = ('image_data.json', 'region_descriptions.json', 'question_answers.json')
VQA, GQA = ('train.json', 'nominival.json', 'minival.json'), ('train.json', 'valid.json')
PARTS = ('mscoco_train', 'mscoco_nominival', 'mscoco_minival', 'vgnococo')
CAPTIONS, QUESTIONS = ('mscoco', 'vg'), ('vqa', 'visual7w', 'gqa')
SOURCES = {'--coco': 'https://cocodataset.org/#download (2014 Train/Val annotations)',
           '--vg': 'https://homes.cs.washington.edu/~ranjay/visualgenome/api.html (version 1.2)',
           '--vqa': 'data/vqa/process_vqa.py', '--gqa': 'data/gqa/process_gqa.py'}
BUCKET = 2000  # images per temporary file: some 100,000 sentences of the full data


class Sentences:
    """Groups sentences, added in any order, by image. They are kept in temporary files of 2,000 images each, so that memory holds
    only the names of the images and one such file."""

    def __init__(self, folder, stack):
        """folder: an empty one for the files, stack: an ExitStack that closes them."""
        self.folder, self.stack, self.rows, self.files, self.blank = Path(folder), stack, {}, [], Counter()

    def add(self, img_id, source, sentence, label=None):
        """Adds a sentence to an image; label: {answer: score} of a question. Blank sentences are dropped and counted."""
        if not sentence.strip():
            self.blank[source] += 1
            return
        row = self.rows.setdefault(img_id, len(self.rows))
        if row // BUCKET == len(self.files):
            path = self.folder / str(len(self.files))
            self.files.append(self.stack.enter_context(path.open('w+', encoding='utf-8')))
        self.files[row // BUCKET].write(json.dumps([row, source, sentence, label]) + '\n')

    def images(self):
        """Yields {img_id, sentf, labelf} of each image, in the order in which the images were first added."""
        ids = list(self.rows)
        for file in tqdm(self.files, 'images', unit=f' x {BUCKET:,}', disable=None):
            file.seek(0)
            entries = {}
            for line in file:
                row, source, sentence, label = json.loads(line)
                entry = entries.setdefault(row, {'img_id': ids[row], 'sentf': {}, 'labelf': {}})
                entry['sentf'].setdefault(source, []).append(sentence)
                if label is not None:
                    entry['labelf'].setdefault(source, []).append(label)
            yield from entries.values()


def add_captions(sentences, split, path):
    """Adds COCO's captions of train2014 or val2014."""
    for item in stream(path, 'annotations.item', 'captions'):
        sentences.add(f'COCO_{split}_{field(item, "image_id", int, path):012d}', 'mscoco', field(item, 'caption', str, path))


def add_questions(sentences, source, path, names=None):
    """Adds the questions of the project's vqa or gqa json.

    names: {img_id in the file: img_id in the output}, other images are dropped; None: ids stay the same, of COCO. Returns (set of
    output img_ids, number of dropped questions).
    """
    images, dropped = set(), 0
    for item in stream(path, 'item', 'questions'):
        img_id = field(item, 'img_id', str, path)
        if names is None and not re.fullmatch(r'COCO_(train|val)2014_\d{12}', img_id):
            raise DataError(f'{path}: key "img_id": expected an image of COCO like COCO_val2014_000000000042, found {img_id!r}')
        img_id = img_id if names is None else names.get(img_id)
        if img_id is None:
            dropped += 1
            continue
        images.add(img_id)
        sentences.add(img_id, source, field(item, 'sent', str, path), field(item, 'label', dict, path))
    return images, dropped


def vg_id(item, path):
    """The id of an image of Visual Genome as a text: key 'image_id' as documented, key 'id' in some of the files."""
    return str(field(item, 'id' if 'id' in item else 'image_id', int, path))


def vg_names(path, coco):
    """({id of Visual Genome: img_id in the output}, unknown COCO ids) of image_data.json; coco: {COCO image id: img_id}."""
    names, unknown = {}, []
    for item in stream(path, 'item', 'images'):
        key, coco_id = vg_id(item, path), item.get('coco_id')
        if coco_id is not None and coco_id not in coco:
            unknown.append(coco_id)
        names[key] = coco.get(coco_id, key)
    return names, unknown


def add_visual_genome(sentences, names, captions, questions):
    """Adds region_descriptions.json and question_answers.json. Returns {path: number of images dropped as not in names}."""
    dropped = Counter()
    for path, key in ((captions, 'regions'), (questions, 'qas')):
        for item in stream(path, 'item', f'images with {key}'):
            img_id = names.get(vg_id(item, path))
            if img_id is None:
                dropped[path] += 1
                continue
            for entry in field(item, key, list, path):
                if key == 'regions':
                    sentences.add(img_id, 'vg', field(entry, 'phrase', str, path))
                else:
                    label = {field(entry, 'answer', str, path): 1.0}
                    sentences.add(img_id, 'visual7w', field(entry, 'question', str, path), label)
    return dropped


def part_of(img_id, minival):
    """The one of PARTS that an image belongs to; minival: img_ids."""
    if img_id.startswith('COCO_train2014_'):
        return 'mscoco_train'
    if img_id.startswith('COCO_val2014_'):
        return 'mscoco_minival' if img_id in minival else 'mscoco_nominival'
    return 'vgnococo'


def answer_table(answers, least):
    """all_ans.json: the answers of at least `least` questions of all sources, in alphabetical order like the published table.

    answers: {source: Counter of normalised answers}.
    """
    return [{'ans': answer, 'dsets': [source for source in QUESTIONS if answer in answers[source]]}
            for answer in sorted(frequent(sum(answers.values(), Counter()), least))]


def paths_of(flag, folder, names):
    """The files of a folder. Raises FileNotFoundError that says where to get a missing one."""
    paths = [find(folder, name) for name in names]
    if None in paths:
        missing = list(names)[paths.index(None)]
        raise FileNotFoundError(f'{flag} {folder}: no such file {missing}, nor with .gz; get it from {SOURCES[flag]}')
    return paths


def report(images, counts):
    """A table of images and sentences by part and source. images: {part: n}; counts: {(part, source): n}."""
    columns = [*CAPTIONS, *QUESTIONS]
    lines = [f'{"":17s}' + ''.join(f'{name:>11s}' for name in ('images', *columns, 'sentences'))]
    for part in (*PARTS, 'all'):
        parts = PARTS if part == 'all' else (part,)
        row = [sum(counts[name, source] for name in parts) for source in columns]
        lines.append(f'{part:17s}' + ''.join(f'{n:11,d}' for n in (sum(images[name] for name in parts), *row, sum(row))))
    return '\n'.join(lines)


def collect(sentences, coco, vg, vqa, gqa):
    """Adds all files (lists of paths in the order of COCO, VG, VQA, GQA) to Sentences; returns the img_ids of minival."""
    for split, path in zip(COCO, coco, strict=True):
        add_captions(sentences, split, path)
    minival = [add_questions(sentences, 'vqa', path)[0] for path in vqa][VQA.index('minival.json')]
    names, unknown = vg_names(vg[0], {int(img_id[-12:]): img_id for img_id in sentences.rows})
    if unknown:
        print(f'{vg[0]}: {len(unknown):,} images have a COCO id that is neither in the captions nor in VQA'
              f'{examples_of(unknown)}: they are in vgnococo.')
    for path in gqa:
        dropped = add_questions(sentences, 'gqa', path, names)[1]
        if dropped:
            print(f'{path}: {dropped:,} questions dropped, since {vg[0]} does not know their images.')
    for path, dropped in add_visual_genome(sentences, names, *vg[1:]).items():
        print(f'{path}: {dropped:,} images dropped, since {vg[0]} does not know them.')
    for source, blank in sentences.blank.items():
        print(f'{source}: {blank:,} blank sentences dropped.')
    return minival


def write(out, sentences, minival):
    """Writes the images of Sentences into Outputs and prints a table of them. Returns {source: Counter of normalised answers}, in
    which a question counts once for each answer in its label."""
    images, counts, answers = Counter(), Counter(), {source: Counter() for source in QUESTIONS}
    for image in sentences.images():
        part = part_of(image['img_id'], minival)
        out.add(f'{part}.json', image)
        images[part] += 1
        counts.update({(part, source): len(texts) for source, texts in image['sentf'].items()})
        for source, labels in image['labelf'].items():
            for label in labels:
                answers[source].update({normalise(answer) for answer in label} - {''})
    print(report(images, counts))
    return answers


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    data = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for flag, names, default in (('--coco', COCO.values(), None), ('--vg', VG, None), ('--vqa', VQA, data / 'vqa'),
                                 ('--gqa', GQA, data / 'gqa')):
        parser.add_argument(flag, type=Path, required=default is None, default=default,
                            help=f'folder of {", ".join(names)}, from {SOURCES[flag]}')
    parser.add_argument('--like', type=Path, metavar='FILE', help='an all_ans.json to keep, so that snapshots made with it fit')
    parser.add_argument('--least', type=int, default=9, help='an answer of the table is an answer of at least so many questions')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the outputs; this one')
    args = parser.parse_args(argv)

    paths = [paths_of(f'--{flag}', getattr(args, flag), names)
             for flag, names in (('coco', COCO.values()), ('vg', VG), ('vqa', VQA), ('gqa', GQA))]
    like = set(read_table(args.like)) if args.like else None
    with Outputs(args.out, [*(f'{part}.json' for part in PARTS), 'all_ans.json']) as out, ExitStack() as stack:
        sentences = Sentences(stack.enter_context(temporary_folder('.lxmert-', args.out)), stack)
        answers = write(out, sentences, collect(sentences, *paths))
        table = read_json(args.like, 'the answer table') if like else answer_table(answers, args.least)
        if not table:
            raise DataError(f'no answer belongs to {args.least} questions; lower --least, or give --like')
        out.dump('all_ans.json', table)
        known = like or {entry['ans'] for entry in table}
        for source, counter in answers.items():
            inside = sum(count for answer, count in counter.items() if answer in known)
            outside = examples_of([answer for answer in frequent(counter, 1) if answer not in known])
            print(f'{source}: {100 * inside / max(counter.total(), 1):.1f} % of {counter.total():,} answers are in all_ans.json'
                + (f'; others are not{outside}.' if outside else '.'))
        print(f'all_ans.json: {len(table):,} answers.')
    print(f'made {", ".join(out.files)} in {args.out}')


if __name__ == '__main__':
    run(main)
