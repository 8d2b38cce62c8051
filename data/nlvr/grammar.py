"""Statements about three boxes of shapes in the language of NLVR v1 (Suhr et al., 2017), with their truth.

`understand` turns a sentence into a rule: a function that says of many pictures at once whether the sentence is true of them; it
understands nine of ten sentences of the corpus. `count_of` does the same for the number that a sentence is about. `vary` says a
sentence with other colours, shapes and numbers, and `make` picks pictures for such sentences, among drawn ones and those of the
corpus, so that each is as often true as false.

Rules work on `Pictures`. Of an object they give bool arrays (p, 3, m), of a box (p, 3), of a picture (p,): p pictures of 3
boxes of up to m objects. A phrase that is not understood gives None.
"""
import re
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property, reduce
from operator import and_

import numpy as np

COLOURS = {'black': 0, 'yellow': 1, 'blue': 2}
SHAPES = {'square': 0, 'triangle': 1, 'circle': 2}
SIZES = {'small': 10, 'medium': 20, 'big': 30}
NUMBERS = {'one': 1, 'two': 2, 'three': 3, 'four': 4, 'five': 5, 'six': 6, 'seven': 7}
SIDE, BLOCK, STEP, TALLEST = 100, 20, 21, 4  # pixels: a box, a block of a tower, from block to block; blocks
ROOM = 8  # objects in a box
MANY = 5  # 'many items': as the labels of the corpus have it

# ---- pictures


class Pictures:
    """p pictures: objects (p, 3, m, 5) of type, colour, size, x, y in pixels of the box, counts (p, 3) of those that are real."""

    def __init__(self, objects, counts):
        self.objects, self.counts = objects, counts
        self.shape, self.colour, self.size, self.x, self.y = (objects[..., i] for i in range(5))
        self.real = np.arange(objects.shape[2]) < counts[..., None]

    @classmethod
    def of(cls, scenes):
        """scenes: a list of pictures, each of three lists (or arrays) of objects of five numbers."""
        objects = np.zeros((len(scenes), 3, ROOM, 5), np.int64)
        counts = np.array([[len(box) for box in scene] for scene in scenes], np.int64).reshape(-1, 3)
        for p, scene in enumerate(scenes):
            for b, box in enumerate(scene):
                objects[p, b, :len(box)] = np.reshape(box, (-1, 5))
        return cls(objects, counts)

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, some):
        return Pictures(self.objects[some], self.counts[some])

    def boxes(self, p):
        """The three arrays (n, 5) of picture p."""
        return [box[:count] for box, count in zip(self.objects[p], self.counts[p], strict=True)]

    @cached_property
    def walls(self):
        """Who touches which wall: {name: (p, 3, m)}."""
        left, right = self.real & (self.x == 0), self.real & (self.x + self.size == SIDE)
        roof, floor = self.real & (self.y == 0), self.real & (self.y + self.size == SIDE)
        return {'wall': left | right | roof | floor, 'floor': floor, 'roof': roof, 'right wall': right,
                'corner': (left | right) & (roof | floor), 'right corner': right & floor}

    @cached_property
    def level(self):
        """How many objects of the box are lower, (p, 3, m)."""
        return (np.where(self.real, self.y, -1)[..., None, :] > self.y[..., :, None]).sum(-1)

    def at(self, place):
        """Who is at the top, base, middle (of three), second or third place of its box."""
        if place == 'top':
            higher = np.where(self.real, self.y, SIDE)[..., None, :] < self.y[..., :, None]
            return self.real & ~higher.any(-1)
        at = {'base': 0, 'bottom': 0, 'middle': 1, 'second': 1, 'third': 2}[place]
        return self.real & (self.level == at) & ((place != 'middle') | (self.counts == 3))[..., None]

    @cached_property
    def on(self):
        """[i, j]: i is the next higher of the box after j, (p, 3, m, m)."""
        both = self.real[..., :, None] & self.real[..., None, :]
        return both & (self.level[..., :, None] - self.level[..., None, :] == 1)

    @cached_property
    def touch(self):
        """[i, j]: there is at most one pixel between i and j, the least that the corpus has, (p, 3, m, m)."""
        def gap(low):
            high = low + self.size
            return np.maximum(low[..., :, None], low[..., None, :]) - np.minimum(high[..., :, None], high[..., None, :])
        both = self.real[..., :, None] & self.real[..., None, :] & ~np.eye(self.x.shape[2], dtype=bool)
        return both & (np.maximum(gap(self.x), gap(self.y)) <= 1)

    def each(self, field, chosen):
        """How many of the chosen have each value of 'color', 'shape' or 'size': (p, 3, 3)."""
        values, array = {'color': (range(3), self.colour), 'shape': (range(3), self.shape),
                         'size': (SIZES.values(), self.size)}[field]
        return np.stack([(chosen & (array == value)).sum(-1) for value in values], -1)


def free(box, item, instead_of=None):
    """Whether an object keeps a pixel from all others of a box (a list), but for the one it stands for, and lies inside."""
    *_, size, x, y = item
    return min(x, y) >= 0 and max(x, y) <= SIDE - size and all(
        i == instead_of or max(x - ox - o, ox - x - size, y - oy - o, oy - y - size) >= 1
        for i, (_, _, o, ox, oy) in enumerate(box))


def scattered(rng):
    """An object somewhere in a box, one in five at the right wall and one in five on the floor, as in the corpus."""
    size = int(rng.choice((10, 20, 30)))
    x, y = (SIDE - size if rng.random() < 0.18 else int(rng.integers(SIDE + 1 - size)) for _ in 'xy')
    return int(rng.integers(3)), int(rng.integers(3)), size, x, y


def block(rng, level):
    return 0, int(rng.integers(3)), BLOCK, (SIDE - BLOCK) // 2, SIDE - BLOCK - STEP * level


def draw(rng, tower, most=ROOM - 1):
    """A picture as the corpus's are: three boxes with 1 to 4 blocks stacked, or 1 to 7 objects scattered; or fewer."""
    scene = []
    for count in rng.integers(1, 1 + min(most, TALLEST if tower else ROOM - 1), 3):
        box = [block(rng, level) for level in range(count)] if tower else []
        while len(box) < count:
            item = scattered(rng)
            if free(box, item):
                box.append(item)
        scene.append(box)
    return scene


def change(rng, scene, tower):
    """A picture that differs in one object: another colour, shape, size or place, one more or one fewer."""
    while True:
        changed = [[tuple(item) for item in box] for box in scene]
        box = changed[rng.integers(3)]
        if not box:
            continue
        i, what = int(rng.integers(len(box))), rng.random()
        shape, colour, size, x, y = box[i]
        if what < 0.1 and len(box) > 1:
            box.pop(-1 if tower else i)
        elif what < 0.2 and len(box) < (TALLEST if tower else ROOM - 1):
            item = block(rng, len(box)) if tower else scattered(rng)
            if not free(box, item):
                continue
            box.append(item)
        elif what < 0.5 or tower:
            box[i] = shape, (colour + int(rng.integers(1, 3))) % 3, size, x, y
        else:
            if what < 0.7:
                item = (shape + int(rng.integers(1, 3))) % 3, colour, size, x, y
            elif what < 0.8:
                item = shape, colour, *scattered(rng)[2:]
            else:
                x, y = ((0, y), (x, 0), (SIDE - size, y), (x, SIDE - size))[rng.integers(4)]
                item = shape, colour, size, x, y
            if item == box[i] or not free(box, item, i):
                continue
            box[i] = item
        return changed


# ---- the language: one wording of what is said in many

COLOUR = r'(?:black|yellow|blue)'
COLOURED = rf'{COLOUR}(?:&{COLOUR})*'
NOUN = r'(?:item|circle|square|triangle)'
WALL = r'(wall|floor|roof|right wall|right corner|corner)'

# From the words of the corpus, its slips included, to those that the grammar below knows, in this order.
REWORD = [(re.compile(pattern), words) for pattern, words in (
    (r'[.;:]+$', ''), (r'\s+', ' '), (r'^t ?least', 'at least'), (r'^ll ', 'all '),
    (r'\b(atleast|at (leats|lest|lease|al least)|t least|al least)\b', 'at least'),
    (r'\b(exacrly|eactly|exacty|exacts)\b', 'exactly'),
    (r'\b(yelow|yelllow|yelloe)\b', 'yellow'), (r'\b(ble|b;ue)\b', 'blue'), (r'\bablue\b', 'a blue'), (r'\babox\b', 'a box'),
    (r'\b(bkack|blacks)\b', 'black'), (r'\b(bloxks?|blicks?)\b', 'block'), (r'\b(sqaures?|rectangles?)\b', 'square'),
    (r'\b(trianlges?|traingles?)\b', 'triangle'), (r'\b(cirlces?|ciircles?|circ;e)', 'circle'), (r'\bobjetcs\b', 'objects'),
    (r'\b(egde|adge)\b', 'edge'), (r'\btouhing\b', 'touching'), (r'\bnealy\b', 'nearly'), (r'\b(hte|thee|the the)\b', 'the'),
    (r'\b(ans|ad)\b', 'and'), (r'\b(wih|wirh|wth|wwith)\b', 'with'), (r'^there (isa|ia|is as)\b', 'there is a'),
    (r'^(there (is|are|s|i)|the is|theer are)\b', 'there is'), (r'^there a ', 'there is a '),
    (r'\b(colou?rs|colou?red|colou?r)\b', 'color'), (r'\ban\b', 'a'), (r'\ba a\b', 'a'), (r'\btow\b', 'two'),
    *((rf'\b{word}\b', str(number)) for word, number in NUMBERS.items()),
    (r'\ba single|single\b', 'exactly 1'), (r'\b(multiple|many|a lot of)\b', 'many'),
    (r'\bgrey (box|boxes|squares?|circles?)\b', 'box'), (r'\bboxes\b', 'box'), (r'\bof the square box\b', 'of the box'),
    (r'\btowers\b', 'tower'), (r'\b(circle|square|triangle|base|shape)s\b', r'\1'), (r'\b(block|item|object)s?\b', 'item'),
    (r'\b(bellow|beneath|underneath|under)\b', 'below'), (r'\b(right|directly) (below|on top)\b', r'\2'),
    (r'\bof (the|all) same\b', 'of same'), (rf'\bof ({COLOUR}(?: (?:and|or) {COLOUR})?) color( only)?\b', r'of \1\2'),
    (rf'\b({COLOUR})( in)? color\b', r'\1'), (rf'\bthe color ({COLOUR})', r'\1'), (r'\bclosely touching\b', 'touching'),
    (r'\b(almost|nearly) touching\b', 'nearly touching'),
    (r'\b(touching (the )?(bottom.right|right)|attached to (the )?right) corner( of (a|the) box)?', 'touching right corner'),
    (r'\btouching (the )?(left|lower) corner( of (a|the) box)?', 'touching corner'),
    (r'\btouching ((a|the) )?(box )?corners?( of (a|the) box)?', 'touching corner'),
    (r'\bin the corner of the box', 'touching corner'),
    (r'\btouching (the )?right (wall|side edge|side)( of (a|the) box)?', 'touching right wall'),
    (r'\btouching (the )?base or edge', 'touching wall'),
    (r'\btouching (the )?(bottom base|bottom edge|bottom|base)( of (a|the) box)?', 'touching floor'),
    (r'\btouching the roof of a box', 'touching roof'), (r'\btouching the wall with its side', 'touching wall'),
    (r'\btouching the wall with its top', 'touching roof'),
    (r'\btouching ((any|a|the|the any) )?(edge|wall|side|line)s?( of (a|the) (box|square))?', 'touching wall'),
    (r'\battached to a line', 'touching wall'), (r'\b(and|but) it is (not touching|touching)', r'\2'),
    (r',? ?(which|that) (has|have|contains|contain) | (with has|than contains) ', ' with '), (r' where ', ' of which '),
    (r'\b(has|have|contains|contain|containing|having)\b', 'with'), (r'\b(which|that) (is|are)\b', 'is'),
    (r'\bis a (?=not)', 'is '), (r'\bare\b', 'is'), (r'\b(as|at) (a |the )?(?=top|base|middle|bottom)', 'at the '),
    (r'\bon the (?=top)', 'at the '), (r'\bon the (?=bottom)', 'on '), (r'\bin the middle( of it)?\b', 'at the middle'),
    (r'\btop most item\b', 'top'), (r'\b(top|middle|base|bottom) item\b', r'\1'), (r'\bat its base\b', 'at the base'),
    (r'\b(attached( together| with each other| to each other)?|stack(ed)? together)\b', 'stacked'), (r'\bin it\b', ''),
    (r'\b(opis|bo)\b', 'is'),
    (rf'\b({COLOUR})(?:, | and | or |, and )({COLOUR}) and ({COLOUR})(?= (?:{NOUN}|color|only|$))', r'\1&\2&\3'),
    (rf'\b({COLOUR}) (?:and|or) ({COLOUR})\b', r'\1&\2'), (r'\beither ', ''),
    (r'\bof all 3 color\b', 'of 3 different color'), (r'\ball 3 (different )?color\b', '3 different color'), (r' +', ' '))]


def plain(sentence):
    """A sentence of the corpus in the words that the grammar knows."""
    text = sentence.lower().strip()
    for pattern, words in REWORD:
        text = pattern.sub(words, text)
    return text.strip(' ,')


# ---- the grammar

AMOUNT = r'(?:exactly|only|just|at least|at most|not more than|more than|less than)'
QUANTITY = rf'((?:{AMOUNT} )?\d(?: or more| at most)?|a|no|many|any|the)'


def quantity(text):
    """The rule of 'a', 'no', 'many', 'exactly 2', ... on counts; a number alone is exact, as the labels mostly have it."""
    if m := re.fullmatch(rf'(?:{AMOUNT} )?(\d) (or more|at most)', text):
        text = f'{"at least" if m[2] == "or more" else "at most"} {m[1]}'
    if m := re.fullmatch(rf'({AMOUNT})? ?(\d)', text):
        n = int(m[2])
        return {'at least': lambda c: c >= n, 'at most': lambda c: c <= n, 'not more than': lambda c: c <= n,
                'more than': lambda c: c > n, 'less than': lambda c: c < n}.get(m[1], lambda c: c == n)
    some = dict.fromkeys(('', 'a', 'any', 'the'), lambda c: c >= 1)
    return {'no': lambda c: c == 0, 'many': lambda c: c >= MANY, **some}.get(text)


def all_of(rules):
    """The rule that all of some rules hold; None if one of them is not understood."""
    rules = list(rules)
    return None if None in rules else lambda p: reduce(and_, [rule(p) for rule in rules])


def colours_of(text):
    return [COLOURS[word] for word in re.findall(COLOUR, text)]


def coloured(text):
    """Whether an object has one of the colours."""
    colours = colours_of(text)
    return lambda p: np.isin(p.colour, colours)


def only(text, noun=None):
    """Of a box: its objects have these colours, each of them, and no other; and they are all such a shape."""
    colours, shape = colours_of(text), SHAPES.get(noun)

    def rule(p):
        each = p.each('color', p.real) > 0
        fits = p.real if shape is None else p.shape == shape
        return (each == np.isin(range(3), colours)).all(-1) & (fits | ~p.real).all(-1)
    return rule


def place(name, text):
    """Of a box: at a place, such as 'top', lies an object of one of the colours."""
    colour = coloured(text)
    return lambda p: (p.at(name) & colour(p)).any(-1)


def next_to(m):
    """'on a blue item' and so on: of an object, that such a one is the next lower (or, 'below', the next higher) of its box."""
    other, below = things(m['np']), m['how'] == 'below'

    def rule(p):
        on = np.swapaxes(p.on, -1, -2) if below else p.on
        return (on & other(p)[..., None, :]).any(-1)
    return other and rule


def standing(m):
    """'at the top (of a tower with 3 item)'."""
    box = said_of(m['of']) if m['of'] else lambda p: p.counts > 0
    return box and (lambda p: p.at(m['place']) & box(p)[..., None])


def being(m):
    """'is not a blue circle'."""
    fits, no = things(m['np']), bool(m['no'])
    return fits and (lambda p: fits(p) ^ no)


# What may follow a noun, and its rule.
AFTER = [(re.compile(pattern + r'(?= |$)'), rule) for pattern, rule in (
    (rf'(?:is )?(?P<no>not )?touching (?:any |the )?{WALL}', lambda m: lambda p: p.walls[m[2]] ^ bool(m['no'])),
    (r'of medium size', lambda m: lambda p: p.size == SIZES['medium']),
    (rf'of ({COLOURED})', lambda m: coloured(m[1])),
    (rf'is (?P<no>not )?(?:a |the color )?(?P<np>(?:{COLOURED})(?: {NOUN})?|{NOUN})', being),
    (r'(?P<how>on top of|on|over|above|below) (?:of )?(?:a |the )?'
     rf'(?P<np>(?:small |medium |big )?(?:{COLOURED} ?)?{NOUN}?)', next_to),
    (r'at the (?P<place>top|base|bottom|middle)(?: of (?:a |the )?tower(?: with (?P<of>.*))?)?', standing),
    (r'on top', lambda m: lambda p: p.at('top')))]


def things(text):
    """The rule, on objects, of a noun without its number: 'small blue circle touching wall', 'black'."""
    m = re.match(rf'(?:(small|medium|big) ?)?({COLOURED})? ?({NOUN}\b)?(?: shape| item)?(?P<rest>.*)$', text.strip())
    if not any(m.groups()[:3]):
        return None
    rules, rest = [lambda p: p.real], m['rest'].strip()
    if m[1]:
        rules.append(lambda p: p.size == SIZES[m[1]])
    if m[2]:
        rules.append(coloured(m[2]))
    if m[3] in SHAPES:
        rules.append(lambda p: p.shape == SHAPES[m[3]])
    while rest:
        found = next(((made(hit), hit.end()) for pattern, made in AFTER if (hit := pattern.match(rest))), None)
        if found is None:
            return None
        rules.append(found[0])
        rest = rest[found[1]:].strip()
    return all_of(rules)


def counted(text):
    """(rule on objects, rule on their count) of a noun with its number: 'at least 2 black item'; or None."""
    text = text.strip()
    if m := re.fullmatch(r'(\d) (.*) at most', text):
        text = f'at most {m[1]} {m[2]}'
    m = re.match(rf'{QUANTITY} (.*)$', text)
    chosen = things(m[2] if m else text)
    return chosen and (chosen, quantity(m[1] if m else ''))


def one_thing(text):
    """The rule, on boxes, of one thing said of a box: '3 item of same color', 'only black item', 'a circle touching wall'."""
    text = text.strip()
    if m := re.fullmatch(rf'(?:{QUANTITY} )?item of (only|at least|exactly)? ?(\d) (?:different )?color( at most)?', text):
        total = quantity(m[1] or '')
        kinds = quantity(f'{"at most" if m[4] else m[2] or "exactly"} {m[3]}')
        return lambda p: total(p.counts) & kinds((p.each('color', p.real) > 0).sum(-1))
    if m := re.fullmatch(r'(?:item of )?(?:all )?(?:only |exactly )?(\d) (?:different )?(color|shape)', text):
        return lambda p: (p.each(m[2], p.real) > 0).sum(-1) == int(m[1])
    if text in ('all item of same color', 'item of same color', 'item of only color', 'same item color'):
        return lambda p: (p.each('color', p.real) > 0).sum(-1) == 1
    if m := re.fullmatch(rf'{QUANTITY} (.*?) ?of (?:the )?(same|different) (color|shape|size)(.*)', text):
        total, chosen = quantity(m[1]), things(m[2] + m[5])
        return chosen and (lambda p: total(chosen(p).sum(-1))
                           & (((p.each(m[4], chosen(p)) > 0).sum(-1) == 1) ^ (m[3] == 'different')))
    if m := re.fullmatch(rf'({QUANTITY} .*?) (not )?(?:touching each other|stacked)', text):
        return stacked(counted(m[1]), bool(m[3]))
    if m := (re.fullmatch(rf'(?:item (?:of|with) )?only (?:item of )?(?:only )?({COLOURED})(?: ({NOUN}|color))?', text)
             or re.fullmatch(rf'({COLOURED}) ({NOUN})? ?only', text)
             or re.fullmatch(rf'item of (?:only )?({COLOURED})(?: color)?( only)?', text)):
        return only(m[1], m[2])
    if m := re.fullmatch(rf'only ({NOUN})(?: and ({NOUN}))?(?: item)?', text):
        shapes = np.isin(range(3), [SHAPES[noun] for noun in m.groups() if noun in SHAPES])
        return (lambda p: ((p.each('shape', p.real) > 0) == shapes).all(-1)) if shapes.any() else None
    if m := re.fullmatch(rf'{QUANTITY} item of (?:only )?({COLOURED})(?: color)?( only)?', text):
        total, colours = quantity(m[1]), only(m[2])
        return lambda p: total(p.counts) & colours(p)
    if m := re.fullmatch(rf'({COLOURED})( {NOUN})?', text):  # 'black&blue item': some of each
        each = [things(colour + (m[2] or '')) for colour in re.findall(COLOUR, m[1])]
        return lambda p: np.stack([rule(p).any(-1) for rule in each]).all(0)
    found = counted(text)
    return found and (lambda p: found[1](found[0](p).sum(-1)))


def stacked(found, apart):
    """Of a box: so many such objects touch one of their own, or there are so many of which none does."""
    def rule(p):
        chosen = found[0](p)
        near = (p.touch & chosen[..., None, :]).any(-1) & chosen
        return found[1]((chosen if apart else near).sum(-1)) & (~near.any(-1) if apart else True)
    return found and rule


def said_of(text):
    """The rule, on boxes, of all that is said of a box: '3 item of which 2 is blue', 'a circle and 2 black square'."""
    text = re.sub(r'^(with|that|which|is) ', '', text.strip(' ,'))
    if m := re.match(rf'(.*?) (?:of which|and the|,|and)(?: there is)? ((?:{AMOUNT} )?\d)(?: of the item| item)? (?:is|being) '
                     r'(?:a )?(.*?)(?: and (?:the other )?(\d) (?:of the item |item )?is (?:a )?(.*))?$', text):
        parts = [said_of(m[1]), one_thing(f'{m[2]} {m[3]}'), *([one_thing(f'{m[4]} {m[5]}')] if m[4] else [])]
        if rule := all_of(parts):
            return rule
    if (m := re.match(r'(.*?) of which (?:there is )?(.*)$', text)) and (rule := all_of((said_of(m[1]), said_of(m[2])))):
        return rule
    if rule := one_thing(text):
        return rule
    they = r'(?:they|it|the color(?: of the item)?) is (?:all |both )?(?:a )?(.*)'
    if m := re.fullmatch(rf'({QUANTITY} )?item (?:and|with) {they}', text):
        total = one_thing(f'{m[1] or ""}item')
        if re.fullmatch(COLOURED, m[3]):
            return all_of((total, only(m[3])))
        if m[3] in SHAPES:
            return all_of((total, one_thing(f'only {m[3]}')))
    for m in re.finditer(r' and with |,? and |, | with ', text):
        if rule := all_of((one_thing(text[:m.start()]), said_of(text[m.end():]))):
            return rule
    return None


def tower(text):
    """The rule, on boxes, of what follows 'tower' or 'box'."""
    text = re.sub(r'^(?:with|that|and|of which|which|is) ', '', text.strip(' ,'))
    where = r'(top|base|bottom|middle|second|third)(?: item)?(?: from the base)?'
    if not text:
        return lambda p: p.counts > 0
    if m := re.fullmatch(rf'(?:the )?{where} is ({COLOURED})', text):
        return place(m[1], m[2])
    alike = rf'(?: is)?(?: ({COLOUR})|( not)? (?:the |of )?same(?: in)? color)'
    if m := re.fullmatch(rf'(?:the )?{where} and (?:the )?{where}{alike}', text):
        if m[3]:
            return all_of((place(m[1], m[3]), place(m[2], m[3])))

        def same(p):
            one, other = (np.where(p.at(m[i]), p.colour, -1).max(-1) for i in (1, 2))
            return (one >= 0) & (other >= 0) & ((one == other) ^ bool(m[4]))
        return same
    if m := re.fullmatch(rf'(?:a )?({COLOURED}) (base|top|second)(?: and (?:a )?({COLOURED}) (base|top))?', text):
        return all_of((place(m[2], m[1]), *([place(m[4], m[3])] if m[3] else [])))
    return said_of(text)


def boxes_of(text):
    """(rule on boxes, rule on their count) of '2 tower with a blue item', 'each box with', '1 of the 3 box with'; or None."""
    m = re.match(rf'(?P<all>all(?: 3)?|each|every)?(?:{QUANTITY})?(?: ?of)?(?: ?the)?(?: \d| there)? ?(?P<colour>{COLOURED})? ?'
                 r'(?:(?P<high>\d) item )?(?:box|tower)(?: item)?(?P<rest>.*?)(?: each)?$', text)
    if not m:
        return None
    rules = [tower(m['rest'])]
    if m['colour']:
        rules.append(only(m['colour']))
    if m['high']:
        rules.append(lambda p: p.counts == int(m['high']))
    rule = all_of(rules)
    return rule and (rule, (lambda c: c == 3) if m['all'] else quantity(m[2] or ''))


def understand(sentence):
    """The rule, on pictures, of a sentence; None if it is not understood."""
    text = plain(sentence).removeprefix('there is ')
    for where, some in (('each|every', np.all), ('a|1|the same', np.any)):
        if (m := re.fullmatch(rf'(.*?) in (?:{where}) (?:box|tower)', text)) and (rule := one_thing(m[1])):
            return lambda p: some(rule(p), -1)
    if found := boxes_of(text):
        return lambda p: found[1](found[0](p).sum(-1))
    if (m := re.fullmatch(r'(?:none of the|no) (.*)', text)) and (chosen := things(m[1])):
        return lambda p: ~chosen(p).any((-1, -2))
    if (m := re.fullmatch(r'all (.*) is (touching .*)', text)) and (rule := all_of((things(m[1]), things(f'item {m[2]}')))):
        whole = things(m[1])
        return lambda p: (rule(p) == whole(p)).all((-1, -2))
    if chosen := counted(text):
        return lambda p: chosen[1](chosen[0](p).sum((-1, -2)))
    if (m := re.fullmatch(rf'(.*? {NOUN}) and (.*)', text)) and (first := counted(m[1])) and (second := counted(m[2])):
        return lambda p: first[1](first[0](p).sum((-1, -2))) & second[1](second[0](p).sum((-1, -2)))
    if m := re.fullmatch(r'(?:the )?(second|third|middle|base|top)(?: item)?(?: from the base)? of (?:a|the)? ?(?:(\d) item )?'
                         rf'tower(?: from the base)?(?: item)?(?: with (.*))? is ({COLOURED})', text):
        high = (lambda p: p.counts == int(m[2])) if m[2] else (lambda p: p.counts > 0)
        rule = all_of((place(m[1], m[4]), high, *([said_of(m[3])] if m[3] else [])))
        return rule and (lambda p: rule(p).any(-1))
    if re.search(r' (?:stacked|touching each other)$', text) and (rule := one_thing(text)):
        return lambda p: rule(p).any(-1)
    return None


def count_of(sentence):
    """For 'there are 2 black circles': ('black circle', the rule that counts them); None for sentences of another kind."""
    m = re.match(rf'there is {QUANTITY} (.*)$', plain(sentence))
    if not m or re.search('[0-9]|,| and |each|every|same box', m[2]):
        return None
    if found := boxes_of(f'a {m[2]}'):
        return m[2], lambda p: found[0](p).sum(-1)
    chosen = things(m[2])
    return chosen and (m[2], lambda p: chosen(p).sum((-1, -2)))


# ---- statements and questions with pictures


def is_tower(scene):
    """Whether all objects of a picture are blocks stacked in the middle of their boxes."""
    return all((shape, size, x) == (0, BLOCK, (SIDE - BLOCK) // 2) for box in scene for shape, _, size, x, _ in box)


def vary(rng, sentence, highest):
    """A sentence of the corpus with its colours exchanged, its shapes exchanged, and some of its numbers one more or less."""
    text = sentence.lower().strip()
    for words in (COLOURS, SHAPES):
        # a 'grey square' is a box
        if words is COLOURS or not re.search(r'grey (square|circle)|of the square|squares? box|and corners|edge of', text):
            others = dict(zip(words, rng.permutation(list(words)).tolist(), strict=True))
            text = re.sub('|'.join(words), lambda m, others=others: others[m[0]], text)

    def number(m):
        if m[1] or rng.random() < 0.5:  # 'all three'
            return m[0]
        digit = m[2].isdigit()
        changed = int(np.clip((int(m[2]) if digit else NUMBERS[m[2]]) + rng.integers(-1, 2), 1, highest))
        return str(changed) if digit else list(NUMBERS)[changed - 1]
    return re.sub(rf'\b(all (?:the )?)?({"|".join(NUMBERS)}|[1-7])\b', number, text)


def pool(rng, scenes, tower, size, most=ROOM - 1):
    """Pictures to choose from, 2 * size of them: the first half, a third of them from the corpus, and of each a changed one."""
    known = [scene for scene in scenes if is_tower(scene) == tower and 0 < max(map(len, scene)) <= most]
    chosen = [known[i] for i in rng.permutation(len(known))[:size // 3].tolist()]
    chosen += [draw(rng, tower, most) for _ in range(size - len(chosen))]
    return Pictures.of(chosen + [change(rng, scene, tower) for scene in chosen])


def pairs(rng, rule, pictures, most, tries=200):
    """Up to `most` pairs (a picture where it is true, one where it is false), as places in a pool; the first half of them, where
    there are so many, differ by one change."""
    some = rng.choice(len(pictures) // 2, min(tries, len(pictures) // 2), replace=False)
    both = np.concatenate([some, some + len(pictures) // 2])
    truth = rule(pictures[both])
    first, second = np.split(truth, 2)
    near = np.flatnonzero(first != second)[:-(-most // 2)]
    found = [(both[i], both[i + len(some)]) if first[i] else (both[i + len(some)], both[i]) for i in near]
    yes, no = both[truth], both[~truth]
    if len(yes) and len(no):
        found += [(rng.choice(yes), rng.choice(no)) for _ in range(min(most, len(yes), len(no)) - len(found))]
    return found


def make(seed, corpus, statements, questions, size, most=ROOM - 1, longest=99, each=4):
    """Statements and questions about pictures, by a seed: (list of pictures, list of (picture, source, sentence, answer)).

    corpus: (sentence, scene) of those sentences of the corpus that are understood. `statements` of them are drawn and varied,
    each with up to `each` pictures of which it is true and as many of which it is false. Where a sentence can be
    asked for its number, that is done instead with a chance of `questions`: 'how many black circle touching wall'. size, most: of
    each of the two pools, of objects in a box; longest: words of a sentence. Source is 'statements' or 'counts'.
    """
    rng = np.random.default_rng(seed)
    scenes = [scene for _, scene in corpus]
    pools = {tower: pool(rng, scenes, tower, size, most) for tower in (True, False)}
    short = [(sentence, is_tower(scene)) for sentence, scene in corpus if len(sentence.split()) <= longest]
    said = []
    for i in rng.integers(max(len(short), 1), size=statements if short else 0).tolist():
        sentence, tower = short[i]
        text = vary(rng, sentence, TALLEST if tower else ROOM - 1)
        rule, pictures = understand(text), pools[tower]
        if rule is None:
            continue
        if rng.random() < questions and (counting := count_of(text)):
            noun, count = counting
            some = rng.choice(len(pictures), 200)
            counts = count(pictures[some])
            for number in rng.choice(np.unique(counts), 2 * each).tolist():
                question = f'how many {noun.replace("&", " and ")}'
                said.append((tower, rng.choice(some[counts == number]), 'counts', question, str(number)))
        else:
            for couple in pairs(rng, rule, pictures, each):
                said += [(tower, at, 'statements', text, truth) for at, truth in zip(couple, ('true', 'false'), strict=True)]
    places = {place: i for i, place in enumerate(dict.fromkeys((tower, int(place)) for tower, place, *_ in said))}
    return ([pools[tower].boxes(place) for tower, place in places],
            [(places[tower, int(place)], *rest) for tower, place, *rest in said])


def make_all(corpus, jobs):
    """Yields make(corpus=corpus, **job) for each of the jobs, in order, made by as many processes as there are cores."""
    with ProcessPoolExecutor(initializer=_remember, initargs=(corpus,)) as workers:
        yield from workers.map(_make, jobs)


def _remember(corpus):
    _make.corpus = corpus


def _make(job):
    return make(corpus=_make.corpus, **job)
