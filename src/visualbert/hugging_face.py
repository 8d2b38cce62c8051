"""VisualBERT's tensors and config under the names of Hugging Face's transformers, which are also ours. Does not import
transformers."""

import re
from dataclasses import asdict

import torch
from torch import nn

from visualbert import heads
from visualbert.heads import HEAD_FILE, read_task  # noqa: F401, of the interface of tools.convert
from visualbert.modeling import VisualBertModel

PRETRAINING, ANSWERS, ENCODER = 'VisualBertForPreTraining', 'VisualBertForQuestionAnswering', 'VisualBertModel'
TOKENIZER = {'tokenizer_class': 'BertTokenizer', 'do_lower_case': True}
MAY_MISS = heads.DECODER,  # tied
EXAMPLE = '''import torch
from transformers import {architecture}, BertTokenizer

model = {architecture}.from_pretrained({name!r}).eval()
tokenizer = BertTokenizer.from_pretrained({name!r})
features = torch.rand(2, 36, {size})  # of each picture the regions of a Faster R-CNN
texts = ['What is the man holding?{blank}', 'Is it red?{blank}']
tokens = tokenizer(texts, padding=True, return_tensors='pt')
with torch.no_grad():
    out = model(**tokens, visual_embeds=features, visual_attention_mask=torch.ones(2, 36))
{after}'''
AFTER = {
    ANSWERS: '''chances = out.logits.{link}  # (questions, answers)
print([model.config.id2label[int(best)] for best in chances.argmax(-1)])''',
    PRETRAINING: '''print(out.prediction_logits.shape)  # of words and regions
print(out.seq_relationship_logits.softmax(-1))  # does the sentence belong to the picture? yes, no''',
    ENCODER: 'print(out.last_hidden_state.shape)  # of words and regions',
}


def architecture_of(state, config, output=None):
    """The class of transformers that holds tensors by our names. VisualBertForQuestionAnswering reads the state of [MASK], as our
    answer heads do. The encoder's class and a head that it does not know for the others: VisualBertForVisualReasoning reads
    both pictures of NLVR2 in one sequence, ours each in its own; heads of pairs, regions and choices read no [MASK]. output:
    heads.Recipe.output of the task, which tells the two rows of a pair's head from two answers; None: not known.
    """
    if 'cls.predictions.bias' in state:
        return PRETRAINING
    one_image = (heads.answers_and_images(state, config) or (0, 0))[1] == 1
    return ANSWERS if one_image and output in (None, 'answer') else ENCODER


def is_task(state):
    """Whether tensors by our names are those of a task's model."""
    return 'cls.weight' in state


def answer_count(state):
    """The number of rows of the head among the tensors; 0 without one."""
    return len(state.get('cls.weight', ()))


def complete(state):
    """The tensors of a file of transformers with the decoder, which is tied there, as snapshots have them."""
    state = _untied(state)
    return state | ({'cls.predictions.decoder.weight': state[heads.WORDS]} if 'cls.predictions.bias' in state else {})


def _untied(state):
    return {name: tensor for name, tensor in state.items() if not re.match(heads.DECODER, name)}


def model_of(state, config):
    """A module on the meta device with the parameters that the tensors should have, to compare them with."""
    with torch.device('meta'):
        if 'cls.predictions.bias' in state:
            head = heads.build('pretrain', config)
            return nn.ModuleDict({'visual_bert': head.encoder.visual_bert, 'cls': head.cls})
        parts = {'visual_bert': VisualBertModel(config)}
        if is_task(state):
            parts['cls'] = nn.Linear(state['cls.weight'].shape[1], answer_count(state))
            parts['cls'].zeros_allowed = True
        return nn.ModuleDict(parts)


def hf_tensors(state, architecture):
    """(tensors of a class of transformers by its names, tensors of a head that it does not have)."""
    state = _untied(state)
    if architecture != ENCODER:
        return state, {}
    body = {name: tensor for name, tensor in state.items() if name.startswith('visual_bert.')}
    return ({name.removeprefix('visual_bert.'): tensor for name, tensor in body.items()},
            {name: tensor for name, tensor in state.items() if name not in body})


def hf_config(config, state, answers, architecture):
    """The content of a config.json that transformers reads as its VisualBertConfig, and this project as its own. answers: list of
    str or None."""
    values = asdict(config) | {'model_type': 'visual_bert', 'architectures': [architecture],
                               'visual_embedding_dim': config.visual_feat_dim, 'pad_token_id': 0}
    labels = answers or [f'LABEL_{i}' for i in range(answer_count(state))]
    return values | ({'id2label': dict(enumerate(labels)), 'label2id': {name: i for i, name in enumerate(labels)}} if labels
                     else {})


def example(config, architecture, name, link):
    """Code that uses the model, on regions that are drawn at random. link: of logits to probabilities."""
    return EXAMPLE.format(architecture=architecture, name=name, size=config.visual_feat_dim, after=AFTER[architecture].format(
        link=link), blank=' [MASK]' if architecture == ANSWERS else '')
