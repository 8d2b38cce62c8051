"""Images as a data source of datasets: batches of pixels, boxes and masks, which data is opened, and what is wrong with it."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED
from PIL import Image
from single_stream.heads import SingleStream
from test_vcr import process
from torch import nn

import batches
import dist
import models
from annotations import captions
from annotations.captions import load_captions
from annotations.dataset import load_examples
from annotations.examples import read_examples
from annotations.spec import DatasetSpec
from batches import MicroBatch
from bert.tokenization import BertTokenizer
from files.json_files import DataError
from heads import Encoder, Recipe, States, head_for
from images import pixel_store
from images.pictures import open_picture
from images.source import open_source
from images.transforms import ALBEFTransform, VLBertTransform
from param import Options
from predict.ask import Pipeline
from pretrain.captions import published as published_captions
from regions import placement, store, tsv
from regions.tsv import RegionError
from tasks.predictor import Predictor
from tasks.program import inputs_of, main
from tasks.registry import TASKS, task_class
from tasks.vcr import VCR
from tasks.vqa import VQA
from tools import check_dataset, encode

CPU = torch.device('cpu')
CROPPED = ALBEFTransform(16, (0.5, 1.0), True, True)
RESIZED = VLBertTransform(longest=40, short=24)


class Reader(Encoder):
    """An encoder without parameters, which says what it needs."""

    def __init__(self, world, needs, transform=RESIZED, mirror='', one_orientation=False):
        super().__init__()
        self.needs, self.made, self.mirror, self.one_orientation = frozenset(needs), transform, mirror, one_orientation
        self.tokenizer = BertTokenizer.from_pretrained(world / 'bert')

    def transform(self, training):
        return self.made if training or not self.made.random else ALBEFTransform(self.made.side)

    def write(self, texts, max_length, blank=False):
        ids, types = self.tokenizer.encode_pairs(texts, max_length)
        return {'input_ids': ids, 'token_type_ids': types}


def load(world, needs, names='train', task=VQA, spec=None, submit=False, options=(), **encoder):
    spec = spec or task.spec(world)
    answers = spec.read_answers() if spec.answers else list(task.schema.answers or ())
    examples = read_examples([split.annotations for split in spec.named(names)], task.schema, answers)
    return load_examples(spec, names, examples, Reader(world, needs, **encoder), answers, Options(**dict(options)), submit, CPU)


def epoch_batches(dataset, workers=0, epoch=1, first_step=0, size=40, accumulate=1):
    options = SimpleNamespace(seed=9595, batchSize=size, accumulate=accumulate, compile=False, numWorkers=workers)
    micro_batches = list(batches.training_batches(len(dataset), epoch, first_step, options, dataset.groups()))
    return list(batches.load_batches(dataset, micro_batches, options, CPU))


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for name, value in batch.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name], name


def evaluated(dataset, *indices):
    batch = dataset[MicroBatch(np.array(indices), 0)]
    return dataset.to_device(batch)


def save(path, value):
    path.write_text(json.dumps(value))
    return path


def turn(world, folder='train2014', every=2):
    """Makes every second picture of a folder, with its regions, upright. Returns the ids of these images."""
    paths = sorted((world / f'images/{folder}').glob('*.png'))[::every]
    for path in paths:
        with Image.open(path) as picture:
            turned = picture.transpose(Image.Transpose.ROTATE_90)
        turned.save(path)
    turned, images = {path.stem for path in paths}, []
    for _, image in tsv.read(world / f'mscoco_imgfeat/{folder}_obj36.tsv'):
        if image.img_id in turned:
            x1, y1, x2, y2 = image.boxes.T
            image = tsv.ImageRegions(**vars(image) | {
                'height': image.width, 'width': image.height,
                'boxes': np.stack([y1, image.width - x2, y2, image.width - x1], 1).astype(np.float32)})
        images.append(image)
    tsv.write(world / f'mscoco_imgfeat/{folder}_obj36.tsv', images)
    return turned


# ---- batches

@pytest.mark.parametrize('needs', [{'pixels'}, {'pixels', 'boxes', 'whole'}])
def test_batches_do_not_depend_on_workers_resuming_and_processes(world, needs, monkeypatch):
    dataset = load(world, needs, transform=CROPPED, mirror='images')
    expected = epoch_batches(dataset)
    assert len(expected) == len(dataset) // 40 > 2 and expected[0]['pixels'].shape == (40, 3, 16, 16)
    for workers in (2, 4):
        for batch, other in zip(expected, epoch_batches(dataset, workers), strict=True):
            assert_same(batch, other)
    assert_same(expected[-1], epoch_batches(dataset, first_step=len(expected) - 1)[0])
    assert not torch.equal(epoch_batches(dataset, epoch=2)[0]['pixels'], expected[0]['pixels'])
    monkeypatch.setattr(dist, 'world_size', lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(dist, 'rank', lambda rank=rank: rank)
        parts.append(epoch_batches(dataset, accumulate=2))
    for step, batch in enumerate(expected):
        pixels = [part[2 * step + i]['pixels'] for i in range(2) for part in parts]
        assert torch.equal(torch.cat(pixels), batch['pixels'])


def test_pixels_and_boxes_are_those_of_the_images(world):
    needs = {'boxes', 'whole'}
    both, features, pixels = (load(world, {*needs, *others}) for others in ({'regions', 'pixels'}, {'regions'}, {'pixels'}))
    batch, with_features, without = (evaluated(one, 3, 0, 7) for one in (both, features, pixels))
    assert_same({key: value for key, value in batch.items() if key not in ('pixels', 'pixel_size')}, with_features)
    assert_same({key: value for key, value in batch.items() if key != 'features'}, without)
    assert 'features' not in pixels.regions.arrays and 'features' in features.regions.arrays
    for i, example in enumerate((3, 0, 7)):
        img_id = pixels.examples.images[example, 0].decode()
        with Image.open(next(world.glob(f'images/*/{img_id}.png'))) as picture:
            assert batch['image_size'][i].tolist() == [picture.height, picture.width] == [120, 160]
            small = np.asarray(picture.convert('RGB').resize((32, 24), Image.Resampling.BILINEAR))
        assert batch['pixel_size'][i].tolist() == [24, 32]
        expected = small[..., ::-1].transpose(2, 0, 1) - np.float32(RESIZED.means)[:, None, None]
        np.testing.assert_allclose(batch['pixels'][i], expected, atol=1e-4)


def test_a_step_has_images_of_one_orientation(world):
    turned = turn(world)
    dataset = load(world, {'pixels', 'boxes'}, one_orientation=True)
    upright = np.array([img_id.decode() in turned for img_id in dataset.examples.images[:, 0]])
    assert np.array_equal(dataset.groups(), upright) and 0 < upright.sum() < len(upright)
    batch = epoch_batches(dataset, size=16)
    assert len(batch) == len(dataset) // 16
    shapes = [tuple(one['pixels'].shape[2:]) for one in batch]
    assert set(shapes) == {(24, 32), (32, 24)} and sorted(shapes) != shapes != sorted(shapes, reverse=True)
    assert load(world, {'pixels', 'boxes'}).groups() is None


@pytest.mark.parametrize(('counts', 'size'), [((40, 23), 8), ((5, 6), 8), ((3, 2), 8), ((16, 16), 8), ((7, 7, 7), 8), ((30,), 4)])
def test_the_order_of_groups(counts, size):
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    options = SimpleNamespace(seed=1, batchSize=size, accumulate=1, compile=False)

    def order(epoch, first=0):
        return [batch.indices for batch in batches.training_batches(len(groups), epoch, first, options, groups)]

    steps = order(0)
    assert len(steps) == batches.steps_per_epoch(len(groups), size)
    assert {len(step) for step in steps} == {min(size, len(groups))} and all(len(set(groups[step])) == 1 for step in steps)
    whole = [count // size * size for count in counts]  # of each group, at most one step has examples twice
    assert len(set(np.concatenate(steps))) >= min(sum(whole), len(steps) * size)
    assert np.array_equal(np.concatenate(order(0, 1) or [[]]), np.concatenate(steps[1:] or [[]]))
    assert len(steps) < 3 or not np.array_equal(order(1), steps)


def test_boxes_on_the_device_are_kept_apart_from_features(world):
    features, boxes = (load(world, {'boxes', *others}) for others in ({'regions'}, {'pixels'}))
    expected = [evaluated(features, 0, 9), evaluated(boxes, 0, 9)]
    for dataset in (features, boxes):
        dataset.regions = placement.OnDevice(dataset.regions, CPU)
    for dataset, batch in zip((features, boxes), expected, strict=True):
        other = evaluated(dataset, 0, 9)
        assert batch.keys() == other.keys() and torch.equal(batch['boxes'], other['boxes'])


def test_images_that_are_kept_on_the_device_are_the_same(world):
    plain, kept = (load(world, {'pixels', 'boxes', 'whole'}, mirror='images') for _ in range(2))
    kept.pixels.keep_on(CPU)
    cropped = load(world, {'pixels'}, transform=CROPPED)
    cropped.pixels.keep_on(CPU)
    assert kept.pixels.resident and cropped.pixels.resident is None
    for workers in (0, 2):
        for batch, other in zip(epoch_batches(plain), epoch_batches(kept, workers), strict=True):
            assert_same(batch, other)
    cropped.pixels.keep_on(CPU, evaluated=True)  # of evaluation nothing is random
    assert torch.equal(evaluated(cropped, 2, 5)['pixels'], evaluated(load(world, {'pixels'}, transform=CROPPED), 2, 5)['pixels'])


# ---- masks

@pytest.mark.parametrize('mirror', ['', 'images'])
def test_masks_are_those_of_the_objects_in_their_places(world, mirror):
    given = {one['img_id']: one for one in json.loads((world / 'vcr/train_boxes.json').read_text())}
    dataset = load(world, {'pixels', 'boxes', 'whole', 'word_regions'}, task=VCR, mirror=mirror)
    batch, = epoch_batches(dataset, size=24)[:1]
    order = np.random.default_rng([9595, 1]).permutation(len(dataset))[:24]
    mirrored = batch['mirrored'].tolist() if mirror else [False] * 24
    assert mirror == '' or 0 < sum(mirrored) < 24
    b, o = batch['boxes'].shape[:2]
    expected = np.zeros((b, o, 14, 14), np.float32)
    for i, example in enumerate(order.tolist()):
        image = given[dataset.examples.images[example, 0].decode()]
        expected[i, 0] = 1
        for place, digits in enumerate(image['masks'], 1):
            for cell in range(196):
                row, column = divmod(cell, 14)
                bit = int(digits[cell // 4], 16) >> (3 - cell % 4) & 1
                expected[i, place, row, 13 - column if mirrored[i] else column] = bit
        np.testing.assert_allclose(batch['boxes'][i, 1:1 + len(image['boxes'])] * torch.tensor([160, 120, 160, 120]),
                                   image['boxes'], atol=1e-3)
    assert np.array_equal(batch['masks'], expected) and 0.3 < expected[:, 1:][expected[:, 1:].any((2, 3))].mean() < 0.95
    assert not {'features', 'masks'} & load(world, {'pixels'}, task=VCR)[MicroBatch(np.arange(2), 0)].keys()
    pixels = evaluated(load(world, {'pixels'}, task=VCR), *order.tolist())['pixels']
    for one, other, flipped in zip(pixels, batch['pixels'], mirrored, strict=True):
        assert torch.equal(one.flip(2) if flipped else one, other)


@pytest.mark.shared
def test_masks_are_those_of_the_original_reader(world, tmp_path):
    from safetensors.numpy import load_file

    cases = SHARED / 'vlbert_cases/vcr'
    assert process('--raw', cases, '--out', tmp_path).returncode == 0
    shutil.copytree(cases / 'vcr1images', tmp_path / 'vcr1images')  # beside which the index is written
    spec = DatasetSpec.from_dict({'kind': 'vcr', 'name': 'cases', 'max_length': 67, 'splits': {'val': {
        'annotations': 'val.json', 'images': 'vcr1images', 'boxes': 'val_boxes.json'}}}, tmp_path, 'x')
    dataset = load(world, {'pixels', 'boxes', 'whole'}, 'val', VCR, spec)
    masks, cells = load_file(cases / 'expected_masks_older_rule.safetensors'), 0
    for place, name in enumerate(dataset.examples.names()):
        batch = evaluated(dataset, place)
        for flip in (0, 1):
            if (expected := masks.get(f'Q2A val flip{flip} {name} older')) is not None:
                ours = batch['masks'][0].flip(2) if flip else batch['masks'][0]
                np.testing.assert_array_equal(ours, expected)
                cells += expected.size
    assert cells >= 4900


def test_faulty_masks_and_boxes_are_told(world):
    path = world / 'vcr/train_boxes.json'
    rows, needs = json.loads(path.read_text()), {'pixels', 'boxes', 'whole'}

    def message(change, error=DataError):
        save(path, [rows[0] | change, *rows[1:]])
        with pytest.raises(error) as caught:
            load(world, needs, task=VCR)
        return str(caught.value)

    assert f'image {rows[0]["img_id"]!r}: key "masks": expected 49 hexadecimal digits' in message({'masks': ['0' * 49]})
    assert 'key "masks"' in message({'masks': ['g' * 49] * len(rows[0]['boxes'])})
    boxes = [[0, 0, 400, 20]] * len(rows[0]['boxes'])
    assert f'image {rows[0]["img_id"]}: boxes: expected 0 <= x1' in message({'boxes': boxes}, RegionError)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r'train_boxes\.json'):
        load(world, needs, task=VCR)
    splits = {'train': {'annotations': 'vcr/train.json', 'images': 'images/vcr1images', 'features': ['vcr_imgfeat/train.store']}}
    spec = DatasetSpec.from_dict({'kind': 'vcr', 'name': 'mine', 'max_length': 67, 'splits': splits}, world, 'x')
    with pytest.raises(DataError, match=r'^train: .*names no file of boxes and masks .*key "boxes"'):
        load(world, needs, task=VCR, spec=spec)
    assert len(load(world, {'regions', 'boxes', 'whole'}, task=VCR))  # of features, masks are not needed


def test_boxes_of_a_file_take_the_place_of_regions(world):
    ids = sorted(path.stem for path in (world / 'images/train2014').iterdir())
    boxes = {img_id: [[10, 20, 30 + i, 60]] * (1 + i % 3) for i, img_id in enumerate(ids)}
    save(world / 'boxes.json', boxes)
    spec = VQA.spec(world)
    split = {'annotations': 'vqa/train.json', 'images': ['images/train2014'], 'boxes': 'boxes.json'}
    spec = DatasetSpec.from_dict({'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'answers': str(spec.answers),
                                  'splits': {'train': split}}, world, 'x')
    batch = evaluated(load(world, {'pixels', 'boxes', 'whole'}, spec=spec), 0, 1, 2, 40, 80, 100)
    counts = batch['visual_attention_mask'].sum(1) - 1
    dataset = load(world, {'pixels', 'boxes', 'whole'}, spec=spec)
    for i, example in enumerate((0, 1, 2, 40, 80, 100)):
        expected = torch.tensor(boxes[dataset.examples.images[example, 0].decode()]) / torch.tensor([160, 120, 160, 120])
        torch.testing.assert_close(batch['boxes'][i, 1:1 + counts[i]], expected)
    assert 'features' not in batch and dataset.box_lists(np.ones((len(dataset), 1), int))


# ---- which data is opened

def test_without_regions_no_region_file_is_opened(world, monkeypatch, capsys):
    for folder in world.glob('*_imgfeat'):
        shutil.rmtree(folder)
    dataset = load(world, {'pixels'})
    assert dataset.regions is None and dataset.nonfinite_images(np.arange(3)) == []
    assert f'{len(dataset):,} questions on 40 images' in capsys.readouterr().out
    assert set(evaluated(dataset, 0, 1)) == {'examples', 'input_ids', 'token_type_ids', 'label_example', 'label_answer',
                                             'label_score', 'pixels', 'pixel_size', 'image_size'}
    monkeypatch.setattr(Options, 'image_limit', 7)
    assert len(np.unique(load(world, {'pixels'}).rows)) == 7
    assert {'target_box', 'region_target'}.isdisjoint(evaluated(load(world, {'pixels'}, task=task_class('refcoco')), 0))


def test_images_may_be_a_zip_or_a_pixel_store(world, capsys):
    expected = evaluated(load(world, {'pixels'}), 0, 5)
    folder = world / 'images/train2014'
    assert pixel_store.write(folder, f'{folder}.pixels', 24, longest=40)
    stored = load(world, {'pixels'})
    assert stored.images.name.endswith('train2014.pixels')
    assert_same(evaluated(stored, 0, 5), expected)
    shutil.rmtree(f'{folder}.pixels')
    shutil.make_archive(str(folder), 'zip', folder)
    shutil.rmtree(folder)
    assert_same(evaluated(load(world, {'pixels'}), 0, 5), expected)


def test_ids_with_folders_are_paths(world):
    items = json.loads((world / 'vqa/train.json').read_text())
    save(world / 'vqa/train.json', [item | {'img_id': f'train2014/{item["img_id"]}'} for item in items])
    spec = DatasetSpec.from_dict({'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json',
                                  'splits': {'train': {'annotations': 'vqa/train.json', 'images': 'images'}}}, world, 'x')
    assert len(load(world, {'pixels'}, spec=spec)) == len(items)


def test_missing_images_are_told(world, capsys):
    names = sorted(path.name for path in (world / 'images/train2014').iterdir())
    (world / 'images/train2014' / names[0]).unlink()
    lost, all_examples = names[0].removesuffix('.png'), read_examples([world / 'vqa/train.json'], VQA.schema, [])
    dataset = load(world, {'pixels', 'boxes'})
    assert len(dataset) == (all_examples.images != lost.encode()).sum()
    assert f'about 1 images without regions or files ({lost}): skipped' in capsys.readouterr().out
    with pytest.raises(DataError, match=rf'1 images without files \({lost}\); all must be answered: add their files'):
        load(world, {'pixels'}, submit=True)
    dataset = load(world, {'pixels', 'boxes', 'whole'}, submit=True, options={'allowMissing': True, 'test': 'train', 'load': 'x'})
    place = int((dataset.examples.images[:, 0] == lost.encode()).argmax())
    batch = evaluated(dataset, place, (place + 10) % len(dataset))
    assert not batch['pixels'][0].any() and batch['pixels'][1].any() and batch['image_size'][0].tolist() == [0, 0]
    assert not batch['visual_attention_mask'][0].any() and not batch['boxes'][0].any()

    shutil.rmtree(world / 'images/train2014')
    with pytest.raises(FileNotFoundError, match=r'images/train2014: expected images.*found no such folder.*--dataRoot'):
        load(world, {'pixels'})
    shutil.copytree(world / 'images/val2014', world / 'images/train2014')
    with pytest.raises(DataError, match=r'none of its images is in .*images/train2014: it names images such as COCO_train2014'):
        load(world, {'pixels'})
    spec = DatasetSpec.from_dict({'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json',
                                  'splits': {'train': {'annotations': 'vqa/train.json', 'features': ['x.tsv']}}}, world, 'x')
    with pytest.raises(DataError, match=r'train\.json lists no images, which this model reads; add the key "images"'):
        load(world, {'pixels'}, spec=spec)


def test_regions_of_another_image_size_are_told(world):
    path = sorted((world / 'images/train2014').iterdir())[3]
    with Image.open(path) as picture:
        picture.resize((80, 60)).save(path)
    with pytest.raises(DataError, match=rf'image {path.stem}: .* has regions of 160 x 120 pixels, .* an image of 80 x 60 \(1 of'):
        load(world, {'pixels', 'boxes'})


@pytest.mark.parametrize('kind', sorted(set(TASKS) - {'nlvr', 'classify', 'multilabel'}))
def test_published_images_have_their_places(world, kind):
    task = task_class(kind)
    readme = (ROOT / 'data/README.md').read_text()
    for name, split in task.spec(world).splits.items():
        assert split.images and all(f'data/{image.relative_to(world)}' in readme for image in split.images), name
        if split.annotations.is_file() and not name.startswith('flickr'):
            assert len(load(world, {'pixels'}, name, task))


def test_images_and_boxes_of_a_description_are_checked(world, capsys):
    split = {'annotations': 'vqa/train.json', 'images': ['images/train2014'], 'features': ['mscoco_imgfeat/train2014_obj36.tsv']}
    described = {'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json',
                 'splits': {'train': split}}
    paths = sorted((world / 'images/train2014').iterdir())

    def check(**change):
        save(world / 'mine.json', described | {'splits': {'train': split | change}})
        status = check_dataset.main([str(world / 'mine.json')])
        return status, capsys.readouterr().out

    store.open_regions(world / split['features'][0])
    assert check() == (0, check()[1]) and 'file' not in check()[1]
    save(world / 'boxes.json', {path.stem: [[0, 0, 9, 9]] for path in paths[1:]})
    assert f'1 images have no boxes ({paths[0].stem})' in check(boxes='boxes.json')[1]
    save(world / 'boxes.json', {path.stem: [[0, 0, 999, 9]] for path in paths})
    assert 'key "splits.train.boxes": image' in check(boxes='boxes.json')[1]
    paths[0].unlink()
    status, printed = check()
    assert status == 0 and f'1 of {len(paths)} images have no file in {world}/images/train2014 ({paths[0].stem})' in printed
    with Image.open(paths[1]) as picture:
        picture.resize((80, 60)).save(paths[1])
    paths[2].write_text('no picture')
    status, printed = check()
    assert status == 1 and f'key "splits.train.images": {world}/images/train2014: 1 of ' in printed
    paths[2].unlink()
    status, printed = check()
    assert status == 1 and f'key "splits.train.images": image {paths[1].stem}' in printed
    status, printed = check(images='images/val2014')
    assert status == 1 and f'key "splits.train.images": {len(paths)} of {len(paths)} images have no file in' in printed
    status, printed = check(images='none')
    assert status == 1 and 'found no such folder, list, .zip or .pixels' in printed


# ---- pre-training on captions

@pytest.mark.parametrize('workers', [0, 2])
def test_captions_with_pixels(world, workers):
    spec, options = published_captions(world), Options(seed=4)
    tokenizer = BertTokenizer.from_pretrained(world / 'bert')
    features = load_captions(spec, 'train', tokenizer, options, CPU)
    encoder = Reader(world, {'pixels', 'boxes', 'whole'})
    dataset = load_captions(spec, 'train', tokenizer, options, CPU, encoder=encoder)
    plain = load_captions(spec, 'train', tokenizer, options, CPU)
    assert 'features' not in dataset.regions.arrays and len(dataset) == len(features)
    for batch, other in zip(epoch_batches(dataset, workers)[:3], epoch_batches(features)[:3], strict=True):
        of_pixels = {'pixels', 'pixel_size', 'region_rows'}
        assert batch.keys() - other.keys() == of_pixels and other.keys() - batch.keys() == {'features'}
        assert torch.equal(batch['region_rows'], batch['visual_attention_mask'].flatten().nonzero()[:, 0])
        assert_same({key: value for key, value in batch.items() if key not in of_pixels},
                    {key: value for key, value in other.items() if key != 'features'})
        assert batch['pixels'].shape == (40, 3, 24, 32)
    indices = np.array([0, 7, 31])
    batch = dataset.to_device(dataset[MicroBatch(indices, 0)])
    names = [plain.regions.ids[row].decode() for row in plain.row[plain.image_of(indices)]]
    source = dataset.images.batch(dataset.images.rows(names), RESIZED)
    expected = RESIZED.normalize({name: torch.from_numpy(array) for name, array in source.items()})
    assert torch.equal(batch['pixels'], expected['pixels']) and captions.LIMIT == 64

    image = dataset.images.ids[0].decode()
    next(world.glob(f'images/*/{image}.png')).unlink()
    lines = (world / 'images/cc_train').read_text().splitlines()
    (world / 'images/cc_train').write_text('\n'.join(line for line in lines if image not in line))
    assert len(load_captions(spec, 'train', tokenizer, options, CPU, encoder=encoder)) < len(dataset)


# ---- training

class PixelStream(SingleStream):
    """Words, and the mean colour of the picture."""

    needs = frozenset({'pixels'})

    def __init__(self, config):
        super().__init__(config)
        self.colour = nn.Linear(3, config.hidden_size)
        del self.features, self.boxes

    def transform(self, training):
        return CROPPED if training else ALBEFTransform(16)

    def forward(self, batch, record_attention=False):
        mask = (batch['input_ids'] != 0)[..., None]
        words = (self.words(batch['input_ids']) * mask).sum(1) / mask.sum(1)
        return States(words + self.colour(batch['pixels'].mean((2, 3))))

    def parts(self):
        return [[self.words, self.segments, self.positions, self.colour], [self.query, self.key, self.value, self.output], []]


@pytest.fixture
def run(world, tmp_path, monkeypatch, capsys):
    """run(name, *flags): VQA trained by a model that reads pixels; (status, printed)."""
    from single_stream import heads

    def build(task, config, answers=None, options=None):
        return head_for(PixelStream(config), Recipe('answer'), len(answers))

    monkeypatch.setitem(models.MODELS, 'single_stream', 'single_stream')
    monkeypatch.setattr(heads, 'build', build)

    def start(name, *flags):
        status = main(VQA, [
            '--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--batchSize', '50', '--lr', '5e-3',
            '--model', 'single_stream', '--train', 'train', '--valid', 'minival', '--fromScratch', '--epochs', '2',
            '--output', str(tmp_path / name), *flags])
        return status, capsys.readouterr()

    return start


def test_a_run_is_resumed_with_the_same_pixels(world, tmp_path, run, monkeypatch):
    shutil.rmtree(world / 'mscoco_imgfeat')
    status, printed = run('whole')
    assert status == 0, printed.err
    step = PixelStream.forward
    calls = []

    def stop(self, *args):
        calls.append(self.training)
        if sum(calls) == 7:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(PixelStream, 'forward', stop)
    assert run('stopped', '--saveSteps', '2')[0] == 130
    monkeypatch.setattr(PixelStream, 'forward', step)
    copy = shutil.copytree(tmp_path / 'stopped', tmp_path / 'other')
    status, printed = run('stopped', '--saveSteps', '2', '--resume', '--numWorkers', '2')
    assert status == 0, printed.err
    one, other = (torch.load(tmp_path / name / 'LAST.pth', weights_only=True) for name in ('whole', 'stopped'))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    path = sorted((world / 'images/train2014').iterdir())[0]
    Image.new('RGB', (160, 120), 'red').save(path)
    status, printed = run(copy.name, '--resume')
    assert status == 1 and 'images of --train' in printed.err and 'bring those back' in printed.err


def test_broken_and_changed_images_end_the_run_with_their_names(world, run, monkeypatch):
    paths = sorted((world / 'images/train2014').iterdir())
    whole = paths[4].read_bytes()
    paths[4].write_bytes(whole[:300])
    status, printed = run('broken')
    assert status == 1 and f'1 of {len(paths)} images cannot be used' in printed.err and paths[4].name in printed.err
    assert '--allowBroken' in printed.err and 'Training' not in printed.out
    status, printed = run('left_out', '--allowBroken', '--epochs', '1')
    assert status == 0 and f'1 images without files ({paths[4].stem}): skipped' in printed.out

    paths[4].write_bytes(whole)
    step = PixelStream.forward

    def change(self, *args):
        for path in paths:
            path.write_bytes(whole)
        return step(self, *args)

    for workers in ('0', '2'):
        with monkeypatch.context() as patch:
            patch.setattr(PixelStream, 'forward', change)
            contents = {path: path.read_bytes() for path in paths}
            status, printed = run(f'changed{workers}', '--numWorkers', workers, '--batchSize', '10')
        assert status == 1 and 'expected the file as it was at the start, found that it has changed since' in printed.err
        assert any(path.name in printed.err for path in paths) and 'Traceback' not in printed.err
        for path, content in contents.items():
            path.write_bytes(content)


# ---- pictures from outside of datasets

def answer_head(world, *needs):
    """An Answers head of PixelStream, which says that it `needs` these."""
    torch.manual_seed(1)
    config = models.package('single_stream').config_from_json(world / 'bert/config.json')
    head = head_for(PixelStream(config), Recipe('answer'), 5).eval()
    head.encoder.needs, head.encoder.tokenizer = frozenset(needs), BertTokenizer.from_pretrained(world / 'bert')
    return head


def test_a_predictor_reads_pictures(world, monkeypatch):
    monkeypatch.setitem(models.MODELS, 'single_stream', 'single_stream')
    files = sorted((world / 'images/val2014').iterdir())[:3]
    pictures, answers, questions = [open_picture(file) for file in files], list('abcde'), ['is it red', 'how many', 'is it red']
    predictor = Predictor(answer_head(world, 'pixels'), VQA, answers)
    pipeline = Pipeline(predictor, None)
    images = pipeline.detect(pictures, ['the picture'] * 3)
    expected = predictor.answer(images, questions, best=5, batch_size=2)
    source = open_source(files[0].parent)
    for question, row, file in zip(questions, expected, files, strict=True):
        ids = predictor.tokenizer.encode([question], 20)
        batch = source.batch(source.rows([file.stem]), predictor.head.encoder.transform(False))
        batch = {name: torch.from_numpy(array) for name, array in (batch | {'input_ids': ids.astype(np.int64)}).items()}
        places, values = predictor.head.predict(ALBEFTransform(16).normalize(batch) | {'examples': 1}, 5)
        assert [answer for answer, _ in row] == [answers[place] for place in places[0]]
        np.testing.assert_allclose([value for _, value in row], values[0].detach(), atol=1e-6)
    with pytest.raises(ValueError, match='PixelStream records no attention'):
        pipeline.answer(questions[0], images[:1])

    both = Predictor(answer_head(world, 'pixels', 'boxes', 'whole'), VQA, answers)
    regions = [image for _, image in tsv.read(world / 'mscoco_imgfeat/val2014_obj36.tsv')][:2]
    whole = [replace(image, picture=open_picture(world / f'images/val2014/{image.img_id}.png')) for image in regions]
    batch, = both.batches(whole, questions[:2])
    assert batch['pixels'].shape[0] == 2 and batch['boxes'].shape == (2, 37, 4) and 'features' not in batch
    with pytest.raises(RegionError, match=r'image .*: expected a `picture`, .* uint8 \(120, 160, 3\), found None'):
        both.answer(regions, questions[:2])
    with pytest.raises(RegionError, match=r'found uint8 \(60, 80, 3\)'):
        both.answer(replace(regions[0], picture=np.zeros((60, 80, 3), np.uint8)), 'is it red')


def test_pairs_are_encoded_from_pixels(world, tmp_path, monkeypatch, capsys):
    from single_stream import heads

    monkeypatch.setitem(models.MODELS, 'single_stream', 'single_stream')
    loaded = answer_head(world, 'pixels').encoder
    monkeypatch.setattr(heads, 'load_encoder', lambda path, config: (loaded, 'loaded'), raising=False)
    monkeypatch.setattr(heads, 'layer_names', lambda config: (['words'], ['regions']), raising=False)
    config = json.loads((world / 'bert/config.json').read_text())
    save(world / 'bert/config.json', config | {'model_type': 'single_stream'})
    torch.save({}, world / 'bert/x.pth')
    image = sorted((world / 'images/val2014').iterdir())[0].stem
    (tmp_path / 'pairs.tsv').write_text(f'{image}\tis it red\n')
    flags = [str(tmp_path / 'pairs.tsv'), '--load', str(world / 'bert/x.pth'), '--bert', str(world / 'bert'), '--device', 'cpu',
             '--out', str(tmp_path / 'x.npz')]
    assert encode.main([*flags, '--images', str(world / 'images/val2014')]) == 0, capsys.readouterr().err
    with np.load(tmp_path / 'x.npz') as arrays:
        assert arrays['pooled'].shape == (1, 32) and arrays['num_regions'].tolist() == [0]
    assert encode.main([*flags, '--features', str(world / 'mscoco_imgfeat/val2014_obj36.tsv')]) == 1
    assert 'reads no regions; leave it out' in capsys.readouterr().err
    assert encode.main([*flags, '--images', str(world / 'images/train2014')]) == 1
    assert '1 images without files in ' in capsys.readouterr().err


def test_the_digest_of_the_images_belongs_to_the_run(world):
    options = SimpleNamespace(train='train', image_limit=None)
    before = inputs_of(load(world, {'pixels', 'boxes'}), options, 'train')
    assert set(before) == {'annotations of --train', 'images of --train', 'regions of --train (1)'}
    path = sorted((world / 'images/train2014').iterdir())[0]
    Image.new('RGB', (160, 120)).save(path)
    after = inputs_of(load(world, {'pixels', 'boxes'}), options, 'train')
    assert [key for key in before if before[key] != after[key]] == ['images of --train']
