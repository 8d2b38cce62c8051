"""Batches of a dataset, in the order of an epoch, loaded in this process or in data workers.

A dataset has the methods dataset[MicroBatch] -> {name: tensor}, to_device(batch) -> batch, and groups() -> (examples,) int64, the
group of each example, where those of a training step must be of one group, else None.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import dist
from cli import WorkerError, become_worker, signals_blocked
from files.atomic import temporary_folder

EVALUATED = 256  # examples in a batch of evaluation, where the options name no size


class MicroBatch(NamedTuple):
    """The index of a dataset: the examples of one micro-batch.

    Datasets derive random numbers (masking, mismatched sentences) from the seed, the epoch and an example's position in the epoch
    only, so that they depend neither on the number of processes nor on where a run was resumed.
    """

    indices: np.ndarray  # (b,) int64, examples in the order of the epoch
    first: int  # position of the first example in the epoch
    epoch: int | None = None  # None in validation and testing, where the random numbers are the same each time
    static_shape: bool = False  # pad to the longest sentence and the most regions of the dataset, for torch.compile


def steps_per_epoch(examples, batch_size):
    """Drops the last incomplete batch, unless it is the only one (as in LXMERT's code)."""
    return max(examples // batch_size, 1)


def training_batches(examples, epoch, first_step, options, groups=None):
    """Yields this rank's MicroBatches of an epoch, --accumulate of them for each optimizer step. groups: of a dataset."""
    rng = np.random.default_rng([options.seed, epoch])
    order = rng.permutation(examples)
    if groups is not None:
        order = grouped(order, groups, options.batchSize, rng)
    for step in range(first_step, steps_per_epoch(examples, options.batchSize)):
        start = step * options.batchSize
        batch = order[start:start + options.batchSize]
        parts = np.array_split(np.arange(len(batch)), dist.world_size() * options.accumulate)
        for part in parts[dist.rank()::dist.world_size()]:
            yield MicroBatch(batch[part], start + int(part[0]), epoch, options.compile)


def grouped(order, groups, size, rng):
    """The order of an epoch in which the examples of each step, `size` of them, are of one group. There are as many steps as
    without groups: where the rests of groups would make one together, it is the largest, filled up with others of its group."""
    steps, whole, rests = steps_per_epoch(len(order), size), [], []
    for group in np.unique(groups):
        members = order[groups[order] == group]
        end = len(members) // size * size
        whole += np.split(members[:end], end // size) if end else []
        rests.append((len(members) - end, np.resize(np.concatenate([members[end:], members[:end]]), min(size, len(order)))))
    rests = [batch for _, batch in sorted(rests, key=lambda rest: -rest[0])]
    batches = (whole + rests)[:steps]
    return np.concatenate([batches[i] for i in rng.permutation(len(batches))])


def evaluation_batches(examples, options):
    """The MicroBatches of one pass over all examples, in order, for all ranks."""
    size = options.evalBatchSize or options.batchSize or EVALUATED
    return [MicroBatch(np.arange(start, min(start + size, examples)), start, None, options.compile)
            for start in range(0, examples, size)]


class ErrorsAsValues(Dataset):
    """A dataset that returns errors of input instead of raising them: a DataLoader would add a traceback to their messages."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        try:
            return self.dataset[index]
        except (ValueError, OSError) as error:
            return error


class WorkerProcess(multiprocessing.get_context('fork').Process):
    """A data worker. Its parent ends it by SIGKILL. SIGTERM is blocked: schedulers send it to every process of a run, but data
    workers must stay alive until the run state is saved."""

    @staticmethod
    def _Popen(process):
        popen = super(WorkerProcess, WorkerProcess)._Popen(process)
        popen.terminate = popen.kill  # by which multiprocessing and DataLoader end processes
        return popen


class WorkerContext(type(multiprocessing.get_context('fork'))):
    Process = WorkerProcess


def _remove_shared_memory(folder):
    """Removes what a data worker that was killed left in /dev/shm. folder: its temporary one, with a file named after its pid."""
    for pid in (path.name for path in folder.iterdir() if path.name.isdigit()):
        for memory in Path('/dev/shm').glob(f'torch_{pid}_*'):
            memory.unlink(missing_ok=True)


def _start_worker(parent, _):
    become_worker(parent)
    folder = temporary_folder('lxmert-worker-', on_leftover=_remove_shared_memory)
    path = folder.__enter__()
    (path / str(os.getpid())).touch()
    Finalize(None, folder.__exit__, (None, None, None), exitpriority=-100)  # as multiprocessing removes its own
    multiprocessing.current_process()._config['tempdir'] = str(path)  # for sockets, which remain if this worker is killed
    sys.excepthook = lambda *_: None  # of the thread that hands over memory, where the parent has stopped to read
    Queue._on_queue_feeder_error = lambda *_: os._exit(1)  # of a full /dev/shm; else the batch is lost, and awaited for ever


@contextlib.contextmanager
def worker_errors(workers):
    """Raises WorkerError for errors of the data workers themselves, such as lost connections; those of a dataset pass."""
    try:
        yield
    except (OSError, EOFError, RuntimeError) as error:
        if not workers or (isinstance(error, RuntimeError) and str(error).startswith('Caught ')):  # raised by the dataset
            raise
        raise WorkerError('a data worker could not start or ended before its work was done (was it killed, is memory short, or '
                          '/dev/shm full?)') from error


def load_batches(dataset, micro_batches, options, device):
    """Yields a batch (dict of tensors on the device) for each MicroBatch. Raises what the dataset raises, or WorkerError."""
    pin, workers = device.type == 'cuda', options.numWorkers
    handler, context = signal.getsignal(signal.SIGCHLD), WorkerContext() if workers else None
    with signals_blocked(), worker_errors(workers):
        if workers:
            # Raises an error if /dev/shm has no room for the queues: an iterator that fails while it starts leaves workers.
            [context.Queue() for _ in range(workers + 3)]
        batches = iter(DataLoader(ErrorsAsValues(dataset), sampler=micro_batches, batch_size=None, num_workers=workers,
                                  pin_memory=pin, multiprocessing_context=context,
                                  worker_init_fn=partial(_start_worker, os.getpid())))
    if signal.getsignal(signal.SIGCHLD) != handler:  # else the death of a worker is raised at any moment, such as while saving
        signal.signal(signal.SIGCHLD, handler)
    for _ in micro_batches:
        with worker_errors(workers):
            batch = next(batches)
        if isinstance(batch, Exception):
            try:
                raise batch
            finally:
                del batch  # else frame and error form a cycle, and the workers, which outlive their queues, are awaited for 10 s
        if options.compile:
            torch.compiler.cudagraph_mark_step_begin()  # CUDA graphs may overwrite the outputs of the previous batch
        yield dataset.to_device({name: value.to(device, non_blocking=pin) if isinstance(value, torch.Tensor) else value
                                 for name, value in batch.items()})
