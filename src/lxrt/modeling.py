"""The LXMERT model (Tan & Bansal, EMNLP 2019), under the parameter names of the original code.

Shapes: b batch, t tokens, o objects (regions), h heads, d hidden size, f feature size; r words and s regions of a batch, packed
without padding (bert.layers.PackedSequences).
"""

import torch
from torch import nn

from bert.layers import (
    BertCrossattLayer,
    BertEmbeddings,
    BertIntermediate,
    BertLayer,
    BertOutput,
    BertPooler,
    BertSelfattLayer,
    Dropout,
    LayerStack,
    PackedSequences,
    initialise,
    layer_norm,
)
from lxrt.config import LxrtConfig

__all__ = ['LXRTFeatureExtraction', 'LXRTModel', 'LxrtConfig', 'answer_layers', 'attention_names', 'layer_names']


def __getattr__(name):
    """lxrt.modeling.LXRTPretraining, where the original code has it; lxrt.pretraining imports this module."""
    if name == 'LXRTPretraining':
        from lxrt.pretraining import LXRTPretraining
        return LXRTPretraining
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


class VisualFeatEncoder(nn.Module):
    """Region embedding (paper, equation 1): mean of the projected feature and the projected box, each normalised."""

    def __init__(self, config):
        super().__init__()
        self.visn_fc = nn.Linear(config.visual_feat_dim, config.hidden_size)
        self.visn_layer_norm = layer_norm(config.hidden_size)
        self.box_fc = nn.Linear(config.visual_pos_dim, config.hidden_size)
        self.box_layer_norm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, features, boxes):
        """features (s, f), boxes (s, 4) -> (s, d)."""
        return self.dropout((self.visn_layer_norm(self.visn_fc(features)) + self.box_layer_norm(self.box_fc(boxes))) / 2)


class LXRTXLayer(nn.Module):
    """One cross-modality layer (paper, section 2.3): cross attention, self-attention and feed-forward on each side."""

    def __init__(self, config):
        super().__init__()
        # One set of weights serves both directions, as in the original code.
        self.visual_attention = BertCrossattLayer(config)
        self.lang_self_att = BertSelfattLayer(config)
        self.visn_self_att = BertSelfattLayer(config)
        self.lang_inter = BertIntermediate(config)
        self.lang_output = BertOutput(config, config.intermediate_size)
        self.visn_inter = BertIntermediate(config)
        self.visn_output = BertOutput(config, config.intermediate_size)

    def forward(self, lang, visn, words, regions, attentions=None):
        """
        lang (r, d) and visn (s, d), packed as the PackedSequences words and regions -> the same.
        attentions: a list, to which the probabilities of the four attentions are appended, in the order of the code below.
        """
        # Both directions start from the layer's inputs, not from each other's result.
        lang, visn = (
            self.visual_attention(lang, visn, words, regions, attentions),
            self.visual_attention(visn, lang, regions, words, attentions),
        )
        lang = self.lang_self_att(lang, words, attentions)
        visn = self.visn_self_att(visn, regions, attentions)
        return self.lang_output(self.lang_inter(lang), lang), self.visn_output(self.visn_inter(visn), visn)

    def forward_cls(self, lang, visn, words, regions):
        """The output state of [CLS] alone, (b, d): all that a pooler reads of the last layer."""
        lang = self.visual_attention(lang, visn, words, regions)
        cls = PackedSequences(None, words.shape[0], 1, lang.device)
        lang = self.lang_self_att.forward_queries(words.pad(lang)[:, 0], cls, lang, words)
        return self.lang_output(self.lang_inter(lang), lang)


class LXRTLayers(LayerStack):
    """The three encoders of the paper: language layers, object relationship layers, cross-modality layers."""

    def __init__(self, config):
        super().__init__()
        self.visn_fc = VisualFeatEncoder(config)
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.l_layers))  # BERT's own name
        self.x_layers = nn.ModuleList(LXRTXLayer(config) for _ in range(config.x_layers))
        self.r_layers = nn.ModuleList(BertLayer(config) for _ in range(config.r_layers))

    def forward(self, lang, features, boxes, words, regions, all_states=True, hidden_states=None, attentions=None):
        """
        lang (r, d), packed as the PackedSequences words; features (s, f) and boxes (s, 4), packed as regions; k images a text.
        hidden_states: two lists, to which the states of words and of regions after each layer are appended, in the order of
        `layer_names`; attentions: a list, to which attention probabilities are appended, in the order of `attention_names`.

        Returns padded word states (b * k, t, d) and region states (b * k, o, d); without all_states, those of [CLS] alone,
        (b * k, 1, d), and None.
        """
        def keep(side, states, sequences):
            if hidden_states is not None:
                hidden_states[side].append(sequences.pad_with_zeros(states))

        visn = self.visn_fc(features, boxes)
        keep(0, lang, words)
        keep(1, visn, regions)
        for layer in self.layer:
            lang = self.run(layer, lang, words, attentions=attentions)
            keep(0, lang, words)
        if regions.shape[0] > words.shape[0]:  # several images a sentence: its language layers are computed once
            lang, words = words.repeat(lang, regions.shape[0] // words.shape[0])
        for layer in self.r_layers:
            visn = self.run(layer, visn, regions, attentions=attentions)
            keep(1, visn, regions)
        for layer in self.x_layers if all_states else self.x_layers[:-1]:
            lang, visn = self.run(layer, lang, visn, words, regions, attentions=attentions)
            keep(0, lang, words)
            keep(1, visn, regions)
        if all_states:
            return words.pad(lang), regions.pad(visn)
        if not self.x_layers:
            return words.pad(lang), None
        return self.run(self.x_layers[-1].forward_cls, lang, visn, words, regions)[:, None], None


def layer_names(config):
    """The names of the layers whose states `hidden_states` returns, in order: (of words, of regions)."""
    cross = [f'cross{i}' for i in range(1, config.x_layers + 1)]
    return ([f'lang{i}' for i in range(config.l_layers + 1)] + cross,  # lang0: the embeddings
            ['visn0'] + [f'rel{i}' for i in range(1, config.r_layers + 1)] + cross)  # visn0: likewise


def attention_names(config):
    """The names of the attentions whose probabilities `return_attention` returns, in order."""
    return [*(f'lang{i}' for i in range(1, config.l_layers + 1)), *(f'rel{i}' for i in range(1, config.r_layers + 1)),
            *(f'cross{i}.{which}' for i in range(1, config.x_layers + 1)
              for which in ('lang_to_visn', 'visn_to_lang', 'lang', 'visn'))]


class LXRTModel(nn.Module):
    """Embeddings, encoders and pooler: what all LXMERT models share."""

    compile_as_one_graph = True  # read by bert.speed

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = LXRTLayers(config)
        self.pooler = BertPooler(config)
        self.apply(initialise(config))

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, visual_feats=None,
                visual_attention_mask=None, pooled_only=False, hidden_states=False, return_attention=False):
        """
        input_ids (b, t) int; token_type_ids (b, t), zeros if None; attention_mask (b, t), ones if None;
        visual_feats = (features (b, o, f), boxes (b, o, 4) scaled to 0..1); visual_attention_mask (b, o), ones if None.
        A sentence may have k images, one after the other: features are then (b * k, o, f), and so is all that is returned.

        Returns ((word states (b, t, d), region states (b, o, d)), pooled (b, d)); states of padding are arbitrary. With
        pooled_only, what the pooler does not read is not computed; do not use the states then.

        With hidden_states also returns ({layer: word states (b, t, d)}, {layer: region states (b, o, d)}), by `layer_names`, 0 at
        padding. Language layers run once per sentence, so that theirs are (b, t, d) for any k.

        With return_attention also returns, last, {layer: attention probabilities}, by `attention_names`, 0 at padding, before
        dropout, differentiable: langN (b, h, t, t), relN (b, h, o, o), crossN.lang_to_visn (b, h, t, o), of each word over the
        regions, crossN.visn_to_lang (b, h, o, t), and after these crossN.lang (b, h, t, t), crossN.visn (b, h, o, o); for k
        images as for hidden_states. Either option overrules pooled_only.
        """
        states_of_layers = ([], []) if hidden_states else None
        attentions = [] if return_attention else None
        features, boxes = visual_feats
        (b, t), o = input_ids.shape, features.shape[1]
        words = PackedSequences(attention_mask, b, t, input_ids.device)
        regions = PackedSequences(visual_attention_mask, len(features), o, features.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        position_ids = torch.arange(t, device=input_ids.device).expand(b, t)
        lang, visn = self.encoder(
            self.embeddings(*(words.pack(ids) for ids in (input_ids, position_ids, token_type_ids))),
            regions.pack(features), regions.pack(boxes), words, regions,
            not pooled_only or hidden_states or return_attention, states_of_layers, attentions,
        )
        result = (lang, visn), self.pooler(lang)
        if hidden_states:
            result += tuple(dict(zip(names, states, strict=True))
                            for names, states in zip(layer_names(self.config), states_of_layers, strict=True)),
        if return_attention:
            result += dict(zip(attention_names(self.config), attentions, strict=True)),
        return result


class LXRTFeatureExtraction(nn.Module):
    """LXRTModel under the name `bert`, as in checkpoints.

    mode, as in the original code: 'x' returns the pooled vector; 'l', 'r' or 'lr' the states of words and regions;
    'lxr' (any mode with x and one of the others) both. With hidden_states or return_attention: (that, what LXRTModel returns
    for them).
    """

    def __init__(self, config, mode='lxr'):
        super().__init__()
        if not mode or set(mode) - set('lxr'):
            raise ValueError(f"mode {mode!r}: expected letters of 'lxr'")
        self.mode = mode
        self.bert = LXRTModel(config)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, visual_feats=None,
                visual_attention_mask=None, hidden_states=False, return_attention=False):
        states, pooled, *layers = self.bert(input_ids, token_type_ids, attention_mask, visual_feats, visual_attention_mask,
                                            self.mode == 'x', hidden_states, return_attention)
        result = pooled if self.mode == 'x' else (states, pooled) if 'x' in self.mode else states
        return (result, *layers) if layers else result


def answer_layers(config, num_answers, images=1):
    """Layers that score answers (or the truth of a statement) from the pooled vectors of a number of images:
    (b, images * d) -> (b, num_answers)."""
    hidden = config.hidden_size * 2
    layers = nn.Sequential(
        nn.Linear(config.hidden_size * images, hidden), nn.GELU(), layer_norm(hidden), nn.Linear(hidden, num_answers)
    ).apply(initialise(config))
    layers[-1].zeros_allowed = True  # rows of answers that the pre-trained head lacks start at 0
    return layers
