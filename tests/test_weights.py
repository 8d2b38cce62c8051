"""Weights of LXMERT's, Hugging Face's and BERT's files are loaded exactly or not at all; the answer head moves by answer."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import BertConfig, BertForPreTraining, BertModel, LxmertConfig, LxmertForPreTraining

from annotations.answer_table import matching_rows, normalise, read_table
from bert.weights import WeightsError, fill
from heads import Start
from lxrt import heads
from lxrt.entry import LXRTEncoder
from lxrt.modeling import LxrtConfig, LXRTFeatureExtraction, LXRTPretraining, answer_layers
from lxrt.weights import answer_head, load_bert, load_lxmert, lxmert_name, read_lxmert
from tasks.checkpoints import weights_in

torch.set_num_threads(1)  # on models this small a second thread only waits

BERT = {'vocab_size': 30, 'hidden_size': 12, 'num_attention_heads': 3, 'intermediate_size': 20,
        'max_position_embeddings': 22}
TINY = {**BERT, 'l_layers': 2, 'x_layers': 1, 'r_layers': 1, 'visual_feat_dim': 6, 'num_object_labels': 7,
        'num_attr_labels': 5}
DECODER = 'cls.predictions.decoder.weight'
WORDS = 'bert.embeddings.word_embeddings.weight'


def transfer_answers(layers, head, table, answers):
    """Transfers the rows of the head of `table` to layers for `answers`; returns how many were copied, and how many not."""
    rows = matching_rows(table, answers)
    heads.transfer_answers(layers, head, Start('answers', None, rows, len(table)), 'answer_head.logit_fc.')
    copied = sum(row >= 0 for row in rows)
    return copied, len(rows) - copied


def tiny(**changes):
    return LxrtConfig(**{**TINY, **changes})


def randomise(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    return model


def pretraining(seed=1, **changes):
    return randomise(LXRTPretraining(tiny(**changes), num_answers=4), seed)


def encoder(seed=2, **changes):
    return randomise(LXRTFeatureExtraction(tiny(**changes)), seed)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(state, expected):
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def save(state, path):
    """As .pth, as the old format that the original's files have, or as .safetensors."""
    if path.suffix == '.safetensors':
        safetensors.torch.save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=path.suffix != '.old')
    return path


# ---------------------------------------------------------------------------- names


@pytest.mark.parametrize(('name', 'ours'), [
    ('bert.pooler.dense.weight', 'bert.pooler.dense.weight'),
    ('module.bert.pooler.dense.weight', 'bert.pooler.dense.weight'),
    ('_orig_mod.bert.pooler.dense.weight', 'bert.pooler.dense.weight'),
    ('module._orig_mod.bert.pooler.dense.weight', 'bert.pooler.dense.weight'),
    ('_orig_mod.module.bert.pooler.dense.weight', 'bert.pooler.dense.weight'),
    ('lxrt_encoder.model.module.bert.pooler.dense.bias', 'lxrt_encoder.model.bert.pooler.dense.bias'),
    ('module.lxrt_encoder.model.module.bert.pooler.dense.bias', 'lxrt_encoder.model.bert.pooler.dense.bias'),
    ('module.logit_fc.0.weight', 'logit_fc.0.weight'),
    ('lxmert.encoder.x_layers.4.lang_inter.dense.bias', 'bert.encoder.x_layers.4.lang_inter.dense.bias'),
    ('module.lxmert.pooler.dense.weight', 'bert.pooler.dense.weight'),
    ('bert.embeddings.LayerNorm.gamma', 'bert.embeddings.LayerNorm.weight'),
    ('module.bert.encoder.layer.0.output.LayerNorm.beta', 'bert.encoder.layer.0.output.LayerNorm.bias'),
    ('my_module.gamma', 'my_module.gamma'),
])
def test_names_of_others_become_the_originals(name, ours):
    assert lxmert_name(name) == ours


@pytest.mark.parametrize('suffix', ['.pth', '.old', '.safetensors'])
@pytest.mark.parametrize('prefix', ['', 'module.', '_orig_mod.', 'module._orig_mod.'])
def test_a_state_under_any_prefix_is_read_and_filled_in_exactly(tmp_path, prefix, suffix):
    source, model = pretraining(), pretraining(seed=3)
    path = save({prefix + name: tensor for name, tensor in source.state_dict().items()}, tmp_path / f'all{suffix}')
    report = fill(model, read_lxmert(path), str(path))
    same(model.state_dict(), source.state_dict())
    assert set(report.matched) == set(source.state_dict())
    assert not (report.missing or report.unexpected or report.wrong_size)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


@pytest.mark.parametrize('suffix', ['.bin', '.safetensors'])
def test_our_state_under_hugging_faces_names(tmp_path, suffix):
    source, model = pretraining(), pretraining(seed=3)
    state = {name.replace('bert.', 'lxmert.', 1) if name.startswith('bert.') else name: tensor
             for name, tensor in source.state_dict().items()}
    other = LxmertForPreTraining(LxmertConfig(**TINY, num_qa_labels=4))
    other.load_state_dict(state, strict=True)
    fill(model, read_lxmert(save(other.state_dict(), tmp_path / f'hf{suffix}')), 'hf')
    same(model.state_dict(), source.state_dict())


def test_a_folder_saved_by_hugging_face(tmp_path):
    """Their save_pretrained leaves the tied decoder out, which is explained by the tie."""
    other = randomise(LxmertForPreTraining(LxmertConfig(**TINY, num_qa_labels=4)))
    other.save_pretrained(tmp_path)
    model, state = pretraining(seed=3), read_lxmert(tmp_path / 'model.safetensors')
    report = fill(model, state, 'hf', may_miss=(r'cls\.predictions\.decoder\.weight$',))
    assert report.missing == [DECODER]
    same(model.state_dict(), {lxmert_name(name): tensor for name, tensor in other.state_dict().items()})
    features = encoder()
    load_lxmert(features, tmp_path / 'model.safetensors')
    same(features.state_dict(), {name: t for name, t in model.state_dict().items() if name.startswith('bert.')})


@pytest.mark.parametrize('prefix', ['lxrt_encoder.model.', 'lxrt_encoder.model.module.', '_orig_mod.lxrt_encoder.model.'])
def test_a_fine_tuned_file_of_several_gpus(tmp_path, prefix):
    def task(seed):
        return randomise(nn.ModuleDict({'lxrt_encoder': LXRTEncoder(tiny()), 'logit_fc': answer_layers(tiny(), 3)}), seed)

    source, model = task(1), task(2)
    state = {name.replace('lxrt_encoder.model.', prefix): tensor for name, tensor in source.state_dict().items()}
    fill(model, read_lxmert(save(state, tmp_path / 'BEST.pth')), 'BEST.pth')
    same(model.state_dict(), source.state_dict())


# ---------------------------------------------------------------------------- damaged files, other files


@pytest.mark.parametrize('suffix', ['.pth', '.old', '.safetensors'])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = save({'bert.a': torch.randn(50), 'bert.b': torch.randn(2, 3)}, tmp_path / f'all{suffix}')
    data = path.read_bytes()
    assert set(read_lxmert(path)) == {'bert.a', 'bert.b'}
    for size in [*range(0, len(data), 23), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(WeightsError, match=path.name):
            read_lxmert(path)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('how', [
    lambda bomb, path: torch.save({'bert.a': torch.ones(1), 'bert.b': bomb}, path),
    lambda bomb, path: torch.save({'bert.b': bomb}, path, _use_new_zipfile_serialization=False),
    lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
], ids=['zip', 'old', 'pickle'])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, how):
    path, mark = tmp_path / 'all.pth', tmp_path / 'ran'
    how(Bomb(mark), path)
    with pytest.raises(WeightsError, match=r'all\.pth'):
        read_lxmert(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # the code was live


@pytest.mark.parametrize('content', [
    [torch.ones(2)], torch.ones(2), {'model': {'bert.a': torch.ones(2)}, 'epoch': 3}, {'bert.a': 1.0}, {0: torch.ones(1)},
    None,
])
def test_anything_but_tensors_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'RUN_STATE.pth')
    with pytest.raises(WeightsError, match=r'RUN_STATE\.pth'):
        read_lxmert(tmp_path / 'RUN_STATE.pth')


@pytest.mark.parametrize('data', [b'', b'<!DOCTYPE html><title>404</title>', b'{"a": 1}', b'PK\x03\x04', b'\x80\x02',
                                  b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n', bytes(500)])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_other_files_are_refused(tmp_path, data, suffix):
    path = tmp_path / f'all{suffix}'
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=path.name):
        read_lxmert(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'model_LXRT\.pth'):
        read_lxmert(tmp_path / 'model_LXRT.pth')


# ---------------------------------------------------------------------------- LXMERT's files


def test_lxmert_fills_the_encoder_and_hands_its_heads_on(tmp_path):
    source, model = pretraining(), encoder()
    state = {f'module.{name}': tensor for name, tensor in source.state_dict().items()}
    state['module.bert.embeddings.position_ids'] = torch.arange(22)[None]
    report, tensors = load_lxmert(model, save(state, tmp_path / 'model_LXRT.pth'))
    heads = {name for name in source.state_dict() if not name.startswith('bert.')}
    same(model.state_dict(), {name: t for name, t in source.state_dict().items() if name not in heads})
    assert set(report.unexpected) == heads | {'bert.embeddings.position_ids'}
    assert report.missing == report.wrong_size == []
    assert torch.equal(tensors['answer_head.logit_fc.3.weight'], source.answer_head.logit_fc[3].weight)
    lines = str(report).split('\n')
    assert 'model_LXRT.pth' in lines[0]
    assert [line.split()[:2] for line in lines[1:4]] == [
        ['matched', str(len(report.matched))], ['missing', '0'], ['unexpected', str(len(heads) + 1)]]
    assert lines[3].endswith(', ...')
    assert lines[4].split() == ['wrong', 'size', '0']


def test_a_missing_tensor_fails_and_nothing_is_copied(tmp_path):
    source, model = pretraining().state_dict(), encoder()
    before = snapshot(model)
    for name in [*before][::8]:
        path = save({key: tensor for key, tensor in source.items() if key != name}, tmp_path / 'model_LXRT.pth')
        with pytest.raises(WeightsError) as error:
            load_lxmert(model, path)
        assert f'1 tensors that the model needs are missing (such as {name})' in str(error.value)
        assert str(path) in str(error.value)
    same(model.state_dict(), before)


@pytest.mark.parametrize(('change', 'says'), [
    ({'bert.pooler.dense.bias': torch.zeros(13)}, r'pooler\.dense\.bias: expected \(12,\), found \(13,\)'),
    ({'bert.pooler.dense.weight': torch.zeros(1, 12)}, r'pooler\.dense\.weight: expected \(12, 12\), found \(1, 12\)'),
    ({'bert.encoder.layer.2.output.dense.bias': torch.zeros(12)}, r'not part of the model .*layer\.2\.output\.dense\.bias'),
    ({'epoch': torch.tensor(3)}, 'not part of the model .*epoch'),
])
def test_a_tensor_of_another_size_or_name_fails_and_nothing_is_copied(tmp_path, change, says):
    """Also if the size could be broadcast."""
    model = encoder()
    before = snapshot(model)
    with pytest.raises(WeightsError, match=says):
        load_lxmert(model, save({**pretraining().state_dict(), **change}, tmp_path / 'model_LXRT.pth'))
    same(model.state_dict(), before)


# ---------------------------------------------------------------------------- BERT's files


def bert(cls, layers):
    return randomise(cls(BertConfig(**BERT, num_hidden_layers=layers)), seed=5)


def check_bert(model, before, other):
    """The embeddings, language layers and pooler are BERT's, the others stay."""
    for name, tensor in model.state_dict().items():
        if name.startswith(('bert.encoder.visn_fc.', 'bert.encoder.r_layers.', 'bert.encoder.x_layers.')):
            assert torch.equal(tensor, before[name]), name
        else:
            assert torch.equal(tensor, other[name[len('bert.'):]]), name


@pytest.mark.parametrize('layers', [2, 3], ids=['as many layers', 'more layers'])
@pytest.mark.parametrize('cls', [BertModel, BertForPreTraining], ids=['bare', 'with heads'])
@pytest.mark.parametrize('old_names', [False, True], ids=['', 'gamma'])
def test_bert_starts_the_language_side(tmp_path, cls, layers, old_names):
    other, model = bert(cls, layers), encoder()
    before, state = snapshot(model), other.state_dict()
    if old_names:
        state = {name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): tensor
                 for name, tensor in state.items()}
        assert any(name.endswith('gamma') for name in state)
    report = load_bert(model, save(state, tmp_path / 'pytorch_model.bin'))
    check_bert(model, before, (other if cls is BertModel else other.bert).state_dict())
    # Embeddings 3 + 2, a layer's 8 modules with weight and bias, the pooler.
    assert len(report.matched) == 5 + 2 * 16 + 2
    assert all(name.startswith(('bert.encoder.visn_fc.', 'bert.encoder.r_layers.', 'bert.encoder.x_layers.'))
               for name in report.missing)


def test_bert_as_saved_by_hugging_face(tmp_path):
    other, model = bert(BertForPreTraining, 3), encoder()
    other.save_pretrained(tmp_path)
    before = snapshot(model)
    assert weights_in(tmp_path) == tmp_path / 'model.safetensors'
    load_bert(model, weights_in(tmp_path))
    check_bert(model, before, other.bert.state_dict())
    (tmp_path / 'model.safetensors').rename(tmp_path / 'pytorch_model.bin')
    assert weights_in(tmp_path) == tmp_path / 'pytorch_model.bin'
    assert weights_in(tmp_path / 'absent') is None


def test_bert_with_fewer_layers_or_other_sizes_fails(tmp_path):
    model = encoder()
    before = snapshot(model)
    path = save(bert(BertModel, 1).state_dict(), tmp_path / 'pytorch_model.bin')
    with pytest.raises(WeightsError, match=r'16 tensors that the model needs are missing \(such as bert\.encoder\.layer\.1\.'):
        load_bert(model, path)
    state = bert(BertModel, 2).state_dict()
    save({name: tensor for name, tensor in state.items() if not name.startswith('pooler')}, path)
    with pytest.raises(WeightsError, match=r'bert\.pooler\.dense\.weight'):
        load_bert(model, path)
    save({**state, 'embeddings.word_embeddings.weight': torch.zeros(31, 12)}, path)
    with pytest.raises(WeightsError, match=r'expected \(30, 12\), found \(31, 12\)'):
        load_bert(model, path)
    same(model.state_dict(), before)


# ---------------------------------------------------------------------------- the answer table


@pytest.mark.parametrize(('answer', 'expected'), [
    ('Yes', 'yes'), ('no.', 'no'), ('No..', 'no.'), ('a cat', 'cat'), ('An apple.', 'apple'), ('the Cat', 'cat'),
    ('A man', 'man'), ('the man', 'man'), ('a woman', 'woman'), ('The Woman.', 'woman'), ('one', '1'), ('Two.', '2'),
    ('three', '3'), ('four', '4'), ('five', '5'), ('six', '6'), ('seven', '7'), ('eight', '8'), ('nine', '9'), ('ten', '10'),
    ('eleven', 'eleven'), ('zero', 'zero'), ('the ten', '10'), ('grey', 'gray'), ('a grey', 'gray'), ('Gray', 'gray'),
    ('grey cat', 'grey cat'), ('one cat', 'one cat'), ('theater', 'theater'), ('another', 'another'), ('a', 'a'), ('', ''),
    ('.', ''), ('cat and a dog', 'cat and a dog'), ('on the man', 'on the man'), ('u.s.', 'u.s'), (' cat', ' cat'),
])
def test_answers_are_normalised_as_in_the_original(answer, expected):
    assert normalise(answer) == expected


def test_the_table_keeps_its_order(tmp_path):
    path = tmp_path / 'all_ans.json'
    path.write_text(json.dumps([{'ans': 'yes', 'dsets': ['vqa']}, {'ans': 'café', 'dsets': []}, {'ans': '2', 'dsets': []}]))
    assert read_table(path) == ['yes', 'café', '2']


@pytest.mark.parametrize('text', ['', '{', '{"a": 1}', '[["yes"]]', '[{"answer": "yes"}]', '3', 'null'])
def test_a_faulty_table_is_named(tmp_path, text):
    (tmp_path / 'all_ans.json').write_text(text)
    with pytest.raises(ValueError, match=r'all_ans\.json'):
        read_table(tmp_path / 'all_ans.json')


def test_an_absent_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'all_ans\.json'):
        read_table(tmp_path / 'all_ans.json')


def head_of(model):
    return {f'answer_head.{name}': tensor for name, tensor in snapshot(model.answer_head).items()}


def test_answer_rows_move_by_answer_and_the_others_are_0():
    table = ['man', 'yes', '2', 'gray']
    answers = ['Grey', 'dog', 'A man.', 'two', 'yes', 'the man', '']
    source, layers = pretraining(), randomise(answer_layers(tiny(), len(answers)), seed=7)
    state = {**source.state_dict(), 'bert.extra': torch.zeros(1)}
    before = {name: tensor.clone() for name, tensor in state.items()}
    assert transfer_answers(layers, answer_head(state, 'a.pth'), table, answers) == (5, 2)
    source_layers = source.answer_head.logit_fc
    for row, place in enumerate([3, None, 0, 2, 1, 0, None]):
        if place is None:
            assert not layers[3].weight[row].any() and layers[3].bias[row] == 0
        else:
            assert torch.equal(layers[3].weight[row], source_layers[3].weight[place])
            assert layers[3].bias[row] == source_layers[3].bias[place]
    same(layers[0].state_dict(), source_layers[0].state_dict())
    same(layers[2].state_dict(), source_layers[2].state_dict())
    same(state, before)
    pooled = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layers(pooled)[:, [2, 4, 3, 0]], source.answer_head(pooled))
    assert all(p.requires_grad for p in layers.parameters())


def test_answers_none_of_which_is_in_the_table():
    layers = randomise(answer_layers(tiny(), 2))
    assert transfer_answers(layers, answer_head(head_of(pretraining()), 'a.pth'), ['a', 'b', 'c', 'd'], ['red', 'blue']) == (0, 2)
    assert not layers[3].weight.any() and not layers[3].bias.any()


@pytest.mark.parametrize(('change', 'table', 'says'), [
    (lambda state: {}, 4, 'no answer_head.*--loadEncoder'),
    (lambda state: {name: t for name, t in state.items() if not name.endswith('2.bias')}, 4, r'logit_fc\.2\.bias'),
    (lambda state: head_of(pretraining(hidden_size=15)), 4, r'logit_fc\.0\.weight: expected size \(24, 12\), found \(30, 15\)'),
    (lambda state: state, 3, '4 rows, the answer table 3'),
], ids=['no head', 'part of a head', 'another size', 'another table'])
def test_an_answer_head_that_does_not_fit_fails_and_nothing_is_changed(change, table, says):
    layers = randomise(answer_layers(tiny(), 3), seed=7)
    before = snapshot(layers)
    with pytest.raises(ValueError, match=says):
        head = answer_head(change(head_of(pretraining())), 'a.pth')
        transfer_answers(layers, head, ['yes', 'no', 'red', 'blue'][:table], ['yes', 'no', 'man'])
    same(layers.state_dict(), before)
