"""The library: a snapshot's answers are those of --test, whatever the batch; faults of what is given and what lies beside it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import lxmert_head, ragged

from bert.weights import WeightsError
from files.json_files import DataError
from lxrt.config import LxrtConfig
from regions import tsv
from regions.tsv import RegionError
from tasks.gqa import GQA
from tasks.nlvr2 import NLVR2
from tasks.predictor import Predictor
from tasks.program import main
from tasks.vqa import VQA

SPLITS = {VQA: 'minival', GQA: 'testdev', NLVR2: 'valid'}


@pytest.fixture(scope='module')
def runs(made_world, tmp_path_factory):
    """{task: folder of a run} on a world with different numbers of regions, whose probabilities the test has written."""
    world = shutil.copytree(made_world, tmp_path_factory.mktemp('library') / 'shapes')
    ragged(world, '*_imgfeat')
    folders = {}
    for task, split in SPLITS.items():
        folder = folders[task] = world.parent / task.kind
        where = ['--device', 'cpu', '--dataRoot', str(world), '--batchSize', '32', '--output', str(folder)]
        loss = ['--mceLoss'] if task is VQA else []
        assert main(task, [*where, '--bert', str(world / 'bert'), '--train', 'train', '--valid', split, '--epochs', '1',
                           '--lr', '1e-3', '--fromScratch', *loss]) == 0
        assert main(task, [*where, '--test', split, '--load', str(folder / 'BEST'), '--dumpProbs', '3', *loss]) == 0
    return world, folders


def asked(world, task):
    """(regions, questions) of a split, as the library takes them."""
    examples = json.loads((world / task.kind / f'{SPLITS[task]}.json').read_text())
    images = {image.img_id: image for _, image in tsv.read(task.spec(world).splits[SPLITS[task]].features[0])}
    keys = task.schema.images
    regions = [tuple(images[one[key]] for key in keys) if len(keys) > 1 else images[one['img_id']] for one in examples]
    return regions, [one['sent'] for one in examples]


def assert_same_answers(answers, expected):
    assert [[answer for answer, _ in row] for row in answers] == [[answer for answer, _ in row] for row in expected]
    np.testing.assert_allclose([[p for _, p in row] for row in answers], [[p for _, p in row] for row in expected], atol=1e-5)


@pytest.mark.parametrize('task', SPLITS)
def test_answers_are_those_of_the_test_program(runs, task):
    world, folders = runs
    regions, questions = asked(world, task)
    predictor = Predictor.from_snapshot(folders[task] / 'BEST')
    answers = predictor.answer(regions, questions, best=3, batch_size=7)
    expected = json.loads((folders[task] / f'{SPLITS[task]}_probs.json').read_text())
    assert_same_answers(answers, [row['answers'] for row in expected])
    others = predictor.answer(regions[1:] + regions[:1], questions, best=3)
    assert np.abs(np.array([[p for _, p in row] for row in answers]) - [[p for _, p in row] for row in others]).max() > 1e-4
    if task is not GQA:  # VQA's were trained with --mceLoss
        total = [sum(p for _, p in row) for row in predictor.answer(regions[:4], questions[:4], best=10_000)]
        np.testing.assert_allclose(total, 1, atol=1e-5)


@pytest.mark.parametrize('task', [VQA, NLVR2])
def test_a_batch_of_different_images_equals_each_question_alone(runs, task):
    world, folders = runs
    regions, questions = (some[:9] for some in asked(world, task))
    predictor = Predictor.from_snapshot(f'{folders[task] / "BEST"}.pth')
    predictor.head.train()  # the answers are those of evaluation all the same
    together = predictor.answer(regions, questions, best=2)
    alone = [predictor.answer([one], question, best=2)[0] for one, question in zip(regions, questions, strict=True)]
    assert_same_answers(alone, together)


def test_one_image_for_all_questions_and_one_question(runs):
    world, folders = runs
    (image, *_), questions = asked(world, VQA)
    predictor = Predictor.from_snapshot(folders[VQA] / 'LAST')
    for_all = predictor.answer(image, questions[:5])
    assert_same_answers(for_all, predictor.answer([image] * 5, questions[:5]))
    assert_same_answers(predictor.answer(image, questions[0]), for_all[:1])
    assert [len(row) for row in for_all] == [1] * 5 and predictor.answer(image, []) == []


@pytest.mark.parametrize(('images', 'answers', 'kind', 'loss'), [
    (1, ['red', 'blue'], 'vqa', 'BCE'), (1, ['False', 'True'], 'vqa', 'BCE'), (1, ['false', 'true'], 'nlvr', 'CE'),
    (2, ['False', 'True'], 'nlvr2', 'CE')])
def test_the_task_is_known_by_its_answers_and_number_of_images(made_world, tmp_path, images, answers, kind, loss):
    config = LxrtConfig.from_json(made_world / 'bert/config.json')
    torch.save(lxmert_head(config, 2, images).original_state(), tmp_path / 'BEST.pth')
    for name in ('config.json', 'vocab.txt'):
        shutil.copy(made_world / 'bert' / name, tmp_path)
    (tmp_path / 'answers.json').write_text(json.dumps(answers))
    predictor = Predictor.from_snapshot(tmp_path / 'BEST')
    assert (predictor.task.kind, predictor.head.recipe.loss) == (kind, loss)


def test_wrong_regions_and_questions_are_named(runs):
    world, folders = runs
    (image, *_), _ = asked(world, VQA)
    vqa, nlvr2 = (Predictor.from_snapshot(folders[task] / 'BEST') for task in (VQA, NLVR2))
    for regions, questions, options, error in (
        ([image], ['a', 'b'], {}, 'regions: expected those of 2 questions, found 1'),
        ([(image, image)], ['a'], {}, r'regions\[0\]: expected an ImageRegions for question 0, found ImageRegions, ImageRegions'),
        ([image.features], ['a'], {}, r'regions\[0\]: expected an ImageRegions for question 0, found ndarray'),
        (image, ['a', 7], {}, r'questions\[1\]: expected a text, found 7'),
        (image, ['a'], {'best': 0}, 'best: expected at least 1, found 0'),
        (image, ['a'], {'batch_size': 0}, 'batch_size: expected at least 1, found 0'),
    ):
        with pytest.raises(ValueError, match=error):
            vqa.answer(regions, questions, **options)
    with pytest.raises(ValueError, match=r'regions\[0\]: expected a tuple of 2 ImageRegions for question 0, found ImageRegions'):
        nlvr2.answer(image, ['a'])
    wide = replace(image, features=np.zeros((len(image.boxes), 3), np.float32))
    outside = replace(image, boxes=image.boxes + 10_000)
    for wrong, field in ((wide, 'features'), (outside, 'boxes')):
        with pytest.raises(RegionError, match=f'image {image.img_id}: field "{field}"'):
            vqa.answer(wrong, ['a'])


def test_what_lies_beside_a_snapshot_and_does_not_fit_is_named(runs, tmp_path):
    _, folders = runs
    files = ('BEST.pth', 'config.json', 'vocab.txt', 'answers.json', 'options.json')

    def copied(**changes):
        for name in files:
            shutil.copy(folders[VQA] / name, tmp_path / name)
        for name, change in changes.items():
            path = tmp_path / f'{name}.json'
            path.write_text(json.dumps(change(json.loads(path.read_text()))))
        return tmp_path / 'BEST'

    def dataset(about):
        return {'options': about['options'] | {'dataset': str(tmp_path / 'mine.json')}}

    for changes, kind, error in (
        ({'answers': lambda answers: answers[:-1]}, DataError, r'answers\.json: expected \d+ answers, .* found \d+'),
        ({'config': lambda config: config | {'l_layers': 2}}, WeightsError, 'does not fit the model'),
        ({'config': lambda config: config | {'hidden_size': 8}}, DataError, 'question about 4 images, as no task does'),
        ({'config': lambda config: config | {'vocab_size': 9}}, ValueError, r'vocab_size of the config is 9|does not fit'),
        ({'options': lambda about: [about]}, DataError, r'options\.json: expected .* an object'),
        ({'options': dataset}, FileNotFoundError, r'--dataset .*mine\.json, which defines max_length .* give max_length'),
    ):
        with pytest.raises(kind, match=error):
            Predictor.from_snapshot(copied(**changes))
    assert Predictor.from_snapshot(copied(options=dataset), max_length=9).max_length == 9
    (tmp_path / 'mine.json').write_text(json.dumps({
        'kind': 'vqa', 'name': 'mine', 'max_length': 7, 'answers': 'a.json',
        'splits': {'train': {'annotations': 'train.json', 'features': ['a.tsv']}}}))
    assert Predictor.from_snapshot(copied(options=dataset)).max_length == 7
    for name in files[1:4]:
        copied()
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=rf'{name}.*: no such|found no {name} beside it'):
            Predictor.from_snapshot(tmp_path / 'BEST')
    copied()
    torch.save({'bert.pooler.dense.bias': torch.zeros(2)}, tmp_path / 'BEST.pth')
    with pytest.raises(WeightsError, match='has no answer layers'):
        Predictor.from_snapshot(tmp_path / 'BEST')
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        Predictor.from_snapshot(tmp_path / 'none')
