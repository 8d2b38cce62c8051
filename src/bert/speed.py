"""How a model is computed: --checkpointing, --compile and --apex, with the same results and parameter names; --bf16."""

import importlib
import time

import torch
from torch import nn

from bert.optimization import BertAdam

SHAPES = 64  # batch shapes that are compiled, each separately, at most


def accelerate(model, options, backend='inductor'):
    """Apply the options to the modules of a model that have these attributes: `gradient_checkpointing`, to be set, and
    `compile_as_one_graph`, true where torch.compile is to be called.

    backend: torch.compile's. Raises ValueError if apex is requested and cannot be used.
    """
    for module in model.modules():
        if hasattr(module, 'gradient_checkpointing'):
            module.gradient_checkpointing = options.checkpointing
        if options.compile and getattr(module, 'compile_as_one_graph', False):
            torch._dynamo.config.recompile_limit = SHAPES
            mode = 'reduce-overhead' if next(module.parameters()).is_cuda else None  # CUDA graphs
            module.compile(dynamic=False, fullgraph=True, mode=mode, backend=backend)
    if options.apex:
        for name in ('fused_layer_norm_cuda', 'amp_C', 'apex.multi_tensor_apply'):  # fail here, not at the first step
            import_apex(name)
        fuse_layer_norms(model, import_apex('apex.normalization').FusedLayerNorm)


def warn_slow_bf16(device):
    """Print a warning if this CPU multiplies matrices more slowly in bfloat16 than in float32. Takes milliseconds."""
    if device.type != 'cpu':
        return
    bf16, fp32 = matrix_rate(torch.bfloat16), matrix_rate(torch.float32)
    if bf16 < 0.75 * fp32:
        print(f'Warning: --bf16 is slow on this CPU: matrix products reach {bf16 / 1e9:.1f} GFLOP/s in bfloat16, '
              f'{fp32 / 1e9:.1f} in float32. Leave out --bf16.', flush=True)


def matrix_rate(dtype, clock=time.perf_counter):
    """FLOP/s of the CPU, by a product of 512 x 512 matrices, or of 128 x 128 if the larger one would take long."""
    for size in (128, 512):
        matrix = torch.ones(size, size, dtype=dtype)
        seconds = []
        for _ in range(3):  # the first one is slower
            start = clock()
            matrix @ matrix
            seconds.append(clock() - start)
        if min(seconds) > 0.0005:  # the larger product takes 64 times as long, or more
            break
    return 2 * size ** 3 / min(seconds)


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
