"""One process or several: rank, device, printing, gathering."""

import gc
import os
from pathlib import Path

import torch
import torch.distributed as torch_dist

from cli import DeviceError


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
    """Joins the processes that torchrun started, if it did, and returns this one's device.

    wanted: 'cpu', 'cuda' or None for the GPU where there is one. A machine without any NVIDIA device goes on with the
    CPU and says so; a device whose driver does not answer is a DeviceError, since a run would take weeks.
    """
    device = _device(wanted)
    if {'WORLD_SIZE', 'LOCAL_RANK'} <= os.environ.keys() and not torch_dist.is_initialized():
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        torch_dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return device


def stop():
    """Parts from the other processes, when all have come to their end."""
    if torch_dist.is_initialized():
        torch_dist.barrier()
        gc.collect()  # DistributedDataParallel's cycles hold the group; its threads must end before the interpreter does
        torch_dist.destroy_process_group()


def end(status):
    """Tells src/machines.py, where it started this process, that starting it anew is of no use. Returns its exit status."""
    if path := os.environ.get('END_FILE'):
        part = Path(f'{path}.{os.getpid()}')
        part.write_text(str(status))
        part.replace(path)
    return status


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
