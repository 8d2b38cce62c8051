"""Explanations of chosen regions, matched sentences and choices, and the programs that take snapshots of these tasks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_show import slow_maps
from test_vlbert_tools import SIZES, cut, images_of, randomised

import models
from bert.tokenization import BertTokenizer
from bert.weights import WeightsError
from explain import attention, drawing, program
from explain.relevance import relevance
from images.pictures import open_picture
from predict import ask, demo, match
from regions.class_names import ClassNames
from tasks import snapshots
from tasks.checkpoints import sidecar_files
from tasks.grounder import Grounder
from tasks.matcher import Matcher
from tasks.predictor import Predictor
from tasks.registry import task_class
from visualbert.config import VisualBertConfig
from vlbert.config import VLBertConfig

ID, OTHER = 'COCO_train2014_000000000001', 'COCO_train2014_000000000002'
MODELS = 'lxmert', 'vlbert', 'visualbert'  # those that read regions
TEXTS = ['the red star', 'a small circle left of the star']
ANSWERS = {'vqa': ['yes', 'no', 'red'], 'entailment': list(task_class('entailment').schema.answers)}


def make_head(world, model, task):
    """A head with random weights, whose encoder has a tokenizer."""
    config = models.package('lxmert').config_from_json(world / 'bert/config.json')
    if model != 'lxmert':
        keys = 'vocab_size', 'max_position_embeddings', 'visual_feat_dim'
        sizes, cls = {key: getattr(config, key) for key in keys} | SIZES, VLBertConfig
        if model == 'visualbert':
            cls = VisualBertConfig
            del sizes['num_region_classes']
        config = cls(**sizes)
    head = randomised(models.build(model, task, config, ANSWERS.get(task)))
    head.encoder.tokenizer, head.encoder.blank = BertTokenizer(world / 'bert/vocab.txt'), False
    return head


@pytest.fixture(scope='module')
def folder(made_world, tmp_path_factory):
    """Holds the run of each (model, task), FOLDER/MODEL_TASK/BEST."""
    parent = tmp_path_factory.mktemp('explain')
    for model, task in [(model, task) for model in MODELS for task in ('refcoco', 'retrieval', 'vcr', 'vqa')] + [
            ('lxmert', 'entailment')]:
        head, place = make_head(made_world, model, task), parent / f'{model}_{task}'
        place.mkdir()
        for name, text in sidecar_files(model, head.encoder.config, head.encoder.tokenizer, ANSWERS.get(task, [])).items():
            (place / name).write_text(text)
        (place / 'options.json').write_text(json.dumps({'task': task, 'options': {'dataRoot': str(made_world)}}))
        torch.save(head.original_state(), place / 'BEST.pth')
    return parent


# ---- relevance


def restated(head, batch, score):
    """(relevance of words and regions (s, s), number of words t) of a batch of one text and one image without padding."""
    states, t = head.encoder(batch, record_attention=True), batch['input_ids'].shape[1]
    weights = [one.probabilities for one in states.attentions]
    gradients = torch.autograd.grad(score(states), weights, allow_unused=True)
    mean = [torch.zeros_like(one[0, 0]) if gradient is None else
            sum((one[0, i] * gradient[0, i]).clamp(min=0) for i in range(one.shape[1])) / one.shape[1]
            for one, gradient in zip(weights, gradients, strict=True)]
    if states.attentions[0].queries == 'all':
        result = torch.eye(len(mean[0]))
        for own in mean:
            result = result + own @ result
        return result.detach(), t
    rows = {one.layer: own.tolist() for one, own in zip(states.attentions, mean, strict=True)}
    tt, ti, it, ii = map(torch.tensor, slow_maps(rows, head.encoder.config, t, batch['features'].shape[1]))
    return torch.cat([torch.cat([tt, ti], 1), torch.cat([it, ii], 1)]), t


def score_of(head, place):
    """The logit that is explained, from the States of one text and one image."""
    def score(states):
        if head.recipe.output == 'region':
            return head.classifier(states.visual)[0, place, 0]
        scores = head.classifier(states.pooled)[0]
        return scores[1] - scores[0] if head.recipe.output == 'match' else scores[0]

    return score


@pytest.mark.parametrize('given', [False, True], ids=['best', 'given'])
@pytest.mark.parametrize('task', ['refcoco', 'retrieval', 'vcr'])
@pytest.mark.parametrize('model', MODELS)
def test_relevance_equals_a_restatement_of_each_example_alone(made_world, model, task, given):
    """Two examples whose texts and numbers of regions differ."""
    head = make_head(made_world, model, task)
    asked = Grounder(head, 20)
    images = [cut(image, count) for image, count in zip(images_of(made_world, ID, OTHER), (3, 5), strict=True)]
    batch, = asked.batches(images, TEXTS)
    whole, texts = 'whole' in head.encoder.needs, [[text] for text in TEXTS]
    if task == 'vcr':  # the four texts of each
        texts = [[f'{text} {end}' for end in ('?', 'is red', 'of a', 'is it a star ?')] for text in TEXTS]
        written = head.encoder.write([(text,) for of_example in texts for text in of_example], 20)
        batch |= {name: torch.from_numpy(array).long() for name, array in written.items() if name != 'counts'}
    places = {'refcoco': [1, 4], 'retrieval': [0, 0], 'vcr': [2, 1]}[task] if given else None
    with torch.no_grad():
        result, logits = relevance(head, batch, places and torch.tensor(places)), head.logits(batch)
    torch.testing.assert_close(result.logits.view_as(logits), logits, atol=1e-5, rtol=1e-4)
    assert result.answers.tolist() == (places or result.logits.argmax(1).tolist())
    assert result.words.shape[:2] == result.regions.shape[:2] == (2, 1) and (result.image is not None) == whole
    for row, (image, place) in enumerate(zip(images, result.answers.tolist(), strict=True)):
        alone, = asked.batches([image], [texts[row][place if task == 'vcr' else 0]])
        assert 'visual_attention_mask' not in alone
        expected, t = restated(head, alone, score_of(head, place))
        read = t + place if task == 'refcoco' else 0
        expected = expected[read] - torch.eye(len(expected))[read]
        close, o = {'rtol': 1e-3, 'atol': 1e-4 * float(expected.max())}, len(image.boxes)
        torch.testing.assert_close(result.words[row, 0, :t], expected[:t], **close)
        torch.testing.assert_close(result.regions[row, 0, :o], expected[t + whole:t + whole + o], **close)
        if whole:
            torch.testing.assert_close(result.image[row, 0], expected[t], **close)
        assert not result.words[row, 0, t:].any() and not result.regions[row, 0, o:].any()
        assert expected[:t].max() > 0 and expected[t:].max() > 0


# ---- snapshots


@pytest.mark.parametrize('model', MODELS)
def test_regions_are_grounded_as_the_head_scores_them(made_world, folder, model):
    grounder, images = Grounder.from_snapshot(folder / f'{model}_refcoco/BEST'), images_of(made_world, ID, OTHER)
    images = [images[0], cut(images[1], 4)]
    together = grounder.ground(images, TEXTS, best=40)
    for image, text, row in zip(images, TEXTS, together, strict=True):
        batch, = grounder.batches([image], [text])
        tokens = ['[CLS]', *grounder.tokenizer.tokenize(text), '[SEP]']  # as in training, without the place of an answer
        assert grounder.tokenizer.convert_ids_to_tokens(batch['input_ids'][0].tolist()) == tokens
        probabilities = grounder.head.logits(batch).softmax(1)[0].tolist()
        boxes = [[0, 0, image.width - 1, image.height - 1]] * (model == 'vlbert') + image.boxes.tolist()
        assert len(row) == len(boxes)  # no padding
        expected = sorted(zip(probabilities, boxes, strict=True), reverse=True)
        np.testing.assert_allclose([p for _, p in row], [p for p, _ in expected], atol=1e-5)
        assert row[0][0] == expected[0][1]
    assert grounder.ground(images[0], TEXTS[0])[0][0][0] == together[0][0][0] and grounder.ground([], []) == []
    with pytest.raises(ValueError, match=r'expressions\[0\]: expected a text'):
        grounder.ground(images[0], [' '])


def test_texts_are_as_long_as_in_training(made_world, folder):
    positions = json.loads((made_world / 'bert/config.json').read_text())['max_position_embeddings']
    tasks = 'retrieval', 'vqa', 'entailment'
    lengths = {task: snapshots.load(folder / f'lxmert_{task}/BEST').max_length for task in (*tasks, 'refcoco')}
    specs = {task: task_class(task).spec(made_world).max_length for task in tasks}
    assert lengths == {'refcoco': min(64, positions), **specs} and len({*specs.values()}) == 3
    assert Matcher.from_pretrained(folder / 'lxmert_retrieval/BEST', max_length=9).max_length == 9


@pytest.mark.parametrize('load', [snapshots.load, Predictor.from_snapshot])
def test_choices_are_no_answers(folder, load):
    with pytest.raises(WeightsError, match=r'BEST\.pth: is a snapshot of the task vcr, which does not answer .* run/vcr_test'):
        load(folder / 'lxmert_vcr/BEST')


def test_other_tasks_are_refused_with_the_program_that_takes_them(folder):
    for load, task, message in (
            (Grounder.from_snapshot, 'vqa', 'task vqa, which does not choose a region; name one that does, or use it with run/a'),
            (Grounder.from_snapshot, 'retrieval', 'which does not choose a region; .* run/match.bash'),
            (Predictor.from_snapshot, 'refcoco', 'task refcoco, which does not answer questions; .* run/ask.bash'),
            (Matcher.from_pretrained, 'refcoco', 'which does not score whether image and sentence match; .* run/ask.bash')):
        for model in MODELS:
            with pytest.raises(WeightsError, match=message):
                load(folder / f'{model}_{task}/BEST')


def test_a_retrieval_snapshot_without_its_options_is_named(made_world, folder, tmp_path):
    for name in ('BEST.pth', 'config.json', 'vocab.txt'):
        (tmp_path / name).write_bytes((folder / 'lxmert_retrieval' / name).read_bytes())
    with pytest.raises(WeightsError, match=r'BEST\.pth: has no pre-trained heads .* retrieval with its options.json beside it$'):
        Matcher.from_pretrained(tmp_path / 'BEST')


# ---- programs


@pytest.fixture
def show(made_world, folder, tmp_path, capsys):
    """show(MODEL_TASK, text, *flags): `attention` in this process; (exit status, what it printed, its json)."""
    def run(snapshot, text, *flags):
        status = program.main(['attention', '--load', str(folder / snapshot / 'BEST'), '--image',
                               str(made_world / f'images/train2014/{ID}.png'), '--features',
                               str(made_world / 'mscoco_imgfeat/train2014_obj36.tsv'), '--question', text, '--names',
                               str(made_world), '--heads', '1', '--out', str(tmp_path / 'out'), *flags])
        path = tmp_path / 'out/attention.json'
        return status, capsys.readouterr(), json.loads(path.read_text()) if path.exists() else None

    return run


@pytest.mark.parametrize('model', MODELS)
def test_the_chosen_region_is_printed_written_and_drawn(made_world, folder, show, tmp_path, model):
    status, printed, values = show(f'{model}_refcoco', TEXTS[0])
    assert status == 0, printed.err
    grounder, (image,) = Grounder.from_snapshot(folder / f'{model}_refcoco/BEST'), images_of(made_world, ID)
    (box, probability), = grounder.ground(image, TEXTS[0])[0]
    batch, = grounder.batches([image], TEXTS[:1])
    expected = relevance(grounder.head, batch)
    chosen, whole = values['chosen region'], model == 'vlbert'
    assert chosen == expected.answers.item() and values['probability'] == pytest.approx(probability, abs=1e-5)
    regions = values['images'][0]['regions']
    np.testing.assert_allclose(regions[chosen]['box'], box, atol=1e-4)
    sides = ', '.join(f'{side:.0f}' for side in box)
    assert printed.out.startswith(f'{TEXTS[0]} -> {regions[chosen]["name"]} [{sides}] ({probability:.3f})\n')
    assert values['answer'] == values['own answer'] == f'{regions[chosen]["name"]} [{sides}]'
    np.testing.assert_allclose([one['relevance'] for one in regions[whole:]], expected.regions[0, 0], atol=1e-5)
    np.testing.assert_allclose(values['images'][0]['relevance of words'], expected.words[0, 0], atol=1e-5)
    with Image.open(tmp_path / 'out/regions.png') as picture:
        x1, y1, x2, y2 = (round(8 * side) for side in box)  # of 160 x 120 pixels drawn on 1280 x 960
        row = np.asarray(picture)[(y1 + y2) // 2, max(x1 - 6, 0):x2 + 7]
        assert (row == drawing.CHOSEN).all(1).sum() >= drawing.FRAME


@pytest.mark.parametrize('model', MODELS)
def test_the_match_of_a_sentence_is_printed_and_explained(made_world, folder, show, model):
    status, printed, values = show(f'{model}_retrieval', TEXTS[1])
    assert status == 0, printed.err
    matcher, (image,) = Matcher.from_pretrained(folder / f'{model}_retrieval/BEST'), images_of(made_world, ID)
    probability = matcher.match(image, TEXTS[1])[0]
    assert printed.out.startswith(f'{TEXTS[1]} -> match ({probability:.3f})\n') and 'chosen region' not in values
    batch, = matcher.batches([image], TEXTS[1:])
    expected = relevance(matcher.head, batch)
    np.testing.assert_allclose(values['images'][0]['relevance of words'], expected.words[0, 0], atol=1e-5)
    np.testing.assert_allclose([one['relevance'] for one in values['images'][0]['regions']][model == 'vlbert':],
                               expected.regions[0, 0], atol=1e-5)


@pytest.mark.parametrize(('snapshot', 'flags', 'error'), [
    ('lxmert_vcr', [], 'is a snapshot of the task vcr, which does not answer questions'),
    ('vlbert_vcr', [], 'is a snapshot of the task vcr, which does not answer questions'),
    ('lxmert_refcoco', ['--answer', 'yes'], "--answer: expected only with a model that answers questions, found 'yes'"),
    ('vlbert_retrieval', ['--answer', 'yes'], "--answer: expected only with a model that answers questions, found 'yes'")])
def test_what_cannot_be_explained_is_one_line(show, snapshot, flags, error):
    status, printed, values = show(snapshot, TEXTS[0], *flags)
    assert status == 1 and values is None and error in printed.err and printed.err.count('\n') == 1


@pytest.mark.parametrize('model', MODELS)
def test_a_picture_is_asked_for_regions_and_for_matches(made_world, folder, tmp_path, capsys, model):
    file = made_world / f'images/train2014/{ID}.png'
    for task in ('refcoco', 'retrieval'):
        snapshot = folder / f'{model}_{task}/BEST'
        flags = ['--load', str(snapshot), '--best', '3', '--out', str(tmp_path / task), '--device', 'cpu']
        assert ask.main([str(file), TEXTS[0], *flags]) == 0
        lines = [line for line in capsys.readouterr().out.splitlines() if '%  ' in line]
        image, = ask.Pipeline.load(snapshot).detect([open_picture(file)], [ID])
        if task == 'retrieval':
            assert lines == [f'  {Matcher.from_pretrained(snapshot).match(image, TEXTS[0])[0]:6.1%}  match']
            continue
        for line, (box, probability) in zip(lines, Grounder.from_snapshot(snapshot).ground(image, TEXTS[0], 3)[0], strict=True):
            assert line.startswith(f'  {probability:6.1%}  ') and line.endswith(f' [{", ".join(f"{x:.0f}" for x in box)}]')
    assert len(list(tmp_path.glob('*/*.png'))) == 2


@pytest.mark.parametrize(('main', 'snapshot', 'error'), [
    (match.main, 'lxmert_vqa', 'task vqa, which does not score whether image and sentence match'),
    (match.main, 'vlbert_refcoco', 'task refcoco, which does not score whether image and sentence match'),
    (match.main, 'lxmert_vcr', 'task vcr, which does not score whether image and sentence match'),
    (ask.main, 'vlbert_vcr', 'task vcr, which does not answer questions'),
    (demo.main, 'lxmert_refcoco', 'expected a model that answers questions, found one of another task')])
def test_programs_refuse_other_snapshots_in_one_line(made_world, folder, capsys, main, snapshot, error):
    items = [] if main is demo.main else [str(made_world / f'images/train2014/{ID}.png'), 'a star']
    assert main([*items, '--load', str(folder / snapshot / 'BEST'), '--device', 'cpu']) == 1
    printed = capsys.readouterr().err
    assert error in printed and printed.count('\n') == 1


# ---- drawings


def test_the_frame_of_a_chosen_region_is_inside_the_picture(made_world):
    image, = images_of(made_world, ID)
    whole = attention.with_whole_image(replace(image))
    drawn = drawing.draw_relevance(whole, np.zeros(37), {}, None, (0, 'chosen: whole image 50%'))
    plain = drawing.draw_relevance(whole, np.zeros(37), {}, None)
    assert drawn.size == plain.size == (1280, 960)
    for point in ((2, 480), (1277, 480), (640, 957)):
        assert drawn.getpixel(point) == drawing.CHOSEN != plain.getpixel(point)
    assert drawn.getpixel((640, 480)) == plain.getpixel((640, 480))


def test_the_name_of_a_place_is_that_of_its_region(made_world, folder):
    image, = images_of(made_world, ID)
    for model, first in (('lxmert', attention.title(image, 0, ClassNames(made_world))), ('vlbert', 'whole image')):
        grounder = snapshots.load(folder / f'{model}_refcoco/BEST')
        assert attention.name_of(grounder, 0, (image,), ClassNames(made_world)).startswith(f'{first} [')
