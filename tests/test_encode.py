"""run/encode.bash: what is written equals the model called plainly, a pair at a time; faults come before anything is computed."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, lxmert_head, ragged

import lxrt.heads
from bert.tokenization import BertTokenizer
from lxrt.config import LxrtConfig
from lxrt.modeling import LXRTPretraining
from regions import tsv
from tools import encode

ALL = 'lang0,lang1,cross1,visn0,rel1'


@pytest.fixture(scope='module')
def made(made_world, tmp_path_factory):
    """A world with different numbers of regions, and files of weights."""
    world = shutil.copytree(made_world, tmp_path_factory.mktemp('encode') / 'shapes')
    ragged(world)
    config = LxrtConfig.from_json(world / 'bert/config.json')
    torch.manual_seed(0)
    model = LXRTPretraining(config, num_answers=5)
    for p in model.parameters():
        p.data.normal_(std=0.2)
    torch.save(model.state_dict(), world / 'model_LXRT.pth')
    (world / 'run').mkdir()
    head = lxmert_head(config, 5)
    head.encoder.lxrt_encoder.model.bert.load_state_dict(model.bert.state_dict())
    torch.save(head.original_state(), world / 'run/BEST.pth')
    for name in ('config.json', 'vocab.txt'):
        shutil.copy(world / 'bert' / name, world / 'run')
    return world, model.bert.eval()


@pytest.fixture
def pairs(made, tmp_path):
    """[(ImageRegions, sentence), ...] in another order than that of the regions, and their file."""
    world, _ = made
    images = {image.img_id: image for path in features(world) for _, image in tsv.read(path)}
    examples = [one for split in ('minival', 'train') for one in json.loads((world / f'vqa/{split}.json').read_text())][::-17]
    assert len(examples) > 12
    (tmp_path / 'pairs.tsv').write_text(''.join(f'{one["img_id"]}\t{one["sent"]}\n' for one in examples))
    (tmp_path / 'pairs.json').write_text(json.dumps(examples))
    return [(images[one['img_id']], one['sent']) for one in examples]


def features(world):
    return [world / f'mscoco_imgfeat/{name}_obj36.tsv' for name in ('val2014', 'train2014')]


@pytest.fixture
def run(made, tmp_path, capsys):
    """run(*flags): the program in this process; returns (exit status, what it printed: .out and .err)."""
    world, _ = made

    def program(*flags, pairs='pairs.tsv', load='model_LXRT', out='states.npz'):
        files = ','.join(map(str, features(world)))
        return encode.main([str(tmp_path / pairs), '--features', files, '--load', str(world / load), '--device', 'cpu', '--bert',
                            str(world / 'bert'), '--batchSize', '5', '--out', str(tmp_path / out), *flags]), capsys.readouterr()

    return program


def plainly(model, tokenizer, image, sentence):
    """Token ids (t,), the pooled vector and the states of all layers of a pair, in a batch of its own and without padding."""
    ids = tokenizer.encode([sentence])
    ids = torch.from_numpy(ids[:, :np.count_nonzero(ids)]).long()
    boxes = torch.from_numpy(image.boxes) / torch.tensor([image.width, image.height] * 2)
    with torch.no_grad():
        _, pooled, hidden = model(ids, visual_feats=(torch.from_numpy(image.features)[None], boxes[None]), hidden_states=True)
    return ids[0], pooled[0], {side: {name: states[0] for name, states in layers.items()}
                               for side, layers in zip(('words', 'regions'), hidden, strict=True)}


def test_what_is_written_equals_the_model_called_plainly(made, pairs, run, tmp_path):
    world, model = made
    status, printed = run('--states', 'pooled,words,regions', '--layers', ALL)
    assert status == 0, printed.err
    found = np.load(tmp_path / 'states.npz')  # which runs no code
    words, regions = ('lang0', 'lang1', 'cross1'), ('visn0', 'rel1', 'cross1')
    names = {'words': words, 'regions': regions}
    assert set(found) == {'pooled', 'img_ids', 'sentences', 'input_ids', 'num_words', 'num_regions',
                          *(f'{side}.{name}' for side, layers in names.items() for name in layers)}
    assert found['img_ids'].tolist() == [image.img_id for image, _ in pairs]
    assert found['sentences'].tolist() == [sentence for _, sentence in pairs]
    assert len(set(found['num_words'])) > 1 and len(set(found['num_regions'])) > 1
    tokenizer = BertTokenizer(world / 'bert/vocab.txt')
    for i, pair in enumerate(pairs):
        ids, pooled, states = plainly(model, tokenizer, *pair)
        assert found['num_words'][i] == len(ids) and found['num_regions'][i] == len(pair[0].boxes)
        np.testing.assert_array_equal(found['input_ids'][i], np.pad(ids, (0, found['input_ids'].shape[1] - len(ids))))
        np.testing.assert_allclose(found['pooled'][i], pooled, atol=1e-5)
        for side, layers in names.items():
            for name in layers:
                written, expected = found[f'{side}.{name}'], states[side][name].numpy()
                assert written.dtype == np.float32
                np.testing.assert_allclose(written[i, :len(expected)], expected, atol=1e-5)
                assert not written[i, len(expected):].any()
    assert found['words.lang1'].shape == (len(pairs), found['num_words'].max(), 32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pairs.json', 'pairs.tsv', 'states.npz']


def test_the_launcher_json_snapshots_and_what_is_written_by_default(made, pairs, run, tmp_path):
    world, _ = made
    assert run('--states', 'pooled,words,regions')[0] == 0
    plain = np.load(tmp_path / 'states.npz')
    assert 'words.cross1' in plain and 'regions.cross1' in plain and 'words.lang1' not in plain
    command = ['bash', 'run/encode.bash', 'cpu', tmp_path / 'pairs.json', '--features', ','.join(map(str, features(world))),
               '--load', world / 'run/BEST', '--out', tmp_path / 'a/b.npz']
    launched = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=100,
                              env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert launched.returncode == 0, launched.stderr
    found = np.load(tmp_path / 'a/b.npz')
    assert set(found) == {'pooled', 'img_ids', 'sentences', 'input_ids', 'num_words', 'num_regions'}
    np.testing.assert_allclose(found['pooled'], plain['pooled'], atol=1e-5)
    np.testing.assert_array_equal(found['sentences'], plain['sentences'])


def test_sentences_are_cut_to_maxLength(made, pairs, run, tmp_path):
    world, _ = made
    assert run('--maxLength', '6')[0] == 0
    ids = np.load(tmp_path / 'states.npz')['input_ids']
    np.testing.assert_array_equal(ids, BertTokenizer(world / 'bert/vocab.txt').encode([sentence for _, sentence in pairs], 6))


def test_bfloat16_comes_near(pairs, run, tmp_path):
    for flags, out in (((), 'a.npz'), (('--bf16',), 'b.npz')):
        assert run('--states', 'pooled,regions', *flags, out=out)[0] == 0
    one, other = np.load(tmp_path / 'a.npz'), np.load(tmp_path / 'b.npz')
    assert other['regions.cross1'].dtype == np.float32 and not np.array_equal(one['pooled'], other['pooled'])
    np.testing.assert_allclose(one['pooled'], other['pooled'], atol=0.1)


def test_images_without_regions_are_counted_and_named_before_the_weights_are_read(pairs, run, tmp_path, monkeypatch):
    (tmp_path / 'pairs.tsv').write_text((tmp_path / 'pairs.tsv').read_text() + 'no_1\tsquare\nno_2\tsquare\nno_1\tcircle\n')
    monkeypatch.setattr(lxrt.heads, 'load_encoder', None)
    status, printed = run()
    n = len(pairs) + 3
    assert status == 1 and f'pairs.tsv: 3 of {n} pairs are about 2 images without regions' in printed.err
    assert '(no_1, no_2)' in printed.err and not (tmp_path / 'states.npz').exists()


@pytest.mark.parametrize(('content', 'error'), [
    (b'', 'expected lines img_id<TAB>sentence, found none'),
    (b'a\tred\nb red\r\na\tred\n\na\tb\tc\nd\t \n\xff\tred\n',
     r"lines 2, 4, 5 and 2 more: expected img_id<TAB>sentence in UTF-8, found b'b red\\r\\n' in the first"),
    (b'a\tred\nb', "line 2: expected img_id<TAB>sentence in UTF-8, found b'b' in the first"),
])
def test_broken_lines_are_named_by_number(run, tmp_path, content, error):
    (tmp_path / 'pairs.tsv').write_bytes(content)
    status, printed = run()
    assert status == 1 and f'pairs.tsv: {error}'.replace('\\\\', '\\') in printed.err


def test_json_that_holds_other_things_is_named(made, run, tmp_path):
    world, _ = made
    shutil.copy(world / 'nlvr2/valid.json', tmp_path / 'two.json')
    (tmp_path / 'none.json').write_text('[{"img_id": "a", "sent": "red"}, {"img_id": 7, "sent": "red"}]')
    (tmp_path / 'odd.json').write_text(r'[{"img_id": "a\u0000", "sent": "red"}]')
    for file, error in (('two.json', 'key "img0": expected one image a sentence, found two'),
                        ('none.json', 'key "img_id": expected str, found 7'), ('x.tsv', 'x.tsv: no such file'),
                        ('odd.json', r"odd.json: expected image ids without control characters, found 'a\x00'")):
        status, printed = run(pairs=file)
        assert status == 1 and error in printed.err


@pytest.mark.parametrize(('flags', 'error'), [
    (['--states', 'words', '--layers', 'lang2'], '--layers: unknown layer "lang2"; of words there are lang0, lang1, cross1'),
    (['--states', 'words', '--layers', 'rel1'], '--layers: unknown layer "rel1"; of words there are lang0, lang1, cross1'),
    (['--states', 'words,regions', '--layers', 'rel1'], '--layers rel1: names no layer of words; of words there are lang0'),
    (['--layers', 'cross1'], '--layers cross1: only words and regions have layers'),
    (['--load', 'nothing'], '--load nothing: nothing_LXRT.pth: no such file'),
    (['--bert', 'nowhere'], '--bert nowhere: found no vocab.txt'),
    (['--features', 'none.tsv'], 'none.tsv'),
    (['--batchSize', '0'], '--batchSize: expected at least 1, found 0'),
])
def test_faults_of_flags_are_named(pairs, run, flags, error):
    status, printed = run(*flags)
    assert status == 1 and error in printed.err


@pytest.mark.parametrize('flags', [['--states', 'pooled,world'], ['--states', ''], ['--features', ','], ['--out', 'a.npy'],
                                   ['--maxLength', '2']])
def test_wrong_usage_ends_with_status_2(run, flags):
    with pytest.raises(SystemExit) as ended:
        run(*flags)
    assert ended.value.code == 2


def test_a_disk_without_room_is_told_before_anything_is_computed(pairs, run, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: free)
    monkeypatch.setattr(encode, 'load_batches', None)
    status, printed = run('--states', 'words')
    assert status == 1 and 'needs 0.0 GB in' in printed.err


@pytest.mark.parametrize(('fault', 'expected', 'message'), [
    (OSError('the disk is gone'), 1, 'the disk is gone'), (KeyboardInterrupt(), 130, 'interrupted; nothing was written')])
def test_what_breaks_off_leaves_nothing(pairs, run, tmp_path, monkeypatch, fault, expected, message):
    (tmp_path / 'states.npz').write_text('older')

    def breaks(*args, load=encode.load_batches):
        for number, batch in enumerate(load(*args)):
            if number:
                raise fault
            yield batch

    monkeypatch.setattr(encode, 'load_batches', breaks)
    status, printed = run()
    assert status == expected and message in printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ['pairs.json', 'pairs.tsv', 'states.npz']
    assert (tmp_path / 'states.npz').read_text() == 'older'


def test_a_disk_that_is_too_small_is_an_error_and_not_a_killed_process(pairs, run, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'posix_fallocate', full)
    status, printed = run()
    assert status == 1 and 'No space left on device' in printed.err
