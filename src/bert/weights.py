"""Weights into models, strictly and told: LXMERT's own files, BERT's, Hugging Face's LXMERT, fine-tuned snapshots.

Every load says how many tensors matched, and fails on any difference that its kind does not explain.
"""

import os
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

PRETRAINING_HEADS = (r'cls\.', r'obj_predict_head\.', r'answer_head\.')
TASK_PREFIX, TASK_HEAD = 'lxrt_encoder.model.', r'logit_fc\.'
WORDS, DECODER = 'bert.embeddings.word_embeddings.weight', 'cls.predictions.decoder.weight'  # tied
BARE = ('embeddings.word_embeddings.weight', 'embeddings.', 'encoder.', 'pooler.')  # names of an encoder by itself
LAST_ANSWERS = r'logit_fc\.3\.'  # of which rows of new answers start at 0
NLVR2_HEAD = 'nlvr2_head.safetensors'  # beside Hugging Face's LxmertModel, which has no class for it
POSITION_IDS = r'(.*\.)?embeddings\.position_ids$'  # a buffer of old Hugging Face files, no weight


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
    no_weights: list = field(default_factory=list)  # in both, but what the file has cannot have been learned; 'name: reason'

    def __str__(self):
        lines = [f'Weights from {self.source}:']
        for kind in ('matched', 'missing', 'unexpected', 'wrong_size', *(['no_weights'] if self.no_weights else [])):
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

    A file of a bare encoder (Hugging Face's BertModel and LxmertModel) gets the prefix `bert.`. Beside a model.safetensors
    nlvr2_head.safetensors is read too, where it lies. Raises FileNotFoundError or WeightsError, which name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file of weights')
    try:
        state = _tensors(path)
    except Exception as error:  # a damaged file makes torch and safetensors raise nearly anything, struct.error too
        reason = f'{type(error).__name__}: {error}'.split('\n')[0]
        raise WeightsError(f'{path}: not a whole file of weights, or one that holds more than tensors ({reason})') from None
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f'{path}: expected tensors by name, found something else; is this a run state?')
    found = renamed(state, canonical_name, path)
    if BARE[0] in found:
        found = renamed(found, lambda name: f'bert.{name}' if name.startswith(BARE) else name, path)
        if path.name == 'model.safetensors' and (head := path.with_name(NLVR2_HEAD)).is_file():
            found |= read_state(head)
    return found


def renamed(state, rename, path):
    """Tensors by the names that `rename` makes of theirs. Raises WeightsError that names the file where two get the same."""
    found = {}
    for name, tensor in state.items():
        if (own := rename(name)) in found:
            raise WeightsError(f'{path}: has {own} twice, the second time as {name}; it cannot be told which one is meant')
        found[own] = tensor
    return found


def _tensors(path):
    """What a file holds."""
    if path.suffix == '.safetensors':
        from safetensors.torch import load_file  # read here: only these files need the library
        return load_file(path)
    if zipfile.is_zipfile(path):  # PyTorch compares no check sums
        with zipfile.ZipFile(path) as file:
            if bad := file.testzip():
                raise ValueError(f'{bad} is not what was written: its check sum differs; a file that was written without check '
                                 'sums, by set_crc32_options(False), must be written again with them')
    return torch.load(path, map_location='cpu', weights_only=True)


def save_state(state, path, kind):
    """Writes tensors by name to a file, as .pth or .safetensors (kind), on the CPU."""
    state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    if kind != '.safetensors':
        torch.save(state, path)
        return
    from safetensors.torch import save_file
    # Tied parameters share their memory, which this format cannot tell.
    places = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
    save_file({name: tensor if places[tensor.data_ptr()] == name else tensor.clone() for name, tensor in state.items()}, path,
              {'format': 'pt'})
    os.umask(umask := os.umask(0))
    Path(path).chmod(0o666 & ~umask)  # the library lets only the owner read


def compare(model, state, source, may_miss=(), may_have=()):
    """The LoadReport of filling `model` with `state`; nothing is copied, and the model may be on the meta device.

    may_miss, may_have: regular expressions, matched at the start of a name, for parameters that may be absent from
    the file, and for tensors of the file that the model may leave aside. Anything else is a WeightsError.
    """
    own, report = model.state_dict(), LoadReport(source)
    for name, tensor in own.items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape != tensor.shape:
            report.wrong_size.append(f'{name}: expected {tuple(tensor.shape)}, found {tuple(state[name].shape)}')
        elif reason := no_weights(name, state[name]):
            report.no_weights.append(f'{name}: {reason}')
        else:
            report.matched.append(name)
    report.unexpected = [name for name in state if name not in own]
    unexplained = [name for name in report.missing if not any(re.match(p, name) for p in may_miss)]
    strange = [name for name in report.unexpected if not any(re.match(p, name) for p in may_have)]
    reasons = [
        f'{len(names)} {what} (such as {names[0]})'
        for names, what in (
            (unexplained, 'tensors that the model needs are missing'),
            (strange, 'tensors are not part of the model'),
            (report.wrong_size, 'tensors have another size'),
            (report.no_weights, 'tensors are no weights'),
        ) if names
    ]
    words, decoder = state.get(WORDS), state.get(DECODER)
    if DECODER in own and None not in (words, decoder) and words.shape == decoder.shape and not torch.equal(words, decoder):
        reasons.append(f'{DECODER} and {WORDS} are one parameter in the model, but differ in the file')
    if reasons:
        raise WeightsError(f'{source} does not fit the model: {"; ".join(reasons)}.\n{report}')
    return report


def no_weights(name, tensor):
    """Why a tensor cannot be learned weights, such as that of a file with a hole; '' where it can."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64) or tensor.layout != torch.strided:
        return f'expected plain floating point, found {tensor.dtype}, {tensor.layout}'
    if not tensor.numel():
        return ''
    rows = tensor.flatten(1) if tensor.ndim > 2 else tensor  # of a convolution, what makes one channel
    least, most = (rows.amin(-1), rows.amax(-1)) if rows.ndim else (rows, rows)  # NaN where there is one
    if not (least.isfinite().all() and most.isfinite().all()):
        return 'holds NaN or infinity'
    if not name.endswith('weight') or re.search(LAST_ANSWERS, name):
        return ''
    if tensor.ndim < 2:
        return 'holds 0 everywhere' if tensor.numel() > 1 and least == most == 0 else ''
    holes = int((least == most).sum())  # one row may be, of padding
    return f'holds one number throughout in {holes:,} of its {least.numel():,} rows' if holes > max(1, least.numel() / 10) else ''


def fill(model, state, source, may_miss=(), may_have=()):
    """Copies `state` into `model` by name and returns the LoadReport; what may differ is as in `compare`.

    Raises WeightsError before anything is copied.
    """
    own = model.state_dict()
    if meta := [name for name, tensor in own.items() if tensor.is_meta]:
        raise WeightsError(f'{source}: the model is on the meta device ({meta[0]}): nothing can be copied into it')
    report = compare(model, state, source, may_miss, may_have)
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(state[name])
    return report


def load_lxmert(encoder, path):
    """Fills an LXRTFeatureExtraction from a pre-trained LXMERT file or a task's snapshot: all of `bert.` must fit.

    Of an LXRTPretraining the heads are filled too, where the file has them, but for the answer head, whose answers may be
    others (as in the original code). Returns (LoadReport, the file's tensors), since the answer head's rows may be wanted next.
    """
    state = renamed(read_state(path), lambda name: name.removeprefix(TASK_PREFIX), path)
    own = {name for name in encoder.state_dict() if name.startswith('answer_head.')}
    given = {name: tensor for name, tensor in state.items() if name not in own}
    return fill(encoder, given, str(path), PRETRAINING_HEADS, (*PRETRAINING_HEADS, TASK_HEAD, POSITION_IDS)), state


def answer_head(state, path):
    """The tensors of a file's answer layers, by their names in lxrt.modeling.answer_layers: those of LXMERT's pre-training,
    of Hugging Face's models or of a task. Raises WeightsError that names the file if they cannot have been learned."""
    heads = {name: tensor for name, tensor in state.items() if re.match(r'(answer_head\.)?logit_fc\.', name)}
    for name, tensor in heads.items():
        if reason := no_weights(name, tensor):
            raise WeightsError(f'{path}: {name}: {reason}')
    return renamed(heads, lambda name: name.rpartition('logit_fc.')[2], path)


def read_task(path):
    """The tensors of a task's snapshot, or of Hugging Face's LxmertForQuestionAnswering, by a task's names."""
    state = read_state(path)
    if any(name.startswith(TASK_PREFIX) or name.startswith('cls.') for name in state):
        return state
    state = {name: tensor for name, tensor in state.items() if not re.match(POSITION_IDS, name)}
    return renamed(state, lambda name: re.sub(r'^bert\.', f'{TASK_PREFIX}bert.', name.removeprefix('answer_head.')), path)


def load_pretraining(model, path, answers=True):
    """Fills an LXRTPretraining whole, heads included, but without `answers` for the answer head; the tied decoder may be left
    out, as in files of Hugging Face. Returns (LoadReport, the file's tensors)."""
    state = read_state(path)
    other = () if answers else (r'answer_head\.',)
    given = {name: tensor for name, tensor in state.items() if answers or not name.startswith('answer_head.')}
    return fill(model, given, str(path), (re.escape(DECODER), *other), (POSITION_IDS,)), state


def load_bert(encoder, path):
    """Fills the embeddings, language layers and pooler of an LXRTFeatureExtraction, and `cls` of an LXRTPretraining where the
    file has it, from BERT's weights.

    BERT's further layers and heads are left aside. The rest of the model keeps its initial weights, as in the original code.
    Returns the LoadReport.
    """
    state = read_state(path)
    layers = len(encoder.bert.encoder.layer)
    further = [n for n in state if (m := re.match(r'bert\.encoder\.layer\.(\d+)\.', n)) and int(m[1]) >= layers]
    return fill(
        encoder, {name: value for name, value in state.items() if name not in further}, str(path),
        may_miss=(r'bert\.encoder\.(visn_fc|r_layers|x_layers)\.', *PRETRAINING_HEADS),
        may_have=(*PRETRAINING_HEADS, POSITION_IDS),
    )
