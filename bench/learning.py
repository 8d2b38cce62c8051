"""Compares what models learn from the same data in the same time: fine-tuning on the sample world's training data, or on a share
of it, from random weights and after pre-training, several seeds. The seconds of a step of each model are measured in turns in one
process; a model whose step takes longer makes fewer epochs. Repeat the command to resume."""

import json
import os
import re
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch

from batches import load_batches, training_batches
from bench import report
from bench.model import timed
from cli import end_with_parent, positive, run_main
from files.json_files import read_json
from optimizer import OptimizerStep
from param import Options
from pretrain.captions import CaptionProgram
from pretrain.program import OBJECTIVES, PretrainingProgram
from run_state import Progress
from tasks.program import TaskProgram
from tasks.registry import task_class
from train import train_step

# Of each task: the split it is trained on, that it is tested on, the share of the training data, and the epochs of REFERENCE.
TASKS = {'vqa': ('train', 'minival', 0.1, 8), 'gqa': ('train', 'testdev', 0.1, 8), 'nlvr2': ('train', 'test', 0.1, 8),
         'refcoco': ('train', 'val', 1, 4), 'vcr': ('train', 'val', 1, 8), 'entailment': ('train', 'dev', 1, 6),
         'retrieval': ('coco_train', 'coco_valid', 1, 2)}
FLAGS = {('vcr', 'vlbert'): ('--optim', 'adamw')}  # where the recipe's optimizer needs more steps than a short run has
REFERENCE = 'lxmert'  # the epochs are this model's
# Of each model: the launcher of pre-training, its last snapshot without the number, its flags, and the flag that loads it.
PRETRAINING = {'lxmert': ('lxmert_pretrain', 'Epoch{:02d}_LXRT', ('--lr', '5e-4', '--batchSize', '64'), '--loadLXMERT'),
               'vlbert': ('vlbert_pretrain', 'Epoch{:02d}', ('--lr', '5e-4', '--batchSize', '32'), '--loadVLBERT')}
RATES = {'scratch': '5e-4', 'pretrained': '3e-4'}
BATCH = 32


def main(argv=None) -> int:
    parser = report.parser('learning', __doc__, folder=False)
    parser.add_argument('--dataRoot', type=Path, default=Path('data/shapes'), help='a sample world (run/shapes.bash)')
    parser.add_argument('--runs', type=Path, default=Path('snap/bench/learning'), help='folder of the runs, which are kept')
    parser.add_argument('--models', default='lxmert,vlbert', help='default: %(default)s')
    parser.add_argument('--tasks', default=','.join(TASKS), help='default: %(default)s')
    parser.add_argument('--seeds', default='9595,1,2', help='default: %(default)s')
    parser.add_argument('--pretrainEpochs', type=positive, default=6,
                        help=f'of {REFERENCE} in pre-training (%(default)s)')
    parser.add_argument('--jobs', type=positive, default=2, help='runs at the same time, a core each (%(default)s)')
    options = parser.parse_args(argv)
    options.models, options.tasks, options.seeds = (getattr(options, name).split(',') for name in ('models', 'tasks', 'seeds'))
    if options.part:
        return run_main('bench.bash', lambda: print(json.dumps(step_seconds(options))) or 0)
    if unknown := [task for task in options.tasks if task not in TASKS]:
        parser.error(f'--tasks {unknown[0]}: expected some of {", ".join(TASKS)}')
    return run_main('bench.bash', lambda: compare(options, report.Figures(options.out)))


def compare(options, figures):
    prepare(options)
    path = options.runs / 'costs.json'
    costs = read_json(path, 'the costs of steps') if path.is_file() else {}
    if missing := [kind for kind in (*options.tasks, 'pretrain') if kind not in costs]:
        flags = [f'--dataRoot={options.dataRoot}', f'--runs={options.runs}', f'--models={",".join(options.models)}',
                 f'--tasks={",".join(missing)}']
        costs |= report.run_separately('learning', '--part', 'steps', *flags, OMP_NUM_THREADS='1')
        path.write_text(json.dumps(costs))
    costs = {kind: costs[kind] for kind in (*options.tasks, 'pretrain')}
    figures |= {f'{model} {kind}, {what}': value for kind, by_model in costs.items() for model, (*values,) in by_model.items()
                for what, value in zip(('s a step', 'steps an epoch', 'parameters'), values, strict=True)}

    def epochs(kind, model, reference):
        of_model, of_reference = (costs[kind][name][0] * costs[kind][name][1] for name in (model, REFERENCE))
        return max(1, round(reference * of_reference / of_model))

    snapshots, runs = {}, []
    for model in options.models:
        launcher, name, flags, load = PRETRAINING[model]
        count = epochs('pretrain', model, options.pretrainEpochs)
        output = options.runs / f'pretrain_{model}'
        snapshots[model] = load, output / name.format(count)
        figures |= {f'{model} pretrain, epochs': count}
        runs.append([f'run/{launcher}.bash', 'cpu', *flags, *common(options, model), '--fromScratch', '--epochs', count,
                     '--output', output])
    run_all(runs, options.jobs)
    runs, outputs = [], {}
    for task in options.tasks:
        for model in options.models:
            train, valid, _, count = TASKS[task]
            count = epochs(task, model, count)
            figures |= {f'{model} {task}, epochs': count}
            for start in RATES:
                weights = ('--fromScratch',) if start == 'scratch' else snapshots[model]
                for seed in options.seeds:
                    output = outputs[task, model, start, seed] = options.runs / f'{task}_{model}_{start}_{seed}'
                    runs.append([f'run/{task}_finetune.bash', 'cpu', 'x', *common(options, model, 'share'), '--model', model,
                                 *weights, '--train', train, '--valid', valid, '--batchSize', BATCH, '--evalBatchSize', 256,
                                 '--lr', RATES[start], *FLAGS.get((task, model), ()), '--epochs', count, '--seed', seed,
                                 '--output', output])
    run_all(runs, options.jobs)
    print(f'\n| {" | ".join(["start, model", *options.tasks])} |\n|---|{"---|" * len(options.tasks)}')
    for start in RATES:
        for model in options.models:
            cells = []
            for task in options.tasks:
                scores = [last_score(outputs[task, model, start, seed]) for seed in options.seeds]
                figures.update({f'{task}, {model}, {start}, seed {seed}': score
                                for seed, score in zip(options.seeds, scores, strict=True)})
                spread = f' ± {statistics.stdev(scores):.1f}' if len(scores) > 1 else ''
                cells.append(f'{statistics.mean(scores):.1f}{spread}')
            print(f'| {start}, {model} | {" | ".join(cells)} |')
    return figures.finish()


def prepare(options):
    """Data roots: `full`, links to the world, and `share`, with the first examples of each training file; and a vocabulary with a
    config for each model."""
    world = options.dataRoot.resolve()
    for name in ('full', 'share'):
        root = options.runs / name
        root.mkdir(parents=True, exist_ok=True)
        for path in world.iterdir():
            if (path.name not in TASKS or name == 'full') and not (root / path.name).exists():
                (root / path.name).symlink_to(path)
    for task in options.tasks:
        split, _, share, _ = TASKS[task]
        folder, train = options.runs / 'share' / task, f'{split}.json'
        folder.mkdir(exist_ok=True)
        for path in (world / task).iterdir():
            if path.name != train and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
        examples = read_json(world / task / train, 'training data', list)
        (folder / train).write_text(json.dumps(examples[:round(len(examples) * share)]))


def common(options, model, data='full'):
    return '--dataRoot', options.runs / data, '--bert', options.dataRoot / 'bert', '--resume'


def run_all(runs, jobs):
    """Runs launchers, so many at a time. Raises ValueError if one fails."""
    waiting, running = list(runs), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                command = [str(word) for word in waiting.pop(0)]
                with open(f'{command[-1]}.out', 'w') as out:
                    process = subprocess.Popen(
                        ['bash', *command], stdout=out, stderr=subprocess.STDOUT, env=os.environ | {'OMP_NUM_THREADS': '1'},
                        preexec_fn=partial(end_with_parent, os.getpid()))
                running[process] = Path(command[-1])
            time.sleep(0.2)
            for process in [process for process in running if process.poll() is not None]:
                output = running.pop(process)
                if process.returncode:
                    lines = Path(f'{output}.out').read_text().strip().splitlines()
                    raise ValueError(f'{output}.out: a run failed: {lines[-1] if lines else process.returncode}')
                print(f'{output}: {(output / "log.log").read_text().splitlines()[-1]}', flush=True)
    finally:
        for process in running:
            process.terminate()
            process.wait()


def last_score(output):
    """The score of the last validation of a run, in per cent."""
    lines = [line for line in (output / 'log.log').read_text().splitlines() if 'Valid ' in line]
    return float(re.search(r'Valid ([\d.]+)', lines[-1])[1])


def step_seconds(options, turns=3, steps=8):
    """{kind: {model: [seconds of a step, steps of an epoch, parameters]}}: medians over turns of all models. The kinds are
    options.tasks, of which one may be 'pretrain'."""
    torch.set_num_threads(1)
    device, costs = torch.device('cpu'), {}
    for kind in options.tasks:
        programs = {}
        for model in options.models:
            output = str(options.runs / 'steps' / f'{kind}_{model}')
            flags = {'dataRoot': str(options.runs / ('full' if kind == 'pretrain' else 'share')), 'fromScratch': True,
                     'model': model, 'bert': str(options.dataRoot / 'bert'), 'device': 'cpu', 'valid': '', 'output': output,
                     'lr': 1e-5}
            if kind != 'pretrain':
                program = TaskProgram.prepare(
                    task_class(kind), Options(train=TASKS[kind][0], batchSize=BATCH, **flags), device)
            else:
                batch = int(PRETRAINING[model][2][-1])
                if model == REFERENCE:
                    flags |= dict.fromkeys(OBJECTIVES, True)
                    splits = 'mscoco_train,mscoco_nominival,vgnococo'
                    program = PretrainingProgram.prepare(Options(train=splits, batchSize=batch, **flags), device)
                else:
                    program = CaptionProgram.prepare(Options(train='train', batchSize=batch, **flags), device)
            _, head, train_set, _ = program.make()
            batches = list(load_batches(train_set, list(training_batches(len(train_set), 0, 0, program.options))[:steps],
                                        program.options, device))
            programs[model] = program, head, train_set, batches, OptimizerStep(head, program.options, 1000, device), []
        for _ in range(turns + 1):
            for program, head, _, batches, optimizer_step, seconds in programs.values():
                seconds.append(timed(partial(steps_of, head, optimizer_step, batches, program.options), device) / len(batches))
        costs[kind] = {model: [statistics.median(seconds[1:]), max(len(train_set) // program.options.batchSize, 1),
                               sum(p.numel() for p in head.parameters())]
                       for model, (program, head, train_set, _, _, seconds) in programs.items()}
        for program, *_ in programs.values():
            program.folder.close()
    return costs


def steps_of(head, optimizer_step, batches, options):
    head.train()
    for i, batch in enumerate(batches):
        train_step(head, optimizer_step, [batch], options, Progress(0, i, len(batches)), torch.device('cpu'))


if __name__ == '__main__':
    sys.exit(main())
