"""Pre-training as a program: what it writes, its losses, resuming, several processes, and what starts from it."""

import json
import re
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ragged, run_program
from test_train import Interrupt, assert_same, digest, signal_in_training, weights

import models
from annotations.answer_table import read_table
from annotations.pretraining import load_sentences
from batches import MicroBatch
from bert.tokenization import BertTokenizer
from heads import Head
from lxrt.heads import read_config
from lxrt.pretraining import class_loss, feature_loss, label_counts
from param import Options
from pretrain.program import PretrainingProgram, check_flags, published
from train import evaluate_losses

LOSSES = ('Mask_LM', 'Matched', 'Obj', 'Attr', 'Feat', 'QA')
ALL = ['--taskMaskLM', '--taskMatched', '--taskObjPredict', '--taskQA']


FEW = ['--train', 'mscoco_nominival,vgnococo']  # 122 sentences


def trained(log):
    """[{loss: mean}] of the training lines of a log."""
    return [{name: float(value) for name, value in re.findall(r'(\w+) ([\d.]+)[,)]', line.split('), QA')[0] + ')')}
            for line in log.read_text().splitlines() if ': Train' in line]


# ---- losses, by hand

def test_losses_by_hand():
    logits = torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0], [5.0, 5.0]])
    assert float(class_loss(logits, torch.tensor([0, 0, -1]))) == pytest.approx(np.log(2) + np.log(4 / 3))
    weighted = class_loss(logits, torch.tensor([0, 1, -1]), torch.tensor([0.5, 2.0, 9.0]))
    assert float(weighted) == pytest.approx(0.5 * np.log(2) + 2 * np.log(4))
    predicted, target = torch.tensor([[0.5, 3.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert float(feature_loss(predicted, target)) == pytest.approx((0.125 + 2.5) / 2)
    for loss in (class_loss(logits[:0], torch.tensor([], dtype=torch.long)), feature_loss(predicted[:0], target[:0]),
                 class_loss(logits, torch.full((3,), -1))):
        assert float(loss) == 0


def test_counts_by_hand():
    boxes, words = torch.zeros(2, 5, 4), torch.tensor([[-1, 3, 4], [-1, -1, 2]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    counts = label_counts(boxes, words, torch.tensor([1, 0]), torch.tensor([-1, 7]), mask)
    assert {name: float(count) for name, count in counts.items()} == {
        'Mask_LM': 3, 'Matched': 2, 'QA': 1, 'Obj': 8, 'Attr': 8, 'Feat': 8}
    assert label_counts(boxes).keys() == {'Obj', 'Attr', 'Feat'} and float(label_counts(boxes)['Obj']) == 10


@pytest.fixture
def program(world, tmp_path):
    """program(**options): a PretrainingProgram of the world, with its head and datasets."""
    programs = []

    def make(**changes):
        given = {'taskMaskLM': True, 'taskMatched': True, 'taskObjPredict': True, 'taskQA': True, 'dataRoot': str(world),
                 'bert': str(world / 'bert'), 'train': 'mscoco_train', 'valid': 'mscoco_minival', 'fromScratch': True,
                 'output': str(tmp_path / f'program{len(programs)}'), 'device': 'cpu', 'dropout': 0.0}
        programs.append(PretrainingProgram.prepare(Options(**{**given, **changes}), torch.device('cpu')))
        return programs[-1], *programs[-1].make()[1:]

    yield make
    for one in programs:
        one.folder.close()


def plain_losses(model, batch):
    """The losses of a batch with every logit computed, as the paper and the original code have them."""
    model.eval()
    (lang, visn), pooled = model.bert(batch['input_ids'], None, batch['attention_mask'], (batch['visual_feats'], batch['boxes']),
                                      batch.get('visual_attention_mask'))
    words = model.cls.predictions(lang)
    losses = {'Mask_LM': F.cross_entropy(words.flatten(0, 1), batch['masked_lm_labels'].flatten(), ignore_index=-1),
              'Matched': F.cross_entropy(model.cls.seq_relationship(pooled), batch['matched_label']),
              'QA': F.cross_entropy(model.answer_head(pooled), batch['ans'], ignore_index=-1)}
    predicted, labels = model.obj_predict_head(visn), batch['obj_labels']
    real = torch.ones(visn.shape[:2]) if (mask := batch.get('visual_attention_mask')) is None else mask.float()
    for kind in ('obj', 'attr'):
        each = F.cross_entropy(predicted[kind].flatten(0, 1), labels[kind][0].flatten(), reduction='none').view_as(real)
        losses[kind.capitalize()] = (each * labels[kind][1] * real).sum() / real.sum() / 0.15
    each = F.smooth_l1_loss(predicted['feat'], labels['feat'][0], reduction='none').mean(-1)
    losses['Feat'] = (each * labels['feat'][1] * real).sum() / real.sum() / 0.15
    return losses


def test_a_batch_split_into_parts_has_the_losses_of_the_plain_whole(program, world):
    ragged(world)
    _, head, train_set, _ = program()
    indices = np.arange(40)
    batch = train_set.to_device(train_set[MicroBatch(indices, 0, 0)])
    parts = [train_set.to_device(train_set[MicroBatch(indices[i:i + 10], i, 0)]) for i in range(0, 40, 10)]
    plain = plain_losses(head.model, batch)
    counts = head.counts(parts)
    losses = [head.losses(part, counts) for part in parts]
    for name in LOSSES:
        assert sum(float(one[name].detach()) for one in losses) == pytest.approx(float(plain[name].detach()), rel=1e-5), name
    gradients = torch.autograd.grad(sum(sum(one.values()) for one in losses), head.model.bert.embeddings.word_embeddings.weight)
    expected = torch.autograd.grad(sum(plain.values()), head.model.bert.embeddings.word_embeddings.weight)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-6)


def test_validation_is_the_mean_over_the_whole_set_whatever_the_batch(program):
    prepared, head, _, valid_set = program()
    plain = plain_losses(head.model, valid_set.to_device(valid_set[MicroBatch(np.arange(len(valid_set)), 0)]))
    for size in (7, 1000):
        prepared.options.evalBatchSize = size
        losses, sums = evaluate_losses(head, valid_set, prepared.options, torch.device('cpu'))
        assert losses == pytest.approx({name: float(value.detach()) for name, value in plain.items()}, rel=1e-5)
    batch = valid_set[MicroBatch(np.arange(len(valid_set)), 0)]
    asked = sum(value for name, value in sums.items() if name.startswith('asked'))
    assert asked == int((batch['ans'] != -1).sum()) > 0
    vqa = valid_set.sources.index('vqa')
    assert sums['asked vqa'] == int(((batch['ans'] != -1) & (batch['source'] == vqa)).sum())


def test_losses_left_out(program):
    for changes, left in (
            ({'taskMaskLM': False}, {'Mask_LM'}), ({'taskMatched': False}, {'Matched'}), ({'taskQA': False}, {'QA'}),
            ({'taskObjPredict': False}, {'Obj', 'Attr', 'Feat'}), ({'visualLosses': 'attr'}, {'Obj', 'Feat'}),
            ({'visualLosses': 'obj,feat'}, {'Attr'})):
        _, head, train_set, _ = program(**changes)
        batch = train_set.to_device(train_set[MicroBatch(np.arange(6), 0, 0)])
        losses = head.losses(batch, head.counts([batch]))
        assert set(LOSSES) - losses.keys() == left
        assert all(torch.isfinite(loss) for loss in losses.values())
    captions = np.array([0])  # one that is no question: nothing to answer
    _, head, train_set, _ = program()
    batch = train_set.to_device(train_set[MicroBatch(captions, 0, 0)])
    assert head.losses(batch, head.counts([batch]))['QA'].item() == 0


def test_flags_that_mean_nothing():
    for flags, message in (({}, 'no pre-training objective'), ({'taskQA': True, 'mceLoss': True}, '--mceLoss: does not apply'),
                           ({'taskObjPredict': True, 'visualLosses': ''}, '--visualLosses is empty')):
        with pytest.raises(ValueError, match=message):
            check_flags(Options(**flags))
    for flags, message in (({'visualLosses': 'obj,box'}, 'expected some of obj,attr,feat'),
                           ({'wordMaskRate': 1.5}, '--wordMaskRate'), ({'visualLosses': 'obj,obj'}, 'each once')):
        with pytest.raises(ValueError, match=message):
            Options(**flags)


# ---- the program

def test_what_a_run_writes(pretrain, tmp_path, world):
    run = pretrain()
    assert run.returncode == 0, run.stderr
    folder = tmp_path / 'run'
    names = {path.name for path in folder.glob('*.pth')}
    assert names == {'Epoch01_LXRT.pth', 'Epoch02_LXRT.pth', 'BEST_EVAL_LOSS_LXRT.pth', 'RUN_STATE.pth'}
    lines = (folder / 'log.log').read_text().splitlines()
    assert [line.split()[2] for line in lines] == ['Train', 'Valid', 'Best'] * 2
    first, last = trained(folder / 'log.log')
    assert set(first) >= set(LOSSES) and sum(last[name] for name in LOSSES) < sum(first[name] for name in LOSSES)
    assert all(re.search(r'QA accuracy \d+\.\d\d \(gqa \d+\.\d\d, vqa \d', line) for line in lines[:2])
    state = weights(folder, 'Epoch02_LXRT.pth')
    spec = published(world)
    table = read_table(spec.answers)
    head = models.build('lxmert', 'pretrain', read_config(world / 'bert', Options()), table)
    assert state.keys() == head.original_state().keys() and json.loads((folder / 'answers.json').read_text()) == table
    # The validation loss of the log is that of the snapshot.
    head.load_original(state)
    options = Options(taskMaskLM=True, taskMatched=True, taskObjPredict=True, taskQA=True)
    valid = load_sentences(spec, 'mscoco_minival', BertTokenizer(world / 'bert/vocab.txt'), table, options, 'cpu')
    head.sources = valid.sources
    losses, _ = evaluate_losses(head, valid, options, torch.device('cpu'))
    assert f'Valid loss {sum(losses.values()):.4f}' in lines[-2]

    # Fine-tuning starts from it, its answer rows by their names, which lie beside it.
    (world / 'lxmert/all_ans.json').unlink()
    run = run_program('vqa', world, tmp_path / 'fine', '--loadLXMERTQA', folder / 'BEST_EVAL_LOSS', '--epochs', '1',
                      '--train', 'nominival', '--valid', 'minival', '--batchSize', '8')
    assert run.returncode == 0, run.stderr
    answers = json.loads((world / 'vqa/trainval_label2ans.json').read_text())
    known = sum(answer in table for answer in answers)
    assert f'Answer head: {known} answers copied from' in run.stdout and f'{len(answers) - known} start at 0.' in run.stdout


def test_starting_from_snapshots(pretrain, tmp_path, world):
    assert pretrain('--epochs', '1', '--valid', '').returncode == 0
    assert not (tmp_path / 'run/BEST_EVAL_LOSS_LXRT.pth').exists()
    again = ['--epochs', '1', '--lr', '1e-30']
    run = pretrain('--load', tmp_path / 'run/Epoch01', *again, name='loaded')
    assert run.returncode == 0, run.stderr
    assert_same(weights(tmp_path / 'loaded', 'Epoch01_LXRT.pth'), weights(tmp_path / 'run', 'Epoch01_LXRT.pth'))
    # Names as several GPUs wrote them in the original, and another answer head: all but that head is taken.
    state = {f'module.{name}': value for name, value in weights(tmp_path / 'run', 'Epoch01_LXRT.pth').items()}
    torch.save(state, tmp_path / 'old_LXRT.pth')
    table = world / 'lxmert/all_ans.json'
    table.write_text(json.dumps(json.loads(table.read_text())[1:]))
    run = pretrain('--load', tmp_path / 'old', *again, name='strict')
    assert run.returncode == 1 and 'answer_head.logit_fc.3.bias: expected' in run.stderr and 'Traceback' not in run.stderr
    run = pretrain('--loadLXMERT', tmp_path / 'old', *again, name='lxmert')
    assert run.returncode == 0, run.stderr
    for name, value in weights(tmp_path / 'lxmert', 'Epoch01_LXRT.pth').items():
        if name.startswith('answer_head.logit_fc.0.weight'):
            assert not torch.equal(value, state[f'module.{name}'])
        elif not name.startswith('answer_head'):
            assert torch.equal(value, state[f'module.{name}']), name
    run = pretrain('--load', tmp_path / 'nothing', name='none')
    assert run.returncode == 1 and 'nothing_LXRT.pth: no such file' in run.stderr and 'Traceback' not in run.stderr


def test_two_processes_and_accumulation_learn_as_one_does(pretrain, tmp_path):
    flags = [*FEW, '--dropout', '0', '--batchSize', '24']
    for name, more, processes in (('one', [], 0), ('two', ['--multiGPU'], 2), ('parts', ['--accumulate', '2'], 0),
                                  ('workers', ['--numWorkers', '2'], 0)):
        run = pretrain(*flags, *more, name=name, processes=processes)
        assert run.returncode == 0, run.stderr
    one = (tmp_path / 'one/log.log').read_text()
    numbers = np.array([float(x) for x in re.findall(r'\d+\.\d+', one)])
    for name in ('two', 'parts'):
        log = (tmp_path / name / 'log.log').read_text()
        np.testing.assert_allclose([float(x) for x in re.findall(r'\d+\.\d+', log)], numbers, atol=2e-4)
        assert_same(weights(tmp_path / name, 'Epoch02_LXRT.pth'), weights(tmp_path / 'one', 'Epoch02_LXRT.pth'), 2e-5)
    assert_same(weights(tmp_path / 'workers', 'Epoch02_LXRT.pth'), weights(tmp_path / 'one', 'Epoch02_LXRT.pth'))


def test_interrupted_terminated_and_resumed_ends_with_the_same_bits(pretrain, tmp_path, monkeypatch):
    """kill -9 at random moments is tested in test_train.py: the loop is the same."""
    flags = [*FEW, '--batchSize', '16', '--epochs', '8', '--saveSteps', '3']  # 7 steps an epoch
    assert pretrain(*flags, name='unbroken').returncode == 0
    for step in (5, 11):
        with monkeypatch.context() as patched:
            patched.setattr(Head, 'begin_step', staticmethod(Interrupt(step)))
            assert pretrain(*flags, '--resume', name='stopped').returncode == 130
    assert digest(weights(tmp_path / 'stopped', 'RUN_STATE.pth')['model']) == (113, '6004753fbb944481')  # see test_train.py
    for workers in (0, 1):
        ranks = pretrain(*flags, '--resume', '--numWorkers', workers, name='stopped', processes=1, wait=False)
        # To its workers too, as schedulers do.
        run = signal_in_training(ranks, tmp_path / 'stopped/RUN_STATE.pth', signal.SIGTERM)
        said = re.search(r'SIGTERM: stopped after step \d+ of epoch \d, the run state is saved', run.stdout)
        assert run.returncode == 75 and said, run.stdout
    assert pretrain(*flags, '--resume', name='stopped').returncode == 0
    for name in ('Epoch08_LXRT.pth', 'Epoch01_LXRT.pth', 'BEST_EVAL_LOSS_LXRT.pth'):
        assert_same(weights(tmp_path / 'unbroken', name), weights(tmp_path / 'stopped', name))
    assert (tmp_path / 'unbroken/log.log').read_text() == (tmp_path / 'stopped/log.log').read_text()
