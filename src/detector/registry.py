"""Detectors by name: the Faster R-CNN, and the detector of any package that has one."""

import importlib
import inspect
from dataclasses import dataclass

FASTER_RCNN = 'faster_rcnn'
WEIGHTS = 'data/detector/faster_rcnn_from_caffe_attr.pkl'  # those that made the published regions
HELP = f'{FASTER_RCNN}, or a package NAME with a class Detector in its module NAME.detector'  # of a flag --detector

# Name -> the fewest and the most regions of a picture, and the score from which a box is a region (None: the detector's own).
LAYOUTS = {'lxmert': (36, 36, None), 'vlbert': (10, 100, 0.5)}
FLAGS = {'threshold': '--layout vlbert', 'probabilities': '--probabilities'}  # argument of a detector -> the flag that needs it


@dataclass(frozen=True)
class DetectorConfig:
    """A detector and how many regions it returns per picture."""

    name: str = FASTER_RCNN
    weights: str | None = None  # file, of the Faster R-CNN; None: WEIGHTS
    bf16: bool = False  # of the Faster R-CNN
    min_boxes: int = 36
    max_boxes: int = 36
    given_boxes: bool = False  # whether it computes the regions of given boxes
    threshold: float | None = None  # class score from which a box is a region; None: the detector's own
    probabilities: bool = False  # whether it also returns class_probabilities

    def arguments(self) -> dict:
        """The optional arguments of the detector's `regions` and `regions_of_boxes`."""
        return ({'threshold': self.threshold} if self.threshold is not None else {}) | (
            {'probabilities': True} if self.probabilities else {})


def load_detector(config, device='cpu'):
    """The detector of a DetectorConfig on a device.

    It has `provenance`, a dict, and `regions(pictures, ids, min_boxes, max_boxes)`, which returns a list of ImageRegions and
    raises PictureError or RegionError for a picture that it cannot use. A detector that can compute the features of given boxes
    also has `regions_of_boxes(pictures, ids, boxes)`, as the Faster R-CNN. They are given further arguments only where they are
    needed: `threshold` (of `regions`) by --layout vlbert, and `probabilities` by --probabilities. Raises ValueError for an
    unknown name or a detector that cannot do what the config wants, and what loading the weights raises.
    """
    detector = _load(config, device)
    if config.given_boxes and not hasattr(detector, 'regions_of_boxes'):
        raise ValueError(f'--boxes: the detector {config.name} cannot compute the features of given boxes; {FASTER_RCNN} can')
    for name, value in config.arguments().items():
        method, flag = 'regions_of_boxes' if config.given_boxes else 'regions', FLAGS[name]
        try:
            inspect.signature(getattr(detector, method)).bind_partial(**{name: value})
        except TypeError:
            raise ValueError(f'{flag}: the detector {config.name} cannot do this, its {method}() has no argument {name}; '
                             f'{FASTER_RCNN} can') from None
    return detector


def _load(config, device):
    name = config.name
    if name == FASTER_RCNN:
        from detector import weights  # imported here: other detectors start several times faster without PyTorch
        return weights.load(config.weights or WEIGHTS, device, config.bf16)
    if not name.isidentifier():
        raise ValueError(f'--detector: expected {HELP}, found {name!r}')
    try:
        kind = importlib.import_module(f'{name}.detector').Detector
    except (ImportError, AttributeError) as error:
        raise ValueError(f'--detector {name}: expected {HELP}; tried {name}.detector.Detector, found none ({error})') from None
    return kind()
