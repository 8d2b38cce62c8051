"""Statistics of features, boxes and classes, to compare files.

Features of another detector, another layer, or another scale raise no error in training, but give bad scores. The sums are
accumulated image by image, so that memory does not depend on the size of the file.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from regions import readers
from regions.class_names import ClassNames
from regions.image_regions import no_distribution
from regions.tsv import ImageRegions, RegionError


@dataclass
class Stats:
    """Sums over the regions of a file, with f numbers per region (0: no features)."""

    path: str
    images: int = 0
    regions: int = 0
    feature_size: int = 0
    zeros: int = 0
    low: float = np.inf
    high: float = -np.inf
    counts: Counter = field(default_factory=Counter)  # number of regions -> number of images
    sums: np.ndarray | float = 0.0  # (f,) float64
    squares: np.ndarray | float = 0.0  # (f,) float64
    norms: np.ndarray = field(default_factory=lambda: np.zeros(3))  # sum, sum of squares, count of norm 0
    # Histograms of the width, height and area of boxes, in per mille of the image's.
    sides: np.ndarray = field(default_factory=lambda: np.zeros((3, 1001), np.int64))
    probabilities: np.ndarray = field(default_factory=lambda: np.zeros(4))  # classes; sums of 1, background, maximum
    whole_images: np.ndarray = field(default_factory=lambda: np.zeros(2))  # images with a feature of their own; sum of its norms
    classes: Counter = field(default_factory=Counter)
    attributes: Counter = field(default_factory=Counter)

    def add(self, image: ImageRegions) -> None:
        if image.features is not None:
            features = image.features.astype(np.float64)  # (o, f)
            norms = np.sqrt((features ** 2).sum(1))
            self.feature_size = features.shape[1]
            self.sums = self.sums + features.sum(0)
            self.squares = self.squares + (features ** 2).sum(0)
            self.norms += (norms.sum(), (norms ** 2).sum(), (norms == 0).sum())
            self.zeros += int((features == 0).sum())
            self.low, self.high = min(self.low, features.min()), max(self.high, features.max())
        if image.class_probabilities is not None:
            rows = image.class_probabilities.astype(np.float32)
            self.probabilities[0] = rows.shape[1]
            self.probabilities[1:] += (~no_distribution(rows)).sum(), rows[:, 0].sum(), rows.max(1).sum()
        if image.image_feature is not None:
            self.whole_images += 1, np.linalg.norm(image.image_feature)
        sides = np.clip((image.boxes[:, 2:] - image.boxes[:, :2]) / (image.width, image.height), 0, 1)  # (o, 2)
        for histogram, values in zip(self.sides, (sides[:, 0], sides[:, 1], sides.prod(1)), strict=True):
            histogram += np.bincount((values * 1000).astype(int), minlength=1001)
        self.classes.update(image.classes.tolist())
        self.attributes.update(image.attributes.tolist())
        self.counts[len(image.boxes)] += 1
        self.regions += len(image.boxes)
        self.images += 1

    @property
    def mean(self) -> np.ndarray:
        """Mean of each dimension, (f,)."""
        return self.sums / self.regions

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviation of each dimension, (f,)."""
        return np.sqrt(np.maximum(0, self.squares / self.regions - self.mean ** 2))

    @property
    def norm(self) -> float:
        """Mean L2 norm of a region's features."""
        return self.norms[0] / self.regions

    @property
    def sparsity(self) -> float:
        """Percentage of features that are 0."""
        return 100 * self.zeros / (self.regions * self.feature_size)


def summarise(path, most: int = 0) -> Stats:
    """The statistics of a TSV or store, of a store from at most `most` sampled images (0: all). Raises RegionError."""
    stats = Stats(str(path))
    for image in readers.images(path, most):
        stats.add(image)
    if not stats.images:
        raise RegionError(f'{path}: expected at least one image, found none; bash run/regions.bash check lists the faults')
    return stats


def report(stats: Stats, names: ClassNames, most: int = 15) -> str:
    """The statistics as text, with the `most` most frequent classes and attributes."""
    lines = [f'{stats.path}: {stats.images:,} images, {stats.regions:,} regions ({min(stats.counts)} to {max(stats.counts)} an '
             f'image), {stats.feature_size} numbers each']
    if stats.feature_size:
        spread = np.sqrt(max(0.0, stats.norms[1] / stats.regions - stats.norm ** 2))
        lines += [f'  features   mean {stats.mean.mean():.4f}, deviation {stats.deviation.mean():.4f} (mean over dimensions), '
                  f'from {stats.low:.4g} to {stats.high:.4g}',
                  f'  sparsity   {stats.sparsity:.1f} % of the numbers are 0, '
                  f'{int((stats.squares == 0).sum())} dimensions are always 0',
                  f'  norm       {stats.norm:.3f} +- {spread:.3f} a region, {int(stats.norms[2])} regions of norm 0']
    if stats.whole_images[0]:
        lines.append(f'  whole      {stats.whole_images[0]:,.0f} images have a feature of their own, of norm '
                     f'{stats.whole_images[1] / stats.whole_images[0]:.3f} on average')
    if stats.probabilities[0]:
        sums, background, highest = 100 * stats.probabilities[1:] / stats.regions
        lines.append(f'  probabilities of {stats.probabilities[0]:.0f} classes; they sum to 1 in {sums:.1f} % of the regions; on '
                     f'average the first class has {background:.1f} %, the most probable one {highest:.1f} %')
    for name, histogram in zip(('width', 'height', 'area'), stats.sides, strict=True):
        low, middle, high = (int(np.searchsorted(np.cumsum(histogram), q * stats.regions)) / 10 for q in (.1, .5, .9))
        lines.append(f'  box {name:6} {low:.1f} / {middle:.1f} / {high:.1f} % of the picture (1st, 5th, 9th decile)')
    for kind, counter in (('classes', stats.classes), ('attributes', stats.attributes)):
        frequent = ', '.join(f'{names.name(kind, number)} {100 * count / stats.regions:.1f} %'
                             for number, count in counter.most_common(most))
        lines.append(f'  {kind:10} {len(counter)} occur; most often {frequent}')
    return '\n'.join(lines)


def compare(stats: Stats, other: Stats) -> str:
    """The differences between two files as text."""
    lines = [f'Against {other.path} ({other.images:,} images):']
    if stats.feature_size != other.feature_size:
        lines.append(f'  features of {stats.feature_size} numbers here, of {other.feature_size} there: a model cannot use both')
    elif stats.feature_size:
        pooled = np.sqrt((stats.deviation ** 2 + other.deviation ** 2) / 2)
        shift = float(np.mean(np.abs(stats.mean - other.mean) / np.where(pooled > 0, pooled, 1)))
        ratio = stats.norm / other.norm if other.norm else np.inf
        lines += [f'  means of the dimensions: correlation {_correlation(stats.mean, other.mean):.2f}, {shift:.2f} standard '
                  'deviations apart (mean over dimensions)',
                  f'  norms: {ratio:.3f} times as large',
                  f'  zeros: {stats.sparsity:.1f} % here, {other.sparsity:.1f} % there']
    lines += [f'  {kind}: {_variation(*counters):.2f} apart, from 0 (equally frequent) to 1 (none in common)'
              for kind, counters in (('classes', (stats.classes, other.classes)),
                                     ('attributes', (stats.attributes, other.attributes)))]
    return '\n'.join(lines)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two vectors (f,); if one is constant, 1 if they are equal, else 0."""
    if min(one.std(), other.std()) < 1e-9:
        return float(np.allclose(one, other))
    return float(np.corrcoef(one, other)[0, 1])


def _variation(one: Counter, other: Counter) -> float:
    """Total variation distance of two histograms."""
    a, b = one.total(), other.total()
    return sum(abs(one[key] / a - other[key] / b) for key in one.keys() | other.keys()) / 2
