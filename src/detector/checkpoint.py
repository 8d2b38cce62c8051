"""The checkpoint of an extraction: its finished lines, kept next to the result, so that it can be resumed."""

import base64
import binascii
import contextlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from files.atomic import atomic_file, locked, write_json
from files.json_files import read_json
from regions import store, tsv
from regions.tsv import RegionError


def encode_line(image, probabilities=False):
    """The line of an image: that of a TSV, with class_probabilities as one more field if they are asked for. Raises RegionError
    if the image has none then."""
    line = tsv.encode(image)
    if not probabilities:
        return line
    if image.class_probabilities is None:
        raise RegionError('expected class_probabilities of the detector, found none')
    return line.removesuffix(b'\r\n') + b'\t' + base64.b64encode(image.class_probabilities) + b'\r\n'


def decode_line(line):
    """The ImageRegions of a line. Raises RegionError if it is incomplete."""
    if line.count(b'\t') < len(tsv.FIELDS):
        return tsv.parse(line, None, 0)
    line, _, text = line.rpartition(b'\t')
    image = tsv.parse(line, None, 0)
    try:
        array = np.frombuffer(base64.b64decode(text.rstrip(), validate=True), '<f2').reshape(len(image.boxes), -1)
    except (binascii.Error, ValueError) as error:
        raise RegionError(f'field "class_probabilities": expected float16 numbers as base64 ({error})') from None
    return tsv.check(replace(image, class_probabilities=array))


class ExtractionCheckpoint:
    """The folder X.unfinished: TSV lines of the finished images, in any order, and what they were made with.

    Use as a context manager, which holds a lock and removes a folder without lines. `done`: {image id: (offset, size)} of the
    lines in their file; `size`: of that file in bytes.
    """

    def __init__(self, out):
        self.out = Path(out)
        self.folder = self.out.with_name(f'{self.out.name}.unfinished')
        self.lines, self.made_with = self.folder / 'lines', self.folder / 'made_with.json'
        self.lock, self.done, self.size, self.file = locked(self.lines, self._refuse), {}, 0, None

    def __enter__(self):
        with self._explained():
            self.lock.__enter__()
        return self

    def __exit__(self, *error):
        if self.file:
            with contextlib.suppress(OSError):  # the write that met a full disk has reported it
                self.file.close()
        if not self._has_lines():
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.__exit__(*error)

    def resume(self, made_with):
        """Reads the lines of an interrupted run, and removes an incomplete one. made_with: a dict that json can hold.

        Raises ValueError if the lines were made with something else.
        """
        made_with = json.loads(json.dumps(made_with))  # tuples become lists, as in the file
        if self._has_lines():
            earlier = read_json(self.made_with, 'what the regions were made with', dict)
            different = [f'{name}: {earlier.get(name)!r} there, {value!r} now' for name, value in made_with.items()
                         if earlier.get(name) != value]
            # Flags that were given then and are not now.
            different += [f'{name}: {value!r} there, none now' for name, value in earlier.items() if name not in made_with]
            if different:
                raise ValueError(f'{self.folder}: the interrupted extraction was made with something else: '
                                 f'{"; ".join(different)}; choose another --out, or move the folder away to start again')
        with self._explained():
            write_json(self.made_with, made_with)
            self.file = open(self.lines, 'a+b')  # noqa: SIM115, closed on leaving
        self.file.seek(0)
        for line in self.file:
            try:
                img_id = decode_line(line).img_id
            except RegionError:
                break
            if not line.endswith(b'\n'):
                break
            self._enter(img_id, line)
        self.file.truncate(self.size)

    def append(self, img_id, line):
        """Adds the line of a finished image."""
        with self._explained():
            self.file.write(line)
            self.file.flush()
        self._enter(img_id, line)

    def finish(self, img_ids, provenance):
        """Writes the result, the lines of those images that are done, in the order of img_ids, and removes the folder."""
        lines = (self._line(img_id) for img_id in img_ids if img_id in self.done)
        if self.out.suffix == '.store':
            store.write(self.out, map(decode_line, lines), provenance)
        else:
            with self._explained():
                result = self.folder / 'result'  # a killed process leaves nothing outside of the folder
                with atomic_file(result) as file:
                    file.writelines(lines)
                write_json(tsv.provenance_path(self.out), provenance)
                os.replace(result, self.out)
        shutil.rmtree(self.folder)

    def _has_lines(self):
        return self.lines.exists() and self.lines.stat().st_size > 0

    def _enter(self, img_id, line):
        self.done[img_id] = self.size, len(line)
        self.size += len(line)

    def _line(self, img_id):
        offset, size = self.done[img_id]
        self.file.seek(offset)
        return self.file.read(size)

    def _refuse(self):
        raise ValueError(f'{self.folder}: another process is writing there; wait for it, or stop it')

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except OSError as error:
            raise OSError(f'{self.out}: cannot be written ({error}); make room, or correct --out or its permissions, and start '
                          'again (finished images are kept)') from None
