"""The regions of the images that a dataset's splits name."""

from dist import print0
from files.json_files import DataError
from regions import store
from regions.arrays import RegionView
from regions.readers import id_difference
from regions.tsv import RegionError, TsvFile

PROBABILITIES = 'class_probabilities'  # the column of regions


def open_regions(splits, wanted, limits, store_root):
    """The regions of some splits as one, and whether they are all that their files hold.

    wanted: for each split the image ids that it names, (n,) bytes, each once; limits: how many of them are used (None: all).
    If one has a limit, a TSV without a store is not converted: the images needed are read into RAM.
    """
    splits_of = {}  # path -> the numbers of the splits that use it, in the order of the files
    for number, split in enumerate(splits):
        for path in split.features:
            splits_of.setdefault(path, []).append(number)
    if not any(limits) or all(store.fresh(path, store_root) for path in splits_of):
        return store.open_all(list(splits_of), store_root), True
    limits = [limit or len(ids) for limit, ids in zip(limits, wanted, strict=True)]
    wanted = [{img_id.decode() for img_id in ids.tolist()} for ids in wanted]
    parts = [store.fresh(path, store_root) or store.read_few(path, [wanted[i] for i in numbers], [limits[i] for i in numbers])
             for path, numbers in splits_of.items()]
    parts = [regions for regions in parts if regions is not None]
    if not parts:
        difference = id_difference(sorted(set().union(*wanted)), next(iter(splits_of)))
        raise DataError(f'{", ".join(str(split.annotations) for split in splits)}: none of the images has regions: {difference}')
    return RegionView(parts) if len(parts) > 1 else parts[0], False


def warn_duplicate_images(regions, img_ids, names):
    """Prints how many of the images (list of str) are in several of the region files of the splits that `names` calls."""
    duplicate = sum((part.rows(img_ids) >= 0).astype(int) for part in getattr(regions, 'stores', [regions])) > 1
    if duplicate.any():
        print0(f'{duplicate.sum():,} images are in several of the TSV files of {names}: the regions of the first file count.')


def check_probabilities(regions):
    """Raises RegionError if some of the regions have no class probabilities."""
    for part in getattr(regions, 'stores', [regions]):
        if isinstance(part, TsvFile) or not part.size_of(PROBABILITIES):
            raise RegionError(f'{part.name}: expected regions with {PROBABILITIES}, which pre-training on captions predicts, '
                              'found none; extract them with bash run/extract.bash --probabilities, or import them')
