"""The language of NLVR v1 (Suhr et al., 2017), statements about three boxes of shapes: a semantic parser and a generator.

`parse_statement` turns a sentence into a rule, a function that tells for many pictures at once whether the sentence is true; it
parses nine of ten sentences of the corpus. `parse_count` does the same for the number that a sentence is about. `vary_sentence`
exchanges colours, shapes and numbers of a sentence, and `generate` samples pictures for such sentences, random ones and those of
the corpus, so that each is true as often as false.

Rules take `Pictures`. A rule on objects returns a bool array (p, 3, m), on boxes (p, 3), on pictures (p,): p pictures of 3 boxes
of up to m objects. A phrase that cannot be parsed gives None instead of a rule.
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
SIDE, BLOCK, BLOCK_STEP = 100, 20, 21  # pixels: side of a box, side of a tower's block, distance between two blocks
MAX_BLOCKS = 4  # of a tower
MAX_OBJECTS = 8  # of a box; random boxes have one less, which a change may add
MANY = 5  # objects from which on the corpus labels 'many items' true

# ---- pictures


class Pictures:
    """p pictures: objects (p, 3, m, 5) of type, colour, size, x, y in pixels of the box; counts (p, 3) of the objects of a box,
    the others are padding."""

    def __init__(self, objects, counts):
        self.objects, self.counts = objects, counts
        self.shape, self.colour, self.size, self.x, self.y = (objects[..., i] for i in range(5))
        self.present = np.arange(objects.shape[2]) < counts[..., None]  # (p, 3, m)

    @classmethod
    def from_lists(cls, scenes):
        """scenes: a list of pictures, each of three lists (or arrays) of objects of five numbers."""
        objects = np.zeros((len(scenes), 3, MAX_OBJECTS, 5), np.int64)
        counts = np.array([[len(box) for box in scene] for scene in scenes], np.int64).reshape(-1, 3)
        for p, scene in enumerate(scenes):
            for b, box in enumerate(scene):
                objects[p, b, :len(box)] = np.reshape(box, (-1, 5))
        return cls(objects, counts)

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, indices):
        return Pictures(self.objects[indices], self.counts[indices])

    def boxes(self, p):
        """The three arrays (n, 5) of picture p."""
        return [box[:count] for box, count in zip(self.objects[p], self.counts[p], strict=True)]

    @cached_property
    def walls(self):
        """{wall: which objects touch it (p, 3, m)}."""
        left, right = self.present & (self.x == 0), self.present & (self.x + self.size == SIDE)
        roof, floor = self.present & (self.y == 0), self.present & (self.y + self.size == SIDE)
        return {'wall': left | right | roof | floor, 'floor': floor, 'roof': roof, 'right wall': right,
                'corner': (left | right) & (roof | floor), 'right corner': right & floor}

    @cached_property
    def rank(self):
        """How many objects of the box are lower, (p, 3, m)."""
        return (np.where(self.present, self.y, -1)[..., None, :] > self.y[..., :, None]).sum(-1)

    def at(self, place):
        """Which objects are at the top, base, middle (of three), second or third place of their box, (p, 3, m)."""
        if place == 'top':
            higher = np.where(self.present, self.y, SIDE)[..., None, :] < self.y[..., :, None]
            return self.present & ~higher.any(-1)
        rank = {'base': 0, 'bottom': 0, 'middle': 1, 'second': 1, 'third': 2}[place]
        return self.present & (self.rank == rank) & ((place != 'middle') | (self.counts == 3))[..., None]

    @cached_property
    def directly_above(self):
        """[i, j]: in height i is the next object of the box after j, (p, 3, m, m)."""
        both = self.present[..., :, None] & self.present[..., None, :]
        return both & (self.rank[..., :, None] - self.rank[..., None, :] == 1)

    @cached_property
    def touching(self):
        """[i, j]: the gap between i and j is at most one pixel, the smallest in the corpus, (p, 3, m, m)."""
        def gap(low):
            high = low + self.size
            return np.maximum(low[..., :, None], low[..., None, :]) - np.minimum(high[..., :, None], high[..., None, :])
        both = self.present[..., :, None] & self.present[..., None, :] & ~np.eye(self.x.shape[2], dtype=bool)
        return both & (np.maximum(gap(self.x), gap(self.y)) <= 1)

    def value_counts(self, field, chosen):
        """How many of the chosen objects (p, 3, m) have each value of 'color', 'shape' or 'size': (p, 3, 3)."""
        values, array = {'color': (range(3), self.colour), 'shape': (range(3), self.shape),
                         'size': (SIZES.values(), self.size)}[field]
        return np.stack([(chosen & (array == value)).sum(-1) for value in values], -1)


def has_room(box, item, replaced=None):
    """Whether an object lies inside a box (a list of objects), a pixel or more from all others but number `replaced`."""
    *_, size, x, y = item
    return min(x, y) >= 0 and max(x, y) <= SIDE - size and all(
        i == replaced or max(x - ox - o, ox - x - size, y - oy - o, oy - y - size) >= 1
        for i, (_, _, o, ox, oy) in enumerate(box))


def random_object(rng):
    """An object anywhere in a box, one in five at the right wall and one in five on the floor, as in the corpus."""
    size = int(rng.choice((10, 20, 30)))
    x, y = (SIDE - size if rng.random() < 0.18 else int(rng.integers(SIDE + 1 - size)) for _ in 'xy')
    return int(rng.integers(3)), int(rng.integers(3)), size, x, y


def random_block(rng, level):
    return 0, int(rng.integers(3)), BLOCK, (SIDE - BLOCK) // 2, SIDE - BLOCK - BLOCK_STEP * level


def random_picture(rng, tower, most=MAX_OBJECTS - 1):
    """A picture as in the corpus: three boxes of 1 to 4 stacked blocks, or 1 to 7 scattered objects; at most `most`."""
    scene = []
    for count in rng.integers(1, 1 + min(most, MAX_BLOCKS if tower else MAX_OBJECTS - 1), 3):
        box = [random_block(rng, level) for level in range(count)] if tower else []
        while len(box) < count:
            item = random_object(rng)
            if has_room(box, item):
                box.append(item)
        scene.append(box)
    return scene


def change_picture(rng, scene, tower):
    """A copy of a picture that differs in one object: another colour, shape, size or place, or it is new or missing."""
    while True:
        changed = [[tuple(item) for item in box] for box in scene]
        box = changed[rng.integers(3)]
        if not box:
            continue
        i, choice = int(rng.integers(len(box))), rng.random()
        shape, colour, size, x, y = box[i]
        if choice < 0.1 and len(box) > 1:
            box.pop(-1 if tower else i)
        elif choice < 0.2 and len(box) < (MAX_BLOCKS if tower else MAX_OBJECTS - 1):
            item = random_block(rng, len(box)) if tower else random_object(rng)
            if not has_room(box, item):
                continue
            box.append(item)
        elif choice < 0.5 or tower:
            box[i] = shape, (colour + int(rng.integers(1, 3))) % 3, size, x, y
        else:
            if choice < 0.7:
                item = (shape + int(rng.integers(1, 3))) % 3, colour, size, x, y
            elif choice < 0.8:
                item = shape, colour, *random_object(rng)[2:]
            else:
                x, y = ((0, y), (x, 0), (SIDE - size, y), (x, SIDE - size))[rng.integers(4)]
                item = shape, colour, size, x, y
            if item == box[i] or not has_room(box, item, i):
                continue
            box[i] = item
        return changed


# ---- normalisation: many wordings of the corpus become one

COLOUR = r'(?:black|yellow|blue)'
COLOURED = rf'{COLOUR}(?:&{COLOUR})*'
NOUN = r'(?:item|circle|square|triangle)'
WALL = r'(wall|floor|roof|right wall|right corner|corner)'

# From the words of the corpus, typing errors included, to those of the grammar below; applied in this order.
REWRITES = [(re.compile(pattern), words) for pattern, words in (
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


def normalise(sentence):
    """A sentence of the corpus in the words of the grammar."""
    text = sentence.lower().strip()
    for pattern, words in REWRITES:
        text = pattern.sub(words, text)
    return text.strip(' ,')


# ---- the grammar: each function parses a phrase into a rule, or None

AMOUNT = r'(?:exactly|only|just|at least|at most|not more than|more than|less than)'
QUANTITY = rf'((?:{AMOUNT} )?\d(?: or more| at most)?|a|no|many|any|the)'


def quantity(text):
    """The rule on counts of 'a', 'no', 'many', 'exactly 2', ...; a number alone is exact, as in most labels."""
    if m := re.fullmatch(rf'(?:{AMOUNT} )?(\d) (or more|at most)', text):
        text = f'{"at least" if m[2] == "or more" else "at most"} {m[1]}'
    if m := re.fullmatch(rf'({AMOUNT})? ?(\d)', text):
        n = int(m[2])
        return {'at least': lambda c: c >= n, 'at most': lambda c: c <= n, 'not more than': lambda c: c <= n,
                'more than': lambda c: c > n, 'less than': lambda c: c < n}.get(m[1], lambda c: c == n)
    at_least_one = dict.fromkeys(('', 'a', 'any', 'the'), lambda c: c >= 1)
    return {'no': lambda c: c == 0, 'many': lambda c: c >= MANY, **at_least_one}.get(text)


def conjunction(rules):
    """The rule that all rules hold; None if one of them is None."""
    rules = list(rules)
    return None if None in rules else lambda p: reduce(and_, [rule(p) for rule in rules])


def has_colour(text):
    """Rule on objects: one of the colours in the text."""
    colours = [COLOURS[word] for word in re.findall(COLOUR, text)]
    return lambda p: np.isin(p.colour, colours)


def only_colours(text, noun=None):
    """Rule on boxes: the objects have exactly the colours in the text, and all of them are of the shape `noun`, if it is one."""
    colours, shape = [COLOURS[word] for word in re.findall(COLOUR, text)], SHAPES.get(noun)

    def rule(p):
        used = p.value_counts('color', p.present) > 0
        fits = p.present if shape is None else p.shape == shape
        return (used == np.isin(range(3), colours)).all(-1) & (fits | ~p.present).all(-1)
    return rule


def colour_at(place, text):
    """Rule on boxes: at a place, such as 'top', lies an object of one of the colours in the text."""
    colour = has_colour(text)
    return lambda p: (p.at(place) & colour(p)).any(-1)


def neighbour(m):
    """Rule on objects, 'on a blue item' and so on: such an object is the next lower (for 'below' the next higher) of the box."""
    other, below = object_phrase(m['np']), m['how'] == 'below'

    def rule(p):
        pairs = np.swapaxes(p.directly_above, -1, -2) if below else p.directly_above
        return (pairs & other(p)[..., None, :]).any(-1)
    return other and rule


def position(m):
    """Rule on objects: 'at the top (of a tower with 3 item)'."""
    box = box_clause(m['of']) if m['of'] else lambda p: p.counts > 0
    return box and (lambda p: p.at(m['place']) & box(p)[..., None])


def predicate(m):
    """Rule on objects: 'is not a blue circle'."""
    rule, negated = object_phrase(m['np']), bool(m['no'])
    return rule and (lambda p: rule(p) ^ negated)


# What may follow a noun: (pattern, function of its match that returns the rule on objects).
MODIFIERS = [(re.compile(pattern + r'(?= |$)'), parse) for pattern, parse in (
    (rf'(?:is )?(?P<no>not )?touching (?:any |the )?{WALL}', lambda m: lambda p: p.walls[m[2]] ^ bool(m['no'])),
    (r'of medium size', lambda m: lambda p: p.size == SIZES['medium']),
    (rf'of ({COLOURED})', lambda m: has_colour(m[1])),
    (rf'is (?P<no>not )?(?:a |the color )?(?P<np>(?:{COLOURED})(?: {NOUN})?|{NOUN})', predicate),
    (r'(?P<how>on top of|on|over|above|below) (?:of )?(?:a |the )?'
     rf'(?P<np>(?:small |medium |big )?(?:{COLOURED} ?)?{NOUN}?)', neighbour),
    (r'at the (?P<place>top|base|bottom|middle)(?: of (?:a |the )?tower(?: with (?P<of>.*))?)?', position),
    (r'on top', lambda m: lambda p: p.at('top')))]


def object_phrase(text):
    """The rule on objects of a noun without its number: 'small blue circle touching wall', 'black'."""
    m = re.match(rf'(?:(small|medium|big) ?)?({COLOURED})? ?({NOUN}\b)?(?: shape| item)?(?P<rest>.*)$', text.strip())
    if not any(m.groups()[:3]):
        return None
    rules, rest = [lambda p: p.present], m['rest'].strip()
    if m[1]:
        rules.append(lambda p: p.size == SIZES[m[1]])
    if m[2]:
        rules.append(has_colour(m[2]))
    if m[3] in SHAPES:
        rules.append(lambda p: p.shape == SHAPES[m[3]])
    while rest:
        match, parse = next(((match, parse) for pattern, parse in MODIFIERS if (match := pattern.match(rest))), (None, None))
        if match is None:
            return None
        rules.append(parse(match))
        rest = rest[match.end():].strip()
    return conjunction(rules)


def counted_objects(text):
    """(rule on objects, rule on their count) of a noun with its number: 'at least 2 black item'; or None."""
    text = text.strip()
    if m := re.fullmatch(r'(\d) (.*) at most', text):
        text = f'at most {m[1]} {m[2]}'
    m = re.match(rf'{QUANTITY} (.*)$', text)
    objects = object_phrase(m[2] if m else text)
    return objects and (objects, quantity(m[1] if m else ''))


def box_phrase(text):
    """The rule on boxes of one statement: '3 item of same color', 'only black item', 'a circle touching wall'."""
    text = text.strip()
    if m := re.fullmatch(rf'(?:{QUANTITY} )?item of (only|at least|exactly)? ?(\d) (?:different )?color( at most)?', text):
        total = quantity(m[1] or '')
        colours = quantity(f'{"at most" if m[4] else m[2] or "exactly"} {m[3]}')
        return lambda p: total(p.counts) & colours((p.value_counts('color', p.present) > 0).sum(-1))
    if m := re.fullmatch(r'(?:item of )?(?:all )?(?:only |exactly )?(\d) (?:different )?(color|shape)', text):
        return lambda p: (p.value_counts(m[2], p.present) > 0).sum(-1) == int(m[1])
    if text in ('all item of same color', 'item of same color', 'item of only color', 'same item color'):
        return lambda p: (p.value_counts('color', p.present) > 0).sum(-1) == 1
    if m := re.fullmatch(rf'{QUANTITY} (.*?) ?of (?:the )?(same|different) (color|shape|size)(.*)', text):
        total, objects = quantity(m[1]), object_phrase(m[2] + m[5])
        return objects and (lambda p: total(objects(p).sum(-1))
                            & (((p.value_counts(m[4], objects(p)) > 0).sum(-1) == 1) ^ (m[3] == 'different')))
    if m := re.fullmatch(rf'({QUANTITY} .*?) (not )?(?:touching each other|stacked)', text):
        return touching_each_other(counted_objects(m[1]), bool(m[3]))
    if m := (re.fullmatch(rf'(?:item (?:of|with) )?only (?:item of )?(?:only )?({COLOURED})(?: ({NOUN}|color))?', text)
             or re.fullmatch(rf'({COLOURED}) ({NOUN})? ?only', text)
             or re.fullmatch(rf'item of (?:only )?({COLOURED})(?: color)?( only)?', text)):
        return only_colours(m[1], m[2])
    if m := re.fullmatch(rf'only ({NOUN})(?: and ({NOUN}))?(?: item)?', text):
        shapes = np.isin(range(3), [SHAPES[noun] for noun in m.groups() if noun in SHAPES])
        return (lambda p: ((p.value_counts('shape', p.present) > 0) == shapes).all(-1)) if shapes.any() else None
    if m := re.fullmatch(rf'{QUANTITY} item of (?:only )?({COLOURED})(?: color)?( only)?', text):
        total, colours = quantity(m[1]), only_colours(m[2])
        return lambda p: total(p.counts) & colours(p)
    if m := re.fullmatch(rf'({COLOURED})( {NOUN})?', text):  # 'black&blue item': some of each colour
        each = [object_phrase(colour + (m[2] or '')) for colour in re.findall(COLOUR, m[1])]
        return lambda p: np.stack([rule(p).any(-1) for rule in each]).all(0)
    counted = counted_objects(text)
    return counted and (lambda p: counted[1](counted[0](p).sum(-1)))


def touching_each_other(counted, negated):
    """Rule on boxes: so many of these objects touch another of them, or (`negated`) so many exist and none touches another."""
    def rule(p):
        objects, number = counted[0](p), counted[1]
        near = (p.touching & objects[..., None, :]).any(-1) & objects
        return number(objects.sum(-1)) & ~near.any(-1) if negated else number(near.sum(-1))
    return counted and rule


def box_clause(text):
    """The rule on boxes of several statements: '3 item of which 2 is blue', 'a circle and 2 black square'."""
    text = re.sub(r'^(with|that|which|is) ', '', text.strip(' ,'))
    if m := re.match(rf'(.*?) (?:of which|and the|,|and)(?: there is)? ((?:{AMOUNT} )?\d)(?: of the item| item)? (?:is|being) '
                     r'(?:a )?(.*?)(?: and (?:the other )?(\d) (?:of the item |item )?is (?:a )?(.*))?$', text):
        parts = [box_clause(m[1]), box_phrase(f'{m[2]} {m[3]}'), *([box_phrase(f'{m[4]} {m[5]}')] if m[4] else [])]
        if rule := conjunction(parts):
            return rule
    m = re.match(r'(.*?) of which (?:there is )?(.*)$', text)
    if m and (rule := conjunction((box_clause(m[1]), box_clause(m[2])))):
        return rule
    if rule := box_phrase(text):
        return rule
    they = r'(?:they|it|the color(?: of the item)?) is (?:all |both )?(?:a )?(.*)'
    if m := re.fullmatch(rf'({QUANTITY} )?item (?:and|with) {they}', text):
        total = box_phrase(f'{m[1] or ""}item')
        if re.fullmatch(COLOURED, m[3]):
            return conjunction((total, only_colours(m[3])))
        if m[3] in SHAPES:
            return conjunction((total, box_phrase(f'only {m[3]}')))
    for m in re.finditer(r' and with |,? and |, | with ', text):
        if rule := conjunction((box_phrase(text[:m.start()]), box_clause(text[m.end():]))):
            return rule
    return None


def tower_clause(text):
    """The rule on boxes of what follows 'tower' or 'box'."""
    text = re.sub(r'^(?:with|that|and|of which|which|is) ', '', text.strip(' ,'))
    where = r'(top|base|bottom|middle|second|third)(?: item)?(?: from the base)?'
    if not text:
        return lambda p: p.counts > 0
    if m := re.fullmatch(rf'(?:the )?{where} is ({COLOURED})', text):
        return colour_at(m[1], m[2])
    alike = rf'(?: is)?(?: ({COLOUR})|( not)? (?:the |of )?same(?: in)? color)'
    if m := re.fullmatch(rf'(?:the )?{where} and (?:the )?{where}{alike}', text):
        if m[3]:
            return conjunction((colour_at(m[1], m[3]), colour_at(m[2], m[3])))

        def same_colour(p):
            one, other = (np.where(p.at(m[i]), p.colour, -1).max(-1) for i in (1, 2))
            return (one >= 0) & (other >= 0) & ((one == other) ^ bool(m[4]))
        return same_colour
    if m := re.fullmatch(rf'(?:a )?({COLOURED}) (base|top|second)(?: and (?:a )?({COLOURED}) (base|top))?', text):
        return conjunction((colour_at(m[2], m[1]), *([colour_at(m[4], m[3])] if m[3] else [])))
    return box_clause(text)


def counted_boxes(text):
    """(rule on boxes, rule on their count) of '2 tower with a blue item', 'each box with', '1 of the 3 box with'; or None."""
    m = re.match(rf'(?P<all>all(?: 3)?|each|every)?(?:{QUANTITY})?(?: ?of)?(?: ?the)?(?: \d| there)? ?(?P<colour>{COLOURED})? ?'
                 r'(?:(?P<high>\d) item )?(?:box|tower)(?: item)?(?P<rest>.*?)(?: each)?$', text)
    if not m:
        return None
    rules = [tower_clause(m['rest'])]
    if m['colour']:
        rules.append(only_colours(m['colour']))
    if m['high']:
        rules.append(lambda p: p.counts == int(m['high']))
    rule = conjunction(rules)
    return rule and (rule, (lambda c: c == 3) if m['all'] else quantity(m[2] or ''))


def parse_statement(sentence):
    """The rule on pictures of a sentence; None if it cannot be parsed."""
    text = normalise(sentence).removeprefix('there is ')
    for where, some in (('each|every', np.all), ('a|1|the same', np.any)):
        if (m := re.fullmatch(rf'(.*?) in (?:{where}) (?:box|tower)', text)) and (rule := box_phrase(m[1])):
            return lambda p: some(rule(p), -1)
    if boxes := counted_boxes(text):
        return lambda p: boxes[1](boxes[0](p).sum(-1))
    if (m := re.fullmatch(r'(?:none of the|no) (.*)', text)) and (objects := object_phrase(m[1])):
        return lambda p: ~objects(p).any((-1, -2))
    if m := re.fullmatch(r'all (.*) is (touching .*)', text):
        objects, touching = object_phrase(m[1]), object_phrase(f'item {m[2]}')
        if objects and touching:
            return lambda p: (touching(p) | ~objects(p)).all((-1, -2))
    if counted := counted_objects(text):
        return lambda p: counted[1](counted[0](p).sum((-1, -2)))
    m = re.fullmatch(rf'(.*? {NOUN}) and (.*)', text)
    if m and (first := counted_objects(m[1])) and (second := counted_objects(m[2])):
        return lambda p: first[1](first[0](p).sum((-1, -2))) & second[1](second[0](p).sum((-1, -2)))
    if m := re.fullmatch(r'(?:the )?(second|third|middle|base|top)(?: item)?(?: from the base)? of (?:a|the)? ?(?:(\d) item )?'
                         rf'tower(?: from the base)?(?: item)?(?: with (.*))? is ({COLOURED})', text):
        height = (lambda p: p.counts == int(m[2])) if m[2] else (lambda p: p.counts > 0)
        rule = conjunction((colour_at(m[1], m[4]), height, *([box_clause(m[3])] if m[3] else [])))
        return rule and (lambda p: rule(p).any(-1))
    if re.search(r' (?:stacked|touching each other)$', text) and (rule := box_phrase(text)):
        return lambda p: rule(p).any(-1)
    return None


def parse_count(sentence):
    """For 'there are 2 black circles': ('black circle', the rule that counts them); None for sentences of another kind."""
    m = re.match(rf'there is {QUANTITY} (.*)$', normalise(sentence))
    if not m or re.search('[0-9]|,| and |each|every|same box', m[2]):
        return None
    if boxes := counted_boxes(f'a {m[2]}'):
        return m[2], lambda p: boxes[0](p).sum(-1)
    objects = object_phrase(m[2])
    return objects and (m[2], lambda p: objects(p).sum((-1, -2)))


# ---- generation of statements and questions with pictures


def is_tower(scene):
    """Whether all objects of a picture are blocks stacked in the middle of their boxes."""
    return all((shape, size, x) == (0, BLOCK, (SIDE - BLOCK) // 2) for box in scene for shape, _, size, x, _ in box)


def vary_sentence(rng, sentence, highest):
    """A sentence of the corpus with colours and shapes permuted, and some of its numbers changed by one, up to `highest`."""
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


def picture_pool(rng, scenes, tower, size, most=MAX_OBJECTS - 1):
    """2 * size Pictures: `size` pictures, a third of them from the corpus, then a changed copy of each."""
    corpus = [scene for scene in scenes if is_tower(scene) == tower and 0 < max(map(len, scene)) <= most]
    originals = [corpus[i] for i in rng.permutation(len(corpus))[:size // 3].tolist()]
    originals += [random_picture(rng, tower, most) for _ in range(size - len(originals))]
    return Pictures.from_lists(originals + [change_picture(rng, scene, tower) for scene in originals])


def contrast_pairs(rng, rule, pool, most, tries=200):
    """Up to `most` pairs (a picture where the rule holds, one where it does not), as indices into a picture_pool.

    Half of them, if there are as many, are a picture and its changed copy.
    """
    half = len(pool) // 2
    originals = rng.choice(half, min(tries, half), replace=False)
    candidates = np.concatenate([originals, originals + half])
    truth = rule(pool[candidates])
    first, second = np.split(truth, 2)
    differ = np.flatnonzero(first != second)[:-(-most // 2)]
    pairs = [(candidates[i], candidates[i + len(originals)]) if first[i] else (candidates[i + len(originals)], candidates[i])
             for i in differ]
    true, false = candidates[truth], candidates[~truth]
    if len(true) and len(false):
        pairs += [(rng.choice(true), rng.choice(false)) for _ in range(min(most, len(true), len(false)) - len(pairs))]
    return pairs


def generate(seed, corpus, statements, questions, size, most=MAX_OBJECTS - 1, longest=99, each=4):
    """Statements and questions about pictures: (list of pictures, list of (index of a picture, source, sentence, answer)).

    corpus: list of (sentence, scene), sentences that can be parsed. `statements` of them are sampled and varied; each gets up to
    `each` pictures of which it is true and as many of which it is false. A sentence about a number becomes a question with
    probability `questions` instead: 'how many black circle touching wall'. size: pictures in each of two pools (towers, scattered
    objects), without the changed copies; most: objects in a box; longest: words of a sentence. source: 'statements' or 'counts'.
    """
    rng = np.random.default_rng(seed)
    scenes = [scene for _, scene in corpus]
    pools = {tower: picture_pool(rng, scenes, tower, size, most) for tower in (True, False)}
    short = [(sentence, is_tower(scene)) for sentence, scene in corpus if len(sentence.split()) <= longest]
    examples = []  # ((tower, index in its pool), source, sentence, answer)
    for i in rng.integers(max(len(short), 1), size=statements if short else 0).tolist():
        sentence, tower = short[i]
        text = vary_sentence(rng, sentence, MAX_BLOCKS if tower else MAX_OBJECTS - 1)
        rule, pool = parse_statement(text), pools[tower]
        if rule is None:
            continue
        if rng.random() < questions and (counting := parse_count(text)):
            noun, count = counting
            indices = rng.choice(len(pool), 200)
            counts = count(pool[indices])
            for number in rng.choice(np.unique(counts), 2 * each).tolist():
                question = f'how many {noun.replace("&", " and ")}'
                examples.append(((tower, int(rng.choice(indices[counts == number]))), 'counts', question, str(number)))
        else:
            for pair in contrast_pairs(rng, rule, pool, each):
                examples += [((tower, int(index)), 'statements', text, answer)
                             for index, answer in zip(pair, ('true', 'false'), strict=True)]
    places = {place: i for i, place in enumerate(dict.fromkeys(place for place, *_ in examples))}
    return ([pools[tower].boxes(index) for tower, index in places],
            [(places[place], *rest) for place, *rest in examples])


def generate_all(corpus, jobs):
    """Yields generate(corpus=corpus, **job) for each of the jobs, in order, computed by one process per core."""
    with ProcessPoolExecutor(initializer=_set_corpus, initargs=(corpus,)) as workers:
        yield from workers.map(_generate, jobs)


def _set_corpus(corpus):
    _generate.corpus = corpus


def _generate(job):
    return generate(corpus=_generate.corpus, **job)
