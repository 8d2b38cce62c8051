"""RefCOCO: raw data, labels, heads, the program on the sample world, the evaluator, the expressions of the sample world."""

import json
import pickle
import random
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import SHARED, data_script

import models
from annotations.dataset import ExampleDataset
from annotations.examples import read_examples
from batches import MicroBatch
from bert.tokenization import BertTokenizer
from bert.weights import WeightsError
from files.json_files import DataError
from heads import Regions, overlaps
from lxrt.config import LxrtConfig
from regions import tsv
from regions.arrays import RegionArrays
from shapes import expressions, report, scene
from tasks.predictor import Predictor
from tasks.program import main
from tasks.refcoco import RefCOCO
from tools import check_dataset, ensemble
from tools import evaluate as evaluator
from vlbert.config import VLBertConfig
from vlbert.weights import REGION_TRANSFORM, WORD_TRANSFORM, load_encoder_weights

process = data_script('refcoco/process_refcoco')

IMAGE = 'COCO_train2014_{:012d}'
CASES = SHARED / 'vlbert_cases/refcoco'
CONFIGS = {'vlbert': VLBertConfig, 'lxmert': LxrtConfig}
SMALL = {'hidden_size': 16, 'num_attention_heads': 2, 'intermediate_size': 32, 'vocab_size': 50, 'visual_feat_dim': 5,
         'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
LAYERS = {'vlbert': {'num_hidden_layers': 2}, 'lxmert': {'l_layers': 1, 'r_layers': 1, 'x_layers': 1}}


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def load(path):
    return json.loads(path.read_text())


# ---- raw data

def ref(ref_id, ann_id, image=7, split='train', *sentences):
    texts = sentences or ('the red cup',)
    return {'ref_id': ref_id, 'ann_id': ann_id, 'image_id': image, 'category_id': 1, 'split': split,
            'sentences': [{'sent_id': 10 * ref_id + i, 'sent': text, 'raw': text.upper(), 'tokens': text.split()}
                          for i, text in enumerate(texts)]}


REFS = [ref(1, 100, 7, 'train', 'the red cup', 'cup'), ref(2, 101, 7, 'val'), ref(3, 102, 8, 'testA', 'the dog')]
INSTANCES = {'images': [{'id': 7, 'width': 100, 'height': 60}, {'id': 8, 'width': 50, 'height': 50}], 'annotations': [
    {'id': 100, 'image_id': 7, 'bbox': [1, 2, 30, 40], 'iscrowd': 0}, {'id': 101, 'image_id': 7, 'bbox': [50.5, 2, 20, 30]},
    {'id': 102, 'image_id': 8, 'bbox': [0, 0, 50, 50]}]}


def refer(folder, refs=None, instances=INSTANCES, protocol=2):
    save(folder / 'instances.json', instances)
    (folder / 'refs(unc).p').write_bytes(pickle.dumps(REFS if refs is None else refs, protocol))
    return folder


@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_expressions_and_boxes_of_the_official_files(tmp_path, capsys, protocol):
    detections = save(tmp_path / 'dets.json', [{'image_id': 7, 'box': [3, 3, 10, 10], 'score': 1},
                                               {'image_id': 9, 'box': [0, 0, 5, 5]}, {'image_id': 7, 'box': [1, 2, 30, 41]}])
    process.main(['--refer', str(refer(tmp_path / 'refcoco+', protocol=protocol)), '--name', 'refcoco+', '--detections',
                  str(detections), '--out', str(tmp_path / 'out')])
    out = tmp_path / 'out'
    assert load(out / 'plus_train.json') == [
        {'ref_id': 1, 'img_id': IMAGE.format(7), 'sent': text, 'box': [1, 2, 31, 42]} for text in ('the red cup', 'cup')]
    assert [item['ref_id'] for item in load(out / 'plus_testA.json')] == [3]
    assert load(out / 'plus_boxes_gt.json') == {IMAGE.format(7): [[1, 2, 31, 42], [50.5, 2, 70.5, 32]],
                                               IMAGE.format(8): [[0, 0, 50, 50]]}
    assert load(out / 'plus_boxes_detected.json') == {IMAGE.format(7): [[3, 3, 13, 13], [1, 2, 31, 43]]}
    assert load(out / 'plus_boxes_train_detected.json')[IMAGE.format(7)] == [
        [3, 3, 13, 13], [1, 2, 31, 43], [1, 2, 31, 42], [50.5, 2, 70.5, 32]]  # detections, then ground truth
    splits = load(out / 'plus_detected.json')['splits']
    assert splits['train']['features'] == ['../refcoco_imgfeat/plus_train_detected.tsv']
    assert splits['val'] == {'annotations': 'plus_val.json', 'features': ['../refcoco_imgfeat/plus_detected.tsv'],
                             'images': ['../images/train2014'], 'boxes': 'plus_boxes_detected.json'}
    printed = capsys.readouterr().out
    assert 'plus_train.json: 2 expressions for 1 objects of 1 images' in printed
    assert f"1 images without detected boxes (such as '{IMAGE.format(8)}')" in printed
    assert '1 images with detected boxes but without expressions, left out (such as 9)' in printed


class Hostile:
    def __reduce__(self):
        return print, ('this ran',)


def nested(levels):
    """A pickle of a list that holds the one of the level below twice: 2 ** levels values in a few bytes."""
    content = b'\x80\x04]\x94'
    for level in range(levels):
        content += b']\x94(' + bytes([ord('h'), level]) * 2 + b'e'
    return content + b'.'


@pytest.mark.parametrize(('content', 'message'), [
    (nested(60), 'found lists or dicts in each other, more than 100 levels deep'),
    (b'\x80\x04]\x94h\x00a.', 'found lists or dicts in each other'),
    (b'\x80\x04' + b']' * 100000 + b'a' * 99999 + b'.', 'found lists or dicts in each other'),
    (b'\x80\x04})' + b'\x85' * 200000 + b'K\x01s.', 'found tuples, at byte'),
    (pickle.dumps([ref(1, 100, 7, '../x')]), 'key "split": expected a name of letters'),
    (b'\x80\x04](\x8b\xa0\x0f\0\0' + b'\x7f' * 4000 + b'e.', 'found a number of 31,999 bits'),
    (pickle.dumps([Hostile()]), 'the class builtins.print'),
    (pickle.dumps(REFS + [np.float32(1)]), 'the class numpy'),
    (b'cos\nsystem\n(S"echo this ran"\ntR.', 'the class '),
    (b'\x80\x02}r\xff\xff\xff\x7f.', 'place 2,147,483,647 of the table of objects'),
    (b'\x80\x04\x8d' + (1 << 40).to_bytes(8, 'little') + b'a.', 'expected'),
    (b'\x80\x02](K\x01b.', 'pickle of lists'), (pickle.dumps(REFS)[:-20], 'pickle of lists'), (b'', 'pickle of lists'),
    (pickle.dumps({'refs': 1}), 'expected a list of refs'),
    (pickle.dumps([ref(1, 100), ref(1, 101)]), 'expected a new one, found 1 again'),
    (pickle.dumps([ref(1, 999)]), 'the box of annotation 999 of image 7 in instances.json, found none: an expression without'),
    (pickle.dumps([{**ref(1, 100), 'image_id': '7'}]), 'key "image_id": expected int'),
    (pickle.dumps([ref(1, 102)]), 'expected the box of annotation 102 of image 7 in instances.json, found it of image 8'),
])
def test_hostile_and_wrong_pickles_are_errors(tmp_path, capsys, content, message):
    folder = refer(tmp_path / 'refcoco')
    (folder / 'refs(unc).p').write_bytes(content)
    with pytest.raises(DataError) as error:
        process.main(['--refer', str(folder), '--out', str(tmp_path / 'out')])
    assert message in str(error.value) and str(folder) in str(error.value) and '\n' not in str(error.value)
    assert 'this ran' not in capsys.readouterr().out and not list((tmp_path / 'out').glob('*'))


@pytest.mark.parametrize(('box', 'message'), [
    ([90, 2, 30, 40], 'expected a box inside image 7, 100 x 60 pixels, found the corners [90, 2, 120, 42]'),
    ([1, 2, 0, 40], 'x, y, width, height in pixels of positive size'), ([1, 2, 3], 'positive size'), ('x', 'positive size'),
    ([1, 2, 1e400, 3], 'incomplete or invalid')])
def test_wrong_boxes_are_errors(tmp_path, box, message):
    annotations = [{**INSTANCES['annotations'][0], 'bbox': box}, *INSTANCES['annotations'][1:]]
    folder = refer(tmp_path / 'refcoco', instances={**INSTANCES, 'annotations': annotations})
    with pytest.raises(DataError) as error:
        process.main(['--refer', str(folder), '--out', str(tmp_path / 'out')])
    assert message in str(error.value) or 'json' in str(error.value)


def test_other_json_forms(tmp_path, capsys):
    expected = [{'ref_id': 3, 'img_id': IMAGE.format(8), 'sent': 'the dog', 'box': [0, 0, 50, 50]}]
    name = f'train2014/{IMAGE.format(8)}.jpg'

    def made(items, *flags, split='testA', file='x_testA.json'):
        out = tmp_path / f'out{len(list(tmp_path.iterdir()))}'
        process.main([str(save(tmp_path / file, items)), '--out', str(out), *flags])
        return load(out / f'{split}.json')

    albef = [{'image': name, 'text': 'the dog', 'ref_id': 3}]
    assert made(albef, '--refer', str(refer(tmp_path / 'refer')), file='refcoco_test.json') == expected  # the refs know testA
    assert made([{'raw_anns': '{}', 'image_path': f'coco/{name}', 'captions': ['the dog'], 'bbox': [0, 0, 50, 50], 'ref_id': 3,
                  'split': 'val'}], split='val') == expected
    lmms = [{'question_id': '5', 'file_name': f'{IMAGE.format(8)}_2.jpg', 'answer': ['the dog', 'a dog'], 'bbox': [5, 5, 9, 9]}]
    assert made(lmms) == [{'ref_id': 0, 'img_id': IMAGE.format(8), 'sent': text, 'box': [5, 5, 14, 14]}
                          for text in ('the dog', 'a dog')]
    assert made({'train': [{'iid': 8, 'bbox': [0, 0, 50, 50], 'refs': ['the dog']}]}, split='train')[0]['box'] == [0, 0, 50, 50]
    for items, message in (([{'text': 'a', 'image': name}], 'expected one of the keys'),
                           ([{**lmms[0], 'answer': []}], 'one or more texts in "answer"'),
                           *(([{**lmms[0], 'file_name': name}], 'expected an image in "file_name"') for name in (
                               '', 'a\nb', {'x': 1}, 'x' * 256))):
        with pytest.raises(DataError, match=message):
            made(items)
    with pytest.raises(DataError, match='an expression without a target'):
        made([{**albef[0], 'ref_id': 1}], '--refer', str(tmp_path / 'refer'))
    assert made([{**albef[0], 'text': ' '}, *albef], '--refer', str(tmp_path / 'refer'), file='refcoco_test.json') == expected
    assert '1 empty expressions, left out (such as 3)' in capsys.readouterr().out
    detections = save(tmp_path / 'dets.json', {'8': [[1, 1, 2, 2]]})  # one line, but no json lines
    assert made(lmms, '--detections', str(detections))[0]['sent'] == 'the dog'
    assert made([{**lmms[0], 'file_name': 'x_²'}], '--coco', str(tmp_path / 'refer/instances.json'))[0]['img_id'] == 'x_²'


# ---- labels

def test_overlaps_restated():
    rng = np.random.default_rng(0)
    boxes, targets = (np.sort(rng.uniform(0, 50, (shape, 2, 2)), 1).reshape(shape, 4) for shape in (40, 40))
    for pixel in (0, 1):
        result = overlaps(torch.from_numpy(boxes)[:, None], torch.from_numpy(targets), pixel)[:, 0]
        for box, target, value in zip(boxes, targets, result.tolist(), strict=True):
            width = min(box[2], target[2]) - max(box[0], target[0]) + pixel
            height = min(box[3], target[3]) - max(box[1], target[1]) + pixel
            shared = max(width, 0) * max(height, 0)
            areas = [(one[2] - one[0] + pixel) * (one[3] - one[1] + pixel) for one in (box, target)]
            assert value == pytest.approx(shared / (sum(areas) - shared), abs=1e-9)


def dataset(tmp_path, model, boxes, target, size=(100, 60), **image_options):
    """A dataset of one expression for an image of `size` (height, width) with these boxes."""
    (tmp_path / 'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'left', 'right', 'cup', 'the']))
    save(tmp_path / 'train.json', [{'ref_id': 5, 'img_id': 'a', 'sent': 'the left cup', 'box': target}])
    examples = read_examples([tmp_path / 'train.json'], RefCOCO.schema, [])
    o = len(boxes)
    ids, conf = np.zeros(o, np.int64), np.zeros(o, np.float32)
    image = tsv.ImageRegions('a', *size, ids, conf, ids, conf, np.float32(boxes), np.ones((o, 5), np.float32))
    encoder = models.build(model, 'refcoco', CONFIGS[model](**SMALL, **LAYERS[model])).encoder
    encoder.tokenizer = BertTokenizer.from_pretrained(tmp_path)
    return ExampleDataset(examples, RegionArrays.of_images('regions', [image]), np.zeros((1, 1), np.int64), encoder, [], 20)


def test_labels_are_of_boxes_that_are_cut_at_the_border_of_the_resized_image(tmp_path):
    """An image 60 x 100 becomes 600 x 1000. The third region has an overlap of exactly half without "+1", and the fourth is so
    only until it is cut; the image is region 0."""
    boxes = [[0, 0, 20, 20], [0, 0, 20, 19], [0, 0, 10, 20], [0, 0, 9.9, 20]]
    data = dataset(tmp_path, 'vlbert', boxes, [0, 0, 20, 20])
    batch = data.to_device(data[MicroBatch(np.arange(1), 0)])
    # +1 of 600 pixels: (100 + 1) / (200 + 1) > 0.5, (99 + 1) / (200 + 1) < 0.5
    assert batch['region_target'].tolist() == [[0, 1, 1, 1, 0]]
    data = dataset(tmp_path, 'lxmert', boxes, [0, 0, 20, 20])
    batch = data.to_device(data[MicroBatch(np.arange(1), 0)])
    assert batch['region_target'].tolist() == [[1, 1, 1, 1]]  # +1 of the image's own pixels: (9.9 + 1) / (20 + 1) > 0.5
    data = dataset(tmp_path, 'vlbert', boxes, [0, 0, 58, 98])
    assert data.to_device(data[MicroBatch(np.arange(1), 0)])['region_target'].tolist() == [[1, 0, 0, 0, 0]]  # the whole image


def test_mirrored_examples_keep_their_labels_and_exchange_words(tmp_path):
    data = dataset(tmp_path, 'vlbert', [[0, 0, 20, 20], [40, 0, 60, 20]], [1, 0, 20, 20])
    seen = set()
    for epoch in range(12):
        batch = data.to_device(data[MicroBatch(np.arange(1), 0, epoch)])
        mirrored = bool(batch['mirrored'][0])
        words = [data.mirroring.ids[mirrored] in batch['input_ids'][0].tolist(), batch['region_target'].tolist()]
        assert words == [True, [[0, 1, 0]]]
        seen.add(mirrored)
    assert seen == {True, False}


@pytest.mark.shared
def test_reader_cases(tmp_path):
    """Boxes, tokens and labels as the original's reader made them, from the official files through our script."""
    process.main(['--refer', str(CASES / 'refcoco+'), '--out', str(tmp_path / 'out'), '--coco',
                  str(CASES / 'annotations/instances_train2014.json'), '--detections',
                  str(CASES / 'refcoco+/proposal/res101_coco_minus_refer_notime_dets.json')])
    from vlbert.modeling import original_boxes, resized

    refs = json.loads((CASES / 'refcoco+/refs(unc).json').read_text())
    number = {s['sent_id']: (one['split'], i) for one in refs for i, s in enumerate(one['sentences'])}
    order = {split: [s['sent_id'] for one in refs if one['split'] == split for s in one['sentences']]
             for split in ('train', 'val', 'testA')}
    sizes = {IMAGE.format(i['id']): (i['height'], i['width']) for i in load(CASES / 'refcoco+/instances.json')['images']}
    checked, tokenizer = Counter(), BertTokenizer(SHARED / 'vocab/bert-base-uncased-vocab.txt')
    for case, expected in load(CASES / 'expected.json').items():
        if case == 'test program':
            continue
        split, kind, flip, _, sent_id = case.split()
        assert number[int(sent_id)][0] == split
        item = load(tmp_path / f'out/{split}.json')[order[split].index(int(sent_id))]
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(item['sent'])) == expected['expression_ids'], case
        of = {name: load(tmp_path / f'out/boxes_{name}.json').get(item['img_id'], []) for name in ('gt', 'detected')}
        boxes = {'gt': of['gt'], 'proposal': of['detected'], 'proposal+gt': of['detected'] + of['gt']}[kind]
        size = torch.tensor([sizes[item['img_id']]])
        data = dataset(tmp_path, 'vlbert', boxes, item['box'], sizes[item['img_id']])
        batch = data.to_device(data[MicroBatch(np.arange(1), 0)])
        assert batch['region_target'][0].tolist() == expected['label'], case
        pixels = resized(size).flip(1).repeat(1, 2)[:, None]
        ours = original_boxes(batch['boxes'], size, torch.tensor([flip == 'flip1'])) * pixels
        assert torch.allclose(ours[0].float(), torch.tensor(expected['boxes']), atol=2e-3), case
        checked[kind] += 1
    assert len(checked) == 3


# ---- heads

@pytest.mark.parametrize('model', CONFIGS)
def test_padding_is_never_chosen_and_changes_nothing(model):
    torch.manual_seed(0)
    head = models.build(model, 'refcoco', CONFIGS[model](**SMALL, **LAYERS[model])).eval()
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.3)
    batch = {'examples': 2, 'input_ids': torch.randint(5, 50, (2, 4)), 'features': torch.randn(2, 6, 5),
             'boxes': torch.rand(2, 6, 4), 'visual_attention_mask': torch.arange(6) < torch.tensor([[3], [6]]),
             'region_target': torch.zeros(2, 6)}
    logits = head.logits(batch)
    assert torch.isinf(logits).sum() == 3 and torch.isinf(logits[0, 3:]).all()
    one = {key: value[:1, :3] if key in ('features', 'boxes', 'region_target') else value[:1] for key, value in batch.items()
           if key not in ('visual_attention_mask', 'examples')} | {'examples': 1}
    assert torch.allclose(head.logits(one)[0], logits[0, :3], atol=1e-5)
    losses = [head.losses(part, head.counts([batch]))['BCE'] for part in (one, batch)]
    assert losses[0] < losses[1] and torch.isfinite(losses[1])
    names = {'vlbert': {'final_mlp.0.dense.weight', 'final_mlp.2.bias'}, 'lxmert': {'region_fc.0.weight', 'region_fc.3.bias'}}
    assert names[model] <= set(head.original_state())


@pytest.mark.parametrize('task', ['refcoco', 'classify'])
def test_the_head_of_regions_starts_from_that_of_masked_regions(tmp_path, task):
    config = VLBertConfig(**SMALL, **LAYERS['vlbert'])
    state = models.build('vlbert', 'pretrain', config).original_state()
    head = models.build('vlbert', task, config, ['a', 'b'])
    load_encoder_weights(head, state, 'pretrained')
    transform = WORD_TRANSFORM if task == 'classify' else REGION_TRANSFORM
    assert torch.equal(head.original_state()['final_mlp.0.dense.weight'], state[f'{transform}dense.weight'])
    package = models.package('vlbert')
    counted = package.answers_and_images(head.original_state(), config)
    assert counted == (None if task == 'refcoco' else (2, 1))


# ---- the program

@pytest.mark.parametrize('model', CONFIGS)
def test_trains_tests_and_is_evaluated(world, tmp_path, capsys, model):
    flags = ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--batchSize', '16']
    assert main(RefCOCO, [*flags, '--model', model, '--train', 'train', '--valid', 'val', '--epochs', '1', '--fromScratch',
                          '--output', str(tmp_path / 'run')]) == 0, capsys.readouterr().err
    assert 'with areas without "+1"' in (tmp_path / 'run/log.log').read_text()
    capsys.readouterr()
    test = [*flags, '--test', 'val', '--load', str(tmp_path / 'run/BEST'), '--output', str(tmp_path / 'test')]
    assert main(RefCOCO, [*test, '--dumpProbs', '50']) == 0
    printed = capsys.readouterr().out
    predictions = load(tmp_path / 'test/val_predict.json')
    assert [item['ref_id'] for item in predictions] == [item['ref_id'] for item in load(world / 'refcoco/val.json')]
    assert all(len(item['box']) == 4 for item in predictions)

    best = load(tmp_path / 'test/val_probs.json')  # all regions of the image, and no padding
    regions = {image.img_id: image for _, image in tsv.read(world / 'mscoco_imgfeat/train2014_obj36.tsv')}
    for item, row, prediction in zip(load(world / 'refcoco/val.json'), best, predictions, strict=True):
        boxes, probabilities = zip(*row['answers'], strict=True)
        image = regions[item['img_id']]
        expected = [[0, 0, image.width - 1, image.height - 1]] * (model == 'vlbert') + image.boxes.tolist()
        assert row['id'] == prediction['ref_id'] == item['ref_id'] and boxes[0] == prediction['box']
        assert sorted(boxes) == sorted(expected)
        assert sum(probabilities) == pytest.approx(1, abs=1e-4) and list(probabilities) == sorted(probabilities, reverse=True)
    files = str(tmp_path / 'test/val_probs.json'), str(tmp_path / 'other.json')
    save(tmp_path / 'other.json', [
        {'id': row['id'], 'answers': [[box, float(i == 1)] for i, (box, _) in enumerate(row['answers'])]} for row in best])
    assert ensemble.main(['refcoco', files[0], files[0], '--out', str(tmp_path / 'same.json')]) == 0
    assert load(tmp_path / 'same.json') == predictions
    assert ensemble.main(['refcoco', *files, '--out', str(tmp_path / 'second.json')]) == 0
    assert [row['box'] for row in load(tmp_path / 'second.json')] == [row['answers'][1][0] for row in best]
    save(tmp_path / 'other.json', [{'id': row['id'], 'answers': row['answers'][:1]} for row in best])
    assert ensemble.main(['refcoco', *files, '--out', str(tmp_path / 'second.json')]) == 1
    assert 'expected the same boxes as in the other files' in capsys.readouterr().err

    package = models.package(model)
    encoder, _ = package.load_encoder(tmp_path / 'run/BEST.pth', package.config_from_json(tmp_path / 'run/config.json'))
    assert not encoder.returns_visual
    with pytest.raises(WeightsError, match='is a snapshot of the task refcoco, which does not answer questions'):
        Predictor.from_snapshot(tmp_path / 'run/BEST')

    assert evaluator.main(['refcoco', str(tmp_path / 'test/val_predict.json'), str(world / 'refcoco/val.json'), '--out',
                           str(tmp_path / 'figures.json')]) == 0
    figures = load(tmp_path / 'figures.json')
    assert f'Score on val: {figures["accuracy"]:.2f}' in printed
    assert f'with areas without "+1": {figures["strict"]:.2f}' in printed
    assert set(figures['by']['question type']) == set(expressions.KINDS)
    capsys.readouterr()
    report.main([str(world), str(tmp_path / 'test/val_predict.json'), '--task', 'refcoco'])
    baseline = expressions.text_only(*(load(world / f'refcoco/{split}.json') for split in ('train', 'val')))
    assert f'Score {figures["accuracy"]:.1f}, without pictures {baseline:.1f}: ' in capsys.readouterr().out

    items = load(world / 'refcoco/val.json')  # an image without regions
    save(world / 'refcoco/val.json', [{**items[0], 'img_id': 'unknown'}, *items[1:]])
    again = [*flags, '--test', 'val', '--load', str(tmp_path / 'run/BEST'), '--output', str(tmp_path / 'again')]
    assert main(RefCOCO, again) == 1
    assert 'are about 1 images without regions (unknown)' in capsys.readouterr().err
    assert main(RefCOCO, [*again, '--allowMissing', '--dumpProbs', '50', '--evalBatchSize', '1']) == 0
    assert load(tmp_path / 'again/val_probs.json')[0]['answers'] == [[[0, 0, 0, 0], 0]]
    assert load(tmp_path / 'again/val_predict.json') == [{**predictions[0], 'box': [0, 0, 0, 0]}, *predictions[1:]]


def test_what_an_image_lacks_of_the_best_regions_has_the_probability_0():
    class Fixed(Regions):
        def __init__(self):
            pass

        def logits(self, batch):
            return batch

    logits = torch.tensor([[1.0, 3.0, -torch.inf], [-torch.inf] * 3])
    indices, probabilities = Fixed.predict(Fixed(), logits, 5)
    assert indices[0, :2].tolist() == [1, 0] and (indices[:, 3:] >= 3).all() and indices.shape == probabilities.shape == (2, 5)
    torch.testing.assert_close(probabilities[0], torch.tensor([*logits[0, [1, 0]].softmax(0), 0, 0, 0]))
    assert (probabilities[1] == 0).all()


def test_wrong_flags_and_boxes_are_errors(world, tmp_path, capsys):
    flags = ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--fromScratch', '--valid', '',
             '--train', 'train', '--output', str(tmp_path / 'run')]
    items = load(world / 'refcoco/train.json')
    for box, message in (([5, 5, 400, 20], f'ref_id {items[3]["ref_id"]}: key "box": expected a box inside image '
                          f'{items[3]["img_id"]}, 160 x 120 pixels as its regions say, found [5.0, 5.0, 400.0, 20.0]'),
                         ([9, 5, 5, 20], 'x1 below x2 and y1 below y2, found [9, 5, 5, 20]'), (None, 'expected a box')):
        save(world / 'refcoco/train.json', [*items[:3], {**items[3], 'box': box}, *items[4:]])
        assert main(RefCOCO, flags) == 1
        error = capsys.readouterr().err
        assert message in error and 'refcoco/train.json' in error
    save(world / 'refcoco/train.json', [*items[:3], {k: v for k, v in items[3].items() if k != 'box'}])
    assert main(RefCOCO, flags) == 1
    assert 'key "box": expected labels on all examples of a file or on none' in capsys.readouterr().err


def test_a_dataset_of_ones_own(world, capsys):
    described = {'kind': 'refcoco', 'name': 'mine', 'max_length': 20, 'splits': {
        'train': {'annotations': 'refcoco/train.json', 'features': ['mscoco_imgfeat/train2014_obj36.tsv']}}}
    assert check_dataset.main([str(save(world / 'mine.json', described))]) == 0
    count = len(load(world / 'refcoco/train.json'))
    assert f'train: {count} sentences on' in capsys.readouterr().out
    assert check_dataset.main([str(save(world / 'mine.json', {**described, 'answers': 'vqa/trainval_label2ans.json'}))]) == 1
    assert 'key "answers": expected no such key, since examples of refcoco have none' in capsys.readouterr().out


# ---- the evaluator

ANNOTATIONS = [{'ref_id': 12, 'img_id': 'a', 'sent': 'x', 'box': [0, 0, 10, 10]},
               {'ref_id': 12, 'img_id': 'a', 'sent': 'y', 'box': [0, 0, 10, 10]},
               {'ref_id': 13, 'img_id': 'a', 'sent': 'z', 'box': [0, 0, 9, 9]}]


def predicted(*boxes, ids=(12, 12, 13)):
    return [{'ref_id': key, 'box': box} for key, box in zip(ids, boxes, strict=False)]


@pytest.mark.parametrize(('items', 'message'), [
    (predicted([0, 0, 1, 1], [0, 0, 1, 1]), '1 questions not answered: 13-0'),
    (predicted(*[[0, 0, 1, 1]] * 4, ids=(12, 12, 12, 13)), 'answers to questions that are not in'),
    (predicted([0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]), 'predictions that are not {"ref_id": a whole number, "box": [x1, y1'),
    (predicted([0, 0, 1, None], [0, 0, 1, 1], [0, 0, 1, 1]), 'predictions that are not'),
    ([{'ref_id': '12', 'box': [0, 0, 1, 1]}], 'predictions that are not'), ({'a': 1}, '')])
def test_files_of_predictions_are_validated(tmp_path, capsys, items, message):
    status = evaluator.main(['refcoco', str(save(tmp_path / 'p.json', items)), str(save(tmp_path / 'a.json', ANNOTATIONS))])
    assert status == 1 and message in capsys.readouterr().err


def test_accuracy_with_and_without_the_extra_pixel(tmp_path, capsys):
    items = predicted([0, 0, 10, 10], [0, 0, 10, 4.9], [30, 30, 40, 40])  # 4.9 / 10 without, 5.9 / 11 with it
    out = tmp_path / 'out.json'
    assert evaluator.main(['refcoco', str(save(tmp_path / 'p.json', items)), str(save(tmp_path / 'a.json', ANNOTATIONS)),
                           '--out', str(out)]) == 0
    figures = load(out)
    assert figures['accuracy'] == pytest.approx(200 / 3) and figures['strict'] == pytest.approx(100 / 3)
    assert 'with areas without "+1": 33.33' in capsys.readouterr().out


@pytest.mark.shared
def test_the_original_test_program(tmp_path):
    """Its accuracy, 60 %, on its predictions."""
    expected = load(CASES / 'expected.json')['test program']
    process.main(['--refer', str(CASES / 'refcoco+'), '--out', str(tmp_path / 'out')])
    items = [{'ref_id': key, 'box': box} for key, box in zip(expected['ref_ids'], expected['pred_boxes'], strict=True)]
    figures = RefCOCO.evaluate(save(tmp_path / 'p.json', items), tmp_path / 'out/testA.json')
    assert figures['accuracy'] == pytest.approx(expected['accuracy'])


@pytest.mark.shared
def test_real_samples(tmp_path, capsys):
    kept = {'refcoco+_train_sample.json': ('train', 74), 'refcoco_testA_detections.json': ('testA', 29),
            'refcocos_val2017.json': ('testA', 243)}  # the first says its split
    for name, (split, count) in kept.items():
        process.main([str(SHARED / 'refcoco' / name), '--split', 'testA', '--out', str(tmp_path / name)])
        assert len(load(tmp_path / name / f'{split}.json')) == count
    shutil.copytree(SHARED / 'grounding', tmp_path / 'refer')
    for part in ([], [str(SHARED / 'grounding/refcoco_testA_part.json')]):
        process.main([*part, '--refer', str(tmp_path / 'refer'), '--out', str(tmp_path / f'out{len(part)}')])
        assert len(load(tmp_path / f'out{len(part)}/testA.json')) == 14
    assert load(tmp_path / 'out0/testA.json') == load(tmp_path / 'out1/testA.json')


# ---- the sample world

def test_expressions_describe_one_thing_and_words_do_not_tell_where_it_is():
    scenes = {IMAGE.format(index): scene.sample(1, index) for index in range(200)}
    items = expressions.generate(scenes, 8, 0, random.Random(1))
    assert set(Counter(item['question_type'] for item in items)) == set(expressions.KINDS)
    assert len({(item['img_id'], item['sent']) for item in items}) == len(items) > 800
    assert [item['ref_id'] for item in items] == list(range(len(items)))
    for item in items:
        things = scenes[item['img_id']].things
        assert sum(np.allclose(thing.box, item['box'], atol=0.01) for thing in things) == 1
        if item['question_type'] == 'attributes':  # exactly one thing has these words
            words = set(item['sent'].replace('little', 'small').replace('big', 'large').split()) - {'the', 'thing', 'object'}
            named = [thing for thing in things if words <= {thing.shape, thing.colour, thing.size}]
            assert len(named) == 1 and np.allclose(named[0].box, item['box'], atol=0.01)
    chance = 100 * np.mean([1 / len(scenes[item['img_id']].things) for item in items])
    assert expressions.text_only(items[:600], items[600:]) < 8 < chance < 30
