"""Programs that read a snapshot, with every model: docs/tools.md says what works, and each of its cells is tried here."""

import json
import re
import shutil
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_albef_explain import small_albef
from test_vlbert_tools import randomised

import models
from bert.tokenization import BertTokenizer
from explain import drawing
from param import Options
from predict import ask, demo, match
from shapes import show
from tasks import program as tasks_program
from tasks.checkpoints import sidecar_files
from tasks.registry import TASKS, task_class
from tasks.vqa import VQA
from tools import convert, encode, ensemble

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning:gradio')
QUESTION, ID, OTHER = 'What color is the star?', 'COCO_train2014_000000000001', 'COCO_train2014_000000000002'
YES, NO_CLASS, CHOICES = 'yes', 'no class in transformers', 'choices are no answers'
NO_TASK, NO_PAIRS = 'no such task', 'only with a head of pairs'
CELLS = {  # (program, the task of the snapshot) -> of each of models.MODELS
    ('ask', 'vqa'): [YES] * 4,
    ('ask', 'nlvr2'): [YES] * 4,
    ('ask', 'entailment'): [YES] * 4,
    ('ask', 'refcoco'): [YES] * 4,
    ('ask', 'retrieval'): [YES] * 4,
    ('ask', 'vcr'): [CHOICES, CHOICES, NO_TASK, CHOICES],
    ('demo', 'vqa'): [YES] * 4,
    ('match of pairs', 'retrieval'): [YES] * 4,
    ('match of pairs', 'pretrain'): [YES, NO_PAIRS, YES, YES],
    ('match of [MASK]', 'pretrain'): [YES] * 4,
    ('show attention', 'vqa'): [YES] * 4,
    ('show pointing', 'vqa'): [YES, YES, 'maps over patches, no regions', YES],
    ('show errors', 'vqa'): [YES] * 4,
    ('encode', 'vqa'): [YES] * 4,
    ('ensemble', 'vqa'): [YES] * 4,
    ('convert to-hf', 'vqa'): [YES, NO_CLASS, NO_CLASS, YES],
    ('convert from-hf', 'vqa'): [YES, NO_CLASS, NO_CLASS, YES],
    ('convert file', 'vqa'): [YES] * 4,
    ('convert card', 'vqa'): [YES] * 4,
    ('convert card', 'pretrain'): [YES] * 4,
}
REFUSALS = {'maps over patches, no regions': 'draw its maps with run/show.bash attention',
            NO_CLASS: 'for which there are no folders for transformers', CHOICES: 'which does not answer questions',
            NO_PAIRS: 'has no head that tells whether an image and a sentence belong together'}


@pytest.fixture(scope='module')
def snapshot(made_world, tmp_path_factory):
    """snapshot(model, task): the file of a snapshot with random weights, made when it is first asked for."""
    parent, bert = tmp_path_factory.mktemp('models'), json.loads((made_world / 'bert/config.json').read_text())
    common = {'hidden_size': 12, 'num_attention_heads': 2, 'intermediate_size': 20} | {
        key: bert[key] for key in ('vocab_size', 'max_position_embeddings', 'visual_feat_dim')}
    layers = {'lxmert': {'l_layers': 1, 'x_layers': 2, 'r_layers': 1}}
    classes = {'lxmert': 'LxrtConfig', 'vlbert': 'VLBertConfig', 'visualbert': 'VisualBertConfig'}
    answers = {'vqa': json.loads((made_world / 'vqa/trainval_label2ans.json').read_text())}

    def write(model, task):
        path = parent / f'{model}_{task}/BEST.pth'
        if not path.is_file():
            config = small_albef(made_world) if model == 'albef' else getattr(models.package(model, 'config'), classes[model])(
                **common, **layers.get(model, {'num_hidden_layers': 2}))
            known = answers.get(task) or (list(task_class(task).schema.answers or ()) if task in TASKS else [])
            options = Options(taskMaskLM=True, taskMatched=True) if task == 'pretrain' else None
            head = randomised(models.build(model, task, config, known or None, options))
            path.parent.mkdir()
            for file, text in sidecar_files(model, config, BertTokenizer(made_world / 'bert/vocab.txt'), known).items():
                path.with_name(file).write_text(text)
            path.with_name('options.json').write_text(json.dumps({'task': task, 'options': {'dataRoot': str(made_world)}}))
            torch.save(head.original_state(), path)
        return path

    return write


@pytest.fixture
def run(capsys, monkeypatch):
    """run(main, *flags): what a program prints. Raises ValueError with its one line where it ends with status 1."""
    for figure in ('draw_panels', 'draw_heads'):  # slow, and the same for all models
        monkeypatch.setattr(drawing, figure, lambda *_: Image.new('RGB', (1, 1)))
    monkeypatch.setattr(drawing, 'SIDE', 160)

    def in_this_process(main, *flags):
        status, printed = main([*map(str, flags)]), capsys.readouterr()
        if status == 1 and printed.err.count('\n') == 1:
            raise ValueError(printed.err)
        assert status == 0, printed.err
        return printed.out

    return in_this_process


def try_ask(run, cell):
    pictures = [cell.picture, cell.other][:2 if cell.task == 'nlvr2' else 1]
    printed = run(ask.main, *pictures, QUESTION, *cell.load, '--out', cell.folder, '--device', 'cpu')
    assert QUESTION in printed and '  words: ' in printed and len([*cell.folder.glob('*.png')]) == len(pictures)


def try_demo(run, cell):
    """The page of two models, which both answer, the second next to the first."""
    from predict import demo_page  # takes seconds to import

    cell.monkeypatch.setenv('GRADIO_TEMP_DIR', str(cell.folder))  # from where the page reads pictures
    shutil.copy(cell.picture, cell.folder)
    names = [str(cell.path), str(cell.snapshot('visualbert' if cell.model == 'lxmert' else 'lxmert', 'vqa'))]
    pipelines, examples = demo.load(demo.build_parser().parse_args(['--load', *names, '--device', 'cpu']))
    assert [*pipelines] == names and len(examples) == demo.EXAMPLES
    page = demo_page.build({name: demo_page.Demo(pipeline) for name, pipeline in pipelines.items()}, [])
    answer, = (function.fn for function in page.fns.values() if function.api_name == 'ask')
    shown = answer(QUESTION, {'path': str(cell.folder / cell.picture.name)}, *names)
    answers = [[*pipeline.predictor.answers] for pipeline in pipelines.values()]
    assert len(shown) == 6 and all({*shown[3 * i]} <= {*known} and shown[3 * i + 1] for i, known in enumerate(answers))


def try_match(run, cell):
    text = 'a [MASK] star' if cell.program.endswith('[MASK]') else 'the red star'
    printed = run(match.main, cell.picture, text, *cell.load, '--best', 2, '--device', 'cpu')
    assert re.search(r'  a \[MASK\] star\n    \S+ \d+\.\d%, ' if 'MASK' in text else r'  \d+\.\d%  the red star', printed)


def try_attention(run, cell):
    run(show.main, 'attention', *cell.load, *cell.features, '--question', QUESTION, '--names', cell.world, '--image',
        cell.picture if cell.model == 'albef' else ID, '--out', cell.folder)
    assert json.loads((cell.folder / 'attention.json').read_text())['images']


def try_pointing(run, cell):
    assert '2 questions that name one object' in run(show.main, 'pointing', *cell.load, '--world', cell.world, '--questions', 2)


def try_errors(run, cell):
    page = cell.folder / 'page.html'
    printed = run(show.main, 'errors', *cell.load, '--test', 'minival', '--dataRoot', cell.world, '--bert', cell.world / 'bert',
                  '--images', cell.world / 'images/val2014', '--storeRoot', cell.folder, '--out', page)
    assert 'Score on minival: ' in printed and ('"boxes":[]' in page.read_text()) == (cell.model == 'albef')


def try_encode(run, cell):
    pairs, out = cell.folder / 'pairs.tsv', cell.folder / 'x.npz'
    pairs.write_text(f'{ID}\t{QUESTION}\n')
    images = ['--images', cell.picture.parent] if cell.model == 'albef' else cell.features
    run(encode.main, pairs, *images, *cell.load, '--out', out, '--device', 'cpu')
    assert np.isfinite(np.load(out)['pooled']).all()


def try_ensemble(run, cell):
    """As run/ensemble.bash: the mean of two models."""
    def probabilities(path):
        out = path.with_name('test')
        if not out.is_dir():
            run(partial(tasks_program.main, VQA), '--test', 'minival', '--load', path, '--dumpProbs', 10, '--device', 'cpu',
                '--dataRoot', cell.world, '--bert', cell.world / 'bert', '--output', out)
        return out / 'minival_probs.json'

    files = [probabilities(path) for path in (cell.path, cell.snapshot('lxmert', 'vqa'))]
    out = cell.folder / 'minival_predict.json'
    assert 'predictions of 2 models' in run(ensemble.main, 'vqa', *files, '--out', out)
    assert len(json.loads(out.read_text())) == len(json.loads((cell.world / 'vqa/minival.json').read_text()))


def try_to_hf(run, cell):
    run(convert.main, 'to-hf', cell.path, cell.folder / 'hf')
    assert (cell.folder / 'hf/model.safetensors').is_file()


def try_from_hf(run, cell):
    has_class = CELLS[cell.program, cell.task][list(models.MODELS).index(cell.model)] == YES
    if has_class:
        try_to_hf(run, cell)
    run(convert.main, 'from-hf', cell.folder / 'hf' if has_class else cell.path, cell.folder / 'back/BEST')
    state, again = torch.load(cell.path), torch.load(cell.folder / 'back/BEST.pth')
    assert state.keys() == again.keys() and all(torch.equal(state[name], again[name]) for name in state)


def try_file(run, cell):
    assert f'of the model {cell.model}' in run(convert.main, 'file', cell.path, cell.folder / 'BEST.safetensors')


def try_card(run, cell):
    """The card loads the snapshot."""
    run(convert.main, 'card', cell.path)
    config = models.package(cell.model).config_from_json(cell.path.with_name('config.json'))
    text = (card := cell.path.with_name('README.md')).read_text()
    assert f'{config.MODEL} ({config.PAPER})' in text and (f'\nlicense: {config.LICENSE}\n' in text) == bool(config.LICENSE)
    cell.monkeypatch.chdir(cell.path.parent)
    exec(re.search(r'```python\n(.*?)```', text, re.S)[1], names := {})
    loaded = names['matcher' if cell.task == 'pretrain' else 'predictor']
    assert type(loaded.head.encoder).__module__.startswith(models.MODELS[cell.model])
    card.write_text('mine')
    with pytest.raises(ValueError, match=r'README\.md: exists with other contents; move it away'):
        run(convert.main, 'card', cell.path)


TRIES = {'ask': try_ask, 'demo': try_demo, 'match of pairs': try_match, 'match of [MASK]': try_match,
         'show attention': try_attention, 'show pointing': try_pointing, 'show errors': try_errors, 'encode': try_encode,
         'ensemble': try_ensemble, 'convert to-hf': try_to_hf, 'convert from-hf': try_from_hf, 'convert file': try_file,
         'convert card': try_card}


@pytest.mark.parametrize('model', models.MODELS)
@pytest.mark.parametrize(('program', 'task'), CELLS)
def test_a_program_works_with_a_model_or_says_why_not(made_world, snapshot, tmp_path, run, monkeypatch, program, task, model):
    expected = CELLS[program, task][list(models.MODELS).index(model)]
    if expected == NO_TASK:
        with pytest.raises(ValueError, match=f'has no recipe for the task {task}'):
            snapshot(model, task)
        return
    path, pictures = snapshot(model, task), made_world / 'images/train2014'
    features = [] if model == 'albef' else ['--features', made_world / 'mscoco_imgfeat/train2014_obj36.tsv']
    cell = SimpleNamespace(program=program, model=model, task=task, path=path, load=['--load', path], snapshot=snapshot,
                           world=made_world, folder=tmp_path, picture=pictures / f'{ID}.png', other=pictures / f'{OTHER}.png',
                           features=features, monkeypatch=monkeypatch)
    if expected == YES:
        TRIES[program](run, cell)
    else:
        with pytest.raises(ValueError, match=re.escape(REFUSALS[expected])):
            TRIES[program](run, cell)


def test_the_table_is_that_of_the_documentation():
    lines = (ROOT / 'docs/tools.md').read_text().splitlines()
    rows = [[cell.strip() for cell in line.replace('`', '').strip('|').split('|')] for line in lines if line.startswith('|')]
    assert rows[0][2:] == list(models.MODELS)
    assert {(program, 'pretrain' if task == 'pre-training' else task.lower()): row for program, task, *row in rows[2:]} == CELLS
