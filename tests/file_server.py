"""A server on this machine that sends files as HTTP demands, except where a test's script says otherwise."""

import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep

import pytest


def wait_for(condition):
    """Waits until condition() is true, also where a test has replaced time.sleep."""
    for _ in range(3000):
        if condition():
            return
        sleep(0.01)
    pytest.fail('waited in vain')


def unused_address():
    """The address of a server that is down."""
    with socket.socket() as reserved:
        reserved.bind(('127.0.0.1', 0))
        return f'http://127.0.0.1:{reserved.getsockname()[1]}'


class FileServer(ThreadingHTTPServer):
    """Serves `files`, {path: bytes}, and records all requests but HEAD. Used in a `with`.

    script: what to do differently at the n-th request, a list of dicts with any of: status; headers, which replace the usual ones
    (None: left out); body, instead of the rest of the file; until, the byte of the file at which the connection is cut; reset,
    whether it is cut by a reset; hold, an Event to wait for at `until` instead of a cut; chunked; set, attributes of this server
    to change before the request, such as {'etag': None}; raw, a function that returns all blocks to send, headers too, which may
    have no end.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, files=()):
        super().__init__(('127.0.0.1', 0), Handler)
        self.files, self.script, self.requests = dict(files), [], []
        self.etag, self.modified = '"one"', None
        self.knows_ranges = self.knows_conditions = True

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def address(self, path='data/model.pth'):
        return f'http://127.0.0.1:{self.server_port}/{path}'

    @property
    def offsets(self):
        """The first byte that each request asked for."""
        return [int(re.fullmatch(r'bytes=(\d+)-', headers.get('Range', 'bytes=0-'))[1]) for _, headers in self.requests]

    def handle_error(self, request, client_address):
        """A client that closes its connection is no error of the server."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        content = self.server.files.get(self.path.partition('?')[0].lstrip('/'), b'')
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, dict(self.headers)))
        step = server.script.pop(0) if server.script else {}
        for name, value in step.get('set', {}).items():
            setattr(server, name, value)
        if 'raw' in step:
            self.close_connection = True
            for block in step['raw']():
                self.wfile.write(block)
            return
        content = server.files.get(self.path if self.path.startswith('http') else self.path.partition('?')[0].lstrip('/'))
        status, first, headers = self.usual(content)
        body = step.get('body', content[first:] if status in (200, 206) else b'')
        headers |= {'Content-Length': len(body)} | step.get('headers', {})
        if step.get('chunked'):
            headers |= {'Content-Length': None, 'Transfer-Encoding': 'chunked'}
        self.send_response(step.get('status', status))
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        end = min(len(body), step['until'] - first) if 'until' in step and 'body' not in step else len(body)
        for start in range(0, end, 1 << 16):
            block = body[start:min(start + (1 << 16), end)]
            self.wfile.write(b'%x\r\n%s\r\n' % (len(block), block) if step.get('chunked') else block)
        if 'hold' in step:
            step['hold'].wait(20)
            self.wfile.write(body[end:])
        elif end < len(body):
            self.close_connection = True
            if step.get('reset'):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        elif step.get('chunked'):
            self.wfile.write(b'0\r\n\r\n')
        if headers['Content-Length'] is None and not step.get('chunked'):
            self.close_connection = True

    def usual(self, content):
        """(status, first byte, headers) as HTTP demands them."""
        server, asked = self.server, self.headers
        if content is None:
            return 404, 0, {}
        headers = {'ETag': server.etag, 'Last-Modified': server.modified}
        tags = [value for value in headers.values() if value]
        if server.knows_conditions and asked.get('If-None-Match', asked.get('If-Modified-Since')) in tags:
            return 304, 0, headers
        condition = asked.get('If-Range') if server.knows_conditions else None
        if 'Range' not in asked or not server.knows_ranges or condition not in [*tags, None] or str(condition).startswith('W/'):
            return 200, 0, headers
        first = int(asked['Range'][6:-1])
        if first >= len(content):
            return 416, 0, headers | {'Content-Range': f'bytes */{len(content)}'}
        return 206, first, headers | {'Content-Range': f'bytes {first}-{len(content) - 1}/{len(content)}'}
