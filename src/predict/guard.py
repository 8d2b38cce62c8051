"""What the demo's server lets in: requests of its own page only, of limited size, and uploads of limited number and size."""

import asyncio
import ipaddress
import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

LOOPBACK = {'localhost', '127.0.0.1', '::1'}
MAX_BODY = 200_000  # bytes of a request that is no upload
MAX_UPLOADS = 8  # at the same time
MAX_KEPT_BYTES, MAX_KEPT_FILES = 500_000_000, 2000  # of uploads, aborted ones too, and of drawn regions
PATIENCE = 30  # seconds until a client that sends nothing is given up
MARGIN = 10_000  # bytes around the file in an upload


class Refused(Exception):
    """A request that is answered with an HTTP status and a text."""


class Guard:
    """ASGI middleware. host: the served address; folder: of uploads; keep: files in it that stay; max_bytes: of an upload.

    A page of another site that a visitor opens could send requests to this machine, also under a name of its own that it
    points here (DNS rebinding). So Host must be an address of this server, and Origin, where there is one, the same.
    """

    def __init__(self, app, host, folder, keep, max_bytes):
        self.app, self.folder, self.keep, self.max_bytes, self.uploads = app, Path(folder), keep, max_bytes, 0
        host = host.strip('[]').lower()
        self.names = LOOPBACK | {host}
        # Served on all addresses, it is reached by any of them; a name that is an address cannot be pointed elsewhere.
        self.any_address = host in ('0.0.0.0', '::')
        if self.any_address:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope, receive, send):
        if scope['type'] not in ('http', 'websocket'):
            return await self.app(scope, receive, send)
        started = False

        async def watched(message):
            nonlocal started
            started = True
            await send(message)

        try:
            self.check_sender(scope)
            await self.serve(scope, receive, watched)
        except Refused as error:
            if not started:
                await refuse(scope, send, *error.args)
        except OSError as error:  # such as a full disk
            print(f'demo.bash: {scope["path"][:100]!a}: {error}', flush=True)
            if not started:
                await refuse(scope, send, 507, 'The server cannot keep this file; try again later.')

    def check_sender(self, scope):
        """Raises Refused unless a request was sent to an address of this server, by a page from there or by no page."""
        headers = [(name, value.decode('latin1').strip().lower()) for name, value in scope['headers']]
        hosts, origins = ([value for name, value in headers if name == wanted] for wanted in (b'host', b'origin'))
        if len(hosts) != 1 or not self.serves(hosts[0]):
            raise Refused(421, 'This server is not known by that name.')
        if any(origin not in (f'http://{hosts[0]}', f'https://{hosts[0]}') for origin in origins):
            raise Refused(403, 'Requests of other pages are not answered.')

    def serves(self, host):
        """Whether a Host header, such as '127.0.0.1:7860', is an address of this server. Tunnels have another port."""
        try:
            parts = urlsplit(f'//{host}')
            name, _ = parts.hostname, parts.port
            if parts.netloc != host or parts.username is not None or not name:
                return False
            if self.any_address and name not in self.names:
                ipaddress.ip_address(name)
                return True
        except ValueError:
            return False
        return name in self.names

    async def serve(self, scope, receive, send):
        is_upload = scope['path'].rstrip('/').endswith('/upload')
        most = self.max_bytes + MARGIN if is_upload else MAX_BODY
        length = next((value for name, value in scope['headers'] if name == b'content-length'), b'0')
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            raise Refused(413, f'A request may have {most:,} bytes.')
        left = most

        async def limited():
            nonlocal left
            try:
                message = await asyncio.wait_for(receive(), PATIENCE) if is_upload else await receive()
            except TimeoutError:
                raise Refused(408, f'Nothing was sent for {PATIENCE} seconds.') from None
            left -= len(message.get('body', b''))
            if left < 0:
                raise Refused(413, f'A request may have {most:,} bytes.')
            return message

        if not is_upload:
            return await self.app(scope, limited, send)
        if self.uploads >= MAX_UPLOADS:
            raise Refused(503, 'Too many uploads at the same time; try again.')
        self.uploads += 1
        try:
            await asyncio.to_thread(self.make_room)
            await self.app(scope, limited, send)
        finally:
            self.uploads -= 1

    def make_room(self):
        """Removes the oldest files until there is room for another upload."""
        files = []
        for path in self.folder.rglob('*'):
            if path.is_file() and str(path) not in self.keep:
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        size, number = sum(size for _, size, _ in files), len(files)
        for _, count, path in sorted(files):
            if size + self.max_bytes <= MAX_KEPT_BYTES and number < MAX_KEPT_FILES:
                break
            path.unlink(missing_ok=True)
            size, number = size - count, number - 1
            if path.parent != self.folder and not os.listdir(path.parent):
                path.parent.rmdir()


async def refuse(scope, send, status, text):
    if scope['type'] == 'websocket':
        return await send({'type': 'websocket.close', 'code': 1008})
    await send({'type': 'http.response.start', 'status': status, 'headers': [
        (b'content-type', b'text/plain; charset=utf-8'), (b'connection', b'close')]})
    await send({'type': 'http.response.body', 'body': text.encode()})
