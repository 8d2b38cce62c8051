"""Measures the real loop with one process and with two, of the same batch: on a CPU they share its cores, on GPUs each has its
own."""

import json
import os
import shutil
import subprocess
import sys

import torch

from bench import loop, report


def main(argv=None) -> int:
    parser = report.parser('scaling', __doc__, world=True)
    loop.add_flags(parser)
    parser.add_argument('--processes', type=report.counts, default=[1, 2], help='how many, separated by commas')
    options = parser.parse_args(argv)
    try:
        figures = {'sentences': loop.make(options)}
        for count in options.processes:
            if options.device == 'cuda' and count > torch.cuda.device_count():
                print(f'{count} processes: left out, there are {torch.cuda.device_count()} GPUs', file=sys.stderr)
                continue
            figures[f'processes: {count}, examples/s'] = examples_per_second(options, count)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        parser.exit(1, f'bench.bash: error: {error}\n')
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    first, *others = [name for name in figures if name.startswith('processes')]
    for name in others:
        figures[f'{name.split(",")[0]}, times as fast as {first.split(": ")[1].split(",")[0]}'] = figures[name] / figures[first]
    return report.tell(figures, options.out)


def examples_per_second(options, count):
    flags = [f'--{name}={getattr(options, name)}' for name in ('task', 'mode', 'batchSize', 'steps', 'turns', 'device',
                                                              'featDevice', 'folder')]
    command = [sys.executable, 'src/machines.py', str(count), 'bench/loop.py', '--part', 'several', *flags,
               *(['--small'] if options.small else [])]
    threads = str(max(len(os.sched_getaffinity(0)) // count, 1))
    # A program's folder is not to be searched for modules: regions.py there is not src/regions.
    environment = os.environ | {'OMP_NUM_THREADS': threads, 'PYTHONSAFEPATH': '1'}
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    return json.loads(printed.splitlines()[-1])


if __name__ == '__main__':
    sys.exit(main())
