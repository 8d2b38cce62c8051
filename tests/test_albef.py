"""ALBEF against Hugging Face's ViT and BERT, and against the plain restatement in albef_reference.py."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from albef_reference import (
    adamw,
    answering,
    classes,
    classifying,
    contrast,
    embed,
    layers,
    pretraining,
    ranking,
    update_twins,
    vit,
    words,
)
from transformers import BertConfig, BertLMHeadModel, BertModel, ViTConfig, ViTModel

import models
from albef.config import AlbefConfig
from albef.modeling import Context
from bert.layers import PackedSequences
from optimizer import OptimizerStep
from param import Options

BERT = {'vocab_size': 60, 'hidden_size': 24, 'num_hidden_layers': 4, 'num_attention_heads': 4, 'intermediate_size': 40,
        'max_position_embeddings': 20, 'fusion_layer': 2, 'encoder_width': 24, 'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0}
TASKS = ('pretrain', 'retrieval', 'vqa', 'nlvr2', 'entailment', 'grounding', 'text_assignment')
ANSWERS = {'entailment': ['contradiction', 'neutral', 'entailment'], 'nlvr2': ['False', 'True'], 'vqa': list('abcdefg')}


def config(**changes):
    return AlbefConfig(**{'image_res': 32, 'patch_size': 8, 'vision_width': 24, 'vision_depth': 2, 'vision_heads': 4,
                          'embed_dim': 8, 'queue_size': 12, 'k_test': 3, 'bert': BERT} | changes)


def build(task, seed=1, **changes):
    """A head whose parameters, momentum models' included, are all random."""
    torch.manual_seed(seed)
    head = models.build('albef', task, config(**changes), ANSWERS.get(task))
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim:
                parameter.normal_(0, 0.2)
    return head


def batch_of(task='pretrain', b=4, seed=0):
    torch.manual_seed(seed)
    lengths = (torch.arange(b) * 3) % 7 + 3
    ids = torch.randint(4, 60, (b, 9)).masked_fill(torch.arange(9) >= lengths[:, None], 0)
    ids[:, 0] = 2
    images = 2 if task == 'nlvr2' else 1
    batch = {'examples': b, 'pixels': torch.randn(b * images, 3, 32, 32), 'input_ids': ids, 'attention_mask': (ids != 0).long()}
    if task == 'pretrain':
        chosen = (torch.rand(ids.shape) < 0.5) & (ids > 3)
        batch |= {'masked_input_ids': ids.masked_fill(chosen, 3), 'masked_lm_labels': ids.masked_fill(~chosen, -1)}
    elif task in ('retrieval', 'grounding'):
        batch['image_id'] = torch.tensor([5, 7, 5, 9, 11, 7, 2, 3])[:b]
    elif task == 'vqa':
        batch |= {'label_example': torch.tensor([0, 0, 2, 3]), 'label_answer': torch.tensor([1, 4, 0, 6]),
                  'label_score': torch.tensor([0.3, 1.0, 0.6, 0.2])}
    else:
        batch |= {'label_example': torch.arange(b), 'label_answer': torch.arange(b) % len(ANSWERS[task]),
                  'label_score': torch.ones(b)}
    return batch


def answer_ids():
    torch.manual_seed(3)
    ids = torch.randint(4, 60, (7, 5)).masked_fill(torch.arange(5) >= torch.tensor([3, 5, 4, 3, 3, 4, 5])[:, None], 0)
    ids[:, 0] = 2
    return ids


def hardest(weights):
    return weights.argmax(1)


def reference(head):
    """(the state dict of a head as leaves of autograd, tied ones once under each name, {name: leaf that is trained})."""
    state, leaves, by_id = {}, {}, {}
    parameters = {head.original_name(name): p for name, p in head.named_parameters(remove_duplicate=False)}
    for name, tensor in head.original_state().items():
        owner = parameters.get(name, tensor)
        trained = name in parameters and owner.requires_grad
        if id(owner) not in by_id:
            by_id[id(owner)] = tensor.detach().clone().requires_grad_(trained)
            if trained:
                leaves[name] = by_id[id(owner)]
        state[name] = by_id[id(owner)]
    return state, leaves


# ---- names, shapes, sizes

SIZES = {'pretrain': (844, 209.9), 'retrieval': (831, 209.6), 'vqa': (1154, 290.3), 'entailment': (824, 209.8),
         'nlvr2': (1136, 259.4), 'text_assignment': (571, None), 'grounding': (831, 209.6)}


def layer_shapes(at, d, inner, cross):
    shapes = {}
    for attention in ('attention', *['crossattention'] * cross):
        for part in ('self.query', 'self.key', 'self.value', 'output.dense'):
            shapes |= {f'{at}{attention}.{part}.weight': (d, d), f'{at}{attention}.{part}.bias': (d,)}
        shapes |= {f'{at}{attention}.output.LayerNorm.{part}': (d,) for part in ('weight', 'bias')}
    return shapes | {f'{at}intermediate.dense.weight': (inner, d), f'{at}intermediate.dense.bias': (inner,),
                     f'{at}output.dense.weight': (d, inner), f'{at}output.dense.bias': (d,),
                     f'{at}output.LayerNorm.weight': (d,), f'{at}output.LayerNorm.bias': (d,)}


def bert_shapes(at, count, fusion, d=768, inner=3072):
    shapes = {f'{at}embeddings.position_ids': (1, 512), f'{at}embeddings.word_embeddings.weight': (30522, d),
              f'{at}embeddings.position_embeddings.weight': (512, d), f'{at}embeddings.token_type_embeddings.weight': (2, d),
              f'{at}embeddings.LayerNorm.weight': (d,), f'{at}embeddings.LayerNorm.bias': (d,)}
    for i in range(count):
        shapes |= layer_shapes(f'{at}encoder.layer.{i}.', d, inner, i >= fusion)
    return shapes


def word_shapes(at, d=768):
    return {f'{at}bias': (30522,), f'{at}transform.dense.weight': (d, d), f'{at}transform.dense.bias': (d,),
            f'{at}transform.LayerNorm.weight': (d,), f'{at}transform.LayerNorm.bias': (d,), f'{at}decoder.weight': (30522, d),
            f'{at}decoder.bias': (30522,)}


def vision_shapes(at, tokens, d=768):
    shapes = {f'{at}cls_token': (1, 1, d), f'{at}pos_embed': (1, tokens, d), f'{at}patch_embed.proj.weight': (d, 3, 16, 16),
              f'{at}patch_embed.proj.bias': (d,), f'{at}norm.weight': (d,), f'{at}norm.bias': (d,)}
    for i in range(12):
        for name, rows, columns in (('attn.qkv', 3 * d, d), ('attn.proj', d, d), ('mlp.fc1', 4 * d, d), ('mlp.fc2', d, 4 * d)):
            shapes |= {f'{at}blocks.{i}.{name}.weight': (rows, columns), f'{at}blocks.{i}.{name}.bias': (rows,)}
        shapes |= {f'{at}blocks.{i}.{name}.{part}': (d,) for name in ('norm1', 'norm2') for part in ('weight', 'bias')}
    return shapes


def expected_shapes(task):
    side, shapes = 257 if task in ('pretrain', 'text_assignment') else 577, {}
    count = 18 if task in ('nlvr2', 'text_assignment') else 12
    for twin in ('', '_m') if task != 'text_assignment' else ('',):
        shapes |= vision_shapes(f'visual_encoder{twin}.', side)
        shapes |= bert_shapes(f'text_encoder{twin}.{"bert." * (task == "pretrain")}', count, 6)
        if task == 'pretrain':
            shapes |= word_shapes(f'text_encoder{twin}.cls.predictions.')
        if task == 'vqa':
            shapes |= bert_shapes(f'text_decoder{twin}.bert.', 6, 0) | word_shapes(f'text_decoder{twin}.cls.predictions.')
        if task in ('nlvr2', 'entailment'):
            rows = {'nlvr2': 2, 'entailment': 3}[task]
            shapes |= {f'cls_head{twin}.0.weight': (768, 768), f'cls_head{twin}.0.bias': (768,),
                       f'cls_head{twin}.2.weight': (rows, 768), f'cls_head{twin}.2.bias': (rows,)}
        if task in ('pretrain', 'retrieval', 'grounding', 'text_assignment'):
            for name in ('vision_proj', 'text_proj'):
                shapes |= {f'{name}{twin}.weight': (256, 768), f'{name}{twin}.bias': (256,)}
    if task in ('pretrain', 'retrieval', 'grounding'):
        shapes |= {'itm_head.weight': (2, 768), 'itm_head.bias': (2,), 'temp': (), 'image_queue': (256, 65536),
                   'text_queue': (256, 65536), 'queue_ptr': (1,)}
    if task in ('retrieval', 'grounding'):
        shapes['idx_queue'] = (1, 65536)
    if task == 'text_assignment':
        shapes |= {'temp': (), 'ta_head.weight': (3, 768), 'ta_head.bias': (3,)}
    return shapes


@pytest.mark.parametrize('task', SIZES)
def test_names_and_shapes_of_the_published_models(task):
    count, millions = SIZES[task]
    with torch.device('meta'):
        full = AlbefConfig(image_res=256 if task in ('pretrain', 'text_assignment') else 384)
        head = models.build('albef', task, full, ANSWERS.get(task))
    state = {name: tuple(tensor.shape) for name, tensor in head.original_state().items()}
    assert state == expected_shapes(task) and len(state) == count
    assert {name for name, tensor in head.original_state().items() if tensor.dtype == torch.int64} == {
        name for name in state if name.endswith('position_ids') or name in ('queue_ptr', 'idx_queue')}
    trained = sum(p.numel() for p in head.parameters() if p.requires_grad)
    assert millions is None or round(trained / 1e6, 1) == millions
    if task == 'pretrain':  # with momentum models and queues
        total = sum(p.numel() for p in head.parameters()) + 2 * 256 * 65536
        assert full.parameters() == total


def test_initial_weights():
    torch.manual_seed(0)
    head = models.build('albef', 'retrieval', config(queue_size=64))
    state = head.original_state()
    for name, tensor in state.items():
        module, _, rest = name.partition('.')
        if module.endswith('_m'):
            assert torch.equal(tensor, state[f'{module[:-2]}.{rest}'])
    assert torch.allclose(state['image_queue'].norm(dim=0), torch.ones(64)) and state['temp'] == pytest.approx(0.07)
    assert (state['idx_queue'] == -100).all() and state['queue_ptr'].tolist() == [0]
    for name in ('visual_encoder.blocks.0.mlp.fc1', 'text_encoder.encoder.layer.3.crossattention.self.key'):
        assert 0.017 < state[f'{name}.weight'].std() < 0.023 and not state[f'{name}.bias'].any()


# ---- against Hugging Face


def test_images_as_hugging_faces_vit():
    head = build('retrieval')
    ours = head.encoder.model.visual_encoder
    sizes = {'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 96, 'image_size': 32}
    vit_model = ViTModel(ViTConfig(**sizes, patch_size=8, layer_norm_eps=1e-6), add_pooling_layer=False).eval()
    names = {'cls_token': 'embeddings.cls_token', 'pos_embed': 'embeddings.position_embeddings',
             'patch_embed.proj': 'embeddings.patch_embeddings.projection', 'norm': 'layernorm'}
    state = {}
    for name, tensor in ours.state_dict().items():
        if name.startswith('blocks.') and '.attn.qkv.' in name:
            for part, rows in zip('qkv', tensor.chunk(3), strict=True):
                state[name.replace('blocks.', 'layers.').replace('attn.qkv', f'attention.{part}_proj')] = rows
        elif name.startswith('blocks.'):
            for old, new in (('blocks.', 'layers.'), ('attn.proj', 'attention.o_proj'), ('norm1', 'layernorm_before'),
                             ('norm2', 'layernorm_after')):
                name = name.replace(old, new)
            state[name] = tensor
        else:
            module, _, rest = name.rpartition('.')
            state[names[name] if name in names else f'{names[module]}.{rest}'] = tensor
    vit_model.load_state_dict(state)
    pixels = torch.randn(2, 3, 32, 32)
    expected = vit_model(pixels).last_hidden_state
    for recorded in (None, []):
        assert torch.allclose(ours(pixels, recorded), expected, atol=1e-5)
    assert [tuple(one.shape) for one in recorded] == [(2, 4, 17, 17)] * 2
    assert torch.allclose(vit(head.original_state(), pixels), expected, atol=1e-5)


def hugging_face(cls, text, count):
    """BERT whose `count` layers all have cross attention."""
    names = ('vocab_size', 'hidden_size', 'num_attention_heads', 'intermediate_size', 'max_position_embeddings')
    bert_config = BertConfig(**{name: text[name] for name in names}, num_hidden_layers=count, is_decoder=True,
                             add_cross_attention=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    bert_config._attn_implementation = 'eager'
    return cls(bert_config, add_pooling_layer=False).eval() if cls is BertModel else cls(bert_config).eval()


def bidirectional(mask):
    return ((1.0 - mask.float()) * -10000.0)[:, None, None, :].expand(-1, -1, mask.shape[1], -1)


def test_texts_as_hugging_faces_bert():
    """Lower layers without cross attention, upper layers with it; all three ways to run the text encoder."""
    text = build('retrieval').encoder.model.text
    state, batch = text.state_dict(), batch_of()
    ids, mask, images = batch['input_ids'], batch['attention_mask'], torch.randn(4, 5, 24)
    bert = hugging_face(BertModel, BERT, 4)
    missing, unexpected = bert.load_state_dict(state, strict=False)
    assert all('crossattention' in name and '.layer.' in name for name in missing) and unexpected == ['embeddings.position_ids']
    hidden = bert.embeddings(ids)
    for layer in bert.encoder.layer[:2]:
        hidden = layer(hidden, bidirectional(mask))  # without an image there is no cross attention
    expected = hidden
    for layer in bert.encoder.layer[2:]:
        expected = layer(expected, bidirectional(mask), images)
    below, sequences = text.words(ids, mask)
    above = text(ids, mask, [Context(images)])
    real = mask.bool()
    assert torch.allclose(sequences.pad(below)[real], hidden[real], atol=1e-5)
    assert torch.allclose(above[real], expected[real], atol=1e-5)
    head = build('retrieval')
    fused = head.encoder.fuse(sequences.pad(below), mask, [Context(images)])
    assert torch.allclose(fused[real], expected[real], atol=1e-5)
    rows = torch.tensor([2, 0, 1, 2])  # images that texts share
    shared = head.encoder.fuse(sequences.pad(below), mask, [Context(images[:3], rows=rows)])
    assert torch.allclose(shared[real], head.encoder.fuse(sequences.pad(below), mask, [Context(images[rows])])[real], atol=1e-6)
    plain = layers(state, '', embed(state, '', ids), mask, 0, 4, [images])
    assert torch.allclose(plain[real], expected[real], atol=1e-5)


def test_the_decoder_as_hugging_faces():
    decoder = build('vqa').encoder.model.text_decoder
    bert = hugging_face(BertLMHeadModel, BERT, 2)
    state = {name: tensor for name, tensor in decoder.state_dict().items() if not name.endswith('position_ids')}
    assert [name for name in bert.load_state_dict(state, strict=False)[0] if not name.endswith('position_ids')] == []
    ids, states = answer_ids(), torch.randn(7, 6, 24)
    mask = torch.arange(6) < torch.tensor([6, 2, 3, 6, 5, 4, 1])[:, None]
    expected = bert(ids, (ids != 0).long(), encoder_hidden_states=states, encoder_attention_mask=mask.long()).logits
    real = ids != 0
    assert torch.allclose(decoder(ids, Context(states, mask))[real], expected[real], atol=1e-5)


def test_pairs_of_layers_see_two_images_and_share_projections():
    head = build('nlvr2')
    model, batch = head.encoder.model, batch_of('nlvr2')
    assert len(model.text.encoder.layer) == 6
    state = head.original_state()
    for first in (2, 4):
        for part in ('key.weight', 'key.bias', 'value.weight', 'value.bias'):
            one, other = (state[f'text_encoder.encoder.layer.{i}.crossattention.self.{part}'] for i in (first, first + 1))
            assert one.data_ptr() == other.data_ptr()
        one, other = (state[f'text_encoder.encoder.layer.{i}.crossattention.self.query.weight'] for i in (first, first + 1))
        assert not torch.equal(one, other)
    sequences = PackedSequences(batch['attention_mask'], 4, 9, torch.device('cpu'))
    attentions = []
    contexts = [Context(torch.randn(4, 3, 24)), Context(torch.randn(4, 5, 24))]
    model.text.layers(sequences.pack(torch.randn(4, 9, 24)), sequences, 2, 6, contexts, attentions)
    seen = [(number, image, probabilities.shape[-1]) for number, kind, image, probabilities in attentions if kind == 'visual']
    assert seen == [(2, 0, 3), (3, 1, 5), (4, 0, 3), (5, 1, 5)]


# ---- losses, and three steps of AdamW


def expected_losses(task, state, batch, alpha, distill):
    if task == 'pretrain':
        return pretraining(state, batch, alpha, hardest)
    if task in ('retrieval', 'grounding'):
        return contrast(state, batch, alpha, hardest, distill=distill)[0]
    if task == 'vqa':
        return answering(state, batch, answer_ids(), alpha, distill)
    return classifying(state, batch, alpha, 2 if task == 'nlvr2' else 1, distill)


@pytest.mark.parametrize(('task', 'distill'), [(task, distill) for task in TASKS if task != 'text_assignment'
                                               for distill in (True, False) if distill or task != 'pretrain'])
def test_losses_and_three_steps(task, distill):
    head = build(task, distill=distill).train()
    head.choose_negatives = hardest
    if task == 'vqa':
        head.answer_ids = answer_ids()
    (state, leaves), averages = reference(head), {}
    options = Options(optim='adamw_pytorch', lr=1e-4, schedule='constant', batchSize=4, epochs=10)
    step = OptimizerStep(head, options, 30, torch.device('cpu'))
    for number in range(3):
        batch = batch_of(task, seed=number)
        head.steps_per_epoch = 3
        head.begin_step(number, 30)
        assert head.alpha == pytest.approx(0.4 * min(1, number / 3) if task != 'entailment' else 0.4)
        head.alpha = 0.3
        losses = head.losses(batch, head.counts([batch]))
        update_twins(state, 0.995)
        expected = expected_losses(task, state, batch, 0.3, distill)
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
            {name: loss.item() for name, loss in expected.items()}, abs=1e-4)
        gradients = torch.autograd.grad(sum(expected.values()), list(leaves.values()), allow_unused=True)
        head.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        step()
        adamw(leaves, dict(zip(leaves, gradients, strict=True)), averages, number + 1, 1e-4)
    after = head.original_state()
    for name, tensor in state.items():
        if not name.endswith('key.bias') and 'qkv.bias' not in name:  # their gradients are 0 but for rounding
            assert torch.allclose(after[name], tensor, atol=1e-5), name
        elif 'qkv.bias' in name:
            query, _, value = range(3)
            assert all(torch.allclose(after[name].chunk(3)[i], tensor.chunk(3)[i], atol=1e-5) for i in (query, value)), name
    if 'queue_ptr' in after:
        assert after['queue_ptr'].tolist() == [0]  # 12 of 12 places


def test_the_temperature_is_limited_in_pretraining_only():
    for task, repairs, expected in (('pretrain', (), 0.5), ('retrieval', (), 0.9), ('retrieval', ('temperature',), 0.5)):
        head, batch = build(task, repairs=repairs), batch_of(task)
        head.temp.data.fill_(0.9)
        head.losses(batch, head.counts([batch]))
        assert head.temp.item() == pytest.approx(expected)


def test_ranked_answers():
    head, batch = build('vqa').eval(), batch_of('vqa')
    head.answer_ids = answer_ids()
    scores, expected = head.logits(batch).detach(), ranking(head.original_state(), batch, answer_ids(), 3)
    assert torch.equal(scores.isinf(), expected.isinf()) and scores.isinf().sum() == 4 * 4
    assert torch.allclose(scores[~scores.isinf()], expected[~expected.isinf()], atol=1e-4)
    places, probabilities = head.predict(batch, 7)
    assert torch.equal(places[:, 0], expected.argmax(1)) and torch.allclose(probabilities.sum(1), torch.ones(4))
    repaired = build('vqa', repairs=['first_piece']).eval()
    repaired.answer_ids = answer_ids()
    assert (repaired.logits(batch)[~scores.isinf()] > scores[~scores.isinf()]).all()  # one probability less in the product


@pytest.mark.parametrize('task', ['entailment', 'nlvr2'])
def test_logits_of_classes(task):
    head, batch = build(task).eval(), batch_of(task)
    expected = classes(head.original_state(), batch, images=2 if task == 'nlvr2' else 1)
    assert torch.allclose(head.logits(batch), expected, atol=1e-5)


def test_matching_logits_and_masked_words():
    head, batch = build('pretrain').eval(), batch_of()
    del batch['attention_mask']
    state, at = head.original_state(), 'text_encoder.bert.'
    v = vit(state, batch['pixels'])
    hidden = layers(state, at, embed(state, at, batch['input_ids']), batch["input_ids"] != 0, 0, 4, [v])
    expected = hidden[:, 0] @ state['itm_head.weight'].T + state['itm_head.bias']
    assert torch.allclose(head.logits(batch), expected, atol=1e-5)
    assert torch.allclose(head.match_logits(batch), expected[:, 1] - expected[:, 0], atol=1e-5)
    places = torch.tensor([1, 9, 20])
    all_words = words(state, at, 'text_encoder.cls.predictions', hidden).flatten(0, 1)
    assert torch.allclose(head.word_logits(batch, places), all_words[places], atol=1e-4)
    attention = head.encoder(batch, record_attention=True).attentions
    assert [(one.layer, one.queries, one.keys) for one in attention[:4]] == [
        ('image0', 'visual', 'visual'), ('image1', 'visual', 'visual'), ('text0', 'words', 'words'), ('text1', 'words', 'words')]
    assert [(one.layer, one.keys) for one in attention[4:]] == [('text2', 'words'), ('text2', 'visual'), ('text3', 'words'),
                                                                ('text3', 'visual')]


def test_gradients_of_maps():
    """Grad-CAM of both modes against finite differences of the attention probabilities."""
    head, batch = build('grounding').eval(), batch_of('grounding')
    maps = head.piece_maps(batch, 'itm', 3)
    assert maps.shape == (4, 9, 4, 4) and (maps >= 0).all() and not maps[batch['attention_mask'] == 0].any()
    assert torch.allclose(head.maps(batch, 'itm', 3), maps.mean(1))
    assert head.piece_maps(batch, 'itc', 1).shape == (4, 1, 4, 4)
    for mode, block in (('itm', 1), ('itc', 2), ('other', 2)):
        with pytest.raises(ValueError, match='expected itm or itc'):
            head.maps(batch, mode, block)
    states = head.encoder(batch, record_attention=True)
    attention = next(one.probabilities for one in states.attentions if (one.layer, one.keys) == ('text3', 'visual'))
    gradient, = torch.autograd.grad(head.itm_head(states.pooled)[:, 1].sum(), attention)
    assert torch.allclose(maps, (attention * gradient.clamp(min=0)).mean(1)[:, :, 1:].unflatten(2, (4, 4)))
    assert F.relu(gradient).any()


@pytest.mark.parametrize('task', ['pretrain', 'retrieval', 'vqa', 'entailment', 'nlvr2', 'grounding'])
def test_maps_of_words(task):
    """Grad-CAM of each layer that attends to images, restated in loops."""
    head, batch = build(task).eval(), batch_of(task)
    k = 2 if task == 'nlvr2' else 1
    head.answer_ids = answer_ids()
    logits, places, maps = head.word_maps(batch)
    assert torch.equal(places, logits.argmax(1)) and list(maps) == (['text2', 'text4'] if k == 2 else ['text2', 'text3'])
    assert head.map_layer == 'text2'  # of two layers with an image the first; of six, as published, the third
    assert logits.shape[1] == 1 or not torch.equal(head.word_maps(batch, logits.argmin(1))[2]['text2'], maps['text2'])
    states = head.encoder(batch, record_attention=True)
    if task == 'grounding':  # the maps from which boxes are chosen
        explained = head.itm_head(states.pooled)[:, 1].sum()
    else:
        explained = head.logits_of(batch, states).reshape(4, -1).gather(1, places[:, None]).sum()
    layers = [one.probabilities for one in states.attentions if one.keys == 'visual' and one.queries == 'words']
    gradients = torch.autograd.grad(explained, layers)
    for layer, of_layer in enumerate(maps.values()):
        assert of_layer.shape == (4, k, 9, 4, 4) and of_layer.any()
        for image in range(k):
            attention, gradient = layers[k * layer + image], gradients[k * layer + image]
            for row, t in itertools.product(range(4), range(9)):
                expected = sum((attention[row, i, t] * gradient[row, i, t].clamp(min=0))[1:].view(4, 4) for i in range(4)) / 4
                assert torch.allclose(of_layer[row, image, t], expected, atol=1e-6)
            assert not of_layer[:, image][batch['attention_mask'] == 0].any()


def test_the_layer_of_maps_is_that_of_the_original_code():
    bert = BERT | {'num_hidden_layers': 12, 'fusion_layer': 6}
    layers = {task: build(task, bert=bert).map_layer for task in ('vqa', 'grounding', 'nlvr2')}
    assert layers == {'vqa': 'text8', 'grounding': 'text8', 'nlvr2': 'text10'}  # and text11 for the second picture
