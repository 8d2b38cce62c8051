"""The page of the demo, made with Gradio, which is an optional package."""

from functools import lru_cache
from html import escape
from pathlib import Path

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware

from explain.explanation import SPECIAL, word_shares
from images.pictures import PictureError, open_picture
from predict.guard import Guard

THEME = gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace'])  # Gradio's own fonts are on another host
MAX_BYTES = 24_000_000  # of an uploaded file
MAX_AGE = 600  # seconds until an upload is deleted
SIDE = 900  # pixels of the longer side of a picture in the page
MAX_QUESTION = 500  # characters
SESSIONS = 50  # whose state Gradio keeps; each takes 0.3 MB, and each request of a program is another
NONE = '(none)'  # the choice of no second model
CACHED = 8  # pictures whose regions are kept for the next question


class Demo:
    """Answers the requests of the page with a Pipeline."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.detect = lru_cache(CACHED)(self._detect)

    def ask(self, question, *files):
        """({answer: probability}, [(word, relevance 0 to 1)], for each picture what gr.AnnotatedImage takes).

        files: path of each picture, or None. Raises gr.Error with the message for the user.
        """
        predictor = self.pipeline.predictor
        try:
            if not isinstance(question, str) or not question.strip():
                raise ValueError('The question: expected some words, found none; type one.')
            if len(question) > MAX_QUESTION:
                raise ValueError(f'The question: expected at most {MAX_QUESTION} characters, found {len(question):,}; shorten '
                                 'it.')
            pictures, images = zip(*[self.detect(i, self.read(i, file)) for i, file in enumerate(files, 1)], strict=True)
            answers, explanation = self.pipeline.answer(question, images)
        except (ValueError, OSError) as error:
            raise gr.Error(escape(str(error), quote=False), duration=None, print_exception=False) from None
        shares = word_shares(explanation.words, explanation.word_relevance.sum(0))
        words = [(f'{word} {share:.0%}', share / (shares.max() or 1))
                 for word, share in zip(explanation.words, shares.tolist(), strict=True) if word not in SPECIAL]
        words += [(f'({line})', 0) for line in predictor.unread(question)]
        annotated = [(picture, explanation.areas(i, image, self.pipeline.names, picture.size))
                     for i, (picture, image) in enumerate(zip(pictures, images, strict=True))]
        return {answer or '(no answer)': probability for answer, probability in answers}, words, *annotated

    def name(self, number):
        return f'picture {number}' if self.pipeline.predictor.images > 1 else 'the picture'

    def read(self, number, file):
        """The bytes of a picture's file."""
        if not file:
            raise ValueError(f'Choose {self.name(number)} first.')
        try:
            return Path(file).read_bytes()
        except OSError:
            raise ValueError(f'{self.name(number)} was deleted; choose it again') from None

    def _detect(self, number, data):
        """(the picture as a PIL image of at most SIDE pixels, its ImageRegions)."""
        try:
            picture = open_picture(data)
        except PictureError as error:
            raise PictureError(str(error).replace('the picture', self.name(number), 1)) from None
        image, = self.pipeline.detect([picture], [self.name(number)])
        small = Image.fromarray(picture)
        small.thumbnail((SIDE, SIDE))
        return small, image


def build(demos, examples):
    """The page of {name: Demo}, of models that are asked about as many pictures; of several, one or two are chosen in the page.
    examples: lists of the files of its pictures and a question."""
    predictors = [demo.pipeline.predictor for demo in demos.values()]
    two, names = predictors[0].images > 1, list(demos)
    labels = ('Left picture', 'Right picture') if two else ('Picture',)
    detected = ' from the regions that a detector finds' if all(each.needs_regions for each in predictors) else ''
    with gr.Blocks(title='Ask about pictures', analytics_enabled=False, delete_cache=(MAX_AGE, MAX_AGE)) as page:
        gr.Markdown('# Ask about pictures\n' + (
            'Choose two pictures and type a statement. The model tells whether it is true of them.' if two else
            f'Choose a picture and type a question. The model answers it{detected}.'))
        with gr.Row():
            with gr.Column():
                chosen = [gr.Dropdown(names, value=names[0], label='Model', elem_id='model1'),
                          gr.Dropdown([NONE, *names], value=NONE, label='Next to it', elem_id='model2')] if names[1:] else []
                with gr.Row():
                    pictures = [gr.Image(label=label, sources=['upload', 'clipboard'], height=260, elem_id=f'picture{i}')
                                for i, label in enumerate(labels, 1)]
                for picture in pictures:
                    picture.async_move_resource_to_block_cache = keep_path
                question = gr.Textbox(label='Statement' if two else 'Question', max_length=MAX_QUESTION, elem_id='question',
                                      placeholder='Both pictures have a dog.' if two else 'What is the man holding?')
                ask = gr.Button('Ask', variant='primary', elem_id='ask')
                if examples:
                    gr.Examples(examples, [*pictures, question], examples_per_page=4)
            columns = [result_column(labels, number, predictors) for number in range(1, 1 + (len(chosen) or 1))]

        def answer(question, *sent):
            files = [cached_file(picture, pictures[0].GRADIO_CACHE) for picture in sent[:len(pictures)]]
            results = []
            for name in sent[len(pictures):] or names:
                if name == NONE and results:
                    results += [None] * len(columns[0][1])
                elif name in demos:
                    results += demos[name].ask(question, *files)
                else:
                    raise gr.Error('The model: expected one of the list; choose it again.', duration=None, print_exception=False)
            return results

        if chosen:
            chosen[1].change(lambda name: gr.update(visible=name != NONE), chosen[1], columns[1][0], api_name=False)
        outputs = [one for _, column in columns for one in column]
        # preprocess=False: the pictures arrive as files, which Gradio would otherwise change, or reject with its own messages
        gr.on([ask.click, question.submit], answer, [question, *pictures, *chosen], outputs, preprocess=False,
              show_progress_on=outputs[0], api_name='ask')
    return page


def result_column(labels, number, predictors):
    """(the column, [answers, words, a picture for each label]) of the first or second model; the second is hidden at first."""
    mark = '' if number == 1 else f'_{number}'  # of ids
    parts = {'regions' if each.head.map_layer is None else 'patches' for each in predictors}
    with gr.Column(visible=number == 1) as column:
        return column, [
            gr.Label(label='Answers', elem_id=f'answers{mark}'),
            gr.HighlightedText(label='Words by their relevance for the first answer', elem_id=f'words{mark}'),
            *(gr.AnnotatedImage(label=f'{label}: its most relevant {" or ".join(sorted(parts, reverse=True))}',
                                elem_id=f'regions{i}{mark}') for i, label in enumerate(labels, 1))]


async def keep_path(path):
    """Replaces Gradio's method, which would copy any local file or address that a request names into its cache."""
    return path


def cached_file(picture, cache):
    """The path in a picture of a request if it is in Gradio's cache, which has uploads and examples; else None: a request may
    name any file of this machine."""
    path = picture and picture['path']
    return path if path and Path(path).resolve().is_relative_to(Path(cache).resolve()) else None


def launch(demos, examples, host, port):
    """Serves the page from background threads; returns it. port: None: the first free one from 7860. Raises OSError."""
    page = build(demos, examples)
    folder = Path(gr.utils.get_upload_folder())
    examples = {str(path) for path in folder.rglob('*')}
    guard = Middleware(Guard, host=host, folder=folder, keep=examples, max_bytes=MAX_BYTES)
    page.launch(server_name=host, server_port=port, max_file_size=MAX_BYTES, share=False, ssr_mode=False, run_history=False,
                enable_monitoring=False, footer_links=[], quiet=True, theme=THEME, prevent_thread_lock=True,
                state_session_capacity=SESSIONS, app_kwargs={'middleware': [guard]})
    return page
