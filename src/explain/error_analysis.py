"""Predictions beside what would have been right: the figures and examples of the error report."""

import numpy as np

LISTED, CONFUSED = 30, 15  # commonest answers in the table of answers, and in that of confusions


class Judged:
    """Predictions of n examples beside what would have been right.

    places, probabilities (n, k): the best answers as Answering.predict gives them; said, right (n,): places of the predicted
    answer and of the best right one, which is the predicted one where no other is better, and -1 where the model has none;
    score (n,) 0 to 1, of what is said; expected (n,): the probability of the right answer, 0 where it is not among the k best.
    """

    def __init__(self, dataset, places, probabilities):
        self.dataset, self.places, self.probabilities = dataset, places, probabilities
        self.said, self.score = places[:, 0], dataset.scores(places[:, 0])
        own = dataset.examples
        order = np.lexsort((-own.label_score, own.label_example))
        labelled, first = np.unique(own.label_example[order], return_index=True)
        self.right, best = np.full(len(places), -1), np.zeros(len(places))
        self.right[labelled], best[labelled] = own.label_answer[order][first], own.label_score[order][first]
        self.right[best == 0] = -1
        alike = (self.right >= 0) & (self.score == best)
        self.right[alike] = self.said[alike]
        self.expected = (probabilities * (places == self.right[:, None])).sum(1)

    def figures(self, task):
        """What the tables of the page show, of all examples: scores in per cent, counts."""
        kinds = task.types(self.dataset.examples)
        common = np.bincount(self.right[self.right >= 0], minlength=len(self.dataset.answers))
        common = [place for place in np.argsort(-common, kind='stable').tolist() if common[place]]
        return {
            'score': task.score(self.dataset, (self.places, self.probabilities)), 'questions': len(self.said),
            'oracle': self.dataset.oracle(), 'verdicts': [int((verdict(self.score) == place).sum()) for place in range(3)],
            'kinds': [{'kind': shown(key), 'rows': sorted((self.row(name, has) for name, has in found), key=lambda row: -row[1])}
                      for key, found in kinds.items() if found],
            'answers': [[*self.row(self.dataset.answers[place], self.right == place), int((self.said == place).sum())]
                        for place in common[:LISTED]],
            'distinct': len(common), 'confusion': self.confusion(common[:CONFUSED])}

    def row(self, name, chosen):
        return [name, int(chosen.sum()), float(100 * self.score[chosen].mean())]

    def confusion(self, common):
        """{'answers', 'counts': for each of them as the right one, how often each, and any other, is said}."""
        column = np.full(len(self.dataset.answers), len(common))
        column[common] = np.arange(len(common))
        counts = [np.bincount(column[self.said[self.right == place]], minlength=len(common) + 1).tolist() for place in common]
        return {'answers': [self.dataset.answers[place] for place in common], 'counts': counts}

    def examples(self, sentences, most):
        """({'examples', 'types': pairs (kind, name), which they name by place}, rows (e, k) of their images among the regions).

        sentences: those of the annotations, which the dataset has given up.
        """
        own, answers = self.dataset.examples, self.dataset.answers
        picked = chosen(self.score, self.probabilities[:, 0], self.expected, most)
        types, codes = [], []
        for kind, (code, names) in own.types.items():
            codes.append([None if names[place] is None else len(types) + place for place in code[picked].tolist()])
            types += [(shown(kind), name) for name in names]
        found = []
        for number, (i, key) in enumerate(zip(picked.tolist(), own.names(picked), strict=True)):
            labels = slice(*self.dataset.label_start[i:i + 2])
            labels = [(answers[place], round(score, 4)) for place, score in zip(
                own.label_answer[labels].tolist(), own.label_score[labels].tolist(), strict=True)]
            found.append({
                'id': str(key), 'sent': sentences[own.sentence[i]], 'score': round(float(self.score[i]), 4),
                'said': [[answers[place], round(p, 4)] for place, p in zip(
                    self.places[i].tolist(), self.probabilities[i].tolist(), strict=True)],
                'right': None if self.right[i] < 0 else answers[self.right[i]], 'expected': round(float(self.expected[i]), 4),
                'labels': sorted(labels, key=lambda label: -label[1]),
                'types': [code[number] for code in codes if code[number] is not None]})
        return {'examples': found, 'types': types}, self.dataset.rows[picked]


def shown(key):
    """'question_type' as the page says it."""
    return key.replace('_', ' ')


def verdict(score):
    """0 wrong, 1 partly right, 2 right: (n,) scores -> (n,) int64."""
    return (score > 0).astype(np.int64) + (score >= 1)


def chosen(score, confidence, expected, most):
    """The examples for the page, at most so many, as sorted places: all; else a third the surest mistakes, a third the mistakes
    whose right answer was given the least probability, and the rest evenly from the others.

    score, confidence (of what is said), expected (probability of what is right): (n,).
    """
    if len(score) <= most:
        return np.arange(len(score))
    wrong, third = score == 0, most // 3
    surest = np.lexsort((-confidence, ~wrong))[:third]
    least = np.lexsort((-confidence, expected, ~wrong))
    worst = least[~np.isin(least, surest)][:third]
    others = np.setdiff1d(np.arange(len(score)), [*surest, *worst])
    spread = others[np.linspace(0, len(others) - 1, most - 2 * third).astype(np.int64)]
    return np.sort(np.concatenate([surest, worst, spread]))
