"""Draws the regions of an image on its photograph, with the names of their classes, to see whether they are right."""

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from images.pictures import PictureError, open_picture
from regions.class_names import ClassNames
from regions.tsv import ImageRegions, RegionError

SIDE = 1280  # pixels of the longer side drawn; smaller pictures are enlarged, so that labels leave some of them to see
FONT = 17  # pixels
GAP = 4  # pixels around the text of a label
ATTRIBUTE = 0.15  # confidence above which an attribute is named
ENDINGS = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')


def draw(image: ImageRegions, names: ClassNames, photo: Image.Image | None = None, most: int = 20) -> Image.Image:
    """The `most` regions with the highest class confidence; `photo` None draws on a blank canvas. Returns RGB.

    Thicker lines are surer. Raises RegionError if the photograph has not the shape that the regions were found in.
    """
    canvas, boxes = ground(image, photo)
    drawing = ImageDraw.Draw(canvas)
    chosen = surest(image, most)
    colours = [_colour(rank) for rank in range(len(chosen))]
    for region, colour in reversed([*zip(chosen, colours, strict=True)]):  # the surest on top
        thickness = 1 + round(4 * min(1, max(0, float(image.class_conf[region]))))
        drawing.rectangle(boxes[region], outline=colour, width=thickness)
    write(drawing, [boxes[region] for region in chosen], [label(image, region, names) for region in chosen], colours)
    return canvas


def ground(image: ImageRegions, photo: Image.Image | None) -> tuple[Image.Image, list[list[float]]]:
    """A canvas with the photograph, or blank, its longer side SIDE, and the boxes of all regions on it.

    Raises RegionError if the photograph has not the shape that the regions were found in.
    """
    scale = SIDE / max(image.width, image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if photo:
        check_shape(photo, image)
    canvas = photo.resize(size, Image.Resampling.LANCZOS) if photo else Image.new('RGB', size, 'white')
    return canvas, [_drawable((box * scale).tolist(), size) for box in image.boxes]


def write(drawing: ImageDraw.ImageDraw, boxes: list[list[float]], texts: list[str], colours: list) -> None:
    """A label for each box, the first ones nearest to theirs. They do not cover each other as long as there is room."""
    font, size = ImageFont.load_default(FONT), drawing.im.size
    above, below = font.getmetrics()
    places = []
    for box, text, colour in zip(boxes, texts, colours, strict=True):
        wide = drawing.textlength(text, font) + 2 * GAP
        places.append(_place(box, (wide, above + below + GAP), size, places))
        _point_to(drawing, places[-1], box, colour)
    for place, text, colour in zip(places, texts, colours, strict=True):  # over every line
        drawing.rectangle(place, fill=colour, outline='black')
        ink = 'black' if np.dot(colour, (0.299, 0.587, 0.114)) > 120 else 'white'
        drawing.text((place[0] + GAP, place[1] + GAP / 2), text, fill=ink, font=font)


def surest(image: ImageRegions, most: int) -> list[int]:
    """The `most` regions with the highest class confidence, the highest first."""
    return np.argsort(-image.class_conf, kind='stable')[:most].tolist()


def label(image: ImageRegions, region: int, names: ClassNames) -> str:
    """`red car 0.83`: the attribute only where the detector is somewhat sure of it."""
    attribute = names.name('attributes', int(image.attributes[region])) + ' '
    return (f'{attribute if image.attribute_conf[region] >= ATTRIBUTE else ""}'
            f'{names.name("classes", int(image.classes[region]))} {image.class_conf[region]:.2f}')


def check_shape(photo: Image.Image, image: ImageRegions) -> None:
    """Raises RegionError if a photograph has not the shape that the regions were found in; a smaller copy will do."""
    width, height = photo.size
    if abs(width * image.height - height * image.width) > 1.5 * max(image.width, image.height, width, height):
        raise RegionError(f'image {image.img_id}: expected a photograph of {image.width} x {image.height} pixels or of that '
                          f'shape, found {width} x {height}; it is another picture, or cut')


def photo_path(folder, img_id: str) -> Path | None:
    """`folder`/`img_id` with an ending of photographs, or None if there is no such file."""
    return next((path for ending in ENDINGS if (path := Path(folder) / f'{img_id}{ending}').is_file()), None)


def find_photo(folder, img_id: str) -> Image.Image:
    """The photograph at `photo_path`. Raises RegionError if it is missing or not whole."""
    path = photo_path(folder, img_id)
    if path is None:
        raise RegionError(f'{Path(folder) / img_id}.jpg: no such photograph, nor one ending in .png; correct --photos, or '
                          'leave it out for a blank canvas')
    return open_photo(path)


def open_photo(path) -> Image.Image:
    """A photograph as RGB, turned as its EXIF data say. Raises RegionError if it is not whole."""
    try:
        return Image.fromarray(open_picture(path))
    except PictureError as error:
        raise RegionError(str(error)) from None


def file_name(img_id: str) -> str:
    """The name of the PNG of an image; ids are free text, file names are not."""
    return img_id.replace('/', '_').replace('\\', '_').lstrip('.')[:200] + '.png'


def _colour(rank: int) -> tuple[int, int, int]:
    """Hues a golden section apart: neighbours in rank look different, however many there are."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb((0.02 + rank * 0.618034) % 1, 0.85, 1 - 0.25 * (rank % 2)))


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
