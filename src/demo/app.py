"""A page to try a snapshot, on a small server of this machine's own. The program behind run/demo.bash.

It needs nothing but Python's own http.server; the newest Gradio does not take the pillow that requirements.txt pins.
Exit status 0: well; 1: a fault of what was given; 2: wrong usage.
"""

import argparse
import base64
import binascii
import json
import sys
import traceback
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from PIL import Image

import dist
from annotations.files import DataError
from extract.workers import DETECTORS, WEIGHTS
from regions.pictures import ENDINGS, PictureError, open_picture
from regions.show import Names
from shapes.features import FEATURE_DIM
from show.ask import Asker, default_snapshot
from show.attention import SPECIAL, shares, title
from show.report import as_uri, names_folder, page

TEMPLATE = Path(__file__).with_name('page.html')
MOST_BYTES = 24_000_000  # of a picture's file
MOST_ASKED = 100_000  # bytes of all else that a page sends
SIDE = 900  # pixels of the longer side of a picture in the page
GALLERY = 12  # pictures of the sample world
KEPT = 8  # pictures whose regions are kept for the next question
POLICY = ("default-src 'none'; img-src 'self' data: blob:; connect-src 'self'; style-src 'unsafe-inline'; "
          "script-src 'unsafe-inline'")
EPILOG = '''
Examples:
  bash run/demo.bash
  bash run/demo.bash --load snap/nlvr2/nlvr2_lxr955/BEST --device cuda

Whoever can reach --host can ask; there is no password. Ctrl-C ends it.
'''


class Demo:
    """An Asker for the page: from the bytes of pictures and a question to what the page draws. One question at a time."""

    def __init__(self, asker, names=None, gallery=()):
        self.asker, self.names, self.gallery = asker, Names(names), list(gallery)
        self.turn, self.seen = Lock(), lru_cache(KEPT)(self._see)

    def about(self):
        """What the page is told when it is opened."""
        return {'pictures': self.asker.pictures, 'gallery': [f'/gallery/{i}' for i in range(len(self.gallery))],
                'endings': ENDINGS, 'most': MOST_BYTES}

    def ask(self, asked):
        """The answer as the page draws it: {'answers': [[answer, probability], ...], 'words': [[text, relevance], ...] of t
        words, 'pictures': [{'width', 'height', 'photo', 'boxes': [[x1, y1, x2, y2, text], ...] of o regions, 'relevance': o
        shares, 'attention': t x o, how words look at regions in the last cross layer, the mean over its heads}, ...]}.

        asked: {'question': text, 'pictures': [base64, ...]}. Raises ValueError for what is not so, or cannot be read or answered.
        """
        question, pictures = checked(asked, self.asker.pictures)
        with self.turn:
            found = [self.seen(i + 1, data) for i, data in enumerate(pictures)]
            answers, seen = self.asker.answer(question, [image for image, _ in found])
        own = [weight * (word not in SPECIAL) for word, weight in zip(seen.words, seen.of_words.mean(0), strict=True)]
        last = max(int(name[5:].split('.')[0]) for name in seen.attention if name.startswith('cross'))
        looks = seen.attention[f'cross{last}.lang_to_visn'].mean(1)  # (k, t, o)
        return {'answers': answers, 'words': [[word, round(float(weight), 4)] for word, weight in
                                              zip(seen.words, own / (sum(own) or 1), strict=True)],
                'pictures': [self._drawn(image, photo, weights, by_word) for (image, photo), weights, by_word in
                             zip(found, seen.of_regions, looks, strict=True)]}

    def _see(self, number, data):
        """The ImageRegions of a picture's bytes, and the picture as a small data: URI."""
        try:
            picture = open_picture(data)
        except PictureError as error:
            raise PictureError(f'picture {number}: {error}' if self.asker.pictures > 1 else str(error)) from None
        (image,) = self.asker.see([picture], [f'picture {number}'])
        return image, as_uri(Image.fromarray(picture), SIDE)

    def _drawn(self, image, photo, weights, by_word):
        return {'width': image.width, 'height': image.height, 'photo': photo,
                'boxes': [[*box, title(image, region, self.names)] for region, box in enumerate(image.boxes.round(1).tolist())],
                'relevance': shares(weights).round(4).tolist(), 'attention': by_word[:, :len(image.boxes)].round(4).tolist()}


def checked(asked, count):
    """The question and the bytes of `count` pictures. Raises ValueError, in words for who sits before the page."""
    if not isinstance(asked, dict) or not isinstance(asked.get('question'), str) or not isinstance(asked.get('pictures'), list):
        raise ValueError('expected an object with a text "question" and a list "pictures", found something else; load the page '
                         'again')
    if not asked['question'].strip():
        raise ValueError('the question: expected some words, found none; type one')
    if len(asked['pictures']) != count:
        raise ValueError(f'pictures: expected {count}, found {len(asked["pictures"])}; choose them above')
    try:
        return asked['question'], [base64.b64decode(data, validate=True) for data in asked['pictures']]
    except (TypeError, binascii.Error):
        raise ValueError('pictures: expected base64, found something else; load the page again') from None


class Handler(BaseHTTPRequestHandler):
    """GET / is the page, GET /gallery/0 a picture, POST /ask a question in json; a fault is {'error': text}."""

    timeout = 60  # seconds of silence, after which a connection is given up

    def do_GET(self):
        demo = self.server.demo
        if self.path == '/':
            self.reply(HTTPStatus.OK, 'text/html; charset=utf-8', page(demo.about(), TEMPLATE).encode())
        elif self.path in (there := demo.about()['gallery']):
            self.reply(HTTPStatus.OK, 'image/png', demo.gallery[there.index(self.path)].read_bytes())
        else:
            self.tell(HTTPStatus.NOT_FOUND, {'error': 'there is no such page; expected /'})

    def do_POST(self):
        length, most = self.headers.get('Content-Length', ''), self.server.demo.asker.pictures * MOST_BYTES * 4 // 3 + MOST_ASKED
        # A page of somewhere else cannot send this type here without being allowed to, and nothing allows it.
        if self.path != '/ask' or self.headers.get_content_type() != 'application/json' or not length.isdecimal():
            return self.tell(HTTPStatus.BAD_REQUEST, {'error': 'expected json sent to /ask; load the page again'})
        if int(length) > most:
            return self.tell(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {
                'error': f'expected at most {most:,} bytes, found {int(length):,}; make the pictures smaller'})
        try:
            self.tell(HTTPStatus.OK, self.server.demo.ask(json.loads(self.rfile.read(int(length)))))
        except ValueError as error:
            self.tell(HTTPStatus.BAD_REQUEST, {'error': str(error)})
        except (ConnectionError, TimeoutError):  # who asked has gone
            self.close_connection = True
        except Exception:
            traceback.print_exc()
            self.tell(HTTPStatus.INTERNAL_SERVER_ERROR, {'error': 'a fault of the program; where it runs, more is printed'})

    def tell(self, status, data):
        self.reply(status, 'application/json', json.dumps(data).encode())

    def reply(self, status, kind, body):
        self.send_response(status)
        for name, value in (('Content-Type', kind), ('Content-Length', len(body)), ('Content-Security-Policy', POLICY),
                            ('X-Content-Type-Options', 'nosniff'), ('Cache-Control', 'no-store')):
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Says nothing: what is asked is nobody else's business."""


def serve(demo, host='127.0.0.1', port=0):
    """A server of a Demo that listens but does not answer yet: server.serve_forever(). Port 0: a free one.

    Raises DataError where it cannot listen there.
    """
    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise DataError(f'--host {host} --port {port}: expected a free port of this machine, found that it cannot be opened '
                        f'({error}); name another') from None
    server.demo = demo
    return server


def open_demo(flags):
    """The Demo that the flags describe. Raises what Asker.load does, and DataError for a world without pictures."""
    asker = Asker.load(flags.load or default_snapshot(), flags.detector, flags.weights, dist.start(flags.device), flags.bf16,
                       min_boxes=flags.minBoxes, max_boxes=flags.maxBoxes)
    own = asker.answerer.task.model.lxrt_encoder.config.visual_feat_dim == FEATURE_DIM  # a snapshot of the sample world
    gallery = sorted((flags.world / 'images/val2014').glob('*.png'))[:GALLERY] if own else []
    return Demo(asker, flags.names or names_folder(flags.world if own else Path('data')), gallery)


def parser():
    made = argparse.ArgumentParser(prog='run/demo.bash', allow_abbrev=False, epilog=EPILOG, usage='bash run/demo.bash [flags]',
                                   description='A page in the browser: choose a picture, ask, see answers and what they rest on.',
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('--load', metavar='SNAPSHOT', help="a task's snapshot (snap/vqa/vqa_lxr955/BEST, else the newest)")
    made.add_argument('--host', default='127.0.0.1', help='address to listen on (127.0.0.1: only this machine)')
    made.add_argument('--port', type=int, default=7860, help='0: a free one (7860)')
    made.add_argument('--world', type=Path, default=Path('data/shapes'), metavar='DIR',
                      help='sample world whose pictures a snapshot of it is shown with (data/shapes)')
    made.add_argument('--names', type=Path, metavar='DIR', help='folder of objects_vocab.txt and attributes_vocab.txt')
    made.add_argument('--detector', choices=DETECTORS, help='as run/ask.bash has it')
    made.add_argument('--weights', metavar='FILE', help=f'of the Faster R-CNN ({WEIGHTS})')
    made.add_argument('--minBoxes', type=int, default=36, help='the fewest regions of a picture (36)')
    made.add_argument('--maxBoxes', type=int, default=36, help='the most (36)')
    made.add_argument('--bf16', action='store_true', help='compute the regions in bfloat16 where it is safe')
    made.add_argument('--device', choices=('cpu', 'cuda'), help='(cuda where there is a GPU)')
    return made


def main(argv=None):
    """Runs the program; returns its exit status."""
    try:
        flags = parser().parse_args(argv)
        with serve(open_demo(flags), flags.host, flags.port) as server:
            print(f'http://{flags.host}:{server.server_port}/ (Ctrl-C ends it)', flush=True)
            server.serve_forever()
    except (ValueError, OSError, dist.DeviceError) as error:
        print(f'demo.bash: error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\ndemo.bash: ended')
        return 0


if __name__ == '__main__':
    sys.exit(main())
