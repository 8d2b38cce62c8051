"""VL-BERT end to end: RoIAlign and the convolutional branch against plain restatements, its weights, and training through it."""

import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED
from test_vlbert import ANSWERS, config, encode, linear, pretraining_batch, question_batch, ragged, sample

import models
from bench import pixels
from bert.speed import accelerate
from bert.weights import WeightsError, read_state
from files.json_files import DataError
from heads import Start
from images.transforms import VLBertTransform
from lxrt.heads import read_config as lxmert_config
from optimizer import OptimizerStep
from param import Options
from run_state import Progress
from train import train_step
from vlbert import heads
from vlbert.cnn import erase, roi_align
from vlbert.config import VLBertConfig

RESNET = {'pixels': True, 'resnet_width': 4, 'resnet_blocks': (1, 2, 2, 2), 'image_side': 64}
FEATURES = 32 * RESNET['resnet_width']
IMAGE = 'image_feature_extractor'


def random_head(task='vcr', answers=None, **changes):
    """A head whose ResNet has norms with any statistics, scale and shift."""
    torch.manual_seed(3)
    head = models.build('vlbert', task, config(**RESNET | changes), answers)
    with torch.no_grad():
        for name, tensor in head.state_dict().items():
            if '.norm.' in name:
                tensor.uniform_(0.5, 1.5) if name.endswith(('weight', 'var')) else tensor.normal_(0, 0.2)
        cnn = head.encoder.model.image_feature_extractor.cnn
        cnn.backbone.stem.conv1.norm.weight.mul_(0.02)
        for norm in (head.encoder.model.vlbert.visual_ln_text, head.encoder.model.vlbert.visual_ln_object):
            norm.weight.normal_(0, 0.5)
    return head


def image_batch(counts=(3, 2), sizes=((64, 90), (80, 64)), mirrored=False):
    """Two images of different sizes with ragged regions, the whole image first."""
    torch.manual_seed(4)
    m, o, (h, w) = len(counts), max(counts), map(max, zip(*sizes, strict=True))
    pixels = torch.zeros(m, 3, h, w)
    for i, (height, width) in enumerate(sizes):
        pixels[i, :, :height, :width] = torch.randn(3, height, width) * 60
    boxes = torch.rand(m, o, 4) * 0.5
    boxes[..., 2:] += 0.5
    boxes[:, 0] = torch.tensor([0, 0, 1, 1])
    boxes[0, -1] = torch.tensor([0.5, 0.4, 0.51, 0.42])  # less than a cell
    mask = torch.arange(o) < torch.tensor(counts)[:, None]
    return {'pixels': pixels, 'pixel_size': torch.tensor(sizes), 'image_size': torch.tensor(sizes) * 3,
            'boxes': boxes * mask[..., None], 'visual_attention_mask': mask,
            **({'mirrored': torch.tensor([True, False])} if mirrored else {})}


def choice_batch(**changes):
    """Two examples with four texts each."""
    images = image_batch()
    m, o = images['boxes'].shape[:2]
    masks = (torch.rand(m, o, 14, 14) < 0.6).float()
    masks[:, 0] = 1
    ids = ragged([5, 7, 3, 6, 7, 4, 5, 6], 7)
    return {'examples': m, 'input_ids': ids, 'token_type_ids': torch.zeros_like(ids), 'choice': torch.tensor([2, 0]),
            'word_regions': torch.randint(0, 2, ids.shape), **images, 'masks': masks,
            'region_labels': torch.tensor([[0, 5, 80], [0, 7, -1]])} | changes


def region_batch():
    """Two expressions about an image each."""
    images, ids = image_batch(), ragged([5, 7], 7)
    return {'examples': 2, 'input_ids': ids, 'token_type_ids': torch.zeros_like(ids), **images,
            'region_target': torch.tensor([[0., 1, 0], [0, 1, 0]])}


# ---- plain restatements, one region and one sample at a time


def plain_roi(features, box, size=14, scale=1 / 16):
    """(c, size, size) of a map (c, h, w) and a box of four numbers, sample by sample."""
    _, h, w = features.shape
    x1, y1, x2, y2 = (side * scale for side in box)
    rows = []
    for i in range(size):
        for j in range(size):
            y, x = (first + (k + 0.5) * max(last - first, 1) / size for k, first, last in ((i, y1, y2), (j, x1, x2)))
            if y < -1 or y > h or x < -1 or x > w:
                rows.append(features[:, 0, 0] * 0)
                continue
            y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            v, u = y - top, x - left
            rows.append((features[:, top, left] * (1 - u) + features[:, top, right] * u) * (1 - v)
                        + (features[:, below, left] * (1 - u) + features[:, below, right] * u) * v)
    return torch.stack(rows, 1).unflatten(1, (size, size))


def plain_block(x, state, name, stride, dilation):
    def conv(x, part, norm, **how):
        x = F.conv2d(x, state[f'{name}.{part}.weight'], **how)
        statistics = (state[f'{name}.{norm}.{kind}'] for kind in ('running_mean', 'running_var', 'weight', 'bias'))
        return F.batch_norm(x, *statistics, eps=1e-5)
    y = conv(x, 'conv1', 'bn1', stride=stride).relu()
    y = conv(y, 'conv2', 'bn2', padding=dilation, dilation=dilation).relu()
    shortcut = conv(x, 'downsample.0', 'downsample.1', stride=stride) if f'{name}.downsample.0.weight' in state else x
    return (conv(y, 'conv3', 'bn3') + shortcut).relu()


def plain_map(pixels, state, blocks):
    """The map (c, h, w) of an image (3, h, w)."""
    at = f'{IMAGE}.backbone'
    x = F.conv2d(pixels[None], state[f'{at}.conv1.weight'], stride=2, padding=3)
    x = F.batch_norm(x, *(state[f'{at}.bn1.{kind}'] for kind in ('running_mean', 'running_var', 'weight', 'bias')), eps=1e-5)
    x = F.max_pool2d(x.relu(), 3, 2, 1)
    for stage in (1, 2, 3):
        for block in range(blocks[stage - 1]):
            x = plain_block(x, state, f'{at}.layer{stage}.{block}', 2 if stage > 1 and block == 0 else 1, 1)
    return x[0]


def plain_feature(features, box, state, blocks, mask=None):
    """The feature of a region with a box in pixels."""
    x = plain_roi(features, box)[None]
    for block in range(blocks[3]):
        x = plain_block(x, state, f'{IMAGE}.roi_head_feature_extractor.{block}', 1, 2)
    return (x[0] if mask is None else x[0] * mask).sum((1, 2)) / 196


def plain_boxes(batch, image):
    """Boxes in pixels of the resized image: cut at its last pixel, then mirrored."""
    height, width = batch['pixel_size'][image].tolist()
    for x1, y1, x2, y2 in batch['boxes'][image].double().tolist():
        x1, x2, y1, y2 = (min(value * size, size - 1) for value, size in ((x1, width), (x2, width), (y1, height), (y2, height)))
        if 'mirrored' in batch and batch['mirrored'][image]:
            x1, x2 = width - 1 - x2, width - 1 - x1
        yield x1, y1, x2, y2


# ---- RoIAlign


def test_roi_align_is_that_of_plain_loops_forward_and_backward():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 6, 9, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[0., 0, 143, 95], [10.3, 20.7, 77.1, 60.2], [50, 50, 50, 50], [40, 30, 20, 10]],
                          [[-40, -30, 60, 60], [100, 60, 220, 140], [-90, -90, -40, -40], [130, 80, 143.9, 95.9]]],
                         dtype=torch.float64)  # of all, of a part, empty, reversed; outside in part, in all; at the border
    for size, scale in ((14, 1 / 16), (3, 1 / 8)):
        expected = torch.stack([plain_roi(maps[i], box, size, scale) for i in range(2) for box in boxes[i].tolist()])
        output = roi_align(maps, boxes, size, scale)
        torch.testing.assert_close(output, expected.unflatten(0, (2, 4)), rtol=1e-12, atol=1e-12)
        weights = torch.randn_like(output)
        gradients = [torch.autograd.grad((result * weights.view_as(result)).sum(), maps)[0] for result in (output, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert not expected[6].any() and expected[4].any() and (expected[5] == 0).any()
    chosen = torch.tensor([1, 0, 1])
    assert torch.equal(roi_align(maps, boxes[chosen, chosen], images=chosen),
                       roi_align(maps, boxes)[chosen, chosen])


def test_gradients_of_roi_align_are_numerically_right():
    maps = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[[3., 5, 70, 50], [-20, 10, 30, 90]]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda maps: roi_align(maps, boxes, 4), maps)


# ---- the branch


@pytest.mark.parametrize('how', ['plain', 'masks', 'mirrored', 'double'])
def test_features_are_those_of_a_plain_restatement(how):
    head, batch = random_head().eval(), image_batch(mirrored=how == 'mirrored')
    if how == 'masks':
        batch['masks'] = (torch.rand(2, 3, 14, 14) < 0.5).float()
    if how == 'double':
        head, batch['pixels'], batch['boxes'] = head.double(), batch['pixels'].double(), batch['boxes'].double()
    state = head.original_state()
    with torch.no_grad():
        encoded = head.encoder.encode_images(batch)
        assert 'pixels' not in encoded and 'masks' not in encoded and encoded['image_states'].shape == (2, 3, FEATURES)
        for image, count in enumerate((3, 2)):
            features = plain_map(batch['pixels'][image], state, RESNET['resnet_blocks'])
            for region, box in enumerate(plain_boxes(batch, image)):
                if region < count:
                    mask = batch['masks'][image, region] if how == 'masks' else None
                    expected = plain_feature(features, box, state, RESNET['resnet_blocks'], mask)
                    torch.testing.assert_close(encoded['image_states'][image, region], expected, rtol=1e-4, atol=1e-4)
                    assert expected.std() > 0.01
        assert not encoded['image_states'][1, 2].any()
        again = head.encoder.encode_images(encoded)
    assert again is encoded


def test_regions_in_chunks_are_the_same(monkeypatch):
    head, batch = random_head().eval(), choice_batch()
    with torch.no_grad():
        whole = head.encoder.encode_images(batch)['image_states']
        monkeypatch.setattr('vlbert.cnn.CHUNK', 2)
        torch.testing.assert_close(head.encoder.encode_images(batch)['image_states'], whole)
        del batch['visual_attention_mask']
        unmasked = head.encoder.encode_images(batch)['image_states']
    torch.testing.assert_close(unmasked[0], whole[0])
    assert unmasked[1, 2].any()


def test_pixels_of_masked_regions_are_zero_for_all_regions():
    batch = image_batch()
    erased = torch.tensor([[False, True, False], [False, True, True]])  # the last one is padding
    pixels, boxes = batch['pixels'], torch.stack([torch.tensor(list(plain_boxes(batch, i))) for i in range(2)])
    expected = pixels.clone()
    for image, region in ((0, 1), (1, 1)):
        x1, y1, x2, y2 = map(int, boxes[image, region].tolist())
        expected[image, :, y1:y2 + 1, x1:x2 + 1] = 0
    result = erase(pixels, boxes, erased & batch['visual_attention_mask'])
    assert torch.equal(result, expected) and (expected != pixels).any((1, 2, 3)).all()

    head = random_head('pretrain').eval()
    with torch.no_grad():
        features = head.encoder.encode_images(batch | {'masked_regions': erased})['image_states']
        assert torch.equal(features, head.encoder.encode_images(batch | {'pixels': expected})['image_states'])
        before = head.encoder.encode_images(batch)['image_states']
    assert (features != before).any(2).tolist() == [[True] * 3, [True, True, False]]  # the whole image too


def test_edges_of_a_masked_region_may_be_rounded():
    """Boxes are quotients of float32."""
    for width in range(40, 1000, 7):
        x1, x2 = width // 3, width - 1
        box = torch.tensor([[[x1 / width, 0, x2 / width, 1 - 1 / 5]]]) * torch.tensor([width, 5, width, 5])
        zeros = erase(torch.ones(1, 3, 5, width), box, torch.ones(1, 1)) == 0
        assert zeros[0, 0, 0].nonzero()[:, 0].tolist() == list(range(x1, width)) and zeros[:, :, :, x1:].all()


def test_pretraining_masks_word_and_pixels_and_keeps_the_geometry():
    head, batch = random_head('pretrain').eval(), pretraining_batch()
    images = image_batch((4, 7, 2), ((64, 70), (64, 64), (70, 64)))
    batch = {name: value for name, value in batch.items() if name != 'features'} | images
    batch['masked_regions'] = torch.zeros(3, 7, dtype=torch.bool)
    batch['masked_regions'][0, 2] = batch['masked_regions'][1, 1] = True
    with torch.no_grad():
        losses = head.losses(batch, head.counts([batch]))
        features = head.encoder.encode_images(batch)
    features = features | {'features': features['image_states'], 'boxes': head.encoder.boxes(features)}
    state, total = head.original_state(), 0.0
    assert 'object_mask_visual_embedding.weight' not in state
    predicted = 0
    for text, image in ((0, 0), (1, 1), (2, 2)):
        masked = batch['masked_regions'][image].nonzero()[:, 0].tolist()
        parts = sample(features, text, image)
        shown = {'object_mask_visual_embedding.weight': parts[2][masked]} if masked else {}
        _, regions, _ = encode(state | shown, *parts, 4, masked=masked)
        for hidden, target in zip(regions, batch['region_classes'][image], strict=False):
            if abs(target.sum() - 1) < 0.1:
                hidden = F.gelu(linear(hidden, state, 'vlbert.mvrc_head.transform.dense'))
                total -= target @ linear(hidden, state, 'vlbert.mvrc_head.region_cls_pred').log_softmax(0)
                predicted += 1
    torch.testing.assert_close(losses['MVRC'], total / predicted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('task', ['vcr', 'retrieval'])
def test_an_image_is_computed_once_for_all_its_texts(task):
    batch = choice_batch() if task == 'vcr' else region_batch() | {'image_id': torch.tensor([3, 4])}
    head, sizes = random_head(task).train(), []
    head.encoder.model.image_feature_extractor.cnn.backbone.stem.register_forward_hook(
        lambda module, inputs, output: sizes.append(len(inputs[0])))
    head.losses(batch, head.counts([batch]))
    assert sizes == [2]


def test_a_batch_of_the_other_kind_is_refused():
    with pytest.raises(ValueError, match='expected pixels in a batch, found none'):
        random_head('vqa', ANSWERS).logits(question_batch())
    with pytest.raises(ValueError, match='expected features of regions in a batch, found pixels'):
        models.build('vlbert', 'vqa', config(), ANSWERS).logits(question_batch() | image_batch())


def test_without_their_sizes_images_fill_the_pixels():
    head, batch = random_head().eval(), choice_batch()
    batch |= {'pixel_size': torch.tensor([[80, 90]] * 2), 'image_size': torch.tensor([[7, 9]] * 2)}
    with torch.no_grad():
        assert torch.equal(head.logits(batch), head.logits({
            name: value for name, value in batch.items() if name not in ('pixel_size', 'image_size')}))


@pytest.mark.shared
@pytest.mark.parametrize('task', ['refcoco', 'vcr'])
def test_mirrored_boxes_are_those_of_the_originals_reader(task):
    cases = json.loads((SHARED / f'vlbert_cases/{task}/expected.json').read_text())
    encoder, compared = random_head(task).encoder, 0
    for name, case in cases.items():
        other = cases.get(name.replace('flip0', 'flip1'))
        if 'flip0' not in name or other is None:
            continue
        width, height = map(int, case['im_info'][:2])
        size = torch.tensor([[height, width]])
        scale = torch.tensor([width, height, width, height])
        for expected, mirrored in ((case, False), (other, True)):
            batch = {'boxes': torch.tensor([case['boxes']])[..., :4] / scale, 'pixel_size': size,
                     'mirrored': torch.tensor([mirrored])}
            boxes = torch.tensor(expected['boxes'])[:, :4]
            torch.testing.assert_close(encoder.boxes(batch)[0] * scale, boxes, rtol=1e-5, atol=2e-3)
            compared += 1
        channels, *padded = case['image']
        assert channels == 3 and encoder.transform(True).plan(*size[0].tolist())[1] and min(padded) == 600
    assert compared >= 4


def test_each_task_has_the_transform_of_the_original():
    full = dict(RESNET, image_side=600)
    assert random_head('vcr', **full).encoder.transform(True) == VLBertTransform(1200, True)
    refcoco = random_head('refcoco', **full).encoder
    assert refcoco.transform(False) == VLBertTransform(1000) and refcoco.one_orientation
    assert random_head('refcoco').encoder.transform(False) == VLBertTransform(106, short=64)
    assert not random_head('pretrain').encoder.one_orientation


# ---- names, sizes, config


@pytest.mark.parametrize(('task', 'base', 'large'), [('pretrain', 156.7, None), ('vcr', 155.5, 382.7), ('refcoco', 154.8, None)])
def test_names_and_sizes_of_the_published_models(task, base, large):
    sizes = {'hidden_size': 1024, 'num_hidden_layers': 24, 'num_attention_heads': 16, 'intermediate_size': 4096}
    for millions, changes in ((base, {}), (large, sizes)):
        if millions:
            full = VLBertConfig(pixels=True, **changes)
            with torch.device('meta'):
                head = models.build('vlbert', task, full)
            assert round(sum(p.numel() for p in head.parameters() if p.requires_grad) / 1e6, 1) == millions
            if task == 'pretrain':
                assert full.parameters() == sum(p.numel() for p in head.parameters())
    state = {name: tuple(tensor.shape) for name, tensor in head.original_state().items()}
    branch = {name.removeprefix(f'{IMAGE}.') for name in state if name.startswith(f'{IMAGE}.')}
    norms = ('weight', 'bias', 'running_mean', 'running_var')
    expected = {'obj_downsample.1.weight', 'obj_downsample.1.bias', 'backbone.conv1.weight',
                *(f'backbone.bn1.{norm}' for norm in norms)}
    for stage, blocks in (('backbone.layer1', 3), ('backbone.layer2', 4), ('backbone.layer3', 23),
                          ('roi_head_feature_extractor', 3), ('head.0', 3)):
        for block in range(blocks):
            convs = {f'conv{i}': f'bn{i}' for i in (1, 2, 3)} | ({'downsample.0': 'downsample.1'} if block == 0 else {})
            expected |= {f'{stage}.{block}.{conv}.weight' for conv in convs}
            expected |= {f'{stage}.{block}.{norm}.{kind}' for norm in convs.values() for kind in norms}
    assert branch == expected
    assert state[f'{IMAGE}.backbone.conv1.weight'] == (64, 3, 7, 7)
    assert state[f'{IMAGE}.backbone.layer3.22.conv2.weight'] == (256, 256, 3, 3)
    assert state[f'{IMAGE}.head.0.0.downsample.0.weight'] == (2048, 1024, 1, 1)
    assert ('object_mask_visual_embedding.weight' in state, 'object_mask_word_embedding.weight' in state) == (
        False, task == 'pretrain')


@pytest.mark.parametrize('frozen', [True, False])
def test_parameters_are_counted(frozen):
    sizes = config(**RESNET, resnet_frozen=frozen)
    assert sizes.parameters() == sum(p.numel() for p in models.build('vlbert', 'pretrain', sizes).parameters())


@pytest.mark.parametrize(('values', 'message'), [
    ({'pixels': 1}, 'pixels: expected true or false, found 1'),
    ({'resnet_blocks': [3, 4, 23]}, 'resnet_blocks: expected 4 whole numbers from 1 to 1000'),
    ({'resnet_blocks': [3, 0, 1, 1]}, 'resnet_blocks: expected 4'), ({'resnet_blocks': 3}, 'resnet_blocks: expected 4'),
    ({'resnet_width': 0}, 'resnet_width: expected'), ({'image_side': 2.5}, 'image_side: expected'),
    ({'resnet_frozen': None}, 'resnet_frozen: expected true or false'),
    ({'pixels': True, 'resnet_width': 10 ** 5}, 'resnet_width: expected a size that fits this machine, found 100,000'),
    ({'pixels': True, 'resnet_width': 512, 'resnet_blocks': [900] * 4}, r'resnet_blocks: expected a size that fits')])
def test_a_config_that_does_not_fit_is_named(tmp_path, values, message):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message) as error:
        VLBertConfig.from_json(path)
    assert str(path) in str(error.value)


def test_the_config_is_written_and_read_and_the_flag_changes_it(tmp_path):
    sizes, path = config(**RESNET, resnet_frozen=False), tmp_path / 'config.json'
    path.write_text(sizes.to_json())
    assert VLBertConfig.from_json(path) == sizes and sizes.visual_feat_dim == FEATURES
    assert heads.read_config(tmp_path, Options()) == sizes
    assert not heads.read_config(tmp_path, Options(features='precomputed')).pixels
    path.write_text(config().to_json())
    changed = heads.read_config(tmp_path, Options(features='pixels', loadResNet='x'))
    assert changed.pixels and changed.visual_feat_dim == 2048
    with pytest.raises(ValueError, match=r'--loadResNet: .* give --features pixels'):
        heads.read_config(tmp_path, Options(loadResNet='x'))
    with pytest.raises(ValueError, match='--loadResNet and --load'):
        Options(loadResNet='x', load='y')
    for flags, message in (({'features': 'pixels'}, '--features pixels: LXMERT'), ({'loadResNet': 'x'}, '--loadResNet: LXMERT')):
        with pytest.raises(ValueError, match=message):
            lxmert_config(tmp_path, Options(**flags))


# ---- training


def gradients(head, batch):
    head.zero_grad()
    sum(head.train().losses(batch, head.counts([batch])).values()).backward()
    return {name: p.grad for name, p in head.named_parameters()}


@pytest.mark.parametrize(('task', 'make'), [('vcr', choice_batch), ('refcoco', region_batch)])
def test_a_step_trains_all_but_the_frozen_parts(task, make):
    head, batch = random_head(task), make()
    cnn = f'encoder.model.{IMAGE}.cnn.'
    if task == 'vcr':
        assert set(head.losses(batch, head.counts([batch]))) == {'BCE', 'Classes'}
    frozen = {name for name, p in head.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in head.named_parameters() if name.startswith((f'{cnn}backbone.stem.',
                                                                                     f'{cnn}backbone.res2.'))}
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    options = Options(optim='sgd', lr=1e-2, epochs=2)
    options.complete(head.recipe)
    step = OptimizerStep(head, options, 10, torch.device('cpu'))
    assert not {id(p) for p in step.parameters} & {id(p) for p in head.parameters() if not p.requires_grad}
    _, finite, _ = train_step(head, step, [batch], options, Progress(0, 5, 10), torch.device('cpu'))
    assert finite
    changed = {name for name, tensor in head.state_dict().items() if not torch.equal(tensor, before[name])}
    trained = {name for name in before if name.startswith(cnn) and '.norm.' not in name} - frozen
    assert {name for name in changed if name.startswith(cnn)} == trained and len(trained) == 7 + 7 + 2 * 7
    assert all(p.grad is None for name, p in head.named_parameters() if name in frozen)


def test_a_resnet_that_is_not_frozen_trains_scale_and_shift_of_its_norms():
    head = random_head(resnet_frozen=False)
    for name, gradient in gradients(head, choice_batch()).items():
        assert f'{IMAGE}.cnn' not in name or gradient.any(), name
    assert {name.rpartition('.')[2] for name, _ in head.named_parameters() if '.norm.' in name} == {'weight', 'bias'}


@pytest.mark.parametrize('task', ['vcr', 'pretrain'])
def test_checkpointing_computes_the_same_gradients(task, monkeypatch):
    monkeypatch.setattr('vlbert.cnn.CHUNK', 2)
    batch = choice_batch()
    if task == 'pretrain':
        batch = pretraining_batch() | image_batch((4, 7, 2), ((64, 70), (64, 64), (70, 64)))
    head, results = random_head(task), []
    for checkpointing in (False, True):
        accelerate(head, SimpleNamespace(checkpointing=checkpointing, compile=False, apex=False))
        results.append(gradients(head, batch))
    assert head.encoder.model.image_feature_extractor.cnn.gradient_checkpointing
    for name, gradient in results[0].items():
        assert gradient is None if results[1][name] is None else torch.equal(results[1][name], gradient), name


def test_autocast_computes_nearly_the_same_features():
    head, batch = random_head().train(), choice_batch()
    expected = head.encoder.encode_images(batch)['image_states']
    head.encoder.model.image_feature_extractor.cnn.gradient_checkpointing = True
    with torch.autocast('cpu', torch.bfloat16):
        features = head.encoder.encode_images(batch)['image_states']
        loss = sum(head.losses(batch, head.counts([batch])).values())
    loss.backward()
    assert (features.float() - expected).norm() < 0.03 * expected.norm() and torch.isfinite(loss)


def test_steps_are_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pixels.report, 'run_separately', lambda name, part, mode, *flags: dict.fromkeys(
        (f'{mode}, {what}' for what in ('s a step', 'peak memory, MB', 'peak memory beside weights and gradients, MB')), 2.0))
    assert pixels.main(['--out', str(tmp_path / 'x.json')]) == 0 and 'checkpointing, times s a step' in capsys.readouterr().out
    options = SimpleNamespace(images=None, batchSize=2, regions=3, runs=1, device='cpu', small=True)
    figures = pixels.measure('checkpointing', options)
    assert figures['checkpointing, s a step'] > 0 and figures['checkpointing, trained parameters'] > 2e6


def test_gradients_are_those_of_the_plain_restatement():
    head, batch = random_head().double(), image_batch()
    batch['pixels'], batch['boxes'] = batch['pixels'].double(), batch['boxes'].double()
    state = {name: tensor.requires_grad_('running' not in name) for name, tensor in head.original_state().items()}
    weights = torch.randn(2, 3, FEATURES, dtype=torch.float64)
    (head.encoder.encode_images(batch)['image_states'] * weights).sum().backward()
    total = 0.0
    for image, count in enumerate((3, 2)):
        features = plain_map(batch['pixels'][image], state, RESNET['resnet_blocks'])
        for region, box in list(enumerate(plain_boxes(batch, image)))[:count]:
            total = total + plain_feature(features, box, state, RESNET['resnet_blocks']) @ weights[image, region]
    names = {head.original_name(name): p.grad for name, p in head.named_parameters() if p.grad is not None}
    expected = torch.autograd.grad(total, [state[name] for name in names])
    assert len(names) == 3 * 7
    for (name, gradient), other in zip(names.items(), expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-8, msg=name)


def test_the_branch_is_frozen_with_the_embeddings():
    head, batch = random_head(), choice_batch()
    head.freeze('embeddings')
    assert all(gradient is None for name, gradient in gradients(head, batch).items() if IMAGE in name)
    listed = [module for part in head.parts() for module in part]
    covered = {id(p) for module in listed for p in module.parameters()}
    assert covered == {id(p) for p in head.encoder.parameters()}


def test_a_random_resnet_gives_features_of_ordinary_size():
    torch.manual_seed(0)
    head = models.build('vlbert', 'refcoco', config(**RESNET | {'resnet_blocks': (3, 4, 23, 3)}))
    with torch.no_grad():
        features = head.encoder.encode_images(image_batch())['image_states'][0]
    assert 0.1 < features.std() < 10 and features.abs().max() < 100


# ---- weights


def test_a_snapshot_has_the_last_stage_twice_and_loads_strictly(tmp_path):
    head, path = random_head(), tmp_path / 'BEST.pth'
    state = head.original_state()
    assert state[f'{IMAGE}.head.0.1.conv2.weight'].data_ptr() == state[
        f'{IMAGE}.roi_head_feature_extractor.1.conv2.weight'].data_ptr()
    torch.save(state, path)
    distinct = {tensor.data_ptr(): tensor.nbytes for tensor in state.values()}
    assert path.stat().st_size < 1.2 * sum(distinct.values()) + 500 * len(state)
    other = models.build('vlbert', 'vcr', config(**RESNET))
    counters = {name.replace('running_var', 'num_batches_tracked'): torch.tensor(7) for name in state if 'running_var' in name}
    other.load_original(read_state(path) | counters)  # as of the original code, which counts
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.original_state().items())
    assert not heads.load_start(other, Start('all', path))[0].missing

    changed = dict(state) | {f'{IMAGE}.head.0.0.bn1.bias': state[f'{IMAGE}.head.0.0.bn1.bias'] + 1}
    with pytest.raises(WeightsError, match='are one parameter in the model, but differ in the file'):
        other.load_original(changed)
    del changed[f'{IMAGE}.head.0.0.bn1.bias']
    with pytest.raises(WeightsError, match='1 tensors that the model needs are missing'):
        other.load_original(changed)


@pytest.mark.parametrize('pixels', [True, False])
def test_a_snapshot_of_the_other_kind_is_refused_with_the_flag(tmp_path, pixels):
    state = (random_head() if pixels else models.build('vlbert', 'vcr', config())).original_state()
    torch.save(state, tmp_path / 'x.pth')
    other = models.build('vlbert', 'vcr', config()) if pixels else random_head()
    with pytest.raises(WeightsError, match=f'x.pth: .* give --features {"pixels" if pixels else "precomputed"}$'):
        heads.load_start(other, Start('all', tmp_path / 'x.pth'))


@pytest.mark.parametrize(('source', 'target'), [(True, True), (False, True), (True, False)])
def test_fine_tuning_starts_from_either_pretraining(tmp_path, source, target):
    def built(task, pixels):
        return random_head(task) if pixels else models.build('vlbert', task, config(visual_feat_dim=FEATURES))
    pretrained = built('pretrain', source)
    state = pretrained.original_state()
    torch.save({f'module.{name}': tensor.half() for name, tensor in state.items()}, tmp_path / 'x.model')
    torch.manual_seed(9)
    head = built('refcoco', target)
    initial = {name: tensor.clone() for name, tensor in head.original_state().items()}
    report, *lines = heads.load_start(head, Start('encoder', tmp_path / 'x.model'))
    backbone = f'{IMAGE}.backbone.layer2.0.conv1.weight'
    assert (backbone in report.matched, backbone in report.missing, backbone in report.unexpected) == (
        source and target, target and not source, source and not target)
    assert [line.partition(':')[0] for line in lines] == ['The ResNet starts from random weights'] * (target and not source)
    for name, tensor in head.original_state().items():
        if name in state:
            assert torch.equal(tensor, state[name].half().float()), name
        elif not name.startswith('final_mlp.0'):
            assert torch.equal(tensor, initial[name]), name
    other = built('pretrain', target)  # pre-training goes on
    heads.load_start(other, Start('encoder', tmp_path / 'x.model'))
    name = 'vlbert.mvrc_head.region_cls_pred.weight'
    assert torch.equal(other.original_state()[name], state[name].half().float())


def test_features_of_another_size_start_with_a_new_projection(tmp_path):
    """A narrow ResNet has fewer features than the regions of the pre-training. A model of regions refuses such a file."""
    state = models.build('vlbert', 'pretrain', config(visual_feat_dim=FEATURES + 8)).original_state()
    torch.save(state, tmp_path / 'x.model')
    head = random_head('refcoco')
    projection = f'{IMAGE}.obj_downsample.1'
    initial = head.original_state()[f'{projection}.weight'].clone()
    report, line = heads.load_start(head, Start('encoder', tmp_path / 'x.model'))
    assert f'{projection}.weight' in report.missing and 'random weights' in line
    assert torch.equal(head.original_state()[f'{projection}.weight'], initial)
    for name in (f'{projection}.bias', 'vlbert.word_embeddings.weight'):
        assert torch.equal(head.original_state()[name], state[name])
    with pytest.raises(WeightsError, match=r'another size \(such as image_feature_extractor\.obj_downsample\.1\.weight'):
        heads.load_start(models.build('vlbert', 'refcoco', config(visual_feat_dim=FEATURES)),
                         Start('encoder', tmp_path / 'x.model'))


def test_part_of_a_branch_is_refused(tmp_path):
    state = {name: tensor for name, tensor in random_head('pretrain').original_state().items() if 'layer2.1.conv1' not in name}
    torch.save(state, tmp_path / 'x.model')
    with pytest.raises(WeightsError, match=r'1 tensors that the model needs are missing .*layer2\.1\.conv1\.weight'):
        heads.load_start(random_head('refcoco'), Start('encoder', tmp_path / 'x.model'))


def resnet_file(path, **changes):
    """A ResNet under torchvision's names, with its classifier."""
    names = (('backbone.', ''), ('roi_head_feature_extractor.', 'layer4.'))
    state = {}
    for name, tensor in random_head().original_state().items():
        for old, new in names:
            if name.startswith(f'{IMAGE}.{old}'):
                state[new + name.removeprefix(f'{IMAGE}.{old}')] = torch.rand_like(tensor) + 0.5
    torch.save(state | {'fc.weight': torch.rand(9, 3), 'fc.bias': torch.rand(9)} | changes, path)
    return state


def test_the_resnet_of_a_file_fills_branch_and_head(tmp_path):
    state, head = resnet_file(tmp_path / 'resnet.model'), random_head()
    report, = heads.load_start(head, Start('scratch', resnet=tmp_path / 'resnet.model'))
    assert sorted(report.unexpected) == ['fc.bias', 'fc.weight'] and not report.missing and len(report.matched) == len(state)
    loaded = head.original_state()
    for ours, theirs in ((f'{IMAGE}.backbone.conv1.weight', 'conv1.weight'), (f'{IMAGE}.backbone.bn1.bias', 'bn1.bias'),
                         (f'{IMAGE}.backbone.layer1.0.downsample.1.running_var', 'layer1.0.downsample.1.running_var'),
                         (f'{IMAGE}.head.0.1.conv2.weight', 'layer4.1.conv2.weight'),
                         (f'{IMAGE}.roi_head_feature_extractor.1.conv2.weight', 'layer4.1.conv2.weight')):
        assert torch.equal(loaded[ours], state[theirs])
    assert heads.load_start(head, Start('scratch'))[0].startswith('The ResNet starts from random weights')


@pytest.mark.parametrize(('changes', 'message'), [
    ({'layer2.0.conv1.weight': torch.rand(3, 3, 1, 1)}, '1 tensors have another size'),
    ({'layer2.7.conv1.weight': torch.rand(3, 3, 1, 1)}, '1 tensors are not part of the model'),
    ({'bn1.running_var': torch.full((4,), float('nan'))}, '1 tensors are invalid')])
def test_a_file_of_another_resnet_is_refused(tmp_path, changes, message):
    resnet_file(tmp_path / 'resnet.model', **changes)
    with pytest.raises(WeightsError, match=message) as error:
        heads.load_start(random_head(), Start('scratch', resnet=tmp_path / 'resnet.model'))
    assert str(error.value).startswith(str(tmp_path / 'resnet.model'))


def test_a_file_without_a_resnet_is_refused(tmp_path):
    torch.save({'x.weight': torch.rand(2, 2)}, tmp_path / 'x.pth')
    with pytest.raises(WeightsError, match=r'x.pth: expected a ResNet under the names of torchvision, found no conv1.weight'):
        heads.load_start(random_head(), Start('scratch', resnet=tmp_path / 'x.pth'))
