"""The run state, from which a run resumes: written, verified and read. The one before it is kept, in case it is damaged."""

import dataclasses
import hashlib
import math
import os
import zlib

import torch

from bert.weights import WeightsError, check_file, leaves, load_file, why_not_plain
from files.atomic import sync
from files.json_files import some
from files.text import shown

STATE = 'RUN_STATE.pth'
PREVIOUS = f'{STATE}.previous'


@dataclasses.dataclass
class Progress:
    """The progress of a run, saved in its run state."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished optimizer steps of the current epoch
    steps_per_epoch: int = 0
    data: str = ''  # digest of the training examples
    best: float = float('-inf')  # best validation score
    log_size: int = 0  # size of log.log in bytes when the state was saved
    skipped: int = 0  # steps skipped because a gradient was not finite
    skipped_in_a_row: int = 0
    sums: dict = dataclasses.field(default_factory=dict)  # {loss or metric: running sum of the epoch}

    @property
    def total_steps(self):
        return self.epoch * self.steps_per_epoch + self.step

    @classmethod
    def from_dict(cls, values):
        """From a run state. Raises ValueError that names the key if a value is missing, or cannot be that of a run."""
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or values.keys() != fields.keys():
            raise ValueError(f'key progress: expected {", ".join(fields)}')
        for name, kind in fields.items():
            value = values[name]
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f'key progress.{name}: expected {kind.__name__}, found {shown(value)}')
            if kind is int and value < 0:
                raise ValueError(f'key progress.{name}: expected 0 or more, found {value}')
        progress = cls(**values)
        for name, most in (('step', progress.steps_per_epoch), ('skipped', progress.total_steps),
                           ('skipped_in_a_row', progress.skipped)):
            if values[name] > most:
                raise ValueError(f'key progress.{name}: expected at most {most}, found {values[name]}')
        if not progress.best < math.inf:
            raise ValueError(f'key progress.best: expected a score, found {progress.best}')
        for name, value in progress.sums.items():
            if not isinstance(name, str) or type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f'key progress.sums.{shown(name)}: expected a finite number, found {shown(value)}')
        return progress


def write_run_state(folder, state, path):
    """Writes a run state (dict) of a run's folder to a temporary path, reads it back, and renames the one before it.

    At most two states are on the disk. Raises OSError.
    """
    current, previous = folder / STATE, folder / PREVIOUS
    previous.unlink(missing_ok=True)  # `current` was checked when it was written or read
    torch.save({**state, 'digest': digest_of(state)}, path)
    sync(path)
    try:
        check_file(path)
    except WeightsError:
        raise OSError('it reads back otherwise than it was written: is the disk or the memory faulty?') from None
    if current.exists():
        os.replace(current, previous)


def load_newest(folder, names):
    """(the newest complete run state of a folder or None, what is wrong with the last one or ''). names: of its .pth files and
    PREVIOUS. Raises WeightsError if none is complete, OSError if one cannot be read at the moment."""
    faults = []
    for name in (STATE, PREVIOUS):
        if name in names:
            try:
                state = read_run_state(folder / name)
            except WeightsError as error:
                faults.append(str(error))
            else:
                return state, faults[0].partition(': ')[2] if faults else 'is missing' if name == PREVIOUS else ''
    if not faults:
        return None, ''
    complete = [folder / name for name in names if name not in (STATE, PREVIOUS) and _is_complete(folder / name)]
    if not complete:
        raise WeightsError(f'{faults[0]}; there is no other run state or complete snapshot: bring back a copy of one, or '
                           'start a new run in another --output')
    raise WeightsError(f'{faults[0]}; there is no other run state. Complete snapshots: {", ".join(map(str, complete))}; to '
                       f'start a new run from one, give --load {complete[-1]} and another --output')


def read_run_state(path):
    """The content of a run state. Raises WeightsError that names file and key unless it is complete and of the right structure,
    and OSError if it cannot be read at the moment."""
    state = load_file(path, only_zip=True)
    try:
        required = {'progress', 'options', 'model', 'optimizer'}
        optional = {'scaler', 'schedule', 'extra', 'cwd', 'inputs', 'digest'}
        if not isinstance(state, dict) or not required <= state.keys() <= required | optional:
            raise ValueError(f'expected a run state with the keys {", ".join(sorted(required))}, found '
                             f'{some(state) if isinstance(state, dict) else type(state).__name__}')
        for name, tensor in leaves(state):
            if isinstance(tensor, torch.Tensor) and (reason := why_not_plain(tensor)):
                raise ValueError(f'key {name}: {reason}')
        Progress.from_dict(state['progress'])
        for name in ('options', 'model', 'optimizer', 'scaler', 'schedule', 'extra', 'inputs'):
            if not isinstance(state.get(name, {}), dict) or not all(isinstance(key, str) for key in state.get(name, {})):
                raise ValueError(f'key {name}: expected names with values')
        for name, value in state['options'].items():
            if type(value) not in (str, int, float, bool, type(None)):
                raise ValueError(f'key options.{name}: expected a text or number, found {type(value).__name__}')
        for name, tensor in state['model'].items():
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f'key model.{name}: expected a tensor, found {type(tensor).__name__}')
        for name, value in state.get('inputs', {}).items():
            if not isinstance(value, list) or len(value) != 2 or not all(isinstance(text, str) for text in value):
                raise ValueError(f'key inputs.{name}: expected a digest and a name')
        if not isinstance(state.get('cwd', ''), str):
            raise ValueError('key cwd: expected a text')
        if state.get('digest', expected := digest_of(state)) != expected:
            raise ValueError('was changed after it was saved')
    except (ValueError, RecursionError) as error:
        raise WeightsError(f'{path}: the run state is damaged: {error}') from None
    return state


def digest_of(state):
    """The digest of a run state but for its options, which are compared with those of the command and may lack newer ones."""
    digest = hashlib.sha256()
    for name, value in leaves({key: value for key, value in state.items() if key not in ('digest', 'options') and value}):
        if isinstance(value, torch.Tensor):
            numbers = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            value = value.dtype, tuple(value.shape), zlib.crc32(numbers)
        digest.update(f'{name!r} {type(value)} {value!r}\n'.encode('utf-8', 'surrogatepass'))
    return digest.hexdigest()


def _is_complete(path):
    try:
        check_file(path)
    except (ValueError, OSError):
        return False
    return True
