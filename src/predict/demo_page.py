"""The demo's page: what is chosen and typed goes to a Demo, and its answers are shown. Needs Gradio."""

from pathlib import Path

import gradio as gr

PLAIN = gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace'])  # its own fonts are on another host
MOST_BYTES = 24_000_000  # of a picture's file
AGE = 600  # seconds, after which what was sent is deleted


def made(demo):
    """The page of a Demo."""
    two = demo.asker.pictures > 1
    with gr.Blocks(title='Ask LXMERT', analytics_enabled=False, delete_cache=(AGE, AGE)) as page:
        gr.Markdown('# Ask LXMERT\n' + (
            'Choose two pictures and type a statement: does the model hold it to be true of them?' if two else
            'Choose a picture and ask: the model answers from the regions that a detector finds in it.'))
        with gr.Row():
            with gr.Column():
                with gr.Row():
                    pictures = [gr.Image(label=label, sources=['upload', 'clipboard'], height=260, elem_id=f'picture{i}')
                                for i, label in enumerate(('Left picture', 'Right picture') if two else ('Picture',), 1)]
                for picture in pictures:
                    picture.async_move_resource_to_block_cache = as_named
                question = gr.Textbox(label='Statement' if two else 'Question', max_length=500, elem_id='question',
                                      placeholder='Both pictures have a dog.' if two else 'What is the man holding?')
                ask = gr.Button('Ask', variant='primary', elem_id='ask')
                if demo.examples:
                    gr.Examples(demo.examples, [*pictures, question], label='From the sample world', examples_per_page=4)
            with gr.Column():
                answers = gr.Label(label='Answers', elem_id='answers')
                look = gr.HTML(elem_id='look')

        def answered(question, *sent):
            return demo.ask(question, *(file(picture, pictures[0].GRADIO_CACHE) for picture in sent))

        # A picture as the file that it came in, which Gradio's own reading would change or refuse in words of its own.
        gr.on([ask.click, question.submit], answered, [question, *pictures], [answers, look], preprocess=False, api_name='ask')
    return page


async def as_named(path):
    """In place of Gradio's own, which copies a file into its folder, and fetches an address that a caller past the page names."""
    return path


def file(picture, folder):
    """The file of a picture as Gradio hands it over, if it is one of those in its folder: examples and what was sent. Else None:
    Gradio lets a caller past the page name any file of this machine."""
    path = picture and picture['path']
    return path if path and Path(path).resolve().is_relative_to(Path(folder).resolve()) else None


def launch(demo, host, port):
    """Serves the page of a Demo from now on, in threads of its own; returns it. port: None: the first free one from 7860.

    Raises OSError where it cannot listen there."""
    page = made(demo)
    page.launch(server_name=host, server_port=port, max_file_size=MOST_BYTES, share=False, ssr_mode=False, run_history=False,
                enable_monitoring=False, footer_links=[], quiet=True, theme=PLAIN, prevent_thread_lock=True)
    return page
