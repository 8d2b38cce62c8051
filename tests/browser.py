"""A page in headless Chromium, driven through the two pipes of its DevTools protocol."""

import base64
import json
import os
import select
import shutil
import subprocess

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
PATIENCE = 60  # seconds, of a busy machine
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason='there is no Chromium on this machine (apt-get install chromium)')


class Page:
    """with Page(profile folder) as page: page.open(address); page.run('document.title').

    `requests` are the addresses that were asked for (data: is none), `faults` the messages of errors in the page.
    """

    def __init__(self, profile):
        self.count, self.rest, self.session, self.loaded, self.requests, self.faults = 0, b'', {}, False, [], []
        from_us, self.to = os.pipe()
        self.back, to_us = os.pipe()
        # The sandbox asks for rights that a container has not; the pages are our own.
        flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
                 f'--user-data-dir={profile}', '--remote-debugging-pipe', 'about:blank']
        by = f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}'  # Chromium reads commands from file 3 and writes to file 4
        self.process = subprocess.Popen(['bash', '-c', by, CHROMIUM, *flags], pass_fds=(from_us, to_us), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(from_us)
        os.close(to_us)
        made = self.call('Target.createTarget', url='about:blank')
        self.session = {'sessionId': self.call('Target.attachToTarget', targetId=made['targetId'], flatten=True)['sessionId']}
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
        while (found := self.receive()).get('id') != self.count:
            pass
        assert 'error' not in found, (method, found['error'])
        return found['result']

    def receive(self):
        """The next message; of an event what is to be remembered is kept."""
        while b'\0' not in self.rest:
            assert select.select([self.back], [], [], PATIENCE)[0], f'Chromium has said nothing for {PATIENCE} seconds'
            chunk = os.read(self.back, 1 << 16)
            assert chunk, 'Chromium has ended'
            self.rest += chunk
        message, _, self.rest = self.rest.partition(b'\0')
        found = json.loads(message)
        params = found.get('params', {})
        if found.get('method') == 'Network.requestWillBeSent' and not params['request']['url'].startswith('data:'):
            self.requests.append(params['request']['url'])
        elif found.get('method') == 'Page.loadEventFired':
            self.loaded = True
        elif found.get('method') == 'Runtime.exceptionThrown':
            self.faults.append(params['exceptionDetails'].get('exception', {}).get('description') or str(params))
        elif found.get('method') == 'Log.entryAdded' and params['entry']['level'] == 'error':
            self.faults.append(params['entry']['text'])
        return found

    def open(self, address):
        """Goes to an address and waits until the page is loaded."""
        self.loaded = False
        self.call('Page.navigate', url=str(address))
        while not self.loaded:  # by then, or by what comes next
            self.receive()

    def run(self, script):
        """The value of a JavaScript expression, promises awaited."""
        found = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
        assert 'exceptionDetails' not in found, found['exceptionDetails']
        return found['result'].get('value')

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

    def picture(self, path, whole=False):
        """Writes a PNG of what is seen, or of the whole page."""
        self.run('new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done())))')  # until it is drawn
        made = self.call('Page.captureScreenshot', format='png', captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(made['data']))


KEYS = {'Tab': 9, 'Enter': 13, 'ArrowLeft': 37, 'ArrowUp': 38, 'ArrowRight': 39, 'ArrowDown': 40}
