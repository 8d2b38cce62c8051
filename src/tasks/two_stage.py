"""Retrieval in two stages, by a head that has features of images and of texts: all pairs are compared by their features, and the
best candidates are scored by the layers that see both (ALBEF paper, section 4).

Such a head has encode_images(pixels) -> (features (m, e), tokens (m, v, w)), encode_texts(ids, mask) -> (features (n, e), states
(n, t, d)), and match_scores(states, mask, tokens) -> (pairs,), also of one image with several texts. Tokens and states of all
images and texts stay in host memory.
"""

import numpy as np
import torch

import dist
from files.progress import ProgressBar

IMAGES, TEXTS, PAIRS = 64, 256, 128  # in a batch
NOT_RANKED = -100.0  # score of a pair that is no candidate
RECALLS = (1, 5, 10)


def batches(values, size):
    """Batches of a tensor; a list or iterator of batches stays as it is."""
    return values.split(size) if isinstance(values, torch.Tensor) else values


def padded(rows, length):
    """A tensor (n, t, ...) with zeros up to t = length."""
    return torch.cat([rows, rows.new_zeros(len(rows), length - rows.shape[1], *rows.shape[2:])], 1)


@torch.no_grad()
def similarities(head, images, texts):
    """Similarities (m, n) float32, not divided by a temperature, on the CPU. The head keeps what `rerank` needs, in host memory.

    images: normalised pixels (m, 3, side, side), or their batches; texts: input_ids (n, t), 0 at padding, or {'input_ids',
    'attention_mask'}, or batches of these.
    """
    head.eval()
    device = next(head.parameters()).device
    texts = [texts] if isinstance(texts, dict) else batches(texts, TEXTS)
    image_features, text_features, tokens, states, masks = [], [], [], [], []
    for batch in texts:
        batch = batch if isinstance(batch, dict) else {'input_ids': batch}
        mask = batch['attention_mask'] if 'attention_mask' in batch else batch['input_ids'] != 0
        for ids, part in zip(batch['input_ids'].split(TEXTS), mask.split(TEXTS), strict=True):
            features, hidden = head.encode_texts(ids.to(device), part.to(device))
            text_features.append(features.cpu())
            states.append(hidden.cpu())
            masks.append(part.cpu().long())
    for pixels in batches(images, IMAGES):
        features, visual = head.encode_images(pixels.to(device))
        image_features.append(features.cpu())
        tokens.append(visual.cpu())
    longest = max(one.shape[1] for one in masks)
    states, masks = (torch.cat([padded(one, longest) for one in parts]) for parts in (states, masks))
    head.encoded = states, masks, torch.cat(tokens)
    return (torch.cat(image_features) @ torch.cat(text_features).T).float()


@torch.no_grad()
def rerank(head, similarities, k, text=''):
    """(scores of texts for each image (m, n), scores of images for each text (n, m)), float32 on the CPU: the logit of matching
    of the k candidates of a row that are most similar, at most all of them; -100 for the others. similarities (m, n): of
    `similarities`, called before; text: of a progress bar. Rows are shared between processes."""
    head.eval()
    device = next(head.parameters()).device
    states, masks, tokens = head.encoded
    results = []
    for matrix, by_image in ((similarities, True), (similarities.T, False)):
        scores = torch.zeros(matrix.shape)
        rows = range(dist.rank(), len(matrix), dist.world_size())
        for row in ProgressBar(rows, text, shown=bool(text) and dist.is_main(), unit=' rows', leave=False):
            scores[row] = NOT_RANKED
            for places in matrix[row].topk(min(k, matrix.shape[1])).indices.split(PAIRS):
                same = torch.full_like(places, row)
                texts, images = (places, same[:1]) if by_image else (same, places)  # of one image keys are computed once
                pairs = (one.to(device) for one in (states[texts], masks[texts], tokens[images]))
                scores[row, places] = head.match_scores(*pairs).float().cpu()
        results.append(dist.sum_over_ranks(scores.to(device)).cpu())
    return tuple(results)


def best_ranks(scores, right):
    """For each row of scores (r, c) how many columns are before the best of its right ones; equal scores of others come first.
    right: for each row a column or a list of columns."""
    scores, ranks = np.asarray(scores), []
    for row, columns in zip(scores, right, strict=True):
        columns = np.atleast_1d(columns)
        others = np.ones(len(row), bool)
        others[columns] = False
        ranks.append(int((row[others] >= row[columns].max()).sum()))
    return np.array(ranks)


def recalls(scores_i2t, scores_t2i, img2txt, txt2img):
    """The recalls in per cent, {'txt_r1', 'txt_r5', 'txt_r10', 'txt_r_mean', 'img_r1', ..., 'img_r_mean', 'r_mean'}, as the
    original code names them. scores_i2t (m, n), scores_t2i (n, m); img2txt: the texts of each image; txt2img: the image of each
    text."""
    figures = {}
    for name, scores, right in (('txt', scores_i2t, img2txt), ('img', scores_t2i, txt2img)):
        ranks = best_ranks(scores, [right[i] for i in range(len(right))])
        figures |= {f'{name}_r{k}': 100.0 * float((ranks < k).mean()) for k in RECALLS}
        figures[f'{name}_r_mean'] = sum(figures[f'{name}_r{k}'] for k in RECALLS) / len(RECALLS)
    return figures | {'r_mean': (figures['txt_r_mean'] + figures['img_r_mean']) / 2}
