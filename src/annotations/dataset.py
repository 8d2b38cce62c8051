"""Datasets: from examples, regions and images on disk to batches. Text is tokenised once; a batch is an indexing of columns."""

import hashlib

import numpy as np
import torch

from annotations import tagged_texts
from annotations.mirroring import Mirroring
from annotations.object_masks import unpacked
from annotations.split_images import MASKS, Pixels, check_sizes, given_regions, open_split_images
from annotations.split_regions import open_regions, warn_duplicate_images
from bert.tokenization import TextStatistics
from dist import print0
from files.json_files import DataError, some
from heads import overlaps
from regions import placement
from regions.image_regions import ImageRegions, with_whole_image
from regions.readers import id_difference

LABELS = ('label_example', 'label_answer', 'label_score')
TARGET_OVERLAP = 0.5  # intersection over union above which a region is labelled as the target box, from which it is right


class ExampleDataset(torch.utils.data.Dataset):
    """n examples with c texts and k images each, as columns; dataset[a batches.MicroBatch] is a batch of b of them:

    examples: b. input_ids (b * c, t) int64, 0 at padding, cut to the longest text unless the shape is static, and what else the
    encoder's `write` returns. features (b * k, o, f) and boxes (b * k, o, 4) float32, scaled to 0..1, or, of regions on the GPU,
    places (b * k, o) int64, from which `to_device` makes them; visual_attention_mask (b * k, o) bool, only where numbers of
    regions differ; with the whole image as region 0 (Encoder.needs) also image_size (b * k, 2) int64, height and width in pixels;
    mirrored (b * k,) bool in training, if the encoder asks for it. Only where the examples have labels, by the task's output:
    'answer': label_example, label_answer int64 and label_score float32, each (l,): answer label_answer of example label_example
    (0 to b - 1) has this soft score; 'choice': choice (b,) int64; 'region': target_box (b, 4) float32 scaled to 0..1 and
    target_size (b, 2) int64, height and width of the image, which `to_device` turns into region_target (b, o) float32, 1 for
    regions that overlap the box by more than half (Encoder.region_overlaps); 'match' and 'region': image_id (b,) int64, the row
    of the image. Of texts whose words name regions also word_regions (b * c, t) int64, 0 for none, if the encoder needs them,
    and, where the examples have them, region_labels (b, o) int64, the class of each region, -1 at padding.

    For an encoder that needs pixels: pixels (b * k, 3, h, w) uint8, which `to_device` normalises to float32, pixel_size and
    image_size (b * k, 2) int64, as in images.source, mirrored where `mirrored` is True; features only if it needs 'regions' too,
    boxes and all that belongs to regions only if it needs 'regions' or 'boxes'. With boxes, of texts whose words name regions
    also masks (b * k, o, 14, 14) float32, 0 and 1, of the objects, 1 everywhere for the image as a whole, 0 at padding; where
    there is a visual_attention_mask, region_rows (r,) int64, the places in it, flattened, of what is no padding.
    """

    def __init__(self, examples, regions, rows, encoder, answers, max_length, seed=0, images=None):
        """examples: an Examples; regions: a store, or None; rows (n, k): each image's row there, without regions that in the
        images, or -1 for one that is lacking; encoder: a heads.Encoder, which writes the texts; seed: of the random draws of
        training; images: an images.source.ImageSource, where the encoder needs pixels."""
        self.examples, self.regions, self.rows, self.answers = examples, regions, rows, answers
        self.images, self.one_orientation = images, images is not None and encoder.one_orientation
        if images is not None:
            self.image_rows = rows if regions is None else np.where(rows >= 0, rows_of(images, examples.images), -1)
            self.pixels = Pixels(images, self.image_rows, encoder, seed)
        self.whole_image = 'whole' in encoder.needs
        self.columns = (MASKS,) if regions is not None and images is not None and regions.size_of(MASKS) else ()
        self.region_overlaps = encoder.region_overlaps if examples.schema.box else None
        if isinstance(examples.schema, tagged_texts.TaggedSchema):
            self.text = self.write_tagged(encoder, max_length)
        else:
            used, self.sentence = np.unique(examples.sentence, return_inverse=True)
            self.sentence = self.sentence.reshape(examples.sentence.shape).astype(np.int32)
            texts = [examples.sentences[place] for place in used]
            texts = [(text,) if isinstance(text, str) else text for text in texts]
            self.text = encoder.write(texts, max_length, blank=encoder.blank and examples.schema.output == 'answer')
        self.mirroring = Mirroring(encoder.mirror, getattr(encoder, 'tokenizer', None), answers, seed)
        examples.sentences = ()  # a third of the memory of millions of questions
        self.counts, self.max_length = self.text.pop('counts', None), max_length
        self.vocabulary = getattr(getattr(encoder, 'tokenizer', None), 'vocab_file', '')
        self.input_ids = self.text['input_ids']
        self.lengths = ((self.input_ids != 0) * np.arange(1, self.input_ids.shape[1] + 1)).max(1)
        self.label_start = np.searchsorted(examples.label_example, np.arange(len(self) + 1))

    def write_tagged(self, encoder, max_length):
        """The text of examples with a TaggedSchema. A choice is cut together with the others of its example, so that texts are
        not shared. Raises DataError if a word names a region that its image lacks."""
        examples, (n, choices) = self.examples, self.examples.sentence.shape
        texts = [examples.sentences[place] for place in examples.sentence.ravel().tolist()]
        uncut = examples.schema.rationale and not examples.labelled  # of a split for submission, as in the original code
        text = tagged_texts.encode(encoder.tokenizer, texts, choices,
                                   encoder.config.max_text_length() if uncut else max_length, not uncut)
        self.sentence = np.arange(n * choices, dtype=np.int32).reshape(n, choices)
        if 'word_regions' not in encoder.needs:
            del text['word_regions']
            return text
        named = text['word_regions'].max(1).reshape(n, choices).max(1)  # (n,)
        rows = self.rows[:, 0]
        known, counts = rows >= 0, self.regions.region_counts(np.maximum(rows, 0))
        if (wrong := np.flatnonzero(known & (named > counts))).size:
            place = wrong[0]
            raise DataError(f'image {examples.images[place, 0].decode()}: example {examples.names([place])[0]} names object '
                            f'{named[place] - 1} (counted from 0), but {self.regions.name} has {counts[place]} regions of it; '
                            'extract regions for the boxes of the annotations: bash run/extract.bash --boxes FILE')
        text['word_regions'][np.repeat(~known, choices)] = 0
        return text

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, micro_batch):
        indices, static_shape = micro_batch.indices, micro_batch.static_shape
        sentence, rows = self.sentence[indices].ravel(), self.rows[indices]
        length = self.input_ids.shape[1] if static_shape else self.lengths[sentence].max()
        batch = {name: column[sentence, :length].astype(np.int64) if column.ndim > 1 else column[sentence]
                 for name, column in self.text.items()}
        if self.regions is not None:
            batch |= placement.gather_batch(self.regions, rows.ravel(), static_shape, self.columns, self.whole_image)
            mask = batch.pop('mask')
            if not mask.all():
                batch['visual_attention_mask'] = mask.astype(bool)
                if self.images is not None:
                    batch['region_rows'] = np.flatnonzero(mask)
            if self.examples.classes is not None and self.whole_image:
                batch['region_labels'] = self.region_classes(indices, mask)
        if self.examples.labelled:
            batch |= self.labels(indices)
        if (mirrored := self.mirroring.draw(micro_batch)) is not None:
            batch['mirrored'] = np.repeat(mirrored, rows.shape[1])
        if self.images is not None:
            batch |= self.pixels.batch(micro_batch, self.image_rows[indices], batch.get('mirrored'))
        if MASKS in batch:
            batch[MASKS] = self.masks(batch[MASKS], rows.ravel(), batch.get('mirrored'))
        if mirrored is not None and self.mirroring.words:
            batch['input_ids'] = self.mirroring.texts(batch['input_ids'], np.repeat(mirrored, self.sentence[0].size))
            if 'label_answer' in batch:
                batch |= self.mirroring.labels({name: batch[name] for name in LABELS}, mirrored)
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) if isinstance(array, np.ndarray) else array
                   for name, array in batch.items()}
        return {'examples': len(indices), **tensors}

    def masks(self, packed, rows, mirrored):
        """The masks of a batch, (b * k, o, 14, 14), from those of `regions`; rows, mirrored: (b * k,) or None."""
        masks = unpacked(packed)
        masks[rows >= 0, :int(self.whole_image)] = 1
        if mirrored is not None:
            masks[mirrored] = masks[mirrored][..., ::-1]
        return masks

    def groups(self):
        """Whether the image of each example is upright, (n,) bool, if the encoder needs steps of one orientation; else None."""
        if not self.one_orientation:
            return None
        height, width = self.images.image_sizes(self.image_rows[:, 0]).T
        return height > width

    def to_device(self, batch):
        """A batch whose tensors are on the device, with features and boxes of regions that are kept there, and float32 pixels."""
        if self.regions is not None:
            batch = placement.to_device(self.regions, batch)
        if self.images is not None:
            batch = self.pixels.to_device(batch)
        if 'target_box' in batch and 'boxes' not in batch:
            del batch['target_box'], batch['target_size']
        if 'target_box' in batch:
            # Mirroring changes no overlap, so that boxes and target are compared as they are in the image.
            overlap = self.region_overlaps(batch['boxes'], batch.pop('target_box'), batch.pop('target_size'))
            batch['region_target'] = (overlap > TARGET_OVERLAP).float()
        return batch

    def text_statistics(self, rows=slice(None)):
        """The TextStatistics of some examples, or None if the encoder does not count."""
        if self.counts is None:
            return None
        times = np.bincount(self.sentence[rows].ravel(), minlength=len(self.counts))
        return TextStatistics(self.max_length).add(self.counts, times)

    def text_report(self, rows, name):
        """Prints the statistics of the text of some examples, of a split or file `name`, and warnings."""
        if statistics := self.text_statistics(rows):
            print0(*statistics.lines(name, self.vocabulary))

    def digest(self):
        """Tells whether two datasets hold the same texts, labels and image ids."""
        digest, examples = hashlib.sha256(), self.examples
        columns = [self.input_ids, self.sentence, examples.images, self.rows >= 0, examples.label_example, examples.label_answer,
                   examples.label_score, examples.choice, examples.boxes]
        for column in columns:
            if column is not None:
                digest.update(np.ascontiguousarray(column))
        return digest.hexdigest()

    def used_rows(self):
        """The rows of the images, each once, in `regions` or, without these, in `images`."""
        return np.unique(self.rows[self.rows >= 0])

    def image(self, row):
        """The ImageRegions of one of `used_rows`."""
        if self.regions is not None:
            return self.regions.image(row)
        return ImageRegions.without_regions(self.images.ids[row].decode(), *self.images.image_sizes(row).tolist())

    def nonfinite_images(self, indices):
        """Ids of images of some examples whose features are not finite."""
        return [] if self.regions is None else self.regions.nonfinite(self.rows[indices])

    def labels(self, indices):
        """The labels of some examples, as in a batch."""
        examples = self.examples
        if examples.choice is not None:
            return {'choice': examples.choice[indices]}
        if examples.boxes is not None:
            sized = self.images if self.regions is None else self.regions
            sizes = sized.image_sizes(np.maximum(self.rows[indices, 0], 0)).astype(np.int64)  # (b, 2): height, width
            boxes = (examples.boxes[indices] / sizes[:, [1, 0, 1, 0]]).astype(np.float32)
            return {'target_box': boxes, 'target_size': sizes, 'image_id': self.rows[indices, 0]}
        if examples.schema.captions:
            return {'image_id': self.rows[indices, 0]}
        counts = self.label_start[indices + 1] - self.label_start[indices]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        labels = np.repeat(self.label_start[indices], counts) + within
        return {'label_example': np.repeat(np.arange(len(indices)), counts),
                'label_answer': examples.label_answer[labels].astype(np.int64), 'label_score': examples.label_score[labels]}

    def region_classes(self, indices, mask):
        """The class of each region, (b, o) int64 as mask (b, o), the whole image, 0, first; -1 where it is not known."""
        classes = self.examples.classes[indices, :mask.shape[1] - 1].astype(np.int64)
        result = np.full(mask.shape, -1)
        result[:, 0] = 0
        result[:, 1:1 + classes.shape[1]] = np.where(classes == 0, -1, classes)
        return np.where(mask, result, -1)

    def scores(self, predictions):
        """Each example's score of a predicted place, (n,) -> (n,) float64 from 0 to 1: the soft score of an answer, whether a
        choice is right, whether a region overlaps the target box by half, or whether a pair is said to match."""
        examples, predictions = self.examples, np.asarray(predictions)
        if examples.choice is not None:
            return (examples.choice == predictions).astype(np.float64)
        if examples.boxes is not None:
            return (self.target_overlaps(predictions) >= TARGET_OVERLAP).astype(np.float64)
        if examples.schema.captions:
            return predictions.astype(np.float64)
        hit = examples.label_answer == predictions[examples.label_example]
        return np.bincount(examples.label_example, weights=examples.label_score * hit, minlength=len(self))

    def box_lists(self, predictions):
        """Yields for each example the boxes in pixels, [x1, y1, x2, y2], of its predicted regions (n, k), without padding; for an
        image without regions one box of zeros. The whole image, where it is region 0, has the box (0, 0, w - 1, h - 1)."""
        for row, places in zip(self.rows[:, 0].tolist(), np.asarray(predictions).tolist(), strict=True):
            boxes = self.regions.image(row).boxes if row >= 0 else np.zeros((1, 4))
            if row >= 0 and self.whole_image:
                height, width = self.regions.image_sizes([row])[0].tolist()
                boxes = with_whole_image(boxes, height, width)
            yield boxes[[place for place in places if place < len(boxes)] if row >= 0 else [0]].tolist()

    def region_boxes(self, predictions):
        """The boxes in pixels (n, 4) float64 of each example's predicted region, (n,)."""
        return np.array([boxes[0] for boxes in self.box_lists(np.asarray(predictions)[:, None])], np.float64).reshape(-1, 4)

    def target_overlaps(self, predictions, pixel=1):
        """Intersection over union of each example's predicted region, (n,), with the target box -> (n,). pixel: as of
        heads.overlaps."""
        boxes, targets = torch.from_numpy(self.region_boxes(predictions)), torch.from_numpy(self.examples.boxes)
        return overlaps(boxes[:, None], targets, pixel)[:, 0].numpy()

    def oracle(self):
        """The score, per cent, of the best prediction within the vocabulary for every example."""
        best = np.zeros(len(self))
        np.maximum.at(best, self.examples.label_example, self.examples.label_score)
        return 100 * best.mean()


def rows_of(source, images):
    """The rows in a source of image ids (n, k) bytes, (n, k) int64; -1 for unknown ones."""
    ids, place = np.unique(images, return_inverse=True)
    return source.rows([img_id.decode() for img_id in ids.tolist()])[place.reshape(images.shape)]


def check_target_boxes(examples, sizes, splits):
    """Raises DataError for a target box that reaches beyond its image by more than a pixel. sizes: (n, 2), height and width."""
    outside = (examples.boxes < -1) | (examples.boxes > sizes[:, [1, 0, 1, 0]] + 1)
    if outside.any():
        first = int(outside.any(1).argmax())
        box, (height, width) = [round(side, 2) for side in examples.boxes[first].tolist()], sizes[first].tolist()
        file, schema = splits[examples.split[first]].annotations, examples.schema
        raise DataError(f'{file}: {schema.id} {examples.names([first])[0]}: key "{schema.box}": expected a box inside image '
                        f'{examples.images[first, 0].decode()}, {width} x {height} pixels as its regions say, found {box}; are '
                        'boxes and regions of the same image size?')


def open_inputs(splits, wanted, limits, names, ids, needs, options, schema):
    """(the regions, or None; the ImageSource, or None; whether all regions of the files are there) that an encoder with `needs`
    reads of some splits. ids: (n,) bytes, the image ids of all; schema: of the examples; others: as of `open_regions` and
    `open_split_images`. Raises DataError where a split lacks what is needed."""
    images = open_split_images(splits, ids, names, options) if 'pixels' in needs else None
    if not needs & {'regions', 'boxes'}:
        return None, images, True
    with_masks = images is not None and isinstance(schema, tagged_texts.TaggedSchema)
    if images is not None and 'regions' not in needs and (with_masks or any(split.boxes for split in splits)):
        if lacking := [split.annotations for split in splits if not split.boxes]:
            what = 'boxes and masks of the objects' if with_masks else 'boxes, as other splits do'
            raise DataError(f'{names}: the split of {lacking[0]} names no file of {what}; add the key "boxes" '
                            '(data/README.md, "A dataset of your own")')
        return given_regions(splits, images, with_masks), images, True
    regions, complete = open_regions(splits, wanted, limits, options.storeRoot)
    return regions if 'regions' in needs else placement.without_features(regions), images, complete


def load_examples(spec, names, examples, encoder, answers, options, submit=False, device=None):
    """The ExampleDataset of some splits; what was left out is printed.

    names: the value of --train and the like; examples: all examples of these splits; encoder: a heads.Encoder, whose `needs` say
    whether regions and images are opened. submit: the predictions are to be submitted, so that no example may be left out and
    --tiny and --fast do not apply; an image without regions (or a file of pixels) is then an error unless --allowMissing. device:
    where regions and images go with --featDevice cuda.
    """
    splits = spec.named(names)
    limits = [None if submit or split.whole else options.image_limit for split in splits]
    wanted = [np.unique(examples.images[examples.split == number]) for number in range(len(splits))]
    wanted = [ids[ids != b''] for ids in wanted]
    ids, image = np.unique(examples.images, return_inverse=True)
    regions, images, complete = open_inputs(splits, wanted, limits, names, ids, encoder.needs, options, examples.schema)
    ids, image = [img_id.decode() for img_id in ids.tolist()], image.reshape(examples.images.shape)
    source, what = (images, 'files') if regions is None else (regions, 'regions')
    rows = source.rows(ids)
    if regions is not None:
        warn_duplicate_images(regions, ids, names)
    if regions is not None and images is not None:
        check_sizes(ids, regions, images)
        rows, what = np.where(images.rows(ids) >= 0, rows, -1), 'regions or files'
    rows = rows[image]  # (n, k)
    text_only = (examples.images == b'').all(1)
    with_regions, keep, missing = (rows >= 0).all(1) | text_only, np.ones(len(rows), bool), np.zeros(len(rows), bool)
    for number, (split, limit) in enumerate(zip(splits, limits, strict=True)):
        of_split = examples.split == number
        lacking = of_split & ~with_regions
        if not (rows[of_split] >= 0).any() and not text_only[of_split].any() and not options.allowMissing:
            named = [ids[i] for i in np.unique(image[of_split])]
            if images is not None and not (images.rows(named) >= 0).any():
                others = some(img_id.decode() for img_id in images.ids[:100].tolist())
                raise DataError(f'{split.annotations}: none of its images is in {images.name}: it names images such as '
                                f'{some(named)}, there are such as {others}; do they belong together?')
            existing = None if split.features else [img_id.decode() for img_id in regions.ids.tolist()]
            raise DataError(f'{split.annotations}: none of its images has {what}: '
                            f'{id_difference(named, split.features[0] if split.features else split.boxes, existing)}')
        if not submit:
            keep &= ~lacking
        if limit is not None:
            named = rows[of_split]
            chosen = np.unique(named[named >= 0])[:limit]  # rows are in file order
            keep &= ~of_split | np.isin(rows, chosen).all(1) | text_only
            if not complete and len(chosen) == limit:
                lacking = np.zeros_like(of_split)  # the part of the file that was not read may have their regions
        missing |= lacking
    if missing.any():
        lost = [ids[i] for i in np.unique(image[missing][rows[missing] < 0])]
        about = (f'{missing.sum():,} of {len(examples):,} questions of {names} are about {len(lost):,} images without {what} '
                 f'({some(lost)})')
        if submit and not options.allowMissing:
            raise DataError(f'{about}; all must be answered: add their {what}, or give --allowMissing to answer them '
                            'from the words alone')
        print0(f'{about}: ' + ('answered from the words alone.' if submit else 'skipped.'))
    if not keep.any():
        raise DataError(f'{names}: no question is left whose images are all among those used; leave out --tiny or --fast')
    if unknown := examples.unknown:
        print0(f'{unknown.total():,} labels of {names} are no answers of {spec.answers} ({some(unknown)}): left out.')
    if not keep.all():
        examples, rows = examples.select(keep), rows[keep]
    if examples.boxes is not None:
        check_target_boxes(examples, source.image_sizes(np.maximum(rows[:, 0], 0)), splits)
    if regions is not None:
        regions = placement.place(regions, options.featDevice, device)
    elif options.featDevice == 'cuda':
        placement.check_gpu(device)
    dataset = ExampleDataset(examples, regions, rows, encoder, answers, spec.max_length, options.seed, images)
    if images is not None and options.featDevice == 'cuda':
        dataset.pixels.keep_on(device, submit)
    print0(f'{names}: {len(dataset):,} questions on {len(np.unique(dataset.rows[dataset.rows >= 0])):,} images.')
    for number, split in enumerate(splits):
        of_split = np.flatnonzero(examples.split == number)
        if of_split.size:
            name = next(name for name, other in spec.splits.items() if other is split)
            dataset.text_report(of_split, name)
            if examples.labelled and not examples.learnable(of_split):
                print0(f'Warning: {name}: no question has an answer with a score above 0'
                       + (f' among those of {spec.answers}' if spec.answers else '')
                       + ': nothing is learned from it, and its score is 0. Are these the right annotations and answers?')
    return dataset
