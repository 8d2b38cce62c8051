"""What a run writes and reads back: snapshots, the run state, the log, and what the run was made from."""

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from dist import gather, is_main, say
from lxrt.weights import canonical_name

STATE = 'RUN_STATE.pth'
SOURCE = Path(__file__).resolve().parent
# Options that may change between a run and its resumption: they change how it is computed, not what.
MAY_CHANGE = {'output', 'resume', 'saveSteps', 'tqdm', 'numWorkers', 'evalBatchSize', 'device', 'multiGPU', 'storeRoot',
              'deterministic', 'dataRoot', 'accumulate'}


@dataclasses.dataclass
class Progress:
    """Where a run stands."""

    epoch: int = 0  # epochs finished
    step: int = 0  # optimizer steps done in the epoch that runs
    steps_per_epoch: int = 0
    best: float = -1.0  # best validation score so far, per cent
    log_size: int = 0  # bytes of log.log that belong to this state
    skipped: int = 0  # steps skipped because a gradient was not finite
    sums: dict = dataclasses.field(default_factory=dict)  # running sums of the epoch, by name

    @property
    def total_steps(self):
        return self.epoch * self.steps_per_epoch + self.step


def write_whole(path, write):
    """Calls write(temporary path), then renames, so that a file under its final name is always whole."""
    path = Path(path)
    part = path.with_name(path.name + '.part')
    write(part)
    with open(part, 'rb') as file:
        os.fsync(file.fileno())
    os.replace(part, path)


class RunFolder:
    """The folder of one run, `--output`. Only rank 0 writes."""

    def __init__(self, path):
        """Makes the folder. Raises OSError that names it if it cannot be written."""
        self.path = Path(path)
        self.writer = None
        if is_main():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                write_whole(self.path / '.writable', lambda part: part.write_text(''))
                (self.path / '.writable').unlink()
            except OSError as error:
                raise OSError(f'--output {self.path}: cannot be written ({error.strerror}); choose another folder') from None

    def start(self, options, beside):
        """Prepares for training and returns the saved run state to go on from, or None to start anew.

        options: Options of the run; beside: {file name: text} to lie beside the snapshots. Raises ValueError if the
        folder holds a run and --resume is not given, or if the run there was made with other options.
        """
        self.beside = beside
        state = self._read_state()
        gather(None)  # every rank has read the folder before rank 0 changes it
        if state is None and (self.path / 'LAST.pth').exists() and not options.resume:
            raise ValueError(f'{self.path} holds LAST.pth of another run; choose another name or remove the folder')
        if state is not None:
            if not options.resume:
                raise ValueError(f'{self.path} holds a run at epoch {state["progress"]["epoch"]}; give --resume to go on '
                                 'with it, or choose another name, or remove the folder')
            self._check_same(state['options'], dataclasses.asdict(options))
        if is_main():
            log_size = state['progress']['log_size'] if state else 0
            with open(self.path / 'log.log', 'ab') as log:
                log.truncate(log_size)  # lines of work that is done again
            self._describe(options)
        return state

    def _check_same(self, old, new):
        different = [f'--{name} {old.get(name)!r} there, {value!r} now'
                     for name, value in new.items() if name not in MAY_CHANGE and old.get(name) != value]
        if different:
            raise ValueError(f'--resume: the run in {self.path} was made with other options: {"; ".join(different)}')

    def _describe(self, options):
        """Records what the run is made from: options, versions, git revision, source and launcher."""
        git = subprocess.run(['git', '-C', SOURCE, 'describe', '--always', '--dirty'], capture_output=True, text=True)
        about = {
            'options': dataclasses.asdict(options), 'command': sys.argv, 'git': git.stdout.strip() or None,
            'python': platform.python_version(), 'torch': torch.__version__,
        }
        write_whole(self.path / 'options.json', lambda part: part.write_text(json.dumps(about, indent=2) + '\n'))
        for name, text in self.beside.items():
            write_whole(self.path / name, lambda part, text=text: part.write_text(text, encoding='utf-8'))
        shutil.copytree(SOURCE, self.path / 'src', dirs_exist_ok=True, ignore=shutil.ignore_patterns('__pycache__'))
        if launcher := os.environ.get('LAUNCHER'):
            shutil.copyfile(launcher, self.path / 'run.bash')

    def log(self, *lines):
        """Prints lines and appends them to log.log."""
        say('\n'.join(lines))
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

    def save_snapshot(self, name, model):
        """Writes the model's weights as `name`: a flat state dict on the CPU in fp32, with the original's names."""
        if is_main():
            state = {canonical_name(key): value.detach().float().cpu() for key, value in model.state_dict().items()}
            write_whole(self.path / name, lambda part: torch.save(state, part))

    def save_state(self, options, progress, model, optimizer):
        """Writes all that a resumed run needs. Random states are not among it: they are a function of seed and step."""
        sums = [progress.sums for progress in gather(progress)]
        total = {name: sum(part.get(name, 0.0) for part in sums) for name in sums[0]}
        if is_main():
            progress = dataclasses.replace(progress, sums=total, log_size=(self.path / 'log.log').stat().st_size)
            state = {
                'progress': dataclasses.asdict(progress), 'options': dataclasses.asdict(options),
                'model': model.state_dict(), 'optimizer': optimizer.state_dict(),
            }
            write_whole(self.path / STATE, lambda part: torch.save(state, part))

    def _read_state(self):
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        except Exception as error:  # a damaged file makes torch raise nearly anything
            raise ValueError(f'{path}: not a whole run state ({error}); remove it to start anew') from None
