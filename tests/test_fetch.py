"""Downloads come whole or not at all: from servers on this machine that cut, lie, change and refuse, as S3 and the hub too."""

import contextlib
import gzip
import hashlib
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT

from files import download
from files.download import DownloadError, cache_folder, cached_path, fetch, is_address, is_offline

CONTENT = random.Random(1).randbytes(1_000_000)
OTHER = random.Random(2).randbytes(900_000)
PAGE = b'\n<!DOCTYPE html><html><body>Sorry, log in first.</body></html>'
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """One file under every address, sent as HTTP says, except for what the script says of the n-th request.

    A step of the script is a dict: status, headers (over the usual ones; None leaves one out), body (instead of the rest of the
    file), until (cut the connection at this byte of the file), reset (cut it rudely), chunked, hold (an event to wait for at
    `until`, instead of a cut), file (the file from now on: content, etag, modified).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.content, self.etag, self.modified = CONTENT, '"one"', None
        self.ranges = self.conditions = True  # whether it knows Range, If-Range
        self.script, self.seen = [], []
        self.address = f'http://127.0.0.1:{self.server_port}/data/model.pth'

    @property
    def asked(self):
        """The first byte that each request asked for."""
        return [int(re.fullmatch(r'bytes=(\d+)-', headers.get('Range', 'bytes=0-'))[1]) for _, headers in self.seen]

    def handle_error(self, request, client_address):  # a client that goes away is no fault here
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        step = server.script.pop(0) if server.script else {}
        for name, value in step.get('file', {}).items():
            setattr(server, name, value)
        status, first, headers = self.plain()
        body = server.content[first:] if status in (200, 206) else b''
        body, status = step.get('body', body), step.get('status', status)
        headers |= {'Content-Length': len(body)} | step.get('headers', {})
        if step.get('chunked'):
            headers |= {'Content-Length': None, 'Transfer-Encoding': 'chunked'}
        self.send_response(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        end = step.get('until', len(server.content)) - first if 'body' not in step else len(body)
        for start in range(0, min(end, len(body)), 1 << 16):
            piece = body[start:min(start + (1 << 16), end)]
            self.wfile.write(b'%x\r\n%s\r\n' % (len(piece), piece) if step.get('chunked') else piece)
        if 'hold' in step:
            step['hold'].wait(20)
            self.wfile.write(body[end:])
        elif end < len(body):
            self.close_connection = True
            if step.get('reset'):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        elif step.get('chunked'):
            self.wfile.write(b'0\r\n\r\n')
        if status == 200 and headers['Content-Length'] is None:
            self.close_connection = True

    def plain(self):
        """(status, first byte, headers) as HTTP wants them."""
        server, asked = self.server, self.headers
        headers = {'ETag': server.etag, 'Last-Modified': server.modified}
        tags = [value for value in (server.etag, server.modified) if value]
        if asked.get('If-None-Match', asked.get('If-Modified-Since', '')) in tags:
            return 304, 0, headers
        if 'If-Match' in asked and asked['If-Match'] not in tags:
            return 412, 0, headers
        condition = asked.get('If-Range') if server.conditions else None
        if 'Range' not in asked or not server.ranges or condition not in [*tags, None]:
            return 200, 0, headers
        first = int(asked['Range'][6:-1])
        if first >= len(server.content):
            return 416, 0, headers | {'Content-Range': f'bytes */{len(server.content)}'}
        return 206, first, headers | {'Content-Range': f'bytes {first}-{len(server.content) - 1}/{len(server.content)}'}


@contextlib.contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server():
    with running(Server()) as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch, tmp_path):
    """Nothing of this machine's settings; no real waiting. The seconds that would have been waited."""
    for name in [name for name in os.environ if re.match(r'(?i)AWS_|HF_|.*_proxy$|LXRT_CACHE', name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('LXRT_CACHE', str(tmp_path / 'cache'))
    waits = []
    monkeypatch.setattr(download, 'sleep', waits.append)
    return waits


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'here' / 'model.pth'


def assert_only(path, content=CONTENT):
    """The file is there, exact, and nothing of its making is left but the lock."""
    assert path.read_bytes() == content
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f'{path.name}.lock'}


def nothing(path):
    """No file under its name, and no part of it."""
    return not list(path.parent.glob(f'{path.name}*')) or [file.name for file in path.parent.iterdir()] == [f'{path.name}.lock']


def assert_one_line(error):
    """No chain of the libraries' own errors above it."""
    assert '\n' not in str(error)
    assert ''.join(traceback.format_exception(error)).count('Traceback') == 1


def process(address, path):
    """Another process that downloads."""
    code = f'from files.download import fetch; fetch({address!r}, {str(path)!r})'
    return subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'PYTHONPATH': 'src'}, text=True,
                            stderr=subprocess.PIPE)


def until(condition):
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail('what was waited for did not come')


# ---------------------------------------------------------------------------- cuts


def test_importing_is_cheap():
    code = 'import sys, files.download; print({"requests", "boto3", "huggingface_hub", "torch"} & sys.modules.keys())'
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'PYTHONPATH': 'src'}, capture_output=True)
    assert run.stdout.strip() == b'set()', run.stderr


def test_a_file_comes_whole_and_is_kept(server, path):
    assert fetch(server.address, path, len(CONTENT), SHA256) == path
    assert_only(path)
    fetch(server.address, path, len(CONTENT), SHA256.upper())
    assert len(server.seen) == 1 and server.seen[0][1]['Accept-Encoding'] == 'identity'


@pytest.mark.parametrize('seed', range(4))
def test_a_hundred_cuts_at_random_points(server, path, seed):
    """Only what is missing is asked for, again and again."""
    points = sorted(random.Random(seed).sample(range(1, len(CONTENT)), 100))
    server.script = [{'until': point} for point in points]
    fetch(server.address, path, sha256=SHA256)
    assert_only(path)
    assert server.asked == [0, *points]


@pytest.mark.parametrize('seed', range(2))
def test_a_hundred_rude_cuts(server, path, seed):
    """A connection that is reset takes with it bytes that were on their way."""
    points = sorted(random.Random(seed).sample(range(1, len(CONTENT)), 100))
    server.script = [{'until': point, 'reset': True} for point in points]
    fetch(server.address, path)
    assert_only(path)


@pytest.mark.parametrize('cut', [0, 1, len(CONTENT) - 1])
def test_cuts_at_the_edges(server, path, cut):
    server.script = [{'until': cut}] * 2
    fetch(server.address, path)
    assert_only(path)
    assert server.asked == [0, cut, cut]


def test_tries_without_a_byte_end(server, path, waits):
    """What has come stays, and the next call goes on."""
    server.script = [{'until': 500}, *[{'until': 0}] * 5]
    with pytest.raises(DownloadError, match=rf'^{server.address}: .*5 times; try again later'):
        fetch(server.address, path)
    assert len(server.seen) == 6 and waits == sorted(waits) and waits[-1] > waits[0]
    assert not path.exists()
    fetch(server.address, path)
    assert_only(path)
    assert server.asked[-1] == 500


def test_a_server_that_is_silent(server, path, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUTS', (1, 0.2))
    hold = threading.Event()
    server.script = [{'until': 0, 'hold': hold}, {'until': 300_000, 'hold': hold}]
    fetch(server.address, path)
    hold.set()
    assert_only(path)
    assert len(server.seen) == 3 and server.asked[2] > 0


def test_a_server_that_is_not_there(path, waits):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))  # and does not listen
        address = f'http://127.0.0.1:{taken.getsockname()[1]}/x.pth'
        with pytest.raises(DownloadError, match=rf'^{address}: .*refused.*, 5 times') as caught:
            fetch(address, path)
    assert_one_line(caught.value)
    assert len(waits) == 4


def test_a_process_that_is_killed_leaves_what_has_come(server, path):
    hold = threading.Event()
    server.script = [{'until': 600_000, 'hold': hold}]
    part = path.with_name('model.pth.part')
    downloading = process(server.address, path)
    until(lambda: part.exists() and part.stat().st_size >= 600_000 // download.CHUNK * download.CHUNK)
    downloading.send_signal(signal.SIGKILL)
    downloading.communicate()
    hold.set()
    come = part.stat().st_size
    assert not path.exists() and part.read_bytes() == CONTENT[:come]
    fetch(server.address, path)
    assert_only(path)
    assert server.asked == [0, come]


def test_a_part_that_is_whole_needs_only_its_name(server, path):
    part_of(path, server.address, CONTENT, '"one"', len(CONTENT))
    fetch(server.address, path)
    assert_only(path)
    assert server.seen == []


def part_of(path, address, content, etag, total):
    """What a process leaves that was ended in the midst."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f'{path.name}.part').write_bytes(content)
    note = {'address': address, 'etag': etag, 'modified': None, 'size': total}
    path.with_name(f'{path.name}.part.json').write_text(json.dumps(note))


@pytest.mark.parametrize('damage', ['other address', 'note cut off', 'no note', 'no list'])
def test_a_part_that_tells_nothing_is_not_gone_on_with(server, path, damage):
    part_of(path, server.address, OTHER[:700], '"one"', len(CONTENT))
    note = path.with_name('model.pth.part.json')
    note.write_text({'other address': note.read_text().replace('data', 'date'), 'note cut off': note.read_text()[:30],
                     'no note': '', 'no list': '[]'}[damage])
    fetch(server.address, path)
    assert_only(path)
    assert server.asked == [0]


def test_two_processes_download_once(server, path):
    hold = threading.Event()
    server.script = [{'until': 500_000, 'hold': hold}]
    first = process(server.address, path)
    until(lambda: server.seen)
    second = process(server.address, path)
    assert 'another process downloads it; waiting' in second.stderr.readline()
    hold.set()
    assert first.wait(20) == second.wait(20) == 0
    first.communicate(), second.communicate()
    assert_only(path)
    assert len(server.seen) == 1


# ---------------------------------------------------------------------------- other files and lies


@pytest.mark.parametrize(('etag', 'modified'), [
    ('"one"', None), ('W/"one"', None), ('W/"one"', formatdate(1e9)), (None, formatdate(1e9)), ('"one"', formatdate(1e9))])
def test_a_file_that_stays_is_gone_on_with(server, path, etag, modified):
    server.etag, server.modified = etag, modified
    server.script = [{'until': 400_000}, {'until': 800_000}]
    fetch(server.address, path)
    assert_only(path)
    assert server.asked == [0, 400_000, 800_000]


@pytest.mark.parametrize('obeys', [True, False])
@pytest.mark.parametrize(('old', 'new'), [
    ({'etag': '"one"'}, {'etag': '"two"'}), ({'etag': 'W/"one"'}, {'etag': 'W/"two"'}), ({'etag': '"one"'}, {'etag': None}),
    ({'etag': None, 'modified': formatdate(1e9)}, {'modified': formatdate(2e9)}), ({'etag': '"one"'}, {'etag': '"one"'}),
    ({'etag': None}, {})])
def test_a_file_that_changes_between_parts_is_begun_anew(server, path, old, new, obeys):
    """Whether the server obeys If-Range, has no notion of it, tells no version, or the same one of another length."""
    for name, value in old.items():
        setattr(server, name, value)
    other = {'Content-Range': f'bytes 400000-{len(OTHER) - 1}/{len(OTHER)}', **tags(new)}
    lie = {'status': 206, 'headers': other, 'body': OTHER[400_000:]}
    server.script = [{'until': 400_000}, {'file': {'content': OTHER, **new}} | ({} if obeys or old == {'etag': None} else lie)]
    fetch(server.address, path)
    assert_only(path, OTHER)


def tags(file):
    return {{'etag': 'ETag', 'modified': 'Last-Modified'}[name]: value for name, value in file.items()}


def test_a_changed_file_of_the_same_length_without_etag(server, path):
    """Nothing tells the two apart, so nothing is gone on with."""
    server.etag = None
    server.script = [{'until': 400_000}, {'file': {'content': CONTENT[::-1]}}]
    fetch(server.address, path)
    assert_only(path, CONTENT[::-1])
    assert server.asked == [0, 0]


def test_a_server_without_ranges(server, path):
    server.ranges = False
    server.script = [{'until': 400_000}, {}, {'until': 600_000}]
    fetch(server.address, path)
    assert_only(path)


def test_a_server_without_ranges_that_always_cuts(server, path):
    server.ranges = False
    server.script = [{'until': 400_000}, {}] * 5
    with pytest.raises(DownloadError, match='cannot go on in the midst of it; beginning anew, 5 times'):
        fetch(server.address, path)
    assert nothing(path)


@pytest.mark.parametrize('lie', [
    {'status': 416, 'body': b''},
    {'status': 412, 'body': b''},
    {'headers': {'Content-Range': 'bytes 300000-999999/1000000'}},
    {'headers': {'Content-Range': 'bytes 400000-999999/*'}},
    {'headers': {'Content-Range': 'bytes 400000-999999/1000001'}},
    {'headers': {'Content-Range': None}},
    {'headers': {'ETag': None}},
    {'body': CONTENT[399_999:]},
], ids=str)
def test_an_answer_that_does_not_fit_is_not_appended(server, path, lie):
    server.script = [{'until': 400_000}, lie]
    fetch(server.address, path)
    assert_only(path)
    assert server.asked == [0, 400_000, 0]


def test_a_part_of_what_is_missing_is_taken(server, path):
    """A server may send less of a range than is asked for."""
    some = {'body': CONTENT[400_000:500_000], 'headers': {'Content-Range': 'bytes 400000-499999/1000000'}}
    server.script = [{'until': 400_000}, some]
    fetch(server.address, path)
    assert_only(path)
    assert server.asked == [0, 400_000, 500_000]


def test_a_middle_that_nobody_asked_for(server, path):
    server.script = [{'status': 206, 'headers': {'Content-Range': 'bytes 5-999999/1000000'}, 'body': CONTENT[5:]}]
    fetch(server.address, path)
    assert_only(path)


def test_a_length_that_is_too_long(server, path):
    server.script = [{'headers': {'Content-Length': 1_000_100}, 'until': 1_000_000, 'body': CONTENT + b'x' * 50}] * 1
    server.script += [{'status': 416, 'body': b''}, {'headers': {'Content-Length': 1_000_100}}] * 5
    for step in server.script:
        step['headers'] = step.get('headers', {}) | {'Connection': 'close'}
    with pytest.raises(DownloadError, match='5 times'):
        fetch(server.address, path)
    assert nothing(path)


def test_a_length_that_is_too_short(server, path):
    """Nothing shows that the server has more, except what is known of the file."""
    server.script = [{'headers': {'Content-Length': 900_000}}]
    with pytest.raises(DownloadError, match='expected 1,000,000 bytes, the server has 900,000'):
        fetch(server.address, path, size=1_000_000)
    server.script = [{'headers': {'Content-Length': 900_000}}]
    with pytest.raises(DownloadError, match=f'expected sha256 {SHA256}, found'):
        fetch(server.address, path, sha256=SHA256)
    assert nothing(path)


@pytest.mark.parametrize('seed', range(60))
def test_any_row_of_troubles_ends_with_a_whole_file_or_none(server, path, seed):
    draw = random.Random(seed)
    server.content, server.etag = CONTENT[:50_000], draw.choice(['"one"', 'W/"one"', None])
    server.modified = draw.choice([formatdate(1e9), None])
    server.ranges, server.conditions = draw.random() < 0.8, draw.random() < 0.5
    versions = [server.content]
    for _ in range(draw.randrange(4, 16)):
        cut, kind = {'until': draw.randrange(50_000)}, draw.random()
        if kind < 0.3:
            versions.append(draw.randbytes(draw.choice([50_000, draw.randrange(1, 60_000)])))
            cut['file'] = {'content': versions[-1], 'etag': server.etag and f'"{len(versions)}"',
                           'modified': server.modified and formatdate(1e9 + len(versions))}
        server.script.append(cut if kind < 0.7 else draw.choice([
            {**cut, 'reset': True}, {**cut, 'chunked': True}, {**cut, 'headers': {'ETag': '"lie"'}},
            {'status': 503, 'body': b'busy'}, {'status': 416, 'body': b''}, {'status': 404, 'body': b'none'},
            {'headers': {'Content-Range': 'bytes 7-8/9'}}, {'body': PAGE, 'headers': {'Content-Type': 'text/html'}}]))
    for _ in range(5):
        try:
            fetch(server.address, path)
        except DownloadError as error:
            assert_one_line(error)
            assert not path.exists()
        else:
            assert path.read_bytes() in versions
            break


def test_no_length_at_all(server, path):
    server.script = [{'headers': {'Content-Length': None}}]
    with pytest.raises(DownloadError, match='does not say how long the file is'):
        fetch(server.address, path)
    assert nothing(path)


def test_chunks_without_a_length(server, path):
    server.script = [{'chunked': True, 'until': 400_000}, {'chunked': True, 'until': 100}, {'chunked': True}]
    fetch(server.address, path)
    assert_only(path)
    assert server.asked == [0, 0, 0]


def test_chunks_without_a_length_that_are_always_cut(server, path):
    server.script = [{'chunked': True, 'until': 400_000}] * 9
    with pytest.raises(DownloadError, match='beginning anew, 5 times'):
        fetch(server.address, path)
    assert len(server.seen) == 5 and nothing(path)


def test_an_empty_file(server, path):
    server.content = b''
    fetch(server.address, path, size=0)
    assert_only(path, b'')


def test_a_packed_body_is_unpacked(server, path):
    packed = gzip.compress(CONTENT)
    usual = {'body': packed, 'headers': {'Content-Encoding': 'gzip'}}
    cut = {'body': packed[:50_000], 'headers': {'Content-Encoding': 'gzip', 'Content-Length': len(packed), 'Connection': 'close'}}
    quiet = {'body': packed[:50_000], 'headers': {'Content-Encoding': 'gzip'}}  # an end that only gzip shows to be none
    server.script = [cut, quiet, usual]
    fetch(server.address, path, len(CONTENT), SHA256)
    assert_only(path)
    assert server.asked == [0, 0, 0]


def test_a_packed_file_stays_packed(server, path):
    server.content = packed = gzip.compress(CONTENT)
    server.script = [{'headers': {'Content-Encoding': 'x-gzip'}}]
    path = path.with_name('questions.json.gz')
    fetch(server.address.replace('model.pth', 'questions.json.gz'), path)
    assert_only(path, packed)


def test_another_packing_is_refused(server, path):
    server.script = [{'headers': {'Content-Encoding': 'br'}}]
    with pytest.raises(DownloadError, match=r'the server packs it \(br\)'):
        fetch(server.address, path)
    assert nothing(path)


@pytest.mark.parametrize('kind', ['text/html; charset=utf-8', 'application/octet-stream', None])
@pytest.mark.parametrize('name', ['x.pth', 'x.zip', 'x.json', 'x.bin', 'x.safetensors', 'x.tsv'])
def test_a_page_is_not_a_file(server, path, kind, name):
    path = path.with_name(name)
    server.script = [{'body': PAGE, 'headers': {'Content-Type': kind}}]
    with pytest.raises(DownloadError, match='found an html page'):
        fetch(f'http://127.0.0.1:{server.server_port}/{name}?dl=1', path)
    assert nothing(path) and len(server.seen) == 1


def test_a_page_is_known_by_its_type_alone(server, path):
    server.script = [{'body': b'Sorry!', 'headers': {'Content-Type': 'text/html'}}]
    with pytest.raises(DownloadError, match='found an html page'):
        fetch(server.address, path)
    assert nothing(path)


def test_a_page_that_is_asked_for(server, path):
    server.content = PAGE
    path = path.with_suffix('.html')
    assert fetch(f'http://127.0.0.1:{server.server_port}/x.html', path).read_bytes() == PAGE


def test_what_is_not_as_promised_is_removed(server, path):
    with pytest.raises(DownloadError, match=rf'^{server.address}: expected 1,000,001 bytes, the server has 1,000,000'):
        fetch(server.address, path, size=1_000_001)
    with pytest.raises(DownloadError, match=rf'^{server.address}: expected sha256 {"0" * 64}, found {SHA256}; .*removed'):
        fetch(server.address, path, sha256='0' * 64)
    assert nothing(path)


def test_a_file_that_is_there_is_checked_and_left(server, path):
    path.parent.mkdir()
    path.write_bytes(OTHER)
    for promise, fault in (({'size': 5}, 'expected 5 bytes, found 900,000'), ({'sha256': SHA256}, f'expected sha256 {SHA256}')):
        with pytest.raises(DownloadError, match=rf'{path}: {fault}.*; remove it'):
            fetch(server.address, path, **promise)
    assert path.read_bytes() == OTHER and server.seen == []
    assert fetch(server.address, path, size=len(OTHER)) == path


# ---------------------------------------------------------------------------- refusals, redirects, proxies, disks


@pytest.mark.parametrize('status', [304, 401, 403, 404, 410])
def test_what_is_refused_is_not_asked_for_again(server, path, waits, status):
    server.script = [{'status': status, 'body': b'no'}]
    with pytest.raises(DownloadError, match=rf'^{server.address}: the server answered {status} \w+.*; \w+'):
        fetch(server.address, path)
    assert len(server.seen) == 1 and waits == [] and nothing(path)


@pytest.mark.parametrize('status', [408, 429, 500, 502, 503, 504, 599])
def test_a_busy_server_is_asked_again(server, path, waits, status):
    server.script = [{'status': status, 'body': b'busy', 'headers': {'Retry-After': after}} for after in (7, 9999, 'soon')]
    fetch(server.address, path)
    assert_only(path)
    assert waits[:2] == [7, download.LONGEST_WAIT] and 0 < waits[2] < 60


def test_a_busy_server_that_tells_a_date(server, path, waits):
    server.script = [{'status': 503, 'headers': {'Retry-After': formatdate(time.time() + seconds)}} for seconds in (30, -30)]
    fetch(server.address, path)
    assert 0 < waits[0] <= 30 and waits[1] == 0


def test_a_server_that_stays_busy(server, path):
    server.script = [{'status': 503}] * 9
    with pytest.raises(DownloadError, match='answered 503 Service Unavailable, 5 times'):
        fetch(server.address, path)
    assert len(server.seen) == 5


def test_redirects(server, path):
    with running(Server()) as other:
        server.script = [{'status': 302, 'body': b'', 'headers': {'Location': other.address}}] * 2
        other.script = [{'until': 400_000}]
        fetch(server.address, path)
        assert other.asked == [0, 400_000]
    assert_only(path)
    server.script = [{'status': 302, 'body': b'', 'headers': {'Location': server.address}}] * 99
    with pytest.raises(DownloadError, match='redirects'):
        fetch(server.address, path.with_name('y.pth'))


@pytest.mark.parametrize('address', ['http://', 'http://[', 's3://', 's3://BUCKET WITH SPACES/x', 'hf://owner', 'hf://owner/name'])
def test_addresses_that_are_none(path, address):
    with pytest.raises(DownloadError, match=re.escape(address)):
        fetch(address, path)
    assert nothing(path)


def test_a_proxy_of_the_environment_is_used(server, path, monkeypatch):
    monkeypatch.setenv('HTTP_PROXY', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('http_proxy', f'http://127.0.0.1:{server.server_port}')
    fetch('http://files.invalid/model.pth', path)
    assert_only(path)
    assert server.seen[0][0] == 'http://files.invalid/model.pth'


def test_a_disk_that_is_full(server, path, monkeypatch):
    usage = download.shutil.disk_usage('/')
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda _: usage._replace(free=999_999))
    with pytest.raises(DownloadError, match=r'1,000,000 bytes are needed in .*, 999,999 are free; make room'):
        fetch(server.address, path)
    assert nothing(path)
    part_of(path, server.address, CONTENT[:1], '"one"', len(CONTENT))  # room for the rest is enough
    fetch(server.address, path)
    assert_only(path)


def test_a_disk_that_becomes_full(server, path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(DownloadError, match=rf'^{path}: cannot be written \(File too large\)'):
            fetch(server.address, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.exists() and len(server.seen) == 1
    fetch(server.address, path)
    assert_only(path)
    assert 0 < server.asked[1] <= 500_000


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DownloadError, match=r'file/x\.pth: cannot be written'):
        fetch(server.address, tmp_path / 'file' / 'x.pth')
    with pytest.raises(DownloadError, match=rf'^{tmp_path}: .*found a folder'):
        fetch(server.address, tmp_path)
    assert server.seen == []


# ---------------------------------------------------------------------------- the cache


@pytest.mark.parametrize(('value', 'offline'), [
    ('1', True), ('TRUE', True), ('Yes', True), ('on', True), ('0', False), ('', False)])
def test_offline_by_the_environment(monkeypatch, value, offline):
    assert is_offline(True) and not is_offline()
    monkeypatch.setenv('HF_HUB_OFFLINE', value)
    assert is_offline() is offline


def test_addresses_and_names(tmp_path, monkeypatch):
    assert all(map(is_address, ['http://a/b', 'https://a/b', 's3://a/b', 'hf://a/b']))
    assert not any(map(is_address, ['a/b', 'ftp://a/b', '/a/http://b', tmp_path]))
    assert cache_folder() == tmp_path / 'cache'
    monkeypatch.delenv('LXRT_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_folder() == tmp_path / '.cache/lxrt'


@pytest.mark.parametrize('name', ['none', 'a/b/c', 'snap/vqa.pth', './a', '../a/b', 'ftp://a/b', '/a/b', 'a b/c'])
def test_what_is_neither_file_nor_address(name):
    with pytest.raises(FileNotFoundError, match=rf'^{re.escape(name)}: no such file'):
        cached_path(name)


def test_a_local_path_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'owner/name').mkdir(parents=True)
    assert str(cached_path('owner/name')) == 'owner/name' and cached_path(tmp_path) == tmp_path


def test_the_cache_asks_whether_there_is_another_version(server, capsys):
    path = cached_path(server.address)
    assert path.parent == cache_folder() and re.fullmatch(r'model-[0-9a-f]{16}\.pth', path.name) and path.read_bytes() == CONTENT
    assert json.loads(path.with_name(path.name + '.json').read_text()) == {
        'address': server.address, 'etag': '"one"', 'modified': None, 'size': len(CONTENT)}
    assert cached_path(server.address) == path
    assert [headers.get('If-None-Match') for _, headers in server.seen] == [None, '"one"']
    server.content, server.etag = OTHER, '"two"'
    assert cached_path(server.address) == path and path.read_bytes() == OTHER
    assert cached_path(server.address + '?v=2') != path
    assert cached_path(server.address, offline=True).read_bytes() == OTHER
    assert capsys.readouterr().err == ''


def test_a_server_that_tells_no_version_is_asked_for_the_file_each_time(server):
    server.etag = server.modified = None
    assert cached_path(server.address).read_bytes() == CONTENT
    server.script = [{'status': 200, 'body': CONTENT[::-1]}]
    assert cached_path(server.address).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(('etag', 'modified'), [('W/"one"', None), (None, formatdate(1e9))])
@pytest.mark.parametrize('status', [304, 200])
def test_a_server_with_the_same_version(server, etag, modified, status):
    """Whether or not it knows conditional requests."""
    server.etag, server.modified = etag, modified
    path = cached_path(server.address)
    path.write_bytes(CONTENT[::-1])  # to see whether it is downloaded again
    server.script = [{'status': 304, 'body': b''} if status == 304 else {'status': 200, 'body': CONTENT}]
    assert cached_path(server.address).read_bytes() == CONTENT[::-1] and len(server.seen) == 2


@pytest.mark.parametrize('trouble', [{'status': 503}, {'status': 404}, {'until': 0, 'status': 500}, {
    'body': PAGE, 'headers': {'Content-Type': 'text/html', 'ETag': None}}], ids=str)
def test_what_is_cached_serves_when_its_server_does_not(server, capsys, trouble):
    path = cached_path(server.address)
    server.etag = '"two"'
    server.script = [trouble]
    assert cached_path(server.address) == path and path.read_bytes() == CONTENT
    assert f'Going on with the version that was downloaded before: {path}' in capsys.readouterr().err


def test_what_is_cached_serves_when_its_server_is_gone(capsys):
    with running(Server()) as server:
        path = cached_path(server.address)
    assert cached_path(server.address) == path
    assert 'refused' in (told := capsys.readouterr().err) and str(path) in told


def test_a_cached_file_that_is_cut_off_is_fetched_again(server):
    path = cached_path(server.address)
    path.write_bytes(CONTENT[:7])
    with pytest.raises(DownloadError, match='offline'):
        cached_path(server.address, offline=True)
    assert cached_path(server.address).read_bytes() == CONTENT


def test_offline_says_which_file_to_put_where(server, tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match=rf'^{server.address}: .*put the file there as (\S+) or data/model\.pth$') as caught:
        cached_path(server.address, offline=True, to='data/model.pth')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(DownloadError, match='offline'):
        fetch(server.address, tmp_path / 'x.pth')
    place = re.search(r'there as (\S+)', str(caught.value))[1]
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, 'wb') as file:
        file.write(CONTENT)
    assert str(cached_path(server.address)) == place
    assert server.seen == []


# ---------------------------------------------------------------------------- S3


@pytest.fixture(scope='module')
def moto():
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    server.start()
    yield 'http://{}:{}'.format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def no_keys(monkeypatch, tmp_path):
    for name in ('AWS_SHARED_CREDENTIALS_FILE', 'AWS_CONFIG_FILE'):
        monkeypatch.setenv(name, str(tmp_path / 'none'))
    monkeypatch.setenv('AWS_EC2_METADATA_DISABLED', 'true')


@pytest.fixture
def bucket(moto, no_keys, monkeypatch):
    """A client with keys to a bucket 'lxmert' with x.pth for all and own.pth for its owner."""
    import boto3

    monkeypatch.setenv('AWS_ENDPOINT_URL', moto)
    client = boto3.client('s3', aws_access_key_id='key', aws_secret_access_key='secret', region_name='us-east-1')
    client.create_bucket(Bucket='lxmert')
    client.put_object(Bucket='lxmert', Key='lxr 955/x.pth', Body=CONTENT, ACL='public-read')
    client.put_object(Bucket='lxmert', Key='own.pth', Body=CONTENT)
    return client


def test_s3_without_keys(bucket, path):
    fetch('s3://lxmert/lxr 955/x.pth', path, len(CONTENT), SHA256)
    assert_only(path)
    with pytest.raises(DownloadError, match=r's3://lxmert/own\.pth: the server answered 403 Forbidden'):
        fetch('s3://lxmert/own.pth', path.with_name('own.pth'))
    with pytest.raises(DownloadError, match='404'):
        fetch('s3://none/x.pth', path.with_name('own.pth'))


def test_s3_with_keys(bucket, path, monkeypatch):
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'key')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    fetch('s3://lxmert/own.pth', path)
    assert_only(path)


def test_s3_goes_on_or_begins_anew(bucket, path):
    etag = bucket.head_object(Bucket='lxmert', Key='lxr 955/x.pth')['ETag']
    for content, tag in ((CONTENT[:300_000], etag), (OTHER[:300_000], '"other"')):
        path.unlink(missing_ok=True)
        part_of(path, 's3://lxmert/lxr 955/x.pth', content, tag, len(CONTENT))
        fetch('s3://lxmert/lxr 955/x.pth', path)
        assert_only(path)


def test_s3_in_the_cache(bucket):
    path = cached_path('s3://lxmert/lxr 955/x.pth')
    path.write_bytes(CONTENT[::-1])
    assert cached_path('s3://lxmert/lxr 955/x.pth').read_bytes() == CONTENT[::-1]
    bucket.put_object(Bucket='lxmert', Key='lxr 955/x.pth', Body=OTHER, ACL='public-read')
    assert cached_path('s3://lxmert/lxr 955/x.pth').read_bytes() == OTHER


def test_s3_cut_a_hundred_times(server, path, no_keys, monkeypatch):
    monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{server.server_port}')
    points = sorted(random.Random(5).sample(range(1, len(CONTENT)), 100))
    server.script = [{'until': point, 'reset': point % 2} for point in points]
    fetch('s3://bucket/data/x.pth', path)
    assert_only(path)
    assert len(server.seen) == 101 and server.seen[9][0].startswith('/bucket/data/x.pth')
    assert all(headers['If-Match'] == '"one"' for _, headers in server.seen[1:])


def test_s3_changed_refused_busy(server, path, no_keys, monkeypatch, waits):
    monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{server.server_port}')
    server.script = [{'status': 503, 'headers': {'Retry-After': 7}}, {'until': 400_000},
                     {'file': {'content': OTHER, 'etag': '"two"'}}]
    fetch('s3://bucket/x.pth', path)
    assert_only(path, OTHER)
    assert server.asked == [0, 0, 400_000, 0] and waits[0] == 7
    server.script = [{'headers': {'Content-Length': 5}}]
    with pytest.raises(DownloadError, match='expected 900,000 bytes, the server has 5'):
        fetch('s3://bucket/x.pth', path.with_name('y.pth'), size=len(OTHER))


# ---------------------------------------------------------------------------- the hub


class Hub(BaseHTTPRequestHandler):
    """What the hub's library asks of huggingface.co, of server.files = {'owner/name': {file: bytes}}."""

    protocol_version = 'HTTP/1.1'
    commit = 'c' * 40

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.seen.append(f'{self.command} {self.path}')
        asked, _, _ = self.path.partition('?')
        if found := re.fullmatch(r'/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)', asked):
            files = self.server.files.get(found[1])
            if files is None:
                return self.answer(404, b'{}', {'X-Error-Code': 'RepoNotFound'})
            listed = [{'type': 'file', 'path': name, 'size': len(content), 'oid': hashlib.sha1(content).hexdigest()}
                      for name, content in files.items()]
            told = {'id': found[1], 'modelId': found[1], 'sha': self.commit, 'siblings': []} if found[2] == 'revision' else listed
            return self.answer(200, json.dumps(told).encode(), {'Content-Type': 'application/json'})
        found = re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', asked)
        content = found and self.server.files.get(found[1], {}).get(found[3])
        if content is None:
            return self.answer(404, b'', {'X-Error-Code': 'EntryNotFound', 'X-Repo-Commit': self.commit})
        self.answer(200, content, {'X-Repo-Commit': self.commit, 'ETag': f'"{hashlib.sha1(content).hexdigest()}"'})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, 'Content-Length': str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.seen = []
    server.files = {
        'unc-nlp/lxmert': {
            'config.json': b'{}', 'vocab.txt': b'[PAD]', 'tokenizer_config.json': b'{}', 'answers.json': b'[]', 'README.md': b'#',
            'model.safetensors': CONTENT, 'pytorch_model.bin': OTHER, 'tf_model.h5': OTHER, 'onnx/model.safetensors': OTHER},
        'old/bert-1.5': {'config.json': b'{}', 'pytorch_model.bin': OTHER, 'flax_model.msgpack': b''},
        'none/none': {'movie.avi': b''}}
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    with running(server):
        yield server


def test_a_file_of_the_hub(hub, path):
    found = cached_path('hf://unc-nlp/lxmert/model.safetensors')
    assert found.read_bytes() == CONTENT and found.is_relative_to(cache_folder() / 'hub')
    for address in ('hf://unc-nlp/lxmert/model.safetensors', 'hf://unc-nlp/lxmert@main/onnx/model.safetensors'):
        path.unlink(missing_ok=True)
        fetch(address, path)
        assert_only(path, OTHER if 'onnx' in address else CONTENT)
        assert path.samefile(found) is ('onnx' not in address)
    assert any(line.startswith('GET /unc-nlp/lxmert/resolve/') for line in hub.seen)
    path.unlink()
    with pytest.raises(DownloadError, match=f'expected sha256 {"0" * 64}, found {SHA256}'):
        fetch('hf://unc-nlp/lxmert/model.safetensors', path, sha256='0' * 64)
    assert nothing(path) and found.read_bytes() == CONTENT


@pytest.mark.parametrize(('name', 'files'), [
    ('unc-nlp/lxmert', 'README.md answers.json config.json model.safetensors tokenizer_config.json vocab.txt'),
    ('hf://unc-nlp/lxmert@v1', 'README.md answers.json config.json model.safetensors tokenizer_config.json vocab.txt'),
    ('old/bert-1.5', 'config.json pytorch_model.bin')])
def test_a_snapshot_of_the_hub(hub, monkeypatch, name, files):
    folder = cached_path(name)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob('*')) == files.split()
    hub.seen.clear()
    assert cached_path(name, offline=True) == folder and hub.seen == []
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert cached_path(name) == folder and hub.seen == []
    if 'lxmert' in name:
        file = name.replace('unc-nlp/lxmert', 'hf://unc-nlp/lxmert').replace('hf://hf://', 'hf://') + '/config.json'
        assert cached_path(file) == folder / 'config.json' and hub.seen == []


@pytest.mark.parametrize(('name', 'told'), [
    ('unc-nlp/none', 'no such file or folder here, and the hub does not give it'),
    ('hf://unc-nlp/lxmert/none.bin', 'the hub does not give it'),
    ('none/none', 'in the repository, found none'),
    ('hf://unc-nlp', 'expected hf://owner/name')])
def test_what_the_hub_does_not_have(hub, name, told):
    with pytest.raises(DownloadError, match=rf'^{name}: .*{told}') as caught:
        cached_path(name)
    assert_one_line(caught.value)


@pytest.mark.parametrize('name', ['unc-nlp/lxmert', 'hf://unc-nlp/lxmert/config.json'])
def test_the_hub_offline(hub, name):
    with pytest.raises(DownloadError, match=rf'^{name}: .*copy \S+/hub/models--unc-nlp--lxmert from .*as data/lxmert'):
        cached_path(name, offline=True, to='data/lxmert')
    assert hub.seen == []


def test_the_hub_gone_but_cached(hub, monkeypatch):
    folder = cached_path('unc-nlp/lxmert')
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{taken.getsockname()[1]}')
        assert cached_path('unc-nlp/lxmert') == folder
        with pytest.raises(DownloadError, match=r'old/bert-1\.5: .*the hub does not give it'):
            cached_path('old/bert-1.5')
