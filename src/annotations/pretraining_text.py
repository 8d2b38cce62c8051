"""The text of pre-training: what people wrote about an image, by source, and the answers where it is questions.

An example is {"img_id", "sentf": {source: [sentence, ...]}, "labelf": {source: [{answer: score}, ...]}}, an object an image. A
source in `labelf` has a label for each of its sentences, in the same order; captions have none, and `labelf` may be missing.
"""

from annotations.albef_files import example_of, is_albef
from annotations.examples import is_id
from files.json_files import DataError, stream
from files.text import shown

KIND, CAPTIONS = 'lxmert', 'captions'  # of a --dataset of such text, with and without answers
SHAPES = {'sentf': '{source: [sentence, ...]}', 'labelf': '{source: [{answer: score}, ...]}'}


def read(path):
    """Yields the examples of a file, also of ALBEF's captions of images. Raises DataError that names the example and the key."""
    yield from (example for example, _ in read_forms(path))


def read_forms(path):
    """Yields (example, whether it is one of ALBEF's files), as `read`."""
    for number, item in enumerate(stream(path, 'item', 'images with sentences')):
        example = example_of(item, number, path)
        if isinstance(example, dict) and isinstance(example.get('sent'), list):
            example = {'img_id': example['img_id'], 'sentf': {CAPTIONS: example['sent']}}
        if fault := first_fault(example):
            raise DataError(f'{path}: example {number}: key "{fault[0]}": expected {fault[1]}; correct the file')
        yield example, is_albef(item)


def first_fault(example):
    """(path of the key such as 'sentf.vqa[2]', 'what was expected there, found what') of an example's first fault, or None."""
    if not isinstance(example, dict):
        return 'img_id', f'an object with img_id and sentf, found {shown(example)}'
    img_id = example.get('img_id')
    if not is_id(img_id):
        return 'img_id', f'an image id (text), found {shown(img_id)}'
    for key, shape in SHAPES.items():
        sources = example.get(key, {} if key == 'labelf' else None)
        if not isinstance(sources, dict):
            return key, f'an object {shape}, found {shown(sources)}'
        for source, items in sources.items():
            if not isinstance(items, list):
                return f'{key}.{source}', f'a list, as in {shape}, found {shown(items)}'
            if key == 'labelf' and len(items) != (count := len(example['sentf'].get(source, ()))):
                return f'labelf.{source}', f'a label for each of the {count} sentences of sentf.{source}, found {len(items)}'
            for place, item in enumerate(items):
                if not (is_label(item) if key == 'labelf' else isinstance(item, str)):
                    expected = 'an object {answer: score from 0 to 1}' if key == 'labelf' else 'a sentence'
                    return f'{key}.{source}[{place}]', f'{expected}, found {shown(item)}'
    return None


def is_label(value):
    return isinstance(value, dict) and all(isinstance(score, (int, float)) and 0 <= score <= 1 for score in value.values())


def sentences(example):
    """Yields (source, sentence, label) of an example without fault; label: {answer: score}, or None for a caption."""
    labels = example.get('labelf', {})
    for source, texts in example['sentf'].items():
        for text, label in zip(texts, labels.get(source) or [None] * len(texts), strict=True):
            yield source, text, label
