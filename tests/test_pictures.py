"""Opening pictures of all formats and kinds, and damaged ones: the right pixels, or an error that names file and fault."""

import io
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from file_server import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from images import decoder, pictures
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
    refused(tmp_path / 'a\x1b[2J\n.jpg', r'a\x1b[2J\n.jpg: no such file')
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
from images.decoder import decode
def peak():  # not ru_maxrss, which begins with that of the parent
    return int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024
before = peak()
try:
    decode(sys.argv[1], 'it')
except ValueError:
    pass
print(peak() - before)
'''


def memory(path):
    """Bytes that decoding a file takes at most, in a process of its own."""
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


@pytest.fixture
def limit(monkeypatch, tmp_path):
    """limit(NAME=value): changes constants of the decoder's process."""
    def limit(**constants):
        script = tmp_path / 'decoder.py'
        script.write_text(f"""import sys
sys.path.insert(0, {str(ROOT / 'src')!r})
from images import decoder
vars(decoder).update({constants!r})
decoder.serve(decoder.Connection(int(sys.argv[1])), int(sys.argv[2]))""")
        monkeypatch.setattr(decoder, '__file__', str(script))
        pictures._decoder.stop()

    yield limit
    pictures._decoder.stop()


def segment(marker, data):
    return bytes([0xff, marker]) + struct.pack('>H', len(data) + 2) + data


def test_scans_of_a_jpeg_are_limited(rgb, tmp_path):
    data = encoded(Image.fromarray(rgb), 'JPEG', progressive=True)
    start = data.rindex(b'\xff\xda')
    usual, scan = decoder.count_scans(data), data[start:-2]
    thumbnail = segment(0xe1, 1000 * b'\xff\xda')  # what only looks like scans
    for scans in (usual, decoder.MAX_SCANS):
        jpeg = data[:2] + thumbnail + data[2:-2] + (scans - usual) * scan + b'\xff\xd9' + 1000 * scan
        assert open_picture(jpeg).shape == rgb.shape
    (tmp_path / 'x.jpg').write_bytes(data[:-2] + (decoder.MAX_SCANS + 1 - usual) * scan + b'\xff\xd9')
    refused(tmp_path / 'x.jpg', 'x.jpg: expected at most 100 scans, found 101; leave it out')
    refused(encoded(Image.new('L', (7999, 7999)), 'JPEG', progressive=True)[:-2] + 1000 * scan, 'at most 100 scans, found 1,006')


def test_comments_of_a_gif_are_limited(rgb):
    data = encoded(Image.fromarray(rgb).quantize(64), 'GIF')
    start = 13 + 3 * 64
    assert data[start] == ord(',')

    def gif(count, size):
        return data[:start] + b'!\xfe' + count * (bytes([size]) + size * b'a') + b'\0' + data[start:]

    assert np.array_equal(open_picture(gif(decoder.MAX_BLOCKS, 100)), open_picture(data))
    refused(gif(94_000, 255), 'at most 4,000 blocks of comments, found 94,000')
    refused(data[:start] + 5000 * b'!\xff\x01a\0' + data[start:], 'at most 4,000 blocks of comments, found 5,000')


def tiff(*entries, rest=b''):
    """A TIFF file of 64 x 48 grey pixels, from whose byte 8 on an IFD and `rest` lie; entries: (tag, type, count, value) more."""
    entries = sorted([(256, 4, 1, 64), (257, 4, 1, 48), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1),
                      (278, 4, 1, 48), (273, 4, 1, 8), (279, 4, 1, 64 * 48), *entries])
    return b'II*\0' + struct.pack('<IH', 8, len(entries)) + b''.join(struct.pack('<HHII', *each) for each in entries) + rest


def test_memory_is_limited():
    """Thousands of tags that are the same megabytes."""
    size = 5_000_000
    assert open_picture(tiff(rest=bytes(size))).shape == (48, 64, 3)
    refused(tiff(*((40_000 + number, 7, size, 99) for number in range(2000)), rest=bytes(size)), 'decoded in 0.4 GB')
    assert open_picture(tiff(rest=bytes(size))).shape == (48, 64, 3)  # by another process


def test_time_is_limited(limit, rgb, tmp_path):
    """Of the C code too: here of a JPEG in a TIFF, of which nobody counts the scans."""
    limit(SECONDS=0, SECONDS_PER_MEGAPIXEL=0)
    data = encoded(Image.new('L', (7999, 7999)), 'JPEG', progressive=True)
    data = data[:-2] + 1000 * data[data.rindex(b'\xff\xda'):-2] + b'\xff\xd9'
    ifd = 8 + 2 + 12 * 9 + 4
    head = tiff(rest=bytes(4))
    for tag, value in ((256, 7999), (257, 7999), (278, 7999), (259, 7), (273, ifd), (279, len(data))):
        place = head.index(struct.pack('<H', tag), 10)
        head = head[:place + 8] + struct.pack('<I', value) + head[place + 12:]
    (tmp_path / 'x.tif').write_bytes(head + data)
    refused(tmp_path / 'x.tif', 'x.tif: expected a picture that is decoded in ', 'found one that takes longer')
    assert open_picture(encoded(Image.fromarray(rgb), 'PNG')).shape == rgb.shape


def test_the_size_of_a_file_is_limited(limit, rgb, tmp_path):
    limit(MAX_BYTES=2000)
    (tmp_path / 'x.bmp').write_bytes(encoded(Image.fromarray(rgb), 'BMP'))
    for source in (tmp_path / 'x.bmp', (tmp_path / 'x.bmp').read_bytes()):
        refused(source, 'expected at most 2,000 bytes, found 2,646')


def test_the_process_that_decodes(rgb, tmp_path, monkeypatch):
    """A picture that crashes it is named, what is not the picture's fault is not; a fork has its own, and none stays."""
    data = encoded(Image.fromarray(rgb), 'PNG')
    assert np.array_equal(open_picture(data), rgb)
    process = pictures._decoder.process
    for number, kind, message in ((signal.SIGSEGV, PictureError, 'crashes its decoder'), (signal.SIGKILL, OSError, 'try again')):
        os.kill(pictures._decoder.process.pid, number)
        with pytest.raises(kind, match=message):
            open_picture(data)
        assert np.array_equal(open_picture(data), rgb)
    assert process.poll() is not None
    if (child := os.fork()) == 0:
        os._exit(0 if np.array_equal(open_picture(data), rgb) and pictures._decoder.process else 1)
    assert os.waitpid(child, 0)[1] == 0 and np.array_equal(open_picture(data), rgb)
    with monkeypatch.context() as patch:
        patch.setattr(pictures.json, 'loads', lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_picture(tmp_path / 'none.png')
    assert np.array_equal(open_picture(data), rgb)  # not the answer about none.png
    with monkeypatch.context() as patch:
        patch.setattr(pictures, 'PATIENCE', 0)
        os.kill(pictures._decoder.process.pid, signal.SIGSTOP)  # else it may answer before this process looks
        refused(data, 'is read within 0 seconds')
    code = ('import sys, images.pictures as it; it.open_picture(sys.argv[1]); print(it._decoder.process.pid, flush=True)'
            '; input()')
    (tmp_path / 'x.png').write_bytes(data)
    with subprocess.Popen([sys.executable, '-c', code, tmp_path / 'x.png'], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env={**os.environ, 'PYTHONPATH': str(ROOT / 'src')}) as parent:
        pid = parent.stdout.readline().strip()
        parent.kill()
    wait_for(lambda: not os.path.exists(f'/proc/{pid}') or '\nState:\tZ' in Path(f'/proc/{pid}/status').read_text())


EDITS = st.lists(st.tuples(
    st.integers(0, 5000),  # position, going round
    st.sampled_from([0, 0, 1, 2, 4, 30, 10_000]),  # bytes deleted there
    st.one_of(st.sampled_from([b'', b'\0\0\0\0', b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\0\0\0\1']), st.binary(max_size=30)),
    st.sampled_from([0, 0, 0, 1, 200]),  # how often the next 40 bytes are repeated
), min_size=1, max_size=4)


def test_damaged_files_give_a_picture_or_an_error(rgb, limit):
    limit(MAX_PIXELS=1_000_000)
    exif = Image.Exif()
    exif[0x0112], exif[0x010e] = 6, 'a text'
    image, frames = Image.fromarray(rgb), [Image.new('RGB', (WIDTH, HEIGHT), colour) for colour in ('red', 'blue')]
    files = [encoded(image, 'JPEG', exif=exif), encoded(image, 'JPEG', progressive=True), encoded(image.convert('CMYK'), 'JPEG'),
             encoded(image, 'PNG', exif=exif), encoded(image.convert('RGBA'), 'PNG'), encoded(image.quantize(8), 'PNG'),
             encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:]), encoded(image, 'BMP'), encoded(image, 'WEBP'),
             encoded(image, 'TIFF'), encoded(image, 'TIFF', compression='tiff_deflate'),
             encoded(image, 'TIFF', compression='jpeg'),
             encoded(frames[0], 'WEBP', save_all=True, append_images=frames[1:], lossless=True)]
    outcomes = Counter()

    @settings(max_examples=1500, deadline=None, database=None, derandomize=True)
    @given(st.sampled_from(files), EDITS)
    def open_damaged(data, edits):
        for position, deleted, inserted, repeated in edits:
            position %= len(data) + 1
            data = data[:position] + inserted + repeated * data[position:position + 40] + data[position + deleted:]
        try:
            picture = open_picture(data)
        except PictureError as error:
            assert '\n' not in str(error) and 'the picture: expected' in str(error)
            outcomes['error'] += 1
            return
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.size <= 3_000_000
        outcomes['picture'] += 1

    open_damaged()
    assert outcomes['error'] > 150 and outcomes['picture'] > 150
