"""Imports regions that another program saved: a folder of .npz, .npy or .json files, HDF5, or a TSV of another layout.

An image has these arrays, of o regions each. NAMES in `image_regions` lists other accepted names:

    features (o, f) float; boxes (o, 4) pixels x1, y1, x2, y2 (or `form`); size (2,) height, width, or height and width
    in place of boxes: normalised (o, 4 or more), whose first four numbers are x1, y1, x2, y2 divided by width and height
    optional: classes, attributes (o,) whole numbers, without the background; class_conf, attribute_conf (o,) 0..1; num_boxes
    optional, only for a region store: class_probabilities (o, num_classes) 0..1; image_feature (f,), of the image as a whole

    classes, attributes may also be (o, num_classes) probabilities, the background first, as in VL-BERT's files of captions: the
    most probable one without the background is taken, those of the classes become class_probabilities, and the regions are put in
    the order in which VL-BERT's code reads them, by falling highest class probability, the background included

Missing classes, attributes and confidences become 0. A class of confidence 0 has no weight in pre-training.

    folder of .npz      <id>.npz with these arrays
    folder of .npy      <id>.npy for features; <id>.boxes.npy, <id>.size.npy, ... for the others
    folder of .json     <id>.json, arrays as lists or as base64 of their little-endian bytes; also a zip of such files
    HDF5, by image      a group <id> of these datasets; height and width may be attributes of the group
    HDF5, all at once   datasets ids (n,), features (n, o, f), boxes (n, o, 4), size (n, 2), ..., with num_boxes (n,) where
                        images have fewer than o; or features (total, f) and so on with offsets (n + 1,) or pos_boxes (n, 2).
                        Without ids: a json beside, {id: row} or {id: {idx, width, height, objectsNum}} as of GQA
    TSV                 see `tsv_lines`: six columns of bottom-up attention, further columns, a header line, other dtypes; also
                        the standard layout, and region stores, to convert boxes, sizes or ids

Files of pickled Python objects (.pkl, LMDB, mmf's _info.npy) are refused: reading them can run code.
"""

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pybase64

from files.json_files import MAX_BYTES, DataError, field, parse_json, read_json, stream
from files.progress import ProgressBar
from files.text import InputError
from images.ids import ImageIds, read_ids
from regions import tsv, tsv_lines
from regions.image_regions import FORMS, NAMES, ROUNDING, in_pixels
from regions.store import RegionStore
from regions.tsv import ImageRegions, RegionError

COLUMN_OF = {key: name for name, others in NAMES.items() for key in (name, *others)}
RANK = {key: rank for rank, key in enumerate(COLUMN_OF)}  # of two names for the same column the first is read
MATRICES = ('features', 'boxes', 'normalised', *tsv.OPTIONAL)  # two dimensions; the others have one number per region
PER_REGION = {*tsv.COLUMNS, 'normalised'}
LABELS = ('classes', 'attributes')
OVERSHOOT = 0.05  # of width or height, that boxes of json files may reach beyond the picture
USUAL = 100  # regions; the most of an image in VL-BERT's files
INDEX_KEYS = ('offsets', 'pos_boxes')
CONFIDENCES = {'classes': 'class_conf', 'attributes': 'attribute_conf'}
MAX_ARRAY = 1 << 30  # bytes of an array of one image, or of the ids: one that is compressed may be a thousand times its file
UNKNOWN_SIZE = 1000  # pixels; of images whose size is unknown and whose boxes are normalised, so that it does not matter
NO_SIZE = 'expected the height and width of the picture in pixels, found neither size nor height and width; save it'
HDF5, PICKLES = ('.h5', '.hdf5', '.hdf'), ('.pkl', '.pickle', '.pt', '.pth', '.mdb', '.lmdb')

PICKLED = 'holds pickled Python objects, which can run any code when they are read; save plain arrays'

Arrays = Mapping[str, Callable[[], object]]  # key in the file -> a function that reads its array
# Image id, None if it is that of the ImageRegions; location for messages; a function that opens the image.
Images = Iterator[tuple[str | None, str, Callable[[], ImageRegions | Arrays]]]


class Importer:
    """Reads the images of `path`; afterwards `notes` says what was assumed and what was left out.

    form: of the boxes, some of FORMS with commas; swap_size: height and width are exchanged in the file; ids: 'stem', 'path' or a
    file, as `images.ids.ImageIds` takes it; None: file names without their ending, or the ids in the file as they are; sizes: a
    file of COCO's annotations, for images whose size is not in the file; allow_broken: faulty images are left out and listed in
    `left_out`. Raises ValueError for another form, and what reading the sizes raises.
    """

    def __init__(self, path, form: str = 'pixels', swap_size: bool = False, ids=None, sizes=None, allow_broken: bool = False):
        if unknown := [name for name in form.split(',') if name not in FORMS]:
            raise ValueError(f'--boxes {form}: expected {", ".join(FORMS)}, or several with commas, found {unknown[0]!r}')
        self.path, self.form, self.swap_size = Path(path), form, swap_size
        self.ids = None if ids is None else ImageIds(ids)
        self.notes, self.unread, self.counts = [], {}, Counter()  # counts: of images, by note
        self.sizes_file, self.sizes = sizes, None if sizes is None else coco_sizes(sizes)
        self.allow_broken, self.left_out = allow_broken, []
        self.sized, self.size_missing = False, False  # whether any image has a size; whether the last one has none

    def __iter__(self) -> Iterator[ImageRegions]:
        """Yield the images in the order of their names, checked by `tsv.check`.

        Faulty images are skipped. After the last image RegionError lists them, so that the caller writes nothing, unless
        allow_broken.
        """
        faults, sizes, count, unsized, many = [], None, 0, [], 0
        if not self.path.exists():
            raise RegionError(f'{self.path}: expected a folder of .npz, .npy or .json files, HDF5, or a TSV, found nothing there')
        for count, (img_id, where, load) in enumerate(self._images(), 1):  # noqa: B007, read after the loop
            try:
                content = load()
                if img_id is None:
                    img_id = content.img_id if self.ids is None else self.ids(content.img_id)
                self.size_missing = False
                image = content if isinstance(content, ImageRegions) else self._image(img_id, content)
                image = self._clipped(image) if where.endswith('.json') else image
                image = tsv.check(replace(image, img_id=img_id), sizes and sizes['features'])
                tsv.check_sizes(image, sizes or tsv.array_sizes(image))
            except MemoryError:
                faults.append((where, 'expected the arrays of an image, found one that does not fit in memory'))
                continue
            except (ValueError, TypeError, LookupError, ArithmeticError, *tsv.ZIP_ERRORS) as error:
                faults.append((where, PICKLED if 'allow_pickle' in str(error) else str(error)))
                continue
            sizes = sizes or tsv.array_sizes(image)
            many += len(image.boxes) > USUAL and where.endswith('.json')
            if self.size_missing:
                unsized.append(where)
            yield image
        unsized = unsized if self.sized else []  # sizes are assumed only where no image has one
        faults += [(where, f'key "size": {NO_SIZE}') for where in unsized]
        if sizes is None and self.path.is_dir() and faults and all(reason == PICKLED for _, reason in faults):
            raise RegionError(pickled(self.path))
        if sizes is None and count > 1 and len({re.sub(r'[\d.e+-]+', '', reason) for _, reason in faults}) == 1:
            raise RegionError(f'{self.path}: nothing was written: all {count:,} images have the same fault, so that they seem '
                              f'to be of another layout. {faults[0][0]}: {tsv_lines.other_form(faults[0][1])}')
        if self.allow_broken and sizes and not unsized:  # what has been yielded is not left out
            self.left_out += [f'{where}: {reason}' for where, reason in faults]
        elif faults:
            advice = ', or give --allowBroken to leave them out' if sizes and not unsized else ''
            listed = tsv.listed([f'{where}: {reason}' for where, reason in faults])
            raise RegionError(f'{self.path}: expected valid images only, found {len(faults)} faulty; nothing was written. '
                              f'Correct or remove them{advice}:\n{listed}')
        if sizes is None:
            raise RegionError(f'{self.path}: expected at least one image, found none')
        self.notes += [text if number == count else f'{text} ({number:,} of {count:,} images)'
                       for text, number in self.counts.items()]
        if many:
            self.notes.append(f'{many:,} of {count:,} images have more than {USUAL} regions')
        if self.unread:
            self.notes.append('not read: ' + ', '.join(f'{key}{reason}' for key, reason in self.unread.items()))

    def _images(self) -> Images:
        if (self.path / 'meta.json').is_file():
            regions = RegionStore(self.path)
            for row in ProgressBar(range(len(regions)), desc=self.path.name, unit=' images'):
                yield None, f'{self.path}: row {row}', lambda row=row: self._converted(regions.image(row))
        elif self.path.is_dir():
            yield from self._folder()
        elif self.path.suffix in PICKLES:
            raise RegionError(pickled(self.path))
        elif self.path.suffix in READERS:
            yield self.ids(self.path.name) if self.ids else self.path.stem, str(self.path), partial(
                READERS[self.path.suffix], self.path)
        elif self.path.suffix == '.zip' and (members := _json_members(self.path)):
            yield from self._zip(members)
        elif self.path.suffix in ('.tsv', '.zip', '.txt'):
            yield from self._tsv()
        else:
            yield from self._hdf5(self.path)

    # One image

    def _image(self, img_id: str, arrays: Arrays) -> ImageRegions:
        keys = {}  # column -> the key that is read
        for key in sorted(arrays, key=lambda key: RANK.get(key, len(RANK))):
            if key not in COLUMN_OF and key not in INDEX_KEYS:
                self.unread.setdefault(key, '')
            elif key in COLUMN_OF and keys.setdefault(COLUMN_OF[key], key) != key:
                self.unread.setdefault(key, f' (but {keys[COLUMN_OF[key]]})')
        values = {name: arrays[key]() for name, key in keys.items() if name != 'ids'}
        o = self._count(values)
        probabilities = {name: _column('class_probabilities', values.pop(name), np.dtype('<f4')) for name in LABELS
                         if np.ndim(values.get(name, 0)) == 2}
        for name, array in probabilities.items():
            if array.shape[1] < 2:
                raise RegionError(f'key "{keys[name]}": expected the background and at least one class, found an array of shape '
                                  f'{array.shape}')
            values |= {name: array[:, 1:].argmax(1), CONFIDENCES[name]: array[:, 1:].max(1, initial=0)}
        if 'classes' in probabilities:
            values['class_probabilities'] = probabilities['classes']
        for name, conf in CONFIDENCES.items():
            if name not in values:
                self.counts[f'no {name}: 0, without weight in pre-training'] += 1
                if values.pop(conf, None) is not None:
                    self.unread.setdefault(keys[conf], f' (there are no {name})')
            elif conf not in values:
                self.counts[f'no confidences of the {name} ({conf}): 0, so that the {name} have no weight in pre-training'] += 1
        image_feature = _column('image_feature', values['image_feature'], np.dtype('<f4')) if 'image_feature' in values else None
        columns = {name: np.zeros(o, dtype) for name, (_, dtype) in tsv.COLUMNS.items() if name not in MATRICES}
        for name in PER_REGION & values.keys():
            dtype = np.dtype('<f4' if name == 'normalised' else tsv.COLUMNS[name][1])
            array = _column(name, values[name], dtype)
            same_rows = array.shape[:1] == np.shape(values['features'])[:1]
            columns[name] = array[:o] if same_rows else array  # others are refused by tsv.check
        normalised = columns.pop('normalised', None)
        height, width = self._size(values, columns.get('boxes'), normalised, img_id)
        if 'boxes' in columns:
            columns['boxes'] = self._boxes(columns['boxes'], height, width)
        else:
            columns['boxes'] = in_pixels(normalised[:, :4], 'normalised', height, width)
            self.counts[f'{keys["normalised"]}: x1, y1, x2, y2 divided by width and height, converted to pixels'] += 1
            sides = normalised[:, 2:4] - normalised[:, :2]
            expected = np.concatenate([sides, sides.prod(1, keepdims=True)], 1)[:, :normalised.shape[1] - 4]
            if normalised.shape[1] == 5:
                expected = sides.prod(1, keepdims=True)
            if not np.allclose(normalised[:, 4:7], expected, atol=0.02):
                self.counts[f'{keys["normalised"]}: the numbers after the first four are not width, height and area; '
                            'their order may be another'] += 1
        if 'classes' in probabilities and all(len(array) == o for array in columns.values()):
            order = np.argsort(probabilities['classes'][:o].max(1), kind='stable')[::-1]
            columns = {name: np.ascontiguousarray(array[order]) for name, array in columns.items()}
        return ImageRegions(img_id, height, width, **columns, image_feature=image_feature)

    def _clipped(self, image: ImageRegions) -> ImageRegions:
        """The image with its boxes cut to the picture, as VL-BERT's code does, if they reach a little beyond it."""
        limits = np.array([image.width, image.height] * 2, np.float32)
        beyond = np.maximum(-image.boxes, image.boxes - limits)
        if beyond.max(initial=0) <= ROUNDING or (beyond > OVERSHOOT * limits).any():
            return image  # judged by tsv.check
        self.counts[f'boxes that reach up to {OVERSHOOT:.0%} of a side beyond the picture: cut'] += 1
        return replace(image, boxes=image.boxes.clip(0, limits))

    def _boxes(self, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
        return boxes if self.form == 'pixels' else in_pixels(boxes, self.form, height, width)

    def _count(self, values: dict) -> int:
        """Number of regions: num_boxes where the arrays are padded. Raises RegionError if there are no features or no boxes."""
        for name in ('features', 'boxes'):
            if name not in values and (name == 'features' or 'normalised' not in values):
                raise RegionError(f'key "{name}": expected an array, found none of this name, nor of {", ".join(NAMES[name])}; '
                                  'save it under one of them')
        rows = len(values['features']) if np.ndim(values['features']) else 0
        count = np.asarray(values.get('num_boxes', rows))
        if count.size != 1 or count.dtype.kind not in 'iu' or not 0 <= count.item() <= rows:
            raise RegionError(f'key "num_boxes": expected a whole number up to {rows}, the rows of features, found '
                              f'{count.tolist()!r:.60}')
        o, shape = (count.item(),), np.shape(values['features'])
        if rows > count.item() and shape[1:] == np.shape(values.get('boxes', ()))[:1] == o:  # else cut like padding
            raise RegionError(f'key "features": expected a row per region, found an array of shape {shape} for {count.item()} '
                              'boxes; save it transposed')
        return count.item()

    def _size(self, values: dict, boxes: np.ndarray | None, normalised: np.ndarray | None, img_id: str) -> tuple[int, int]:
        """Height and width, computed or assumed if the file does not have them."""
        size = values.get('size')
        if size is None and 'height' in values and 'width' in values:
            size = np.concatenate([np.ravel(values['height']), np.ravel(values['width'])])
        if size is None and self.sizes is not None:
            if (size := self.sizes.get(img_id)) is None:
                raise RegionError(f'key "size": expected it of image {img_id} in {self.sizes_file}, found none; name the '
                                  'annotations of its split, or other ids with --ids')
            return size
        if size is None:
            self.size_missing = True
            return self._unknown_size(boxes, normalised)
        self.sized = True
        size = np.asarray(size)
        if size.shape != (2,) or size.dtype.kind not in 'iuf' or not np.isfinite(size).all() or (size != np.round(size)).any():
            raise RegionError(f'key "size": expected height and width, two whole numbers, found {size.tolist()!r:.60}')
        height, width = size[::-1] if self.swap_size else size
        return int(height), int(width)

    def _unknown_size(self, boxes, normalised) -> tuple[int, int]:
        if boxes is None or 'normalised' in self.form:
            self.counts[f'no image sizes: {UNKNOWN_SIZE} x {UNKNOWN_SIZE} assumed. Training is the same, since it divides boxes '
                       'by the size; drawings need the size'] += 1
            return UNKNOWN_SIZE, UNKNOWN_SIZE
        if not len(boxes) or not np.isfinite(boxes).all() or boxes.max() <= 1.05:
            advice = '; boxes divided by width and height need --boxes normalised' if len(boxes) and boxes.max() <= 1.05 else ''
            raise RegionError(f'key "size": {NO_SIZE}{advice}')
        boxes = in_pixels(boxes, self.form, 1, 1)
        if normalised is not None and len(normalised) == len(boxes):
            rows = boxes[:, 2:].argmax(0)  # (2,): the boxes that reach furthest
            width, height = (boxes[rows, (2, 3)] / np.maximum(normalised[rows, (2, 3)], 1e-6)).round().astype(int).tolist()
            self.counts['no image sizes: computed from the boxes in pixels and the normalised boxes'] += 1
        else:
            width, height = np.ceil(boxes[:, 2:].max(0)).astype(int).tolist()
            self.counts['no image sizes: of each image the right and the lower edge of its boxes are assumed, so that boxes are '
                       'placed inexactly in training. Save height and width with the boxes, or name a json {id: {"idx": row, '
                       '"width": ..., "height": ...}} with --ids'] += 1
        return max(height, 1), max(width, 1)

    # Folders

    def _folder(self) -> Images:
        files = sorted(path for path in self.path.rglob('*') if path.is_file() and not path.name.startswith('.'))
        pickles = [path for path in files if path.name.endswith('_info.npy') or path.suffix in PICKLES]
        by_ending = {ending: [path for path in files if path.suffix == ending] for ending in ('.npz', '.npy', '.json')}
        if archives := [path for path in files if path.suffix in HDF5]:
            for path in archives:
                yield from self._hdf5(path)
            return
        parts = tuple(f'.{key}.npy' for key in COLUMN_OF)
        paths = sorted([*by_ending['.npz'], *(path for path in by_ending['.npy'] if not path.name.endswith(parts))])
        paths = paths or by_ending['.json']  # a json beside arrays is no image
        if pickles and (not paths or pickles[0].suffix == '.npy'):
            raise RegionError(pickled(self.path if pickles[0].suffix in ('.npy', '.mdb') else pickles[0]))
        if not paths:
            raise RegionError(f'{self.path}: expected files <id>.npz, or <id>.npy with <id>.boxes.npy and <id>.size.npy, or '
                              '<id>.json, found none')
        for img_id, path in self._with_ids(paths, lambda path: path.relative_to(self.path)):
            yield img_id, str(path), partial(READERS[path.suffix], path)

    def _zip(self, members: list[zipfile.ZipInfo]) -> Images:
        with zipfile.ZipFile(self.path) as archive:
            for img_id, info in self._with_ids(members, lambda info: PurePosixPath(info.filename)):
                where = f'{self.path}@/{info.filename}'
                yield img_id, where, partial(_json_member, archive, info, where)

    def _with_ids(self, files: list, path_of: Callable) -> Iterator[tuple]:
        """(image id, file) of files, whose relative paths are path_of(file). Raises RegionError for an id that comes twice."""
        id_of, taken = self.ids or ImageIds('stem'), {}
        for file in ProgressBar(files, desc=self.path.name, unit=' images'):
            img_id = id_of(path_of(file))
            if (first := taken.setdefault(img_id, file)) is not file:
                file, first = (getattr(one, 'filename', one) for one in (file, first))
                raise RegionError(f'{file}: its image id would be {img_id}, which is that of {first}; give --ids path to make '
                                  'the path the id')
            yield img_id, file

    # TSV

    def _tsv(self) -> Images:
        file, layout, first = tsv.need(self.path), None, None
        for number, line in enumerate(file.lines(), 1):
            if layout is None:
                layout = tsv_lines.recognise([line] if first is None else [first, line]) or tsv_lines.STANDARD
                if layout.header and first is None:
                    layout, first = None, line  # the next line shows the dtypes
                    continue
            yield None, f'{file.where}:{number}: image {tsv_lines.label(line)}', (
                lambda line=line, layout=layout: self._converted(tsv_lines.decode(line, layout)))
        if layout is None:
            raise RegionError(f'{file.where}: expected an image a line, found none')
        if layout.name:
            self.notes.append(f'read as {layout.name}')
        for name in CONFIDENCES:
            if tsv.ARRAYS[name][0] not in layout.fields:
                self.notes.append(f'no {name}: 0, without weight in pre-training')

    def _converted(self, image: ImageRegions) -> ImageRegions:
        height, width = (image.width, image.height) if self.swap_size else (image.height, image.width)
        return replace(image, height=height, width=width, boxes=self._boxes(image.boxes, height, width))

    # HDF5

    def _hdf5(self, path: Path) -> Images:
        try:
            import h5py
        except ImportError:
            raise RegionError(f'{path}: reading HDF5 needs h5py, which is not installed; .venv/bin/pip install h5py') from None
        try:
            file = h5py.File(path, 'r')
        except OSError as error:
            raise RegionError(f'{path}: expected a folder of .npz, .npy or .json files, a TSV, or an HDF5 file, found neither '
                              f'({error})') from None
        try:
            with file:
                if any(isinstance(item, h5py.Dataset) for item in file.values()):
                    yield from self._rows(path, file)
                    return
                if not len(file):
                    raise RegionError(f'{path}: expected a group per image, or datasets of all images, found an empty file')
                for name, group in ProgressBar(_groups(file), total=len(file), desc=path.name, unit=' images'):
                    img_id = name if self.ids is None else self.ids(name)
                    items = {**group.attrs, **group}
                    yield img_id, f'{path}: group {name}', lambda items=items: {
                        key: partial(_bounded, key, item) for key, item in items.items()}
        except InputError:
            raise
        except (RuntimeError, LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:  # such as links
            raise RegionError(f'{path}: expected a group per image, or datasets of all images, found none ({error})'
                              ) from None

    def _rows(self, path: Path, file) -> Images:
        """The images of an HDF5 file in which each dataset contains all images, by row or by offsets."""
        keys = {}
        for key in sorted(set(file) & set(COLUMN_OF), key=RANK.get):
            keys.setdefault(COLUMN_OF[key], key)
        if 'ids' in keys:
            img_ids = [img_id.decode() if isinstance(img_id, bytes) else str(img_id)
                       for img_id in np.ravel(_bounded(f'{path}: {keys["ids"]}', file[keys['ids']]))]
            rows = [(row, img_id if self.ids is None else self.ids(img_id), {}) for row, img_id in enumerate(img_ids)]
            n = len(rows)
        else:
            n = len(file['offsets']) - 1 if 'offsets' in file else len(file[keys.get('features', next(iter(file)))])
            n = len(file['pos_boxes']) if 'pos_boxes' in file else n
            rows = self._rows_by_id(path, file, n)
        starts, ends, length = None, None, n
        if 'offsets' in file:
            offsets = file['offsets'][:]
            length = int(offsets[-1]) if len(offsets) == n + 1 else -1
            if length < 0 or (np.diff(offsets, prepend=0) < 0).any():
                raise RegionError(f'{path}: key "offsets": expected {n + 1} increasing numbers from 0, found {len(offsets)}')
            starts, ends = offsets[:-1], offsets[1:]
        elif 'pos_boxes' in file:
            starts, ends = np.moveaxis(file['pos_boxes'][:].reshape(-1, 2), 1, 0)
            length = int(ends.max(initial=0))
            if len(starts) != n or (starts > ends).any() or (starts < 0).any():
                raise RegionError(f'{path}: key "pos_boxes": expected the first and the last row of {n} images, found '
                                  f'{len(starts)} pairs')
        for name, key in keys.items():
            expected = length if name in PER_REGION else n
            if not file[key].ndim or len(file[key]) != expected:
                what = f'{n} numbers, one per image' if name == 'num_boxes' else f'{expected} rows'
                raise RegionError(f'{path}: key "{key}": expected {what}, found an array of shape {file[key].shape}')

        def read(key, row):
            if starts is not None and COLUMN_OF.get(key) in PER_REGION:
                return _bounded(key, file[key], slice(int(starts[row]), int(ends[row])))
            return _bounded(key, file[key], slice(row, row + 1))[0]

        for row, img_id, info in ProgressBar(rows, desc=path.name, unit=' images'):
            yield img_id, f'{path}: row {row}, image {img_id}', lambda row=row, info=info: {
                **{key: partial(read, key, row) for key in file}, **{key: partial(np.asarray, info[key]) for key in info}}

    def _rows_by_id(self, path: Path, file, n: int) -> list[tuple[int, str, dict]]:
        """(row, image id, its size and number of boxes where they are known) of an HDF5 file without ids: from --ids, or from
        the json beside it."""
        if self.ids is not None and self.ids.values is not None:
            return _row_index(self.ids.choice, self.ids.values, path, n)
        stem, base, indices = path.stem, re.sub(r'_\d+$', '', path.stem), {}
        for candidate in sorted(path.parent.glob('*.json')):
            if candidate.name.startswith((stem, base)):
                try:
                    indices[candidate] = _row_index(candidate, read_ids(candidate), path, n)
                except (DataError, RegionError):
                    continue
        if len(indices) == 1:
            (candidate, rows), = indices.items()
            if (note := f'image ids from {candidate}') not in self.notes:
                self.notes.append(note)
            return rows
        pickle = next(iter(sorted(path.parent.glob('*imgid2idx.pkl'))), None)
        hint = '' if pickle is None else f'. {pickled(pickle)}'
        raise RegionError(f'{path}: key "ids": expected the image ids, (n,) text, found only {", ".join(sorted(file))}'
                          + (f', and several files of ids: {", ".join(map(str, indices))}' if indices else '')
                          + '; name a json {id: row}, a json list of ids, or a text file of lines id<TAB>row with --ids' + hint)


def _row_index(name, values: dict, path: Path, n: int) -> list[tuple[int, str, dict]]:
    number, rows = re.search(r'_(\d+)$', path.stem), []
    for img_id, value in values.items():
        info = value if isinstance(value, dict) else {'idx': value}
        if number and info.get('file', int(number[1])) != int(number[1]):
            continue  # GQA's features are in several files
        try:
            row = int(info['idx'])
        except (KeyError, TypeError, ValueError):
            raise RegionError(f'{name}: {img_id}: expected a row of {path}, or an object with idx, found {value!r:.80}'
                              ) from None
        keys = {'width': 'width', 'height': 'height', 'objectsNum': 'num_boxes', 'num_boxes': 'num_boxes'}
        rows.append((row, str(img_id), {keys[key]: info[key] for key in keys if key in info}))
    rows.sort(key=lambda entry: entry[0])
    if [row for row, *_ in rows] != list(range(n)):
        raise RegionError(f'{name}: expected an id for each of the {n} rows of {path}, found {len(rows)} ids of rows '
                          f'{rows[0][0] if rows else "none"} to {rows[-1][0] if rows else "none"}')
    return rows


def _groups(group, prefix: str = '') -> Iterator[tuple[str, object]]:
    """(name, group) of each image in an HDF5 file; names with / are groups in groups."""
    for name, item in group.items():
        if len(item) and all(hasattr(part, 'keys') for part in item.values()):
            yield from _groups(item, f'{prefix}{name}/')
        else:
            yield f'{prefix}{name}', item


def _bounded(key: str, item, rows: slice = slice(None)) -> np.ndarray:
    """An item of an HDF5 file, or rows of one. Raises RegionError for one that takes little of the file and much memory."""
    if hasattr(item, 'nbytes') and item.ndim:
        first, last, _ = rows.indices(len(item))
        _check_size(key, item.nbytes // max(len(item), 1) * (last - first))
        return np.asarray(item[rows])
    return np.asarray(item)


def _check_size(key: str, size: int) -> None:
    if size > MAX_ARRAY:
        raise RegionError(f'key "{key}": expected at most {MAX_ARRAY >> 20} MB, found {size >> 20:,} MB')


def _column(name: str, value, dtype: np.dtype) -> np.ndarray:
    """An array of a file in the dtype of ImageRegions. Raises RegionError if it is of another kind or dimension."""
    array = np.asarray(value)
    if array.dtype.kind not in ('iu' if dtype.kind == 'i' else 'iuf'):
        raise RegionError(f'key "{name}": expected {"whole " if dtype.kind == "i" else ""}numbers, found {array.dtype}')
    if array.ndim != (2 if name in MATRICES else 1):
        raise RegionError(f'key "{name}": expected {"a row" if name in MATRICES else "a number"} per region, '
                          f'found an array of shape {array.shape}')
    if (name == 'boxes' and array.shape[1] != 4) or (name == 'normalised' and array.shape[1] < 4):
        raise RegionError(f'key "{name}": expected 4 numbers per region, found an array of shape {array.shape}')
    with np.errstate(over='ignore'):  # too large numbers become infinite, which tsv.check refuses
        return np.ascontiguousarray(array, dtype)


def _npz(path: Path) -> Arrays:
    file = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise RegionError('expected an .npz archive, found a single array; name it .npy')
    with file:
        for info in file.zip.infolist():
            if (key := info.filename.removesuffix('.npy')) in COLUMN_OF:
                _check_size(key, info.file_size)
        arrays = {key: file[key] if key in COLUMN_OF else None for key in file.files}
    return {key: partial(np.asarray, array) for key, array in arrays.items()}


def _npy(path: Path) -> Arrays:
    files = {'features': path, **{file.name[len(path.stem) + 1:-4]: file for file in path.parent.glob('*.npy')
                                  if file.name.startswith(f'{path.stem}.') and file != path}}
    return {key: partial(np.load, file, allow_pickle=False) for key, file in files.items()}


def _json(path: Path) -> Arrays:
    return _json_arrays(read_json(path, 'the arrays of an image'))


def _json_members(path: Path) -> list[zipfile.ZipInfo]:
    """The json files in a zip, sorted; [] if it has a TSV or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except tsv.ZIP_ERRORS:  # which `tsv.find` reports
        return []
    if any(info.filename.endswith('.tsv') for info in infos):
        return []
    members = [info for info in infos if (name := PurePosixPath(info.filename)).suffix == '.json' and name.name[0] not in '._']
    return sorted(members, key=lambda info: info.filename)


def _json_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> Arrays:
    if info.file_size > MAX_BYTES:
        raise RegionError(f'expected at most {MAX_BYTES >> 20} MB, found {info.file_size:,} bytes')
    return _json_arrays(parse_json(archive.read(info), where, 'the arrays of an image'))


def coco_sizes(path) -> dict[str, tuple[int, int]]:
    """{id: (height, width)} of a file of COCO's annotations, such as instances_val2014.json: each image by its id and by its file
    name without ending. Raises FileNotFoundError or DataError."""
    sizes = {}
    for item in stream(path, 'images.item', 'images'):
        size = tuple(field(item, key, int, path) for key in ('height', 'width'))
        sizes |= {str(item.get('id')): size, Path(str(item.get('file_name'))).stem: size}
    return sizes


def _from_base64(key: str, text: str) -> bytes:
    try:
        return pybase64.b64decode(tsv_lines.unquoted(text.encode()), validate=True)
    except ValueError as error:
        raise RegionError(f'key "{key}": expected base64, found {len(text):,} characters that are not ({error})') from None


def _json_arrays(item) -> Arrays:
    if not isinstance(item, dict):
        raise RegionError(f'expected an object with the arrays of an image, found {type(item).__name__}')
    data = {key: _from_base64(key, value) for key, value in item.items()
            if isinstance(value, str) and COLUMN_OF.get(key) in {*PER_REGION, 'image_feature'}}
    names = {COLUMN_OF[key]: key for key in data}
    count = next((item[key] for key in ('num_boxes', *NAMES['num_boxes']) if key in item), None)
    if count is None:
        count = len(data[names['boxes']]) // 16 if 'boxes' in names else 0
    if data and (not isinstance(count, int) or count < 1):
        raise RegionError(f'key "num_boxes": expected a number of regions, found {count!r}')
    wide = tsv_lines.dtype_of('boxes', len(data[names['boxes']]), count) if 'boxes' in names else np.dtype('<f4')
    for key, raw in data.items():
        name = COLUMN_OF[key]
        if name == 'image_feature':
            item[key] = np.frombuffer(raw[:len(raw) // 4 * 4], '<f4')  # a cut one has another size than the regions' features
            continue
        shape = (count, -1) if name in MATRICES else (count,)
        if name in LABELS and len(raw) > 8 * count:  # more than an int64: probabilities
            dtype, shape = wide, (count, -1)
        elif name == 'features':
            dtype = tsv_lines.features_dtype(raw, count, wide)
        else:
            dtype = wide if name in MATRICES else tsv_lines.dtype_of(name, len(raw), count)
        if len(raw) % (count * dtype.itemsize):
            raise RegionError(f'key "{key}": expected {dtype} numbers of {count} regions, found {len(raw)} bytes')
        item[key] = np.frombuffer(raw, dtype).reshape(shape)
    return {key: partial(np.asarray, value) for key, value in item.items()}


READERS = {'.npz': _npz, '.npy': _npy, '.json': _json}


def pickled(path: Path) -> str:
    """The message for files of pickled Python objects, with three lines that write a supported file."""
    name, out = str(path), str(path.with_name(f'{path.stem}_import'))
    then = f'; then: bash run/regions.bash import {out}'
    if path.name.endswith('imgid2idx.pkl'):
        what, lines = 'image ids', [
            'import json, pickle', f'rows = pickle.load(open({name!r}, "rb"))',
            f'json.dump({{str(img_id): row for img_id, row in rows.items()}}, open({str(path.with_suffix(".json"))!r}, "w"))']
    elif path.suffix in ('.mdb', '.lmdb') or (path.is_dir() and any(path.rglob('*.mdb'))):
        what, lines = f'LMDB{then}', [
            'import json, lmdb, os, pickle; text = lambda value: value.decode() if isinstance(value, bytes) else value.tolist()',
            f'os.mkdir({out!r}); records = lmdb.open({name!r}, subdir={path.is_dir()}, readonly=True).begin().cursor()',
            'for key, value in records: key == b"keys" or json.dump(pickle.loads(value), '
            f'open(f"{out}/{{key.decode()}}.json", "w"), default=text)']
    elif path.is_dir() and not any(path.rglob('*_info.npy')):
        what, lines = f'ID.npy, each a dictionary of arrays{then}', [
            f'import numpy as np, os, pathlib; os.mkdir({out!r})', f'files = list(pathlib.Path({name!r}).rglob("*.npy"))',
            f'for file in files: np.savez(f"{out}/{{file.stem}}.npz", **np.load(file, allow_pickle=True).item())']
    elif path.is_dir():
        what, lines = f'ID.npy with ID_info.npy{then}', [
            f'import numpy as np, os, pathlib; os.mkdir({out!r})',
            f'files = [str(file)[:-len("_info.npy")] for file in pathlib.Path({name!r}).rglob("*_info.npy")]',
            f'for file in files: np.savez(f"{out}/{{os.path.basename(file)}}.npz", **np.load(f"{{file}}_info.npy", '
            'allow_pickle=True).item() | {"features": np.load(f"{file}.npy")})']
    else:
        load = 'torch.load({!r}, weights_only=False)' if path.suffix in ('.pt', '.pth') else 'pickle.load(open({!r}, "rb"))'
        what, lines = f'assuming {{image id: {{"features": ..., "boxes": ..., "size": ...}}}}{then}', [
            f'import numpy as np, os, {load.split(".")[0]}; os.mkdir({out!r})', f'images = {load.format(name)}',
            f'for img_id, arrays in images.items(): np.savez(f"{out}/{{img_id}}.npz", **arrays)']
    return (f'{path}: holds pickled Python objects. They can run any code when they are read, so that this program never reads '
            f'them. If you trust the file, these lines of Python write what it reads ({what}):\n'
            + '\n'.join(f'  {line}' for line in lines))
