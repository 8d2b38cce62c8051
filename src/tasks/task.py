"""What tasks have in common. A task says what its files are, how it is scored and what the leaderboard takes; it knows no
model."""

from tqdm import tqdm

from annotations.examples import QUESTION
from dist import print0
from files.json_files import write_list
from train import evaluate

MAX_TYPES = 30  # rows of a table of question types; VQA v2 has 65


class Task:
    """A task of output 'answer', 'choice' or 'region': one place is predicted for each example. The class attributes, `spec` and
    `submission` are what a task must or may say for itself."""

    kind: str  # in the json of a --dataset
    output = 'answer'
    schema = QUESTION  # of its examples
    suffix = 'json'  # of the leaderboard's file
    best_name, epoch_name = 'BEST.pth', 'LAST.pth'  # snapshots

    def __init__(self, options):
        self.k = options.dumpProbs or 1  # predictions of each example

    @staticmethod
    def spec(root):
        """The DatasetSpec of the published files below a data folder."""
        raise NotImplementedError

    @staticmethod
    def submission(key, answer):
        """One prediction as the leaderboard takes it."""
        raise NotImplementedError

    @classmethod
    def write(cls, path, rows):
        """Writes (id, answer) rows as the leaderboard takes them, and returns how many."""
        return write_list(path, (cls.submission(key, answer) for key, answer in rows))

    def report(self, sums):
        """The mean score of an epoch of training, per cent: (text, {name: number})."""
        score = 100 * sums.get('score', 0.0) / max(sums.get('examples', 0), 1)
        return self.format_score(score), {'score': score}

    def validate(self, head, dataset, options, device):
        """(score, text, {name: number}) of a labelled dataset."""
        predictions = evaluate(head, dataset, options, device, 'Validating', self.k)
        warn_same_predictions(dataset, predictions)
        score = self.score(dataset, predictions)
        return score, self.format_score(score), {'score': score}

    @staticmethod
    def format_score(score):
        return f'{score:.2f}'

    @staticmethod
    def score(dataset, predictions):
        """Mean score of the predictions (a pair of (n, k), as Head.predict returns), per cent."""
        return 100 * float(dataset.scores(predictions[0][:, 0]).mean())

    @staticmethod
    def types(examples):
        """{'answer_type' or 'question_type': [(its name, which examples have it (n,) bool), ...] by name}, where there are
        any."""
        by_key = {}
        for key, (codes, names) in examples.types.items():
            places = sorted((name, place) for place, name in enumerate(names) if name is not None)
            by_key[key] = [(name, codes == place) for name, place in places if (codes == place).any()]
        return by_key

    def table(self, dataset, predictions):
        """The score by answer type and by question type, where the annotations have them, as a text."""
        scores = dataset.scores(predictions[0][:, 0])
        lines = [f'{"":24s} questions  share  score', f'{"all":24s} {len(scores):9d}  100.0  {100 * scores.mean():5.2f}']
        for key, types in self.types(dataset.examples).items():
            for name, chosen in types if len(types) <= MAX_TYPES else ():
                lines.append(f'{key.split("_")[0] + ": " + name:24s} {chosen.sum():9d}  {100 * chosen.mean():5.1f}  '
                             f'{100 * scores[chosen].mean():5.2f}')
        return '\n'.join(lines)

    def dump(self, dataset, predictions, path):
        """Writes the leaderboard's file."""
        rows = tqdm(zip(dataset.examples.names(), predictions[0][:, 0].tolist(), strict=True), 'Writing', len(dataset), delay=3,
                    disable=None)
        self.write(path, ((key, dataset.answers[place] if self.output == 'answer' else place) for key, place in rows))


def warn_same_predictions(dataset, predictions):
    """Warns if predictions, a pair of (n, k), are the same for every example: the usual sign of weights that were not loaded."""
    places, probabilities = (array[:, 0] for array in predictions)
    if len(places) > 1 and (places == places[0]).all() and len(dataset.answers):
        spread = f'with probabilities from {probabilities.min():.4f} to {probabilities.max():.4f}'
        print0(f'Warning: all {len(places):,} predictions are "{dataset.answers[places[0]]}", {spread}. A trained model does '
               'not do that: are these the weights that you meant (see the table at the start), and a fitting --lr?')


def dump_probabilities(dataset, predictions, path):
    """Writes the best answers of each example with their probabilities: [{"id": ..., "answers": [[answer, p], ...]}, ...]."""
    rows = zip(dataset.examples.names(), *predictions, strict=True)
    write_list(path, ({'id': key, 'answers': [[dataset.answers[place], round(p, 6)] for place, p in zip(
        places.tolist(), probabilities.tolist(), strict=True)]}
        for key, places, probabilities in tqdm(rows, 'Writing', len(dataset), delay=3, disable=None)))
