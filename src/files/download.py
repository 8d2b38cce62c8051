"""Download files by address (http, https, s3, hf): each is complete or absent, resumed after a cut, verified, cached."""

import hashlib
import os
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from files import atomic
from files.json_files import read_json
from files.text import printable

TRIES = 5  # connections in a row that bring a download no further, before it is given up
MIN_RATE = 1000  # bytes a second that a connection brings, else it brought the download no further
MAX_UNKNOWN = 2_000_000_000  # bytes of a file of which nobody says the size
MAX_VERSION = 500  # characters, which are sent back to resume
CHUNK = 1 << 17  # bytes
SCHEMES = ('http://', 'https://', 's3://', 'hf://')
# The files of a repository on the hub that make a model; pytorch_model.bin only where it has no safetensors.
SNAPSHOT = ['config.json', 'vocab.txt', 'tokenizer*.json', 'special_tokens_map.json', 'answers.json', 'README.md',
            '*.safetensors']
HTML = 'expected a file, found an html page (of a login, or of an error)'


class DownloadError(OSError):
    """A file cannot be downloaded, or is not what was expected. The message names the address and what to do."""

    def __init__(self, message):
        super().__init__(printable(message))  # it may quote the server


class Interrupted(Exception):
    """A connection ended before the file was complete."""


class Unchanged(Exception):
    """The server still has the version that is cached."""


def cache_folder() -> Path:
    """The folder for files downloaded by cached_path: LXRT_CACHE, else ~/.cache/lxrt."""
    return Path(os.environ.get('LXRT_CACHE') or '~/.cache/lxrt').expanduser()


def is_offline(offline=False) -> bool:
    """Whether downloads are forbidden, by the argument or by HF_HUB_OFFLINE (read at each call)."""
    return offline or os.environ.get('HF_HUB_OFFLINE', '').lower() in ('1', 'true', 'yes', 'on')


def is_address(name) -> bool:
    return str(name).startswith(SCHEMES)


def fetch(address, path, size=None, sha256=None) -> Path:
    """Download one file to `path` and return that; an existing file is verified and kept.

    size: bytes, sha256: hexadecimal, where they are known. An interrupted download stays in `path`.part, and later calls resume
    it. If several processes fetch the same path, one downloads and the others wait. Raises DownloadError; OSError where the disk
    cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise DownloadError(f'{path}: expected the name of a file for {address}, found a folder; name a file in it')
    if not path.is_file():
        with locked(path):
            if not path.is_file():
                obtain(address, path, size, sha256)
                note_of(f'{path}.part').unlink(missing_ok=True)
                return path
    if fault := find_fault(path, size, sha256):
        raise DownloadError(f'{path}: {fault}; move it to another folder to download it again from {address}')
    return path


def cached_path(name, offline=False) -> Path:
    """The local path of a file or folder, downloaded to cache_folder() if `name` is an address.

    name: an http(s) or s3 address, whose cached copy is replaced if the server has another version;
    hf://owner/name[@revision]/file; hf://owner/name[@revision], the folder of a model (the SNAPSHOT files); or a local path.
    offline: use the cached copy, without a request. Raises FileNotFoundError, DownloadError; OSError where the disk cannot be
    written.
    """
    name, offline = str(name), is_offline(offline)
    if name.startswith('hf://'):
        return hub_path(name, offline)
    if is_address(name):
        return cached_file(name, offline)
    if not Path(name).exists():
        raise FileNotFoundError(f'{name}: no such file or folder, and no address ({", ".join(SCHEMES)}); check the name')
    return Path(name)


def cached_file(address, offline):
    """The cached copy of a file on an http(s) or s3 server; up to date, unless offline."""
    name = Path(re.sub(r'[^\w.-]', '_', unquote(urlsplit(address).path).rstrip('/').rpartition('/')[2], flags=re.ASCII) or 'file')
    path = cache_folder() / f'{name.stem[:80]}-{hashlib.sha256(address.encode()).hexdigest()[:16]}{name.suffix[:20]}'
    if offline:
        if not path.is_file():
            raise absent(address, path)
        return path
    with locked(path):
        try:
            obtain(address, path, cached_version=read_note(path).get('version') if path.is_file() else None)
            os.replace(note_of(f'{path}.part'), note_of(path))
        except Unchanged:
            pass
        except DownloadError as error:
            advice = f'; --offline uses the copy that was downloaded before, {path}' if path.is_file() else ''
            raise DownloadError(f'{error}{advice}') from None
    return path


def obtain(address, path, size=None, sha256=None, cached_version=None):
    """Download to `path`, whose lock the caller holds, and replace what is there. Raises Unchanged if that is cached_version."""
    part = Path(f'{path}.part')
    if address.startswith('hf://'):
        source = hub_path(address, is_offline()).resolve()
        remove(part)
        try:
            os.link(source, part)
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(source, part)
    elif is_offline():
        raise absent(address, path)
    else:
        download(address, part, size, cached_version)
    if fault := find_fault(part, size, sha256):
        remove(part)
        raise DownloadError(f'{address}: {fault}; the download is removed: check the address, then try again')
    atomic.sync(part)
    os.replace(part, path)


def find_fault(file, size, sha256):
    """What is wrong with a downloaded file, or None."""
    if size not in (None, actual := file.stat().st_size):
        return f'expected {size:,} bytes, found {actual:,}'
    if not actual and size is None:
        return 'expected a file, found an empty one'
    with open(file, 'rb') as opened:
        head = opened.read(512).lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if head.startswith((b'<!doctype html', b'<html')):
        return HTML
    if sha256 and (digest := atomic.sha256(file)) != sha256.lower():
        return f'expected sha256 {sha256}, found {digest}'


def locked(path):
    return atomic.locked(path, lambda: print(f'{path}: another process downloads it; waiting', file=sys.stderr, flush=True))


def absent(address, path):
    return DownloadError(f'{address}: not downloaded yet, and nothing is downloaded offline; put the file there as {path}')


def note_of(file):
    """The json file that records of which version of which address `file` is."""
    return Path(f'{file}.json')


def remove(part):
    """Removes a file that was not downloaded completely, and its note."""
    for leftover in (part, note_of(part)):
        leftover.unlink(missing_ok=True)


def read_note(file):
    """The {'address', 'version', 'total'} of a file; {} if it has no readable note."""
    try:
        note = read_json(note_of(file), 'the note of a download', dict)
        kinds = {'address': str, 'version': str | None, 'total': int | None}
        valid = note.keys() == kinds.keys() and all(map(isinstance, note.values(), map(kinds.get, note)))
        return note if valid and note['version'] == sendable(note['version']) else {}
    except (OSError, ValueError):
        return {}


def one_line(error):
    """A library's error in one line; of requests the cause, which it wraps."""
    cause = getattr(error.args[0] if error.args else None, 'reason', None) or error
    text = next((text for text in cause.args if isinstance(text, str)), cause)
    return ' '.join(f'{type(cause).__name__}: {text}'.split())[:300]


# ---------------------------------------------------------------------------- http and s3


def download(address, part, size, cached_version):
    """Complete the file `part`, over as many connections as it takes. Raises DownloadError after TRIES without progress."""
    failures, largest = 0, part.stat().st_size if part.exists() else 0
    with atomic.byte_bar(part.stem, size) as bar:
        while True:
            begin = time.monotonic()
            try:
                return receive(address, part, size, cached_version, bar)
            except Interrupted as error:
                reason = error
            received = part.stat().st_size if part.exists() else 0
            failures = 0 if received - largest > MIN_RATE * (time.monotonic() - begin) else failures + 1
            largest = max(largest, received)
            if failures == TRIES:
                raise DownloadError(f'{address}: {reason}, {TRIES} times; try again later, or download it by hand')
            bar.write(f'{address}: {printable(reason)}, after {received:,} bytes; trying again', file=sys.stderr)
            time.sleep(2 ** failures / 2)


def receive(address, part, size, cached_version, bar):
    """Append to `part` what one connection brings. Raises Interrupted where it is not complete then, Unchanged, DownloadError."""
    from files import http_client

    note, offset, headers = read_note(part), 0, {}
    if note.get('address') == address and note['version'] and note['total'] and part.exists():
        offset = part.stat().st_size
        if offset == note['total']:  # the process was killed before it could rename the file
            return
    if offset:
        headers = {'Range': f'bytes={offset}-', 'If-Range': note['version']}
    elif cached_version:
        headers = {'If-None-Match' if '"' in cached_version else 'If-Modified-Since': cached_version}
    with http_client.get(address, s3_url(address) if address.startswith('s3://') else address, headers) as response:
        status, (first, version, total) = response.status_code, describe(response)
        if cached_version and not offset and (status == 304 or (status == 200 and version == cached_version)):
            raise Unchanged
        remote = {'address': address, 'version': version, 'total': total}
        if first is None or (first > 0 and (first != offset or remote != note)):
            remove(part)
            raise Interrupted('the file has changed on the server, or the server cannot resume; starting again')
        check(address, response, total, size)
        if first == 0:  # also where the file has changed, or the server does not know ranges
            part.write_bytes(b'')  # before the note, which must never describe the bytes of another version
            atomic.write_json(note_of(part), remote)
        atomic.check_free_space(part.parent, (total or size or first) - first, address, 'make room')
        bar.total, bar.n = total, first
        most = next(number for number in (total, size, MAX_UNKNOWN) if number is not None)
        with atomic.naming(part), open(part, 'ab') as file:
            for block in http_client.blocks(response, CHUNK):
                if file.tell() + len(block) > most:
                    remove(part)
                    if first:
                        raise Interrupted('the server sends more than the rest of the file; starting again')
                    raise DownloadError(f'{address}: expected at most {most:,} bytes, the server sends more; check the address')
                file.write(block)
                bar.update(len(block))
    if total not in (None, part.stat().st_size):
        raise Interrupted(f'expected {total:,} bytes, the connection was cut')


def describe(response):
    """(first byte that the body has of the file, version, bytes of the file). version: ETag or Last-Modified, or None.

    The first is None where the server does not send the range that was asked for, the last where it does not say.
    """
    length, etag = response.headers.get('Content-Length'), response.headers.get('ETag')
    if etag and etag.startswith('W/'):  # a weak one, which may not be used to resume
        etag = response.headers.get('Last-Modified', etag)
    version = sendable(etag or response.headers.get('Last-Modified'))
    if response.status_code == 206:
        numbers = re.fullmatch(r'bytes (\d{1,18})-\d{1,18}/(\d{1,18})', response.headers.get('Content-Range', ''))
        return (int(numbers[1]), version, int(numbers[2])) if numbers else (None, version, None)
    return None if response.status_code == 416 else 0, version, int(length) if re.fullmatch(r'\d{1,18}', length or '') else None


def sendable(version):
    """The version if it can be sent to the server as a header, else None."""
    return version if version and re.fullmatch(r'[!-~]([ -~]*[!-~])?', version) and len(version) <= MAX_VERSION else None


def check(address, response, total, size):
    """Raises DownloadError if a response is not the file, or cannot be known to be complete."""
    status, headers, path = response.status_code, response.headers, urlsplit(address).path
    if status not in (200, 206):
        raise DownloadError(f'{address}: the server answered {status} {response.reason}; check the address, try again later, or '
                            'download it by hand')
    if headers.get('Content-Type', '').startswith('text/html'):
        raise DownloadError(f'{address}: {HTML}; open it in a browser, and download the file by hand')
    if headers.get('Content-Encoding', 'identity') != 'identity' and not path.endswith(('.gz', '.tgz')):
        raise DownloadError(f'{address}: the server compresses the file ({headers["Content-Encoding"]}); download it by hand')
    if total is None and not response.raw.chunked:
        raise DownloadError(f'{address}: the server does not send the length of the file, so that a cut cannot be detected; '
                            'download it by hand')
    if None not in (size, total) and size != total:
        raise DownloadError(f'{address}: expected {size:,} bytes, the server has {total:,}; check the address')


def s3_url(address):
    """A signed https address of s3://bucket/key; boto3 knows the keys, if there are any, the region and the endpoint."""
    import boto3
    from botocore import UNSIGNED, exceptions
    from botocore.config import Config

    bucket, _, key = address.removeprefix('s3://').partition('/')
    try:
        session = boto3.Session()
        client = session.client('s3', config=Config(signature_version='s3v4' if session.get_credentials() else UNSIGNED))
        client.head_object(Bucket=bucket, Key=key)  # raises what is wrong, and finds the bucket's region
        return client.generate_presigned_url('get_object', {'Bucket': bucket, 'Key': key})
    except (exceptions.ClientError, exceptions.BotoCoreError, ValueError) as error:
        raise DownloadError(f"{address}: {one_line(error)}; check the address, the connection and this machine's AWS "
                            'settings') from None


# ---------------------------------------------------------------------------- the hub


def hub_path(address, offline):
    """The path of a file, or of the folder of a model, in the hub's cache below cache_folder().

    huggingface_hub resumes, verifies and updates it.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    parts = re.fullmatch(r'hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?', address)
    if not parts:
        raise DownloadError(f'{address}: expected hf://owner/name[@revision][/file]; correct the address')
    repository, revision, file = parts.groups()
    cache = cache_folder() / 'hub'
    # Passed each time: the library reads the environment only when it is imported.
    options = {'revision': revision and unquote(revision), 'cache_dir': cache, 'local_files_only': offline,
               'endpoint': os.environ.get('HF_ENDPOINT')}
    try:
        if file:
            return Path(hf_hub_download(repository, file, **options))
        # A pattern matches in subfolders too, where weights of other frameworks lie.
        snapshot = partial(snapshot_download, repository, ignore_patterns='*/*', **options)
        folder = Path(snapshot(allow_patterns=SNAPSHOT))
        if not any(folder.glob('*.safetensors')):
            snapshot(allow_patterns='pytorch_model.bin')
    except Exception as error:  # huggingface_hub raises a dozen types, some of them without a common base
        if offline:
            raise DownloadError(f'{address}: not downloaded yet, and nothing is downloaded offline; copy '
                                f'{cache}/models--{repository.replace("/", "--")} from a machine that has it') from None
        raise DownloadError(f'{address}: the hub does not give it ({one_line(error)}); check the name and the connection; a '
                            'repository that asks for a login needs HF_TOKEN') from None
    if not folder.is_dir():
        raise DownloadError(f'{address}: expected some of {", ".join(SNAPSHOT)} in the repository, found none; check the name')
    return folder
