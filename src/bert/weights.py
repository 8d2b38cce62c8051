"""Strict loading of weights: every load reports how many tensors matched and fails on any difference not explicitly allowed."""

import os
import re
import textwrap
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from files.text import InputError, printable

BERT_BODY = ('embeddings.', 'encoder.', 'pooler.')  # names of a BERT-like encoder without its prefix `bert.`
POSITION_IDS = r'(.*\.)?embeddings\.position_ids$'  # a buffer in old Hugging Face files, not a weight


class WeightsError(InputError):
    """A file of weights that cannot be read or does not fit the model."""


@dataclass
class LoadReport:
    """What happened to each parameter, by name, when a model was filled from a file."""

    source: str
    matched: list = field(default_factory=list)
    missing: list = field(default_factory=list)  # in the model, not in the file
    unexpected: list = field(default_factory=list)  # in the file, not in the model
    wrong_size: list = field(default_factory=list)  # in both, of different shapes; 'name: expected (..), found (..)'
    invalid: list = field(default_factory=list)  # in both, but the tensor cannot be trained weights; 'name: reason'

    def __str__(self):
        lines = [f'Weights from {printable(self.source)}:']
        for kind in ('matched', 'missing', 'unexpected', 'wrong_size', *(['invalid'] if self.invalid else [])):
            names = [printable(name) for name in getattr(self, kind)[:4]]
            shown = '' if kind == 'matched' else ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
            lines.append(f'  {kind.replace("_", " "):10s} {len(getattr(self, kind)):5d}  {shown}'.rstrip())
        return '\n'.join(lines)


def canonical_name(name):
    """A parameter's name without `module.` (several GPUs) and compiler prefixes, and with BERT's old gamma and beta renamed."""
    name = re.sub(r'(^|\.)((module|_orig_mod)\.)+', r'\1', name)
    return re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name))


def read_state(path, rename=canonical_name):
    """The tensors of a .pth, .bin or .safetensors file on the CPU, by the names that `rename` makes of those in the file.

    Runs no code from the file. Raises FileNotFoundError or WeightsError, which name the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file of weights')
    try:
        state = _read_tensors(path)
    except Exception as error:  # a damaged file makes torch and safetensors raise almost anything, even struct.error
        reason = f'{type(error).__name__}: {error}'.split('\n')[0]
        raise WeightsError(f'{path}: a damaged file of weights, or one that holds more than tensors ({reason})') from None
    named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not named or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f'{path}: expected tensors by name, found something else; is this a run state?')
    return renamed(state, rename, path)


def _read_tensors(path):
    if path.suffix == '.safetensors':
        from safetensors.torch import load_file  # imported here: only these files need the library
        return load_file(path)
    if zipfile.is_zipfile(path):  # PyTorch does not compare check sums
        with zipfile.ZipFile(path) as file:
            if bad := file.testzip():
                raise ValueError(f'{bad}: its check sum differs: the file was damaged after it was written, or was written with '
                                 'set_crc32_options(False) and must be written again without it')
    return torch.load(path, map_location='cpu', weights_only=True)


def renamed(state, rename, path):
    """The tensors by the names that `rename` makes of theirs. Raises WeightsError that names the file if two names become one."""
    result = {}
    for name, tensor in state.items():
        if (new := rename(name)) in result:
            raise WeightsError(f'{path}: has {new} twice, the second time as {name}; it is not clear which one to load')
        result[new] = tensor
    return result


def with_bert_prefix(state, path):
    """The tensors with `bert.` before an encoder's names, which files of Hugging Face's BertModel lack. Raises WeightsError."""
    return renamed(state, lambda name: f'bert.{name}' if name.startswith(BERT_BODY) else name, path)


def save_state(state, path, kind):
    """Write tensors by name to a file, on the CPU, as .pth or .safetensors (kind)."""
    state = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    if kind != '.safetensors':
        torch.save(state, path)
        return
    from safetensors.torch import save_file
    # The format has no shared memory, so tied parameters are copied.
    owners = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
    save_file({name: tensor if owners[tensor.data_ptr()] == name else tensor.clone() for name, tensor in state.items()}, path,
              {'format': 'pt'})
    os.umask(umask := os.umask(0))
    Path(path).chmod(0o666 & ~umask)  # safetensors makes it readable by the owner only


def compare(model, state, source, may_miss=(), may_have=(), rename=str):
    """The LoadReport of filling `model` with `state`. Copies nothing; the model may be on the meta device.

    may_miss: regular expressions, matched at the start of a name, for parameters that the file may lack; may_have: for tensors of
    the file that the model may ignore. Any other difference raises WeightsError. The weight of a module with a true attribute
    `zeros_allowed` may consist of zeros. rename: from the model's names to those in `state`.
    """
    expected, report = {rename(name): p for name, p in model.state_dict(keep_vars=True).items()}, LoadReport(source)
    zeros_allowed = {rename(f'{name}.weight') for name, module in model.named_modules()
                     if getattr(module, 'zeros_allowed', False)}
    for name, tensor in expected.items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape != tensor.shape:
            report.wrong_size.append(f'{name}: expected {tuple(tensor.shape)}, found {tuple(state[name].shape)}')
        elif reason := why_invalid(name, state[name], name in zeros_allowed):
            report.invalid.append(f'{name}: {reason}')
        else:
            report.matched.append(name)
    report.unexpected = [name for name in state if name not in expected]
    not_allowed = [name for name in report.missing if not any(re.match(p, name) for p in may_miss)]
    no_place = [name for name in report.unexpected if not any(re.match(p, name) for p in may_have)]
    reasons = [
        f'{len(names)} {what} (such as {names[0]})'
        for names, what in (
            (not_allowed, 'tensors that the model needs are missing'),
            (no_place, 'tensors are not part of the model'),
            (report.wrong_size, 'tensors have another size'),
            (report.invalid, 'tensors are invalid'),
        ) if names
    ]
    reasons += [f'{name} and {first} are one parameter in the model, but differ in the file'
                for name, first in tied(expected) if {name, first} <= set(report.matched)
                and not torch.equal(state[name], state[first])]
    if reasons:
        raise WeightsError(f'{source} does not fit the model: {"; ".join(reasons)}.\n{textwrap.indent(str(report), "  ")}')
    return report


def tied(parameters):
    """(name, first name) of each parameter that stands under more than one name in {name: parameter}."""
    first = {}
    return [(name, first[id(p)]) for name, p in parameters.items() if first.setdefault(id(p), name) != name]


def why_invalid(name, tensor, zeros_allowed=False):
    """Why a tensor cannot be trained weights, such as one from a file with a hole; '' if it can."""
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64) or tensor.layout != torch.strided:
        return f'expected plain floating point, found {tensor.dtype}, {tensor.layout}'
    if not tensor.numel():
        return ''
    rows = tensor.flatten(1) if tensor.ndim > 2 else tensor  # of a convolution: one output channel each
    least, most = (rows.amin(-1), rows.amax(-1)) if rows.ndim else (rows, rows)  # NaN if there is one
    if not (least.isfinite().all() and most.isfinite().all()):
        return 'holds NaN or infinity'
    if not name.endswith('weight') or zeros_allowed:
        return ''
    if tensor.ndim < 2:
        return 'holds 0 everywhere' if tensor.numel() > 1 and least == most == 0 else ''
    holes = int((least == most).sum())  # one row may be constant: that of padding
    return f'holds one number throughout in {holes:,} of its {least.numel():,} rows' if holes > max(1, least.numel() / 10) else ''


def fill(model, state, source, may_miss=(), may_have=(), rename=str):
    """Copy `state` into `model` by name and return the LoadReport; the other arguments are those of `compare`.

    Raises WeightsError before anything is copied.
    """
    parameters = {rename(name): tensor for name, tensor in model.state_dict().items()}
    if meta := [name for name, tensor in parameters.items() if tensor.is_meta]:
        raise WeightsError(f'{source}: the model is on the meta device ({meta[0]}): nothing can be copied into it')
    report = compare(model, state, source, may_miss, may_have, rename)
    with torch.no_grad():
        for name in report.matched:
            parameters[name].copy_(state[name])
    return report
