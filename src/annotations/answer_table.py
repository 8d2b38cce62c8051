"""The table of pre-training answers, and which of its rows another answer vocabulary has."""

import re

from files.json_files import DataError, first_duplicate, read_json
from files.text import shown

NUMBERS = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')
SAME = {
    'a man': 'man', 'the man': 'man', 'a woman': 'woman', 'the woman': 'woman', 'grey': 'gray',
    **{word: str(number) for number, word in enumerate(NUMBERS, 1)},
}


def normalise(answer):
    """An answer as the table has it, as in the original code: lower case, without a final '.' and a leading article;
    numbers up to ten as figures."""
    answer = answer.lower()
    answer = answer[:-1].strip() if answer.endswith('.') else answer
    answer = re.sub(r'^(a +)?(an +)?(the +)?', '', answer)  # in turn: 'a the dog' loses both
    return SAME.get(answer, answer)


def read_table(path, sets=None):
    """The answers of an all_ans.json, [{"ans", "dsets"}, ...], in the order of the pre-trained answer head.

    sets: only the answers of these sets (an iterable of str), as --qaSets. Raises FileNotFoundError, or ValueError that names
    the file, or the sets that it does not have.
    """
    entries = read_json(path, 'an answer table; it names the rows of the pre-trained answer head')
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries]):
        if not (isinstance(entry, dict) and isinstance(entry.get('ans'), str) and isinstance(entry.get('dsets'), list)
                and all(isinstance(name, str) for name in entry['dsets'])):
            raise DataError(f'{path}: entry {number}: expected {{"ans": a text, "dsets": a list of texts}}, found '
                            f'{shown(entry)}; correct it')
    table = [(entry['ans'], set(entry['dsets'])) for entry in entries]
    if (twice := first_duplicate(answer for answer, _ in table)) is not None:
        raise DataError(f'{path}: expected each answer once, found {shown(twice)} twice; '
                        'list it once')
    if sets is None:
        return [answer for answer, _ in table]
    available = set().union(*(dsets for _, dsets in table))
    if unknown := set(sets) - available:
        raise ValueError(f'--qaSets: {path} has answers of {", ".join(sorted(available))}, none of '
                         f'{", ".join(sorted(unknown))}; name some of these')
    return [answer for answer, dsets in table if dsets & set(sets)]


def matching_rows(known, answers):
    """For each of `answers` the row of the same answer in `known` (lists of str), or of the same when normalised, else -1.

    Of several known answers that are the same when normalised, the one that is written normalised counts, else the first.
    """
    row = {normalise(answer): i for i, answer in reversed(list(enumerate(known)))}
    row |= {answer: i for i, answer in enumerate(known)}
    return [row.get(answer, row.get(normalise(answer), -1)) for answer in answers]
