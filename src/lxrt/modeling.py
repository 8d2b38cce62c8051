"""The LXMERT model (Tan & Bansal, EMNLP 2019), with the parameter names of the original code.

Shapes: b batch, t tokens, o objects (regions), h heads, d hidden size, f feature size; r rows: of states that are real, those of
all sequences of a batch one after the other.
BERT's conventions hold throughout: layer norm after each residual, eps 1e-12, exact (erf) GELU.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lxrt.config import LxrtConfig
from lxrt.losses import WEIGHTS, class_loss, feature_loss, label_counts

__all__ = ['LXRTFeatureExtraction', 'LXRTModel', 'LXRTPretraining', 'LxrtConfig', 'answer_layers', 'attention_names',
           'layer_names']

MASKED_SCORE = -10000.0  # BERT's 'minus infinity'; its exponential is exactly 0 beside any real score


def layer_norm(size):
    return nn.LayerNorm(size, eps=1e-12)


# What is fastest differs by device, and computes the same (experience_in_pretraining.md, "Speed").
PACKED = {'cpu'}  # no arithmetic on padding; elsewhere it costs less than to find out where it is
IN_ONE_PRODUCT = {'cuda'}  # query, key and value of the same states
CHEAP_DRAWS = {'cpu'}  # for dropout, where drawing a number takes longer than what is done with it
PLAIN_PRODUCTS = {'cpu'}  # attention in training; the backward pass of the fused one is up to 18 times slower there in bfloat16


def drop_out(x, rate):
    """F.dropout; where draws are to be cheap, four numbers of 16 bits at a time: the rate is right to 1e-5, the scale exact."""
    if x.device.type not in CHEAP_DRAWS or rate == 0 or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2 ** 63), None).view(torch.int16)
    dropped = min(round(rate * 2 ** 16), 2 ** 16 - 1)
    keep = bits[:x.numel()].view(x.shape) >= dropped - 2 ** 15
    return x * keep.to(x.dtype).mul_(1 / (1 - dropped / 2 ** 16))


class Dropout(nn.Dropout):
    def forward(self, x):
        return drop_out(x, self.p) if self.training else x


class Sequences:
    """The real positions of b sequences (words or regions) that are padded to length n. States are kept as rows (r, d), of the
    real positions only, one sequence after the other, and padded to (b, n, d) where positions meet: in attention."""

    def __init__(self, mask, b, n, device):
        """mask (b, n): 1 to attend and 0 to ignore; None: all are real."""
        self.shape, self.real, self.mask, self.rows = (b, n), mask, None, None
        if mask is not None:
            self.mask = ((1.0 - mask.float()) * MASKED_SCORE)[:, None, None, :]  # to be added to scores (b, h, m, n)
            # An image without any region stays padded: what is attended to there, though blind, is then the same everywhere.
            if device.type in PACKED and not torch.compiler.is_compiling() and not mask.all() and mask.any(1).all():
                self.rows = mask.flatten().nonzero()[:, 0]  # (r,)

    def pack(self, padded):
        """(b, n, ...) -> (r, ...)."""
        flat = padded.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def repeat(self, rows, times):
        """Each sequence several times: (rows (r * times, d), their Sequences)."""
        real = None if self.real is None else self.real.repeat_interleave(times, 0)
        several = Sequences(real, self.shape[0] * times, self.shape[1], rows.device)
        return several.pack(self.pad(rows).repeat_interleave(times, 0)), several

    def pad(self, rows):
        """(r, ...) -> (b, n, ...), 0 where there is padding."""
        if self.rows is not None:
            rows = rows.new_zeros(self.shape[0] * self.shape[1], *rows.shape[1:]).index_copy(0, self.rows, rows)
        return rows.unflatten(0, self.shape)

    def show(self, rows):
        """`pad`, 0 at padding also where states are not packed."""
        padded = self.pad(rows)
        return padded if self.real is None else padded.masked_fill((self.real == 0)[..., None], 0)


class BertEmbeddings(nn.Module):
    """Word, position and segment embeddings. All three have padding_idx 0, as in the original code: no gradient comes
    through them to the vectors of [PAD], of the first position and of the first segment."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=0)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size, padding_idx=0)
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, positions, token_type_ids):
        """Each (r,) -> (r, d)."""
        embedded = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(embedded + self.token_type_embeddings(token_type_ids)))


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
        seen = self.visn_layer_norm(self.visn_fc(features))  # (r, f) -> (r, d)
        placed = self.box_layer_norm(self.box_fc(boxes))  # (r, 4) -> (r, d)
        return self.dropout((seen + placed) / 2)


class BertAttention(nn.Module):
    """Multi-head attention of hidden states over a context."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, context, queries, keys, seen=None):
        """hidden (r, d), of the Sequences queries, attends to context (s, d), of the Sequences keys -> (r, d).
        seen: a list, to which the attention probabilities are added."""
        if hidden is context:
            query, key, value = project(hidden, self.query, self.key, self.value)
        else:
            query, (key, value) = self.query(hidden), project(context, self.key, self.value)
        query, key, value = (  # each (b, h, n, d/h)
            where.pad(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for rows, where in ((query, queries), (key, keys), (value, keys))
        )
        mask = None if keys.mask is None else keys.mask.to(query.dtype)  # autocast changes the projections' dtype
        watch = None if seen is None else lambda weights: watched(weights, queries, keys, seen)
        attended = attend(query, key, value, mask, self.dropout if self.training else 0.0, watch)
        return queries.pack(attended.transpose(1, 2).flatten(2))  # (b, h, n, d/h) -> (r, d)


def project(hidden, *layers):
    """hidden (r, d) through each of some linear layers."""
    if hidden.device.type not in IN_ONE_PRODUCT:
        return [layer(hidden) for layer in layers]
    weight, bias = (torch.cat([getattr(layer, name) for layer in layers]) for name in ('weight', 'bias'))
    return F.linear(hidden, weight, bias).chunk(len(layers), -1)


def attend(query, key, value, mask, dropout, watch=None):
    """Scaled dot-product attention: query (b, h, n, d/h), key and value (b, h, m, d/h), mask (b, 1, 1, m) added to the scores or
    None -> (b, h, n, d/h). watch: called with the probabilities (b, h, n, m), returns those to use in their place."""
    if watch is None and (query.device.type not in PLAIN_PRODUCTS or not query.requires_grad):
        return F.scaled_dot_product_attention(query, key, value, mask, dropout_p=dropout)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return drop_out(weights if watch is None else watch(weights), dropout) @ value


def watched(weights, queries, keys, seen):
    """Adds attention probabilities (b, h, n, m) to the list seen, 0 at padding, and returns them as they were. What is returned
    is computed from what is seen, so that a result has a gradient with respect to it."""
    padding = torch.zeros(1, dtype=torch.bool, device=weights.device)  # and after these lines (b or 1, 1, n or 1, m or 1)
    if queries.real is not None:
        padding = padding | (queries.real == 0)[:, None, :, None]
    if keys.real is not None:
        padding = padding | (keys.real == 0)[:, None, None, :]
    seen.append(weights.masked_fill(padding, 0))
    return seen[-1] + weights.masked_fill(~padding, 0)  # an image without any region is attended to all the same


class BertOutput(nn.Module):
    """Closes a block: projection, dropout, residual, layer norm."""

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
    def __init__(self, config):
        super().__init__()
        self.self = BertAttention(config)
        self.output = BertOutput(config, config.hidden_size)

    def forward(self, hidden, where, seen=None):
        return self.output(self.self(hidden, hidden, where, where, seen), hidden)

    def of_some(self, some, queries, hidden, where):
        """forward's new states of `some` (q, d), of the Sequences queries, that are among hidden."""
        return self.output(self.self(some, hidden, queries, where), some)


class BertCrossattLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.att = BertAttention(config)
        self.output = BertOutput(config, config.hidden_size)

    def forward(self, hidden, context, queries, keys, seen=None):
        return self.output(self.att(hidden, context, queries, keys, seen), hidden)


class BertLayer(nn.Module):
    """One layer of BERT: self-attention, feed-forward. Used for words and, as relationship layer, for regions."""

    def __init__(self, config):
        super().__init__()
        self.attention = BertSelfattLayer(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, config.intermediate_size)

    def forward(self, hidden, where, seen=None):
        hidden = self.attention(hidden, where, seen)
        return self.output(self.intermediate(hidden), hidden)


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

    def forward(self, lang, visn, words, regions, seen=None):
        """seen: a list, to which the probabilities of the four attentions are added, in the order in which they stand here."""
        # Both directions start from the layer's inputs, not from each other's result.
        lang, visn = (
            self.visual_attention(lang, visn, words, regions, seen),
            self.visual_attention(visn, lang, regions, words, seen),
        )
        lang = self.lang_self_att(lang, words, seen)
        visn = self.visn_self_att(visn, regions, seen)
        return self.lang_output(self.lang_inter(lang), lang), self.visn_output(self.visn_inter(visn), visn)

    def first_word(self, lang, visn, words, regions):
        """The state of [CLS] alone, (b, d), equal to forward's: all that a pooler reads of the last layer."""
        lang = self.visual_attention(lang, visn, words, regions)
        first = Sequences(None, words.shape[0], 1, lang.device)
        lang = self.lang_self_att.of_some(words.pad(lang)[:, 0], first, lang, words)
        return self.lang_output(self.lang_inter(lang), lang)


class LXRTEncoder(nn.Module):
    """The three encoders: language layers, object relationship layers, cross-modality layers."""

    def __init__(self, config):
        super().__init__()
        self.visn_fc = VisualFeatEncoder(config)
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.l_layers))  # BERT's own name
        self.x_layers = nn.ModuleList(LXRTXLayer(config) for _ in range(config.x_layers))
        self.r_layers = nn.ModuleList(BertLayer(config) for _ in range(config.r_layers))
        self.checkpointing = False  # in training, compute what is inside a layer again for its gradient instead of keeping it

    def run(self, layer, *inputs, seen=None):
        if seen is not None:  # never in a checkpoint, which would see everything twice
            return layer(*inputs, seen)
        if self.checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)

    def forward(self, lang, features, boxes, words, regions, pooled_only=False, hidden=None, seen=None):
        """lang (r, d), of the Sequences words; features (s, f) and boxes (s, 4), of the Sequences regions, k for each of words.
        hidden: two lists, to which states after each layer are added, of words and of regions, in the order of `layer_names`;
        seen: a list, to which attention probabilities are added, in the order of `attention_names`.
        Returns padded word states (b * k, t, d) and region states (b * k, o, d); with pooled_only those of [CLS], (b * k, 1, d),
        and None."""
        def keep(side, rows, where):
            if hidden is not None:
                hidden[side].append(where.show(rows))

        visn = self.visn_fc(features, boxes)
        keep(0, lang, words)
        keep(1, visn, regions)
        for layer in self.layer:
            lang = self.run(layer, lang, words, seen=seen)
            keep(0, lang, words)
        if regions.shape[0] > words.shape[0]:  # the images of a sentence do not read it apart until here
            lang, words = words.repeat(lang, regions.shape[0] // words.shape[0])
        for layer in self.r_layers:
            visn = self.run(layer, visn, regions, seen=seen)
            keep(1, visn, regions)
        whole = len(self.x_layers) - pooled_only
        for layer in self.x_layers[:whole]:
            lang, visn = self.run(layer, lang, visn, words, regions, seen=seen)
            keep(0, lang, words)
            keep(1, visn, regions)
        for layer in self.x_layers[whole:]:
            return self.run(layer.first_word, lang, visn, words, regions)[:, None], None
        return words.pad(lang), None if pooled_only else regions.pad(visn)


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


class BertPooler(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, lang):
        return torch.tanh(self.dense(lang[:, 0]))  # the state of [CLS]


class LXRTModel(nn.Module):
    """Embeddings, encoders and pooler: the part that every LXMERT model shares."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.encoder = LXRTEncoder(config)
        self.pooler = BertPooler(config)
        self.apply(initialise(config))

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, visual_feats=None,
                visual_attention_mask=None, pooled_only=False, hidden_states=False, return_attention=False):
        """
        input_ids (b, t) int; token_type_ids (b, t), zeros if None; attention_mask (b, t), ones if None;
        visual_feats = (features (b, o, f), boxes (b, o, 4) scaled to 0..1); visual_attention_mask (b, o), ones if None.
        Returns ((word states (b, t, d), region states (b, o, d)), pooled (b, d)); the states of padding mean nothing. With
        pooled_only what the pooler does not read is not computed, and the states are not to be used. A sentence may have k
        images, one after the other: features (b * k, o, f), and b * k of all that is returned.

        With hidden_states also returns ({layer: word states (b, t, d)}, {layer: region states (b, o, d)}), by `layer_names`, 0 at
        padding; all is then computed, whatever pooled_only says. Of a sentence with k images, b of the language layers, that read
        it once, and b * k of the others.

        With return_attention also returns, after these, {layer: attention probabilities}, by `attention_names`, 0 at padding and
        before dropout: langN (b, h, t, t), relN (b, h, o, o), crossN.lang_to_visn (b, h, t, o), of each word over the regions,
        crossN.visn_to_lang (b, h, o, t), and after these crossN.lang (b, h, t, t), crossN.visn (b, h, o, o). They can be
        differentiated with respect to; all is computed, and of several images a sentence the same holds as of hidden_states.
        """
        hidden, seen = ([], []) if hidden_states else None, [] if return_attention else None
        features, boxes = visual_feats
        (b, t), o = input_ids.shape, features.shape[1]
        words = Sequences(attention_mask, b, t, input_ids.device)
        regions = Sequences(visual_attention_mask, len(features), o, features.device)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        positions = torch.arange(t, device=input_ids.device).expand(b, t)
        lang, visn = self.encoder(
            self.embeddings(*(words.pack(ids) for ids in (input_ids, positions, token_type_ids))),
            regions.pack(features), regions.pack(boxes), words, regions,
            pooled_only and not hidden_states and not return_attention, hidden, seen,
        )
        found = (lang, visn), self.pooler(lang)
        if hidden_states:
            found += tuple(dict(zip(names, states, strict=True))
                           for names, states in zip(layer_names(self.config), hidden, strict=True)),
        if return_attention:
            found += dict(zip(attention_names(self.config), seen, strict=True)),
        return found


class LXRTFeatureExtraction(nn.Module):
    """LXRTModel under the name `bert`, as checkpoints have it.

    mode, as in the original code: 'x' returns the pooled vector; 'l', 'r' or 'lr' the states of words and regions;
    'lxr' (any mode with x and one of the others) both. With hidden_states, return_attention or both (that, what LXRTModel
    returns for them).
    """

    def __init__(self, config, mode='lxr'):
        super().__init__()
        if not mode or set(mode) - set('lxr'):
            raise ValueError(f"mode {mode!r}: expected letters of 'lxr'")
        self.mode = mode
        self.bert = LXRTModel(config)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, visual_feats=None,
                visual_attention_mask=None, hidden_states=False, return_attention=False):
        states, pooled, *inside = self.bert(input_ids, token_type_ids, attention_mask, visual_feats, visual_attention_mask,
                                            self.mode == 'x', hidden_states, return_attention)
        found = pooled if self.mode == 'x' else (states, pooled) if 'x' in self.mode else states
        return (found, *inside) if inside else found


class BertPredictionHeadTransform(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = layer_norm(config.hidden_size)

    def forward(self, hidden):
        return self.LayerNorm(F.gelu(self.dense(hidden)))


class BertLMPredictionHead(nn.Module):
    def __init__(self, config, word_embeddings):
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.decoder.weight = word_embeddings  # tied
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden):
        return self.decoder(self.transform(hidden)) + self.bias


class BertPreTrainingHeads(nn.Module):
    def __init__(self, config, word_embeddings):
        super().__init__()
        self.predictions = BertLMPredictionHead(config, word_embeddings)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class BertVisualObjHead(nn.Module):
    """Predicts a region's class, attribute or feature; one transform, a decoder for each."""

    def __init__(self, config, visual_losses):
        super().__init__()
        sizes = {'obj': config.num_object_labels, 'attr': config.num_attr_labels, 'feat': config.visual_feat_dim}
        self.transform = BertPredictionHeadTransform(config)
        self.decoder_dict = nn.ModuleDict({kind: nn.Linear(config.hidden_size, sizes[kind]) for kind in visual_losses})

    def forward(self, visn):
        hidden = self.transform(visn)
        return {kind: decoder(hidden) for kind, decoder in self.decoder_dict.items()}


def answer_layers(config, num_answers, images=1):
    """The layers that score answers (or the truth of a statement) from the pooled vectors of a number of images:
    (b, images * d) -> (b, num_answers)."""
    hidden = config.hidden_size * 2
    return nn.Sequential(
        nn.Linear(config.hidden_size * images, hidden), nn.GELU(), layer_norm(hidden), nn.Linear(hidden, num_answers)
    ).apply(initialise(config))


class BertVisualAnswerHead(nn.Module):
    def __init__(self, config, num_answers):
        super().__init__()
        self.logit_fc = answer_layers(config, num_answers)

    def forward(self, pooled):
        return self.logit_fc(pooled)


def initialise(config):
    """The function that sets a module's initial weights, as in BERT; to be given to `Module.apply`."""

    def set_weights(module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    return set_weights


class LXRTPretraining(nn.Module):
    """LXMERT with the heads and losses of its five pre-training objectives (paper, section 3.1)."""

    def __init__(self, config, task_mask_lm=True, task_matched=True, task_obj_predict=True,
                 visual_losses='obj,attr,feat', task_qa=True, num_answers=2):
        super().__init__()
        self.task_mask_lm, self.task_matched, self.task_qa = task_mask_lm, task_matched, task_qa
        self.visual_losses = [kind for kind in visual_losses.split(',') if kind] if task_obj_predict else []
        if unknown := set(self.visual_losses) - {'obj', 'attr', 'feat'}:
            raise ValueError(f'visual_losses: expected obj, attr and feat, found {sorted(unknown)}')
        self.bert = LXRTModel(config)
        self.cls = BertPreTrainingHeads(config, self.bert.embeddings.word_embeddings.weight)
        if self.visual_losses:
            self.obj_predict_head = BertVisualObjHead(config, self.visual_losses)
        if task_qa:
            self.answer_head = BertVisualAnswerHead(config, num_answers)
        # The tied word embeddings are drawn once more here, which changes nothing in their distribution.
        self.apply(initialise(config))

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, masked_lm_labels=None, visual_feats=None,
                pos=None, obj_labels=None, matched_label=None, ans=None, visual_attention_mask=None, counts=None,
                predicted=None):
        """
        input_ids, token_type_ids, attention_mask, masked_lm_labels (b, t); visual_feats (b, o, f); pos (b, o, 4);
        obj_labels = {'obj': (classes (b, o), confidences (b, o)), 'attr': the same, 'feat': (features (b, o, f),
        mask (b, o), 1 = masked)}; matched_label (b,), 1 = the pair belongs together; ans (b,); visual_attention_mask (b, o).
        A label of -1 is ignored; an objective whose labels are None is not computed.

        counts: {loss: number that its sum is divided by}, as `losses.label_counts` has them of these labels, which None means;
        those of a whole batch, where this is a part of it. predicted: {'words': (m,), 'regions': (k,)}, the places in (b * t) and
        (b * o) of the words and features to predict; where None, they are found here, which waits for the device.

        Returns (losses, answer logits (b, answers) or None). losses: scalars by name, of Mask_LM, Matched, Obj, Attr,
        Feat, QA those asked for. Mask_LM, Matched and QA are means over their labels; Obj, Attr and Feat are means
        over all regions that are not padding, times 1/0.15, as in the original code. Nothing to predict gives 0.
        """
        (lang, visn), pooled = self.bert(
            input_ids, token_type_ids, attention_mask, (visual_feats, pos), visual_attention_mask
        )
        sums, answer_logits, predicted = {}, None, predicted or {}
        if self.task_mask_lm and masked_lm_labels is not None:
            labels, masked = masked_lm_labels.flatten(), predicted.get('words')
            if masked is None:
                masked = (labels != -1).nonzero()[:, 0]  # the vocabulary's logits are needed nowhere else
            sums['Mask_LM'] = class_loss(self.cls.predictions(lang.flatten(0, 1)[masked]), labels[masked])
        if self.task_matched and matched_label is not None:
            sums['Matched'] = class_loss(self.cls.seq_relationship(pooled), matched_label)
        if self.visual_losses and obj_labels is not None:
            sums.update(self._visual_sums(visn, obj_labels, visual_attention_mask, predicted.get('regions')))
        if self.task_qa:
            answer_logits = self.answer_head(pooled)
            if ans is not None:
                sums['QA'] = class_loss(answer_logits, ans)
        if counts is None:
            counts = label_counts(pos, masked_lm_labels, matched_label, ans, visual_attention_mask)
        return {name: total * WEIGHTS[name] / counts[name].clamp(min=1) for name, total in sums.items()}, answer_logits

    def _visual_sums(self, visn, obj_labels, visual_attention_mask, masked):
        real = visn.new_ones(visn.shape[:2]) if visual_attention_mask is None else visual_attention_mask  # (b, o)
        head = self.obj_predict_head
        hidden, sums = head.transform(visn), {}
        for kind, decoder in head.decoder_dict.items():
            target, weight = obj_labels[kind]
            if kind == 'feat':
                masked = (weight * real).flatten().nonzero()[:, 0] if masked is None else masked  # predicted nowhere else
                sums['Feat'] = feature_loss(decoder(hidden.flatten(0, 1)[masked]), target.flatten(0, 1)[masked])
            else:
                sums[kind.capitalize()] = class_loss(decoder(hidden).flatten(0, 1), target.flatten(), (weight * real).flatten())
        return sums
