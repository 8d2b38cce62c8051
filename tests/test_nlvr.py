"""data/nlvr/process_nlvr.py and grammar on a few pictures written by hand, and on the real corpus where it is there."""
import base64
import itertools
import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import data_script
from hypothesis import given
from hypothesis import strategies as st

import grammar
from files.json_files import DataError
from tasks.nlvr import NLVR, official

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / 'shared' / 'data' / 'nlvr'
nlvr = data_script('nlvr/process_nlvr')


def shape(kind, colour, size, x, y):
    return {'type': kind, 'color': colour, 'size': size, 'x_loc': x, 'y_loc': y}


def row(identifier, sentence, label, *boxes):
    return {'identifier': identifier, 'sentence': sentence, 'label': label, 'structured_rep': list(boxes)}


SCATTER = [[shape('circle', 'Yellow', 10, 0, 33), shape('triangle', '#0099ff', 30, 70, 0)],
           [shape('square', 'Black', 20, 5, 80)], []]
TOWER = [[shape('square', 'Black', 20, 40, 80)],
         [shape('square', 'Yellow', 20, 40, 80), shape('square', '#0099ff', 20, 40, 59)],
         [shape('square', 'Black', 20, 40, 80)]]


def save(folder, train, dev=None):
    """A corpus in the layout of the repository; a row may be a dict or the text of a line."""
    for split, rows in (('train', train), ('dev', dev or [row('9-0', 'there is a box', 'true', *SCATTER)])):
        (folder / split).mkdir(parents=True, exist_ok=True)
        lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
        (folder / split / f'{split}.json').write_text('\n'.join(lines))
    return folder


@pytest.fixture
def corpus(tmp_path):
    return save(tmp_path / 'corpus', [row('1304-0', 'There is a black box ', 'true', *SCATTER),
                                      row('1304-1', 'there is a blue tower', 'false', *TOWER)])


def make(corpus, out, *flags, statements=0):
    nlvr.main(['--nlvr', str(corpus), '--out', str(out), '--statements', str(statements), *flags])
    return out


def read_tsv(path):
    """{img_id: (height, width, boxes, features, classes, attributes)}, decoded without the code under test."""
    images = {}
    for line in path.read_text().splitlines():
        img_id, height, width, classes, _, attributes, _, count, boxes, features = line.split('\t')
        array = [np.frombuffer(base64.b64decode(text), dtype) for text, dtype in
                 ((boxes, '<f4'), (features, '<f4'), (classes, '<i8'), (attributes, '<i8'))]
        images[img_id] = (int(height), int(width), *(a.reshape(int(count), -1).squeeze() for a in array))
    return images


def restated(scene):
    """Boxes and features of a picture, said again one number at a time."""
    boxes, features = [], []
    objects = [(b, item) for b, box in enumerate(scene) for item in box]
    for b, item in objects + [(b, shape('box', 'none', 100, 0, 0)) for b in range(3)]:
        x, y, size = item['x_loc'], item['y_loc'], item['size']
        boxes.append([150 * b + x, y, 150 * b + x + size, y + size])
        cx, cy = (x + size / 2 - 50) / 50, (y + size / 2 - 50) / 50
        angles = [2 * math.pi * cx, 2 * math.pi * cy, 4 * math.pi * cx, 4 * math.pi * cy]
        others = [other['y_loc'] for other in scene[b]]
        lower, higher = sum(other > y for other in others), sum(other < y for other in others)
        item_of_box = item['type'] != 'box'
        features.append([3 * (item['type'] == t) for t in ('square', 'triangle', 'circle', 'box')]
                        + [3 * (item['color'] == c) for c in ('Black', 'Yellow', '#0099ff', 'none')]
                        + [1.5 * (size == s) for s in (10, 20, 30, 100)] + [1.5 * (b == i) for i in range(3)] + [cx, cy]
                        + [math.sin(a) / 2 for a in angles] + [math.cos(a) / 2 for a in angles]
                        + [x == 0, y == 0, x + size == 100, y + size == 100]
                        + [item_of_box and n == i for n in (lower, higher) for i in (0, 1)])
    return np.array(boxes, np.float32), np.array(features, np.float32)


def test_regions_of_every_order(corpus, tmp_path):
    images = read_tsv(make(corpus, tmp_path / 'made') / 'train_obj.tsv')
    assert len(images) == 12
    for (name, scene), (p, order) in itertools.product((('1304-0', SCATTER), ('1304-1', TOWER)),
                                                       enumerate(itertools.permutations(range(3)))):
        height, width, boxes, features, _, _ = images[f'nlvr-train-{name}-p{p}']
        expected_boxes, expected_features = restated([scene[i] for i in order])
        assert (height, width) == (100, 400)
        assert np.array_equal(boxes, expected_boxes)
        np.testing.assert_allclose(features, expected_features, atol=1e-6)
    _, _, boxes, _, classes, attributes = images['nlvr-train-1304-0-p0']
    assert classes.tolist() == [2, 1, 0, 3, 3, 3] and attributes.tolist() == [1, 2, 0, 3, 3, 3]
    assert boxes[:3].tolist() == [[0, 33, 10, 43], [70, 0, 100, 30], [155, 80, 175, 100]]


def test_order_of_a_corpus_permuted_by_hand(corpus, tmp_path):
    images = read_tsv(make(corpus, tmp_path / 'made') / 'train_obj.tsv')
    for p, order in enumerate(nlvr.ORDERS['train']):
        by_hand = save(tmp_path / f'hand{p}', [row('1304-0', 's', 'true', *(SCATTER[i] for i in order))])
        again = read_tsv(make(by_hand, tmp_path / f'made{p}') / 'train_obj.tsv')
        assert np.array_equal(images[f'nlvr-train-1304-0-p{p}'][3], again['nlvr-train-1304-0-p0'][3])
        back = nlvr.ORDERS['train'].index(tuple(int(i) for i in np.argsort(order)))
        assert np.array_equal(images['nlvr-train-1304-0-p0'][3], again[f'nlvr-train-1304-0-p{back}'][3])


def test_annotations_and_dataset(corpus, tmp_path):
    out = make(corpus, tmp_path / 'made')
    train, dev = (json.loads((out / f'{split}.json').read_text()) for split in ('train', 'dev'))
    assert train[0] == {'img_id': 'nlvr-train-1304-0-p0', 'identifier': 'nlvr-train-1304-0-p0', 'sent': 'There is a black box',
                        'label': 1, 'answer_type': 'yes/no', 'question_type': 'scatter'}
    assert [(a['label'], a['question_type']) for a in train[6:]] == [(0, 'tower')] * 6
    assert [a['img_id'] for a in train] == list(read_tsv(out / 'train_obj.tsv'))
    assert [a['img_id'] for a in dev] == ['nlvr-dev-9-0'] == list(read_tsv(out / 'dev_obj.tsv'))
    assert all(a['identifier'] == a['img_id'] for a in train + dev)
    described, config = (json.loads((out / name).read_text()) for name in ('dataset.json', 'bert/config.json'))
    # [CLS] there is a b ##l ##u ##e t ##o ##w ##e ##r [SEP]: a word seen once falls into characters
    assert described['max_length'] == 14
    assert described['splits']['dev'] == {'annotations': 'dev.json', 'features': ['dev_obj.tsv']}
    assert described['kind'] == 'nlvr' and 'answers' not in described
    vocab = (out / 'bert' / 'vocab.txt').read_text().splitlines()
    assert vocab[:5] == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] and 'there' in vocab and 'tower' not in vocab
    assert len(set(vocab)) == len(vocab) == config['vocab_size'] and config['visual_feat_dim'] == nlvr.FEATURES


def test_without_pictures(corpus, tmp_path):
    out, with_pictures = make(corpus, tmp_path / 'blind', '--withoutPictures'), make(corpus, tmp_path / 'made')
    assert (out / 'train.json').read_text() == (with_pictures / 'train.json').read_text()
    images = list(read_tsv(out / 'train_obj.tsv').values())
    assert all(np.array_equal(a, b) for image in images for a, b in zip(image, images[0], strict=True))
    assert images[0][3].shape == (nlvr.FEATURES,)                                   # one region


def test_made_once_and_again_when_the_corpus_changes(corpus, tmp_path, capsys):
    out = make(corpus, tmp_path / 'made')
    before = {path: path.read_bytes() for path in out.rglob('*.*') if path.is_file()}
    capsys.readouterr()
    make(corpus, out)
    assert 'already made' in capsys.readouterr().out
    assert {path.read_bytes() == data for path, data in before.items()} == {True}
    make(save(corpus, [row('7-0', 'there is a box', 'false', *TOWER)]), out)
    assert len(read_tsv(out / 'train_obj.tsv')) == 6 and 'always "false" scores 100.0' in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ['corpus', 'made', 'made.lock']   # nothing unfinished is left


GOOD = row('1-0', 'there is a box', 'true', *SCATTER)


@pytest.mark.parametrize(('bad', 'message'), [
    (json.dumps(GOOD)[:40], 'expected one json object a line'),
    ('[]', 'key "identifier": expected str'),
    (GOOD | {'identifier': '2'}, 'key "identifier": expected text like 1304-0'),
    (GOOD, 'key "identifier": expected a new one, found 1-0, which line 1 has'),
    (GOOD | {'identifier': '2-0', 'label': 'maybe'}, 'key "label": expected "true" or "false", found \'maybe\''),
    (GOOD | {'identifier': '2-0', 'sentence': ' '}, 'key "sentence": expected a statement'),
    (row('2-0', 's', 'true', [], []), 'key "structured_rep": expected a list of 3 boxes'),
    (row('2-0', 's', 'true', [], [], [shape('star', 'Black', 10, 0, 0)]), r'structured_rep\[2\]\[0\]: key "type": .*star'),
    (row('2-0', 's', 'true', [], [], [shape('circle', 'Red', 10, 0, 0)]), r'structured_rep\[2\]\[0\]: key "color": .*Red'),
    (row('2-0', 's', 'true', [], [shape('circle', 'Black', 15, 0, 0)], []), r'\[1\]\[0\]: key "size": .*found 15'),
    (row('2-0', 's', 'true', [shape('circle', 'Black', 20, 81, 0)], [], []), 'key "x_loc": .*from 0 to 80.*found 81'),
    (row('2-0', 's', 'true', [shape('circle', 'Black', 20, 0, -1)], [], []), 'key "y_loc": .*found -1'),
    (row('2-0', 's', 'true', [{'type': 'circle', 'color': 'Black'}], [], []), 'key "size": .*found nothing'),
])
def test_bad_line_is_named(tmp_path, bad, message):
    corpus = save(tmp_path / 'corpus', [GOOD, bad])
    with pytest.raises(DataError, match=rf'train\.json:2: .*{message}'):
        make(corpus, tmp_path / 'made')
    assert not (tmp_path / 'made').exists()


def test_bad_folders_are_named(corpus, tmp_path):
    with pytest.raises(DataError, match=r'train\.json or .*found neither'):
        make(tmp_path, tmp_path / 'made')
    with pytest.raises(DataError, match='corpus: expected a new folder'):
        make(corpus, corpus)
    (corpus / 'dev' / 'dev.json').write_text('')
    with pytest.raises(DataError, match=r'dev\.json: .*found an empty file'):
        make(corpus, tmp_path / 'made')


@pytest.mark.shared
@pytest.mark.skipif(not REAL.is_dir(), reason=f'the real corpus is not at {REAL}')
def test_real_corpus():
    train, dev = (nlvr.read(REAL / f'{split}.json') for split in ('train', 'dev'))
    assert (len(train), len(dev)) == (12410, 989)
    assert round(100 * sum(example.label == 'true' for example in dev) / len(dev), 1) == 55.3
    pictures = [img_id for img_id, _, _ in nlvr.pictures('train', train)]
    assert len(set(pictures)) == 74460
    image = nlvr.regions('x', train[0].boxes)
    assert image.features.shape == (14, nlvr.FEATURES) and image.boxes.max() == 400
    by_sentence = defaultdict(list)
    for example in train:
        by_sentence[example.sentence].append(example)
    correct = []
    for sentence, examples in by_sentence.items():
        if rule := grammar.parse_statement(sentence):
            truth = rule(grammar.Pictures.from_lists([example.boxes for example in examples])).tolist()
            correct += [answer == (example.label == 'true') for answer, example in zip(truth, examples, strict=True)]
    assert len(correct) / len(train) > 0.9 and sum(correct) / len(correct) > 0.92


# ---- statements with known truth

# squares 0, triangles 1, circles 2; black 0, yellow 1, blue 2; size, x, y
SCATTERED = [[(2, 1, 10, 0, 33), (1, 2, 30, 70, 0), (2, 1, 20, 40, 80)],  # left wall, right upper corner, floor
             [(0, 0, 20, 5, 60), (0, 2, 10, 26, 60)],  # they touch
             [(2, 0, 30, 70, 70)]]
TOWERS = [[(0, 0, 20, 40, 80)],
          [(0, 1, 20, 40, 80), (0, 2, 20, 40, 59)],
          [(0, 0, 20, 40, 80), (0, 1, 20, 40, 59), (0, 0, 20, 40, 38), (0, 0, 20, 40, 17)]]
MANY = [[(2, 1, 10, 20 * i, 33) for i in range(5)], [(0, 0, 10, 30 * i, 50) for i in range(4)], [(0, 2, 20, 2, 40)]]


@pytest.mark.parametrize(('scene', 'sentence', 'truth'), [
    (SCATTERED, 'There is a yellow circle.', True),
    (SCATTERED, 'there is a yellow triangle', False),
    (SCATTERED, 'There are two yellow circles', True),
    (SCATTERED, 'there are exactly 3 circles', True),
    (SCATTERED, 'there are at least 4 circles', False),
    (SCATTERED, 'there is no black triangle', True),
    (SCATTERED, 'there is exactly one yellow circle closely touching the bottom of a box', True),
    (SCATTERED, 'there is a blue triangle touching the corner', True),
    (SCATTERED, 'there is a yelow circle not touching any edge', False),
    (SCATTERED, 'there are exactly three circles touching the wall', True),
    (SCATTERED, 'none of the squares are touching any edge', True),
    (SCATTERED, 'there is a black circle closely touching right wall of a box', True),
    (SCATTERED, 'there is a box with only black items', True),
    (SCATTERED, 'there is a box with 3 items of which 2 are yellow', True),
    (SCATTERED, 'there is a box with 3 items of which 1 is black', False),
    (SCATTERED, 'there is a box with only yellow and blue items', True),
    (SCATTERED, 'there is a box with only black and yellow items', False),
    (SCATTERED, 'there is a box with a black square and a blue square', True),
    (SCATTERED, 'there is a box with 2 squares touching each other', True),
    (SCATTERED, 'there is a box with 2 yellow circles touching each other', False),
    (SCATTERED, 'there is a box with a small yellow circle', True),
    (SCATTERED, 'there is a box with 3 items of 2 different colors', True),
    (SCATTERED, 'there is a box with 2 items of the same color', False),
    (SCATTERED, 'one of the grey square contains exactly three objects', True),
    (SCATTERED, 't least one grey box contains exactly four objects', False),
    (SCATTERED, 'each box has at least 1 yellow item', False),
    (TOWERS, 'there is a black tower', True),
    (TOWERS, 'there is a yellow tower', False),
    (TOWERS, 'there is a tower with exactly four blocks', True),
    (TOWERS, 'there is one tower with a blue block at the top', True),
    (TOWERS, 'there are 2 towers with a black block at the base', True),
    (TOWERS, 'there are exactly 3 towers with a black block at the base', False),
    (TOWERS, 'there is a black block as the base of a tower with 4 blocks', True),
    (TOWERS, 'there is a blue block on a yellow block', True),
    (TOWERS, 'there is a blue block bellow a yellow block', False),
    (TOWERS, 'there is a yellow block below a blue block', True),
    (TOWERS, 'there is a black block on a black block', True),  # the next one, not any that is lower
    (TOWERS[2:] * 3, 'there are 3 towers with a yellow block on top of a black block', True),
    (TOWERS[2:] * 3, 'there is a box with a black block over a yellow block', True),
    ([TOWERS[2][:3]] * 3, 'there is a yellow block at the middle of a tower', True),
    (TOWERS, 'there is a yellow block at the middle of a tower', False),  # of three only
    (MANY, 'there is a box with many circles', True),
    (MANY, 'there is a box with many squares', False),  # four
    (MANY, 'there is a blue square touching the wall', False),  # two pixels away
    (MANY, 'there is a box with 4 black squares not touching each other', True),
    (SCATTERED, 'there is a box with 2 squares not touching each other', False),
    (SCATTERED, 'all squares are touching the wall', False),
    (SCATTERED, 'all circles are touching the wall', True),
    (SCATTERED, 'there are at least 2 or more black squares', False),
    (TOWERS, 'the second block from the base of a tower is yellow', True),
    (TOWERS, 'the tower with four blocks has a black block at the top', True),
    (TOWERS, 'there is no tower with three blocks', True),
    (TOWERS, 'there is a tower that the base and second block are the same in color', False),
    (TOWERS, 'there is a tower with 3 black blocks and 1 yellow block', True),
    (TOWERS, 'there is at least 1 yellow block in each box', False),
    (TOWERS, 'ladies and gentlemen', None)])
def test_truth(scene, sentence, truth):
    rule = grammar.parse_statement(sentence)
    assert (rule if rule is None else bool(rule(grammar.Pictures.from_lists([scene]))[0])) == truth


@pytest.mark.parametrize(('scene', 'sentence', 'question', 'number'), [
    (SCATTERED, 'there are 2 yellow circles touching the wall', 'yellow circle touching wall', 2),
    (SCATTERED, 'there is a box with only 1 item', None, None),                    # a number of its own
    (TOWERS, 'there are 3 towers with a black block at the base', 'tower with a black item at the base', 2),
    (TOWERS, 'there is a black block', 'black item', 4)])
def test_number_asked_for(scene, sentence, question, number):
    found = grammar.parse_count(sentence)
    assert (found and found[0]) == question
    assert found is None or found[1](grammar.Pictures.from_lists([scene])).tolist() == [number]


CORPUS = [('there is a black circle touching the wall', SCATTERED), ('there are 2 blue squares', SCATTERED),
          ('there is a box with a yellow item and 2 black items', SCATTERED),
          ('there are 2 towers with a blue block at the top', TOWERS), ('there is a yellow block on a black block', TOWERS)]


def test_every_sentence_is_as_often_true_as_false():
    scenes, said = grammar.generate(7, CORPUS, statements=60, questions=0.4, size=60)
    pictures, answers = grammar.Pictures.from_lists(scenes), defaultdict(Counter)
    for picture, source, sentence, answer in said:
        answers[source, sentence][answer] += 1
        if source == 'statements':
            assert bool(grammar.parse_statement(sentence)(pictures[[picture]])[0]) == (answer == 'true')
        else:
            assert truth_of(source, sentence, scenes[picture]) == answer
    assert {source for source, _ in answers} == {'statements', 'counts'}
    assert all(counts['true'] == counts['false'] for (source, _), counts in answers.items() if source == 'statements')
    assert len(answers) > 20 and {picture for picture, *_ in said} == set(range(len(scenes)))
    assert all(('how many ' in sentence) == (source == 'counts') for source, sentence in answers)


@given(st.integers(0, 2**32), st.booleans())
def test_random_and_changed_pictures_are_like_the_corpus(seed, tower):
    rng = np.random.default_rng(seed)
    scene = grammar.random_picture(rng, tower)
    changed = grammar.change_picture(rng, scene, tower)
    assert grammar.is_tower(scene) == tower and (not tower or grammar.is_tower(changed))
    for box in (*scene, *changed):
        assert 1 <= len(box) <= grammar.MAX_OBJECTS and all(grammar.has_room(box, item, i) for i, item in enumerate(box))
    differ = [sorted(before) != sorted(after) for before, after in zip(scene, changed, strict=True)]
    assert sum(differ) == 1


def objects_of(seen):
    """The three boxes of a picture, from its regions, the last three of which are the boxes."""
    _, _, corners, _, classes, attributes = seen
    scene = [[], [], []]
    for (x, y, right, _), kind, colour in zip(*(column[:-3].tolist() for column in (corners, classes, attributes)), strict=True):
        scene[int(x // 150)].append((kind, colour, int(right - x), int(x % 150), int(y)))
    return scene


def truth_of(source, sentence, scene):
    """The answer to what is written about a picture."""
    picture = grammar.Pictures.from_lists([scene])
    if source == 'counts':
        return str(grammar.parse_count(f'there is a {sentence.removeprefix("how many ")}')[1](picture)[0])
    return str(grammar.parse_statement(sentence)(picture)[0]).lower()


def test_pretraining_data(tmp_path):
    corpus = save(tmp_path / 'corpus', [
        row('1-0', 'there is a black box', 'true', *SCATTER), row('2-0', 'there is a blue tower', 'false', *TOWER),
        row('3-0', 'there is a box with a yellow circle', 'true', *SCATTER),
        row('4-0', 'there are 2 black squares', 'false', *SCATTER)])
    out, again = (make(corpus, tmp_path / name, statements=24) for name in ('made', 'again'))
    described, answers = (json.loads((out / f'{name}.json').read_text()) for name in ('pretraining', 'all_ans'))
    assert described['kind'] == 'lxmert' and list(described['splits']) == ['easy', 'full']
    assert [answer['ans'] for answer in answers[:3]] == ['false', 'true', '0']
    for split in ('easy', 'full'):
        pictures = json.loads((out / f'{split}.json').read_text())
        seen = read_tsv(out / f'{split}_obj.tsv')
        assert [picture['img_id'] for picture in pictures] == list(read_tsv(out / f'{split}_obj.tsv'))
        for picture in pictures:
            assert {source: len(said) for source, said in picture['sentf'].items()} == {
                source: len(labels) for source, labels in picture['labelf'].items()}
            scene = objects_of(seen[picture['img_id']])
            assert split == 'full' or max(map(len, scene)) <= 3  # two, and one that a change may add
            for source, said in picture['sentf'].items():
                for sentence, label in zip(said, picture['labelf'][source], strict=True):
                    assert list(label) == [truth_of(source, sentence, scene)], (sentence, scene)
        for name in (f'{split}.json', f'{split}_obj.tsv'):
            assert (out / name).read_bytes() == (again / name).read_bytes()
    other = make(corpus, tmp_path / 'other', '--seed', '1', statements=24)
    assert (out / 'full.json').read_bytes() != (other / 'full.json').read_bytes()


# ---- predictions in the corpus's format

def test_identifiers_of_the_corpus():
    assert [official(key) for key in ('nlvr-dev-1304-0', 'nlvr-train-9-1-p3', '12-0', 'mine/7')] == [
        '1304-0', 'train-9-1-3.png', '12-0', 'mine/7']


class Dataset:
    """What NLVR asks of a dataset."""
    answers = ('false', 'true')

    def __init__(self, keys, labels):
        self.examples, self.labels = SimpleNamespace(names=lambda: keys, types={}), np.array(labels)

    def scores(self, predictions):
        return (self.labels == predictions).astype(float)


def test_official_predictions_and_consistency(tmp_path):
    """9-0 and 9-1 are one statement, 10-0 another."""
    dataset = Dataset(['nlvr-dev-9-0', 'nlvr-dev-9-1', 'nlvr-dev-10-0'], [1, 0, 1])
    predictions = np.array([[1], [1], [1]]), np.ones((3, 1))
    task = NLVR(SimpleNamespace(dumpProbs=0))
    files = task.files('dev')
    assert list(files) == ['dev_predict.json', 'dev_predict.csv']
    files['dev_predict.csv'](dataset, predictions, tmp_path / 'p.csv')
    assert (tmp_path / 'p.csv').read_text() == '9-0,true\n9-1,true\n10-0,true\n'
    assert task.table(dataset, predictions).endswith('for all of their pictures): 50.00')
    assert 'Consistency' not in task.table(Dataset(['a', 'b', 'c'], [1, 1, 1]), predictions)
    # restated as metrics_images.py of the corpus reads it: the name without its split and ending
    dataset = Dataset([f'nlvr-train-9-0-p{order}' for order in range(6)], [1] * 6)
    files['dev_predict.csv'](dataset, (np.ones((6, 1), int),), tmp_path / 'images.csv')
    lines = (tmp_path / 'images.csv').read_text().splitlines()
    assert ['-'.join(line.split(',')[0].split('.')[0].split('-')[1:]) for line in lines] == [f'9-0-{order}' for order in range(6)]
