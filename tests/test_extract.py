"""run/extract.bash on the sample world: its regions from its pictures, interrupted runs, broken pictures; detectors by name."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_shapes_detector import overlap

from detector import program
from detector.given_boxes import read_boxes
from detector.registry import DetectorConfig, load_detector
from files.json_files import DataError
from images.ids import find_pictures
from regions import tsv
from regions.store import RegionStore


@pytest.fixture(scope='module')
def pictures(made_world):
    """Folder of the 6 pictures of val2014."""
    return made_world / 'images/val2014'


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """run(images, *flags, out='x.tsv'): the program with the sample world's detector; (status, printed, errors). Its worker is a
    fork, which starts without the seconds that imports take."""
    monkeypatch.setenv('NPROC', '1')
    fork = multiprocessing.get_context('fork')
    monkeypatch.setattr(multiprocessing, 'get_context', lambda _: fork)

    def run(images, *flags, out='x.tsv', detector='shapes'):
        flags = '--device', 'cpu', '--images', images, '--out', tmp_path / out, '--detector', detector, *flags
        try:
            status = program.main([str(flag) for flag in flags])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


def launch(images, out, *flags, **variables):
    """The launcher in a process of its own."""
    return subprocess.Popen(['bash', 'run/extract.bash', 'cpu', '--images', images, '--detector', 'shapes', '--out', out, *flags],
                            cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1', **variables}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


@pytest.fixture(scope='module')
def complete(made_world, tmp_path_factory):
    """The TSV of all 50 pictures of the world, by two processes."""
    out = tmp_path_factory.mktemp('complete') / 'all.tsv'
    process = launch(made_world / 'images', out, '--split', 'coco', NPROC='2')
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert '50 images, 0 left out' in printed
    return out


def test_the_regions_of_a_world_are_found_in_its_pictures(made_world, complete):
    out = complete
    found = {image.img_id: image for _, image in tsv.read(out)}
    own = [image for path in (made_world / 'mscoco_imgfeat').glob('*.tsv') for _, image in tsv.read(path)]
    assert found.keys() == {image.img_id for image in own} and list(found) == sorted(found, key=lambda name: name[5:])
    for image in own:
        other = found[image.img_id]
        assert (other.height, other.width, other.features.shape) == (image.height, image.width, image.features.shape)
        for sure in range(int((image.class_conf > 0.75).sum())):  # the things themselves
            same = [i for i in np.flatnonzero(other.class_conf > 0.75) if overlap(other.boxes[i], image.boxes[sure]) > 0.7]
            assert len(same) == 1
            assert other.classes[same] == image.classes[sure] and other.attributes[same] == image.attributes[sure]
            near, far = (np.linalg.norm(other.features[i] - image.features[sure]) for i in (same[0], len(image.boxes) - 1))
            assert near < far
    provenance = json.loads(Path(f'{out}.provenance.json').read_text())
    assert 'shapes.detector' in provenance['detector'] and provenance['extracted from'] == str(made_world / 'images')
    assert sorted(path.name for path in out.parent.iterdir()) == ['all.tsv', 'all.tsv.provenance.json']


def test_a_store_has_the_same_regions(pictures, run, tmp_path):
    assert run(pictures, '--minBoxes', 10, '--maxBoxes', 20)[0] == 0
    assert run(pictures, '--minBoxes', 10, '--maxBoxes', 20, out='x.store')[0] == 0
    store = RegionStore(tmp_path / 'x.store')
    images = [image for _, image in tsv.read(tmp_path / 'x.tsv')]
    assert len(store) == len(images) == 6 and store.meta['provenance']['max_boxes'] == 20
    for row, image in enumerate(images):
        assert len(image.boxes) == 20 and store.image(row).img_id == image.img_id
        assert np.array_equal(store.image(row).features, image.features)
    assert not list(tmp_path.glob('*.unfinished'))


def wait_for_lines(process, out, lines=2):
    """Waits until a running extraction has finished some pictures; returns the ids of its worker processes."""
    done, end = Path(f'{out}.unfinished/lines'), time.monotonic() + 60
    while not (done.exists() and done.read_bytes().count(b'\n') >= lines):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    children = Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
    return [int(pid) for pid in children if b'spawn_main' in Path(f'/proc/{pid}/cmdline').read_bytes()]


def test_a_killed_run_is_resumed_to_the_same_bytes(made_world, complete, tmp_path):
    images, out = made_world / 'images', tmp_path / 'x.tsv'
    process = launch(images, out, NPROC='2')
    workers = wait_for_lines(process, out)
    process.kill()
    process.wait()
    end = time.monotonic() + 30
    while any(Path(f'/proc/{pid}').exists() for pid in workers):  # they end by themselves
        assert time.monotonic() < end
        time.sleep(0.05)
    assert len(workers) == 2 and not out.exists()
    with open(f'{out}.unfinished/lines', 'ab') as lines:
        lines.write(complete.read_bytes()[:1000])  # an incomplete line
    process = launch(images, out)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and 'x.tsv: resumed after ' in printed, errors
    assert out.read_bytes() == complete.read_bytes() and not Path(f'{out}.unfinished').exists()


def test_killed_workers_second_processes_and_ctrl_c_are_reported(made_world, tmp_path):
    out = tmp_path / 'x.tsv'
    process = launch(made_world / 'images', out)
    os.kill(wait_for_lines(process, out)[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and 'a worker process ended before its work was done' in errors and 'Traceback' not in errors
    process = launch(made_world / 'images', out)
    wait_for_lines(process, out, Path(f'{out}.unfinished/lines').read_bytes().count(b'\n') + 1)
    process.send_signal(signal.SIGSTOP)
    second = launch(made_world / 'images', out)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1 and 'another process is writing there' in errors
    process.send_signal(signal.SIGCONT)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and 'repeat the command to resume' in errors and 'Traceback' not in errors


def test_broken_pictures_are_named_counted_and_mended(pictures, run, tmp_path):
    images = shutil.copytree(pictures, tmp_path / 'images')
    assert run(images, out='whole.tsv')[0] == 0
    first, second, *_ = sorted(images.iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[:200])
    Image.new('RGB', (640, 480)).save(second)
    status, _, errors = run(images)
    assert status == 1 and '2 of 6 pictures cannot be used' in errors and 'give --allowBroken' in errors
    told = (tmp_path / 'x.tsv.broken.txt').read_text()
    assert str(first) in told and f'{second}: {second.stem}: expected a picture of the sample world' in told
    assert not (tmp_path / 'x.tsv').exists()
    first.write_bytes(whole)
    status, printed, errors = run(images, '--allowBroken')
    assert status == 0 and 'resumed after 4 of 6' in printed and '5 images, 1 left out' in printed and second.stem in errors
    lines = (tmp_path / 'whole.tsv').read_bytes().splitlines(keepends=True)
    assert (tmp_path / 'x.tsv').read_bytes() == b''.join([lines[0], *lines[2:]])
    assert json.loads((tmp_path / 'x.tsv.provenance.json').read_text())['left out'] == [second.stem]
    for path in images.iterdir():
        path.write_bytes(b'')
    status, _, errors = run(images, '--allowBroken', out='none.tsv')
    assert status == 1 and '6 of 6 pictures' in errors and '--allowBroken' not in errors and not (tmp_path / 'none.tsv').exists()


def test_what_was_begun_is_only_gone_on_with_as_it_was(pictures, run, tmp_path):
    images = shutil.copytree(pictures, tmp_path / 'images')
    (images / 'text.png').write_text('no picture')
    assert run(images)[0] == 1
    status, _, errors = run(images, '--maxBoxes', 40)
    assert status == 1 and 'max_boxes: 36 there, 40 now; choose another --out' in errors
    status, _, errors = run(pictures)  # other files of the same names
    assert status == 1 and f"extracted from: '{images}' there, '{pictures}' now" in errors
    (images / 'text.png').unlink()
    status, printed, _ = run(images)
    assert status == 0 and 'resumed after 6 of 6' in printed and not (tmp_path / 'x.tsv.broken.txt').exists()


def test_where_nothing_is_done_nothing_stays(pictures, run, tmp_path):
    status, _, errors = run(pictures, '--minBoxes', 37, '--maxBoxes', 50)
    assert status == 1 and 'minBoxes up to 36 of the sample world' in errors
    assert not list(tmp_path.iterdir())
    (tmp_path / 'text').touch()
    status, _, errors = run(pictures, out='text/x.tsv')
    assert status == 1 and f'{tmp_path}/text/x.tsv: cannot be written' in errors and 'correct --out' in errors


def test_a_disk_that_is_full_all_at_once(pictures, run, tmp_path):
    assert run(pictures, out='whole.tsv')[0] == 0
    whole, before = (tmp_path / 'whole.tsv').read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, before[1]))
    try:
        status, _, errors = run(pictures)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert status == 1 and 'x.tsv: cannot be written ([Errno 27] File too large); make room' in errors
    status, printed, _ = run(pictures)
    assert status == 0 and 'resumed after ' in printed and (tmp_path / 'x.tsv').read_bytes() == whole


def test_where_nothing_was_done_anything_may_be_begun(pictures, run, tmp_path):
    """Such as with the wrong detector, which finds nothing in any picture, or killed before the first."""
    (tmp_path / 'images').mkdir()
    Image.new('RGB', (640, 480)).save(tmp_path / 'images/photo.png')
    assert run(tmp_path / 'images')[0] == 1 and not (tmp_path / 'x.tsv.unfinished').exists()
    (tmp_path / 'x.tsv.unfinished').mkdir()
    (tmp_path / 'x.tsv.unfinished/made_with.json').write_text('{"max_boxes": 40}')
    (tmp_path / 'x.tsv.unfinished/lines').touch()
    status, _, errors = run(pictures)
    assert status == 0, errors


def test_wrong_usage_and_full_disks_are_told_before_the_work(pictures, run, tmp_path, monkeypatch):
    (tmp_path / 'there.tsv').touch()
    for flags, out, message in (
            ([], 'x.npz', 'expected a name ending in .tsv or .store'), ([], 'there.tsv', 'exists and is not overwritten'),
            (['--minBoxes', '9', '--maxBoxes', '8'], 'x.tsv', 'found 9 and 8'),
            (['--bf16'], 'x.tsv', '--weights and --bf16 are those of --detector faster_rcnn')):
        status, _, errors = run(pictures, *flags, out=out)
        assert status == 2 and message in errors
    status, _, errors = run(tmp_path / 'none')
    assert status == 1 and 'no such folder, nor a list of pictures' in errors
    status, _, errors = run(pictures, '--weights', tmp_path / 'none.pkl', detector='faster_rcnn')
    assert status == 1 and 'none.pkl: no such file' in errors and 'bash run/download.bash detector' in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ['there.tsv']
    status, _, errors = run(pictures, '--split', 'nlvr2')
    assert status == 1 and 'such as dev-896-0-img0.png, found 6 others' in errors
    with monkeypatch.context() as patched:
        patched.setenv('NPROC', 'x')
        assert "NPROC: expected the number of processes, found 'x'" in run(pictures)[2]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=10))
    status, _, errors = run(pictures)
    assert status == 1 and 'GB are free; make room' in errors and not (tmp_path / 'x.tsv').exists()


def package(tmp_path, monkeypatch, name, code):
    """Writes a package with a module `detector`, which this process and its workers can import."""
    (tmp_path / name).mkdir()
    (tmp_path / name / 'detector.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


FAILING = """
import os, signal, time

class Detector:
    provenance = {}

    def __init__(self):
        %s

    def regions(self, pictures, ids, min_boxes, max_boxes):
        if ids[0].endswith('1'):
            %s
        time.sleep(600)  # the other process is busy
"""


@pytest.mark.parametrize(('loading', 'detecting', 'message'), [
    ('os.kill(os.getpid(), signal.SIGKILL)', 'pass', 'a worker process ended before its work was done'),
    ('pass', 'os.kill(os.getpid(), signal.SIGKILL)', 'a worker process ended before its work was done'),
    ('pass', 'raise RuntimeError("CUDA out of memory")', 'extract.bash: error: CUDA out of memory'),
    ('raise FileNotFoundError("no weights")', 'pass', 'extract.bash: error: no weights'),
])
def test_a_worker_that_fails_ends_the_program(pictures, run, tmp_path, monkeypatch, loading, detecting, message):
    package(tmp_path, monkeypatch, 'failing', FAILING % (loading, detecting))
    monkeypatch.setenv('NPROC', '2')
    status, _, errors = run(pictures, detector='failing')
    assert status == 1 and message in errors and not list(tmp_path.glob('x.tsv*'))


def test_detectors_by_name(tmp_path, monkeypatch):
    for name, code in (('good', 'class Detector: pass'), ('no_class', ''), ('no_library', 'import missing_library')):
        package(tmp_path, monkeypatch, name, code)
    assert type(load_detector(DetectorConfig('good'))).__module__ == 'good.detector'
    for name, reason in (('no_class', "no attribute 'Detector'"), ('no_library', "No module named 'missing_library'"),
                         ('nothing', "No module named 'nothing'"), ('tasks', "No module named 'tasks.detector'")):
        with pytest.raises(ValueError, match=f'--detector {name}: .*faster_rcnn.*tried {name}.detector.Detector.*{reason}'):
            load_detector(DetectorConfig(name))
    with pytest.raises(ValueError, match=r"--detector: expected faster_rcnn, .*found '\.\./x'"):
        load_detector(DetectorConfig('../x'))


def test_ids_are_the_names_of_the_files(tmp_path, capsys):
    names = ['train/7/train-10-0-img0.png', 'train/7/train-10-0-img1.PNG', 'dev/dev-896-0-img0.png', 'dev/notes.txt',
             'dev/._dev-1-0-img0.png']
    for name in names:
        (tmp_path / 'a' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'a' / name).touch()
    found = find_pictures(tmp_path / 'a', 'nlvr2')
    assert found == {Path(name).stem: tmp_path / 'a' / name for name in (names[2], *names[:2])}
    assert list(found) == ['dev-896-0-img0', 'train-10-0-img0', 'train-10-0-img1']
    assert capsys.readouterr().err == (f'{tmp_path}/a: skipped 1 files whose names do not end as those of pictures: '
                                       "'dev/notes.txt'\n")
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b/elsewhere').symlink_to('../a')
    (tmp_path / 'a/round').symlink_to('../b')
    assert find_pictures(tmp_path / 'b') == {img_id: tmp_path / 'b/elsewhere' / path.relative_to(tmp_path / 'a')
                                        for img_id, path in found.items()}
    (tmp_path / 'list.txt').write_bytes('\ufeffb/n161313.jpg\n\na/2335684.jpg\r\n'.encode())
    found = find_pictures(tmp_path / 'list.txt', 'gqa')
    assert list(found.items()) == [('n161313', tmp_path / 'b/n161313.jpg'), ('2335684', tmp_path / 'a/2335684.jpg')]
    with pytest.raises(DataError, match=r'--split coco: expected file names such as .*found 2 others: n161313'):
        find_pictures(tmp_path / 'list.txt', 'coco')
    (tmp_path / 'list.txt').write_text('b/1.jpg\na/1.png')
    with pytest.raises(DataError, match=r'a/1\.png: its image id would be 1, which is that of .*b/1\.jpg; leave one'):
        find_pictures(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').write_text('b/one\x07.jpg')
    with pytest.raises(DataError, match='expected a name that can be an image id'):
        find_pictures(tmp_path / 'list.txt')
    (tmp_path / 'list.txt').write_bytes(b'\xff\xd8\xff')
    with pytest.raises(DataError, match='expected a list of pictures in UTF-8'):
        find_pictures(tmp_path / 'list.txt')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='expected pictures'):
        find_pictures(tmp_path / 'empty')


# ---- given boxes


@pytest.fixture
def tiny_rcnn(tmp_path, monkeypatch):
    """The name of a package with a small Faster R-CNN."""
    (tmp_path / 'tiny_rcnn').mkdir()
    (tmp_path / 'tiny_rcnn/detector.py').write_text(
        'from test_faster_rcnn import network\nfrom detector import faster_rcnn\n\n\n'
        'class Detector(faster_rcnn.Detector):\n    def __init__(self):\n        super().__init__(network(), {})\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    return 'tiny_rcnn'


def write_boxes(path, boxes):
    """The forms of --boxes. boxes: {image id: (o, 4) array}."""
    values = {img_id: one.tolist() for img_id, one in boxes.items()}
    rows = [{'img_id': img_id, 'boxes': one} for img_id, one in values.items()]
    path.write_text({
        'object.json': json.dumps(values, indent=1), 'line.json': json.dumps(values), 'list.json': json.dumps(rows),
        'lines.jsonl': '\n'.join(map(json.dumps, rows)), 'lines.json': '\n'.join(map(json.dumps, rows)),
        'boxes.tsv': ''.join('\t'.join(map(str, [img_id, *box])) + '\n' for img_id, one in values.items() for box in one),
    }[path.name])
    return path


@pytest.mark.parametrize('name', ['object.json', 'line.json', 'list.json', 'lines.jsonl', 'lines.json', 'boxes.tsv'])
def test_boxes_are_read_in_any_form(tmp_path, name):
    boxes = {'a': np.float32([[0, 1, 2, 3.5], [4, 5, 6, 7]]), 'b c': np.float32([[1, 2, 3, 4]])}
    read = read_boxes(write_boxes(tmp_path / name, boxes))
    assert list(read) == list(boxes) and all(np.array_equal(read[key], boxes[key]) for key in boxes)


def test_features_of_given_boxes_are_those_of_the_detector_there(pictures, run, tmp_path, tiny_rcnn):
    assert run(pictures, '--minBoxes', 5, '--maxBoxes', 9, detector=tiny_rcnn)[0] == 0
    first = [image for _, image in tsv.read(tmp_path / 'x.tsv')]
    boxes = {image.img_id: image.boxes[::-1].copy() for image in first}  # in another order
    path = write_boxes(tmp_path / 'object.json', boxes)
    status, _, errors = run(pictures, '--boxes', path, out='y.tsv', detector=tiny_rcnn)
    assert status == 0, errors
    for image, (_, same) in zip(first, tsv.read(tmp_path / 'y.tsv'), strict=True):
        assert same.img_id == image.img_id and np.array_equal(same.boxes, image.boxes[::-1])
        np.testing.assert_allclose(same.features, image.features[::-1], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(same.class_conf, image.class_conf[::-1], rtol=1e-3, atol=1e-4)
        assert np.array_equal(same.classes, image.classes[::-1]) and np.array_equal(same.attributes, image.attributes[::-1])
    provenance = json.loads((tmp_path / 'y.tsv.provenance.json').read_text())
    assert provenance['boxes'] == str(path) and len(provenance['sha256 of the boxes']) == 64 and 'min_boxes' not in provenance
    moved = {img_id: np.clip(one / 2, 0, None) for img_id, one in boxes.items()}
    assert run(pictures, '--boxes', write_boxes(tmp_path / 'boxes.tsv', moved), out='z.tsv', detector=tiny_rcnn)[0] == 0
    other = [image for _, image in tsv.read(tmp_path / 'z.tsv')]
    assert np.array_equal(other[0].boxes, moved[other[0].img_id])
    assert np.abs(other[0].features - first[0].features[::-1]).max() > 0.1


def test_boxes_that_do_not_fit_are_broken_pictures(pictures, run, tmp_path, tiny_rcnn):
    names = sorted(path.stem for path in pictures.glob('*.png'))
    good = np.float32([[3, 4, 50, 60]])
    bad = {name: np.float32([box]) for name, box in zip(names[:3], ([3, 4, 5000, 60], [0.1, 0.2, 0.5, 0.9], [5, 5, 5, 9]),
                                                        strict=True)}
    boxes = dict.fromkeys(names[:-1], good) | bad | {'elsewhere': good}
    path = write_boxes(tmp_path / 'lines.jsonl', boxes)
    status, printed, errors = run(pictures, '--boxes', path, detector=tiny_rcnn)
    assert status == 1 and not (tmp_path / 'x.tsv').exists()
    assert 'boxes of 1 images that are not among the pictures (elsewhere): not used' in printed
    listed = (tmp_path / 'x.tsv.broken.txt').read_text().splitlines()
    assert [any(name in line for line in listed) for name in names] == [True, True, True, *[False] * (len(names) - 4), True]
    assert 'expected 0 <= x1 <= x2 <=' in listed[0] and 'divided by width and height' in listed[1]
    assert 'expected x1 < x2 and y1 < y2' in listed[2] and f'no boxes of {names[-1]} in {path}' in listed[3]
    status, printed, errors = run(pictures, '--boxes', path, '--allowBroken', detector=tiny_rcnn)  # goes on from there
    assert status == 0, errors
    assert [image.img_id for _, image in tsv.read(tmp_path / 'x.tsv')] == names[3:-1]


def test_what_cannot_be_done_with_boxes_is_said(pictures, run, tmp_path):
    names = sorted(path.stem for path in pictures.glob('*.png'))
    path = write_boxes(tmp_path / 'boxes.tsv', dict.fromkeys(names, np.float32([[3, 4, 50, 60]])))
    status, _, errors = run(pictures, '--boxes', path)
    assert status == 1 and '--boxes: the detector shapes cannot compute the features of given boxes; faster_rcnn can' in errors
    assert run(pictures, '--boxes', path, '--maxBoxes', 9)[0] == 2
    other = write_boxes(tmp_path / 'list.json', {'cat.jpg': np.float32([[3, 4, 50, 60]])})
    assert 'has boxes of none of the 6 pictures, but of images such as cat.jpg; the pictures have ids' in run(
        pictures, '--boxes', other)[2]


# ---- VL-BERT's layout and class probabilities


def test_class_probabilities_are_stored(pictures, run, tmp_path, tiny_rcnn):
    flags = '--minBoxes', 5, '--maxBoxes', 9
    assert run(pictures, *flags, detector=tiny_rcnn)[0] == 0
    status, _, errors = run(pictures, *flags, '--probabilities', out='x.store', detector=tiny_rcnn)
    assert status == 0, errors
    store = RegionStore(tmp_path / 'x.store')
    assert store.meta['provenance']['class probabilities'] == 'background first' and store.size_of('class_probabilities') == 13
    for row, (_, image) in enumerate(tsv.read(tmp_path / 'x.tsv')):
        stored = store.image(row)
        for name in tsv.ARRAYS:
            np.testing.assert_array_equal(getattr(stored, name), getattr(image, name))
        probabilities = stored.class_probabilities.astype(np.float32)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=0.01)
        assert (np.diff(probabilities.max(1)) <= 1e-3).all()
        np.testing.assert_allclose(probabilities[:, 1:].max(1), image.class_conf, atol=1e-3)
        assert (probabilities[np.arange(len(image.classes)), 1 + image.classes] == probabilities[:, 1:].max(1)).all()
    boxes = write_boxes(tmp_path / 'object.json', {store.image(row).img_id: store.image(row).boxes for row in range(6)})
    status, _, errors = run(pictures, '--boxes', boxes, '--probabilities', out='y.store', detector=tiny_rcnn)
    assert status == 0, errors
    np.testing.assert_allclose(RegionStore(tmp_path / 'y.store').arrays['class_probabilities'],
                               store.arrays['class_probabilities'], atol=2e-3)


ASKED = """
from dataclasses import replace
import numpy as np
from shapes import detector

class Detector(detector.Detector):
    def regions(self, pictures, ids, min_boxes, max_boxes, threshold=None, probabilities=None):
        assert threshold is None or (min_boxes, max_boxes, threshold) == (10, 100, 0.5)
        images = detector.Detector.regions(self, pictures, ids, min_boxes, 36)
        return [replace(one, class_probabilities=np.linspace(0, 1, len(one.boxes), dtype='f2')[:, None]) for one in images]
"""


def test_vlberts_layout_and_class_probabilities_of_an_interrupted_run(pictures, run, tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, 'asked', ASKED)
    images = shutil.copytree(pictures, tmp_path / 'images')
    flags = '--layout', 'vlbert', '--probabilities'
    assert run(images, *flags, out='whole.store', detector='asked')[0] == 0
    first = sorted(images.iterdir())[0]
    good = first.read_bytes()
    first.write_bytes(good[:200])
    assert run(images, *flags, out='x.store', detector='asked')[0] == 1
    first.write_bytes(good)
    lines = tmp_path / 'x.store.unfinished/lines'
    lines.write_bytes(lines.read_bytes()[:-20])  # killed while it wrote
    for other, reason in ((flags[:2], "class probabilities: 'background first' there, none now"),
                          (flags[2:], 'threshold: 0.5 there, none now')):
        status, _, errors = run(images, *other, out='x.store', detector='asked')
        assert status == 1 and reason in errors
    status, printed, errors = run(images, *flags, out='x.store', detector='asked')
    assert status == 0 and 'resumed after 4 of 6' in printed, errors
    one, other = (RegionStore(tmp_path / name) for name in ('whole.store', 'x.store'))
    assert one.digest() == other.digest() and one.size_of('class_probabilities') == 1
    provenance = one.meta['provenance']
    assert (provenance['min_boxes'], provenance['max_boxes'], provenance['threshold']) == (10, 100, 0.5)
    # A TSV has no place for probabilities that were not asked for.
    assert run(images, detector='asked')[0] == 0 and len(list(tsv.read(tmp_path / 'x.tsv'))) == 6


def test_what_a_detector_cannot_do_with_probabilities_is_said(pictures, run, tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, 'plain', """
from shapes import detector

class Detector(detector.Detector):
    def regions(self, pictures, ids, min_boxes, max_boxes):
        return detector.Detector.regions(self, pictures, ids, min_boxes, max_boxes)
""")
    package(tmp_path, monkeypatch, 'forgetful', """
from shapes import detector

class Detector(detector.Detector):
    def regions(self, pictures, ids, min_boxes, max_boxes, **others):
        return detector.Detector.regions(self, pictures, ids, min_boxes, max_boxes)
""")
    for flags, out, detector, code, message in (
            (['--probabilities'], 'x.tsv', 'plain', 2, 'a TSV has no place for class probabilities, .*; name a .store'),
            (['--layout', 'other'], 'x.store', 'plain', 2, 'argument --layout'),
            (['--probabilities'], 'x.store', 'plain', 1, r'--probabilities: the detector plain cannot .* regions\(\) has'),
            (['--layout', 'vlbert'], 'x.tsv', 'plain', 1, '--layout vlbert: the detector plain cannot do this'),
            (['--probabilities'], 'x.store', 'forgetful', 1, 'expected class_probabilities of the detector, found none')):
        status, _, errors = run(pictures, *flags, out=out, detector=detector)
        assert status == code and re.search(message, errors) and 'Traceback' not in errors and not (tmp_path / out).exists()


@pytest.mark.parametrize(('name', 'content', 'fault'), [
    ('a.json', '{"a": [[1, 2, 3]]}', "image 'a': expected a list of boxes"),
    ('a.json', '{"a": []}', "image 'a': expected a list"),
    ('a.json', '{"a": [[1, 2, 3, "4"]]}', "image 'a': expected a list"), ('a.json', '[{"boxes": [[1, 2, 3, 4]]}]', '"img_id"'),
    ('a.json', '{"a": {"x": 1}}', "image 'a': expected a list"),
    ('a.jsonl', '{"img_id": "a", "boxes": [[1, 2, 3, 4]]}\n' * 2, 'once'),
    ('a.tsv', 'a\t1\t2\t3\n', 'a.tsv:1: expected id<TAB>x1'), ('a.tsv', 'a\t1\t2\t3\tnan\n', 'a.tsv:1:'), ('a.tsv', '', 'none')])
def test_faulty_files_of_boxes_are_named(tmp_path, name, content, fault):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=re.escape(fault)):
        read_boxes(tmp_path / name)
