"""How much memory this machine has, to refuse what cannot fit before it is allocated."""

import os
from pathlib import Path

from files.text import InputError

CGROUPS = Path('/sys/fs/cgroup/memory.max'), Path('/sys/fs/cgroup/memory/memory.limit_in_bytes')  # limits of a container


def memory_size():
    """Bytes of memory that processes may use on this machine, or in this container."""
    size = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    for path in CGROUPS:
        try:
            size = min(size, int(path.read_text()))
        except (OSError, ValueError):  # no such limit, or `max`
            continue
    return size


def check_memory(needed, what, size=None):
    """Raises InputError if more than `size` bytes are needed. what: the subject of its message; None: memory_size()."""
    size = size or memory_size()
    if needed > size:
        raise InputError(f'{what} needs at least {needed / 1e9:,.0f} GB of memory; there are {size / 1e9:,.0f} GB')
