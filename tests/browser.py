"""A page in headless Chromium, driven through the two pipes of its DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
PATIENCE = 60  # seconds, since machines may be busy
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium on this machine (apt-get install chromium)')


class Page:
    """with Page(profile folder) as page: page.open(address); page.run('document.title').

    `requests`: the addresses that were requested, data: URIs aside; `faults`: error messages of the page.
    """

    def __init__(self, profile):
        self.count, self.rest, self.session, self.loaded, self.requests, self.faults = 0, b'', {}, False, [], []
        command_pipe, self.to = os.pipe()
        self.back, reply_pipe = os.pipe()
        # The sandbox asks for rights that a container has not; the pages are our own.
        flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
                 f'--user-data-dir={profile}', '--remote-debugging-pipe', 'about:blank']
        shell = f'exec "$0" "$@" 3<&{command_pipe} 4>&{reply_pipe}'  # Chromium reads commands from file 3 and writes to file 4
        self.process = subprocess.Popen(['bash', '-c', shell, CHROMIUM, *flags], pass_fds=(command_pipe, reply_pipe),
                                        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(command_pipe)
        os.close(reply_pipe)
        target = self.call('Target.createTarget', url='about:blank')
        self.session = {'sessionId': self.call('Target.attachToTarget', targetId=target['targetId'], flatten=True)['sessionId']}
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self.call(f'{domain}.enable')

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session = {}
        self.call('Browser.close')
        self.process.wait(20)
        os.close(self.to)
        os.close(self.back)

    def call(self, method, **params):
        """The result of a command of the protocol."""
        self.count += 1
        message = {'id': self.count, 'method': method, 'params': params, **self.session}
        os.write(self.to, json.dumps(message).encode() + b'\0')
        while (reply := self.receive()).get('id') != self.count:
            pass
        assert 'error' not in reply, (method, reply['error'])
        return reply['result']

    def receive(self):
        """The next message. Requests, errors and the load event are recorded."""
        while b'\0' not in self.rest:
            assert select.select([self.back], [], [], PATIENCE)[0], f'Chromium has said nothing for {PATIENCE} seconds'
            chunk = os.read(self.back, 1 << 16)
            assert chunk, 'Chromium has ended'
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b'\0')
        event = json.loads(message)
        params = event.get('params', {})
        if event.get('method') == 'Network.requestWillBeSent' and not params['request']['url'].startswith('data:'):
            self.requests.append(params['request']['url'])
        elif event.get('method') == 'Page.loadEventFired':
            self.loaded = True
        elif event.get('method') == 'Runtime.exceptionThrown':
            self.faults.append(params['exceptionDetails'].get('exception', {}).get('description') or str(params))
        elif event.get('method') == 'Log.entryAdded' and params['entry']['level'] == 'error':
            self.faults.append(params['entry']['text'])
        return event

    def open(self, address):
        """Goes to an address and waits until the page is loaded."""
        self.loaded = False
        self.call('Page.navigate', url=str(address))
        while not self.loaded:  # by then, or by what comes next
            self.receive()

    def run(self, script):
        """The value of a JavaScript expression, promises awaited."""
        reply = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in reply, reply['exceptionDetails']
        return reply['result'].get('value')

    def text(self, selector):
        """The texts of all elements that a CSS selector names."""
        return self.run(f'[...document.querySelectorAll({json.dumps(selector)})].map(each => each.innerText)')

    def press(self, key, text=None):
        """A key goes down and up, such as 'Tab' or, with its text, 'a'."""
        for kind in ('keyDown', 'keyUp'):
            self.call('Input.dispatchKeyEvent', type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS.get(key, 0),
                      **({'text': text} if text and kind == 'keyDown' else {}))

    def screen(self, width, height, dark=False, media=''):
        """The size of the window, its colours, and 'print' for how it would be printed."""
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call('Emulation.setEmulatedMedia', media=media,
                  features=[{'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}])

    def picture(self, path, full_page=False):
        """Writes a PNG of the window, or of the full page."""
        self.run('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))')  # until it is drawn
        shot = self.call('Page.captureScreenshot', format='png', captureBeyondViewport=full_page)
        path.write_bytes(base64.b64decode(shot['data']))


KEYS = {'Tab': 9, 'Enter': 13, 'ArrowLeft': 37, 'ArrowUp': 38, 'ArrowRight': 39, 'ArrowDown': 40}
