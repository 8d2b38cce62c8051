"""The TSV reader finds every fault and names its line; the store holds exactly what the TSV held, or is not there."""

import base64
import contextlib
import csv
import errno
import hashlib
import io
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

from regions import store, store_files, tsv, tsv_lines
from regions.arrays import OBJECTS, RegionArrays, RegionView
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
    for name in tsv.COLUMNS:
        if getattr(other, name) is None:
            assert getattr(one, name) is None
        else:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)


def edit(path: Path, line: int, field: str | None, value) -> None:
    """Put `value`, bytes or a function of the old bytes, in a field (None: the complete line) of a line (from 1)."""
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
    'height no number': ('img_h', b'6_0', 'field "img_h": expected a whole number, found \'6_0\''),
    'height 0': ('img_h', b'0', 'field "img_h": expected a positive number of pixels, found 0'),
    'width negative': ('img_w', b'-80', 'field "img_w": expected a whole number, found \'-80\''),
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


def test_a_byte_order_mark_changes_nothing(path):
    images = [image for _, image in tsv.read(path)]
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    for one, other in zip(images, [image for _, image in tsv.read(path)], strict=True):
        same(one, other)
    assert store.open_regions(path).rows([images[0].img_id]) == [0]


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
    ({'features': image(0, f=6).features}, r'field "features": expected 5 numbers a region as in the first image, found 6'),
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
        objects = regions.read(np.array(rows), OBJECTS)
        assert sorted(objects) == sorted(OBJECTS)
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
    with pytest.raises(RegionError, match='was rewritten while it was in use'):
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
    assert view.read([3, 0], OBJECTS)['classes'].tolist() == [IMAGES[2].classes.tolist(), [*IMAGES[0].classes.tolist(), 0]]
    assert view.image_sizes([3, 0]).tolist() == [[IMAGES[row].height, IMAGES[row].width] for row in (2, 0)]
    same(view.image(3), IMAGES[2])
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
    assert lines[0].startswith(f'{path}: expected complete lines only, found 25 faulty and 15 good images')
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
    with pytest.raises(RegionError, match=rf'{folder}/{name}: .*expected .*{path}, to make it anew from, is not there'):
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


def test_a_killed_writer_leaves_nothing_taken_for_complete(path):
    process = python('''
import os, sys
from regions import store, store_files
add = store_files.StoreWriter.add
def add_and_die(self, image):
    add(self, image)
    os.kill(os.getpid(), 9)
store_files.StoreWriter.add = add_and_die
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
    limit = csv.field_size_limit(2**30)  # of the whole process
    with open(COCO, newline='') as file:
        items = list(csv.DictReader(file, tsv.FIELDS, delimiter='\t'))
    csv.field_size_limit(limit)
    regions = store.open_regions(COCO, tmp_path)
    assert len(regions) == len(items) == 10 and regions.feature_size == 2048 and regions.max_regions == 36
    rows = regions.rows([item['img_id'] for item in items])
    assert rows.tolist() == list(range(10))
    batch, objects = regions.gather(rows), regions.read(rows, OBJECTS)
    assert batch['mask'].all() and batch['features'].shape == (10, 36, 2048)
    for i, item in enumerate(items):
        features = np.frombuffer(base64.b64decode(item['features']), np.float32).reshape(36, 2048)
        boxes = np.frombuffer(base64.b64decode(item['boxes']), np.float32).reshape(36, 4).copy()
        boxes[:, (0, 2)] /= int(item['img_w'])
        boxes[:, (1, 3)] /= int(item['img_h'])
        np.testing.assert_array_equal(batch['features'][i], features)
        np.testing.assert_array_equal(batch['boxes'][i], boxes)
        for name in OBJECTS:
            field, dtype = tsv.ARRAYS[name]
            np.testing.assert_array_equal(objects[name][i], np.frombuffer(base64.b64decode(item[field]), dtype))


@shared
def test_real_file_is_written_back_byte_for_byte(tmp_path):
    tsv.write(tmp_path / 'x.tsv', (one for _, one in tsv.read(COCO)))
    assert (tmp_path / 'x.tsv').read_bytes() == COCO.read_bytes()


# Conversion

def contents(folder: Path) -> dict:
    """The bytes of a store's arrays, and what meta.json says of them but for the stamp and the source's file."""
    meta = json.loads((folder / 'meta.json').read_text())
    source = {key: meta['source'][key] for key in ('size', 'sha256')}
    kept = {key: value for key, value in meta.items() if key not in ('stamp', 'source', 'provenance', 'mtime_ns')}
    return {path.name: path.read_bytes() for path in folder.glob('*.npy')} | {'meta': kept | source}


@pytest.fixture
def many(tmp_path):
    """A TSV of 60 images in 1 to 100 regions, and the contents of the store that is made of it."""
    path = tmp_path / 'many.tsv'
    tsv.write(path, [replace(image(number, 1 + number * 37 % 100), img_id=f'i{number * 7919 % 60}') for number in range(60)])
    regions = store.convert(path)
    expect_batch(regions.gather([59, 3]), [image(number, 1 + number * 37 % 100) for number in (59, 3)])
    made = contents(regions.folder)
    assert made['meta']['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.rmtree(regions.folder)
    return path, made


def test_the_arrays_and_meta_of_a_store_are_those_of_format_1(path):
    """Pinned, so that stores made by other versions of this code stay the same."""
    made = contents(store.convert(path).folder)
    assert made['meta'] == {
        'version': 1, 'images': 5, 'regions': 13, 'feature_size': 5, 'min_regions': 1, 'max_regions': 4,
        'dtypes': {'classes': '<i8', 'class_conf': '<f4', 'attributes': '<i8', 'attribute_conf': '<f4', 'boxes': '<f4',
                   'features': '<f4', 'offsets': '<i8', 'sizes': '<i4', 'ids': '|S7', 'order': '<i8'},
        'digests': made['meta']['digests'], 'size': path.stat().st_size, 'sha256': hashlib.sha256(path.read_bytes()).hexdigest()}
    expected = {name: np.concatenate([getattr(one, name) for one in IMAGES]) for name in tsv.ARRAYS}
    ids = np.array([img_id.encode() for img_id in IDS])
    expected |= {'offsets': np.cumsum([0, *COUNTS]), 'sizes': np.int32([[one.height, one.width] for one in IMAGES]), 'ids': ids,
                 'order': np.argsort(ids)}
    assert sorted(made) == sorted([*(f'{name}.npy' for name in expected), 'meta'])
    for name, array in expected.items():
        file = io.BytesIO()
        np.lib.format.write_array(file, array, version=(1, 0))
        assert made[f'{name}.npy'] == file.getvalue(), name
        assert made['meta']['digests'][name] == hashlib.sha256(array.tobytes()).hexdigest()


def test_all_faulty_lines_are_listed_in_the_order_of_the_file(many):
    path, _ = many
    for line in (2, 30, 59):
        edit(path, line, 'features', lambda old: old[:-4])
    edit(path, 41, 'img_id', b'i0')  # that of line 1
    edit(path, 40, 'features', numbers('<f4', (7, 70000)))
    for dtype, lines in (('float32', (2, 30, 41, 59)), ('float16', (2, 30, 40, 41, 59))):
        with pytest.raises(RegionError) as error:
            store.convert(path, dtype=dtype)
        first, *listed = str(error.value).splitlines()
        assert f'found {len(lines)} faulty and {60 - len(lines)} good images' in first and 'that of line 1;' in str(error.value)
        assert [line.split(': ')[0].strip() for line in listed] == [f'{path}:{line}' for line in lines]
    assert sorted(p.name for p in path.parent.iterdir()) == ['many.store.lock', 'many.tsv']


def test_a_full_disk_is_reported_and_leaves_nothing(path, monkeypatch):
    def full(column, rows):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(store_files.Column, 'append', full)
    with pytest.raises(RegionError, match=r'store: the region store cannot be written .*No space left on device.*--storeRoot'):
        store.convert(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ['train_obj36.store.lock', 'train_obj36.tsv']


def test_conversion_of_a_growing_file(path, monkeypatch):
    check = tsv.check

    def grow(*arguments):
        with open(path, 'ab') as file:
            file.write(b'x')
        return check(*arguments)

    monkeypatch.setattr(tsv_lines, 'check', grow)
    with pytest.raises(RegionError, match=r'train_obj36\.tsv: changed while it was read; start again when it is complete'):
        store.convert(path)


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


def test_reading_a_few(path):
    edit(path, 2, 'img_w', b'wide')  # nobody asks for it
    edit(path, 5, None, b'cut')  # after the last that is needed
    few = store.read_few(path, [set(IDS[2:]), {IDS[0], IDS[3], 'none'}], [1, 1])
    assert [img_id.decode() for img_id in few.ids] == [IDS[0], IDS[2]] and few.rows(IDS).tolist() == [0, -1, 1, -1, -1]
    expect_batch(few.gather([1, 0]), [IMAGES[2], IMAGES[0]])
    assert store.read_few(path, [{'none'}], [5]) is None
    with pytest.raises(RegionError, match=r'images asked for, found 1 faulty.*\n.*tsv:2: image .*"img_w"'):
        store.read_few(path, [set(IDS[:2])], [5])
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    path.with_name('x.tsv').write_bytes(path.read_bytes())
    zipped(path.with_name('x.tsv'))
    np.testing.assert_array_equal(store.read_few(path.with_name('x.tsv'), [{IDS[3]}], [1]).gather([0])['features'][0],
                                  IMAGES[3].features)


# Optional columns, and stores without features

def with_probabilities(one: ImageRegions, classes: int = 7) -> ImageRegions:
    rng = np.random.default_rng(len(one.boxes))
    return replace(one, class_probabilities=rng.dirichlet(np.ones(classes), len(one.boxes)).astype(np.float16))


def without_features(one: ImageRegions) -> ImageRegions:
    return replace(one, features=None)


def test_class_probabilities(tmp_path):
    images = [with_probabilities(one) for one in IMAGES]
    store.write(tmp_path / 'x.store', images, {}, dtype='float16')
    regions = store.open_regions(tmp_path / 'x.store')
    assert regions.meta['optional_columns'] == {'class_probabilities': 7} and regions.size_of('class_probabilities') == 7
    assert regions.meta['version'] == 1 and regions.meta['dtypes']['class_probabilities'] == '<f2'
    same(regions.image(2), replace(images[2], features=images[2].features.astype('f2').astype('f4')))
    assert 'class_probabilities' not in regions.gather([2])
    array = regions.read([1, 2], ['class_probabilities'])['class_probabilities']
    assert array.shape == (2, 4, 7) and array.dtype == np.float16 and not array[0, 1:].any()
    np.testing.assert_array_equal(array[1], images[2].class_probabilities)
    few = RegionArrays.of_images('few', images[:2])
    store.write(tmp_path / 'plain.store', [replace(IMAGES[0], img_id='plain')], {})
    plain = store.RegionStore(tmp_path / 'plain.store')
    view = RegionView([few, regions])
    array = view.read([0, 4], ['class_probabilities'])['class_probabilities']
    np.testing.assert_array_equal(array[1], images[2].class_probabilities)
    np.testing.assert_array_equal(array[0, :3], images[0].class_probabilities)
    assert view.size_of('class_probabilities') == 7 and RegionView([few, plain]).size_of('class_probabilities') == 0
    with pytest.raises(RegionError, match=r'plain\.store: expected the column "class_probabilities", found attribute_conf, '):
        plain.read([0], ['class_probabilities'])
    with pytest.raises(RegionError, match='few: expected class_probabilities of 9 as in other, found 7'):
        RegionView([RegionArrays.of_images('other', [with_probabilities(IMAGES[0], 9)]), few])


@pytest.mark.parametrize(('change', 'message'), [
    (lambda array: array.astype(np.float32), r'an array of float16 \(1, 7\), found float32 \(1, 7\); \.astype\(np\.float16\)'),
    (lambda array: np.concatenate([array, array]), r'an array of float16 \(1, 7\), found float16 \(2, 7\)'),
    (lambda array: array + 1, 'expected numbers from 0 to 1, found'),
    (lambda array: array * np.float16(np.nan), 'expected finite numbers'),
    (lambda array: array[:, :3], 'expected 7 numbers a region as in the first image, found 3'),
    (lambda array: None, 'expected 7 numbers a region as in the first image, found 0'),
])
def test_faulty_class_probabilities_are_not_written(tmp_path, change, message):
    one = with_probabilities(IMAGES[1])
    images = [with_probabilities(IMAGES[0]), replace(one, class_probabilities=change(one.class_probabilities))]
    with pytest.raises(RegionError, match=rf'number 2 to be written\): field "class_probabilities": .*{message}'):
        store.write(tmp_path / 'x.store', images, {})
    assert not (tmp_path / 'x.store').exists()


def with_image_feature(one: ImageRegions) -> ImageRegions:
    return replace(one, image_feature=np.arange(F, dtype='f4') + len(one.boxes))


@pytest.mark.parametrize('dtype', ['float32', 'float16'])
@pytest.mark.parametrize('which', [(0, 1, 2, 3, 4), (0, 2), (3,), (4,), (1, 2)])  # the images that have such a feature
def test_image_features(tmp_path, which, dtype):
    images = [with_image_feature(one) if i in which else one for i, one in enumerate(IMAGES)]
    store.write(tmp_path / 'x.store', images, {}, dtype=dtype)
    regions = store.open_regions(tmp_path / 'x.store')
    assert regions.meta['optional_columns'] == {'image_features': F} and regions.meta['dtypes']['image_features'] == '<f4'
    assert regions.meta['version'] == 1 and regions.arrays['image_features'].shape == (5, F) and len(regions.digests) == 11
    few = RegionArrays.of_images('few', images)
    for i, one in enumerate(images):
        features = one.features.astype(dtype).astype('f4')
        mean = features.sum(0) / len(features)
        for other in (regions, RegionView([regions]), pickle.loads(pickle.dumps(regions)), few):
            expected = one.image_feature if i in which else mean
            np.testing.assert_allclose(other.image_features([i])[0], expected, rtol=0, atol=1e-6 if dtype == 'float32' else 1e-3)
            assert other.has_image_features and other.image_features([i]).dtype == np.float32
        np.testing.assert_array_equal(regions.image(i).image_feature, regions.image_features([i])[0], strict=True)
    assert regions.digest() != (plain := RegionArrays.of_images('plain', IMAGES)).digest()
    assert regions.digest([0, 4]) != plain.digest([0, 4]) and not plain.has_image_features
    if dtype == 'float32' and len(which) == 5:
        assert regions.digest([0, 4]) == few.digest([0, 4])
    array = np.load(tmp_path / 'x.store/image_features.npy', mmap_mode='r+')
    array[1, 2] += 1
    array.flush()
    with pytest.raises(RegionError, match=r'x\.store/image_features\.npy: expected the sha256'):
        store.RegionStore(tmp_path / 'x.store')


@pytest.mark.parametrize(('change', 'message'), [
    (lambda one: replace(one, image_feature=np.zeros(F)), r'an array of float32 \(5,\), as many .*, found float64 \(5,\)'),
    (lambda one: replace(one, image_feature=np.zeros(F + 1, 'f4')), r'an array of float32 \(5,\), .*found float32 \(6,\)'),
    (lambda one: replace(one, image_feature=np.full(F, np.nan, 'f4')), 'expected finite numbers'),
    (lambda one: without_features(with_image_feature(one)), 'expected none, since the regions have no features'),
])
def test_faulty_image_features_are_not_written(tmp_path, change, message):
    with pytest.raises(RegionError, match=rf'number 2 to be written\): field "image_feature": .*{message}'):
        store.write(tmp_path / 'x.store', [with_image_feature(IMAGES[0]), change(IMAGES[1])], {})
    assert not (tmp_path / 'x.store').exists()


def test_image_features_of_another_size(tmp_path):
    store.write(tmp_path / 'x.store', [with_image_feature(IMAGES[0])], {})
    meta = json.loads((tmp_path / 'x.store/meta.json').read_text())
    (tmp_path / 'x.store/meta.json').write_text(json.dumps(meta | {'optional_columns': {'image_features': F + 1}}))
    with pytest.raises(RegionError, match=r'key "optional_columns": expected .*image_features'):
        store.RegionStore(tmp_path / 'x.store')


def test_a_store_without_features(tmp_path):
    store.write(tmp_path / 'x.store', map(without_features, IMAGES), {'boxes': 'mine'})
    regions = store.open_regions(tmp_path / 'x.store')
    assert (regions.feature_size, regions.max_regions, len(regions)) == (0, 4, 5) and 'features' not in regions.meta['dtypes']
    assert not (tmp_path / 'x.store/features.npy').exists()
    whole = RegionArrays.of_images('whole', IMAGES)
    in_ram = RegionArrays.of_images('ram', [without_features(one) for one in IMAGES])
    for other in (regions, pickle.loads(pickle.dumps(regions)), in_ram):
        batch, expected = other.gather([3, 0, 1]), whole.gather([3, 0, 1])
        assert batch.keys() == {'boxes', 'mask'}
        np.testing.assert_array_equal(batch['boxes'], expected['boxes'])
        assert other.read([1], OBJECTS)['classes'].tolist() == [IMAGES[1].classes.tolist()]
    same(regions.image(2), without_features(IMAGES[2]))
    with pytest.raises(RegionError, match=r'x\.store: expected features of 5 as in whole, found 0'):
        RegionView([whole, regions])
    assert store.convert(tmp_path / 'x.tsv', dtype='float16').feature_size == 0  # there are none to be of another dtype
    for images in (IMAGES[:1] + [without_features(IMAGES[1])], [without_features(IMAGES[0]), IMAGES[1]]):
        with pytest.raises(RegionError, match=r'number 2 to be written\): field "features": expected [50] numbers a region'):
            store.write(tmp_path / 'y.store', images, {})
    with pytest.raises(RegionError, match=r'field "features": expected an array of float32 \(3, 5\), found NoneType'):
        tsv.check(without_features(IMAGES[0]), 5)


def test_what_a_tsv_cannot_hold(tmp_path):
    for change, message in (
            (with_probabilities, r'field "class_probabilities": a TSV has no such field; write a region store, or leave it out '
                                 r'\(dataclasses\.replace\(image, class_probabilities=None\)\)'),
            (with_image_feature, 'field "image_feature": a TSV has no such field; write a region store'),
            (without_features, 'field "features": expected an array, found none: a TSV always has features')):
        with pytest.raises(RegionError, match=message):
            tsv.write(tmp_path / 'x.tsv', map(change, IMAGES))
    assert not list(tmp_path.iterdir())
