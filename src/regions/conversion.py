"""A TSV to a store: one process reads blocks of lines and writes arrays, in order; others decode.

The memory this takes does not depend on the file. A conversion that was killed goes on from its last checkpoint: the
lines before it are read again, for the digest that proves them to be the same, but not decoded.
"""

import hashlib
import os
import sys
import time
from collections import deque
from pathlib import Path

from tqdm import tqdm

from regions import decode, origin, store_files, tsv
from regions.origin import Source
from regions.tsv import RegionError

BLOCK = 4 << 20  # bytes of text that are decoded at once
CHECKPOINT = 256 << 20  # bytes of arrays between two checkpoints
MOST_PROCESSES = 8  # more wait for the one that reads and writes
LISTED_FAULTS = 20


def run(source: Source, folder: Path, dtype: str, processes: int | None = None) -> None:
    """Make the store, or raise one RegionError about all faulty lines. The caller holds the store's lock."""
    with store_files.Writer(folder, dtype, keep=True) as writer:
        conversion = _Conversion(source, writer)
        conversion.run(_decoders(source, processes))
        conversion.finish()


def list_faults(source: Source, faults: list, good: str) -> str:
    """The message about all faulty lines; `good` says what else was found."""
    listed = '\n'.join(f'  {fault}' for fault in faults[:LISTED_FAULTS])
    more = f'\n  and {len(faults) - LISTED_FAULTS} more' if len(faults) > LISTED_FAULTS else ''
    return (f'{source.where}: expected whole lines only, found {len(faults)} faulty and {good}; no region store was made. '
            f'Mend the file or fetch it again, then start again:\n{listed}{more}')


def _decoders(source: Source, processes: int | None) -> list:
    if processes is None:
        processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES) if source.size >= 4 * BLOCK else 1
    # One more than work at a time: the arrays of the last are being written meanwhile.
    return [decode.There() for _ in range(processes + 1)] if processes > 1 else [decode.Here()]


class _Conversion:
    """Where a conversion is: what was written, and the lines and faults so far."""

    def __init__(self, source: Source, writer: store_files.Writer):
        self.source, self.writer = source, writer
        self.offset = self.lines = self.images = 0  # bytes handed out; lines and images taken back
        self.f, self.f_line = None, 0  # feature size and the line that set it
        self.line_of, self.faults = {}, []  # image id -> line
        self.digest, self.rest = hashlib.sha256(), b''  # of what was read; what was read of a line that is not whole

    def run(self, decoders: list) -> None:
        source, free, pending = self.source, deque(decoders), deque()
        self.began = time.monotonic()
        try:
            with source.open() as stream, tqdm(total=source.size, unit='B', unit_scale=True, desc=source.path.name,
                                               disable=None) as bar:
                self.offset, ended = self._resume(stream, bar), False
                while pending or not ended:
                    # Until the feature size is known, one block at a time: the others depend on it.
                    while free and not ended and (self.f is not None or not pending):
                        length = self._fill(free[0].slot, stream)
                        if ended := not length:
                            break
                        free[0].submit(length, self.f, self.f_line, self.lines, self.writer.dtypes)
                        pending.append((free.popleft(), length, self.offset, self.digest.copy()))
                    if pending:
                        decoder, length, end, digest = pending.popleft()
                        self._take(decoder.result(), decoder.slot)
                        free.append(decoder)
                        if not self.faults:
                            self._checkpoint(end, digest)
                        bar.update(length)
                        rate = self.images / max(time.monotonic() - self.began, 1e-3)
                        bar.set_postfix_str(f'{rate:.0f} images/s', refresh=False)
        finally:
            for decoder in decoders:
                decoder.close()

    def finish(self) -> None:
        source, faults = self.source, self.faults
        now = source.path.stat()
        size = now.st_size if source.member is None else source.size  # that of a zip is another
        if (size, now.st_mtime_ns) != (source.size, source.mtime_ns):
            raise RegionError(f'{source.path}: changed while it was read; start again when it is complete')
        if faults:
            raise RegionError(list_faults(source, faults, f'{len(self.line_of)} good images'))
        if not self.line_of:
            raise RegionError(f'{source.where}: expected an image a line, found no line at all; fetch or extract it again')
        self.writer.commit({'converted from': os.path.abspath(source.path)}, source.meta(self.digest.hexdigest()))

    def _resume(self, stream, bar) -> int:
        """Go on from the writer's last checkpoint, if it is of this source; returns the offset in the TSV."""
        made_of = {'source': self.source.meta(''), 'dtypes': self.writer.dtypes}
        note = self.writer.resume(lambda note: note['made_of'] == made_of)
        self.made_of = made_of
        if note is None:
            return 0
        tqdm.write(f'{self.writer.folder} goes on after {len(self.writer.positions):,} images', file=sys.stderr)
        buffer, offset = memoryview(bytearray(1 << 20)), 0
        while offset < note['offset']:
            count = origin.read_into(stream, buffer[:note['offset'] - offset])
            if not count:
                break
            self.digest.update(buffer[:count])
            bar.update(count)
            offset += count
        if self.digest.hexdigest() != note['sha256']:  # another file, as large and as old: begin again
            self.writer.clear()
            self.digest = hashlib.sha256()
            stream.seek(0)
            bar.reset()
            return 0
        self.lines, self.f, self.f_line = note['lines'], self.writer.feature_size, note['f_line']
        self.line_of = dict(self.writer.positions)
        return offset

    def _checkpoint(self, offset: int, digest) -> None:
        note = {'made_of': self.made_of, 'offset': offset, 'sha256': digest.hexdigest(), 'lines': self.lines,
                'f_line': self.f_line}
        self.writer.checkpoint(note, CHECKPOINT)

    def _fill(self, slot: decode.Slot, stream) -> int:
        """Read a block of whole lines into the slot and return its length, 0 at the end of the TSV."""
        filled = len(self.rest)
        slot.text[:filled] = self.rest
        length = 0
        with memoryview(slot.text) as view:
            while not length:
                if filled == len(view):
                    self.faults.append(f'{self.source.where}: from byte {self.offset} on: expected lines of up to '
                                       f'{len(view)} bytes, found a longer one; fetch the file again')
                    filled = 0
                    break
                count = origin.read_into(stream, view[filled:min(filled + BLOCK, len(view))])
                filled += count
                # At the end of the file the last line may lack its end.
                length = slot.text.rfind(b'\n', 0, filled) + 1 if count else filled
                if not count:
                    break
        self.rest = slot.text[length:filled]
        with memoryview(slot.text) as view, view[:length] as block:
            self.digest.update(block)
        self.offset += length
        return length

    def _take(self, block: dict, slot: decode.Slot) -> None:
        """Note a block's lines and faults, and write its arrays unless there is a fault: then there will be no store."""
        faults, positions = list(block['faults']), {}
        for img_id, number in zip(block['ids'], block['numbers'], strict=True):
            if img_id in self.line_of:
                faults.append((number, img_id, tsv.TWICE.format(self.line_of[img_id])))
            else:
                self.line_of[img_id] = positions[img_id] = self.lines + number
        self.faults += [f'{self.source.where}:{self.lines + number}: image {label}: {fault}'
                        for number, label, fault in sorted(faults)]
        if positions and not self.faults:
            columns = slot.columns(sum(block['counts']), block['f'], self.writer.dtypes)
            self.writer.extend(positions, block['sizes'], block['counts'], columns)
        self.f, self.f_line = block['f'], block['f_line']
        self.lines += block['lines']
        self.images += len(positions)
