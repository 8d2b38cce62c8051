"""The contract of heads.py: a second, single-stream model runs the same tasks in the same loop; layers of the code."""

import ast
import json
import re
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

import models
from annotations.examples import ExampleSchema
from heads import Answers, Recipe
from param import Options
from regions import tsv
from tasks import registry
from tasks.nlvr2 import NLVR2
from tasks.program import main
from tasks.task import Task
from tasks.vqa import VQA


class Choice(Task):
    """Which of three answers is right?"""

    kind, output = 'choice', 'choice'
    schema = ExampleSchema('question_id', int, choices='choices', num_choices=3)

    @staticmethod
    def submission(key, answer):
        return {'question_id': key, 'choice': answer}


class Region(Task):
    """Which region does a phrase describe?"""

    kind, output = 'region', 'region'
    schema = ExampleSchema('ref_id', int, box='box')

    @staticmethod
    def submission(key, answer):
        return {'ref_id': key, 'region': answer}


class Match(Task):
    """Does a caption belong to an image?"""

    kind, output = 'match', 'match'
    schema = ExampleSchema('img_id', str, captions=True)

    @staticmethod
    def submission(key, answer):
        return {'img_id': key, 'match': answer}


def describe(world, kind, train, dev):
    """Writes a dataset of a kind for --dataset and returns its path."""
    splits = {}
    for name, items, features in (('train', train, 'train2014'), ('dev', dev, 'val2014')):
        (world / f'{kind}_{name}.json').write_text(json.dumps(items))
        splits[name] = {'annotations': f'{kind}_{name}.json', 'features': [f'mscoco_imgfeat/{features}_obj36.tsv'],
                        'images': f'images/{features}'}
    path = world / f'{kind}.json'
    path.write_text(json.dumps({'kind': kind, 'name': kind, 'max_length': 24, 'splits': splits}))
    return path


def choices(world):
    def examples(split):
        rng = np.random.default_rng(0)
        answers = json.loads((world / 'vqa/trainval_label2ans.json').read_text())
        for question in json.loads((world / f'vqa/{split}.json').read_text()):
            right = max(question['label'], key=question['label'].get)
            three = [right, *rng.choice([a for a in answers if a != right], 2, replace=False).tolist()]
            order = rng.permutation(3).tolist()
            yield {'question_id': question['question_id'], 'img_id': question['img_id'], 'sent': question['sent'],
                   'choices': [three[i] for i in order], 'label': order.index(0)}

    return describe(world, 'choice', list(examples('train')), list(examples('minival')))


def regions(world):
    def examples(folder):
        for number, (_, image) in enumerate(tsv.read(world / f'mscoco_imgfeat/{folder}_obj36.tsv')):
            yield {'ref_id': number, 'img_id': image.img_id, 'sent': 'the surest thing', 'box': image.boxes[0].tolist()}

    return describe(world, 'region', list(examples('train2014')), list(examples('val2014')))


def captions(world):
    def examples(file):
        return [{'img_id': item['img_id'], 'sent': item['sentf']['mscoco']}
                for item in json.loads((world / f'lxmert/{file}.json').read_text())]

    return describe(world, 'match', examples('mscoco_train'), examples('mscoco_minival'))


TASKS = {'vqa': (VQA, 'train', 'minival', None), 'nlvr2': (NLVR2, 'train', 'valid', None),
         'choice': (Choice, 'train', 'dev', choices), 'region': (Region, 'train', 'dev', regions),
         'match': (Match, 'train', 'dev', captions)}


@pytest.fixture
def single_stream(monkeypatch):
    monkeypatch.setitem(models.MODELS, 'single_stream', 'single_stream')


@pytest.mark.parametrize('kind', TASKS)
def test_a_second_model_trains_and_tests(world, tmp_path, capsys, single_stream, kind):
    task, train, valid, make = TASKS[kind]
    flags = ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--batchSize', '16', '--optim', 'sgd',
             '--lr', '0.1']
    flags += ['--dataset', str(make(world))] if make else []
    begin = [*flags, '--model', 'single_stream', '--train', train, '--valid', valid, '--epochs', '2', '--fromScratch']
    assert main(task, [*begin, '--output', str(tmp_path / 'run')]) == 0, capsys.readouterr().err
    log = (tmp_path / 'run/log.log').read_text()
    assert 'Epoch 1: Valid' in log
    state = torch.load(tmp_path / 'run/LAST.pth', weights_only=True)
    assert {name.split('.')[0] for name in state} == {'stream', 'classifier'}
    assert json.loads((tmp_path / 'run/config.json').read_text())['model_type'] == 'single_stream'
    assert json.loads((tmp_path / 'run/options.json').read_text())['task'] == kind

    # Two micro-batches a step learn the same, except by the matching head, whose wrong pairs are of one micro-batch.
    assert main(task, [*begin, '--accumulate', '2', '--output', str(tmp_path / 'halves')]) == 0
    halves = torch.load(tmp_path / 'halves/LAST.pth', weights_only=True)
    close = all(torch.allclose(tensor, halves[name], rtol=0, atol=1e-4) for name, tensor in state.items())
    assert close == (kind != 'match')

    capsys.readouterr()
    assert main(task, [*flags, '--test', valid, '--load', str(tmp_path / 'run/BEST'), '--output', str(tmp_path / 'test')]) == 0
    best = max(float(line.split()[-1]) for line in log.splitlines() if 'Valid' in line)
    assert f'Score on {valid}: {best:.2f}' in capsys.readouterr().out  # the config.json beside the snapshot names the model
    assert list((tmp_path / 'test').glob(f'{valid}_predict.*'))


def test_padding_is_never_chosen(world, single_stream):
    config = models.package('single_stream').config_from_json(world / 'bert/config.json')
    head = models.build('single_stream', 'region', config)
    mask = torch.arange(6) < torch.tensor([2, 6, 3])[:, None]
    batch = {'examples': 3, 'input_ids': torch.ones(3, 4, dtype=torch.long),
             'token_type_ids': torch.zeros(3, 4, dtype=torch.long),
             'features': torch.randn(3, 6, config.visual_feat_dim), 'boxes': torch.rand(3, 6, 4), 'visual_attention_mask': mask}
    places, probabilities = head.predict(batch, 6)
    for row, chances, count in zip(places.tolist(), probabilities.tolist(), (2, 6, 3), strict=True):
        assert set(row[:count]) == set(range(count)) and sum(chances[:count]) == pytest.approx(1, abs=1e-5)


def test_the_loop_takes_groups_schedule_and_extra_state_from_the_head(world, tmp_path, monkeypatch, single_stream):
    """A head with a queue, two parameter groups, a schedule of its own and gradients in evaluation; killed and resumed."""
    from single_stream import heads

    class Momentum(Answers):
        gradients_in_evaluation = True

        def __init__(self, *args):
            super().__init__(*args)
            self.queue, self.steps, self.stop_at = torch.zeros(4), [], stop_at

        def groups(self, options):
            return [{'params': list(self.encoder.parameters()), 'lr': options.lr / 10},
                    {'params': list(self.classifier.parameters())}]

        def begin_step(self, step, total):
            if step == self.stop_at:
                raise KeyboardInterrupt
            self.steps.append((step, total))
            self.queue = self.queue.roll(1)
            self.queue[0] = step

        def predict(self, batch, k=1):
            assert torch.is_grad_enabled()
            return super().predict(batch, k)

        def extra_state(self):
            return {'queue': self.queue}

        def load_extra_state(self, state):
            self.queue = state['queue']

    built = []

    def build(task, config, answers=None, options=None):
        recipe = Recipe('answer', schedule='warmup_cosine', clip=2.0)
        built.append(Momentum(heads.SingleStream(config), recipe, len(answers)))
        return built[-1]

    def run(name, *flags):
        return main(VQA, [
            '--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--batchSize', '50', '--lr', '5e-3',
            '--model', 'single_stream', '--train', 'train', '--valid', 'minival', '--fromScratch', '--accumulate', '2',
            '--epochs', '2', '--output', str(tmp_path / name), *flags])

    monkeypatch.setattr(heads, 'build', build)
    stop_at = None
    assert run('run') == 0
    steps = len(built[0].steps)
    assert built[0].steps == [(step, steps) for step in range(steps)] and steps > 4  # once a step, however accumulated
    state = torch.load(tmp_path / 'run/RUN_STATE.pth', weights_only=True)
    assert state['extra']['queue'].tolist() == [steps - 1 - i for i in range(4)]
    groups = state['optimizer']['param_groups']
    assert [group['lr'] for group in groups] == [5e-4, 5e-3] and groups[0]['schedule'] == 'warmup_cosine'
    assert 'queue' not in torch.load(tmp_path / 'run/LAST.pth', weights_only=True)

    stop_at = steps // 2 + 1  # one step into the second epoch
    assert run('stopped') == 130
    stop_at = None
    assert run('stopped', '--resume') == 0
    resumed = torch.load(tmp_path / 'stopped/RUN_STATE.pth', weights_only=True)
    assert torch.equal(resumed['extra']['queue'], state['extra']['queue'])
    assert all(torch.equal(tensor, resumed['model'][name]) for name, tensor in state['model'].items())


# ---- every model


@pytest.mark.parametrize('model', models.MODELS)
def test_a_model_has_what_the_contract_asks(made_world, tmp_path, model):
    """For each task that it has: its head builds, its snapshot loads strictly, its parts are of it."""
    package, folder = models.package(model), made_world / 'bert'
    for name in re.findall(r'^    (\w+)\(.*\) -> ', models.__doc__, re.M):
        assert callable(getattr(package, name)), name
    config, tasks = package.config_from_json(folder / 'config.json'), 0
    assert package.read_config(folder, Options()) == config
    package.check_config(folder / 'config.json', config)
    for task in (*registry.TASKS, 'pretrain'):
        try:
            recipe = package.recipe(task)
        except ValueError as error:
            assert f'--model {model}: has no recipe for the task {task}' in str(error)
            continue
        tasks += 1
        head = models.build(model, task, config, ['a', 'b', 'c'])
        assert head.recipe.output == recipe.output and head.recipe.images == recipe.images
        state = head.original_state()
        report = models.build(model, task, config, ['a', 'b', 'c']).load_original(state)
        assert set(report.matched) == set(state) and not report.missing
        assert models.of_names(list(state)) == model
        parts = [id(p) for part in head.parts() for module in part for p in module.parameters()]
        assert parts and {*parts} <= {id(p) for p in head.parameters()}
    assert tasks and config.MODEL
    (tmp_path / 'config.json').write_text(json.dumps({'num_attention_heads': 1}))
    with pytest.raises(ValueError, match=r'config\.json'):
        package.check_config(tmp_path / 'config.json', config)


# ---- layers

FLOORS = {'files': 0, 'param': 0, 'cli': 0, 'bert': 1, 'images': 1, 'regions': 1, 'dist': 1, 'run_state': 1,
          'launch': 1, 'optimizer': 2, 'run_folder': 2, 'batches': 2, 'detector': 2, 'heads': 2, 'train': 2,
          **dict.fromkeys(models.MODELS.values(), 3), 'models': 4,
          'annotations': 4, 'tasks': 5, 'pretrain': 6, 'tools': 7, 'predict': 7, 'explain': 7, 'shapes': 8}
MODEL_FOLDERS = {*models.MODELS.values()}


def test_imports_go_downwards_and_only_models_py_names_a_model():
    wrong = []
    for path in sorted((ROOT / 'src').rglob('*.py')):
        place = path.relative_to(ROOT / 'src')
        folder = place.parts[0].removesuffix('.py')
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                [node.module] if isinstance(node, ast.ImportFrom) else []
            for other in (module.split('.')[0] for module in modules):
                if other in MODEL_FOLDERS and folder not in (other, 'models'):
                    wrong.append(f'{place}:{node.lineno} names the model {other}')
                elif FLOORS.get(other, 0) > FLOORS[folder] and folder != 'cli':  # cli.train_main imports what it runs
                    wrong.append(f'{place}:{node.lineno} imports {other}, a floor above')
    assert wrong == []


def test_no_module_is_in_a_cycle_of_imports():
    files = {'.'.join(path.relative_to(ROOT / 'src').with_suffix('').parts): path for path in (ROOT / 'src').rglob('*.py')}
    arrows = {name: set() for name in files}
    for name, path in files.items():
        for node in ast.parse(path.read_text()).body:  # the top of a module: imports in functions wait until they are called
            if isinstance(node, ast.Import):
                arrows[name] |= {alias.name for alias in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom):
                arrows[name] |= ({node.module} | {f'{node.module}.{alias.name}' for alias in node.names}) & files.keys()
    done, open_path = set(), []

    def visit(name):
        assert name not in open_path, ' -> '.join([*open_path, name])
        if name not in done:
            open_path.append(name)
            for other in arrows[name]:
                visit(other)
            open_path.pop()
            done.add(name)

    for name in files:
        visit(name)


def test_no_folder_has_the_name_of_a_standard_module():
    assert {path.stem for path in (ROOT / 'src').iterdir()} & sys.stdlib_module_names == set()
