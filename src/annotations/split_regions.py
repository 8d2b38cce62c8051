"""The regions of the images that a dataset's splits name."""

from dist import print0
from files.json_files import DataError
from regions import arrays, store


def open_regions(splits, wanted, limits, store_root):
    """The regions of some splits as one, and whether they are all that their files hold.

    wanted: of each split the image ids that it names, (n,) bytes, each once; limits: how many of them are used (None: all).
    Where one has a limit, a TSV without a store is not converted: the images needed are read into RAM.
    """
    users = {}  # path -> the numbers of the splits that use it, in the order of the files
    for number, split in enumerate(splits):
        for path in split.features:
            users.setdefault(path, []).append(number)
    if not any(limits) or all(store.fresh(path, store_root) for path in users):
        return store.open_all(list(users), store_root), True
    limits = [limit or len(ids) for limit, ids in zip(limits, wanted, strict=True)]
    wanted = [{img_id.decode() for img_id in ids.tolist()} for ids in wanted]
    few = [store.fresh(path, store_root) or store.read_few(path, [wanted[i] for i in numbers], [limits[i] for i in numbers])
           for path, numbers in users.items()]
    few = [regions for regions in few if regions is not None]
    if not few:
        raise DataError(f'none of the images of {", ".join(str(split.annotations) for split in splits)} has regions in '
                        f'{", ".join(map(str, users))}; do they belong together?')
    return arrays.RegionView(few) if len(few) > 1 else few[0], False


def say_twice(regions, img_ids, names):
    """Says so if some of the images (list of str) are in several of the files of the splits that `names` calls."""
    twice = sum((part.rows(img_ids) >= 0).astype(int) for part in getattr(regions, 'stores', [regions])) > 1
    if twice.any():
        print0(f'{twice.sum():,} images are in several of the TSV files of {names}: the regions of the first file count.')

warn_duplicate_images = say_twice
