"""RoI max pooling with Caffe's rounding, in plain PyTorch: each bin is the maximum of four entries of a sparse table."""

from collections.abc import Iterator

import torch

STRIDE = 16  # input pixels per cell of the feature map
BINS = 14  # per side of a pooled region
CHUNK = 32  # regions at once: those of 300 would need gigabytes


def roi_pool(features, boxes, chunk=CHUNK) -> Iterator[torch.Tensor]:
    """The maximum of the feature map in each of 14 x 14 bins of each box; 0 where a bin is empty.

    features: (h, w, c); boxes: (n, 4) in pixels. Yields (up to `chunk` boxes, 14, 14, c), of all boxes in their order.
    """
    h, w, c = features.shape
    (x1, x2, across), (y1, y2, down) = (bin_ranges(boxes[:, axis::2], length) for axis, length in ((0, w), (1, h)))  # (n, 14)
    maxima = sparse_table(features, int(down.max()) + 1, int(across.max()) + 1).reshape(-1, c)
    level = (down[:, :, None] * (int(across.max()) + 1) + across[:, None]) * h * w  # (n, 14, 14): first row of that level
    empty = (y2 <= y1)[:, :, None] | (x2 <= x1)[:, None]
    # Four overlapping rectangles cover a bin; their sides are the largest powers of 2 within its sides.
    rows, columns = ((y1, y2 - (1 << down)), (x1, x2 - (1 << across)))
    corners = [(level + y[:, :, None] * w + x[:, None]).masked_fill(empty, 0) for y in rows for x in columns]
    for start in range(0, len(boxes), chunk):
        part = slice(start, start + chunk)
        pooled = maxima.index_select(0, corners[0][part].flatten())
        for corner in corners[1:]:
            torch.maximum(pooled, maxima.index_select(0, corner[part].flatten()), out=pooled)
        yield pooled.reshape(-1, BINS, BINS, c).masked_fill_(empty[part][..., None], 0)


def bin_ranges(edges, length):
    """The 14 bins of each box along one side: first cell, end, log2 of the largest power of 2 within, (n, 14) each.

    edges: (n, 2) in pixels; length: of the feature map.
    """
    edges = edges / STRIDE
    truncated = edges.trunc()
    first, last = (truncated + ((edges - truncated).abs() >= 0.5) * edges.sign()).unbind(1)  # C's round, away from zero
    size = (last - first + 1).clamp(min=1)[:, None] / BINS
    bins = torch.arange(BINS, device=edges.device)
    start = ((bins * size).floor() + first[:, None]).clamp(0, length).long()
    end = (((bins + 1) * size).ceil() + first[:, None]).clamp(0, length).long()
    return start, end, (torch.frexp((end - start).clamp(min=1).float()).exponent - 1).long()


def sparse_table(features, down, across):
    """(down, across, h, w, c): the maximum of 2**i rows and 2**j columns from each cell of (h, w, c) on, as far as they reach."""
    tables = features.new_empty(down, across, *features.shape)
    for i in range(down):
        for j in range(across):
            table = tables[i, j]
            if i == j == 0:
                table.copy_(features)
                continue
            half, axis, step = (tables[i, j - 1], 1, 1 << j - 1) if j else (tables[i - 1, j], 0, 1 << i - 1)
            table.copy_(half)
            inside = half.shape[axis] - step
            table.narrow(axis, 0, inside).copy_(torch.maximum(half.narrow(axis, 0, inside), half.narrow(axis, step, inside)))
    return tables
