"""VL-BERT's convolutional branch: from pixels and boxes to features of regions, trained with the rest of the model.

ResNet C4, RoIAlign and the last stage without stride, as in the original code. Its ResNet is that of the detector.

Shapes: m images of h x w pixels; o regions of an image, r regions of all images; f = 32 * resnet_width.
"""

import itertools
import re

import torch
import torch.nn.functional as F
from torch import nn

from bert.layers import LayerStack
from detector.resnet import ConvNorm, FrozenBatchNorm, ResNetC4, stage, torchvision_name

STRIDE = 16  # pixels per cell of the feature map
BINS = 14  # per side of a region
CHUNK = 64  # regions at once: those of a batch would need gigabytes
PIXEL_DEVIATION = 64  # about that of pixels, by which a random ResNet divides
EDGE = 1e-3  # pixels by which the rounding of scaled boxes may miss a whole number
PREFIX = 'image_feature_extractor.'
LAST_STAGE = ('roi_head_feature_extractor', 'head.0')  # the two names of the last stage in the original code


def roi_align(maps, boxes, size=BINS, scale=1 / STRIDE, images=None):
    """Features of regions by bilinear interpolation at the middle of each of size x size bins.

    The sides of a region are at least one cell; samples further than one cell outside of the map are 0, others are taken from
    its border. Edges are not shifted by half a pixel ("not aligned").

    maps (m, c, h, w). boxes (m, o, 4): x1, y1, x2, y2 in pixels, of which `scale` makes cells -> (m, o, c, size, size). With
    images (r,) int64, the image of each region, boxes (r, 4) -> (r, c, size, size).
    """
    if images is None:
        images = torch.arange(len(maps), device=boxes.device).repeat_interleave(boxes.shape[1])
        return roi_align(maps, boxes.flatten(0, 1), size, scale, images).unflatten(0, boxes.shape[:2])
    _, channels, h, w = maps.shape
    (columns, across), (rows, down) = (samples(boxes[:, axis::2] * scale, size, side) for axis, side in ((0, w), (1, h)))
    rows = rows + images[:, None, None] * h
    cells = rows[:, :, None, :, None] * w + columns[:, None, :, None, :]  # (r, size, size, 2, 2)
    weights = down[:, :, None, :, None] * across[:, None, :, None, :]
    table = maps.permute(0, 2, 3, 1).reshape(-1, channels)
    table = table.float() if table.dtype in (torch.bfloat16, torch.float16) else table
    # The weighted sum of four rows of the table, without a copy of each.
    bins = F.embedding_bag(cells.view(-1, 4), table, mode='sum', per_sample_weights=weights.view(-1, 4).to(table.dtype))
    return bins.view(len(boxes), size, size, channels).permute(0, 3, 1, 2)


def samples(edges, size, length):
    """The two cells that each sample of a region lies between, and their weights, along one side: (r, size, 2) each.

    edges (r, 2): first and last of the region, in cells; length: of the map.
    """
    first, last = edges.unbind(1)
    bins = torch.arange(size, device=edges.device) + 0.5
    places = first[:, None] + bins * ((last - first).clamp(min=1) / size)[:, None]  # (r, size)
    inside = (places >= -1) & (places <= length)
    places = places.clamp(0, length - 1)
    low = places.floor()
    cells = torch.stack([low, (low + 1).clamp(max=length - 1)], -1).long()
    return cells, torch.stack([1 - (places - low), places - low], -1) * inside[..., None]


def erase(pixels, boxes, regions):
    """Pixels (m, 3, h, w) with 0 in the boxes (m, o, 4) of some regions (m, o) bool, from the pixel of the first corner to that
    of the last, both included."""
    first, last = (boxes + EDGE).floor().chunk(2, -1)  # (m, o, 2): x, y
    covered = []
    for axis, side in ((1, pixels.shape[2]), (0, pixels.shape[3])):
        places = torch.arange(side, device=boxes.device)
        covered.append(((places >= first[..., axis, None]) & (places <= last[..., axis, None])).float())  # (m, o, side)
    rows, columns = covered
    hidden = (rows * regions[..., None]).mT @ columns > 0  # (m, h, w)
    return pixels.masked_fill(hidden[:, None], 0)


class PixelFeatures(LayerStack):
    """Features of regions, (f,) each, computed from pixels. With `gradient_checkpointing` only the input of each block, and of
    the last stage only the boxes, are kept for the backward pass."""

    def __init__(self, config):
        super().__init__()
        width, blocks = config.resnet_width, config.resnet_blocks
        self.backbone = ResNetC4(width, blocks[:3], caffe=False)
        self.roi_head_feature_extractor = stage(16 * width, 8 * width, blocks[3], stride=1, dilation=2)
        self.head = nn.Sequential(self.roi_head_feature_extractor)  # its second name
        self.initialise()
        if config.resnet_frozen:
            for module in (self.backbone.stem, self.backbone.res2):
                module.requires_grad_(False)
        else:
            for module in self.modules():
                if isinstance(module, FrozenBatchNorm):
                    module.unfreeze()

    @torch.no_grad()
    def initialise(self):
        """Random weights with which features are of the size of a trained network's, although no norm looks at its input."""
        blocks = [*itertools.chain(*self.stages(), self.roi_head_feature_extractor)]
        for module in self.modules():
            if isinstance(module, ConvNorm):
                nn.init.kaiming_normal_(module.weight, nonlinearity='relu')
        self.backbone.stem.conv1.norm.weight.fill_(1 / PIXEL_DEVIATION)
        for block in blocks:  # their sum keeps its size
            block.conv3.norm.weight.fill_(len(blocks) ** -0.5)

    def stages(self):
        return self.backbone.res2, self.backbone.res3, self.backbone.res4

    def forward(self, pixels, boxes, mask=None, masks=None, erased=None, rows=None):
        """
        pixels (m, 3, h, w) float32: blue, green, red minus their means, 0 at padding; boxes (m, o, 4) in pixels; mask (m, o),
        None: no padding; masks (m, o, 14, 14): by which a region's map is multiplied, None: 1; erased (m, o): regions whose
        pixels become 0 for all regions, None: none; rows (r,): places in mask, flattened, of what is no padding, None: they are
        computed, which waits for the GPU.

        Returns (m, o, f), 0 at padding.
        """
        (m, o), mask = boxes.shape[:2], None if mask is None else mask != 0
        if erased is not None:
            pixels = erase(pixels, boxes, erased != 0 if mask is None else (erased != 0) & mask)
        maps = self.backbone.stem(pixels)
        for block in itertools.chain(*self.stages()):
            maps = self.run(block, maps)
        if rows is None:
            rows = torch.arange(m * o, device=boxes.device) if mask is None else mask.flatten().nonzero()[:, 0]
        boxes, masks = boxes.flatten(0, 1)[rows], None if masks is None else masks.flatten(0, 1)[rows]
        features = torch.cat([
            self.run(self.region_features, maps, boxes[part], rows[part] // o, None if masks is None else masks[part])
            for part in (slice(start, start + CHUNK) for start in range(0, max(len(rows), 1), CHUNK))])
        if mask is None:
            return features.unflatten(0, (m, o))
        return features.new_zeros(m * o, features.shape[1]).index_copy(0, rows, features).unflatten(0, (m, o))

    def region_features(self, maps, boxes, images, masks=None):
        """The features (r, f) of regions with boxes (r, 4) of images (r,), masks (r, 14, 14)."""
        states = self.roi_head_feature_extractor(roi_align(maps, boxes, images=images))
        if masks is None:
            return states.mean((2, 3))
        return torch.bmm(states.flatten(2), masks.flatten(1)[..., None].to(states.dtype))[..., 0] / BINS ** 2


def original_name(name):
    """The name that a parameter below PREFIX + 'cnn.' has in the original code; other names stay."""
    cnn = f'{PREFIX}cnn.'
    return PREFIX + torchvision_name(name.removeprefix(cnn)) if name.startswith(cnn) else name


def resnet_name(name):
    """The name of a parameter of PixelFeatures in torchvision's ResNet."""
    name = torchvision_name(name).removeprefix('backbone.')
    return re.sub(f'^({"|".join(map(re.escape, LAST_STAGE))})', 'layer4', name)
