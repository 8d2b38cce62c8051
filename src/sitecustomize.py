"""Read by Python at its start, where src is on PYTHONPATH: Ctrl-C while a program imports, before cli.py handles it, prints a
line instead of a traceback. Python then ends by SIGINT."""

import sys


def _show(kind, error, trace, show=sys.excepthook):
    if issubclass(kind, KeyboardInterrupt):
        print('interrupted', file=sys.stderr)
    else:
        show(kind, error, trace)


sys.excepthook = _show
