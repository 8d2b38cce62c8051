"""Weights for ALBEF: files of the original code, of BERT and DeiT, and snapshots. Loading is strict (bert.weights)."""

import re

from albef.vit import interpolate
from bert.weights import WeightsError, fill, read_state, renamed, with_bert_prefix

MARK = 'visual_encoder.patch_embed.proj.weight'  # every file of ALBEF has it
BODY = r'visual_encoder\.|text_encoder\.(?!cls\.)'  # what a file of weights must hold
TWINS = r'[a-z_]+_m\.'
QUEUES = 'image_queue', 'text_queue', 'queue_ptr'
# What refcoco.pth lacks.
FINE_TUNED = (TWINS, *QUEUES, 'idx_queue', 'vision_proj', 'text_proj', 'temp$')
POSITIONS = ('visual_encoder.pos_embed', 'visual_encoder_m.pos_embed')
DEIT = 'deit_*.pth'  # deit_base_patch16_224-b5f2ef4d.pth, in the folder of BERT's weights


def recognises(names):
    """Whether a file with tensors of these names is of ALBEF."""
    return any(name.endswith(MARK) for name in names)


def read_albef(path):
    """The tensors of a file by the names of the original code, on the CPU, wrapped in {'model': ...} or not. Raises
    FileNotFoundError or WeightsError."""
    state = read_state(path)
    if MARK not in state:
        raise WeightsError(f'{path}: expected weights of ALBEF, found no {MARK}; give ALBEF.pth or another file of the original '
                           'code, or a snapshot of this model')
    return state


def original_shapes(head):
    """{name: shape} of a head's tensors, by their original names."""
    return {head.original_name(name): tensor.shape for name, tensor in head.state_dict().items()}


def resized_positions(state, shapes):
    """The tensors with the position embeddings of images interpolated to the size of the model."""
    changed = {name: interpolate(state[name], shapes[name][1]) for name in POSITIONS
               if name in state and name in shapes and state[name].shape[1] != shapes[name][1]}
    return state | changed


def fill_head(head, state, source):
    """Fills a head with the weights of the same task; one that matches also with those of pre-training, whose head of words is
    left aside (zero-shot). A file without momentum models, such as refcoco.pth, may also lack queues and projections; momentum
    models are then copies. Returns the LoadReport. Raises WeightsError."""
    twins = any(re.match(TWINS, name) for name in state)
    may_miss, may_have = () if twins else FINE_TUNED, ()
    if head.recipe.output in ('match', 'region') and any(name.startswith('text_encoder.bert.') for name in state):
        shapes = original_shapes(head)
        state = {name: tensor for name, tensor in converted(state, head).items()  # queues of another size
                 if name not in QUEUES or tensor.shape == shapes[name]}
        may_miss, may_have = (*may_miss, *QUEUES, 'idx_queue'), (r'text_encoder(_m)?\.cls\.',)
    state = resized_positions(state, original_shapes(head))
    report = fill(head, state, source, may_miss, may_have, head.original_name)
    if not twins and hasattr(head, 'twin'):
        head.copy_to_twin()
    return report


def load_encoder_weights(head, state, source):
    """Fills a head from the weights of pre-training or of another task, as far as they have its parts: see `converted`. Momentum
    models that the file lacks become copies; those of NLVR2 stay as they are, as in the original code, unless the config repairs
    that. Returns the LoadReport. Raises WeightsError."""
    shapes = original_shapes(head)
    state = resized_positions(converted(state, head), shapes)
    body = re.compile(BODY)
    state = {name: tensor for name, tensor in state.items()  # heads of other answers, queues of another size
             if body.match(name) or name not in shapes or shapes[name] == tensor.shape}
    others = rf'(?!{BODY})'
    report = fill(head, state, source, (others,), (others,), head.original_name)
    lacking = any(re.match(TWINS, name) and re.sub('_m', '', name, count=1) in report.matched for name in report.missing)
    if lacking and (head.encoder.task != 'nlvr2' or 'nlvr2_twin' in head.config.repairs):
        head.copy_to_twin()
    return report


def converted(state, head):
    """The tensors of a file under the names of a head of another task.

    From pre-training: names without `bert.`; for VQA the head of words goes to the decoder, whose layers start from those that
    attend to images; for two pictures each of these layers is copied to two.
    """
    encoder, result = head.encoder, {}
    text, task = encoder.config.text, encoder.task
    pretrained = any(name.startswith('text_encoder.bert.') for name in state)
    layers = [int(match[1]) for name in state if (match := re.match(r'text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.', name))]
    doubled = len(encoder.model.text.encoder.layer) > text.num_hidden_layers > max(layers, default=0)
    decoder = hasattr(encoder.model, 'text_decoder') and not any(name.startswith('text_decoder.') for name in state)
    for name, tensor in state.items():
        match = re.match(r'text_encoder(_m)?\.(bert\.)?(.*)', name)
        if not match:
            result[name] = tensor
            continue
        twin, rest = match[1] or '', match[3]
        layer = re.match(r'encoder\.layer\.(\d+)\.(.*)', rest)
        number = int(layer[1]) if layer else -1
        prefix = f'text_encoder{twin}.{"bert." if task == "pretrain" and not rest.startswith("cls.") else ""}'
        if pretrained and rest.startswith('cls.') and task != 'pretrain':
            result[f'text_decoder{twin}.{rest}' if decoder else name] = tensor
            continue
        if doubled and number >= text.fusion_layer:
            for copy in range(2):
                result[f'{prefix}encoder.layer.{2 * (number - text.fusion_layer) + text.fusion_layer + copy}.{layer[2]}'] = tensor
        else:
            result[f'{prefix}{rest}'] = tensor
        if decoder and not layer:
            result[f'text_decoder{twin}.bert.{rest}'] = tensor
        elif decoder and number >= text.fusion_layer:
            result[f'text_decoder{twin}.bert.encoder.layer.{number - text.fusion_layer}.{layer[2]}'] = tensor
    return result


def load_bert(head, path):
    """Fills the text encoder, its head of words and a decoder from BERT's weights, and the image encoder from those of DeiT
    beside them. Momentum models become copies. Returns LoadReports, and a warning where there is no DeiT."""
    state = with_bert_prefix(read_state(path), path)
    words = 'bert.embeddings.word_embeddings.weight'
    if words in state:
        state.setdefault('cls.predictions.decoder.weight', state[words])
    if 'cls.predictions.bias' in state:
        state.setdefault('cls.predictions.decoder.bias', state['cls.predictions.bias'])
    body = 'text_encoder.bert.' if head.encoder.task == 'pretrain' else 'text_encoder.'
    reports = [_fill_text(head, state, path, body, 'text_encoder.cls.')]
    if hasattr(head.encoder.model, 'text_decoder'):
        reports.append(_fill_text(head, state, path, 'text_decoder.bert.', 'text_decoder.cls.'))
    if deit := next(iter(sorted(path.parent.glob(DEIT))), None):
        reports.append(load_deit(head, deit))
    else:
        reports.append(f'Warning: {path.parent}: found no {DEIT}: the image encoder starts at random, with which the published '
                       'results are not reached; put deit_base_patch16_224-b5f2ef4d.pth there')
    if hasattr(head, 'twin'):
        head.copy_to_twin()
    return reports


def _fill_text(head, state, path, body, words):
    """Fills the modules of two prefixes, BERT's body and its head of words, as far as both have them."""
    state = renamed(state, lambda name: re.sub(r'^cls\.', words, re.sub(r'^bert\.', body, name)), path)
    names = {head.original_name(name) for name in head.state_dict()}
    layers = 1 + max(int(match[1]) for name in names if (match := re.match(rf'{re.escape(body)}encoder\.layer\.(\d+)\.', name)))
    beyond = [name for name in state if (match := re.match(rf'{re.escape(body)}encoder\.layer\.(\d+)\.', name))
              and int(match[1]) >= layers]
    if beyond and body.startswith('text_encoder'):
        raise WeightsError(f'{path}: has more layers than the text encoder ({layers}): {beyond[0]}; give the config.json of '
                           'these weights')
    needed = re.escape(body)
    new = rf'(?!{needed})|.*\.crossattention\.|.*position_ids$|{needed}encoder\.layer\.(\d+)\.'  # layers of two pictures
    return fill(head, state, str(path), (new,), (*map(re.escape, beyond), rf'{needed}pooler\.', re.escape(words)),
                head.original_name)


def load_deit(head, path):
    """Fills the image encoder from DeiT's weights, whose classifier is left aside. Returns the LoadReport."""
    state = renamed(read_state(path), lambda name: f'visual_encoder.{name}', path)
    state = resized_positions(state, original_shapes(head))
    return fill(head, state, str(path), (r'(?!visual_encoder\.)',), (r'visual_encoder\.(head|dist_token)',), head.original_name)
