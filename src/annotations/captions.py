"""The batches of pre-training on captions with images and on plain text (arXiv 1908.08530, section 3.3).

A caption is [CLS] pieces [SEP], of at most max_length of the dataset. With its regions, of which the image itself is the first,
it is cut to 64. A text is max_length word pieces without [CLS] and [SEP] (corpus.py). Words are masked as a whole; regions keep
their boxes, and their classes are predicted as probabilities. All rules are those of the original code.
"""

import numpy as np
import torch

from annotations.pretraining import image_limit
from annotations.pretraining_columns import open_columns
from annotations.pretraining_text import CAPTIONS as KIND  # noqa: F401, of a --dataset
from annotations.sentences import NO_LABEL, ImageSentences, choose, open_images
from annotations.split_images import open_split_images
from annotations.split_regions import PROBABILITIES, check_probabilities
from bert.tokenization import SPECIAL_TOKENS
from regions import placement

WORDS, REGIONS, MIRRORED, TEXT_WORDS = range(4)  # independent streams of draws
LIMIT = 64  # word pieces of a caption and regions together, as in the original code; more for a dataset of longer texts


class CaptionDataset(ImageSentences):
    """n captions with their images; dataset[a batches.MicroBatch] is a batch of m of them and, with a corpus, of m texts, drawn
    for the same positions of the epoch:

    examples: m. input_ids, token_type_ids (n, t) int64, captions first, then texts, 0 = padding; pictures (n,) int64: the row of
    its image in the batch, -1 for a text; masked_lm_labels (n, t) int64, -1 = not predicted; words_at (p,) int64: indices in
    (n * t,) of the words that are predicted. visual_attention_mask, masked_regions (m, o) bool: what are regions, and which of
    them the model does not see; regions_at (q,) int64: indices in (m * o,) of the regions that are predicted; in training
    mirrored (m,) bool. `to_device` adds features (m, o, f), boxes (m, o, 4), image_size (m, 2) as `placement.to_device`, and
    region_classes (m, o, classes) float32: the class probabilities of the regions that are predicted, 0 for the others. For a
    model that reads pixels also pixels (m, 3, h, w) float32 and pixel_size (m, 2) as of images.source, region_rows (r,) int64:
    indices in (m * o,) of what are regions; and no features.
    """

    def __init__(self, columns, regions, rows, tokenizer, limit, options, corpus=None):
        """columns, rows: as for ImageSentences; limit: of a caption with its regions; corpus: a Corpus, or None."""
        super().__init__(columns, regions, rows, options)
        self.corpus, self.limit = corpus, limit
        self.vocabulary = len(tokenizer)
        self.pad, self.unknown, self.cls, self.sep, self.mask_id = (tokenizer.vocab[token] for token in SPECIAL_TOKENS)
        self.continues = np.array([piece.startswith('##') and len(piece) > 2 for piece in tokenizer.ids_to_tokens])

    def digest(self):
        files = self.corpus.files if self.corpus else []
        return super().digest(np.array([file.digest for file in files], np.str_))

    def learnable(self):
        """Whether anything is predicted."""
        return self.options.wordMaskRate > 0 or self.options.objMaskRate > 0

    def __getitem__(self, micro_batch):
        rows = self.row[self.image_of(micro_batch.indices)]
        captions = self.read_columns(micro_batch.indices, lambda file, of_file, _: self.columns[file].input_ids[of_file])
        batch = placement.gather_batch(self.regions, rows, micro_batch.static_shape, whole_image=True)
        mask = batch.pop('mask')  # (m, all regions)
        captions, counts = self.cut(captions, mask.sum(1))
        batch |= self.region_labels(micro_batch, rows, mask, counts)
        batch |= self.words(micro_batch, captions)
        if micro_batch.epoch is not None:
            batch['mirrored'] = self.draw(micro_batch, MIRRORED, 1)[:, 0] < 0.5
        if self.images is not None:
            batch['region_rows'] = np.flatnonzero(batch['visual_attention_mask'])
            image_rows = self.image_row[self.image_of(micro_batch.indices)]
            batch |= self.pixels.batch(micro_batch, image_rows[:, None], batch.get('mirrored'))
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array
                   for name, array in batch.items()}
        return {'examples': len(rows), **tensors}

    def cut(self, captions, regions):
        """(captions (m, t), cut; numbers of regions (m,), cut) for captions and regions of which the whole image is one."""
        step = np.arange(captions.shape[1])
        lengths = captions.shape[1] - (captions[:, ::-1] != self.pad).argmax(1)
        captions = np.where((captions == self.pad) & (step < lengths[:, None]), self.unknown, captions)  # [PAD] in a text
        lengths, regions = cut_lengths(lengths, regions, self.limit)
        last = lengths[:, None] - 1
        return np.where(step < last, captions, np.where(step == last, self.sep, self.pad)), regions

    def words(self, micro_batch, captions):
        """The token ids of captions (m, t) and of the texts for their positions, and which are to be predicted."""
        m, parts = len(captions), [self.mask_words(captions, self.draw(micro_batch, WORDS, 2 * captions.shape[1]))]
        if self.corpus:
            place = micro_batch.first + np.arange(m) + len(self) * (micro_batch.epoch or 0)
            texts = self.corpus.samples(self.corpus.order(place, self.options.seed))
            parts.append(self.mask_words(texts, self.draw(micro_batch, TEXT_WORDS, 2 * texts.shape[1])))
        ids, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        t = ids.shape[1] if micro_batch.static_shape else np.flatnonzero((ids != self.pad).any(0))[-1] + 1
        ids, labels = ids[:, :t], labels[:, :t]
        pictures = np.where(np.arange(len(ids)) < m, np.arange(len(ids)), -1)
        return {'input_ids': ids, 'token_type_ids': np.zeros_like(ids), 'pictures': pictures, 'masked_lm_labels': labels,
                'words_at': np.flatnonzero(labels != NO_LABEL)}

    def mask_words(self, ids, draws):
        """(ids, labels), (n, t) each: word pieces with masks. draws (n, 2 t): of a piece, and of what may replace it."""
        real = ~np.isin(ids, (self.pad, self.cls, self.sep))
        first = np.where(self.continues[ids], 0, np.arange(ids.shape[1]))
        of_word = np.take_along_axis(draws[:, ::2], np.maximum.accumulate(first, 1), 1)  # the draw of its word's first piece
        predicted, masked, random = (chosen & real for chosen in choose(of_word, self.options.wordMaskRate))
        pieces = 1 + (draws[:, 1::2] * (self.vocabulary - 1)).astype(np.int64)  # any but [PAD], which is id 0
        return np.where(masked, self.mask_id, np.where(random, pieces, ids)), np.where(predicted, ids, NO_LABEL)

    def region_labels(self, micro_batch, rows, mask, counts):
        """Which regions of m images are predicted and masked. mask (m, all regions): the real ones; counts (m,): those used."""
        limit = max(self.limit - 2, 1)  # a caption has at least [CLS] and [SEP]
        o = min(mask.shape[1], limit) if micro_batch.static_shape else counts.max()
        draws = self.draw(micro_batch, REGIONS, self.regions.max_regions)[:, :mask.shape[1] - 1]
        regions = mask.copy()
        regions[:, 0] = False
        predicted, masked = np.zeros((2, *mask.shape), bool)
        predicted[:, 1:], *unseen = choose(draws, self.options.objMaskRate)
        masked[:, 1:] = np.logical_or(*unseen)  # 90 %: unlike a word, a region is not replaced by another
        used = mask[:, :o] & (np.arange(o) < counts[:, None])
        predicted, kept = predicted[:, :o] & regions[:, :o] & used, regions & ~masked
        probabilities = self.regions.read(rows, (PROBABILITIES,))[PROBABILITIES]  # (m, regions, classes)
        image, region = np.nonzero(predicted)
        return {'visual_attention_mask': used, 'masked_regions': masked[:, :o] & used & regions[:, :o], 'averaged': kept,
                'regions_at': np.flatnonzero(predicted), 'region_labels': probabilities[image, region - 1]}

    def to_device(self, batch):
        """A batch whose tensors are on the device, with features or pixels, boxes and region_classes.

        The feature of the whole image is the mean of the regions that are not masked, among them those that were cut off; it is
        (sum of all - masked) / (number of these + 1e-5) in the original code.
        """
        batch = placement.to_device(self.regions, batch)
        m, o = batch['masked_regions'].shape
        averaged, labels = batch.pop('averaged').float(), batch.pop('region_labels').float()
        if 'features' in batch:
            features = batch['features']  # (m, all regions, f)
            features[:, 0] = torch.bmm(averaged[:, None], features)[:, 0] / (averaged.sum(1, keepdim=True) + 1e-5)
            batch['features'] = features[:, :o].contiguous()
        if self.images is not None:
            batch = self.pixels.to_device(batch)
        classes = labels.new_zeros(m * o, labels.shape[1]).index_copy_(0, batch['regions_at'], labels)
        return batch | {'boxes': batch['boxes'][:, :o].contiguous(), 'region_classes': classes.view(m, o, -1)}


def cut_lengths(words, regions, length):
    """Numbers of word pieces and of regions (m,) each, cut to `length` in all: one by one off the more of the two, off the words
    if there are as many; 2 pieces and 1 region are left."""
    fewest = np.maximum(length // 2, length - regions)
    cut_words = np.minimum(words, np.maximum(fewest, 2))
    return cut_words, np.minimum(regions, np.maximum(length - cut_words, 1))


def load_captions(spec, names, tokenizer, options, device, corpus=None, encoder=None):
    """The CaptionDataset of some splits; what was left out is printed.

    names: the value of --train or --valid; encoder: a heads.Encoder, whose `needs` say whether features or pixels are read; None:
    features. Raises FileNotFoundError, RegionError, DataError or PictureError.
    """
    splits = {name: spec.splits[name] for name in spec.names(names)}
    texts = {name: open_columns(split.annotations, tokenizer, spec.max_length, options.storeRoot, 'captions')
             for name, split in splits.items()}
    columns = list(texts.values())
    images, needs = None, encoder.needs if encoder else {'regions'}
    if 'pixels' in needs:
        wanted = np.concatenate([file.image_ids for file in columns])
        images = open_split_images(list(splits.values()), wanted, names, options)
    regions, rows = open_images(splits.values(), columns, names, image_limit(options), options.storeRoot, images)
    check_probabilities(regions)
    if 'regions' not in needs:
        regions = placement.without_features(regions)
    dataset = CaptionDataset(columns, placement.place(regions, options.featDevice, device), rows, tokenizer,
                             max(LIMIT, spec.max_length), options, corpus)
    if images is not None:
        dataset.read_images(images, encoder)
        if options.featDevice == 'cuda':
            dataset.pixels.keep_on(device)
    dataset.describe(names, texts, tokenizer.vocab_file)
    return dataset
