"""Runs every measurement that needs a GPU, each in a process of its own with a limit of time, and gathers their figures in one
json and one table. A part that fails does not stop the others; the exit status is then 1."""

import argparse
import contextlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from cli import end_with_parent, run_main
from files.atomic import write_json, write_text
from files.json_files import read_json

MINUTES = 25  # of all parts together
SLOWER = 4  # times longer a part may take in a rehearsal, on a CPU that others may use too
DONE = 'done'
NO_FIGURES = 'settings', 'command'  # keys of what a comparison writes about itself
# Endings of the names of figures that are their units.
UNITS = (r'(?:[:,] )([^:, ]+/s|useful TFLOP/s|s [\w ]+|seconds|MB|GB|hours|per cent[\w ]*|days of .*|times [^:,]*'
         r'|operations[\w ]*|graphs[\w -]*)$')


@dataclass(frozen=True)
class Part:
    """A measurement. Words of its command may be {out}, a file for its figures, {data}, a folder, {world}, the sample world, and
    {gpus}."""

    name: str
    seconds: int  # after which it is stopped
    command: str  # on a GPU
    small: str  # flags that are added in a rehearsal, where the last of two counts
    file: str = '{out}'  # of its figures

    def words(self, rehearse, **places):
        return [word.format(**places) for word in (self.command + (f' {self.small}' if rehearse else '')).split()]

    def shown(self, rehearse, **places):
        """The command without the places of its files."""
        words = ' '.join(self.words(rehearse, **{name: f'{{{name}}}' for name in ('out', 'data', 'world')}, **places))
        return re.sub(r' --\w+ \{\w+\}\S*', '', words)


def bench(name, seconds, flags, small, module=None):
    return Part(name, seconds, f'bash run/bench.bash {module or name.split()[0]} --out {{out}} {flags}', small)


TINY = '--small --device cpu --batchSize 4'
PARTS = [
    Part('sample world', 90, 'bash run/shapes.bash --out {world}', '--images 50 --questions 6', ''),
    Part('tests on a GPU', 140, '{python} -m pytest -q -rs -m gpu --junitxml {out}', '', 'junit'),
    bench('memory', 90, '--batchSizes 256 --measured 0', '--small --batchSizes 4 --measured 2'),
    bench('model', 190, '--world {world} --tasks vqa,pretrain --modes fp32,bf16 --batchSize 256 --device cuda',
          f'{TINY} --runs 1 --evalBatchSize 4'),
    bench('model compiled', 190, '--world {world} --tasks vqa --modes bf16,compiled --batchSize 1024 --evalBatchSize 0 --alone '
          '--device cuda', f'{TINY} --runs 1 --modes bf16'),
    bench('model vlbert', 100, '--world {world} --model vlbert --modes fp32,bf16 --batchSize 256 --evalBatchSize 0 --device cuda',
          f'{TINY} --runs 1'),
    bench('loop', 100, '--world {world} --folder {data}/loop --batchSize 256 --steps 20 --featDevice cuda --device cuda',
          f'{TINY} --steps 2 --turns 1 --featDevice cpu --processes 1'),
    bench('loop pretrain', 100, '--world {world} --folder {data}/loop_pretrain --task pretrain --batchSize 256 --steps 20 '
          '--featDevice cuda --device cuda', f'{TINY} --steps 2 --turns 1 --featDevice cpu --processes 1'),
    bench('albef', 110, '--batchSize 64 --modes plain,bf16,both --runs 3 --device cuda', f'{TINY} --runs 1'),
    bench('pixels', 80, '--batchSize 4 --device cuda', f'{TINY} --runs 1'),
    bench('detector', 60, '--count 20 --device cuda', '--count 1 --device cpu'),
    bench('images', 80, '--folder {data}/images --count 300 --turns 1 --numWorkers 8', '--count 12 --batchSize 4 --numWorkers 1'),
    bench('retrieval', 40, '--folder {data}/retrieval', '--images 20 --captions 40'),
    Part('compare', 130, 'bash run/compare.bash {gpus} --fast --tasks vqa --name gpu --dataRoot {world}',
         '--models lxmert,vlbert --seconds 2 --pretrainSeconds 3', 'snap/compare/gpu/results.json'),
]
REHEARSAL = Part('rehearsal', 600, 'bash run/bench.bash rehearsal --out {out}', '')


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog='bash run/gpu.bash', description=__doc__, allow_abbrev=False)
    parser.add_argument('--rehearse', action='store_true', help='the same parts, very small on the CPU, and bench/rehearsal.py')
    parser.add_argument('--out', type=Path, default=Path('snap/gpu'), help='folder of figures.json, table.md and logs '
                        '(%(default)s)')
    parser.add_argument('--parts', help='some of them, separated by commas: ' + ', '.join(part.name for part in PARTS))
    options = parser.parse_args(argv)
    names = options.parts.split(',') if options.parts else None
    parts = [*PARTS, *([REHEARSAL] if options.rehearse else [])]
    if unknown := [name for name in names or () if name not in {part.name for part in parts}]:
        parser.error(f'--parts {unknown[0]}: expected some of {",".join(part.name for part in parts)}')
    parts = [part for part in parts if not names or part.name in names]

    def work():
        if not options.rehearse and not torch.cuda.is_available():
            raise ValueError(f'PyTorch {torch.__version__} finds no GPU: check that `nvidia-smi` works and that it is built for '
                             'CUDA; or add --rehearse, which runs everything very small on the CPU')
        return run_all(parts, options)

    return run_main('gpu.bash', work)


def run_all(parts, options):
    (options.out / 'logs').mkdir(parents=True, exist_ok=True)
    world = options.out / 'world' if options.rehearse else Path('data/shapes')
    data = options.out / 'gpu_data'
    shutil.rmtree(data, ignore_errors=True)  # of a part that was stopped, which the next one would refuse to remove
    results, begin = {'machine': machine(), 'parts': {}}, time.monotonic()
    for number, part in enumerate(parts, 1):
        out = options.out / f'{part.name.replace(" ", "_")}.{"xml" if part.file == "junit" else "json"}'
        out.unlink(missing_ok=True)
        if part.file.startswith('snap/'):  # a run of an earlier time would be resumed, or refused for other settings
            shutil.rmtree(Path(part.file).parent, ignore_errors=True)
        gpus = 'cpu' if options.rehearse else '0'
        words = part.words(options.rehearse, out=out, data=data, world=world, python=sys.executable, gpus=gpus)
        command = part.shown(options.rehearse, python='python', gpus=gpus)
        limit = part.seconds * (SLOWER if options.rehearse else 1)
        print(f'[{number}/{len(parts)}] {part.name}: at most {limit} s: {command}', flush=True)
        fault, seconds = run(words, limit, options.out / 'logs' / f'{out.stem}.txt')
        figures, missing = gathered(part, out)
        status = fault or missing or DONE
        results['parts'][part.name] = {'command': command, 'status': status, 'seconds': seconds, 'figures': figures}
        print(f'    {status} after {seconds:.0f} s, {len(figures)} figures', flush=True)
        write_json(options.out / 'figures.json', results)  # so that all is kept if the machine is taken away
        write_text(options.out / 'table.md', table(results))
    failed = [name for name, part in results['parts'].items() if part['status'] != DONE]
    print(f'{time.monotonic() - begin:.0f} s. Written to {options.out}/figures.json and {options.out}/table.md.')
    if failed:
        print(f'gpu.bash: failed: {", ".join(failed)}; see {options.out}/logs', file=sys.stderr)
    return int(bool(failed))


def machine():
    """What the figures were measured on."""
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    packages = {name: importlib.util.find_spec(name) is not None for name in ('transformers', 'pytest')}
    return {'GPUs': [{'name': one.name, 'memory, GB': round(one.total_memory / 1e9, 1),
                      'multiprocessors': one.multi_processor_count,
                      'compute capability': f'{one.major}.{one.minor}'} for one in devices],
            'PyTorch': torch.__version__, 'CUDA': torch.version.cuda, 'cuDNN': torch.backends.cudnn.version(),
            'NCCL': '.'.join(map(str, torch.cuda.nccl.version())) if devices else None, 'Python': platform.python_version(),
            'CPU cores': len(os.sched_getaffinity(0)), 'platform': platform.platform(), 'installed': packages}


def run(words, limit, log):
    """(what went wrong or '', seconds) of a command, which is stopped with all that it started after `limit` seconds."""
    begin = time.monotonic()
    with log.open('wb') as file:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                                   preexec_fn=partial(end_with_parent, os.getpid()))
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # also after Ctrl-C; what it left behind, too
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - begin
    if status is None:
        return f'stopped after {limit} s', seconds
    last = next((line for line in reversed(log.read_text(errors='replace').splitlines()) if line.strip()), '')
    return (f'exit status {status}: {last}' if status else ''), seconds


def gathered(part, out):
    """({name: figure}, what is missing or '') of what a part has written."""
    if not part.file:
        return {}, ''
    path = out if part.file in ('{out}', 'junit') else Path(part.file)
    if not path.is_file():
        return {}, f'{path} was not written'
    if part.file == 'junit':
        suite = ElementTree.parse(path).getroot().find('testsuite').attrib
        counts = {name: int(suite[name]) for name in ('tests', 'failures', 'errors', 'skipped')}
        return {'passed': counts['tests'] - counts['failures'] - counts['errors'] - counts['skipped'], **counts}, ''
    return dict(flat(read_json(path, 'the figures of a measurement'))), ''


def flat(value, name=''):
    """(name, number or text) of nested dicts and lists, names joined by colons; without NO_FIGURES."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value, 1):
            if key not in NO_FIGURES:
                yield from flat(each, f'{name}: {key}' if name else str(key))
    elif value is not None:
        yield name, value


def table(results):
    """A row for each figure, in Markdown."""
    gpus = ', '.join(gpu['name'] for gpu in results['machine']['GPUs']) or 'no GPU'
    lines = [f'PyTorch {results["machine"]["PyTorch"]}, {gpus}, {results["machine"]["CPU cores"]} CPU cores.', '',
             '| measurement | figure | unit | command |', '|---|---|---|---|']
    for name, part in results['parts'].items():
        if part['status'] != DONE:
            lines.append(f'| {name} | {part["status"]} | | `{part["command"]}` |'.replace('\n', ' '))
        for figure, value in part['figures'].items():
            unit = re.search(UNITS, figure)
            what = f'{name}: {figure[:unit.start()] if unit else figure}'
            lines.append(f'| {what} | {shown(value)} | {unit[1] if unit else ""} | `{part["command"]}` |')
    return '\n'.join(lines) + '\n'


def shown(value):
    """A figure with four digits at most, texts as they are."""
    if isinstance(value, float):
        return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'
    return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == '__main__':
    sys.exit(main())
