"""The sample world: the same bytes each time, honest answers, balanced questions, the layout of real data."""
import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from itertools import chain, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotations import pretraining_text
from annotations.answer_table import normalise, read_table
from pretrain.program import FEATURES
from regions import store, tsv
from shapes import (
    caption_data,
    captions,
    draw,
    features,
    gqa_questions,
    make,
    pairs,
    questions,
    report,
    scene,
    simulate_regions,
    world,
)
from shapes.baselines import fit_baselines, masked
from tools import check_dataset

SETTINGS = world.Settings(images=60, seed=3, questions=10)
SPLITS = ('train', 'nominival', 'minival', 'test')


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def small_world(tmp_path_factory):
    """A small world on disk, and its annotations of each task with all labels."""
    out = tmp_path_factory.mktemp('shapes') / 'one'
    return out, world.make(out, SETTINGS, processes=1)


@pytest.fixture(scope='module')
def vqa():
    """Questions about 600 scenes for training and about 200 others for evaluation, without pictures."""
    return [questions.generate({str(i): scene.sample(7, i) for i in indices}, 10, 0, random.Random(indices[0]))
            for indices in (range(600), range(600, 800))]


@pytest.fixture(scope='module')
def gqa():
    """The same for GQA, with 400 and 160 scenes."""
    return [gqa_questions.generate({str(i): scene.sample(7, i) for i in indices}, 10, 0, random.Random(indices[0]))
            for indices in (range(400), range(400, 560))]


@pytest.fixture(scope='module')
def nlvr2():
    """Statements about pairs of the same scenes as in `gqa`."""
    return [pairs.generate({str(i): scene.sample(7, i) for i in indices}, sets, 'train', random.Random(indices[0]))
            for indices, sets in ((range(400), 1000), (range(400, 560), 300))]


@pytest.fixture(scope='module')
def caption_sets():
    """[(scene, its captions)] of 400 scenes."""
    scenes = {str(i): scene.sample(7, i) for i in range(400)}
    return [(scenes[i], of_scene) for i, of_scene in captions.generate(scenes, 5, random.Random(0)).items()]


def best(question):
    return max(question['label'], key=question['label'].get)


def test_same_seed_same_bytes_whatever_the_processes(small_world, tmp_path):
    world.make(tmp_path / 'two', SETTINGS, processes=2)
    assert contents(small_world[0]) == contents(tmp_path / 'two')


def test_texts_are_those_of_every_earlier_version(small_world):
    """Those that Python alone draws: a world with the same settings is not made again."""
    digest = hashlib.sha256()
    for folder in (*world.TASKS, 'retrieval', 'cc', 'corpus', 'lxmert'):
        for path in sorted((small_world[0] / folder).iterdir()):
            digest.update(path.read_bytes())
    assert digest.hexdigest() == '9771150696e05fa2e2e4d3b4c2877d0ee2404f8c941147ace52a7b791d878eaa', 'or raise FORMAT'


def test_other_seed_other_pictures():
    assert scene.sample(1, 0) != scene.sample(2, 0) != scene.sample(2, 1)


def test_layout_is_that_of_real_data(small_world):
    out, _ = small_world
    labels = json.loads((out / 'vqa/trainval_label2ans.json').read_text())
    assert json.loads((out / 'vqa/trainval_ans2label.json').read_text()) == {a: i for i, a in enumerate(labels)}
    features_of = {'train': 'train2014', 'nominival': 'val2014', 'minival': 'val2014', 'test': 'test2015'}
    images, ids = defaultdict(set), []
    for split in SPLITS:
        for question in json.loads((out / f'vqa/{split}.json').read_text()):
            images[split].add(question['img_id'])
            ids.append(question['question_id'])
            assert ('label' in question) == (split != 'test')
            assert set(question.get('label', ())) <= set(labels)
    assert len(ids) == len(set(ids)) == 600
    assert not images['nominival'] & images['minival']
    for folder in ('train2014', 'val2014', 'test2015'):
        regions = [image for _, image in tsv.read(out / f'mscoco_imgfeat/{folder}_obj36.tsv')]
        expected = set().union(*(images[split] for split in SPLITS if features_of[split] == folder))
        assert sorted(image.img_id for image in regions) == sorted(expected)
        assert {path.stem for path in (out / 'images' / folder).iterdir()} == expected
        for image in regions:
            x1, y1, x2, y2 = image.boxes.T
            assert len(image.boxes) == 36 and image.features.shape == (36, features.FEATURE_DIM)
            assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= image.width).all() and (y2 <= image.height).all()
            assert (x2 - x1 > 5).all() and (y2 - y1 > 5).all()
            assert (np.diff(image.class_conf) <= 0).all()
            assert image.classes.max() < len(simulate_regions.CLASSES)
            assert image.attributes.max() < len(simulate_regions.ATTRIBUTES)


def test_gqa_and_nlvr2_see_the_pictures_of_vqa(small_world):
    out, _ = small_world
    regions = {name: (out / f'mscoco_imgfeat/{name}_obj36.tsv').read_bytes() for name in ('train2014', 'val2014', 'test2015')}
    train, val, test = regions.values()
    for name, expected in (('vg_gqa_imgfeat/vg_gqa', train + val), ('vg_gqa_imgfeat/gqa_testdev', test),
                           ('nlvr2_imgfeat/train', train), ('nlvr2_imgfeat/valid', val),
                           ('nlvr2_imgfeat/test', test), ('nlvr2_imgfeat/hidden', test)):
        assert (out / f'{name}_obj36.tsv').read_bytes() == expected, name
    images = {name: {line.split(b'\t')[0].decode() for line in lines.splitlines()} for name, lines in regions.items()}

    labels = json.loads((out / 'gqa/trainval_label2ans.json').read_text())
    assert json.loads((out / 'gqa/trainval_ans2label.json').read_text()) == {a: i for i, a in enumerate(labels)}
    ids = []
    for split, folder, count in (('train', 'train2014', 480), ('valid', 'val2014', 70), ('testdev', 'test2015', 50),
                                 ('submit', 'val2014', 70)):
        examples = json.loads((out / f'gqa/{split}.json').read_text())
        assert len(examples) == count and {question['img_id'] for question in examples} == images[folder]
        ids += [question['question_id'] for question in examples]
        for question in examples:
            keys = {'img_id', 'question_id', 'sent'} | ({'label', 'answer_type', 'question_type'} if split != 'submit' else set())
            assert set(question) == keys and isinstance(question['question_id'], str)
            if split != 'submit':
                assert list(question['label'].values()) == [1.0] and set(question['label']) <= set(labels)
    assert len(set(ids)) == len(ids)

    for split, folder in (('train', 'train2014'), ('valid', 'val2014'), ('test', 'test2015'), ('hidden', 'test2015')):
        examples = json.loads((out / f'nlvr2/{split}.json').read_text())
        keys = {'uid', 'identifier', 'img0', 'img1', 'sent'} | ({'label', 'question_type'} if split != 'hidden' else set())
        assert all(set(example) == keys for example in examples)
        assert all(re.fullmatch(rf'{split}-\d+-[0-3]-[01]', example['identifier']) for example in examples)
        assert len({example['identifier'] for example in examples}) == len(examples)
        assert len({example['uid'] for example in examples}) == len(examples)
        assert {example[key] for example in examples for key in ('img0', 'img1')} <= images[folder]
        assert {example['label'] for example in examples if split != 'hidden'} == (set() if split == 'hidden' else {0, 1})
        assert 1.5 * 10 * len(images[folder]) < len(examples) <= 2 * 10 * len(images[folder]) + 8


def read_text(out):
    return {file: json.loads((out / f'lxmert/{file}.json').read_text()) for file in FEATURES}


def test_no_picture_is_in_two_files_of_pretraining_or_in_a_test_split(small_world):
    out, annotations = small_world
    text = read_text(out)
    assert text == annotations['lxmert']
    assert not any(pretraining_text.first_fault(image) for images in text.values() for image in images)
    ids = {file: [image['img_id'] for image in images] for file, images in text.items()}
    assert {file: len(of_file) for file, of_file in ids.items()} == {
        'mscoco_train': 39, 'mscoco_nominival': 2, 'mscoco_minival': 5, 'vgnococo': 9}
    assert len({img_id for of_file in ids.values() for img_id in of_file}) == 55
    images = {split: {question['img_id'] for question in json.loads((out / f'vqa/{split}.json').read_text())} for split in SPLITS}
    assert {*ids['mscoco_train'], *ids['vgnococo']} == images['train']
    assert all({*ids[f'mscoco_{split}']} == images[split] for split in ('nominival', 'minival'))
    tested = {item[key] for name in ('vqa/test', 'gqa/testdev', 'nlvr2/test', 'nlvr2/hidden')
              for item in json.loads((out / f'{name}.json').read_text()) for key in ('img_id', 'img0', 'img1') if key in item}
    assert tested and not tested & {img_id for of_file in ids.values() for img_id in of_file}
    for file, of_file in ids.items():
        assert {*of_file} <= {image.img_id for _, image in tsv.read(out / f'{FEATURES[file]}_obj36.tsv')}


def test_pretraining_text_holds_the_questions_of_the_tasks(small_world):
    out, _ = small_world
    questions_of = {task: defaultdict(list) for task in ('vqa', 'gqa')}
    for task, splits in (('vqa', ('train', 'nominival', 'minival')), ('gqa', ('train', 'valid'))):
        for question in [item for split in splits for item in json.loads((out / f'{task}/{split}.json').read_text())]:
            questions_of[task][question['img_id']].append((question['sent'], question['label']))
    table = read_table(out / 'lxmert/all_ans.json')
    assert table == sorted(table) == [normalise(answer) for answer in table]
    for task in questions_of:
        labels = json.loads((out / f'{task}/trainval_label2ans.json').read_text())
        assert read_table(out / 'lxmert/all_ans.json', [task]) == sorted(map(normalise, labels))
    for file, images in read_text(out).items():
        caption, tasks = ('vg', ['gqa']) if file == 'vgnococo' else ('mscoco', ['vqa', 'gqa'])
        for image in images:
            assert list(image['sentf']) == [caption, *tasks] and list(image['labelf']) == tasks
            assert len({*image['sentf'][caption]}) == len(image['sentf'][caption]) == 5
            for task in tasks:
                pairs_of_image = list(zip(image['sentf'][task], image['labelf'][task], strict=True))
                assert pairs_of_image == questions_of[task][image['img_id']] and len(pairs_of_image) == 10


def test_check_dataset_finds_no_fault_in_the_pretraining_text(small_world, tmp_path, capsys):
    out, _ = small_world
    described = {'kind': 'lxmert', 'name': 'shapes', 'max_length': 20, 'answers': f'{out}/lxmert/all_ans.json', 'splits': {
        file: {'annotations': f'{out}/lxmert/{file}.json', 'features': [f'{out}/{regions}_obj36.tsv']}
        for file, regions in FEATURES.items()}}
    path = tmp_path / 'shapes.json'
    path.write_text(json.dumps(described))
    assert check_dataset.main([str(path), '--bert', str(out / 'bert')]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(' ')] == [
        'mscoco_train: 975 sentences on 39 images, 780 with labels', 'mscoco_nominival: 50 sentences on 2 images, 40 with labels',
        'mscoco_minival: 125 sentences on 5 images, 100 with labels', 'vgnococo: 135 sentences on 9 images, 90 with labels',
        f'{path}: 0 faults']
    # Nothing is cut, left out or lacking.
    assert all('with regions have no sentences' in line or '0.0 % of the word pieces are [UNK], 0 of' in line
               for line in lines if line.startswith(' '))


def test_vocabulary_knows_every_word(small_world):
    out, annotations = small_world
    pieces = (out / 'bert/vocab.txt').read_text().split('\n')[:-1]
    assert pieces[:5] == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] and len(set(pieces)) == len(pieces)
    sentences = [sentence for task, splits in annotations.items() if task != 'vcr' for items in splits.values() for item in items
                 for sentence in ([item['sent']] if 'sent' in item else chain.from_iterable(item['sentf'].values()))]
    sentences += [word for items in annotations['vcr'].values() for item in items
                  for text in (item['question'], item['names'], *item['answer_choices'], *item['rationale_choices'])
                  for word in text if isinstance(word, str)]
    words = {word for sentence in sentences for word in re.findall(r'\w+|[^\w\s]', sentence.lower())}
    assert words <= set(pieces)
    config = json.loads((out / 'bert/config.json').read_text())
    assert config['vocab_size'] == len(pieces) and config['visual_feat_dim'] == features.FEATURE_DIM
    assert config['num_object_labels'] == len(simulate_regions.CLASSES)
    assert config['num_attr_labels'] == len(simulate_regions.ATTRIBUTES)


def test_kinds_have_their_shares(vqa):
    counts = Counter(question['question_type'] for question in vqa[0])
    assert sum(questions.SHARES.values()) == pytest.approx(1)
    assert questions.SHARES['counting'] + questions.SHARES['relation'] >= 0.3
    for kind, share in questions.SHARES.items():
        assert counts[kind] / len(vqa[0]) == pytest.approx(share, abs=0.005)
    templates = defaultdict(set)
    for family in questions.FAMILIES:
        templates[family.kind].update(family.templates)
    assert all(len(templates[kind]) >= 4 for kind in questions.SHARES)


def test_answers_are_balanced(vqa):
    """Yes and no in each kind, and also given any one word; colours, shapes, sizes and counts."""
    answers, given = defaultdict(Counter), defaultdict(Counter)
    for question in vqa[0]:
        answers[question['question_type'], question['answer_type']][best(question)] += 1
        if question['answer_type'] == 'yes/no':
            for word in set(re.findall(r'\w+', question['sent'].lower())):
                given[word][best(question)] += 1
    for (_, answer_type), counts in answers.items():
        if answer_type == 'yes/no':
            assert abs(counts['yes'] - counts['no']) <= 0.05 * counts.total()
    for counts in given.values():
        if counts.total() >= 150:
            assert 0.38 < counts['yes'] / counts.total() < 0.62
    for kind, names, low, high in (('colour', scene.COLOURS, 0.8, 1.2), ('shape', scene.SHAPES, 0.8, 1.2),
                                   ('size', scene.RADII, 0.9, 1.1), ('counting', questions.COUNTS, 0.4, 1.3)):
        counts = Counter(best(q) for q in vqa[0] if q['question_type'] == kind)
        assert all(low < counts[name] * len(names) / counts.total() < high for name in names), counts


def test_words_alone_score_low(vqa):
    scores = fit_baselines(vqa[0])(vqa[1])
    assert 10 < scores['majority'] < 25 and scores['majority'] < scores['text_only'] < 40
    assert masked('Are two little RED boxes and crosses above it?') == 'are two SIZE COLOUR boxes and SHAPE above it?'


def test_baselines_by_hand():
    train = [{'sent': 'Is it red?', 'label': {'yes': 1.0}, 'question_type': 'a'},
             {'sent': 'Is it blue?', 'label': {'no': 1.0}, 'question_type': 'a'},
             {'sent': 'Is it blue?', 'label': {'no': 1.0}, 'question_type': 'a'}]
    assert fit_baselines(train)(train) == {'majority': pytest.approx(200 / 3), 'text_only': 100.0}


def things_of(words, the_scene):
    """The things that match a phrase such as 'little red stars', parsed independently of `shapes`."""
    words = ' '.join(words.split()).replace('little', 'small').replace('big', 'large')
    wanted = [word[:-2] if word == 'crosses' else word.rstrip('s') if word != 'cross' else word
              for word in words.split()]
    wanted = [word for word in wanted if word not in ('thing', 'object')]
    return [thing for thing in the_scene.things if all(word in (thing.size, thing.colour, thing.shape) for word in wanted)]


@pytest.mark.parametrize(('pattern', 'answer'), [
    (r'Is there an? (.+) in the (?:picture|image)\?', lambda s, x: 'yes' if things_of(x, s) else 'no'),
    (r'How many (.+) are there\?', lambda s, x: str(len(things_of(x, s)))),
    (r'What color is the (\S+ ?\S+)\?', lambda s, x: things_of(x, s)[0].colour),
    (r'What shape is the (\S+ ?\S+)\?', lambda s, x: things_of(x, s)[0].shape),
    (r'Is the (.+) small or large\?', lambda s, x: things_of(x, s)[0].size),
    (r'Are there more (.+) than (.+)\?',
     lambda s, x, y: 'yes' if len(things_of(x, s)) > len(things_of(y, s)) else 'no'),
    (r'Is the (.+) (?:below|lower than) the (.+)\?',
     lambda s, x, y: 'yes' if things_of(x, s)[0].y > things_of(y, s)[0].y else 'no'),
    (r'Is the (.+) on the left or on the right\?', lambda s, x: 'left' if things_of(x, s)[0].x < 80 else 'right'),
    (r'What color is the thing closest to the left edge\?', lambda s: min(s.things, key=lambda t: t.box[0]).colour),
])
def test_answers_hold_when_read_plainly(vqa, pattern, answer):
    checked = 0
    for question in vqa[0]:
        if match := re.fullmatch(pattern, question['sent']):
            assert best(question) == answer(scene.sample(7, int(question['img_id'])), *match.groups()), question
            checked += 1
    assert checked >= 5


def clearly(x, y, side):
    """Whether x's thing lies more than 14 pixels to that side of y's, and not much further to another."""
    (one,), (other,) = x, y
    dx, dy = one.x - other.x, one.y - other.y
    return {'left': -dx, 'right': dx, 'above': -dy, 'below': dy}[side] >= max(14, 0.6 * max(abs(dx), abs(dy)))


def yes(truth):
    return 'yes' if truth else 'no'


@pytest.mark.parametrize(('pattern', 'answer'), [
    (r'Which color does the (\S+) have\?', lambda x: x[0].colour),
    (r'What is the shape of the (\S+ (?:thing|object))\?', lambda x: x[0].shape),
    (r'Is the (\S+ (?!thing|object)\S+) small or large\?', lambda x: x[0].size),
    (r'Is the (.+) at the top or at the bottom\?', lambda x: 'top' if x[0].y < 60 else 'bottom'),
    (r'Is the (.+) to the left or to the right of the (.+)\?', lambda x, y: 'left' if clearly(x, y, 'left') else 'right'),
    (r'Is the (.+) above or below the (.+)\?', lambda x, y: 'above' if clearly(x, y, 'above') else 'below'),
    (r'Are there both (.+) and (.+)\?', lambda x, y: yes(x and y)),
    (r'Are there either (.+) or (.+)\?', lambda x, y: yes(x or y)),
    (r'Do the (.+) and the (.+) have different colors\?', lambda x, y: yes(x[0].colour != y[0].colour)),
    (r'(?:Which|What) is (?:larger|bigger), the (.+) or the (.+)\?', lambda x, y: max(x + y, key=lambda t: t.radius).shape),
    (r'(?:Which|What) is further to the left, the (.+) or the (.+)\?', lambda x, y: min(x + y, key=lambda t: t.x).shape),
    (r'Is there an? (\S+) (?:lower than|below) the (.+)\?',
     lambda x, y: yes(any(clearly([t], y, 'below') for t in x if t != y[0]))),
])
def test_answers_of_gqa_hold_when_read_plainly(gqa, pattern, answer):
    checked = 0
    for question in gqa[0]:
        if match := re.fullmatch(pattern, question['sent']):
            things = [things_of(words, scene.sample(7, int(question['img_id']))) for words in match.groups()]
            assert best(question) == answer(*things), question
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize(('pattern', 'holds'), [
    (r'Is the (\S+) (red|blue|green|black|white|orange|yellow|purple) or (\S+)\?', lambda thing, one, other: thing.colour),
    (r'Is the (\S+ (?:thing|object)) an? (\S+) or an? (\S+)\?', lambda thing, one, other: thing.shape),
    (r'Is the (\S+) both (?:small|little) and (\S+)\?',
     lambda thing, colour: yes((thing.size, thing.colour) == ('small', colour))),
    (r'Is the (\S+) either (?:large|big) or (\S+), or both\?',
     lambda thing, colour: yes(thing.size == 'large' or thing.colour == colour)),
])
def test_choices_of_gqa_hold_when_read_plainly(gqa, pattern, holds):
    checked = 0
    for question in gqa[0]:
        if match := re.fullmatch(pattern, question['sent']):
            (thing,) = things_of(match[1], scene.sample(7, int(question['img_id'])))
            assert best(question) == holds(thing, *match.groups()[1:]), question
            checked += 1
    assert checked >= 5


def test_gqa_is_balanced(gqa):
    counts = Counter(question['question_type'] for question in gqa[0])
    assert set(counts) == {'query', 'verify', 'choose', 'logical', 'compare'}
    assert sum(gqa_questions.SHARES.values()) == pytest.approx(1)
    for kind, share in gqa_questions.SHARES.items():
        assert counts[kind] / len(gqa[0]) == pytest.approx(share, abs=0.005)
    assert all((q['answer_type'] == 'open') == (q['question_type'] == 'query') for q in gqa[0])
    for kind in ('verify', 'logical', 'compare'):
        answers = Counter(best(q) for q in gqa[0] if q['question_type'] == kind)
        assert abs(answers['yes'] - answers['no']) <= 0.06 * (answers['yes'] + answers['no'])
    assert fit_baselines(gqa[0])(gqa[1])['text_only'] < 45


SHOWN = r'((?:(?:red|blue|green|black|white|orange|yellow|purple) )?\S+?)'


@pytest.mark.parametrize(('pattern', 'holds'), [
    (rf'There is an? {SHOWN} in the left (?:picture|image)\.', lambda left, right: left > 0),
    (rf'The right (?:picture|image) contains an? {SHOWN}\.', lambda left, right: right > 0),
    (rf'The left (?:picture|image) does not show any {SHOWN}\.', lambda left, right: left == 0),
    (rf'In the right (?:picture|image) there are no {SHOWN}\.', lambda left, right: right == 0),
    (rf'Both (?:picture|image)s contain an? {SHOWN}\.', lambda left, right: left > 0 and right > 0),
    (rf'At least one of the (?:picture|image)s contains no {SHOWN}\.', lambda left, right: left == 0 or right == 0),
    (rf'Neither (?:picture|image) contains an? {SHOWN}\.', lambda left, right: left == right == 0),
    (rf'At least one of the (?:picture|image)s contains an? {SHOWN}\.', lambda left, right: left > 0 or right > 0),
    (rf'Exactly one of the (?:picture|image)s contains an? {SHOWN}\.', lambda left, right: (left > 0) + (right > 0) == 1),
    (rf'There are exactly three {SHOWN} in all\.', lambda left, right: left + right == 3),
    (rf'There are at least four {SHOWN} in all\.', lambda left, right: left + right >= 4),
    (rf'There are fewer than two {SHOWN} in all\.', lambda left, right: left + right < 2),
    (rf'There are exactly (?:two|2) {SHOWN} in the right (?:picture|image)\.', lambda left, right: right == 2),
    (rf'The left (?:picture|image) has more {SHOWN} than the right one\.', lambda left, right: left > right),
    (rf'There are more {SHOWN} in the right (?:picture|image)\.', lambda left, right: right > left),
    (rf'Both (?:picture|image)s contain the same number of {SHOWN}\.', lambda left, right: left == right),
])
def test_statements_hold_when_read_plainly(nlvr2, pattern, holds):
    checked = 0
    for one in nlvr2[0]:
        if match := re.fullmatch(pattern, one['sent']):
            left, right = (len(things_of(match[1], scene.sample(7, int(one[key])))) for key in ('img0', 'img1'))
            assert one['label'] == int(holds(left, right)), one
            checked += 1
    assert checked >= 5


def test_statements_on_agreement_hold_when_read_plainly(nlvr2):
    checked = Counter()
    for one in nlvr2[0]:
        for pattern, same in ((r'The (.+) has the same (color|shape) in both .*', True),
                              (r'The (.+) has a different (color|shape) in each .*', False)):
            if match := re.fullmatch(pattern, one['sent']):
                (left,), (right,) = (things_of(match[1], scene.sample(7, int(one[key]))) for key in ('img0', 'img1'))
                alike = left.colour == right.colour if match[2] == 'color' else left.shape == right.shape
                assert one['label'] == int(alike == same), one
                checked[same] += 1
    assert min(checked[True], checked[False]) >= 5


def test_statements_come_in_consistency_groups(nlvr2):
    """A sentence with four pairs, true of two; exchanging one picture of a true pair gives a false one."""
    groups, sets = defaultdict(list), defaultdict(set)
    for one in nlvr2[0]:
        split, number, pair, sentence = one['identifier'].split('-')
        groups[split, number, sentence].append(one)
        sets[number, pair].add((one['img0'], one['img1']))
    assert all(len(shown) == 1 for shown in sets.values()) and len(sets) == 4000
    assert sum(sentence == '1' for _, _, sentence in groups) > 900
    for (_, _, sentence), group in groups.items():
        assert len({one['sent'] for one in group}) == 1 and len({(one['img0'], one['img1']) for one in group}) == 4
        assert all(one['img0'] != one['img1'] for one in group)
        true, false = ([one for one in group if one['label'] == truth] for truth in (1, 0))
        assert len(true) == len(false) == 2
        if sentence == '0':
            for one in true:
                assert any((one['img0'] == other['img0']) + (one['img1'] == other['img1']) == 1 for other in false)


def test_neither_words_nor_one_picture_tell_the_truth(nlvr2):
    train, scored = nlvr2
    assert all(49 <= score <= 51 for score in fit_baselines(train)(scored).values())
    names = (*scene.COLOURS, *scene.SHAPES)
    for key in ('img0', 'img1'):
        by_picture, by_both = defaultdict(Counter), defaultdict(Counter)
        for one in train:
            things = scene.sample(7, int(one[key])).things
            said = [name for name in names if name in one['sent'].lower().replace('images', '')]
            shown = any(all(name in (thing.colour, thing.shape) for name in said) for thing in things)
            by_picture[len(things)][one['label']] += 1
            by_both[one['question_type'], masked(one['sent']), shown][one['label']] += 1

        def known(tables, kind=None):
            chosen = [table for key, table in tables.items() if kind is None or key[0] == kind]
            return sum(max(table.values()) for table in chosen) / sum(table.total() for table in chosen)

        kinds = {kind: known(by_both, kind) for kind in pairs.SHARES}
        assert max(kinds[kind] for kind in ('both', 'neither', 'either')) < 0.82 and kinds['one'] < 0.70
        assert known(by_both) < 0.80 and known(by_picture) < 0.55


NAMED = (rf'((?:(?:small|little|large|big) )?(?:(?:{"|".join(scene.COLOURS)}) )?'
         rf'(?:{"|".join(scene.SHAPES)}|thing|object)(?:e?s)?)')
SLOTS = {'A': f'an? {NAMED}', 'M': NAMED, 'N': '(two|three|four|five|six|[2-6])', 'V': '(small|little|large|big)',
         'W': r'(above|below|higher up than|lower than|left of|right of|(?:to|on) the (?:left|right)(?: side)? of)',
         'C': f'({"|".join(scene.COLOURS)})', 'E': '((?:furthest|closest|highest|lowest) [a-z ]+?)',
         'P': r'((?:on|at|in) the \w+(?: half)?)', 'Q': '(upper|top|lower|bottom)', 'L': '(left|right)'}
STEMS = {'left': 'left', 'right': 'right', 'above': 'above', 'high': 'above', 'top': 'above', 'upper': 'above',
         'below': 'below', 'low': 'below', 'bottom': 'below'}


def some(rule, *groups):
    """Whether different things, one of each group, follow the rule."""
    return any(len({*things}) == len(things) and rule(*things) for things in product(*groups))


def beside(x, y, side):
    return some(lambda one, other: clearly([one], [other], side), x, y)


def smaller(x, y):
    return some(lambda one, other: one.radius < other.radius - 5, x, y)


def all_beside(many, number, x, side, turned=False):
    return len(many) == number and some(
        lambda one: one not in many and all(clearly(*([one], [thing])[::-1 if turned else 1], side) for thing in many), x)


def inside(thing, side):
    """Whether it lies 14 pixels or more beyond the middle of the picture."""
    return {'left': 80 - thing.x, 'right': thing.x - 80, 'above': 60 - thing.y, 'below': thing.y - 60}[side] >= 14


def first(the_scene, thing, side):
    """Whether no other lies as far to that side."""
    def reach(other):
        return {'left': -other.x, 'right': other.x, 'above': -other.y, 'below': other.y}[side]
    return all(reach(other) < reach(thing) for other in the_scene.things if other != thing)


def counted(number, many, *others):
    return len(many) == number and some(lambda *things: not {*things} & {*many}, *others)


# Pattern of a sentence: whether it is true. A capital is a slot; x, y, z and m (a plural) are the things that match a phrase.
READ = {
    '(?:(?:there are |the picture shows |you can see )?A, A and A|A and A together with A)':
        lambda s, x, y, z: some(lambda *_: True, x, y, z),
    '(?:there is |the picture shows )?A(?: is)? W A': lambda s, x, w, y: beside(x, y, w),
    'W A there is A': lambda s, w, y, x: beside(x, y, w),
    'A(?: is)? W A and W A': lambda s, x, w, y, v, z: some(
        lambda one, two, three: clearly([one], [two], w) and clearly([one], [three], v), x, y, z),
    '(?:(?:the picture shows )?A and a smaller M|A that is larger than A)': lambda s, x, y: smaller(y, x),
    '(?:A that is smaller than A|there are A and a bigger M)': lambda s, x, y: smaller(x, y),
    '(?:there are )?N M(?: are)? W A': lambda s, n, m, w, x: all_beside(m, n, x, w, turned=True),
    'W A there are N M': lambda s, w, x, n, m: all_beside(m, n, x, w, turned=True),
    '(?:there is )?A(?: is)? W N M': lambda s, x, w, n, m: all_beside(m, n, x, w),
    '(?:N M, A and A|there are N M as well as A and A)': lambda s, n, m, x, y: counted(n, m, x, y),
    'A and A with N M': lambda s, x, y, n, m: counted(n, m, x, y),
    '(?:N things, among them N M and A|among N things there are N M and A)':
        lambda s, total, n, m, x: len(s.things) == total and counted(n, m, x),
    'N of the N things are M, and there is A': lambda s, n, total, m, x: len(s.things) == total and counted(n, m, x),
    '(?:the only|the two) M are A and A': lambda s, m, x, y: some(lambda *two: {*two} == {*m}, x, y),
    'A and A are the only M': lambda s, x, y, m: some(lambda *two: {*two} == {*m}, x, y),
    '(?:only one thing is V, A|the only V thing in the picture is A)': lambda s, v, x: things_of(v, s) in [[one] for one in x],
    'A is the only V thing': lambda s, x, v: things_of(v, s) in [[one] for one in x],
    '(?:there is )?A(?: is)? P and A(?: is)? P':
        lambda s, x, p, y, q: some(lambda one, two: inside(one, p) and inside(two, q), x, y),
    '(?:there is )?A in the Q L quarter(?: of the picture)?':
        lambda s, x, q, p: some(lambda one: inside(one, q) and inside(one, p), x),
    'in the Q L quarter there is A': lambda s, q, p, x: some(lambda one: inside(one, q) and inside(one, p), x),
    'A is E and A is E': lambda s, x, e, y, f: some(lambda one, two: first(s, one, e) and first(s, two, f), x, y),
    'E is A and E is A': lambda s, e, x, f, y: some(lambda one, two: first(s, one, e) and first(s, two, f), x, y),
    'A and A, but nothing C': lambda s, x, y, c: some(lambda *_: True, x, y) and not things_of(c, s),
    'nothing is C, but there are A and A': lambda s, c, x, y: some(lambda *_: True, x, y) and not things_of(c, s),
}
PLAIN = {re.compile(re.sub(r'\b[A-Z]\b', lambda slot: SLOTS[slot[0]], said)): holds for said, holds in READ.items()}


def read_plainly(sent, the_scene):
    """(the pattern of a caption, whether it is true of a scene)."""
    (match, holds), = ((match, holds) for pattern, holds in PLAIN.items()
                       if (match := pattern.fullmatch(sent.lower().removesuffix('.').replace('image', 'picture'))))

    def meant(words):
        if words in (*scene.COLOURS, 'small', 'little', 'large', 'big'):
            return words
        if re.fullmatch(NAMED, words):
            return things_of(words, the_scene)
        numbers = ('two', 'three', 'four', 'five', 'six')
        if words.isdigit() or words in numbers:
            return int(words) if words.isdigit() else 2 + numbers.index(words)
        return STEMS[re.search('|'.join(STEMS), words)[0]]
    return match.re, holds(the_scene, *(meant(words) for words in match.groups() if words))


def test_captions_are_true_when_read_plainly(caption_sets):
    patterns = Counter()
    for the_scene, of_scene in caption_sets:
        for caption in of_scene:
            pattern, truth = read_plainly(caption.sent, the_scene)
            assert truth and caption.holds(the_scene), caption
            patterns[pattern] += 1
    assert min(patterns[pattern] for pattern in PLAIN) >= 5


def test_captions_of_other_pictures_are_false(caption_sets):
    rng, true, all_ = random.Random(1), 0, 0
    for the_scene, of_scene in caption_sets:
        for caption in of_scene:
            for other, _ in rng.sample(caption_sets, 5):
                truth = other != the_scene and read_plainly(caption.sent, other)[1]
                assert truth or other == the_scene or not caption.holds(other), (caption, other)
                true, all_ = true + truth, all_ + (other != the_scene)
    assert all_ > 9000 and true / all_ < 0.01


def test_captions_tell_several_things_and_differ(caption_sets):
    families, words = Counter(), Counter()
    for _, of_scene in caption_sets:
        assert len(of_scene) == 5 and len({caption.sent for caption in of_scene}) == 5
        assert len({(caption.family.templates, frozenset(caption.slots.items())) for caption in of_scene}) == 5
        for caption in of_scene:
            tokens = re.findall(r'\w+|[^\w\s]', caption.sent)
            assert 8 <= len(tokens) <= 18 and caption.sent[0] in caption.sent[0].upper() and tokens[-1] == '.'
            families[caption.family.templates] += 1
            words.update({*caption.sent.lower().split()})
    assert len(families) == len(captions.FAMILIES) and all(0.01 < count / 2000 < 0.3 for count in families.values())
    assert words['nothing'] / 2000 < 0.04
    assert all(words[name] + words[f'{name}.'] > 20 for name in (*scene.COLOURS, *scene.SHAPES))


def test_a_negative_seed_and_too_many_captions_are_refused():
    with pytest.raises(ValueError, match='--captions 0: expected 1 to 6'):
        world.Settings(captions=0)
    with pytest.raises(ValueError, match='--seed -5: expected a number from 0 on'):
        world.Settings(seed=-5)
    with pytest.raises(ValueError, match='few: no more different captions; choose fewer --captions'):
        captions.generate({'few': scene.sample(7, 0)}, 10_000, random.Random(0))


def test_report_reads_the_predictions_of_each_task(small_world, tmp_path, capsys):
    out, annotations = small_world
    right = {'vqa': ('minival', [{'question_id': q['question_id'], 'answer': best(q)} for q in annotations['vqa']['minival']]),
             'gqa': ('testdev', [{'questionId': q['question_id'], 'prediction': best(q)} for q in annotations['gqa']['testdev']])}
    for task, (split, predictions) in right.items():
        path = tmp_path / f'{split}_predict.json'
        path.write_text(json.dumps(predictions))
        report.main([str(out), str(path), '--task', task])
        assert '\nScore 100.0, ' in capsys.readouterr().out
    path = tmp_path / 'valid_predict.csv'
    statements = annotations['nlvr2']['valid']
    path.write_text(''.join(f'{one["identifier"]},True\n' for one in statements))
    report.main([str(out), str(path), '--task', 'nlvr2'])
    assert '\nScore 50.0, ' in capsys.readouterr().out
    for lines, message in ((f'{statements[0]["identifier"]},True\n', f'{len(statements) - 1} lack one'), ('x', 'lines such as')):
        path.write_text(lines)
        with pytest.raises(SystemExit):
            report.main([str(out), str(path), '--task', 'nlvr2'])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report.main([str(out), str(path.rename(tmp_path / 'hidden_predict.csv')), '--task', 'nlvr2'])
    assert 'has no labels' in capsys.readouterr().err


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_things_can_be_told_apart(seed, index):
    things = scene.sample(seed, index).things
    assert 3 <= len(things) <= 6 and len({(t.shape, t.colour, t.size) for t in things}) == len(things)
    for thing in things:
        assert min(thing.box) >= 0 and thing.box[2] <= scene.WIDTH and thing.box[3] <= scene.HEIGHT
        assert all(scene.covered(thing.box, other.box) <= scene.ORDINARY.max_overlap for other in things if other is not thing)


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_simulated_regions_lie_in_the_picture(seed, index):
    the_scene = scene.sample(seed, index)
    rng = np.random.default_rng((seed, index))
    image = simulate_regions.regions('x', the_scene, draw.picture(the_scene, rng), rng)
    assert tsv.check(image) is image and len(image.boxes) == simulate_regions.NUM_BOXES


def test_shapes_fill_their_boxes():
    for shape in scene.SHAPES:
        thing = scene.Thing(shape, 'white', 'large', 80.0, 60.0, 20.0)
        pixels = draw.picture(scene.Scene((90, 90, 90), (thing,)), np.random.default_rng(0))
        ys, xs = np.nonzero(pixels.min(2) > 170)
        assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - thing.box).max() <= 2, shape


def test_features_come_from_the_pixels_alone():
    the_scene = scene.sample(7, 0)
    pixels = draw.picture(the_scene, np.random.default_rng(0))
    other = scene.Scene(the_scene.background, tuple(
        scene.Thing(scene.SHAPES[i], 'red', t.size, t.x, t.y, t.radius) for i, t in enumerate(the_scene.things)))
    images = [simulate_regions.regions('a', s, p, np.random.default_rng(1))
             for s, p in ((the_scene, pixels), (other, pixels), (the_scene, pixels[::-1]))]
    # The same places under other names: the same features; other pixels: others.
    np.testing.assert_array_equal(images[0].features, images[1].features)
    assert (images[0].attributes != images[1].attributes).any()
    assert (np.abs(images[0].features - images[2].features).max(1) > 0.1).all()


def test_features_see_shape_and_colour():
    """A least-squares probe on the true boxes of other pictures."""
    extracted, shapes, colours = [], [], []
    for index in range(160):
        the_scene, rng = scene.sample(11, index), np.random.default_rng(index)
        boxes = np.array([thing.box for thing in the_scene.things])
        extracted.append(features.extract(draw.picture(the_scene, rng), boxes))
        shapes += [scene.SHAPES.index(thing.shape) for thing in the_scene.things]
        colours += [list(scene.COLOURS).index(thing.colour) for thing in the_scene.things]
    x = np.concatenate(extracted).astype(float)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    half = len(x) * 3 // 4
    assert abs(x[:, :-1].mean()) < 0.5 and 0.5 < x[:, :-1].std() < 2
    for names in (np.array(shapes), np.array(colours)):
        targets = np.eye(names.max() + 1)[names[:half]]
        weights = np.linalg.solve(x[:half].T @ x[:half] + 5 * np.eye(x.shape[1]), x[:half].T @ targets)
        assert ((x[half:] @ weights).argmax(1) == names[half:]).mean() > 0.97


def test_program(tmp_path, capsys):
    out = tmp_path / 'shapes'
    argv = ['--out', str(out), '--images', '12', '--questions', '4']
    make.main(argv)
    assert 'text only' in capsys.readouterr().out
    before = contents(out)
    make.main(argv)
    assert 'nothing to do' in capsys.readouterr().out and contents(out) == before
    record = json.loads((out / 'world.json').read_text())
    assert record.pop('detector') == 'shapes'
    (out / 'world.json').write_text(json.dumps(record))  # as worlds were made before it named its detector
    make.main(argv)
    assert 'nothing to do' in capsys.readouterr().out and contents(out) == before
    with pytest.raises(SystemExit):
        make.main([*argv, '--seed', '4'])
    assert 'choose another --out' in capsys.readouterr().err


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError('disk full')
    monkeypatch.setattr(world, 'vocabulary', fail)
    with pytest.raises(OSError, match='disk full'):
        world.make(tmp_path / 'shapes', world.Settings(12, 1, 2), processes=1)
    assert not list(tmp_path.iterdir())


def test_captions_and_their_regions(small_world):
    """The captions of train2014 and val2014, with 10 to 36 regions that have class probabilities."""
    out, annotations = small_world
    for split, files in (('train', ('mscoco_train', 'vgnococo')), ('val', ('mscoco_nominival', 'mscoco_minival'))):
        images = [image for file in files for image in annotations['lxmert'][file]]
        expected = [(image['img_id'], next(iter(image['sentf'].values()))) for image in images]
        items = json.loads((out / f'cc/{split}.json').read_text())
        assert sorted((item['img_id'], item['sentf']['cc']) for item in items) == sorted(expected)
        regions = store.open_regions(out / f'cc_imgfeat/{split}.store')
        assert {img_id.decode() for img_id in regions.ids} == {img_id for img_id, _ in expected}
        counts, of_class = set(), []
        same = {image.img_id: image for _, image in tsv.read(out / f'mscoco_imgfeat/{split}2014_obj36.tsv')}
        for row in range(len(regions)):
            image = regions.image(row)
            probabilities, plain = image.class_probabilities.astype(float), same[image.img_id]
            counts.add(len(image.boxes))
            assert 10 <= len(image.boxes) <= 36 and (np.diff(probabilities.max(1)) <= 0).all()
            np.testing.assert_allclose(probabilities.sum(1), 1, atol=0.01)
            assert (probabilities[np.arange(len(image.boxes)), 1 + image.classes] >= image.class_conf - 0.001).all()
            places = [int(np.flatnonzero((plain.boxes == box).all(1))[0]) for box in image.boxes]
            assert sorted(places) == list(range(len(places)))
            np.testing.assert_array_equal(image.features, plain.features[places])
            of_class.append(probabilities.argmax(1))
        assert len(counts) > 3 and {*np.unique(np.concatenate(of_class)).tolist()} >= set(range(7))


def test_the_corpus_is_about_other_scenes_and_its_statements_are_true(small_world):
    out, _ = small_world
    lines = (out / 'corpus/shapes.txt').read_text().splitlines()
    assert len(lines) == 60 * 6 and all(lines)
    pieces = set((out / 'bert/vocab.txt').read_text().split('\n'))
    words = [word for line in lines for word in re.findall(r'\w+|[^\w\s]', line.lower())]
    assert sum(word in pieces for word in words) > 0.99 * len(words)
    captions_of = {caption for by_file in read_text(out).values() for image in by_file for source in ('mscoco', 'vg')
                   for caption in image['sentf'].get(source, ())}
    assert len(captions_of & {*lines}) < 0.1 * len(lines)
    statements = {caption_data.statement(random.Random(seed)) for seed in range(300)}
    assert len(statements) > 150
    for text in statements:
        if different := re.fullmatch(r'(?:No|An?) (.+) is (?:not )?an? (.+)\.', text):
            one, other = ({*part.split()} - {'thing', 'object'} for part in different.groups())
            assert len(one) == len(other) == 1 and one != other, text
    assert 'diamond is a square' not in ' '.join(statements) and 'square is a diamond' not in ' '.join(statements)


def test_probabilities_change_nothing_else():
    truth = scene.sample(3, 5)
    pixels = draw.picture(truth, np.random.default_rng(1))
    plain, other = (simulate_regions.regions('one', truth, pixels, np.random.default_rng(2), probabilities=value)
                    for value in (False, True))
    assert plain.class_probabilities is None and other.class_probabilities.shape == (36, 8)
    for name in tsv.ARRAYS:
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))
