"""Which words and regions an answer rests on: gradient-weighted relevance (Chefer, Gur & Wolf, ICCV 2021: "Generic
Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers"), numbers of equations are theirs.

Shapes: b examples of k images each, n = b * k pairs of a sentence and an image, t words, o regions, h heads.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Relevance:
    """Of b examples; numbers at padding are 0."""

    logits: torch.Tensor  # (b, answers)
    answers: torch.Tensor  # (b,) int64: the place of the answer that is explained
    words: torch.Tensor  # (b, k, t), from 0 up
    regions: torch.Tensor  # (b, k, o), likewise
    attention: dict  # {layer: probabilities (b or n, h, rows, columns)}, as LXRTModel returns them


def relevance(model, batch, answers=None):
    """The Relevance of words and regions for one answer of each example.

    model: a tasks.model.AnswerModel; batch: as annotations.dataset.QuestionDataset has it; answers (b,) int64: places of answers, None:
    those with the highest logit. What several images of an example have in common, attention in the language layers, counts for
    each with the gradient of all.
    """
    with torch.enable_grad():
        logits, attention = model(batch['input_ids'], batch['features'], batch['boxes'], batch.get('visual_attention_mask'),
                                  return_attention=True)
        answers = logits.argmax(1) if answers is None else answers
        explained = logits.gather(1, answers[:, None]).sum()  # examples do not meet, so each keeps a gradient of its own
        gradients = torch.autograd.grad(explained, list(attention.values()), allow_unused=True)
    attention = {name: weights.detach() for name, weights in attention.items()}
    (b, t), (n, o) = batch['input_ids'].shape, batch['features'].shape[:2]
    seen = {}
    for (name, weights), gradient in zip(attention.items(), gradients, strict=True):
        mean = over_heads(weights, torch.zeros_like(weights) if gradient is None else gradient)  # None: nothing reads it
        seen[name] = mean.repeat_interleave(n // len(mean), 0)
    tt, ti, _, _ = maps(seen, n, t, o, logits.device)
    words = tt[:, 0] - torch.eye(t, device=logits.device)[0]  # the pooler reads [CLS], whose own 1 of equation 1 is taken off
    return Relevance(logits.detach(), answers, words.unflatten(0, (b, -1)), ti[:, 0].unflatten(0, (b, -1)), attention)


def over_heads(weights, gradients):
    """Equation 5: the mean over heads of what is positive in gradient times attention, (b, h, rows, columns) -> (b, rows,
    columns)."""
    return (gradients * weights).clamp(min=0).float().mean(1)


def maps(seen, n, t, o, device=None):
    """Relevance maps R_tt (n, t, t), R_ti (n, t, o), R_it (n, o, t), R_ii (n, o, o): how much each word (t) and region (i) of
    the first letter owes to each of the second, after all layers.

    seen: {layer: what over_heads gives, (n, rows, columns)}, by the names and in the order of lxrt.modeling.attention_names.
    """
    tt, ii = (torch.eye(size, device=device).repeat(n, 1, 1) for size in (t, o))  # equation 1
    ti, it = torch.zeros(n, t, o, device=device), torch.zeros(n, o, t, device=device)
    for name, own in seen.items():
        layer, _, which = name.partition('.')
        if which == 'lang_to_visn':  # both directions start from the maps before the layer, as its attentions do
            back = seen[f'{layer}.visn_to_lang']
            words, regions = normalised(tt), normalised(ii)
            tt, ti, it, ii = (  # equations 11 and 10
                tt + own @ it, ti + words.mT @ own @ regions,
                it + regions.mT @ back @ words, ii + back @ ti,
            )
        elif which == 'lang' or layer.startswith('lang'):
            tt, ti = tt + own @ tt, ti + own @ ti  # equations 6 and 7
        elif which == 'visn' or layer.startswith('rel'):
            ii, it = ii + own @ ii, it + own @ it
    return tt, ti, it, ii


def normalised(own):
    """Equations 8 and 9: rows of a map of one side (n, m, m) sum to 1 beside the identity. A row of nothing stays one."""
    identity = torch.eye(own.shape[-1], device=own.device)
    rest = own - identity
    total = rest.sum(-1, keepdim=True)
    return rest / total.masked_fill(total == 0, 1) + identity
