"""What tasks have in common that choose one of a fixed list of answers. A task says what its files are and what differs."""

import json

import torch.nn.functional as F
from tqdm import tqdm

from annotations.examples import QUESTION
from dist import print0
from train import evaluate

MOST_TYPES = 30  # VQA v2 has 65 question types; a table that long tells nothing


class Answering:
    """The answer with the highest score out of a list, learned from soft scores or from the right one.

    The class attributes and `spec` are what a task must or may say for itself.
    """

    kind: str  # in the json of a --dataset
    form = QUESTION  # of its examples
    loss = 'BCE'  # or 'CE', cross entropy with the best answer
    factor = None  # of a cross entropy; None: the number of answers (as in the original code)
    suffix = 'json'  # of the leaderboard's file
    warmup, clip = 0.1, 5.0  # share of the steps; highest norm of the gradient (as in the original code)
    best_name, epoch_name = 'BEST.pth', 'LAST.pth'  # snapshots

    def __init__(self, model, options):
        self.model, self.most = model, options.dumpProbs or 1
        if options.mceLoss:
            self.loss = 'CE'

    @staticmethod
    def spec(root):
        """The DatasetSpec of the published files below a data folder."""
        raise NotImplementedError

    @staticmethod
    def submission(key, answer):
        """One prediction as the leaderboard takes it."""
        raise NotImplementedError

    @staticmethod
    def logits(model, batch):
        return model(batch['input_ids'], batch['features'], batch['boxes'], batch.get('visual_attention_mask')).float()

    def counts(self, parts):
        """What each loss is a mean over: the examples of a step's parts; for a cross entropy those that have an answer."""
        targets = [part['target'] for part in parts]
        if self.loss == 'BCE':
            return {'BCE': targets[0].new_full((), sum(len(target) for target in targets))}
        return {'CE': sum((target.amax(1) > 0).sum() for target in targets).to(targets[0].dtype)}

    def losses(self, model, batch, counts):
        """({name: share of the whole batch's loss}, {'score': sum of the predicted answers' soft scores, 'examples': how many}).

        BCE: binary cross entropy, mean over examples and answers, times the number of answers. CE: cross entropy with the
        answer that has the highest score, mean over the examples that have one, times `factor` (as in the original code).
        """
        logits, target = self.logits(model, batch), batch['target']
        if self.loss == 'BCE':
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction='sum')
        else:
            best, answer = target.max(1)
            answer = answer.masked_fill(best == 0, -1)
            loss = F.cross_entropy(logits, answer, ignore_index=-1, reduction='sum') * (self.factor or target.shape[1])
        score = target.gather(1, logits.detach().argmax(1, keepdim=True)).sum()
        return {self.loss: loss / counts[self.loss].clamp(min=1)}, {'score': score, 'examples': len(target)}

    def report(self, sums):
        """The mean soft score of an epoch of training, per cent."""
        score = 100 * sums.get('score', 0.0) / max(sums.get('examples', 0), 1)
        return self.shown(score), {'score': score}

    def validate(self, dataset, options, device):
        predictions = evaluate(self, dataset, options, device, 'Validating')
        say_if_alike(dataset, predictions)
        score = self.score(dataset, predictions)
        return score, self.shown(score), {'score': score}

    @staticmethod
    def shown(score):
        return f'{score:.2f}'

    def predict(self, model, batch):
        """The --dumpProbs best answers, else the best one: their places (b, k) int64 and probabilities (b, k) float32."""
        logits = self.logits(model, batch)
        best = logits.topk(min(self.most, logits.shape[1]))  # of logits: many probabilities round to 1
        return best.indices, self.probabilities(logits).gather(1, best.indices)

    def probabilities(self, logits):
        """(b, answers) -> the same; of answers that exclude each other they sum to 1."""
        return logits.sigmoid() if self.loss == 'BCE' else logits.softmax(1)

    @staticmethod
    def score(dataset, predictions):
        """Mean soft score of the predictions (a pair of (n, k), as `predict` gives), per cent."""
        return 100 * float(dataset.scores(predictions[0][:, 0]).mean())

    @staticmethod
    def groups(examples):
        """{'answer_type' or 'question_type': [(its name, who has it (n,) bool), ...] by name}, where there are any."""
        found = {}
        for key, (codes, names) in examples.types.items():
            places = sorted((name, place) for place, name in enumerate(names) if name is not None)
            found[key] = [(name, codes == place) for name, place in places if (codes == place).any()]
        return found

    def table(self, dataset, predictions):
        """The score by answer type and by question type, where the annotations have them, as a text."""
        scores = dataset.scores(predictions[0][:, 0])
        lines = [f'{"":24s} questions  share  score', f'{"all":24s} {len(scores):9d}  100.0  {100 * scores.mean():5.2f}']
        for key, found in self.groups(dataset.examples).items():
            for name, chosen in found if len(found) <= MOST_TYPES else ():
                lines.append(f'{key.split("_")[0] + ": " + name:24s} {chosen.sum():9d}  {100 * chosen.mean():5.1f}  '
                             f'{100 * scores[chosen].mean():5.2f}')
        return '\n'.join(lines)

    def dump(self, dataset, predictions, path):
        """Writes the leaderboard's file."""
        rows = tqdm(zip(dataset.examples.names(), predictions[0][:, 0].tolist(), strict=True), 'Writing', len(dataset), delay=3,
                    disable=None)
        self.write(path, ((key, dataset.answers[place]) for key, place in rows))

    @classmethod
    def write(cls, path, rows):
        """Writes (id, answer) rows as the leaderboard takes them, and returns how many."""
        return write_list(path, (cls.submission(key, answer) for key, answer in rows))


def say_if_alike(dataset, predictions):
    """Says so if a pair of predictions (n, k), as `predict` gives, is the same for every example: the commonest sign of weights
    that were not loaded."""
    places, probabilities = (array[:, 0] for array in predictions)
    if len(places) > 1 and (places == places[0]).all():
        spread = f'with probabilities from {probabilities.min():.4f} to {probabilities.max():.4f}'
        print0(f'Attention: all {len(places):,} predictions are "{dataset.answers[places[0]]}", {spread}. A model that has '
               'learned does not do that: are these the weights that you meant (the table at the start), and a fitting --lr?')


def dump_probabilities(dataset, predictions, path):
    """Writes the best answers of each example with their probabilities: [{"id": ..., "answers": [[answer, p], ...]}, ...]."""
    rows = zip(dataset.examples.names(), *predictions, strict=True)
    write_list(path, ({'id': key, 'answers': [[dataset.answers[place], round(p, 6)] for place, p in zip(
        places.tolist(), probabilities.tolist(), strict=True)]}
        for key, places, probabilities in tqdm(rows, 'Writing', len(dataset), delay=3, disable=None)))


def write_list(path, items):
    """Writes a json list, an item a line and one at a time; returns how many."""
    count = 0
    with open(path, 'w', encoding='utf-8') as file:
        for count, item in enumerate(items, 1):
            file.write(('[\n' if count == 1 else ',\n') + json.dumps(item))
        file.write('\n]\n' if count else '[]\n')
    return count
