"""Statements about two pictures as in NLVR2, true or false.

A set is four pairs of pictures and up to two sentences, each true of two pairs and false of two, so that a sentence alone says
nothing of its truth. The first sentence determines the pairs: two couples of pairs that differ in one picture, one of them true,
one false. So a single picture says nothing either.
"""
import random
from collections.abc import Callable
from dataclasses import dataclass

from shapes.questions import (
    FIELDS,
    MARGIN,
    NUMBER_WORDS,
    SIDES,
    WHERE_WORDS,
    Description,
    Phrase,
    ambiguous,
    clearly_beside,
    fill,
    name_field,
    offset,
    sample_kinds,
)
from shapes.scene import Scene, Thing

# Of the kinds of first sentences. Most say that something is there: if as many denied it, a word and its object in the picture
# would go together with false as often as with true.
SHARES = {'side': 0.46, 'both': 0.16, 'either': 0.12, 'one': 0.05, 'neither': 0.03, 'lacking': 0.04,
          'counting': 0.07, 'comparison': 0.05, 'agreement': 0.02}
LONG_SHARES = {kind: share * 0.7 for kind, share in SHARES.items()} | {'relation': 0.3}  # in the hard world
PAIRS = 4  # of a set
TRIES = 60  # samples of pictures for one couple
FIELD_SETS = (('shape',), ('colour',), ('colour', 'shape'))

Things = tuple[Thing, ...]


@dataclass(frozen=True)
class Beside(Description):
    """Attributes of a thing, and on which side of any of some others it lies: 'star above a circle'."""
    side: str = ''
    other: Description | None = None

    def matching(self, scene: Scene) -> list[Thing] | None:
        """The things that clearly lie there; None if there are none, but a viewer may think that there are."""
        couples = [(one, other) for one in super().matching(scene) for other in self.other.matching(scene)]
        clear = [one for one, other in couples if clearly_beside(one, other, self.side)]
        return clear or (None if any(offset(*couple, self.side) > -MARGIN / 2 for couple in couples) else [])

    def phrase(self, rng: random.Random) -> Phrase:
        return Phrase(f'{super().phrase(rng).one} {rng.choice(WHERE_WORDS[self.side])} {self.other.phrase(rng).a}')


@dataclass(frozen=True)
class StatementFamily:
    """Templates of a statement about the things that match a description, and its truth."""
    kind: str
    templates: tuple[str, ...]
    holds: Callable[[Things, Things, int], bool | None]  # of the left and the right picture and a number; None: ambiguous
    field_sets: tuple[tuple[str, ...], ...] = FIELD_SETS  # choices of the attributes in the description


def _counts(holds):
    """A `holds` from a rule on the numbers of things on the left and on the right."""
    return lambda left, right, number: holds(len(left), len(right), number)


def _agree(field, same):
    """A `holds`: whether the only such thing of each picture has the same colour or shape (`same`), or another."""
    def holds(left, right, _):
        values = {getattr(thing, field) for thing in (*left, *right)}
        return None if len(left) != 1 or len(right) != 1 or ambiguous(*values) else (len(values) == 1) == same
    return holds


def _right(templates):
    """The templates with left and right exchanged."""
    swap = {'left': 'right', 'right': 'left'}
    return tuple(' '.join(swap.get(word, word) for word in template.split(' ')) for template in templates)


LEFT = ('The left {picture} contains {x.a}.', 'There is {x.a} in the left {picture}.',
        'The left {picture} shows at least one {x.one}.', 'In the left {picture} there is {x.a}.')
LEFT_NO = ('The left {picture} contains no {x.one}.', 'There is no {x.one} in the left {picture}.',
           'The left {picture} does not show any {x.many}.', 'In the left {picture} there are no {x.many}.')
BOTH = ('Both {picture}s contain {x.a}.', 'There is {x.a} in each {picture}.', 'Each of the two {picture}s shows {x.a}.',
        'Both of the {picture}s show at least one {x.one}.')
NOT_BOTH = ('At least one of the {picture}s contains no {x.one}.', 'Not both {picture}s contain {x.a}.',
            'It is not true that both {picture}s show {x.a}.')
NEITHER = ('Neither {picture} contains {x.a}.', 'There is no {x.one} in either {picture}.', 'None of the {picture}s shows {x.a}.',
           'There are no {x.many} at all.')
EITHER = ('At least one of the {picture}s contains {x.a}.', 'There is {x.a} in at least one {picture}.',
          'There is {x.a} in one {picture} or in both.', 'One or both of the {picture}s show {x.a}.')
ONE = ('Exactly one of the {picture}s contains {x.a}.', 'Only one {picture} shows {x.a}.',
       'There is {x.a} in just one of the two {picture}s.', 'One {picture} contains {x.a} and the other does not.')
TOTAL = ('There are exactly {number} {x.many} in all.', 'The two {picture}s show {number} {x.many} in total.',
         'Together the {picture}s contain exactly {number} {x.many}.')
AT_LEAST = ('There are at least {number} {x.many} in all.', 'The two {picture}s show {number} or more {x.many} in total.')
FEWER = ('There are fewer than {number} {x.many} in all.', 'Together the {picture}s contain fewer than {number} {x.many}.')
LEFT_COUNT = ('There are exactly {number} {x.many} in the left {picture}.',
              'The left {picture} contains exactly {number} {x.many}.')
LEFT_MORE = ('The left {picture} has more {x.many} than the right one.', 'There are more {x.many} in the left {picture}.',
             'The left {picture} shows more {x.many} than the right {picture} does.')
EQUAL = ('Both {picture}s contain the same number of {x.many}.', 'There are as many {x.many} in one {picture} as in the other.')
SAME = ('The {x.one} has the same {field} in both {picture}s.', 'Both {picture}s show {x.a} of the same {field}.')
DIFFERENT = ('The {x.one} has a different {field} in each {picture}.', 'The {x.many} of the two {picture}s differ in {field}.')

_ONE_FIELD = (('shape',), ('colour',))
FAMILIES = (
    StatementFamily('side', LEFT, _counts(lambda left, right, n: left > 0)),
    StatementFamily('side', _right(LEFT), _counts(lambda left, right, n: right > 0)),
    StatementFamily('relation', LEFT, _counts(lambda left, right, n: left > 0), _ONE_FIELD),
    StatementFamily('relation', _right(LEFT), _counts(lambda left, right, n: right > 0), _ONE_FIELD),
    StatementFamily('lacking', LEFT_NO, _counts(lambda left, right, n: left == 0)),
    StatementFamily('lacking', _right(LEFT_NO), _counts(lambda left, right, n: right == 0)),
    StatementFamily('both', BOTH, _counts(lambda left, right, n: left > 0 and right > 0)),
    StatementFamily('lacking', NOT_BOTH, _counts(lambda left, right, n: left == 0 or right == 0)),
    StatementFamily('neither', NEITHER, _counts(lambda left, right, n: left + right == 0)),
    StatementFamily('either', EITHER, _counts(lambda left, right, n: left + right > 0)),
    StatementFamily('one', ONE, _counts(lambda left, right, n: (left > 0) != (right > 0))),
    StatementFamily('counting', TOTAL, _counts(lambda left, right, n: left + right == n), _ONE_FIELD),
    StatementFamily('counting', AT_LEAST, _counts(lambda left, right, n: left + right >= n), _ONE_FIELD),
    StatementFamily('counting', FEWER, _counts(lambda left, right, n: left + right < n), _ONE_FIELD),
    StatementFamily('counting', LEFT_COUNT, _counts(lambda left, right, n: left == n), _ONE_FIELD),
    StatementFamily('counting', _right(LEFT_COUNT), _counts(lambda left, right, n: right == n), _ONE_FIELD),
    StatementFamily('comparison', LEFT_MORE, _counts(lambda left, right, n: left > right), _ONE_FIELD),
    StatementFamily('comparison', _right(LEFT_MORE), _counts(lambda left, right, n: left < right), _ONE_FIELD),
    StatementFamily('comparison', EQUAL, _counts(lambda left, right, n: left == right), _ONE_FIELD),
    StatementFamily('agreement', name_field('color', SAME), _agree('colour', True), (('shape',),)),
    StatementFamily('agreement', name_field('color', DIFFERENT), _agree('colour', False), (('shape',),)),
    StatementFamily('agreement', name_field('shape', SAME), _agree('shape', True), (('colour',),)),
    StatementFamily('agreement', name_field('shape', DIFFERENT), _agree('shape', False), (('colour',),)),
)


class Album:
    """Pictures, to be sampled by what they show."""

    def __init__(self, scenes: dict[str, Scene]):
        self.scenes, self.cache = scenes, {}
        self.few = len(scenes) < PAIRS  # then both pictures of a pair may be the same

    def matching(self, x: Description) -> tuple[dict[str, Things], list[str], list[str]]:
        """The things of each picture that match `x`, unless that is open; the pictures with such things; the pictures without."""
        if x not in self.cache:
            matching = {img_id: x.matching(scene) for img_id, scene in self.scenes.items()}
            things = {img_id: tuple(group) for img_id, group in matching.items() if group is not None}
            self.cache[x] = things, [i for i in things if things[i]], [i for i in things if not things[i]]
        return self.cache[x]

    def couple(self, holds, x: Description, number: int, side: int, rng: random.Random) -> list[tuple[str, str]]:
        """Two pairs that differ in the picture of this side (0: left, 1: right), one true and one false; [] if none was found."""
        things, *groups = self.matching(x)
        for _ in range(TRIES if all(groups) else 0):
            left, right, other = (rng.choice(rng.choice(groups)) for _ in range(3))
            couple = [(left, right), (left, other) if side else (other, right)]
            truths = {holds(things[one], things[two], number) for one, two in couple}
            if truths == {True, False} and (self.few or all(one != two for one, two in couple)):
                return couple
        return []

    def pairs(self, holds, x: Description, number: int, rng: random.Random) -> list[tuple[str, str]] | None:
        """Four different pairs, two of them true: if possible a couple that differs on the left and one on the right."""
        pairs = []
        for side in (0, 1):
            pairs += self.couple(holds, x, number, side, rng) or self.couple(holds, x, number, 1 - side, rng)
        rng.shuffle(pairs)
        return pairs if len(set(pairs)) == PAIRS else None

    def truths(self, holds, x: Description, number: int, pairs: list[tuple[str, str]]) -> list[bool | None]:
        things = self.matching(x)[0]
        return [holds(things[left], things[right], number) if {left, right} <= things.keys() else None for left, right in pairs]


def generate(scenes: dict[str, Scene], sets: int, split: str, rng: random.Random) -> list[dict]:
    """The statements of one split in the format of LXMERT's NLVR2 annotations.

    Args:
        scenes: by image id.
        sets: number of sets of pairs.
        split: the first field of identifiers.
    Returns:
        {'uid', 'identifier', 'img0', 'img1', 'sent', 'label': 1 for true or 0, 'question_type'} each. The identifier is
        split-set-pair-sentence; consistency groups identifiers without their third field.
    Raises:
        ValueError: the scenes are too few or too much alike.
    """
    album, examples = Album(scenes), []
    shares = LONG_SHARES if any(scene.rules.hops for scene in scenes.values()) else SHARES
    for number, kind in enumerate(sample_kinds(shares, sets, rng)):
        kinds = [*[kind] * TRIES, *[*SHARES] * TRIES]
        statements = next(filter(None, (_statements(album, kind, rng) for kind in kinds)), None)
        if statements is None:
            raise ValueError(f'{len(scenes)} pictures give no pairs for {split}; choose more --images')
        for i, (family, sentence, pairs, truths) in enumerate(statements):
            for pair, ((left, right), truth) in enumerate(zip(pairs, truths, strict=True)):
                examples.append({
                    'uid': f'nlvr2_{split}_{len(examples)}', 'identifier': f'{split}-{number}-{pair}-{i}', 'img0': left,
                    'img1': right, 'sent': sentence, 'label': int(truth), 'question_type': family.kind})
    return examples


def _sample(kind: str, rng: random.Random) -> tuple[StatementFamily, Description, int]:
    """A family of this kind, the description that it is about, and its number (which most families do not use)."""
    family = rng.choice([family for family in FAMILIES if family.kind == kind])
    x = Description(**{field: rng.choice(FIELDS[field]) for field in rng.choice(family.field_sets)})
    if kind == 'relation':
        field = 'shape' if x.shape else 'colour'
        other = rng.choice([value for value in FIELDS[field] if value != getattr(x, field)])
        x = Beside(x.size, x.colour, x.shape, rng.choice(tuple(SIDES)), Description(**{field: other}))
    return family, x, rng.choice(tuple(NUMBER_WORDS))


def _statements(album: Album, kind: str, rng: random.Random) -> list[tuple]:
    """A set: [(family, sentence, pairs, truths)] of a statement of this kind, and of a second one about the same pairs if one was
    found; [] if no pairs were found."""
    family, x, number = _sample(kind, rng)
    if not (pairs := album.pairs(family.holds, x, number, rng)):
        return []
    statements = []
    for _ in range(TRIES):
        truths = album.truths(family.holds, x, number, pairs)
        if truths.count(True) == truths.count(False) == PAIRS // 2:
            sentence = fill(family.templates, {'x': x, 'number': number}, rng)
            if statements and sentence != statements[0][1]:
                return [*statements, (family, sentence, pairs, truths)]
            statements = statements or [(family, sentence, pairs, truths)]
        family, x, number = _sample(*rng.choices([*SHARES], [*SHARES.values()]), rng)
    return statements
