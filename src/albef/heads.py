"""ALBEF behind the contract of heads.py: its encoder, the heads of its tasks, and its recipes. Contrast: albef.contrast;
grounding: albef.grounding; weights: albef.weights."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from albef.config import AlbefConfig
from albef.contrast import Retrieval, soft_cross_entropy
from albef.grounding import Grounding
from albef.modeling import Context, Decoder, MaskedWordEncoder, TextEncoder
from albef.momentum import MomentumHead, mask_of
from albef.pretraining import Pretraining, TextAssignment
from albef.text import encode, encode_answers, pre_caption, pre_question
from albef.vit import VisionTransformer
from albef.weights import (
    fill_head,
    load_bert,
    load_encoder_weights,
    read_albef,
    recognises,  # noqa: F401, of the contract
)
from bert.config import (
    check_config,  # noqa: F401, of the contract
    refuse_layer_flags,
)
from bert.layers import PACK_SEQUENCES, PackedSequences
from bert.tokenization import MASK
from bert.weights import WeightsError
from files.json_files import DataError
from heads import Attention, Encoder, Head, Recipe, States
from images.transforms import ALBEFTransform

CAPTION_WORDS, QUESTION_WORDS = 30, {True: 30, False: 50}  # of a text; of a question in training, in testing
UNCUT = 512  # tokens
IMAGENET = {'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}
GROUPS = {'pretrain': 64, 'text_assignment': 64}  # examples on a GPU in the original code; other tasks: 32
CLASSES = {'entailment': 3, 'nlvr2': 2}  # of the published tasks

BASE = Recipe('answer', optim='adamw_pytorch', lr=2e-5, min_lr=1e-6, batch_size=256, schedule='epochs', warmup=100,
              clip=float('inf'), weight_decay=0.02, loss='CE', loss_factor=1, text_length=UNCUT)
VQA = dataclasses.replace(BASE, epochs=8, warmup=400, loss='LM', text_length=25)
RETRIEVAL = dataclasses.replace(BASE, output='match', lr=1e-5, epochs=10)
RECIPES = {
    'pretrain': dataclasses.replace(BASE, output='pretrain', lr=1e-4, min_lr=1e-5, epochs=30, warmup=2000, batch_size=512,
                                    text_length=25),
    'text_assignment': dataclasses.replace(BASE, output='pretrain', min_lr=1e-5, epochs=1, batch_size=512, text_length=25),
    'retrieval': RETRIEVAL, 'vqa': VQA, 'gqa': VQA,
    'nlvr2': dataclasses.replace(BASE, epochs=10, batch_size=128, images=2),
    'entailment': dataclasses.replace(BASE, epochs=5), 'nlvr': dataclasses.replace(BASE, epochs=5),
    'classify': dataclasses.replace(BASE, epochs=5),
    'grounding': dataclasses.replace(RETRIEVAL, output='region', epochs=5),
    'refcoco': dataclasses.replace(RETRIEVAL, output='region', epochs=5),
}
RAMPS = {'entailment': False, 'nlvr': False, 'classify': False}  # whether alpha rises over the first epoch; others: True
# The share of a picture's area in a random crop of training; None: no crop; other tasks: from a half.
CROPS = {'pretrain': (0.2, 1.0), 'text_assignment': (0.2, 1.0), 'grounding': None, 'refcoco': None}


def recipe(task, options=None):
    """The Recipe of a task. Raises ValueError for a task without one."""
    if task not in RECIPES:
        raise ValueError(f'--model albef: has no recipe for the task {task}; there are: {", ".join(RECIPES)}')
    if options and options.test is not None:  # texts are cut as in the original's test programs
        return dataclasses.replace(RECIPES[task], text_length=30 if task == 'retrieval' else UNCUT)
    return RECIPES[task]


def build(task, config, answers=None, options=None):
    """A Head with random weights. task: a kind of RECIPES, or 'pretrain'. Raises ValueError for another one."""
    task_recipe = recipe(task, options)
    if 'cut_texts' in config.repairs and task_recipe.output in ('match', 'region'):
        task_recipe = dataclasses.replace(task_recipe, text_length=30)
    training = options is None or options.test is None
    encoder = ALBEFEncoder(config, task, task_recipe.images if task != 'text_assignment' else 2, training)
    group = GROUPS.get(task, 32)
    if task == 'pretrain':
        return Pretraining(encoder, task_recipe, options, group)
    if task == 'text_assignment':
        return TextAssignment(encoder, task_recipe, options, group)
    if task_recipe.output == 'match':
        return Retrieval(encoder, task_recipe, options, group)
    if task_recipe.output == 'region':
        return Grounding(encoder, task_recipe, options, group)
    if task_recipe.loss == 'LM':
        return GeneratedAnswers(encoder, task_recipe, answers, options)
    return Classes(encoder, task_recipe, len(answers or range(CLASSES[task])), options, RAMPS.get(task, True))


def config_from_json(path):
    return AlbefConfig.from_json(path)


def read_config(folder, options):
    """The config.json of a folder (the published model if there is none), with --dropout."""
    path = folder / 'config.json'
    config = AlbefConfig.from_json(path) if path.is_file() else AlbefConfig()
    refuse_layer_flags(options, f'ALBEF has num_hidden_layers, fusion_layer and vision_depth in {path}')
    if options.repairs:
        try:
            config = dataclasses.replace(config, repairs=options.repairs.split(','))
        except DataError as error:
            raise ValueError(f'--repairs {options.repairs}: {error}') from None
    if options.dropout is None:
        return config
    return config.with_text(hidden_dropout_prob=options.dropout, attention_probs_dropout_prob=options.dropout)


def answers_and_images(state, config):
    """(how many answers, None if a decoder writes them; how many images) of a task's snapshot; None without answers."""
    if any(name.startswith('text_decoder.') for name in state):
        return None, 1
    if 'cls_head.2.weight' not in state:
        return None
    layers = sum(name.startswith('text_encoder.') and name.endswith('.intermediate.dense.bias') for name in state)
    return len(state['cls_head.2.weight']), 1 if layers == config.text.num_hidden_layers else 2


def layer_names(config):
    """The names of the layers whose states ALBEFEncoder.hidden_states returns: (of words, of image tokens)."""
    return ['embeddings', *(f'layer{i}' for i in range(1, config.text.num_hidden_layers + 1))], ['image']


class ALBEFModel(nn.Module):
    """The parts that have a momentum model."""

    def __init__(self, config, task, images):
        super().__init__()
        text = config.text
        self.visual_encoder = VisionTransformer(config)
        if task == 'pretrain':
            self.text_encoder = MaskedWordEncoder(text)
        elif images > 1:
            layers = text.fusion_layer + images * (text.num_hidden_layers - text.fusion_layer)
            self.text_encoder = TextEncoder(dataclasses.replace(text, num_hidden_layers=layers), images)
        else:
            self.text_encoder = TextEncoder(text)

    @property
    def text(self):
        """The TextEncoder."""
        return getattr(self.text_encoder, 'bert', self.text_encoder)

    def encode(self, ids, mask, tokens):
        """The states (n, t, d) of texts with image tokens, a list of (n, v, w)."""
        return self.text(ids, mask, [Context(one) for one in tokens])


class ALBEFEncoder(Encoder):
    """The pooled vector is the state of [CLS] after all layers; k images of a text share it (NLVR2)."""

    needs = frozenset({'pixels'})
    blank = False

    def __init__(self, config, task, images=1, training=True):
        super().__init__()
        self.config, self.task, self.training_texts = config, task, training
        self.images = 1 if task == 'text_assignment' else images  # of a text in a batch
        self.mirror = 'words' if config.augment and 'mirror_words' in config.repairs else ''
        self.needs = self.needs | ({'boxes'} if task in ('grounding', 'refcoco') else frozenset())
        self.model = ALBEFModel(config, task, images)

    def prepare(self, text):
        """A text by the rules of the task."""
        if self.task in ('vqa', 'gqa'):
            return pre_question(text, QUESTION_WORDS[self.training_texts])
        caption = pre_caption(text, CAPTION_WORDS)
        return caption.replace(MASK.lower(), MASK) if MASK in text else caption  # typed, to be filled

    def write(self, texts, max_length, blank=False):
        """[CLS] and the word pieces of a text, without [SEP]; two strings are one text."""
        texts = [self.prepare(' '.join(text) if isinstance(text, tuple) else text) for text in texts]
        ids, counts = encode(self.tokenizer, texts, max_length, 'separator' in self.config.repairs)
        return {'input_ids': ids, 'counts': counts}

    def transform(self, training):
        """The images.transforms.ALBEFTransform of the task."""
        repaired = IMAGENET if 'imagenet' in self.config.repairs else {}
        if not (training and self.config.augment):
            return ALBEFTransform(self.config.image_res, **repaired)
        area = CROPS.get(self.task, (0.5, 1.0))
        return ALBEFTransform(self.config.image_res, area, flip=not self.mirror, randaugment=True, **repaired)

    def visual(self, batch, attentions=None, model=None):
        """Image tokens for each text of a batch: a list of k tensors (n, v, w). model: None: that of this encoder."""
        tokens, n = (model or self.model).visual_encoder(batch['pixels'], attentions), len(batch['input_ids'])
        tokens = tokens.unflatten(0, (-1, self.images))  # (b, k, v, w)
        return list(tokens.repeat_interleave(n // len(tokens), 0).unbind(1))

    def fuse(self, states, mask, contexts):
        """The layers that attend to images. states (n, t, d) of the layers below; contexts: a list of Context -> (n, t, d)."""
        sequences = PackedSequences(mask, *states.shape[:2], states.device)
        return sequences.pad(self.model.text.fuse(sequences.pack(states), sequences, contexts))

    def forward(self, batch, record_attention=False):
        images, texts = ([], []) if record_attention else (None, None)
        tokens, mask = self.visual(batch, images), mask_of(batch)
        states = self.model.text(batch['input_ids'], mask, [Context(one) for one in tokens], texts)
        recorded = [Attention(f'image{i}', 'visual', 'visual', probabilities) for i, probabilities in enumerate(images or ())]
        recorded += [Attention(f'text{i}', 'words', kind, probabilities) for i, kind, _, probabilities in texts or ()]
        return States(states[:, 0], states, torch.stack(tokens, 1).flatten(0, 1), attentions=recorded)

    def hidden_states(self, batch):
        """(pooled (n, d), {layer: word states (n, t, d)}, {'image': tokens (m, v, w)}), word states 0 at padding."""
        tokens, mask, ids = self.visual(batch), mask_of(batch), batch['input_ids']
        sequences = PackedSequences(mask, *ids.shape, ids.device)
        hidden, contexts = self.model.text.embed(ids, sequences), [Context(one) for one in tokens]
        states = [hidden]
        for i in range(len(self.model.text.encoder.layer)):
            hidden = self.model.text.layers(hidden, sequences, i, i + 1, contexts)
            states.append(hidden)
        states = [sequences.pad_with_zeros(one) for one in states]
        return states[-1][:, 0], dict(zip(layer_names(self.config)[0], states, strict=False)), {
            'image': torch.stack(tokens, 1).flatten(0, 1)}

    def pooled_size(self, images):
        return self.config.hidden_size

    def classifier(self, answers, images):
        d = self.config.hidden_size
        return nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, answers))

    def parts(self):
        vision, text = self.model.visual_encoder, self.model.text
        embeddings = [nn.ParameterList([vision.cls_token, vision.pos_embed]), vision.patch_embed, text.embeddings]
        layers = [[block] for block in vision.blocks] + [[layer] for layer in text.encoder.layer]
        return [embeddings, *layers, [vision.norm]]

    def original_name(self, name):
        return name.removeprefix('encoder.').removeprefix('model.')


class Classes(MomentumHead):
    """Classifies [CLS] into a list of answers, with the momentum model's predictions as further targets (SNLI-VE, NLVR2)."""

    def __init__(self, encoder, recipe, answers, options=None, ramp=True):
        encoder.model.cls_head = encoder.classifier(answers, recipe.images)
        super().__init__(encoder, recipe, options, ramp)
        self.answers = answers

    def logits_of(self, batch, states):
        return self.encoder.model.cls_head(states.pooled).float()

    @torch.no_grad()
    def twin_logits(self, batch):
        states = self.twin.encode(batch['input_ids'], mask_of(batch), self.encoder.visual(batch, model=self.twin))
        return self.twin.cls_head(states[:, 0]).float()

    def target(self, batch):
        """Soft scores (b, answers), made from the sparse labels of the batch."""
        target = batch['label_score'].new_zeros(len(batch['input_ids']), self.answers)
        target[batch['label_example'], batch['label_answer']] = batch['label_score']
        return target

    def counts(self, micro_batches):
        """The number of examples with a labelled answer."""
        return {'CE': sum((self.target(batch).amax(1) > 0).sum() for batch in micro_batches).float()}

    def forward(self, batch, counts):
        """The loss, and the metrics 'score' (sum of the soft scores of the predicted answers) and 'examples'."""
        logits, target = self.logits(batch), self.target(batch)
        best, answer = target.max(1)
        alpha = self.alpha if self.config.distill else 0.0
        losses = (1 - alpha) * F.cross_entropy(logits, answer, reduction='none')
        if self.config.distill:
            losses = losses + alpha * soft_cross_entropy(self.twin_logits(batch).softmax(1), logits)
        score = target.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        return {'CE': (losses * (best > 0)).sum() / counts['CE'].clamp(min=1)}, {'score': score, 'examples': len(target)}


class GeneratedAnswers(MomentumHead):
    """A decoder writes answers to questions (VQA, GQA). Labels may be of any of `answer_texts`, predictions of the first
    `num_candidates`. `answer_ids` (answers, t): the answers as [CLS] pieces [SEP]; None: made when they are first needed."""

    def __init__(self, encoder, recipe, answers=None, options=None):
        text = encoder.config.text
        layers = dataclasses.replace(text, num_hidden_layers=text.num_hidden_layers - text.fusion_layer, fusion_layer=0)
        encoder.model.text_decoder = Decoder(layers)
        super().__init__(encoder, recipe, options)
        self.answer_texts, self.answer_ids = list(answers or ()), None
        self.num_candidates = len(self.answer_texts)

    def train_on(self, further):
        """Adds answers (list of str) that labels may be of, and that are no candidates."""
        self.answer_texts, self.answer_ids = [*self.answer_texts, *further], None

    def ids_of_answers(self, device):
        """`answer_ids` (answers, t) int64 on the device."""
        if self.answer_ids is None:
            self.answer_ids = torch.from_numpy(encode_answers(self.encoder.tokenizer, self.answer_texts))
        self.answer_ids = self.answer_ids.to(device)
        return self.answer_ids

    def candidates(self, device):
        """The part of `answer_ids` that may be chosen."""
        return self.ids_of_answers(device)[:self.num_candidates]

    @staticmethod
    def answer_logits(decoder, ids, states, mask, questions):
        """Logits of the next piece (n, t - 1, vocabulary) of answers (n, t) to the questions at places (n,)."""
        return decoder(ids[:, :-1], Context(states, mask, questions))

    def counts(self, micro_batches):
        """The number of questions."""
        first = micro_batches[0]['label_score']
        return {'LM': first.new_full((), sum(len(batch['input_ids']) for batch in micro_batches))}

    def forward(self, batch, counts):
        """The loss: of each answer the sum over its pieces, times its score. The metrics: 'score', the pieces of the answers that
        are right, and 'examples', all pieces."""
        ids, mask = self.ids_of_answers(batch['input_ids'].device)[batch['label_answer']], mask_of(batch)
        questions = batch['label_example']
        if ids.device.type in PACK_SEQUENCES and len(ids):
            ids = ids[:, :int((ids != 0).sum(1).max())]
        next_ids, states = ids[:, 1:], self.encoder(batch).words
        logits = self.answer_logits(self.encoder.model.text_decoder, ids, states, mask, questions)
        alpha = self.alpha if self.config.distill else 0.0
        losses = (1 - alpha) * F.cross_entropy(logits.flatten(0, 1), next_ids.flatten(), reduction='none').view_as(next_ids)
        if self.config.distill:
            with torch.no_grad():
                twin = self.twin.encode(batch['input_ids'], mask, self.encoder.visual(batch, model=self.twin))
                soft = self.answer_logits(self.twin.text_decoder, ids, twin, mask, questions).softmax(-1)
            losses = losses + alpha * soft_cross_entropy(soft, logits)
        written = next_ids != 0
        right = ((logits.argmax(-1) == next_ids) & written).sum()
        loss = ((losses * written).sum(1) * batch['label_score']).sum()
        return {'LM': loss / counts['LM'].clamp(min=1)}, {'score': right, 'examples': written.sum()}

    def logits_of(self, batch, states):
        """Scores (b, answers): of the config.k_test answers whose first piece is likeliest, log p(first piece) + log p(answer),
        which counts the first piece twice as in the original code; -inf for the others."""
        ids, mask, b = self.candidates(states.words.device), mask_of(batch), len(states.words)
        decoder = self.encoder.model.text_decoder
        first = decoder(ids[:1, :1].expand(b, 1), Context(states.words, mask))[:, 0].log_softmax(-1)[:, ids[:, 1]]  # (b, answers)
        best = first.topk(min(self.config.k_test, len(ids)))
        candidates = ids[best.indices.flatten()]  # (b * k, t)
        questions = torch.arange(b, device=ids.device).repeat_interleave(best.indices.shape[1])
        logits, next_ids = self.answer_logits(decoder, candidates, states.words, mask, questions), candidates[:, 1:]
        pieces = -F.cross_entropy(logits.flatten(0, 1), next_ids.flatten(), reduction='none').view_as(next_ids)
        scores = (pieces * (next_ids != 0)).sum(1).view_as(best.values)
        if 'first_piece' not in self.config.repairs:
            scores = scores + best.values
        return torch.full_like(first, -torch.inf).scatter(1, best.indices, scores)

    @torch.no_grad()
    def generate(self, batch, most=20):
        """Answers of at most so many pieces that the decoder writes freely, each time the likeliest piece: list of str."""
        vocabulary, states, mask = self.encoder.tokenizer.vocab, self.encoder(batch).words, mask_of(batch)
        ids = torch.full((len(states), 1), vocabulary['[CLS]'], device=states.device)
        ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        for _ in range(most):
            logits = self.encoder.model.text_decoder(ids, Context(states, mask))[:, -1]
            logits[:, 0] = -torch.inf  # [PAD]
            piece = logits.argmax(1)
            ended |= piece == vocabulary['[SEP]']
            ids = torch.cat([ids, piece[:, None]], 1)
            if ended.all():
                break
        texts = []
        for row in ids[:, 1:].tolist():
            row = row[:row.index(vocabulary['[SEP]'])] if vocabulary['[SEP]'] in row else row
            texts.append(' '.join(self.encoder.tokenizer.convert_ids_to_tokens(row)).replace(' ##', ''))
        return texts


def read_task(path):
    """The tensors of a task's snapshot, by the names of the original code."""
    return read_albef(path)


def read_weights(path):
    """The tensors of a file of weights of any kind, by the names of the original code."""
    return read_albef(path)


def load_encoder(path, config):
    """(an ALBEFEncoder with the weights of a pre-trained file or a task's snapshot, the LoadReport)."""
    state = read_albef(path)
    images = (answers_and_images(state, config) or (0, 1))[1]
    encoder = ALBEFEncoder(config, 'vqa' if any(name.startswith('text_decoder.') for name in state) else 'encode', images)
    head = Head(encoder, RECIPES['retrieval'])
    return encoder, load_encoder_weights(head, state, path)


def load_pretrained(path, config):
    """(a Pretraining head with the weights of a pre-trained file, the LoadReport). Raises WeightsError for another file."""
    state = read_albef(path)
    if not any(name.startswith('text_encoder.cls.') for name in state):
        raise WeightsError(f'{path}: has no pre-trained head of masked words (text_encoder.cls): a fine-tuned snapshot; name '
                           'pre-trained weights, such as ALBEF.pth or an epoch of run/albef_pretrain.bash')
    head = build('pretrain', config)
    return head, fill_head(head, state, str(path))


def load_start(head, start):
    """Loads the weights of a Start; returns what to print: reports and warnings. Raises WeightsError."""
    if start.kind == 'scratch':
        return []
    if start.kind == 'bert':
        return load_bert(head, start.path)
    state = read_albef(start.path)
    if start.kind == 'all':
        return [fill_head(head, state, str(start.path))]
    if start.kind == 'answers':
        raise WeightsError(f'{start.path}: rows of answers cannot be copied: a decoder writes the answers of ALBEF, or they are '
                           'few classes; give --loadALBEF')
    # In the original code the momentum models of NLVR2 are copies of what the model is before the file is loaded: BERT.
    first = load_bert(head, start.bert) if start.bert and head.encoder.task == 'nlvr2' else []
    return [*first, load_encoder_weights(head, state, str(start.path))]
