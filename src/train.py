"""The one loop. A task gives it a model, datasets, losses and a score; it knows none by name.

A task has `model`, `warmup`, `clip`, the names of its snapshots, and

    counts(parts) -> {loss: what it is a mean over, in these parts of a step}
    losses(model, batch, counts) -> ({loss: the part's share of the step's}, {what else is summed over an epoch: number})
    report(sums) -> (text, {name: number}) of an epoch of training
    validate(dataset, options, device) -> (score, text, {name: number}); the best score is the highest
    shown(score) -> text
"""

import contextlib
import signal
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import dist
from bert.optimization import BertAdam
from bert.speed import ApexAdam
from bert.weights import fill
from run_folder import Progress

REPORT_STEPS = 20  # steps between two of the losses that are shown and written as events
BAD_STEPS = 10  # steps in a row with a gradient that is not finite, after which a run stops

OPTIMIZERS = {'rms': torch.optim.RMSprop, 'adam': torch.optim.Adam, 'adamax': torch.optim.Adamax, 'sgd': torch.optim.SGD}


def make_optimizer(parameters, options, total_steps, warmup):
    """BertAdam with its schedule, or one of PyTorch's at a constant rate (as in the original code)."""
    if options.apex:
        return ApexAdam(list(parameters), lr=options.lr, warmup=warmup, t_total=total_steps)
    if options.optim == 'bert':
        return BertAdam(list(parameters), lr=options.lr, warmup=warmup, t_total=total_steps)
    return OPTIMIZERS[options.optim](list(parameters), lr=options.lr)


class Update:
    """From a loss to new weights: gradients, their norm clipped, the optimizer; with --fp16 losses are scaled up for the way."""

    def __init__(self, parameters, options, total_steps, task, device):
        self.parameters, self.clip = list(parameters), task.clip
        self.optimizer = make_optimizer(self.parameters, options, total_steps, task.warmup)
        self.scaler = torch.amp.GradScaler(device.type, enabled=options.fp16)

    def backward(self, loss):
        self.scaler.scale(loss).backward()

    def __call__(self):
        """Takes the step, unless a gradient is not finite. Returns whether it did, a bool scalar on the device."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        finite, divisor = torch.isfinite(norm), ((norm + 1e-6) / self.clip).clamp(min=1.0)  # as torch.nn.utils.clip_grad_norm_
        if isinstance(self.optimizer, BertAdam):
            self.optimizer.step(divisor=divisor, skip=(~finite).float())
        elif finite:  # which waits for the device
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
            self.optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        return finite

    def state_dict(self):
        return {'optimizer': self.optimizer.state_dict(), 'scaler': self.scaler.state_dict()}

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state['optimizer'])
        self.scaler.load_state_dict(state.get('scaler', {}))  # states older than --fp16 have none


class Told:
    """What steps tell the host, tensors on the device. On a GPU a step's are read when the next one is under way, so that the
    host has not to wait for the device."""

    def __init__(self, device):
        self.late, self.waiting = int(device.type == 'cuda'), []

    def put(self, step, *tensors):
        """What a step has found; the values may not be there yet."""
        copies, done = [tensor.to('cpu', non_blocking=True) for tensor in tensors], None
        if self.late:
            done = torch.cuda.Event()
            done.record()
        self.waiting.append((step, copies, done))

    def take(self, everything=False):
        """(step, what it has found, on the CPU) of those that are due, or of all that are waiting."""
        while len(self.waiting) > (0 if everything else self.late):
            step, copies, done = self.waiting.pop(0)
            if done:
                done.synchronize()
            yield step, copies


def seed_step(device, *key):
    """Makes what is drawn next a function of the key (seed, step, rank, part) alone, so that a resumed run goes on as
    if it had never stopped."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for devices, a millisecond a step
    if device.type == 'cuda':
        torch.cuda.manual_seed(seed)


class Part(NamedTuple):
    """What a dataset makes a batch of. Whatever it draws is a function of the seed, the epoch and an example's position in it,
    so that it does not depend on the number of processes, nor on where a run was resumed."""

    indices: np.ndarray  # of examples, in the order of the epoch
    first: int  # position in the epoch of the first of them; the others follow
    epoch: int | None = None  # None: validation and testing, which draw the same each time
    whole: bool = False  # sentences and regions as many as the data allows, not as this batch needs: always of one shape


class Stopped(Exception):
    """SIGTERM came; the run state is saved."""


class Terminations:
    """While it is entered: whether SIGTERM has come to this process, which then ends at the next step, not at once."""

    def __enter__(self):
        self.came = False
        self.before = signal.signal(signal.SIGTERM, self.note)
        return self

    def note(self, *_):
        self.came = True

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self.before)


@contextlib.contextmanager
def sigterm_held():
    """SIGTERM reaches this process when it is left, and never a process started in it. Schedulers signal all processes of a run:
    those that prepare batches must last until it has saved its state, and from their very start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def steps_per_epoch(examples, batch_size):
    """The last incomplete batch is dropped, unless it is the only one (as in the original code)."""
    return max(examples // batch_size, 1)


def training_parts(examples, epoch, first_step, options):
    """This rank's Parts of an epoch's steps, in order; --accumulate of them make one step."""
    order = np.random.default_rng([options.seed, epoch]).permutation(examples)
    for step in range(first_step, steps_per_epoch(examples, options.batchSize)):
        start = step * options.batchSize
        batch = order[start:start + options.batchSize]
        parts = np.array_split(np.arange(len(batch)), dist.world_size() * options.accumulate)
        for part in parts[dist.rank()::dist.world_size()]:
            yield Part(batch[part], start + int(part[0]), epoch, options.compile)


def evaluation_parts(examples, options):
    """The Parts of one pass over all examples, in their order; every rank evaluates its share of them."""
    size = options.evalBatchSize or options.batchSize
    return [Part(np.arange(start, min(start + size, examples)), start, None, options.compile)
            for start in range(0, examples, size)]


def batches(dataset, parts, options, device):
    """The dataset's batches (dicts of tensors) for some Parts, on the device, where it finishes them."""
    pin = device.type == 'cuda'
    with sigterm_held():
        loaded = iter(DataLoader(dataset, sampler=parts, batch_size=None, num_workers=options.numWorkers, pin_memory=pin))
    for batch in loaded:
        if options.compile:
            torch.compiler.cudagraph_mark_step_begin()  # what the last batch came to may be overwritten
        yield dataset.finish({name: value.to(device, non_blocking=pin) for name, value in batch.items()})


def autocast(options, device):
    return torch.autocast(device.type, torch.float16 if options.fp16 else torch.bfloat16, enabled=options.bf16 or options.fp16)


def progress_bar(total, start, text, options):
    hidden = True if not dist.is_main() else False if options.tqdm else None  # None: where the output is no terminal
    return tqdm(total=total, initial=start, desc=text, unit='step', disable=hidden, leave=False)


def train_step(task, model, update, parts, options, step, device, came=False):
    """One optimizer step over this rank's parts of a batch; came: whether SIGTERM has come to this rank.

    Returns ({name: this rank's share of what an epoch sums up}, whether all gradients were finite, whether SIGTERM came to any
    rank): all scalars on the device, for which nothing has waited.
    """
    counts = task.counts(parts)
    # Every loss is a mean over the whole batch; and all ranks must stop at the same step.
    whole = dist.sum_over_ranks(torch.stack([*counts.values(), torch.full((), float(came), device=device)]))
    counts = dict(zip(counts, whole, strict=False))
    update.optimizer.zero_grad(set_to_none=True)
    sums = {}
    for i, batch in enumerate(parts):
        seed_step(device, options.seed, step, dist.rank(), i)
        last = i == len(parts) - 1
        with contextlib.nullcontext() if last or dist.world_size() == 1 else model.no_sync():
            with autocast(options, device):
                losses, tallies = task.losses(model, batch, counts)
            # DistributedDataParallel averages gradients; the whole batch's gradient is their sum.
            update.backward(sum(losses.values()) * dist.world_size())
        losses = {f'loss/{name}': loss.detach() for name, loss in losses.items()}
        for name, value in (losses | tallies).items():
            sums[name] = sums.get(name, 0.0) + value
    return sums, update(), whole[-1] > 0


def train_epoch(task, model, update, train_set, options, progress, folder, device, terminations):
    """Runs the rest of one epoch, keeping progress up to date. Returns its sums over all ranks, by name."""
    model.train()
    sums, told = progress.sums, Told(device)
    bar = progress_bar(progress.steps_per_epoch, progress.step, f'Epoch {progress.epoch}', options)
    parts = list(training_parts(len(train_set), progress.epoch, progress.step, options))
    loaded = batches(train_set, parts, options, device)

    def listen(everything):
        """Counts and shows what steps told. Returns whether SIGTERM came to any rank."""
        came = False
        for at, (finite, stop, *loss) in told.take(everything):
            count_skipped(progress, folder, bool(finite), at)
            came |= bool(stop)
            for value in map(float, loss):
                bar.set_postfix_str(f'loss {value:.3f}')
                folder.scalars({'train/loss': value}, progress.total_steps - progress.step + at)
        return came

    while progress.step < progress.steps_per_epoch:
        step = [next(loaded) for _ in range(options.accumulate)]
        found, finite, stopping = train_step(task, model, update, step, options, progress.total_steps, device, terminations.came)
        progress.step += 1
        for name, value in {**found, 'steps': 1.0 / dist.world_size()}.items():
            value = value.double().where(finite, 0.0) if isinstance(value, torch.Tensor) else finite.double() * value
            sums[name] = sums.get(name, 0.0) + value
        loss = [sum(value for name, value in found.items() if name.startswith('loss/'))]
        told.put(progress.step, finite, stopping, *map(dist.sum_over_ranks, loss if progress.step % REPORT_STEPS == 0 else ()))
        bar.update()
        last = progress.step == progress.steps_per_epoch
        due = options.saveSteps and progress.step % options.saveSteps == 0 and not last
        stop = listen(everything=due or last)
        if stop or due:
            listen(everything=True)
            progress.sums = sums = {name: float(value) for name, value in sums.items()}
            folder.save_state(options, progress, task.model, update)
        if stop:
            raise Stopped(f'SIGTERM: stopped after step {progress.step} of epoch {progress.epoch}, all saved; the same command '
                          'with --resume goes on')
    bar.close()
    return sum_by_name(sums)


def sum_by_name(sums):
    """{name: sum over all ranks} of every rank's {name: number or tensor}."""
    by_rank = dist.gather({name: float(value) for name, value in sums.items()})
    return {name: sum(part.get(name, 0.0) for part in by_rank) for name in dict.fromkeys(key for part in by_rank for key in part)}


def count_skipped(progress, folder, finite, step):
    """Counts a step of the epoch whose gradient was not finite; too many in a row end the run (FloatingPointError)."""
    if finite:
        progress.skipped_in_a_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row == BAD_STEPS:
        saved = folder.path / 'RUN_STATE.pth'
        raise FloatingPointError(
            f'{BAD_STEPS} steps in a row had a gradient that is not finite, the last of them step {step} of epoch '
            f'{progress.epoch}; lower --lr, or leave out --bf16 or --fp16; '
            + (f'the last good state is in {saved}' if saved.exists() else 'no state had been saved yet'))


@torch.no_grad()
def say_if_blind(task, dataset, options, device):
    """Says so if the task's `logits` of a batch are the same for all its examples, whatever they are: the model does not read
    them. Of a batch of the dataset, after weights were loaded."""
    task.model.eval()
    for batch in batches(dataset, evaluation_parts(len(dataset), options)[:1], options, device):
        logits = task.logits(task.model, batch)
        if len(logits) > 1 and (logits - logits[0]).abs().max() <= 1e-6 * logits.abs().max():
            dist.print0(f'Attention: with these weights the model gives the same scores to all of the first {len(logits)} '
                        'examples: it does not read them. An answer head of zeros does so until it is trained; an encoder '
                        'should not.')


@torch.no_grad()
def evaluate(task, dataset, options, device, text='Evaluating'):
    """The task's predictions for a whole dataset, in its order, the same on every rank: a tuple of numpy (n, ...), an array
    for each tensor that the task predicts for a batch."""
    model = task.model.eval()
    chunks = evaluation_parts(len(dataset), options)
    own = chunks[dist.rank()::dist.world_size()]
    found, starts, told = None, np.cumsum([0, *(len(part.indices) for part in own)]), Told(device)
    bar = progress_bar(len(own), 0, text, options)
    for number, batch in enumerate(batches(dataset, own, options, device)):
        with autocast(options, device):
            told.put(number, *task.predict(model, batch))
        for at, tensors in told.take(everything=number == len(own) - 1):
            predictions = [tensor.numpy() for tensor in tensors]
            if found is None:
                # In one piece: small arrays that stay among large ones that go would keep the heap from being used again.
                found = [np.empty((starts[-1], *array.shape[1:]), array.dtype) for array in predictions]
            for whole, array in zip(found, predictions, strict=True):
                whole[starts[at]:starts[at + 1]] = array
            bar.update()
    bar.close()
    if dist.world_size() == 1:
        return tuple(found)
    order = [part.indices for rank in range(dist.world_size()) for part in chunks[rank::dist.world_size()]]
    place = np.argsort(np.concatenate(order))
    by_rank = [part for part in dist.gather(found) if part is not None]  # with few chunks a rank may have had none
    return tuple(np.concatenate(arrays)[place] for arrays in zip(*by_rank, strict=True))


@torch.no_grad()
def evaluate_losses(task, dataset, options, device, text='Validating'):
    """({loss: its mean over a whole dataset}, {what else the task sums up: its sum}), the same on every rank."""
    model, sums = task.model.eval(), {}
    own = evaluation_parts(len(dataset), options)[dist.rank()::dist.world_size()]
    bar = progress_bar(len(own), 0, text, options)
    for batch in batches(dataset, own, options, device):
        counts = task.counts([batch])
        with autocast(options, device):
            losses, tallies = task.losses(model, batch, dict.fromkeys(counts, torch.ones((), device=device)))
        found = tallies | {f'loss/{name}': value for name, value in losses.items()}
        for name, value in (found | {f'count/{name}': value for name, value in counts.items()}).items():
            sums[name] = sums.get(name, 0.0) + torch.as_tensor(value).double()
        bar.update()
    bar.close()
    sums = sum_by_name(sums)
    losses = {name.removeprefix('loss/'): value for name, value in sums.items() if name.startswith('loss/')}
    return {name: value / max(sums[f'count/{name}'], 1) for name, value in losses.items()}, sums


def fit(task, train_set, valid_set, options, folder, state, device):
    """Trains task.model for --epochs passes, validating after each, from the start or from a saved run state.

    Writes the task's snapshots (the best by validation score, and one after each epoch), log.log, TensorBoard events and the run
    state to `folder`. A kill at any moment loses nothing but the work since the last state: each file is whole, and what was
    written after that state is written again with the same bits. SIGTERM saves the state after the step that is under way (on a
    GPU the next), or after the first step that follows a validation, and raises Stopped.
    """
    progress = Progress(steps_per_epoch=steps_per_epoch(len(train_set), options.batchSize), data=train_set.digest())
    update = Update(task.model.parameters(), options, progress.steps_per_epoch * options.epochs, task, device)
    if state is not None:
        progress = resume(state, task.model, update, folder)
    model = task.model
    if dist.world_size() > 1:
        model = DistributedDataParallel(model, find_unused_parameters=True)
    with Terminations() as terminations:
        while progress.epoch < options.epochs:
            sums = train_epoch(task, model, update, train_set, options, progress, folder, device, terminations)
            finish_epoch(task, valid_set, sums, options, progress, folder, device)
            folder.save_state(options, progress, task.model, update)


def finish_epoch(task, valid_set, sums, options, progress, folder, device):
    """Validates, logs and writes the snapshots of an epoch that has been trained. sums: what train_epoch returned."""
    epoch, (text, scalars) = progress.epoch, task.report(sums)
    lines, scalars = [f'Epoch {epoch}: Train {text}'], {f'train/{name}': value for name, value in scalars.items()}
    if valid_set is not None:
        score, text, valid = task.validate(valid_set, options, device)
        scalars |= {f'valid/{name}': value for name, value in valid.items()}
        if score > progress.best:
            progress.best = score
            folder.save_snapshot(task.best_name, task.model)
        lines += [f'Epoch {epoch}: Valid {text}', f'Epoch {epoch}: Best {task.shown(progress.best)}']
    if progress.skipped:
        lines.append(f'Epoch {epoch}: {progress.skipped} steps skipped so far: their gradients were not finite')
    progress.epoch, progress.step, progress.sums = epoch + 1, 0, {}
    folder.scalars(scalars, progress.total_steps)
    folder.log(*lines)
    folder.save_snapshot(task.epoch_name.format(epoch + 1), task.model)


def resume(state, model, update, folder):
    """Puts a saved run state into the model and its Update and returns its Progress."""
    progress = Progress(**state['progress'])
    dist.print0(fill(model, state['model'], f'the run state in {folder.path}'))
    update.load_state_dict(state)
    state.clear()  # the largest thing in memory, no longer needed
    if not dist.is_main():
        progress.sums = dict.fromkeys(progress.sums, 0.0)  # the saved sums are those of all ranks
    dist.print0(f'Going on with epoch {progress.epoch}, step {progress.step} of {progress.steps_per_epoch}.')
    return progress
