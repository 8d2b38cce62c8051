"""A page to try a snapshot. The program behind run/demo.bash.

Exit status 130: run_main by Ctrl-C; 1: a fault of what was given; 2: wrong usage.
"""

import argparse
import os
import signal
import socket
import sys
import tempfile
import urllib.request
from pathlib import Path

from cli import run_main
from explain.error_report import names_folder
from files.json_files import DataError
from predict.ask import add_arguments, asker_of
from predict.demo import Demo, examples
from shapes.features import FEATURE_DIM

EPILOG = '''
Examples:
  bash run/demo.bash
  bash run/demo.bash --load snap/nlvr2/nlvr2_lxr955/BEST --device cuda

Whoever can reach --host can ask; there is no password. Ctrl-C ends it, and then nothing is kept of what was sent. Gradio's own
variables, GRADIO_*, are not heeded.
'''


def open_demo(flags):
    """The Demo that the flags describe. Raises what asker_of does, or DataError."""
    flags.names = flags.names or (flags.world and names_folder(flags.world))
    _, asker = asker_of(flags)
    asker.see([], [])  # what is wrong with --minBoxes and --maxBoxes is said now
    task = asker.answerer.task
    own = task.model.lxrt_encoder.config.visual_feat_dim == FEATURE_DIM  # a snapshot of the sample world
    found = examples(flags.world or Path('data/shapes'), task.schema.images) if own else []
    if flags.world and not found:
        raise DataError(f'--world {flags.world}: expected a sample world and a snapshot of one, found no example to show; '
                        'correct it, or leave it out')
    return Demo(asker, found)


def launch(demo, host, port):
    """The page of a Demo, served from now on by threads of its own. Raises DataError where it cannot be."""
    try:
        from predict import demo_page  # takes seconds, and is optional
    except ModuleNotFoundError as error:
        raise DataError(f'run/demo_requirements.txt: expected Gradio to be installed, found that it is not ({error}); '
                        'install it: bash run/setup.bash --demo') from None
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()  # of what cannot be opened, Gradio would try 100 ports, for minutes
        return demo_page.launch(demo, f'[{host}]' if ':' in host else host, port)
    except (OSError, ValueError) as error:
        raise DataError(f'--host {host} --port {port or "7860 to 7959"}: expected an address of this machine and a free port, '
                        f'found that they cannot be opened ({error}); name others') from None


def run(flags):
    """Serves the page until Ctrl-C, SIGTERM or the end of its terminal, which are a KeyboardInterrupt."""
    for end in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(end) != signal.SIG_IGN:  # nohup's
            signal.signal(end, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith('GRADIO_')]:
        del os.environ[name]  # they would open folders, move the port, or stop it before it says where it is
    with tempfile.TemporaryDirectory() as folder:
        # Where Gradio, once imported, puts what it is sent; it asks nobody for its version, and itself past any proxy.
        past = urllib.request.getproxies().get('no'), flags.host, '127.0.0.1'
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED='False', no_proxy=','.join(filter(None, past)))
        page = launch(open_demo(flags), flags.host, flags.port)
        print(f'{page.local_url} (Ctrl-C ends it)', flush=True)
        try:
            page.server.thread.join()
        finally:
            page.close(verbose=False)


def port(text):
    if not 1 <= (number := int(text)) <= 65535:
        raise argparse.ArgumentTypeError(f'expected 1 to 65535, found {number}')
    return number


def parser():
    made = argparse.ArgumentParser(prog='run/demo.bash', allow_abbrev=False, epilog=EPILOG, usage='bash run/demo.bash [flags]',
                                   description='A page in the browser: choose a picture, ask, see answers and what they rest on.',
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(made)
    made.add_argument('--host', default='127.0.0.1', help='address to listen on (127.0.0.1: only this machine)')
    made.add_argument('--port', type=port, metavar='PORT', help='(the first free one from 7860)')
    made.add_argument('--world', type=Path, metavar='DIR',
                      help='sample world whose pictures and questions, and names, a snapshot of it is shown with (data/shapes)')
    made.add_argument('--device', choices=('cpu', 'cuda'), help='(cuda where there is a GPU)')
    return made


def main(argv=None):
    """Runs the program; returns its exit status."""
    flags = parser().parse_args(argv)
    return run_main('demo.bash', lambda: run(flags), 'ended')


if __name__ == '__main__':
    sys.exit(main())
