"""Relevance compared with slow loops, the drawings, run/show.bash attention."""

import itertools
import json
import warnings

import numpy as np
import pytest
import torch
from conftest import lxmert_head, write_random_snapshot
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from PIL import Image, ImageDraw

from explain import drawing, program
from explain.explanation import RegionExplanation
from explain.relevance import relevance, relevance_maps
from heads import Attention
from lxrt.config import LxrtConfig
from lxrt.heads import sides_of
from lxrt.modeling import attention_names
from regions import readers
from regions.class_names import ClassNames
from tasks.predictor import Predictor

TINY = {'vocab_size': 40, 'hidden_size': 16, 'num_attention_heads': 4, 'intermediate_size': 24, 'type_vocab_size': 2,
        'max_position_embeddings': 24, 'l_layers': 2, 'x_layers': 2, 'r_layers': 1, 'visual_feat_dim': 6}


# ---------------------------------------------------------------------------- relevance


def tiny_head(images=1, **changes):
    torch.manual_seed(0)
    head = lxmert_head(LxrtConfig(**{**TINY, **changes}), 5, images)
    for p in head.parameters():
        p.data.normal_(0, 0.4)
    return head.eval()


def tiny_batch(images=1, padded=True):
    g = torch.Generator().manual_seed(1)
    b, t, o = 3, 6, 5
    ids = torch.randint(1, 40, (b, t), generator=g)
    batch = {'examples': b, 'input_ids': ids, 'features': torch.randn(b * images, o, 6, generator=g),
             'boxes': torch.rand(b * images, o, 4, generator=g)}
    if padded:
        ids[1, 4:] = 0
        counts = torch.tensor([5, 3, 4, 2, 5, 1])[:b * images]
        batch['visual_attention_mask'] = torch.arange(o) < counts[:, None]
    return batch


def product(*matrices):
    """Of matrices as lists of rows."""
    result = matrices[0]
    for other in matrices[1:]:
        result = [[sum(row[k] * other[k][j] for k in range(len(other))) for j in range(len(other[0]))] for row in result]
    return result


def plus(one, other):
    return [[x + y for x, y in zip(row, others, strict=True)] for row, others in zip(one, other, strict=True)]


def transposed(matrix):
    return [list(column) for column in zip(*matrix, strict=True)]


def scaled(matrix):
    """Rows of a map minus the identity sum to 1."""
    result = []
    for i, row in enumerate(matrix):
        rest = [value - (i == j) for j, value in enumerate(row)]
        result.append([(value / sum(rest) if sum(rest) else 0.0) + (i == j) for j, value in enumerate(rest)])
    return result


def slow_maps(mean, config, words, o):
    """R_tt, R_ti, R_it, R_ii of {layer: rows of mean attention}."""
    tt, ii = ([[float(i == j) for j in range(size)] for i in range(size)] for size in (words, o))
    ti, it = [[0.0] * o for _ in range(words)], [[0.0] * words for _ in range(o)]
    for i in range(1, config.l_layers + 1):
        tt, ti = plus(tt, product(mean[f'lang{i}'], tt)), plus(ti, product(mean[f'lang{i}'], ti))
    for i in range(1, config.r_layers + 1):
        ii, it = plus(ii, product(mean[f'rel{i}'], ii)), plus(it, product(mean[f'rel{i}'], it))
    for i in range(1, config.x_layers + 1):
        to_regions, to_words = mean[f'cross{i}.lang_to_visn'], mean[f'cross{i}.visn_to_lang']
        new_tt, new_ii = plus(tt, product(to_regions, it)), plus(ii, product(to_words, ti))
        new_ti = plus(ti, product(transposed(scaled(tt)), to_regions, scaled(ii)))
        new_it = plus(it, product(transposed(scaled(ii)), to_words, scaled(tt)))
        tt, ti, it, ii = new_tt, new_ti, new_it, new_ii
        tt, ti = plus(tt, product(mean[f'cross{i}.lang'], tt)), plus(ti, product(mean[f'cross{i}.lang'], ti))
        ii, it = plus(ii, product(mean[f'cross{i}.visn'], ii)), plus(it, product(mean[f'cross{i}.visn'], it))
    return tt, ti, it, ii


def slowly(head, batch, place, answer, images):
    """Words and regions of one example, whose (sentence, image) pairs are computed without padding; lists of numbers."""
    words = int((batch['input_ids'][place] != 0).sum())
    config, rows = head.encoder.config, range(place * images, (place + 1) * images)
    counts = [int(batch['visual_attention_mask'][row].sum()) if 'visual_attention_mask' in batch else 5 for row in rows]
    alone = {'examples': 1, 'input_ids': batch['input_ids'][place:place + 1, :words], 'features': batch['features'][list(rows)],
             'boxes': batch['boxes'][list(rows)], 'visual_attention_mask': torch.arange(5) < torch.tensor(counts)[:, None]}
    states = head.encoder(alone, record_attention=True)
    attentions = [attention.probabilities for attention in states.attentions]
    gradients = torch.autograd.grad(head.classifier(states.pooled)[0, answer], attentions, allow_unused=True)
    results = []
    for image, o in enumerate(counts):
        mean, size = {}, {'words': words, 'visual': o}
        for one, gradient in zip(states.attentions, gradients, strict=True):
            weights = one.probabilities
            row = image if len(weights) == images else 0
            both = (torch.zeros_like(weights) if gradient is None else gradient * weights)[row].tolist()
            mean[one.layer] = [[sum(max(matrix[i][j], 0.0) for matrix in both) / len(both)
                                      for j in range(size[one.keys])] for i in range(size[one.queries])]
        tt, ti, _, _ = slow_maps(mean, config, words, o)
        results.append(([value - (j == 0) for j, value in enumerate(tt[0])], ti[0]))
    return results


def test_the_four_maps_equal_slow_loops():
    """With attention so strong that every order of the rules' steps gives other numbers."""
    config, g = LxrtConfig(**{**TINY, 'x_layers': 3}), torch.Generator().manual_seed(2)
    size = {'words': 4, 'visual': 3}
    mean = {name: torch.rand(2, *(size[side] for side in sides_of(name)), generator=g) for name in attention_names(config)}
    result = relevance_maps([(Attention(name, *sides_of(name), None), weights) for name, weights in mean.items()], 2, 4, 3)
    for row in range(2):
        expected = slow_maps({name: weights[row].tolist() for name, weights in mean.items()}, config, 4, 3)
        for maps, plain in zip(result, expected, strict=True):
            np.testing.assert_allclose(maps[row], plain, rtol=1e-4)


def test_maps_of_a_joint_sequence_equal_slow_loops():
    """As of a single-stream encoder, whose words and regions attend to each other in every layer."""
    layers = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(2))
    expected = [[float(i == j) for j in range(7)] for i in range(7)]
    for layer in layers:
        expected = plus(expected, product(layer[0].tolist(), expected))
    tt, ti, it, ii = relevance_maps([(Attention('', 'all', 'all', None), layer) for layer in layers], 1, 4, 3)
    np.testing.assert_allclose(torch.cat([torch.cat([tt, ti], 2), torch.cat([it, ii], 2)], 1)[0], expected, rtol=1e-5)


@pytest.mark.parametrize('given', [False, True], ids=['best', 'given'])
@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('images', [1, 2])
def test_relevance_equals_slow_loops_of_each_example_alone(images, padded, given):
    head, batch = tiny_head(images), tiny_batch(images, padded)
    answers = torch.tensor([4, 0, 2]) if given else None
    with torch.no_grad():  # gradients are computed all the same
        result, logits = relevance(head, batch, answers), head.logits(batch)
    torch.testing.assert_close(result.logits, logits, atol=1e-5, rtol=1e-5)
    assert result.answers.tolist() == (answers if given else logits.argmax(1)).tolist()
    assert result.words.shape == (3, images, 6) and result.regions.shape == (3, images, 5)
    for place in range(3):
        for image, expected in enumerate(slowly(head, batch, place, int(result.answers[place]), images)):
            for weights, plain in zip((result.words[place, image], result.regions[place, image]), expected, strict=True):
                np.testing.assert_allclose(weights[:len(plain)], plain, rtol=1e-3, atol=1e-6 + 1e-4 * max(plain))
                assert not weights[len(plain):].any() and max(plain) > 0
    assert all(p.grad is None for p in head.parameters())


def test_relevance_of_a_model_without_layers_before_the_cross_layers():
    result = relevance(tiny_head(l_layers=0, r_layers=0), tiny_batch())
    assert torch.isfinite(result.words).all() and torch.isfinite(result.regions).all() and result.regions.any()


# ---------------------------------------------------------------------------- drawings


@pytest.fixture(scope='module')
def snapshots(made_world, tmp_path_factory):
    """The folder of a snapshot of each task, with weights that are random, but large enough for answers to differ."""
    folder = tmp_path_factory.mktemp('explain')
    for task in ('vqa', 'gqa', 'nlvr2'):
        write_random_snapshot(folder / task, task, made_world)
    return folder


@pytest.fixture
def run(made_world, snapshots, tmp_path, capsys):
    """run(*flags, task=...): `attention` in this process; returns (exit status, what it printed: .out and .err)."""
    def run_program(*flags, task='vqa', image=('COCO_train2014_000000000001',), features='train2014_obj36.tsv'):
        status = program.main(['attention', '--load', str(snapshots / task / 'BEST'), '--features',
                            str(made_world / 'mscoco_imgfeat' / features), '--question', 'What color is the star?',
                            '--names', str(made_world), '--out', str(tmp_path / 'out'), '--image', *map(str, image), *flags])
        return status, capsys.readouterr()

    return run_program


@pytest.mark.parametrize('task', ['vqa', 'gqa', 'nlvr2'])
def test_what_is_written_is_what_the_model_computes(made_world, snapshots, run, tmp_path, task):
    ids = [f'COCO_train2014_{number:012d}' for number in (2, 1)][:2 if task == 'nlvr2' else 1]
    status, printed = run(task=task, image=[made_world / f'images/train2014/{img_id}.png' for img_id in ids])
    assert status == 0, printed.err
    predictor = Predictor.from_snapshot(snapshots / task / 'BEST')
    images = sorted(readers.chosen(made_world / 'mscoco_imgfeat/train2014_obj36.tsv', ids),
                    key=lambda image: ids.index(image.img_id))
    (answer, probability), = predictor.answer([tuple(images)], 'What color is the star?')[0]
    assert printed.out.startswith(f'What color is the star? {answer} ({probability:.3f})\n')
    batch, = predictor.batches([tuple(images)], ['What color is the star?'])
    expected, numbers = relevance(predictor.head, batch), json.loads((tmp_path / 'out/attention.json').read_text())
    attentions = {attention.layer: attention.probabilities for attention in expected.attentions}
    assert numbers['answer'] == numbers['own answer'] == answer and abs(numbers['probability'] - probability) < 1e-5
    assert numbers['words'] == ['[CLS]', 'what', 'color', 'is', 'the', 'star', '?', '[SEP]']
    files = ['attention.json']
    for i, (image, values) in enumerate(zip(images, numbers['images'], strict=True)):
        np.testing.assert_allclose(values['relevance of words'], expected.words[0, i], atol=1e-5)
        np.testing.assert_allclose([one['relevance'] for one in values['regions']], expected.regions[0, i], atol=1e-5)
        np.testing.assert_allclose([one['box'] for one in values['regions']], image.boxes, atol=1e-4)
        assert list(values['attention']) == ['cross1.lang_to_visn', 'cross1.visn_to_lang']
        for name, shape in (('cross1.lang_to_visn', (2, 8, 36)), ('cross1.visn_to_lang', (2, 36, 8))):
            assert np.shape(values['attention'][name]) == shape
            np.testing.assert_allclose(values['attention'][name], attentions[name][i], atol=1e-5)
        best = values['regions'][int(expected.regions[0, i].argmax())]['name']
        share = float(expected.regions[0, i].max() / expected.regions[0].sum())  # of both pictures'
        which = f'image {i + 1}, ' if len(ids) > 1 else ''
        assert f'{which}regions: 1 {best} {share:.0%}, 2 ' in printed.out and '[CLS]' not in printed.out
        prefix = f'image{i + 1}_' if len(ids) > 1 else ''
        files += [f'{prefix}regions.png', f'{prefix}cross1.png']
        with Image.open(tmp_path / f'out/{prefix}regions.png') as picture:
            assert picture.size == (1280, 960) and picture.format == 'PNG'
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(files)
    assert printed.out.endswith(f'/out: {", ".join(files)}\n')


def test_another_answer_and_a_missing_picture(run, tmp_path):
    assert run()[0] == 0
    best = json.loads((tmp_path / 'out/attention.json').read_text())
    other = 'yes' if best['answer'] != 'yes' else 'no'
    status, printed = run('--answer', other, image=['gone/COCO_train2014_000000000001.png'])
    assert status == 0 and f'; the model answers {best["answer"]})' in printed.out
    assert 'gone/COCO_train2014_000000000001.png: no such picture; regions are drawn on a blank canvas' in printed.out
    numbers = json.loads((tmp_path / 'out/attention.json').read_text())
    assert (numbers['answer'], numbers['own answer']) == (other, best['answer'])
    assert numbers['images'][0]['relevance of words'] != best['images'][0]['relevance of words']
    assert numbers['images'][0]['attention'] == best['images'][0]['attention']


def test_what_is_not_read_of_a_question_is_told(run):
    status, printed = run('--question', 'is there ' + 16 * 'red ' + 'star ?')
    assert status == 0 and '\ntoo long, not read: star ?\n' in printed.out


def test_layers_and_heads_are_chosen(run, tmp_path):
    sizes = []
    for heads in ([], ['--heads', '2']):
        assert run('--layers', 'cross1', *heads)[0] == 0
        sizes.append(Image.open(tmp_path / 'out/cross1.png').height)
    assert sizes[1] < sizes[0]


def test_each_figure_shows_its_own_picture_heads_and_words(snapshots, made_world, run, monkeypatch):
    ids, drawn, draw_heads = ['COCO_train2014_000000000002', 'COCO_train2014_000000000001'], [], drawing.draw_heads
    monkeypatch.setattr(drawing, 'draw_heads', lambda *arguments: drawn.append(arguments) or draw_heads(*arguments))
    status, printed = run('--heads', '2', task='nlvr2', image=ids)
    assert status == 0 and len(drawn) == 2
    predictor = Predictor.from_snapshot(snapshots / 'nlvr2/BEST')
    regions = {image.img_id: image for image in readers.chosen(made_world / 'mscoco_imgfeat/train2014_obj36.tsv', ids)}
    batch, = predictor.batches([tuple(regions[img_id] for img_id in ids)], ['What color is the star?'])
    expected = relevance(predictor.head, batch)
    attentions = {attention.layer: attention.probabilities for attention in expected.attentions}
    for i, (_, words, weights, to_regions, to_words, heads, order) in enumerate(drawn):
        assert words[5] == 'star' and heads == [2]
        assert order.tolist() == expected.regions[0, i].argsort(descending=True, stable=True).tolist()
        np.testing.assert_allclose(weights, expected.words[0, i], atol=1e-5)
        np.testing.assert_allclose(to_regions, attentions['cross1.lang_to_visn'][i, 1:], atol=1e-5)
        np.testing.assert_allclose(to_words, attentions['cross1.visn_to_lang'][i, 1:], atol=1e-5)
    weights = dict(zip(words[1:-1], expected.words[0].sum(0).tolist()[1:-1], strict=True))
    best = max(weights, key=weights.get)
    assert f'\nwords:   {best} {weights[best] / sum(weights.values()):.0%}, ' in printed.out


@pytest.mark.parametrize(('flags', 'image', 'error'), [
    (['--answer', 'perhaps'], None, "--answer: expected one of the 27 answers of the model (yes, no, 0 and 24 more), found 'pe"),
    (['--layers', 'cross2'], None, "--layers: expected some of cross1, found 'cross2'"),
    (['--heads', '1,3'], None, "--heads: expected some of 1,2, found '3'"),
    ([], ['nowhere'], 'expected regions of 1 images, found none of nowhere; correct the ids'),
    ([], ['COCO_train2014_000000000001'] * 2, 'answers about 1 picture at a time, found 2'),
    (['--question', ' '], None, '--question: expected words, found none'),
    (['--load', 'none'], None, 'none.pth: no such file'),
    (['--names', 'none'], None, 'none/objects_vocab.txt: no such file; expected text with one name per line'),
    (['--features', 'none.tsv'], None, 'none.tsv'),
])
def test_faults_are_named_and_nothing_is_written(run, tmp_path, flags, image, error):
    status, printed = run(*flags, **({'image': image} if image else {}))
    assert status == 1 and printed.err.startswith('show.bash: error: ') and error in printed.err
    assert not (tmp_path / 'out').exists()


def test_photographs_that_do_not_fit_are_named(run, tmp_path):
    photo = tmp_path / 'COCO_train2014_000000000001.png'
    Image.new('RGB', (300, 50)).save(photo)
    status, printed = run(image=[photo])
    assert status == 1 and 'expected a photograph of 160 x 120 pixels or of that shape, found 300 x 50' in printed.err
    photo.write_bytes(photo.read_bytes()[:60])
    status, printed = run(image=[photo])
    assert status == 1 and f'{photo}: expected a whole picture, found one that cannot be read to its end' in printed.err


def test_regions_are_brighter_and_their_lines_denser_the_more_relevant_they_are(made_world):
    image = next(readers.images(made_world / 'mscoco_imgfeat/train2014_obj36.tsv'))
    image.boxes[:3] = [[10, 10, 50, 50], [60, 10, 100, 50], [110, 10, 150, 50]]
    weights = np.zeros(36)
    weights[:3] = 1, 0.5, 0.25
    photo = Image.new('RGB', (320, 240), 'white')
    for picture in (drawing.draw_relevance(image, weights, {}), drawing.draw_relevance(image, weights, {}, photo)):
        inside = [picture.getpixel((x * 8, 30 * 8))[0] for x in (30, 80, 130)]
        edges = [picture.getpixel((x * 8, 30 * 8)) for x in (10, 60, 110)]
        assert inside == [255, round(255 * 0.7 - 0.5), round(255 * 0.55 - 0.5)]
        assert picture.getpixel((400, 800)) == (102, 102, 102)
        distance = [np.abs(np.subtract(edge, drawing.RELEVANT)).sum() for edge in edges]
        assert distance[0] == 0 and distance[0] < distance[1] < distance[2]
    labelled = drawing.draw_relevance(image, weights, {0: '1 red star 57%'}, photo)
    assert labelled != picture
    drawing.draw_relevance(image, np.zeros(36), {})  # nothing is relevant


def test_of_two_pictures_the_one_that_counts_less_is_darker(made_world):
    images = list(itertools.islice(readers.images(made_world / 'mscoco_imgfeat/train2014_obj36.tsv'), 2))
    weights = np.zeros((2, 36))
    weights[0, 5], weights[1, 7] = 6, 2
    explanation = RegionExplanation('', '', 1.0, '', [], np.ones((2, 0)), None, list(weights), [])
    (texts, first), (others, second) = explanation.draw(
        images, [Image.new('RGB', (320, 240), 'white')] * 2, ClassNames())
    assert next(iter(texts)) == 5 and texts[5].startswith('1 ') and texts[5].endswith(' 75%')
    assert next(iter(others)) == 7 and others[7].endswith(' 25%')
    centres = [np.asarray(picture)[8 * int(y1 + y2) // 2 + 2, 8 * int(x1 + x2) // 2 + 2] for picture, (x1, y1, x2, y2) in
             ((first, images[0].boxes[5]), (second, images[1].boxes[7]))]
    np.testing.assert_allclose(centres, [[255] * 3, [round(255 * (0.4 + 0.6 / 3))] * 3], atol=1)


@pytest.mark.parametrize(('heads', 'words', 'regions'), [(1, 3, 1), (4, 20, 36), (12, 20, 36), (3, 4, 100)])
def test_no_text_of_a_figure_is_cut_off_and_dollars_are_no_formula(heads, words, regions):
    rng = np.random.default_rng(0)
    tokens = ['[CLS]', *['$x_', 'ordinary'] * 10][:words - 1] + ['[SEP]']
    to_regions, to_words = rng.random((heads, words, regions)), rng.random((heads, regions, words))
    figure = drawing.draw_heads('cross1 of "Is it $5 or $6, or more?" yes', tokens, rng.random(words), to_regions, to_words,
                             list(range(1, heads + 1)), rng.permutation(regions))
    figure.draw_without_rendering()
    _, _, width, height = figure.bbox.extents
    texts = [text for text in figure.findobj(lambda one: hasattr(one, 'get_text')) if text.get_visible() and text.get_text()]
    assert len(texts) > heads * 2 + words
    boxes = [(text.get_text(), *text.get_window_extent().extents) for text in texts]
    assert not [text for text, x0, y0, x1, y1 in boxes if min(x0, y0) < -0.5 or x1 > width + 0.5 or y1 > height + 0.5]
    assert figure.get_axes()[1].get_images()[0].get_array().shape == (words, regions)


def test_strips_show_words_by_regions_in_the_order_given():
    to_regions, to_words = np.arange(6.0).reshape(1, 2, 3), 10 + np.arange(6.0).reshape(1, 3, 2)
    figure = drawing.draw_heads('', ['a', 'b'], np.ones(2), to_regions, to_words, [1], np.array([2, 0, 1]))
    first, second = (axes.get_images()[0].get_array().tolist() for axes in figure.get_axes()[1:3])
    assert first == [[2, 0, 1], [5, 3, 4]] and second == [[14, 10, 12], [15, 11, 13]]


# ---- scripts that the default font does not have

def write_font(path, text):
    """A font named Tiny whose characters are those of text, each a square."""
    builder = FontBuilder(1000, isTTF=True)
    glyphs = {f'c{ord(char)}': char for char in text}
    builder.setupGlyphOrder(['.notdef', *glyphs])
    builder.setupCharacterMap({ord(char): name for name, char in glyphs.items()})
    pen = TTGlyphPen(None)
    for i, point in enumerate([(100, 0), (100, 700), (800, 700), (800, 0)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    builder.setupGlyf(dict.fromkeys(['.notdef', *glyphs], pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(['.notdef', *glyphs], (900, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({'familyName': 'Tiny', 'styleName': 'Regular', 'uniqueFontIdentifier': 'Tiny', 'fullName': 'Tiny',
                            'psName': 'Tiny', 'version': '1'})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return str(path)


@pytest.fixture
def no_fonts(monkeypatch):
    """No fonts but matplotlib's, and nothing said about characters yet."""
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, 'ttflist', [font for font in manager.ttflist if font.name.startswith(('DejaVu Sans', 'Last'))])
    monkeypatch.setattr(font_manager, 'findSystemFonts', lambda: [])
    monkeypatch.setattr(drawing, '_without_font', set())
    return monkeypatch


def heads_of(*words):
    figure = drawing.draw_heads(f'about {" ".join(words)}', words, np.ones(len(words)), np.ones((1, len(words), 3)),
                                np.ones((1, 3, len(words))), [1], np.arange(3))
    return figure


def test_a_script_without_font_is_one_message(no_fonts, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name in ('one.png', 'two.png'):
            drawing.save(heads_of('图', '片', 'न', 'кот', 'é', 'e\u200d\ufe0f'), tmp_path / name)
        drawing.draw_labels(ImageDraw.Draw(Image.new('RGB', (200, 200))), [[10, 10, 90, 90]], ['红 1'], [(255, 0, 0)])
    error = capsys.readouterr().err
    assert error.count('\n') == 2 and error.count('Install a font') == 2
    assert 'no installed font has 3 of the characters (न 图 片)' in error and '1 of the characters (红)' in error


def test_a_font_installed_since_is_used(no_fonts, tmp_path, capsys):
    font = write_font(tmp_path / 'tiny.ttf', '图红')
    (tmp_path / 'broken.ttf').write_bytes(b'no font')
    no_fonts.setattr(font_manager, 'findSystemFonts', lambda: [str(tmp_path / 'broken.ttf'), font])
    assert [one.name for one in drawing.fonts_for(['a图'])] == ['DejaVu Sans', 'Tiny']
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        figure = heads_of('图', 'a')
        drawing.save(figure, tmp_path / 'heads.png')
        label = Image.new('RGB', (200, 200), 'white')
        drawing.draw_labels(ImageDraw.Draw(label), [[10, 100, 90, 190]], ['红'], [(255, 0, 0)])
    assert capsys.readouterr().err == ''
    for text in (figure._suptitle, figure.axes[0].texts[0], figure.axes[1].get_yticklabels()[0]):
        assert '图' in text.get_text() and text.get_fontfamily() == ['DejaVu Sans', 'Tiny']
    assert drawing._pil_font(['红']).getname()[0] == 'Tiny' and drawing._pil_font(['red é']).getname()[0] != 'Tiny'
    assert [one.name for one in drawing.fonts_for(['plain'])] == ['DejaVu Sans']  # no other is looked for


def test_figures_in_latin_letters_do_not_change(no_fonts, tmp_path):
    no_fonts.setattr(drawing, 'fonts_for', None)
    figure, again = heads_of('a', '$5'), heads_of('a', '$5')
    drawing.save(figure, tmp_path / 'a.png')
    again.savefig(tmp_path / 'b.png')
    assert np.array_equal(Image.open(tmp_path / 'a.png'), Image.open(tmp_path / 'b.png'))
