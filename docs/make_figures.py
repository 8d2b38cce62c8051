"""Draws what is in docs/images, with matplotlib only.

The diagram of the model in README.md: `python docs/make_figures.py`. Runs of pre-training side by side, from their logs:
`python docs/make_figures.py "all five=A/log.log" "questions first=B/log.log,C/log.log"`, where C went on from B.
"""

import re
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

LANGUAGE, VISION, CROSS, TASK, PRETRAINING = '#cfe2f3', '#d9ead3', '#fff2cc', '#f4cccc', '#ead1dc'


def box(axes, x, y, width, height, title, lines=(), color='white', edge='#444444'):
    """A rounded box with a bold title above plain lines, all centred; x, y: its lower left corner."""
    axes.add_patch(FancyBboxPatch(
        (x, y), width, height, boxstyle='round,pad=0,rounding_size=0.12', facecolor=color, edgecolor=edge))
    step, middle = 0.27, y + height / 2
    first = middle + step * len(lines) / 2
    axes.text(x + width / 2, first, title, ha='center', va='center', fontsize=10, weight='bold')
    for number, line in enumerate(lines, 1):
        axes.text(x + width / 2, first - step * number, line, ha='center', va='center', fontsize=8.5)


def arrow(axes, start, end, label=''):
    axes.annotate('', end, start, arrowprops={'arrowstyle': '-|>', 'color': '#444444', 'shrinkA': 0, 'shrinkB': 0})
    if label:
        axes.text((start[0] + end[0]) / 2, start[1] + 0.16, label, ha='center', fontsize=8.5, style='italic')


def draw_model():
    """Inputs at the left, the three encoders in the middle, the heads of the tasks at the right."""
    figure = Figure(figsize=(11.6, 4.2))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 16.1), ylim=(0, 5.8))
    axes.axis('off')
    box(axes, 0.1, 4.0, 2.3, 1.6, 'Sentence', ['“Is there a star?”', 'word pieces, positions'], LANGUAGE)
    box(axes, 0.1, 0.8, 2.3, 1.6, 'Image', ['36 regions of a Faster', 'R-CNN: 2,048 features', 'and a box each'], VISION)
    box(axes, 2.75, 4.0, 3.4, 1.6, 'Language encoder', ['9 layers:', 'self-attention, feed-forward'], LANGUAGE)
    box(axes, 2.75, 0.8, 3.4, 1.6, 'Object-relationship encoder', ['5 layers:', 'self-attention, feed-forward'], VISION)
    box(axes, 6.5, 0.8, 3.2, 4.8, '', (), CROSS)
    axes.text(8.1, 5.24, 'Cross-modality encoder', ha='center', va='center', fontsize=10, weight='bold')
    axes.text(8.1, 4.93, '5 layers', ha='center', va='center', fontsize=8.5)
    for y, name, color in ((3.7, 'words', LANGUAGE), (1.0, 'regions', VISION)):
        box(axes, 6.8, y, 2.6, 1.0, name, ['self-attention,', 'feed-forward'], color)
    axes.annotate('', (7.4, 3.7), (7.4, 2.0), arrowprops={'arrowstyle': '<|-|>', 'color': '#444444', 'shrinkA': 0, 'shrinkB': 0})
    axes.text(7.6, 2.85, 'cross-attention,\nshared weights', va='center', fontsize=8.5)
    for y in (4.8, 1.6):
        arrow(axes, (2.4, y), (2.75, y))
        arrow(axes, (6.15, y), (6.5, y))
    box(axes, 12.2, 4.55, 3.8, 1.05, 'Pre-training', ['masked words'], PRETRAINING)
    box(axes, 12.2, 2.35, 3.8, 1.9, 'Tasks', [
        'VQA, GQA: one of N answers', 'NLVR2: two images, true or false', 'NLVR v1: true or false',
        'pre-training: matching, answers'], TASK)
    box(axes, 12.2, 0.8, 3.8, 1.25, 'Pre-training', ['masked features, object classes', 'and attributes'], PRETRAINING)
    arrow(axes, (9.7, 5.07), (12.2, 5.07), 'word states')
    arrow(axes, (9.7, 3.3), (12.2, 3.3), 'pooled [CLS] vector')
    arrow(axes, (9.7, 1.42), (12.2, 1.42), 'region states')
    axes.text(8.05, 0.25, 'hidden size 768, 12 attention heads; 240 million parameters in pre-training', ha='center', fontsize=9)
    return figure


def draw_pretraining(runs):
    """Accuracy of answers and loss of matching in validation, by epoch. runs: {label: paths of the logs of its parts}."""
    figure = Figure(figsize=(9, 3.2), layout='constrained')
    panels = figure.subplots(1, 2)
    for axes, title, pattern in ((panels[0], 'answers, accuracy in validation', r'QA accuracy ([\d.]+)'),
                                 (panels[1], 'matching, loss in validation', r'Matched ([\d.]+)')):
        for label, logs in runs.items():
            lines = [line for log in logs for line in Path(log).read_text().splitlines() if ': Valid loss' in line]
            points = [(epoch, float(found[1])) for epoch, line in enumerate(lines, 1) if (found := re.search(pattern, line))]
            axes.plot(*zip(*points, strict=True), marker='o', markersize=3, label=label)
        axes.set(title=title, xlabel='epoch')
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=len(runs))
    return figure


def main(arguments):
    matplotlib.rcParams.update({'svg.hashsalt': 'model', 'svg.fonttype': 'path'})  # the same bytes, the same font everywhere
    figure, name = draw_model(), 'model'
    if arguments:
        runs = {label: logs.split(',') for label, logs in (argument.split('=') for argument in arguments)}
        figure, name = draw_pretraining(runs), 'pretraining_order'
    figure.savefig(Path(__file__).parent / f'images/{name}.svg', metadata={'Date': None})


if __name__ == '__main__':
    main(sys.argv[1:])
