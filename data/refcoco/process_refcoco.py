"""Make the expressions of RefCOCO, RefCOCO+ and RefCOCOg, and the files of boxes whose features they need.

From a folder of lichengunc/refer (`refs(unc).p` or another refs(*).p, a pickle, or .json, with instances.json), also with the
expressions of ALBEF's json; or from json with the boxes in it: of Hugging Face (jxu124/refcoco, lmms-lab/RefCOCO), and the forms
in ROWS.
"""
import argparse
import re
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath

from annotations.examples import is_id
from annotations.raw_data import Outputs, examples_of, run
from annotations.refer_files import EMPTY, IMAGES, SOURCE, corners, examples_of_refs, find_refs, read_boxes, read_detections
from files.json_files import DataError, field, first_duplicate, layout, stream
from files.text import shown

PREFIXES = {'refcoco': '', 'refcoco+': 'plus_', 'refcocog': 'g_'}
# Json with boxes: (key that tells the form, key of the image, of the texts, of the box, whether it is x, y, width, height).
ROWS = (('raw_anns', 'image_path', 'captions', 'bbox', False), ('question_id', 'file_name', 'answer', 'bbox', True),
        ('normal_caption', 'image', 'normal_caption', 'solution', False), ('iid', 'iid', 'refs', 'bbox', True),
        ('pred_boxes', 'pred_boxes_img_id', 'sent', 'gt_box', True))


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
