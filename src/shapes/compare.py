"""Pre-trains and fine-tunes models with equal budgets on the sample world: about the same number of trained parameters, and the
same seconds of training. Repeat the command to resume it."""

import argparse
import dataclasses
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import Timeout

import models
from cli import end_with_parent, positive, run_main
from explain.drawing import draw_bars, save
from files.atomic import locked, write_json, write_text
from files.json_files import DataError, field, read_json
from files.text import shown
from shapes.report import baseline, read_split


@dataclass(frozen=True)
class Recipe:
    """How a model is trained here. Of pre-training are `launcher`, `program` ('module:class') and the splits `train`, whose
    annotations are `files` below the world."""
    label: str
    launcher: str
    program: str
    train: str
    files: tuple
    pretraining: tuple  # flags
    finetuning: tuple  # flags
    sizes: dict  # keys of config.json
    first: tuple = ()  # flags of the first half of pre-training, if it has two
    flags: dict = dataclasses.field(default_factory=dict)  # of tasks, beside those of finetuning


# Sizes: layers in about the proportions of the published models (LXMERT 9, 5 and 5; ALBEF 12 of its ViT, 6 of text, 6 that fuse
# both), and the same number of parameters. Learning rates and LXMERT's order of objectives: fixed before, those of the sample
# world in docs/results.md and experience_in_pretraining.md.
RECIPES = {
    'lxmert': Recipe(
        'LXMERT', 'run/lxmert_pretrain.bash', 'pretrain.program:PretrainingProgram', 'mscoco_train,mscoco_nominival,vgnococo',
        ('lxmert/mscoco_train', 'lxmert/mscoco_nominival', 'lxmert/vgnococo'),
        ('--taskMaskLM', '--taskMatched', '--taskObjPredict', '--taskQA', '--lr', '5e-4'), ('--lr', '3e-4'),
        {'l_layers': 2, 'r_layers': 1, 'x_layers': 2}, first=('--taskQA', '--taskObjPredict', '--lr', '5e-4')),
    'vlbert': Recipe(
        'VL-BERT', 'run/vlbert_pretrain.bash', 'pretrain.captions:CaptionProgram', 'train', ('cc/train',),
        ('--lr', '5e-4'), ('--lr', '3e-4'), {'num_hidden_layers': 8},
        flags={'vcr': ('--optim', 'adamw')}),  # the published SGD needs more steps
    'albef': Recipe(
        'ALBEF', 'run/albef_pretrain.bash', 'pretrain.pairs:PairProgram', 'train', ('cc/train',),
        ('--taskContrast', '--taskMatched', '--taskMaskLM', '--lr', '1e-3', '--schedule', 'triangle'),
        ('--lr', '5e-4', '--schedule', 'triangle'), {'vision_depth': 2, 'num_hidden_layers': 4, 'fusion_layer': 2}),
}
TASKS = {'vqa': ('train', 'minival'), 'gqa': ('train', 'testdev'), 'nlvr2': ('train', 'test'), 'refcoco': ('train', 'val'),
         'vcr': ('train', 'val'), 'entailment': ('train', 'dev'), 'retrieval': ('coco_train', 'coco_valid')}  # trained on, tested
BATCH = 32
TOLERANCE = 0.05  # of a budget
PARAMETERS = 1.1  # largest ratio of two models' parameters
FIRST, PRETRAIN = PRETRAINING = 'pretrain_first', 'pretrain'  # the first half of pre-training; the second one, or all of it
FIRST_SEED = 9595
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1'}  # of all runs
NOTES = {
    'regions': 'The regions that LXMERT and VL-BERT read come with the world: the time of a detector is not in the seconds. '
               "ALBEF's seconds include reading and decoding pictures.",
    'refcoco': 'RefCOCO: ALBEF chooses a region by Grad-CAM, and is trained without boxes.',
    'nlvr2': 'NLVR2: ALBEF without the text assignment that its authors pre-train before it.',
    'pretrain': "Pre-training is each model's own: LXMERT has questions with their answers, which come first, and captions; "
                'VL-BERT captions and a corpus of texts; ALBEF captions. All are about the same training pictures.',
}


def parse_args(argv):
    parser = argparse.ArgumentParser(prog='bash run/compare.bash', description=__doc__, allow_abbrev=False)
    parser.add_argument('device', help='cpu, or ids of GPUs such as 0,1, a run on each')
    parser.add_argument('--models', default=','.join(RECIPES), help='default: %(default)s')
    parser.add_argument('--tasks', default=','.join(TASKS), help='default: %(default)s')
    parser.add_argument('--seeds', type=positive, help='of fine-tuning: 9595, 1, 2 and so on (3; with --fast 1)')
    parser.add_argument('--seconds', type=positive, help='of each fine-tuning (100; with --fast 4)')
    parser.add_argument('--pretrainSeconds', type=positive, help='of each pre-training (900; with --fast 12)')
    parser.add_argument('--fast', action='store_true', help='try all of it in minutes: too short to learn anything, and with '
                        'a fifth of the tested data')
    parser.add_argument('--jobs', type=positive, help='runs at the same time on the CPU, a thread each (all cores)')
    parser.add_argument('--dataRoot', type=Path, default=Path('data/shapes'), help='a sample world (%(default)s)')
    parser.add_argument('--name', help='folder below snap/compare (default; with --fast fast)')
    options = parser.parse_args(argv)
    if not re.fullmatch(r'cpu|\d+(,\d+)*', options.device):
        parser.error(f'first argument: expected cpu or GPU ids such as 0,1, found {shown(options.device)}')
    if options.name and (options.name == '..' or Path(options.name).name != options.name):
        parser.error(f'--name {shown(options.name)}: expected the name of a folder below snap/compare, such as default')
    for flag, known in (('models', RECIPES), ('tasks', TASKS)):
        names = getattr(options, flag).split(',')
        if unknown := [name for name in names if name not in known]:
            parser.error(f'--{flag} {unknown[0]}: expected some of {",".join(known)}')
        setattr(options, flag, [name for name in known if name in names])
    tasks = [task for task in options.tasks if any(supports(model, task) for model in options.models)]
    if not tasks:
        parser.error(f'--tasks {",".join(options.tasks)}: expected a task that one of --models {",".join(options.models)} knows')
    options.tasks = tasks
    seeds, seconds, pretrain, name = (1, 4, 12, 'fast') if options.fast else (3, 100, 900, 'default')
    options.seeds = [FIRST_SEED, *range(1, options.seeds or seeds)]
    options.seconds, options.pretrainSeconds = options.seconds or seconds, options.pretrainSeconds or pretrain
    options.name = options.name or name
    return options


# ---- the plan


def plan(costs, budget):
    """What all models do in a budget of seconds.

    costs: {model: {'seconds' of a step, 'examples' of an epoch, 'batch'}}.
    Returns (share, {model: epochs}): the largest share of the training data of which whole epochs take each model the budget, but
    for TOLERANCE or half a step. Raises ValueError if there is none.
    """
    share = 1.0
    while True:
        epochs = {}
        for model, one in costs.items():
            steps = int(one['examples'] * share) // one['batch']
            if not steps:
                raise ValueError(f'{budget} seconds are too few for {model}, of which a step takes {one["seconds"]:.2f}; give '
                                 'more --seconds and --pretrainSeconds')
            epochs[model] = max(round(budget / (one['seconds'] * steps)), 1)
            error = abs(epochs[model] * one['seconds'] * steps - budget)
            if error > max(TOLERANCE * budget, one['seconds'] / 2):
                break
        else:
            return share, epochs
        share *= 0.99


def supports(model, kind):
    """kind: FIRST, PRETRAIN or a task."""
    if kind == FIRST:
        return bool(RECIPES[model].first)
    try:
        return bool(models.package(model).recipe(kind))
    except ValueError:
        return False


def settings_of(options):
    """What must be the same when a comparison is resumed; equal to what is read back from json."""
    try:
        world = read_json(options.dataRoot / 'world.json', 'a sample world', dict)
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}; bash run/shapes.bash makes a sample world, and --dataRoot names another one') from None
    recipes = {model: dataclasses.asdict(RECIPES[model]) for model in options.models}
    return json.loads(json.dumps({
        'models': options.models, 'tasks': options.tasks, 'seconds': options.seconds, 'pretrainSeconds': options.pretrainSeconds,
        'fast': options.fast, 'device': 'cpu' if options.device == 'cpu' else 'cuda', 'world': world, 'recipes': recipes}))


def differences(before, settings):
    """What differs between the settings of a plan and those of now, recipes key by key, for a message."""
    pairs = {name: (before.get(name), value) for name, value in settings.items() if name != 'recipes'}
    for model, recipe in settings['recipes'].items():
        if old := before.get('recipes', {}).get(model):
            pairs |= {f'{model}, {key}': (old.get(key), recipe.get(key)) for key in old | recipe}
    return [f'{name} {shown(old)} then, {shown(new)} now' for name, (old, new) in pairs.items() if old != new]


def make_plan(options, folder):
    """The plan of a comparison, {'settings', 'costs' {kind: {model: costs}}, 'share' and 'epochs' (the same), 'text_only' {task:
    score}}: that in the folder, else a new one. Raises ValueError if the folder has that of other settings."""
    path, settings = folder / 'plan.json', settings_of(options)
    if path.is_file():
        made = read_json(path, 'the plan of a comparison', dict)
        for key in ('settings', 'costs', 'share', 'epochs', 'text_only'):
            field(made, key, dict, path)
        if different := differences(made['settings'], settings):
            raise ValueError(f'{path}: is of a comparison with other settings, or of another version: {"; ".join(different)}. '
                             'Scores of both do not belong in one table: repeat the command as it was, or choose another --name')
        return made
    needed = [f'{task}/{split}' for task in options.tasks for split in TASKS[task]]
    for file in (*needed, *(file for model in options.models for file in RECIPES[model].files)):
        if not (missing := options.dataRoot / f'{file}.json').is_file():
            raise FileNotFoundError(f'{missing}: no such file, perhaps as the sample world is of an earlier version; bash '
                                    'run/shapes.bash --out FOLDER makes another, for --dataRoot')
    source = options.dataRoot / 'bert'
    config = read_json(source / 'config.json', 'the config of a model', dict)
    for model in options.models:
        target = folder / 'bert' / model
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / 'vocab.txt', target)
        write_json(target / 'config.json', config | RECIPES[model].sizes)
    requests = {kind: {model: {'program': RECIPES[model].program, 'flags': [
        *training_flags(folder, options.dataRoot, kind, model), '--fromScratch', '--device', settings['device']]}
        for model in options.models if supports(model, kind)} for kind in (*PRETRAINING, *options.tasks)}
    requests = {kind: by_model for kind, by_model in requests.items() if by_model}
    write_json(folder / 'requests.json', {'device': settings['device'], 'turns': 1 if options.fast else 3,
                                          'steps': 3 if options.fast else 6, 'kinds': requests})
    print('Measuring the steps of all models in turns.', flush=True)
    gpu = {} if options.device == 'cpu' else {'CUDA_VISIBLE_DEVICES': options.device.split(',')[0]}
    done = subprocess.run([sys.executable, '-m', 'shapes.step_costs', folder / 'requests.json', folder / 'costs.json'],
                          env=ENVIRONMENT | gpu, preexec_fn=partial(end_with_parent, os.getpid()))
    if done.returncode:
        raise ValueError('the steps could not be measured: see above')
    costs = read_json(folder / 'costs.json', 'costs of steps', dict)
    made = {'settings': settings, 'costs': costs, 'share': {}, 'epochs': {}, 'text_only': {}}
    for kind, by_model in costs.items():
        made['share'][kind], made['epochs'][kind] = {}, {}
        # Each model is pre-trained on data of its own; a task has the same data for all.
        if kind in PRETRAINING:
            plans = [({model: cost}, options.pretrainSeconds / (2 if supports(model, FIRST) else 1))
                     for model, cost in by_model.items()]
        else:
            plans = [(by_model, options.seconds)]
        for one, budget in plans:
            share, epochs = plan(one, budget)
            made['share'][kind] |= dict.fromkeys(one, share)
            made['epochs'][kind] |= epochs
    for task in options.tasks:
        make_data(folder, options.dataRoot, task, {f'{task}/{TASKS[task][0]}': max(made['share'][task].values()),
                                                   f'{task}/{TASKS[task][1]}': 0.2 if options.fast else 1})
        tested = read_split(folder / 'data' / task, task, TASKS[task][1])
        made['text_only'][task] = baseline(options.dataRoot, task, tested)
    for kind in PRETRAINING:
        for model, share in made['share'].get(kind, {}).items():
            make_data(folder, options.dataRoot, f'{kind}_{model}', dict.fromkeys(RECIPES[model].files, share))
    write_json(path, made)
    return made


def make_data(folder, world, name, shares):
    """A data root `name` with links to the world, but for files of annotations that are cut to a share, drawn at random.

    shares: {name below the world, without .json: share}."""
    root = folder / 'data' / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    cut = {Path(file).parent.name for file in shares}
    for path in world.resolve().iterdir():
        if path.name not in cut:
            (root / path.name).symlink_to(path)
    for part in cut:
        (root / part).mkdir()
        for path in (world / part).resolve().iterdir():
            if path.suffix == '.json' and f'{part}/{path.stem}' not in shares:  # not what was made from them
                (root / part / path.name).symlink_to(path)
    for file, share in shares.items():
        items = read_json(world / f'{file}.json', 'annotations', list)
        chosen = sorted(random.Random(FIRST_SEED).sample(range(len(items)), max(1, round(len(items) * share))))
        write_json(root / f'{file}.json', [items[i] for i in chosen], indent=None)


# ---- runs


@dataclass
class Job:
    """A run of a launcher; `command` lacks bash and the device. after: the name of the job that must be complete before it."""
    name: str
    command: list
    after: str = ''


def training_flags(folder, data, kind, model):
    """Flags of training, but for initial weights, epochs, seed and output."""
    recipe = RECIPES[model]
    if kind in PRETRAINING:
        train, flags = recipe.train, recipe.first if kind == FIRST else recipe.pretraining
    else:
        train, flags = TASKS[kind][0], (*recipe.finetuning, *recipe.flags.get(kind, ()))
    return ['--model', model, '--dataRoot', str(data), '--bert', str(folder / 'bert' / model), '--train', train, '--valid', '',
            '--batchSize', str(BATCH), *flags]


def jobs_of(made, folder, seeds):
    """The jobs of a plan: all pre-training, then a fine-tuning and its test for each seed, task and model."""
    jobs, epochs, tasks = [], made['epochs'], made['settings']['tasks']

    def snapshot(kind, model):
        return str(folder / 'runs' / f'{kind}_{model}' / f'Epoch{epochs[kind][model]:02d}')

    for kind in PRETRAINING:
        for model, count in epochs.get(kind, {}).items():
            name, after = f'{kind}_{model}', f'{FIRST}_{model}' if kind == PRETRAIN and supports(model, FIRST) else ''
            start = ['--load', snapshot(FIRST, model)] if after else ['--fromScratch']
            jobs.append(Job(name, [RECIPES[model].launcher, *training_flags(folder, folder / 'data' / name, kind, model), *start,
                                   '--epochs', str(count), '--output', str(folder / 'runs' / name), '--resume'], after))
    for seed in seeds:
        for task in tasks:
            for model, count in epochs[task].items():
                name, data = f'{task}_{model}_{seed}', folder / 'data' / task
                output = str(folder / 'runs' / name)
                train = [f'run/{task}_finetune.bash', name, *training_flags(folder, data, task, model),
                         '--loadEncoder', snapshot(PRETRAIN, model), '--epochs', str(count), '--seed', str(seed),
                         '--output', output, '--resume']
                test = [f'run/{task}_test.bash', f'{name}_test', '--dataRoot', str(data), '--load', f'{output}/LAST',
                        '--test', TASKS[task][1], '--batchSize', '256', '--output', f'{output}_test']
                jobs += [Job(name, train, f'{PRETRAIN}_{model}'), Job(f'{name}_test', test, name)]
    return jobs


class Records:
    """What is known of each job, a json a job: {'command', 'complete', 'started' and 'ended' (times), 'cpu_seconds',
    'wall_seconds' of all that ended, 'score'}."""

    def __init__(self, folder):
        self.folder = folder / 'records'

    def read(self, job):
        """The record of a job; raises ValueError if another command was run under its name."""
        path = self.folder / f'{job.name}.json'
        new = {'command': job.command, 'complete': False, 'started': 0, 'ended': 0, 'cpu_seconds': 0.0, 'wall_seconds': 0.0}
        if not path.is_file():
            return new
        record = read_json(path, 'the record of a run', dict)
        if not new.keys() <= record.keys():
            raise DataError(f'{path}: expected the keys {", ".join(new)}, found {shown(record)}; remove it, and the run goes on')
        if record['command'] != job.command:
            raise ValueError(f'{path}: is of another command than now; choose another --name')
        return record

    def start(self, job):
        record = self.read(job)
        self.write(job, record | {'started': record['started'] + 1})

    def end(self, job, cpu, wall, **more):
        record = self.read(job)
        self.write(job, record | {'ended': record['ended'] + 1, 'cpu_seconds': record['cpu_seconds'] + cpu,
                                  'wall_seconds': record['wall_seconds'] + wall} | more)

    def write(self, job, record):
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / f'{job.name}.json', record)


def run_all(jobs, devices, folder, records, on_end):
    """Runs the jobs that are not complete, one at a time on each of `devices`. on_end(): called after each.

    Returns {name of a failed job: the last line of its output}; jobs after one that failed are not run.
    """
    complete = {job.name for job in jobs if records.read(job)['complete']}
    waiting, free, running, failed = [job for job in jobs if job.name not in complete], list(devices), {}, {}

    def ended(pid, status, usage):
        job, device, begin, process = running.pop(pid)
        process.returncode = os.waitstatus_to_exitcode(status)
        free.append(device)
        text, more = (folder / 'runs' / f'{job.name}.out').read_text(errors='replace'), {}
        if process.returncode == 0:
            complete.add(job.name)
            more = {'complete': True}
            if scores := re.findall(r'^Score on \S+: ([\d.]+)', text, re.M):
                more['score'] = float(scores[-1])
        else:
            failed[job.name] = (text.strip().splitlines() or [f'status {process.returncode}'])[-1]
        records.end(job, usage.ru_utime + usage.ru_stime, time.monotonic() - begin, **more)
        score = f', score {more["score"]}' if 'score' in more else ''
        print(f'{len(complete):4d} of {len(jobs)}: {job.name} {"failed" if job.name in failed else "complete"}'
              f'{score}, {usage.ru_utime + usage.ru_stime:.0f} CPU s', flush=True)

    try:
        while True:
            for job in [job for job in waiting if not job.after or job.after in complete][:len(free)]:
                waiting.remove(job)
                records.start(job)
                device, begin = free.pop(0), time.monotonic()
                command = ['bash', job.command[0], device, *job.command[1:]]
                with open(folder / 'runs' / f'{job.name}.out', 'a') as out:
                    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                                               env=ENVIRONMENT,
                                               preexec_fn=partial(end_with_parent, os.getpid()))
                running[process.pid] = job, device, begin, process
            if not running:
                return failed
            ended(*os.wait4(-1, 0))
            on_end()
    finally:
        for *_, process in running.values():
            process.terminate()
        while running:
            ended(*os.wait4(next(iter(running)), 0))


# ---- results


def results_of(made, folder, seeds, records):
    """All figures: those of the plan, of each model, and of each run that is complete."""
    settings, costs = made['settings'], made['costs']
    jobs = {job.name: job for job in jobs_of(made, folder, seeds)}

    def run(name, kind, model):
        record, cost = records.read(jobs[name]), costs[kind][model]
        test = records.read(jobs[f'{name}_test']) if kind not in PRETRAINING else {}
        if not record['complete'] or not test.get('complete', True):
            return None
        figures = {key: record[key] for key in ('cpu_seconds', 'wall_seconds', 'command')}
        figures['interrupted'] = record['started'] > 1
        if test:
            figures |= {'score': test['score'], **{f'test_{key}': test[key] for key in ('cpu_seconds', 'wall_seconds')}}
        share, epochs = made['share'][kind][model], made['epochs'][kind][model]
        steps = int(cost['examples'] * share) // cost['batch'] * epochs
        return figures | {'parameters': cost['parameters'], 'epochs': epochs, 'steps': steps, 'seconds_a_step': cost['seconds']}

    sizes = ('parameters', 'embeddings')
    return {
        'settings': settings, 'seeds': seeds, 'share': made['share'], 'text_only': made['text_only'],
        'parameters': {model: {key: cost[key] for key in sizes} for model, cost in costs[PRETRAIN].items()},
        'pretraining': {kind: {model: run(f'{kind}_{model}', kind, model) for model in costs[kind]} for kind in PRETRAINING
                        if kind in costs},
        'tasks': {task: {model: {str(seed): run(f'{task}_{model}_{seed}', task, model) for seed in seeds}
                         for model in costs[task]} for task in settings['tasks']},
    }


def mean_and_spread(runs):
    """(mean, standard deviation or None) of the scores of complete runs, or None if there is none."""
    scores = [run['score'] for run in runs.values() if run]
    return (statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else None) if scores else None


def table(results):
    """The table, in Markdown, with its footnotes."""
    settings, names, pretraining = results['settings'], results['settings']['models'], results['pretraining']
    labels = [settings['recipes'][model]['label'] for model in names]
    key, unit = ('cpu_seconds', 'CPU s') if settings['device'] == 'cpu' else ('wall_seconds', 's')
    rows = [['score', 'text only', *labels], ['---'] * (len(names) + 2)]

    def cell(runs):
        if runs is None:
            return '-'
        if not (figures := mean_and_spread(runs)):
            return '...'
        mark = ' (!)' if None in runs.values() else ' (*)' if any(run['interrupted'] for run in runs.values()) else ''
        return f'{figures[0]:.1f}' + (f' ± {figures[1]:.1f}' if figures[1] is not None else '') + mark

    def cost(runs):
        if not (done := [run for run in runs if run]):
            return '...'
        mark = ' (*)' if any(run['interrupted'] for run in done) else ''
        return f'{done[0]["epochs"]:,}; {done[0]["steps"]:,}; {statistics.mean(run[key] for run in done):,.0f}{mark}'

    for task, by_model in results['tasks'].items():
        rows.append([f'{task}, {TASKS[task][1]}', f'{results["text_only"][task]:.1f}',
                     *(cell(by_model.get(model)) for model in names)])
    counts = [results['parameters'][model]['parameters'] for model in names]
    rows += [['trained parameters, M', '', *(f'{count / 1e6:.2f}' for count in counts)],
             ['of these embeddings, M', '', *(f'{results["parameters"][model]["embeddings"] / 1e6:.2f}' for model in names)]]
    costs = {('first half of pre-training' if kind == FIRST else 'pre-training, or its second half' if FIRST in pretraining else
              'pre-training') + f': epochs; steps; {unit}': {model: [run] for model, run in by_model.items()}
             for kind, by_model in pretraining.items()}
    costs |= {f'{task}, {100 * max(results["share"][task].values()):.0f} % of its data: the same':
              {model: by_seed.values() for model, by_seed in by_model.items()} for task, by_model in results['tasks'].items()}
    rows += [[label, '', *(cost(by_model[model]) if model in by_model else '-' for model in names)]
             for label, by_model in costs.items()]
    lines = [f'| {" | ".join(row)} |' for row in rows]
    seeds = ', '.join(map(str, results['seeds']))
    lines += ['', f'Scores in per cent after the last epoch, mean ± standard deviation of the seeds {seeds}; each model is '
              f'pre-trained once. Budgets: {settings["pretrainSeconds"]:,} seconds of pre-training, {settings["seconds"]:,} of '
              'fine-tuning, from which steps follow. The seconds of the table are those of whole runs, with their start; on a '
              'machine that is busier than when steps were measured they are more, for the same steps.']
    runs = [run for by_model in pretraining.values() for run in by_model.values()]
    runs += [run for by_model in results['tasks'].values() for by_seed in by_model.values() for run in by_seed.values()]
    if None in runs:
        lines.append('(!) or ...: not complete. Repeat the command.')
    if any(run['interrupted'] for run in runs if run):
        lines.append('(*) A run was interrupted: steps that it made twice are in its seconds, what kill -9 ended is not.')
    if max(counts) > PARAMETERS * min(counts):
        lines.append(f'Parameters differ by {max(counts) / min(counts):.2f} times: the budgets are not equal.')
    larger = [f'{settings["recipes"][model]["label"]} {one["parameters"] / 1e6:.2f} M in {task}' for task, by_model in
              results['tasks'].items() for model, runs in by_model.items() for one in [next(filter(None, runs.values()), None)]
              if one and one['parameters'] > PARAMETERS * results['parameters'][model]['parameters']]
    lines += [f'More parameters in fine-tuning: {", ".join(larger)}.'] if larger else []
    lines += [text for name, text in NOTES.items() if name not in TASKS or (name in results['tasks'] and 'albef' in names)]
    return '\n'.join(lines) + '\n'


def draw(results, path):
    """Writes the figure: the scores of all tasks, a bar a model, and a line at the text-only baseline."""
    recipes = results['settings']['recipes']
    bars = {recipe['label']: [mean_and_spread(by_model.get(model, {})) for by_model in results['tasks'].values()]
            for model, recipe in recipes.items()}
    save(draw_bars(list(results['tasks']), bars, list(results['text_only'].values()), 'text only', 'score, per cent'), path)


def compare(options):
    folder, devices = Path('snap/compare') / options.name, options.device.split(',')
    if options.device == 'cpu':
        devices = ['cpu'] * (options.jobs or len(os.sched_getaffinity(0)))
    try:
        with locked(folder, timeout=0):
            made, records, begin = make_plan(options, folder), Records(folder), time.monotonic()
            (folder / 'runs').mkdir(exist_ok=True)
            jobs = jobs_of(made, folder, options.seeds)

            def write():
                results = results_of(made, folder, options.seeds, records)
                write_json(folder / 'results.json', results)
                write_text(folder / 'table.md', table(results))
                draw(results, folder / 'figure.png')
                return results

            failed = run_all(jobs, devices, folder, records, write)
            print('', table(write()), sep='\n')
            total = sum(records.read(job)['cpu_seconds'] for job in jobs)
            print(f'{time.monotonic() - begin:,.0f} seconds; {total:,.0f} CPU seconds of all runs. Written to {folder}: '
                  'table.md, results.json, figure.png.')
    except Timeout:
        raise ValueError(f'{folder}: another comparison writes there; wait for it, or choose another --name') from None
    if failed:
        name, line = next(iter(failed.items()))
        raise ValueError(f'{len(failed)} runs failed, such as {folder / "runs" / name}.out: {line}; repeat the command to try '
                         'them again')
    return 0


def main(argv=None):
    options = parse_args(argv)
    return run_main('compare.bash', lambda: compare(options), 'interrupted; repeat the command to resume it')


if __name__ == '__main__':
    sys.exit(main())
