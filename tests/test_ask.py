"""run/ask.bash and Pipeline: pictures and questions to answers, with the sample world's detector."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import lxmert_head
from PIL import Image

from bert.tokenization import BertTokenizer
from bert.weights import save_state
from explain.attention import explain
from images.pictures import open_picture
from lxrt.config import LxrtConfig
from predict import ask
from predict.ask import Pipeline
from regions import readers
from tasks.checkpoints import sidecar_files
from tasks.predictor import Predictor


@pytest.fixture(scope='module')
def snapshots(made_world, tmp_path_factory):
    """Snapshots of VQA and NLVR2 with random weights, and what runs write beside them: {task: BEST}."""
    config, snapshots = LxrtConfig.from_json(made_world / 'bert/config.json'), {}
    for task, answers in (('vqa', ['yes', 'no', 'red', 'circle', '2', '3']), ('nlvr2', ['False', 'True'])):
        folder = tmp_path_factory.mktemp(task)
        torch.manual_seed(4)
        head = lxmert_head(config, len(answers), 1 + (task == 'nlvr2'))
        for name, text in sidecar_files('lxmert', config, BertTokenizer(made_world / 'bert/vocab.txt'), answers).items():
            (folder / name).write_text(text)
        (folder / 'options.json').write_text(json.dumps({'task': task, 'options': {'dataRoot': str(made_world)}}))
        save_state(head.original_state(), folder / 'BEST.pth', '.pth')
        snapshots[task] = folder / 'BEST'
    return snapshots


@pytest.fixture
def run(tmp_path, capsys):
    def run(*items):
        try:
            status = ask.main([*map(str, items), '--out', str(tmp_path / 'out'), '--device', 'cpu'])
        except SystemExit as error:
            status = error.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope='module')
def pictures(made_world):
    return sorted((made_world / 'images/val2014').glob('*.png'))


def test_answers_are_those_of_the_worlds_own_regions(made_world, snapshots, pictures, run, tmp_path):
    """The detector recovers from pixels what the world knows: the same answers, with nearly the same probabilities."""
    questions = ['How many circles are there?', 'Is there a red star?']
    status, out, err = run(*pictures[:2], *questions, '--load', snapshots['vqa'], '--best', '6')
    assert status == 0, err
    predictor = Predictor.from_snapshot(snapshots['vqa'])
    regions = {image.img_id: image for image in readers.chosen(
        made_world / 'mscoco_imgfeat/val2014_obj36.tsv', [file.stem for file in pictures[:2]])}
    images = Pipeline.load(snapshots['vqa']).detect([open_picture(file) for file in pictures[:2]],
                                                    [file.stem for file in pictures[:2]])
    for file, image in zip(pictures, images, strict=False):
        for question in questions:
            block = out.split(f'{file.name}: {question}\n')[1].split('\n\n')[0]
            printed = [line.split('%  ') for line in block.splitlines() if '%  ' in line]
            (expected,) = predictor.answer(image, [question], best=6)
            assert [answer for _, answer in printed] == [answer for answer, _ in expected]
            assert [float(part) for part, _ in printed] == pytest.approx([100 * chance for _, chance in expected], abs=0.051)
            (of_world,) = predictor.answer(regions[file.stem], [question], best=6)
            assert dict(of_world) == pytest.approx(dict(expected), abs=0.05)
            path = next(line.strip() for line in block.splitlines() if line.endswith('.png'))
            with Image.open(path) as picture:
                assert min(picture.size) > 500
    assert len(list((tmp_path / 'out').iterdir())) == 4


def test_two_pictures_a_statement(snapshots, pictures, run):
    status, out, err = run(*pictures[:2], 'both have a circle', '--load', snapshots['nlvr2'])
    assert status == 0, err
    assert out.count('.png: both') == 1 and 'True' in out and 'False' in out and out.count('  regions: ') == 2
    status, _, err = run(*pictures[:3], 'both have a circle', '--load', snapshots['nlvr2'])
    assert status == 1 and 'a question is about 2 pictures, found 3' in err


def test_each_drawing_has_a_file_of_its_own(snapshots, pictures, run, tmp_path):
    """Pictures of two folders with one name, questions without letters from a to z, one picture twice."""
    twins = [tmp_path / folder / 'a photo, 1.PNG' for folder in ('left', 'right')]
    for twin, picture in zip(twins, pictures, strict=False):
        twin.parent.mkdir()
        shutil.copy(picture, twin)
    questions = 'Is it red?', 'Is it red', 'Сколько?', '有几个', 'Is it red 2'
    status, out, err = run(*twins, *questions, '--load', snapshots['vqa'])
    assert status == 0, err
    paths = [line.strip() for line in out.splitlines() if line.endswith('.png')]
    assert len(set(paths)) == len(paths) == 10 == len(list((tmp_path / 'out').iterdir()))
    assert [line for line in paths if 'сколько' in line] and f'{twins[1]}: Сколько?' in out
    status, out, err = run(pictures[0], pictures[0], 'both are red', '--load', snapshots['nlvr2'])
    assert status == 0 and len({line for line in out.splitlines() if line.endswith('.png')}) == 2


def test_in_python_from_files_one_picture_at_a_time(snapshots, pictures, monkeypatch):
    pipeline, questions = Pipeline.load(snapshots['vqa']), ['Is it red?', 'How many?']
    detected, detect = [], pipeline.detect
    monkeypatch.setattr(pipeline, 'detect', lambda images, ids: detected.extend(ids) or detect(images, ids))
    for number, (files, result) in enumerate(pipeline.ask_files(pictures[:3], questions, best=2)):
        (image,) = detect([open_picture(pictures[number // 2])], [pictures[number // 2].stem])
        assert files == (pictures[number // 2],) and len(detected) == number // 2 + 1
        assert result.question == questions[number % 2]
        assert result.answers == pipeline.answer(result.question, [image], 2)[0]
    assert number == 5


def test_a_pair_in_python(snapshots, pictures):
    pipeline = Pipeline.load(snapshots['nlvr2'])
    ((files, result),) = pipeline.ask_files(map(str, pictures[:2]), 'is the left one red')
    assert files == tuple(pictures[:2])
    opened = [open_picture(file) for file in files]
    pair = pipeline.detect(opened, ['left', 'right'])
    assert result.answers == pipeline.predictor.answer([tuple(pair)], result.question, 2)[0]
    assert result.answers != pipeline.predictor.answer([tuple(pair[::-1])], result.question, 2)[0]
    explanation = explain(pipeline.predictor, pair, result.question)
    weights = {word: weight for word, weight in zip(explanation.words, explanation.word_relevance.sum(0), strict=True)
               if word not in ('[CLS]', '[SEP]')}
    best = sorted(weights, key=weights.get, reverse=True)[:5]
    assert result.words == [f'{word} {weights[word] / sum(weights.values()):.0%}' for word in best]
    total = sum(map(sum, explanation.region_relevance))
    for drawing, regions, relevance, picture in zip(result.drawings, result.regions, explanation.region_relevance, opened,
                                                    strict=True):
        assert regions[0].endswith(f' {max(relevance) / total:.0%}')
        small = np.asarray(drawing.resize(picture.shape[1::-1]), float)
        correlation = [np.corrcoef(small.ravel(), other.ravel())[0, 1] for other in opened]
        assert picture is opened[int(np.argmax(correlation))]


def test_as_many_regions_as_are_asked_for(snapshots, pictures):
    pipeline = Pipeline.load(snapshots['vqa'], min_boxes=2, max_boxes=3)
    ((_, result),) = pipeline.ask_files(pictures[:1], 'what?')
    assert len(result.regions[0]) == len(pipeline.detect([open_picture(pictures[0])], ['a'])[0].boxes) == 3


@pytest.fixture
def other_run(snapshots, tmp_path):
    """other_run(options): the VQA snapshot with other options of its run; None: without its options.json."""
    def copy(options):
        folder = shutil.copytree(snapshots['vqa'].parent, tmp_path / 'other', dirs_exist_ok=True)
        if options is None:
            (folder / 'options.json').unlink()
        else:
            (folder / 'options.json').write_text(json.dumps({'task': 'vqa', 'options': options}))
        return folder / 'BEST'

    return copy


def test_detector_and_names_are_those_of_the_snapshots_data(made_world, other_run, pictures, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'world').mkdir()
    (tmp_path / 'world/world.json').write_text('{"format": 3}')
    spec = {'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'splits': {'dev': {'annotations': 'a.json', 'features': ['a.tsv']}}}
    (tmp_path / 'mine.json').write_text(json.dumps(spec | {'detector': 'shapes'}))
    (tmp_path / 'photos.json').write_text(json.dumps(spec))
    answers = []
    shapes = ['--detector', 'shapes']
    for options, flags, numbered in ((None, shapes, True), ({'dataRoot': 'world'}, shapes, True),
                                     ({'dataset': 'mine.json'}, [], True), ({'dataRoot': str(made_world)}, [], False),
                                     (None, [*shapes, '--names', made_world], False)):
        status, out, err = run(pictures[0], 'what?', '--load', other_run(options), *flags)
        assert status == 0 and ('attribute' in out) == numbered, err
        answers.append(out.split('words:')[0])
    assert len(set(answers)) == 1
    for options in None, {'dataRoot': 'world'}, {'dataset': 'photos.json'}, {'dataRoot': 'gone'}:  # no recorded detector
        status, _, err = run(pictures[0], 'what?', '--load', other_run(options))
        assert status == 1 and 'expected regions with 144 features' in err and '--detector' in err


def test_a_detector_of_other_features_is_an_error(snapshots, pictures, monkeypatch):
    pipeline = Pipeline.load(snapshots['vqa'])
    monkeypatch.setattr(Predictor, 'feature_size', 16)
    with pytest.raises(ValueError, match=r'expected regions with 16 features.* returns 144; .*--detector'):
        next(pipeline.ask_files(pictures[:1], 'what?'))


def test_what_is_not_read_of_a_question_is_printed(snapshots, pictures, run):
    status, out, err = run(pictures[0], 'is there ' + 16 * 'red ' + 'star ?', '--load', snapshots['vqa'])
    assert status == 0 and '  too long, not read: star ?\n' in out, err
    assert 'not read' not in run(pictures[0], 'is there ' + 16 * 'red ', '--load', snapshots['vqa'])[1]


def test_faults_are_named(snapshots, other_run, pictures, run, tmp_path, monkeypatch):
    photo = tmp_path / 'photo.jpg'
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(photo)
    other = tmp_path / 'photo.heic'
    other.write_bytes(b'\0\0\0\x1cftypheic')
    load = '--load', snapshots['vqa']
    for items, message in (((pictures[0], *load), 'found 1 and 0'), (('what?', *load), 'found 0 and 1'),
                           (('none.png', 'what?', *load), 'none.png: no such file'),
                           ((tmp_path / 'none.png', pictures[0], 'what?', *load), 'none.png: no such file'),
                           ((pictures[0], other, 'what?', *load), 'photo.heic: expected a picture (JPEG'),
                           ((pictures[0], tmp_path, 'what?', *load), f'{tmp_path}: no such file'),
                           ((pictures[0], ' ', *load), 'expected questions, found an empty one'),
                           ((pictures[0], 'what?', *load, '--best', '0'), '--best: expected at least 1, found 0'),
                           ((photo, 'what?', *load), 'expected a picture of the sample world'),
                           ((pictures[0], 'what?', *load, '--weights', 'x.pkl'), '--weights x.pkl: '),
                           ((pictures[0], 'what?', *load, '--detector', 'none'), '--detector none: expected'),
                           ((photo, 'what?', *load, '--detector', 'faster_rcnn'), 'detector faster_rcnn returns 2048')):
        status, out, err = run(*items)
        assert status == 1 and message in err and 'Traceback' not in err and '%' not in out, message
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ask, 'FASTER_RCNN_FEATURES', 144)
    status, _, err = run(photo, 'what?', '--load', other_run({}))
    assert status == 1 and 'run/download.bash detector' in err
    status, _, err = run(pictures[0], 'what?')
    assert status == 1 and 'bash run/quickstart.bash' in err


def test_without_load_the_published_models_run_or_the_newest_is_taken(snapshots, pictures, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, age, expected in (('b', 3, 'b'), ('a', 2, 'a'), ('c', 4, 'a'), ('vqa_lxr955', 5, None), ('d', 1, None)):
        path = shutil.copytree(snapshots['vqa'].parent, tmp_path / 'snap/vqa' / name) / 'BEST.pth'
        os.utime(path, (10 ** 9 - age, 10 ** 9 - age))
        assert str(ask.default_snapshot()) == f'snap/vqa/{expected or "vqa_lxr955"}/BEST.pth'
    assert 'Answers of snap/vqa/vqa_lxr955/BEST.pth' in run(pictures[0], 'what?')[1]
