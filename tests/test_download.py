"""run/download.bash against a server on this machine: what comes, what is refused, what is said; and data/manifest.json."""

import errno
import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

from files import manifest
from files.json_files import DataError
from files.unpack import UnpackError, unpack
from pretrain.program import published
from tasks.gqa import GQA
from tasks.nlvr2 import NLVR2
from tasks.vqa import VQA
from tools import download as program

TSV = b''.join(b'%d\t480\t640\tAAAA\n' % number for number in range(3000))
JSON = json.dumps([{'img_id': str(number)} for number in range(2000)]).encode()


class Site(ThreadingHTTPServer):
    """Serves `files` ({path: bytes}), from a byte on if it is asked to; notes requests; stops in the midst while `held`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.requests, self.held = {}, [], None
        threading.Thread(target=self.serve_forever, args=[0.02], daemon=True).start()

    def address(self, path):
        return f'http://127.0.0.1:{self.server_port}/{path}'


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        content, site = self.server.files.get(self.path[1:]), self.server
        first = int(re.match(r'bytes=(\d+)-', self.headers.get('Range', 'bytes=0-'))[1])
        site.requests.append((self.path[1:], first))
        if content is None:
            return self.send_error(404)
        self.send_response(206 if first else 200)
        if first:
            self.send_header('Content-Range', f'bytes {first}-{len(content) - 1}/{len(content)}')
        self.send_header('Content-Length', str(len(content) - first))
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        middle = first + (len(content) - first) // 2
        self.wfile.write(content[first:middle])
        self.wfile.flush()
        if site.held:
            site.held.wait(30)
        self.wfile.write(content[middle:])

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    site = Site()
    yield site
    if site.held:
        site.held.set()
    site.shutdown()
    site.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / 'target'


@pytest.fixture
def offer(tmp_path, site):
    """offer({path: content}, **more): a manifest of one set, `it`, of these files, of which the server has those that are bytes;
    a zip is expected to hold an x.tsv. more: of each file, such as addresses."""
    def offer(files, instead='', **more):
        listed = []
        for path, content in files.items():
            if content is not None:
                site.files[path] = content
            zipped = {'members': ['x.tsv']} if path.endswith('.zip') else {}
            listed.append({'path': path, 'addresses': [site.address(path)], **zipped, **more})
        told = {'it': {'about': 'Things.', 'instead': instead, 'files': listed}}
        (tmp_path / 'manifest.json').write_text(json.dumps(told))

    return offer


@pytest.fixture
def run(tmp_path, target, capsys, monkeypatch):
    """run(*flags): (exit status, standard output, standard error) of the program on the manifest, in this process."""
    monkeypatch.setattr('files.download.sleep', lambda seconds: None)

    def run(*flags):
        try:
            status = program.main(['it', '--to', str(target), *flags], tmp_path / 'manifest.json')
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def start(tmp_path, target):
    """start(): the program on the manifest in a process of its own."""
    def start():
        code = f'import sys; from tools.download import main; sys.exit(main(sys.argv[1:], {str(tmp_path / "manifest.json")!r}))'
        return subprocess.Popen([sys.executable, '-c', code, 'it', '--to', str(target)], text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, env={**os.environ, 'PYTHONPATH': str(ROOT / 'src')})

    return start


def wait_for(happens):
    """Waits until happens() is true; an error if it never is."""
    for _ in range(3000):
        if happens():
            return
        time.sleep(0.01)
    raise AssertionError('waited in vain')


def zipped(*members, **how):
    """The bytes of a zip of members, (name or ZipInfo, content) each."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, 'w', zipfile.ZIP_DEFLATED, **how) as archive, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a name that is there twice
        for name, content in members:
            archive.writestr(name, content)
    return made.getvalue()


def files_of(folder):
    """The files below a folder but for locks, as sorted paths relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file() and '.locks' not in path.parts)


def test_files_come_whole_and_are_not_fetched_again(offer, run, site, target):
    offer({'set/a.json': JSON, 'set/b.txt': b'words', 'pretrained/w.pth': b'weights'})
    status, out, _ = run()
    assert status == 0 and files_of(target) == ['manifest.lock.json', 'pretrained/w.pth', 'set/a.json', 'set/b.txt']
    assert (target / 'set/a.json').read_bytes() == JSON
    entry = json.loads((target / 'manifest.lock.json').read_text())['set/a.json']
    assert entry['size'] == len(JSON) and entry['sha256'] == hashlib.sha256(JSON).hexdigest()
    assert entry['address'] == site.address('set/a.json') and re.fullmatch(r'\d{4}-\d\d-\d\dT.*', entry['date'])
    assert re.search(rf'{re.escape(str(target))}/set/a.json +{len(JSON):,} bytes +whole\n', out)
    site.requests.clear()
    assert run()[0] == 0 and run('--verify')[0] == 0 and run('--offline')[0] == 0
    assert site.requests == []


@pytest.mark.parametrize('name', ['x.tsv', 'set/x.tsv', 'data/set/x.tsv'])
def test_a_zip_is_unpacked_whatever_folder_is_in_it(name, offer, run, target):
    offer({'set/x.zip': zipped(('set/', b''), (name, TSV), ('README', b'other'))})
    assert run()[0] == 0
    assert files_of(target) == ['manifest.lock.json', 'set/x.tsv'] and (target / 'set/x.tsv').read_bytes() == TSV
    lock = json.loads((target / 'manifest.lock.json').read_text())
    assert lock['set/x.tsv']['sha256'] == hashlib.sha256(TSV).hexdigest() and lock['set/x.tsv']['size'] == len(TSV)


def test_a_kept_zip_is_not_unpacked_until_it_may_be(offer, run, site, target):
    offer({'set/x.zip': zipped(('x.tsv', TSV))})
    assert run('--keepZips')[0] == 0 and run('--keepZips')[0] == 0
    assert files_of(target) == ['manifest.lock.json', 'set/x.zip']
    assert run()[0] == 0 and files_of(target) == ['manifest.lock.json', 'set/x.tsv']
    assert len(site.requests) == 1


def test_several_members_of_one_zip(offer, run, target):
    offer({'set/x.zip': zipped(('a/y.json', JSON), ('a/x.tsv', TSV))}, members=['x.tsv', 'y.json'])
    assert run()[0] == 0 and files_of(target) == ['manifest.lock.json', 'set/x.tsv', 'set/y.json']
    (target / 'set/y.json').unlink()
    assert run()[0] == 0 and (target / 'set/y.json').read_bytes() == JSON


def test_the_next_address_is_tried(offer, run, site, target):
    with socket.create_server(('127.0.0.1', 0)) as free:
        dead = f'http://127.0.0.1:{free.getsockname()[1]}/a.json'
    site.files['broken'] = JSON[:-40]
    addresses = [dead, site.address('gone'), site.address('broken'), site.address('good')]
    site.files['good'] = JSON
    offer({'set/a.json': None}, addresses=addresses)
    status, _, err = run()
    assert status == 0 and (target / 'set/a.json').read_bytes() == JSON and files_of(target / 'set') == ['a.json']
    assert dead in err and '404' in err and 'expected json' in err
    assert json.loads((target / 'manifest.lock.json').read_text())['set/a.json']['address'] == addresses[-1]


def test_a_host_that_gave_nothing_is_asked_once_for_each_further_file(offer, run, target):
    with socket.create_server(('127.0.0.1', 0)) as free:
        dead = f'http://127.0.0.1:{free.getsockname()[1]}/a'
    offer({'set/a.txt': None, 'set/b.txt': None, 'set/c.txt': None}, addresses=[dead])
    status, _, err = run()
    assert status == 1 and err.count('trying again in') == 4 and err.count(', 5 times;') == 1 and err.count(', 1 times;') == 2


def test_an_address_that_has_given_something_comes_first(offer, run, site, target):
    addresses = [site.address('first'), site.address('second')]
    site.files |= dict.fromkeys(('first', 'second'), b'words')
    offer({'set/b.txt': None}, addresses=addresses)
    (target / 'set').mkdir(parents=True)
    (target / 'set/b.txt.from2.part').write_bytes(b'wo')
    assert run()[0] == 0
    assert [path for path, _ in site.requests] == ['second'] and files_of(target / 'set') == ['b.txt']


def test_what_is_missing_is_told_and_the_others_are_fetched(offer, run, site, target):
    offer({'set/a.json': None, 'set/b.txt': b'words'}, instead='Make it with a script.')
    status, out, err = run()
    assert status == 1 and files_of(target / 'set') == ['b.txt'] and '404' in err
    assert re.search(r'set/a.json +size unknown +missing\n', out) and re.search(r'set/b.txt +5 bytes +whole\n', out)
    assert f'{target}/set/a.json  from {site.address("set/a.json")}' in out and 'Make it with a script.' in out
    site.requests.clear()
    status, out, err = run('--offline')
    assert status == 1 and 'nothing is fetched offline' in err and site.requests == []
    assert 'The same command without --offline gets what is missing' in out


def test_a_wrong_size_is_refused(offer, run, target):
    offer({'set/b.txt': b'words'}, size=6)
    status, _, err = run()
    assert status == 1 and 'expected 6 bytes' in err and '5' in err and files_of(target / 'set') == []


@pytest.mark.parametrize(('content', 'how', 'well'), [
    (b'', {}, False), (b'{"a": 1', {}, False), (b'[1] [2]', {}, False), (b'{"a": 1}\n{"a": 2}\n', {}, False),
    (b'{"a": 1}\n{"a": 2}\n', {'format': 'jsonl'}, True), (b'{"a": 1}\n{"a": ', {'format': 'jsonl'}, False),
    (b'"\xff"', {}, False),
])
def test_json_that_is_none_is_refused(content, how, well, offer, run, target):
    offer({'set/a.json': content}, **how)
    assert run()[0] == (0 if well else 1)
    assert files_of(target / 'set') == (['a.json'] if well else [])


def test_a_killed_download_goes_on(offer, start, site, target):
    offer({'set/x.zip': zipped(('x.tsv', os.urandom(1 << 21)))})
    site.held = threading.Event()
    first = start()
    try:
        wait_for(lambda: any(path.stat().st_size > 1 << 19 for path in target.glob('set/*.part')))
    finally:
        first.kill()
        first.wait()
    assert files_of(target / 'set') != [] and not (target / 'set/x.zip').exists()
    site.held.set()
    second = start()
    out = second.communicate(timeout=60)[0]
    assert second.returncode == 0, out
    assert [first > 0 for _, first in site.requests] == [False, True] and files_of(target / 'set') == ['x.tsv']


def test_of_two_processes_one_waits(offer, start, site, target):
    offer({'set/x.zip': zipped(('x.tsv', TSV))})
    site.held = threading.Event()
    first = start()
    wait_for(lambda: site.requests)
    second = start()
    told = next(line for line in second.stdout if 'another process' in line)
    site.held.set()
    outs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outs
    assert 'set/x.zip' in told and len(site.requests) == 1 and (target / 'set/x.tsv').read_bytes() == TSV


def test_ctrl_c_while_unpacking(offer, run, site, target, monkeypatch):
    offer({'set/x.zip': zipped(('x.tsv', TSV))})
    assert run('--keepZips')[0] == 0

    def interrupted(descriptor):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr('files.unpack.os.fsync', interrupted)
        status, _, err = run()
    assert status == 130 and f'bash run/download.bash it --to {target}' in err
    assert files_of(target / 'set') == ['x.zip']
    assert run()[0] == 0 and files_of(target / 'set') == ['x.tsv'] and len(site.requests) == 1


def test_what_differs_from_the_lock_is_refused(offer, run, site, target):
    offer({'set/b.txt': b'words'})
    file, (old, new) = target / 'set/b.txt', [hashlib.sha256(text).hexdigest() for text in (b'words', b'sword')]
    assert run()[0] == 0
    os.utime(file)  # only touched
    assert run()[0] == 0
    file.write_bytes(b'sword')
    os.utime(file, ns=(0, 0))
    status, out, err = run()
    assert status == 1 and old in err and new in err and 'manifest.lock.json' in err and file.read_bytes() == b'sword'
    assert 'changed' in out
    file.unlink()
    site.files['set/b.txt'] = b'sword'  # another edition on the server
    status, out, err = run()
    assert status == 1 and old in err and new in err and 'remove the entry "set/b.txt"' in err and not file.exists()
    (target / 'manifest.lock.json').write_text('{}')
    assert run()[0] == 0 and file.read_bytes() == b'sword'


def test_only_verify_sees_bytes_that_changed_under_the_same_size_and_time(offer, run, target):
    offer({'set/b.txt': b'words'})
    assert run()[0] == 0
    file = target / 'set/b.txt'
    before = file.stat()
    file.write_bytes(b'sword')
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run()[0] == 0
    status, _, err = run('--verify')
    assert status == 1 and hashlib.sha256(b'sword').hexdigest() in err
    assert 'changed' in run('--list', '--verify')[1] and 'changed' not in run('--list')[1]


def test_what_somebody_put_there_is_left_alone(offer, run, site, target):
    offer({'set/a.json': JSON, 'set/x.zip': None})
    (target / 'set').mkdir(parents=True)
    (target / 'set/a.json').write_text('mine')
    (target / 'set/x.zip').write_bytes(zipped(('x.tsv', TSV)))
    status, out, _ = run()
    assert status == 0 and (target / 'set/a.json').read_text() == 'mine' and 'not fetched by this command' in out
    assert (target / 'set/x.tsv').read_bytes() == TSV and (target / 'set/x.zip').exists() and site.requests == []


def test_list_touches_neither_network_nor_disk(offer, run, site, target, monkeypatch):
    def no_socket(*_, **__):
        raise AssertionError('a socket was made')

    offer({'set/a.json': JSON, 'set/x.zip': zipped(('x.tsv', TSV))}, size=12345)
    with monkeypatch.context() as patch:
        patch.setattr(socket, 'socket', no_socket)
        status, out, _ = run('--list')
    assert status == 0 and not target.exists() and site.requests == []
    assert f'{target}/set/x.tsv  size unknown  missing' in out and f'{target}/set/x.zip  12,345 bytes  missing' in out
    assert site.address('set/x.zip') in out
    offer({'set/a.json': JSON})
    assert run()[0] == 0
    assert f'{target}/set/a.json  {len(JSON):,} bytes  whole' in run('--list')[1]


def link(kind):
    info = zipfile.ZipInfo('x.tsv')
    info.external_attr = (kind | 0o777) << 16
    return info


def edited(archive, place, form, value):
    """A zip of one member with a number of its entry in the directory at the end replaced."""
    start = archive.index(b'PK\1\2') + place
    return archive[:start] + struct.pack(form, value) + archive[start + struct.calcsize(form):]


GOOD = zipped(('x.tsv', TSV))
BAD = {
    '..': (zipped(('x.tsv', TSV), ('../evil', b'')), 'a path with ..'),
    'inner ..': (zipped(('a/../../x.tsv', TSV)), 'a path with ..'),
    'absolute': (zipped(('/outside/x.tsv', TSV)), 'an absolute path'),
    'drive': (zipped(('C:/x.tsv', TSV)), 'a drive letter'),
    'backslash': (zipped(('..\\x.tsv', TSV)), 'a backslash'),
    'symlink': (zipped((link(stat.S_IFLNK), '/etc/passwd')), 'a link'),
    'fifo': (zipped((link(stat.S_IFIFO), '')), 'a link or special file'),
    'bomb': (zipped(('x.tsv', bytes(1 << 22))), 'more than 200'),
    'bomb beside': (zipped(('x.tsv', TSV), ('y', bytes(1 << 22))), 'more than 200'),
    'bomb that lies of its packed size': (edited(zipped(('x.tsv', bytes(1 << 22))), 20, '<I', 1 << 22), 'more than 200'),
    'twice': (zipped(('x.tsv', TSV), ('x.tsv', TSV)), 'there 2 times'),
    'encrypted': (edited(zipped(('y', b'1'), ('x.tsv', TSV)), 8, '<H', 1), "member 'y' is encrypted"),
    'zero byte': (zipped(('x.tsvZ', TSV)).replace(b'x.tsvZ', b'x.tsv\0'), 'a zero byte'),
    'declares less': (edited(GOOD, 24, '<I', len(TSV) - 1), 'CRC'),
    'declares more': (edited(GOOD, 24, '<I', len(TSV) + 1), 'said to be of'),
    'another crc': (edited(GOOD, 16, '<I', 7), 'CRC'),
    'unknown packing': (edited(GOOD, 10, '<H', 99), 'not a whole zip'),
    'offset outside': (edited(GOOD, 42, '<I', 1 << 30), 'not a whole zip'),
    'cut off': (GOOD[:-30], 'not a whole zip'),
    'no zip': (TSV, 'not a whole zip'),
    'none of the name': (zipped(('y.tsv', TSV), ('z', b'')), 'y.tsv, z'),
    'two of the name': (zipped(('a/x.tsv', TSV), ('b/x.tsv', TSV)), 'a/x.tsv, b/x.tsv'),
}


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_zip_is_refused_and_nothing_is_written(kind, offer, run, site, tmp_path, target):
    content, says = BAD[kind]
    offer({'set/x.zip': content})
    before = files_of(tmp_path)
    status, out, err = run()
    assert status == 1 and says in err and f'{target}/set/x.zip' in err and 'missing' in out
    assert set(files_of(tmp_path)) - set(before) == {'target/manifest.lock.json', 'target/set/x.zip'}
    assert 'remove it, and its entry in manifest.lock.json' in err
    (target / 'set/x.zip').unlink()
    (target / 'manifest.lock.json').unlink()
    site.files['set/x.zip'] = GOOD
    assert run()[0] == 0 and (target / 'set/x.tsv').read_bytes() == TSV


def test_of_a_corrupted_zip_comes_the_right_file_or_none(tmp_path):
    good, rng, outcomes = zipped(('d/', b''), ('d/x.tsv', TSV[:2000]), ('y', b'other')), random.Random(9595), Counter()
    (tmp_path / 'out').mkdir()
    for _ in range(1500):
        bad, got = bytearray(good), []
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(rng.choice([0, len(bad) - 200]), len(bad))
            bad[place:place + rng.randint(0, 3)] = rng.choice([b'', b'\0', b'/', b'\\', b'\xff\xff', rng.randbytes(4)])
        (tmp_path / 'x.zip').write_bytes(bad)
        try:
            unpack(tmp_path / 'x.zip', ['x.tsv'], tmp_path / 'out',
                   lambda name, part, sha256, got=got: got.append(part.read_bytes()))
            assert got == [TSV[:2000]]
        except UnpackError:
            assert not got
        outcomes[bool(got)] += 1
        assert files_of(tmp_path) == ['x.zip']
    assert min(outcomes[True], outcomes[False]) > 50


def test_a_full_disk(offer, run, target, monkeypatch):
    offer({'set/x.zip': zipped(('x.tsv', TSV))})
    assert run('--keepZips')[0] == 0
    real = shutil.disk_usage(target)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'disk_usage', lambda folder: real._replace(free=len(TSV) - 1))
        status, _, err = run()
    assert status == 1 and f'needs {len(TSV):,} bytes' in err and f'{len(TSV) - 1:,}' in err

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr('files.unpack.os.fsync', full)
        status, _, err = run()
    assert status == 1 and 'No space left' in err and files_of(target / 'set') == ['x.zip']
    assert run()[0] == 0


def test_usage_and_broken_files_of_its_own(offer, run, tmp_path, target, capsys):
    offer({'set/b.txt': b'words'})
    assert program.main(['it', '--to', str(target), '--list'], tmp_path / 'none.json') == 2
    with pytest.raises(SystemExit) as ended:
        program.main(['that'], tmp_path / 'manifest.json')
    assert ended.value.code == 2 and "invalid choice: 'that'" in capsys.readouterr().err
    target.write_text('a file where the folder is to be')
    status, _, err = run()
    assert status == 1 and f'look whether {target} can be written' in err
    target.unlink()
    target.mkdir()
    for broken in ('{', '[]', '{"set/b.txt": {"size": 5}}'):
        (target / 'manifest.lock.json').write_text(broken)
        status, _, err = run()
        assert status == 1 and 'manifest.lock.json' in err and files_of(target / 'set') == []


@pytest.mark.parametrize(('change', 'says'), [
    ({'path': '../x'}, 'path'), ({'path': '/x/y'}, 'path'), ({'path': 'set/../x'}, 'path'), ({'path': 'x'}, 'path'),
    ({'addresses': []}, 'addresses'), ({'addresses': ['ftp://a/b']}, 'addresses'), ({'addresses': 'http://a'}, 'addresses'),
    ({'members': ['../x']}, 'members'), ({'size': '7'}, 'size'), ({'format': 'csv'}, 'format'), ({'sise': 7}, 'sise'),
])
def test_a_manifest_that_cannot_be_used(change, says, tmp_path):
    file = {'path': 'set/x.zip', 'addresses': ['http://a/b']} | change
    (tmp_path / 'manifest.json').write_text(json.dumps({'it': {'about': 'Things.', 'files': [file]}}))
    with pytest.raises(DataError, match=says):
        manifest.read(tmp_path / 'manifest.json')
    good = {'path': 'set/x.txt', 'addresses': ['http://a/b']}
    (tmp_path / 'manifest.json').write_text(json.dumps({'it': {'about': 'Things.', 'files': [good, good]}}))
    with pytest.raises(DataError, match='twice'):
        manifest.read(tmp_path / 'manifest.json')


def layout():
    """The published files that data/README.md lists, relative to data/."""
    block = re.search(r'```\n(data/vqa/.*?)```', (ROOT / 'data/README.md').read_text(), re.S)[1]
    for line in block.splitlines():
        for shape in re.findall(r'^data/(\S+)|(\S+\.json)', line)[0][:1]:
            parts = [part.split(',') for part in re.split(r'[{}]', shape)]
            yield from map(''.join, itertools.product(*parts))


def test_the_published_manifest_covers_what_training_reads():
    sets = manifest.read(program.MANIFEST)
    assert {'pretrained', 'bert', 'answers', 'vqa', 'gqa', 'nlvr2', 'lxmert', 'mscoco_imgfeat', 'vg_gqa_imgfeat', 'nlvr2_imgfeat',
            'detector'} <= set(sets)
    folders = {'answers': ('vqa', 'gqa', 'lxmert'), 'bert': ('bert-base-uncased',)}
    for one in sets.values():
        assert {file.path.split('/')[0] for file in one.files} <= set(folders.get(one.name, [one.name]))
        assert one.files and len(one.about) < 110
    there = {path for one in sets.values() for path in (*one.made, *(path for file in one.files for path in file.results))}
    specs = [task.spec(Path()) for task in (VQA, GQA, NLVR2)] + [published(Path())]
    needed = {str(path) for spec in specs for split in spec.splits.values() for path in (split.annotations, *split.features)}
    needed |= {str(spec.answers) for spec in specs if spec.answers}
    assert needed - there == {'vqa/valid.json'}  # a name of the original code's, under which nothing was published
    listed = {path for path in layout() if path not in ('shapes/', 'nlvr/')}
    assert len(listed) > 30 and listed <= there
    assert all(one.instead for one in sets.values() if one.made)


def test_the_launcher():
    def launch(*arguments):
        return subprocess.run(['bash', 'run/download.bash', *arguments], cwd=ROOT, capture_output=True, text=True)

    told = launch('--help')
    assert told.returncode == 0 and all(f'\n  {name} ' in told.stdout for name in manifest.read(program.MANIFEST))
    assert launch().returncode == 2 and launch('everything').returncode == 2
    listed = launch('pretrained', 'vqa', '--list')
    assert listed.returncode == 0 and '  snap/pretrained/model_LXRT.pth  ' in listed.stdout
    assert '  data/vqa/train.json  ' in listed.stdout
    assert '  elsewhere/pretrained/model_LXRT.pth  ' in launch('pretrained', '--list', '--to', 'elsewhere').stdout
