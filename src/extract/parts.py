"""What an extraction has done so far, kept in a folder beside its result, so that it goes on where it was stopped."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from regions import origin, store, store_files, tsv
from regions.tsv import RegionError


class Unfinished:
    """`x.tsv.unfinished`: the lines of the images that are done, in any order, and what they were made with.

    Use as a context, which holds a lock. `done` is {image id: (offset, size)} of whole lines.
    """

    def __init__(self, out):
        self.out = Path(out)
        self.folder = self.out.with_name(f'{self.out.name}.unfinished')
        self.broken = self.out.with_name(f'{self.out.name}.broken.txt')
        self.lines, self.about = self.folder / 'lines', self.folder / 'made_with.json'
        self.lock, self.done, self.file = FileLock(self.folder / 'lock'), {}, None

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise OSError(f'{self.folder}: another process is writing there; wait for it, or end it') from None
        return self

    def __exit__(self, *_):
        if self.file:
            with contextlib.suppress(OSError):  # a full disk has been reported by the write that met it
                self.file.close()
        if not self.begun():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()

    def begun(self):
        """Whether anything is done; if not, the next extraction may be any other."""
        return self.lines.exists() and self.lines.stat().st_size > 0

    def resume(self, made_with):
        """Takes up the lines that are there, cutting off one that is not whole. made_with: anything json can hold.

        Raises ValueError where they were made with something else.
        """
        made_with = json.loads(json.dumps(made_with))  # as it is read back
        if self.begun():
            there = json.loads(self.about.read_text(encoding='utf-8'))
            different = [f'{name}: {there.get(name)!r} there, {value!r} now' for name, value in made_with.items()
                         if there.get(name) != value]
            if different:
                raise ValueError(f'{self.folder}: the extraction that was stopped was made with something else: '
                                 f'{"; ".join(different)}; remove the folder to begin anew, or choose another --out')
        store_files.write_json(self.about, made_with)
        self.file = open(self.lines, 'a+b')  # noqa: SIM115, closed on leaving
        self.file.seek(0)
        end = 0
        for line in self.file:
            try:
                img_id = tsv.parse(line, None, 0).img_id
            except RegionError:
                break
            if not line.endswith(b'\n'):
                break
            self.done[img_id] = (end, len(line))
            end += len(line)
        self.file.truncate(end)

    def append(self, lines):
        """Adds {image id: line} of images that are done."""
        for img_id, line in lines.items():
            self.done[img_id] = (self.file.seek(0, os.SEEK_END), len(line))
            self.file.write(line)
        self.file.flush()

    def finish(self, img_ids, provenance):
        """Writes the result, of those of the images that are done, in their order, and removes the folder."""
        found = (self._line(img_id) for img_id in img_ids if img_id in self.done)
        if self.out.suffix == '.store':
            store.write(self.out, (tsv.parse(line, None, 0) for line in found), provenance)
        else:
            store_files.write_json(origin.provenance_path(self.out), provenance)
            with tsv.writing(self.out) as file:
                file.writelines(found)
        shutil.rmtree(self.folder)

    def _line(self, img_id):
        offset, size = self.done[img_id]
        self.file.seek(offset)
        return self.file.read(size)
