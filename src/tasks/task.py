"""The base class of the tasks. A task defines its files, its score and the leaderboard's format, independent of the model."""

import numpy as np

from annotations.examples import QUESTION
from dist import print0
from files.json_files import write_list
from files.progress import ProgressBar
from files.text import printable
from train import evaluate

MAX_TYPES, MAX_REPORTED = 30, 1000  # print, and report, no table of more question types; VQA v2 has 65


class Task:
    """A task that predicts one answer, choice or region for each example. Subclasses define `kind`, `spec`, `submission` and,
    where they differ, the other class attributes."""

    kind: str  # key "kind" in the json of a --dataset
    like: str | None = None  # the kind whose recipe and head a model takes for this task; None: `kind`
    schema = QUESTION  # annotations.examples.ExampleSchema of the annotations
    output = QUESTION.output  # of the schema: 'answer', 'choice', 'region' or 'match'
    suffix = 'json'  # of the submission file
    best_name, epoch_name = 'BEST.pth', 'LAST.pth'  # snapshots
    flags = ()  # of Options, that other tasks do not take
    variants = ()  # Task classes of other kinds, which the program runs if --dataset is of their kind

    def __init_subclass__(cls, **values):
        super().__init_subclass__(**values)
        cls.output = cls.schema.output

    def __init__(self, options):
        self.k = options.dumpProbs or 1  # predictions per example

    @classmethod
    def head_kind(cls):
        """The kind for which models.build makes the head of this task."""
        return cls.like or cls.kind

    @staticmethod
    def spec(root):
        """The DatasetSpec of the published files in the data folder `root` (Path)."""
        raise NotImplementedError

    @staticmethod
    def submission(key, answer):
        """One prediction in the leaderboard's format, to be written as json."""
        raise NotImplementedError

    @classmethod
    def write(cls, path, rows):
        """Writes (id, answer) rows in the leaderboard's format. Returns the number of rows."""
        return write_list(path, (cls.submission(key, answer) for key, answer in rows))

    def report(self, sums):
        """(text, {name: number}): the mean score of a training epoch, in per cent."""
        score = 100 * sums.get('score', 0.0) / max(sums.get('examples', 0), 1)
        return self.format_score(score), {'score': score}

    def predict(self, head, dataset, options, device, text='Evaluating'):
        """The predictions for a dataset: arrays (n, ...), for `score`, `table` and `files`. text: of the progress bar."""
        return evaluate(head, dataset, options, device, text, self.k)

    def validate(self, head, dataset, options, device):
        """(score in per cent, text, {name: number}) of a labelled dataset."""
        predictions = self.predict(head, dataset, options, device, 'Validating')
        warn_same_predictions(dataset, predictions)
        score = self.score(dataset, predictions)
        return score, self.format_score(score), {'score': score}

    @staticmethod
    def format_score(score):
        return f'{score:.2f}'

    @staticmethod
    def score(dataset, predictions):
        """Mean score in per cent. predictions: (indices, probabilities), each (n, k), as Head.predict returns them."""
        return 100 * float(dataset.scores(predictions[0][:, 0]).mean())

    @staticmethod
    def types(examples, most=MAX_REPORTED):
        """{'answer_type' or 'question_type': [(name of the type, examples of that type: (n,) bool), ...] sorted by name}, as far
        as the annotations have them."""
        by_key = {}
        for key, (codes, names) in examples.types.items():
            codes_by_name = sorted((name, code) for code, name in enumerate(names) if name is not None)
            used = np.bincount(codes, minlength=len(names)) > 0
            codes_by_name = [(name, code) for name, code in codes_by_name if used[code]]
            by_key[key] = [(name, codes == code) for name, code in codes_by_name] if len(codes_by_name) <= most else []
        return by_key

    def table(self, dataset, predictions):
        """A table (text) of the score by answer type and by question type, as far as the annotations have them."""
        scores = dataset.scores(predictions[0][:, 0])
        lines = [f'{"":24s} questions  share  score', f'{"all":24s} {len(scores):9d}  100.0  {100 * scores.mean():5.2f}']
        for key, types in self.types(dataset.examples, MAX_TYPES).items():
            for name, mask in types:
                lines.append(f'{key.split("_")[0] + ": " + printable(name):24s} {mask.sum():9d}  {100 * mask.mean():5.1f}  '
                             f'{100 * scores[mask].mean():5.2f}')
        return '\n'.join(lines)

    def files(self, split):
        """The files of predictions: {name: function of (dataset, predictions, path) that writes it}."""
        return {f'{split}_predict.{self.suffix}': self.dump}

    def predicted(self, dataset, indices):
        """Yields for each example what is written for its predicted indices (n, k): a list of k answers, or of choices."""
        for row in indices.tolist():
            yield [dataset.answers[index] for index in row] if self.output == 'answer' else row

    def dump(self, dataset, predictions, path):
        """Writes the submission file."""
        rows = zip(dataset.examples.names(), self.predicted(dataset, predictions[0][:, :1]), strict=True)
        self.write(path, ((key, name) for key, (name,) in ProgressBar(rows, 'Writing', len(dataset), delay=3)))

    def dump_probabilities(self, dataset, predictions, path, best):
        """Writes the `best` best predictions of each example: [{"id": ..., "answers": [[answer, probability], ...]}, ...]."""
        indices, probabilities = (array[:, :best] for array in predictions)
        rows = zip(dataset.examples.names(), self.predicted(dataset, indices), probabilities, strict=True)
        # An image may have fewer regions than `best`: the lists of answers are shorter then.
        write_list(path, ({'id': key, 'answers': [[name, round(p, 6)] for name, p in zip(names, values.tolist(), strict=False)]}
                          for key, names, values in ProgressBar(rows, 'Writing', len(dataset), delay=3)))


def warn_same_predictions(dataset, predictions):
    """Warns if the predictions are the same for every example, which usually means that the wrong weights were loaded."""
    indices, probabilities = (array[:, 0] for array in predictions)
    if len(indices) > 1 and (indices == indices[0]).all() and len(dataset.answers):
        answer = printable(dataset.answers[indices[0]])
        spread = f'with probabilities from {probabilities.min():.4f} to {probabilities.max():.4f}'
        print0(f'Warning: all {len(indices):,} predictions are "{answer}", {spread}. A trained model does '
               'not do that: check the loaded weights (see the table at the start) and --lr.')
