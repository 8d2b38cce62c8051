"""Starts a program as several processes, on this machine or on several: src/machines.py PROCESSES PROGRAM FLAGS...

This is torchrun with one address for all, restarts that go on from the saved state, and an exit status that tells what
happened. PROCESSES is how many this machine starts. Several machines find each other by environment variables, see VARIABLES;
RESTARTS is how often processes that died are started anew.
"""

import contextlib
import fcntl
import os
import socket
import struct
import sys
import tempfile
import uuid
from pathlib import Path
from typing import NamedTuple

PATIENCE = 600  # seconds in which all machines must come, at the start and after a restart
GRACE = 300  # seconds in which processes must end after SIGTERM, before they are killed
USAGE = 2  # exit status of a program whose flags are wrong
VARIABLES = {
    'NNODES': 'the number of machines',
    'NODE_RANK': "this machine's number, from 0 to NNODES - 1",
    'MASTER_ADDR': 'the address of machine 0, the same on all',
    'MASTER_PORT': 'a free port of machine 0, the same on all, from 1 to 65535',
    'RESTARTS': 'a number of restarts, 0 or more',
}


class Place(NamedTuple):
    """This machine among all."""

    machines: int
    rank: int
    address: str  # of machine 0
    port: int  # of its rendezvous; 0: any


def number(environment, name, default, most):
    """The whole number, 0 to `most`, that a variable holds. Raises ValueError that names it."""
    text = environment.get(name) or default
    if text is None or not text.isascii() or not text.isdigit() or int(text) > most:
        found = 'nothing' if text is None else repr(text)
        raise ValueError(f'{name}: expected {VARIABLES[name]}; found {found}')
    return int(text)


def read_place(environment):
    """The Place that environment variables tell. Raises ValueError that names the one that is missing or wrong."""
    machines = number(environment, 'NNODES', '1', 100_000)
    if machines == 0:
        raise ValueError(f"NNODES: expected {VARIABLES['NNODES']}; found '0'")
    if machines == 1:
        return Place(1, 0, 'localhost', 0)
    rank = number(environment, 'NODE_RANK', None, machines - 1)
    address = environment.get('MASTER_ADDR')
    if not address:
        raise ValueError(f'MASTER_ADDR: expected {VARIABLES["MASTER_ADDR"]}; found nothing')
    try:
        socket.getaddrinfo(address, None)
    except OSError as error:
        raise ValueError(f'MASTER_ADDR: expected {VARIABLES["MASTER_ADDR"]}; found {address!r} ({error.strerror})') from None
    port = number(environment, 'MASTER_PORT', '29500', 65535)
    if port == 0:
        raise ValueError(f"MASTER_PORT: expected {VARIABLES['MASTER_PORT']}; found '0'")
    return Place(machines, rank, address, port)


def interface(address):
    """The name of the network interface by which this machine reaches an address; None if that cannot be told."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing
        own = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                request = struct.pack('256s', name.encode()[:15])
                if fcntl.ioctl(probe, 0x8915, request)[20:24] == own:  # SIOCGIFADDR
                    return name
    return None


def launch(place, processes, restarts, command, folder):
    """Runs the command as `processes` processes on this machine; returns the exit status.

    folder: an empty one for what processes tell (see dist.end) and torchrun's own files.
    """
    # Imported here, so that wrong variables are found at once.
    import torch.distributed.launcher.api as launcher
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError

    told = Path(folder) / 'status'

    class Agent(launcher.LocalElasticAgent):
        """torchrun's, but processes that run_main for good are not started anew, and ranks follow NODE_RANK."""

        def __init__(self, spec, *args, **kwargs):
            super().__init__(spec, *args, **kwargs)
            spec.master_addr = place.address  # not what this machine believes to be its name

        def _rendezvous(self, worker_group):
            super()._rendezvous(worker_group)
            if worker_group.group_rank != place.rank:
                raise ValueError(f'NODE_RANK: {place.rank} is given to more than one machine')

        def _monitor_workers(self, worker_group):
            result = super()._monitor_workers(worker_group)
            if read_status(told) or any(failure.exitcode == USAGE for failure in result.failures.values()):
                self._remaining_restarts = 0
            return result

    launcher.LocalElasticAgent = Agent
    os.environ['END_FILE'] = str(told)
    # With torchrun's own store, processes that are started anew read the addresses of those that died (PyTorch 2.13).
    os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
    if place.machines > 1 and (name := interface(place.address)):
        os.environ.setdefault('GLOO_SOCKET_IFNAME', name)  # gloo would take what the machine's own name stands for
    config = launcher.LaunchConfig(
        min_nodes=place.machines, max_nodes=place.machines, nproc_per_node=processes, max_restarts=restarts,
        run_id='lxmert' if place.machines > 1 else str(uuid.uuid4()),
        rdzv_backend='c10d', rdzv_endpoint=f'{place.address}:{place.port}',
        # is_host: that a machine is MASTER_ADDR cannot be seen from its names; the rest: machines may start minutes apart.
        rdzv_configs={'is_host': place.rank == 0, 'join_timeout': PATIENCE, 'read_timeout': PATIENCE},
        local_addr=f'{place.rank:06}',  # torchrun orders machines by it, and uses it for nothing else
        shutdown_timeout=int(os.environ.get('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', GRACE)),
        logs_specs=DefaultLogsSpecs(log_dir=folder),
    )
    try:
        launcher.elastic_launch(config, command[0])(*command[1:])
    except SignalException as stopped:
        status = read_status(told)
        return 128 + stopped.sigval if status is None else status
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        if not (read_status(told) or code == USAGE):  # else the processes have said it all
            print(f'machines.py: {failed}', file=sys.stderr)
        return read_status(told) or (code if code > 0 else 128 - code)
    except RendezvousError as error:
        why = str(error.__cause__ or error or 'one did not come').splitlines()[0]
        return fault(f'the {place.machines} machines do not meet at {place.address}:{place.port}: {why}')
    except ValueError as error:
        return fault(error)
    return 0


def read_status(path):
    """The exit status that a process told, or None."""
    return int(path.read_text()) if path.exists() else None


def fault(error, status=1):
    print(f'machines.py: error: {error}', file=sys.stderr)
    return status


def main(arguments):
    try:
        place = read_place(os.environ)
        restarts = number(os.environ, 'RESTARTS', '0', 1000)
    except ValueError as error:
        return fault(f'{error} (see "Several machines" in run/README.md)', USAGE)
    processes, command = int(arguments[0]), [sys.executable, '-u', *arguments[1:]]
    with tempfile.TemporaryDirectory(prefix='lxmert-') as folder:
        return launch(place, processes, restarts, command, folder)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
