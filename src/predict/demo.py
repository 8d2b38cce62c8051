"""What the page asks for: from the files of pictures and a question to answers, and the HTML of what they rest on."""

from functools import lru_cache
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from explain.attention import SPECIAL, shares, title
from explain.error_report import as_uri
from explain.region_drawing import photo_path
from files.json_files import read_json
from images.pictures import PictureError, open_picture
from predict.demo_view import Shown, view

SIDE = 900  # pixels of the longer side of a picture in the page
EXAMPLES = 24  # of the sample world
KEPT = 8  # pictures whose regions are kept for the next question


class Demo:
    """An Asker for the page. examples: lists of the files of its pictures and a question, to choose from."""

    def __init__(self, asker, examples=()):
        self.asker, self.examples = asker, list(examples)
        self.seen = lru_cache(KEPT)(self._see)

    def ask(self, question, *pictures):
        """({answer: probability}, HTML of what the first one rests on), or (None, HTML that says what is wrong).

        pictures: the file of each, or None.
        """
        try:
            answers, seen, found = self.answer(question, [self._read(i, file) for i, file in enumerate(pictures, 1)])
        except (ValueError, OSError) as error:
            return None, f'<p role="alert"><strong>{escape(str(error))}</strong></p>'
        own = shares(np.array([0 if word in SPECIAL else weight for word, weight in
                               zip(seen.words, seen.of_words.mean(0), strict=True)]))
        own[[word in SPECIAL for word in seen.words]] = np.nan
        last = max(int(name[5:].split('.')[0]) for name in seen.attention if name.startswith('cross'))
        looks = seen.attention[f'cross{last}.lang_to_visn'].mean(1)  # (k, t, o)
        whole = sum(weights.sum() for weights in seen.of_regions) or 1
        shown = [Shown((image.width, image.height), address, image.boxes,
                       [title(image, region, self.asker.names) for region in range(len(image.boxes))], weights / whole,
                       by_word[:, :len(image.boxes)])
                 for (image, address), weights, by_word in zip(found, seen.of_regions, looks, strict=True)]
        chances = {answer or '(no answer)': chance for answer, chance in answers}
        return chances, view(seen.words, own, shown, self.asker.answerer.truncated(question))

    def answer(self, question, pictures):
        """What Asker.answer gives, and of each picture, the bytes of its file, (ImageRegions, a small data: URI of it)."""
        if not isinstance(question, str) or not question.strip():
            raise ValueError('The question: expected some words, found none; type one.')
        found = [self.seen(i, data) for i, data in enumerate(pictures, 1)]
        return *self.asker.answer(question, [image for image, _ in found]), found

    def _called(self, number):
        return f'picture {number}' if self.asker.pictures > 1 else 'the picture'

    def _read(self, number, file):
        """The bytes of a picture's file."""
        if not file:
            raise ValueError(f'Choose {self._called(number)} first.')
        try:
            return Path(file).read_bytes()
        except OSError:
            raise ValueError(f'{self._called(number)} is no longer there; choose it again') from None

    def _see(self, number, data):
        try:
            picture = open_picture(data)
        except PictureError as error:
            raise PictureError(str(error).replace('the picture', self._called(number), 1)) from None
        (image,) = self.asker.see([picture], [self._called(number)])
        return image, as_uri(Image.fromarray(picture), SIDE)


def examples(world, fields):
    """Lists of the files of pictures and a question about them, of a sample world's VQA or NLVR2 validation; empty where there is
    none. fields: those of an example that name its pictures."""
    path = world / ('nlvr2/valid.json' if len(fields) > 1 else 'vqa/minival.json')
    asked = read_json(path, 'a list of examples') if path.is_file() else []
    found = [[*(photo_path(world / 'images/val2014', each[field]) for field in fields), each['sent']]
             for each in asked[::max(1, len(asked) // EXAMPLES)][:EXAMPLES]]
    return [[*map(str, files), sentence] for *files, sentence in found if all(files)]
