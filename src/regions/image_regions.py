"""The regions of one image, and the checks that they pass wherever they come from."""

from dataclasses import dataclass, replace

import numpy as np

from files.text import InputError, shown

# Array of ImageRegions -> its field in a TSV and its dtype, in the order of the TSV.
ARRAYS = {'classes': ('objects_id', '<i8'), 'class_conf': ('objects_conf', '<f4'), 'attributes': ('attrs_id', '<i8'),
          'attribute_conf': ('attrs_conf', '<f4'), 'boxes': ('boxes', '<f4'), 'features': ('features', '<f4')}
OPTIONAL = {'class_probabilities': '<f2'}  # arrays (o, any number) that a region store may hold in addition, not a TSV
COLUMNS = ARRAYS | {name: (name, dtype) for name, dtype in OPTIONAL.items()}
# Column -> the names that it has in files of other programs.
NAMES = {'ids': ('img_id', 'image_id', 'image_ids', 'img_ids', 'imgid', 'id'),
         'features': ('x', 'feature', 'feat', 'feats', 'image_features', 'img_feat', 'region_features', 'roi_features',
                      'visual_features'),
         'boxes': ('bbox', 'bboxes', 'box', 'image_bb', 'rois', 'bounding_boxes'),
         'normalised': ('norm_bb', 'normalized_boxes', 'normalised_boxes', 'norm_boxes', 'boxes_norm', 'spatial_features'),
         'size': ('image_size', 'img_size'),
         'height': ('img_h', 'image_h', 'img_height', 'image_height'), 'width': ('img_w', 'image_w', 'img_width', 'image_width'),
         'num_boxes': ('num_bbox', 'num_bb', 'num_box', 'nboxes'),
         'classes': ('objects_id', 'object_ids', 'objects', 'obj_id', 'obj_ids', 'objects_ids', 'object_id', 'class_ids',
                     'cls_id', 'cls_ids', 'labels', 'pred_classes'),
         'class_conf': ('objects_conf', 'obj_conf', 'obj_confs', 'object_conf', 'confidences', 'conf', 'scores', 'cls_conf',
                        'cls_scores', 'max_conf'),
         'attributes': ('attrs_id', 'attribute_ids', 'attr_id', 'attr_ids', 'attrs_ids', 'attribute_id', 'attrs', 'pred_attrs'),
         'attribute_conf': ('attrs_conf', 'attr_conf', 'attr_confs', 'attribute_confs', 'attr_scores', 'max_attr_conf'),
         'class_probabilities': ('cls_prob', 'cls_probs', 'soft_labels', 'class_prob'),
         'image_feature': ('image_box_feature',)}
ROUNDING = 1.0  # pixels a detector's rounding may put a box outside its picture
HIGHEST = {'class_conf': 1.01, 'attribute_conf': 1.01, 'class_probabilities': 1}  # of confidences, which may be rounded
SUM_TOLERANCE = 0.1  # by which the class probabilities of a region may miss 1, or VL-BERT's pre-training does not predict them
SMALL = 16  # pixels; in an image no larger, a box of one pixel is no sign of normalised boxes
FORMS = {'pixels': 'x1, y1, x2, y2', 'normalised': 'divided by width and height', 'xywh': 'x, y, width, height',
         'yxyx': 'y1, x1, y2, x2', 'cxcywh': 'centre x, centre y, width, height'}


class RegionError(InputError):
    """Regions that cannot be used; the message names file, line or image, what was expected, found, and what to do."""


@dataclass(frozen=True, eq=False)
class ImageRegions:
    """The o regions of one image, with f numbers a region; height and width in pixels.

    The background column is already removed from the ids: classes are 0..1599 and attributes 0..399 for the
    published Visual Genome detector. class_probabilities keeps the detector's order of classes; VL-BERT expects 1601, the
    background first.
    """

    img_id: str
    height: int
    width: int
    classes: np.ndarray  # (o,) int64
    class_conf: np.ndarray  # (o,) float32
    attributes: np.ndarray  # (o,) int64
    attribute_conf: np.ndarray  # (o,) float32
    boxes: np.ndarray  # (o, 4) float32, pixels x1, y1, x2, y2
    features: np.ndarray | None  # (o, f) float32; None: boxes only
    class_probabilities: np.ndarray | None = None  # (o, num_classes) float16, 0..1
    image_feature: np.ndarray | None = None  # (f,) float32, of the image as a whole
    picture: np.ndarray | None = None  # (height, width, 3) uint8 RGB, for models that read pixels; no file of regions holds it

    @classmethod
    def without_regions(cls, img_id: str, height: int, width: int, picture: np.ndarray | None = None) -> 'ImageRegions':
        """An image for models that read pixels alone."""
        ids, conf = np.zeros(0, np.int64), np.zeros(0, np.float32)
        return cls(img_id, height, width, ids, conf, ids, conf, np.zeros((0, 4), np.float32), None, picture=picture)


def check(image: ImageRegions, f: int | None = None) -> ImageRegions:
    """Return `image` with its boxes clipped to the picture, or raise RegionError saying which field is wrong.

    Boxes may lie up to a pixel outside, for a detector's rounding. `f` is the feature size expected, if known; without
    it, or with 0, features may be None.
    """
    img_id = image.img_id
    if (not isinstance(img_id, str) or not img_id or img_id != img_id.strip() or not img_id.isprintable()
            or '..' in img_id.split('/')):  # as a file's name it would leave its folder
        raise RegionError(f'field "img_id": expected a name with no white space around it, no control characters and no "..", '
                          f'found {shown(img_id)}')
    for field, size in (('img_h', image.height), ('img_w', image.width)):
        if not isinstance(size, int | np.integer) or not 0 < size < 2**31:
            raise RegionError(f'field "{field}": expected a positive number of pixels, found {size!r}')
    o = len(image.classes) if np.ndim(image.classes) else 0
    if o < 1:
        raise RegionError('field "num_boxes": expected at least 1, found 0')
    for name, (field, dtype) in COLUMNS.items():
        array = getattr(image, name)
        if array is None and (name in OPTIONAL or (name == 'features' and not f)):
            continue
        if name == 'features' or name in OPTIONAL:
            size = f if name == 'features' else None
            shape = (o, size or max(1, np.shape(array)[-1] if np.ndim(array) else 1))
        else:
            shape = (o, 4) if name == 'boxes' else (o,)
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
            how = f'; .astype(np.{np.dtype(dtype)}) converts it' if getattr(array, 'dtype', dtype) != dtype else ''
            raise RegionError(f'field "{field}": expected an array of {np.dtype(dtype)} {shape}, found '
                              f'{getattr(array, "dtype", type(array).__name__)} {np.shape(array)}{how}')
        if dtype == '<i8' and array.min() < 0:
            raise RegionError(f'field "{field}": expected ids of 0 and more, found {array.min()} in region '
                              f'{array.argmin()}')
        highest = HIGHEST.get(name)
        if dtype == '<i8' or (highest and array.min() >= 0 and array.max() <= highest):
            continue
        if not np.isfinite(array).all():
            region = np.argwhere(~np.isfinite(array))[0, 0]
            raise RegionError(f'field "{field}": expected finite numbers, found NaN or infinity in region {region}')
        if name in OPTIONAL:
            raise RegionError(f'field "{field}": expected numbers from 0 to 1, found {array.min()} to {array.max()}')
        if highest:
            region = int(np.argmax(np.abs(array - 0.5)))
            raise RegionError(f'field "{field}": expected confidences from 0 to 1, found {array[region]:g} in region {region}')
    if image.image_feature is not None:
        _check_image_feature(image.image_feature, image.features)
    if fault := box_fault(image.boxes, image.height, image.width):
        raise RegionError(f'field "boxes": {fault}')
    boxes, limits = image.boxes, np.array([image.width, image.height] * 2, np.float32)
    if (boxes < 0).any() or (boxes > limits).any():
        image = replace(image, boxes=np.clip(boxes, np.float32(0), limits))
    return image


def _check_image_feature(array, features: np.ndarray | None) -> None:
    shape = None if features is None else features.shape[1:]
    if shape is None:
        raise RegionError('field "image_feature": expected none, since the regions have no features, found one; leave it out')
    if not isinstance(array, np.ndarray) or array.dtype != '<f4' or array.shape != shape:
        raise RegionError(f'field "image_feature": expected an array of float32 {shape}, as many numbers as a region has, found '
                          f'{getattr(array, "dtype", type(array).__name__)} {np.shape(array)}')
    if not np.isfinite(array).all():
        raise RegionError('field "image_feature": expected finite numbers, found NaN or infinity')


def box_fault(boxes: np.ndarray, height: int, width: int) -> str | None:
    """What is wrong with the boxes (o, 4) of an image, and the form that they seem to have; None if they are valid."""
    limits = np.array([width, height] * 2, np.float32)
    wrong = (boxes[:, :2] > boxes[:, 2:]) | (boxes < -ROUNDING)[:, :2] | (boxes > limits + ROUNDING)[:, 2:]  # (o, 2)
    if wrong.any():
        region = int(np.argwhere(wrong)[0, 0])
        return (f'expected 0 <= x1 <= x2 <= {width} and 0 <= y1 <= y2 <= {height}, found {boxes[region].tolist()} in region '
                f'{region}{_seeming_form(boxes, height, width)}')
    if _normalised(boxes, height, width):
        return (f'expected pixels of an image of {width} x {height}, found only numbers from {boxes.min():.3g} to '
                f'{boxes.max():.3g}: boxes divided by width and height; bash run/regions.bash import --boxes normalised converts '
                'them')
    return None


def check_first_boxes(name, arrays: dict[str, np.ndarray], images: int = 8) -> None:
    """Raises RegionError if the first images of a store (its name and arrays) all have boxes of another form: the store was made
    before this was checked. Reads a few kilobytes."""
    offsets, sizes = arrays['offsets'][:images + 1].tolist(), arrays['sizes'][:images].tolist()
    fault = None
    for begin, end, (height, width) in zip(offsets, offsets[1:], sizes, strict=False):
        fault = box_fault(arrays['boxes'][begin:end], height, width)
        if not fault or 'import' not in fault:
            return
    if fault:
        raise RegionError(f'{name}: field "boxes" of the first images: {fault}')


def in_pixels(boxes: np.ndarray, form: str, height: int, width: int) -> np.ndarray:
    """Boxes (o, 4) of another form, one of FORMS or several with commas, as pixels x1, y1, x2, y2. Raises RegionError if they are
    to be normalised and are not."""
    forms, boxes = form.split(','), np.asarray(boxes, np.float64)
    if 'yxyx' in forms:
        boxes = boxes[:, [1, 0, 3, 2]]
    if 'xywh' in forms:
        boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    if 'cxcywh' in forms:
        boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    if 'normalised' in forms:
        if boxes.size and not (boxes.min() >= -0.02 and boxes.max() <= 1.02):  # half precision rounds
            raise RegionError(f'field "boxes": expected numbers from 0 to 1 (normalised), found {boxes.min():.6g} to '
                              f'{boxes.max():.6g}; of boxes in pixels leave out --boxes normalised')
        boxes = boxes.clip(0, 1) * ([width, height] * 2)
    return boxes.astype(np.float32)


def _normalised(boxes: np.ndarray, height: int, width: int) -> bool:
    """Whether all boxes lie within 0..1 although the image is larger. Corners at exactly 0 and 1 pixel are no sign of it:
    they are placeholders of some detectors."""
    return (max(height, width) > SMALL and boxes.size > 0 and boxes.max() <= 1.05 and boxes.min() >= -0.05
            and bool((boxes != np.round(boxes)).any()))


def _seeming_form(boxes: np.ndarray, height: int, width: int) -> str:
    """For boxes that are wrong as x1, y1, x2, y2: the form in which all of them are valid, for a message."""
    def fit(boxes, height, width):
        return bool(((boxes[:, :2] <= boxes[:, 2:]) & (boxes >= -ROUNDING)[:, :2]
                     & (boxes <= np.array([width, height] * 2) + ROUNDING)[:, 2:]).all())

    unit = ['normalised'] if _normalised(boxes, height, width) else []
    for order in ('xywh', 'yxyx', 'cxcywh'):
        form = ','.join([*unit, order])
        try:
            fits = fit(in_pixels(boxes, form, height, width), height, width)
        except RegionError:
            continue
        if fits:
            texts = ', '.join(FORMS[name] for name in reversed(form.split(',')))
            other = ', or, if height and width are exchanged, --swapSize' if order == 'yxyx' and not unit else ''
            return f'; all its boxes are valid as {texts}: bash run/regions.bash import --boxes {form} converts them{other}'
    return ''


def with_whole_image(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes in pixels (o, 4) after that of the image as a whole, region 0 of a model that reads it: (1 + o, 4), same dtype."""
    return np.concatenate([np.array([[0, 0, width - 1, height - 1]], boxes.dtype), boxes])


def array_sizes(image: ImageRegions) -> dict[str, int]:
    """Numbers a region of the arrays that may be missing or of any size; 0 of those that are missing."""
    arrays = {name: getattr(image, name) for name in ('features', *OPTIONAL)}
    return {name: 0 if array is None else array.shape[1] for name, array in arrays.items()}


def image_feature(image: ImageRegions) -> np.ndarray:
    """The feature of the image as a whole, (f,) float32; the mean of its regions where it has none, as in VL-BERT."""
    return mean_feature(image.features) if image.image_feature is None else image.image_feature


def no_distribution(probabilities: np.ndarray) -> np.ndarray:
    """Which rows of class probabilities (o, num_classes) do not sum to 1, (o,) bool."""
    return ~(np.abs(probabilities.sum(1, dtype=np.float32) - 1) <= SUM_TOLERANCE)


def mean_feature(features: np.ndarray) -> np.ndarray:
    """The mean of the features (o, f) of regions, (f,) float32; 0 without regions."""
    return features.sum(0, dtype=np.float32) / np.float32(max(len(features), 1))
