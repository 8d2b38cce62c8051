"""Training of ALBEF: steps that are split over micro-batches and processes, draws, schedule, weights, texts."""

import math
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_albef import BERT, answer_ids, batch_of, build, config

import dist
import models
from bert.speed import accelerate
from optimizer import OptimizerStep
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


def gradients(head, micro_batches, counts=None):
    """({loss: sum}, {name: gradient}) of a step."""
    head.begin_step(3, 10)
    counts = head.counts(micro_batches) if counts is None else counts(head, micro_batches)
    losses = {}
    for batch in micro_batches:
        one = head.losses(batch, counts)
        sum(one.values()).backward()
        losses = {name: losses.get(name, 0.0) + loss.item() for name, loss in one.items()}
    return losses, {name: p.grad for name, p in head.named_parameters() if p.grad is not None}


def compare(one, other):
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


# ---- draws


def test_draws_follow_seed_and_step_or_the_default_generator():
    batch = batch_of(b=6)
    del batch['masked_input_ids'], batch['masked_lm_labels']
    head = head_of('pretrain', queue_size=24)
    head.begin_step(4, 10)
    first = head.counts([batch]), head.step.parts[0].masked
    head.counts([batch])
    assert all(torch.equal(one, other) for one, other in zip(head.step.parts[0].masked, first[1], strict=True))
    head.begin_step(5, 10)
    head.counts([batch])
    assert not torch.equal(head.step.parts[0].masked[1], first[1][1])

    head.seed = None  # the original code's draws, in its order
    ids = torch.randint(4, 60, (400, 9)).masked_fill(torch.arange(9) > 6, 0)
    ids[:, 0] = 2
    many = batch_of(b=4) | {'input_ids': ids, 'pixels': torch.randn(400, 3, 32, 32), 'attention_mask': (ids != 0).long()}
    del many['masked_input_ids'], many['masked_lm_labels']
    head = build('pretrain', queue_size=400)
    head.encoder.tokenizer = SimpleNamespace(vocab={'[CLS]': 2, '[MASK]': 3})
    torch.manual_seed(7)
    counts = head.counts([many])
    torch.manual_seed(7)
    chosen = torch.bernoulli(torch.full(ids.shape, 0.15)).bool() & (ids != 0) & (ids != 2)
    replaced = torch.bernoulli(torch.full(ids.shape, 0.8)).bool() & chosen
    other = torch.bernoulli(torch.full(ids.shape, 0.5)).bool() & chosen & ~replaced
    pieces = torch.randint(60, ids.shape)
    masked, labels = head.step.parts[0].masked
    assert torch.equal(masked, torch.where(other, pieces, ids.masked_fill(replaced, 3)))
    assert torch.equal(labels, ids.masked_fill(~chosen, -1)) and counts['MLM'] == chosen.sum()


def test_negatives_are_drawn_by_their_weights():
    head = build('pretrain')
    similarities = torch.tensor([[5.0, 2.0, 1.0, 0.0]]).repeat(4, 1)
    torch.manual_seed(0)
    drawn = torch.stack([head.negatives(similarities, torch.eye(4, dtype=torch.bool)) for _ in range(800)])
    assert not (drawn == torch.arange(4)).any()
    for row in range(4):
        weights = similarities[row].softmax(0).clone()
        weights[row] = 0
        shares = torch.bincount(drawn[:, row], minlength=4) / len(drawn)
        assert torch.allclose(shares, weights / weights.sum(), atol=0.06)
    torch.manual_seed(3)
    expected = [int(torch.multinomial(similarities[row].softmax(0) * (torch.arange(4) != row), 1)) for row in range(4)]
    torch.manual_seed(3)  # row by row, as in the original code
    assert head.negatives(similarities, torch.eye(4, dtype=torch.bool)).tolist() == expected


@pytest.mark.parametrize('flags', [('taskContrast',), ('taskMatched', 'taskMaskLM'), ('taskContrast', 'taskMaskLM')])
def test_objectives_that_are_left_out(flags):
    """The others keep their losses and draws, and the queues go on; without ITC wrong images are drawn with equal weights."""
    names = {'taskContrast': 'ITC', 'taskMatched': 'ITM', 'taskMaskLM': 'MLM'}
    options = Options(seed=3, **dict.fromkeys(flags, True))
    complete, some = (models.build('albef', 'pretrain', config(), options=one) for one in (OPTIONS, options))
    complete.load_original(build('pretrain').original_state())
    some.load_original(complete.original_state())
    drawn, results = [], []
    for head in (complete, some):
        head.encoder.tokenizer = SimpleNamespace(vocab={'[CLS]': 2, '[MASK]': 3})
        head.choose_negatives = lambda weights: drawn.append(weights) or (torch.arange(4) + 1) % 4
        batch = batch_of()
        results.append({name: loss.item() for name, loss in head.train().losses(batch, head.counts([batch])).items()})
        assert head.queue_ptr == 4
    assert results[1] == pytest.approx({names[flag]: results[0][names[flag]] for flag in flags})
    uniform = torch.full((4, 4), 0.25).fill_diagonal_(0)
    assert torch.allclose(drawn[-1], uniform) == ('taskContrast' not in flags) and not torch.allclose(drawn[0], uniform)
    untrained = some.untrained('words', dict.fromkeys(flags, True))
    assert untrained == ('' if 'taskMaskLM' in flags else 'was pre-trained without --taskMaskLM, so that this head is random')
    assert not some.untrained('match', {})


def test_pictures_without_a_negative():
    batch = batch_of('retrieval') | {'image_id': torch.tensor([4, 4, 4, 4])}
    head = build('retrieval').train()
    counts = head.counts([batch])
    losses = head.losses(batch, counts)
    assert counts['ITM'] == 4 and all(loss.isfinite() for loss in losses.values())  # the positive pairs alone
    head.negatives(torch.full((4, 4), torch.nan), torch.eye(4, dtype=torch.bool))  # a diverged model must not end the process
    one = {key: value[:1] if isinstance(value, torch.Tensor) else 1 for key, value in batch.items()}
    with pytest.raises(ValueError, match='a step of 1 examples has too few negatives: expected at least 2'):
        head.counts([one])
    with pytest.raises(ValueError, match='a batch without image_id'):
        head.counts([{key: value for key, value in batch.items() if key != 'image_id'}])
    with pytest.raises(ValueError, match='queue_size 2: expected at least 4'):
        build('retrieval', queue_size=2).counts([batch])
    head.eval()
    with torch.no_grad():  # validation changes no queue
        before = head.queue_ptr.clone()
        head.losses(batch, head.counts([batch]))
        assert torch.equal(before, head.queue_ptr)


def test_text_assignment_draws_and_loss():
    batch, head = batch_of(b=6), build('text_assignment').train()
    torch.manual_seed(5)
    losses = head.losses(batch, head.counts([batch]))
    model = head.encoder.model
    tokens = model.visual_encoder(batch['pixels'])
    feature = F.normalize(head.vision_proj(tokens[:, 0]), dim=-1)
    weights = (feature @ feature.T / 0.07).softmax(1).fill_diagonal_(0)
    torch.manual_seed(5)
    total = 0
    for i in range(6):
        if torch.rand(1) > 1 / 3:
            other = int(torch.multinomial(weights[i], 1))
            label = 0 if torch.rand(1) > 0.5 else 1
            pair = (i, other) if label == 0 else (other, i)
        else:
            pair, label = torch.multinomial(weights[i], 2).tolist(), 2
        length = int(batch['attention_mask'][i].sum())
        states = model.encode(batch['input_ids'][i:i + 1, :length], torch.ones(1, length), [tokens[one:one + 1] for one in pair])
        total = total + F.cross_entropy(head.ta_head(states[:, 0]), torch.tensor([label])) / 6
    assert losses['TA'].item() == pytest.approx(total.item(), abs=1e-5)
    losses['TA'].backward()
    assert head.vision_proj.weight.grad is None and head.temp.grad is None


# ---- optimization


def plain_rates(lr, least, epochs, warmup, steps):
    """The rates of section 5 of the facts, step by step. warmup: in hundreds of steps."""
    rate = 1e-5
    for epoch in range(epochs):
        if epoch:
            rate = least + (lr - least) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        for i in range(steps):
            yield rate
            if epoch == 0 and i % 100 == 0 and i <= 100 * warmup:
                rate = lr if i == 100 * warmup else 1e-5 + i // 100 * (lr - 1e-5) / warmup


@pytest.mark.parametrize(('task', 'steps', 'epochs'), [('pretrain', 2500, 3), ('vqa', 250, 8), ('retrieval', 150, 10),
                                                       ('text_assignment', 300, 1), ('nlvr2', 101, 2)])
def test_the_learning_rate_is_that_of_the_original_code(task, steps, epochs):
    head = build(task)
    options = Options(epochs=epochs)
    options.complete(head.recipe)
    step = OptimizerStep(head, options, steps * epochs, torch.device('cpu'))
    least, warmup = {'pretrain': (1e-5, 20), 'vqa': (1e-6, 4), 'text_assignment': (1e-5, 1)}.get(task, (1e-6, 1))
    expected = list(plain_rates(options.lr, least, epochs, warmup, steps))
    rates = [options.lr * step.schedule.share(n + 1) for n in range(steps * epochs)]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert step.rate(0, steps * epochs, epochs) == pytest.approx(1e-5)


def test_recipes_and_decay():
    for task, expected in {'pretrain': (1e-4, 30, 512), 'text_assignment': (2e-5, 1, 512), 'retrieval': (1e-5, 10, 256),
                           'vqa': (2e-5, 8, 256), 'entailment': (2e-5, 5, 256), 'nlvr2': (2e-5, 10, 128),
                           'refcoco': (1e-5, 5, 256)}.items():
        recipe = models.package('albef').recipe(task)
        assert (recipe.lr, recipe.epochs, recipe.batch_size) == expected and recipe.clip == math.inf
    with pytest.raises(ValueError, match=r'no recipe for the task vcr; there are: pretrain, text_assignment, retrieval, vqa, '):
        models.build('albef', 'vcr', config())
    head = build('retrieval')
    decaying, exempt = head.groups(None)
    assert exempt['weight_decay'] == 0 and all(p.ndim == 1 for p in exempt['params'])
    assert any(p is head.temp for p in decaying['params']) and all(p.ndim != 1 for p in decaying['params'])
    assert any(p is head.encoder.model.visual_encoder.pos_embed for p in decaying['params'])
    assert not any(p is twin for group in (decaying, exempt) for p in group['params'] for twin in head.twin.parameters())
    repaired = build('retrieval', repairs=['temperature'])
    assert any(p is repaired.temp for p in repaired.groups(None)[1]['params'])
    options = Options(batchSize=8, epochs=2)
    options.complete(head.recipe)
    step = OptimizerStep(head, options, 20, torch.device('cpu'))
    assert isinstance(step.optimizer, torch.optim.AdamW) and step.optimizer.param_groups[0]['weight_decay'] == 0.02
    for p in head.parameters():
        p.grad = torch.full_like(p, 3.0) if p.requires_grad else None
    step()
    assert next(p.grad for p in head.parameters() if p.grad is not None).max() == 3  # gradients are not clipped


def test_alpha_rises_over_the_first_epoch():
    head = build('retrieval')
    head.begin_step(5, 200)  # 10 epochs of the recipe
    assert head.alpha == pytest.approx(0.4 * 5 / 20)
    head.steps_per_epoch = 10
    for step, expected in ((0, 0), (5, 0.2), (10, 0.4), (11, 0.4)):
        head.begin_step(step, 100)
        assert head.alpha == pytest.approx(expected)
    assert build('entailment').alpha == 0.4
    head = models.build('albef', 'pretrain', config(), options=Options(withoutDistillation=True))
    head.begin_step(11, 100)
    assert head.alpha == 0


def test_momentum_models_run_with_dropout_unless_repaired():
    dropping = {'bert': BERT | {'hidden_dropout_prob': 0.5}}
    for repairs, same in (((), False), (('twin_dropout',), True)):
        head, batch = build('entailment', repairs=repairs, **dropping).train(), batch_of('entailment')
        assert torch.equal(head.twin_logits(batch), head.twin_logits(batch)) == same


def test_checkpointing_changes_nothing():
    batch = batch_of()
    results = []
    for checkpointing in (False, True):
        head = build('pretrain').train()
        head.choose_negatives = lambda weights: weights.argmax(1)
        accelerate(head, Options(checkpointing=checkpointing))
        results.append(gradients(head, [batch]))
    compare(*results)


def test_compiling_changes_nothing():
    batch, results = batch_of(), []
    for compiled in (False, True):
        head = build('pretrain').train()
        head.choose_negatives = lambda weights: weights.argmax(1)
        accelerate(head, Options(compile=compiled), backend='eager')
        results.append(gradients(head, [batch]))
    compare(*results)


@pytest.mark.parametrize(('choice', 'trained'), [('embeddings', None), ('3', None), ('all', {'cls_head'})])
def test_frozen_parts(choice, trained):
    head, batch = build('entailment').train(), batch_of('entailment')
    head.freeze(choice)
    _, gradient = gradients(head, [batch])
    names = {head.original_name(name) for name in gradient}
    assert not any(name.startswith(('visual_encoder.pos', 'visual_encoder.patch', 'text_encoder.embeddings')) for name in names)
    assert trained is None or {name.partition('.')[0] for name in names} == trained
    assert any('blocks.1.' in name for name in names) == (choice == 'embeddings')
    assert any('layer.1.' in name for name in names) == (choice != 'all')
    with pytest.raises(ValueError, match='the encoder has 6 layers'):
        head.freeze('7')


@pytest.mark.parametrize('task', ['pretrain', 'retrieval', 'vqa', 'nlvr2', 'text_assignment'])
def test_bfloat16_is_close(task):
    results, batch = [], batch_of('pretrain' if task == 'text_assignment' else task)
    for enabled in (False, True):
        head = build(task).train()
        head.choose_negatives, head.answer_ids = (lambda weights: (torch.arange(len(weights)) + 1) % len(weights)), answer_ids()
        head.begin_step(5, 10)
        torch.manual_seed(0)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            results.append({name: loss.item() for name, loss in head.losses(batch, head.counts([batch])).items()})
    assert results[1] == pytest.approx(results[0], rel=0.1)
