"""Boxes (x1, y1, x2, y2) in pixels: moved by regressed deltas, overlap, non-maximum suppression (NMS), choice of regions."""

import math

import numpy as np
import torch

CLASS_NMS_THRESHOLD = 0.3
SCORE_THRESHOLD = 0.2  # class score from which a box counts as detected
MAX_LOG_SCALE = math.log(1000 / 16)  # of a proposal's side by its anchor's


def apply_deltas(anchors, deltas):
    """Anchors (n, 4) shifted and scaled by deltas (n, 4), as in Fast R-CNN (Girshick 2015, appendix C)."""
    sizes = anchors[:, 2:] - anchors[:, :2]
    centers = anchors[:, :2] + sizes / 2 + deltas[:, :2] * sizes
    halves = sizes * deltas[:, 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centers - halves, centers + halves], 1)


def clip(boxes, size):
    """Boxes (n, 4) cut to a picture of `size` (height, width)."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height] * 2))


def pairwise_iou(boxes, others):
    """Intersection over union of each of (n, 4) with each of (m, 4): (n, m), numpy. Boxes without area overlap nothing."""
    x1, y1, x2, y2 = boxes.T[:, :, None]  # (n, 1) each
    left, top, right, bottom = others.T  # (m,) each
    width = np.minimum(x2, right) - np.maximum(x1, left)
    height = np.minimum(y2, bottom) - np.maximum(y1, top)
    intersection = width.clip(0) * height.clip(0)
    areas = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)
    return np.divide(intersection, areas - intersection, out=np.zeros_like(intersection), where=intersection > 0)


def nms(boxes, threshold, limit, block=256):
    """Indices of the boxes that NMS keeps, at most `limit`. boxes: (n, 4), numpy, by falling score.

    A kept box suppresses later ones whose IoU with it is over `threshold`. `block` boxes are compared at a time, since the limit
    is usually reached early.
    """
    kept = []
    for start in range(0, len(boxes), block):
        candidates = np.arange(start, min(start + block, len(boxes)))
        candidates = candidates[(pairwise_iou(boxes[candidates], boxes[kept]) <= threshold).all(1)]
        compatible = pairwise_iou(boxes[candidates], boxes[candidates]) <= threshold
        alive = np.ones(len(candidates), bool)
        for position, box in enumerate(candidates):
            if alive[position]:
                kept.append(box)
                alive[position + 1:] &= compatible[position, position + 1:]
        if len(kept) >= limit:
            break
    return np.array(kept[:limit], np.int64)


def max_confidence(boxes, scores):
    """The highest score of each box (n, 4) over the classes whose NMS keeps it, else 0: (n,). scores: (n, c); all numpy."""
    compatible = pairwise_iou(boxes, boxes) <= CLASS_NMS_THRESHOLD
    np.fill_diagonal(compatible, True)
    scores, done = scores.copy(), []
    # Only few classes are the best one of any box, or its next best once NMS has suppressed it there.
    while len(classes := np.setdiff1d(scores.argmax(1), done)):
        scores[:, classes] *= class_nms(compatible, scores[:, classes].T)
        done += classes.tolist()
    return scores.max(1)


def class_nms(compatible, scores):
    """Whether NMS in each class keeps each box, (n, c). compatible: (n, n), which pairs may both be kept; scores: (c, n)."""
    ranked, alive = np.argsort(-scores, 1, kind='stable'), np.ones(scores.shape, bool)
    classes = np.arange(len(scores))
    for box in ranked.T:  # (c,): the next best box of each class
        kept = alive[classes, box].nonzero()[0]
        alive[kept] &= compatible[box[kept]]
    return alive.T


def select_regions(boxes, scores, min_boxes, max_boxes, threshold=SCORE_THRESHOLD):
    """Indices of the boxes that become regions, as in the original's extraction. scores: (n, c) without background; numpy.

    These are the boxes whose confidence is at least `threshold`, in the order of proposals. If they are fewer than min_boxes or
    more than max_boxes, that many boxes of highest confidence are returned instead, by falling confidence.
    """
    confidence = max_confidence(boxes, scores)
    detected = (confidence >= threshold).nonzero()[0]
    if min_boxes <= len(detected) <= max_boxes:
        return detected
    return np.argsort(-confidence, kind='stable')[:min_boxes if len(detected) < min_boxes else max_boxes]
