"""Measures what a submission costs beside the model: made-up splits as large as VQA's test and GQA's submission, answered by a
stand-in of a few neurons. See run/bench.bash."""

import json
import resource
import shutil
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from bench import report
from bench.regions import make_store
from bert.tokenization import SPECIAL_TOKENS
from param import Options
from tasks.gqa import GQA
from tasks.program import Program
from tasks.task import write_list
from tasks.vqa import VQA

SPLITS = {'vqa': (VQA, 'test', 'mscoco_imgfeat/test2015_obj36', 448_000, 3129),
          'gqa': (GQA, 'submit', 'vg_gqa_imgfeat/vg_gqa_obj36', 4_200_000, 1842)}
IMAGES = 500  # of 36 regions with 2,048 numbers, in half precision
WORDS = [a + b for a in 'abcdefghij' for b in 'aeiou']


class StandIn(torch.nn.Module):
    """Answers from the first numbers of the first word, box and feature."""

    def __init__(self, answers):
        super().__init__()
        self.fc = torch.nn.Linear(3, answers)

    def forward(self, input_ids, features, boxes, visual_attention_mask=None):
        return self.fc(torch.stack([input_ids[:, 1].float(), features[:, 0, 0], boxes[:, 0, 0]], 1))


class Submission(Program):
    """Everything of a task's program but its model."""

    def build(self):
        return self.task_class(StandIn(len(self.answers)), self.options)


def main(argv=None) -> int:
    parser = report.parser('submit', __doc__)
    parser.add_argument('--share', type=float, default=1.0, help='of the questions: 448,000 of VQA and 4,200,000 of GQA')
    parser.add_argument('--batchSize', type=int, default=64, help='questions in a batch; the launchers have 256, for GPUs')
    options = parser.parse_args(argv)
    if options.part:
        print(json.dumps(predict(options.part, options.folder, options.batchSize)))
        return 0
    figures = {}
    try:
        for task in SPLITS:
            make(task, options.folder, options.share)
            figures |= report.measured_apart('submit', '--part', task, '--folder', options.folder,
                                             '--batchSize', options.batchSize)
            shutil.rmtree(options.folder)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    return report.tell(figures, options.out)


def make(task, folder, share):
    """A split with different sentences on the images of a region store, a vocabulary and answers."""
    _, split, features, questions, answers = SPLITS[task]
    rng = np.random.default_rng(0)
    for name in (task, 'bert'):
        (folder / name).mkdir(parents=True)
    make_store(folder / f'{features}.store', IMAGES)
    beginnings = [' '.join(rng.choice(WORDS, 6)) for _ in range(1000)]
    write_list(folder / task / f'{split}.json', (
        {'img_id': f'COCO_train2014_{number % IMAGES:012d}', 'question_id': f'{number:09d}' if task == 'gqa' else number,
         'sent': f'what is {beginnings[number % 1000]} {number}?'}
        for number in tqdm(range(round(questions * share)), f'{task} {split}', disable=None)))
    (folder / task / 'trainval_label2ans.json').write_text(json.dumps([f'answer {i}' for i in range(answers)]))
    letters = list('abcdefghijklmnopqrstuvwxyz0123456789?')
    pieces = [*SPECIAL_TOKENS, *letters, *(f'##{letter}' for letter in letters), 'what', 'is', *WORDS]
    (folder / 'bert/vocab.txt').write_text('\n'.join(pieces))
    (folder / 'bert/stand_in.pth').touch()


def predict(task, folder, batch_size):
    """The figures of one submission, by a process of its own."""
    begin = time.perf_counter()
    options = Options(test=SPLITS[task][1], dataRoot=str(folder), bert=str(folder / 'bert'), load=str(folder / 'bert/stand_in'),
                      batchSize=batch_size, device='cpu', output=str(folder / 'out'))
    program = Submission.prepare(SPLITS[task][0], options, torch.device('cpu'))
    program.test()
    program.folder.close()
    seconds = time.perf_counter() - begin
    with open(folder / 'out' / f'{options.test}_predict.json') as file:
        count = sum(1 for _ in file) - 2  # the brackets
    return {f'{task}, questions': count, f'{task}, questions/s': count / seconds,
            f'{task}, peak resident memory, MB': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


if __name__ == '__main__':
    sys.exit(main())
