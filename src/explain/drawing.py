"""Drawings: regions on a picture with labels, relevance on regions, words and attention heads as shades. All are PNG."""

import colorsys
import os
import sys
import unicodedata
import warnings
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from files.atomic import write_atomically
from files.text import printable
from images.pictures import PictureError, open_picture
from regions.tsv import RegionError

SIDE = 1280  # pixels of the longer side drawn; smaller pictures are enlarged, so that labels leave some of them to see
FONT = 17  # pixels
GAP = 4  # pixels around the text of a label
ATTRIBUTE = 0.15  # confidence above which an attribute is named
ENDINGS = ('.jpg', '.jpeg', '.png', '.JPG', '.JPEG', '.PNG')
RELEVANT = (213, 62, 10)  # colour of what is relevant
CHOSEN = (0, 160, 255)  # colour of the region that a model chose, inside a white line
FRAME = 6  # pixels of the line in this colour
DIM = 0.4  # brightness where no region has any weight
LINE = 1 / 200  # width of a region's outline over a picture, of its longer side
BLUR, HEAT_DENSITY = 0.02, 0.7  # of maps, as in ALBEF's code: radius, of the longer side; exponent of their weight
PANEL = 320  # pixels of the longer side of a picture in a figure
DPI = 110
NO_MATH = {'parse_math': False}  # dollars in a question are no formula
CELL = 0.2  # inches of a row or column of a heat map
SYMBOL_FONTS = ('cm', 'STIX', 'Last Resort')  # matplotlib's, of formulas and of placeholders
_without_font = set()  # characters that were named as having none


# ---- regions of a picture


def draw_regions(image, names, photo=None, most=20):
    """A picture in RGB of the `most` regions of an ImageRegions with the highest class confidence.

    names: ClassNames; photo: a PIL image, None for a blank canvas. Thicker lines are surer. Raises RegionError if the photograph
    has not the shape that the regions were found in.
    """
    canvas, boxes = canvas_of(image, photo)
    drawing = ImageDraw.Draw(canvas)
    chosen = surest(image, most)
    colours = [_colour(rank) for rank in range(len(chosen))]
    for region, colour in reversed([*zip(chosen, colours, strict=True)]):  # the surest on top
        thickness = 1 + round(4 * min(1, max(0, float(image.class_conf[region]))))
        drawing.rectangle(boxes[region], outline=colour, width=thickness)
    draw_labels(drawing, [boxes[region] for region in chosen], [label(image, region, names) for region in chosen], colours)
    return canvas


def canvas_of(image, photo):
    """(a canvas with the photograph, or blank, whose longer side is SIDE; the boxes of all regions on it).

    Raises RegionError if the photograph has not the shape that the regions were found in.
    """
    scale = SIDE / max(image.width, image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    if photo:
        check_shape(photo, image)
    canvas = photo.resize(size, Image.Resampling.LANCZOS) if photo else Image.new('RGB', size, 'white')
    return canvas, [_drawable((box * scale).tolist(), size) for box in image.boxes]


def draw_labels(drawing, boxes, texts, colours):
    """A label for each box, the first ones nearest to theirs. They do not cover each other as long as there is room."""
    font, size = _pil_font(texts), drawing.im.size
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


def surest(image, most):
    """The `most` regions with the highest class confidence, the highest first."""
    return np.argsort(-image.class_conf, kind='stable')[:most].tolist()


def label(image, region, names):
    """`red car 0.83`: the attribute only where the detector is somewhat sure of it."""
    attribute = names.name('attributes', int(image.attributes[region])) + ' '
    return (f'{attribute if image.attribute_conf[region] >= ATTRIBUTE else ""}'
            f'{names.name("classes", int(image.classes[region]))} {image.class_conf[region]:.2f}')


def check_shape(photo, image):
    """Raises RegionError if a photograph has not the shape that the regions were found in; a smaller copy will do."""
    width, height = photo.size
    if abs(width * image.height - height * image.width) > 1.5 * max(image.width, image.height, width, height):
        raise RegionError(f'image {image.img_id}: expected a photograph of {image.width} x {image.height} pixels or of that '
                          f'shape, found {width} x {height}; it is another picture, or cut')


def photo_path(folder, img_id):
    """`folder`/`img_id` with an ending of photographs, also one in the id, or None if there is no such file below the folder."""
    endings = ('',) * img_id.endswith(ENDINGS) + ENDINGS
    path = next((path for ending in endings if os.path.isfile(path := Path(folder) / f'{img_id}{ending}')), None)
    if path and '/' in img_id and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        return None  # ids come with the data, and may have .. or begin with /
    return path


def find_photo(folder, img_id):
    """The photograph at `photo_path`. Raises RegionError if it is missing or not whole."""
    path = photo_path(folder, img_id)
    if path is None:
        raise RegionError(f'{Path(folder) / img_id}.jpg: no such photograph, nor one ending in .png; correct --photos, or '
                          'leave it out for a blank canvas')
    return open_photo(path)


def open_photo(path):
    """A photograph as RGB, turned as its EXIF data say. Raises RegionError if it is not whole."""
    try:
        return Image.fromarray(open_picture(path))
    except PictureError as error:
        raise RegionError(str(error)) from None


def file_name(img_id):
    """The name of the PNG of an image; ids are free text, file names are not."""
    return img_id.replace('/', '_').replace('\\', '_').lstrip('.')[:200] + '.png'


def _colour(rank):
    """Hues a golden section apart: neighbours in rank look different, however many there are."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb((0.02 + rank * 0.618034) % 1, 0.85, 1 - 0.25 * (rank % 2)))


def _drawable(box, size):
    """The box inside the canvas and at least a pixel large."""
    x1, y1 = min(box[0], size[0] - 2), min(box[1], size[1] - 2)
    return [x1, y1, max(x1 + 1, min(box[2], size[0] - 1)), max(y1 + 1, min(box[3], size[1] - 1))]


def _place(box, label, size, taken):
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


def _overlap(one, other):
    """The pixels that two rectangles x1, y1, x2, y2 have in common."""
    return (max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
            * max(0.0, min(one[3], other[3]) - max(one[1], other[1])))


def _point_to(drawing, place, box, colour):
    """A line from a label to its box, where the two do not touch."""
    x, y = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2
    to = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    if place[0] - 1 <= to[0] <= place[2] + 1 and place[1] - 1 <= to[1] <= place[3] + 1:
        return
    drawing.line((x, y, *to), fill=colour, width=2)


# ---- relevance and attention


def shade():
    """The colour map from white to RELEVANT."""
    from matplotlib.colors import LinearSegmentedColormap  # imported here: drawing regions does not need matplotlib

    return LinearSegmentedColormap.from_list('relevance', ['white', [part / 255 for part in RELEVANT]])


def draw_relevance(image, strength, texts, photo=None, chosen=None):
    """The regions of an ImageRegions on its photograph, or on a blank canvas where it is None; RGB.

    strength (o,), 0 to 1: the larger, the brighter is what a region shows and the thicker and denser its line; texts {region:
    label}, the most important first; chosen: (region, label) of the one that the model chose, drawn over all others, or None.
    Raises RegionError if the photograph has not the shape that the regions were found in.
    """
    canvas, boxes = canvas_of(image, photo)
    light = np.full((canvas.height, canvas.width), DIM)
    for (x1, y1, x2, y2), part in zip(boxes, strength, strict=True):
        area = light[int(y1):int(y2) + 1, int(x1):int(x2) + 1]
        np.maximum(area, DIM + (1 - DIM) * part, out=area)
    canvas = Image.fromarray((np.asarray(canvas) * light[..., None]).astype(np.uint8))
    lines = Image.new('RGBA', canvas.size)
    for region in np.argsort(strength, kind='stable'):  # the strongest on top
        over = Image.new('RGBA', canvas.size)
        ImageDraw.Draw(over).rectangle(boxes[region], outline=(*RELEVANT, round(255 * strength[region])),
                                       width=1 + round(7 * strength[region]))
        lines = Image.alpha_composite(lines, over)
    canvas = Image.alpha_composite(canvas.convert('RGBA'), lines).convert('RGB')
    paint, labels = ImageDraw.Draw(canvas), [(region, text, RELEVANT) for region, text in texts.items()]
    if chosen:
        labels.insert(0, (*chosen, CHOSEN))
        _frame(paint, boxes[chosen[0]], canvas.size)
    draw_labels(paint, [boxes[region] for region, _, _ in labels], [text for _, text, _ in labels],
                [colour for _, _, colour in labels])
    return canvas


def _frame(paint, box, size):
    """A frame in the colour CHOSEN around a box, and around the line that shows its relevance."""
    for margin, colour in ((FRAME + 2, 'white'), (FRAME, CHOSEN)):
        (x1, y1, x2, y2), (width, height) = box, size
        paint.rectangle((max(0, x1 - margin), max(0, y1 - margin), min(width - 1, x2 + margin), min(height - 1, y2 + margin)),
                        outline=colour, width=margin)


def region_opacity(image, region, strength, size):
    """The opacity (height, width), 0 to 1, of a region of an ImageRegions on a picture of size (width, height): an outline, and a
    faint area inside. strength: 0 to 1."""
    width, height = size
    x1, y1, x2, y2 = (image.boxes[region] * (width / image.width)).round().astype(int).clip(0).tolist()
    line = max(2, round(max(width, height) * LINE))
    opacity = np.zeros((height, width))
    opacity[y1:y2 + 1, x1:x2 + 1] = 0.3 + 0.7 * strength
    opacity[y1 + line:max(y2 + 1 - line, 0), x1 + line:max(x2 + 1 - line, 0)] = 0.3 * strength
    return opacity


def scaled(maps):
    """Maps of any shape, whose least value becomes 0 and whose largest 1; all 0 if these are the same."""
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low or 1)


def resized(strength, size):
    """A map over patches (rows, columns), from 0 to at most 1, smoothed in the size (width, height) of a picture: (height,
    width), with the same maximum."""
    most = float(strength.max())
    shades = Image.fromarray((255 * strength / (most or 1)).astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    shades = Image.fromarray(np.asarray(shades).clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(BLUR * max(size)))
    smooth = np.asarray(shades, np.float64)
    return most * smooth / (smooth.max() or 1)


def draw_heat(picture, strength):
    """A PIL image under the colours of a map over its patches (rows, columns), from 0 to at most 1, as in ALBEF's code: the
    higher, the denser."""
    from matplotlib import colormaps

    heat = resized(strength, picture.size)
    weight = (heat ** HEAT_DENSITY)[..., None]
    mixed = (1 - weight) * np.asarray(picture) + weight * 255 * colormaps['jet'](heat)[..., :3]
    return Image.fromarray(mixed.round().astype(np.uint8))


def draw_map(image, strength, photo, chosen=None):
    """The photograph of an ImageRegions under a map, as `draw_heat`, with the region that the model chose; RGB. chosen: as of
    draw_relevance."""
    canvas, boxes = canvas_of(image, photo)
    canvas = draw_heat(canvas, strength)
    if chosen:
        paint, (region, text) = ImageDraw.Draw(canvas), chosen
        _frame(paint, boxes[region], canvas.size)
        draw_labels(paint, [boxes[region]], [text], [CHOSEN])
    return canvas


def draw_panels(title, photo, panels):
    """A figure of a photograph under several maps: (text, map (rows, columns), each `scaled`, or None: without one)."""
    from matplotlib.figure import Figure

    small = photo.copy()
    small.thumbnail((PANEL, PANEL))
    across = min(len(panels), 6)
    down = -(-len(panels) // across)
    high = down * (2 * small.height / small.width + 0.3) + 0.4
    figure = Figure(figsize=(2 * across, high), dpi=DPI, layout='constrained')
    for i, (text, one) in enumerate(panels, 1):
        axes = figure.add_subplot(down, across, i)
        axes.imshow(small if one is None else draw_heat(small, scaled(one)))
        axes.set_title(text, fontsize=9, **NO_MATH)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11, **NO_MATH)
    return figure


def draw_words(figure, place, words, weights):
    """A row of words in a cell of a grid of the figure, each on a shade by its weight (t,); the largest weight is the darkest."""
    axes = figure.add_subplot(place)
    axes.imshow(np.asarray(weights)[None] / (max(weights) or 1), cmap=shade(), vmin=0, vmax=1, aspect='auto')
    for i, (word, weight) in enumerate(zip(words, weights, strict=True)):
        dark = weight > 0.6 * max(weights)
        axes.text(i, 0, word, ha='center', va='center', fontsize=9, color='white' if dark else 'black', **NO_MATH)
    axes.set(xticks=[], yticks=[])
    axes.set_title('relevance of the words', fontsize=9, loc='left')


def draw_heads(title, words, relevance, to_regions, to_words, heads, regions):
    """A figure of one cross layer: words above, shaded by their relevance (t,), then for each head two maps of words x regions.

    to_regions (h, t, o): attention of words to regions; to_words (h, o, t): of regions to words; heads: the numbers of these h,
    from 1; regions: the o columns to show and their order, the first of which is called 1, as in the picture.
    """
    from matplotlib.figure import Figure

    across = 1 if len(heads) <= 4 else 2  # heads in a row
    down = -(-len(heads) // across)
    wide, high = max(CELL * len(regions) + 1.2, 2.4), CELL * len(words) + 0.75
    size = max(across * 2 * wide, 0.75 * len(words)), down * high + 1.6
    figure = Figure(figsize=size, dpi=DPI, layout='constrained')
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    grid = figure.add_gridspec(down + 1, across * 2, height_ratios=[0.6, *[high] * down])
    draw_words(figure, grid[0, :], words, relevance)
    panels, most = [], max(to_regions[:, :, regions].max(), to_words[:, regions].max())
    for i, head in enumerate(heads):
        for side, (what, weights) in enumerate((('words look at regions', to_regions[i][:, regions]),
                                                ('regions look at words', to_words[i][regions].T))):
            axes = figure.add_subplot(grid[1 + i // across, 2 * (i % across) + side])
            panels.append(axes)
            shown = axes.imshow(weights, cmap=shade(), vmin=0, vmax=most, aspect='auto')
            axes.set_title(f'head {head}: {what}', fontsize=9)
            numbers = [1, *range(5, len(regions) + 1, 5)]
            axes.set_xticks([number - 1 for number in numbers], numbers, fontsize=7)
            axes.set_yticks(range(len(words)), words, fontsize=7, **NO_MATH)
            axes.tick_params(length=2)
    figure.suptitle(title, fontsize=11, **NO_MATH)
    figure.colorbar(shown, ax=panels, fraction=0.03, pad=0.01).set_label('attention', fontsize=8)
    figure.supxlabel('regions, in the order of their relevance', fontsize=8)
    return figure


def draw_bars(groups, bars, lines, line_label, axis):
    """A figure of groups of bars with error bars, and a dashed line across each group.

    groups: names; bars: {label: [(height, error or None) or None a group]}; lines: the height of the line of each group.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(1.6 + 1.4 * len(groups), 1.6 + 1.3 * len(bars)), 4), dpi=DPI, layout='constrained')
    axes, width = figure.add_subplot(), 0.8 / len(bars)
    for i, (label, heights) in enumerate(bars.items()):
        shown = {group + (i + 0.5) * width - 0.4: height for group, height in enumerate(heights) if height}
        drawn = axes.bar([*shown], [height for height, _ in shown.values()], width, label=label,
                         yerr=[error or 0 for _, error in shown.values()], capsize=3)
        axes.bar_label(drawn, [f'{height:.0f}' for height, _ in shown.values()], label_type='center', color='white', fontsize=8)
    axes.hlines(lines, np.arange(len(groups)) - 0.45, np.arange(len(groups)) + 0.45, 'black', 'dashed', label=line_label)
    axes.set_xticks(range(len(groups)), groups, **NO_MATH)
    axes.set_ylabel(axis)
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.08), ncols=len(bars) + 1, frameon=False)
    axes.spines[['top', 'right']].set_visible(False)
    return figure


def save(picture, path):
    """Writes a picture of PIL or a figure of matplotlib as PNG, atomically. Raises OSError that names the file."""
    if isinstance(picture, Image.Image):
        write_atomically(path, partial(picture.save, format='png'))
        return
    from matplotlib.text import Text

    texts = [text for text in picture.findobj(Text) if not text.get_text().isascii()]
    families = [font.name for font in fonts_for(text.get_text() for text in texts)] if texts else None
    for text in texts:
        text.set_fontfamily(families)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'Glyph .* missing')  # one a character; fonts_for has said so
        write_atomically(path, partial(picture.savefig, format='png'))


# ---- fonts of scripts that the default ones do not have

@cache
def _characters(path):
    """The code points of a font file; none if it cannot be read or is no scalable font, as those of coloured emoji."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (RuntimeError, OSError, ValueError):
        return frozenset()


def fonts_for(texts):
    """The fonts (matplotlib's FontEntry) for some texts: DejaVu Sans, then the installed ones that their characters need.

    Characters that no font has are named once on stderr.
    """
    from matplotlib import font_manager

    manager = font_manager.fontManager
    lacking = {char for text in texts for char in text if _is_drawn(char)}
    fonts = [next(font for font in manager.ttflist if (font.name, font.style, font.weight) == ('DejaVu Sans', 'normal', 400))]
    lacking, candidates = {char for char in lacking if ord(char) not in _characters(fonts[0].fname)}, ()
    if lacking:
        known = {font.fname for font in manager.ttflist}  # listed once, so that later fonts lack
        for path in sorted({*font_manager.findSystemFonts()} - known):
            with suppress(Exception):  # of the many kinds of broken fonts
                manager.addfont(path)
        candidates = [font for font in manager.ttflist if font.style == 'normal' and not font.name.startswith(SYMBOL_FONTS)]
    for font in sorted(candidates, key=_preference):
        if having := {char for char in lacking if ord(char) in _characters(font.fname)}:
            fonts.append(font)
            lacking -= having
        if not lacking:  # reading all of thousands of fonts takes seconds
            break
    if new := sorted(lacking - _without_font):
        _without_font.update(new)
        print(f'Drawings: no installed font has {len(new):,} of the characters ({printable(" ".join(new[:5]))}); they are drawn '
              'as boxes. Install a font that has them, such as: apt install fonts-noto-core fonts-noto-cjk', file=sys.stderr)
    return fonts


def _preference(font):
    """Orders fonts: complete families of many scripts first, then the plain ones."""
    return not font.name.startswith('Noto Sans'), 'Sans' not in font.name, font.weight != 400, font.name


def _is_drawn(char):
    """Whether a character is seen: not a space, control character, joiner, or variant of an emoji."""
    return not char.isspace() and unicodedata.category(char) not in ('Cc', 'Cf') and not 0xfe00 <= ord(char) <= 0xfe0f


def _pil_font(texts):
    """The font of labels: pillow's own for Latin letters, else the one of fonts_for that has most of the characters."""
    text = ''.join(texts)
    if all(ord(char) < 0x100 for char in text):
        return ImageFont.load_default(FONT)
    best = max(fonts_for([text]), key=lambda font: sum(ord(char) in _characters(font.fname) for char in text))
    return ImageFont.truetype(best.fname, FONT)
