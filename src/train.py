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
from lxrt.weights import fill

REPORT_STEPS = 20  # steps between two of the losses that are shown and written as events
BAD_STEPS = 10  # steps in a row with a gradient that is not finite, after which a run stops

OPTIMIZERS = {'rms': torch.optim.RMSprop, 'adam': torch.optim.Adam, 'adamax': torch.optim.Adamax, 'sgd': torch.optim.SGD}


def make_optimizer(parameters, options, total_steps, warmup):
    """BertAdam with its schedule, or one of PyTorch's at a constant rate (as in the original code)."""
    if options.optim == 'bert':
        return BertAdam(list(parameters), lr=options.lr, warmup=warmup, t_total=total_steps)
    return OPTIMIZERS[options.optim](list(parameters), lr=options.lr)


def seed_step(device, *key):
    """Makes what is drawn next a function of the key (seed, step, rank, part) alone, so that a resumed run goes on as
    if it had never stopped."""
    seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for devices, a millisecond a step
    if device.type == 'cuda':
        torch.cuda.manual_seed(seed)


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
    """The dataset's batches (dicts of tensors) for a list of index arrays, on the device, where it finishes them."""
    pin = device.type == 'cuda'
    loader = DataLoader(dataset, sampler=list(parts), batch_size=None, num_workers=options.numWorkers, pin_memory=pin)
    for batch in loader:
        yield dataset.finish({name: value.to(device, non_blocking=pin) for name, value in batch.items()})


def autocast(options, device):
    return torch.autocast(device.type, torch.bfloat16, enabled=options.bf16)


def progress_bar(total, start, text, options):
    hidden = True if not dist.is_main() else False if options.tqdm else None  # None: where the output is no terminal
    return tqdm(total=total, initial=start, desc=text, unit='step', disable=hidden, leave=False)


def train_step(task, model, optimizer, parts, options, step, device):
    """One optimizer step over this rank's parts of a batch.

    Returns ({loss name: this rank's share of it}, sum of this rank's scores, whether the gradient was finite).
    """
    counts = task.counts(parts)
    for count in counts.values():
        dist.sum_over_ranks(count)  # every loss is a mean over the whole batch
    optimizer.zero_grad(set_to_none=True)
    shares, score = {}, 0.0
    for i, batch in enumerate(parts):
        seed_step(device, options.seed, step, dist.rank(), i)
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
    """Runs the rest of one epoch, keeping progress up to date. Returns its sums over all ranks, by name."""
    model.train()
    sums = progress.sums
    bar = progress_bar(progress.steps_per_epoch, progress.step, f'Epoch {progress.epoch}', options)
    loaded = batches(train_set, training_parts(len(train_set), progress.epoch, progress.step, options), options, device)
    while progress.step < progress.steps_per_epoch:
        parts = [next(loaded) for _ in range(options.accumulate)]
        losses, score, finite = train_step(task, model, optimizer, parts, options, progress.total_steps, device)
        progress.step += 1
        if finite:
            progress.skipped_in_a_row = 0
            examples = sum(len(next(iter(part.values()))) for part in parts)
            for name, value in {**losses, 'score': score, 'examples': examples}.items():
                sums[name] = sums.get(name, 0.0) + torch.as_tensor(value).double()
        else:
            count_skipped(progress, folder)
        bar.update()
        if progress.step % REPORT_STEPS == 0:
            loss = float(dist.sum_over_ranks(sum(losses.values())))
            bar.set_postfix_str(f'loss {loss:.3f}')
            folder.scalars({'train/loss': loss}, progress.total_steps)
        if options.saveSteps and progress.step % options.saveSteps == 0 and progress.step < progress.steps_per_epoch:
            progress.sums = sums = {name: float(value) for name, value in sums.items()}
            folder.save_state(options, progress, task.model, optimizer)
    bar.close()
    by_rank = dist.gather({name: float(value) for name, value in sums.items()})
    return {name: sum(part.get(name, 0.0) for part in by_rank) for name in by_rank[0]}


def count_skipped(progress, folder):
    """Counts a step whose gradient was not finite; too many in a row end the run (FloatingPointError)."""
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    if progress.skipped_in_a_row == BAD_STEPS:
        saved = folder.path / 'RUN_STATE.pth'
        raise FloatingPointError(
            f'{BAD_STEPS} steps in a row had a gradient that is not finite, the last of them step {progress.step} of epoch '
            f'{progress.epoch}; lower --lr, or leave out --bf16; '
            + (f'the last good state is in {saved}' if saved.exists() else 'no state had been saved yet'))


@torch.no_grad()
def evaluate(task, dataset, options, device, text='Evaluating'):
    """The task's predictions for a whole dataset, in its order, the same on every rank: a tuple of numpy (n, ...), an array
    for each tensor that the task predicts for a batch."""
    model = task.model.eval()
    size = options.evalBatchSize or options.batchSize
    chunks = [np.arange(start, min(start + size, len(dataset))) for start in range(0, len(dataset), size)]
    own = chunks[dist.rank()::dist.world_size()]
    found, done = None, 0
    bar = progress_bar(len(own), 0, text, options)
    for batch in batches(dataset, own, options, device):
        with autocast(options, device):
            predictions = [tensor.cpu().numpy() for tensor in task.predict(model, batch)]
        if found is None:
            # In one piece: small arrays that stay among large ones that go would keep the heap from being used again.
            found = [np.empty((sum(map(len, own)), *array.shape[1:]), array.dtype) for array in predictions]
        for whole, array in zip(found, predictions, strict=True):
            whole[done:done + len(array)] = array
        done += len(predictions[0])
        bar.update()
    bar.close()
    if dist.world_size() == 1:
        return tuple(found)
    place = np.argsort(np.concatenate([chunk for rank in range(dist.world_size()) for chunk in chunks[rank::dist.world_size()]]))
    by_rank = [part for part in dist.gather(found) if part is not None]  # with few chunks a rank may have had none
    return tuple(np.concatenate(arrays)[place] for arrays in zip(*by_rank, strict=True))


def fit(task, train_set, valid_set, options, folder, state, device):
    """Trains task.model for --epochs passes, validating after each, from the start or from a saved run state.

    Writes BEST.pth (by validation score), LAST.pth, log.log, TensorBoard events and the run state to `folder`.
    A kill at any moment loses nothing but the work since the last state: each file is whole, and what was written after
    that state is written again with the same bits.
    """
    progress = Progress(steps_per_epoch=steps_per_epoch(len(train_set), options.batchSize), data=train_set.digest())
    optimizer = make_optimizer(task.model.parameters(), options, progress.steps_per_epoch * options.epochs, task.warmup)
    if state is not None:
        progress = resume(state, task.model, optimizer, folder)
    model = task.model
    if dist.world_size() > 1:
        model = DistributedDataParallel(model, find_unused_parameters=True)
    while progress.epoch < options.epochs:
        sums = train_epoch(task, model, optimizer, train_set, options, progress, folder, device)
        epoch, report = progress.epoch, {'train/score': 100 * sums.get('score', 0.0) / max(sums.get('examples', 0), 1)}
        lines = [f'Epoch {epoch}: Train {report["train/score"]:.2f}']
        if valid_set is not None:
            report['valid/score'] = valid = task.score(valid_set, evaluate(task, valid_set, options, device, 'Validating'))
            if valid > progress.best:
                progress.best = valid
                folder.save_snapshot('BEST.pth', task.model)
            lines += [f'Epoch {epoch}: Valid {valid:.2f}', f'Epoch {epoch}: Best {progress.best:.2f}']
        if progress.skipped:
            lines.append(f'Epoch {epoch}: {progress.skipped} steps skipped so far: their gradients were not finite')
        progress.epoch, progress.step, progress.sums = epoch + 1, 0, {}
        folder.scalars(report, progress.total_steps)
        folder.log(*lines)
        folder.save_snapshot('LAST.pth', task.model)
        folder.save_state(options, progress, task.model, optimizer)


def resume(state, model, optimizer, folder):
    """Puts a saved run state into model and optimizer and returns its Progress."""
    progress = Progress(**state['progress'])
    fill(model, state['model'], f'the run state in {folder.path}')
    optimizer.load_state_dict(state['optimizer'])
    state.clear()  # the largest thing in memory, no longer needed
    if not dist.is_main():
        progress.sums = dict.fromkeys(progress.sums, 0.0)  # the saved sums are those of all ranks
    dist.say(f'Going on with epoch {progress.epoch}, step {progress.step} of {progress.steps_per_epoch}.')
    return progress
