"""--checkpointing, --compile, --apex and --bf16: how a model is computed. Parameter names stay the same."""

import importlib
import time

import torch
from torch import nn

import dist
from bert.optimization import BertAdam

SHAPES = 64  # batch shapes that are compiled, each separately, at most


def accelerate(model, options, backend='inductor'):
    """Apply the options to the modules of a model that have these attributes: `gradient_checkpointing`, to be set, and
    `compile_as_one_graph`, true where torch.compile is to be called.

    backend: torch.compile's. Raises ValueError if apex is requested and cannot be used, or there is nothing to compile.
    """
    compiled = False
    for module in model.modules():
        if hasattr(module, 'gradient_checkpointing'):
            module.gradient_checkpointing = options.checkpointing
        if options.compile and getattr(module, 'compile_as_one_graph', False):
            torch._dynamo.config.recompile_limit = SHAPES
            mode = 'reduce-overhead' if next(module.parameters()).is_cuda else None  # CUDA graphs
            compiled = True
            module.compile(dynamic=False, fullgraph=True, mode=mode, backend=backend)
    if options.compile and not compiled:
        raise ValueError('--compile: no module of this model has `compile_as_one_graph`, so that nothing would be compiled; '
                         'leave the flag out')
    if options.apex:
        for name in ('fused_layer_norm_cuda', 'amp_C', 'apex.multi_tensor_apply'):  # fail here, not at the first step
            import_apex(name)
        fuse_layer_norms(model, import_apex('apex.normalization').FusedLayerNorm)


def warn_slow_bf16(device):
    """Print a warning if this CPU multiplies matrices more slowly in bfloat16 than in float32. Takes a fraction of a second."""
    if torch.device(device).type != 'cpu':
        return
    float32, bfloat16 = (multiplication_rate(dtype) for dtype in (torch.float32, torch.bfloat16))
    if bfloat16 < float32:
        dist.print0(f'Warning: --bf16: this CPU multiplies matrices at {bfloat16 / 1e9:.1f} GFLOP/s in bfloat16 and at '
                    f'{float32 / 1e9:.1f} in float32. Leave --bf16 out to be faster.')


def multiplication_rate(dtype, size=256):
    """FLOP/s of a product of two square matrices on the CPU, the best of 3 after one to warm up."""
    matrix, seconds = torch.ones(size, size, dtype=dtype), []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return 2 * size ** 3 / min(seconds[1:])


def import_apex(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"--apex: NVIDIA's apex cannot be used ({error}); leave the flag out, it is never needed") from None


def fuse_layer_norms(model, fused_class):
    """Replace PyTorch's layer norms by apex's, with the same parameters."""
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if type(norm) is nn.LayerNorm:
                fused = fused_class(norm.normalized_shape, eps=norm.eps)
                fused.weight, fused.bias = norm.weight, norm.bias
                setattr(module, name, fused)


class ApexAdam(BertAdam):
    """BertAdam by the kernel of apex's FusedAdam, which has the same rule without bias correction."""

    def _update(self, group, step, params, divisor, skip):
        if skip:  # waits for the GPU: apex's kernel cannot skip
            return
        grads, m, v = self._gradients_and_averages(params)
        torch._foreach_div_(grads, divisor)
        overflow = torch.zeros(1, dtype=torch.int32, device=params[0].device)  # required by apex, ignored by its kernel
        decoupled_decay, bias_correction = 1, 0
        import_apex('apex.multi_tensor_apply').multi_tensor_applier(
            import_apex('amp_C').multi_tensor_adam, overflow, [grads, params, m, v], self.rate(group, step), group['b1'],
            group['b2'], group['e'], step + 1, decoupled_decay, bias_correction, group['weight_decay'])
