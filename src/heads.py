"""The contract between models, tasks and the training loop, and the heads that serve any encoder.

A model brings an Encoder and a Recipe for each task; a Head joins an encoder with one kind of output ('answer', 'choice',
'region', 'match') and is all that train.py and the tasks see. What a batch holds: annotations/dataset.py. Shapes: b examples,
each with c texts and k images; n = b * c texts, m = b * k images; an entry is a text with its images, e = b * c.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bert.weights import fill

IMAGE_KEYS = ('features', 'boxes', 'visual_attention_mask', 'image_size', 'pixels')  # of a batch, (m, ...)


@dataclass(frozen=True)
class Recipe:
    """How a model learns a task: what is predicted, by which loss, and what the optimizer does. Flags win over it."""

    output: str  # 'answer', 'choice', 'region', 'match' or 'pretrain'
    images: int = 1  # k
    loss: str = 'BCE'  # of output 'answer': binary cross entropy with soft scores; 'CE': cross entropy with the best answer
    loss_factor: float | None = None  # of a cross entropy; None: the number of answers, as in LXMERT's code
    schedule: str = 'warmup_linear'
    warmup: float = 0.1  # share of all steps
    clip: float = 5.0  # highest total norm of the gradient


@dataclass(frozen=True)
class Start:
    """The weights that a run starts from."""

    kind: str  # 'scratch'; 'bert'; 'encoder' of a file; 'answers': the encoder and some rows of its answer head; 'all' of it
    path: Path | None = None
    rows: list | None = None  # of each answer its row in the file's answer head, -1: none
    known: int = 0  # how many answers the file's answer head has
    absent: float = 0.0  # the bias of answers without a row


@dataclass(frozen=True)
class Attention:
    """Attention probabilities of one layer, with a gradient. queries, keys: 'words', 'visual' or, of a joint sequence, 'all'."""

    layer: str
    queries: str
    keys: str
    probabilities: torch.Tensor  # (e or b, heads, queries, keys), 0 at padding

    def detached(self):
        return replace(self, probabilities=self.probabilities.detach())


@dataclass
class States:
    """What an encoder returns."""

    pooled: torch.Tensor  # (e, p): one vector an entry, in which the encoder has joined the k images
    words: torch.Tensor | None = None  # (n, t, d)
    visual: torch.Tensor | None = None  # (m, v, d): regions or patches
    losses: dict = field(default_factory=dict)  # the encoder's own, as sums over the batch
    attentions: list = field(default_factory=list)  # of Attention, in the order of computation, where they are asked for


class Encoder(nn.Module):
    """A model's body, as the heads use it."""

    needs: frozenset = frozenset()  # of 'regions', 'boxes', 'whole', 'pixels': what a batch must hold of the images
    config: object
    tokenizer: object | None = None

    def write(self, texts, max_length, blank=False):
        """Token ids of texts, which the dataset keeps as columns.

        texts: list of tuples of one or two strings; blank: whether an answer is to be filled in. Returns numpy arrays by name:
        input_ids (N, max_length), 0 at padding, and optionally token_type_ids of the same shape and slot (N,).
        """
        raise NotImplementedError

    def forward(self, batch, record_attention=False) -> States:
        raise NotImplementedError

    def pooled_size(self, images) -> int:
        """The size p of a pooled vector that joins so many images."""
        raise NotImplementedError

    def classifier(self, answers, images) -> nn.Module:
        """Layers from pooled vectors (e, p) to scores (e, answers)."""
        raise NotImplementedError

    def region_classifier(self) -> nn.Module:
        """Layers from region states (m, v, d) to scores (m, v, 1)."""
        raise NotImplementedError

    def original_name(self, name) -> str:
        """The name that the model's original code has for a parameter of a head with this encoder."""
        return name


def images_of_entries(batch):
    """The image tensors of a batch repeated for each of the c texts of an example: {key: (e * k, ...)}."""
    b, n = batch['examples'], len(batch['input_ids'])
    tensors = {key: batch[key] for key in IMAGE_KEYS if key in batch}
    if n == b:
        return tensors
    return {key: tensor.unflatten(0, (b, -1)).repeat_interleave(n // b, 0).flatten(0, 1) for key, tensor in tensors.items()}


class Head(nn.Module):
    """An encoder and one kind of output. A loss is a sum over the batch divided by a count over the whole optimizer step, so that
    it is the same whatever the number of processes and micro-batches."""

    gradients_in_evaluation = False  # whether `predict` needs autograd, as Grad-CAM does

    def __init__(self, encoder, recipe):
        super().__init__()
        self.encoder, self.recipe = encoder, recipe

    def groups(self, options):
        """Parameter groups of the optimizer, as torch.optim takes them."""
        return [{'params': list(self.parameters())}]

    def begin_step(self, step, total):
        """Called once an optimizer step, before its first micro-batch. step: from 0; total: of the run."""

    def counts(self, micro_batches) -> dict:
        """What each loss is a mean over, in the micro-batches of a step: {loss: 0-d float tensor}."""
        raise NotImplementedError

    def forward(self, batch, counts):
        """({loss: sum over the batch / count}, {metric: what an epoch sums up})."""
        raise NotImplementedError

    def losses(self, batch, counts) -> dict:
        return self(batch, counts)[0]

    def logits(self, batch) -> torch.Tensor:
        """Scores in float32: (b, answers), (b, c), (b, o) or (b,), by output."""
        raise NotImplementedError

    def probabilities(self, logits) -> torch.Tensor:
        """Of the same shape; of places that exclude each other they sum to 1."""
        return logits.softmax(-1)

    def predict(self, batch, k=1):
        """The k best places: (b, k) int64 and their probabilities (b, k) float32."""
        logits = self.logits(batch)
        best = logits.topk(min(k, logits.shape[1]))  # of logits: many probabilities round to 1
        return best.indices, self.probabilities(logits).gather(1, best.indices)

    def extra_state(self) -> dict:
        """Tensors of a run that are no part of a snapshot: momentum weights, queues."""
        return {}

    def load_extra_state(self, state):
        """Takes back what extra_state returned."""

    def original_name(self, name) -> str:
        """The name that the model's original code has for a parameter of this head."""
        return self.encoder.original_name(name)

    def original_state(self) -> dict:
        """The weights under the names of the model's original code: what snapshots and run states hold."""
        return {self.original_name(name): tensor for name, tensor in self.state_dict().items()}

    def load_original(self, state, source='a state dict'):
        """Copies weights by original name, strictly. Returns the LoadReport; raises WeightsError."""
        return fill(self, state, source, rename=self.original_name)


class Answers(Head):
    """One of a list of answers, from the pooled vector of a text and its images."""

    def __init__(self, encoder, recipe, answers):
        super().__init__(encoder, recipe)
        self.answers = answers
        self.classifier = encoder.classifier(answers, recipe.images)

    def logits(self, batch):
        return self.classifier(self.encoder(batch).pooled).float()

    def explain(self, batch, answers=None):
        """(logits (b, answers), the places explained (b,), [(Attention, its gradient or None)]) of one answer of each example.

        answers (b,) int64, None: those with the highest logits. Raises NotImplementedError for an encoder that records none.
        """
        with torch.enable_grad():
            states = self.encoder(batch, record_attention=True)
            logits = self.classifier(states.pooled)
            answers = logits.argmax(1) if answers is None else answers
            explained = logits.gather(1, answers[:, None]).sum()  # examples do not interact, so each keeps its own gradient
            gradients = torch.autograd.grad(explained, [one.probabilities for one in states.attentions], allow_unused=True)
        return logits.detach(), answers, list(zip(states.attentions, gradients, strict=True))

    def probabilities(self, logits):
        return logits.sigmoid() if self.recipe.loss == 'BCE' else logits.softmax(1)

    def target(self, batch):
        """Dense soft scores (b, answers) of the sparse labels."""
        target = batch['label_score'].new_zeros(batch['examples'], self.answers)
        target[batch['label_example'], batch['label_answer']] = batch['label_score']
        return target

    def counts(self, micro_batches):
        """BCE: examples; CE: examples that have an answer."""
        first = micro_batches[0]['label_score']
        if self.recipe.loss == 'BCE':
            return {'BCE': first.new_full((), sum(batch['examples'] for batch in micro_batches))}
        return {'CE': sum((self.target(batch).amax(1) > 0).sum() for batch in micro_batches).to(first.dtype)}

    def forward(self, batch, counts):
        """The loss and {'score': sum of the soft scores of the predicted answers, 'examples': their number}.

        BCE: binary cross entropy, mean over examples and answers, times the number of answers. CE: cross entropy with the answer
        that has the highest score, mean over the examples that have one, times the recipe's factor (as in LXMERT's code).
        """
        logits, target = self.logits(batch), self.target(batch)
        if self.recipe.loss == 'BCE':
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction='sum')
        else:
            best, answer = target.max(1)
            answer = answer.masked_fill(best == 0, -1)
            factor = self.recipe.loss_factor or self.answers
            loss = F.cross_entropy(logits, answer, ignore_index=-1, reduction='sum') * factor
        score = target.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        name = self.recipe.loss
        return {name: loss / counts[name].clamp(min=1)}, {'score': score, 'examples': len(target)}


class Choices(Head):
    """One of the c texts of an example."""

    def __init__(self, encoder, recipe):
        super().__init__(encoder, recipe)
        self.classifier = encoder.classifier(1, recipe.images)

    def logits(self, batch):
        return self.classifier(self.encoder(batch).pooled).view(batch['examples'], -1).float()  # (e, 1) -> (b, c)

    def counts(self, micro_batches):
        first = micro_batches[0]['choice']
        return {'CE': first.new_full((), sum(batch['examples'] for batch in micro_batches), dtype=torch.float32)}

    def forward(self, batch, counts):
        logits = self.logits(batch)
        loss = F.cross_entropy(logits, batch['choice'], reduction='sum')
        score = (logits.detach().argmax(1) == batch['choice']).sum()
        return {'CE': loss / counts['CE'].clamp(min=1)}, {'score': score, 'examples': len(logits)}


class Regions(Head):
    """One region of the image. Padding is never chosen."""

    def __init__(self, encoder, recipe):
        super().__init__(encoder, recipe)
        self.classifier = encoder.region_classifier()

    def logits(self, batch):
        logits = self.classifier(self.encoder(batch).visual)[..., 0].float()  # (b, o)
        mask = batch.get('visual_attention_mask')
        return logits if mask is None else logits.masked_fill(mask == 0, -torch.inf)

    def counts(self, micro_batches):
        """The regions that are not padding."""
        return {'BCE': sum(self.mask(batch).sum() for batch in micro_batches)}

    @staticmethod
    def mask(batch):
        mask = batch.get('visual_attention_mask')
        return torch.ones_like(batch['region_target']) if mask is None else mask.float()

    def forward(self, batch, counts):
        logits, mask, target = self.logits(batch), self.mask(batch), batch['region_target']
        loss = F.binary_cross_entropy_with_logits(logits.masked_fill(mask == 0, 0.0), target, mask, reduction='sum')
        score = target.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        return {'BCE': loss / counts['BCE'].clamp(min=1)}, {'score': score, 'examples': len(logits)}


class Match(Head):
    """Whether a text and an image belong together. The wrong pairs of training are texts with the next image of the
    micro-batch."""

    def __init__(self, encoder, recipe):
        super().__init__(encoder, recipe)
        self.classifier = encoder.classifier(2, recipe.images)

    def logits(self, batch):
        scores = self.classifier(self.encoder(batch).pooled).float()
        return scores[:, 1] - scores[:, 0]  # (b,)

    def probabilities(self, logits):
        return logits.sigmoid()

    def predict(self, batch, k=1):
        """(b, 1): 1 where the pair belongs together, and the probability that it does."""
        logits = self.logits(batch)[:, None]
        return (logits > 0).long(), self.probabilities(logits)

    def counts(self, micro_batches):
        """The pairs that belong together, and the wrong ones, which two captions of one image are not."""
        wrong = sum((batch['image_id'] != batch['image_id'].roll(-1)).sum() for batch in micro_batches)
        return {'BCE': (wrong + sum(batch['examples'] for batch in micro_batches)).float()}

    def forward(self, batch, counts):
        k = len(batch['boxes' if 'boxes' in batch else 'pixels']) // batch['examples']
        other = {key: batch[key].roll(-k, 0) for key in IMAGE_KEYS if key in batch}
        right, wrong = self.logits(batch), self.logits(batch | other)
        is_wrong = (batch['image_id'] != batch['image_id'].roll(-1)).float()
        loss = (F.binary_cross_entropy_with_logits(right, torch.ones_like(right), reduction='sum')
                + F.binary_cross_entropy_with_logits(wrong, torch.zeros_like(wrong), is_wrong, reduction='sum'))
        score = (right.detach() > 0).sum() + ((wrong.detach() <= 0) * is_wrong).sum()
        return {'BCE': loss / counts['BCE'].clamp(min=1)}, {'score': score, 'examples': len(right) + is_wrong.sum()}


HEADS = {'choice': Choices, 'region': Regions, 'match': Match}


def head_for(encoder, recipe, answers=None):
    """The Head of a recipe's output. answers: their number, of output 'answer'. Raises ValueError for an unknown output."""
    if recipe.output == 'answer':
        return Answers(encoder, recipe, answers)
    if recipe.output not in HEADS:
        raise ValueError(f'output {recipe.output!r}: expected answer, {", ".join(HEADS)}')
    return HEADS[recipe.output](encoder, recipe)
