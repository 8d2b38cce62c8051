"""The optimizer of a run, its learning rate, gradient clipping and loss scaling."""

import torch

from bert.optimization import SCHEDULES, AdamW, BertAdam, DeviceAdam, Schedule, eager, load_averages
from bert.speed import ApexAdam
from bert.weights import WeightsError
from files.text import shown

OPTIMIZERS = {'bert': BertAdam, 'adamw': AdamW, 'adamw_pytorch': eager(torch.optim.AdamW), 'momentum': eager(torch.optim.SGD),
              'rms': eager(torch.optim.RMSprop), 'adam': eager(torch.optim.Adam), 'adamax': eager(torch.optim.Adamax),
              'sgd': eager(torch.optim.SGD)}
# Device types on which these of PyTorch's optimizers take a fused step, which the device skips where a gradient is not finite. On
# a CPU nobody waits, and results are those of the step that is not fused.
FUSED_STEP = {'cuda'}
FUSABLE = ('adamw_pytorch', 'adam', 'momentum', 'sgd')


def schedule_name(recipe, options):
    """The schedule of a run: --schedule, else the recipe's, else the one of the optimizer that is most like it, for other
    optimizers than bert the constant rate of LXMERT's code. Raises ValueError."""
    names = tuple(SCHEDULES) if options.optim == 'bert' else Schedule.NAMES
    if options.schedule and options.schedule not in names:
        raise ValueError(f'--schedule {options.schedule}: --optim {options.optim} has {", ".join(names)}; give one of these')
    name = options.schedule or recipe.schedule
    if name == 'plateau' and not options.valid:
        raise ValueError('--schedule plateau: follows the validation score; name a split with --valid, or give another schedule')
    if name in names:
        return name
    return 'warmup_linear' if options.optim == 'bert' else 'constant'


def warmup_steps(recipe, total_steps, schedule=None):
    """The length of the warm-up of a schedule. Only a share of the steps may be a fraction."""
    if schedule == 'epochs':  # whose warm-up may be cut off
        return int(recipe.warmup * total_steps) if recipe.warmup < 1 else recipe.warmup
    return recipe.warmup * total_steps if recipe.warmup < 1 else min(recipe.warmup, total_steps // 10)


def bert_schedule(recipe, total_steps):
    """What BertAdam's rate depends on, for its groups."""
    share = recipe.warmup if recipe.warmup < 1 else warmup_steps(recipe, total_steps) / total_steps
    return {'t_total': total_steps, 'warmup': share}


def make_optimizer(groups, recipe, options, total_steps):
    """The optimizer of the options. BertAdam has its schedule in itself."""
    more = {} if recipe.weight_decay is None else {'weight_decay': recipe.weight_decay}
    if options.optim == 'bert':
        more |= {'schedule': schedule_name(recipe, options), **bert_schedule(recipe, total_steps)}
    if options.optim == 'momentum':
        more['momentum'] = recipe.momentum
    return (ApexAdam if options.apex else OPTIMIZERS[options.optim])(groups, lr=options.lr, **more)


def make_schedule(recipe, options, total_steps, epochs):
    """The Schedule of another optimizer."""
    milestones = [int(epoch * (total_steps // epochs)) for epoch in recipe.milestones or (0.7 * epochs, 0.9 * epochs)]
    name = schedule_name(recipe, options)
    start, least = (recipe.warmup_lr / options.lr, recipe.min_lr / options.lr) if name == 'epochs' else (recipe.warmup_from, 0.0)
    return Schedule(name, total_steps, warmup_steps(recipe, total_steps, name), milestones, start, least, epochs)


class OptimizerStep:
    """Backward pass, gradient clipping and optimizer step; with --fp16 also loss scaling."""

    def __init__(self, head, options, total_steps, device):
        groups = [group | {'params': [p for p in group['params'] if p.requires_grad]} for group in head.groups(options)]
        self.parameters, self.clip = [p for group in groups for p in group['params']], head.recipe.clip
        self.optimizer = make_optimizer(groups, head.recipe, options, total_steps)
        self.fused = device.type in FUSED_STEP and options.optim in FUSABLE
        if self.fused:
            for group in self.optimizer.param_groups:
                group['fused'] = True
        self.recipe, self.options, self.schedule = head.recipe, options, None
        if not isinstance(self.optimizer, BertAdam):
            self.schedule = make_schedule(head.recipe, options, total_steps, options.epochs)
            for group in self.optimizer.param_groups if self.schedule.name != 'constant' else ():
                group['initial_lr'] = group['lr']
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.fp16)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def rate(self, step, total_steps, epochs):
        """The learning rate after so many steps, in a run of that length, which may be another one than that of the options."""
        group = self.optimizer.param_groups[0]
        if self.schedule is None:
            return self.optimizer.rate(group | bert_schedule(self.recipe, total_steps), step) + 0.0  # not -0
        schedule = make_schedule(self.recipe, self.options, total_steps, epochs)
        schedule.plateau = self.schedule.plateau
        return group.get('initial_lr', group['lr']) * schedule.share(step + 1)

    def __call__(self, step=0):
        """Updates the weights unless a gradient is not finite. Returns whether all gradients are finite: a 0-d bool tensor.

        step: that the run has done."""
        for group in self.optimizer.param_groups:
            if 'initial_lr' in group:
                group['lr'] = group['initial_lr'] * self.schedule.share(step + 1)
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        finite = torch.isfinite(norm)
        if isinstance(self.optimizer, DeviceAdam) or self.fused:  # clips and skips on the device
            divisor, skip = ((norm + 1e-6) / self.clip).clamp(min=1.0), (~finite).float()  # the divisor is clip_grad_norm_'s
            if self.fused:
                self.start_momentum()
                self.optimizer.grad_scale, self.optimizer.found_inf = divisor, skip
                self.optimizer.step()
            else:
                self.optimizer.step(divisor=divisor, skip=skip)
        elif finite:  # synchronizes with the device
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
            self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        return finite

    def start_momentum(self):
        """Starts the averages of SGD at 0, after which its first step is the same: PyTorch's fused first step would leave them
        uninitialised if it is skipped."""
        for group in self.optimizer.param_groups:
            for p in group['params'] if group.get('momentum') else ():
                if p.grad is not None and not self.optimizer.state[p]:
                    self.optimizer.state[p]['momentum_buffer'] = torch.zeros_like(p)

    def state_dict(self):
        schedule = self.schedule.state_dict() if self.schedule else {}
        return {'optimizer': self.optimizer.state_dict(), 'scaler': self.scaler.state_dict(),
                **({'schedule': schedule} if schedule else {})}

    def load_state_dict(self, state, steps):
        """Loads the state of a run that has done so many steps. Raises WeightsError that names the key, if it does not fit."""
        scaler, expected = state.get('scaler', {}), self.scaler.state_dict()  # states written before --fp16 existed have none
        if scaler.keys() != expected.keys() or not all(
                type(value) is type(expected[name]) and 0 <= value < float('inf') for name, value in scaler.items()):
            raise WeightsError(f'key scaler: expected numbers for {", ".join(expected) or "nothing"}, found {shown(scaler)}')
        try:
            load_averages(self.optimizer, state['optimizer'], steps)
        except WeightsError as error:
            raise WeightsError(f'key optimizer.{error}') from None
        if self.schedule:
            self.schedule.load_state_dict(state.get('schedule', {}))
        self.scaler.load_state_dict(scaler)
