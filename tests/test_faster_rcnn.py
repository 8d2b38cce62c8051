"""The Faster R-CNN: its parts against plain loops, the network against a plain restatement, its weight files."""

import argparse
import collections
import dataclasses
import itertools
import json
import math
import pickle
import re
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from bench import detector as bench
from bert.weights import WeightsError
from detector import boxes as box_functions
from detector import faster_rcnn, weights
from detector.faster_rcnn import Detector, FasterRCNN, FasterRCNNConfig
from detector.resnet import stage
from detector.roi_pool import roi_pool
from regions import tsv
from regions.tsv import RegionError

torch.set_num_threads(1)

TINY = FasterRCNNConfig(num_objects=12, num_attributes=5, width=4, blocks=(1, 2, 2, 1), rpn_width=8, short_side=96, long_side=160)
ANCHORS = faster_rcnn.ANCHORS


def network(seed=1):
    """A net of random numbers, norms included, whose features and scores differ from region to region."""
    generator = torch.Generator().manual_seed(seed)
    net = FasterRCNN(TINY).eval().requires_grad_(False)
    for name, tensor in net.state_dict().items():
        if name == ANCHORS:
            continue
        if name.endswith('running_var'):
            tensor.uniform_(0.5, 2, generator=generator)
        elif tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        else:
            tensor.normal_(1 if name.endswith('norm.weight') else 0, 0.3, generator=generator)
    net.backbone.stem.conv1.weight /= 64  # pixels are large numbers
    net.proposal_generator.rpn_head.anchor_deltas.weight /= 20
    return net


def picture(height=60, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def boxes_of_all_kinds(count, height, width, seed):
    """Boxes in pixels: inside, partly and fully outside, points, lines, inverted, with corners half way between two cells."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-0.2, 1.2, (count, 2, 2)) * [width, height]
    boxes = np.concatenate([corners.min(1), corners.max(1)], 1)
    boxes[::7] = boxes[::7].round(-1) // 8 * 8
    boxes[1::7, 2:] = boxes[1::7, :2]
    boxes[2::7, 3] = boxes[2::7, 1]
    boxes[3::7] = boxes[3::7][:, [2, 3, 0, 1]]
    boxes[4::7] = [0, 0, width, height]
    boxes[5::7, 2:] = boxes[5::7, :2] + 3
    return boxes.astype(np.float32)


# ---------------------------------------------------------------------------- parts against loops


def away_from_zero(x):
    return math.floor(x + 0.5) if x >= 0 else math.ceil(x - 0.5)  # in double, where nothing is lost


def plain_roi_pool(features, boxes):
    """Caffe's ROIPooling layer, cell by cell."""
    pooled = np.zeros((len(boxes), 14, 14, features.shape[2]), np.float32)
    for n, box in enumerate(boxes):
        x1, y1, x2, y2 = (away_from_zero(float(edge) / 16) for edge in box)
        high, wide = (np.float32(max(last - first + 1, 1)) / np.float32(14) for first, last in ((y1, y2), (x1, x2)))
        for i, j in itertools.product(range(14), range(14)):
            top, bottom = math.floor(np.float32(i) * high) + y1, math.ceil(np.float32(i + 1) * high) + y1
            left, right = math.floor(np.float32(j) * wide) + x1, math.ceil(np.float32(j + 1) * wide) + x1
            part = features[max(top, 0):max(bottom, 0), max(left, 0):max(right, 0)]
            if part.size:
                pooled[n, i, j] = part.max((0, 1))
    return pooled


@pytest.mark.parametrize(('height', 'width'), [(38, 63), (5, 9), (1, 1), (1, 40), (70, 3)])
def test_roi_pooling_is_that_of_plain_loops(height, width):
    features = torch.randn(height, width, 3, generator=torch.Generator().manual_seed(height))  # negative ones, too
    boxes = boxes_of_all_kinds(42, 16 * height, 16 * width, seed=width)
    pooled = list(roi_pool(features, torch.from_numpy(boxes), chunk=5))
    assert [len(part) for part in pooled] == [5] * 8 + [2]
    assert np.array_equal(torch.cat(pooled), plain_roi_pool(features.numpy(), boxes))


def plain_iou(a, b):
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    shared = max(width, np.float32(0)) * max(height, np.float32(0))
    area, other = ((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b))
    return shared / (area + other - shared) if shared > 0 else 0


def plain_nms(boxes, scores, threshold):
    kept = []
    for n in sorted(range(len(boxes)), key=lambda n: -scores[n]):
        if all(plain_iou(boxes[m], boxes[n]) <= threshold for m in kept):
            kept.append(n)
    return kept


def crowded(count, seed):
    """Boxes close to one another, some equal, some without area."""
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, 4, (count, 4)) * 20 + rng.uniform(0, 12, (count, 4))
    boxes[:, 2:] += boxes[:, :2]
    boxes[::9, 2:] = boxes[::9, :2]
    boxes[1::9] = boxes[0]
    boxes[2::9] = boxes[2]
    return boxes.astype(np.float32), rng.permutation(count).astype(np.float32)


@pytest.mark.parametrize('threshold', [0.3, 0.7])
def test_nms_is_that_of_plain_loops(threshold):
    boxes, scores = crowded(150, seed=0)
    order = np.argsort(-scores)
    kept = order[box_functions.nms(boxes[order], threshold, 1000, block=40)]
    assert np.array_equal(kept, order[box_functions.nms(boxes[order], threshold, 1000)])
    expected = plain_nms(boxes, scores, threshold)
    assert 10 < len(expected) < 140
    assert kept.tolist() == expected
    assert box_functions.nms(boxes[order], threshold, 7).tolist() == [order.tolist().index(n) for n in expected[:7]]
    assert len(box_functions.nms(boxes[:0], threshold, 7)) == 0


def plain_choice(boxes, scores, least, most, threshold=0.2):
    """get_detections_from_im of the original's extract_coco_image.py, with the columns of `scores` all those of objects."""
    max_conf = np.zeros(len(boxes), np.float32)
    for column in scores.T:
        for n in plain_nms(boxes, column, 0.3):
            max_conf[n] = max(max_conf[n], column[n])
    sure = [n for n in range(len(boxes)) if max_conf[n] >= threshold]
    best = sorted(range(len(boxes)), key=lambda n: -max_conf[n])
    return best[:least] if len(sure) < least else best[:most] if len(sure) > most else sure


def test_the_choice_of_boxes_is_that_of_the_original():
    boxes, _ = crowded(60, seed=5)
    scores = np.random.default_rng(6).dirichlet(np.full(13, 0.8), 60).astype(np.float32)[:, :12]
    sure = int((box_functions.max_confidence(boxes, scores) >= 0.2).sum())
    assert 10 < sure < 55
    for least, most in ((1, sure - 1), (sure + 1, 60), (sure - 5, sure), (sure, sure + 5), (60, 60), (1, 1)):
        chosen = box_functions.select_regions(boxes, scores, least, most)
        assert chosen.tolist() == plain_choice(boxes, scores, least, most), (least, most)
    scores **= 0.5  # more of them are sure enough for VL-BERT
    sure = int((box_functions.max_confidence(boxes, scores) >= 0.5).sum())
    assert 5 < sure < 55
    for least, most in ((1, sure - 1), (sure + 1, 60), (1, sure), (sure, 60)):
        chosen = box_functions.select_regions(boxes, scores, least, most, 0.5)
        assert chosen.tolist() == plain_choice(boxes, scores, least, most, 0.5), (least, most)


def test_anchors_are_those_of_detectron2():
    anchors = faster_rcnn.default_anchors()
    sides = anchors[:, 2:] - anchors[:, :2]
    assert torch.allclose(anchors[:, :2] + anchors[:, 2:], torch.zeros(12, 2))
    assert torch.allclose(sides.prod(1).sqrt(), torch.tensor([64., 128, 256, 512]).repeat_interleave(3))
    assert torch.allclose(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2]).repeat(4))


def test_boxes_are_moved_as_the_deltas_say():
    anchors = torch.tensor([[10., 20, 30, 60], [0, 0, 16, 16]])
    deltas = torch.tensor([[0.5, -0.25, math.log(2), 0], [0, 0, 99, -1]])
    # 20 x 40 around (20, 40), moved by (10, -10), made 40 x 40.
    moved = box_functions.apply_deltas(anchors, deltas)
    assert torch.allclose(moved[0], torch.tensor([10., 10, 50, 50]))
    assert torch.allclose(moved[1], torch.tensor([8 - 500., 8 - 8 / math.e, 8 + 500, 8 + 8 / math.e]))
    assert box_functions.clip(moved, (40, 45))[0].tolist() == [10, 10, 45, 40]


class FixedProposals(torch.nn.Module):
    """An RPN head that moves the anchors of 25 x 25 cells to given boxes, by falling objectness."""

    def __init__(self, anchors, boxes):
        super().__init__()
        boxes = torch.tensor(boxes + [boxes[0]] * (len(anchors) - len(boxes)))
        sides = anchors[:, 2:] - anchors[:, :2]
        shifts = (boxes[:, :2] + boxes[:, 2:] - anchors[:, :2] - anchors[:, 2:]) / 2 / sides
        self.deltas = torch.cat([shifts, ((boxes[:, 2:] - boxes[:, :2]) / sides).log()], 1)

    def forward(self, features):
        return torch.arange(len(self.deltas), 0, -1.), self.deltas


def test_6000_boxes_enter_nms_and_300_leave_it():
    generator = network().proposal_generator
    anchors = generator.anchor_grid((25, 25))
    first, second, third = [0., 0, 90, 90], [100., 100, 190, 190], [200., 200, 290, 290]
    apart = [[x, y, x + 20, y + 20] for x in range(0, 400, 20) for y in range(0, 400, 20)]
    for boxes, expected in (([first] * 5999 + [second, third], [first, second]), (apart, apart[:300])):
        generator.rpn_head = FixedProposals(anchors, boxes)
        proposals = generator(torch.empty(1, 1, 25, 25), (400, 400))
        assert proposals.shape == (len(expected), 4)
        assert torch.allclose(proposals, torch.tensor(expected).float(), atol=1e-2)


# ---------------------------------------------------------------------------- the network


def plain_network(state, config, pixels, size):
    """The network written a second time, from parameter names, with loops instead of formulas."""
    def conv(x, name, stride=1, dilation=1):
        weight, norm = state[f'{name}.weight'], {key: state[f'{name}.norm.{key}'] for key in
                                                 ('running_mean', 'running_var', 'weight', 'bias')}
        x = functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2 * dilation, dilation)
        return functional.batch_norm(x, **norm, eps=1e-5)

    def stage(x, name, blocks, stride, dilation=1):
        for block in range(blocks):
            by, first = f'{name}.{block}', stride if block == 0 else 1
            y = conv(conv(x, f'{by}.conv1', first).relu(), f'{by}.conv2', 1, dilation).relu()
            x = (conv(y, f'{by}.conv3') + (conv(x, f'{by}.shortcut', first) if block == 0 else x)).relu()
        return x

    x = functional.max_pool2d(conv(pixels, 'backbone.stem.conv1', 2).relu(), 3, 2, ceil_mode=True)
    for level, blocks, stride in ((2, config.blocks[0], 1), (3, config.blocks[1], 2), (4, config.blocks[2], 2)):
        x = stage(x, f'backbone.res{level}', blocks, stride)

    def head(y, name):
        weight, bias = (state[f'proposal_generator.rpn_head.{name}.{part}'] for part in ('weight', 'bias'))
        return functional.conv2d(y, weight, bias, padding=weight.shape[-1] // 2)

    hidden, candidates = head(x, 'conv').relu(), []
    logits, deltas = head(hidden, 'objectness_logits')[0], head(hidden, 'anchor_deltas')[0]
    for i, j, a in itertools.product(*map(range, (*x.shape[2:], 12))):
        ax, ay, bx, by = (state[ANCHORS][a] + torch.tensor([j, i, j, i]) * 16).tolist()
        dx, dy, dw, dh = deltas[4 * a:4 * a + 4, i, j].tolist()
        wide, high = bx - ax, by - ay
        mx, my = ax + wide / 2 + dx * wide, ay + high / 2 + dy * high
        wide, high = wide * math.exp(min(dw, math.log(62.5))), high * math.exp(min(dh, math.log(62.5)))
        box = [min(max(edge, 0), limit) for edge, limit in
               zip((mx - wide / 2, my - high / 2, mx + wide / 2, my + high / 2), (size[1], size[0]) * 2, strict=True)]
        if min(box[2] - box[0], box[3] - box[1]) > 0:
            candidates.append((logits[a, i, j].item(), box))
    candidates.sort(key=lambda pair: -pair[0])
    boxes = np.float32([box for _, box in candidates])
    boxes = boxes[plain_nms(boxes, range(len(boxes), 0, -1), 0.7)[:300]]
    pooled = torch.from_numpy(plain_roi_pool(x[0].permute(1, 2, 0).numpy(), boxes)).permute(0, 3, 1, 2)
    features = stage(pooled, 'roi_heads.res5', config.blocks[3], 1, 2).mean((2, 3))

    def linear(y, name):
        name = f'roi_heads.box_predictor.{name}'
        return y @ state[f'{name}.weight'].T + state[f'{name}.bias']

    scores = linear(features, 'cls_score')
    embedded = state['roi_heads.box_predictor.cls_embedding.weight'][scores.argmax(1)]
    attributes = linear(linear(torch.cat([features, embedded], 1), 'fc_attr').relu(), 'attr_score')
    return boxes, features, scores.softmax(1), attributes.softmax(1)


def test_the_network_is_what_a_plain_restatement_computes():
    net = network(3)
    pixels, size = faster_rcnn.preprocess(picture(40, 56), TINY)
    assert size == (96, 134)
    expected = plain_network(net.state_dict(), TINY, pixels, size)
    with torch.inference_mode():
        for outputs in (net(pixels, size), net.fold()(pixels, size)):  # norms as modules, and folded
            assert len(outputs[0]) > 40
            for output, plain in zip(outputs, expected, strict=True):
                np.testing.assert_allclose(output, plain, rtol=1e-3, atol=1e-3)


def test_a_dilated_stage_can_be_trained():
    """Norms stay frozen; the gradients are those of the same convolutions and norms out of place."""
    torch.manual_seed(0)
    blocks, x = stage(8, 4, 2, stride=1, dilation=2), torch.randn(2, 8, 9, 7)
    expected = x
    for block in blocks:
        y = expected
        for conv in (block.conv1, block.conv2, block.conv3):
            y = functional.batch_norm(functional.conv2d(y, conv.weight, None, 1, conv.kernel_size[0] // 2 * 2, 2),
                                      conv.norm.running_mean, conv.norm.running_var, conv.norm.weight, conv.norm.bias, eps=1e-5)
            y = y if conv is block.conv3 else y.relu()
        expected = (y + block.shortcut(expected)).relu()
    states, parameters = blocks(x), list(blocks.parameters())
    assert torch.allclose(states, expected, atol=1e-5) and len(parameters) == 7
    for gradient, plain in zip(torch.autograd.grad(states.square().sum(), parameters),
                               torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        assert torch.allclose(gradient, plain, rtol=1e-3, atol=1e-3)


def handmade_network():
    """Channel 0 is brightness; 64 x 64 boxes on bright cells are proposed; a bright region has class 3 and attribute 2, the
    background attribute 1."""
    config = dataclasses.replace(TINY, blocks=(1, 1, 1, 1), short_side=320, long_side=320)
    net = FasterRCNN(config).eval().requires_grad_(False)
    for name, tensor in net.state_dict().items():
        if 'norm' not in name and name != ANCHORS:
            tensor.zero_()
    net.backbone.stem.conv1.weight[0, 0, 3, 3] = 1 / 255
    for part in (net.backbone.res2, net.backbone.res3, net.backbone.res4, net.roi_heads.res5):
        part[0].shortcut.weight[0, 0] = 1
    rpn, predictor = net.proposal_generator.rpn_head, net.roi_heads.box_predictor
    rpn.conv.weight[0, 0] = 1
    rpn.objectness_logits.bias[:] = -100
    rpn.objectness_logits.weight[1, 0], rpn.objectness_logits.bias[1] = 1, 0
    predictor.cls_score.weight[3, 0], predictor.cls_score.bias[12] = 100, 8
    predictor.cls_embedding.weight[3, 0], predictor.cls_embedding.weight[12, 1] = 1, 1
    predictor.fc_attr.weight[0, 128], predictor.fc_attr.weight[1, 129] = 1, 1
    predictor.attr_score.weight[2, 0], predictor.attr_score.weight[1, 1] = 9, 9
    return net


def test_a_handmade_network_detects_a_bright_square():
    net, photo = handmade_network(), np.zeros((320, 320, 3), np.uint8)
    photo[160:208, 96:144] = 255  # rows and columns of cells 10 to 12 and 6 to 8
    pixels, size = faster_rcnn.preprocess(photo, net.config)
    with torch.inference_mode():
        boxes = net.proposal_generator(net.backbone(pixels), size)
    assert boxes[0].tolist() == [7 * 16 - 32, 11 * 16 - 32, 7 * 16 + 32, 11 * 16 + 32]
    regions = Detector(net, {}).regions([photo], ['square'], 1, 100)[0]
    assert len(regions.classes) > 1
    assert set(regions.classes) == {3}
    assert set(regions.attributes) == {2}
    assert regions.class_conf.min() > 0.2
    for x1, y1, x2, y2 in regions.boxes:
        assert x1 < 144 and x2 >= 96 and y1 < 208 and y2 >= 160  # a cell of the map belongs to a box that ends at its corner
    dark = Detector(handmade_network(), {}).regions([np.zeros_like(photo)], ['nothing'], 5, 100)[0]
    assert dark.attributes.tolist() == [1] * 5
    assert dark.class_conf.max() < 0.01


# ---------------------------------------------------------------------------- pictures in, regions out


@pytest.mark.parametrize(('shape', 'size'), [
    ((480, 640), (600, 800)), ((640, 427), (899, 600)), ((300, 1200), (250, 1000)), ((1, 1), (600, 600)),
    ((1500, 900), (1000, 600)), ((400, 427), (600, 641)),  # 640.5
    ((600, 1000), (600, 1000)), ((1334, 2223), (600, 1000)),  # 999.85 at a short side of 600
    ((1334, 2224), (600, 1000)),  # 1000.3
])
def test_a_picture_is_resized_as_by_grid_sample(shape, size):
    image = picture(*shape)
    blue_first = torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)[None].double()
    means = torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    pixels, actual = faster_rcnn.preprocess(image, FasterRCNNConfig())
    assert actual == size
    y, x = ((torch.arange(new) + 0.5).double() / new * 2 - 1 for new in size)
    grid = torch.stack(torch.meshgrid(x, y, indexing='xy'), -1)[None]  # (1, h, w, 2), from -1 to 1 across the picture
    expected = functional.grid_sample(blue_first, grid, 'bilinear', 'border', False) - means
    assert torch.allclose(pixels.double(), expected, atol=1e-3)


def test_a_very_long_picture_has_regions_too():
    images = Detector(network(), {}).regions([picture(2, 4000), picture(4000, 2)], ['wide', 'high'], 1, 36)
    assert [(image.height, image.width) for image in images] == [(2, 4000), (4000, 2)]
    assert all(len(image.boxes) for image in images)


def test_a_picture_gets_the_same_regions_alone_and_among_others():
    detector = Detector(network(), {})
    pictures = [picture(60, 80), picture(90, 50, 1), picture(61, 80, 2), picture(60, 80, 3)]
    together = detector.regions(pictures, ['a', 'b', 'c', 'd'])
    assert [one.img_id for one in together] == ['a', 'b', 'c', 'd']
    for one, image in zip(together, pictures, strict=True):
        alone = detector.regions([image], [one.img_id])[0]
        for name in tsv.ARRAYS:
            assert np.array_equal(getattr(alone, name), getattr(one, name)), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_a_gpu_finds_the_same_regions():
    """But for the few that rounding brings to the other side of a threshold."""
    cpu, gpu = (Detector(network(), {}, device).regions([picture()], ['a'])[0] for device in ('cpu', 'cuda'))
    matched, same = (np.abs(cpu.boxes[:, None] - gpu.boxes).max(2) < 0.5).nonzero()
    assert len(set(matched)) > 0.8 * len(cpu.boxes)
    for name in ('features', 'class_conf', 'attribute_conf'):
        np.testing.assert_allclose(getattr(gpu, name)[same], getattr(cpu, name)[matched], rtol=0.05, atol=0.05)
    assert Detector(network(), {}, 'cuda', bf16=True).regions([picture()], ['a'])[0].features.shape == cpu.features.shape


def test_regions_are_what_the_files_hold(tmp_path):
    detector = Detector(network(), {})
    images = detector.regions([picture(), picture(90, 50, 1)], ['a', 'b'], 10, 40)
    tsv.write(tmp_path / 'x.tsv', images)
    back = [image for _, image in tsv.read(tmp_path / 'x.tsv')]
    for one, same in zip(images, back, strict=True):
        assert 10 <= len(one.boxes) <= 40
        assert one.features.shape == (len(one.boxes), TINY.feature)
        assert one.classes.max() < TINY.num_objects and one.attributes.max() < TINY.num_attributes
        assert (one.boxes[:, 2] <= one.width).all() and (one.boxes[:, 3] <= one.height).all()
        assert all(np.array_equal(getattr(one, name), getattr(same, name)) for name in tsv.ARRAYS)


def test_regions_are_the_networks_rows_without_background():
    net, image = network(3), picture(40, 56)
    pixels, size = faster_rcnn.preprocess(image, TINY)
    with torch.inference_mode():
        boxes, features, objects, attributes = (output.numpy() for output in net(pixels, size))
    boxes = boxes * np.float32([56 / 134, 40 / 96] * 2)
    chosen = plain_choice(boxes, objects[:, :-1], 36, 36)
    regions = Detector(net, {}).regions([image], ['a'])[0]
    np.testing.assert_allclose(regions.boxes, boxes[chosen], atol=1e-3)
    np.testing.assert_allclose(regions.features, features[chosen], rtol=1e-3, atol=1e-3)
    assert regions.classes.tolist() == objects[chosen, :-1].argmax(1).tolist()
    np.testing.assert_allclose(regions.attribute_conf, attributes[chosen, :-1].max(1), rtol=1e-3)


def test_half_precision_gives_nearly_the_same_features():
    image, full, half = picture(), Detector(network(5), {}), Detector(network(5), {}, bf16=True)
    pixels, _ = faster_rcnn.preprocess(image, TINY)
    with torch.inference_mode():
        expected, output = full.net.backbone(pixels), half.net.backbone(pixels.bfloat16())
    assert output.dtype == torch.bfloat16
    assert (output.float() - expected).norm() < 0.03 * expected.norm()
    assert half.regions([image], ['a'])[0].features.dtype == np.float32
    assert half.provenance['precision'] == 'bfloat16'


@pytest.mark.parametrize(('image', 'message'), [
    (np.zeros((4, 4), np.uint8), r'uint8 \(4, 4\)'), (np.zeros((4, 4, 3), np.float32), 'float32'), ('photo.jpg', 'str'),
    (np.zeros((0, 4, 3), np.uint8), r'\(0, 4, 3\)'), (np.zeros((4, 4, 4), np.uint8), r'\(4, 4, 4\)'),
])
def test_what_is_no_picture_is_refused_by_name(image, message):
    with pytest.raises(RegionError, match=f'image bad: expected an array of uint8 .*found .*{message}'):
        Detector(network(), {}).regions([picture(), image], ['good', 'bad'])


def test_impossible_wishes_are_refused():
    detector = Detector(network(), {})
    for least, most in ((0, 5), (6, 5), (1, 301)):
        with pytest.raises(RegionError, match=f'found {least} and {most}'):
            detector.regions([picture()], ['a'], least, most)
    with pytest.raises(RegionError, match='2 ids for 1 pictures'):
        detector.regions([picture()], ['a', 'b'])


def test_damaged_weights_do_not_make_regions():
    net = network()
    net.roi_heads.box_predictor.cls_score.bias[2] = math.nan
    with pytest.raises(RegionError, match=r'image a: .*NaN.*damaged'):
        Detector(net, {}).regions([picture()], ['a'])
    net = network()
    net.proposal_generator.rpn_head.anchor_deltas.bias[:] = math.nan
    with pytest.raises(RegionError, match=r'image a: .*found no box'):
        Detector(net, {}).regions([picture()], ['a'])


def test_random_weights_depend_on_the_seed_alone():
    torch.manual_seed(7)
    drawn = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (Detector.random(seed, config=TINY).regions([picture()], ['a'])[0] for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), drawn)  # whoever else draws numbers is not disturbed
    assert np.array_equal(first.features, again.features)
    assert not np.array_equal(first.features, other.features)


def test_the_full_size_network_is_built_as_published():
    with torch.device('meta'):
        shapes = {name: tuple(tensor.shape) for name, tensor in FasterRCNN().state_dict().items()}
    # As listed by others who loaded unc-nlp/frcnn-vg-finetuned, and in the network's definition for Caffe.
    assert shapes[ANCHORS] == (12, 4)
    rpn, head = 'proposal_generator.rpn_head', 'roi_heads.box_predictor'
    assert shapes[f'{rpn}.objectness_logits.weight'] == (12, 512, 1, 1)
    assert shapes[f'{rpn}.conv.weight'] == (512, 1024, 3, 3)
    assert shapes[f'{head}.bbox_pred.weight'] == (6400, 2048)
    assert shapes[f'{head}.cls_score.weight'] == (1601, 2048)
    assert shapes[f'{head}.cls_embedding.weight'] == (1601, 256)
    assert shapes[f'{head}.fc_attr.weight'] == (512, 2304)
    assert shapes[f'{head}.attr_score.weight'] == (401, 512)
    assert shapes['backbone.res4.22.conv3.norm.running_var'] == (1024,)
    assert shapes['roi_heads.res5.0.shortcut.weight'] == (2048, 1024, 1, 1)


# ---------------------------------------------------------------------------- weights: PyTorch and detectron2


def state_of(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same_network(detector, net):
    """The detector's net is `net`, whose norms are folded here."""
    actual, expected = detector.net.state_dict(), net.fold().state_dict()
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(actual[name], tensor, rtol=1e-5, atol=1e-6), name


def counted(state):
    """With the counters that a BatchNorm2d leaves in a file."""
    norms = [name.removesuffix('running_var') for name in state if name.endswith('running_var')]
    return state | {f'{norm}num_batches_tracked': torch.tensor(7) for norm in norms}


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'x.pth', 'model.safetensors'])
def test_weights_load_from_pytorch_files(tmp_path, name):
    net, path = network(8), tmp_path / name
    state = counted(state_of(net)) | {'fc_rel1.weight': torch.randn(3, 2)}
    save_file(state, path) if path.suffix == '.safetensors' else torch.save(state, path)
    detector = weights.load(path, config=TINY)
    same_network(detector, net)
    assert (detector.provenance['weights'], detector.provenance['pixels counted as in']) == (name, 'detectron2')


def test_names_are_those_of_the_published_file():
    with torch.device('meta'):
        names = set(FasterRCNN().state_dict())
    norm = r'(weight|norm\.(weight|bias|running_mean|running_var))'
    block = rf'(conv[123]|shortcut)\.{norm}'
    allowed = (rf'backbone\.stem\.conv1\.{norm}|backbone\.res[234]\.\d+\.{block}|roi_heads\.res5\.[012]\.{block}|'
               r'proposal_generator\.(anchor_generator\.cell_anchors\.0|rpn_head\.(conv|objectness_logits|anchor_deltas)\.(weight|bias))|'
               r'roi_heads\.box_predictor\.((cls_score|bbox_pred|fc_attr|attr_score)\.(weight|bias)|cls_embedding\.weight)')
    assert not [name for name in names if not re.fullmatch(allowed, name)]
    assert len(names) == 5 * (1 + 3 * 33 + 4) + 1 + 6 + 9  # convolutions with norms, anchors, RPN, heads


def test_anchors_of_a_file_are_used_and_recorded(tmp_path):
    anchors, state = faster_rcnn.default_anchors(), state_of(network(8))
    for other, recorded in (({ANCHORS: anchors}, 'detectron2'), ({ANCHORS: 2 * anchors}, 'their own'), ({}, 'detectron2')):
        del state[ANCHORS]
        state |= other
        torch.save(state, path := tmp_path / 'x.pth')
        detector = weights.load(path, config=TINY)
        assert detector.provenance['anchors'] == recorded
        assert torch.equal(detector.net.proposal_generator.anchors, other.get(ANCHORS, anchors))
    torch.save(state | {ANCHORS: -anchors}, path)
    with pytest.raises(WeightsError, match=r'x\.pth: .*cell_anchors.0: expected boxes'):
        weights.load(path, config=TINY)


@pytest.mark.parametrize(('spoil', 'message'), [
    (lambda s: s.pop('backbone.res2.0.conv1.norm.running_var'), 'running_var'),
    (lambda s: s.update(extra=torch.ones(2, 2)), 'extra'),
    (lambda s: s.update({'roi_heads.box_predictor.attr_score.bias': torch.ones(401)}), r'expected \(6,\), found \(401,\)'),
    (lambda s: s['roi_heads.res5.0.conv1.weight'][2:].zero_(), 'one number throughout in 30 of its 32 rows'),
    (lambda s: s['backbone.stem.conv1.weight'][0, 0].fill_(math.nan), 'NaN'),
])
def test_weights_that_do_not_fit_are_refused(tmp_path, spoil, message):
    spoil(state := state_of(network()))
    torch.save(state, path := tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match=f'(?s)x.pth does not fit.*{message}'):
        weights.load(path, config=TINY)


def test_missing_weights_and_those_of_caffe_say_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'none\.pkl: no such file.*bash run/download\.bash detector'):
        weights.load(tmp_path / 'none.pkl')
    (tmp_path / 'x.caffemodel').touch()
    with pytest.raises(WeightsError, match=r"x\.caffemodel: .*detectron2's \.pkl, or as \.bin.*bash run/download\.bash detector"):
        weights.load(tmp_path / 'x.caffemodel')


def test_provenance_tells_where_regions_come_from(tmp_path):
    torch.save(state_of(network()), path := tmp_path / 'x.pth')
    provenance = weights.load(path, config=TINY).provenance
    assert json.loads(json.dumps(provenance)) | {'sizes': provenance['sizes']} == provenance
    assert (provenance['weights'], provenance['precision']) == ('x.pth', 'float32')
    assert len(provenance['sha256']) == 64 and provenance['sizes']['num_objects'] == 12
    assert Detector.random(3, config=TINY).provenance['weights'] == 'random, of seed 3'


@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('wrap', [lambda s: {'model': s, '__author__': 'x', 'heuristics': True}, collections.OrderedDict])
def test_weights_load_from_detectron2s_pickle(tmp_path, protocol, wrap):
    net, path = network(9), tmp_path / 'faster_rcnn_from_caffe_attr.pkl'
    path.write_bytes(pickle.dumps(wrap({name: tensor.numpy() for name, tensor in state_of(net).items()}), protocol))
    detector = weights.load(path, config=TINY)
    same_network(detector, net)


class Harm:
    """What runs when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), 'w')


@pytest.mark.parametrize('stored', ['<f4', '>f4', '<f8', '>f2'])
def test_arrays_of_a_pickle_are_read_in_their_order(tmp_path, stored):
    wide = np.arange(12, dtype=stored).reshape(3, 4)
    arrays = {'rows': wide, 'columns': np.asfortranarray(wide), 'one': np.array(7, stored), 'int': np.int8([5])}
    for protocol in (1, 2, 4):
        (tmp_path / 'x.pkl').write_bytes(pickle.dumps(arrays, protocol))
        tensors = weights.read_pickle(tmp_path / 'x.pkl')
        assert tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            assert tensors[name].shape == array.shape and tensors[name].tolist() == array.tolist()


def test_a_pickle_gets_no_more_memory_than_its_file(tmp_path):
    shape = b'\x8a\x05' + (2 * 10 ** 9).to_bytes(5, 'little')
    for content in (b'\x80\x02Nr' + struct.pack('<I', 2 ** 28) + b'.',  # a table of so many entries
                    b'\x80\x02}X\x01\x00\x00\x00acnumpy\nndarray\n(' + shape + b'tRs.'):  # an array of so many numbers
        (tmp_path / 'x.pkl').write_bytes(content)
        tracemalloc.start()
        with pytest.raises(WeightsError, match=r'x\.pkl'):
            weights.read_pickle(tmp_path / 'x.pkl')
        assert tracemalloc.get_traced_memory()[1] < 1e6
        tracemalloc.stop()


@pytest.mark.filterwarnings('error')
def test_a_damaged_kind_of_numbers_does_not_make_numpy_follow_pointers(tmp_path):
    content = pickle.dumps({'a': np.ones(2, '>f4')}, 2)  # whose flags are the last number of its state
    flags = content.index(b'\xffK\x00tq') + 2
    (tmp_path / 'x.pkl').write_bytes(content[:flags] + b'\x3f' + content[flags + 1:])
    assert weights.read_pickle(tmp_path / 'x.pkl')['a'].tolist() == [1, 1]


@pytest.mark.parametrize('hide', [lambda harm: harm, lambda harm: np.array([harm], object), lambda harm: [{'x': (harm,)}]])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, hide):
    path, trace = tmp_path / 'x.pkl', tmp_path / 'trace'
    path.write_bytes(pickle.dumps({'model': {'a': np.ones(3), 'b': hide(Harm(trace))}}))
    with pytest.raises(WeightsError, match=r'x.pkl: .*open is not allowed'):
        weights.load(path, config=TINY)
    assert not trace.exists()
    pickle.loads(path.read_bytes())['model']
    assert trace.exists()  # elsewhere it would have run


@pytest.mark.parametrize(('content', 'message'), [
    (b'', 'EOFError'), (pickle.dumps({'model': {'a': np.ones(3)}})[:-20], 'x.pkl'), (pickle.dumps([1, 2]), 'found list'),
    (pickle.dumps({'model': {}}), 'dict of arrays'), (pickle.dumps({'a': 'text'}), "'a': expected an array of .*found str"),
    (pickle.dumps({'a': np.array(['text'])}), 'found one of <U4'), (pickle.dumps({'a': np.array([{}])}), 'found one of object'),
    (pickle.dumps({'a': np.ones(2, np.longdouble)}), 'x.pkl: .*longdouble'), (pickle.dumps({1: np.ones(3)}), '1: expected'),
    (pickle.dumps({'a': np.ones(2), 'b': 3}), "'b': expected an array of .*found int"), (b'junk', 'x.pkl'),
])
def test_other_pickles_are_refused(tmp_path, content, message):
    (tmp_path / 'x.pkl').write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        weights.load(tmp_path / 'x.pkl', config=TINY)


def test_the_benchmark_measures_the_detector_on_photographs(tmp_path, monkeypatch):
    small = Detector.random(0, config=TINY)
    monkeypatch.setattr(Detector, 'random', lambda seed, device, bf16: small)
    for i in range(2):
        Image.fromarray(picture(seed=i)).save(tmp_path / f'{i}.png')
    for images in (None, tmp_path):
        figures = bench.measure('fp32', argparse.Namespace(images=images, count=3, device='cpu'))
        assert figures['fp32, boxes an image'] > 0
        assert figures['fp32, images/s'] * figures['fp32, s an image'] == pytest.approx(1)


def test_the_benchmark_says_what_is_wrong_once(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', f'{ROOT / "src"}:{ROOT}')
    (tmp_path / 'bad.jpg').write_text('no picture')
    for flags, expected in ((('--images', tmp_path / 'none'), 'none: expected a folder of pictures'),
                            (('--images', tmp_path), 'bad.jpg: expected a picture'), (('--count', '1,2'), '--count: invalid')):
        with pytest.raises(SystemExit) as ended:
            bench.main(['--out', str(tmp_path / 'x.json'), *map(str, flags)])
        assert ended.value.code
        errors = capfd.readouterr().err
        assert expected in errors and errors.count('error:') == 1 and 'Traceback' not in errors
    assert not (tmp_path / 'x.json').exists()
