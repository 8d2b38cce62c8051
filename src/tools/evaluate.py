"""Checks a file of predictions and computes the official metrics without a server (run/evaluate.bash).

Exit status 0: success; 1: invalid file; 2: wrong usage.
"""

import argparse
import json
import sys
from pathlib import Path

from annotations.vqa_files import read_rows, text_of, value_of
from cli import run_main
from files.atomic import write_text
from files.json_files import DataError, layout, numbered_lines, stream
from files.text import printable, shown
from tasks.registry import TASKS, task_class
from tasks.scoring import Subset, confusion_table

WITHOUT = 'nlvr', 'classify', 'multilabel'  # no `evaluate`: their runs print the score
EPILOG = ('vqa: predictions [{"question_id": 1, "answer": "yes"}], annotations v2_mscoco_*_annotations.json. '
          'gqa: [{"questionId": "1", "prediction": "yes"}] and *_questions.json; no distribution, grounding, scores by length. '
          'nlvr2: lines dev-0-0-0,True and dev.json, test1.json. '
          'entailment: [{"pairID": "1", "label": "neutral"}] and snli_ve_dev.jsonl or ve_test.json. '
          'refcoco: [{"ref_id": 1, "box": [x1, y1, x2, y2]}] with the format of data/README.md. '
          'retrieval: the ranks that --test wrote, and the captions of data/README.md. '
          'vcr: val_predict.csv of run/vcr_test.bash and val.jsonl. '
          'Annotations may also have the format of data/README.md, '
          'and any file may be json lines or compressed (.gz). Exit status: 0 success, 1 invalid file, 2 wrong usage.')


def table(figures):
    """The metrics as a table (text), in per cent."""
    lines = []
    if 'accuracy' in figures:
        total = figures['questions']
        lines = [f'{figures["measure"]}, per cent', f'{"":32s} questions  share  score',
                 f'{"all":32s} {total:9,d}  100.0 {figures["accuracy"]:6.2f}']
        for kind, types in figures['by'].items():
            lines += [f'{printable(f"{kind}: {name}"):32s} {row["questions"]:9,d}  {100 * row["questions"] / total:5.1f} '
                      f'{row["accuracy"]:6.2f}' for name, row in types.items()]
        others = 'consistency', 'validity', 'plausibility', 'Q->A', 'QA->R'
        lines += [f'{name:49s} {figures[name]:6.2f}' for name in others if name in figures]
        lines += [confusion_table(figures['confusion'])] if 'confusion' in figures else []
    return '\n'.join(lines + figures['notes'])


def read_ids(path):
    """The question ids of a file, as a set of text: one a line, or of json: ids, or questions with an id. Raises DataError."""
    if not {'.json', '.jsonl'} & {*path.suffixes[-2:]}:
        rows = (line.decode(errors='replace').strip() for _, line in numbered_lines(path))
        rows = (line for line in rows if line)
    else:
        rows = (row for row, _ in read_rows(path)) if layout(path) == 'object' else stream(path, 'item', 'question ids')
    ids = set()
    for number, row in enumerate(rows, 1):
        key = text_of(value_of(row, 'id') if isinstance(row, dict) else row)
        if not key:
            raise DataError(f'--only {path}: number {number}: expected a question id, found {shown(row)}; correct it')
        ids.add(key)
    if not ids:
        raise DataError(f'--only {path}: expected question ids, found none; write one a line')
    return ids


def evaluate(options):
    """Prints the metrics and writes them to --out; returns the exit status."""
    choices = {'choices': options.choices} if options.choices else {}
    for path in filter(None, (options.predictions, options.annotations, options.choices, options.only)):
        if not path.is_file():
            raise FileNotFoundError(f'{path}: no such file; correct the path')
    subset = Subset(read_ids(options.only) if options.only else None, options.only, options.subset)
    figures = {'task': options.task, 'predictions': str(options.predictions), 'annotations': str(options.annotations)}
    figures |= {'only': str(options.only)} if options.only else {}
    figures |= task_class(options.task).evaluate(options.predictions, options.annotations, subset, **choices)
    if subset.ignored:
        figures['notes'].append(f'{subset.ignored:,} predictions for other questions are not scored.')
    print(table(figures))
    if options.out:
        write_text(options.out, json.dumps(figures, indent=2) + '\n')
    return 0


def main(argv=None):
    """Runs the program; returns its exit status."""
    parser = argparse.ArgumentParser(prog='evaluate.bash', epilog=EPILOG,
                                     description='Checks a file of predictions and computes the official metrics.')
    parser.add_argument('task', choices=[task for task in TASKS if task not in WITHOUT])
    parser.add_argument('predictions', type=Path, help='the submission file')
    parser.add_argument('annotations', type=Path, help='the questions with their labels')
    parser.add_argument('--choices', type=Path, help='gqa: the official val_choices.json, for validity and plausibility')
    parser.add_argument('--only', type=Path, metavar='FILE', help='score only these questions: ids, one a line, or a json of '
                        'ids or of questions, such as a file of GQA-OOD')
    parser.add_argument('--subset', action='store_true', help='score only the questions of the annotations, which may lack '
                        'questions that are answered')
    parser.add_argument('--out', type=Path, metavar='FILE', help='write the metrics to this json file')
    options = parser.parse_args(argv)
    if not hasattr(task_class(options.task), 'evaluate'):
        parser.error(f'{options.task}: its Task has no `evaluate`; the test launcher prints the score of a split with labels')
    if options.choices and options.task != 'gqa':
        parser.error(f'--choices is for gqa only, not for {options.task}')
    if options.out and not options.out.parent.is_dir():
        parser.error(f'--out {options.out}: no such folder {options.out.parent}')
    return run_main('evaluate.bash', lambda: evaluate(options))


if __name__ == '__main__':
    sys.exit(main())
