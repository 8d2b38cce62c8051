"""The files of a run: options, log, snapshots, and the run state from which it resumes."""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dist import gather, is_main, print0, restarted, sum_by_name
from files.atomic import write_atomically, write_text
from files.text import printable

STATE = 'RUN_STATE.pth'
SOURCE = Path(__file__).resolve().parent
PATIENCE = 60  # seconds to wait until files of another machine are visible (NFS) or data workers of a killed process have ended
# Options that may change when a run is resumed. With another number of processes or micro-batches, or with --compile, dropout
# draws other random numbers: the results are equivalent, but not bit-identical.
MAY_CHANGE = {'output', 'resume', 'saveSteps', 'tqdm', 'numWorkers', 'featDevice', 'evalBatchSize', 'device', 'multiGPU',
              'storeRoot', 'deterministic', 'dataRoot', 'accumulate', 'compile', 'checkpointing'}


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


class RunFolder:
    """The folder of a run, `--output`. Only rank 0 writes; a lock excludes other runs."""

    def __init__(self, path):
        """Creates and locks the folder. Raises OSError if it cannot be written or another process holds the lock."""
        self.path = Path(path)
        self.writer = None
        self.lock = FileLock(self.path / '.lock')  # the system releases it even if the process is killed
        after_crash = restarted()
        if is_main():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                # Data workers inherit the lock and outlive a killed process by seconds.
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
                state, message = self._read_run(options, sidecars), None
            except ValueError as error:
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
        return state

    def _read_run(self, options, sidecars):
        snapshots = sorted(path.name for path in self.path.glob('*.pth'))
        if not snapshots:
            return None
        if not options.resume:
            raise ValueError(f'{self.path} holds a run ({", ".join(snapshots)}); give --resume to continue it, or choose '
                             'another name, or remove the folder')
        state = self._load_state()
        path = self.path / 'options.json'
        old = state['options'] if state else json.loads(path.read_text())['options'] if path.is_file() else {}
        if old:  # an older version may lack options; the run used what are their defaults now
            old = {field.name: field.default for field in dataclasses.fields(options)} | old
        different = [f'--{name} {old.get(name)!r} then, {value!r} now' for name, value in dataclasses.asdict(options).items()
                     if name not in MAY_CHANGE and old.get(name) != value]
        different += [f'{name} differs' for name, text in sidecars.items()
                      if (self.path / name).is_file() and differs((self.path / name).read_text(encoding='utf-8'), text)]
        if different:
            raise ValueError(f'--resume: the run in {self.path} was started with other settings: {"; ".join(different)}')
        return state

    def begin(self, options, sidecars, state, data, task):
        """Writes options, sidecars and the source code, and truncates the log to the resumed step.

        data: digest of the training examples; task: its kind. Raises ValueError if the run state has another digest.
        """
        if state is not None and state['progress']['data'] != data:
            raise ValueError(f'--resume: the run in {self.path} was trained on other questions or regions than the current ones')
        gather(None)  # a barrier: every rank has read the folder before rank 0 changes it
        if is_main():
            with open(self.path / 'log.log', 'ab') as log:
                log.truncate(min(state['progress']['log_size'] if state else 0, log.tell()))
            for name, text in (*sidecars.items(), ('options.json', json.dumps(self._about(options, task), indent=2) + '\n')):
                write_text(self.path / name, text)
            shutil.copytree(SOURCE, self.path / 'src', dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))
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
            with open(self.path / 'log.log', 'a', encoding='utf-8') as log:
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
            state = {key: value.detach().float().cpu() for key, value in head.original_state().items()}
            write_atomically(self.path / name, lambda path: torch.save(state, path))

    def save_state(self, options, progress, head, optimizer_step):
        """Saves what a resumed run needs. It needs no random states, since each step is seeded (train.seed_step)."""
        sums = sum_by_name(progress.sums)
        if is_main():
            progress = dataclasses.replace(progress, sums=sums, log_size=(self.path / 'log.log').stat().st_size)
            state = {
                'progress': dataclasses.asdict(progress), 'options': dataclasses.asdict(options),
                'model': head.original_state(), **optimizer_step.state_dict(),
            }
            if extra := head.extra_state():
                state['extra'] = extra
            write_atomically(self.path / STATE, lambda path: torch.save(state, path))

    def _load_state(self):
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:  # a damaged file makes torch raise many kinds of exceptions
            raise ValueError(f'{path}: the run state is damaged ({error}); remove the folder to start again') from None


def differs(old, new):
    """Whether the contents of two sidecars differ. Ignores model_type, which older runs did not write."""
    try:
        old, new = json.loads(old), json.loads(new)
    except (ValueError, RecursionError):  # vocab.txt
        return old != new
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, 'model_type': None} != {**new, 'model_type': None}
    return old != new
