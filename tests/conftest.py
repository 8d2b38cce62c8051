"""What several tests share: a small sample world, and the VQA and pre-training programs run on it."""

import importlib.util
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from processes import Ranks, run

# Two threads on two busy cores wait for each other: tests are several times faster with one.
os.environ.setdefault('OMP_NUM_THREADS', '1')

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared' / 'data'
SMALL = {'hidden_size': 32, 'num_attention_heads': 2, 'intermediate_size': 64, 'l_layers': 1, 'r_layers': 1, 'x_layers': 1}

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a script, whose programs would ignore Ctrl-C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # by nohup, which the programs would obey as well
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker('shared') and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason=f'the real sample data is not at {SHARED}'))


def data_script(name):
    """A program below data/, such as vcr/process_vcr, as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).name, ROOT / f'data/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lxmert_head(config, answers, images=1):
    """A heads.Answers of LXMERT that scores so many answers about so many images, with random weights."""
    import models

    return models.build('lxmert', {1: 'vqa', 2: 'nlvr2'}[images], config, range(answers))


def write_random_snapshot(folder, task, world):
    """Writes a snapshot of LXMERT with its sidecars. Its random weights are large enough for answers to differ."""
    import torch

    from lxrt.config import LxrtConfig

    answers = ['False', 'True'] if task == 'nlvr2' else json.loads((world / task / 'trainval_label2ans.json').read_text())
    torch.manual_seed(3)
    head = lxmert_head(LxrtConfig.from_json(world / 'bert/config.json'), len(answers), 2 if task == 'nlvr2' else 1)
    for p in head.parameters():
        p.data.normal_(0, 0.3)
    folder.mkdir()
    torch.save(head.original_state(), folder / 'BEST.pth')
    (folder / 'answers.json').write_text(json.dumps(answers))
    for name in ('config.json', 'vocab.txt'):
        shutil.copy(world / 'bert' / name, folder)


@pytest.fixture(scope='session')
def made_world(tmp_path_factory):
    from shapes import world

    folder = tmp_path_factory.mktemp('world') / 'shapes'
    world.make(folder, world.Settings(images=50, questions=6))
    config = json.loads((folder / 'bert/config.json').read_text())
    # Dropout is on, so that the tests of resuming see whether random states are restored.
    config.update(SMALL, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    (folder / 'bert/config.json').write_text(json.dumps(config))
    return folder


@pytest.fixture
def world(made_world, tmp_path):
    """A sample world of 50 pictures of this test's own, with a very small model."""
    return shutil.copytree(made_world, tmp_path / 'shapes')


def ragged(world, folders='mscoco_imgfeat'):
    """Fewer regions on some lines of the world's files, so that batches are padded."""
    from regions import tsv

    for path in world.glob(f'{folders}/*.tsv'):
        images = [replace(one, **{name: getattr(one, name)[:1 + i % 7] for name in tsv.ARRAYS})
                  for i, (_, one) in enumerate(tsv.read(path))]
        tsv.write(path, images)


@pytest.fixture
def vqa(world, tmp_path):
    """vqa(*flags, name='run', start=True, ...): the VQA program on the world, with output in tmp_path/name.

    start: give the flags of a training run from random weights; further arguments: as of run_program.
    """
    def run(*flags, name='run', start=True, **how):
        first = ['--valid', 'minival', '--batchSize', '16', '--lr', '1e-3', '--epochs', '2', '--fromScratch'] if start else []
        return run_program('vqa', world, tmp_path / name, *first, *flags, **how)

    return run


@pytest.fixture
def pretrain(world, tmp_path):
    """pretrain(*flags, name='run'): the same with the pre-training program, and all objectives."""
    def run(*flags, name='run', **how):
        start = [] if {'--load', '--loadLXMERT'} & set(map(str, flags)) else ['--fromScratch']
        return run_program(
            'pretrain', world, tmp_path / name, '--train', 'mscoco_train,mscoco_nominival,vgnococo',
            '--valid', 'mscoco_minival', '--taskMaskLM', '--taskMatched', '--taskObjPredict', '--taskQA', '--batchSize', '64',
            '--lr', '1e-3', '--epochs', '2', *start, *flags, **how)

    return run


def run_program(program, world, output, *flags, processes=0, wait=True, before=None):
    """Runs a training program, 'vqa' or 'pretrain', on a world, with processes=0 in this process.

    Returns the finished run with its returncode, stdout and stderr; with wait=False the processes.Ranks that run.
    before: as for them.
    """
    flags = [str(flag) for flag in ('--device', 'cpu', '--dataRoot', world, '--bert', world / 'bert', '--output', output, *flags)]
    if not processes:
        return run(program, flags)
    ranks = Ranks(program, flags, output.with_name(f'{output.name}.printed'), processes, before)
    return ranks.wait() if wait else ranks


@pytest.fixture
def run_here(world, tmp_path, capsys):
    """run_here(*flags): the VQA program in this process; returns (exit status, what it printed: .out and .err)."""
    from tasks.program import main
    from tasks.vqa import VQA

    def run(*flags, scratch=True):
        status = main(VQA, ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--valid', 'minival',
                            '--batchSize', '32', '--epochs', '1', '--output', str(tmp_path / 'run'),
                            *(['--fromScratch'] if scratch else []), *flags])
        return status, capsys.readouterr()

    return run
