"""The json of ALBEF (arXiv 2107.07651): an item of its files as an example of this project. Its keys tell which file it is of."""

from collections import Counter

from files.json_files import DataError
from files.text import shown
from images.ids import ImageIds

VG_WEIGHT = 0.5  # of the one answer of a question of Visual Genome
LABELS = ('False', 'True')  # of NLVR2
FORMS = {'images': 'NLVR2', 'caption': 'captions', 'question': 'VQA', 'sentence': 'SNLI-VE', 'text': 'RefCOCO'}
PATHS = ImageIds('path')
PROJECT = {'img_id', 'img0', 'sent', 'sentf'}  # keys of this project's examples


def is_albef(item):
    """Whether an item is one of ALBEF's files."""
    return isinstance(item, dict) and bool({'image', 'images'} & item.keys()) and not PROJECT & item.keys()


def example_of(item, number, path):
    """The example of an item of ALBEF's files; None for a pair without a label that annotators agreed on; another item as it is.
    An image id is the path without its ending.

    number: the item's place in the file, the id of what has none; path: of the file, for messages. The items, which may have
    further keys:

        pre-training, retrieval   image, caption: a text or a list of texts
        VQA                       image, question, question_id, answer: the texts of ten annotators, or one text
        Visual Genome             image, question, answer: a text, dataset: vg
        SNLI-VE                   image, sentence, label: the annotators did not agree on "-"
        NLVR2                     images: two, sentence, label: True or False
        RefCOCO                   image, text, ref_id

    The label of a question has for each answer the share of the annotators who gave it, of Visual Genome VG_WEIGHT. Raises
    DataError that names the key.
    """
    if not is_albef(item):
        return item

    def value(key, valid, expected):
        if key not in item or not valid(item[key]):
            found = shown(item[key]) if key in item else f'no such key among {shown(list(item))}'
            raise DataError(f'{place}: key "{key}": expected {expected}, found {found}; correct the file')
        return item[key]

    def text(key):
        return value(key, lambda one: isinstance(one, str), 'a text')

    place = f'{path}: example {number}'
    form = next((form for form in FORMS if form in item), None)
    if form is None:
        names = ', '.join(f'"{key}" ({name})' for key, name in FORMS.items())
        raise DataError(f'{place}: a picture without a text: expected one of {names}, found {shown(list(item))}; correct it')
    if form == 'images':
        paths = value('images', lambda paths: isinstance(paths, list) and len(paths) == 2 and all(map(is_path, paths)),
                      'the paths of two pictures')
        label = {'label': LABELS.index(value('label', LABELS.__contains__, '"True" or "False"'))} if 'label' in item else {}
        return {'identifier': str(number), 'img0': PATHS(paths[0]), 'img1': PATHS(paths[1]), 'sent': text('sentence')} | label
    example = {'img_id': PATHS(value('image', is_path, 'the path of a picture'))}
    if form == 'caption':
        captions = value('caption', lambda one: isinstance(one, str) or is_texts(one), 'a text or a list of texts')
        return example | {'sent': [captions] if isinstance(captions, str) else captions}
    if form == 'question':
        example |= {'question_id': item.get('question_id', number), 'sent': text('question')}
        return example | ({'label': weights(value('answer', lambda one: isinstance(one, str) or is_texts(one),
                                                  'a text or a list of texts'), item.get('dataset'))} if 'answer' in item else {})
    if form == 'sentence':
        if item.get('label') == '-':
            return None
        return example | {'pairID': str(number), 'sent': text('sentence')} | ({'label': text('label')} if 'label' in item else {})
    return example | {'ref_id': value('ref_id', lambda one: type(one) is int, 'a whole number'), 'sent': text('text')}


def is_path(value):
    return isinstance(value, str) and bool(value)


def is_texts(value):
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def weights(answers, dataset):
    """{answer: weight} of the answers of a question, a text or a list of texts. dataset: 'vg' for Visual Genome."""
    if isinstance(answers, str):
        return {answers: VG_WEIGHT if dataset == 'vg' else 1.0}
    return {answer: count / len(answers) for answer, count in Counter(answers).items()}
