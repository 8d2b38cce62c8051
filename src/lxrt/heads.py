"""LXMERT behind the contract of heads.py: its encoder, its recipes, and the weights that it starts from."""

import dataclasses
import re
from itertools import zip_longest

import torch
from torch import nn

from bert.config import check_config  # noqa: F401, of the contract
from bert.layers import BertPreTrainingHeads, initialise, layer_norm
from bert.weights import POSITION_IDS, WeightsError, fill, renamed
from files.json_files import DataError
from heads import Attention, Encoder, Head, Match, Recipe, States, find_recipe, head_for, images_of_entries, transfer_answers
from lxrt.config import LxrtConfig
from lxrt.entry import LXRTEncoder
from lxrt.modeling import answer_layers, layer_names  # noqa: F401, what tools call
from lxrt.pretraining import LXRTPretraining, label_counts
from lxrt.weights import (
    DECODER,
    PRETRAINING_HEADS,
    TASK_PREFIX,
    WORDS,
    answer_head,
    load_bert,
    load_lxmert,
    load_pretraining,
    lxmert_name,
    read_lxmert,
    read_task,
)
from run_folder import read_run

MATCH_HEAD = 'cls.seq_relationship.'  # of pre-training, with which output 'match' starts

RECIPES = {  # as in the original code, which has no classify, multilabel, entailment, refcoco, retrieval and vcr
    'vqa': Recipe('answer'),
    'gqa': Recipe('answer', lr=1e-5),
    'nlvr2': Recipe('answer', images=2, loss='CE', loss_factor=1),
    'nlvr': Recipe('answer', loss='CE', loss_factor=1),
    'classify': Recipe('answer', loss='CE', loss_factor=1),
    'multilabel': Recipe('answer'),
    'entailment': Recipe('answer', loss='CE', loss_factor=1),
    'refcoco': Recipe('region', epochs=10, text_length=64),  # no expression of the published data is cut
    'retrieval': Recipe('match'),
    'vcr': Recipe('choice', loss='CE', text_length=67),
    'pretrain': Recipe('pretrain', lr=1e-4, batch_size=256, epochs=20, warmup=0.05, clip=1.0),
}


def recipe(task, options=None):
    """The Recipe of a task. Raises ValueError for a task that LXMERT has none for."""
    return find_recipe(RECIPES, 'lxmert', task, options)


def build(task, config, answers=None, options=None):
    """A Head with random weights. Raises ValueError for a task that LXMERT has no recipe for."""
    if task == 'pretrain':
        return Pretraining(config, recipe(task), answers, options)
    return head_for(LxmertEncoder(config), recipe(task, options), answers and len(answers))


def config_from_json(path):
    return LxrtConfig.from_json(path)


def read_config(folder, options):
    """The config.json of a folder (BERT base and lxr955 if there is none), with --llayers, --xlayers, --rlayers and --dropout."""
    path = folder / 'config.json'
    config = LxrtConfig.from_json(path) if path.is_file() else LxrtConfig()
    if options.loadResNet or options.features == 'pixels':
        raise ValueError(f'--{"loadResNet" if options.loadResNet else "features pixels"}: LXMERT reads region features; leave it '
                         'out, or give --model vlbert')
    flags = {'l_layers': options.llayers, 'x_layers': options.xlayers, 'r_layers': options.rlayers,
             'hidden_dropout_prob': options.dropout, 'attention_probs_dropout_prob': options.dropout}
    try:
        return dataclasses.replace(config, **{name: value for name, value in flags.items() if value is not None})
    except ValueError as error:
        raise DataError(f'{path} with --llayers, --xlayers, --rlayers and --dropout: {error}') from None


def answers_and_images(state, config):
    """(how many answers, about how many images) the answer layers of a task's snapshot score; None where it has none."""
    first, last = (state.get(f'logit_fc.{place}.weight') for place in (0, 3))
    return None if first is None or last is None else (len(last), first.shape[1] // config.hidden_size)


class LxmertEncoder(Encoder):
    """Words and regions to the pooled vector of [CLS]; each of k images is encoded with the text, and their vectors are
    joined."""

    needs = frozenset({'regions', 'boxes'})

    def __init__(self, config, tokenizer=None):
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.lxrt_encoder = LXRTEncoder(config)

    def write(self, texts, max_length, blank=False):
        ids, _, counts = self.tokenizer.encode_counted(texts, max_length)
        return {'input_ids': ids, 'counts': counts}

    def forward(self, batch, record_attention=False):
        ids, images = batch['input_ids'], images_of_entries(batch)
        inputs = ids, (images['features'], images['boxes']), images.get('visual_attention_mask')
        if self.returns_visual:
            (_, visual), pooled, *attention = self.lxrt_encoder.model.bert(ids, None, ids != 0, *inputs[1:],
                                                                           return_attention=record_attention)
            return States(pooled.view(len(ids), -1), visual=visual, attentions=attentions_of(*attention))
        if not record_attention:
            return States(self.lxrt_encoder(*inputs).view(len(ids), -1))  # (e * k, d) -> (e, k * d)
        pooled, attention = self.lxrt_encoder(*inputs, return_attention=True)
        return States(pooled.view(len(ids), -1), attentions=attentions_of(attention))

    def hidden_states(self, batch):
        """(pooled (m, d), {layer: word states}, {layer: region states}), 0 at padding; layers: `layer_names`."""
        images = images_of_entries(batch)
        pooled, (words, regions) = self.lxrt_encoder(batch['input_ids'], (images['features'], images['boxes']),
                                                   images.get('visual_attention_mask'), hidden_states=True)
        return pooled, words, regions

    def pooled_size(self, images):
        return images * self.config.hidden_size

    def classifier(self, answers, images):
        return answer_layers(self.config, answers, images)

    def region_classifier(self):
        d = self.config.hidden_size
        return nn.Sequential(nn.Linear(d, d), nn.GELU(), layer_norm(d), nn.Linear(d, 1)).apply(initialise(self.config))

    def match_classifier(self, images):
        return nn.Linear(self.pooled_size(images), 2).apply(initialise(self.config))  # as that of pre-training

    def parts(self):
        return parts_of(self.lxrt_encoder.model.bert)

    def original_name(self, name):
        head = 'region_fc.' if self.returns_visual else 'logit_fc.'
        name = re.sub(r'^classifier\.(?=weight|bias)', MATCH_HEAD, name.removeprefix('encoder.'))
        return name.replace('classifier.', head, 1)


def parts_of(bert):
    """Encoder.parts of an LXRTModel. Layer i is language layer i and, as far as there is one, object relationship layer i; the
    cross-modality layers follow."""
    layers = bert.encoder
    single = ([layer for layer in pair if layer is not None] for pair in zip_longest(layers.layer, layers.r_layers))
    return [[bert.embeddings, layers.visn_fc], *single, *([layer] for layer in layers.x_layers), [bert.pooler]]


def attentions_of(probabilities=None):
    """The Attention list of what LXRTModel returns with return_attention; empty without it."""
    return [Attention(name, *sides_of(name), of_layer) for name, of_layer in (probabilities or {}).items()]


def sides_of(name):
    """(queries, keys) of an attention by its name in `attention_names`."""
    layer, _, which = name.partition('.')
    if which in ('lang_to_visn', 'visn_to_lang'):
        return ('words', 'visual') if which == 'lang_to_visn' else ('visual', 'words')
    side = 'words' if which == 'lang' or layer.startswith('lang') else 'visual'
    return side, side


class Pretraining(Head):
    """LXMERT with up to five objectives: masked words, matching, region features, region labels, question answering."""

    ARGUMENTS = ('input_ids', 'attention_mask', 'masked_lm_labels', 'visual_feats', 'obj_labels', 'matched_label', 'ans',
                 'visual_attention_mask')  # of the model, which a batch has or not

    def __init__(self, config, recipe, answers=None, options=None):
        super().__init__(None, recipe)
        self.sources = []  # names of the sources of sentences, by their number in a batch
        objectives = {} if options is None else {
            'task_mask_lm': options.taskMaskLM, 'task_matched': options.taskMatched, 'task_obj_predict': options.taskObjPredict,
            'visual_losses': options.visualLosses, 'task_qa': options.taskQA}
        self.model = LXRTPretraining(config, **objectives, num_answers=len(answers or ()))

    def counts(self, micro_batches):
        counts = {}
        for batch in micro_batches:
            parts = label_counts(batch['boxes'], batch.get('masked_lm_labels'), batch.get('matched_label'), batch.get('ans'),
                                 batch.get('visual_attention_mask'))
            counts = {name: counts.get(name, 0) + count for name, count in parts.items()}
        return counts

    def parts(self):
        return parts_of(self.model.bert)

    def logits(self, batch):
        """The pooled vectors (b, d)."""
        images = batch['visual_feats'], batch['boxes']
        return self.model.bert(batch['input_ids'], None, batch['attention_mask'], images, batch.get('visual_attention_mask'))[1]

    def forward(self, batch, counts):
        """The losses and {'asked SOURCE', 'right SOURCE': numbers of questions}."""
        losses, logits = self.model(**{name: batch.get(name) for name in self.ARGUMENTS}, pos=batch['boxes'], counts=counts,
                                    predicted={'words': batch.get('words_at'), 'regions': batch.get('regions_at')})
        metrics = {}
        if 'ans' in batch:
            asked = batch['ans'] != -1
            for what, chosen in (('asked', asked), ('right', asked & (logits.argmax(1) == batch['ans']))):
                # Not bincount, which waits for the device to tell it the largest source.
                counted = chosen.new_zeros(len(self.sources), dtype=torch.double).index_add_(0, batch['source'], chosen.double())
                metrics |= {f'{what} {source}': counted[i] for i, source in enumerate(self.sources)}
        return losses, metrics

    def original_name(self, name):
        return name.removeprefix('model.')


def read_weights(path):
    """The tensors of a file of weights of any kind, by the names of the original code."""
    return read_lxmert(path)


def recognises(names):
    """Whether a file with tensors of these names may be of LXMERT: it has BERT's words."""
    return any(lxmert_name(name).endswith(WORDS.removeprefix('bert.')) for name in names)


def load_encoder(path, config):
    """(an LxmertEncoder with the weights of a pre-trained file or a task's snapshot, the LoadReport)."""
    encoder = LxmertEncoder(config)
    return encoder, load_lxmert(encoder.lxrt_encoder.model, path)[0]


class PretrainedHeads(Head):
    """The encoder with the pre-trained heads of matching and of masked words, which need no further training."""

    def __init__(self, config):
        super().__init__(LxmertEncoder(config), RECIPES['pretrain'])
        self.cls = BertPreTrainingHeads(config, self.encoder.lxrt_encoder.model.bert.embeddings.word_embeddings.weight)

    def match_logits(self, batch):
        scores = self.cls.seq_relationship(self.encoder(batch).pooled).float()
        return scores[:, 1] - scores[:, 0]  # (b,)

    def word_logits(self, batch, places):
        _, words, _ = self.encoder.hidden_states(batch)
        last = list(words.values())[-1]  # (b, t, d)
        return self.cls.predictions(last.flatten(0, 1)[places]).float()

    def untrained(self, objective, options):
        return untrained(objective, options)

    def original_name(self, name):
        return name.removeprefix('encoder.lxrt_encoder.model.')


def untrained(objective, options):
    """Head.untrained of weights from pre-training."""
    flag = {'match': 'taskMatched', 'words': 'taskMaskLM'}[objective]
    return '' if options.get(flag, True) else f'was pre-trained without --{flag}, so that this head is random'


def load_match(head, path):
    """Fills a heads.Match from its snapshot or, as a start or untrained for the task, from pre-trained weights. Returns the
    LoadReport. Raises WeightsError for a file without the head."""
    state = read_lxmert(path)
    if not any(name.startswith(MATCH_HEAD) for name in state):
        raise WeightsError(f'{path}: has no matching head ({MATCH_HEAD}weight): the snapshot of another task, or an encoder '
                           'alone; name a snapshot of run/retrieval_finetune.bash, or pre-trained weights such as '
                           'snap/pretrained/model')
    pretrained = any(name.startswith('bert.') for name in state)
    if pretrained and (reason := untrained('match', read_run(path.parent).get('options', {}))):
        raise WeightsError(f'{path}: {reason}; name weights that were pre-trained with it')
    state = renamed(state, lambda name: re.sub(r'^bert\.', f'{TASK_PREFIX}bert.', name), path)
    return fill(head, state, str(path), (), (*PRETRAINING_HEADS, POSITION_IDS) if pretrained else (), head.original_name)


def load_pretrained(path, config):
    """(a PretrainedHeads with the weights of a pre-trained file, the LoadReport). Raises WeightsError for another file."""
    state = read_lxmert(path)
    if not any(name.startswith('cls.predictions.') for name in state):
        raise WeightsError(f'{path}: has no pre-trained heads of matching and masked words (cls.seq_relationship, '
                           'cls.predictions): a fine-tuned snapshot or an encoder alone; name pre-trained weights, such as '
                           'snap/pretrained/model or an epoch of run/lxmert_pretrain.bash, or a snapshot of retrieval with its '
                           'options.json beside it')
    head = PretrainedHeads(config)
    return head, fill(head, state, str(path), (re.escape(DECODER),), (*PRETRAINING_HEADS, POSITION_IDS), head.original_name)


def load_start(head, start):
    """Loads the weights of a Start; returns the reports to print. Raises WeightsError."""
    pretraining = isinstance(head, Pretraining)
    encoder = head.model if pretraining else head.encoder.lxrt_encoder.model
    if start.kind == 'scratch':
        return []
    if start.kind == 'bert':
        return [load_bert(encoder, start.path)]
    if start.kind == 'encoder':
        report, state = load_lxmert(encoder, start.path)
        last = {name.removeprefix(MATCH_HEAD): tensor for name, tensor in state.items() if name.startswith(MATCH_HEAD)}
        if not isinstance(head, Match) or not last:
            return [report]
        return [report, fill(head.classifier, last, f'the matching head of {start.path}')]
    if start.kind == 'all' and isinstance(head, Match):
        return [load_match(head, start.path)]
    if start.kind == 'all':
        return [load_pretraining(encoder, start.path)[0] if pretraining
                else head.load_original(read_task(start.path), str(start.path))]
    if pretraining:
        report, state = load_pretraining(encoder, start.path, answers=False)
        layers = head.model.answer_head.logit_fc
    else:
        report, state = load_lxmert(encoder, start.path)
        layers = head.classifier
    transfer_answers(layers, answer_head(state, start.path), start, 'answer_head.logit_fc.')
    return [report]
