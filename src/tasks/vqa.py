"""VQA v2: answering questions about images (Goyal et al., 2017). The program behind run/vqa_{finetune,test}.bash."""

import sys

from annotations.examples import QUESTION
from annotations.spec import DatasetSpec
from files.json_files import DataError, field, stream
from tasks.program import main
from tasks.scoring import (
    PredictionFaults,
    Question,
    Scores,
    first_character,
    label_score,
    match_predictions,
    read_json_predictions,
    read_split,
)
from tasks.task import Task
from tasks.vqa_answers import normalise, without_punctuation

IMAGES = {'train': 'train2014', 'nominival': 'val2014', 'minival': 'val2014', 'valid': 'val2014',
          'test': 'test2015', 'test-dev': 'test2015'}
TYPES = {'answer_type': 'answer type', 'question_type': 'question type'}


class VQA(Task):
    """The answer with the highest score out of 3,129, trained on soft scores."""

    kind = 'vqa'

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'vqa', 'name': 'vqa', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json',
            'splits': {split: {'annotations': f'vqa/{split}.json', 'features': [f'mscoco_imgfeat/{images}_obj36.tsv']}
                       for split, images in IMAGES.items()},
        }, root, root)

    @staticmethod
    def submission(key, answer):
        return {'question_id': key, 'answer': answer}

    @staticmethod
    def evaluate(predictions, annotations):
        """The figures of a file of predictions; annotations: the official ones, or a split of the project."""
        faults = PredictionFaults(predictions)
        answers = read_json_predictions(predictions, 'question_id', int, 'answer', faults)
        scores, official, count = Scores(), False, 0
        for question, score in match_predictions(read_questions(annotations), answers, annotations, faults, accuracy):
            count += 1
            official = isinstance(question.label, list)
            if score is not None:
                scores.add(score, question.types)
        if official:
            return scores.figures(count, 'VQA accuracy as in the official evaluator')
        return scores.figures(count, 'mean soft score', 'This is the mean soft score of answers compared as they are. The '
                              'official accuracy, which looks at all ten answers, needs the official annotations.')


def read_questions(path):
    """Yields the Questions of the official annotations, or of a split of the project."""
    if first_character(path) == b'[':
        yield from read_split(path, QUESTION, TYPES)
        return
    for item in stream(path, 'annotations.item', 'annotations'):
        key = field(item, 'question_id', int, path)
        answers = [field(answer, 'answer', str, path) for answer in field(item, 'answers', list, path)]
        if not answers:
            raise DataError(f'{path}: question {key}: key "answers": expected answers of people, found none')
        yield Question(key, answers, {name: field(item, kind, str, path) for kind, name in TYPES.items() if kind in item})


def accuracy(prediction, label):
    """The score, 0 to 1, of a prediction: official where the label is people's answers, else its soft score."""
    return vqa_accuracy(prediction, label) if isinstance(label, list) else label_score(prediction, label)


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


if __name__ == '__main__':
    sys.exit(main(VQA))
