"""Random corruptions of a good TSV: each is reported with its line, or is harmless."""

import base64
import re

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_regions import image, same

from regions import tsv

# Features of some lines are long enough for the fast decoding of base64, of others not.
IMAGES = [image(number, o, f=260) for number, o in enumerate([3, 1, 4, 2, 3, 2, 5, 1])]
LINES = [tsv.encode(one) for one in IMAGES]
AS_WRITTEN = dict(zip(LINES, IMAGES, strict=True))
ARRAY_FIELDS = [tsv.FIELDS.index(field) for field, _ in tsv.ARRAYS.values()]


@st.composite
def changed_line(draw):
    """The TSV with some bytes of one line cut, changed, doubled or exchanged."""
    number = draw(st.integers(0, len(LINES) - 1))
    line = LINES[number]
    place, other = (draw(st.integers(0, len(line) - 1)) for _ in range(2))
    length = draw(st.sampled_from([1, 2, 4, 16, 64, 200]))
    kind = draw(st.sampled_from(['cut', 'cut off', 'flip bit', 'other byte', 'double', 'swap bytes', 'swap fields']))
    if kind == 'cut':
        line = line[:place] + line[place + length:]
    elif kind == 'cut off':
        return kind, [*LINES[:number], line[:place]]
    elif kind == 'flip bit':
        line = line[:place] + bytes([line[place] ^ 1 << draw(st.integers(0, 7))]) + line[place + 1:]
    elif kind == 'other byte':
        byte = draw(st.one_of(st.sampled_from(b'\t\r\n\0 0-A=\xff'), st.integers(0, 255)))
        line = line[:place] + bytes([byte]) + line[place + 1:]
    elif kind == 'double':
        line = line[:place] + line[place:place + length] + line[place:]
    elif kind == 'swap bytes':
        swapped = bytearray(line)
        swapped[place], swapped[other] = swapped[other], swapped[place]
        line = bytes(swapped)
    else:
        fields = line.split(b'\t')
        place, other = (draw(st.integers(0, len(fields) - 1)) for _ in range(2))
        fields[place], fields[other] = fields[other], fields[place]
        line = b'\t'.join(fields)
    return kind, [*LINES[:number], line, *LINES[number + 1:]]


@st.composite
def changed_base64(draw):
    """The TSV with characters put into the text of an array, or in place of some of it, often near its end."""
    number, field = draw(st.integers(0, len(LINES) - 1)), draw(st.sampled_from(ARRAY_FIELDS))
    fields = LINES[number].split(b'\t')
    text = fields[field].rstrip(b'\r\n')
    place = draw(st.one_of(st.integers(0, len(text)), st.integers(len(text) - 8, len(text))))
    # A decoder that skips foreign characters finds all the others; in fours they leave the length right. - and _ are of URLs.
    put = draw(st.sampled_from([b' ', b'-', b'_', b'*', b'.', b'\0', b'\xff', b'='])) * draw(st.sampled_from([1, 2, 4, 8]))
    kind, after = draw(st.sampled_from([('characters inserted', place), ('characters replaced', place + len(put))]))
    fields[field] = text[:place] + put + text[after:] + fields[field][len(text):]
    return kind, [*LINES[:number], b'\t'.join(fields), *LINES[number + 1:]]


@st.composite
def changed_order(draw):
    """The TSV with a line less, a line twice, or two lines exchanged."""
    lines = list(LINES)
    place, other = (draw(st.integers(0, len(LINES) - 1)) for _ in range(2))
    kind = draw(st.sampled_from(['line left out', 'line twice', 'lines swapped']))
    if kind == 'line left out':
        del lines[place]
    elif kind == 'line twice':
        lines.insert(place, lines[other])
    else:
        lines[place], lines[other] = lines[other], lines[place]
    return kind, lines


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    return tmp_path_factory.mktemp('corrupted') / 'x.tsv'


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(corrupted=st.one_of(changed_line(), changed_base64(), changed_order()))
def test_each_corruption_is_reported_with_its_line_or_harmless(path, corrupted):
    kind, lines = corrupted
    path.write_bytes(b''.join(lines))
    lines = path.read_bytes().split(b'\n')  # as the reader divides it: a corruption can join or part lines
    lines = [line + b'\n' for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    faults = []
    images = dict(tsv.read(path, faults.append))

    message = re.compile(rf'{re.escape(str(path))}:(\d+): image .+: .*expected .+, found .+', re.S)
    reports = [message.match(str(fault)) for fault in faults]
    assert all(reports), faults
    reported = [int(report[1]) for report in reports]
    event(f'{kind}: {"reported" if reported else "harmless"}')
    # Each line is either read or reported, once; so nothing is dropped in silence.
    assert sorted([*reported, *images]) == list(range(1, len(lines) + 1))

    sizes = {one.features.shape[1] for one in images.values()}
    assert len(sizes) <= 1 and len({one.img_id for one in images.values()}) == len(images)
    for number, one in images.items():
        check_image(one, lines[number - 1])
    changed = {number for number, line in enumerate(lines, 1) if line not in AS_WRITTEN}
    for number, fault in zip(reported, map(str, faults), strict=True):
        if number not in changed:  # a good line is reported only for what another line has: its id, or a smaller f before it
            assert re.search(r'that of line (\d+)|line (\d+) set', fault), fault
    if faults and changed:
        # the changed line is among those named, or named as the cause
        named = {int(number) for fault in faults for number in re.findall(r'(?:x\.tsv:|of line |; line )(\d+)', str(fault))}
        assert named & changed, faults


def check_image(one, line):
    """What was read of a line is valid, and is what stands there."""
    for name, (_, dtype) in tsv.ARRAYS.items():
        array = getattr(one, name)
        assert array.dtype == dtype and len(array) == len(one.classes) and np.isfinite(array).all()
    assert one.boxes.shape[1:] == (4,) and (one.boxes[:, :2] <= one.boxes[:, 2:]).all()
    assert (one.boxes >= 0).all() and (one.boxes <= [one.width, one.height] * 2).all()
    fields = line.rstrip(b'\r\n').split(b'\t')
    for name, (field, _) in tsv.ARRAYS.items():
        text = fields[tsv.FIELDS.index(field)]
        assert re.fullmatch(rb'[A-Za-z0-9+/]*={0,2}', text), field
        if name != 'boxes':  # which may be clipped
            assert getattr(one, name).tobytes() == base64.b64decode(text), field
    if line in AS_WRITTEN:
        same(one, AS_WRITTEN[line])
