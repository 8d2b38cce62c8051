"""Measures how pre-training starts on as many sentences as the paper's: made-up ones, 9 million about 180,000 images, whose
columns are made by the first start and mapped by the second. See run/bench.bash."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from bench import report
from bench.regions import anon
from bert.tokenization import SPECIAL_TOKENS
from param import Options
from pretrain.program import Program
from regions import store
from regions.tsv import ImageRegions
from train import Part

PER_IMAGE = {'mscoco': 20, 'vqa': 15, 'gqa': 15}  # sentences; of 180,000 images 9 million
ANSWERS = 9500
FEATURES = 8  # numbers of a region, of which each image has one: what regions cost is measured by run/bench.bash regions
BATCH = 256
BATCHES = 100
WORDS = [a + b + c for a in 'bdfgklmnprst' for b in 'aeiou' for c in 'lmnrst']


def main(argv=None) -> int:
    parser = report.parser('pretrain', __doc__)
    parser.add_argument('--images', type=int, default=180_000, help='with 50 sentences each (5 KB of json an image)')
    parser.add_argument('--processes', type=int, default=4, help='that start together the third time')
    options = parser.parse_args(argv)
    if options.part:
        print(json.dumps(start(options.folder)))
        return 0
    try:
        figures = measure(options)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    return report.tell(figures, options.out)


def measure(options) -> dict:
    """All figures by name, with their units."""
    make(options.folder, options.images)
    annotations = options.folder / 'lxmert/mscoco_train.json'
    figures = {'sentences': options.images * sum(PER_IMAGE.values()), 'json, MB': annotations.stat().st_size / 1e6}
    command = [sys.executable, '-m', 'bench.pretrain', '--part', 'start', '--folder', str(options.folder)]

    def together(processes):
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]

    for name in ('first', 'second'):
        found, = together(1)
        figures |= {f'{name} start, to the first batch: {what}': value for what, value in found.items()}
    columns = sum(file.stat().st_size for file in annotations.with_suffix('.columns').iterdir())
    found = together(options.processes)
    own = sum(one['memory of its own, MB'] for one in found)
    return figures | {'columns on disk, shared by all processes, MB': columns / 1e6,
                      f'{options.processes} processes: memory of their own together, MB': own,
                      f'{options.processes} processes: with all the columns, MB': own + columns / 1e6}


def make(folder, images):
    """Sentences of different words about images with one region each, an answer table and a vocabulary."""
    rng = np.random.default_rng(0)
    (folder / 'lxmert').mkdir(parents=True)
    (folder / 'bert').mkdir()
    answers = [f'answer {i}' for i in range(ANSWERS)]
    words = rng.choice(WORDS, (1 << 16, 10)).tolist()
    with open(folder / 'lxmert/mscoco_train.json', 'w') as file:
        for image in tqdm(range(images), 'sentences', unit=' images', disable=None):
            start, sentf = image * sum(PER_IMAGE.values()), {}
            for source, count in PER_IMAGE.items():
                sentf[source] = [f'{" ".join(words[(start + i) % len(words)][:6 + i % 5])} {start + i}' for i in range(count)]
            labelf = {source: [{answers[(start + i) % ANSWERS]: 1, answers[(7 * start + i) % ANSWERS]: 0.3} for i in range(count)]
                      for source, count in PER_IMAGE.items() if source != 'mscoco'}
            example = {'img_id': img_id(image), 'sentf': sentf, 'labelf': labelf}
            file.write(('[\n' if not image else ',\n') + json.dumps(example))
        file.write('\n]\n')
    table = [{'ans': answer, 'dsets': ['vqa', 'gqa']} for answer in answers]
    (folder / 'lxmert/all_ans.json').write_text(json.dumps(table))
    digits = list('0123456789')
    (folder / 'bert/vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, *digits, *(f'##{digit}' for digit in digits), *WORDS]))
    (folder / 'bert/config.json').write_text(json.dumps({
        'visual_feat_dim': FEATURES, 'hidden_size': 8, 'num_attention_heads': 1, 'intermediate_size': 8, 'l_layers': 1,
        'r_layers': 1, 'x_layers': 1}))
    one, conf = np.zeros(1, np.int64), np.ones(1, np.float32)
    store.write(folder / 'mscoco_imgfeat/train2014_obj36.store', (
        ImageRegions(img_id(image), 100, 100, one, conf, one, conf, np.array([[0, 0, 50, 50]], np.float32),
                     rng.normal(size=(1, FEATURES)).astype(np.float32))
        for image in tqdm(range(images), 'regions', unit=' images', disable=None)), {})


def img_id(image):
    return f'COCO_train2014_{image:012d}'


def start(folder):
    """From the beginning of the program to the first batch, and random batches after it: the figures of this process."""
    begin = time.perf_counter()
    options = Options(train='mscoco_train', valid='', dataRoot=str(folder), bert=str(folder / 'bert'), fromScratch=True,
                      taskMaskLM=True, taskMatched=True, taskObjPredict=True, taskQA=True, device='cpu',
                      output=str(folder / f'out{time.time_ns()}'))
    program = Program.prepare(options, torch.device('cpu'))
    _, dataset, _ = program.make()
    order = np.random.default_rng(0).permutation(len(dataset))
    dataset[Part(order[:BATCH], 0, 0)]
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    for step in range(BATCHES):
        dataset[Part(order[step * BATCH:(step + 1) * BATCH], step * BATCH, 0)]
    program.folder.close()
    return {'s': seconds, 'memory of its own, MB': anon(os.getpid()) / 1e6,
            'most resident memory, MB': report.most_resident() / 1e6,
            f'ms for a batch of {BATCH}': 1e3 * (time.perf_counter() - begin) / BATCHES}


if __name__ == '__main__':
    sys.exit(main())
