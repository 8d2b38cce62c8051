"""Layers that BERT-like models share, under BERT's parameter names (Devlin et al., 2019).

Shapes: b batch, t tokens, n queries, m keys, h heads, d hidden size; r, s: tokens of all sequences of a batch, one after
the other without padding (see PackedSequences). A token is a word piece or an image region.
BERT's conventions: layer norm after each residual, eps 1e-12, exact (erf) GELU.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

MASKED_SCORE = -10000.0  # added to scores of padding, as in BERT; its exponential is exactly 0 beside any real score

# Device types on which each of these is faster. They do not change results (experience_in_pretraining.md, "Speed").
PACK_SEQUENCES = {'cpu'}  # skip padding; on a GPU finding it costs more than it saves
FUSED_QKV = {'cuda'}  # one matrix product for query, key and value
FAST_DROPOUT = {'cpu'}  # 16 random bits per element: drawing them takes most of the time of dropout
EAGER_ATTENTION = {'cpu'}  # in training: the backward pass of fused attention is up to 18 times slower there in bfloat16


def layer_norm(size):
    return nn.LayerNorm(size, eps=1e-12)


def initialise(config):
    """A function for `Module.apply` that draws a module's initial weights as BERT does."""

    def draw(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    return draw


def dropout(x, rate):
    """F.dropout. With FAST_DROPOUT one 64-bit draw serves four elements: the rate is rounded to 2^-16, the scale is exact."""
    if x.device.type not in FAST_DROPOUT or rate == 0 or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2 ** 63), None).view(torch.int16)
    dropped = min(round(rate * 2 ** 16), 2 ** 16 - 1)
    keep = bits[:x.numel()].view(x.shape) >= dropped - 2 ** 15
    return x * keep.to(x.dtype).mul_(1 / (1 - dropped / 2 ** 16))


class Dropout(nn.Dropout):
    def forward(self, x):
        return dropout(x, self.p) if self.training else x


class PackedSequences:
    """Where the padding is in b sequences of length t.

    Layers work on packed states (r, d), which have no padding on devices in PACK_SEQUENCES (elsewhere r = b * t). Attention,
    where tokens meet, pads them to (b, t, d).
    """

    def __init__(self, mask, b, t, device):
        """mask (b, t): 1 for tokens, 0 for padding; None: no padding."""
        self.shape, self.mask, self.scores_mask, self.rows = (b, t), mask, None, None
        if mask is not None:
            self.scores_mask = ((1.0 - mask.float()) * MASKED_SCORE)[:, None, None, :]  # added to scores (b, h, n, t)
            # A sequence of padding alone stays padded: attention to it is then the same on all devices.
            if device.type in PACK_SEQUENCES and not torch.compiler.is_compiling() and not mask.all() and mask.any(1).all():
                self.rows = mask.flatten().nonzero()[:, 0]  # (r,), indices into (b * t)

    def pack(self, padded):
        """(b, t, ...) -> (r, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def pad(self, packed):
        """(r, ...) -> (b, t, ...). Padding is 0 if it was skipped, else arbitrary."""
        if self.rows is not None:
            packed = packed.new_zeros(self.shape[0] * self.shape[1], *packed.shape[1:]).index_copy(0, self.rows, packed)
        return packed.unflatten(0, self.shape)

    def pad_with_zeros(self, packed):
        """(r, ...) -> (b, t, ...). Padding is always 0."""
        padded = self.pad(packed)
        return padded if self.mask is None else padded.masked_fill((self.mask == 0)[..., None], 0)

    def select(self, rows):
        """The masks of some sequences (n,), of which one may occur more than once, for states (n, t, d) that stay padded."""
        mask = None if self.mask is None else self.mask[rows]
        selected = PackedSequences(None, len(rows), self.shape[1], rows.device)
        selected.mask, selected.scores_mask = mask, None if mask is None else self.scores_mask[rows]
        return selected

    def repeat(self, packed, times):
        """Repeat each sequence: (states (r * times, d), their PackedSequences)."""
        mask = None if self.mask is None else self.mask.repeat_interleave(times, 0)
        repeated = PackedSequences(mask, self.shape[0] * times, self.shape[1], packed.device)
        return repeated.pack(self.pad(packed).repeat_interleave(times, 0)), repeated


class BertEmbeddings(nn.Module):
    """Sum of word, position and token type embeddings. [PAD] gets no gradient here; as in LXMERT's original code, nor do the
    first position and the first token type, whose padding_idx is `first`; None: they do, as in BERT."""

    def __init__(self, config, first=0):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=first)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size, padding_idx=first)
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, position_ids, token_type_ids):
        """Each (r,) -> (r, d)."""
        embedded = self.word_embeddings(input_ids) + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(embedded + self.token_type_embeddings(token_type_ids)))


class BertAttention(nn.Module):
    """Multi-head attention. context_size: of what it attends to, if it is not hidden_size."""

    def __init__(self, config, context_size=None):
        super().__init__()
        context_size = context_size or config.hidden_size
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(context_size, config.hidden_size)
        self.value = nn.Linear(context_size, config.hidden_size)

    def forward(self, hidden, context, queries, keys, attentions=None, rows=None):
        """
        hidden (r, d), packed as the PackedSequences `queries`, attends to context (s, d), packed as `keys`. Returns (r, d).
        attentions: a list, to which the attention probabilities (b, h, n, m) are appended. rows (b,): the sequence of the context
        that each of hidden attends to, None: its own; keys and values of a sequence are computed once.
        """
        if hidden is context:
            query, key, value = project(hidden, self.query, self.key, self.value)
        else:
            query, (key, value) = self.query(hidden), project(context, self.key, self.value)
        query, key, value = (  # each (b, h, n or m, d/h)
            sequences.pad(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for states, sequences in ((query, queries), (key, keys), (value, keys))
        )
        if rows is not None:
            key, value, keys = key[rows], value[rows], keys.select(rows)
        mask = None if keys.scores_mask is None else keys.scores_mask.to(query.dtype)  # the dtype that autocast chose
        rate = self.dropout if self.training else 0.0
        if attentions is None and (query.device.type not in EAGER_ATTENTION or not query.requires_grad):
            output = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=rate)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (b, h, n, m)
            probabilities = (scores if mask is None else scores + mask).softmax(-1)
            if attentions is not None:
                probabilities = record_attention(probabilities, queries, keys, attentions)
            output = dropout(probabilities, rate) @ value
        return queries.pack(output.transpose(1, 2).flatten(2))  # (b, h, n, d/h) -> (r, d)


def project(hidden, *layers):
    """hidden (r, d) through each of several linear layers."""
    if hidden.device.type not in FUSED_QKV:
        return [layer(hidden) for layer in layers]
    weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ('weight', 'bias'))
    return F.linear(hidden, weight, bias).chunk(len(layers), -1)


def record_attention(probabilities, queries, keys, attentions):
    """Append attention probabilities (b, h, n, m), 0 at padding, to `attentions`. Returns the same probabilities, padding
    included, computed from the appended tensor, so that results have a gradient with respect to it."""
    padding = torch.zeros(1, dtype=torch.bool, device=probabilities.device)  # finally (b or 1, 1, n or 1, m or 1)
    if queries.mask is not None:
        padding = padding | (queries.mask == 0)[:, None, :, None]
    if keys.mask is not None:
        padding = padding | (keys.mask == 0)[:, None, None, :]
    attentions.append(probabilities.masked_fill(padding, 0))
    return attentions[-1] + probabilities.masked_fill(~padding, 0)  # words do attend to an image that has no region


class BertOutput(nn.Module):
    """End of a block: projection, dropout, residual, layer norm."""

    def __init__(self, config, size):
        super().__init__()
        self.dense = nn.Linear(size, config.hidden_size)
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden, residual):
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class BertIntermediate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden):
        return F.gelu(self.dense(hidden))


class BertSelfattLayer(nn.Module):
    def __init__(self, config, context_size=None):
        super().__init__()
        self.self = BertAttention(config, context_size)
        self.output = BertOutput(config, config.hidden_size)

    def forward(self, hidden, sequences, attentions=None):
        return self.output(self.self(hidden, hidden, sequences, sequences, attentions), hidden)

    def forward_queries(self, hidden, queries, context, keys, attentions=None, rows=None):
        """Attention of some tokens, hidden (q, d), packed as `queries`, to context (s, d), packed as `keys`: a subset of the
        tokens to all of them, or words to an image."""
        return self.output(self.self(hidden, context, queries, keys, attentions, rows), hidden)


class BertCrossattLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.att = BertAttention(config)
        self.output = BertOutput(config, config.hidden_size)

    def forward(self, hidden, context, queries, keys, attentions=None):
        return self.output(self.att(hidden, context, queries, keys, attentions), hidden)


class BertLayer(nn.Module):
    """One layer of BERT: self-attention, then feed-forward."""

    def __init__(self, config):
        super().__init__()
        self.attention = BertSelfattLayer(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, config.intermediate_size)

    def forward(self, hidden, sequences, attentions=None):
        hidden = self.attention(hidden, sequences, attentions)
        return self.output(self.intermediate(hidden), hidden)


class BertFusionLayer(BertLayer):
    """A layer that also attends to a context of another encoder, as in BERT's decoder: after the self-attention, with a residual
    and a layer norm of its own."""

    def __init__(self, config, context_size):
        super().__init__(config)
        self.crossattention = BertSelfattLayer(config, context_size)

    def forward(self, hidden, sequences, context, keys, rows=None, attentions=None):
        """hidden (r, d), packed as `sequences`; context (s, context_size), packed as `keys`; rows: as of BertAttention."""
        hidden = self.attention(hidden, sequences, attentions)
        hidden = self.crossattention.forward_queries(hidden, sequences, context, keys, attentions, rows)
        return self.output(self.intermediate(hidden), hidden)


class LayerStack(nn.Module):
    """Base class of encoders. With `gradient_checkpointing` (bert.speed sets it) the backward pass recomputes what is inside a
    layer instead of keeping it."""

    gradient_checkpointing = False

    def run(self, layer, *inputs, attentions=None):
        if attentions is not None:  # recomputing would record them twice
            return layer(*inputs, attentions)
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)


class BertLayers(LayerStack):
    """BERT's layers, num_hidden_layers of them."""

    def __init__(self, config):
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, hidden, sequences, pad, places=None, one_each=False, hidden_states=False, return_attention=False):
        """
        hidden (r, d), packed as the PackedSequences; pad: a function (r, d) -> (n, s, d). places (p,): rows of `hidden` whose
        last states are needed; None: all; one_each: they are one of each sequence, in order.

        Returns the last states (p, d), or without places (n, s, d), then with hidden_states also [(n, s, d) before the first and
        after each layer], with return_attention also [(n, heads, s, s) of each layer].
        """
        layers, attentions = [hidden], [] if return_attention else None
        for layer in self.layer if places is None else self.layer[:-1]:
            hidden = self.run(layer, hidden, sequences, attentions=attentions)
            if hidden_states:
                layers.append(hidden)
        if places is None:
            result = [pad(hidden), *([list(map(pad, layers))] if hidden_states else ()),
                      *([attentions] if return_attention else ())]
            return result if len(result) > 1 else result[0]
        if not len(self.layer):
            return hidden[places]
        return self.run(self.one_each if one_each else self.selected, self.layer[-1], hidden, sequences, places)

    @staticmethod
    def one_each(layer, hidden, sequences, places):
        """The last layer's states of one place of each sequence."""
        queries = PackedSequences(None, len(places), 1, hidden.device)
        states = layer.attention.forward_queries(hidden[places], queries, hidden, sequences)
        return layer.output(layer.intermediate(states), states)

    @staticmethod
    def selected(layer, hidden, sequences, places):
        """The last layer's states at the given places."""
        states = layer.attention(hidden, sequences)[places]
        return layer.output(layer.intermediate(states), states)


class BertPooler(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden):
        """(b, t, d) -> (b, d), from the state of [CLS]."""
        return torch.tanh(self.dense(hidden[:, 0]))


class BertPredictionHeadTransform(nn.Module):
    def __init__(self, config, size=None):
        super().__init__()
        size = size or config.hidden_size
        self.dense = nn.Linear(size, size)
        self.LayerNorm = layer_norm(size)

    def forward(self, hidden):
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class BertLMPredictionHead(nn.Module):
    """Vocabulary logits; the decoder's weight is the word embeddings'."""

    def __init__(self, config, word_embeddings):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.decoder.weight = word_embeddings  # tied
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden):
        return self.decoder(self.transform(hidden)) + self.bias


class BertPreTrainingHeads(nn.Module):
    """Masked words, and two logits of the pooled vector: of sentences or of sentence and image that belong together."""

    def __init__(self, config, word_embeddings):
        super().__init__()
        self.predictions = BertLMPredictionHead(config, word_embeddings)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)
