"""Retrieval in two stages, against the plain restatement."""

import numpy as np
import pytest
import torch
from albef_reference import embed, features, layers, linear, vit
from test_albef import build

import dist
from tasks.retrieval import recalls, rerank, similarities
from tasks.two_stage import best_ranks


def pairs():
    torch.manual_seed(4)
    ids = torch.randint(4, 60, (7, 9)).masked_fill(torch.arange(9) >= torch.tensor([9, 3, 5, 4, 9, 2, 6])[:, None], 0)
    return torch.randn(5, 3, 32, 32), ids


@pytest.mark.parametrize('k', [3, 50])
def test_candidates_are_scored_as_in_the_original_code(k):
    head, (pixels, ids) = build('retrieval').eval(), pairs()
    similar = similarities(head, pixels, ids)
    state, mask = head.original_state(), (ids != 0).long()
    tokens = vit(state, pixels)
    texts = layers(state, 'text_encoder.', embed(state, 'text_encoder.', ids), mask, 0, 2)
    expected = features(state, 'vision_proj', tokens) @ features(state, 'text_proj', texts).T
    assert torch.allclose(similar, expected, atol=1e-5)
    fused = [layers(state, 'text_encoder.', texts, mask, 2, 4, [one.expand(7, -1, -1)])[:, 0] for one in tokens[:, None]]
    scores = torch.stack([linear(pooled, state, 'itm_head')[:, 1] for pooled in fused])  # (5, 7)
    to_texts, to_images = rerank(head, similar, k)
    for matrix, candidates, all_scores in ((to_texts, expected, scores), (to_images, expected.T, scores.T)):
        for row, likely, right in zip(matrix, candidates, all_scores, strict=True):
            chosen = likely.topk(min(k, len(likely))).indices
            wanted = torch.full_like(right, -100.0)
            wanted[chosen] = right[chosen]
            assert torch.allclose(row, wanted, atol=1e-4)


def test_batches_and_processes_change_nothing(monkeypatch):
    head, (pixels, ids) = build('retrieval').eval(), pairs()
    whole = similarities(head, pixels, ids)
    expected = rerank(head, whole, 2)
    batched = similarities(head, iter(pixels.split(2)), [{'input_ids': ids[:2, :9]}, {'input_ids': ids[2:4, :5]},
                                                          {'input_ids': ids[4:], 'attention_mask': ids[4:] != 0}])
    assert torch.allclose(batched, whole, atol=1e-5)
    summed = []
    monkeypatch.setattr(dist, 'world_size', lambda: 2)
    monkeypatch.setattr(dist, 'sum_over_ranks', lambda scores: scores)
    for rank in range(2):
        monkeypatch.setattr(dist, 'rank', lambda rank=rank: rank)
        summed.append(rerank(head, batched, 2))
    for one, other, total in zip(*summed, expected, strict=True):
        assert torch.allclose(one + other, total, atol=1e-5)


def test_recalls_by_hand():
    i2t = np.array([[0.9, 0.1, 0.8, 0.0], [0.5, 0.4, 0.3, 0.2]])  # image 0 has texts 0 and 1, image 1 texts 2 and 3
    t2i = np.array([[1.0, 0.0], [0.1, 0.2], [0.0, 1.0], [0.5, 0.5]])
    figures = recalls(i2t, t2i, {0: [0, 1], 1: [2, 3]}, {0: 0, 1: 0, 2: 1, 3: 1})
    assert best_ranks(i2t, [[0, 1], [2, 3]]).tolist() == [0, 2] and best_ranks(t2i, [0, 0, 1, 1]).tolist() == [0, 1, 0, 1]
    assert figures['txt_r1'] == 50 and figures['txt_r5'] == figures['txt_r10'] == 100
    assert figures['img_r1'] == 50 and figures['img_r_mean'] == pytest.approx(250 / 3)
    assert figures['r_mean'] == pytest.approx((250 / 3 + 250 / 3) / 2)
    ties = np.full((2, 12), -100.0)  # beyond the candidates nothing is right
    assert recalls(ties, ties.T, [[0], [1]], [0, 1] * 6)['txt_r10'] == 0
