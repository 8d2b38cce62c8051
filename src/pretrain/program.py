"""Pre-training on sentences and regions (LXMERT paper, section 3). The program behind run/lxmert_pretrain.bash."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import models
from annotations.answer_table import read_table
from annotations.pretraining import load_sentences
from annotations.pretraining_text import KIND
from annotations.spec import DatasetSpec
from bert.speed import accelerate
from bert.tokenization import BertTokenizer
from cli import train_main
from files.json_files import DataError
from param import Options
from run_folder import RunFolder
from tasks import checkpoints
from tasks.program import check_features, train
from train import evaluate_losses, warn_constant_logits

FEATURES = {'mscoco_train': 'mscoco_imgfeat/train2014', 'mscoco_nominival': 'mscoco_imgfeat/val2014',
            'mscoco_minival': 'mscoco_imgfeat/val2014', 'vgnococo': 'vg_gqa_imgfeat/vg_gqa'}
FLAGS = ('taskMaskLM', 'taskMatched', 'taskObjPredict', 'taskQA')
CLASSES = {'classes': 'num_object_labels', 'attributes': 'num_attr_labels'}


class PretrainingTask:
    """Reports and validates pre-training by its losses and, of questions, the accuracy by source."""

    kind = 'pretrain'
    best_name, epoch_name = 'BEST_EVAL_LOSS_LXRT.pth', 'Epoch{:02d}_LXRT.pth'  # snapshots

    def __init__(self, sources):
        """sources: the names of the sources of sentences, in the order of the training data's."""
        self.sources = sources

    def report(self, sums):
        """The mean losses of an epoch of training, with the accuracy of its answers."""
        steps = max(sums.get('steps', 0), 1)
        losses = {name.removeprefix('loss/'): value / steps for name, value in sums.items() if 'loss/' in name}
        return self.figures(losses, sums)

    def validate(self, head, dataset, options, device):
        """The same of a dataset; the score is the negative loss."""
        losses, sums = evaluate_losses(head, dataset, options, device)
        return -sum(losses.values()), *self.figures(losses, sums)

    def figures(self, losses, sums):
        """(text, {name: number}) of {loss: mean} and of the sums of questions asked and answered correctly."""
        figures = {'loss': sum(losses.values()), **losses}
        text = f'{self.shown(-figures["loss"])} ({", ".join(f"{name} {value:.4f}" for name, value in losses.items())})'
        asked = {source: sums.get(f'asked {source}', 0) for source in self.sources}
        right = {source: sums.get(f'right {source}', 0) for source in self.sources}
        if any(asked.values()):
            figures['QA accuracy'] = 100 * sum(right.values()) / sum(asked.values())
            by_source = {source: 100 * right[source] / count for source, count in sorted(asked.items()) if count}
            figures |= {f'QA accuracy of {source}': value for source, value in by_source.items()}
            shown = ', '.join(f'{source} {value:.2f}' for source, value in by_source.items())
            text += f', QA accuracy {figures["QA accuracy"]:.2f} ({shown})'
        return text, figures

    @staticmethod
    def shown(score):
        return f'loss {-score:.4f}'


def published(root):
    """The DatasetSpec of the paper's pre-training data below a data folder."""
    return DatasetSpec.from_dict({
        'kind': KIND, 'name': 'pre-training', 'max_length': 20, 'answers': 'lxmert/all_ans.json',
        'splits': {split: {'annotations': f'lxmert/{split}.json', 'features': [f'{features}_obj36.tsv']}
                   for split, features in FEATURES.items()},
    }, root, root)


@dataclass
class Program:
    """A pre-training run with all that it reads and writes."""

    model: str  # name of the model
    options: Options
    device: torch.device
    folder: RunFolder
    spec: DatasetSpec
    weights: Path | None  # to start from
    bert: Path  # folder of vocabulary, config and perhaps BERT's weights
    config: object
    tokenizer: BertTokenizer
    answers: list  # the answer table, in the order of the answer head; empty without --taskQA

    @classmethod
    def prepare(cls, options, device):
        """Reads what is small, so that its faults are found before anything large is read."""
        check_flags(options)
        spec = DatasetSpec.from_json(options.dataset) if options.dataset else published(Path(options.dataRoot))
        if spec.kind != KIND:
            raise DataError(f'{options.dataset}: key "kind": expected "{KIND}" for this program, found "{spec.kind}"')
        for flag in ('train', 'valid') if options.valid else ('train',):
            spec.named(getattr(options, flag), flag)
        answers = read_table(spec.answers, options.qaSets and options.qaSets.split(',')) if options.taskQA else []
        weights = checkpoints.starting_weights(options)
        bert = checkpoints.bert_folder(options, weights)
        model = options.model or checkpoints.model_type(weights)
        config = models.package(model).read_config(bert, options)
        checkpoints.check_max_length(spec.max_length, config)
        tokenizer = checkpoints.read_tokenizer(bert, config)
        if weights:
            checkpoints.check_weights(model, options, weights, config, tokenizer, answers)
        return cls(model, options, device, RunFolder(options.output), spec, weights, bert, config, tokenizer, answers)

    def run(self):
        sidecars = checkpoints.sidecar_files(self.model, self.config, self.tokenizer, self.answers)
        train(self.options, self.folder, sidecars, self.make, PretrainingTask.kind, self.device)

    def build(self):
        """The head with its starting weights, drawn from --seed where they are random, on the device."""
        torch.manual_seed(self.options.seed)
        head = models.build(self.model, PretrainingTask.kind, self.config, self.answers, self.options)
        checkpoints.load_start(self.model, head, self.options, self.weights, self.bert, self.answers)
        accelerate(head.to(self.device), self.options)
        return head

    def make(self):
        """The task, the head, the training set, and that of --valid or None."""
        head = self.build()
        train_set, valid_set = (self.load(names) if names else None for names in (self.options.train, self.options.valid))
        if valid_set is not None:  # sources are counted by number
            valid_set.name_sources(train_set.sources)
        head.sources = (valid_set or train_set).sources
        if self.weights and not self.options.resume:
            warn_constant_logits(head, train_set, self.options, self.device)
        return PretrainingTask(head.sources), head, train_set, valid_set

    def load(self, names):
        dataset = load_sentences(self.spec, names, self.tokenizer, self.answers, self.options, self.device)
        regions = dataset.regions
        check_features(regions, self.config, names, self.bert)
        for store in getattr(regions, 'stores', [regions]) if self.options.taskObjPredict else ():
            for name, size in CLASSES.items():
                if (most := int(store.arrays[name].max(initial=0))) >= (expected := getattr(self.config, size)):
                    raise DataError(f'{store.name}: has {name} up to {most}, but the model knows {expected} ({size} in '
                                    f'{self.bert / "config.json"})')
        return dataset


def check_flags(options):
    """Raises ValueError for flags that mean nothing here, or no objective."""
    if not any(getattr(options, flag) for flag in FLAGS):
        raise ValueError(f'nothing to learn: give some of {", ".join(f"--{flag}" for flag in FLAGS)}')
    if options.taskObjPredict and not options.visualLosses:
        raise ValueError('--taskObjPredict: --visualLosses names nothing to predict of regions')
    for flag in ('test', 'loadLXMERTQA', 'mceLoss', 'dumpProbs', 'allowMissing'):
        if getattr(options, flag):
            raise ValueError(f'--{flag}: has no meaning in pre-training')
    if options.transferAnswers and not options.taskQA:
        raise ValueError('--transferAnswers: has a meaning only with --taskQA')


if __name__ == '__main__':
    sys.exit(train_main(Program.prepare))
