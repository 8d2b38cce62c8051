"""The scores of the leaderboards, as the official evaluators compute them."""

import numpy as np

from tasks.vqa_answers import normalise, without_punctuation


def vqa_accuracy(prediction, answers):
    """Accuracy, 0 to 1, of a predicted answer against those of people (10 in VQA v2), as in the official vqaEval.py.

    Each person is left out once: min(1, how many of the others agree / 3), averaged over who is left out. The prediction is
    normalised fully, people's answers only in punctuation, and only when they are not all the same.
    """
    if len(set(answers)) > 1:
        answers = [without_punctuation(answer) for answer in answers]
    prediction = normalise(prediction)
    agree = [answer == prediction for answer in answers]
    return sum(min(1.0, (sum(agree) - left_out) / 3) for left_out in agree) / len(agree)


def gqa_consistency(right, entailed):
    """Per cent of the questions entailed by rightly answered ones that are right too, as in GQA's official eval.py.

    right: {question id: whether it is answered rightly}; entailed: {id: ids of the questions that it entails} of the questions
    scored. The share is taken for each rightly answered question that entails any but itself, then averaged over those. None
    if there are none. Raises KeyError for an entailed question that is not in `right`.
    """
    shares = []
    for key, others in entailed.items():
        others = [right[other] for other in others if other != key] if right[key] else ()
        if others:
            shares.append(sum(others) / len(others))
    return 100 * sum(shares) / len(shares) if shares else None


def gqa_belongs(answer, answers, detailed_type):
    """Whether an answer is one of `answers` (the valid or the plausible ones), as in GQA's official eval.py.

    Where questions ask for what things have in common (detailed type such as sameMaterialsCommon), the answers are always
    color, material and shape.
    """
    return answer in (('color', 'material', 'shape') if 'Common' in detailed_type else answers)


def consistency(identifiers, right):
    """Per cent of NLVR2's statements that are judged rightly about every pair of photographs, as in the official metrics.py.

    identifiers: n texts such as dev-354-0-1 (split, set, pair, sentence), a statement being what is left without the third
    field; right: n bool. Raises ValueError for an identifier without four fields.
    """
    fields = [identifier.split('-') for identifier in identifiers]
    if wrong := [identifier for identifier, parts in zip(identifiers, fields, strict=True) if len(parts) != 4]:
        raise ValueError(f'expected identifiers like dev-354-0-1, found {len(wrong):,} others, the first is {wrong[0]!r}')
    _, group = np.unique([f'{split}-{collection}-{sentence}' for split, collection, _, sentence in fields], return_inverse=True)
    return 100 * float((np.bincount(group, weights=~np.asarray(right, dtype=bool)) == 0).mean())
