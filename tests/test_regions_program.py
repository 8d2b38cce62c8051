"""run/regions.bash: what it finds, what it writes, and its exit status."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pytest
from conftest import ROOT, SHARED
from PIL import Image
from test_regions import COCO, IMAGES, edit, image, numbers, same, shared, with_probabilities, without_features

from explain import drawing
from regions import checks, importers, stats, store, tsv
from regions.class_names import ClassNames
from regions.importers import Importer
from regions.tsv import RegionError
from tools import regions


@pytest.fixture
def path(tmp_path):
    tsv.write(tmp_path / 'train2014_obj36.tsv', IMAGES)
    return tmp_path / 'train2014_obj36.tsv'


@pytest.fixture
def run(capsys):
    """run(*arguments): (exit status, standard output, standard error) of the program."""
    def run(*arguments):
        try:
            status = regions.main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


def test_the_launcher(path):
    def launch(*arguments):
        return subprocess.run(['bash', 'run/regions.bash', *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)

    help_text = launch('--help').stdout
    for command in ('convert', 'info', 'check', 'repair', 'stats', 'show', 'import'):
        assert f'\n    {command} ' in help_text
    assert launch().returncode == 2 and launch('mend').returncode == 2
    assert launch('check', path).returncode == 0
    edit(path, 2, 'img_w', b'wide')
    done = launch('check', path)
    assert done.returncode == 1 and f'{path}:2: image ' in done.stdout and 'Traceback' not in done.stderr


def test_convert_and_info(path, run):
    folder = path.with_suffix('.store')
    status, out, _ = run('info', path)
    assert status == 0 and '5 lines' in out and 'no store yet' in out
    status, out, _ = run('convert', path)
    assert status == 0 and out.startswith(f'{folder}: 5 images, 13 regions (1 to 4 an image) of 5 float32')
    digest = store.RegionStore(folder).meta['source']['sha256']
    for target in (path, folder):
        status, out, _ = run('info', target)
        assert status == 0 and digest in out and 'converted from' in out and '(13, 5)' in out
    assert run('convert', folder)[0] == 2 and run('info', path.with_name('none'))[0] == 1
    assert 'of 5 float16' in run('convert', path, '--dtype', 'float16')[1]
    assert run('check', folder)[0] == run('stats', folder, '--against', path)[0] == 0
    assert run('convert', path, '--dtype', 'float64')[0] == 2


def zipped(path):
    """The published form of a TSV: a zip beside where it was, with a folder inside."""
    archive = path.with_suffix('.zip')
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as file:
        file.write(path, f'mscoco_imgfeat/{path.name}')
    path.unlink()
    return archive


def test_a_published_zip_is_converted_and_its_store_checked(path, run):
    archive = zipped(path)
    assert '5 images' in run('convert', archive)[1]
    assert run('check', path.with_suffix('.store'))[0] == 0
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr(path.name, 'other')
    status, out, _ = run('check', path.with_suffix('.store'))
    assert status == 1 and 'key "source.sha256"' in out


def test_a_zip_is_read_as_the_tsv_in_it(path, run, tmp_path, monkeypatch):
    edit(path, 2, 'img_w', b'wide')
    raw = path.read_bytes()
    good = tmp_path / 'good.tsv'
    assert run('repair', path, '--out', good)[0] == 0
    whole = run('stats', good)[1].splitlines()[1:]
    archive = zipped(path)
    where = f'{archive}/mscoco_imgfeat/{path.name}'
    for named in (archive, path):  # a TSV that is missing is looked for in the zip beside it
        status, out, _ = run('check', named)
        assert status == 1 and out.startswith(f'{where}:2: image COCO_7x: field "img_w"') and '4 whole images, 1 fault;' in out
        status, out, _ = run('info', named)
        assert status == 0 and f'{where}: TSV of {len(raw):,} bytes, 5 lines' in out
        assert hashlib.sha256(raw).hexdigest() in out and f'no store yet ({path.with_suffix(".store")})' in out
        out = tmp_path / f'from_{named.suffix[1:]}.tsv'
        assert run('repair', named, '--out', out)[0] == 0 and out.read_bytes() == good.read_bytes()
        status, _, errors = run('stats', named)
        assert status == 1 and errors.startswith(f'regions.bash: error: {where}:2: ')
        # the faulty line is not asked for
        assert run('show', named, '--ids', IMAGES[3].img_id, '--out', tmp_path / 'drawn')[0] == 0
        status, _, errors = run('show', named, '--ids', IMAGES[1].img_id, '--out', tmp_path / 'drawn')
        assert status == 1 and errors.startswith(f'regions.bash: error: {where}:2: ')
    path.write_bytes(good.read_bytes())
    archive = zipped(path)
    monkeypatch.setitem(checks.PUBLISHED, 'train2014', 4)
    assert run('check', archive, '--published')[:2] == (0, f'{archive}: 4 whole images, 0 faults\n')
    assert run('stats', archive)[1].splitlines()[1:] == whole


def test_a_zip_that_is_damaged_in_the_middle(tmp_path, run):
    path = tmp_path / 'x.tsv'
    tsv.write(path, [replace(image(number, 40, 256), img_id=f'i{number}') for number in range(60)])  # several reads
    archive = zipped(path)
    packed = bytearray(archive.read_bytes())
    packed[-len(packed) // 5] ^= 0xff
    archive.write_bytes(packed)
    status, out, _ = run('check', archive)
    lines = out.splitlines()
    assert status == 1 and lines[-2].startswith(f'{archive}/mscoco_imgfeat/x.tsv: cannot be read (')
    assert 'the zip is damaged, fetch it again' in lines[-2]
    found = int(lines[-1].split(': ')[1].split()[0])
    assert 20 <= found <= 60
    # A byte that changed shows only in the zip's checksum at its end: of such a zip no line can be trusted.
    status, _, errors = run('repair', archive, '--out', tmp_path / 'y.tsv')
    assert status == 1 and 'cannot be read' in errors
    assert sorted(file.name for file in tmp_path.iterdir()) == ['x.zip']
    archive.write_bytes(packed[:-30])
    for command in ('check', 'info', 'stats'):
        status, _, errors = run(command, archive)
        assert status == 1 and f'{archive}: expected a whole zip file' in errors


def test_check_of_a_tsv_finds_all_faults_in_one_pass(path, run):
    assert run('check', path)[:2] == (0, f'{path}: 5 whole images, 0 faults\n')
    edit(path, 2, 'boxes', lambda old: old[:-3])
    edit(path, 4, 'features', numbers('<f4', (0, np.nan)))
    status, out, _ = run('check', path)
    lines = out.splitlines()
    assert status == 1 and [line.split(': ')[0] for line in lines] == [f'{path}:2', f'{path}:4', str(path)]
    assert '3 whole images, 2 faults' in lines[-1]
    path.write_bytes(b'')
    status, out, _ = run('check', path)
    assert status == 1 and 'found an empty file' in out


def digested(folder):
    """Put the digests of the arrays' bytes into meta.json, whoever made the store; returns them."""
    digests = {}
    for file in folder.glob('*.npy'):
        raw = file.read_bytes()
        assert raw[:8] == b'\x93NUMPY\x01\x00'
        digests[file.stem] = hashlib.sha256(raw[10 + int.from_bytes(raw[8:10], 'little'):]).hexdigest()
    change_meta(folder, digests=digests)
    return digests


def change_meta(folder, **keys):
    meta = json.loads((folder / 'meta.json').read_text()) | keys
    (folder / 'meta.json').write_text(json.dumps({key: value for key, value in meta.items() if value is not None}))


def damage(folder, name, change):
    array = np.load(folder / f'{name}.npy')
    change(array)
    np.save(folder / f'{name}.npy', array)


@pytest.mark.parametrize(('name', 'change', 'message'), [
    ('features', lambda array: array.__setitem__((4, 2), np.nan), 'row 2: image COCO_4x: field "features": expected finite'),
    ('boxes', lambda array: array.__setitem__((0, 0), 999), 'row 0: image COCO_0x: field "boxes": expected 0 <= x1'),
    ('classes', lambda array: array.__setitem__(0, -1), 'field "objects_id": expected ids of 0 and more'),
    ('sizes', lambda array: array.__setitem__((1, 0), 0), 'row 1: image COCO_7x: field "img_h"'),
    ('offsets', lambda array: array.__setitem__(2, 3), 'offsets.npy: expected increasing numbers'),
    ('offsets', lambda array: array.__setitem__(1, 2), None),
    ('order', lambda array: array.__setitem__(0, 1), 'order.npy: expected each row from 0 to 4 once'),
    ('ids', lambda array: array.__setitem__(1, array[0]), 'ids.npy: expected distinct ids'),
])
def test_check_of_a_store(path, run, name, change, message):
    folder = store.open_regions(path).folder
    digested(folder)
    assert run('check', folder)[:2] == (0, f'{folder}: 5 whole images, 0 faults\n')
    change_meta(folder, digests=None)
    damage(folder, name, change)
    status, out, _ = run('check', folder)
    if message is None:  # what is still a store in itself
        assert status in (0, 1)
    else:
        assert status == 1 and message in out and 'convert its TSV again' in out


@pytest.mark.parametrize('name', ['features', 'boxes', 'classes', 'attribute_conf', 'sizes', 'ids', 'order'])
def test_a_flipped_bit_in_a_store_is_noticed_by_its_digest(path, run, name):
    folder = store.open_regions(path).folder
    digested(folder)
    file = folder / f'{name}.npy'
    raw = bytearray(file.read_bytes())
    raw[-array_end(file)] ^= 1  # the lowest bit of the first number
    file.write_bytes(raw)
    status, out, _ = run('check', folder)
    assert status == 1 and out.startswith(f'{folder}/{name}.npy: expected the sha256 ') and 'convert its TSV again' in out
    if name in ('features', 'attribute_conf'):  # still finite, so that nothing else tells
        assert len(out.splitlines()) == 2 and '5 whole images, 1 fault' in out
        change_meta(folder, digests=None)
        status, out, _ = run('check', folder)
        assert status == 0 and 'has no digests' in out
    for digests in ([], {'features': 'none'}):
        change_meta(folder, digests=digests)
        status, out, _ = run('check', folder)
        assert status == 1 and 'meta.json: key "digests": expected an object with the sha256 of ' in out


def array_end(file):
    """How many bytes from the end the numbers of an .npy file begin."""
    return np.load(file).nbytes


def test_info_shows_one_digest_of_a_store(path, run):
    folder = store.open_regions(path).folder
    digests = digested(folder)
    assert len(digests) == 10
    lines = ''.join(f'{name}:{digests[name]}\n' for name in sorted(digests))
    assert f'  digest      {hashlib.sha256(lines.encode()).hexdigest()}\n' in run('info', folder)[1]
    change_meta(folder, digests=None)
    assert '  digest      made without digests\n' in run('info', path)[1]


def test_check_of_a_store_looks_at_its_tsv(path, run):
    folder = store.open_regions(path).folder
    edit(path, 2, 'img_w', b'99')
    status, out, _ = run('check', folder)
    assert status == 1 and 'meta.json: key "source.sha256": expected the digest of ' in out
    path.unlink()
    assert run('check', folder)[0] == 0
    (folder / 'meta.json').unlink()
    assert run('check', folder)[0] == 1


def test_check_published(path, run, monkeypatch):
    status, out, _ = run('check', path, '--published')
    assert status == 1 and 'expected the 82,783 images that were published under this name, found 5 whole' in out
    monkeypatch.setitem(checks.PUBLISHED, 'train2014', 5)
    assert run('check', path, '--published')[0] == 0
    assert run('check', store.open_regions(path).folder, '--published')[0] == 0
    mine = path.rename(path.with_name('mine.tsv'))
    edit(mine, 2, 'img_w', b'wide')
    status, out, errors = run('check', mine, '--published')
    assert (status, out) == (2, '') and 'expected a name that begins with train2014' in errors  # told before it is read


def test_check_questions(path, run, tmp_path):
    questions, pairs = tmp_path / 'q.json', tmp_path / 'n.json'
    questions.write_text(json.dumps([{'img_id': one.img_id} for one in IMAGES[1:]]))
    status, out, _ = run('check', path, '--questions', questions)
    assert status == 0 and '5 images with regions, 1 of them without questions: COCO_0x' in out
    questions.write_text(json.dumps([{'img_id': f'none{number}'} for number in range(7)]))
    pairs.write_text(json.dumps([{'img0': 'COCO_0x', 'img1': 'gone'}]))
    status, out, _ = run('check', path, '--questions', questions, pairs)
    assert status == 1 and 'for its 7 images, found none for 7: none0, none1, none2, none3, none4 and 2 more' in out
    assert 'found none for 1: gone' in out
    for text, message in (('{', 'incomplete or invalid json'),
                          ('{}', 'expected questions in a list or as json lines, found none'),
                          ('[{"img_id": 3}]', 'key "img_id": expected str, found 3'),
                          ('[{"img0": "a"}]', 'key "img1": expected str, found None')):
        questions.write_text(text)
        status, out, errors = run('check', path, '--questions', questions)
        assert (status, out) == (1, '') and message in errors  # told before the regions are read


def test_repair_writes_the_whole_lines_byte_for_byte(path, run, tmp_path):
    raw = path.read_bytes().splitlines(keepends=True)
    raw[1] = raw[1][:40] + b'\r\n'
    raw.insert(3, raw[0])
    raw[5] = raw[5].removesuffix(b'\r\n')
    path.write_bytes(b''.join(raw))
    out = tmp_path / 'good.tsv'
    status, text, _ = run('repair', path, '--out', out)
    assert status == 0 and f'{path}:2: ' in text and f'{path}:4: ' in text and '4 complete lines; 2 left out' in text
    assert out.read_bytes() == b''.join([raw[0], raw[2], raw[4], raw[5]])
    assert run('check', out)[0] == 0
    status, _, errors = run('repair', path, '--out', path / 'x.tsv')
    assert status == 1 and 'Not a directory' in errors
    for there in (out, path):
        before = there.read_bytes()
        status, _, errors = run('repair', path, '--out', there)
        assert status == 2 and 'is not overwritten' in errors and there.read_bytes() == before
    assert run('repair', path)[0] == 2
    path.write_bytes(b'nothing\n')
    assert run('repair', path, '--out', tmp_path / 'none.tsv')[0] == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ['good.tsv', path.name]


# Statistics

def many(change=lambda one: one, seed=0, count=40):
    """Images of a made-up detector: a mean of its own in each of 64 dimensions, 12 classes of uneven frequency."""
    means = np.random.default_rng(1).gamma(1, 1, 64)
    rng = np.random.default_rng(seed)
    for number in range(count):
        one = image(number, 8, f=64)
        yield change(replace(one, img_id=f'i{seed}-{number}', classes=np.minimum(rng.geometric(0.3, 8), 12) * 7,
                             features=np.maximum(0, means + rng.standard_normal((8, 64)) * 0.5).astype('f4')))


DIFFERENCES = {
    'none': (lambda one: one, r'correlation 1.00, 0.0\d standard.*\n  norms: 1.0\d\d .*\n.*\n  classes: 0.0'),
    'shuffled dimensions': (lambda one: replace(one, features=np.ascontiguousarray(one.features[:, ::-1])),
                            r'correlation -?0.[012]\d, [12]\.\d\d standard'),
    'halved': (lambda one: replace(one, features=one.features / 2), 'norms: 0.5'),
    'background column': (lambda one: replace(one, classes=one.classes + 1), 'classes: 1.00 apart'),
    'another size': (lambda one: replace(one, features=np.ascontiguousarray(one.features[:, :32])),
                     'features of 32 numbers here, of 64 there: a model cannot use both'),
}


@pytest.mark.parametrize(('change', 'message'), DIFFERENCES.values(), ids=DIFFERENCES)
def test_stats_side_by_side(tmp_path, run, change, message):
    tsv.write(tmp_path / 'a.tsv', many())
    tsv.write(tmp_path / 'c.tsv', many(change, seed=5))
    alone = [run('stats', tmp_path / name)[1] for name in ('c.tsv', 'a.tsv')]
    status, out, _ = run('stats', tmp_path / 'c.tsv', '--against', tmp_path / 'a.tsv')
    assert status == 0 and out.startswith(''.join(alone) + f'Against {tmp_path / "a.tsv"} (40 images):\n')
    assert re.search(message, out), out


def test_stats_are_those_of_numpy(tmp_path, run):
    images = list(many())
    tsv.write(tmp_path / 'a.tsv', images)
    found = stats.summarise(tmp_path / 'a.tsv')
    features = np.concatenate([one.features for one in images]).astype(np.float64)
    np.testing.assert_allclose(found.mean, features.mean(0))
    np.testing.assert_allclose(found.deviation, features.std(0))
    np.testing.assert_allclose(found.norm, np.linalg.norm(features, axis=1).mean())
    assert (found.zeros, found.images, found.regions) == ((features == 0).sum(), 40, 320)
    assert found.classes.total() == 320 and found.sides.sum(1).tolist() == [320] * 3
    folder = store.open_regions(tmp_path / 'a.tsv').folder
    np.testing.assert_array_equal(stats.summarise(folder).mean, found.mean)
    assert stats.summarise(folder, 10).images == 10
    (tmp_path / 'objects_vocab.txt').write_text('\n'.join(f'thing{number},synonym' for number in range(200)))
    status, out, _ = run('stats', folder, '--names', tmp_path)
    assert status == 0 and 'thing7 ' in out and 'attribute ' in out and 'synonym' not in out
    status, _, errors = run('stats', folder, '--names', tmp_path / 'none')
    assert status == 1 and 'objects_vocab.txt: no such file; expected text with one name per line' in errors
    (tmp_path / 'empty.tsv').touch()
    status, _, errors = run('stats', tmp_path / 'empty.tsv')
    assert status == 1 and 'empty.tsv: expected at least one image' in errors


# Pictures

def test_show_draws_each_chosen_image(path, run, tmp_path):
    folder = store.open_regions(path).folder
    photos, out = tmp_path / 'photos', tmp_path / 'out'
    photos.mkdir()
    for one in IMAGES:
        Image.new('RGB', (one.width * 2, one.height * 2), 'gray').save(photos / f'{one.img_id}.png')
    for target, extra in ((path, []), (folder, ['--photos', photos]), (folder, ['--most', '1'])):
        status, text, _ = run('show', target, '--ids', IMAGES[2].img_id, IMAGES[0].img_id, '--out', out, *extra)
        assert status == 0 and len(text.splitlines()) == 2
        for one in (IMAGES[0], IMAGES[2]):
            with Image.open(out / f'{one.img_id}.png') as drawn:
                assert max(drawn.size) == drawing.SIDE and abs(drawn.width / drawn.height - one.width / one.height) < 0.01
                assert len(drawn.getcolors(1 << 24)) > 2
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[0])
    for target in (path, folder):  # an id twice, in the file and in the command
        assert len(run('show', target, '--ids', *[IMAGES[4].img_id, IMAGES[0].img_id] * 2, '--out', out)[1].splitlines()) == 2
    status, _, errors = run('show', path, '--ids', 'zzz', IMAGES[0].img_id, '--out', out)
    assert status == 1 and 'found none of zzz; correct the ids' in errors
    Image.new('RGB', (300, 50)).save(photos / f'{IMAGES[0].img_id}.png')
    (photos / f'{IMAGES[1].img_id}.png').write_bytes(b'no picture')
    (photos / f'{IMAGES[2].img_id}.png').unlink()
    ids = [one.img_id for one in IMAGES[:4]]
    status, text, errors = run('show', path, '--ids', *ids, '--out', out, '--photos', photos)
    assert status == 1 and len(text.splitlines()) == 1
    for message in ('it is another picture', 'expected a picture', 'no such photograph'):
        assert message in errors
    assert run('show', path, '--ids', 'a', '--out', out, '--most', '0')[0] == 2


def test_labels_do_not_cover_each_other_while_there_is_room():
    taken = []
    for _ in range(36):  # all of one box
        taken.append(drawing._place([300, 300, 500, 500], (150, 24), (1280, 800), taken))
    for i, one in enumerate(taken):
        assert min(one[:2]) >= 0 and one[2] <= 1280 and one[3] <= 800
        assert all(drawing._overlap(one, other) == 0 for other in taken[:i])


def test_names_of_classes_in_a_device_are_refused(tmp_path):
    (tmp_path / 'objects_vocab.txt').symlink_to('/dev/zero')
    with pytest.raises(FileNotFoundError, match=r'objects_vocab\.txt: no such file'):
        ClassNames(tmp_path)


def test_file_names_of_strange_ids():
    assert drawing.file_name('../../etc/x') == '_.._etc_x.png' and '/' not in drawing.file_name('a/b')


# Import

def saved(one, **names):
    """An image's arrays under our names or the given ones."""
    arrays = {name: getattr(one, name) for name in tsv.COLUMNS if getattr(one, name) is not None}
    arrays['size'] = np.array([one.height, one.width])
    return {names.get(name, name): array for name, array in arrays.items()}


def as_npz(folder, images, **names):
    folder.mkdir()
    for one in images:
        np.savez(folder / f'{one.img_id}.npz', **saved(one, **names))
    return folder


def as_npy(folder, images):
    folder.mkdir()
    for one in images:
        for name, array in saved(one).items():
            np.save(folder / (f'{one.img_id}.npy' if name == 'features' else f'{one.img_id}.{name}.npy'), array)
    return folder


def as_groups(path, images):
    with h5py.File(path, 'w') as file:
        for one in images:
            group = file.create_group(one.img_id)
            for name, array in saved(one).items():
                if name != 'size':
                    group[name] = array
            group.attrs['height'], group.attrs['width'] = one.height, one.width
    return path


def as_padded(path, images):
    most = max(len(one.boxes) for one in images)
    with h5py.File(path, 'w') as file:
        file['ids'] = [one.img_id for one in images]
        file['num_boxes'] = [len(one.boxes) for one in images]
        for name in saved(images[0]):
            arrays = [saved(one)[name] for one in images]
            file[name] = np.stack([array if name == 'size' else np.pad(
                array, [(0, most - len(array))] + [(0, 0)] * (array.ndim - 1)) for array in arrays])
    return path


def as_ragged(path, images):
    with h5py.File(path, 'w') as file:
        file['ids'] = [one.img_id for one in images]
        file['offsets'] = np.cumsum([0, *(len(one.boxes) for one in images)])
        for name in saved(images[0]):
            arrays = [saved(one)[name] for one in images]
            file[name] = np.stack(arrays) if name == 'size' else np.concatenate(arrays)
    return path


MAKERS = {'npz': as_npz, 'npy': as_npy, 'groups.h5': as_groups, 'padded.h5': as_padded, 'ragged.h5': as_ragged}


@pytest.mark.parametrize('name', MAKERS)
def test_import_keeps_every_array(tmp_path, run, name):
    made = MAKERS[name](tmp_path / name, IMAGES)
    expected = sorted(IMAGES, key=lambda one: one.img_id) if name in ('npz', 'npy', 'groups.h5') else IMAGES
    assert run('import', made, '--out', tmp_path / 'x.tsv', '--madeBy', 'my detector')[0] == 0
    for (_, one), other in zip(tsv.read(tmp_path / 'x.tsv'), expected, strict=True):
        same(one, other)
    assert tsv.provenance(tsv.find(tmp_path / 'x.tsv'))['made by'] == 'my detector'
    assert run('import', made, '--out', tmp_path / 'y.store', '--madeBy', 'my detector')[0] == 0
    opened = store.RegionStore(tmp_path / 'y.store')
    assert opened.meta['provenance']['made by'] == 'my detector' and opened.meta['provenance']['imported from'] == str(made)
    for row, other in enumerate(expected):
        same(opened.image(row), other)
    for out in ('x.tsv', 'y.store', 'z.npz'):
        assert run('import', made, '--out', tmp_path / out)[0] == 2
    assert run('import', made, '--out', tmp_path / 'z.tsv', '--dtype', 'float16')[0] == 2
    assert run('import', made, '--out', tmp_path / 'z.store', '--dtype', 'float16')[0] == 0
    assert store.RegionStore(tmp_path / 'z.store').arrays['features'].dtype == np.float16


@pytest.mark.parametrize('name', MAKERS)
def test_import_of_class_probabilities(tmp_path, run, name):
    images = [with_probabilities(one) for one in IMAGES]
    exact = [replace(one, class_probabilities=one.class_probabilities.astype('f4')) for one in images]
    made = MAKERS[name](tmp_path / name, exact, **({'class_probabilities': 'cls_prob'} if name == 'npz' else {}))
    folder = tmp_path / 'y.store'
    status, out, _ = run('import', made, '--out', folder)
    assert status == 0 and 'of 5 float32, class_probabilities of 7' in out
    regions = store.RegionStore(folder)
    for one in images:
        same(regions.image(regions.rows([one.img_id])[0]), one)
    status, out, _ = run('info', folder)
    assert status == 0 and '  class_probabilities float16  (13, 7) ' in out
    assert run('check', folder)[:2] == (0, f'{folder}: 5 whole images, 0 faults\n')
    damage(folder, 'class_probabilities', lambda array: array.__setitem__((4, 2), 7))
    status, out, _ = run('check', folder)
    assert status == 1 and 'class_probabilities.npy: expected the sha256' in out
    assert 'field "class_probabilities": expected numbers from 0 to 1' in out
    status, _, errors = run('import', made, '--out', tmp_path / 'x.tsv')
    assert status == 1 and 'field "class_probabilities": a TSV has no such field' in errors and not (tmp_path / 'x.tsv').exists()


def test_probabilities_that_do_not_sum_to_1_and_features_of_images(tmp_path, run):
    images = [replace(with_probabilities(one), image_feature=np.float32([3, 4, 0, 0, 0])) for one in IMAGES]
    folder = tmp_path / 'x.store'
    store.write(folder, images, {})
    assert run('check', folder)[:2] == (0, f'{folder}: 5 whole images, 0 faults\n')
    assert 'of 5 float32, class_probabilities of 7, image_features of 5' in run('info', folder)[1]
    out = run('stats', folder)[1]
    assert '  whole      5 images have a feature of their own, of norm 5.000 on average' in out
    assert 'probabilities of 7 classes; they sum to 1 in 100.0 % of the regions' in out
    background = np.concatenate([one.class_probabilities for one in images])[:, 0].astype(float).mean()
    assert f'the first class has {100 * background:.1f} %' in out
    sums = np.ones(3), np.float32([1.2, 1.05, 0.8]), np.zeros(3)  # 2 of the second, all of the third
    for i, (one, factors) in enumerate(zip((images[0], images[3], image(9, 3)), sums, strict=True)):
        probabilities = np.full((3, 7), 1 / 7) * factors[:, None]
        images[i] = replace(one, class_probabilities=probabilities.astype('f2'), image_feature=np.zeros(5, 'f4'))
    store.write(folder, images[:3], {})
    status, out, _ = run('check', folder)
    assert status == 0 and '5 of 9 regions have class probabilities that do not sum to 1, and are not predicted' in out
    assert 'sum to 1 in 44.4 %' in run('stats', folder)[1]
    damage(folder, 'image_features', lambda array: array.__setitem__((1, 2), np.nan))
    status, out, _ = run('check', folder)
    assert status == 1 and 'image_features.npy: expected the sha256' in out
    assert 'field "image_feature": expected finite numbers' in out


def test_a_store_without_features(tmp_path, run):
    folder = tmp_path / 'x.store'
    store.write(folder, map(without_features, IMAGES), {})
    assert run('check', folder)[:2] == (0, f'{folder}: 5 whole images, 0 faults\n')
    status, out, _ = run('info', folder)
    assert status == 0 and '13 regions (1 to 4 an image) without features\n' in out
    status, out, _ = run('stats', folder, '--against', folder)
    assert status == 0 and 'box width' in out and 'norm' not in out and '  classes: 0.00 apart' in out
    assert run('show', folder, '--ids', IMAGES[0].img_id, '--out', tmp_path / 'drawn')[0] == 0
    damage(folder, 'boxes', lambda array: array.__setitem__((0, 0), 999))
    assert 'field "boxes": expected 0 <= x1' in run('check', folder)[1]


def test_provenance_goes_with_the_tsv(path, run):
    note = path.with_name('train2014_obj36.tsv.provenance.json')
    assert tsv.provenance(tsv.find(path)) == {} and '  provenance  null\n' in run('info', path)[1]
    note.write_text('{"made by": "my detector"}')
    for there in (path, zipped(path)):
        assert tsv.provenance(tsv.find(there)) == {'made by': 'my detector'}
        assert '  provenance  {"made by": "my detector"}\n' in run('info', there)[1]
    told = store.open_regions(path).meta['provenance']
    assert told == {'made by': 'my detector', 'converted from': str(path.with_suffix('.zip'))}
    for text, message in (('{', 'incomplete or invalid json ('), ('[]', 'an object, found []')):
        note.write_text(text)
        status, _, errors = run('info', path)
        assert status == 1 and f'{note}: ' in errors and 'expected json that says how ' in errors and message in errors


def test_the_example_of_regions_of_ones_own(tmp_path, monkeypatch):
    code = re.search(r'```python\n(.*?)```', (ROOT / 'data/README.md').read_text(), re.S)[1]
    detected = [(one.img_id, (one.height, one.width), one.boxes.astype(np.float64), one.features.tolist()) for one in IMAGES]
    detected = [(*rest, np.array(features)) for *rest, features in detected]  # float64, as numpy makes it
    (tmp_path / 'data/mine').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    exec(code, {'my_detector': lambda: detected})
    zeros = {'class_conf': 'f4', 'attribute_conf': 'f4', 'classes': 'i8', 'attributes': 'i8'}
    for (_, one), other in zip(tsv.read('data/mine/train_obj36.tsv'), IMAGES, strict=True):
        same(one, replace(other, **{name: np.zeros(len(other.boxes), dtype) for name, dtype in zeros.items()}))
    with pytest.raises(RegionError, match=r'"features": .* found float64 \(3, 5\); \.astype\(np\.float32\) converts it'):
        tsv.write('x.tsv', [replace(IMAGES[0], features=detected[0][3])])
    with pytest.raises(RegionError, match=r'"objects_id": .* found int32 \(3,\); \.astype\(np\.int64\) converts it'):
        tsv.write('x.tsv', [replace(IMAGES[0], classes=IMAGES[0].classes.astype(np.int32))])


def test_import_takes_other_names_and_types_and_less(tmp_path):
    folder = as_npz(tmp_path / 'npz', IMAGES[:1], features='x', boxes='bbox', classes='objects_id')
    path = folder / f'{IMAGES[0].img_id}.npz'
    same(next(iter(Importer(folder))), IMAGES[0])
    np.savez(path, features=IMAGES[0].features.astype('f2'), boxes=IMAGES[0].boxes.astype('f8'), height=60, width=[80])
    one = next(iter(Importer(folder)))
    assert (one.height, one.width) == (60, 80) and one.features.dtype == np.float32
    assert not one.classes.any() and not one.class_conf.any()


@pytest.mark.parametrize(('change', 'message'), [
    ({'features': None}, 'key "features": expected an array, found none of this name, nor of x'),
    ({'size': None}, 'key "size": expected the height and width'),
    ({'size': np.array([60.5, 80])}, 'key "size": expected height and width, two whole numbers'),
    ({'features': np.array(['a'])}, 'key "features": expected numbers, found <U1'),
    ({'classes': np.ones(3)}, 'key "classes": expected whole numbers, found float64'),
    ({'features': np.ones((3, 5, 1))}, r'key "features": expected a row per region, found an array of shape \(3, 5, 1\)'),
    ({'features': np.full((3, 5), 1e300)}, 'field "features": expected finite numbers'),
    ({'boxes': np.full((3, 4), 500.0)}, 'field "boxes": expected 0 <= x1'),
    ({'features': np.array(1)}, 'key "features": expected a row per region'),
    ({'classes': np.array([{}], object)}, 'holds pickled Python objects'),
])
def test_import_names_file_and_key(tmp_path, run, change, message):
    folder = as_npz(tmp_path / 'npz', IMAGES[:3])
    path = folder / f'{IMAGES[0].img_id}.npz'
    np.savez(path, **{name: array for name, array in (saved(IMAGES[0]) | change).items() if array is not None})
    (folder / f'{IMAGES[1].img_id}.npz').write_bytes(b'PK no archive')
    with pytest.raises(RegionError, match=f'found 2 faulty(.|\n)*{path}: {message}') as error:
        list(Importer(folder))
    assert f'{folder / IMAGES[1].img_id}.npz: ' in str(error.value)
    for out in ('x.tsv', 'x.store'):
        status, _, errors = run('import', folder, '--out', tmp_path / out)
        assert status == 1 and str(path) in errors and not (tmp_path / out).exists()


@pytest.mark.parametrize(('damaged', 'message'), [('packed', 'Error -3'), ('array', 'found a single array; name it .npy')])
def test_import_of_damaged_npz(tmp_path, damaged, message):
    folder = as_npz(tmp_path / 'npz', IMAGES[:2])
    path = folder / f'{IMAGES[0].img_id}.npz'
    if damaged == 'packed':
        np.savez_compressed(path, **saved(replace(IMAGES[0], features=np.zeros_like(IMAGES[0].features))))
        with zipfile.ZipFile(path) as archive:
            first = archive.infolist()[0]
        raw = bytearray(path.read_bytes())
        start = first.header_offset + 30 + int.from_bytes(raw[first.header_offset + 26:first.header_offset + 28], 'little')
        start += int.from_bytes(raw[first.header_offset + 28:first.header_offset + 30], 'little')
        raw[start] = 0xff  # a kind of block that there is not
        path.write_bytes(raw)
    else:
        with open(path, 'wb') as file:
            np.save(file, IMAGES[0].features)
    with pytest.raises(RegionError, match=f'found 1 faulty(.|\n)*{path}: .*{message}'):
        list(Importer(folder))


@pytest.mark.parametrize(('shape', 'size', 'says'), [
    ((3, 1 << 12), 3 << 14, 'key "features": expected at most 0 MB'), ((3, 10 ** 15), 0, 'does not fit in memory')])
def test_arrays_that_take_little_of_the_file_and_much_memory(tmp_path, monkeypatch, shape, size, says):
    monkeypatch.setattr(importers, 'MAX_ARRAY', 1 << 14)
    folder, good = as_npz(tmp_path / 'npz', IMAGES[:2]), {'features': b'', **saved(IMAGES[0])}
    path = folder / f'{IMAGES[0].img_id}.npz'
    np.savez(path, **{name: array for name, array in good.items() if name != 'features'})
    with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive, archive.open('features.npy', 'w') as file:
        np.lib.format.write_array_header_1_0(file, {'descr': '<f4', 'fortran_order': False, 'shape': shape})
        file.write(bytes(size))
    with pytest.raises(RegionError, match=f'found 1 faulty(.|\n)*{path}: .*{says}'):
        list(Importer(folder))


def test_datasets_of_hdf5_that_take_little_of_the_file_and_much_memory(tmp_path):
    with h5py.File(tmp_path / 'x.h5', 'w') as file:
        file['ids'], file['boxes'] = ['1', '2'], np.zeros((2, 3, 4), 'f4')
        file.create_dataset('features', (2, 3, 10 ** 11), 'f4', chunks=(1, 1, 1000))
    with pytest.raises(RegionError, match='key "features": expected at most 1024 MB'):
        list(Importer(tmp_path / 'x.h5'))


@pytest.mark.parametrize('make', [
    lambda file: file.create_group('g').__setitem__('h', file['/']), lambda file: file.__setitem__('a', h5py.SoftLink('/a')),
    lambda file: file.__setitem__('a', h5py.ExternalLink('/none', '/x')), lambda file: file.update(ids=3, features=3.0),
    lambda file: file.update(ids=[b'\xff'], features=[3.0]), lambda file: file.create_group('1').create_group('features')])
def test_links_and_odd_datasets_of_hdf5_are_an_error_that_names_the_file(tmp_path, make):
    with h5py.File(tmp_path / 'x.h5', 'w') as file:
        make(file)
    with pytest.raises(RegionError, match=r'x\.h5: '):
        list(Importer(tmp_path / 'x.h5'))


def test_text_of_files_is_escaped_by_info_and_import(path, run, tmp_path):
    store = tmp_path / 'x.store'
    run('import', as_npz(tmp_path / 'npz', IMAGES[:2]), '--out', store)
    meta = json.loads((store / 'meta.json').read_text())
    (store / 'meta.json').write_text(json.dumps(meta | {'source': {'name': 'a\x1b[2J', 'size': 1, 'sha256': 'x'}}))
    assert '\x1b' not in ''.join(map(str, run('info', store)))
    with zipfile.ZipFile(tmp_path / 'x.zip', 'w') as archive:
        archive.write(path, '\x1b[2J.tsv')
    assert r'\x1b[2J' in run('info', tmp_path / 'x.zip')[1]


def test_import_of_what_is_no_regions(tmp_path, run, monkeypatch):
    for name, message in (('none', 'found nothing there'), ('empty', 'expected files <id>.npz'),
                          ('text', 'or an HDF5 file, found neither')):
        if name == 'empty':
            (tmp_path / name).mkdir()
        elif name == 'text':
            (tmp_path / name).write_text('hello')
        status, _, errors = run('import', tmp_path / name, '--out', tmp_path / 'x.tsv')
        assert status == 1 and message in errors
    path = as_padded(tmp_path / 'x.h5', IMAGES)
    for key, value, message in (('boxes', np.zeros((2, 4, 4)), 'expected 5 rows'), ('num_boxes', [1], 'expected 5 numbers'),
                                ('ids', None, 'key "ids"'), ('size', np.zeros((5, 0)), 'key "size": expected height and width')):
        with h5py.File(as_padded(path, IMAGES), 'a') as file:
            del file[key]
            if value is not None:
                file[key] = value
        with pytest.raises(RegionError, match=message):
            list(Importer(path))
    with h5py.File(path, 'w') as file:
        file['ids'] = np.zeros(0, 'S1')
        file['features'] = np.zeros((0, 2, 4))
    with pytest.raises(RegionError, match='expected at least one image, found none'):
        list(Importer(path))
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(RegionError, match='needs h5py, which is not installed'):
        list(Importer(path))


# The ten real images

@shared
def test_real_regions_are_whole_and_named(run, tmp_path):
    path = tmp_path / COCO.name
    path.write_bytes(COCO.read_bytes())
    status, out, _ = run('check', path, '--questions', SHARED / 'coco_regions/vqa.json')
    assert status == 0 and '10 whole images, 0 faults' in out
    truck = 'COCO_train2014_000000387267'  # a red fire engine before a building
    status, out, _ = run('show', path, '--ids', truck, '--photos', SHARED / 'coco_regions/images', '--names',
                         SHARED / 'vocab', '--out', tmp_path)
    assert status == 0 and 'red truck' in out and 'black tire' in out and (tmp_path / f'{truck}.png').is_file()
    assert [len(names) for names in ClassNames(SHARED / 'vocab').lists.values()] == [1600, 400]
