"""What the speed of the model is measured on: batches of real length, Hugging Face's LXMERT beside ours, and the arithmetic."""

import copy
import gzip
import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

from bert.tokenization import BertTokenizer
from lxrt.entry import LXRTEncoder
from lxrt.modeling import LXRTPretraining
from pretrain.program import Pretraining
from tasks.model import AnswerModel
from tasks.nlvr2 import NLVR2
from tasks.vqa import VQA

LENGTH, REGIONS, MASKED = 20, 36, 0.15
ANSWERS = {'vqa': 3129, 'nlvr2': 2, 'pretrain': 9500}
TASKS = {'vqa': VQA, 'nlvr2': NLVR2}
IMAGES = {'vqa': 1, 'nlvr2': 2, 'pretrain': 1}
REAL = Path('../shared/data/vqa_raw/questions.json.gz'), Path('../shared/data/vocab/bert-base-uncased-vocab.txt')


def question_lengths(world):
    """(token counts of questions, with [CLS] and [SEP], where they are from): VQA's own where they lie beside the project, else
    those of the sample world in folder `world`. Raises FileNotFoundError."""
    for questions, vocabulary in (REAL, (world / 'vqa/minival.json', world / 'bert/vocab.txt')):
        if questions.is_file() and vocabulary.is_file():
            with (gzip.open if questions.suffix == '.gz' else open)(questions) as file:
                content = json.load(file)
            content = content['questions'] if isinstance(content, dict) else content
            texts = [one.get('question') or one['sent'] for one in content]
            return (BertTokenizer(vocabulary).encode(texts, LENGTH) != 0).sum(1), str(questions)
    raise FileNotFoundError(f'{world}/vqa/minival.json: no such file, to measure on its questions; bash run/shapes.bash makes it')


def make_task(task, config, options):
    """A task of ours around a model with random weights."""
    torch.manual_seed(0)
    if task == 'pretrain':
        return Pretraining(LXRTPretraining(config, num_answers=ANSWERS[task]), ['vqa'])
    return TASKS[task](AnswerModel(LXRTEncoder(config, max_seq_length=LENGTH), ANSWERS[task], IMAGES[task]), options)


def make_batch(task, config, lengths, seed, device, whole=False):
    """A batch of the task as its dataset makes it for a Part that is `whole` or not, of b = len(lengths) examples with random
    content."""
    g = torch.Generator().manual_seed(seed)
    b, t, images = len(lengths), LENGTH if whole else int(lengths.max()), IMAGES[task]
    real = torch.arange(t) < torch.as_tensor(lengths)[:, None]
    ids = torch.randint(1, config.vocab_size, (b, t), generator=g) * real
    features = torch.rand(b * images, REGIONS, config.visual_feat_dim, generator=g)
    boxes = torch.rand(b * images, REGIONS, 4, generator=g)
    batch = {'input_ids': ids, 'features': features, 'boxes': boxes}
    if task != 'pretrain':
        answer = torch.randint(ANSWERS[task], (b,), generator=g)
        return on(device, batch | {'target': F.one_hot(answer, ANSWERS[task]).float()})
    words = real & (torch.rand(b, t, generator=g) < MASKED)
    masked = torch.rand(b, REGIONS, generator=g) < MASKED
    conf = torch.rand(2, b, REGIONS, generator=g)
    classes, attributes = (torch.randint(n, (b, REGIONS), generator=g)
                           for n in (config.num_object_labels, config.num_attr_labels))
    return on(device, {
        'input_ids': ids, 'attention_mask': real, 'masked_lm_labels': ids.where(words, -1),
        'words_at': words.flatten().nonzero()[:, 0],
        'visual_feats': features.masked_fill(masked[..., None], 0), 'boxes': boxes,
        'regions_at': masked.flatten().nonzero()[:, 0],
        'obj_labels': {'obj': (classes, conf[0]), 'attr': (attributes, conf[1]), 'feat': (features, masked.float())},
        'matched_label': torch.randint(2, (b,), generator=g), 'ans': torch.randint(ANSWERS[task], (b,), generator=g),
        'source': torch.zeros(b, dtype=torch.int64)})


def on(device, value):
    """The tensors of nested dicts and tuples on a device."""
    if isinstance(value, dict):
        return {name: on(device, each) for name, each in value.items()}
    return tuple(on(device, each) for each in value) if isinstance(value, tuple) else value.to(device)


class HuggingFace(torch.nn.Module):
    """Their LXMERT with the weights of one of our tasks; a batch in, the loss out. Sentences are padded to 20, as theirs are."""

    def __init__(self, task, name, config):
        super().__init__()
        from transformers import LxmertConfig, LxmertForPreTraining, LxmertModel

        self.name, ours = name, task.model
        sizes = LxmertConfig(**asdict(config), num_qa_labels=ANSWERS[name], visual_loss_normalizer=1 / 0.15)
        if name == 'pretrain':
            self.lxmert = LxmertForPreTraining(sizes)
            named = {key.replace('bert.', 'lxmert.', 1) if key.startswith('bert.') else key: value
                     for key, value in ours.state_dict().items()}
        else:
            self.lxmert, self.head = LxmertModel(sizes), copy.deepcopy(ours.logit_fc)
            named = ours.lxrt_encoder.model.bert.state_dict()
        self.lxmert.load_state_dict(named)
        self.images, self.loss_of = IMAGES[name], task.loss if name != 'pretrain' else None

    def inputs(self, batch):
        ids = F.pad(batch['input_ids'], (0, LENGTH - batch['input_ids'].shape[1]))
        ids = ids.repeat_interleave(self.images, 0)
        return {'input_ids': ids, 'attention_mask': (ids != 0).float(), 'visual_pos': batch['boxes'],
                'visual_feats': batch['visual_feats' if self.name == 'pretrain' else 'features']}

    def forward(self, batch, predict=False):
        """The loss, or with `predict` the answers' logits."""
        if self.name == 'pretrain':
            labels = F.pad(batch['masked_lm_labels'], (0, LENGTH - batch['input_ids'].shape[1]), value=-1)
            found = self.lxmert(**self.inputs(batch), labels=labels.masked_fill(labels == -1, -100),
                                obj_labels=batch['obj_labels'], matched_label=batch['matched_label'], ans=batch['ans'])
            return found.question_answering_score if predict else found.loss
        pooled = self.lxmert(**self.inputs(batch)).pooled_output
        logits, target = self.head(pooled.view(len(batch['input_ids']), -1)), batch['target']
        if predict:
            return logits
        if self.loss_of == 'BCE':
            return F.binary_cross_entropy_with_logits(logits, target) * target.shape[1]
        return F.cross_entropy(logits, target.argmax(1)) * TASKS[self.name].factor


class PlainBertAdam:
    """The optimizer as the original code has it: parameter by parameter."""

    def __init__(self, parameters, lr):
        self.parameters, self.lr = list(parameters), lr
        self.m, self.v = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self):
        for p, m, v in zip(self.parameters, self.m, self.v, strict=True):
            if p.grad is not None:
                m.mul_(0.9).add_(p.grad, alpha=0.1)
                v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
                update = m / (v.sqrt() + 1e-6)
                update += 0.01 * p
                p.add_(-self.lr * update)


def forward_flops(task, config, tokens):
    """Floating point operations of matrix products for one example, forward: of what its loss or answer needs, without padding.
    Training takes three times that."""
    d, ff, t, o = config.hidden_size, config.intermediate_size, tokens, REGIONS

    def attention(queries, keys):  # projections of queries, keys, values and the result; scores and weighted sum
        return 4 * d * d * (queries + keys) + 4 * queries * keys * d

    def layer(n):
        return attention(n, n) + 4 * n * d * ff

    whole = attention(t, o) + attention(o, t) + layer(t) + layer(o)
    last = attention(t, o) + attention(1, t) + 4 * d * ff  # all that [CLS] needs
    words, regions = config.l_layers * layer(t), 2 * o * d * (config.visual_feat_dim + 4) + config.r_layers * layer(o)
    head = IMAGES[task] * 2 * d * d + 2 * (IMAGES[task] * d * 2 * d + 2 * d * ANSWERS[task])
    if task != 'pretrain':
        return words + IMAGES[task] * (regions + (config.x_layers - 1) * whole + last) + head
    said = MASKED * t * (2 * d * d + 2 * d * config.vocab_size)
    seen = o * (2 * d * d + 2 * d * (config.num_object_labels + config.num_attr_labels + MASKED * config.visual_feat_dim))
    return words + regions + config.x_layers * whole + head + said + seen
