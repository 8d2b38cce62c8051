"""Visual entailment, SNLI-VE (Xie et al., 2019): does an image entail a sentence, contradict it, or leave it open? The program
behind run/entailment_{finetune,test}.bash."""

import sys
from collections import Counter

from annotations.examples import ExampleSchema
from annotations.snli_ve import LABELS, read_pairs
from annotations.spec import DatasetSpec
from files.json_files import stream
from tasks.program import main
from tasks.scoring import (
    CORRECT,
    PredictionFaults,
    Question,
    Scores,
    confusion_table,
    label_score,
    match_predictions,
    read_json_predictions,
    read_split,
)
from tasks.task import Task


class Entailment(Task):
    """Classifies a sentence about an image as entailed, contradicted or neutral."""

    kind = 'entailment'
    schema = ExampleSchema('pairID', str, answers=LABELS, classes='one')

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'entailment', 'name': 'entailment', 'max_length': 32,
            'splits': {split: {'annotations': f'entailment/{split}.json', 'images': 'images/flickr30k',
                               'features': ['flickr30k_imgfeat/flickr30k_obj36.tsv']} for split in ('train', 'dev', 'test')},
        }, root, root)

    @staticmethod
    def submission(key, answer):
        return {'pairID': key, 'label': answer}

    def table(self, dataset, predictions):
        """The accuracy by label and the confusion matrix."""
        pairs = zip(dataset.examples.label_answer.tolist(), predictions[0][:, 0].tolist(), strict=True)
        return f'{super().table(dataset, predictions)}\n' + confusion_table(confusion(
            (LABELS[label], LABELS[answer]) for label, answer in pairs))

    @staticmethod
    def evaluate(predictions, annotations, subset=None):
        """The metrics of a file of predictions, see Scores.figures, and 'confusion', {label: {predicted label: count}}.
        annotations: those of SNLI-VE, XVNLI or ALBEF, or this project's json; subset: a scoring.Subset; None: all pairs."""
        faults = PredictionFaults(predictions)
        answers = read_json_predictions(predictions, 'pairID', str, 'label', faults)
        for key, answer in answers.items():
            if answer not in LABELS:
                faults.add(f'labels other than {", ".join(LABELS)}', f'{answer} of {key}', CORRECT)
        questions, unusable = read_questions(annotations)
        for key in unusable:
            answers.pop(key, None)
        scores, pairs, count = Scores(), [], 0
        for question, score in match_predictions(questions, answers, annotations, faults, label_score, subset):
            count += 1
            if score is not None:
                (label,) = question.label
                scores.add(score, {'label': label})
                pairs.append((label, answers[question.id]))
        notes = [f'{len(unusable):,} pairs have no label or an empty sentence and are not scored.'] if unusable else []
        figures = scores.figures(count, 'accuracy', *notes)
        return figures | ({'confusion': confusion(pairs)} if pairs else {})


def read_questions(path):
    """(Questions, ids of pairs that data/entailment/process_entailment.py drops) of an annotations file. Raises DataError."""
    first = next(stream(path, 'item', 'pairs'))
    if isinstance(first, dict) and 'sent' in first:
        return read_split(path, Entailment.schema, {}), []
    pairs = list(read_pairs(path))
    labelled = any(pair.label for pair in pairs)
    scored = {pair.id: {pair.label: 1.0} if labelled else None for pair in pairs if pair.sent and (pair.label or not labelled)}
    return [Question(*item) for item in scored.items()], [pair.id for pair in pairs if pair.id not in scored]


def confusion(pairs):
    """{label: {predicted label: count}} of pairs (label, predicted label)."""
    counts = Counter(pairs)
    return {label: {answer: counts[label, answer] for answer in LABELS} for label in LABELS}


if __name__ == '__main__':
    sys.exit(main(Entailment))
