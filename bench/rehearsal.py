"""Rehearses training on a GPU on a machine without one: an optimizer step of every model and task is traced on tensors that have
a shape and a device but no content, by the paths that a GPU takes, so that shapes cannot follow from content; and what --compile
compiles becomes one graph. Prints the number of operations of each step; exits with 1 if a step waits for the device, has a graph
break, or leaves parameters without gradient that should have one."""

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
import optimizer
from bench import report
from bert import layers
from bert.speed import accelerate
from bert.tokenization import SPECIAL_TOKENS, BertTokenizer
from cli import run_main
from optimizer import OptimizerStep
from param import Options
from run_state import Progress
from train import train_step

# Stands for a GPU: a device type that no code here knows, whose tensors PyTorch without CUDA differentiates too.
DEVICE = torch.device('lazy', 0)
CPU = torch.device('cpu')
GPU_PATHS = (layers.FUSED_QKV, optimizer.FUSED_STEP)  # sets of device types in which a GPU is and a CPU is not
HIDDEN_WAITS = ('aten.multinomial', 'aten.equal', 'aten.is_nonzero')  # operations that wait inside; tracing does not show it
# Steps that wait for the device on purpose, and why.
WAITS = {('albef', 'text_assignment'): 'wrong pictures are drawn on the CPU, in the order of the original code; one epoch, once'}
# Parameters that some heads do not read: one side of LXMERT's last cross layer, of SIZES, as in the original code; poolers.
UNREAD = ('x_layers.1.', 'bert.pooler.')
SIZES = {'vocab_size': 120, 'hidden_size': 16, 'num_attention_heads': 2, 'intermediate_size': 32, 'max_position_embeddings': 40,
         'l_layers': 1, 'r_layers': 1, 'x_layers': 2, 'num_hidden_layers': 2, 'visual_feat_dim': 24, 'geometry_size': 16,
         'num_object_labels': 7, 'num_attr_labels': 5, 'num_region_classes': 9, 'image_res': 32, 'queue_size': 64, 'embed_dim': 8}
PIXELS = SIZES | {'pixels': True, 'resnet_width': 4, 'resnet_blocks': [1, 1, 1, 1]}  # of a model that can read either
ANSWERS, CHOICES = 6, 4
SIDE = 64  # pixels of an image of a model without image_res


class WaitsForDevice(Exception):
    """An operation in a step waits for the device, or copies between it and the CPU."""


def main(argv=None) -> int:
    parser = report.parser('rehearsal', __doc__, folder=False)
    parser.add_argument('--without', choices=('graphs',), help='graphs: do not compile, which takes most of the time')
    options = parser.parse_args(argv)
    return run_main('bench.bash', lambda: rehearse(options, report.Figures(options.out)))


def rehearse(options, figures):
    faults = []
    for model, task, sizes in cases():
        name = f'{model}, {task}' + (', pixels' if sizes is PIXELS else '')
        try:
            operations, unread = trace(model, task, sizes)
            figures[f'{name}: operations in a step'] = len(operations)
            faults += [f'{name}: parameters without gradient: {", ".join(unexpected(unread))}'] if unexpected(unread) else []
            faults += [f'{name}: does not wait for the device; remove it from WAITS'] if (model, task) in WAITS else []
        except WaitsForDevice as error:
            if (model, task) not in WAITS:
                faults.append(f'{name}: {error}')
        if not options.without:
            try:
                figures[f'{name}: graphs of --compile'] = compiled_graphs(model, task, sizes)
            except torch._dynamo.exc.TorchDynamoException as error:
                faults.append(f'{name}: graph break: {str(error).strip().splitlines()[0]}')
    print(*faults, sep='\n', file=sys.stderr)
    return 1 if faults else figures.finish()


def cases():
    """(model, task, sizes) of every recipe; of models that read regions or pixels, both for one task."""
    for model in models.MODELS:
        recipes = models.package(model).RECIPES
        yield from ((model, task, SIZES) for task in recipes)
        if hasattr(make_config(model, SIZES), 'pixels'):
            yield from ((model, task, PIXELS) for task in ('vqa', 'pretrain') if task in recipes)


def kinds():
    """The first of the `cases` of each model with the same output, with a decoder, or with pixels; and those in WAITS."""
    first = {}
    for model, task, sizes in cases():
        recipe = models.package(model).recipe(task)
        kind = 'pixels' if sizes is PIXELS else recipe.output, recipe.loss == 'LM', (model, task) in WAITS
        first.setdefault((model, *kind), (model, task, sizes))
    return list(first.values())


def make_config(model, sizes):
    """The config of a model from a config.json with these keys; those that it does not know are ignored."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'config.json'
        path.write_text(json.dumps(sizes))
        return models.package(model).config_from_json(path)


def make_head(model, task, config, answers=ANSWERS):
    head = models.build(model, task, config, [f'answer {i}' for i in range(answers)])
    if head.encoder is None:
        head.sources = ['vqa', 'gqa']
        return head
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'vocab.txt'
        path.write_text('\n'.join([*SPECIAL_TOKENS, 'one', 'two']))
        head.encoder.tokenizer = BertTokenizer(path)
    return head


# ---------------------------------------------------------------------------- steps without content


@contextlib.contextmanager
def as_on_gpu():
    """Until the block ends tensors on DEVICE have no content, and code takes a GPU's paths for them."""
    with contextlib.ExitStack() as stack:
        for paths in GPU_PATHS:
            paths.add(DEVICE.type)
            stack.callback(paths.discard, DEVICE.type)
        autocast = torch.autocast
        stack.enter_context(mock.patch.object(torch, 'autocast', lambda kind, *args, **options: contextlib.nullcontext()
                                              if kind == DEVICE.type else autocast(kind, *args, **options)))
        stack.enter_context(mock.patch('torch.optim.optimizer._get_fused_kernels_supported_devices', lambda: [DEVICE.type]))
        yield stack.enter_context(FakeTensorMode())


def without_content(head, device):
    """A head on the device meta, with its parameters and buffers on another one. Called in a FakeTensorMode."""
    made = {}  # tied weights stay tied
    for module in head.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in made:
                    made[tensor] = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    if isinstance(tensor, nn.Parameter):
                        made[tensor] = nn.Parameter(made[tensor], tensor.requires_grad)
                tensors[name] = made.get(tensor)
    return head


def tensors_in(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Operations(TorchDispatchMode):
    """Records operations as (name, shapes of the results). Raises WaitsForDevice."""

    def __init__(self):
        super().__init__()
        self.recorded = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.namespace == 'prim':  # what a tensor is, such as its device
            return operation(*args)
        if str(operation).startswith('aten._fused_'):  # steps of optimizers, in place; some cannot be traced
            self.recorded.append((str(operation),))
            return None
        try:
            result = operation(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise WaitsForDevice(f'{operation}: the CPU waits for its result') from error
        given, results = (tensors_in(values) for values in ((args, kwargs), result))
        # A scalar of the CPU is an argument of a kernel, unless it is copied.
        kinds = {one.device.type for one in given + results if one.ndim or 'copy' in str(operation)}
        if len(kinds) > 1 or str(operation).startswith(HIDDEN_WAITS):
            raise WaitsForDevice(f'{operation}: copies between CPU and device, or waits inside')
        self.recorded.append((str(operation), *(tuple(tensor.shape) for tensor in results)))
        return result


def prepare(model, task, sizes, b, device=CPU, answers=ANSWERS, content=True, **flags):
    """(head, OptimizerStep, Options) of a model; without content on any device, in a FakeTensorMode."""
    config = make_config(model, sizes)
    with contextlib.nullcontext() if content else torch.device('meta'):
        head = make_head(model, task, config, answers)
    head = (head.to(device) if content else without_content(head, device)).train()
    options = Options(batchSize=b, **flags)
    options.complete(head.recipe)
    return head, OptimizerStep(head, options, 1000, device), options


def trace(model, task, sizes=SIZES, b=3):
    """(operations of a step of training, names of parameters that it leaves without gradient). Raises WaitsForDevice."""
    with as_on_gpu():
        head, step, options = prepare(model, task, sizes, b, DEVICE, content=False)
        batch = make_batch(head, make_config(model, sizes), b)
        with Operations() as operations:
            train_step(head, step, [batch], options, Progress(0, 0, 100), DEVICE)
    return operations.recorded, [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]


def unexpected(unread):
    """The names of parameters without gradient that should have one."""
    return [name for name in unread if not any(part in name for part in UNREAD)]


def compiled_graphs(model, task, sizes=SIZES):
    """The number of graphs into which --compile makes the parts of a model that it compiles. Raises torch._dynamo's error for a
    part that is not one graph."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    head, step, options = prepare(model, task, sizes, 4)
    accelerate(head, SimpleNamespace(checkpointing=False, compile=True, apex=False), backend=backend)
    try:
        train_step(head, step, [make_batch(head, make_config(model, sizes), 4, device=CPU)], options, Progress(0, 0, 100), CPU)
    finally:
        torch._dynamo.reset()
    return len(graphs)


# ---------------------------------------------------------------------------- batches


def make_batch(head, config, b, t=8, o=5, device=DEVICE, answers=ANSWERS):
    """A batch of b examples as a dataset makes it for the head, without padding: texts of t tokens, o regions in an image."""
    recipe, encoder = head.recipe, head.encoder
    needs = encoder.needs if encoder is not None else frozenset({'regions', 'boxes'})
    c = CHOICES if recipe.output == 'choice' else 1
    n, m = b * c, b * recipe.images

    def whole(*shape, value=1):
        return torch.full(shape, value, device=device)

    def numbers(*shape):
        return torch.rand(shape, device=device)

    def trues(*shape):
        return torch.ones(shape, dtype=torch.bool, device=device)

    places = torch.arange(b, device=device)
    batch = {'examples': b, 'input_ids': (places % 50).repeat_interleave(c)[:, None] + whole(n, t)}
    if needs & {'regions', 'boxes'}:
        batch |= {'boxes': numbers(m, o, 4), 'visual_attention_mask': trues(m, o)}
    if 'regions' in needs:
        batch['features'] = numbers(m, o, config.visual_feat_dim)
    if 'whole' in needs:
        batch |= {'image_size': whole(m, 2, value=480), 'mirrored': trues(m)}
    if encoder is not None:
        written = encoder.write([('one two',)], t, encoder.blank and recipe.output == 'answer')
        batch |= {'token_type_ids': whole(n, t, value=0)} if 'token_type_ids' in written else {}
        batch |= {'slot': whole(n)} if 'slot' in written else {}
    if 'pixels' in needs:
        side = getattr(config, 'image_res', SIDE)
        batch |= {'pixels': numbers(m, 3, side, side), 'pixel_size': whole(m, 2, value=side)}
        batch |= {'region_rows': torch.arange(m * o, device=device)} if 'whole' in needs else {}
    if recipe.output == 'answer':
        batch |= {'label_example': places, 'label_answer': places % answers, 'label_score': numbers(b)}
        if recipe.loss == 'LM':
            head.answer_ids = whole(answers, 5)
    elif recipe.output == 'choice':
        batch |= {'choice': whole(b), 'token_type_ids': whole(n, t)}
        batch |= {'word_regions': whole(n, t), 'region_labels': whole(b, o)} if 'word_regions' in needs else {}
    elif recipe.output == 'region':
        batch |= {'region_target': numbers(b, o), 'image_id': places}
    elif recipe.output == 'match' or ('pixels' in needs and 'whole' not in needs):
        batch['image_id'] = places
    elif 'whole' in needs:  # captions, and texts alone
        batch |= {'input_ids': whole(2 * b, t), 'token_type_ids': whole(2 * b, t, value=0), 'masked_lm_labels': whole(2 * b, t),
                  'pictures': torch.cat([places, whole(b, value=-1)]), 'words_at': torch.arange(2 * b * t, device=device)[::6],
                  'masked_regions': trues(b, o), 'regions_at': torch.arange(b * o, device=device)[::6],
                  'region_classes': torch.full((b, o, config.num_region_classes), 1 / config.num_region_classes, device=device)}
    else:  # sentences and regions
        features = batch.pop('features')
        batch |= {'attention_mask': trues(b, t), 'masked_lm_labels': whole(b, t), 'visual_feats': features,
                  'words_at': torch.arange(b * t, device=device)[::6], 'regions_at': torch.arange(b * o, device=device)[::6],
                  'obj_labels': {'obj': (whole(b, o), numbers(b, o)), 'attr': (whole(b, o), numbers(b, o)),
                                 'feat': (features.clone(), numbers(b, o))},
                  'matched_label': whole(b), 'ans': places % answers, 'source': whole(b)}
    return batch


if __name__ == '__main__':
    sys.exit(main())
