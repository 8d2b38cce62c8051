"""How every program ends: device, error messages of one line instead of a traceback, signals, child processes, exit status."""

import contextlib
import ctypes
import errno
import io
import os
import signal
import sys
import traceback
from pathlib import Path

from files.text import printable_lines

SIGTERM_STATUS = 75  # exit status after SIGTERM with the run state saved; EX_TEMPFAIL of sysexits.h
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)  # signals that end a program
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class DeviceError(OSError):
    """The requested device cannot be used."""


class WorkerError(RuntimeError):
    """A process that prepares data died."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP; its argument is the number of the signal."""


def positive(text):
    """Type of a flag of argparse: an integer above 0."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def end_with_parent(parent):
    """Makes the system kill this process, a child of process id `parent`, as soon as its parent ends, in whatever way (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def become_worker(parent):
    """Makes this process a worker of process id `parent`: it ends with its parent, to which it leaves all signals. Terminals and
    schedulers signal every process of a program."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    end_with_parent(parent)


@contextlib.contextmanager
def signals_blocked():
    """Blocks the signals of SIGNALS in this process inside the context, and permanently in processes forked there."""
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def handle_termination(handler):
    """SIGTERM and SIGHUP call handler(number, frame) inside the context, unless this process ignores them, as nohup wants it."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    previous = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, previous, strict=True):
            signal.signal(number, old)


def _raise_terminated(number, _):
    raise Terminated(number)


def run_main(name, work, interrupted='interrupted'):
    """Runs work() and returns its exit status; prints an error and returns 1 for ValueError or OSError, 130 for Ctrl-C, 143 for
    SIGTERM, 129 for SIGHUP.

    name: the program's name, for the message; interrupted: the message after a signal.
    """
    try:
        with handle_termination(_raise_terminated):
            return work()
    except KeyboardInterrupt as signalled:
        print(f'\n{name}: {interrupted}', file=sys.stderr)
        return 128 + (signalled.args or (signal.SIGINT,))[0]
    except Exception as error:
        fault = transient_fault(error)
        if not fault and not isinstance(error, (ValueError, OSError)):
            raise
        print(printable_lines(f'{name}: error: {fault or error}'), file=sys.stderr)
        return 1


def transient_fault(error):
    """The message for an error that may not occur again, such as out of memory or a dead process; None for other errors."""
    text = str(error) if isinstance(error, RuntimeError) else ''
    if isinstance(error, WorkerError):
        return text
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return 'there is not enough memory'
    if 'out of memory' in text or 'allocate memory' in text:
        return f'there is not enough memory{" on the GPU" if "CUDA" in text else ""}'
    if any(word in text for word in ('gloo/', 'NCCL', 'TCPStore')):
        return 'another process of the run has ended, or cannot be reached'
    return None


def train_main(prepare, argv=None):
    """Runs a program that trains or tests, in one process or several; returns its exit status.

    prepare: (options, device) -> an object with `folder`, a RunFolder, and `run()`.
    Faulty input ends all processes. After another error, which may not repeat itself, src/launch.py restarts them.
    """
    import torch  # not imported by programs that do not need it

    import dist
    from bert.speed import warn_slow_bf16
    from param import parse_args
    from train import Interrupted

    name, program, options = Path(sys.argv[0]).name, None, None
    try:
        quiet = os.environ.get('LOCAL_RANK', '0') != '0'  # one process of a machine prints what is wrong with the flags
        with contextlib.redirect_stderr(io.StringIO() if quiet else sys.stderr):
            options = parse_args(argv)
        device = dist.start(options.device)
        if options.bf16:
            warn_slow_bf16(device)
        options.resume |= options.test is None and dist.restarted()
        if options.deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # required by cuBLAS
            torch.use_deterministic_algorithms(True)
        program = prepare(options, device)
        program.run()
        dist.stop()  # not after an error: the other processes may be blocked in a collective operation
        return dist.end(0)
    except Interrupted as interrupted:
        dist.print0(f'{name}: {interrupted}')
        dist.stop()
        return dist.end(SIGTERM_STATUS)
    except KeyboardInterrupt:
        print(f'\n{name}: interrupted; to resume a run that was training, repeat its command with --resume', file=sys.stderr)
        return dist.end(130)
    except SystemExit as wrong_flags:
        return dist.end(wrong_flags.code or 0)
    except Exception as error:
        fault = transient_fault(error)
        if not fault and isinstance(error, (ValueError, OSError, FloatingPointError)):
            print(printable_lines(f'{name}: error: {error}'), file=sys.stderr)
            return dist.end(1)
        if not fault:
            traceback.print_exc()
            fault = f'a fault of the program, shown above ({type(error).__name__})'
        print(f'{name}: error: {fault}; {_what_is_safe(program, options)}', file=sys.stderr)
        return 1
    finally:
        if program is not None:
            program.folder.close()


def _what_is_safe(program, options):
    """What a run that an error ended has saved, and how it goes on."""
    if options is None or options.test or program is None:
        return 'repeat the command (less memory: a smaller --evalBatchSize, fewer --numWorkers)'
    from run_state import STATE  # imports PyTorch

    state = program.folder.path / STATE
    saved = f'the last run state is {state}' if state.exists() else 'no run state was saved yet'
    return f'{saved}; repeat the command with --resume (less memory: --accumulate 2, fewer --numWorkers)'
