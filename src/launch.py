"""torchrun for run/launch.bash: src/launch.py TORCHRUN'S ARGUMENTS

It starts the processes of this machine, and ends with the exit status that the program leaves (dist.end). SIGTERM, SIGHUP and
Ctrl-C are passed on to the processes, which then end together on all machines.
"""

import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from cli import SIGNALS
from files.atomic import temporary_folder

GRACE = int(os.environ.get('TORCH_ELASTIC_SHUTDOWN_TIMEOUT', 300))  # seconds between SIGTERM and SIGKILL


def main(arguments):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import main as torchrun

    from dist import tcp_store

    logging.getLogger('torch.distributed.elastic.multiprocessing.api').setLevel(logging.CRITICAL)  # tells what `error` does
    error, code = None, 0
    with temporary_folder('lxmert-') as folder:
        status = folder / 'status'
        os.environ.update(STATUS_FILE=str(status), LAUNCHER_PID=str(os.getpid()))
        # Else restarted processes get the addresses of those that died (PyTorch 2.13).
        os.environ['TORCH_DISABLE_SHARE_RDZV_TCP_STORE'] = '1'
        os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')  # else each process tells, with a stack, that rank 0's store ends
        c10d_rendezvous_backend.TCPStore = tcp_store  # the one in which several machines meet
        pass_on_signals()
        # One machine meets itself in a file, without an open port; there is no other machine to tell that it is alive.
        one_machine = ['--rdzv-backend=c10d', f'--rdzv-endpoint={folder}/rendezvous', '--local-addr=127.0.0.1',
                       '--rdzv-conf=store_type=file,keep_alive_interval=86400']
        try:
            torchrun(['--signals-to-handle=SIGQUIT', f'--log-dir={folder}', *one_machine, *arguments])
        except ChildFailedError as failed:
            rank, failure = failed.get_first_failure()
            code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
            error = f'process {rank} ended with ' + (failure.signal_name() if code > 128 else f'exit status {code}')
        except Signalled:
            pass
        except RendezvousError as failed:
            code, error = 1, f'the machines do not meet: {str(failed.__cause__ or failed).partition(chr(10))[0]}'
        finally:
            for number in SIGNALS:  # there is nothing left to end
                signal.signal(number, lambda *_: None)
        if status.exists():
            return int(status.read_text())
        if 'SIGNAL_STATUS' in os.environ:
            print('launch.py: interrupted', file=sys.stderr)
            return int(os.environ['SIGNAL_STATUS'])
    if error:
        print(f'launch.py: error: {error}', file=sys.stderr)
    return code


class Signalled(BaseException):
    """A signal came while no process was running, such as while the machines meet."""


def pass_on_signals():
    """Passes SIGTERM, SIGHUP (as SIGTERM) and SIGINT on to the processes; kills those that have not ended GRACE seconds later."""
    def signal_processes(number):
        processes = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), number)
        return processes

    def pass_on(number, _):
        os.environ['SIGNAL_STATUS'] = str(128 + number)  # for processes that end without leaving another, and are restarted
        signal.alarm(GRACE)
        if not signal_processes(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM):
            raise Signalled

    signal.signal(signal.SIGALRM, lambda *_: signal_processes(signal.SIGKILL))
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(number, pass_on)


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
