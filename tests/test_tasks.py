"""VQA, GQA, NLVR2 and NLVR on one frame: what each trains on, predicts, scores and writes; ensembles of them."""

import json
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, lxmert_head
from test_train import StandInHead, labelled
from torch.nn import functional as F

from annotations.examples import PAIR, QUESTION, TEXT_QUESTION, read_examples
from files.json_files import DataError
from lxrt.config import LxrtConfig
from param import Options
from regions import tsv
from tasks.gqa import GQA
from tasks.nlvr import NLVR
from tasks.nlvr2 import NLVR2
from tasks.program import check_recipe, main
from tasks.vqa import VQA
from tools import ensemble, evaluate

TASKS = {'vqa': (VQA, 'minival', 'test'), 'gqa': (GQA, 'testdev', 'submit'), 'nlvr2': (NLVR2, 'valid', 'hidden'),
         'nlvr': (NLVR, 'minival', 'test')}


@pytest.fixture
def run(world, tmp_path, capsys):
    """run(task, *flags, name): the task's program in this process on a small world; returns what it printed."""
    def program(task, *flags, name='run'):
        status = main(TASKS[task][0], ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'),
                                       '--batchSize', '32', '--output', str(tmp_path / name), *map(str, flags)])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return printed.out
    return program


@pytest.fixture
def train(run):
    return lambda task, *flags, name='run': run(task, '--train', 'train', '--valid', TASKS[task][1], '--epochs', '1',
                                                '--lr', '1e-3', '--fromScratch', *flags, name=name)


def predictions(path):
    """[(id, answer), ...] of a leaderboard's file, which must be of the official form."""
    if path.suffix == '.csv':
        rows = [line.split(',') for line in path.read_text().splitlines()]
        assert all(len(row) == 2 and row[1] in ('True', 'False') for row in rows)
        return [tuple(row) for row in rows]
    items = json.loads(path.read_text())
    keys = next(keys for keys in (('question_id', 'answer'), ('questionId', 'prediction'), ('identifier', 'prediction'))
                if keys[0] in items[0])
    assert all(set(item) == set(keys) for item in items)
    assert all(type(item[keys[0]]) is (int if keys[0] == 'question_id' else str) for item in items)
    return [tuple(item[key] for key in keys) for item in items]


def make_nlvr(world):
    """NLVR's dataset of a world: the questions of VQA, as statements that are true where the answer is yes."""
    (world / 'nlvr/made').mkdir(parents=True)
    splits = {}
    for split in ('train', 'minival', 'test'):
        questions = json.loads((world / f'vqa/{split}.json').read_text())
        examples = [{'identifier': str(q['question_id']), 'img_id': q['img_id'], 'sent': q['sent'],
                     **({'label': int('yes' in q['label'])} if 'label' in q else {})} for q in questions]
        (world / f'nlvr/{split}.json').write_text(json.dumps(examples))
        features = [str(path.resolve()) for path in VQA.spec(world).splits[split].features]
        splits[split] = {'annotations': f'../{split}.json', 'features': features}
    (world / 'nlvr/made/dataset.json').write_text(json.dumps(
        {'kind': 'nlvr', 'name': 'nlvr', 'max_length': 20, 'splits': splits}))


@pytest.mark.parametrize('task', TASKS)
def test_a_task_trains_tests_and_writes_what_its_leaderboard_takes(world, tmp_path, run, train, task, capsys):
    _, labelled, unlabelled = TASKS[task]
    if task == 'nlvr':
        make_nlvr(world)
    printed = train(task)
    assert 'Epoch 0: Valid' in printed and 'Valid Oracle: ' in printed
    for split in ('train', 'nominival'):  # a test loads only its own split
        (world / task / f'{split}.json').unlink(missing_ok=True)
    for split in (labelled, unlabelled):
        printed = run(task, '--test', split, '--load', tmp_path / 'run/BEST', '--dumpProbs', '3', name='results')
        path = tmp_path / f'results/{split}_predict.{"csv" if task == "nlvr2" else "json"}'
        examples = json.loads((world / task / f'{split}.json').read_text())
        submitted = predictions(path)
        key = 'identifier' if task in ('nlvr2', 'nlvr') else 'question_id'
        assert [key for key, _ in submitted] == [example[key] for example in examples]
        best = json.loads((tmp_path / f'results/{split}_probs.json').read_text())
        assert [(row['id'], row['answers'][0][0]) for row in best] == submitted
        chances = np.array([[p for _, p in row['answers']] for row in best])
        assert chances.shape == (len(examples), 2 if key == 'identifier' else 3) and (np.diff(chances, axis=1) <= 0).all()
        if key == 'identifier':
            np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)
        assert (f'Score on {split}: ' if split == labelled else f'{split} has no labels') in printed
        if task == 'nlvr':  # which has no official evaluator
            continue
        assert evaluate.main([task, str(path), str(world / task / f'{split}.json'), '--out', str(tmp_path / 'figures.json')]) == 0
        capsys.readouterr()
        figures = json.loads((tmp_path / 'figures.json').read_text())
        if split == labelled:
            assert f'Score on {split}: {figures["accuracy"]:.2f}' in printed
            assert task != 'nlvr2' or f'pairs): {figures["consistency"]:.2f}' in printed


def test_two_pictures_are_encoded_each_with_the_sentence(world):
    config = LxrtConfig(vocab_size=30, visual_feat_dim=7, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **SMALL)
    torch.manual_seed(0)
    head = lxmert_head(config, 2, images=2).eval()
    layers, encoder = head.classifier, head.encoder.lxrt_encoder
    assert layers[0].weight.shape == (64, 64) and layers[3].weight.shape == (2, 64)  # as in the original
    words, features, boxes = torch.randint(1, 30, (3, 5)), torch.randn(6, 4, 7), torch.rand(6, 4, 4)
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 4, 1, 4])[:, None]
    pooled = [encoder(words, (features[side::2], boxes[side::2]), mask[side::2]) for side in (0, 1)]
    read = []
    encoder.model.bert.encoder.layer[0].register_forward_hook(lambda _, args, out: read.append(len(out)))
    batch = {'examples': 3, 'input_ids': words, 'features': features, 'boxes': boxes, 'visual_attention_mask': mask}
    torch.testing.assert_close(head.logits(batch), layers(torch.cat(pooled, 1)))
    assert read == [3 * 5]  # the sentence is read once, not once a picture


def test_cross_entropies():
    logits = torch.randn(4, 5)
    target = torch.tensor([[0, 1.0, 0, 0, 0], [0.3, 0, 0.6, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]])
    batch = labelled(target)
    answers = torch.tensor([1, 2, 4])  # the third has none
    plain = F.cross_entropy(logits[[0, 1, 3]], answers)
    for task, mce_loss, times in (('gqa', True, 5), ('vqa', True, 5), ('nlvr2', False, 1)):
        head = StandInHead(logits, task, mce_loss)
        torch.testing.assert_close(head.losses(batch, head.counts([batch])), {'CE': plain * times})
        halves = [labelled(target[rows]) for rows in ([0, 1], [2, 3])]
        counts, parts = head.counts(halves), []
        for rows, half in zip(([0, 1], [2, 3]), halves, strict=True):
            head.given = logits[rows]
            parts.append(head.losses(half, counts)['CE'])
        torch.testing.assert_close(sum(parts), plain * times)
    assert StandInHead(logits, 'gqa').recipe.loss == 'BCE'
    head, nothing = StandInHead(logits, 'nlvr2'), labelled(torch.zeros(4, 5))
    assert float(head.losses(nothing, head.counts([nothing]))['CE']) == 0


def test_pictures_of_different_numbers_of_regions_make_pairs(world, train):
    for path in (world / 'nlvr2_imgfeat').glob('*.tsv'):
        images = [replace(one, **{name: getattr(one, name)[:1 + i % 7] for name in tsv.ARRAYS})
                  for i, (_, one) in enumerate(tsv.read(path))]
        tsv.write(path, images)
    assert 'Epoch 0: Valid' in train('nlvr2')


def test_tiny_takes_pairs_whose_two_pictures_are_among_the_first_and_all_of_testdev(world, train):
    with patch.object(Options, 'image_limit', 8):
        printed = train('nlvr2')
        first = [image.img_id for _, image in tsv.read(world / 'nlvr2_imgfeat/train_obj36.tsv')]
        asked = json.loads((world / 'nlvr2/train.json').read_text())
        first = [img_id for img_id in first if img_id in {e[key] for e in asked for key in ('img0', 'img1')}][:8]
        pairs = sum(e['img0'] in first and e['img1'] in first for e in asked)
        assert 0 < pairs < len(asked) and f'train: {pairs:,} questions' in printed and 'without regions' not in printed
        printed = train('gqa', name='gqa')
        assert f'testdev: {len(json.loads((world / "gqa/testdev.json").read_text())):,} questions' in printed
        assert 'train: ' in printed and 'on 8 images' in printed


def test_a_snapshot_of_one_task_starts_another(tmp_path, run, train):
    train('vqa', name='vqa')
    start = '--loadLXMERT', tmp_path / 'vqa/BEST.pth'
    printed = run('nlvr2', '--train', 'train', '--valid', '', '--epochs', '1', '--lr', '1e-9', *start, name='nlvr2')
    assert 'missing        0' in printed
    vqa, nlvr2 = (torch.load(tmp_path / name, weights_only=True) for name in ('vqa/BEST.pth', 'nlvr2/LAST.pth'))
    name = 'lxrt_encoder.model.bert.encoder.x_layers.0.visual_attention.att.query.weight'
    torch.testing.assert_close(nlvr2[name], vqa[name], rtol=0, atol=1e-6)
    assert nlvr2['logit_fc.0.weight'].shape == (64, 64)


FAULTS = {
    'img1': (PAIR, {'img1': 3}, 'key "img1": expected an image id'),
    'identifier': (PAIR, {'identifier': 7}, 'key "identifier": expected a text'),
    'label': (PAIR, {'label': 2}, r'key "label": expected 0 \(False\) or 1 \(True\), found 2'),
    'boolean': (PAIR, {'label': True}, 'key "label": expected 0'),
    'number': (QUESTION, {'question_id': '3'}, 'key "question_id": expected a whole number'),
    'text': (TEXT_QUESTION, {'question_id': 3}, 'key "question_id": expected a text'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_faults_of_each_form_are_named(tmp_path, fault):
    form, change, message = FAULTS[fault]
    good = {'img_id': 'a', 'img0': 'a', 'img1': 'b', 'question_id': '1' if form is TEXT_QUESTION else 1, 'identifier': 'd-0-0-0',
            'sent': 'x', 'label': 0 if form is PAIR else {'yes': 1}}
    path = tmp_path / 'train.json'
    path.write_text(json.dumps([good]))
    assert len(read_examples([path], form, ['yes'])) == 1
    path.write_text(json.dumps([good | change]))
    with pytest.raises(DataError, match=rf'train\.json: example 0: {message}'):
        read_examples([path], form, ['yes'])


def test_columns_hold_what_the_annotations_say(tmp_path):
    rng = np.random.default_rng(0)
    answers = ['no', 'yes', 'red']
    items = [{'img_id': f'i{rng.integers(9)}', 'question_id': str(number * 7919 % 1000), 'sent': f's{rng.integers(5)}',
              'label': {answer: round(float(rng.random()), 2) for answer in rng.permutation([*answers, 'odd'])[:rng.integers(4)]},
              'question_type': ['a', 'b'][number % 2]} for number in range(300)]
    paths = [tmp_path / 'one.json', tmp_path / 'two.json']
    for path, part in zip(paths, (items[:100], items[100:]), strict=True):
        path.write_text(json.dumps(part))
    with patch('annotations.examples.CHUNK', 7):
        examples = read_examples(paths, TEXT_QUESTION, answers)

    def restated(examples):
        labels = [{} for _ in range(len(examples))]
        for row, answer, score in zip(examples.label_example, examples.label_answer, examples.label_score, strict=True):
            labels[row][answers[answer]] = pytest.approx(float(score), abs=1e-6)
        codes, names = examples.types['question_type']
        return [{'img_id': image.decode(), 'question_id': key, 'sent': examples.sentences[sentence], 'label': label,
                 'question_type': names[code]} for (image,), key, sentence, label, code in zip(
                     examples.images.tolist(), examples.names(), examples.sentence, labels, codes, strict=True)]

    expected = [item | {'label': {answer: score for answer, score in item['label'].items() if answer != 'odd'}} for item in items]
    assert restated(examples) == expected and examples.split.tolist() == [0] * 100 + [1] * 200
    assert examples.unknown == {'odd': sum('odd' in item['label'] for item in items)}
    keep = rng.random(300) < 0.5
    assert restated(examples.select(keep)) == [item for item, kept in zip(expected, keep, strict=True) if kept]


def test_an_ensemble_is_the_mean_of_probabilities(tmp_path, capsys):
    def write(name, *rows):
        (tmp_path / name).write_text(json.dumps([{'id': key, 'answers': answers} for key, answers in rows]))
        return str(tmp_path / name)

    one = write('1.json', (5, [['red', .6], ['blue', .3]]), (6, [['one', .9]]))
    two = write('2.json', (5, [['blue', .8], ['red', .1]]), (6, [['two', .5], ['one', .3]]))
    out = tmp_path / 'sub/test_predict.json'
    assert ensemble.main(['vqa', one, two, '--out', str(out)]) == 0
    assert json.loads(out.read_text()) == [{'question_id': 5, 'answer': 'blue'}, {'question_id': 6, 'answer': 'one'}]
    assert '2 predictions of 2 models' in capsys.readouterr().out
    for rows, message in (([(5, [['red', 1]])], 'expected as many predictions as in the other files, found 1'),
                          ([(5, [['red', 1]]), (7, [['red', 1]])], 'prediction 1: key "id": expected 6 as in'),
                          ([(5, [['red', 1]]), (6, [])], 'prediction 1: expected {"id"'),
                          ([(5, [[[1, 2, 3, 4], 1]])], 'prediction 0: key "answers": expected pairs [answer, probability')):
        assert ensemble.main(['vqa', one, write('3.json', *rows), '--out', str(out)]) == 1
        assert message in capsys.readouterr().err
    assert ensemble.main(['vqa', one, str(tmp_path / 'x.json'), '--out', str(out)]) == 1
    assert f'error: {tmp_path / "x.json"}: no such file' in capsys.readouterr().err
    assert ensemble.main(['vqa', one, str(out), '--out', str(out)]) == 1  # what the leaderboard takes
    assert 'give a _probs.json' in capsys.readouterr().err and len(json.loads(out.read_text())) == 2
    pair = write('4.json', ('d-0-0-0', [['False', .7], ['True', .3]]))
    assert ensemble.main(['nlvr2', pair, pair, '--out', str(tmp_path / 'x.csv')]) == 0
    assert (tmp_path / 'x.csv').read_text() == 'd-0-0-0,False\n'
    choices = write('5.json', (5, [[2, .6], [0, .4]])), write('6.json', (5, [[0, .9], [2, .1]]))
    (key, total), = ensemble.mean(choices, 'choice')
    assert key == 5 and total == {2: pytest.approx(.35), 0: pytest.approx(.65)}


@pytest.mark.parametrize(('like', 'found'), [('refcoco', 'region and 1'), ('nlvr2', 'answer and 2'), ('vcr', 'choice and 1')])
def test_a_recipe_of_other_examples_is_refused(like, found):
    wrong = type('Wrong', (NLVR,), {'like': like})
    with pytest.raises(ValueError, match=f'^Wrong: .* answer .*: 1, but the recipe of lxmert for {like} has the output {found};'):
        check_recipe('lxmert', wrong, Options())
    check_recipe('lxmert', type('Right', (NLVR,), {'kind': 'new', 'like': 'entailment'}), Options())


def test_another_task_takes_few_lines():
    assert len((ROOT / 'src/tasks/nlvr.py').read_text().splitlines()) < 80
    assert StandInHead(torch.zeros(1, 2), 'nlvr').recipe.loss == 'CE'
