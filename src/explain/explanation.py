"""A prediction and what it rests on: words, and regions or patches of images, as numbers and as drawings."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bert.tokenization import CLS, MASK, SEP
from explain import drawing
from heads import Attention
from regions import image_regions

TOP = 5  # words and regions that are named
SPECIAL = (CLS, MASK, SEP)  # drawn, but not named among the most relevant
WHOLE_IMAGE = -1  # class of the region that is the image as a whole


@dataclass(frozen=True)
class Explanation:
    """A question answered, an expression's region chosen or a sentence matched, and explained. Its k images and t words."""

    question: str
    answer: str  # as of explain.attention.name_of
    probability: float
    best: str  # the model's own answer, which `answer` may differ from
    words: list  # the t tokens
    word_relevance: np.ndarray  # (k, t)
    chosen: int | None  # of the regions, by a model that chooses one

    shown = ''  # what is drawn of an image, which names the file
    heads = 0  # attention heads of the figures; 0: these are means over heads

    @property
    def layers(self) -> list:
        """The names of the layers that figures and numbers can be of."""
        raise NotImplementedError

    def draw(self, images, photos, names) -> Iterator:
        """Yields of each image ({region: '1 red star 57%'} of its TOP most relevant regions, its drawing), with the chosen
        region.

        Of several images the shares are of the relevance of all, and brightness is relative to the most relevant place of all:
        which of them an answer rests on is half of the explanation. images: their ImageRegions; photos: of each a PIL image or
        None; names: ClassNames.
        """
        raise NotImplementedError

    def figures(self, i, photo, layers, heads, about) -> Iterator:
        """Yields (layer, figure) of the image i and its photo. heads: their numbers, from 1; about: what is explained."""
        raise NotImplementedError

    def numbers(self, i, image, names, layers) -> dict:
        """What a json tells of the image i, whose ImageRegions are given, rounded to 6 digits."""
        raise NotImplementedError

    def areas(self, i, image, names, size) -> list:
        """[(opacity (height, width), 0 to 1, text)] to lay over the image i in the size (width, height)."""
        raise NotImplementedError

    def chosen_label(self, image, names):
        """(region, label) of the chosen region, or None."""
        return None if self.chosen is None else (self.chosen,
                                                 f'chosen: {title(image, self.chosen, names)} {self.probability:.0%}')


@dataclass(frozen=True)
class RegionExplanation(Explanation):
    """Of a model that reads regions: of each image o, the first of which is the image as a whole if `whole_image`."""

    region_relevance: list  # of each image (o,)
    attentions: list  # of heads.Attention; probabilities (k, h, queries, keys), or of layers that read only the text (1, h, t, t)
    whole_image: bool = False

    shown = 'regions'

    @property
    def heads(self):
        return self.attentions[0].probabilities.shape[1]

    @property
    def layers(self):
        return list(self.cross_layers())

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

    def complete(self, image):
        """The ImageRegions whose regions are those of region_relevance: with the image as a whole where the model reads it."""
        return with_whole_image(image) if self.whole_image else image

    def named(self, i, image, names):
        """{region: '1 red star 57%'} of the TOP most relevant regions of image i, whose `complete` ImageRegions are given."""
        weights, total = self.region_relevance[i], np.concatenate(self.region_relevance).sum() or 1
        return {region: f'{rank} {title(image, region, names)} {weights[region] / total:.0%}'
                for rank, region in enumerate(most_relevant_regions(weights), 1)}

    def strength(self, i):
        """The relevance of the regions of image i (o,), 1 for the most relevant one of all images."""
        return self.region_relevance[i] / (np.concatenate(self.region_relevance).max() or 1)

    def draw(self, images, photos, names):
        for i, (image, photo) in enumerate(zip(map(self.complete, images), photos, strict=True)):
            texts = self.named(i, image, names)
            yield texts, drawing.draw_relevance(image, self.strength(i), texts, photo, self.chosen_label(image, names))

    def figures(self, i, photo, layers, heads, about):
        cross, order = self.cross_layers(), np.argsort(-self.region_relevance[i], kind='stable')
        for layer in layers:
            to_regions, to_words = (cross[layer][direction].probabilities[i].float().cpu().numpy()[[head - 1 for head in heads]]
                                    for direction in cross[layer])
            yield layer, drawing.draw_heads(f'{layer} of {about}', self.words, self.word_relevance[i], to_regions, to_words,
                                            heads, order)

    def numbers(self, i, image, names, layers):
        def attention(o):
            for layer, directions in self.cross_layers().items():
                for direction, one in directions.items() if layer in layers else ():
                    weights = one.probabilities[i].float().cpu().numpy()  # (h, queries, keys)
                    yield f'{layer}.{direction}', rounded(weights[..., :o] if one.keys == 'visual' else weights[:, :o])

        image = self.complete(image)
        return {'regions': [{'box': rounded(box), 'name': title(image, region, names),
                             'relevance': rounded(self.region_relevance[i][region])} for region, box in enumerate(image.boxes)],
                'attention': dict(attention(len(image.boxes)))}

    def areas(self, i, image, names, size):
        image, strength = self.complete(image), self.strength(i)
        return [(drawing.region_opacity(image, region, strength[region], size), text)
                for region, text in self.named(i, image, names).items()]


@dataclass(frozen=True)
class MapExplanation(Explanation):
    """Of a model that reads images by patches: maps of the words over them."""

    maps: dict  # {layer: (k, t, rows, columns)}
    layer: str  # whose maps explain the prediction

    shown = 'patches'

    @property
    def layers(self):
        return list(self.maps)

    def strength(self, i):
        """The map of all words over image i (rows, columns), 0 and 1 for the least and most relevant patch of all images."""
        return drawing.scaled(self.maps[self.layer].sum(1))[i]

    def draw(self, images, photos, names):
        for i, (image, photo) in enumerate(zip(images, photos, strict=True)):
            yield {}, drawing.draw_map(image, self.strength(i), photo, self.chosen_label(image, names))

    def figures(self, i, photo, layers, heads, about):
        for layer in layers:
            maps = self.maps[layer]
            total, of_words = maps.sum() or 1, maps[i].sum((1, 2))
            panels = [('', None), ('all words', maps[i].sum(0)), *((f'{word} {weight / total:.0%}', one) for word, weight, one in
                                                       zip(self.words, of_words, maps[i], strict=True))]
            yield layer, drawing.draw_panels(f'{layer} of {about}', photo, panels)

    def numbers(self, i, image, names, layers):
        return {'maps of words': {layer: rounded(self.maps[layer][i]) for layer in layers}}

    def areas(self, i, image, names, size):
        return [(drawing.resized(self.strength(i), size), 'relevant patches')]


def with_whole_image(image):
    """An ImageRegions, for drawing, whose region 0 is the image as a whole, of class WHOLE_IMAGE."""
    first = {'classes': [WHOLE_IMAGE], 'class_conf': [1], 'attributes': [0], 'attribute_conf': [0]}
    arrays = {name: getattr(image, name) for name in first}
    boxes = image_regions.with_whole_image(image.boxes, image.height, image.width)
    return replace(image, features=None, class_probabilities=None, boxes=boxes, **{
        name: np.concatenate([np.array(first[name], array.dtype), array]) for name, array in arrays.items()})


def title(image, region, names):
    """The detector's attribute and class of a region, without its confidence."""
    if image.classes[region] == WHOLE_IMAGE:
        return 'whole image'
    return drawing.label(image, region, names).rpartition(' ')[0]


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


def rounded(array):
    return np.asarray(array, np.float64).round(6).tolist()
