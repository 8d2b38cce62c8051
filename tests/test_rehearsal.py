"""Training on a GPU, rehearsed without one: no step waits for the device, shapes follow from shapes alone, every parameter has a
gradient; memory by formula and trace; run/gpu.bash."""

import contextlib
import dataclasses
import json
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as torch_dist
from torch.nn.parallel import DistributedDataParallel

import models
from albef import momentum, pretraining
from bench import gpu, memory, rehearsal
from bert import layers
from run_state import Progress
from train import train_step

KINDS = rehearsal.kinds()


def name_of(case):
    model, task, sizes = case
    return f'{model}-{task}' + '-pixels' * (sizes is rehearsal.PIXELS)


@pytest.mark.parametrize('case', KINDS, ids=map(name_of, KINDS))
def test_a_step_of_training_does_not_wait_for_the_gpu(case):
    """Of tensors without content, so that no shape can depend on it. Every parameter but LXMERT's known ones has a gradient."""
    waits = contextlib.nullcontext() if case[:2] not in rehearsal.WAITS else pytest.raises(rehearsal.WaitsForDevice)
    with waits:
        operations, unread = rehearsal.trace(*case)
        assert len(operations) > 500 and rehearsal.unexpected(unread) == []


def test_every_model_is_rehearsed():
    assert {model for model, *_ in KINDS} == models.MODELS.keys() and rehearsal.WAITS.keys() <= {case[:2] for case in KINDS}


@pytest.mark.parametrize(('fault', 'named'), [
    (lambda x: x.sum().item(), '_local_scalar_dense'), (lambda x: bool((x > 0).all()), '_local_scalar_dense'),
    (lambda x: x[x > 0], 'aten.index'), (lambda x: x.nonzero(), 'nonzero'), (lambda x: x.unique(), 'unique'),
    (lambda x: x.cpu(), '_to_copy'), (lambda x: torch.tensor([1, 2], device=x.device), 'copy'),
    (lambda x: x.new_tensor(1.0), 'copy'), (lambda x: x + torch.ones(3), 'same device'),
    (lambda x: torch.multinomial(x, 1), 'multinomial')])
def test_what_waits_for_the_gpu_is_found(fault, named):
    with rehearsal.as_on_gpu():
        x = torch.rand(3, device=rehearsal.DEVICE)
        with pytest.raises((rehearsal.WaitsForDevice, RuntimeError), match=named), rehearsal.Operations():
            fault(x)


@pytest.mark.parametrize(('model', 'task'), [(model, 'vqa') for model in models.MODELS if model != 'lxmert'])
def test_what_is_compiled_is_one_graph(model, task):
    """LXMERT's: tests/test_speed.py."""
    assert rehearsal.compiled_graphs(model, task) >= 1


def test_all_faults_of_a_rehearsal_are_told(monkeypatch, tmp_path, capsys):
    def broken(model, task, sizes):
        raise torch._dynamo.exc.TorchDynamoException('call of a list\nin a file')

    monkeypatch.setattr(rehearsal, 'cases', lambda: [(*case, rehearsal.SIZES) for case in (('lxmert', 'vqa'), *rehearsal.WAITS)])
    monkeypatch.setattr(rehearsal, 'trace', lambda *case: ([], ['x.weight']))
    monkeypatch.setattr(rehearsal, 'compiled_graphs', broken)
    assert rehearsal.main(['--out', str(tmp_path / 'out.json')]) == 1
    told = capsys.readouterr().err
    assert 'lxmert, vqa: parameters without gradient: x.weight\n' in told
    assert 'lxmert, vqa: graph break: call of a list\n' in told
    assert 'albef, text_assignment: does not wait for the device; remove it from WAITS\n' in told


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone."""
    torch_dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch_dist.destroy_process_group()


@pytest.mark.parametrize('model', models.MODELS)
def test_distributed_training_need_not_search_for_unused_parameters(one_process, model):
    """Steps are those of a process alone; a parameter that is not read would end the second one with an error."""
    states, (_, unread) = [], rehearsal.trace(model, 'vqa')
    for parallel in (False, True):
        torch.manual_seed(0)
        head, step, options = rehearsal.prepare(model, 'vqa', rehearsal.SIZES, 4)
        wrapped = head
        if parallel:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(head, unread)
            wrapped = DistributedDataParallel(head, find_unused_parameters=False)
        torch.manual_seed(0)
        batch = rehearsal.make_batch(head, rehearsal.make_config(model, rehearsal.SIZES), 4, device=rehearsal.CPU)
        for turn in range(2):
            train_step(wrapped, step, [batch], options, Progress(0, turn, 100), rehearsal.CPU)
        states.append(head.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, msg=name)


def test_masked_words_of_a_static_shape_have_the_same_loss(monkeypatch):
    """As on a GPU, where places are filled up."""
    config = dataclasses.replace(rehearsal.make_config('albef', rehearsal.SIZES), momentum=0.5)
    torch.manual_seed(0)
    head = rehearsal.make_head('albef', 'pretrain', config).eval()
    batch = rehearsal.make_batch(head, config, 4, device=rehearsal.CPU)
    results = []
    for packed in (True, False):
        torch.manual_seed(1)
        if not packed:
            monkeypatch.setattr(pretraining, 'PACK_SEQUENCES', set())
            monkeypatch.setattr(layers, 'PACK_SEQUENCES', set())
        with torch.no_grad():
            results.append(head(batch, head.counts([batch])))
    (losses, metrics), (filled, counted) = results
    assert metrics['predicted MLM'] == counted['predicted MLM'] > 0 and metrics['right MLM'] == counted['right MLM']
    torch.testing.assert_close(filled['MLM'], losses['MLM'])
    labels = torch.full((8, 16), -1)
    labels[:, 3] = 5
    assert len(head.predicted_places(labels, given=False)) > len(head.predicted_places(labels, given=True)) == 8


def test_columns_are_drawn_in_proportion_to_their_weights():
    weights = torch.tensor([[1.0, 3.0, 0.0, 4.0]]).expand(4000, 4)
    drawn = momentum.draw_columns(weights, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert (shares - weights[0] / 8).abs().max() < 0.03 and shares[2] == 0


# ---------------------------------------------------------------------------- memory


def test_the_memory_of_a_step_is_traced(monkeypatch, tmp_path):
    """Against what the weights of a model take, and by formula what is kept for the backward pass."""
    sizes = {'hidden_size': 192, 'num_attention_heads': 3, 'intermediate_size': 768, 'num_hidden_layers': 3, 'vocab_size': 120}
    monkeypatch.setattr(memory, 'sizes_of', lambda task, small: sizes)
    monkeypatch.setattr(memory, 'TASKS', ('vqa',))
    monkeypatch.setattr(memory.report, 'run_separately', lambda *flags, **variables: 1000.0)
    out, b = tmp_path / 'memory.json', 256
    assert memory.main(['--models', 'vlbert', '--batchSizes', str(b), '--measured', '2', '--out', str(out)]) == 0
    figures = {name.removeprefix('vlbert, vqa, '): number for name, number in json.loads(out.read_text()).items()}
    head = models.build('vlbert', 'vqa', rehearsal.make_config('vlbert', sizes), range(3129))
    weights, batch = 4e-9 * sum(p.numel() for p in head.parameters()), 4e-9 * b * 37 * 2048
    assert figures[f'{b} examples, weights, gradients, averages and batch: GB'] == pytest.approx(4 * weights + batch, rel=0.03)
    formula, fp32, bf16 = (figures[f'{b} examples, {what}: GB'] for what in ('fp32, by formula', 'fp32', 'bf16'))
    assert fp32 == pytest.approx(formula, rel=0.15) and bf16 < 0.8 * fp32
    assert figures['2 examples on the CPU: measured, times what was traced'] == \
        1000 / figures['2 examples on the CPU, traced: MB']


# ---------------------------------------------------------------------------- run/gpu.bash


def test_all_parts_take_less_than_25_minutes():
    assert sum(part.seconds for part in gpu.PARTS) <= 60 * gpu.MINUTES


def test_a_part_that_fails_or_takes_too_long_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    script = 'import json, sys, time; json.dump({"x, training, bf16: s a step of 4": 2.5}, open(sys.argv[1], "w")); '
    parts = {'good': script, 'slow': script + 'time.sleep(60)', 'bad': 'sys.exit("what is wrong")', 'silent': 'pass'}
    files = {name: tmp_path / f'{name}.py' for name in parts}
    for name, path in files.items():
        path.write_text(f'import sys\n{parts[name]}\n')
    monkeypatch.setattr(gpu, 'PARTS', [gpu.Part(name, 1 if name == 'slow' else 30, f'{{python}} {path} {{out}}', '')
                                       for name, path in files.items()])
    monkeypatch.setattr(gpu, 'SLOWER', 1)
    monkeypatch.setattr(gpu, 'REHEARSAL', gpu.Part('world', 30, '{python} -c pass', '', ''))
    assert gpu.main(['--rehearse', '--out', str(tmp_path / 'out')]) == 1
    results = json.loads((tmp_path / 'out/figures.json').read_text())
    statuses = {name: part['status'] for name, part in results['parts'].items()}
    assert statuses.pop('silent').endswith('silent.json was not written')
    assert statuses == {'good': 'done', 'slow': 'stopped after 1 s', 'bad': 'exit status 1: what is wrong', 'world': 'done'}
    assert results['machine']['PyTorch'] == torch.__version__
    table = (tmp_path / 'out/table.md').read_text()
    assert f'| good: x, training, bf16 | 2.5 | s a step of 4 | `python {files["good"]} {{out}}` |' in table
    assert '| bad | exit status 1: what is wrong | |' in table
    assert 'failed: slow, bad, silent' in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_without_a_gpu_one_line_says_so(tmp_path, capsys):
    assert gpu.main(['--out', str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'finds no GPU' in error and '--rehearse' in error
    with pytest.raises(SystemExit):
        gpu.main(['--parts', 'x'])
    assert 'expected some of sample world' in capsys.readouterr().err


def test_the_units_of_figures():
    part = SimpleNamespace(name='model')
    results = {'machine': {'GPUs': [{'name': 'H'}], 'PyTorch': '2', 'CPU cores': 4}, 'parts': {part.name: {
        'status': 'done', 'command': 'c', 'figures': {'vqa, bf16: peak memory, MB': 12345.6, 'fp32, s an image': 0.12345,
                                                      'device': 'CPU', 'vqa, bf16: times as fast as fp32': 2.0}}}}
    rows = gpu.table(results).splitlines()[4:]
    assert rows == ['| model: vqa, bf16: peak memory | 12,346 | MB | `c` |', '| model: fp32 | 0.1235 | s an image | `c` |',
                    '| model: device | CPU |  | `c` |', '| model: vqa, bf16 | 2 | times as fast as fp32 | `c` |']
