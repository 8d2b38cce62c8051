"""How far a long program is: tqdm's bar on a terminal, elsewhere a line about once a minute, both on standard error."""

import sys
import time

from tqdm import tqdm

from files.text import printable

INTERVAL = 60  # seconds between two lines


class ProgressBar(tqdm):
    """tqdm, whose other arguments and methods it has. Without a terminal, as under nohup, SLURM or CI, it prints lines.

    shown: whether this process shows anything; force: draw the bar even if standard error is no terminal; per_step, rate_unit:
    the rate is given in rate_unit (such as examples), of which a step has per_step.
    """

    def __init__(self, iterable=None, desc=None, total=None, unit='it', initial=0, *, shown=True, force=False, per_step=1,
                 rate_unit=None, unit_scale=False, **options):
        draw = shown and (force or sys.stderr.isatty())
        desc = desc and printable(desc)
        super().__init__(iterable, desc, total, unit=unit, initial=initial, unit_scale=unit_scale, disable=not draw, **options)
        self.lines, self.name, self.rate_unit = shown and not draw, desc or '', rate_unit or unit.strip()
        self.unit, self.unit_scale, self.per_step, self.details = unit, unit_scale, per_step, ''
        self.first, self.updated = initial, False
        self.begin = self.last = time.monotonic()

    def __iter__(self):
        if not self.lines:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n=1):
        if self.disable:
            self.n += n
        else:
            super().update(n)
        now = time.monotonic()
        if self.lines and now - self.last >= INTERVAL:
            self.last = now
            self.note(self.progress())
        if not self.updated:  # the first step, which compiles or fills caches, does not count for the rate
            self.first, self.begin, self.updated = self.n, now, True

    def set_postfix_str(self, s='', refresh=True):
        self.details = s
        super().set_postfix_str(s, refresh)

    def rate(self):
        """Steps per second."""
        return max(self.n - self.first, 0) / max(time.monotonic() - self.begin, 1e-9)

    def progress(self):
        """What is done, the rate and the remaining time, for a line."""
        def amount(number):
            return f'{tqdm.format_sizeof(number)}B' if self.unit_scale else f'{number:,}'

        rate = self.rate()
        parts = [f'{amount(self.n)} of {amount(self.total)}' if self.total else amount(self.n), self.shown_rate()]
        parts[0] += '' if self.unit_scale else f' {self.unit.strip()}'
        if self.details:
            parts.insert(1, self.details)
        if self.total and rate:
            parts.append(f'{tqdm.format_interval(max(self.total - self.n, 0) / rate)} left')
        return ', '.join(parts)

    def shown_rate(self):
        rate = self.rate() * self.per_step
        return f'{tqdm.format_sizeof(rate)}B/s' if self.unit_scale else f'{rate:,.{1 if rate >= 1 else 3}f} {self.rate_unit}/s'

    def note_estimate(self, steps, what):
        """Prints the expected time of so many steps, and how it follows from the steps so far. what: they are, such as epoch."""
        if rate := self.rate():
            self.note(f'{1 / rate:.2f} s per step, {self.shown_rate()}: about {tqdm.format_interval(steps / rate)} per {what}')

    def note(self, text):
        """Prints a line with the time of day and the name of what is done."""
        note(f'{time.strftime("%H:%M:%S")} {self.name}: {text}')


def note(text):
    """Prints a line on standard error, above bars that are drawn there."""
    tqdm.write(text, file=sys.stderr)
