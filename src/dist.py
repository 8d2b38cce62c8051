"""Distributed training: rank, device, printing, collective operations. With one process they do nothing."""

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


def start(device_type=None):
    """Initializes the process group if torchrun started this process. Returns the device.

    device_type: 'cpu', 'cuda' or None. None falls back to the CPU, with a message, only on a machine without an NVIDIA device;
    if there is one that PyTorch cannot use, raises DeviceError, since a run on the CPU would take weeks.
    """
    device = _device(device_type)
    if {'WORLD_SIZE', 'LOCAL_RANK'} <= os.environ.keys() and not torch_dist.is_initialized():
        if device.type == 'cuda':
            torch.cuda.set_device(device)
        torch_dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return device


def stop():
    """Waits for the other processes and destroys the process group."""
    if torch_dist.is_initialized():
        torch_dist.barrier()
        gc.collect()  # frees DistributedDataParallel, whose reference cycles keep the group's threads alive
        torch_dist.destroy_process_group()


def end(status):
    """Writes the exit status to the launcher's END_FILE, so that it does not restart this process. Returns the status."""
    if path := os.environ.get('END_FILE'):
        temporary = Path(f'{path}.{os.getpid()}')
        temporary.write_text(str(status))
        temporary.replace(path)
    return status


def restarted():
    """Whether torchrun restarted the processes after one failed. Collective: torchrun counts restarts only on some machines."""
    return any(gather(int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)) > 0))


def _device(device_type):
    if device_type == 'cpu':
        return torch.device('cpu')
    if torch.cuda.is_available() and torch.cuda.device_count():
        local = int(os.environ.get('LOCAL_RANK', 0))
        if local >= torch.cuda.device_count():
            raise DeviceError(f'more processes than GPUs: there is no GPU {local}, there are {torch.cuda.device_count()}')
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
