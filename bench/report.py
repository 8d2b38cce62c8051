"""What the measurements have in common: flags, processes of their own, the rows and the json of figures."""

import argparse
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from cli import end_with_parent
from files.atomic import write_json


class Parser(argparse.ArgumentParser):
    def parse_args(self, args=None):
        """Rejects a --folder that contains files of someone else, since the measurement removes it."""
        options = super().parse_args(args)
        folder = getattr(options, 'folder', None)
        if folder and folder != self.get_default('folder') and not options.part and folder.exists() and any(folder.iterdir()):
            self.error(f'--folder {folder}: would be removed, and is not empty; name a folder that does not exist yet')
        return options


def parser(module, text, folder=True):
    """The command line of `bash run/bench.bash MODULE`, to which it adds its own flags. folder: whether it makes data."""
    flags = Parser(prog=f'bash run/bench.bash {module}', description=text, allow_abbrev=False)
    if folder:
        flags.add_argument('--folder', type=Path, default=Path('snap/bench') / module, help='for its data; removed at the end')
    flags.add_argument('--out', type=Path, default=Path('snap/bench') / f'{module}.json', help='file of the figures')
    flags.add_argument('--part', help=argparse.SUPPRESS)  # a measurement that needs its own process
    return flags


def run_separately(module, *flags, launcher=(), **environment):
    """The figures that a bench module prints as json in a process of its own; exits where that process fails.

    launcher: a program that starts several processes of the module, such as torchrun; environment: variables."""
    command = [sys.executable, *launcher, '-m', f'bench.{module}', *map(str, flags)]
    environment = os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))} | environment
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment,
                          preexec_fn=partial(end_with_parent, os.getpid()))
    if done.returncode:
        sys.exit(1)  # it has printed why
    return json.loads(done.stdout.splitlines()[-1])


def peak_resident():
    """Peak resident memory of this process in bytes; ru_maxrss would include that of the process that started it."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


WIDTH = 62  # characters of the name of a figure in a row


class Figures(dict):
    """{name with unit: number or text}: each is printed, and all are written as json, as soon as it is measured."""

    def __init__(self, out):
        super().__init__()
        self.out = out
        out.parent.mkdir(parents=True, exist_ok=True)

    def __setitem__(self, name, value):
        self.update({name: value})

    def update(self, figures):
        """Adds figures that were measured together."""
        super().update(figures)
        write_json(self.out, self)
        for name, value in figures.items():
            if isinstance(value, float) and abs(value) < 100:
                value = f'{value:.1e}' if 0 < abs(value) < 1e-3 else f'{value:.3f}'
            elif not isinstance(value, str):
                value = f'{value:,.0f}'
            print(f'{name:{WIDTH}s}  {value:>12}', flush=True)

    def __ior__(self, figures):
        self.update(figures)
        return self

    def finish(self):
        """The exit status of a measurement that is complete."""
        print(f'Written to {self.out}.')
        return 0
