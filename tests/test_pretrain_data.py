"""The data of pre-training: columns, and what is masked, exchanged and asked of a batch."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT, SHARED, SMALL, ragged

from annotations import pretraining, pretraining_columns
from annotations.answer_table import read_table
from annotations.pretraining import choose, load_sentences, uniform
from annotations.pretraining_columns import open_columns
from batches import MicroBatch
from bert.tokenization import BertTokenizer
from files.json_files import DataError
from optimizer import OptimizerStep
from param import Options
from pretrain.program import PretrainingProgram, published
from regions import store
from regions.tsv import ImageRegions
from run_state import Progress
from train import train_step

OBJECTIVES = {'taskMaskLM': True, 'taskMatched': True, 'taskObjPredict': True, 'taskQA': True}
CPU = 'cpu'
TRAIN = 'mscoco_train,mscoco_nominival,vgnococo'


@pytest.fixture
def load(world):
    """load('mscoco_train', **options): the dataset of some splits of a world."""
    spec = published(world)

    def dataset(names=TRAIN, **options):
        options = Options(**{**OBJECTIVES, **options})
        table = read_table(spec.answers) if options.taskQA else []
        return load_sentences(spec, names, BertTokenizer(world / 'bert/vocab.txt'), table, options, CPU)

    return dataset


def batch_of(dataset, count=None, first=0, epoch=0):
    """The batch of `count` examples, which come again and again if there are fewer, as numpy arrays."""
    part = MicroBatch((first + np.arange(count or len(dataset))) % len(dataset), first, epoch)
    return {name: tensor.numpy() for name, tensor in dataset[part].items() if name != 'examples'}


def close_to(share, rate, draws):
    """Whether a share of so many draws is what a rate gives: 5 standard deviations, one failure in a million."""
    assert share == pytest.approx(rate, abs=5 * (rate * (1 - rate) / draws) ** 0.5)


# ---- draws

@pytest.mark.parametrize('width', [1, 3, 4, 9])
def test_what_is_drawn_for_a_position_does_not_depend_on_what_else_is_drawn(width):
    draws = uniform(1, 2, 3, 0, (40, width))
    np.testing.assert_array_equal(uniform(1, 2, 3, 7, (11, width)), draws[7:18])
    assert len(np.unique(draws)) == draws.size and draws.min() >= 0 and draws.max() < 1
    for seed, epoch, what in ((2, 2, 3), (1, 3, 3), (1, 2, 4), (1, None, 3)):
        assert not np.isin(uniform(seed, epoch, what, 0, (40, width)), draws).any()


def test_rates_of_masking():
    draws = uniform(1, 0, 0, 0, (100_000, 4))
    close_to((draws < 0.5).mean(), 0.5, draws.size)
    predicted, masked, random = choose(draws, 0.15)
    close_to(predicted.mean(), 0.15, draws.size)
    close_to(masked.sum() / predicted.sum(), 0.8, predicted.sum())
    close_to(random.sum() / predicted.sum(), 0.1, predicted.sum())
    assert not (masked & random).any() and not ((masked | random) & ~predicted).any()
    assert not any(chosen.any() for chosen in choose(draws, 0.0))
    assert choose(draws, 1.0)[0].all()


def test_words(load, world):
    dataset, tokenizer = load(taskMatched=False), BertTokenizer(world / 'bert/vocab.txt')
    plain = batch_of(load(taskMatched=False, wordMaskRate=0.0), 20_000)
    batch = batch_of(dataset, 20_000)
    ids, labels, original = batch['input_ids'], batch['masked_lm_labels'], plain['input_ids']
    assert (plain['masked_lm_labels'] == -1).all()
    np.testing.assert_array_equal(batch['attention_mask'], original != 0)
    special = np.isin(original, [tokenizer.vocab[token] for token in ('[PAD]', '[CLS]', '[SEP]')])
    predicted = labels != -1
    assert not (predicted & special).any()
    np.testing.assert_array_equal(ids[~predicted], original[~predicted])
    np.testing.assert_array_equal(labels[predicted], original[predicted])
    close_to(predicted.sum() / (~special).sum(), 0.15, (~special).sum())
    masked = predicted & (ids == tokenizer.vocab['[MASK]'])
    other = predicted & ~masked & (ids != original)
    count, size = predicted.sum(), len(tokenizer)
    close_to(masked.sum() / count, 0.8 + 0.1 / size, count)
    close_to(other.sum() / count, 0.1 * (size - 2) / size, count)  # a random piece may be the right one, or [MASK]
    assert len(np.unique(ids[other])) > 0.9 * (size - 1)  # all pieces come


def test_regions(load, world):
    dataset, plain = load(taskMatched=False), load(taskMatched=False, objMaskRate=0.0)
    part = MicroBatch(np.arange(4000) % len(dataset), 0, 0)
    raw, batch = dataset[part], dataset.to_device(dataset[part])
    original = plain.to_device(plain[part])['visual_feats']
    mask = batch['obj_labels']['feat'][1] != 0
    count = int(mask.sum())
    close_to(count / mask.numel(), 0.15, mask.numel())
    assert (batch['obj_labels']['feat'][0] == original).all()  # what is to be predicted is what was there
    seen, zero = batch['visual_feats'], (batch['visual_feats'] == 0).all(-1)
    assert (seen[~mask] == original[~mask]).all()
    close_to(int((zero & mask).sum()) / count, 0.8, count)
    changed = mask & ~zero & (seen != original).any(-1)
    close_to(int(changed.sum()) / count, 0.1, count)
    assert len(raw['noise_at']) >= int(changed.sum())
    everything = {row.tobytes() for row in np.concatenate([store.arrays['features'] for store in dataset.regions.stores])}
    assert all(row.tobytes() in everything for row in seen[changed].numpy())
    assert len({row.tobytes() for row in seen[changed].numpy()}) > 0.5 * min(int(changed.sum()), len(everything))
    assert (batch['boxes'] == plain[part]['boxes']).all()
    assert not {'noise', 'zeroed'} & load(taskObjPredict=False)[part].keys()


def test_regions_that_are_padding_are_neither_masked_nor_drawn(load, world):
    ragged(world)
    dataset = load()
    batch = batch_of(dataset, 2000)
    padding = ~batch['visual_attention_mask']
    assert padding.any() and not (batch['region_mask'] & padding).any()
    assert not padding.ravel()[batch['noise_at']].any()
    assert (batch['noise'] != 0).any(1).all()  # no picked region is padding


def test_static_shapes_add_only_padding(load, world):
    ragged(world)
    dataset = load()
    for i in range(6):
        narrow, wide = (dataset.to_device(dataset[MicroBatch(np.array([i]), i, 0, whole)]) for whole in (False, True))
        t, o = narrow['input_ids'].shape[1], narrow['boxes'].shape[1]
        assert wide['input_ids'].shape == (1, 20) and wide['visual_feats'].shape[1] == dataset.regions.max_regions
        assert torch.equal(wide['input_ids'][:, :t], narrow['input_ids']) and not wide['input_ids'][:, t:].any()
        assert torch.equal(wide['visual_feats'][:, :o], narrow['visual_feats']) and not wide['visual_feats'][:, o:].any()
        assert torch.equal(wide['obj_labels']['obj'][0][:, :o], narrow['obj_labels']['obj'][0])
        assert wide['boxes'].shape[1] == o or not wide['visual_attention_mask'][:, o:].any()


def test_half_of_the_sentences_are_of_another_image_and_have_no_answer(load):
    dataset, plain = load(), load(taskMatched=False)
    batch, original = batch_of(dataset, 20_000), batch_of(plain, 20_000)
    own = batch['matched_label'] == 1
    close_to(own.mean(), 0.5, len(own))
    assert (batch['ans'][~own] == -1).all() and (batch['ans'][own] == original['ans'][own]).all()
    part = MicroBatch(np.arange(20_000) % len(dataset), 0, 0)
    image = dataset.row[dataset.image_of(part.indices)]
    others = dataset.of_other_images(part, image)
    assert (dataset.row[dataset.image_of(others)] != image).all()
    # Every sentence of the other images with the same chance.
    drawn = np.bincount(others, minlength=len(dataset))
    expected = len(others) / len(dataset)
    assert ((drawn - expected) ** 2 / expected).sum() == pytest.approx(len(dataset), abs=6 * (2 * len(dataset)) ** 0.5)


def test_answers_are_drawn_in_proportion_to_their_scores(load, world):
    path = world / 'lxmert/mscoco_train.json'
    content = json.loads(path.read_text())
    first = content[0]
    first['sentf'], first['labelf'] = {'vqa': ['What?'] * 3}, {'vqa': [{'yes': 1.0, 'Two.': 0.3, 'no such answer': 5e-1}, {}, {
        'no such answer': 1.0}]}
    path.write_text(json.dumps(content))
    dataset = load('mscoco_train', taskMatched=False)
    part = MicroBatch(np.zeros(20_000, np.int64), 0, 0)
    drawn = Counter(dataset.table[i] for i in dataset.answers(part).tolist())
    assert drawn.keys() == {'yes', '2'}
    close_to(drawn['2'] / 20_000, 0.3 / 1.3, 20_000)
    for i in (1, 2):
        assert (dataset.answers(MicroBatch(np.full(9, i), 0, 0)) == -1).all()


def test_a_batch_is_the_sum_of_its_parts_and_another_in_every_epoch(load):
    dataset = load()
    indices = np.random.default_rng(0).permutation(len(dataset))[:24]
    batch, half = dataset[MicroBatch(indices, 48, 3)], [dataset[MicroBatch(indices[i:i + 12], 48 + i, 3)] for i in (0, 12)]
    for name in ('matched_label', 'ans', 'source', 'region_mask', 'zeroed', 'features'):
        np.testing.assert_array_equal(batch[name], np.concatenate([part[name] for part in half]))
    np.testing.assert_array_equal(batch['noise'], np.concatenate([part['noise'] for part in half]))
    for i, part in enumerate(half):
        length = part['input_ids'].shape[1]
        for name in ('input_ids', 'masked_lm_labels'):
            np.testing.assert_array_equal(part[name], batch[name][12 * i:12 * i + 12, :length])
    other = dataset[MicroBatch(indices, 48, 4)]
    assert not np.array_equal(batch['matched_label'], other['matched_label'])
    first, again = (dataset[MicroBatch(indices, 48)] for _ in range(2))  # validation
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first['region_mask'], batch['region_mask'])


# ---- columns

def test_columns_hold_what_the_json_holds(world):
    path = world / 'lxmert/mscoco_train.json'
    tokenizer = BertTokenizer(world / 'bert/vocab.txt')
    columns = open_columns(path, tokenizer, 20)
    i = 0
    for number, example in enumerate(json.loads(path.read_text())):
        assert columns.image_ids[number].decode() == example['img_id']
        assert columns.image_start[number] == i
        for source, sentences in example['sentf'].items():
            labels = example['labelf'].get(source, [{}] * len(sentences))
            for sentence, label in zip(sentences, labels, strict=True):
                np.testing.assert_array_equal(columns.input_ids[i], tokenizer.encode([sentence])[0])
                assert columns.sources[columns.source[i]] == source
                rows = slice(columns.label_start[i], columns.label_start[i + 1])
                scores = [round(float(score), 4) for score in columns.label_score[rows]]
                assert dict(zip([columns.answers[j] for j in columns.label_answer[rows]], scores, strict=True)) == label
                i += 1
    assert len(columns) == i and isinstance(columns.input_ids.base, np.memmap)


def test_columns_are_made_once_and_anew_when_they_would_be_others(world, monkeypatch):
    path, tokenizer = world / 'lxmert/mscoco_train.json', BertTokenizer(world / 'bert/vocab.txt')
    calls, plain = [], pretraining_columns.make
    monkeypatch.setattr(pretraining_columns, 'make', lambda *args: (calls.append(1), plain(*args)))
    before = open_columns(path, tokenizer, 20)
    open_columns(path, tokenizer, 20)
    path.touch()  # another time, the same bytes
    assert len(open_columns(path, tokenizer, 20)) == len(before) and len(calls) == 1
    open_columns(path, tokenizer, 12)
    assert len(calls) == 2
    with open(world / 'bert/vocab.txt', 'a') as file:
        file.write('another\n')
    open_columns(path, BertTokenizer(world / 'bert/vocab.txt'), 12)
    assert len(calls) == 3
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content[:-1]))
    assert len(open_columns(path, BertTokenizer(world / 'bert/vocab.txt'), 12).image_ids) == len(content) - 1
    assert len(calls) == 4
    monkeypatch.setattr(pretraining_columns, '__file__', pretraining_columns.pretraining_text.__file__)  # other code
    open_columns(path, BertTokenizer(world / 'bert/vocab.txt'), 12)
    (pretraining_columns.columns_folder(path) / 'meta.json').write_text('{')
    open_columns(path, BertTokenizer(world / 'bert/vocab.txt'), 12)
    assert len(calls) == 6


def test_processes_that_start_together_make_columns_once(world):
    program = f'''
import sys
from bert.tokenization import BertTokenizer
from annotations import pretraining_columns
plain, world = pretraining_columns.make, {str(world)!r}
pretraining_columns.make = lambda *args: (print('made'), plain(*args))
print(len(pretraining_columns.open_columns(world + '/lxmert/mscoco_train.json', BertTokenizer(world + '/bert/vocab.txt'), 20)))
'''
    running = [subprocess.Popen([sys.executable, '-c', program], cwd=ROOT / 'src', stdout=subprocess.PIPE, text=True)
               for _ in range(3)]
    printed = [process.communicate()[0].split() for process in running]
    assert sum('made' in words for words in printed) == 1 and len({words[-1] for words in printed}) == 1


def test_faults_of_the_text_are_named_and_leave_no_columns(world, tmp_path):
    path, tokenizer = world / 'lxmert/mscoco_train.json', BertTokenizer(world / 'bert/vocab.txt')
    content = json.loads(path.read_text())
    content[1]['sentf']['vqa'][0] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'mscoco_train\.json: example 1: key "sentf\.vqa\[0\]": expected a sentence, found 7'):
        open_columns(path, tokenizer, 20)
    assert not [entry for entry in path.parent.iterdir() if 'columns' in entry.name and entry.suffix != '.lock']
    with pytest.raises(FileNotFoundError, match='no such file; expected the sentences'):
        open_columns(path.with_name('none.json'), tokenizer, 20)
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match=r'cannot be written .*--storeRoot'):
        open_columns(path, tokenizer, 20, tmp_path / 'file')
    path.write_text(json.dumps(content[:1]))
    assert len(open_columns(path, tokenizer, 20, tmp_path / 'stores').image_ids) == 1
    assert not pretraining_columns.columns_folder(path).exists()


# ---- what is left out

def test_more_sources_than_a_file_can_have_are_refused(world, tmp_path):
    path = tmp_path / 'x.json'
    path.write_text(json.dumps([{'img_id': '1', 'sentf': {str(i): ['a cat'] for i in range(1001)}}]))
    with pytest.raises(DataError, match=r'x\.json: example 0: key "sentf": expected at most 1,000 sources'):
        open_columns(path, BertTokenizer(world / 'bert/vocab.txt'), 20)


def test_images_without_regions_and_limits(load, world, capsys, monkeypatch):
    path = world / 'lxmert/mscoco_train.json'
    content = json.loads(path.read_text())
    path.write_text(json.dumps([{**content[0], 'img_id': 'none'}, *content]))
    dataset = load('mscoco_train')
    assert 'mscoco_train: ' in (said := capsys.readouterr().out) and '1 images of mscoco_train have no regions (none)' in said
    count = sum(len(sentences) for example in content for sentences in example['sentf'].values())
    assert len(dataset) == count
    plain = batch_of(load('mscoco_train', taskMatched=False))
    np.testing.assert_array_equal(np.sort(plain['source']), np.sort(dataset.source_of[0][dataset.columns[0].source[
        dataset.columns[0].image_start[1]:]]))
    monkeypatch.setattr(pretraining, 'TINY', 3)
    few = load(TRAIN, tiny=True)
    assert [len(np.unique(few.row[few.file == file])) for file in range(3)] == [3, min(3, (few.file == 1).sum()), 3]
    path.write_text(json.dumps([{**content[0], 'img_id': 'none'}]))
    with pytest.raises(DataError, match='none of its images has regions: they name images such as none, '):
        load('mscoco_train')
    for other in ([], [{'img_id': content[1]['img_id'], 'sentf': {}, 'labelf': {}}]):
        path.write_text(json.dumps(content[:1] + other))
        with pytest.raises(DataError, match='--taskMatched needs sentences of at least two images'):
            load('mscoco_train')


def test_answers_of_some_sets_only(tmp_path):
    path = tmp_path / 'all_ans.json'
    table = [{'ans': 'a', 'dsets': ['gqa']}, {'ans': 'b', 'dsets': ['vqa', 'gqa']}, {'ans': 'c', 'dsets': ['vqa']}]
    path.write_text(json.dumps(table))
    assert (read_table(path), read_table(path, ['vqa'])) == (['a', 'b', 'c'], ['b', 'c'])
    with pytest.raises(ValueError, match=r'--qaSets: .*all_ans\.json has answers of gqa, vqa, none of visual8w'):
        read_table(path, ['vqa', 'visual8w'])
    path.write_text(json.dumps([*table, table[0]]))
    with pytest.raises(ValueError, match='expected each answer once'):
        read_table(path)


@pytest.mark.shared
def test_the_real_sample_goes_through_loading_masking_and_a_step(tmp_path):
    real = SHARED / 'lxmert/mscoco_minival_withpi.json'
    content = json.loads(real.read_text())
    rng = np.random.default_rng(0)
    corners = np.array([[0, 0, 50, 50], [20, 10, 300, 200], [5, 5, 399, 299]], np.float32)
    conf = np.full(3, 0.5, np.float32)
    store.write(tmp_path / 'val2014_obj36.store', (
        ImageRegions(example['img_id'], 300, 400, rng.integers(0, 1600, 3), conf, rng.integers(0, 400, 3), conf, corners,
                     rng.normal(size=(3, 2048)).astype(np.float32)) for example in content), {})
    described = {'kind': 'lxmert', 'name': 'real', 'max_length': 20, 'answers': str(SHARED / 'answers/lxmert/all_ans.json'),
                 'splits': {'minival': {'annotations': str(real), 'features': ['val2014_obj36.tsv']}}}
    (tmp_path / 'real.json').write_text(json.dumps(described))
    (tmp_path / 'bert').mkdir()
    shutil.copy(SHARED / 'vocab/bert-base-uncased-vocab.txt', tmp_path / 'bert/vocab.txt')
    (tmp_path / 'bert/config.json').write_text(json.dumps(SMALL))
    options = Options(**OBJECTIVES, dataset=str(tmp_path / 'real.json'), train='minival', valid='', bert=str(tmp_path / 'bert'),
                      fromScratch=True, storeRoot=str(tmp_path / 'stores'), output=str(tmp_path / 'run'), device='cpu')
    shutil.move(tmp_path / 'val2014_obj36.store', store.store_folder(tmp_path / 'val2014_obj36.tsv', tmp_path / 'stores'))
    program = PretrainingProgram.prepare(options, torch.device('cpu'))
    _, head, dataset, _ = program.make()
    assert len(dataset) == sum(len(sentences) for example in content for sentences in example['sentf'].values()) == 5264
    assert len(dataset.table) == 9500 and set(dataset.sources) == {source for example in content for source in example['sentf']}
    batch = dataset.to_device(dataset[MicroBatch(np.arange(128) * 41, 0, 0)])
    assert (batch['ans'] != -1).any() and (batch['masked_lm_labels'] != -1).any()
    step = OptimizerStep(head, options, 2, torch.device('cpu'))
    sums, finite, stop = train_step(head, step, [batch], options, Progress(steps_per_epoch=2), torch.device('cpu'))
    assert finite and not stop
    expected = {'Mask_LM': np.log(30522), 'Matched': np.log(2), 'Obj': 0.5 * np.log(1600) / 0.15,
                'Attr': 0.5 * np.log(400) / 0.15, 'QA': np.log(9500)}  # of a model that knows nothing
    for name, value in expected.items():
        assert float(sums[f'loss/{name}']) == pytest.approx(value, rel=0.05), name
    program.folder.close()
