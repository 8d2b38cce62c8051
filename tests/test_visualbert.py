"""VisualBERT against Hugging Face's, its weights from other files, and its runs in the sample world."""

import json

import pytest
import torch
from conftest import run_program
from transformers import BertConfig, BertForPreTraining, VisualBertForPreTraining, VisualBertForQuestionAnswering
from transformers import VisualBertConfig as HFConfig

import models
from bert.weights import WeightsError, fill
from explain import program
from files.json_files import DataError
from heads import Start
from param import Options
from tasks.nlvr2 import NLVR2
from tasks.program import main
from visualbert import heads
from visualbert.config import VisualBertConfig

SIZES = {'vocab_size': 60, 'hidden_size': 24, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'intermediate_size': 40,
         'max_position_embeddings': 40}
ANSWERS = ['yes', 'no', 'red', '2', 'left']
MASK = 4  # a word piece


def config(**changes):
    rates = {'hidden_dropout_prob': 0.0, 'attention_probs_dropout_prob': 0.0}
    return VisualBertConfig(**SIZES | {'visual_feat_dim': 10} | rates | changes)


def randomised(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    return model.eval()


def hugging_face(cls, **values):
    return randomised(cls(HFConfig(**SIZES, visual_embedding_dim=10, pad_token_id=0, **values)))


def make_batch(k=1, answer=False):
    """Three examples, with padding of words and of regions. answer: with [MASK] before [SEP]."""
    lengths, o = torch.tensor([7, 4, 5]), 6
    ids = torch.randint(5, 60, (3, 7)).masked_fill(torch.arange(7) >= lengths[:, None], 0)
    mask = torch.arange(o) < torch.tensor([2, 6, 3] * k)[:, None]
    batch = {'examples': 3, 'input_ids': ids, 'token_type_ids': torch.randint(0, 2, (3, 7)), 'boxes': torch.rand(3 * k, o, 4),
             'features': torch.randn(3 * k, o, 10), 'visual_attention_mask': mask, 'label_example': torch.arange(3),
             'label_answer': torch.tensor([1, 0, 1]), 'label_score': torch.tensor([1.0, 0.6, 1.0])}
    if answer:
        ids[range(3), lengths - 2] = MASK
        batch['slot'] = lengths - 2
    return batch


def of_hugging_face(model, batch, **options):
    return model(batch['input_ids'], attention_mask=(batch['input_ids'] != 0).long(), token_type_ids=batch['token_type_ids'],
                 visual_embeds=batch['features'], visual_attention_mask=batch['visual_attention_mask'].float(), **options)


def saved(path, state):
    torch.save(state, path)
    return path


# ---- parity


@torch.no_grad()
def test_states_are_those_of_hugging_face(tmp_path):
    theirs, batch = hugging_face(VisualBertForPreTraining), make_batch()
    theirs.set_attn_implementation('eager')
    path = saved(tmp_path / 'pytorch_model.bin', theirs.state_dict() | {
        'visual_bert.embeddings.position_ids': torch.arange(40)[None]})  # as in the published files
    head, report = heads.load_pretrained(path, config())
    assert not report.missing and report.unexpected == ['cls.predictions.decoder.bias']
    expected = of_hugging_face(theirs.visual_bert, batch, output_hidden_states=True, output_attentions=True)
    head.eval()
    states, layers = head.encoder.states(batch, hidden_states=True)
    real, close = torch.cat([batch['input_ids'] != 0, batch['visual_attention_mask']], 1), {'rtol': 0, 'atol': 1e-5}
    for one, other in zip([states, *layers], [expected.last_hidden_state, *expected.hidden_states], strict=True):
        torch.testing.assert_close(one[real], other[real], **close)
        assert not one[~real].any()
    torch.testing.assert_close(head.encoder(batch).pooled, expected.pooler_output, **close)
    recorded = head.encoder(batch, record_attention=True).attentions
    for one, other in zip(recorded, expected.attentions, strict=True):
        torch.testing.assert_close(one.probabilities[0, :, :7, :9], other[0, :, :7, :9], **close)
    logits = of_hugging_face(theirs, batch)
    scores = logits.seq_relationship_logits  # the first says that they belong together
    torch.testing.assert_close(head.match_logits(batch), scores[:, 0] - scores[:, 1], **close)
    places = torch.tensor([1, 8, 17])
    torch.testing.assert_close(head.word_logits(batch, places), logits.prediction_logits[:, :7].flatten(0, 1)[places],
                               rtol=0, atol=1e-4)


def test_losses_of_pre_training_are_those_of_hugging_face():
    theirs, batch = hugging_face(VisualBertForPreTraining), make_batch()
    head = models.build('visualbert', 'pretrain', config())
    fill(head, theirs.state_dict(), 'theirs', (), (heads.DECODER,), head.original_name)
    labels = torch.full((3, 7), -1)
    labels[0, 2], labels[2, 1] = 9, 11
    batch |= {'visual_feats': batch['features'], 'masked_lm_labels': labels, 'matched_label': torch.tensor([1, 0, 1]),
              'words_at': (labels != -1).flatten().nonzero()[:, 0]}
    losses = head.eval().losses(batch, head.counts([batch]))
    padded = torch.nn.functional.pad(labels, (0, 6), value=-1)
    expected = of_hugging_face(theirs, batch, labels=padded.masked_fill(padded == -1, -100),
                               sentence_image_labels=1 - batch['matched_label']).loss
    assert sum(losses.values()).item() == pytest.approx(expected.item(), abs=1e-5) and set(losses) == {'Mask_LM', 'Matched'}


def test_a_file_of_question_answering_loads_as_a_snapshot_and_answers_alike(tmp_path):
    theirs, batch = hugging_face(VisualBertForQuestionAnswering, num_labels=5), make_batch(answer=True)
    head = models.build('visualbert', 'vqa', config(), ANSWERS).eval()
    report, = heads.load_start(head, Start('all', saved(tmp_path / 'x.bin', theirs.state_dict())))
    assert not report.missing and not report.unexpected
    torch.testing.assert_close(head.logits(batch), of_hugging_face(theirs, batch).logits, rtol=0, atol=1e-5)
    head.load_original(theirs.state_dict())
    assert head.original_state().keys() == theirs.state_dict().keys()


# ---- weights


def test_bert_starts_words_and_regions(tmp_path):
    bert = randomised(BertForPreTraining(BertConfig(**SIZES)))
    path = saved(tmp_path / 'model.bin', bert.state_dict())
    for task, kind in (('vqa', 'bert'), ('pretrain', 'bert'), ('pretrain', 'encoder')):
        head = models.build('visualbert', task, config(), ANSWERS)
        report, = heads.load_start(head, Start(kind, path))
        missing = {f'visual_bert.embeddings.visual_projection.{name}' for name in ('weight', 'bias')}
        assert set(report.missing) == missing | ({'cls.weight', 'cls.bias'} if task == 'vqa' else set())
        embeddings, state = head.encoder.visual_bert.embeddings, bert.bert.embeddings
        assert torch.equal(embeddings.visual_token_type_embeddings.weight, state.token_type_embeddings.weight)
        assert torch.equal(embeddings.visual_position_embeddings.weight, state.position_embeddings.weight)


def test_names_of_the_original_code_are_read(tmp_path):
    head = randomised(models.build('visualbert', 'pretrain', config()))
    state = {name.replace('visual_bert.', 'bert.bert.').replace('cls.', 'bert.cls.').replace('visual_projection', 'projection')
             .replace('visual_token_type_embeddings', 'token_type_embeddings_visual')
             .replace('visual_position_embeddings', 'position_embeddings_visual'): tensor
             for name, tensor in head.original_state().items()}
    path = saved(tmp_path / 'vqa_coco_pre_trained.pth', state)
    assert models.of_names(list(state)) == models.of_names(list(head.original_state())) == 'visualbert'
    other = heads.load_pretrained(path, config())[0]
    assert all(torch.equal(tensor, other.original_state()[name]) for name, tensor in head.original_state().items())
    vqa = models.build('visualbert', 'vqa', config(), ANSWERS)
    report, = heads.load_start(vqa, Start('encoder', path))
    assert report.missing == ['cls.weight', 'cls.bias'] and not report.unexpected
    vqa = saved(tmp_path / 'vqa.pth', vqa.original_state())
    answers = models.build('visualbert', 'vqa', config(), ['left', 'blue'])
    heads.load_start(answers, Start('answers', vqa, rows=[4, -1], known=5))
    assert not answers.classifier[1].weight[1].any()
    assert torch.equal(answers.classifier[1].weight[0], torch.load(vqa)['cls.weight'][4])
    with pytest.raises(WeightsError, match=r'1 tensors are not part of the model \(such as visual_bert\.extra\)'):
        heads.load_encoder(saved(tmp_path / 'x.pth', head.original_state() | {'visual_bert.extra': torch.ones(3)}), config())
    with pytest.raises(WeightsError, match='expected weights of VisualBERT or BERT, found no visual_bert'):
        heads.read_weights(saved(tmp_path / 'y.pth', {'a': torch.ones(2, 2)}))


def test_config_of_hugging_face(tmp_path):
    path = tmp_path / 'config.json'
    HFConfig(**SIZES, visual_embedding_dim=7).to_json_file(path)
    assert VisualBertConfig.from_json(path) == VisualBertConfig(**SIZES, visual_feat_dim=7)
    path.write_text(json.dumps(SIZES | {'bypass_transformer': True}))
    with pytest.raises(DataError, match='bypass_transformer: expected false'):
        VisualBertConfig.from_json(path)
    count = sum(p.numel() for p in models.build('visualbert', 'pretrain', config()).parameters())
    assert count == config().parameters()
    with pytest.raises(ValueError, match='--features pixels: VisualBERT reads region features'):
        heads.read_config(tmp_path / 'none', Options(features='pixels'))
    with pytest.raises(ValueError, match='--taskQA: VisualBERT has no such objective'):
        heads.build('pretrain', config(), options=Options(taskQA=True))


# ---- training


@pytest.mark.parametrize(('task', 'k'), [('vqa', 1), ('nlvr2', 2)])
def test_steps_lower_the_loss(task, k):
    torch.manual_seed(0)
    batch, head = make_batch(k, answer=True), models.build('visualbert', task, config(), ANSWERS)
    assert head.classifier[1].weight.shape == (5, 24 * k)
    optimizer, losses = torch.optim.SGD(head.parameters(), 0.1), []
    for _ in range(4):
        losses.append(sum(head.losses(batch, head.counts([batch])).values()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] > losses[1] > losses[3]
    parts = {p for part in head.parts() for module in part for p in module.parameters()}
    assert parts == {*head.encoder.parameters()}
    unread = [name for name, parameter in head.named_parameters() if parameter.grad is None]
    assert unread == ['encoder.visual_bert.pooler.dense.weight', 'encoder.visual_bert.pooler.dense.bias']


def test_pre_training_tasks_and_tools(world, tmp_path, capsys):
    """One run after the other: pre-training, NLVR2 from its encoder, a test of the snapshot, its attention."""
    flags = ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--batchSize', '64', '--epochs', '1']
    done = run_program('pretrain', world, tmp_path / 'pre', '--model', 'visualbert', '--train', 'mscoco_train', '--valid',
                       'mscoco_minival', '--taskMaskLM', '--taskMatched', '--fromScratch', '--batchSize', '64', '--epochs', '1')
    assert done.returncode == 0, done.stderr
    log, start = (tmp_path / 'pre/log.log').read_text(), tmp_path / 'pre/BEST_EVAL_LOSS_LXRT.pth'
    assert 'Mask_LM' in log and 'Matched' in log
    run = tmp_path / 'nlvr2'
    assert main(NLVR2, [*flags, '--loadEncoder', str(start), '--train', 'train', '--valid', 'valid', '--lr', '1e-3', '--output',
                        str(run)]) == 0, capsys.readouterr().err
    assert json.loads((run / 'config.json').read_text())['model_type'] == 'visualbert'
    capsys.readouterr()
    assert main(NLVR2, [*flags, '--test', 'valid', '--load', str(run / 'BEST'), '--output', str(tmp_path / 'test')]) == 0
    best = next(line.split()[-1] for line in (run / 'log.log').read_text().splitlines() if 'Valid' in line)
    assert f'Score on valid: {best}' in capsys.readouterr().out

    features, ids = str(world / 'mscoco_imgfeat/train2014_obj36.tsv'), [f'COCO_train2014_00000000000{i}' for i in (1, 2)]
    assert program.main(['attention', '--load', str(run / 'BEST'), '--features', features, '--question', 'Both show a star.',
                         '--names', str(world), '--image', *ids, '--out', str(tmp_path / 'out'), '--layers', 'layer1', '--heads',
                         '1']) == 0
    shown = json.loads((tmp_path / 'out/attention.json').read_text())
    assert shown['words'][-2:] == ['[MASK]', '[SEP]'] and len(shown['images']) == 2
    assert all(len(image['regions']) == 36 and sum(one['relevance'] for one in image['regions']) > 0
               for image in shown['images'])
