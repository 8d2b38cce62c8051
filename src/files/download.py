"""Files by address, http(s)://, s3:// and hf://: downloaded whole or not at all, resumed after a cut, checked, cached."""

import hashlib
import json
import os
import re
import shutil
import sys
import zlib
from contextlib import closing, contextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from time import sleep, time
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

TRIES = 5  # in a row without a byte, and beginnings anew, before a download is given up
LONGEST_WAIT = 60  # seconds between two tries, whatever the server asks for
TIMEOUTS = (10, 60)  # seconds to connect; between two bytes
CHUNK = 1 << 17  # bytes
SCHEMES = ('http://', 'https://', 's3://', 'hf://')
FILES = {'.bin', '.csv', '.gz', '.json', '.npy', '.npz', '.pt', '.pth', '.safetensors', '.tsv', '.txt', '.zip'}
# What of a repository on the hub makes a model here; its weights as .bin only where there are none as .safetensors.
SNAPSHOT = ['config.json', 'vocab.txt', 'tokenizer*.json', 'special_tokens_map.json', 'answers.json', 'README.md',
            '*.safetensors']
OLD_WEIGHTS = 'pytorch_model.bin'
HINTS = {401: 'it asks for a login: download it by hand', 403: 'you may not have it: ask its owner, or download it by hand',
         404: 'check the address', 410: 'it is gone: look for another address'}


class DownloadError(OSError):
    """A file that cannot be had from its address, or is not what was promised."""

    silent = False  # whether the server gave not a byte, however often it was asked


class _Again(Exception):
    """A cut or a busy server: the next try may go on from here. The second argument: seconds that the server asks to wait."""


class _Changed(Exception):
    """What has come so far cannot be gone on with: the file must be begun anew."""


class Version(NamedTuple):
    """What a server tells of a file by which another version is known. A strong ETag tells all; a date is kept beside none or
    a weak one."""

    etag: str | None
    modified: str | None
    total: int | None  # bytes; None: not told, and the server says itself where the body ends

    @property
    def resumable(self):
        return self.total is not None and bool(self.etag or self.modified)


class Answer(NamedTuple):
    """A server's answer: where in the file it begins, of which version, the bytes as they come, and how to end it early."""

    offset: int
    version: Version
    chunks: object
    close: object


def cache_folder() -> Path:
    """Where downloads are kept that have no place of their own: LXRT_CACHE, else ~/.cache/lxrt."""
    return Path(os.environ.get('LXRT_CACHE') or '~/.cache/lxrt').expanduser()


def is_offline(offline=False) -> bool:
    """Whether nothing may be downloaded: asked for, or by HF_HUB_OFFLINE, read now and not on import."""
    return offline or os.environ.get('HF_HUB_OFFLINE', '').lower() in ('1', 'true', 'yes', 'on')


def is_address(name) -> bool:
    return str(name).startswith(SCHEMES)


def fetch(address, path, size=None, sha256=None, tries=TRIES) -> Path:
    """Downloads one file, whole, to `path` and returns that; a file that is there already is checked and kept.

    size: bytes, sha256: hexadecimal, if they are known; tries: how often in a row the server may give nothing. What has come
    before a cut lies in `path`.part, with the version that it is of in `path`.part.json, and is gone on with, now and by later
    calls. Of several processes one downloads, the others wait. Raises DownloadError, which names the address, what happened and
    what to do.
    """
    path, there = Path(path), True
    if path.is_dir():
        raise DownloadError(f'{path}: expected the name of a file for {address}, found a folder; name a file in it')
    if not path.is_file():
        with _locked(path):
            if not (there := path.is_file()):
                _obtain(address, path, size, sha256, tries)
    if there and (fault := _fault(path, path, size, sha256)):
        raise DownloadError(f'{path}: {fault}; remove it, and it is downloaded again from {address}')
    return path


def cached_path(name, offline=False, to=None) -> Path:
    """The local path of a file or folder by its path, address or name on the hub, downloaded if need be.

    name: an existing path, which is returned as it is; an address, whose file is kept in cache_folder() and renewed when its
    server has another version; hf://owner/name[@revision]/file; hf://owner/name[@revision] or owner/name, the folder of a
    snapshot of the SNAPSHOT files. offline: use what is there and ask nobody. to: where the calling program looks for the
    file, for the message. Raises FileNotFoundError for anything else, and DownloadError.
    """
    if not is_address(name) and Path(name).exists():
        return Path(name)
    name = str(name)
    if name.startswith('hf://'):
        repository, revision, file = _hub_parts(name)
        offline = is_offline(offline)
        return _hub_file(name, offline, to) if file else _hub_snapshot(name, repository, revision, offline, to)
    if is_address(name):
        return _cached(name, offline, to)
    if re.fullmatch(r'\w[\w.-]*/\w[\w.-]*', name, re.ASCII) and Path(name).suffix not in FILES:
        return _hub_snapshot(name, name, None, is_offline(offline), to)
    raise FileNotFoundError(f'{name}: no such file or folder, and no address ({", ".join(SCHEMES)}); check the name')


# ---------------------------------------------------------------------------- one file


class _Part:
    """The bytes of `path` that have come, and a note that says which version of which address they are of."""

    def __init__(self, address, path):
        self.address, self.path, self.note = address, Path(f'{path}.part'), Path(f'{path}.part.json')
        self.version = _read_note(self.note, address)
        if not (self.version and self.version.resumable and self.path.is_file()):
            self.clear()

    @property
    def size(self):
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, version):
        self.path.write_bytes(b'')  # before the note: a kill in between must not put a new version's name on old bytes
        _write_note(self.note, self.address, version)
        self.version = version

    def clear(self):
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.version = None


def _obtain(address, path, size=None, sha256=None, tries=TRIES):
    """Downloads to `path`, whose lock the caller holds, over what is there. Returns the Version, of the hub's files None."""
    part = _Part(address, path)
    if address.startswith('hf://'):
        _link(_hub_file(address, is_offline(), path), part.path)
    elif is_offline():
        raise DownloadError(_absent(address, path))
    else:
        _download(address, part, size, tries)
    if fault := _fault(part.path, path, size, sha256):
        part.clear()
        raise DownloadError(f'{address}: {fault}; what came is removed: check the address, then try again')
    with open(part.path, 'rb') as file:
        os.fsync(file.fileno())
    os.replace(part.path, path)
    part.note.unlink(missing_ok=True)
    return part.version


def _download(address, part, size, tries):
    """Fills `part` to the length that the server promises, over as many connections as it takes."""
    ask, idle, begun = _ask(address), 0, 0
    with tqdm(desc=part.path.stem, initial=part.size, unit='B', unit_scale=True, disable=None) as bar:
        while True:
            before = part.size
            try:
                return _receive(ask, part, size, bar)
            except (_Again, _Changed) as error:
                fault = error
            reason, come = fault.args[0], part.size
            if isinstance(fault, _Changed) or (come and not part.version.resumable):
                part.clear()
                begun, reason = begun + 1, f'{reason}; beginning anew'
            else:
                idle = 0 if come > before else idle + 1
            if tries in (idle, begun):
                error = DownloadError(f'{address}: {reason}, {tries} times; try again later, or download it by hand')
                error.silent = not come
                raise error
            wait = min(fault.args[1] if fault.args[1:] else 2 ** idle / 2, LONGEST_WAIT)
            tqdm.write(f'{address}: {reason}, after {come:,} bytes; trying again in {wait:.0f} s', file=sys.stderr)
            sleep(wait)


def _receive(ask, part, size, bar):
    """One connection: appends to `part` what comes. Raises _Again if that is not all."""
    offset = part.size
    if offset and offset == part.version.total:  # a process was run_main between the last byte and the file's name
        return
    with closing(ask(offset, part.version if offset else None)) as answer:
        if offset and (answer.offset, answer.version) != (offset, part.version):
            raise _Changed('the file has changed, or the server cannot go on in the midst of it')
        if answer.offset != offset:
            raise _Changed(f'expected the file from byte {offset:,}, the server sends it from byte {answer.offset:,}')
        total = answer.version.total
        if None not in (size, total) and size != total:
            part.clear()
            raise DownloadError(f'{part.address}: expected {size:,} bytes, the server has {total:,}; check the address and size')
        _check_room(part, (total or size or offset) - offset)
        if not offset:
            part.begin(answer.version)
        bar.total, bar.n = total, offset
        with open(part.path, 'ab') as file:
            for chunk in answer.chunks:
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and part.size > total:
        raise _Changed(f'expected {total:,} bytes, more came')
    if total is not None and part.size < total:
        raise _Again(f'the connection was cut: {total:,} bytes were promised')


def _fault(file, path, size, sha256):
    """What is wrong with a downloaded file that is to be `path`, or None."""
    if size not in (None, found := file.stat().st_size):
        return f'expected {size:,} bytes, found {found:,}'
    with open(file, 'rb') as opened:
        head = opened.read(512).lstrip(b'\xef\xbb\xbf \t\r\n').lower()
        if head.startswith((b'<!doctype html', b'<html')) and not _is_page(path.name):
            return 'expected a file, found an html page, as servers send that ask for a login or are sorry'
        opened.seek(0)
        if sha256 and (digest := hashlib.file_digest(opened, 'sha256').hexdigest()) != sha256.lower():
            return f'expected sha256 {sha256}, found {digest}'


def _is_page(name):
    return name.lower().endswith(('.html', '.htm'))


def _check_room(part, needed):
    free = shutil.disk_usage(part.path.parent).free
    if needed > free:
        raise DownloadError(f'{part.address}: {needed:,} bytes are needed in {part.path.parent}, {free:,} are free; make '
                            'room, or choose another place (of the cache: LXRT_CACHE)')


@contextmanager
def _locked(path):
    """Holds the lock of those who download `path`. Raises DownloadError where the folder cannot be written."""
    lock = FileLock(f'{path}.lock')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f'{path}: another process downloads it; waiting', file=sys.stderr, flush=True)
            lock.acquire()
        yield
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(f'{path}: cannot be written ({error.strerror or error}); see whether the disk is full, or choose '
                            'another place (of the cache: LXRT_CACHE)') from None
    finally:
        lock.release()


def _read_note(path, address):
    """The Version that a note tells, or None if there is none, or it is cut off or of another address."""
    try:
        note = json.loads(path.read_text(encoding='utf-8'))
        return Version(note['etag'], note['modified'], note['size']) if note['address'] == address else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_note(path, address, version):
    note = {'address': address, 'etag': version.etag, 'modified': version.modified, 'size': version.total}
    path.write_text(json.dumps(note, indent=2) + '\n', encoding='utf-8')


def _absent(address, *places):
    return f'{address}: not there yet, and offline nothing is downloaded; put the file there as {" or ".join(map(str, places))}'


# ---------------------------------------------------------------------------- the cache


def _cached(address, offline, to):
    path = cache_folder() / _cache_name(address)
    note = Path(f'{path}.json')
    if is_offline(offline):
        if not _is_whole(path, _read_note(note, address)):
            raise DownloadError(_absent(address, path, *([to] if to else [])))
        return path
    with _locked(path):
        known = _read_note(note, address)
        if not (known and _is_whole(path, known)):
            _renew(address, path, note)
            return path
        try:
            if _is_newer(address, known):
                _renew(address, path, note)
        except DownloadError as error:
            print(f'{error}\nGoing on with the version that was downloaded before: {path}', file=sys.stderr, flush=True)
    return path


def _renew(address, path, note):
    version = _obtain(address, path)
    # After the file: killed in between, the old note makes the next call download once more.
    _write_note(note, address, version._replace(total=path.stat().st_size))


def _is_whole(path, known):
    """Whether a cached file is as its note says. One that was put there by hand has none."""
    return path.is_file() and (known is None or known.total == path.stat().st_size)


def _is_newer(address, known):
    """Whether the server has another version than the cached one; asks once."""
    if not (known.etag or known.modified):  # of which nobody can tell
        return True
    try:
        answer = _ask(address)(0, known)
    except (_Again, _Changed) as error:
        raise DownloadError(f'{address}: {error.args[0]}') from None
    if answer is None:
        return False
    answer.close()
    return answer.version._replace(total=answer.version.total or known.total) != known


def _cache_name(address):
    """The last part of an address, a digest of the whole, the suffix."""
    last = Path(re.sub(r'[^\w.-]', '_', unquote(urlsplit(address).path).rstrip('/').rpartition('/')[2], flags=re.ASCII) or 'file')
    return f'{last.stem[:80]}-{hashlib.sha256(address.encode()).hexdigest()[:16]}{last.suffix[:20]}'


# ---------------------------------------------------------------------------- servers


def _ask(address):
    """A function ask(offset, known) -> Answer for the file at an address from byte `offset` on.

    known: the Version that is wanted from there; with offset 0 the Version that is not wanted: None is returned if the server
    has no other. The server may answer with another offset and version. Raises _Again, _Changed, DownloadError.
    """
    return _ask_s3(address) if address.startswith('s3://') else _ask_http(address)


def _ask_http(address):
    import requests  # read here and below: only downloads need these libraries, and they take a second

    session = requests.Session()

    def ask(offset, known):
        headers = {'Accept-Encoding': 'identity'}  # packed, a file has another length, and no middle to go on from
        if offset:
            headers['Range'] = f'bytes={offset}-'
            if not (known.etag or '').startswith('W/'):  # which If-Range may not hold; the answer is compared in any case
                headers['If-Range'] = known.etag or known.modified
        elif known and (known.etag or known.modified):
            headers['If-None-Match' if known.etag else 'If-Modified-Since'] = known.etag or known.modified
        try:
            response = session.get(address, headers=headers, stream=True, timeout=TIMEOUTS)
        except (requests.ConnectionError, requests.Timeout) as error:
            raise _Again(_reason(error)) from None
        except requests.RequestException as error:
            raise DownloadError(f'{address}: {_reason(error)}; check the address') from None
        try:
            return None if response.status_code == 304 and known and not offset else _http_answer(address, response)
        except BaseException:
            response.close()
            raise

    return ask


def _http_answer(address, response):
    headers, offset = response.headers, 0
    if response.status_code not in (200, 206):
        raise _refusal(address, response.status_code, headers.get('Retry-After'))
    if headers.get('Content-Type', '').startswith('text/html') and not _is_page(urlsplit(address).path):
        raise DownloadError(f'{address}: expected a file, found an html page, as servers send that ask for a login or are sorry; '
                            'open it in a browser, and download the file by hand')
    total = int(length) if (length := headers.get('Content-Length', '')).isdigit() else None
    if response.status_code == 206:
        if not (told := re.fullmatch(r'bytes (\d+)-\d+/(\d+)', headers.get('Content-Range', ''))):
            raise _Changed(f'expected a Content-Range with a length, found {headers.get("Content-Range")!r}')
        offset, total = map(int, told.groups())
    chunks, encoding = _http_chunks(response), headers.get('Content-Encoding', 'identity').lower()
    if encoding in ('gzip', 'x-gzip') and not urlsplit(address).path.endswith(('.gz', '.tgz')):  # those are packed themselves
        chunks, total = _unpacked(chunks), None
    elif encoding not in ('identity', 'gzip', 'x-gzip'):
        raise DownloadError(f'{address}: expected the file as it is, the server packs it ({encoding}); download it by hand')
    elif total is None and not response.raw.chunked:
        raise DownloadError(f'{address}: the server does not say how long the file is, so that a cut would not be seen; download '
                            'it by hand')
    return Answer(offset, _version(headers.get('ETag'), headers.get('Last-Modified'), total), chunks, response.close)


def _http_chunks(response):
    from urllib3.exceptions import HTTPError

    try:
        yield from response.raw.stream(CHUNK, decode_content=False)
    except (HTTPError, OSError) as error:
        raise _Again(_reason(error)) from None


def _unpacked(chunks):
    """The bytes within a gzip stream. Raises _Again if it is not whole."""
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        for chunk in chunks:
            yield unpacking.decompress(chunk)
    except zlib.error as error:
        raise _Again(_reason(error)) from None
    if not unpacking.eof or unpacking.unused_data:
        raise _Again('the gzip stream is not whole')


def _ask_s3(address):
    import boto3
    from botocore import UNSIGNED, exceptions
    from botocore.config import Config

    bucket, _, key = address.removeprefix('s3://').partition('/')
    try:
        boto = boto3.Session()
        client = boto.client('s3', config=Config(
            signature_version=None if boto.get_credentials() else UNSIGNED, connect_timeout=TIMEOUTS[0], read_timeout=TIMEOUTS[1],
            retries={'total_max_attempts': 1}, response_checksum_validation='when_required'))  # a part has no checksum
    except (exceptions.BotoCoreError, ValueError) as error:
        raise DownloadError(f'{address}: {_reason(error)}; see the settings of AWS on this machine') from None

    def ask(offset, known):
        wanted = {'Range': f'bytes={offset}-', 'IfMatch': known.etag} if offset else {'IfNoneMatch': known and known.etag}
        try:
            found = client.get_object(Bucket=bucket, Key=key, **{name: value for name, value in wanted.items() if value})
        except exceptions.ClientError as error:
            told = error.response['ResponseMetadata']
            if told['HTTPStatusCode'] == 304 and known and not offset:
                return None
            raise _refusal(address, told['HTTPStatusCode'], told['HTTPHeaders'].get('retry-after')) from None
        except (exceptions.HTTPClientError, exceptions.ConnectionError) as error:
            raise _Again(_reason(error)) from None
        except exceptions.BotoCoreError as error:
            raise DownloadError(f'{address}: {_reason(error)}; expected s3://bucket/key, and settings of AWS that hold') from None
        told = re.fullmatch(r'bytes (\d+)-\d+/(\d+)', found.get('ContentRange', f'bytes 0-0/{found["ContentLength"]}'))
        if not told:
            raise _Changed(f'expected a Content-Range with a length, found {found["ContentRange"]!r}')
        first, total = map(int, told.groups())
        return Answer(first, _version(found.get('ETag'), None, total), _s3_chunks(found['Body']), found['Body'].close)

    return ask


def _s3_chunks(body):
    from botocore.exceptions import BotoCoreError

    try:
        yield from body.iter_chunks(CHUNK)
    except (BotoCoreError, OSError) as error:
        raise _Again(_reason(error)) from None


def _version(etag, modified, total):
    return Version(etag, None if etag and not etag.startswith('W/') else modified, total)


def _refusal(address, status, retry_after):
    """The exception that a status other than 200, 206 and 304 is."""
    phrase = f'the server answered {status}' + (f' {HTTPStatus(status).phrase}' if status in set(HTTPStatus) else '')
    if status in (412, 416):
        return _Changed(phrase)
    if status in (408, 429) or status >= 500:
        seconds = _seconds(retry_after)
        return _Again(phrase) if seconds is None else _Again(phrase, seconds)
    return DownloadError(f'{address}: {phrase}; {HINTS.get(status, "check the address")}')


def _seconds(retry_after):
    """Retry-After, a number of seconds or a date, in seconds from now; None if there is none that can be read."""
    try:
        return int(retry_after) if retry_after.isdigit() else max(0, parsedate_to_datetime(retry_after).timestamp() - time())
    except (AttributeError, ValueError):
        return None


def _reason(error):
    """A library's error in one line: of a chain of wrappings the innermost, which says what happened."""
    inner = getattr(error.args[0] if error.args else None, 'reason', None) or error
    text = inner.args[0] if inner.args and isinstance(inner.args[0], str) else inner
    return ' '.join(f'{type(inner).__name__}: {text}'.split())[:300]


# ---------------------------------------------------------------------------- the hub


def _hub_parts(address):
    """(owner/name, revision or None, file or None) of hf://owner/name[@revision][/file]."""
    parts = re.fullmatch(r'hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?', address)
    if not parts:
        raise DownloadError(f'{address}: expected hf://owner/name[@revision][/path/in/repository]; mend the address')
    repository, revision, file = parts.groups()
    return repository, revision and unquote(revision), file


def _hub_file(address, offline=False, to=None):
    from huggingface_hub import hf_hub_download

    repository, revision, file = _hub_parts(address)
    if not file:
        raise DownloadError(f'{address}: expected a file, hf://owner/name/path/in/repository; mend the address')
    with _hub_errors(address, repository, offline, to):
        return Path(hf_hub_download(repository, file, revision=revision, **_hub_settings(offline)))


def _hub_snapshot(name, repository, revision, offline, to):
    from huggingface_hub import snapshot_download

    def snapshot(patterns):
        # Patterns of the hub match in folders too, where other frameworks' weights lie.
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns='*/*',
                                      **_hub_settings(offline)))

    with _hub_errors(name, repository, offline, to):
        folder = snapshot(SNAPSHOT)
        if not any(folder.glob('*.safetensors')):
            snapshot([OLD_WEIGHTS])
    if not folder.is_dir():
        raise DownloadError(f'{name}: expected some of {", ".join([*SNAPSHOT, OLD_WEIGHTS])} in the repository, found none; '
                            'check the name')
    return folder


def _hub_settings(offline):
    # Told each time, since the library reads the environment only when it is imported.
    return {'cache_dir': cache_folder() / 'hub', 'local_files_only': offline, 'endpoint': os.environ.get('HF_ENDPOINT')}


@contextmanager
def _hub_errors(name, repository, offline, to):
    try:
        yield
    except Exception as error:  # the hub's library has a dozen kinds, some of them plain exceptions
        if offline:
            folder = cache_folder() / 'hub' / f'models--{repository.replace("/", "--")}'
            raise DownloadError(f'{name}: not there yet, and offline nothing is downloaded; copy {folder} from a machine '
                                'that has downloaded it' + (f', or put it there as {to}' if to else '')) from None
        here = '' if is_address(name) else 'no such file or folder here, and '
        told = DownloadError(f'{name}: {here}the hub does not give it ({_reason(error)}); check the name and the connection, and '
                             'for a repository that asks for a login set HF_TOKEN')
        told.silent = True
        raise told from None


def _link(source, path):
    """Makes `path` another name of a file, or a copy where that cannot be."""
    source = source.resolve()
    try:
        os.link(source, path)
    except OSError:  # another disk, or one that has no links
        shutil.copyfile(source, path)
