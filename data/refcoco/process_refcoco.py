"""Make the expressions of RefCOCO, RefCOCO+ and RefCOCOg, and the files of boxes whose features they need.

From a folder of lichengunc/refer (`refs(unc).p` or another refs(*).p, a pickle, or .json, with instances.json), also with the
expressions of ALBEF's json; or from json with the boxes in it: of Hugging Face (jxu124/refcoco, lmms-lab/RefCOCO), and the forms
in ROWS.
"""
import argparse
import io
import pickle
import pickletools
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from annotations.examples import MAX_SIDE, is_id
from annotations.raw_data import Outputs, examples_of, run
from files.json_files import MAX_DEPTH, DataError, field, first_duplicate, layout, stream
from files.text import printable, shown

SOURCE = 'https://github.com/lichengunc/refer'
PREFIXES = {'refcoco': '', 'refcoco+': 'plus_', 'refcocog': 'g_'}
IMAGES = 'COCO_train2014_{:012d}'
EMPTY = 'empty expressions, left out'
MAX_PICKLE = 1 << 28  # bytes; the largest published one has some 20 MB
MEMO = {'PUT', 'BINPUT', 'LONG_BINPUT'}  # opcodes whose argument is a place in a table, which takes memory up to it
# Json with boxes: (key that tells the form, key of the image, of the texts, of the box, whether it is x, y, width, height).
ROWS = (('raw_anns', 'image_path', 'captions', 'bbox', False), ('question_id', 'file_name', 'answer', 'bbox', True),
        ('normal_caption', 'image', 'normal_caption', 'solution', False), ('iid', 'iid', 'refs', 'bbox', True),
        ('pred_boxes', 'pred_boxes_img_id', 'sent', 'gt_box', True))


class NoClasses(pickle.Unpickler):
    """An unpickler of plain data, which knows no class and no function."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f'the class {module}.{name}')


def check_size(value, size):
    """Raises UnpicklingError for a value that would take far more memory and time to print than its pickle of `size` bytes: lists
    in each other again and again, or very deep ones, and numbers beyond 64 bits."""
    level, depth, count = [value], 0, 0
    while level:
        count, depth = count + len(level), depth + 1
        if count > size or depth > MAX_DEPTH:
            raise pickle.UnpicklingError(f'lists or dicts in each other, more than {MAX_DEPTH} levels deep or {size:,} values')
        following = []
        for one in level:
            if isinstance(one, int) and one.bit_length() > 63:
                raise pickle.UnpicklingError(f'a number of {one.bit_length():,} bits')
            if isinstance(one, dict):
                following += one.keys()
                following += one.values()
            elif isinstance(one, (list, tuple, set, frozenset)):
                following += one
            if len(following) > size:
                break
        level = following


def read_pickle(path):
    """The value of a pickle of numbers, texts, lists and dicts. Raises DataError for any other: nothing in it is run."""
    if (size := path.stat().st_size) > MAX_PICKLE:
        raise DataError(f'{path}: expected a pickle of at most {MAX_PICKLE >> 20} MB, found {size:,} bytes')
    content = path.read_bytes()
    try:
        tuples = 0
        for opcode, argument, place in pickletools.genops(content):
            tuples += opcode.name.startswith('TUPLE')
            if tuples > MAX_DEPTH:  # as a key, deep ones overflow the interpreter's stack, which ends it
                raise pickle.UnpicklingError(f'tuples, at byte {place}')
            if opcode.name in MEMO and argument > size:
                raise pickle.UnpicklingError(f'place {argument:,} of the table of objects, at byte {place}')
        value = NoClasses(io.BytesIO(content), encoding='utf-8', errors='replace').load()
        check_size(value, size)
        return value
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, LookupError, AttributeError, MemoryError, OverflowError,
            RecursionError) as error:
        fault = printable(' '.join(str(error).split()))[:200]
        raise DataError(f'{path}: expected a pickle of lists, dicts, texts and numbers alone, found {fault}; nothing of it was '
                        f'run; get the file again from {SOURCE}') from None


def read_refs(path):
    """Yields the refs of a pickle, or of a json list. Raises DataError."""
    refs = read_pickle(path) if path.suffix == '.p' else stream(path, 'item', 'refs')
    if not hasattr(refs, '__next__') and not isinstance(refs, list):
        raise DataError(f'{path}: expected a list of refs, found {shown(refs)}; get the file again from {SOURCE}')
    yield from refs


def find_refs(folder):
    """The refs(*).p or .json of a folder. Raises DataError unless there is one of them."""
    files = sorted(path for path in folder.glob('refs*') if path.suffix in ('.p', '.json'))
    if not files:
        raise DataError(f'{folder}: expected a refs(unc).p or another refs*.p or .json, found none; get it from {SOURCE}')
    names = {path.stem for path in files}
    if len(names) > 1:
        raise DataError(f'{folder}: has {", ".join(path.name for path in files)}; name the one to use: --refs FILE')
    return files[-1]  # .p, as published


def corners(box, place, wide=True):
    """[x1, y1, x2, y2] of a box, with `wide` of x, y, width, height. Raises DataError that begins with place."""
    if isinstance(box, list) and len(box) >= 4 and all(type(side) in (int, float) and abs(side) < MAX_SIDE for side in box[:4]):
        x, y, *ends = box[:4]
        x2, y2 = (x + ends[0], y + ends[1]) if wide else ends
        if x < x2 and y < y2:
            return [round(side, 4) for side in (x, y, x2, y2)]
    form = 'x, y, width, height' if wide else 'x1, y1, x2, y2'
    raise DataError(f'{place}: expected a box {form} in pixels of positive size, found {shown(box)}; correct it, or get the file '
                    'again')


def read_boxes(path, images=None):
    """({annotation id: (image id, box)}, {image id: boxes}) of a COCO instances json, as corners, in its order. images: a set, of
    which boxes are read; None: all. Raises DataError for a box outside its image by more than a pixel."""
    sizes = {field(item, 'id', int, path): (field(item, 'width', int, path), field(item, 'height', int, path))
             for item in stream(path, 'images.item', 'images')}
    by_id, by_image = {}, defaultdict(list)
    for item in stream(path, 'annotations.item', 'annotations'):
        key, image = field(item, 'id', int, path), field(item, 'image_id', int, path)
        if images is not None and image not in images:
            continue
        if image not in sizes:
            raise DataError(f'{path}: annotation {key}: expected an image among its "images", found {image}; get the file again')
        box = corners(item.get('bbox'), f'{path}: annotation {key}: key "bbox"')
        width, height = sizes[image]
        if min(box[:2]) < -1 or box[2] > width + 1 or box[3] > height + 1:
            raise DataError(f'{path}: annotation {key}: key "bbox": expected a box inside image {image}, {width} x {height} '
                            f'pixels, found the corners {box}; correct it, or get the file again')
        if key in by_id:
            raise DataError(f'{path}: annotation {key}: key "id": expected a new one, found it again; get the file again')
        by_id[key] = image, box
        by_image[image].append(box)
    return by_id, by_image


def examples_of_refs(path, boxes, report):
    """Yields (split, example) of refs. boxes: {annotation id: (image id, box)}, of instances.json
    beside. Raises DataError."""
    known = set()
    for number, ref in enumerate(read_refs(path)):
        place = f'{path}: ref {number}'
        ref_id, ann_id, image = (field(ref, key, int, place) for key in ('ref_id', 'ann_id', 'image_id'))
        if ref_id in known:
            raise DataError(f'{place}: key "ref_id": expected a new one, found {ref_id} again; get the file again from {SOURCE}')
        of_image, box = boxes.get(ann_id, (None, None))
        if of_image != image:
            raise DataError(f'{place}: ref_id {ref_id}: expected the box of annotation {ann_id} of image {image} in '
                            f'instances.json, found {"none" if box is None else f"it of image {of_image}"}: an expression '
                            'without a target; are the two files of one dataset?')
        known.add(ref_id)
        sentences = field(ref, 'sentences', list, place)
        if not sentences:
            report['objects without an expression, left out'].append(ref_id)
        for sentence in sentences:
            words = sentence.get('tokens') if isinstance(sentence, dict) else None
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                words = field(sentence, 'sent', str, place).split()
            if not ''.join(words).strip():
                report[EMPTY].append(ref_id)
                continue
            yield field(ref, 'split', str, place), {
                'ref_id': ref_id, 'img_id': IMAGES.format(image), 'sent': ' '.join(words), 'box': box}


def examples_of_albef(path, refs, report):
    """Yields (split, example) of ALBEF's json. refs: {ref_id: (split, image id, box)} of the refs of the same dataset, which tell
    testA from testB. Raises DataError."""
    for number, item in enumerate(stream(path, 'item', 'expressions')):
        place = f'{path}: expression {number}'
        ref_id = field(item, 'ref_id', int, place)
        image = PurePosixPath(field(item, 'image', str, place)).stem
        if ref_id not in refs or refs[ref_id][1] != image:
            raise DataError(f'{place}: expected ref_id {ref_id} with image {image} in the refs of --refer, found '
                            f'{refs[ref_id][1] if ref_id in refs else "no such ref"}: an expression without a target')
        if not (text := field(item, 'text', str, place).strip()):
            report[EMPTY].append(ref_id)
            continue
        yield refs[ref_id][0], {'ref_id': ref_id, 'img_id': image, 'sent': text, 'box': refs[ref_id][2]}


def examples_of_rows(path, split):
    """Yields (split, example) of json with boxes, of one of the ROWS; an object of lists has a split in each."""
    if layout(path) == 'object':
        rows = ((name, row) for name, of_split in stream(path, '', 'splits', pairs=True) for row in of_split)
    else:
        rows = ((split, row) for row in stream(path, 'item', 'expressions'))
    for number, (name, row) in enumerate(rows):
        place = f'{path}: row {number}'
        form = next((form for form in ROWS if isinstance(row, dict) and form[0] in row), None)
        if form is None:
            raise DataError(f'{place}: expected one of the keys {", ".join(form[0] for form in ROWS)}, or ref_id and --refer, '
                            f'found {shown(row)}; is it a file of expressions?')
        _, image_key, text_key, box_key, wide = form
        image, texts = row.get(image_key), row.get(text_key)
        image = image[0] if isinstance(image, list) and image else image
        image = IMAGES.format(image) if type(image) is int else PurePosixPath(image).stem if isinstance(image, str) else ''
        image = re.sub(r'^(COCO_\w+_\d{12})_\d+$', r'\1', image)  # the number of an object of that image
        texts = [texts] if isinstance(texts, str) else texts
        if not is_id(image) or not isinstance(texts, list) or not texts or not all(
                isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f'{place}: expected an image in "{image_key}" and one or more texts in "{text_key}", found '
                            f'{shown(row)}; correct it, or leave it out')
        box, ref_id = corners(row.get(box_key), f'{place}: key "{box_key}"', wide), row.get('ref_id', number)
        for text in texts:
            yield field({'split': name} | row, 'split', str, place), {
                'ref_id': ref_id if type(ref_id) is int else number, 'img_id': image, 'sent': text.strip(), 'box': box}


def read_detections(path):
    """{image id: boxes} of MAttNet's list [{image_id, box}], or of ALBEF's {image id: boxes}. Raises DataError."""
    boxes = defaultdict(list)
    if layout(path) != 'list' and next(stream(path, '', 'detections', pairs=True))[0].isdigit():  # no json lines
        for image, of_image in stream(path, '', 'detections', pairs=True):
            if not re.fullmatch('[0-9]{1,18}', image) or not isinstance(of_image, list):
                raise DataError(f'{path}: expected {{image id: boxes}}, found {shown(image)}: {shown(of_image)}')
            boxes[int(image)] += [corners(box, f'{path}: image {image}') for box in of_image]
        return boxes
    for number, item in enumerate(stream(path, 'item', 'detections')):
        place = f'{path}: detection {number}'
        boxes[field(item, 'image_id', int, place)].append(corners(item.get('box'), f'{place}: key "box"'))
    return boxes


def description(name, prefix, kind, splits):
    """The json for --dataset: the splits with gt or detected boxes, and their features."""
    def of(split):
        return f'{"train_" if kind == "detected" and split == "train" else ""}{kind}'

    return {'kind': 'refcoco', 'name': f'{name}, {kind} boxes', 'max_length': 64, 'splits': {
        split: {'annotations': f'{prefix}{split}.json', 'features': [f'../refcoco_imgfeat/{prefix}{of(split)}.tsv'],
                'images': ['../images/train2014'], 'boxes': f'{prefix}boxes_{of(split)}.json'} for split in splits}}


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog=f'The official files: {SOURCE}.')
    parser.add_argument('files', nargs='*', type=Path, help='json of expressions, in place of those of --refer')
    parser.add_argument('--split', help='of files that do not say it; default: the end of the name, as in refcoco+_val.json')
    parser.add_argument('--refer', type=Path, metavar='FOLDER', help='with refs(*).p and instances.json')
    parser.add_argument('--refs', type=Path, metavar='FILE', help='the refs, where the folder has several')
    parser.add_argument('--name', choices=PREFIXES, default='refcoco', help='of the dataset; files begin with plus_ or g_')
    parser.add_argument('--coco', type=Path, metavar='FILE', help="instances_train2014.json: ground truth boxes of all COCO's "
                        'classes; default: instances.json of --refer')
    parser.add_argument('--detections', type=Path, metavar='FILE', help="MAttNet's, as a list or as ALBEF's dets.json")
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='default: %(default)s')
    options = parser.parse_args(argv)
    if not options.files and not options.refer:
        parser.error('name --refer FOLDER, or json files with boxes')
    report, prefix, ids, of_images = defaultdict(list), PREFIXES[options.name], {}, {}
    examples = []
    if options.refer:
        ids, of_images = read_boxes(options.refer / 'instances.json')
        examples = list(examples_of_refs(options.refs or find_refs(options.refer), ids, report))
    refs = {item['ref_id']: (split, item['img_id'], item['box']) for split, item in examples}
    if options.files:
        examples = []
        for path in options.files:
            split = options.split or path.name.removesuffix('.gz').rpartition('.')[0].rpartition('_')[2]
            examples += examples_of_albef(path, refs, report) if options.refer else examples_of_rows(path, split)
    if twice := first_duplicate((split, item['ref_id'], item['sent']) for split, item in examples):
        count = sum(n - 1 for n in Counter((split, item['ref_id'], item['sent']) for split, item in examples).values())
        report['expressions that their object has already, kept'] += [twice[2]] * count
    splits = list(dict.fromkeys(split for split, _ in examples))
    if wrong := [split for split in splits if not re.fullmatch(r'\w[\w.-]{0,99}', split)]:
        raise DataError(f'{options.refs or options.refer or options.files[0]}: key "split": expected a name of letters, digits, '
                        f'"_", "-" and ".", which becomes that of a file, found {shown(wrong[0])}; correct it, or give --split')
    images = dict.fromkeys(item['img_id'] for _, item in examples)

    number = {img_id: int(digits[0]) for img_id in images if (digits := re.search(r'(?<![^_])[0-9]{1,18}$', img_id))}
    if options.coco:
        of_images = read_boxes(options.coco, set(number.values()))[1]
    boxes = {'gt': of_images} if of_images else {}
    if options.detections:
        boxes['detected'] = read_detections(options.detections)
        boxes['train_detected'] = {image: [*boxes['detected'].get(image, ()), *of_images.get(image, ())]
                                   for image in number.values()}
    names = [f'{prefix}{split}.json' for split in splits]
    names += [f'{prefix}boxes_{kind}.json' for kind in boxes] + [f'{prefix}{kind}.json' for kind in boxes if '_' not in kind]
    with Outputs(options.out, names) as out:
        for split, item in examples:
            out.add(f'{prefix}{split}.json', item)
        for kind, of_kind in boxes.items():
            chosen = {img_id: of_kind[image] for img_id, image in number.items() if of_kind.get(image)}
            if lacking := [img_id for img_id in images if img_id not in chosen]:
                report[f'images without {kind} boxes'] += lacking
            if others := set(of_kind) - set(number.values()):
                report[f'images with {kind} boxes but without expressions, left out'] += sorted(others)
            out.dump(f'{prefix}boxes_{kind}.json', chosen)
            if '_' not in kind:
                out.dump(f'{prefix}{kind}.json', description(options.name, prefix, kind, splits))
    for split in splits:
        print(f'{prefix}{split}.json: {sum(other == split for other, _ in examples):,} expressions for '
              f'{len({item["ref_id"] for other, item in examples if other == split}):,} objects of '
              f'{len({item["img_id"] for other, item in examples if other == split}):,} images')
    for what, items in report.items():
        print(f'{len(items):,} {what}{examples_of(items)}')
    if not examples:
        raise DataError('no expression is left; see above')


if __name__ == '__main__':
    run(main)
