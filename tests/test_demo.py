"""run/demo.bash: its answers equal the library's, its page in Chromium, invalid requests and flags."""

import asyncio
import base64
import gc
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import torch
from browser import Page, needs_chromium
from conftest import ROOT
from gradio_client import Client, handle_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_ask import snapshots  # noqa: F401, a fixture

from explain.explanation import SPECIAL
from files.json_files import DataError
from images.pictures import open_picture
from predict import demo as program
from predict import guard as guard_module
from predict.ask import Pipeline
from predict.guard import Guard
from tasks.nlvr2 import NLVR2
from tasks.vqa import VQA

pytestmark = pytest.mark.filterwarnings('ignore::DeprecationWarning:gradio')  # of pandas, about its use by Gradio
QUESTION = 'How many circles are there?'


@contextmanager
def serving(*paths):
    """(address, the first Pipeline, examples) of a demo that is served."""
    flags = program.build_parser().parse_args(['--load', *map(str, paths), '--device', 'cpu'])
    pipelines, examples = program.load(flags)
    page = program.launch(pipelines, examples, flags.host, None)
    try:
        yield page.local_url, next(iter(pipelines.values())), examples
    finally:
        page.close(verbose=False)


@pytest.fixture(scope='module')
def running(snapshots):  # noqa: F811
    with serving(snapshots['vqa']) as served:
        yield served


@pytest.fixture(scope='module')
def running_pair(snapshots):  # noqa: F811
    with serving(snapshots['nlvr2']) as served:
        yield served


@pytest.fixture(params=['running', 'running_pair'])
def demo(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope='module')
def files(made_world):
    return sorted((made_world / 'images/val2014').glob('*.png'))


def ask(address, question, *pictures):
    """([(answer, probability), ...], [(word, relevance), ...], {'image', 'annotations'} of each picture) for files."""
    answers, words, *annotated = Client(address, verbose=False).predict(
        question, *map(handle_file, map(str, pictures)), api_name='/ask')
    return ([(each['label'], each['confidence']) for each in answers['confidences']],
            [(each['token'], each['class_or_confidence']) for each in words], annotated)


def test_answers_and_relevance_are_those_of_the_library(demo, files):
    address, pipeline, _ = demo
    chosen = files[:pipeline.predictor.images]
    answers, words, annotated = ask(address, QUESTION, *chosen)
    images = pipeline.detect([open_picture(file) for file in chosen], [file.stem for file in chosen])
    expected, explanation = pipeline.answer(QUESTION, images)
    assert [answer for answer, _ in answers] == [answer for answer, _ in expected]
    assert [chance for _, chance in answers] == pytest.approx([chance for _, chance in expected], abs=1e-5)
    weights = {i: weight for i, weight in enumerate(explanation.word_relevance.sum(0)) if explanation.words[i] not in SPECIAL}
    assert [text for text, _ in words] == [f'{explanation.words[i]} {weight / sum(weights.values()):.0%}'
                                           for i, weight in weights.items()]
    assert [shade for _, shade in words] == pytest.approx([weight / max(weights.values()) for weight in weights.values()])
    total = np.concatenate(explanation.region_relevance).sum()
    for shown, image, file, relevance in zip(annotated, images, chosen, explanation.region_relevance, strict=True):
        with Image.open(shown['image']) as photo, Image.open(file) as original:
            assert photo.size == original.size
        best = np.argsort(-relevance, kind='stable')[:5].tolist()
        for rank, (region, annotation) in enumerate(zip(best, shown['annotations'], strict=True), 1):
            name = pipeline.names.name('classes', int(image.classes[region]))
            assert re.fullmatch(f'{rank} .*{name} {relevance[region] / total:.0%}', annotation['label'])
            with Image.open(annotation['image']) as mask:
                opacity = np.asarray(mask)[..., 3]
            rows, columns = (np.flatnonzero(opacity.any(axis)) for axis in (1, 0))
            assert (columns[0], rows[0], columns[-1], rows[-1]) == pytest.approx(tuple(image.boxes[region]), abs=1.01)
            most = max(map(max, explanation.region_relevance))
            assert opacity.max() == pytest.approx(255 * (0.3 + 0.7 * relevance[region] / most), abs=1)


def test_a_large_picture_is_reduced_with_its_regions(running, files, monkeypatch):
    from predict.demo_page import Demo

    _, pipeline, _ = running
    image, = pipeline.detect([open_picture(files[0])], ['it'])
    photo = np.asarray(Image.open(files[0]).convert('RGB').resize((1600, 1200)))
    large = image.__class__(**{**vars(image), 'width': 1600, 'height': 1200, 'boxes': image.boxes * 10})
    monkeypatch.setattr('predict.demo_page.open_picture', lambda data: photo)
    monkeypatch.setattr(pipeline, 'detect', lambda *_: [large])
    _, _, (picture, regions) = Demo(pipeline).ask(QUESTION, str(files[0]))
    assert picture.size == (900, 675) and all(opacity.shape == (675, 900) for opacity, _ in regions)
    x1, y1, x2, y2 = large.boxes[pipeline.answer(QUESTION, [large])[1].region_relevance[0].argmax()] * 900 / 1600
    rows, columns = (np.flatnonzero(regions[0][0].any(axis)) for axis in (1, 0))
    assert (columns[0], rows[0], columns[-1], rows[-1]) == pytest.approx((x1, y1, x2, y2), abs=1.01)


@needs_chromium
def test_two_models_side_by_side(snapshots, files, tmp_path, monkeypatch):  # noqa: F811
    """The page chooses among snapshots, and shows a second one next to the first, whose answers are those of each alone."""
    monkeypatch.setenv('GRADIO_TEMP_DIR', str(tmp_path / 'cache'))  # which Gradio deletes at the end, with the examples in it
    other = tmp_path / 'other'
    shutil.copytree(snapshots['vqa'].parent, other)
    state = torch.load(other / 'BEST.pth')
    torch.save({name: tensor.flip(0) if 'logit_fc.3' in name else tensor for name, tensor in state.items()}, other / 'BEST.pth')
    with serving(snapshots['vqa'], other / 'BEST') as (address, _, _), Page(tmp_path / 'profile') as page:
        names = [str(snapshots['vqa']), str(other / 'BEST')]
        client, picture = Client(address, verbose=False), handle_file(str(files[0]))
        one, two, both = (client.predict(QUESTION, picture, *pair, api_name='/ask')
                          for pair in ((names[0], '(none)'), (names[1], '(none)'), names))
        assert both[0] == one[0] and both[3] == two[0] and not one[3]
        assert [each['label'] for each in both[0]['confidences']] != [each['label'] for each in both[3]['confidences']]
        with pytest.raises(Exception, match='The model: expected one of the list'):
            client.predict(QUESTION, picture, '/etc/passwd', '(none)', api_name='/ask')
        page.open(address)
        wait(page, 'document.querySelector("#model2 input")')
        assert not page.run('Boolean(document.querySelector("#answers_2"))')
        page.run('document.querySelector("#model2 input").focus()')
        wait(page, 'document.querySelectorAll("#model2 ul li").length === 3')
        page.run('document.querySelectorAll("#model2 ul li")[2].dispatchEvent(new MouseEvent("mousedown", {bubbles: true}))')
        wait(page, 'document.querySelector("#answers_2")')
        page.run('document.querySelector("tbody tr").click()')
        wait(page, 'field().value')
        press(page)
        wait(page, 'document.querySelector("#regions1_2 img.mask") && document.querySelector("#answers_2 .confidence-set")')
        assert not page.faults


def test_only_models_of_as_many_pictures_are_shown_together(snapshots):  # noqa: F811
    flags = program.build_parser().parse_args(['--load', str(snapshots['vqa']), str(snapshots['nlvr2']), '--device', 'cpu'])
    with pytest.raises(DataError, match=r'asked about as many pictures as .*, 1, found 2; show it in a demo of its own'):
        program.load(flags)


def test_what_is_not_read_is_shown_and_regions_are_kept(running, files, monkeypatch):
    from predict.demo_page import Demo

    _, pipeline, _ = running
    demo = Demo(pipeline)
    _, words, _ = demo.ask('many ' * 18 + 'circles there', str(files[0]))
    assert words[-1] == ('(too long, not read: circles there)', 0)
    monkeypatch.setattr(pipeline, 'detect', lambda *_: 1 / 0)
    assert demo.ask('What?', str(files[0]))[0]


def test_examples_are_questions_about_their_pictures(demo, made_world):
    """Each is a question of the validation split, with the files of the pictures that it names."""
    _, pipeline, examples = demo
    keys = pipeline.predictor.task.schema.images
    rows = json.loads((made_world / ('nlvr2/valid.json' if len(keys) > 1 else 'vqa/minival.json')).read_text())
    known = {(*(row[key] for key in keys), row['sent']) for row in rows}
    shown = [(*(Path(file).stem for file in files), sentence) for *files, sentence in examples]
    assert len(shown) == 24 and set(shown) <= known


def test_examples_are_of_the_complete_split_and_have_their_pictures(tmp_path):
    for folder in ('vqa', 'images/val2014'):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / 'vqa/minival.json').write_text(json.dumps([{'img_id': str(i), 'sent': f'{i}?'} for i in range(48)]))
    for i in range(48):
        if i != 6:
            (tmp_path / f'images/val2014/{i}.png').touch()
    examples = program.find_examples(tmp_path, VQA)
    assert [sentence for _, sentence in examples] == [f'{i}?' for i in range(0, 48, 2) if i != 6]
    assert program.find_examples(tmp_path, NLVR2) == program.find_examples(tmp_path / 'vqa', VQA) == []


def test_uploads_are_limited_and_deleted_and_examples_stay(snapshots, monkeypatch):  # noqa: F811
    from predict import demo_page
    monkeypatch.setattr(demo_page, 'MAX_AGE', 1)
    monkeypatch.setattr(demo_page, 'MAX_BYTES', 1000)
    with serving(snapshots['vqa']) as (address, _, examples):
        for size, status in ((900, 200), (1100, 413)):
            reply = requests.post(f'{address}gradio_api/upload', files={'files': ('a.png', bytes(size))}, timeout=60)
            assert reply.status_code == status, reply.text
        sent, = requests.post(f'{address}gradio_api/upload', files={'files': ('sent.png', png(60, 50))}, timeout=60).json()
        components = requests.get(f'{address}config', timeout=60).json()['components']
        (rows,) = (each['props']['samples'] for each in components if each['type'] == 'dataset')
        end = time.monotonic() + 30
        while os.path.exists(sent):
            assert time.monotonic() < end
            time.sleep(.1)
        assert len(rows) == len(examples) and all(os.path.exists(row[0]['path']) for row in rows)


HERE = ['127.0.0.1:7860', 'localhost:7860', '[::1]:7860', 'localhost', 'LOCALHOST:9000']
ELSEWHERE = ['evil.example:7860', '127.0.0.1.evil.example', 'localhost.evil.example:7860', 'evil.example@127.0.0.1', '',
             '127.0.0.1:x', 'localhost/x', '[::1', '10.0.0.1:7860', '127.0.0.1:7860, evil.example', 'localhost#', '127.0.0.1 ',
             '2130706433', 'local\xe9:7860']


def ask_guard(guard, *headers, path='/gradio_api/queue/join', kind='http', body=b''):
    """The status of a request that a Guard answers, or 200 where the application is called."""
    sent = []

    async def send(message):
        sent.append(message.get('status', message.get('code')))

    async def receive():
        return {'type': 'http.request', 'body': body, 'more_body': False}

    scope = {'type': kind, 'path': path, 'headers': [(name, value.encode('latin1')) for name, value in headers]}
    asyncio.run(guard(scope, receive, send))
    return sent[0]


async def application(scope, receive, send):
    await receive()
    await send({'type': 'http.response.start', 'status': 200})


def test_only_the_own_page_is_answered(tmp_path):
    guard = Guard(application, '127.0.0.1', tmp_path, set(), 1000)
    for kind, refused in (('http', (421, 403)), ('websocket', (1008, 1008))):
        for host in HERE:
            assert ask_guard(guard, (b'host', host), kind=kind) == 200
            for origin, status in ((f'http://{host}', 200), (f'https://{host}', 200), ('http://evil.example', refused[1]),
                                   ('null', refused[1]), (f'http://{host}.evil.example', refused[1]), ('', refused[1]),
                                   (f'file://{host}', refused[1]), ('http://127.0.0.1:1', refused[1])):
                assert ask_guard(guard, (b'host', host), (b'origin', origin), kind=kind) == status, (host, origin)
        for host in ELSEWHERE:
            if host != '127.0.0.1 ':  # as servers strip it
                assert ask_guard(guard, (b'host', host), (b'origin', f'http://{host}'), kind=kind) == refused[0], host
        assert ask_guard(guard, kind=kind) == refused[0]
        assert ask_guard(guard, (b'host', HERE[0]), (b'host', HERE[0]), kind=kind) == refused[0]
    for host, name, served in (('0.0.0.0', '10.0.0.1:7860', True), ('[::]', '[fe80::1]:7860', True),
                               ('::', 'evil.example', False), ('0.0.0.0', socket.gethostname(), True),
                               ('demo.example', 'demo.example:80', True), ('demo.example', '10.0.0.1', False)):
        assert (ask_guard(Guard(application, host, tmp_path, set(), 1000), (b'host', name)) == 200) == served, (host, name)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HERE + ELSEWHERE) | st.text(st.characters(max_codepoint=255), max_size=30),
       st.sampled_from(['http://', 'https://', 'null', '']), st.sampled_from(HERE + ELSEWHERE) | st.text(st.characters(
           max_codepoint=255), max_size=30))
def test_any_host_and_origin(tmp_path, host, scheme, origin):
    status = ask_guard(Guard(application, '127.0.0.1', tmp_path, set(), 1000), (b'host', host), (b'origin', scheme + origin))
    name = host.strip().lower().rpartition(':')[0] if host.strip()[-1:].isdigit() and ':' in host else host.strip().lower()
    if status == 200:
        assert name.rstrip(':') in ('127.0.0.1', 'localhost', '[::1]') or name in ('127.0.0.1', 'localhost', '[::1]')
        assert scheme in ('http://', 'https://') and origin.strip().lower() == host.strip().lower()
    else:
        assert status in (403, 421)


def test_requests_and_uploads_are_limited_and_the_oldest_are_removed(tmp_path, monkeypatch, capsys):
    guard = Guard(application, '127.0.0.1', tmp_path / 'cache', {str(tmp_path / 'cache/example.png')}, 1000)
    upload = {'path': '/gradio_api/upload', 'body': b'x' * 900}
    host = b'host', '127.0.0.1'
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache/example.png').write_bytes(bytes(5000))
    for number in range(10):
        folder = tmp_path / f'cache/{number}'
        folder.mkdir()
        (folder / 'a.png').write_bytes(bytes(400))
        os.utime(folder / 'a.png', (number, number))
    (tmp_path / 'cache/aborted').write_bytes(bytes(400))
    os.utime(tmp_path / 'cache/aborted', (0, 0))
    monkeypatch.setattr(guard_module, 'MAX_KEPT_BYTES', 3000)
    assert ask_guard(guard, host, **upload) == 200
    names = {str(path.relative_to(tmp_path / 'cache')) for path in (tmp_path / 'cache').rglob('*')}
    assert names == {'example.png', *(f'{number}{rest}' for number in range(5, 10) for rest in ('', '/a.png'))}
    monkeypatch.setattr(guard_module, 'MAX_KEPT_FILES', 2)
    assert ask_guard(guard, host, **upload) == 200 and len(list((tmp_path / 'cache').rglob('a.png'))) == 1
    assert ask_guard(guard, host, (b'content-length', '99999'), **upload) == 413
    assert ask_guard(guard, host, (b'content-length', '-1'), **upload) == 413
    assert ask_guard(guard, host, path='/upload', body=bytes(20_000)) == 413  # without a length
    assert ask_guard(guard, host, body=bytes(300_000)) == 413
    monkeypatch.setattr(guard, 'uploads', guard_module.MAX_UPLOADS)
    assert ask_guard(guard, host, **upload) == 503

    async def full(scope, receive, send):
        raise OSError(28, 'No space left on device', '/secret/path')

    monkeypatch.setattr(guard, 'uploads', 0)
    monkeypatch.setattr(guard, 'app', full)
    assert ask_guard(guard, host, **upload) == 507 and guard.uploads == 0 and 'No space left' in capsys.readouterr().out

    async def wait(*_):
        await asyncio.sleep(60)

    monkeypatch.setattr(guard_module, 'PATIENCE', 0.01)
    monkeypatch.setattr(guard, 'app', lambda scope, receive, send: receive())
    sent = []

    async def send(message):
        sent.append(message.get('status'))

    asyncio.run(guard({'type': 'http', 'path': '/upload', 'headers': [(b'host', b'localhost')]}, wait, send))
    assert sent[0] == 408


def test_requests_of_other_pages_are_refused_by_the_server(running):
    """Of what is called without a page too; the length of a question is checked; Gradio keeps the state of few sessions."""
    from predict import demo_page

    address = running[0]
    for path in ('', 'config', 'gradio_api/info', 'gradio_api/upload', 'gradio_api/queue/data?session_hash=x'):
        assert requests.get(address + path, headers={'Host': 'evil.example'}, timeout=60).status_code == 421
        assert requests.post(address + path, headers={'Origin': 'http://evil.example'}, timeout=60).status_code == 403
    assert requests.get(f'{address}config', headers={'Origin': address.rstrip('/')}, timeout=60).status_code == 200
    with pytest.raises(Exception, match='at most 500 characters, found 501'):
        ask(address, 'a' * 501, running[2][0][0])
    assert requests.post(f'{address}gradio_api/call/ask', json={'data': ['a' * 300_000]}, timeout=60).status_code == 413
    pages = [page for page in gc.get_objects() if type(page).__name__ == 'Blocks' and getattr(page, 'local_url', '') == address]
    holder = pages[0].app.state_holder
    assert holder.capacity == demo_page.SESSIONS
    for number in range(demo_page.SESSIONS + 20):
        holder[str(number)]
    assert len(holder.session_data) <= demo_page.SESSIONS


@needs_chromium
def test_the_page_is_opened_asked_and_read(demo, tmp_path):
    """A click on an example, then on Ask: the page shows what the library answers."""
    address, _, examples = demo
    *chosen, sentence = examples[0]
    with Page(tmp_path / 'profile') as page:
        page.screen(1280, 1000)
        page.open(address)
        wait(page, 'document.querySelector("#ask")')
        press(page)
        assert 'expected some words' in message(page)
        page.run('document.querySelector("tbody tr").click()')
        wait(page, f'field().value === {json.dumps(sentence)}')
        press(page)
        wait(page, 'document.querySelector("#regions1 img.mask") && document.querySelector("#answers .confidence-set")')
        answers, words, annotated = ask(address, sentence, *chosen)
        shown = page.run('[...document.querySelectorAll("#answers .confidence-set")].map(each => each.innerText)')
        assert [each.split('\n')[0] for each in shown] == [answer for answer, _ in answers]
        assert page.text('#words .token') == [text for text, _ in words]
        for i, picture in enumerate(annotated, 1):
            assert page.text(f'#regions{i} .legend-item') == [region['label'] for region in picture['annotations']]
        assert page.run('[...document.querySelectorAll("#regions1 img")].every(each => each.naturalWidth)')
        page.screen(420, 900)
        assert page.run('document.documentElement.scrollWidth <= innerWidth')
        assert not page.faults and all(each.startswith((address, f'blob:{address}')) for each in page.requests)


@needs_chromium
def test_a_file_is_uploaded_and_errors_are_shown_on_the_page(running, files, tmp_path, monkeypatch):
    with Page(tmp_path / 'profile') as page:
        upload(page, running[0], b'no picture')
        assert 'expected a picture (JPEG' in message(page) and not page.text('#answers .confidence-set')
        upload(page, running[0], files[0].read_bytes())
        wait(page, 'document.querySelector("#regions1 img.mask") && document.querySelector("#answers .confidence-set")')
        assert not page.text('.toast-body')
        hostile = '<img src=x onerror="hacked=1">'
        monkeypatch.setattr(Pipeline, 'answer', lambda *_: Path(hostile).read_bytes())
        press(page)
        assert hostile in message(page)
        assert page.run("typeof hacked + document.querySelectorAll('.toast-body img').length") == 'undefined0'


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


def message(page):
    wait(page, 'document.querySelector(".toast-body")')
    return page.text('.toast-body')[0]


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


@pytest.mark.parametrize('question, data, expected', [
    (' ', png(60, 50), 'expected some words'),
    (3, png(60, 50), 'expected some words'),
    ('what?', b'', 'the picture: expected a picture (JPEG'),
    ('what?', png(60, 50)[:-30], 'expected a whole picture'),
    ('what?', png(9000, 8000), 'at most 64,000,000 pixels, found 9,000 x 8,000'),
    ('what?', png(80, 60), 'expected a picture of the sample world'),
], ids=['empty', 'number', 'no bytes', 'cut', 'large', 'photograph'])
def test_invalid_questions_and_pictures_are_named(running, tmp_path, capfd, question, data, expected):
    (tmp_path / 'it.png').write_bytes(data)
    with pytest.raises(Exception) as raised:
        ask(running[0], question, tmp_path / 'it.png')
    assert expected in str(raised.value) and 'Traceback' not in str(raised.value) + capfd.readouterr().err


def test_a_picture_that_is_missing(running, tmp_path):
    from gradio import Error

    from predict.demo_page import Demo

    for file, expected in ((None, 'Choose the picture first'), (str(tmp_path / 'gone.png'), 'the picture was deleted')):
        with pytest.raises(Error, match=expected):
            Demo(running[1]).ask('what?', file)


@pytest.mark.parametrize('named', [{'meta': {'_type': 'gradio.FileData'}}, {}, {'meta': {}}, {'url': 'http://127.0.0.1:9/a.png'}])
def test_only_files_in_the_cache_are_read(running, files, named, monkeypatch):
    """A request that does not come from the page cannot make the server open another file of this machine, here one that it would
    answer about, nor fetch an address."""
    fetched = []
    monkeypatch.setattr('gradio.processing_utils.async_ssrf_protected_download', lambda *args, **_: fetched.append(args))
    url = f'{running[0]}gradio_api/call/ask'
    for path in (str(files[0]), f'{tempfile.gettempdir()}/gradio/../..{files[0]}', 'http://198.51.100.1/a.png'):
        called = requests.post(url, json={'data': ['what?', {'path': path, **named}]}, timeout=60).json()
        reply = requests.get(f'{url}/{called["event_id"]}', timeout=60).text
        assert reply.startswith('event: error') and 'confidences' not in reply
    assert not fetched


def test_a_bug_shows_no_traceback_on_the_page(running, files, monkeypatch, capfd):
    monkeypatch.setattr(Pipeline, 'answer', lambda *_: 1 / 0)
    with pytest.raises(Exception) as raised:
        ask(running[0], QUESTION, files[0])
    assert 'Traceback' not in str(raised.value) and 'division' not in str(raised.value)
    assert 'ZeroDivisionError' in capfd.readouterr().err


@pytest.fixture
def environment(monkeypatch):
    """Restores after the test what the program sets and deletes."""
    for name in ('GRADIO_TEMP_DIR', 'GRADIO_ANALYTICS_ENABLED', 'no_proxy'):
        monkeypatch.setenv(name, '')


def test_invalid_flags(snapshots, made_world, running, environment, tmp_path, monkeypatch, capsys):  # noqa: F811
    load = '--load', str(snapshots['vqa']), '--world', str(made_world), '--device', 'cpu'
    port = running[0].rstrip('/').split(':')[-1]
    for flags, expected in (((*load, '--port', port), f'--port {port}: expected an address'), (('--load', 'none'), 'none'),
                            ((*load, '--host', '192.0.2.1'), '--host 192.0.2.1 --port 7860'),  # no machine's
                            ((*load, '--minBoxes', '0'), 'found 0 and 36'),
                            ((*load, '--world', str(tmp_path), '--detector', 'shapes'), f'--world {tmp_path}: expected')):
        assert program.main(flags) == 1
        assert expected in capsys.readouterr().err
    for wrong in ('0', '65536'):
        with pytest.raises(SystemExit):
            program.main([*load, '--port', wrong])
        assert f'expected 1 to 65535, found {wrong}' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, 'gradio', None)
    monkeypatch.delattr('predict.demo_page')
    monkeypatch.delitem(sys.modules, 'predict.demo_page')
    assert program.main(load) == 1 and 'bash run/setup.bash --demo' in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert program.main([]) == 1 and 'bash run/quickstart.bash' in capsys.readouterr().err


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_the_end_of_the_terminal_close_the_page(snapshots, environment, monkeypatch, capsys, number):  # noqa: F811
    steps, before = [], signal.getsignal(number)

    def launch(*_):
        steps.append(os.environ['GRADIO_TEMP_DIR'])
        assert os.path.isdir(steps[0])
        thread = SimpleNamespace(join=lambda: (os.kill(os.getpid(), number), time.sleep(60)))
        return SimpleNamespace(local_url='', server=SimpleNamespace(thread=thread), close=lambda verbose: steps.append('closed'))

    monkeypatch.setattr(program, 'launch', launch)
    try:
        assert program.main(['--load', str(snapshots['vqa']), '--device', 'cpu']) == 130
    finally:
        signal.signal(number, before)
    folder, closed = steps
    assert closed == 'closed' and not os.path.exists(folder) and 'demo.bash: stopped' in capsys.readouterr().err


def test_the_program_prints_its_address_and_leaves_nothing(snapshots, made_world, files, tmp_path):  # noqa: F811
    """It listens on this machine only, prints its address, answers, also behind a proxy, and ends with Ctrl-C. Gradio's
    environment variables change nothing."""
    call = ['bash', 'run/demo.bash', '--load', snapshots['vqa'], '--world', made_world, '--device', 'cpu']
    with subprocess.Popen(call, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, 'TMPDIR': str(tmp_path), 'HTTP_PROXY': 'http://127.0.0.1:9', 'GRADIO_DEBUG': '1',
                               'GRADIO_SERVER_PORT': 'none', 'GRADIO_ALLOWED_PATHS': str(ROOT)}) as process:
        address = process.stdout.readline()
        try:
            assert re.fullmatch(r'http://127\.0\.0\.1:\d+/ \(Ctrl-C ends it\)\n', address), address + process.stderr.read()
            assert ask(address.split()[0], QUESTION, files[0])[0]
            for path, status in ((f'gradio_api/file={ROOT}/README.md', 403), ('monitoring', 403), ('config', 200)):
                assert requests.get(address.split()[0] + path, timeout=60).status_code == status
            uploads = [path for path in tmp_path.rglob('*') if path.name == files[0].name]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                out, err = process.communicate(timeout=60)
            finally:
                process.kill()
    assert (process.returncode, out, err) == (130, '', '\ndemo.bash: stopped\n')
    assert uploads and not any(path.exists() for path in uploads)
