"""Statements about two pictures in the manner of NLVR2, true or false.

A set is four pairs of pictures and up to two sentences, each true of two pairs and false of two, so that words alone say nothing.
The first sentence decides the pairs: two couples, of which the one pair becomes the other, and the truth changes, when one
picture is exchanged. So the picture that stays says nothing either.
"""
import random
from collections.abc import Callable
from dataclasses import dataclass

from shapes.questions import FIELDS, NUMBER_WORDS, Description, about, deck, sentence
from shapes.scene import Scene, Thing

# Of the kinds of first sentences. Most say that something is there: were as many to deny it, a word and its picture would go
# together with false as often as with true.
SHARES = {'side': 0.46, 'both': 0.16, 'either': 0.12, 'one': 0.05, 'neither': 0.03, 'lacking': 0.04,
          'counting': 0.07, 'comparison': 0.05, 'agreement': 0.02}
PAIRS = 4  # of a set
TRIES = 60  # draws of pictures for one couple
TOPICS = (('shape',), ('colour',), ('colour', 'shape'))

Things = tuple[Thing, ...]


@dataclass(frozen=True)
class Statement:
    """A way to state something of the things that fit a description, given a number (which most do not use)."""
    kind: str
    templates: tuple[str, ...]
    holds: Callable[[Things, Things, int], bool | None]  # of the left and the right picture; None: no honest statement
    topics: tuple[tuple[str, ...], ...] = TOPICS  # what the description names


def _counts(holds):
    """A rule on how many things there are, as one on the things."""
    return lambda left, right, number: holds(len(left), len(right), number)


def _agree(field, same):
    """Whether the only such thing of each picture has the same colour or shape (`same`), or another."""
    def holds(left, right, _):
        values = {getattr(thing, field) for thing in (*left, *right)}
        return None if len(left) != 1 or len(right) != 1 or values == {'diamond', 'square'} else (len(values) == 1) == same
    return holds


def _right(templates):
    """The same said of the right picture."""
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

_FEW = (('shape',), ('colour',))
STATEMENTS = (
    Statement('side', LEFT, _counts(lambda left, right, n: left > 0)),
    Statement('side', _right(LEFT), _counts(lambda left, right, n: right > 0)),
    Statement('lacking', LEFT_NO, _counts(lambda left, right, n: left == 0)),
    Statement('lacking', _right(LEFT_NO), _counts(lambda left, right, n: right == 0)),
    Statement('both', BOTH, _counts(lambda left, right, n: left > 0 and right > 0)),
    Statement('lacking', NOT_BOTH, _counts(lambda left, right, n: left == 0 or right == 0)),
    Statement('neither', NEITHER, _counts(lambda left, right, n: left + right == 0)),
    Statement('either', EITHER, _counts(lambda left, right, n: left + right > 0)),
    Statement('one', ONE, _counts(lambda left, right, n: (left > 0) != (right > 0))),
    Statement('counting', TOTAL, _counts(lambda left, right, n: left + right == n), _FEW),
    Statement('counting', AT_LEAST, _counts(lambda left, right, n: left + right >= n), _FEW),
    Statement('counting', FEWER, _counts(lambda left, right, n: left + right < n), _FEW),
    Statement('counting', LEFT_COUNT, _counts(lambda left, right, n: left == n), _FEW),
    Statement('counting', _right(LEFT_COUNT), _counts(lambda left, right, n: right == n), _FEW),
    Statement('comparison', LEFT_MORE, _counts(lambda left, right, n: left > right), _FEW),
    Statement('comparison', _right(LEFT_MORE), _counts(lambda left, right, n: left < right), _FEW),
    Statement('comparison', EQUAL, _counts(lambda left, right, n: left == right), _FEW),
    Statement('agreement', about('color', SAME), _agree('colour', True), (('shape',),)),
    Statement('agreement', about('color', DIFFERENT), _agree('colour', False), (('shape',),)),
    Statement('agreement', about('shape', SAME), _agree('shape', True), (('colour',),)),
    Statement('agreement', about('shape', DIFFERENT), _agree('shape', False), (('colour',),)),
)


class Album:
    """Pictures to be drawn from by what they show."""

    def __init__(self, scenes: dict[str, Scene]):
        self.scenes, self.shown = scenes, {}
        self.alike = len(scenes) < PAIRS  # so few that a picture may have to stand beside itself

    def show(self, x: Description) -> tuple[dict[str, Things], list[str], list[str]]:
        """What fits `x` in each picture; the pictures that show something of it; those that do not."""
        if x not in self.shown:
            things = {img_id: tuple(x.among(scene)) for img_id, scene in self.scenes.items()}
            self.shown[x] = things, [i for i in things if things[i]], [i for i in things if not things[i]]
        return self.shown[x]

    def couple(self, holds, x: Description, number: int, side: int, rng: random.Random) -> list[tuple[str, str]] | None:
        """Two pairs that differ in the picture of that side (0: left, 1: right), one true and one false."""
        things, *piles = self.show(x)
        if not all(piles):
            return None
        for _ in range(TRIES):
            left, right, other = (rng.choice(rng.choice(piles)) for _ in range(3))
            couple = [(left, right), (left, other) if side else (other, right)]
            truths = {holds(things[one], things[two], number) for one, two in couple}
            if truths == {True, False} and (self.alike or all(one != two for one, two in couple)):
                return couple
        return None

    def pairs(self, holds, x: Description, number: int, rng: random.Random) -> list[tuple[str, str]] | None:
        """Four different pairs, two of them true: a couple that differs on the left and one on the right, where that can be."""
        found = []
        for side in (0, 1):
            found += (self.couple(holds, x, number, side, rng) or self.couple(holds, x, number, 1 - side, rng) or ())
        rng.shuffle(found)
        return found if len(set(found)) == PAIRS else None

    def truths(self, holds, x: Description, number: int, pairs: list[tuple[str, str]]) -> list[bool | None]:
        things = self.show(x)[0]
        return [holds(things[left], things[right], number) for left, right in pairs]


def state(scenes: dict[str, Scene], sets: int, split: str, rng: random.Random) -> list[dict]:
    """The statements of one split, in the form of LXMERT's NLVR2 annotations.

    Args:
        scenes: by image id.
        sets: how many sets of pairs.
        split: the first field of identifiers.
    Returns:
        {'uid', 'identifier', 'img0', 'img1', 'sent', 'label': 1 for true or 0, 'question_type'} each. The identifier is
        split-set-pair-sentence; consistency groups identifiers without their third field.
    Raises:
        ValueError: the scenes do not allow it.
    """
    album, examples = Album(scenes), []
    for number, kind in enumerate(deck(SHARES, sets, rng)):
        stated = next(filter(None, (_set(album, tried, rng) for tried in [*[kind] * TRIES, *[*SHARES] * TRIES])), None)
        if stated is None:
            raise ValueError(f'{len(scenes)} pictures give no pairs for {split}; choose more --images')
        for i, (form, said, shown, truths) in enumerate(stated):
            for pair, ((left, right), truth) in enumerate(zip(shown, truths, strict=True)):
                examples.append({'uid': f'nlvr2_{split}_{len(examples)}', 'identifier': f'{split}-{number}-{pair}-{i}',
                                 'img0': left, 'img1': right, 'sent': said, 'label': int(truth), 'question_type': form.kind})
    return examples


def _draw(kind: str, rng: random.Random) -> tuple[Statement, Description, int]:
    """A statement of that kind, what it is about, and its number."""
    form = rng.choice([form for form in STATEMENTS if form.kind == kind])
    x = Description(**{field: rng.choice(FIELDS[field]) for field in rng.choice(form.topics)})
    return form, x, rng.choice(tuple(NUMBER_WORDS))


def _set(album: Album, kind: str, rng: random.Random) -> list[tuple] | None:
    """(statement, sentence, pairs, truths) of a first sentence of that kind, and of a second on the same pairs; or None."""
    form, x, number = _draw(kind, rng)
    if not (pairs := album.pairs(form.holds, x, number, rng)):
        return None
    stated = []
    for _ in range(TRIES):
        truths = album.truths(form.holds, x, number, pairs)
        if truths.count(True) == truths.count(False) == PAIRS // 2:
            said = sentence(form.templates, {'x': x, 'number': number}, rng)
            if stated and said != stated[0][1]:
                return [*stated, (form, said, pairs, truths)]
            stated = stated or [(form, said, pairs, truths)]
        form, x, number = _draw(*rng.choices([*SHARES], [*SHARES.values()]), rng)
    return stated
