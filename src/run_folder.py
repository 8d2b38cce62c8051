"""The folder of a run: options, log, snapshots and run state; what must be the same when it is resumed."""

import dataclasses
import json
import math
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from bert.weights import WeightsError, check_file
from dist import gather, is_main, print0, restarted, sum_by_name, world_size
from files.atomic import naming, write_atomically, write_text
from files.json_files import DataError, read_bytes, read_json, some
from files.text import printable, shown
from param import ENCODERS
from run_state import PREVIOUS, STATE, load_newest, write_run_state

SOURCE = Path(__file__).resolve().parent
OPTIONS = 'options.json'
PATIENCE = 60  # seconds to wait until files of another machine are visible (NFS), or a killed process has released its lock
# Options that may change when a run is resumed. With another number of processes or micro-batches, or with --compile, dropout
# draws other random numbers: the results are equivalent, but not bit-identical.
MAY_CHANGE = {'output', 'resume', 'saveSteps', 'tqdm', 'numWorkers', 'featDevice', 'evalBatchSize', 'device', 'multiGPU',
              'storeRoot', 'deterministic', 'dataRoot', 'accumulate', 'compile', 'checkpointing', 'offline'}
SCHEDULE = ('epochs', 'batchSize')  # may change too; train.begin_or_resume says what follows
ANNOTATIONS = 'annotations'  # what a run reads besides regions
PATHS = ('bert', 'load', *ENCODERS, 'loadLXMERTQA', 'loadResNet', 'dataset')  # options that name a file or folder
# Options that may differ between the processes of a run.
MAY_DIFFER = {'output', 'tqdm', 'numWorkers', 'featDevice', 'device', 'storeRoot', 'dataRoot', 'offline', *PATHS}


class RunFolder:
    """The folder of a run, `--output`. Only rank 0 writes; a lock excludes other runs."""

    def __init__(self, path):
        """Creates and locks the folder. Raises OSError if it cannot be written or another process holds the lock."""
        self.path = Path(path)
        self.writer, self.damaged, self.inputs = None, False, {}
        copy = Path(os.path.realpath(self.path / SOURCE.name))  # resolve() raises RuntimeError for links in a circle
        if copy == SOURCE or copy in SOURCE.parents or SOURCE in copy.parents:
            raise ValueError(f'--output {self.path}: would write into the source code in {SOURCE}; choose another folder')
        self.lock = FileLock(self.path / '.lock')  # the system releases it even if the process is killed
        after_crash = restarted()
        if is_main():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.lock.acquire(timeout=PATIENCE if after_crash else 0)
            except Timeout:
                raise OSError(f'--output {self.path}: another process is writing there; wait for it, or stop it') from None
            except OSError as error:
                raise OSError(f'--output {self.path}: cannot be written ({error.strerror}); choose another folder') from None

    def read_state(self, options, sidecars):
        """The saved run state to resume from, or None to start. Writes nothing.

        options: Options; sidecars: {file name: text} of the files beside the snapshots. Raises ValueError on every rank if the
        folder holds a run and --resume is not given, if options or sidecars differ from that run's, or if the machines do not
        see the same folder.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                state, message = self._read_state(options, sidecars), None
            except (ValueError, OSError) as error:
                state, message = None, str(error)
            progress = state and [state['progress'][name] for name in ('epoch', 'step', 'log_size')]
            views = gather((self.path.is_dir(), progress, message))
            differing = [rank for rank, view in enumerate(views) if view != views[0]]
            if not differing:
                break
            if max(gather(time.monotonic() > deadline)):
                raise ValueError(f'--output {self.path}: process {differing[0]} does not see the same files there as process 0; '
                                 'the folder must be on a disk that all machines share')
            time.sleep(1)
        if message:
            raise ValueError(message)
        if self.damaged:
            print0(f'{self.path / STATE}: {self.damaged}; resuming from {PREVIOUS}, which was saved before it.')
        return state

    def _read_state(self, options, sidecars):
        # Unlike glob, listdir raises an error if the folder cannot be read at the moment.
        names = os.listdir(self.path) if self.path.exists() else []
        snapshots = sorted(name for name in names if name.endswith('.pth') or name == PREVIOUS)
        if not snapshots:
            return None
        if not options.resume:
            raise ValueError(f'{self.path} holds a run ({", ".join(snapshots)}); give --resume to continue it, or choose '
                             'another --output')
        state, self.damaged = load_newest(self.path, snapshots)
        old, cwd = (state['options'], state.get('cwd', '')) if state else (read_run(self.path).get('options', {}), '')
        if old:  # an older version may lack options; the run used what are their defaults now
            old = {field.name: field.default for field in dataclasses.fields(options)} | old
        different = [f'--{name} {old.get(name)!r} then, {value!r} now' for name, value in dataclasses.asdict(options).items()
                     if name not in MAY_CHANGE and old.get(name) != value
                     and not (state and name in SCHEDULE and type(old.get(name)) is int and old[name] > 0)
                     and not (name in PATHS and _same_path(old, dataclasses.asdict(options), name, cwd))]
        different += [f'{name} differs' for name, text in sidecars.items()
                      if (self.path / name).exists() and self._differs(self.path / name, text)]
        if different:
            source = STATE if state else OPTIONS
            raise ValueError(f'--resume: the run in {self.path} was started with other settings (see its {source}): '
                             f'{"; ".join(different)}; repeat its command with --resume, or start a new run in another --output, '
                             'from one of its snapshots with --load')
        return state

    @staticmethod
    def _differs(path, text):
        """Whether the content of a sidecar differs from `text`. Ignores model_type, which older runs did not write."""
        if path.suffix != '.json':
            return read_bytes(path, 'what the run wrote; bring it back from a copy') != text.encode()
        old, new = read_json(path, 'what the run wrote; bring it back from a copy'), json.loads(text)
        if isinstance(old, dict) and isinstance(new, dict):
            return {**old, 'model_type': None} != {**new, 'model_type': None}
        return old != new

    def check_inputs(self, state, inputs, head):
        """Compares what a run reads with what it read before, and among its processes.

        inputs: {what it is: [digest, or '' if there is none, name of the file]}; head: with its initial weights. Raises
        ValueError, on every rank, that names what differs.
        """
        norms = {f'initial weight {name}': float(torch.linalg.vector_norm(p.detach(), dtype=torch.float64))
                 for name, p in head.named_parameters()} if world_size() > 1 else {}
        check_ranks({what: digest for what, (digest, _) in inputs.items()} | norms)
        self.inputs = inputs
        if state is None:
            return
        before = state.get('inputs')
        if before is None:
            print0(f'{self.path / STATE}: was saved by an older version, which recorded no digests of regions and validation '
                   'data; whether these are the same was not checked.')
            before = {f'{ANNOTATIONS} of --train': [state['progress']['data'], '']}
        different = [f'{what} ({name})' if name else what for what, (digest, name) in inputs.items()
                     if digest and (what in before or 'inputs' in state) and before.get(what, [None])[0] not in ('', digest)]
        different += [what for what in before if what not in inputs]
        if different:
            raise ValueError(f'--resume: the run in {self.path} was trained on other questions, regions or images or another '
                             f'corpus than are here now: {", ".join(different)}; bring those back, or start a new run in another '
                             '--output')

    def check_best(self, state, name):
        """Raises FileNotFoundError, OSError or WeightsError unless the snapshot of the best score of a resumed run is complete.

        name: of the file.
        """
        if state is None or state['progress']['best'] == -math.inf:
            return
        path, advice = self.path / name, 'bring it back; or to go on without it, copy another snapshot of the run to this name'
        try:
            check_file(path)
        except FileNotFoundError:
            raise FileNotFoundError(f'{path}: is missing, the weights of the best score so far; {advice}') from None
        except WeightsError as error:
            raise WeightsError(f'{error}; it holds the weights of the best score so far: {advice}') from None

    def begin(self, options, sidecars, progress, task):
        """Writes options, sidecars and the source code, and truncates the log to the resumed step.

        progress: the resumed Progress or None; task: its kind. Raises OSError.
        """
        gather(None)  # a barrier: every rank has read the folder before rank 0 changes it
        if is_main():
            for leftover in self.path.glob('*.part'):  # of a process that was killed
                leftover.unlink()
            if self.damaged:
                os.replace(self.path / PREVIOUS, self.path / STATE)
            with open(self.path / 'log.log', 'ab') as log:
                log.truncate(min(progress.log_size if progress else 0, log.tell()))
            for name, text in (*sidecars.items(), (OPTIONS, json.dumps(self._about(options, task), indent=2) + '\n')):
                write_text(self.path / name, text)
            try:
                shutil.copytree(SOURCE, self.path / 'src', dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))
            except shutil.Error as errors:  # a list of (source, destination, reason)
                reason = re.sub(r"^\[Errno \d+\] |: '.*", '', str(errors.args[0][0][2]))
                raise OSError(f'{self.path / "src"}: the source code cannot be copied there ({reason}); snapshots and run state '
                              'are unchanged: free space, or choose another --output') from None
            if launcher := os.environ.get('LAUNCHER'):
                shutil.copyfile(launcher, self.path / 'run.bash')

    @staticmethod
    def _about(options, task):
        try:
            git = subprocess.run(['git', '-C', SOURCE, 'describe', '--always', '--dirty'], capture_output=True, text=True)
            revision = git.stdout.strip() or None
        except OSError:  # no git on this machine
            revision = None
        return {'task': task, 'options': dataclasses.asdict(options), 'command': sys.argv, 'git': revision,
                'python': platform.python_version(), 'torch': torch.__version__}

    def log(self, *lines):
        """Prints lines and appends them to log.log."""
        print0(*lines)
        if is_main():
            with naming(self.path / 'log.log'), open(self.path / 'log.log', 'a', encoding='utf-8') as log:
                log.writelines(f'{printable(line)}\n' for line in lines)

    def scalars(self, values, step):
        """Writes {name: number} as TensorBoard events at a step."""
        if not is_main():
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import, and only training needs it
            self.writer = SummaryWriter(self.path, purge_step=step)
        for name, value in values.items():
            self.writer.add_scalar(printable(name), value, step)

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.lock.release()

    def save_snapshot(self, name, head):
        """Saves a head's weights: a state dict on the CPU in float32, with the original code's names."""
        if is_main():
            state = {key: (value.float() if value.is_floating_point() else value).detach().cpu()
                     for key, value in head.original_state().items()}
            self._write(name, lambda path: torch.save(state, path))

    def _write(self, name, write):
        """As write_atomically, of a file of the run."""
        try:
            write_atomically(self.path / name, write)
        except OSError as error:
            raise OSError(f'{error}; free space, then repeat the command with --resume') from None

    def save_state(self, options, progress, head, optimizer_step):
        """Saves what a resumed run needs. It needs no random states, since each step is seeded (train.seed_step).

        The state saved before is kept under another name. While one is written, there are two at most on the disk.
        """
        sums = sum_by_name(progress.sums)
        if not is_main():
            return
        progress = dataclasses.replace(progress, sums=sums, log_size=(self.path / 'log.log').stat().st_size)
        state = {
            'progress': dataclasses.asdict(progress), 'options': dataclasses.asdict(options), 'cwd': os.getcwd(),
            'model': head.original_state(), **optimizer_step.state_dict(), 'inputs': self.inputs,
        }
        if extra := head.extra_state():
            state['extra'] = extra
        self._write(STATE, lambda path: write_run_state(self.path, state, path))


def check_same_options(options, sidecars):
    """Raises ValueError, on every rank, unless all processes have the same options and sidecars, {file name: text}."""
    check_ranks({f'--{name}': value for name, value in dataclasses.asdict(options).items() if name not in MAY_DIFFER} | sidecars)


def check_ranks(values):
    """Raises ValueError, on every rank, unless all processes of a run have the same {what it is: value}, numbers but for
    rounding."""
    def same(one, other):
        return one == other or (isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=1e-5))

    by_rank = gather((socket.gethostname(), values))
    first_host, first = by_rank[0]
    for rank, (host, other) in enumerate(by_rank):
        if names := [name for name in {**first, **other} if not same(first.get(name), other.get(name))]:
            raise ValueError(f'process {rank} on {host} differs from process 0 on {first_host} in {some(names)}; give all '
                             'processes the same flags and files')


def read_run(folder):
    """The options.json of a run's folder, {'task': ..., 'options': {...}}; {} without such a file. Raises DataError."""
    path = Path(folder) / OPTIONS
    if not path.is_file():
        return {}
    run = read_json(path, 'the options of a run', dict)
    if not isinstance(run.get('options'), dict):
        raise DataError(f'{path}: key "options": expected an object, found none; bring the file back from a copy')
    values = run['options'] | {'task': run.get('task')}
    for key, kind in (('task', str), ('dataset', str), ('dataRoot', str), ('mceLoss', bool)):
        if not isinstance(values.get(key), kind | None):
            raise DataError(f'{path}: key "{key}": expected {"a text" if kind is str else "true or false"}, found '
                            f'{shown(values[key])}')
    return run


def _same_path(old, new, name, cwd):
    """Whether two options name the same file or folder. old, new: all options; cwd: the folder in which the run was started."""
    def places(options, folder):
        path = os.path.join(folder, options[name])
        below_root = os.path.join(folder, options['dataRoot'], options[name])
        return {re.sub(r'(_LXRT)?\.(pth|safetensors)$', '', os.path.realpath(path)) for path in (path, below_root)}

    if not all(isinstance(options.get(key), str) for options in (old, new) for key in (name, 'dataRoot')):
        return False
    return bool(places(old, cwd) & places(new, ''))
