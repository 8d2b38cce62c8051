"""What a run writes and reads back: snapshots, the run state, the log, and what the run was made from."""

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

from bert.weights import canonical_name
from dist import gather, is_main, print0, restarted

STATE = 'RUN_STATE.pth'
SOURCE = Path(__file__).resolve().parent
PATIENCE = 60  # seconds until a file of another machine is there (NFS), or the helpers of a process that died are gone
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


def write_whole(path, write):
    """Calls write(temporary path), then renames, so that a file under its final name is always whole.

    Raises OSError that names the file, and leaves no temporary one, if it cannot be written.
    """
    path = Path(path)
    part = path.with_name(path.name + '.part')
    try:
        write(part)
        with open(part, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError where a disk is full
        part.unlink(missing_ok=True)
        raise OSError(f'{path}: cannot be written ({error}); is the disk full? A run that was training goes on with '
                      '--resume') from None


class RunFolder:
    """The folder of one run, `--output`. Only rank 0 writes, and only one process at a time."""

    def __init__(self, path):
        """Makes the folder. Raises OSError that names it if it cannot be written or another process is at work in it."""
        self.path = Path(path)
        self.writer = None
        self.lock = FileLock(self.path / '.lock')  # let go by the system, whatever ends the process
        again = restarted()
        if is_main():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                # Workers of --numWorkers hold the lock too, and outlive a process that is killed by seconds.
                self.lock.acquire(timeout=PATIENCE if again else 0)
            except Timeout:
                raise OSError(f'--output {self.path}: another process is writing there; wait for it, or end it') from None
            except OSError as error:
                raise OSError(f'--output {self.path}: cannot be written ({error.strerror}); choose another folder') from None

    def read_state(self, options, beside):
        """The saved run state to go on from, or None to start anew.

        options: Options of the run; beside: {file name: text} that lies beside its snapshots. Raises ValueError if the
        folder holds a run and --resume is not given, or if the run there was made with something else, on every rank alike;
        and if the machines of a run do not find the same in the folder. Changes nothing.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                state, fault = self._read_run(options, beside), None
            except ValueError as error:
                state, fault = None, str(error)
            progress = state and [state['progress'][name] for name in ('epoch', 'step', 'log_size')]
            found = gather((self.path.is_dir(), progress, fault))
            others = [rank for rank, what in enumerate(found) if what != found[0]]
            if not others:
                break
            if max(gather(time.monotonic() > deadline)):
                raise ValueError(f'--output {self.path}: process {others[0]} does not find there what process 0 does; this '
                                 'folder must be on a disk that all machines share')
            time.sleep(1)
        if fault:
            raise ValueError(fault)
        return state

    def _read_run(self, options, beside):
        snapshots = sorted(path.name for path in self.path.glob('*.pth'))
        if not snapshots:
            return None
        if not options.resume:
            raise ValueError(f'{self.path} holds a run ({", ".join(snapshots)}); give --resume to go on with it, or choose '
                             'another name, or remove the folder')
        state = self._load_state()
        about = self.path / 'options.json'
        old = state['options'] if state else json.loads(about.read_text())['options'] if about.is_file() else {}
        if old:  # options newer than the run were what they are by default
            old = {field.name: field.default for field in dataclasses.fields(options)} | old
        different = [f'--{name} {old.get(name)!r} there, {value!r} now' for name, value in dataclasses.asdict(options).items()
                     if name not in MAY_CHANGE and old.get(name) != value]
        different += [f'{name} there is not what it would be now' for name, text in beside.items()
                      if (self.path / name).is_file() and (self.path / name).read_text(encoding='utf-8') != text]
        if different:
            raise ValueError(f'--resume: the run in {self.path} was made with something else: {"; ".join(different)}')
        return state

    def begin(self, options, beside, state, data):
        """Writes what the run is made from, and cuts off the log's lines of work that is done again.

        data: digest of the training questions. Raises ValueError, before it writes, if the state is of other ones.
        """
        if state is not None and state['progress']['data'] != data:
            raise ValueError(f'--resume: the run in {self.path} was trained on other questions or regions than there are now')
        gather(None)  # every rank has read the folder before rank 0 changes it
        if is_main():
            with open(self.path / 'log.log', 'ab') as log:
                log.truncate(min(state['progress']['log_size'] if state else 0, log.tell()))
            for name, text in (*beside.items(), ('options.json', json.dumps(self._about(options), indent=2) + '\n')):
                write_whole(self.path / name, lambda part, text=text: part.write_text(text, encoding='utf-8'))
            shutil.copytree(SOURCE, self.path / 'src', dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))
            if launcher := os.environ.get('LAUNCHER'):
                shutil.copyfile(launcher, self.path / 'run.bash')

    @staticmethod
    def _about(options):
        try:
            git = subprocess.run(['git', '-C', SOURCE, 'describe', '--always', '--dirty'], capture_output=True, text=True)
            revision = git.stdout.strip() or None
        except OSError:  # no git on this machine
            revision = None
        return {'options': dataclasses.asdict(options), 'command': sys.argv, 'git': revision,
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

    def save_snapshot(self, name, model):
        """Writes the model's weights as `name`: a flat state dict on the CPU in fp32, with the original's names."""
        if is_main():
            state = {canonical_name(key): value.detach().float().cpu() for key, value in model.state_dict().items()}
            write_whole(self.path / name, lambda part: torch.save(state, part))

    def save_state(self, options, progress, model, update):
        """Writes all that a resumed run needs. Random states are not among it: they are a function of seed and step."""
        sums = gather(progress.sums)
        total = {name: sum(part.get(name, 0.0) for part in sums) for name in sums[0]}
        if is_main():
            progress = dataclasses.replace(progress, sums=total, log_size=(self.path / 'log.log').stat().st_size)
            state = {
                'progress': dataclasses.asdict(progress), 'options': dataclasses.asdict(options),
                'model': model.state_dict(), **update.state_dict(),
            }
            write_whole(self.path / STATE, lambda part: torch.save(state, part))

    def _load_state(self):
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise ValueError(f'{path}: not a whole run state ({error}); remove the folder to start anew') from None
