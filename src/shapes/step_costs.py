"""What a step of training costs: `python -m shapes.step_costs REQUESTS.json COSTS.json`, for shapes/compare.py."""

import importlib
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch

import dist
from batches import load_batches, training_batches
from cli import run_main
from files.atomic import temporary_folder, write_json
from files.json_files import read_json
from optimizer import OptimizerStep
from param import parse_args
from run_state import Progress
from tasks.program import TaskProgram
from tasks.registry import TASKS, task_class
from train import train_step

TOTAL = 1000  # steps, on which schedules depend


def cpu_seconds():
    """The CPU time of this process, and of its children so far, such as the decoder of pictures."""
    ticks = 0
    for thread in Path('/proc/self/task').iterdir():
        for child in (thread / 'children').read_text().split():
            ticks += sum(map(int, Path(f'/proc/{child}/stat').read_text().rpartition(')')[2].split()[11:15]))
    return time.process_time() + ticks / os.sysconf('SC_CLK_TCK')


def device_seconds():
    """The time when the GPU has finished."""
    torch.cuda.synchronize()
    return time.perf_counter()


class Steps:
    """Training steps of one model on one kind of data. kind: a task or 'pretrain'; flags: of its program, a list."""

    def __init__(self, kind, program, flags, device):
        """program: 'module:class' of pre-training; None: that of the task `kind`."""
        options = parse_args(flags)
        if kind in TASKS:
            self.program = TaskProgram.prepare(task_class(kind), options, device)
        else:
            module, name = program.split(':')
            self.program = getattr(importlib.import_module(module), name).prepare(options, device)
        self.device, self.options = device, self.program.options
        _, self.head, self.data, _ = self.program.make()
        self.optimizer_step = OptimizerStep(self.head, self.options, TOTAL, device)
        self.seconds = []

    def run(self, steps, clock):
        """Makes so many steps, always the same ones, and notes the seconds of one, with the loading of its batch."""
        self.head.train()
        begin = clock()
        parts = list(training_batches(len(self.data), 0, 0, self.options, self.data.groups()))[:steps]
        for i, batch in enumerate(load_batches(self.data, parts, self.options, self.device)):
            train_step(self.head, self.optimizer_step, [batch], self.options, Progress(0, i, TOTAL), self.device)
        self.seconds.append((clock() - begin) / len(parts))

    def costs(self):
        """{figure: number}; the first turn is a warm-up."""
        trained = {p: p.numel() for p in self.head.parameters() if p.requires_grad}
        embeddings = {p for module in self.head.modules() if isinstance(module, torch.nn.Embedding)
                      for p in module.parameters() if p.requires_grad}
        return {'seconds': statistics.median(self.seconds[1:]), 'examples': len(self.data), 'batch': self.options.batchSize,
                'parameters': sum(trained.values()), 'embeddings': sum(map(torch.numel, embeddings))}


def measure(requests, device, turns, steps):
    """{kind: {model: costs}} of {kind: {model: {'program': ..., 'flags': [...]}}}, all models in turns."""
    clock, costs = device_seconds if device.type == 'cuda' else cpu_seconds, {}
    for kind, models in requests.items():
        with temporary_folder('lxmert-compare-') as folder:
            runs = {model: Steps(kind, one['program'], [*one['flags'], '--output', str(folder / model)], device)
                    for model, one in models.items()}
            for _ in range(turns + 1):
                for run in runs.values():
                    run.run(steps, clock)
            costs[kind] = {model: run.costs() for model, run in runs.items()}
            for run in runs.values():
                run.program.folder.close()
        text = ', '.join(f'{model} {one["seconds"]:.3f}' for model, one in costs[kind].items())
        print(f'Seconds of a step, {kind}: {text}', flush=True)
    return costs


def main(requests, out):
    """requests: of a json {'device', 'turns', 'steps', 'kinds': as of measure}; out: a json for its result."""
    asked = read_json(requests, 'steps to be measured', dict)
    torch.set_num_threads(1)
    write = partial(write_json, out)
    write(measure(asked['kinds'], dist.start(asked['device']), asked['turns'], asked['steps']))
    return 0


if __name__ == '__main__':
    sys.exit(run_main('step_costs', lambda: main(*sys.argv[1:])))
