"""Distributed training: rank, device, printing, collective operations. With one process they do nothing."""

import contextlib
import gc
import os
import socket
import threading
import time
from pathlib import Path

import torch
import torch.distributed as torch_dist

from cli import DeviceError, end_with_parent
from files.atomic import write_text
from files.text import printable_lines

STATUS_FILE = 'STATUS_FILE'  # environment variable: the file in which src/launch.py finds the program's exit status
LAUNCHER = 'LAUNCHER_PID'  # environment variable: the process id of src/launch.py
SIGNAL_STATUS = 'SIGNAL_STATUS'  # environment variable: the exit status of a program that a signal has ended
_watcher = None


def rank():
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world_size():
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_main():
    return rank() == 0


def print0(*lines):
    """Prints lines on rank 0 only."""
    if is_main():
        print('\n'.join(map(printable_lines, lines)), flush=True)


def start(device_type=None):
    """Initializes the process group if torchrun started this process. Returns the device.

    device_type: 'cpu', 'cuda' or None. None falls back to the CPU, with a message, only on a machine without an NVIDIA device;
    if there is one that PyTorch cannot use, raises DeviceError, since a run on the CPU would take weeks. Raises ValueError if two
    machines have the same NODE_RANK. Ends a process that torchrun restarted although the program has ended.
    """
    several = {'WORLD_SIZE', 'LOCAL_RANK'} <= os.environ.keys() and not torch_dist.is_initialized()
    store = _join() if several and STATUS_FILE in os.environ else None
    device = _device(device_type)
    if several:
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        torch_dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', store=store, rank=int(os.environ['RANK']),
                                      world_size=int(os.environ['WORLD_SIZE']))
    return device


def _join():
    """The store in which the processes of src/launch.py find each other. Rank 0 serves it, at MASTER_ADDR only."""
    global _watcher
    end_with_parent(int(os.environ[LAUNCHER]))
    _watcher, ended = Watcher(), _status()
    if ended is None:
        _watcher.start()
    store = tcp_store(os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), int(os.environ['WORLD_SIZE']),
                      is_master=os.environ['RANK'] == '0', wait_for_workers=False)
    _watcher.store = store.clone()
    if ended is not None:
        os._exit(end(ended))
    if (machine := os.environ['NODE_RANK']) != os.environ['GROUP_RANK']:
        raise ValueError(f'NODE_RANK: {machine} is given to more than one machine; number them from 0')
    return store


def tcp_store(address, port, *args, is_master, **options):
    """A torch.distributed.TCPStore that listens on `address` only; one's own socket listens on all addresses of the machine."""
    listener = None
    if is_master:
        with contextlib.suppress(OSError):  # no address of this machine, as behind a router; or a port in use, as TCPStore says
            listener = socket.create_server((address, port)).detach()
    return torch_dist.TCPStore(address, port, *args, is_master=is_master, master_listen_fd=listener, **options)


def _status():
    """The exit status with which the program has ended: what a process left, or that of a signal to src/launch.py; or None."""
    with contextlib.suppress(FileNotFoundError):
        return Path(os.environ[STATUS_FILE]).read_text()
    return os.environ.get(SIGNAL_STATUS)


class Watcher(threading.Thread):
    """Ends this process if another one has ended with an error, since a collective may wait for that one for ever."""

    INTERVAL = 0.5  # seconds
    store = None  # a connection of its own, since a call that waits blocks others

    def __init__(self):
        super().__init__(daemon=True)
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.wait(self.INTERVAL):
            with contextlib.suppress(RuntimeError):  # rank 0, which serves the store, has ended
                if self.store and self.store.check(['status']):  # set on any machine
                    write_text(os.environ[STATUS_FILE], self.store.get('status').decode())
            if os.path.exists(os.environ[STATUS_FILE]):
                os._exit(0)

    def stop(self):
        self.stopped.set()
        if self.is_alive():
            self.join()

    def end_others(self, status):
        """Ends the other processes with an exit status of the program."""
        if self.store:
            self.store.set('status', str(status))
            time.sleep(3 * self.INTERVAL)  # until they have read it: rank 0 serves it


def stop():
    """Waits for the other processes and destroys the process group."""
    global _watcher
    if torch_dist.is_initialized():
        torch_dist.barrier()
        gc.collect()  # frees DistributedDataParallel, whose reference cycles keep the group's threads alive
        torch_dist.destroy_process_group()
    if _watcher:
        _watcher.stop()
        _watcher = None


def end(status):
    """Leaves the program's exit status to src/launch.py, and ends the other processes too unless stop() came before.

    Returns the exit status of this process: 0 if launch.py started it, since torchrun restarts processes that end with another.
    """
    if STATUS_FILE not in os.environ:
        return status
    if _watcher:
        _watcher.stop()
    write_text(os.environ[STATUS_FILE], str(status))
    if _watcher:
        _watcher.end_others(status)
    return 0


def restarted():
    """Whether torchrun restarted the processes after one failed. Collective: torchrun counts restarts only on some machines."""
    return any(gather(int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0))


def _device(device_type):
    if device_type == 'cpu':
        return torch.device('cpu')
    if torch.cuda.is_available() and torch.cuda.device_count():
        local = int(os.environ.get('LOCAL_RANK', 0))
        if local >= torch.cuda.device_count():
            raise DeviceError(f'more processes than GPUs: there is no GPU {local}, there are '
                              f'{torch.cuda.device_count()}; start as many as there are GPUs')
        return torch.device('cuda', local)
    if device_type == 'cuda' or any(Path('/dev').glob('nvidia[0-9]*')):
        if os.environ.get('CUDA_VISIBLE_DEVICES') == '':
            raise DeviceError('CUDA_VISIBLE_DEVICES is empty, so no GPU can be used; unset it, or use cpu')
        raise DeviceError('PyTorch cannot use a GPU: check that `nvidia-smi` works and that this PyTorch '
                          f'({torch.__version__}) is built for CUDA; or use cpu')
    if int(os.environ.get('RANK', 0)) == 0:
        print('No NVIDIA device on this machine: using the CPU.', flush=True)
    return torch.device('cpu')


def sum_over_ranks(tensor):
    """Sums a tensor over all ranks in place and returns it."""
    if world_size() > 1:
        torch_dist.all_reduce(tensor)
    return tensor


def gather(value):
    """The list of all ranks' values, on every rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    torch_dist.all_gather_object(values, value)
    return values


def sum_by_name(sums):
    """Adds {name: number or tensor} over all ranks; ranks may have different names."""
    by_rank = gather({name: float(value) for name, value in sums.items()})
    names = dict.fromkeys(name for rank_sums in by_rank for name in rank_sums)
    return {name: sum(rank_sums.get(name, 0.0) for rank_sums in by_rank) for name in names}


def gather_rows(tensor):
    """The list of all ranks' tensors (n, ...), of which n may differ, on every rank and on its device."""
    if world_size() == 1:
        return [tensor]
    sizes = gather(len(tensor))
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[:len(tensor)] = tensor
    tensors = [torch.empty_like(padded) for _ in sizes]
    torch_dist.all_gather(tensors, padded)
    return [rows[:size] for rows, size in zip(tensors, sizes, strict=True)]
