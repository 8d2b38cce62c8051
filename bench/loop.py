"""Measures what share of training is anything but arithmetic: the real loop, with its data path from a store of 500 images,
against the same steps alone, on batches that lie ready, turn by turn in one process."""

import json
import shutil
import statistics
import sys
import time

import numpy as np
import torch

import dist
from bench import report, work
from bench.model import MODES, SMALL
from bench.regions import make_store
from bert.tokenization import SPECIAL_TOKENS
from param import Options
from pretrain.program import Program as Pretraining
from run_folder import Progress
from tasks.program import Program
from tasks.vqa import VQA
from train import Terminations, Update, batches, train_epoch, train_step, training_parts

IMAGES = 500
SPLIT = {'vqa': 'train', 'pretrain': 'mscoco_train'}
LR, STEPS = 1e-5, 1_000_000  # of the schedule, whose beginning this is


def add_flags(parser):
    """The flags that bench.scaling has too."""
    parser.add_argument('--task', choices=tuple(SPLIT), default='vqa')
    parser.add_argument('--mode', choices=tuple(MODES), default='bf16', help='compiled: bf16 with --compile')
    parser.add_argument('--batchSize', type=report.count, default=32, help='examples in a step')
    parser.add_argument('--steps', type=report.count, default=5, help='of a turn')
    parser.add_argument('--turns', type=report.count, default=3, help='after one that does not count')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--featDevice', choices=('cpu', 'ram', 'cuda'), default='cpu', help='where features are kept')
    parser.add_argument('--small', action='store_true', help='a model of a few neurons, to try the program')


def main(argv=None) -> int:
    parser = report.parser('loop', __doc__, world=True)
    add_flags(parser)
    options = parser.parse_args(argv)
    if options.part:  # of bench.scaling: one of several processes
        seconds, _ = measure(options, bare=False)
        if dist.is_main():
            print(json.dumps(options.batchSize / seconds), flush=True)
        dist.stop()
        return dist.end(0)
    try:
        source = make(options)
        loop, alone = measure(options)
    except FileNotFoundError as error:
        parser.exit(1, f'bench.bash: error: {error}\n')
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    return report.tell({
        'sentences': source, 'task, mode': f'{options.task}, {options.mode}', 'the loop, s a step': loop,
        'the step alone, s': alone, 'the loop, examples/s': options.batchSize / loop,
        'share of the loop that is not the step, per cent': 100 * (1 - alone / loop)}, options.out)


def make(options):
    """A split of the task, its regions and a vocabulary; returns where the lengths of its sentences are from."""
    shutil.rmtree(options.folder, ignore_errors=True)
    lengths, source = work.question_lengths(options.world)
    questions, words = options.batchSize * options.steps, [f'w{number}' for number in range(1000)]
    for name in ('bert', 'vqa', 'lxmert'):
        (options.folder / name).mkdir(parents=True)
    make_store(options.folder / 'mscoco_imgfeat/train2014_obj36.store', IMAGES)
    rng = np.random.default_rng(0)
    sentences = [' '.join(rng.choice(words, lengths[number % len(lengths)] - 2)) for number in range(questions)]
    answers = [f'answer {number}' for number in range(work.ANSWERS[options.task])]
    asked = [{answers[number % len(answers)]: 1.0} for number in range(questions)]
    ids = [f'COCO_train2014_{number % IMAGES:012d}' for number in range(questions)]
    files = {'vqa/train.json': [{'img_id': ids[i], 'question_id': i, 'sent': sentences[i], 'label': asked[i]}
                                for i in range(questions)],
             'vqa/trainval_label2ans.json': answers,
             'vqa/trainval_ans2label.json': {answer: number for number, answer in enumerate(answers)},
             'lxmert/mscoco_train.json': [{'img_id': ids[i], 'sentf': {'vqa': [sentences[i]]}, 'labelf': {'vqa': [asked[i]]}}
                                          for i in range(questions)],
             'lxmert/all_ans.json': [{'ans': answer, 'dsets': ['vqa']} for answer in answers],
             'bert/config.json': SMALL if options.small else {}}
    for name, content in files.items():
        (options.folder / name).write_text(json.dumps(content))
    (options.folder / 'bert/vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, *words]))
    return source


def measure(options, bare=True):
    """(seconds a step of the loop, of the step alone or None): medians over the turns."""
    given = Options(train=SPLIT[options.task], valid='', dataRoot=str(options.folder), bert=str(options.folder / 'bert'),
                    fromScratch=True, taskMaskLM=True, taskMatched=True, taskObjPredict=True, taskQA=True, lr=LR,
                    batchSize=options.batchSize, device=options.device, featDevice=options.featDevice,
                    output=str(options.folder / 'out'), **MODES[options.mode])
    device = dist.start(options.device)
    program = Pretraining.prepare(given, device) if options.task == 'pretrain' else Program.prepare(VQA, given, device)
    task, dataset, _ = program.make()
    update = Update(task.model.parameters(), given, STEPS, task, device)
    model = task.model if dist.world_size() == 1 else torch.nn.parallel.DistributedDataParallel(
        task.model, find_unused_parameters=True)
    ready = list(batches(dataset, list(training_parts(len(dataset), 0, 0, given)), given, device)) if bare else []
    seconds = {'loop': [], 'bare': []}
    for turn in range(options.turns + 1):
        begin = time.perf_counter()
        with Terminations() as terminations:
            progress = Progress(steps_per_epoch=options.steps, epoch=0)
            train_epoch(task, model, update, dataset, given, progress, program.folder, device, terminations)
        seconds['loop'].append((time.perf_counter() - begin) / options.steps)
        begin = time.perf_counter()
        for step, batch in enumerate(ready):
            train_step(task, model, update, [batch], given, turn * options.steps + step, device)
        if device.type == 'cuda':
            torch.cuda.synchronize()
        seconds['bare'].append((time.perf_counter() - begin) / options.steps)
    program.folder.close()
    return statistics.median(seconds['loop'][1:]), statistics.median(seconds['bare'][1:])


if __name__ == '__main__':
    sys.exit(main())
