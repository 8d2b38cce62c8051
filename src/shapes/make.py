"""Make the sample world: `python src/shapes/make.py --out data/shapes --images 2000 --seed 9595`."""
import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from shapes import world
from shapes.baselines import baselines
from shapes.questions import SHARES


def main(argv: list[str]) -> None:
    """Make the world that `argv` asks for, unless it is there, and print what is in it."""
    standard = world.Settings()
    parser = argparse.ArgumentParser(prog='shapes/make.py', description='Make the sample world.')
    parser.add_argument('--out', type=Path, default=Path('data/shapes'), help='folder to make')
    parser.add_argument('--images', type=int, default=standard.images, help='pictures of all splits together')
    parser.add_argument('--seed', type=int, default=standard.seed, help='the same seed gives the same bytes')
    parser.add_argument('--questions', type=int, default=standard.questions, help='questions about each picture')
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        settings = world.Settings(options.images, options.seed, options.questions)
        if world.is_made(options.out, settings):
            print(f'{options.out}: already there with the same settings; nothing to do')
            return
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    asked = world.make(options.out, settings)
    print(summary(asked))
    print(f'{options.out}: {settings.images} images in {time.monotonic() - started:.1f} s')


def summary(asked: dict[str, list[dict]]) -> str:
    """A table of the splits, of the kinds of questions and their answers, and the two baselines on minival."""
    lines = [f'{split:10} {len({q["img_id"] for q in items}):6} images {len(items):7} questions'
             for split, items in asked.items()]
    train, minival = asked['train'], asked['minival']
    lines.append(f'{"kind":13} {"share":>6} {"majority":>9} {"text only":>10}   answers in train')
    for kind in (*SHARES, 'all'):
        seen, scored = ([q for q in items if kind in (q['question_type'], 'all')] for items in (train, minival))
        guessed = baselines(train, scored) if scored else {'majority': 0.0, 'text_only': 0.0}
        best = Counter(max(q['label'], key=q['label'].get) for q in seen)
        answers = ' '.join(f'{answer} {count}' for answer, count in best.most_common(8))
        lines.append(f'{kind:13} {100 * len(seen) / len(train):5.1f}% {guessed["majority"]:9.1f} '
                     f'{guessed["text_only"]:10.1f}   {answers}{" ..." if len(best) > 8 else ""}')
    lines.append('majority: always the commonest answer of train; text only: the commonest for the same words')
    return '\n'.join(lines)


if __name__ == '__main__':
    main(sys.argv[1:])
