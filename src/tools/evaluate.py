"""Evaluation without a server: `python -m tools.evaluate vqa|gqa|nlvr2 PREDICTIONS ANNOTATIONS` (run/evaluate.bash), see --help.

Exit status 0: well; 1: a file that cannot be evaluated; 2: wrong usage.
"""

import argparse
import json
import sys
from pathlib import Path

from files.json_files import DataError, field, stream
from tasks.metrics import consistency, gqa_belongs, gqa_consistency
from tasks.predictions import Faults, matched, read_csv_predictions, read_gqa, read_json_predictions, read_nlvr2, read_vqa


class Scores:
    """Sums of scores over all questions and over those of each type."""

    def __init__(self):
        self.sums = {'all': {'': [0, 0.0]}}

    def add(self, score, types):
        for kind, name in (('all', ''), *types.items()):
            entry = self.sums.setdefault(kind, {}).setdefault(name, [0, 0.0])
            entry[0] += 1
            entry[1] += score

    def figures(self):
        """{'questions': n, 'accuracy': per cent, 'by': {kind: {type: the same two}}}."""
        by = {kind: {name: {'questions': count, 'accuracy': 100 * total / count}
                     for name, (count, total) in sorted(names.items())} for kind, names in self.sums.items()}
        return by.pop('all')[''] | {'by': by}


def evaluate_vqa(predictions, annotations):
    """The figures of a VQA v2 predictions file; annotations: the official ones, or a split of the project."""
    faults = Faults(predictions)
    answers = read_json_predictions(predictions, 'question_id', int, 'answer', faults)
    scores, official, count = Scores(), False, 0
    for question, right in matched(read_vqa(annotations), answers, annotations, faults):
        count += 1
        official = isinstance(question.label, list)
        if right is not None:
            scores.add(right, question.types)
    if official:
        return with_labels(scores, count, 'VQA accuracy as in the official evaluator')
    return with_labels(scores, count, 'mean soft score', 'This is the mean soft score of answers compared as they are. The '
                       'official accuracy, which looks at all ten answers, needs the official annotations.')


def with_labels(scores, count, measure, *notes):
    """The figures of `count` questions, or, of a split without labels, only that its questions are all answered."""
    if not scores.sums['all'][''][0]:
        return {'questions': count,
                'notes': [f'All {count:,} questions are answered, but none to be scored has a label: no score.']}
    return scores.figures() | {'measure': measure, 'notes': list(notes)}


def evaluate_gqa(predictions, annotations, choices=None):
    """The figures of a GQA predictions file; annotations: an official questions file, or a split of the project.

    choices: the official choices file (val_choices.json), for validity and plausibility.
    """
    faults = Faults(predictions)
    answers = read_json_predictions(predictions, 'questionId', str, 'prediction', faults)
    scores, right, entailed, detailed, count = Scores(), {}, {}, {}, 0
    for question, score in matched(read_gqa(annotations), answers, annotations, faults):
        count += 1
        if score is None:
            continue
        right[question.id] = score == 1
        if question.balanced:
            scores.add(score, question.types)
            detailed[question.id] = question.detailed
            if question.entailed:
                entailed[question.id] = question.entailed
    figures = with_labels(scores, count, 'accuracy (exact match)')
    asked = {other for key, others in entailed.items() if right[key] for other in others}
    if absent := asked - right.keys():
        figures['notes'].append(
            f'No consistency: {len(absent):,} of {len(asked):,} entailed questions are not there or not answered; it needs the '
            'file of all questions, balanced or not (val_all_questions.json), and answers to all.')
    elif (share := gqa_consistency(right, entailed)) is not None:
        figures['consistency'] = share
    if choices is not None and detailed:
        if not all(detailed.values()):
            raise DataError(f'{annotations}: --choices needs the detailed types of an official questions file')
        figures |= read_choices(choices, answers, detailed)
    return figures


def read_choices(path, answers, detailed):
    """{'validity', 'plausibility'}, per cent: of the answers to some questions, those that make sense, and that are likely.

    answers: {question id: answer}; detailed: {question id: its detailed type} of the questions scored.
    """
    counts, waiting = {'valid': 0, 'plausible': 0}, dict(detailed)
    for key, choice in stream(path, '', 'choices', pairs=True):
        if (kind := waiting.pop(key, None)) is not None:
            for name in counts:
                counts[name] += gqa_belongs(answers[key], field(choice, name, list, path), kind)
    if waiting:
        raise DataError(f'{path}: {len(waiting):,} of {len(detailed):,} questions have no choices here, such as '
                        f'{", ".join(list(waiting)[:3])}; is it the file of this split?')
    return {'validity': 100 * counts['valid'] / len(detailed), 'plausibility': 100 * counts['plausible'] / len(detailed)}


def evaluate_nlvr2(predictions, annotations):
    """The figures of an NLVR2 predictions file; annotations: the official json lines, or a split of the project."""
    faults = Faults(predictions)
    answers = read_csv_predictions(predictions, faults)
    scores, identifiers, right, count = Scores(), [], [], 0
    for question, score in matched(read_nlvr2(annotations), answers, annotations, faults):
        count += 1
        if score is not None:
            scores.add(score, {})
            identifiers.append(question.id)
            right.append(score == 1)
    figures = with_labels(scores, count, 'accuracy')
    if identifiers:
        try:
            figures['consistency'] = consistency(identifiers, right)
        except ValueError as error:
            raise DataError(f'{annotations}: {error}') from None
    return figures


def table(figures):
    """The figures as a text, in per cent."""
    lines = []
    if 'accuracy' in figures:
        whole = figures['questions']
        lines = [f'{figures["measure"]}, per cent', f'{"":32s} questions  share  score',
                 f'{"all":32s} {whole:9,d}  100.0 {figures["accuracy"]:6.2f}']
        for kind, names in figures['by'].items():
            lines += [f'{kind + ": " + name:32s} {part["questions"]:9,d}  {100 * part["questions"] / whole:5.1f} '
                      f'{part["accuracy"]:6.2f}' for name, part in names.items()]
        lines += [f'{name:49s} {figures[name]:6.2f}' for name in ('consistency', 'validity', 'plausibility') if name in figures]
    return '\n'.join(lines + figures['notes'])


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog='evaluate.bash', description='Checks a file of predictions and scores it as the official evaluators do.',
        epilog='vqa: predictions [{"question_id": 1, "answer": "yes"}], annotations v2_mscoco_*_annotations.json. '
        'gqa: [{"questionId": "1", "prediction": "yes"}] and *_questions.json; no distribution, grounding, or scores by length. '
        'nlvr2: lines dev-0-0-0,True and dev.json, test1.json. Annotations may also be a json of the project (data/README.md), '
        'and any file .gz. Exit status 0 well, 1 a bad file, 2 wrong usage.')
    parser.add_argument('task', choices=('vqa', 'gqa', 'nlvr2'))
    parser.add_argument('predictions', type=Path, help='the file that would be submitted')
    parser.add_argument('annotations', type=Path, help='the questions with what is right')
    parser.add_argument('--choices', type=Path, help='gqa: the official val_choices.json, for validity and plausibility')
    parser.add_argument('--out', type=Path, metavar='FILE', help='write the figures here, as json')
    options = parser.parse_args(argv)
    if options.choices and options.task != 'gqa':
        parser.error(f'--choices is for gqa only, not for {options.task}')
    if options.out and not options.out.parent.is_dir():
        parser.error(f'--out {options.out}: no such folder {options.out.parent}')
    evaluate = {'vqa': evaluate_vqa, 'gqa': evaluate_gqa, 'nlvr2': evaluate_nlvr2}[options.task]
    more = {'choices': options.choices} if options.choices else {}
    try:
        for path in filter(None, (options.predictions, options.annotations, options.choices)):
            if not path.is_file():
                raise FileNotFoundError(f'{path}: no such file')
        figures = {'task': options.task, 'predictions': str(options.predictions), 'annotations': str(options.annotations)}
        figures |= evaluate(options.predictions, options.annotations, **more)
        print(table(figures))
        if options.out:
            Path(options.out).write_text(json.dumps(figures, indent=2) + '\n', encoding='utf-8')
    except (ValueError, OSError) as error:
        print(f'evaluate.bash: error: {error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
