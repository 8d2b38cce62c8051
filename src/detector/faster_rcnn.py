"""The detector of bottom-up attention (Anderson et al., CVPR 2018): Faster R-CNN on ResNet-101 C4, in plain PyTorch.

It turns a photograph into regions: boxes, a feature per box, object class and attribute. Parameter names are those of the
published PyTorch files (detector.weights). Pixels are counted as in detectron2, for which these files were converted: a box from
0 to 15 is 15 wide, anchors are centred on the corner of their cell. Inference only.
"""

import dataclasses

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from detector.boxes import CLASS_NMS_THRESHOLD, SCORE_THRESHOLD, apply_deltas, clip, nms, select_regions
from detector.given_boxes import checked_boxes
from detector.resnet import ConvNorm, ResNetC4, stage
from detector.roi_pool import STRIDE, roi_pool
from regions import tsv
from regions.tsv import ImageRegions, RegionError

PIXEL_MEANS = (102.9801, 115.9465, 122.7717)  # of blue, green, red, as in Caffe
ANCHOR_SIZES, ANCHOR_RATIOS = (64, 128, 256, 512), (0.5, 1, 2)  # square root of the area in pixels; height by width
PRE_NMS_TOPK, PROPOSALS, RPN_NMS_THRESHOLD = 6000, 300, 0.7
ANCHORS = 'proposal_generator.anchor_generator.cell_anchors.0'  # name of the buffer


@dataclasses.dataclass(frozen=True)
class FasterRCNNConfig:
    """Sizes of the detector; the defaults are those of all published weights.

    The feature has 32 * width numbers, the class embedding an eighth of them, the attribute layer a quarter.
    """

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

    def resized(self, height, width):
        """Height and width in pixels of a resized photograph."""
        scale = self.short_side / min(height, width)
        if round(scale * max(height, width)) > self.long_side:
            scale = self.long_side / max(height, width)
        return tuple(max(1, int(side * scale + 0.5)) for side in (height, width))


# ---------------------------------------------------------------------------- the network


def default_anchors():
    """(12, 4) float32: x1, y1, x2, y2 around the first cell of the feature map, in the order of the network's channels."""
    sides = [(size / ratio ** 0.5, size * ratio ** 0.5) for size in ANCHOR_SIZES for ratio in ANCHOR_RATIOS]
    return torch.tensor([(-w / 2, -h / 2, w / 2, h / 2) for w, h in sides])


class RPNHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        anchors = len(ANCHOR_SIZES) * len(ANCHOR_RATIOS)
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
    def __init__(self, config):
        super().__init__()
        self.rpn_head = RPNHead(config)
        self.anchor_generator = nn.Module()
        self.anchor_generator.cell_anchors = nn.Module()
        self.anchor_generator.cell_anchors.register_buffer('0', default_anchors())

    def forward(self, features, size):
        """Proposals (n, 4) within the photograph, n at most 300, by falling objectness.

        features: (1, c, h, w); size: height and width of the resized photograph.
        """
        logits, deltas = self.rpn_head(features)
        boxes = clip(apply_deltas(self.anchor_grid(features.shape[2:]), deltas), size)
        nonempty = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, logits = boxes[nonempty], logits[nonempty]
        boxes = boxes[logits.argsort(dim=0, descending=True, stable=True)[:PRE_NMS_TOPK]]
        return boxes[torch.from_numpy(nms(boxes.cpu().numpy(), RPN_NMS_THRESHOLD, PROPOSALS)).to(boxes.device)]

    @property
    def anchors(self):
        return getattr(self.anchor_generator.cell_anchors, '0')

    def anchor_grid(self, cells):
        """The anchors of each cell of a feature map, (h * w * a, 4). cells: (h, w)."""
        y, x = (torch.arange(length, device=self.anchors.device) * STRIDE for length in cells)
        corners = torch.stack(torch.meshgrid(x, y, indexing='xy') * 2, -1)  # (h, w, 4): x, y, x, y
        return (corners[:, :, None] + self.anchors).reshape(-1, 4)


class BoxPredictor(nn.Module):
    def __init__(self, config):
        super().__init__()
        f, objects = config.feature, config.num_objects
        self.cls_score = nn.Linear(f, objects + 1)
        self.bbox_pred = nn.Linear(f, 4 * objects)  # in every file, though the extraction uses the proposals' own boxes
        self.cls_embedding = nn.Embedding(objects + 1, f // 8)
        self.fc_attr = nn.Linear(f + f // 8, f // 4)
        self.attr_score = nn.Linear(f // 4, config.num_attributes + 1)

    def forward(self, features):
        """(n, f) -> probabilities of objects (n, objects + 1) and of attributes (n, attributes + 1); the last is background."""
        logits = self.cls_score(features)
        with_class = torch.cat([features, self.cls_embedding(logits.argmax(1))], 1)
        return logits.softmax(1), self.attr_score(self.fc_attr(with_class).relu()).softmax(1)


class RoIHeads(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.res5 = stage(16 * config.width, 8 * config.width, config.blocks[3], stride=1, dilation=2)
        self.box_predictor = BoxPredictor(config)

    def forward(self, features, boxes):
        """(1, c, h, w), (n, 4) -> region features (n, f), float32."""
        return torch.cat([self.res5(regions.permute(0, 3, 1, 2)).float().mean((2, 3))
                          for regions in roi_pool(features[0].permute(1, 2, 0), boxes)])


class FasterRCNN(nn.Module):
    """The whole network."""

    def __init__(self, config=FasterRCNNConfig()):
        super().__init__()
        self.config = config
        self.backbone = ResNetC4(config.width, config.blocks[:3])
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = RoIHeads(config)

    def forward(self, pixels, size, boxes=None):
        """Boxes (n, 4) in pixels of the input, features (n, f), probabilities of objects (n, objects + 1) and of attributes
        (n, attributes + 1), background last; n may be 0.

        pixels: (1, 3, h, w), blue, green, red minus their means, of the backbone's dtype; size: height and width of the resized
        photograph, which padding may have made larger; boxes: given ones, (n, 4) float32; None: the proposals.
        """
        features = self.backbone(pixels)
        boxes = self.proposal_generator(features, size) if boxes is None else boxes
        if not len(boxes):
            return boxes, *(boxes.new_zeros(0, n) for n in
                            (self.config.feature, self.config.num_objects + 1, self.config.num_attributes + 1))
        region_features = self.roi_heads(features, boxes)
        return boxes, region_features, *self.roi_heads.box_predictor(region_features)

    def fold(self):
        """Folds each frozen norm into the convolution before it: the same function, computed faster."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fold()
        return self


# ---------------------------------------------------------------------------- the detector


class Detector:
    """The network with its weights, ready for use: `detector.weights.load(path).regions(pictures, ids)`.

    provenance: what makes the regions, for the `provenance` of a store or the file next to a TSV; json can hold it.
    """

    def __init__(self, net, weights, device='cpu', bf16=False):
        """weights: entries of provenance that describe them. The net is folded, moved and cast in place."""
        self.device, self.config = torch.device(device), net.config
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.provenance = {
            'detector': 'Faster R-CNN of bottom-up attention', **weights,
            'pixels counted as in': 'detectron2', 'anchors': anchors_name(net), 'precision': str(self.dtype)[len('torch.'):],
            'sizes': dataclasses.asdict(net.config), 'proposals': PROPOSALS, 'class NMS': CLASS_NMS_THRESHOLD,
            'threshold': SCORE_THRESHOLD}
        self.net = net.eval().requires_grad_(False).fold().to(self.device, memory_format=torch.channels_last)
        for part in (net.backbone, net.proposal_generator.rpn_head.conv, net.roi_heads.res5):
            part.to(self.dtype)

    @classmethod
    def random(cls, seed, device='cpu', bf16=False, config=FasterRCNNConfig()):
        """The detector with random weights, for benchmarks."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            net = FasterRCNN(config)
        return cls(net, {'weights': f'random, of seed {seed}'}, device, bf16)

    def regions(self, pictures, ids, min_boxes=36, max_boxes=36, threshold=SCORE_THRESHOLD,
                probabilities=False) -> list[ImageRegions]:
        """The regions of each picture: at least min_boxes, unless there are fewer proposals, and at most max_boxes.

        threshold: class score from which a proposal is a region, where the numbers of boxes leave a choice; probabilities: also
        return class_probabilities (o, objects + 1), the background first.

        pictures: uint8 arrays (h, w, 3), red, green, blue, of any sizes; ids: a name for each. Pictures pass the network one at a
        time: the 300 proposals of one keep it busy, and results do not depend on the other pictures. Raises RegionError that
        names the picture.
        """
        if not 1 <= min_boxes <= max_boxes <= PROPOSALS:
            raise RegionError(f'expected 1 <= min_boxes <= max_boxes <= {PROPOSALS}, found {min_boxes} and {max_boxes}')
        if len(pictures) != len(ids):
            raise RegionError(f'expected an id for each picture, found {len(ids)} ids for {len(pictures)} pictures')
        return [self._one_picture(picture, img_id, probabilities, (min_boxes, max_boxes, threshold))
                for picture, img_id in zip(pictures, ids, strict=True)]

    def regions_of_boxes(self, pictures, ids, boxes, probabilities=False) -> list[ImageRegions]:
        """The regions of each picture at given boxes, in their order, with predicted classes and attributes.

        boxes: for each picture (o, 4), x1, y1, x2, y2 in its pixels; other arguments and errors: as for `regions`.
        """
        if not len(pictures) == len(ids) == len(boxes):
            raise RegionError(f'expected an id and boxes for each picture, found {len(ids)} ids and boxes of {len(boxes)} for '
                              f'{len(pictures)} pictures')
        return [self._one_picture(picture, img_id, probabilities, given=given)
                for picture, img_id, given in zip(pictures, ids, boxes, strict=True)]

    @torch.inference_mode()
    def _one_picture(self, picture, img_id, probabilities, limits=None, given=None) -> ImageRegions:
        check_picture(picture, img_id)
        height, width = picture.shape[:2]
        given = None if given is None else checked_boxes(given, height, width, img_id)
        pixels, size = preprocess(picture, self.config, self.device)
        scale = np.float32((size[1] / width, size[0] / height) * 2)
        inputs = None if given is None else torch.from_numpy(given * scale).to(self.device)
        boxes, features, objects, attributes = (
            output.cpu().numpy() for output in self.net(pixels.to(self.dtype), size, inputs))
        if not len(boxes):
            raise RegionError(f'image {img_id}: expected regions, found no box in its {width} x {height} pixels that is large '
                              'enough; leave it out, or give a larger one')
        if given is None:
            boxes /= scale
            chosen = select_regions(boxes, objects[:, :-1], *limits)
            if probabilities:  # VL-BERT cuts off the last; the background counts
                chosen = chosen[np.argsort(-objects[chosen].max(1), kind='stable')]
        else:
            boxes, chosen = given, slice(None)
        labels = [column for p in (objects[chosen, :-1], attributes[chosen, :-1]) for column in (p.argmax(1), p.max(1))]
        background_first = np.roll(objects[chosen], 1, axis=1).astype(np.float16) if probabilities else None
        try:
            return tsv.check(ImageRegions(img_id, height, width, *labels, boxes[chosen], features[chosen], background_first),
                             self.config.feature)
        except RegionError as error:
            raise RegionError(f'image {img_id}: {error}; the detector itself made it: are its weights damaged?') from None


def check_picture(picture, img_id):
    """Raises RegionError that names the picture if it is not what `regions` takes."""
    if (not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3
            or not picture.size):
        actual = f'{picture.dtype} {picture.shape}' if isinstance(picture, np.ndarray) else type(picture).__name__
        raise RegionError(f'image {img_id}: expected an array of uint8 (height, width, 3), red, green, blue, found {actual}')


def preprocess(picture, config, device='cpu'):
    """A picture (height, width, 3) as network input (1, 3, h, w) float32, and its height and width in there.

    As in Caffe: resized without smoothing, blue first, minus the means. An input of less than STRIDE pixels a side is padded.
    """
    size = config.resized(*picture.shape[:2])
    (y, below, v), (x, right, u) = (source_pixels(old, new, device) for old, new in zip(picture.shape[:2], size, strict=True))
    picture, rows = torch.from_numpy(np.array(picture, order='C')).to(device), []
    for row in (y, below):  # only the pixels that are needed become floats: the picture may be large
        left, other = (picture[row[:, None], column].float() for column in (x, right))
        rows.append(left + (other - left) * u[:, None])
    resized = (rows[0] + (rows[1] - rows[0]) * v[:, None, None]).flip(-1) - torch.tensor(PIXEL_MEANS, device=device)
    pixels = resized.permute(2, 0, 1)[None]  # channels last in memory
    padding = [max(0, STRIDE - side) for side in size]
    return functional.pad(pixels, (0, padding[1], 0, padding[0])), size


def source_pixels(old, new, device):
    """Bilinear resizing along one side from `old` to `new` pixels: for each new pixel the two old ones that it lies between, and
    the weight of the second, (new,) each."""
    position = ((torch.arange(new, dtype=torch.float64, device=device) + 0.5) / (new / old) - 0.5).clamp(0, old - 1)
    first = position.long()
    return first, (first + 1).clamp(max=old - 1), (position - first).float()


def anchors_name(net):
    """For provenance: 'detectron2', or 'their own' where the file of the weights has other anchors."""
    anchors = net.proposal_generator.anchors.cpu()
    return 'detectron2' if torch.allclose(anchors, default_anchors(), atol=0.01) else 'their own'
