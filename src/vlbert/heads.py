"""VL-BERT behind the contract of heads.py: its encoder, its recipes, and the weights that it starts from."""

import dataclasses
import re

import numpy as np
import torch
from torch import nn

import bert.config
from bert.config import check_config  # noqa: F401, of the contract
from bert.layers import BertPredictionHeadTransform, initialise
from bert.tokenization import MASK, SEP
from bert.weights import WeightsError, fill
from heads import (
    Head,
    Recipe,
    SingleStream,
    find_recipe,
    head_for,
    images_of_entries,
    layer_names,  # noqa: F401, of the contract
    overlaps,
    transfer_answers,
)
from images.transforms import VLBertTransform
from vlbert.cnn import original_name
from vlbert.config import VLBertConfig
from vlbert.modeling import LONG_SIDE, SHORT_SIDE, VLBertModel, cut_boxes, fixed_dropout, original_boxes, resized
from vlbert.pretraining import Pretraining, RegionTransform
from vlbert.weights import (
    PIXELS,
    RELATIONSHIP,
    VCR_PREFIX,
    WORDS,
    file_name_of,
    load_bert,
    load_encoder_weights,
    load_resnet,
    read_vlbert,
    vlbert_name,
)

CLASSIFIER_DROPOUT = 0.1  # as in the original code, whatever the config's rate is
CHOICE_LENGTH = 67  # tokens of a question with a choice in VCR: 64 pieces, [CLS] and two [SEP]
CHOICE_SIDE = 1200  # pixels: the longest side of VCR's images in the original code
REGION_CLASSES = 81  # of VCR: the whole image and COCO's
TEXT_LENGTH = 64  # tokens of a question of the published data, none of which is cut, and of a text of pre-training
ADAMW = {'optim': 'adamw', 'schedule': 'triangle', 'weight_decay': 1e-4}

# VQA, RefCOCO+, VCR and pre-training as in the original code, which has none of the other tasks.
ANSWER = Recipe('answer', lr_per_example=6.25e-7, batch_size=256, epochs=5, warmup=500, clip=1.0, text_length=TEXT_LENGTH,
                mirror='words', **ADAMW)
CLASS = dataclasses.replace(ANSWER, loss='CE', loss_factor=1, batch_size=64, mirror='')
RECIPES = {
    'vqa': ANSWER, 'gqa': ANSWER, 'nlvr2': dataclasses.replace(CLASS, images=2), 'nlvr': CLASS, 'classify': CLASS,
    'multilabel': dataclasses.replace(CLASS, loss='BCE', loss_factor=None),
    'entailment': CLASS,
    'refcoco': Recipe('region', lr_per_example=8e-7, batch_size=32, epochs=20, warmup=3750, clip=1.0, text_length=TEXT_LENGTH,
                      mirror='words', **ADAMW),
    'retrieval': dataclasses.replace(CLASS, output='match'),
    'vcr': Recipe('choice', optim='momentum', lr_per_example=7e-5, batch_size=64, epochs=20, schedule='step', warmup=1000,
                  milestones=(14, 18), clip=10.0, weight_decay=1e-4, text_length=CHOICE_LENGTH, mirror='images'),
    'pretrain': Recipe('pretrain', lr_per_example=1e-7, batch_size=128, examples_per_item=2, epochs=10, warmup=16000, clip=10.0,
                       text_length=TEXT_LENGTH, mirror='images', **ADAMW),
}
CAPTIONS_ONLY = dataclasses.replace(RECIPES['pretrain'], batch_size=256, examples_per_item=1, warmup=8000)


def recipe(task, options=None):
    """The Recipe of a task. Raises ValueError for a task without one."""
    if task == 'pretrain' and options and options.withoutText:
        return CAPTIONS_ONLY
    return find_recipe(RECIPES, 'vlbert', task, options)


def build(task, config, answers=None, options=None):
    """A Head with random weights. Raises ValueError for a task that VL-BERT has no recipe for."""
    task_recipe = recipe(task, options)
    if task == 'pretrain':
        text_only = not (options and options.withoutText)
        return Pretraining(VLBertEncoder(config, task_recipe.mirror, text_only=text_only, masked_features=True), task_recipe)
    if task_recipe.output == 'choice':
        config = dataclasses.replace(config, with_pooler=True)
        return head_for(ChoiceEncoder(config, task_recipe.mirror), task_recipe)
    head = head_for(VLBertEncoder(config, task_recipe.mirror), task_recipe, answers and len(answers))
    head.encoder.one_orientation = task_recipe.output == 'region'  # as in the original code
    head.answer_texts = answers
    return head


def config_from_json(path):
    return VLBertConfig.from_yaml(path) if path.suffix in ('.yaml', '.yml') else VLBertConfig.from_json(path)


def read_config(folder, options):
    """The config.json of a folder (the base model if there is none), with --dropout and --features."""
    config = bert.config.read_config(VLBertConfig, folder, options)
    if options.features:
        config = dataclasses.replace(config, pixels=options.features == 'pixels')
    if options.loadResNet and not config.pixels:
        raise ValueError('--loadResNet: this model reads region features, and has no ResNet; give --features pixels, or leave it '
                         'out')
    return config


def answers_and_images(state, config):
    """(how many answers, about how many images) the answer layers of a task's snapshot score; None where it has none."""
    first, last = (state.get(f'final_mlp.{name}.weight') for name in ('0.dense', '2'))
    if first is None or last is None or 'final_mlp.0.LayerNorm.weight' not in state:  # those of regions have no layer norm
        return None
    return len(last), first.shape[1] // config.hidden_size


class VLBertEncoder(SingleStream):
    """Words, regions and [END]. The pooled vector is the state of [MASK], the blank that an answer fills; of texts without a
    blank it is that of [CLS], through the pooler where there is one."""

    further = 1  # [END]
    longest = LONG_SIDE  # pixels of an image's long side, after which boxes are cut
    one_orientation = False  # whether the images of a training step are all upright, or none is
    fixed_size = False  # whether pixels are padded to the longest side in every batch

    def __init__(self, config, mirror='', text_only=False, masked_features=False):
        super().__init__()
        self.config, self.mirror = config, mirror
        self.needs = frozenset({'pixels' if config.pixels else 'regions', 'boxes', 'whole', 'word_regions'})
        self.model = VLBertModel(config, text_only, masked_features)

    def transform(self, training):
        """The transform by which pictures become pixels, of images.transforms."""
        short = self.config.image_side
        return VLBertTransform(self.longest * short // SHORT_SIDE, self.fixed_size, short)

    def write(self, texts, max_length, blank=False):
        """[CLS] text [SEP], or [CLS] text [SEP] [MASK] [SEP] with a blank, whose two tokens max_length does not count."""
        ids, types, counts = self.tokenizer.encode_counted(texts, max_length)
        lengths = np.minimum(counts[:, 3], max_length)
        longest = int(lengths.max(initial=1))
        if not blank:
            return {'input_ids': ids[:, :longest], 'token_type_ids': types[:, :longest], 'counts': counts}
        ids, types = (np.pad(array[:, :longest], ((0, 0), (0, 2))) for array in (ids, types))
        rows = np.arange(len(ids))
        for place, token in enumerate((MASK, SEP)):
            ids[rows, lengths + place], types[rows, lengths + place] = self.tokenizer.vocab[token], 1
        return {'input_ids': ids, 'token_type_ids': types, 'slot': lengths.astype(np.int64), 'counts': counts}

    def states(self, batch, places=None, **options):
        """VLBertModel.forward for a batch: each of n texts with each of its k images, n * k sequences."""
        images, n = images_of_entries(self.encode_images(batch)), len(batch['input_ids'])
        boxes, features = self.boxes(images), images['image_states' if self.config.pixels else 'features']
        texts = {key: batch.get(key) for key in ('input_ids', 'token_type_ids', 'word_regions')}
        if 'pictures' not in batch and len(boxes) > n:
            texts = {key: value if value is None else value.repeat_interleave(len(boxes) // n, 0) for key, value in texts.items()}
        return self.model(
            texts['input_ids'], texts['token_type_ids'], features, boxes, images.get('visual_attention_mask'),
            batch.get('pictures'), texts['word_regions'], batch.get('masked_regions'), places, **options)

    def boxes(self, batch):
        """The boxes (m, o, 4) of a batch as the original code sees them, scaled to 0..1."""
        if 'pixel_size' in batch:
            return cut_boxes(batch['boxes'], batch['pixel_size'], batch.get('mirrored'))
        if 'image_size' in batch:
            return original_boxes(batch['boxes'], batch['image_size'], batch.get('mirrored'), self.longest)
        return batch['boxes']

    def encode_images(self, batch):
        """Of a model that reads pixels, the batch with image_states (m, o, f), the features of regions, in place of pixels
        (m, 3, h, w) and masks (m, o, 14, 14). Raises ValueError for a batch of the other kind.

        pixel_size (m, 2): height and width of each image within pixels; without it, all of them.
        """
        if not self.config.pixels:
            if 'pixels' in batch:
                raise ValueError('expected features of regions in a batch, found pixels: the config of this model says "pixels": '
                                 'false; give --features pixels, or a batch with features')
            return batch
        if 'image_states' in batch:
            return batch
        if 'pixels' not in batch:
            raise ValueError('expected pixels in a batch, found none: the config of this model says "pixels": true; give '
                             '--features precomputed, or a batch with pixels')
        pixels, mask, erased = batch['pixels'], batch.get('visual_attention_mask'), batch.get('masked_regions')
        size = batch.get('pixel_size')
        size = torch.tensor(pixels.shape[2:], device=pixels.device).expand(len(pixels), 2) if size is None else size
        batch = {name: value for name, value in batch.items() if name != 'pixels'} | {'pixel_size': size}
        boxes = self.boxes(batch) * size.flip(1).repeat(1, 2)[:, None]  # in pixels
        features = self.model.image_feature_extractor.cnn(pixels, boxes, mask, batch.pop('masks', None), erased,
                                                          batch.pop('region_rows', None))
        return batch | {'image_states': features}

    def pooled(self, batch, states):
        pooler = None if 'slot' in batch else getattr(self.model.vlbert, 'pooler', None)
        return pooler(states[:, None]) if pooler else states

    def classifier(self, answers, images):
        size = self.pooled_size(images)
        layers = nn.Sequential(BertPredictionHeadTransform(self.config, size), fixed_dropout(CLASSIFIER_DROPOUT, self.config),
                               nn.Linear(size, answers))
        for layer in (layers[0].dense, layers[2]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        layers[2].zeros_allowed = True  # rows of answers that another snapshot lacks start at 0
        return layers

    def region_classifier(self):
        # The middle layer is the original's dropout, of rate 0.
        layers = nn.Sequential(RegionTransform(self.config), nn.Identity(), nn.Linear(self.config.hidden_size, 1))
        for layer in (layers[0].dense, layers[2]):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        return layers

    @staticmethod
    def region_overlaps(boxes, targets, image_size):
        """As in the original code, of boxes that are cut at the border of the resized image, in its pixels."""
        boxes, targets = (original_boxes(one, image_size) for one in (boxes, targets[:, None]))
        return overlaps(boxes, targets[:, 0], (1 / resized(image_size).flip(1)).to(boxes))

    def parts(self):
        core, model = self.model.vlbert, self.model
        above = [core.encoder, core.pooler] if hasattr(core, 'pooler') else [core.encoder]
        embeddings = [module for module in (*core.children(), *model.children()) if module not in (*above, core)]
        return [embeddings, *([layer] for layer in core.encoder.layer), above[1:]]

    def original_name(self, name):
        return original_name(name.removeprefix('encoder.').removeprefix('model.')).replace('classifier.', 'final_mlp.', 1)


class ChoiceEncoder(VLBertEncoder):
    """Of VCR: the pooled vector is that of [CLS], and regions have classes."""

    longest, fixed_size = CHOICE_SIDE, True

    def choice_classifier(self, images):
        layer = nn.Linear(self.pooled_size(images), 1)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        return nn.Sequential(fixed_dropout(CLASSIFIER_DROPOUT, self.config), layer)

    def class_classifier(self):
        layers = nn.Sequential(RegionTransform(self.config), nn.Identity(), nn.Linear(self.config.hidden_size, REGION_CLASSES))
        return layers.apply(initialise(self.config))

    def original_name(self, name):
        if name.startswith('classes.'):
            return name.replace('classes.', 'cnn_loss_reg.', 1)
        return re.sub(r'^vlbert\.', VCR_PREFIX, super().original_name(name))


def read_task(path):
    """The tensors of a task's snapshot, by the names of the original code."""
    return read_vlbert(path)


def read_weights(path):
    """The tensors of a file of weights of any kind, by the names of the original code."""
    return read_vlbert(path)


def recognises(names):
    """Whether a file with tensors of these names is of VL-BERT."""
    return WORDS in map(vlbert_name, names)


def load_encoder(path, config):
    """(a VLBertEncoder with the weights of a pre-trained file or a task's snapshot, the LoadReport)."""
    head, state = Head(VLBertEncoder(config), RECIPES['vqa']), read_vlbert(path)
    head.encoder.blank = answers_and_images(state, config) is not None
    return head.encoder, load_encoder_weights(head, state, path)


def load_pretrained(path, config):
    """(a Pretraining head with the weights of a pre-trained file, the LoadReport). Raises WeightsError for another file."""
    state = read_vlbert(path)
    if not any(name.startswith('vlbert.mlm_head.') for name in state):
        raise WeightsError(f'{path}: has no pre-trained head of masked words (vlbert.mlm_head): a fine-tuned snapshot or an '
                           'encoder alone; name pre-trained weights, such as an epoch of run/vlbert_pretrain.bash')
    matching = any(name.startswith('vlbert.relationsip_head.') for name in state)
    config = dataclasses.replace(config, with_relationship=matching)
    head = Pretraining(VLBertEncoder(config, text_only=True, masked_features=True), RECIPES['pretrain'])
    head.encoder.blank = False
    return head, load_encoder_weights(head, state, path)


def load_start(head, start):
    """Loads the weights of a Start; returns the reports to print. Raises WeightsError."""
    reports = load_model(head, start)
    if start.resnet:
        return [*reports, load_resnet(head, start.resnet)]
    if head.encoder.config.pixels and not any(re.match(PIXELS, name) for report in reports for name in report.matched):
        reports.append('The ResNet starts from random weights: no file that was loaded has one; --loadResNet names its weights.')
    return reports


def load_model(head, start):
    """load_start, without the weights of the ResNet alone."""
    if start.kind == 'scratch':
        return []
    if start.kind == 'all':
        state, source = read_vlbert(start.path), str(start.path)
        if (pixels := any(re.match(PIXELS, name) for name in state)) != head.encoder.config.pixels:
            raise WeightsError(f'{source}: is of a model that reads {"pixels" if pixels else "region features"}; give --features '
                               f'{"pixels" if pixels else "precomputed"}')
        if isinstance(head, Pretraining):  # with or without the embedding of texts
            return [head.load_original(state, source)]
        return [fill(head, state, source, rename=file_name_of(head))]
    if start.kind == 'bert':
        reports = [load_bert(head, start.path)]
    else:
        state = read_vlbert(start.path)
        # Pre-trained files have no pooler: it stays BERT's.
        first = [load_bert(head, start.bert)] if start.bert and isinstance(head.encoder, ChoiceEncoder) else []
        reports = [*first, load_encoder_weights(head, state, start.path)]
        if isinstance(head.encoder, ChoiceEncoder):
            start_choices(head, state)
    if start.kind == 'answers':
        last = {name.removeprefix('final_mlp.'): tensor for name, tensor in state.items() if name.startswith('final_mlp.')}
        transfer_answers(head.classifier, last, start, 'final_mlp.')
    elif getattr(head, 'answer_texts', None):
        start_answers(head)
    return reports


@torch.no_grad()
def start_choices(head, state):
    """Copies the first segment over the second, which pre-training does not use, and starts the score of a choice from the head
    that tells whether caption and image belong together, if the file has one, as in the original code."""
    segments = head.encoder.model.vlbert.token_type_embeddings.weight
    segments[1] = segments[0]
    if (rows := state.get(f'{RELATIONSHIP}weight')) is not None and rows.shape[1] == segments.shape[1]:
        bias = state[f'{RELATIONSHIP}bias']
        head.classifier[1].weight.copy_(rows[1:] - rows[:1])
        head.classifier[1].bias.copy_(bias[1:] - bias[:1])


@torch.no_grad()
def start_answers(head):
    """Sets each answer's row of the classifier to the mean of the embeddings of its word pieces, as in the original code."""
    last, words = head.classifier[2], head.encoder.model.vlbert.word_embeddings.weight
    if last.weight.shape[1] != words.shape[1]:  # of several images
        return
    for row, answer in zip(last.weight, head.answer_texts, strict=True):
        if pieces := head.encoder.tokenizer.convert_tokens_to_ids(head.encoder.tokenizer.tokenize(answer)):
            row.copy_(words[pieces].mean(0))
