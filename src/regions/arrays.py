"""Regions in arrays, on disk or in RAM: images are looked up by id, batches are gathered by row."""

import itertools
from collections.abc import Sequence

import numpy as np

from regions.tsv import ARRAYS, COLUMNS, OPTIONAL, ImageRegions, RegionError

OBJECTS = ('classes', 'class_conf', 'attributes', 'attribute_conf')
DTYPES = {name: dtype for name, (_, dtype) in ARRAYS.items()}


class RegionArrays:
    """n images whose regions lie one after the other in `arrays`, named as the files of a store are (see `store`).

    `name` is for messages. The features may be float32 or float16, or missing: boxes only.
    """

    def __init__(self, name, arrays: dict[str, np.ndarray], max_regions: int):
        self.name, self.arrays, self.max_regions = name, arrays, max_regions
        self.total = len(arrays['boxes'])
        self.equal_counts = self.total == len(self) * max_regions  # all images have as many regions

    @classmethod
    def of_images(cls, name, images: Sequence[ImageRegions]) -> 'RegionArrays':
        """Images with the same arrays, at least one, copied together in RAM."""
        arrays = {column: np.concatenate([getattr(image, column) for image in images]) for column in COLUMNS
                  if getattr(images[0], column) is not None}
        counts = [len(image.boxes) for image in images]
        sizes = [(image.height, image.width) for image in images]
        return cls(name, arrays | per_image([image.img_id for image in images], sizes, counts), max(counts))

    def __len__(self) -> int:
        return len(self.arrays['sizes'])

    @property
    def feature_size(self) -> int:
        """Numbers in a region's features; 0: there are none."""
        return self.size_of('features')

    @property
    def ids(self) -> np.ndarray:
        """(n,) bytes: the image ids in UTF-8, row by row, so in file order."""
        return self.arrays['ids']

    def size_of(self, column: str) -> int:
        """Numbers a region in 'features' or an optional column; 0: there is none."""
        return self.arrays[column].shape[1] if column in self.arrays else 0

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        """The row of each image id, (len(img_ids),) int64; -1 for unknown ids."""
        keys = np.array([img_id.encode() for img_id in img_ids], np.bytes_)
        width = self.ids.dtype.itemsize
        too_long = np.char.str_len(keys) > width
        keys = keys.astype(self.ids.dtype)  # the same dtype, or searchsorted would copy all ids; cuts long keys
        place = np.searchsorted(self.ids, keys, sorter=self.arrays['order'])
        rows = self.arrays['order'][np.minimum(place, len(self) - 1)]
        return np.where((self.ids[rows] == keys) & ~too_long, rows, -1)

    def gather(self, rows) -> dict[str, np.ndarray]:
        """Features and boxes of b images; o is the largest number of regions among them.

        Returns features (b, o, f), float32 or float16 as they are stored (half the bytes to move; `.float()` them where
        they are used), no such key if there are none; boxes (b, o, 4) float32, x1, y1, x2, y2 divided by the picture's width
        and height; mask (b, o) bool, False where an image has fewer regions and the entries are 0.
        Raises IndexError for a row that is not in 0..n-1, such as the -1 of an unknown id.
        """
        rows, starts, counts = self.spans(rows)
        height_width = self.arrays['sizes'][rows].astype(np.float32)  # (b, 2)
        boxes = self._copy('boxes', starts, counts)
        boxes /= height_width[:, [1, 0, 1, 0]][:, None]  # (b, o, 4) / (b, 1, 4)
        mask = np.arange(counts.max(initial=0)) < counts[:, None]
        features = {'features': self._copy('features', starts, counts)} if self.feature_size else {}
        return features | {'boxes': boxes, 'mask': mask}

    def read(self, rows, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """Some columns of b images, (b, o, ...) each, padded with 0 as in `gather`. Raises RegionError if one is missing."""
        _, starts, counts = self.spans(rows)
        for column in columns:
            if column not in self.arrays:
                raise RegionError(f'{self.name}: expected the column "{column}", found {", ".join(sorted(self.arrays))}; make '
                                  'the region store from regions that have it')
        return {column: self._copy(column, starts, counts) for column in columns}

    def objects(self, rows) -> dict[str, np.ndarray]:
        """The detector's output: classes, attributes (b, o) int64, class_conf, attribute_conf (b, o) float32, as `read`."""
        return self.read(rows, OBJECTS)

    def gather_one(self, rows, shares) -> np.ndarray:
        """The features (k, f) of one region of each of k images: that at a share (k,) from 0 to below 1 of its regions."""
        _, starts, counts = self.spans(rows)
        return self.arrays['features'][starts + (shares * counts).astype(np.int64)]

    def image_sizes(self, rows) -> np.ndarray:
        """Height and width in pixels of some images, (b, 2) int32."""
        return self.arrays['sizes'][np.asarray(rows, np.int64)]

    def image(self, row: int) -> ImageRegions:
        """The regions of one image; features are float32 even if they are stored as float16. Nothing is checked."""
        begin, end = self.arrays['offsets'][row:row + 2].tolist()
        height, width = self.arrays['sizes'][row].tolist()
        arrays = {name: np.array(self.arrays[name][begin:end], dtype) if name in self.arrays else None
                  for name, (_, dtype) in COLUMNS.items()}
        return ImageRegions(self.ids[row].decode(), height, width, **arrays)

    def spans(self, rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (b,), checked as by `gather`; where the regions of each start in the arrays (b,), and how many (b,)."""
        rows = np.asarray(rows, np.int64)
        check_rows(rows, len(self), self.name)
        starts = self.arrays['offsets'][rows]
        return rows, starts, self.arrays['offsets'][rows + 1] - starts

    def _copy(self, name: str, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """One array of b images, (b, o, ...): by one indexing if all images have o regions, else image by image."""
        array, o = self.arrays[name], counts.max(initial=0)
        if self.equal_counts and len(starts):
            return array.reshape(-1, self.max_regions, *array.shape[1:])[starts // self.max_regions]
        padded = np.zeros((len(starts), o, *array.shape[1:]), array.dtype)
        for image, start, count in zip(padded, starts.tolist(), counts.tolist(), strict=True):
            image[:count] = array[start:start + count]
        return padded


class RegionView:
    """Several RegionArrays as one, without copying: the rows of the second follow those of the first, and so on.

    All attributes and methods are as those of RegionArrays. An id that is in several means the first of them. Raises
    RegionError if the sizes of features or of an optional column differ.
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
        self.starts = np.cumsum([0] + [len(store) for store in stores])  # (stores + 1,)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def ids(self) -> np.ndarray:
        return np.concatenate([store.ids for store in self.stores])

    def size_of(self, column: str) -> int:
        """As RegionArrays.size_of; also 0 if only some of the stores have it."""
        return min(store.size_of(column) for store in self.stores)

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        rows = np.full(len(img_ids), -1, np.int64)
        for store, start in zip(self.stores, self.starts, strict=False):
            unknown = np.flatnonzero(rows < 0)
            local = store.rows([img_ids[i] for i in unknown])
            rows[unknown] = np.where(local < 0, -1, local + start)
        return rows

    def gather(self, rows) -> dict[str, np.ndarray]:
        return self._of_each(rows, lambda store, rows, _: store.gather(rows))

    def read(self, rows, columns: Sequence[str]) -> dict[str, np.ndarray]:
        return self._of_each(rows, lambda store, rows, _: store.read(rows, columns))

    def objects(self, rows) -> dict[str, np.ndarray]:
        return self.read(rows, OBJECTS)

    def gather_one(self, rows, shares) -> np.ndarray:
        return self._of_each(rows, lambda store, rows, places: {'features': store.gather_one(rows, shares[places])})['features']

    def image_sizes(self, rows) -> np.ndarray:
        return self._of_each(rows, lambda store, rows, _: {'sizes': store.image_sizes(rows)})['sizes']

    def image(self, row: int) -> ImageRegions:
        return self._of_each([row], lambda store, rows, _: store.image(int(rows[0])))

    def _of_each(self, rows, read) -> dict[str, np.ndarray]:
        """What read(store, its rows, their places in `rows`) returns, for each store that has some of them, copied together."""
        rows = np.asarray(rows, np.int64)
        check_rows(rows, len(self), self.name)
        store_of = np.searchsorted(self.starts, rows, side='right') - 1
        places = {i: np.flatnonzero(store_of == i) for i in np.unique(store_of).tolist() or [0]}
        parts = [read(self.stores[i], rows[of_store] - self.starts[i], of_store) for i, of_store in places.items()]
        if len(parts) == 1:  # most batches are of one store
            return parts[0]
        batch = {}
        for key in parts[0]:
            shape = len(rows), max(part[key].shape[1] for part in parts), *parts[0][key].shape[2:]
            dtype = np.result_type(*(part[key] for part in parts))  # float32 if one of the stores has it
            batch[key] = np.zeros(shape, dtype)
            for of_store, part in zip(places.values(), parts, strict=True):
                batch[key][of_store, :part[key].shape[1]] = part[key]
        return batch


Regions = RegionArrays | RegionView


def per_image(img_ids: Sequence[str], sizes: Sequence, counts: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of a store that have an entry an image, from ids, (height, width) and numbers of regions."""
    ids = np.array([img_id.encode() for img_id in img_ids], np.bytes_)
    return {'offsets': np.concatenate([[0], np.cumsum(counts)]).astype('<i8'), 'sizes': np.array(sizes, '<i4'),
            'ids': ids, 'order': np.argsort(ids).astype('<i8')}


def check_rows(rows: np.ndarray, length: int, name) -> None:
    """Raise IndexError, naming the regions, for rows that are not in 0..length-1."""
    wrong = (rows < 0) | (rows >= length)
    if wrong.any():
        raise IndexError(f'{name}: expected rows from 0 to {length - 1}, found {rows[wrong][0]}; leave images out '
                         'whose id is unknown (row -1)')
