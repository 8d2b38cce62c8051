"""main() of every program: faults of the input end it with one line, not a traceback, and so does Ctrl-C."""

import sys


class DeviceError(RuntimeError):
    """The device that is asked for cannot be used."""


def run_main(name, work, interrupted='interrupted'):
    """The exit status of work(), which returns one: 1 for a fault of the input, which is printed, 130 for Ctrl-C.

    name: of the program, for the message; interrupted: what Ctrl-C prints.
    """
    try:
        return work()
    except (ValueError, OSError, DeviceError) as error:
        print(f'{name}: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\n{name}: {interrupted}', file=sys.stderr)
        return 130
