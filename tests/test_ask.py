"""run/ask.bash: pictures and questions to answers, with the sample world's detector and the Faster R-CNN."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lxrt.config import LxrtConfig
from lxrt.entry import LXRTEncoder
from lxrt.tokenization import BertTokenizer
from lxrt.weights import save_state
from regions import source
from regions.pictures import open_picture
from show import ask
from show.attention import look
from start import files_beside
from tasks.answerer import Answerer
from tasks.model import AnswerModel


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
    answerer = Answerer.from_snapshot(snapshots['vqa'])
    regions = {image.img_id: image for image in source.chosen(
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


@pytest.mark.parametrize('task', ['vqa', 'nlvr2'])
def test_the_words_and_regions_told_are_those_of_the_most_relevance(made_world, snapshots, pictures, run, task):
    asker = ask.Asker.load(snapshots[task], max_boxes=36)
    files = pictures[:asker.pictures]
    images = asker.see([open_picture(file) for file in files], [file.stem for file in files])
    seen = look(asker.answerer, images, 'there is a red star')
    out = run(*files, 'there is a red star', '--load', snapshots[task], '--names', made_world)[1]
    told = [line.removeprefix('  regions: ').split(', ') for line in out.splitlines() if line.startswith('  regions')]
    names = (made_world / 'objects_vocab.txt').read_text().split()
    for image, weights, line in zip(images, seen.of_regions, told, strict=True):
        best = sorted(range(len(image.boxes)), key=lambda region: -weights[region])[:5]
        assert [text.split()[0] for text in line] == list('12345')
        assert [text.split()[-2] for text in line] == [names[image.classes[region]] for region in best]
        assert [text.split()[-1] for text in line] == [f'{weights[region] / weights.sum():.0%}' for region in best]
    of_words = {word: seen.of_words[:, place].mean() for place, word in enumerate(seen.words) if word not in ('[CLS]', '[SEP]')}
    best = sorted(of_words, key=of_words.get)[::-1]
    assert f'  words: {", ".join(f"{word} {of_words[word] / sum(of_words.values()):.0%}" for word in best)}\n' in out


def test_there_are_as_many_regions_as_are_asked_for(snapshots, pictures, run):
    out = run(pictures[0], 'what?', '--load', snapshots['vqa'], '--minBoxes', '2', '--maxBoxes', '2')[1]
    regions, = (line for line in out.splitlines() if line.startswith('  regions'))
    assert regions.count('%') == 2
    assert 'found 40 and 36' in run(pictures[0], 'what?', '--load', snapshots['vqa'], '--minBoxes', '40')[2]


def test_no_drawing_replaces_another(snapshots, pictures, run, tmp_path):
    """Of a pair of one picture, of pictures called alike, of questions that differ in what a name of a file has no place for."""
    other = tmp_path / 'other' / pictures[0].name
    other.parent.mkdir()
    shutil.copy(pictures[1], other)
    for items, load in (((pictures[0], pictures[0], 'both have a circle'), 'nlvr2'), ((pictures[0], '什么', '哪里'), 'vqa'),
                        ((pictures[0], other, 'what?'), 'vqa')):
        status, out, err = run(*items, '--load', snapshots[load])
        drawn = [line.strip() for line in out.splitlines() if line.endswith('.png')]
        assert status == 0 and len(set(drawn)) == 2 and all(os.path.isfile(path) for path in drawn), err


def test_what_is_not_read_of_a_question_is_told(snapshots, pictures, run):
    status, out, err = run(pictures[0], 'is there ' + 16 * 'red ' + 'star ?', '--load', snapshots['vqa'])
    assert status == 0 and '  too long, not read: star ?\n' in out, err
    assert 'not read' not in run(pictures[0], 'is there ' + 16 * 'red ', '--load', snapshots['vqa'])[1]


def test_faults_are_named(snapshots, pictures, run, tmp_path, monkeypatch):
    photo = tmp_path / 'photo.jpg'
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(photo)
    load = '--load', snapshots['vqa']
    heic = tmp_path / 'photo.heic'
    heic.write_bytes(b'')
    for items, says in (((pictures[0], *load), 'found 1 and 0'), ((pictures[0], ' ', *load), "expected a text, found ' '"),
                        ((pictures[0], heic, 'what?', *load), 'photo.heic: expected a question, or a picture'),
                        (('what?', *load), 'found 0 and 1'),
                        (('none.png', 'what?', *load), 'none.png: no such file'),
                        ((photo, 'what?', *load), 'expected a picture of the sample world'),
                        ((pictures[0], 'what?', *load, '--weights', 'x.pkl'), '--weights x.pkl: '),
                        ((photo, 'what?', *load, '--detector', 'faster_rcnn'), 'run/download.bash detector')):
        status, _, err = run(*items)
        assert status == 1 and says in err and 'Traceback' not in err, says
    monkeypatch.chdir(tmp_path)
    status, _, err = run(pictures[0], 'what?')
    assert status == 1 and 'bash run/quickstart.bash' in err


def test_without_load_the_published_models_run_or_the_newest_is_taken(snapshots, pictures, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for age, (name, taken) in enumerate((('b', 'b'), ('a', 'a'), ('vqa_lxr955', 'vqa_lxr955'), ('c', 'vqa_lxr955'))):
        shutil.copytree(snapshots['vqa'].parent, tmp_path / 'snap/vqa' / name)
        os.utime(tmp_path / 'snap/vqa' / name / 'BEST.pth', (age, age))
        assert f'Answers of snap/vqa/{taken}/BEST.pth' in run(pictures[0], 'what?')[1]


def test_regions_have_the_names_of_their_detector_where_these_are(made_world, snapshots, pictures, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ' object ' in run(pictures[0], 'what?', '--load', snapshots['vqa'])[1]
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/shapes').symlink_to(made_world)
    out = run(pictures[0], 'what?', '--load', snapshots['vqa'])[1]
    assert ' object ' not in out and any(f' {name} ' in out for name in (made_world / 'objects_vocab.txt').read_text().split())
