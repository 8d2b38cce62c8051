"""The error report: its figures counted again, its page in Chromium, hostile texts, photographs, invalid flags."""

import json
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import Page, needs_chromium
from conftest import ragged
from PIL import Image

from explain.error_analysis import ErrorAnalysis, choose_examples
from explain.error_report import TEMPLATE, page, pictures
from explain.program import main
from files.json_files import DataError
from regions import store, tsv
from regions.class_names import ClassNames
from regions.tsv import RegionError
from tasks.gqa import GQA
from tasks.nlvr2 import NLVR2
from tasks.program import main as train
from tasks.vqa import VQA

SPLITS = {VQA: 'train', GQA: 'testdev', NLVR2: 'valid'}
HOSTILE = '</script><img src=x onerror="hacked=1">'  # an answer, a type, a question


@pytest.fixture(scope='module')
def reports(made_world, tmp_path_factory):
    """(world, {task: (folder of a run, the data of its page)}) of a world whose VQA says HOSTILE instead of yes."""
    world = shutil.copytree(made_world, tmp_path_factory.mktemp('report') / 'shapes')
    ragged(world, '*_imgfeat')
    for path in world.glob('vqa/*.json'):
        path.write_text(path.read_text().replace('"yes"', json.dumps(HOSTILE)).replace('"existence"', json.dumps(HOSTILE)))
    asked = json.loads((world / 'vqa/train.json').read_text())
    asked[0]['sent'] = HOSTILE + ' Is it?'
    asked[1]['label'] = {'no such answer': 1}
    (world / 'vqa/train.json').write_text(json.dumps(asked))
    runs = {}
    for task, split in SPLITS.items():
        folder = world.parent / task.kind
        where = ['--device', 'cpu', '--dataRoot', str(world), '--batchSize', '32', '--output', str(folder)]
        loss = ['--mceLoss'] if task is GQA else []
        assert train(task, [*where, '--bert', str(world / 'bert'), '--train', 'train', '--valid', '', '--epochs', '1',
                            '--lr', '1e-3', '--fromScratch', *loss]) == 0
        vary(folder / 'LAST.pth')
        assert train(task, [*where, '--test', split, '--load', str(folder / 'LAST'), '--dumpProbs', '10', *loss]) == 0
        assert main(flags(world, folder, task)) == 0
        runs[task] = folder, read(folder / 'errors.html')
    return world, runs


def vary(path):
    """Makes a snapshot that answers differently, if not rightly, where an epoch on a small world teaches nearly nothing."""
    state, random = torch.load(path), torch.Generator().manual_seed(0)
    for name in [name for name in state if name.startswith(('logit_fc', 'lxrt_encoder.model.bert.pooler'))]:
        state[name] = torch.randn(state[name].shape, generator=random)
    torch.save(state, path)


def flags(world, folder, task=VQA, *more):
    return ['errors', '--load', str(folder / 'LAST'), '--task', task.kind, '--test', SPLITS[task], '--dataRoot', str(world),
            '--device', 'cpu', '--out', str(folder / 'errors.html'), *map(str, more)]


def read(path):
    """The data of a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>\n', path.read_text())[1])


@pytest.mark.parametrize('task', SPLITS)
def test_the_figures_are_a_plain_count_of_what_test_writes(reports, task):
    world, runs = reports
    folder, data = runs[task]
    known = json.loads((folder / 'answers.json').read_text())
    asked = json.loads((world / task.kind / f'{SPLITS[task]}.json').read_text())
    written = json.loads((folder / f'{SPLITS[task]}_probs.json').read_text())
    right, rows = Counter(), Counter()  # {answer: questions}, {(right, predicted): questions}
    scores, by_right = [], {}
    for question, prediction, example in zip(asked, written, data['examples'], strict=True):
        answer, label = prediction['answers'][0][0], question['label']
        label = {('False', 'True')[label]: 1} if task is NLVR2 else {a: s for a, s in label.items() if a in known}
        scores.append(label.get(answer, 0))
        best = answer if label and scores[-1] == max(label.values()) else max(label, key=label.get, default=None)
        if best is not None:
            right[best] += 1
            rows[best, answer] += 1
            by_right.setdefault(best, []).append(scores[-1])
        assert example['id'] == str(prediction['id']) and example['sent'] == question['sent'] and example['right'] == best
        assert [data['images'][i]['id'] for i in example['images']] == [question[key] for key in task.schema.images]
        assert [answer for answer, _ in example['predictions']] == [answer for answer, _ in prediction['answers']]
        assert [p for _, p in example['predictions']] == pytest.approx([p for _, p in prediction['answers']], abs=1e-3)
        assert example['expected'] == pytest.approx(dict(prediction['answers']).get(best, 0), abs=1e-3)
        assert dict(example['labels']) == pytest.approx(label) and example['score'] == pytest.approx(scores[-1])
        types = {tuple(data['types'][i]) for i in example['types']}
        assert types == {(key.replace('_', ' '), question[key]) for key in ('answer_type', 'question_type') if key in question}
    assert data['score'] == pytest.approx(100 * np.mean(scores)) and data['questions'] == len(asked)
    assert data['verdicts'] == [sum(s == 0 for s in scores), sum(0 < s < 1 for s in scores), sum(s == 1 for s in scores)]
    for kind in data['kinds']:
        for name, count, score in kind['rows']:
            scores_of = [s for s, question in zip(scores, asked, strict=True) if question[kind['kind'].replace(' ', '_')] == name]
            assert (count, score) == (len(scores_of), pytest.approx(100 * np.mean(scores_of)))
        assert [row[1] for row in kind['rows']] == sorted((row[1] for row in kind['rows']), reverse=True)
    assert data['distinct'] == len(right) and len(data['answers']) == min(30, len(right))
    assert [count for _, count, _, _ in data['answers']] == sorted(right.values(), reverse=True)[:30]
    times = Counter(prediction['answers'][0][0] for prediction in written)
    for answer, count, score, spoken in data['answers']:
        assert (count, score, spoken) == (right[answer], pytest.approx(100 * np.mean(by_right[answer])), times[answer])
    named = data['confusion']['answers']
    assert named == [row[0] for row in data['answers'][:15]]
    for answer, counts in zip(named, data['confusion']['counts'], strict=True):
        assert counts[:-1] == [rows[answer, other] for other in named] and sum(counts) == right[answer]


def test_boxes_are_the_most_confident_regions_in_pixels(reports):
    world, runs = reports
    regions = {image.img_id: image for _, image in tsv.read(world / 'mscoco_imgfeat/train2014_obj36.tsv')}
    names = (world / 'objects_vocab.txt').read_text().splitlines()
    for image in runs[VQA][1]['images']:
        source = regions[image['id']]
        order = sorted(range(len(source.boxes)), key=lambda i: -source.class_conf[i])[:12]
        assert [box[:4] for box in image['boxes']] == source.boxes[order].round().tolist() and image['photo'] is None
        assert all(names[source.classes[i]] in box[4] for i, box in zip(order, image['boxes'], strict=True))
        assert (image['width'], image['height']) == (source.width, source.height)


def test_a_page_of_fewer_examples_says_so_and_counts_all(reports):
    world, runs = reports
    folder, data = runs[VQA]
    assert main(flags(world, folder, VQA, '--most', '9', '--out', folder / 'few.html')) == 0
    few = read(folder / 'few.html')
    assert len(few['examples']) == 9 and few['answers'] == data['answers'] and few['questions'] == data['questions'] > 9
    assert {image['id'] for image in few['images']} == {few['images'][i]['id'] for one in few['examples'] for i in one['images']}


def test_which_examples_are_in_the_page():
    numbers = np.random.default_rng(0)
    score, confidence, expected = numbers.integers(0, 3, 300) / 2, numbers.random(300), numbers.random(300)
    assert choose_examples(score, confidence, expected, 300).tolist() == list(range(300))
    places = choose_examples(score, confidence, expected, 60)
    assert len(places) == len(set(places.tolist())) == 60 and places.tolist() == sorted(places)
    wrong = np.flatnonzero(score == 0)
    assert set(sorted(wrong, key=lambda i: -confidence[i])[:20]) <= set(places)
    assert set(sorted(wrong, key=lambda i: expected[i])[:20]) <= set(places)
    assert (score[places] == 1).sum() > 5  # of the others, too, and from everywhere
    assert all(((places >= start) & (places < start + 50)).any() for start in range(0, 300, 50))
    assert len(choose_examples(np.ones(10), confidence[:10], expected[:10], 1)) == 1


def test_an_answer_that_is_as_good_as_the_best_is_no_confusion():
    label = {'label_example': [0, 0, 1, 1, 3], 'label_answer': [1, 2, 0, 1, 2], 'label_score': [1, 1, .3, .6, 0]}
    examples = SimpleNamespace(**{name: np.array(value) for name, value in label.items()})
    dataset = SimpleNamespace(examples=examples, scores=lambda places: np.array([1, .3, 0, 0]))
    analysis = ErrorAnalysis(dataset, np.array([[2, 0], [0, 1], [0, 1], [2, 0]]), np.full((4, 2), .25))
    assert analysis.right.tolist() == [2, 1, -1, -1]  # as good; better; no label; a label of score 0
    assert analysis.expected.tolist() == [.25, .25, 0, 0]


def image_of(img_id, width=40, height=30):
    boxes = np.array([[1, 2, 20, 25], [0, 0, 39, 29]], np.float32)
    return tsv.ImageRegions(img_id, height, width, np.array([0, 1]), np.array([.2, .9], np.float32), np.array([0, 0]),
                            np.array([.0, .0], np.float32), boxes, np.zeros((2, 4), np.float32))


def test_photographs_are_embedded_small_and_missing_ones_are_named(tmp_path, capsys):
    Image.new('RGB', (4000, 3000), 'red').save(tmp_path / 'a.png')
    entries = pictures(iter([image_of('a'), image_of('b')]), 2, ClassNames(), tmp_path)
    assert entries[0]['photo'].startswith('data:image/jpeg;base64,') and len(entries[0]['photo']) < 10000
    assert entries[1]['photo'] is None
    assert [box[4] for box in entries[0]['boxes']] == ['object 1 0.90', 'object 0 0.20']
    assert f'1 of 2 pictures are not in {tmp_path} (b): drawn as a blank canvas' in capsys.readouterr().out


@pytest.mark.parametrize('make, fault, expected', [
    (lambda path: Image.new('RGB', (30, 40)).save(path), RegionError, 'another picture'),
    (lambda path: path.write_bytes(b'\x89PNG'), RegionError, 'a.png: expected a picture'),
    (lambda path: None, DataError, 'has none of the 1 pictures'),
])
def test_photographs_that_do_not_fit(tmp_path, make, fault, expected):
    make(tmp_path / 'a.png')
    with pytest.raises(fault, match=expected):
        pictures([image_of('a')], 1, ClassNames(), tmp_path)


def test_an_image_of_several_files(reports):
    world, _ = reports
    paths = [world / f'mscoco_imgfeat/{name}_obj36.tsv' for name in ('val2014', 'train2014')]
    view, parts = store.open_all(paths), [store.open_regions(path) for path in paths]
    for row, (part, place) in {0: (0, 0), len(parts[0]) - 1: (0, -1), len(parts[0]): (1, 0)}.items():
        expected = parts[part].image(range(len(parts[part]))[place])
        assert view.image(row).img_id == expected.img_id
        np.testing.assert_array_equal(view.image(row).features, expected.features)


@pytest.mark.parametrize('more, expected', [
    (['--test', 'test'], '--test test: these questions have no labels'),
    (['--test', 'no'], '--test no: unknown split'),
    (['--load', 'nothing'], '--load nothing'),
    (['--out', 'x.txt'], '--out x.txt: expected a name ending in .html'),
    (['--most', '0'], '--most: expected at least 1, found 0'),
    (['--batchSize', '0'], '--batchSize: expected at least 1'),
    (['--images', 'nowhere'], '--images nowhere: no such folder'),
    (['--names', 'nowhere'], 'correct --names'),
    (['--task', 'gqa'], 'answers are not the'),
])
def test_faults_are_named_and_nothing_is_written(reports, tmp_path, capsys, more, expected):
    world, runs = reports
    status = main([*flags(world, runs[VQA][0]), '--out', str(tmp_path / 'none.html'), *more])
    assert status == 1 and not list(tmp_path.iterdir())
    error = capsys.readouterr().err
    assert error.startswith('show.bash: error: ') and expected in error


def test_wrong_usage(capsys):
    for words in ([], ['errors'], ['nothing'], ['errors', '--load', 'x', '--test', 'y', '--task', 'z']):
        with pytest.raises(SystemExit) as raised:
            main(words)
        assert raised.value.code == 2


def test_no_text_can_end_the_script_that_holds_it(reports):
    text, template = (reports[1][VQA][0] / 'errors.html').read_text(), TEMPLATE.read_text()
    for part in ('<script', '</script', '<img', '<!--'):
        assert text.count(part) == template.count(part)
    assert not re.findall(r'(?:src|href)="(?!#)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)', template)


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
    with Page(tmp_path_factory.mktemp('chromium')) as page:
        yield page


@pytest.fixture
def view(chromium):
    """view(path): the page, opened in a wide window. After the test: no script failed, and nothing else was requested."""
    opened = []
    chromium.faults.clear()
    chromium.requests.clear()

    def open_page(path):
        chromium.screen(1280, 900)
        chromium.open(path.as_uri())
        opened.append(path.as_uri())
        return chromium

    yield open_page
    assert not chromium.faults and chromium.requests == opened


def put(page, where, value, event='input'):
    page.run(f'(() => {{ const at = document.getElementById({json.dumps(where)}); at.value = {json.dumps(value)};'
             f"at.dispatchEvent(new Event('{event}', {{bubbles: true}})); }})()")


def shown(page):
    """(ids of the examples shown, how many fit what was chosen)."""
    ids = page.run("[...document.querySelectorAll('article')].map(each => each.dataset.id)")
    count = re.match(r'([\d,]+) of ', page.text('#count')[0])
    return ids, int(count[1].replace(',', '')) if count else 0


@needs_chromium
def test_the_page_opens_on_the_most_confident_mistakes_and_filters(reports, view):
    folder, data = reports[1][VQA]
    page, examples = view(folder / 'errors.html'), data['examples']
    assert page.run('document.title') == 'VQA, train: error report'
    assert f'{data["score"]:.2f}' in page.text('#figures')[0]
    wrong = sorted((e for e in examples if e['score'] == 0), key=lambda e: -e['predictions'][0][1])
    assert shown(page) == ([e['id'] for e in wrong[:20]], len(wrong))
    put(page, 'order', 'worst')
    ids = [e['id'] for e in sorted(wrong, key=lambda e: (e['expected'], -e['predictions'][0][1]))]
    assert shown(page) == (ids[:20], len(wrong))
    put(page, 'verdict', '2')
    assert shown(page)[1] == sum(e['score'] == 1 for e in examples)
    put(page, 'verdict', '')
    assert shown(page)[1] == len(examples)
    number = next(i for i, (kind, name) in enumerate(data['types']) if name == 'number')
    put(page, 'type', str(number))
    assert shown(page)[1] == sum(number in e['types'] for e in examples) > 0
    put(page, 'right', '=2')
    assert shown(page)[1] == sum(number in e['types'] and e['right'] == '2' for e in examples) > 0
    page.run("document.querySelector('button[type=reset]').click()")
    page.run('new Promise(done => setTimeout(done))')
    put(page, 'predicted', '=' + examples[0]['predictions'][0][0])
    assert shown(page)[1] == sum(e['predictions'][0][0] == examples[0]['predictions'][0][0] for e in examples)


@needs_chromium
def test_search_finds_words_of_questions_answers_and_ids(reports, view):
    folder, data = reports[1][VQA]
    page = view(folder / 'errors.html')
    put(page, 'verdict', '')
    for text in ('HOW many', data['examples'][5]['id'], 'no such thing anywhere', 'red circle', data['images'][0]['id']):
        put(page, 'search', text)
        expected = [e for e in data['examples'] if all(word in '\n'.join(
            [e['sent'], e['id'], e['predictions'][0][0], *(label for label, _ in e['labels']),
             *(data['images'][i]['id'] for i in e['images'])]).lower() for word in text.lower().split())]
        assert shown(page)[1] == len(expected)
    put(page, 'search', 'no such thing anywhere')
    assert 'No example matches' in page.text('#count')[0] and not page.text('article')


@needs_chromium
def test_hostile_texts_are_shown_as_texts(reports, view, tmp_path):
    folder, data = reports[1][VQA]
    page_ = view(folder / 'errors.html')
    put(page_, 'verdict', '')
    put(page_, 'order', 'file')
    assert page_.text('h3')[0] == HOSTILE + ' Is it?'
    assert HOSTILE in page_.text('#answers')[0] and HOSTILE in page_.text('#kinds')[0] and HOSTILE in page_.text('#confusion')[0]
    hostile = json.loads(json.dumps(data), object_hook=lambda one: {
        key: f'{value}{HOSTILE}' if isinstance(value, str) else value for key, value in one.items()})
    for image in hostile['images']:
        image['boxes'] = [[*box[:4], HOSTILE] for box in image['boxes']]
    (tmp_path / 'hostile.html').write_text(page(hostile))
    page_ = view(tmp_path / 'hostile.html')
    assert HOSTILE in page_.text('.names li')[0] and HOSTILE in page_.text('#about')[0]
    assert page_.run("typeof hacked + document.querySelectorAll('img, article script').length") == 'undefined0'


@needs_chromium
def test_a_cell_of_the_confusions_shows_its_examples_by_mouse_and_by_keys(reports, view):
    folder, data = reports[1][VQA]
    page, (answers, counts) = view(folder / 'errors.html'), data['confusion'].values()
    i, j = next((i, j) for i, row in enumerate(counts) for j, count in enumerate(row[:-1]) if i != j and count)
    cell = f"document.querySelectorAll('#confusion tbody tr')[{i}].querySelectorAll('button')[{j}]"
    assert str(counts[i][j]) in page.run(f'{cell}.title') and answers[i] in page.run(f"{cell}.getAttribute('aria-label')")
    page.run(f'{cell}.click()')
    assert shown(page)[1] == counts[i][j]
    assert page.run('document.activeElement.id') == 'examples'
    page.run("document.querySelector('#confusion button[tabindex=\"0\"]').focus()")
    for key in ('ArrowRight', 'ArrowDown', 'ArrowLeft', 'ArrowUp', 'ArrowUp', 'ArrowDown'):  # one of them leads nowhere
        page.press(key)
    second = "document.querySelectorAll('#confusion tbody tr')[1].querySelector('button')"
    assert page.run(f'document.activeElement === {second}')
    page.press('Enter', '\r')
    assert shown(page)[1] == counts[1][0]
    i = next(i for i, row in enumerate(counts) if row[-1] and sum(row[:i] + row[i + 1:-1]))  # and others are confused with it
    page.run(f"document.querySelectorAll('#confusion tbody tr')[{i}].querySelectorAll('button')[{len(answers)}].click()")
    assert shown(page)[1] == counts[i][-1]


@needs_chromium
def test_all_is_reached_by_keys_and_has_a_name(reports, view):
    page = view(reports[1][VQA][0] / 'errors.html')
    reached = []
    for _ in range(200):
        page.press('Tab')
        reached.append(page.run('document.activeElement.id'))
    for name in ('search', 'verdict', 'type', 'right', 'predicted', 'order', 'boxes', 'more'):
        assert name in reached
    rows = "document.querySelectorAll('#answers tbody tr:not([hidden])').length"
    assert page.run(rows) == 12
    page.run("document.querySelector('#answers .long > button').click()")
    assert page.run(rows) == len(reports[1][VQA][1]['answers'])
    assert page.run("[...document.querySelectorAll('input, select')].every(each => each.labels[0].innerText.trim())")
    assert page.run("[...document.querySelectorAll('button, svg')].every(each => (each.ariaLabel || each.textContent).trim())")


@needs_chromium
def test_pictures_with_their_regions_and_two_of_nlvr2(reports, view):
    world, runs = reports
    folder, data = runs[NLVR2]
    page = view(folder / 'errors.html')
    example = next(e for e in data['examples'] if e['id'] == shown(page)[0][0])
    assert page.run("[...document.querySelector('article').querySelectorAll('svg')].map(each => each.ariaLabel)") == [
        f'Picture {data["images"][i]["id"]}' for i in example['images']]
    boxes = data['images'][example['images'][1]]['boxes']
    seen = page.run("[...document.querySelector('article').querySelectorAll('svg')[1].querySelectorAll('.box')].map(each => "
                    "['x', 'y', 'width', 'height'].map(key => Number(each.getAttribute(key))))")
    assert sorted(seen) == sorted([x1, y1, max(x2 - x1, 1), max(y2 - y1, 1)] for x1, y1, x2, y2, _ in boxes)
    photos = world.parent / 'photos'
    for part in (world / 'images').glob('*/'):
        shutil.copytree(part, photos, dirs_exist_ok=True)
    assert main(flags(world, folder, NLVR2, '--images', photos, '--out', folder / 'photos.html')) == 0
    page = view(folder / 'photos.html')
    assert page.run("""Promise.all([...document.querySelectorAll('svg image')].map(each => {
        const photo = new Image();
        photo.src = each.getAttribute('href');
        return photo.decode();
    })).then(all => all.length)""") > 1
    page.run("document.getElementById('boxes').click()")
    assert page.run("getComputedStyle(document.querySelector('.box')).display") == 'none'


@needs_chromium
def test_thousands_of_examples_on_a_phone_in_the_dark(reports, view, tmp_path):
    data = reports[1][GQA][1]
    example = max(data['examples'], key=lambda e: len(e['sent']))
    many = [example | {'id': str(i), 'sent': f'{"very" * 40}long {i}'} for i in range(5000)]
    data = data | {'examples': many, 'questions': 6000}
    (tmp_path / 'many.html').write_text(page(data))
    page_ = view(tmp_path / 'many.html')
    put(page_, 'verdict', '')
    put(page_, 'order', 'file')
    assert shown(page_) == ([str(i) for i in range(20)], 5000) and '1,000 are left out' in page_.text('#left')[0]
    page_.run("document.getElementById('more').click()")
    assert shown(page_) == ([str(i) for i in range(40)], 5000)
    assert page_.text('#more') == ['Show more']
    put(page_, 'search', '4999')
    assert shown(page_) == (['4999'], 1) and page_.run("document.getElementById('more').offsetHeight") == 0
    light = page_.run('getComputedStyle(document.body).backgroundColor')
    page_.screen(360, 740, dark=True)
    assert page_.run('document.documentElement.scrollWidth <= innerWidth')
    assert page_.run('getComputedStyle(document.body).backgroundColor') != light
    page_.screen(800, 1100, dark=True, media='print')
    assert page_.run('getComputedStyle(document.body).backgroundColor') == light
    assert page_.run("getComputedStyle(document.getElementById('form')).display") == 'none'
