"""Predictions compared with labels: the figures and examples of the error report."""

import numpy as np

LISTED, CONFUSED = 30, 15  # commonest answers in the table of answers, and in that of confusions


class ErrorAnalysis:
    """Predictions of n examples compared with their labels.

    places, probabilities (n, k): as Head.predict returns them. predicted (n,): place of the predicted answer. right (n,): place
    of the answer with the highest label score; if several have it, the predicted one if it is among them; -1: the vocabulary has
    none. score (n,): of the predicted answer, 0 to 1. expected (n,): probability of the right answer, 0 if it is not among the k
    best.
    """

    def __init__(self, dataset, places, probabilities):
        self.dataset, self.places, self.probabilities = dataset, places, probabilities
        self.predicted, self.score = places[:, 0], dataset.scores(places[:, 0])
        examples = dataset.examples
        order = np.lexsort((-examples.label_score, examples.label_example))
        labelled, first = np.unique(examples.label_example[order], return_index=True)
        self.right, best = np.full(len(places), -1), np.zeros(len(places))
        self.right[labelled], best[labelled] = examples.label_answer[order][first], examples.label_score[order][first]
        self.right[best == 0] = -1
        equally_good = (self.right >= 0) & (self.score == best)
        self.right[equally_good] = self.predicted[equally_good]
        self.expected = (probabilities * (places == self.right[:, None])).sum(1)

    def figures(self, task):
        """Scores in per cent and counts of all examples, for the tables of the page."""
        kinds = task.types(self.dataset.examples)
        common = np.bincount(self.right[self.right >= 0], minlength=len(self.dataset.answers))
        common = [place for place in np.argsort(-common, kind='stable').tolist() if common[place]]
        return {
            'questions': len(self.predicted),
            'oracle': self.dataset.oracle(), 'verdicts': [int((verdict(self.score) == place).sum()) for place in range(3)],
            'kinds': [{'kind': spaced(key), 'rows': sorted((self.row(*pair) for pair in types), key=lambda row: -row[1])}
                      for key, types in kinds.items() if types],
            'answers': [[*self.row(self.dataset.answers[place], self.right == place), int((self.predicted == place).sum())]
                        for place in common[:LISTED]],
            'distinct': len(common), 'confusion': self.confusion(common[:CONFUSED])}

    def row(self, name, chosen):
        """[name, number of examples, their score] of those in a mask (n,)."""
        return [name, int(chosen.sum()), float(100 * self.score[chosen].mean())]

    def confusion(self, common):
        """{'answers', 'counts': a row for each right answer, how often each of them, and any other, is predicted}."""
        column = np.full(len(self.dataset.answers), len(common))
        column[common] = np.arange(len(common))
        counts = [np.bincount(column[self.predicted[self.right == place]], minlength=len(common) + 1).tolist()
                  for place in common]
        return {'answers': [self.dataset.answers[place] for place in common], 'counts': counts}

    def examples(self, sentences, most):
        """({'examples', 'types': (kind, name) pairs that examples refer to by place}, rows (e, k) of their images).

        sentences: of the annotations, which the dataset does not keep. most: how many examples, see `choose_examples`.
        """
        examples, answers = self.dataset.examples, self.dataset.answers
        picked = choose_examples(self.score, self.probabilities[:, 0], self.expected, most)
        types, codes = [], []
        for kind, (code, names) in examples.types.items():
            codes.append([None if names[place] is None else len(types) + place for place in code[picked].tolist()])
            types += [(spaced(kind), name) for name in names]
        items = []
        for number, (i, key) in enumerate(zip(picked.tolist(), examples.names(picked), strict=True)):
            labels = slice(*self.dataset.label_start[i:i + 2])
            labels = [(answers[place], round(score, 4)) for place, score in zip(
                examples.label_answer[labels].tolist(), examples.label_score[labels].tolist(), strict=True)]
            items.append({
                'id': str(key), 'sent': sentences[examples.sentence[i]], 'score': round(float(self.score[i]), 4),
                'predictions': [[answers[place], round(p, 4)] for place, p in zip(
                    self.places[i].tolist(), self.probabilities[i].tolist(), strict=True)],
                'right': None if self.right[i] < 0 else answers[self.right[i]], 'expected': round(float(self.expected[i]), 4),
                'labels': sorted(labels, key=lambda label: -label[1]),
                'types': [code[number] for code in codes if code[number] is not None]})
        return {'examples': items, 'types': types}, self.dataset.rows[picked]


def spaced(key):
    """'question_type' as the page shows it."""
    return key.replace('_', ' ')


def verdict(score):
    """0 wrong, 1 partly right, 2 right: (n,) scores -> (n,) int64."""
    return (score > 0).astype(np.int64) + (score >= 1)


def choose_examples(score, confidence, expected, most):
    """Sorted places of at most `most` examples for the page: all; else a third the mistakes with the highest confidence, a third
    the mistakes whose right answer has the lowest probability, and the rest evenly from the others.

    score, confidence (of the predicted answer), expected (probability of the right one): (n,).
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
