"""VL-BERT in the training loop: VQA, GQA and NLVR2 on the sample world, processes, resuming, mirroring, ways to compute."""

import json
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, ragged, run_program
from test_train import assert_same, signal_in_training, weights
from test_vlbert import ANSWERS, config, expected_logits, expected_pretraining, pretraining_batch, question_batch, randomised

import models
from batches import MicroBatch
from bert.optimization import AdamW
from bert.speed import accelerate
from param import Options
from tasks.program import TaskProgram
from tasks.vqa import VQA
from tools import regions
from train import evaluate
from vlbert.modeling import original_boxes

CPU = torch.device('cpu')


@pytest.fixture
def world(world):
    """The sample world with 1 to 7 regions in an image, for a VL-BERT of two layers."""
    ragged(world)
    path = world / 'bert/config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'num_hidden_layers': 2}))
    return world


@pytest.fixture
def fine_tune(world, tmp_path):
    """fine_tune(*flags, name='run', task='vqa', start=True, ...): a program with VL-BERT; start, ...: as of conftest.vqa."""
    def run(*flags, name='run', task='vqa', start=True, **how):
        first = ['--model', 'vlbert', '--fromScratch', '--batchSize', '16', '--lr', '1e-3'] if start else []
        return run_program(task, world, tmp_path / name, *first, *flags, **how)

    return run


@pytest.fixture
def program(world, tmp_path):
    """program(**options): the head and the training set of VQA with VL-BERT."""
    folders = []

    def make(**changes):
        given = {'model': 'vlbert', 'dataRoot': str(world), 'bert': str(world / 'bert'), 'train': 'train', 'valid': '',
                 'fromScratch': True, 'output': str(tmp_path / f'program{len(folders)}'), 'device': 'cpu', 'dropout': 0.0}
        prepared = TaskProgram.prepare(VQA, Options(**given | changes), CPU)
        folders.append(prepared.folder)
        return prepared.make()[1:3]

    yield make
    for folder in folders:
        folder.close()


# ---- the loop


def test_two_processes_and_accumulation_train_as_one_process_does(fine_tune, tmp_path):
    flags = ['--dropout', '0', '--epochs', '1', '--train', 'train', '--valid', 'minival', '--batchSize', '15']  # unequal parts
    for name, more, processes in (('one', [], 0), ('parts', ['--accumulate', '2'], 0), ('two', ['--multiGPU'], 2)):
        run = fine_tune(*flags, *more, name=name, processes=processes)
        assert run.returncode == 0, run.stderr
    for name in ('parts', 'two'):
        assert_same(weights(tmp_path / 'one'), weights(tmp_path / name), tolerance=2e-5)
        assert (tmp_path / 'one/log.log').read_text() == (tmp_path / name / 'log.log').read_text()


def test_killed_and_resumed_ends_with_the_same_bits(fine_tune, tmp_path):
    flags = ['--saveSteps', '4', '--epochs', '6', '--valid', 'nominival']
    run = fine_tune(*flags, name='unbroken')
    assert run.returncode == 0, run.stderr
    draw = random.Random(time.time_ns())
    for _ in range(2):
        run = signal_in_training(fine_tune(*flags, '--resume', name='killed', processes=1, wait=False),
                                 tmp_path / 'killed/RUN_STATE.pth', seconds=draw.uniform(0, 0.1))
    run = fine_tune(*flags, '--resume', name='killed')
    assert run.returncode == 0 and 'Resuming at epoch' in run.stdout, run.stderr
    for name in ('LAST.pth', 'BEST.pth'):
        assert_same(weights(tmp_path / 'unbroken', name), weights(tmp_path / 'killed', name))
    assert (tmp_path / 'unbroken/log.log').read_text() == (tmp_path / 'killed/log.log').read_text()


def test_other_ways_to_compute_learn_as_float32_does(fine_tune, tmp_path):
    biases = {}
    for name in ('plain', 'bf16', 'checkpointing'):
        run = fine_tune('--epochs', '1', '--valid', '', '--dropout', '0', *([] if name == 'plain' else [f'--{name}']), name=name)
        assert run.returncode == 0, run.stderr
        biases[name] = weights(tmp_path / name)['final_mlp.2.bias']
    assert torch.equal(biases['checkpointing'], biases['plain'])
    assert not torch.equal(biases['bf16'], biases['plain'])
    torch.testing.assert_close(biases['bf16'], biases['plain'], rtol=0, atol=5e-3)


@pytest.mark.parametrize('task', ['gqa', 'nlvr2'])
def test_other_tasks_are_trained_and_tested(fine_tune, tmp_path, task):
    valid = {'gqa': 'testdev', 'nlvr2': 'valid'}[task]
    run = fine_tune('--train', 'train', '--valid', valid, '--epochs', '1', task=task)
    assert run.returncode == 0 and f'BEST.pth on {valid}:' in run.stdout, run.stderr
    assert weights(tmp_path / 'run')['final_mlp.2.weight'].shape[1] == {'gqa': 32, 'nlvr2': 64}[task]
    run = fine_tune('--test', valid, '--load', tmp_path / 'run/BEST', name='results', task=task, start=False)
    assert run.returncode == 0 and f'Score on {valid}' in run.stdout, run.stderr


def test_frozen_layers_stay_as_they_were(fine_tune, program, tmp_path):
    run = fine_tune('--freeze', '1', '--epochs', '1', '--train', 'train', '--valid', '')
    assert run.returncode == 0, run.stderr
    trained, initial = weights(tmp_path / 'run'), program()[0].original_state()
    for name, value in initial.items():
        after = ('vlbert.encoder.layer.1.', 'final_mlp.')
        assert torch.equal(value, trained[name]) != name.startswith(after), name


def test_predictions_do_not_depend_on_the_batch_size(program):
    head, dataset = program()
    randomised(head)
    results = [evaluate(head, dataset, Options(evalBatchSize=size), CPU) for size in (1, 7, 1000)]
    assert results[0][1].std() > 1e-3  # the scores of examples differ
    for answers, probabilities in results[1:]:
        np.testing.assert_array_equal(answers, results[0][0])
        np.testing.assert_allclose(probabilities, results[0][1], atol=1e-5)


# ---- mirroring


def test_mirroring_follows_from_seed_epoch_and_position_and_exchanges_the_sides(program):
    _, dataset = program()
    indices, pieces = np.arange(60), dataset.mirroring.ids
    batch = dataset[MicroBatch(indices, 0, 3)]
    mirrored = batch['mirrored']
    assert 15 < mirrored.sum() < 45
    for first in (20, 37):
        assert torch.equal(dataset[MicroBatch(indices[first:], first, 3)]['mirrored'], mirrored[first:])
    assert not torch.equal(dataset[MicroBatch(indices, 0, 4)]['mirrored'], mirrored)
    assert not torch.equal(program(seed=1)[1][MicroBatch(indices, 0, 3)]['mirrored'], mirrored)

    plain = dataset[MicroBatch(indices, 0)]
    assert 'mirrored' not in plain
    swap = torch.arange(int(plain['input_ids'].max()) + 1)
    swap[pieces] = torch.tensor(pieces[::-1])
    expected = torch.where(mirrored[:, None], swap[plain['input_ids']], plain['input_ids'])
    assert torch.equal(batch['input_ids'], expected) and not torch.equal(expected, plain['input_ids'])
    assert torch.equal(batch['features'], plain['features']) and torch.equal(batch['boxes'], plain['boxes'])


@pytest.mark.skipif(not (SHARED / 'vlbert_cases').is_dir(), reason=f'{SHARED}/vlbert_cases is not here')
def test_mirrored_examples_are_those_of_the_originals_reader(program, tmp_path):
    """Boxes, tokens, labels and features of questions about real images, mirrored or not."""
    cases = SHARED / 'vlbert_cases/vqa'
    expected = json.loads((cases / 'expected.json').read_text())
    answers = expected.pop('answer_vocab as the program has it')
    assert regions.main(['import', str(cases / 'vgbua_res101_precomputed'), '--out', str(tmp_path / 'regions.store'),
                         '--sizes', str(cases / 'annotations/instances_val2014.json')]) == 0
    questions = json.loads(next(cases.glob('vqa/*questions.json')).read_text())['questions']
    rows = [{'img_id': str(one['image_id']), 'question_id': one['question_id'], 'sent': one['question'],
             'label': {answers[int(i)]: score for i, score in expected[f'flip0.{one["question_id"]}']['label'].items()}}
            for one in questions]
    bert = tmp_path / 'bert'
    bert.mkdir()
    (bert / 'vocab.txt').symlink_to(SHARED / 'vocab/bert-base-uncased-vocab.txt')
    (bert / 'config.json').write_text(json.dumps({'hidden_size': 8, 'num_attention_heads': 2, 'intermediate_size': 8,
                                                  'num_hidden_layers': 1, 'visual_feat_dim': 8}))
    (tmp_path / 'questions.json').write_text(json.dumps(rows))
    (tmp_path / 'answers.json').write_text(json.dumps(answers))
    (tmp_path / 'dataset.json').write_text(json.dumps({
        'kind': 'vqa', 'name': 'cases', 'answers': 'answers.json', 'max_length': 64,
        'splits': {'train': {'annotations': 'questions.json', 'features': ['regions.store']}}}))
    head, dataset = program(dataset=str(tmp_path / 'dataset.json'), bert=str(bert))
    cls, sep, mask = (head.encoder.tokenizer.vocab[token] for token in ('[CLS]', '[SEP]', '[MASK]'))
    seen = set()
    for epoch in range(12):
        batch = dataset.to_device(dataset[MicroBatch(np.arange(len(rows)), 0, epoch)])
        boxes = original_boxes(batch['boxes'], batch['image_size'], batch['mirrored'])
        for i, row in enumerate(rows):
            name = f'flip{int(batch["mirrored"][i])}.{row["question_id"]}'
            case, ids = expected[name], batch['input_ids'][i]
            seen.add(name)
            assert ids[ids != 0].tolist() == [cls, *case['question_ids'], sep, mask, sep], name
            assert batch['input_ids'][i, batch['slot'][i]] == mask
            labels = batch['label_example'] == i
            assert dict(zip(batch['label_answer'][labels].tolist(), batch['label_score'][labels].tolist(), strict=True)) == (
                pytest.approx({int(answer): score for answer, score in case['label'].items()})), name
            o, (w, h) = len(case['boxes']), case['im_info'][:2]
            assert batch['visual_attention_mask'][i].sum() == o
            np.testing.assert_allclose(boxes[i, :o] * torch.tensor([w, h, w, h]), case['boxes'], atol=1e-3, err_msg=name)
            np.testing.assert_allclose(batch['features'][i, :o], case['features'], atol=2e-6, err_msg=name)
    assert seen == set(expected)


# ---- steps and static shapes


def expected_loss(task, state, batch):
    if task == 'pretrain':
        return sum(expected_pretraining(state, batch).values())
    target = torch.zeros(3, len(ANSWERS))
    target[batch['label_example'], batch['label_answer']] = batch['label_score']
    return F.binary_cross_entropy_with_logits(expected_logits(state, batch), target) * len(ANSWERS)


@pytest.mark.parametrize('task', ['vqa', 'pretrain'])
def test_three_steps_are_those_of_a_plain_restatement(task):
    """Forward by the restatement of tests/test_vlbert.py, AdamW by its formula."""
    head = randomised(models.build('vlbert', task, config(), ANSWERS)).train()
    batch, lr, decay = question_batch() if task == 'vqa' else pretraining_batch(), 1e-3, 0.1
    state = {name: tensor.detach().clone().requires_grad_() for name, tensor in head.original_state().items()
             if not name.endswith('decoder.weight')}  # is that of the words
    m, v = ({name: torch.zeros_like(tensor) for name, tensor in state.items()} for _ in range(2))
    optimizer = AdamW(head.parameters(), lr=lr, weight_decay=decay)
    for n in range(1, 4):
        optimizer.zero_grad()
        loss = sum(head.losses(batch, head.counts([batch])).values())
        loss.backward()
        optimizer.step()
        plain = expected_loss(task, state, batch)
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
        gradients = dict(zip(state, torch.autograd.grad(plain, list(state.values())), strict=True))
        with torch.no_grad():
            for name, p in state.items():
                m[name] = 0.9 * m[name] + 0.1 * gradients[name]
                v[name] = 0.999 * v[name] + 0.001 * gradients[name] ** 2
                p -= lr * (1 - 0.999 ** n) ** 0.5 / (1 - 0.9 ** n) * m[name] / (v[name].sqrt() + 1e-6)
                p -= lr * decay * p
    trained = head.original_state()
    for name, tensor in state.items():
        torch.testing.assert_close(trained[name], tensor.detach(), rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize('task', ['vqa', 'pretrain'])
def test_a_compiled_model_computes_the_same_as_one_graph(task):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    head = randomised(models.build('vlbert', task, config(), ANSWERS)).train()
    batch = question_batch() if task == 'vqa' else pretraining_batch()

    def step():
        head.zero_grad()
        losses = head.losses(batch, head.counts([batch]))
        sum(losses.values()).backward()
        return losses | {name: p.grad.clone() for name, p in head.named_parameters()}

    expected, names = step(), list(head.state_dict())
    accelerate(head, SimpleNamespace(checkpointing=False, compile=True, apex=False), backend=backend)
    result = step()
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, atol=1e-5, rtol=1e-4, msg=name)
    assert len(graphs) == 1 and list(head.state_dict()) == names
    torch._dynamo.reset()


def test_batches_of_a_static_shape_have_the_same_losses(program):
    head, dataset = program()
    randomised(head).eval()
    batches = [dataset.to_device(dataset[MicroBatch(np.arange(12), 0, 2, static_shape=static)]) for static in (False, True)]
    assert batches[0]['input_ids'].shape[1] <= batches[1]['input_ids'].shape[1]
    losses = [sum(head.losses(batch, head.counts([batch])).values()) for batch in batches]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
