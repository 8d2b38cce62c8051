"""The model equals Hugging Face's LXMERT and keeps what looks like a mistake but is in the original code."""

import copy
import json
import random

import pytest
import torch
import torch.nn.functional as F
from transformers import LxmertConfig, LxmertForPreTraining

import lxrt.optimization
import lxrt.tokenization
from bert import layers
from bert.optimization import BertAdam
from bert.tokenization import BertTokenizer
from lxrt import modeling
from lxrt import pretraining as pretraining_module
from lxrt.entry import LXRTEncoder
from lxrt.modeling import (
    LxrtConfig,
    LXRTFeatureExtraction,
    LXRTModel,
    LXRTPretraining,
    answer_layers,
    attention_names,
    layer_names,
)

torch.set_num_threads(1)  # on models this small, 2 s instead of 25 on two busy cores

TINY = {
    'vocab_size': 40, 'hidden_size': 16, 'num_attention_heads': 4, 'intermediate_size': 24, 'type_vocab_size': 2,
    'max_position_embeddings': 24, 'l_layers': 2, 'x_layers': 2, 'r_layers': 1, 'visual_feat_dim': 6,
    'num_object_labels': 7, 'num_attr_labels': 5,
}
ANSWERS = 9
KEYS = ['Mask_LM', 'Matched', 'Obj', 'Attr', 'Feat', 'QA']


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def tiny(**changes):
    return LxrtConfig(**{**TINY, **changes})


def random_sizes(seed):
    rng = random.Random(seed)
    heads = rng.choice([1, 2, 3])
    sizes = {name: rng.randint(3, 30) for name in ('intermediate_size', 'visual_feat_dim', 'num_object_labels',
                                                   'num_attr_labels')}
    layers = {name: rng.randint(1, 3) for name in ('l_layers', 'x_layers', 'r_layers')}
    return {**TINY, **sizes, **layers, 'num_attention_heads': heads, 'hidden_size': heads * rng.randint(3, 8)}


def randomise(model, seed=0):
    """Random biases and layer norms too, so that a forgotten one changes results."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(0, 0.3, generator=generator).add_(name.endswith('LayerNorm.weight') or 'layer_norm.weight' in name)
    return model.eval()


def pretraining(config=None, **options):
    return randomise(LXRTPretraining(config or tiny(), num_answers=ANSWERS, **options))


def make_batch(config, b=3, t=7, o=5, padded=False, seed=0):
    """Arguments of LXRTPretraining.forward with labels; each kind of label has one that is ignored."""
    g = torch.Generator().manual_seed(seed)

    def draw(high, *shape):
        return torch.randint(high, shape, generator=g)

    words = torch.arange(t) < torch.tensor([t, 3, t - 2])[:b, None]
    regions = torch.arange(o) < torch.tensor([o - 1, o, 2])[:b, None]
    masked = torch.rand(b, t, generator=g) < 0.4
    masked[0, :2] = torch.tensor([False, True])
    obj, attr = draw(config.num_object_labels, b, o), draw(config.num_attr_labels, b, o)
    obj[0, 1] = attr[1, 0] = -1
    real = regions.float() if padded else torch.ones(b, o)
    return {
        'input_ids': draw(config.vocab_size - 1, b, t) + 1,
        'token_type_ids': draw(2, b, t),
        'attention_mask': words if padded else None,
        'masked_lm_labels': draw(config.vocab_size, b, t).where(masked & (words if padded else True), -1),
        'visual_feats': torch.randn(b, o, config.visual_feat_dim, generator=g),
        'pos': torch.rand(b, o, 4, generator=g),
        'obj_labels': {
            'obj': (obj, torch.rand(b, o, generator=g) * real),
            'attr': (attr, torch.rand(b, o, generator=g) * real),
            'feat': (torch.randn(b, o, config.visual_feat_dim, generator=g), draw(2, b, o).float() * real),
        },
        'matched_label': torch.tensor([1, 0, 1])[:b],
        'ans': torch.tensor([4, -1, 8])[:b],
        'visual_attention_mask': regions if padded else None,
    }


def body_inputs(batch):
    return (batch['input_ids'], batch['token_type_ids'], batch['attention_mask'], (batch['visual_feats'], batch['pos']),
            batch['visual_attention_mask'])


def body(model, batch):
    return model.bert(*body_inputs(batch))


def masks(batch):
    """Which words (b, t) and which regions (b, o) are not padding."""
    shapes = batch['input_ids'].shape, batch['pos'].shape[:2]
    return [torch.ones(shape, dtype=torch.bool) if batch[name] is None else batch[name]
            for name, shape in zip(('attention_mask', 'visual_attention_mask'), shapes, strict=True)]


# ---------------------------------------------------------------------------- parity with Hugging Face


def reference(model, sizes, **options):
    """Hugging Face's model with our weights, by name."""
    config = LxmertConfig(**sizes, num_qa_labels=ANSWERS, visual_loss_normalizer=1 / 0.15, **options)
    reference_model = LxmertForPreTraining(config).eval()
    state = {'lxmert.' + name[5:] if name.startswith('bert.') else name: p for name, p in model.state_dict().items()}
    reference_model.load_state_dict(state, strict=True)
    return reference_model


def hf_inputs(batch):
    return {
        'input_ids': batch['input_ids'], 'token_type_ids': batch['token_type_ids'],
        'attention_mask': batch['attention_mask'], 'visual_feats': batch['visual_feats'], 'visual_pos': batch['pos'],
        'visual_attention_mask': batch['visual_attention_mask'],
    }


def ignore_100(labels):
    return labels.masked_fill(labels == -1, -100)


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('seed', range(4))
def test_states_and_logits_equal_hugging_face(seed, padded):
    sizes = random_sizes(seed)
    model = pretraining(LxrtConfig(**sizes))
    hf_model, batch = reference(model, sizes), make_batch(model.bert.config, padded=padded, seed=seed)
    words, regions = masks(batch)
    with torch.no_grad():
        (lang, visn), pooled = body(model, batch)
        hf_body, hf_heads = hf_model.lxmert(**hf_inputs(batch)), hf_model(**hf_inputs(batch))
        _, answers = model(**batch)
        assert lang.std() > 0.1 and visn.std() > 0.1 and pooled.std() > 0.01
        close(lang[words], hf_body.language_output[words])
        close(visn[regions], hf_body.vision_output[regions])
        close(pooled, hf_body.pooled_output)
        close(model.cls.predictions(lang)[words], hf_heads.prediction_logits[words])
        close(model.cls.seq_relationship(pooled), hf_heads.cross_relationship_score)
        close(answers, hf_heads.question_answering_score)
        logits = model.obj_predict_head(visn[regions])
        expected = hf_model.obj_predict_head(hf_body.vision_output[regions])
        assert list(logits) == list(expected) == ['obj', 'attr', 'feat']
        for kind in logits:
            close(logits[kind], expected[kind])


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('seed', range(4))
def test_the_states_after_every_layer_equal_hugging_face_and_are_0_at_padding(seed, padded):
    sizes = random_sizes(seed)
    model = pretraining(LxrtConfig(**sizes))
    hf_model, batch = reference(model, sizes).lxmert, make_batch(model.bert.config, padded=padded, seed=seed)
    embedded = []  # which Hugging Face does not return
    for module in (hf_model.embeddings, hf_model.encoder.visn_fc):
        module.register_forward_hook(lambda _, args, out: embedded.append(out))
    with torch.no_grad():
        hf = hf_model(**hf_inputs(batch), output_hidden_states=True)
        states, pooled, hidden = model.bert(*body_inputs(batch), hidden_states=True)
        plain, plain_pooled = body(model, batch)
    expected = [(embedded[0], *hf.language_hidden_states), (embedded[1], *hf.vision_hidden_states)]
    for side, expected_side, names, mask in zip(hidden, expected, layer_names(model.bert.config), masks(batch), strict=True):
        assert list(side) == names
        for ours, expected_states in zip(side.values(), expected_side, strict=True):
            close(ours[mask], expected_states[mask])
            assert not ours[~mask].any() and ours[mask].std() > 0.1
    assert torch.equal(pooled, plain_pooled)
    for ours, same in zip(states, plain, strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize('no_regions', [False, True], ids=['regions', 'no regions'])
@pytest.mark.parametrize('packed', [set(), {'cpu'}], ids=['padded', 'packed'])
def test_states_are_0_at_padding_however_they_are_computed(packed, no_regions, monkeypatch):
    monkeypatch.setattr(layers, 'PACK_SEQUENCES', packed)
    model, batch = randomise(LXRTModel(tiny())), make_batch(tiny(), padded=True)
    if no_regions:
        batch['visual_attention_mask'][1] = False
    _, pooled, (words, regions) = model(*body_inputs(batch), pooled_only=True, hidden_states=True)
    close(pooled, model(*body_inputs(batch), pooled_only=True)[1])
    for states, mask in ((words, batch['attention_mask']), (regions, batch['visual_attention_mask'])):
        for layer in states.values():
            assert not layer[~mask].any() and layer[mask].all(-1).all()


def test_the_states_of_a_sentence_with_two_images():
    model, batch = randomise(LXRTModel(tiny())), make_batch(tiny(), padded=True)
    inputs = body_inputs(batch)
    twice = (*inputs[:3], tuple(x.repeat_interleave(2, 0) for x in inputs[3]), inputs[4].repeat_interleave(2, 0))
    once, both = model(*inputs, hidden_states=True)[2], model(*twice, hidden_states=True)[2]
    for one, two in zip(once, both, strict=True):
        for name, states in one.items():
            close(two[name], states if name.startswith('lang') else states.repeat_interleave(2, 0))


def sides(name):
    """Who attends to whom in an attention of `attention_names`: 0 words, 1 regions."""
    layer, _, which = name.partition('.')
    return {'lang': (0, 0), 'visn': (1, 1), 'rel': (1, 1), 'lang_to_visn': (0, 1), 'visn_to_lang': (1, 0)}[
        which or layer.rstrip('0123456789')]


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('seed', range(4))
def test_the_attention_of_every_layer_equals_hugging_face_and_is_0_at_padding(seed, padded):
    sizes = random_sizes(seed)
    model = pretraining(LxrtConfig(**sizes))
    hf_model, batch = reference(model, sizes).lxmert, make_batch(model.bert.config, padded=padded, seed=seed)
    inside = []  # Hugging Face returns one of the four attentions of a cross layer
    for layer in hf_model.encoder.x_layers:
        for module in (layer.visual_attention.att, layer.lang_self_att.self, layer.visn_self_att.self):
            module.dropout.register_forward_hook(lambda _, args, out: inside.append(out))
    with torch.no_grad():
        hf = hf_model(**hf_inputs(batch), output_attentions=True)
        states, pooled, attention = model.bert(*body_inputs(batch), return_attention=True)
        plain, plain_pooled = body(model, batch)
    expected = [*hf.language_attentions, *hf.vision_attentions, *inside]
    assert list(attention) == attention_names(model.bert.config)
    for (name, ours), expected_weights in zip(attention.items(), expected, strict=True):
        rows, columns = (masks(batch)[side] for side in sides(name))
        real = (rows[:, None, :, None] & columns[:, None, None, :]).expand(ours.shape)
        close(ours[real], expected_weights[real])
        assert not ours[~real].any()
        close(ours.sum(-1), rows[:, None].expand(ours.shape[:3]).float())
    for i, weights in enumerate(hf.cross_encoder_attentions, 1):
        assert torch.equal(weights, inside[4 * i - 4])  # the hooks record what it returns
    for ours, same, mask in zip(states, plain, masks(batch), strict=True):
        close(ours[mask], same[mask])
    close(pooled, plain_pooled)


@pytest.mark.parametrize('no_regions', [False, True], ids=['regions', 'no regions'])
@pytest.mark.parametrize('packed', [set(), {'cpu'}], ids=['padded', 'packed'])
def test_attention_is_0_at_padding_and_changes_no_result_and_no_gradient(packed, no_regions, monkeypatch):
    """Also together with hidden states, with checkpointing, and for an image without regions, to which words still attend."""
    monkeypatch.setattr(layers, 'PACK_SEQUENCES', packed)
    batch = make_batch(tiny(), padded=True)
    if no_regions:
        batch['visual_attention_mask'][1] = False
    results = []
    for record in (False, True):
        model = randomise(LXRTModel(tiny(attention_probs_dropout_prob=0.0, hidden_dropout_prob=0.0))).train()
        model.encoder.gradient_checkpointing = True
        states, pooled, *inside = model(*body_inputs(batch), hidden_states=record, return_attention=record)
        pooled.sum().backward()
        results.append([*(side[mask] for side, mask in zip(states, masks(batch), strict=True)), pooled,
                        *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[1]) > 20
    for plain, recorded in zip(*results, strict=True):
        close(recorded, plain)
    hidden, attention = inside
    assert [list(side) for side in hidden] == list(layer_names(tiny())) and list(attention) == attention_names(tiny())
    for name, weights in attention.items():
        rows, columns = (masks(batch)[side] for side in sides(name))
        real = (rows[:, None, :, None] & columns[:, None, None, :]).expand(weights.shape)
        assert not weights[~real].any() and weights[real].all()


def test_the_gradient_with_respect_to_attention_is_the_slope_of_the_result(monkeypatch):
    """One probability at a time is changed a little after the softmax."""
    model, batch = randomise(LXRTModel(tiny())).double(), make_batch(tiny(), padded=True)
    inputs = [(item[0].double(), item[1].double()) if isinstance(item, tuple) else item for item in body_inputs(batch)]
    _, pooled, attention = model(*inputs, return_attention=True)
    gradients = dict(zip(attention, torch.autograd.grad(pooled.sum(), list(attention.values()), allow_unused=True), strict=True))
    last = f'cross{tiny().x_layers}'
    assert {name for name, gradient in gradients.items() if gradient is None} == {f'{last}.visn_to_lang', f'{last}.visn'}
    plain = layers.record_attention
    for name, place in (('lang1', (0, 1, 2, 3)), ('rel1', (1, 0, 4, 2)), ('cross1.visn_to_lang', (0, 3, 1, 5)),
                        ('cross2.lang_to_visn', (2, 2, 0, 1)), ('cross2.lang', (1, 1, 0, 2))):
        sums = []
        for step in (-1e-6, 1e-6):
            def changed(weights, queries, keys, attentions, step=step, name=name, place=place):
                if len(attentions) == list(attention).index(name):
                    weights = weights.index_put([torch.tensor(i) for i in place], torch.tensor(step, dtype=weights.dtype), True)
                return plain(weights, queries, keys, attentions)

            monkeypatch.setattr(layers, 'record_attention', changed)
            with torch.no_grad():
                sums.append(model(*inputs, return_attention=True)[1].sum())
        slope = float(sums[1] - sums[0]) / 2e-6
        assert abs(slope) > 1e-5 and abs(float(gradients[name][place]) - slope) < 1e-6 + 1e-4 * abs(slope), name


def test_the_attention_of_a_sentence_with_two_images():
    model, batch = randomise(LXRTModel(tiny())), make_batch(tiny(), padded=True)
    inputs = body_inputs(batch)
    twice = (*inputs[:3], tuple(x.repeat_interleave(2, 0) for x in inputs[3]), inputs[4].repeat_interleave(2, 0))
    once, both = model(*inputs, return_attention=True)[2], model(*twice, return_attention=True)[2]
    for name, weights in once.items():
        close(both[name], weights if name.startswith('lang') else weights.repeat_interleave(2, 0))


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('seed', range(3))
def test_every_loss_equals_hugging_face(seed, padded):
    sizes = random_sizes(10 + seed)
    model = pretraining(LxrtConfig(**sizes))
    batch = make_batch(model.bert.config, padded=padded, seed=seed)
    labels = {
        'Mask_LM': {'labels': ignore_100(batch['masked_lm_labels'])},
        'Matched': {'matched_label': batch['matched_label']},
        'QA': {'ans': ignore_100(batch['ans'])},
    }
    regions = {kind: (ignore_100(target) if kind != 'feat' else target, weight)
               for kind, (target, weight) in batch['obj_labels'].items()}
    # Hugging Face's is a mean over padded regions too; these have weight 0 here, so only the divisor differs.
    o = batch['visual_feats'].shape[1] * 3
    share = o / (batch['visual_attention_mask'].sum() if padded else o)
    with torch.no_grad():
        losses, _ = model(**batch)
        assert list(losses) == KEYS and min(losses.values()) > 0.01
        hf_model = reference(model, sizes)
        for name, label in labels.items():
            close(losses[name], hf_model(**hf_inputs(batch), **label).loss)
        all_losses = hf_model.visual_losses
        for kind in regions:
            hf_model.visual_losses = {kind: all_losses[kind]}  # it returns the sum of these
            close(losses[kind.capitalize()], hf_model(**hf_inputs(batch), obj_labels=regions).loss * share)


def test_gradients_of_the_total_equal_hugging_face():
    model = pretraining(tiny())
    hf_model, batch = reference(model, TINY), make_batch(tiny())
    sum(model(**batch)[0].values()).backward()
    labels = {kind: (ignore_100(target) if kind != 'feat' else target, weight)
              for kind, (target, weight) in batch['obj_labels'].items()}
    hf_model(**hf_inputs(batch), labels=ignore_100(batch['masked_lm_labels']), obj_labels=labels,
             matched_label=batch['matched_label'], ans=ignore_100(batch['ans'])).loss.backward()
    hf_parameters = dict(hf_model.named_parameters())
    for name, p in model.named_parameters():
        close(p.grad, hf_parameters['lxmert.' + name[5:] if name.startswith('bert.') else name].grad)


# ---------------------------------------------------------------------------- what looks like a mistake and stays


def test_cross_attention_has_one_set_of_weights_and_starts_from_the_inputs():
    """If the weights of the two sides are equal, swapping the inputs must swap the outputs. That fails if the directions
    have separate weights, or if one starts from the other's result."""
    layer = pretraining().bert.encoder.x_layers[0]
    for part in ('self_att', 'inter', 'output'):
        getattr(layer, f'visn_{part}').load_state_dict(getattr(layer, f'lang_{part}').state_dict())
    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    padded, unpadded = (layers.PackedSequences(real, 2, 5, torch.device('cpu')) for real in (mask, None))
    one, other = (torch.randn(rows, 16, generator=torch.Generator().manual_seed(rows)) for rows in (8, 10))
    lang, visn = layer(one, other, padded, unpadded)
    swapped_lang, swapped_visn = layer(other, one, unpadded, padded)
    close(swapped_visn, lang)
    close(swapped_lang, visn)
    assert (lang - visn[:8]).abs().max() > 0.1


def test_row_0_of_word_position_and_segment_embeddings_gets_no_gradient():
    model, batch = pretraining(task_mask_lm=False), make_batch(tiny())
    batch['input_ids'][0, 0] = 0
    sum(model(**batch)[0].values()).backward()
    embeddings = model.bert.embeddings
    for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
        assert table.padding_idx == 0
        assert not table.weight.grad[0].any()
    assert embeddings.position_embeddings.weight.grad[1:7].abs().sum(1).min() > 0
    assert embeddings.token_type_embeddings.weight.grad[1].any()
    assert embeddings.word_embeddings.weight.grad[batch['input_ids'][1]].abs().sum(1).min() > 0


def test_only_the_last_cross_layers_visual_side_gets_no_gradient_from_the_pooled_vector():
    model, batch = randomise(LXRTFeatureExtraction(tiny(), 'x')), make_batch(tiny())
    model(batch['input_ids'], None, None, (batch['visual_feats'], batch['pos'])).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    names = ['visn_self_att.self.query', 'visn_self_att.self.key', 'visn_self_att.self.value',
             'visn_self_att.output.dense', 'visn_self_att.output.LayerNorm', 'visn_inter.dense', 'visn_output.dense',
             'visn_output.LayerNorm']
    assert without == {f'bert.encoder.x_layers.1.{name}.{kind}' for name in names for kind in ('weight', 'bias')}


# ---------------------------------------------------------------------------- losses


def plain_visual_losses(model, batch):
    """The rule of the original code, region by region; padded regions (visual_attention_mask 0) do not exist."""
    (_, visn), _ = body(model, batch)
    logits, mask = model.obj_predict_head(visn), batch['visual_attention_mask']
    losses = {}
    for kind, (target, weight) in batch['obj_labels'].items():
        total, count = 0.0, 0
        for i in range(visn.shape[0]):
            for j in range(visn.shape[1]):
                if mask is not None and not mask[i, j]:
                    continue
                count += 1
                if kind == 'feat':
                    gap = (logits[kind][i, j] - target[i, j]).abs()
                    loss = sum(0.5 * x * x if x < 1 else x - 0.5 for x in gap.tolist()) / len(gap)
                elif target[i, j] == -1:
                    continue
                else:
                    loss = -logits[kind][i, j].log_softmax(0)[target[i, j]].item()
                total += loss * weight[i, j].item()
        losses[kind.capitalize()] = torch.tensor(total / count / 0.15)
    return losses


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
def test_visual_losses_are_means_over_all_regions_that_are_not_padding(padded):
    """Weights of padded regions are not 0 here: only the mask excludes them."""
    model, batch = pretraining(), make_batch(tiny(), padded=padded)
    batch['obj_labels'] = make_batch(tiny())['obj_labels']
    losses, _ = model(**batch)
    for name, expected in plain_visual_losses(model, batch).items():
        close(losses[name].detach(), expected)


def test_words_are_predicted_at_masked_positions_only_and_equal_the_plain_form():
    model, batch = pretraining(), make_batch(tiny(), padded=True)
    (lang, _), _ = body(model, batch)
    labels = batch['masked_lm_labels']
    plain = F.cross_entropy(model.cls.predictions(lang).flatten(0, 1), labels.flatten(), ignore_index=-1)
    shapes = []
    model.cls.predictions.decoder.register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    close(model(**batch)[0]['Mask_LM'], plain)
    assert shapes == [((labels != -1).sum(), TINY['vocab_size'])]


def test_losses_over_nothing_are_0_and_backward_works():
    model, batch = pretraining(), make_batch(tiny(), padded=True)
    for name in ('masked_lm_labels', 'matched_label', 'ans'):
        batch[name] = torch.full_like(batch[name], -1)
    batch['visual_attention_mask'] = torch.zeros_like(batch['visual_attention_mask'])
    losses, _ = model(**batch)
    assert list(losses) == KEYS
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, p in model.named_parameters():
        assert p.grad is None or not p.grad.any(), name  # NaN counts as any


def test_losses_are_those_asked_for():
    batch = make_batch(tiny())
    cases = [
        ({}, KEYS),
        ({'visual_losses': 'feat'}, ['Mask_LM', 'Matched', 'Feat', 'QA']),
        ({'visual_losses': ''}, ['Mask_LM', 'Matched', 'QA']),
        ({'task_obj_predict': False}, ['Mask_LM', 'Matched', 'QA']),
        ({'task_mask_lm': False, 'task_qa': False}, ['Matched', 'Obj', 'Attr', 'Feat']),
        ({'task_matched': False}, ['Mask_LM', 'Obj', 'Attr', 'Feat', 'QA']),
    ]
    for options, keys in cases:
        losses, logits = pretraining(**options)(**batch)
        assert set(losses) == set(keys)
        assert (logits is None) == (options.get('task_qa') is False)
    losses, logits = pretraining()(**{**batch, 'masked_lm_labels': None, 'obj_labels': None, 'matched_label': None,
                                      'ans': None})
    assert losses == {} and logits.shape == (3, ANSWERS)
    with pytest.raises(ValueError, match='box'):
        LXRTPretraining(tiny(), visual_losses='obj,box')


# ---------------------------------------------------------------------------- padding


def test_a_ragged_batch_equals_each_example_alone():
    """Padding of words and regions must not change any result."""
    config, words, regions = tiny(), [7, 3, 5], [4, 5, 2]
    model = randomise(LXRTFeatureExtraction(config, 'lxr'))
    batch = make_batch(config, padded=True)
    assert batch['attention_mask'].sum(1).tolist() == words
    assert batch['visual_attention_mask'].sum(1).tolist() == regions
    (lang, visn), pooled = model(batch['input_ids'], batch['token_type_ids'], batch['attention_mask'],
                                 (batch['visual_feats'], batch['pos']), batch['visual_attention_mask'])
    for i, (t, o) in enumerate(zip(words, regions, strict=True)):
        (lang_alone, visn_alone), pooled_alone = model(
            batch['input_ids'][i:i + 1, :t], batch['token_type_ids'][i:i + 1, :t], None,
            (batch['visual_feats'][i:i + 1, :o], batch['pos'][i:i + 1, :o]))
        close(lang[i, :t], lang_alone[0])
        close(visn[i, :o], visn_alone[0])
        close(pooled[i], pooled_alone[0])


def test_ragged_losses_equal_those_of_the_examples_alone():
    """Mean over real regions of the batch = each example's mean weighted by its number of regions."""
    model, batch, regions = pretraining(), make_batch(tiny(), padded=True), [4, 5, 2]
    losses, _ = model(**batch)
    sums = dict.fromkeys(['Obj', 'Attr', 'Feat'], 0.0)
    for i, o in enumerate(regions):
        labels = {kind: (x[i:i + 1, :o], weight[i:i + 1, :o]) for kind, (x, weight) in batch['obj_labels'].items()}
        alone, _ = model(batch['input_ids'][i:i + 1], batch['token_type_ids'][i:i + 1], batch['attention_mask'][i:i + 1],
                         visual_feats=batch['visual_feats'][i:i + 1, :o], pos=batch['pos'][i:i + 1, :o],
                         obj_labels=labels)
        for name in sums:
            sums[name] = sums[name] + alone[name] * o / sum(regions)
    for name, expected in sums.items():
        close(losses[name], expected)


def test_sentences_cut_to_their_length_equal_sentences_padded_to_20():
    model, config = randomise(LXRTFeatureExtraction(tiny(), 'lxr')), tiny()
    batch = make_batch(config)
    ids = F.pad(batch['input_ids'], (0, 13))
    visual_feats = (batch['visual_feats'], batch['pos'])
    (lang, visn), pooled = model(ids, None, ids != 0, visual_feats)
    (lang_cut, visn_cut), pooled_cut = model(ids[:, :7], None, ids[:, :7] != 0, visual_feats)
    close(lang[:, :7], lang_cut)
    close(visn, visn_cut)
    close(pooled, pooled_cut)


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('x_layers', [0, 1, 2])
def test_the_pooled_vector_alone_equals_that_of_the_full_model_gradients_too(x_layers, padded):
    """Mode 'x' computes in the last cross layer only what the pooler reads."""
    batch = make_batch(tiny(), padded=padded)
    pooled, gradients, widths = {}, {}, []
    for mode in ('lxr', 'x'):
        model = randomise(LXRTFeatureExtraction(tiny(x_layers=x_layers), mode))
        if mode == 'x' and x_layers:
            model.bert.encoder.x_layers[-1].lang_inter.register_forward_hook(lambda _, args, out: widths.append(len(out)))
        out = model(batch['input_ids'], batch['token_type_ids'], batch['attention_mask'],
                    (batch['visual_feats'], batch['pos']), batch['visual_attention_mask'])
        pooled[mode] = out[1] if mode == 'lxr' else out
        pooled[mode].square().sum().backward()
        gradients[mode] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    close(pooled['x'], pooled['lxr'])
    assert set(gradients['x']) == set(gradients['lxr'])
    for name, gradient in gradients['x'].items():
        close(gradient, gradients['lxr'][name])
    assert widths == ([3] if x_layers else [])


def test_an_image_without_regions_is_answered_the_same_packed_or_not(monkeypatch):
    model, batch, pooled = randomise(LXRTFeatureExtraction(tiny(), 'x')), make_batch(tiny(), padded=True), []
    batch['visual_attention_mask'][1] = False
    for packed in (set(), {'cpu'}):
        monkeypatch.setattr(layers, 'PACK_SEQUENCES', packed)
        pooled.append(model(batch['input_ids'], None, batch['attention_mask'], (batch['visual_feats'], batch['pos']),
                            batch['visual_attention_mask']))
    close(*pooled)


def losses_and_gradients(padded, checkpointing=False, dropout=0.0):
    """Of a pre-training step; and how many rows a language layer and a relationship layer computed."""
    config = tiny(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    model, rows = pretraining(config).train(), []
    model.bert.encoder.gradient_checkpointing = checkpointing
    for layer in (model.bert.encoder.layer[0], model.bert.encoder.r_layers[0]):
        layer.intermediate.register_forward_hook(lambda _, args, out: rows.append(len(out)))
    torch.manual_seed(0)
    losses, answers = model(**make_batch(config, padded=padded))
    sum(losses.values()).backward()
    return losses | {'answers': answers, **{name: p.grad for name, p in model.named_parameters()}}, rows


SETTINGS = ('PACK_SEQUENCES', 'FUSED_QKV', 'EAGER_ATTENTION')


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
@pytest.mark.parametrize('settings', [(), *((name,) for name in SETTINGS), SETTINGS], ids='+'.join)
def test_what_differs_by_device_computes_the_same(settings, padded, monkeypatch):
    """Each setting alone, none and all; gradients too. Packed layers do not compute padding."""
    for name in SETTINGS:
        monkeypatch.setattr(layers, name, set())
    expected, rows = losses_and_gradients(padded)
    assert rows == [21, 15]
    for name in settings:
        monkeypatch.setattr(layers, name, {'cpu'})
    results, rows = losses_and_gradients(padded)
    assert rows == ([7 + 3 + 5, 4 + 5 + 2] if padded and 'PACK_SEQUENCES' in settings else [21, 15])
    for name, value in expected.items():
        close(results[name], value)


def test_checkpointing_computes_the_same_twice():
    """Dropout draws the same in both passes."""
    kept, rows = losses_and_gradients(True, dropout=0.3)
    again, twice = losses_and_gradients(True, checkpointing=True, dropout=0.3)
    assert sorted(twice) == sorted(rows * 2)
    for name, value in kept.items():
        assert torch.equal(again[name], value), name


# ---------------------------------------------------------------------------- names, sizes, initial weights


def both(prefix, *names):
    return [f'{prefix}{name}.{kind}' for name in names for kind in ('weight', 'bias')]


ATTENTION = ['self.query', 'self.key', 'self.value', 'output.dense', 'output.LayerNorm']
LAYER = [f'attention.{name}' for name in ATTENTION] + ['intermediate.dense', 'output.dense', 'output.LayerNorm']
CROSS = [
    'visual_attention.att.query', 'visual_attention.att.key', 'visual_attention.att.value',
    'visual_attention.output.dense', 'visual_attention.output.LayerNorm',
    *(f'{side}_self_att.{name}' for side in ('lang', 'visn') for name in ATTENTION),
    *(f'{side}_{name}' for side in ('lang', 'visn') for name in ('inter.dense', 'output.dense', 'output.LayerNorm')),
]
BODY = [
    'embeddings.word_embeddings.weight', 'embeddings.position_embeddings.weight',
    'embeddings.token_type_embeddings.weight', *both('embeddings.', 'LayerNorm'),
    *both('encoder.visn_fc.', 'visn_fc', 'visn_layer_norm', 'box_fc', 'box_layer_norm'),
    *both('encoder.layer.0.', *LAYER), *both('encoder.layer.1.', *LAYER), *both('encoder.r_layers.0.', *LAYER),
    *both('encoder.x_layers.0.', *CROSS), *both('encoder.x_layers.1.', *CROSS), *both('pooler.', 'dense'),
]
HEADS = [
    'cls.predictions.bias', 'cls.predictions.decoder.weight',
    *both('cls.', 'predictions.transform.dense', 'predictions.transform.LayerNorm', 'seq_relationship'),
    *both('obj_predict_head.', 'transform.dense', 'transform.LayerNorm', 'decoder_dict.obj', 'decoder_dict.attr',
          'decoder_dict.feat'),
    *both('answer_head.logit_fc.', '0', '2', '3'),
]


def test_parameter_names_are_the_originals():
    bert = {f'bert.{name}' for name in BODY}
    assert set(pretraining().state_dict()) == bert | set(HEADS)
    assert set(LXRTFeatureExtraction(tiny()).state_dict()) == bert
    assert set(LXRTModel(tiny()).state_dict()) == set(BODY)
    assert set(LXRTEncoder(tiny()).state_dict()) == {f'model.{name}' for name in bert}


def test_the_import_paths_of_the_original_code_work():
    assert modeling.LXRTPretraining is pretraining_module.LXRTPretraining
    assert lxrt.tokenization.BertTokenizer is BertTokenizer and lxrt.optimization.BertAdam is BertAdam
    with pytest.raises(AttributeError, match='LXRTPreTraining'):
        modeling.LXRTPreTraining  # noqa: B018


def test_the_word_decoder_is_tied_to_the_word_embeddings():
    model = pretraining()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert 'cls.predictions.decoder.weight' not in dict(model.named_parameters())


def test_lxr955_on_the_meta_device_has_the_papers_size():
    d, ffn, vocabulary, features, answers = 768, 3072, 30522, 2048, 9500

    def linear(n, m):
        return n * m + m

    norm = 2 * d
    attention = 4 * linear(d, d) + norm
    feed_forward = linear(d, ffn) + linear(ffn, d) + norm
    transform = linear(d, d) + norm
    expected = (
        (vocabulary + 512 + 2) * d + norm
        + linear(features, d) + linear(4, d) + 2 * norm
        + (9 + 5) * (attention + feed_forward)
        + 5 * (3 * attention + 2 * feed_forward)  # three attentions: the cross attention is shared
        + linear(d, d)
        + transform + vocabulary + linear(d, 2)  # the decoder is tied
        + transform + linear(d, 1600) + linear(d, 400) + linear(d, features)
        + linear(d, 2 * d) + 2 * 2 * d + linear(2 * d, answers)
    )
    with torch.device('meta'):
        model = LXRTPretraining(LxrtConfig(), num_answers=answers)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == expected
    assert not list(model.buffers())


def test_initial_weights_are_berts():
    torch.manual_seed(0)
    model = LXRTPretraining(tiny(hidden_size=64, intermediate_size=128, initializer_range=0.02), num_answers=ANSWERS)
    drawn = []
    for name, p in model.named_parameters():
        if name.endswith('bias'):
            assert not p.any(), name
        elif p.dim() == 1:
            assert (p == 1).all(), name
        else:
            drawn.append(p.flatten())
            assert 0.015 < p.std() < 0.025 or p.numel() < 500, name
            assert p[0].any(), name  # row 0 of the embeddings is drawn as well, as in the original code
    drawn = torch.cat(drawn)
    assert abs(drawn.mean()) < 1e-4 and abs(drawn.std() - 0.02) < 1e-4


@pytest.mark.parametrize('images', [1, 2])
def test_answer_layers_are_twice_the_hidden_size_wide_for_one_image_and_for_a_pair(images):
    layers = answer_layers(tiny(), 3, images)
    assert [tuple(p.shape) for p in layers.state_dict().values()] == [(32, 16 * images), (32,), (32,), (32,), (3, 32), (3,)]


# ---------------------------------------------------------------------------- dropout, precision, modes


@pytest.mark.parametrize('kind', ['hidden_dropout_prob', 'attention_probs_dropout_prob'])
def test_dropout_acts_in_training_only(kind):
    off = {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
    batch = make_batch(tiny())
    outputs = []
    for config in (tiny(**off), tiny(**{**off, kind: 0.3})):
        model = pretraining(config)
        still = body(model, batch)[1]
        outputs.append((still, body(model.train(), batch)[1]))
    (still, moving), (still_with, moving_with) = outputs
    close(moving, still)
    close(still_with, still)
    assert (moving_with - still).abs().max() > 1e-3


@pytest.mark.parametrize(('rate', 'dtype'), [(0.1, torch.float32), (0.1, torch.bfloat16), (0.37, torch.float32)])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(rate, dtype):
    torch.manual_seed(0)
    x = torch.ones(1001, 999, dtype=dtype, requires_grad=True)
    out = layers.dropout(x, rate)
    out.sum().backward()
    dropped = out == 0
    deviation = (rate * (1 - rate) / x.numel()) ** 0.5
    assert abs(dropped.float().mean() - rate) < 5 * deviation
    assert (dropped.float().mean(0) - rate).abs().max() < 5 * deviation * 999 ** 0.5  # no column is special
    torch.testing.assert_close(out[~dropped].float(), torch.full_like(out[~dropped], 1 / (1 - rate)).float(), rtol=1e-4, atol=0)
    assert torch.equal(x.grad, out)
    assert not torch.equal(layers.dropout(x, rate), out)
    assert layers.dropout(x, 0) is x or torch.equal(layers.dropout(x, 0), x)


def test_dropout_of_states_acts_wherever_it_does_at_hugging_face():
    """Except that of attention probabilities, which is no module here; it is tested above."""
    def count(model, run):
        calls = []
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Dropout) and not name.endswith(('.self.dropout', '.att.dropout')):
                module.register_forward_hook(lambda *_, name=name: calls.append(name))
        run(model.train())
        return sorted(calls)

    model, batch = pretraining(), make_batch(tiny())
    hf_model = reference(model, TINY).lxmert
    ours = count(model.bert, lambda _: body(model, batch))
    assert ours == count(hf_model, lambda _: hf_model(**hf_inputs(batch)))
    assert ours.count('encoder.visn_fc.dropout') == 1 and ours.count('encoder.x_layers.0.visual_attention.output.dropout') == 2


@pytest.mark.parametrize('padded', [False, True], ids=['unpadded', 'padded'])
def test_bf16_autocast_runs_and_comes_near(padded):
    model, batch = pretraining(), make_batch(tiny(), padded=padded)
    with torch.autocast('cpu', torch.bfloat16):
        losses, answers = model(**batch)
    exact, _ = model(**batch)
    assert answers.dtype == torch.bfloat16
    for name, loss in losses.items():
        assert loss.dtype == torch.float32, name
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0.1)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_modes_return_what_their_letters_say():
    config, batch = tiny(), make_batch(tiny())
    model = randomise(LXRTFeatureExtraction(config))
    results = {}
    for mode in ('x', 'l', 'r', 'lr', 'lx', 'xr', 'lxr'):
        model.mode = LXRTFeatureExtraction(config, mode).mode
        results[mode] = model(batch['input_ids'], visual_feats=(batch['visual_feats'], batch['pos']))
    (lang, visn), pooled = results['lxr']
    assert lang.shape == (3, 7, 16) and visn.shape == (3, 5, 16) and pooled.shape == (3, 16)
    close(results['x'], pooled)
    for mode in ('l', 'r', 'lr'):
        assert torch.equal(results[mode][0], lang) and torch.equal(results[mode][1], visn)
    for mode in ('lx', 'xr'):
        assert torch.equal(results[mode][1], pooled) and torch.equal(results[mode][0][0], lang)
    for mode, plain in results.items():
        model.mode = mode
        result, (words, regions) = model(batch['input_ids'], visual_feats=(batch['visual_feats'], batch['pos']),
                                         hidden_states=True)
        torch.testing.assert_close(result, plain)
        assert torch.equal(words['cross2'], lang) and torch.equal(regions['cross2'], visn)
    for mode in ('', 'lxrq', 'pooled'):
        with pytest.raises(ValueError, match='lxr'):
            LXRTFeatureExtraction(config, mode)


def test_the_encoder_takes_sentences_and_ids_alike(tmp_path):
    pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'is', 'the', 'cat', 'red', '##dish', '?']
    (tmp_path / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
    tokenizer = BertTokenizer(tmp_path / 'vocab.txt')
    encoder = randomise(LXRTEncoder(tiny(), tokenizer, max_seq_length=10))
    assert encoder.dim == 16
    batch = make_batch(tiny(), b=2, padded=True)
    visual_feats, mask = (batch['visual_feats'], batch['pos']), batch['visual_attention_mask']
    ids = torch.tensor([[2, 5, 6, 7, 8, 9, 10, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0, 0, 0, 0]])
    pooled = encoder(ids, visual_feats, mask)
    assert torch.equal(encoder(['Is the cat reddish?', ' red\n'], visual_feats, mask), pooled)
    # A sentence's padding does not count, nor does a region's.
    close(encoder(ids[1:, :3], tuple(x[1:] for x in visual_feats), mask[1:]), pooled[1:])
    (lang, visn), same = randomise(LXRTEncoder(tiny(), mode='lxr'))(ids, visual_feats, mask)
    assert lang.shape == (2, 10, 16) and visn.shape == (2, 5, 16)
    close(same, pooled)
    with pytest.raises(ValueError, match='tokenizer'):
        LXRTEncoder(tiny())(['red'], visual_feats)
    with pytest.raises(ValueError, match='max_position_embeddings'):
        LXRTEncoder(tiny(), max_seq_length=25)
    words, features, boxes = torch.ones(2, 3, dtype=torch.long), *(x[:2] for x in visual_feats)
    for wrong in ((features[:1], boxes[:1]), (features[..., :-1], boxes), (features, boxes[:, :-1])):
        with pytest.raises(ValueError, match=r'2 sentences: expected features \(2, o, 6\)'):
            LXRTEncoder(tiny())(words, wrong)
    with pytest.raises(ValueError, match=r'divided by the width and height of the picture, found 300\.0; are they in pixels'):
        LXRTEncoder(tiny())(words, (features, torch.full_like(boxes, 300)))


# ---------------------------------------------------------------------------- configuration

BERT_BASE = """{
  "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": false,
  "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
  "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
  "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute",
  "transformers_version": "4.6.0.dev0", "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522
}"""


def test_config_reads_berts_file_and_the_defaults_are_lxr955(tmp_path):
    (tmp_path / 'config.json').write_text(BERT_BASE)
    config = LxrtConfig.from_json(tmp_path / 'config.json')
    assert config == LxrtConfig()
    assert (config.l_layers, config.r_layers, config.x_layers) == (9, 5, 5)
    assert (config.visual_feat_dim, config.visual_pos_dim) == (2048, 4)
    assert (config.num_object_labels, config.num_attr_labels) == (1600, 400)
    (tmp_path / 'config.json').write_text(BERT_BASE.replace('768', '144'))
    assert LxrtConfig.from_json(str(tmp_path / 'config.json')) == LxrtConfig(hidden_size=144)


def test_config_reads_hugging_faces_lxmert_file_and_its_own(tmp_path):
    sizes = {**random_sizes(5), 'hidden_dropout_prob': 0.3, 'attention_probs_dropout_prob': 0.0, 'initializer_range': 0.1}
    LxmertConfig(**sizes).to_json_file(tmp_path / 'hf.json', use_diff=False)
    config = LxrtConfig.from_json(tmp_path / 'hf.json')
    assert config == LxrtConfig(**sizes)
    (tmp_path / 'ours.json').write_text(config.to_json())
    assert LxrtConfig.from_json(tmp_path / 'ours.json') == config


@pytest.mark.parametrize(('key', 'value'), [
    ('hidden_size', '768'), ('hidden_size', None), ('hidden_size', True), ('vocab_size', 0), ('l_layers', -1),
    ('l_layers', 2.5), ('hidden_size', 768.0), ('intermediate_size', float('inf')), ('vocab_size', float('nan')),
    ('visual_pos_dim', [4]), ('hidden_dropout_prob', 1), ('hidden_dropout_prob', -0.1), ('hidden_dropout_prob', '0.1'),
    ('attention_probs_dropout_prob', float('nan')), ('hidden_act', 'relu'), ('num_attention_heads', 5),
])
def test_config_faults_name_file_and_key(tmp_path, key, value):
    (tmp_path / 'config.json').write_text(json.dumps({key: value}))
    with pytest.raises(ValueError, match=rf'config\.json.*{key}'):
        LxrtConfig.from_json(tmp_path / 'config.json')


def test_config_that_is_no_json_object_or_not_there(tmp_path):
    for text in (b'{"hidden_size": 768', b'[1]', b'', b'\xff\xfe'):
        (tmp_path / 'config.json').write_bytes(text)
        with pytest.raises(ValueError, match=r'config\.json'):
            LxrtConfig.from_json(tmp_path / 'config.json')
    with pytest.raises(FileNotFoundError, match='absent'):
        LxrtConfig.from_json(tmp_path / 'absent.json')


def test_layers_may_be_none_at_all():
    """0 layers of a kind are allowed; the states are then what goes in."""
    config = tiny(l_layers=0, r_layers=0, x_layers=0)
    model, batch = pretraining(config), make_batch(tiny())
    (lang, visn), _ = body(model, batch)
    positions = torch.arange(7).expand(3, 7)
    close(lang, model.bert.embeddings(batch['input_ids'], positions, batch['token_type_ids']))
    close(visn, copy.deepcopy(model.bert.encoder.visn_fc)(batch['visual_feats'], batch['pos']))
