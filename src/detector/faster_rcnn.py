"""The detector of bottom-up attention (Anderson et al., CVPR 2018): Faster R-CNN on ResNet-101 C4, in plain PyTorch.

A photograph goes in, its regions come out: boxes, a feature each, object class and attribute. Names of parameters are those of
the published PyTorch files, so that these load as they are (detector.weights). It detects; it is not trained here.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from regions import tsv
from regions.tsv import ImageRegions, RegionError

MEANS = (102.9801, 115.9465, 122.7717)  # of blue, green, red, as in Caffe
STRIDE, POOLED = 16, 14  # pixels of the network's input a cell of the feature map; cells a side of a pooled region
SIZES, RATIOS = (64, 128, 256, 512), (0.5, 1, 2)  # of anchors: root of the area in pixels, height by width
BEFORE_NMS, PROPOSALS, RPN_OVERLAP = 6000, 300, 0.7
CLASS_OVERLAP, SURE = 0.3, 0.2  # NMS of each class; score from which a region counts as found
LARGEST = math.log(1000 / 16)  # of the logarithm by which a proposal's side may grow
CHUNK = 32  # regions that go through res5 at once: 300 would need gigabytes
ANCHORS = 'proposal_generator.anchor_generator.cell_anchors.0'


@dataclasses.dataclass(frozen=True)
class FasterRCNNConfig:
    """Sizes of the detector; the defaults are the published one's. The rest follows from `width`: feature 32 times as much,
    class embedding an eighth and attribute layer a quarter of the feature."""

    num_objects: int = 1600  # without background
    num_attributes: int = 400
    width: int = 64  # channels of the stem
    blocks: tuple = (3, 4, 23, 3)  # of res2, res3, res4, res5
    rpn_width: int = 512
    short_side: int = 600  # pixels a photograph is resized to, unless its longer side would be more than long_side
    long_side: int = 1000

    @property
    def feature(self) -> int:
        return 32 * self.width


@dataclasses.dataclass(frozen=True)
class Convention:
    """How the code that trained or converted the weights counts pixels.

    Caffe: a box from pixel 0 to pixel 15 is 16 wide (`one`), anchors are rounded, centred in their cell and ordered by ratio,
    proposals narrower than `smallest` pixels of the photograph are dropped, both sides of a photograph are stretched by the same
    scale. detectron2: such a box is 15 wide, anchors are exact, centred on the cell's corner and ordered by size, a photograph is
    stretched to whole pixels.
    """

    name: str
    one: int
    smallest: int

    def anchors(self) -> torch.Tensor:
        """(12, 4) float32: x1, y1, x2, y2 around the first cell of the feature map, in the order of the network's channels."""
        if self.name == 'detectron2':
            sides = [(size / ratio ** 0.5, size * ratio ** 0.5) for size in SIZES for ratio in RATIOS]
            return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])
        widths = [round((STRIDE * STRIDE / ratio) ** 0.5) for ratio in RATIOS]
        sides = [(w * size // STRIDE, round(w * ratio) * size // STRIDE)
                 for w, ratio in zip(widths, RATIOS, strict=True) for size in SIZES]
        middle = (STRIDE - 1) / 2
        return torch.tensor([(middle - (w - 1) / 2, middle - (h - 1) / 2, middle + (w - 1) / 2, middle + (h - 1) / 2)
                             for w, h in sides])

    def resized(self, height, width, config):
        """Size (h, w) of a resized photograph, and by what (y, x) its places are multiplied."""
        scale = config.short_side / min(height, width)
        if round(scale * max(height, width)) > config.long_side:
            scale = config.long_side / max(height, width)
        if self.name == 'caffe':  # with the round of C++ and Python, halves to the even number
            return tuple(max(1, round(side * scale)) for side in (height, width)), (scale, scale)
        size = tuple(max(1, int(side * scale + 0.5)) for side in (height, width))
        return size, (size[0] / height, size[1] / width)


CONVENTIONS = {one.name: one for one in (Convention('detectron2', 0, 0), Convention('caffe', 1, 16))}


# ---------------------------------------------------------------------------- the network


class FrozenNorm(nn.Module):
    """Batch norm with the statistics of training."""

    def __init__(self, channels):
        super().__init__()
        for name, value in (('weight', 1.), ('bias', 0.), ('running_mean', 0.), ('running_var', 1.)):
            self.register_buffer(name, torch.full((channels,), value))

    def factors(self):
        """What it multiplies with and then adds, (c,) each."""
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x):  # (b, c, h, w)
        scale, shift = self.factors()
        return x * scale[:, None, None] + shift[:, None, None]


class Conv(nn.Conv2d):
    """A convolution that keeps the size but for its stride, and the frozen norm after it."""

    def __init__(self, inputs, outputs, kernel, stride=1, dilation=1):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 * dilation, dilation, bias=False)
        self.norm = FrozenNorm(outputs)

    def forward(self, x):
        return self.norm(super().forward(x))

    def fold(self):
        """Makes the norm a part of weight and bias. The names of parameters are the files' no more."""
        scale, shift = self.norm.factors()
        self.weight = nn.Parameter(self.weight.detach() * scale[:, None, None, None], requires_grad=False)
        self.bias, self.norm = nn.Parameter(shift, requires_grad=False), nn.Identity()


class Stem(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = Conv(3, width, 7, stride=2)

    def forward(self, x):
        return functional.max_pool2d(self.conv1(x).relu_(), 3, 2, ceil_mode=True)  # without padding, as in Caffe


class Block(nn.Module):
    """A bottleneck of ResNet with its stride on the 1x1 convolutions, as in Caffe."""

    def __init__(self, inputs, inner, stride=1, dilation=1):
        super().__init__()
        self.shortcut = Conv(inputs, 4 * inner, 1, stride) if inputs != 4 * inner else nn.Identity()
        self.conv1 = Conv(inputs, inner, 1, stride)
        self.conv2 = Conv(inner, inner, 3, dilation=dilation)
        self.conv3 = Conv(inner, 4 * inner, 1)

    def forward(self, x):
        return self.conv3(self.conv2(self.conv1(x).relu_()).relu_()).add_(self.shortcut(x)).relu_()


def stage(inputs, inner, blocks, stride, dilation=1):
    first = Block(inputs, inner, stride, dilation)
    return nn.Sequential(first, *(Block(4 * inner, inner, dilation=dilation) for _ in range(blocks - 1)))


class Backbone(nn.Sequential):
    """(b, 3, h, w) -> (b, 16 width, about h / 16, about w / 16)"""

    def __init__(self, config):
        super().__init__()
        width = config.width
        self.stem = Stem(width)
        self.res2 = stage(width, width, config.blocks[0], 1)
        self.res3 = stage(4 * width, 2 * width, config.blocks[1], 2)
        self.res4 = stage(8 * width, 4 * width, config.blocks[2], 2)


class RPNHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        anchors = len(SIZES) * len(RATIOS)
        self.conv = nn.Conv2d(16 * config.width, config.rpn_width, 3, padding=1)
        self.objectness_logits = nn.Conv2d(config.rpn_width, anchors, 1)
        self.anchor_deltas = nn.Conv2d(config.rpn_width, 4 * anchors, 1)

    def forward(self, x):
        """(1, c, h, w) -> objectness (h * w * a,), deltas (h * w * a, 4), float32."""
        # Half precision has too few digits to rank thousands of scores.
        hidden = self.conv(x).relu_().float()
        logits, deltas = self.objectness_logits(hidden), self.anchor_deltas(hidden)
        return logits.permute(0, 2, 3, 1).flatten(), deltas.permute(0, 2, 3, 1).reshape(-1, 4)


class ProposalGenerator(nn.Module):
    def __init__(self, config, convention):
        super().__init__()
        self.convention = convention
        self.rpn_head = RPNHead(config)
        self.anchor_generator = nn.Module()
        self.anchor_generator.cell_anchors = nn.Module()
        self.anchor_generator.cell_anchors.register_buffer('0', convention.anchors())

    def forward(self, features, size, scale):
        """Boxes (n, 4), n at most 300, the likeliest to hold an object first, within the photograph.

        features: (1, c, h, w); size: the resized photograph's height and width; scale: resized by original, of heights.
        """
        one = self.convention.one
        logits, deltas = self.rpn_head(features)
        boxes = clipped(moved(self.grid(features.shape[2:]), deltas, one), size, one)
        sides = boxes[:, 2:] - boxes[:, :2] + one
        large = ((sides >= self.convention.smallest * scale) & (sides > 0)).all(1)
        boxes, logits = boxes[large], logits[large]
        boxes = boxes[logits.argsort(dim=0, descending=True, stable=True)[:BEFORE_NMS]]
        return boxes[torch.from_numpy(nms(boxes.cpu().numpy(), RPN_OVERLAP, PROPOSALS, one)).to(boxes.device)]

    def grid(self, cells):
        """The anchors of each cell, (h * w * a, 4)."""
        anchors = getattr(self.anchor_generator.cell_anchors, '0')
        y, x = (torch.arange(length, device=anchors.device) * STRIDE for length in cells)
        corners = torch.stack(torch.meshgrid(x, y, indexing='xy') * 2, -1)  # (h, w, 4): x, y, x, y
        return (corners[:, :, None] + anchors).reshape(-1, 4)


class BoxPredictor(nn.Module):
    def __init__(self, config):
        super().__init__()
        f, objects = config.feature, config.num_objects
        self.cls_score = nn.Linear(f, objects + 1)
        self.bbox_pred = nn.Linear(f, 4 * objects)  # in every file, though the extraction uses the boxes before it
        self.cls_embedding = nn.Embedding(objects + 1, f // 8)
        self.fc_attr = nn.Linear(f + f // 8, f // 4)
        self.attr_score = nn.Linear(f // 4, config.num_attributes + 1)

    def forward(self, features):
        """(n, f) -> probabilities of objects (n, objects + 1) and of attributes (n, attributes + 1); the last is background."""
        scores = self.cls_score(features)
        known = torch.cat([features, self.cls_embedding(scores.argmax(1))], 1)
        return scores.softmax(1), self.attr_score(self.fc_attr(known).relu()).softmax(1)


class RoIHeads(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.res5 = stage(16 * config.width, 8 * config.width, config.blocks[3], stride=1, dilation=2)
        self.box_predictor = BoxPredictor(config)

    def forward(self, features, boxes):
        """(1, c, h, w), (n, 4) -> the regions' features (n, f), float32."""
        return torch.cat([self.res5(regions.permute(0, 3, 1, 2)).float().mean((2, 3))
                          for regions in roi_pool(features[0].permute(1, 2, 0), boxes)])


class FasterRCNN(nn.Module):
    """The whole network. `convention` is that of the weights."""

    def __init__(self, config=FasterRCNNConfig(), convention=CONVENTIONS['detectron2']):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.proposal_generator = ProposalGenerator(config, convention)
        self.roi_heads = RoIHeads(config)

    def forward(self, pixels, size, scale):
        """What `choose` chooses from: boxes (n, 4) in pixels of the input, features (n, f), probabilities of objects and
        attributes, background last; n may be 0.

        pixels: (1, 3, h, w) blue, green, red less their means, of the backbone's dtype; size, scale: as in ProposalGenerator.
        """
        features = self.backbone(pixels)
        boxes = self.proposal_generator(features, size, scale)
        if not len(boxes):
            return boxes, *(boxes.new_zeros(0, n) for n in
                            (self.config.feature, self.config.num_objects + 1, self.config.num_attributes + 1))
        found = self.roi_heads(features, boxes)
        return boxes, found, *self.roi_heads.box_predictor(found)

    def fold(self):
        """Makes each frozen norm a part of the convolution before it: the same function, computed faster."""
        for module in self.modules():
            if isinstance(module, Conv):
                module.fold()
        return self


# ---------------------------------------------------------------------------- boxes


def moved(anchors, deltas, one):
    """Anchors (n, 4) shifted and stretched by deltas (n, 4), as in Fast R-CNN (Girshick 2015, appendix C)."""
    sides = anchors[:, 2:] - anchors[:, :2] + one
    middles = anchors[:, :2] + sides / 2 + deltas[:, :2] * sides
    halves = sides * deltas[:, 2:].clamp(max=LARGEST).exp() / 2
    return torch.cat([middles - halves, middles + halves], 1)


def clipped(boxes, size, one):
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height] * 2) - one)


def overlaps(boxes, others, one):
    """Intersection over union of each of (n, 4) with each of (m, 4): (n, m), numpy. Boxes without area overlap nothing."""
    x1, y1, x2, y2 = boxes.T[:, :, None]  # (n, 1) each
    left, top, right, bottom = others.T  # (m,) each
    width, height = (np.minimum(end, ends) - np.maximum(start, starts) + one
                     for start, end, starts, ends in ((x1, x2, left, right), (y1, y2, top, bottom)))
    shared = width.clip(0) * height.clip(0)
    areas = (x2 - x1 + one) * (y2 - y1 + one) + (right - left + one) * (bottom - top + one)
    return np.divide(shared, areas - shared, out=np.zeros_like(shared), where=shared > 0)


def nms(boxes, threshold, most, one, block=256):
    """Which of (n, 4) boxes, numpy, the best first, are kept when each takes out the later ones that overlap it by more than
    `threshold`: the indices of at most `most`. `block` boxes are compared at a time, since mostly few are looked at."""
    kept = []
    for first in range(0, len(boxes), block):
        part = np.arange(first, min(first + block, len(boxes)))
        part = part[(overlaps(boxes[part], boxes[kept], one) <= threshold).all(1)]
        apart = overlaps(boxes[part], boxes[part], one) <= threshold
        alive = np.ones(len(part), bool)
        for place, box in enumerate(part):
            if alive[place]:
                kept.append(box)
                alive[place + 1:] &= apart[place, place + 1:]
        if len(kept) >= most:
            break
    return np.array(kept[:most], np.int64)


def best_kept(boxes, scores, one):
    """(n,): a box's highest score of the classes in whose NMS it is kept, else 0. scores: (n, c); all numpy."""
    apart = overlaps(boxes, boxes, one) <= CLASS_OVERLAP
    np.fill_diagonal(apart, True)
    scores, done = scores.copy(), []
    # Few classes are any box's best one, or its next best where NMS has taken it out of that.
    while len(classes := np.setdiff1d(scores.argmax(1), done)):
        scores[:, classes] *= kept_of_each(apart, scores[:, classes].T)
        done += classes.tolist()
    return scores.max(1)


def kept_of_each(apart, scores):
    """Whether a box is kept in the NMS of each class, (n, c). apart: (n, n), which may both be kept; scores: (c, n)."""
    ranked, alive = np.argsort(-scores, 1, kind='stable'), np.ones(scores.shape, bool)
    classes = np.arange(len(scores))
    for box in ranked.T:  # (c,): of every class its next best
        live = alive[classes, box].nonzero()[0]
        alive[live] &= apart[box[live]]
    return alive.T


def choose(boxes, scores, least, most, one):
    """Which boxes are regions, as in the original's extraction: those found for sure in the order of proposals, but if they are
    fewer than `least` or more than `most`, that many of the best, the best first. scores: (n, c) without background; numpy."""
    best = best_kept(boxes, scores, one)
    sure = (best >= SURE).nonzero()[0]
    if least <= len(sure) <= most:
        return sure
    return np.argsort(-best, kind='stable')[:least if len(sure) < least else most]


def roi_pool(features, boxes, chunk=CHUNK) -> Iterator[torch.Tensor]:
    """The maximum of the feature map in each of 14 x 14 bins of each box, with Caffe's rounding; 0 where a bin is empty.

    features: (h, w, c); boxes: (n, 4) in pixels. Yields (up to `chunk` boxes, 14, 14, c), of all boxes in their order.
    """
    h, w, c = features.shape
    (x1, x2, across), (y1, y2, down) = (spans(boxes[:, axis::2], length) for axis, length in ((0, w), (1, h)))  # (n, 14)
    maxima = rectangle_maxima(features, int(down.max()) + 1, int(across.max()) + 1).reshape(-1, c)
    start = (down[:, :, None] * (int(across.max()) + 1) + across[:, None]) * h * w  # (n, 14, 14): of the table of its size
    empty = (y2 <= y1)[:, :, None] | (x2 <= x1)[:, None]
    # A bin is covered by four rectangles, of sides that are the largest powers of 2 within its own.
    rows, columns = ((y1, y2 - (1 << down)), (x1, x2 - (1 << across)))
    corners = [(start + y[:, :, None] * w + x[:, None]).masked_fill(empty, 0) for y in rows for x in columns]
    for first in range(0, len(boxes), chunk):
        part = slice(first, first + chunk)
        pooled = maxima.index_select(0, corners[0][part].flatten())
        for corner in corners[1:]:
            torch.maximum(pooled, maxima.index_select(0, corner[part].flatten()), out=pooled)
        yield pooled.reshape(-1, POOLED, POOLED, c).masked_fill_(empty[part][..., None], 0)


def spans(edges, length):
    """First cell, end, and exponent of the largest power of 2 within, of the 14 bins of each box along one side, (n, 14) each.

    edges: (n, 2) in pixels; length: of the feature map.
    """
    edges = edges / STRIDE
    whole = edges.trunc()
    first, last = (whole + ((edges - whole).abs() >= 0.5) * edges.sign()).unbind(1)  # C's round, away from zero
    size = (last - first + 1).clamp(min=1)[:, None] / POOLED
    bins = torch.arange(POOLED, device=edges.device)
    start = ((bins * size).floor() + first[:, None]).clamp(0, length).long()
    end = (((bins + 1) * size).ceil() + first[:, None]).clamp(0, length).long()
    return start, end, (torch.frexp((end - start).clamp(min=1).float()).exponent - 1).long()


def rectangle_maxima(features, down, across):
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


# ---------------------------------------------------------------------------- the detector


class Detector:
    """The network with its weights, ready to be used: `detector.weights.load(path).regions(pictures, ids)`.

    provenance: what made the regions, for `provenance` of a store or the file beside a TSV; anything json can hold. report: what
    loading the weights had to tell.
    """

    def __init__(self, net, weights, device='cpu', bf16=False, report=''):
        """weights: what provenance tells of them. The net is folded, moved and cast."""
        self.device, self.config, self.report = torch.device(device), net.config, report
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        convention = net.proposal_generator.convention
        self.provenance = {
            'detector': 'Faster R-CNN of bottom-up attention (detector.faster_rcnn)', **weights,
            'pixels counted as in': convention.name, 'anchors': anchors_of(net), 'precision': str(self.dtype)[len('torch.'):],
            'sizes': dataclasses.asdict(net.config), 'proposals': PROPOSALS, 'class NMS': CLASS_OVERLAP, 'threshold': SURE}
        self.net = net.eval().requires_grad_(False).fold().to(self.device, memory_format=torch.channels_last)
        for part in (net.backbone, net.proposal_generator.rpn_head.conv, net.roi_heads.res5):
            part.to(self.dtype)

    @classmethod
    def random(cls, seed, device='cpu', bf16=False, config=FasterRCNNConfig()):
        """The detector with random weights, to measure it by."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            net = FasterRCNN(config)
        return cls(net, {'weights': f'random, of seed {seed}'}, device, bf16)

    def regions(self, pictures, ids, min_boxes=36, max_boxes=36) -> list[ImageRegions]:
        """The regions of each picture: at least min_boxes, unless there are fewer proposals, and at most max_boxes.

        pictures: uint8 arrays (h, w, 3), red, green, blue, of any sizes; ids: a name for each. One picture at a time goes through
        the network: the 300 regions of one keep it busy, and what comes out does not depend on the others. Raises RegionError
        that names the picture.
        """
        if not 1 <= min_boxes <= max_boxes <= PROPOSALS:
            raise RegionError(f'expected 1 <= min_boxes <= max_boxes <= {PROPOSALS}, found {min_boxes} and {max_boxes}')
        if len(pictures) != len(ids):
            raise RegionError(f'expected an id for each picture, found {len(ids)} ids for {len(pictures)} pictures')
        return [self.one_picture(picture, img_id, min_boxes, max_boxes)
                for picture, img_id in zip(pictures, ids, strict=True)]

    @torch.inference_mode()
    def one_picture(self, picture, img_id, least, most) -> ImageRegions:
        check_picture(picture, img_id)
        height, width = picture.shape[:2]
        pixels, size, scales = network_input(picture, self.config, self.net.proposal_generator.convention, self.device)
        found = self.net(pixels.to(self.dtype), size, scales[0])
        boxes, features, objects, attributes = (part.cpu().numpy() for part in found)
        if not len(boxes):
            raise RegionError(f'image {img_id}: expected regions, found no box in its {width} x {height} pixels that is large '
                              'enough; leave it out, or give a larger one')
        boxes /= np.float32(scales[::-1] * 2)  # before the choice: a pixel of Caffe's is one of the photograph there
        chosen = choose(boxes, objects[:, :-1], least, most, self.net.proposal_generator.convention.one)
        named = [column for p in (objects[chosen, :-1], attributes[chosen, :-1]) for column in (p.argmax(1), p.max(1))]
        try:
            return tsv.check(ImageRegions(img_id, height, width, *named, boxes[chosen], features[chosen]), self.config.feature)
        except RegionError as error:
            raise RegionError(f'image {img_id}: {error}; of the detector itself: are its weights damaged?') from None


def check_picture(picture, img_id):
    """Raises RegionError that names the picture if it is not what `regions` takes."""
    if (not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3
            or not picture.size):
        found = f'{picture.dtype} {picture.shape}' if isinstance(picture, np.ndarray) else type(picture).__name__
        raise RegionError(f'image {img_id}: expected an array of uint8 (height, width, 3), red, green, blue, found {found}')


def network_input(picture, config, convention, device='cpu'):
    """A picture (height, width, 3) as (1, 3, h, w) float32, its size (h, w) in it, and by what its y and x were multiplied.

    As in Caffe: resized without smoothing, blue first, less the means. A picture of a few pixels' height or width is padded, for
    the strides of the network.
    """
    size, scales = convention.resized(*picture.shape[:2], config)
    (y, below, v), (x, right, u) = (neighbours(*of_side, device) for of_side in zip(picture.shape[:2], size, scales, strict=True))
    picture, rows = torch.from_numpy(np.array(picture, order='C')).to(device), []
    for row in (y, below):  # only the pixels that are needed become floats: the picture may be large
        left, other = (picture[row[:, None], column].float() for column in (x, right))
        rows.append(left + (other - left) * u[:, None])
    resized = (rows[0] + (rows[1] - rows[0]) * v[:, None, None]).flip(-1) - torch.tensor(MEANS, device=device)
    pixels = resized.permute(2, 0, 1)[None]  # channels last in memory
    padding = [max(0, STRIDE - side) for side in size]
    return functional.pad(pixels, (0, padding[1], 0, padding[0])), size, scales


def neighbours(old, new, scale, device):
    """For each of `new` pixels along a side the two of `old` that it lies between, and how near the second, (new,) each."""
    place = ((torch.arange(new, dtype=torch.float64, device=device) + 0.5) / scale - 0.5).clamp(0, old - 1)
    first = place.long()
    return first, (first + 1).clamp(max=old - 1), (place - first).float()


def anchors_of(net):
    """Whose anchors a net has: 'detectron2', 'caffe' or 'their own'."""
    anchors = getattr(net.proposal_generator.anchor_generator.cell_anchors, '0').cpu()
    return next((one.name for one in CONVENTIONS.values() if torch.allclose(anchors, one.anchors(), atol=0.01)), 'their own')
