"""A snapshot as files: weights under any of their names, and config, vocabulary and answers beside them."""

import functools
import re
from pathlib import Path

from annotations.spec import check_answers, read_answers
from bert.tokenization import VOCABULARIES, BertTokenizer
from files.download import cached_path, is_address
from files.json_files import DataError, read_json
from lxrt.config import LxrtConfig

SNAPSHOT = ('.pth', '.safetensors')  # endings of a task's snapshots that may be left out
PRETRAINED = ('_LXRT.pth', '_LXRT.safetensors', *SNAPSHOT)
SAVED = ('model.safetensors', 'pytorch_model.bin')  # what Hugging Face calls a folder's weights
KINDS = ('.pth', '.safetensors', '.bin')
NO_NAME = re.compile(r'LABEL_\d+')  # what Hugging Face calls answers that nobody named


def has_vocabulary(folder):
    """Whether a folder has what BertTokenizer.from_pretrained reads."""
    return any((Path(folder) / name).is_file() for name in VOCABULARIES)


def weights_in(folder):
    """The file of weights in a folder, or None."""
    return next((Path(folder) / name for name in SAVED if (Path(folder) / name).is_file()), None)


@functools.cache
def downloaded(address, offline):
    """The path of what lies at an address, which is asked once in a run, so that all of it reads the same."""
    return cached_path(address, offline)


def find_weights(name, endings, offline=False):
    """The file of weights that a flag names: without one of `endings`, or in full, a folder with a file that Hugging Face
    writes, or an address (http, https, s3, hf) of one of these. Raises FileNotFoundError that says what to do."""
    for ending in (*endings, ''):
        if (path := Path(f'{name}{ending}')).is_file() and path.suffix in KINDS:
            return path
    ending = '' if name.endswith(KINDS) else next(iter(endings), '')
    path = downloaded(name, offline) if is_address(name) else Path(name)
    path = weights_in(path) if path.is_dir() else path
    if path is None and (there := sorted(Path(name).glob('*.pth'))):
        raise FileNotFoundError(f'{name}: is a folder; name one of the files in it, such as {there[0].with_suffix("")}')
    if path is None or not path.is_file():
        raise FileNotFoundError(f'{name}{ending}: no such file; expected weights there, or in {name}, or in a folder of that '
                                f'name with a {SAVED[0]}; published files: bash run/download.bash --help')
    return path


def answers_beside(weights):
    """The answers of the head in a file of weights, in its order, as the answers.json or the config.json (Hugging Face's
    id2label) beside it has them; None where neither does."""
    beside = Path(weights).with_name('answers.json')
    if beside.is_file():
        return read_answers(beside) if read_json(beside, 'the answers of a snapshot') else None
    beside = beside.with_name('config.json')
    config = read_json(beside, 'the config of a model') if beside.is_file() else {}
    names = config.get('id2label') if isinstance(config, dict) else None
    if not names or (isinstance(names, dict) and all(NO_NAME.fullmatch(str(name)) for name in names.values())):
        return None
    if not isinstance(names, dict) or set(names) != {str(place) for place in range(len(names))}:
        raise DataError(f'{beside}: key "id2label": expected {{"0": a name, "1": ...}} without a gap, found {str(names)[:100]}')
    return check_answers([names[str(place)] for place in range(len(names))], f'{beside}: key "id2label"')


def check_beside(weights, config, tokenizer):
    """Raises DataError where config.json or vocab.txt beside a file of weights say that they mean something else here, though
    their sizes fit: other heads of attention, other words."""
    beside = Path(weights).with_name('config.json')
    if beside.is_file():
        heads = LxrtConfig.from_json(beside).num_attention_heads
        if heads != config.num_attention_heads:
            raise DataError(f'{beside}: num_attention_heads: these weights are of {heads} heads, the model has '
                            f'{config.num_attention_heads}; give --bert {beside.parent}')
    if has_vocabulary(beside.parent):
        theirs = BertTokenizer.from_pretrained(beside.parent)
        pairs = zip(theirs.ids_to_tokens, tokenizer.ids_to_tokens, strict=False)
        place = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(theirs), len(tokenizer)))
        if place < max(len(theirs), len(tokenizer)):
            raise DataError(f'{theirs.vocab_file}: is not the vocabulary in use, {tokenizer.vocab_file}: they differ from word '
                            f'{place} on (counted from 0); give --bert {beside.parent}')


def difference(theirs, answers):
    """How two lists of answers differ, in words."""
    other = [a for a in theirs if a not in set(answers)] + [a for a in answers if a not in set(theirs)]
    return f'different: {", ".join(map(repr, other[:3]))}{", ..." if len(other) > 3 else ""}' if other else 'another order'
