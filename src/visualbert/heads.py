"""VisualBERT behind the contract of heads.py: its encoder, its recipes, and the weights that it starts from."""

import re
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

import bert.config
from bert.config import check_config  # noqa: F401, of the contract
from bert.layers import Dropout, initialise
from bert.tokenization import MASK, SEP
from bert.weights import POSITION_IDS, WeightsError, canonical_name, fill, read_state
from heads import (
    Head,
    MaskedWordsAndMatch,
    Recipe,
    SingleStream,
    find_recipe,
    head_for,
    images_of_entries,
    layer_names,  # noqa: F401, of the contract
    transfer_answers,
)
from visualbert.config import VisualBertConfig
from visualbert.modeling import VisualBertModel

# VQA, NLVR2, VCR and pre-training on COCO as in the original code, RefCOCO as its Flickr30k; it has none of the other tasks. No
# question of the published data has more than 64 tokens.
CLASS = Recipe('answer', loss='CE', loss_factor=1, lr=2e-5, batch_size=64, epochs=10, clip=1.0, text_length=64)
ANSWER = replace(CLASS, loss='BCE', loss_factor=None, clip=0.25)
RECIPES = {
    'vqa': ANSWER, 'gqa': ANSWER, 'nlvr2': replace(CLASS, images=2), 'nlvr': CLASS, 'classify': CLASS, 'multilabel': ANSWER,
    'entailment': CLASS, 'retrieval': replace(CLASS, output='match'),
    'refcoco': replace(CLASS, output='region', batch_size=32, epochs=5),
    'vcr': replace(CLASS, output='choice', batch_size=32, epochs=8, text_length=128),
    'pretrain': replace(CLASS, output='pretrain', lr=5e-5, batch_size=48),
}
# Names in files of the original code and of BERT -> Hugging Face's of VisualBERT, which are also ours.
NAMES = ((r'^(bert\.)*(?=(embeddings|encoder|pooler)\.)', 'visual_bert.'), (r'^bert\.(cls|classifier)\.', 'cls.'),
         (r'embeddings\.projection\.', 'embeddings.visual_projection.'),
         (r'(token_type|position)_embeddings_visual\.', r'visual_\1_embeddings.'))
WORDS, PROJECTION = 'visual_bert.embeddings.word_embeddings.weight', 'visual_bert.embeddings.visual_projection.weight'
HEADS, DECODER = r'cls\.', r'cls\.predictions\.decoder\.'  # the decoder is tied to the words
HEAD_FILE = 'visualbert_head.safetensors'  # beside a VisualBertModel of transformers, which has no such head

recipe = partial(find_recipe, RECIPES, 'visualbert')
read_config = partial(bert.config.read_config, VisualBertConfig)
config_from_json = VisualBertConfig.from_json


def build(task, config, answers=None, options=None):
    encoder, task_recipe = VisualBertEncoder(config), recipe(task, options)
    if task != 'pretrain':
        return head_for(encoder, task_recipe, answers and len(answers))
    if options and (options.taskObjPredict or options.taskQA):
        raise ValueError('--taskObjPredict, --taskQA: VisualBERT has no such objective; give --taskMaskLM, --taskMatched or both')
    return MaskedWordsAndMatch(encoder, task_recipe, encoder.visual_bert.embeddings.word_embeddings.weight)


class VisualBertEncoder(SingleStream):
    """The pooled vector is the state of [MASK], the blank that an answer fills; without a blank that of [CLS], pooled."""

    needs = frozenset({'regions'})

    def __init__(self, config):
        super().__init__()
        self.config, self.visual_bert = config, VisualBertModel(config)

    def write(self, texts, max_length, blank=False):
        """[CLS] text [SEP], or with a blank [CLS] text [MASK] [SEP]."""
        ids, types, counts = self.tokenizer.encode_counted(texts, max_length - blank)
        if not blank:
            return {'input_ids': ids, 'token_type_ids': types, 'counts': counts}
        ids, types = (np.pad(array, ((0, 0), (0, 1))) for array in (ids, types))
        slot, rows = (ids != 0).sum(1) - 1, np.arange(len(ids))  # the place of [SEP]
        ids[rows, slot], ids[rows, slot + 1] = (self.tokenizer.vocab[token] for token in (MASK, SEP))
        return {'input_ids': ids, 'token_type_ids': types, 'slot': slot, 'counts': counts}

    def states(self, batch, *args, **options):
        images, texts = images_of_entries(batch), (batch['input_ids'], batch.get('token_type_ids'))
        k = len(images['features']) // len(texts[0])
        texts = (one if one is None else one.repeat_interleave(k, 0) for one in texts)
        return self.visual_bert(*texts, images['features'], images.get('visual_attention_mask'), *args, **options)

    def pooled(self, batch, states):
        return states if 'slot' in batch else self.visual_bert.pooler(states[:, None])

    def classifier(self, answers, images):
        layers = nn.Sequential(Dropout(self.config.hidden_dropout_prob), nn.Linear(self.pooled_size(images), answers))
        layers[1].zeros_allowed = True  # rows of answers that another snapshot lacks start at 0
        return layers.apply(initialise(self.config))

    def region_classifier(self):
        return self.classifier(1, 1)

    def parts(self):
        return [[self.visual_bert.embeddings], *([layer] for layer in self.visual_bert.encoder.layer), [self.visual_bert.pooler]]

    def original_name(self, name):
        return name.removeprefix('encoder.').replace('classifier.1.', 'cls.', 1)


def file_name(name):
    """The name of a tensor of a file among Hugging Face's of VisualBERT."""
    name = canonical_name(name)
    for pattern, new in NAMES:
        name = re.sub(pattern, new, name)
    return name


def read_weights(path):
    state = read_state(path, file_name)
    if WORDS not in state:
        raise WeightsError(f'{path}: expected weights of VisualBERT or BERT, found no {WORDS}; give another file')
    return {name: tensor for name, tensor in state.items() if not re.match(POSITION_IDS, name)}


def read_task(path):
    """The same, with those of HEAD_FILE beside a file of transformers that has no head."""
    state, head = read_weights(path), path.with_name(HEAD_FILE)
    alone = path.name == 'model.safetensors' and not any(re.match(HEADS, name) for name in state)
    return state | (read_state(head) if alone and head.is_file() else {})


def recognises(names):
    return PROJECTION in map(file_name, names)


def answers_and_images(state, config):
    weight = state.get('cls.weight', ())
    return (len(weight), weight.shape[1] // config.hidden_size) if len(weight) > 1 else None  # one row scores regions or choices


def load(head, path, complete=False):
    """Fills a head from a file: all of it, or all but the head of a task. Returns (LoadReport, the file's tensors)."""
    file, optional, pretraining = read_task(path), [DECODER if complete else HEADS], isinstance(head, MaskedWordsAndMatch)
    state, missing = {name: file[name] for name in file if complete or pretraining or not re.match(HEADS, name)}, [*optional]
    if not complete and PROJECTION not in file:  # of BERT: regions start with the embeddings of words, as in the original code
        missing.append(re.escape(PROJECTION.removesuffix('weight')))
        state |= {PROJECTION.replace('projection', f'{name}_embeddings'): file[words] for name in ('token_type', 'position')
                  if (words := WORDS.replace('word', name)) in file}
    return fill(head, state, str(path), missing, optional, head.original_name), file


def load_encoder(path, config):
    report, state = load(head := Head(VisualBertEncoder(config), RECIPES['vqa']), path)
    head.encoder.blank = answers_and_images(state, config) is not None
    return head.encoder, report


def load_pretrained(path, config):
    head = build('pretrain', config)
    head.encoder.blank = False
    return head, load(head, path, complete=True)[0]


def load_start(head, start):
    if start.kind == 'scratch':
        return []
    report, state = load(head, start.path, complete=start.kind == 'all')
    if start.kind == 'answers':
        layers = {name.replace('cls', '1'): state[name] for name in ('cls.weight', 'cls.bias') if name in state}
        transfer_answers(head.classifier, layers, start, 'cls.')
    return [report]
