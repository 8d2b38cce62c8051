"""Sentences with their images, as every model's pre-training reads them: which example is which, and the random draws.

Whatever is drawn is a function of the seed, the epoch and an example's position in the epoch, never of the rank, of the size of a
batch, or of what ran before.
"""

import hashlib

import numpy as np
import torch

from annotations.split_images import Pixels, check_sizes
from annotations.split_regions import open_regions, warn_duplicate_images
from dist import print0
from files.json_files import DataError, some
from regions.readers import id_difference

NO_LABEL = -1
MASKED, RANDOM = 0.8, 0.9  # of what is predicted: below the first masked, from there to the second random, the rest kept


def uniform(seed, epoch, stream, first, shape):
    """Random numbers (n, width) in [0, 1) for n positions of an epoch from `first` on. A row does not depend on the others that
    are asked for with it. epoch: None for validation."""
    n, width = shape
    blocks = -(-width // 4)  # Philox makes four numbers at a time
    bits = np.random.Philox(np.random.SeedSequence([seed, stream, 0 if epoch is None else epoch + 1]))
    bits.advance(first * blocks)
    return np.random.Generator(bits).random((n, 4 * blocks))[:, :width]


def choose(draws, rate):
    """Which words or regions are predicted, at a rate: bool arrays like draws, (predicted, masked, random)."""
    predicted = draws < rate
    kind = draws / rate if rate else draws  # of what is predicted, uniform in [0, 1) again
    return predicted, predicted & (kind < MASKED), predicted & (kind >= MASKED) & (kind < RANDOM)


class ImageSentences(torch.utils.data.Dataset):
    """n sentences with their images. A subclass makes the batches.

    columns: the Columns of each file; rows: of each file the row in `regions` of each image, or -1 for one that is left out.
    """

    images = None  # an images.source.ImageSource

    def __init__(self, columns, regions, rows, options):
        self.columns, self.regions, self.options = columns, regions, options
        # Examples are counted through the images that are used; an image is a block of sentences of one file, at least one.
        counts = [np.diff(file.image_start) for file in columns]
        used = [(row >= 0) & (count > 0) for row, count in zip(rows, counts, strict=True)]
        self.file = np.concatenate([np.full(is_used.sum(), i, np.int16) for i, is_used in enumerate(used)])
        self.row = np.concatenate([row[is_used] for row, is_used in zip(rows, used, strict=True)])
        self.begin = np.concatenate([file.image_start[:-1][is_used] for file, is_used in zip(columns, used, strict=True)])
        self.start = np.cumsum(np.concatenate([[0], *(count[is_used] for count, is_used in zip(counts, used, strict=True))]))

    def __len__(self):
        return int(self.start[-1])

    def digest(self, *arrays):
        """Tells whether two datasets hold the same sentences and images. arrays: what else a dataset depends on."""
        digest = hashlib.sha256(''.join(file.digest for file in self.columns).encode())
        for array in (self.file, self.begin, self.row, *arrays):
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def used_rows(self):
        """The rows in `regions` of the images, each once."""
        return np.unique(self.row)

    def nonfinite_images(self, indices):
        """Ids of images of some examples whose features are not finite."""
        return self.regions.nonfinite(self.row[self.image_of(indices)])

    def read_images(self, images, encoder):
        """Adds pixels to the batches, of an ImageSource that has all images, by the transforms of an encoder."""
        self.images = images
        self.image_row = images.rows([img_id.decode() for img_id in self.regions.ids[self.row].tolist()])
        self.pixels = Pixels(images, self.image_row, encoder, self.options.seed)

    def groups(self):
        """None: a training step may have any examples."""
        return None

    def draw(self, micro_batch, stream, width):
        """(b, width) random numbers of a stream for the positions of a batch."""
        shape = len(micro_batch.indices), width
        return uniform(self.options.seed, micro_batch.epoch, stream, micro_batch.first, shape)

    def image_of(self, examples):
        """Which of the images each example is about."""
        return np.searchsorted(self.start, examples, side='right') - 1

    def read_columns(self, examples, read):
        """What read(file number, rows in the file, indices into `examples`) returns, put together for examples of all files."""
        image = self.image_of(examples)
        rows, files = self.begin[image] + examples - self.start[image], self.file[image]
        values = None
        for file in np.unique(files).tolist():
            self.columns[file].check_length()
            of_file = np.flatnonzero(files == file)
            part = read(file, rows[of_file], of_file)
            values = np.empty((len(examples), *part.shape[1:]), np.int64) if values is None else values
            values[of_file] = part
        return values

    def describe(self, names, texts, vocabulary):
        """Prints what was read for --train or the like, `names`. texts: {split: Columns}; vocabulary: its file. Raises DataError
        if there is nothing."""
        if not len(self):
            limited = self.options.tiny or self.options.fast
            raise DataError(f'{names}: no sentence is left whose image is among those used; leave out --tiny or --fast' if limited
                            else f'{names}: expected sentences (sentf) of images with regions, found none; correct the file')
        print0(f'{names}: {len(self):,} sentences on {len(np.unique(self.row)):,} images.')
        for name, columns in texts.items():
            print0(*columns.text.lines(name, vocabulary))


def open_images(splits, columns, names, limit, store_root, images=None):
    """(the regions of some splits, for each split the row of each of its images, or -1 for one that is left out); what has no
    regions, or no file, is printed.

    columns: the Columns of each split; names: the value of --train and the like; limit: images of a split that are used, or None;
    images: an ImageSource of their files, if these are read, too.
    """
    limits = [None if split.whole else limit for split in splits]
    regions, complete = open_regions(splits, [np.unique(file.image_ids) for file in columns], limits, store_root)
    ids = [[img_id.decode() for img_id in file.image_ids.tolist()] for file in columns]
    if any(len(split.features) > 1 for split in splits):  # COCO and VG share images across splits
        warn_duplicate_images(regions, list(set().union(*ids)), names)
    rows, lost, what = [], [], 'regions' if images is None else 'regions or files'
    for split, named, most in zip(splits, ids, limits, strict=True):
        row = regions.rows(named)
        if not (row >= 0).any():
            raise DataError(f'{split.annotations}: none of its images has regions: {id_difference(named, split.features[0])}')
        if images is not None:
            check_sizes(named, regions, images)
            row = np.where(images.rows(named) >= 0, row, -1)
            if not (row >= 0).any():
                raise DataError(f'{split.annotations}: none of its images that have regions ({some(named)}) is in {images.name}; '
                                'do they belong together?')
        chosen = np.unique(row[row >= 0])[:most]  # rows are in file order
        if complete or most is None or len(chosen) < most:
            lost += [named[i] for i in np.flatnonzero(row < 0)]
        rows.append(np.where(np.isin(row, chosen), row, -1))
    if lost:
        print0(f'{len(lost):,} images of {names} have no {what} ({some(lost)}): their sentences are skipped.')
    return regions, rows
