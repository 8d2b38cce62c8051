"""Regions in arrays, on disk or in RAM: looking images up by id and gathering batches, from one set, several or a part.

All of them have len(), ids, feature_size, max_regions, rows(img_ids), gather(rows), objects(rows), pick(rows, shares),
subset(img_ids).
"""

from collections.abc import Sequence

import numpy as np

from regions import tsv
from regions.tsv import ImageRegions, RegionError

OBJECTS = ('classes', 'class_conf', 'attributes', 'attribute_conf')
DTYPES = {name: dtype for name, (_, dtype) in tsv.ARRAYS.items()}


class Regions:
    """What one set of regions, several and a part of one have in common."""

    def subset(self, img_ids: Sequence[str]) -> 'RegionSubset':
        """Only these images, in this order, without copying. Raises RegionError naming ids that are not here."""
        return RegionSubset(self, img_ids)

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        """The row of each image id, (len(img_ids),) int64; -1 for ids that are not here."""
        raise NotImplementedError

    def gather(self, rows) -> dict[str, np.ndarray]:
        """Features and boxes of b images, o being the most regions any of them has.

        Returns features (b, o, f), float32 or float16 as they are kept (half the bytes to move; `.float()` them where
        they are used); boxes (b, o, 4) float32, x1, y1, x2, y2 divided by the picture's width and height; mask (b, o)
        bool, False where an image has fewer regions and the entries are 0.
        Raises IndexError for a row that is not in 0..n-1, such as the -1 of an unknown id.
        """
        raise NotImplementedError

    def objects(self, rows) -> dict[str, np.ndarray]:
        """What the detector saw: classes, attributes (b, o) int64 and class_conf, attribute_conf (b, o) float32.

        Padded with 0 as in `gather`, whose mask holds here too.
        """
        raise NotImplementedError

    def pick(self, rows, shares) -> np.ndarray:
        """The features (k, f) of one region of each of k images: that at a share (k,) from 0 to below 1 of its regions."""
        raise NotImplementedError


class RegionArrays(Regions):
    """n images whose regions lie one after the other in `arrays`, named as the files of a store are (see `store`).

    `name` stands in messages. The features may be float32 or float16.
    """

    def __init__(self, name, arrays: dict[str, np.ndarray], max_regions: int):
        self.name, self.arrays, self.max_regions = name, arrays, max_regions
        self.even = len(arrays['features']) == len(self) * max_regions  # all images have as many regions

    @classmethod
    def of_images(cls, name, images: Sequence[ImageRegions]) -> 'RegionArrays':
        """Images of one feature size, at least one, put together in RAM."""
        arrays = {field: np.concatenate([getattr(image, field) for image in images]) for field in DTYPES}
        counts = [len(image.boxes) for image in images]
        sizes = [(image.height, image.width) for image in images]
        return cls(name, arrays | per_image([image.img_id for image in images], sizes, counts), max(counts))

    def __len__(self) -> int:
        return len(self.arrays['sizes'])

    @property
    def feature_size(self) -> int:
        return self.arrays['features'].shape[1]

    @property
    def ids(self) -> np.ndarray:
        """(n,) bytes: the image ids in UTF-8, row by row, so in file order."""
        return self.arrays['ids']

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        keys = np.array([img_id.encode() for img_id in img_ids], np.bytes_)
        width = self.ids.dtype.itemsize
        too_long = np.char.str_len(keys) > width
        keys = keys.astype(self.ids.dtype)  # the same dtype, or searchsorted would copy all ids; cuts long keys
        place = np.searchsorted(self.ids, keys, sorter=self.arrays['order'])
        rows = self.arrays['order'][np.minimum(place, len(self) - 1)]
        return np.where((self.ids[rows] == keys) & ~too_long, rows, -1)

    def gather(self, rows) -> dict[str, np.ndarray]:
        rows, starts, counts = self.spans(rows)
        height_width = self.arrays['sizes'][rows].astype(np.float32)  # (b, 2)
        boxes = self._read('boxes', starts, counts)
        boxes /= height_width[:, [1, 0, 1, 0]][:, None]  # (b, o, 4) / (b, 1, 4)
        mask = np.arange(counts.max(initial=0)) < counts[:, None]
        return {'features': self._read('features', starts, counts), 'boxes': boxes, 'mask': mask}

    def objects(self, rows) -> dict[str, np.ndarray]:
        _, starts, counts = self.spans(rows)
        return {name: self._read(name, starts, counts) for name in OBJECTS}

    def pick(self, rows, shares) -> np.ndarray:
        _, starts, counts = self.spans(rows)
        return self.arrays['features'][starts + (shares * counts).astype(np.int64)]

    def image_sizes(self, rows) -> np.ndarray:
        """Height and width in pixels of some images, (b, 2) int32."""
        return self.arrays['sizes'][np.asarray(rows, np.int64)]

    def image(self, row: int) -> ImageRegions:
        """The regions of one image as a TSV has them, features as float32 whatever is kept; nothing is checked."""
        begin, end = self.arrays['offsets'][row:row + 2].tolist()
        height, width = self.arrays['sizes'][row].tolist()
        return ImageRegions(self.ids[row].decode(), height, width,
                            **{name: np.array(self.arrays[name][begin:end], dtype) for name, dtype in DTYPES.items()})

    def spans(self, rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (b,), checked as by `gather`; where the regions of each start in the arrays (b,), and how many (b,)."""
        rows = np.asarray(rows, np.int64)
        check_rows(rows, len(self), self.name)
        starts = self.arrays['offsets'][rows]
        return rows, starts, self.arrays['offsets'][rows + 1] - starts

    def _read(self, name: str, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """One array of b images, (b, o, ...): an indexing where all have o regions, else a block copy an image."""
        array, o = self.arrays[name], counts.max(initial=0)
        if self.even and len(starts):
            return array.reshape(-1, self.max_regions, *array.shape[1:])[starts // self.max_regions]
        taken = np.zeros((len(starts), o, *array.shape[1:]), array.dtype)
        for place, start, count in zip(taken, starts.tolist(), counts.tolist(), strict=True):
            place[:count] = array[start:start + count]
        return taken


class RegionView(Regions):
    """Several sets of regions as one, without copying: the rows of the second follow those of the first, and so on.

    An id that is in several means the first of them. Raises RegionError if feature sizes differ.
    """

    def __init__(self, stores: Sequence[Regions]):
        if not stores:
            raise RegionError('expected at least one region store, found none; name a feature file')
        self.stores = list(stores)
        self.name = ' + '.join(str(store.name) for store in stores)
        self.feature_size = stores[0].feature_size
        for store in stores:
            if store.feature_size != self.feature_size:
                raise RegionError(f'{store.name}: expected features of {self.feature_size} as in {stores[0].name}, '
                                  f'found {store.feature_size}; use files made by one detector')
        self.max_regions = max(store.max_regions for store in stores)
        self.starts = np.cumsum([0] + [len(store) for store in stores])  # (stores + 1,)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def ids(self) -> np.ndarray:
        """(n,) bytes, as RegionArrays.ids, but copied together on each call."""
        return np.concatenate([store.ids for store in self.stores])

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        rows = np.full(len(img_ids), -1, np.int64)
        for store, start in zip(self.stores, self.starts, strict=False):
            unknown = np.flatnonzero(rows < 0)
            found = store.rows([img_ids[i] for i in unknown])
            rows[unknown] = np.where(found < 0, -1, found + start)
        return rows

    def gather(self, rows) -> dict[str, np.ndarray]:
        return self._each('gather', rows)

    def objects(self, rows) -> dict[str, np.ndarray]:
        return self._each('objects', rows)

    def pick(self, rows, shares) -> np.ndarray:
        rows, owner, owners = self.owners(rows)
        parts = [self.stores[which].pick(rows[owner == which] - self.starts[which], shares[owner == which]) for which in owners]
        picked = np.zeros((len(rows), self.feature_size), np.result_type(np.float16, *parts))
        for which, part in zip(owners, parts, strict=True):
            picked[owner == which] = part
        return picked

    def image_sizes(self, rows) -> np.ndarray:
        """As RegionArrays.image_sizes."""
        rows, owner, owners = self.owners(rows)
        sizes = np.zeros((len(rows), 2), np.int32)
        for which in owners:
            sizes[owner == which] = self.stores[which].image_sizes(rows[owner == which] - self.starts[which])
        return sizes

    def image(self, row: int) -> ImageRegions:
        """As RegionArrays.image."""
        _, _, (which,) = self.owners([row])
        return self.stores[which].image(row - int(self.starts[which]))

    def owners(self, rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows (b,), checked as by `gather`; which of the sets each is of (b,); which of them occur, in order."""
        rows = np.asarray(rows, np.int64)
        check_rows(rows, len(self), self.name)
        owner = np.searchsorted(self.starts, rows, side='right') - 1
        return rows, owner, np.unique(owner)

    def _each(self, read: str, rows) -> dict[str, np.ndarray]:
        rows, owner, owners = self.owners(rows)
        if len(owners) <= 1:  # the usual batch is of one store: nothing to put together
            which = int(owners[0]) if len(owners) else 0
            return getattr(self.stores[which], read)(rows - self.starts[which])
        parts = [getattr(self.stores[which], read)(rows[owner == which] - self.starts[which]) for which in owners]
        batch = {}
        for key in parts[0]:
            o = max(part[key].shape[1] for part in parts)
            dtype = np.result_type(*(part[key] for part in parts))  # float32 if one of the stores has it
            batch[key] = np.zeros((len(rows), o, *parts[0][key].shape[2:]), dtype)
            for which, part in zip(owners, parts, strict=True):
                batch[key][owner == which, :part[key].shape[1]] = part[key]
        return batch


class RegionSubset(Regions):
    """Some images of `regions`: row i here is that of the i-th of `img_ids` there, and nothing is copied."""

    def __init__(self, regions: Regions, img_ids: Sequence[str]):
        img_ids = list(img_ids)
        self.regions, self.where = regions, regions.rows(img_ids)  # (n,) int64: the row there
        missing = [img_ids[i] for i in np.flatnonzero(self.where < 0)]
        if missing:
            raise RegionError(f'{regions.name}: expected regions of {len(img_ids)} images, found none of {len(missing)}: '
                              f'{", ".join(missing[:3])}; leave them out, or extract their regions')
        self.name, self.feature_size, self.max_regions = regions.name, regions.feature_size, regions.max_regions
        self._order = np.argsort(self.where, kind='stable')

    def __len__(self) -> int:
        return len(self.where)

    @property
    def ids(self) -> np.ndarray:
        return self.regions.ids[self.where]

    def rows(self, img_ids: Sequence[str]) -> np.ndarray:
        there = self.regions.rows(img_ids)
        if not len(self):
            return np.full(len(there), -1, np.int64)
        rows = self._order[np.minimum(np.searchsorted(self.where, there, sorter=self._order), len(self) - 1)]
        return np.where((there >= 0) & (self.where[rows] == there), rows, -1)

    def gather(self, rows) -> dict[str, np.ndarray]:
        return self.regions.gather(self._there(rows))

    def objects(self, rows) -> dict[str, np.ndarray]:
        return self.regions.objects(self._there(rows))

    def pick(self, rows, shares) -> np.ndarray:
        return self.regions.pick(self._there(rows), shares)

    def _there(self, rows) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        check_rows(rows, len(self), self.name)
        return self.where[rows]


def per_image(img_ids: Sequence[str], sizes: Sequence, counts: Sequence[int]) -> dict[str, np.ndarray]:
    """The arrays of a store that have an entry an image, from ids, (height, width) and numbers of regions."""
    ids = np.array([img_id.encode() for img_id in img_ids], np.bytes_)
    return {'offsets': np.concatenate([[0], np.cumsum(counts)]).astype('<i8'), 'sizes': np.array(sizes, '<i4'),
            'ids': ids, 'order': np.argsort(ids).astype('<i8')}


def check_rows(rows: np.ndarray, length: int, where) -> None:
    """Raise IndexError, naming `where`, for rows that are not in 0..length-1."""
    wrong = (rows < 0) | (rows >= length)
    if wrong.any():
        raise IndexError(f'{where}: expected rows from 0 to {length - 1}, found {rows[wrong][0]}; leave images out '
                         'whose id is unknown (row -1)')
