"""Which words and regions a prediction rests on: gradient-weighted relevance (Chefer, Gur & Wolf, ICCV 2021: "Generic
Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers"). Numbers of equations are theirs.

Shapes: b examples of c texts and k images each, n = b * c * k pairs of a text and an image, t words, o regions, h heads.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Relevance:
    """Of b examples; 0 at padding."""

    logits: torch.Tensor  # (b, m): of answers, choices or regions, or one that text and image match
    answers: torch.Tensor  # (b,) int64: the place of the logit that is explained
    words: torch.Tensor  # (b, k, t), from 0 up; of a choice those of its text
    regions: torch.Tensor  # (b, k, o), likewise
    attentions: list  # of heads.Attention, detached
    image: torch.Tensor | None = None  # (b, k): of the image as a whole, if it is a further region of the encoder


def relevance(head, batch, answers=None):
    """The Relevance of words and regions for one logit of each example.

    head: a heads.Head; batch: of annotations.dataset.ExampleDataset; answers (b,) int64: the places of the logits, None: the
    highest. An attention that the images of an example share, as in layers that read the text alone, counts for each with the
    gradient of all. Raises ValueError for a head that explains its predictions by maps over patches.
    """
    if head.map_layer is not None:
        raise ValueError(f'relevance: expected a head of a model that reads regions, found {type(head).__name__} of one that '
                         'reads patches of images; use its word_maps')
    logits, answers, recorded = head.explain(batch, answers)
    b, (texts, t), (images, o) = len(logits), batch['input_ids'].shape, batch['boxes'].shape[:2]
    n = texts * images // b
    weighted, after = [], o  # tokens after the words: a joint sequence may have more of them than regions
    for attention, gradient in recorded:
        probabilities = attention.probabilities.detach()
        gradient = torch.zeros_like(probabilities) if gradient is None else gradient  # None: the answer does not depend on it
        mean = mean_over_heads(probabilities, gradient)
        weighted.append((attention, mean.repeat_interleave(n // len(mean), 0)))
        if attention.keys == 'all':
            after = probabilities.shape[-1] - t
    tt, ti, it, ii = relevance_maps(weighted, n, t, after, logits.device)
    # The logit is read from one token or region, whose own 1 of equation 1 is taken off.
    rows = torch.arange(n, device=logits.device).view(b, texts // b, -1)  # (b, c, k)
    rows = rows[torch.arange(b), answers] if texts > b else rows[:, 0]  # of several texts each has a logit
    if head.recipe.output == 'region':
        read = answers[:, None]  # (b, 1)
        words, regions = it[rows, read], ii[rows, read] - torch.eye(after, device=logits.device)[read]
    else:
        read = batch['slot'][:, None] if 'slot' in batch else torch.zeros_like(rows)
        words, regions = tt[rows, read] - torch.eye(t, device=logits.device)[read], ti[rows, read]
    regions = regions[..., :o]
    image, regions = (regions[..., 0], regions[..., 1:]) if 'whole' in head.encoder.needs else (None, regions)
    return Relevance(logits, answers, words, regions, [attention.detached() for attention, _ in recorded], image)


def mean_over_heads(weights, gradients):
    """Equation 5: the mean over heads of the positive part of gradient times attention, (b, h, rows, columns) -> (b, rows,
    columns)."""
    return (gradients * weights).clamp(min=0).float().mean(1)


def relevance_maps(weighted, n, t, o, device=None):
    """Relevance maps R_tt (n, t, t), R_ti (n, t, o), R_it (n, o, t), R_ii (n, o, o): how much each word (t) and region (i) of the
    first letter depends on each of the second, after all layers. o: regions and, in a joint sequence, what follows them.

    weighted: [(heads.Attention, what mean_over_heads returns of it, (n, queries, keys))] in the order of computation.
    """
    tt, ii = (torch.eye(size, device=device).repeat(n, 1, 1) for size in (t, o))  # equation 1
    ti, it = torch.zeros(n, t, o, device=device), torch.zeros(n, o, t, device=device)
    previous = None  # the maps before the two cross attentions of a layer, both of which start from them
    for attention, own in weighted:
        sides = attention.queries, attention.keys
        if sides == ('words', 'visual'):
            previous = tt, ti, it, ii
            words, regions = normalised(tt), normalised(ii)
            tt, ti = tt + own @ it, ti + words.mT @ own @ regions  # equations 11 and 10
        elif sides == ('visual', 'words'):
            old_tt, old_ti, old_it, old_ii = previous
            words, regions = normalised(old_tt), normalised(old_ii)
            it, ii = old_it + regions.mT @ own @ words, old_ii + own @ old_ti
        elif sides == ('words', 'words'):
            tt, ti = tt + own @ tt, ti + own @ ti  # equations 6 and 7
        elif sides == ('visual', 'visual'):
            ii, it = ii + own @ ii, it + own @ it
        else:  # one joint sequence, words first
            joint = torch.cat([torch.cat([tt, ti], 2), torch.cat([it, ii], 2)], 1)
            joint = joint + own @ joint
            tt, ti, it, ii = joint[:, :t, :t], joint[:, :t, t:], joint[:, t:, :t], joint[:, t:, t:]
    return tt, ti, it, ii


def normalised(own):
    """Equations 8 and 9: rows of a map of one side (n, m, m) sum to 1 beside the identity. A row of zeros stays one."""
    identity = torch.eye(own.shape[-1], device=own.device)
    rest = own - identity
    total = rest.sum(-1, keepdim=True)
    return rest / total.masked_fill(total == 0, 1) + identity
