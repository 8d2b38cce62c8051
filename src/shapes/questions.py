"""Questions about scenes, with soft answers: honest, varied, and balanced so that words alone say little.

The questions of VQA, and what those of GQA (`gqa_questions`), the statements of NLVR2 (`pairs`) and `captions` are made of too.

A `Form` is one way to ask: what it mentions, how it is worded, and a function that proposes such a question about a
scene together with its answer. `ask` draws proposals and takes the one whose answer its form has given least so far:
so the answers of each form come out equally often, whatever the scenes make likely.
"""
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from shapes.scene import COLOURS, HEIGHT, SHAPES, WIDTH, Scene, Thing

SHARES = {'existence': 0.12, 'verification': 0.10, 'colour': 0.14, 'shape': 0.14, 'size': 0.08,
          'counting': 0.17, 'comparison': 0.10, 'relation': 0.15}
FIELDS = {'size': ('small', 'large'), 'colour': tuple(COLOURS), 'shape': SHAPES}
COUNTS = ('0', '1', '2', '3', '4')
YES_NO = ('yes', 'no')
SIDES = {'left': (-1, 0), 'right': (1, 0), 'above': (0, -1), 'below': (0, 1)}  # unit steps, y points down
ANSWERS = (*YES_NO, *COUNTS, *FIELDS['colour'], *SHAPES, *FIELDS['size'], 'left', 'right', 'top', 'bottom')

MIDDLE = Thing('', '', '', WIDTH / 2, HEIGHT / 2, 0.0)  # of the picture
MARGIN = 14.0  # pixels between two centres, from which on one lies clearly to a side of the other
TRIES = 24  # proposals of one form for one question

SIZE_WORDS = {'small': ('small', 'little'), 'large': ('large', 'big')}
WHERE_WORDS = {'left': ('to the left of', 'left of', 'on the left side of'),
               'right': ('to the right of', 'right of', 'on the right side of'),
               'above': ('above', 'higher up than'), 'below': ('below', 'lower than')}
EDGE_WORDS = {'left': ('furthest to the left', 'closest to the left edge'),
              'right': ('furthest to the right', 'closest to the right edge'),
              'above': ('highest up', 'closest to the top'), 'below': ('lowest down', 'closest to the bottom')}
MORE_WORDS = {'large': ('larger', 'bigger'), 'small': ('smaller',), 'left': ('further to the left',),
              'right': ('further to the right',), 'above': ('higher up',), 'below': ('lower down',)}
NUMBER_WORDS = {2: ('two', '2'), 3: ('three', '3'), 4: ('four', '4')}
# How the plain words in each slot of a template are said.
WORDS = {'where': WHERE_WORDS, 'edge': EDGE_WORDS, 'value': SIZE_WORDS, 'other': SIZE_WORDS, 'more': MORE_WORDS,
         'number': NUMBER_WORDS}


@dataclass(frozen=True)
class Description:
    """Some of the three names of a thing; '' is not said."""
    size: str = ''
    colour: str = ''
    shape: str = ''

    def matches(self, thing: Thing) -> bool:
        return all(getattr(self, field) in ('', getattr(thing, field)) for field in FIELDS)

    def among(self, scene: Scene) -> list[Thing]:
        return [thing for thing in scene.things if self.matches(thing)]

    def phrase(self, rng: random.Random) -> 'Phrase':
        size = rng.choice(SIZE_WORDS[self.size]) if self.size else ''
        noun = self.shape or rng.choice(('thing', 'object'))
        return Phrase(' '.join(word for word in (size, self.colour, noun) if word))


@dataclass(frozen=True)
class Phrase:
    """A description in words; templates write `{x.one}`, `{x.a}` and `{x.many}`."""
    one: str

    @property
    def a(self) -> str:
        return f'an {self.one}' if self.one[0] in 'aeiou' else f'a {self.one}'

    @property
    def many(self) -> str:
        return self.one + ('es' if self.one.endswith('ss') else 's')


NAMED = re.compile(rf'\bthe (?:({"|".join(way for ways in SIZE_WORDS.values() for way in ways)}) )?'
                   rf'(?:({"|".join(COLOURS)}) )?({"|".join(SHAPES)}|thing|object)\b', re.IGNORECASE)
NAMES = {way: size for size, ways in SIZE_WORDS.items() for way in ways} | {'thing': '', 'object': ''}


def named(sentence: str) -> list[Description]:
    """The descriptions that follow a "the", in their order."""
    return [Description(*(NAMES.get(word, word) for word in (word.lower() for word in found)))
            for found in NAMED.findall(sentence)]


# A proposal: what fills the template's slots (descriptions or plain words), and the soft answer, the best one first.
Proposal = tuple[dict[str, Description | str], dict[str, float]]


@dataclass(frozen=True)
class Form:
    kind: str
    answers: tuple[str, ...]  # those that it can have
    templates: tuple[str, ...]
    propose: Callable[[Scene, random.Random], Proposal | None]  # None: this draw makes no honest question

    @property
    def answer_type(self) -> str:
        """VQA's name for the kind of answer."""
        return {YES_NO: 'yes/no', COUNTS: 'number'}.get(self.answers, 'other')


# ---- what the proposals are made of

def sure(answer: str | bool) -> dict[str, float]:
    """One answer that nobody would doubt."""
    return {answer if isinstance(answer, str) else 'yes' if answer else 'no': 1.0}


def _shape_answer(shape: str) -> dict[str, float]:
    """A diamond is a square on its corner, and some would say so."""
    return {'diamond': 1.0, 'square': 0.3} if shape == 'diamond' else {shape: 1.0}


def _soft(field: str, thing: Thing) -> dict[str, float]:
    return _shape_answer(thing.shape) if field == 'shape' else sure(getattr(thing, field))


def describe(thing: Thing, fields: Iterable[str]) -> Description:
    return Description(**{field: getattr(thing, field) for field in fields})


def guess(scene: Scene, rng: random.Random, fields: Iterable[str]) -> Description:
    """A description that may or may not fit something; near misses (a colour here, a shape there) are common."""
    thing = rng.choice(scene.things)
    return Description(**{field: rng.choice((getattr(thing, field), getattr(rng.choice(scene.things), field),
                                             rng.choice(FIELDS[field]))) for field in fields})


def unique(scene: Scene, rng: random.Random, fields: Iterable[str]) -> tuple[Description, Thing] | None:
    """A thing that is the only one of its description."""
    thing = rng.choice(scene.things)
    x = describe(thing, fields)
    return (x, thing) if len(x.among(scene)) == 1 else None


def unique_pair(scene: Scene, rng: random.Random, fields: Iterable[str]) -> tuple | None:
    """Two things, each the only one of its description: (x, its thing, y, its thing)."""
    first, second = unique(scene, rng, fields), unique(scene, rng, fields)
    return first + second if first and second and first != second else None


def ahead(thing: Thing, other: Thing, side: str) -> float:
    """How far, in pixels, `thing` lies to that side of `other` (negative: on the opposite side)."""
    dx, dy = SIDES[side]
    return (thing.x - other.x) * dx + (thing.y - other.y) * dy


def clear(thing: Thing, other: Thing, side: str) -> bool:
    """Whether nobody would hesitate to say so: `thing` is not, for example, far more above than it is left."""
    return ahead(thing, other, side) >= max(MARGIN, 0.6 * max(abs(thing.x - other.x), abs(thing.y - other.y)))


def placed(thing: Thing, side: str) -> bool:
    """Whether `thing` clearly lies in that half of the picture."""
    return ahead(thing, MIDDLE, side) >= MARGIN


def furthest(scene: Scene, side: str) -> Thing | None:
    """The thing furthest to that side; None where another competes, by its centre or by its outline."""
    first, *others = sorted(scene.things, key=lambda thing: -ahead(thing, MIDDLE, side))
    far = all(ahead(first, other, side) + min(0, first.radius - other.radius) >= MARGIN / 2 for other in others)
    return first if far else None


# ---- the forms, a function a pattern: each returns `propose`

def existence(*fields):
    def propose(scene, rng):
        x = guess(scene, rng, fields)
        return {'x': x}, sure(bool(x.among(scene)))
    return propose


def verify(field, *named):
    """Is the thing of these names of that colour, shape or size?"""
    def propose(scene, rng):
        if not (found := unique(scene, rng, named)):
            return None
        value = getattr(guess(scene, rng, [field]), field)
        if {value, getattr(found[1], field)} == {'diamond', 'square'}:
            return None  # the one pair of shapes that people could argue about
        said = Description(shape=value) if field == 'shape' else value
        return {'x': found[0], 'value': said}, sure(value == getattr(found[1], field))
    return propose


def query(field, *named):
    """Of which colour, shape or size is the thing of these names?"""
    def propose(scene, rng):
        found = unique(scene, rng, named)
        return ({'x': found[0]}, _soft(field, found[1])) if found else None
    return propose


def count(*fields):
    def propose(scene, rng):
        x = guess(scene, rng, fields)
        things = x.among(scene)
        if len(things) >= len(COUNTS):
            return None
        label = sure(str(len(things)))
        if any(scene.partly_hidden(thing) for thing in things):
            label[str(len(things) - 1)] = 0.3  # a viewer may overlook the one behind
        return {'x': x}, label
    return propose


def more(field):
    def propose(scene, rng):
        x, y = guess(scene, rng, [field]), guess(scene, rng, [field])
        return ({'x': x, 'y': y}, sure(len(x.among(scene)) > len(y.among(scene)))) if x != y else None
    return propose


def same(field, *named):
    def propose(scene, rng):
        if not (pair := unique_pair(scene, rng, named)):
            return None
        x, one, y, other = pair
        if field == 'shape' and {one.shape, other.shape} == {'diamond', 'square'}:
            return None
        return {'x': x, 'y': y}, sure(getattr(one, field) == getattr(other, field))
    return propose


def bigger(*named):
    def propose(scene, rng):
        pair = unique_pair(scene, rng, named)
        if not pair or pair[1].size == pair[3].size:
            return None  # two things of one size are never quite equal
        return {'x': pair[0], 'y': pair[2]}, sure(pair[1].size == 'large')
    return propose


def beside(*named):
    """Does one thing lie to that side of another?"""
    def propose(scene, rng):
        side = rng.choice(tuple(SIDES))
        if not (pair := unique_pair(scene, rng, named)):
            return None
        x, one, y, other = pair
        if not clear(one, other, side) and not clear(other, one, side):
            return None
        return {'x': x, 'where': side, 'y': y}, sure(clear(one, other, side))
    return propose


def query_beside(field, *named):
    """What is the one thing of these names to that side of another?"""
    def propose(scene, rng):
        side = rng.choice(tuple(SIDES))
        thing = rng.choice(scene.things)
        x = describe(thing, named)
        found = unique(scene, rng, ('colour', 'shape'))
        if not found or len(x.among(scene)) == 1:  # the relation must be needed
            return None
        others = [other for other in x.among(scene) if other not in (thing, found[1])]
        if not clear(thing, found[1], side) or any(ahead(o, found[1], side) > -MARGIN / 2 for o in others):
            return None
        return {'x': x, 'where': side, 'y': found[0]}, _soft(field, thing)
    return propose


def query_edge(field):
    """What is the thing furthest to that side?"""
    def propose(scene, rng):
        side = rng.choice(tuple(SIDES))
        most = furthest(scene, side)
        return ({'edge': side}, _soft(field, most)) if most else None
    return propose


def half(answers, *named):
    """In which half of the picture is it?"""
    def propose(scene, rng):
        if not (found := unique(scene, rng, named)):
            return None
        sides = ('left', 'right') if answers[0] == 'left' else ('above', 'below')
        lies = next((answer for answer, side in zip(answers, sides, strict=True) if placed(found[1], side)), None)
        return ({'x': found[0]}, sure(lies)) if lies else None
    return propose


EXISTENCE = ('Is there {x.a} in the {picture}?', 'Can you see {x.a}?', 'Does the {picture} show {x.a}?',
             'Are there any {x.many}?', 'Do you see {x.a} in this {picture}?', 'Is {x.a} visible anywhere?')
IS_VALUE = ('Is the {x.one} {value}?', 'Does the {x.one} look {value}?', 'Is it true that the {x.one} is {value}?',
            'Would you call the {x.one} {value}?', 'In this {picture}, is the {x.one} {value}?')
IS_SHAPE = ('Is the {x.one} {value.a}?', 'Does the {x.one} look like {value.a}?',
            'Would you call the {x.one} {value.a}?', 'Is it true that the {x.one} is {value.a}?',
            'In this {picture}, is the {x.one} {value.a}?')
COLOUR = ('What color is the {x.one}?', 'What is the colour of the {x.one}?', 'Which color does the {x.one} have?',
          'The {x.one} in the {picture} is what color?', 'Tell me the colour of the {x.one}.',
          'What color is the {x.one} in this {picture}?')
SHAPE = ('What shape is the {x.one}?', 'What is the {x.one}?', 'What is the shape of the {x.one}?',
         'Which shape does the {x.one} have?', 'The {x.one} in the {picture} has what shape?',
         'What kind of shape is the {x.one}?')
SIZE = ('What size is the {x.one}?', 'Is the {x.one} small or large?', 'How big is the {x.one}?',
        'Would you say the {x.one} is large or small?', 'What is the size of the {x.one} in the {picture}?')
COUNT = ('How many {x.many} are there?', 'How many {x.many} can you see?',
         'What number of {x.many} does the {picture} show?', 'Count the {x.many} in the {picture}.',
         'How many {x.many} are in this {picture}?', 'What is the number of {x.many}?')
MORE = ('Are there more {x.many} than {y.many}?', 'Does the {picture} show more {x.many} than {y.many}?',
        'Can you see more {x.many} than {y.many}?', 'Is the number of {x.many} greater than that of {y.many}?',
        'Are there fewer {y.many} than {x.many}?')
SAME = ('Are the {x.one} and the {y.one} the same {field}?', 'Does the {x.one} have the same {field} as the {y.one}?',
        'Is the {field} of the {x.one} the same as that of the {y.one}?',
        'Do the {x.one} and the {y.one} share the same {field}?')
BIGGER = ('Is the {x.one} bigger than the {y.one}?', 'Is the {x.one} larger than the {y.one}?',
          'Is the {y.one} smaller than the {x.one}?', 'Does the {x.one} look larger than the {y.one}?')
BESIDE = ('Is the {x.one} {where} the {y.one}?', 'Does the {x.one} lie {where} the {y.one}?',
          'Is it true that the {x.one} is {where} the {y.one}?',
          'In the {picture}, is the {x.one} {where} the {y.one}?')
COLOUR_BESIDE = ('What color is the {x.one} {where} the {y.one}?',
                 'What is the colour of the {x.one} {where} the {y.one}?',
                 'The {x.one} {where} the {y.one} is what color?',
                 'Tell me the color of the {x.one} {where} the {y.one}.')
SHAPE_BESIDE = ('What shape is the {x.one} {where} the {y.one}?', 'What is the {x.one} {where} the {y.one}?',
                'The {x.one} {where} the {y.one} has what shape?', 'Which shape lies {where} the {y.one}?')
COLOUR_EDGE = ('What color is the thing {edge}?', 'What is the colour of the object {edge}?',
               'Which color does the thing {edge} have?', 'The object {edge} is what color?')
SHAPE_EDGE = ('What shape is the thing {edge}?', 'What is the object {edge}?', 'Which shape is {edge}?',
              'The object {edge} has what shape?')
LEFT_RIGHT = ('Is the {x.one} on the left or on the right?',
              'Which side of the {picture} is the {x.one} on, left or right?',
              'Is the {x.one} in the right or the left half?', 'On which side is the {x.one}, right or left?')
TOP_BOTTOM = ('Is the {x.one} at the top or at the bottom?',
              'Which half of the {picture} is the {x.one} in, top or bottom?',
              'Is the {x.one} in the bottom or the top half?', 'Is the {x.one} nearer to the top or the bottom?')


def about(field: str, templates: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(template.replace('{field}', field) for template in templates)


_COLOURS = FIELDS['colour']
FORMS = (
    Form('existence', YES_NO, EXISTENCE, existence('shape')),
    Form('existence', YES_NO, EXISTENCE, existence('colour')),
    Form('existence', YES_NO, EXISTENCE, existence('colour', 'shape')),
    Form('existence', YES_NO, EXISTENCE, existence('size', 'shape')),
    Form('verification', YES_NO, IS_VALUE, verify('colour', 'shape')),
    Form('verification', YES_NO, IS_VALUE, verify('colour', 'size', 'shape')),
    Form('verification', YES_NO, IS_VALUE, verify('size', 'colour', 'shape')),
    Form('verification', YES_NO, IS_SHAPE, verify('shape', 'colour')),
    Form('verification', YES_NO, IS_SHAPE, verify('shape', 'size', 'colour')),
    Form('colour', _COLOURS, COLOUR, query('colour', 'shape')),
    Form('colour', _COLOURS, COLOUR, query('colour', 'size', 'shape')),
    Form('colour', _COLOURS, COLOUR, query('colour', 'size')),
    Form('shape', SHAPES, SHAPE, query('shape', 'colour')),
    Form('shape', SHAPES, SHAPE, query('shape', 'size', 'colour')),
    Form('shape', SHAPES, SHAPE, query('shape', 'size')),
    Form('size', FIELDS['size'], SIZE, query('size', 'shape')),
    Form('size', FIELDS['size'], SIZE, query('size', 'colour')),
    Form('size', FIELDS['size'], SIZE, query('size', 'colour', 'shape')),
    Form('counting', COUNTS, COUNT, count('shape')),
    Form('counting', COUNTS, COUNT, count('colour')),
    Form('counting', COUNTS, COUNT, count('size')),
    Form('comparison', YES_NO, MORE, more('shape')),
    Form('comparison', YES_NO, MORE, more('colour')),
    Form('comparison', YES_NO, about('color', SAME), same('colour', 'shape')),
    Form('comparison', YES_NO, about('shape', SAME), same('shape', 'size', 'colour')),
    Form('comparison', YES_NO, BIGGER, bigger('colour', 'shape')),
    Form('relation', YES_NO, BESIDE, beside('colour', 'shape')),
    Form('relation', YES_NO, BESIDE, beside('shape')),
    Form('relation', _COLOURS, COLOUR_BESIDE, query_beside('colour')),
    Form('relation', _COLOURS, COLOUR_BESIDE, query_beside('colour', 'shape')),
    Form('relation', SHAPES, SHAPE_BESIDE, query_beside('shape')),
    Form('relation', _COLOURS, COLOUR_EDGE, query_edge('colour')),
    Form('relation', SHAPES, SHAPE_EDGE, query_edge('shape')),
    Form('relation', ('left', 'right'), LEFT_RIGHT, half(('left', 'right'), 'colour', 'shape')),
    Form('relation', ('top', 'bottom'), TOP_BOTTOM, half(('top', 'bottom'), 'colour', 'shape')),
)


# ---- asking

def ask(scenes: dict[str, Scene], per_image: int, first_id: int, rng: random.Random,
        forms: tuple[Form, ...] = FORMS, shares: dict[str, float] = SHARES) -> list[dict]:
    """The questions of one split, in the form of LXMERT's VQA annotations.

    Args:
        scenes: by image id.
        per_image: questions about each image, all different.
        first_id: question id of the first; the others follow.
        forms: ways to ask, some for each kind in `shares`.
    Returns:
        {'img_id', 'question_id', 'sent', 'label': {answer: score}, 'answer_type', 'question_type'} each.
        The kinds have the shares of `shares`, but for a few questions; the answers of each form are about equally
        frequent.
    Raises:
        ValueError: a scene does not give so many different questions.
    """
    kinds = deck(shares, len(scenes) * per_image, rng)
    given = defaultdict(Counter)  # form -> its answers so far
    questions = []
    for img_id, scene in scenes.items():
        said = set()
        for _ in range(per_image):
            # A kind that makes no honest question here stays first in line for the next scene.
            # At the very end the few kinds still due may not fit the last scenes: there any kind will do.
            turns = ((turn, _question(forms, kind, scene, given, said, rng)) for turn, kind in enumerate(chain(kinds, shares)))
            turn, found = next((one for one in turns if one[1]), (0, None))
            if found is None:
                raise ValueError(f'{img_id}: nothing more to ask; choose fewer --questions')
            del kinds[min(turn, len(kinds) - 1)]
            questions.append({'img_id': img_id, 'question_id': first_id + len(questions), **found})
    return questions


def deck(shares: dict[str, float], total: int, rng: random.Random) -> list[str]:
    """`total` kinds in their shares (the largest remainders are rounded up), in random order."""
    exact = {kind: share * total for kind, share in shares.items()}
    counts = {kind: int(value) for kind, value in exact.items()}
    for kind in sorted(exact, key=lambda kind: counts[kind] - exact[kind])[:total - sum(counts.values())]:
        counts[kind] += 1
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(kinds)
    return kinds


def _question(forms: tuple[Form, ...], kind: str, scene: Scene, given: dict, said: set[tuple], rng: random.Random) -> dict | None:
    """A question of that kind about `scene`; None if there is none that asks for something not yet in `said`."""
    indices = [index for index, form in enumerate(forms) if form.kind == kind]
    for index in rng.sample(indices, len(indices)):
        form = forms[index]
        least = min(given[index][answer] for answer in form.answers)
        best = None
        for _ in range(TRIES):
            if (proposal := form.propose(scene, rng)) is None:
                continue
            slots, label = proposal
            answer = next(iter(label))
            asks = index, *slots.values()  # in whatever words
            if asks not in said and (best is None or given[index][answer] < given[index][best[0]]):
                best = answer, label, slots, asks
                if given[index][answer] == least:
                    break
        if best:
            answer, label, slots, asks = best
            given[index][answer] += 1
            said.add(asks)
            return {'sent': sentence(form.templates, slots, rng), 'label': label,
                    'answer_type': form.answer_type, 'question_type': kind}
    return None


def sentence(templates: tuple[str, ...], slots: dict, rng: random.Random, said: dict[str, dict] = WORDS) -> str:
    """One of the templates, filled with the slots in one of the ways to say them, as in WORDS; others are plain words."""
    words = {'picture': rng.choice(('picture', 'image'))}
    for name, value in slots.items():
        ways = said.get(name, {})
        words[name] = value.phrase(rng) if isinstance(value, Description) else rng.choice(ways.get(value, (value,)))
    return rng.choice(templates).format(**words)
