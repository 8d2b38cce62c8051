"""A page in the browser to ask a model about pictures. The program behind run/demo.bash.

Exit status: 130 after Ctrl-C, 1 invalid input, 2 wrong usage.
"""

import argparse
import os
import signal
import socket
import sys
import urllib.request
from pathlib import Path

from cli import run_main
from explain.drawing import photo_path
from files.atomic import temporary_folder
from files.json_files import DataError, stream
from predict.ask import add_arguments, detector_of, load_pipeline, run_options
from regions.class_names import names_folder

EXAMPLES = 24  # in the page
EPILOG = '''
Examples:
  bash run/demo.bash
  bash run/demo.bash --load snap/nlvr2/nlvr2_lxr955/BEST --device cuda
  bash run/demo.bash --load snap/vqa/vqa_lxr955/BEST snap/vqa/vqa_albef/BEST

Whoever can reach --host can ask; there is no password. Ctrl-C stops the server and deletes the uploads. Gradio's environment
variables, GRADIO_*, are ignored.
'''


def load(flags):
    """({path of a snapshot: Pipeline}, examples as lists of the files of pictures and a question) of the flags."""
    if flags.world:
        flags.names = flags.names or names_folder(flags.world)
        flags.detector = flags.detector or detector_of({'dataRoot': flags.world})
    pipelines = {}
    for name in flags.load or [None]:
        snapshot, pipeline = load_pipeline(argparse.Namespace(**vars(flags) | {'load': name}))
        if pipeline.predictor.output != 'answer':
            raise DataError(f'--load {snapshot}: expected a model that answers questions, found one of another task; name '
                            'another, or use it with run/ask.bash')
        pipeline.detect([], [])  # checks --minBoxes and --maxBoxes
        pipelines[str(snapshot)] = pipeline
        (first, one), *_ = pipelines.items()
        if pipeline.predictor.images != one.predictor.images:
            raise DataError(f'--load {snapshot}: expected a model that is asked about as many pictures as {first}, '
                            f'{one.predictor.images}, found {pipeline.predictor.images}; show it in a demo of its own')
    snapshot, task = first, one.predictor.task
    root = flags.world or Path(run_options(snapshot).get('dataRoot') or 'data')
    examples = find_examples(root, task)
    if flags.world and not examples:
        raise DataError(f'--world {flags.world}: expected the validation split of {task.kind} and its pictures in images/, found '
                        'no example; correct it, or leave it out')
    return pipelines, examples


def find_examples(root, task):
    """Up to EXAMPLES lists of the files of pictures and a question, evenly from the validation split of a Task below a data
    folder; [] where its pictures are not in a subfolder of images/."""
    folders = sorted(folder for folder in root.glob('images/*') if folder.is_dir())
    path = next((path for path in (root / task.kind / 'minival.json', root / task.kind / 'valid.json') if path.is_file()), None)
    if not folders or not path:
        return []
    keys = (*task.schema.images, 'sent')
    rows = [[row[key] for key in keys] for row in stream(path, 'item', 'examples')
            if isinstance(row, dict) and all(isinstance(row.get(key), str) for key in keys)]
    examples = [[*(next(filter(None, (photo_path(folder, img_id) for folder in folders)), None) for img_id in ids), sentence]
                for *ids, sentence in rows[::max(1, len(rows) // EXAMPLES)][:EXAMPLES]]
    return [list(map(str, example)) for example in examples if all(example)]


def launch(pipelines, examples, host, port):
    """The page, served from background threads. Raises DataError where Gradio is missing or the address cannot be used."""
    try:
        from predict import demo_page  # imported here: it takes seconds, and Gradio is optional
    except ModuleNotFoundError as error:
        raise DataError(f'run/demo_requirements.txt: expected Gradio to be installed, found that it is not ({error}); '
                        'install it: bash run/setup.bash --demo') from None
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()  # for an unusable address Gradio would try 100 ports, for minutes
        demos = {name: demo_page.Demo(pipeline) for name, pipeline in pipelines.items()}
        return demo_page.launch(demos, examples, f'[{host}]' if ':' in host else host, port)
    except (OSError, ValueError) as error:
        raise DataError(f'--host {host} --port {port or "7860 to 7959"}: expected an address of this machine and a free port, '
                        f'found that they cannot be opened ({error}); name others') from None


def run(flags):
    """Serves the page until Ctrl-C, SIGTERM or the end of the terminal, which all raise KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith('GRADIO_')]:
        del os.environ[name]  # they could share folders or move the port
    with temporary_folder('lxmert-demo-') as folder:
        # Set before Gradio is imported: its cache, no request for its version, no proxy for requests to itself.
        no_proxy = urllib.request.getproxies().get('no'), flags.host, '127.0.0.1'
        os.environ.update(GRADIO_TEMP_DIR=str(folder), GRADIO_ANALYTICS_ENABLED='False',
                          no_proxy=','.join(filter(None, no_proxy)))
        page = launch(*load(flags), flags.host, flags.port)
        print(f'{page.local_url} (Ctrl-C ends it)', flush=True)
        try:
            page.server.thread.join()
        finally:
            page.close(verbose=False)


def port(text):
    if not 1 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f'expected 1 to 65535, found {number}')
    return number


def build_parser():
    parser = argparse.ArgumentParser(prog='run/demo.bash', allow_abbrev=False, epilog=EPILOG, usage='bash run/demo.bash [flags]',
                                     description='A page in the browser: choose a picture, ask, see answers and explanations.',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, several=True)
    parser.add_argument('--host', default='127.0.0.1', help='address to listen on (127.0.0.1: only this machine)')
    parser.add_argument('--port', type=port, metavar='PORT', help='(the first free one from 7860)')
    parser.add_argument('--world', type=Path, metavar='DIR', help='data folder, such as a sample world: its pictures and '
                        "questions are the examples, and its detector and names are used (the run's --dataRoot)")
    return parser


def main(argv=None):
    """Runs the program; returns its exit status."""
    flags = build_parser().parse_args(argv)
    return run_main('demo.bash', lambda: run(flags), 'stopped')


if __name__ == '__main__':
    sys.exit(main())
