"""The sample world: the same bytes each time, honest answers, balanced questions, the layout of real data."""
import json
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from regions import tsv
from shapes import detect, draw, features, make, questions, scene, world
from shapes.baselines import baselines, masked

SETTINGS = world.Settings(images=60, seed=3, questions=10)
SPLITS = ('train', 'nominival', 'minival', 'test')


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A small world on disk, and its questions with test's labels."""
    out = tmp_path_factory.mktemp('shapes') / 'one'
    return out, world.make(out, SETTINGS, processes=1)


@pytest.fixture(scope='module')
def many():
    """The questions about 600 scenes for training and 200 others for evaluation, without their pictures."""
    def asked(indices):
        return questions.ask({str(i): scene.sample(7, i) for i in indices}, 10, 0, random.Random(indices[0]))
    return asked(range(600)), asked(range(600, 800))


def best(question):
    return max(question['label'], key=question['label'].get)


def test_same_seed_same_bytes_whatever_the_processes(made, tmp_path):
    world.make(tmp_path / 'two', SETTINGS, processes=2)
    assert contents(made[0]) == contents(tmp_path / 'two')


def test_other_seed_other_pictures():
    assert scene.sample(1, 0) != scene.sample(2, 0) != scene.sample(2, 1)


def test_layout_is_that_of_real_data(made):
    out, _ = made
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
        found = [image for _, image in tsv.read(out / f'mscoco_imgfeat/{folder}_obj36.tsv')]
        named = set().union(*(images[split] for split in SPLITS if features_of[split] == folder))
        assert sorted(image.img_id for image in found) == sorted(named)
        assert {path.stem for path in (out / 'images' / folder).iterdir()} == named
        for image in found:
            x1, y1, x2, y2 = image.boxes.T
            assert len(image.boxes) == 36 and image.features.shape == (36, features.FEATURE_DIM)
            assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= image.width).all() and (y2 <= image.height).all()
            assert (x2 - x1 > 5).all() and (y2 - y1 > 5).all()
            assert (np.diff(image.class_conf) <= 0).all()
            assert image.classes.max() < len(detect.CLASSES) and image.attributes.max() < len(detect.ATTRIBUTES)


def test_vocabulary_knows_every_word(made):
    out, asked = made
    pieces = (out / 'bert/vocab.txt').read_text().split('\n')[:-1]
    assert pieces[:5] == ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] and len(set(pieces)) == len(pieces)
    words = {word for question in asked['train'] for word in re.findall(r'\w+|[^\w\s]', question['sent'].lower())}
    assert words <= set(pieces)
    config = json.loads((out / 'bert/config.json').read_text())
    assert config['vocab_size'] == len(pieces) and config['visual_feat_dim'] == features.FEATURE_DIM


def test_kinds_have_their_shares(many):
    counts = Counter(question['question_type'] for question in many[0])
    assert sum(questions.SHARES.values()) == pytest.approx(1)
    assert questions.SHARES['counting'] + questions.SHARES['relation'] >= 0.3
    for kind, share in questions.SHARES.items():
        assert counts[kind] / len(many[0]) == pytest.approx(share, abs=0.005)
    templates = defaultdict(set)
    for form in questions.FORMS:
        templates[form.kind].update(form.templates)
    assert all(len(templates[kind]) >= 4 for kind in questions.SHARES)


def test_answers_are_balanced(many):
    """Yes and no in each kind, and also given any one word; colours, shapes, sizes and counts."""
    answers, given = defaultdict(Counter), defaultdict(Counter)
    for question in many[0]:
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
        counts = Counter(best(q) for q in many[0] if q['question_type'] == kind)
        assert all(low < counts[name] * len(names) / counts.total() < high for name in names), counts


def test_words_alone_score_low(many):
    scores = baselines(*many)
    assert 10 < scores['majority'] < 25 and scores['majority'] < scores['text_only'] < 40
    assert masked('Are two little RED boxes and crosses above it?') == 'are two SIZE COLOUR boxes and SHAPE above it?'


def test_baselines_by_hand():
    train = [{'sent': 'Is it red?', 'label': {'yes': 1.0}, 'question_type': 'a'},
             {'sent': 'Is it blue?', 'label': {'no': 1.0}, 'question_type': 'a'},
             {'sent': 'Is it blue?', 'label': {'no': 1.0}, 'question_type': 'a'}]
    assert baselines(train, train) == {'majority': pytest.approx(200 / 3), 'text_only': 100.0}


def things_of(words, made):
    """Plainly: the things that fit the words of a phrase such as 'little red stars'."""
    words = ' '.join(words.split()).replace('little', 'small').replace('big', 'large')
    wanted = [word[:-2] if word == 'crosses' else word.rstrip('s') if word != 'cross' else word
              for word in words.split()]
    wanted = [word for word in wanted if word not in ('thing', 'object')]
    return [thing for thing in made.things if all(word in (thing.size, thing.colour, thing.shape) for word in wanted)]


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
def test_answers_hold_when_read_plainly(many, pattern, answer):
    checked = 0
    for question in many[0]:
        if found := re.fullmatch(pattern, question['sent']):
            assert best(question) == answer(scene.sample(7, int(question['img_id'])), *found.groups()), question
            checked += 1
    assert checked >= 5


def test_things_can_be_told_apart():
    for index in range(200):
        things = scene.sample(7, index).things
        assert 3 <= len(things) <= 6 and len({(t.shape, t.colour, t.size) for t in things}) == len(things)
        for thing in things:
            assert min(thing.box) >= 0 and thing.box[2] <= scene.WIDTH and thing.box[3] <= scene.HEIGHT
            assert all(scene.covered(thing.box, o.box) <= scene.MOST_HIDDEN for o in things if o is not thing)


def test_shapes_fill_their_boxes():
    for shape in scene.SHAPES:
        thing = scene.Thing(shape, 'white', 'large', 80.0, 60.0, 20.0)
        pixels = draw.picture(scene.Scene((90, 90, 90), (thing,)), np.random.default_rng(0))
        ys, xs = np.nonzero(pixels.min(2) > 170)
        assert np.abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - thing.box).max() <= 2, shape


def test_features_come_from_the_pixels_alone():
    made = scene.sample(7, 0)
    pixels = draw.picture(made, np.random.default_rng(0))
    other = scene.Scene(made.background, tuple(
        scene.Thing(scene.SHAPES[i], 'red', t.size, t.x, t.y, t.radius) for i, t in enumerate(made.things)))
    found = [detect.regions('a', s, p, np.random.default_rng(1))
             for s, p in ((made, pixels), (other, pixels), (made, pixels[::-1]))]
    # The same places under other names: the same features; other pixels: others.
    np.testing.assert_array_equal(found[0].features, found[1].features)
    assert (found[0].attributes != found[1].attributes).any()
    assert (np.abs(found[0].features - found[2].features).max(1) > 0.1).all()


def test_features_see_shape_and_colour():
    """A least-squares probe on the true boxes of other pictures."""
    seen, shapes, colours = [], [], []
    for index in range(250):
        made, rng = scene.sample(11, index), np.random.default_rng(index)
        boxes = np.array([thing.box for thing in made.things])
        seen.append(features.extract(draw.picture(made, rng), boxes))
        shapes += [scene.SHAPES.index(thing.shape) for thing in made.things]
        colours += [list(scene.COLOURS).index(thing.colour) for thing in made.things]
    x = np.concatenate(seen).astype(float)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    half = len(x) * 3 // 4
    assert abs(x[:, :-1].mean()) < 0.5 and 0.5 < x[:, :-1].std() < 2
    for names in (np.array(shapes), np.array(colours)):
        wanted = np.eye(names.max() + 1)[names[:half]]
        weights = np.linalg.solve(x[:half].T @ x[:half] + 5 * np.eye(x.shape[1]), x[:half].T @ wanted)
        assert ((x[half:] @ weights).argmax(1) == names[half:]).mean() > 0.97


def test_program(tmp_path, capsys):
    out = tmp_path / 'shapes'
    argv = ['--out', str(out), '--images', '12', '--questions', '4']
    make.main(argv)
    assert 'text only' in capsys.readouterr().out
    before = contents(out)
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
