"""From pictures to pixels: resizing, crops, mirroring, RandAugment and normalisation, against plain restatements and Pillow."""

import json
import math
import re
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image, ImageOps

from images import rand_augment as ra
from images.source import STREAM, open_source
from images.transforms import ALBEFTransform, VLBertTransform, random_crop, resized
from vlbert.modeling import original_boxes
from vlbert.modeling import resized as resized_tensor

REFCOCO, VCR = VLBertTransform(), VLBertTransform(1200, fixed=True)


def save(folder, sizes):
    """Pictures 0.png, 1.png, ... of noise, of these (width, height), and a source of them."""
    folder.mkdir()
    pictures = []
    for i, (width, height) in enumerate(sizes):
        noise = np.random.default_rng(i).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        pictures.append(Image.fromarray(noise).resize((width, height)))
        pictures[-1].save(folder / f'{i}.png')
    return open_source(folder), pictures


def pixels(transform, batch):
    batch = transform.normalize({name: torch.from_numpy(array) for name, array in batch.items()})
    return batch['pixels'].numpy()


# Sizes and values


@pytest.mark.parametrize('size, expected', [
    ((480, 640), (600, 800)), ((640, 427), (899, 600)), ((500, 400), (750, 600)), ((300, 300), (600, 600)),
    ((500, 1500), (333, 999)),  # int(1000 / 3), then 3 * 333
    ((100, 600), (166, 996)), ((20, 600), (33, 990)), ((2400, 1200), (1000, 500))])
def test_vlberts_sizes(size, expected):
    assert resized(*size) == expected and resized(*size[::-1]) == expected[::-1]


def test_sizes_are_those_by_which_the_model_cuts_boxes():
    sizes = np.random.default_rng(0).integers(16, 3000, (2000, 2))
    for longest in (1000, 1200):
        assert [resized(*size, longest=longest) for size in sizes.tolist()] == \
            [tuple(size) for size in resized_tensor(torch.from_numpy(sizes), longest).int().tolist()]


def test_vlberts_pixels(tmp_path):
    source, pictures = save(tmp_path / 'p', [(64, 48), (40, 120), (200, 24)])
    batch = source.batch([0, 1, 2], REFCOCO)
    assert batch['pixel_size'].tolist() == [[600, 800], [999, 333], [120, 1000]]
    assert batch['image_size'].tolist() == [[48, 64], [120, 40], [24, 200]]
    expected = np.zeros((3, 3, 999, 1000))
    for picture, place, (height, width) in zip(pictures, expected, batch['pixel_size'].tolist(), strict=True):
        values = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).astype(float)
        for channel, (colour, mean) in enumerate(((2, 102.9801), (1, 115.9465), (0, 122.7717))):
            place[channel, :height, :width] = values[:, :, colour] - mean
    assert np.abs(pixels(REFCOCO, batch) - expected).max() < 1e-4
    assert source.batch([0], REFCOCO, static_shape=True)['pixels'].shape == (1, 3, 1000, 1000)
    assert source.batch([0, 2], VCR)['pixels'].shape == (2, 3, 600, 1200)
    assert source.batch([1], VCR)['pixels'].shape == (1, 3, 1200, 600)


def test_albefs_pixels(tmp_path):
    source, pictures = save(tmp_path / 'p', [(64, 48), (40, 120)])
    transform = ALBEFTransform(56)
    result = pixels(transform, source.batch([0, 1], transform))
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    for picture, one in zip(pictures, result, strict=True):
        values = np.asarray(picture.resize((56, 56), Image.Resampling.BICUBIC)) / 255
        assert np.abs(one - ((values - mean) / std).transpose(2, 0, 1)).max() < 1e-5


def test_picture_and_boxes_are_mirrored_together(tmp_path):
    """A light rectangle is where the model's mirrored box says."""
    (tmp_path / 'p').mkdir()
    canvas = np.zeros((60, 80, 3), np.uint8)
    canvas[12:30, 8:28] = 255
    Image.fromarray(canvas).save(tmp_path / 'p/0.png')
    batch = open_source(tmp_path / 'p').batch([0, 0], REFCOCO, mirrored=[False, True])
    assert np.array_equal(batch['pixels'][1], batch['pixels'][0][..., ::-1])
    box = torch.tensor([8 / 80, 12 / 60, 28 / 80, 30 / 60]).repeat(2, 1, 1)
    boxes = original_boxes(box, torch.from_numpy(batch['image_size']), torch.tensor([False, True]))[:, 0]
    for one, (x1, y1, x2, y2) in zip(batch['pixels'], (boxes * torch.tensor([800, 600] * 2)).tolist(), strict=True):
        rows, columns = (np.flatnonzero((one[0] > 128).any(axis)) for axis in (1, 0))
        assert np.abs(np.array([columns[0] - x1, rows[0] - y1, columns[-1] - x2, rows[-1] - y2])).max() <= 1.5


def plain_crop(height, width, area, rng):
    """torchvision's RandomResizedCrop.get_params, with its draws from rng: area, ratio, top, left."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            i = rng.integers(0, height - h + 1)
            j = rng.integers(0, width - w + 1)
            return i, j, h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        h, w = height, round(height * (4 / 3))
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize('height, width', [(480, 640), (90, 31), (20, 600), (600, 20), (100, 100)])
def test_random_crops(height, width):
    for seed in range(60):
        for area in ((0.2, 1.0), (0.5, 1.0)):
            i, j, h, w = plain_crop(height, width, area, np.random.default_rng(seed))
            assert random_crop(height, width, area, np.random.default_rng(seed)) == (j, i, j + w, i + h)


def test_a_crop_is_cut_before_it_is_resized(tmp_path):
    source, [picture] = save(tmp_path / 'p', [(160, 120)])
    transform = ALBEFTransform(32, (0.2, 0.9), flip=True)
    mirrored = 0
    for position in range(20):
        rng = np.random.default_rng([5, 2, position, STREAM])
        box = random_crop(120, 160, (0.2, 0.9), rng)
        expected = np.asarray(picture.crop(box).resize((32, 32), Image.Resampling.BICUBIC))
        if rng.random() < 0.5:
            mirrored, expected = mirrored + 1, expected[:, ::-1]
        batch = source.batch([0], transform, 5, 2, [position])
        assert np.array_equal(batch['pixels'][0].transpose(1, 2, 0), expected)
    assert 4 <= mirrored <= 16


# RandAugment


def coloured(height, width):
    y, x, c = np.mgrid[:height, :width, :3]
    return ((y * 37 + x * 91 + c * 53 + x * y * (c + 1) % 17 * 11) % 256).astype(np.uint8)


# CRC-32 of the result on coloured(23, 29) by OpenCV 4.5.5 (warpAffine, filter2D), for a draw of 0.1 and of 0.9.
OPENCV = {'Sharpness': (1183488283, 1183488283), 'ShearX': (2338264645, 4144342664), 'ShearY': (873090199, 872395226),
          'TranslateX': (2794590602, 3912612996), 'TranslateY': (3540265301, 374035997), 'Rotate': (1556271687, 2002930850)}


@pytest.mark.parametrize('name', OPENCV)
def test_operations_as_opencv_computes_them(name):
    results = [ra.apply(coloured(23, 29), name, draw) for draw in (0.1, 0.9)]
    assert tuple(zlib.crc32(np.ascontiguousarray(result)) for result in results) == OPENCV[name]


def plain_warp(picture, source_of):
    """Linear interpolation at source_of(x, y), rounded to 1/32; 128 outside."""
    height, width = picture.shape[:2]
    result = np.empty_like(picture)

    def pixel(x, y):
        return picture[y, x].astype(float) if 0 <= x < width and 0 <= y < height else np.full(3, 128.0)

    for y in range(height):
        for x in range(width):
            sx, sy = (math.floor(value * 32 + 0.5) / 32 for value in source_of(x, y))
            i, j = math.floor(sx), math.floor(sy)
            u, v = sx - i, sy - j
            value = (1 - v) * ((1 - u) * pixel(i, j) + u * pixel(i + 1, j)) \
                + v * ((1 - u) * pixel(i, j + 1) + u * pixel(i + 1, j + 1))
            result[y, x] = np.floor(value + 0.5)
    return result


def turn(degrees, width, height):
    """Where the pixel (x, y) of a picture turned against the clock by so many degrees comes from."""
    angle, cx, cy = math.radians(degrees), width / 2, height / 2

    def source_of(x, y):
        dx, dy = x - cx, y - cy
        return cx + math.cos(angle) * dx - math.sin(angle) * dy, cy + math.sin(angle) * dx + math.cos(angle) * dy
    return source_of


@pytest.mark.parametrize('name, draw, source_of', [
    ('ShearX', 0.1, lambda x, y: (x - 0.21 * y, y)), ('ShearX', 0.9, lambda x, y: (x + 0.21 * y, y)),
    ('ShearY', 0.1, lambda x, y: (x, y - 0.21 * x)), ('ShearY', 0.9, lambda x, y: (x, y + 0.21 * x)),
    ('TranslateX', 0.1, lambda x, y: (x + 7, y)), ('TranslateX', 0.9, lambda x, y: (x - 7, y)),
    ('TranslateY', 0.1, lambda x, y: (x, y + 7)), ('TranslateY', 0.9, lambda x, y: (x, y - 7)),
    ('Rotate', 0.9, turn(21, 40, 30)), ('Rotate', 0.1, turn(-21, 40, 30))])
def test_warps_as_restated(name, draw, source_of):
    picture = coloured(30, 40)
    difference = np.abs(ra.apply(picture, name, draw).astype(int) - plain_warp(picture, source_of))
    # A coordinate half-way between two 32nds may be rounded either way: a neighbour of very different colour counts 1/32 more.
    assert (difference == 0).mean() > 0.97 and difference.max() <= 255 / 32 + 1


def test_values_as_restated():
    picture = coloured(30, 40)
    assert np.array_equal(ra.apply(picture, 'Identity', 0.1), picture)
    assert np.array_equal(ra.apply(picture, 'Brightness', 0.1),
                          np.minimum(picture.astype(np.float32) * np.float32(1.36), 255).astype(np.uint8))
    expected = picture.copy()
    for y in range(1, 29):
        for x in range(1, 39):
            block = picture[y - 1:y + 2, x - 1:x + 2].astype(np.float32)
            smooth = np.rint((block.sum((0, 1)) + 4 * block[1, 1]) / 13)
            expected[y, x] = np.trunc(smooth + np.float32(1.36) * (block[1, 1] - smooth)).astype(int) % 256  # wraps
    assert np.array_equal(ra.apply(picture, 'Sharpness', 0.1), expected)


def test_histograms_as_pillow_and_where_the_original_differs():
    for picture in (coloured(30, 40), (coloured(64, 80) // 4).astype(np.uint8), np.full((30, 40, 3), 7, np.uint8)):
        assert np.array_equal(ra.apply(picture, 'Equalize', 0.1), np.asarray(ImageOps.equalize(Image.fromarray(picture))))
    dark = (coloured(30, 40) // 3).astype(np.uint8)
    assert not dark.min((0, 1)).any()
    assert np.array_equal(ra.apply(dark, 'AutoContrast', 0.1), np.asarray(ImageOps.autocontrast(Image.fromarray(dark))))
    dark[..., 1] += 5  # the offset of the original wraps
    dark[..., 2] = 9
    result = ra.apply(dark, 'AutoContrast', 0.1)
    assert (result[..., 1] == 255).all() and (result[..., 2] == 9).all() and np.array_equal(
        result[..., 0], np.asarray(ImageOps.autocontrast(Image.fromarray(dark)))[..., 0])


def test_which_operations_are_done(monkeypatch):
    done = Counter()
    monkeypatch.setattr(ra, 'apply', lambda picture, name, draw: (done.update([name, f'{name} {draw > 0.5}']), picture)[1])
    for seed in range(4000):
        ra.rand_augment(None, np.random.default_rng(seed))
    assert set(ra.OPERATIONS) == {name for name in done if ' ' not in name}
    for name in ra.OPERATIONS:  # 2 draws * 1/10 * 1/2 of 4,000; both signs
        assert abs(done[name] - 400) < 90 and abs(done[f'{name} True'] - 200) < 65


# Real cases


@pytest.mark.shared
@pytest.mark.parametrize('task', ['refcoco', 'vcr'])
def test_sizes_of_the_original_readers(task):
    folder = SHARED / 'vlbert_cases' / task
    transform = VCR if task == 'vcr' else REFCOCO
    if task == 'refcoco':
        images = json.loads((folder / 'refcoco+/instances.json').read_text())['images']
        sizes = [(image['height'], image['width']) for image in images]
    else:
        sizes = [Image.open(path).size[::-1] for path in (folder / 'vcr1images').rglob('*.[pj][np]g')]
    plans = {size: transform.plan(*size)[1] for size in sizes}
    cases = [case for case in json.loads((folder / 'expected.json').read_text()).values() if 'im_info' in case]
    assert cases
    for case in cases:
        width, height, wide, high = case['im_info'][:4]
        (old_height, old_width), _ = next(item for item in plans.items() if item[1] == (height, width))
        assert (round(width / old_width, 6), round(height / old_height, 6)) == pytest.approx((wide, high), abs=2e-6)
        assert transform.batch_size(np.array([[int(height), int(width)]])) == tuple(case['image'][1:])


@pytest.mark.shared
def test_albef_tiny_passes_all_transforms(tmp_path):
    source = open_source(SHARED / 'albef_tiny/images', ids='path', index_root=tmp_path)
    rows = np.arange(len(source))
    transform = ALBEFTransform(64, (0.5, 1.0), True, True)
    batch = source.batch(rows, transform, 0, 0, rows)
    assert batch['pixels'].shape == (len(rows), 3, 64, 64) and re.search('flickr30k', source.ids[0].decode())
