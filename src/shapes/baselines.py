"""What one scores without looking at the pictures: the figures that a model's score has to be read against."""
import re
from collections import Counter, defaultdict

from shapes.questions import SIZE_WORDS
from shapes.scene import COLOURS, SHAPES

_NAMES = ({'COLOUR': tuple(COLOURS), 'SHAPE': SHAPES, 'SIZE': sum(SIZE_WORDS.values(), ())})
_MASKS = [(re.compile(rf'\b({"|".join(words)})(s|es)?\b'), mask) for mask, words in _NAMES.items()]


def masked(sentence: str) -> str:
    """The sentence without its names: 'Is the red star big?' -> 'is the COLOUR SHAPE SIZE?'."""
    sentence = sentence.lower()
    for names, mask in _MASKS:
        sentence = names.sub(mask, sentence)
    return sentence


def baselines(train_questions: list[dict], eval_questions: list[dict]) -> dict[str, float]:
    """Scores, in per cent, on `eval_questions` (annotations with labels) of two guessers fitted on `train_questions`.

    Returns:
        'majority': always the answer with the highest training score of all.
        'text_only': the answer with the highest training score for the same words; for the same sentence with its
        names masked if the words were never seen; for the kind of question if that was not seen either. As few
        examples of exactly the same words mislead, the best of this and of the two coarser guessers counts.
    """
    views = (lambda q: q['sent'], lambda q: masked(q['sent']), lambda q: q['question_type'], lambda q: '')
    seen = [defaultdict(Counter) for _ in views]
    for question in train_questions:
        for view, table in zip(views, seen, strict=True):
            table[view(question)].update(question['label'])

    def score(first: int) -> float:
        total = 0.0
        for question in eval_questions:
            table = next(table[view(question)] for view, table in list(zip(views, seen, strict=True))[first:]
                         if view(question) in table)
            total += question['label'].get(table.most_common(1)[0][0], 0.0)
        return 100 * total / len(eval_questions)

    return {'majority': score(3), 'text_only': max(score(first) for first in range(3))}
