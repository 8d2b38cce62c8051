"""The data of pre-training on captions and plain text: cuts, whole-word masks, the corpus, and the original readers' outputs."""

import base64
import gzip
import json
import re
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import SHARED, data_script, run_program
from test_train import Interrupt, assert_same, weights

from annotations import captions
from annotations.captions import KIND, CaptionDataset, cut_lengths, load_captions
from annotations.corpus import Corpus, allow_open_files, open_corpus
from annotations.spec import DatasetSpec
from batches import MicroBatch
from bert.tokenization import BertTokenizer
from files.json_files import DataError
from heads import Head
from param import Options
from pretrain.captions import CaptionMetrics
from regions import placement
from regions.store_files import StoreWriter
from regions.tsv import ImageRegions, RegionError

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'red', '##dish', '##er', 'ball', 'left', 'of', 'box', '.', '##x']
CLASSES = 6
LENGTH = 16
CPU = torch.device('cpu')


def regions_of(img_id, o, seed=0, probabilities=True):
    rng = np.random.default_rng([seed, o])
    corners = np.sort(rng.uniform(0, 90, (o, 2, 2)), 1).reshape(o, 4).astype(np.float32)
    classes = rng.random((o, CLASSES))
    return ImageRegions(
        img_id, 80, 100, np.arange(o), np.ones(o, np.float32), np.arange(o), np.ones(o, np.float32),
        np.minimum(corners, 79), rng.standard_normal((o, 5)).astype(np.float32),
        (classes / classes.sum(1, keepdims=True)).astype(np.float16) if probabilities else None)


def write_store(path, images):
    with StoreWriter(path) as writer:
        for image in images:
            writer.add(image)
        writer.finish({}, None)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make(**options): a CaptionDataset of 40 captions on 20 images, cut to 16, and with corpus=True a corpus of 30 texts."""
    monkeypatch.setattr(captions, 'LIMIT', LENGTH)
    rng = np.random.default_rng(4)
    (tmp_path / 'vocab.txt').write_text('\n'.join(WORDS))
    words = ['a', 'reddish', 'redder', 'ball', 'left of', 'box', 'redx', '.']
    texts = [' '.join(rng.choice(words, n)) for n in rng.integers(1, 14, 70)]
    (tmp_path / 'captions.json').write_text(json.dumps(
        [{'img_id': f'{i:08d}', 'sentf': {'cc': texts[2 * i:2 * i + 2]}} for i in range(20)]))
    (tmp_path / 'texts.txt').write_text('\n'.join(texts[40:]) + '\n')
    write_store(tmp_path / 'regions.store', [regions_of(f'{i:08d}', 1 + i % 18) for i in range(20)])
    spec = DatasetSpec.from_dict({
        'kind': KIND, 'name': 'cc', 'max_length': LENGTH, 'corpus': ['texts.txt'],
        'splits': {'train': {'annotations': 'captions.json', 'features': ['regions.store']}}}, tmp_path, 'cc.json')
    tokenizer = BertTokenizer(tmp_path / 'vocab.txt')

    def dataset(corpus=True, place=None, **options):
        options = Options(seed=options.pop('seed', 3), **options)
        texts = open_corpus(spec.corpus, tokenizer, LENGTH) if corpus else None
        one = load_captions(spec, 'train', tokenizer, options, CPU, texts)
        if place:
            one.regions = place(one.regions)
        return one

    return dataset


def batch_of(dataset, indices=None, first=0, epoch=0, static=False):
    indices = np.arange(len(dataset)) if indices is None else np.asarray(indices)
    return dataset.to_device(dataset[MicroBatch(indices, first, epoch, static)])


# ---- a caption and its regions

def plain_cut(words, regions, length):
    while words + regions > length:
        if (words >= regions and words > 2) or regions == 1:
            words -= 1
        else:
            regions -= 1
    return words, regions


@pytest.mark.parametrize('length', [5, 16, 63, 64])
def test_cut_as_by_the_plain_loop(length):
    words, regions = np.meshgrid(np.arange(2, 80), np.arange(1, 103))
    expected = np.vectorize(plain_cut)(words, regions, length)
    np.testing.assert_array_equal(cut_lengths(words, regions, length), expected)


def test_a_batch(make):
    """Its keys, dtypes and shapes; what is predicted, and what the model sees."""
    dataset = make()
    batch = batch_of(dataset)
    m, t, o = 40, LENGTH, batch['boxes'].shape[1]
    assert batch.pop('examples') == m
    expected = {'input_ids': (2 * m, t), 'token_type_ids': (2 * m, t), 'pictures': (2 * m,), 'masked_lm_labels': (2 * m, t),
                'features': (m, o, 5), 'boxes': (m, o, 4), 'visual_attention_mask': (m, o), 'image_size': (m, 2),
                'masked_regions': (m, o), 'region_classes': (m, o, CLASSES), 'mirrored': (m,)}
    assert {name: tuple(tensor.shape) for name, tensor in batch.items() if name not in ('words_at', 'regions_at')} == expected
    ids, labels, used = batch['input_ids'], batch['masked_lm_labels'], batch['visual_attention_mask']
    assert batch['pictures'].tolist() == [*range(m), *[-1] * m] and not batch['token_type_ids'].any()
    plain, lengths = torch.where(labels == -1, ids, labels), (ids[:m] != 0).sum(1)
    assert (ids[:m, 0] == 2).all() and not (plain[m:] == 2).any() and (ids[m:] != 0).all()
    assert all(row[n - 1] == 3 and not row[n:].any() for row, n in zip(ids[:m], lengths.tolist(), strict=True))
    assert (lengths + used.sum(1) <= LENGTH).all() and used[:, 0].all() and (lengths + used.sum(1) == LENGTH).any()
    assert torch.equal(batch['words_at'], (labels.flatten() != -1).nonzero()[:, 0]) and len(batch['words_at'])
    predicted = batch['region_classes'].sum(-1)
    assert ((predicted - 1).abs() < 0.01).flatten().nonzero()[:, 0].tolist() == batch['regions_at'].tolist()
    assert (predicted == 0).sum() + len(batch['regions_at']) == m * o and not predicted[:, 0].any()
    masked = batch['masked_regions']
    assert not (masked & ~used).any() and not masked[:, 0].any() and not (masked & (predicted == 0)).any() and masked.any()
    assert batch['mirrored'].dtype == torch.bool and 5 < batch['mirrored'].sum() < 35
    assert 'mirrored' not in batch_of(dataset, epoch=None)


def test_the_whole_image_is_the_mean_of_the_regions_that_are_not_masked_cut_off_or_not(make):
    dataset = make(objMaskRate=0.5)
    for static in (False, True):
        batch = batch_of(dataset, static=static)
        part = dataset[MicroBatch(np.arange(40), 0, 0, static)]
        for i in range(40):
            image = dataset.regions.image(int(dataset.row[i // 2]))
            n, averaged = len(image.boxes), part['averaged'][i].numpy()
            assert not averaged[n + 1:].any() and not averaged[0]
            unmasked = image.features[averaged[1:n + 1]]
            np.testing.assert_allclose(batch['features'][i, 0], unmasked.sum(0) / (len(unmasked) + 1e-5), atol=1e-5)
            used = int(batch['visual_attention_mask'][i].sum()) - 1
            np.testing.assert_allclose(batch['features'][i, 1:1 + used], image.features[:used])
            masked = batch['masked_regions'][i, 1:1 + used].numpy()
            np.testing.assert_array_equal(masked, ~averaged[1:1 + used])  # of the regions in use, both say the same
            np.testing.assert_allclose(batch['boxes'][i, 0], [0, 0, 0.99, 79 / 80], atol=1e-6)


def test_static_shapes(make):
    shapes = [{name: tensor.shape for name, tensor in batch_of(make(), indices, static=True).items()
               if name not in ('examples', 'words_at', 'regions_at')} for indices in ([0, 1], [38, 12])]
    assert shapes[0] == shapes[1] and shapes[0]['input_ids'] == (4, LENGTH) and shapes[0]['boxes'] == (2, LENGTH - 2, 4)


def test_features_on_the_device_make_the_same_batch(make):
    expected, batch = batch_of(make()), batch_of(make(place=lambda regions: placement.OnDevice(regions, CPU)))
    for name, value in expected.items():
        torch.testing.assert_close(batch[name], value, atol=2e-3, rtol=1e-3)  # float16


# ---- what is drawn

def test_draws_depend_on_seed_epoch_and_position_only(make):
    dataset = make()
    whole = batch_of(dataset)
    for name in ('input_ids', 'masked_lm_labels', 'mirrored'):
        parts = [batch_of(dataset, range(first, first + 10), first) for first in range(0, 40, 10)]
        t = whole[name].shape[-1] if whole[name].dim() > 1 else None
        first = torch.cat([part[name][:10] for part in parts])
        torch.testing.assert_close(first, whole[name][:40])
        if t:
            torch.testing.assert_close(torch.cat([part[name][10:] for part in parts]), whole[name][40:])
    for other in (batch_of(dataset, epoch=1), batch_of(make(seed=4)), batch_of(dataset, first=40)):
        assert not torch.equal(other['masked_lm_labels'], whole['masked_lm_labels'])
        assert not torch.equal(other['input_ids'][40:], whole['input_ids'][40:])


def test_words_are_masked_as_a_whole_at_the_rates(make):
    dataset = make(wordMaskRate=0.3)
    ids = np.concatenate([np.tile([2, 5, 6, 7, 8, 9, 6, 14, 10, 13, 3, 0], (20_000, 1))])
    draws = np.random.default_rng(0).random((len(ids), 2 * ids.shape[1]))
    masked, labels = dataset.mask_words(ids, draws)
    predicted = labels != -1
    assert not predicted[:, [0, 10, 11]].any() and (masked[~predicted] == ids[~predicted]).all()
    assert (labels[predicted] == ids[predicted]).all()
    for word in ([1], [2, 3, 4], [5], [6, 7], [8], [9]):
        chosen = predicted[:, word]
        assert (chosen.all(1) == chosen.any(1)).all() and abs(chosen[:, 0].mean() - 0.3) < 0.02
        hidden = (masked[:, word] == 4)[chosen[:, 0]]
        assert abs((hidden.all(1)).mean() - 0.8) < 0.02
        same = (masked[:, word] == ids[:, word])[chosen[:, 0]].all(1)
        assert abs(same.mean() - 0.1) < 0.02
    assert set(np.unique(masked[:, :11])) >= {1, 2, 3, 8} and not (masked[:, 1:11] == 0).any()  # any piece but [PAD]
    nothing = batch_of(make(wordMaskRate=0.0))
    assert not len(nothing['words_at']) and (nothing['masked_lm_labels'] == -1).all()
    everything = batch_of(make(wordMaskRate=1.0, objMaskRate=1.0))
    assert len(everything['regions_at']) == everything['visual_attention_mask'][:, 1:].sum()


def test_rates_of_regions(make):
    dataset = make(corpus=False)
    counts = np.zeros(3)
    for epoch in range(60):
        part = dataset[MicroBatch(np.arange(40), 0, epoch)]
        counts += [part['visual_attention_mask'][:, 1:].sum(), len(part['regions_at']), part['masked_regions'].sum()]
    assert counts[1] / counts[0] == pytest.approx(0.15, abs=0.01) and counts[2] / counts[1] == pytest.approx(0.9, abs=0.02)
    assert len(part['input_ids']) == 40 and (part['pictures'] >= 0).all()


# ---- the corpus

def test_a_sample_goes_through_lines_and_round(tmp_path):
    tokenizer = BertTokenizer(write(tmp_path / 'vocab.txt', WORDS))
    write(tmp_path / 'one.txt', ['a red ball', '', 'box ' * 30, '   ', 'left'])
    with gzip.open(tmp_path / 'two.txt.gz', 'wt') as file:
        file.write('reddish box [PAD] .')
    corpus = open_corpus([tmp_path / 'one.txt', tmp_path / 'two.*'], tokenizer, 5)
    assert len(corpus) == 4
    shutil.copytree(tmp_path, tmp_path / '[a] b')
    assert len(open_corpus([tmp_path / '[a] b/*.txt'], tokenizer, 5)) == len(open_corpus([tmp_path / '*.txt'], tokenizer, 5))
    assert corpus.samples(np.arange(4)).tolist() == [
        [5, 6, 9, 12, 12], [12, 12, 12, 12, 12], [10, 6, 7, 12, 13], [6, 7, 12, 13, 5]]
    line = [5, 6, 9, *[12] * 5, 10]  # kept: the first five pieces of each line
    assert Corpus(corpus.files[:1], 20).samples(np.array([2])).tolist() == [[10, *line, *line, 5]]


def write(path, lines):
    path.write_text('\n'.join(lines))
    return path


def test_a_corpus_of_many_files_raises_the_limit_of_open_files(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, 'getrlimit', lambda _: (1024, 4096))
    monkeypatch.setattr(resource, 'setrlimit', lambda _, limit: limits.append(limit))
    allow_open_files(100, 'x')
    assert not limits
    allow_open_files(1000, 'x')
    assert limits == [(1512, 4096)]
    with pytest.raises(DataError, match=r'^a\.txt, b: a corpus .* needs 6,512 open files, but the system allows 4,096'):
        allow_open_files(6000, 'a.txt, b: a corpus of 3,000 files')


@pytest.mark.parametrize('lines', [1, 2, 7, 30, 64])
def test_each_round_has_every_line_once_in_another_order(make, lines):
    corpus = make().corpus
    corpus.first_lines = np.array([0, lines])
    places = np.arange(5 * lines)
    order = corpus.order(places, 3)
    rounds = order.reshape(5, lines)
    assert (np.sort(rounds, 1) == np.arange(lines)).all()
    np.testing.assert_array_equal(corpus.order(places[lines // 2:], 3), order[lines // 2:])
    if lines > 10:
        assert len({tuple(one) for one in rounds.tolist()}) == 5 and rounds[0].tolist() != list(range(lines))


def test_lines_that_are_no_text_are_skipped_and_reported(tmp_path, capsys):
    tokenizer = BertTokenizer(write(tmp_path / 'vocab.txt', WORDS))
    path = tmp_path / 'mixed.txt'
    path.write_bytes(b'a ball\r\n\n\xff\xfe\x80\nred\0box\n\x1b[31mred\nbox\n' + b'\x01\n' * 9
                     + 'a\tbox \u200b\n\u200b\n'.encode())
    corpus = open_corpus([path], tokenizer, 4)
    assert len(corpus) == 3
    printed = capsys.readouterr().out.splitlines()
    assert printed == ['mixed.txt: 3 texts, 2 empty lines dropped.',
                       'Warning: mixed.txt: 12 lines skipped that are no text in UTF-8 (line 3, 4, 5, 7, 8, ...).']
    open_corpus([path], tokenizer, 4)  # reported at each start, from the columns
    assert capsys.readouterr().out.splitlines() == printed
    path.write_text('a ball\nein \u7ea2 Ball\n')
    open_corpus([path], tokenizer, 4)
    assert 'Warning: mixed.txt: 40 % of the word pieces are [UNK]: the vocabulary ' in capsys.readouterr().out


def test_long_lines_are_read_to_a_limit(tmp_path, monkeypatch):
    """Also where the limit cuts a character."""
    monkeypatch.setattr('annotations.corpus.MAX_LINE', 10)
    tokenizer = BertTokenizer(write(tmp_path / 'vocab.txt', WORDS))
    (tmp_path / 'long.txt').write_bytes('box box .é ball ball\n'.encode() + b'a ' * 30 + b'\nleft')
    corpus = open_corpus([tmp_path / 'long.txt'], tokenizer, 3)
    assert corpus.samples(np.arange(3)).tolist() == [[12, 12, 13], [5, 5, 5], [10, 12, 12]]


def test_special_tokens_in_a_caption(make):
    """A caption that says [PAD] is not cut there, and [SEP] is never predicted."""
    dataset = make(corpus=False, wordMaskRate=1.0)
    ids = np.array([[2, 5, 0, 9, 3, 12, 3, 0]])
    cut, _ = dataset.cut(ids, np.array([2]))
    assert cut.tolist() == [[2, 5, 1, 9, 3, 12, 3, 0]]
    assert dataset.mask_words(cut, np.full((1, 16), 0.999))[1].tolist() == [[-1, 5, 1, 9, -1, 12, -1, -1]]


@pytest.mark.parametrize('content', [b'', b'\n \n\r\n', bytes(range(256)), b'\xff\n' * 5, b'\0'])
def test_a_corpus_without_text(tmp_path, content):
    tokenizer = BertTokenizer(write(tmp_path / 'vocab.txt', WORDS))
    (tmp_path / 'none.txt').write_bytes(content)
    with pytest.raises(DataError, match=r'none\.txt: expected a corpus, a text a line, found no text'):
        open_corpus([tmp_path / 'none.txt'], tokenizer, 4)
    with pytest.raises(FileNotFoundError, match=r'\*.doc: no such file; .* --withoutText'):
        open_corpus([tmp_path / '*.doc'], tokenizer, 4)
    with pytest.raises(FileNotFoundError, match=r'is a folder; name its files, such as .*/\*\.txt'):
        open_corpus([tmp_path], tokenizer, 4)


def test_columns_of_a_corpus_are_made_once_and_anew_when_damaged(tmp_path, capsys):
    tokenizer = BertTokenizer(write(tmp_path / 'vocab.txt', WORDS))
    path = write(tmp_path / 'texts.txt', ['a red ball', 'box'])
    pieces = tmp_path / 'texts.txt.columns/pieces.npy'
    samples = open_corpus([path], tokenizer, 4).samples(np.arange(2))
    written = pieces.stat().st_mtime_ns
    open_corpus([path], tokenizer, 4)
    assert pieces.stat().st_mtime_ns == written
    content = bytearray(pieces.read_bytes())
    content[-1] ^= 1
    pieces.write_bytes(content)
    np.testing.assert_array_equal(open_corpus([path], tokenizer, 4).samples(np.arange(2)), samples)
    assert 'Making' in capsys.readouterr().err
    write(path, ['a red ball', 'box', 'left'])
    assert len(open_corpus([path], tokenizer, 4)) == 3
    assert len(open_corpus([path], tokenizer, 4, tmp_path / 'stores')) == 3
    assert len(list((tmp_path / 'stores').glob('*.columns'))) == 1


# ---- bad input

def test_a_store_without_class_probabilities(make, tmp_path):
    make(corpus=False)
    write_store(tmp_path / 'plain.store', [regions_of(f'{i:08d}', 3, probabilities=False) for i in range(20)])
    spec = DatasetSpec.from_dict({
        'kind': KIND, 'name': 'cc', 'max_length': LENGTH,
        'splits': {'train': {'annotations': 'captions.json', 'features': ['regions.store', 'plain.store']}}}, tmp_path, 'cc.json')
    with pytest.raises(RegionError, match=r'plain\.store: expected regions with class_probabilities.*--probabilities'):
        load_captions(spec, 'train', BertTokenizer(tmp_path / 'vocab.txt'), Options(), CPU)


@pytest.mark.parametrize(('change', 'message'), [
    ({'corpus': 'a.txt'}, 'key "corpus": expected a list of paths'), ({'corpus': [3]}, r'key "corpus\[0\]": expected a path'),
    ({'corpus': ['a.txt'], 'kind': 'vqa'}, 'key "corpus": there is no such key')])
def test_faulty_descriptions(tmp_path, change, message):
    described = {'kind': KIND, 'name': 'cc', 'max_length': 64,
                 'splits': {'train': {'annotations': 'captions.json', 'features': ['regions.store']}}}
    with pytest.raises(DataError, match=message):
        DatasetSpec.from_dict(described | change, tmp_path, 'cc.json')


# ---- the program

@pytest.fixture
def pretrain(make, tmp_path):
    """pretrain(*flags, name='run'): the program on the captions and texts of `make`, with a very small VL-BERT."""
    make()
    data, bert = tmp_path / 'data', tmp_path / 'bert'
    for folder in ('cc', 'cc_imgfeat', 'corpus'):
        (data / folder).mkdir(parents=True)
    items = json.loads((tmp_path / 'captions.json').read_text())
    for split, part in (('train', items[:16]), ('val', items[16:])):
        (data / f'cc/{split}.json').write_text(json.dumps(part))
        write_store(data / f'cc_imgfeat/{split}.store', [regions_of(one['img_id'], 1 + i % 18) for i, one in enumerate(part)])
    (data / 'corpus/README.md').write_text('no corpus')
    (data / 'corpus/texts.txt').write_bytes((tmp_path / 'texts.txt').read_bytes())
    bert.mkdir()
    (bert / 'vocab.txt').write_bytes((tmp_path / 'vocab.txt').read_bytes())
    (bert / 'config.json').write_text(json.dumps({
        'vocab_size': len(WORDS), 'hidden_size': 16, 'num_attention_heads': 2, 'intermediate_size': 32, 'num_hidden_layers': 1,
        'max_position_embeddings': 70, 'visual_feat_dim': 5, 'num_region_classes': CLASSES}))

    def run(*flags, name='run', **how):
        how.setdefault('wait', True)
        return run_program('captions', data, tmp_path / name, '--bert', bert, '--model', 'vlbert', '--train', 'train', '--valid',
                           'val', '--batchSize', '8', '--optim', 'adam', '--lr', '1e-2', '--epochs', '3', '--fromScratch',
                           '--wordMaskRate', '0.4', *flags, **how)

    run.data, run.bert = data, bert
    return run


def numbers(folder):
    return [float(x) for x in re.findall(r'\d+\.\d+', (folder / 'log.log').read_text())]


def test_a_run(pretrain, tmp_path):
    run = pretrain()
    assert run.returncode == 0, run.stderr
    folder = tmp_path / 'run'
    assert {path.name for path in folder.glob('*.pth')} == {f'{name}.pth' for name in (
        'Epoch01', 'Epoch02', 'Epoch03', 'BEST', 'RUN_STATE')}
    log = (folder / 'log.log').read_text().splitlines()
    assert [line.split()[2] for line in log] == ['Train', 'Valid', 'Best'] * 3
    for line in (log[0], log[1]):
        assert re.search(r'loss \d+\.\d{4} \(MLM_captions [\d.]+, MLM_text [\d.]+, MVRC [\d.]+\), MLM_captions accuracy [\d.]+, '
                         r'MLM_text accuracy [\d.]+, MVRC accuracy [\d.]+', line), line
    accuracies = [float(re.search(r'MLM_captions accuracy ([\d.]+)', line)[1]) for line in log[1::3]]
    assert log[-1] == f'Epoch 2: Best MLM_captions accuracy {max(accuracies):.2f}'
    best = accuracies.index(max(accuracies)) + 1
    assert_same(weights(folder, 'BEST.pth'), weights(folder, f'Epoch0{best}.pth'))
    run = pretrain('--withoutText', '--epochs', '1', name='captions')
    assert run.returncode == 0, run.stderr
    assert 'MLM_text accuracy' not in (tmp_path / 'captions/log.log').read_text()


def test_the_best_epoch_is_that_of_most_right_pieces_of_captions():
    losses = {'MLM_captions': 1.0, 'MLM_text': 2.0, 'MVRC': 3.0}
    sums = {'right MLM_captions': 3, 'predicted MLM_captions': 8, 'right MLM_text': 0, 'predicted MLM_text': 0, 'right MVRC': 1,
            'predicted MVRC': 4}
    assert CaptionMetrics.score(losses, sums) == 37.5 and CaptionMetrics.score({}, {}) == 0
    text, figures = CaptionMetrics().figures(losses, sums)
    assert text.endswith('MLM_captions accuracy 37.50, MVRC accuracy 25.00') and figures['loss'] == 6


def test_two_processes_and_accumulation_learn_as_one_does(pretrain, tmp_path):
    flags = ['--dropout', '0', '--epochs', '2']
    for name, more, processes in (('one', [], 0), ('two', ['--multiGPU'], 2), ('parts', ['--accumulate', '2'], 0),
                                  ('workers', ['--numWorkers', '2'], 0)):
        run = pretrain(*flags, *more, name=name, processes=processes)
        assert run.returncode == 0, run.stderr
    expected = weights(tmp_path / 'one', 'Epoch02.pth')
    for name in ('two', 'parts'):
        np.testing.assert_allclose(numbers(tmp_path / name), numbers(tmp_path / 'one'), atol=2e-4)
    assert_same(weights(tmp_path / 'workers', 'Epoch02.pth'), expected)


def test_stopped_and_resumed_ends_with_the_same_bits(pretrain, tmp_path, monkeypatch):
    flags = ['--saveSteps', '2']  # 4 steps an epoch
    assert pretrain(*flags, name='unbroken').returncode == 0
    for step in (3, 9):
        with monkeypatch.context() as patched:
            patched.setattr(Head, 'begin_step', staticmethod(Interrupt(step)))
            assert pretrain(*flags, '--resume', name='stopped').returncode == 130
    run = pretrain(*flags, '--resume', name='stopped')
    assert run.returncode == 0 and 'Resuming at epoch 2' in run.stdout
    assert_same(weights(tmp_path / 'stopped', 'Epoch03.pth'), weights(tmp_path / 'unbroken', 'Epoch03.pth'))
    assert (tmp_path / 'stopped/log.log').read_text() == (tmp_path / 'unbroken/log.log').read_text()


def rewrite_config(pretrain, **changes):
    path = pretrain.bert / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(('change', 'flags', 'message'), [
    (lambda run: rewrite_config(run, num_region_classes=7), [], 'class_probabilities of train are of 6 classes, but the model'),
    (lambda run: write_store(run.data / 'cc_imgfeat/val.store', [regions_of('00000017', 3, probabilities=False)]), [],
     'val.store: expected regions with class_probabilities'),
    (lambda run: (run.data / 'corpus/texts.txt').unlink(), [], 'corpus/*: no such file; expected a text corpus'),
    (lambda run: (run.data / 'corpus/texts.txt').write_bytes(b'\0\n\n'), [], 'found no text'),
    (lambda run: None, ['--taskQA'], '--taskQA: does not apply to pre-training on captions'),
    (lambda run: None, ['--wordMaskRate', '0', '--objMaskRate', '0'], 'nothing to predict: no mask rate is above 0'),
    (lambda run: None, ['--model', 'lxmert'], '--model lxmert: is pre-trained by another program'),
    (lambda run: rewrite_config(run, max_position_embeddings=6), [], 'max_position_embeddings: expected enough for a text of 3'),
    (lambda run: (run.data / 'cc/train.json').write_text('[{"img_id": "00000000", "sentf": {}}]'), [],
     'train: expected sentences (sentf) of images with regions, found none')])
def test_bad_input(pretrain, tmp_path, change, flags, message):
    change(pretrain)
    run = pretrain(*flags)
    assert run.returncode == 1 and message in run.stderr and len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert not list((tmp_path / 'run').glob('*.pth'))
    if 'no text' not in message:  # the corpus, whose tokenising takes longest, is read last
        assert not list(pretrain.data.glob('corpus/*.columns'))


def test_training_that_teaches_nothing_is_warned_of(pretrain):
    images = [regions_of(f'{i:08d}', 2) for i in range(20)]
    write_store(pretrain.data / 'cc_imgfeat/train.store', [replace(one, class_probabilities=one.class_probabilities * 0)
                                                           for one in images])
    run = pretrain('--optim', 'adamw', '--batchSize', '99', '--epochs', '1', '--storeRoot', pretrain.data / 'elsewhere')
    assert run.returncode == 0, run.stderr
    assert 'train.store: class_probabilities of its first 40 regions do not sum to 1: the loss MVRC' in run.stdout
    assert 'val.store: class' not in run.stdout
    assert 'Warning: the schedule triangle gives the only step the learning rate 0' in run.stdout


def test_weights_with_and_without_the_embedding_of_texts(pretrain, tmp_path):
    for name, flags in (('captions', ['--withoutText']), ('texts', [])):
        assert pretrain(*flags, '--epochs', '1', name=name).returncode == 0
    for name, flags in (('captions', []), ('texts', ['--withoutText'])):
        run = run_program('captions', pretrain.data, tmp_path / f'from_{name}', '--train', 'train', '--valid', '', '--epochs',
                          '1', '--load', tmp_path / name / 'BEST', *flags)
        assert run.returncode == 0, run.stderr
        assert 'aux_text_visual_embedding.weight' in run.stdout


def test_check_dataset(make, tmp_path, capsys):
    from tools import check_dataset

    make()
    described = {'kind': KIND, 'name': 'cc', 'max_length': LENGTH, 'corpus': ['texts.txt'],
                 'splits': {'train': {'annotations': 'captions.json', 'features': ['regions.store']}}}

    def check(**change):
        (tmp_path / 'cc.json').write_text(json.dumps(described | change))
        status = check_dataset.main([str(tmp_path / 'cc.json'), '--bert', str(tmp_path)])
        return status, capsys.readouterr().out

    status, printed = check()
    assert status == 0 and 'train: 40 sentences on 20 images, 0 with labels' in printed
    write_store(tmp_path / 'plain.store', [regions_of(f'{i:08d}', 3, probabilities=False) for i in range(20)])
    for change, message in (
            ({'answers': 'all_ans.json'}, 'key "answers": expected no such key, since captions have none'),
            ({'corpus': ['no.txt']}, 'key "corpus[0]": '),
            ({'splits': {'train': {'annotations': 'captions.json', 'features': ['plain.store']}}},
             'key "splits.train.features[0]": ')):
        status, printed = check(**change)
        assert status == 1 and message in printed, printed


# ---- data/cc/process_cc.py

def test_official_captions(tmp_path, capsys):
    cc = data_script('cc/process_cc')
    write_store(tmp_path / 'regions/train.store', [regions_of(img_id, 2) for img_id in ('00000000', '00000002', '00000004')])
    write_store(tmp_path / 'regions/val.store', [regions_of('00000007', 2)])
    (tmp_path / 'train.tsv').write_text('a ball\thttp://a/1\na box\thttp://a/2\n red , box \thttp://a/3\n\thttp://a/4\n \tx\n')
    lines = [{'image': 'val_image.zip@/00000007.jpg', 'caption': ['a', "'s", 'box'], 'frcnn': 'val_frcnn.zip@/00000007.json'},
             {'image': 'val_image.zip@/00000008.jpg', 'caption': ['no'], 'frcnn': 'val_frcnn.zip@/00000008.json'}]
    (tmp_path / 'val_frcnn.json').write_text('\n'.join(map(json.dumps, lines)))
    flags = ['--features', str(tmp_path / 'regions'), '--out', str(tmp_path / 'cc')]
    cc.main(['--train', str(tmp_path / 'train.tsv'), '--val', str(tmp_path / 'val_frcnn.json'), *flags])
    assert json.loads((tmp_path / 'cc/train.json').read_text()) == [
        {'img_id': '00000000', 'sentf': {'cc': ['a ball']}}, {'img_id': '00000002', 'sentf': {'cc': ['red , box']}}]
    assert json.loads((tmp_path / 'cc/val.json').read_text()) == [{'img_id': '00000007', 'sentf': {'cc': ["a 's box"]}}]
    printed = capsys.readouterr().out
    assert "train: 2 captions; 1 dropped whose images have no regions (such as '00000001'), 2 without words." in printed
    (tmp_path / 'bad.tsv').write_text('a ball\tx\nno tab\n')
    with pytest.raises(DataError, match=r'bad\.tsv:2: expected a caption, a tab and an address'):
        cc.main(['--train', str(tmp_path / 'bad.tsv'), *flags[:3], str(tmp_path / 'other')])
    write_store(tmp_path / 'regions/train.store', [regions_of('other', 2)])
    with pytest.raises(DataError, match=r'train\.tsv: none of its images has regions'):
        cc.main(['--train', str(tmp_path / 'train.tsv'), *flags[:3], str(tmp_path / 'other')])
    with pytest.raises(ValueError, match='give --train FILE'):
        cc.main(flags)


@pytest.mark.shared
def test_real_captions(tmp_path, capsys):
    write_store(tmp_path / 'regions/val.store', [regions_of(f'{i:08d}', 2) for i in range(0, 1000, 2)])
    cc = data_script('cc/process_cc')
    cc.main(['--val', str(SHARED / 'cc/Validation_GCC_sample.tsv'), '--features', str(tmp_path / 'regions'), '--out',
             str(tmp_path / 'cc')])
    assert 'val: 500 captions; 500 dropped' in capsys.readouterr().out


# ---- the original's readers

CASES = SHARED / 'vlbert_cases/cc'


@pytest.fixture(scope='module')
def cases():
    from safetensors.numpy import load_file

    return json.loads((CASES / 'expected.json').read_text()), load_file(CASES / 'expected.safetensors')


@pytest.fixture(scope='module')
def vocabulary():
    return BertTokenizer(SHARED / 'vocab/bert-base-uncased-vocab.txt')


def caption_images():
    """The images of the cases, their regions by falling highest probability, as an import sorts them."""
    for i in range(5):
        entry = json.loads((CASES / f'train_frcnn/{i:08d}.json').read_text())
        features, boxes, classes = (
            np.frombuffer(base64.b64decode(entry[name]), '<f4').reshape(entry['num_boxes'], -1)
            for name in ('features', 'boxes', 'classes'))
        order, o = np.argsort(-classes.max(1), kind='stable'), len(boxes)
        plain = regions_of(f'{i:08d}', o)
        yield replace(plain, height=entry['image_h'], width=entry['image_w'], boxes=boxes[order], features=features[order],
                      class_probabilities=classes[order].astype(np.float16))


@pytest.fixture
def original(tmp_path, vocabulary):
    lines = [json.loads(line) for line in (CASES / 'train_frcnn.json').read_text().splitlines()]
    (tmp_path / 'captions.json').write_text(json.dumps(
        [{'img_id': f'{i:08d}', 'sentf': {'cc': [' '.join(line['caption'])]}} for i, line in enumerate(lines)]))
    write_store(tmp_path / 'regions.store', list(caption_images()))
    spec = DatasetSpec.from_dict({
        'kind': KIND, 'name': 'cc', 'max_length': 64,
        'splits': {'train': {'annotations': 'captions.json', 'features': ['regions.store']}}}, tmp_path, 'cc.json')

    def dataset(**options):
        return load_captions(spec, 'train', vocabulary, Options(**options), CPU)

    return dataset


@pytest.mark.shared
def test_captions_of_the_original_reader(original, cases):
    """Order, truncation, words and features where nothing is masked; where it is, all that does not depend on its draws."""
    expected, tensors = cases
    batch = batch_of(original(wordMaskRate=0.0, objMaskRate=0.0))
    for i in range(5):
        case = expected[f'nothing masked, {i}']
        assert batch['input_ids'][i][batch['input_ids'][i] != 0].tolist() == case['text']
        used = int(batch['visual_attention_mask'][i].sum())
        assert used == case['boxes']
        features = tensors[f'nothing masked, {i}.boxes_features']
        np.testing.assert_allclose(batch['features'][i, :used], features[:, 4:], atol=1e-5)
        limit = np.array(case['im_info'][:2] * 2)  # of the resized picture
        boxes = np.minimum(batch['boxes'][i, :used].numpy(), 1 - 1 / limit)
        np.testing.assert_allclose(boxes * limit, features[:, :4], atol=0.02)
        assert not batch['region_classes'][i].any() and not tensors[f'nothing masked, {i}.mvrc_labels'].any()


@pytest.mark.shared
def test_masked_captions_follow_the_rules_of_the_original_reader(original, cases, monkeypatch):
    """The masks that its reader drew give its words, labels and features."""
    expected, tensors = cases
    dataset = original()
    for i in range(5):
        case = expected[f'masked, seed 3, {i}']
        labels, features = (tensors[f'masked, seed 3, {i}.{name}'] for name in ('mvrc_labels', 'boxes_features'))
        predicted, masked = np.abs(labels.sum(1) - 1) < 0.1, np.array(case['mvrc_ops']) == 1
        assert not (masked & ~predicted).any()
        image = dataset.regions.image(i)
        if len(labels) <= len(image.boxes):  # the masks of regions that were cut off are not known
            continue
        draws = np.full((1, dataset.regions.max_regions), 0.9)
        draws[0, :len(labels) - 1] = np.where(masked, 0.1, np.where(predicted, 0.149, 0.9))[1:]
        with monkeypatch.context() as patched:
            patched.setattr(CaptionDataset, 'draw', lambda _, part, stream, width, draws=draws: (
                draws if width == draws.shape[1] else np.full((1, width), 0.9)))
            batch = batch_of(dataset, [i])
        np.testing.assert_allclose(batch['features'][0], features[:, 4:], atol=1e-5)
        np.testing.assert_allclose(batch['region_classes'][0], np.where(predicted[:, None], labels, 0), atol=1e-3)
        np.testing.assert_array_equal(batch['masked_regions'][0], masked)


@pytest.mark.shared
def test_texts_of_the_original_reader(vocabulary, cases, tmp_path):
    expected, _ = cases
    (tmp_path / 'corpus.doc').write_bytes((CASES / 'corpus.doc').read_bytes())
    corpus = open_corpus([tmp_path / 'corpus.doc'], vocabulary, 64)
    assert len(corpus) == expected['corpus length']
    assert corpus.samples(np.arange(4)).tolist() == [expected[f'corpus, nothing masked, {i}']['text'] for i in range(4)]
