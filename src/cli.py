"""main() of every program: device, error messages of one line instead of a traceback, exit status."""

import contextlib
import io
import os
import sys
from pathlib import Path

from files.text import printable_lines

SIGTERM_STATUS = 75  # exit status after SIGTERM with the run state saved; EX_TEMPFAIL of sysexits.h


class DeviceError(OSError):
    """The requested device cannot be used."""


def run_main(name, work, interrupted='interrupted'):
    """Runs work() and returns its exit status; prints an error and returns 1 for ValueError or OSError, 130 for Ctrl-C.

    name: the program's name, for the message; interrupted: the message after Ctrl-C.
    """
    try:
        return work()
    except (ValueError, OSError) as error:
        print(printable_lines(f'{name}: error: {error}'), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\n{name}: {interrupted}', file=sys.stderr)
        return 130


def train_main(prepare, argv=None):
    """Runs a program that trains or tests, in one process or several; returns its exit status.

    prepare: (options, device) -> an object with `folder`, a RunFolder, and `run()`.
    """
    import torch  # not imported by programs that do not need it

    import dist
    from bert.speed import warn_slow_bf16
    from param import parse_args
    from train import Interrupted

    name, program = Path(sys.argv[0]).name, None
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
    except (ValueError, OSError, FloatingPointError) as error:
        print(printable_lines(f'{name}: error: {error}'), file=sys.stderr)
        return dist.end(1)
    except KeyboardInterrupt:
        print(f'\n{name}: interrupted; to resume a run that was training, repeat its command with --resume', file=sys.stderr)
        return dist.end(130)
    except SystemExit as wrong_flags:
        return dist.end(wrong_flags.code or 0)
    finally:
        if program is not None:
            program.folder.close()
