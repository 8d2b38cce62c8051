"""ALBEF on the sample world: pre-training on captions, and each task from there, by the programs behind the launchers."""

import json
import re
import shutil

import pytest
import torch
from processes import run

import models
from bert.weights import read_state
from cli import train_main
from heads import Start
from images.pictures import open_picture
from predict import ask
from pretrain import pairs
from regions.image_regions import ImageRegions
from tasks.predictor import Predictor
from tasks.registry import task_class

SIZES = {'image_res': 32, 'patch_size': 16, 'vision_width': 32, 'vision_depth': 1, 'vision_heads': 2, 'num_hidden_layers': 2,
         'fusion_layer': 1, 'embed_dim': 8, 'queue_size': 512}
SPLITS = {'vqa': ('train', 'minival'), 'nlvr2': ('train', 'valid'), 'entailment': ('train', 'dev'), 'refcoco': ('train', 'val'),
          'retrieval': ('coco_train', 'coco_valid')}


@pytest.fixture(scope='module')
def small_world(made_world, tmp_path_factory):
    """A sample world with a very small ALBEF, and flags."""
    folder = tmp_path_factory.mktemp('albef')
    shutil.copytree(made_world, folder / 'shapes')  # training writes stores and indices beside the data
    shutil.copytree(made_world / 'bert', folder / 'bert')
    config = json.loads((folder / 'bert/config.json').read_text()) | SIZES
    (folder / 'bert/config.json').write_text(json.dumps(config))
    return folder


def flags(world, output, *more):
    """One step of 512 examples of the world, which has fewer of each task."""
    return [str(flag) for flag in ('--device', 'cpu', '--dataRoot', world / 'shapes', '--bert', world / 'bert', '--epochs', 1,
                                   '--batchSize', 512, '--model', 'albef', '--output', world / output, *more)]


@pytest.fixture(scope='module')
def pretrained(small_world):
    """The path of weights that were pre-trained for a step on the project's captions."""
    more = '--train', 'train', '--valid', 'val', '--lr', '1e-3', '--fromScratch'
    assert train_main(pairs.prepare, flags(small_world, 'pretrain', *more)) == 0
    return small_world / 'pretrain/Epoch01.pth'


def test_text_assignment_comes_between_pre_training_and_nlvr2(small_world, pretrained, capsys):
    """Its weights have the layers of NLVR2, each of those that attend to images twice."""
    more = '--train', 'train', '--valid', 'val', '--taskAssign', '--loadALBEF', pretrained
    assert train_main(pairs.prepare, flags(small_world, 'assignment', *more, '--tiny')) == 0
    assert 'TA ' in capsys.readouterr().out
    head = models.build('albef', 'nlvr2', models.package('albef').config_from_json(small_world / 'assignment/config.json'))
    models.package('albef').load_start(head, Start('encoder', small_world / 'assignment/Epoch01.pth'))
    state, assigned = head.original_state(), read_state(small_world / 'assignment/Epoch01.pth')
    encoder = {name for name in assigned if name.startswith(('visual_encoder.', 'text_encoder.'))}
    assert encoder == {name for name in state if name.startswith(('visual_encoder.', 'text_encoder.'))}
    assert 'ta_head.weight' in assigned and all(torch.equal(state[name], assigned[name]) for name in encoder)
    assert train_main(pairs.prepare, flags(small_world, 'no', *more, '--taskMatched')) == 1
    assert '--taskMatched: does not apply to pre-training for two images (--taskAssign); leave it out' in capsys.readouterr().err


@pytest.mark.parametrize('task', SPLITS)
def test_each_task_from_pre_trained_weights(small_world, pretrained, task):
    """A step of training from the pre-trained weights, then predictions with a score."""
    train, test = SPLITS[task]
    done = run(task, flags(small_world, task, '--train', train, '--valid', test, '--loadALBEF', pretrained))
    assert done.returncode == 0, done.stderr
    weights = small_world / task / 'BEST.pth'
    name = 'visual_encoder_m.patch_embed.proj.weight'
    assert not torch.equal(read_state(weights)[name], read_state(pretrained)[name])
    done = run(task, [*flags(small_world, f'{task}_results', '--test', test, '--load', weights)])
    assert done.returncode == 0, done.stderr
    predictions, = (small_world / f'{task}_results').glob(f'{test}_predict.*')
    figures = task_class(task).evaluate(predictions, small_world / f'shapes/{task}/{test}.json')
    assert f'Score on {test}: {figures["accuracy"]:.2f}' in done.stdout


def test_a_snapshot_answers_a_picture(small_world, pretrained, capsys):
    world = small_world / 'shapes'
    answers = json.loads((world / 'vqa/trainval_label2ans.json').read_text())
    answers.remove('yes')
    (world / 'few.json').write_text(json.dumps(answers))
    (world / 'dataset.json').write_text(json.dumps({
        'kind': 'vqa', 'name': 'few', 'max_length': 20, 'answers': 'few.json', 'splits': {
            'train': {'annotations': 'vqa/nominival.json', 'images': ['images/val2014']}}}))
    more = '--dataset', world / 'dataset.json', '--train', 'train', '--valid', '', '--loadALBEF', pretrained
    done = run('vqa', flags(small_world, 'asked', *more))
    assert done.returncode == 0, done.stderr
    assert f'train: 1 answers beside the {len(answers)} candidates are trained on' in done.stdout
    picture = min((small_world / 'shapes/images/val2014').glob('*.png'))
    more = '--load', small_world / 'asked/LAST', '--out', small_world / 'drawn', '--device', 'cpu'
    assert ask.main([str(picture), 'Is there a star?', *map(str, more)]) == 0
    assert json.loads((small_world / 'asked/answers.json').read_text()) == answers
    printed = capsys.readouterr().out
    assert re.search(r'^ +\d+\.\d%  (.+)$', printed, re.M)[1] in answers
    predictor = Predictor.from_snapshot(small_world / 'asked/LAST')
    pixels = open_picture(picture)
    image = ImageRegions.without_regions('x', *pixels.shape[:2], pixels)
    written, = predictor.write(image, 'Is there a star?')
    assert f'  the decoder writes: {written}\n' in printed
    bias = predictor.head.encoder.model.text_decoder.cls.predictions.bias
    bias.data[[predictor.tokenizer.vocab[piece] for piece in ('star', '[SEP]')]] = torch.tensor([200.0, 100.0])
    assert predictor.write(image, ['Is there a star?'] * 2) == ['star ' * 19 + 'star'] * 2  # which is no answer of the list
