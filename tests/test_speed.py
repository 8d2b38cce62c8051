"""What makes the model faster computes the same; what measures it measures what it says."""

import argparse
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import albef, loop, model
from bench.model import ANSWERS, HUGGING_FACE, LR, SMALL, HuggingFace, Ours, PlainBertAdam, forward_flops, make_batch, make_head
from bert import speed
from bert.optimization import BertAdam
from bert.speed import ApexAdam, accelerate
from lxrt.config import LxrtConfig
from lxrt.modeling import LXRTPretraining
from param import parse_args
from vlbert.config import VLBertConfig

CPU = torch.device('cpu')
CONFIG = LxrtConfig(**SMALL, vocab_size=200, visual_feat_dim=32)
STILL = LxrtConfig(**SMALL, vocab_size=200, visual_feat_dim=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LENGTHS = torch.tensor([3, 9, 6, 7]).numpy()


def step(head, batch):
    """Losses and gradients of a step of pre-training."""
    head.zero_grad()
    losses = head.losses(batch, head.counts([batch]))
    sum(losses.values()).backward()
    return {**losses, **{name: p.grad.clone() for name, p in head.named_parameters()}}


def assert_near(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(tensors[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_a_compiled_model_computes_the_same_under_the_same_names(checkpointing):
    """As one graph; PyTorch's own test the compiler that follows."""
    graphs, lower = [], torch._dynamo.lookup_backend('aot_eager')

    def backend(graph, inputs):
        graphs.append(graph)
        return lower(graph, inputs)

    head = make_head('pretrain', STILL).train()
    batch, names = make_batch('pretrain', STILL, LENGTHS, 0, CPU), list(head.state_dict())
    expected = step(head, batch)
    accelerate(head, SimpleNamespace(checkpointing=checkpointing, compile=True, apex=False), backend=backend)
    assert_near(step(head, batch), expected)
    assert list(head.state_dict()) == names and len(graphs) == 1
    if not checkpointing:  # what only fine-tuning computes: the state of [CLS] alone, two images of a sentence
        head, batch = make_head('nlvr2', STILL).eval(), make_batch('nlvr2', STILL, LENGTHS, 0, CPU)
        expected = head.predict(batch)
        accelerate(head, SimpleNamespace(checkpointing=False, compile=True, apex=False), backend=backend)
        for prediction, value in zip(head.predict(batch), expected, strict=True):
            torch.testing.assert_close(prediction, value)
        assert len(graphs) == 2
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
        for g, p, m, v in zip(*lists, strict=True):  # apex's kernel ignores `noop` too
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
    batch = make_batch('pretrain', STILL, LENGTHS, 0, CPU)
    plain, fused = (make_head('pretrain', STILL).train() for _ in range(2))
    names = list(fused.state_dict())
    accelerate(fused, SimpleNamespace(checkpointing=False, compile=False, apex=True))
    assert list(fused.state_dict()) == names
    optimizers = [kind(list(head.parameters()), lr=0.01, warmup=0.1, t_total=10)
                  for kind, head in ((BertAdam, plain), (ApexAdam, fused))]
    for turn in range(3):
        for head, optimizer in zip((plain, fused), optimizers, strict=True):
            step(head, batch)
            if turn == 1:
                torch._foreach_mul_([p.grad for p in head.parameters() if p.grad is not None], float('nan'))
            optimizer.step(divisor=torch.tensor(2.0), skip=torch.tensor(float(turn == 1)))
    assert_near(dict(fused.named_parameters()), dict(plain.named_parameters()))
    assert set(apex) == {'norm', 'adam'}
    assert optimizers[0].state_dict()['state'].keys() == optimizers[1].state_dict()['state'].keys()


def test_without_apex_the_flag_is_an_error_that_says_so():
    with pytest.raises(ValueError, match=r'--apex.*leave the flag out'):
        accelerate(LXRTPretraining(CONFIG), SimpleNamespace(checkpointing=False, compile=False, apex=True))


def test_a_model_with_nothing_to_compile_says_so():
    with pytest.raises(ValueError, match='--compile: no module of this model'):
        accelerate(torch.nn.Linear(2, 2), SimpleNamespace(checkpointing=False, compile=True, apex=False))


@pytest.mark.parametrize(('flags', 'says'), [(['--bf16', '--fp16'], '--fp16'), (['--apex', '--optim', 'sgd'], '--apex')])
def test_ways_to_compute_that_exclude_each_other_are_named(flags, says, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_args(flags)
    assert ended.value.code == 2 and says in capsys.readouterr().err


# ---------------------------------------------------------------------------- run/bench.bash


@pytest.mark.parametrize('task', list(ANSWERS))
def test_hugging_faces_model_in_the_benchmark_computes_the_same(task):
    ours, theirs = Ours(task, 'fp32', CONFIG, CPU), HuggingFace(task, CONFIG, CPU)
    batch = make_batch(task, CONFIG, LENGTHS, 0, CPU)
    before = theirs.exact_loss(batch)
    assert ours.exact_loss(batch) == pytest.approx(before, rel=1e-5)
    for turn in range(3):
        ours.training(batch, turn)
        theirs.training(batch, turn)
    assert theirs.exact_loss(batch) < before


@pytest.mark.parametrize('task', ['vqa', 'pretrain'])
def test_visual_bert_in_the_benchmark_reads_the_same_examples(task):
    config = VLBertConfig(**model.SMALL_VLBERT, vocab_size=200, visual_feat_dim=32)
    batch, visual = make_batch(task, config, LENGTHS, 0, CPU), model.reference(task, config, CPU)
    assert Ours(task, 'fp32', config, CPU).exact_loss(batch) > 0
    before = visual.exact_loss(batch)
    padded = {'features': (0, 0, 0, 3), 'visual_attention_mask': (0, 3)}
    longer = batch | {name: torch.nn.functional.pad(batch[name], size) for name, size in padded.items()}
    assert visual.exact_loss(longer) == pytest.approx(before, rel=1e-5)  # padding is masked
    assert visual.exact_loss(batch | {'features': batch['features'] + 1}) != pytest.approx(before, rel=1e-5)
    for turn in range(3):
        visual.training(batch, turn)
    assert visual.exact_loss(batch) < before


def test_the_plain_optimizer_has_bert_adams_rule():
    one, other = (torch.nn.Parameter(torch.arange(4.0)) for _ in range(2))
    ours, plain = BertAdam([one], lr=LR), PlainBertAdam([other], LR)
    for turn in range(3):
        one.grad = other.grad = torch.linspace(-1, 1, 4) * (turn + 1)
        ours.step()
        plain.step()
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize('task', ['vqa', 'nlvr2'])
def test_the_arithmetic_by_formula_is_what_pytorch_counts(task):
    """Of a sentence without padding, forward, where only what the answer needs is computed."""
    head, batch = make_head(task, CONFIG).eval(), make_batch(task, CONFIG, LENGTHS[1:2], 0, CPU)
    with FlopCounterMode(display=False) as counter:  # with gradients: it does not know the fused attention of inference
        head.logits(batch)
    assert forward_flops(task, CONFIG, 9) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_the_published_size_takes_the_expected_arithmetic():
    """A forward pass of pre-training with 20 tokens and 36 regions, where every head is computed at masked places only."""
    forward = forward_flops('pretrain', LxrtConfig(), 20) / 1e9
    assert 4.4 + 6.1 < forward < 4.4 + 6.1 + 0.94 + 0.27


def test_the_rate_of_matrix_products_is_measured_within_seconds_on_any_processor(monkeypatch):
    """The product is as large as the processor is fast: here one of 1 GFLOP/s in bfloat16 and 1 TFLOP/s in float32."""
    sizes = []

    def timed(call, device):
        sizes.append(call.args[0].shape[0])
        return 2 * sizes[-1] ** 3 / (1e9 if call.args[0].dtype == torch.bfloat16 else 1e12)

    monkeypatch.setattr(model, 'timed', timed)
    for mode, rate, largest in ((model.MODES['bf16'], 1e9, 256), ({}, 1e12, 2048)):
        assert model.matrix_rate(mode, CPU) == pytest.approx(rate) and max(sizes) == largest
        sizes.clear()


@pytest.mark.parametrize(('bfloat16', 'warns'), [(0.5e9, True), (40e9, False)])
def test_bf16_warns_where_float32_is_faster(monkeypatch, capsys, bfloat16, warns):
    monkeypatch.setattr(speed, 'multiplication_rate', {torch.float32: 20e9, torch.bfloat16: bfloat16}.get)
    speed.warn_slow_bf16(CPU)
    assert capsys.readouterr().out.startswith('Warning: --bf16: this CPU multiplies matrices at 0.5 GFLOP/s') == warns


def test_the_rate_of_multiplication_is_positive():
    assert speed.multiplication_rate(torch.float32, 16) > 0


@pytest.fixture
def bench(made_world, tmp_path):
    """bench(module, *flags): runs a measurement on a very small model; returns its figures."""
    def run(module, *flags):
        out = tmp_path / 'figures.json'
        flags = ['--out', out, '--small', '--batchSize', 4, '--device', 'cpu', '--world', made_world, *flags]
        assert module.main(list(map(str, flags))) == 0
        return json.loads(out.read_text())

    return run


@pytest.fixture
def one_process(monkeypatch):
    """What is measured in a process of its own is measured here; its peak memory is 1 MB."""
    monkeypatch.setattr(model.report, 'run_separately', lambda _, *flags: model.main(list(map(str, flags))) or 1)


def test_the_steps_of_a_model_are_measured(bench, one_process, capsys):
    figures = bench(model, '--runs', 1, '--evalBatchSize', 4, '--tasks', 'vqa', '--modes', 'bf16')
    for what in ('training', 'inference'):
        assert figures[f'vqa, {what}, bf16: times as fast as {HUGGING_FACE}'] > 0
    assert figures['vqa: relative difference of the losses, without dropout'] < 1e-4
    assert figures['vqa, training, bf16: per cent of the rate of matrix products'] > 0
    assert figures[f'vqa, training, {HUGGING_FACE}: peak memory, MB'] == 1
    assert 'figures.json' in capsys.readouterr().out


def test_the_steps_of_vl_bert_are_measured(bench, one_process):
    figures = bench(model, '--model', 'vlbert', '--runs', 1, '--evalBatchSize', 2, '--modes', 'fp32', '--regions', 12)
    for step in ('vqa, training', 'vqa, inference', 'pretrain, training', 'pretrain, inference'):
        assert figures[f'{step}, fp32: times as fast as {HUGGING_FACE}'] > 0
    assert figures[f'pretrain, training, {HUGGING_FACE}: peak memory, MB'] == 1


@pytest.mark.parametrize('task', ['pretrain', 'retrieval'])
def test_the_steps_of_albef_are_measured(task, tmp_path, monkeypatch):
    monkeypatch.setattr(albef.report, 'run_separately', lambda _, part, mode, *flags: albef.peak_memory(
        mode, argparse.Namespace(task=task, batchSize=2, device='cpu', imageRes=None, small=True)))
    assert albef.main(['--out', str(tmp_path / 'x.json'), '--small', '--device', 'cpu', '--runs', '1', '--task', task]) == 0
    figures = json.loads((tmp_path / 'x.json').read_text())
    for mode in albef.MODES:
        assert figures[f'{task}, {mode}: s a step'] > 0
        fixed = figures[f'{task}, {mode}: of it weights, gradients and optimizer, MB']
        assert 1 < fixed < figures[f'{task}, {mode}: peak memory, MB']
    days = figures.get('pretrain, plain: days of 30 epochs of 4,000,000 images', 0)
    assert days == pytest.approx(30 * 4e6 / 2 * figures[f'{task}, plain: s a step'] / 86400 * (task == 'pretrain'))


def test_the_loop_is_measured_and_trainings_are_projected(bench, tmp_path):
    figures = bench(loop, '--steps', 2, '--turns', 1, '--folder', tmp_path / 'data', '--task', 'pretrain', '--mode', 'fp32',
                    '--GBps', 1e9)
    assert figures['the loop, examples/s'] > 0 and figures['processes: 2, times as fast as 1'] > 0
    hours = [figures[f'pre-training, 20 epochs, devices: {count}, hours'] for count in (1, 8)]
    assert hours[0] == pytest.approx(8 * hours[1], rel=1e-3)
    assert not (tmp_path / 'data').exists()


def test_the_loop_over_images_is_measured(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, 'IMAGES', 8)
    figures = bench(loop, '--steps', 2, '--turns', 1, '--folder', tmp_path / 'data', '--features', 'pixels', '--processes', 1,
                    '--mode', 'fp32')
    assert figures['the loop, s a step'] > 0 and not any('hours' in name for name in figures)


def test_wrong_flags_of_a_measurement_are_named(tmp_path, capsys):
    (tmp_path / 'file').touch()
    for module, flags, expected in ((loop, ['--folder', str(tmp_path)], 'is not empty'),
                                    (loop, ['--processes', '0'], '--processes'),
                                    (loop, ['--features', 'pixels', '--task', 'pretrain'], 'found --task pretrain'),
                                    (model, ['--runs', 'x'], '--runs'), (model, ['--tasks', 'x'], 'found x'),
                                    (model, ['--model', 'vlbert', '--tasks', 'nlvr2'], 'found nlvr2')):
        with pytest.raises(SystemExit) as ended:
            module.main(flags)
        assert ended.value.code == 2 and expected in capsys.readouterr().err
    assert (tmp_path / 'file').exists()
