"""How programs end: with a message where what they were given is at fault, or at Ctrl-C, never with a traceback."""

import sys


class DeviceError(RuntimeError):
    """The device that is wanted cannot be used."""


def ended(name, work, interrupted='interrupted'):
    """The exit status of work(), which returns one. A fault of what was given ends it with a message of the program `name`, not
    with a traceback, and so does Ctrl-C."""
    try:
        return work()
    except (ValueError, OSError, DeviceError) as error:
        print(f'{name}: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\n{name}: {interrupted}', file=sys.stderr)
        return 130
