"""Memory of a training step at the published sizes without running it: by formula, and from a trace on tensors without content,
which follows every allocation of the forward pass, the backward pass and the optimizer. For one small step on the CPU the trace
is compared with the peak memory that is measured. Needs neither a GPU nor the memory that it tells."""

import contextlib
import gc
import json
import sys
import weakref
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import models
import optimizer
from bench import rehearsal, report
from bench.model import ANSWERS, LENGTH, REGIONS
from bench.rehearsal import CPU, DEVICE, tensors_in
from bert import layers
from cli import run_main
from run_state import Progress
from train import train_step

TASKS = ('vqa', 'pretrain')
IMAGE_RES = {'vqa': 384}  # pixels of a side, of a model that reads images; else those of the config
BLOCK = 512  # bytes, of which the allocator of a GPU gives multiples
# Functions that autocast on a GPU computes in bfloat16, and in float32.
LOWER = {'linear', 'matmul', '__matmul__', 'bmm', 'conv2d', 'scaled_dot_product_attention'}
FLOAT = {'layer_norm', 'softmax', 'log_softmax', 'cross_entropy', 'binary_cross_entropy_with_logits', 'smooth_l1_loss',
         'normalize'}


def main(argv=None) -> int:
    parser = report.parser('memory', __doc__, folder=False)
    parser.add_argument('--batchSizes', default='256,1024', help='examples in a step, separated by commas (%(default)s)')
    parser.add_argument('--models', default=','.join(models.MODELS), help='default: %(default)s')
    parser.add_argument('--measured', type=int, default=8, help='examples in the step that is measured (%(default)s); 0: none')
    parser.add_argument('--small', action='store_true', help='very small models, to try the program')
    options = parser.parse_args(argv)
    if options.part:
        return run_main('bench.bash', lambda: print(json.dumps(measured(*options.part.split('/'), options))) or 0)
    return run_main('bench.bash', lambda: tell(options, report.Figures(options.out)).finish())


def tell(options, figures):
    for model in options.models.split(','):
        for task in TASKS:
            for b in map(int, options.batchSizes.split(',')):
                for mode in ('fp32', 'bf16'):
                    fixed, gradients, peak = traced(model, task, b, mode, options.small)
                    name = f'{model}, {task}, {b} examples, {mode}'
                    figures[f'{name}: GB'] = peak / 1e9
                if formula := by_formula(model, task, b, options.small):
                    # Gradients come while what is kept for them goes.
                    figures[f'{model}, {task}, {b} examples, fp32, by formula: GB'] = (fixed - gradients + formula) / 1e9
                figures[f'{model}, {task}, {b} examples, weights, gradients, averages and batch: GB'] = fixed / 1e9
        if not options.measured:
            continue
        name, flags = f'{model}, vqa, {options.measured} examples on the CPU', ['--small'] if options.small else []
        *_, peak = traced(model, 'vqa', options.measured, 'cpu', options.small)
        figures[f'{name}, traced: MB'] = peak / 1e6
        figures[f'{name}, measured: MB'] = report.run_separately('memory', '--part', f'{model}/vqa', '--measured',
                                                                 options.measured, *flags, MALLOC_MMAP_THRESHOLD_=str(2 ** 16))
        figures[f'{name}: measured, times what was traced'] = figures[f'{name}, measured: MB'] / (peak / 1e6)
    return figures


def sizes_of(task, small):
    """Keys of config.json; those that are not named are those of the published model."""
    return rehearsal.SIZES if small else {'image_res': IMAGE_RES[task]} if task in IMAGE_RES else {}


def batch_of(head, config, task, b, device):
    whole = 'whole' in getattr(head.encoder, 'needs', ())
    return rehearsal.make_batch(head, config, b, LENGTH, REGIONS + whole, device, ANSWERS[task])


def by_formula(model, task, b, small=False):
    """Bytes of what the forward pass keeps for the backward pass in float32 on a GPU, without heads; None for a model without a
    formula.

    Of each place a block of BERT keeps, in numbers of the hidden size d: 6 of attention (its input, query, key, value, the
    result, the input of the layer norm) and 10 of the feed-forward part (its input, twice the 4 d of its middle, the input of the
    layer norm), and with dropout a byte more for each of the two. A block of a vision transformer keeps as much, without dropout.
    """
    config = rehearsal.make_config(model, sizes_of(task, small))
    attention, forward, dropped = 4 * 6 + 1, 4 * 10 + 1, 2
    block, t, o, d = attention + forward, LENGTH, REGIONS, config.hidden_size
    if model == 'lxmert':
        cross = (2 * attention + forward) * (t + o)
        return b * d * (block * (config.l_layers * t + config.r_layers * o) + config.x_layers * cross)
    if model == 'vlbert':
        texts = 2 if task == 'pretrain' else 1  # a caption and a text alone
        return b * d * block * config.num_hidden_layers * texts * (t + o + 2)
    if model == 'albef' and task == 'pretrain':
        text, v = config.text, 1 + (config.image_res // config.patch_size) ** 2
        vision = config.vision_depth * (block - dropped) * v * config.vision_width
        layers_above = text.num_hidden_layers - text.fusion_layer
        fusion = layers_above * ((block + attention) * t * d + 4 * 2 * v * d)  # and keys and values of the image
        below = text.fusion_layer * block * t * d
        # The layers that read text alone run for ITC and for masked words, those that attend to an image for a pair and two wrong
        # ones of ITM, and for masked words.
        return b * (vision + 2 * below + 4 * fusion)
    return None


# ---------------------------------------------------------------------------- traces


class Allocations(TorchDispatchMode):
    """Follows the memory of tensors: `live` bytes and their `peak`."""

    def __init__(self, block):
        super().__init__()
        self.live = self.peak = 0
        self.block, self.known = block, set()

    def add(self, tensors):
        for storage in {id(one): one for one in (tensor.untyped_storage() for tensor in tensors)}.values():
            if (key := storage._cdata) not in self.known:
                size = -(-storage.nbytes() // self.block) * self.block
                self.known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.free, key, size)

    def free(self, key, size):
        self.known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == 'prim':
            return operation(*args)
        if str(operation).startswith('aten._fused_'):  # in place
            return None
        if str(operation).startswith('aten._local_scalar_dense'):  # no, boxes on the CPU are not in pixels
            return 0
        result = operation(*args, **(kwargs or {}))
        self.add(tensors_in(result))
        return result


class Autocast(TorchFunctionMode):
    """torch.autocast of a GPU to bfloat16, which PyTorch without CUDA has not. Casts of weights are made once."""

    def __init__(self):
        super().__init__()
        self.casts = {}

    def cast(self, value, dtype):
        if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float32, torch.bfloat16) or value.dtype == dtype:
            return value
        if not isinstance(value, torch.nn.Parameter):
            return value.to(dtype)
        if value not in self.casts:
            self.casts[value] = value.to(dtype)
        return self.casts[value]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(function, '__name__', '')
        if name in LOWER or name in FLOAT:
            dtype = torch.bfloat16 if name in LOWER else torch.float32
            args = [self.cast(value, dtype) for value in args]
            kwargs = {key: self.cast(value, dtype) for key, value in kwargs.items()}
        return function(*args, **kwargs)


def efficient_attention(query, key, value, mask=None, dropout_p=0.0):
    """F.scaled_dot_product_attention by the kernel that a GPU takes where there is a mask: it keeps no probabilities."""
    if mask is not None:
        mask = mask.expand(*query.shape[:-1], key.shape[-2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, dropout_p)[0]


@contextlib.contextmanager
def traceable():
    """Padding stays on the CPU too, and steps of the optimizer are fused: a trace knows neither padding nor what is finite."""
    layers.PACK_SEQUENCES.discard('cpu')
    optimizer.FUSED_STEP.add('cpu')
    try:
        yield
    finally:
        layers.PACK_SEQUENCES.add('cpu')
        optimizer.FUSED_STEP.discard('cpu')


def traced(model, task, b, mode, small=False):
    """(bytes of weights, buffers, batch, gradients and averages; of these gradients; peak bytes) of the second step of training.
    mode: 'fp32' or 'bf16' on a GPU, or 'cpu', by the paths of a CPU."""
    sizes = sizes_of(task, small)
    config = rehearsal.make_config(model, sizes)
    with contextlib.ExitStack() as stack:
        if mode == 'cpu':
            stack.enter_context(traceable())
            stack.enter_context(FakeTensorMode())
            device = CPU
        else:
            stack.enter_context(rehearsal.as_on_gpu())
            stack.enter_context(mock.patch.object(F, 'scaled_dot_product_attention', efficient_attention))
            device = DEVICE
        head, step, options = rehearsal.prepare(model, task, sizes, b, device, ANSWERS[task], content=False)
        batch = batch_of(head, config, task, b, device)
        with Allocations(BLOCK if device == DEVICE else 1) as allocations:
            allocations.add([*head.parameters(), *head.buffers(), *tensors_in(batch)])
            for turn in range(2):
                allocations.peak = 0
                with Autocast() if mode == 'bf16' else contextlib.nullcontext():
                    train_step(head, step, [batch], options, Progress(0, turn, 100), device)
            gc.collect()
            gradients = sum(p.grad.numel() * p.grad.element_size() for p in head.parameters() if p.grad is not None)
            return allocations.live, gradients, allocations.peak


def measured(model, task, options):
    """Peak MB of two steps on the CPU beside what the process had before, in a process of its own."""
    with traceable():
        for sizes in (rehearsal.SIZES, sizes_of(task, options.small)):  # the first one loads libraries
            before = report.peak_resident()
            head, step, flags = rehearsal.prepare(model, task, sizes, options.measured, CPU, ANSWERS[task])
            batch = batch_of(head, rehearsal.make_config(model, sizes), task, options.measured, CPU)
            for turn in range(2):
                train_step(head, step, [batch], flags, Progress(0, turn, 100), CPU)
    return (report.peak_resident() - before) / 1e6


if __name__ == '__main__':
    sys.exit(main())
