"""Adam with decoupled weight decay: BertAdam, without bias correction and with a warm-up schedule (Devlin et al., 2019), and
AdamW as the original code of VL-BERT has it."""

import inspect
import math
from collections import defaultdict

import torch

from bert.weights import WeightsError, why_not_like

SQUARES = ('next_v', 'exp_avg_sq', 'square_avg', 'exp_inf')  # averages that cannot be below 0


def warmup_linear(x, warmup):
    """Rises to 1 at x = warmup, then falls to 0 at x = 1. x: steps done as a share of all steps."""
    return x / warmup if x < warmup else max((x - 1.0) / (warmup - 1.0), 0.0)


def warmup_constant(x, warmup):
    return x / warmup if x < warmup else 1.0


def warmup_cosine(x, warmup):
    return x / warmup if x < warmup else 0.5 * (1.0 + math.cos(math.pi * x))


SCHEDULES = {'warmup_linear': warmup_linear, 'warmup_constant': warmup_constant, 'warmup_cosine': warmup_cosine}


def eager(kind):
    """One of PyTorch's optimizers without the wrappers that keep torch.compile out of its methods: their import of the compiler
    takes 2 seconds, and no optimizer is compiled here."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in ('add_param_group', 'zero_grad', 'state_dict',
                                                                      'load_state_dict', 'step')}
    return type(kind.__name__, (kind,), methods | {'step': torch.no_grad()(methods['step'])})


class Schedule:
    """The learning rate of an optimizer that has no schedule itself, as a share of its maximum, at step n = 1, 2, ..., total.

    constant: 1.
    triangle: rises to 1 at step `warmup`, then falls to 0 at the last step.
    step: 1, divided by 10 at each of the steps `milestones`.
    plateau: 1, divided by 10 after 2 validations without a better score; not in the 2 validations after that.
    epochs: as in ALBEF's code. In the first epoch the share begins with warmup_from and rises in equal parts, one after the steps
    101, 201, ..., to 1 after step `warmup` + 1. In epoch e = 1, 2, ... it is least + (1 - least) * (1 + cos(pi * e / epochs)) /
    2. The shares of step and plateau are multiplied by warmup_from + (1 - warmup_from) * n / warmup while n < warmup.
    """

    NAMES = 'constant', 'triangle', 'step', 'plateau', 'epochs'
    RISE = 100  # steps between two rises of the schedule epochs

    def __init__(self, name, total, warmup=0, milestones=(), warmup_from=0.0, least=0.0, epochs=1):
        """total, warmup, milestones: steps."""
        if name not in self.NAMES:
            raise ValueError(f'schedule {name!r}: expected one of {", ".join(self.NAMES)}')
        self.name, self.total, self.warmup, self.milestones, self.warmup_from = name, total, warmup, milestones, warmup_from
        self.least, self.epochs, self.plateau = least, epochs, None
        if name == 'plateau':  # of an optimizer whose rate is the share
            share = eager(torch.optim.SGD)([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
            self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(share, 'max', factor=0.1, patience=1, cooldown=2, eps=0)

    def share(self, n):
        if self.name == 'constant':
            return 1.0
        if self.name == 'triangle':
            return n / self.warmup if n <= self.warmup else max(self.total - n, 0) / (self.total - self.warmup)
        if self.name == 'epochs':
            if epoch := (n - 1) // max(self.total // self.epochs, 1):
                return self.least + (1 - self.least) * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))
            risen, rises = max(n - 2, 0) // self.RISE, self.warmup // self.RISE
            return 1.0 if risen >= rises else self.warmup_from + (1 - self.warmup_from) * risen / rises
        rise = self.warmup_from * (1 - n / self.warmup) + n / self.warmup if n < self.warmup else 1.0
        if self.plateau:
            return rise * self.plateau.optimizer.param_groups[0]['lr']
        return rise * 0.1 ** sum(n >= milestone for milestone in self.milestones)

    def validated(self, score):
        """To be called with the score of each validation; higher is better."""
        if self.plateau:
            self.plateau.step(score)

    def state_dict(self):
        """What the past scores left: {} but for plateau."""
        if not self.plateau:
            return {}
        names = 'best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch'
        return {'share': self.plateau.optimizer.param_groups[0]['lr'], **{name: getattr(self.plateau, name) for name in names}}

    def load_state_dict(self, state):
        """Raises WeightsError unless the state is of this schedule."""
        if (reason := why_not_like(state, self.state_dict(), 'schedule', values=False)) or not all(
                value <= 1 if name == 'share' else value >= 0 for name, value in state.items() if name != 'best'):
            raise WeightsError(f'key {reason or "schedule: expected a share up to 1 and counts, found others"}')
        if self.plateau:
            self.plateau.optimizer.param_groups[0]['lr'] = state['share']
            vars(self.plateau).update({name: value for name, value in state.items() if name != 'share'})


class DeviceAdam(eager(torch.optim.Optimizer)):
    """The averages and the step of BertAdam and AdamW. A parameter without gradient is skipped, its decay included."""

    @torch.no_grad()
    def step(self, closure=None, divisor=None, skip=None):
        """One step. divisor: gradients are divided by it, in place; skip: 1 keeps parameters and averages, but counts the step.
        Both are float32 scalars on the device, so that the CPU need not wait for them; None: 1 and 0."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_step = defaultdict(list)  # almost always a single step count: one multi-tensor call
            for p in group['params']:
                if p.grad is not None:
                    state = self.state[p]
                    if not state:
                        state.update(step=0, next_m=torch.zeros_like(p), next_v=torch.zeros_like(p))
                    by_step[state['step']].append(p)
            for step, params in by_step.items():
                self._update(group, step, params, divisor, skip)
                for p in params:
                    self.state[p]['step'] = step + 1
        return loss

    def _gradients_and_averages(self, params):
        return [p.grad for p in params], *([self.state[p][name] for p in params] for name in ('next_m', 'next_v'))

    def _update(self, group, step, params, divisor, skip):
        """Updates parameters that have done so many steps."""
        raise NotImplementedError

    def _fused(self, params, divisor, skip, rate, betas, eps, weight_decay):
        """The averages, then p -= rate * weight_decay * p, then p -= rate * m / (sqrt(v) + eps)."""
        # PyTorch's fused AdamW has this rule after infinitely many steps, when its bias correction is 1.
        infinity = torch.full((), math.inf, device=params[0].device)
        torch._fused_adamw_(
            params, *self._gradients_and_averages(params), [], [infinity] * len(params), lr=rate, beta1=betas[0], beta2=betas[1],
            eps=eps, weight_decay=weight_decay, amsgrad=False, maximize=False, grad_scale=divisor, found_inf=skip)


class BertAdam(DeviceAdam):
    """As in the original code: m and v without bias correction, update = m / (sqrt(v) + e) + weight_decay * p for
    every parameter, biases and layer norms included.

    The rate is lr * schedule(step / t_total). Each parameter counts its own steps from 0, so that the first step has rate 0. A
    parameter without gradient is skipped, its decay included. t_total -1: a constant rate. warmup: share of t_total, -1 for none.
    Gradients are clipped by the caller, or by step's `divisor`.
    """

    def __init__(self, params, lr, warmup=-1, t_total=-1, schedule='warmup_linear', b1=0.9, b2=0.999, e=1e-6,
                 weight_decay=0.01):
        if schedule not in SCHEDULES:
            raise ValueError(f'schedule {schedule!r}: expected one of {", ".join(SCHEDULES)}')
        if lr < 0 or e < 0 or not (0 <= warmup < 1 or warmup == -1) or not (0 <= b1 < 1 and 0 <= b2 < 1):
            raise ValueError(f'expected lr, e >= 0, warmup in [0, 1) or -1, b1, b2 in [0, 1); '
                             f'found lr {lr}, e {e}, warmup {warmup}, b1 {b1}, b2 {b2}')
        super().__init__(params, {'lr': lr, 'warmup': warmup, 't_total': t_total, 'schedule': schedule, 'b1': b1,
                                  'b2': b2, 'e': e, 'weight_decay': weight_decay})

    def rate(self, group, step):
        """The learning rate of a parameter group at a step (counted from 0)."""
        if group['t_total'] == -1:
            return group['lr']
        return group['lr'] * SCHEDULES[group['schedule']](step / group['t_total'], group['warmup'])

    def _update(self, group, step, params, divisor, skip):
        self._fused(params, divisor, skip, self.rate(group, step), (group['b1'], group['b2']), group['e'], group['weight_decay'])


class AdamW(DeviceAdam):
    """As in the original code of VL-BERT, at step n = 1, 2, ... of a parameter:

        p -= lr * sqrt(1 - beta2^n) / (1 - beta1^n) * m / (sqrt(v) + eps), then p -= lr * weight_decay * p

    for every parameter, biases and layer norms included. Unlike in PyTorch's AdamW, eps is added to the root of the uncorrected
    second moment, and the decay is last. The caller sets `lr` of the groups before each step.
    """

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-4):
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f'expected lr, eps, weight_decay >= 0, betas in [0, 1); found lr {lr}, eps {eps}, weight_decay '
                             f'{weight_decay}, betas {betas}')
        super().__init__(params, {'lr': lr, 'betas': tuple(betas), 'eps': eps, 'weight_decay': weight_decay})

    def _update(self, group, step, params, divisor, skip):
        (beta1, beta2), lr = group['betas'], group['lr']
        correction = math.sqrt(1 - beta2 ** (step + 1)) / (1 - beta1 ** (step + 1))
        self._fused(params, divisor, skip, lr * correction, group['betas'], group['eps'], 0.0)
        if share := lr * group['weight_decay']:
            share = torch.full((), share, dtype=params[0].dtype, device=params[0].device)
            share = share if skip is None else share * (1 - skip)
            # Not p *= 1 - share, which float32 rounds to 1 at most published rates.
            torch._foreach_addcmul_(params, params, [share] * len(params), value=-1)


def load_averages(optimizer, state, steps):
    """Fills an optimizer with the averages and step counts of its saved state dict. Groups and their options stay as they are.

    steps: that the run has done. Raises WeightsError that names the entry, before anything is changed, if the state is not of
    this optimizer and its parameters: fused kernels read and write beyond averages of another size.
    """
    local = optimizer.state_dict()
    if not isinstance(state, dict) or state.keys() != local.keys() or not isinstance(state['state'], dict):
        raise WeightsError('expected the keys state and param_groups')
    # t_total follows --epochs and --batchSize, which may change; so does the share of it that a warm-up of some steps is; whether
    # a step is fused follows the device. With a Schedule lr is set before each step.
    changing = {'t_total', 'warmup', 'fused'}
    expected = [{name: value for name, value in group.items() if name not in changing and not (
        name == 'lr' and 'initial_lr' in group)} for group in local['param_groups']]
    if reason := why_not_like(state['param_groups'], expected, 'param_groups', may_lack=True):
        raise WeightsError(reason)
    parameters = dict(zip((i for group in local['param_groups'] for i in group['params']),
                          (p for group in optimizer.param_groups for p in group['params']), strict=True))
    kind, names = BertAdam if isinstance(optimizer, BertAdam) else type(optimizer), {}
    momentum = optimizer.defaults.get('momentum')
    for i, entries in state['state'].items():
        if i not in parameters or not isinstance(entries, dict):
            raise WeightsError(f'state.{i}: there are {len(parameters)} parameters')
        names = names or _state_of_one(kind, momentum)
        entries = {name: value for name, value in entries.items() if value is not None}  # of SGD in older versions of PyTorch
        expected = {name: value if name == 'step' else torch.empty_like(parameters[i], device='meta') for name, value in
                    names.items()}
        if reason := (entries or momentum) and why_not_like(entries, expected, f'state.{i}'):
            raise WeightsError(reason)
        for name in SQUARES:
            if name in entries and entries[name].numel() and entries[name].min() < 0:
                raise WeightsError(f'state.{i}.{name}: expected squares, found numbers below 0')
        if 'step' in entries and (not 0 <= entries['step'] <= steps or int(entries['step']) != entries['step']):
            raise WeightsError(f'state.{i}.step: expected a step from 0 to {steps}, found {float(entries["step"])}')
    optimizer.load_state_dict({'state': state['state'], 'param_groups': local['param_groups']})


def _state_of_one(kind, momentum=None):
    """The state that an optimizer class keeps of a parameter, with its step count, after a step."""
    p = torch.nn.Parameter(torch.zeros(1))
    p.grad = torch.zeros(1)
    optimizer = kind([p], lr=0.1, **({'momentum': momentum} if momentum else {}))
    optimizer.step()
    return optimizer.state_dict()['state'].get(0, {})
