"""Questions as in GQA: each is a small program over the scene (select, relate, query, verify, choose, and, or, compare).

`question_type` is GQA's structural type. The answer is one word with a hard label; `answer_type` is 'open' for query and 'binary'
for all others, as in the official evaluator.
"""
import random

from shapes import questions as vqa
from shapes.questions import FIELDS, MARGIN, SIDES, YES_NO, Description, QuestionFamily, hard_label
from shapes.scene import SHAPES, Scene

SHARES = {'query': 0.40, 'verify': 0.25, 'choose': 0.15, 'logical': 0.12, 'compare': 0.08}
ANSWERS = (*YES_NO, *FIELDS['colour'], *SHAPES, *FIELDS['size'], 'left', 'right', 'top', 'bottom', 'above', 'below')


def exists_related(*fields):
    """Is there such a thing on this side of another? There is one in the picture, but perhaps elsewhere."""
    def sample(scene, rng):
        x, side = vqa.random_description(scene, rng, fields), rng.choice(tuple(SIDES))
        if not (match := vqa.unique_thing(scene, rng, ('colour', 'shape'))):
            return None
        y, anchor = match
        things = [thing for thing in x.matching(scene) if thing != anchor]
        exists = any(vqa.clearly_beside(thing, anchor, side) for thing in things)
        if not things or (not exists and any(vqa.offset(thing, anchor, side) > -MARGIN / 2 for thing in things)):
            return None
        return {'x': x, 'where': side, 'y': y}, hard_label(exists)
    return sample


def choose(field, *named):
    """Does the described thing have this colour, shape or size, or that one?"""
    def sample(scene, rng):
        if not (match := vqa.unique_thing(scene, rng, named)):
            return None
        x, thing = match
        right, wrong = getattr(thing, field), getattr(vqa.random_description(scene, rng, [field]), field)
        if right == wrong or vqa.ambiguous(right, wrong):
            return None
        values = [Description(shape=value) if field == 'shape' else value for value in (right, wrong)]
        rng.shuffle(values)
        return {'x': x, 'value': values[0], 'other': values[1]}, hard_label(right)
    return sample


def choose_relation(answers, *named):
    """Does one thing lie to this side of another, or to the opposite side?"""
    def sample(scene, rng):
        if not (pair := vqa.unique_pair(scene, rng, named)):
            return None
        x, one, y, other = pair
        return next((({'x': x, 'y': y}, hard_label(side)) for side in answers if vqa.clearly_beside(one, other, side)), None)
    return sample


def exist_both(logic, *fields):
    """Are there such things and (`logic` is all) or (any) such others?"""
    def sample(scene, rng):
        x, y = vqa.random_description(scene, rng, fields), vqa.random_description(scene, rng, fields)
        return ({'x': x, 'y': y}, hard_label(logic(bool(z.matching(scene)) for z in (x, y)))) if x != y else None
    return sample


def verify_both(logic, fields, *named):
    """Does the described thing have this size and (`logic` is all) or (any) that colour?"""
    def sample(scene, rng):
        if not (match := vqa.unique_thing(scene, rng, named)):
            return None
        x, thing = match
        values = [getattr(vqa.random_description(scene, rng, [field]), field) for field in fields]
        truth = logic(getattr(thing, field) == value for field, value in zip(fields, values, strict=True))
        return {'x': x, 'value': values[0], 'other': values[1]}, hard_label(truth)
    return sample


def which(*relations):
    """Which of two things is larger, or further to a side? The answer is its shape."""
    def sample(scene, rng):
        pair, more = vqa.unique_pair(scene, rng, ['colour', 'shape']), rng.choice(relations)
        if not pair or pair[1].shape == pair[3].shape:
            return None
        x, one, y, other = pair
        for first, second in ((one, other), (other, one)):
            if vqa.clearly_beside(first, second, more) if more in SIDES else first.size == more != second.size:
                return {'x': x, 'y': y, 'more': more}, hard_label(first.shape)
        return None
    return sample


def negate(sample):
    """The same question with yes and no exchanged."""
    def negated(scene, rng):
        question = sample(scene, rng)
        return question and (question[0], hard_label('yes' not in question[1]))
    return negated


EXISTS_RELATION = ('Is there {x.a} {where} the {y.one}?', 'Are there any {x.many} {where} the {y.one}?',
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
FAMILIES = (
    QuestionFamily('query', _COLOURS, vqa.COLOUR, vqa.query('colour', 'shape')),
    QuestionFamily('query', _COLOURS, vqa.COLOUR, vqa.query('colour', 'size', 'shape')),
    QuestionFamily('query', SHAPES, vqa.SHAPE, vqa.query('shape', 'colour')),
    QuestionFamily('query', SHAPES, vqa.SHAPE, vqa.query('shape', 'size', 'colour')),
    QuestionFamily('query', _COLOURS, vqa.COLOUR_RELATION, vqa.query_related('colour')),
    QuestionFamily('query', SHAPES, vqa.SHAPE_RELATION, vqa.query_related('shape')),
    QuestionFamily('query', _COLOURS, vqa.COLOUR_OUTERMOST, vqa.query_outermost('colour')),
    QuestionFamily('query', SHAPES, vqa.SHAPE_OUTERMOST, vqa.query_outermost('shape')),
    QuestionFamily('verify', YES_NO, vqa.EXISTENCE, vqa.exists('shape')),
    QuestionFamily('verify', YES_NO, vqa.EXISTENCE, vqa.exists('colour', 'shape')),
    QuestionFamily('verify', YES_NO, vqa.IS_VALUE, vqa.verify('colour', 'shape')),
    QuestionFamily('verify', YES_NO, vqa.IS_VALUE, vqa.verify('size', 'colour', 'shape')),
    QuestionFamily('verify', YES_NO, vqa.IS_SHAPE, vqa.verify('shape', 'colour')),
    QuestionFamily('verify', YES_NO, vqa.RELATION, vqa.verify_relation('colour', 'shape')),
    QuestionFamily('verify', YES_NO, EXISTS_RELATION, exists_related('shape')),
    QuestionFamily('choose', _COLOURS, CHOOSE, choose('colour', 'shape')),
    QuestionFamily('choose', FIELDS['size'], CHOOSE, choose('size', 'colour', 'shape')),
    QuestionFamily('choose', SHAPES, CHOOSE_SHAPE, choose('shape', 'colour')),
    QuestionFamily('choose', ('left', 'right'), vqa.LEFT_RIGHT, vqa.query_half(('left', 'right'), 'colour', 'shape')),
    QuestionFamily('choose', ('top', 'bottom'), vqa.TOP_BOTTOM, vqa.query_half(('top', 'bottom'), 'colour', 'shape')),
    QuestionFamily('choose', ('left', 'right'), CHOOSE_LEFT_RIGHT, choose_relation(('left', 'right'), 'colour', 'shape')),
    QuestionFamily('choose', ('above', 'below'), CHOOSE_ABOVE_BELOW, choose_relation(('above', 'below'), 'colour', 'shape')),
    QuestionFamily('logical', YES_NO, AND, exist_both(all, 'shape')),
    QuestionFamily('logical', YES_NO, AND, exist_both(all, 'colour')),
    QuestionFamily('logical', YES_NO, OR, exist_both(any, 'colour', 'shape')),
    QuestionFamily('logical', YES_NO, IS_BOTH, verify_both(all, ('size', 'colour'), 'shape')),
    QuestionFamily('logical', YES_NO, IS_EITHER, verify_both(any, ('size', 'colour'), 'shape')),
    QuestionFamily('compare', YES_NO, vqa.name_field('color', vqa.SAME), vqa.verify_same('colour', 'shape')),
    QuestionFamily('compare', YES_NO, vqa.name_field('color', vqa.SAME), vqa.verify_same('colour', 'size', 'shape')),
    QuestionFamily('compare', YES_NO, vqa.name_field('color', DIFFERENT), negate(vqa.verify_same('colour', 'size', 'shape'))),
    QuestionFamily('compare', SHAPES, WHICH, which('large', 'small')),
    QuestionFamily('compare', SHAPES, WHICH, which(*SIDES)),
)


def generate(scenes: dict[str, Scene], per_image: int, first_id: int, rng: random.Random) -> list[dict]:
    """The questions of one split in the format of LXMERT's GQA annotations; arguments and errors as in `questions.generate`.

    Returns:
        {'img_id', 'question_id' (a str), 'sent', 'label': {answer: 1.0}, 'answer_type', 'question_type'} each.
    """
    return [{**question, 'question_id': str(question['question_id']),
             'label': hard_label(max(question['label'], key=question['label'].get)),
             'answer_type': 'open' if question['question_type'] == 'query' else 'binary'}
            for question in vqa.generate(scenes, per_image, first_id, rng, FAMILIES, SHARES)]
