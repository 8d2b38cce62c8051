"""From pictures to the pixels of a model: resizing, random crops, mirroring, RandAugment, normalisation.

A transform is used in three steps, so that processes which load data pass on uint8, and any device normalises:

    transform.plan(height, width, rng)         the part of the picture, and the size that it is resized to
    transform.augment(picture, rng, mirrored)  of the resized picture, uint8 (h, w, 3) RGB
    transform.normalize(batch)                 `pixels` of a batch of `source.ImageSource` become float32

rng: numpy's generator of one picture, which `source` derives from the seed, the epoch and the position; None in evaluation.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from images.rand_augment import rand_augment

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


@dataclass(frozen=True)
class VLBertTransform:
    """As in VL-BERT's code: the shorter side becomes 600 pixels, the longer at most `longest`, bilinear; blue, green, red minus
    their means; zeros at the right and at the bottom.

    longest: 1000, VCR 1200; fixed: zeros up to short x longest, or longest x short of an upright picture, as for VCR.
    """

    longest: int = 1000
    fixed: bool = False
    short: int = 600
    resample = BILINEAR
    random = False
    means = (102.9801, 115.9465, 122.7717)  # blue, green, red

    def plan(self, height, width, rng=None):
        """(None: all of the picture, (height, width) in pixels after resizing)."""
        return None, resized(height, width, self.short, self.longest)

    def batch_size(self, sizes, static_shape=False):
        """(height, width) that resized pictures are padded to. sizes (m, 2) of these; static_shape: the same for any batch."""
        if static_shape:
            return self.longest, self.longest
        if self.fixed:
            upright = sizes[:, :1] > sizes[:, 1:]
            sizes = np.where(upright, (self.longest, self.short), (self.short, self.longest))
        return tuple(sizes.max(0, initial=1).tolist())

    def augment(self, picture, rng=None, mirrored=False):
        return picture[:, ::-1] if mirrored else picture

    def normalize(self, batch):
        """A batch with pixels (m, 3, h, w) uint8, red, green, blue, on any device -> with float32, blue, green, red, minus the
        means, and 0 outside of pixel_size (m, 2)."""
        pixels = batch['pixels'].flip(1).float()
        pixels.sub_(pixels.new_tensor(self.means)[:, None, None])
        (h, w), size = pixels.shape[2:], batch['pixel_size'][:, :, None]  # (m, 2, 1)
        rows, columns = (pixels.new_ones(side).cumsum(0) <= size[:, i] for i, side in enumerate((h, w)))  # (m, h), (m, w)
        return batch | {'pixels': pixels.mul_(rows[:, None, :, None] & columns[:, None, None])}


def resized(height, width, short=600, longest=1000):
    """(height, width) of a picture whose shorter side is scaled to `short` pixels and the longer to at most `longest`, each cut
    to whole pixels in the order of VL-BERT's code."""
    return tuple(int(side) for side in resized_sides(height, width, short, longest, np.where))


def resized_sides(height, width, short, longest, where):
    """`resized` for whole numbers, or for float64 tensors of many pictures. where: numpy's or PyTorch's."""
    upright = height > width
    small, large = where(upright, width, height), where(upright, height, width)
    short = where(large / small * short > longest, (longest * small / large // 1).clip(min=1), short)
    large = short * large / small // 1
    return where(upright, large, short), where(upright, short, large)


@dataclass(frozen=True)
class ALBEFTransform:
    """As in ALBEF's code: side x side pixels, bicubic, whatever the aspect ratio; values / 255, CLIP's mean and deviation.

    side: 256 or 384; area: in training, the share of the picture in a random crop, such as (0.5, 1.0); None: no crop (grounding);
    flip: mirror half of the pictures in training; randaugment: RandAugment(2, 7) in training. Evaluation has none of these.
    """

    side: int = 384
    area: tuple | None = None
    flip: bool = False
    randaugment: bool = False
    mean: tuple = (0.48145466, 0.4578275, 0.40821073)  # red, green, blue
    std: tuple = (0.26862954, 0.26130258, 0.27577711)
    resample = BICUBIC

    @property
    def random(self):
        return bool(self.area or self.flip or self.randaugment)

    def plan(self, height, width, rng=None):
        """(box: left, upper, right, lower in pixels, or None: all of the picture; (side, side))."""
        box = random_crop(height, width, self.area, rng) if rng is not None and self.area else None
        return box, (self.side, self.side)

    def batch_size(self, sizes, static_shape=False):
        return self.side, self.side

    def augment(self, picture, rng=None, mirrored=False):
        if rng is not None:
            mirrored ^= self.flip and rng.random() < 0.5
        picture = picture[:, ::-1] if mirrored else picture
        return rand_augment(picture, rng) if rng is not None and self.randaugment else picture

    def normalize(self, batch):
        """A batch with pixels (m, 3, h, w) uint8, red, green, blue, on any device -> with float32, (value / 255 - mean) / std."""
        pixels = batch['pixels'].float()
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return batch | {'pixels': pixels.div_(255).sub_(mean).div_(std)}


RATIOS = 3 / 4, 4 / 3  # of width and height of a random crop


def random_crop(height, width, area, rng, tries=10):
    """A box of a share of the picture, by torchvision's rule for RandomResizedCrop: the share uniform in `area`, the logarithm of
    width / height uniform; after ten that do not fit, the largest central one whose ratio is allowed."""
    for _ in range(tries):
        pixels = height * width * rng.uniform(*area)
        ratio = math.exp(rng.uniform(*map(math.log, RATIOS)))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            y, x = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            return x, y, x + w, y + h
    least, most = RATIOS
    w, h = min(width, round(height * most)), min(height, round(width / least))
    y, x = (height - h) // 2, (width - w) // 2
    return x, y, x + w, y + h
