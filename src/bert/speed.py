"""--checkpointing, --compile and --apex: how a model is computed, neither what nor the names of its parameters."""

import importlib

import torch
from torch import nn

from bert.optimization import BertAdam
from lxrt.modeling import LXRTModel

SHAPES = 64  # of batches that are compiled, each by itself, at the most


def accelerate(model, options, backend='inductor'):
    """Changes `model` as options say; backend: torch.compile's. Raises ValueError where apex is asked for and not there."""
    for bert in [module for module in model.modules() if isinstance(module, LXRTModel)]:
        bert.encoder.checkpointing = options.checkpointing
        if options.compile:
            torch._dynamo.config.recompile_limit = SHAPES
            on_gpu = next(bert.parameters()).is_cuda
            mode = 'reduce-overhead' if on_gpu else None  # CUDA graphs
            bert.compile(dynamic=False, fullgraph=True, mode=mode, backend=backend)
    if options.apex:
        for module in ('fused_layer_norm_cuda', 'amp_C', 'apex.multi_tensor_apply'):  # now rather than after all data is loaded
            from_apex(module)
        fuse_layer_norms(model)


def fuse_layer_norms(model):
    """Puts apex's layer norms, with the same parameters, in the place of PyTorch's."""
    fused = from_apex('apex.normalization').FusedLayerNorm
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.LayerNorm:
                own = fused(child.normalized_shape, eps=child.eps)
                own.weight, own.bias = child.weight, child.bias
                setattr(module, name, own)


class ApexAdam(BertAdam):
    """BertAdam by the kernel of apex's FusedAdam, whose rule without bias correction is the same."""

    def _update(self, group, step, params, divisor, skip):
        if skip:  # which waits for the device: apex's kernel does not know how to skip
            return
        grads, m, v = self._gradients_and_averages(params)
        torch._foreach_div_(grads, divisor)
        overflow = torch.zeros(1, dtype=torch.int32, device=params[0].device)  # theirs, which the kernel does not heed
        # What follows the rate: averages' shares, e, the step (not used), decoupled decay (1), bias correction (0), decay.
        from_apex('apex.multi_tensor_apply').multi_tensor_applier(
            from_apex('amp_C').multi_tensor_adam, overflow, [grads, params, m, v], self.rate(group, step), group['b1'],
            group['b2'], group['e'], step + 1, 1, 0, group['weight_decay'])


def from_apex(module):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"--apex: NVIDIA's apex cannot be used ({error}); leave the flag out, it is never needed") from None
