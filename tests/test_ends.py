"""How programs end: errors, lost workers and signals, with and without data workers, in one process and in two; scripts and
launchers that are killed; what killed programs leave."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from filelock import FileLock
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

import cli
import dist
import train
from annotations.dataset import ExampleDataset
from batches import load_batches
from files.atomic import atomic_file, owner, temporary_folder
from param import Options
from run_folder import RunFolder
from shapes import world as shapes_world

LIMIT = 60  # seconds in which everything that is ended must have ended
TRAINING = ['--epochs', '30', '--saveSteps', '2', '--batchSize', '8']


def wait_until(condition):
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def group_is_gone(pid):
    """Whether no process of a process group is left."""
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return True
    return False


def fail_in(error, step=5, work=train.train_step):
    def train_step(model, optimizer_step, batches, options, progress, *more):
        if progress.total_steps == step and int(os.environ.get('RANK', 0)) == 0:
            raise error
        return work(model, optimizer_step, batches, options, progress, *more)

    train.train_step = train_step


def fault_of_the_program():
    fail_in(IndexError('index 7 is out of bounds'))


def out_of_memory():
    fail_in(torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 MiB.'))


def in_worker(action, get=ExampleDataset.__getitem__):
    def getitem(self, micro_batch):
        if micro_batch.epoch is not None and micro_batch.first == 24 and int(os.environ.get('RANK', 0)) == 0:
            action()
        return get(self, micro_batch)

    ExampleDataset.__getitem__ = getitem
    _MultiProcessingDataLoaderIter._try_get_data.__defaults__ = (0.2,)  # seconds after which it looks for dead workers; else 5


def fault_in_worker():
    in_worker(lambda: [].pop())


def input_error_in_worker():
    def action():
        raise cli.DeviceError('train2014.tsv: line 7: a fault')

    in_worker(action)


def killed_worker():
    in_worker(lambda: os.kill(os.getpid(), signal.SIGKILL))


def full_shared_memory():
    def full(*_):
        raise RuntimeError('unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)')

    in_worker(lambda: setattr(torch.UntypedStorage, '_share_fd_cpu_', full))


@pytest.mark.parametrize(('before', 'message', 'processes', 'workers'), [
    (fault_of_the_program, 'IndexError', 1, 0), (fault_of_the_program, 'IndexError', 1, 2),
    (fault_of_the_program, 'IndexError', 2, 2), (out_of_memory, 'not enough memory on the GPU', 1, 2),
    (out_of_memory, 'not enough memory on the GPU', 2, 0), (fault_in_worker, 'IndexError', 1, 2),
    (input_error_in_worker, ': error: train2014.tsv: line 7: a fault\n', 1, 2),
    (killed_worker, 'a data worker could not start or ended', 1, 2),
    (killed_worker, 'a data worker could not start or ended', 2, 2),
    (full_shared_memory, 'a data worker could not start or ended', 1, 2)])
def test_errors_end_the_program(vqa, tmp_path, before, message, processes, workers):
    ranks = vqa(*TRAINING, '--numWorkers', workers, processes=processes, wait=False, before=before)
    run = ranks.wait(LIMIT)
    assert run.returncode == 1 and message in run.stdout, run.stdout
    assert ('Traceback' in run.stdout) == ('IndexError' in message) and 'Exception ignored' not in run.stdout
    assert 'repeat the command with --resume' in run.stdout or before == input_error_in_worker
    assert processes == 1 or 'another process of the run has ended' in run.stdout
    wait_until(lambda: all(group_is_gone(rank.pid) for rank in ranks.ranks))
    with FileLock(tmp_path / 'run/.lock').acquire(timeout=0):
        pass


@pytest.mark.parametrize(('number', 'status', 'processes', 'workers'), [
    (signal.SIGTERM, 75, 1, 2), (signal.SIGTERM, 75, 2, 2), (signal.SIGHUP, 75, 1, 0), (signal.SIGHUP, 75, 2, 2),
    (signal.SIGINT, 130, 1, 2), (signal.SIGINT, 130, 2, 2), (signal.SIGKILL, -9, 1, 2), (signal.SIGKILL, -9, 2, 2)])
def test_signals_end_the_program(vqa, tmp_path, number, status, processes, workers):
    """Ctrl-C goes to all processes; the other signals to one, which scheduled ones reach as a group, with its workers."""
    ranks = vqa(*TRAINING, '--epochs', '500', '--numWorkers', workers, processes=processes, wait=False)
    wait_until(lambda: (tmp_path / 'run/RUN_STATE.pth').exists() or not ranks.alive())
    if number == signal.SIGKILL:
        os.kill(ranks.ranks[-1].pid, number)
    elif number == signal.SIGINT:
        ranks.signal(number)
    else:
        os.killpg(ranks.ranks[-1].pid, number)
    run = ranks.wait(LIMIT)
    assert run.returncode == status and 'Traceback' not in run.stdout, run.stdout
    assert {rank.exitcode for rank in ranks.ranks} == ({status, 1} if number == signal.SIGKILL and processes == 2 else {status})
    wait_until(lambda: all(group_is_gone(rank.pid) for rank in ranks.ranks))
    with FileLock(tmp_path / 'run/.lock').acquire(timeout=0):
        pass


def test_a_run_whose_steps_are_all_skipped_fails(run_here, monkeypatch):
    monkeypatch.setattr(train.OptimizerStep, '__call__', lambda self, step: torch.tensor(False))
    status, printed = run_here('--train', 'nominival')
    assert status == 1 and 'all steps of epoch 0 had a gradient that is not finite' in printed.err


@pytest.mark.parametrize(('number', 'status'), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_end_other_programs_after_they_have_cleaned_up(capsys, number, status):
    cleaned = []

    def work():
        try:
            os.kill(os.getpid(), number)
            time.sleep(LIMIT)
        finally:
            cleaned.append(True)

    before = signal.getsignal(number)
    assert cli.run_main('it', work, 'stopped') == status and capsys.readouterr().err == '\nit: stopped\n'
    assert cleaned and signal.getsignal(number) == before


def test_sighup_is_ignored_where_nohup_wants_it():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert cli.run_main('it', lambda: os.kill(os.getpid(), signal.SIGHUP) or 0) == 0
        with train.SigtermHandler() as handler:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not handler.received
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(('error', 'message'), [
    (MemoryError(), 'not enough memory'), (OSError(12, 'Cannot allocate memory'), 'not enough memory'),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"), 'not enough memory'),
    (RuntimeError('[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer'), 'another process of the run'),
    (RuntimeError('shape mismatch'), None), (ValueError('out of memory'), None), (IndexError('7'), None)])
def test_faults_that_may_not_occur_again(error, message):
    fault = cli.transient_fault(error)
    assert fault is None if message is None else message in fault


@pytest.mark.parametrize(('error', 'status', 'left'), [
    (torch.OutOfMemoryError('CUDA out of memory.'), 1, None), (cli.WorkerError('killed'), 1, None), (IndexError('7'), 1, None),
    (ValueError('faulty'), 0, '1'), (FloatingPointError('not finite'), 0, '1')])
def test_only_faulty_input_is_not_restarted(monkeypatch, tmp_path, error, status, left):
    """torchrun restarts processes whose status is not 0; dist.end leaves the status of those that it is not to restart."""
    def prepare(*_):
        raise error

    monkeypatch.setattr(dist, 'start', lambda device: torch.device('cpu'))
    monkeypatch.setenv(dist.STATUS_FILE, str(tmp_path / 'status'))
    assert cli.train_main(prepare, ['--fromScratch']) == status
    assert ((tmp_path / 'status').read_text() if left else None) == left and (tmp_path / 'status').exists() == bool(left)


SCRIPT = """
source run/signals.bash
echo $$ >> "$1"
code='import os, sys, time; print(os.getpid(), file=open(sys.argv[1], "a")); time.sleep(99)'
step() { exec "${started[@]}" "$2" -c "$code" "$1"; }
if [ "$3" = outer ]; then run_program bash "$0" "$1" "$2" inner; else run_program step "$1" "$2"; fi
echo still here
"""


@pytest.mark.parametrize(('name', 'status'), [('SIGTERM', 143), ('SIGINT', 130), ('SIGHUP', 129), ('SIGKILL', -9)])
def test_a_signal_to_a_script_ends_what_it_has_started(tmp_path, name, status):
    """A script that starts a script that starts a program: also where the programs in its background ignore Ctrl-C."""
    pids, script = tmp_path / 'pids', tmp_path / 'script'
    script.write_text(SCRIPT)
    with subprocess.Popen(['bash', script, pids, sys.executable, 'outer'], cwd=ROOT, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True, text=True) as process:
        wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 3)
        process.send_signal(signal.Signals[name])
        assert process.wait(LIMIT) == status and 'still here' not in process.stdout.read()
    wait_until(lambda: not any(os.path.exists(f'/proc/{pid}') for pid in pids.read_text().split()))


def test_a_script_goes_on_after_a_program_and_has_its_status(tmp_path):
    code = 'source run/signals.bash; run_program true && echo one; run_program bash -c "exit 7" || echo $?'
    run = subprocess.run(['bash', '-euc', code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert (run.returncode, run.stdout, run.stderr) == (0, 'one\n7\n', '')


def test_files_that_a_program_opens_do_not_become_its_closed_stderr():
    code = "exec 3>&1 0<&- 1>&- 2>&-; source run/launch.bash; [ -e /dev/fd/0 -a -e /dev/fd/1 -a -e /dev/fd/2 ] && echo open >&3"
    run = subprocess.run(['bash', '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert run.stdout == 'open\n'


PROGRAM = """
import os, sys, time, dist
print(os.environ['RANK'], os.getpid(), file=open(sys.argv[1], 'a', buffering=1))
while os.environ['RANK'] == '1' and os.getppid() == int(os.environ['LAUNCHER_PID']):
    time.sleep(0.05)
dist.start('cpu')  # rank 0 waits there for rank 1
"""


def test_processes_end_with_their_launcher_even_before_they_have_met(tmp_path):
    (tmp_path / 'program.py').write_text(PROGRAM)
    command = 'source run/launch.bash; torchrun_flags 2; exec "$PYTHON" "${torchrun[@]}" "$0" "$1"'
    pids, temporary = tmp_path / 'pids', tmp_path / 'temporary'
    temporary.mkdir()
    launcher = subprocess.Popen(['bash', '-c', command, tmp_path / 'program.py', pids], cwd=ROOT, start_new_session=True,
                                env={**os.environ, 'PYTHONPATH': 'src', 'OMP_NUM_THREADS': '1', 'TMPDIR': str(temporary)})
    wait_until(lambda: pids.exists() and len(pids.read_text().splitlines()) == 2)
    time.sleep(0.5)  # rank 0 reaches the store
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not any(os.path.exists(f'/proc/{line.split()[1]}') for line in pids.read_text().splitlines()))
    assert len(list(temporary.iterdir())) == 1
    with temporary_folder('lxmert-', temporary) as folder:  # as the next launcher starts
        assert list(temporary.iterdir()) == [folder]


def test_files_of_killed_processes_are_removed_and_no_others(tmp_path):
    dead = subprocess.Popen(['true'])
    dead.wait()
    host = owner().partition('@')[2]
    kept = [tmp_path / f'a.json.tmp-{os.getppid()}@{host}', tmp_path / f'a.json.tmp-{dead.pid}@another',
            tmp_path / f'b.json.tmp-{dead.pid}@{host}', tmp_path / f'a.json.tmp-it@{host}']
    for path in (*kept, tmp_path / f'a.json.tmp-{dead.pid}@{host}'):
        path.write_text('half')
    with atomic_file(tmp_path / 'a.json', 'w') as file:
        file.write('complete')
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / 'a.json'])


class Numbers(torch.utils.data.Dataset):
    """The numbers of its process, which ends when it is asked for 7."""

    def __getitem__(self, number):
        if number == 7:
            open(f'/dev/shm/torch_{os.getpid()}_1_1', 'w').close()  # as a batch that is on its way
            os.kill(os.getpid(), signal.SIGKILL)
        return {'pid': torch.tensor(os.getpid())}

    def to_device(self, batch):
        return batch


@pytest.fixture
def short_path():
    """A temporary folder in which sockets can be, whose paths have at most 108 characters."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_what_a_killed_worker_leaves_is_removed_when_the_next_one_starts(short_path, monkeypatch):
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, '__defaults__', (0.2,))
    monkeypatch.setattr(tempfile, 'tempdir', str(short_path))
    load = partial(load_batches, Numbers(), options=Options(numWorkers=1), device=torch.device('cpu'))
    batches = load([1, 2, 3, 7])  # it prepares two in advance
    memory = f'/dev/shm/torch_{int(next(batches)["pid"])}_1_1'
    with pytest.raises(cli.WorkerError):
        list(batches)
    assert os.path.exists(memory) and len(list(short_path.iterdir())) == 1
    assert len(list(load([1, 2]))) == 2
    assert not os.path.exists(memory) and not list(short_path.iterdir())


def test_snapshots_that_a_killed_run_wrote_half_are_removed_when_it_starts(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / 'BEST.pth.part').write_text('half')
    folder.begin(Options(), {}, None, 'vqa')
    folder.close()
    assert not list(tmp_path.glob('*.part'))


def kill_this_process(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_world_whose_process_was_killed_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes_world, '_draw', kill_this_process)
    with pytest.raises(cli.WorkerError, match='was killed'):
        shapes_world.make(tmp_path / 'shapes', shapes_world.Settings(12, 1, 2), processes=2)
    assert not list(tmp_path.iterdir())
