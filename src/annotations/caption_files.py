"""Reads captions of pictures: Karpathy's splits of COCO and Flickr30k, and json of Flickr30k's or ALBEF's layout."""

from files.json_files import DataError, field, stream

KARPATHY = 'https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip'
SPLITS = {'train': 'train', 'restval': 'train', 'val': 'val', 'test': 'test'}
FORMS = '"sentences" with "id" or "img_path" (Flickr30k), or "image" with "caption" (ALBEF)'


def read_karpathy(path):
    """Yields (split, path of the picture, captions) of dataset_coco.json or dataset_flickr30k.json. Raises DataError that names
    the image and key."""
    for number, item in enumerate(stream(path, 'images.item', 'images')):
        place = f'{path}: image {number}'
        split = field(item, 'split', str, place)
        if split not in SPLITS:
            raise DataError(f'{place}: key "split": expected {", ".join(SPLITS)}, found {split!r}; get the file from {KARPATHY}')
        name = field(item, 'filename', str, place)
        folder = field(item, 'filepath', str, place) + '/' if 'filepath' in item else ''
        yield SPLITS[split], folder + name, [field(sentence, 'raw', str, place)
                                             for sentence in field(item, 'sentences', list, place)]


def read_captions(path):
    """Yields (path or id of the picture, captions) of a file of FORMS, several times for a picture if the file does. Raises
    DataError."""
    for number, item in enumerate(stream(path, 'item', 'images')):
        place = f'{path}: item {number}'
        if not isinstance(item, dict) or not ({'sentences', 'caption'} & item.keys()):
            raise DataError(f'{place}: a text or an image alone: expected {FORMS}, found {item!r:.200}; correct the file')
        key = 'image' if 'caption' in item else 'id' if 'id' in item else 'img_path'
        yield field(item, key, str, place), texts(item, 'caption' if 'caption' in item else 'sentences', place)


def texts(item, key, place):
    """The texts of item[key], a text or a list of texts. Raises DataError."""
    value = item.get(key)
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DataError(f'{place}: key "{key}": expected a text or a list of texts, found {value!r:.200}; get the file again')
    return value
