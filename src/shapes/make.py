"""Makes the sample world: `python src/shapes/make.py --out data/shapes --images 2000 --seed 9595`."""
import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from cli import run_main
from files.atomic import locked
from shapes import expressions, tagged_questions, world
from shapes.baselines import score_table

ADDED = ('entailment', 'refcoco', 'retrieval', 'vcr')  # tasks that worlds of earlier versions lack


def main(argv: list[str]) -> None:
    """Makes the world that `argv` describes, unless it already exists, and prints statistics of it."""
    default = world.Settings()
    parser = argparse.ArgumentParser(
        prog='bash run/shapes.bash', formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Make the sample world: 2,000 pictures in half a minute; 300 do for trying commands, not for learning.')
    parser.add_argument('--out', type=Path, default=argparse.SUPPRESS,
                        help='folder to make (default: data/shapes; with --hard: data/shapes_hard)')
    parser.add_argument('--images', type=int, default=default.images, help='pictures of all splits together')
    parser.add_argument('--seed', type=int, default=default.seed, help='the same seed gives the same bytes')
    parser.add_argument('--questions', type=int, default=default.questions,
                        help='about each picture, of VQA and of GQA; NLVR2: twice as many')
    parser.add_argument('--captions', type=int, default=default.captions, help='for pre-training, about each picture')
    parser.add_argument('--hard', action='store_true',
                        help='more things, nested descriptions, rare words, combinations held out from training')
    options = parser.parse_args(argv)
    if 'out' not in options:
        options.out = Path('data/shapes_hard' if options.hard else 'data/shapes')
    started = time.monotonic()
    try:
        settings = world.Settings(options.images, options.seed, options.questions, options.captions, options.hard)
        with locked(options.out):
            if world.exists(options.out, settings):
                print(f'{options.out}: already there with the same settings; nothing to do')
                for folder, launcher in (('cc', 'vlbert_pretrain'), *((task, f'{task}_finetune') for task in ADDED)):
                    if not (options.out / folder).is_dir():
                        print(f'It was made without data for run/{launcher}.bash; name another --out for a world with them')
                if not (options.out / 'images/gqa').is_file():
                    print('It was made without lists of pictures for models that read pixels; name another --out for a world '
                          'with them')
                return
            annotations = world.make(options.out, settings)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(summary(annotations))
    print(f'{options.out}: {settings.images} images in {time.monotonic() - started:.1f} s')


EVALUATED = {'vqa': 'minival', 'gqa': 'testdev', 'nlvr2': 'valid', 'entailment': 'dev'}  # labelled splits that are not trained on


def summary(annotations: dict[str, dict[str, list[dict]]]) -> str:
    """For each task a table of its splits and of the baselines by kind of question; for pre-training the number of sentences by
    file and source."""
    lines = []
    for task, evaluated in EVALUATED.items():
        for split, items in annotations[task].items():
            images = {item[key] for item in items for key in ('img_id', 'img0', 'img1') if key in item}
            lines.append(f'{task:10} {split:10} {len(images):6} images {len(items):7} sentences')
        lines += [score_table(annotations[task]['train'], annotations[task][evaluated])[0], '']
    parts = annotations['refcoco']
    lines += [f'refcoco {split:9} {len(items):6} expressions' for split, items in parts.items()]
    share = expressions.text_only(parts['train'], parts['val'])
    lines += [f'text only, the mean box of the same words: {share:.1f} % of val', '']
    for split, items in annotations['vcr'].items():
        lines.append(f'vcr        {split:10} {len({item["img_id"] for item in items}):6} images {len(items):7} questions')
    for kind in ('answer', 'rationale'):
        score = tagged_questions.text_only(annotations['vcr']['train'], annotations['vcr']['val'], kind)
        lines.append(f'text only, {kind}s of val: {score:.1f}; by chance 25.0')
    lines.append('')
    for file, images in annotations['lxmert'].items():
        counts = Counter(source for image in images for source, sentences in image['sentf'].items() for _ in sentences)
        lines.append(f'lxmert {file:16} {len(images):6} images {counts.total():7} sentences: '
                     + ', '.join(f'{count} {source}' for source, count in counts.items()))
    lines.append('\nmajority: always the commonest answer of train; text only: the commonest for the same words')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(run_main('shapes.bash', lambda: main(sys.argv[1:])))
