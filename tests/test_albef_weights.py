"""ALBEF's weights, configuration and texts."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, SHARED
from test_albef import ANSWERS, BERT, batch_of, build, config
from transformers import BertConfig, BertForPreTraining

import models
from albef import heads
from albef.config import REPAIRS, AlbefConfig
from albef.grounding import box_scores, choose_box, resized
from albef.text import encode, encode_answers, pre_caption, pre_question
from albef.vit import interpolate
from bert.tokenization import SPECIAL_TOKENS, BertTokenizer
from bert.weights import WeightsError
from files.text import InputError
from heads import Start
from param import Options
from tasks.checkpoints import model_type

FULL = {'model_type': 'bert', 'architectures': ['BertForMaskedLM'], 'layer_norm_eps': 1e-12, **BERT}


@pytest.fixture
def pretrained(tmp_path):
    """A pre-training file as the original code writes it, and its tensors."""
    state = build('pretrain').original_state()
    torch.save({'model': state, 'optimizer': {'state': {}, 'param_groups': [{'lr': 1e-4}]}, 'lr_scheduler': {'t': 3},
                'config': {'image_res': 32}, 'epoch': 29}, tmp_path / 'ALBEF.pth')
    return tmp_path / 'ALBEF.pth', state


def started(task, path, kind='encoder', **changes):
    torch.manual_seed(9)
    head = models.build('albef', task, config(**changes), ANSWERS.get(task))
    return head, heads.load_start(head, Start(kind, path))[-1]


def test_files_wrapped_and_bare_load_strictly(tmp_path, pretrained):
    path, state = pretrained
    torch.save(state, tmp_path / 'bare.pth')
    assert model_type(path) == model_type(tmp_path / 'bare.pth') == 'albef'
    for one in (path, tmp_path / 'bare.pth'):
        head, report = started('pretrain', one, 'all')
        assert len(report.matched) == len(state) and not report.missing + report.unexpected
        assert all(torch.equal(tensor, state[name]) for name, tensor in head.original_state().items())
    del state['itm_head.bias']
    with pytest.raises(WeightsError, match=r'1 tensors that the model needs are missing \(such as itm_head\.bias\)'):
        models.build('albef', 'pretrain', config()).load_original(state)
    state['itm_head.bias'], state['queue_ptr'] = torch.zeros(2), torch.zeros(1)
    with pytest.raises(WeightsError, match='1 tensors are invalid'):
        models.build('albef', 'pretrain', config()).load_original(state)
    torch.save({'x.weight': torch.randn(2, 2)}, tmp_path / 'other.pth')
    with pytest.raises(WeightsError, match='expected weights of ALBEF'):
        heads.read_albef(tmp_path / 'other.pth')


@pytest.mark.parametrize(('task', 'missing', 'unexpected'), [
    ('retrieval', {'idx_queue'}, 14), ('grounding', {'idx_queue'}, 14),
    ('entailment', {f'cls_head{twin}.{i}.{part}' for twin in ('', '_m') for i in (0, 2) for part in ('weight', 'bias')}, None),
    ('text_assignment', {'ta_head.weight', 'ta_head.bias'}, None), ('vqa', set(), None)])
def test_from_pretraining_to_a_task(pretrained, task, missing, unexpected):
    path, before = pretrained
    head, report = started(task, path)
    assert set(report.missing) == missing and unexpected in (None, len(report.unexpected))
    state = head.original_state()
    for twin in ('', '_m') if task != 'text_assignment' else ('',):
        for i in range(4):
            name = f'encoder.layer.{i}.attention.self.query.weight'
            places = [i] if task != 'text_assignment' or i < 2 else [2 * i - 2, 2 * i - 1]
            for place in places:
                assert torch.equal(state[f'text_encoder{twin}.encoder.layer.{place}.attention.self.query.weight'],
                                   before[f'text_encoder{twin}.bert.{name}'])
        name = f'visual_encoder{twin}.blocks.1.mlp.fc2.weight'
        assert torch.equal(state[name], before[name])
        if task == 'vqa':
            for i in range(2):
                for part in ('crossattention.self.key.weight', 'output.dense.bias'):
                    assert torch.equal(state[f'text_decoder{twin}.bert.encoder.layer.{i}.{part}'],
                                       before[f'text_encoder{twin}.bert.encoder.layer.{i + 2}.{part}'])
            assert torch.equal(state[f'text_decoder{twin}.cls.predictions.decoder.weight'],
                               before[f'text_encoder{twin}.bert.embeddings.word_embeddings.weight'])
    if task == 'retrieval':
        assert torch.equal(state['image_queue'], before['image_queue']) and (state['idx_queue'] == -100).all()


@pytest.mark.parametrize('task', ['retrieval', 'grounding'])
def test_matching_without_fine_tuning(pretrained, task):
    path, state = pretrained
    head, report = started(task, path, 'all')
    assert report.missing == ['idx_queue'] and len(report.unexpected) == 14
    result = head.original_state()
    for name in ('itm_head.weight', 'text_encoder.bert.encoder.layer.1.output.dense.bias', 'vision_proj_m.weight'):
        assert torch.equal(result[name.replace('bert.', '')], state[name])
    _, report = started(task, path, 'all', queue_size=16)
    assert {'image_queue', 'text_queue'} < set(report.missing)
    torch.save({name: tensor for name, tensor in state.items() if name != 'itm_head.bias'}, path)
    with pytest.raises(WeightsError, match=r'missing \(such as itm_head\.bias\)'):
        started(task, path, 'all')
    with pytest.raises(WeightsError, match='does not fit the model'):  # its heads would be random
        started('entailment', path, 'all')


def test_other_sizes_of_pictures_and_queues(pretrained):
    path, before = pretrained
    head, report = started('retrieval', path, image_res=48, queue_size=8)
    assert {'image_queue', 'text_queue', 'idx_queue'} <= set(report.missing)
    positions = before['visual_encoder_m.pos_embed']
    grid = positions[0, 1:].T.reshape(1, 24, 4, 4)
    expected = F.interpolate(grid, size=(6, 6), mode='bicubic', align_corners=False)[0].reshape(24, 36).T
    after = head.original_state()['visual_encoder_m.pos_embed']
    assert torch.allclose(after[0, 1:], expected) and torch.equal(after[:, 0], positions[:, 0])
    assert torch.equal(interpolate(positions, 17), positions) or torch.allclose(interpolate(positions, 17), positions, atol=1e-6)
    head, report = started('pretrain', path, 'all', image_res=48)
    assert head.original_state()['visual_encoder.pos_embed'].shape == (1, 37, 24)


def test_text_assignment_then_nlvr2(tmp_path, pretrained):
    assignment, _ = started('text_assignment', pretrained[0])
    torch.save({'model': assignment.original_state()}, tmp_path / 'ta.pth')
    before = assignment.original_state()
    for repairs, copied in (((), False), (('nlvr2_twin',), True)):
        head, report = started('nlvr2', tmp_path / 'ta.pth', repairs=repairs)
        state = head.original_state()
        assert all(name.startswith('cls_head') or '_m.' in name for name in report.missing)
        name = 'encoder.layer.5.crossattention.self.key.weight'
        assert torch.equal(state[f'text_encoder.{name}'], before[f'text_encoder.{name}'])
        assert torch.equal(state[f'text_encoder_m.{name}'], state[f'text_encoder.{name}']) == copied


def test_a_file_without_momentum_models(tmp_path):
    """As refcoco.pth: image encoder, text encoder, matching head."""
    state = {name: tensor for name, tensor in build('grounding').original_state().items()
             if name.startswith(('visual_encoder.', 'text_encoder.', 'itm_head.'))}
    torch.save(state, tmp_path / 'refcoco.pth')
    head, report = started('grounding', tmp_path / 'refcoco.pth', 'all')
    assert {'vision_proj.weight', 'temp', 'image_queue'} <= set(report.missing) and len(report.matched) == len(state)
    assert torch.equal(head.original_state()['visual_encoder_m.cls_token'], state['visual_encoder.cls_token'])


def test_bert_and_deit(tmp_path):
    values = {name: BERT[name] for name in ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
                                            'intermediate_size', 'max_position_embeddings')}
    bert = BertForPreTraining(BertConfig(**values))
    torch.nn.init.normal_(bert.cls.predictions.bias)
    torch.save(bert.state_dict(), tmp_path / 'pytorch_model.bin')
    deit = {name.removeprefix('visual_encoder.'): tensor for name, tensor in build('entailment').original_state().items()
            if name.startswith('visual_encoder.')}
    deit['pos_embed'] = torch.randn(1, 10, 24)
    for task in ('pretrain', 'vqa', 'nlvr2'):
        head = models.build('albef', task, config(), ANSWERS.get(task))
        reports = heads.load_start(head, Start('bert', tmp_path / 'pytorch_model.bin'))
        assert 'found no deit_*.pth: the image encoder starts at random' in reports[-1]
        state, body = head.original_state(), 'text_encoder.bert.' if task == 'pretrain' else 'text_encoder.'
        for twin in ('', '_m'):
            prefix = body.replace('text_encoder', f'text_encoder{twin}')
            name = 'encoder.layer.3.output.dense.weight'
            assert torch.equal(state[f'{prefix}{name}'], bert.bert.state_dict()[name])
        if task != 'nlvr2':
            at = 'text_encoder' if task == 'pretrain' else 'text_decoder_m'
            assert torch.equal(state[f'{at}.cls.predictions.decoder.bias'], bert.cls.predictions.bias)
        if task == 'vqa':
            assert torch.equal(state['text_decoder.bert.encoder.layer.1.output.dense.weight'],
                               bert.bert.encoder.layer[1].output.dense.weight)
    torch.save({'model': deit | {'head.weight': torch.randn(5, 24), 'head.bias': torch.zeros(5)}}, tmp_path / 'deit_tiny-1.pth')
    head = models.build('albef', 'pretrain', config())
    report = heads.load_start(head, Start('bert', tmp_path / 'pytorch_model.bin'))[-1]
    assert report.unexpected == ['visual_encoder.head.weight', 'visual_encoder.head.bias']
    state = head.original_state()
    assert torch.equal(state['visual_encoder_m.blocks.0.attn.qkv.weight'], deit['blocks.0.attn.qkv.weight'])
    assert torch.allclose(state['visual_encoder.pos_embed'], interpolate(deit['pos_embed'], 17))


def test_snapshots_as_other_programs_load_them(tmp_path, pretrained):
    encoder, report = heads.load_encoder(pretrained[0], config())
    batch = batch_of()
    expected = started('retrieval', pretrained[0])[0].encoder(batch).pooled
    assert torch.allclose(encoder(batch).pooled, expected)
    pooled, words, images = encoder.hidden_states(batch)
    assert torch.allclose(pooled, expected, atol=1e-6)
    assert (list(words), list(images)) == heads.layer_names(config())
    _, report = heads.load_pretrained(pretrained[0], config())
    assert len(report.matched) == len(pretrained[1])
    for task in ('nlvr2', 'entailment', 'vqa'):
        state = build(task).original_state()
        expected = {'nlvr2': (2, 2), 'entailment': (3, 1), 'vqa': (None, 1)}[task]
        assert heads.answers_and_images(state, config()) == expected
        assert heads.recognises(state)
    torch.save(build('vqa').original_state(), tmp_path / 'vqa.pth')
    assert heads.load_encoder(tmp_path / 'vqa.pth', config())[0].task == 'vqa'
    with pytest.raises(WeightsError, match='has no pre-trained head of masked words'):
        heads.load_pretrained(tmp_path / 'vqa.pth', config())
    assert started('entailment', tmp_path / 'vqa.pth')[1].matched


# ---- configuration


def test_config_files(tmp_path):
    (tmp_path / 'config_bert.json').write_text(json.dumps(FULL))
    (tmp_path / 'Pretrain.yaml').write_text(
        "train_file: ['data/coco.json', 'data/vg.json']\nbert_config: 'configs/config_bert.json'\nimage_res: 64\n"
        'vision_width: 24\nembed_dim: 8\nbatch_size: 64\ntemp: 7e-2\n'
        'mlm_probability: 0.15\nqueue_size: 128\nmomentum: 0.99\nalpha: 0.3\n'
        'optimizer: {opt: adamW, lr: 1e-4, weight_decay: 0.02}\nschedular: {sched: cosine, lr: 1e-4, epochs: 30}\n')
    read = AlbefConfig.from_files(tmp_path / 'Pretrain.yaml', tmp_path / 'config_bert.json', vision_heads=4)
    assert (read.image_res, read.temp, read.queue_size, read.momentum, read.alpha) == (64, 0.07, 128, 0.99, 0.3)
    assert (read.text.fusion_layer, read.hidden_size, read.vision_depth, read.patch_size) == (2, 24, 12, 16)
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'albef'} | json.loads(read.to_json())))
    assert AlbefConfig.from_json(tmp_path / 'config.json') == read
    assert model_type(tmp_path / 'x.pth') == 'albef'
    # BERT's own config.json, with sizes of the image encoder or without
    small = {name: value for name, value in FULL.items() if name not in ('fusion_layer', 'encoder_width')}
    (tmp_path / 'config.json').write_text(json.dumps(small | {'image_res': 64, 'queue_size': 96, 'vision_depth': 3}))
    flat = heads.read_config(tmp_path, Options(dropout=0.2))
    assert (flat.vision_width, flat.vision_depth, flat.vision_heads, flat.text.fusion_layer, flat.queue_size) == (24, 3, 4, 2, 96)
    assert flat.text.hidden_dropout_prob == 0.2
    with pytest.raises(ValueError, match='--xlayers: ALBEF has num_hidden_layers'):
        heads.read_config(tmp_path, Options(xlayers=3))


@pytest.mark.parametrize(('changes', 'message'), [
    ({'image_res': 30}, 'image_res 30 is not a multiple of patch_size 8'), ({'temp': 0}, 'temp: expected a number above 0'),
    ({'momentum': 2}, 'momentum: expected a number from 0 to 1, found 2'),
    ({'queue_size': 0}, 'queue_size: expected a whole number'),
    ({'distill': 1}, 'distill: expected true or false'),
    ({'repairs': ['nothing']}, r"repairs: expected some of .*, found \['nothing'\]"),
    ({'bert': [1]}, 'bert: expected an object'), ({'bert': BERT | {'hidden_size': 'x'}}, 'bert: hidden_size: expected a whole'),
    ({'bert': BERT | {'encoder_width': 48}}, 'encoder_width: expected vision_width, 24, found 48'),
    ({'bert': BERT | {'fusion_layer': 4}}, 'fusion_layer: expected less than num_hidden_layers, 4, found 4'),
    ({'vision_heads': 5}, 'vision_width 24 is not a multiple of vision_heads 5'),
    ({'queue_size': 2 ** 45}, 'queue_size: expected a size that fits this machine')])
def test_wrong_configs_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        config(**changes)


def test_every_repair_does_something(tmp_path):
    plain, repaired = (models.build('albef', 'grounding', config(repairs=repairs)) for repairs in ((), tuple(REPAIRS)))
    assert plain.encoder.transform(True).mean[0] == 0.48145466 and repaired.encoder.transform(False).mean[0] == 0.485
    assert (plain.encoder.mirror, repaired.encoder.mirror) == ('', 'words')
    assert plain.encoder.transform(True).flip and not repaired.encoder.transform(True).flip
    assert (plain.recipe.text_length, repaired.recipe.text_length) == (512, 30)
    pretraining = models.build('albef', 'pretrain', config(repairs=['same_picture']))
    batch = batch_of() | {'image_id': torch.tensor([1, 2, 1, 3])}
    pretraining.counts([batch])
    assert pretraining.same(pretraining.step, 0, 4).sum() == 6


def test_transforms_of_tasks():
    transforms = {task: models.build('albef', task, config(), ANSWERS.get(task)).encoder.transform(True)
                  for task in ('pretrain', 'text_assignment', 'retrieval', 'vqa', 'refcoco')}
    assert [one.area for one in transforms.values()] == [(0.2, 1.0), (0.2, 1.0), (0.5, 1.0), (0.5, 1.0), None]
    assert all(one.side == 32 and one.flip and one.randaugment for one in transforms.values())
    assert not models.build('albef', 'vqa', config(), ['a']).encoder.transform(False).random
    plain = models.build('albef', 'pretrain', config(augment=False, repairs=['mirror_words'])).encoder
    assert not plain.transform(True).random and not plain.mirror


# ---- texts

WORDS = 'a red dog is running ##ning run what colour the , yes no ##s x y'
VOCABULARY = (*SPECIAL_TOKENS, *WORDS.split())


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n')
    return BertTokenizer(tmp_path / 'vocab.txt')


def test_rules_for_texts():
    assert pre_caption('A man\'s "red-hot" dog/cat; <person> (ran)!\t\n  far~\n', 30) == 'a mans red hot dog cat person ran far'
    assert pre_caption('  one  two\nthree ', 2) == 'one two\nthree'
    assert pre_caption('a b c d', 3) == 'a b c' and pre_caption('A\u00a0\u00a0B', 9) == 'a b'
    assert pre_question('What\'s  the <person>-dog? ', 50) == 'whats  the <person> dog'
    assert pre_question('a  b c', 3) == 'a  b'  # the empty word counts
    assert pre_question(' a\n', 5) == ' a\n'


def test_tokens(tokenizer):
    ids, counts = encode(tokenizer, ['a red dog', 'running dogs [SEP]', '', 'zzz a'])
    assert [[VOCABULARY[i] for i in row if i] for row in ids] == [
        ['[CLS]', 'a', 'red', 'dog'], ['[CLS]', 'running', 'dog', '##s', '[SEP]'], ['[CLS]'], ['[CLS]', '[UNK]', 'a']]
    assert counts.tolist() == [[3, 0, 0, 4], [4, 0, 0, 5], [0, 0, 0, 1], [2, 1, 0, 3]]
    ids, counts = encode(tokenizer, ['a red dog', 'a'], max_length=3)
    assert [[VOCABULARY[i] for i in row] for row in ids] == [['[CLS]', 'a', 'red'], ['[CLS]', 'a', '[PAD]']]
    assert counts[:, 2].tolist() == [1, 0]
    ids, _ = encode(tokenizer, ['a red dog', 'a'], 4, separator=True)
    assert [[VOCABULARY[i] for i in row if i] for row in ids] == [['[CLS]', 'a', 'red', '[SEP]'], ['[CLS]', 'a', '[SEP]']]
    answers = encode_answers(tokenizer, ['yes', 'Red dog'])
    assert answers.dtype == np.int64 and [[VOCABULARY[i] for i in row if i] for row in answers] == [
        ['[CLS]', 'yes', '[SEP]'], ['[CLS]', 'red', 'dog', '[SEP]']]


def test_encoders_write_by_the_rules_of_their_task(tokenizer):
    question = models.build('albef', 'vqa', config(), ['yes']).encoder
    caption = models.build('albef', 'retrieval', config()).encoder
    question.tokenizer = caption.tokenizer = tokenizer
    text = [('What colour is  the dog?',)]
    assert [VOCABULARY[i] for i in question.write(text, 25)['input_ids'][0]] == ['[CLS]', *['what', 'colour', 'is', 'the', 'dog']]
    assert caption.write([('a x',), ('Red, dog',)], 25)['input_ids'].shape == (2, 3)
    long = [(' '.join(['x'] * 60),)]
    assert question.write(long, 512)['input_ids'].shape == (1, 31)  # [CLS] and 30 words in training
    testing = models.build('albef', 'vqa', config(), ['yes'], Options(test='test', load='x')).encoder
    testing.tokenizer = tokenizer
    assert testing.write(long, 512)['input_ids'].shape == (1, 51)


def test_generated_answers(tokenizer):
    head = models.build('albef', 'vqa', config(), ['yes', 'red dog', 'no']).eval()
    head.encoder.tokenizer = tokenizer
    assert head.candidates(torch.device('cpu')).shape == (3, 4)
    batch = batch_of('vqa')
    with torch.no_grad():
        head.encoder.model.text_decoder.cls.predictions.bias.fill_(-100)
        head.encoder.model.text_decoder.cls.predictions.bias[[VOCABULARY.index('run'), VOCABULARY.index('##ning')]] = 100.0
        head.encoder.model.text_decoder.cls.predictions.bias[VOCABULARY.index('##ning')] = 50.0
        texts = head.generate(batch, most=3)
    assert texts == ['run run run'] * 4
    assert head.predict(batch)[0].max() < 3


def test_answers_that_are_trained_on_and_never_chosen(tokenizer):
    head = models.build('albef', 'vqa', config(), ['yes', 'no']).eval()
    head.encoder.tokenizer = tokenizer
    batch = batch_of('vqa') | {'label_answer': torch.tensor([0, 2, 1, 2])}
    scores = head.logits(batch)
    head.train_on(['red dog'])
    longer = head.logits(batch)
    assert longer.shape == (4, 2) and torch.allclose(longer, scores, atol=1e-5)
    loss = head.forward(batch, head.counts([batch]))[0]['LM']
    with torch.no_grad():  # the third answer becomes likelier
        head.encoder.model.text_decoder.cls.predictions.bias[[VOCABULARY.index('red'), VOCABULARY.index('dog')]] += 1
    assert head.forward(batch, head.counts([batch]))[0]['LM'] < loss


# ---- boxes


def test_boxes_of_a_map():
    torch.manual_seed(0)
    patches = torch.rand(4, 4)
    picture = resized(patches, 30, 50)
    assert torch.allclose(picture, F.interpolate(patches[None, None], size=(30, 50), mode='bicubic', align_corners=False)[0, 0])
    boxes = torch.tensor([[3.7, 2.2, 10.9, 12.5], [0.0, 0.0, 50.0, 30.0], [40.0, 20.0, 30.0, 30.0]])
    expected = [picture[int(y):int(y + h), int(x):int(x + w)].sum() / (w * h) ** 0.5 for x, y, w, h in boxes.tolist()]
    assert torch.allclose(box_scores(picture, boxes), torch.stack(expected), rtol=1e-4)
    assert choose_box(torch.tensor([0.1, 0.5])) == 1 and choose_box(torch.tensor([-0.1, 0.0]), before=7) == 7
    head, batch = build('grounding').eval(), batch_of('grounding')
    batch |= {'boxes': torch.rand(4, 3, 4).sort(-1).values, 'image_size': torch.tensor([[30, 50]] * 4),
              'visual_attention_mask': torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])}
    head.block = 3
    scores = head.logits(batch)
    assert scores.shape == (4, 3) and torch.equal(scores.isinf(), batch['visual_attention_mask'] == 0)
    x1, y1, x2, y2 = (batch['boxes'][0, 2] * torch.tensor([50, 30, 50, 30])).tolist()
    area = resized(head.maps(batch)[0], 30, 50)[int(y1):int(y2), int(x1):int(x2)]
    assert scores[0, 2].item() == pytest.approx(float(area.sum()) / ((x2 - x1) * (y2 - y1)) ** 0.5, rel=1e-3)
    with torch.no_grad():
        places, probabilities = head.predict(batch, 3)
    assert places[0, 0] == scores[0].argmax() and probabilities[1].tolist()[1:] == [0, 0]


@pytest.mark.shared
def test_real_captions_are_cut_as_published():
    captions = [item['caption'] for item in json.loads((SHARED / 'albef_tiny/pretrain.json').read_text())]
    texts = [text for item in captions for text in (item if isinstance(item, list) else [item])]
    for text in texts:
        cleaned = pre_caption(text, 30)
        assert cleaned == cleaned.strip() and '  ' not in cleaned and len(cleaned.split(' ')) <= 30
        assert not set(cleaned) & set(',.\'!?"()*#:;~-/')


def test_repairs_are_a_flag_and_documented(tmp_path):
    (tmp_path / 'config.json').write_text(config().to_json())
    assert heads.read_config(tmp_path, Options(repairs='separator,first_piece')).repairs == ('separator', 'first_piece')
    with pytest.raises(ValueError, match='--repairs other: repairs: expected some of separator, '):
        heads.read_config(tmp_path, Options(repairs='other'))
    listed = (ROOT / 'docs/weights.md').read_text()
    assert all(f'| `{name}` | {text} |' in listed for name, text in REPAIRS.items())
