"""Decodes pictures in a process of its own, which the system ends where a picture takes too much time or memory.

A few kilobytes can ask a decoder for hours. It is written in C, and neither a signal nor another thread interrupts it.
"""

import contextlib
import json
import math
import os
import re
import resource
import sys
import time
import warnings
from functools import partial
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401, registers these formats

# Only these: each further format that pillow knows is one more parser exposed to untrusted files.
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF')
MAX_PIXELS = 64_000_000
MAX_BYTES = 8 * MAX_PIXELS  # of a file: 16 bits a channel with transparency, not compressed
MIN_SIDE = 16  # pixels: one cell of a detector's feature map
MAX_RATIO = 30  # of the sides: detectors shrink the longer one to 1000 pixels, which leaves the shorter one two cells
MAX_SCANS = 100  # of a JPEG; a progressive one usually has 10
MAX_BLOCKS = 4000  # of up to 255 bytes, in the comments of a GIF before its first frame
SECONDS, SECONDS_PER_MEGAPIXEL = 3, 0.1  # of the processor; photographs usually take 0.01
MEMORY, MEMORY_PER_PIXEL = 400_000_000, 36  # bytes, besides three times the file
OUT_OF_MEMORY = 3  # exit status
JPEG, PNG = b'\xff\xd8', b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR'  # their first bytes
TAIL = 1024  # bytes in which the end of a picture is expected
ORIENTATION, TRANSPOSED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange width and height
WEBP_MEMORY = 2_200_000_000  # bytes that its decoder reserves, but does not use, for the largest size


class PictureError(ValueError):
    """A picture that cannot be used; the message names the file, what was expected and found, and what to do."""


def decode(source, name, allow=lambda size, area: None, fit=None):
    """(width, height, RGB bytes, (width, height) in the file) of the picture in a file, or in the bytes of one.

    name: for messages; allow: called with the bytes of the file and the pixels, 0 before they are known, to set limits; fit:
    None, or (box, size, resample, reduced): the picture as `fitted` returns it; reduced: a JPEG is decoded at 1/2, 1/4 or 1/8 of
    its size where that leaves no fewer pixels than `size`. Raises PictureError, or MemoryError by those limits.
    """
    with _naming(name):
        data = source if isinstance(source, bytes) else _read(source, name)
        _check(name, 'bytes', MAX_BYTES, len(data))
        allow(len(data), WEBP_MEMORY // MEMORY_PER_PIXEL if data[8:12] == b'WEBP' else 0)
        if data.startswith(JPEG):
            _check(name, 'scans', MAX_SCANS, count_scans(data))
        elif data.startswith(b'GIF8'):
            _check(name, 'blocks of comments', MAX_BLOCKS, count_blocks(data))
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            _check_size(name, *image.size)
            allow(len(data), math.prod(image.size))
            if fit is None:
                image = _rgb(name, ImageOps.exif_transpose(image))
                return *image.size, image.tobytes(), image.size
            box, size, resample, reduced = fit
            original = None
            if reduced and image.format == 'JPEG':
                original = upright = _upright(image)
                image.draft('RGB', _least(upright, box, size)[::-1 if upright != image.size else 1])
            image = _rgb(name, ImageOps.exif_transpose(image))
            original = original or image.size
            return *size, fitted(image, original, box, size, resample).tobytes(), original


def measure(source, name, allow=lambda size, area: None):
    """(width, height), upright, of the picture in a file, or in the bytes of one. Only the header is read of a JPEG or PNG that
    has its end; others are decoded, so that one which is cut off is found. Otherwise as `decode`."""
    with _naming(name), BytesIO(source) if isinstance(source, bytes) else _open(source, name) as file:
        size = file.seek(0, os.SEEK_END)
        _check(name, 'bytes', MAX_BYTES, size)
        file.seek(max(0, size - TAIL))
        tail = file.read()
        file.seek(0)
        allow(size, 0)
        head = file.read(26)
        file.seek(0)
        if head.startswith(JPEG) and b'\xff\xd9' in tail:
            with Image.open(file, formats=('JPEG',)) as image:
                _check_size(name, *image.size)
                return _upright(image)
        if head.startswith(PNG) and b'IEND' in tail and not re.search(b'(?i)exif', file.read(size)):
            width_height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
            _check_size(name, *width_height)
            return width_height
        file.seek(0)
        return decode(file.read(size), name, allow)[3]


def fitted(image, original, box, size, resample):
    """The part `box` (left, upper, right, lower; None: all) of a pillow image, resized to (width, height). original: the size to
    which the box refers; the image has a fraction of it if its JPEG was decoded at a reduced scale."""
    if box is None or image.size == original:
        return (image.crop(box) if box else image).resize(size, resample)
    scale = [new / old for new, old in zip(image.size, original, strict=True)] * 2
    return image.resize(size, resample, [min(side * by, most) for side, by, most in zip(box, scale, image.size * 2, strict=True)])


def _least(original, box, size):
    """The smallest size of an image whose part `box` has no fewer pixels than `size`."""
    part = (box[2] - box[0], box[3] - box[1]) if box else original
    return tuple(min(old, math.ceil(old * new / side)) for old, new, side in zip(original, size, part, strict=True))


def _upright(image):
    """The size of a JPEG after its EXIF orientation, as of one that is not decoded."""
    return image.size[::-1] if image.getexif().get(ORIENTATION) in TRANSPOSED else image.size


@contextlib.contextmanager
def _naming(name):
    """Raises PictureError that names the picture instead of what pillow raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # pillow's, about large pictures and odd metadata
            yield
    except (PictureError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(f'{name}: expected a picture ({", ".join(FORMATS)}), found something else; leave it out, or fetch it '
                           'again') from None
    except Image.DecompressionBombError:
        raise PictureError(f'{name}: expected at most {MAX_PIXELS:,} pixels, found far more; make it smaller') from None
    except Exception as error:  # a damaged file can make pillow raise nearly anything, SyntaxError and struct.error too
        reason = f'{type(error).__name__}: {error}'.split('\n')[0]
        advice = 'correct its name or rights, or leave it out' if getattr(error, 'errno', None) else 'fetch it again'
        raise PictureError(f'{name}: expected a whole picture, found one that cannot be read to its end ({reason}); {advice}'
                           ) from None


def _open(path, name):
    if not Path(path).is_file():
        raise PictureError(f'{name}: no such file; correct its name, or leave it out')
    return open(path, 'rb')


def _read(path, name):
    with _open(path, name) as file:
        _check(name, 'bytes', MAX_BYTES, os.fstat(file.fileno()).st_size)
        return file.read(MAX_BYTES + 1)


def _check(name, what, most, number):
    if number > most:
        raise PictureError(f'{name}: expected at most {most:,} {what}, found {number:,}; leave it out, or save it anew')


def count_scans(data):
    """The scans of a JPEG file, each of which goes over all pixels of a progressive one."""
    if (count := data.count(b'\xff\xda')) <= MAX_SCANS:  # with those inside of metadata, such as the scan of a thumbnail
        return count
    count, position = 0, 2
    while marker := re.compile(rb'\xff([^\x00\xff\xd0-\xd7])').search(data, position):
        position = marker.end() + int.from_bytes(data[marker.end():marker.end() + 2])
        if marker[1] == b'\xd9':  # the end of the picture
            break
        count += marker[1] == b'\xda'
    return count


def count_blocks(data):
    """The blocks of comments and other extensions in a GIF file before its first frame: pillow joins them one by one."""
    file, count = BytesIO(data), 0
    flags = file.read(13)[-3]
    file.seek(6 << (flags & 7) if flags & 128 else 0, os.SEEK_CUR)  # the palette
    while (kind := file.read(1)) not in (b'', b';', b','):
        if kind == b'!':
            file.read(1)
            while size := int.from_bytes(file.read(1)):
                file.seek(size, os.SEEK_CUR)
                count += 1
    return count


def _check_size(name, width, height):
    if width * height > MAX_PIXELS:
        raise PictureError(f'{name}: expected at most {MAX_PIXELS:,} pixels, found {width:,} x {height:,}; make it smaller')
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_RATIO * min(width, height):
        raise PictureError(f'{name}: expected sides of at least {MIN_SIDE} pixels, none more than {MAX_RATIO} times the '
                           f'other, found {width:,} x {height:,}; a detector sees nothing in it, leave it out or cut it')


def _rgb(name, image):
    """A pillow image of any mode in RGB."""
    if image.mode.startswith('I;16'):  # pillow would clip values above 255
        import numpy as np  # imported here: without it the process starts in half the time
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ('I', 'F'):
        raise PictureError(f'{name}: expected 8 or 16 bits a channel, found 32 (mode {image.mode}), whose range '
                           'is unknown; save it with 8')
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return image.convert('RGB')


# ---------------------------------------------------------------------------- the process


def serve(connection, pixels):
    """Answers each request (name, path or bytes, what) with json: {'error'}; {'original': [width, height]} of `measure`, if what
    is 'size'; or, if it is the `fit` of `decode`, also {'size': [width, height]} and RGB in the file `pixels`."""
    start = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()  # bytes of memory

    def allow(begin, size, area):
        _limit(resource.RLIMIT_AS, start + MEMORY + 3 * size + MEMORY_PER_PIXEL * area)
        _limit(resource.RLIMIT_CPU, math.ceil(begin + SECONDS + SECONDS_PER_MEGAPIXEL * area / 1e6))

    _limit(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(EOFError, OSError):  # until the other process ends
        while True:
            name, source, what = connection.recv()
            limits = partial(allow, time.process_time())
            try:
                if what == 'size':
                    reply = {'original': measure(source, name, limits)}
                else:
                    *size, data, original = decode(source, name, limits, what)
                    os.ftruncate(pixels, len(data))
                    os.pwrite(pixels, data, 0)
                    reply = {'size': size, 'original': original}
            except PictureError as error:
                reply = {'error': str(error)}
            except MemoryError:  # what comes next could need memory too
                os._exit(OUT_OF_MEMORY)
            allow(time.process_time(), MAX_BYTES, MAX_PIXELS)  # to receive the next one
            connection.send_bytes(json.dumps(reply).encode())


def _limit(resource_, value):
    _, most = resource.getrlimit(resource_)
    resource.setrlimit(resource_, (value if most == resource.RLIM_INFINITY else min(value, most), most))


if __name__ == '__main__':
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
