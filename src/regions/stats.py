"""What features and boxes look like, in numbers, and whether two files look as if one detector had made them.

Features of another detector, of another of its layers, or scaled otherwise train without any error and score badly.
Everything is summed up image by image: memory does not depend on the size of the file.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from regions import source
from regions.class_names import Names
from regions.readers import RegionError
from regions.tsv import ImageRegions

# The rule of thumb, tried on halves of the ten real COCO images and on what was done to them (tests/test_doctor.py): halves
# as they are agree by 0.5 to 1.9, in the middle by 1.07 (100 divisions into 5 and 5), shuffled dimensions by about 0.
AGREEMENT = 0.4  # of the means of the feature's dimensions; below: another detector
RELIABLE = 0.1  # below, halves of one file have so little in common that nothing can be said,
MANY = 100  # but that many images would have it, were their dimensions worth anything
SCALE = 1.25  # ratio of mean norms, either way; beyond: another layer, normalisation or preprocessing
CLASSES = 0.6  # total variation of the class histograms, from 0 (the same) to 1; beyond, and over the noise: other classes
FEW = 10  # images of both together; with fewer nothing is said about classes


@dataclass
class Stats:
    """Sums over the regions of a file, f numbers a region; `summarise` fills it."""

    path: str
    images: int = 0
    regions: int = 0
    zeros: int = 0
    low: float = np.inf
    high: float = -np.inf
    counts: Counter = field(default_factory=Counter)  # images by their number of regions
    halves: list = field(default_factory=lambda: [0.0, 0.0])  # (f,) float64 each, sum of features of every other image
    in_halves: list = field(default_factory=lambda: [0, 0])  # their regions
    squares: np.ndarray | float = 0.0  # (f,) float64
    norms: np.ndarray = field(default_factory=lambda: np.zeros(3))  # sum, sum of squares, count of norm 0
    sides: np.ndarray = field(default_factory=lambda: np.zeros((3, 1001), np.int64))  # per mille of width, height, area
    classes: tuple = field(default_factory=lambda: (Counter(), Counter()))  # of every other image, for the noise
    attributes: Counter = field(default_factory=Counter)

    def add(self, image: ImageRegions) -> None:
        features = image.features.astype(np.float64)  # (o, f)
        norms = np.sqrt((features ** 2).sum(1))
        self.halves[self.images % 2] = self.halves[self.images % 2] + features.sum(0)
        self.in_halves[self.images % 2] += len(features)
        self.squares = self.squares + (features ** 2).sum(0)
        self.norms += (norms.sum(), (norms ** 2).sum(), (norms == 0).sum())
        self.zeros += int((features == 0).sum())
        self.low, self.high = min(self.low, features.min()), max(self.high, features.max())
        sides = np.clip((image.boxes[:, 2:] - image.boxes[:, :2]) / (image.width, image.height), 0, 1)  # (o, 2)
        for kind, values in enumerate((sides[:, 0], sides[:, 1], sides.prod(1))):
            self.sides[kind] += np.bincount((values * 1000).astype(int), minlength=1001)
        self.classes[self.images % 2].update(image.classes.tolist())
        self.attributes.update(image.attributes.tolist())
        self.counts[len(image.boxes)] += 1
        self.regions += len(image.boxes)
        self.images += 1

    @property
    def feature_size(self) -> int:
        return len(self.squares)

    @property
    def mean(self) -> np.ndarray:
        """(f,) the mean of each dimension."""
        return (self.halves[0] + self.halves[1]) / self.regions

    @property
    def deviation(self) -> np.ndarray:
        """(f,) the standard deviation of each dimension."""
        return np.sqrt(np.maximum(0, self.squares / self.regions - self.mean ** 2))

    @property
    def reliability(self) -> float:
        """How well `mean` would correlate with that of as many other images: Spearman and Brown's, from its two halves."""
        if self.images < 2:
            return 0.0
        r = _correlation(*(half / count for half, count in zip(self.halves, self.in_halves, strict=True)))
        return max(0.0, 2 * r / (1 + r)) if r > -1 else 0.0

    @property
    def norm(self) -> float:
        return self.norms[0] / self.regions

    @property
    def objects(self) -> Counter:
        return self.classes[0] + self.classes[1]


def summarise(path, most: int = 0) -> Stats:
    """The statistics of a TSV or store; of a store at most `most` images, drawn by a fixed seed (0: all)."""
    found = Stats(str(path))
    for image in source.images(path, most):
        found.add(image)
    if not found.images:
        raise RegionError(f'{path}: expected at least one image, found none; bash run/regions.bash check says why')
    return found


def report(one: Stats, names: Names, most: int = 15) -> str:
    """The statistics as text, with the `most` most frequent classes and attributes."""
    spread = np.sqrt(max(0.0, one.norms[1] / one.regions - one.norm ** 2))
    numbers = one.regions * one.feature_size
    quantiles = [[int(np.searchsorted(np.cumsum(side), share * one.regions)) / 10 for share in (.1, .5, .9)]
                 for side in one.sides]
    lines = [f'{one.path}: {one.images:,} images, {one.regions:,} regions ({min(one.counts)} to {max(one.counts)} an image), '
             f'{one.feature_size} numbers each',
             f'  features   mean {one.mean.mean():.4f}, deviation {one.deviation.mean():.4f} (mean over dimensions), '
             f'from {one.low:.4g} to {one.high:.4g}',
             f'  sparsity   {100 * one.zeros / numbers:.1f} % of the numbers are 0, '
             f'{int((one.squares == 0).sum())} dimensions are always 0',
             f'  norm       {one.norm:.3f} +- {spread:.3f} a region, {int(one.norms[2])} regions of norm 0']
    lines += [f'  box {what:6} {low:.1f} / {middle:.1f} / {high:.1f} % of the picture (1st, 5th, 9th decile)'
              for what, (low, middle, high) in zip(('width', 'height', 'area'), quantiles, strict=True)]
    for kind, counter in (('classes', one.objects), ('attributes', one.attributes)):
        shown = ', '.join(f'{names.name(kind, number)} {100 * count / one.regions:.1f} %'
                          for number, count in counter.most_common(most))
        lines.append(f'  {kind:10} {len(counter)} occur; most often {shown}')
    return '\n'.join(lines)


def compare(one: Stats, other: Stats) -> tuple[str, bool]:
    """Text on how far `one` is from `other`, and whether they look as if made by one detector."""
    head = f'Against {other.path} ({other.images:,} images):'
    if one.feature_size != other.feature_size:
        return (f'{head}\n  features of {one.feature_size} numbers here, of {other.feature_size} there\n'
                '=> made by ANOTHER DETECTOR: a model cannot use both'), False
    # The less alike the halves of each file, the less can the two files be: a correlation is measured against that.
    noise_free = np.sqrt(one.reliability * other.reliability)
    agreement = _correlation(one.mean, other.mean) / max(noise_free, RELIABLE)
    if noise_free < RELIABLE and min(one.images, other.images) < MANY:
        agreement = np.nan
    scale = one.norm / other.norm if other.norm else np.inf
    pooled = np.sqrt((one.deviation ** 2 + other.deviation ** 2) / 2)
    shift = float(np.mean(np.abs(one.mean - other.mean) / np.where(pooled > 0, pooled, 1)))
    sparsity = [100 * stats.zeros / (stats.regions * stats.feature_size) for stats in (one, other)]
    distance = _variation(one.objects, other.objects)
    noise = max(_variation(*stats.classes) if stats.images > 1 else 1.0 for stats in (one, other))
    lines = [head,
             f'  means of the dimensions agree by {agreement:.2f} (one detector: about 1, over {AGREEMENT}; nan: too few images)',
             f'  they lie {shift:.2f} standard deviations apart (mean over dimensions)',
             f'  norms are {scale:.3f} times as large (one detector: {1 / SCALE:.2f} to {SCALE})',
             f'  zeros: {sparsity[0]:.1f} % here, {sparsity[1]:.1f} % there',
             f'  classes: {distance:.2f} apart, from 0 to 1 (halves of one file: up to {noise:.2f}; one detector: below '
             f'{CLASSES}, or near that)']
    why = []
    if agreement < AGREEMENT:
        why.append('the dimensions mean other things: another network, or in another order')
    elif not 1 / SCALE <= scale <= SCALE:
        why.append('the features are on another scale: normalised, or of another layer or preprocessing')
    if one.images + other.images >= FEW and distance > max(CLASSES, noise + (1 - noise) / 2):
        moved = {by: _variation(Counter({number + by: count for number, count in one.objects.items()}), other.objects)
                 for by in (-1, 1)}
        by = min(moved, key=moved.get)
        near = moved[by] < distance - (distance - min(noise, distance)) / 2
        why.append(f'class ids look shifted by one: {-by:+d} against the other file (is the background column still in?)' if near
                   else 'other classes occur: another detector, other class names, or very different pictures')
    if why:
        return '\n'.join([*lines, *(f'=> look as if made by ANOTHER DETECTOR: {reason}' for reason in why)]), False
    if np.isnan(agreement):
        return '\n'.join([*lines, '=> too few images to tell by the features; nothing else speaks against one detector']), True
    return '\n'.join([*lines, '=> look as if made by the same detector']), True


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, (f,) with (f,); where one of the two is constant, 1 if both are the same, else 0."""
    if min(one.std(), other.std()) < 1e-9:
        return float(np.allclose(one, other))
    return float(np.corrcoef(one, other)[0, 1])


def _variation(one: Counter, other: Counter) -> float:
    """Total variation between two histograms: 0 the same, 1 nothing in common."""
    a, b = one.total(), other.total()
    return sum(abs(one[key] / a - other[key] / b) for key in one.keys() | other.keys()) / 2
