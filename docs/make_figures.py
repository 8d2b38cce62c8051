"""Draws docs/images/model.svg, the diagram of the model in README.md: `python docs/make_figures.py` (needs matplotlib only)."""

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


def main(folder):
    matplotlib.rcParams.update({'svg.hashsalt': 'model', 'svg.fonttype': 'path'})  # the same bytes, the same font everywhere
    draw_model().savefig(folder / 'model.svg', metadata={'Date': None})


if __name__ == '__main__':
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / 'images')
