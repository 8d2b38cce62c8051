"""Damaged stores and columns: what they hold is read as it was written, or the message names the damaged file."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import damage
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_regions import COUNTS, IDS, IMAGES, with_probabilities

from annotations import pretraining_columns
from annotations.pretraining_columns import open_columns
from bert.tokenization import BertTokenizer
from files.json_files import DataError
from regions import placement, store, store_files, tsv
from regions.arrays import OBJECTS, RegionView
from regions.tsv import RegionError
from tools import regions as program

CPU = torch.device('cpu')
ARRAYS = ('features', 'boxes', *OBJECTS, 'class_probabilities', 'offsets', 'sizes', 'ids', 'order')
SMALL_ARRAYS = ('offsets', 'sizes', 'ids', 'order')
damaged = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def contents(regions):
    """All that a program can read from regions."""
    rows = np.arange(len(regions))
    batch = regions.gather(rows) | regions.read(rows, [*OBJECTS, 'class_probabilities'])
    batch |= {'sizes': regions.image_sizes(rows), 'rows': regions.rows([*IDS, 'none'])}
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in batch.items()} | {
        'ids': regions.ids.tolist(), 'o': regions.max_regions, 'widths': [
            regions.size_of(name) for name in ('features', 'class_probabilities')]}


@pytest.fixture(scope='module')
def stores(tmp_path_factory):
    """A store, a second one of the same shapes, and the contents of the first; `work` is a copy to damage."""
    folder = tmp_path_factory.mktemp('stores')
    images = [with_probabilities(one) for one in IMAGES]
    store.write(folder / 'good.store', images, {'made by': 'a test'})
    store.write(folder / 'other.store', [replace(one, img_id=f'{one.img_id[:-1]}y', boxes=one.boxes / 2) for one in images], {})
    return SimpleNamespace(good=folder / 'good.store', other=folder / 'other.store', work=folder / 'work.store',
                           contents=contents(store.RegionStore(folder / 'good.store')))


@pytest.fixture
def work(stores):
    return renew(stores)


def renew(stores):
    shutil.rmtree(stores.work, ignore_errors=True)
    return shutil.copytree(stores.good, stores.work)  # with the times of the files


def judge(stores, read=store.open_regions):
    return damage.same_or_error(lambda: contents(read(stores.work)), lambda value: value == stores.contents, stores.work)


def change(path, edit):
    """Writes what edit(bytes) returns in place of a file."""
    path.write_bytes(edit(path.read_bytes()))


def without_digests(folder):
    """A store as other versions of the code made it."""
    meta = json.loads((folder / 'meta.json').read_text())
    del meta['digests'], meta['mtime_ns']
    (folder / 'meta.json').write_text(json.dumps(meta))


def flip(raw):
    """The lowest bit of the last byte but 7, which is in the numbers of an .npy file."""
    return raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:]


# ---- stores

@settings(damaged, max_examples=120)
@given(st.data())
def test_damaged_bytes_of_a_store(stores, data):
    renew(stores)
    path = stores.work / data.draw(st.sampled_from([f'{name}.npy' for name in ARRAYS] + ['meta.json']))
    size = path.stat().st_size
    in_header = data.draw(st.booleans()) and path.suffix == '.npy'
    change(path, data.draw(damage.byte_damage(128 if in_header else size)))
    judge(stores)


@settings(damaged, max_examples=80)
@given(st.data())
def test_damaged_values_of_meta_json(stores, data):
    renew(stores)
    path = stores.work / 'meta.json'
    path.write_text(json.dumps(data.draw(damage.value_damage(json.loads(path.read_text())))(json.loads(path.read_text()))))
    judge(stores)


@pytest.mark.parametrize('name', ARRAYS)
def test_an_array_of_another_store_or_of_another_kind(stores, work, name):
    path, good = work / f'{name}.npy', np.load(work / f'{name}.npy')
    for array in (good[:-1], good[::-1], good[None], np.asfortranarray(good.T), good.astype(object)):
        np.save(path, array)
        assert path.read_bytes() == (stores.good / path.name).read_bytes() or judge(stores)
    shutil.copy(stores.other / path.name, path)
    if path.read_bytes() != (stores.good / path.name).read_bytes():
        assert f'{name}.npy: expected the sha256 ' in judge(stores)
    path.unlink()
    assert judge(stores) == (f'{path}: expected an array of {good.dtype.str} {good.shape}, found no such file; '
                             f'{work.with_suffix(".tsv")}, to make it anew from, is not there: bring it back')
    os.mkfifo(path)  # nobody will ever write to it
    assert 'found no such file' in judge(stores)


@pytest.mark.parametrize('name', ARRAYS)
def test_a_flipped_bit_whatever_the_time_of_the_file(stores, work, name):
    path = work / f'{name}.npy'
    times = path.stat()
    change(path, flip)
    assert f'{path}: expected the sha256 ' in judge(stores)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    if name in SMALL_ARRAYS:
        assert f'{path}: expected the sha256 ' in judge(stores)
    else:  # not noticed by opening, which must not read gigabytes; a bit that a disk has lost is noticed by `check`
        store.open_regions(work)
    assert program.main(['check', str(work)]) == 1


def test_check_of_a_damaged_store_names_the_arrays(stores, work, capsys):
    for name in ARRAYS:
        change(work / f'{name}.npy', flip)
    assert program.main(['check', str(work)]) == 1
    reported = capsys.readouterr().out
    assert all(f'{work}/{name}.npy: expected the sha256 ' in reported for name in ARRAYS)


@pytest.mark.parametrize(('name', 'row', 'value', 'message'), [
    ('offsets', 1, 0, 'offsets.npy: expected increasing numbers from 0, found 0 and then 0 at row 0'),
    ('offsets', 0, -3, 'offsets.npy: expected increasing numbers from 0'),
    ('offsets', 5, 2 ** 62, 'offsets.npy: expected it to end in 13, found 4611686018427387904'),
    ('offsets', 2, 6, 'meta.json: keys "min_regions", "max_regions": expected 2 and 3, as in offsets.npy, found 1 and 4'),
    ('sizes', 2, 0, 'sizes.npy: expected positive heights and widths, found [0, 0] at row 2'),
    ('order', 1, 5, 'order.npy: expected each row from 0 to 4 once'), ('order', 1, -1, 'order.npy: expected each row'),
    ('order', 1, 0, 'order.npy: expected each row'), ('ids', 1, IDS[0].encode(), 'ids.npy: expected distinct ids'),
    ('ids', 4, b'zz\xff', 'ids.npy: expected ids in UTF-8, found zz\\xff at row 4'),
])
def test_a_store_without_digests_is_consistent_or_refused(stores, work, name, row, value, message):
    without_digests(work)
    assert store.open_regions(work).digest() == ''
    array = np.load(work / f'{name}.npy')
    array[row] = value
    if value == b'zz\xff':  # still in its order
        np.save(work / 'order.npy', np.argsort(array))
    np.save(work / f'{name}.npy', array)
    assert f'{work}/{message}' in judge(stores)


def test_a_copy_is_checked_once_and_an_unreadable_disk_is_no_damage(stores, tmp_path, monkeypatch, capfd):
    copy, read, plain = tmp_path / 'copy.store', [], store_files.array_digest

    def array_digest(array, bar):
        read.append(Path(array.base.filename).stem)
        return plain(array, bar)

    monkeypatch.setattr(store_files, 'array_digest', array_digest)
    monkeypatch.setattr(store, 'LARGE', 0)
    shutil.copytree(stores.good, copy, copy_function=shutil.copyfile)
    for expected in (ARRAYS, SMALL_ARRAYS):
        assert contents(store.open_regions(copy)) == stores.contents
        assert sorted(read) == sorted(expected)
        read.clear()
    assert capfd.readouterr().err.count('was copied or changed after it was made; comparing the checksums of') == 1
    times = {f'{name}.npy': (copy / f'{name}.npy').stat().st_mtime_ns for name in ARRAYS}
    change(copy / 'boxes.npy', lambda raw: raw)  # rewritten with the same bytes, where the time cannot be recorded

    def refuse(path, value):
        raise PermissionError(errno.EACCES, 'Permission denied', str(path))

    monkeypatch.setattr(store, 'write_json', refuse)
    for _ in range(2):
        read.clear()
        assert contents(store.open_regions(copy)) == stores.contents and 'boxes' in read
        assert 'meta.json: cannot be written (Permission denied), so that the next start' in capfd.readouterr().err
    assert times['features.npy'] == (copy / 'features.npy').stat().st_mtime_ns

    def fail(*args):
        raise OSError(errno.EIO, 'Input/output error')

    path = tmp_path / 'x.tsv'
    tsv.write(path, IMAGES)
    stamp = store.open_regions(path).meta['stamp']
    monkeypatch.setattr(np, 'memmap', fail)
    with pytest.raises(OSError, match=r'Input/output error: .*classes\.npy'):  # and the store is not made again
        store.open_regions(path)
    monkeypatch.undo()
    assert store.open_regions(path).meta['stamp'] == stamp


CUT = '''
import sys
from pathlib import Path
import numpy as np
from regions import store
from regions.tsv import RegionError
kept = Path(sys.argv[1])
for name in sys.argv[2:]:
    regions = store.RegionStore(kept)
    path = kept / f'{name}.npy'
    raw = path.read_bytes()
    with open(path, 'r+b') as file:
        file.truncate(0)
    for read in (lambda: regions.gather([0]), lambda: regions.read([1], ['classes']), lambda: regions.image(2),
                 lambda: regions.gather_one([1], np.array([0.5])), lambda: regions.image_sizes([0])):
        try:
            read()
            print('read', name)
        except RegionError as error:
            assert f'{path}: expected {len(raw):,} bytes, found 0: it was cut off while in use' in str(error), error
    path.write_bytes(raw)
'''


def test_a_file_that_is_cut_off_in_use_does_not_kill_the_program(work):
    ended = subprocess.run([sys.executable, '-c', CUT, work, *ARRAYS], env=os.environ | {'PYTHONPATH': str(ROOT / 'src')},
                           capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, '', '')


@pytest.mark.parametrize('load', [placement.in_ram, lambda regions: placement.OnDevice(regions, CPU)])
def test_a_file_that_is_cut_off_before_it_is_loaded(work, load):
    regions = store.RegionStore(work)
    with open(work / 'features.npy', 'r+b') as file:
        file.truncate(128 + 4)  # within a page, where reading would give zeros
    with pytest.raises(RegionError, match=r'features\.npy: expected 388 bytes, found 132: it was cut off while in use'):
        load(regions)


def test_a_folder_whose_name_is_not_utf_8(tmp_path):
    folder = tmp_path / os.fsdecode(b'\xff')
    folder.mkdir()
    path = folder / os.fsdecode(b'x\xfe.tsv')
    tsv.write(path, IMAGES)
    regions = store.open_regions(path)
    assert store.open_regions(path).meta == regions.meta and regions.meta['source']['name'] == r'x\xfe.tsv'


# ---- what regions say of themselves

def test_digest_of_regions(stores, tmp_path):
    path = tmp_path / 'x.tsv'
    tsv.write(path, IMAGES)
    regions, rows = store.open_regions(path), np.array([0, 3])
    shutil.copytree(path.with_suffix('.store'), tmp_path / 'elsewhere.store', copy_function=shutil.copyfile)
    again = store.open_regions(tmp_path / 'elsewhere.store')
    few = store.read_few(path, [{IDS[0], IDS[3]}], [5])
    in_ram = placement.in_ram(regions)
    assert len(regions.digest()) == 64 and {again.digest(), in_ram.digest()} == {regions.digest()} != {few.digest()}
    assert placement.OnDevice(regions, CPU).digest() == regions.digest()
    assert few.digest([0, 1]) == regions.digest(rows) == regions.digest(rows[::-1]) == again.digest(rows)
    view, other = RegionView([regions, store.RegionStore(stores.other)]), RegionView([store.RegionStore(stores.other), regions])
    assert view.digest() != other.digest() and view.digest(rows) == regions.digest(rows)
    changes = [lambda one: {'features': -one.features}, lambda one: {'boxes': one.boxes / 2},
               lambda one: {'features': one.features[::-1].copy()}, lambda one: {'img_id': f'{one.img_id}x'},
               lambda one: {'classes': one.classes + 1}, lambda one: {'height': one.height + 1}]
    digests = {(regions.digest(), regions.digest(rows))}
    for number, edit in enumerate(changes, 1):
        tsv.write(path, [replace(one, **edit(one)) for one in IMAGES])
        changed = store.open_regions(path)
        digests.add((changed.digest(), changed.digest(rows)))
        assert len({one for one, _ in digests}) == len({other for _, other in digests}) == number + 1


def test_images_with_numbers_that_are_not_finite(tmp_path):
    images = [replace(one, features=one.features.copy(), boxes=one.boxes.copy()) for one in IMAGES]
    images[1].features[0, 2], images[3].boxes[2, 1] = np.inf, np.nan
    regions = store.RegionArrays.of_images('x', images)
    view = RegionView([store.RegionArrays.of_images('y', images[:2]), store.RegionArrays.of_images('z', images[2:])])
    for one in (regions, view):
        assert one.nonfinite(np.array([[0, 3], [-1, 1]])) == [IDS[1], IDS[3]] and one.nonfinite([0, 2, -1]) == []
        assert one.nonfinite(range(len(COUNTS)), 1) == [IDS[1]]
    with pytest.raises(RegionError, match=f'y: expected finite features, found NaN or infinity in image {IDS[1]}; '):
        placement.OnDevice(view, CPU)
    images[1].features[0, 2] = 70000
    with pytest.raises(RegionError, match='y: has features too large for half precision'):
        placement.OnDevice(view.stores[0].of_images('y', images[:2]), CPU)


@pytest.mark.parametrize(('edit', 'message'), [
    ({'img_id': '../../etc/x'}, 'no control characters and no "..", found \'../../etc/x\''),
    ({'class_conf': np.float32([1, 2, 0])}, 'field "objects_conf": expected confidences from 0 to 1, found 2 in region 1'),
    ({'attribute_conf': np.float32([1, .5, -.5])}, '"attrs_conf": expected confidences from 0 to 1, found -0.5 in region 2'),
])
def test_ids_and_confidences_that_no_detector_gives(tmp_path, edit, message):
    with pytest.raises(RegionError) as error:
        tsv.write(tmp_path / 'x.tsv', [replace(IMAGES[0], **edit)])
    assert message in str(error.value)
    tsv.write(tmp_path / 'x.tsv', [replace(IMAGES[0], img_id='a..b/c', class_conf=np.float32([1.0001, 0, 1]))])


# ---- columns

@pytest.fixture(scope='module')
def columns(tmp_path_factory):
    """The json of some sentences, a tokenizer, and the columns as they were made, saved as `good`."""
    folder = tmp_path_factory.mktemp('columns')
    (folder / 'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'what', 'is', '?', 'a', 'dog']))
    tokenizer, path = BertTokenizer(folder / 'vocab.txt'), folder / 'text.json'
    path.write_text(json.dumps([
        {'img_id': f'i{number}', 'sentf': {'mscoco': ['a dog', 'a'][:1 + number % 2], 'vqa': ['what is a dog ?']},
         'labelf': {'vqa': [{'dog': 1.0, 'a': 0.3}]}} for number in range(5)]))
    columns = open_columns(path, tokenizer, 8)
    shutil.copytree(columns.folder, folder / 'good')
    return SimpleNamespace(path=path, tokenizer=tokenizer, folder=columns.folder, good=folder / 'good', values=values(columns))


def values(columns):
    arrays = {name: (array.dtype, array.shape, array.tobytes()) for name, array in columns.arrays.items()}
    return arrays | {'sources': columns.sources, 'answers': columns.answers, 'digest': columns.digest}


def open_copy(columns):
    return values(open_columns(columns.path, columns.tokenizer, 8))


@settings(damaged, max_examples=80)
@given(st.data())
def test_damaged_columns_are_made_again(columns, data):
    shutil.rmtree(columns.folder)
    shutil.copytree(columns.good, columns.folder)
    path = columns.folder / data.draw(st.sampled_from(sorted(path.name for path in columns.good.iterdir())))
    if path.suffix == '.json' and data.draw(st.booleans()):
        value = json.loads(path.read_text())
        path.write_text(json.dumps(data.draw(damage.value_damage(value))(value)))
    else:
        change(path, data.draw(damage.byte_damage(path.stat().st_size)))
    assert damage.same_or_error(lambda: open_copy(columns), lambda value: value == columns.values, columns.folder) is None


def test_what_is_wrong_with_columns_is_said(columns, capfd):
    both = 'expected the checksum of meta.json and answers.json'
    for name, edit, message in (
            ('input_ids.npy', flip, 'input_ids.npy: expected the sha256 '),
            ('source.npy', lambda raw: raw[:-2], 'source.npy: expected an array of <u2'),
            ('meta.json', lambda raw: raw.replace(b'"mscoco"', b'"nscoco"'), both),
            ('answers.json', lambda raw: raw.replace(b'dog', b'dot'), both)):
        change(columns.folder / name, edit)
        with pytest.raises((DataError, RegionError), match=message):
            pretraining_columns.Columns(columns.folder)
        capfd.readouterr()
        assert open_copy(columns) == columns.values
        reported = capfd.readouterr().err
        assert reported.startswith(f'Making {columns.folder} from {columns.path} again: {columns.folder}/')
        assert message in reported and reported.count('\n') == 1


def test_a_touched_json_is_read_once(columns, monkeypatch):
    calls, plain = [], pretraining_columns.sha256
    monkeypatch.setattr(pretraining_columns, 'sha256', lambda path: (calls.append(1), plain(path))[1])
    columns.path.touch()
    for _ in range(2):
        assert open_copy(columns) == columns.values and len(calls) == 1


def test_columns_that_are_cut_off_or_rewritten_in_use(columns):
    opened = open_columns(columns.path, columns.tokenizer, 8)
    rebuild, arguments = opened.__reduce__()
    assert values(rebuild(*arguments)) == columns.values
    with pytest.raises(DataError, match='was rewritten while it was in use; start the program again'):
        rebuild(arguments[0], '0' * 64)
    opened.check_length()
    with open(columns.folder / 'input_ids.npy', 'r+b') as file:
        file.truncate(128)
    with pytest.raises(RegionError, match=r'input_ids\.npy: expected .* bytes, found 128: it was cut off while in use'):
        opened.check_length()
