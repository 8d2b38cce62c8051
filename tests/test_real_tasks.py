"""Real samples of four tasks, from the raw files to a score, with BERT's 30,522 word pieces and small models. The samples have no
region features: they are drawn at random here, at the annotated boxes where there are any."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, SMALL

from cli import train_main
from regions import tsv
from tasks.entailment import Entailment
from tasks.program import main
from tasks.refcoco import RefCOCO
from tasks.retrieval import Retrieval
from tasks.vcr import VCRProgram
from tools import evaluate

pytestmark = pytest.mark.shared
MODELS = 'lxmert', 'vlbert'
F = 8  # numbers of a region feature
PROGRAMS = {'refcoco': RefCOCO, 'entailment': Entailment, 'retrieval': Retrieval}


def load(path):
    return json.loads(path.read_text())


def process(kind, *flags):
    """Runs data/KIND/process_KIND.py as its command does."""
    path = ROOT / f'data/{kind}/process_{kind}.py'
    module = {'__name__': f'process_{kind}', '__file__': str(path)}
    exec(compile(path.read_text(), path, 'exec'), module)
    module['main']([*map(str, flags)])


def write_regions(path, images):
    """images: {image id: (boxes, (width, height))}."""
    rng = np.random.default_rng(0)

    def regions():
        for img_id, (boxes, (width, height)) in images.items():
            o = len(boxes)
            ids, confidence = np.zeros(o, np.int64), np.ones(o, np.float32)
            yield tsv.ImageRegions(img_id, height, width, ids, confidence, ids, confidence,
                                   np.float32(np.clip(boxes, 0, [width, height] * 2)), np.float32(rng.normal(size=(o, F))))

    tsv.write(path, list(regions()))


def boxes_of_examples(examples, sizes):
    """The annotated boxes and one at random of each image, for `write_regions`. sizes: {image id: (width, height)}; of others the
    smallest size that holds their boxes."""
    boxes = {}
    for item in examples:
        boxes.setdefault(item['img_id'], []).append(item.get('box', [10, 10, 90, 80]))
    return {img_id: ([*of_image, [0, 0, 30, 30]], sizes.get(img_id, [int(np.ceil(side)) for side in np.max(of_image, 0)[2:]]))
            for img_id, of_image in boxes.items()}


@pytest.fixture
def run(tmp_path, capsys):
    """run(kind, model, train, test): trains on a split, for one step if it has at most 700 examples, validates, tests a split;
    returns what was printed (.out) and the folder of the predictions (.output)."""
    bert = tmp_path / 'bert'
    bert.mkdir()
    shutil.copy(SHARED / 'vocab/bert-base-uncased-vocab.txt', bert / 'vocab.txt')
    (bert / 'config.json').write_text(json.dumps({
        **SMALL, 'vocab_size': 30522, 'num_hidden_layers': 1, 'visual_feat_dim': F}))

    def start(kind, model, train, test, *flags, output='run', **how):
        splits = {split: {'annotations': f'{split}.json', 'features': ['regions.tsv']} for split in {train, test}}
        (tmp_path / 'real.json').write_text(json.dumps({'kind': kind, 'name': 'real', 'max_length': 67, 'splits': splits}))
        output = tmp_path / output
        common = ['--device', 'cpu', '--dataset', tmp_path / 'real.json', '--bert', bert, '--batchSize', 700]
        training = [*common, '--model', model, '--fromScratch', '--train', train, '--valid', test, '--epochs', 1, '--schedule',
                    'constant', '--optim', 'adam', '--lr', '1e-3', '--output', output, *flags]
        testing = [*common, '--test', test, '--load', how.get('load', output / 'BEST'), '--output', output, *how.get('then', ())]

        def program(flags):
            flags = [*map(str, flags)]
            return train_main(VCRProgram.prepare, flags) if kind == 'vcr' else main(PROGRAMS[kind], flags)

        for flags in (training, testing)[:1 + how.get('tested', True)]:
            assert program(flags) == 0, capsys.readouterr().err
        state = torch.load(output / 'BEST.pth', weights_only=True)
        assert any(30522 in tensor.shape for tensor in state.values())
        return SimpleNamespace(out=capsys.readouterr().out, output=output)

    return start


def evaluated(kind, predictions, annotations, capsys):
    assert evaluate.main([kind, str(predictions), str(annotations), '--out', str(predictions.parent / 'figures.json')]) == 0
    return load(predictions.parent / 'figures.json'), capsys.readouterr().out


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize(('name', 'split', 'kept', 'report'), [
    ('refcoco/refcoco+_train_sample.json', 'train', 74, '74 expressions for 26 objects of 12 images'),
    ('refcoco/refcoco_testA_detections.json', 'testA', 29, '29 expressions for 29 objects of 3 images'),
    ('refcoco/refcocos_val2017.json', 'val', 243, '243 expressions for 243 objects of'),
    ('grounding', 'testA', 14, '14 expressions for 5 objects of 1 images')])
def test_expressions(tmp_path, run, capsys, model, name, split, kept, report):
    path = SHARED / name
    source = ['--refer', path, '--detections', path / 'dets.json'] if path.is_dir() else [path, '--split', split]
    process('refcoco', *source, '--out', tmp_path)
    assert f'{split}.json: {report}' in capsys.readouterr().out
    examples, sizes = load(tmp_path / f'{split}.json'), {}
    if 'val2017' in name:
        sizes = {row['image'].rpartition('/')[2].removesuffix('.jpg'): (row['width'], row['height']) for row in load(path)}
    images = boxes_of_examples(examples, sizes)
    if path.is_dir():
        size = {row['id']: (row['width'], row['height']) for row in load(path / 'instances.json')['images']}
        images = {img_id: (of_image, size[int(img_id.rpartition('_')[2])]) for img_id, of_image in
                  load(tmp_path / 'boxes_train_detected.json').items()}
    write_regions(tmp_path / 'regions.tsv', images)
    done = run('refcoco', model, split, split)
    assert f'{kept} sentences on {len(images)} images' in done.out or f'{kept} questions on {len(images)} images' in done.out
    predictions = load(done.output / f'{split}_predict.json')
    assert [row['ref_id'] for row in predictions] == [row['ref_id'] for row in examples] and len(examples) == kept
    figures, _ = evaluated('refcoco', done.output / f'{split}_predict.json', tmp_path / f'{split}.json', capsys)
    assert f'Score on {split}: {figures["accuracy"]:.2f}' in done.out


@pytest.mark.parametrize('model', MODELS)
def test_questions_and_rationales(tmp_path, run, capsys, model):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw/train.jsonl').symlink_to(SHARED / 'vcr/train_sample.jsonl')
    process('vcr', '--raw', tmp_path / 'raw', '--images', SHARED / 'vcr/vcr1images', '--out', tmp_path)
    assert 'train: 154 examples about 56 images with 462 objects.' in capsys.readouterr().out
    write_regions(tmp_path / 'regions.tsv', {one['img_id']: (one['boxes'], (one['width'], one['height']))
                                             for one in load(tmp_path / 'train_boxes.json')})
    run('vcr', model, 'train', 'train', output='answers', tested=False)
    load_both = {'load': tmp_path / 'answers/BEST', 'then': ['--loadRationale', tmp_path / 'rationales/BEST']}
    done = run('vcr', model, 'train', 'train', '--rationale', output='rationales', **load_both)
    figures, _ = evaluated('vcr', done.output / 'train_predict.csv', SHARED / 'vcr/train_sample.jsonl', capsys)
    assert figures['questions'] == 154 and f'Q->AR {figures["accuracy"]:.2f}' in done.out
    assert f'QA->R {figures["QA->R"]:.2f}' in done.out


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize(('name', 'kept', 'of'), [('snli_ve/test_sample.jsonl', 579, 588), ('snli_ve/train_48.jsonl', 163, 168),
                                                  ('ve/ve_test.json', 585, 594), ('ve/photos_ve.json', 15, 15)])
def test_statements(tmp_path, run, capsys, model, name, kept, of):
    process('entailment', '--split', 'test', SHARED / name, '--out', tmp_path)
    printed = capsys.readouterr().out
    assert f'test: {kept} of {of} pairs kept' in printed
    assert of == kept or f'test: {of - kept} pairs without a label dropped.' in printed
    write_regions(tmp_path / 'regions.tsv', boxes_of_examples(load(tmp_path / 'test.json'), {}))
    done = run('entailment', model, 'test', 'test')
    figures, _ = evaluated('entailment', done.output / 'test_predict.json', SHARED / name, capsys)
    assert figures['questions'] == kept and f'Score on test: {figures["accuracy"]:.2f}' in done.out


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize(('train', 'test', 'kept'), [
    ('retrieval/photos_train.json', 'retrieval/photos_test.json', ('55 captions of 11', '50 captions of 10')),
    ('flickr30k/valid_ann_500.jsonl', 'retrieval/photos_test.json', ('2,500 captions of 500', '50 captions of 10')),
    ('retrieval/flickr30k_test.json', 'retrieval/photos_train.json', ('5,000 captions of 1,000', '55 captions of 11')),
    ('retrieval/coco_test_1000.json', 'retrieval/photos_test.json', ('5,001 captions of 1,000', '50 captions of 10'))])
def test_captions(tmp_path, run, capsys, model, train, test, kept):
    process('retrieval', '--split', 'train', SHARED / train, '--split', 'test', SHARED / test, '--out', tmp_path)
    printed = capsys.readouterr().out
    assert all(f'{split}: {count} images kept.' in printed for split, count in zip(('train', 'test'), kept, strict=True))
    write_regions(tmp_path / 'regions.tsv', boxes_of_examples(load(tmp_path / 'train.json') + load(tmp_path / 'test.json'), {}))
    done = run('retrieval', model, 'train', 'test', '--tiny')
    figures, _ = evaluated('retrieval', done.output / 'test_predict.json', tmp_path / 'test.json', capsys)
    assert figures['questions'] == int(kept[1].split()[0]) and f'Score on test: {figures["accuracy"]:.2f}' in done.out
