"""Training of ALBEF: steps that are split over micro-batches and processes, draws, schedule, weights, texts."""

import threading
from types import SimpleNamespace

import pytest
import torch
from test_albef import answer_ids, batch_of, build, config

import dist
import models
from param import Options

OPTIONS = Options(seed=3, batchSize=8)


class Ranks:
    """Processes as threads: `run` calls a function once for each rank, with the functions of `dist` replaced."""

    def __init__(self, monkeypatch, count):
        self.count, self.local, self.barrier, self.values = count, threading.local(), threading.Barrier(count), [None] * count
        for name, function in (('rank', lambda: self.local.rank), ('world_size', lambda: count), ('gather', self.gather),
                               ('gather_rows', self.gather)):
            monkeypatch.setattr(dist, name, function)

    def gather(self, value):
        self.barrier.wait()
        self.values[self.local.rank] = value
        self.barrier.wait()
        return list(self.values)

    def run(self, function):
        results = [None] * self.count

        def start(rank):
            self.local.rank = rank
            try:
                results[rank] = function(rank)
            except BaseException as error:
                self.barrier.abort()
                results[rank] = error

        threads = [threading.Thread(target=start, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results


def head_of(task, **changes):
    head = build(task, **changes)
    seeded = models.build('albef', task, config(**changes), options=OPTIONS)
    seeded.load_original(head.original_state())
    seeded.encoder.tokenizer = SimpleNamespace(vocab={'[CLS]': 2, '[MASK]': 3})
    return seeded.train()


def parts_of(batch, sizes):
    """Micro-batches of so many examples, cut to their longest text."""
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        length = int((batch['input_ids'][rows] != 0).sum(1).max())
        yield {key: value[rows, :length] if value.ndim == 2 else value[rows]
               for key, value in batch.items() if isinstance(value, torch.Tensor)} | {'examples': size}
        start += size


def gradients(head, micro_batches, counts=None, steps=1):
    """({loss: sum}, {name: gradient}) of a step."""
    for step in range(steps):
        head.begin_step(step, 10)
        counts = head.counts(micro_batches) if counts is None else counts(head, micro_batches)
        losses, total = {}, 0
        head.zero_grad()
        for batch in micro_batches:
            one = head.losses(batch, counts)
            sum(one.values()).backward()
            losses = {name: losses.get(name, 0.0) + loss.item() for name, loss in one.items()}
    del total
    return losses, {name: p.grad for name, p in head.named_parameters() if p.grad is not None}


def compare(one, other, places=1):
    assert one[0] == pytest.approx(other[0], abs=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert torch.allclose(gradient, other[1][name], atol=1e-5), name


@pytest.mark.parametrize(('group', 'sizes'), [(4, (4, 4)), (4, (2, 2, 2, 2)), (0, (4, 4)), (0, (3, 5)), (3, (2, 6))])
@pytest.mark.parametrize('task', ['pretrain', 'retrieval', 'text_assignment'])
def test_micro_batches_learn_what_one_batch_learns(task, group, sizes):
    source = batch_of('retrieval' if task == 'retrieval' else 'pretrain', 8)
    source.pop('masked_input_ids', None), source.pop('masked_lm_labels', None)  # drawn for the step as a whole
    whole, parts = (head_of(task, group=group, queue_size=24) for _ in range(2))
    compare(gradients(whole, [source]), gradients(parts, list(parts_of(source, sizes))))
    before, after = whole.original_state(), parts.original_state()
    assert all(torch.allclose(tensor, after[name], atol=1e-6) for name, tensor in before.items())
    if task != 'text_assignment':
        assert before['queue_ptr'].tolist() == [8]
    if task == 'retrieval':
        assert before['idx_queue'][0, :9].tolist() == [*source['image_id'].tolist(), -100]


@pytest.mark.parametrize(('group', 'sizes'), [(2, ((2, 2), (2, 2))), (0, ((2, 3), (1, 2))), (0, ((4,), (4,)))])
@pytest.mark.parametrize('task', ['pretrain', 'retrieval', 'text_assignment'])
def test_processes_learn_what_one_process_learns(monkeypatch, task, group, sizes):
    """sizes: of each rank its micro-batches; the first ones of all ranks are the first examples of the step."""
    source = batch_of('retrieval' if task == 'retrieval' else 'pretrain', 8)
    source.pop('masked_input_ids', None), source.pop('masked_lm_labels', None)
    whole, heads = head_of(task, group=group, queue_size=24), [head_of(task, group=group, queue_size=24) for _ in range(2)]
    expected = gradients(whole, [source])
    in_order = [size for step in zip(*sizes, strict=True) for size in step]
    parts = list(parts_of(source, in_order))
    ranks = Ranks(monkeypatch, 2)

    def summed(head, micro_batches):
        by_rank = ranks.gather(head.counts(micro_batches))
        return {name: sum(counts[name] for counts in by_rank) for name in by_rank[0]}

    results = ranks.run(lambda rank: gradients(heads[rank], parts[rank::2], summed))
    losses = {name: sum(result[0][name] for result in results) for name in expected[0]}
    total = {name: sum(result[1][name] for result in results) for name in expected[1]}
    compare(expected, (losses, total))
    for head in heads:
        after = head.original_state()
        assert all(torch.allclose(tensor, after[name], atol=1e-6) for name, tensor in whole.original_state().items())


@pytest.mark.parametrize('task', ['vqa', 'nlvr2', 'entailment'])
def test_micro_batches_of_other_tasks(task):
    source = batch_of(task)
    whole, parts = build(task).train(), build(task).train()
    whole.answer_ids = parts.answer_ids = answer_ids()
    halves = []
    for start in (0, 2):
        k = 2 if task == 'nlvr2' else 1
        labels = (source['label_example'] >= start) & (source['label_example'] < start + 2)
        halves.append({'examples': 2, 'pixels': source['pixels'][k * start:k * (start + 2)],
                       **{key: source[key][start:start + 2] for key in ('input_ids', 'attention_mask')},
                       **{key: source[key][labels] for key in ('label_answer', 'label_score')},
                       'label_example': source['label_example'][labels] - start})
    compare(gradients(whole, [source]), gradients(parts, halves))
