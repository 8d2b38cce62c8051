"""ALBEF's pre-training as a program: killed and resumed, in several processes, and with --accumulate."""

import json
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Ranks
from test_train import assert_same, signal_in_training, weights

from bert.tokenization import SPECIAL_TOKENS

WORDS = ['a', 'red', 'blue', 'green', 'dog', 'cat', 'ball', 'tree', 'runs', 'sits', 'on', 'in', 'the', 'grass', 'snow', 'water']
MODEL = {'model_type': 'albef', 'image_res': 16, 'patch_size': 8, 'vision_width': 16, 'vision_depth': 1, 'vision_heads': 2,
         'embed_dim': 8, 'queue_size': 16}
BERT = {'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 32, 'fusion_layer': 1,
        'encoder_width': 16, 'max_position_embeddings': 32}
LAST = 'Epoch04.pth'

def without_key_biases(state):
    """Softmax does not depend on biases of keys: their gradients are rounding, of which AdamW makes steps like all others."""
    return {name: torch.cat([tensor.chunk(3)[0], tensor.chunk(3)[2]]) if name.endswith('.qkv.bias') else tensor
            for name, tensor in state.items() if not name.endswith('.key.bias')}


def write_pictures(folder):
    """24 pictures of noise with captions, two of each fourth picture; returns the vocabulary."""
    rng, items = random.Random(3), []
    (folder / 'images').mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'images/{number}.png')
        captions = [' '.join(rng.choices(WORDS, k=rng.randint(3, 9))) for _ in range(2 if number % 4 == 0 else 1)]
        items.append({'image': f'images/{number}.png', 'caption': captions if len(captions) > 1 else captions[0]})
    (folder / 'pretrain.json').write_text(json.dumps(items))
    return [*SPECIAL_TOKENS, *WORDS]


@pytest.fixture
def pretrain(tmp_path):
    """pretrain(*flags, name, processes=1, wait=True, dropout=0.1, group=0): the program; the finished run or its Ranks."""
    vocabulary = write_pictures(tmp_path)
    (tmp_path / 'dataset.json').write_text(json.dumps({'kind': 'captions', 'name': 'noise', 'max_length': 20, 'splits': {
        'train': {'annotations': 'pretrain.json', 'images': ['.']}}}))

    def run(*flags, name, processes=1, wait=True, dropout=0.1, group=0):
        bert = tmp_path / f'bert{dropout}{group}'
        bert.mkdir(exist_ok=True)
        (bert / 'vocab.txt').write_text('\n'.join(vocabulary) + '\n')
        (bert / 'config.json').write_text(json.dumps(MODEL | {'group': group, 'bert': BERT | {
            'vocab_size': len(vocabulary), 'hidden_dropout_prob': dropout, 'attention_probs_dropout_prob': dropout}}))
        flags = ['--model', 'albef', '--device', 'cpu', '--dataset', tmp_path / 'dataset.json', '--bert', bert, '--fromScratch',
                 '--train', 'train', '--valid', '', '--epochs', '4', '--batchSize', '8', '--lr', '1e-3', '--seed', '5',
                 '--output', tmp_path / name, *(['--multiGPU'] if processes > 1 else []), *flags]
        ranks = Ranks('pairs', [str(flag) for flag in flags], tmp_path / f'{name}.printed', processes)
        if not wait:
            return ranks
        run = ranks.wait()
        assert run.returncode == 0, run.stdout
        return run

    return run


def test_a_killed_run_ends_with_the_same_bits(pretrain, tmp_path):
    """Weights, momentum models, queues and their place, the optimizer and all draws are part of the run state."""
    pretrain(name='unbroken')
    draw, state = random.Random(time.time_ns()), tmp_path / 'killed/RUN_STATE.pth'
    ranks = pretrain('--saveSteps', '2', name='killed', wait=False)
    assert signal_in_training(ranks, state, seconds=draw.uniform(0, 0.1)).returncode != 0
    assert 'Resuming at epoch' in pretrain('--saveSteps', '2', '--resume', name='killed').stdout
    expected = weights(tmp_path / 'unbroken', LAST)
    assert {'image_queue', 'text_queue', 'queue_ptr', 'text_encoder_m.cls.predictions.bias'} <= expected.keys()
    assert_same(expected, weights(tmp_path / 'killed', LAST))


@pytest.mark.parametrize('group', [4, 0], ids=['groups of a micro-batch', 'groups of the step'])
def test_processes_and_accumulation_end_with_the_same_weights(pretrain, tmp_path, group):
    how = {'dropout': 0, 'group': group}
    pretrain(name='one', **how)
    pretrain(name='two', processes=2, **how)
    pretrain('--accumulate', '2', name='accumulated', **how)
    expected = weights(tmp_path / 'one', LAST)
    for name in ('two', 'accumulated'):
        state = weights(tmp_path / name, LAST)
        assert torch.equal(state['queue_ptr'], expected['queue_ptr'])
        assert_same(without_key_biases(state), without_key_biases(expected), 1e-5)
