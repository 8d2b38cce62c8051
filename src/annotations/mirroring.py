"""Mirrored images in training: half of the examples, with the features of regions unchanged; in texts and answers the words left
and right may be exchanged with them."""

import numpy as np

from annotations.sentences import uniform

STREAM = 0  # of random draws
SIDES = ('left', 'right')


class Mirroring:
    """Which examples are mirrored: a function of the seed, the epoch and the position in the epoch."""

    def __init__(self, kind, tokenizer, answers, seed):
        """kind: heads.Recipe.mirror, '' for none; answers: list of str."""
        self.kind, self.seed = kind, seed
        self.words = kind == 'words'
        if self.words:
            self.ids = tokenizer.convert_tokens_to_ids(SIDES)
            place = {answer: i for i, answer in enumerate(answers)}
            self.answer = np.array([place.get(exchanged(answer), -1) for answer in answers], np.int64)

    def draw(self, micro_batch):
        """(b,) bool: which examples of a training batch are mirrored; None in evaluation, and where none ever is."""
        if not self.kind or micro_batch.epoch is None:
            return None
        shape = len(micro_batch.indices), 1
        return uniform(self.seed, micro_batch.epoch, STREAM, micro_batch.first, shape)[:, 0] < 0.5

    def texts(self, ids, mirrored):
        """Token ids (n, t) with left and right exchanged where mirrored (n,)."""
        left, right = self.ids
        return np.where(mirrored[:, None], np.where(ids == left, right, np.where(ids == right, left, ids)), ids)

    def labels(self, labels, mirrored):
        """Sparse labels of a batch, with the answers of mirrored (b,) examples exchanged; without those whose counterpart is no
        answer."""
        answer = labels['label_answer']
        answer = np.where(mirrored[labels['label_example']], self.answer[answer], answer)
        return {name: column[answer >= 0] for name, column in (labels | {'label_answer': answer}).items()}


def exchanged(text):
    """A text with the words left and right exchanged."""
    left, right = SIDES
    return ' '.join({left: right, right: left}.get(word, word) for word in text.split(' '))
