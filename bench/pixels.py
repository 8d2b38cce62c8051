"""Measures training steps of VL-BERT end to end, RefCOCO+ with photographs: seconds and memory, with and without --checkpointing.

Without --images on noise, which costs the same.
"""

import json
import statistics
import sys
from functools import partial
from pathlib import Path

import torch

import models
from bench import report
from bench.detector import images
from bench.model import SMALL_VLBERT, timed, to_device
from bert.speed import accelerate
from cli import positive, run_main
from optimizer import OptimizerStep
from param import Options
from run_state import Progress
from train import train_step
from vlbert.config import VLBertConfig

MODES = {'plain': {}, 'checkpointing': {'checkpointing': True}}
WORDS = 8  # of an expression, with [CLS] and [SEP]
SMALL = SMALL_VLBERT | {'resnet_width': 8, 'image_side': 120}
STEPS = 1_000_000  # of the schedule


def main(argv=None) -> int:
    parser = report.parser('pixels', __doc__.split('\n')[0], folder=False)
    parser.add_argument('--images', type=Path, help='a folder of photographs (default: noise of 640 x 480)')
    parser.add_argument('--batchSize', type=positive, default=1, help='images in a step (1)')
    parser.add_argument('--regions', type=positive, default=16, help='of an image, beside the image as a whole (16)')
    parser.add_argument('--runs', type=positive, default=3, help='measured steps, after one that warms up (3)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu', help='where to compute (cpu)')
    parser.add_argument('--small', action='store_true', help='a very small model, to try the program')
    options = parser.parse_args(argv)
    if options.part:
        return run_main('bench.bash', lambda: print(json.dumps(measure(options.part, options))) or 0)
    flags = [*(['--images', options.images] if options.images else []), *(['--small'] if options.small else [])]
    for name in ('batchSize', 'regions', 'runs', 'device'):
        flags += [f'--{name}', getattr(options, name)]
    figures = report.Figures(options.out)
    for mode in MODES:
        figures |= report.run_separately('pixels', '--part', mode, *flags)
    for what in ('s a step', 'peak memory, MB', 'peak memory beside weights and gradients, MB'):
        figures[f'checkpointing, times {what}'] = figures[f'checkpointing, {what}'] / figures[f'plain, {what}']
    return figures.finish()


def measure(mode, options):
    """The figures of one mode, in a process of its own."""
    device = torch.device(options.device)
    torch.manual_seed(0)
    head = models.build('vlbert', 'refcoco', VLBertConfig(pixels=True, **SMALL if options.small else {})).to(device).train()
    flags = Options(device=device.type, **MODES[mode])
    flags.complete(head.recipe)
    accelerate(head, flags)
    memory, seconds = activations(head, to_device(make_batch(head.encoder, options, 0), device), device), []
    optimizer_step = OptimizerStep(head, flags, STEPS, device)
    for turn in range(options.runs + 1):
        batch = to_device(make_batch(head.encoder, options, turn), device)
        seconds.append(timed(partial(train_step, head, optimizer_step, [batch], flags, Progress(0, turn, STEPS), device), device))
    trained = sum(p.numel() for p in head.parameters() if p.requires_grad)
    return {f'{mode}, trained parameters': trained, f'{mode}, s a step': statistics.median(seconds[1:]),
            f'{mode}, s of the slowest step': max(seconds[1:]), f'{mode}, peak memory, MB': peak(device) / 1e6,
            f'{mode}, peak memory beside weights and gradients, MB': memory / 1e6}


def peak(device):
    """Peak memory in bytes of this process."""
    return torch.cuda.max_memory_allocated() if device.type == 'cuda' else report.peak_resident()


def activations(head, batch, device):
    """Bytes that the forward and backward pass of a process that has done nothing else need beside weights and gradients."""
    for p in head.parameters():
        p.grad = torch.full_like(p, 0.5) if p.requires_grad else None  # of memory that is in use
    before = peak(device)
    sum(head.losses(batch, head.counts([batch])).values()).backward()
    return peak(device) - before


def make_batch(encoder, options, turn):
    """A batch as the dataset makes it, with random boxes and words."""
    g, transform, b, o = torch.Generator().manual_seed(turn), encoder.transform(True), options.batchSize, options.regions + 1
    pictures = list(images(options.images, (turn + 1) * b))[-b:]
    sizes = [transform.plan(*picture.shape[:2])[1] for picture in pictures]
    pixels = torch.zeros(b, 3, *(max(sides) for sides in zip(*sizes, strict=True)), dtype=torch.uint8)
    for i, (picture, (height, width)) in enumerate(zip(pictures, sizes, strict=True)):
        resized = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
        resized = torch.nn.functional.interpolate(resized, (height, width), mode='bilinear', antialias=True)
        pixels[i, :, :height, :width] = resized[0].round().byte()
    boxes = torch.rand(b, o, 4, generator=g) / 2
    boxes[..., 2:] += 0.5
    boxes[:, 0] = torch.tensor([0, 0, 1, 1])
    ids = torch.randint(1, encoder.config.vocab_size, (b, WORDS), generator=g)
    batch = transform.normalize({'pixels': pixels, 'pixel_size': torch.tensor(sizes)})
    return batch | {'examples': b, 'input_ids': ids, 'token_type_ids': torch.zeros_like(ids), 'boxes': boxes,
                    'image_size': torch.tensor([picture.shape[:2] for picture in pictures]),
                    'region_target': (torch.rand(b, o, generator=g) < 0.1).float()}


if __name__ == '__main__':
    sys.exit(main())
