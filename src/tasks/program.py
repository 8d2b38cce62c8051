"""What every task's program does: read the options, load data and model, then train or test."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import dist
from annotations.dataset import load_questions
from annotations.examples import read_examples
from annotations.spec import DatasetSpec
from bert.tokenization import BertTokenizer
from bert.weights import fill, read_state
from files.json_files import DataError
from lxrt.config import LxrtConfig
from param import Options
from run_folder import RunFolder, write_whole
from tasks import start
from tasks.model import build_model
from tasks.snapshot import SNAPSHOT
from tasks.task import dump_probabilities, say_if_alike
from train import evaluate, say_if_blind


def main(task_class, argv=None):
    """Runs a task's program; returns its exit status."""
    return start.run(partial(Program.prepare, task_class), argv)


@dataclass
class Program:
    """A task with all that it reads and writes."""

    task_class: type
    options: Options
    device: torch.device
    folder: RunFolder
    spec: DatasetSpec
    weights: Path | None  # to start from
    bert: Path  # folder of vocabulary, config and perhaps BERT's weights
    config: LxrtConfig
    tokenizer: BertTokenizer
    answers: list

    @classmethod
    def prepare(cls, task_class, options, device):
        """Reads what is small, so that a fault in it is found before anything large is touched."""
        spec = DatasetSpec.from_json(options.dataset) if options.dataset else task_class.spec(Path(options.dataRoot))
        if spec.kind != task_class.kind:
            raise DataError(f'{options.dataset}: key "kind": expected "{task_class.kind}" for this program, found "{spec.kind}"')
        if not task_class.form.answers and spec.answers is None:
            raise DataError(f'{options.dataset}: key "answers": expected the path of a list of answers, found none')
        for flag in ('train', 'valid') if options.test is None else ('test',):
            if flag != 'valid' or options.valid:
                spec.named(getattr(options, flag), flag)
        if options.loadLXMERTQA and len(task_class.form.images) > 1:
            raise ValueError(f'--loadLXMERTQA: the answer head of {task_class.kind} is of another shape; give --loadLXMERT')
        weights = start.starting_weights(options, SNAPSHOT)
        folder = RunFolder(options.output)
        bert = start.bert_folder(options, weights)
        config = start.read_config(bert, options)
        tokenizer = start.read_tokenizer(bert, config)
        answers = list(task_class.form.answers or spec.read_answers())
        if weights:
            start.check_weights(options, weights, config, tokenizer, answers)
        return cls(task_class, options, device, folder, spec, weights, bert, config, tokenizer, answers)

    def examples(self, names):
        """The Examples of some splits, checked."""
        return read_examples([split.annotations for split in self.spec.named(names)], self.task_class.form, self.answers)

    def labelled(self, flag, names, advice=''):
        """The Examples of the splits that a flag names, which must have labels."""
        examples = self.examples(names)
        if not examples.labelled:
            raise DataError(f'--{flag} {names}: these questions have no labels{advice}')
        return examples

    def load(self, names, examples, submit=False):
        """The dataset of some splits, with regions that fit the model."""
        dataset = load_questions(self.spec, names, examples, self.tokenizer, self.answers, self.options, submit, self.device)
        start.check_features(dataset.regions, self.config, names, self.bert)
        return dataset

    def build(self):
        """The task with its model, on the device."""
        model = build_model(self.options, self.config, self.weights, self.bert, self.answers, self.spec.max_length,
                            len(self.task_class.form.images))
        return self.task_class(start.place(model, self.options, self.device), self.options)

    def run(self):
        if self.options.test is not None:
            self.test()
        else:
            self.train()

    def train(self):
        options, folder = self.options, self.folder
        made = start.train(options, folder, start.files_beside(self.config, self.tokenizer, self.answers), self.make, self.device)
        if made is None:
            dist.print0(f'Scores by type of question: --test {options.valid or "SPLIT"} --load {folder.path / "BEST"}')
        elif options.valid:
            task, valid_set = made
            dist.print0(f'\n{fill(task.model, read_state(folder.path / "BEST.pth"), "BEST.pth")}')
            predictions = evaluate(task, valid_set, options, self.device)
            dist.print0(f'\nBEST.pth on {options.valid}:\n{task.table(valid_set, predictions)}')

    def make(self):
        """The task, the training set, and that of --valid or None."""
        options = self.options
        # What is read fast comes first, so that its faults are found before regions are converted.
        train_examples = self.labelled('train', options.train)
        valid_examples = self.labelled('valid', options.valid, '; give --valid "" for none') if options.valid else None
        task = self.build()
        train_set = self.load(options.train, train_examples)
        valid_set = self.load(options.valid, valid_examples) if options.valid else None
        if self.weights and not options.resume:
            say_if_blind(task, train_set, options, self.device)
        if valid_set is not None:
            dist.print0(f'Valid Oracle: {valid_set.oracle():.2f}')
        return task, train_set, valid_set

    def test(self):
        """Predicts a split, writes its file and, where labels are known, prints the score."""
        name = self.options.test
        examples = self.examples(name)
        task = self.build()
        dataset = self.load(name, examples, submit=True)
        predictions = evaluate(task, dataset, self.options, self.device, f'Testing on {name}')
        say_if_alike(dataset, predictions)
        files = {f'{name}_predict.{task.suffix}': task.dump}
        if self.options.dumpProbs:
            files[f'{name}_probs.json'] = dump_probabilities
        for file, dump in files.items():
            path = self.folder.path / file
            if dist.is_main():
                write_whole(path, lambda part, dump=dump: dump(dataset, predictions, part))
            dist.print0(f'{len(dataset):,} predictions: {path}')
        if dataset.examples.labelled:
            dist.print0(f'Score on {name}: {task.score(dataset, predictions):.2f}\n{task.table(dataset, predictions)}')
        else:
            dist.print0(f'{name} has no labels: no score.')
