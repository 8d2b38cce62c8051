"""What a run starts from: files of weights under any of their names, and the config, vocabulary and answers beside them."""

import functools
import json
import re
from pathlib import Path

import models
from annotations.answer_table import matching_rows, read_table
from annotations.spec import check_answers, read_answers
from bert.tokenization import VOCABULARIES, BertTokenizer
from dist import print0
from files.download import cached_path, is_address
from files.json_files import DataError, read_json
from heads import Start

SNAPSHOT = ('.pth', '.safetensors')  # endings of a task's snapshots that may be left out
PRETRAINED = ('_LXRT.pth', '_LXRT.safetensors', *SNAPSHOT)
SAVED = ('model.safetensors', 'pytorch_model.bin')  # Hugging Face's names of a folder's weights
KINDS = ('.pth', '.safetensors', '.bin')
UNNAMED = re.compile(r'LABEL_\d+')  # Hugging Face's name of an answer that nobody named
NEVER = -1e4  # the bias of an answer that must not win


# ---- files of weights


def has_vocabulary(folder):
    """Whether a folder has what BertTokenizer.from_pretrained reads."""
    return any((Path(folder) / name).is_file() for name in VOCABULARIES)


def weights_in(folder):
    """The file of weights in a folder, or None."""
    return next((Path(folder) / name for name in SAVED if (Path(folder) / name).is_file()), None)


@functools.cache
def downloaded(address, offline):
    """The local path of an address. It is resolved once in a run, so that all of the run reads the same files."""
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
    if path is None and (snapshots := sorted(Path(name).glob('*.pth'))):
        raise FileNotFoundError(f'{name}: is a folder; name one of the files in it, such as {snapshots[0].with_suffix("")}')
    if path is None or not path.is_file():
        raise FileNotFoundError(f'{name}{ending}: no such file; expected weights there, or in {name}, or in a folder of that '
                                f'name with a {SAVED[0]}; published files: bash run/download.bash --help')
    return path


def starting_weights(options, load=PRETRAINED):
    """The file that --load, --loadLXMERT or --loadLXMERTQA names, or None. load: the endings that a path after --load may lack.
    Raises FileNotFoundError that names the flag."""
    for flag, endings in (('load', load), ('loadLXMERT', PRETRAINED), ('loadLXMERTQA', PRETRAINED)):
        if value := getattr(options, flag):
            try:
                return find_weights(value, endings, options.offline)
            except FileNotFoundError as error:
                raise FileNotFoundError(f'--{flag} {value}: {error}') from None
    return None


def bert_weights(folder):
    """The file of BERT's weights in a folder. Raises FileNotFoundError that says what to do."""
    if path := weights_in(folder):
        return path
    raise FileNotFoundError(f"{folder}: found no model.safetensors or pytorch_model.bin with BERT's weights; put one there, or "
                            'give --fromScratch to start from random weights')


# ---- config, vocabulary and answers beside them


def bert_folder(options, weights):
    """The folder that --bert names: a path, a name below --dataRoot, or an address; but with --load that of the weights, where it
    has a vocabulary and a config. Raises FileNotFoundError that says what to do."""
    if options.load and has_vocabulary(weights.parent) and (weights.parent / 'config.json').is_file():
        return weights.parent
    if is_address(options.bert):
        return downloaded(options.bert, options.offline)
    for folder in (Path(options.bert), Path(options.dataRoot) / options.bert):
        if has_vocabulary(folder):
            return folder
    missing = '' if not options.load else (f'{weights.parent}: no config.json and vocab.txt lie beside {weights.name}; copy them '
                                           'from its run, or give --bert. ')
    raise FileNotFoundError(
        f'{missing}--bert {options.bert}: found no vocab.txt in {options.bert}/ or {Path(options.dataRoot) / options.bert}/; '
        "put BERT's vocab.txt, config.json and model.safetensors there (bash run/download.bash bert)"
    )


def read_tokenizer(folder, config):
    """The folder's tokenizer. Raises ValueError if the vocabulary is larger than the model's."""
    tokenizer = BertTokenizer.from_pretrained(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f'{tokenizer.vocab_file}: {len(tokenizer)} word pieces, but vocab_size of the config is '
                         f'{config.vocab_size}')
    return tokenizer


def check_max_length(max_length, config):
    """Raises DataError if sentences may be longer than the model's positions."""
    if max_length > config.max_position_embeddings:
        raise DataError(f'sentences of {max_length} tokens do not fit the model: max_position_embeddings is '
                        f'{config.max_position_embeddings}')


def sidecar_files(model, config, tokenizer, answers):
    """{file name: text} of what lies beside snapshots, so that they can be used without anything else."""
    values = {'model_type': model} | json.loads(config.to_json())
    return {
        'config.json': json.dumps(values, indent=2) + '\n',
        'vocab.txt': '\n'.join(tokenizer.ids_to_tokens) + '\n',
        'answers.json': json.dumps(answers, indent=0) + '\n',
    }


def model_type(weights, default=models.DEFAULT):
    """The name of the model whose weights a file holds, by the config.json beside it. weights: None for no file."""
    if weights is None:
        return default
    path = Path(weights).with_name('config.json')
    config = read_json(path, 'the config of a model') if path.is_file() else {}
    name = config.get('model_type', default) if isinstance(config, dict) else default
    return name if name in models.MODELS else default  # BERT's own config.json says bert


def answers_beside(weights):
    """The answers of the head in a file of weights, in its order, as the answers.json or the config.json (Hugging Face's
    id2label) beside it has them; None where neither does."""
    path = Path(weights).with_name('answers.json')
    if path.is_file():
        return read_answers(path) if read_json(path, 'the answers of a snapshot') else None
    path = path.with_name('config.json')
    config = read_json(path, 'the config of a model') if path.is_file() else {}
    names = config.get('id2label') if isinstance(config, dict) else None
    if not names or (isinstance(names, dict) and all(UNNAMED.fullmatch(str(name)) for name in names.values())):
        return None
    if not isinstance(names, dict) or set(names) != {str(place) for place in range(len(names))}:
        raise DataError(f'{path}: key "id2label": expected {{"0": a name, "1": ...}} without a gap, found {str(names)[:100]}')
    return check_answers([names[str(place)] for place in range(len(names))], f'{path}: key "id2label"')


def check_sidecars(model, weights, config, tokenizer):
    """Raises DataError where config.json or vocab.txt beside a file of weights say that the weights mean something else, though
    their sizes fit: another model, other attention heads, other words."""
    path = Path(weights).with_name('config.json')
    if path.is_file():
        if (other := model_type(weights, model)) != model:
            raise DataError(f'{path}: model_type: these weights are of the model {other}, not {model}; give --model {other}')
        models.package(model).check_config(path, config)
    if has_vocabulary(path.parent):
        checkpoint = BertTokenizer.from_pretrained(path.parent)
        pairs = zip(checkpoint.ids_to_tokens, tokenizer.ids_to_tokens, strict=False)
        place = next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(checkpoint), len(tokenizer)))
        if place < max(len(checkpoint), len(tokenizer)):
            raise DataError(f'{checkpoint.vocab_file}: is not the vocabulary in use, {tokenizer.vocab_file}: they differ from '
                            f'word {place} on (counted from 0); give --bert {path.parent}')


def check_weights(model, options, weights, config, tokenizer, answers):
    """Raises DataError where what lies beside the weights to start from says that they mean something else than what is in use,
    though their sizes fit: other words, other attention heads, with --load other answers."""
    check_sidecars(model, weights, config, tokenizer)
    if not has_vocabulary(weights.parent) or not (weights.parent / 'config.json').is_file():
        print0(f'{weights}: no vocabulary or no config.json lies beside it: its words and attention heads are taken to be those '
               f'of {tokenizer.vocab_file.parent}.')
    known = answers_beside(weights) if options.load and answers else answers
    if known is None and options.transferAnswers:
        raise DataError(f'--transferAnswers: {weights}: its answers are not known; put its answers.json beside it')
    if known is None:
        print0(f'{weights}: no answers.json lies beside it: its answers are taken to be the {len(answers)} in use.')
    elif known != answers and not options.transferAnswers:
        advice = '--transferAnswers moves those that are in both, by their names' if set(known) & set(answers) else \
            'none is in both: a snapshot of another task is tested as that task, or started from by --loadLXMERT'
        raise DataError(f'--load {options.load}: its {len(known)} answers are not the {len(answers)} in use '
                        f'({difference(known, answers)}); {advice}')


def difference(known, answers):
    """How two lists of answers differ, in words."""
    other = [a for a in known if a not in set(answers)] + [a for a in answers if a not in set(known)]
    return f'different: {", ".join(map(repr, other[:3]))}{", ..." if len(other) > 3 else ""}' if other else 'another order'


# ---- which weights win


def start_of(options, weights, bert, answers):
    """The Start of a run. weights: the file to start from, or None; bert: folder of BERT's weights; answers: list of str.

    Which weights win: 1. a run state (--resume, later and over all of these), 2. --load, 3. --loadLXMERT and --loadLXMERTQA,
    4. --fromScratch, 5. BERT's.
    """
    if not weights:
        return Start('scratch') if options.fromScratch else Start('bert', bert_weights(bert))
    known = answers_beside(weights) if options.load or options.loadLXMERTQA else None
    if options.loadLXMERT:
        return Start('encoder', weights)
    if options.load and (not options.transferAnswers or known == answers):
        return Start('all', weights)
    known = known or read_table(Path(options.dataRoot) / 'lxmert/all_ans.json')  # of the published pre-trained file
    return Start('answers', weights, matching_rows(known, answers), len(known), NEVER if options.test is not None else 0.0)


def load_start(model, head, options, weights, bert, answers):
    """Loads the weights that a run starts from into a head, and prints what was loaded."""
    start = start_of(options, weights, bert, answers)
    for report in models.package(model).load_start(head, start):
        print0(report)
    if start.kind == 'answers':
        copied = sum(row >= 0 for row in start.rows)
        print0(f'Answer head: {copied} answers from the head there, {len(answers) - copied} '
               f'{"are never given" if start.absent else "start at 0"}.')
    return head
