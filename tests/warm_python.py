"""A python that starts without the seconds that the imports of PyTorch take.

`serve` starts a process that has imported libraries, but nothing of the project, and forks for each program. `install` puts this
file in the place of a checkout's python: what it is called with, it lets the server run.
"""

import contextlib
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

LIBRARIES = ['torch.utils.tensorboard', 'PIL.Image', 'matplotlib.pyplot', 'safetensors.torch', 'filelock', 'tqdm.auto']
SOCKET = 'WARM_PYTHON'


@contextlib.contextmanager
def serve(address):
    """Starts a server at a path, which is the value of the environment variable SOCKET for all that runs in it."""
    from cli import end_with_parent  # the server imports nothing of the project

    with subprocess.Popen([sys.executable, __file__, 'serve', address], start_new_session=True,
                          preexec_fn=partial(end_with_parent, os.getpid())) as server:
        while not Path(address).exists() and server.poll() is None:
            time.sleep(0.02)
        try:
            yield {SOCKET: str(address)}
        finally:
            server.terminate()


def install(venv, target):
    """Makes the folder `target` one like `venv`, whose python asks the server that SOCKET names."""
    (target / 'bin').mkdir(parents=True)
    for program in (venv / 'bin').iterdir():
        if program.name != 'python':
            (target / 'bin' / program.name).symlink_to(program)
    python = target / 'bin/python'
    real = shlex.quote(str(venv / 'bin/python'))
    python.write_text(f'#!/bin/sh\nexec {real} -IS {shlex.quote(__file__)} {real} "$@"\n')
    python.chmod(0o755)


def ask(real, arguments):
    """Lets the server run `-m MODULE ...` or `-c CODE ...`; other arguments go to the real python. Returns the exit status."""
    if not {'-m', '-c'} & set(arguments[:1]) or SOCKET not in os.environ:
        os.execv(real, [real, *arguments])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        message = json.dumps({'arguments': arguments, 'folder': os.getcwd(), 'environment': dict(os.environ)}).encode()
        socket.send_fds(connection, [message[:1]], [0, 1, 2])
        connection.sendall(message[1:] + b'\0')
        status = int(connection.recv(8) or b'1')
    if status < 0:
        os.kill(os.getpid(), -status)
    return status


def wait_for_programs(address):
    """Returns, in a process of its own, what a program is called with; the server itself does not return."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f'{address}.new')
    listener.listen()
    os.rename(f'{address}.new', address)  # connections are accepted once it is there
    while True:
        connection = listener.accept()[0]
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no child is waited for
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            message, files, *_ = socket.recv_fds(connection, 1, 3)
            while not message.endswith(b'\0'):
                message += connection.recv(1 << 16)
            if (program := os.fork()) == 0:
                connection.close()
                for number, file in enumerate(files):
                    os.dup2(file, number)
                    os.close(file)
                return json.loads(message[:-1])
            status = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
            connection.sendall(str(status).encode())
            os._exit(0)
        connection.close()


def run(arguments, folder, environment):
    """Runs a program here. Its end is that of this process."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[0:1] = [folder, *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
    what, name, *sys.argv[1:] = arguments
    if what == '-m':
        runpy.run_module(name, run_name='__main__', alter_sys=True)
    else:
        sys.argv[0] = '-c'
        exec(compile(name, '<string>', 'exec'), {'__name__': '__main__'})


if __name__ == '__main__':
    if sys.argv[1] != 'serve':
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
    for library in LIBRARIES:
        __import__(library)
    run(**wait_for_programs(sys.argv[2]))
