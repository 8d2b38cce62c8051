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

from dist import gather, is_main, print0, restarted
from files.atomic import write_atomically, write_text

STATE = 'RUN_STATE.pth'
SOURCE = Path(__file__).resolve().parent
PATIENCE = 60  # seconds until a file of another machine is visible (NFS), or the data workers of a dead process have ended
# Options that may change when a run is resumed: where and how it is computed. With another number of processes or parts, or
# compiled, dropout draws other numbers, so that the weights are as good but not the same bits.
MAY_CHANGE = {'output', 'resume', 'saveSteps', 'tqdm', 'numWorkers', 'featDevice', 'evalBatchSize', 'device', 'multiGPU',
              'storeRoot', 'deterministic', 'dataRoot', 'accumulate', 'compile', 'checkpointing'}


@dataclasses.dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs finished
    step: int = 0  # optimizer steps done in the epoch that runs
    steps_per_epoch: int = 0
    data: str = ''  # digest of the training questions
    best: float = float('-inf')  # best validation score so far
    log_size: int = 0  # bytes of log.log that belong to this state
    skipped: int = 0  # steps skipped because a gradient was not finite
    skipped_in_a_row: int = 0
    sums: dict = dataclasses.field(default_factory=dict)  # running sums of the epoch, by name

    @property
    def total_steps(self):
        return self.epoch * self.steps_per_epoch + self.step


class RunFolder:
    """The folder of one run, `--output`. Only rank 0 writes, and only one process at a time."""

    def __init__(self, path):
        """Makes the folder. Raises OSError that names it if it cannot be written or another process is at work in it."""
        self.path = Path(path)
        self.writer = None
        self.lock = FileLock(self.path / '.lock')  # released by the system, however the process ends
        after_crash = restarted()
        if is_main():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                # Data workers hold the lock too, and outlive a killed process by seconds.
                self.lock.acquire(timeout=PATIENCE if after_crash else 0)
            except Timeout:
                raise OSError(f'--output {self.path}: another process is writing there; wait for it, or end it') from None
            except OSError as error:
                raise OSError(f'--output {self.path}: cannot be written ({error.strerror}); choose another folder') from None

    def read_state(self, options, sidecars):
        """The saved run state to resume from, or None to start.

        options: Options of the run; sidecars: {file name: text} that lies beside its snapshots. Raises ValueError on every rank
        alike if the folder holds a run and --resume is not given, if that run was made with something else, or if the machines of
        a run do not see the same folder. Changes nothing.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                state, fault = self._read_run(options, sidecars), None
            except ValueError as error:
                state, fault = None, str(error)
            progress = state and [state['progress'][name] for name in ('epoch', 'step', 'log_size')]
            views = gather((self.path.is_dir(), progress, fault))
            others = [rank for rank, view in enumerate(views) if view != views[0]]
            if not others:
                break
            if max(gather(time.monotonic() > deadline)):
                raise ValueError(f'--output {self.path}: process {others[0]} does not see in it what process 0 does; the folder '
                                 'must be on a disk that all machines share')
            time.sleep(1)
        if fault:
            raise ValueError(fault)
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
        if old:  # the run had the defaults of options that are newer than it
            old = {field.name: field.default for field in dataclasses.fields(options)} | old
        different = [f'--{name} {old.get(name)!r} there, {value!r} now' for name, value in dataclasses.asdict(options).items()
                     if name not in MAY_CHANGE and old.get(name) != value]
        different += [f'{name} there is not what it would be now' for name, text in sidecars.items()
                      if (self.path / name).is_file() and differs((self.path / name).read_text(encoding='utf-8'), text)]
        if different:
            raise ValueError(f'--resume: the run in {self.path} was made with something else: {"; ".join(different)}')
        return state

    def begin(self, options, sidecars, state, data, task):
        """Writes options, sidecars and the source code, and truncates the log to the resumed step.

        data: digest of the training examples; task: its kind. Raises ValueError, before it writes, if the state is of other data.
        """
        if state is not None and state['progress']['data'] != data:
            raise ValueError(f'--resume: the run in {self.path} was trained on other questions or regions than there are now')
        gather(None)  # rank 0 must not change the folder before every rank has read it
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
        print0('\n'.join(lines))
        if is_main():
            with open(self.path / 'log.log', 'a', encoding='utf-8') as log:
                log.write('\n'.join(lines) + '\n')

    def scalars(self, values, step):
        """Writes {name: number} as TensorBoard events at a step."""
        if not is_main():
            return
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import, needed only in training
            self.writer = SummaryWriter(self.path, purge_step=step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self):
        if self.writer is not None:
            self.writer.close()
        self.lock.release()

    def save_snapshot(self, name, head):
        """Writes a head's weights as `name`: a flat state dict on the CPU in float32, with the original code's names."""
        if is_main():
            state = {key: value.detach().float().cpu() for key, value in head.original_state().items()}
            write_atomically(self.path / name, lambda path: torch.save(state, path))

    def save_state(self, options, progress, head, optimizer_step):
        """Writes all that a resumed run needs. Random states are not among it: they are a function of seed and step."""
        sums = gather(progress.sums)
        total = {name: sum(part.get(name, 0.0) for part in sums) for name in sums[0]}
        if is_main():
            progress = dataclasses.replace(progress, sums=total, log_size=(self.path / 'log.log').stat().st_size)
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
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise ValueError(f'{path}: not a whole run state ({error}); remove the folder to start anew') from None


def differs(old, new):
    """Whether two sidecar texts mean something else; model_type, which older runs did not write, does not count."""
    if old == new:
        return False
    try:
        old, new = json.loads(old), json.loads(new)
    except ValueError:
        return True
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old != new
    return {**old, 'model_type': None} != {**new, 'model_type': None}
