"""What every task's program does: read the options, load data and model, then train or test."""

import json
import sys
from pathlib import Path

import torch

import dist
from checkpoint import RunFolder, write_whole
from param import parse_args
from tasks import model as models
from tasks.data import DataError, DatasetSpec, load_questions, read_json
from train import evaluate, fit


def main(task_class, argv=None):
    """Runs a task's program; returns its exit status. Faults of the input end it with one message, not a traceback."""
    options = parse_args(argv)
    try:
        run(task_class, options)
    except (ValueError, OSError, FloatingPointError, dist.DeviceError) as error:
        print(f'{Path(sys.argv[0]).name}: error: {error}', file=sys.stderr)
        return 1
    finally:
        dist.stop()
    return 0


def run(task_class, options):
    device = dist.start(options.device)
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
    spec = DatasetSpec.from_json(options.dataset) if options.dataset else task_class.spec(Path(options.dataRoot))
    if spec.kind != task_class.kind:
        raise DataError(f'{options.dataset}: key "kind": expected "{task_class.kind}" for this program, found "{spec.kind}"')
    folder = RunFolder(options.output)
    bert = models.bert_folder(options)
    config = models.read_config(bert, options)
    tokenizer = models.read_tokenizer(bert, config)
    answers = spec.read_answers()
    check_answers(options, answers, spec)

    def load(names, submit=False):
        dataset = load_questions(spec, names, tokenizer, answers, options, task_class.id_type, submit)
        if dataset.regions.feature_size != config.visual_feat_dim:
            raise DataError(f'features of {names} have {dataset.regions.feature_size} numbers a region, but the model expects '
                            f'{config.visual_feat_dim} (visual_feat_dim in {bert / "config.json"})')
        return dataset

    def build():
        return models.build_model(options, config, bert, answers, spec.max_length).to(device)

    if options.test is not None:
        dataset = load(options.test, submit=True)
        test(task_class(build()), dataset, options, folder, device)
        return
    beside = {'config.json': config.to_json(), 'vocab.txt': '\n'.join(tokenizer.ids_to_tokens) + '\n',
              'answers.json': json.dumps(answers, indent=0) + '\n'}
    state = folder.start(options, beside)
    if state is not None and state['progress']['epoch'] >= options.epochs:
        dist.say(f'The run in {folder.path} is finished ({options.epochs} epochs): nothing to resume.')
        return
    train_set = load(options.train)
    if not train_set.labelled:
        raise DataError(f'--train {options.train}: these questions have no labels')
    smallest = dist.world_size() * options.accumulate
    if min(len(train_set), options.batchSize) < smallest:
        raise DataError(f'a step of {min(len(train_set), options.batchSize)} examples cannot be split into {smallest} parts '
                        '(processes x --accumulate)')
    valid_set = load(options.valid) if options.valid else None
    if valid_set is not None and not valid_set.labelled:
        raise DataError(f'--valid {options.valid}: these questions have no labels; give --valid "" for no validation')
    task = task_class(build())
    if valid_set is not None:
        dist.say(f'Valid Oracle: {valid_set.oracle():.2f}')
    parameters = sum(p.numel() for p in task.model.parameters())
    dist.say(f'Training {parameters / 1e6:.1f} M parameters on {device} x {dist.world_size()}, '
             f'{len(train_set) // options.batchSize or 1} steps an epoch.')
    fit(task, train_set, valid_set, options, folder, state, device)
    if valid_set is not None:
        models.fill(task.model, models.read_state(folder.path / 'BEST.pth'), 'BEST.pth')
        dist.say('\nThe best epoch\'s score on ' + options.valid,
                 task.table(valid_set, evaluate(task, valid_set, options, device)))
    dist.say(f'\nSnapshots, log and events: {folder.path}')


def test(task, dataset, options, folder, device):
    """Predicts a split, writes its file and, where labels are known, prints the score."""
    predictions = evaluate(task, dataset, options, device, f'Testing on {options.test}')
    path = folder.path / f'{options.test}_predict.json'
    if dist.is_main():
        write_whole(path, lambda part: task.dump(dataset, predictions, part))
    dist.say(f'{len(dataset):,} predictions: {path}')
    if dataset.labelled:
        dist.say(f'Score on {options.test}: {task.score(dataset, predictions):.2f}', task.table(dataset, predictions))
    else:
        dist.say(f'{options.test} has no labels: no score.')


def check_answers(options, answers, spec):
    """A snapshot's answers.json must be the vocabulary in use: its answer head has a row for each, in that order."""
    path = Path(f'{options.load}.pth').with_name('answers.json') if options.load else None
    if path is None or not path.is_file():
        return
    theirs = read_json(path, 'the answers of the snapshot')
    if theirs != answers:
        other = [a for a in theirs if a not in set(answers)] + [a for a in answers if a not in set(theirs)]
        raise DataError(f'--load {options.load}: its {len(theirs)} answers are not the {len(answers)} of {spec.answers} '
                        + (f'(different: {", ".join(other[:3])}, ...)' if other else '(another order)'))
