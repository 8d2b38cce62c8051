"""Downloads are complete or absent: from local servers that cut, lie, change and refuse, from a local S3 and a local hub."""

import gzip
import hashlib
import itertools
import json
import os
import random
import re
import resource
import subprocess
import sys
import threading
import time
import traceback
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep

import pytest
from conftest import ROOT
from damage import byte_damage, value_damage
from file_server import FileServer, unused_address, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from files import download, http_client
from files.download import DownloadError, cache_folder, cached_path, fetch, is_address, is_offline

CONTENT = random.Random(1).randbytes(1_000_000)
OTHER = random.Random(2).randbytes(900_000)
PAGE = b'\n<!DOCTYPE html><html><body>Please log in.</body></html>'
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = 'data/model.pth'  # on the server


@pytest.fixture
def server():
    with FileServer({FILE: CONTENT}) as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch, tmp_path):
    """Settings of this machine are ignored, and nothing waits. The list of the seconds that would have been waited."""
    for name in [name for name in os.environ if re.match(r'(?i)AWS_|HF_|.*_proxy$|LXRT_CACHE', name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv('LXRT_CACHE', str(tmp_path / 'cache'))
    waits = []
    monkeypatch.setattr(time, 'sleep', waits.append)
    return waits


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'folder' / 'model.pth'


def assert_only(path, content=CONTENT):
    """The file is exact, and only its lock lies beside it."""
    assert path.read_bytes() == content
    assert {file.name for file in path.parent.iterdir()} <= {path.name, f'{path.name}.lock'}


def assert_nothing(path):
    """Neither the file nor a part of it is there."""
    assert not path.exists() and not path.with_name(f'{path.name}.part').exists()


def assert_one_line(error):
    """The libraries' own errors are not chained to it, and what servers say is escaped."""
    assert str(error).isprintable()
    assert ''.join(traceback.format_exception(error)).count('Traceback') == 1


def start_process(address, path):
    code = f'from files.download import fetch; fetch({address!r}, {str(path)!r})'
    return subprocess.Popen([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'PYTHONPATH': 'src'}, text=True,
                            stderr=subprocess.PIPE)


def write_part(path, address, content, version, total):
    """What a process leaves that was killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f'{path.name}.part').write_bytes(content)
    path.with_name(f'{path.name}.part.json').write_text(json.dumps({'address': address, 'version': version, 'total': total}))


# ---------------------------------------------------------------------------- cuts


def test_importing_is_cheap():
    code = 'import sys, files.download; print({"requests", "boto3", "huggingface_hub", "torch"} & sys.modules.keys())'
    run = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env={**os.environ, 'PYTHONPATH': 'src'}, capture_output=True)
    assert run.stdout.strip() == b'set()', run.stderr


def test_a_file_is_complete_and_kept(server, path):
    assert fetch(server.address(), path, len(CONTENT), SHA256) == path
    assert_only(path)
    fetch(server.address(), path, len(CONTENT), SHA256.upper())
    assert len(server.requests) == 1 and server.requests[0][1]['Accept-Encoding'] == 'identity'
    server.files['empty'] = b''
    assert fetch(server.address('empty'), path.with_name('empty'), size=0).read_bytes() == b''


CUTS = sorted(random.Random(0).sample(range(1, len(CONTENT)), 100))


@pytest.mark.parametrize('points', [CUTS, [0, 0], [1, 1], [len(CONTENT) - 1] * 2])
def test_only_what_is_missing_is_requested_after_a_cut(server, path, points):
    server.script = [{'until': point} for point in points]
    fetch(server.address(), path, sha256=SHA256)
    assert_only(path)
    assert server.offsets == [0, *points]


def test_resets(server, path):
    """A connection that is reset loses bytes that were on their way."""
    server.script = [{'until': point, 'reset': True} for point in CUTS]
    fetch(server.address(), path)
    assert_only(path)


def test_tries_without_progress_end(server, path, waits):
    """The part stays, and the next call resumes."""
    server.script = [{'until': 500}, *[{'until': 0}] * 5]
    with pytest.raises(DownloadError, match=rf'^{server.address()}: .*5 times; try again later') as caught:
        fetch(server.address(), path)
    assert_one_line(caught.value)
    assert len(server.requests) == 6 and waits == sorted(waits) and waits[-1] > waits[0]
    assert not path.exists()
    fetch(server.address(), path)
    assert_only(path)
    assert server.offsets[-1] == 500


def test_a_server_that_stops_sending(server, path, monkeypatch):
    monkeypatch.setattr(http_client, 'TIMEOUTS', (1, 0.2))
    hold = threading.Event()
    server.script = [{'until': 0, 'hold': hold}, {'until': 300_000, 'hold': hold}]
    fetch(server.address(), path)
    hold.set()
    assert_only(path)
    assert len(server.requests) == 3 and server.offsets[2] > 0


def test_a_server_that_is_down(path):
    address = f'{unused_address()}/x.pth'
    with pytest.raises(DownloadError, match=rf'^{address}: .*refused.*check the address') as caught:
        fetch(address, path)
    assert_one_line(caught.value)


def test_a_complete_part_needs_only_its_name(server, path):
    write_part(path, server.address(), CONTENT, '"one"', len(CONTENT))
    fetch(server.address(), path)
    assert_only(path)
    assert server.requests == []


@pytest.mark.parametrize('edit', [lambda note: note.replace('data', 'date'), lambda note: note[:30], lambda note: '[]',
                                  lambda note: '{"etag": "one"}'])
def test_a_part_of_unknown_origin_is_not_resumed(server, path, edit):
    write_part(path, server.address(), OTHER[:700], '"one"', len(CONTENT))
    note = path.with_name('model.pth.part.json')
    note.write_text(edit(note.read_text()))
    fetch(server.address(), path)
    assert_only(path)
    assert server.offsets == [0]


def test_one_of_two_processes_downloads(server, path):
    hold = threading.Event()
    server.script = [{'until': 500_000, 'hold': hold}]
    first = start_process(server.address(), path)
    wait_for(lambda: server.requests)
    second = start_process(server.address(), path)
    assert 'another process downloads it; waiting' in second.stderr.readline()
    hold.set()
    assert first.wait(20) == second.wait(20) == 0
    first.communicate(), second.communicate()
    assert_only(path)
    assert len(server.requests) == 1


# ---------------------------------------------------------------------------- files that change, and lies


@pytest.mark.parametrize(('etag', 'modified'), [
    ('"one"', None), ('W/"one"', None), ('W/"one"', formatdate(1e9)), (None, formatdate(1e9)), ('"one"', formatdate(1e9)),
    (None, None)])
def test_a_file_with_a_version_is_resumed(server, path, etag, modified):
    server.etag, server.modified = etag, modified
    server.script = [{'until': 400_000}, {'until': 800_000}]
    fetch(server.address(), path)
    assert_only(path)
    assert server.offsets == ([0, 400_000, 800_000] if etag or modified else [0, 0, 0])


@pytest.mark.parametrize('knows_conditions', [True, False])
@pytest.mark.parametrize(('old', 'new'), [
    ({'etag': '"one"'}, {'etag': '"two"'}), ({'etag': 'W/"one"'}, {'etag': 'W/"two"'}), ({'etag': '"one"'}, {'etag': None}),
    ({'etag': None, 'modified': formatdate(1e9)}, {'modified': formatdate(2e9)}), ({'etag': '"one"'}, {'etag': '"one"'}),
    ({'etag': None}, {})])
def test_a_file_that_changes_between_parts_starts_again(server, path, old, new, knows_conditions):
    """Whether or not the server obeys If-Range or tells a version; also where the same version has another length."""
    server.knows_conditions = knows_conditions
    server.script = [{'set': old, 'until': 400_000}, {'set': {'files': {FILE: OTHER}, **new}}]
    fetch(server.address(), path)
    assert_only(path, OTHER)


def test_a_server_without_ranges(server, path):
    server.knows_ranges = False
    server.script = [{'until': 400_000}] * 6
    with pytest.raises(DownloadError, match=r'IncompleteRead.*5 times'):
        fetch(server.address(), path)
    assert not path.exists()
    server.script = [{'until': 400_000}, {'until': 600_000}]
    fetch(server.address(), path)
    assert_only(path)


@pytest.mark.parametrize('lie', [
    {'status': 416, 'body': b''},
    {'headers': {'Content-Range': 'bytes 300000-999999/1000000'}},
    {'headers': {'Content-Range': 'bytes 400000-999999/*'}},
    {'headers': {'Content-Range': 'bytes 400000-999999/1000001'}},
    {'headers': {'Content-Range': None}},
    {'headers': {'ETag': None}},
    {'body': CONTENT[399_999:]},
], ids=lambda lie: str(lie)[:60])
def test_a_response_that_does_not_fit_is_not_appended(server, path, lie):
    server.script = [{'until': 400_000}, lie]
    fetch(server.address(), path)
    assert_only(path)
    assert server.offsets[:2] == [0, 400_000] and server.offsets[-1] == 0


def test_a_server_may_send_less_than_the_range(server, path):
    server.script = [{'until': 400_000},
                     {'body': CONTENT[400_000:500_000], 'headers': {'Content-Range': 'bytes 400000-499999/1000000'}}]
    fetch(server.address(), path)
    assert_only(path)
    assert server.offsets == [0, 400_000, 500_000]


def test_a_wrong_length(server, path):
    server.script = [{'headers': {'Content-Length': 1_000_100, 'Connection': 'close'}, 'body': CONTENT}] * 9
    with pytest.raises(DownloadError, match='5 times'):
        fetch(server.address(), path)
    assert not path.exists()
    path = path.with_name('other.pth')
    server.script = [{'headers': {'Content-Length': 900_000}}] * 2  # only what is known of the file shows that there is more
    with pytest.raises(DownloadError, match='expected 1,000,000 bytes, the server has 900,000'):
        fetch(server.address(), path, size=1_000_000)
    with pytest.raises(DownloadError, match=f'expected sha256 {SHA256}, found'):
        fetch(server.address(), path, sha256=SHA256)
    assert_nothing(path)


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_faults_ends_with_a_version_of_the_file_or_none(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('any') / 'model.pth'
    flag, cut = st.booleans(), st.integers(0, 50_000)
    with FileServer({FILE: CONTENT[:50_000]}) as server:
        server.etag, server.modified = data.draw(st.sampled_from([('"1"', None), ('W/"1"', formatdate(1e9)), (None, None)]))
        server.knows_ranges, server.knows_conditions = data.draw(flag), data.draw(flag)
        versions = [CONTENT[:50_000]]
        for kind in data.draw(st.lists(st.sampled_from(['cut', 'cut', 'change', 'fault']), min_size=4, max_size=15)):
            step = {'until': data.draw(cut)}
            if kind == 'change':
                number, start = len(versions) + 1, data.draw(st.integers(0, 100_000))
                versions.append(OTHER[start:start + data.draw(st.sampled_from([50_000, 1 + number * 999]))])
                step['set'] = {'files': {FILE: versions[-1]}, 'etag': server.etag and f'"{number}"',
                               'modified': server.modified and formatdate(1e9 + number)}
            elif kind == 'fault':
                step |= data.draw(st.sampled_from([
                    {'reset': True}, {'chunked': True}, {'headers': {'ETag': '"lie"'}}, {'status': 503, 'body': b'busy'},
                    {'status': 416, 'body': b''}, {'status': 404, 'body': b'none'}, {'headers': {'Content-Range': 'bytes 7-8/9'}},
                    {'body': PAGE, 'headers': {'Content-Type': 'text/html'}}]))
            server.script.append(step)
        for _ in range(5):
            try:
                fetch(server.address(), path)
            except DownloadError as error:
                assert_one_line(error)
                assert not path.exists()
            else:
                assert path.read_bytes() in versions
                break


def test_a_body_of_unknown_length(server, path):
    server.script = [{'headers': {'Content-Length': None}}]
    with pytest.raises(DownloadError, match='does not send the length of the file'):
        fetch(server.address(), path)
    assert_nothing(path)
    server.script = [{'chunked': True, 'until': 400_000}, {'chunked': True, 'until': 100}, {'chunked': True}]
    fetch(server.address(), path)
    assert_only(path)
    assert server.offsets == [0, 0, 0, 0]


def test_a_compressed_body_is_refused_but_a_gz_file_is_kept(server, path):
    server.script = [{'headers': {'Content-Encoding': 'gzip'}}]
    with pytest.raises(DownloadError, match=r'the server compresses the file \(gzip\)'):
        fetch(server.address(), path)
    assert_nothing(path)
    server.files['questions.json.gz'] = gzip.compress(CONTENT)
    server.script = [{'headers': {'Content-Encoding': 'x-gzip'}}]
    fetch(server.address('questions.json.gz'), path)
    assert_only(path, server.files['questions.json.gz'])


@pytest.mark.parametrize(('kind', 'body'), [
    ('text/html; charset=utf-8', PAGE), ('text/html', b'Sorry!'), ('application/octet-stream', PAGE), (None, PAGE)])
def test_a_page_is_not_a_file(server, path, kind, body):
    server.script = [{'body': body, 'headers': {'Content-Type': kind}}]
    with pytest.raises(DownloadError, match='found an html page'):
        fetch(server.address(f'{FILE}?dl=1'), path)
    assert_nothing(path)
    assert len(server.requests) == 1


def test_a_file_that_is_not_as_expected_is_removed(server, path):
    with pytest.raises(DownloadError, match=rf'^{server.address()}: expected 1,000,001 bytes, the server has 1,000,000'):
        fetch(server.address(), path, size=1_000_001)
    with pytest.raises(DownloadError, match=rf'^{server.address()}: expected sha256 {"0" * 64}, found {SHA256}; .*removed'):
        fetch(server.address(), path, sha256='0' * 64)
    assert_nothing(path)


def test_an_existing_file_is_verified_and_kept(server, path):
    path.parent.mkdir()
    path.write_bytes(OTHER)
    for expected, fault in (({'size': 5}, 'expected 5 bytes, found 900,000'), ({'sha256': SHA256}, f'expected sha256 {SHA256}')):
        with pytest.raises(DownloadError, match=rf'{path}: {fault}.*; move it'):
            fetch(server.address(), path, **expected)
    assert path.read_bytes() == OTHER and server.requests == []
    assert fetch(server.address(), path, size=len(OTHER)) == path


# ---------------------------------------------------------------------------- servers without an end


def answer(*headers, then=(), pause=0.0):
    """A `raw` of FileServer: a status line, headers, and `then` for ever, with a pause after each block."""
    def blocks():
        yield b''.join(b'%s\r\n' % line for line in (b'HTTP/1.1 200 OK', *headers)) + b'\r\n'
        for block in itertools.cycle(then):
            yield block
            sleep(pause)

    return {'raw': blocks}


CHUNKED = b'Transfer-Encoding: chunked'


@pytest.mark.parametrize(('size', 'most'), [(1_000_000, 1_000_000), (None, 2_000_000)])
def test_a_body_without_an_end(server, path, monkeypatch, size, most):
    monkeypatch.setattr(download, 'MAX_UNKNOWN', 2_000_000)
    server.script = [answer(CHUNKED, then=[b'%x\r\n%s\r\n' % (len(CONTENT), CONTENT)])]
    with pytest.raises(DownloadError, match=f'expected at most {most:,} bytes, the server sends more') as caught:
        fetch(server.address(), path, size)
    assert_one_line(caught.value)
    assert_nothing(path)
    assert len(server.requests) == 1


SLOW = {
    'status': {'raw': lambda: (sleep(0.02) or b'H' for _ in range(10 ** 6))},
    'headers': answer(pause=0.02, then=[b'']) | {'raw': lambda: itertools.chain(
        [b'HTTP/1.1 200 OK\r\nX: '], (sleep(0.02) or b'x' for _ in range(10 ** 6)))},
    'body': answer(b'Content-Length: 1000000', then=[b'x'], pause=0.02),
    'chunks': answer(CHUNKED, then=[b'1\r\nx\r\n'], pause=0.02),
    'chunk header': answer(CHUNKED, then=[b'1'], pause=0.02),
    'chunk extensions': answer(CHUNKED, then=[b'1;%s\r\nx\r\n' % bytes(1000).replace(b'\0', b'y')], pause=0.02),
}


@pytest.mark.parametrize('kind', SLOW)
def test_a_server_that_sends_too_slowly(server, path, monkeypatch, kind):
    monkeypatch.setattr(http_client, 'PERIOD', 0.1)
    monkeypatch.setattr(http_client, 'RATE', 1000)
    monkeypatch.setattr(http_client, 'TRIES', 2)
    server.script = [SLOW[kind]] * 20
    with pytest.raises(DownloadError, match=r'less than 1,000 bytes a second|[Tt]imed out') as caught:
        fetch(server.address(), path)
    assert_one_line(caught.value)
    assert not path.exists()
    server.script.clear()
    fetch(server.address(), path)
    assert_only(path)


def test_a_slow_start_is_no_progress(server, path, monkeypatch):
    monkeypatch.setattr(download, 'MIN_RATE', 10 ** 9)
    server.script = [{'until': number} for number in range(1, 100)]
    with pytest.raises(DownloadError, match='5 times'):
        fetch(server.address(), path)
    assert len(server.requests) == 5


@pytest.mark.parametrize('step', [
    {'raw': lambda: itertools.repeat(b'HTTP/1.1 100 Continue\r\n\r\n')},
    {'raw': lambda: itertools.chain([b'HTTP/1.1 200 OK\r\n'], itertools.repeat(b'X: y\r\n'))},
    {'raw': lambda: itertools.chain([b'HTTP/1.1 200 OK\r\nX: '], itertools.repeat(b'y' * 1000))},
    {'raw': lambda: itertools.chain([b'HTTP/1.1 200 OK\r\n' + CHUNKED + b'\r\n\r\n0\r\n'], itertools.repeat(b'X: y\r\n'))},
    {'raw': lambda: itertools.repeat(b'y' * 1000)},
], ids=['continue', 'headers', 'long header', 'trailers', 'noise'])
def test_headers_without_an_end(server, path, step):
    server.script = [step] * 50
    with pytest.raises(DownloadError) as caught:
        fetch(server.address(), path)
    assert_one_line(caught.value)
    assert len(str(caught.value)) < 600 and not path.exists()


@pytest.mark.parametrize('status', [b'302 Found\r\nLocation: /data/model.pth', b'503 Busy'])
def test_bodies_that_nobody_needs_are_not_read(server, path, status):
    """requests and urllib3 would read them into memory."""
    server.script = [{'raw': lambda: itertools.chain(
        [b'HTTP/1.1 %s\r\nContent-Length: 99999999999\r\n\r\n' % status], itertools.repeat(bytes(1 << 16)))}]
    fetch(server.address(), path)
    assert_only(path)


@pytest.mark.parametrize('location', ['file:///etc/passwd', 'ftp://127.0.0.1/x', 'data:,x', '//[', 'http://[', 'x' * 60_000,
                                      '\xff\xfe', 'gopher://127.0.0.1:1/', '//\x1b[2J/'])
def test_redirects_that_lead_nowhere(server, path, location):
    server.script = [{'status': 302, 'body': b'', 'headers': {'Location': location}}] + [{'status': 404, 'body': b''}] * 9
    with pytest.raises(DownloadError) as caught:
        fetch(server.address(), path)
    assert_one_line(caught.value)
    assert_nothing(path)


@pytest.mark.parametrize(('address', 'location', 'allowed'), [
    ('https://a/x', 'http://a/x', False), ('https://a/x', '//b/y', True), ('https://a/x', 'HTTP://b/y', False),
    ('HTTPS://a/x', 'http://b/y', False), ('https://a/x', 'file:///y', False), ('https://a/x', '/y', True),
    ('http://a/x', 'https://b/y', True), ('http://a/x', 'http://b/y', True)])
def test_a_redirect_stays_encrypted(path, monkeypatch, address, location, allowed):
    class Response:
        def __init__(self, url):
            self.status_code, self.headers = (302 if url == address else 404), {'location': location}
            self.is_redirect, self.reason = url == address, 'None'

        def close(self):
            pass

        __enter__, __exit__ = (lambda self: self), close.__get__

    asked = []
    monkeypatch.setattr(http_client, 'ask', lambda session, url, headers: asked.append(url) or Response(url))
    monkeypatch.setattr(Response, '__exit__', lambda self, *_: None)
    with pytest.raises(DownloadError, match='answered 404' if allowed else 'which is not encrypted'):
        fetch(address, path)
    assert len(asked) == 1 + allowed


def test_an_empty_file_is_not_complete(server, path):
    server.files[FILE] = b''
    for step in ({}, {'chunked': True}, {'headers': {'Content-Length': '0'}}):
        server.script = [step]
        with pytest.raises(DownloadError, match='expected a file, found an empty one') as caught:
            fetch(server.address(), path)
        assert_one_line(caught.value)
        assert_nothing(path)
    server.script = [{'status': 204}]
    with pytest.raises(DownloadError, match='answered 204'):
        fetch(server.address(), path)
    with pytest.raises(DownloadError, match='found an empty one'):
        cached_path(server.address())


def test_what_a_server_says_is_escaped(server, path):
    server.script = [{'raw': lambda: [b'HTTP/1.1 404 \x1b[2J Best 100.00\r\nContent-Length: 0\r\n\r\n']}]
    with pytest.raises(DownloadError, match=re.escape(r'answered 404 \x1b[2J Best')) as caught:
        fetch(server.address(), path)
    assert_one_line(caught.value)


@pytest.mark.parametrize('length', ['-5', 'x', '9' * 5000, '5, 6', '٣', '1e3'])
def test_lengths_that_are_no_numbers(server, path, length):
    server.script = [{'headers': {'Content-Length': length.encode().decode('latin1'), 'Connection': 'close'}}] * 9
    with pytest.raises((DownloadError, OSError)) as caught:
        fetch(server.address(), path)
    assert_one_line(caught.value)
    assert not path.exists()


@pytest.mark.parametrize('etag', ['"\x1b[2J"', '"\xe9"', f'"{"x" * 600}"'])
def test_a_version_that_cannot_be_sent_back(server, path, etag):
    server.script = [{'headers': {'ETag': etag}, 'until': 400_000}]
    fetch(server.address(), path)
    assert_only(path)
    assert server.offsets == [0, 0]


@given(st.data())
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_note_does_not_spoil_a_download(server, path, data):
    note = {'address': server.address(), 'version': '"one"', 'total': len(CONTENT)}
    path.unlink(missing_ok=True)
    write_part(path, server.address(), CONTENT[:-5000], '"one"', len(CONTENT))
    text = json.dumps(data.draw(value_damage(note))(note)).encode()
    path.with_name(f'{path.name}.part.json').write_bytes(data.draw(st.just(lambda text: text) | byte_damage(len(text)))(text))
    fetch(server.address(), path, sha256=SHA256)
    assert_only(path)


# ---------------------------------------------------------------------------- refusals, redirects, proxies, disks


@pytest.mark.parametrize('status', [304, 401, 403, 404, 410])
def test_a_refusal_is_final(server, path, waits, status):
    server.script = [{'status': status, 'body': b'no'}]
    with pytest.raises(DownloadError, match=rf'^{server.address()}: the server answered {status} \w+.*; check the address'):
        fetch(server.address(), path)
    assert len(server.requests) == 1 and waits == []
    assert_nothing(path)


@pytest.mark.parametrize('status', [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server, path, waits, status):
    server.script = [{'status': status, 'body': b'busy', 'headers': {'Retry-After': after}} for after in (7, 9999, None)]
    fetch(server.address(), path)
    assert_only(path)
    assert waits[:2] == [7, http_client.MAX_WAIT] and 0 < waits[2] < 60


def test_a_server_that_stays_busy(server, path):
    server.script = [{'status': 503, 'body': b'busy'}] * 9
    with pytest.raises(DownloadError, match=r'answered 503 Service Unavailable; .* try again later'):
        fetch(server.address(), path)
    assert len(server.requests) == 5


def test_redirects(server, path):
    with FileServer({FILE: CONTENT}) as other:
        server.script = [{'status': 302, 'body': b'', 'headers': {'Location': other.address()}}] * 2
        other.script = [{'until': 400_000}]
        fetch(server.address(), path)
        assert other.offsets == [0, 400_000]
    assert_only(path)
    server.script = [{'status': 302, 'body': b'', 'headers': {'Location': server.address()}}] * 99
    with pytest.raises(DownloadError, match='redirects'):
        fetch(server.address(), path.with_name('y.pth'))


@pytest.mark.parametrize('address', ['http://', 'http://[', 's3://', 's3://BUCKET WITH SPACES/x', 'hf://owner'])
def test_invalid_addresses(path, address):
    with pytest.raises(DownloadError, match=re.escape(address)):
        fetch(address, path)
    assert_nothing(path)


def test_a_disk_with_too_little_space(server, path, monkeypatch):
    usage = download.shutil.disk_usage('/')
    monkeypatch.setattr(download.shutil, 'disk_usage', lambda _: usage._replace(free=999_999))
    with pytest.raises(OSError, match=rf'{server.address()}: needs 0.0 GB in .*; make room'):
        fetch(server.address(), path)
    write_part(path, server.address(), CONTENT[:1], '"one"', len(CONTENT))  # space for the rest is enough
    fetch(server.address(), path)
    assert_only(path)


def test_a_disk_that_becomes_full(server, path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        with pytest.raises(OSError, match=rf"File too large: '{path}.part'"):
            fetch(server.address(), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not path.exists() and len(server.requests) == 1
    fetch(server.address(), path)
    assert_only(path)
    assert 0 < server.offsets[1] <= 500_000


def test_a_place_that_cannot_be_written(server, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=rf'{tmp_path}/file'):
        fetch(server.address(), tmp_path / 'file' / 'x.pth')
    with pytest.raises(DownloadError, match=rf'^{tmp_path}: .*found a folder'):
        fetch(server.address(), tmp_path)
    assert server.requests == []


# ---------------------------------------------------------------------------- the cache


@pytest.mark.parametrize(('value', 'offline'), [
    ('1', True), ('TRUE', True), ('Yes', True), ('on', True), ('0', False), ('', False)])
def test_offline_by_the_environment(monkeypatch, value, offline):
    assert is_offline(True) and not is_offline()
    monkeypatch.setenv('HF_HUB_OFFLINE', value)
    assert is_offline() is offline


def test_addresses_and_the_cache_folder(tmp_path, monkeypatch):
    assert all(map(is_address, ['http://a/b', 'https://a/b', 's3://a/b', 'hf://a/b']))
    assert not any(map(is_address, ['a/b', 'ftp://a/b', '/a/http://b', tmp_path]))
    assert cache_folder() == tmp_path / 'cache'
    monkeypatch.delenv('LXRT_CACHE')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_folder() == tmp_path / '.cache/lxrt'


def test_local_paths(tmp_path):
    assert cached_path(tmp_path) == tmp_path
    for name in ('none', 'owner/name', 'ftp://a/b', '/a/b'):
        with pytest.raises(FileNotFoundError, match=rf'^{name}: no such file'):
            cached_path(name)


def test_a_cached_file_is_replaced_when_the_server_has_another_version(server, capsys):
    path = cached_path(server.address())
    assert path.parent == cache_folder() and re.fullmatch(r'model-[0-9a-f]{16}\.pth', path.name) and path.read_bytes() == CONTENT
    assert cached_path(server.address()) == path
    assert [headers.get('If-None-Match') for _, headers in server.requests] == [None, '"one"']
    server.files[FILE], server.etag = OTHER, '"two"'
    assert cached_path(server.address()) == path and path.read_bytes() == OTHER
    assert cached_path(f'{server.address()}?v=2') != path
    assert cached_path(server.address(), offline=True).read_bytes() == OTHER
    assert capsys.readouterr().err == ''


def test_a_file_without_a_version_is_downloaded_each_time(server):
    server.etag = None
    assert cached_path(server.address()).read_bytes() == CONTENT
    server.files[FILE] = CONTENT[::-1]
    assert cached_path(server.address()).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(('etag', 'modified'), [('"one"', None), ('W/"one"', None), (None, formatdate(1e9))])
@pytest.mark.parametrize('knows_conditions', [True, False])
def test_a_cached_file_of_the_same_version_is_kept(server, etag, modified, knows_conditions):
    server.etag, server.modified, server.knows_conditions = etag, modified, knows_conditions
    path = cached_path(server.address())
    path.write_bytes(OTHER)  # shows whether it is downloaded again
    assert cached_path(server.address()).read_bytes() == OTHER and len(server.requests) == 2


@pytest.mark.parametrize('fault', [{'status': 503, 'body': b''}, {'status': 404, 'body': b''}, {'body': PAGE, 'headers': {
    'Content-Type': 'text/html', 'ETag': None}}, None], ids=str)
def test_a_cached_file_whose_server_fails(fault):
    """The error names --offline, which uses the copy."""
    with FileServer({FILE: CONTENT}) as server:
        path = cached_path(server.address())
        server.script, server.etag = [fault] * 5, '"two"'
        with pytest.raises(DownloadError, match=rf'^{server.address()}: .*; --offline uses the copy .* {path}$'):
            if fault is None:
                server.__exit__()
            cached_path(server.address())
        assert cached_path(server.address(), offline=True).read_bytes() == CONTENT


def test_offline_says_which_file_to_put_where(server, tmp_path, monkeypatch):
    with pytest.raises(DownloadError, match=rf'^{server.address()}: .*put the file there as (\S+)$') as caught:
        cached_path(server.address(), offline=True)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(DownloadError, match='offline'):
        fetch(server.address(), tmp_path / 'x.pth')
    place = re.search(r'there as (\S+)', str(caught.value))[1]
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with open(place, 'wb') as file:
        file.write(CONTENT)
    assert str(cached_path(server.address())) == place
    assert server.requests == []


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
    """A client with keys to a bucket 'lxmert' with 'lxr 955/x.pth' for all and own.pth for its owner."""
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
    with pytest.raises(DownloadError, match=r's3://lxmert/own\.pth: .*403.*Forbidden'):
        fetch('s3://lxmert/own.pth', path.with_name('own.pth'))
    with pytest.raises(DownloadError, match='404') as caught:
        fetch('s3://none/x.pth', path.with_name('own.pth'))
    assert_one_line(caught.value)


def test_s3_with_keys(bucket, path, monkeypatch):
    monkeypatch.setenv('AWS_ACCESS_KEY_ID', 'key')
    monkeypatch.setenv('AWS_SECRET_ACCESS_KEY', 'secret')
    fetch('s3://lxmert/own.pth', path)
    assert_only(path)


def test_s3_resumes_or_starts_again(bucket, path):
    etag = bucket.head_object(Bucket='lxmert', Key='lxr 955/x.pth')['ETag']
    for content, version in ((CONTENT[:300_000], etag), (OTHER[:300_000], '"other"')):
        path.unlink(missing_ok=True)
        write_part(path, 's3://lxmert/lxr 955/x.pth', content, version, len(CONTENT))
        fetch('s3://lxmert/lxr 955/x.pth', path)
        assert_only(path)


def test_s3_in_the_cache(bucket):
    path = cached_path('s3://lxmert/lxr 955/x.pth')
    path.write_bytes(CONTENT[::-1])
    assert cached_path('s3://lxmert/lxr 955/x.pth').read_bytes() == CONTENT[::-1]
    bucket.put_object(Bucket='lxmert', Key='lxr 955/x.pth', Body=OTHER, ACL='public-read')
    assert cached_path('s3://lxmert/lxr 955/x.pth').read_bytes() == OTHER


def test_s3_cut_and_changed(server, path, no_keys, monkeypatch):
    monkeypatch.setenv('AWS_ENDPOINT_URL', f'http://127.0.0.1:{server.server_port}')
    server.files['bucket/x.pth'] = CONTENT
    points = [100_000, 300_000, 500_000]
    server.script = [*[{'until': point} for point in points], {'set': {'files': {'bucket/x.pth': OTHER}, 'etag': '"two"'}}]
    fetch('s3://bucket/x.pth', path)
    assert_only(path, OTHER)
    assert server.offsets == [0, *points]


# ---------------------------------------------------------------------------- the hub


class Hub(BaseHTTPRequestHandler):
    """Answers huggingface_hub as huggingface.co does, with server.files = {'owner/name': {file: bytes}}."""

    protocol_version = 'HTTP/1.1'
    commit = 'c' * 40

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.requests.append(f'{self.command} {self.path}')
        path, _, _ = self.path.partition('?')
        if api := re.fullmatch(r'/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)', path):
            files = self.server.files.get(api[1])
            if files is None:
                return self.answer(404, b'{}', {'X-Error-Code': 'RepoNotFound'})
            tree = [{'type': 'file', 'path': name, 'size': len(content), 'oid': hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()]
            revision = {'id': api[1], 'modelId': api[1], 'sha': self.commit, 'siblings': []}
            return self.answer(200, json.dumps(revision if api[2] == 'revision' else tree).encode(),
                               {'Content-Type': 'application/json'})
        repository, file = re.fullmatch(r'/([^/]+/[^/]+)/resolve/[^/]+/(.+)', path).groups()
        content = self.server.files.get(repository, {}).get(file)
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
    server.requests = []
    server.files = {
        'unc-nlp/lxmert': {
            'config.json': b'{}', 'vocab.txt': b'[PAD]', 'tokenizer_config.json': b'{}', 'answers.json': b'[]', 'README.md': b'#',
            'model.safetensors': CONTENT, 'pytorch_model.bin': OTHER, 'tf_model.h5': OTHER, 'onnx/model.safetensors': OTHER},
        'old/bert-1.5': {'config.json': b'{}', 'pytorch_model.bin': OTHER, 'flax_model.msgpack': b''},
        'none/none': {'movie.avi': b''}}
    monkeypatch.setenv('HF_ENDPOINT', f'http://127.0.0.1:{server.server_port}')
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_of_the_hub(hub, path):
    cached = cached_path('hf://unc-nlp/lxmert/model.safetensors')
    assert cached.read_bytes() == CONTENT and cached.is_relative_to(cache_folder() / 'hub')
    for address in ('hf://unc-nlp/lxmert/model.safetensors', 'hf://unc-nlp/lxmert@main/onnx/model.safetensors'):
        path.unlink(missing_ok=True)
        fetch(address, path)
        assert_only(path, OTHER if 'onnx' in address else CONTENT)
        assert path.samefile(cached) is ('onnx' not in address)
    path.unlink()
    with pytest.raises(DownloadError, match=f'expected sha256 {"0" * 64}, found {SHA256}'):
        fetch('hf://unc-nlp/lxmert/model.safetensors', path, sha256='0' * 64)
    assert_nothing(path)
    assert cached.read_bytes() == CONTENT


@pytest.mark.parametrize(('name', 'files'), [
    ('hf://unc-nlp/lxmert', 'README.md answers.json config.json model.safetensors tokenizer_config.json vocab.txt'),
    ('hf://unc-nlp/lxmert@v1', 'README.md answers.json config.json model.safetensors tokenizer_config.json vocab.txt'),
    ('hf://old/bert-1.5', 'config.json pytorch_model.bin')])
def test_a_model_of_the_hub(hub, monkeypatch, name, files):
    folder = cached_path(name)
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob('*')) == files.split()
    hub.requests.clear()
    assert cached_path(name, offline=True) == folder
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    assert cached_path(name) == folder and cached_path(f'{name}/config.json') == folder / 'config.json'
    assert hub.requests == []


@pytest.mark.parametrize(('name', 'message'), [
    ('hf://unc-nlp/none', 'the hub does not give it'),
    ('hf://unc-nlp/lxmert/none.bin', 'the hub does not give it'),
    ('hf://none/none', 'in the repository, found none'),
    ('hf://unc-nlp', 'expected hf://owner/name')])
def test_what_the_hub_does_not_have(hub, name, message):
    with pytest.raises(DownloadError, match=rf'^{name}: .*{message}') as caught:
        cached_path(name)
    assert_one_line(caught.value)


@pytest.mark.parametrize('name', ['hf://unc-nlp/lxmert', 'hf://unc-nlp/lxmert/config.json'])
def test_the_hub_offline(hub, name):
    with pytest.raises(DownloadError, match=rf'^{name}: .*copy \S+/hub/models--unc-nlp--lxmert from a machine'):
        cached_path(name, offline=True)
    assert hub.requests == []


def test_the_hub_down(hub, monkeypatch):
    folder = cached_path('hf://unc-nlp/lxmert')
    monkeypatch.setenv('HF_ENDPOINT', unused_address())
    assert cached_path('hf://unc-nlp/lxmert') == folder
    with pytest.raises(DownloadError, match=r'hf://old/bert-1\.5: .*the hub does not give it'):
        cached_path('hf://old/bert-1.5')
