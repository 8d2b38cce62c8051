"""Measures training steps of the full-size ALBEF: seconds, the modes in turns in one process, and peak memory of each mode in a
process of its own. Of pre-training also how long the published training would take at this rate."""

import json
import statistics
import sys
from functools import partial

import torch

import models
from albef.config import AlbefConfig
from bench import report
from bench.model import timed
from bert.speed import accelerate
from cli import positive, run_main
from optimizer import OptimizerStep
from param import Options
from run_state import Progress
from train import train_step

MODES = {'plain': {}, 'checkpointing': {'checkpointing': True}, 'bf16': {'bf16': True},
         'both': {'checkpointing': True, 'bf16': True}}
IMAGE_RES = {'pretrain': 256, 'retrieval': 384}
WORDS = 15  # word pieces of a text, with [CLS]
STEPS = 1_000_000  # of the schedule
EPOCHS, PAIRS = 30, 4_000_000  # of the published pre-training
SMALL = {'image_res': 32, 'vision_width': 32, 'vision_depth': 2, 'vision_heads': 2, 'queue_size': 64, 'bert': {
    'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 64, 'fusion_layer': 1}}


def main(argv=None) -> int:
    parser = report.parser('albef', __doc__, folder=False)
    parser.add_argument('--task', choices=tuple(IMAGE_RES), default='pretrain')
    parser.add_argument('--imageRes', type=positive, help='side of an image in pixels (of the task: 256 or 384)')
    parser.add_argument('--batchSize', type=positive, default=2, help='pairs in a step, 2 or more (2)')
    parser.add_argument('--modes', default=','.join(MODES), help='some of them, separated by commas (all)')
    parser.add_argument('--runs', type=int, default=2, help='measured steps, after one that warms up (2); 0: only memory')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--small', action='store_true', help='a very small model, to try the program')
    options = parser.parse_args(argv)
    if unknown := set(options.modes.split(',')) - set(MODES):
        parser.error(f'--modes: expected some of {", ".join(MODES)}, found {", ".join(sorted(unknown))}')
    if options.part:
        return run_main('bench.bash', lambda: print(json.dumps(peak_memory(options.part, options))) or 0)
    return run_main('bench.bash', lambda: measure(options, report.Figures(options.out)).finish())


def measure(options, figures):
    """Adds all figures, by name, with their units, and returns them."""
    task, modes = options.task, options.modes.split(',')
    head, optimizer_step = make(options)
    figures |= {'device': torch.cuda.get_device_name() if options.device == 'cuda' else 'CPU',
                'threads': torch.get_num_threads(), 'pairs in a step': options.batchSize,
                'image side, pixels': head.config.image_res,
                f'{task}: trained parameters': sum(p.numel() for p in head.parameters() if p.requires_grad)}
    seconds = {mode: [] for mode in modes}
    for turn in range(options.runs + 1 if options.runs else 0):
        for mode in modes:
            seconds[mode].append(step(head, optimizer_step, mode, options, turn))
    for mode, each in seconds.items() if options.runs else ():
        median = statistics.median(each[1:])
        figures[f'{task}, {mode}: s a step'] = median
        if 'plain' in modes[:1] and mode != 'plain':
            figures[f'{task}, {mode}: times the seconds of plain'] = median / figures[f'{task}, plain: s a step']
        if task == 'pretrain':
            figures[f'{task}, {mode}: days of {EPOCHS} epochs of {PAIRS:,} images'] = \
                EPOCHS * PAIRS / options.batchSize * median / 86400
    del head, optimizer_step
    for mode in modes:
        figures |= report.run_separately('albef', '--part', mode, '--task', task, '--batchSize', options.batchSize, '--device',
                                         options.device, *(['--imageRes', options.imageRes] if options.imageRes else []),
                                         *(['--small'] if options.small else []))
    return figures


def make(options):
    """(head, OptimizerStep) with random weights."""
    torch.manual_seed(0)
    sizes = SMALL if options.small else {'image_res': IMAGE_RES[options.task]}
    config = AlbefConfig(**sizes | ({'image_res': options.imageRes} if options.imageRes else {}))
    head = models.build('albef', options.task, config).to(options.device).train()
    flags = flags_of(head, 'plain', options)
    return head, OptimizerStep(head, flags, STEPS, torch.device(options.device))


def flags_of(head, mode, options):
    flags = Options(device=options.device, batchSize=options.batchSize, **MODES[mode])
    flags.complete(head.recipe)
    return flags


def step(head, optimizer_step, mode, options, turn):
    """Seconds of an optimizer step."""
    flags, device = flags_of(head, mode, options), torch.device(options.device)
    accelerate(head, flags)
    batch = make_batch(head.config, options.batchSize, turn, device)
    return timed(partial(train_step, head, optimizer_step, [batch], flags, Progress(0, turn, STEPS), device), device)


def make_batch(config, b, turn, device):
    """Random pixels and words."""
    g = torch.Generator().manual_seed(turn)
    ids = torch.randint(1000, config.vocab_size, (b, WORDS), generator=g)
    ids[:, 0] = 101  # [CLS]
    batch = {'pixels': torch.randn(b, 3, config.image_res, config.image_res, generator=g), 'input_ids': ids,
             'attention_mask': torch.ones_like(ids), 'image_id': torch.arange(b)}
    return {name: value.to(device) for name, value in batch.items()} | {'examples': b}


def peak_memory(mode, options):
    """Peak memory of two steps, and of it that of weights, momentum models, queues, gradients and averages of the optimizer."""
    head, optimizer_step = make(options)
    for turn in range(2):
        step(head, optimizer_step, mode, options, turn)
    peak = torch.cuda.max_memory_allocated() if options.device == 'cuda' else report.peak_resident()
    tensors = [*head.parameters(), *head.buffers(), *(p.grad for p in head.parameters() if p.grad is not None)]
    tensors += [value for state in optimizer_step.optimizer.state.values() for value in state.values()]
    fixed = sum({tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in tensors}.values())
    name = f'{options.task}, {mode}: '
    return {f'{name}peak memory, MB': peak / 1e6, f'{name}of it weights, gradients and optimizer, MB': fixed / 1e6}


if __name__ == '__main__':
    sys.exit(main())
