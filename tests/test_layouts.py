"""Regions in the layouts of other projects: what run/regions.bash import reads, and what is said about the others."""

import base64
import json
import pickle
import sys
import types
import zipfile
from dataclasses import replace
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file
from test_regions import IMAGES, image, same

from explain.attention import find_images
from files.json_files import DataError
from images.ids import find_pictures
from pretrain.program import warn_unlabelled
from regions import checks, image_regions, placement, readers, store, tsv, tsv_lines
from regions.importers import Importer
from regions.tsv import RegionError
from tools import regions

SIDES = {one.img_id: np.array([one.width, one.height] * 2, np.float32) for one in IMAGES}
NO_LABELS = {'classes': 'i8', 'attributes': 'i8', 'class_conf': 'f4', 'attribute_conf': 'f4'}


@pytest.fixture
def run(capsys):
    """run(*arguments): (exit status, all that the program printed)."""
    def run(*arguments):
        status = regions.main([str(argument) for argument in arguments])
        return status, ''.join(capsys.readouterr())

    return run


def without_labels(one):
    return replace(one, **{name: np.zeros(len(one.boxes), dtype) for name, dtype in NO_LABELS.items()})


def normalised(one):
    return replace(one, boxes=one.boxes / SIDES[one.img_id])


def lines(images, fields=tsv.FIELDS, dtypes=(), text='{}', **more):
    """TSV lines of images. dtypes: {field: dtype} other than usual; text: how base64 is written; more: {field: text}."""
    for one in images:
        arrays = {field: getattr(one, name).astype(dict(dtypes).get(field, dtype)) for name, (field, dtype) in tsv.ARRAYS.items()}
        columns = {field: text.format(base64.b64encode(array.tobytes()).decode()) for field, array in arrays.items()}
        columns |= {'img_id': one.img_id, 'img_h': one.height, 'img_w': one.width, 'num_boxes': len(one.boxes), **more}
        yield '\t'.join(str(columns[field]) for field in fields) + '\n'


def near(one, other):
    """As `same`, but boxes may be rounded."""
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    same(replace(one, boxes=other.boxes), other)


# ---- boxes that are no pixels

FORMS = {
    'normalised': lambda boxes, sides: boxes / sides,
    'xywh': lambda boxes, sides: np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
    'yxyx': lambda boxes, sides: boxes[:, [1, 0, 3, 2]],
    'cxcywh': lambda boxes, sides: np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1),
    'normalised,xywh': lambda boxes, sides: FORMS['xywh'](boxes / sides, sides),
}


@pytest.mark.parametrize('form', FORMS)
def test_boxes_in_other_forms_are_refused_and_import_converts_them(tmp_path, run, form):
    path, out = tmp_path / 'x.tsv', tmp_path / 'y.tsv'
    images = [image(number, 12) for number in range(3)]
    images = [replace(one, img_id=f'i{number}') for number, one in enumerate(images)]
    path.write_text(''.join(lines(
        replace(one, boxes=FORMS[form](one.boxes, np.array([one.width, one.height] * 2))) for one in images)))
    for arguments in (('check', path), ('convert', path), ('import', path, '--out', tmp_path / 'z.tsv')):
        status, printed = run(*arguments)
        assert status == 1 and f'import --boxes {form}' in printed.replace('--boxes normalised,cxcywh', '')
        assert 'remove' not in printed.split('import --boxes')[1]
    status, printed = run('import', path, '--boxes', form, '--out', out)
    assert status == 0 and run('check', out)[0] == 0
    for (_, one), other in zip(tsv.read(out), images, strict=True):
        near(one, other)
    assert run('import', out, '--boxes', 'xyz', '--out', tmp_path / 'z.tsv')[0] == 1
    if form == 'normalised':  # boxes in pixels are not multiplied
        status, printed = run('import', out, '--boxes', form, '--out', tmp_path / 'z.tsv')
        assert status == 1 and 'of boxes in pixels leave out --boxes normalised' in printed


def test_files_and_folders_that_only_import_reads_are_named(tmp_path, run):
    one, = IMAGES[:1]
    (tmp_path / 'npz').mkdir()
    arrays = {'features': one.features, 'boxes': one.boxes, 'size': [one.height, one.width]}
    np.savez(tmp_path / 'npz/x.npz', **arrays)
    with h5py.File(tmp_path / 'x.h5', 'w') as file:
        file.create_group('x').update(arrays)
    for name, form in (('npz', 'a folder of arrays'), ('npz/x.npz', 'a zip'), ('x.h5', 'HDF5')):
        status, printed = run('check', tmp_path / name)
        assert status == 1 and f'found {form}' in printed and f'import {tmp_path / name} --out' in printed
        assert 'copy the store again' not in printed and 'damaged' not in printed
        assert run('import', tmp_path / name, '--out', tmp_path / f'{name}.tsv')[0] == 0
    with pytest.raises(RegionError, match=r'found another folder; of arrays, bash run/regions.bash import'):
        store.open_regions(tmp_path / 'npz')


def test_transposed_features_are_not_cut_like_padding(tmp_path):
    one = image(0, 4)
    arrays = {'bbox': one.boxes, 'num_bbox': len(one.boxes), 'image_h': one.height, 'image_w': one.width}
    np.savez(tmp_path / 'x.npz', x=np.ones((9, len(one.boxes)), np.float32), **arrays)
    with pytest.raises(RegionError, match='save it transposed'):
        list(Importer(tmp_path))
    np.savez(tmp_path / 'x.npz', x=np.ones((9, 5), np.float32), **arrays)  # padded
    assert [read.features.shape for read in Importer(tmp_path)] == [(len(one.boxes), 5)]


@pytest.mark.parametrize('more, message', [
    ({'objects_conf': base64.b64encode(np.full(2, 93, '<f4')).decode()}, 'expected confidences from 0 to 1, found 93'),
    ({'img_h': '60.0'}, "expected a whole number, found '60.0'")])
def test_a_fault_of_all_lines_says_what_to_do_but_not_to_remove(tmp_path, run, more, message):
    path = tmp_path / 'x.tsv'
    path.write_text(''.join(lines([replace(image(number, 2), img_id=f'i{number}') for number in range(3)], **more)))
    for arguments in (('check', path), ('import', path, '--out', tmp_path / 'z.tsv')):
        status, printed = run(*arguments)
        assert status == 1 and message in printed and 'correct it where the file was made' in printed
        assert 'remove' not in printed


def test_exchanged_height_and_width(tmp_path, run):
    path, out = tmp_path / 'x.tsv', tmp_path / 'y.tsv'
    path.write_text(''.join(lines(replace(one, height=one.width, width=one.height, boxes=np.array(
        [[0, 0, one.width, one.height]] * len(one.boxes), np.float32)) for one in IMAGES)))
    status, printed = run('check', path)
    assert status == 1 and printed.count('--swapSize') == 1
    assert run('import', path, '--swapSize', '--out', out)[0] == 0
    assert [(one.height, one.width) for _, one in tsv.read(out)] == [(one.height, one.width) for one in IMAGES]


def test_normalised_boxes_are_refused_wherever_regions_are_written_or_opened(tmp_path, monkeypatch, run):
    images = [normalised(one) for one in IMAGES]
    for write in (tsv.write, partial(store.write, provenance={})):
        with pytest.raises(RegionError, match=r'image COCO_0x .*"boxes": expected pixels of an image of 80 x 60, found only'):
            write(tmp_path / 'x', images)
    with monkeypatch.context() as patch:  # a store that an older version made
        patch.setattr(image_regions, '_normalised', lambda *_: False)
        store.write(tmp_path / 'x.store', images, {})
    with pytest.raises(RegionError, match='the first images: expected pixels'):
        store.open_regions(tmp_path / 'x.store')
    status, printed = run('check', tmp_path / 'x.store')
    assert status == 1 and '--boxes normalised' in printed and 'remove the store' not in printed
    assert run('import', tmp_path / 'x.store', '--boxes', 'normalised', '--out', tmp_path / 'y.store')[0] == 0
    for row, other in enumerate(IMAGES):
        near(store.open_regions(tmp_path / 'y.store').image(row), other)


@st.composite
def valid_boxes(draw):
    """(boxes, height, width) as a detector may return them: tiny ones in a corner, placeholders, rounding."""
    height, width = draw(st.integers(1, 900)), draw(st.integers(1, 900))
    kinds = draw(st.lists(st.sampled_from(['tiny', 'placeholder', 'whole', 'any']), max_size=6))
    boxes = {'tiny': [0, 0.1, 0.7, 0.9], 'placeholder': [0, 0, 1, 1], 'whole': [0, 0, width + 0.4, height],
             'any': [width / 3, height / 4, width / 2, height / 2]}
    kinds = [kind for kind in kinds if kind != 'tiny' or 'whole' in kinds or 'any' in kinds] or ['whole']
    return np.array([boxes[kind] for kind in kinds], np.float32), height, width


@given(valid_boxes())
@settings(max_examples=300, deadline=None)
def test_valid_boxes_are_no_faults(given_boxes):
    boxes, height, width = given_boxes
    if max(height, width) <= image_regions.SMALL or boxes.max() > 1.1 or (boxes == boxes.round()).all():
        assert image_regions.box_fault(boxes, height, width) is None


@pytest.mark.parametrize(('change', 'message'), [
    ({'class_conf': [0.5, 87, 0.1]}, '"objects_conf": expected confidences from 0 to 1, found 87 in region 1'),
    ({'attribute_conf': [0.5, 0.1, -3]}, '"attrs_conf": expected confidences from 0 to 1, found -3 in region 2'),
])
def test_impossible_values_are_named_with_line_and_region(tmp_path, run, change, message):
    path = tmp_path / 'x.tsv'
    change = {name: np.array(value, np.float32) for name, value in change.items()}
    path.write_text(''.join(lines([IMAGES[1], replace(IMAGES[0], **change)])))
    status, printed = run('check', path)
    assert status == 1 and f'{path}:2: image COCO_0x: field {message}' in printed


def test_check_warns_of_a_file_without_labels_features_and_areas(tmp_path, run):
    path = tmp_path / 'x.tsv'
    blank = [replace(without_labels(one), features=one.features * 0, boxes=one.boxes * 0) for one in IMAGES]
    tsv.write(path, blank)
    status, printed = run('check', path)
    for text in ('no region has classes', 'no region has attributes', 'all features are 0', 'no box has an area'):
        assert status == 0 and text in printed
    tsv.write(path, [replace(IMAGES[0], img_id=f'i{i}', width=4000, height=4000) for i in range(10)])
    assert 'no box reaches further than ' in run('check', path)[1]
    store.write(tmp_path / 'x.store', IMAGES, {})
    assert 'no ' not in run('check', tmp_path / 'x.store')[1]


@pytest.mark.parametrize(('change', 'warnings'), [
    (lambda one: one, []), (without_labels, ['no region has classes', 'no region has attributes']),
    (lambda one: replace(one, classes=one.classes * 0 + 3), ['all regions have classes of the same number, 3'])])
def test_pretraining_warns_of_regions_without_classes(tmp_path, capsys, change, warnings):
    store.write(tmp_path / 'x.store', map(change, IMAGES), {})
    warn_unlabelled(store.RegionStore(tmp_path / 'x.store'), 'obj,attr,feat')
    printed = capsys.readouterr().out
    assert printed.count('Warning') == len(warnings) and all(text in printed for text in warnings)
    warn_unlabelled(store.RegionStore(tmp_path / 'x.store'), 'feat')
    assert not capsys.readouterr().out


# ---- TSV

SIX = ('img_id', 'img_w', 'img_h', 'num_boxes', 'boxes', 'features')
SHUFFLED = ('features', 'note', *tsv.FIELDS[:-1])
LAYOUTS = {  # name: (fields, other arguments of `lines`, first line, what import says)
    'six columns': (SIX, {}, '', 'read as 6 columns as of the original bottom-up attention'),
    'eight columns': ((*SIX, 'a', 'b'), {'a': 'x', 'b': ''}, '', 'original bottom-up attention, of which the first 6 are: '),
    'leading columns': (('a', 'b', 'a', *tsv.FIELDS), {'a': 1, 'b': 'words'}, '', 'read as 13 columns, of which the last 10 are'),
    'trailing column': ((*tsv.FIELDS, 'a'), {'a': 'caption'}, '', 'read as 11 columns, of which the first 10 are'),
    'header': (tsv.FIELDS, {}, '\t'.join(tsv.FIELDS), 'read as a header line'),
    'header in another order': (SHUFFLED, {'note': 'x'}, '#' + '\t'.join(SHUFFLED).replace('img_id', 'image_id').replace(
        'img_h', 'image_h'), ', without note'),
    'header of six': (SIX, {'text': "b'{}'"}, '\t'.join(SIX), "a header line"),
    'bytes': (tsv.FIELDS, {'text': "b'{}'"}, '', "read as arrays written as b'...'"),
    'quotes': (tsv.FIELDS, {'text': '"{}"'}, '', 'read as arrays written as "'),
    'int32': (tsv.FIELDS, {'dtypes': {'objects_id': 'i4', 'attrs_id': 'i2'}}, '', 'objects_id of int32; attrs_id of int16'),
    'float64': (tsv.FIELDS, {'dtypes': {'boxes': 'f8', 'features': 'f8', 'objects_conf': 'f8'}}, '', 'boxes of float64'),
    'float16': (tsv.FIELDS, {'dtypes': {'features': 'f2', 'boxes': 'f2'}}, '', 'boxes of float16; features of float16'),
    'several': (SIX, {'text': "b'{}'", 'dtypes': {'boxes': 'f8', 'features': 'f8'}}, '', "6 columns"),
}


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_tsv_of_another_layout_is_named_once_and_imported(tmp_path, run, name):
    fields, arguments, first, said = LAYOUTS[name]
    path, out = tmp_path / 'x.tsv', tmp_path / 'y.tsv'
    path.write_text((f'{first}\n' if first else '') + ''.join(lines(IMAGES, fields, **arguments)))
    for command in (('check', path), ('stats', path), ('convert', path)):
        status, printed = run(*command)
        assert status == 1 and printed.count('is a TSV of another layout') == 1 and printed.count('run/regions.bash import') == 1
        assert 'damaged' not in printed and 'cut off' not in printed
    status, printed = run('import', path, '--out', out)
    assert status == 0 and said in printed and ('no classes' in printed) == (fields == SIX or fields == (*SIX, 'a', 'b'))
    for (_, one), other in zip(tsv.read(out), IMAGES, strict=True):
        if name == 'float16':
            other = replace(other, boxes=other.boxes.astype('f2').astype('f4'), features=other.features.astype('f2').astype('f4'))
        same(one, other if 'objects_id' in fields else without_labels(other))
    assert said in ' '.join(tsv.provenance(tsv.find(out))['notes'])


@pytest.mark.parametrize('dtype', ['f2', 'f8'])
def test_features_in_another_precision(tmp_path, run, dtype):
    path, images = tmp_path / 'x.tsv', [image(number, f=64) for number in range(5)]
    images = [replace(one, img_id=f'i{i}', features=np.maximum(one.features, 0)) for i, one in enumerate(images)]
    path.write_text(''.join(lines(images, dtypes={'features': dtype})))
    status, printed = run('check', path)
    assert status == 0 and 'half or double precision' in printed
    status, printed = run('import', path, '--out', tmp_path / 'y.tsv')
    assert status == 0 and f'read as features of {np.dtype(dtype)}' in printed
    for (_, one), other in zip(tsv.read(tmp_path / 'y.tsv'), images, strict=True):
        same(one, replace(other, features=other.features.astype(dtype).astype('f4')))
    assert 'precision' not in run('check', tmp_path / 'y.tsv')[1]


def test_a_damaged_line_is_no_layout(tmp_path, run):
    good = list(lines(IMAGES))
    for bad in ('x\ty\t' + good[0], '\t'.join(tsv.FIELDS[:4]) + '\n', good[0][:-40] + '\n'):
        (tmp_path / 'x.tsv').write_text(''.join([bad, *good[1:]]))
        status, printed = run('check', tmp_path / 'x.tsv')
        assert status == 1 and 'x.tsv:1: image ' in printed and '4 whole images, 1 fault' in printed


def test_an_unknown_layout_is_said_once(tmp_path, run):
    path = tmp_path / 'x.tsv'
    path.write_text(''.join(f'i{number}\t{{"features": {number}}}\n' for number in range(40)))
    status, printed = run('check', path)
    assert status == 1 and '40 lines have the same fault' in printed and '1 fault' in printed and len(printed.splitlines()) == 2
    assert 'expected 10 fields separated by tabs, found 2; the columns are img_id, img_h' in printed and 'cut off' not in printed
    path.write_text(path.read_text() + ''.join(lines(IMAGES)))  # 40 lines that are alike, and then good ones
    status, printed = run('check', path)
    assert status == 1 and '20 more lines have faults like these' in printed and '5 whole images, 21 faults' in printed
    path.write_text('')
    assert 'found an empty file' in run('check', path)[1]


# ---- HDF5

def test_hdf5_with_short_names_keeps_classes_and_names_what_is_not_read(tmp_path, run):
    with h5py.File(tmp_path / 'x.h5', 'w') as file:
        for one in IMAGES:
            group = file.create_group(f'set/{one.img_id}')  # an id with a folder is a group in a group
            for key, name in {'obj_id': 'classes', 'obj_conf': 'class_conf', 'attr_id': 'attributes', 'boxes': 'boxes',
                              'attr_conf': 'attribute_conf', 'features': 'features', 'scores': 'class_conf'}.items():
                group[key] = getattr(one, name)
            group['img_h'], group['img_w'], group['pooled'] = one.height, one.width, [1.0]
    status, printed = run('import', tmp_path / 'x.h5', '--out', tmp_path / 'y.store')
    assert status == 0 and '  not read: scores (but obj_conf), pooled\n' in printed
    regions = store.open_regions(tmp_path / 'y.store')
    for one in IMAGES:
        same(regions.image(regions.rows([f'set/{one.img_id}'])[0]), replace(one, img_id=f'set/{one.img_id}'))


def rows_of(path, images, **more):
    """An HDF5 file of all images, without their ids."""
    most = max(len(one.boxes) for one in images)
    with h5py.File(path, 'w') as file:
        for key, name in {'image_features': 'features', 'image_bb': 'boxes'}.items():
            file[key] = np.stack([np.pad(getattr(one, name), [(0, most - len(one.boxes)), (0, 0)]) for one in images])
        for key, value in more.items():
            file[key] = value
    return path


INDICES = {
    'x_ids.json': lambda: {one.img_id: i for i, one in enumerate(IMAGES)}, 'x.json': lambda: [one.img_id for one in IMAGES],
    'x_info.json': lambda: {one.img_id: {'idx': i, 'width': one.width, 'height': one.height, 'objectsNum': len(one.boxes)}
                            for i, one in enumerate(IMAGES)}}


@pytest.mark.parametrize('name', [*INDICES, 'lines.txt'])
def test_hdf5_with_ids_in_another_file(tmp_path, run, name):
    counts, sizes = [len(one.boxes) for one in IMAGES], {'image_h': [one.height for one in IMAGES],
                                                         'image_w': [one.width for one in IMAGES]}
    more = {} if name == 'x_info.json' else {'num_boxes': counts, **sizes}
    path = rows_of(tmp_path / 'x.h5', IMAGES, **more)
    status, printed = run('import', path, '--out', tmp_path / 'none.tsv')
    assert status == 1 and 'key "ids": expected the image ids' in printed and '--ids' in printed
    if name in INDICES:
        (tmp_path / name).write_text(json.dumps(INDICES[name]()))
        (tmp_path / 'x_other.json').write_text('{"a": "b"}')  # no index
        chosen = ()
    else:
        (tmp_path / name).write_text(''.join(f'{one.img_id}\t{i}\n' for i, one in enumerate(IMAGES)))
        chosen = ('--ids', tmp_path / name)
    status, printed = run('import', path, '--out', tmp_path / 'y.tsv', *chosen)
    assert status == 0 and ('image ids from' in printed) == (not chosen)
    for (_, one), other in zip(tsv.read(tmp_path / 'y.tsv'), IMAGES, strict=True):
        same(one, without_labels(other))
    if name == 'x_ids.json':
        (tmp_path / 'x_ids2.json').write_text((tmp_path / name).read_text())
        assert 'several files of ids' in run('import', path, '--out', tmp_path / 'z.tsv')[1]
        (tmp_path / 'few.json').write_text('{"a": 0, "b": 7}')
        assert 'expected an id for each of the 5 rows' in run('import', path, '--out', tmp_path / 'z.tsv', '--ids',
                                                              tmp_path / 'few.json')[1]


def test_gqa_features_in_several_files(tmp_path):
    for number, images in enumerate((IMAGES[:2], IMAGES[2:])):
        rows_of(tmp_path / f'gqa_objects_{number}.h5', images)
    (tmp_path / 'gqa_objects_info.json').write_text(json.dumps({
        one.img_id: {'file': int(i >= 2), 'idx': i - 2 * (i >= 2), 'width': one.width, 'height': one.height,
                     'objectsNum': len(one.boxes)} for i, one in enumerate(IMAGES)}))
    for one, other in zip(Importer(tmp_path), IMAGES, strict=True):
        same(one, without_labels(other))


def test_hdf5_of_adaptive_features_and_numbers_as_ids(tmp_path, run):
    ends = np.cumsum([len(one.boxes) for one in IMAGES])
    with h5py.File(tmp_path / 'x.h5', 'w') as file:
        file['image_features'], file['image_bb'] = (np.concatenate([getattr(one, name) for one in IMAGES])
                                                    for name in ('features', 'boxes'))
        file['spatial_features'] = np.concatenate([normalised(one).boxes for one in IMAGES])
        file['pos_boxes'] = np.stack([np.r_[0, ends[:-1]], ends], 1)
        file['image_id'] = np.arange(5)[:, None]
    status, printed = run('import', tmp_path / 'x.h5', '--out', tmp_path / 'y.tsv')
    assert status == 0 and 'no image sizes: computed from' in printed and 'not read' not in printed
    for number, ((_, one), other) in enumerate(zip(tsv.read(tmp_path / 'y.tsv'), IMAGES, strict=True)):
        same(one, replace(without_labels(other), img_id=str(number)))
    with h5py.File(tmp_path / 'x.h5', 'a') as file:
        del file['spatial_features']
    status, printed = run('import', tmp_path / 'x.h5', '--out', tmp_path / 'z.tsv')
    assert status == 0 and 'no image sizes: of each image the right and the lower edge' in printed


# ---- folders

def test_a_json_an_image(tmp_path, run):
    def text(array, dtype='<f4'):
        return base64.b64encode(array.astype(dtype)).decode()

    for number, one in enumerate(IMAGES):
        arrays = {'boxes': text(one.boxes), 'features': text(one.features), 'objects_id': text(one.classes, '<i4'),
                  'objects_conf': text(one.class_conf, '<f8'), 'attrs_id': text(one.attributes, '<i8'),
                  'attrs_conf': text(one.attribute_conf)}
        if number == 1:  # lists are read as well
            arrays = {key: getattr(one, name).tolist() for name, (key, _) in tsv.ARRAYS.items()}
        (tmp_path / f'{one.img_id}.json').write_text(json.dumps(
            arrays | {'image_h': one.height, 'image_w': one.width, 'image_id': one.img_id}
            | ({'num_boxes': len(one.boxes)} if number != 2 else {})))
    images = sorted(IMAGES, key=lambda one: one.img_id)
    for one, other in zip(Importer(tmp_path), images, strict=True):
        same(one, other)
    path = tmp_path / f'{images[0].img_id}.json'
    path.write_text(path.read_text().replace('"features": "', '"features": "AAAA'))
    with pytest.raises(RegionError, match=r'found 1 faulty(.|\n)*key "features": expected float32 numbers of 3 regions'):
        list(Importer(tmp_path))


# ---- VL-BERT's files

def base64_of(array):
    return base64.b64encode(np.asarray(array, '<f4').tobytes()).decode()


def caption_file(number, o, classes=7, attributes=5):
    """The arrays of an image in VL-BERT's files of captions, the probabilities with the background first, and their json."""
    rng = np.random.default_rng(number)
    one = image(number, o)
    p, q = (rng.dirichlet(np.full(columns, 0.3), o).astype('f4') for columns in (classes, attributes))
    return one, p, q, {'image_id': number, 'image_w': one.width, 'image_h': one.height, 'num_boxes': o,
                       'boxes': base64_of(one.boxes), 'features': base64_of(one.features), 'classes': base64_of(p),
                       'attrs': base64_of(q)}


def expect_captions(stored, one, p, q):
    """VL-BERT's reader, restated: by falling highest class probability, the background included."""
    order = sorted(range(len(p)), key=lambda i: -max(p[i].tolist()))
    for row, i in enumerate(order):
        np.testing.assert_array_equal(stored.boxes[row], one.boxes[i])
        np.testing.assert_array_equal(stored.features[row], one.features[i])
        np.testing.assert_array_equal(stored.class_probabilities[row], p[i].astype('f2'))
        best, attribute = max(range(1, 7), key=lambda k: p[i, k]), max(range(1, 5), key=lambda k: q[i, k])
        assert (stored.classes[row], stored.class_conf[row]) == (best - 1, p[i, best])
        assert (stored.attributes[row], stored.attribute_conf[row]) == (attribute - 1, q[i, attribute])
    assert (stored.height, stored.width, stored.image_feature) == (one.height, one.width, None)


@pytest.mark.parametrize('packed', ['folder', 'zip', 'zip with a folder'])
def test_vlberts_captions(tmp_path, run, packed):
    files = {f'{number:08}': caption_file(number, o) for number, o in enumerate([4, 1, 130, 101, 100])}
    files['00000001'][3]['boxes'] = base64_of(files['00000001'][0].boxes * 0 + [1, 2, 83, 40])  # the picture is 81 wide
    files['00000001'][0].boxes[:] = [1, 2, 81, 40]
    folder = tmp_path / 'train_frcnn'
    folder.mkdir()
    for name, (*_, item) in files.items():
        (folder / f'{name}.json').write_text(json.dumps(item))
    source = folder
    if packed != 'folder':
        source = tmp_path / 'train_frcnn.zip'
        with zipfile.ZipFile(source, 'w') as archive:
            for path in folder.iterdir():
                archive.write(path, path.name if packed == 'zip' else f'train_frcnn/{path.name}')
            archive.writestr('__MACOSX/._00000000.json', b'\0\5')
    status, printed = run('import', source, '--out', tmp_path / 'x.store')
    assert status == 0 and 'class_probabilities of 7' in printed and '2 of 5 images have more than 100 regions' in printed
    assert 'boxes that reach up to 5% of a side beyond the picture: cut (1 of 5 images)' in printed
    stored = store.RegionStore(tmp_path / 'x.store')
    assert [img_id.decode() for img_id in stored.ids] == sorted(files)
    for row, (one, p, q, _) in enumerate(files[name] for name in sorted(files)):
        expect_captions(stored.image(row), one, p, q)
    status, printed = run('import', source, '--out', tmp_path / 'x.tsv')
    assert status == 1 and 'field "class_probabilities": a TSV has no such field' in printed


def test_a_store_without_class_probabilities_says_what_adds_them(tmp_path):
    store.write(tmp_path / 'x.store', IMAGES, {})
    with pytest.raises(RegionError, match=r'x\.store: expected the column "class_probabilities", .*; extract the regions again '
                                          r'with bash run/extract\.bash \.\.\. --probabilities --out NEW\.store, or'):
        placement.gather_batch(store.RegionStore(tmp_path / 'x.store'), np.array([0]), columns=('class_probabilities',))


@pytest.mark.parametrize('with_feature', [(0, 2), (1,), ()])
def test_vlberts_vqa_files(tmp_path, run, with_feature):
    images = [replace(one, img_id=str(40 + number)) for number, one in enumerate(IMAGES[:3])]
    folder, sizes = tmp_path / 'trainval2014', tmp_path / 'instances_val2014.json'
    folder.mkdir()
    for number, one in enumerate(images):
        own = {'image_box_feature': base64_of(np.arange(5) + number)} if number in with_feature else {}
        (folder / f'{one.img_id}.json').write_text(json.dumps(
            {'num_boxes': len(one.boxes), 'boxes': base64_of(one.boxes), 'features': base64_of(one.features)} | own))
    rows = [{'id': int(one.img_id), 'width': one.width, 'height': one.height,
             'file_name': f'COCO_val2014_{int(one.img_id):012}.jpg'} for one in images]
    sizes.write_text(json.dumps({'info': {}, 'images': rows, 'annotations': [{'id': 40, 'bbox': [1, 2, 3, 4]}]}))
    status, printed = run('import', folder, '--sizes', sizes, '--out', tmp_path / 'x.store')
    assert status == 0 and ('image_features of 5' in printed) == bool(with_feature) and 'no image sizes' not in printed
    stored = store.RegionStore(tmp_path / 'x.store')
    for number, one in enumerate(images):
        feature = np.arange(5, dtype='f4') + number if number in with_feature else one.features.mean(0)
        near(replace(stored.image(number), image_feature=None), without_labels(one))
        np.testing.assert_allclose(stored.image_features([number])[0], feature, atol=1e-6)
    (tmp_path / 'ids.txt').write_text(''.join(f'COCO_val2014_{int(one.img_id):012}\t{one.img_id}\n' for one in images))
    status, printed = run('import', folder, '--sizes', sizes, '--ids', tmp_path / 'ids.txt', '--out', tmp_path / 'y.store')
    assert status == 0, printed
    assert store.RegionStore(tmp_path / 'y.store').image(0).img_id == 'COCO_val2014_000000000040'
    sizes.write_text(json.dumps({'images': rows[1:]}))
    status, printed = run('import', folder, '--sizes', sizes, '--out', tmp_path / 'z.store')
    assert status == 1 and f'40.json: key "size": expected it of image 40 in {sizes}, found none; name the annotations' in printed
    sizes.write_text('{"annotations": []}')
    status, printed = run('import', folder, '--sizes', sizes, '--out', tmp_path / 'z.store')
    assert status == 1 and f'{sizes}: expected images' in printed


BROKEN = {
    'boxes': (lambda item: item.pop('boxes'), 'key "boxes": expected an array, found none'),
    'features': (lambda item: item.pop('features'), 'key "features": expected an array, found none'),
    '0 boxes': (lambda item: item.update(num_boxes=0), 'key "num_boxes": expected a number of regions, found 0'),
    'no number': (lambda item: item.update(num_boxes='4'), 'key "num_boxes": expected a number of regions'),
    'cut boxes': (lambda item: item.update(boxes=item['boxes'][:-12]), 'field "boxes": expected 16 numbers, found 57 bytes'),
    'cut features': (lambda item: item.update(features=item['features'][:-4]), 'key "features": expected float32 numbers'),
    'cut classes': (lambda item: item.update(classes=item['classes'][:-4]), 'key "classes": expected float32 numbers'),
    'fewer classes': (lambda item: item.update(classes=base64_of(np.full((4, 6), 1 / 6))), 'expected 7 numbers a region as in'),
    'no classes': (lambda item: item.pop('classes'), 'expected 7 numbers a region as in the first image, found 0'),
    'no base64': (lambda item: item.update(features='?' + item['features'][1:]), 'key "features": expected base64'),
    'NaN': (lambda item: item.update(features=base64_of(np.full((4, 5), np.nan))), 'field "features": expected finite numbers'),
    'NaN in classes': (lambda item: item.update(classes=base64_of(np.full((4, 7), np.nan))), 'expected finite numbers'),
    'classes above 1': (lambda item: item.update(classes=base64_of(np.full((4, 7), 2))), 'expected confidences from 0 to 1'),
    'image feature': (lambda item: item.update(image_box_feature=base64_of(np.ones(4))), 'field "image_feature": expected an'),
    'no base64 of the image': (lambda item: item.update(image_box_feature='?'), 'key "image_box_feature": expected base64'),
    'far outside': (lambda item: item.update(boxes=base64_of([[0, 0, 120, 9]] * 4)), 'field "boxes": expected 0 <= x1'),
    'corners': (lambda item: item.update(boxes=base64_of([[9, 9, 2, 20]] * 4)), 'field "boxes": expected 0 <= x1 <= x2'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_vlberts_broken_files(tmp_path, run, name):
    change, message = BROKEN[name]
    folder = tmp_path / 'cc'
    folder.mkdir()
    items = [caption_file(number, 4) for number in range(3)]
    change(items[1][3])
    for number, (*_, item) in enumerate(items):
        (folder / f'{number}.json').write_text(json.dumps(item))
    status, printed = run('import', folder, '--out', tmp_path / 'x.store')
    assert status == 1 and 'found 1 faulty; nothing was written' in printed
    assert f', or give --allowBroken to leave them out:\n  {folder}/1.json: ' in printed
    assert message in printed and not (tmp_path / 'x.store').exists()
    status, printed = run('import', folder, '--out', tmp_path / 'x.store', '--allowBroken')
    assert status == 0 and '2 images' in printed
    assert f'left out 1 faulty images (all in the provenance):\n  {folder}/1.json: ' in printed
    stored = store.RegionStore(tmp_path / 'x.store')
    assert message in stored.meta['provenance']['left out'][0] and len(stored) == 2
    for row, (one, p, q, _) in enumerate([items[0], items[2]]):
        expect_captions(stored.image(row), one, p, q)


def test_images_without_a_size_are_not_called_left_out(tmp_path, run):
    folder = tmp_path / 'cc'
    folder.mkdir()
    for number in range(3):
        item = caption_file(number, 4)[3]
        (folder / f'{number}.json').write_text(json.dumps(item if number else {
            key: value for key, value in item.items() if key not in ('image_w', 'image_h')}))
    status, printed = run('import', folder, '--out', tmp_path / 'x.store', '--allowBroken')
    assert status == 1 and f'Correct or remove them:\n  {folder}/0.json: key "size": expected the height' in printed


def test_files_of_vlbert_that_are_no_json_or_all_broken(tmp_path, run):
    folder = tmp_path / 'cc'
    folder.mkdir()
    for number in range(3):
        (folder / f'{number}.json').write_text(json.dumps(caption_file(number, 4)[3] | {'num_boxes': 0}))
    status, printed = run('import', folder, '--out', tmp_path / 'x.store', '--allowBroken')
    assert status == 1 and 'all 3 images have the same fault' in printed and not (tmp_path / 'x.store').exists()
    (folder / '1.json').write_text('{"num_boxes": 4, "boxes": "AAA')
    (folder / '2.json').write_text('[]')
    status, printed = run('import', folder, '--out', tmp_path / 'x.store', '--allowBroken')
    assert status == 1 and 'found 3 faulty; nothing was written. Correct or remove them:' in printed
    assert 'incomplete or invalid json' in printed and 'expected an object with the arrays of an image, found list' in printed
    archive = tmp_path / 'x.zip'
    archive.write_bytes(b'PK\3\4 no zip')
    status, printed = run('import', archive, '--out', tmp_path / 'x.store')
    assert status == 1 and 'expected a whole zip file' in printed
    with zipfile.ZipFile(archive, 'w') as opened:
        for folder in ('a', 'b'):
            opened.writestr(f'{folder}/1.json', json.dumps(caption_file(1, 2)[3]))
    status, printed = run('import', archive, '--out', tmp_path / 'x.store')
    assert status == 1 and 'b/1.json: its image id would be 1, which is that of a/1.json; give --ids path' in printed
    assert run('import', archive, '--out', tmp_path / 'x.store', '--ids', 'path')[0] == 0
    assert store.RegionStore(tmp_path / 'x.store').image(1).img_id == 'b/1'


CASES = ROOT.parent / 'shared/data/vlbert_cases'


@pytest.mark.shared
@pytest.mark.skipif(not CASES.is_dir(), reason=f'{CASES} is not here')
def test_regions_are_those_of_vlberts_readers(tmp_path, run):
    """The boxes and features, with the image itself as region 0, that the original's readers make of its files."""
    def gathered(source, *flags):
        assert run('import', source, '--out', tmp_path / f'{source.name}.store', *flags)[0] == 0
        regions = store.RegionStore(tmp_path / f'{source.name}.store')
        batch = placement.gather_batch(regions, np.arange(len(regions)), whole_image=True)
        batch = placement.to_device(regions, {name: torch.from_numpy(array) for name, array in batch.items()})
        return {img_id.decode(): {name: array[row].numpy() for name, array in batch.items()}
                for row, img_id in enumerate(regions.ids)}

    def compare(batch, boxes, features, sides):
        n = len(boxes)
        np.testing.assert_allclose(np.minimum(batch['boxes'][:n] * (*sides, *sides), [side - 1 for side in sides] * 2), boxes,
                                   atol=1e-3)
        np.testing.assert_allclose(batch['features'][:n], features, atol=2e-6)

    expected, sizes = load_file(CASES / 'cc/expected.safetensors'), json.loads((CASES / 'cc/expected.json').read_text())
    for img_id, batch in gathered(CASES / 'cc/train_frcnn').items():
        name = f'nothing masked, {int(img_id)}'
        array = expected[f'{name}.boxes_features']
        compare(batch, array[:, :4], array[:, 4:], sizes[name]['im_info'][:2])
    expected = json.loads((CASES / 'vqa/expected.json').read_text())
    batches = gathered(CASES / 'vqa/vgbua_res101_precomputed', '--sizes', CASES / 'vqa/annotations/instances_val2014.json')
    names = [name for name in expected if name.startswith('flip0.')]
    assert len(names) > 2
    for name in names:
        case = expected[name]
        compare(batches[name[len('flip0.'):-3]], case['boxes'], case['features'], case['im_info'][:2])


@pytest.mark.parametrize('columns', [4, 5, 6, 7])
def test_npz_with_normalised_boxes_of_uniter(tmp_path, run, columns):
    (tmp_path / 'npz').mkdir()
    for one in IMAGES:
        boxes = normalised(one).boxes
        sides = boxes[:, 2:] - boxes[:, :2]
        more = [sides.prod(1, keepdims=True)] if columns == 5 else [sides, sides.prod(1, keepdims=True)]
        np.savez(tmp_path / f'npz/{one.img_id}.npz', norm_bb=np.concatenate([boxes, *more], 1)[:, :columns].astype('f2'),
                 features=one.features.astype('f2'), conf=one.class_conf.astype('f2'))
    status, printed = run('import', tmp_path / 'npz', '--out', tmp_path / 'y.tsv')
    assert status == 0 and '1000 x 1000 assumed' in printed and 'not read: conf (there are no classes)' in printed
    assert 'order' not in printed
    gathered = store.open_regions(tmp_path / 'y.tsv')
    for one in IMAGES:
        batch = gathered.gather(gathered.rows([one.img_id]))
        np.testing.assert_allclose(batch['boxes'][0], normalised(one).boxes, atol=1e-3)
        np.testing.assert_allclose(batch['features'][0], one.features, rtol=1e-3)
    np.savez(tmp_path / f'npz/{one.img_id}.npz', norm_bb=np.full((2, 6), 0.5), features=one.features[:2])
    status, printed = run('import', tmp_path / 'npz', '--out', tmp_path / 'z.tsv')
    assert status == 0 and 'order may be another (1 of 5 images)' in printed


def test_a_size_is_assumed_only_where_no_image_has_one(tmp_path):
    for one in IMAGES[:3]:
        np.savez(tmp_path / f'{one.img_id}.npz', features=one.features, boxes=one.boxes, num_boxes=1,
                 **({} if one is IMAGES[1] else {'size': [one.height, one.width]}))
    with pytest.raises(RegionError, match=f'found 1 faulty(.|\n)*{IMAGES[1].img_id}.npz: key "size": expected the height'):
        list(Importer(tmp_path))
    np.savez(tmp_path / f'{IMAGES[1].img_id}.npz', features=IMAGES[1].features, boxes=normalised(IMAGES[1]).boxes)
    with pytest.raises(RegionError, match=r'boxes divided by width and height need --boxes normalised'):
        list(Importer(tmp_path))


def code_of(printed):
    """The lines of Python in a message; exactly three."""
    code = [line[2:] for line in printed.split('lines of Python')[1].splitlines()[1:] if line.startswith('  ')]
    assert len(code) == 3
    return '\n'.join(code)


def test_mmf_arrays_with_pickles_are_never_read_but_the_message_converts_them(tmp_path, run):
    (tmp_path / 'mmf').mkdir()
    for one in IMAGES:
        np.save(tmp_path / f'mmf/{one.img_id}.npy', one.features)
        info = {'bbox': one.boxes, 'num_boxes': len(one.boxes), 'objects': one.classes, 'image_height': one.height,
                'image_width': one.width}
        np.save(tmp_path / f'mmf/{one.img_id}_info.npy', info)
    status, printed = run('import', tmp_path / 'mmf', '--out', tmp_path / 'x.tsv')
    assert status == 1 and 'can run any code' in printed and not (tmp_path / 'x.tsv').exists()
    exec(code_of(printed), {})
    status, printed = run('import', tmp_path / 'mmf_import', '--out', tmp_path / 'x.tsv')
    assert status == 0 and 'no confidences of the classes' in printed
    for (_, one), other in zip(tsv.read(tmp_path / 'x.tsv'), sorted(IMAGES, key=lambda one: one.img_id), strict=True):
        same(one, replace(without_labels(other), classes=other.classes))


def test_lmdb_of_pickles(tmp_path, run, monkeypatch):
    records = {b'keys': pickle.dumps([one.img_id.encode() for one in IMAGES])}
    for one in IMAGES:
        records[one.img_id.encode()] = pickle.dumps({
            'image_id': one.img_id.encode(), 'image_h': one.height, 'image_w': np.int64(one.width), 'num_boxes': len(one.boxes),
            'boxes': base64.b64encode(one.boxes), 'features': one.features})
    (tmp_path / 'x.lmdb').mkdir()
    (tmp_path / 'x.lmdb/data.mdb').write_bytes(b'')
    status, printed = run('import', tmp_path / 'x.lmdb', '--out', tmp_path / 'x.tsv')
    assert status == 1 and 'can run any code' in printed
    opened = types.SimpleNamespace(begin=lambda: types.SimpleNamespace(cursor=lambda: iter(records.items())))
    monkeypatch.setitem(sys.modules, 'lmdb', types.SimpleNamespace(open=lambda *_, **__: opened))
    exec(code_of(printed), {})
    for one, other in zip(Importer(tmp_path / 'x_import'), sorted(IMAGES, key=lambda one: one.img_id), strict=True):
        same(one, without_labels(other))


def test_a_pickled_dictionary_an_image_and_one_file(tmp_path, run):
    (tmp_path / 'npy').mkdir()
    for one in IMAGES:
        arrays = {'features': one.features, 'bbox': one.boxes, 'size': [one.height, one.width]}
        np.save(tmp_path / f'npy/{one.img_id}.npy', arrays)
    status, printed = run('import', tmp_path / 'npy', '--out', tmp_path / 'x.tsv')
    assert status == 1 and 'can run any code' in printed
    exec(code_of(printed), {})
    assert len(list(Importer(tmp_path / 'npy_import'))) == 5
    one, = Importer(tmp_path / f'npy_import/{IMAGES[0].img_id}.npz')
    same(one, without_labels(IMAGES[0]))


def test_other_pickles(tmp_path, run):
    path = tmp_path / 'x.pkl'
    path.write_bytes(pickle.dumps({one.img_id: {'features': one.features, 'boxes': one.boxes, 'size': [one.height, one.width]}
                                   for one in IMAGES}))
    status, printed = run('import', path, '--out', tmp_path / 'x.tsv')
    assert status == 1 and 'can run any code' in printed
    exec(code_of(printed), {})
    assert len(list(Importer(tmp_path / 'x_import'))) == 5
    rows_of(tmp_path / 'train36.h5', IMAGES)
    (tmp_path / 'train36_imgid2idx.pkl').write_bytes(pickle.dumps({i: i for i in range(5)}))
    status, printed = run('import', tmp_path / 'train36.h5', '--out', tmp_path / 'x.tsv')
    assert status == 1 and 'key "ids"' in printed
    exec(code_of(printed), {})
    assert [one.img_id for one in Importer(tmp_path / 'train36.h5')] == list('01234')


def test_all_images_with_one_fault_are_said_to_be_of_another_layout(tmp_path):
    for one in IMAGES:
        np.savez(tmp_path / f'{one.img_id}.npz', grid=one.features)
    with pytest.raises(RegionError, match=r'all 5 images have the same fault(.|\n)*key "features": expected an array') as error:
        list(Importer(tmp_path))
    assert len(str(error.value).splitlines()) == 1


# ---- image ids

@pytest.mark.parametrize(('asked', 'existing', 'difference'), [
    (['img0.jpg', 'img1.jpg'], ['img0', 'img1'], 'the file ending'),
    (['a', 'b'], ['val2014/a', 'val2014/b'], 'the folder'),
    (['x/a.png', 'x/b.png'], ['b', 'a'], 'the file ending and the folder'),
    (['42', '9'], ['COCO_val2014_000000000042', 'COCO_val2014_000000000009'], 'the prefix of the dataset'),
    (['42', '581929'], ['000000000042', '000000581929'], 'the prefix of the dataset'),
    (['IMG_A', 'IMG_B'], ['img_a', 'img_b'], 'upper and lower case'),
    (['dog', 'cat'], ['red', 'blue'], ''), (['dev-1-img0', 'dev-2-img0'], ['test-1-img0', 'test-2-img0'], ''), ([], [], '')])
def test_the_difference_of_ids_is_named(asked, existing, difference):
    text = readers.id_difference(asked, 'x.tsv', existing)
    assert all(img_id in text for img_id in asked + existing)
    assert f'the ids differ in {difference}' in text if difference else 'do they belong together' in text


def test_mismatching_ids_are_explained_by_check(tmp_path, run):
    tsv.write(tmp_path / 'x.tsv', IMAGES)
    (tmp_path / 'q.json').write_text(json.dumps([{'img_id': f'{one.img_id}.jpg'} for one in IMAGES]))
    status, printed = run('check', tmp_path / 'x.tsv', '--questions', tmp_path / 'q.json')
    assert status == 1 and 'differ in the file ending' in printed and 'COCO_0x.jpg' in printed and '--ids' in printed
    lines_of_ids = ''.join(f'{one.img_id}.jpg\t{one.img_id}\n' for one in IMAGES)
    (tmp_path / 'ids.txt').write_text(lines_of_ids)
    assert run('import', tmp_path / 'x.tsv', '--ids', tmp_path / 'ids.txt', '--out', tmp_path / 'y.tsv')[0] == 0
    assert run('check', tmp_path / 'y.tsv', '--questions', tmp_path / 'q.json')[0] == 0
    (tmp_path / 'ids.txt').write_text(lines_of_ids.splitlines()[0])
    status, printed = run('import', tmp_path / 'x.tsv', '--ids', tmp_path / 'ids.txt', '--out', tmp_path / 'z.tsv')
    assert status == 1 and 'expected a line id<TAB>COCO_7x, found none' in printed
    assert run('import', tmp_path / 'y.tsv', '--ids', 'stem', '--out', tmp_path / 'z.tsv')[0] == 0
    assert [one.img_id for _, one in tsv.read(tmp_path / 'z.tsv')] == [one.img_id for one in IMAGES]


def test_relative_paths_are_image_ids(tmp_path, run):
    for one, name in zip(IMAGES, 'abc', strict=False):
        for folder in ('npz', 'photos'):
            (tmp_path / folder / name).mkdir(parents=True)
        np.savez(tmp_path / f'npz/{name}/source.npz', features=one.features, boxes=one.boxes, size=[one.height, one.width])
        Image.new('RGB', (one.width, one.height)).save(tmp_path / f'photos/{name}/source.jpg')
    status, printed = run('import', tmp_path / 'npz', '--out', tmp_path / 'x.tsv')
    assert status == 1 and 'its image id would be source' in printed and '--ids path' in printed
    assert run('import', tmp_path / 'npz', '--ids', 'path', '--out', tmp_path / 'x.tsv')[0] == 0
    with pytest.raises(DataError, match='give --ids path'):
        find_pictures(tmp_path / 'photos')
    assert list(find_pictures(tmp_path / 'photos', ids='path')) == ['a/source', 'b/source', 'c/source']
    (tmp_path / 'ids.txt').write_text(''.join(f'{name}\tphotos/{name}/source.jpg\n' for name in 'abc'))
    assert list(find_pictures(tmp_path / 'ids.txt', ids=tmp_path / 'ids.txt')) == ['a', 'b', 'c']
    status, printed = run('show', tmp_path / 'x.tsv', '--ids', 'a/source', 'c/source', '--photos', tmp_path / 'photos', '--out',
                          tmp_path / 'out')
    assert status == 0, printed
    assert sorted(file.name for file in (tmp_path / 'out').iterdir()) == ['a_source.png', 'c_source.png']
    store.open_regions(tmp_path / 'x.tsv')
    regions_only = types.SimpleNamespace(needs={'regions'}, needs_regions=True)
    for path in (tmp_path / 'x.tsv', tmp_path / 'x.store'):
        (one, photo), (other, _) = find_images(regions_only, path, [str(tmp_path / 'photos/b/source.jpg'), 'a/source'])
        assert (one.img_id, other.img_id) == ('b/source', 'a/source') and photo.size == (one.width, one.height)


@pytest.mark.parametrize(('text', 'message'), [
    ('a b\n', r'ids.txt:1: expected id<TAB>path'), ('a\tx\na\ty\n', 'ids.txt:2: expected each id and each path once'),
    ('a\tx\nb\tx\n', 'ids.txt:2: expected each id and each path once')])
def test_faulty_files_of_ids(tmp_path, text, message):
    (tmp_path / 'ids.txt').write_text(text)
    with pytest.raises(DataError, match=message):
        Importer(tmp_path, ids=tmp_path / 'ids.txt')
    with pytest.raises(OSError, match='neither stem nor path'):
        Importer(tmp_path, ids='stems')


def test_reach_of_totals_is_a_share():
    totals = checks.Totals()
    totals.add(replace(IMAGES[0], boxes=np.array([[0, 0, 40, 15]] * 3, np.float32)))
    assert totals.reach == 0.5 and tsv_lines.unquoted(b"b'ab'") == b'ab' and tsv_lines.unquoted(b"b'ab") == b"b'ab"
