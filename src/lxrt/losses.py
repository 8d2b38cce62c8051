"""The losses of pre-training (paper, section 3.1), each a sum over what is predicted, and what each sum is divided by."""

import torch.nn.functional as F

# Region losses are means over all regions; this brings them to the scale of losses on masked ones, as in the original code.
REGION_WEIGHT = 1 / 0.15
WEIGHTS = {'Mask_LM': 1, 'Matched': 1, 'Obj': REGION_WEIGHT, 'Attr': REGION_WEIGHT, 'Feat': REGION_WEIGHT, 'QA': 1}


def class_loss(logits, labels, weights=None):
    """Cross entropy of logits (n, classes), summed over the labels (n,) that are not -1, each times its weight (n,)."""
    if weights is None:
        return F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction='sum')
    return (F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction='none') * weights).sum()


def feature_loss(predicted, target):
    """Smooth L1 of features (n, f), its mean over the numbers of a feature, summed over the n regions."""
    return F.smooth_l1_loss(predicted.float(), target, reduction='none').mean(-1).sum()


def label_counts(boxes, masked_lm_labels=None, matched_label=None, ans=None, visual_attention_mask=None):
    """{loss: 0-d float32 tensor} of what each loss is a mean over: its labels that are not -1, or all regions but padding.

    boxes (b, o, 4) and the labels: as for LXRTPretraining.forward; of labels that are None there is no count.
    """
    labels = {'Mask_LM': masked_lm_labels, 'Matched': matched_label, 'QA': ans}
    counts = {name: (label != -1).sum().float() for name, label in labels.items() if label is not None}
    regions = boxes[..., 0] * 0 + 1 if visual_attention_mask is None else visual_attention_mask
    return counts | dict.fromkeys(('Obj', 'Attr', 'Feat'), regions.sum().float())
