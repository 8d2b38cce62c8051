"""Weights go out in Hugging Face's form and come back: identical tensors, identical logits, at the size of lxr955 too."""

import re

import pytest
import torch
import transformers

from lxrt.config import LxrtConfig
from lxrt.entry import LXRTEncoder
from lxrt.modeling import LXRTPretraining
from lxrt.tokenization import BertTokenizer
from lxrt.weights import read_state, save_state
from start import files_beside
from tasks import convert
from tasks.model import AnswerModel

torch.set_num_threads(1)
SMALL = {'hidden_size': 12, 'num_attention_heads': 3, 'intermediate_size': 20, 'max_position_embeddings': 22, 'l_layers': 2,
         'x_layers': 1, 'r_layers': 1, 'visual_feat_dim': 6, 'num_object_labels': 7, 'num_attr_labels': 5}
ANSWERS = {'vqa': ['yes', 'no', '"so"', 'zürich'], 'nlvr2': ['False', 'True'], 'pretraining': ['yes', 'no', 'red']}
SIZES = ['small', pytest.param('lxr955', id='lxr955')]


def config_of(size, world):
    words = len((world / 'bert/vocab.txt').read_text().splitlines())
    return LxrtConfig(vocab_size=words, **SMALL) if size == 'small' else LxrtConfig()


def make(kind, config):
    torch.manual_seed(1)
    if kind == 'pretraining':
        model = LXRTPretraining(config, num_answers=len(ANSWERS[kind]))
    else:
        model = AnswerModel(LXRTEncoder(config), len(ANSWERS[kind]), images=1 + (kind == 'nlvr2'))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(('bias', 'LayerNorm.weight')):
                p.add_(0.1 * torch.randn_like(p))  # not all alike, as after training
    return model.eval()


def inputs(config, images=1, b=2, o=3, t=6):
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(1, config.vocab_size, (b, t), generator=generator)
    return (ids, torch.randn(b * images, o, config.visual_feat_dim, generator=generator),
            torch.rand(b * images, o, 4, generator=generator))


@torch.no_grad()
def logits(model, config):
    """What a model of ours says of some inputs, by name."""
    if isinstance(model, AnswerModel):
        return {'answers': model(*inputs(config, model.images))}
    ids, features, boxes = inputs(config)
    (lang, visn), pooled = model.bert(ids, None, None, (features, boxes))
    return {'words': model.cls.predictions(lang), 'match': model.cls.seq_relationship(pooled),
            'answers': model.answer_head(pooled), **model.obj_predict_head(visn)}


@torch.no_grad()
def their_logits(kind, folder, config):
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
        head = AnswerModel(LXRTEncoder(LxrtConfig(**SMALL)), 2, 2).logit_fc if config.hidden_size == 12 else AnswerModel(
            LXRTEncoder(config), 2, 2).logit_fc
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
    for name, text in files_beside(config, tokenizer, ANSWERS[kind]).items():
        (folder / name).write_text(text)
    path = folder / ('model_LXRT.pth' if kind == 'pretraining' else 'BEST.pth')
    save_state(model.state_dict(), path, '.pth')
    return path


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ANSWERS)
def test_out_and_back(kind, size, made_world, tmp_path, capsys):
    config = config_of(size, made_world)
    model = make(kind, config)
    path = save(kind, model, config, made_world, tmp_path / 'ours')
    out, back = tmp_path / 'out', tmp_path / f'back/{path.name}'
    assert convert.main(['to-hf', str(path.with_suffix('')), str(out)]) == 0, capsys.readouterr().err
    expected, found = logits(model, config), their_logits(kind, out, config)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert convert.main(['from-hf', str(out), re.sub(r'(_LXRT)?\.pth$', '', str(back))]) == 0, capsys.readouterr().err
    state, again = read_state(path), read_state(back)
    assert list(state) == list(again) or set(state) == set(again)
    assert all(torch.equal(state[name], again[name]) for name in state)
    model.load_state_dict(again)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in logits(model, config).items())
    for name in ('config.json', 'vocab.txt', 'answers.json'):
        assert (back.parent / name).read_text() == (path.parent / name).read_text()
