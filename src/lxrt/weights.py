"""Weights for LXMERT: files of the original code, of Hugging Face's LXMERT and BERT, and snapshots of tasks.

Loading is strict (bert.weights).
"""

import re
from pathlib import Path

from bert.weights import (
    POSITION_IDS,
    WeightsError,
    canonical_name,
    fill,
    read_state,
    renamed,
    why_invalid,
    with_bert_prefix,
)

PRETRAINING_HEADS = (r'cls\.', r'obj_predict_head\.', r'answer_head\.')
TASK_PREFIX, TASK_HEAD = 'lxrt_encoder.model.', r'(logit|region)_fc\.'
WORDS, DECODER = 'bert.embeddings.word_embeddings.weight', 'cls.predictions.decoder.weight'  # tied
NLVR2_HEAD = 'nlvr2_head.safetensors'  # next to the model.safetensors of Hugging Face's LxmertModel, which has no such head


def lxmert_name(name):
    """canonical_name without the `model.` of Lightning or of an LXRTEncoder alone, and the original code's `bert.` for Hugging
    Face's `lxmert.`."""
    return re.sub(r'^lxmert\.', 'bert.', re.sub(r'^model\.', '', canonical_name(name)))


def read_lxmert(path):
    """The tensors of a file by the names of the original code, on the CPU.

    An encoder alone (Hugging Face's BertModel and LxmertModel) gets the prefix `bert.`, and the tensors of the file NLVR2_HEAD
    beside it are added, if there is one. Raises FileNotFoundError or WeightsError, which name the file.
    """
    path, state = Path(path), read_state(path, lxmert_name)
    if WORDS.removeprefix('bert.') in state:
        state = with_bert_prefix(state, path)
        if path.name == 'model.safetensors' and (head := path.with_name(NLVR2_HEAD)).is_file():
            state |= read_state(head)
    return state


def load_lxmert(encoder, path):
    """Fill an LXRTFeatureExtraction from a pre-trained LXMERT file or a task's snapshot: all of `bert.` must fit.

    An LXRTPretraining also gets those heads that the file has, except the answer head, whose answers may differ (as in the
    original code). Returns (LoadReport, the file's tensors), for a transfer of the answer head.
    """
    state = renamed(read_lxmert(path), lambda name: name.removeprefix(TASK_PREFIX), path)
    kept = {name for name in encoder.state_dict() if name.startswith('answer_head.')}
    loaded = {name: tensor for name, tensor in state.items() if name not in kept}
    return fill(encoder, loaded, str(path), PRETRAINING_HEADS, (*PRETRAINING_HEADS, TASK_HEAD, POSITION_IDS)), state


def answer_head(state, path):
    """The tensors of a file's answer layers, by their names in lxrt.modeling.answer_layers: of LXMERT's pre-training, a task or
    Hugging Face's models. Raises WeightsError that names the file if they cannot be trained weights."""
    head = {name: tensor for name, tensor in state.items() if re.match(r'(answer_head\.)?logit_fc\.', name)}
    for name, tensor in head.items():
        if reason := why_invalid(name, tensor, zeros_allowed='logit_fc.3.' in name):
            raise WeightsError(f'{path}: {name}: {reason}')
    return renamed(head, lambda name: name.rpartition('logit_fc.')[2], path)


def read_task(path):
    """The tensors of a task's snapshot, or of Hugging Face's LxmertForQuestionAnswering, by the names of a task's model."""
    state = read_lxmert(path)
    if any(name.startswith((TASK_PREFIX, 'cls.')) for name in state):
        return state
    state = {name: tensor for name, tensor in state.items() if not re.match(POSITION_IDS, name)}
    return renamed(state, lambda name: re.sub(r'^bert\.', f'{TASK_PREFIX}bert.', name.removeprefix('answer_head.')), path)


def load_pretraining(model, path, answers=True):
    """Fill all of an LXRTPretraining, without `answers` all but its answer head. The file may lack the tied decoder, as Hugging
    Face's do. Returns (LoadReport, the file's tensors)."""
    state = read_lxmert(path)
    may_miss = (re.escape(DECODER),) if answers else (re.escape(DECODER), r'answer_head\.')
    loaded = {name: tensor for name, tensor in state.items() if answers or not name.startswith('answer_head.')}
    return fill(model, loaded, str(path), may_miss, (POSITION_IDS,)), state


def load_bert(encoder, path):
    """Fill the embeddings, language layers and pooler of an LXRTFeatureExtraction from BERT's weights, and `cls` of an
    LXRTPretraining if the file has it. The rest keeps its initial weights, as in the original code. Returns the LoadReport.

    BERT's further layers and heads are ignored.
    """
    state, layers = read_lxmert(path), len(encoder.bert.encoder.layer)
    further = [n for n in state if (m := re.match(r'bert\.encoder\.layer\.(\d+)\.', n)) and int(m[1]) >= layers]
    return fill(
        encoder, {name: tensor for name, tensor in state.items() if name not in further}, str(path),
        may_miss=(r'bert\.encoder\.(visn_fc|r_layers|x_layers)\.', *PRETRAINING_HEADS),
        may_have=(*PRETRAINING_HEADS, POSITION_IDS),
    )
