"""Where regions stay while batches are gathered from them: on disk by memory map, in RAM, or on the GPU (--featDevice)."""

import weakref

import numpy as np
import torch

from regions.arrays import RegionArrays, Regions, RegionView, check_rows
from regions.tsv import RegionError

CHUNK = 1 << 14  # regions that are copied to the device at once
SPARE = 1 << 30  # bytes of the device's memory that regions leave to others at the least
_LOADED = weakref.WeakValueDictionary()  # (store's name, stamp, device) -> its Table, shared by splits


def place(regions: Regions, where: str, device: torch.device) -> Regions:
    """The regions where --featDevice says: 'cpu' as they are, 'ram' read into RAM once, 'cuda' on `device`.

    Raises RegionError if they do not fit on the device, telling their size and the memory that is free.
    """
    if where == 'ram':
        return in_ram(regions)
    if where == 'cuda' and device.type != 'cuda':
        raise RegionError('--featDevice cuda: there is no GPU to keep features on; give --featDevice cpu or ram')
    return OnDevice(regions, device) if where == 'cuda' else regions


def see(regions: Regions, rows: np.ndarray, whole: bool = False) -> dict[str, np.ndarray]:
    """The regions of b rows, for a batch, and their mask (b, o); of a row that is -1, every region is masked and empty.

    Features and boxes as from `gather`, or, of regions on a device, places (b, o) int64; `finish` takes either. whole: o is the
    most regions that any image has, not any of these.
    """
    if isinstance(regions, OnDevice):
        places = regions.places(rows)
        places = widen(places, regions.max_regions, -1) if whole else places
        return {'places': places, 'mask': places >= 0}
    seen = regions.gather(np.maximum(rows, 0))
    if whole:
        seen = {name: widen(array, regions.max_regions) for name, array in seen.items()}
    blind = rows < 0
    if blind.any():
        seen = {name: np.where(blind.reshape(-1, *[1] * (array.ndim - 1)), 0, array) for name, array in seen.items()}
    return seen


def widen(array: np.ndarray, o: int, fill=0) -> np.ndarray:
    """(b, n, ...) -> (b, o, ...), filled up."""
    more = o - array.shape[1]
    return np.pad(array, [(0, 0), (0, more), *[(0, 0)] * (array.ndim - 2)], constant_values=fill) if more else array


def finish(regions: Regions, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch that has reached the device: features of places that are there, or float32 of features that crossed in half; and
    likewise `noise` (k, f) of what was picked."""
    if 'noise_places' in batch:
        batch['noise'] = regions.look_up(batch.pop('noise_places'))['features']
    if 'places' in batch:
        batch |= regions.look_up(batch.pop('places'))
    return batch | {name: batch[name].float() for name in ('features', 'noise') if name in batch}


def pick(regions: Regions, rows: np.ndarray, shares: np.ndarray) -> dict[str, np.ndarray]:
    """One region's features of each of k rows, as `Regions.pick`: noise (k, f), or, of regions on a device, noise_places (k,)."""
    if isinstance(regions, OnDevice):
        places = regions.places(rows)  # (k, o)
        return {'noise_places': places[np.arange(len(rows)), (shares * (places >= 0).sum(1)).astype(np.int64)]}
    return {'noise': regions.pick(rows, shares)}


def in_ram(regions: RegionArrays | RegionView) -> RegionArrays | RegionView:
    """The same regions with features and boxes in the RAM of this process; a worker that is forked shares it."""
    if isinstance(regions, RegionView):
        return RegionView([in_ram(store) for store in regions.stores])
    return RegionArrays(regions.name, {name: np.array(array) for name, array in regions.arrays.items()}, regions.max_regions)


class OnDevice:
    """Regions whose features (half precision) and boxes are on a device as a whole; a batch reaches it as places.

    `places` runs where batches are prepared, in any process, and touches no device; `look_up` runs on the device and
    waits for nothing. Otherwise as the regions it was made of.
    """

    def __init__(self, regions: RegionArrays | RegionView, device: torch.device):
        self.regions = regions
        self.name, self.feature_size, self.max_regions, self.ids = (
            regions.name, regions.feature_size, regions.max_regions, regions.ids)
        self.objects = regions.objects
        self.rows, self.stores = regions.rows, getattr(regions, 'stores', [regions])
        totals = [len(store.arrays['features']) for store in self.stores]
        self.starts = np.cumsum([0] + totals).tolist()  # of each store's regions, among those of all
        missing = [store for store in self.stores if _key(store, device) not in _LOADED]
        check_room(sum(_size(store) for store in missing), regions.name, device)
        self.tables = []
        for store in self.stores:
            table = _LOADED.get(_key(store, device)) or Table(store, device)
            _LOADED[_key(store, device)] = table
            self.tables.append(table)

    def __len__(self) -> int:
        return len(self.regions)

    def places(self, rows) -> np.ndarray:
        """Where the regions of b images are, (b, o) int64, -1 for padding, and in the whole of a row that is -1."""
        rows = np.asarray(rows, np.int64)
        seen = rows >= 0
        check_rows(rows[seen], len(self), self.name)
        starts, counts = np.zeros(len(rows), np.int64), np.ones(len(rows), np.int64)
        row_starts = np.cumsum([0] + [len(store) for store in self.stores])
        owner = np.searchsorted(row_starts, rows, side='right') - 1
        for which, store in enumerate(self.stores):
            own = seen & (owner == which)
            _, start, counts[own] = store.spans(rows[own] - row_starts[which])
            starts[own] = start + self.starts[which]
        step = np.arange(counts.max(initial=0))
        return np.where(seen[:, None] & (step < counts[:, None]), starts[:, None] + step, -1)

    def look_up(self, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features (b, o, f) and boxes (b, o, 4), float32 as from `gather`, of places (b, o) int64 on the device."""
        features = boxes = None
        for table, start, end in zip(self.tables, self.starts, self.starts[1:], strict=False):
            own = ((places >= start) & (places < end))[..., None]  # (b, o, 1)
            local = (places - start).clamp(0, end - start - 1)
            found = torch.where(own, table.features[local], 0), torch.where(own, table.boxes[local], 0)
            # Each place is of one store and 0 in the others, so that their sum is exact.
            features, boxes = found if features is None else (features + found[0], boxes + found[1])
        return {'features': features.float(), 'boxes': boxes}


class Table:
    """A store's features (total, f) float16 and boxes (total, 4) float32, scaled to 0..1, on a device."""

    def __init__(self, store: RegionArrays, device: torch.device):
        arrays, total = store.arrays, len(store.arrays['features'])
        self.features = torch.empty(total, store.feature_size, dtype=torch.float16, device=device)
        self.boxes = torch.empty(total, 4, device=device)
        scale = arrays['sizes'][:, [1, 0, 1, 0]].astype(np.float32)  # (n, 4)
        image_of = np.repeat(np.arange(len(store)), np.diff(arrays['offsets']))  # (total,)
        finite = torch.ones((), dtype=torch.bool, device=device)
        for start in range(0, total, CHUNK):
            part = slice(start, start + CHUNK)
            # A copy: PyTorch has no tensors that cannot be written.
            self.features[part] = torch.from_numpy(np.array(arrays['features'][part])).to(device)
            self.boxes[part] = torch.from_numpy(arrays['boxes'][part] / scale[image_of[part]]).to(device)
            finite &= torch.isfinite(self.features[part]).all()
        if not finite:
            raise RegionError(f'{store.name}: has features too large for half precision (over 65504); give --featDevice ram')


def check_room(size: int, name, device: torch.device, free: int | None = None) -> None:
    """Raise RegionError if `size` bytes more do not fit on a GPU, with room to spare; `free` is for tests."""
    if free is None:
        if device.type != 'cuda':
            return
        free = torch.cuda.mem_get_info(device)[0]
    if size > free - SPARE:
        raise RegionError(f'--featDevice cuda: the regions of {name} take {size / 1e9:.1f} GB in half precision, and '
                          f'{free / 1e9:.1f} GB of {device} are free, of which {SPARE / 1e9:.1f} GB are left to the model at the '
                          'least; give --featDevice cpu or ram, or a GPU with more memory')


def _size(store: RegionArrays) -> int:
    """Bytes of a store's Table."""
    return len(store.arrays['features']) * (2 * store.feature_size + 4 * 4)


def _key(store: RegionArrays, device: torch.device):
    # What was read for --tiny has no stamp: it is another one each time.
    return str(store.name), getattr(store, 'meta', {}).get('stamp', id(store)), str(device)


gather_batch, to_device, gather_noise, pad_regions = see, finish, pick, widen
