"""Processes that turn pictures into lines of a TSV, one at a time; each has a detector on a device of its own."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache

from dist import DeviceError
from images.pictures import PictureError, open_picture
from regions import tsv
from regions.tsv import RegionError

DETECTORS = ('faster_rcnn', 'shapes')
WEIGHTS = 'data/detector/faster_rcnn_from_caffe_attr.pkl'  # of which the published regions are
AHEAD = 8  # pictures for each process that wait or are done


@dataclass(frozen=True)
class Recipe:
    """How regions are made."""

    detector: str
    weights: str
    bf16: bool
    min_boxes: int
    max_boxes: int


def load(recipe, device='cpu'):
    """The detector of a Recipe on a device: regions(pictures, ids, min_boxes, max_boxes), and provenance."""
    if recipe.detector == 'shapes':
        from shapes.detector import Detector  # of two detectors only one is imported: the other needs PyTorch
        return Detector()
    from detector import weights
    return weights.load(recipe.weights, device, recipe.bf16)


class Workers:
    """A process for each of `devices`, such as 'cpu' or 'cuda:1'; use as a context."""

    def __init__(self, recipe, devices):
        context = multiprocessing.get_context('spawn')  # CUDA does not survive a fork
        places = context.SimpleQueue()
        for device in devices:
            places.put(device)
        self.recipe, self.ahead = recipe, AHEAD * len(devices)
        self.pool = ProcessPoolExecutor(len(devices), context, _begin, (places,))

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind:
            for process in multiprocessing.active_children():
                process.terminate()  # else the pictures that are begun would be waited for
            self.pool._result_queue._writer.close()  # else, for ever, the rest of what one of them was just sending
        self.pool.shutdown(cancel_futures=True)

    def provenance(self):
        """What the detector tells of itself. Raises what loading it raises."""
        with _explained():
            return self.pool.submit(_provenance, self.recipe).result()

    def run(self, pictures):
        """Yields (image id, line, None), or (image id, None, what is wrong with it), of (image id, path) each, in their order."""
        pending = deque()
        with _explained():
            for img_id, path in pictures:
                pending.append(self.pool.submit(_extract, self.recipe, img_id, path))
                if len(pending) > self.ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


@contextlib.contextmanager
def _explained():
    try:
        yield
    except BrokenProcessPool:
        raise ChildProcessError('a process run_main before its work was done (killed, or out of memory?); the same command goes on '
                                'with what is left, with a smaller NPROC in less memory') from None
    except RuntimeError as error:  # of CUDA, such as a GPU without room
        raise DeviceError(str(error)) from error


def _begin(places):
    global _device
    _device = places.get()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


@cache
def _detector(recipe):
    return load(recipe, _device)


def _provenance(recipe):
    return _detector(recipe).provenance


def _extract(recipe, img_id, path):
    try:
        picture = open_picture(path)
    except PictureError as error:
        return img_id, None, str(error)
    try:
        [image] = _detector(recipe).regions([picture], [img_id], recipe.min_boxes, recipe.max_boxes)
        return img_id, tsv.encode(tsv.check(image)), None
    except (PictureError, RegionError) as error:
        return img_id, None, f'{path}: {error}'
