"""What every task's program does: read the options, load data and model, then train or test."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import dist
from checkpoint import RunFolder, write_whole
from lxrt.config import LxrtConfig
from lxrt.tokenization import BertTokenizer
from lxrt.weights import fill, read_state
from param import Options, parse_args
from tasks import model as models
from tasks.answering import dump_probabilities
from tasks.data import load_questions
from tasks.examples import read_examples
from tasks.files import DataError, read_json
from tasks.spec import DatasetSpec
from train import evaluate, fit


def main(task_class, argv=None):
    """Runs a task's program; returns its exit status. Faults of the input end it with one message, not a traceback."""
    options = parse_args(argv)
    program = None
    try:
        device = dist.start(options.device)
        if options.deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # which CUDA's matrix products ask for
            torch.use_deterministic_algorithms(True)
        program = Program.prepare(task_class, options, device)
        if options.test is not None:
            program.test()
        else:
            program.train()
        dist.stop()  # not after an error: the other processes may still wait in a gathering that never ends
    except (ValueError, OSError, FloatingPointError, dist.DeviceError) as error:
        print(f'{Path(sys.argv[0]).name}: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\n{Path(sys.argv[0]).name}: interrupted; a run that was training goes on with the same command and --resume',
              file=sys.stderr)
        return 130
    finally:
        if program is not None:
            program.folder.close()
    return 0


@dataclass
class Program:
    """A task with all that it reads and writes."""

    task_class: type
    options: Options
    device: torch.device
    folder: RunFolder
    spec: DatasetSpec
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
        models.check_snapshots(options, task_class)
        folder = RunFolder(options.output)
        bert = models.bert_folder(options)
        config = models.read_config(bert, options)
        answers = list(task_class.form.answers or spec.read_answers())
        check_answers(options, answers, spec)
        return cls(task_class, options, device, folder, spec, bert, config, models.read_tokenizer(bert, config), answers)

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
        if dataset.regions.feature_size != self.config.visual_feat_dim:
            raise DataError(f'features of {names} have {dataset.regions.feature_size} numbers a region, but the model expects '
                            f'{self.config.visual_feat_dim} (visual_feat_dim in {self.bert / "config.json"})')
        return dataset

    def build(self):
        """The task with its model, on the device."""
        model = models.build_model(self.options, self.config, self.bert, self.answers, self.spec.max_length,
                                   len(self.task_class.form.images))
        return self.task_class(model.to(self.device), self.options)

    def train(self):
        options, folder = self.options, self.folder
        beside = {
            'config.json': self.config.to_json(),
            'vocab.txt': '\n'.join(self.tokenizer.ids_to_tokens) + '\n',
            'answers.json': json.dumps(self.answers, indent=0) + '\n',
        }
        state = folder.read_state(options, beside)
        if state is not None and state['progress']['epoch'] >= options.epochs:
            dist.say(f'The run in {folder.path} is finished ({options.epochs} epochs): nothing to resume. Scores by type of '
                     f'question: --test {options.valid or "SPLIT"} --load {folder.path / "BEST"}')
            return
        # What is read fast comes first, so that its faults are found before regions are converted.
        train_examples = self.labelled('train', options.train)
        valid_examples = self.labelled('valid', options.valid, '; give --valid "" for none') if options.valid else None
        task = self.build()
        train_set = self.load(options.train, train_examples)
        step, parts = min(len(train_set), options.batchSize), dist.world_size() * options.accumulate
        if step < parts:
            raise DataError(f'a step of {step} examples cannot be split into {parts} parts (processes x --accumulate)')
        valid_set = self.load(options.valid, valid_examples) if options.valid else None
        folder.begin(options, beside, state, train_set.digest())
        if valid_set is not None:
            dist.say(f'Valid Oracle: {valid_set.oracle():.2f}')
        parameters = sum(p.numel() for p in task.model.parameters())
        dist.say(f'Training {parameters / 1e6:.1f} M parameters on {self.device}, processes: {dist.world_size()}.')
        fit(task, train_set, valid_set, options, folder, state, self.device)
        if valid_set is not None:
            fill(task.model, read_state(folder.path / 'BEST.pth'), 'BEST.pth')
            predictions = evaluate(task, valid_set, options, self.device)
            dist.say(f'\nBEST.pth on {options.valid}:\n{task.table(valid_set, predictions)}')
        dist.say(f'\nSnapshots, log and events: {folder.path}')

    def test(self):
        """Predicts a split, writes its file and, where labels are known, prints the score."""
        name = self.options.test
        examples = self.examples(name)
        task = self.build()
        dataset = self.load(name, examples, submit=True)
        predictions = evaluate(task, dataset, self.options, self.device, f'Testing on {name}')
        files = {f'{name}_predict.{task.suffix}': task.dump}
        if self.options.dumpProbs:
            files[f'{name}_probs.json'] = dump_probabilities
        for file, dump in files.items():
            path = self.folder.path / file
            if dist.is_main():
                write_whole(path, lambda part, dump=dump: dump(dataset, predictions, part))
            dist.say(f'{len(dataset):,} predictions: {path}')
        if dataset.examples.labelled:
            dist.say(f'Score on {name}: {task.score(dataset, predictions):.2f}\n{task.table(dataset, predictions)}')
        else:
            dist.say(f'{name} has no labels: no score.')


def check_answers(options, answers, spec):
    """A snapshot's answers.json must be the vocabulary in use: its answer head has a row for each, in that order."""
    path = Path(f'{options.load}.pth').with_name('answers.json') if options.load else None
    if path is None or not path.is_file():
        return
    theirs = read_json(path, 'the answers of the snapshot')
    if theirs != answers:
        other = [a for a in theirs if a not in set(answers)] + [a for a in answers if a not in set(theirs)]
        different = f'different: {", ".join(other[:3])}, ...' if other else 'another order'
        raise DataError(f'--load {options.load}: its {len(theirs)} answers are not the {len(answers)} of '
                        f'{spec.answers or spec.kind} ({different}); a snapshot of another task is started from by --loadLXMERT')
