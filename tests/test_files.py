"""Atomic files and folders, locks, free disk space, digests."""

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
from conftest import ROOT

from files.atomic import (
    atomic_file,
    atomic_folder,
    check_free_space,
    locked,
    sha256,
    temporary_folder,
    write_atomically,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / 'x'
    write_text(path, 'é')
    write_json(tmp_path / 'y', {'a': [1]})
    with atomic_file(path) as file:
        file.write(b'new')
        assert path.read_text('utf-8') == 'é'
    write_atomically(tmp_path / 'z', lambda temporary: temporary.write_bytes(b'z'))
    assert path.read_bytes() == b'new' and names(tmp_path) == ['x', 'y', 'z']
    assert (tmp_path / 'y').read_text() == '{\n "a": [\n  1\n ]\n}'


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path, error):
    path = tmp_path / 'x'
    path.write_bytes(b'old')
    with pytest.raises(error), atomic_file(path) as file:
        file.write(b'new')
        raise error
    with pytest.raises(OSError, match=r'x: cannot be written \(no\)'):
        write_atomically(path, lambda temporary: temporary.write_bytes(b'new') and (_ for _ in ()).throw(RuntimeError('no')))
    assert path.read_bytes() == b'old' and names(tmp_path) == ['x']


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    path, before = tmp_path / 'x', resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for size in (1001, 1_000_000):  # at the end, and within the block
            with pytest.raises(OSError, match=f"File too large: '{path}'"), atomic_file(path) as file:
                file.write(bytes(size))
        with pytest.raises(KeyError), atomic_file(path) as file:  # the first error is raised
            file.write(bytes(1001))
            raise KeyError
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == []


def test_a_folder_is_replaced_when_it_is_complete(tmp_path):
    path = tmp_path / 'store'
    for content in 'ab':
        with atomic_folder(path) as temporary:
            (temporary / content).write_text(content)
    with pytest.raises(KeyError), atomic_folder(path) as temporary:
        (temporary / 'c').write_text('c')
        raise KeyError
    assert names(tmp_path) == ['store'] and names(path) == ['b']


def test_a_new_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path, monkeypatch):
    path, rename = tmp_path / 'store', Path.rename
    path.mkdir()
    (path / 'a').write_text('a')

    def fail(self, target):
        if self.suffix == '.tmp':
            raise OSError('no rename')
        return rename(self, target)

    monkeypatch.setattr(Path, 'rename', fail)
    with pytest.raises(OSError, match='no rename'), atomic_folder(path) as temporary:
        (temporary / 'b').write_text('b')
    assert names(tmp_path) == ['store'] and names(path) == ['a']


def test_a_folder_survives_a_process_that_was_killed_between_two_renames(tmp_path):
    path = tmp_path / 'store'
    (tmp_path / 'store.old').mkdir()
    (tmp_path / 'store.old/a').write_text('a')
    (tmp_path / 'store.tmp').mkdir()
    with pytest.raises(KeyError), atomic_folder(path):
        raise KeyError
    assert names(tmp_path) == ['store'] and names(path) == ['a']


def test_a_lock_is_held_by_one_process_and_released_when_it_dies(tmp_path):
    path, waits = tmp_path / 'folder/x', []
    code = f'from files.atomic import locked\nwith locked({str(path)!r}): print("held", flush=True); input()'
    process = subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'PYTHONPATH': 'src'}, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == 'held\n'
        with pytest.raises(filelock.Timeout), locked(path, lambda: waits.append(1), timeout=0.01):
            pass
    finally:
        process.kill()
        process.communicate()
    with locked(path, lambda: waits.append(2), timeout=10):
        assert waits == [1]


def test_temporary_folders_of_killed_processes_are_removed(tmp_path):
    code = f"""if True:
        import time
        from files.atomic import temporary_folder
        with temporary_folder('lxmert-a-', {str(tmp_path)!r}) as folder:
            (folder / 'file').touch()
            print(folder, flush=True)
            time.sleep(60)"""
    with subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, 'PYTHONPATH': str(ROOT / 'src')}) as process:
        try:
            killed = Path(process.stdout.readline().strip())
            with pytest.raises(FileNotFoundError, match='inside'), temporary_folder('lxmert-a-', tmp_path) as folder:
                assert killed.is_dir() and folder.is_dir()  # the other one is in use
                raise FileNotFoundError('inside')
            assert not folder.exists()
        finally:
            process.kill()
            process.wait()
    (tmp_path / 'lxmert-a-notes').mkdir()
    with temporary_folder('lxmert-b-', tmp_path):
        assert killed.is_dir()  # of another program
    with temporary_folder('lxmert-a-', tmp_path) as folder:
        assert not killed.exists() and names(tmp_path) == sorted([folder.name, 'lxmert-a-notes'])
    assert names(tmp_path) == ['lxmert-a-notes']


def test_free_space_and_digest(tmp_path):
    check_free_space(tmp_path, 1, 'x', 'make room')
    with pytest.raises(OSError, match=rf'^x: needs 1000000000.0 GB in {tmp_path}, where .* GB are free; make room'):
        check_free_space(tmp_path, 10 ** 18, 'x', 'make room')
    (tmp_path / 'x').write_bytes(bytes(3_000_000))
    assert sha256(tmp_path / 'x') == hashlib.sha256(bytes(3_000_000)).hexdigest()
