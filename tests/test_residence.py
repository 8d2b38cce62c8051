"""Regions in RAM and on a device give what a store gives; --tiny without a store gives the batches it gives with one."""

import json

import numpy as np
import pytest
import torch
from conftest import ragged

from annotations.dataset import load_examples
from annotations.examples import read_examples
from param import Options
from regions import placement, store
from regions.arrays import RegionView
from regions.tsv import RegionError
from tasks import start
from tasks.vqa import VQA
from train import MicroBatch, batches

CPU = torch.device('cpu')


@pytest.fixture
def load(world):
    """load('train', **options): the dataset of some splits of a world."""
    spec = VQA.spec(world)
    config = start.read_config(world / 'bert', Options(bert=str(world / 'bert')))
    tokenizer = start.read_tokenizer(world / 'bert', config)

    def dataset(names, **options):
        answers = spec.read_answers()
        examples = read_examples([split.annotations for split in spec.named(names)], VQA.form, answers)
        return load_examples(spec, names, examples, tokenizer, answers, Options(**options), device=CPU)

    return dataset


def same(one: dict, other: dict) -> None:
    assert sorted(one) == sorted(other)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=0)


def test_ram_and_device_give_what_the_store_gives(world, load):
    ragged(world)
    dataset = load('train,minival')
    assert isinstance(dataset.regions, RegionView)
    parts = [MicroBatch(np.arange(20), 0), MicroBatch(np.arange(len(dataset))[::-7], 20)]
    options = Options()
    expected = list(batches(dataset, parts, options, CPU))
    assert any('visual_attention_mask' in batch for batch in expected)
    disk = dataset.regions
    dataset.regions = placement.place(disk, 'ram', CPU)
    assert all(type(array) is np.ndarray and array.flags.owndata for array in dataset.regions.stores[0].arrays.values())
    for one, other in zip(batches(dataset, parts, options, CPU), expected, strict=True):
        same(one, other)
    dataset.regions = placement.OnDevice(disk, CPU)
    assert dataset[parts[0]].keys() == (expected[0].keys() - {'features', 'boxes'}) | {'places'}
    for batch in expected:
        batch['features'] = batch['features'].half().float()
    for one, other in zip(batches(dataset, parts, options, CPU), expected, strict=True):
        same(one, other)
    few = np.flatnonzero(disk.gather(np.arange(len(disk)))['mask'].sum(1) < disk.max_regions)[:2]
    narrow, wide = placement.see(disk, few), placement.see(disk, few, whole=True)
    o = narrow['mask'].shape[1]
    for name, array in wide.items():
        assert array.shape[1] == disk.max_regions > o and not array[:, o:].any()
        np.testing.assert_array_equal(array[:, :o], narrow[name])
    np.testing.assert_array_equal(placement.see(dataset.regions, few, whole=True)['mask'], wide['mask'])
    rows = np.array([0, -1])  # an image without regions
    places = placement.see(dataset.regions, rows)['places']
    assert (places[1] == -1).all() and not dataset.regions.look_up(torch.from_numpy(places))['features'][1].any()
    with pytest.raises(IndexError, match='expected rows from 0 to'):
        dataset.regions.places([len(disk)])


def test_splits_share_what_is_on_the_device(load):
    train, valid = (load(name) for name in ('train,minival', 'minival'))
    both, one = placement.OnDevice(train.regions, CPU), placement.OnDevice(valid.regions, CPU)
    assert both.tables[1] is one.tables[0]


def test_what_does_not_fit_on_the_gpu(load):
    regions = load('minival').regions
    message = r'val2014_obj36\.store take 27\.0 GB in half precision, and 24\.0 GB of cuda:0 are free, .*--featDevice cpu or ram'
    with pytest.raises(RegionError, match=message):
        placement.check_room(27 * 10**9, regions.name, torch.device('cuda:0'), free=24 * 10**9)
    placement.check_room(22 * 10**9, regions.name, torch.device('cuda:0'), free=24 * 10**9)
    with pytest.raises(RegionError, match='--featDevice cuda: there is no GPU'):
        placement.place(regions, 'cuda', CPU)
    with pytest.raises(ValueError, match='--featDevice cuda and --device cpu'):
        Options(featDevice='cuda', device='cpu')


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs an NVIDIA GPU')
def test_on_a_gpu(load):
    dataset = load('minival')
    parts, device = [MicroBatch(np.arange(8), 0)], torch.device('cuda')
    expected = next(batches(dataset, parts, Options(), device))
    dataset.regions = placement.place(dataset.regions, 'cuda', device)
    found = next(batches(dataset, parts, Options(), device))
    same(found, expected | {'features': expected['features'].half().float()})


def test_tiny_without_a_store_leaves_none_and_gives_the_same_batches(world, load, monkeypatch, capsys):
    monkeypatch.setattr(Options, 'image_limit', property(lambda options: 3 if options.tiny else None))
    folder = world / 'mscoco_imgfeat'
    before = sorted(path.name for path in folder.iterdir())
    assert not [name for name in before if 'store' in name]
    data = world / 'vqa/minival.json'
    questions = json.loads(data.read_text())
    data.write_text(json.dumps([*questions, questions[0] | {'img_id': 'none', 'question_id': 10**9}]))
    few = load('train,minival', tiny=True)
    assert sorted(path.name for path in folder.iterdir()) == before
    said = capsys.readouterr().out
    for path in {path for name in ('train', 'minival') for path in VQA.spec(world).splits[name].features}:
        store.open_regions(path)
    whole = load('train,minival', tiny=True)
    assert said.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1]  # as many questions on as many images
    assert len(np.unique(few.rows)) == 6 and few.digest() == whole.digest()
    parts = [MicroBatch(np.arange(len(few)), 0)]
    for one, other in zip(batches(few, parts, Options(), CPU), batches(whole, parts, Options(), CPU), strict=True):
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
