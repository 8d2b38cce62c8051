"""Make ALBEF's json of Flickr30k, COCO, VQA v2, Visual Genome, NLVR2, SNLI-VE and RefCOCO from the official downloads.

Paths of pictures in it are relative to the folder of the dataset, the image_root or vqa_root of a configuration. README.md in
this folder names the files of each dataset and where they come from.
"""
import argparse
import re
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath

from annotations.caption_files import KARPATHY, read_captions, read_karpathy
from annotations.raw_data import Outputs, find, frequent, json_lines, run
from annotations.refer_files import SOURCE as REFER
from annotations.refer_files import corners, find_refs, read_refs
from annotations.snli_ve import read_pairs
from annotations.spec import read_answers
from annotations.vqa_answers import normalise
from annotations.vqa_files import pair
from files.json_files import DataError, field, layout, parse_json, stream

VQA = 'https://visualqa.org/download.html'
GENOME = 'https://homes.cs.washington.edu/~ranjay/visualgenome/api.html'
NLVR2 = 'https://github.com/lil-lab/nlvr (folder nlvr2/data)'
SNLI_VE = 'https://github.com/necla-ml/SNLI-VE'
SPLITS = ('train', 'val', 'test')
VQA_IMAGES = {'train': 'train2014', 'val': 'val2014', 'test': 'test2015'}
LEAST = 9  # questions of which a candidate answer is the most common one
NLVR2_FILES = {'train': ('train.json',), 'dev': ('dev.json', 'val.json'), 'test': ('test1.json', 'test.json')}
SNLI_VE_NAMES = ('snli_ve_{}.jsonl', '{}.jsonl', '{}.json')
REFCOCO_SPLITS = {'testA': 'test', 'testB': 'test', 'validation': 'val'}  # the others keep their name


class Files:
    """The items of each output file, made one at a time when they are written."""

    def __init__(self):
        self.items = {}  # {name: function that returns items}
        self.values = {}  # {name: function that returns the content of another file}
        self.dropped = Counter()

    def add(self, name, items, *args):
        self.items[name] = partial(items, *args)

    def write(self, folder):
        if not self.items:
            raise FileNotFoundError('expected files of at least one dataset, found none; --help lists them')
        with Outputs(folder, [*self.items, *self.values]) as out:
            for name, items in self.items.items():
                for item in items():
                    out.add(name, item)
                if not out.counts[name]:
                    raise DataError(f'{name}: no item is left for it; is the split in the files that are given?')
                print(f'{name}: {out.counts[name]:,} items')
            for name, value in self.values.items():
                out.dump(name, value())
        for what, count in self.dropped.items():
            print(f'{count:,} {what}')


def need(folder, names, source, subfolders=('',)):
    """The first file of `names` in a folder or one of its subfolders, also with .gz. Raises FileNotFoundError."""
    for name in names:
        for subfolder in subfolders:
            if path := find(folder / subfolder, name):
                return path
    raise FileNotFoundError(f'{folder}: expected {" or ".join(names)}, also with .gz, found none; get it from {source}')


def add_captions(files, dataset, given):
    """Files of image-text retrieval: from Karpathy's json, a file or in the folder, or from {train,val,test}.json of a folder."""
    folder = given.parent if given.is_file() else given
    pictures = next((f'{name}/' for name in ('images', f'{dataset}-images') if (folder / name).is_dir()), f'{dataset}-images/')
    of_splits = {split: path for split in SPLITS if given.is_dir() and (path := find(given, f'{split}.json'))}
    if of_splits and not find(given, f'dataset_{dataset}.json'):
        reads = {split: partial(read_split, split, path) for split, path in of_splits.items()}
    else:
        path = given if given.is_file() else need(given, [f'dataset_{dataset}.json'], KARPATHY, ('', 'annotations'))
        reads = dict.fromkeys(SPLITS, partial(read_karpathy, path))
    for split, read in reads.items():
        files.add(f'{dataset}_{split}.json', caption_items, files, dataset, split, pictures, read)


def read_split(split, path):
    """Yields (split, name of the picture, captions), as read_karpathy, of a file of one split."""
    for picture, texts in read_captions(path):
        yield split, f'{PurePosixPath(picture).name.removesuffix(".jpg")}.jpg', texts


def caption_items(files, dataset, split, pictures, read):
    """Yields an item a caption for training, an item a picture for testing."""
    numbers = {}
    for split_of, picture, texts in read():
        texts = [text.strip() for text in texts] if split_of == split else []
        picture = picture if '/' in picture else pictures + picture
        files.dropped[f'empty captions of {dataset}_{split} left out'] += sum(not text for text in texts)
        if not (texts := [text for text in texts if text]):
            continue
        number = numbers.setdefault(picture, len(numbers))
        if split == 'train':
            yield from ({'image': picture, 'caption': text, 'image_id': f'{dataset}_{number}'} for text in texts)
        else:
            yield {'image': picture, 'caption': texts}


def add_vqa(files, folder):
    """vqa_train, vqa_val and vqa_test.json."""
    for split, images in VQA_IMAGES.items():
        names = [f'v2_OpenEnded_mscoco_{images}_questions.json', f'v2_mscoco_{images}_annotations.json']
        paths = [next((path for sub in ('', 'Questions', 'Annotations') if (path := find(folder / sub, name))), None)
                 for name in names]
        if paths[0] and (paths[1] or split == 'test'):
            files.add(f'vqa_{split}.json', vqa_items, files, images, *paths)
        else:
            print(f'{names[bool(paths[0])]} is not in {folder}: no vqa_{split}.json ({VQA}).')


def vqa_items(files, images, questions, annotations):
    """Yields the questions, with the annotators' answers if there are annotations."""
    def read(path, name):
        return ((field(item, 'question_id', int, path), item) for item in stream(path, f'{name}.item', name))

    pairs = pair(read(questions, 'questions'), read(annotations, 'annotations'), f'get the files again from {VQA}') \
        if annotations else ((item, {}) for _, item in read(questions, 'questions'))
    for question, annotation in pairs:
        if question is None or annotation is None:
            files.dropped['questions or annotations without the other left out'] += 1
            continue
        answers = [field(answer, 'answer', str, annotations) for answer in field(annotation, 'answers', list, annotations)
                   ] if annotations else None
        number = field(question, 'image_id', int, questions)
        yield {'question_id': question['question_id'], 'question': field(question, 'question', str, questions),
               **({} if answers is None else {'answer': answers}),
               'image': f'{images}/COCO_{images}_{number:012d}.jpg', 'dataset': 'vqa'}


def add_answers(files, given, vqa):
    """answer_list.json: the answers of a vocabulary, or else the frequent ones of VQA's annotations."""
    if given:
        files.add('answer_list.json', lambda: (answer for answer in read_answers(given) if answer))
        return
    paths = [path for images in ('train2014', 'val2014') for sub in ('', 'Annotations')
             if (path := find(vqa / sub, f'v2_mscoco_{images}_annotations.json'))]

    def frequent_answers():
        counts = Counter(normalise(field(item, 'multiple_choice_answer', str, path)) for path in paths
                         for item in stream(path, 'annotations.item', 'annotations'))
        return (answer for answer in frequent(counts, LEAST) if answer)

    if paths:
        files.add('answer_list.json', frequent_answers)


def add_genome(files, folder):
    """vg_qa.json: questions of Visual Genome."""
    def items():
        path, data = (need(folder, [name], GENOME) for name in ('question_answers.json', 'image_data.json'))
        folders = {field(item, 'image_id', int, data): PurePosixPath(field(item, 'url', str, data)).parent.name
                   for item in stream(data, 'item', 'images')}
        for image in stream(path, 'item', 'images'):
            for row in field(image, 'qas', list, path):
                number = field(row, 'image_id', int, path)
                if number not in folders:
                    raise DataError(f'{path}: expected images of {data}, found image_id {number}; get both from {GENOME}')
                yield {'question': field(row, 'question', str, path), 'answer': field(row, 'answer', str, path).rstrip('.'),
                       'image': f'{folders[number]}/{number}.jpg', 'dataset': 'vg'}

    files.add('vg_qa.json', items)


def add_nlvr2(files, folder):
    """nlvr_train, nlvr_dev and nlvr_test.json."""
    for split, names in NLVR2_FILES.items():
        if path := next((path for name in names if (path := find(folder, name))), None):
            files.add(f'nlvr_{split}.json', nlvr2_items, path, folder)
        else:
            print(f'{" or ".join(names)} is not in {folder}: no nlvr_{split}.json ({NLVR2}).')


def nlvr2_items(path, folder):
    """Yields the statements. Training pictures lie in folders by number; without pictures the paths are those in the archives."""
    pattern = None
    for row, place in json_lines(path, 'identifier', NLVR2):
        if not (match := re.fullmatch(r'((\w+)-\d+-\d+)-\d+', row['identifier'])):
            raise DataError(f'{place}: key "identifier": expected a text like dev-354-0-1, found {row["identifier"]!r}')
        number = f'{field(row, "directory", int, place)}/' if 'directory' in row else ''
        patterns = [f'{start}{{split}}/{{number}}' for start in ('images/' if number else '', '', 'images/')]
        name = f'{match[1]}-img{{}}.png'
        pattern = pattern or next((one for one in patterns if (folder / one.format(split=match[2], number=number)
                                                               / name.format(0)).is_file()), patterns[0])
        if (label := row.get('label')) not in ('True', 'False', None):
            raise DataError(f'{place}: key "label": expected "True" or "False", found {label!r}')
        images = pattern.format(split=match[2], number=number)
        yield {'images': [images + name.format(side) for side in (0, 1)], 'sentence': field(row, 'sentence', str, place),
               **({} if label is None else {'label': label})}


def add_snli_ve(files, folder):
    """ve_train, ve_dev and ve_test.json."""
    def items(path):
        for one in read_pairs(path):
            if one.label and one.sent:
                yield {'image': one.img_id, 'sentence': one.sent, 'label': one.label}
            else:
                files.dropped['pairs of SNLI-VE without a label or a sentence left out'] += 1

    for split in ('train', 'dev', 'test'):
        if path := next((path for name in SNLI_VE_NAMES if (path := find(folder, name.format(split)))), None):
            files.add(f've_{split}.json', items, path)
        else:
            print(f'{SNLI_VE_NAMES[0].format(split)} is not in {folder}: no ve_{split}.json ({SNLI_VE}).')


def refs_of(path):
    """Yields (place, ref) of a pickle or json of refs, or of a json with a list for each split."""
    form = layout(path) if path.suffix != '.p' else ''
    if form == 'object' or (form == 'lines' and 'ref_id' not in next(stream(path, 'item', 'refs'))):
        rows = (row for _, of_split in stream(path, '', 'splits', pairs=True) for row in of_split)
    else:
        rows = read_refs(path)
    for number, ref in enumerate(rows):
        yield f'{path}: ref {number}', ref


def add_refcoco(files, given, name):
    """{name}_{train,val,test}.json from refs; from rows of Hugging Face also refs.json and instances.json."""
    path = given if given.is_file() else find_refs(given)

    def split_of(ref, place):
        split = field(ref, 'split', str, place)
        return REFCOCO_SPLITS.get(split, split)

    def items(split):
        for place, ref in refs_of(path):
            sentences, ref_id = field(ref, 'sentences', list, place), field(ref, 'ref_id', int, place)
            image = f'train2014/COCO_train2014_{field(ref, "image_id", int, place):012d}.jpg'
            if split_of(ref, place) == split:
                yield from ({'image': image, 'text': field(one, 'sent', str, place), 'ref_id': ref_id} for one in sentences)

    existing = {split_of(ref, place) for place, ref in refs_of(path)}
    for split in SPLITS:
        if split in existing:
            files.add(f'{name}_{split}.json', items, split)
    _, first = next(refs_of(path), ('', None))
    if isinstance(first, dict) and 'raw_anns' in first:
        keys = {'ref_id': int, 'ann_id': int, 'image_id': int, 'split': str, 'sentences': list}
        files.add(f'{name}_refs.json', lambda: (
            {key: field(ref, key, kind, place) for key, kind in keys.items()} for place, ref in refs_of(path)))
        files.values[f'{name}_instances.json'] = partial(instances_of, path)


def instances_of(path):
    """The instances.json of rows of jxu124/refcoco, whose raw_anns and raw_image_info are objects of COCO, also as text."""
    images, annotations = {}, {}
    for place, row in refs_of(path):
        parts = {}
        for key in ('raw_anns', 'raw_image_info'):
            value = row.get(key) if isinstance(row, dict) else None
            place_of_key = f'{place}: key "{key}"'
            parts[key] = parse_json(value.encode(), place_of_key, 'an object of COCO') if isinstance(value, str) else value
        box, number = field(parts['raw_anns'], 'bbox', list, place), field(parts['raw_image_info'], 'id', int, place)
        corners(box, f'{place}: key "raw_anns": "bbox"')
        images[number] = {'id': number, 'file_name': f'COCO_train2014_{number:012d}.jpg'} | {
            side: field(parts['raw_image_info'], side, int, place) for side in ('height', 'width')}
        key = field(parts['raw_anns'], 'id', int, place)
        annotations[key] = {'id': key, 'image_id': number, 'category_id': parts['raw_anns'].get('category_id', 0), 'bbox': box}
    return {'images': list(images.values()), 'annotations': list(annotations.values())}


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    for name, text in (
            ('flickr30k', f'dataset_flickr30k.json of {KARPATHY}, its folder, or a folder with {{train,val,test}}.json'),
            ('coco', f'dataset_coco.json of {KARPATHY}, or a folder with it or with annotations/dataset_coco.json'),
            ('vqa', f'folder of the questions and annotations of {VQA}, or with Questions and Annotations'),
            ('answers', 'trainval_label2ans.json, for answer_list.json; else it is counted in the annotations of --vqa'),
            ('genome', f'folder with question_answers.json and image_data.json of {GENOME}'),
            ('nlvr2', f'folder with train.json, dev.json and test1.json of {NLVR2}'),
            ('snliVe', f'folder with snli_ve_{{train,dev,test}}.jsonl of {SNLI_VE}'),
            ('refcoco', f'folder with refs(unc).p of {REFER}, or a file of refs, also rows of jxu124/refcoco of Hugging Face')):
        parser.add_argument(f'--{name}', type=Path, metavar='PATH', help=text)
    parser.add_argument('--name', default='refcoco+', choices=('refcoco', 'refcoco+', 'refcocog'), help='of --refcoco')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'data', help='folder of the outputs; data/albef/data')
    args = parser.parse_args(argv)
    files = Files()
    for path in vars(args).values():
        if isinstance(path, Path) and path != args.out and not path.exists():
            raise FileNotFoundError(f'{path}: no such file or folder; correct the path')
    for dataset in ('flickr30k', 'coco'):
        if given := getattr(args, dataset):
            add_captions(files, dataset, given)
    if args.vqa:
        add_vqa(files, args.vqa)
    if args.vqa or args.answers:
        add_answers(files, args.answers, args.vqa)
    for given, add in ((args.genome, add_genome), (args.nlvr2, add_nlvr2), (args.snliVe, add_snli_ve)):
        if given:
            add(files, given)
    if args.refcoco:
        add_refcoco(files, args.refcoco, args.name)
    files.write(args.out)


if __name__ == '__main__':
    run(main)
