"""Read by Python at its start, where src is on PYTHONPATH: Ctrl-C while a program imports, before cli.py handles it, prints a
line instead of a traceback. Python then ends by SIGINT."""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

HERE = os.path.dirname(os.path.realpath(__file__))


def _show(kind, error, trace, show=sys.excepthook):
    if issubclass(kind, KeyboardInterrupt):
        print('interrupted', file=sys.stderr)
    else:
        show(kind, error, trace)


sys.excepthook = _show
# The one of this Python, which on a cluster may find installed packages.
if spec := PathFinder.find_spec('sitecustomize', [path for path in sys.path if os.path.realpath(path) != HERE]):
    spec.loader.exec_module(module_from_spec(spec))
