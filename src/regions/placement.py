"""Gathers batches from regions on disk (memory mapped), in RAM, or on the GPU (--featDevice)."""

import copy
import weakref
from collections.abc import Sequence

import numpy as np
import torch

from regions.arrays import RegionArrays, Regions, RegionView, check_rows
from regions.tsv import OPTIONAL, RegionError

CHUNK = 1 << 14  # regions that are copied to the device at once
RESERVED = 1 << 30  # bytes of GPU memory that stay free for the model
_LOADED = weakref.WeakValueDictionary()  # (store's name, stamp, feature size, device) -> its Table, shared by splits


def place(regions: Regions, where: str, device: torch.device) -> 'Regions | OnDevice':
    """Regions moved as --featDevice says: 'cpu' leaves them, 'ram' reads them into RAM, 'cuda' copies them to `device`.

    Raises RegionError if there is no GPU, or its free memory is too small.
    """
    if where == 'ram':
        return in_ram(regions)
    if where == 'cuda':
        check_gpu(device)
    return OnDevice(regions, device) if where == 'cuda' else regions


def check_gpu(device: torch.device) -> None:
    """Raises RegionError if the device of --featDevice cuda is no GPU."""
    if device.type != 'cuda':
        raise RegionError('--featDevice cuda: there is no GPU for the features; give --featDevice cpu or ram')


def without_features(regions: Regions) -> Regions:
    """The same regions as boxes alone, so that no feature is read."""
    if isinstance(regions, RegionView):
        return RegionView([without_features(store) for store in regions.stores])
    boxes = copy.copy(regions)
    boxes.arrays = {name: array for name, array in regions.arrays.items() if name not in ('features', 'image_features')}
    return boxes


def gather_batch(regions: 'Regions | OnDevice', rows: np.ndarray, static_shape: bool = False,
                 columns: Sequence[str] = (), whole_image: bool = False) -> dict[str, np.ndarray]:
    """A batch of b images and its mask (b, o) bool. For row -1 the mask is False and all entries are 0.

    Features and boxes are those of `RegionArrays.gather`; for regions on a device, places (b, o) int64 instead, which `to_device`
    replaces. static_shape: pad to the largest number of regions of any image, not of this batch. columns: optional columns to
    add, (b, o, ...) each. Raises RegionError if one is missing.

    whole_image: the image itself becomes region 0, so that o is one more, with image_size (b, 2) int64, height and width in
    pixels. `to_device` fills in its feature and box; its optional columns are 0.
    """
    known, lead = np.maximum(rows, 0), int(whole_image)
    if isinstance(regions, OnDevice):
        places = regions.places(rows, lead)
        mask = places >= 0
        mask[:, :lead] = True
        batch, fill = {'places': places, 'mask': mask}, {'places': -1}
    else:
        batch, fill = regions.gather(known, lead), {}
    if columns:
        # Row 0 is read in place of row -1, and may have more regions than the batch.
        batch |= {name: pad_regions(array[:, :batch['mask'].shape[1]], batch['mask'].shape[1])
                  for name, array in regions.read(known, columns, lead).items()}
    if static_shape:
        batch = {name: pad_regions(array, lead + regions.max_regions, fill.get(name, 0)) for name, array in batch.items()}
    if whole_image:
        batch |= {'image_size': regions.image_sizes(known).astype(np.int64), 'region_count': batch['mask'].sum(1) - 1}
        if regions.has_image_features:
            batch['image_features'] = regions.image_features(known)
    missing = rows < 0
    if missing.any():
        for name, array in batch.items():
            batch[name] = np.where(missing.reshape(-1, *[1] * (array.ndim - 1)), array.dtype.type(fill.get(name, 0)), array)
    return batch


def gather_noise(regions: 'Regions | OnDevice', rows: np.ndarray, draws: np.ndarray) -> dict[str, np.ndarray]:
    """Features of one random region of each of k images: noise (k, f) of `gather_one`, or noise_places (k,) on a device."""
    if isinstance(regions, OnDevice):
        places = regions.places(rows)  # (k, o)
        return {'noise_places': places[np.arange(len(rows)), (draws * (places >= 0).sum(1)).astype(np.int64)]}
    return {'noise': regions.gather_one(rows, draws)}


def pad_regions(array: np.ndarray, o: int, fill=0) -> np.ndarray:
    """(b, n, ...) -> (b, o, ...), padded with `fill`."""
    padding = o - array.shape[1]
    return np.pad(array, [(0, 0), (0, padding), *[(0, 0)] * (array.ndim - 2)], constant_values=fill) if padding else array


def to_device(regions: 'Regions | OnDevice', batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch whose tensors are on the device: places become features and boxes, noise_places become noise (k, f), float16
    becomes float32, and region 0 the image as a whole, if `gather_batch` was asked for it."""
    if 'noise_places' in batch:
        batch['noise'] = regions.look_up(batch.pop('noise_places'))['features']
    if 'places' in batch:
        batch |= regions.look_up(batch.pop('places'))
    batch = batch | {name: batch[name].float() for name in ('features', 'noise', *OPTIONAL) if name in batch}
    return add_whole_image(batch) if 'region_count' in batch else batch


def add_whole_image(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fill in region 0 of a batch as in VL-BERT: the box (0, 0, w - 1, h - 1), scaled, and the image's own feature, else the mean
    of its regions. For row -1 both remain 0."""
    count = batch.pop('region_count')[:, None]  # (b, 1)
    if 'features' in batch:
        features, stored = batch['features'], batch.pop('image_features', None)
        # Padding is 0.
        features[:, 0] = features[:, 1:].sum(1) / count.clamp(min=1) if stored is None else stored  # (b, f)
    size = batch['image_size'].flip(1)  # (b, 2): width, height
    batch['boxes'][:, 0, 2:] = (size - 1).clamp(min=0) / size.clamp(min=1)
    return batch


def in_ram(regions: Regions) -> Regions:
    """The regions with all arrays in RAM, which forked workers share."""
    if isinstance(regions, RegionView):
        return RegionView([in_ram(store) for store in regions.stores])
    arrays = {name: np.empty_like(array) for name, array in regions.arrays.items()}
    for name, array in regions.arrays.items():
        for start in range(0, len(array), CHUNK):
            regions.check_length()
            arrays[name][start:start + CHUNK] = array[start:start + CHUNK]
    return RegionArrays(regions.name, arrays, regions.max_regions, regions.digests)


class OnDevice:
    """Regions with features (float16) and boxes on a device. Batches contain indices (places) of regions in these tables.

    `places` runs in the processes that prepare batches, and does not use the device; `look_up` runs on the device, without
    synchronising. Other attributes are those of the given regions.
    """

    def __init__(self, regions: Regions, device: torch.device):
        self.regions = regions
        for name in ('name', 'ids', 'feature_size', 'max_regions', 'size_of', 'rows', 'read', 'image', 'image_sizes',
                     'region_counts', 'image_features', 'has_image_features', 'digest', 'nonfinite'):
            setattr(self, name, getattr(regions, name))
        self.stores = getattr(regions, 'stores', [regions])
        self.starts = np.cumsum([0] + [store.total for store in self.stores]).tolist()  # place of each store's first region
        missing = [store for store in self.stores if _key(store, device) not in _LOADED]
        check_gpu_memory(sum(_size(store) for store in missing), regions.name, device)
        self.tables = []
        for store in self.stores:
            table = _LOADED.get(_key(store, device)) or Table(store, device)
            _LOADED[_key(store, device)] = table
            self.tables.append(table)

    def __len__(self) -> int:
        return len(self.regions)

    def places(self, rows, lead: int = 0) -> np.ndarray:
        """The places of the regions of b images, (b, lead + o) int64; -1 for the lead, padding, and row -1."""
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
        step = np.arange(-lead, counts.max(initial=0))
        return np.where(known[:, None] & (step >= 0) & (step < counts[:, None]), starts[:, None] + step, -1)

    def look_up(self, places: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features (..., f), if there are any, and boxes (..., 4), float32, scaled as in `gather`, on the device.

        places: (...) int64 on the device; -1 gives 0.
        """
        batch = {}
        for table, start, end in zip(self.tables, self.starts, self.starts[1:], strict=False):
            local = ((places >= start) & (places < end))[..., None]  # (..., 1)
            index = (places - start).clamp(0, end - start - 1)
            for name, array in table.arrays.items():
                rows = torch.where(local, array[index], 0)
                # All stores but one contribute 0, so the sum is exact.
                batch[name] = batch[name] + rows if name in batch else rows
        return {name: array.float() for name, array in batch.items()}


class Table:
    """A store's boxes (total, 4) float32, scaled to 0..1, and features (total, f) float16, if it has any, on a device.

    Raises RegionError if features overflow float16.
    """

    def __init__(self, store: RegionArrays, device: torch.device):
        boxes = torch.empty(store.total, 4, device=device)
        features = torch.empty(store.total, store.feature_size, dtype=torch.float16, device=device)
        scale = store.arrays['sizes'][:, [1, 0, 1, 0]].astype(np.float32)  # (n, 4)
        image_of = np.repeat(np.arange(len(store)), np.diff(store.arrays['offsets']))  # (total,)
        finite = torch.ones((), dtype=torch.bool, device=device)
        for start in range(0, store.total, CHUNK):
            store.check_length()
            part = slice(start, start + CHUNK)
            boxes[part] = torch.from_numpy(store.arrays['boxes'][part] / scale[image_of[part]]).to(device)
            if store.feature_size:
                # Copied, because PyTorch warns about read-only arrays.
                features[part] = torch.from_numpy(np.array(store.arrays['features'][part])).to(device)
                finite &= torch.isfinite(features[part]).all()
        if not finite:
            if img_ids := store.nonfinite(np.arange(len(store))):
                raise RegionError(f'{store.name}: expected finite features, found NaN or infinity in image {", ".join(img_ids)}; '
                                  'run/regions.bash check lists all')
            raise RegionError(f'{store.name}: has features too large for half precision (over 65504); give --featDevice ram')
        self.arrays = ({'features': features} if store.feature_size else {}) | {'boxes': boxes}


def check_gpu_memory(size: int, name, device: torch.device, what: str = '--featDevice cuda: the regions of',
                     form: str = ' in half precision', advice: str = 'give --featDevice cpu or ram') -> None:
    """Raise RegionError if a GPU has less than `size` + RESERVED bytes free. what, name, form, advice: for its message."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == 'cuda' else np.inf
    if size > free - RESERVED:
        raise RegionError(f'{what} {name} take {size / 1e9:.1f} GB{form}, and {free / 1e9:.1f} GB of {device} are free, of which '
                          f'{RESERVED / 1e9:.1f} GB are kept for the model; {advice}, or a GPU with more memory')


def _size(store: RegionArrays) -> int:
    """Bytes of a store's Table."""
    return store.total * (2 * store.feature_size + 4 * 4)


def _key(store: RegionArrays, device: torch.device):
    # Regions in RAM (read for --tiny) have no stamp, and are never shared.
    return str(store.name), getattr(store, 'meta', {}).get('stamp', id(store)), store.feature_size, str(device)
