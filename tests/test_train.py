"""The loop as a whole, through the VQA program: what it writes, resuming, several processes, accumulation."""

import json
import random
import time

import numpy as np
import pytest
import torch

from train import steps_per_epoch, training_parts


def weights(folder, name='LAST.pth'):
    return torch.load(folder / name, weights_only=True)


def assert_same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=tolerance, msg=key)


def test_a_run_writes_what_is_promised_and_its_snapshot_can_be_tested(vqa, tmp_path, world):
    run = vqa()
    assert run.returncode == 0, run.stderr
    folder = tmp_path / 'run'
    lines = (folder / 'log.log').read_text().splitlines()
    assert [line.rsplit(' ', 1)[0] for line in lines] == [
        f'Epoch {epoch}: {what}' for epoch in (0, 1) for what in ('Train', 'Valid', 'Best')]
    assert 'Valid Oracle: ' in run.stdout and 'question: counting' in run.stdout
    assert list(folder.glob('events.out.tfevents.*'))
    assert (folder / 'src/train.py').is_file()
    assert json.loads((folder / 'options.json').read_text())['options']['lr'] == 1e-3

    state = weights(folder)
    assert all(value.dtype == torch.float32 for value in state.values())
    assert 'lxrt_encoder.model.bert.encoder.x_layers.0.visual_attention.att.query.weight' in state
    assert not any('module.' in name for name in state)

    # The snapshot's own folder carries config, vocabulary and answers: a wrong --bert does not matter.
    run = vqa('--test', 'minival', '--load', folder / 'BEST', '--bert', 'nowhere', name='results', start=False)
    assert run.returncode == 0, run.stderr
    questions = json.loads((world / 'vqa/minival.json').read_text())
    predicted = json.loads((tmp_path / 'results/minival_predict.json').read_text())
    assert [p['question_id'] for p in predicted] == [q['question_id'] for q in questions]
    score = 100 * np.mean([q['label'].get(p['answer'], 0) for p, q in zip(predicted, questions, strict=True)])
    best = max(float(line.rsplit(' ', 1)[1]) for line in lines if 'Valid' in line)
    assert f'Score on minival: {score:.2f}' in run.stdout
    assert best == pytest.approx(score, abs=0.006)

    run = vqa('--test', 'test', '--load', folder / 'BEST', name='results', start=False)
    assert run.returncode == 0, run.stderr
    predicted = json.loads((tmp_path / 'results/test_predict.json').read_text())
    assert len(predicted) == len(json.loads((world / 'vqa/test.json').read_text()))
    assert all(set(p) == {'question_id', 'answer'} for p in predicted)
    assert 'no labels' in run.stdout


def test_killed_at_random_moments_and_resumed_ends_with_the_same_bits(vqa, tmp_path):
    steps = ['--saveSteps', '3', '--epochs', '3']
    started = time.monotonic()
    assert vqa(*steps, name='whole').returncode == 0
    duration = time.monotonic() - started
    draw = random.Random(time.time_ns())  # other moments in every run of the tests
    for _ in range(5):
        process = vqa(*steps, '--resume', name='killed', wait=False)
        time.sleep(draw.uniform(0.4, 0.9) * duration)
        process.kill()
        process.wait()
    run = vqa(*steps, '--resume', name='killed')
    assert run.returncode == 0, run.stderr
    for name in ('LAST.pth', 'BEST.pth'):
        assert_same(weights(tmp_path / 'whole', name), weights(tmp_path / 'killed', name))
    assert (tmp_path / 'whole/log.log').read_text() == (tmp_path / 'killed/log.log').read_text()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'killed').rglob('*.pth')}
    run = vqa(*steps, '--resume', name='killed')
    assert run.returncode == 0 and 'finished' in run.stdout
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'killed').rglob('*.pth')}


def test_a_run_is_neither_overwritten_nor_resumed_with_other_options(vqa, tmp_path):
    assert vqa('--epochs', '1').returncode == 0
    before = (tmp_path / 'run/LAST.pth').read_bytes()
    run = vqa('--epochs', '1')
    assert run.returncode == 1 and '--resume' in run.stderr and 'Traceback' not in run.stderr
    run = vqa('--epochs', '1', '--resume', '--lr', '5e-4')
    assert run.returncode == 1 and '--lr 0.001 there, 0.0005 now' in run.stderr
    assert (tmp_path / 'run/LAST.pth').read_bytes() == before


def test_two_processes_and_accumulation_train_as_one_process_does(vqa, tmp_path):
    flags = ['--dropout', '0', '--epochs', '1', '--train', 'train', '--batchSize', '15']  # 15: parts of unequal size
    for name, more, processes in (('one', [], 1), ('parts', ['--accumulate', '3'], 1), ('two', ['--multiGPU'], 2)):
        run = vqa(*flags, *more, name=name, processes=processes)
        assert run.returncode == 0, run.stderr
    for name in ('parts', 'two'):
        # Each process or part sums in another order: equal to rounding, grown over the epoch's steps.
        assert_same(weights(tmp_path / 'one'), weights(tmp_path / name), tolerance=2e-5)
        assert (tmp_path / 'one/log.log').read_text() == (tmp_path / name / 'log.log').read_text()
    run = vqa('--test', 'minival', '--load', tmp_path / 'one/BEST', name='results', start=False)
    both = vqa('--test', 'minival', '--load', tmp_path / 'one/BEST', name='results2', start=False, processes=2)
    assert both.returncode == 0, both.stderr
    assert (tmp_path / 'results/minival_predict.json').read_text() == (tmp_path / 'results2/minival_predict.json').read_text()


def test_the_visual_side_of_the_last_cross_layer_is_neither_trained_nor_decayed(vqa, tmp_path):
    assert vqa('--epochs', '1', '--valid', '').returncode == 0
    assert not (tmp_path / 'run/BEST.pth').exists()  # no validation: only LAST is written
    last = 'lxrt_encoder.model.bert.encoder.x_layers.0.'
    dead = [last + side for side in ('visn_self_att.', 'visn_inter.', 'visn_output.')]
    state = weights(tmp_path / 'run')
    biases = {name: value for name, value in state.items() if name.endswith(('dense.bias', 'query.bias'))}
    for name, value in biases.items():  # they start at 0 and stay there only without gradient
        assert bool(value.any()) != name.startswith(tuple(dead)), name


def test_bf16_learns_as_float32_does(vqa, tmp_path):
    losses = {}
    for name, flags in (('fp32', []), ('bf16', ['--bf16'])):
        run = vqa('--epochs', '1', '--dropout', '0', *flags, name=name)
        assert run.returncode == 0, run.stderr
        losses[name] = weights(tmp_path / name)['logit_fc.3.bias']
    assert not torch.equal(losses['fp32'], losses['bf16'])
    torch.testing.assert_close(losses['fp32'], losses['bf16'], rtol=0, atol=5e-3)


class Options:
    batchSize, accumulate, seed = 8, 2, 1


def test_an_epoch_visits_every_example_once_but_for_the_last_incomplete_batch():
    parts = list(training_parts(83, 3, 0, Options))
    assert len(parts) == 2 * steps_per_epoch(83, 8) == 20
    seen = np.concatenate(parts)
    assert len(seen) == len(set(seen)) == 80
    assert not np.array_equal(seen, np.concatenate(list(training_parts(83, 4, 0, Options))))
    # From its seventh step on, an epoch is what it is as a whole.
    np.testing.assert_array_equal(np.concatenate(list(training_parts(83, 3, 6, Options))), seen[48:])
    assert steps_per_epoch(5, 8) == 1 and sum(map(len, training_parts(5, 0, 0, Options))) == 5
