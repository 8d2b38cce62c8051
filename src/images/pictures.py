"""Opens pictures as 8-bit RGB arrays, upright and complete, or raises an error that says what is wrong."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401, registers these formats

from files.text import InputError

# Only these: each further format that pillow knows is one more parser exposed to untrusted files.
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF')
ENDINGS = ('.jpg', '.jpeg', '.png', '.gif', '.bmp', '.webp', '.tif', '.tiff')
MAX_PIXELS = 64_000_000
MIN_SIDE = 16  # pixels: one cell of a detector's feature map
MAX_RATIO = 30  # of the sides: detectors shrink the longer one to 1000 pixels, which leaves the shorter one two cells


class PictureError(InputError):
    """A picture that cannot be used; the message names the file, what was expected and found, and what to do."""


def open_picture(source):
    """The picture in a file, or in the bytes of one, as uint8 (h, w, 3) RGB.

    As OpenCV's imread, which the published features were made with: EXIF orientation is applied, 16 bits are cut to the upper 8,
    an animation gives its first frame, colour profiles are ignored. Unlike imread, transparent parts are composited on white.
    Raises PictureError. A picture of more than MAX_PIXELS is refused before it is decoded, which takes up to 32 bytes a pixel.
    """
    name = 'the picture' if isinstance(source, bytes) else str(source)
    try:
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise PictureError(f'{name}: no such file; correct its name, or leave it out')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # pillow's, about large pictures and odd metadata
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                _check_size(name, *image.size)
                return _rgb(name, ImageOps.exif_transpose(image))
    except PictureError:
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


def _check_size(name, width, height):
    if width * height > MAX_PIXELS:
        raise PictureError(f'{name}: expected at most {MAX_PIXELS:,} pixels, found {width:,} x {height:,}; make it smaller')
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_RATIO * min(width, height):
        raise PictureError(f'{name}: expected sides of at least {MIN_SIDE} pixels, none more than {MAX_RATIO} times the '
                           f'other, found {width:,} x {height:,}; a detector sees nothing in it, leave it out or cut it')


def _rgb(name, image):
    """The pixels of a pillow image of any mode, uint8 (h, w, 3)."""
    if image.mode.startswith('I;16'):  # pillow would clip values above 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ('I', 'F'):
        raise PictureError(f'{name}: expected 8 or 16 bits a channel, found 32 (mode {image.mode}), whose range '
                           'is unknown; save it with 8')
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return np.array(image.convert('RGB'))
