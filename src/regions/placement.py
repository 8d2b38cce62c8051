"""Where regions are kept while batches are gathered from them: on disk by memory map, in RAM, or on the GPU (--featDevice)."""

import weakref
from collections.abc import Sequence

import numpy as np
import torch

from regions.arrays import RegionArrays, Regions, RegionView, check_rows
from regions.tsv import OPTIONAL, RegionError

CHUNK = 1 << 14  # regions that are copied to the device at once
SPARE = 1 << 30  # bytes of the device's memory that regions leave to others at the least
_LOADED = weakref.WeakValueDictionary()  # (store's name, stamp, device) -> its Table, shared by splits


def place(regions: Regions, where: str, device: torch.device) -> 'Regions | OnDevice':
    """The regions where --featDevice says: 'cpu' as they are, 'ram' read into RAM once, 'cuda' on `device`.

    Raises RegionError, naming their size and the free memory, if they do not fit on the device.
    """
    if where == 'ram':
        return in_ram(regions)
    if where == 'cuda' and device.type != 'cuda':
        raise RegionError('--featDevice cuda: there is no GPU to keep features on; give --featDevice cpu or ram')
    return OnDevice(regions, device) if where == 'cuda' else regions


def gather_batch(regions: 'Regions | OnDevice', rows: np.ndarray, static_shape: bool = False,
                 columns: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The regions of b rows for a batch, and their mask (b, o). The regions of a row that is -1 are all masked and 0.

    Features and boxes are those of `gather`, or, of regions on a device, places (b, o) int64; `to_device` takes either.
    static_shape: o is the largest number of regions of any image, not of these. columns: names of optional columns, each
    returned (b, o, ...) under its own name; RegionError if the regions have no such column.
    """
    known = np.maximum(rows, 0)
    if isinstance(regions, OnDevice):
        places = regions.places(rows)
        batch, fill = {'places': places, 'mask': places >= 0}, {'places': -1}
    else:
        batch, fill = regions.gather(known), {}
    if columns:
        # Row 0, which is read instead of -1, may have more regions than the places.
        batch |= {name: pad_regions(array[:, :batch['mask'].shape[1]], batch['mask'].shape[1])
                  for name, array in regions.read(known, columns).items()}
    if static_shape:
        batch = {name: pad_regions(array, regions.max_regions, fill.get(name, 0)) for name, array in batch.items()}
    missing = rows < 0
    if missing.any():
        for name, array in batch.items():
            batch[name] = np.where(missing.reshape(-1, *[1] * (array.ndim - 1)), array.dtype.type(fill.get(name, 0)), array)
    return batch


def gather_noise(regions: 'Regions | OnDevice', rows: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
    """The features of one region of each of k rows: noise (k, f) as by `gather_one`, or, on a device, noise_places (k,)."""
    if isinstance(regions, OnDevice):
        places = regions.places(rows)  # (k, o)
        return {'noise_places': places[np.arange(len(rows)), (shares * (places >= 0).sum(1)).astype(np.int64)]}
    return {'noise': regions.gather_one(rows, shares)}


def pad_regions(array: np.ndarray, o: int, fill=0) -> np.ndarray:
    """(b, n, ...) -> (b, o, ...)."""
    more = o - array.shape[1]
    return np.pad(array, [(0, 0), (0, more), *[(0, 0)] * (array.ndim - 2)], constant_values=fill) if more else array


def to_device(regions: 'Regions | OnDevice', batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch that was copied to the device, with features and boxes instead of places, noise (k, f) instead of noise_places,
    and float32 instead of float16."""
    if 'noise_places' in batch:
        batch['noise'] = regions.look_up(batch.pop('noise_places'))['features']
    if 'places' in batch:
        batch |= regions.look_up(batch.pop('places'))
    return batch | {name: batch[name].float() for name in ('features', 'noise', *OPTIONAL) if name in batch}


def in_ram(regions: Regions) -> Regions:
    """The same regions with all arrays in the RAM of this process; a worker that is forked shares it."""
    if isinstance(regions, RegionView):
        return RegionView([in_ram(store) for store in regions.stores])
    return RegionArrays(regions.name, {name: np.array(array) for name, array in regions.arrays.items()}, regions.max_regions)


class OnDevice:
    """Regions whose features (half precision) and boxes are all on a device; a batch is copied there as places.

    `places` runs where batches are prepared, in any process, and uses no device; `look_up` runs on the device without waiting
    for it. All else is as in the regions it was made of.
    """

    def __init__(self, regions: Regions, device: torch.device):
        self.regions = regions
        for name in ('name', 'ids', 'feature_size', 'max_regions', 'size_of', 'rows', 'read', 'objects', 'image', 'image_sizes'):
            setattr(self, name, getattr(regions, name))
        self.stores = getattr(regions, 'stores', [regions])
        self.starts = np.cumsum([0] + [store.total for store in self.stores]).tolist()  # of each store's regions, among all
        missing = [store for store in self.stores if _key(store, device) not in _LOADED]
        check_gpu_memory(sum(_size(store) for store in missing), regions.name, device)
        self.tables = []
        for store in self.stores:
            table = _LOADED.get(_key(store, device)) or Table(store, device)
            _LOADED[_key(store, device)] = table
            self.tables.append(table)

    def __len__(self) -> int:
        return len(self.regions)

    def places(self, rows) -> np.ndarray:
        """Where the regions of b images are, (b, o) int64, -1 for padding and for all regions of a row that is -1."""
        rows = np.asarray(rows, np.int64)
        known = rows >= 0
        check_rows(rows[known], len(self), self.name)
        starts, counts = np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64)
        row_starts = np.cumsum([0] + [len(store) for store in self.stores])
        store_of = np.searchsorted(row_starts, rows, side='right') - 1
        for i, store in enumerate(self.stores):
            local = known & (store_of == i)
            _, start, counts[local] = store.spans(rows[local] - row_starts[i])
            starts[local] = start + self.starts[i]
        step = np.arange(counts.max(initial=0))
        return np.where(known[:, None] & (step < counts[:, None]), starts[:, None] + step, -1)

    def look_up(self, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features (..., f), unless there are none, and boxes (..., 4), float32 as from `gather`, of places (...) int64 on the
        device."""
        batch = {}
        for table, start, end in zip(self.tables, self.starts, self.starts[1:], strict=False):
            local = ((places >= start) & (places < end))[..., None]  # (..., 1)
            index = (places - start).clamp(0, end - start - 1)
            for name, array in table.arrays.items():
                rows = torch.where(local, array[index], 0)
                # Each place is of one store and 0 in the others, so that their sum is exact.
                batch[name] = batch[name] + rows if name in batch else rows
        return {name: array.float() for name, array in batch.items()}


class Table:
    """A store's features (total, f) float16, unless it has none, and boxes (total, 4) float32, scaled to 0..1, on a device."""

    def __init__(self, store: RegionArrays, device: torch.device):
        boxes = torch.empty(store.total, 4, device=device)
        features = torch.empty(store.total, store.feature_size, dtype=torch.float16, device=device)
        scale = store.arrays['sizes'][:, [1, 0, 1, 0]].astype(np.float32)  # (n, 4)
        image_of = np.repeat(np.arange(len(store)), np.diff(store.arrays['offsets']))  # (total,)
        finite = torch.ones((), dtype=torch.bool, device=device)
        for start in range(0, store.total, CHUNK):
            part = slice(start, start + CHUNK)
            boxes[part] = torch.from_numpy(store.arrays['boxes'][part] / scale[image_of[part]]).to(device)
            if store.feature_size:
                # A copy: PyTorch has no tensors that cannot be written.
                features[part] = torch.from_numpy(np.array(store.arrays['features'][part])).to(device)
                finite &= torch.isfinite(features[part]).all()
        if not finite:
            raise RegionError(f'{store.name}: has features too large for half precision (over 65504); give --featDevice ram')
        self.arrays = ({'features': features} if store.feature_size else {}) | {'boxes': boxes}


def check_gpu_memory(size: int, name, device: torch.device) -> None:
    """Raise RegionError if `size` bytes more do not fit on a GPU next to the model."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else np.inf
    if size > free - SPARE:
        raise RegionError(f'--featDevice cuda: the regions of {name} take {size / 1e9:.1f} GB in half precision, and '
                          f'{free / 1e9:.1f} GB of {device} are free, of which {SPARE / 1e9:.1f} GB are left to the model at the '
                          'least; give --featDevice cpu or ram, or a GPU with more memory')


def _size(store: RegionArrays) -> int:
    """Bytes of a store's Table."""
    return store.total * (2 * store.feature_size + 4 * 4)


def _key(store: RegionArrays, device: torch.device):
    # What was read for --tiny has no stamp: it is another one each time.
    return str(store.name), getattr(store, 'meta', {}).get('stamp', id(store)), str(device)
