"""What makes the model faster computes the same; what measures it measures what it says."""

import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import work
from bench.model import LR, SMALL, THEIRS, Runner
from bert.optimization import BertAdam
from bert.speed import ApexAdam, accelerate
from lxrt.config import LxrtConfig
from lxrt.modeling import LXRTPretraining
from param import Options

CPU = torch.device('cpu')
CONFIG = LxrtConfig(**SMALL, vocab_size=200, visual_feat_dim=32)
STILL = LxrtConfig(**SMALL, vocab_size=200, visual_feat_dim=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LENGTHS = torch.tensor([3, 9, 6, 7]).numpy()


def step(model, batch):
    """Losses and gradients of a step of pre-training."""
    model.zero_grad()
    losses, _ = model(batch['input_ids'], None, batch['attention_mask'], batch['masked_lm_labels'], batch['visual_feats'],
                      batch['boxes'], batch['obj_labels'], batch['matched_label'], batch['ans'],
                      predicted={'words': batch['words_at'], 'regions': batch['regions_at']})
    sum(losses.values()).backward()
    return {**losses, **{name: p.grad.clone() for name, p in model.named_parameters()}}


def assert_near(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_a_compiled_model_computes_the_same_under_the_same_names(checkpointing):
    """As one graph; PyTorch's own test the compiler that follows."""
    graphs, lower = [], torch._dynamo.lookup_backend('aot_eager')

    def backend(graph, inputs):
        graphs.append(graph)
        return lower(graph, inputs)

    model = work.make_task('pretrain', STILL, Options()).model.train()
    batch, names = work.make_batch('pretrain', STILL, LENGTHS, 0, CPU), list(model.state_dict())
    expected = step(model, batch)
    accelerate(model, SimpleNamespace(checkpointing=checkpointing, compile=True, apex=False), backend=backend)
    assert_near(step(model, batch), expected)
    assert list(model.state_dict()) == names and len(graphs) == 1
    for task in ('vqa', 'nlvr2'):  # what only fine-tuning computes: the state of [CLS] alone, two images of a sentence
        task, batch = work.make_task(task, STILL, Options()), work.make_batch(task, STILL, LENGTHS, 0, CPU)
        expected = task.predict(task.model.eval(), batch)
        accelerate(task.model, SimpleNamespace(checkpointing=checkpointing, compile=True, apex=False), backend=backend)
        for found, value in zip(task.predict(task.model, batch), expected, strict=True):
            torch.testing.assert_close(found, value)
    assert len(graphs) == 3
    torch._dynamo.reset()


@pytest.fixture
def apex(monkeypatch):
    """A stand-in for NVIDIA's: the same interfaces, in PyTorch, which count their calls."""
    calls = []

    class FusedLayerNorm(torch.nn.LayerNorm):
        def forward(self, x):
            calls.append('norm')
            return super().forward(x)

    def multi_tensor_adam(noop, lists, lr, b1, b2, e, step, mode, bias_correction, decay):
        calls.append('adam')
        assert (mode, bias_correction) == (1, 0)
        for g, p, m, v in zip(*lists, strict=True):  # theirs, too, does not heed `noop`
            m.mul_(b1).add_(g, alpha=1 - b1)
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
            p.sub_(lr * (m / (v.sqrt() + e) + decay * p))

    members = {'apex': {}, 'fused_layer_norm_cuda': {}, 'apex.normalization': {'FusedLayerNorm': FusedLayerNorm},
               'apex.multi_tensor_apply': {'multi_tensor_applier': lambda call, *arguments: call(*arguments)},
               'amp_C': {'multi_tensor_adam': multi_tensor_adam}}
    for name, content in members.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_with_apex_the_same_is_computed_by_its_kernels(apex):
    batch = work.make_batch('pretrain', STILL, LENGTHS, 0, CPU)
    plain, fused = (work.make_task('pretrain', STILL, Options()).model.train() for _ in range(2))
    names = list(fused.state_dict())
    accelerate(fused, SimpleNamespace(checkpointing=False, compile=False, apex=True))
    assert list(fused.state_dict()) == names
    optimizers = [kind(list(model.parameters()), lr=0.01, warmup=0.1, t_total=10)
                  for kind, model in ((BertAdam, plain), (ApexAdam, fused))]
    for turn in range(3):
        for model, optimizer in zip((plain, fused), optimizers, strict=True):
            step(model, batch)
            if turn == 1:
                torch._foreach_mul_([p.grad for p in model.parameters() if p.grad is not None], float('nan'))
            optimizer.step(divisor=torch.tensor(2.0), skip=torch.tensor(float(turn == 1)))
    assert_near(dict(fused.named_parameters()), dict(plain.named_parameters()))
    assert set(apex) == {'norm', 'adam'}
    assert optimizers[0].state_dict()['state'].keys() == optimizers[1].state_dict()['state'].keys()


def test_without_apex_the_flag_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r'--apex.*leave the flag out'):
        accelerate(LXRTPretraining(CONFIG), SimpleNamespace(checkpointing=False, compile=False, apex=True))


@pytest.mark.parametrize(('flags', 'says'), [(['--bf16', '--fp16'], '--fp16'), (['--apex', '--optim', 'sgd'], '--apex')])
def test_ways_to_compute_that_exclude_each_other_are_named(vqa, flags, says):
    run = vqa(*flags)
    assert run.returncode == 2 and says in run.stderr


# ---------------------------------------------------------------------------- run/bench.bash


@pytest.mark.parametrize('task', list(work.ANSWERS))
def test_hugging_face_beside_ours_computes_the_same(task):
    ours, theirs = (Runner(task, who, CONFIG, CPU) for who in ('fp32', THEIRS))
    batch = work.make_batch(task, CONFIG, LENGTHS, 0, CPU)
    assert ours.exact_loss(batch) == pytest.approx(theirs.exact_loss(batch), rel=1e-5)
    before = theirs.exact_loss(batch)
    for turn in range(3):
        ours.training(batch, turn)
        theirs.training(batch, turn)
    assert theirs.exact_loss(batch) < before


def test_the_plain_optimizer_has_bert_adams_rule():
    one, other = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    ours, plain = BertAdam([one], lr=LR), work.PlainBertAdam([other], LR)
    for turn in range(3):
        one.grad = other.grad = torch.linspace(-1, 1, 4) * (turn + 1)
        ours.step()
        plain.step()
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize('task', ['vqa', 'nlvr2'])
def test_the_arithmetic_by_formula_is_what_pytorch_counts(task):
    """Of a sentence without padding, forward, where only what the answer needs is computed."""
    model, lengths = work.make_task(task, CONFIG, Options()).model.eval(), LENGTHS[1:2]
    batch = work.make_batch(task, CONFIG, lengths, 0, CPU)
    with FlopCounterMode(display=False) as counter:  # with gradients: it does not know the fused attention of inference
        model(batch['input_ids'], batch['features'], batch['boxes'])
    assert work.forward_flops(task, CONFIG, 9) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_lxr955_takes_the_arithmetic_that_the_design_says():
    """A step of pre-training of 20 tokens and 36 regions, where every head is computed at masked places only."""
    forward = work.forward_flops('pretrain', LxrtConfig(), 20) / 1e9
    assert 4.4 + 6.1 < forward < 4.4 + 6.1 + 0.94 + 0.27


def test_every_measurement_of_speed_runs(made_world, tmp_path):
    def bench(part, *flags):
        run = subprocess.run(['bash', 'run/bench.bash', part, '--out', tmp_path / f'{part}.json', *flags], capture_output=True,
                             text=True)
        assert run.returncode == 0, run.stderr
        assert str(tmp_path / f'{part}.json') in run.stdout
        return json.loads((tmp_path / f'{part}.json').read_text())

    small = ['--small', '--batchSize', '4', '--device', 'cpu', '--world', made_world]
    model = bench('model', *small, '--runs', '1', '--evalBatchSize', '4', '--tasks', 'vqa', '--modes', 'bf16')
    for what in ('training', 'inference'):
        assert model[f'vqa, {what}, bf16: times as fast as {THEIRS}'] > 0
    assert model['vqa: relative difference of the losses, without dropout'] < 1e-4
    assert model['vqa, training, bf16: per cent of the rate of matrix products'] > 0
    assert model[f'vqa, training, {THEIRS}: peak memory, MB'] > 100
    small += ['--steps', '2', '--turns', '1', '--folder', tmp_path / 'made']
    assert bench('loop', *small, '--task', 'pretrain')['the loop, examples/s'] > 0
    assert bench('scaling', *small)['processes: 2, times as fast as 1'] > 0
    run = subprocess.run(['bash', 'run/bench.bash', 'project', '--rates', tmp_path / 'model.json'], capture_output=True,
                         text=True)
    assert run.returncode == 1 and 'nlvr2, training' in run.stderr
    known = tmp_path / 'known.json'
    known.write_text(json.dumps(model | {f'{task}, training, bf16: s a step of 32': 1.0 for task in work.ANSWERS}))
    hours = bench('project', '--rates', known, '--GBps', '1e9')
    assert hours['VQA, 4 epochs, devices: 1, hours'] == pytest.approx(8 * hours['VQA, 4 epochs, devices: 8, hours'], rel=1e-3)
    run = subprocess.run(['bash', 'run/bench.bash', 'project', '--rates', tmp_path / 'none.json'], capture_output=True, text=True)
    assert run.returncode == 1 and 'run/bench.bash model' in run.stderr
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/file').touch()
    for flags, says in ((['loop', '--folder', tmp_path / 'mine'], 'is not empty'),
                        (['scaling', '--processes', '0'], '--processes'), (['model', '--runs', 'x'], '--runs')):
        run = subprocess.run(['bash', 'run/bench.bash', *flags], capture_output=True, text=True)
        assert run.returncode == 2 and says in run.stderr and 'Traceback' not in run.stderr
    assert (tmp_path / 'mine/file').exists()
