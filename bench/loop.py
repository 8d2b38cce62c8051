"""Measures what the training loop costs besides its steps: the loop with its data loading from a store of 500 images, or with
--features pixels from their files, for VL-BERT end to end, against the same steps on batches in memory, in turns in one process;
then the loop with several processes, which share the cores of a CPU and have a GPU each. From the time of a step follow the hours
of the published trainings; for more devices with gradients exchanged in a ring after the backward pass, at an assumed rate."""

import json
import os
import shutil
import statistics
import sys

import numpy as np
import torch

import dist
from batches import load_batches, training_batches
from bench import report
from bench.images import make_photographs
from bench.model import ANSWERS, MODES, SMALL, add_device_flags, question_lengths, timed
from bench.pixels import SMALL as SMALL_PIXELS
from bench.regions import make_store
from bert.tokenization import SPECIAL_TOKENS
from cli import positive, run_main
from optimizer import OptimizerStep
from param import Options
from pretrain.program import PretrainingProgram
from run_state import Progress
from tasks.program import TaskProgram
from tasks.vqa import VQA
from train import SigtermHandler, train_epoch, train_step

IMAGES = 500
SPLIT = {'vqa': 'train', 'pretrain': 'mscoco_train'}
PARAMETERS = {'vqa': 213e6, 'pretrain': 239e6}
# Examples and epochs of the published trainings: VQA's train and nominival, GQA's balanced train and valid, pre-training's pairs.
TRAININGS = {'vqa': {'VQA, 4 epochs': 632_117 * 4, 'GQA, 4 epochs': 1_075_062 * 4},
             'pretrain': {'pre-training, 20 epochs': 9_180_000 * 20}}
DEVICES = (1, 8, 64)
LR, STEPS = 1e-5, 1_000_000  # of the schedule, whose beginning is measured


def main(argv=None) -> int:
    parser = report.parser('loop', __doc__)
    add_device_flags(parser)
    parser.add_argument('--task', choices=tuple(SPLIT), default='vqa')
    parser.add_argument('--mode', choices=tuple(MODES), default='bf16', help='compiled: bf16 with --compile')
    parser.add_argument('--features', choices=('precomputed', 'pixels'), default='precomputed', help='pixels: of generated '
                        'photographs of 640 x 480 (--task vqa)')
    parser.add_argument('--numWorkers', type=int, default=0, help='data workers (0)')
    parser.add_argument('--steps', type=positive, default=5, help='steps of a turn')
    parser.add_argument('--turns', type=positive, default=3, help='turns, after one that warms up')
    parser.add_argument('--featDevice', choices=('cpu', 'ram', 'cuda'), default='cpu', help='where features are kept')
    parser.add_argument('--processes', type=positive, default=2, help='of the last measurement; 1: none')
    parser.add_argument('--GBps', type=float, default=100.0, help='GB per second that a device sends while it receives as many')
    options = parser.parse_args(argv)
    if options.features == 'pixels' and options.task != 'vqa':
        parser.error(f'--features pixels: is measured with --task vqa, found --task {options.task}')
    if options.part:  # one of several processes
        seconds, _ = measure(options, steps_alone=False)
        if dist.is_main():
            print(json.dumps(seconds), flush=True)
        dist.stop()
        return dist.end(0)

    def work():
        figures = report.Figures(options.out)
        try:
            figures |= {'sentences': make(options), 'task, mode': f'{options.task}, {options.mode}'}
            loop, alone = measure(options)
            figures |= {
                'the loop, s a step': loop, 'the step alone, s': alone, 'the loop, examples/s': options.batchSize / loop,
                'share of the loop that is not the step, per cent': 100 * (1 - alone / loop)}
            if options.device == 'cuda' and options.processes > torch.cuda.device_count():
                print(f'{options.processes} processes: skipped, there are {torch.cuda.device_count()} GPUs', file=sys.stderr)
            elif options.processes > 1:
                name = f'processes: {options.processes}'
                seconds = start_processes(options)
                figures |= {f'{name}, examples/s': options.batchSize / seconds, f'{name}, times as fast as 1': loop / seconds}
        finally:
            shutil.rmtree(options.folder, ignore_errors=True)
        if options.features == 'precomputed':
            figures |= training_hours(options, loop)
        return figures.finish()

    return run_main('bench.bash', work)


def make(options):
    """Writes a split of the task, its regions and a vocabulary; returns the file that the lengths of its sentences are from."""
    shutil.rmtree(options.folder, ignore_errors=True)
    lengths, source = question_lengths(options.world)
    questions, words = options.batchSize * options.steps, [f'w{number}' for number in range(1000)]
    for name in ('bert', 'vqa', 'lxmert'):
        (options.folder / name).mkdir(parents=True)
    make_store(options.folder / 'mscoco_imgfeat/train2014_obj36.store', IMAGES)
    ids, small = [f'COCO_train2014_{number:012d}' for number in range(IMAGES)], SMALL
    if options.features == 'pixels':
        small = SMALL_PIXELS
        make_photographs(options.folder / 'images/train2014', ids)
    rng = np.random.default_rng(0)
    sentences = [' '.join(rng.choice(words, lengths[number % len(lengths)] - 2)) for number in range(questions)]
    answers = [f'answer {number}' for number in range(ANSWERS[options.task])]
    labels = [{answers[number % len(answers)]: 1.0} for number in range(questions)]
    ids = [ids[number % IMAGES] for number in range(questions)]
    files = {'vqa/train.json': [{'img_id': ids[i], 'question_id': i, 'sent': sentences[i], 'label': labels[i]}
                                for i in range(questions)],
             'vqa/trainval_label2ans.json': answers,
             'lxmert/mscoco_train.json': [{'img_id': ids[i], 'sentf': {'vqa': [sentences[i]]}, 'labelf': {'vqa': [labels[i]]}}
                                          for i in range(questions)],
             'lxmert/all_ans.json': [{'ans': answer, 'dsets': ['vqa']} for answer in answers],
             'bert/config.json': small if options.small else {}}
    for name, content in files.items():
        (options.folder / name).write_text(json.dumps(content))
    (options.folder / 'bert/vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, *words]))
    return source


def measure(options, steps_alone=True):
    """(seconds of a step in the loop, of the step alone or None): medians over the turns."""
    flags = Options(train=SPLIT[options.task], valid='', dataRoot=str(options.folder), bert=str(options.folder / 'bert'),
                    fromScratch=True, taskMaskLM=True, taskMatched=True, taskObjPredict=True, taskQA=True, lr=LR,
                    batchSize=options.batchSize, device=options.device, featDevice=options.featDevice, epochs=options.turns + 1,
                    output=str(options.folder / 'out'), numWorkers=options.numWorkers, **MODES[options.mode],
                    **{'model': 'vlbert', 'features': 'pixels'} if options.features == 'pixels' else {})
    device = dist.start(options.device)
    program = PretrainingProgram.prepare(flags, device) if options.task == 'pretrain' else TaskProgram.prepare(VQA, flags, device)
    _, head, train_set, _ = program.make()
    optimizer_step = OptimizerStep(head, flags, STEPS, device)
    model = head if dist.world_size() == 1 else torch.nn.parallel.DistributedDataParallel(head, find_unused_parameters=True)
    micro_batches = list(training_batches(len(train_set), 0, 0, flags)) if steps_alone else []
    batches = list(load_batches(train_set, micro_batches, flags, device))
    loop, alone = [], []
    for turn in range(options.turns + 1):
        with SigtermHandler() as sigterm:
            progress = Progress(turn, 0, options.steps)
            loop.append(timed(lambda progress=progress, sigterm=sigterm: train_epoch(
                model, optimizer_step, train_set, flags, progress, program.folder, device, sigterm), device))
        alone.append(timed(lambda turn=turn: [
            train_step(model, optimizer_step, [batch], flags, Progress(turn, step, options.steps), device)
            for step, batch in enumerate(batches)], device))
    program.folder.close()
    return statistics.median(loop[1:]) / options.steps, statistics.median(alone[1:]) / options.steps


def start_processes(options):
    """Seconds of a step of the loop in --processes processes."""
    flags = [f'--{name}={getattr(options, name)}' for name in (
        'task', 'mode', 'features', 'numWorkers', 'batchSize', 'steps', 'turns', 'device', 'featDevice', 'folder')]
    launcher = ['src/launch.py', f'--nproc-per-node={options.processes}']
    threads = max(len(os.sched_getaffinity(0)) // options.processes, 1)
    return report.run_separately('loop', '--part', 'process', *flags, *(['--small'] if options.small else []), launcher=launcher,
                                 OMP_NUM_THREADS=str(threads), NODE_RANK='0', GLOO_SOCKET_IFNAME='lo', NCCL_SOCKET_IFNAME='lo')


def training_hours(options, seconds):
    """{training and number of devices: hours}, each device with a batch of --batchSize in `seconds`."""
    hours = {}
    for name, examples in TRAININGS[options.task].items():
        for count in DEVICES:
            exchange = 2 * (count - 1) / count * 4 * PARAMETERS[options.task] / (options.GBps * 1e9)  # s, of float32 gradients
            hours[f'{name}, devices: {count}, hours'] = examples / (options.batchSize * count) * (seconds + exchange) / 3600
    return hours


if __name__ == '__main__':
    sys.exit(main())
