"""Pre-training on captions with images and on plain text. The program behind run/vlbert_pretrain.bash; which model is a flag."""

import sys

import numpy as np

from annotations.captions import KIND, load_captions
from annotations.corpus import find, open_corpus
from annotations.spec import DatasetSpec
from annotations.split_regions import PROBABILITIES
from cli import train_main
from dist import print0
from files.json_files import DataError
from pretrain.base import INVALID, PretrainingBase, PretrainingMetrics
from pretrain.program import OBJECTIVES
from regions.image_regions import no_distribution
from tasks.program import check_features, check_has_features

LENGTH = 64  # tokens
FIRST = 1000  # regions of a store that are checked
CAPTIONS = 'MLM_captions'  # the accuracy that chooses the best epoch, as in the original code


class CaptionMetrics(PretrainingMetrics):
    """The losses, and the share of predicted word pieces and regions that are right."""

    best_name, epoch_name = 'BEST.pth', 'Epoch{:02d}.pth'  # snapshots

    @staticmethod
    def score(losses, sums):
        """The accuracy of captions' word pieces, in per cent."""
        return 100 * sums.get(f'right {CAPTIONS}', 0) / max(sums.get(f'predicted {CAPTIONS}', 0), 1)

    def figures(self, losses, sums):
        """(text, {name: number}). sums: {'predicted LOSS', 'right LOSS': numbers of predictions}."""
        text, figures = super().figures(losses, sums)
        accuracies = {f'{loss} accuracy': 100 * sums[f'right {loss}'] / sums[f'predicted {loss}']
                      for loss in losses if sums.get(f'predicted {loss}')}
        return ', '.join([text, *(f'{name} {value:.2f}' for name, value in accuracies.items())]), figures | accuracies

    @staticmethod
    def format_score(score):
        return f'{CAPTIONS} accuracy {score:.2f}'


def published(root):
    """The DatasetSpec of Conceptual Captions and a text corpus in the data folder `root` (Path)."""
    return DatasetSpec.from_dict({
        'kind': KIND, 'name': 'captions', 'max_length': LENGTH, 'corpus': ['corpus/*'],
        'splits': {split: {'annotations': f'cc/{split}.json', 'features': [f'cc_imgfeat/{split}.store'],
                           'images': f'images/cc_{split}'}
                   for split in ('train', 'val')},
    }, root, root)


class CaptionProgram(PretrainingBase):
    """Pre-trains on captions, and on texts unless --withoutText."""

    dataset_kind, published, whole_image = KIND, staticmethod(published), True
    data, invalid = ' on captions', (*INVALID, *OBJECTIVES, 'taskContrast', 'taskAssign', 'qaSets', 'transferAnswers')
    nothing = 'no mask rate is above 0'

    def make(self):
        if not self.options.withoutText:
            if not self.spec.corpus:
                raise DataError(f'{self.options.dataset}: key "corpus": expected a list of text files, found none; add it, or '
                                'give --withoutText')
            for pattern in self.spec.corpus:  # fail early
                find(pattern)
        task, head, *datasets = super().make()
        if not self.options.withoutText:  # last, since it takes longer than all other checks
            corpus = open_corpus(self.spec.corpus, self.tokenizer, self.spec.max_length, self.options.storeRoot)
            for dataset in filter(None, datasets):
                dataset.corpus = corpus
        return task, head, *datasets

    def metrics(self, head, train_set, valid_set):
        return CaptionMetrics()

    def load(self, names, encoder):
        """The dataset of splits. Raises DataError if features or class probabilities do not fit the model."""
        check_has_features(self.spec.named(names), names)
        dataset = load_captions(self.spec, names, self.tokenizer, self.options, self.device, encoder=encoder)
        if 'regions' in encoder.needs:
            check_features(dataset.regions, self.config, names, self.bert)
        classes, expected = dataset.regions.size_of(PROBABILITIES), self.config.num_region_classes
        if classes != expected:
            raise DataError(f'{PROBABILITIES} of {names} are of {classes} classes, but the model expects {expected} '
                            f'(num_region_classes in {self.bert / "config.json"}); give others, or another model')
        for store in getattr(dataset.regions, 'stores', [dataset.regions]):
            if no_distribution(np.array(store.arrays[PROBABILITIES][:FIRST])).all():
                print0(f'Warning: {store.name}: {PROBABILITIES} of its first {min(store.total, FIRST):,} regions do not sum to '
                       '1: the loss MVRC predicts none of them, and learns nothing. Extract or import them again.')
        return dataset


if __name__ == '__main__':
    sys.exit(train_main(CaptionProgram.prepare))
