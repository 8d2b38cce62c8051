"""Visual entailment: raw data, training and testing with both models, evaluation, ensembles, statements of the sample world."""

import json
import random
import re
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
from conftest import SHARED, data_script

from annotations.examples import read_examples
from annotations.snli_ve import LABELS, Pair, read_pairs
from files.json_files import DataError
from shapes import report, scene, statements
from shapes.baselines import fit_baselines
from tasks.entailment import Entailment
from tasks.program import main
from tools import check_dataset, ensemble
from tools.evaluate import main as evaluate

ROWS = [  # in SNLI-VE's layout, in XVNLI's and without the key of the image
    {'gold_label': 'entailment', 'sentence1': 'A caption', 'sentence2': 'A man runs. ', 'captionID': '12.jpg#0',
     'pairID': '12.jpg#0r1e', 'Flickr30K_ID': '12'},
    {'gold_label': '-', 'sentence2': 'He is fast.', 'captionID': '12.jpg#0', 'pairID': '12.jpg#0r1n', 'Flikr30kID': '12'},
    {'gold_label': 'neutral', 'sentence2': 'He is late.', 'captionID': '34.jpg#2', 'pairID': '34.jpg#2r1n'},
    {'gold_label': 'contradiction', 'sentence2': 'a man runs.', 'captionID': '12.jpg#1', 'pairID': '12.jpg#1r1c',
     'Flickr30K_ID': '12'},
    {'gold_label': 'neutral', 'sentence2': ' ', 'captionID': '34.jpg#1', 'pairID': '34.jpg#1r1n', 'Flickr30K_ID': '34'}]
ALBEF = [{'image': '12', 'sentence': 'A man runs.', 'label': 'entailment'}, {'image': '34', 'sentence': 'No.', 'label': '-'},
         {'image': 'flickr30k-images/34.jpg', 'sentence': 'Late.', 'label': 'neutral'}]


@pytest.fixture(scope='module')
def process():
    return data_script('entailment/process_entailment')


def lines(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def save(path, value):
    path.write_text(json.dumps(value))
    return path


# ---- raw data

def test_raw_files_of_all_layouts(process, tmp_path, capsys):
    raw, images, out = tmp_path / 'raw', tmp_path / 'images', tmp_path / 'out'
    raw.mkdir(), images.mkdir()
    lines(raw / 'snli_ve_train.jsonl', ROWS)
    lines(raw / 'dev.jsonl', [{key: value for key, value in row.items() if key != 'gold_label'} for row in ROWS[:2]])
    save(raw / 've_test.json', ALBEF)
    (images / '12.jpg').touch()
    process.main(['--raw', str(raw), '--images', str(images), '--out', str(out)])
    assert json.loads((out / 'train.json').read_text()) == [
        {'pairID': '12.jpg#0r1e', 'img_id': '12', 'sent': 'A man runs.', 'label': 'entailment'},
        {'pairID': '34.jpg#2r1n', 'img_id': '34', 'sent': 'He is late.', 'label': 'neutral'},
        {'pairID': '12.jpg#1r1c', 'img_id': '12', 'sent': 'a man runs.', 'label': 'contradiction'}]
    assert [item.get('label') for item in json.loads((out / 'dev.json').read_text())] == [None, None]
    assert json.loads((out / 'test.json').read_text())[1] == {'pairID': '2', 'img_id': '34', 'sent': 'Late.', 'label': 'neutral'}
    printed = capsys.readouterr().out
    for text in ('train: 3 of 5 pairs kept, about 2 pictures; contradiction 1, neutral 1, entailment 1.',
                 'train: 1 pairs without a label dropped.', 'train: 1 pairs with an empty sentence dropped.',
                 "train: 1 pairs repeat the sentence of another about the same picture; 1 of these sentences have several labels "
                 "(such as 'a man runs.').", "train: 1 pictures (such as '34') are not in", 'dev: 2 of 2 pairs kept',
                 'no labels.'):
        assert text in printed, text
    assert read_examples([out / 'train.json'], Entailment.schema, LABELS).label_answer.tolist() == [2, 1, 0]


@pytest.mark.parametrize(('row', 'fault'), [
    ({'image': '1', 'sentence': 'A.', 'label': 'maybe'}, 'expected the label contradiction, neutral, entailment or "-", found'),
    ({'image': '1', 'sentence': 'A.', 'label': 2}, 'key gold_label or label: expected a text, found 2'),
    ({'image': '1', 'label': 'neutral'}, 'key sentence2 or sentence: expected a text'),
    ({'sentence': 'A.', 'label': 'neutral'}, 'key Flickr30K_ID, Flikr30kID, image: expected an id'),
    ({'image': 'a\n', 'sentence': 'A.', 'label': 'neutral'}, 'key Flickr30K_ID, Flikr30kID, image: expected an id'),
    ({'image': 'folder/', 'sentence': 'A.', 'label': 'neutral'}, 'key Flickr30K_ID, Flikr30kID, image: expected an id'),
    ({'image': '', 'sentence': 'A.', 'label': 'neutral'}, 'key Flickr30K_ID, Flikr30kID, image: expected an id'),
    ({'image': '1', 'sentence': 'A.', 'label': 'neutral', 'pairID': '0'}, 'key pairID: expected a new one'),
    (['1', 'A.', 'neutral'], 'expected an object, found')])
def test_a_faulty_pair_is_named(tmp_path, row, fault):
    path = save(tmp_path / 've.json', [ALBEF[0], row])
    with pytest.raises(DataError) as error:
        list(read_pairs(path))
    assert str(error.value).startswith(f'{path}: pair 1: ') and fault in str(error.value) and '\n' not in str(error.value)


def test_files_that_say_nothing(process, tmp_path):
    path = save(tmp_path / 've.json', [{**ALBEF[0], 'sentence': ''}])
    with pytest.raises(DataError, match='expected pairs with a label and a sentence, found none'):
        process.main(['--split', 'x', str(path), '--out', str(tmp_path / 'out')])
    assert not (tmp_path / 'out/x.json').exists()
    with pytest.raises(FileNotFoundError, match='found none of snli_ve_SPLIT'):
        process.main(['--raw', str(tmp_path)])


@pytest.mark.shared
@pytest.mark.parametrize(('name', 'kept'), [('snli_ve/test_sample.jsonl', 579), ('snli_ve/train_48.jsonl', 163),
                                            ('ve/ve_test.json', 585), ('ve/photos_ve.json', 15)])
def test_real_samples(process, tmp_path, name, kept):
    process.main(['--split', 'test', str(SHARED / name), '--out', str(tmp_path)])
    examples = read_examples([tmp_path / 'test.json'], Entailment.schema, LABELS)
    assert len(examples) == kept == len(examples.label_answer)


@pytest.mark.parametrize(('label', 'fault'), [
    ('Entailment', 'key "label": expected a class, by its name (contradiction, neutral, entailment) or by its index'),
    (3, 'expected a class, by'), (None, 'expected a class, by'), ('-', 'expected a class, by')])
def test_a_faulty_label_is_named(tmp_path, label, fault):
    path = save(tmp_path / 'a.json', [{'pairID': 'a', 'img_id': '1', 'sent': 'A.', 'label': 'neutral'},
                                      {'pairID': 'b', 'img_id': '1', 'sent': 'B.', 'label': label}])
    with pytest.raises(DataError) as error:
        read_examples([path], Entailment.schema, LABELS)
    assert str(error.value).startswith(f'{path}: example 1: ') and fault in str(error.value)
    with pytest.raises(DataError, match='example 1: key "label"'):  # the evaluator checks the same
        Entailment.evaluate(save(tmp_path / 'p.json', [{'pairID': 'a', 'label': 'neutral'}]), path)


# ---- training, testing, ensembles

def run(world, output, *flags):
    return main(Entailment, ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--output', str(output),
                             '--batchSize', '32', '--lr', '1e-3', *map(str, flags)])


@pytest.mark.parametrize('model', ['lxmert', 'vlbert'])
def test_train_test_evaluate_and_ensemble(world, tmp_path, capsys, model):
    train = ['--train', 'train', '--valid', 'dev', '--epochs', '1', '--fromScratch', '--model', model]
    assert run(world, tmp_path / 'run', *train) == 0, capsys.readouterr().err
    assert 'label, and predicted as' in capsys.readouterr().out
    test = ['--test', 'dev', '--load', tmp_path / 'run/BEST', '--dumpProbs', '3']
    assert run(world, tmp_path / 'dev', *test) == 0
    printed = capsys.readouterr().out
    items = json.loads((world / 'entailment/dev.json').read_text())
    rows = json.loads((tmp_path / 'dev/dev_predict.json').read_text())
    assert [row['pairID'] for row in rows] == [item['pairID'] for item in items] and {*rows[0]} == {'pairID', 'label'}
    pairs = Counter((item['label'], row['label']) for item, row in zip(items, rows, strict=True))
    right = sum(pairs[label, label] for label in LABELS)
    assert f'Score on dev: {100 * right / len(items):.2f}' in printed
    for label in LABELS:
        assert re.search(rf'^{label} +' + ' +'.join(str(pairs[label, answer]) for answer in LABELS) + '$', printed, re.M)

    figures = Entailment.evaluate(tmp_path / 'dev/dev_predict.json', world / 'entailment/dev.json')
    assert figures['accuracy'] == pytest.approx(100 * right / len(items))
    assert figures['confusion'] == {label: {answer: pairs[label, answer] for answer in LABELS} for label in LABELS}
    probabilities = str(tmp_path / 'dev/dev_probs.json')
    assert ensemble.main(['entailment', probabilities, probabilities, '--out', str(tmp_path / 'both.json')]) == 0
    assert json.loads((tmp_path / 'both.json').read_text()) == rows
    if model == 'lxmert':
        capsys.readouterr()
        report.main([str(world), str(tmp_path / 'dev/dev_predict.json'), '--task', 'entailment'])
        assert f'Score {100 * right / len(items):.1f}, the better baseline' in capsys.readouterr().out


def test_a_world_made_before_the_task_is_named(world, tmp_path, capsys):
    shutil.rmtree(world / 'entailment')
    assert run(world, tmp_path / 'run', '--train', 'train', '--valid', 'dev', '--fromScratch', '--epochs', '1') == 1
    error = capsys.readouterr().err
    assert 'entailment/train.json: no such file; the sample world in ' in error and 'bash run/shapes.bash --out FOLDER' in error


def test_pictures_without_regions_are_skipped_and_counted(world, tmp_path, capsys):
    items = json.loads((world / 'entailment/dev.json').read_text())
    path = world / 'mine.json'
    save(world / 'mine_dev.json', [{**items[0], 'img_id': 'none', 'label': 0}, *items[1:]])
    splits = {'dev': {'annotations': 'mine_dev.json', 'features': ['flickr30k_imgfeat/flickr30k_obj36.tsv']}}
    save(path, {'kind': 'entailment', 'name': 'mine', 'max_length': 20, 'splits': splits})
    assert check_dataset.main([str(path), '--bert', str(world / 'bert')]) == 0
    printed = capsys.readouterr().out
    assert 'examples of the classes: ' in printed and '1 images have no regions (none)' in printed
    assert run(world, tmp_path / 'run', '--dataset', path, '--train', 'dev', '--valid', '', '--fromScratch', '--epochs', '1') == 0
    assert f'1 of {len(items)} questions of dev are about 1 images without regions (none): skipped.' in capsys.readouterr().out
    save(path, {'kind': 'entailment', 'name': 'mine', 'max_length': 20, 'answers': 'a.json', 'splits': splits})
    assert check_dataset.main([str(path)]) == 1
    assert 'entailment answers contradiction or neutral or entailment' in capsys.readouterr().out


# ---- evaluation

def test_evaluation_by_hand(tmp_path, capsys):
    gold = lines(tmp_path / 'snli_ve_dev.jsonl', ROWS)
    answers = {'12.jpg#0r1e': 'entailment', '34.jpg#2r1n': 'entailment', '12.jpg#1r1c': 'contradiction', '12.jpg#0r1n': 'neutral'}
    path = save(tmp_path / 'p.json', [{'pairID': key, 'label': label} for key, label in answers.items()])
    assert evaluate(['entailment', str(path), str(gold), '--out', str(tmp_path / 'figures.json')]) == 0
    printed = capsys.readouterr().out
    assert re.search(r'^all +3  100\.0  66\.67$', printed, re.M)
    assert re.search(r'^label: neutral +1   33\.3   0\.00$', printed, re.M)
    assert re.search(r'^neutral +0 +0 +1$', printed, re.M) and '2 pairs have no label or an empty sentence' in printed
    assert json.loads((tmp_path / 'figures.json').read_text())['confusion']['neutral']['entailment'] == 1
    albef = save(tmp_path / 've.json', ALBEF)
    path = save(tmp_path / 'p.json', [{'pairID': '0', 'label': 'entailment'}, {'pairID': '2', 'label': 'neutral'}])
    assert Entailment.evaluate(path, albef)['accuracy'] == 100


@pytest.mark.parametrize(('rows', 'fault'), [
    ([{'pairID': '0', 'label': 'entailed'}, {'pairID': '2', 'label': 'neutral'}],
     '1 labels other than contradiction, neutral, entailment: entailed of 0'),
    ([{'pairID': '0', 'label': 'neutral'}], '1 questions not answered: 2'),
    ([{'pairID': 0, 'label': 'neutral'}, {'pairID': '2', 'label': 'neutral'}], 'predictions that are not {"pairID": a text'),
    ([{'pairID': '0', 'label': 'neutral'}, {'pairID': '2', 'label': 'neutral'}, {'pairID': '2', 'label': 'neutral'}],
     '1 questions answered again: 2'),
    ([{'pairID': '0', 'label': 'neutral'}, {'pairID': '2', 'label': 'neutral'}, {'pairID': '9', 'label': 'neutral'}],
     '1 answers to questions that are not in')])
def test_faulty_predictions_are_named(tmp_path, capsys, rows, fault):
    gold, path = save(tmp_path / 've.json', ALBEF), save(tmp_path / 'p.json', rows)
    assert evaluate(['entailment', str(path), str(gold)]) == 1
    assert fault in capsys.readouterr().err


# ---- the sample world

def test_statements_are_honest_and_their_words_say_nothing():
    """The labels are checked by an independent reading of statements about one thing."""
    scenes = [{str(i): scene.sample(7, i) for i in indices} for indices in (range(300), range(300, 420))]
    train, dev = (statements.generate(part, sets, 'train', random.Random(sets))
                  for part, sets in zip(scenes, (400, 200), strict=True))
    by_sentence = defaultdict(Counter)
    for item in dev:
        by_sentence[item['sent']][item['label']] += 1
    assert all(len(set(counts.values())) == 1 and len(counts) == 3 for counts in by_sentence.values())
    assert max(fit_baselines(train)(dev).values()) < 34 and len({item['question_type'] for item in dev}) == len(statements.SHARES)
    checked = Counter()
    for item in dev:
        parsed = re.fullmatch(r'The (?:(small|little|large|big) )?(?:(\w+) )?(\w+) is (?:an? )?(\w+)\.', item['sent'])
        if not parsed:
            continue
        size, colour, shape, value = parsed.groups()
        size = {'little': 'small', 'big': 'large'}.get(size, size)
        value = {'little': 'small', 'big': 'large'}.get(value, value)
        things = [thing for thing in scenes[1][item['img_id']].things
                  if size in (None, thing.size) and colour in (None, thing.colour) and shape in ('thing', 'object', thing.shape)]
        expected = 'neutral' if not things else 'entailment' if value in (
            things[0].size, things[0].colour, things[0].shape) else 'contradiction'
        assert item['label'] == expected and len(things) < 2, item
        checked[expected] += 1
    assert min(checked.values()) > 80


def test_few_pictures_give_statements_too():
    for count in (1, 2, 3):
        items = statements.generate({str(i): scene.sample(3, i) for i in range(count)}, 5, 'dev', random.Random(1))
        assert len(items) >= 5 and len({item['pairID'] for item in items}) == len(items)
        assert {item['label'] for item in items} <= {*LABELS}


def test_the_world_has_three_labels_of_each_statement(world):
    items = json.loads((world / 'entailment/train.json').read_text())
    counts = Counter(item['label'] for item in items)
    assert {*counts} == {*LABELS} and np.ptp([*counts.values()]) <= 0.1 * len(items)
    assert isinstance(next(iter(read_pairs(save(world / 'one.json', ALBEF)))), Pair)
