"""What an answer, a chosen region or a match rests on: `bash run/show.bash attention`."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from explain import drawing
from explain.explanation import MapExplanation, RegionExplanation, most_relevant_words, rounded, title, with_whole_image
from explain.relevance import relevance
from files.atomic import write_text
from files.json_files import some
from files.text import printable
from images.ids import without_ending
from regions import readers
from regions.class_names import ClassNames
from regions.image_regions import ImageRegions
from tasks import snapshots


def name_of(predictor, place, images, names):
    """What a model predicts for k ImageRegions, as text: the answer at a place in its logits; of a Grounder the name and box of
    the region at that place; of a Matcher that they match."""
    if predictor.output == 'region':
        image, = images
        image = with_whole_image(image) if 'whole' in predictor.head.encoder.needs else image
        return f'{title(image, place, names)} [{", ".join(f"{side:.0f}" for side in image.boxes[place])}]'
    return 'match' if predictor.output == 'match' else predictor.answers[place]


def explain(predictor, images, question, answer=None, names=None):
    """The Explanation of what a Predictor, Grounder or Matcher predicts for a question about k ImageRegions. answer: of a
    Predictor, None: the model's own; names: ClassNames, None: regions have numbers.

    Raises ValueError for an answer that the model does not know, and what `Predictor.answer` does.
    """
    if answer is not None and predictor.output != 'answer':
        raise ValueError(f'--answer: expected only with a model that answers questions, found {answer!r}; leave it out')
    if answer is not None and answer not in predictor.answers:
        raise ValueError(f'--answer: expected one of the {len(predictor.answers):,} answers of the model '
                         f'({some(predictor.answers)}), found {answer!r}')
    head, (batch,) = predictor.head, predictor.batches([tuple(images)], [question])
    place = None if answer is None else torch.tensor([predictor.answers.index(answer)], device=batch['input_ids'].device)
    by_maps, names = head.map_layer is not None, names or ClassNames()
    if by_maps:
        logits, place, maps = head.word_maps(batch, place)
    else:
        result = relevance(head, batch, place)
        logits, place = result.logits, result.answers
    place, = place.tolist()
    if logits[0, place] == -math.inf:
        raise ValueError(f'--answer: expected one of the likeliest answers, which alone the model scores, found {answer!r}; name '
                         'another')
    answer, best = (name_of(predictor, i, images, names) for i in (place, int(logits.argmax())))
    words = predictor.tokenizer.convert_ids_to_tokens(batch['input_ids'][0].tolist())
    about = question, answer, float(head.probabilities(logits)[0, place]), best, words
    chosen = place if predictor.output == 'region' else None
    if by_maps:
        maps = {layer: of_layer[0].cpu().numpy() for layer, of_layer in maps.items()}
        return MapExplanation(*about, maps[head.map_layer].sum((2, 3)), chosen, maps, head.map_layer)
    whole_image = result.image is not None
    of_regions = torch.cat([result.image[..., None], result.regions], -1) if whole_image else result.regions
    region_relevance = [weights[:len(image.boxes) + whole_image] for weights, image in
                        zip(of_regions[0].cpu().numpy(), images, strict=True)]
    return RegionExplanation(*about, result.words[0].cpu().numpy(), chosen, region_relevance, result.attentions, whole_image)


def possible_ids(file, name):
    """Image ids that an argument may stand for, the most likely first: of a photograph its name without the ending, its path."""
    if not file.is_file() and file.suffix not in drawing.ENDINGS:
        return [name]
    paths = [Path(*file.parts[i:]).as_posix() for i in reversed(range(len(file.parts)))]
    return [text for path in paths for text in (without_ending(path), path)]


def find_images(predictor, path, wanted):
    """(ImageRegions, its photograph or None) of each of `wanted`: files of photographs, whose names or paths are the ids, or ids
    of a file of regions. Raises ValueError for what the model does not read or lacks, RegionError for regions or photographs that
    cannot be read."""
    files = [Path(name) for name in wanted]
    if 'pixels' in predictor.needs and (missing := [file for file in files if not file.is_file()]):
        raise ValueError(f'--image {missing[0]}: expected a file of the picture, which this model reads, found none; correct its '
                         'name')
    if predictor.needs_regions != bool(path):
        raise ValueError('--features: expected the file of the regions of the pictures, found none; add it' if not path else
                         f'--features: expected none, since the model reads whole pictures, found {path}; leave it out')
    photos = [drawing.open_photo(file) if file.is_file() else None for file in files]
    if not path:
        return [(ImageRegions.without_regions(file.stem, photo.height, photo.width, np.asarray(photo)), photo)
                for file, photo in zip(files, photos, strict=True)]
    ids = readers.first_known(path, [possible_ids(file, name) for file, name in zip(files, wanted, strict=True)])
    regions = {image.img_id: image for image in readers.chosen(path, list(dict.fromkeys(ids)))}
    return [(replace(regions[img_id], picture=photo and np.asarray(photo)), photo)
            for img_id, photo in zip(ids, photos, strict=True)]


def choose(flag, wanted, existing):
    """The names of a flag, all existing ones if none is given. Raises ValueError for one that does not exist."""
    if wanted and not existing:
        raise ValueError(f'--{flag}: expected none with this model, whose maps are means over heads, found {wanted[0]}; leave it '
                         'out')
    if unknown := [name for name in wanted if name not in existing]:
        raise ValueError(f'--{flag}: expected some of {",".join(existing)}, found {unknown[0]!r}')
    return wanted or existing


def run(flags):
    """Writes the drawings and the numbers, and prints the answer; returns the exit status."""
    predictor = snapshots.load(flags.load)
    k = predictor.images
    if len(flags.image) != k:
        raise ValueError(f'--image: {flags.load} answers about {k} picture{"s" * (k > 1)} at a time, found {len(flags.image)}')
    if not flags.question.strip():
        raise ValueError('--question: expected words, found none')
    names = ClassNames(flags.names)
    images, photos = zip(*find_images(predictor, flags.features, flags.image), strict=True)
    explanation = explain(predictor, images, flags.question, flags.answer, names)
    layers = choose('layers', flags.layers, explanation.layers)
    heads = [int(head) for head in choose('heads', flags.heads, [str(i) for i in range(1, explanation.heads + 1)])]
    flags.out.mkdir(parents=True, exist_ok=True)
    other = '' if explanation.answer == explanation.best else f'; the model answers {explanation.best}'
    arrow = '' if predictor.output == 'answer' else '-> '
    print(printable(f'{explanation.question} {arrow}{explanation.answer} ({explanation.probability:.3f}{other})'))
    for line in predictor.unread(flags.question):
        print(printable(line))
    print(printable(f'words:   {", ".join(most_relevant_words(explanation.words, explanation.word_relevance.sum(0)))}'))
    written = ['attention.json']
    for i, (texts, picture) in enumerate(explanation.draw(images, photos, names)):
        prefix, which = (f'image{i + 1}_', f'image {i + 1}, ') if k > 1 else ('', '')
        if photos[i] is None:
            print(printable(f'{flags.image[i]}: no such picture; regions are drawn on a blank canvas'))
        if texts:
            print(printable(f'{which}regions: {", ".join(texts.values())}'))
        about = f'"{explanation.question}" {arrow}{explanation.answer}'
        figures = explanation.figures(i, photos[i], layers, heads, about)
        for name, figure in ((explanation.shown, picture), *figures):
            drawing.save(figure, flags.out / f'{prefix}{name}.png')
            written.append(f'{prefix}{name}.png')
    write_text(flags.out / 'attention.json', json.dumps(numbers(explanation, images, names, layers)) + '\n')
    print(f'{flags.out}: {", ".join(written)}')
    return 0


def numbers(explanation, images, names, layers):
    """All of an Explanation for a json, rounded to 6 digits."""
    return {
        'question': explanation.question, 'answer': explanation.answer, 'probability': round(explanation.probability, 6),
        'own answer': explanation.best, **({} if explanation.chosen is None else {'chosen region': explanation.chosen}),
        'words': explanation.words,
        'images': [{'img_id': image.img_id, 'relevance of words': rounded(explanation.word_relevance[i]),
                    **explanation.numbers(i, image, names, layers)} for i, image in enumerate(images)],
    }


def add_arguments(parser):
    """Adds the flags of the subcommand to its parser."""
    def names(text):
        return [part for part in text.split(',') if part]

    parser.add_argument('--load', required=True, metavar='SNAPSHOT', help="a task's snapshot, such as snap/vqa/NAME/BEST")
    parser.add_argument('--image', required=True, nargs='+', metavar='FILE|ID',
                        help='a picture, called by its id, or, of a model that reads only regions, the id: then on a blank '
                        'canvas; of NLVR2 two')
    parser.add_argument('--features', metavar='X.tsv',
                        help='its regions: a TSV, its zip, or, much faster, a store; not with a model that reads whole pictures')
    parser.add_argument('--question', required=True, metavar='TEXT',
                        help='or a statement, an expression that describes a region (RefCOCO), a sentence (retrieval)')
    parser.add_argument('--answer', metavar='TEXT', help="of a model that answers: the answer to explain (its own)")
    parser.add_argument('--out', required=True, type=Path, metavar='FOLDER', help='for the PNGs and attention.json')
    parser.add_argument('--layers', type=names, default=[], metavar='cross1,...', help='layers to draw (all): of LXMERT the '
                        'cross layers cross1, ..., of a model with one stream layer1, ..., of a model that reads patches those '
                        'that attend to them, such as text8')
    parser.add_argument('--heads', type=names, default=[], metavar='1,...', help='heads to draw, from 1 (all); maps over '
                        'patches are means over heads')
    parser.add_argument('--names', metavar='DIR', help='folder of objects_vocab.txt and attributes_vocab.txt')
