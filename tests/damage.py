"""Damaged files for property-based tests, and what a program may do with one.

Strategies draw functions. byte_damage: bytes -> bytes. value_damage: a value as json.loads returns it -> one with a changed part.
`same_or_error` judges what a reader makes of the result.
"""

import contextlib
import copy
import math
import resource
import signal
from functools import partial

from hypothesis import strategies as st

SECONDS = 30  # in which a reader must end
MEMORY = 1 << 30  # bytes that a reader may take beyond what the process has
ODD_VALUES = [None, True, False, 0, -1, 1.5, 2 ** 40, 2 ** 70, -(2 ** 70), math.inf, math.nan, '', '0', 'x' * 1000, '\x1b[2J\r\n',
              '\u202e', '\ud800', '../../etc/passwd', [], {}, [None], [[]], [{}], {'': None}, {'x': []}]


def byte_damage(size):
    """Draws a change of a file of `size` bytes: a flipped bit; a part cut off, removed, zeroed, doubled or exchanged."""
    position = st.integers(0, max(size - 1, 0))
    span = st.tuples(position, st.integers(1, 64))
    return st.one_of(
        st.builds(lambda at, bit: partial(_flip, at=at, bit=bit), position, st.integers(0, 7)),
        st.builds(lambda at: lambda data: data[:at], position),
        st.builds(lambda tail: lambda data: data + tail, st.binary(min_size=1, max_size=64)),
        st.builds(lambda part, new: lambda data: data[:part[0]] + new + data[part[0] + part[1]:], span, st.binary(max_size=64)),
        st.builds(lambda part: lambda data: data[:part[0]] + bytes(part[1]) + data[part[0] + part[1]:], span),
        st.builds(lambda part: lambda data: data[:sum(part)] + data[part[0]:], span),
    )


def _flip(data, at, bit):
    changed = bytearray(data)
    if changed:
        changed[at % len(changed)] ^= 1 << bit
    return bytes(changed)


def value_damage(value):
    """Draws a change of json data shaped as `value`: one part is replaced, removed, renamed, wrapped or doubled."""
    changes = st.one_of(st.sampled_from(ODD_VALUES).map(lambda odd: partial(_replace, odd=odd)),
                        st.sampled_from([_remove, _rename, _wrap, _double]))
    return st.builds(lambda path, change: partial(_change, path=path, change=change), st.sampled_from(_paths(value)), changes)


def _paths(value, path=()):
    """The paths of all parts of nested lists and dicts; of a long list only the first and the last items."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    paths = [path]
    for key, item in items:
        if not isinstance(value, list) or key < 3 or key == len(value) - 1:
            paths += _paths(item, (*path, key))
    return paths


def _change(value, path, change):
    root = [copy.deepcopy(value)]  # so that the whole value has a parent too
    parent, key = root, 0
    for step in path:
        parent, key = parent[key], step
    change(parent, key)
    return root[0] if root else None


def _replace(parent, key, odd):
    parent[key] = copy.deepcopy(odd)


def _remove(parent, key):
    del parent[key]


def _rename(parent, key):
    if isinstance(parent, dict):
        parent[f'{key}_'] = parent.pop(key)
    else:
        parent[key] = {'renamed': parent[key]}


def _wrap(parent, key):
    parent[key] = [parent[key]]


def _double(parent, key):
    if isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    elif isinstance(parent[key], list):
        parent[key] = parent[key] * 2
    else:
        parent[f'{key} '] = copy.deepcopy(parent[key])


class Hang(BaseException):
    """A reader took longer than SECONDS."""


@contextlib.contextmanager
def limits():
    """Raises Hang in a block that takes longer than SECONDS, MemoryError in one that takes more than MEMORY."""
    def stop(*_):
        raise Hang(f'took more than {SECONDS} s')

    with open('/proc/self/statm') as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def same_or_error(read, same, *names, errors=(ValueError, OSError)):
    """Calls read() on a damaged file, which must end within SECONDS and MEMORY. Returns None, or the message of its error.

    It must return a value for which same(value) is true, or raise one of `errors` with a message of one line that names one of
    `names` and has no control characters.
    """
    try:
        with limits():
            value = read()
    except errors as error:
        message = str(error)
        assert any(str(name) in message for name in names), f'the message names none of {names}: {message!r}'
        assert message.isprintable(), f'the message has more than one line, or control characters: {message!r}'
        return message
    assert same(value), f'another result, and no error: {str(value)[:1000]}'
    return None
