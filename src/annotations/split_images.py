"""The images that a dataset's splits name, and given boxes in them, for models that read pixels."""

import numpy as np

from annotations.object_masks import read_masks
from detector.given_boxes import checked_boxes, read_boxes
from files.json_files import DataError, some
from files.progress import ProgressBar
from images.source import ImagesOnDevice, open_source
from regions.arrays import RegionArrays, RegionView, per_image

MASKS = 'masks'  # a column of given boxes, (total, 25) uint8
READ = 'which this model reads'


class Pixels:
    """The pixels of the images of a dataset, by the transforms of an encoder.

    source: an images.source.ImageSource; rows: of all images that are used, in any shape, -1 for none; seed: of the random draws
    of training.
    """

    def __init__(self, source, rows, encoder, seed):
        self.source, self.rows, self.seed, self.resident = source, rows[rows >= 0], seed, None
        self.transforms = {training: encoder.transform(training) for training in (False, True)}

    def batch(self, micro_batch, rows, mirrored=None):
        """pixels, pixel_size, image_size of k images of each example, as of images.source. rows (b, k); mirrored (b * k,)."""
        if self.resident:
            return self.resident.batch(rows.ravel(), mirrored, micro_batch.static_shape)
        training, positions = micro_batch.epoch is not None, micro_batch.first * rows.shape[1] + np.arange(rows.size)
        return self.source.batch(rows.ravel(), self.transforms[training], self.seed, micro_batch.epoch, positions, mirrored,
                                 micro_batch.static_shape)

    def to_device(self, batch):
        """A batch whose tensors are on the device, with float32 pixels."""
        return self.transforms[False].normalize(self.resident.to_device(batch) if self.resident else batch)

    def keep_on(self, device, evaluated=False):
        """Copies the images to the device, unless their pixels are random. evaluated: there is no training."""
        transform = self.transforms[not evaluated]
        if not transform.random:
            self.resident = ImagesOnDevice(self.source, self.rows, transform, device)


def existing(path):
    """Where the images of a path are: in the pixel store X.pixels of the folder or list X, in X itself, or in X.zip. Raises
    FileNotFoundError."""
    for place in (path.with_name(f'{path.name}.pixels'), path, path.with_name(f'{path.name}.zip')):
        if place.exists():
            return place
    raise FileNotFoundError(f'{path}: expected images, {READ}, found no such folder, list, .zip or .pixels; put them there '
                            '(data/README.md, "Images"), or correct the path (--dataRoot)')


def open_split_images(splits, wanted, names, options):
    """The images.source.ImageSource of some splits.

    wanted: (n,) bytes, the image ids of the annotations: where one has a /, ids are paths below the folders, without ending; else
    names of files without folder and ending. names: the value of --train and the like. Raises OSError, DataError or PictureError.
    """
    if without := [split.annotations for split in splits if not split.images]:
        raise DataError(f'{names}: the split of {without[0]} lists no images, {READ}; add the key "images", a list of folders, '
                        'zips or pixel stores')
    paths = dict.fromkeys(path for split in splits for path in split.images)
    ids = 'path' if (np.char.find(wanted, b'/') >= 0).any() else 'stem'
    return open_source([existing(path) for path in paths], ids, options.allowBroken, options.storeRoot)


def given_regions(splits, images, masks):
    """The regions, without features, of the `boxes` files of some splits, for the images of an ImageSource: in the order of the
    files, from which several splits may take the same. masks: also read the column MASKS. Raises OSError, DataError, or
    RegionError that names the image and the box."""
    parts = [_read(path, images, masks) for path in dict.fromkeys(split.boxes for split in splits)]
    return RegionView(parts) if len(parts) > 1 else parts[0]


def _read(path, images, masks):
    boxes, cells = read_boxes(path), read_masks(path) if masks else {}
    ids = list(boxes)
    rows = images.rows(ids)
    if not (rows >= 0).any():
        raise DataError(f'{path}: has boxes of images such as {some(ids)}, of which {images.name} has none; do they belong '
                        'together?')
    ids, rows = [img_id for img_id, row in zip(ids, rows, strict=True) if row >= 0], rows[rows >= 0]
    sizes = images.image_sizes(rows)
    with ProgressBar(ids, f'Boxes of {path.name}', len(ids), delay=3) as bar:
        checked = [checked_boxes(boxes[img_id], *size, img_id) for img_id, size in zip(bar, sizes.tolist(), strict=True)]
    counts = [len(one) for one in checked]
    arrays = {'boxes': np.concatenate(checked), **per_image(ids, sizes, counts)}
    if masks:
        arrays[MASKS] = np.concatenate([cells[img_id] for img_id in ids])
    return RegionArrays(path, arrays, max(counts), None)


def check_sizes(ids, regions, images):
    """Raises DataError for an image whose regions are of another size than its pixels. ids: list of str."""
    rows, image_rows = regions.rows(ids), images.rows(ids)
    known = (rows >= 0) & (image_rows >= 0)
    expected, sizes = regions.image_sizes(rows[known]), images.image_sizes(image_rows[known])
    if (different := (expected != sizes).any(1)).any():
        place = different.argmax()
        (h, w), (height, width) = expected[place].tolist(), sizes[place].tolist()
        raise DataError(f'image {np.array(ids)[known][place]}: {regions.name} has regions of {w} x {h} pixels, {images.name} an '
                        f'image of {width} x {height} ({different.sum():,} of {known.sum():,} images differ); are they the same '
                        'images?')
