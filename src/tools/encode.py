"""Writes hidden states and pooled vectors of (image, sentence) pairs to .npz. The program behind run/encode.bash.

Exit status 0: success; 1: invalid input; 2: wrong usage.
"""

import argparse
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

import dist
import models
from annotations.dataset import ExampleDataset
from annotations.examples import Examples, is_id
from annotations.split_images import check_sizes
from batches import evaluation_batches, load_batches
from bert.speed import accelerate, warn_slow_bf16
from cli import run_main
from files.atomic import check_free_space, temporary_folder, write_atomically
from files.json_files import DataError, field, numbered_lines, some, stream
from files.memory import check_memory
from files.progress import ProgressBar
from files.text import shown
from images.source import open_source
from param import Options, add_flags
from regions import placement, store
from run_folder import read_run
from tasks import checkpoints
from tasks.program import check_batch, check_features
from tasks.registry import output_of
from train import autocast

STATES = ('pooled', 'words', 'regions')

EPILOG = '''
Arrays in --out, for n pairs in the order of PAIRS and hidden size d:
  pooled (n, d)                    the pooled vector, the input of the answer head: the state of [CLS], or of the [MASK] that is
                                   added
  words.LAYER (n, t, d)            hidden states, 0 at padding; t: tokens of the longest sentence, with [CLS] and [SEP], and the
                                   [MASK] that VL-BERT and VisualBERT add with a snapshot of a task whose output is an answer
  regions.LAYER (n, o, d)          hidden states of regions, as ordered in --features; o: the maximum number of regions per image
  image.LAYER (n, d)               with --states regions of VL-BERT: hidden states of the image as a whole, its further region
  input_ids (n, t)                 token ids (lines of vocab.txt, from 0); 0 is padding
  num_words (n,), num_regions (n,) numbers of tokens and regions without padding
  img_ids (n,), sentences (n,)     the pairs
Hidden states are float32. np.load('states.npz')['words.cross5'] loads one array.

Layers of words: lang0 (embeddings), lang1 .. lang9 (language encoder), cross1 .. cross5. Layers of regions: visn0 (embeddings),
rel1 .. rel5 (object relationship encoder), cross1 .. cross5. Of VL-BERT: embeddings, layer1 .. layer12. A smaller model has fewer
layers.

PAIRS is a UTF-8 text file with lines "img_id<TAB>sentence", or a json list of objects with img_id and sent, such as
data/vqa/minival.json. NLVR2's json with two images per example is not supported: write each image with the statement on a line
of its own. Sentences longer than --maxLength are truncated, as in training; what VL-BERT adds is not counted.

Examples:
  bash run/encode.bash 0 pairs.tsv --features data/mscoco_imgfeat/val2014_obj36.tsv --load snap/pretrained/model --out pooled.npz
  bash run/encode.bash cpu data/vqa/minival.json --features data/mscoco_imgfeat/val2014_obj36.tsv --load snap/vqa/mine/BEST
      --states words,regions --layers lang0,lang9,rel5,cross1,cross5 --out states.npz

Exit status: 0 success, 1 invalid input, 2 wrong usage.
'''


def read_pairs(path):
    """(image ids, sentences), two lists of str, from PAIRS. Raises FileNotFoundError, or DataError that names lines or keys."""
    pairs = list((json_pairs if {'.json', '.jsonl'} & {*path.suffixes[-2:]} else line_pairs)(path))
    if not pairs:
        raise DataError(f'{path}: expected lines img_id<TAB>sentence, found none; write one a pair')
    for img_id, _ in pairs:
        if not is_id(img_id):
            raise DataError(f'{path}: expected image ids without control characters, found {shown(img_id)}; correct it')
    return tuple(map(list, zip(*pairs, strict=True)))


def json_pairs(path):
    for item in stream(path, 'item', 'pairs'):
        if isinstance(item, dict) and 'img0' in item:
            raise DataError(f'{path}: key "img0": expected one image a sentence, found two; write each with the sentence on a '
                            'line of its own, img_id<TAB>sentence')
        yield field(item, 'img_id', str, path), field(item, 'sent', str, path)


def line_pairs(path):
    """Yields the pairs of a text file; at the end raises DataError that names all invalid lines."""
    invalid, first = [], None
    for number, line in numbered_lines(path):
        try:
            img_id, sentence = (part.strip() for part in line.decode().rstrip('\r\n').split('\t'))
        except ValueError:  # UnicodeDecodeError is one
            img_id = sentence = ''
        if img_id and sentence:
            yield img_id, sentence
        else:
            invalid.append(str(number))
            first = line if first is None else first
    if invalid:
        raise DataError(f'{path}: line{"s" * (len(invalid) > 1)} {some(invalid)}: expected img_id<TAB>sentence in UTF-8, found '
                        f'{first[:60]!r} in the first; correct them')


def choose_layers(names, states, wanted):
    """{'words': layer names, 'regions': layer names} to write, for the values of --states and --layers (`wanted`).

    names: all layers, of words and of regions. An empty `wanted` selects the last layer of each. Raises ValueError for a layer
    that does not exist in the selected states, and for a state without a selected layer.
    """
    by_state = {state: layers for state, layers in zip(('words', 'regions'), names, strict=True) if state in states}
    if not by_state:
        if wanted:
            raise ValueError(f'--layers {",".join(wanted)}: only words and regions have layers; add them to --states')
        return {}
    existing = '; '.join(f'of {state} there are {", ".join(layers)}' for state, layers in by_state.items())
    for name in wanted:
        if not any(name in layers for layers in by_state.values()):
            raise ValueError(f'--layers: unknown layer "{name}"; {existing}')
    chosen = {state: [name for name in layers if name in wanted] if wanted else layers[-1:] for state, layers in by_state.items()}
    for state, layers in chosen.items():
        if not layers:
            raise ValueError(f'--layers {",".join(wanted)}: names no layer of {state}; {existing}')
    return chosen


def encode(flags):
    """Writes the .npz and returns the exit status. Checks PAIRS before loading the weights."""
    device = dist.start(flags.device)
    if flags.bf16:
        warn_slow_bf16(device)
    options = Options(load=flags.load, bert=flags.bert, batchSize=flags.batchSize, bf16=flags.bf16, device=flags.device,
                      storeRoot=flags.storeRoot, offline=flags.offline)
    weights = checkpoints.starting_weights(options)
    bert = checkpoints.bert_folder(options, weights)
    package = models.package(model := checkpoints.model_type(weights))
    config = package.read_config(bert, options)
    checkpoints.check_size(config, bert, weights)
    tokenizer = checkpoints.read_tokenizer(bert, config)
    checkpoints.check_max_length(flags.maxLength, config)
    checkpoints.check_sidecars(model, weights, config, tokenizer)
    layers = choose_layers(package.layer_names(config), flags.states, flags.layers)
    img_ids, sentences = read_pairs(flags.pairs)
    regions, images = open_inputs(flags, img_ids)
    if images is None:
        check_features(regions, config, ', '.join(flags.features), bert)
    rows = (images if regions is None else regions).rows(img_ids)
    encoder, report = package.load_encoder(weights, config)
    print(report)
    encoder.tokenizer = tokenizer
    encoder.blank = encoder.blank and output_of(read_run(weights.parent).get('task')) in (None, 'answer')
    check_inputs(flags, encoder)
    if regions is not None and images is not None:
        check_sizes(img_ids, regions, images)
    if regions is not None and 'regions' not in encoder.needs:
        regions = placement.without_features(regions)
    accelerate(encoder.to(device).eval(), options)
    examples = Examples.unlabelled([[img_id] for img_id in img_ids], sentences)
    dataset = ExampleDataset(examples, regions, rows[:, None], encoder, [], flags.maxLength, images=images)
    dataset.text_report(slice(None), flags.pairs)
    check_batch(dataset, options.batchSize, 'batchSize', device)
    check_memory(4 * len(sentences) * max(map(len, sentences)), f'{flags.pairs}: an array of its sentences')
    batches = hidden_states(encoder, dataset, 'pooled' in flags.states, layers, options, device)
    texts = {'img_ids': np.array(img_ids), 'sentences': np.array(sentences)}
    shapes = write_states(flags.out, texts, layout(dataset, config.hidden_size, 'pooled' in flags.states, layers), batches)
    print(f'{flags.out}: ' + ', '.join(f'{name} {shape}' for name, shape in shapes.items()))
    return 0


def open_inputs(flags, img_ids):
    """(the regions of --features, or None; the ImageSource of --images, or None). Raises DataError for pairs that they lack."""
    regions = store.open_all(flags.features, flags.storeRoot) if flags.features else None
    ids = 'path' if any('/' in img_id for img_id in img_ids) else 'stem'
    images = open_source(flags.images, ids, index_root=flags.storeRoot) if flags.images else None
    for flag, what, source in (('features', 'regions', regions), ('images', 'files', images)):
        rows = source.rows(img_ids) if source is not None else ()
        if unknown := [img_id for img_id, row in zip(img_ids, rows, strict=False) if row < 0]:
            raise DataError(f'{flags.pairs}: {len(unknown):,} of {len(rows):,} pairs are about {len(set(unknown)):,} images '
                            f'without {what} in {", ".join(getattr(flags, flag))} ({some(unknown)}); add a file that has them to '
                            f'--{flag}, or leave these pairs out')
    return regions, images


def check_inputs(flags, encoder):
    """Raises DataError unless an encoder reads one image at a time, and the flags name what it `needs`, and nothing else."""
    if encoder.images > 1:
        raise DataError(f'--load {flags.load}: expected a model that reads an image at a time, found one that reads '
                        f'{encoder.images} together; name the snapshot of another task')
    needs = encoder.needs
    for flag, what, needed in (('features', 'regions', needs & {'regions', 'boxes'}), ('images', 'pixels', needs & {'pixels'})):
        if bool(needed) != bool(getattr(flags, flag)):
            raise DataError(f'--{flag}: {flags.load} reads {"" if needed else "no "}{what}; '
                            f'{f"name the {flag} of the images" if needed else "leave it out"}')


def layout(dataset, d, pooled, layers):
    """{name: (dtype, shape)} of the numeric arrays of the .npz, in order. d: hidden size; layers: as from choose_layers."""
    n, whole_image = len(dataset), dataset.whole_image and 'regions' in layers
    if dataset.regions is None and 'regions' in layers:
        raise DataError('--states regions: the model reads no regions; leave it out')
    length = {'words': int(dataset.lengths[dataset.sentence].max()),
              'regions': 0 if dataset.regions is None else int(dataset.regions.max_regions)}
    return {
        'num_words': (np.int32, (n,)), 'num_regions': (np.int32, (n,)), 'input_ids': (np.int32, (n, length['words'])),
        **({'pooled': (np.float32, (n, d))} if pooled else {}),
        **{f'{side}.{name}': (np.float32, (n, length[side], d)) for side, names in layers.items() for name in names},
        **{f'image.{name}': (np.float32, (n, d)) for name in (layers['regions'] if whole_image else ())},
    }


@torch.no_grad()
def hidden_states(encoder, dataset, pooled, layers, options, device):
    """Yields (first row, {name: (b, ...) array}) for each batch, with the arrays of `layout`."""
    micro_batches = evaluation_batches(len(dataset), options)
    for micro_batch, batch in zip(micro_batches, load_batches(dataset, micro_batches, options, device), strict=True):
        with autocast(options, device):
            if layers:
                vectors, *by_side = encoder.hidden_states(batch)
            else:
                vectors, by_side = encoder(batch).pooled, ({}, {})
        ids, mask, lead = batch['input_ids'], batch.get('visual_attention_mask'), int(dataset.whole_image)
        most = batch['boxes'].shape[1] if dataset.regions is not None else lead
        count = torch.full((len(ids),), most) if mask is None else mask.sum(1)
        arrays = {'input_ids': ids, 'num_words': (ids != 0).sum(1), 'num_regions': count - lead}
        if pooled:
            arrays['pooled'] = vectors.float()
        for side, by_layer in zip(('words', 'regions'), by_side, strict=True):
            arrays |= {f'{side}.{name}': by_layer[name].float() for name in layers.get(side, ())}
        for name in layers.get('regions', ()) if lead else ():
            states = arrays[f'regions.{name}']
            arrays |= {f'image.{name}': states[:, 0], f'regions.{name}': states[:, lead:]}
        yield micro_batch.first, {name: tensor.cpu().numpy() for name, tensor in arrays.items()}


def write_states(out, texts, arrays, batches):
    """Writes the .npz atomically; returns {name: shape}.

    texts: {name: (n,) array}; arrays: as from layout; batches: as from hidden_states. Each array is filled in a memory-mapped
    file, which is removed once it is in the .npz, so that at most one array is on the disk twice.
    """
    sizes = [np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64)) for dtype, shape in arrays.values()]
    sizes += [array.nbytes for array in texts.values()]
    check_free_space(out.parent, sum(sizes) + max(sizes), f'--out {out}', 'name fewer --layers, or another disk')
    with temporary_folder(f'.{out.name}-', out.parent) as folder:
        files = {name: folder / f'{name}.npy' for name in (*texts, *arrays)}
        for name, array in texts.items():
            np.save(files[name], array)
        mapped = {name: allocate(files[name], dtype, shape) for name, (dtype, shape) in arrays.items()}
        n = len(next(iter(texts.values())))
        with ProgressBar(total=n, desc='Encoding', unit=' pairs') as bar:
            for first, batch in batches:
                for name, array in mapped.items():
                    rows = batch[name]
                    rows = placement.pad_regions(rows, array.shape[1]) if rows.ndim > 1 else rows
                    array[first:first + len(rows)] = rows
                bar.update(len(rows))
        mapped.clear()

        def zip_files(path):
            with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
                for name, file in files.items():
                    archive.write(file, f'{name}.npy')
                    file.unlink()

        write_atomically(out, zip_files)
    return {name: array.shape for name, array in texts.items()} | {name: shape for name, (_, shape) in arrays.items()}


def allocate(path, dtype, shape):
    """A new memory-mapped .npy file. Raises OSError if the disk is full, where writing to the map would raise SIGBUS."""
    array = np.lib.format.open_memmap(path, 'w+', dtype, shape)
    with open(path, 'r+b') as file:
        os.posix_fallocate(file.fileno(), 0, max(1, path.stat().st_size))
    return array


def parser():
    def names(text):
        return list(dict.fromkeys(name for name in text.split(',') if name))

    parser = argparse.ArgumentParser(
        prog='run/encode.bash', allow_abbrev=False, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description='Writes hidden states and pooled vectors of (image, sentence) pairs to .npz.',
        usage='bash run/encode.bash GPU|cpu PAIRS --features TSV,...|--images FOLDER,... --load FILE --out X.npz [flags]')
    parser.add_argument('pairs', type=Path, metavar='PAIRS', help='lines img_id<TAB>sentence, or a json list of {img_id, sent}')
    parser.add_argument('--features', type=names, default=[], metavar='A.tsv,B.tsv', help='the regions of the images')
    parser.add_argument('--images', type=names, default=[], metavar='FOLDER|ZIP|X.pixels,...', help='the images, of a model that '
                        'reads pixels')
    parser.add_argument('--load', required=True, metavar='FILE', help="pre-trained weights or a task's snapshot")
    parser.add_argument('--out', type=Path, required=True, metavar='FILE.npz', help='the file to write (overwritten)')
    parser.add_argument('--states', type=names, default=['pooled'], help=f'some of {",".join(STATES)} (default: pooled)')
    parser.add_argument('--layers', type=names, default=[], help='layers, separated by commas (default: the last)')
    parser.add_argument('--maxLength', type=int, default=20, help='maximum tokens of a sentence (default: 20)')
    add_flags(parser, 'batchSize', 'bert', 'storeRoot', 'bf16', 'offline', 'device')
    return parser


def main(argv=None):
    """Runs the program; returns its exit status."""
    arguments = parser()
    flags = arguments.parse_args(argv)
    if unknown := [name for name in flags.states if name not in STATES]:
        arguments.error(f'--states: unknown "{unknown[0]}"; expected some of {", ".join(STATES)}')
    if not flags.states or not (flags.features or flags.images):
        arguments.error(f'--{"features" if flags.states else "states"}: expected at least one, found none')
    if flags.maxLength < 3:
        arguments.error(f'--maxLength: expected at least 3 ([CLS], a word, [SEP]), found {flags.maxLength}')
    if flags.out.suffix != '.npz':
        arguments.error(f'--out: expected a name ending in .npz, found {flags.out}')
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    return run_main('encode.bash', lambda: encode(flags), 'interrupted; nothing was written')


if __name__ == '__main__':
    sys.exit(main())
