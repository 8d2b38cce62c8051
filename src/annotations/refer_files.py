"""Reads the files of lichengunc/refer, of RefCOCO, RefCOCO+ and RefCOCOg: refs(*).p, a pickle, or json, instances.json and
detected boxes."""

import io
import pickle
import pickletools
import re
from collections import defaultdict

from annotations.examples import MAX_SIDE
from files.json_files import MAX_DEPTH, DataError, field, layout, stream
from files.text import printable, shown

SOURCE = 'https://github.com/lichengunc/refer'
IMAGES = 'COCO_train2014_{:012d}'
EMPTY = 'empty expressions, left out'
MAX_PICKLE = 1 << 28  # bytes; the largest published one has some 20 MB
MEMO = {'PUT', 'BINPUT', 'LONG_BINPUT'}  # opcodes whose argument is a place in a table, which takes memory up to it


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


def read_sizes(path):
    """{image id: (width, height)} of a COCO instances json. Raises DataError."""
    return {field(item, 'id', int, path): (field(item, 'width', int, path), field(item, 'height', int, path))
            for item in stream(path, 'images.item', 'images')}


def clipped(box, size):
    """The part of a box, as corners, that is within an image of (width, height), or None."""
    x1, y1, x2, y2 = (min(max(side, 0), size[place % 2]) for place, side in enumerate(box))
    return [x1, y1, x2, y2] if x1 < x2 and y1 < y2 else None


def read_boxes(path, images=None, clip=False):
    """({annotation id: (image id, box)}, {image id: boxes}) of a COCO instances json, as corners, in its order. images: a set, of
    which boxes are read; None: all; clip: cut boxes at the border of their image. Raises DataError for a box outside its image,
    or, without clip, by more than a pixel."""
    sizes, by_id, by_image = read_sizes(path), {}, defaultdict(list)
    for item in stream(path, 'annotations.item', 'annotations'):
        key, image = field(item, 'id', int, path), field(item, 'image_id', int, path)
        if images is not None and image not in images:
            continue
        if image not in sizes:
            raise DataError(f'{path}: annotation {key}: expected an image among its "images", found {image}; get the file again')
        box = corners(item.get('bbox'), f'{path}: annotation {key}: key "bbox"')
        width, height = sizes[image]
        cut = clipped(box, (width, height))
        if clip and cut:
            box = cut
        elif min(box[:2]) < -1 or box[2] > width + 1 or box[3] > height + 1:
            raise DataError(f'{path}: annotation {key}: key "bbox": expected a box inside image {image}, {width} x {height} '
                            f'pixels, found the corners {box}; correct it, or get the file again')
        if key in by_id:
            raise DataError(f'{path}: annotation {key}: key "id": expected a new one, found it again; get the file again')
        by_id[key] = image, box
        by_image[image].append(box)
    return by_id, by_image


def examples_of_refs(path, boxes, report):
    """Yields (split, example) of refs. boxes: {annotation id: (image id, box)}, of instances.json. Raises DataError."""
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
