"""GQA: compositional questions about images (Hudson & Manning, 2019). The program behind run/gqa_{finetune,test}.bash."""

import sys

from annotations.examples import TEXT_QUESTION
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

TESTDEV = ('testdev', 'testdev_all')
SPLITS = ('train', 'train_all', 'valid', 'valid_all', *TESTDEV, 'submit')


class GQA(Task):
    """The answer with the highest score out of 1,842; one answer is right."""

    kind = 'gqa'
    schema = TEXT_QUESTION

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'gqa', 'name': 'gqa', 'max_length': 20, 'answers': 'gqa/trainval_label2ans.json',
            'splits': {split: {
                'annotations': f'gqa/{split}.json', 'whole': split in TESTDEV,
                'features': [f'vg_gqa_imgfeat/{"gqa_testdev" if split in TESTDEV else "vg_gqa"}_obj36.tsv'],
            } for split in SPLITS},
        }, root, root)

    @staticmethod
    def submission(key, answer):
        return {'questionId': key, 'prediction': answer}

    @staticmethod
    def evaluate(predictions, annotations, choices=None):
        """The figures of a file of predictions; annotations: an official questions file, or a split of the project.

        choices: the official choices file (val_choices.json), for validity and plausibility.
        """
        faults = PredictionFaults(predictions)
        answers = read_json_predictions(predictions, 'questionId', str, 'prediction', faults)
        scores, right, entailed, detailed, count = Scores(), {}, {}, {}, 0
        for question, score in match_predictions(read_questions(annotations), answers, annotations, faults, label_score):
            count += 1
            if score is None:
                continue
            right[question.id] = score == 1
            if question.balanced:
                scores.add(score, question.types)
                detailed[question.id] = question.detailed
                if question.entailed:
                    entailed[question.id] = question.entailed
        figures = scores.figures(count, 'accuracy (exact match)')
        needed = {other for key, others in entailed.items() if right[key] for other in others}
        if absent := needed - right.keys():
            figures['notes'].append(
                f'No consistency: {len(absent):,} of {len(needed):,} entailed questions are missing or not answered; it needs '
                'the file of all questions, balanced or not (val_all_questions.json), and answers to all.')
        elif (share := consistency(right, entailed)) is not None:
            figures['consistency'] = share
        if choices is not None and detailed:
            if not all(detailed.values()):
                raise DataError(f'{annotations}: --choices needs the detailed types of an official questions file')
            figures |= read_choices(choices, answers, detailed)
        return figures


def read_questions(path):
    """Yields the Questions of an official questions file, or of a split of the project."""
    if first_character(path) == b'[':
        yield from read_split(path, TEXT_QUESTION, {'answer_type': 'answer type', 'question_type': 'structural type'})
        return
    for key, item in stream(path, '', 'questions', pairs=True):
        field(item, 'question', str, path)
        if 'answer' not in item:
            yield Question(key, None)  # of a split to be submitted all must be answered
            continue
        types = field(item, 'types', dict, path) if 'types' in item else {}
        names = {f'{kind} type': field(types, kind, str, path) for kind in ('structural', 'semantic') if kind in types}
        if 'structural' in types:
            names = {'answer type': 'open' if types['structural'] == 'query' else 'binary'} | names
        if not isinstance(balanced := item.get('isBalanced', True), bool):
            raise DataError(f'{path}: question {key}: key "isBalanced": expected true or false, found {balanced!r}')
        yield Question(key, {field(item, 'answer', str, path): 1.0}, names, balanced,
                       tuple(field(item, 'entailed', list, path)) if 'entailed' in item else (), types.get('detailed') or '')


def consistency(right, entailed):
    """Per cent of the questions entailed by correctly answered ones that are correct too, as in GQA's official eval.py.

    right: {question id: whether it is answered correctly}; entailed: {id: ids of the questions that it entails} of the questions
    scored. The share is taken for each correctly answered question that entails any but itself, then averaged over those. None
    if there are none. Raises KeyError for an entailed question that is not in `right`.
    """
    shares = []
    for key, others in entailed.items():
        others = [right[other] for other in others if other != key] if right[key] else ()
        if others:
            shares.append(sum(others) / len(others))
    return 100 * sum(shares) / len(shares) if shares else None


def read_choices(path, answers, detailed):
    """{'validity', 'plausibility'}, per cent: of the answers to some questions, those that make sense, and that are likely.

    answers: {question id: answer}; detailed: {question id: its detailed type} of the questions scored.
    """
    counts, missing = {'valid': 0, 'plausible': 0}, dict(detailed)
    for key, choice in stream(path, '', 'choices', pairs=True):
        if (kind := missing.pop(key, None)) is not None:
            for name in counts:
                counts[name] += belongs(answers[key], field(choice, name, list, path), kind)
    if missing:
        raise DataError(f'{path}: {len(missing):,} of {len(detailed):,} questions have no choices here, such as '
                        f'{", ".join(list(missing)[:3])}; is it the file of this split?')
    return {'validity': 100 * counts['valid'] / len(detailed), 'plausibility': 100 * counts['plausible'] / len(detailed)}


def belongs(answer, answers, detailed_type):
    """Whether an answer is one of `answers` (the valid or the plausible ones), as in GQA's official eval.py.

    Where questions ask for what things have in common (detailed type such as sameMaterialsCommon), the answers are always
    color, material and shape.
    """
    return answer in (('color', 'material', 'shape') if 'Common' in detailed_type else answers)


if __name__ == '__main__':
    sys.exit(main(GQA))
