"""The TSV reader finds every fault and names its line; the store holds exactly what the TSV held, or is not there."""

import base64
import contextlib
import csv
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from regions import conversion, store, tsv
from regions.arrays import RegionView
from regions.tsv import ImageRegions, RegionError

ROOT = Path(__file__).parents[1]
COCO = ROOT.parent / 'shared/data/coco_regions/train2014_obj36.tsv'
F = 5
COUNTS = [3, 1, 4, 3, 2]
needs_shared = [pytest.mark.shared, pytest.mark.skipif(not COCO.is_file(), reason=f'{COCO} is not here')]


def image(number: int, o: int = 3, f: int = F) -> ImageRegions:
    rng = np.random.default_rng(number)
    height, width = 60 + number, 80 + number
    corners = np.sort(rng.random((o, 2, 2)), axis=1).reshape(o, 4) * [width, height, width, height]
    return ImageRegions(f'COCO_{(number * 7) % 10}x', height, width, rng.integers(0, 1600, o),
                        rng.random(o, np.float32), rng.integers(0, 400, o), rng.random(o, np.float32),
                        corners.astype(np.float32), rng.standard_normal((o, f)).astype(np.float32))


IMAGES = [image(number, o) for number, o in enumerate(COUNTS)]
IDS = [one.img_id for one in IMAGES]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'train_obj36.tsv'
    assert tsv.write(path, IMAGES) == len(IMAGES)
    return path


def same(one: ImageRegions, other: ImageRegions) -> None:
    assert (one.img_id, one.height, one.width) == (other.img_id, other.height, other.width)
    for name in tsv.ARRAYS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


def edit(path: Path, line: int, field: str | None, value) -> None:
    """Put `value`, bytes or a function of the old bytes, in a field (None: the whole line) of a line (from 1)."""
    lines = path.read_bytes().split(b'\r\n')
    parts = lines[line - 1].split(b'\t')
    where = tsv.FIELDS.index(field) if field else slice(None)
    old = parts[where] if field else lines[line - 1]
    new = value(old) if callable(value) else value
    if field:
        parts[where] = new
        new = b'\t'.join(parts)
    lines[line - 1] = new
    path.write_bytes(b'\r\n'.join(lines))


def numbers(dtype: str, *place_values):
    """An edit that sets entries, by their flat place, of an array field."""
    def value(old: bytes) -> bytes:
        array = np.frombuffer(base64.b64decode(old), dtype).copy()
        for place, number in place_values:
            array[place] = number
        return base64.b64encode(array.tobytes())
    return value


def expect_batch(batch: dict, images: list[ImageRegions]) -> None:
    """`gather` restated with loops."""
    o = max(len(one.boxes) for one in images)
    assert batch['features'].shape == (len(images), o, F) and batch['features'].dtype == np.float32
    assert batch['boxes'].shape == (len(images), o, 4) and batch['boxes'].dtype == np.float32
    assert batch['mask'].shape == (len(images), o) and batch['mask'].dtype == bool
    for i, one in enumerate(images):
        n = len(one.boxes)
        assert batch['mask'][i].tolist() == [True] * n + [False] * (o - n)
        np.testing.assert_array_equal(batch['features'][i, :n], one.features)
        scale = np.array([one.width, one.height, one.width, one.height], np.float32)
        np.testing.assert_array_equal(batch['boxes'][i, :n], one.boxes / scale)
        assert not batch['features'][i, n:].any() and not batch['boxes'][i, n:].any()


# The TSV

def test_tsv_round_trip(path):
    lines = list(tsv.read(path))
    assert [number for number, _ in lines] == [1, 2, 3, 4, 5]
    for (_, read), written in zip(lines, IMAGES, strict=True):
        same(read, written)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b'\r\n', b'\n').rstrip(b'\n'))  # bare LF, and a last line without any
    assert len(list(tsv.read(path))) == len(IMAGES)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def whole(array: str, o: int, width: int, size: int) -> str:
    return f'field "{array}": expected {o} x {width} x {size} = {o * width * size} bytes, found'


FAULTS = {
    'too few fields': (None, lambda old: old.rsplit(b'\t', 2)[0], 'expected 10 fields separated by tabs, found 8'),
    'too many fields': (None, lambda old: old + b'\tmore', 'expected 10 fields separated by tabs, found 11'),
    'empty line': (None, b'', "image '': expected 10 fields separated by tabs, found 1"),
    'empty id': ('img_id', b'', 'field "img_id": expected a name'),
    'id with white space': ('img_id', b' a', 'field "img_id": expected a name'),
    'id with a control character': ('img_id', b'a\x00b', 'field "img_id": expected a name'),
    'id of line 1': ('img_id', IDS[0].encode(), 'field "img_id": expected a new id, found that of line 1'),
    'broken UTF-8': ('img_id', b'a\xffb', r'image a\xffb: field "img_id": expected UTF-8, found byte 0xff'),
    'height no number': ('img_h', b'6_0', 'field "img_h": expected a whole number, found b\'6_0\''),
    'height 0': ('img_h', b'0', 'field "img_h": expected a positive number of pixels, found 0'),
    'width negative': ('img_w', b'-80', 'field "img_w": expected a whole number, found b\'-80\''),
    'num_boxes no number': ('num_boxes', b'3.0', 'field "num_boxes": expected a whole number'),
    'num_boxes 0': ('num_boxes', b'0', 'field "num_boxes": expected at least 1, found 0'),
    'num_boxes too large': ('num_boxes', b'5', 'field "objects_id": expected 5 x 8 = 40 bytes, found 32'),
    'base64 cut': ('features', lambda old: old[:-3], 'field "features": expected base64, found'),
    'base64 damaged': ('boxes', lambda old: b'!' + old[1:], 'field "boxes": expected base64, found'),
    'base64 with blanks': ('boxes', lambda old: old[:4] + b'    ' + old[4:], 'field "boxes": expected base64, found'),
    'features cut': ('features', lambda old: old[:32], whole('features', 4, F, 4) + ' 24; line 1 set 5 a region'),
    'features of another size': ('features', lambda old: base64.b64encode(b'\0' * 4 * 7 * 4),
                                 whole('features', 4, F, 4) + ' 112'),
    'boxes short': ('boxes', lambda old: old[:16], whole('boxes', 4, 4, 4) + ' 12'),
    'confidences short': ('attrs_conf', lambda old: old[:16], 'field "attrs_conf": expected 4 x 4 = 16 bytes, found'),
    'class negative': ('objects_id', numbers('<i8', (2, -1)), 'field "objects_id": expected ids of 0 and more, found '
                                                              '-1 in region 2'),
    'attribute negative': ('attrs_id', numbers('<i8', (0, -7)), 'field "attrs_id": expected ids of 0 and more'),
    'confidence NaN': ('objects_conf', numbers('<f4', (1, np.nan)), 'field "objects_conf": expected finite numbers'),
    'box infinite': ('boxes', numbers('<f4', (15, np.inf)), 'field "boxes": expected finite numbers'),
    'feature NaN': ('features', numbers('<f4', (6, np.nan)), 'field "features": expected finite numbers, found NaN or '
                                                             'infinity in region 1'),
    'box turned round': ('boxes', numbers('<f4', (4, 50), (6, 40)), 'field "boxes": expected 0 <= x1 <= x2 <= 82'),
    'box upside down': ('boxes', numbers('<f4', (1, 50), (3, 40)), 'field "boxes": expected 0 <= x1'),
    'box left of the picture': ('boxes', numbers('<f4', (0, -1.5)), 'field "boxes": expected 0 <= x1'),
    'box below the picture': ('boxes', numbers('<f4', (7, 63.5)), 'and 0 <= y1 <= y2 <= 62, found'),
}


@pytest.mark.parametrize(('field', 'value', 'message'), FAULTS.values(), ids=FAULTS)
def test_fault_names_file_and_line(path, field, value, message):
    edit(path, 3, field, value)
    with pytest.raises(RegionError) as error:
        list(tsv.read(path))
    assert str(error.value).startswith(f'{path}:3: image ')
    assert message in str(error.value)
    faults = []
    assert [number for number, _ in tsv.read(path, faults.append)] == [1, 2, 4, 5]
    assert [str(fault) for fault in faults] == [str(error.value)]


def test_truncated_file_names_its_last_line(path):
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(RegionError, match=r'train_obj36.tsv:5: image COCO_8x: field "features": expected '):
        list(tsv.read(path))


def test_unreadable_file(tmp_path):
    with pytest.raises(RegionError, match=r'none\.tsv: cannot be read'):
        list(tsv.read(tmp_path / 'none.tsv'))


def test_boxes_a_pixel_outside_are_clipped(path):
    edit(path, 3, 'boxes', numbers('<f4', (0, -0.75), (7, 62.9)))
    boxes = list(tsv.read(path))[2][1].boxes
    assert boxes[0, 0] == 0 and boxes[1, 3] == 62
    kept = np.ones(16, bool)
    kept[[0, 7]] = False
    np.testing.assert_array_equal(boxes.ravel()[kept], IMAGES[2].boxes.ravel()[kept])


@pytest.mark.parametrize(('change', 'message'), [
    ({'features': IMAGES[0].features[:2]}, r'field "features": expected an array of float32 \(3, 5\), .*\(2, 5\)'),
    ({'features': image(0, f=6).features}, r'field "features": expected an array of float32 \(3, 5\), .*\(3, 6\)'),
    ({'boxes': IMAGES[0].boxes.astype(np.float64)}, 'field "boxes": expected an array of float32'),
    ({'class_conf': None}, r'field "objects_conf": expected an array of float32 \(3,\), found NoneType'),
    ({'img_id': 'a\tb'}, 'field "img_id": expected a name'),
    ({'height': 60.0}, 'field "img_h": expected a positive number'),
    ({'img_id': IDS[1]}, 'expected a new id, found that of number 1'),
])
def test_writers_refuse_what_reading_would(tmp_path, change, message):
    images = [IMAGES[1], replace(IMAGES[0], **change)]
    for write in (lambda: tsv.write(tmp_path / 'x.tsv', images), lambda: store.write(tmp_path / 'x.store', images, {})):
        with pytest.raises(RegionError, match=rf'number 2 to be written\): {message}'):
            write()
    assert [p.name for p in tmp_path.iterdir()] == ['x.store.lock']


# The store

def test_store_holds_what_was_written(path):
    regions = store.open_regions(path)
    assert (len(regions), regions.feature_size, regions.max_regions) == (5, F, 4)
    assert regions.meta['min_regions'] == 1 and regions.meta['regions'] == sum(COUNTS)
    assert [img_id.decode() for img_id in regions.ids] == IDS
    for rows in ([0, 1, 2, 3, 4], [3, 0], [1], [4, 2, 4]):  # ragged, equal, one, repeated
        expect_batch(regions.gather(rows), [IMAGES[row] for row in rows])
        objects = regions.objects(np.array(rows))
        assert sorted(objects) == sorted(store.OBJECTS)
        for i, row in enumerate(rows):
            for name, array in objects.items():
                expected = getattr(IMAGES[row], name)
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array[i, :len(expected)], expected)
                assert not array[i, len(expected):].any()
    assert regions.gather([])['features'].shape == (0, 0, F)


def test_rows(path):
    regions = store.open_regions(path)
    assert regions.rows(IDS).tolist() == [0, 1, 2, 3, 4] and regions.rows(IDS).dtype == np.int64
    assert regions.rows([IDS[3], 'zzz', IDS[1] + 'x', '', 'é', IDS[3]]).tolist() == [3, -1, -1, -1, -1, 3]
    assert regions.rows([]).tolist() == []
    for wrong in ([0, -1], [5]):
        with pytest.raises(IndexError, match='expected rows from 0 to 4'):
            regions.gather(wrong)


def test_pickle_carries_no_data_and_notices_a_new_store(path):
    regions = store.open_regions(path)
    pickled = pickle.dumps(regions)
    assert len(pickled) < 600
    expect_batch(pickle.loads(pickled).gather([2, 0]), [IMAGES[2], IMAGES[0]])
    tsv.write(path, IMAGES[:3])
    assert len(store.open_regions(path)) == 3
    with pytest.raises(RegionError, match='was made anew while it was in use'):
        pickle.loads(pickled)
    expect_batch(regions.gather([4]), [IMAGES[4]])  # what was mapped before stays


def test_view_of_two_stores(tmp_path):
    paths = [tmp_path / 'a.tsv', tmp_path / 'b.tsv', tmp_path / 'c.tsv']
    tsv.write(paths[0], IMAGES[:2])
    tsv.write(paths[1], IMAGES[1:])  # its first image is also in the first store
    tsv.write(paths[2], [image(9, f=F + 1)])
    view = store.open_all(paths[:2])
    assert len(view) == 6 and view.feature_size == F and view.max_regions == 4
    assert view.rows([*IDS, 'none']).tolist() == [0, 1, 3, 4, 5, -1]
    assert [img_id.decode() for img_id in view.ids] == [*IDS[:2], *IDS[1:]]
    for copy in (view, pickle.loads(pickle.dumps(view))):
        expect_batch(copy.gather([3, 0, 1, 5]), [IMAGES[2], IMAGES[0], IMAGES[1], IMAGES[4]])
        expect_batch(copy.gather([4, 3]), [IMAGES[3], IMAGES[2]])
    assert view.objects([3, 0])['classes'].tolist() == [IMAGES[2].classes.tolist(), [*IMAGES[0].classes.tolist(), 0]]
    assert view.gather([])['features'].shape == (0, 0, F)
    with pytest.raises(IndexError, match='expected rows from 0 to 5'):
        view.gather([6])
    with pytest.raises(RegionError, match=r'c\.store: expected features of 5 as in .*a\.store, found 6'):
        store.open_all(paths)
    assert isinstance(store.open_all(paths[:1]), store.RegionStore)


def test_faulty_lines_are_reported_at_once_and_leave_no_store(tmp_path):
    path = tmp_path / 'x.tsv'
    tsv.write(path, [replace(IMAGES[0], img_id=f'i{number}') for number in range(40)])
    for line in range(11, 36):
        edit(path, line, 'img_w', b'wide')
    with pytest.raises(RegionError) as error:
        store.open_regions(path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f'{path}: expected whole lines only, found 25 faulty and 15 good images')
    assert [line.split(': ')[0].strip() for line in lines[1:21]] == [f'{path}:{number}' for number in range(11, 31)]
    assert lines[21:] == ['  and 5 more']
    assert sorted(p.name for p in tmp_path.iterdir()) == ['x.store.lock', 'x.tsv']


def test_neither_file_nor_store_and_empty_files(tmp_path):
    with pytest.raises(RegionError, match=r'x\.tsv: expected this file or its region store .*x\.store, found neither'):
        store.open_regions(tmp_path / 'x.tsv')
    (tmp_path / 'x.tsv').touch()
    with pytest.raises(RegionError, match=r'x\.tsv: expected an image a line, found no line at all'):
        store.open_regions(tmp_path / 'x.tsv')
    with pytest.raises(RegionError, match='expected at least one image'):
        store.write(tmp_path / 'y.store', [], {})


def test_a_changed_file_is_converted_again(path, capfd):
    first = store.open_regions(path).meta
    assert first['source']['name'] == path.name and len(first['source']['sha256']) == 64
    assert first['provenance'] == {'converted from': str(path)}
    capfd.readouterr()
    assert store.open_regions(path).meta == first and capfd.readouterr().err == ''

    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))  # touched only
    touched = store.open_regions(path).meta
    assert touched['stamp'] == first['stamp'] and touched['source']['mtime_ns'] == stat.st_mtime_ns + 10**9
    assert json.loads((path.with_suffix('.store') / 'meta.json').read_text()) == touched

    size = path.stat().st_size
    edit(path, 2, 'img_w', b'99')  # other content of the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 2 * 10**9))
    changed = store.open_regions(path)
    assert path.stat().st_size == size and changed.arrays['sizes'][1].tolist() == [61, 99]
    assert 'the file has changed' in capfd.readouterr().err

    meta = path.with_suffix('.store') / 'meta.json'
    meta.write_text(json.dumps(changed.meta | {'version': 0}))
    assert store.open_regions(path).meta['version'] == 1
    assert 'expected format version 1, found 0' in capfd.readouterr().err

    tsv.write(path, IMAGES[:2])
    assert len(store.open_regions(path)) == 2


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])


@pytest.mark.parametrize(('name', 'damage'), [
    ('features.npy', cut), ('features.npy', Path.unlink), ('order.npy', lambda file: np.save(file, np.arange(3))),
    ('offsets.npy', lambda file: np.save(file, np.arange(6))), ('meta.json', cut), ('meta.json', Path.unlink),
    ('meta.json', lambda file: file.write_text('{"version": 1}')), ('boxes.npy', lambda file: file.write_bytes(b'')),
])
def test_a_damaged_store_is_made_anew(path, name, damage):
    good = store.open_regions(path).meta
    folder = path.with_suffix('.store')
    damage(folder / name)
    path.rename(path.with_name('away.tsv'))
    with pytest.raises(RegionError, match=rf'{folder}/{name}: expected .*{path}, to make it anew from, is not there'):
        store.open_regions(path)
    path.with_name('away.tsv').rename(path)
    regions = store.open_regions(path)
    assert regions.meta['stamp'] != good['stamp']
    expect_batch(regions.gather(range(5)), IMAGES)
    path.unlink()
    expect_batch(store.open_regions(path).gather([1]), [IMAGES[1]])  # a whole store needs no TSV


def test_a_store_not_made_from_the_file_beside_it(path):
    store.write(path.with_suffix('.store'), IMAGES[:2], {'detector': 'mine'})
    with pytest.raises(RegionError, match=r'was not made from .*train_obj36\.tsv'):
        store.open_regions(path)
    path.unlink()
    for named in (path, path.with_suffix('.store')):
        assert store.open_regions(named).meta['provenance'] == {'detector': 'mine'}


def python(code: str, *arguments) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', code, *map(str, arguments)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=os.environ | {'PYTHONPATH': str(ROOT / 'src')})


def test_a_killed_writer_leaves_nothing_taken_for_whole(path):
    process = python('''
import os, sys
from regions import store, store_files
extend = store_files.Writer.extend
def die_after(self, *images):
    extend(self, *images)
    os.kill(os.getpid(), 9)
store_files.Writer.extend = die_after
store.open_regions(sys.argv[1])
''', path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    names = ['train_obj36.store', 'train_obj36.store.lock', 'train_obj36.store.tmp', 'train_obj36.tsv']
    assert sorted(p.name for p in path.parent.iterdir()) == names[1:]
    expect_batch(store.open_regions(path).gather(range(5)), IMAGES)
    assert sorted(p.name for p in path.parent.iterdir()) == [names[0], names[1], names[3]]


def test_two_processes_make_one_store(path):
    code = '''
import sys
from regions import store
print('ready', flush=True)
regions = store.open_regions(sys.argv[1])
print(regions.meta['stamp'], len(regions), regions.gather([2])['features'].shape)
'''
    lock = FileLock(f'{store.store_folder(path)}.lock')
    with lock:  # both find no store, and wait for this
        processes = [python(code, path) for _ in range(2)]
        for process in processes:
            assert process.stdout.readline() == 'ready\n'
    (out, errors), (other_out, other_errors) = [process.communicate(timeout=60) for process in processes]
    assert out == other_out == f"{store.open_regions(path).meta['stamp']} 5 (1, 4, {F})\n"
    assert (errors + other_errors).count('Making ') == 1


@contextlib.contextmanager
def without_root():
    """Rights to files count for root as well while this holds."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_read_only_folder():
    top = Path(tempfile.mkdtemp())  # pytest's tmp_path is closed to others than its owner
    try:
        top.chmod(0o755)
        folder, stores = top / 'features', top / 'stores'
        folder.mkdir()
        stores.mkdir()
        stores.chmod(0o777)
        path = folder / 'x.tsv'
        tsv.write(path, IMAGES)
        folder.chmod(0o555)
        with without_root():
            with pytest.raises(RegionError, match=r'x\.store: the region store cannot be written .*--storeRoot'):
                store.open_regions(path)
            regions = store.open_regions(path, stores)
            expect_batch(regions.gather(range(5)), IMAGES)
            assert regions.folder.parent == stores and regions.folder.name.startswith('features-x-')
            assert store.open_regions(path, stores).meta == regions.meta
        folder.chmod(0o755)
        made = store.open_regions(path).meta
        os.utime(path, ns=(1, 1))
        for closed in (folder / 'x.store', folder):
            closed.chmod(0o555)
        with without_root():  # touched only, and a meta.json that cannot say so
            assert store.open_regions(path).meta['stamp'] == made['stamp']
        assert json.loads((folder / 'x.store/meta.json').read_text()) == made
        for opened in (folder / 'x.store', folder):
            opened.chmod(0o755)
    finally:
        shutil.rmtree(top)


def test_stores_of_one_root_do_not_clash(tmp_path):
    root = tmp_path / 'root'
    folders = {store.store_folder(tmp_path / name, root) for name in ('a/x/t.tsv', 'b/x/t.tsv', 'a/x/u.tsv')}
    assert len(folders) == 3 and {folder.parent for folder in folders} == {root}
    assert store.store_folder(tmp_path / 'x/a.v1') != store.store_folder(tmp_path / 'x/a.v2')


# Real regions

def shared(function):
    for mark in needs_shared:
        function = mark(function)
    return function


@shared
def test_real_file_equals_csv_and_base64(tmp_path):
    csv.field_size_limit(2**30)
    with open(COCO, newline='') as file:
        items = list(csv.DictReader(file, tsv.FIELDS, delimiter='\t'))
    regions = store.open_regions(COCO, tmp_path)
    assert len(regions) == len(items) == 10 and regions.feature_size == 2048 and regions.max_regions == 36
    rows = regions.rows([item['img_id'] for item in items])
    assert rows.tolist() == list(range(10))
    batch, objects = regions.gather(rows), regions.objects(rows)
    assert batch['mask'].all() and batch['features'].shape == (10, 36, 2048)
    for i, item in enumerate(items):
        features = np.frombuffer(base64.b64decode(item['features']), np.float32).reshape(36, 2048)
        boxes = np.frombuffer(base64.b64decode(item['boxes']), np.float32).reshape(36, 4).copy()
        boxes[:, (0, 2)] /= int(item['img_w'])
        boxes[:, (1, 3)] /= int(item['img_h'])
        np.testing.assert_array_equal(batch['features'][i], features)
        np.testing.assert_array_equal(batch['boxes'][i], boxes)
        for name in store.OBJECTS:
            field, dtype = tsv.ARRAYS[name]
            np.testing.assert_array_equal(objects[name][i], np.frombuffer(base64.b64decode(item[field]), dtype))


@shared
def test_real_file_is_written_back_byte_for_byte(tmp_path):
    tsv.write(tmp_path / 'x.tsv', (one for _, one in tsv.read(COCO)))
    assert (tmp_path / 'x.tsv').read_bytes() == COCO.read_bytes()


# Conversion, in parts of a few lines

def contents(folder: Path) -> dict:
    """The bytes of a store's arrays, and what meta.json says of them but for the stamp and the source's file."""
    meta = json.loads((folder / 'meta.json').read_text())
    made_from = {key: meta['source'][key] for key in ('size', 'sha256')}
    kept = {key: value for key, value in meta.items() if key not in ('stamp', 'source', 'provenance')}
    return {path.name: path.read_bytes() for path in folder.glob('*.npy')} | {'meta': kept | made_from}


@pytest.fixture
def many(tmp_path):
    """A TSV of 60 images in 1 to 100 regions, and the contents of the store that is made of it at once."""
    path = tmp_path / 'many.tsv'
    tsv.write(path, [replace(image(number, 1 + number * 37 % 100), img_id=f'i{number * 7919 % 60}') for number in range(60)])
    made = contents(store.convert(path).folder)
    shutil.rmtree(path.with_suffix('.store'))
    return path, made


def test_many_blocks_make_the_same_bytes(many, monkeypatch):
    path, made = many
    monkeypatch.setattr(conversion, 'BLOCK', 4000)
    regions = store.convert(path)
    assert contents(regions.folder) == made
    expect_batch(regions.gather([59, 3]), [replace(image(number, 1 + number * 37 % 100)) for number in (59, 3)])


def test_faults_are_found_in_many_blocks_as_in_one(many, monkeypatch):
    path, _ = many
    for line in (2, 30, 59):
        edit(path, line, 'features', lambda old: old[:-4])
    edit(path, 41, 'img_id', b'i0')  # that of line 1
    messages = []
    for block in (1 << 20, 4000):
        monkeypatch.setattr(conversion, 'BLOCK', block)
        with pytest.raises(RegionError) as error:
            store.convert(path)
        messages.append(str(error.value))
    assert messages[0] == messages[1] and 'found 4 faulty and 56 good images' in messages[0]
    places = [line.split(': ')[0].strip() for line in messages[0].splitlines()[1:]]
    assert places == [f'{path}:{line}' for line in (2, 30, 41, 59)] and 'that of line 1;' in messages[0]
    assert sorted(p.name for p in path.parent.iterdir()) == ['many.store.lock', 'many.tsv']


KILLED = '''
import os, sys
from regions import conversion, store, store_files
conversion.BLOCK, conversion.CHECKPOINT = 4000, 1
extend, done = store_files.Writer.extend, 0
def die_after(self, *images):
    global done
    extend(self, *images)
    for column in self.columns.values():
        column.file.flush()  # what is on disk after the last checkpoint is to be cut off
    done += 1
    if self.saving and done > 12:
        self.saving.result()
        os.kill(os.getpid(), 9)
store_files.Writer.extend = die_after
store.convert(sys.argv[1])
'''


@pytest.mark.parametrize('ending', ['.tsv', '.zip'])
def test_a_killed_conversion_goes_on(many, monkeypatch, capfd, ending):
    path, made = many
    if ending == '.zip':
        zipped(path)
    process = python(KILLED, path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    note = json.loads((path.parent / 'many.store.tmp/progress.json').read_text())
    assert 0 < note['note']['lines'] < 60
    decoded = []
    decode = conversion.decode
    monkeypatch.setattr(conversion, 'decode', lambda *request: decoded.append(decode(*request)) or decoded[-1])
    regions = store.convert(path)
    assert sum(block.lines for block in decoded) == 60 - note['note']['lines']
    assert contents(regions.folder) == made and f'goes on after {note["note"]["lines"]} images' in capfd.readouterr().err
    assert not (path.parent / 'many.store.tmp').exists()
    assert sorted(p.name for p in regions.folder.iterdir()) == sorted([*(f'{name}.npy' for name in regions.arrays), 'meta.json'])


@pytest.mark.parametrize('change', ['content', 'time', 'dtype', 'column'])
def test_a_killed_conversion_of_something_else_is_begun_again(many, change):
    path, made = many
    process = python(KILLED, path)
    process.communicate()
    dtype = 'float32'
    stat = path.stat()
    if change == 'content':  # of the same size and time
        edit(path, 1, 'img_w', b'99')
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == 'time':
        os.utime(path, ns=(1, 1))
    elif change == 'column':  # what was put on disk is not there
        cut(path.parent / 'many.store.tmp/features.npy')
        os.truncate(path.parent / 'many.store.tmp/boxes.npy', 200)
    else:
        dtype = 'float16'
    regions = store.convert(path, dtype=dtype)
    again = contents(store.convert(shutil.copy(path, path.with_name('copy.tsv')), dtype=dtype).folder)
    assert contents(regions.folder) == again and (again == made) == (change in ('time', 'column'))


def zipped(path: Path, inside: str | None = None) -> None:
    """The TSV goes into a zip beside it."""
    with zipfile.ZipFile(path.with_suffix('.zip'), 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, inside or path.name)
        archive.writestr('readme.txt', 'not regions')
    path.unlink()


@pytest.mark.parametrize('inside', ['many.tsv', 'mscoco_imgfeat/many.tsv', 'other.tsv'])
def test_a_zip_beside_a_missing_file(many, capfd, inside):
    path, made = many
    text = path.read_bytes()
    zipped(path, inside)
    regions = store.open_regions(path)
    assert contents(regions.folder) == made and regions.meta['source']['name'] == 'many.zip'
    capfd.readouterr()
    assert store.open_regions(path).meta['stamp'] == regions.meta['stamp']
    os.utime(path.with_suffix('.zip'), ns=(1, 1))
    path.write_bytes(text)  # unpacked later: the same regions
    for _ in range(2):
        assert store.open_regions(path).meta['stamp'] == regions.meta['stamp']
    assert capfd.readouterr().err == '' and store.open_regions(path).meta['source']['name'] == 'many.tsv'


def test_bad_zips(path):
    good = path.read_bytes()
    edit(path, 2, 'img_w', b'wide')
    zipped(path)
    archive = path.with_suffix('.zip')
    with pytest.raises(RegionError, match=r'train_obj36\.zip/train_obj36\.tsv:2: image .*field "img_w"'):
        store.open_regions(path)
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-30])
    with pytest.raises(RegionError, match=r'train_obj36\.zip: expected a whole zip file, found none .*fetch it again'):
        store.open_regions(path)
    archive.write_bytes(whole[:200] + bytes(20) + whole[220:])
    with pytest.raises(RegionError, match=r'train_obj36\.zip/train_obj36\.tsv: cannot be read .*the zip is damaged'):
        store.open_regions(path)
    for names, found in (((), 'none'), (('a.tsv', 'b.tsv'), 'a.tsv, b.tsv')):
        with zipfile.ZipFile(archive, 'w') as opened:
            for name in names:
                opened.writestr(name, good)
        with pytest.raises(RegionError, match=rf'train_obj36\.zip: expected one train_obj36\.tsv in it, found {found};'):
            store.open_regions(path)


def test_half_precision(path):
    exact = contents(store.convert(path).folder)
    regions = store.convert(path, dtype='float16')
    assert regions.arrays['features'].dtype == np.float16 and regions.meta['dtypes']['features'] == '<f2'
    features = regions.gather(range(5))['features']
    assert features.dtype == np.float16
    for one, read in zip(IMAGES, features, strict=True):
        np.testing.assert_array_equal(read[:len(one.boxes)], one.features.astype(np.float16))
    assert store.open_regions(path).meta == regions.meta  # good enough to train with
    assert contents(store.convert(path).folder) == exact
    store.write(path.with_name('direct.store'), IMAGES, {}, dtype='float16')
    np.testing.assert_array_equal(store.RegionStore(path.with_name('direct.store')).gather(range(5))['features'], features)
    edit(path, 4, 'features', numbers('<f4', (7, 70000)))
    assert store.convert(path).arrays['features'].max() == 70000
    large = replace(IMAGES[0], features=np.full_like(IMAGES[0].features, -1e6))
    with pytest.raises(RegionError, match=r'tsv:4: image .*numbers up to 65504, which is what float16 can hold, found 70000;'):
        store.convert(path, dtype='float16')
    with pytest.raises(RegionError, match=r'image COCO_0x: .*up to 65504'):
        store.write(path.with_name('direct.store'), [large], {}, dtype='float16')
    path.unlink()
    with pytest.raises(RegionError, match=r'its features are float32; .* to make others from, is not there'):
        store.convert(path, dtype='float16')
    with pytest.raises(ValueError, match="expected float32 or float16, found 'int8'"):
        store.convert(path, dtype='int8')


def test_a_view_of_both_precisions_rounds_nothing(path, tmp_path):
    other = tmp_path / 'half.tsv'
    tsv.write(other, [replace(image(20, 3), img_id='half')])
    view = RegionView([store.convert(other, dtype='float16'), store.open_regions(path)])
    features = view.gather(view.rows(['half', IDS[1]]))['features']
    np.testing.assert_array_equal(features[1, :len(IMAGES[1].boxes)], IMAGES[1].features)
    np.testing.assert_array_equal(features[0, :3], image(20, 3).features.astype(np.float16))


def test_digests_of_the_arrays(path):
    regions = store.open_regions(path)
    for name, array in regions.arrays.items():
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        assert regions.meta['digests'][name] == digest


# Parts of a store, and a few images without one

def test_subset(path, tmp_path):
    regions = store.open_regions(path)
    other = tmp_path / 'b.tsv'
    tsv.write(other, [replace(image(20, 100), img_id='far'), IMAGES[0]])
    view = store.open_all([path, other])
    for whole in (regions, view):
        part = whole.subset([IDS[4], IDS[1]])
        assert len(part) == 2 and part.ids.tolist() == [IDS[4].encode(), IDS[1].encode()]
        assert part.rows([IDS[1], IDS[0], 'none', IDS[4]]).tolist() == [1, -1, -1, 0]
        expect_batch(part.gather([1, 0]), [IMAGES[1], IMAGES[4]])
        assert part.objects([1])['classes'].tolist() == [IMAGES[1].classes.tolist()]
        assert (part.feature_size, part.max_regions) == (F, whole.max_regions)
        with pytest.raises(IndexError, match='expected rows from 0 to 1'):
            part.gather([2])
        with pytest.raises(RegionError, match='expected regions of 3 images, found none of 2: a, b'):
            whole.subset(['a', IDS[0], 'b'])
    expect_batch(view.subset(['far', IDS[2]]).gather([0, 1]), [image(20, 100), IMAGES[2]])  # 100 and 4 regions
    assert len(regions.subset([])) == 0 and regions.subset([]).rows(IDS[:2]).tolist() == [-1, -1]


def test_reading_a_few(path):
    edit(path, 2, 'img_w', b'wide')  # nobody asks for it
    edit(path, 5, None, b'cut')  # after the last that is needed
    few = store.read_few(path, [set(IDS[2:]), {IDS[0], IDS[3], 'none'}], [1, 1])
    assert [img_id.decode() for img_id in few.ids] == [IDS[0], IDS[2]] and few.rows(IDS).tolist() == [0, -1, 1, -1, -1]
    expect_batch(few.gather([1, 0]), [IMAGES[2], IMAGES[0]])
    assert store.read_few(path, [{'none'}], [5]) is None
    with pytest.raises(RegionError, match=r'images asked for, found 1 faulty ones.*\n.*tsv:2: image .*"img_w"'):
        store.read_few(path, [set(IDS[:2])], [5])
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    path.with_name('x.tsv').write_bytes(path.read_bytes())
    zipped(path.with_name('x.tsv'))
    np.testing.assert_array_equal(store.read_few(path.with_name('x.tsv'), [{IDS[3]}], [1]).gather([0])['features'][0],
                                  IMAGES[3].features)
