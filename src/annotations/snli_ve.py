"""Reads the pairs of visual entailment (Xie et al., 2019): SNLI-VE's json lines, XVNLI's, and ALBEF's json."""

from typing import NamedTuple

from annotations.examples import MAX_ID, is_id
from files.json_files import DataError, stream
from files.text import shown
from images.ids import ImageIds

LABELS = ('contradiction', 'neutral', 'entailment')  # in the order of ALBEF's answer head
IMAGE_KEYS = ('Flickr30K_ID', 'Flikr30kID', 'image')  # of SNLI-VE, of XVNLI, of ALBEF
NONE = ('-', '')  # the annotators did not agree


class Pair(NamedTuple):
    """A hypothesis about an image. The label is None where there is none, or where the annotators did not agree."""

    id: str
    img_id: str
    sent: str
    label: str | None


def read_pairs(path):
    """Yields the Pairs of a file. Pairs without an id, as ALBEF's, have their place in the file, from 0.

    Raises DataError that names the file and the pair.
    """
    name, ids = ImageIds(), set()
    for place, item in enumerate(stream(path, 'item', 'pairs of an image and a sentence')):
        where = f'{path}: pair {place}'
        if not isinstance(item, dict):
            raise DataError(f'{where}: expected an object, found {shown(item)}; get the file again')
        caption = item.get('captionID')  # the name of the image, #, and a number
        texts = {'id': item.get('pairID', str(place)), 'label': item.get('gold_label', item.get('label', '-')),
                 'image': next((item[key] for key in IMAGE_KEYS if key in item),
                          caption.partition('#')[0] if isinstance(caption, str) else caption),
                 'sentence': item.get('sentence2', item.get('sentence'))}
        if is_id(texts['image']):
            texts['image'] = name(texts['image'])
        for key, value in texts.items():
            if not (is_id(value) if key in ('id', 'image') else isinstance(value, str)):
                names = {'id': 'pairID', 'label': 'gold_label or label', 'sentence': 'sentence2 or sentence',
                         'image': ', '.join(IMAGE_KEYS)}
                what = f'an id (text of 1 to {MAX_ID} characters)' if key in ('id', 'image') else 'a text'
                raise DataError(f'{where}: key {names[key]}: expected {what}, found {shown(value)}; correct the file')
        if texts['label'] not in (*LABELS, *NONE):
            raise DataError(f'{where}: expected the label {", ".join(LABELS)} or "-", found {shown(texts["label"])}; correct it')
        if texts['id'] in ids:
            raise DataError(f'{where}: key pairID: expected a new one, found {shown(texts["id"])} again; number the pairs anew')
        ids.add(texts['id'])
        label = None if texts['label'] in NONE else texts['label']
        yield Pair(texts['id'], texts['image'], texts['sentence'].strip(), label)


def has_labels(path):
    """Whether any pair of a file has a label: a file without any is to be predicted only."""
    return any(pair.label for pair in read_pairs(path))
