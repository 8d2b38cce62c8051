"""VCR: which of four answers to a question about a photograph is right, and which of four rationales says why? (Zellers et al.,
2019.) The program behind run/vcr_{finetune,test}.bash."""

import sys
from dataclasses import replace
from functools import partial

import numpy as np

from annotations.spec import DatasetSpec
from annotations.tagged_texts import TaggedSchema
from cli import train_main
from dist import is_main, print0
from files.atomic import write_atomically
from files.json_files import DataError
from run_folder import read_run
from tasks import checkpoints, vcr_files
from tasks.program import TaskProgram
from tasks.task import Task
from tasks.vcr_files import ANSWERS, CHOICES, GIVEN, RATIONALES, write_csv


class VCR(Task):
    """Chooses one of four answers (Q->A), or, with --rationale, one of four rationales of the right answer (QA->R)."""

    kind, suffix = 'vcr', 'csv'
    schema = TaggedSchema('annot_id', str)
    flags = ('rationale', 'loadRationale')
    columns = ANSWERS
    evaluate = staticmethod(vcr_files.evaluate)

    def __init__(self, options):
        self.k = CHOICES  # the file of the leaderboard has the probabilities of all

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'vcr', 'name': 'vcr', 'max_length': 67,
            'splits': {split: {'annotations': f'vcr/{split}.json', 'features': [f'vcr_imgfeat/{split}.store'],
                               'images': 'images/vcr1images', 'boxes': f'vcr/{split}_boxes.json'}
                       for split in ('train', 'val', 'test')},
        }, root, root)

    def dump(self, dataset, predictions, path):
        write_csv(path, dataset.examples.names(), {self.columns: probabilities(predictions)})


class Rationale(VCR):
    """Chooses one of four rationales of an answer."""

    schema = TaggedSchema('annot_id', str, choices='rationale_choices', rationale=True)
    columns = RATIONALES


def given(answer):
    """The task of choosing a rationale of answer number `answer`."""
    return type('Given', (Rationale,), {'schema': replace(Rationale.schema, given=answer)})


def probabilities(predictions):
    """(n, c) in the order of the choices, of (indices, probabilities), each (n, c), as Head.predict returns them."""
    return np.take_along_axis(predictions[1], np.argsort(predictions[0], 1), 1)


def check_snapshot(path, flag, rationale):
    """Raises DataError if the snapshot that a flag names is of another task, or chooses the other kind of text."""
    run = read_run(path.parent)
    if (task := run.get('task')) not in (None, 'vcr'):
        raise DataError(f'--{flag} {path}: expected a snapshot of vcr, found one of {task}; name one of run/vcr_finetune.bash')
    if task and bool(run['options'].get('rationale')) != rationale:
        kinds = 'rationales', 'answers'
        raise DataError(f'--{flag} {path}: expected a model that chooses {kinds[not rationale]}, found {kinds[rationale]}; '
                        'give --load that of answers, --loadRationale that of rationales; or --load the latter and --rationale')


class VCRProgram(TaskProgram):
    """Trains or tests one of the two models, or tests both together."""

    @classmethod
    def prepare(cls, options, device):
        if options.loadRationale and options.dumpProbs:
            raise ValueError('--dumpProbs: does not apply with --loadRationale, whose file has all probabilities; leave it out')
        program = super().prepare(Rationale if options.rationale else VCR, options, device)
        if options.load:
            check_snapshot(program.weights, 'load', options.rationale)
        return program

    def test(self):
        if not self.options.loadRationale:
            return super().test()
        name, path = self.options.test, checkpoints.find_weights(self.options.loadRationale, checkpoints.SNAPSHOT)
        check_snapshot(path, 'loadRationale', True)
        checkpoints.check_sidecars(self.model, path, self.config, self.tokenizer)
        dataset, predictions = self.predict(self.task_class(self.options), self.examples(name), self.build_head())
        columns, rights = {ANSWERS: probabilities(predictions)}, []
        other = replace(self, weights=path)
        other.task_class = Rationale
        head = other.build_head()
        for answer, names in enumerate(GIVEN):
            other.task_class = given(answer)
            of_answer, predictions = other.predict(other.task_class(other.options), other.examples(name), head)
            columns[names] = probabilities(predictions)
            rights.append(of_answer.examples.choice)
        file = self.folder.path / f'{name}_predict.csv'
        if is_main():
            write_atomically(file, partial(write_csv, ids=dataset.examples.names(), columns=columns))
        print0(f'{len(dataset):,} predictions: {file}')
        if dataset.examples.labelled:
            print0(f'Score on {name}: ' + vcr_files.summary(vcr_files.scores(
                np.concatenate(list(columns.values()), 1), dataset.examples.choice, rights[0])))
        else:
            print0(f'{name} has no labels: no score.')


if __name__ == '__main__':
    sys.exit(train_main(VCRProgram.prepare))
