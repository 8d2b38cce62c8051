"""What an answer, a chosen region or a match rests on: `bash run/show.bash attention`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from bert.tokenization import CLS, MASK, SEP
from explain import drawing
from explain.relevance import relevance
from files.atomic import write_text
from files.json_files import some
from files.text import printable
from heads import Attention
from images.ids import without_ending
from regions import image_regions, readers
from regions.class_names import ClassNames
from tasks import snapshots

TOP = 5  # words and regions that are named
SPECIAL = (CLS, MASK, SEP)  # drawn, but not named among the most relevant
WHOLE_IMAGE = -1  # class of the region that is the image as a whole


@dataclass(frozen=True)
class Explanation:
    """A question answered, an expression's region chosen or a sentence matched, and explained. Its k images, their t words and o
    regions, of which the first is the image as a whole if `whole_image`."""

    question: str
    answer: str  # as of `name_of`
    probability: float
    best: str  # the model's own answer, which `answer` may differ from
    words: list  # the t tokens
    word_relevance: np.ndarray  # (k, t)
    region_relevance: list  # of each image (o,)
    attentions: list  # of heads.Attention; probabilities (k, h, queries, keys), or of layers that read only the text (1, h, t, t)
    whole_image: bool = False
    chosen: int | None = None  # of the o regions, by a model that chooses one

    def cross_layers(self):
        """{layer: {'lang_to_visn': Attention of words to regions, 'visn_to_lang': of regions to words}}; of a layer of a joint
        sequence those parts of its attention, as 'words_to_regions' and 'regions_to_words'."""
        layers, t = {}, len(self.words)
        words, regions = slice(t), slice(t, t + max(map(len, self.region_relevance)))
        for one in self.attentions:
            if one.queries == 'all':
                layers[one.layer] = {
                    'words_to_regions': Attention(one.layer, 'words', 'visual', one.probabilities[:, :, words, regions]),
                    'regions_to_words': Attention(one.layer, 'visual', 'words', one.probabilities[:, :, regions, words])}
            elif one.queries != one.keys:
                layer, _, direction = one.layer.partition('.')
                layers.setdefault(layer, {})[direction] = one
        return layers

    def shown(self, images):
        """The ImageRegions whose regions are those of region_relevance: with the image as a whole where the model reads it."""
        return [with_whole_image(image) for image in images] if self.whole_image else list(images)


def with_whole_image(image):
    """An ImageRegions, for drawing, whose region 0 is the image as a whole, of class WHOLE_IMAGE."""
    first = {'classes': [WHOLE_IMAGE], 'class_conf': [1], 'attributes': [0], 'attribute_conf': [0]}
    arrays = {name: getattr(image, name) for name in first}
    boxes = image_regions.with_whole_image(image.boxes, image.height, image.width)
    return replace(image, features=None, class_probabilities=None, boxes=boxes, **{
        name: np.concatenate([np.array(first[name], array.dtype), array]) for name, array in arrays.items()})


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
    batch, = predictor.batches([tuple(images)], [question])
    place = None if answer is None else torch.tensor([predictor.answers.index(answer)], device=batch['input_ids'].device)
    result = relevance(predictor.head, batch, place)
    place, = result.answers.tolist()
    whole_image = result.image is not None
    of_regions = result.regions if result.image is None else torch.cat([result.image[..., None], result.regions], -1)
    answer, best = (name_of(predictor, i, images, names or ClassNames()) for i in (place, int(result.logits.argmax())))
    return Explanation(
        question, answer, float(predictor.head.probabilities(result.logits)[0, place]), best,
        predictor.tokenizer.convert_ids_to_tokens(batch['input_ids'][0].tolist()),
        result.words[0].cpu().numpy(), [weights[:len(image.boxes) + whole_image] for weights, image in
                                        zip(of_regions[0].cpu().numpy(), images, strict=True)],
        result.attentions, whole_image, place if predictor.output == 'region' else None)


def draw_explanation(explanation, images, photos, names):
    """Yields of each image ({region: '1 red star 57%'} of its TOP most relevant regions, their drawing), with the chosen region.

    Of several images the shares are of the relevance of all, and brightness is relative to the most relevant region of all: which
    of them an answer rests on is half of the explanation. photos: of each a PIL image or None; names: ClassNames.
    """
    every = np.concatenate(explanation.region_relevance)
    total, most = every.sum() or 1, every.max() or 1
    for image, photo, weights in zip(explanation.shown(images), photos, explanation.region_relevance, strict=True):
        texts = {region: f'{rank} {title(image, region, names)} {weights[region] / total:.0%}'
                 for rank, region in enumerate(most_relevant_regions(weights), 1)}
        chosen = explanation.chosen
        label = None if chosen is None else f'chosen: {title(image, chosen, names)} {explanation.probability:.0%}'
        yield texts, drawing.draw_relevance(image, weights / most, texts, photo, label and (chosen, label))


def most_relevant_regions(weights):
    """The TOP regions with the largest relevance, the largest first."""
    return np.argsort(-weights, kind='stable')[:TOP].tolist()


def word_shares(words, weights):
    """The relevance of words (t,) as shares of that of all words; 0 for SPECIAL ones."""
    weights = np.where([word in SPECIAL for word in words], 0, weights)
    return weights / (weights.sum() or 1)


def most_relevant_words(words, weights):
    """The TOP words with the largest relevance, each with its share."""
    shares = word_shares(words, weights)
    return [f'{words[i]} {shares[i]:.0%}' for i in np.argsort(-shares, kind='stable')[:TOP] if words[i] not in SPECIAL]


def title(image, region, names):
    """The detector's attribute and class of a region, without its confidence."""
    if image.classes[region] == WHOLE_IMAGE:
        return 'whole image'
    return drawing.label(image, region, names).rpartition(' ')[0]


def possible_ids(file, name):
    """Image ids that an argument may stand for, the most likely first: of a photograph its name without the ending, its path."""
    if not file.is_file() and file.suffix not in drawing.ENDINGS:
        return [name]
    paths = [Path(*file.parts[i:]).as_posix() for i in reversed(range(len(file.parts)))]
    return [text for path in paths for text in (without_ending(path), path)]


def find_images(path, wanted):
    """(ImageRegions, its photograph or None) of each of `wanted`: files of photographs, whose names or paths are the ids, or ids.
    Raises RegionError for regions or photographs that cannot be read."""
    files = [Path(name) for name in wanted]
    ids = readers.first_known(path, [possible_ids(file, name) for file, name in zip(files, wanted, strict=True)])
    regions = {image.img_id: image for image in readers.chosen(path, list(dict.fromkeys(ids)))}
    photos = [drawing.open_photo(file) if file.is_file() else None for file in files]
    return [(replace(regions[img_id], picture=photo and np.asarray(photo)), photo)
            for img_id, photo in zip(ids, photos, strict=True)]


def choose(flag, wanted, existing):
    """The names of a flag, all existing ones if none is given. Raises ValueError for one that does not exist."""
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
    images, photos = zip(*find_images(flags.features, flags.image), strict=True)
    explanation = explain(predictor, images, flags.question, flags.answer, names)
    cross = explanation.cross_layers()
    layers = choose('layers', flags.layers, list(cross))
    count = explanation.attentions[0].probabilities.shape[1]
    heads = [int(head) for head in choose('heads', flags.heads, [str(i) for i in range(1, count + 1)])]
    flags.out.mkdir(parents=True, exist_ok=True)
    other = '' if explanation.answer == explanation.best else f'; the model answers {explanation.best}'
    arrow = '' if predictor.output == 'answer' else '-> '
    print(printable(f'{explanation.question} {arrow}{explanation.answer} ({explanation.probability:.3f}{other})'))
    for line in predictor.unread(flags.question):
        print(printable(line))
    print(printable(f'words:   {", ".join(most_relevant_words(explanation.words, explanation.word_relevance.sum(0)))}'))
    written = ['attention.json']
    for i, (texts, picture) in enumerate(draw_explanation(explanation, images, photos, names)):
        prefix, which = (f'image{i + 1}_', f'image {i + 1}, ') if k > 1 else ('', '')
        if photos[i] is None:
            print(printable(f'{flags.image[i]}: no such picture; regions are drawn on a blank canvas'))
        print(printable(f'{which}regions: {", ".join(texts.values())}'))
        drawing.save(picture, flags.out / f'{prefix}regions.png')
        order = np.argsort(-explanation.region_relevance[i], kind='stable')
        written += [f'{prefix}{name}.png' for name in ('regions', *layers)]
        for layer in layers:
            to_regions, to_words = (cross[layer][direction].probabilities[i].float().cpu().numpy()[[head - 1 for head in heads]]
                                    for direction in cross[layer])
            about = f'{layer} of "{explanation.question}" {arrow}{explanation.answer}'
            drawing.save(drawing.draw_heads(about, explanation.words, explanation.word_relevance[i], to_regions, to_words, heads,
                                            order), flags.out / f'{prefix}{layer}.png')
    write_text(flags.out / 'attention.json', json.dumps(numbers(explanation, images, names, layers)) + '\n')
    print(f'{flags.out}: {", ".join(written)}')
    return 0


def numbers(explanation, images, names, layers):
    """All of an Explanation for a json, rounded to 6 digits."""
    def attention_of(i, image):
        o = len(image.boxes)
        for layer, directions in explanation.cross_layers().items():
            for direction, one in directions.items() if layer in layers else ():
                weights = one.probabilities[i].float().cpu().numpy()  # (h, queries, keys)
                yield f'{layer}.{direction}', rounded(weights[..., :o] if one.keys == 'visual' else weights[:, :o])

    return {
        'question': explanation.question, 'answer': explanation.answer, 'probability': round(explanation.probability, 6),
        'own answer': explanation.best, **({} if explanation.chosen is None else {'chosen region': explanation.chosen}),
        'words': explanation.words,
        'images': [{
            'img_id': image.img_id, 'relevance of words': rounded(explanation.word_relevance[i]),
            'regions': [{'box': rounded(box), 'name': title(image, region, names),
                         'relevance': rounded(explanation.region_relevance[i][region])}
                        for region, box in enumerate(image.boxes)],
            'attention': dict(attention_of(i, image)),
        } for i, image in enumerate(explanation.shown(images))],
    }


def rounded(array):
    return np.asarray(array, np.float64).round(6).tolist()


def add_arguments(parser):
    """Adds the flags of the subcommand to its parser."""
    def names(text):
        return [part for part in text.split(',') if part]

    parser.add_argument('--load', required=True, metavar='SNAPSHOT', help="a task's snapshot, such as snap/vqa/NAME/BEST")
    parser.add_argument('--image', required=True, nargs='+', metavar='FILE|ID',
                        help='a picture, called by its id, or only the id: then on a blank canvas; of NLVR2 two')
    parser.add_argument('--features', required=True, metavar='X.tsv',
                        help='its regions: a TSV, its zip, or, much faster, a store')
    parser.add_argument('--question', required=True, metavar='TEXT',
                        help='or a statement, an expression that describes a region (RefCOCO), a sentence (retrieval)')
    parser.add_argument('--answer', metavar='TEXT', help="of a model that answers: the answer to explain (its own)")
    parser.add_argument('--out', required=True, type=Path, metavar='FOLDER', help='for the PNGs and attention.json')
    parser.add_argument('--layers', type=names, default=[], metavar='cross1,...', help='layers to draw (all): of LXMERT the '
                        'cross layers cross1, ..., of a model with one stream layer1, ...')
    parser.add_argument('--heads', type=names, default=[], metavar='1,...', help='heads to draw, from 1 (all)')
    parser.add_argument('--names', metavar='DIR', help='folder of objects_vocab.txt and attributes_vocab.txt')
