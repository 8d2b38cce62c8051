"""The contract between models, tasks and the training loop, and the heads that serve any encoder.

A model defines an Encoder and a Recipe for each task. A Head is an encoder with one kind of output ('answer', 'choice', 'region',
'match'); train.py and the tasks use only the Head. The keys of a batch: annotations/dataset.py.

Shapes: b examples, each with c texts and k images; n = b * c texts, m = b * k images; an entry is a text with its images, e = n;
t tokens, o regions, v visual states of an image (regions or patches), d hidden size, p pooled size.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from bert.layers import BertPreTrainingHeads, initialise
from bert.weights import WeightsError, fill

# Keys of a batch with tensors (n, ...), and with tensors (m, ...).
TEXT_KEYS = ('input_ids', 'token_type_ids', 'slot', 'word_regions')
IMAGE_KEYS = ('features', 'boxes', 'visual_attention_mask', 'image_size', 'mirrored', 'pixels', 'pixel_size', 'masks',
              'image_states')


@dataclass(frozen=True)
class Recipe:
    """Output, loss and optimization of a (model, task) pair. Command-line flags override it."""

    output: str  # 'answer', 'choice', 'region', 'match' or 'pretrain'
    images: int = 1  # k, images per example
    # For output 'answer': BCE: binary cross entropy with soft scores; CE: cross entropy with the best answer. For output
    # 'choice': BCE: mean binary cross entropy over all choices; CE: cross entropy with the right one.
    loss: str = 'BCE'
    loss_factor: float | None = None  # multiplies CE; None: the number of answers, as in LXMERT's code
    optim: str = 'bert'  # as --optim
    lr: float | None = 5e-5
    min_lr: float = 0.0  # of the schedule epochs, in which it starts from warmup_lr
    warmup_lr: float = 1e-5
    lr_per_example: float | None = None  # if given, the learning rate is this times the examples of a step, and lr is not used
    examples_per_item: int = 1  # examples of a step for each of --batchSize, for lr_per_example
    batch_size: int = 32
    epochs: int = 4
    schedule: str = 'warmup_linear'  # of bert.optimization.SCHEDULES, or as --schedule
    # Below 1: a share of all steps; an int: steps, but a tenth of all steps at most, for short runs (not of the schedule epochs).
    warmup: float = 0.1
    warmup_from: float = 0.0  # share of the learning rate that the warm-up of the schedules step and plateau begins with
    milestones: tuple = ()  # of the schedule step: epochs after which the rate is divided by 10; none: after 70 and 90 % of all
    clip: float = 5.0  # maximum gradient norm
    weight_decay: float | None = None  # None: the optimizer's default
    momentum: float = 0.9  # for --optim momentum
    text_length: int | None = None  # tokens of a text of the published data; None: that of the dataset
    candidates: int = 4  # for output 'match': wrong images that a text is scored with in training, to find hard ones
    # What is mirrored in half of the training examples: 'images', or 'words': also left and right in texts and answers.
    mirror: str = ''

    def max_length(self, config, default):
        """Tokens of a text of the published data, of which the dataset gives `default`."""
        return min(self.text_length, config.max_text_length()) if self.text_length else default

    def rate(self, batch_size):
        """The learning rate with so many examples in a step."""
        return self.lr if self.lr_per_example is None else self.lr_per_example * self.examples_per_item * batch_size


def find_recipe(recipes, model, task, options=None):
    """The Recipe of a task in a model's {task: Recipe}. Raises ValueError for a task without one."""
    if task not in recipes:
        raise ValueError(f'--model {model}: has no recipe for the task {task}; there are: {", ".join(recipes)}')
    return replace(recipes[task], loss='CE') if options and options.mceLoss else recipes[task]


@dataclass(frozen=True)
class Start:
    """The initial weights of a run."""

    kind: str  # 'scratch', 'bert', 'encoder', 'answers' (encoder and the answer head's rows given by `rows`) or 'all'
    path: Path | None = None  # file of weights
    rows: list | None = None  # for each answer of the run, its row in the file's answer head, or -1
    known: int = 0  # number of answers of the file's answer head
    absent: float = 0.0  # bias of answers whose row is -1
    bert: Path | None = None  # of kind 'encoder': BERT's weights, for what the file lacks
    resnet: Path | None = None  # weights of the ResNet of a model that reads pixels


@dataclass(frozen=True)
class Attention:
    """Attention probabilities of one layer. queries, keys: 'words', 'visual' or, in a single-stream model, 'all': the words, then
    the regions (the whole image first, where the encoder needs it), then further tokens if the model has any."""

    layer: str
    queries: str
    keys: str
    probabilities: torch.Tensor  # (e or b, heads, queries, keys), 0 at padding

    def detached(self):
        return replace(self, probabilities=self.probabilities.detach())


@dataclass
class States:
    """The output of an encoder."""

    pooled: torch.Tensor  # (e, p): one vector per entry, computed from the text and its k images
    words: torch.Tensor | None = None  # (n, t, d)
    visual: torch.Tensor | None = None  # (m, v, d)
    losses: dict = field(default_factory=dict)  # additional losses of the encoder, summed over the batch
    attentions: list = field(default_factory=list)  # Attention of each layer in order, with record_attention


class Encoder(nn.Module):
    """The interface between an encoder and the heads. What raises NotImplementedError is for subclasses; region_classifier only
    for models with a recipe of output 'region'."""

    # Inputs of a batch: some of 'regions' (features), 'boxes', 'whole', 'pixels', 'word_regions'. Datasets read no features
    # without 'regions', no regions at all without 'regions' and 'boxes', and no images without 'pixels'.
    needs: frozenset = frozenset()
    one_orientation: bool = False  # whether the images of a training step are all upright, or none is
    images: int = 1  # that it can only read together with a text, in one pass
    blank: bool = True  # whether questions are written with the place of an answer; load_encoder and load_pretrained set it
    mirror: str = ''  # Recipe.mirror
    returns_visual: bool = False  # whether `forward` returns States.visual; a head that reads them sets it
    config: object
    tokenizer: object | None = None

    def write(self, texts, max_length, blank=False):
        """Tokenizes N texts; the dataset keeps the arrays and indexes them for each batch.

        texts: list of tuples of one or two strings; blank: whether to add the place of an answer. Returns {name: numpy array}:
        input_ids (N, max_length), 0 at padding, and optionally token_type_ids of the same shape, slot (N,), and counts (N, 4) as
        from BertTokenizer.encode_counted, which are no part of a batch.
        """
        raise NotImplementedError

    def transform(self, training):
        """The transform of images.transforms by which pictures become `pixels`, in training or evaluation; None without 'pixels'
        in `needs`."""
        return None

    def forward(self, batch, record_attention=False) -> States:
        """The pooled vector must be computed from the state of the token batch['slot'] (n,), of batches without it from that of
        the first token: explain.relevance starts there."""
        raise NotImplementedError

    def hidden_states(self, batch):
        """(pooled vectors (e, p), {layer: word states}, {layer: region states}), 0 at padding, under the `layer_names` of the
        model, for run/encode.bash. Raises ValueError for an encoder without."""
        raise ValueError(f'{type(self).__name__} has no hidden_states, only pooled vectors; give --states pooled')

    def encode_images(self, batch) -> dict:
        """The batch with what the encoder computes from each image alone, such as `image_states` in place of pixels. `forward`
        computes it if it is not done; heads that use an image with several texts call this first."""
        return batch

    def pooled_size(self, images) -> int:
        """The size p of the pooled vector of a text and that many images."""
        raise NotImplementedError

    def classifier(self, answers, images) -> nn.Module:
        """Layers from pooled vectors (e, p) to scores (e, answers)."""
        raise NotImplementedError

    def match_classifier(self, images) -> nn.Module:
        """Layers from pooled vectors (e, p) to the scores (e, 2) that text and images do not, or do, belong together."""
        return self.classifier(2, images)

    def choice_classifier(self, images) -> nn.Module:
        """Layers from pooled vectors (e, p) to the score of a choice (e, 1)."""
        return self.classifier(1, images)

    def class_classifier(self) -> nn.Module | None:
        """Layers from region states (..., d) to logits of the classes of regions, for the additional loss of output 'choice';
        None for an encoder without this loss."""
        return None

    def region_classifier(self) -> nn.Module:
        """Layers from region states (m, v, d) to scores (m, v, 1)."""
        raise NotImplementedError

    @staticmethod
    def region_overlaps(boxes, targets, image_size):
        """Intersection over union of regions with a target box, for the labels of training. boxes (m, o, 4), targets (m, 4),
        scaled to 0..1; image_size (m, 2): height and width in pixels -> (m, o)."""
        return overlaps(boxes, targets, 1 / image_size.flip(1))

    def parts(self) -> list:
        """Lists of modules from the input up, which together hold all parameters: the embeddings, a list for each layer, and last
        what follows the layers (may be empty)."""
        raise NotImplementedError

    def original_name(self, name) -> str:
        """The name of a head's parameter in the model's original code."""
        return name


def images_of_entries(batch):
    """{key: (e * k, ...)}: the image tensors of a batch, repeated for each of the c texts of an example."""
    tensors, n = {key: batch[key] for key in IMAGE_KEYS if key in batch}, len(batch['input_ids'])
    if 'pictures' in batch or n == (b := batch['examples']):  # pre-training names the image of each text
        return tensors
    return {key: tensor.unflatten(0, (b, -1)).repeat_interleave(n // b, 0).flatten(0, 1) for key, tensor in tensors.items()}


def layer_names(config):
    """The names of the layers whose states SingleStream.hidden_states returns: (of words, of regions)."""
    names = ['embeddings', *(f'layer{i}' for i in range(1, config.num_hidden_layers + 1))]
    return names, names


class SingleStream(Encoder):
    """An encoder of sequences of a text, the regions of an image and `further` tokens: t + o + further places. The pooled vector
    is made of the state of the token batch['slot'], of batches without it of the first one. Each of k images is encoded with the
    text, n * k sequences, and their vectors are joined. Subclasses define `states`."""

    further = 0

    def states(self, batch, places=None, one_each=False, hidden_states=False, return_attention=False):
        """The states (n * k, s, d) of a batch, 0 at padding, or with places (p,), indices into (n * k * s), those (p, d);
        one_each: they are one of each sequence, in order. With hidden_states also [(n * k, s, d) of the embeddings and of each
        layer], with return_attention also [(n * k, heads, s, s) of each layer], 0 at padding."""
        raise NotImplementedError

    def pooled(self, batch, states):
        """The pooled vectors (n * k, d) from the states of the tokens at `slots`."""
        return states

    def slots(self, batch):
        """The place of the pooled token in each of n * k sequences, (n * k,)."""
        n = len(batch['input_ids'])
        k = 1 if 'pictures' in batch else len(batch['boxes']) // batch['examples']
        return batch['slot'].repeat_interleave(k) if 'slot' in batch else batch['input_ids'].new_zeros(n * k)

    def forward(self, batch, record_attention=False):
        (n, t), o, slots = batch['input_ids'].shape, batch['boxes'].shape[1], self.slots(batch)
        rows, recorded, visual = torch.arange(len(slots), device=slots.device), [], None
        if record_attention or self.returns_visual:
            states = self.states(batch, return_attention=record_attention)
            states, recorded = states if record_attention else (states, [])
            states, visual = states[rows, slots], states[:, t:t + o]
        else:
            states = self.states(batch, rows * (t + o + self.further) + slots, one_each=True)  # (n * k, d)
        return States(self.pooled(batch, states).view(n, -1), visual=visual, attentions=[
            Attention(f'layer{i}', 'all', 'all', probabilities) for i, probabilities in enumerate(recorded, 1)])

    def hidden_states(self, batch):
        """(pooled (m, d), {layer: word states}, {layer: region states}), 0 at padding."""
        t, o, slots = batch['input_ids'].shape[1], batch['boxes'].shape[1], self.slots(batch)
        states, layers = self.states(batch, hidden_states=True)
        named = dict(zip(layer_names(self.config)[0], layers, strict=True))
        pooled = self.pooled(batch, states[torch.arange(len(slots), device=slots.device), slots])
        return pooled, *({name: states[:, part] for name, states in named.items()} for part in (slice(t), slice(t, t + o)))

    def pooled_size(self, images):
        return images * self.config.hidden_size


class Head(nn.Module):
    """An encoder with one kind of output. A loss is a sum over the micro-batch divided by a count over the whole optimizer step,
    so that it does not depend on the number of processes and micro-batches."""

    gradients_in_evaluation = False  # whether `predict` needs autograd, for example for Grad-CAM
    steps_per_epoch: int | None = None  # of the run; the training loop sets it
    map_layer: str | None = None  # of a head with `word_maps`: the layer whose maps explain a prediction

    def __init__(self, encoder, recipe):
        super().__init__()
        self.encoder, self.recipe = encoder, recipe
        self.evaluated = []  # modules without dropout in training

    def parts(self) -> list:
        """Encoder.parts of its encoder."""
        return self.encoder.parts()

    def freeze(self, choice):
        """Excludes the first parts of the encoder from training. choice: 'embeddings'; a number of layers, as text, with the
        embeddings; or 'all', the whole encoder, which is then computed without dropout. Raises ValueError."""
        parts = self.parts()
        layers = len(parts) - 2
        count = {'embeddings': 1, 'all': len(parts)}.get(choice) or 1 + int(choice)
        if choice not in ('embeddings', 'all') and count > 1 + layers:
            raise ValueError(f'--freeze {choice}: the encoder has {layers} layers; give at most that, or all')
        frozen = [module for part in parts[:count] for module in part]
        for module in frozen:
            module.requires_grad_(False)
        self.evaluated = frozen if choice == 'all' else []

    def train(self, mode=True):
        super().train(mode)
        for module in self.evaluated:
            module.eval()
        return self

    def groups(self, options):
        """The parameter groups for torch.optim. Frozen parameters in them are not trained."""
        return [{'params': list(self.parameters())}]

    def begin_step(self, step, total):
        """Called once per optimizer step, before its first micro-batch and `counts`. step: from 0; total: steps of the run."""

    def counts(self, micro_batches) -> dict:
        """{loss: 0-d float tensor}: the denominator of each loss over the micro-batches of a step, which it is called with once;
        a head may look at the step as a whole here. Without gradients and in evaluation, a batch is a step of its own."""
        raise NotImplementedError

    def forward(self, batch, counts):
        """({loss: sum over the batch / count}, {metric: sum over the batch})."""
        raise NotImplementedError

    def losses(self, batch, counts) -> dict:
        return self(batch, counts)[0]

    def logits(self, batch) -> torch.Tensor:
        """Float32 logits. By output: 'answer' (b, answers), 'choice' (b, c), 'region' (b, o), 'match' (b,)."""
        return self.logits_of(batch, self.encoder(batch))

    def logits_of(self, batch, states) -> torch.Tensor:
        """`logits` from the States of a batch."""
        raise NotImplementedError

    def explain(self, batch, places=None):
        """(logits (b, m), places (b,), [(Attention, gradient or None)]): the gradients of one logit per example with respect to
        the attention probabilities.

        places: (b,) int64, which of the m logits (`logits`; 'match' has one); None: the highest. Raises ValueError if the encoder
        records no attention.
        """
        with torch.enable_grad():
            states = self.encoder(batch, record_attention=True)
            if not states.attentions:
                raise ValueError(f'{type(self.encoder).__name__} records no attention, by which predictions are explained; '
                                 'return States.attentions with record_attention')
            logits = self.logits_of(batch, states)
            logits = logits[:, None] if logits.ndim == 1 else logits
            places = logits.argmax(1) if places is None else places
            explained = logits.gather(1, places[:, None]).sum()  # examples are independent, so one backward pass serves all
            probabilities = [attention.probabilities for attention in states.attentions]
            gradients = torch.autograd.grad(explained, probabilities, allow_unused=True)
        return logits.detach(), places, list(zip(states.attentions, gradients, strict=True))

    def word_maps(self, batch, places=None):
        """(logits (b, m), places (b,), {layer: maps (b, k, t, rows, columns)}) of a model that reads images by patches: how much
        each word uses each patch of k images for one logit per example, from 0 up, 0 at padding. places: as of `explain`."""
        raise NotImplementedError

    def probabilities(self, logits) -> torch.Tensor:
        """Probabilities of the same shape as the logits."""
        return logits.softmax(-1)

    def predict(self, batch, k=1):
        """The k best answers, choices or regions: their indices (b, k) int64 and probabilities (b, k) float32."""
        logits = self.logits(batch)
        best = logits.topk(min(k, logits.shape[1]))  # by logit, since several probabilities may round to 1
        return best.indices, self.probabilities(logits).gather(1, best.indices)

    def match_logits(self, batch) -> torch.Tensor:
        """(b,) float32: the log-odds that text and image belong together, of a head that can tell."""
        raise NotImplementedError

    def word_logits(self, batch, places) -> torch.Tensor:
        """(p, vocabulary) float32: the word pieces at `places` (p,), indices into input_ids (b * t), of a head that can tell."""
        raise NotImplementedError

    def untrained(self, objective, options) -> str:
        """Why the loaded weights cannot compute match_logits (objective 'match') or word_logits ('words'), or ''. options: those
        of the run that wrote them, {} where they are not known."""
        method, what = {'match': ('match_logits', 'matching'), 'words': ('word_logits', 'masked words')}[objective]
        return f'has no head of {what}' if getattr(type(self), method) is getattr(Head, method) else ''

    def extra_state(self) -> dict:
        """Tensors of the run state that snapshots do not contain: momentum weights, queues."""
        return {}

    def load_extra_state(self, state):
        """Loads what extra_state returned."""

    def original_name(self, name) -> str:
        """The name of a parameter of this head in the model's original code."""
        return self.encoder.original_name(name)

    def original_state(self) -> dict:
        """The state dict with the names of the model's original code, as saved in snapshots and run states."""
        return {self.original_name(name): tensor for name, tensor in self.state_dict().items()}

    def load_original(self, state, source='a state dict'):
        """Loads weights by their original names, strictly. Returns a LoadReport. Raises WeightsError."""
        return fill(self, state, source, rename=self.original_name)


class Answers(Head):
    """Classifies the pooled vector into a list of answers."""

    def __init__(self, encoder, recipe, answers):
        super().__init__(encoder, recipe)
        self.answers = answers
        self.classifier = encoder.classifier(answers, recipe.images)

    def logits_of(self, batch, states):
        return self.classifier(states.pooled).float()

    def probabilities(self, logits):
        return logits.sigmoid() if self.recipe.loss == 'BCE' else logits.softmax(1)

    def target(self, batch):
        """Soft scores (b, answers), made from the sparse labels of the batch."""
        target = batch['label_score'].new_zeros(batch['examples'], self.answers)
        target[batch['label_example'], batch['label_answer']] = batch['label_score']
        return target

    def counts(self, micro_batches):
        """The number of examples (BCE), or of examples with a labelled answer (CE)."""
        first = micro_batches[0]['label_score']
        if self.recipe.loss == 'BCE':
            return {'BCE': first.new_full((), sum(batch['examples'] for batch in micro_batches))}
        return {'CE': sum((self.target(batch).amax(1) > 0).sum() for batch in micro_batches).to(first.dtype)}

    def forward(self, batch, counts):
        """The loss, and the metrics 'score' (sum of the soft scores of the predicted answers) and 'examples'.

        BCE: binary cross entropy, summed over answers, mean over examples. CE: cross entropy with the answer of the highest
        score, mean over the examples that have one, times recipe.loss_factor. Both as in LXMERT's code.
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
    """Multiple choice: scores each of the c texts of an example. Where an encoder has layers for it, and the examples have
    classes of regions, these are predicted from the region states of all c texts, as an additional loss."""

    def __init__(self, encoder, recipe):
        super().__init__(encoder, recipe)
        self.classifier = encoder.choice_classifier(recipe.images)
        self.classes = encoder.class_classifier()
        encoder.returns_visual = self.classes is not None

    def train(self, mode=True):
        self.encoder.returns_visual = mode and self.classes is not None
        return super().train(mode)

    def logits_of(self, batch, states):
        return self.classifier(states.pooled).view(batch['examples'], -1).float()  # (e, 1) -> (b, c)

    def counts(self, micro_batches):
        """The number of choices (BCE) or of examples (CE), and of region states with a class."""
        first, size = micro_batches[0]['choice'], sum(batch['examples'] for batch in micro_batches)
        choices = len(micro_batches[0]['input_ids']) // micro_batches[0]['examples']
        size *= choices if self.recipe.loss == 'BCE' else 1
        counts = {self.recipe.loss: first.new_full((), size, dtype=torch.float32)}
        if self.classes is not None and 'region_labels' in micro_batches[0]:
            counts['Classes'] = choices * sum((batch['region_labels'] >= 0).sum() for batch in micro_batches).float()
        return counts

    def forward(self, batch, counts):
        states = self.encoder(batch)
        logits, choice, name = self.logits_of(batch, states), batch['choice'], self.recipe.loss
        if name == 'BCE':
            target = F.one_hot(choice, logits.shape[1]).to(logits.dtype)
            losses = {'BCE': F.binary_cross_entropy_with_logits(logits, target, reduction='sum')}
        else:
            losses = {'CE': F.cross_entropy(logits, choice, reduction='sum')}
        if states.visual is not None and 'region_labels' in batch:
            classes = batch['region_labels'].repeat_interleave(logits.shape[1], 0)  # (b, o) -> (e, o)
            losses['Classes'] = F.cross_entropy(self.classes(states.visual).flatten(0, 1).float(), classes.flatten(),
                                                ignore_index=-1, reduction='sum')
        score = (logits.detach().argmax(1) == choice).sum()
        return ({name: loss / counts[name].clamp(min=1) for name, loss in losses.items()},
                {'score': score, 'examples': len(logits)})


class Regions(Head):
    """Scores each region of the image. Padding gets the logit -inf."""

    def __init__(self, encoder, recipe):
        super().__init__(encoder, recipe)
        encoder.returns_visual = True
        self.classifier = encoder.region_classifier()

    def logits_of(self, batch, states):
        logits = self.classifier(states.visual)[..., 0].float()  # (b, o)
        mask = batch.get('visual_attention_mask')
        return logits if mask is None else logits.masked_fill(mask == 0, -torch.inf)

    def predict(self, batch, k=1):
        """As Head.predict; what an image lacks of k regions has the probability 0."""
        indices, probabilities = super().predict(batch, k)
        lacking = (0, k - indices.shape[1])  # batches differ in their most regions
        # An image without regions has logits of -inf alone, whose softmax is no number.
        return F.pad(indices, lacking, value=2 ** 31 - 1), F.pad(probabilities.nan_to_num(), lacking)

    def counts(self, micro_batches):
        """The number of regions that are not padding."""
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
    """Image-text matching, trained with hard negatives.

    Each text is scored, without gradients, with the next recipe.candidates images of the micro-batch. Of these pairs the
    negatives are one for each text and one for each image, drawn with the softmax of the scores as probabilities, as in ALBEF: at
    first any, later the hardest. Two captions of one image, and images with a caption of the same words, are no negatives. Since
    negatives come from the micro-batch, the loss depends on --accumulate and on the number of processes, unlike other losses.
    """

    def __init__(self, encoder, recipe):
        super().__init__(encoder, recipe)
        self.classifier = encoder.match_classifier(recipe.images)

    def logits_of(self, batch, states):
        scores = self.classifier(states.pooled).float()
        return scores[:, 1] - scores[:, 0]  # (b,)

    def match_logits(self, batch):
        return self.logits(batch)

    def probabilities(self, logits):
        return logits.sigmoid()

    def predict(self, batch, k=1):
        """Whether text and image match, (b, 1) int64, and the probability that they do, (b, 1)."""
        logits = self.logits(batch)[:, None]
        return (logits > 0).long(), self.probabilities(logits)

    def counts(self, micro_batches):
        """The number of positive and negative pairs."""
        candidates = [self.candidates(batch) for batch in micro_batches]
        negatives = sum(which.any(1).sum() + which.any(0).sum() for which in candidates)
        return {'BCE': (negatives + sum(batch['examples'] for batch in micro_batches)).float()}

    def candidates(self, batch):
        """Whether image j is a candidate for the negative of text i, (b, b) bool."""
        image, ids = batch['image_id'], batch['input_ids']
        place = torch.arange(len(image), device=image.device)
        near = (place - place[:, None]) % len(place) <= self.recipe.candidates  # the text's own image is excluded below
        return near & (image[:, None] != image) & (ids[:, None] != ids).any(2)

    @staticmethod
    def pairs(batch, texts, images):
        """A batch of text texts[i] with image images[i] of another one, (p,) int64 each."""
        b = batch['examples']
        of_texts = {key: batch[key][texts] for key in TEXT_KEYS if key in batch}
        of_images = {key: batch[key].unflatten(0, (b, -1))[images].flatten(0, 1) for key in IMAGE_KEYS if key in batch}
        return {'examples': len(texts), **of_texts, **of_images}

    @torch.no_grad()
    def hard(self, batch, candidates):
        """(a hard image for each text, a hard text for each image), (b,) int64 each; any where there is no candidate."""
        b = batch['examples']
        texts = torch.arange(b, device=candidates.device)
        scores = torch.full((b, b), -torch.inf, device=candidates.device)
        for shift in range(1, min(self.recipe.candidates, b - 1) + 1):
            images = (texts + shift) % b
            scores[texts, images] = self.logits(self.pairs(batch, texts, images))
        scores.masked_fill_(~candidates, -torch.inf)
        noise = -torch.empty(2, b, b, device=scores.device).exponential_().log()  # Gumbel's, so that argmax draws by softmax
        return (scores + noise[0]).argmax(1), (scores + noise[1]).argmax(0)

    def forward(self, batch, counts):
        if 'pixels' in batch:
            batch = self.encoder.encode_images(batch)
        candidates = self.candidates(batch)
        pairs, (images, texts) = torch.arange(len(candidates), device=candidates.device), self.hard(batch, candidates)
        positive = self.logits(batch)
        negative = self.logits(self.pairs(batch, torch.cat([pairs, texts]), torch.cat([images, pairs])))  # (2 * b,)
        is_negative = torch.cat([candidates.any(1), candidates.any(0)]).float()
        loss = (F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive), reduction='sum')
                + F.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative), is_negative, reduction='sum'))
        score = (positive.detach() > 0).sum() + ((negative.detach() <= 0) * is_negative).sum()
        return {'BCE': loss / counts['BCE'].clamp(min=1)}, {'score': score, 'examples': len(positive) + is_negative.sum()}


class MaskedWordsAndMatch(Head):
    """Pre-training of a SingleStream by masked words and by whether text and image belong together, with BERT's two heads. Of the
    two logits of a pair the first says, as in BERT, that they do."""

    def __init__(self, encoder, recipe, word_embeddings):
        super().__init__(encoder, recipe)
        self.cls = BertPreTrainingHeads(encoder.config, word_embeddings)
        self.cls.apply(initialise(encoder.config))

    def counts(self, micro_batches):
        """The numbers of predicted words and of pairs, as far as they are predicted."""
        labels = {'Mask_LM': 'masked_lm_labels', 'Matched': 'matched_label'}
        return {loss: sum((batch[name] >= 0).sum() for batch in micro_batches).float()
                for loss, name in labels.items() if name in micro_batches[0]}

    def forward(self, batch, counts):
        """The losses of a batch of annotations.pretraining.SentenceDataset, and no metrics."""
        states, sums = self.encoder.states(batch | {'features': batch['visual_feats']}), {}
        if 'matched_label' in batch:
            logits = self.cls.seq_relationship(self.encoder.pooled(batch, states[:, 0])).float()
            sums['Matched'] = F.cross_entropy(logits, 1 - batch['matched_label'], reduction='sum')
        if 'masked_lm_labels' in batch:
            places = batch['words_at']
            logits = self.predict_words(batch, states, places)
            sums['Mask_LM'] = F.cross_entropy(logits, batch['masked_lm_labels'].flatten()[places], reduction='sum')
        return {name: total / counts[name].clamp(min=1) for name, total in sums.items()}, {}

    def predict_words(self, batch, states, places):
        """word_logits from the states (b, s, d)."""
        return self.cls.predictions(states[:, :batch['input_ids'].shape[1]].flatten(0, 1)[places]).float()

    def logits(self, batch):
        """The pooled vectors (b, d) of a batch of pre-training."""
        return self.encoder(batch | {'features': batch['visual_feats']}).pooled

    def match_logits(self, batch):
        scores = self.cls.seq_relationship(self.encoder(batch).pooled).float()
        return scores[:, 0] - scores[:, 1]

    def word_logits(self, batch, places):
        return self.predict_words(batch, self.encoder.states(batch), places)


def overlaps(boxes, targets, pixel=0):
    """Intersection over union of boxes (b, o, 4) with a target (b, 4) each -> (b, o). pixel: the width and height of a pixel,
    (b, 2) or a number, by which sides are longer than the difference of their ends, as in the original code; 0: they are not."""
    targets = targets[:, None]
    pixel = pixel[:, None] if isinstance(pixel, torch.Tensor) else pixel

    def area(one):  # 0 where a side is negative
        return (one[..., 2:] - one[..., :2] + pixel).clamp(min=0).prod(-1)

    first, last = torch.maximum(boxes[..., :2], targets[..., :2]), torch.minimum(boxes[..., 2:], targets[..., 2:])
    shared = area(torch.cat([first, last], -1))
    return shared / (area(boxes) + area(targets) - shared).clamp(min=torch.finfo(boxes.dtype).tiny)


HEADS = {'choice': Choices, 'region': Regions, 'match': Match}


def head_for(encoder, recipe, answers=None):
    """The Head for recipe.output. answers: the number of answers, for output 'answer'. Raises ValueError for unknown outputs."""
    if recipe.output == 'answer':
        return Answers(encoder, recipe, answers)
    if recipe.output not in HEADS:
        raise ValueError(f'output {recipe.output!r}: expected answer, {", ".join(HEADS)}')
    return HEADS[recipe.output](encoder, recipe)


@torch.no_grad()
def transfer_answers(layers, checkpoint, start, prefix):
    """Starts answer layers from those of a file, as the original code does from the pre-trained ones: the first layers are
    copied, and of the last one the rows of the same answers. Other rows are 0, with the bias start.absent.

    layers: an nn.Sequential, whose last layer scores answers; checkpoint: tensors of such layers; prefix: of their names in the
    file, for messages. Raises WeightsError if there are none, or they do not fit.
    """
    state, last = layers.state_dict(), f'{len(layers) - 1}.'
    for name, tensor in state.items():
        if name not in checkpoint:
            raise WeightsError(f'the file has no {prefix}{name}, the head of answers; use --loadEncoder')
        first = int(name.startswith(last))  # dimension from which sizes must be equal: rows of the last layer are answers
        if checkpoint[name].shape[first:] != tensor.shape[first:]:
            raise WeightsError(f'{prefix}{name}: expected size {tuple(tensor.shape[first:])}, found '
                               f'{tuple(checkpoint[name].shape[first:])}; a head of another model, or of a task about two '
                               'pictures: --loadEncoder takes all but the head')
    if len(checkpoint[f'{last}bias']) != start.known:
        raise WeightsError(f'the answer head has {len(checkpoint[f"{last}bias"])} rows, the answer table {start.known} answers: '
                           'they must belong together')
    rows = torch.tensor(start.rows)
    for name, tensor in state.items():
        if name.startswith(last):
            tensor.fill_(start.absent if name.endswith('bias') else 0.0)
            tensor[rows >= 0] = checkpoint[name][rows[rows >= 0]].to(tensor)
        else:
            tensor.copy_(checkpoint[name])
