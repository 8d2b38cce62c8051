"""The pointing game: the boxes of named objects, the results against known relevance, run/show.bash pointing."""

import json
import os
import random
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, write_random_snapshot

from explain import pointing
from explain.relevance import Relevance
from regions import readers
from shapes import pointing as world_game
from shapes import questions, scene, show
from shapes.scene import covered
from tasks.predictor import Predictor


@pytest.fixture(scope='module')
def snapshots(made_world, tmp_path_factory):
    """The folder of snapshots of VQA and NLVR2, with weights that are random, but large enough for answers to differ."""
    folder = tmp_path_factory.mktemp('pointing')
    for task in ('vqa', 'nlvr2'):
        write_random_snapshot(folder / task, task, made_world)
    return folder


@pytest.fixture
def game(made_world, snapshots):
    """(predictor, questions with boxes, regions): the arguments of `play`."""
    asked = list(world_game.questions_with_boxes(made_world))
    ids = sorted({question['img_id'] for question, _ in asked})
    regions = {image.img_id: image for image in readers.chosen(made_world / 'mscoco_imgfeat/val2014_obj36.tsv', ids)}
    return Predictor.from_snapshot(snapshots / 'vqa/BEST'), asked, regions


def test_descriptions_are_parsed_from_the_words_of_every_question_family():
    kinds, rng = [], random.Random(1)
    for number in range(400):
        truth = scene.sample(5, number % 40)
        for family in questions.FAMILIES:
            if family.kind in world_game.KINDS and (question := family.sample(truth, rng)):
                slots, _ = question
                descriptions = world_game.parse_descriptions(questions.fill(family.templates, slots, rng))
                assert descriptions == [slots['x']] and len(descriptions[0].matching(truth)) == 1
                kinds.append(family.kind)
    assert set(kinds) == set(world_game.KINDS) and len(kinds) > 500
    assert world_game.parse_descriptions('The Big RED thing and the circles, a star, the object') == [
        questions.Description('large', 'red', ''), questions.Description()]


def test_results_for_known_relevance(game, monkeypatch):
    """Relevance on the object alone, uniform relevance, and relevance on the first region alone."""
    predictor, asked, regions = game
    assert len(asked) >= 5
    on = [[covered(region, box) >= 0.5 for region in regions[question['img_id']].boxes] for question, box in asked]
    for row, (question, box) in zip(on, asked, strict=True):  # the thing's accurate box is among them, the whole picture is not
        boxes = regions[question['img_id']].boxes
        assert row[int(np.abs(boxes - box).sum(1).argmin())] and not row[int((boxes[:, 2:] - boxes[:, :2]).prod(1).argmax())]
    for weights, hits, mass in (
        ([[float(value) for value in row] for row in on], [True] * len(on), [1.0] * len(on)),
        ([[0.1] * 36 for _ in on], [row[0] for row in on], [sum(row) / 36 for row in on]),
        ([[3.0] + [0.0] * 35 for _ in on], [row[0] for row in on], [float(row[0]) for row in on]),
    ):
        rest = iter(weights)

        def known(head, batch, rest=rest):
            n = len(batch['input_ids'])
            return Relevance(torch.zeros(n, 27), torch.zeros(n, dtype=torch.int64), torch.zeros(n, 1, 1),
                             torch.tensor([next(rest) for _ in range(n)])[:, None], [])

        monkeypatch.setattr(pointing, 'relevance', known)
        result = pointing.play(predictor, asked, regions, batch_size=3)
        assert result.hits.tolist() == hits
        np.testing.assert_allclose(result.mass, mass, atol=1e-6)
        np.testing.assert_allclose(result.chance, [sum(row) / 36 for row in on])
        assert result.scores.tolist() == [question['label'].get(predictor.answers[0], 0.0) for question, _ in asked]


@pytest.mark.parametrize(('hits', 'n', 'low', 'high'), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)])
def test_wilson_interval(hits, n, low, high):
    np.testing.assert_allclose(pointing.wilson(hits, n), (low, high), atol=1e-4)


def test_the_launcher_plays_the_game(made_world, snapshots, game):
    command = ['bash', 'run/show.bash', 'pointing', '--load', str(snapshots / 'vqa/BEST'), '--world', str(made_world)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100,
                         env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert run.returncode == 0, run.stderr
    predictor, asked, regions = game
    result = pointing.play(predictor, asked, regions)
    assert run.stdout.startswith(f'{len(asked)} questions that name one object, ')
    rows = dict(re.findall(r'^(.{36}) *([\d.]+) ', run.stdout, re.M))
    assert rows['most relevant region on the object  '] == f'{100 * result.hits.mean():.1f}'
    assert rows['relevance on the object, share      '] == f'{100 * result.mass.mean():.1f}'


def test_the_seed_chooses_the_questions(made_world, snapshots, monkeypatch):
    ids, play = [], pointing.play
    monkeypatch.setattr(pointing, 'play', lambda predictor, asked, regions: ids.append(
        [question['question_id'] for question, _ in asked]) or play(predictor, asked, regions))
    for seed in '1', '2', '1':
        assert show.main(['pointing', '--load', str(snapshots / 'vqa/BEST'), '--world', str(made_world), '--questions', '4',
                          '--seed', seed]) == 0
    assert ids[0] == ids[2] != ids[1] and all(len(set(chosen)) == 4 for chosen in ids)


def test_faults_of_the_world_are_named(made_world, snapshots, tmp_path, capsys):
    shutil.copytree(made_world / 'vqa', tmp_path / 'vqa')
    record = json.loads((made_world / 'world.json').read_text())

    def play(*flags):
        status = show.main(['pointing', '--load', str(snapshots / 'vqa/BEST'), '--world', str(tmp_path), *flags])
        return status, capsys.readouterr().err

    status, printed = play('--load', str(snapshots / 'nlvr2/BEST'))
    assert status == 1 and 'expected a snapshot of VQA, found one that answers about 2 pictures at a time' in printed
    assert play() == (1, f'show.bash: error: {tmp_path}/world.json: no such file; expected the settings of a sample world; give '
                         '--world the folder that run/shapes.bash made\n')
    for changes, flags, error in (({'format': 1}, [], 'key "format": expected 4, found 1; make the world again'),
                                  ({'seed': 'x'}, [], 'key "seed": expected int, found \'x\''),
                                  ({}, ['--questions', '0'], '--questions: expected at least 1, found 0')):
        (tmp_path / 'world.json').write_text(json.dumps(record | changes))
        status, printed = play(*flags)
        assert status == 1 and error in printed
    (tmp_path / 'world.json').write_text(json.dumps(record))
    (tmp_path / 'vqa/minival.json').write_text('[]')
    status, printed = play()
    assert status == 1 and 'expected questions of the kinds verification, colour, shape, size, found none' in printed


def test_wrong_usage_ends_with_status_2():
    for flags in ([], ['attention'], ['point'], ['pointing', '--load']):
        with pytest.raises(SystemExit) as exit_info:
            show.main(flags)
        assert exit_info.value.code == 2
