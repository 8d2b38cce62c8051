"""One process or several: rank, device, printing, gathering."""

import contextlib
import gc
import os
import socket
import threading
import time
from pathlib import Path

import torch
import torch.distributed as torch_dist

from cli import DeviceError
from files.atomic import write_text

STATUS_FILE = 'STATUS_FILE'  # environment variable: the file in which src/launch.py finds the program's exit status
_watcher = None


def rank():
    return torch_dist.get_rank() if torch_dist.is_initialized() else 0


def world_size():
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def is_main():
    return rank() == 0


def print0(*lines):
    """Prints on rank 0 only."""
    if is_main():
        print(*lines, flush=True)


def start(wanted=None):
    """Joins the other processes if torchrun started this one; returns its device.

    wanted: 'cpu', 'cuda' or None for the GPU if there is one. A machine without any NVIDIA device falls back to the CPU with a
    message; a device whose driver does not answer is a DeviceError, since a run on the CPU would take weeks. Raises ValueError
    if two machines have the same NODE_RANK. Ends the process if the program has ended before torchrun restarted it.
    """
    global _watcher
    several = {'WORLD_SIZE', 'LOCAL_RANK'} <= os.environ.keys() and not torch_dist.is_initialized()
    store = None
    if several and STATUS_FILE in os.environ:
        store = _store()
        _watcher = Watcher(store)
        if os.path.exists(os.environ[STATUS_FILE]):
            os._exit(end(Path(os.environ[STATUS_FILE]).read_text()))
        if (machine := os.environ['NODE_RANK']) != os.environ['GROUP_RANK']:
            raise ValueError(f'NODE_RANK: {machine} is given to more than one machine')
    device = _device(wanted)
    if several:
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        torch_dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo', store=store, rank=int(os.environ['RANK']),
                                      world_size=int(os.environ['WORLD_SIZE']))
    return device


def _store():
    """The store in which processes find each other. Rank 0 holds it, open to the address MASTER_ADDR only."""
    address, port, master = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']), os.environ['RANK'] == '0'
    listener = None
    if master:
        with contextlib.suppress(OSError):  # an address that this machine does not have itself, as behind a router
            listener = socket.create_server((address, port)).detach()
    return torch_dist.TCPStore(address, port, int(os.environ['WORLD_SIZE']), master, wait_for_workers=False,
                               master_listen_fd=listener)


class Watcher(threading.Thread):
    """Ends this process if another one has ended with an error, for which it may wait in a collective, or if the launcher was
    killed."""

    INTERVAL = 0.5  # seconds

    def __init__(self, store):
        super().__init__(daemon=True)
        self.store, self.stopped = store.clone(), threading.Event()  # a connection of its own: one call blocks others
        self.start()

    def run(self):
        launcher = os.getppid()
        while not self.stopped.wait(self.INTERVAL):
            if os.getppid() != launcher:
                os._exit(1)
            with contextlib.suppress(RuntimeError):  # rank 0, which holds the store, is gone
                if self.store.check(['status']):
                    write_text(os.environ[STATUS_FILE], self.store.get('status').decode())
                    os._exit(0)

    def end_all(self, status):
        """Ends the other processes; `status` becomes the program's exit status on all machines."""
        self.stop()
        self.store.set('status', str(status))
        time.sleep(3 * self.INTERVAL)  # until they have read it: rank 0 holds the store

    def stop(self):
        self.stopped.set()
        self.join()


def stop():
    """Leaves the process group, when all processes have finished."""
    global _watcher
    if torch_dist.is_initialized():
        torch_dist.barrier()
        gc.collect()  # DistributedDataParallel's cycles hold the group; its threads must end before the interpreter does
        torch_dist.destroy_process_group()
    if _watcher:
        _watcher.stop()
        _watcher = None


def end(status):
    """Leaves the program's exit status to src/launch.py, and ends the other processes if there was an error (no stop() before).

    Returns the exit status of this process: 0 if launch.py started it, since torchrun restarts processes that end with another.
    """
    if STATUS_FILE not in os.environ:
        return status
    write_text(os.environ[STATUS_FILE], str(status))
    if _watcher:
        _watcher.end_all(status)
    return 0


def restarted():
    """Whether processes were started anew after one had died. All of them must ask: on some machines torchrun counts none."""
    return any(gather(int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0))


def _device(wanted):
    if wanted == 'cpu':
        return torch.device('cpu')
    if torch.cuda.is_available() and torch.cuda.device_count():
        local = int(os.environ.get('LOCAL_RANK', 0))
        if local >= torch.cuda.device_count():
            raise DeviceError(f'more processes than GPUs: there is no GPU {local}, there are {torch.cuda.device_count()}')
        return torch.device('cuda', local)
    if wanted == 'cuda' or any(Path('/dev').glob('nvidia[0-9]*')):
        if os.environ.get('CUDA_VISIBLE_DEVICES') == '':
            raise DeviceError('CUDA_VISIBLE_DEVICES is empty, so no GPU can be used; unset it, or use cpu')
        raise DeviceError('a GPU is wanted, but PyTorch cannot use one: see whether `nvidia-smi` answers and whether '
                          f'this PyTorch ({torch.__version__}) is built for CUDA; or use cpu')
    if int(os.environ.get('RANK', 0)) == 0:
        print('No NVIDIA device on this machine: going on with the CPU.', flush=True)
    return torch.device('cpu')


def sum_over_ranks(tensor):
    """Adds a tensor up over all ranks, in place, and returns it."""
    if world_size() > 1:
        torch_dist.all_reduce(tensor)
    return tensor


def gather(value):
    """A list of every rank's value, on every rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    torch_dist.all_gather_object(values, value)
    return values
