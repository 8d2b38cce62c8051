"""Make the sample world: `python src/shapes/make.py --out data/shapes --images 2000 --seed 9595`."""
import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from shapes import world
from shapes.baselines import score_table


def main(argv: list[str]) -> None:
    """Make the world that `argv` asks for, unless it is there, and print what is in it."""
    standard = world.Settings()
    parser = argparse.ArgumentParser(
        prog='bash run/shapes.bash', formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Make the sample world: 2,000 pictures in half a minute; 300 do for trying commands, not for learning.')
    parser.add_argument('--out', type=Path, default=Path('data/shapes'), help='folder to make')
    parser.add_argument('--images', type=int, default=standard.images, help='pictures of all splits together')
    parser.add_argument('--seed', type=int, default=standard.seed, help='the same seed gives the same bytes')
    parser.add_argument('--questions', type=int, default=standard.questions,
                        help='about each picture, of VQA and of GQA; NLVR2: twice as many')
    parser.add_argument('--captions', type=int, default=standard.captions, help='for pre-training, about each picture')
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        settings = world.Settings(options.images, options.seed, options.questions, options.captions)
        if world.is_made(options.out, settings):
            print(f'{options.out}: already there with the same settings; nothing to do')
            return
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))
    asked = world.make(options.out, settings)
    print(summary(asked))
    print(f'{options.out}: {settings.images} images in {time.monotonic() - started:.1f} s')


EVALUATED = {'vqa': 'minival', 'gqa': 'testdev', 'nlvr2': 'valid'}  # the labelled split that nobody trains on


def summary(asked: dict[str, dict[str, list[dict]]]) -> str:
    """For each task a table of its splits, of the kinds of questions, and the two baselines; of pre-training the sentences by
    file and source."""
    lines = []
    for task, evaluated in EVALUATED.items():
        lines += [f'{task:6} {split:10} {pictures(items):6} images {len(items):7} sentences'
                  for split, items in asked[task].items()]
        lines += [score_table(asked[task]['train'], asked[task][evaluated])[0], '']
    for file, images in asked['lxmert'].items():
        counts = Counter(source for image in images for source, sentences in image['sentf'].items() for _ in sentences)
        lines.append(f'lxmert {file:16} {len(images):6} images {counts.total():7} sentences: '
                     + ', '.join(f'{count} {source}' for source, count in counts.items()))
    lines.append('\nmajority: always the commonest answer of train; text only: the commonest for the same words')
    return '\n'.join(lines)


def pictures(items: list[dict]) -> int:
    return len({item[key] for item in items for key in ('img_id', 'img0', 'img1') if key in item})


if __name__ == '__main__':
    main(sys.argv[1:])
