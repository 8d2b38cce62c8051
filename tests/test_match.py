"""Matching scores and masked words of pre-trained weights, from Python and by run/match.bash."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_program, write_random_snapshot

import models
from bert.weights import WeightsError
from files.json_files import DataError
from lxrt.modeling import LxrtConfig, LXRTPretraining
from predict import match
from regions import store, tsv
from tasks.matcher import Matcher

SENTENCES = ['there is a red circle', 'a square beside a star .', 'two green triangles']


@pytest.fixture(scope='module')
def pretrained(made_world, tmp_path_factory):
    """A world and the folder of a pre-training run on it."""
    world = shutil.copytree(made_world, tmp_path_factory.mktemp('match') / 'shapes')
    run = run_program('pretrain', world, world.parent / 'run', '--train', 'mscoco_train', '--valid', '', '--taskMaskLM',
                      '--taskMatched', '--batchSize', '64', '--lr', '1e-3', '--epochs', '1', '--fromScratch')
    assert run.returncode == 0, run.stderr
    return world, world.parent / 'run'


@pytest.fixture(scope='module')
def images(pretrained):
    return [image for _, image in tsv.read(pretrained[0] / 'mscoco_imgfeat/val2014_obj36.tsv')]


def by_hand(world, folder, image, sentence, matcher):
    """(probability that they match, probabilities of words at each token) by the model of pre-training."""
    model = LXRTPretraining(LxrtConfig.from_json(folder / 'config.json'), task_obj_predict=False, task_qa=False).eval()
    state = torch.load(folder / 'Epoch01_LXRT.pth', weights_only=True)
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    ids = torch.from_numpy(matcher.tokenizer.encode([sentence]).astype(np.int64))[:, :]
    ids = ids[:, :int((ids != 0).sum())]
    boxes = torch.from_numpy(image.boxes / np.float32([image.width, image.height] * 2))[None]
    with torch.no_grad():
        (words, _), pooled = model.bert(ids, None, ids != 0, (torch.from_numpy(image.features)[None], boxes))
        return float(model.cls.seq_relationship(pooled).softmax(1)[0, 1]), model.cls.predictions(words).softmax(-1)[0], ids[0]


def test_scores_are_the_softmax_of_the_pretrained_head(pretrained, images):
    world, folder = pretrained
    matcher = Matcher.from_pretrained(folder / 'Epoch01')
    scores = matcher.match_all(images[:3], SENTENCES, batch_size=4)
    assert scores.shape == (3, 3) and len(np.unique(scores)) == 9
    for image, row in zip(images, scores, strict=False):
        expected = [by_hand(world, folder, image, sentence, matcher)[0] for sentence in SENTENCES]
        np.testing.assert_allclose(row, expected, atol=1e-6)
        np.testing.assert_allclose(matcher.match(image, SENTENCES), expected, atol=1e-6)
    assert matcher.match(images[0], SENTENCES[0]).shape == (1,) and matcher.match([], []).shape == (0,)


def test_masked_words_are_those_of_the_pretrained_head(pretrained, images):
    world, folder = pretrained
    matcher = Matcher.from_pretrained(str(folder / 'Epoch01_LXRT.pth'))
    sentences = ['a [MASK] circle', 'there is a star', 'a [MASK] [MASK] beside it']
    with pytest.raises(ValueError, match=r'sentences\[1\]: expected \[MASK\] among its first 20 tokens'):
        matcher.fill(images[0], sentences)
    del sentences[1]
    filled = matcher.fill(images[1], sentences, best=4)
    assert [len(words) for words in filled] == [1, 2]
    for sentence, words in zip(sentences, filled, strict=True):
        _, probabilities, ids = by_hand(world, folder, images[1], sentence, matcher)
        for place, best in zip((ids == matcher.tokenizer.vocab['[MASK]']).nonzero()[:, 0], words, strict=True):
            top = probabilities[place].topk(4)
            assert [word for word, _ in best] == matcher.tokenizer.convert_ids_to_tokens(top.indices.tolist())
            np.testing.assert_allclose([p for _, p in best], top.values, atol=1e-6)


def test_weights_without_these_heads_are_refused(pretrained, images, tmp_path):
    world, folder = pretrained
    write_random_snapshot(tmp_path / 'tuned', 'vqa', world)
    with pytest.raises(WeightsError, match=r'BEST\.pth: has no pre-trained heads .* a fine-tuned snapshot'):
        Matcher.from_pretrained(tmp_path / 'tuned/BEST')
    shutil.copytree(folder, tmp_path / 'run')
    options = json.loads((folder / 'options.json').read_text())
    options['options']['taskMatched'] = False
    (tmp_path / 'run/options.json').write_text(json.dumps(options))
    matcher = Matcher.from_pretrained(tmp_path / 'run/Epoch01')
    assert matcher.fill(images[0], 'a [MASK]')
    with pytest.raises(WeightsError, match='pre-trained without --taskMatched'):
        matcher.match(images[0], 'a star')


def test_a_second_model_matches_and_fills(pretrained, images, tmp_path, monkeypatch):
    monkeypatch.setitem(models.MODELS, 'single_stream', 'single_stream')
    world, _ = pretrained
    config = models.package('single_stream').config_from_json(world / 'bert/config.json')
    torch.manual_seed(1)
    head = models.build('single_stream', 'match', config)
    torch.save(head.original_state(), tmp_path / 'one.pth')
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'single_stream'} | json.loads(config.to_json())))
    shutil.copy(world / 'bert/vocab.txt', tmp_path)
    matcher = Matcher.from_pretrained(tmp_path / 'one')
    assert 0 < matcher.match(images[0], 'a star')[0] < 1 and len(matcher.fill(images[0], 'a [MASK] star')[0][0]) == 5


def run(pretrained, *flags):
    return match.main([str(flag) for flag in ('--device', 'cpu', '--load', pretrained[1] / 'Epoch01', *flags)])


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def test_the_program_ranks_sentences_of_ids_and_pictures(pretrained, images, tmp_path, capsys):
    world, folder = pretrained
    features = world / 'mscoco_imgfeat/val2014_obj36.tsv'
    names = [image.img_id for image in images[:2]]
    items = [*names, *SENTENCES, 'a [MASK] star']
    assert run(pretrained, *items, '--features', features, '--out', tmp_path / 'x.json', '--best', 2) == 0
    shown, rows = capsys.readouterr().out, json.loads((tmp_path / 'x.json').read_text())
    matcher = Matcher.from_pretrained(folder / 'Epoch01')
    scores = matcher.match_all(images[:2], SENTENCES)
    for name, of_image in zip(names, scores.tolist(), strict=True):
        written = [row for row in rows if row['image'] == name]
        assert [row['sentence'] for row in written] == [*SENTENCES, 'a [MASK] star']
        np.testing.assert_allclose([row['match'] for row in written[:3]], of_image, atol=1e-6)
        assert [row['rank'] for row in written[:3]] == [1 + sum(other > one for other in of_image) for one in of_image]
        assert len(written[3]['words'][0]) == 2
        best = SENTENCES[int(np.argmax(of_image))]
        assert f'\n{name}\n  {max(of_image):6.1%}  {best}\n' in shown

    pictures = sorted((world / 'images/val2014').glob('*.png'))[:1]
    assert run(pretrained, *pictures, *SENTENCES, '--detector', 'shapes', '--out', tmp_path / 'y.csv') == 0
    assert [row['sentence'] for row in rows_of(tmp_path / 'y.csv')] == SENTENCES


def test_the_program_scores_captions_against_foils(pretrained, images, tmp_path, capsys):
    world, folder = pretrained
    features = ['--features', world / 'mscoco_imgfeat/val2014_obj36.tsv']
    pairs = [(images[i % 6].img_id, f'{SENTENCES[i % 3]} {i}', SENTENCES[(i + 1) % 3]) for i in range(9)]
    (tmp_path / 'foils.tsv').write_text(''.join('\t'.join(pair) + '\n' for pair in pairs))
    assert run(pretrained, '--pairs', tmp_path / 'foils.tsv', *features, '--out', tmp_path / 'x.csv', '--batchSize', 4) == 0
    rows, of_id = rows_of(tmp_path / 'x.csv'), {image.img_id: image for image in images}
    assert [(row['image'], row['sentence'], row['foil']) for row in rows] == pairs
    matcher = Matcher.from_pretrained(folder / 'Epoch01')
    ours, foils = (matcher.match([of_id[pair[0]] for pair in pairs], [pair[i] for pair in pairs]) for i in (1, 2))
    np.testing.assert_allclose([float(row['match']) for row in rows], ours, atol=1e-6)
    np.testing.assert_allclose([float(row['foil_match']) for row in rows], foils, atol=1e-6)
    assert f'sentence above its foil  {(ours > foils).mean():6.1%}' in capsys.readouterr().out

    captions = [{'img_id': images[0].img_id, 'sent': SENTENCES}, {'img_id': images[1].img_id, 'sent': SENTENCES[0]}]
    (tmp_path / 'captions.jsonl').write_text('\n'.join(map(json.dumps, captions)))
    assert run(pretrained, '--pairs', tmp_path / 'captions.jsonl', *features, '--out', tmp_path / 'y.csv') == 0
    rows = rows_of(tmp_path / 'y.csv')
    assert [row['sentence'] for row in rows] == [*SENTENCES, SENTENCES[0]]
    assert sorted(row['rank'] for row in rows[:3]) == ['1', '2', '3'] and rows[3]['rank'] == '1'
    assert len(store.open_regions(features[1])) == len(images)


@pytest.mark.parametrize(('pairs', 'fault'), [
    ('a\n', ':1: expected image<TAB>sentence'), ('a\tb\tc\td\n', ':1: expected image<TAB>sentence'), ('', 'found none'),
    ('a\tb\tc\na\tb\n', 'expected a foil in every row or in none'), ('none\tb\n', '1 of 1 images are not in it (none)')])
def test_faulty_pairs_are_named(pretrained, tmp_path, capsys, pairs, fault):
    path = tmp_path / 'pairs.tsv'
    path.write_text(pairs)
    assert run(pretrained, '--pairs', path, '--features', pretrained[0] / 'mscoco_imgfeat/val2014_obj36.tsv') == 1
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize('items, fault', [(['x.jpg', 'a dog'], 'found only sentences: x.jpg, a dog; correct the ids or paths'),
                                          (['x'], 'found only images: x; add a sentence')])
def test_items_without_images_or_sentences_are_named(items, fault):
    known = SimpleNamespace(rows=lambda ids: [0 if img_id == 'x' else -1 for img_id in ids])
    with pytest.raises(DataError, match=f'expected ids of images of r.tsv and sentences, {fault}'):
        match.match_items(SimpleNamespace(items=items, features='r.tsv'), None, SimpleNamespace(store=known))
