"""The loop as a whole, through the VQA program: what it writes, resuming, several processes, accumulation."""

import hashlib
import json
import math
import os
import random
import re
import signal
import time

import numpy as np
import pytest
import torch
from conftest import SMALL

import models
import optimizer
from batches import load_batches, steps_per_epoch, training_batches
from heads import Answers, Head, Recipe
from lxrt.config import LxrtConfig
from optimizer import OptimizerStep, make_optimizer, schedule_name, warmup_steps
from param import Options
from run_folder import RunFolder
from run_state import Progress
from tasks.program import TaskProgram
from tasks.vqa import VQA
from train import DeferredMetrics, count_skipped


class StandInHead(Answers):
    """An Answers head of LXMERT's recipe for a task whose logits are given."""

    def __init__(self, logits, task, mce_loss=False):
        torch.nn.Module.__init__(self)
        self.recipe = models.build('lxmert', task, LxrtConfig(**SMALL), range(2), Options(mceLoss=mce_loss)).recipe
        self.answers, self.given = logits.shape[1], logits

    def logits(self, batch):
        return self.given


def labelled(target):
    """A batch with dense soft scores (b, answers) as sparse labels."""
    example, answer = target.nonzero().T
    return {'examples': len(target), 'label_example': example, 'label_answer': answer, 'label_score': target[example, answer]}


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


def signal_in_training(ranks, state, number=signal.SIGKILL, seconds=0.0):
    """Sends a signal to all processes of a run, so long after it has saved its first run state; returns the finished run."""
    before = state.stat().st_mtime_ns if state.exists() else 0
    while ranks.alive() and (not state.exists() or state.stat().st_mtime_ns == before):
        time.sleep(0.005)
    time.sleep(seconds)
    ranks.signal(number)
    return ranks.wait()


@pytest.mark.parametrize(('processes', 'kills', 'epochs', 'optim'), [
    (1, 4, 10, 'bert'), (2, 2, 4, 'bert'), (2, 1, 3, 'adamw --schedule triangle --accumulate 2')])
def test_killed_at_random_moments_and_resumed_ends_with_the_same_bits(vqa, tmp_path, processes, kills, epochs, optim):
    flags = ['--saveSteps', '4', '--epochs', epochs, '--valid', 'nominival']  # long enough for all the kills
    flags += ['--optim', *optim.split()]
    flags += ['--multiGPU'] if processes > 1 else []
    run = vqa(*flags, name='unbroken', processes=processes)
    assert run.returncode == 0, run.stdout
    draw = random.Random(time.time_ns())  # other moments in every run of the tests
    for attempt in range(kills):
        ranks = vqa(*flags, '--resume', name='killed', processes=processes, wait=False)
        run = signal_in_training(ranks, tmp_path / 'killed/RUN_STATE.pth', seconds=draw.uniform(0, 0.1))
        assert attempt == 0 or 'Resuming at epoch' in run.stdout
    run = vqa(*flags, '--resume', name='killed', processes=processes)
    assert run.returncode == 0 and 'Resuming at epoch' in run.stdout, run.stdout
    for name in ('LAST.pth', 'BEST.pth'):
        assert_same(weights(tmp_path / 'unbroken', name), weights(tmp_path / 'killed', name))
    assert (tmp_path / 'unbroken/log.log').read_text() == (tmp_path / 'killed/log.log').read_text()
    if processes > 1:
        return

    def contents():
        return {path: path.read_bytes() for path in (tmp_path / 'killed').rglob('*') if path.is_file()}

    before = contents()
    run = vqa(*flags, '--resume', name='killed')
    assert run.returncode == 0 and 'finished' in run.stdout
    assert before == contents()


def test_a_run_is_neither_overwritten_nor_resumed_with_other_options(vqa, tmp_path):
    assert vqa('--epochs', '1').returncode == 0
    before = (tmp_path / 'run/LAST.pth').read_bytes()
    run = vqa('--epochs', '1')
    assert run.returncode == 1 and '--resume' in run.stderr and 'Traceback' not in run.stderr
    run = vqa('--epochs', '1', '--resume', '--lr', '5e-4')
    assert run.returncode == 1 and '--lr 0.001 then, 0.0005 now' in run.stderr
    assert (tmp_path / 'run/LAST.pth').read_bytes() == before


class Interrupt:
    """begin_step of a head that Ctrl-C ends at a step of the run."""

    def __init__(self, step):
        self.step = step

    def __call__(self, step, total):
        if step == self.step:
            raise KeyboardInterrupt


def without(path, *keys):
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in keys}))


def test_a_run_of_an_older_version_is_resumed_and_tested(vqa, tmp_path, monkeypatch):
    """Older versions wrote neither the model nor the task nor the newer options. Names and order of the weights, which the
    optimizer's state is in, are those of the first version."""
    flags = ['--epochs', '2', '--saveSteps', '5']
    assert vqa(*flags, name='unbroken').returncode == 0
    with monkeypatch.context() as patched:
        patched.setattr(Head, 'begin_step', staticmethod(Interrupt(18)))  # of 15 steps an epoch
        assert vqa(*flags).returncode == 130
    folder = tmp_path / 'run'
    state = weights(folder, 'RUN_STATE.pth')
    assert state['progress']['epoch'] == 1 and digest(state['model']) == (95, 'f34f87bc8c153ab3')
    del state['options']['fp16'], state['options']['apex'], state['options']['model'], state['scaler']
    torch.save(state, folder / 'RUN_STATE.pth')
    without(folder / 'config.json', 'model_type')
    without(folder / 'options.json', 'task')
    run = vqa('--test', 'minival', '--load', folder / 'LAST', '--bert', 'nowhere', name='results', start=False)
    assert run.returncode == 0 and 'Score on minival' in run.stdout, run.stderr

    run = vqa(*flags, '--resume', '--fp16')
    assert run.returncode == 1 and '--fp16 False then, True now' in run.stderr
    run = vqa(*flags, '--resume')
    assert run.returncode == 0 and 'Resuming at epoch 1' in run.stdout, run.stderr
    assert_same(weights(folder), weights(tmp_path / 'unbroken'))
    assert (folder / 'log.log').read_text() == (tmp_path / 'unbroken/log.log').read_text()


def digest(state):
    """The number of a state dict's tensors, and a digest of their names in order."""
    return len(state), hashlib.sha256('\n'.join(state).encode()).hexdigest()[:16]


def test_a_run_is_not_resumed_on_something_else(vqa, world, tmp_path):
    flags = ['--saveSteps', '5', '--epochs', '300']  # so long that it is still running when the next one starts

    def spoil(path, old, new):
        text = path.read_text()
        path.write_text(text.replace(old, new))
        run = vqa(*flags, '--resume')
        path.write_text(text)
        assert run.returncode == 1 and 'Traceback' not in run.stderr
        return run.stderr

    ranks, state = vqa(*flags, processes=1, wait=False), tmp_path / 'run/RUN_STATE.pth'
    while ranks.alive() and not state.exists():
        time.sleep(0.01)
    blocked = vqa(*flags, '--resume')  # next to the one that runs
    signal_in_training(ranks, state)
    assert blocked.returncode == 1 and 'another process' in blocked.stderr
    before = {path: path.read_bytes() for path in (tmp_path / 'run').iterdir() if path.suffix in ('.json', '.txt', '.pth')}
    assert 'config.json' in spoil(world / 'bert/config.json', '"hidden_size": 32', '"hidden_size": 36')
    assert 'vocab.txt' in spoil(world / 'bert/vocab.txt', '[MASK]\n', '[MASK]\nunheard\n')
    assert 'other questions' in spoil(world / 'vqa/train.json', 'the', 'a')
    for path, content in before.items():
        assert path.read_bytes() == content, path


def test_two_processes_and_accumulation_train_as_one_process_does(vqa, world, tmp_path):
    flags = ['--dropout', '0', '--epochs', '1', '--train', 'train', '--batchSize', '15']  # 15: parts of unequal size
    for name, more, processes in (('one', [], 0), ('parts', ['--accumulate', '3'], 0), ('two', ['--multiGPU'], 2)):
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

    # The visual side of the last cross layer, which no loss reads, is neither trained nor decayed.
    options = Options(fromScratch=True, dropout=0.0, dataRoot=str(world), bert=str(world / 'bert'), train='train',
                      valid='minival', output=str(tmp_path / 'initial'))
    program = TaskProgram.prepare(VQA, options, torch.device('cpu'))
    initial = program.build_head(program.kind).original_state()
    program.folder.close()
    for name, value in initial.items():
        unused = re.search(r'x_layers\.0\.(visn_self_att|visn_inter|visn_output)\.', name)
        for run in ('one', 'two'):
            assert torch.equal(value, weights(tmp_path / run)[name]) == bool(unused), name


def test_other_ways_to_compute_learn_as_float32_does(vqa, tmp_path):
    biases = {}
    for name in ('plain', 'bf16', 'fp16', 'checkpointing'):
        run = vqa('--epochs', '1', '--valid', '', '--dropout', '0', *([] if name == 'plain' else [f'--{name}']), name=name)
        assert run.returncode == 0, run.stderr
        assert not (tmp_path / name / 'BEST.pth').exists()  # no validation: only LAST is written
        biases[name] = weights(tmp_path / name)['logit_fc.3.bias']
    expected = biases.pop('plain')
    assert torch.equal(biases.pop('checkpointing'), expected)
    for name, tolerance in (('bf16', 5e-3), ('fp16', 2e-2)):  # fp16 skips its first steps, until its scale is found
        assert not torch.equal(biases[name], expected), name
        torch.testing.assert_close(biases[name], expected, rtol=0, atol=tolerance, msg=name)


class Small:
    batchSize, accumulate, seed, compile = 8, 2, 1, False


def test_an_epoch_visits_every_example_once_but_for_the_last_incomplete_batch():
    batches = list(training_batches(83, 3, 0, Small))
    assert len(batches) == 2 * steps_per_epoch(83, 8) == 20
    visited = np.concatenate([batch.indices for batch in batches])
    assert len(visited) == len(set(visited)) == 80
    assert [batch.first for batch in batches] == list(range(0, 80, 4)) and {batch.epoch for batch in batches} == {3}
    assert not np.array_equal(visited, np.concatenate([batch.indices for batch in training_batches(83, 4, 0, Small)]))
    # The seventh and later steps are the same whether or not the epoch is resumed there.
    later = list(training_batches(83, 3, 6, Small))
    np.testing.assert_array_equal(np.concatenate([batch.indices for batch in later]), visited[48:])
    assert later[0].first == 48
    assert steps_per_epoch(5, 8) == 1 and sum(len(batch.indices) for batch in training_batches(5, 0, 0, Small)) == 5


def test_vqa_trains_on_bce_times_the_number_of_answers_with_its_own_warmup_and_clipping():
    logits, target = torch.randn(4, 7), torch.rand(4, 7)
    head = StandInHead(logits, 'vqa')
    losses, metrics = head(labelled(target), head.counts([labelled(target)]))
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, target) * 7
    torch.testing.assert_close(losses['BCE'], plain)
    assert metrics['examples'] == 4
    assert float(metrics['score']) == pytest.approx(sum(float(target[i, logits[i].argmax()]) for i in range(4)))
    assert (head.recipe.warmup, head.recipe.clip) == (0.1, 5.0)  # as in the original code


def test_steps_without_a_finite_gradient_are_skipped_and_ten_in_a_row_end_the_run(vqa, tmp_path):
    run = vqa('--lr', '1e30', '--optim', 'sgd')
    assert run.returncode == 1 and '10 steps in a row' in run.stderr and 'no run state was saved' in run.stderr

    progress, folder = Progress(skipped_in_a_row=8), RunFolder(tmp_path / 'other')
    count_skipped(progress, folder, False, 1)
    assert (progress.skipped, progress.skipped_in_a_row) == (1, 9)
    (folder.path / 'RUN_STATE.pth').touch()
    with pytest.raises(FloatingPointError, match=r'last saved run state is .*RUN_STATE\.pth'):
        count_skipped(progress, folder, False, 2)
    count_skipped(progress, folder, True, 3)
    assert (progress.skipped, progress.skipped_in_a_row) == (2, 0)
    folder.close()


@pytest.mark.parametrize(('optim', 'fused'), [('bert', False), ('sgd', False), ('sgd', True), ('momentum', True),
                                              ('adamw_pytorch', True)])
def test_an_update_clips_the_norm_of_all_gradients_and_skips_what_is_not_finite(monkeypatch, optim, fused):
    """Against PyTorch's own clipping and a step of the optimizer. fused: as on a GPU."""
    monkeypatch.setattr(optimizer, 'FUSED_STEP', {'cpu'} if fused else set())

    def layers():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))

    options, recipe = Options(optim=optim, lr=0.1, epochs=1), Recipe('answer')
    head, expected = Head(layers(), recipe), layers()
    step = OptimizerStep(head, options, 10, torch.device('cpu'))
    assert step.fused == fused
    plain = make_optimizer(expected.parameters(), recipe, options, 10)
    for p in head.encoder.parameters():  # the first step of all
        p.grad = torch.full_like(p, float('inf'))
    if optim != 'bert':  # which counts skipped steps
        assert not step()
        assert_same(head.encoder.state_dict(), expected.state_dict(), 0)
    for scale in (1.0, 100.0, 0.01):
        x = scale * torch.randn(5, 3)
        for model in (head.encoder, expected):
            model.zero_grad()
            model(x).square().sum().backward()
        assert step()
        torch.nn.utils.clip_grad_norm_(expected.parameters(), recipe.clip)
        plain.step()
    assert_same(head.encoder.state_dict(), expected.state_dict(), 1e-6)
    head.encoder[0].weight.grad[1, 2] = float('nan')
    assert not step()
    assert_same(head.encoder.state_dict(), expected.state_dict(), 1e-6)


def test_sigterm_spares_what_prepares_batches_from_its_very_start(monkeypatch):
    class Numbers(torch.utils.data.Dataset):
        def __getitem__(self, part):
            os.kill(os.getpid(), signal.SIGTERM)  # in the midst of its work
            return {'number': torch.tensor(part)}

        def to_device(self, batch):
            return batch

    def struck(*args, loop=torch.utils.data._utils.worker._worker_loop):
        os.kill(os.getpid(), signal.SIGTERM)  # before anything that the worker itself could do about it
        loop(*args)

    monkeypatch.setattr(torch.utils.data._utils.worker, '_worker_loop', struck)
    options = Options(numWorkers=1)
    assert [int(batch['number']) for batch in load_batches(Numbers(), [1, 2], options, torch.device('cpu'))] == [1, 2]


def test_metrics_are_read_one_step_late_on_a_gpu():
    metrics = DeferredMetrics(torch.device('cpu'))
    metrics.push(1, torch.tensor(True), torch.tensor(0.5))
    assert list(metrics.pop_ready()) == [(1, [True, 0.5])]
    assert list(metrics.pop_ready(flush=True)) == []
    metrics.delay = 1
    for step in (2, 3):
        metrics.pending.append((step, [step], None))
        assert [at for at, _ in metrics.pop_ready()] == ([2] if step == 3 else [])
    assert list(metrics.pop_ready(flush=True)) == [(3, [3])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
@pytest.mark.parametrize('how', ['--bf16', '--fp16', '--bf16 --compile', '--bf16 --compile --checkpointing --featDevice cuda'])
def test_a_gpu_trains_and_resumes(vqa, tmp_path, how):
    flags = ['--device', 'cuda', *how.split(), '--numWorkers', '2', '--saveSteps', '5']
    run = vqa(*flags, processes=1)
    assert run.returncode == 0, run.stderr
    assert vqa(*flags, '--resume', processes=1).returncode == 0
    test = ['--device', 'cuda', '--test', 'minival', '--load', tmp_path / 'run/BEST']
    run = vqa(*test, name='results', start=False, processes=1)
    assert run.returncode == 0, run.stderr


# ---- recipes


def test_a_run_takes_its_recipe_and_flags_win(run_here, tmp_path, world):
    def options(name, *flags):
        status, printed = run_here('--output', str(tmp_path / name), '--epochs', '1', *flags)
        assert status == 0, printed.err
        return json.loads((tmp_path / name / 'options.json').read_text())['options'], printed.out

    values, printed = options('recipe')
    assert [values[name] for name in ('optim', 'lr', 'batchSize', 'epochs', 'schedule')] == ['bert', 5e-5, 32, 1, None]
    assert 'learning rate up to 5e-05 (of the recipe; --lr sets another), BertAdam, warmup_linear, warm-up over ' in printed
    values, printed = options('typed', '--lr', '1e-3', '--batchSize', '16', '--optim', 'adamw', '--schedule', 'triangle')
    assert [values[name] for name in ('optim', 'lr', 'batchSize', 'epochs')] == ['adamw', 1e-3, 16, 1]
    assert 'learning rate up to 0.001 (--lr), AdamW, triangle, warm-up over 2 steps; 0.000667 at step 0' in printed


def test_the_recipes_of_lxmert_are_what_its_launchers_passed():
    expected = {'vqa': (5e-5, 32, 4, 0.1, 5.0), 'gqa': (1e-5, 32, 4, 0.1, 5.0), 'nlvr2': (5e-5, 32, 4, 0.1, 5.0),
                'classify': (5e-5, 32, 4, 0.1, 5.0), 'pretrain': (1e-4, 256, 20, 0.05, 1.0)}
    for task, values in expected.items():
        recipe, options = models.package('lxmert').recipe(task, Options()), Options()
        options.complete(recipe)
        assert (options.lr, options.batchSize, options.epochs, recipe.warmup, recipe.clip) == values, task
        assert options.optim == 'bert' and schedule_name(recipe, options) == 'warmup_linear'
        for optim in ('rms', 'adam', 'adamax', 'sgd', 'adamw', 'momentum'):
            assert schedule_name(recipe, Options(optim=optim)) == 'constant'
        assert schedule_name(recipe, Options(optim='adam', schedule='step')) == 'step'
    assert models.package('lxmert').recipe('vqa', Options(mceLoss=True)).loss == 'CE'
    with pytest.raises(ValueError, match='no recipe for the task chess'):
        models.package('lxmert').recipe('chess', Options())


def test_a_rate_per_example_counts_all_examples_of_a_step():
    recipe = Recipe('answer', optim='adamw', lr_per_example=1e-7, examples_per_item=2, batch_size=128, schedule='triangle',
                    warmup=8)
    for given, expected in (({}, 2.56e-5), ({'batchSize': 64}, 1.28e-5), ({'batchSize': 64, 'lr': 1e-3}, 1e-3)):
        options = Options(**given)
        options.complete(recipe)
        assert options.lr == pytest.approx(expected, rel=1e-12)
    assert [warmup_steps(recipe, total) for total in (1000, 80, 79, 30, 5)] == [8, 8, 7, 3, 0]
    assert warmup_steps(Recipe('answer'), 25) == 2.5
    assert schedule_name(recipe, Options(optim='bert')) == 'warmup_linear'
    bert = make_optimizer([torch.nn.Parameter(torch.ones(1))], recipe, Options(optim='bert', lr=1.0), 30)
    assert bert.param_groups[0]['warmup'] == 0.1


@pytest.mark.parametrize(('flags', 'says'), [
    (['--schedule', 'triangle'], '--schedule triangle: --optim bert has warmup_linear'),
    (['--schedule', 'warmup_cosine', '--optim', 'adamw'], '--schedule warmup_cosine: --optim adamw has constant, triangle'),
    (['--schedule', 'plateau', '--optim', 'adam', '--valid', ''], '--schedule plateau: .*--valid'),
    (['--accumulate', '40'], '--accumulate 40: .*--batchSize 32'), (['--apex', '--optim', 'adamw'], '--apex: .*--optim adamw'),
])
def test_a_flag_that_does_not_fit_the_recipe_is_named(run_here, flags, says, capsys):
    try:
        status, printed = run_here('--batchSize', '32', *flags)
    except SystemExit as end:
        status, printed = end.code, capsys.readouterr()
    assert status in (1, 2) and re.search(says, printed.err) and 'Traceback' not in printed.err


# ---- schedules


@pytest.mark.parametrize('how', ['adamw triangle', 'momentum step', 'adam plateau', 'adamw plateau --accumulate 2',
                                 'bert warmup_cosine'])
def test_a_run_resumes_in_the_middle_of_each_schedule_with_the_same_bits(vqa, tmp_path, monkeypatch, how):
    """Stopped within the fourth of five epochs, of 15 steps each. The score never rises, so that plateau lowers the rate after
    the third."""
    optim, schedule, *more = how.split()
    flags = ['--epochs', '5', '--saveSteps', '4', '--optim', optim, '--schedule', schedule, *more]
    monkeypatch.setattr(VQA, 'validate', lambda *_: (0.5, 'score', {}))
    rates, update = [], OptimizerStep.__call__

    def recorded(self, step=0):
        finite = update(self, step)
        group = self.optimizer.param_groups[0]
        rates.append((step, self.optimizer.rate(group, step) if optim == 'bert' else group['lr']))
        return finite

    monkeypatch.setattr(OptimizerStep, '__call__', recorded)
    assert vqa(*flags, name='unbroken').returncode == 0
    expected, rates[:] = dict(rates), []
    with monkeypatch.context() as patched:
        patched.setattr(Head, 'begin_step', staticmethod(Interrupt(54)))
        assert vqa(*flags).returncode == 130
    assert vqa(*flags, '--resume').returncode == 0
    assert len(expected) == 75 and dict(rates) == expected and [step for step, _ in rates] == [*range(54), *range(53, 75)]
    assert_same(weights(tmp_path / 'run'), weights(tmp_path / 'unbroken'))
    assert (tmp_path / 'run/log.log').read_text() == (tmp_path / 'unbroken/log.log').read_text()
    state = weights(tmp_path / 'run', 'RUN_STATE.pth')
    if schedule == 'triangle':  # warm-up over a tenth of the steps
        shares = [n / 7.5 if n < 7.5 else (75 - n) / 67.5 for n in range(1, 76)]
    elif schedule == 'step':  # after 3.5 and 4.5 epochs
        shares = [min(n / 7.5, 1.0) * (1.0 if n < 52 else 0.1 if n < 67 else 0.01) for n in range(1, 76)]
    elif schedule == 'plateau':
        shares = [min(n / 7.5, 1.0) * (1.0 if n <= 45 else 0.1) for n in range(1, 76)]
        assert state['schedule'] == {'share': 0.1, 'best': 0.5, 'num_bad_epochs': 0, 'cooldown_counter': 0, 'last_epoch': 5}
    else:
        shares = [n / 7.5 if n < 7.5 else 0.5 * (1 + math.cos(math.pi * n / 75)) for n in range(75)]
    assert list(expected.values()) == pytest.approx([1e-3 * share for share in shares], rel=1e-12)
    assert ('schedule' in state) == (schedule == 'plateau')


def test_other_epochs_and_batches_continue_the_schedule(run_here, tmp_path, monkeypatch):
    """With a recipe whose rate depends on the batch size: it stays that of the run."""
    recipe = Recipe('answer', optim='adamw', lr_per_example=1e-5, schedule='triangle', warmup=3, epochs=2)
    monkeypatch.setattr(models.package('lxmert'), 'recipe', lambda task, options=None: recipe)
    status, printed = run_here('--epochs', '2', '--batchSize', '16')
    assert status == 0, printed.err
    assert ('learning rate up to 0.00016 (1e-05 x 16 examples in a step, as in the original code; --lr sets another), AdamW, '
            'triangle, warm-up over 3 steps; 5.33e-05 at step 0') in printed.out
    state = weights(tmp_path / 'run', 'RUN_STATE.pth')
    steps = state['progress']['steps_per_epoch']
    assert steps == 15 and state['optimizer']['param_groups'][0]['lr'] == 0  # the last step's

    # 14 steps of the run are now to come, of which the first has (28 - 15) / (28 - 2) of the rate.
    status, printed = run_here('--resume', '--epochs', '4', '--batchSize', '32')
    assert status == 0, printed.err
    assert f'--batchSize 16 then, 32 now: an epoch has 7 steps instead of {steps:,}; --lr stays 0.00016' in printed.out
    assert 'the schedule ends at step 28, and the learning rate goes on with 8e-05 instead of 0' in printed.out
    assert 'AdamW, triangle, warm-up over 2 steps; 8e-05 at step 14' in printed.out
    state = weights(tmp_path / 'run', 'RUN_STATE.pth')
    assert state['options']['lr'] == 16e-5 and {entry['step'] for entry in state['optimizer']['state'].values()} == {28}


def test_plateau_and_a_constant_rate_do_not_depend_on_the_length(run_here, tmp_path):
    for name, flags in (('plateau', ['--optim', 'momentum', '--schedule', 'plateau']), ('constant', ['--optim', 'sgd'])):
        flags += ['--output', str(tmp_path / name)]
        assert run_here(*flags)[0] == 0
        status, printed = run_here(*flags, '--resume', '--epochs', '2')
        assert status == 0 and '--epochs 1 then, 2 now: the learning rate does not depend on it' in printed.out, printed.err


@pytest.mark.parametrize(('change', 'says'), [
    (lambda state: state.pop('schedule'), 'key schedule'),
    (lambda state: state['schedule'].update(share=3.0), 'key schedule'),
    (lambda state: state['schedule'].update(num_bad_epochs='two'), r'key schedule\.num_bad_epochs'),
    (lambda state: state['schedule'].update(cooldown_counter=-1), 'key schedule'),
    (lambda state: state['optimizer']['param_groups'][0].update(momentum=0.5), r'param_groups\.0\.momentum'),
    (lambda state: state['optimizer']['param_groups'][0].update(initial_lr=0.5), r'param_groups\.0\.initial_lr'),
    (lambda state: state['optimizer']['state'][0].pop('momentum_buffer'), r'optimizer\.state\.0'),
])
def test_the_state_of_a_schedule_that_does_not_fit_is_named(run_here, tmp_path, change, says):
    flags = ['--optim', 'momentum', '--schedule', 'plateau']
    assert run_here(*flags)[0] == 0
    path = tmp_path / 'run/RUN_STATE.pth'
    state = torch.load(path, weights_only=True)
    change(state)
    del state['digest']
    torch.save(state, path)
    (tmp_path / 'run/RUN_STATE.pth.previous').unlink(missing_ok=True)
    status, printed = run_here(*flags, '--resume', '--epochs', '2')
    assert status == 1 and re.search(rf'RUN_STATE\.pth: .*{says}', printed.err) and 'Traceback' not in printed.err, printed.err
