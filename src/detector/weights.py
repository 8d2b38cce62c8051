"""The published weights of the bottom-up-attention detector, by the parameter names of detector.faster_rcnn.

    .bin, .pth, .safetensors   PyTorch: unc-nlp/frcnn-vg-finetuned
    .pkl                       detectron2: faster_rcnn_from_caffe_attr.pkl (36 boxes), ..._attr_original.pkl (10 to 100)

All were converted from Caffe's to detectron2's conventions. No code in a file is run.
"""

import pickle
from pathlib import Path

import numpy as np
import torch

from bert.weights import WeightsError, fill, read_state
from detector.faster_rcnn import ANCHORS, Detector, FasterRCNN, FasterRCNNConfig
from files.atomic import sha256

# What a file may have and the network has not: layers for relations between regions.
IGNORED = (r'(heatmap_|fc_rel|fc_subject|fc_object|rel_merge|rel_score)',)
PUBLISHED = FasterRCNNConfig()  # the sizes of all published weights
FETCH = 'bash run/download.bash detector fetches them'


def load(path, device='cpu', bf16=False, config=PUBLISHED):
    """The Detector with the weights of a file.

    Raises FileNotFoundError, or WeightsError that names the file if it does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of the detector's weights; {FETCH}")
    if path.suffix == '.caffemodel':
        raise WeightsError(f"{path}: Caffe's files are not read; expected the same weights as detectron2's .pkl, or as .bin, "
                           f'.pth or .safetensors; {FETCH}')
    net = FasterRCNN(config)
    state = read_pickle(path) if path.suffix == '.pkl' else read_state(path)
    fill(net, state, str(path), (ANCHORS,), IGNORED)
    anchors = net.proposal_generator.anchors
    if not (anchors[:, :2] < anchors[:, 2:]).all():
        raise WeightsError(f'{path}: {ANCHORS}: expected boxes with x1 < x2 and y1 < y2, found {anchors.tolist()}')
    return Detector(net, {'weights': path.name, 'sha256': sha256(path)}, device, bf16)


# ---------------------------------------------------------------------------- detectron2's pickles


class DtypeStub:
    """Stands for numpy.dtype, which would follow pointers that a damaged pickle gives it."""

    def __init__(self, code, *_):
        self.code, self.order = code, '='

    def __setstate__(self, state):
        self.order = state[1]


class ArrayStub:
    """Stands for numpy.ndarray, of which a few bytes can request any size. `tensor` is its content."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        _, shape, dtype, by_columns, data = state
        dtype = np.dtype(dtype.order + dtype.code)
        if dtype.kind not in 'fi':
            raise pickle.UnpicklingError(f'expected arrays of numbers, found one of {dtype}')
        data = data.encode('latin1') if isinstance(data, str) else data  # written by Python 2
        array = np.frombuffer(data, dtype).reshape(shape, order='F' if by_columns else 'C')
        self.tensor = torch.from_numpy(array.astype(dtype.newbyteorder('=')))


ALLOWED = {('numpy.core.multiarray', '_reconstruct'): ArrayStub, ('numpy', 'ndarray'): None, ('numpy', 'dtype'): DtypeStub,
           ('collections', 'OrderedDict'): dict,
           ('_codecs', 'encode'): lambda text, _: text.encode('latin1')}  # how Python 3 writes bytes for Python 2


class ArrayUnpickler(pickle._Unpickler):
    """Reads arrays of numbers in dicts, lists, tuples, strings and numbers; refuses whatever could run code.

    This is the unpickler in Python: the one in C allocates as large a memo as a damaged file asks for.
    """

    def find_class(self, module, name):
        module = module.replace('numpy._core', 'numpy.core')  # its name in numpy 2
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f'{module}.{name} is not allowed: expected arrays of numbers and their names only')
        return ALLOWED[module, name]


def read_pickle(path):
    """The tensors of a pickle {'model': {name: array}} or {name: array}. Raises OSError, or WeightsError that names the file."""
    try:
        with open(path, 'rb') as file:
            content = ArrayUnpickler(file, encoding='latin1').load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise WeightsError(f'{path}: expected a pickle of arrays by name, found none ({type(error).__name__}: {error}); fetch it '
                           'again') from None
    arrays = content.get('model', content) if isinstance(content, dict) else content
    if not isinstance(arrays, dict) or not arrays:
        raise WeightsError(f'{path}: expected a dict of arrays by name, found {type(arrays).__name__}; fetch it again')
    for name, array in arrays.items():
        if not isinstance(name, str) or not hasattr(array, 'tensor'):
            raise WeightsError(f'{path}: {name!r}: expected an array of numbers, found {type(array).__name__}; fetch it again')
    return {name: array.tensor for name, array in arrays.items()}
