"""run/demo.bash: its answers beside the library's, its page in Chromium, faults of what is sent and of how it is called."""

import base64
import io
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import requests
from browser import Page, needs_chromium
from PIL import Image
from test_ask import snapshots  # noqa: F401, a fixture

from demo import app
from regions.pictures import open_picture
from show.ask import Asker
from show.attention import SPECIAL, look

QUESTION = 'How many circles are there?'


@contextmanager
def serving(snapshot, world):
    """The address of a demo that runs, and its Demo."""
    flags = app.parser().parse_args(['--load', str(snapshot), '--world', str(world), '--device', 'cpu'])
    with app.serve(app.open_demo(flags)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f'http://127.0.0.1:{server.server_port}', server.demo
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope='module', params=['vqa', 'nlvr2'])
def demo(request, snapshots, made_world):  # noqa: F811
    with serving(snapshots[request.param], made_world) as found:
        yield *found, snapshots[request.param]


@pytest.fixture(scope='module')
def address(snapshots, made_world):  # noqa: F811
    with serving(snapshots['vqa'], made_world) as (found, _):
        yield found


@pytest.fixture(scope='module')
def files(made_world):
    return sorted((made_world / 'images/val2014').glob('*.png'))


def ask(address, question, *pictures):
    """The reply to a question about the bytes of pictures."""
    return requests.post(f'{address}/ask', json={'question': question, 'pictures': [base64.b64encode(one).decode() for one in
                                                                                   pictures]}, timeout=60)


def test_answers_and_weights_are_those_of_the_library(demo, files, made_world):
    address, running, snapshot = demo
    chosen = files[:running.asker.pictures]
    assert running.gallery == files[:12]
    found = ask(address, QUESTION, *(file.read_bytes() for file in chosen)).json()
    asker = Asker.load(snapshot)
    images = asker.see([open_picture(file) for file in chosen], [file.stem for file in chosen])
    regions = [tuple(images)] if len(chosen) > 1 else images
    (expected,) = asker.answerer.answer(regions, [QUESTION], best=5)
    assert [answer for answer, _ in found['answers']] == [answer for answer, _ in expected]
    assert [chance for _, chance in found['answers']] == pytest.approx([chance for _, chance in expected], abs=1e-5)
    seen = look(asker.answerer, images, QUESTION)
    assert [word for word, _ in found['words']] == seen.words
    own = [0 if word in SPECIAL else weight for word, weight in zip(seen.words, seen.of_words.mean(0), strict=True)]
    assert [share for _, share in found['words']] == pytest.approx(np.array(own) / sum(own), abs=1e-3)
    names = (made_world / 'objects_vocab.txt').read_text().splitlines()
    for i, (picture, image, file) in enumerate(zip(found['pictures'], images, chosen, strict=True)):
        assert np.array([box[:4] for box in picture['boxes']]) == pytest.approx(image.boxes, abs=.051)
        assert all(names[number] in box[4] for number, box in zip(image.classes, picture['boxes'], strict=True))
        assert picture['relevance'] == pytest.approx(seen.of_regions[i] / seen.of_regions[i].sum(), abs=1e-3)
        last = seen.attention['cross1.lang_to_visn'][i]  # (h, t, o); the model has one cross layer
        assert np.array(picture['attention']) == pytest.approx(sum(last) / len(last), abs=1e-3)
        with Image.open(io.BytesIO(base64.b64decode(picture['photo'].split(',')[1]))) as photo, Image.open(file) as own_file:
            assert photo.size == own_file.size == (picture['width'], picture['height'])


@needs_chromium
def test_the_page_is_opened_asked_and_read(demo, files, tmp_path):
    """A sample by a click and, in the last place, a file that is uploaded; the answers stand there as they were sent."""
    address, running, _ = demo
    count = running.asker.pictures
    with Page(tmp_path / 'profile') as page:
        page.open(address)
        press(page)
        wait(page, 'id("fault").textContent')
        assert page.text('#fault') == [f'Choose {"picture 1" if count > 1 else "a picture"} first.']
        if count > 1:
            page.run('document.querySelector("#gallery button").click()')
            wait(page, 'chosen[0]')
        upload(page, files[count - 1].read_bytes())
        page.run(f'id("question").value = {json.dumps(QUESTION)}')
        press(page)
        wait(page, '!id("result").hidden')
        expected = ask(address, QUESTION, *(file.read_bytes() for file in files[:count])).json()
        rows = page.run('[...document.querySelectorAll("#answers tr")].map(row => [...row.children].map(cell => cell.innerText))')
        assert [row[0] for row in rows] == [answer for answer, _ in expected['answers']]
        assert [float(row[1][:-1]) for row in rows] == pytest.approx([100 * p for _, p in expected['answers']], abs=.51)
        assert len(page.text('#views figure')) == count and page.text('#fault') == ['']
        assert page.run('document.querySelector("#views image").href.baseVal').startswith('data:image/jpeg')
        number = len(expected['words']) - 3  # the last word before the question mark
        page.run(f'id("words").children[{number}].focus()')
        assert f'“{expected["words"][number][0]}” looks' in page.text('#shown')[0]
        for listed, picture in zip(page.run('[...document.querySelectorAll("ol")].map(list => list.innerText)'),
                                   expected['pictures'], strict=True):
            best = max(range(len(picture['boxes'])), key=picture['attention'][number].__getitem__)
            assert listed.startswith(f'{picture["boxes"][best][4]} ')
        page.run('document.activeElement.blur()')
        assert 'relevance for the first answer' in page.text('#shown')[0] and not page.faults
        assert all(asked.startswith((address, f'blob:{address}')) for asked in page.requests)


@needs_chromium
def test_faults_are_told_on_the_page(address, tmp_path):
    with Page(tmp_path / 'profile') as page:
        page.open(address)
        upload(page, b'no picture')
        page.run('id("question").value = "what?"')
        press(page)
        wait(page, 'id("fault").textContent')
        assert 'expected a picture (JPEG' in page.text('#fault')[0] and page.run('id("result").hidden')
        page.run('choose(0, {size: about.most + 1})')
        assert 'at most 24 MB' in page.text('#fault')[0] and page.run('chosen[0] === null')


def upload(page, data):
    """Puts bytes as a file into the last place, as choosing it does."""
    page.run(f'''(() => {{
        const held = new DataTransfer(), bytes = Uint8Array.from(atob("{base64.b64encode(data).decode()}"), c => c.charCodeAt(0));
        held.items.add(new File([bytes], 'own.png'));
        const input = [...document.querySelectorAll('input[type=file]')].at(-1);
        input.files = held.files;
        input.dispatchEvent(new Event('change'));
    }})()''')


def press(page):
    page.run('id("ask").click()')


def wait(page, condition, patience=30):
    end = time.monotonic() + patience
    while not page.run(f'Boolean({condition})'):
        assert time.monotonic() < end, (condition, page.text('#fault'), page.faults)
        time.sleep(.05)


def png(width, height):
    data = io.BytesIO()
    Image.new('RGB', (width, height)).save(data, 'PNG')
    return data.getvalue()


@pytest.mark.parametrize('question, pictures, says', [
    ('what?', [], 'expected 1, found 0'),
    ('what?', [b'', b''], 'expected 1, found 2'),
    (' ', [b''], 'expected some words'),
    (3, [b''], 'a text "question"'),
    ('what?', [b''], 'expected a picture (JPEG'),
    ('what?', [png(60, 50)[:-30]], 'expected a whole picture'),
    ('what?', [png(9000, 8000)], 'at most 64,000,000 pixels, found 9,000 x 8,000'),
    ('what?', [png(80, 60)], 'expected a picture of the sample world'),
])
def test_what_cannot_be_answered_is_said(address, question, pictures, says):
    reply = ask(address, question, *pictures)
    assert reply.status_code == 400 and says in reply.json()['error'] and 'Traceback' not in reply.text


def test_what_is_sent_otherwise_is_refused(address, monkeypatch, capsys):
    post = {'url': f'{address}/ask', 'timeout': 60}
    kind = {'Content-Type': 'application/json'}
    assert 'expected json' in requests.post(**post, data='{}', headers={'Content-Type': 'text/plain'}).json()['error']
    for data in ('[]', '{', '{"question": "a", "pictures": ["?"]}', '{"question": "a", "pictures": [3]}'):
        assert requests.post(**post, data=data, headers=kind).status_code == 400
    for path in ('/gallery/12', '/gallery/../../etc/passwd', '/etc/passwd', '/ask'):
        assert requests.get(address + path, timeout=60).status_code == 404
    monkeypatch.setattr(app, 'MOST_BYTES', 0)
    monkeypatch.setattr(app, 'MOST_ASKED', 10)
    reply = requests.post(**post, data=' ' * 11, headers=kind)
    assert reply.status_code == 413 and 'found 11' in reply.json()['error']


def test_a_fault_of_the_program_is_no_traceback_on_the_page(address, files, monkeypatch, capsys):
    monkeypatch.setattr(Asker, 'answer', lambda *_: 1 / 0)
    reply = ask(address, QUESTION, files[0].read_bytes())
    assert reply.status_code == 500 and 'ZeroDivision' not in reply.text and 'a fault of the program' in reply.json()['error']
    assert 'ZeroDivisionError' in capsys.readouterr().err


def test_faults_of_the_call(snapshots, made_world, address, tmp_path, monkeypatch, capsys):  # noqa: F811
    load = '--load', str(snapshots['vqa']), '--world', str(made_world), '--device', 'cpu'
    for flags, says in (((*load, '--port', address.split(':')[-1]), 'expected a free port'), ((*load, '--port', '70000'), 'port'),
                        (('--load', 'none'), 'none')):
        assert app.main(flags) == 1
        assert f'{says}' in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert app.main([]) == 1 and 'bash run/quickstart.bash' in capsys.readouterr().err


def test_it_listens_on_this_machine_alone_unless_told():
    with app.serve(None) as server:
        assert server.server_address[0] == app.parser().parse_args([]).host == '127.0.0.1'
