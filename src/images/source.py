"""Images as a data source with the interface of the region stores: ids -> rows -> batch.

    source = open_source('data/mscoco_images/train2014')      # a folder, a list, a zip (read in place), or X.pixels; or several
    rows = source.rows(['COCO_train2014_000000000009'])       # (b,) int64; -1: unknown
    source.image_sizes(rows)                                  # (b, 2) int32: height, width in pixels, upright
    batch = source.batch(rows, transform, seed, epoch, positions, mirrored)      # in a data worker; numpy arrays
    batch = transform.normalize(batch)                        # on the device, of tensors: pixels become float32

A batch of m images (transforms: `images.transforms`):

    pixels      (m, 3, h, w) uint8, red, green, blue, 0 at padding (right and bottom)
    pixel_size  (m, 2) int64: height and width of each image in `pixels`, without padding
    image_size  (m, 2) int64: height and width of the image itself

An image of row -1 is 0 in all of them. seed, epoch, positions (m,): whatever is random is a function of the seed, the epoch and
the image's position in the epoch (of k images of an example: position * k + i), so that it depends neither on the number of
processes and workers nor on where a run was resumed. epoch None: evaluation, nothing is random. mirrored (m,) bool: images that
the caller mirrors, together with boxes, masks and words (annotations.mirroring draws them).
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from files.progress import ProgressBar
from images import image_files
from images.decoder import fitted
from images.pixel_store import PixelStore
from regions.placement import check_gpu_memory

STREAM = 5  # of random draws


class ImageSource:
    """n images of one or several Folders, Zips, PixelStores or Pictures. An image that is in several is taken from the first.

    name: for messages; ids (n,) bytes: the image ids in UTF-8, in the order of the rows.
    """

    def __init__(self, parts):
        self.parts = parts
        self.name = ' + '.join(part.name for part in parts)
        self.starts = np.cumsum([0] + [len(part.ids) for part in parts])
        self.ids = np.concatenate([part.ids for part in parts])
        self.sizes = np.concatenate([part.sizes for part in parts])  # (n, 2) int32: height, width
        self.order = np.argsort(self.ids, kind='stable')
        self.sorted_ids = self.ids[self.order]

    def __len__(self):
        return len(self.ids)

    def rows(self, img_ids):
        """The row of each image id, (len(img_ids),) int64; -1 for unknown ids."""
        keys = np.array([img_id.encode() for img_id in img_ids], np.bytes_)
        if not len(keys):
            return np.zeros(0, np.int64)
        keys = keys.astype(np.promote_types(keys.dtype, self.ids.dtype))
        places = np.minimum(np.searchsorted(self.sorted_ids, keys), len(self) - 1)
        return np.where(self.sorted_ids[places] == keys, self.order[places], -1)

    def image_sizes(self, rows):
        """Height and width in pixels of b images, (b, 2) int32, upright."""
        return self.sizes[np.asarray(rows, np.int64)]

    def digest(self, rows=None):
        """Tells whether two sources hold the same images (of some rows): their ids, sizes, and bytes in their files."""
        rows, digest = slice(None) if rows is None else np.unique(rows), hashlib.sha256()
        for column in (self.ids, self.sizes, np.concatenate([part.lengths for part in self.parts])):
            digest.update(np.ascontiguousarray(column[rows]))
        return digest.hexdigest()

    def picture(self, row, box=None, size=None, resample=None, reduced=False):
        """An image, or a part of it, resized: uint8 (h, w, 3) RGB. box: left, upper, right, lower in pixels; size: (h, w);
        others: as of `pictures.open_resized`. Raises PictureError that names the image if it cannot be decoded or has changed."""
        part = int(np.searchsorted(self.starts, row, side='right')) - 1
        height, width = size or self.sizes[row].tolist()
        return self.parts[part].resized(int(row - self.starts[part]), box, (width, height), resample, reduced)

    def batch(self, rows, transform, seed=0, epoch=None, positions=None, mirrored=None, static_shape=False, reduced=False):
        """A batch, see the head of this file. rows (m,), transform: of `images.transforms`; static_shape: pad to the largest size
        of the transform; reduced: as of `pictures.open_resized`. Raises PictureError that names an image."""
        rows, pictures = np.asarray(rows, np.int64), []
        sizes = np.where((rows >= 0)[:, None], self.sizes[rows], 0).astype(np.int64)
        pixel_size = np.zeros_like(sizes)
        for i, (row, (height, width)) in enumerate(zip(rows.tolist(), sizes.tolist(), strict=True)):
            if row < 0:
                pictures.append(None)
                continue
            rng = None if epoch is None else np.random.default_rng([seed, epoch, int(positions[i]), STREAM])
            box, size = transform.plan(height, width, rng)
            picture = self.picture(row, box, size, transform.resample, reduced)
            pictures.append(transform.augment(picture, rng, mirrored is not None and bool(mirrored[i])))
            pixel_size[i] = size
        pixels = np.zeros((len(rows), 3, *transform.batch_size(pixel_size, static_shape)), np.uint8)
        for target, picture, (height, width) in zip(pixels, pictures, pixel_size.tolist(), strict=True):
            if picture is not None:
                target[:, :height, :width] = picture.transpose(2, 0, 1)
        return {'pixels': pixels, 'pixel_size': pixel_size, 'image_size': sizes}


class Pictures:
    """n pictures in memory, as a part of an ImageSource. pictures: {image id: (h, w, 3) uint8 RGB}."""

    def __init__(self, pictures):
        self.name, self.pictures = 'the pictures', list(pictures.values())
        self.ids = np.array([img_id.encode() for img_id in pictures], np.bytes_)
        self.sizes = np.array([picture.shape[:2] for picture in self.pictures], np.int32)
        self.lengths = np.array([picture.nbytes for picture in self.pictures], np.int64)

    def resized(self, i, box, size, resample, reduced):
        """As `pictures.open_resized`."""
        picture = Image.fromarray(self.pictures[i])
        return np.asarray(fitted(picture, picture.size, box, size, resample))


class ImagesOnDevice:
    """Images of some rows of a source, resized by a transform without random parts, resident on a device as uint8. Batches from
    data workers carry only rows; `to_device` makes the pixels."""

    def __init__(self, source, rows, transform, device):
        """Raises ValueError for a transform with random parts, RegionError if the free memory of a GPU is too small."""
        if transform.random:
            raise ValueError(f'images resident on {device}: expected a transform without random crops and RandAugment, found '
                             f'{transform}; leave them out, or load images in data workers')
        self.source, self.transform = source, transform
        rows = np.unique(rows)
        self.stored = np.zeros((len(source), 2), np.int64)
        for row, size in zip(rows.tolist(), source.image_sizes(rows).tolist(), strict=True):
            self.stored[row] = transform.plan(*size)[1]
        ends = np.cumsum(self.stored.prod(1) * 3)
        self.starts = (ends - self.stored.prod(1) * 3).tolist()
        check_gpu_memory(int(ends[-1]), source.name, torch.device(device), 'the resized images of', '',
                         'load images in data workers')
        self.pixels = torch.empty(int(ends[-1]), dtype=torch.uint8, device=device)
        with ProgressBar(rows.tolist(), f'Images to {device}', len(rows), unit=' images', delay=1) as bar:
            for row in bar:
                picture = source.picture(row, None, self.stored[row].tolist(), transform.resample)
                self._view(row).copy_(torch.from_numpy(np.array(picture)))

    def _view(self, row):
        height, width = self.stored[row].tolist()
        return self.pixels[self.starts[row]:][:height * width * 3].view(height, width, 3)

    def batch(self, rows, mirrored=None, static_shape=False):
        """In a data worker: as ImageSource.batch, but `image_rows` and `canvas` in place of pixels."""
        rows = np.asarray(rows, np.int64)
        known = (rows >= 0)[:, None]
        pixel_size, sizes = np.where(known, self.stored[rows], 0), np.where(known, self.source.image_sizes(rows), 0)
        canvas = self.transform.batch_size(pixel_size, static_shape)
        mirrored = np.zeros(len(rows), bool) if mirrored is None else mirrored
        return {'image_rows': list(zip(rows.tolist(), mirrored.tolist(), strict=True)), 'canvas': canvas,
                'pixel_size': pixel_size, 'image_size': sizes.astype(np.int64)}

    def to_device(self, batch):
        """A batch whose tensors are on the device, with pixels (m, 3, h, w) uint8; `transform.normalize` comes next."""
        batch = dict(batch)
        rows, canvas = batch.pop('image_rows'), batch.pop('canvas')
        pixels = self.pixels.new_zeros(len(rows), 3, *canvas)
        for target, (row, mirrored) in zip(pixels, rows, strict=True):
            if row >= 0:
                picture = self._view(row).permute(2, 0, 1)
                target[:, :picture.shape[1], :picture.shape[2]] = picture.flip(2) if mirrored else picture
        return batch | {'pixels': pixels}


def open_source(paths, ids='stem', allow_broken=False, index_root=None):
    """An ImageSource of a folder with its subfolders, a list, a zip, a pixel store, or several of them. ids: as
    `images.ids.ImageIds` takes it; others: as of `image_files.open_files`. Raises OSError, DataError or PictureError that lists
    what cannot be used."""
    paths = [paths] if isinstance(paths, str | Path) else paths
    return ImageSource([PixelStore(path, ids) if PixelStore.is_store(path) else
                        image_files.open_files(path, ids, allow_broken, index_root) for path in paths])
