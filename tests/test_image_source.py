"""Images as a data source: folder, list, zip and pixel store give the same pixels, whatever the number of workers and processes;
broken and changed images are named."""

import io
import os
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import batches
import dist
from files.json_files import DataError
from images import image_files, pictures, pixel_store
from images.pictures import PictureError
from images.source import ImagesOnDevice, open_source
from images.transforms import ALBEFTransform, VLBertTransform
from tools.images import main

SIZES = [(60, 40), (40, 60), (31, 47), (90, 35), (64, 64), (200, 150), (33, 80)]  # width, height
TRAINING = ALBEFTransform(32, (0.5, 1.0), True, True)
SMALL = VLBertTransform(longest=50, short=30)


def picture(width, height, seed=0):
    """A smooth picture, as JPEG stores it well."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def fill(folder):
    """Pictures a0.jpg, a1.png, ..., and b/turned.jpg, whose EXIF data turn it."""
    (folder / 'b').mkdir(parents=True)
    for i, size in enumerate(SIZES):
        picture(*size, seed=i).save(folder / f'a{i}.{"png" if i % 2 else "jpg"}')
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(70, 40, seed=9).save(folder / 'b/turned.jpg', exif=exif)
    return folder


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / 'pictures')


def zipped(folder, method=zipfile.ZIP_DEFLATED):
    path = folder.with_name(f'{folder.name}{method}.zip')
    with zipfile.ZipFile(path, 'w', method) as file:
        for member in sorted(folder.rglob('*.*')):
            file.write(member, member.relative_to(folder))
        file.writestr('__MACOSX/._a0.jpg', b'no picture')
        file.writestr('readme.txt', b'nor this')
    return path


def listed(folder):
    path = folder / 'list.txt'
    path.write_text(''.join(f'{member.relative_to(folder)}\n' for member in sorted(folder.rglob('*.[jp][pn]g'))))
    return path


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_folder_list_and_zip_are_the_same(folder):
    source = open_source(folder)
    others = [open_source(path) for path in (listed(folder), zipped(folder), zipped(folder, zipfile.ZIP_STORED))]
    names = ['turned', 'a3', 'unknown', 'a10', 'a0']
    rows = source.rows(names)
    assert (rows >= 0).tolist() == [True, True, False, False, True] and source.rows([]).shape == (0,)
    assert [source.ids[row].decode() for row in rows[rows >= 0]] == ['turned', 'a3', 'a0']
    assert source.image_sizes(source.rows(['turned', 'a3', 'a0'])).tolist() == [[70, 40], [35, 90], [40, 60]]
    everything = np.arange(len(source))
    for transform in (TRAINING, SMALL):
        batch = source.batch(everything, transform, 1, 0, everything)
        for other in others:
            assert len(other) == len(source) == len(SIZES) + 1
            assert same(batch, other.batch(other.rows([name.decode() for name in source.ids]), transform, 1, 0, everything))
    assert len({other.digest() for other in others} | {source.digest()}) == 1
    with zipfile.ZipFile(folder / 'none.zip', 'w') as file:
        file.writestr('readme.txt', b'no picture')
    with pytest.raises(DataError, match='expected pictures'):
        open_source(folder / 'none.zip')


def test_other_formats(tmp_path):
    (tmp_path / 'p').mkdir()
    for kind in ('gif', 'webp', 'tiff', 'bmp'):
        picture(30, 50).save(tmp_path / f'p/{kind}.{kind}')
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(30, 50).save(tmp_path / 'p/turned.png', exif=exif)
    source = open_source(tmp_path / 'p')
    assert source.sizes.tolist() == [[50, 30]] * 3 + [[30, 50], [50, 30]]  # sorted by path: turned.png before webp.webp
    assert source.batch(np.arange(5), ALBEFTransform(16))['pixels'].any((1, 2, 3)).all()


def test_several_sources_as_one_and_ids_of_paths(folder, tmp_path):
    other = fill(tmp_path / 'other')
    picture(50, 50, seed=5).save(other / 'a0.jpg')
    picture(50, 50, seed=6).save(other / 'new.jpg')
    both = open_source([zipped(folder), other])
    assert both.rows(['a0', 'new']).tolist() == [open_source(folder).rows(['a0'])[0], 2 * len(SIZES) + 2]
    assert both.image_sizes(both.rows(['a0', 'new'])).tolist() == [[40, 60], [50, 50]]  # of the first that has it
    row = both.rows(['new'])
    assert same(both.batch(row, SMALL), open_source(other).batch(open_source(other).rows(['new']), SMALL))
    assert open_source(folder, ids='path').rows(['b/turned', 'turned']).tolist() == [7, -1]
    picture(20, 20).save(folder / 'b/a0.jpg')
    with pytest.raises(DataError, match='a0, which is that of'):
        open_source(folder)


def test_a_missing_image_is_zero(folder):
    source = open_source(folder)
    rows = np.array([2, -1])
    batch, one = source.batch(rows, SMALL), source.batch(rows[:1], SMALL)
    assert all((batch[name][1] == 0).all() and np.array_equal(batch[name][0], one[name][0]) for name in batch)
    normalized = SMALL.normalize({name: torch.from_numpy(array) for name, array in batch.items()})
    assert (normalized['pixels'][1] == 0).all() and normalized['pixels'].dtype == torch.float32


class Pixels(torch.utils.data.Dataset):
    """What a dataset does with a source."""

    def __init__(self, path, transform=TRAINING):
        self.source, self.transform = open_source(path), transform

    def __getitem__(self, index):
        positions = index.first + np.arange(len(index.indices))
        batch = self.source.batch(index.indices, self.transform, 7, index.epoch, positions)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def to_device(self, batch):
        return self.transform.normalize(batch)


def epoch_pixels(dataset, workers=0, epoch=0, first_step=0, batch_size=4):
    options = SimpleNamespace(seed=7, batchSize=batch_size, accumulate=1, compile=False, numWorkers=workers)
    order = list(batches.training_batches(len(dataset.source), epoch, first_step, options))
    return [batch['pixels'].numpy() for batch in batches.load_batches(dataset, order, options, torch.device('cpu'))]


@pytest.mark.parametrize('transform', [TRAINING, VLBertTransform(longest=50, short=30)])
def test_batches_do_not_depend_on_workers_processes_and_resuming(folder, transform, monkeypatch):
    expected = epoch_pixels(Pixels(folder, transform), epoch=1)
    assert len(expected) == 2
    for workers in (2, 4):
        assert all(map(np.array_equal, epoch_pixels(Pixels(folder, transform), workers, epoch=1), expected))
    assert np.array_equal(epoch_pixels(Pixels(zipped(folder), transform), 2, epoch=1, first_step=1)[0],
                          epoch_pixels(Pixels(zipped(folder), transform), 0, epoch=1)[1])  # resumed
    monkeypatch.setattr(dist, 'world_size', lambda: 2)
    parts = []
    for rank in range(2):
        monkeypatch.setattr(dist, 'rank', lambda rank=rank: rank)
        parts.append(epoch_pixels(Pixels(folder, transform), epoch=1))
    for step, pixels in enumerate(expected):
        for one, place in zip((image for part in parts for image in part[step]), pixels, strict=True):
            _, h, w = np.minimum(one.shape, place.shape)  # padded to the largest of a process
            assert np.array_equal(one[:, :h, :w], place[:, :h, :w]) and not one[:, h:].any() and not place[:, :, w:].any()
    if transform is TRAINING:
        assert not all(map(np.array_equal, epoch_pixels(Pixels(folder), epoch=2), parts[1]))


def test_evaluation_has_no_random_part(folder):
    source, rows = open_source(folder), np.arange(4)
    assert same(source.batch(rows, TRAINING), source.batch(rows, ALBEFTransform(32)))
    assert not same(source.batch(rows, TRAINING, 0, 0, rows), source.batch(rows, TRAINING, 0, 1, rows))
    assert same(source.batch(rows[2:], TRAINING, 3, 1, rows[2:]),
                {name: array[2:] for name, array in source.batch(rows, TRAINING, 3, 1, rows).items()})


def test_images_that_change_are_named(folder):
    for path in (folder, zipped(folder)):
        source = open_source(path)
        row = source.rows(['a2'])
        before = source.batch(row, SMALL)
        if path == folder:
            picture(31, 47, seed=99).save(folder / 'a2.jpg')
        else:
            os.utime(path, (1, 1))
        with pytest.raises(PictureError, match=r'a2\.jpg: .*changed' if path == folder else r'8\.zip: .*changed'):
            source.batch(row, SMALL)
        assert same(open_source(path).batch(row, SMALL), before) == (path != folder)
    source = open_source(folder)
    (folder / 'a2.jpg').unlink()
    with pytest.raises(PictureError, match=r'a2\.jpg.*changed'):
        source.batch(source.rows(['a2']), SMALL)


def break_pictures(folder):
    """Makes four pictures of five unusable."""
    data = (folder / 'a5.png').read_bytes()
    (folder / 'a5.png').write_bytes(data[:len(data) // 2])
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
    noise.save(folder / 'cut.jpg')
    (folder / 'cut.jpg').write_bytes((folder / 'cut.jpg').read_bytes()[:3000])
    (folder / 'text.jpg').write_text('not a picture')
    (folder / 'empty.png').touch()
    return ['a5.png', 'cut.jpg', 'text.jpg', 'empty.png']


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_broken_images_are_listed_at_the_start(folder, kind, capsys):
    good, names = len(open_source(folder)), break_pictures(folder)
    path = folder if kind == 'folder' else zipped(folder)
    for _ in range(2):  # the index remembers the others
        with pytest.raises(PictureError, match=r'4 of 11 images cannot be used; .*--allowBroken') as caught:
            open_source(path)
        assert all(name in str(caught.value) for name in names)
    source = open_source(path, allow_broken=True)
    assert len(source) == good - 1 and source.rows(['cut', 'a5', 'text']).tolist() == [-1] * 3 and (source.sizes > 0).all()
    assert 'text.jpg: expected a picture' in capsys.readouterr().err
    source.batch(np.arange(len(source)), SMALL)
    assert main(['check', str(path)]) == 1
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and '11 images, 4 broken' in printed


def test_the_index_saves_measuring(folder, tmp_path, monkeypatch):
    sizes = open_source(folder).sizes
    index = tmp_path / 'pictures.index.npy'

    def measured():
        seen = []
        with monkeypatch.context() as patch:
            patch.setattr(image_files, '_size', lambda files, decoder, i, size=image_files._size: (
                seen.append(files.where(i)), size(files, decoder, i))[1])
            assert np.array_equal(open_source(folder).sizes, sizes)
        return [os.path.basename(name) for name in seen]

    assert measured() == []
    os.utime(folder / 'a3.png', (1, 1))
    assert measured() == ['a3.png'] and measured() == []
    index.write_bytes(index.read_bytes()[:-7])
    assert len(measured()) == len(sizes) and measured() == []
    index.write_bytes(b'\x93NUMPY no index')
    assert len(measured()) == len(sizes)
    index.unlink()
    open_source(folder, index_root=tmp_path / 'elsewhere')
    assert not index.exists() and len(list((tmp_path / 'elsewhere').glob('pictures-*.index.npy'))) == 1


# Pixel stores


def convert(source, out, *flags):
    return main(['convert', str(source), '--out', str(out), *flags])


def test_a_pixel_store_holds_what_the_models_read(folder, tmp_path, capsys):
    source, rows = open_source(folder), np.arange(len(SIZES) + 1)
    mirrored = rows % 2 == 1
    for name, flags, transform in (('square', ['--size', '32', '--square'], ALBEFTransform(32)),
                                   ('vlbert', ['--size', '30', '--longest', '50'], SMALL),
                                   ('large', ['--size', '999'], TRAINING)):
        out = tmp_path / f'{name}.pixels'
        assert convert(zipped(folder) if name == 'vlbert' else folder, out, *flags) == 0
        store = open_source(out)
        assert np.array_equal(store.image_sizes(rows), source.image_sizes(rows)) and np.array_equal(store.ids, source.ids)
        batch = source.batch(rows, transform, 3, 1, rows, mirrored)
        assert same(store.batch(rows, transform, 3, 1, rows, mirrored), batch)
        assert main(['check', str(out)]) == 0
        if not transform.random:
            resident = ImagesOnDevice(store, rows[1:], transform, 'cpu')
            prepared = resident.batch([2, -1, 1], mirrored[[2, 0, 1]])
            assert 'pixels' not in prepared
            moved = resident.to_device({key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                                        for key, value in prepared.items()})
            assert same({key: value.numpy() for key, value in moved.items()},
                        source.batch([2, -1, 1], transform, mirrored=mirrored[[2, 0, 1]]))
    with pytest.raises(ValueError, match='without random crops'):
        ImagesOnDevice(source, rows, TRAINING, 'cpu')
    assert convert(folder, tmp_path / 'short.pixels', '--size', '20') == 0
    store = open_source(tmp_path / 'short.pixels')
    assert store.parts[0].stored[store.rows(['a3', 'turned'])].tolist() == [[20, 51], [35, 20]]  # 35 x 90 and 70 x 40
    near = store.batch(rows, TRAINING, 3, 1, rows)['pixels'].astype(int) - source.batch(rows, TRAINING, 3, 1, rows)['pixels']
    assert np.abs(near[:, :, 4:-4, 4:-4]).mean() < 6  # the same crops, from fewer pixels


def test_a_pixel_store_that_is_older_than_its_images_is_refused(folder, tmp_path, capsys):
    out = tmp_path / 'x.pixels'
    assert convert(folder, out, '--size', '20') == 0
    expected = open_source(out).batch([1], SMALL)
    os.utime(folder / 'a1.png', (1, 1))
    assert same(open_source(out).batch([1], SMALL), expected)
    assert 'comparing their checksums' in capsys.readouterr().err
    open_source(out)
    assert not capsys.readouterr().err  # it has noted the new time
    data = (folder / 'a1.png').read_bytes()
    (folder / 'a1.png').write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with pytest.raises(PictureError, match=r'1 images have changed or are gone \(a1\)'):
        open_source(out)
    (folder / 'a1.png').unlink()
    picture(20, 20).save(folder / 'new.png')
    with pytest.raises(PictureError, match=r'\(a1\) and 1 are new \(new\)'):
        open_source(out)
    with pytest.raises(PictureError, match='named by --ids path, found those of --ids stem'):
        open_source(out, ids='path')
    os.rename(folder, tmp_path / 'gone')
    assert same(open_source(out).batch([1], SMALL), expected)
    break_pictures(tmp_path / 'gone')
    capsys.readouterr()
    assert convert(tmp_path / 'gone', out, '--size', '20') == 1 and 'cannot be used' in capsys.readouterr().err
    assert same(open_source(out).batch([1], SMALL), expected)  # the older one stays
    assert convert(tmp_path / 'gone', out, '--size', '20', '--allowBroken') == 0
    assert len(open_source(out)) == 7


def test_damage_to_a_pixel_store(folder, tmp_path, capsys):
    out = tmp_path / 'x.pixels'
    assert convert(folder, out, '--size', '20') == 0
    store, pixels, table = open_source(out), out / 'pixels.bin', (out / 'table.npy').read_bytes()
    data = pixels.read_bytes()
    pixels.write_bytes(data[:5000] + bytes([data[5000] ^ 255]) + data[5001:])
    assert main(['check', str(out)]) == 1 and '1 broken' in capsys.readouterr().out
    with pytest.raises(PictureError, match=r'x\.pixels: was changed while it was in use'):
        store.batch([0], SMALL)
    pixels.write_bytes(data[:-1])
    with pytest.raises(PictureError, match='make it again'):
        open_source(out)
    pixels.write_bytes(data)
    (out / 'table.npy').write_bytes(table[:-1] + bytes([table[-1] ^ 1]))
    with pytest.raises(PictureError, match='make it again'):
        open_source(out)
    (out / 'table.npy').write_bytes(table[:200])
    with pytest.raises(PictureError, match='expected the tables of a pixel store'):
        open_source(out)
    (out / 'meta.json').write_text('{"version": 1}')
    with pytest.raises(PictureError, match='key "source"'):
        open_source(out)


def test_an_interrupted_conversion_leaves_the_older_store(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'x.pixels'
    assert convert(folder, out, '--size', '20') == 0
    expected = open_source(out).batch([1], SMALL)

    def interrupted(work, items):
        yield from list(parallel(work, items))[:2]
        raise KeyboardInterrupt

    parallel = pixel_store.in_parallel
    monkeypatch.setattr(pixel_store, 'in_parallel', interrupted)
    assert convert(folder, out, '--size', '10') == 130
    assert same(open_source(out).batch([1], SMALL), expected)
    assert not list(tmp_path.glob('*.tmp'))


@pytest.mark.parametrize('flags', [['--size', '9', '--out', 'x'], ['--size', '9', '--square', '--longest', '10'],
                                   ['--size', '0'], ['--size', '9', '--longest', '8']])
def test_wrong_flags_of_convert(folder, tmp_path, flags):
    with pytest.raises(SystemExit) as caught:
        convert(folder, tmp_path / 'x.pixels', *flags)
    assert caught.value.code == 2


def test_jpegs_of_a_reduced_scale_look_the_same(tmp_path):
    (tmp_path / 'p').mkdir()
    picture(800, 600, seed=3).save(tmp_path / 'p/a.jpg', quality=95)
    source = open_source(tmp_path / 'p')
    for transform, positions in ((ALBEFTransform(32), None), (ALBEFTransform(32, (0.5, 1.0)), [5])):
        epoch = None if positions is None else 0
        exact = source.batch([0], transform, 0, epoch, positions)['pixels'].astype(int)
        reduced = source.batch([0], transform, 0, epoch, positions, reduced=True)['pixels']
        assert 0 < np.abs(exact - reduced).max() <= 8


# Damaged files


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz')
    kinds = {}
    for kind in ('JPEG', 'PNG', 'WEBP', 'GIF', 'TIFF'):
        file = io.BytesIO()
        picture(40, 30).save(file, kind)
        kinds[kind] = file.getvalue()
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.jpg', kinds['JPEG'])
        archive.writestr('b.png', kinds['PNG'])
    with pytest.MonkeyPatch.context() as patch:  # starts no processes, and writes no index, for each example
        patch.setattr(image_files, 'in_parallel', lambda work, items: (work(pictures._decoder, item) for item in items))
        patch.setattr(image_files, '_write_index', lambda files, index: None)
        yield folder, kinds | {'zip': file.getvalue()}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_damaged_files_are_an_error_that_names_them(files, data):
    folder, kinds = files
    kind = data.draw(st.sampled_from(sorted(kinds)))
    content = bytearray(kinds[kind])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=8)):
        content[place] = value
    content = content[:data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))]
    path = folder / ('x.zip' if kind == 'zip' else 'x.jpg')
    path.write_bytes(content)
    listed = path
    if kind != 'zip':
        listed = folder / 'list.txt'
        listed.write_text('x.jpg\n')
    try:
        source = open_source(listed)
        batch = source.batch(np.arange(len(source)), ALBEFTransform(16))
        assert batch['pixels'].shape == (len(source), 3, 16, 16)
    except (PictureError, DataError) as error:
        assert path.name in str(error)
