"""Predictions read against the baselines: `python src/shapes/report.py data/shapes snap/vqa/NAME/minival_predict.json`."""
import argparse
import json
import sys
from pathlib import Path

from shapes.baselines import baselines
from shapes.questions import SHARES


def report(train: list[dict], scored: list[dict], predictions: list[dict]) -> tuple[str, float, float]:
    """Scores of `predictions` ([{'question_id', 'answer'}]) on the questions `scored`, by kind.

    Returns:
        (a table, the score, the better baseline's), both in per cent.
    """
    answer = {one['question_id']: one['answer'] for one in predictions}
    if lacking := [question['question_id'] for question in scored if question['question_id'] not in answer]:
        raise ValueError(f'expected a prediction for each question of minival, {len(lacking)} lack one, such as {lacking[0]}')
    lines = [f'{"kind":13} {"share":>6} {"majority":>9} {"text only":>10} {"score":>6}']
    for kind in (*SHARES, 'all'):
        asked = [question for question in scored if kind in (question['question_type'], 'all')]
        if not asked:
            continue
        guessed = baselines(train, asked)
        score = 100 * sum(q['label'].get(answer[q['question_id']], 0.0) for q in asked) / len(asked)
        lines.append(f'{kind:13} {100 * len(asked) / len(scored):5.1f}% {guessed["majority"]:9.1f} '
                     f'{guessed["text_only"]:10.1f} {score:6.1f}')
    return '\n'.join(lines), score, max(guessed.values())


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='shapes/report.py', description=__doc__.splitlines()[0].split(':')[0] + '.')
    parser.add_argument('world', type=Path, help='folder of the sample world')
    parser.add_argument('predictions', type=Path, help='a minival_predict.json')
    options = parser.parse_args(argv)
    files = [options.world / 'vqa' / f'{split}.json' for split in ('train', 'nominival', 'minival')] + [options.predictions]
    for file in files:
        if not file.is_file():
            parser.error(f'{file}: no such file')
    train, nominival, minival, predictions = (json.loads(file.read_text()) for file in files)
    try:
        table, score, baseline = report(train + nominival, minival, predictions)
    except ValueError as error:
        parser.error(f'{options.predictions}: {error}')
    print(f'{table}\n\nScore {score:.1f}, the better baseline {baseline:.1f}: {score - baseline:+.1f} points.')


if __name__ == '__main__':
    main(sys.argv[1:])
