"""Regions in RAM and on a device give what a store gives; --tiny without a store gives the batches it gives with one."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ragged
from test_regions import IMAGES, with_probabilities, without_features

from annotations.dataset import load_examples
from annotations.examples import read_examples
from batches import MicroBatch, load_batches
from bert.tokenization import BertTokenizer
from param import Options
from regions import placement, store, tsv
from regions.arrays import RegionArrays, RegionView
from regions.tsv import RegionError
from tasks.vqa import VQA

CPU = torch.device('cpu')


@pytest.fixture
def load(world):
    """load('train', **options): the dataset of some splits of a world."""
    spec = VQA.spec(world)
    tokenizer = BertTokenizer.from_pretrained(world / 'bert')
    encoder = SimpleNamespace(needs=frozenset({'boxes', 'regions'}), mirror='', blank=False,
                              write=lambda texts, max_length, blank: {
                                  'input_ids': tokenizer.encode([text for text, in texts], max_length)})

    def dataset(names, **options):
        answers = spec.read_answers()
        examples = read_examples([split.annotations for split in spec.named(names)], VQA.schema, answers)
        return load_examples(spec, names, examples, encoder, answers, Options(**options), device=CPU)

    return dataset


def same(one: dict, other: dict) -> None:
    assert sorted(one) == sorted(other)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)


def test_ram_and_device_give_what_the_store_gives(world, load):
    ragged(world)
    dataset = load('train,minival')
    assert isinstance(dataset.regions, RegionView)
    parts = [MicroBatch(np.arange(20), 0), MicroBatch(np.arange(len(dataset))[::-7], 20)]
    options = Options()
    expected = list(load_batches(dataset, parts, options, CPU))
    assert any('visual_attention_mask' in batch for batch in expected)
    disk = dataset.regions
    dataset.regions = placement.place(disk, 'ram', CPU)
    assert all(type(array) is np.ndarray and array.flags.owndata for array in dataset.regions.stores[0].arrays.values())
    for one, other in zip(load_batches(dataset, parts, options, CPU), expected, strict=True):
        same(one, other)
    dataset.regions = placement.OnDevice(disk, CPU)
    assert dataset[parts[0]].keys() == (expected[0].keys() - {'features', 'boxes'}) | {'places'}
    for batch in expected:
        batch['features'] = batch['features'].half().float()
    for one, other in zip(load_batches(dataset, parts, options, CPU), expected, strict=True):
        same(one, other)
    few = np.flatnonzero(disk.gather(np.arange(len(disk)))['mask'].sum(1) < disk.max_regions)[:2]
    narrow, wide = placement.gather_batch(disk, few), placement.gather_batch(disk, few, static_shape=True)
    o = narrow['mask'].shape[1]
    for name, array in wide.items():
        assert array.shape[1] == disk.max_regions > o and not array[:, o:].any()
        np.testing.assert_array_equal(array[:, :o], narrow[name])
    np.testing.assert_array_equal(placement.gather_batch(dataset.regions, few, static_shape=True)['mask'], wide['mask'])
    rows = np.array([0, -1])  # an image without regions
    places = placement.gather_batch(dataset.regions, rows)['places']
    assert (places[1] == -1).all() and not dataset.regions.look_up(torch.from_numpy(places))['features'][1].any()
    with pytest.raises(IndexError, match='expected rows from 0 to'):
        dataset.regions.places([len(disk)])


@pytest.fixture
def two_stores(tmp_path):
    """Two stores with 7 class probabilities a region, images of 1 to 4 regions; boxes only if asked: two_stores(features)."""
    def make(features=True):
        images = [with_probabilities(one if features else without_features(one)) for one in IMAGES]
        for name, part in (('a', images[:2]), ('b', images[2:])):
            store.write(tmp_path / f'{name}.store', part, {})
        return store.open_all([tmp_path / 'a.store', tmp_path / 'b.store']), images

    return make


@pytest.mark.parametrize('where', ['cpu', 'ram', 'device'])
def test_optional_columns_of_a_batch(two_stores, where):
    disk, images = two_stores()
    regions = placement.OnDevice(disk, CPU) if where == 'device' else placement.place(disk, where, CPU)
    rows, column = np.array([1, -1, 3]), 'class_probabilities'
    for static_shape, o in ((False, 3), (True, 4)):
        plain = placement.gather_batch(regions, rows, static_shape)
        assert column not in plain
        batch = placement.gather_batch(regions, rows, static_shape, columns=(column,))
        assert batch.keys() == plain.keys() | {column} and batch[column].dtype == np.float16
        for name, array in plain.items():
            np.testing.assert_array_equal(batch[name], array)
        assert batch['mask'].dtype == bool and batch['mask'].sum(1).tolist() == [1, 0, 3] and batch[column].shape == (3, o, 7)
        batch = placement.to_device(regions, {name: torch.from_numpy(array) for name, array in batch.items()})
        assert batch['features'].shape == (3, o, 5) and {batch[name].dtype for name in ('features', column)} == {torch.float32}
        for i, row in ((0, 1), (2, 3)):
            n = len(images[row].boxes)
            np.testing.assert_array_equal(batch[column][i, :n], images[row].class_probabilities.astype(np.float32))
            assert not batch[column][i, n:].any()
        assert not any(batch[name][1].any() for name in ('features', 'boxes', column))
    assert regions.size_of(column) == 7
    # An image without regions reads row 0 in its place, which has more regions than the only other one.
    assert not placement.gather_batch(regions, np.array([-1, 1]), columns=(column,))[column][0].any()
    with pytest.raises(RegionError, match='expected the column "pixels"'):
        placement.gather_batch(regions, rows, columns=('pixels',))


def expected_with_whole_image(images: list, o: int, half: bool) -> dict[str, np.ndarray]:
    """A batch with the image as region 0, restated with loops. images: ImageRegions, or None for row -1."""
    b = len(images)
    batch = {'features': np.zeros((b, 1 + o, 5), 'f4'), 'boxes': np.zeros((b, 1 + o, 4), 'f4'),
             'mask': np.zeros((b, 1 + o), bool), 'image_size': np.zeros((b, 2), 'i8')}
    for i, one in enumerate(images):
        if one is None:
            continue
        features = one.features.astype('f2').astype('f4') if half else one.features
        total = np.zeros(5)
        for row, (feature, (x1, y1, x2, y2)) in enumerate(zip(features, one.boxes, strict=True), 1):
            total += feature
            batch['features'][i, row] = feature
            batch['boxes'][i, row] = x1 / one.width, y1 / one.height, x2 / one.width, y2 / one.height
        batch['features'][i, 0] = total / max(len(features), 1) if one.image_feature is None else one.image_feature
        batch['boxes'][i, 0] = 0, 0, 1 - 1 / one.width, 1 - 1 / one.height
        batch['mask'][i, :1 + len(features)] = True
        batch['image_size'][i] = one.height, one.width
    return batch


def whole_image_batch(regions, rows, **arguments) -> dict[str, torch.Tensor]:
    """The batch that a model reads, in which `mask` may be missing where it is True throughout, as in datasets."""
    batch = placement.gather_batch(regions, np.array(rows), whole_image=True, **arguments)
    mask = torch.from_numpy(batch.pop('mask'))
    return placement.to_device(regions, {name: torch.from_numpy(array) for name, array in batch.items()}) | {'mask': mask}


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('where', ['cpu', 'ram', 'device'])
@pytest.mark.parametrize('stored', ['', 'b', 'ab'])  # the stores whose images have a feature of their own
def test_the_whole_image_is_region_0(tmp_path, where, dtype, stored):
    images = [with_probabilities(one) for one in IMAGES]
    for i, one in enumerate(images):
        if 'aabbb'[i] in stored:
            images[i] = replace(one, image_feature=np.arange(5, dtype='f4') + i / 3)
    for name, part in (('a', images[:2]), ('b', images[2:])):
        store.write(tmp_path / f'{name}.store', part, {}, dtype=dtype)
    disk = store.open_all([tmp_path / 'a.store', tmp_path / 'b.store'])
    assert isinstance(disk, RegionView)
    regions = placement.OnDevice(disk, CPU) if where == 'device' else placement.place(disk, where, CPU)
    for rows in ([3, -1, 1, 0], [1], [-1], [2, 4]):
        of_rows = [images[row] if row >= 0 else None for row in rows]
        most = max((len(one.boxes) for one in of_rows if one), default=1)
        for static_shape in (False, True):
            batch = whole_image_batch(regions, rows, static_shape=static_shape, columns=('class_probabilities',))
            probabilities, o = batch.pop('class_probabilities'), batch['mask'].shape[1] - 1
            assert o == 4 if static_shape else o == most or (o > most and -1 in rows)
            expected = expected_with_whole_image(of_rows, o, where == 'device' or dtype == 'float16')
            assert batch.keys() == expected.keys()
            for name, array in expected.items():
                assert batch[name].numpy().dtype == array.dtype
                np.testing.assert_allclose(batch[name], array, rtol=0, atol=1e-3 if name == 'features' and stored else 1e-6)
                np.testing.assert_allclose(batch[name][:, 1:] if array.ndim == 3 else batch[name],
                                           array[:, 1:] if array.ndim == 3 else array, rtol=0, atol=1e-7)
            assert probabilities.shape == (*batch['mask'].shape, 7) and not probabilities[:, 0].any()
            for i, one in enumerate(of_rows):
                if one is not None:
                    np.testing.assert_array_equal(probabilities[i, 1:1 + len(one.boxes)], one.class_probabilities.astype('f4'))
                    if one.image_feature is not None:
                        np.testing.assert_array_equal(batch['features'][i, 0], one.image_feature)


@pytest.mark.parametrize('where', ['cpu', 'device'])
def test_an_image_without_any_region_is_region_0(where):
    none = replace(IMAGES[0], **{name: getattr(IMAGES[0], name)[:0] for name in tsv.ARRAYS})
    for images in ([none, IMAGES[1]], [IMAGES[1], IMAGES[1]]):
        regions = RegionArrays.of_images('few', [replace(one, img_id=str(i)) for i, one in enumerate(images)])
        regions = placement.OnDevice(regions, CPU) if where == 'device' else regions
        batch = whole_image_batch(regions, [0, 1])
        o = max(len(one.boxes) for one in images)
        for name, array in expected_with_whole_image(images, o, where == 'device').items():
            np.testing.assert_allclose(batch[name], array, rtol=0, atol=1e-6)


def test_the_whole_image_of_boxes_without_features(two_stores):
    disk, images = two_stores(features=False)
    for regions in (disk, placement.OnDevice(disk, CPU)):
        batch = whole_image_batch(regions, [2, -1])
        assert batch.keys() == {'boxes', 'mask', 'image_size'} and batch['mask'].sum(1).tolist() == [5, 0]
        width, height = images[2].width, images[2].height
        torch.testing.assert_close(batch['boxes'][:, 0], torch.tensor([[0, 0, 1 - 1 / width, 1 - 1 / height], [0] * 4]))


@pytest.mark.parametrize('where', ['cpu', 'ram', 'device'])
def test_regions_without_features(two_stores, where):
    disk, images = two_stores(features=False)
    regions = placement.OnDevice(disk, CPU) if where == 'device' else placement.place(disk, where, CPU)
    batch = placement.gather_batch(regions, np.array([2, 0, -1]))
    batch = placement.to_device(regions, {name: torch.from_numpy(array) for name, array in batch.items()})
    assert regions.feature_size == 0 and batch.keys() == {'boxes', 'mask'} and batch['mask'].sum(1).tolist() == [4, 3, 0]
    for i, one in ((0, images[2]), (1, images[0])):
        scaled = one.boxes / np.float32([one.width, one.height, one.width, one.height])
        np.testing.assert_array_equal(batch['boxes'][i, :len(scaled)], scaled)


def test_splits_share_what_is_on_the_device(load):
    train, valid = (load(name) for name in ('train,minival', 'minival'))
    both, one = placement.OnDevice(train.regions, CPU), placement.OnDevice(valid.regions, CPU)
    assert both.tables[1] is one.tables[0]


def test_what_does_not_fit_on_the_gpu(load, monkeypatch):
    regions = load('minival').regions
    message = r'val2014_obj36\.store take 27\.0 GB in half precision, and 24\.0 GB of cuda:0 are free, .*--featDevice cpu or ram'
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (24 * 10**9, 80 * 10**9))
    with pytest.raises(RegionError, match=message):
        placement.check_gpu_memory(27 * 10**9, regions.name, torch.device('cuda:0'))
    placement.check_gpu_memory(22 * 10**9, regions.name, torch.device('cuda:0'))
    with pytest.raises(RegionError, match='--featDevice cuda: there is no GPU'):
        placement.place(regions, 'cuda', CPU)
    with pytest.raises(ValueError, match='--featDevice cuda and --device cpu'):
        Options(featDevice='cuda', device='cpu')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_on_a_gpu(load):
    dataset = load('minival')
    parts, device = [MicroBatch(np.arange(8), 0)], torch.device('cuda')
    expected = next(load_batches(dataset, parts, Options(), device))
    dataset.regions = placement.place(dataset.regions, 'cuda', device)
    batch = next(load_batches(dataset, parts, Options(), device))
    same(batch, expected | {'features': expected['features'].half().float()})


def test_tiny_without_a_store_leaves_none_and_gives_the_same_batches(world, load, monkeypatch, capsys):
    monkeypatch.setattr(Options, 'image_limit', property(lambda options: 3 if options.tiny else None))
    folder = world / 'mscoco_imgfeat'
    for path in folder.glob('*.store*'):  # of another test
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = sorted(path.name for path in folder.iterdir())
    data = world / 'vqa/minival.json'
    questions = json.loads(data.read_text())
    data.write_text(json.dumps([*questions, questions[0] | {'img_id': 'none', 'question_id': 10**9}]))
    few = load('train,minival', tiny=True)
    assert sorted(path.name for path in folder.iterdir()) == before
    said = capsys.readouterr().out
    for path in {path for name in ('train', 'minival') for path in VQA.spec(world).splits[name].features}:
        store.open_regions(path)
    complete = load('train,minival', tiny=True)
    assert said.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]  # as many questions on as many images
    assert len(np.unique(few.rows)) == 6 and few.digest() == complete.digest()
    parts = [MicroBatch(np.arange(len(few)), 0)]
    for one, other in zip(load_batches(few, parts, Options(), CPU), load_batches(complete, parts, Options(), CPU), strict=True):
        same(one, other)
    assert 'without regions' not in said  # there may be some in what was not read


def test_tiny_reads_all_there_is_and_says_what_is_missing(world, load, capsys):
    data = world / 'vqa/minival.json'
    questions = json.loads(data.read_text())
    data.write_text(json.dumps([*questions, questions[0] | {'img_id': 'none', 'question_id': 10**9}]))
    few = load('minival', tiny=True)  # fewer than 512 images
    assert '1 of ' in (said := capsys.readouterr().out) and 'without regions (none): skipped.' in said
    assert few.digest() == load('minival').digest()
    assert (world / 'mscoco_imgfeat/val2014_obj36.store').is_dir()
