"""What an extraction has done so far, kept in a folder beside its result, so that it goes on where it was stopped."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from files.atomic import atomic_file, write_json
from regions import store, tsv
from regions.tsv import RegionError


class Unfinished:
    """`x.tsv.unfinished`: the lines of the images that are done, in any order, and what they were made with.

    Use as a context, which holds a lock. `done` is {image id: (offset, size)} of whole lines, `size` their bytes.
    """

    def __init__(self, out):
        self.out = Path(out)
        self.folder = self.out.with_name(f'{self.out.name}.unfinished')
        self.broken = self.out.with_name(f'{self.out.name}.broken.txt')
        self.lines, self.about = self.folder / 'lines', self.folder / 'made_with.json'
        self.lock, self.done, self.size, self.file = FileLock(self.folder / 'lock'), {}, 0, None

    def __enter__(self):
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self.lock.acquire(timeout=0)
            except Timeout:
                raise ValueError(f'{self.folder}: another process is writing there; wait for it, or end it') from None
        return self

    def __exit__(self, *_):
        if self.file:
            with contextlib.suppress(OSError):  # a full disk has been reported by the write that met it
                self.file.close()
        if not self._begun():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()

    def resume(self, made_with):
        """Takes up the lines that are there, cutting off one that is not whole. made_with: anything json can hold.

        Raises ValueError where they were made with something else.
        """
        made_with = json.loads(json.dumps(made_with))  # as it is read back
        if self._begun():
            there = json.loads(self.about.read_text(encoding='utf-8'))
            different = [f'{name}: {there.get(name)!r} there, {value!r} now' for name, value in made_with.items()
                         if there.get(name) != value]
            if different:
                raise ValueError(f'{self.folder}: the extraction that was stopped was made with something else: '
                                 f'{"; ".join(different)}; remove the folder to begin anew, or choose another --out')
        with self._explained():
            write_json(self.about, made_with)
            self.file = open(self.lines, 'a+b')  # noqa: SIM115, closed on leaving
        self.file.seek(0)
        for line in self.file:
            try:
                img_id = tsv.parse(line, None, 0).img_id
            except RegionError:
                break
            if not line.endswith(b'\n'):
                break
            self.done[img_id] = (self.size, len(line))
            self.size += len(line)
        self.file.truncate(self.size)

    def append(self, img_id, line):
        """Adds the line of an image that is done."""
        with self._explained():
            self.file.write(line)
            self.file.flush()
        self.done[img_id] = (self.size, len(line))
        self.size += len(line)

    def finish(self, img_ids, provenance):
        """Writes the result, of those of the images that are done, in their order, and removes the folder."""
        found = (self._line(img_id) for img_id in img_ids if img_id in self.done)
        if self.out.suffix == '.store':
            store.write(self.out, (tsv.parse(line, None, 0) for line in found), provenance)
        else:
            with self._explained():
                whole = self.folder / 'whole'  # here, so that a killed process leaves nothing of it elsewhere
                with atomic_file(whole) as file:
                    file.writelines(found)
                write_json(tsv.provenance_path(self.out), provenance)
                os.replace(whole, self.out)
        shutil.rmtree(self.folder)

    def _begun(self):
        return self.lines.exists() and self.lines.stat().st_size > 0

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except OSError as error:
            raise OSError(f'{self.out}: cannot be written ({error}); make room, or correct --out or its rights, and start again '
                          '(what is done is kept)') from None

    def _line(self, img_id):
        offset, size = self.done[img_id]
        self.file.seek(offset)
        return self.file.read(size)
