"""What one scores without looking at the pictures: the figures that a model's score has to be read against."""
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache

from shapes.questions import SIZE_WORDS
from shapes.scene import COLOURS, SHAPES

_NAMES = ({'COLOUR': tuple(COLOURS), 'SHAPE': SHAPES, 'SIZE': sum(SIZE_WORDS.values(), ())})
_MASKS = [(re.compile(rf'\b({"|".join(words)})(s|es)?\b'), mask) for mask, words in _NAMES.items()]


@cache
def masked(sentence: str) -> str:
    """The sentence without its names: 'Is the red star big?' -> 'is the COLOUR SHAPE SIZE?'."""
    sentence = sentence.lower()
    for names, mask in _MASKS:
        sentence = names.sub(mask, sentence)
    return sentence


def soft_label(example: dict) -> dict[str, float]:
    """{answer: score} of any task's annotation; NLVR2's 1 and 0 are True and False."""
    label = example['label']
    return label if isinstance(label, dict) else {str(bool(label)): 1.0}


def fit(train: list[dict]) -> Callable[[list[dict]], dict[str, float]]:
    """`baselines` with its first argument, to be called with several second ones."""
    views = (lambda q: q['sent'], lambda q: masked(q['sent']), lambda q: q['question_type'], lambda q: '')
    seen = [defaultdict(Counter) for _ in views]
    for question in train:
        for view, table in zip(views, seen, strict=True):
            table[view(question)].update(soft_label(question))
    said = [{key: counts.most_common(1)[0][0] for key, counts in table.items()} for table in seen]

    def score(first: int, questions: list[dict]) -> float:
        total = 0.0
        for question in questions:
            keys = ((view(question), table) for view, table in list(zip(views, said, strict=True))[first:])
            total += soft_label(question).get(next(table[key] for key, table in keys if key in table), 0.0)
        return 100 * total / len(questions)

    return lambda questions: {'majority': score(3, questions), 'text_only': max(score(first, questions) for first in range(3))}


def baselines(train: list[dict], questions: list[dict]) -> dict[str, float]:
    """Scores, in per cent, on `questions` (annotations of any task, with labels) of two guessers fitted on `train`.

    Returns:
        'majority': always the answer with the highest training score of all.
        'text_only': the answer with the highest training score for the same words; for the same sentence with its
        names masked if the words were never seen; for the kind of question if that was not seen either. As few
        examples of exactly the same words mislead, the best of this and of the two coarser guessers counts.
    """
    return fit(train)(questions)


def score_table(train: list[dict], scored: list[dict], scores: list[float] | None = None) -> tuple[str, float, float]:
    """By kind of question: its share of `scored`, the baselines fitted on `train`, and the mean of `scores`, one a question.

    Returns:
        (a table, the score or 0, the better baseline's), both in per cent.
    """
    guess = fit(train)
    lines = [f'{"kind":13} {"share":>6} {"majority":>9} {"text only":>10}' + (f' {"score":>6}' if scores else '')]
    for kind in (*sorted({question['question_type'] for question in scored}), 'all'):
        chosen = [i for i, question in enumerate(scored) if kind in (question['question_type'], 'all')]
        guessed = guess([scored[i] for i in chosen])
        score = 100 * sum(scores[i] for i in chosen) / len(chosen) if scores else 0.0
        lines.append(f'{kind:13} {100 * len(chosen) / len(scored):5.1f}% {guessed["majority"]:9.1f} {guessed["text_only"]:10.1f}'
                     + (f' {score:6.1f}' if scores else ''))
    return '\n'.join(lines), score, max(guessed.values())
