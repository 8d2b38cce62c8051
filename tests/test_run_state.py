"""RUN_STATE.pth is resumed as it was saved, or not at all: damaged files, wrong structure, changed data, other processes."""

import errno
import functools
import json
import math
import os
import re
import shutil
import socket
import warnings
import zipfile
from dataclasses import replace

import pytest
import torch
from conftest import run_program
from damage import byte_damage, same_or_error
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import Ranks

import run_folder
from bert.weights import WeightsError, check_file, load_file, read_state
from files.atomic import write_atomically
from heads import Head, Recipe
from param import Options
from regions import tsv
from run_folder import RunFolder, check_ranks, check_same_options
from run_state import PREVIOUS, STATE, Progress
from train import begin_or_resume, name_nonfinite

CPU = torch.device('cpu')
EXAMPLES = range(24)  # three steps of 8
examples = functools.partial(settings, derandomize=True, deadline=None)


class Layers(torch.nn.Sequential):
    original_name = staticmethod(str)


class QueueHead(Head):
    """A head with a state that snapshots do not have."""

    def __init__(self):
        torch.manual_seed(7)
        super().__init__(Layers(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2)), Recipe('answer'))
        self.queue = torch.zeros(4)

    def extra_state(self):
        return {'queue': self.queue}

    def load_extra_state(self, state):
        self.queue = state['queue']


def options_of(folder, optim='bert', fp16=False):
    return Options(output=str(folder), optim=optim, fp16=fp16, lr=0.01, batchSize=8, epochs=2, resume=True)


def save_run(path, optim='bert', fp16=False, states=2):
    """A run of one process that was killed after so many saved states, each after a step; the model's last layer of the norm has
    no gradient."""
    options, folder = options_of(path, optim, fp16), RunFolder(path)
    head = QueueHead()
    progress, step = begin_or_resume(None, head, EXAMPLES, 'abc', options, folder, CPU)
    (path / 'log.log').write_text('')
    folder.inputs = {'annotations of --train': ['abc', 'train'], 'regions of --train (1)': ['def', 'a.store']}
    for number in range(states):
        head.zero_grad()
        loss = head.encoder[2](head.encoder[0](torch.full((2, 3), number + 1.0))).square().sum()  # without the norm
        step.backward(loss)
        step()
        progress.step += 1
        progress.best, progress.sums = number + 0.5, {'loss/BCE': loss.item(), 'steps': number + 1.0}
        head.queue += 1
        with open(path / 'log.log', 'a') as log:
            log.write('line\n')
        folder.save_state(options, progress, head, step)
        torch.save(head.original_state(), path / 'BEST.pth')
    folder.close()
    return path


def resume(path, optim='bert', fp16=False):
    """All that a resumed run starts with."""
    options, head = options_of(path, optim, fp16), QueueHead()
    folder = RunFolder(path)
    try:
        with warnings.catch_warnings(action='ignore'):  # of PyTorch, about what it reads
            state = folder.read_state(options, {})
        progress, step = begin_or_resume(state, head, EXAMPLES, 'abc', options, folder, CPU)
        return {'progress': vars(progress), 'model': head.state_dict(), 'queue': head.queue, **step.state_dict()}
    finally:
        folder.close()


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp('state') / 'run')


@pytest.fixture(scope='module')
def resumed(saved):
    """What the current and the previous state resume to."""
    current = resume(saved)
    os.rename(saved / STATE, saved / 'aside')
    previous = resume(saved)
    os.rename(saved / 'aside', saved / STATE)
    assert (current['progress']['step'], previous['progress']['step']) == (2, 1)
    return current, previous


@pytest.fixture
def run(saved, tmp_path):
    """A copy of the run, without a previous state."""
    folder = shutil.copytree(saved, tmp_path / 'run')
    (folder / PREVIOUS).unlink()
    return folder


# ---- damaged files

@examples(max_examples=150)
@given(st.data())
def test_damaged_bytes_are_noticed_and_the_previous_state_is_resumed(saved, resumed, data):
    content = (saved / STATE).read_bytes()
    damaged = data.draw(byte_damage(len(content)))(content)
    previous = saved / PREVIOUS
    try:
        (saved / STATE).write_bytes(damaged)
        assert any(equal(resume(saved), state) for state in resumed)
        os.rename(previous, saved / 'aside')
        same_or_error(lambda: resume(saved), lambda state: equal(state, resumed[0]), STATE)
    finally:
        (saved / STATE).write_bytes(content)
        if not previous.exists():
            os.rename(saved / 'aside', previous)


@pytest.mark.parametrize('put', [os.mkfifo, os.mkdir, lambda path: os.symlink('/dev/zero', path)])
def test_pipes_folders_and_devices_are_no_files_of_weights(tmp_path, put):
    for name in ('a.pth', 'a.safetensors'):
        put(tmp_path / name)
        for read in (load_file, check_file):
            with pytest.raises(WeightsError, match=r'a\.\w+: expected a file, found a folder, pipe or device'):
                read(tmp_path / name)


def test_what_is_called_a_directory_in_the_archive_is_refused(tmp_path):
    """A bit that zipfile does not notice and that makes PyTorch return memory as it was."""
    path = tmp_path / 'a.pth'
    torch.save({'a': torch.ones(10)}, path)
    content = bytearray(path.read_bytes())
    content[content.rindex(b'/data/0') - len('a') - 46 + 38] ^= 0x10  # the external attribute of the entry
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'a\.pth: .*entry a/data/0'):
        read_state(path)


def test_a_damaged_state_without_another_one_names_the_complete_snapshots(run):
    (run / STATE).write_bytes((run / STATE).read_bytes()[:-100])
    (run / 'LAST.pth').write_bytes(b'')
    with pytest.raises(ValueError, match=r'RUN_STATE\.pth: .*--load .*BEST\.pth and another --output') as error:
        resume(run)
    assert 'LAST' not in str(error.value) and 'remove' not in str(error.value)
    (run / 'BEST.pth').unlink()
    with pytest.raises(ValueError, match='bring back a copy'):
        resume(run)


@pytest.mark.parametrize('number', [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE, errno.EACCES])
def test_a_state_that_cannot_be_read_for_the_moment_is_neither_given_up_nor_replaced(saved, monkeypatch, number):
    before = {path: path.read_bytes() for path in saved.iterdir() if path.is_file()}

    class Failing:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            if name.startswith('read'):
                raise OSError(number, os.strerror(number))
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    def fail(path, *args, real=open, **how):
        if not str(path).endswith(STATE):
            return real(path, *args, **how)
        if number in (errno.EMFILE, errno.EACCES):
            raise OSError(number, os.strerror(number), str(path))
        return Failing(real(path, *args, **how))

    monkeypatch.setattr('builtins.open', fail)
    with pytest.raises(ValueError, match=r'RUN_STATE.*try again') as error:
        resume(saved)
    monkeypatch.undo()
    assert os.strerror(number) in str(error.value) and not any(word in str(error.value) for word in ('remove', 'damaged'))
    assert before == {path: path.read_bytes() for path in saved.iterdir() if path.is_file()}


def test_too_little_memory_is_no_damage(saved, monkeypatch):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")):
        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(torch, 'load', fail)
        with pytest.raises(ValueError, match=r'RUN_STATE.*Cannot allocate memory.*try again'):
            resume(saved)


def test_a_folder_that_cannot_be_listed_is_no_new_run(saved, monkeypatch):
    def fail(path='.'):
        raise OSError(errno.EACCES, 'Permission denied', str(path))

    monkeypatch.setattr(os, 'listdir', fail)
    monkeypatch.setattr(os, 'scandir', fail)
    with pytest.raises(ValueError, match='Permission denied'):
        resume(saved)


# ---- saving

def test_while_a_state_is_saved_there_is_a_complete_one_and_two_at_most(tmp_path, monkeypatch):
    path, seen = tmp_path / 'run', []

    def save(state, part, real=torch.save):
        real(state, part)
        if 'progress' in state:
            seen.append(sorted(file.name for file in path.glob('RUN_STATE*')))

    monkeypatch.setattr(torch, 'save', save)
    save_run(path, states=3)
    part = f'{STATE}.part'
    assert seen == [[part], [STATE, part], [STATE, part]]
    assert sorted(file.name for file in path.glob('RUN_STATE*')) == [STATE, PREVIOUS]


def test_a_state_that_was_written_wrongly_does_not_replace_the_one_before(tmp_path, monkeypatch):
    def save(state, part, real=torch.save):
        real(state, part)
        if state.get('progress', {}).get('step') == 2:
            content = bytearray(part.read_bytes())
            content[300] ^= 1
            part.write_bytes(content)

    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(OSError, match=r'RUN_STATE\.pth: .*reads back otherwise.*repeat the command with --resume'):
        save_run(tmp_path / 'run')
    assert resume(tmp_path / 'run')['progress']['step'] == 1


def test_a_run_killed_between_two_renames_resumes_from_the_previous_state(saved, resumed, tmp_path, capsys):
    folder = shutil.copytree(saved, tmp_path / 'run')
    (folder / STATE).unlink()
    assert equal(resume(folder), resumed[1])
    assert f'{STATE}: is missing; resuming from {PREVIOUS}' in capsys.readouterr().out


def test_a_resumed_run_keeps_the_previous_state_until_it_has_another(saved, tmp_path):
    path = shutil.copytree(saved, tmp_path / 'run')
    (path / STATE).write_bytes((path / STATE).read_bytes()[:-100])
    previous, options, head, folder = (path / PREVIOUS).read_bytes(), options_of(path), QueueHead(), RunFolder(path)
    state = folder.read_state(options, {})
    progress, step = begin_or_resume(state, head, EXAMPLES, 'abc', options, folder, CPU)
    folder.begin(options, {}, progress, 'vqa')
    assert (path / STATE).read_bytes() == previous and not (path / PREVIOUS).exists()
    assert (path / 'log.log').read_text() == 'line\n'  # of the step of the previous state
    folder.save_state(options, progress, head, step)
    assert (path / PREVIOUS).read_bytes() == previous
    folder.close()


def test_an_error_of_writing_has_no_text_of_pytorch(tmp_path, monkeypatch):
    def fail(part):
        raise RuntimeError('[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0\nframe #0: c10::ThrowEnforce')

    with pytest.raises(OSError, match='is the disk full') as error:
        write_atomically(tmp_path / 'a.pth', fail)
    assert str(tmp_path / 'a.pth') in str(error.value) and not any(text in str(error.value) for text in ('enforce', '\n', 'c10'))

    def full(*_, **__):
        raise shutil.Error([('a', 'b', '[Errno 28] No space left on device'), ('c', 'd', '[Errno 28] No space left on device')])

    monkeypatch.setattr(shutil, 'copytree', full)
    folder = RunFolder(tmp_path / 'run')
    with pytest.raises(OSError, match=r'src: the source code cannot be copied there \(No space left on device\)'):
        folder.begin(Options(), {}, None, 'vqa')
    folder.close()


@pytest.mark.parametrize('place', ['', 'snap', '..', 'link', 'link/x'])
def test_an_output_in_the_source_is_refused(tmp_path, place):
    (tmp_path / 'link').symlink_to(run_folder.SOURCE)
    path = tmp_path / place if 'link' in place else run_folder.SOURCE / place
    with pytest.raises(ValueError, match=r'--output .*source code'):
        RunFolder(path)
    assert not (path / '.lock').exists()


def test_an_output_with_links_in_a_circle_has_no_traceback(tmp_path):
    (tmp_path / 'src').symlink_to('src')
    RunFolder(tmp_path).close()
    (tmp_path / 'run').symlink_to('run')
    with pytest.raises(OSError, match=r'--output .*run: cannot be written'):
        RunFolder(tmp_path / 'run')


# ---- structure

def paths(value, path=()):
    """The keys of all entries of nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, item in items for deeper in paths(item, (*path, key)))]


TENSORS = [
    lambda t: t.flatten()[:-1].clone(), lambda t: torch.zeros(1), lambda t: t[None], lambda t: t.double(), lambda t: t.half(),
    lambda t: t.long(), lambda t: -t - 1,
    lambda t: t * math.nan, lambda t: t + math.inf, lambda t: t.to_sparse(), lambda t: t.to(torch.complex64),
    lambda t: t.to('meta'), lambda t: torch.zeros(1, dtype=t.dtype).expand(t.shape or (2,)), lambda t: t.tolist(), lambda t: None,
    lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.quint8), lambda t: torch.zeros(1).expand(10 ** 6, 10 ** 6),
    lambda t: torch.nested.nested_tensor([t.flatten()])]
VALUES = [lambda v: None, lambda v: True, lambda v: -1, lambda v: 2 ** 70, lambda v: math.nan, lambda v: math.inf, lambda v: 1.5,
          lambda v: '', lambda v: [v], lambda v: {'x': v}, lambda v: {}, lambda v: [], lambda v: torch.zeros(2)]


def change(parent, key, how):
    """Removes an entry, renames its key, or replaces it by how(entry)."""
    if how == 'remove':
        del parent[key]
    elif how == 'rename':
        parent[f'{key}_'] = parent.pop(key)
    else:
        parent[key] = how(parent[key])


@st.composite
def structure_damage(draw, state, top):
    """A function that changes an entry of a run state below the key `top`."""
    path = draw(st.sampled_from([path for path in paths(state) if path[:1] == (top,)]))
    value = functools.reduce(lambda holder, key: holder[key], path, state)
    changes = TENSORS if isinstance(value, torch.Tensor) else VALUES
    how = draw(st.sampled_from(['remove', 'rename', *changes]))

    def damage(state):
        holder = functools.reduce(lambda holder, key: holder[key], path[:-1], state)
        if how == 'rename' and isinstance(holder, list):
            return
        change(holder, path[-1], how)

    return damage


@pytest.mark.parametrize('optim', ['bert', 'rms', 'adam', 'adamax', 'sgd', 'adamw', 'momentum'])
@pytest.mark.filterwarnings('ignore')
def test_a_state_of_another_structure_is_refused_with_its_key(tmp_path, optim):
    path = save_run(tmp_path / 'run', optim, fp16=optim == 'adam', states=1)
    undamaged, state = resume(path, optim, optim == 'adam'), load_file(path / STATE)

    @examples(max_examples=70)
    @given(st.data())
    def check(data):
        changed = load_file(tmp_path / 'run' / 'aside')
        data.draw(structure_damage(state, data.draw(st.sampled_from([*state]))))(changed)
        torch.save(changed, path / STATE)
        same_or_error(lambda: resume(path, optim, optim == 'adam'), lambda result: equal(result, undamaged), STATE, str(path))

    shutil.copy(path / STATE, path / 'aside')
    check()


@pytest.mark.parametrize('optim', ['bert', 'rms', 'adam', 'adamax', 'adamw', 'momentum'])
def test_averages_of_another_size_are_refused(tmp_path, optim):
    """They made the process crash, or read beyond their memory."""
    path = save_run(tmp_path / 'run', optim, states=1)
    state = load_file(path / STATE)
    del state['digest']  # as of an older version
    for averages in state['optimizer']['state'].values():
        for name in averages.keys() - {'step'}:
            averages[name] = torch.zeros(1)
    torch.save(state, path / STATE)
    with pytest.raises(ValueError, match=r'RUN_STATE\.pth: .*key optimizer\.state\.0\.\w+: expected .*\(4, 3\), found .*\(1,\)'):
        resume(path, optim)


@pytest.mark.parametrize(('key', 'value', 'says'), [
    ('epoch', -1, 'epoch: expected 0 or more'), ('epoch', True, 'epoch: expected int'), ('step', 4, 'step: expected at most 3'),
    ('steps_per_epoch', 5, 'steps_per_epoch: expected 3, found 5'), ('data', None, 'data: expected str'),
    ('best', math.nan, 'best: expected a score'), ('best', math.inf, 'best: expected a score'),
    ('best', '1', 'best: expected float'),
    ('log_size', -1, 'log_size: expected 0 or more'), ('log_size', 1.0, 'log_size: expected int'),
    ('skipped', 3, 'skipped: expected at most 2'), ('skipped_in_a_row', 1, 'skipped_in_a_row: expected at most 0'),
    ('sums', {'steps': math.nan}, "sums.'steps': expected a finite number"), ('sums', {1: 1.0}, 'sums'), ('sums', [], 'sums'),
])
def test_progress_out_of_range_is_refused_also_of_older_versions(run, key, value, says):
    state = load_file(run / STATE)
    del state['digest']
    state['progress'][key] = value
    torch.save(state, run / STATE)
    with pytest.raises(ValueError, match=says) as error:
        resume(run)
    assert STATE in str(error.value)


def test_a_state_of_an_older_version_is_resumed_and_says_what_it_cannot_check(run, resumed, capsys):
    state = load_file(run / STATE)
    for key in ('digest', 'inputs', 'cwd', 'scaler'):
        del state[key]
    torch.save(state, run / STATE)
    assert equal(resume(run), resumed[0])
    folder, head = RunFolder(run), QueueHead()
    read = folder.read_state(options_of(run), {})
    folder.check_inputs(read, {'annotations of --train': ['abc', ''], 'annotations of --valid': ['x', '']}, head)
    assert 'older version' in capsys.readouterr().out
    with pytest.raises(ValueError, match=r'other questions, regions or images.*annotations of --train'):
        folder.check_inputs(read, {'annotations of --train': ['abd', '']}, head)
    folder.close()


def test_a_state_without_options_or_with_weights_like_a_hole_is_refused_in_one_line(run):
    state = load_file(run / STATE)
    state['options'] = {}
    torch.save(state, run / STATE)
    with pytest.raises(ValueError, match=r'other settings \(see its RUN_STATE\.pth\)'):
        resume(run)
    state = load_file(run / STATE)
    state['options'], state['model']['encoder.0.weight'] = vars(options_of(run)), torch.zeros(4, 3)
    del state['digest']
    torch.save(state, run / STATE)
    with pytest.raises(ValueError, match=r'RUN_STATE\.pth: the run state does not fit .*encoder\.0\.weight') as error:
        resume(run)
    assert str(error.value).isprintable()


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('make', TENSORS[9:])
def test_a_snapshot_with_anything_but_plain_tensors_is_refused_with_its_key(tmp_path, make):
    path = tmp_path / 'a.pth'
    torch.save({'a.weight': torch.ones(2, 2), 'b.weight': make(torch.ones(2, 2))}, path)
    with pytest.raises(ValueError, match=r'a\.pth: (b\.weight: |expected tensors by name)'):
        read_state(path)


def test_a_tensor_that_claims_more_memory_than_the_file_has_is_refused(tmp_path):
    """PyTorch reads what lies behind it in memory."""
    path = tmp_path / 'a.pth'
    torch.save({'a': torch.ones(10), 'b': torch.ones(3)}, path)
    with zipfile.ZipFile(path) as file:
        entries = {info.filename: file.read(info) for info in file.infolist()}
    with zipfile.ZipFile(path, 'w') as file:
        for name, content in entries.items():
            file.writestr(name, content[:8] if name.endswith('data/0') else content)
    with pytest.raises(ValueError, match=r'a\.pth: .*damaged'):
        read_state(path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    with pytest.raises(ValueError, match=r'a\.pth: .*entry .* not as PyTorch writes it'):
        read_state(path)


# ---- what beside the state must be the same

def test_processes_with_other_options_files_or_weights_are_named(monkeypatch):
    def ranks(*values):
        monkeypatch.setattr(run_folder, 'gather',
                            lambda value: [('here', value[1]), *(('there', other) for other in values)])

    ranks({'--lr': 1.0, 'initial weight a': 2.0 + 1e-9})
    check_ranks({'--lr': 1.0, 'initial weight a': 2.0})
    ranks({'--lr': 1.0, 'initial weight a': 2.001})
    with pytest.raises(ValueError, match='process 1 on there differs from process 0 on here in initial weight a'):
        check_ranks({'--lr': 1.0, 'initial weight a': 2.0})
    ranks({})
    with pytest.raises(ValueError, match=r'--train, --valid.*and \d+ more'):
        check_same_options(Options(), {'vocab.txt': 'a'})


@pytest.fixture
def stopped(vqa, tmp_path, monkeypatch):
    """stopped(*flags): a run of VQA that was interrupted after its first epoch. The next one with --resume goes on."""
    class Stop:
        def __call__(self, step, total):
            if step == total // 2 + 1:
                raise KeyboardInterrupt

    def run(*flags, **how):
        with monkeypatch.context() as patched:
            patched.setattr(Head, 'begin_step', staticmethod(Stop()))
            assert vqa(*flags, **how).returncode == 130
        return tmp_path / 'run'

    return run


def rewrite(path, **changes):
    """Changes the regions of a TSV: {array: function of it}."""
    tsv.write(path, [replace(image, **{name: how(getattr(image, name)) for name, how in changes.items()})
                     for _, image in list(tsv.read(path))])


def test_a_run_is_not_resumed_on_changed_regions_or_another_validation_set(vqa, stopped, world, tmp_path):
    folder = stopped()
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}
    train, valid = world / 'mscoco_imgfeat/train2014_obj36.tsv', world / 'vqa/minival.json'
    for path, spoil, what in (
            (train, lambda: rewrite(train, features=lambda f: -f), r'regions of --train \(1\) \(.*train2014_obj36.store\)'),
            (train, lambda: rewrite(train, boxes=lambda b: b / 2), r'regions of --train \(1\)'),
            (train, lambda: rewrite(train, features=lambda f: f[::-1].copy()), r'regions of --train \(1\)'),
            (valid, lambda: valid.write_text(json.dumps(json.loads(valid.read_text())[1:])), r'annotations of --valid')):
        content = path.read_bytes()
        spoil()
        run = vqa('--resume')
        path.write_bytes(content)
        assert run.returncode == 1, run.stdout
        assert re.search(f'other questions, regions or images.*{what}', run.stderr), run.stderr
    assert before == {path: path.read_bytes() for path in folder.rglob('*') if path.is_file() and path.name != '.lock'}
    shutil.move(world, tmp_path / 'elsewhere')  # the same data in another folder
    (tmp_path / 'shapes').mkdir()
    run = vqa('--resume', '--dataRoot', tmp_path / 'elsewhere', '--bert', folder)  # vocabulary and config of the run
    assert run.returncode == 1 and '--bert' in run.stderr
    (tmp_path / 'shapes/bert').symlink_to(tmp_path / 'elsewhere/bert')
    run = vqa('--resume', '--dataRoot', tmp_path / 'elsewhere')
    assert run.returncode == 0 and 'Resuming at epoch 1' in run.stdout, run.stderr


def test_another_spelling_of_a_path_and_offline_are_no_change(vqa, stopped, world, tmp_path, monkeypatch):
    stopped()
    (tmp_path / 'link').symlink_to(world)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HF_HUB_OFFLINE', '0')
    run = vqa('--resume', '--offline', '--bert', 'link/bert/', '--dataRoot', 'shapes')
    assert run.returncode == 0 and 'Resuming at epoch 1' in run.stdout, run.stderr


def test_a_missing_or_damaged_best_snapshot_is_known_at_the_start(vqa, stopped):
    best = stopped() / 'BEST.pth'
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 4
    best.write_bytes(content)
    run = vqa('--resume')
    assert run.returncode == 1 and 'BEST.pth' in run.stderr and 'check sum' in run.stderr and 'Resuming' not in run.stdout
    best.unlink()
    run = vqa('--resume')
    assert run.returncode == 1 and 'BEST.pth: is missing' in run.stderr and 'Resuming' not in run.stdout
    shutil.copy(best.with_name('LAST.pth'), best)
    assert vqa('--resume').returncode == 0


@pytest.mark.parametrize(('name', 'content', 'says'), [
    ('config.json', b'{"hidden', 'config.json: '), ('answers.json', b'[' * 100000, 'answers.json: '),
    ('vocab.txt', b'\xff\xfe', 'vocab.txt differs'), ('config.json', b'null', 'config.json differs')])
def test_damaged_files_beside_the_state_are_named(vqa, stopped, name, content, says):
    (stopped() / name).write_bytes(content)
    run = vqa('--resume')
    assert run.returncode == 1 and says in run.stderr and run.stderr.count('\n') == 1, run.stderr


def test_a_pipe_beside_the_state_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'vocab.txt')
    with pytest.raises(FileNotFoundError, match=r'vocab\.txt: no such file'):
        RunFolder._differs(tmp_path / 'vocab.txt', 'a')


def test_options_that_are_damaged_are_named_where_they_are_needed(vqa, stopped):
    folder = stopped()
    for name in (STATE, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
    for content in (b'', b'null', b'{"options": 3}', b'\xff'):
        (folder / 'options.json').write_bytes(content)
        run = vqa('--resume')
        assert run.returncode == 1 and 'options.json' in run.stderr and run.stderr.count('\n') == 1, run.stderr


@pytest.mark.parametrize(('change', 'says'), [
    (lambda world, flags: rewrite(world / 'mscoco_imgfeat/train2014_obj36.tsv', features=lambda f: -f), 'regions of --train (1)'),
    (lambda world, flags: shutil.copy(world / 'vqa/nominival.json', world / 'vqa/minival.json'), 'annotations of --valid'),
    (lambda world, flags: flags.extend(['--saveSteps', '3']), '--saveSteps'),
], ids=['regions', 'annotations', 'options'])
def test_processes_that_read_different_data_end_with_an_error_that_names_it(world, tmp_path, change, says):
    """They trained in silence, or waited for each other for ever."""
    other = shutil.copytree(world, tmp_path / 'other')
    flags = [['--device', 'cpu', '--dataRoot', str(root), '--bert', str(root / 'bert'), '--output', str(tmp_path / 'run'),
              '--valid', 'minival', '--batchSize', '16', '--epochs', '1', '--fromScratch'] for root in (world, other)]
    change(other, flags[1])
    ranks = Ranks('vqa', flags, tmp_path / 'printed', 2)
    run = ranks.wait(60)
    assert run.returncode == 1 and 'Traceback' not in run.stdout, run.stdout
    assert f'process 1 on {socket.gethostname()} differs from process 0' in run.stdout and says in run.stdout, run.stdout


def test_labels_that_say_nothing_are_an_error(vqa, world, tmp_path):
    path = world / 'vqa/train.json'
    questions = json.loads(path.read_text())
    for label in ({}, {'yes': 0}, {'no answer of the list': 1}):
        path.write_text(json.dumps([{**question, 'label': label} for question in questions]))
        run = vqa('--train', 'train')
        assert run.returncode == 1 and '--train train: no question' in run.stderr, run.stderr
    run = run_program('pretrain', world, tmp_path / 'pretrained', '--train', 'mscoco_train', '--valid', '', '--taskMaskLM',
                      '--wordMaskRate', '0', '--fromScratch')
    assert run.returncode == 1 and 'nothing to predict' in run.stderr, run.stderr


def test_a_skipped_step_names_the_images_with_features_that_are_not_finite(monkeypatch, capsys):
    class Data:
        def nonfinite_images(self, indices):
            return [f'image{i}' for i in indices if i == 3]

    name_nonfinite(Data(), [1, 2], 4, Progress())
    assert capsys.readouterr().out == ''
    name_nonfinite(Data(), [3], 4, Progress())
    assert 'Step 4 of epoch 0 is skipped: features of the images image3' in capsys.readouterr().out
