"""Draws the regions of an image on its photograph, with the names of their classes, to see whether they are right."""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from regions.names import Names
from regions.tsv import ImageRegions, RegionError

SIDE = 1280  # pixels of the longer side drawn; smaller pictures are enlarged, so that labels leave some of them to see
FONT = 17  # pixels
GAP = 4  # pixels around the text of a label
ATTRIBUTE = 0.15  # confidence above which an attribute is named
ENDINGS = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')


def draw(image: ImageRegions, names: Names, photo: Image.Image | None = None, most: int = 20) -> Image.Image:
    """The `most` regions with the highest class confidence; `photo` None draws on a blank canvas. Returns RGB.

    Thicker lines are surer. Labels do not cover each other as long as there is room. Raises RegionError if the photograph
    has not the shape that the regions were found in.
    """
    scale = SIDE / max(image.width, image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = _fitted(image, photo).resize(size, Image.Resampling.LANCZOS) if photo else Image.new('RGB', size, 'white')
    drawing, font = ImageDraw.Draw(canvas), ImageFont.load_default(FONT)
    chosen = np.argsort(-image.class_conf, kind='stable')[:most].tolist()
    boxes = {region: (image.boxes[region] * scale).tolist() for region in chosen}
    colours = {region: _colour(rank) for rank, region in enumerate(chosen)}
    for region in reversed(chosen):  # the surest on top
        drawing.rectangle(_drawable(boxes[region], size), outline=colours[region], width=_thickness(image.class_conf[region]))
    texts = {region: label(image, region, names) for region in chosen}
    above, below = font.getmetrics()
    places = {}
    for region in chosen:
        wide = drawing.textlength(texts[region], font) + 2 * GAP
        places[region] = _place(boxes[region], (wide, above + below + GAP), size, list(places.values()))
        _point_to(drawing, places[region], boxes[region], colours[region])
    for region, place in places.items():  # over every line
        drawing.rectangle(place, fill=colours[region], outline='black')
        drawing.text((place[0] + GAP, place[1] + GAP / 2), texts[region], fill=_ink(colours[region]), font=font)
    return canvas


def label(image: ImageRegions, region: int, names: Names) -> str:
    """`red car 0.83`: the attribute only where the detector is somewhat sure of it."""
    attribute = names.name('attributes', int(image.attributes[region])) + ' '
    return (f'{attribute if image.attribute_conf[region] >= ATTRIBUTE else ""}'
            f'{names.name("classes", int(image.classes[region]))} {image.class_conf[region]:.2f}')


def find_photo(folder, img_id: str) -> Image.Image:
    """`folder`/`img_id` with an ending of photographs, as RGB. Raises RegionError if it is missing or not whole."""
    path = next((path for ending in ENDINGS if (path := Path(folder) / f'{img_id}{ending}').is_file()), None)
    if path is None:
        raise RegionError(f'{Path(folder) / img_id}.jpg: no such photograph, nor one ending in .png; correct --photos, or '
                          'leave it out for a blank canvas')
    try:
        return Image.open(path).convert('RGB') if Image.open(path).getexif().get(274, 1) == 1 else _turned(path)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise RegionError(f'{path}: expected a photograph, found a file that cannot be read as one ({error})') from None


def file_name(img_id: str) -> str:
    """The name of the PNG of an image; ids are free text, file names are not."""
    return img_id.replace('/', '_').replace('\\', '_').lstrip('.')[:200] + '.png'


def _turned(path) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(path)).convert('RGB')


def _fitted(image: ImageRegions, photo: Image.Image) -> Image.Image:
    """The photograph, if its shape is that of the regions' picture: a smaller copy will do, another picture not."""
    width, height = photo.size
    if abs(width * image.height - height * image.width) > 1.5 * max(image.width, image.height, width, height):
        raise RegionError(f'image {image.img_id}: expected a photograph of {image.width} x {image.height} pixels or of that '
                          f'shape, found {width} x {height}; it is another picture, or cut')
    return photo


def _thickness(confidence: float) -> int:
    return 1 + round(4 * float(np.clip(confidence, 0, 1)))


def _colour(rank: int) -> tuple[int, int, int]:
    """Hues a golden section apart: neighbours in rank look different, however many there are."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb((0.02 + rank * 0.618034) % 1, 0.85, 1 - 0.25 * (rank % 2)))


def _ink(colour: tuple[int, int, int]) -> str:
    return 'black' if np.dot(colour, (0.299, 0.587, 0.114)) > 120 else 'white'


def _drawable(box: list[float], size: tuple[int, int]) -> list[float]:
    """The box inside the canvas and at least a pixel large."""
    x1, y1 = min(box[0], size[0] - 2), min(box[1], size[1] - 2)
    return [x1, y1, max(x1 + 1, min(box[2], size[0] - 1)), max(y1 + 1, min(box[3], size[1] - 1))]


def _place(box: list[float], label: tuple[float, float], size: tuple[int, int], taken: list) -> tuple[float, ...]:
    """Where a label (width, height) goes: the free place nearest to the box's corner, else the least covered one."""
    width, height = label
    x1, y1, x2, y2 = box
    rows = [y1 - height, y1, y2 - height, y2, *np.arange(0, size[1] - height, height / 2)]
    columns = [x1, x2 - width, (x1 + x2 - width) / 2, x1 - width, x2]
    best, least = None, None
    for y in rows:
        for x in columns:
            left, top = min(max(0, x), max(0, size[0] - 1 - width)), min(max(0, y), max(0, size[1] - 1 - height))
            place = (left, top, left + width, top + height)
            covered = sum(_overlap(place, other) for other in taken)
            far = abs(left - x1) + abs(top - (y1 - height))
            if least is None or (covered, far) < least:
                best, least = place, (covered, far)
    return best


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The pixels that two rectangles x1, y1, x2, y2 have in common."""
    return (max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
            * max(0.0, min(one[3], other[3]) - max(one[1], other[1])))


def _point_to(drawing: ImageDraw.ImageDraw, place: tuple[float, ...], box: list[float], colour) -> None:
    """A line from a label to its box, where the two do not touch."""
    x, y = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
    to = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    if place[0] - 1 <= to[0] <= place[2] + 1 and place[1] - 1 <= to[1] <= place[3] + 1:
        return
    drawing.line((x, y, *to), fill=colour, width=2)
