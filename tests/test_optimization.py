"""BertAdam and AdamW equal a plain restatement of their rules, number by number."""

import io
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from bert.optimization import SCHEDULES, AdamW, BertAdam, Schedule, load_averages
from bert.weights import WeightsError
from optimizer import OPTIMIZERS

torch.set_num_threads(1)  # on models this small a second thread only waits

STEPS = 20


def plain_rate(schedule, step, lr, warmup, t_total):
    """The learning rate, written out from the original code."""
    if t_total == -1:
        return lr
    x = step / t_total
    if x < warmup:
        return lr * x / warmup
    return lr * {
        'warmup_linear': max((x - 1) / (warmup - 1), 0),
        'warmup_constant': 1,
        'warmup_cosine': 0.5 * (1 + math.cos(math.pi * x)),
    }[schedule]


def four_parameters(last_shape):
    """(parameters, their initial values, gradients of STEPS steps): the third has none in every third step, the fourth none
    before step 5."""
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=g)) for shape in [(3, 2), (4,), (5,), last_shape]]
    grads = [[torch.randn(p.shape, dtype=torch.float64, generator=g) for p in params] for _ in range(STEPS)]
    for step in range(STEPS):
        if step % 3 == 1:
            grads[step][2] = None
        if step < 5:
            grads[step][3] = None
    return params, [p.flatten().tolist() for p in params], grads


def plain_bert_adam(values, grads_of_steps, lr, schedule, warmup, t_total, b1=0.9, b2=0.999, e=1e-6, weight_decay=0.01):
    """One parameter as a list of numbers; a step whose gradients are None does not exist for it."""
    m, v, step = [0.0] * len(values), [0.0] * len(values), 0
    for grads in grads_of_steps:
        if grads is None:
            continue
        rate = plain_rate(schedule, step, lr, warmup, t_total)
        for i, grad in enumerate(grads):
            m[i] = b1 * m[i] + (1 - b1) * grad
            v[i] = b2 * v[i] + (1 - b2) * grad * grad
            values[i] -= rate * (m[i] / (math.sqrt(v[i]) + e) + weight_decay * values[i])
        step += 1
    return values


STEP = """
import sys, torch
from bert.optimization import Schedule
from optimizer import OPTIMIZERS
Schedule('plateau', 100, 10)
for kind in OPTIMIZERS.values():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([parameter], lr=0.1)
    parameter.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
sys.exit('torch._dynamo' in sys.modules)
"""


def test_no_step_waits_for_the_import_of_the_compiler():
    done = subprocess.run([sys.executable, '-c', STEP], env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)})
    assert done.returncode == 0


@pytest.mark.parametrize('name', ['adamw_pytorch', 'momentum', 'rms', 'adam', 'adamax', 'sgd'])
def test_pytorchs_optimizers_make_the_same_steps_without_the_compiler(name):
    ours, (theirs, *_) = OPTIMIZERS[name], OPTIMIZERS[name].__bases__
    more = {'momentum': 0.9} if name == 'momentum' else {}
    assert theirs.__module__.startswith('torch.optim') and theirs.__name__ == ours.__name__
    states = []
    for kind in (ours, theirs):
        generator, parameter = torch.Generator().manual_seed(0), torch.nn.Parameter(torch.ones(50))
        optimizer = kind([parameter], lr=0.1, weight_decay=0.01, **more)
        for _ in range(3):
            optimizer.zero_grad()
            (parameter * torch.randn(50, generator=generator)).square().sum().backward()
            optimizer.step()
        states.append(parameter)
    assert torch.equal(*states)


@pytest.mark.parametrize(('schedule', 'warmup', 't_total', 'more'), [
    ('warmup_linear', 0.1, STEPS, {}),
    ('warmup_linear', 0.3, 12, {}),  # goes on after the last step of the schedule, at rate 0
    ('warmup_linear', -1, STEPS, {}),
    ('warmup_constant', 0.25, STEPS, {}),
    ('warmup_cosine', 0.25, STEPS, {}),
    ('warmup_linear', 0.1, -1, {}),
    ('warmup_constant', 0.1, -1, {}),
    ('warmup_cosine', 0.1, -1, {}),
    ('warmup_linear', 0.1, STEPS, {'b1': 0.5, 'b2': 0.8, 'e': 0.1, 'weight_decay': 0.3}),
    ('warmup_linear', 0.1, STEPS, {'weight_decay': 0.0}),
])
def test_20_steps_equal_a_plain_restatement(schedule, warmup, t_total, more):
    """To 1e-12, in double precision. The third parameter has no gradient in every third step, the fourth none before step 5;
    the last two are in a group of another rate."""
    params, start, grads = four_parameters((2,))
    optimizer = BertAdam([{'params': params[:2]}, {'params': params[2:], 'lr': 0.5}], lr=0.1, schedule=schedule,
                         warmup=warmup, t_total=t_total, **more)
    for step in range(STEPS):
        for p, grad in zip(params, grads[step], strict=True):
            p.grad = grad
        optimizer.step()
    for i, p in enumerate(params):
        of_steps = [None if row[i] is None else row[i].flatten().tolist() for row in grads]
        expected = plain_bert_adam(start[i], of_steps, 0.1 if i < 2 else 0.5, schedule, warmup, t_total, **more)
        torch.testing.assert_close(p.detach().flatten(), torch.tensor(expected, dtype=torch.float64),
                                   atol=1e-12, rtol=1e-12)


def test_schedules_at_hand_worked_points():
    points = {
        'warmup_linear': {0: 0, 0.05: 0.5, 0.1: 1, 0.55: 0.5, 1: 0, 1.3: 0},
        'warmup_constant': {0: 0, 0.05: 0.5, 0.1: 1, 0.55: 1, 1.3: 1},
        'warmup_cosine': {0: 0, 0.05: 0.5, 0.5: 0.5, 1: 0, 0.75: 0.5 - math.sqrt(0.125)},
    }
    assert set(points) == set(SCHEDULES)
    for name, values in points.items():
        for x, value in values.items():
            assert SCHEDULES[name](x, 0.1) == pytest.approx(value, abs=1e-12), (name, x)


def one_step(module, value=1.0, **options):
    optimizer = BertAdam(module.parameters(), **options)
    for p in module.parameters():
        p.grad = torch.full_like(p, value)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize('schedule', list(SCHEDULES))
def test_the_first_step_has_rate_0_but_counts(schedule):
    module = nn.Linear(3, 2)
    before = [p.detach().clone() for p in module.parameters()]
    optimizer = one_step(module, lr=1.0, warmup=0.1, t_total=100, schedule=schedule)
    assert all(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))
    for p in module.parameters():
        assert optimizer.state[p]['step'] == 1
        torch.testing.assert_close(optimizer.state[p]['next_m'], torch.full_like(p, 0.1))
        torch.testing.assert_close(optimizer.state[p]['next_v'], torch.full_like(p, 0.001))
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True))


def test_weight_decay_is_on_everything_biases_and_layer_norms_too():
    module = nn.Sequential(nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, 2), nn.LayerNorm(2))
    for p in module.parameters():
        nn.init.constant_(p, 2.0)
    one_step(module, value=0.0, lr=0.1, weight_decay=0.25)  # no t_total: the rate is 0.1 from the first step
    for p in module.parameters():
        torch.testing.assert_close(p.detach(), torch.full_like(p, 2.0 - 0.1 * 0.25 * 2.0))


def test_a_parameter_without_gradient_is_skipped_and_counts_its_own_steps():
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = BertAdam([early, late], lr=0.1, warmup=0.5, t_total=10)
    for _ in range(4):
        early.grad = torch.ones(3)
        optimizer.step()
    assert torch.equal(late, torch.ones(3)) and not optimizer.state[late]  # no decay, no counter
    assert optimizer.state[early]['step'] == 4
    late.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(late, torch.ones(3)) and optimizer.state[late]['step'] == 1  # its own first step, of rate 0
    assert optimizer.state[early]['step'] == 5
    kept, m, v = early.detach().clone(), *(optimizer.state[early][name].clone() for name in ('next_m', 'next_v'))
    early.grad = None
    optimizer.step()
    assert torch.equal(early, kept) and optimizer.state[early]['step'] == 5
    assert torch.equal(optimizer.state[early]['next_m'], m) and torch.equal(optimizer.state[early]['next_v'], v)
    assert late[0] < 1


def test_a_saved_optimizer_resumes_bit_for_bit():
    def train(module, optimizer, steps):
        for step in steps:
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            (module[0](x) if step % 2 else module(x)).square().sum().backward()  # every second step skips the norm
            optimizer.step()

    def make():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
        return module, BertAdam(module.parameters(), lr=0.05, warmup=0.2, t_total=12)

    uninterrupted = make()
    train(*uninterrupted, range(10))
    first, second = make(), make()
    train(*first, range(5))
    file = io.BytesIO()
    torch.save({'model': first[0].state_dict(), 'optimizer': first[1].state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second[0].load_state_dict(state['model'])
    second[1].load_state_dict(state['optimizer'])
    train(*second, range(5, 10))
    for p, expected in zip(second[0].parameters(), uninterrupted[0].parameters(), strict=True):
        assert torch.equal(p, expected)
        state, expected_state = second[1].state[p], uninterrupted[1].state[expected]
        assert state['step'] == expected_state['step']
        assert all(torch.equal(state[name], expected_state[name]) for name in ('next_m', 'next_v'))
    assert {state['step'] for state in uninterrupted[1].state.values()} == {5, 10}


def test_a_closure_is_called_with_gradients_on():
    p = nn.Parameter(torch.ones(2))
    optimizer = BertAdam([p], lr=0.1)

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert (p < 1).all()


@pytest.mark.parametrize(('options', 'says'), [
    ({'schedule': 'cosine'}, 'warmup_linear'), ({'lr': -0.1}, 'lr'), ({'warmup': 1.0}, 'warmup'), ({'warmup': -0.5}, 'warmup'),
    ({'b1': 1.0}, 'b1'), ({'b2': -0.1}, 'b2'), ({'e': -1e-6}, 'e '),
])
def test_wrong_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        BertAdam([nn.Parameter(torch.ones(1))], **{'lr': 0.1, **options})


def plain_adamw(values, grads_of_steps, lrs, beta1=0.9, beta2=0.999, eps=1e-6, weight_decay=1e-4, skipped=()):
    """One parameter as a list of numbers, written out from the original code; None: no gradient; lrs: the rate of each step."""
    m, v, n = [0.0] * len(values), [0.0] * len(values), 0
    for number, (grads, lr) in enumerate(zip(grads_of_steps, lrs, strict=True)):
        if grads is None:
            continue
        n += 1
        if number in skipped:
            continue
        step_size = lr * math.sqrt(1.0 - beta2 ** n) / (1.0 - beta1 ** n)
        for i, grad in enumerate(grads):
            m[i] = m[i] * beta1 + (1.0 - beta1) * grad
            v[i] = v[i] * beta2 + (1.0 - beta2) * grad * grad
            values[i] = values[i] - step_size * m[i] / (math.sqrt(v[i]) + eps)
            values[i] = values[i] - lr * weight_decay * values[i]
    return values


@pytest.mark.parametrize(('more', 'skipped', 'divisor'), [
    ({}, (), None), ({'weight_decay': 0.3}, (), None), ({'weight_decay': 0.3}, (2, 3, 11), 4.0), ({}, (0,), 1.0),
    ({'beta1': 0.5, 'beta2': 0.8, 'eps': 0.1, 'weight_decay': 0.0}, (), None),
])
def test_adamw_equals_a_plain_restatement(more, skipped, divisor):
    """In double precision. The third parameter has no gradient in every third step, the fourth, of no dimension, none before step
    5; the last two are in a group of another rate, and the rates change at each step. Divided and skipped on the device."""
    params, start, grads = four_parameters(())
    betas = {'betas': (more['beta1'], more['beta2'])} if 'beta1' in more else {}
    optimizer = AdamW([{'params': params[:2]}, {'params': params[2:], 'lr': 0.5}], lr=0.1, **betas,
                      **{name: value for name, value in more.items() if not name.startswith('beta')})
    lrs = [[0.1 * (20 - step) / 20 for step in range(STEPS)], [0.5 * (step + 1) / 20 for step in range(STEPS)]]
    for step in range(STEPS):
        for p, grad in zip(params, grads[step], strict=True):
            p.grad = None if grad is None else grad * (divisor or 1.0)
        for group, rates in zip(optimizer.param_groups, lrs, strict=True):
            group['lr'] = rates[step]
        optimizer.step(divisor=divisor and torch.tensor(divisor),
                       skip=torch.tensor(float(step in skipped)) if skipped else None)
    for i, p in enumerate(params):
        of_steps = [None if row[i] is None else row[i].flatten().tolist() for row in grads]
        expected = plain_adamw(start[i], of_steps, lrs[i >= 2], skipped=skipped, **more)
        torch.testing.assert_close(p.detach().flatten(), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=1e-12)


def test_the_decay_of_adamw_is_last_and_on_everything_even_where_it_is_below_rounding():
    module = nn.Sequential(nn.Embedding(4, 3, padding_idx=0), nn.Linear(3, 2), nn.LayerNorm(2))
    for p in module.parameters():
        nn.init.constant_(p, 2.0)
        p.grad = torch.zeros_like(p)
    optimizer = AdamW(module.parameters(), lr=0.1, weight_decay=0.25)
    optimizer.step()
    for p in module.parameters():
        torch.testing.assert_close(p.detach(), torch.full_like(p, 2.0 - 0.1 * 0.25 * 2.0))
    p = nn.Parameter(torch.tensor([1.0, 1.9999999]))  # half a unit in the last place is 6e-8 of the one, 3e-8 of the other
    p.grad = torch.zeros(2)
    AdamW([p], lr=4e-4, weight_decay=1e-4).step()
    assert p.tolist() == torch.tensor([1.0, 1.9999999]).add(torch.tensor([1.0, 1.9999999]), alpha=-4e-8).tolist()
    assert p[1] < torch.tensor(1.9999999)


def test_a_saved_adamw_resumes_bit_for_bit_and_a_wrong_state_is_refused():
    def make():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2))
        return module, AdamW(module.parameters(), lr=0.05)

    def train(module, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            module(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
            optimizer.step()

    unbroken, first, second = make(), make(), make()
    train(*unbroken, range(10))
    train(*first, range(5))
    file = io.BytesIO()
    torch.save({'model': first[0].state_dict(), 'optimizer': first[1].state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    second[0].load_state_dict(state['model'])
    with pytest.raises(WeightsError, match='step'):
        load_averages(second[1], state['optimizer'], 4)
    load_averages(second[1], state['optimizer'], 5)
    train(*second, range(5, 10))
    for p, expected in zip(second[0].parameters(), unbroken[0].parameters(), strict=True):
        assert torch.equal(p, expected) and second[1].state[p]['step'] == 10
    state['optimizer']['state'][0]['next_v'][0] = -1
    with pytest.raises(WeightsError, match=r'state\.0\.next_v'):
        load_averages(make()[1], state['optimizer'], 5)
    with pytest.raises(WeightsError):  # of another optimizer
        load_averages(BertAdam(make()[0].parameters(), lr=0.05), first[1].state_dict(), 5)


def test_adamw_calls_a_closure_and_names_wrong_options():
    p = nn.Parameter(torch.ones(2))

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert AdamW([p], lr=0.1).step(closure) == 2
    assert (p < 1).all()
    for options in ({'lr': -0.1}, {'betas': (1.0, 0.9)}, {'betas': (0.9, -0.1)}, {'eps': -1.0}, {'weight_decay': -1.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            AdamW([p], **{'lr': 0.1, **options})


def test_schedules_equal_a_plain_restatement():
    total, warmup = 40, 5
    triangle = Schedule('triangle', total, warmup)
    assert [triangle.share(n) for n in range(1, 41)] == [n / 5 if n <= 5 else (40 - n) / 35 for n in range(1, 41)]
    assert triangle.share(1) == 0.2 and triangle.share(5) == 1 and triangle.share(40) == 0 and triangle.share(41) == 0
    assert [Schedule('triangle', 4).share(n) for n in range(1, 5)] == [0.75, 0.5, 0.25, 0]
    for start in (0.0, 0.25):
        step = Schedule('step', total, warmup, milestones=[3, 20], warmup_from=start)
        for n in range(1, 41):
            rise = start * (1 - n / 5) + n / 5 if n < 5 else 1
            assert step.share(n) == pytest.approx(rise * (1 if n < 3 else 0.1 if n < 20 else 0.01), rel=1e-12)
    assert {Schedule('constant', total, warmup).share(n) for n in range(1, 41)} == {1.0}
    with pytest.raises(ValueError, match='constant, triangle'):
        Schedule('warmup_linear', total)


def test_plateau_divides_the_rate_after_two_scores_without_a_rise_and_then_waits_for_two():
    scores = [1, 2, 2, 2, 1, 1, 1, 1, 3, 1, 1, 1]
    plateau = Schedule('plateau', 40)
    best, bad, cooldown, share, shares, expected = -math.inf, 0, 0, 1.0, [], []
    for number, score in enumerate(scores):
        if number == 6:  # resumed
            state, plateau = plateau.state_dict(), Schedule('plateau', 40)
            plateau.load_state_dict(state)
        plateau.validated(score)
        shares.append(plateau.share(1))
        best, bad = (score, 0) if score > best else (best, bad + 1)
        if cooldown:
            cooldown, bad = cooldown - 1, 0
        if bad > 1:
            share, cooldown, bad = share / 10, 2, 0
        expected.append(share)
    assert shares == pytest.approx(expected, rel=1e-12) and len(set(expected)) > 2
    assert Schedule('plateau', 40, 10).share(5) == 0.5
    for change in ({'share': 2.0}, {'last_epoch': -1}, {'best': 'high'}, {'more': 1}):
        with pytest.raises(WeightsError, match='schedule'):
            Schedule('plateau', 40).load_state_dict(state | change)
    with pytest.raises(WeightsError, match='schedule'):
        Schedule('triangle', 40).load_state_dict(state)
