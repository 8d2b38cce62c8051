"""HTTP requests that end, whatever the server does: limited redirects, headers, waits, and a minimum rate.

Imported only to download, since these libraries take a second.
"""

import contextlib
import http.client
import io
import math
import time
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Retry
from urllib3.exceptions import HTTPError

from files.download import DownloadError, Interrupted, one_line

TRIES = 5  # of a request to a server that is busy or cannot be reached
TIMEOUTS = (10, 60)  # seconds to connect; between two bytes
RATE, PERIOD = 1000, 60  # bytes a second that a server sends at least, over so many seconds of waiting for it
MAX_HEADERS = 1_000_000  # bytes before the body
MAX_TRAILERS = 100  # lines after the body
MAX_REDIRECTS = 10
MAX_WAIT = 60  # seconds between two requests, whatever the server asks for
BUSY = (408, 429, 500, 502, 503, 504)  # HTTP statuses after which a request is repeated


class Rate:
    """Bytes a second, while they are waited for."""

    def __init__(self):
        self.seconds = self.count = 0

    def add(self, begin, count):
        """Counts bytes that were waited for since `begin`. Raises TimeoutError if there were too few in the last PERIOD."""
        self.seconds, self.count = self.seconds + time.monotonic() - begin, self.count + count
        if self.seconds > PERIOD:
            if self.count < RATE * PERIOD:
                raise TimeoutError(f'the server sends less than {RATE:,} bytes a second')
            self.seconds = self.count = 0


class TimedReader(io.RawIOBase):
    """Reads from a connection. Raises TimeoutError if it is slow, HTTPException after too many bytes of headers."""

    def __init__(self, stream):
        self.stream, self.rate, self.allowed = stream, Rate(), MAX_HEADERS

    def readable(self):
        return True

    def readinto(self, buffer):
        begin = time.monotonic()
        count = self.stream.readinto(buffer)
        self.rate.add(begin, count)
        self.allowed -= count
        if self.allowed < 0:
            raise http.client.HTTPException(f'more than {MAX_HEADERS:,} bytes of headers')
        return count

    def close(self):
        self.stream.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """A response that is read through a TimedReader."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(TimedReader(self.fp.detach()))

    def begin(self):
        super().begin()
        self.fp.raw.allowed = math.inf

    def _read_and_discard_trailer(self):  # without a limit in the standard library
        for _ in range(MAX_TRAILERS):
            if self.fp.readline(1000) in (b'\r\n', b'\n', b''):
                return
        raise http.client.HTTPException(f'more than {MAX_TRAILERS} lines after the file')


class TimedAdapter(HTTPAdapter):
    """The transport of requests with TimedResponses."""

    def init_poolmanager(self, *args, **options):
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = POOLS

    def proxy_manager_for(self, *args, **options):
        manager = super().proxy_manager_for(*args, **options)
        manager.pool_classes_by_scheme = POOLS
        return manager


class Session(requests.Session):
    """Leaves redirects to `get`. requests reads their bodies to the end, even where it does not follow them."""

    def resolve_redirects(self, *_, **__):
        return iter(())


def timed(pool):
    """A class of urllib3's connection pools with TimedResponses."""
    connection = type('TimedConnection', (pool.ConnectionCls,), {'response_class': TimedResponse})
    return type('TimedPool', (pool,), {'ConnectionCls': connection})


POOLS = {'http': timed(HTTPConnectionPool), 'https': timed(HTTPSConnectionPool)}


def get(address, url, headers):
    """The response to a request, whose body is not read yet. Servers that are busy or cannot be reached are asked again.

    Bodies of redirects and of busy servers are not read: nobody knows their end. address: for messages. Raises DownloadError.
    """
    session = Session()
    for scheme in ('http://', 'https://'):
        session.mount(scheme, TimedAdapter(max_retries=Retry(TRIES - 1, connect=2, backoff_factor=0.5,
                                                             respect_retry_after_header=False)))
    headers = headers | {'Accept-Encoding': 'identity'}  # a compressed body has another length, and cannot be resumed
    try:
        for _ in range(MAX_REDIRECTS + 1):
            response = ask(session, url, headers)
            if not (target := session.get_redirect_target(response)):
                return response
            response.close()
            target = urljoin(url, target)
            if url.lower().startswith('https:') and not target.lower().startswith('https:'):
                raise DownloadError(f'{address}: redirects to {target}, which is not encrypted; download it by hand')
            url = target
    except (requests.RequestException, HTTPError, ValueError) as error:
        raise DownloadError(f'{address}: {one_line(error)}; check the address and the connection') from None
    raise DownloadError(f'{address}: more than {MAX_REDIRECTS} redirects; check the address')


def ask(session, url, headers):
    """The response to one request of `get`."""
    for attempt in range(TRIES):
        response = session.get(url, headers=headers, stream=True, timeout=TIMEOUTS, allow_redirects=False)
        if response.status_code not in BUSY or attempt == TRIES - 1:
            return response
        response.close()
        wait = None
        with contextlib.suppress(HTTPError):  # neither a number nor a date
            wait = Retry(retry_after_max=MAX_WAIT).get_retry_after(response.raw)
        time.sleep(2 ** attempt / 2 if wait is None else wait)


def blocks(response, size):
    """Yields the body of a response in blocks of up to `size` bytes as they arrive. Raises Interrupted where it is cut."""
    rate, begin = Rate(), time.monotonic()
    try:
        while block := response.raw.read1(size, decode_content=False):
            rate.add(begin, len(block))  # here too: around each byte of a chunked body can be thousands of others
            yield block
            begin = time.monotonic()
    except (HTTPError, TimeoutError) as error:
        raise Interrupted(one_line(error)) from None
