"""GQA: compositional questions about images (Hudson & Manning, 2019). The program behind run/gqa_{finetune,test}.bash."""

import sys

from annotations.examples import TEXT_QUESTION
from annotations.spec import DatasetSpec
from files.json_files import DataError, field, layout, some, stream
from files.text import shown
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

TESTDEV = ('testdev', 'testdev_all')
SPLITS = ('train', 'train_all', 'valid', 'valid_all', *TESTDEV, 'submit')


class GQA(Task):
    """Classifies a question into 1,842 answers, of which one is correct."""

    kind = 'gqa'
    schema = TEXT_QUESTION

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'gqa', 'name': 'gqa', 'max_length': 20, 'answers': 'gqa/trainval_label2ans.json',
            'splits': {split: {
                'annotations': f'gqa/{split}.json', 'whole': split in TESTDEV,
                'features': [f'vg_gqa_imgfeat/{"gqa_testdev" if split in TESTDEV else "vg_gqa"}_obj36.tsv'],
                'images': 'images/gqa',
            } for split in SPLITS},
        }, root, root)

    @staticmethod
    def submission(key, answer):
        return {'questionId': key, 'prediction': answer}

    @staticmethod
    def evaluate(predictions, annotations, subset=None, choices=None):
        """The metrics of a file of predictions, see Scores.figures. annotations: an official questions file, or this project's
        json; subset: a scoring.Subset; None: all questions; choices: the official choices file (val_choices.json), for validity
        and plausibility.
        """
        faults = PredictionFaults(predictions)
        answers = read_json_predictions(predictions, 'questionId', str, 'prediction', faults)
        scores, correct, entailed, detailed, count = Scores(), {}, {}, {}, 0
        for question, score in match_predictions(read_questions(annotations), answers, annotations, faults, label_score,
                                                 subset):
            count += 1
            if score is None:
                continue
            correct[question.id] = score == 1
            if question.balanced:
                scores.add(score, question.types)
                detailed[question.id] = question.detailed
                if question.entailed:
                    entailed[question.id] = question.entailed
        figures = scores.figures(count, 'accuracy (exact match)')
        needed = {other for key, others in entailed.items() if correct[key] for other in others}
        if missing := needed - correct.keys():
            figures['notes'].append(
                f'No consistency: {len(missing):,} of {len(needed):,} entailed questions are missing or not answered; it needs '
                'the file of all questions, balanced or not (val_all_questions.json), and answers to all.')
        elif (value := consistency(correct, entailed)) is not None:
            figures['consistency'] = value
        if choices is not None and detailed:
            if not all(detailed.values()):
                raise DataError(f'{annotations}: --choices needs the detailed types of an official questions file; '
                                'name that')
            figures |= read_choices(choices, answers, detailed)
        return figures


def read_questions(path):
    """Yields the Questions of an official questions file or of this project's json. Raises DataError."""
    if layout(path) != 'object':
        yield from read_split(path, TEXT_QUESTION, {'answer_type': 'answer type', 'question_type': 'structural type'})
        return
    for key, item in stream(path, '', 'questions', pairs=True):
        field(item, 'question', str, path)
        if 'answer' not in item:
            yield Question(key, None)  # balanced by default: a submission must answer all questions
            continue
        types = field(item, 'types', dict, path) if 'types' in item else {}
        names = {f'{kind} type': field(types, kind, str, path) for kind in ('structural', 'semantic') if kind in types}
        if 'structural' in types:
            names = {'answer type': 'open' if types['structural'] == 'query' else 'binary'} | names
        if not isinstance(balanced := item.get('isBalanced', True), bool):
            raise DataError(f'{path}: question {key}: key "isBalanced": expected true or false, found {balanced!r}; get '
                            'the file again')
        entailed = tuple(field(item, 'entailed', list, path)) if 'entailed' in item else ()
        detailed = types.get('detailed') or ''
        if not all(isinstance(name, str) for name in (*entailed, detailed)):
            raise DataError(f'{path}: question {key}: expected texts in the keys "entailed" and "detailed", found '
                            f'{shown(item)}; correct it')
        yield Question(key, {field(item, 'answer', str, path): 1.0}, names, balanced, entailed, detailed)


def consistency(correct, entailed):
    """GQA's consistency in per cent, as in the official eval.py; None if it is undefined.

    For each correctly answered question that entails others, the fraction of these that are correct, averaged over questions.
    correct: {question id: bool}; entailed: {id: ids of the entailed questions}. Raises KeyError if `correct` lacks one of them.
    """
    fractions = []
    for key, others in entailed.items():
        others = [correct[other] for other in others if other != key] if correct[key] else ()
        if others:
            fractions.append(sum(others) / len(others))
    return 100 * sum(fractions) / len(fractions) if fractions else None


def read_choices(path, answers, detailed):
    """GQA's {'validity', 'plausibility'} in per cent. Raises DataError if the choices file lacks questions.

    answers: {question id: predicted answer}; detailed: {question id: detailed type} of the questions to score.
    """
    counts, missing = {'valid': 0, 'plausible': 0}, dict(detailed)
    for key, choice in stream(path, '', 'choices', pairs=True):
        if (detailed_type := missing.pop(key, None)) is not None:
            for name in counts:
                counts[name] += belongs(answers[key], field(choice, name, list, path), detailed_type)
    if missing:
        raise DataError(f'{path}: {len(missing):,} of {len(detailed):,} questions have no choices here, such as '
                        f'{some(missing)}; name the file of this split')
    return {'validity': 100 * counts['valid'] / len(detailed), 'plausibility': 100 * counts['plausible'] / len(detailed)}


def belongs(answer, answers, detailed_type):
    """Whether an answer is among the valid or plausible `answers`, as in GQA's official eval.py.

    For questions about a common attribute (a detailed type such as sameMaterialsCommon), these are color, material and shape.
    """
    return answer in (('color', 'material', 'shape') if 'Common' in detailed_type else answers)


if __name__ == '__main__':
    sys.exit(main(GQA))
