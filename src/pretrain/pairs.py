"""Pre-training on pairs of an image and a caption, for models that read pixels; which model is a flag."""

import dataclasses
import sys

import numpy as np

from annotations import pretraining_text
from annotations.captions import KIND
from annotations.dataset import load_examples
from annotations.examples import Examples
from annotations.sentences import uniform
from cli import train_main
from files.json_files import DataError
from pretrain.base import INVALID, PretrainingBase
from pretrain.captions import CaptionMetrics, published

CAPTIONS = 4  # a stream of draws


def read_pairs(paths):
    """The Examples of files of captions, each caption one. Their ids number the examples of training: a caption, or of ALBEF's
    items all captions of an image, of which one is drawn each time. Raises DataError."""
    images, sentences, ids, split, number = [], [], [], [], 0
    for file, path in enumerate(paths):
        for item, together in pretraining_text.read_forms(path):
            for captions in item['sentf'].values():
                for caption in captions:
                    images.append((item['img_id'],))
                    sentences.append(caption)
                    ids.append(number)
                    split.append(file)
                    number += not together
            number += together
    if not ids:
        raise DataError(f'{", ".join(map(str, paths))}: expected captions of images, found none')
    examples = Examples.unlabelled(images, sentences)
    return dataclasses.replace(examples, ids=np.array(ids), split=np.array(split, np.int8))


class Pairs:
    """n images with one caption or several, over an ExampleDataset of all captions; its batches are those of the captions that
    are drawn for the positions of the epoch. Other attributes are those of that dataset."""

    def __init__(self, dataset, seed):
        ids = dataset.examples.ids
        self.dataset, self.seed = dataset, seed
        self.start = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        self.count = np.diff(np.append(self.start, len(ids)))

    def __getattr__(self, name):
        if name == 'dataset':  # of a copy that is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.start)

    def __getitem__(self, micro_batch):
        indices = micro_batch.indices
        draws = uniform(self.seed, micro_batch.epoch, CAPTIONS, micro_batch.first, (len(indices), 1))[:, 0]
        captions = self.start[indices] + (draws * self.count[indices]).astype(np.int64)
        return self.dataset[micro_batch._replace(indices=captions)]

    def nonfinite_images(self, indices):
        return self.dataset.nonfinite_images(self.start[indices])


class PairMetrics(CaptionMetrics):
    """The losses, and the share of predictions that are right. The best epoch has the lowest loss."""

    @staticmethod
    def score(losses, sums):
        return -sum(losses.values())

    @staticmethod
    def format_score(score):
        return f'loss {-score:.4f}'


class PairProgram(PretrainingBase):
    """Pre-trains on pairs."""

    dataset_kind, published, whole_image = KIND, staticmethod(published), False
    data, invalid = ' on pairs', (*INVALID, 'taskObjPredict', 'taskQA', 'qaSets', 'transferAnswers', 'withoutText')

    def make(self):
        head = self.build_head(self.task)
        if 'pixels' not in head.encoder.needs:
            raise ValueError(f'--model {self.model}: reads no pixels; its pre-training is another program (see run/README.md)')
        datasets = [self.load(names, head.encoder) if names else None for names in (self.options.train, self.options.valid)]
        return PairMetrics(), head, *datasets

    def load(self, names, encoder):
        """The Pairs of splits."""
        examples = read_pairs([split.annotations for split in self.spec.named(names)])
        dataset = load_examples(self.spec, names, examples, encoder, [], self.options, device=self.device)
        return Pairs(dataset, self.options.seed)


class TextAssignmentProgram(PairProgram):
    """Pre-trains for two images: to which of them does a text belong?"""

    task, data = 'text_assignment', ' for two images (--taskAssign)'
    invalid = (*PairProgram.invalid, 'taskContrast', 'taskMatched', 'taskMaskLM', 'withoutDistillation')


def prepare(options, device):
    """The program that the flags name."""
    return (TextAssignmentProgram if options.taskAssign else PairProgram).prepare(options, device)


if __name__ == '__main__':
    sys.exit(train_main(prepare))
