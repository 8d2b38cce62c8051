"""What the measurements have in common: their flags, processes of their own, the table and the json."""

import argparse
import json
import subprocess
import sys
from pathlib import Path


class Parser(argparse.ArgumentParser):
    def parse_args(self, args=None):
        """Refuses a --folder that is not a measurement's to remove."""
        options = super().parse_args(args)
        folder = getattr(options, 'folder', None)
        if folder and folder != self.get_default('folder') and not options.part and folder.exists() and any(folder.iterdir()):
            self.error(f'--folder {folder}: would be removed, and is not empty; name a folder that is not there yet')
        return options


def counts(text):
    """'1,2' -> [1, 2]: the type of a flag."""
    found = [int(each) for each in text.split(',')]
    if min(found) < 1:
        raise ValueError
    return found


def count(text):
    """The type of a flag: a number above 0."""
    found, = counts(text)
    return found


def parser(part, text, folder=True, world=False):
    """The command line of `bash run/bench.bash part`, to which it adds flags of its own; folder: whether it makes data; world:
    whether it measures on sentences of real length."""
    made = Parser(prog=f'bash run/bench.bash {part}', description=text, allow_abbrev=False)
    if folder:
        made.add_argument('--folder', type=Path, default=Path('snap/bench') / part, help='where data is made, and removed again')
    if world:
        made.add_argument('--world', type=Path, default=Path('data/shapes'),
                          help='a sample world, whose questions tell how long sentences are, where there are none of VQA')
    made.add_argument('--out', type=Path, default=Path('snap/bench') / f'{part}.json', help='the figures')
    made.add_argument('--part', help=argparse.SUPPRESS)  # a measurement that needs a process of its own
    return made


def measured_apart(module, *flags):
    """The figures that a bench module prints in a process of its own, given these flags; ends where that one fails."""
    command = [sys.executable, '-m', f'bench.{module}', *map(str, flags)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(1)  # it has said why
    return json.loads(done.stdout.splitlines()[-1])


def most_resident():
    """Bytes of this process; unlike ru_maxrss, not those of the process that started it."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM'))
    return int(line.split()[1]) * 1024


def tell(figures, out):
    """Prints {what, with its unit: number or text} as a table and writes it as json; returns exit status 0."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(figures, indent=1) + '\n')
    wide = max(map(len, figures))
    for name, value in figures.items():
        print(f'{name:{wide}s}  {shown(value):>12}')
    print(f'Written to {out}.')
    return 0


def shown(value):
    if isinstance(value, float) and abs(value) < 100:
        return f'{value:.1e}' if 0 < abs(value) < 1e-3 else f'{value:.3f}'
    return f'{value:,.0f}' if isinstance(value, (int, float)) else value
