"""Maps of models that read pictures by patches, and regions of those that read boxes and pixels, in the programs that explain."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_albef_world import SIZES
from test_cnn import RESNET
from test_vlbert_tools import SIZES as VLBERT_SIZES
from test_vlbert_tools import randomised

import models
from albef.config import AlbefConfig
from bert.tokenization import BertTokenizer
from explain import drawing
from explain.explanation import MapExplanation
from explain.relevance import relevance
from images.pictures import open_picture
from predict import ask
from regions.class_names import ClassNames
from regions.image_regions import ImageRegions
from shapes import show
from tasks import snapshots
from tasks.checkpoints import sidecar_files
from tools import encode
from vlbert.config import VLBertConfig

IDS = 'COCO_train2014_000000000001', 'COCO_train2014_000000000002'
TASKS = {'vqa': ' ', 'nlvr2': ' ', 'refcoco': ' -> ', 'retrieval': ' -> match '}  # what follows the text
QUESTION = 'What color is the star?'


def small_albef(world):
    """The config of a very small ALBEF with the vocabulary of a world."""
    sizes = {'num_hidden_layers': 3, 'fusion_layer': 1, 'encoder_width': SIZES['vision_width']}
    return AlbefConfig(image_res=48, patch_size=16, **{key: SIZES[key] for key in (
        'vision_width', 'vision_depth', 'vision_heads', 'embed_dim', 'queue_size')}, k_test=3,
        bert=json.loads((world / 'bert/config.json').read_text()) | sizes)


@pytest.fixture(scope='module')
def folder(made_world, tmp_path_factory):
    """Holds FOLDER/MODEL_TASK/BEST with random weights; VL-BERT reads pixels."""
    parent = tmp_path_factory.mktemp('patches')
    bert, albef = json.loads((made_world / 'bert/config.json').read_text()), small_albef(made_world)
    vlbert = VLBertConfig(**{key: bert[key] for key in ('vocab_size', 'max_position_embeddings')}, **VLBERT_SIZES, **RESNET)
    answers = {'vqa': json.loads((made_world / 'vqa/trainval_label2ans.json').read_text()), 'nlvr2': ['False', 'True']}
    for model, config, task in [('albef', albef, task) for task in TASKS] + [('vlbert', vlbert, 'vqa')]:
        head, place = randomised(models.build(model, task, config, answers.get(task))), parent / f'{model}_{task}'
        place.mkdir()
        tokenizer = BertTokenizer(made_world / 'bert/vocab.txt')
        for name, text in sidecar_files(model, config, tokenizer, answers.get(task, [])).items():
            (place / name).write_text(text)
        (place / 'options.json').write_text(json.dumps({'task': task, 'options': {'dataRoot': str(made_world)}}))
        torch.save(head.original_state(), place / 'BEST.pth')
    return parent


@pytest.fixture
def run(made_world, folder, tmp_path, capsys, monkeypatch):
    """run(MODEL_TASK, images, *flags): `attention` in this process, without its slow figures; (exit status, what it printed, its
    json)."""
    monkeypatch.setattr(drawing, 'SIDE', 160)
    for figure in ('draw_panels', 'draw_heads'):
        monkeypatch.setattr(drawing, figure, lambda *_: Image.new('RGB', (1, 1)))

    def attention(snapshot, images, *flags):
        status = show.main(['attention', '--load', str(folder / snapshot / 'BEST'), '--question', QUESTION, '--names',
                            str(made_world), '--out', str(tmp_path / 'out'), '--image', *map(str, images), *map(str, flags)])
        path = tmp_path / 'out/attention.json'
        return status, capsys.readouterr(), json.loads(path.read_text()) if path.exists() else None

    return attention


def files_of(world, count=1):
    return [world / f'images/train2014/{img_id}.png' for img_id in IDS[:count]]


def features(world):
    return '--features', world / 'mscoco_imgfeat/train2014_obj36.tsv'


@pytest.mark.parametrize('task', TASKS)
def test_maps_of_words_are_written_and_drawn(made_world, folder, run, tmp_path, task):
    files = files_of(made_world, 2 if task == 'nlvr2' else 1)
    layer = 'text1' if task == 'nlvr2' else 'text2'
    status, printed, values = run(f'albef_{task}', files, '--layers', layer, *(features(made_world) if task == 'refcoco' else ()))
    assert status == 0, printed.err
    assert printed.out.startswith(f'{QUESTION}{TASKS[task]}') and '\nwords:   ' in printed.out and 'regions:' not in printed.out
    predictor = snapshots.load(folder / f'albef_{task}/BEST')
    pipeline = ask.Pipeline.load(folder / f'albef_{task}/BEST')
    batch, = predictor.batches([tuple(pipeline.detect(map(open_picture, files), IDS[:len(files)]))], [QUESTION])
    logits, _, maps = predictor.head.word_maps(batch)
    assert values['words'] == ['[CLS]', 'what', 'color', 'is', 'the', 'star']
    assert values['probability'] == pytest.approx(float(predictor.head.probabilities(logits).max()), abs=1e-4)
    assert ('chosen region' in values) == (task == 'refcoco') and len(values['images']) == len(files)
    assert maps[layer].shape == (1, len(files), 6, 3, 3) and maps[layer].any()
    for i, of_image in enumerate(values['images']):
        np.testing.assert_allclose(of_image['maps of words'][layer], maps[layer][0, i], atol=1e-5)
        np.testing.assert_allclose(of_image['relevance of words'], maps['text1'][0, i].sum((1, 2)), atol=1e-5)
    prefixes = ['image1_', 'image2_'] if len(files) > 1 else ['']
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(
        ['attention.json', *(f'{prefix}{name}.png' for prefix in prefixes for name in ('patches', layer))])


def test_the_picture_is_coloured_where_its_map_is_high():
    image = ImageRegions.without_regions('it', 30, 40)
    photo = Image.new('RGB', (40, 30), (0, 255, 0))
    maps = np.zeros((2, 2, 3, 4))  # of two images and two words
    maps[0, 0, 0, 3], maps[0, 1, 0, 3], maps[1, 1, 2, 0] = 3, 1, 2
    explanation = MapExplanation('', '', 1.0, '', ['a', 'b'], maps.sum((2, 3)), None, {'text1': maps}, 'text1')
    (texts, first), (_, second) = explanation.draw([image] * 2, [photo] * 2, ClassNames())
    assert texts == {} and first.size == second.size == (1280, 960)
    corner = first.getpixel((1270, 10))  # the end of jet, dark red, hides the picture
    assert corner[0] > 120 and max(corner[1:]) < 10
    assert first.getpixel((10, 10)) == first.getpixel((1270, 950)) == second.getpixel((1270, 10)) == (0, 255, 0)
    half = second.getpixel((10, 950))  # half as relevant as the other image's patch: the middle of jet, over the picture
    assert half != (0, 255, 0) and half[1] > 240
    (opacity, _), = explanation.areas(0, image, ClassNames(), (40, 30))
    assert opacity.shape == (30, 40) and opacity.max() == opacity[0, 39] == 1 and opacity[29, 0] == 0
    (_, figure), = explanation.figures(0, photo, ['text1'], [], '"a b" yes')
    assert [axes.get_title() for axes in figure.axes] == ['', 'all words', 'a 50%', 'b 17%']


def test_a_map_without_differences_colours_nothing():
    photo = Image.new('RGB', (40, 30), (9, 8, 7))
    assert drawing.draw_heat(photo, drawing.scaled(np.full((3, 4), 0.2))).getcolors() == [(1200, (9, 8, 7))]


@pytest.mark.parametrize(('snapshot', 'flags', 'error'), [
    ('albef_vqa', ['--heads', '1'], '--heads: expected none with this model, whose maps are means over heads, found 1'),
    ('albef_vqa', ['--layers', 'text0'], "--layers: expected some of text1,text2, found 'text0'"),
    ('albef_vqa', 'features', '--features: expected none, since the model reads whole pictures'),
    ('albef_refcoco', [], '--features: expected the file of the regions of the pictures, found none; add it'),
    ('vlbert_vqa', [], '--features: expected the file of the regions of the pictures, found none; add it')])
def test_what_a_model_does_not_take_is_one_line(made_world, run, snapshot, flags, error):
    flags = features(made_world) if flags == 'features' else flags
    status, printed, values = run(snapshot, files_of(made_world), *flags)
    assert status == 1 and values is None and error in printed.err and printed.err.count('\n') == 1


def test_two_pictures_that_are_read_together_are_not_encoded(made_world, folder, tmp_path, capsys):
    (tmp_path / 'pairs.tsv').write_text(f'{IDS[0]}\t{QUESTION}\n')
    flags = '--images', made_world / 'images/train2014', '--load', folder / 'albef_nlvr2/BEST', '--out', tmp_path / 'x.npz'
    assert encode.main([str(tmp_path / 'pairs.tsv'), *map(str, flags), '--device', 'cpu']) == 1
    assert 'expected a model that reads an image at a time, found one that reads 2 together' in capsys.readouterr().err


@pytest.mark.parametrize('snapshot', ['albef_vqa', 'vlbert_vqa'])
def test_models_that_read_pictures_need_them(made_world, run, snapshot):
    status, printed, _ = run(snapshot, IDS[:1], *(features(made_world) if snapshot == 'vlbert_vqa' else ()))
    assert status == 1 and f'--image {IDS[0]}: expected a file of the picture, which this model reads' in printed.err


def test_an_answer_that_is_not_scored_is_named(made_world, folder, run):
    predictor = snapshots.load(folder / 'albef_vqa/BEST')
    image = ImageRegions.without_regions('it', 120, 160, open_picture(files_of(made_world)[0]))
    scored = [answer for answer, probability in predictor.answer(image, QUESTION, best=27)[0] if probability]
    other = next(answer for answer in predictor.answers if answer not in scored)
    assert len(scored) == predictor.head.config.k_test == 3
    for answer, expected in ((scored[-1], 0), (other, 1)):
        status, printed, _ = run('albef_vqa', files_of(made_world), '--answer', answer, '--layers', 'text1')
        assert status == expected
    assert f'--answer: expected one of the likeliest answers, which alone the model scores, found {other!r}' in printed.err


def test_relevance_and_the_pointing_game_are_of_models_that_read_regions(made_world, folder, capsys):
    predictor = snapshots.load(folder / 'albef_vqa/BEST')
    with pytest.raises(ValueError, match='use its word_maps'):
        relevance(predictor.head, {})
    flags = ['--load', str(folder / 'vlbert_vqa/BEST'), '--world', str(made_world), '--questions', '2']
    assert show.main(['pointing', *flags]) == 0
    assert '2 questions that name one object' in capsys.readouterr().out


def test_a_picture_is_asked_and_drawn(made_world, folder, tmp_path, capsys):
    path, = files_of(made_world)
    flags = '--load', folder / 'vlbert_vqa/BEST', '--out', tmp_path, '--device', 'cpu'
    assert ask.main([str(path), QUESTION, *map(str, flags)]) == 0
    printed = capsys.readouterr().out
    drawn, = tmp_path.glob('*.png')
    assert '  regions: 1 ' in printed and str(drawn) in printed and Image.open(drawn).size == (1280, 960)


def test_pixels_of_regions_are_explained(made_world, folder, run):
    """VL-BERT with pixels: boxes of the file of regions, features from the picture."""
    status, printed, values = run('vlbert_vqa', files_of(made_world), *features(made_world), '--layers', 'layer1', '--heads', '1')
    assert status == 0, printed.err
    pipeline = ask.Pipeline.load(folder / 'vlbert_vqa/BEST')
    image, = pipeline.detect([open_picture(files_of(made_world)[0])], IDS[:1])
    batch, = pipeline.predictor.batches([image], [QUESTION])
    expected, (of_image,) = relevance(pipeline.predictor.head, batch), values['images']
    assert len(of_image['regions']) == 1 + len(image.boxes) and of_image['regions'][0]['name'] == 'whole image'
    assert expected.regions.any() and sum(one['relevance'] for one in of_image['regions']) > 0
