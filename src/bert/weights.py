"""Strict loading of weights: every load reports how many tensors matched and fails on any difference not explicitly allowed."""

import contextlib
import errno
import io
import json
import os
import pickletools
import re
import stat
import textwrap
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch

from files.json_files import some
from files.text import InputError, printable, shown

BERT_BODY = ('embeddings.', 'encoder.', 'pooler.')  # names of a BERT-like encoder without its prefix `bert.`
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DIRECTORY = 0x10  # external attribute of a folder in a zip archive
MOST_LEAVES = 1_000_000  # values in a file
LONGEST_INDEX = 100_000_000  # bytes of the names in a .safetensors file
MALFORMED = (None, errno.EINVAL, errno.EOVERFLOW)  # errors of a read that the content of the file causes, as an offset below 0
COUNTERS = r'.*\.num_batches_tracked$'  # of batches that a batch norm has been trained with, not a weight
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
            listed = '' if kind == 'matched' else ', '.join(names[:3]) + (', ...' if len(names) > 3 else '')
            lines.append(f'  {kind.replace("_", " "):10s} {len(getattr(self, kind)):5d}  {listed}'.rstrip())
        return '\n'.join(lines)


def canonical_name(name):
    """A parameter's name without `module.` (several GPUs) and compiler prefixes, and with BERT's old gamma and beta renamed."""
    name = re.sub(r'(^|\.)((module|_orig_mod)\.)+', r'\1', name)
    return re.sub(r'LayerNorm\.gamma$', 'LayerNorm.weight', re.sub(r'LayerNorm\.beta$', 'LayerNorm.bias', name))


def read_state(path, rename=canonical_name):
    """The tensors of a .pth, .bin or .safetensors file on the CPU, by the names that `rename` makes of those in the file.

    Runs no code from the file. Raises FileNotFoundError, OSError or WeightsError, which name the file and the tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file of weights; correct the path')
    state = unwrapped(load_file(path), path)
    for name, tensor in state.items():
        if reason := why_not_plain(tensor):
            raise WeightsError(f'{path}: {name}: {reason}; save the weights again as plain tensors')
    return renamed(state, rename, path)


def unwrapped(content, path):
    """The tensors by name in the content of a file: all of it, or its one entry that holds such, which is printed.

    Training programs save {'model': weights, 'optimizer': ...}, Lightning {'state_dict': weights, ...}. Raises WeightsError that
    lists the keys if there is no such entry, or more than one.
    """
    if _is_state(content):
        return content
    if not isinstance(content, dict):
        raise WeightsError(f'{path}: expected tensors by name, found {type(content).__name__}; save the model\'s state_dict()')
    entries = {name: value for name, value in content.items() if isinstance(value, dict) and _has_weights(value)}
    if len(entries) == 1:
        (name, value), = entries.items()
        if os.environ.get('RANK', '0') == '0':
            rest = ', '.join(shown(key) for key in content if key != name)
            print(f'{printable(path)}: the weights are its entry {shown(name)}; not read: {rest[:300] or "nothing"}', flush=True)
        return unwrapped(value, path)
    expected = f'one entry that holds tensors by name, found {len(entries)}' if entries else 'tensors by name and nothing else'
    keys = ', '.join(f'{shown(name)} ({"tensors" if name in entries else type(value).__name__})'
                     for name, value in content.items())
    raise WeightsError(f'{path}: expected {expected}; its keys: {keys[:500] or "none"}; save the weights alone: '
                       "torch.save(torch.load(FILE, weights_only=True)[KEY], 'weights.pth')")


def _is_state(value):
    return isinstance(value, dict) and bool(value) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())


def _has_weights(value, depth=3):
    """Whether a dict holds matrices by name, or one of its entries does, down to some depth. Not the averages of an optimizer."""
    if _is_state(value):
        return any(tensor.is_floating_point() and tensor.ndim > 1 for tensor in value.values())
    return depth > 0 and 'param_groups' not in value and any(
        isinstance(entry, dict) and _has_weights(entry, depth - 1) for entry in value.values())


def load_file(path, only_zip=False):
    """The content of a .pth, .bin or .safetensors file, with tensors on the CPU. Runs no code from it.

    only_zip: refuse PyTorch's format before version 1.6, which has no check sums. Raises WeightsError if the file is damaged or
    holds more than tensors and plain values, and OSError if it cannot be read at the moment.
    """
    path = Path(path)
    with _explained(path):
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file  # imported here: only these files need the library
            return load_file(path)
        with open(path, 'rb') as file:
            if only_zip or zipfile.is_zipfile(file) or _starts_like_zip(file):
                check_zip(file)
            file.seek(0)
            return torch.load(file, map_location='cpu', weights_only=True)


def tensor_names(path):
    """The texts in the index of a file of weights, the names of its tensors among them; none of a file that is damaged, for which
    `load_file` has the message. Reads no tensor and runs no code."""
    path = Path(path)
    with contextlib.suppress(Exception), open(path, 'rb') as file:
        if path.suffix == '.safetensors':
            size = int.from_bytes(file.read(8), 'little')
            return list(json.loads(file.read(min(size, LONGEST_INDEX))))
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                index = next(name for name in archive.namelist() if name.endswith('data.pkl'))
                return _texts(io.BytesIO(archive.read(index)))
        file.seek(0)
        return [text for _ in range(4) for text in _texts(file)]  # before PyTorch 1.6: four pickles, the index last
    return []


def _texts(pickled):
    return [value for _, value, _ in pickletools.genops(pickled) if isinstance(value, str)]


def check_file(path):
    """Raises WeightsError or OSError, as `load_file`, unless the check sums of a .pth file are right. Loads nothing."""
    with _explained(path), open(path, 'rb') as file:
        check_zip(file)


@contextlib.contextmanager
def _explained(path):
    """Raises WeightsError, or OSError where the file may be complete, in place of an exception; both name the file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a named pipe would be waited for, a device read for ever
            raise WeightsError('expected a file, found a folder, pipe or device')
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f'{path}: no such file; correct the path, or bring it back') from None
    except WeightsError as error:
        raise WeightsError(f'{path}: {error}') from None
    except Exception as error:  # a damaged file makes torch, safetensors and zipfile raise almost anything, even struct.error
        number, cause = None, error  # zipfile takes errors of reading for a damaged file
        while cause and number in MALFORMED:
            memory = isinstance(cause, MemoryError) or (isinstance(cause, RuntimeError) and 'alloc' in str(cause))
            number, cause = errno.ENOMEM if memory else getattr(cause, 'errno', None), cause.__context__
        if number not in MALFORMED:
            raise OSError(f'{path}: cannot be read now ({os.strerror(number)}); nothing was changed: try again') from None
        if kinds := re.findall(r'GLOBAL ([\w.]+)', str(error)):  # of pickle; PyTorch's own advice is to run the code
            raise WeightsError(f'{path}: holds Python objects ({printable(kinds[0])}), which can run code and are not read; save '
                               "the weights alone where it was written: torch.save(model.state_dict(), 'weights.pth')") from None
        raise WeightsError(f'{path}: the file is damaged or incomplete, or holds more than tensors and plain values; fetch or '
                           'save it again') from None


def _starts_like_zip(file):
    file.seek(0)
    return file.read(4) == b'PK\x03\x04'


def check_zip(file):
    """Raises WeightsError, or an exception of zipfile, unless an open .pth file is an archive as torch.save writes it, with right
    check sums, which PyTorch does not compare."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        for info in infos:  # PyTorch leaves the memory of what is called a directory as it was, and unpacks what is compressed
            if info.external_attr & DIRECTORY or info.compress_type or info.file_size != info.compress_size:
                raise WeightsError(f'the file is damaged: its entry {info.filename} is not as PyTorch writes it; '
                                   'fetch or save it again')
        if len({info.filename for info in infos}) < len(infos) or sum(info.file_size for info in infos) > size:
            raise WeightsError('the file is damaged: entries of its archive overlap; fetch or save it again')
        if bad := archive.testzip():
            raise WeightsError(f'{bad}: its check sum differs: the file was damaged after it was written, or was '
                               'written with set_crc32_options(False); fetch it again, or write it again without that')


def leaves(value, name='', left=None):
    """Yields (name, value) of all that is in nested dicts and lists; of an empty one itself. Raises WeightsError for too many."""
    left = [MOST_LEAVES] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise WeightsError(f'{name}: expected at most {MOST_LEAVES:,} values in the file, found more; is it one of weights?')
    if isinstance(value, (dict, list, tuple)) and value:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f'{name}.{key}' if name else str(key), left)
    else:
        yield name, value


def why_not_like(value, expected, name, may_lack=False, values=True):
    """How a value that was read differs in structure from `expected`, and where; '' if it does not.

    Tensors must have the shape and dtype of those expected, and hold finite numbers; lists their length, dicts their keys (with
    may_lack also fewer or other ones, as of another version of PyTorch); other values must be equal, or with values=False of the
    same type; so must numbers called step.
    """
    if isinstance(expected, torch.Tensor):
        if not isinstance(value, torch.Tensor):
            return f'{name}: expected a tensor, found {type(value).__name__}'
        if reason := why_not_plain(value):
            return f'{name}: {reason}'
        if (value.shape, value.dtype) != (expected.shape, expected.dtype):
            return (f'{name}: expected {expected.dtype} of shape {tuple(expected.shape)}, found {value.dtype} of shape '
                    f'{tuple(value.shape)}')
        return '' if value.isfinite().all() else f'{name}: holds NaN or infinity'
    if type(value) is not type(expected) and not {type(value), type(expected)} <= {list, tuple}:
        return f'{name}: expected {type(expected).__name__}, found {type(value).__name__}'
    if isinstance(expected, (list, tuple)):
        if len(value) != len(expected):
            return f'{name}: expected {len(expected)} entries, found {len(value)}'
        return next(filter(None, (why_not_like(one, other, f'{name}.{i}', may_lack, values)
                                  for i, (one, other) in enumerate(zip(value, expected, strict=True)))), '')
    if isinstance(expected, dict):
        if value.keys() != expected.keys() and not may_lack:
            different = some(sorted(map(str, value.keys() ^ expected.keys())))
            return f'{name}: expected the keys {", ".join(map(str, expected))}; different: {different}'
        return next(filter(None, (why_not_like(value[key], expected[key], f'{name}.{key}', may_lack, values)
                                  for key in expected if key in value)), '')
    same = not values or value == expected or name.endswith('.step')
    return '' if same else f'{name}: expected {expected!r}, found {shown(value)}'


def why_not_plain(tensor):
    """Why a tensor is no ordinary array of numbers in memory; '' if it is."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        return f'expected a plain tensor, found {type(tensor).__name__}'
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != 'cpu':
        kind = 'nested' if tensor.is_nested else 'quantized' if tensor.is_quantized else f'{tensor.layout}, {tensor.device}'
        return f'expected a plain tensor, found one that is {kind}'
    if tensor.is_complex() or tensor.is_conj() or tensor.is_neg():
        return f'expected real numbers, found {tensor.dtype}'
    spans = sorted((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    end = 1  # a row may not begin before the end of the one before it
    for stride, size in spans if tensor.numel() else ():
        if stride < end:
            return f'expected every number once, found shape {tuple(tensor.shape)} with strides {tuple(tensor.stride())}'
        end = stride * (size - 1) + end
    return ''


def renamed(state, rename, path):
    """The tensors by the names that `rename` makes of theirs. Raises WeightsError that names the file if two names become one."""
    result = {}
    for name, tensor in state.items():
        if (new := rename(name)) in result:
            raise WeightsError(f'{path}: has {new} twice, the second time as {name}; it is not clear which one to load; '
                               'save one of them alone')
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
    from safetensors import SafetensorError
    from safetensors.torch import save_file
    # The format has no shared memory, so tied parameters are copied.
    owners = {tensor.data_ptr(): name for name, tensor in reversed(state.items())}
    try:
        save_file({name: tensor if owners[tensor.data_ptr()] == name else tensor.clone() for name, tensor in state.items()}, path,
                  {'format': 'pt'})
    except SafetensorError:
        raise OSError(f'{path}: a write failed; is the disk full? make room and try again') from None
    os.umask(umask := os.umask(0))
    Path(path).chmod(0o666 & ~umask)  # safetensors makes it readable by the owner only


def compare(model, state, source, may_miss=(), may_have=(), rename=str):
    """The LoadReport of filling `model` with `state`. Copies nothing; the model may be on the meta device.

    may_miss: regular expressions, matched at the start of a name, for parameters that the file may lack; may_have: for tensors of
    the file that the model may ignore, beside COUNTERS. Any other difference raises WeightsError. The weight of a module with a
    true attribute `zeros_allowed` may consist of zeros. rename: from the model's names to those in `state`.
    """
    expected, report = {rename(name): p for name, p in model.state_dict(keep_vars=True).items()}, LoadReport(source)
    zeros_allowed = {rename(f'{name}.weight') for name, module in model.named_modules()
                     if getattr(module, 'zeros_allowed', False)}
    for name, tensor in expected.items():
        if name not in state:
            report.missing.append(name)
        elif state[name].shape != tensor.shape:
            report.wrong_size.append(f'{name}: expected {tuple(tensor.shape)}, found {tuple(state[name].shape)}')
        elif not tensor.is_floating_point():  # a buffer of places or numbers
            if state[name].is_floating_point():
                report.invalid.append(f'{name}: expected whole numbers, found {state[name].dtype}')
            else:
                report.matched.append(name)
        elif reason := why_invalid(name, state[name], name in zeros_allowed):
            report.invalid.append(f'{name}: {reason}')
        else:
            report.matched.append(name)
    report.unexpected = [name for name in state if name not in expected]
    not_allowed = [name for name in report.missing if not any(re.match(p, name) for p in may_miss)]
    no_place = [name for name in report.unexpected if not any(re.match(p, name) for p in (*may_have, COUNTERS))]
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
        advice = '; is the config.json in use (--bert) that of these weights?' if report.wrong_size else '.'
        raise WeightsError(f'{source} does not fit the model: {"; ".join(reasons)}{advice}\n{textwrap.indent(str(report), "  ")}')
    return report


def tied(parameters):
    """(name, first name) of each parameter that stands under more than one name in {name: parameter}."""
    first = {}
    return [(name, first[id(p)]) for name, p in parameters.items() if first.setdefault(id(p), name) != name]


def why_invalid(name, tensor, zeros_allowed=False):
    """Why a tensor cannot be trained weights, such as one from a file with a hole; '' if it can."""
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided:
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
