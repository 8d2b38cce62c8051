"""Several machines, ranks that die, and SIGTERM: launchers on 127.0.0.1, each one a machine of its own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import machines
import run_folder
from param import Options
from run_folder import RunFolder

MACHINES = {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': '127.0.0.1'}


def workers(launcher):
    """{rank: process id} of what a launcher has started."""
    found = {}
    for process in Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split():
        rank = re.search(r'(?:^|\0)RANK=(\d+)\0', Path(f'/proc/{process}/environ').read_text())
        if rank:
            found[int(rank[1])] = int(process)
    return found


@pytest.fixture(scope='module')
def own_world(made_world, tmp_path_factory):
    """A copy: runs make stores beside the regions."""
    return shutil.copytree(made_world, tmp_path_factory.mktemp('world') / 'shapes')


@pytest.fixture
def launch(own_world):
    """launch(output, *flags, **variables): starts run/vqa_finetune.bash on the sample world; returns the process."""
    started = []

    def start(output, *flags, **variables):
        environment = {name: value for name, value in os.environ.items() if name not in (*machines.VARIABLES, 'NPROC')}
        command = ['bash', 'run/vqa_finetune.bash', 'cpu', 'name', '--output', output, '--fromScratch',
                   '--dataRoot', own_world, '--bert', own_world / 'bert', '--batchSize', '16', '--lr', '1e-3',
                   '--epochs', '3', '--saveSteps', '4', *flags]
        started.append(subprocess.Popen([str(word) for word in command], cwd=ROOT, text=True, start_new_session=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                        env={**environment, 'OMP_NUM_THREADS': '1', **variables}))
        return started[-1]

    yield start
    for launcher in started:
        if launcher.poll() is None:
            for process in (*workers(launcher).values(), launcher.pid):
                os.kill(process, signal.SIGKILL)
            launcher.wait()


@pytest.fixture
def on_two_machines(launch):
    """The same for two launchers, one process each; returns both."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])

    def start(*arguments, **variables):
        return [launch(*arguments, NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=port, **variables)
                for rank in (0, 1)]

    return start


def ended(launchers):
    """(exit statuses, everything printed) of launchers."""
    printed = [launcher.communicate(timeout=150)[0] for launcher in launchers]
    return [launcher.returncode for launcher in launchers], '\n'.join(printed)


def wait_for_state(folder, launchers):
    while not (folder / 'RUN_STATE.pth').exists():
        assert all(launcher.poll() is None for launcher in launchers), ended(launchers)
        time.sleep(0.005)


def assert_same(one, other):
    one, other = (torch.load(folder / 'LAST.pth', weights_only=True) for folder in (one, other))
    assert all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp('machines')


def undisturbed(launch, folders):
    """The folder of a run of two processes on one machine, made once."""
    if not (folders / 'whole').exists():
        assert ended([launch(folders / 'whole', '--multiGPU', NPROC='2')])[0] == [0]
    return folders / 'whole'


def test_a_rank_of_two_machines_that_is_killed_comes_back_and_ends_with_the_same_bits(launch, on_two_machines, folders):
    launchers = on_two_machines(folders / 'killed', RESTARTS='1')
    wait_for_state(folders / 'killed', launchers)
    os.kill(workers(launchers[1])[1], signal.SIGKILL)
    status, printed = ended(launchers)
    assert status == [0, 0] and 'Resuming at epoch' in printed, printed
    assert printed.count('Snapshots, log and events') == 1
    assert_same(undisturbed(launch, folders), folders / 'killed')
    assert (folders / 'whole/log.log').read_text() == (folders / 'killed/log.log').read_text()


def test_sigterm_to_one_machine_saves_stops_both_and_says_so(launch, on_two_machines, folders):
    launchers = on_two_machines(folders / 'stopped', RESTARTS='1')
    wait_for_state(folders / 'stopped', launchers)
    launchers[1].terminate()
    status, printed = ended(launchers)
    assert status == [75, 75] and 'all saved' in printed and 'Traceback' not in printed, printed
    # Going on, on one machine, ends with the bits of a run that was never stopped.
    status, printed = ended([launch(folders / 'stopped', '--resume', '--multiGPU', NPROC='2')])
    assert status == [0] and 'Resuming at epoch' in printed, printed
    assert_same(undisturbed(launch, folders), folders / 'stopped')


def test_what_would_fail_again_is_not_started_again(launch, folders):
    undisturbed(launch, folders)
    status, printed = ended([launch(folders / 'whole', '--multiGPU', NPROC='2', RESTARTS='3')])
    assert status == [1] and 1 <= printed.count('give --resume') <= 2, printed  # once a process


@pytest.mark.parametrize(('change', 'message'), [
    ({'NODE_RANK': None}, r'NODE_RANK: expected .* from 0 to NNODES - 1; found nothing'),
    ({'NODE_RANK': '2'}, r"NODE_RANK: .* found '2'"),
    ({'NNODES': 'two'}, r"NNODES: .* found 'two'"),
    ({'NNODES': '0'}, r"NNODES: .* found '0'"),
    ({'MASTER_ADDR': None}, r'MASTER_ADDR: .* found nothing'),
    ({'MASTER_ADDR': 'a b'}, r"MASTER_ADDR: .* found 'a b'"),
    ({'MASTER_PORT': '65536'}, r"MASTER_PORT: .* from 1 to 65535; found '65536'"),
])
def test_variables_that_are_missing_or_wrong_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        machines.read_place({name: value for name, value in {**MACHINES, **change}.items() if value is not None})


def test_variables_are_read_before_anything_else(launch, tmp_path):
    assert machines.read_place(MACHINES) == (2, 1, '127.0.0.1', 29500)
    assert machines.read_place({}) == machines.read_place({'NNODES': '1'}) == (1, 0, 'localhost', 0)
    started = time.monotonic()
    status, printed = ended([launch(tmp_path / 'run', NNODES='2', MASTER_ADDR='127.0.0.1')])
    assert status == [2] and 'NODE_RANK' in printed and time.monotonic() - started < 3
    assert machines.interface('127.0.0.1') == 'lo'


def test_machines_that_do_not_share_the_run_folder_are_told(tmp_path, monkeypatch):
    rounds = []

    def gather(value):
        rounds.append(value)
        return [(True, [3, 4, 500], None), value] if isinstance(value, tuple) else [value, value]

    monkeypatch.setattr(run_folder, 'gather', gather)
    monkeypatch.setattr(run_folder, 'PATIENCE', 0)
    folder = RunFolder(tmp_path / 'run')
    with pytest.raises(ValueError, match=r'process 1 does not find there what process 0 does.* share'):
        folder.read_state(Options(), {})
    assert rounds[-2] == (True, None, None)
    folder.close()


def slurm_script():
    return re.search(r'```bash\n(#!/usr/bin/env bash\n#SBATCH .*?)```', (ROOT / 'docs/distributed.md').read_text(), re.S)[1]


@pytest.mark.parametrize('status', [0, 1, 75])
def test_the_slurm_example_starts_a_launcher_a_machine_and_requeues_what_was_stopped(tmp_path, status):
    def write(name, text):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'#!/usr/bin/env bash\n{text}\n')
        (tmp_path / name).chmod(0o755)

    write('bin/scontrol', 'if [ "$1" = show ]; then printf "gpu07\\ngpu09\\n"; else echo "$*" >> requeued; fi')
    write('bin/srun', 'status=0; while [[ $1 = -* ]]; do shift; done\n'
          'for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@" || status=$?; done; exit $status')
    write('run/lxmert_pretrain.bash', f'echo "$NNODES $NODE_RANK $MASTER_ADDR $MASTER_PORT $*" >> started; exit {status}')
    write('job', slurm_script())
    run = subprocess.run(['bash', '-eu', 'job'], cwd=tmp_path, capture_output=True, text=True, env={
        'PATH': f'{tmp_path / "bin"}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '4711', 'SLURM_NNODES': '2',
        'SLURM_JOB_NODELIST': 'gpu[07,09]', 'SLURM_CPUS_PER_TASK': '32'})
    assert run.returncode == status, run.stderr
    started = (tmp_path / 'started').read_text().splitlines()
    for rank, line in enumerate(started):
        assert re.fullmatch(rf'2 {rank} gpu07 \d+ 0,1,2,3 .*--resume.*', line)
    assert len(started) == 2 and '#SBATCH --nodes=2' in slurm_script()
    assert (tmp_path / 'requeued').exists() == (status == 75)
