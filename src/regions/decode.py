"""Blocks of lines to arrays, in this process or in several: the part of a conversion that takes the time.

A block's text and its arrays lie in memory that both processes map (a `Slot`), so that only a few numbers pass through
the pipe. The processes are started anew, not forked: whoever converts may have threads, CUDA or a __main__ of any kind.
"""

import contextlib
import mmap
import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import numpy as np

from regions import tsv
from regions.tsv import RegionError

LINE_LIMIT = 64 << 20  # bytes of a slot, so of the longest line; pages that nothing touches cost nothing
FLOAT16_LIMIT = 65504.0
# No threads in numpy; and what is freed stays for the next line, which else costs a fifth of the time in page faults.
QUICK = {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1', 'MALLOC_TRIM_THRESHOLD_': '268435456',
         'MALLOC_MMAP_THRESHOLD_': '268435456'}


class Slot:
    """Memory for the text of one block and for the arrays made of it, which other processes can map by `fds`."""

    def __init__(self, fds=None):
        self.fds = tuple(fds or (os.memfd_create('text'), os.memfd_create('arrays')))
        for fd in () if fds else self.fds:
            os.ftruncate(fd, LINE_LIMIT)
        self.text, self.arrays = (mmap.mmap(fd, LINE_LIMIT) for fd in self.fds)

    def columns(self, regions: int, f: int, dtypes: dict[str, str]) -> dict[str, np.ndarray]:
        """The arrays by name, each of all the block's regions; all lie one after the other, 8-byte ones first."""
        columns, offset = {}, 0
        for name in sorted(dtypes, key=lambda name: -np.dtype(dtypes[name]).itemsize):
            width = {'boxes': 4, 'features': f}.get(name, 1)
            shape = (regions, width) if name in ('boxes', 'features') else (regions,)
            columns[name] = np.frombuffer(self.arrays, dtypes[name], regions * width, offset).reshape(shape)
            offset += columns[name].nbytes
        return columns

    def close(self):
        with contextlib.suppress(BufferError):  # an error on its way may hold arrays in the memory
            self.text.close()
            self.arrays.close()
        for fd in self.fds:
            os.close(fd)


def decode(slot: Slot, length: int, f: int | None, f_line: int, before: int, dtypes: dict[str, str]) -> dict:
    """Decode the `length` bytes of whole lines in the slot, leaving the arrays of the good ones in it.

    `f`, `f_line`: the feature size and the line that set it; None where no line has, and then `before` must be the
    number of lines before the block. Returns lines: how many; f, f_line; of each good line, ids, numbers (its line in
    the block, from 1), sizes (height, width), counts of regions; faults: (number, label, message) of each other line.
    """
    images, numbers, faults, start, number = [], [], [], 0, 0
    while start < length:
        end = slot.text.find(b'\n', start, length) + 1 or length
        # Without its end, so that the parser need not copy all of it to take that off.
        stop = end - (slot.text[end - 1] == 10)
        stop -= stop > start and slot.text[stop - 1] == 13
        line, start, number = slot.text[start:stop], end, number + 1
        try:
            image = tsv._parse(line, f, f_line)
            if dtypes['features'] == '<f2':
                check_float16(image.features)
        except RegionError as error:
            faults.append((number, tsv._label(line), str(error)))
            continue
        if f is None:
            f, f_line = image.features.shape[1], before + number
        images.append(image)
        numbers.append(number)
    counts = [len(image.boxes) for image in images]
    if images:
        for name, column in slot.columns(sum(counts), f, dtypes).items():
            np.concatenate([getattr(image, name) for image in images], out=column, casting='same_kind')
    return {'lines': number, 'f': f, 'f_line': f_line, 'ids': [image.img_id for image in images], 'numbers': numbers,
            'sizes': [(image.height, image.width) for image in images], 'counts': counts, 'faults': faults}


def check_float16(features: np.ndarray) -> None:
    """Raise RegionError if float32 features would become infinite in half precision."""
    largest = np.abs(features).max(initial=0)
    if largest > FLOAT16_LIMIT:
        raise RegionError(f'field "features": expected numbers up to {FLOAT16_LIMIT:.0f}, which is what float16 can hold, '
                          f'found {largest:g}; make the store with float32')


class Here:
    """Decodes in this process, when asked for the result."""

    def __init__(self):
        self.slot = Slot()

    def submit(self, *request):
        self.request = request

    def result(self) -> dict:
        return decode(self.slot, *self.request)

    def close(self):
        self.slot.close()


class There:
    """Decodes in a process of its own, which ends with this one."""

    def __init__(self):
        self.slot = Slot()
        self.pipe, theirs = Pipe()
        fds = (theirs.fileno(), *self.slot.fds)
        environment = os.environ | {'PYTHONPATH': str(Path(__file__).parents[1])} | QUICK
        self.process = subprocess.Popen([sys.executable, '-m', 'regions.decode', *map(str, fds)], pass_fds=fds,
                                        env=environment)
        theirs.close()

    def submit(self, *request):
        try:
            self.pipe.send(request)
        except OSError:
            self._ended()

    def result(self) -> dict:
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._ended()

    def _ended(self):
        raise RegionError(f'a process that decodes regions ended with status {self.process.wait()}; was it killed for want '
                          'of memory? Start again: the conversion goes on where it was')

    def close(self):
        self.pipe.close()
        self.process.kill()
        self.process.wait()
        self.slot.close()


def main(arguments):
    """One process: the requests and answers of `decode` through a pipe, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end ends this one
    pipe, *fds = map(int, arguments)
    pipe, slot = Connection(pipe), Slot(fds)
    try:
        while True:
            pipe.send(decode(slot, *pipe.recv()))
    except (EOFError, OSError):
        return


if __name__ == '__main__':
    main(sys.argv[1:])
