"""The training loop: steps, accumulation, processes, validation, resume. It names no model and no task.

The model is a heads.Head. A task (tasks/task.py) has the attributes `kind`, `best_name` and `epoch_name` (of snapshots), and

    report(sums) -> (text, {name: number}): the metrics of a training epoch
    validate(head, dataset, options, device) -> (score, text, {name: number}); a higher score is better
    format_score(score) -> text
"""

import contextlib
import itertools
import signal

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import dist
from batches import evaluation_batches, load_batches, steps_per_epoch, training_batches
from bert.weights import WeightsError, why_not_like
from cli import handle_termination
from files.json_files import some
from files.progress import ProgressBar
from optimizer import OptimizerStep
from run_state import STATE, Progress

REPORT_STEPS = 20  # log the loss every so many steps
FIRST_REPORTS = (1, 2, 5, 10)  # steps after which the progress line shows it too
ESTIMATE_STEPS = 10  # from which the time of an epoch is expected
MAX_SKIPPED = 10  # stop after so many consecutive steps with a non-finite gradient


class DeferredMetrics:
    """Copies tensors to the CPU asynchronously and, on a GPU, reads them one step late, so that the CPU never waits for it."""

    def __init__(self, device):
        self.delay, self.pending = int(device.type == 'cuda'), []

    def push(self, step, *tensors):
        """Starts copying the tensors of a step to the CPU."""
        copies, event = [tensor.to('cpu', non_blocking=True) for tensor in tensors], None
        if self.delay:
            event = torch.cuda.Event()
            event.record()
        self.pending.append((step, copies, event))

    def pop_ready(self, flush=False):
        """Yields (step, tensors on the CPU) for the steps whose delay has passed; with flush, for all pending steps."""
        while len(self.pending) > (0 if flush else self.delay):
            step, copies, event = self.pending.pop(0)
            if event:
                event.synchronize()
            yield step, copies


def seed_step(device, *key):
    """Seeds PyTorch. key: seed, step, rank, micro-batch. A resumed run therefore draws the same random numbers."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also queries the devices: 1 ms per step
    if device.type == 'cuda':
        torch.cuda.manual_seed(seed)


class Interrupted(Exception):
    """Training stopped on SIGTERM or SIGHUP after the run state was saved."""


class SigtermHandler:
    """Context manager that records SIGTERM or SIGHUP in `received`, its name; the training loop then stops after the step."""

    def __enter__(self):
        self.received = ''
        self.handling = handle_termination(self.handle)
        self.handling.__enter__()
        return self

    def handle(self, number, _):
        self.received = signal.Signals(number).name

    def __exit__(self, *error):
        self.handling.__exit__(*error)


def autocast(options, device):
    return torch.autocast(device.type, torch.float16 if options.fp16 else torch.bfloat16, enabled=options.bf16 or options.fp16)


def progress_bar(total, start, text, options, batch):
    """A bar of steps, each of so many examples over all processes."""
    return ProgressBar(total=total, initial=start, desc=text, unit='steps', shown=dist.is_main(), force=options.tqdm,
                       per_step=batch, rate_unit='examples', leave=False)


def train_step(model, optimizer_step, batches, options, progress, device, sigterm=False):
    """One optimizer step over this rank's micro-batches. model: a Head, possibly wrapped in DistributedDataParallel; progress:
    before the step; sigterm: whether this rank received SIGTERM.

    Returns ({name: this rank's part of the losses and metrics}, whether all gradients were finite, whether any rank received
    SIGTERM) as 0-d tensors on the device, without synchronizing.
    """
    head, step = unwrap(model), progress.total_steps
    head.steps_per_epoch = progress.steps_per_epoch
    head.begin_step(step, progress.steps_per_epoch * options.epochs)
    seed_step(device, options.seed, step, dist.rank(), len(batches))  # of momentum models with dropout
    with autocast(options, device):
        counts = head.counts(batches)
    # One all-reduce for two purposes: each loss is a mean over the global batch, and all ranks stop at the same step.
    totals = dist.sum_over_ranks(torch.stack([*counts.values(), torch.full((), float(sigterm), device=device)]))
    counts = dict(zip(counts, totals, strict=False))
    optimizer_step.optimizer.zero_grad(set_to_none=True)
    sums = {}
    for i, batch in enumerate(batches):
        seed_step(device, options.seed, step, dist.rank(), i)
        last = i == len(batches) - 1
        with contextlib.nullcontext() if last or dist.world_size() == 1 else model.no_sync():
            with autocast(options, device):
                losses, metrics = model(batch, counts)
            # DistributedDataParallel averages gradients over ranks; the gradient of the global batch is their sum.
            optimizer_step.backward(sum(losses.values()) * dist.world_size())
        losses = {f'loss/{name}': loss.detach() for name, loss in losses.items()}
        for name, value in (losses | metrics).items():
            sums[name] = sums.get(name, 0.0) + value
    return sums, optimizer_step(step), totals[-1] > 0


def unwrap(model):
    return model.module if isinstance(model, DistributedDataParallel) else model


def train_epoch(model, optimizer_step, train_set, options, progress, folder, device, sigterm, estimate=False):
    """Trains until the end of the current epoch and updates progress. Returns {name: sum of a loss or metric over all ranks}.

    estimate: whether to print the expected time of an epoch after the first steps.
    """
    model.train()
    sums, deferred = progress.sums, DeferredMetrics(device)
    first = progress.step
    micro_batches = list(training_batches(len(train_set), progress.epoch, first, options, train_set.groups()))
    batches = load_batches(train_set, micro_batches, options, device)

    def read_metrics(flush):
        """Counts skipped steps and logs losses, once they are on the CPU. Returns whether any rank received SIGTERM."""
        stop = False
        for step, (finite, stopping, *loss) in deferred.pop_ready(flush):
            if not finite:
                parts = micro_batches[(step - first - 1) * options.accumulate:(step - first) * options.accumulate]
                name_nonfinite(train_set, np.concatenate([part.indices for part in parts]), step, progress)
            count_skipped(progress, folder, bool(finite), step)
            stop |= bool(stopping)
            for value, *parts in (values.tolist() for values in loss):
                names = [name.removeprefix('loss/') for name in metrics if name.startswith('loss/')]
                details = ', '.join(f'{name} {part:.3f}' for name, part in zip(names, parts, strict=True))
                bar.set_postfix_str(f'loss {value:.3f}' + (f' ({details})' if len(parts) > 1 else ''))
                if step % REPORT_STEPS == 0:
                    folder.scalars({'train/loss': value}, progress.total_steps - progress.step + step)
        return stop

    batch = min(options.batchSize, len(train_set))
    with progress_bar(progress.steps_per_epoch, progress.step, f'Epoch {progress.epoch}', options, batch) as bar:
        while progress.step < progress.steps_per_epoch:
            step = [next(batches) for _ in range(options.accumulate)]
            metrics, finite, stopping = train_step(model, optimizer_step, step, options, progress, device, bool(sigterm.received))
            progress.step += 1
            for name, value in {**metrics, 'steps': 1.0 / dist.world_size()}.items():
                value = value.double().where(finite, 0.0) if isinstance(value, torch.Tensor) else finite.double() * value
                sums[name] = sums.get(name, 0.0) + value
            losses = [value for name, value in metrics.items() if name.startswith('loss/')]
            report = progress.step % REPORT_STEPS == 0 or progress.step in FIRST_REPORTS
            deferred.push(progress.step, finite, stopping,
                          *([dist.sum_over_ranks(torch.stack([sum(losses), *losses]))] if report else ()))
            bar.update()
            if estimate and progress.step - first == min(ESTIMATE_STEPS, progress.steps_per_epoch - first):
                bar.note_estimate(progress.steps_per_epoch, 'epoch')
            last = progress.step == progress.steps_per_epoch
            save = options.saveSteps and progress.step % options.saveSteps == 0 and not last
            stop = read_metrics(flush=save or last)
            if stop or save:
                read_metrics(flush=True)
                progress.sums = sums = {name: float(value) for name, value in sums.items()}
                folder.save_state(options, progress, unwrap(model), optimizer_step)
            if stop:
                raise Interrupted(f'{sigterm.received or "SIGTERM"}: stopped after step {progress.step} of epoch '
                                  f'{progress.epoch}, the run state is saved; repeat the command with --resume')
    sums = dist.sum_by_name(sums)
    if not sums['steps'] and progress.epoch == options.epochs - 1:  # fewer than MAX_SKIPPED; else those of the next epoch count
        raise FloatingPointError(_not_finite(f'all steps of epoch {progress.epoch}', folder))
    return sums


def name_nonfinite(dataset, indices, step, progress):
    """Prints which images of a skipped step have features that are not finite, if any. indices: this rank's examples."""
    if images := list(itertools.chain.from_iterable(dist.gather(dataset.nonfinite_images(indices)))):
        dist.print0(f'Step {step} of epoch {progress.epoch} is skipped: features of the images {some(images)} are NaN or '
                    'infinite; extract or fetch them again.')


def count_skipped(progress, folder, finite, step):
    """Counts a skipped step (non-finite gradient). Raises FloatingPointError after MAX_SKIPPED consecutive ones."""
    if finite:
        progress.skipped_in_a_row = 0
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row == MAX_SKIPPED:
        raise FloatingPointError(_not_finite(f'{MAX_SKIPPED} steps in a row, the last of them step {step} of epoch '
                                             f'{progress.epoch},', folder))


def _not_finite(steps, folder):
    saved = folder.path / STATE
    return (f'{steps} had a gradient that is not finite; lower --lr, or remove --bf16 or --fp16; '
            + (f'the last saved run state is {saved}' if saved.exists() else 'no run state was saved'))


@torch.no_grad()
def warn_constant_logits(head, dataset, options, device):
    """Warns if all examples of the first batch have the same logits: the loaded weights ignore the input."""
    head.eval()
    for batch in load_batches(dataset, evaluation_batches(len(dataset), options)[:1], options, device):
        logits = head.logits(batch)
        if len(logits) > 1 and (logits - logits[0]).abs().max() <= 1e-6 * logits.abs().max():
            dist.print0(f'Warning: with these weights the model gives the same scores to the first {len(logits)} examples: it '
                        'ignores its input. This is expected of an answer head that starts at zero, not of an encoder.')


@torch.no_grad()
def evaluate(head, dataset, options, device, text='Evaluating', k=1):
    """The k best predictions for every example, in dataset order, on every rank.

    Returns a tuple with a numpy array (n, ...) for each tensor (b, ...) that head.predict returns.
    """
    head.eval()
    micro_batches = evaluation_batches(len(dataset), options)
    local = micro_batches[dist.rank()::dist.world_size()]
    arrays, starts = None, np.cumsum([0, *(len(micro_batch.indices) for micro_batch in local)])
    deferred = DeferredMetrics(device)
    with progress_bar(len(local), 0, text, options, len(dataset) / len(micro_batches) * dist.world_size()) as bar:
        for number, batch in enumerate(load_batches(dataset, local, options, device)):
            with autocast(options, device), torch.set_grad_enabled(head.gradients_in_evaluation):
                deferred.push(number, *(tensor.detach() for tensor in head.predict(batch, k)))
            for ready, tensors in deferred.pop_ready(flush=number == len(local) - 1):
                predictions = [tensor.numpy() for tensor in tensors]
                if arrays is None:  # allocated once: many small arrays that outlive the large batches would fragment the heap
                    arrays = [np.empty((starts[-1], *rows.shape[1:]), rows.dtype) for rows in predictions]
                for array, rows in zip(arrays, predictions, strict=True):
                    array[starts[ready]:starts[ready + 1]] = rows
                bar.update()
    if dist.world_size() == 1:
        return tuple(arrays)
    ranks = range(dist.world_size())
    gathered = [micro_batch.indices for rank in ranks for micro_batch in micro_batches[rank::dist.world_size()]]
    order = np.argsort(np.concatenate(gathered))
    by_rank = [rank_arrays for rank_arrays in dist.gather(arrays) if rank_arrays is not None]  # None: a rank without a batch
    return tuple(np.concatenate(parts)[order] for parts in zip(*by_rank, strict=True))


@torch.no_grad()
def evaluate_losses(head, dataset, options, device, text='Validating'):
    """({loss: mean over the dataset}, {metric: sum over the dataset}), on every rank."""
    head.eval()
    sums = {}
    micro_batches = evaluation_batches(len(dataset), options)
    local = micro_batches[dist.rank()::dist.world_size()]
    with progress_bar(len(local), 0, text, options, len(dataset) / len(micro_batches) * dist.world_size()) as bar:
        for batch in load_batches(dataset, local, options, device):
            with autocast(options, device):
                counts = head.counts([batch])
                losses, metrics = head(batch, dict.fromkeys(counts, torch.ones((), device=device)))
            values = metrics | {f'loss/{name}': value for name, value in losses.items()}
            for name, value in (values | {f'count/{name}': value for name, value in counts.items()}).items():
                sums[name] = sums.get(name, 0.0) + torch.as_tensor(value).double()
            bar.update()
    sums = dist.sum_by_name(sums)
    losses = {name.removeprefix('loss/'): value for name, value in sums.items() if name.startswith('loss/')}
    return {name: value / max(sums[f'count/{name}'], 1) for name, value in losses.items()}, sums


def fit(task, head, train_set, valid_set, options, folder, progress, optimizer_step, device):
    """Trains a head for --epochs epochs and validates after each. progress, optimizer_step: of begin_or_resume.

    Writes snapshots (the best by validation score, and one after each epoch), log.log, TensorBoard events and the run state to
    `folder`. After a crash, training resumes from the last run state with bit-identical results. On SIGTERM or SIGHUP the
    loop saves the run state after the current step (on a GPU, the next one) and raises Interrupted; validation is finished first.
    """
    model = head
    if dist.world_size() > 1:
        # Buffers are the same on all ranks: a head gathers what its queues take.
        model = DistributedDataParallel(head, find_unused_parameters=True, broadcast_buffers=False)
    first = progress.epoch
    with SigtermHandler() as sigterm:
        while progress.epoch < options.epochs:
            sums = train_epoch(model, optimizer_step, train_set, options, progress, folder, device, sigterm,
                               estimate=progress.epoch == first)
            score = finish_epoch(task, head, valid_set, sums, options, progress, folder, device)
            if optimizer_step.schedule and score is not None:
                optimizer_step.schedule.validated(score)
            folder.save_state(options, progress, head, optimizer_step)


def finish_epoch(task, head, valid_set, sums, options, progress, folder, device):
    """Validates, writes the log and the snapshots of an epoch. sums: as train_epoch returns them. Returns the score or None."""
    score, epoch, (text, scalars) = None, progress.epoch, task.report(sums)
    lines, scalars = [f'Epoch {epoch}: Train {text}'], {f'train/{name}': value for name, value in scalars.items()}
    if valid_set is not None:
        score, text, valid = task.validate(head, valid_set, options, device)
        scalars |= {f'valid/{name}': value for name, value in valid.items()}
        if score > progress.best:
            progress.best = score
            folder.save_snapshot(task.best_name, head)
        lines += [f'Epoch {epoch}: Valid {text}', f'Epoch {epoch}: Best {task.format_score(progress.best)}']
    if progress.skipped:
        lines.append(f'Epoch {epoch}: {progress.skipped} steps skipped so far: their gradients were not finite')
    progress.epoch, progress.step, progress.sums = epoch + 1, 0, {}
    folder.scalars(scalars, progress.total_steps)
    folder.log(*lines)
    folder.save_snapshot(task.epoch_name.format(epoch + 1), head)
    return score


def begin_or_resume(state, head, train_set, data, options, folder, device):
    """(Progress, OptimizerStep) of a new run, or those of a saved run state, which also fills the head. Writes nothing.

    data: the training set's digest. Raises WeightsError that names file and key if the state does not fit the model or the data.
    """
    progress = Progress(steps_per_epoch=steps_per_epoch(len(train_set), options.batchSize), data=data)
    optimizer_step = OptimizerStep(head, options, progress.steps_per_epoch * options.epochs, device)
    if state is None:
        return progress, optimizer_step
    steps, progress, saved = progress.steps_per_epoch, Progress.from_dict(state['progress']), vars(options) | state['options']
    try:
        if progress.steps_per_epoch != (expected := steps_per_epoch(len(train_set), saved['batchSize'])):
            raise WeightsError(f'key progress.steps_per_epoch: expected {expected}, found {progress.steps_per_epoch}')
        model = {name: torch.empty_like(tensor, device='meta') for name, tensor in head.original_state().items()}
        if reason := why_not_like(state['model'], model, 'model') or why_not_like(
                state.get('extra', {}), head.extra_state(), 'extra', values=False):
            raise WeightsError(f'key {reason}')
        report = head.load_original(state['model'], f'the run state in {folder.path}')
        optimizer_step.load_state_dict(state, progress.total_steps)
    except WeightsError as error:
        fault = str(error).partition('\n')[0]  # without the report
        raise WeightsError(f'{folder.path / STATE}: the run state does not fit this model: {fault}; bring '
                           'back what the run was trained with, or start a new run in another --output') from None
    dist.print0(report)
    if 'extra' in state:
        head.load_extra_state(state['extra'])
    state.clear()  # frees the memory
    changes = change_schedule(progress, optimizer_step, saved, options, steps)
    if not dist.is_main():
        progress.sums = dict.fromkeys(progress.sums, 0.0)  # rank 0 continues with the saved sums of all ranks
    dist.print0(f'Resuming at epoch {progress.epoch}, step {progress.step} of {progress.steps_per_epoch}.', *changes)
    return progress, optimizer_step


def change_schedule(progress, optimizer_step, saved, options, steps):
    """Continues with another --epochs, --batchSize or --accumulate: changes the progress and the optimizer's step counts, so that
    the same share of the training is done as before. Returns lines that state the consequences.

    progress: as it was saved; saved: the options then, by name; steps: of an epoch now.
    """
    def rate():
        return optimizer_step.rate(progress.total_steps, progress.steps_per_epoch * epochs, epochs)

    epochs, lines = saved['epochs'], []
    before, done = rate(), progress.total_steps
    if saved['batchSize'] != options.batchSize:
        lines.append(f'  --batchSize {saved["batchSize"]} then, {options.batchSize} now: an epoch has {steps:,} steps instead of '
                     f'{progress.steps_per_epoch:,}; --lr stays {options.lr:g}.')
        # The order of an epoch depends on the seed only; up to a batch of its examples is seen twice.
        progress.step = min(progress.step * saved['batchSize'] // options.batchSize, steps)
        progress.steps_per_epoch = steps
        progress.skipped = min(progress.skipped, progress.total_steps)
        progress.skipped_in_a_row = min(progress.skipped_in_a_row, progress.skipped)
        for state in optimizer_step.optimizer.state.values():
            if 'step' in state:
                state['step'] = state['step'] * progress.total_steps // max(done, 1)
    if epochs != options.epochs:
        epochs = options.epochs
        lines.append(f'  --epochs {saved["epochs"]} then, {epochs} now: ' + (
            'the learning rate does not depend on it, so that only the length changes.'
            if optimizer_step.schedule and optimizer_step.schedule.name in ('constant', 'plateau') else
            f'the schedule ends at step {steps * epochs:,}, and the learning rate goes on with {rate():.3g} instead of '
            f'{before:.3g}: the result differs from that of a run with {epochs} epochs from the start.'))
    if saved['accumulate'] != options.accumulate:
        lines.append(f'  --accumulate {saved["accumulate"]} then, {options.accumulate} now: the steps are equivalent, but '
                     'dropout draws other numbers.')
    return lines
