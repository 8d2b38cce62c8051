"""VisualBERT's snapshots in transformers and back."""

import json
import re

import pytest
import torch
import transformers
from test_vlbert_tools import randomised

import models
from bert.tokenization import BertTokenizer
from bert.weights import read_state
from tasks import snapshots
from tasks.checkpoints import sidecar_files
from tools import convert
from visualbert.config import VisualBertConfig

SIZES = {'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 40,
         'max_position_embeddings': 40, 'visual_feat_dim': 10}
ANSWERS = {'vqa': ['yes', 'no', 'red'], 'nlvr2': ['False', 'True'], 'pretrain': None, 'retrieval': None, 'refcoco': None,
           'vcr': None}


def write_snapshot(folder, world, model, config, head, task):
    folder.mkdir()
    answers = ANSWERS[task]
    for name, text in sidecar_files(model, config, BertTokenizer(world / 'bert/vocab.txt'), answers).items():
        if name != 'answers.json' or answers:
            (folder / name).write_text(text)
    (folder / 'options.json').write_text(json.dumps({'task': task, 'options': {}}))
    path = folder / ('Epoch01_LXRT.pth' if task == 'pretrain' else 'BEST.pth')
    torch.save(head.original_state(), path)
    return path


@pytest.mark.parametrize('task', ANSWERS)
@torch.no_grad()
def test_visualbert_gives_the_same_in_transformers_and_comes_back(made_world, tmp_path, capsys, task):
    config = VisualBertConfig(vocab_size=len((made_world / 'bert/vocab.txt').read_text().splitlines()), **SIZES)
    head = randomised(models.build('visualbert', task, config, ANSWERS[task]))
    path = write_snapshot(tmp_path / 'ours', made_world, 'visualbert', config, head, task)
    out, back = tmp_path / 'hf', tmp_path / 'back'
    assert convert.main(['to-hf', str(path), str(out)]) == 0, capsys.readouterr().err
    architecture, = json.loads((out / 'config.json').read_text())['architectures']
    theirs, info = getattr(transformers, architecture).from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
    theirs.eval()
    k = 2 if task == 'nlvr2' else 1
    tokens = transformers.BertTokenizer.from_pretrained(out)(
        [text + ' [MASK]' * (task in ('vqa', 'nlvr2')) for text in ('what color is the star ?', 'a red circle')],
        padding=True, return_tensors='pt')
    ids, features = tokens['input_ids'], torch.randn(2 * k, 5, 10)
    given = {name: tensor.repeat_interleave(k, 0) for name, tensor in tokens.items()}
    result = theirs(**given, visual_embeds=features, visual_attention_mask=torch.ones(2 * k, 5))
    batch = {'examples': 2, 'input_ids': ids, 'token_type_ids': tokens['token_type_ids'], 'features': features,
             'boxes': torch.rand(2 * k, 5, 4)}
    slot = tokens['attention_mask'].sum(1) - 2
    close = {'rtol': 1e-4, 'atol': 1e-4}
    if task == 'pretrain':
        scores = result.seq_relationship_logits
        torch.testing.assert_close(head.match_logits(batch), scores[:, 0] - scores[:, 1], **close)
        places = torch.tensor([1, 3])
        torch.testing.assert_close(head.word_logits(batch, places), result.prediction_logits[0, places], **close)
    elif task == 'vqa':
        assert list(theirs.config.id2label.values()) == ANSWERS[task]
        torch.testing.assert_close(result.logits, head.logits(batch | {'slot': slot}), **close)
    else:  # docs/weights.md tells how the head is applied
        read = {'nlvr2': lambda: result.last_hidden_state[torch.arange(4), slot.repeat_interleave(2)].view(2, -1),
                'refcoco': lambda: result.last_hidden_state[:, ids.shape[1]:]}.get(task, lambda: result.pooler_output)()
        weights = read_state(out / 'visualbert_head.safetensors')
        scores = read @ weights['cls.weight'].T + weights['cls.bias']
        scores = scores[:, 1] - scores[:, 0] if task == 'retrieval' else scores.view(2, -1)
        torch.testing.assert_close(head.logits(batch | ({'slot': slot} if task == 'nlvr2' else {})), scores, **close)
        if task != 'vcr':  # which no program asks
            assert snapshots.load(out).head.original_state().keys() == head.original_state().keys()
    assert architecture == {'vqa': 'VisualBertForQuestionAnswering', 'pretrain': 'VisualBertForPreTraining'}.get(
        task, 'VisualBertModel')
    example = re.search(r'```python\n(.*?)```', (out / 'README.md').read_text(), re.S)[1]
    exec(example, {})
    assert convert.main(['from-hf', str(out), str(back / path.stem.removesuffix('_LXRT'))]) == 0, capsys.readouterr().err
    before, after = read_state(path), read_state(back / path.name)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    for name in {'config.json', 'vocab.txt', *(['answers.json'] if ANSWERS[task] else [])}:
        assert (back / name).read_text() == (path.parent / name).read_text()
