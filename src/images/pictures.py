"""Pictures from files, as a detector takes them: whole, upright, 8 bits RGB, or an error that says what is wrong."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, WebPImagePlugin  # noqa: F401, else pillow does not know these formats yet

# Few formats, since every other one that pillow knows is one more way in for a file that is not what it seems.
FORMATS = ('JPEG', 'PNG', 'GIF', 'BMP', 'WEBP', 'TIFF')
ENDINGS = ('.jpg', '.jpeg', '.png', '.gif', '.bmp', '.webp', '.tif', '.tiff')
MOST_PIXELS = 64_000_000
LEAST_SIDE = 16  # pixels: one cell of the detector's map
MOST_RATIO = 30  # of the sides: the detector shrinks the longer one to 1000 pixels, which leaves the shorter one two cells


class PictureError(ValueError):
    """A picture that cannot be used; the message names the file, what was expected, found, and what to do."""


def open_picture(source, most_pixels=MOST_PIXELS):
    """The picture in a file, or in the bytes of one, as uint8 (h, w, 3) RGB.

    As OpenCV's imread, with which the published features were made, it turns a photograph as its EXIF orientation says, takes of
    16 bits the upper 8, and of an animation the first frame. Unlike it, transparent parts are put on white, where imread shows
    whatever lies beneath. Colour profiles are ignored, as there. Raises PictureError; a picture of more than `most_pixels` is
    refused before it is decoded, so that this takes at most 32 bytes a pixel.
    """
    name = 'the picture' if isinstance(source, bytes) else str(source)
    try:
        if not isinstance(source, bytes) and not Path(source).is_file():
            raise PictureError(f'{name}: no such file; correct its name, or leave it out')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # pillow's own about large pictures and odd metadata
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
                _check_size(name, *image.size, most_pixels)
                return _rgb(name, ImageOps.exif_transpose(image))
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(f'{name}: expected a picture ({", ".join(FORMATS)}), found something else; leave it out, or fetch it '
                           'again') from None
    except Image.DecompressionBombError:
        raise PictureError(f'{name}: expected at most {most_pixels:,} pixels, found far more; make it smaller') from None
    except Exception as error:  # a damaged file makes pillow raise nearly anything, SyntaxError and struct.error too
        reason = f'{type(error).__name__}: {error}'.split('\n')[0]
        todo = 'correct its name or rights, or leave it out' if getattr(error, 'errno', None) else 'fetch it again'
        raise PictureError(f'{name}: expected a whole picture, found one that cannot be read to its end ({reason}); {todo}'
                           ) from None


def _check_size(name, width, height, most_pixels):
    if width * height > most_pixels:
        raise PictureError(f'{name}: expected at most {most_pixels:,} pixels, found {width:,} x {height:,}; make it smaller')
    if min(width, height) < LEAST_SIDE or max(width, height) > MOST_RATIO * min(width, height):
        raise PictureError(f'{name}: expected sides of at least {LEAST_SIDE} pixels, none more than {MOST_RATIO} times the '
                           f'other, found {width:,} x {height:,}; a detector sees nothing in it, leave it out or cut it')


def _rgb(name, image):
    """The pixels of a pillow image of any mode, uint8 (h, w, 3)."""
    if image.mode.startswith('I;16'):  # pillow would clip what is above 255
        return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode in ('I', 'F'):
        raise PictureError(f'{name}: expected 8 or 16 bits a channel, found 32 (mode {image.mode}), of which nothing says what '
                           'is white; save it with 8')
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new('RGBA', image.size, 'white'), image.convert('RGBA'))
    return np.array(image.convert('RGB'))
