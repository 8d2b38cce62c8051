"""Pictures of attention and relevance, as PNG: regions on the photograph, words and heads as shades."""

from functools import partial

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from explain.region_drawing import ground, write
from files.atomic import write_atomically

COLOUR = (213, 62, 10)  # of what is relevant
SHADE = LinearSegmentedColormap.from_list('relevance', ['white', [part / 255 for part in COLOUR]])
DIM = 0.4  # brightness of what no region with any weight covers
DPI = 110
PLAIN = {'parse_math': False}  # a question's dollars are no formula
CELL = 0.2  # inches of a row or column of a heat strip


def draw_regions(image, strength, texts, photo=None):
    """The regions of an ImageRegions on its photograph, or on a blank canvas where it is None; RGB.

    strength (o,), 0 to 1: the larger, the brighter is what a region shows and the thicker and denser its line; texts {region:
    label}, the most important first. Raises RegionError if the photograph has not the shape that the regions were found in.
    """
    canvas, boxes = ground(image, photo)
    light = np.full((canvas.height, canvas.width), DIM)
    for (x1, y1, x2, y2), part in zip(boxes, strength, strict=True):
        area = light[int(y1):int(y2) + 1, int(x1):int(x2) + 1]
        np.maximum(area, DIM + (1 - DIM) * part, out=area)
    canvas = Image.fromarray((np.asarray(canvas) * light[..., None]).astype(np.uint8))
    lines = Image.new('RGBA', canvas.size)
    for region in np.argsort(strength, kind='stable'):  # the strongest on top
        over = Image.new('RGBA', canvas.size)
        ImageDraw.Draw(over).rectangle(boxes[region], outline=(*COLOUR, round(255 * strength[region])),
                                       width=1 + round(7 * strength[region]))
        lines = Image.alpha_composite(lines, over)
    canvas = Image.alpha_composite(canvas.convert('RGBA'), lines).convert('RGB')
    write(ImageDraw.Draw(canvas), [boxes[region] for region in texts], list(texts.values()), [COLOUR] * len(texts))
    return canvas


def draw_words(figure, place, words, weights):
    """A row of words in a cell of a grid of the figure, each on a shade by its weight (t,); the largest weight is the darkest."""
    axes = figure.add_subplot(place)
    axes.imshow(np.asarray(weights)[None] / (max(weights) or 1), cmap=SHADE, vmin=0, vmax=1, aspect='auto')
    for i, (word, weight) in enumerate(zip(words, weights, strict=True)):
        dark = weight > 0.6 * max(weights)
        axes.text(i, 0, word, ha='center', va='center', fontsize=9, color='white' if dark else 'black', **PLAIN)
    axes.set(xticks=[], yticks=[])
    axes.set_title('relevance of the words for the answer', fontsize=9, loc='left')


def draw_heads(title, words, relevance, there, back, heads, regions):
    """A figure of one cross layer: words above, shaded by their relevance (t,), then for each head two strips of words x regions.

    there (h, t, o): how words look at regions; back (h, o, t): how regions look at words; heads: the numbers of these h, from 1;
    regions: the o columns to show and their order, the first of which is called 1, as in the picture.
    """
    across = 1 if len(heads) <= 4 else 2  # heads beside each other
    down = -(-len(heads) // across)
    wide, high = max(CELL * len(regions) + 1.2, 2.4), CELL * len(words) + 0.75
    size = max(across * 2 * wide, 0.75 * len(words)), down * high + 1.6
    figure = Figure(figsize=size, dpi=DPI, layout='constrained')
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    grid = figure.add_gridspec(down + 1, across * 2, height_ratios=[0.6, *[high] * down])
    draw_words(figure, grid[0, :], words, relevance)
    panels, most = [], max(there[:, :, regions].max(), back[:, regions].max())
    for i, head in enumerate(heads):
        for side, (what, weights) in enumerate((('words look at regions', there[i][:, regions]),
                                                ('regions look at words', back[i][regions].T))):
            axes = figure.add_subplot(grid[1 + i // across, 2 * (i % across) + side])
            panels.append(axes)
            shown = axes.imshow(weights, cmap=SHADE, vmin=0, vmax=most, aspect='auto')
            axes.set_title(f'head {head}: {what}', fontsize=9)
            numbers = [1, *range(5, len(regions) + 1, 5)]
            axes.set_xticks([number - 1 for number in numbers], numbers, fontsize=7)
            axes.set_yticks(range(len(words)), words, fontsize=7, **PLAIN)
            axes.tick_params(length=2)
    figure.suptitle(title, fontsize=11, **PLAIN)
    figure.colorbar(shown, ax=panels, fraction=0.03, pad=0.01).set_label('attention', fontsize=8)
    figure.supxlabel('regions, in the order of their relevance', fontsize=8)
    return figure


def save(picture, path):
    """Writes a picture of PIL or a figure of matplotlib as PNG, whole or not at all. Raises OSError that names the file."""
    write_atomically(path, partial(picture.savefig if isinstance(picture, Figure) else picture.save, format='png'))
