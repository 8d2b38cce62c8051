"""Opening pictures of all formats and kinds, and damaged ones: the right pixels, or an error that names file and fault."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from images import pictures
from images.pictures import PictureError, open_picture

HEIGHT, WIDTH = 24, 36


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, bits, colour, rows):
    """A PNG file byte by byte, of what pillow does not write. colour: 0 grey, 2 RGB."""
    head = struct.pack('>IIBBBBB', width, height, bits, colour, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def encoded(image, kind, **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


@pytest.fixture
def rgb():
    """A smooth picture, which JPEG changes little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 6, y * 10, 255 - x * 3 - y * 4], axis=2).astype(np.uint8)


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'TIFF', 'GIF', 'WEBP', 'JPEG'])
def test_every_format_from_file_and_from_bytes(rgb, kind, tmp_path):
    how = {'WEBP': {'lossless': True}, 'JPEG': {'quality': 100, 'subsampling': 0}}.get(kind, {})
    image = Image.fromarray(rgb)
    image = image.quantize(256) if kind == 'GIF' else image
    data = encoded(image, kind, **how)
    (tmp_path / 'picture').write_bytes(data)  # the content counts, not the name
    found = open_picture(tmp_path / 'picture')
    assert found.dtype == np.uint8 and found.shape == (HEIGHT, WIDTH, 3) and found.flags.writeable
    assert np.abs(found.astype(int) - np.asarray(image.convert('RGB'))).max() <= (4 if kind == 'JPEG' else 0)
    assert np.array_equal(open_picture(data), found)


TURNED = {1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
          5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
          8: lambda a: np.rot90(a)}


@pytest.mark.parametrize('orientation', TURNED)
def test_exif_orientation_is_applied(rgb, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(open_picture(encoded(Image.fromarray(rgb), 'PNG', exif=exif)), TURNED[orientation](rgb))


def test_of_16_bits_the_upper_8_are_taken():
    deep = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype('>u2')
    grey = b''.join(b'\0' + row.tobytes() for row in deep[..., 0])
    colour = b''.join(b'\0' + row.tobytes() for row in deep)
    assert np.array_equal(open_picture(png(WIDTH, HEIGHT, 16, 2, colour)), deep >> 8)
    assert np.array_equal(open_picture(png(WIDTH, HEIGHT, 16, 0, grey)), np.repeat(deep[..., :1] >> 8, 3, axis=2))
    assert np.array_equal(open_picture(encoded(Image.fromarray(deep[..., 0].astype(np.uint16)), 'TIFF'))[..., 0],
                          deep[..., 0] >> 8)


def test_grey_palette_black_and_white_and_cmyk(rgb):
    grey = Image.fromarray(rgb).convert('L')
    assert np.array_equal(open_picture(encoded(grey, 'PNG')), np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    bits = grey.convert('1')
    assert np.array_equal(open_picture(encoded(bits, 'PNG'))[..., 0], np.asarray(bits) * 255)
    palette = Image.fromarray(rgb).quantize(16)
    assert np.array_equal(open_picture(encoded(palette, 'PNG')), np.asarray(palette.convert('RGB')))
    ink = np.stack([255 - rgb[..., 0], 255 - rgb[..., 1], 255 - rgb[..., 2], np.zeros_like(rgb[..., 0])], axis=2)
    found = open_picture(encoded(Image.fromarray(ink, 'CMYK'), 'JPEG', quality=100))
    assert np.abs(found.astype(int) - rgb).max() <= 6


def test_transparent_parts_are_on_white(rgb):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:12], alpha[12] = 0, 51  # 51 / 255 is a fifth
    found = open_picture(encoded(Image.fromarray(np.concatenate([rgb, alpha], axis=2), 'RGBA'), 'PNG'))
    assert (found[:12] == 255).all() and np.array_equal(found[13:], rgb[13:])
    assert np.abs(found[12] - (rgb[12] * 0.2 + 255 * 0.8)).max() <= 1
    palette = Image.new('P', (WIDTH, HEIGHT), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.paste(0, (0, 0, 10, HEIGHT))
    found = open_picture(encoded(palette, 'PNG', transparency=0))
    assert (found[:, :10] == 255).all() and (found[:, 10:] == [40, 50, 60]).all()


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new('RGB', (WIDTH, HEIGHT), colour) for colour in ('red', 'lime', 'blue')]
    how = {'lossless': True} if kind == 'WEBP' else {}
    found = open_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how))
    assert (found == [255, 0, 0]).all()


def refused(source, *parts):
    with pytest.raises(PictureError) as caught:
        open_picture(source)
    assert '\n' not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_what_is_no_whole_picture_is_refused_by_name(rgb, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8))
    for kind in ('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF'):
        data = encoded(noise, kind)
        file = tmp_path / f'cut.{kind}'
        file.write_bytes(data[:len(data) // 2])
        refused(file, str(file), 'fetch it again')
    (tmp_path / 'text.jpg').write_text('not a picture')
    refused(tmp_path / 'text.jpg', 'text.jpg: expected a picture', 'found something else')
    (tmp_path / 'empty.jpg').touch()
    refused(tmp_path / 'empty.jpg', 'empty.jpg: expected a picture')
    refused(tmp_path / 'none.jpg', 'none.jpg: no such file')
    refused(tmp_path, 'no such file')
    refused(tmp_path / ('long' * 99), 'File name too long', 'correct its name or rights')
    refused(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n', 'the picture: expected a picture')
    refused(encoded(Image.fromarray(np.ones((HEIGHT, WIDTH), np.float32)), 'TIFF'), 'found 32 (mode F)')


@pytest.mark.parametrize('size', [(1, 1), (20_000, 10), (10, 20_000), (15, 400), (16, 481)])
def test_what_a_detector_sees_nothing_in_is_refused(size):
    refused(encoded(Image.new('RGB', size), 'PNG'), f'{size[0]:,} x {size[1]:,}', 'leave it out or cut it')


def test_the_smallest_and_the_longest_are_taken():
    assert open_picture(encoded(Image.new('RGB', (16, 16)), 'PNG')).shape == (16, 16, 3)
    assert open_picture(encoded(Image.new('RGB', (480, 16)), 'PNG')).shape == (16, 480, 3)


MEMORY = '''
import re, sys
from pathlib import Path
from images.pictures import open_picture
def peak():  # not ru_maxrss, which begins with that of the parent
    return int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024
before = peak()
try:
    open_picture(sys.argv[1])
except ValueError:
    pass
print(peak() - before)
'''


def memory(path):
    """Bytes that opening a file takes at most, seen by a process of its own."""
    run = subprocess.run([sys.executable, '-c', MEMORY, path], env={**os.environ, 'PYTHONPATH': str(ROOT / 'src')},
                         capture_output=True, text=True, check=True)
    return int(run.stdout)


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    bomb = png(10_000, 10_000, 8, 2, b'\0' * (10_000 * 30_001))
    refused(bomb, 'at most 64,000,000 pixels, found 10,000 x 10,000')
    refused(png(60_000, 60_000, 8, 2, b''), 'at most 64,000,000 pixels')
    (tmp_path / 'bomb.png').write_bytes(bomb)
    assert memory(tmp_path / 'bomb.png') < 10_000_000
    Image.new('RGBA', (2000, 2000)).save(tmp_path / 'clear.webp')  # of all pictures these take the most
    assert memory(tmp_path / 'clear.webp') < 4_000_000 * 32


EDITS = st.lists(st.tuples(
    st.integers(0, 5000),  # position, going round
    st.sampled_from([0, 0, 1, 2, 4, 30, 10_000]),  # bytes deleted there
    st.one_of(st.sampled_from([b'', b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\0\0\0\1']), st.binary(max_size=30)),
), min_size=1, max_size=4)


def test_damaged_files_give_a_picture_or_an_error(rgb, monkeypatch):
    monkeypatch.setattr(pictures, 'MAX_PIXELS', 1_000_000)
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'a text'
    image, frames = Image.fromarray(rgb), [Image.new('RGB', (WIDTH, HEIGHT), colour) for colour in ('red', 'blue')]
    files = [encoded(image, 'JPEG', exif=exif), encoded(image, 'JPEG', progressive=True), encoded(image.convert('CMYK'), 'JPEG'),
             encoded(image, 'PNG', exif=exif), encoded(image.convert('RGBA'), 'PNG'), encoded(image.quantize(8), 'PNG'),
             encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:]), encoded(image, 'BMP'), encoded(image, 'WEBP'),
             encoded(image, 'TIFF'), encoded(image, 'TIFF', compression='tiff_deflate')]
    outcomes = Counter()

    @settings(max_examples=3000, deadline=None, database=None, derandomize=True)
    @given(st.sampled_from(files), EDITS)
    def open_damaged(data, edits):
        for position, deleted, inserted in edits:
            position %= len(data) + 1
            data = data[:position] + inserted + data[position + deleted:]
        try:
            picture = open_picture(data)
        except PictureError:
            outcomes['error'] += 1
            return
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size <= 3_000_000
        outcomes['picture'] += 1

    open_damaged()
    assert outcomes['error'] > 300 and outcomes['picture'] > 300
