"""The published weights of the bottom-up-attention detector, by the names that detector.faster_rcnn has for them.

    .bin, .pth, .safetensors   PyTorch: unc-nlp/frcnn-vg-finetuned
    .pkl                       detectron2: faster_rcnn_from_caffe_attr.pkl (36 boxes), ..._attr_original.pkl (10 to 100)
    .caffemodel                Caffe: resnet101_faster_rcnn_final_iter_320000.caffemodel (36 boxes) and its like

The PyTorch files were made from Caffe's: background is the last column instead of the first, objectness one logit instead of two,
anchors are those of detectron2. No code in a file is run.
"""

import hashlib
import math
import mmap
import pickle
import re
from pathlib import Path

import numpy as np
import torch

from bert.weights import WeightsError, fill, read_state, renamed
from detector.faster_rcnn import ANCHORS, CONVENTIONS, Detector, FasterRCNN, FasterRCNNConfig, anchors_of

PUBLISHED = FasterRCNNConfig()  # the sizes of all published weights
# What a file may have that the network does not: a counter of training, and of Caffe the layers for relations between regions.
LEFT_ASIDE = (r'.*\.num_batches_tracked$', r'(heatmap_|fc_rel|fc_subject|fc_object|rel_merge|rel_score)')


def read(path):
    """(tensors by name, 'caffe' or 'detectron2': how their code counts pixels) of a file of weights.

    Raises FileNotFoundError or WeightsError, which name the file.
    """
    path = Path(path)
    if path.suffix == '.caffemodel':
        return from_caffe(read_caffe(path), path), 'caffe'
    return read_pickle(path) if path.suffix == '.pkl' else read_state(path), 'detectron2'


# ---------------------------------------------------------------------------- detectron2's pickles


class Kind:
    """Stands for numpy.dtype, which believes a damaged pickle that numbers are pointers."""

    def __init__(self, code, *_):
        self.code, self.order = code, '='

    def __setstate__(self, state):
        self.order = state[1]


class Array:
    """Stands for numpy.ndarray, of which a few bytes ask for any size."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        _, shape, kind, by_columns, data = state
        dtype = np.dtype(kind.order + kind.code)
        if dtype.kind not in 'fi':
            raise pickle.UnpicklingError(f'expected arrays of numbers, found one of {dtype}')
        data = data.encode('latin1') if isinstance(data, str) else data  # of Python 2
        array = np.frombuffer(data, dtype).reshape(shape, order='F' if by_columns else 'C')
        self.tensor = torch.from_numpy(array.astype(dtype.newbyteorder('=')))


class ArraysOnly(pickle._Unpickler):
    """Reads arrays of numbers in dicts, lists, tuples, strings and numbers; nothing that a pickle could have run.

    In Python: that in C makes its table as large as a damaged file says.
    """

    def find_class(self, module, name):
        module = module.replace('numpy._core', 'numpy.core')  # numpy 2 has a new name for it
        allowed = {('numpy.core.multiarray', '_reconstruct'): Array, ('numpy', 'ndarray'): None, ('numpy', 'dtype'): Kind,
                   ('collections', 'OrderedDict'): dict,
                   ('_codecs', 'encode'): lambda text, _: text.encode('latin1')}  # how Python 3 writes bytes for Python 2
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f'{module}.{name} is not allowed: expected arrays of numbers and their names only')
        return allowed[module, name]


def read_pickle(path):
    """The tensors of a pickle {'model': {name: array}} or {name: array}."""
    try:
        with open(path, 'rb') as file:
            found = ArraysOnly(file, encoding='latin1').load()  # written by Python 2, some of them
    except OSError:
        raise
    except Exception as error:  # a damaged pickle makes nearly anything be raised
        raise WeightsError(f'{path}: expected a pickle of arrays by name, found none ({type(error).__name__}: {error}); fetch it '
                           'again') from None
    found = found.get('model', found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found:
        raise WeightsError(f'{path}: expected a dict of arrays by name, found {type(found).__name__}; fetch it again')
    for name, array in found.items():
        if not isinstance(name, str) or not hasattr(array, 'tensor'):
            raise WeightsError(f'{path}: {name!r}: expected an array of numbers, found {type(array).__name__}; fetch it again')
    return {name: array.tensor for name, array in found.items()}


# ---------------------------------------------------------------------------- Caffe's protobuf

# Fields of caffe.proto by their numbers: in NetParameter the layers (and those of the form V1), in each its name and its blobs.
LAYERS, NAME_BLOBS = {100: 'layer', 2: 'layers'}, {'layer': (1, 7), 'layers': (4, 6)}
DATA, DOUBLES, SHAPE, OLD_SHAPE = 5, 8, 7, (1, 2, 3, 4)  # of BlobProto
DIM = 1  # of BlobShape
VARINT, LONG, BYTES, SHORT = 0, 1, 2, 5  # kinds of values on the wire


def read_caffe(path):
    """{layer: [array of each of its blobs]} of a .caffemodel, for layers that have any."""
    with open(path, 'rb') as file:
        try:
            net = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise WeightsError(f'{path}: expected a Caffe model, found an empty file; fetch it again') from None
    layers = {}
    try:
        for number, kind, value in fields(net):
            if number not in LAYERS or kind != BYTES:
                continue
            name, blobs = layer(value, *NAME_BLOBS[LAYERS[number]])
            if blobs and name in layers:
                raise ValueError(f'has layer {name} twice')
            if blobs:
                layers[name] = blobs
    except (ValueError, OverflowError) as error:
        raise WeightsError(f'{path}: expected a whole Caffe model, found none ({error}); fetch it again') from None
    if not layers:
        raise WeightsError(f'{path}: expected a Caffe model with weights, found no layer that has any')
    return layers


def layer(message, name_field, blobs_field):
    name, blobs = '', []
    for number, kind, value in fields(message):
        if number == name_field and kind == BYTES:
            name = str(value, 'utf-8')
        elif number == blobs_field and kind == BYTES:
            blobs.append(blob(value))
    return name, blobs


def blob(message):
    """A BlobProto as an array of float32, of the shape it has there."""
    numbers, shape, old = {DATA: bytearray(), DOUBLES: bytearray()}, None, {}
    for number, kind, value in fields(message):
        if number in numbers and kind != VARINT:  # packed, or a number a field
            numbers[number] += value
        elif number == SHAPE and kind == BYTES:
            shape = dims(value)
        elif number in OLD_SHAPE and kind == VARINT:
            old[number] = value
    data = np.concatenate([np.frombuffer(numbers[DATA], '<f4'), np.frombuffer(numbers[DOUBLES], '<f8')], dtype=np.float32,
                          casting='same_kind')
    shape = [old.get(number, 1) for number in OLD_SHAPE] if shape is None else shape
    if math.prod(shape) != len(data):
        raise ValueError(f'{len(data)} numbers for the shape {tuple(shape)}')
    return data.reshape(shape)


def dims(message):
    """The sides in a BlobShape, packed or a field each."""
    found = []
    for number, kind, value in fields(message):
        if number == DIM and kind == VARINT:
            found.append(value)
        elif number == DIM and kind == BYTES:
            place = 0
            while place < len(value):
                side, place = varint(value, place)
                found.append(side)
    return found


def fields(message):
    """(field number, kind, value) of each field of a protobuf message; values are ints for VARINT, else their bytes."""
    place = 0
    while place < len(message):
        key, place = varint(message, place)
        number, kind = key >> 3, key & 7
        if not number:
            raise ValueError('a field of number 0')
        if kind == VARINT:
            value, place = varint(message, place)
            yield number, kind, value
            continue
        if kind == BYTES:
            length, place = varint(message, place)
        elif kind in (LONG, SHORT):
            length = 8 if kind == LONG else 4
        else:
            raise ValueError(f'a value of the unknown kind {kind}')
        if place + length > len(message):
            raise ValueError(f'{length} bytes announced where {len(message) - place} are left')
        yield number, kind, message[place:place + length]
        place += length


def varint(message, place):
    """A number of seven bits a byte, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError('a number that does not end')
        byte, place = message[place], place + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError('a number of more than ten bytes')


# ---------------------------------------------------------------------------- Caffe's names and layouts

RPN = {'rpn_conv/3x3': 'conv', 'rpn_cls_score': 'objectness_logits', 'rpn_bbox_pred': 'anchor_deltas'}
HEADS = ('cls_score', 'bbox_pred', 'cls_embedding', 'fc_attr', 'attr_score')
BRANCHES = {'1': 'shortcut', '2a': 'conv1', '2b': 'conv2', '2c': 'conv3'}
BACKGROUND_FIRST = ('cls_score', 'cls_embedding', 'attr_score')


def from_caffe(layers, path):
    """Caffe's layers as tensors by our names and in our layouts; layers that are not the network's keep their names."""
    state = {}
    for name, blobs in layers.items():
        kind, target = place_of(name)
        try:
            named = CONVERT[kind](name, [torch.from_numpy(blob) for blob in blobs])
        except (ValueError, IndexError, RuntimeError) as error:
            raise WeightsError(f'{path}: layer {name}: expected the weights of such a layer, found blobs of shapes '
                               f'{", ".join(str(blob.shape) for blob in blobs)} ({error})') from None
        state |= renamed({f'{target}.{own}': tensor for own, tensor in named.items()}, str, path)
    return state


def place_of(name):
    """(how a layer of Caffe is converted, where it belongs in the network)"""
    if match := re.fullmatch(r'(res|bn|scale)([2-5])([a-z])(\d*)_branch(1|2[abc])', name):
        what, level, letter, number, branch = match.groups()
        block = int(number) if number else ord(letter) - ord('a')  # a, b, c, or a, b1, b2, ...
        home = 'roi_heads.res5' if level == '5' else f'backbone.res{level}'
        return what, f'{home}.{block}.{BRANCHES[branch]}{"" if what == "res" else ".norm"}'
    if match := re.fullmatch(r'(?:(bn|scale)_)?conv1', name):
        return match[1] or 'res', f'backbone.stem.conv1{".norm" if match[1] else ""}'
    if name in RPN:
        return 'objectness' if name == 'rpn_cls_score' else 'layer', f'proposal_generator.rpn_head.{RPN[name]}'
    return ('head', f'roi_heads.box_predictor.{name}') if name in HEADS else ('other', name)


def convolution(name, blobs):
    weight, = blobs
    return {'weight': weight}


def batch_norm(name, blobs):
    mean, var, factor = blobs  # sums, and by what to divide them
    factor = factor.item() or 1
    return {'running_mean': mean.flatten() / factor, 'running_var': var.flatten() / factor}


def scale(name, blobs):
    weight, bias = blobs
    return {'weight': weight.flatten(), 'bias': bias.flatten()}


def with_bias(name, blobs):
    weight, bias = blobs
    return {'weight': weight, 'bias': bias.flatten()}


def objectness(name, blobs):
    """Channels of background and then of object for all anchors; the softmax of two is the logistic of their difference."""
    found = with_bias(name, blobs)
    return {own: objects - background for own, (background, objects) in ((own, t.chunk(2)) for own, t in found.items())}


def head(name, blobs):
    weight, *bias = blobs
    found = {'weight': weight.reshape(weight.shape[-2:]), **({'bias': bias[0].flatten()} if bias else {})}
    if name in BACKGROUND_FIRST:
        return {own: tensor.roll(-1, 0) for own, tensor in found.items()}
    return {own: tensor[4:] for own, tensor in found.items()} if name == 'bbox_pred' else found


def other(name, blobs):
    return {str(place): blob for place, blob in enumerate(blobs)}


CONVERT = {'res': convolution, 'bn': batch_norm, 'scale': scale, 'layer': with_bias, 'objectness': objectness, 'head': head,
           'other': other}


def load(path, device='cpu', bf16=False, config=PUBLISHED):
    """The Detector with weights of any published form, as `read` takes them.

    Raises FileNotFoundError where `path` is None or names no file, and WeightsError that names the file if it does not fit.
    """
    if path is None or not Path(path).is_file():
        where = 'the detector has no weights' if path is None else f"{path}: no such file of the detector's weights"
        raise FileNotFoundError(f'{where}; bash run/download.bash detector fetches them')
    state, kind = read(path)
    net = FasterRCNN(config, CONVENTIONS[kind])
    report = fill(net, state, str(path), (ANCHORS,), LEFT_ASIDE)
    anchors = getattr(net.proposal_generator.anchor_generator.cell_anchors, '0')
    if not (anchors[:, :2] < anchors[:, 2:]).all():
        raise WeightsError(f'{path}: {ANCHORS}: expected boxes with x1 < x2 and y1 < y2, found {anchors.tolist()}')
    with open(path, 'rb') as file:
        digest = hashlib.file_digest(file, 'sha256').hexdigest()
    return Detector(net, {'weights': Path(path).name, 'sha256': digest}, device, bf16,
                    f'{report}\n  pixels are counted as in {kind}, with {anchors_of(net)} anchors')
