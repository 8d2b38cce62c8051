"""The LXMERT model (Tan & Bansal, EMNLP 2019), with the parameter names of the original code.

Shapes: b batch, t tokens, o objects (regions), h heads, d hidden size, f feature size.
BERT's conventions hold throughout: layer norm after each residual, eps 1e-12, exact (erf) GELU.
"""

import torch
import torch.nn.functional as F
from torch import nn

from lxrt.config import LxrtConfig
from lxrt.losses import WEIGHTS, class_loss, feature_loss, label_counts

__all__ = ['LXRTFeatureExtraction', 'LXRTModel', 'LXRTPretraining', 'LxrtConfig', 'answer_layers']

MASKED_SCORE = -10000.0  # BERT's 'minus infinity'; its exponential is exactly 0 beside any real score


def layer_norm(size):
    return nn.LayerNorm(size, eps=1e-12)


def additive_mask(mask):
    """Turns a mask (b, n), 1 to attend and 0 to ignore, into scores to be added, (b, 1, 1, n); None stays None."""
    return None if mask is None else ((1.0 - mask.float()) * MASKED_SCORE)[:, None, None, :]


class BertEmbeddings(nn.Module):
    """Word, position and segment embeddings. All three have padding_idx 0, as in the original code: no gradient comes
    through them to the vectors of [PAD], of the first position and of the first segment."""

    def __init__(self, config):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size, padding_idx=0)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size, padding_idx=0)
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids, token_type_ids):
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded = self.word_embeddings(input_ids) + self.position_embeddings(positions)  # (b, t, d)
        return self.dropout(self.LayerNorm(embedded + self.token_type_embeddings(token_type_ids)))


class VisualFeatEncoder(nn.Module):
    """Region embedding (paper, equation 1): mean of the projected feature and the projected box, each normalised."""

    def __init__(self, config):
        super().__init__()
        self.visn_fc = nn.Linear(config.visual_feat_dim, config.hidden_size)
        self.visn_layer_norm = layer_norm(config.hidden_size)
        self.box_fc = nn.Linear(config.visual_pos_dim, config.hidden_size)
        self.box_layer_norm = layer_norm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, features, boxes):
        seen = self.visn_layer_norm(self.visn_fc(features))  # (b, o, f) -> (b, o, d)
        placed = self.box_layer_norm(self.box_fc(boxes))  # (b, o, 4) -> (b, o, d)
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

    def forward(self, hidden, context, context_mask):
        """hidden (b, n, d), context (b, m, d), context_mask additive (b, 1, 1, m) or None -> (b, n, d)."""
        query, key, value = (  # each (b, h, n or m, d/h)
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(hidden), self.key(context), self.value(context))
        )
        if context_mask is not None:
            context_mask = context_mask.to(query.dtype)  # autocast changes the projections' dtype
        attended = F.scaled_dot_product_attention(
            query, key, value, context_mask, dropout_p=self.dropout if self.training else 0.0
        )
        return attended.transpose(1, 2).flatten(2)  # (b, h, n, d/h) -> (b, n, d)


class BertOutput(nn.Module):
    """Closes a block: projection, dropout, residual, layer norm."""

    def __init__(self, config, size):
        super().__init__()
        self.dense = nn.Linear(size, config.hidden_size)
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

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

    def forward(self, hidden, mask, queries=None):
        """New states of `queries` (b, q, d), which are some of hidden (b, n, d); of all of them if None."""
        queries = hidden if queries is None else queries
        return self.output(self.self(queries, hidden, mask), queries)


class BertCrossattLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.att = BertAttention(config)
        self.output = BertOutput(config, config.hidden_size)

    def forward(self, hidden, context, context_mask):
        return self.output(self.att(hidden, context, context_mask), hidden)


class BertLayer(nn.Module):
    """One layer of BERT: self-attention, feed-forward. Used for words and, as relationship layer, for regions."""

    def __init__(self, config):
        super().__init__()
        self.attention = BertSelfattLayer(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, config.intermediate_size)

    def forward(self, hidden, mask):
        hidden = self.attention(hidden, mask)
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

    def forward(self, lang, lang_mask, visn, visn_mask):
        # Both directions start from the layer's inputs, not from each other's result.
        lang, visn = (
            self.visual_attention(lang, visn, visn_mask),
            self.visual_attention(visn, lang, lang_mask),
        )
        lang = self.lang_self_att(lang, lang_mask)
        visn = self.visn_self_att(visn, visn_mask)
        return self.lang_output(self.lang_inter(lang), lang), self.visn_output(self.visn_inter(visn), visn)

    def first_word(self, lang, lang_mask, visn, visn_mask):
        """The state of [CLS] alone, (b, 1, d), equal to forward's: all that a pooler reads of the last layer."""
        lang = self.visual_attention(lang, visn, visn_mask)
        lang = self.lang_self_att(lang, lang_mask, queries=lang[:, :1])
        return self.lang_output(self.lang_inter(lang), lang)


class LXRTEncoder(nn.Module):
    """The three encoders: language layers, object relationship layers, cross-modality layers."""

    def __init__(self, config):
        super().__init__()
        self.visn_fc = VisualFeatEncoder(config)
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.l_layers))  # BERT's own name
        self.x_layers = nn.ModuleList(LXRTXLayer(config) for _ in range(config.x_layers))
        self.r_layers = nn.ModuleList(BertLayer(config) for _ in range(config.r_layers))

    def forward(self, lang, lang_mask, features, boxes, visn_mask, pooled_only=False):
        """Word states (b, t, d) and region states (b, o, d); with pooled_only (b, 1, d), that of [CLS], and None."""
        visn = self.visn_fc(features, boxes)
        for layer in self.layer:
            lang = layer(lang, lang_mask)
        for layer in self.r_layers:
            visn = layer(visn, visn_mask)
        whole = len(self.x_layers) - pooled_only
        for layer in self.x_layers[:whole]:
            lang, visn = layer(lang, lang_mask, visn, visn_mask)
        for layer in self.x_layers[whole:]:
            lang, visn = layer.first_word(lang, lang_mask, visn, visn_mask), None
        return lang, visn


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
                visual_attention_mask=None, pooled_only=False):
        """
        input_ids (b, t) int; token_type_ids (b, t), zeros if None; attention_mask (b, t), ones if None;
        visual_feats = (features (b, o, f), boxes (b, o, 4) scaled to 0..1); visual_attention_mask (b, o), ones if None.
        Returns ((word states (b, t, d), region states (b, o, d)), pooled (b, d)); with pooled_only what the pooler does
        not read is not computed, and the states are not to be used.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        features, boxes = visual_feats
        lang, visn = self.encoder(
            self.embeddings(input_ids, token_type_ids), additive_mask(attention_mask),
            features, boxes, additive_mask(visual_attention_mask), pooled_only,
        )
        return (lang, visn), self.pooler(lang)


class LXRTFeatureExtraction(nn.Module):
    """LXRTModel under the name `bert`, as checkpoints have it.

    mode, as in the original code: 'x' returns the pooled vector; 'l', 'r' or 'lr' the states of words and regions;
    'lxr' (any mode with x and one of the others) both.
    """

    def __init__(self, config, mode='lxr'):
        super().__init__()
        if not mode or set(mode) - set('lxr'):
            raise ValueError(f"mode {mode!r}: expected letters of 'lxr'")
        self.mode = mode
        self.bert = LXRTModel(config)

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, visual_feats=None,
                visual_attention_mask=None):
        states, pooled = self.bert(
            input_ids, token_type_ids, attention_mask, visual_feats, visual_attention_mask, pooled_only=self.mode == 'x'
        )
        if self.mode == 'x':
            return pooled
        return (states, pooled) if 'x' in self.mode else states


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
                pos=None, obj_labels=None, matched_label=None, ans=None, visual_attention_mask=None, counts=None):
        """
        input_ids, token_type_ids, attention_mask, masked_lm_labels (b, t); visual_feats (b, o, f); pos (b, o, 4);
        obj_labels = {'obj': (classes (b, o), confidences (b, o)), 'attr': the same, 'feat': (features (b, o, f),
        mask (b, o), 1 = masked)}; matched_label (b,), 1 = the pair belongs together; ans (b,); visual_attention_mask (b, o).
        A label of -1 is ignored; an objective whose labels are None is not computed.

        counts: {loss: number that its sum is divided by}, as `losses.label_counts` has them of these labels, which None means;
        those of a whole batch, where this is a part of it.

        Returns (losses, answer logits (b, answers) or None). losses: scalars by name, of Mask_LM, Matched, Obj, Attr,
        Feat, QA those asked for. Mask_LM, Matched and QA are means over their labels; Obj, Attr and Feat are means
        over all regions that are not padding, times 1/0.15, as in the original code. Nothing to predict gives 0.
        """
        (lang, visn), pooled = self.bert(
            input_ids, token_type_ids, attention_mask, (visual_feats, pos), visual_attention_mask
        )
        sums, answer_logits = {}, None
        if self.task_mask_lm and masked_lm_labels is not None:
            masked = masked_lm_labels != -1  # the vocabulary's logits are needed nowhere else
            sums['Mask_LM'] = class_loss(self.cls.predictions(lang[masked]), masked_lm_labels[masked])
        if self.task_matched and matched_label is not None:
            sums['Matched'] = class_loss(self.cls.seq_relationship(pooled), matched_label)
        if self.visual_losses and obj_labels is not None:
            sums.update(self._visual_sums(visn, obj_labels, visual_attention_mask))
        if self.task_qa:
            answer_logits = self.answer_head(pooled)
            if ans is not None:
                sums['QA'] = class_loss(answer_logits, ans)
        if counts is None:
            counts = label_counts(pos, masked_lm_labels, matched_label, ans, visual_attention_mask)
        return {name: total * WEIGHTS[name] / counts[name].clamp(min=1) for name, total in sums.items()}, answer_logits

    def _visual_sums(self, visn, obj_labels, visual_attention_mask):
        real = visn.new_ones(visn.shape[:2]) if visual_attention_mask is None else visual_attention_mask  # (b, o)
        head = self.obj_predict_head
        hidden, sums = head.transform(visn), {}
        for kind, decoder in head.decoder_dict.items():
            target, weight = obj_labels[kind]
            if kind == 'feat':
                masked = (weight * real) != 0  # predicted nowhere else
                sums['Feat'] = feature_loss(decoder(hidden[masked]), target[masked])
            else:
                sums[kind.capitalize()] = class_loss(decoder(hidden).flatten(0, 1), target.flatten(), (weight * real).flatten())
        return sums
