"""Programs that read a snapshot of VQA, with every model: docs/tools.md says what works, and each of its cells is tried here."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_albef_explain import folder as albef_and_pixels  # noqa: F401, a fixture
from test_vlbert_tools import randomised

import models
from bert.tokenization import BertTokenizer
from explain import drawing
from predict import ask
from shapes import show
from tasks.checkpoints import sidecar_files
from tools import convert, encode

QUESTION, ID = 'What color is the star?', 'COCO_train2014_000000000001'
YES, NO_CLASS = 'yes', 'no class in transformers'
CELLS = {  # program -> of each of models.MODELS
    'ask': [YES] * 4,
    'show attention': [YES] * 4,
    'show pointing': [YES, YES, 'maps over patches, no regions', YES],
    'show errors': [YES] * 4,
    'encode': [YES] * 4,
    'convert to-hf': [YES, NO_CLASS, NO_CLASS, YES],
    'convert card': [YES] * 4,
}
REFUSALS = {'maps over patches, no regions': 'draw its maps with run/show.bash attention',
            NO_CLASS: 'for which there are no folders for transformers'}


@pytest.fixture(scope='module')
def snapshots(made_world, albef_and_pixels, tmp_path_factory):  # noqa: F811
    """{model: file of a snapshot of VQA with random weights}."""
    parent, bert = tmp_path_factory.mktemp('models'), json.loads((made_world / 'bert/config.json').read_text())
    common = {'hidden_size': 12, 'num_attention_heads': 2, 'intermediate_size': 20} | {
        key: bert[key] for key in ('vocab_size', 'max_position_embeddings', 'visual_feat_dim')}
    layers = {'lxmert': {'l_layers': 1, 'x_layers': 2, 'r_layers': 1}}
    classes = {'lxmert': 'LxrtConfig', 'vlbert': 'VLBertConfig', 'visualbert': 'VisualBertConfig'}
    answers, paths = json.loads((made_world / 'vqa/trainval_label2ans.json').read_text()), {}
    for model, name in classes.items():
        config = getattr(models.package(model, 'config'), name)(**common, **layers.get(model, {'num_hidden_layers': 2}))
        head, place = randomised(models.build(model, 'vqa', config, answers)), parent / model
        place.mkdir()
        for file, text in sidecar_files(model, config, BertTokenizer(made_world / 'bert/vocab.txt'), answers).items():
            (place / file).write_text(text)
        (place / 'options.json').write_text(json.dumps({'task': 'vqa', 'options': {'dataRoot': str(made_world)}}))
        torch.save(head.original_state(), place / 'BEST.pth')
        paths[model] = place / 'BEST.pth'
    return paths | {'albef': albef_and_pixels / 'albef_vqa/BEST.pth'}


def start(program, model, path, world, folder):
    """(exit status of the program with a snapshot, the file that it should write)."""
    picture, features = world / f'images/train2014/{ID}.png', world / 'mscoco_imgfeat/train2014_obj36.tsv'
    reads_pictures = model == 'albef'
    with_features = [] if reads_pictures else ['--features', features]
    image, load = (picture if reads_pictures else ID), ['--load', path]
    match program:
        case 'ask':
            command, out = [picture, QUESTION, *load, '--out', folder, '--device', 'cpu'], None
            main = ask.main
        case 'show attention':
            command, out = ['attention', *load, *with_features, '--question', QUESTION, '--names', world, '--image', image,
                            '--out', folder], folder / 'attention.json'
            main = show.main
        case 'show pointing':
            command, out, main = ['pointing', *load, '--world', world, '--questions', '2'], None, show.main
        case 'show errors':
            out = folder / 'page.html'
            command, main = ['errors', *load, '--test', 'minival', '--dataRoot', world, '--bert', world / 'bert', '--images',
                             world / 'images/val2014', '--storeRoot', folder, '--out', out], show.main
        case 'encode':
            out = folder / 'x.npz'
            (folder / 'pairs.tsv').write_text(f'{ID}\t{QUESTION}\n')
            source = ['--images', world / 'images/train2014'] if reads_pictures else with_features
            command, main = [folder / 'pairs.tsv', *source, *load, '--out', out, '--device', 'cpu'], encode.main
        case 'convert to-hf':
            command, out, main = ['to-hf', path, folder / 'hf'], folder / 'hf/model.safetensors', convert.main
        case 'convert card':
            command, out, main = ['card', path], path.with_name('README.md'), convert.main
    return main([*map(str, command)]), out


@pytest.mark.parametrize('model', models.MODELS)
@pytest.mark.parametrize('program', CELLS)
def test_a_program_works_with_a_model_or_says_why_not(made_world, snapshots, tmp_path, capsys, monkeypatch, program, model):
    for figure in ('draw_panels', 'draw_heads'):  # slow, and the same for all models
        monkeypatch.setattr(drawing, figure, lambda *_: Image.new('RGB', (1, 1)))
    cell = CELLS[program][list(models.MODELS).index(model)]
    status, out = start(program, model, snapshots[model], made_world, tmp_path)
    printed = capsys.readouterr()
    if cell != YES:
        assert status == 1 and REFUSALS[cell] in printed.err and printed.err.count('\n') == 1
        return
    assert status == 0, printed.err
    assert out is None or out.stat().st_size
    if program == 'ask':
        assert QUESTION in printed.out and '  words: ' in printed.out and len(list(tmp_path.glob('*.png'))) == 1
    elif program == 'show pointing':
        assert '2 questions that name one object' in printed.out
    elif program == 'show errors':
        assert 'Score on minival: ' in printed.out
    elif program == 'encode':
        arrays = np.load(out)
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files if arrays[name].dtype.kind == 'f')


def test_the_table_is_that_of_the_documentation():
    lines = (ROOT / 'docs/tools.md').read_text().splitlines()
    rows = [[cell.strip(' `') for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    assert rows[0][1:] == list(models.MODELS) and {row[0]: row[1:] for row in rows[2:]} == CELLS
