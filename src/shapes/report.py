"""Compares predictions with the baselines: `python -m shapes.report data/shapes snap/vqa/NAME/minival_predict.json`."""
import argparse
import sys
from math import prod
from pathlib import Path

from files.json_files import DataError, numbered_lines, stream
from shapes import expressions, retrieval, tagged_questions
from shapes.baselines import TRAIN, fit_baselines, score_table, soft_label
from tasks.registry import task_class
from tasks.scoring import Subset
from tools.evaluate import table

LABELLED = ('vqa', 'gqa', 'nlvr2', 'entailment')
OTHERS = ('refcoco', 'retrieval', 'vcr')  # tasks whose predictions are no answers
PARTS = {'Q->A': ('answer',), 'QA->R': ('rationale',), 'Q->AR': ('answer', 'rationale')}  # of VCR, by measure


def read_split(world: Path, task: str, split: str) -> list[dict]:
    return list(stream(world / task / f'{split}.json', 'item', 'questions'))


def read_predictions(path: Path, task: str) -> dict:
    """{id of a question or pair: predicted answer} from the file that the task's program writes."""
    try:
        if task == 'nlvr2':
            return dict(line.decode().strip().rsplit(',', 1) for _, line in numbered_lines(path))
        key, answer = {'vqa': ('question_id', 'answer'), 'gqa': ('questionId', 'prediction'),
                       'entailment': ('pairID', 'label')}[task]
        return {prediction[key]: prediction[answer] for prediction in stream(path, 'item', 'predictions')}
    except (KeyError, TypeError, ValueError) as error:
        expected = 'lines such as valid-0-0-0,True' if task == 'nlvr2' else f'a list of objects with {key} and {answer}'
        raise DataError(f'{path}: expected {expected}, as src/tasks/{task}.py writes them; is this of --task {task}?') from error


def scores_of(questions: list[dict], predictions: dict) -> list[float]:
    """The score from 0 to 1 of the prediction for each question. Raises DataError if one is missing."""
    key = next(key for key in ('identifier', 'pairID', 'question_id') if key in questions[0])
    if missing := [question[key] for question in questions if question[key] not in predictions]:
        raise DataError(f'expected a prediction for each of {len(questions)}, {len(missing)} lack one, such as {missing[0]}')
    return [soft_label(question).get(predictions[question[key]], 0.0) for question in questions]


def without_pictures(world: Path, task: str, evaluated: list[dict], measure: str) -> float:
    """The score, per cent, that the words alone reach in one of OTHERS; of retrieval that of a ranking at random."""
    if task == 'retrieval':
        return retrieval.chance(evaluated)
    train = read_split(world, task, 'train')
    if task == 'refcoco':
        return expressions.text_only(train, evaluated)
    return 100 * prod(tagged_questions.text_only(train, evaluated, part) / 100 for part in PARTS[measure.split()[0]])


def baseline(world: Path, task: str, evaluated: list[dict]) -> float:
    """The score, per cent, that labelled examples have without their pictures; of VCR that of Q->A."""
    if task in OTHERS:
        return without_pictures(world, task, evaluated, 'Q->A')
    train = [question for name in TRAIN[task] for question in read_split(world, task, name)]
    return max(fit_baselines(train)(evaluated).values())


def report(world: Path, predictions: Path, task: str) -> str:
    """The score of a file of predictions by kind of question, next to that of the baselines."""
    split = predictions.stem.removesuffix('_predict')
    if task in OTHERS:
        figures = task_class(task).evaluate(predictions, world / task / f'{split}.json')
        if 'accuracy' not in figures:
            raise DataError(f'{predictions}: the split {split} has no labels; expected predictions of one that has')
        if task == 'refcoco':  # by what makes expressions of the hard world hard
            items = read_split(world, task, split)
            for tag in sorted({tag for item in items for tag in item.get('tags', ())}):
                ids = {f'{item["ref_id"]}-0' for item in items if tag in item['tags']}
                part = task_class(task).evaluate(predictions, world / task / f'{split}.json', Subset(ids))
                figures['by'].setdefault('tag', {})[tag] = {name: part[name] for name in ('questions', 'accuracy')}
        score = figures['accuracy']
        words = without_pictures(world, task, read_split(world, task, split), figures['measure'])
        return f'{table(figures)}\n\nScore {score:.1f}, without pictures {words:.1f}: {score - words:+.1f} points.'
    train = [question for name in TRAIN[task] for question in read_split(world, task, name)]
    questions = read_split(world, task, split)
    if 'label' not in questions[0]:
        raise DataError(f'{predictions}: the split {split} has no labels; expected predictions of one that has')
    lines, score, better = score_table(train, questions, scores_of(questions, read_predictions(predictions, task)))
    return f'{lines}\n\nScore {score:.1f}, the better baseline {better:.1f}: {score - better:+.1f} points.'


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='shapes/report.py', description=__doc__.splitlines()[0].split(':')[0] + '.')
    parser.add_argument('world', type=Path, help='folder of the sample world')
    parser.add_argument('predictions', type=Path, help='a file such as minival_predict.json or valid_predict.csv')
    parser.add_argument('--task', choices=(*LABELLED, *OTHERS), default='vqa', help='the task of the predictions (default: vqa)')
    options = parser.parse_args(argv)
    try:
        print(report(options.world, options.predictions, options.task))
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == '__main__':
    main(sys.argv[1:])
