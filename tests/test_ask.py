"""run/ask.bash: pictures and questions to answers, with the sample world's detector and the Faster R-CNN."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from bert.tokenization import BertTokenizer
from bert.weights import save_state
from explain.attention import look
from images.pictures import open_picture
from lxrt.config import LxrtConfig
from lxrt.entry import LXRTEncoder
from predict import ask
from regions import readers
from tasks.checkpoints import files_beside
from tasks.model import AnswerModel
from tasks.predictor import Predictor


@pytest.fixture(scope='module')
def snapshots(made_world, tmp_path_factory):
    """Models of VQA and NLVR2 that have learned nothing, with what lies beside them: {task: BEST}."""
    config, found = LxrtConfig.from_json(made_world / 'bert/config.json'), {}
    for task, answers in (('vqa', ['yes', 'no', 'red', 'circle', '2', '3']), ('nlvr2', ['False', 'True'])):
        folder = tmp_path_factory.mktemp(task)
        torch.manual_seed(4)
        model = AnswerModel(LXRTEncoder(config), len(answers), images=1 + (task == 'nlvr2'))
        for name, text in files_beside(config, BertTokenizer(made_world / 'bert/vocab.txt'), answers).items():
            (folder / name).write_text(text)
        save_state(model.state_dict(), folder / 'BEST.pth', '.pth')
        found[task] = folder / 'BEST'
    return found


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
    """The detector sees in the pixels what the world knows: the same answers, with nearly the same probabilities."""
    questions = ['How many circles are there?', 'Is there a red star?']
    status, out, err = run(*pictures[:2], *questions, '--load', snapshots['vqa'], '--best', '6', '--names', made_world)
    assert status == 0, err
    answerer = Predictor.from_snapshot(snapshots['vqa'])
    regions = {image.img_id: image for image in readers.chosen(
        made_world / 'mscoco_imgfeat/val2014_obj36.tsv', [file.stem for file in pictures[:2]])}
    asker = ask.Asker.load(snapshots['vqa'])
    images = asker.see([open_picture(file) for file in pictures[:2]], [file.stem for file in pictures[:2]])
    for file, image in zip(pictures, images, strict=False):
        for question in questions:
            block = out.split(f'{file.name}: {question}\n')[1].split('\n\n')[0]
            told = [line.split('%  ') for line in block.splitlines() if '%  ' in line]
            (expected,) = answerer.answer(image, [question], best=6)
            assert [answer for _, answer in told] == [answer for answer, _ in expected]
            assert [float(part) for part, _ in told] == pytest.approx([100 * chance for _, chance in expected], abs=0.051)
            (own,) = answerer.answer(regions[file.stem], [question], best=6)
            assert dict(own) == pytest.approx(dict(expected), abs=0.05)
            drawn = next(line.strip() for line in block.splitlines() if line.endswith('.png'))
            with Image.open(drawn) as picture:
                assert min(picture.size) > 500
    assert len(list((tmp_path / 'out').iterdir())) == 4


def test_two_pictures_a_statement(snapshots, pictures, run):
    status, out, err = run(*pictures[:2], 'both have a circle', '--load', snapshots['nlvr2'])
    assert status == 0, err
    assert out.count('.png: both') == 1 and 'True' in out and 'False' in out and out.count('  regions: ') == 2
    status, _, err = run(*pictures[:3], 'both have a circle', '--load', snapshots['nlvr2'])
    assert status == 1 and 'a question is about 2 pictures, found 3' in err


def test_each_drawing_has_a_file_of_its_own(snapshots, pictures, run, tmp_path):
    """Of pictures of two folders that are called alike, of questions in letters that are none of a to z, of one picture twice."""
    twins = [tmp_path / folder / 'a photo, 1.PNG' for folder in ('left', 'right')]
    for twin, picture in zip(twins, pictures, strict=False):
        twin.parent.mkdir()
        shutil.copy(picture, twin)
    questions = 'Is it red?', 'Is it red', 'Сколько?', '有几个', 'Is it red 2'
    status, out, err = run(*twins, *questions, '--load', snapshots['vqa'])
    assert status == 0, err
    told = [line.strip() for line in out.splitlines() if line.endswith('.png')]
    assert len(set(told)) == len(told) == 10 == len(list((tmp_path / 'out').iterdir()))
    assert [line for line in told if 'сколько' in line] and f'{twins[1]}: Сколько?' in out
    status, out, err = run(pictures[0], pictures[0], 'both are red', '--load', snapshots['nlvr2'])
    assert status == 0 and len({line for line in out.splitlines() if line.endswith('.png')}) == 2


def test_in_python_from_files_one_picture_at_a_time(snapshots, pictures, monkeypatch):
    asker, questions = ask.Asker.load(snapshots['vqa']), ['Is it red?', 'How many?']
    seen, see = [], asker.see
    monkeypatch.setattr(asker, 'see', lambda images, ids: seen.extend(ids) or see(images, ids))
    for number, (files, asked) in enumerate(asker.ask_files(pictures[:3], questions, best=2)):
        picture = open_picture(pictures[number // 2])
        (image,) = see([picture], [pictures[number // 2].stem])
        assert files == (pictures[number // 2],) and len(seen) == number // 2 + 1
        assert asked.question == questions[number % 2]
        assert asked.answers == asker.answer(asked.question, [image], 2)[0]
    assert number == 5


def test_a_pair_in_python(snapshots, pictures):
    asker = ask.Asker.load(snapshots['nlvr2'])
    ((files, asked),) = asker.ask_files(map(str, pictures[:2]), 'is the left one red')
    assert files == tuple(pictures[:2])
    opened = [open_picture(file) for file in files]
    pair = asker.see(opened, ['left', 'right'])
    assert asked.answers == asker.answerer.answer([tuple(pair)], asked.question, 2)[0]
    assert asked.answers != asker.answerer.answer([tuple(pair[::-1])], asked.question, 2)[0]
    seen = look(asker.answerer, pair, asked.question)
    own = {word: weight for word, weight in zip(seen.words, seen.of_words.sum(0), strict=True) if word not in ('[CLS]', '[SEP]')}
    best = sorted(own, key=own.get, reverse=True)[:5]
    assert asked.words == [f'{word} {own[word] / sum(own.values()):.0%}' for word in best]
    for drawn, regions, weights, picture in zip(asked.drawn, asked.regions, seen.of_regions, opened, strict=True):
        assert regions[0].endswith(f' {max(weights) / sum(map(sum, seen.of_regions)):.0%}')
        small = np.asarray(drawn.resize(picture.shape[1::-1]), float)
        apart = [np.corrcoef(small.ravel(), other.ravel())[0, 1] for other in opened]
        assert picture is opened[int(np.argmax(apart))]


def test_as_many_regions_as_are_asked_for(snapshots, pictures):
    asker = ask.Asker.load(snapshots['vqa'], min_boxes=2, max_boxes=3)
    ((_, asked),) = asker.ask_files(pictures[:1], 'what?')
    assert len(asked.regions[0]) == len(asker.see([open_picture(pictures[0])], ['a'])[0].boxes) == 3


def test_regions_have_the_names_of_the_sample_world_where_it_is(made_world, snapshots, pictures, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = pictures[0], 'what?', '--load', snapshots['vqa']
    assert '  regions: 1 attribute ' in run(*flags)[1]
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes').symlink_to(made_world)
    assert run(*flags)[1] == run(*flags, '--names', made_world)[1] and 'attribute' not in run(*flags)[1]


def test_what_is_not_read_of_a_question_is_told(snapshots, pictures, run):
    status, out, err = run(pictures[0], 'is there ' + 16 * 'red ' + 'star ?', '--load', snapshots['vqa'])
    assert status == 0 and '  too long, not read: star ?\n' in out, err
    assert 'not read' not in run(pictures[0], 'is there ' + 16 * 'red ', '--load', snapshots['vqa'])[1]


def test_faults_are_named(snapshots, pictures, run, tmp_path, monkeypatch):
    photo = tmp_path / 'photo.jpg'
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(photo)
    other = tmp_path / 'photo.heic'
    other.write_bytes(b'\0\0\0\x1cftypheic')
    load = '--load', snapshots['vqa']
    for items, says in (((pictures[0], *load), 'found 1 and 0'), (('what?', *load), 'found 0 and 1'),
                        (('none.png', 'what?', *load), 'none.png: no such file'),
                        ((tmp_path / 'none.png', pictures[0], 'what?', *load), 'none.png: no such file'),
                        ((pictures[0], other, 'what?', *load), 'photo.heic: expected a picture (JPEG'),
                        ((pictures[0], tmp_path, 'what?', *load), f'{tmp_path}: no such file'),
                        ((pictures[0], ' ', *load), 'expected questions, found an empty one'),
                        ((pictures[0], 'what?', *load, '--best', '0'), '--best: expected at least 1, found 0'),
                        ((photo, 'what?', *load), 'expected a picture of the sample world'),
                        ((pictures[0], 'what?', *load, '--weights', 'x.pkl'), '--weights x.pkl: '),
                        ((photo, 'what?', *load, '--detector', 'faster_rcnn'), 'run/download.bash detector')):
        status, out, err = run(*items)
        assert status == 1 and says in err and 'Traceback' not in err and '%' not in out, says
    monkeypatch.chdir(tmp_path)
    status, _, err = run(pictures[0], 'what?')
    assert status == 1 and 'bash run/quickstart.bash' in err


def test_without_load_the_published_models_run_or_the_newest_is_taken(snapshots, pictures, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, age, taken in (('b', 3, 'b'), ('a', 2, 'a'), ('c', 4, 'a'), ('vqa_lxr955', 5, None), ('d', 1, None)):
        made = shutil.copytree(snapshots['vqa'].parent, tmp_path / 'snap/vqa' / name) / 'BEST.pth'
        os.utime(made, (10 ** 9 - age, 10 ** 9 - age))
        assert f'Answers of snap/vqa/{taken or "vqa_lxr955"}/BEST.pth' in run(pictures[0], 'what?')[1]
