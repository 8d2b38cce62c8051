"""Weights into models, strictly and told: LXMERT's own files, BERT's, Hugging Face's LXMERT, fine-tuned snapshots.

Every load says how many tensors matched, and fails on any difference that its kind does not explain.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import torch


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit the model."""


@dataclass
class LoadReport:
    """What came of filling a model from a file: names of parameters, by what happened to each."""

    source: str
    matched: list = field(default_factory=list)
    missing: list = field(default_factory=list)  # in the model, not in the file
    unexpected: list = field(default_factory=list)  # in the file, not in the model
    wrong_size: list = field(default_factory=list)  # in both, of different shapes; 'name: expected (..), found (..)'

    def __str__(self):
        lines = [f'Weights from {self.source}:']
        for kind in ('matched', 'missing', 'unexpected', 'wrong_size'):
            names = getattr(self, kind)
            shown = '' if kind == 'matched' else ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
            lines.append(f'  {kind.replace("_", " "):10s} {len(names):5d}  {shown}'.rstrip())
        return '\n'.join(lines)


def canonical_name(name):
    """A parameter's name as the original code has it on one device: no `module.`, no compiler prefix, LXMERT's `bert.`
    for Hugging Face's `lxmert.`, BERT's old gamma and beta under their new names."""
    name = re.sub(r'(^|\.)((module|_orig_mod)\.)+', r'\1', name)
    name = re.sub(r'^lxmert\.', 'bert.', name)
    return re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name))


def read_state(path):
    """The tensors of a .pth, .bin or .safetensors file by canonical name, on the CPU. Runs no code from the file.

    Raises FileNotFoundError or WeightsError, which name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file of weights')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file  # read here: only these files need the library
            state = load_file(path)
        else:
            state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file makes torch and safetensors raise nearly anything, struct.error too
        reason = f'{type(error).__name__}: {error}'.split('\n')[0]
        raise WeightsError(f'{path}: not a whole file of weights, or one that holds more than tensors ({reason})') from None
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f'{path}: expected tensors by name, found something else; is this a run state?')
    return {canonical_name(name): value for name, value in state.items()}


def fill(model, state, source, may_miss=(), may_have=()):
    """Copies `state` into `model` by name and returns the LoadReport.

    may_miss, may_have: regular expressions, matched at the start of a name, for parameters that may be absent from
    the file, and for tensors of the file that the model may leave aside. Anything else is a WeightsError, raised
    before anything is copied.
    """
    own = model.state_dict()
    if meta := [name for name, tensor in own.items() if tensor.is_meta]:
        raise WeightsError(f'{source}: the model is on the meta device ({meta[0]}): nothing can be copied into it')
    report = LoadReport(source)
    for name, tensor in own.items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape != tensor.shape:
            report.wrong_size.append(f'{name}: expected {tuple(tensor.shape)}, found {tuple(state[name].shape)}')
        else:
            report.matched.append(name)
    report.unexpected = [name for name in state if name not in own]
    unexplained = [name for name in report.missing if not any(re.match(p, name) for p in may_miss)]
    strange = [name for name in report.unexpected if not any(re.match(p, name) for p in may_have)]
    if unexplained or strange or report.wrong_size:
        reasons = [
            f'{len(names)} {what} (such as {names[0]})'
            for names, what in (
                (unexplained, 'tensors that the model needs are missing'),
                (strange, 'tensors are not part of the model'),
                (report.wrong_size, 'tensors have another size'),
            ) if names
        ]
        raise WeightsError(f'{source} does not fit the model: {"; ".join(reasons)}.\n{report}')
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(state[name])
    return report


PRETRAINING_HEADS = (r'cls\.', r'obj_predict_head\.', r'answer_head\.')
TASK_PREFIX, TASK_HEAD = 'lxrt_encoder.model.', r'logit_fc\.'
POSITION_IDS = r'(.*\.)?embeddings\.position_ids$'  # a buffer of old Hugging Face files, no weight


def load_lxmert(encoder, path):
    """Fills an LXRTFeatureExtraction from a pre-trained LXMERT file or a task's snapshot: all of `bert.` must fit.

    Of an LXRTPretraining the heads are filled too, where the file has them, but for the answer head, whose answers may be
    others (as in the original code). Returns (LoadReport, the file's tensors), since the answer head's rows may be wanted next.
    """
    state = {name.removeprefix(TASK_PREFIX): tensor for name, tensor in read_state(path).items()}
    own = {name for name in encoder.state_dict() if name.startswith('answer_head.')}
    given = {name: tensor for name, tensor in state.items() if name not in own}
    return fill(encoder, given, str(path), PRETRAINING_HEADS, (*PRETRAINING_HEADS, TASK_HEAD, POSITION_IDS)), state


def load_bert(encoder, path):
    """Fills the embeddings, language layers and pooler of an LXRTFeatureExtraction, and `cls` of an LXRTPretraining where the
    file has it, from BERT's weights.

    BERT's names may lack the prefix `bert.`; its further layers and heads are left aside. The rest of the model keeps
    its initial weights, as in the original code. Returns the LoadReport.
    """
    state = read_state(path)
    if not any(name.startswith('bert.') for name in state):
        state = {f'bert.{name}': value for name, value in state.items()}
    layers = len(encoder.bert.encoder.layer)
    further = [n for n in state if (m := re.match(r'bert\.encoder\.layer\.(\d+)\.', n)) and int(m[1]) >= layers]
    return fill(
        encoder, {name: value for name, value in state.items() if name not in further}, str(path),
        may_miss=(r'bert\.encoder\.(visn_fc|r_layers|x_layers)\.', *PRETRAINING_HEADS),
        may_have=(*PRETRAINING_HEADS, POSITION_IDS),
    )


def bert_weights_file(folder):
    """The file with BERT's weights in a folder, or None."""
    for name in ('model.safetensors', 'pytorch_model.bin'):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    return None
