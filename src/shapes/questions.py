"""Questions about scenes with soft answers: unambiguous, varied, and balanced, so that words alone say little of the answer.

As in CLEVR (Johnson et al., 2017) a question belongs to a family: templates of its wording, and a program that computes the
answer from the scene. `generate` samples questions of a family and takes the one whose answer the family has had least often, so
that the answers of each family are about equally frequent. The questions of GQA (`gqa_questions`), the statements of NLVR2
(`pairs`) and `captions` are built from the same parts.
"""
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from shapes.scene import COLOURS, HEIGHT, MARGIN, SHAPES, SIDES, WIDTH, Scene, Thing, clearly_beside, offset

SHARES = {'existence': 0.12, 'verification': 0.10, 'colour': 0.14, 'shape': 0.14, 'size': 0.08,
          'counting': 0.17, 'comparison': 0.10, 'relation': 0.15}
FIELDS = {'size': ('small', 'large'), 'colour': tuple(COLOURS), 'shape': SHAPES}  # attributes of a Thing and their values
COUNTS = ('0', '1', '2', '3', '4')
YES_NO = ('yes', 'no')
ANSWERS = (*YES_NO, *COUNTS, *FIELDS['colour'], *SHAPES, *FIELDS['size'], 'left', 'right', 'top', 'bottom')

CENTRE = Thing('', '', '', WIDTH / 2, HEIGHT / 2, 0.0)  # of the picture
TRIES = 24  # samples of one family for one question
MAX_TOKENS = 18  # of a sentence, full stop and commas included: the tasks cut off more

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
# What describes the anchor of a Related.
ANCHORS = (('shape',), ('colour',), ('size', 'shape'), ('size', 'colour'), ('colour', 'shape'))
# Slot of a template: {value: its wordings}; other values are used as they are.
WORDS = {'where': WHERE_WORDS, 'edge': EDGE_WORDS, 'value': SIZE_WORDS, 'other': SIZE_WORDS, 'more': MORE_WORDS,
         'number': NUMBER_WORDS}


@dataclass(frozen=True)
class Description:
    """Some attributes of a thing; '' is left out."""
    size: str = ''
    colour: str = ''
    shape: str = ''

    def within(self, scene: Scene) -> Iterable[Thing]:
        """The things that lie where the description says."""
        return scene.things

    def matching(self, scene: Scene) -> list[Thing]:
        size, colour, shape = self.size, self.colour, self.shape
        return [thing for thing in self.within(scene) if (not size or thing.size == size)
                and (not colour or thing.colour == colour) and (not shape or thing.shape == shape)]

    def phrase(self, rng: random.Random) -> 'Phrase':
        size = rng.choice(SIZE_WORDS[self.size]) if self.size else ''
        noun = self.shape or rng.choice(('thing', 'object'))
        return Phrase(' '.join(word for word in (size, self.colour, noun) if word))


@dataclass(frozen=True)
class Related(Description):
    """Attributes of a thing, and on which side of another one it lies: 'small star that is above the red circle'."""
    side: str = ''
    anchor: Description | None = None  # of one thing of the scene

    def within(self, scene: Scene) -> list[Thing]:
        """Also those of which a viewer may think that they lie there."""
        (anchor,) = self.anchor.matching(scene)
        return [thing for thing in scene.things if thing != anchor and offset(thing, anchor, self.side) > -MARGIN / 2]

    def slots(self) -> dict[str, Description | str]:
        """Those of a template that names the side itself."""
        return {'x': Description(self.size, self.colour, self.shape), 'where': self.side, 'y': self.anchor}

    def phrase(self, rng: random.Random) -> 'Phrase':
        where, anchor = rng.choice(WHERE_WORDS[self.side]), self.anchor.phrase(rng).one.replace(' that is', '')  # shorter
        return Phrase(f'{super().phrase(rng).one} that is {where} the {anchor}')


@dataclass(frozen=True)
class Phrase:
    """A description in words; templates use `{x.one}`, `{x.a}` and `{x.many}`."""
    one: str

    @property
    def a(self) -> str:
        return f'an {self.one}' if self.one[0] in 'aeiou' else f'a {self.one}'

    @property
    def many(self) -> str:
        return self.one + ('es' if self.one.endswith('ss') else 's')


# What fills the slots of a template (descriptions or words), and the soft answer {answer: score}, the best one first.
Question = tuple[dict[str, Description | str], dict[str, float]]


@dataclass(frozen=True)
class QuestionFamily:
    kind: str
    answers: tuple[str, ...]  # all possible ones
    templates: tuple[str, ...]
    sample: Callable[[Scene, random.Random], Question | None]  # None: the sampled question would be ambiguous

    @property
    def answer_type(self) -> str:
        """VQA's name of the type of answer."""
        return {YES_NO: 'yes/no', COUNTS: 'number'}.get(self.answers, 'other')


# ---- parts of the programs

def hard_label(answer: str | bool) -> dict[str, float]:
    """The label of an answer that nobody would doubt; a bool is yes or no."""
    return {answer if isinstance(answer, str) else 'yes' if answer else 'no': 1.0}


def _attribute_label(field: str, thing: Thing) -> dict[str, float]:
    value = getattr(thing, field)
    return {'diamond': 1.0, 'square': 0.3} if value == 'diamond' else hard_label(value)  # a diamond is a square on its corner


def ambiguous(*values: str) -> bool:
    """Whether people could disagree if two shapes are the same: a diamond is a square on its corner."""
    return {*values} == {'diamond', 'square'}


def describe(thing: Thing, fields: Iterable[str]) -> Description:
    return Description(**{field: getattr(thing, field) for field in fields})


def random_description(scene: Scene, rng: random.Random, fields: Iterable[str]) -> Description:
    """A description that matches some thing or none; near misses (a colour here, a shape there) are common."""
    thing = rng.choice(scene.things)
    return Description(**{field: rng.choice((getattr(thing, field), getattr(rng.choice(scene.things), field),
                                             rng.choice(FIELDS[field]))) for field in fields})


def unique_thing(scene: Scene, rng: random.Random, fields: Iterable[str], hops: int = 2) -> tuple[Description, Thing] | None:
    """(description, thing) where the description matches this thing alone, with up to so many relations as far as rules allow."""
    thing = rng.choice(scene.things)
    if hops := min(hops, scene.rules.hops):
        fields = rng.sample(fields, rng.randint(0, len(fields)))  # the fewer attributes, the more relations
    x = single_out(scene, thing, fields, rng, hops)
    return (x, thing) if x else None


def single_out(scene: Scene, thing: Thing, fields: Iterable[str], rng: random.Random, hops: int) -> Description | None:
    """A description that matches `thing` alone: these attributes or, if other things have them too, with up to so many relations;
    None if there is none."""
    x = describe(thing, fields)
    others = [other for other in x.matching(scene) if other is not thing]
    if not others or not hops:
        return None if others else x
    for side, anchor in rng.sample(places := scene.places[thing], len(places)):
        dx, dy = SIDES[side]
        limit = anchor.x * dx + anchor.y * dy - MARGIN / 2  # as in Related.within
        if all(other.x * dx + other.y * dy <= limit or other is anchor for other in others) and (
                y := single_out(scene, anchor, rng.choice(ANCHORS), rng, hops - 1)):
            return Related(x.size, x.colour, x.shape, side, y)
    return None


def unique_pair(scene: Scene, rng: random.Random, fields: Iterable[str]) -> tuple | None:
    """Two different things, each with a description that matches it alone: (x, its thing, y, its thing)."""
    first, second = unique_thing(scene, rng, fields, 1), unique_thing(scene, rng, fields, 0)  # more would be cut off
    return first + second if first and second and first != second else None


def in_half(thing: Thing, side: str) -> bool:
    """Whether `thing` clearly lies in that half of the picture."""
    return offset(thing, CENTRE, side) >= MARGIN


def outermost(scene: Scene, side: str) -> Thing | None:
    """The thing furthest to that side; None if the centre or the outline of another is nearly as far."""
    first, *others = sorted(scene.things, key=lambda thing: -offset(thing, CENTRE, side))
    clear = all(offset(first, other, side) + min(0, first.radius - other.radius) >= MARGIN / 2 for other in others)
    return first if clear else None


# ---- the programs: each function returns the `sample` of a family; `named` are the attributes by which a thing is described

def exists(*fields):
    def sample(scene, rng):
        x = random_description(scene, rng, fields)
        return {'x': x}, hard_label(bool(x.matching(scene)))
    return sample


def verify(field, *named):
    """Does the described thing have this colour, shape or size?"""
    def sample(scene, rng):
        if not (match := unique_thing(scene, rng, named)):
            return None
        x, thing = match
        value, truth = getattr(random_description(scene, rng, [field]), field), getattr(thing, field)
        if ambiguous(value, truth):
            return None
        return {'x': x, 'value': Description(shape=value) if field == 'shape' else value}, hard_label(value == truth)
    return sample


def query(field, *named):
    """Which colour, shape or size does the described thing have?"""
    def sample(scene, rng):
        match = unique_thing(scene, rng, named)
        return ({'x': match[0]}, _attribute_label(field, match[1])) if match else None
    return sample


def count(*fields):
    def sample(scene, rng):
        x = random_description(scene, rng, fields)
        things = x.matching(scene)
        if len(things) >= len(COUNTS):
            return None
        label = hard_label(str(len(things)))
        if any(scene.partly_hidden(thing) for thing in things):
            label[str(len(things) - 1)] = 0.3  # a viewer may overlook the hidden one
        return {'x': x}, label
    return sample


def compare_counts(field):
    def sample(scene, rng):
        x, y = random_description(scene, rng, [field]), random_description(scene, rng, [field])
        return ({'x': x, 'y': y}, hard_label(len(x.matching(scene)) > len(y.matching(scene)))) if x != y else None
    return sample


def verify_same(field, *named):
    def sample(scene, rng):
        if not (pair := unique_pair(scene, rng, named)):
            return None
        x, one, y, other = pair
        values = getattr(one, field), getattr(other, field)
        return None if ambiguous(*values) else ({'x': x, 'y': y}, hard_label(values[0] == values[1]))
    return sample


def compare_sizes(*named):
    def sample(scene, rng):
        pair = unique_pair(scene, rng, named)
        if not pair or pair[1].size == pair[3].size:
            return None  # two things of one size are never exactly equal
        return {'x': pair[0], 'y': pair[2]}, hard_label(pair[1].size == 'large')
    return sample


def verify_relation(*named):
    """Does one thing lie to this side of another?"""
    def sample(scene, rng):
        side = rng.choice(tuple(SIDES))
        if not (pair := unique_pair(scene, rng, named)):
            return None
        x, one, y, other = pair
        if not clearly_beside(one, other, side) and not clearly_beside(other, one, side):
            return None
        return {'x': x, 'where': side, 'y': y}, hard_label(clearly_beside(one, other, side))
    return sample


def query_related(field, *named):
    """Which colour or shape has the one thing of this description that lies to this side of another?"""
    def sample(scene, rng):
        side = rng.choice(tuple(SIDES))
        thing = rng.choice(scene.things)
        if scene.rules.hops:
            x = single_out(scene, thing, named, rng, scene.rules.hops)
            return (x.slots(), _attribute_label(field, thing)) if isinstance(x, Related) else None
        x = describe(thing, named)
        match = unique_thing(scene, rng, ('colour', 'shape'))
        if not match or len(x.matching(scene)) == 1:  # without the relation x would be unique too
            return None
        y, anchor = match
        others = [other for other in x.matching(scene) if other not in (thing, anchor)]
        if not clearly_beside(thing, anchor, side) or any(offset(other, anchor, side) > -MARGIN / 2 for other in others):
            return None
        return {'x': x, 'where': side, 'y': y}, _attribute_label(field, thing)
    return sample


def query_outermost(field):
    """Which colour or shape has the thing furthest to this side?"""
    def sample(scene, rng):
        side = rng.choice(tuple(SIDES))
        thing = outermost(scene, side)
        return ({'edge': side}, _attribute_label(field, thing)) if thing else None
    return sample


def query_half(answers, *named):
    """In which half of the picture is the described thing?"""
    def sample(scene, rng):
        if not (match := unique_thing(scene, rng, named)):
            return None
        x, thing = match
        sides = ('left', 'right') if answers[0] == 'left' else ('above', 'below')
        return next((({'x': x}, hard_label(answer)) for answer, side in zip(answers, sides, strict=True) if in_half(thing, side)),
                    None)
    return sample


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
RELATION = ('Is the {x.one} {where} the {y.one}?', 'Does the {x.one} lie {where} the {y.one}?',
            'Is it true that the {x.one} is {where} the {y.one}?',
            'In the {picture}, is the {x.one} {where} the {y.one}?')
COLOUR_RELATION = ('What color is the {x.one} {where} the {y.one}?',
                   'What is the colour of the {x.one} {where} the {y.one}?',
                   'The {x.one} {where} the {y.one} is what color?',
                   'Tell me the color of the {x.one} {where} the {y.one}.')
SHAPE_RELATION = ('What shape is the {x.one} {where} the {y.one}?', 'What is the {x.one} {where} the {y.one}?',
                  'The {x.one} {where} the {y.one} has what shape?', 'Which shape lies {where} the {y.one}?')
COLOUR_OUTERMOST = ('What color is the thing {edge}?', 'What is the colour of the object {edge}?',
                    'Which color does the thing {edge} have?', 'The object {edge} is what color?')
SHAPE_OUTERMOST = ('What shape is the thing {edge}?', 'What is the object {edge}?', 'Which shape is {edge}?',
                   'The object {edge} has what shape?')
LEFT_RIGHT = ('Is the {x.one} on the left or on the right?',
              'Which side of the {picture} is the {x.one} on, left or right?',
              'Is the {x.one} in the right or the left half?', 'On which side is the {x.one}, right or left?')
TOP_BOTTOM = ('Is the {x.one} at the top or at the bottom?',
              'Which half of the {picture} is the {x.one} in, top or bottom?',
              'Is the {x.one} in the bottom or the top half?', 'Is the {x.one} nearer to the top or the bottom?')


def name_field(field: str, templates: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(template.replace('{field}', field) for template in templates)


_COLOURS = FIELDS['colour']
FAMILIES = (
    QuestionFamily('existence', YES_NO, EXISTENCE, exists('shape')),
    QuestionFamily('existence', YES_NO, EXISTENCE, exists('colour')),
    QuestionFamily('existence', YES_NO, EXISTENCE, exists('colour', 'shape')),
    QuestionFamily('existence', YES_NO, EXISTENCE, exists('size', 'shape')),
    QuestionFamily('verification', YES_NO, IS_VALUE, verify('colour', 'shape')),
    QuestionFamily('verification', YES_NO, IS_VALUE, verify('colour', 'size', 'shape')),
    QuestionFamily('verification', YES_NO, IS_VALUE, verify('size', 'colour', 'shape')),
    QuestionFamily('verification', YES_NO, IS_SHAPE, verify('shape', 'colour')),
    QuestionFamily('verification', YES_NO, IS_SHAPE, verify('shape', 'size', 'colour')),
    QuestionFamily('colour', _COLOURS, COLOUR, query('colour', 'shape')),
    QuestionFamily('colour', _COLOURS, COLOUR, query('colour', 'size', 'shape')),
    QuestionFamily('colour', _COLOURS, COLOUR, query('colour', 'size')),
    QuestionFamily('shape', SHAPES, SHAPE, query('shape', 'colour')),
    QuestionFamily('shape', SHAPES, SHAPE, query('shape', 'size', 'colour')),
    QuestionFamily('shape', SHAPES, SHAPE, query('shape', 'size')),
    QuestionFamily('size', FIELDS['size'], SIZE, query('size', 'shape')),
    QuestionFamily('size', FIELDS['size'], SIZE, query('size', 'colour')),
    QuestionFamily('size', FIELDS['size'], SIZE, query('size', 'colour', 'shape')),
    QuestionFamily('counting', COUNTS, COUNT, count('shape')),
    QuestionFamily('counting', COUNTS, COUNT, count('colour')),
    QuestionFamily('counting', COUNTS, COUNT, count('size')),
    QuestionFamily('comparison', YES_NO, MORE, compare_counts('shape')),
    QuestionFamily('comparison', YES_NO, MORE, compare_counts('colour')),
    QuestionFamily('comparison', YES_NO, name_field('color', SAME), verify_same('colour', 'shape')),
    QuestionFamily('comparison', YES_NO, name_field('shape', SAME), verify_same('shape', 'size', 'colour')),
    QuestionFamily('comparison', YES_NO, BIGGER, compare_sizes('colour', 'shape')),
    QuestionFamily('relation', YES_NO, RELATION, verify_relation('colour', 'shape')),
    QuestionFamily('relation', YES_NO, RELATION, verify_relation('shape')),
    QuestionFamily('relation', _COLOURS, COLOUR_RELATION, query_related('colour')),
    QuestionFamily('relation', _COLOURS, COLOUR_RELATION, query_related('colour', 'shape')),
    QuestionFamily('relation', SHAPES, SHAPE_RELATION, query_related('shape')),
    QuestionFamily('relation', _COLOURS, COLOUR_OUTERMOST, query_outermost('colour')),
    QuestionFamily('relation', SHAPES, SHAPE_OUTERMOST, query_outermost('shape')),
    QuestionFamily('relation', ('left', 'right'), LEFT_RIGHT, query_half(('left', 'right'), 'colour', 'shape')),
    QuestionFamily('relation', ('top', 'bottom'), TOP_BOTTOM, query_half(('top', 'bottom'), 'colour', 'shape')),
)


# ---- generation

def generate(scenes: dict[str, Scene], per_image: int, first_id: int, rng: random.Random,
             families: tuple[QuestionFamily, ...] = FAMILIES, shares: dict[str, float] = SHARES) -> list[dict]:
    """The questions of one split in the format of LXMERT's VQA annotations.

    Args:
        scenes: by image id.
        per_image: questions about each image, all different.
        first_id: question id of the first; the others follow.
        families: at least one for each kind in `shares`.
    Returns:
        {'img_id', 'question_id', 'sent', 'label': {answer: score}, 'answer_type', 'question_type'} each. The kinds have the
        shares of `shares`, up to a few questions; the answers of each family are about equally frequent.
    Raises:
        ValueError: a scene has too few different questions.
    """
    kinds = sample_kinds(shares, len(scenes) * per_image, rng)
    answers = defaultdict(Counter)  # index of a family: its answers so far
    questions = []
    for img_id, scene in scenes.items():
        asked = set()
        for _ in range(per_image):
            # A kind without a question about this scene stays first in line for the next scene. At the very end the few kinds
            # that are left may not fit the last scenes: then any kind is taken.
            tries = ((turn, _question(families, kind, scene, answers, asked, rng))
                     for turn, kind in enumerate(chain(kinds, shares)))
            turn, question = next((item for item in tries if item[1]), (0, None))
            if question is None:
                raise ValueError(f'{img_id}: no more different questions; choose fewer --questions')
            del kinds[min(turn, len(kinds) - 1)]
            questions.append({'img_id': img_id, 'question_id': first_id + len(questions), **question})
    return questions


def sample_kinds(shares: dict[str, float], total: int, rng: random.Random) -> list[str]:
    """`total` kinds in their shares (the largest remainders are rounded up), in random order."""
    exact = {kind: share * total for kind, share in shares.items()}
    counts = {kind: int(value) for kind, value in exact.items()}
    for kind in sorted(exact, key=lambda kind: counts[kind] - exact[kind])[:total - sum(counts.values())]:
        counts[kind] += 1
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    rng.shuffle(kinds)
    return kinds


def _question(families, kind: str, scene: Scene, answers: dict, asked: set, rng: random.Random) -> dict | None:
    """A question of this kind about a scene, added to `answers` and `asked`; None if none was sampled that is not in `asked`."""
    indices = [index for index, family in enumerate(families) if family.kind == kind]
    for index in rng.sample(indices, len(indices)):
        family, counts = families[index], answers[index]
        least = min(counts[answer] for answer in family.answers)
        best = None
        for _ in range(TRIES // (1 + scene.rules.hops)):
            if (question := family.sample(scene, rng)) is None:
                continue
            slots, label = question
            answer = next(iter(label))
            key = index, *slots.values()  # whatever the wording
            if key not in asked and (best is None or counts[answer] < counts[best[0]]):
                best = answer, label, slots, key
                if counts[answer] == least:
                    break
        if not best:
            continue
        answer, label, slots, key = best
        if sent := next(filter(fits, (fill(family.templates, slots, rng) for _ in range(TRIES))), None):
            counts[answer] += 1
            asked.add(key)
            return {'sent': sent, 'label': label, 'answer_type': family.answer_type, 'question_type': kind}
    return None


def fits(sentence: str, least: int = 0) -> bool:
    """Whether a sentence has at least so many tokens, and not more than a task reads."""
    return least <= len(re.findall(r'\w+|[^\w\s]', sentence)) <= MAX_TOKENS


def fill(templates: tuple[str, ...], slots: dict, rng: random.Random, wordings: dict[str, dict] = WORDS) -> str:
    """One of the templates, its slots filled in one of their `wordings` (as in WORDS)."""
    words = {'picture': rng.choice(('picture', 'image'))}
    for slot, value in slots.items():
        if isinstance(value, Description):
            words[slot] = value.phrase(rng)
        else:
            words[slot] = rng.choice(wordings.get(slot, {}).get(value, (value,)))
    return rng.choice(templates).format(**words)
