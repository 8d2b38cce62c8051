"""A tiny single-stream encoder behind the contract of heads.py."""

import torch
from torch import nn

from bert.weights import read_state
from heads import Attention, Encoder, Match, Recipe, States, head_for, images_of_entries
from lxrt.config import LxrtConfig

RECIPES = {
    'vqa': Recipe('answer'), 'nlvr2': Recipe('answer', images=2, loss='CE', loss_factor=1, schedule='warmup_constant'),
    'choice': Recipe('choice', clip=1.0), 'region': Recipe('region'), 'match': Recipe('match'),
    'classify': Recipe('answer', loss='CE', loss_factor=1), 'multilabel': Recipe('answer'),
}


class SingleStream(Encoder):
    needs = frozenset({'regions', 'boxes'})

    def __init__(self, config):
        super().__init__()
        self.config, d = config, config.hidden_size
        self.words = nn.Embedding(config.vocab_size, d)
        self.segments, self.positions = nn.Embedding(2, d), nn.Embedding(config.max_position_embeddings, d)
        self.features, self.boxes = nn.Linear(config.visual_feat_dim, d), nn.Linear(4, d)
        self.query, self.key, self.value, self.output = (nn.Linear(d, d) for _ in range(4))

    def write(self, texts, max_length, blank=False):
        ids, segments = self.tokenizer.encode_pairs(texts, max_length)
        return {'input_ids': ids, 'token_type_ids': segments}

    def forward(self, batch, record_attention=False):
        ids, images = batch['input_ids'], images_of_entries(batch)
        e, t = ids.shape
        words = self.words(ids) + self.segments(batch['token_type_ids']) + self.positions.weight[:t]
        regions = self.features(images['features']) + self.boxes(images['boxes'])  # (e * k, o, d)
        mask = images.get('visual_attention_mask', torch.ones(regions.shape[:2], device=ids.device))
        not_padding = torch.cat([ids != 0, mask.reshape(e, -1) != 0], 1)[:, None]  # (e, 1, t + k * o)
        x = torch.cat([words, regions.reshape(e, -1, regions.shape[-1])], 1)
        scores = (self.query(x) @ self.key(x).mT).masked_fill(~not_padding, -1e4)
        attention = scores.div(x.shape[-1] ** 0.5).softmax(-1)
        x = x + self.output(torch.tanh(attention @ self.value(x)))
        recorded = [Attention('layer1', 'all', 'all', attention[:, None])] if record_attention else []
        return States(x[:, 0], x[:, :t], x[:, t:].reshape(len(regions), -1, x.shape[-1]), attentions=recorded)

    def parts(self):
        return [[self.words, self.segments, self.positions, self.features, self.boxes],
                [self.query, self.key, self.value, self.output], []]

    def pooled_size(self, images):
        return self.config.hidden_size

    def classifier(self, answers, images):
        return nn.Linear(self.pooled_size(images), answers)

    def region_classifier(self):
        return nn.Linear(self.config.hidden_size, 1)

    def original_name(self, name):
        return name.replace('encoder.', 'stream.', 1)


class Pretrained(Match):
    """Matching, and words by their embeddings."""

    def word_logits(self, batch, places):
        return self.encoder(batch).words.flatten(0, 1)[places] @ self.encoder.words.weight.T


def load_pretrained(path, config):
    head = Pretrained(SingleStream(config), RECIPES['match'])
    return head, head.load_original(read_state(path), str(path))


def recipe(task, options=None):
    return RECIPES[task]


def build(task, config, answers=None, options=None):
    return head_for(SingleStream(config), recipe(task, options), answers and len(answers))


def read_config(folder, options):
    return config_from_json(folder / 'config.json')


def config_from_json(path):
    return LxrtConfig.from_json(path)


def check_config(path, config):
    pass


def load_start(head, start):
    return [] if start.kind == 'scratch' else [head.load_original(read_state(start.path), str(start.path))]
