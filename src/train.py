"""The one loop. A task gives it a model, datasets, losses and a score; it knows none by name."""

import contextlib

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

import dist
from checkpoint import Progress
from lxrt.optimization import BertAdam

REPORT_STEPS = 20  # steps between two readings of the loss, each of which waits for the device
BAD_STEPS = 10  # steps in a row with a gradient that is not finite, after which a run stops

OPTIMIZERS = {'rms': torch.optim.RMSprop, 'adam': torch.optim.Adam, 'adamax': torch.optim.Adamax, 'sgd': torch.optim.SGD}


def make_optimizer(parameters, options, total_steps, warmup):
    """BertAdam with its schedule, or one of PyTorch's at a constant rate (as in the original code)."""
    if options.optim == 'bert':
        return BertAdam(list(parameters), lr=options.lr, warmup=warmup, t_total=total_steps)
    return OPTIMIZERS[options.optim](list(parameters), lr=options.lr)


def seed_step(*key):
    """Makes what is drawn next a function of the key (seed, step, rank, part) alone, so that a resumed run goes on as
    if it had never stopped."""
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def steps_per_epoch(examples, batch_size):
    """The last incomplete batch is dropped, unless it is the only one (as in the original code)."""
    return max(examples // batch_size, 1)


def training_parts(examples, epoch, first_step, options):
    """Index arrays of this rank's parts of an epoch's steps, in order; --accumulate parts make one step."""
    order = np.random.default_rng([options.seed, epoch]).permutation(examples)
    for step in range(first_step, steps_per_epoch(examples, options.batchSize)):
        batch = order[step * options.batchSize:(step + 1) * options.batchSize]
        parts = np.array_split(batch, dist.world_size() * options.accumulate)
        yield from parts[dist.rank()::dist.world_size()]


def batches(dataset, parts, options, device):
    """The dataset's batches (dicts of tensors) for a list of index arrays, on the device."""
    pin = device.type == 'cuda'
    loader = DataLoader(dataset, sampler=list(parts), batch_size=None, num_workers=options.numWorkers, pin_memory=pin)
    for batch in loader:
        yield {name: value.to(device, non_blocking=pin) for name, value in batch.items()}


def autocast(options, device):
    return torch.autocast(device.type, torch.bfloat16, enabled=options.bf16)


def progress_bar(total, start, text, options):
    hidden = True if not dist.is_main() else False if options.tqdm else None  # None: where the output is no terminal
    return tqdm(total=total, initial=start, desc=text, unit='step', disable=hidden, leave=False)


def train_step(task, model, optimizer, parts, options, step, device):
    """One optimizer step over this rank's parts of a batch. Returns ({loss name: this rank's share}, score, finite)."""
    counts = task.counts(parts)
    for count in counts.values():
        dist.sum_over_ranks(count)  # every loss is a mean over the whole batch
    optimizer.zero_grad(set_to_none=True)
    shares, score = {}, 0.0
    for i, batch in enumerate(parts):
        seed_step(options.seed, step, dist.rank(), i)
        last = i == len(parts) - 1
        with contextlib.nullcontext() if last or dist.world_size() == 1 else model.no_sync():
            with autocast(options, device):
                losses, part_score = task.losses(model, batch, counts)
            # DistributedDataParallel averages gradients; the whole batch's gradient is their sum.
            (sum(losses.values()) * dist.world_size()).backward()
        shares = {name: shares.get(name, 0.0) + loss.detach() for name, loss in losses.items()}
        score = score + part_score
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip)
    finite = bool(torch.isfinite(norm))
    if finite:
        optimizer.step()
    return shares, score, finite


def train_epoch(task, model, optimizer, train_set, options, progress, folder, device):
    """Runs the rest of one epoch; progress is brought up to date after each step."""
    model.train()
    sums = progress.sums
    bad = 0
    bar = progress_bar(progress.steps_per_epoch, progress.step, f'Epoch {progress.epoch}', options)
    parts = batches(train_set, training_parts(len(train_set), progress.epoch, progress.step, options), options, device)
    while progress.step < progress.steps_per_epoch:
        step = [next(parts) for _ in range(options.accumulate)]
        losses, score, finite = train_step(task, model, optimizer, step, options, progress.total_steps, device)
        progress.step += 1
        bad = 0 if finite else bad + 1
        progress.skipped += not finite
        if bad == BAD_STEPS:
            raise FloatingPointError(
                f'{BAD_STEPS} steps in a row had a gradient that is not finite, the last of them step {progress.step} of epoch '
                f'{progress.epoch}; lower --lr; the last good state is in {folder.path}')
        for name, value in {**losses, 'score': score, 'examples': sum(len(part['input_ids']) for part in step)}.items():
            sums[name] = sums.get(name, 0.0) + (torch.as_tensor(value).double() if finite else 0.0)
        bar.update()
        if progress.step % REPORT_STEPS == 0:
            total = float(sum(losses.values()))
            bar.set_postfix_str(f'loss {total * dist.world_size():.3f}')
            folder.scalars({'train/loss': total * dist.world_size()}, progress.total_steps)
        if options.saveSteps and progress.step % options.saveSteps == 0 and progress.step < progress.steps_per_epoch:
            progress.sums = sums = {name: float(value) for name, value in sums.items()}
            folder.save_state(options, progress, task.model, optimizer)
    bar.close()
    totals = [{name: float(value) for name, value in part.items()} for part in dist.gather(sums)]
    return {name: sum(part[name] for part in totals) for name in totals[0]}


@torch.no_grad()
def evaluate(task, dataset, options, device, text='Evaluating'):
    """The task's predictions for a whole dataset, in its order: (n, ...) numpy, the same on every rank."""
    model = task.model.eval()
    size = options.evalBatchSize or options.batchSize
    chunks = [np.arange(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    own = chunks[dist.rank()::dist.world_size()]
    predictions = []
    bar = progress_bar(len(own), 0, text, options)
    for batch in batches(dataset, own, options, device):
        with autocast(options, device):
            predictions.append(task.predict(model, batch).cpu().numpy())
        bar.update()
    bar.close()
    by_rank = [iter(part) for part in dist.gather(predictions)]
    return np.concatenate([next(by_rank[i % dist.world_size()]) for i in range(len(chunks))])


def fit(task, train_set, valid_set, options, folder, state, device):
    """Trains task.model for --epochs passes, validating after each, from the start or from a saved run state.

    Writes BEST.pth (by validation score), LAST.pth, log.log, TensorBoard events and the run state to `folder`.
    Returns the finished Progress.
    """
    per_epoch = steps_per_epoch(len(train_set), options.batchSize)
    optimizer = make_optimizer(task.model.parameters(), options, per_epoch * options.epochs, task.warmup)
    progress = Progress(steps_per_epoch=per_epoch)
    if state is not None:
        progress = Progress(**state['progress'])
        if progress.steps_per_epoch != per_epoch:
            raise ValueError(f'--resume: the run in {folder.path} had {progress.steps_per_epoch} steps an epoch, now there are '
                             f'{per_epoch}: the data has changed')
        task.model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
        if not dist.is_main():
            progress.sums = dict.fromkeys(progress.sums, 0.0)  # the saved sums are those of all ranks
        dist.say(f'Going on with epoch {progress.epoch}, step {progress.step} of {per_epoch}.')

    model = task.model
    if dist.world_size() > 1:
        model = DistributedDataParallel(model, find_unused_parameters=True)
    while progress.epoch < options.epochs:
        sums = train_epoch(task, model, optimizer, train_set, options, progress, folder, device)
        epoch, report = progress.epoch, {}
        lines = [f'Epoch {epoch}: Train {100 * sums["score"] / max(sums["examples"], 1):.2f}']
        report['train/score'] = 100 * sums['score'] / max(sums['examples'], 1)
        if valid_set is not None:
            report['valid/score'] = valid = task.score(valid_set, evaluate(task, valid_set, options, device, 'Validating'))
            if valid > progress.best:
                progress.best = valid
                folder.save_snapshot('BEST.pth', task.model)
            lines += [f'Epoch {epoch}: Valid {valid:.2f}', f'Epoch {epoch}: Best {progress.best:.2f}']
        if progress.skipped:
            lines.append(f'Epoch {epoch}: {progress.skipped} steps skipped so far: their gradients were not finite')
        folder.scalars(report, (epoch + 1) * per_epoch)
        folder.log(*lines)
        folder.save_snapshot('LAST.pth', task.model)
        progress.epoch, progress.step, progress.sums = epoch + 1, 0, {}
        folder.save_state(options, progress, task.model, optimizer)
    folder.close()
    return progress
