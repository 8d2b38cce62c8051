"""The tools with snapshots and pre-trained weights of VL-BERT: explanations, encoding, matching, the library."""

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, ragged

import models
from bert.tokenization import BertTokenizer
from bert.weights import WeightsError, read_state, save_state
from explain import attention, pointing, program
from explain.relevance import relevance
from predict import match
from regions import readers, tsv
from regions.class_names import ClassNames
from tasks.checkpoints import model_type, sidecar_files
from tasks.matcher import Matcher
from tasks.predictor import Predictor
from tasks.registry import task_class
from tools import convert, encode
from vlbert.config import VLBertConfig

SIZES = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 24, 'num_region_classes': 7}
ANSWERS = ['yes', 'no', 'red', '2']
QUESTION = 'What color is the star?'
ID, OTHER = 'COCO_train2014_000000000001', 'COCO_train2014_000000000002'


def randomised(head, deviation=0.3):
    torch.manual_seed(3)
    for name, parameter in head.named_parameters():
        parameter.data.normal_('norm' in name.lower() and name.endswith('weight'), deviation)
    return head.eval()


def write_snapshot(folder, world, task='vqa', name='BEST.pth', **sizes):
    """Writes a snapshot of VL-BERT with random weights and its sidecars; returns its head."""
    values = json.loads((world / 'bert/config.json').read_text())
    keys = 'vocab_size', 'max_position_embeddings', 'visual_feat_dim'
    config = VLBertConfig(**{key: values[key] for key in keys} | SIZES | sizes)
    answers = {'nlvr2': ['False', 'True'], 'vqa': ANSWERS}.get(task)
    head = randomised(models.build('vlbert', task, config, answers))
    folder.mkdir(parents=True, exist_ok=True)
    head.encoder.tokenizer = BertTokenizer(world / 'bert/vocab.txt')
    texts = sidecar_files('vlbert', config, head.encoder.tokenizer, answers)
    for file, text in texts.items():
        if file != 'answers.json' or answers:
            (folder / file).write_text(text)
    (folder / 'options.json').write_text(json.dumps({'task': task, 'options': {}}))
    torch.save(head.original_state(), folder / name)
    return head


@pytest.fixture(scope='module')
def shared(made_world, tmp_path_factory):
    """(a world, the folder of snapshots: vqa, nlvr2, retrieval and pre-trained weights)."""
    folder = tmp_path_factory.mktemp('vlbert_tools')
    for task in ('vqa', 'nlvr2', 'retrieval'):
        write_snapshot(folder / task, made_world, task)
    write_snapshot(folder / 'pretrained', made_world, 'pretrain', name='x.pth')
    return made_world, folder


def images_of(world, *ids):
    images = {image.img_id: image for image in readers.chosen(world / 'mscoco_imgfeat/train2014_obj36.tsv', list(ids))}
    return [images[img_id] for img_id in ids]


def cut(image, count):
    return replace(image, **{name: getattr(image, name)[:count] for name in tsv.ARRAYS})


# ---- relevance


@pytest.mark.parametrize('task', ['vqa', 'nlvr2'])
def test_relevance_equals_a_restatement_of_each_example_alone(shared, task):
    """Questions of other lengths and images of other numbers of regions; each alone, without padding."""
    world, folder = shared
    predictor = Predictor.from_snapshot(folder / task / 'BEST')
    k, (one, other) = predictor.images, images_of(world, ID, OTHER)
    groups = [(one, cut(other, 5))[:k], (cut(other, 3), one)[:k]]
    questions = ['Is there a red star?', 'two circles']
    batch, = predictor.batches(groups, questions)
    result = relevance(predictor.head, batch)
    assert result.image.shape == (2, k) and result.regions.shape == (2, k, 36)
    for row, (group, question) in enumerate(zip(groups, questions, strict=True)):
        for place, image in enumerate(group):
            expected, t, slot = restated(predictor, group, question, int(result.answers[row]), place)
            words = expected[slot, :t] - torch.eye(t)[slot]
            o, close = len(image.boxes), {'rtol': 1e-3, 'atol': 1e-4 * float(words.max())}
            torch.testing.assert_close(result.words[row, place, :t], words, **close)
            torch.testing.assert_close(result.image[row, place], expected[slot, t], **close)
            torch.testing.assert_close(result.regions[row, place, :o], expected[slot, t + 1:t + 1 + o], **close)
            assert not result.regions[row, place, o:].any() and not result.words[row, place, t:].any()
            assert len(expected) == t + 1 + o + 1 and words.max() > 1e-4 and expected[slot, t + 1:].max() > 0


def restated(predictor, group, question, answer, place):
    """(the relevance (s, s) of the words, regions and [END] of one image of an example alone, t, the row of [MASK])."""
    batch, = predictor.batches([group], [question])
    t = batch['input_ids'].shape[1]
    states = predictor.head.encoder(batch, record_attention=True)
    logit = predictor.head.classifier(states.pooled)[0, answer]
    joint = [one.probabilities for one in states.attentions]
    places = [*range(t + 1 + len(group[place].boxes)), joint[0].shape[-1] - 1]  # without the padding of the other image
    expected = torch.eye(len(places))
    for weights, gradient in zip(joint, torch.autograd.grad(logit, joint), strict=True):
        mean = sum((weights[place, head] * gradient[place, head]).clamp(min=0) for head in range(2)) / 2
        expected = expected + mean[places][:, places] @ expected
    return expected.detach(), t, int(batch['slot'][0])


@torch.no_grad()
def reads_only_flagged_regions(head):
    """The answer depends on regions whose first feature is 1: the first four numbers of all other states, the words' too, are 0,
    and no other numbers are read."""
    for parameter in head.parameters():
        parameter.zero_()
    core = head.encoder.model.vlbert
    head.encoder.model.image_feature_extractor.obj_downsample[1].weight[:4, 2048] = 1
    for norm in (core.visual_ln_object, core.embedding_LayerNorm):
        norm.weight.fill_(1)
    layer = core.encoder.layer[0]
    core.embedding_LayerNorm.bias[8:] = torch.tensor([1.0, -1.0]).repeat(4)
    layer.attention.self.value.weight[:4, :4] = torch.eye(4)
    for linear in (layer.attention.output.dense, head.classifier[0].dense):
        linear.weight.copy_(torch.eye(len(linear.weight)))
    layer.attention.output.LayerNorm.weight.fill_(1)
    layer.output.LayerNorm.weight.fill_(1)
    head.classifier[0].LayerNorm.weight.fill_(1)
    head.classifier[2].weight[2, :8] = torch.tensor([1.0, -1.0]).repeat_interleave(4)


def test_the_region_that_an_answer_depends_on_is_shown(made_world, tmp_path):
    head = write_snapshot(tmp_path / 'vqa', made_world, num_hidden_layers=1)
    reads_only_flagged_regions(head)
    predictor, (image,) = Predictor(head, task_class('vqa'), ANSWERS), images_of(made_world, ID)
    flag, names = np.zeros_like(image.features), ClassNames(made_world)
    for region in (0, 7, 35):
        features = flag.copy()
        features[region, 0] = 1
        flagged = replace(image, features=features, image_feature=flag[0])
        explanation = attention.explain(predictor, [flagged], QUESTION)
        assert explanation.answer == 'red'
        weights, = explanation.region_relevance
        assert weights.nonzero()[0].tolist() == [region + 1]  # after the image as a whole
        (texts, _), = explanation.draw([flagged], [None], names)
        assert next(iter(texts.items())) == (region + 1, f'1 {attention.title(image, region, names)} 100%')
        shown = explanation.complete(flagged)
        assert np.array_equal(shown.boxes[region + 1], image.boxes[region])
        game = pointing.play(predictor, [({'img_id': ID, 'sent': QUESTION, 'label': {'red': 1.0}}, image.boxes[region])],
                             {ID: flagged})
        assert game.hits.all() and game.mass.tolist() == [1]
    explanation = attention.explain(predictor, [replace(image, features=flag, image_feature=np.eye(len(flag[0]), dtype='f4')[0])],
                                    QUESTION)
    (texts, _), = explanation.draw([image], [None], names)
    assert texts[0] == '1 whole image 100%'


@pytest.mark.parametrize('task', ['vqa', 'nlvr2'])
def test_attention_of_words_and_regions_is_written_and_drawn(shared, tmp_path, capsys, task):
    world, folder = shared
    ids = [ID, OTHER][:2 if task == 'nlvr2' else 1]
    status = program.main(['attention', '--load', str(folder / task / 'BEST'), '--features',
                           str(world / 'mscoco_imgfeat/train2014_obj36.tsv'), '--question', QUESTION, '--names', str(world),
                           '--out', str(tmp_path / 'out'), '--heads', '2', '--image', *ids])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    values = json.loads((tmp_path / 'out/attention.json').read_text())
    assert values['words'][-4:] == ['?', '[SEP]', '[MASK]', '[SEP]'] and '[MASK]' not in printed.out
    predictor, images = Predictor.from_snapshot(folder / task / 'BEST'), images_of(world, *ids)
    batch, = predictor.batches([tuple(images)], [QUESTION])
    recorded, t = predictor.head.encoder(batch, record_attention=True).attentions, len(values['words'])
    for i, (image, of_image) in enumerate(zip(images, values['images'], strict=True)):
        assert list(of_image['attention']) == [f'layer{n}.{what}' for n in (1, 2) for what in ('words_to_regions',
                                                                                               'regions_to_words')]
        for n, one in enumerate(recorded, 1):
            whole = one.probabilities[i].detach()
            for name, part in (('words_to_regions', whole[:, :t, t:t + 37]), ('regions_to_words', whole[:, t:t + 37, :t])):
                np.testing.assert_allclose(of_image['attention'][f'layer{n}.{name}'], part, atol=1e-5)
        assert [one['name'] for one in of_image['regions']].index('whole image') == 0
        assert of_image['regions'][0]['box'] == [0, 0, image.width - 1, image.height - 1]
        np.testing.assert_allclose([one['box'] for one in of_image['regions'][1:]], image.boxes, atol=1e-4)
    assert len(list((tmp_path / 'out').glob('*layer*.png'))) == 2 * len(ids)


# ---- encoding


def encoded(world, folder, weights, *flags):
    """The arrays that run/encode.bash writes of three pairs, and the ImageRegions of these."""
    images = [image for _, image in tsv.read(world / 'mscoco_imgfeat/val2014_obj36.tsv')][:3]
    sentences = [QUESTION, 'a star', 'is there a red circle ?']
    (folder / 'pairs.tsv').write_text(''.join(f'{image.img_id}\t{text}\n' for image, text in zip(images, sentences, strict=True)))
    status = encode.main([str(folder / 'pairs.tsv'), '--features', str(world / 'mscoco_imgfeat/val2014_obj36.tsv'), '--load',
                          str(weights), '--out', str(folder / 'x.npz'), '--device', 'cpu', '--batchSize', '2', *flags])
    assert status == 0
    return np.load(folder / 'x.npz'), list(zip(images, sentences, strict=True))


@pytest.mark.parametrize(('weights', 'end'), [('vqa/BEST', ['[MASK]', '[SEP]']), ('retrieval/BEST', []),
                                             ('pretrained/x', [])])
def test_encoded_regions_are_in_the_order_of_the_store(world, shared, tmp_path, weights, end):
    ragged(world)
    path = shared[1] / weights
    arrays, pairs = encoded(world, tmp_path, path, '--states', 'pooled,words,regions', '--layers', 'embeddings,layer2')
    package = models.package('vlbert')
    encoder, _ = package.load_encoder(path.with_suffix('.pth'), package.config_from_json(path.with_name('config.json')))
    tokenizer = BertTokenizer(path.with_name('vocab.txt'))
    assert arrays['num_regions'].max() < arrays['regions.layer2'].shape[1] < 8  # the most of any image of the file
    for i, (image, sentence) in enumerate(pairs):
        tokens = ['[CLS]', *tokenizer.tokenize(sentence), '[SEP]']
        ids = torch.tensor([tokenizer.convert_tokens_to_ids(tokens + end)])
        t, o = ids.shape[1], len(image.boxes)
        size = np.float32([image.width, image.height] * 2)
        boxes = np.concatenate([[[0, 0, *size[:2] - 1]], image.boxes]) / size
        features = np.concatenate([image.features.mean(0, keepdims=True), image.features])
        batch = {'examples': 1, 'input_ids': ids, 'token_type_ids': (torch.arange(t) >= len(tokens)).long()[None],
                 'features': torch.from_numpy(features)[None], 'boxes': torch.from_numpy(boxes).float()[None],
                 'image_size': torch.tensor([[image.height, image.width]])}
        with torch.no_grad():
            states, layers = encoder.eval().states(batch, hidden_states=True)
        assert arrays['num_words'][i] == t and arrays['num_regions'][i] == o
        np.testing.assert_allclose(arrays['pooled'][i], states[0, len(tokens) if end else 0], atol=1e-5)
        for name, layer in (('embeddings', layers[0]), ('layer2', states)):
            np.testing.assert_allclose(arrays[f'words.{name}'][i, :t], layer[0, :t], atol=1e-5)
            np.testing.assert_allclose(arrays[f'image.{name}'][i], layer[0, t], atol=1e-5)
            np.testing.assert_allclose(arrays[f'regions.{name}'][i, :o], layer[0, t + 1:t + 1 + o], atol=1e-5)
            assert not arrays[f'regions.{name}'][i, o:].any() and not arrays[f'words.{name}'][i, t:].any()


def test_the_state_of_the_image_comes_with_those_of_regions_only(shared, tmp_path):
    world, folder = shared
    assert not [name for name in encoded(world, tmp_path, folder / 'vqa/BEST')[0] if name.startswith('image.')]
    arrays, _ = encoded(world, tmp_path, folder / 'vqa/BEST', '--states', 'words')
    assert 'words.layer2' in arrays and 'image.layer2' not in arrays


# ---- the library, matching


def test_the_library_answers_as_the_head_does(shared):
    world, folder = shared
    predictor, images = Predictor.from_snapshot(folder / 'vqa/BEST'), images_of(world, ID, OTHER)
    together = predictor.answer([images[0], cut(images[1], 4)], [QUESTION, 'a star'], best=4)
    for image, question, answers in zip((images[0], cut(images[1], 4)), (QUESTION, 'a star'), together, strict=True):
        batch, = predictor.batches(image, [question])
        probabilities = predictor.head.logits(batch).sigmoid()[0]
        np.testing.assert_allclose([dict(answers)[answer] for answer in ANSWERS], probabilities.detach(), atol=1e-5)


def test_masked_words_are_filled_and_matching_needs_its_head(shared, tmp_path, capsys, monkeypatch):
    world, folder = shared
    matcher, (image,) = Matcher.from_pretrained(folder / 'pretrained/x'), images_of(world, ID)
    (words,) = matcher.fill(image, 'a [MASK] star', best=2)
    batch, = matcher.batches(image, ['a [MASK] star'])
    assert batch['input_ids'].shape == (1, 5) and not batch['token_type_ids'].any()
    states = matcher.head.encoder.states(batch)[0, 2]
    top = matcher.head.mlm_head.predictions(states[None]).softmax(1)[0].topk(2)
    assert [word for word, _ in words[0]] == matcher.tokenizer.convert_ids_to_tokens(top.indices.tolist())
    np.testing.assert_allclose([p for _, p in words[0]], top.values.detach(), atol=1e-6)
    with pytest.raises(WeightsError, match=r'x\.pth: has no head that tells whether an image and a sentence belong together'):
        matcher.match(image, 'a star')
    monkeypatch.setattr(match.Images, 'check', None)
    status = match.main(['--device', 'cpu', '--load', str(folder / 'pretrained/x'), '--features',
                         str(world / 'mscoco_imgfeat/train2014_obj36.tsv'), ID, 'a star', 'a [MASK]'])
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 1 and error.startswith('match.bash: error: ') and 'vlbert.relationsip_head' in error


def test_weights_with_the_relationship_head_match(made_world, tmp_path):
    head = write_snapshot(tmp_path, made_world, 'pretrain', name='x.pth', with_relationship=True)
    (tmp_path / 'config.json').write_text((tmp_path / 'config.json').read_text().replace('"with_relationship": true',
                                                                                       '"with_relationship": false'))
    matcher, (image,) = Matcher.from_pretrained(tmp_path / 'x'), images_of(made_world, ID)
    head.encoder.blank = False
    batch, = matcher.batches(image, ['a star'])
    assert matcher.match(image, 'a star')[0] == pytest.approx(head.match_logits(batch).sigmoid().item(), abs=1e-5)


# ---- launchers


@pytest.mark.parametrize(('default', 'flags', 'expected'), [
    ('--loadLXMERTQA snap/pretrained/model', '--model vlbert', '--loadVLBERT snap/pretrained/vl-bert-base-prec --model vlbert'),
    ('--loadLXMERT x', '--lr 1 --model=vlbert', '--loadVLBERT snap/pretrained/vl-bert-base-prec --lr 1 --model=vlbert'),
    ('--loadLXMERT x', '--model lxmert', '--loadLXMERT x --model lxmert'),
    ('--loadLXMERT x', '--output vlbert', '--loadLXMERT x --output vlbert'),
    ('--loadLXMERT x', '--loadVLBERT y', '--loadVLBERT y'),
    ('--loadLXMERT x', '--loadVLBERT=y --model vlbert', '--loadVLBERT=y --model vlbert'),
    ('--loadLXMERT x', '--model vlbert --fromScratch', '--model vlbert --fromScratch'),
    ('--fromScratch', '--model vlbert', '--fromScratch --model vlbert'),
    ('', '--model vlbert --test minival', '--model vlbert --test minival'),
    ('--loadLXMERT x', '--model albef', '--loadALBEF snap/pretrained/ALBEF --model albef'),
    ('--loadLXMERT x', '--loadALBEF y', '--loadALBEF y'),
    ('--loadLXMERTQA x', '--loadEncoder y --model lxmert', '--loadEncoder y --model lxmert'),
    ('--loadLXMERTQA x', '--model=another', '--model=another'),
    ('--loadLXMERT x', '--loadResNet y', '--loadLXMERT x --loadResNet y'),
])
def test_a_launcher_starts_from_weights_of_the_model_that_is_typed(default, flags, expected):
    script = f'source run/launch.bash; PYTHON=echo; launch src/tasks/vqa.py "{default}" cpu {flags}'
    run = subprocess.run(['bash', '-c', script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, f'-m tasks.vqa {expected} --device cpu\n'), run.stderr


@pytest.mark.parametrize('words', [['cpu', 'vqa', 'bert'], ['lxmert', 'pretrain']])  # before anything is installed
def test_the_quickstart_names_its_models(words):
    run = subprocess.run(['bash', 'run/quickstart.bash', *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2 and f'[{"|".join(models.MODELS)}]' in run.stderr


# ---- run/convert.bash


YAML = '''
NETWORK:
  VLBERT:
    vocab_size: {vocab_size}
    hidden_size: 16
    num_hidden_layers: {layers}
    num_attention_heads: 2
    intermediate_size: 24
    max_position_embeddings: 40
    visual_size: 16
'''


@pytest.fixture
def published(made_world, tmp_path):
    """(a file as the original code saves it, with weights of its convolutional branch, and its yaml; the weights)."""
    head = write_snapshot(tmp_path / 'source', made_world, 'pretrain', visual_feat_dim=2048, num_region_classes=1601)
    state = head.original_state() | {'image_feature_extractor.backbone.conv1.weight': torch.randn(2, 3)}
    torch.save({'state_dict': {f'module.{name}': tensor.half() for name, tensor in state.items()},
                'optimizer': {'state': {}}, 'validation_monitor': {'best': 0.5}}, tmp_path / 'vl-bert-tiny-e2e.model')
    config = tmp_path / 'tiny.yaml'
    config.write_text(YAML.format(layers=2, vocab_size=head.encoder.config.vocab_size))
    return tmp_path / 'vl-bert-tiny-e2e.model', config, state


@pytest.mark.parametrize('ending', ['.pth', '.safetensors'])
def test_a_published_file_becomes_a_snapshot_that_loads_by_itself(made_world, published, tmp_path, capsys, ending):
    source, config, state = published
    target = tmp_path / f'out/tiny{ending}'
    assert convert.main(['file', str(source), str(target), '--config', str(config), '--bert', str(made_world / 'bert')]) == 0
    assert f'{target}: {len(state)} tensors of the model vlbert; beside it config.json, vocab.txt' in capsys.readouterr().out
    written = read_state(target, str)
    assert written.keys() == state.keys() and all(torch.equal(written[name], state[name].half()) for name in state)
    assert json.loads((target.with_name('config.json')).read_text())['model_type'] == 'vlbert'
    (image,) = images_of(made_world, ID)
    image = replace(image, features=np.pad(image.features, ((0, 0), (0, 2048 - image.features.shape[1]))))
    assert len(Matcher.from_pretrained(target).fill(image, 'a [MASK] star', best=2)[0][0]) == 2


def test_the_model_of_a_file_is_told_by_its_names_and_by_flag(published, tmp_path, capsys):
    source, _, state = published
    assert convert.main(['file', str(source), str(tmp_path / 'a.pth')]) == 0
    assert 'of the model vlbert; beside it nothing' in capsys.readouterr().out
    assert convert.main(['file', str(source), str(tmp_path / 'b.pth'), '--model', 'vlbert']) == 0
    save_state({'bert.embeddings.word_embeddings.weight': torch.randn(3, 4)}, tmp_path / 'c.pth', '.pth')
    capsys.readouterr()
    assert convert.main(['file', str(tmp_path / 'c.pth'), str(tmp_path / 'd.pth'), '--model', 'vlbert']) == 1
    assert 'c.pth: expected weights of VL-BERT' in capsys.readouterr().err
    assert convert.main(['file', str(tmp_path / 'c.pth'), str(tmp_path / 'd.pth')]) == 0
    assert 'of the model lxmert' in capsys.readouterr().out
    assert read_state(tmp_path / 'b.pth', str).keys() == state.keys()


def test_a_config_of_another_size_is_refused(published, tmp_path, capsys):
    source, config, _ = published
    config.write_text(config.read_text().replace('layers: 2', 'layers: 3'))
    assert convert.main(['file', str(source), str(tmp_path / 'out/a.pth'), '--config', str(config)]) == 1
    assert 'tensors that the model needs are missing' in capsys.readouterr().err and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('kind', ['zip', 'before 1.6', 'safetensors'])
def test_a_file_without_config_beside_it_is_told_by_its_names(made_world, published, tmp_path, kind):
    source, _, state = published
    path = tmp_path / ('x/y.safetensors' if kind == 'safetensors' else 'x/y.model')
    path.parent.mkdir()
    if kind == 'safetensors':
        save_state(state, path, path.suffix)
    else:
        torch.save(torch.load(source), path, _use_new_zipfile_serialization=kind == 'zip')
    assert model_type(path) == 'vlbert' and model_type(path, 'lxmert') == 'lxmert'
    content = path.read_bytes()
    for damaged in (b'', content[:100], b'PK' + content[2:900], b'\xff' * 900):
        path.write_bytes(damaged)
        assert model_type(path) == 'lxmert'
    assert model_type(tmp_path / 'none.pth') == 'lxmert'
    path.write_bytes(content)
    (path.parent / 'config.json').write_text((made_world / 'bert/config.json').read_text())  # as beside published files
    assert model_type(path) == 'vlbert'
