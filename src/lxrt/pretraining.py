"""LXMERT's pre-training model: heads and losses of its five objectives (paper, section 3.1)."""

import torch.nn.functional as F
from torch import nn

from bert.layers import BertPredictionHeadTransform, BertPreTrainingHeads, initialise
from lxrt.modeling import LXRTModel, answer_layers

# Region losses are means over all regions; this brings them to the scale of losses on masked ones, as in the original code.
REGION_WEIGHT = 1 / 0.15
WEIGHTS = {'Mask_LM': 1, 'Matched': 1, 'Obj': REGION_WEIGHT, 'Attr': REGION_WEIGHT, 'Feat': REGION_WEIGHT, 'QA': 1}


def class_loss(logits, labels, weights=None):
    """Cross entropy of logits (n, classes), summed over the labels (n,) that are not -1, each times its weight (n,)."""
    if weights is None:
        return F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction='sum')
    return (F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction='none') * weights).sum()


def feature_loss(predicted, target):
    """Smooth L1 of features (n, f), its mean over the f numbers of a feature, summed over the n regions."""
    return F.smooth_l1_loss(predicted.float(), target, reduction='none').mean(-1).sum()


def label_counts(boxes, masked_lm_labels=None, matched_label=None, ans=None, visual_attention_mask=None):
    """{loss: 0-d float32 tensor}: the number that each loss's sum is divided by. These are its labels that are not -1, or, for
    the region losses, all regions that are not padding.

    boxes (b, o, 4) and the labels: as for LXRTPretraining.forward; labels that are None have no count.
    """
    labels = {'Mask_LM': masked_lm_labels, 'Matched': matched_label, 'QA': ans}
    counts = {name: (label != -1).sum().float() for name, label in labels.items() if label is not None}
    regions = boxes[..., 0] * 0 + 1 if visual_attention_mask is None else visual_attention_mask
    return counts | dict.fromkeys(('Obj', 'Attr', 'Feat'), regions.sum().float())


class BertVisualObjHead(nn.Module):
    """Predicts a region's class, attribute or feature: one transform, a decoder for each."""

    def __init__(self, config, visual_losses):
        super().__init__()
        sizes = {'obj': config.num_object_labels, 'attr': config.num_attr_labels, 'feat': config.visual_feat_dim}
        self.transform = BertPredictionHeadTransform(config)
        self.decoder_dict = nn.ModuleDict({kind: nn.Linear(config.hidden_size, sizes[kind]) for kind in visual_losses})

    def forward(self, visn):
        hidden = self.transform(visn)
        return {kind: decoder(hidden) for kind, decoder in self.decoder_dict.items()}


class BertVisualAnswerHead(nn.Module):
    def __init__(self, config, num_answers):
        super().__init__()
        self.logit_fc = answer_layers(config, num_answers)

    def forward(self, pooled):
        return self.logit_fc(pooled)


class LXRTPretraining(nn.Module):
    """LXMERT with the heads and losses of pre-training."""

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
        self.apply(initialise(config))  # the tied word embeddings are drawn again here, from the same distribution

    def forward(self, input_ids, token_type_ids=None, attention_mask=None, masked_lm_labels=None, visual_feats=None,
                pos=None, obj_labels=None, matched_label=None, ans=None, visual_attention_mask=None, counts=None,
                predicted=None):
        """
        input_ids, token_type_ids, attention_mask, masked_lm_labels (b, t); visual_feats (b, o, f); pos (b, o, 4);
        obj_labels = {'obj': (classes (b, o), confidences (b, o)), 'attr': the same, 'feat': (features (b, o, f),
        mask (b, o), 1 = masked)}; matched_label (b,), 1 = the pair belongs together; ans (b,); visual_attention_mask (b, o).
        Labels of -1 are ignored; an objective whose labels are None is not computed.

        counts: {loss: number that its sum is divided by}. None: `label_counts` of these labels; give those of the whole batch
        where this is a part of it. predicted: {'words': (m,), 'regions': (k,)}, indices into (b * t) and (b * o) of the words and
        features to predict. None: they are computed from the labels, which waits for the GPU.

        Returns (losses, answer logits (b, answers) or None). losses: the requested scalars of Mask_LM, Matched, Obj, Attr, Feat,
        QA, by name. Mask_LM, Matched and QA are means over their labels; Obj, Attr and Feat are means over all regions that are
        not padding, times 1/0.15, as in the original code. A loss with nothing to predict is 0.
        """
        (lang, visn), pooled = self.bert(
            input_ids, token_type_ids, attention_mask, (visual_feats, pos), visual_attention_mask
        )
        sums, answer_logits, predicted = {}, None, predicted or {}
        if self.task_mask_lm and masked_lm_labels is not None:
            labels, masked = masked_lm_labels.flatten(), predicted.get('words')
            if masked is None:
                masked = (labels != -1).nonzero()[:, 0]
            # Vocabulary logits are computed for masked words only.
            sums['Mask_LM'] = class_loss(self.cls.predictions(lang.flatten(0, 1)[masked]), labels[masked])
        if self.task_matched and matched_label is not None:
            sums['Matched'] = class_loss(self.cls.seq_relationship(pooled), matched_label)
        if self.visual_losses and obj_labels is not None:
            sums |= self._visual_sums(visn, obj_labels, visual_attention_mask, predicted.get('regions'))
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
            if kind == 'feat':  # computed for masked regions only
                masked = (weight * real).flatten().nonzero()[:, 0] if masked is None else masked
                sums['Feat'] = feature_loss(decoder(hidden.flatten(0, 1)[masked]), target.flatten(0, 1)[masked])
            else:
                sums[kind.capitalize()] = class_loss(decoder(hidden).flatten(0, 1), target.flatten(), (weight * real).flatten())
        return sums
