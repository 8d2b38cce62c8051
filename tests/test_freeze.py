"""--freeze: what is frozen keeps its bits, the rest is trained, snapshots are complete."""

import json
import re

import pytest
import torch
from conftest import run_program

import models
from tasks.program import main
from tasks.vqa import VQA

LAYERS = {'l_layers': 2, 'r_layers': 1, 'x_layers': 1}
BERT = 'lxrt_encoder.model.bert.'
FROZEN = {  # by --freeze, the beginnings of the names in a snapshot
    'embeddings': [f'{BERT}embeddings.', f'{BERT}encoder.visn_fc.'],
    '1': [f'{BERT}embeddings.', f'{BERT}encoder.visn_fc.', f'{BERT}encoder.layer.0.', f'{BERT}encoder.r_layers.0.'],
    '2': [f'{BERT}embeddings.', f'{BERT}encoder.visn_fc.', f'{BERT}encoder.layer.', f'{BERT}encoder.r_layers.'],
    'all': [BERT]}
SINGLE = {'embeddings': ['stream.words', 'stream.segments', 'stream.positions', 'stream.features', 'stream.boxes'],
          'all': ['stream.']}


@pytest.fixture
def train(world, tmp_path, capsys, monkeypatch):
    """train(name, *flags): the VQA program on 2 + 1 + 1 layers; returns the snapshot and what was printed."""
    monkeypatch.setitem(models.MODELS, 'single_stream', 'single_stream')
    path = world / 'bert/config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | LAYERS))

    def run(name, *flags, status=0):
        assert main(VQA, [
            '--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--valid', 'minival', '--batchSize', '64',
            '--lr', '1e-2', '--epochs', '1', '--fromScratch', '--output', str(tmp_path / name), *flags]) == status
        printed = capsys.readouterr()
        if status:
            return None, printed.err
        return torch.load(tmp_path / name / 'LAST.pth', weights_only=True), printed.out

    return run


@pytest.mark.parametrize(('model', 'choice'), [*(('lxmert', one) for one in FROZEN), *(('single_stream', one) for one in SINGLE)])
def test_frozen_parameters_keep_their_bits(train, world, model, choice):
    config = models.package(model).config_from_json(world / 'bert/config.json')
    torch.manual_seed(9595)  # the default seed of a run
    answers = json.loads((world / 'vqa/trainval_label2ans.json').read_text())
    initial = models.build(model, 'vqa', config, answers).original_state()
    state, printed = train('run', '--model', model, '--freeze', choice, '--accumulate', '2')
    assert state.keys() == initial.keys()
    names = (FROZEN if model == 'lxmert' else SINGLE)[choice]
    frozen = {name for name in state if name.startswith(tuple(names))}
    assert {name for name in state if torch.equal(state[name], initial[name])} >= frozen
    # The last cross layer's visual side is not computed in fine-tuning.
    untouched = {name for name in state if torch.equal(state[name], initial[name]) and 'x_layers.0.visn' not in name} - frozen
    assert not untouched and len(frozen) < len(state)
    count = sum(state[name].numel() for name in frozen)
    total = sum(tensor.numel() for tensor in state.values())
    assert f'--freeze {choice}: {total - count:,} parameters are trained, {count:,} frozen.' in printed
    if choice == 'all':
        assert '0 frozen' not in printed and {name.split('.')[0] for name in state.keys() - frozen} <= {'logit_fc', 'classifier'}


def test_parts_hold_every_parameter_once(train, world):
    for model in ('lxmert', 'single_stream'):
        config = models.package(model).config_from_json(world / 'bert/config.json')
        encoder = models.build(model, 'vqa', config, ['yes']).encoder
        parts = [id(p) for part in encoder.parts() for module in part for p in module.parameters()]
        assert len(parts) == len(set(parts)) and set(parts) == {id(p) for p in encoder.parameters()}
        assert encoder.parts()[0]


@pytest.mark.parametrize('choice', ['embeddings', 'all'])
def test_only_an_encoder_that_is_frozen_as_a_whole_has_no_dropout(train, world, choice):
    config = models.package('lxmert').config_from_json(world / 'bert/config.json')
    head = models.build('lxmert', 'vqa', config, ['yes', 'no'])
    head.freeze(choice)
    head.train()
    training = {module.training for module in head.encoder.lxrt_encoder.model.bert.children()}
    assert head.training and head.classifier.training and training == ({True} if choice == 'embeddings' else {False, True})
    batch = {'examples': 2, 'input_ids': torch.ones(2, 4, dtype=torch.long), 'features': torch.rand(2, 3, config.visual_feat_dim),
             'boxes': torch.rand(2, 3, 4)}
    same = torch.equal(head.encoder(batch).pooled, head.encoder(batch).pooled)
    assert same == (choice == 'all') and head.encoder(batch).pooled.requires_grad != same
    assert not head.eval().encoder.lxrt_encoder.model.bert.pooler.training


def test_resumed_and_in_two_processes(train, world, tmp_path, monkeypatch):
    import train as loop

    flags = ['--freeze', '1', '--saveSteps', '1', '--lr', '1e-3']
    state, _ = train('run', *flags)
    step, calls = loop.train_step, []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    with monkeypatch.context() as context:
        context.setattr(loop, 'train_step', stop)
        train('stopped', *flags, status=130)
    resumed, _ = train('stopped', *flags, '--resume')
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in state.items())
    optimizer = torch.load(tmp_path / 'run/RUN_STATE.pth', weights_only=True)['optimizer']
    frozen = sum(name.startswith(tuple(FROZEN['1'])) for name in state)
    assert len(optimizer['param_groups'][0]['params']) == len(state) - frozen
    _, error = train('stopped', *[flag.replace('1', '2', 1) if flag == '1' else flag for flag in flags], '--resume', status=1)
    assert "--freeze '1' then, '2' now" in error

    begin = ['--valid', '', '--batchSize', '64', '--lr', '1e-3', '--epochs', '1', '--fromScratch']
    for name, processes in (('one', 0), ('two', 2)):
        run = run_program('vqa', world, tmp_path / name, *begin, '--freeze', '1', '--dropout', '0', processes=processes)
        assert run.returncode == 0, run.stderr
    one, two = (torch.load(tmp_path / name / 'LAST.pth', weights_only=True) for name in ('one', 'two'))
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], rtol=0, atol=1e-4)
        assert torch.equal(tensor, two[name]) or not name.startswith(tuple(FROZEN['1']))


def test_pretraining_with_frozen_embeddings(pretrain, tmp_path):
    run = pretrain('--freeze', 'embeddings', '--epochs', '1', '--valid', '')
    assert run.returncode == 0, run.stderr
    state = torch.load(tmp_path / 'run/Epoch01_LXRT.pth', weights_only=True)
    again = pretrain('--freeze', 'embeddings', '--epochs', '1', '--valid', '', '--lr', '1e-2', name='other')
    assert again.returncode == 0
    other = torch.load(tmp_path / 'other/Epoch01_LXRT.pth', weights_only=True)
    same = {name for name in state if torch.equal(state[name], other[name])}
    assert same == {name for name in state if re.match(r'bert\.(embeddings|encoder\.visn_fc)\.|cls\.predictions\.decoder', name)}


@pytest.mark.parametrize(('choice', 'status', 'fault'), [
    ('5', 1, '--freeze 5: the encoder has 3 layers; give at most that, or all'), ('0', 2, "found '0'"), ('-1', 2, "found '-1'"),
    ('bert', 2, "--freeze: expected embeddings, all, or a number of layers from 1, found 'bert'")])
def test_what_cannot_be_frozen_is_named(train, choice, status, fault):
    assert fault in train('run', f'--freeze={choice}', status=status)[1]
