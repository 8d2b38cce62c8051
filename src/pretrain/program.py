"""Pre-training on sentences and regions (LXMERT paper, section 3). The program behind run/lxmert_pretrain.bash."""

import sys

from annotations.answer_table import read_table
from annotations.pretraining import load_sentences
from annotations.pretraining_text import KIND
from annotations.spec import DatasetSpec
from cli import train_main
from dist import print0
from files.json_files import DataError
from pretrain.base import INVALID, PretrainingBase, PretrainingMetrics
from tasks.program import check_features, check_has_features
from train import warn_constant_logits

FEATURES = {'mscoco_train': 'mscoco_imgfeat/train2014', 'mscoco_nominival': 'mscoco_imgfeat/val2014',
            'mscoco_minival': 'mscoco_imgfeat/val2014', 'vgnococo': 'vg_gqa_imgfeat/vg_gqa'}
OBJECTIVES = ('taskMaskLM', 'taskMatched', 'taskObjPredict', 'taskQA')
CLASSES = {'classes': 'num_object_labels', 'attributes': 'num_attr_labels'}


class PretrainingTask(PretrainingMetrics):
    """Metrics of pre-training: the losses, and the accuracy of question answering for each source of questions."""

    best_name, epoch_name = 'BEST_EVAL_LOSS_LXRT.pth', 'Epoch{:02d}_LXRT.pth'  # snapshots

    def __init__(self, sources):
        """sources: list of str, as in SentenceDataset.sources."""
        self.sources = sources

    @staticmethod
    def score(losses, sums):
        """The negative total loss."""
        return -sum(losses.values())

    def figures(self, losses, sums):
        """(text, {name: number}). sums: {'asked SOURCE', 'right SOURCE': number of questions}."""
        text, figures = super().figures(losses, sums)
        asked = {source: sums.get(f'asked {source}', 0) for source in self.sources}
        correct = {source: sums.get(f'right {source}', 0) for source in self.sources}
        if any(asked.values()):
            figures['QA accuracy'] = 100 * sum(correct.values()) / sum(asked.values())
            by_source = {source: 100 * correct[source] / count for source, count in sorted(asked.items()) if count}
            figures |= {f'QA accuracy of {source}': value for source, value in by_source.items()}
            details = ', '.join(f'{source} {value:.2f}' for source, value in by_source.items())
            text += f', QA accuracy {figures["QA accuracy"]:.2f} ({details})'
        return text, figures

    @staticmethod
    def format_score(score):
        return f'loss {-score:.4f}'


def published(root):
    """The DatasetSpec of the paper's pre-training data in the data folder `root` (Path)."""
    return DatasetSpec.from_dict({
        'kind': KIND, 'name': 'pre-training', 'max_length': 20, 'answers': 'lxmert/all_ans.json',
        'splits': {split: {'annotations': f'lxmert/{split}.json', 'features': [f'{features}_obj36.tsv']}
                   for split, features in FEATURES.items()},
    }, root, root)


class PretrainingProgram(PretrainingBase):
    """Trains on the objectives of pre-training."""

    dataset_kind, published, whole_image = KIND, staticmethod(published), False
    data, invalid = '', (*INVALID, 'withoutText', 'taskContrast', 'taskAssign')
    nothing = 'no mask rate is above 0, and no question has an answer of the answer table'

    @classmethod
    def check_flags(cls, options):
        if not any(getattr(options, flag) for flag in OBJECTIVES):
            raise ValueError(f'no pre-training objective: give some of {", ".join(f"--{flag}" for flag in OBJECTIVES)}')
        if options.taskObjPredict and not options.visualLosses:
            raise ValueError('--taskObjPredict: --visualLosses is empty; expected some of obj,attr,feat')
        super().check_flags(options)
        if options.transferAnswers and not options.taskQA:
            raise ValueError('--transferAnswers: is valid only with --taskQA; leave it out')

    @staticmethod
    def read_answers(spec, options):
        return read_table(spec.answers, options.qaSets and options.qaSets.split(',')) if options.taskQA else []

    def metrics(self, head, train_set, valid_set):
        if valid_set is not None:  # the head counts answers by index of the source
            valid_set.name_sources(train_set.sources)
        head.sources = (valid_set or train_set).sources
        if self.weights and not self.options.resume:
            warn_constant_logits(head, train_set, self.options, self.device)
        return PretrainingTask(head.sources)

    def load(self, names, encoder):
        """The dataset of splits. Raises DataError if features, classes or attributes do not fit the model."""
        check_has_features(self.spec.named(names), names)
        dataset = load_sentences(self.spec, names, self.tokenizer, self.answers, self.options, self.device)
        regions = dataset.regions
        check_features(regions, self.config, names, self.bert)
        for store in getattr(regions, 'stores', [regions]) if self.options.taskObjPredict else ():
            for name, size in CLASSES.items():
                if (most := int(store.arrays[name].max(initial=0))) >= (expected := getattr(self.config, size)):
                    raise DataError(f'{store.name}: has {name} up to {most}, but the model knows {expected} ({size} in '
                                    f'{self.bert / "config.json"}); raise that number')
            warn_unlabelled(store, self.options.visualLosses)
        return dataset


def warn_unlabelled(store, visual_losses):
    """Prints a warning if no region of a store has a class, or all have the same, so that a loss teaches nothing."""
    for loss, name, conf in (('obj', 'classes', 'class_conf'), ('attr', 'attributes', 'attribute_conf')):
        if loss not in visual_losses.split(','):
            continue
        labels = store.arrays[name]
        if not store.arrays[conf].any():
            print0(f'Warning: {store.name}: no region has {name} with a confidence above 0: the loss {loss} is always 0, and '
                   'nothing is learned from it. Leave it out of --visualLosses, or import regions with their confidences.')
        elif len(labels) > 1 and labels.min() == labels.max():
            print0(f'Warning: {store.name}: all regions have {name} of the same number, {labels[0]}: nothing is learned from the '
                   f'loss {loss}. Leave it out of --visualLosses, or import regions with their {name}.')


check_flags = PretrainingProgram.check_flags


if __name__ == '__main__':
    sys.exit(train_main(PretrainingProgram.prepare))
