"""ALBEF's programs (Retrieval, VQA, VE, NLVR, Grounding, Pretrain, Pretrain_nlvr) under their names, with their configurations,
flags and files: `python -m tools.albef` (run/albef.bash), see data/albef/README.md."""

import dataclasses
import importlib
import json
import os
import re
import sys

import torch
import yaml

from bert.weights import read_state
from cli import run_main, train_main
from dist import gather, is_main, print0
from files.atomic import write_atomically, write_text
from files.json_files import DataError, parse_json
from run_folder import RunFolder
from tasks.program import TaskProgram
from tasks.registry import task_class
from tools.albef_options import make_plan, write_dataset

BEST, EPOCH = 'checkpoint_best.pth', 'checkpoint_{:02d}.pth'  # the second counts from 1 in train.py, from 0 in file names
LOG, END = 'log.txt', 'best epoch:'
NUMBERS = re.compile(r'_(r\d+|r_mean|d)$')  # keys of log.txt whose values are numbers; others are texts of numbers
LOSSES = {'ITC': 'loss_ita', 'ITM': 'loss_itm', 'MLM': 'loss_mlm'}  # in log.txt; others: loss
SPLITS = {'valid': 'val'}  # in log.txt
PRETRAINING = {'Pretrain': 'pretrain.pairs.PairProgram', 'Pretrain_nlvr': 'pretrain.pairs.TextAssignmentProgram'}


class AlbefFolder(RunFolder):
    """The folder of a run with ALBEF's files: checkpoints as {'model': weights, 'config': ..., 'epoch': ...}, and log.txt. `plan`
    is set by `prepare`."""

    def scalars(self, values, step):
        super().scalars(values, step)
        if values.keys() != {'train/loss'}:  # which is of a step
            self.figures = values

    def save_snapshot(self, name, head):
        """Saves a checkpoint. name: BEST; or EPOCH, after all else of an epoch, whose line of log.txt is written then."""
        program = self.plan.program
        if name == BEST:
            self.improved = True
            return self._save(name, head, self.epoch)
        epoch = int(re.search(r'\d+', name)[0]) - 1
        self.log_epoch(epoch)
        if program.every:
            self._save(EPOCH.format(epoch), head, epoch)
        elif program.better and self.improved and is_main():
            (self.path / EPOCH.format(epoch)).unlink(missing_ok=True)
            os.link(self.path / BEST, self.path / EPOCH.format(epoch))
        self.improved, self.epoch = False, epoch + 1
        return None

    def _save(self, name, head, epoch):
        if is_main():
            state = {key: (value.float() if value.is_floating_point() else value).detach().cpu()
                     for key, value in head.original_state().items()}
            content = {'model': state, 'config': self.plan.values, 'epoch': epoch}
            self._write(name, lambda path: torch.save(content, path))

    def begin(self, options, sidecars, progress, task):
        super().begin(options, sidecars, progress, task)
        self.epoch, self.improved = progress.epoch if progress else 0, False
        if is_main():
            lines = [line for line in self.logged() if line.get('epoch', -1) < self.epoch]
            write_text(self.path / LOG, ''.join(json.dumps(line) + '\n' for line in lines))

    def logged(self):
        """The lines of log.txt, without the last one of a finished run. Raises DataError."""
        path = self.path / LOG
        lines = path.read_text().splitlines() if path.is_file() else []
        return [parse_json(line.encode(), f'{path}: line {number}', 'a line of an epoch') for number, line in enumerate(lines, 1)
                if not line.startswith(END)]

    def log_epoch(self, epoch):
        """Appends the line of an epoch."""
        if is_main():
            best = epoch if self.improved else self.best_epoch(epoch)
            line = as_logged({'_'.join(filter(None, original_name(name))): value for name, value in self.figures.items()})
            self.append(line | {'epoch': epoch} | ({'best_epoch': best} if self.plan.program.best else {}))

    def append(self, line):
        with open(self.path / LOG, 'a', encoding='utf-8') as file:
            file.write(line if isinstance(line, str) else json.dumps(line))
            file.write('\n')

    def finish(self):
        """Writes the last line of log.txt, unless it was written before."""
        if is_main() and self.plan.program.best and END not in (self.path / LOG).read_text():
            self.append(f'{END} {self.best_epoch(0)}')

    def best_epoch(self, default):
        """The best epoch so far."""
        return next((line['best_epoch'] for line in reversed(self.logged()) if 'best_epoch' in line), default)


def as_logged(figures):
    """{key: number} as log.txt has it in the original code: recalls and accuracies of boxes are numbers, the rest are texts."""
    return {key: float(value) if NUMBERS.search(key) else f'{value:.4f}' for key, value in figures.items()}


def original_name(name):
    """(split, measure) in log.txt of a figure such as valid/text R@1."""
    split, measure = name.split('/')[-2:]  # of valid/test/... the second
    if recall := re.fullmatch(r'(text|image) R@(\w+)', measure):
        measure = f'{"txt" if recall[1] == "text" else "img"}_r{recall[2]}'
    return SPLITS.get(split, split), LOSSES.get(measure, measure)


class AlbefTask:
    """What each task adds: the losses of training by their names, and figures of further splits after each epoch."""

    best_name, epoch_name = BEST, EPOCH
    others = ()  # (name, dataset) of these splits

    def __init__(self, options):
        super().__init__(options)
        self.most = None  # images that retrieval is validated on: all

    def report(self, sums):
        text, figures = super().report(sums)
        steps = max(sums.get('steps', 0), 1)
        losses = {name.removeprefix('loss/'): value / steps for name, value in sums.items() if name.startswith('loss/')}
        total = {} if set(losses) & set(LOSSES) else {'loss': sum(losses.values())}
        return text, figures | {name: value for name, value in losses.items() if name in LOSSES} | total

    def predict(self, *args, **kwargs):
        self.predictions = super().predict(*args, **kwargs)
        return self.predictions

    def validate(self, head, dataset, options, device):
        score, text, figures = super().validate(head, dataset, options, device)
        for name, other in self.others:
            _, of_other, further = super().validate(head, other, options, device)
            print0(f'{name}: {of_other}')
            figures |= {f'{name}/{key}': value for key, value in self.with_means(further).items()}
        return score, text, dict(self.original(*figure) for figure in self.with_means(figures).items())

    @staticmethod
    def with_means(figures):
        """Figures with the means of the recalls of each direction."""
        means = {}
        for what in ('text', 'image'):
            if recalls := [value for name, value in figures.items() if name.startswith(f'{what} R@')]:
                means[f'{what} R@_mean'] = sum(recalls) / len(recalls)
        return figures | means

    def original(self, name, value):
        """A figure as in the original code: accuracies are shares there, recalls in per cent."""
        if self.kind == 'retrieval':
            return name.replace('score', 'r_mean'), value
        return name.replace('score', 'd' if self.kind == 'refcoco' else 'acc'), value / 100


class AlbefRun:
    """What a program adds: the configuration's model and recipe, and ALBEF's files. `plan` is set in the subclass of a run."""

    folder_class = AlbefFolder

    @classmethod
    def read_config(cls, model, folder, options):
        return cls.plan.config

    def build_head(self, kind=None):
        head = super().build_head(kind)
        head.recipe = dataclasses.replace(head.recipe, **self.plan.recipe)
        if 'warm_up' in self.plan.values:
            head.ramp = self.plan.values['warm_up']
        if self.plan.name == 'Grounding':
            head.mode, head.block = self.plan.args.gradcam_mode, self.plan.args.block_num
        self.head = head
        return head


class AlbefPretraining(AlbefRun):
    """Pre-training with ALBEF's files."""

    def make(self):
        task, *others = super().make()
        task.best_name, task.epoch_name = BEST, EPOCH
        return task, *others


class AlbefProgram(AlbefRun, TaskProgram):
    """A task's program with ALBEF's files."""

    def load(self, names, examples, head, submit=False):
        training = names == self.options.train and self.options.test is None
        head.encoder.training_texts = training
        length = min(self.plan.program.lengths[not training], self.config.max_text_length())
        self.spec = dataclasses.replace(self.spec, max_length=length)
        return super().load(names, examples, head, submit)

    def make(self):
        task, head, train_set, valid_set = super().make()
        if self.options.valid:
            task.others = [(name, self.load(name, self.labelled('test', name), head)) for name in self.others()]
        return task, head, train_set, valid_set

    def others(self):
        """The splits that are tested beside the one that chooses the best epoch."""
        return self.plan.names('test')

    def train(self):
        super().train()
        self.folder.finish()
        if not self.plan.program.best and self.plan.names('test'):
            self.predict_result(self.options.epochs - 1)

    def test(self):
        """Tests the validation and test splits, writes predictions, and appends the figures to log.txt."""
        if not self.plan.program.best:
            return self.predict_result(0)
        task, head, line = self.task_class(self.options), self.build_head(), {}
        for name in (*self.plan.names('val'), *self.others()):
            self.options.test = name
            dataset = self.load(name, self.labelled('test', name), head, submit=True)
            _, text, figures = task.validate(head, dataset, self.options, self.device)
            print0(f'{name}: {text}')
            self.save(task, dataset, task.predictions)
            line |= as_logged({'_'.join((name, original_name(f'/{key}')[1])): value for key, value in figures.items()})
        if is_main():
            self.folder.append({**line, 'epoch': 0})
        return None

    def predict_result(self, epoch):
        """Writes result/vqa_result_epochN.json of the test split, with the weights of that epoch."""
        path = self.folder.path / f'result/vqa_result_epoch{epoch}.json'
        if self.options.test is None and path.exists():
            return
        name, task = ','.join(self.plan.names('test')), self.task_class(self.options)
        head = getattr(self, 'head', None) or self.build_head()
        if self.options.test is None:
            head.load_original(read_state(self.folder.path / EPOCH.format(epoch)), EPOCH.format(epoch))
        dataset = self.load(name, self.examples(name), head, submit=True)
        predictions = task.predict(head, dataset, self.options, self.device, f'Testing on {name}')
        path.parent.mkdir(exist_ok=True)
        if is_main():
            write_atomically(path, lambda part: task.dump(dataset, predictions, part))
        print0(f'{len(dataset):,} answers: {path}')


def prepare(plan, options, device):
    """The program of a plan, with its files written."""
    try:
        if is_main():
            write_dataset(plan)
            write_text(plan.output / 'config.yaml', yaml.safe_dump(plan.values, sort_keys=False))
        fault = None
    except (OSError, DataError) as error:
        fault = str(error)
    if fault := next(filter(None, gather(fault)), None):
        raise DataError(fault)
    if plan.name in PRETRAINING:
        module, name = PRETRAINING[plan.name].rsplit('.', 1)
        base = getattr(importlib.import_module(module), name)
        program = type('Run', (AlbefPretraining, base), {'plan': plan}).prepare(options, device)
    else:
        task = task_class(plan.program.kind)
        task = type(f'Albef{task.__name__}', (AlbefTask, task), {})
        program = type('Run', (AlbefProgram,), {'plan': plan}).prepare(task, options, device)
    program.folder.plan = plan
    return program


def main(argv=None):
    """Runs one of ALBEF's programs; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    plans = []
    if status := run_main('albef.bash', lambda: plans.append(make_plan(argv)) or 0):
        return status
    plan, = plans
    if plan.args.device.startswith('cuda:'):
        os.environ['CUDA_VISIBLE_DEVICES'] = plan.args.device.partition(':')[2]
    return train_main(lambda options, device: prepare(plan, options, device), plan.flags)


if __name__ == '__main__':
    sys.exit(main())
