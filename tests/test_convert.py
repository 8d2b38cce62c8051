"""Weights go out in Hugging Face's form and come back: identical tensors, identical logits; names and sizes of lxr955."""

import dataclasses
import functools
import json
import re
import socket

import huggingface_hub
import pytest
import torch
import transformers
from conftest import lxmert_head

from bert.tokenization import BertTokenizer
from bert.weights import read_state, save_state
from heads import Answers
from lxrt import hugging_face
from lxrt.config import LxrtConfig
from lxrt.pretraining import LXRTPretraining
from param import Options
from tasks.checkpoints import sidecar_files
from tools import convert
from tools.model_card import model_card

torch.set_num_threads(1)
SMALL = {'hidden_size': 12, 'num_attention_heads': 3, 'intermediate_size': 20, 'max_position_embeddings': 22, 'l_layers': 2,
         'x_layers': 1, 'r_layers': 1, 'visual_feat_dim': 6, 'num_object_labels': 7, 'num_attr_labels': 5}
ANSWERS = {'vqa': ['yes', 'no', '"so"', 'zürich'], 'nlvr2': ['False', 'True'], 'pretraining': ['yes', 'no', 'red']}


def config_of(world):
    return LxrtConfig(vocab_size=len((world / 'bert/vocab.txt').read_text().splitlines()), **SMALL)


def make(kind, config, draw=True):
    torch.manual_seed(1)
    if kind == 'pretraining':
        model = LXRTPretraining(config, num_answers=len(ANSWERS[kind]))
    else:
        model = lxmert_head(config, len(ANSWERS[kind]), images=1 + (kind == 'nlvr2'))
    with torch.no_grad():
        for name, p in model.named_parameters() if draw else ():
            if name.endswith(('bias', 'LayerNorm.weight')):
                p.add_(0.1 * torch.randn_like(p))  # not all alike, as after training
    return model.eval()


def inputs(config, images=1, b=2, o=3, t=6):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, config.vocab_size, (b, t), generator=generator)
    return (ids, torch.randn(b * images, o, config.visual_feat_dim, generator=generator),
            torch.rand(b * images, o, 4, generator=generator))


def answer_logits(head, ids, features, boxes):
    return head.logits({'examples': len(ids), 'input_ids': ids, 'features': features, 'boxes': boxes})


def state_of(model):
    return model.original_state() if isinstance(model, Answers) else model.state_dict()


@torch.no_grad()
def logits(model, config):
    """What a model of ours says of some inputs, by name."""
    if isinstance(model, Answers):
        return {'answers': answer_logits(model, *inputs(config, model.recipe.images))}
    ids, features, boxes = inputs(config)
    (lang, visn), pooled = model.bert(ids, None, None, (features, boxes))
    return {'words': model.cls.predictions(lang), 'match': model.cls.seq_relationship(pooled),
            'answers': model.answer_head(pooled), **model.obj_predict_head(visn)}


@torch.no_grad()
def transformers_logits(kind, folder, config):
    """The same of what transformers loads from a folder, without a word about names."""
    cls = {'vqa': transformers.LxmertForQuestionAnswering, 'pretraining': transformers.LxmertForPreTraining,
           'nlvr2': transformers.LxmertModel}[kind]
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
    model.eval()
    if kind != 'nlvr2':
        assert list(model.config.id2label.values()) == ANSWERS[kind]
    ids, features, boxes = inputs(config, 1 + (kind == 'nlvr2'))
    if kind == 'vqa':
        return {'answers': model(ids, features, boxes).question_answering_score}
    if kind == 'nlvr2':
        head = lxmert_head(config, 2, 2).classifier
        head.load_state_dict({name.removeprefix('logit_fc.'): tensor
                              for name, tensor in read_state(folder / 'nlvr2_head.safetensors').items()})
        pooled = model(ids.repeat_interleave(2, 0), features, boxes).pooled_output
        return {'answers': head(pooled.view(len(ids), -1))}
    out = model(ids, features, boxes)
    visn = model.lxmert(ids, features, boxes).vision_output
    return {'words': out.prediction_logits, 'match': out.cross_relationship_score, 'answers': out.question_answering_score,
            **model.obj_predict_head(visn)}


def save(kind, model, config, world, folder):
    """A snapshot with what lies beside it."""
    folder.mkdir()
    tokenizer = BertTokenizer(world / 'bert/vocab.txt')
    for name, text in sidecar_files('lxmert', config, tokenizer, ANSWERS[kind]).items():
        (folder / name).write_text(text)
    path = folder / ('model_LXRT.pth' if kind == 'pretraining' else 'BEST.pth')
    save_state(state_of(model), path, '.pth')
    return path


def run_card(folder, model):
    """Runs the example of the model card; its probabilities must be those of our model on the same."""
    code = re.search(r'```python\n(.*?)```', (folder / 'README.md').read_text(), re.S)[1]
    exec(code, names := {})
    ids, features, boxes = names['tokens']['input_ids'], names['features'], names['boxes']
    if isinstance(model, Answers):
        probabilities, images = names['chances'], model.recipe.images
        assert probabilities.shape == (2, model.answers)
        with torch.no_grad():
            scores = answer_logits(model, ids[::images], features, boxes)
        torch.testing.assert_close(probabilities, scores.softmax(-1) if images == 2 else scores.sigmoid(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ANSWERS)
def test_names_and_sizes_of_the_published_model_are_those_of_transformers(kind):
    """On the meta device: no numbers, no time."""
    with torch.device('meta'):
        model = make(kind, LxrtConfig(), draw=False)
        classes = {'vqa': transformers.LxmertForQuestionAnswering, 'pretraining': transformers.LxmertForPreTraining,
                   'nlvr2': transformers.LxmertModel}
        reference = classes[kind](transformers.LxmertConfig(num_qa_labels=len(ANSWERS[kind])))
    tensors, head = hugging_face.hf_tensors(state_of(model), classes[kind].__name__)
    expected = {name: tensor.shape for name, tensor in reference.state_dict().items() if name != 'cls.predictions.decoder.weight'}
    assert {name: tensor.shape for name, tensor in tensors.items()} == expected
    assert sorted(head) == [f'logit_fc.{i}.{what}' for i in (0, 2, 3) for what in ('bias', 'weight')] * (kind == 'nlvr2')


@pytest.mark.parametrize('kind', ANSWERS)
def test_out_and_back(kind, made_world, tmp_path, capsys):
    config = config_of(made_world)
    model = make(kind, config)
    path = save(kind, model, config, made_world, tmp_path / 'ours')
    out, back = tmp_path / 'out', tmp_path / f'back/{path.name}'
    assert convert.main(['to-hf', str(path.with_suffix('')), str(out)]) == 0, capsys.readouterr().err
    expected, converted = logits(model, config), transformers_logits(kind, out, config)
    assert expected.keys() == converted.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(converted[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    run_card(out, model)
    assert convert.main(['from-hf', str(out), re.sub(r'(_LXRT)?\.pth$', '', str(back))]) == 0, capsys.readouterr().err
    state, again = read_state(path), read_state(back)
    assert list(state) == list(again) or set(state) == set(again)
    assert all(torch.equal(state[name], again[name]) for name in state)
    (model.load_original if isinstance(model, Answers) else model.load_state_dict)(again)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in logits(model, config).items())
    for name in ('config.json', 'vocab.txt', 'answers.json'):
        assert (back.parent / name).read_text() == (path.parent / name).read_text()


@pytest.fixture
def snapshot(made_world, tmp_path):
    """A small model of VQA and what lies beside it: ours/BEST.pth."""
    config = config_of(made_world)
    return save('vqa', make('vqa', config), config, made_world, tmp_path / 'ours')


def test_the_tokenizer_goes_with_it(snapshot, made_world, tmp_path):
    assert convert.main(['to-hf', str(snapshot), str(tmp_path / 'out')]) == 0
    reference = transformers.LxmertTokenizer.from_pretrained(tmp_path / 'out')
    ours = BertTokenizer(made_world / 'bert/vocab.txt')
    for sentence in ('What COLOUR is the Circle?', "how many boxes aren't blue", 'Zürich!'):
        assert reference(sentence)['input_ids'] == [i for i in ours.encode([sentence])[0].tolist() if i]
    # What transformers writes has no vocab.txt any more.
    reference.save_pretrained(tmp_path / 'again')
    (tmp_path / 'again/vocab.txt').unlink(missing_ok=True)
    again = BertTokenizer.from_pretrained(tmp_path / 'again')
    assert again.vocab_file.name == 'tokenizer.json' and again.ids_to_tokens == ours.ids_to_tokens


@pytest.mark.parametrize('text', ['', '{', '[]', '{"model": {}}', '{"model": {"vocab": 3}}'])
def test_a_faulty_tokenizer_is_named(tmp_path, text):
    (tmp_path / 'tokenizer.json').write_text(text)
    with pytest.raises(ValueError, match=r'tokenizer\.json: .*expected a tokenizer\.json with model\.vocab'):
        BertTokenizer.from_pretrained(tmp_path)


def test_the_card_tells_options_and_scores(snapshot, tmp_path):
    options = dataclasses.asdict(Options(lr=5e-5, epochs=4, train='train,nominival'))
    snapshot.with_name('options.json').write_text(json.dumps(
        {'options': options, 'command': ['src/tasks/vqa.py', '--lr', '5e-5'], 'git': 'abc1234', 'torch': '2.13.0'}))
    snapshot.with_name('log.log').write_text('Epoch 0: Train 53.57\nEpoch 0: Valid 56.67\nEpoch 0: Best 56.67\n')
    assert convert.main(['to-hf', str(snapshot), str(tmp_path / 'out')]) == 0
    card = (tmp_path / 'out/README.md').read_text()
    assert card.startswith('---\nlicense: mit\n') and 'pipeline_tag: visual-question-answering' in card
    assert 'Epoch 0: Valid 56.67\nEpoch 0: Best 56.67' in card and 'abc1234' in card
    assert '| `--lr` | 5e-05 |' in card and '| `--epochs` | 4 |' in card and '`--optim`' not in card
    assert '.sigmoid(-1)' not in card and '.sigmoid()' in card


@pytest.mark.parametrize(('task', 'usage'), [
    ('refcoco', "grounder = snapshots.load('BEST.pth')"), ('retrieval', "matcher = snapshots.load('BEST.pth')"),
    ('vcr', 'bash run/vcr_test.bash cpu NAME --load FOLDER/BEST.pth --rationale'),
    ('pretrain', "matcher = Matcher.from_pretrained('BEST.pth')"), (None, "matcher = Matcher.from_pretrained('BEST.pth')")])
def test_the_card_tells_how_a_snapshot_is_used(tmp_path, task, usage):
    if task:  # published weights have no options
        (tmp_path / 'options.json').write_text(json.dumps({'task': task, 'options': {'rationale': True}}))
    card = model_card(tmp_path / 'BEST.pth', LxrtConfig(), 'name', None)
    assert usage in card and card.count('```') == 2


def test_pth_to_safetensors_and_back(snapshot, tmp_path, made_world):
    assert convert.main(['file', str(snapshot), str(tmp_path / 'BEST.safetensors')]) == 0
    assert (tmp_path / 'answers.json').read_text() == snapshot.with_name('answers.json').read_text()
    back = snapshot.with_name('back.pth')
    assert convert.main(['file', str(tmp_path / 'BEST.safetensors'), str(back)]) == 0
    one, other = torch.load(snapshot, weights_only=True), torch.load(back, weights_only=True)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    # Tied weights, which the format cannot tell.
    config = config_of(made_world)
    tied = save('pretraining', make('pretraining', config), config, made_world, tmp_path / 'tied')
    assert convert.main(['file', str(tied), str(tmp_path / 'tied/a_LXRT.safetensors')]) == 0
    one, other = read_state(tied), read_state(tmp_path / 'tied/a_LXRT.safetensors')
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_faults_of_the_input(snapshot, tmp_path, capsys):
    def fault(*args):
        assert convert.main([str(arg) for arg in args]) == 1
        return capsys.readouterr().err

    assert 'nowhere_LXRT.pth: no such file' in fault('to-hf', tmp_path / 'nowhere', tmp_path / 'out')
    assert 'BEST.bin: expected a name that ends in .pth or .safetensors' in fault('file', snapshot, tmp_path / 'BEST.bin')
    (options := snapshot.with_name('options.json')).write_text('{"task": "refcoco", "options": {}}')
    assert 'LXMERT and the task refcoco, for which transformers has no class' in fault('to-hf', snapshot, tmp_path / 'out')
    options.unlink()
    answers = snapshot.with_name('answers.json')
    answers.write_text('["yes", "no"]')
    assert 'has 4 rows, but 2 answers are given for it' in fault('to-hf', snapshot, tmp_path / 'out')
    answers.write_text(json.dumps(ANSWERS['vqa']))
    assert convert.main(['to-hf', str(snapshot), str(tmp_path / 'out')]) == 0
    assert 'model.safetensors: exists; choose another path' in fault('to-hf', snapshot, tmp_path / 'out')
    (tmp_path / 'out/model.safetensors').rename(tmp_path / 'model.safetensors')
    (tmp_path / 'out/vocab.txt').write_text('other')
    assert 'vocab.txt: exists with other contents' in fault('to-hf', snapshot, tmp_path / 'out')
    (tmp_path / 'model.safetensors').rename(tmp_path / 'out/model.safetensors')
    (tmp_path / 'out/config.json').unlink()
    asked = fault('from-hf', tmp_path / 'out', tmp_path / 'x/BEST')
    assert 'expected config.json and vocab.txt beside model.safetensors' in asked
    config = snapshot.with_name('config.json')
    config.write_text(config.read_text().replace('"l_layers": 2', '"l_layers": 3'))
    assert 'tensors that the model needs are missing' in fault('to-hf', snapshot, tmp_path / 'other')
    assert not (tmp_path / 'other').exists()


def test_a_head_of_another_model_is_not_taken_for_this_ones(made_world, tmp_path, capsys):
    config = config_of(made_world)
    paths = {kind: save(kind, make(kind, config), config, made_world, tmp_path / kind) for kind in ('vqa', 'nlvr2')}
    assert convert.main(['to-hf', str(paths['vqa']), str(tmp_path / 'out')]) == 0
    assert convert.main(['to-hf', str(paths['nlvr2']), str(tmp_path / 'out')]) == 1  # and leaves no head behind
    assert not (tmp_path / 'out/nlvr2_head.safetensors').exists()
    save_state({'logit_fc.3.bias': torch.ones(2)}, tmp_path / 'out/nlvr2_head.safetensors', '.safetensors')
    assert convert.main(['from-hf', str(tmp_path / 'out'), str(tmp_path / 'back/BEST.pth')]) == 0
    one, other = read_state(paths['vqa']), read_state(tmp_path / 'back/BEST.pth')
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert 'nowhere: no such file' in (convert.main(['from-hf', 'nowhere', 'x']), capsys.readouterr().err)[1]


def test_answers_come_from_elsewhere_where_none_lie_beside(snapshot, tmp_path, made_world, capsys):
    config = config_of(made_world)
    path = save('pretraining', make('pretraining', config), config, made_world, tmp_path / 'published')
    path.with_name('answers.json').unlink()
    table, names = tmp_path / 'all_ans.json', tmp_path / 'names.json'
    table.write_text(json.dumps([{'ans': answer, 'dsets': ['vqa']} for answer in ANSWERS['pretraining']]))
    names.write_text(json.dumps(ANSWERS['vqa']))
    assert convert.main(['to-hf', str(path), str(tmp_path / 'out'), '--answers', str(table)]) == 0
    assert list(json.loads((tmp_path / 'out/config.json').read_text())['id2label'].values()) == ANSWERS['pretraining']
    assert convert.main(['to-hf', str(path), str(tmp_path / 'two'), '--answers', str(names)]) == 1
    assert 'has 3 rows, but 4 answers are given for it' in capsys.readouterr().err
    # The folder of transformers may have the same name twice, or a gap.
    config = tmp_path / 'out/config.json'
    for wrong, says in (({'0': 'a', '1': 'a', '2': 'b'}, 'is listed twice'), ({'0': 'a', '2': 'b'}, 'without a gap')):
        config.write_text(json.dumps({**json.loads(config.read_text()), 'id2label': wrong}))
        assert convert.main(['from-hf', str(tmp_path / 'out'), str(tmp_path / 'x/model')]) == 1
        assert says in capsys.readouterr().err


def test_the_runs_options_go_with_the_weights(snapshot, tmp_path):
    """They say whether answers were learned by --mceLoss, which changes their probabilities."""
    options = json.dumps({'options': {'mceLoss': True}})
    snapshot.with_name('options.json').write_text(options)
    assert convert.main(['to-hf', str(snapshot), str(tmp_path / 'out')]) == 0
    assert convert.main(['from-hf', str(tmp_path / 'out'), str(tmp_path / 'back/BEST')]) == 0
    assert convert.main(['file', str(snapshot), str(tmp_path / 'BEST.safetensors')]) == 0
    for path in (tmp_path / 'out', tmp_path / 'back', tmp_path):
        assert (path / 'options.json').read_text() == options


def test_pushing_goes_through_the_hubs_api(snapshot, tmp_path, monkeypatch, capsys):
    """Against a server on this machine that takes nothing, and with the calls looked at: no hub is here to push to."""
    calls = []
    monkeypatch.setattr(huggingface_hub.HfApi, 'create_repo', lambda self, name, exist_ok: calls.append((name, exist_ok)))
    monkeypatch.setattr(huggingface_hub.HfApi, 'upload_folder', lambda self, repo_id, folder_path: calls.append(
        (repo_id, sorted(path.name for path in folder_path.iterdir()))) or 'https://hub/me/mine')
    assert convert.main(['to-hf', str(snapshot), str(tmp_path / 'out'), '--push', 'me/mine']) == 0
    assert "from_pretrained('me/mine')" in (tmp_path / 'out/README.md').read_text()
    assert calls == [('me/mine', True), ('me/mine', ['README.md', 'config.json', 'model.safetensors', 'tokenizer_config.json',
                                                     'vocab.txt'])]
    assert 'Uploaded: https://hub/me/mine' in capsys.readouterr().out
    monkeypatch.undo()
    with socket.socket() as closed:  # bound, but it listens to nobody
        closed.bind(('127.0.0.1', 0))
        api = functools.partial(huggingface_hub.HfApi, f'http://127.0.0.1:{closed.getsockname()[1]}', token='none')
        monkeypatch.setattr(huggingface_hub, 'HfApi', api)
        assert convert.main(['to-hf', str(snapshot), str(tmp_path / 'two'), '--push', 'me/mine']) == 1
    printed = capsys.readouterr().err
    assert '--push me/mine: not uploaded' in printed and 'is complete' in printed and 'Traceback' not in printed
