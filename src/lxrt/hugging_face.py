"""LXMERT's tensors and config under the names of Hugging Face's transformers. Does not import transformers."""

import re
from dataclasses import asdict

import torch
from torch import nn

from lxrt.entry import LXRTEncoder
from lxrt.modeling import LXRTFeatureExtraction, answer_layers
from lxrt.pretraining import LXRTPretraining
from lxrt.weights import DECODER, NLVR2_HEAD, TASK_PREFIX, read_task

__all__ = ['HEAD_FILE', 'MAY_MISS', 'TOKENIZER', 'answer_count', 'architecture_of', 'complete', 'example', 'hf_config',
           'hf_tensors', 'is_task', 'model_of', 'read_task']

PRETRAINING, ANSWERS, ENCODER = 'LxmertForPreTraining', 'LxmertForQuestionAnswering', 'LxmertModel'
TOKENIZER = {'tokenizer_class': 'LxmertTokenizer', 'do_lower_case': True, 'model_max_length': 20}  # as it was trained
HEAD_FILE = NLVR2_HEAD  # the tensors that a class of transformers has no place for
MAY_MISS = re.escape(DECODER),  # tied in transformers, so that its files lack it
EXAMPLE = '''import torch
from transformers import {architecture}, LxmertTokenizer

model = {architecture}.from_pretrained({name!r}).eval()
tokenizer = LxmertTokenizer.from_pretrained({name!r})
{images}
features, boxes = torch.rand({count}, 36, {size}), torch.rand({count}, 36, 4)
tokens = tokenizer({texts}, padding=True, truncation=True, return_tensors='pt')
with torch.no_grad():
    out = model(**tokens, visual_feats=features, visual_pos=boxes)
{after}'''
PAIRS = '''from safetensors.torch import load_file  # the head, for which transformers has no class

state = {{key.removeprefix('logit_fc.'): value for key, value in load_file({name!r} + '/nlvr2_head.safetensors').items()}}
wide, n = state['0.weight'].shape[0], len(state['3.bias'])
layers = torch.nn.Linear(wide, wide), torch.nn.GELU(), torch.nn.LayerNorm(wide, eps=1e-12), torch.nn.Linear(wide, n)
head = torch.nn.Sequential(*layers)
head.load_state_dict(state)
chances = head(out.pooled_output.view(-1, wide)).softmax(-1)  # (statements, 2): False, True'''
AFTER = {
    ANSWERS: '''chances = out.question_answering_score.{link}  # (questions, answers)
print([model.config.id2label[int(best)] for best in chances.argmax(-1)])''',
    PRETRAINING: '''print(out.prediction_logits.shape)  # of words
print(out.cross_relationship_score.softmax(-1))  # does the sentence belong to the picture? no, yes''',
    ENCODER: PAIRS,
}


def architecture_of(state, config, output=None):
    """The class of transformers that holds tensors by our names: pre-training, answers about one image, or the encoder alone.
    For answers about two images (NLVR2) transformers has no class: the encoder's, and a head that it does not know. None for
    other tasks; output: heads.Recipe.output of the task, None: not known."""
    if 'cls.predictions.bias' in state:
        return PRETRAINING
    if output not in (None, 'answer'):
        return None
    return ANSWERS if is_task(state) and _images(state, config) == 1 else ENCODER


def is_task(state):
    """Whether tensors by our names are those of a task's model, an encoder with answer layers."""
    return 'logit_fc.0.weight' in state


def answer_count(state):
    """The number of answers of the head among the tensors; 0 without a head."""
    return next((len(tensor) for name, tensor in state.items() if name.endswith('logit_fc.3.bias')), 0)


def _images(state, config):
    return state['logit_fc.0.weight'].shape[-1] // config.hidden_size


def _region_losses(state):
    return [kind for kind in ('obj', 'attr', 'feat') if f'obj_predict_head.decoder_dict.{kind}.weight' in state]


def complete(state):
    """The tensors of a file of transformers without its buffers and with the tied decoder, as snapshots have them."""
    state = {name: tensor for name, tensor in state.items() if not name.endswith('embeddings.position_ids')}
    if 'cls.predictions.bias' in state and DECODER not in state:
        state[DECODER] = state['bert.embeddings.word_embeddings.weight']
    return state


def model_of(state, config):
    """A model on the meta device with the parameters that the tensors should have, to compare them with."""
    answers = answer_count(state)
    with torch.device('meta'):
        if 'cls.predictions.bias' in state:
            kinds = _region_losses(state)
            return LXRTPretraining(config, task_obj_predict=bool(kinds), visual_losses=','.join(kinds), task_qa=answers > 0,
                                   num_answers=answers)
        if is_task(state):
            return nn.ModuleDict({'lxrt_encoder': LXRTEncoder(config),
                                  'logit_fc': answer_layers(config, answers, _images(state, config))})
        return LXRTFeatureExtraction(config)


def hf_tensors(state, architecture):
    """(tensors of a class of transformers by its names, tensors of a head that it does not have)."""
    state = {name.removeprefix(TASK_PREFIX): tensor for name, tensor in state.items() if name != DECODER}  # tied there
    body = {name: tensor for name, tensor in state.items() if name.startswith('bert.')}
    heads = {name: tensor for name, tensor in state.items() if name not in body}
    if architecture == ENCODER:
        return {name.removeprefix('bert.'): tensor for name, tensor in body.items()}, heads
    prefix = 'answer_head.' if architecture == ANSWERS else ''
    return ({re.sub(r'^bert\.', 'lxmert.', name): tensor for name, tensor in body.items()}
            | {prefix + name: tensor for name, tensor in heads.items()}, {})


def hf_config(config, state, answers, architecture):
    """The content of a config.json that transformers reads as its LxmertConfig. answers: list of str or None."""
    values = asdict(config) | {
        'model_type': 'lxmert', 'architectures': [architecture], 'num_qa_labels': answer_count(state) or 2,
        'task_mask_lm': True, 'task_matched': True, 'visual_loss_normalizer': 1 / 0.15,
        'task_obj_predict': 'obj_predict_head.transform.dense.weight' in state,
        'task_qa': architecture == ANSWERS or answer_count(state) > 0,
        **{f'visual_{kind}_loss': kind in _region_losses(state) for kind in ('obj', 'attr', 'feat')},
    }
    if answers:
        values |= {'id2label': dict(enumerate(answers)), 'label2id': {answer: i for i, answer in enumerate(answers)}}
    return values


def example(config, architecture, name, link):
    """Code that uses the model, on regions that are drawn at random. link: of logits to probabilities."""
    two = architecture == ENCODER
    return EXAMPLE.format(
        architecture=architecture, name=name, size=config.visual_feat_dim, count=4 if two else 2,
        images='# Of each picture the regions of a Faster R-CNN; boxes are x1, y1, x2, y2 divided by its width and height.'
               + ('\n# Two pictures a statement, one after the other; so the statement comes twice.' if two else ''),
        texts="['both have a dog'] * 2 + ['one is red'] * 2" if two else "['What is the man holding?', 'Is it red?']",
        after=AFTER[architecture].format(name=name, link=link))
