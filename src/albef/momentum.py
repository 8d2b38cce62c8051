"""Momentum models, and what a step knows as a whole: its examples over all micro-batches and processes (ALBEF paper, section 3).

Shapes: b examples of a micro-batch, s examples of the step, g of a group, e features that are compared, q places of the queue.
"""

import copy
from dataclasses import dataclass, field

import numpy as np
import torch

import dist
from heads import Head

NO_DECAY = 1  # dimensions of tensors without weight decay: biases and layer norms
STREAM = 7  # of random draws


@dataclass
class Part:
    """A micro-batch of this process."""

    batch: dict
    first: int  # place of its first example in the step
    twin_tokens: torch.Tensor | None = None  # of its images, by the momentum model
    masked: tuple | None = None  # (input ids, labels) of masked words (b, t)
    used: bool = False  # whether its losses were computed

    @property
    def last(self):
        """The place after its last example."""
        return self.first + len(self.batch['input_ids'])


@dataclass
class Step:
    """The examples of an optimizer step, in the order of the epoch whatever the processes and micro-batches."""

    parts: list  # of this process
    size: int
    bounds: list  # where groups begin, and the size
    aligned: bool  # whether every micro-batch consists of whole groups
    columns: dict = field(default_factory=dict)  # name -> tensor (s, ...)
    left: int = 0  # micro-batches of this process whose losses are still to come
    live: bool = True  # a step of training, not a batch of validation

    @property
    def groups(self):
        """[(start, end)] of each group."""
        return list(zip(self.bounds, self.bounds[1:], strict=False))


def group_bounds(size, group, least):
    """Where groups of consecutive examples begin, and the size. A last group of fewer than `least` joins the one before it."""
    starts = list(range(0, size, group))
    if len(starts) > 1 and size - starts[-1] < least:
        starts.pop()
    return [*starts, size]


def mask_of(batch):
    """The attention mask of a batch's texts (b, t)."""
    mask = batch.get('attention_mask')
    return batch['input_ids'] != 0 if mask is None else mask


def draw_columns(weights, generator=None):
    """Draws a column for each row of weights (n, m), in proportion to them -> (n,) int64: torch.multinomial without checks."""
    return (weights / torch.empty_like(weights).exponential_(generator=generator)).argmax(1)


class MomentumHead(Head):
    """A head whose encoder's `model` has a copy, the momentum model, that follows it with config.momentum before each step and
    whose predictions are part of the targets. The names in the original code are those of the model's modules with _m.

    alpha: the share of these targets. It rises to config.alpha over the first epoch, if `ramp`, and is 0 with
    options.withoutDistillation. A program sets steps_per_epoch; else an epoch is the run divided by the epochs of the options or
    the recipe.

    seed: of the draws of training, which are then a function of it, the step and the place in the step; None: PyTorch's default
    generator, in the original code's order.
    """

    least = 2  # examples of a group

    def __init__(self, encoder, recipe, options=None, ramp=True, group=1):
        """group: examples that are negatives of each other."""
        super().__init__(encoder, recipe)
        config = encoder.config
        self.config, self.ramp, self.group = config, ramp, config.group or group
        self.highest_alpha = self.alpha = 0.0 if options and options.withoutDistillation else config.alpha
        self.epochs, self.seed = (options and options.epochs) or recipe.epochs, options.seed if options else None
        self.twin = copy.deepcopy(encoder.model).requires_grad_(False)
        self.number, self.draws, self.step = 0, None, None
        if 'twin_dropout' in config.repairs:
            self.evaluated = [self.twin]

    def freeze(self, choice):
        super().freeze(choice)
        if 'twin_dropout' in self.config.repairs:
            self.evaluated = [*self.evaluated, self.twin]

    def groups(self, options):
        """As in the original code, biases and layer norms do not decay; all embeddings and the temperature do."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        decay = [p for p in parameters if p.ndim != NO_DECAY]
        exempt = [p for p in parameters if p.ndim == NO_DECAY]
        if 'temperature' in self.config.repairs and hasattr(self, 'temp'):
            decay, exempt = [p for p in decay if p is not self.temp], [*exempt, self.temp]
        return [{'params': decay}, {'params': exempt, 'weight_decay': 0.0}]

    @torch.no_grad()
    def copy_to_twin(self):
        """Starts the momentum model as a copy."""
        for p, target in zip(self.encoder.model.parameters(), self.twin.parameters(), strict=True):
            target.copy_(p)

    @torch.no_grad()
    def begin_step(self, step, total):
        momentum = self.config.momentum
        followed, twins = list(self.encoder.model.parameters()), list(self.twin.parameters())
        torch._foreach_mul_(twins, momentum)
        torch._foreach_add_(twins, followed, alpha=1.0 - momentum)
        epoch = self.steps_per_epoch or max(total // self.epochs, 1)
        self.number, self.alpha = step, self.highest_alpha * (min(1.0, step / epoch) if self.ramp else 1.0)

    def original_name(self, name):
        if name.startswith('twin.'):
            module, _, rest = name.removeprefix('twin.').partition('.')
            return f'{module}_m.{rest}'
        return super().original_name(name)

    def generator(self, device, *key):
        """The generator of the draws that a key of numbers names; None: PyTorch's default one."""
        if self.seed is None:
            return None
        state = np.random.SeedSequence([self.seed, STREAM, *key]).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(state >> 1))

    def choose_negatives(self, weights):
        """Draws a column for each row of weights (g, g) -> (g,) int64. May be replaced."""
        if weights.device.type != 'cpu':  # torch.multinomial waits for the device to check each row
            return draw_columns(weights, self.draws)
        return torch.cat([torch.multinomial(row, 1, generator=self.draws) for row in weights])

    def gradient_maps(self, probabilities, gradient):
        """Grad-CAM: attention probabilities (b, h, queries, v) to the image's [CLS] and patches times their positive gradients,
        the mean over heads: (b, queries, side, side)."""
        maps = (probabilities.detach() * gradient.clamp(min=0)).float().mean(1)[..., 1:]
        side = self.config.image_res // self.config.patch_size
        return maps.unflatten(-1, (side, side))

    @property
    def map_layer(self):
        """In the middle of the layers that attend to images: of the published model the third of six, text8, as in the original
        code. Of k images each has a layer of its own; the first one's gives the name."""
        text = self.config.text
        return f'text{text.fusion_layer + self.encoder.images * ((text.num_hidden_layers - text.fusion_layer - 1) // 2)}'

    def word_maps(self, batch, places=None):
        """As of Head, by Grad-CAM of the cross attention of each layer of the text encoder."""
        logits, places, recorded = self.explain(batch, places)
        maps = [self.gradient_maps(one.probabilities, torch.zeros_like(one.probabilities) if gradient is None else gradient)
                for one, gradient in recorded if (one.queries, one.keys) == ('words', 'visual')]
        first, k = self.config.text.fusion_layer, self.encoder.images
        return logits, places, {f'text{first + i}': torch.stack(maps[i:i + k], 1) for i in range(0, len(maps), k)}

    # ---- the step as a whole

    @torch.no_grad()
    def plan(self, micro_batches):
        """The Step of micro-batches: without gradients and in evaluation each batch is one of its own."""
        sizes, live = [len(batch['input_ids']) for batch in micro_batches], self.training or torch.is_grad_enabled()
        by_rank = dist.gather(sizes) if live else [sizes]
        rank = dist.rank() if live else 0
        starts = np.cumsum([0, *(of_rank[i] for i in range(len(sizes)) for of_rank in by_rank)]).tolist()
        parts = [Part(batch, starts[i * len(by_rank) + rank]) for i, batch in enumerate(micro_batches)]
        bounds = group_bounds(starts[-1], max(self.group, self.least), self.least)
        if live and starts[-1] < self.least:
            raise ValueError(f'a step of {starts[-1]} examples has too few negatives: expected at least {self.least}; give a '
                             'larger --batchSize')
        return Step(parts, starts[-1], bounds, set(starts) <= set(bounds), left=len(parts), live=live)

    @staticmethod
    def in_step_order(step, rows):
        """Tensors (b, ...) of the micro-batches of this process, joined with those of the others: (s, ...)."""
        if not step.live or dist.world_size() == 1:
            return torch.cat(rows)
        sizes = dist.gather([len(part) for part in rows])
        by_rank = [part.split(size) for part, size in zip(dist.gather_rows(torch.cat(rows)), sizes, strict=True)]
        return torch.cat([parts[i] for i in range(len(rows)) for parts in by_rank])

    @staticmethod
    def with_others(step, part, states, wanted, encode):
        """(states, rows (p,)) so that states[rows] are those at places of the step (p,). To the `states` (b, ...) of the
        micro-batch those of others are added, which encode(places) computes."""
        b, wanted = len(states), wanted.to(states.device)
        others = wanted.new_zeros(0) if step.aligned else wanted[(wanted < part.first) | (wanted >= part.first + b)].unique()
        if not len(others):
            return states, wanted - part.first
        row = wanted.new_zeros(step.size)
        row[part.first:part.first + b] = torch.arange(b, device=row.device)
        row[others] = b + torch.arange(len(others), device=row.device)
        return torch.cat([states, encode(others)]), row[wanted]

    def part_of(self, batch):
        """(the Part of a batch, its Step), which is a new one if `counts` did not name the batch."""
        parts = [part for part in self.step.parts if part.batch is batch] if self.step else []
        if not parts:
            self.counts([batch])
            parts = self.step.parts
        part = next((part for part in parts if not part.used), parts[0])
        part.used = True
        return part, self.step
