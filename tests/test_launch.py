"""Several processes and machines (launchers on 127.0.0.1): ranks that die, errors of one rank, signals, open ports."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist
from conftest import ROOT
from processes import Ranks
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

import cli
import dist
import launch
import run_folder
from images import pictures
from param import Options
from run_folder import RunFolder

VARIABLES = {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500'}
FLAGS = ['--batchSize', '16', '--lr', '1e-3', '--epochs', '4', '--saveSteps', '4', '--fromScratch']


def ranks(launcher):
    """{rank: process id} of the processes that a launcher has started."""
    pids = {}
    for pid in Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split():
        rank = re.search(r'(?:^|\0)RANK=(\d+)\0', Path(f'/proc/{pid}/environ').read_text())
        if rank:
            pids[int(rank[1])] = int(pid)
    return pids


def clean_environment(**variables):
    return {**{name: value for name, value in os.environ.items() if name not in (*VARIABLES, 'RESTARTS', 'NPROC')},
            'OMP_NUM_THREADS': '1', **variables}


@pytest.fixture
def start(made_world):
    """start(output, *flags, **variables): starts run/vqa_finetune.bash on the sample world; returns the process."""
    launchers = []

    def begin(output, *flags, **variables):
        command = ['bash', 'run/vqa_finetune.bash', 'cpu', 'name', '--output', output, '--dataRoot', made_world,
                   '--bert', made_world / 'bert', '--storeRoot', output.parent, *FLAGS, *flags]
        launchers.append(subprocess.Popen([str(word) for word in command], cwd=ROOT, text=True, start_new_session=True,
                                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=clean_environment(**variables)))
        return launchers[-1]

    yield begin
    for launcher in launchers:
        if launcher.poll() is None:
            launcher.kill()  # which ends its processes
            launcher.wait()


def finish(launchers):
    """(exit statuses, everything printed) of launchers."""
    printed = [launcher.communicate(timeout=150)[0] for launcher in launchers]
    return [launcher.returncode for launcher in launchers], '\n'.join(printed)


def wait_for_new_state(folder, launchers, old=None):
    """Waits until the run state is saved, another one than `old`; returns when it was."""
    path = folder / 'RUN_STATE.pth'
    while not path.exists() or (saved := path.stat().st_mtime_ns) == old:
        assert all(launcher.poll() is None for launcher in launchers), finish(launchers)
        time.sleep(0.005)
    return saved


def listening(pids):
    """The addresses, as /proc/net/tcp and tcp6 write them, at which processes wait for connections."""
    sockets = set()
    for file in (file for pid in pids for file in Path(f'/proc/{pid}/fd').iterdir()):
        with contextlib.suppress(FileNotFoundError):  # closed by now
            sockets.add(os.readlink(file))
    lines = [line.split() for table in ('tcp', 'tcp6') for line in Path(f'/proc/net/{table}').read_text().splitlines()[1:]]
    return {line[1].split(':')[0] for line in lines if line[3] == '0A' and f'socket:[{line[9]}]' in sockets}


def test_runs_that_were_disturbed_end_with_the_same_bits(start, made_world, tmp_path):
    """On two machines a rank is killed, and restarted; SIGTERM on one machine ends both; one machine resumes."""
    flags = ['--device', 'cpu', '--dataRoot', made_world, '--bert', made_world / 'bert', '--train', 'train,nominival',
             '--valid', 'minival', '--output', tmp_path / 'one', *FLAGS]
    one = Ranks('vqa', [*map(str, flags)], tmp_path / 'one.printed', 2).wait()
    assert one.returncode == 0, one.stdout

    folder = tmp_path / 'two'
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    two = [start(folder, NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=port, RESTARTS='1')
           for rank in (0, 1)]
    wait_for_new_state(folder, two)
    assert listening([pid for launcher in two for pid in (launcher.pid, *ranks(launcher).values())]) == {'0100007F'}  # 127.0.0.1
    killed = ranks(two[1])[1]
    os.kill(killed, signal.SIGKILL)
    restarted = killed
    while restarted == killed:  # a state may have been saved before the kill
        assert all(launcher.poll() is None for launcher in two), finish(two)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # processes that end
            restarted = ranks(two[1]).get(1, killed)
        time.sleep(0.005)
    saved = (folder / 'RUN_STATE.pth').stat().st_mtime_ns
    wait_for_new_state(folder, two, saved)
    two[1].terminate()
    status, printed = finish(two)
    assert status == [75, 75] and printed.count('Resuming') == 1 and 'the run state is saved' in printed, printed

    saved = (folder / 'RUN_STATE.pth').stat().st_mtime_ns
    resumed = start(folder, '--resume', '--multiGPU', NPROC='2')
    wait_for_new_state(folder, [resumed], saved)
    assert listening([resumed.pid, *ranks(resumed).values()]) == {'0100007F'}
    status, printed = finish([resumed])
    assert status == [0] and 'Resuming' in printed, printed
    states = [torch.load(tmp_path / name / 'LAST.pth', weights_only=True) for name in ('one', 'two')]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0] | states[1])
    assert (tmp_path / 'one/log.log').read_text() == (folder / 'log.log').read_text()


PROGRAM = """
import os, sys, dist
dist.start('cpu')
print('started', os.environ['RANK'], flush=True)
if dist.rank() == 1:
    sys.exit(dist.end(1))
dist.gather(None)  # for which the other process never comes
"""


def test_an_error_of_one_rank_ends_all_and_is_not_retried(tmp_path):
    (tmp_path / 'program.py').write_text(PROGRAM)
    command = 'source run/launch.bash; torchrun_flags 2; exec "$PYTHON" "${torchrun[@]}" "$0"'
    run = subprocess.run(['bash', '-c', command, tmp_path / 'program.py'], cwd=ROOT, capture_output=True, text=True, timeout=60,
                         env=clean_environment(RESTARTS='3', PYTHONPATH='src'))
    assert run.returncode == 1 and run.stdout.count('started') == 2, run.stderr
    assert 'Traceback' not in run.stderr


@pytest.fixture
def watcher(monkeypatch, tmp_path):
    """A dist.Watcher that appends to `exits` instead of ending this process."""
    monkeypatch.setenv(dist.STATUS_FILE, str(tmp_path / 'status'))
    monkeypatch.setattr(dist.Watcher, 'INTERVAL', 0.01)
    store = torch_dist.TCPStore('127.0.0.1', 0, is_master=True)
    watcher = dist.Watcher()
    watcher.store, watcher.exits = store.clone(), []

    def leave(status):
        watcher.exits.append(status)
        watcher.stopped.set()

    monkeypatch.setattr(os, '_exit', leave)
    watcher.start()
    yield watcher
    watcher.stop()


def test_a_process_ends_when_another_has_failed(watcher, tmp_path):
    watcher.store.set('status', '75')
    watcher.join(30)
    assert watcher.exits == [0] and (tmp_path / 'status').read_text() == '75'


@pytest.mark.parametrize(('rank', 'printed'), [('0', 1), ('1', 0)])
def test_wrong_flags_are_told_once_a_machine_and_leave_2(monkeypatch, tmp_path, capsys, rank, printed):
    monkeypatch.setenv(dist.STATUS_FILE, str(tmp_path / 'status'))
    monkeypatch.setenv('LOCAL_RANK', rank)
    assert cli.train_main(None, ['--epochs', 'many']) == 0  # another status would make torchrun restart it
    assert (tmp_path / 'status').read_text() == '2'
    assert capsys.readouterr().err.count("--epochs: invalid int value: 'many'") == printed


@pytest.fixture
def run_launch(monkeypatch):
    """run_launch(work): the exit status of launch.main when torchrun does work()."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGALRM)}
    for name in (dist.STATUS_FILE, dist.SIGNAL_STATUS, dist.LAUNCHER, 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE'):
        monkeypatch.setenv(name, '')  # what launch.main sets is undone

    def run(work):
        os.environ.pop(dist.SIGNAL_STATUS, None)
        pictures._decoder.stop()  # earlier tests leave one, a child of this process, which signals are passed on to
        monkeypatch.setattr(torchrun, 'main', lambda arguments: work())
        return launch.main([])

    yield run
    signal.alarm(0)
    for number, handler in signals.items():
        signal.signal(number, handler)


def fail(code):
    raise ChildFailedError('program', {1: ProcessFailure(1, 4711, code, 'none')})


def test_the_exit_status_is_what_the_program_left_or_torchrun_found(run_launch, capsys):
    assert run_launch(lambda: dist.end(0)) == 0
    assert run_launch(lambda: dist.end(75)) == 75
    assert run_launch(lambda: fail(dist.end(1) or 3)) == 1 and capsys.readouterr().err == ''
    assert run_launch(lambda: fail(3)) == 3 and 'process 1 ended with exit status 3' in capsys.readouterr().err
    assert run_launch(lambda: fail(-9)) == 137 and 'process 1 ended with SIGKILL' in capsys.readouterr().err


def test_sigterm_reaches_processes_and_is_the_status_of_those_that_leave_none(run_launch):
    def work(status):
        process = subprocess.Popen(['sleep', '60'])
        os.kill(os.getpid(), signal.SIGHUP)
        assert process.wait(30) == -signal.SIGTERM
        return fail(-15) if status is None else dist.end(status)

    assert run_launch(lambda: work(None)) == 128 + signal.SIGHUP
    assert run_launch(lambda: work(75)) == 75


@pytest.mark.parametrize(('change', 'message'), [
    ({'NODE_RANK': None}, r"NODE_RANK: expected .* from 0 to NNODES - 1; found ''"),
    ({'NODE_RANK': '2'}, r"NODE_RANK: .* found '2'"),
    ({'NODE_RANK': '01'}, r"NODE_RANK: .* found '01'"),
    ({'NPROC': 'two'}, r"NPROC: .* found 'two'"),
    ({'NNODES': 'two'}, r"NNODES: .* found 'two'"),
    ({'NNODES': '0'}, r"NNODES: .* found '0'"),
    ({'MASTER_ADDR': None}, r"MASTER_ADDR: .* found ''"),
    ({'MASTER_ADDR': 'a b'}, r"MASTER_ADDR: .* found 'a b'"),
    ({'MASTER_PORT': '65536'}, r"MASTER_PORT: .* from 1 to 65535; found '65536'"),
    ({'RESTARTS': '-1'}, r"RESTARTS: .* found '-1'"),
])
def test_missing_or_wrong_variables_are_named(change, message):
    variables = {name: value for name, value in {**VARIABLES, **change}.items() if value is not None}
    run = subprocess.run(['bash', 'run/vqa_finetune.bash', 'cpu', 'name'], cwd=ROOT, capture_output=True, text=True,
                         env=clean_environment(**variables))
    assert run.returncode == 2 and re.fullmatch(f'vqa_finetune.bash: {message}.*\n', run.stderr)


@pytest.mark.parametrize(('variables', 'expected'), [
    ({}, ['--nnodes=1', '--max-restarts=0', 'lo', 'lo', '0']),
    ({**VARIABLES, 'RESTARTS': '3'}, ['--nnodes=2', '--max-restarts=3', 'lo', '', '1', '--rdzv-endpoint=127.0.0.1:29500',
                                      '--local-addr=127.0.0.1~000001']),
    ({**VARIABLES, 'NODE_RANK': '0', 'GLOO_SOCKET_IFNAME': 'eth7'}, ['eth7', '', '0', '--local-addr=127.0.0.1']),
])
def test_flags_of_torchrun(variables, expected):
    command = ('source run/launch.bash; torchrun_flags 2; '
               'printf "%s\\n" "${torchrun[@]}" "$GLOO_SOCKET_IFNAME" "${NCCL_SOCKET_IFNAME-}" "$NODE_RANK"')
    run = subprocess.run(['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, env=clean_environment(**variables))
    assert set(expected) <= set(run.stdout.split('\n')), run.stdout + run.stderr


@pytest.fixture
def rank1(monkeypatch, tmp_path):
    """The environment of rank 1, the only process of its machine, with rank 0's store."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    for name, value in {'WORLD_SIZE': '2', 'LOCAL_RANK': '0', 'RANK': '1', 'GROUP_RANK': '1', 'NODE_RANK': '1',
                        'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port), 'STATUS_FILE': str(tmp_path / 'status'),
                        'LAUNCHER_PID': '0'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, 'end_with_parent', lambda launcher: None)
    monkeypatch.setattr(dist.Watcher, 'INTERVAL', 0.01)
    yield torch_dist.TCPStore('127.0.0.1', port, is_master=True)
    dist.stop()


def test_a_node_rank_given_twice_is_named(rank1, monkeypatch):
    monkeypatch.setenv('NODE_RANK', '0')
    with pytest.raises(ValueError, match='NODE_RANK: 0 is given to more than one machine'):
        dist.start('cpu')


def test_what_is_restarted_after_the_end_ends_at_once_on_all_machines(rank1, monkeypatch, tmp_path):
    monkeypatch.setenv(dist.SIGNAL_STATUS, '143')
    monkeypatch.setattr(os, '_exit', sys.exit)
    with pytest.raises(SystemExit) as ended:
        dist.start('cpu')
    assert ended.value.code == 0 and (tmp_path / 'status').read_text() == '143' and rank1.get('status') == b'143'


def test_machines_that_do_not_share_the_run_folder_are_told(tmp_path, monkeypatch):
    rounds = []

    def gather(value):
        rounds.append(value)
        return [(True, [3, 4, 500], None), value] if isinstance(value, tuple) else [value, value]

    monkeypatch.setattr(run_folder, 'gather', gather)
    monkeypatch.setattr(run_folder, 'PATIENCE', 0)
    folder = RunFolder(tmp_path / 'run')
    with pytest.raises(ValueError, match=r'process 1 does not see .*process 0.* all machines share'):
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
