"""A TSV to a store: this thread reads blocks of lines and writes arrays, in order; a second decodes, a third takes the digest.

More would wait: nearly all of the time goes into writing and digests, which run beside other threads.

The memory this takes does not depend on the file. A conversion that was killed goes on from its last checkpoint: the
lines before it are read again, for the digest that proves them to be the same, but not decoded.
"""

import hashlib
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from regions import readers, store_files, tsv
from regions.readers import RegionError, Source
from regions.tsv import ImageRegions

BLOCK = 4 << 20  # bytes of lines that are decoded at once, at the least
CHECKPOINT = 256 << 20  # bytes of arrays between two checkpoints
AHEAD = 4  # blocks that are read before they are written


def run(source: Source, folder: Path, dtype: str) -> None:
    """Make the store, or raise one RegionError about all faulty lines. The caller holds the store's lock."""
    with store_files.Writer(folder, dtype, keep=True) as writer:
        conversion = _Conversion(source, writer)
        conversion.run()
        conversion.finish()


@dataclass
class Block:
    """What some lines say. `f` is the feature size so far and `f_line` the number of the line that set it."""

    f: int | None
    f_line: int
    lines: int = 0
    images: list[tuple[int, ImageRegions]] = field(default_factory=list)  # with the line in the block, from 1
    columns: dict[str, np.ndarray] = field(default_factory=dict)  # the arrays of all images, put together
    faults: list[tuple[int, str, str]] = field(default_factory=list)  # line in the block, image, message


def decode(lines: list[bytes], f: int | None, f_line: int, before: int, dtype: str) -> Block:
    """Lines that follow `before` others; features as `dtype`, '<f4' or '<f2'."""
    block = Block(f, f_line)
    for line in lines:
        block.lines += 1
        try:
            image = tsv.parse(line, block.f, block.f_line)
            image = replace(image, features=store_files.as_dtype(image.features, dtype))
        except RegionError as error:
            block.faults.append((block.lines, tsv.label(line), str(error)))
            continue
        block.images.append((block.lines, image))
        if block.f is None:
            block.f, block.f_line = image.features.shape[1], before + block.lines
    if block.images:
        block.columns = {name: np.concatenate([getattr(image, name) for _, image in block.images]) for name in tsv.ARRAYS}
    return block


class _Conversion:
    """Where a conversion is: what was written, and the lines and faults so far."""

    def __init__(self, source: Source, writer: store_files.Writer):
        self.source, self.writer = source, writer
        self.offset = self.lines = self.images = 0  # bytes read; lines and images taken back
        self.f, self.f_line = None, 0  # feature size and the line that set it
        self.line_of, self.faults = {}, []  # image id -> line
        self.digest, self.sha256 = hashlib.sha256(), None  # of what was read; its text, when the thread that takes it is so far
        self.provenance = readers.provenance(source) | {'converted from': os.path.abspath(source.path)}
        self.made_of = {'source': source.meta(''), 'dtypes': writer.dtypes}

    def run(self) -> None:
        source, pending, began = self.source, deque(), time.monotonic()
        with (source.open() as stream, ThreadPoolExecutor(1) as decoder, ThreadPoolExecutor(1) as self.hasher,
              readers.progress(source.path.name, source.size) as bar):
            def take():
                block, length, note = pending.popleft()
                self._take(block.result(), note)
                bar.update(length)
                bar.set_postfix_str(f'{self.images / max(time.monotonic() - began, 1e-3):.0f} images/s', refresh=False)

            self._resume(stream, bar)
            for lines, length in self._blocks(stream):
                note = {'offset': self.offset, 'sha256': self.sha256}
                pending.append((decoder.submit(decode, lines, self.f, self.f_line, self.lines, self.writer.dtypes['features']),
                                length, note))
                # Until the feature size is known, one block at a time: the others depend on it.
                while pending and (self.f is None or len(pending) > AHEAD):
                    take()
            while pending:
                take()

    def finish(self) -> None:
        source, faults = self.source, self.faults
        now = source.path.stat()
        size = now.st_size if source.member is None else source.size  # that of a zip is another
        if (size, now.st_mtime_ns) != (source.size, source.mtime_ns):
            raise RegionError(f'{source.path}: changed while it was read; start again when it is complete')
        if faults:
            raise RegionError(f'{source.where}: expected whole lines only, found {len(faults)} faulty and {len(self.line_of)} '
                              'good images; no region store was made. Mend the file or fetch it again, then start again:\n'
                              + readers.listed(faults))
        if not self.line_of:
            raise RegionError(f'{source.where}: expected an image a line, found no line at all; fetch or extract it again')
        self.writer.commit(self.provenance, source.meta(self.sha256.result()))

    def _resume(self, stream, bar) -> None:
        """Go on from the writer's last checkpoint, if it is of this source, and read up to there."""
        note = self.writer.resume(lambda note: note['made_of'] == self.made_of)
        if note is None:
            return
        tqdm.write(f'{self.writer.folder} goes on after {len(self.writer.positions):,} images', file=sys.stderr)
        while self.offset < note['offset'] and (text := stream.read(min(BLOCK, note['offset'] - self.offset))):
            before = self.sha256
            self._read([text], len(text))
            if before:
                before.result()  # no more than a block waits for its digest
            bar.update(len(text))
        if self.sha256 and self.sha256.result() == note['sha256']:
            self.lines, self.f, self.f_line = note['lines'], self.writer.feature_size, note['f_line']
            self.line_of = dict(self.writer.positions)
        else:  # another file, as large and as old: begin again
            self.writer.clear()
            self.offset, self.digest = 0, hashlib.sha256()
            stream.seek(0)
            bar.reset()

    def _blocks(self, stream) -> Iterator[tuple[list[bytes], int]]:
        """The rest of the TSV: some lines and how many bytes they are, again and again."""
        lines, length = [], 0
        for line in self.source.lines_of(stream):
            lines.append(line)
            length += len(line)
            if length >= BLOCK:
                self._read(lines, length)
                yield lines, length
                lines, length = [], 0
        if lines:
            self._read(lines, length)
            yield lines, length

    def _read(self, parts: list[bytes], length: int) -> None:
        def digest():
            for part in parts:
                self.digest.update(part)
            return self.digest.hexdigest()

        self.offset += length
        self.sha256 = self.hasher.submit(digest)

    def _take(self, block: Block, note: dict) -> None:
        """Note a block's lines and faults, and write its images unless there is a fault: then there will be no store."""
        faults = list(block.faults)
        for number, image in block.images:
            if self.line_of.setdefault(image.img_id, self.lines + number) != self.lines + number:
                faults.append((number, image.img_id, tsv.TWICE.format(self.line_of[image.img_id])))
        self.faults += [f'{self.source.where}:{self.lines + number}: image {label}: {fault}'
                        for number, label, fault in sorted(faults)]
        if block.images and not self.faults:
            images = [image for _, image in block.images]
            self.writer.extend({image.img_id: self.lines + number for number, image in block.images},
                               [(image.height, image.width) for image in images], [len(image.boxes) for image in images],
                               block.columns)
        self.f, self.f_line = block.f, block.f_line
        self.lines += block.lines
        self.images += len(block.images)
        note['sha256'] = note['sha256'].result()  # also after a fault, or blocks would pile up behind the digest
        if not self.faults:
            self.writer.checkpoint(note | {'made_of': self.made_of, 'lines': self.lines, 'f_line': self.f_line}, CHECKPOINT)
