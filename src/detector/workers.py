"""Processes that turn pictures into lines of a TSV; each has its own detector on its own device."""

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.connection import wait

from cli import DeviceError, become_worker
from detector.checkpoint import encode_line
from detector.registry import load_detector
from images.pictures import PictureError, open_picture
from regions import tsv
from regions.tsv import RegionError

QUEUED = 2  # pictures per process: the next one is there before the last one has been written


class WorkerPool:
    """One process for each of `devices`, such as 'cpu' or 'cuda:1', all with the detector of a DetectorConfig.

    Use as a context manager; leaving it ends the processes at once. They end by themselves if this process is killed.
    """

    def __init__(self, config, devices):
        context = multiprocessing.get_context('spawn')  # CUDA does not survive a fork
        self.processes = {}  # by the connection to each
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C is for this process, which ends the others
        for device in devices:
            connection, remote = context.Pipe()
            process = context.Process(target=_work, args=(remote, config, device, os.getpid()), daemon=True)
            process.start()
            remote.close()  # then the death of the process, which holds the other copy, is the end of `connection`
            self.processes[connection] = process
        signal.signal(signal.SIGINT, handler)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.join()

    def provenance(self):
        """The provenance of the detector, when all processes have loaded it. Raises what loading it raises."""
        provenance, *_ = [_receive(connection) for connection in self.processes]
        return provenance

    def run(self, pictures):
        """Yields (image id, line, None), or (image id, None, error message), for each (image id, path), or (image id, path, given
        boxes), as they are done.

        Call `provenance` first. Raises what a detector raises, or ChildProcessError if a process was killed.
        """
        pictures, pending = iter(pictures), dict.fromkeys(self.processes, 0)
        for connection in QUEUED * list(self.processes):
            pending[connection] += _send_next(connection, pictures)
        while busy := [connection for connection, count in pending.items() if count]:
            for connection in wait(busy):
                result = _receive(connection)
                pending[connection] += _send_next(connection, pictures) - 1
                yield result


def _send_next(connection, pictures):
    """Sends the next picture to a process; returns 1, or 0 if none is left."""
    if (picture := next(pictures, None)) is None:
        return 0
    with contextlib.suppress(OSError):  # the process was killed, which _receive reports
        connection.send(picture)
    return 1


def _receive(connection):
    """The next result of a process. Raises the exception that it sent instead, ChildProcessError if it was killed."""
    try:
        result = connection.recv()
    except (EOFError, OSError):
        raise ChildProcessError('a worker process ended before its work was done (killed, or out of memory?); repeat the command '
                                'to continue with what is left, with a smaller NPROC if memory is short') from None
    if isinstance(result, Exception):
        raise result
    return result


def _work(connection, config, device, parent):
    """A worker process: sends the detector's provenance, then a result for each picture received, or an exception."""
    become_worker(parent)
    try:
        detector = load_detector(config, device)
        connection.send(detector.provenance)
        while True:
            connection.send(_extract(detector, config, *connection.recv()))
    except (EOFError, ConnectionError):
        pass  # the parent was killed
    except (ValueError, OSError) as error:
        connection.send(error)
    except RuntimeError as error:  # of CUDA, such as a GPU without free memory
        connection.send(DeviceError(str(error)))


def _extract(detector, config, img_id, path, boxes=None):
    """(image id, line of the TSV, None), or (image id, None, why the picture cannot be used)."""
    try:
        picture = open_picture(path)
    except PictureError as error:
        return img_id, None, str(error)
    try:
        if boxes is None:
            [image] = detector.regions([picture], [img_id], config.min_boxes, config.max_boxes, **config.arguments())
        else:
            [image] = detector.regions_of_boxes([picture], [img_id], [boxes], **config.arguments())
        return img_id, encode_line(tsv.check(image), config.probabilities), None
    except (PictureError, RegionError) as error:
        return img_id, None, f'{path}: {error}'
