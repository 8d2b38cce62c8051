"""Questions in the manner of GQA: each a small program over the scene (select, relate, query, verify, choose, and, or, compare).

`question_type` is GQA's structural type. The answer is one word and sure; `answer_type` is 'open' for query and 'binary' for
all others, as in the official evaluator.
"""
import random

from shapes import questions as vqa
from shapes.questions import FIELDS, MARGIN, SIDES, YES_NO, Description, Form, ahead, clear, guess, sure, unique, unique_pair
from shapes.scene import SHAPES, Scene

SHARES = {'query': 0.40, 'verify': 0.25, 'choose': 0.15, 'logical': 0.12, 'compare': 0.08}
ANSWERS = (*YES_NO, *FIELDS['colour'], *SHAPES, *FIELDS['size'], 'left', 'right', 'top', 'bottom', 'above', 'below')


def exists_beside(*fields):
    """Is there such a thing to that side of another? One is in the picture, but perhaps elsewhere."""
    def propose(scene, rng):
        x, side, found = guess(scene, rng, fields), rng.choice(tuple(SIDES)), unique(scene, rng, ('colour', 'shape'))
        things = [thing for thing in x.among(scene) if found and thing != found[1]]
        there = any(clear(thing, found[1], side) for thing in things)
        if not things or (not there and any(ahead(thing, found[1], side) > -MARGIN / 2 for thing in things)):
            return None
        return {'x': x, 'where': side, 'y': found[0]}, sure(there)
    return propose


def choose(field, *named):
    """Is the thing of these names of this colour, shape or size, or of that one?"""
    def propose(scene, rng):
        if not (found := unique(scene, rng, named)):
            return None
        right, wrong = getattr(found[1], field), getattr(guess(scene, rng, [field]), field)
        if right == wrong or {right, wrong} == {'diamond', 'square'}:
            return None
        values = [Description(shape=value) if field == 'shape' else value for value in (right, wrong)]
        rng.shuffle(values)
        return {'x': found[0], 'value': values[0], 'other': values[1]}, sure(right)
    return propose


def choose_beside(answers, *named):
    """Does one thing lie to this side of another, or to the opposite one?"""
    def propose(scene, rng):
        if not (pair := unique_pair(scene, rng, named)):
            return None
        x, one, y, other = pair
        return next((({'x': x, 'y': y}, sure(side)) for side in answers if clear(one, other, side)), None)
    return propose


def exist_both(logic, *fields):
    """Are there such things and (`logic` is all) or (any) such others?"""
    def propose(scene, rng):
        x, y = guess(scene, rng, fields), guess(scene, rng, fields)
        return ({'x': x, 'y': y}, sure(logic(bool(z.among(scene)) for z in (x, y)))) if x != y else None
    return propose


def verify_both(logic, fields, *named):
    """Is the thing of these names of this size and (`logic` is all) or (any) of that colour?"""
    def propose(scene, rng):
        if not (found := unique(scene, rng, named)):
            return None
        values = [getattr(guess(scene, rng, [field]), field) for field in fields]
        holds = logic(getattr(found[1], field) == value for field, value in zip(fields, values, strict=True))
        return {'x': found[0], 'value': values[0], 'other': values[1]}, sure(holds)
    return propose


def which(*by):
    """Which of two things is larger, or further to a side? Their shapes tell."""
    def propose(scene, rng):
        pair, more = unique_pair(scene, rng, ['colour', 'shape']), rng.choice(by)
        if not pair or pair[1].shape == pair[3].shape:
            return None
        x, one, y, other = pair
        ordered = [(one, other), (other, one)]
        if more in SIDES:
            most = next((first for first, second in ordered if clear(first, second, more)), None)
        else:
            most = next((first for first, second in ordered if first.size == more != second.size), None)
        return ({'x': x, 'y': y, 'more': more}, sure(most.shape)) if most else None
    return propose


def negated(propose):
    """The same question with yes for no."""
    def proposed(scene, rng):
        found = propose(scene, rng)
        return found and (found[0], sure('yes' not in found[1]))
    return proposed


EXISTS_BESIDE = ('Is there {x.a} {where} the {y.one}?', 'Are there any {x.many} {where} the {y.one}?',
                 'Do you see {x.a} {where} the {y.one}?', 'Can you see any {x.many} {where} the {y.one}?')
CHOOSE = ('Is the {x.one} {value} or {other}?', 'Does the {x.one} look {value} or {other}?',
          'What is the {x.one}, {value} or {other}?')
CHOOSE_SHAPE = ('Is the {x.one} {value.a} or {other.a}?', 'What is the {x.one}, {value.a} or {other.a}?',
                'Which is the {x.one}, the {value.one} or the {other.one}?')
CHOOSE_LEFT_RIGHT = ('Is the {x.one} to the left or to the right of the {y.one}?',
                     'On which side of the {y.one} is the {x.one}, left or right?',
                     'Does the {x.one} lie on the right or on the left side of the {y.one}?')
CHOOSE_ABOVE_BELOW = ('Is the {x.one} above or below the {y.one}?', 'Where is the {x.one}, below or above the {y.one}?',
                      'Does the {x.one} lie above the {y.one} or below?')
AND = ('Are there both {x.many} and {y.many}?', 'Is there both {x.a} and {y.a} in the {picture}?',
       'Do you see {x.a} and {y.a}?', 'Does the {picture} show both {x.a} and {y.a}?')
OR = ('Are there either {x.many} or {y.many}?', 'Is there either {x.a} or {y.a} in the {picture}?',
      'Do you see {x.a} or {y.a}?', 'Does the {picture} show either {x.a} or {y.a}?')
IS_BOTH = ('Is the {x.one} both {value} and {other}?', 'Does the {x.one} look {value} and {other}?')
IS_EITHER = ('Is the {x.one} either {value} or {other}, or both?', 'Does the {x.one} look either {value} or {other}, or both?')
DIFFERENT = ('Do the {x.one} and the {y.one} have different {field}s?',
             'Are the {field}s of the {x.one} and the {y.one} different?')
WHICH = ('Which is {more}, the {x.one} or the {y.one}?', 'What is {more}, the {x.one} or the {y.one}?',
         'Which shape is {more}, the {x.one} or the {y.one}?')

_COLOURS = FIELDS['colour']
FORMS = (
    Form('query', _COLOURS, vqa.COLOUR, vqa.query('colour', 'shape')),
    Form('query', _COLOURS, vqa.COLOUR, vqa.query('colour', 'size', 'shape')),
    Form('query', SHAPES, vqa.SHAPE, vqa.query('shape', 'colour')),
    Form('query', SHAPES, vqa.SHAPE, vqa.query('shape', 'size', 'colour')),
    Form('query', _COLOURS, vqa.COLOUR_BESIDE, vqa.query_beside('colour')),
    Form('query', SHAPES, vqa.SHAPE_BESIDE, vqa.query_beside('shape')),
    Form('query', _COLOURS, vqa.COLOUR_EDGE, vqa.query_edge('colour')),
    Form('query', SHAPES, vqa.SHAPE_EDGE, vqa.query_edge('shape')),
    Form('verify', YES_NO, vqa.EXISTENCE, vqa.existence('shape')),
    Form('verify', YES_NO, vqa.EXISTENCE, vqa.existence('colour', 'shape')),
    Form('verify', YES_NO, vqa.IS_VALUE, vqa.verify('colour', 'shape')),
    Form('verify', YES_NO, vqa.IS_VALUE, vqa.verify('size', 'colour', 'shape')),
    Form('verify', YES_NO, vqa.IS_SHAPE, vqa.verify('shape', 'colour')),
    Form('verify', YES_NO, vqa.BESIDE, vqa.beside('colour', 'shape')),
    Form('verify', YES_NO, EXISTS_BESIDE, exists_beside('shape')),
    Form('choose', _COLOURS, CHOOSE, choose('colour', 'shape')),
    Form('choose', FIELDS['size'], CHOOSE, choose('size', 'colour', 'shape')),
    Form('choose', SHAPES, CHOOSE_SHAPE, choose('shape', 'colour')),
    Form('choose', ('left', 'right'), vqa.LEFT_RIGHT, vqa.half(('left', 'right'), 'colour', 'shape')),
    Form('choose', ('top', 'bottom'), vqa.TOP_BOTTOM, vqa.half(('top', 'bottom'), 'colour', 'shape')),
    Form('choose', ('left', 'right'), CHOOSE_LEFT_RIGHT, choose_beside(('left', 'right'), 'colour', 'shape')),
    Form('choose', ('above', 'below'), CHOOSE_ABOVE_BELOW, choose_beside(('above', 'below'), 'colour', 'shape')),
    Form('logical', YES_NO, AND, exist_both(all, 'shape')),
    Form('logical', YES_NO, AND, exist_both(all, 'colour')),
    Form('logical', YES_NO, OR, exist_both(any, 'colour', 'shape')),
    Form('logical', YES_NO, IS_BOTH, verify_both(all, ('size', 'colour'), 'shape')),
    Form('logical', YES_NO, IS_EITHER, verify_both(any, ('size', 'colour'), 'shape')),
    Form('compare', YES_NO, vqa.about('color', vqa.SAME), vqa.same('colour', 'shape')),
    Form('compare', YES_NO, vqa.about('color', vqa.SAME), vqa.same('colour', 'size', 'shape')),
    Form('compare', YES_NO, vqa.about('color', DIFFERENT), negated(vqa.same('colour', 'size', 'shape'))),
    Form('compare', SHAPES, WHICH, which('large', 'small')),
    Form('compare', SHAPES, WHICH, which(*SIDES)),
)


def ask(scenes: dict[str, Scene], per_image: int, first_id: int, rng: random.Random) -> list[dict]:
    """The questions of one split, in the form of LXMERT's GQA annotations; arguments and errors as in `questions.ask`.

    Returns:
        {'img_id', 'question_id' (a str), 'sent', 'label': {answer: 1.0}, 'answer_type', 'question_type'} each.
    """
    asked = vqa.ask(scenes, per_image, first_id, rng, FORMS, SHARES)
    return [{**question, 'question_id': str(question['question_id']),
             'label': sure(max(question['label'], key=question['label'].get)),
             'answer_type': 'open' if question['question_type'] == 'query' else 'binary'} for question in asked]
