"""Measures the ranking of images and captions without the model: all pairs of --images and --captions, scored by a product of two
vectors in place of a model, from a store of regions of the published size. Prints pairs per second and memory."""

import shutil
import sys
import time

import numpy as np
import torch

from annotations.dataset import ExampleDataset
from annotations.examples import Examples
from bench import report
from bench.regions import make_store
from cli import positive, run_main
from param import Options
from regions import store
from tasks import ranking

WORDS, LENGTH = 1000, 12  # of the captions


class Captions:
    """Writes captions of numbers as word pieces, in place of an encoder."""

    needs, blank, mirror = frozenset({'regions', 'boxes'}), False, ''

    def write(self, texts, max_length, blank=False):
        return {'input_ids': np.array([[int(word) for word in text.split()] for text, in texts])}


class Product(torch.nn.Module):
    """The logit of a pair: a product of a number of the image with one of the caption. Counts the seconds that it takes."""

    def __init__(self):
        super().__init__()
        self.words, self.seconds, self.pairs = torch.nn.Embedding(1 + WORDS, 1), 0.0, 0

    def match_logits(self, batch):
        begin = time.perf_counter()
        captions = self.words(batch['input_ids']).sum((1, 2)).view(len(batch['features']), -1)  # (i, c)
        logits = (batch['features'][:, 0, :1] * captions).flatten()
        self.seconds += time.perf_counter() - begin
        self.pairs += len(logits)
        return logits

    @staticmethod
    def probabilities(logits):
        return logits.sigmoid()


def main(argv=None) -> int:
    parser = report.parser('retrieval', __doc__)
    parser.add_argument('--images', type=positive, default=1000)
    parser.add_argument('--captions', type=positive, default=5000)
    parser.add_argument('--batchSize', type=positive, default=256, help='pairs that are scored at once')
    options = parser.parse_args(argv)

    def work():
        shutil.rmtree(options.folder, ignore_errors=True)
        figures = report.Figures(options.out)
        try:
            make_store(options.folder / 'images.store', options.images)
            figures |= measure(options)
        finally:
            shutil.rmtree(options.folder, ignore_errors=True)
        return figures.finish()

    return run_main('bench.bash', work)


def measure(options):
    """{figure: number} of one ranking."""
    regions = store.open_regions(options.folder / 'images.tsv')
    rng = np.random.default_rng(0)
    names = [img_id.decode() for img_id in regions.ids.tolist()]
    sentences = [' '.join(map(str, row)) for row in rng.integers(1, WORDS, (options.captions, LENGTH)).tolist()]
    examples = Examples.unlabelled([[names[i % len(names)]] for i in range(options.captions)], sentences)
    rows = np.arange(options.captions)[:, None] % len(names)
    dataset, head = ExampleDataset(examples, regions, rows, Captions(), [], LENGTH), Product()
    before, begin = report.peak_resident(), time.perf_counter()
    ranking.rank(head, dataset, Options(evalBatchSize=options.batchSize), torch.device('cpu'))
    seconds = time.perf_counter() - begin
    return {'images': options.images, 'captions': options.captions, 'pairs scored, with those of captions and their own image':
            head.pairs, 'seconds': seconds, 'of these in place of the model': head.seconds,
            'pairs per second without the model': head.pairs / (seconds - head.seconds),
            'memory before, MB': before / 1e6,
            'memory that is added at most, with what is read of regions, MB': (report.peak_resident() - before) / 1e6}


if __name__ == '__main__':
    sys.exit(main())
