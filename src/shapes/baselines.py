"""Baselines that do not look at the pictures: the scores that a model's score must be compared with."""
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache

from shapes.hard_text import SYNONYMS
from shapes.questions import SIZE_WORDS
from shapes.scene import COLOURS, SHAPES

# The splits that the tasks train on, by default; of other files of texts those with captions.
TRAIN = {'vqa': ('train', 'nominival'), 'gqa': ('train', 'valid'), 'nlvr2': ('train',), 'entailment': ('train',),
         'refcoco': ('train',), 'vcr': ('train',), 'lxmert': ('mscoco_train', 'mscoco_nominival', 'vgnococo'),
         'retrieval': ('coco_train',)}

_NAMES = {'COLOUR': tuple(COLOURS), 'SHAPE': SHAPES, 'SIZE': sum(SIZE_WORDS.values(), ())}
_NAMES = {mask: [one for word in words for one in (word, *SYNONYMS.get(word, ()))] for mask, words in _NAMES.items()}
_MASKS = [(re.compile(rf'\b({"|".join(words)})(s|es)?\b'), mask) for mask, words in _NAMES.items()]


@cache
def masked(sentence: str) -> str:
    """The sentence without names of attributes: 'Is the red star big?' -> 'is the COLOUR SHAPE SIZE?'."""
    sentence = sentence.lower()
    for names, mask in _MASKS:
        sentence = names.sub(mask, sentence)
    return sentence


def soft_label(example: dict) -> dict[str, float]:
    """{answer: score} of an annotation of any task; NLVR2's 1 and 0 are True and False."""
    label = example['label']
    return label if isinstance(label, dict) else {label if isinstance(label, str) else str(bool(label)): 1.0}


def fit_baselines(train: list[dict]) -> Callable[[list[dict]], dict[str, float]]:
    """Fits two baselines on annotations of any task.

    Returns:
        A function of labelled annotations that returns their scores in per cent:
        'majority': always the answer with the highest total score in training.
        'text_only': the answer with the highest total score for the same sentence; if the sentence is new, for the same masked
        sentence; if that is new, for the same kind of question. As few examples of the same sentence can mislead, the best of
        this and of the two coarser back-offs counts.
    """
    keys = (lambda q: q['sent'], lambda q: masked(q['sent']), lambda q: q['question_type'], lambda q: '')  # from fine to coarse
    totals = [defaultdict(Counter) for _ in keys]
    for question in train:
        for key, table in zip(keys, totals, strict=True):
            table[key(question)].update(soft_label(question))
    answers = [{value: counts.most_common(1)[0][0] for value, counts in table.items()} for table in totals]

    def score(first: int, questions: list[dict]) -> float:
        total = 0.0
        for question in questions:
            values = ((key(question), table) for key, table in zip(keys[first:], answers[first:], strict=True))
            total += soft_label(question).get(next(table[value] for value, table in values if value in table), 0.0)
        return 100 * total / len(questions)

    return lambda questions: {'majority': score(3, questions), 'text_only': max(score(first, questions) for first in range(3))}


def score_table(train: list[dict], evaluated: list[dict], scores: list[float] | None = None) -> tuple[str, float, float]:
    """By kind of question: its share of `evaluated`, the baselines fitted on `train`, the mean of `scores` (one per question).

    Returns:
        (a table, the score or 0, the better baseline's), both over all questions in per cent.
    """
    baselines = fit_baselines(train)
    lines = [f'{"kind":13} {"share":>6} {"majority":>9} {"text only":>10}' + (f' {"score":>6}' if scores else '')]
    tags = {tag for question in evaluated for tag in question.get('tags', ())}  # of the hard world
    for kind in (*sorted({question['question_type'] for question in evaluated}), *sorted(tags), 'all'):
        chosen = [i for i, question in enumerate(evaluated)
                  if kind in (question['question_type'], 'all', *question.get('tags', ()))]
        baseline = baselines([evaluated[i] for i in chosen])
        score = 100 * sum(scores[i] for i in chosen) / len(chosen) if scores else 0.0
        lines.append(f'{kind:13} {100 * len(chosen) / len(evaluated):5.1f}% {baseline["majority"]:9.1f} '
                     f'{baseline["text_only"]:10.1f}' + (f' {score:6.1f}' if scores else ''))
    return '\n'.join(lines), score, max(baseline.values())
