"""run/demo.bash: its answers beside the library's, its page in Chromium, faults of what is sent and of how it is called."""

import base64
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import requests
from browser import Page, needs_chromium
from conftest import ROOT
from gradio_client import Client, handle_file
from PIL import Image
from test_ask import snapshots  # noqa: F401, a fixture

from explain.attention import SPECIAL, look
from images.pictures import open_picture
from predict import demo_program
from predict.ask import Asker
from predict.demo import examples

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning:gradio')  # of pandas, about its use by Gradio
QUESTION = 'How many circles are there?'


@contextmanager
def serving(snapshot, world):
    """The address of a demo that runs, and its Demo."""
    flags = demo_program.parser().parse_args(['--load', str(snapshot), '--world', str(world), '--device', 'cpu'])
    demo = demo_program.open_demo(flags)
    page = demo_program.launch(demo, flags.host, None)
    try:
        yield page.local_url, demo
    finally:
        page.close(verbose=False)


@pytest.fixture(scope='module', params=['vqa', 'nlvr2'])
def demo(request, snapshots, made_world):  # noqa: F811
    with serving(snapshots[request.param], made_world) as found:
        yield *found, snapshots[request.param]


@pytest.fixture(scope='module')
def running(snapshots, made_world):  # noqa: F811
    with serving(snapshots['vqa'], made_world) as found:
        yield found


@pytest.fixture(scope='module')
def files(made_world):
    return sorted((made_world / 'images/val2014').glob('*.png'))


def asked(address, question, *pictures):
    """[(answer, probability), ...] and the HTML of the reply to a question about files."""
    answers, told = Client(address, verbose=False).predict(question, *map(handle_file, map(str, pictures)), api_name='/ask')
    return [(each['label'], each['confidence']) for each in answers['confidences']] if answers else None, told


def test_answers_and_weights_are_those_of_the_library(demo, files, made_world):
    address, running, snapshot = demo
    chosen = files[:running.asker.pictures]
    answers, told = asked(address, QUESTION, *chosen)
    asker = Asker.load(snapshot)
    images = asker.see([open_picture(file) for file in chosen], [file.stem for file in chosen])
    regions = [tuple(images)] if len(chosen) > 1 else images
    (expected,) = asker.answerer.answer(regions, [QUESTION], best=5)
    assert [answer for answer, _ in answers] == [answer for answer, _ in expected]
    assert [chance for _, chance in answers] == pytest.approx([chance for _, chance in expected], abs=1e-5)
    seen, told = look(asker.answerer, images, QUESTION), ElementTree.fromstring(told)
    buttons = told.findall('.//button')
    assert [button.text for button in buttons] == seen.words
    own = np.array([0 if word in SPECIAL else weight for word, weight in zip(seen.words, seen.of_words.mean(0), strict=True)])
    for button, word, share in zip(buttons, seen.words, own / own.sum(), strict=True):
        if word not in SPECIAL:
            assert float(button.find('small').text[:-1]) == pytest.approx(100 * share, abs=.51)
    names = (made_world / 'objects_vocab.txt').read_text().splitlines()
    figures, attention = told.findall('.//figure'), seen.attention['cross1.lang_to_visn']  # the model has one cross layer
    for figure, image, file, of_regions, last in zip(figures, images, chosen, seen.of_regions, attention, strict=True):
        by_word = sum(last) / len(last)  # of (h, t, o)
        layers, lists = figure.findall('svg/g'), figure.findall('ol')
        assert len(layers) == len(lists) == 1 + len(seen.words)
        of_all = np.concatenate(seen.of_regions)
        for layer, listed, weights in zip(layers, lists, [of_regions / of_all.sum(), *by_word], strict=True):
            best = np.argsort(-weights[:len(image.boxes)], kind='stable')[:5]
            for item, region in zip(listed, best, strict=True):
                title, share = item.text.rsplit(' ', 1)
                assert names[image.classes[region]] in title
                assert float(share[:-1]) == pytest.approx(100 * weights[region], abs=.51)
            most = weights.max() if 'all' not in layer.get('class') else of_all.max() / of_all.sum()
            strongest = layer.findall('rect')[-1]  # on top
            x, y, width, height = (float(strongest.get(name)) for name in ('x', 'y', 'width', 'height'))
            assert (x, y, x + width, y + height) == pytest.approx(tuple(image.boxes[best[0]]), abs=.11)
            drawn = [float(rect.get('stroke-opacity')) for rect in layer.findall('rect')[1:]]
            assert drawn[-5:] == pytest.approx(weights[best][::-1] / most, abs=2e-3)
            assert [number.text for number in layer.findall('text')] == ['1', '2', '3', '4', '5']
        data = base64.b64decode(figure.find('svg/image').get('href').split(',')[1])
        with Image.open(io.BytesIO(data)) as photo, Image.open(file) as own_file:
            assert photo.size == own_file.size == (image.width, image.height)


def test_examples_are_questions_about_their_pictures(demo, made_world):
    """Each is one of the validation's, with the files of the pictures that it names."""
    _, running, _ = demo
    fields = running.asker.answerer.task.schema.images
    known = {(*(each[field] for field in fields), each['sent']) for each in
             json.loads((made_world / ('nlvr2/valid.json' if len(fields) > 1 else 'vqa/minival.json')).read_text())}
    found = [(*(re.sub(r'.*/|\.png$', '', file) for file in files), sentence) for *files, sentence in running.examples]
    assert len(found) == 24 and set(found) <= known


def test_examples_are_of_the_whole_split_and_have_their_pictures(tmp_path):
    for folder in ('vqa', 'images/val2014'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'vqa/minival.json').write_text(json.dumps([{'img_id': str(i), 'sent': f'{i}?'} for i in range(48)]))
    for i in range(48):
        if i != 6:
            (tmp_path / f'images/val2014/{i}.png').touch()
    assert [sentence for _, sentence in examples(tmp_path, ('img_id',))] == [f'{i}?' for i in range(0, 48, 2) if i != 6]


def test_attention_is_of_the_last_layer_and_what_is_not_read_is_told(running, files, monkeypatch):
    asker, layer = running[1].asker, 'cross{}.lang_to_visn'
    answers, seen = asker.answer(QUESTION, asker.see([open_picture(files[0])], ['it']))
    last = np.zeros_like(seen.attention[layer.format(1)])
    last[..., 7] = 1
    layers = {layer.format(i): seen.attention[layer.format(1)] for i in range(1, 10)} | {layer.format(10): last}
    monkeypatch.setattr(asker, 'answer', lambda *_: (answers, replace(seen, attention=layers)))
    told = ElementTree.fromstring(running[1].ask('many ' * 18 + 'circles there', str(files[0]))[1])
    assert all(listed.find('li').text.endswith(' 100%') for listed in told.findall('.//ol')[1:])
    assert told.findall('p')[0].text.endswith('not read: circles there')
    monkeypatch.setattr(asker, 'see', lambda *_: 1 / 0)  # the regions of a picture are kept for the next question
    assert running[1].ask('What?', str(files[0]))[0]


def test_what_was_sent_is_deleted_and_examples_stay(snapshots, made_world, files, monkeypatch):  # noqa: F811
    from predict import demo_page
    monkeypatch.setattr(demo_page, 'AGE', 1)
    with serving(snapshots['vqa'], made_world) as (address, running):
        sent, = requests.post(f'{address}gradio_api/upload', files={'files': ('sent.png', png(60, 50))}, timeout=60).json()
        shown = requests.get(f'{address}config', timeout=60).json()['components']
        (rows,) = (each['props']['samples'] for each in shown if each['type'] == 'dataset')
        end = time.monotonic() + 30
        while os.path.exists(sent):
            assert time.monotonic() < end
            time.sleep(.1)
        assert len(rows) == len(running.examples) and all(os.path.exists(row[0]['path']) for row in rows)


@needs_chromium
def test_the_page_is_opened_asked_and_read(demo, tmp_path):
    """An example by a click, then the same picture uploaded; the answers stand there as the library has them."""
    address, running, _ = demo
    *chosen, sentence = running.examples[0]
    with Page(tmp_path / 'profile') as page:
        page.screen(1280, 1000)
        page.open(address)
        wait(page, 'document.querySelector("#ask")')
        press(page)
        assert 'Choose' in told(page)
        page.run('document.querySelector("tbody tr").click()')
        wait(page, f'field().value === {json.dumps(sentence)}')
        press(page)
        wait(page, 'document.querySelector("#look svg") && document.querySelector("#answers .confidence-set")')
        expected, html = asked(address, sentence, *chosen)
        shown = page.run('[...document.querySelectorAll("#answers .confidence-set")].map(each => each.innerText)')
        assert [each.split('\n')[0] for each in shown] == [answer for answer, _ in expected]
        words = page.run('[...document.querySelectorAll("#look .word")].map(each => each.firstChild.textContent)')
        assert len(page.text('#look figure')) == len(chosen)
        assert 'relevance for the first answer' in page.text('#look')[0]
        number = len(words) - 3  # the last word before the stop
        left, top = page.run(f'(({{x, y}}) => [x, y])(document.querySelector(".word{number}").getBoundingClientRect())')
        page.call('Input.dispatchMouseEvent', type='mouseMoved', x=left + 5, y=top + 5)
        now = page.text('#look')[0]
        assert f'“{words[number]}” looks' in now and 'relevance for the first answer' not in now
        lists = ElementTree.fromstring(html).findall('.//figure')[0].findall('ol')
        assert lists[1 + number][0].text in now
        assert page.run('getComputedStyle(document.querySelector("#look g.all")).display') == 'none'
        page.call('Input.dispatchMouseEvent', type='mouseMoved', x=1, y=1)
        assert 'relevance for the first answer' in page.text('#look')[0]
        assert not page.faults and all(each.startswith((address, f'blob:{address}')) for each in page.requests)


@needs_chromium
def test_a_file_is_uploaded_and_faults_are_told_on_the_page(running, files, tmp_path):
    with Page(tmp_path / 'profile') as page:
        upload(page, running[0], b'no picture')
        assert 'expected a picture (JPEG' in told(page) and not page.text('#answers .confidence-set')
        upload(page, running[0], files[0].read_bytes())
        wait(page, 'document.querySelector("#look svg") && document.querySelector("#answers .confidence-set")')
        assert not page.text('#look [role=alert]')


def upload(page, address, data):
    """Opens the page, puts bytes as a file into the first picture, as choosing it does, and asks."""
    page.open(address)
    wait(page, 'document.querySelector("#picture1 input[type=file]")')
    wait(page, 'field()')
    page.run('field().value = "What?", field().dispatchEvent(new Event("input"))')
    page.run(f'''(() => {{
        const held = new DataTransfer(), bytes = Uint8Array.from(atob("{base64.b64encode(data).decode()}"), c => c.charCodeAt(0));
        held.items.add(new File([bytes], 'own.png', {{type: 'image/png'}}));
        const input = document.querySelector('#picture1 input[type=file]');
        input.files = held.files;
        input.dispatchEvent(new Event('change', {{bubbles: true}}));
    }})()''')
    wait(page, 'document.querySelector("#picture1 img[src*=own]")')
    press(page)


def press(page):
    page.run('document.querySelector("#ask").click()')


def told(page):
    wait(page, 'document.querySelector("#look [role=alert]")')
    return page.text('#look [role=alert]')[0]


def wait(page, condition, patience=30):
    end = time.monotonic() + patience
    page.run('window.field = () => document.querySelector("#question textarea, #question input")')
    while not page.run(f'Boolean({condition})'):
        assert time.monotonic() < end, (condition, page.text('body'), page.faults)
        time.sleep(.05)


def png(width, height):
    data = io.BytesIO()
    Image.new('RGB', (width, height)).save(data, 'PNG')
    return data.getvalue()


@pytest.mark.parametrize('question, data, says', [
    (' ', png(60, 50), 'expected some words'),
    (3, png(60, 50), 'expected some words'),
    ('what?', b'', 'the picture: expected a picture (JPEG'),
    ('what?', png(60, 50)[:-30], 'expected a whole picture'),
    ('what?', png(9000, 8000), 'at most 64,000,000 pixels, found 9,000 x 8,000'),
    ('what?', png(80, 60), 'expected a picture of the sample world'),
])
def test_what_cannot_be_answered_is_said(running, tmp_path, question, data, says):
    (tmp_path / 'it.png').write_bytes(data)
    answers, told = asked(running[0], question, tmp_path / 'it.png')
    assert answers is None and says in told and 'Traceback' not in told


def test_a_picture_that_is_not_there(running, tmp_path):
    assert 'Choose the picture first' in running[1].ask('what?', None)[1]
    assert 'no longer there' in running[1].ask('what?', str(tmp_path / 'gone.png'))[1]


@pytest.mark.parametrize('named', [{'meta': {'_type': 'gradio.FileData'}}, {}, {'meta': {}}, {'url': 'http://127.0.0.1:9/a.png'}])
def test_only_files_that_were_sent_are_read(running, files, named, monkeypatch):
    """Whoever speaks to the server past the page cannot have it open a file of this machine, here one that it would answer about,
    whatever is told of it, nor fetch one from elsewhere."""
    fetched = []
    monkeypatch.setattr('gradio.processing_utils.async_ssrf_protected_download', lambda *args, **_: fetched.append(args))
    url = f'{running[0]}gradio_api/call/ask'
    for path in (str(files[0]), f'{tempfile.gettempdir()}/gradio/../..{files[0]}', 'http://198.51.100.1/a.png'):
        called = requests.post(url, json={'data': ['what?', {'path': path, **named}]}, timeout=60).json()
        reply = requests.get(f'{url}/{called["event_id"]}', timeout=60).text
        assert (reply.startswith('event: error') or 'Choose the picture first' in reply) and 'svg' not in reply
    assert not fetched


def test_large_files_are_refused(snapshots, made_world, monkeypatch):  # noqa: F811
    from predict import demo_page
    monkeypatch.setattr(demo_page, 'MOST_BYTES', 1000)
    with serving(snapshots['vqa'], made_world) as (address, _):
        for size, status in ((900, 200), (1100, 413)):
            reply = requests.post(f'{address}gradio_api/upload', files={'files': ('a.png', bytes(size))}, timeout=60)
            assert reply.status_code == status, reply.text


def test_a_fault_of_the_program_is_no_traceback_on_the_page(running, files, monkeypatch, capfd):
    monkeypatch.setattr(Asker, 'answer', lambda *_: 1 / 0)
    with pytest.raises(Exception) as found:
        asked(running[0], QUESTION, files[0])
    assert 'Traceback' not in str(found.value) and 'division' not in str(found.value)
    assert 'ZeroDivisionError' in capfd.readouterr().err


def test_faults_of_the_call(snapshots, made_world, running, tmp_path, monkeypatch, capsys):  # noqa: F811
    for name in ('GRADIO_TEMP_DIR', 'GRADIO_ANALYTICS_ENABLED', 'no_proxy'):
        monkeypatch.setenv(name, '')  # for the other tests, what the program sets is undone
    load = '--load', str(snapshots['vqa']), '--world', str(made_world), '--device', 'cpu'
    port = running[0].rstrip('/').split(':')[-1]
    for flags, says in (((*load, '--port', port), f'--port {port}: expected an address'), (('--load', 'none'), 'none'),
                        ((*load, '--host', '192.0.2.1'), '--host 192.0.2.1 --port 7860'),  # no machine's
                        ((*load, '--minBoxes', '0'), 'found 0 and 36'),
                        ((*load, '--world', str(tmp_path)), f'--world {tmp_path}: expected a sample world')):
        assert demo_program.main(flags) == 1
        assert says in capsys.readouterr().err
    for wrong in ('0', '65536'):
        with pytest.raises(SystemExit):
            demo_program.main([*load, '--port', wrong])
        assert f'expected 1 to 65535, found {wrong}' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'gradio', None)
    monkeypatch.delattr('predict.demo_page')
    monkeypatch.delitem(sys.modules, 'predict.demo_page')
    assert demo_program.main(load) == 1 and 'bash run/setup.bash --demo' in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert demo_program.main([]) == 1 and 'bash run/quickstart.bash' in capsys.readouterr().err


@pytest.mark.parametrize('end', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_program_says_where_it_is_and_leaves_nothing(snapshots, made_world, files, tmp_path, end):  # noqa: F811
    """It listens on this machine alone, prints its address, answers, also where there is a proxy, and ends well by Ctrl-C, by
    SIGTERM and with its terminal. Variables of Gradio's own change nothing."""
    call = ['bash', 'run/demo.bash', '--load', snapshots['vqa'], '--world', made_world, '--device', 'cpu']
    with subprocess.Popen(call, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, 'TMPDIR': str(tmp_path), 'HTTP_PROXY': 'http://127.0.0.1:9', 'GRADIO_DEBUG': '1',
                               'GRADIO_SERVER_PORT': 'none', 'GRADIO_ALLOWED_PATHS': str(ROOT)}) as process:
        address = process.stdout.readline()
        try:
            assert re.fullmatch(r'http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n', address), address + process.stderr.read()
            assert asked(address.split()[0], QUESTION, files[0])[0]
            for path, status in ((f'gradio_api/file={ROOT}/README.md', 403), ('monitoring', 403), ('config', 200)):
                assert requests.get(address.split()[0] + path, timeout=60).status_code == status
            sent = [path for path in tmp_path.rglob('*') if path.name == files[0].name]
        finally:
            process.send_signal(end)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, '', '\ndemo.bash: ended\n')
    assert sent and not any(path.exists() for path in sent)
