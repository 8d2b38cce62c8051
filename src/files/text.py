"""Text from files of strangers on its way to a terminal, a log or a message."""

import re

MAX_MESSAGE = 5000  # characters of an error
BREAK = re.compile(r'\n(?!  )')  # before a line that is not indented


def printable(text):
    """The text of any value, or bytes in UTF-8, in one line: control characters, line ends, marks of writing direction and halves
    of characters are escaped, so that no text can move the cursor, colour or hide others, or look like a line of a program."""
    text = text.decode('utf-8', 'backslashreplace') if isinstance(text, bytes) else str(text)
    return text if text.isprintable() else ''.join(
        char if char.isprintable() else char.encode('unicode_escape').decode() for char in text)


def printable_lines(text):
    """As `printable`, but keeps line ends before lines that are indented by two spaces: those of our own long messages."""
    return '\n'.join(map(printable, BREAK.sub(r'\\n', str(text)).split('\n')))


def shown(value, most=200):
    """A value of a file for a message, in one line: its first characters, as in Python."""
    try:
        text = printable(repr(value))
    except ValueError:
        text = 'a number of thousands of digits'
    return text[:most] + '...' if len(text) > most else text


class InputError(ValueError):
    """An input that cannot be used. The message may quote it: control characters in it are escaped."""

    def __init__(self, message):
        text = printable_lines(message)
        super().__init__(text[:MAX_MESSAGE] + '...' if len(text) > MAX_MESSAGE else text)
