"""The text encoder, whose upper layers attend to image tokens, and the decoder of answers, under BERT's parameter names.

Shapes: n texts, t tokens, r tokens of all texts without padding (bert.layers.PackedSequences), m images, v image tokens, d hidden
size, w width of image tokens.
"""

from typing import NamedTuple

import torch
from torch import nn

from bert.layers import (
    MASKED_SCORE,
    BertEmbeddings,
    BertFusionLayer,
    BertLayer,
    BertLMPredictionHead,
    LayerStack,
    PackedSequences,
    initialise,
)


class Context(NamedTuple):
    """What texts attend to."""

    states: torch.Tensor  # (m, v, w)
    mask: torch.Tensor | None = None  # (m, v); None: no padding
    rows: torch.Tensor | None = None  # (n,): which of m each text attends to; None: its own


class Embeddings(BertEmbeddings):
    def __init__(self, config):
        super().__init__(config, first=None)
        self.register_buffer('position_ids', torch.arange(config.max_position_embeddings)[None])


class CausalSequences(PackedSequences):
    """Sequences whose tokens attend to those before them only."""

    def __init__(self, mask, b, t, device):
        super().__init__(mask, b, t, device)
        visible = mask.float()[:, None, :] * torch.ones(t, t, device=device).tril()  # (b, t, t)
        self.scores_mask = ((1.0 - visible) * MASKED_SCORE)[:, None]


class Layers(LayerStack):
    """BERT layers; those from config.fusion_layer on attend to image tokens. With two images of a text (NLVR2) these take turns,
    and each two layers have one key and one value projection of image tokens."""

    def __init__(self, config, images, width):
        super().__init__()
        self.fusion_layer = config.fusion_layer
        self.layer = nn.ModuleList(BertLayer(config) if i < config.fusion_layer else BertFusionLayer(config, width)
                                   for i in range(config.num_hidden_layers))
        for first in range(config.fusion_layer, config.num_hidden_layers, images) if images > 1 else ():
            source = self.layer[first].crossattention.self
            for layer in self.layer[first + 1:first + images]:
                attention = layer.crossattention.self
                for name in ('key', 'value'):
                    projection, shared = getattr(attention, name), getattr(source, name)
                    projection.weight, projection.bias = shared.weight, shared.bias


class TextEncoder(nn.Module):
    """BERT without a pooler. images: of a text; width: of the states that it attends to."""

    def __init__(self, config, images=1, width=None):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config, images, width or config.encoder_width)
        self.apply(initialise(config))

    def embed(self, input_ids, sequences):
        """input_ids (n, t) -> (r, d)."""
        n, t = input_ids.shape
        ids, positions = (sequences.pack(rows) for rows in (input_ids, self.embeddings.position_ids[:, :t].expand(n, t)))
        return self.embeddings(ids, positions, torch.zeros_like(ids))

    def layers(self, hidden, sequences, start, end, contexts=(), attentions=None):
        """Layers start to end - 1. hidden (r, d), packed as `sequences`; contexts: a Context for each image of a text;
        attentions: a list, to which (layer, 'words' or 'visual', image, probabilities) are appended."""
        packed = []
        for states, mask, rows in contexts:
            keys = PackedSequences(mask, *states.shape[:2], states.device)
            packed.append((keys.pack(states), keys, rows))
        for number in range(start, end):
            recorded, image = None if attentions is None else [], (number - self.encoder.fusion_layer) % max(len(packed), 1)
            inputs = packed[image] if number >= self.encoder.fusion_layer else ()
            hidden = self.encoder.run(self.encoder.layer[number], hidden, sequences, *inputs, attentions=recorded)
            for kind, probabilities in zip(('words', 'visual'), recorded or (), strict=False):
                attentions.append((number, kind, image, probabilities))
        return hidden

    def words(self, input_ids, mask, attentions=None):
        """The layers that read text alone. input_ids, mask (n, t) -> (states (r, d), the PackedSequences that they are packed
        as)."""
        sequences = PackedSequences(mask, *input_ids.shape, input_ids.device)
        hidden = self.embed(input_ids, sequences)
        return self.layers(hidden, sequences, 0, self.encoder.fusion_layer, (), attentions), sequences

    def fuse(self, hidden, sequences, contexts, attentions=None):
        """The layers that attend to images, see `layers`: (r, d) -> (r, d)."""
        return self.layers(hidden, sequences, self.encoder.fusion_layer, len(self.encoder.layer), contexts, attentions)

    def forward(self, input_ids, mask, contexts, attentions=None):
        """All layers: (n, t) -> (states (n, t, d), arbitrary at padding)."""
        hidden, sequences = self.words(input_ids, mask, attentions)
        return sequences.pad(self.fuse(hidden, sequences, contexts, attentions))


class PredictionHead(BertLMPredictionHead):
    """The bias has two names, as in Hugging Face's BERT."""

    def __init__(self, config, word_embeddings):
        super().__init__(config, word_embeddings)
        self.transform.apply(initialise(config))
        self.decoder.bias = self.bias

    def forward(self, hidden):
        return self.decoder(self.transform(hidden))


class WordHead(nn.Module):
    def __init__(self, config, word_embeddings):
        super().__init__()
        self.predictions = PredictionHead(config, word_embeddings)


class MaskedWordEncoder(nn.Module):
    """The text encoder with a head of word pieces."""

    def __init__(self, config):
        super().__init__()
        self.bert = TextEncoder(config)
        self.cls = WordHead(config, self.bert.embeddings.word_embeddings.weight)


class Decoder(nn.Module):
    """Writes answers: causal layers that all attend to the states of a question (size config.hidden_size)."""

    def __init__(self, config):
        super().__init__()
        self.bert = TextEncoder(config, width=config.hidden_size)
        self.cls = WordHead(config, self.bert.embeddings.word_embeddings.weight)

    def forward(self, input_ids, question):
        """input_ids (n, t), 0 at padding; question: the Context of its states -> logits of the next piece (n, t, vocabulary)."""
        sequences = CausalSequences(input_ids != 0, *input_ids.shape, input_ids.device)
        hidden = self.bert.fuse(self.bert.embed(input_ids, sequences), sequences, [question])
        return self.cls.predictions(sequences.pad(hidden)).float()
