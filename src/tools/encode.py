"""Representations of (image, sentence) pairs, written to .npz for those who take them apart. The program behind run/encode.bash.

Exit status 0: well; 1: a fault of what was given; 2: wrong usage.
"""

import argparse
import contextlib
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import dist
from annotations.dataset import QuestionDataset
from annotations.examples import Examples
from cli import run_main
from files.atomic import write_atomically
from files.json_files import DataError, field, opened, some, stream
from lxrt.entry import LXRTEncoder
from lxrt.modeling import layer_names
from lxrt.weights import load_lxmert
from param import Options
from regions import placement, store
from tasks import start
from tasks.snapshot import check_beside
from train import autocast, batches, evaluation_parts

STATES = ('pooled', 'words', 'regions')

EPILOG = '''
--out gets, of n pairs in their order, d being the hidden size:
  pooled (n, d)                    the vector from [CLS] that tasks start from
  words.LAYER (n, t, d)            hidden states, 0 at padding; t: tokens of the longest sentence, with [CLS] and [SEP]
  regions.LAYER (n, o, d)          the same of regions; o: the most regions of an image in the files of --features
  input_ids (n, t)                 tokens as lines of vocab.txt, counted from 0; 0 is padding
  num_words (n,), num_regions (n,) how many of t and o are real
  img_ids (n,), sentences (n,)     PAIRS itself
States are float32. np.load('states.npz')['words.cross5'] reads one of them.

Layers of words: lang0 (the embeddings), lang1 .. lang9 (language encoder), cross1 .. cross5; of regions: visn0 (likewise),
rel1 .. rel5 (object relationship encoder), cross1 .. cross5; fewer in a smaller model.

PAIRS is a text in UTF-8 with a line "img_id<TAB>sentence" a pair, or a json list of objects with img_id and sent, such as
data/vqa/minival.json. NLVR2's json, with two images an example, is not taken: write each image with the statement on a line
of its own. Longer sentences than --maxLength are cut, as in training.

Examples:
  bash run/encode.bash 0 pairs.tsv --features data/mscoco_imgfeat/val2014_obj36.tsv --load snap/pretrained/model --out pooled.npz
  bash run/encode.bash cpu data/vqa/minival.json --features data/mscoco_imgfeat/val2014_obj36.tsv --load snap/vqa/mine/BEST
      --states words,regions --layers lang0,lang9,rel5,cross1,cross5 --out states.npz

Exit status: 0 well, 1 a fault of what was given, 2 wrong usage.
'''


def read_pairs(path):
    """(image ids, sentences) of a file of pairs. Raises FileNotFoundError, or DataError that names lines or keys."""
    pairs = list((json_pairs if '.json' in path.suffixes[-2:] else line_pairs)(path))
    if not pairs:
        raise DataError(f'{path}: expected lines img_id<TAB>sentence, found none')
    for img_id, _ in pairs:
        if not img_id.isprintable():
            raise DataError(f'{path}: expected image ids without control characters, found {img_id!r}')
    return tuple(map(list, zip(*pairs, strict=True)))


def json_pairs(path):
    for item in stream(path, 'item', 'pairs'):
        if isinstance(item, dict) and 'img0' in item:
            raise DataError(f'{path}: key "img0": expected one image a sentence, found two; write each with the sentence on a '
                            'line of its own, img_id<TAB>sentence')
        yield field(item, 'img_id', str, path), field(item, 'sent', str, path)


def line_pairs(path):
    """Yields the pairs of a text; broken lines are named all at once, after the last."""
    broken, found = [], None
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                img_id, sentence = (part.strip() for part in line.decode().rstrip('\r\n').split('\t'))
            except ValueError:  # UnicodeDecodeError is one
                img_id = sentence = ''
            if img_id and sentence:
                yield img_id, sentence
            else:
                broken.append(str(number))
                found = line if found is None else found
    if broken:
        raise DataError(f'{path}: line{"s" * (len(broken) > 1)} {some(broken)}: expected img_id<TAB>sentence in UTF-8, found '
                        f'{found[:60]!r} in the first')


def chosen_layers(config, states, wanted):
    """{'words': names, 'regions': names} of the layers of --layers, where --states wants them; the last where none is named.

    Raises ValueError for a layer that there is not, or that no state wanted has, and for states of which no layer is named.
    """
    there = {state: names for state, names in zip(('words', 'regions'), layer_names(config), strict=True) if state in states}
    if not there:
        if wanted:
            raise ValueError(f'--layers {",".join(wanted)}: only words and regions have layers; add them to --states')
        return {}
    told = '; '.join(f'of {state} there are {", ".join(names)}' for state, names in there.items())
    for name in wanted:
        if not any(name in names for names in there.values()):
            raise ValueError(f'--layers: unknown layer "{name}"; {told}')
    chosen = {state: [name for name in names if name in wanted] if wanted else names[-1:] for state, names in there.items()}
    for state, names in chosen.items():
        if not names:
            raise ValueError(f'--layers {",".join(wanted)}: names no layer of {state}; {told}')
    return chosen


class Arrays:
    """Arrays (n, ...) that grow row by row in files of a folder, until they are put together in one .npz.

    layout: {name: (dtype, shape)} of all of them.
    """

    def __init__(self, folder, layout):
        self.folder, self.layout, self.files = Path(folder), layout, {}

    def __enter__(self):
        for name, (dtype, shape) in self.layout.items():
            file = self.files[name] = open(self.folder / f'{name}.npy', 'wb')
            header = {'descr': np.lib.format.dtype_to_descr(np.dtype(dtype)), 'fortran_order': False, 'shape': shape}
            np.lib.format.write_array_header_1_0(file, header)
        return self

    def __exit__(self, *_):
        for file in self.files.values():
            with contextlib.suppress(OSError):  # of what has just been told, or is whole
                file.close()

    def append(self, name, rows):
        """Adds (b, ...) rows, whose second dimension is filled up with 0."""
        dtype, shape = self.layout[name]
        rows = placement.pad_regions(rows, shape[1]) if len(shape) > 1 else rows
        try:
            self.files[name].write(np.ascontiguousarray(rows, dtype))
            self.files[name].flush()
        except OSError as error:
            raise OSError(f'{self.folder.parent}: cannot be written ({error.strerror}); make room, and start again') from None

    def put_together(self, path):
        """Writes the .npz, when all rows are there; a file that is in it is removed, so that no more is there twice than one."""
        for file in self.files.values():
            file.close()
        with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as together:
            for name in self.files:
                together.write(self.folder / f'{name}.npy', f'{name}.npy')
                (self.folder / f'{name}.npy').unlink()


def sizes(layout):
    """Bytes of each array."""
    return [np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64)) for dtype, shape in layout.values()]


def check_room(layout, out):
    """Raises OSError if the disk of `out` cannot hold the arrays, the largest of them twice (see `put_together`)."""
    needed, free = sum(sizes(layout)) + max(sizes(layout)), shutil.disk_usage(out.parent).free
    if needed > free:
        raise OSError(f'--out {out}: needs {needed / 1e9:.1f} GB while it is made, and {free / 1e9:.1f} GB are free there; name '
                      'fewer --layers, or another disk')


@dataclass
class Encoding:
    """Pairs, the encoder and the layers that are asked for, all checked."""

    img_ids: list
    sentences: list
    dataset: QuestionDataset
    encoder: LXRTEncoder
    pooled: bool
    layers: dict  # {'words': names, 'regions': names}
    options: Options
    device: torch.device

    @classmethod
    def prepare(cls, flags):
        """Reads all that is needed; faults of the pairs are found before the weights are."""
        device = dist.start(flags.device)
        options = Options(load=flags.load, bert=flags.bert, batchSize=flags.batchSize, bf16=flags.bf16, device=flags.device,
                          storeRoot=flags.storeRoot, offline=flags.offline)
        path = start.starting_weights(options)
        bert = start.bert_folder(options, path)
        config = start.read_config(bert, options)
        tokenizer = start.read_tokenizer(bert, config)
        check_beside(path, config, tokenizer)
        layers = chosen_layers(config, flags.states, flags.layers)
        img_ids, sentences = read_pairs(flags.pairs)
        regions, files = store.open_all(flags.features, flags.storeRoot), ', '.join(flags.features)
        start.check_features(regions, config, files, bert)
        examples, rows = Examples.unlabelled([[img_id] for img_id in img_ids], sentences), regions.rows(img_ids)
        if unknown := [img_id for img_id, row in zip(img_ids, rows, strict=True) if row < 0]:
            raise DataError(f'{flags.pairs}: {len(unknown):,} of {len(rows):,} pairs are about {len(set(unknown)):,} images '
                            f'without regions in {files} ({some(unknown)}); add a file that has them to --features, or leave '
                            'these pairs out')
        dataset = QuestionDataset(examples, regions, rows[:, None], tokenizer, [], flags.maxLength)
        encoder = LXRTEncoder(config, max_seq_length=flags.maxLength, mode='lxr' if layers else 'x')
        dist.print0(load_lxmert(encoder.model, path)[0])
        return cls(img_ids, sentences, dataset, start.place(encoder, options, device).eval(), 'pooled' in flags.states, layers,
                   options, device)

    def layout(self):
        """{name: (dtype, shape)} of the arrays, in the order in which they are written."""
        n, d, dataset = len(self.dataset), self.encoder.dim, self.dataset
        wide = {'words': int(dataset.lengths[dataset.sentence].max()), 'regions': int(dataset.regions.max_regions)}
        states = {f'{side}.{name}': (np.float32, (n, wide[side], d)) for side, names in self.layers.items() for name in names}
        return {
            'img_ids': (text_dtype(self.img_ids), (n,)), 'sentences': (text_dtype(self.sentences), (n,)),
            'num_words': (np.int32, (n,)), 'num_regions': (np.int32, (n,)), 'input_ids': (np.int32, (n, wide['words'])),
            **({'pooled': (np.float32, (n, d))} if self.pooled else {}), **states,
        }

    @torch.no_grad()
    def batches(self):
        """Yields {name: (b, ...)} of the arrays, batch by batch."""
        parts = evaluation_parts(len(self.dataset), self.options)
        for part, batch in zip(parts, batches(self.dataset, parts, self.options, self.device), strict=True):
            ids, features, mask = batch['input_ids'], batch['features'], batch.get('visual_attention_mask')
            with autocast(self.options, self.device):
                found = self.encoder(ids, (features, batch['boxes']), mask, hidden_states=bool(self.layers))
            (_, pooled), hidden = found if self.layers else ((None, found), ({}, {}))
            pairs = slice(part.first, part.first + len(ids))
            states = {f'{side}.{name}': by_layer[name] for side, by_layer in zip(('words', 'regions'), hidden, strict=True)
                      for name in self.layers.get(side, ())}
            yield {
                'img_ids': self.img_ids[pairs], 'sentences': self.sentences[pairs], 'input_ids': ids.cpu(),
                'num_words': (ids != 0).sum(1).cpu(),
                'num_regions': np.full(len(ids), features.shape[1]) if mask is None else mask.sum(1).cpu(),
                **{name: state.float().cpu() for name, state in (('pooled', pooled), *states.items())},
            }

    def write(self, out):
        """Computes everything and writes it to `out`, which appears under its name only when complete."""
        layout = self.layout()
        check_room(layout, out)
        bar = tqdm(total=len(self.dataset), desc='Encoding', unit=' pairs', disable=None)
        with tempfile.TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as folder, Arrays(folder, layout) as arrays, bar:
            for batch in self.batches():
                for name in layout:
                    arrays.append(name, np.asarray(batch[name]))
                bar.update(len(batch['img_ids']))
            write_atomically(out, arrays.put_together)
        return layout


def text_dtype(texts):
    return np.dtype(f'U{max(1, max(map(len, texts)))}')


def parser():
    def names(text):
        return list(dict.fromkeys(name for name in text.split(',') if name))

    made = argparse.ArgumentParser(prog='run/encode.bash', allow_abbrev=False, epilog=EPILOG,
                                   description='Writes hidden states and pooled vectors of (image, sentence) pairs to .npz.',
                                   formatter_class=argparse.RawDescriptionHelpFormatter,
                                   usage='bash run/encode.bash GPU|cpu PAIRS --features TSV,... --load FILE --out X.npz [flags]')
    made.add_argument('pairs', type=Path, metavar='PAIRS', help='lines img_id<TAB>sentence, or a json list of {img_id, sent}')
    made.add_argument('--features', type=names, required=True, metavar='A.tsv,B.tsv', help='the regions of the images')
    made.add_argument('--load', required=True, metavar='FILE', help="pre-trained LXMERT or a task's snapshot")
    made.add_argument('--out', type=Path, required=True, metavar='FILE.npz', help='replaces what is there, when complete')
    made.add_argument('--states', type=names, default=['pooled'], help=f'some of {",".join(STATES)} (pooled)')
    made.add_argument('--layers', type=names, default=[], help='of words and regions, separated by commas (the last)')
    made.add_argument('--batchSize', type=int, default=256, help='pairs in one batch (256)')
    made.add_argument('--maxLength', type=int, default=20, help="tokens of a sentence; a dataset's max_length (20)")
    made.add_argument('--bert', default=Options.bert, metavar='FOLDER',
                      help=f'vocab.txt and config.json, where they do not lie beside --load ({Options.bert})')
    made.add_argument('--storeRoot', metavar='FOLDER', help='for region stores where the folder of the TSV cannot be written')
    made.add_argument('--bf16', action='store_true', help='compute in bfloat16 where it is safe; what is written is float32')
    made.add_argument('--offline', action='store_true', help='download nothing')
    made.add_argument('--device', choices=('cpu', 'cuda'), help=argparse.SUPPRESS)  # the launcher's
    return made


def main(argv=None):
    """Runs the program; returns its exit status."""
    made = parser()
    flags = made.parse_args(argv)
    if unknown := [name for name in flags.states if name not in STATES]:
        made.error(f'--states: unknown "{unknown[0]}"; there are: {", ".join(STATES)}')
    if not flags.states or not flags.features:
        made.error(f'--{"features" if flags.states else "states"}: expected at least one, found none')
    if flags.maxLength < 3:
        made.error(f'--maxLength: expected at least 3 ([CLS], a word, [SEP]), found {flags.maxLength}')
    if flags.out.suffix != '.npz':
        made.error(f'--out: expected a name ending in .npz, found {flags.out}')
    return run_main('encode.bash', lambda: encode(flags), 'interrupted; nothing was written')


def encode(flags):
    """Writes the .npz; returns the exit status."""
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    layout = Encoding.prepare(flags).write(flags.out)
    print(f'{flags.out}: ' + ', '.join(f'{name} {shape}' for name, (_, shape) in layout.items()))
    return 0


if __name__ == '__main__':
    sys.exit(main())
