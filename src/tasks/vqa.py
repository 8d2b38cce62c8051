"""VQA v2: answering questions about images (Goyal et al., 2017). The program behind run/vqa_{finetune,test}.bash."""

import sys

from annotations.albef_files import example_of
from annotations.examples import QUESTION
from annotations.spec import DatasetSpec
from annotations.vqa_answers import normalise, without_punctuation
from files.json_files import DataError, field, layout, stream
from tasks.program import main
from tasks.scoring import (
    PredictionFaults,
    Question,
    Scores,
    label_score,
    match_predictions,
    read_json_predictions,
    read_split,
)
from tasks.task import Task

IMAGES = {'train': 'train2014', 'nominival': 'val2014', 'minival': 'val2014', 'valid': 'val2014',
          'test': 'test2015', 'test-dev': 'test2015'}
TYPES = {'answer_type': 'answer type', 'question_type': 'question type'}


class VQA(Task):
    """Classifies a question into 3,129 answers, trained on soft scores."""

    kind = 'vqa'

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'vqa', 'name': 'vqa', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json',
            'splits': {split: {'annotations': f'vqa/{split}.json', 'features': [f'mscoco_imgfeat/{images}_obj36.tsv'],
                               'images': f'images/{images}'}
                       for split, images in IMAGES.items()},
        }, root, root)

    @staticmethod
    def submission(key, answer):
        return {'question_id': key, 'answer': answer}

    @staticmethod
    def evaluate(predictions, annotations, subset=None):
        """The metrics of a file of predictions, see Scores.figures. annotations: the official ones, or this project's json;
        subset: a scoring.Subset; None: all questions."""
        faults = PredictionFaults(predictions)
        answers = read_json_predictions(predictions, 'question_id', int, 'answer', faults)
        scores, official, count = Scores(), False, 0
        for question, score in match_predictions(read_questions(annotations), answers, annotations, faults, accuracy, subset):
            count += 1
            official = isinstance(question.label, list)
            if score is not None:
                scores.add(score, question.types)
        if official:
            return scores.figures(count, 'VQA accuracy as in the official evaluator')
        return scores.figures(count, 'mean soft score', 'This is the mean soft score, without normalizing answers. The '
                              'official accuracy, which uses all ten answers, needs the official annotations.')


def read_questions(path):
    """Yields the Questions of the official annotations, also as a list (VQA-CP), of ALBEF's, or of this project's json. Raises
    DataError."""
    prefix = 'annotations.item' if layout(path) == 'object' else 'item'
    first = next(stream(path, prefix, 'annotations'))
    if isinstance(first, dict) and isinstance(first.get('answer'), list) and 'answers' not in first:  # ALBEF's
        for number, item in enumerate(stream(path, prefix, 'questions')):
            key = example_of(item, number, path)['question_id']  # which checks the item
            yield Question(key, field(item, 'answer', list, path), {})
        return
    if prefix == 'item' and not (isinstance(first, dict) and 'answers' in first):
        yield from read_split(path, QUESTION, TYPES)
        return
    for item in stream(path, prefix, 'annotations'):
        key = field(item, 'question_id', int, path)
        answers = [field(answer, 'answer', str, path) for answer in field(item, 'answers', list, path)]
        if not answers:
            raise DataError(f'{path}: question {key}: key "answers": expected the answers of the annotators, found none; '
                            'get the file again')
        yield Question(key, answers, {name: field(item, kind, str, path) for kind, name in TYPES.items() if kind in item})


def accuracy(prediction, label):
    """The score of a prediction, 0 to 1: VQA accuracy for a list of annotators' answers, else the soft score."""
    return vqa_accuracy(prediction, label) if isinstance(label, list) else label_score(prediction, label)


def vqa_accuracy(prediction, answers):
    """VQA accuracy, 0 to 1, of a prediction given the annotators' answers (10 in VQA v2), as in the official vqaEval.py.

    The mean over annotators of min(1, matches among the other annotators / 3). The prediction is fully normalised; the
    annotators' answers only lose their punctuation, and only if they are not all the same.
    """
    if len(set(answers)) > 1:
        answers = [without_punctuation(answer) for answer in answers]
    prediction = normalise(prediction)
    matches = [answer == prediction for answer in answers]
    return sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


if __name__ == '__main__':
    sys.exit(main(VQA))
