"""What an answer rests on, as HTML that needs no script: pictures with their regions and, at a word, where it looks."""

from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

MOST = 5  # regions that are numbered and listed
FAINT = 0.02  # of the strongest: below this a region is not drawn
COLOUR = '213, 62, 10'
STYLE = '''
.look .word { border: 1px solid var(--border-color-primary); border-radius: 4px; margin: 0 .2rem .3rem 0; padding: .1rem .45rem; }
.look .word:is(:hover, :focus-visible) { outline: 3px solid var(--color-accent); }
.look small { display: block; font-size: .7rem; }
.look .pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); }
.look figure { margin: 0; }
.look svg { display: block; width: 100%; max-height: 30rem; }
.look rect { fill: none; stroke: rgb(COLOUR); vector-effect: non-scaling-stroke; }
.look mask rect, .look .shade { stroke: none; }
.look text { fill: #fff; stroke: #000; paint-order: stroke; font-weight: 700; }
.look ol { font-size: .85rem; list-style: decimal; margin: 0; padding-left: 1.6rem; }
.look .at { display: none; }
.look:not(:has(.word:is(:hover, :focus-visible))) .all { display: revert; }
'''.replace('COLOUR', COLOUR)


@dataclass(frozen=True)
class Shown:
    """A picture and how strongly its o regions count."""

    size: tuple  # width and height that the boxes are in
    address: str  # of the photograph, such as a data: URI
    boxes: np.ndarray  # (o, 4): x1, y1, x2, y2
    titles: list  # o texts
    relevance: np.ndarray  # (o,), for the answer, as parts of that of all pictures
    attention: np.ndarray  # (t, o): how words look at regions


def view(words, shares, pictures, unread=''):
    """HTML of t words with their shares (t,) of the relevance for the answer, NaN for the model's own, and of a list of Shown.

    unread: the end of the question, where it was too long for the model.
    """
    page = ElementTree.Element('div', {'class': 'look'})
    rules = (f'.look:has(.word{i}:is(:hover, :focus-visible)) .at{i} {{ display: revert; }}\n' for i in range(len(words)))
    _add(page, 'style', STYLE + ''.join(rules))
    row, most = _add(page, 'div'), np.nanmax(shares, initial=0) or 1
    for i, (word, share) in enumerate(zip(words, shares, strict=True)):
        shade = f'background: rgba({COLOUR}, {.6 * np.nan_to_num(share) / most:.3f})'
        button = _add(row, 'button', word, type='button', class_=f'word word{i}', style=shade)
        _add(button, 'small', '\xa0' if np.isnan(share) else percent(share))
    if unread:
        _add(page, 'p', f'The question was too long; not read: {unread}')
    _at(page, 'p', None, 'Under the words and in the picture: relevance for the first answer. Point at a word, or press Tab, to '
        'see where it looks.')
    for i, word in enumerate(words):
        _at(page, 'p', i, f'Where “{word}” looks: attention in the last layer, mean over its heads.')
    row, most = _add(page, 'div', class_='pictures'), max(picture.relevance.max() for picture in pictures)
    for number, picture in enumerate(pictures, 1):
        _draw(_add(row, 'figure'), number, picture, most)
    return ElementTree.tostring(page, encoding='unicode', method='html')


def percent(share):
    return f'{share:.{1 if share < .0995 else 0}%}'


def _add(into, tag, text=None, **attributes):
    named = {name.rstrip('_').replace('_', '-'): str(value) for name, value in attributes.items()}
    made = ElementTree.SubElement(into, tag, named)
    made.text = text
    return made


def _at(into, tag, word, text=None):
    """An element that is seen only while a word, by its number, is pointed at; None: while none is."""
    return _add(into, tag, text, class_=f'at {"all" if word is None else f"at{word}"}')


def _draw(figure, number, picture, most):
    """A picture in the place of a figure; most: the largest relevance of a region of all pictures."""
    width, height = picture.size
    svg = _add(figure, 'svg', viewBox=f'0 0 {width} {height}', role='img', aria_label=f'picture {number} and its regions')
    _add(svg, 'image', href=picture.address, width=width, height=height)
    for word, weights in [(None, picture.relevance), *enumerate(picture.attention)]:
        strengths = weights / ((most if word is None else weights.max()) or 1)
        order = np.argsort(-weights, kind='stable').tolist()
        _draw_regions(_at(svg, 'g', word), f'mask{number}-{word}', picture, strengths, order)
        listed = _at(figure, 'ol', word)
        for region in order[:MOST]:
            _add(listed, 'li', f'{picture.titles[region]} {percent(weights[region])}')


def _draw_regions(into, name, picture, strengths, order):
    """The regions as outlines, the strongest numbered and on top; dark where none counts, of several as the strongest."""
    whole = {'width': picture.size[0], 'height': picture.size[1]}
    mask = _add(into, 'mask', id=name)
    _add(mask, 'rect', **whole, style='fill: #fff')
    _add(into, 'rect', **whole, class_='shade', opacity=.55, mask=f'url(#{name})', style='fill: #000')
    for region in reversed(order):
        if (strength := float(strengths[region])) >= FAINT:
            x1, y1, x2, y2 = picture.boxes[region].round(1).tolist()
            box = {'x': x1, 'y': y1, 'width': round(max(x2 - x1, 0), 1), 'height': round(max(y2 - y1, 0), 1)}
            grey, listed = round(255 * (1 - strength)), region in order[:MOST]
            _add(mask, 'rect', **box, style=f'fill: rgb({grey}, {grey}, {grey}); mix-blend-mode: darken')
            outline = _add(into, 'rect', **box, stroke_opacity=round(strength * (1 if listed else .4), 3),
                           stroke_width=round(2 + 3 * strength, 1) if listed else 1)
            _add(outline, 'title', picture.titles[region])
    size, taken = max(picture.size) / 30, []
    for rank, region in enumerate(order[:MOST], 1):
        x, y = picture.boxes[region][:2] + (size / 4, size)
        while any(abs(left - x) < .8 * size and abs(top - y) < size for left, top in taken):  # beside another number
            x += .8 * size
        taken.append((x, y))
        _add(into, 'text', str(rank), x=round(x, 1), y=round(y, 1), font_size=round(size, 1), stroke_width=round(size / 8, 1))
