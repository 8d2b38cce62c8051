"""What a model looks at when it answers a question: `bash run/show.bash attention`."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from explain import drawing, region_drawing
from explain.relevance import relevance
from files.atomic import write_atomically
from files.json_files import some
from regions import readers
from regions.tsv import ImageRegions
from tasks.predictor import Predictor

MOST = 5  # words and regions that are named
SPECIAL = ('[CLS]', '[SEP]')  # drawn, but not named among the most relevant


@dataclass(frozen=True)
class Look:
    """A question answered and explained. Its k images, their t words and o regions."""

    question: str
    answer: str
    probability: float
    best: str  # the model's own answer, of which answer may differ
    words: list  # the t tokens
    of_words: np.ndarray  # (k, t): relevance
    of_regions: list  # of each image (o,)
    attention: dict  # {layer: (k, h, rows, columns), or of language layers (1, h, t, t)}


def look(answerer, images, question, answer=None):
    """The Look of an Answerer's model at a question about k ImageRegions. answer: None: the model's own.

    Raises ValueError for an answer that the model does not know, and what `Answerer.answer` does.
    """
    if answer is not None and answer not in answerer.answers:
        raise ValueError(f'--answer: expected one of the {len(answerer.answers):,} answers of the model '
                         f'({some(answerer.answers)}), found {answer!r}')
    batch, = answerer.batches([tuple(images)], [question])
    place = None if answer is None else torch.tensor([answerer.answers.index(answer)], device=batch['input_ids'].device)
    found = relevance(answerer.head, batch, place)
    place, = found.answers.tolist()
    return Look(
        question, answerer.answers[place], float(answerer.head.probabilities(found.logits)[0, place]),
        answerer.answers[int(found.logits.argmax())], answerer.tokenizer.convert_ids_to_tokens(batch['input_ids'][0].tolist()),
        found.words[0].cpu().numpy(), [of_one[:len(image.boxes)] for of_one, image in
                                       zip(found.regions[0].cpu().numpy(), images, strict=True)],
        {one.layer: one.probabilities.float().cpu().numpy() for one in found.attentions})


def shares(weights):
    """Numbers from 0 up as parts of their sum; 0 of nothing."""
    return weights / (weights.sum() or 1)


def drawings(seen, images, photos, names):
    """Yields of each image ({region: '1 red star 57%'} of its MOST most relevant regions, what drawing.draw_regions makes of it).

    Of several images parts are of the relevance of all, and brightness is beside the most relevant region of all: which of them
    an answer rests on is half of what there is to see. photos: of each a PIL image or None; names: a ClassNames.
    """
    every = np.concatenate(seen.of_regions)
    whole, most = every.sum() or 1, every.max() or 1
    for image, photo, weights in zip(images, photos, seen.of_regions, strict=True):
        order = np.argsort(-weights, kind='stable')[:MOST].tolist()
        texts = {region: f'{rank} {title(image, region, names)} {weights[region] / whole:.0%}'
                 for rank, region in enumerate(order, 1)}
        yield texts, drawing.draw_regions(image, weights / most, texts, photo)


def find_images(path, wanted):
    """(ImageRegions, its photograph or None) of each of `wanted`: files of photographs, whose names without the ending are the
    ids, or ids. Raises RegionError for regions or photographs that cannot be read."""
    files = [Path(name) for name in wanted]
    ids = [file.stem if file.is_file() or file.suffix in region_drawing.ENDINGS else name for file, name in zip(files, wanted, strict=True)]
    regions: dict[str, ImageRegions] = {image.img_id: image for image in readers.chosen(path, list(dict.fromkeys(ids)))}
    return [(regions[img_id], region_drawing.open_photo(file) if file.is_file() else None) for img_id, file in zip(ids, files, strict=True)]


def chosen(what, wanted, there):
    """The names of a flag, all that there are where none is given. Raises ValueError for one that there is not."""
    if unknown := [name for name in wanted if name not in there]:
        raise ValueError(f'--{what}: expected some of {",".join(there)}, found {unknown[0]!r}')
    return wanted or there


def run(flags):
    """Writes the pictures and the numbers, and prints the answer; returns the exit status."""
    answerer = Predictor.from_snapshot(flags.load)
    if len(flags.image) != (k := answerer.images):
        raise ValueError(f'--image: {flags.load} answers about {k} picture{"s" * (k > 1)} at a time, found {len(flags.image)}')
    if not flags.question.strip():
        raise ValueError('--question: expected words, found none')
    config = answerer.head.encoder.config
    layers = chosen('layers', flags.layers, [f'cross{i}' for i in range(1, config.x_layers + 1)])
    heads = [int(head) for head in chosen('heads', flags.heads, [str(i) for i in range(1, config.num_attention_heads + 1)])]
    names = region_drawing.ClassNames(flags.names)
    images, photos = zip(*find_images(flags.features, flags.image), strict=True)
    seen = look(answerer, images, flags.question, flags.answer)
    flags.out.mkdir(parents=True, exist_ok=True)
    other = '' if seen.answer == seen.best else f'; the model answers {seen.best}'
    print(f'{seen.question} {seen.answer} ({seen.probability:.3f}{other})')
    if rest := answerer.truncated(flags.question):
        print(f'too long, not read: {rest}')
    print(f'words:   {", ".join(most_relevant(seen.words, seen.of_words.sum(0)))}')
    written = ['attention.json']
    for i, (texts, picture) in enumerate(drawings(seen, images, photos, names)):
        prefix, which = (f'image{i + 1}_', f'image {i + 1}, ') if k > 1 else ('', '')
        if photos[i] is None:
            print(f'{flags.image[i]}: no such picture; regions are drawn on a blank canvas')
        print(f'{which}regions: {", ".join(texts.values())}')
        drawing.save(picture, flags.out / f'{prefix}regions.png')
        order = np.argsort(-seen.of_regions[i], kind='stable')
        written += [f'{prefix}{name}.png' for name in ('regions', *layers)]
        for layer in layers:
            there, back = (seen.attention[f'{layer}.{way}'][i][[head - 1 for head in heads]]
                           for way in ('lang_to_visn', 'visn_to_lang'))
            about = f'{layer} of "{seen.question}" {seen.answer}'
            drawing.save(drawing.draw_heads(about, seen.words, seen.of_words[i], there, back, heads, order),
                      flags.out / f'{prefix}{layer}.png')
    text = json.dumps(numbers(seen, images, names, layers)) + '\n'
    write_atomically(flags.out / 'attention.json', lambda path: path.write_text(text))
    print(f'{flags.out}: {", ".join(written)}')
    return 0


def title(image, region, names):
    """What the detector says of a region, without its confidence."""
    return region_drawing.label(image, region, names).rpartition(' ')[0]


def most_relevant(words, weights):
    """The MOST words with the largest relevance, each with its share of that of all words that are none of the model's own."""
    own = np.array([word not in SPECIAL for word in words])
    parts = shares(np.where(own, weights, 0))
    return [f'{words[i]} {parts[i]:.0%}' for i in np.argsort(-parts, kind='stable')[:MOST] if own[i]]


def numbers(seen, images, names, layers):
    """All of a Look for a json, rounded to 6 digits."""
    return {
        'question': seen.question, 'answer': seen.answer, 'probability': round(seen.probability, 6), 'own answer': seen.best,
        'words': seen.words,
        'images': [{
            'img_id': image.img_id, 'relevance of words': plain(seen.of_words[i]),
            'regions': [{'box': plain(box), 'name': title(image, region, names), 'relevance': plain(seen.of_regions[i][region])}
                        for region, box in enumerate(image.boxes)],
            'attention': {name: plain(weights[i][..., :len(image.boxes)] if name.endswith('lang_to_visn')
                                      else weights[i][:, :len(image.boxes)])
                          for name, weights in seen.attention.items()
                          if name.partition('.')[0] in layers and name.endswith(('lang_to_visn', 'visn_to_lang'))},
        } for i, image in enumerate(images)],
    }


def plain(array):
    return np.asarray(array, np.float64).round(6).tolist()


def add_arguments(made):
    """Adds the flags of the subcommand to its parser."""
    def listed(text):
        return [part for part in text.split(',') if part]

    made.add_argument('--load', required=True, metavar='SNAPSHOT', help="a task's snapshot, such as snap/vqa/NAME/BEST")
    made.add_argument('--image', required=True, nargs='+', metavar='FILE|ID',
                      help='a picture, called by its id, or only the id: then on a blank canvas; of NLVR2 two')
    made.add_argument('--features', required=True, metavar='X.tsv', help='its regions: a TSV, its zip, or, much faster, a store')
    made.add_argument('--question', required=True, metavar='TEXT', help='or a statement')
    made.add_argument('--answer', metavar='TEXT', help="the answer to explain (the model's own)")
    made.add_argument('--out', required=True, type=Path, metavar='FOLDER', help='of the PNGs and attention.json')
    made.add_argument('--layers', type=listed, default=[], metavar='cross1,...', help='cross layers to draw (all)')
    made.add_argument('--heads', type=listed, default=[], metavar='1,...', help='heads to draw, from 1 (all)')
    made.add_argument('--names', metavar='DIR', help='folder of objects_vocab.txt and attributes_vocab.txt')
