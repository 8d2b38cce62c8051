"""VL-BERT against a plain restatement of the original, and against Hugging Face's BERT where the two agree."""

import json
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, SMALL, lxmert_head
from transformers import BertConfig, BertForPreTraining, BertModel

import models
from annotations.spec import read_answers
from bert import layers
from bert.tokenization import SPECIAL_TOKENS, BertTokenizer
from bert.weights import WeightsError
from files.json_files import DataError
from heads import Start
from lxrt.config import LxrtConfig
from param import Options
from tasks import checkpoints
from tasks.checkpoints import answers_beside
from vlbert import heads
from vlbert.config import VLBertConfig
from vlbert.modeling import geometry, original_boxes, resized

SIZES = {'vocab_size': 60, 'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 40,
         'max_position_embeddings': 40, 'visual_feat_dim': 10, 'num_region_classes': 7}
BERT_SIZES = ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size',
              'max_position_embeddings')
ANSWERS = ['yes', 'no', 'red', '2', 'left']


def config(**changes):
    return VLBertConfig(**SIZES | {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0} | changes)


def randomised(head):
    """All parameters random, those that start at 0 included."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 0.3)
    return head


def ragged(lengths, size, low=1):
    """(n, size) ids, 0 after each length."""
    ids = torch.randint(low, SIZES['vocab_size'], (len(lengths), size))
    return ids.masked_fill(torch.arange(size) >= torch.tensor(lengths)[:, None], 0)


def images(counts):
    o = max(counts)
    boxes = torch.rand(len(counts), o, 4) / 2
    boxes[..., 2:] += 0.5
    mask = torch.arange(o) < torch.tensor(counts)[:, None]
    return {'features': torch.randn(len(counts), o, SIZES['visual_feat_dim']) * mask[..., None], 'boxes': boxes * mask[..., None],
            'visual_attention_mask': mask}


def question_batch(**changes):
    torch.manual_seed(0)
    ids = ragged([7, 4, 9], 9)
    types = (torch.arange(9) >= torch.tensor([5, 2, 7])[:, None]).long() * (ids != 0)
    return {'examples': 3, 'input_ids': ids, 'token_type_ids': types, 'slot': torch.tensor([5, 2, 7]), **images([3, 6, 1]),
            'label_example': torch.tensor([0, 0, 2]), 'label_answer': torch.tensor([1, 4, 0]),
            'label_score': torch.tensor([0.3, 1.0, 0.6])} | changes


def pretraining_batch():
    torch.manual_seed(2)
    ids = ragged([6, 9, 4, 11, 11], 11)
    labels = torch.where((torch.rand(ids.shape) < 0.4) & (ids != 0), torch.randint(60, ids.shape), -1)
    regions = images([4, 7, 2])
    classes = torch.rand(3, 7, 7).softmax(-1)
    predicted = (torch.rand(3, 7) < 0.5) & regions['visual_attention_mask']
    predicted[:, 0] = False
    predicted[1, 1:3] = True
    masked = predicted & (torch.rand(3, 7) < 0.7)
    return {'examples': 3, 'input_ids': ids, 'token_type_ids': torch.zeros_like(ids), 'masked_lm_labels': labels,
            'pictures': torch.tensor([0, 1, 2, -1, -1]), **regions, 'masked_regions': masked,
            'region_classes': classes * predicted[..., None]}


# ---- a plain restatement: one sample at a time, formulas of the original code


def layer_norm(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], 1e-12)


def linear(x, state, name):
    return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def region_vector(state, feature, box):
    x1, y1, x2, y2 = box.tolist()
    numbers = []
    for position in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1):
        angles = [100 * position / 1000 ** (k / 256) for k in range(256)]
        numbers += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    joined = torch.cat([torch.tensor(numbers), feature])
    return torch.relu(linear(joined, state, 'image_feature_extractor.obj_downsample.1'))


def encode(state, ids, types, features, boxes, heads, text_only=False, masked=()):
    """(states of words, states of regions, attentions) of one sample without padding."""
    words, position, segment = (state[f'vlbert.{name}_embeddings.weight'] for name in ('word', 'position', 'token_type'))
    vectors, rows = [], []
    for i, (feature, box) in enumerate(zip(features, boxes, strict=True)):
        vectors.append(region_vector(state, state['object_mask_visual_embedding.weight'][0] if i in masked else feature, box))
    visual = state['aux_text_visual_embedding.weight'][0] if text_only else vectors[0]
    for place, (piece, kind) in enumerate(zip(ids.tolist(), types.tolist(), strict=True)):
        rows.append(words[piece] + layer_norm(visual, state, 'vlbert.visual_ln_text') + position[place] + segment[kind])
    for i, vector in enumerate(vectors):
        word = state['object_mask_word_embedding.weight' if i in masked else 'object_linguistic_embeddings.weight'][0]
        rows.append(word + layer_norm(vector, state, 'vlbert.visual_ln_object') + position[len(ids)] + segment[2])
    rows.append(state['vlbert.end_embedding.weight'][0] + position[len(ids) + 1] + segment[2])
    hidden = layer_norm(torch.stack(rows), state, 'vlbert.embedding_LayerNorm')
    attentions = []
    for i in range(SIZES['num_hidden_layers']):
        at = f'vlbert.encoder.layer.{i}'
        query, key, value = (linear(hidden, state, f'{at}.attention.self.{name}').unflatten(1, (heads, -1)).transpose(0, 1)
                             for name in ('query', 'key', 'value'))
        attention = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        attentions.append(attention)
        context = (attention @ value).transpose(0, 1).flatten(1)
        hidden = layer_norm(linear(context, state, f'{at}.attention.output.dense') + hidden, state,
                            f'{at}.attention.output.LayerNorm')
        inner = F.gelu(linear(hidden, state, f'{at}.intermediate.dense'))
        hidden = layer_norm(linear(inner, state, f'{at}.output.dense') + hidden, state, f'{at}.output.LayerNorm')
    return hidden[:len(ids)], hidden[len(ids):-1], attentions


def sample(batch, text, image=None):
    """(ids, types, features, boxes) of a sample without padding."""
    length = int((batch['input_ids'][text] != 0).sum())
    count = int(batch['visual_attention_mask'][image].sum()) if image is not None else 0
    parts = [batch[key][text, :length] for key in ('input_ids', 'token_type_ids')]
    return *parts, *([batch[key][image, :count] for key in ('features', 'boxes')] if image is not None else ((), ()))


def expected_logits(state, batch, images=1):
    rows = []
    for text in range(batch['examples']):
        pooled = torch.cat([encode(state, *sample(batch, text, text * images + i), 4)[0][batch['slot'][text]]
                            for i in range(images)])
        hidden = layer_norm(F.gelu(linear(pooled, state, 'final_mlp.0.dense')), state, 'final_mlp.0.LayerNorm')
        rows.append(linear(hidden, state, 'final_mlp.2'))
    return torch.stack(rows)


def expected_pretraining(state, batch):
    sums, counts = (dict.fromkeys(('MLM_captions', 'MLM_text', 'MVRC'), zero) for zero in (0.0, 0))
    for text, image in enumerate(batch['pictures'].tolist()):
        masked = set() if image < 0 else set(batch['masked_regions'][image].nonzero()[:, 0].tolist())
        parts = sample(batch, text) if image < 0 else sample(batch, text, image)
        words, regions, _ = encode(state, *parts, 4, text_only=image < 0, masked=masked)
        at, name = 'vlbert.mlm_head.predictions', 'MLM_text' if image < 0 else 'MLM_captions'
        for hidden, label in zip(words, batch['masked_lm_labels'][text].tolist(), strict=False):
            if label != -1:
                hidden = layer_norm(F.gelu(linear(hidden, state, f'{at}.transform.dense')), state, f'{at}.transform.LayerNorm')
                logits = hidden @ state['vlbert.word_embeddings.weight'].T + state[f'{at}.bias']
                sums[name], counts[name] = sums[name] - logits.log_softmax(0)[label], counts[name] + 1
        for hidden, target in zip(regions, batch['region_classes'][image] if image >= 0 else (), strict=False):
            if abs(target.sum() - 1) < 0.1:
                logits = linear(F.gelu(linear(hidden, state, 'vlbert.mvrc_head.transform.dense')), state,
                                'vlbert.mvrc_head.region_cls_pred')
                sums['MVRC'], counts['MVRC'] = sums['MVRC'] - target @ logits.log_softmax(0), counts['MVRC'] + 1
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


# ---- names


def names(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def body_names(d, layers, inner, classes=None):
    """Names and shapes of section 1 of the facts about the original code."""
    expected = {'vlbert.word_embeddings.weight': (30522, d), 'vlbert.end_embedding.weight': (1, d),
                'vlbert.position_embeddings.weight': (512, d), 'vlbert.token_type_embeddings.weight': (3, d),
                'object_linguistic_embeddings.weight': (1, d), 'image_feature_extractor.obj_downsample.1.weight': (d, 4096),
                'image_feature_extractor.obj_downsample.1.bias': (d,)}
    shapes = {'vlbert.embedding_LayerNorm': None, 'vlbert.visual_ln_text': None, 'vlbert.visual_ln_object': None}
    for i in range(layers):
        at = f'vlbert.encoder.layer.{i}'
        shapes |= {f'{at}.attention.self.{name}': (d, d) for name in ('query', 'key', 'value')}
        shapes |= {f'{at}.attention.output.dense': (d, d), f'{at}.attention.output.LayerNorm': None,
                   f'{at}.intermediate.dense': (inner, d), f'{at}.output.dense': (d, inner), f'{at}.output.LayerNorm': None}
    for name, shape in shapes.items():
        expected |= {f'{name}.weight': shape or (d,), f'{name}.bias': (shape[0] if shape else d,)}
    return expected


@pytest.mark.parametrize(('d', 'layers', 'heads', 'inner', 'millions'), [(768, 12, 12, 3072, (114.5, 115.0)),
                                                                          (1024, 24, 16, 4096, (342.1, None))])
def test_names_shapes_and_sizes_of_the_published_models(d, layers, heads, inner, millions):
    full = VLBertConfig(hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner)
    with torch.device('meta'):
        pretraining = models.build('vlbert', 'pretrain', full)
        vqa = models.build('vlbert', 'vqa', full, [str(i) for i in range(3129)])
    body = body_names(d, layers, inner)
    answer = {'final_mlp.0.dense.weight': (d, d), 'final_mlp.0.dense.bias': (d,), 'final_mlp.0.LayerNorm.weight': (d,),
              'final_mlp.0.LayerNorm.bias': (d,), 'final_mlp.2.weight': (3129, d), 'final_mlp.2.bias': (3129,)}
    assert names(vqa.original_state()) == body | answer
    at = 'vlbert.mlm_head.predictions'
    assert names(pretraining.original_state()) == body | {
        'object_mask_word_embedding.weight': (1, d), 'object_mask_visual_embedding.weight': (1, 2048),
        'aux_text_visual_embedding.weight': (1, d), f'{at}.transform.dense.weight': (d, d), f'{at}.transform.dense.bias': (d,),
        f'{at}.transform.LayerNorm.weight': (d,), f'{at}.transform.LayerNorm.bias': (d,), f'{at}.bias': (30522,),
        f'{at}.decoder.weight': (30522, d), 'vlbert.mvrc_head.transform.dense.weight': (d, d),
        'vlbert.mvrc_head.transform.dense.bias': (d,), 'vlbert.mvrc_head.region_cls_pred.weight': (1601, d),
        'vlbert.mvrc_head.region_cls_pred.bias': (1601,)}
    for head, count in zip((pretraining, vqa), millions, strict=True):
        if count:
            assert round(sum(p.numel() for p in head.parameters()) / 1e6, 1) == count
    assert full.parameters() == sum(p.numel() for p in pretraining.parameters())


def test_pooler_and_relationship_head():
    head = models.build('vlbert', 'pretrain', config(with_relationship=True))
    assert names(head.original_state())['vlbert.relationsip_head.caption_image_relationship.weight'] == (2, 24)
    assert names(head.original_state())['vlbert.pooler.dense.weight'] == (24, 24)
    assert config(with_relationship=True).parameters() == sum(p.numel() for p in head.parameters())
    assert head.match_logits(pretraining_batch()).shape == (5,)


# ---- exactness


@pytest.mark.parametrize('static', [False, True])
@pytest.mark.parametrize('task', ['vqa', 'gqa'])
def test_logits_and_loss_are_those_of_the_original(monkeypatch, task, static):
    monkeypatch.setattr(layers, 'PACK_SEQUENCES', set() if static else {'cpu'})
    monkeypatch.setattr('vlbert.modeling.PACK_SEQUENCES', set() if static else {'cpu'})
    head = randomised(models.build('vlbert', task, config(), ANSWERS)).eval()
    batch = question_batch()
    expected = expected_logits(head.original_state(), batch)
    torch.testing.assert_close(head.logits(batch), expected, rtol=0, atol=1e-5)
    target = torch.tensor([[0, 0.3, 0, 0, 1.0], [0] * 5, [0.6, 0, 0, 0, 0]])
    loss = F.binary_cross_entropy_with_logits(expected, target) * len(ANSWERS)
    torch.testing.assert_close(head.losses(batch, head.counts([batch]))['BCE'], loss, rtol=0, atol=1e-5)


def test_two_images_are_encoded_each_with_the_statement():
    head = randomised(models.build('vlbert', 'nlvr2', config(), ['False', 'True'])).eval()
    batch = question_batch(**images([3, 6, 1, 2, 5, 4]))
    torch.testing.assert_close(head.logits(batch), expected_logits(head.original_state(), batch, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize('static', [False, True])
def test_pretraining_losses_are_those_of_the_original(monkeypatch, static):
    monkeypatch.setattr(layers, 'PACK_SEQUENCES', set() if static else {'cpu'})
    monkeypatch.setattr('vlbert.modeling.PACK_SEQUENCES', set() if static else {'cpu'})
    head, batch = randomised(models.build('vlbert', 'pretrain', config())).eval(), pretraining_batch()
    losses, metrics = head(batch, head.counts([batch]))
    expected = expected_pretraining(head.original_state(), batch)
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss, rtol=0, atol=1e-5)
        assert metrics[f'predicted {name}'] > 0
    given = batch | {'words_at': (batch['masked_lm_labels'] != -1).flatten().nonzero()[:, 0],
                     'regions_at': (batch['region_classes'].sum(-1) > 0.5).flatten().nonzero()[:, 0]}
    for name, loss in head.losses(given, head.counts([given])).items():
        assert torch.equal(loss, losses[name])


@pytest.mark.parametrize(('pictures', 'counted'), [([2, -1, 1, -1, 0], 'in another order'), ([0, 1, 1, -1, -1], 'one of two'),
                                                   ([1, -1, -1, -1, -1], 'two of none')])
def test_captions_may_come_in_any_order_and_share_images(pictures, counted):
    head, batch = randomised(models.build('vlbert', 'pretrain', config())).eval(), pretraining_batch()
    batch['pictures'] = torch.tensor(pictures)
    losses, expected = head.losses(batch, head.counts([batch])), expected_pretraining(head.original_state(), batch)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], torch.as_tensor(loss), rtol=0, atol=1e-5, msg=f'{name} {counted}')


def test_a_batch_of_pretraining_needs_the_keys_of_its_docstring_alone():
    head, batch = randomised(models.build('vlbert', 'pretrain', config())).eval(), pretraining_batch()
    expected = head.losses(batch, head.counts([batch]))
    other = {name: tensor for name, tensor in batch.items() if name not in ('examples', 'token_type_ids')}
    other |= {name: batch[name].float() for name in ('masked_regions', 'visual_attention_mask')}
    for name, loss in head.losses(other, head.counts([other])).items():
        assert torch.equal(loss, expected[name])


@pytest.mark.parametrize('static', [False, True])
def test_states_of_padding_are_zeros(monkeypatch, static):
    """As in the original code, whose losses a label at padding enters too."""
    monkeypatch.setattr('vlbert.modeling.PACK_SEQUENCES', set() if static else {'cpu'})
    head, batch = randomised(models.build('vlbert', 'pretrain', config())).eval(), pretraining_batch()
    counts, before = head.counts([batch]), head.losses(batch, head.counts([batch]))
    batch['masked_lm_labels'][2, 8], batch['region_classes'][2, 5] = 7, torch.full((7,), 1 / 7)
    losses, zeros = head.losses(batch, head.counts([batch])), torch.zeros(1, SIZES['hidden_size'])
    expected = {'MLM_captions': -head.mlm_head.predictions(zeros).log_softmax(1)[0, 7],
                'MVRC': -head.mvrc_head(zeros).log_softmax(1).mean()}
    for name, loss in expected.items():
        total = before[name] * counts[name] + loss
        torch.testing.assert_close(losses[name], total / (counts[name] + 1), rtol=0, atol=1e-5)


def test_nothing_to_predict_is_no_loss():
    head, batch = models.build('vlbert', 'pretrain', config()), pretraining_batch()
    batch['masked_lm_labels'].fill_(-1)
    batch['region_classes'].zero_()
    losses = head.losses(batch, head.counts([batch]))
    assert not any(losses.values()) and losses.keys() == {'MLM_captions', 'MLM_text', 'MVRC'}
    sum(losses.values()).backward()


def test_attention_and_states_of_all_layers():
    head, batch = randomised(models.build('vlbert', 'vqa', config(), ANSWERS)).eval(), question_batch()
    state, (t, o) = head.original_state(), (9, 6)
    recorded = head.encoder(batch, record_attention=True).attentions
    pooled, words, regions = head.encoder.hidden_states(batch)
    torch.testing.assert_close(pooled, head.encoder(batch).pooled, rtol=0, atol=1e-5)
    for i in range(3):
        ids, types, features, boxes = sample(batch, i, i)
        expected_words, expected_regions, attentions = encode(state, ids, types, features, boxes, 4)
        torch.testing.assert_close(words['layer2'][i, :len(ids)], expected_words, rtol=0, atol=1e-5)
        torch.testing.assert_close(regions['layer2'][i, :len(boxes)], expected_regions, rtol=0, atol=1e-5)
        assert not words['layer2'][i, len(ids):].any() and not regions['layer2'][i, len(boxes):].any()
        places = [*range(len(ids)), *range(t, t + len(boxes)), t + o]
        for attention, expected in zip(recorded, attentions, strict=True):
            torch.testing.assert_close(attention.probabilities[i][:, places][:, :, places], expected, rtol=0, atol=1e-5)


def test_words_see_the_region_that_they_name():
    head, batch = randomised(models.build('vlbert', 'vqa', config(), ANSWERS)).eval(), question_batch()
    same = head.logits(batch | {'word_regions': torch.zeros(3, 9, dtype=torch.long)})
    torch.testing.assert_close(same, head.logits(batch), rtol=0, atol=1e-6)
    named = torch.zeros(3, 9, dtype=torch.long)
    named[1, 1] = 3
    changed = (head.logits(batch | {'word_regions': named}) - head.logits(batch)).abs().amax(1)
    assert changed[1] > 1e-3 and changed[[0, 2]].max() < 1e-5
    pretraining, texts = randomised(models.build('vlbert', 'pretrain', config())).eval(), pretraining_batch()
    same = texts | {'word_regions': torch.zeros_like(texts['input_ids'])}  # texts alone have their own embedding
    for name, loss in pretraining.losses(texts, pretraining.counts([texts])).items():
        torch.testing.assert_close(pretraining.losses(same, pretraining.counts([same]))[name], loss, rtol=0, atol=1e-6)


def test_without_images_it_is_bert():
    """Texts alone at the initial weights of the visual layer norms: BERT with one more token, [END]."""
    head = models.build('vlbert', 'pretrain', config()).eval()
    reference = BertModel(BertConfig(
        **{key: SIZES[key] for key in BERT_SIZES}, type_vocab_size=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0),
        add_pooling_layer=False).eval()
    state = head.original_state()
    for name, tensor in reference.state_dict().items():
        ours = 'vlbert.' + name.replace('embeddings.LayerNorm', 'embedding_LayerNorm').removeprefix('embeddings.')
        tensor.copy_(state[ours])
    batch = {'examples': 0, **images([2]), 'input_ids': ragged([5, 8], 8), 'token_type_ids': torch.zeros(2, 8, dtype=torch.long),
             'pictures': torch.tensor([-1, -1])}
    words = head.encoder.states(batch)[:, :8]
    end = 59
    with torch.no_grad():
        reference.embeddings.word_embeddings.weight[end] = state['vlbert.end_embedding.weight'][0]
    for i, length in enumerate((5, 8)):
        ids = torch.cat([batch['input_ids'][i, :length], torch.tensor([end])])[None]
        positions = torch.tensor([[*range(length), length + 1]])
        expected = reference(ids, token_type_ids=torch.tensor([[0] * length + [2]]), position_ids=positions).last_hidden_state
        rows = (batch['input_ids'][i] != end).nonzero()[:, 0][:length]
        torch.testing.assert_close(words[i, rows], expected[0, :length], rtol=0, atol=1e-5)


# ---- boxes


def test_boxes_are_cut_and_mirrored_in_the_resized_image():
    sizes = {(513, 640): (600, 748), (500, 750): (600, 900), (640, 407): (943, 600), (400, 1200): (333, 999),
             (300, 300): (600, 600)}
    assert resized(torch.tensor(list(sizes))).tolist() == [list(size) for size in sizes.values()]
    size = torch.tensor([[513, 640]])
    boxes = torch.tensor([[[0, 0, 639 / 640, 512 / 513], [0.5, 0.25, 1.0, 1.0]]])
    scale = torch.tensor([748, 600, 748, 600])
    assert (original_boxes(boxes, size) * scale)[0, 0].tolist() == pytest.approx([0, 0, 746.831299, 598.830444], abs=1e-3)
    assert (original_boxes(boxes, size) * scale)[0, 1].tolist() == pytest.approx([374, 150, 747, 599], abs=1e-3)
    mirrored = original_boxes(boxes, size, torch.tensor([True]))
    assert (mirrored * scale)[0, 0].tolist() == pytest.approx([0.168701, 0, 747, 598.830444], abs=1e-3)
    assert (original_boxes(mirrored, size, torch.tensor([True])) - original_boxes(boxes, size)).abs().max() < 1e-6


@pytest.mark.parametrize('count', [256, 3])
def test_geometry(count):
    box = torch.tensor([[0.1, 0.2, 0.7, 0.6]])
    numbers = (geometry(box) if count == 256 else geometry(box, 8 * count))[0]
    assert numbers.shape == (8 * count,)
    for block, position in enumerate((0.4, 0.4, 0.6, 0.4)):
        for k in {0, 1, count // 2, count - 1}:
            angle = 100 * position / 1000 ** (k / count)
            assert numbers[2 * count * block + k] == pytest.approx(math.sin(angle), abs=1e-5)
            assert numbers[2 * count * block + count + k] == pytest.approx(math.cos(angle), abs=1e-5)


def test_a_smaller_geometry():
    head = models.build('vlbert', 'pretrain', config(geometry_size=24))
    assert head.encoder.model.image_feature_extractor.obj_downsample[1].weight.shape[1] == 24 + config().visual_feat_dim
    assert config(geometry_size=24).parameters() == sum(p.numel() for p in head.parameters())
    with pytest.raises(DataError, match=r'geometry_size: expected a multiple of 8, .* found 20; correct it'):
        config(geometry_size=20)


# ---- initial weights


def test_initial_weights():
    head = models.build('vlbert', 'pretrain', config(vocab_size=2000, hidden_size=64, visual_feat_dim=64))
    state = head.original_state()
    assert not any(state[f'vlbert.visual_ln_{side}.{name}'].any() for side in ('text', 'object') for name in ('weight', 'bias'))
    assert not state['object_mask_visual_embedding.weight'].any() and state['object_mask_word_embedding.weight'].any()
    assert state['vlbert.word_embeddings.weight'].std() == pytest.approx(0.02, rel=0.05)
    assert state['vlbert.word_embeddings.weight'][0].any()  # no padding_idx
    bound = (2048 + 64) ** -0.5  # of PyTorch's default
    downsample = state['image_feature_extractor.obj_downsample.1.weight']
    assert 0.99 * bound < downsample.abs().max() <= bound and downsample.std() == pytest.approx(bound / 3 ** 0.5, rel=0.02)
    vqa = models.build('vlbert', 'vqa', config(hidden_size=64), ANSWERS).original_state()
    bound = (6 / 128) ** 0.5
    assert 0.95 * bound < vqa['final_mlp.0.dense.weight'].abs().max() <= bound and not vqa['final_mlp.2.bias'].any()


def test_fixed_dropouts_are_off_only_without_dropout():
    rates = [module.p for rate in (0.0, 0.05) for module in
             models.build('vlbert', 'vqa', config(hidden_dropout_prob=rate), ANSWERS).modules()
             if isinstance(module, torch.nn.Dropout) and module.p != rate]
    assert rates == [0.1, 0.1]


# ---- configuration


def write_yaml(path, **section):
    lines = [f'    {key}: {json.dumps(value)}' for key, value in section.items()]
    path.write_text('\n'.join(['DATASET:', '  TASK: vqa', 'NETWORK:', '  IMAGE_FINAL_DIM: 24', '  VLBERT:', *lines]) + '\n')
    return path


def test_config_from_the_originals_yaml_and_from_bert(tmp_path):
    path = write_yaml(tmp_path / 'base.yaml', hidden_size=24, visual_size=24, num_hidden_layers=3, num_attention_heads=4,
                      intermediate_size=40, type_vocab_size=3, visual_region_classes=11, with_pooler=False, visual_ln=True)
    expected = VLBertConfig(hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40,
                            num_region_classes=11)
    assert VLBertConfig.from_yaml(path) == expected
    (tmp_path / 'config.json').write_text(json.dumps({'hidden_size': 24, 'num_attention_heads': 4, 'type_vocab_size': 2, 'x': 1}))
    read = VLBertConfig.from_json(tmp_path / 'config.json')
    assert (read.hidden_size, read.type_vocab_size, read.num_hidden_layers) == (24, 3, 12)
    (tmp_path / 'config.json').write_text(expected.to_json())
    assert VLBertConfig.from_json(tmp_path / 'config.json') == expected


@pytest.mark.parametrize(('section', 'message'), [
    ({'hidden_sise': 24}, 'key "NETWORK.VLBERT.hidden_sise": there is no such key'),
    ({'visual_ln': False}, 'key "NETWORK.VLBERT.visual_ln": expected True, as in the published models, found False'),
    ({'visual_size': 512}, 'key "NETWORK.VLBERT.visual_size": expected hidden_size, 768, found 512'),
    ({'num_hidden_layers': 'many'}, "num_hidden_layers: expected a whole number"),
    ({'MODEL': 'VL-BERT'}, 'key "NETWORK.VLBERT.MODEL": there is no such key'),
    ({'hidden_size': '1' + ':59' * 3000}, 'hidden_size: expected a whole number'),
    ({'visual_ln': '1' + ':59' * 3000}, 'key "NETWORK.VLBERT.visual_ln": expected True'),
    ({}, 'key "NETWORK.VLBERT": expected an object'),
])
def test_yaml_that_does_not_fit_is_named(tmp_path, section, message):
    path = write_yaml(tmp_path / 'wrong.yaml', **section)
    with pytest.raises(DataError, match=r'wrong\.yaml: ') as error:
        VLBertConfig.from_yaml(path)
    assert message in str(error.value)


BOMB = '\n'.join([  # billions of values
    'a: &a [x, x, x, x, x, x, x, x, x]', *(f'{b}: &{b} [{", ".join([f"*{a}"] * 9)}]' for a, b in pairwise('abcdefghijk')),
    'NETWORK: {VLBERT: {hidden_size: *k}}'])


@pytest.mark.parametrize('text', [
    'NETWORK: [1, 2', BOMB, 'NETWORK: &n {VLBERT: *n}', 'NETWORK: ' + '[' * 5000, 'NETWORK: {VLBERT: {hidden_size: 2001-99-99}}',
    f'NETWORK: {{VLBERT: {{hidden_size: {"9" * 5000}}}}}', 'NETWORK: !!python/object/apply:os.getcwd []', 'NETWORK: {? [1] : 2}',
], ids=['cut', 'bomb', 'loop', 'deep', 'date', 'digits', 'object', 'odd_key'])
def test_a_file_that_is_no_yaml_is_named(tmp_path, text):
    (tmp_path / 'x.yaml').write_text(text)
    with pytest.raises(DataError, match=r'x\.yaml: is not plain yaml'):
        VLBertConfig.from_yaml(tmp_path / 'x.yaml')


# ---- weights


def published(path, head, half=False, **extra):
    """Saves the weights of a head as the original code does, from several GPUs."""
    state = {f'module.{name}': tensor.half() if half else tensor for name, tensor in head.original_state().items()}
    torch.save({'state_dict': state | extra, 'optimizer': {'state': {}, 'param_groups': []}, 'validation_monitor': {'best': 0.5}},
               path)
    return path


@pytest.fixture
def tokenizer(tmp_path):
    pieces = [*SPECIAL_TOKENS, 'yes', 'no', 'red', 'left', '##ish', *(f'word{i}' for i in range(40))]
    (tmp_path / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
    return BertTokenizer(tmp_path / 'vocab.txt')


def test_vqa_starts_from_published_pretraining(tmp_path, tokenizer):
    source = randomised(models.build('vlbert', 'pretrain', config()))
    path = published(tmp_path / 'vl-bert-base-e2e.model', source, half=True,
                     **{'module.image_feature_extractor.backbone.conv1.weight': torch.zeros(2, 2)})
    head = models.build('vlbert', 'vqa', config(), ['yes', 'reddish', 'redish left', ''])
    head.encoder.tokenizer, initial = tokenizer, {name: tensor.clone() for name, tensor in head.original_state().items()}
    report, = heads.load_start(head, Start('encoder', path))
    state, expected = head.original_state(), {name: tensor.half().float() for name, tensor in source.original_state().items()}
    for name, tensor in state.items():
        if name.startswith('final_mlp.0.'):
            name = name.replace('final_mlp.0', 'vlbert.mlm_head.predictions.transform')
        if not name.startswith('final_mlp.2'):
            assert torch.equal(tensor, expected[name]), name
    words, (red, ish, left) = expected['vlbert.word_embeddings.weight'], (7, 9, 8)
    torch.testing.assert_close(state['final_mlp.2.weight'][2], words[[red, ish, left]].mean(0))
    torch.testing.assert_close(state['final_mlp.2.weight'][1], words[1])  # [UNK]
    assert torch.equal(state['final_mlp.2.weight'][3], initial['final_mlp.2.weight'][3]) and not state['final_mlp.2.bias'].any()
    assert 'image_feature_extractor.backbone.conv1.weight' in report.unexpected
    assert {name.split('.')[0] for name in report.missing} == {'final_mlp'}


def test_of_two_images_the_head_stays_random(tmp_path, tokenizer):
    path = published(tmp_path / 'x.model', randomised(models.build('vlbert', 'pretrain', config())))
    head = models.build('vlbert', 'nlvr2', config(), ['False', 'True'])
    head.encoder.tokenizer = tokenizer
    report, = heads.load_start(head, Start('encoder', path))
    assert {name.split('.')[0] for name in report.missing} == {'final_mlp'} and len(report.missing) == 6


def test_bert_fills_words_two_segments_layers_and_the_word_head(tmp_path, tokenizer):
    reference = BertForPreTraining(BertConfig(**{key: SIZES[key] for key in BERT_SIZES}))
    for parameter in reference.parameters():
        parameter.data.normal_(0, 0.3)
    state = {name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): tensor.clone()
             for name, tensor in reference.state_dict().items()}
    torch.save(state, tmp_path / 'pytorch_model.bin')
    for task in ('pretrain', 'vqa'):
        head = models.build('vlbert', task, config(), ANSWERS)
        head.encoder.tokenizer, third = tokenizer, head.original_state()['vlbert.token_type_embeddings.weight'][2].clone()
        heads.load_start(head, Start('bert', tmp_path / 'pytorch_model.bin'))
        loaded = head.original_state()
        segments = loaded['vlbert.token_type_embeddings.weight']
        assert torch.equal(segments[:2], state['bert.embeddings.token_type_embeddings.weight'])
        assert torch.equal(segments[2], third)
        assert torch.equal(loaded['vlbert.embedding_LayerNorm.weight'], state['bert.embeddings.LayerNorm.gamma'])
        last = 'encoder.layer.1.output.dense.weight'
        assert torch.equal(loaded[f'vlbert.{last}'], state[f'bert.{last}'])
        name = 'vlbert.mlm_head.predictions.transform' if task == 'pretrain' else 'final_mlp.0'
        assert torch.equal(loaded[f'{name}.dense.weight'], state['cls.predictions.transform.dense.weight'])
        assert not loaded['vlbert.visual_ln_text.weight'].any()
    torch.testing.assert_close(loaded['final_mlp.2.weight'][0], loaded['vlbert.word_embeddings.weight'][5])
    assert torch.equal(models.build('vlbert', 'pretrain', config()).original_state()['vlbert.mlm_head.predictions.bias'],
                       torch.zeros(60))


def test_weights_that_do_not_fit_are_refused(tmp_path):
    large = published(tmp_path / 'large.model', randomised(models.build('vlbert', 'pretrain', config(
        hidden_size=32, num_hidden_layers=3))))
    head = models.build('vlbert', 'vqa', config(), ANSWERS)
    with pytest.raises(WeightsError, match=r'large\.model does not fit the model: .* tensors have another size'):
        heads.load_start(head, Start('encoder', large))
    state = {name: tensor for name, tensor in head.original_state().items() if 'layer.1.output.dense' not in name}
    with pytest.raises(WeightsError, match='2 tensors that the model needs are missing'):
        head.load_original(state)
    torch.save({'bert.embeddings.word_embeddings.weight': torch.ones(3, 3)}, tmp_path / 'lxmert.pth')
    with pytest.raises(WeightsError, match=r'lxmert\.pth: expected weights of VL-BERT'):
        heads.read_vlbert(tmp_path / 'lxmert.pth')
    with pytest.raises(WeightsError, match='has no pre-trained head of masked words'):
        heads.load_pretrained(published(tmp_path / 'vqa.model', randomised(head)), config())


def test_advice_on_weights_of_another_model_or_task(tmp_path):
    path = published(tmp_path / 'pre.model', randomised(models.build('vlbert', 'pretrain', config())))
    vqa = models.build('vlbert', 'vqa', config(), ANSWERS)
    with pytest.raises(WeightsError, match=r'^--load needs all weights of the same task; the encoder of other weights is loaded '
                                           r'by --loadEncoder: .*pre\.model does not fit'):
        checkpoints.load_start('vlbert', vqa, Options(load=str(path)), path, tmp_path, ANSWERS)
    with pytest.raises(WeightsError, match=r'^--load needs all weights of the same task: '):
        checkpoints.load_start('vlbert', vqa, Options(load=str(path), test='test'), path, tmp_path, ANSWERS)
    lxmert = lxmert_head(LxrtConfig(vocab_size=60, **SMALL), len(ANSWERS))
    with pytest.raises(WeightsError, match=r'pre\.model: has weights of the model vlbert, not of lxmert; give --loadVLBERT'):
        checkpoints.load_start('lxmert', lxmert, Options(loadLXMERT=str(path)), path, tmp_path, ANSWERS)
    (tmp_path / 'config.json').write_text('{"model_type": "vlbert"}')
    for encoder, advice in ((True, '--loadVLBERT'), (False, '--model vlbert')):
        with pytest.raises(DataError, match=f'of the model vlbert, not lxmert; give {advice}'):
            checkpoints.check_sidecars('lxmert', path, None, None, encoder)
    with pytest.raises(FileNotFoundError, match=r'--loadVLBERT nowhere/vl: nowhere/vl\.model: no such file'):
        checkpoints.starting_weights(Options(loadVLBERT='nowhere/vl'))
    short = published(tmp_path / 'vqa.model', randomised(vqa))
    (tmp_path / 'answers_vqa.txt').write_text('yes\nno\n')
    with pytest.raises(WeightsError, match=r'vqa\.model: the answer head has \d+ rows, the answer table 2 answers'):
        checkpoints.load_start('vlbert', vqa, Options(load=str(short), transferAnswers=True), short, tmp_path, ANSWERS)


def test_state_in_original_names_goes_there_and_back(tmp_path):
    for task in ('pretrain', 'vqa', 'nlvr2'):
        source, target = (models.build('vlbert', task, config(), ANSWERS) for _ in range(2))
        target.load_original(randomised(source).original_state())
        assert all(torch.equal(one, other) for one, other in zip(source.parameters(), target.parameters(), strict=True))
    alone = models.build('vlbert', 'pretrain', config(), (), Options(withoutText=True)).original_state()
    assert models.build('vlbert', 'pretrain', config()).load_original(alone).missing == ['aux_text_visual_embedding.weight']
    encoder, _ = heads.load_encoder(published(tmp_path / 'x.model', source), config())
    assert torch.equal(encoder.model.vlbert.word_embeddings.weight, source.encoder.model.vlbert.word_embeddings.weight)


def test_frozen_parts_cover_the_encoder():
    for task in ('pretrain', 'vqa'):
        head = models.build('vlbert', task, config(with_pooler=True), ANSWERS)
        head.freeze('1')
        trained = {name.split('.layer.')[-1][0] for name, p in head.encoder.named_parameters()
                   if p.requires_grad and '.layer.' in name}
        assert trained == {'1'}
        head.freeze('all')
        assert not any(p.requires_grad for p in head.encoder.parameters())


# ---- text


def test_texts_are_written_with_a_blank(tokenizer):
    encoder = heads.VLBertEncoder(config())
    encoder.tokenizer = tokenizer
    cls, sep, mask = (tokenizer.vocab[token] for token in ('[CLS]', '[SEP]', '[MASK]'))
    texts = [('yes',), ('red left no',), ('no ' * 30,)]
    columns = encoder.write(texts, 8, blank=True)
    assert columns['input_ids'].tolist() == [[cls, 5, sep, mask, sep, 0, 0, 0, 0, 0], [cls, 7, 8, 6, sep, mask, sep, 0, 0, 0],
                                             [cls, *[6] * 6, sep, mask, sep]]
    assert columns['token_type_ids'].tolist() == [[0] * 3 + [1] * 2 + [0] * 5, [0] * 5 + [1] * 2 + [0] * 3, [0] * 8 + [1] * 2]
    assert columns['slot'].tolist() == [3, 5, 8] and columns['counts'][:, 2].tolist() == [0, 0, 1]
    plain = encoder.write(texts[:2], 8)
    assert plain['input_ids'].tolist() == [[cls, 5, sep, 0, 0], [cls, 7, 8, 6, sep]] and 'slot' not in plain


# ---- flags and files beside weights


def test_flags_choose_the_model():
    assert models.chosen(Options(loadVLBERT='x')) == 'vlbert' and models.chosen(Options(loadLXMERTQA='x')) == 'lxmert'
    assert models.chosen(Options()) is None and models.chosen(Options(model='vlbert', load='x')) == 'vlbert'
    with pytest.raises(ValueError, match='--model lxmert and --loadVLBERT: those are weights of the model vlbert'):
        models.chosen(Options(model='lxmert', loadVLBERT='x'))
    with pytest.raises(ValueError, match='--loadLXMERT and --loadVLBERT: a model can start from only one'):
        Options(loadLXMERT='x', loadVLBERT='y')


def test_the_recipe_follows_the_flags():
    assert heads.recipe('vqa').rate(256) == pytest.approx(1.6e-4) and heads.recipe('vqa', Options(mceLoss=True)).loss == 'CE'
    both, alone = heads.recipe('pretrain', Options()), heads.recipe('pretrain', Options(withoutText=True))
    assert both.rate(both.batch_size) == alone.rate(alone.batch_size) == pytest.approx(2.56e-5)
    assert 'aux_text_visual_embedding.weight' not in models.build('vlbert', 'pretrain', config(), (), Options(
        withoutText=True)).original_state()
    with pytest.raises(ValueError, match='has no recipe for the task chess'):
        heads.recipe('chess')


def test_answers_beside_a_published_model_are_read_as_its_code_does(tmp_path):
    (tmp_path / 'answers_vqa.txt').write_text('<unk>\nYes\nt-shirt\n1,000\nst. louis\nred, white\n4:30\n')
    assert answers_beside(tmp_path / 'vqa.model') == ['<unk>', 'yes', 't shirt', '1000', 'st louis', 'red white', '4:30']


@pytest.mark.shared
def test_answers_of_the_originals_case():
    folder = SHARED / 'vlbert_cases/vqa'
    expected = json.loads((folder / 'expected.json').read_text())['answer_vocab as the program has it']
    assert read_answers(folder / 'vqa/answers_vqa.txt') == expected
