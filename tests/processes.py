"""The training programs in this process, or in processes of their own that start without the seconds that imports take.

Such processes are forked from a server that has imported the programs and computed nothing.
"""

import contextlib
import functools
import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from multiprocessing import forkserver
from unittest.mock import patch

FORKS = multiprocessing.get_context('forkserver')
FORKS.set_forkserver_preload(['pytest', 'processes', 'tasks.vqa', 'pretrain.captions', 'lxrt.heads', 'torch.utils.tensorboard',
                               'torch._dynamo'])  # which DistributedDataParallel imports


@functools.cache
def start_server():
    """Starts the server. Before Python 3.12.8 it does not take over sys.path, and skips in silence what it cannot import."""
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()


def main(program, flags):
    """Runs the program of a kind of task, or one of pre-training; returns its exit status."""
    from cli import train_main
    from pretrain.captions import CaptionProgram
    from pretrain.pairs import PairProgram
    from pretrain.program import PretrainingProgram
    from tasks import program as tasks
    from tasks.registry import task_class

    pretraining = {'pretrain': PretrainingProgram, 'captions': CaptionProgram, 'pairs': PairProgram}
    return (train_main(pretraining[program].prepare, flags) if program in pretraining
            else tasks.main(task_class(program), flags))


def run(program, flags):
    """A program run in this process, as a subprocess.CompletedProcess."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(program, flags)
    return subprocess.CompletedProcess(flags, status, out.getvalue(), err.getvalue())


def enter(program, flags, environment, output, before):
    """What one process does: a process group of its own, its output in a file, before()."""
    os.setpgid(0, 0)
    file = os.open(output, os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.environ.update(environment)
    if before:
        before()
    sys.exit(main(program, flags))


class Ranks:
    """A program in one or several processes, as torchrun starts them."""

    def __init__(self, program, flags, output, count=1, before=None):
        """flags: a list, or one for each process; output: the file for all that they print; before: a function
        of a module, which each process calls first."""
        start_server()
        self.output, self.flags, self.ranks = output, flags, []
        output.write_text('')
        environments = [{}]
        if count > 1:
            with socket.socket() as free:
                free.bind(('127.0.0.1', 0))
                port = free.getsockname()[1]
            environments = [{'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(count), 'MASTER_ADDR': 'localhost',
                             'MASTER_PORT': str(port)} for rank in range(count)]
        for number, environment in enumerate(environments):
            local = flags[number] if isinstance(flags[0], list) else flags
            rank = FORKS.Process(target=enter, args=(program, local, environment, output, before))
            rank.start()
            self.ranks.append(rank)

    def alive(self):
        return all(rank.is_alive() for rank in self.ranks)

    def printed(self):
        return self.output.read_text()

    def signal(self, number=signal.SIGKILL):
        """Sends a signal to all processes and to what they have started."""
        for rank in self.ranks:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, number)

    def wait(self, timeout=200):
        """The finished run as a subprocess.CompletedProcess, whose stdout and stderr are one."""
        for rank in self.ranks:
            rank.join(timeout)
        if any(rank.is_alive() for rank in self.ranks):
            self.signal()
            raise TimeoutError(f'{self.flags}: not finished after {timeout} s: {self.printed()}')
        status = max((rank.exitcode for rank in self.ranks), key=abs)
        return subprocess.CompletedProcess(self.flags, status, self.printed(), self.printed())
