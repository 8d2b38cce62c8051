"""Opens pictures as 8-bit RGB arrays, upright and complete, or raises an error that says what is wrong."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe

import numpy as np

from files.text import printable
from images import decoder
from images.decoder import PictureError

AHEAD = 4  # pictures for each decoder that are requested before a result is awaited
PATIENCE = 120  # seconds until a picture that cannot even be read is given up


def open_picture(source):
    """The picture in a file, or in the bytes of one, as uint8 (h, w, 3) RGB.

    As OpenCV's imread, which the published features were made with: EXIF orientation is applied, 16 bits are cut to the upper 8,
    an animation gives its first frame, colour profiles are ignored. Unlike imread, transparent parts are composited on white.
    Raises PictureError, also where a picture would take more time or memory than the limits of `decoder`; OSError if pictures
    cannot be decoded at all.
    """
    if isinstance(source, bytes):
        return _decoder.decode('the picture', source)[0]
    return _decoder.decode(str(source), os.path.abspath(source))[0]


def open_resized(source, name, box, size, resample, reduced=False):
    """Part of a picture, resized in the process that decodes it: uint8 (h, w, 3) RGB, and the (width, height) of the picture.

    source: a path or the bytes of a file; name: for messages; box: left, upper, right, lower in pixels, None for all; size:
    (w, h); resample: a filter of Pillow; reduced: decode a JPEG at 1/2, 1/4 or 1/8 of its size where that leaves no fewer pixels
    than `size`, which is faster for large photographs, but changes pixels. Raises as `open_picture`.
    """
    return _decoder.decode(name, source, (box, size, resample, reduced))


class Decoder:
    """The process of `decoder` that decodes the pictures of this one. It starts with the first picture, and anew after a picture
    that ended it."""

    def __init__(self):
        self.lock, self.process = threading.Lock(), None

    def start(self):
        self.connection, remote = Pipe()
        self.pixels = open(os.memfd_create('pixels'), 'rb', 0)  # shared memory, faster than a pipe  # noqa: SIM115
        descriptors = remote.fileno(), self.pixels.fileno()
        # In a session of its own: Ctrl-C is for this process, whose end is the end of that one.
        self.process = subprocess.Popen([sys.executable, decoder.__file__, *map(str, descriptors)], pass_fds=descriptors,
                                        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        remote.close()

    def stop(self):
        """Ends the process, if there is one."""
        if self.process is not None:
            process, self.process = self.process, None
            self.connection.close()
            self.pixels.close()
            process.kill()
            process.wait()

    def decode(self, name, source, fit=None):
        """The picture as `open_picture` returns it, or as `decoder.decode` fits it, and the (width, height) that it has in the
        file. source: a path or bytes; name: for messages."""
        picture, original = self._request(name, source, fit)
        return picture, tuple(original)

    def measure(self, name, source):
        """The (width, height) of a picture, from its header if it seems complete. Raises PictureError as `decode`."""
        return tuple(self._request(name, source, 'size')[1])

    def _request(self, name, source, what):
        with self.lock:
            if self.process is None:
                self.start()
            try:
                self.connection.send((name, source, what))
                if not self.connection.poll(PATIENCE):
                    raise PictureError(f'{name}: expected a picture that is read within {PATIENCE} seconds, found one that takes '
                                       'longer; leave it out')
                reply = json.loads(self.connection.recv_bytes())
                if 'original' in reply and 'size' not in reply:
                    return None, reply['original']
                if 'original' in reply:
                    width, height = reply['size']
                    picture = np.empty((height, width, 3), np.uint8)
                    self.pixels.seek(0)
                    self.pixels.readinto(picture.data.cast('B'))
                    return picture, reply['original']
            except (EOFError, ConnectionError):
                reply = {'error': self.fault(name, self.process.wait())}
                self.stop()
            except BaseException:  # an answer that is still to come would be taken for that of the next picture
                self.stop()
                raise
        raise PictureError(printable(reply['error']))  # the decoder, which starts without this package, cannot escape it

    def fault(self, name, status):
        """What is wrong with the picture that ended the process with this status. Raises OSError if it is not the picture."""
        if status == -signal.SIGXCPU:
            return (f'{name}: expected a picture that is decoded in {decoder.SECONDS} seconds and '
                    f'{decoder.SECONDS_PER_MEGAPIXEL} a megapixel, found one that takes longer; leave it out, or save it anew')
        if status == decoder.OUT_OF_MEMORY:
            return (f'{name}: expected a picture that is decoded in {decoder.MEMORY / 1e9:.1f} GB and {decoder.MEMORY_PER_PIXEL} '
                    'bytes a pixel, found one that takes more; leave it out, or save it anew')
        if status < 0 and status != -signal.SIGKILL:
            return (f'{name}: expected a whole picture, found one that crashes its decoder ({signal.Signals(-status).name}); '
                    'fetch it again')
        self.stop()
        raise ChildProcessError(f'{name}: the process that decodes pictures ended with status {status} (out of memory?); try '
                                'again')


def in_parallel(work, items):
    """Yields work(Decoder, item) of each item, in their order, computed in as many threads as there are processors, each with a
    Decoder of its own. Raises what `work` raises."""
    count, decoders, local, pending = len(os.sched_getaffinity(0)), [], threading.local(), deque()

    def one(item):
        if not hasattr(local, 'decoder'):
            local.decoder = Decoder()
            decoders.append(local.decoder)
        return work(local.decoder, item)

    try:
        with ThreadPoolExecutor(count) as threads:
            try:
                for item in items:
                    pending.append(threads.submit(one, item))
                    if len(pending) > AHEAD * count:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                threads.shutdown(cancel_futures=True)
    finally:
        for decoder_ in decoders:
            decoder_.stop()


_decoder = Decoder()
atexit.register(_decoder.stop)
os.register_at_fork(after_in_child=lambda: _decoder.__init__())  # a forked process has another
