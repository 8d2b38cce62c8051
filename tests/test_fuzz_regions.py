"""More than a thousand random corruptions of a good TSV: each is reported with its line, or is harmless."""

import base64
import random
import re
from collections import Counter

import numpy as np
from test_regions import image, same

from regions import tsv

# Features of some lines are long enough for the fast decoding of base64, of others not.
IMAGES = [image(number, o, f=260) for number, o in enumerate([3, 1, 4, 2, 3, 2, 5, 1])]
SEED, TIMES = 9595, 1200
ARRAY_FIELDS = [tsv.FIELDS.index(field) for field, _ in tsv.ARRAYS.values()]


def cut_bytes(lines, rng):
    line = rng.randrange(len(lines))
    start = rng.randrange(len(lines[line]))
    lines[line] = lines[line][:start] + lines[line][start + rng.choice([1, 2, 4, 16, 200]):]


def cut_off(lines, rng):
    line = rng.randrange(len(lines))
    lines[line:] = [lines[line][:rng.randrange(len(lines[line]))]]


def flip_bit(lines, rng):
    line = rng.randrange(len(lines))
    place = rng.randrange(len(lines[line]))
    raw = bytearray(lines[line])
    raw[place] ^= 1 << rng.randrange(8)
    lines[line] = bytes(raw)


def other_byte(lines, rng):
    line = rng.randrange(len(lines))
    place = rng.randrange(len(lines[line]))
    lines[line] = lines[line][:place] + bytes([rng.choice(b'\t\r\n\0 0-A=\xff' + bytes(range(256)))]) + lines[line][place + 1:]


def swap_bytes(lines, rng):
    line = rng.randrange(len(lines))
    raw = bytearray(lines[line])
    one, other = (rng.randrange(len(raw)) for _ in range(2))
    raw[one], raw[other] = raw[other], raw[one]
    lines[line] = bytes(raw)


def swap_fields(lines, rng):
    line = rng.randrange(len(lines))
    parts = lines[line].split(b'\t')
    one, other = (rng.randrange(len(parts)) for _ in range(2))
    parts[one], parts[other] = parts[other], parts[one]
    lines[line] = b'\t'.join(parts)


def double_bytes(lines, rng):
    line = rng.randrange(len(lines))
    start = rng.randrange(len(lines[line]))
    piece = lines[line][start:start + rng.choice([1, 4, 64])]
    lines[line] = lines[line][:start] + piece + lines[line][start:]


def in_array(lines, rng, change):
    """Put change(text, place) in place of the text of an array field; every other time the place is near its end."""
    line, field = rng.randrange(len(lines)), rng.choice(ARRAY_FIELDS)
    parts = lines[line].split(b'\t')
    text = parts[field].rstrip(b'\r\n')
    place = rng.randrange(len(text) - 8 if rng.random() < 0.5 else 0, len(text) + 1)
    parts[field] = change(text, place) + parts[field][len(text):]
    lines[line] = b'\t'.join(parts)


def foreign_inserted(lines, rng):
    """Characters that are not base64's; who skips them finds all the others, and fours leave the length whole."""
    put = bytes([rng.choice(b' -_*.\0\xff')]) * rng.choice([1, 4, 4, 8])
    in_array(lines, rng, lambda text, place: text[:place] + put + text[place:])


def foreign_instead(lines, rng):
    put = rng.choice([b'-', b'_', b' ', b'\xff', b'----', b'    '])  # - and _ are those of URLs
    in_array(lines, rng, lambda text, place: text[:place] + put + text[place + len(put):])


def padding_inside(lines, rng):
    put = b'=' * rng.choice([1, 2, 4])
    in_array(lines, rng, lambda text, place: text[:place] + put + text[place + rng.choice([0, len(put)]):])


def cut_line(lines, rng):
    del lines[rng.randrange(len(lines))]


def double_line(lines, rng):
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))


def swap_lines(lines, rng):
    one, other = (rng.randrange(len(lines)) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]


KINDS = [cut_bytes, cut_off, flip_bit, other_byte, swap_bytes, swap_fields, double_bytes, foreign_inserted, foreign_instead,
         padding_inside, cut_line, double_line, swap_lines]


def test_each_corruption_is_reported_with_its_line_or_harmless(tmp_path):
    path = tmp_path / 'x.tsv'
    tsv.write(path, IMAGES)
    good = path.read_bytes().splitlines(keepends=True)
    assert len(good) == len(IMAGES)
    as_written = dict(zip(good, IMAGES, strict=True))
    rng, outcomes = random.Random(SEED), Counter()
    for number in range(TIMES):
        kind = KINDS[number % len(KINDS)]
        lines = list(good)
        kind(lines, rng)
        path.write_bytes(b''.join(lines))
        found = path.read_bytes().split(b'\n')  # as the reader divides it: a corruption can join or part lines
        found = [line + b'\n' for line in found[:-1]] + ([found[-1]] if found[-1] else [])
        faults = []
        read = dict(tsv.read(path, faults.append))

        told = [re.match(rf'{re.escape(str(path))}:(\d+): image .+: .*expected .+, found .+', str(fault), re.S)
                for fault in faults]
        assert all(told), (kind, faults)
        told = [int(match[1]) for match in told]
        # Each line is either read or told, once, in order; so nothing is dropped in silence.
        assert sorted([*told, *read]) == list(range(1, len(found) + 1)), (number, kind)

        sizes = {one.features.shape[1] for one in read.values()}
        assert len(sizes) <= 1 and len({one.img_id for one in read.values()}) == len(read)
        for line, one in read.items():
            o = len(one.classes)
            assert one.boxes.shape == (o, 4) and one.features.shape == (o, *sizes)
            for name, (_, dtype) in tsv.ARRAYS.items():
                array = getattr(one, name)
                assert array.dtype == dtype and len(array) == o and np.isfinite(array).all()
            # What was decoded was base64 and nothing else, and stands for what was read.
            parts = found[line - 1].rstrip(b'\r\n').split(b'\t')
            for name, (field, _) in tsv.ARRAYS.items():
                text = parts[tsv.FIELDS.index(field)]
                assert re.fullmatch(rb'[A-Za-z0-9+/]*={0,2}', text), (kind, field)
                if name != 'boxes':  # which may be clipped
                    assert getattr(one, name).tobytes() == base64.b64decode(text), (kind, field)
            assert (one.boxes[:, :2] <= one.boxes[:, 2:]).all()
            assert (one.boxes >= 0).all() and (one.boxes <= [one.width, one.height] * 2).all()
            if found[line - 1] in as_written:
                same(one, as_written[found[line - 1]])
        changed = {place for place, line in enumerate(found, 1) if line not in as_written}
        for line in told:  # a whole line is told only for what another line has: its id, or a smaller f before it
            if line not in changed:
                text = str(faults[told.index(line)])
                assert re.search(r'that of line (\d+)|line (\d+) set', text), (kind, text)
        outcomes['reported' if faults else 'harmless'] += 1
        if faults and changed:
            # the changed line is among those named, or named as the cause
            named = {int(n) for fault in faults for n in re.findall(r'(?:x\.tsv:|of line |; line )(\d+)', str(fault))}
            assert named & changed, (kind, faults)
    assert outcomes.total() == TIMES and outcomes['reported'] > TIMES / 2, outcomes
