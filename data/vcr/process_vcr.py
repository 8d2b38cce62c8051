"""Make the json files of VCR from the official json lines and the metadata of the images, and files of boxes and masks.

Persons get names, 13 in turn from example to example of a file; other objects are called by their class.
"""
import argparse
import itertools
from pathlib import Path, PurePosixPath

from annotations.object_masks import mask, packed
from annotations.raw_data import Outputs, examples_of, find, json_lines, run
from annotations.tagged_texts import TaggedSchema
from files.json_files import DataError, field, read_json
from files.text import shown

SOURCE = 'https://visualcommonsense.com/download'
SPLITS = ('train', 'val', 'test')
LABELS = ('answer_label', 'rationale_label')
PERSONS = ('casey', 'riley', 'jessie', 'jackie', 'avery', 'jaime', 'peyton', 'kerry', 'jody', 'kendall', 'frankie', 'pat',
           'quinn')
CLASSES = '''
person bicycle car motorcycle airplane bus train truck boat trafficlight firehydrant stopsign parkingmeter bench bird
cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard
sportsball kite baseballbat baseballglove skateboard surfboard tennisracket bottle wineglass cup fork knife spoon bowl
banana apple sandwich orange broccoli carrot hotdog pizza donut cake chair couch pottedplant bed diningtable toilet tv
laptop mouse remote keyboard cellphone microwave oven toaster sink refrigerator book clock vase scissors teddybear
hairdrier toothbrush
'''
CLASSES = CLASSES.split()  # COCO's, in their order, as VCR writes them; the first has number 1
SCHEMAS = TaggedSchema('annot_id', str), TaggedSchema('annot_id', str, choices='rationale_choices', rationale=True, given=0)


def read(path):
    """Yields the examples of a file of json lines with img_fn and metadata_fn, in this project's form. Raises DataError that
    names the first line that is wrong."""
    names, labelled = itertools.cycle(PERSONS), None
    for row, place in json_lines(path, 'annot_id', SOURCE):
        objects = field(row, 'objects', list, place)
        if wrong := [one for one in objects if one not in CLASSES]:
            raise DataError(f'{place}: key "objects": expected classes of COCO without blanks, found {shown(wrong[0])}')
        example = {'annot_id': row['annot_id'], 'img_id': str(PurePosixPath(field(row, 'img_fn', str, place)).with_suffix('')),
                   'names': [next(names) if one == 'person' else one for one in objects],
                   'classes': [1 + CLASSES.index(one) for one in objects]}
        example |= {key: row[key] for key in ('question', 'answer_choices', 'rationale_choices', *LABELS) if key in row}
        for schema in SCHEMAS:
            if fault := schema.first_fault(example):
                raise DataError(f'{place}: key "{fault[0]}": expected {fault[1]}, found {shown(example.get(fault[0]))}; get the '
                                f'file again from {SOURCE}')
        has_labels = [key in row for key in LABELS]
        labelled = has_labels[0] if labelled is None else labelled
        if has_labels != [labelled, labelled]:
            raise DataError(f'{place}: expected {" and ".join(LABELS)} on all lines of a file or on none')
        yield example, field(row, 'metadata_fn', str, place)


def read_metadata(path, names):
    """(boxes (o, 4) as a list, scores, masks, (width, height)) of an image. names: what an example calls its classes, to compare.

    Raises DataError for boxes or polygons of another form, and for other objects than the example's.
    """
    values = read_json(path, f'the metadata of an image; get vcr1images.zip from {SOURCE}', dict)
    boxes, segms = field(values, 'boxes', list, path), field(values, 'segms', list, path)
    width, height = (field(values, key, int, path) for key in ('width', 'height'))
    if width < 1 or height < 1:
        raise DataError(f'{path}: expected width and height above 0, found {width} and {height}')
    if field(values, 'names', list, path) != names or len(boxes) != len(names) or len(segms) != len(names):
        raise DataError(f'{path}: expected names, boxes and segms of the {len(names)} objects of the annotations '
                        f'({", ".join(names)}), found {len(values["names"])}, {len(boxes)} and {len(segms)}; get both '
                        f'again from {SOURCE}')
    for key, valid in (('boxes', is_box), ('segms', is_polygons)):
        for i, value in enumerate(values[key]):
            if not valid(value):
                what = 'x1, y1, x2, y2, score, x1 <= x2, y1 <= y2' if key == 'boxes' else 'a list of polygons [[x, y], ...]'
                raise DataError(f'{path}: key "{key}[{i}]": expected {what}, found {shown(value)}')
            if key == 'boxes' and (value[0] >= width or value[1] >= height or value[2] < 0 or value[3] < 0):
                raise DataError(f'{path}: key "boxes[{i}]": expected a box that touches the image of {width} x {height} pixels, '
                                f'found {shown(value)}')
    masks = [mask(polygons, box) for polygons, box in zip(segms, boxes, strict=True)]
    return [box[:4] for box in boxes], [box[4] for box in boxes], masks, (width, height)


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6


def is_box(value):
    return (isinstance(value, list) and len(value) == 5 and all(map(is_number, value))
            and value[0] <= value[2] and value[1] <= value[3])


def is_polygons(value):
    return isinstance(value, list) and all(isinstance(polygon, list) and all(
        isinstance(point, list) and len(point) == 2 and all(map(is_number, point)) for point in polygon) for polygon in value)


def main(argv):
    """Makes the files; see `--help`. Raises DataError or OSError that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     epilog=f'The official files: {SOURCE}. Missing splits are skipped.')
    parser.add_argument('--raw', type=Path, required=True, help='folder of train.jsonl, val.jsonl and test.jsonl, also with .gz')
    parser.add_argument('--images', type=Path, help='folder of vcr1images; RAW/vcr1images')
    parser.add_argument('--allowMissing', action='store_true', help='leave out examples whose image has no metadata')
    parser.add_argument('--out', type=Path, default=Path(__file__).parent, help='folder of the outputs; this one')
    args = parser.parse_args(argv)

    images = args.images or args.raw / 'vcr1images'
    files = {split: path for split in SPLITS if (path := find(args.raw, f'{split}.jsonl'))}
    if not files:
        names = ', '.join(f'{split}.jsonl' for split in SPLITS)
        raise FileNotFoundError(f'{args.raw}: found none of {names}; get them from {SOURCE}')
    with Outputs(args.out, [name for split in files for name in (f'{split}.json', f'{split}_boxes.json')]) as out:
        for split, path in files.items():
            names_of, missing, left_out, kept = {}, {}, 0, 0
            for example, metadata in read(path):
                img_id, names = example['img_id'], [CLASSES[one - 1] for one in example['classes']]
                if args.allowMissing and not (images / metadata).is_file():
                    missing[img_id] = None
                    left_out += 1
                    continue
                if img_id not in names_of:
                    names_of[img_id] = names
                    boxes, scores, masks, (width, height) = read_metadata(images / metadata, names)
                    out.add(f'{split}_boxes.json', {'img_id': img_id, 'width': width, 'height': height, 'boxes': boxes,
                                                    'scores': scores, 'masks': [packed(one) for one in masks]})
                elif names_of[img_id] != names:
                    raise DataError(f'{path}: {example["annot_id"]}: key "objects": expected those of other examples about '
                                    f'{img_id}, {", ".join(names_of[img_id])}; found {", ".join(names)}')
                out.add(f'{split}.json', example)
                kept += 1
            print(f'{split}: {kept:,} examples about {len(names_of):,} images with {sum(map(len, names_of.values())):,} objects'
                  + (f'; {left_out:,} left out whose {len(missing):,} images have no metadata{examples_of(missing)}'
                     if missing else '') + '.')
    print(f'made {", ".join(out.files)} in {args.out}')


if __name__ == '__main__':
    run(main)
