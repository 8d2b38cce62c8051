"""Classification of an image with a text, such as hateful memes (Kiela et al., 2020): one of two or more classes, or several
labels at once. The program behind run/classify_{finetune,test}.bash."""

import csv
import sys

import numpy as np

from annotations.examples import ExampleSchema
from files.json_files import DataError
from files.text import printable
from tasks.program import main
from tasks.task import MAX_TYPES, Task, warn_same_predictions
from train import evaluate

ALL = 1 << 30  # predictions per example: the probability of every class is needed
THRESHOLD = 0.5  # probability above which a label is predicted, where there may be several


class MultiLabel(Task):
    """Predicts which of the labels an image with a text has, none to all of them."""

    kind = 'multilabel'
    schema = ExampleSchema('id', str, classes='several')
    suffix = 'csv'
    measure = 'macro F1'  # the best snapshot is chosen by it

    def __init__(self, options):
        super().__init__(options)
        self.k = ALL
        if options.mceLoss:
            raise ValueError(f'--mceLoss: does not apply to the kind {self.kind}, whose loss is that of its labels; leave it out')

    @staticmethod
    def spec(root):
        raise DataError('--dataset: this task has no published data here; name the json that describes yours (data/README.md, '
                        '"Classes of an image with a text")')

    def report(self, sums):
        text, figures = super().report(sums)
        return f'{text} (the most probable class is right)', figures

    def validate(self, head, dataset, options, device):
        predictions = evaluate(head, dataset, options, device, 'Validating', self.k)
        warn_same_predictions(dataset, predictions)
        figures = self.figures(truth(dataset), self.probabilities(dataset, predictions))
        return figures[self.measure], ', '.join(f'{name} {value:.2f}' for name, value in figures.items()), figures

    @classmethod
    def score(cls, dataset, predictions):
        return cls.figures(truth(dataset), cls.probabilities(dataset, predictions))[cls.measure]

    @staticmethod
    def probabilities(dataset, predictions):
        """The probability of each class, (n, classes) float32, from predictions of all of them by falling probability."""
        indices, values = predictions
        matrix = np.empty((len(values), len(dataset.answers)), np.float32)
        np.put_along_axis(matrix, indices, values, 1)
        return matrix

    @staticmethod
    def chosen(probabilities):
        """Which classes are predicted, (n, classes) bool."""
        return probabilities > THRESHOLD

    @classmethod
    def figures(cls, labels, probabilities):
        """{'accuracy', 'macro F1', 'AUROC'} in per cent, as scikit-learn computes them. labels, probabilities: (n, classes).

        accuracy: share of the examples of which all labels are right; macro F1: mean over the classes that are labelled or
        predicted, of several labels over all; AUROC: mean over the classes that some examples have and some have not, of two
        classes that of the second. Without such a class it is left out.
        """
        from sklearn.metrics import accuracy_score, f1_score  # takes a second to import, and no other task needs it

        chosen = cls.chosen(probabilities)
        pairs = (labels, chosen) if cls.schema.classes == 'several' else (labels.argmax(1), chosen.argmax(1))
        areas = cls.areas(labels, probabilities)
        areas = areas[1:] if cls.is_binary(labels) else areas
        areas = areas[~np.isnan(areas)]
        figures = {'accuracy': accuracy_score(*pairs), 'macro F1': f1_score(*pairs, average='macro', zero_division=0)}
        if len(areas):
            figures['AUROC'] = areas.mean()
        return {name: 100 * float(value) for name, value in figures.items()}

    @staticmethod
    def areas(labels, probabilities):
        """The AUROC of each class against the rest, (classes,) float64, NaN where all examples have it or none has."""
        from sklearn.metrics import roc_auc_score

        return np.array([roc_auc_score(label, probability) if 0 < label.sum() < len(label) else np.nan
                         for label, probability in zip(labels.T, probabilities.T, strict=True)])

    @classmethod
    def is_binary(cls, labels):
        return cls.schema.classes == 'one' and labels.shape[1] == 2

    def table(self, dataset, predictions):
        """The metrics, then those of each class."""
        from sklearn.metrics import precision_recall_fscore_support

        labels, probabilities = truth(dataset), self.probabilities(dataset, predictions)
        chosen, areas = self.chosen(probabilities), self.areas(labels, probabilities)
        lines = [', '.join(f'{name} {value:.2f}' for name, value in self.figures(labels, probabilities).items())]
        if 'AUROC' not in lines[0]:
            lines[0] += '; no AUROC, since no class has examples with it and examples without it'
        rows = zip(dataset.answers, labels.sum(0), *precision_recall_fscore_support(labels, chosen, zero_division=0)[:3], areas,
                   strict=True)
        lines.append(f'{"class":24s} examples  share  precision  recall     F1  AUROC')
        for name, count, *values, area in list(rows)[:MAX_TYPES]:
            precision, recall, f1 = (100 * value for value in values)
            lines.append(f'{printable(name):24s} {count:8d}  {100 * count / len(labels):5.1f}  {precision:9.2f}  {recall:6.2f}  '
                         f'{f1:5.2f}  {"    -" if np.isnan(area) else f"{100 * area:5.2f}"}')
        if len(dataset.answers) > MAX_TYPES:
            lines.append(f'and {len(dataset.answers) - MAX_TYPES:,} more classes')
        return '\n'.join(lines)

    def dump(self, dataset, predictions, path):
        """Writes a csv with the predicted labels, joined by |, and the probability of each class: id,label,CLASS,CLASS,..."""
        probabilities = self.probabilities(dataset, predictions)
        chosen = self.chosen(probabilities)
        rows = ([key, '|'.join(dataset.answers[i] for i in row.nonzero()[0]), *map(str, values)]
                for key, row, values in zip(dataset.examples.names(), chosen, probabilities, strict=True))
        write_csv(path, ['id', 'label', *dataset.answers], rows)


class Classify(MultiLabel):
    """Classifies an image with a text into one of two or more classes."""

    kind = 'classify'
    schema = ExampleSchema('id', str, classes='one')
    measure = 'accuracy'
    variants = (MultiLabel,)

    @staticmethod
    def chosen(probabilities):
        return probabilities.argmax(1)[:, None] == np.arange(probabilities.shape[1])

    def dump(self, dataset, predictions, path):
        """Of two classes writes the csv of the hateful memes challenge, id,proba,label: the probability of the second class, and
        the index of the predicted one. Of more as for several labels."""
        if len(dataset.answers) != 2:
            super().dump(dataset, predictions, path)
            return
        probabilities = self.probabilities(dataset, predictions)
        rows = ([key, str(values[1]), label] for key, values, label in
                zip(dataset.examples.names(), probabilities, self.chosen(probabilities).argmax(1), strict=True))
        write_csv(path, ['id', 'proba', 'label'], rows)


def truth(dataset):
    """Which classes the labelled examples have, (n, classes) bool."""
    labels = np.zeros((len(dataset), len(dataset.answers)), bool)
    labels[dataset.examples.label_example, dataset.examples.label_answer] = True
    return labels


def write_csv(path, header, rows):
    with open(path, 'w', encoding='utf-8', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows([header, *rows])


if __name__ == '__main__':
    sys.exit(main(Classify))
