"""The table of pre-training answers, and the transfer of its rows to another answer vocabulary."""

import json
import re
from pathlib import Path

import torch

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
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such answer table; it names the rows of the pre-trained answer head')
    try:
        table = [(entry['ans'], set(entry['dsets'])) for entry in json.loads(path.read_text(encoding='utf-8'))]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: expected a list of {{"ans", "dsets"}}, found a fault at {error!r}') from None
    if len({answer for answer, _ in table}) < len(table):
        raise ValueError(f'{path}: expected each answer once, found {len(table)} answers that are '
                         f'{len({answer for answer, _ in table})} different ones')
    if sets is None:
        return [answer for answer, _ in table]
    there = set().union(*(dsets for _, dsets in table))
    if unknown := set(sets) - there:
        raise ValueError(f'--qaSets: {path} has answers of {", ".join(sorted(there))}, none of {", ".join(sorted(unknown))}')
    return [answer for answer, dsets in table if dsets & set(sets)]


@torch.no_grad()
def transfer_answers(layers, head, theirs, answers, absent=0.0):
    """Starts answer layers from others, as the original code does from the pre-trained ones.

    layers: lxrt.modeling.answer_layers for `answers` (list of str); head: the tensors of such layers for `theirs` (list of str),
    as lxrt.weights.answer_head finds them. The first layers are copied, and of the last one the rows of the same answers, or of
    those that are the same when normalised (of several, the one that stands there normalised, else the first). Other rows are 0,
    with the bias `absent`. Returns (rows copied, other rows). Raises ValueError if there is no head, or it does not fit.
    """
    own, last = layers.state_dict(), f'{len(layers) - 1}.'
    for name, tensor in own.items():
        if name not in head:
            raise ValueError(f'the file has no answer_head.logit_fc.{name}, the head of answers; use --loadLXMERT')
        rows = name.startswith(last)  # of the last layer they are the answers
        if head[name].shape[rows:] != tensor.shape[rows:]:
            raise ValueError(f'answer_head.logit_fc.{name}: expected size {tuple(tensor.shape[rows:])}, '
                             f'found {tuple(head[name].shape[rows:])}; a head of another model, or of a task about two pictures: '
                             '--loadLXMERT takes all but the head')
    if len(head[f'{last}bias']) != len(theirs):
        raise ValueError(f'the answer head has {len(head[f"{last}bias"])} rows, the answer table {len(theirs)} answers: they '
                         'must belong together')
    place = {normalise(answer): row for row, answer in reversed(list(enumerate(theirs)))}
    place |= {answer: row for row, answer in enumerate(theirs)}
    rows = torch.tensor([place.get(answer, place.get(normalise(answer), -1)) for answer in answers])
    for name, tensor in own.items():
        if name.startswith(last):
            tensor.fill_(absent if name.endswith('bias') else 0.0)
            tensor[rows >= 0] = head[name][rows[rows >= 0]].to(tensor)
        else:
            tensor.copy_(head[name])
    copied = int((rows >= 0).sum())
    return copied, len(answers) - copied
