"""Regions as arrays, on disk or in RAM. Images are looked up by id, and batches are gathered by row."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from regions.image_regions import image_feature, mean_feature
from regions.tsv import ARRAYS, COLUMNS, OPTIONAL, ImageRegions, RegionError

OBJECTS = ('classes', 'class_conf', 'attributes', 'attribute_conf')  # (total,) each: ids int64, confidences float32
DTYPES = {name: dtype for name, (_, dtype) in ARRAYS.items()}
ADVICE = {'class_probabilities': 'extract the regions again with bash run/extract.bash ... --probabilities --out NEW.store, or '
                                 "import VL-BERT's files of captions with bash run/regions.bash import FOLDER --out NEW.store"}
SAMPLE = 128  # images that are read for the digest of a part


class RegionArrays:
    """The regions of n images, concatenated in `arrays`, whose names are those of the files of a store (see `store`).

    name: for messages; arrays: features are float32, float16 or missing (boxes only); max_regions: of any image; digests: the
    sha256 of each array, {} if unknown, None if they are to be computed when needed.
    """

    def __init__(self, name, arrays: dict[str, np.ndarray], max_regions: int, digests: dict[str, str] | None = None):
        self.name, self.arrays, self.max_regions, self.digests = name, arrays, max_regions, digests
        self.total = len(arrays['boxes'])
        self.equal_counts = self.total == len(self) * max_regions  # all images have as many regions

    @classmethod
    def of_images(cls, name, images: Sequence[ImageRegions]) -> 'RegionArrays':
        """One or more images with the same optional arrays, concatenated in RAM."""
        arrays = {column: np.concatenate([getattr(image, column) for image in images]) for column in COLUMNS
                  if getattr(images[0], column) is not None}
        if any(image.image_feature is not None for image in images):
            arrays['image_features'] = np.stack([image_feature(image) for image in images])
        counts = [len(image.boxes) for image in images]
        sizes = [(image.height, image.width) for image in images]
        return cls(name, arrays | per_image([image.img_id for image in images], sizes, counts), max(counts))

    def __len__(self) -> int:
        return len(self.arrays['sizes'])

    @property
    def feature_size(self) -> int:
        """Numbers per region in the features; 0 if there are no features."""
        return self.size_of('features')

    @property
    def ids(self) -> np.ndarray:
        """(n,) bytes: the image ids in UTF-8, in the order of the rows, which is that of the file."""
        return self.arrays['ids']

    @property
    def has_image_features(self) -> bool:
        """Whether images have a feature of their own, not only their regions."""
        return 'image_features' in self.arrays

    def size_of(self, column: str) -> int:
        """Numbers per region in 'features' or an optional column; 0 if it is missing."""
        return self.arrays[column].shape[1] if column in self.arrays else 0

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        """The row of each image id, (len(img_ids),) int64; -1 for unknown ids."""
        keys = np.array([img_id.encode() for img_id in img_ids], np.bytes_)
        width = self.ids.dtype.itemsize
        too_long = np.char.str_len(keys) > width
        keys = keys.astype(self.ids.dtype)  # the same dtype, or searchsorted would copy all ids; cuts long keys
        positions = np.searchsorted(self.ids, keys, sorter=self.arrays['order'])
        rows = self.arrays['order'][np.minimum(positions, len(self) - 1)]
        return np.where((self.ids[rows] == keys) & ~too_long, rows, -1)

    def gather(self, rows, lead: int = 0) -> dict[str, np.ndarray]:
        """A batch of b images, padded with 0 to the largest number of regions o among them.

        lead: places, filled with 0, that are left free before the first region of each image; their mask is True.

        Returns features (b, o, f), float32 or float16 as stored, or no such key if there are none; boxes (b, o, 4) float32, x1,
        y1, x2, y2 divided by the width and height of the image; mask (b, o) bool, False for padding.
        Raises IndexError for a row outside 0..n-1, such as the -1 of an unknown id.
        """
        rows, starts, counts = self.spans(rows)
        height_width = self.arrays['sizes'][rows].astype(np.float32)  # (b, 2)
        boxes = self._gather('boxes', starts, counts, lead)
        boxes /= height_width[:, [1, 0, 1, 0]][:, None]  # (b, o, 4) / (b, 1, 4)
        mask = np.arange(lead + counts.max(initial=0)) < lead + counts[:, None]
        features = {'features': self._gather('features', starts, counts, lead)} if self.feature_size else {}
        return features | {'boxes': boxes, 'mask': mask}

    def read(self, rows, columns: Sequence[str], lead: int = 0) -> dict[str, np.ndarray]:
        """The named columns of b images, (b, o, ...) each, padded as in `gather`. Raises RegionError if one is missing."""
        _, starts, counts = self.spans(rows)
        for column in columns:
            if column not in self.arrays:
                raise RegionError(f'{self.name}: expected the column "{column}", found {", ".join(sorted(self.arrays))}; '
                                  f'{ADVICE.get(column, "make the region store from regions that have it")}')
        return {column: self._gather(column, starts, counts, lead) for column in columns}

    def gather_one(self, rows, draws) -> np.ndarray:
        """The features (k, f) of one region of each of k images. draws: (k,) in [0, 1); region floor(draw * count) is taken."""
        _, starts, counts = self.spans(rows)
        return self.arrays['features'][starts + (draws * counts).astype(np.int64)]

    def image_features(self, rows) -> np.ndarray:
        """The feature of each of b images as a whole, (b, f) float32: as stored, else the mean of its regions."""
        if self.has_image_features:
            return self.arrays['image_features'][self.spans(rows)[0]]
        _, starts, counts = self.spans(rows)
        means = [mean_feature(self.arrays['features'][start:start + count])
                 for start, count in zip(starts.tolist(), counts.tolist(), strict=True)]
        return np.stack(means) if means else np.zeros((0, self.feature_size), np.float32)

    def image_sizes(self, rows) -> np.ndarray:
        """Height and width in pixels of b images, (b, 2) int32."""
        return self.arrays['sizes'][self.spans(rows)[0]]

    def region_counts(self, rows) -> np.ndarray:
        """The number of regions of b images, (b,) int64."""
        return self.spans(rows)[2]

    def image(self, row: int) -> ImageRegions:
        """The regions of one image, unchecked; features are float32 even if they are stored as float16."""
        _, (begin,), (count,) = self.spans([row])
        height, width = self.arrays['sizes'][row].tolist()
        arrays = {name: np.array(self.arrays[name][begin:begin + count], dtype) if name in self.arrays else None
                  for name, (_, dtype) in COLUMNS.items()}
        whole_image = np.array(self.arrays['image_features'][row]) if self.has_image_features else None
        return ImageRegions(self.ids[row].decode(), height, width, **arrays, image_feature=whole_image)

    def spans(self, rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows, first index in the arrays, and number of regions of b images, (b,) int64 each. Raises as `gather`."""
        rows = np.asarray(rows, np.int64)
        check_rows(rows, len(self), self.name)
        starts = self.arrays['offsets'][rows]
        return rows, starts, self.arrays['offsets'][rows + 1] - starts

    def check_length(self) -> None:
        """Raises RegionError if a file of the arrays was cut off."""

    def digest(self, rows=None) -> str:
        """Tells whether two regions are the same: features, boxes, classes, ids, in this order. '' if that is not known.

        It is a digest of the digests of the arrays, and does not depend on the folder. rows: tell it of these images only, the
        same for a store and for what was read from a TSV; reads SAMPLE of them, and the ids of all.
        """
        if rows is not None:
            return sample_digest(self, rows)
        if self.digests is None:
            self.digests = {name: hashlib.sha256(np.ascontiguousarray(array)).hexdigest() for name, array in self.arrays.items()}
        lines = ''.join(f'{name}:{digest}\n' for name, digest in sorted(self.digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest() if lines else ''

    def nonfinite(self, rows, most: int = 5) -> list[str]:
        """The ids, at most `most`, of those images whose features or boxes have NaN or infinity. rows: of any shape; -1: none."""
        return list(itertools.islice(nonfinite_ids(self, rows), most))

    def _gather(self, name: str, starts: np.ndarray, counts: np.ndarray, lead: int) -> np.ndarray:
        """One array of b images, (b, lead + o, ...); a single indexing if all images have o regions and there is no lead, else a
        loop over the images."""
        array, o = self.arrays[name], lead + counts.max(initial=0)
        if self.equal_counts and len(starts) and not lead:
            return array.reshape(-1, self.max_regions, *array.shape[1:])[starts // self.max_regions]
        padded = np.zeros((len(starts), o, *array.shape[1:]), array.dtype)
        for image, start, count in zip(padded, starts.tolist(), counts.tolist(), strict=True):
            image[lead:lead + count] = array[start:start + count]
        return padded


class RegionView:
    """Several RegionArrays as one, without copying. Their rows are numbered consecutively.

    Attributes and methods are those of RegionArrays. Of an image that is in several, the first is used. Raises RegionError if the
    sizes of features or of an optional column differ.
    """

    def __init__(self, stores: Sequence[RegionArrays]):
        if not stores:
            raise RegionError('expected at least one region store, found none; name a feature file')
        self.stores = list(stores)
        self.name = ' + '.join(str(store.name) for store in stores)
        self.feature_size = stores[0].feature_size
        for store, column in itertools.product(stores, ('features', *OPTIONAL)):
            expected, size = stores[0].size_of(column), store.size_of(column)
            if size != expected and (column == 'features' or (size and expected)):
                raise RegionError(f'{store.name}: expected {column} of {expected} as in {stores[0].name}, '
                                  f'found {size}; use files made by one detector')
        self.max_regions = max(store.max_regions for store in stores)
        self.has_image_features = any(store.has_image_features for store in stores)
        self.starts = np.cumsum([0] + [len(store) for store in stores])  # (stores + 1,)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([store.ids for store in self.stores])

    def size_of(self, column: str) -> int:
        """As RegionArrays.size_of; 0 unless all stores have the column."""
        return min(store.size_of(column) for store in self.stores)

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        rows = np.full(len(img_ids), -1, np.int64)
        for store, start in zip(self.stores, self.starts, strict=False):
            unknown = np.flatnonzero(rows < 0)
            local = store.rows([img_ids[i] for i in unknown])
            rows[unknown] = np.where(local < 0, -1, local + start)
        return rows

    def gather(self, rows, lead: int = 0) -> dict[str, np.ndarray]:
        return self._per_store(rows, lambda store, rows, _: store.gather(rows, lead))

    def read(self, rows, columns: Sequence[str], lead: int = 0) -> dict[str, np.ndarray]:
        return self._per_store(rows, lambda store, rows, _: store.read(rows, columns, lead))

    def gather_one(self, rows, draws) -> np.ndarray:
        return self._per_store(
            rows, lambda store, rows, of_store: {'features': store.gather_one(rows, draws[of_store])})['features']

    def image_features(self, rows) -> np.ndarray:
        return self._per_store(rows, lambda store, rows, _: {'features': store.image_features(rows)})['features']

    def image_sizes(self, rows) -> np.ndarray:
        return self._per_store(rows, lambda store, rows, _: {'sizes': store.image_sizes(rows)})['sizes']

    def region_counts(self, rows) -> np.ndarray:
        return self._per_store(rows, lambda store, rows, _: {'counts': store.region_counts(rows)[:, None]})['counts'][:, 0]

    def image(self, row: int) -> ImageRegions:
        return self._per_store([row], lambda store, rows, _: store.image(int(rows[0])))

    def digest(self, rows=None) -> str:
        if rows is not None:
            return sample_digest(self, rows)
        digests = [store.digest() for store in self.stores]
        return hashlib.sha256(''.join(digests).encode()).hexdigest() if all(digests) else ''

    def nonfinite(self, rows, most: int = 5) -> list[str]:
        return list(itertools.islice(nonfinite_ids(self, rows), most))

    def _per_store(self, rows, read) -> dict[str, np.ndarray]:
        """Call read(store, rows in the store, their indices in `rows`) for each store needed, and merge the arrays it returns."""
        rows = np.asarray(rows, np.int64)
        check_rows(rows, len(self), self.name)
        store_of = np.searchsorted(self.starts, rows, side='right') - 1
        indices = {i: np.flatnonzero(store_of == i) for i in np.unique(store_of).tolist() or [0]}
        parts = [read(self.stores[i], rows[of_store] - self.starts[i], of_store) for i, of_store in indices.items()]
        if len(parts) == 1:  # most batches are from one store
            return parts[0]
        batch = {}
        for key in parts[0]:
            shape = len(rows), max(part[key].shape[1] for part in parts), *parts[0][key].shape[2:]
            dtype = np.result_type(*(part[key] for part in parts))  # float32 if one store is float32
            batch[key] = np.zeros(shape, dtype)
            for of_store, part in zip(indices.values(), parts, strict=True):
                batch[key][of_store, :part[key].shape[1]] = part[key]
        return batch


Regions = RegionArrays | RegionView


def sample_digest(regions: Regions, rows) -> str:
    """Tells whether some images have the same regions, from the ids of all and the regions of at most SAMPLE of them."""
    rows = np.unique(np.asarray(rows, np.int64))
    digest = hashlib.sha256(b'\n'.join(regions.ids[rows].tolist()))
    for row in rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int)].tolist():
        image = regions.image(row)
        digest.update(f'{image.height} {image.width}'.encode())
        for name in (*COLUMNS, 'image_feature'):
            if (array := getattr(image, name)) is not None:
                digest.update(array)
    return digest.hexdigest()


def nonfinite_ids(regions: Regions, rows) -> Iterator[str]:
    for row in np.unique(rows).tolist():
        image = regions.image(row) if row >= 0 else None
        if image and not all(np.isfinite(array).all() for array in (
                image.features, image.boxes, image.image_feature) if array is not None):
            yield image.img_id


def per_image(img_ids: Sequence[str], sizes: Sequence, counts: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of a store with one entry per image, from ids, (height, width) in pixels, and numbers of regions."""
    ids = np.array([img_id.encode() for img_id in img_ids], np.bytes_)
    return {'offsets': np.concatenate([[0], np.cumsum(counts)]).astype('<i8'), 'sizes': np.array(sizes, '<i4'),
            'ids': ids, 'order': np.argsort(ids).astype('<i8')}


def check_rows(rows: np.ndarray, length: int, name) -> None:
    """Raise IndexError for rows outside 0..length-1. name: of the regions, for the message."""
    wrong = (rows < 0) | (rows >= length)
    if wrong.any():
        raise IndexError(f'{name}: expected rows from 0 to {length - 1}, found {rows[wrong][0]}; leave out '
                         'images of unknown id (row -1)')
