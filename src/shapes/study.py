"""What pre-training is worth in the sample world: fine-tuning on a tenth of its data, from nothing and from models that were
pre-trained with all objectives, or with all but one. See run/study.bash."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from files.json_files import read_json
from tasks.registry import task_class

SHARE = 10  # the first tenth of the examples of each task: VQA's and GQA's are about a tenth of the pictures, NLVR2's about most
# The splits, and the flag that names the weights to start from.
TASKS = {'vqa': ('train', 'minival', '--loadLXMERTQA'), 'gqa': ('train', 'testdev', '--loadLXMERTQA'),
         'nlvr2': ('train', 'test', '--loadLXMERT')}
# What suits each start (experience_in_pretraining.md): from nothing a higher rate, and twice as long, but for NLVR2, which then
# does not move at all.
PRETRAINED, SCRATCH = {'vqa': 10, 'gqa': 10, 'nlvr2': 10}, {'vqa': 20, 'gqa': 20, 'nlvr2': 10}  # epochs
RATE = {'pre-trained': '2e-4', 'from nothing': '5e-4'}
WORDS, MATCHED, REGIONS, QA = '--taskMaskLM', '--taskMatched', '--taskObjPredict', '--taskQA'
ALL = 'all five'
PRETRAINING = {ALL: [WORDS, MATCHED, REGIONS, QA],
               'masked words': [MATCHED, REGIONS, QA],
               'matching': [WORDS, REGIONS, QA],
               'region features': [WORDS, MATCHED, REGIONS, QA, '--visualLosses', 'obj,attr'],
               'region labels': [WORDS, MATCHED, REGIONS, QA, '--visualLosses', 'feat'],
               'questions': [WORDS, MATCHED, REGIONS]}


def main(argv=None):
    parser = argparse.ArgumentParser(prog='bash run/study.bash', description=__doc__, allow_abbrev=False)
    parser.add_argument('--world', type=Path, default=Path('data/shapes'), help='a sample world, made by run/shapes.bash')
    parser.add_argument('--epochs', type=int, default=10, help='of pre-training')
    parser.add_argument('--fineEpochs', type=int, help='of fine-tuning; default: 10, for VQA and GQA from nothing 20')
    parser.add_argument('--seeds', default='9595,1,2', help='of fine-tuning from nothing and with all objectives, else the first')
    parser.add_argument('--leaveOut', default=','.join(name for name in PRETRAINING if name != ALL),
                        help='objectives to leave out, one at a time; "" for none')
    parser.add_argument('--jobs', type=int, default=2, help='programs that run beside each other, with a thread each')
    parser.add_argument('--out', type=Path, default=Path('snap/study'), help='where all is written; run again, it goes on')
    options = parser.parse_args(argv)
    if unknown := set(filter(None, options.leaveOut.split(','))) - PRETRAINING.keys():
        parser.error(f'--leaveOut: expected some of {", ".join(PRETRAINING)}, found {", ".join(sorted(unknown))}')
    try:
        for task in TASKS:
            cut(options.world, task, options.out)
        names = [ALL, None, *filter(None, options.leaveOut.split(','))]
        with ThreadPoolExecutor(options.jobs) as pool:
            jobs = [pool.submit(pretrain if name else fine_tune, options, name) for name in names]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what runs ends; what has not begun never does
                raise
    except (OSError, ValueError) as error:
        parser.exit(1, f'study.bash: error: {error}\n')
    table = tabulate(options, names)
    (options.out / 'table.md').write_text(table)
    draw(options.out / folder_of(ALL) / 'pretrain/log.log', options.out / 'losses.svg')
    print(f'{table}\n{options.out}/losses.svg: the losses of pre-training with {ALL} objectives')


def folder_of(name):
    return 'scratch' if name is None else 'all' if name == ALL else f'without_{name.replace(" ", "_")}'


def cut(world, task, out):
    """Describes the task on the first tenth of its training data, for --dataset."""
    spec = task_class(task).spec(world.resolve())
    train, valid, _ = TASKS[task]
    examples = read_json(spec.splits[train].annotations, f"the sample world's {task}; make it with run/shapes.bash")
    out.mkdir(parents=True, exist_ok=True)
    few = (out / f'{task}_train.json').resolve()
    few.write_text(json.dumps(examples[:max(len(examples) // SHARE, 1)]))
    splits = {split: {'annotations': str(path), 'features': [str(file) for file in spec.splits[split].features]}
              for split, path in ((train, few), (valid, spec.splits[valid].annotations))}
    described = {'kind': task, 'name': f'a tenth of {task}', 'max_length': spec.max_length, 'splits': splits}
    (out / f'{task}.json').write_text(json.dumps(described | ({'answers': str(spec.answers)} if spec.answers else {})))


def pretrain(options, name):
    """Pre-trains, and fine-tunes what came out."""
    launch(options, name, 'pretrain', 'pretrain/lxmert_pretrain', '--fromScratch', *PRETRAINING[name],
           '--dataRoot', options.world, '--train', 'mscoco_train,mscoco_nominival,vgnococo',
           '--valid', 'mscoco_minival' if name == ALL else '', '--batchSize', 32, '--lr', RATE['from nothing'],
           '--epochs', options.epochs, '--resume')
    fine_tune(options, name)


def fine_tune(options, name):
    seeds = options.seeds.split(',')
    for task, (train, valid, load) in TASKS.items():
        for seed in seeds if name in (None, ALL) else seeds[:1]:
            load = '--loadLXMERT' if name == 'questions' else load  # without questions there is no answer head
            start = [load, options.out / folder_of(name) / 'pretrain' / f'Epoch{options.epochs:02d}', '--lr', RATE['pre-trained']]
            start = start if name else ['--fromScratch', '--lr', RATE['from nothing']]
            run, program, given = f'{task}_{seed}', f'tasks/{task}', ('--dataset', options.out / f'{task}.json')
            epochs = options.fineEpochs or (PRETRAINED if name else SCRATCH)[task]
            launch(options, name, run, program, *given, *start, '--train', train, '--valid', '', '--seed', seed,
                   '--batchSize', 32, '--epochs', epochs, '--resume')
            launch(options, name, f'{run}_results', program, *given, '--test', valid, '--batchSize', 256,
                   '--load', options.out / folder_of(name) / run / 'LAST')


def launch(options, name, run, program, *flags):
    """Runs a program, with what it prints in a file."""
    output = options.out / folder_of(name) / run
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, f'src/{program}.py', '--device', 'cpu', '--bert', options.world / 'bert', '--output', output,
               *flags]
    print(output, flush=True)
    with open(output / 'printed.txt', 'w') as printed:
        run = subprocess.run([str(word) for word in command], stdout=printed, stderr=subprocess.STDOUT,
                             env={**os.environ, 'PYTHONPATH': 'src', 'OMP_NUM_THREADS': '1'})
    if run.returncode:
        last = (output / 'printed.txt').read_text().strip().rsplit('\n', 1)[-1]
        raise ValueError(f'{output}/printed.txt: a program run_main with status {run.returncode}: {last}')


def score(options, name, task, seed):
    """The score after the last epoch; the best would be chosen by what it is measured on."""
    printed = options.out / folder_of(name) / f'{task}_{seed}_results' / 'printed.txt'
    return float(re.search(r'Score on \w+: ([\d.]+)', printed.read_text())[1])


def tabulate(options, names):
    """The scores as a table in Markdown: mean and standard deviation over seeds, where there are several."""
    lines = [f'| pre-training | {" | ".join(TASKS)} |', '|---|' + '---|' * len(TASKS)]
    for name in names:
        cells = []
        for task in TASKS:
            seeds = options.seeds.split(',') if name in (None, ALL) else options.seeds.split(',')[:1]
            scores = [score(options, name, task, seed) for seed in seeds]
            spread = f' ± {statistics.stdev(scores):.1f}' if len(scores) > 1 else ''
            cells.append(f'{statistics.mean(scores):.1f}{spread}')
        what = 'none' if name is None else name if name == ALL else f'without {name}'
        lines.append(f'| {what} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def draw(log, path):
    """Draws the losses of a pre-training log by name over epochs, those of training and of validation."""
    import matplotlib
    matplotlib.use('svg')
    from matplotlib import pyplot as plt

    curves = {}
    for line in log.read_text().splitlines():
        if found := re.match(r'Epoch \d+: (Train|Valid) loss [\d.]+ \((.*?)\)', line):
            for one in found[2].split(', '):
                name, value = one.rsplit(' ', 1)
                curves.setdefault(name, {}).setdefault(found[1], []).append(float(value))
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharex=True, layout='constrained')
    for axis, (name, each) in zip(axes.flat, curves.items(), strict=False):
        for kind, values in each.items():
            axis.plot(range(1, len(values) + 1), values, label={'Train': 'training', 'Valid': 'validation'}[kind])
        axis.set_title(name)
        axis.set_xlabel('epoch')
    axes.flat[0].legend()
    plt.rcParams.update({'svg.hashsalt': 'losses', 'svg.fonttype': 'none'})  # the same curves, the same bytes; text as text
    figure.savefig(path, metadata={'Date': None})


if __name__ == '__main__':
    main()
