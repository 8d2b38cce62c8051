"""Finds and checks the weights that a run starts from, and the sidecars beside them: config, vocabulary and answers."""

import functools
import json
import re
from pathlib import Path

import models
from annotations.answer_table import matching_rows, read_table
from annotations.spec import check_answers, read_answers
from bert.tokenization import VOCABULARIES, BertTokenizer
from bert.weights import WeightsError, tensor_names
from dist import print0
from files.download import cached_path, is_address
from files.json_files import DataError, field, read_json, some
from files.text import shown
from heads import Start
from param import ENCODERS, Options

SNAPSHOT = ('.pth', '.safetensors', '.model')  # endings that the path of a task's snapshot may omit
PUBLISHED = ('.model', '.pth', '.safetensors')  # the same, where the original's files end in .model
PRETRAINED = ('_LXRT.pth', '_LXRT.safetensors', *SNAPSHOT)  # the same for pre-trained weights
HUGGING_FACE_FILES = ('model.safetensors', 'pytorch_model.bin')  # files of weights in a Hugging Face folder
WEIGHT_SUFFIXES = ('.pth', '.safetensors', '.bin', '.model')
DEFAULT_LABEL = re.compile(r'LABEL_\d+')  # Hugging Face's default label name
ANSWER_LINES = 'answers_vqa.txt'  # answers of a published model, one a line
SMALL_MODEL = 100_000_000  # parameters that any machine has memory for
SHORTEST = 3  # tokens of a text
EXCLUDED_BIAS = -1e4  # bias of an answer that is never to be predicted


# ---- files of weights


def has_vocabulary(folder):
    """Whether a folder has a file that BertTokenizer.from_pretrained reads."""
    return any((Path(folder) / name).is_file() for name in VOCABULARIES)


def weights_in(folder):
    """The file of weights in a Hugging Face folder, or None."""
    return next((Path(folder) / name for name in HUGGING_FACE_FILES if (Path(folder) / name).is_file()), None)


@functools.cache
def downloaded(address, offline):
    """The local path of an address. Cached, so that a run always reads the same version."""
    return cached_path(address, offline)


def find_weights(name, endings, offline=False):
    """The file of weights for the value of a flag: a path, with or without one of `endings`, a Hugging Face folder, or the
    address (http, https, s3, hf) of one of these. Raises FileNotFoundError with advice."""
    for ending in (*endings, ''):
        if (path := Path(f'{name}{ending}')).is_file() and path.suffix in WEIGHT_SUFFIXES:
            return path
    ending = '' if name.endswith(WEIGHT_SUFFIXES) else next(iter(endings), '')
    path = downloaded(name, offline) if is_address(name) else Path(name)
    path = weights_in(path) if path.is_dir() else path
    if path is None and (snapshots := sorted(Path(name).glob('*.pth'))):
        raise FileNotFoundError(f'{name}: is a folder; name one of the files in it, such as {snapshots[0].with_suffix("")}')
    if path is None or not path.is_file():
        raise FileNotFoundError(f'{name}{ending}: no such file; expected weights there, or in {name}, or in a folder of that '
                                f'name with a {HUGGING_FACE_FILES[0]}; published files: bash run/download.bash --help')
    return path


def starting_weights(options, load=PRETRAINED):
    """The file that --load, one of ENCODERS or --loadLXMERTQA names, or None. load: the endings that the path of --load may omit.
    Raises FileNotFoundError that names the flag."""
    published = {flag: PUBLISHED if flag in ('loadVLBERT', 'loadALBEF') else PRETRAINED for flag in (*ENCODERS, 'loadLXMERTQA')}
    for flag, endings in ({'load': load} | published).items():
        if value := getattr(options, flag):
            try:
                return find_weights(value, endings, options.offline)
            except FileNotFoundError as error:
                raise FileNotFoundError(f'--{flag} {value}: {error}') from None
    return None


def resnet_weights(options):
    """The file that --loadResNet names, or None. Raises FileNotFoundError that names the flag."""
    try:
        return find_weights(options.loadResNet, PUBLISHED, options.offline) if options.loadResNet else None
    except FileNotFoundError as error:
        raise FileNotFoundError(f'--loadResNet {options.loadResNet}: {error}') from None


def bert_weights(folder):
    """The file of BERT's weights in a folder. Raises FileNotFoundError with advice."""
    if path := weights_in(folder):
        return path
    raise FileNotFoundError(f"{folder}: found no model.safetensors or pytorch_model.bin with BERT's weights; put one there, or "
                            'give --fromScratch to start from random weights')


# ---- sidecars: config, vocabulary and answers


def bert_folder(options, weights):
    """The folder of vocabulary and config. With --load, and for a Hugging Face folder without --bert, the folder of the weights
    if it has both; else --bert: a path, a name below --dataRoot, or an address. Raises FileNotFoundError with advice."""
    complete = weights is not None and has_vocabulary(weights.parent) and (weights.parent / 'config.json').is_file()
    no_bert = options.bert == Options.bert
    if complete and (options.load or (no_bert and weights.name in HUGGING_FACE_FILES)):
        return weights.parent
    if is_address(options.bert):
        return downloaded(options.bert, options.offline)
    for folder in (Path(options.bert), Path(options.dataRoot) / options.bert):
        if has_vocabulary(folder):
            return folder
    if complete and no_bert:
        return weights.parent
    missing = '' if not options.load else (f'{weights.parent}: no config.json and vocab.txt lie beside {weights.name}; copy them '
                                           'from its run, or give --bert. ')
    raise FileNotFoundError(
        f'{missing}--bert {options.bert}: found no vocab.txt in {options.bert}/ or {Path(options.dataRoot) / options.bert}/; '
        "put BERT's vocab.txt, config.json and model.safetensors there (bash run/download.bash bert)"
    )


def read_tokenizer(folder, config):
    """The folder's tokenizer. Raises ValueError if its vocabulary is larger than config.vocab_size."""
    tokenizer = BertTokenizer.from_pretrained(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f'{tokenizer.vocab_file}: {len(tokenizer)} word pieces, but vocab_size of the config is '
                         f'{config.vocab_size}; do the two belong together?')
    return tokenizer


def check_size(config, folder, weights):
    """Raises DataError if the config of a folder is of a model that is many times larger than a file of weights."""
    parameters, size = config.parameters(), weights.stat().st_size
    if parameters > max(8 * size, SMALL_MODEL):  # a parameter takes 2 or 4 bytes
        raise DataError(f'{folder / "config.json"}: a model of {parameters:,} parameters, but {weights} has {size:,} bytes; is '
                        'it the config of these weights?')


def check_max_length(max_length, config, task=None):
    """Raises DataError if texts of max_length tokens exceed the model's position embeddings, or these hold no word. task: None
    for any."""
    most = config.max_text_length(task)
    if min(max_length, most) < SHORTEST:
        raise DataError(f'max_position_embeddings: expected enough for a text of {SHORTEST} tokens ([CLS], a word, [SEP]), found '
                        f'{config.max_position_embeddings}; give the config.json of another model')
    if max_length > most:
        raise DataError(f'sentences of {max_length} tokens do not fit the model: max_position_embeddings is '
                        f'{config.max_position_embeddings}, of which {most} are for a text; give a smaller max_length')


def sidecar_files(model, config, tokenizer, answers):
    """{file name: text} of the files that a run writes beside its snapshots, so that they can be loaded on their own."""
    return {
        'config.json': config_text(model, config),
        'vocab.txt': vocabulary_text(tokenizer),
        'answers.json': json.dumps(answers, indent=0) + '\n',
    }


def config_text(model, config):
    """The config.json of a snapshot."""
    return json.dumps({'model_type': model} | json.loads(config.to_json()), indent=2) + '\n'


def vocabulary_text(tokenizer):
    """The vocab.txt of a snapshot."""
    return '\n'.join(tokenizer.ids_to_tokens) + '\n'


def model_type(weights, default=None):
    """The model of a file of weights: the model_type of the config.json beside it, else the default, else the model that has
    tensors of these names. weights: path or None. Raises DataError if config.json names an unknown model."""
    if weights is None:
        return default or models.DEFAULT
    path = Path(weights).with_name('config.json')
    config = read_json(path, 'the config of a model', dict) if path.is_file() else {}
    name = field(config, 'model_type', str, path) if 'model_type' in config else None
    if name in models.MODELS:
        return name
    if name not in (None, *models.OTHER_TYPES):
        raise DataError(f'{path}: key "model_type": expected one of {", ".join((*models.MODELS, *models.OTHER_TYPES))}, found '
                        f'{shown(name)}; add the model to src/models.py, or correct the file')
    return default or models.of_names(tensor_names(weights))


def answers_beside(weights):
    """The answers of an answer head, in its order, from answers.json, ANSWER_LINES or the config.json (Hugging Face's id2label)
    beside the file of weights; None if neither has them. Raises DataError for a malformed id2label."""
    path = Path(weights).with_name('answers.json')
    if path.is_file():
        answers = read_json(path, 'the answers of a snapshot')
        return check_answers(answers, path) if answers else None
    if (path := path.with_name(ANSWER_LINES)).is_file():
        return read_answers(path)
    path = path.with_name('config.json')
    names = read_json(path, 'the config of a model', dict).get('id2label') if path.is_file() else None
    if not names or (isinstance(names, dict) and all(DEFAULT_LABEL.fullmatch(str(name)) for name in names.values())):
        return None
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        raise DataError(f'{path}: key "id2label": expected {{"0": a name, "1": ...}} without a gap, found {shown(names)}; '
                        'correct it, or put an answers.json beside it')
    return check_answers([names[str(i)] for i in range(len(names))], f'{path}: key "id2label"')


def check_sidecars(model, weights, config, tokenizer, encoder=False):
    """Raises DataError if config.json or vocab.txt beside a file of weights contradict config or tokenizer. Tensor sizes do not
    reveal another number of attention heads or another order of words. encoder: whether a flag of models.FLAG_MODELS names
    them."""
    path = Path(weights).with_name('config.json')
    if path.is_file():
        if (other := model_type(weights, model)) != model:
            flag = models.flag_of(other) if encoder else f'--model {other}'
            raise DataError(f'{path}: model_type: these weights are of the model {other}, not {model}; give {flag}')
        models.package(model).check_config(path, config)
    if has_vocabulary(path.parent):
        checkpoint = BertTokenizer.from_pretrained(path.parent)
        pairs = zip(checkpoint.ids_to_tokens, tokenizer.ids_to_tokens, strict=False)
        index = next((i for i, (word, other) in enumerate(pairs) if word != other), min(len(checkpoint), len(tokenizer)))
        if index < max(len(checkpoint), len(tokenizer)):
            raise DataError(f'{checkpoint.vocab_file}: is not the vocabulary in use, {tokenizer.vocab_file}: they differ from '
                            f'word {index} on (counted from 0); give --bert {path.parent}')


def check_weights(model, options, weights, config, tokenizer, answers):
    """Raises DataError if the sidecars of the initial weights contradict config, tokenizer or, with --load, answers. Prints what
    cannot be checked because a sidecar is missing."""
    check_sidecars(model, weights, config, tokenizer, encoder=not options.load)
    if not has_vocabulary(weights.parent) or not (weights.parent / 'config.json').is_file():
        print0(f'{weights}: no vocabulary or no config.json beside it: assuming the vocabulary and the attention heads of '
               f'{tokenizer.vocab_file.parent}.')
    known = answers_beside(weights) if options.load and answers else answers
    if known is None and options.transferAnswers:
        raise DataError(f'--transferAnswers: {weights}: its answers are unknown; put its answers.json beside it')
    if known is None:
        print0(f'{weights}: no answers.json beside it: assuming the {len(answers)} answers in use.')
    elif known != answers and not options.transferAnswers:
        advice = '--transferAnswers copies the rows of the answers that are in both' if set(known) & set(answers) else \
            'none is in both: to start from a snapshot of another task, give --loadEncoder'
        raise DataError(f'--load {options.load}: its {len(known)} answers are not the {len(answers)} in use '
                        f'({difference(known, answers)}); {advice}')


def difference(known, answers):
    """The difference of two lists of answers, for a message."""
    common = set(known) & set(answers)
    other = [answer for answer in (*known, *answers) if answer not in common]
    return f'different: {some(map(repr, other))}' if other else 'another order'


# ---- precedence of initial weights


def start_of(options, weights, bert, answers):
    """The Start of a run. weights: path or None; bert: folder of BERT's weights; answers: list of str.

    Precedence: 1. a run state (--resume; loaded later), 2. --load, 3. ENCODERS and --loadLXMERTQA, 4. --fromScratch,
    5. BERT's weights.
    """
    resnet = resnet_weights(options)
    if not weights:
        return Start('scratch', resnet=resnet) if options.fromScratch else Start('bert', bert_weights(bert), resnet=resnet)
    known = answers_beside(weights) if options.load or options.loadLXMERTQA else None
    if options.encoder:
        return Start('encoder', weights, bert=weights_in(bert), resnet=resnet)
    if options.load and (not options.transferAnswers or known == answers):
        return Start('all', weights)
    known = known or read_table(Path(options.dataRoot) / 'lxmert/all_ans.json')  # the answers of the published pre-trained file
    absent = EXCLUDED_BIAS if options.test is not None else 0.0
    return Start('answers', weights, matching_rows(known, answers), len(known), absent)


def load_start(model, head, options, weights, bert, answers):
    """Loads the initial weights of a run into a head and prints what was loaded."""
    start = start_of(options, weights, bert, answers)
    try:
        reports = models.package(model).load_start(head, start)
    except WeightsError as error:
        if start.resnet and str(error).startswith(str(start.resnet)):
            raise WeightsError(f'--loadResNet: {error}') from None
        place = mismatch(model, options, start, error) or ('' if str(start.path) in str(error) else str(start.path))
        raise WeightsError(f'{place}: {error}' if place else str(error)) from None
    for report in reports:
        print0(report)
    if start.kind == 'answers':
        copied = sum(row >= 0 for row in start.rows)
        print0(f'Answer head: {copied} answers copied from {weights.name}, {len(answers) - copied} '
               f'{"are never predicted" if start.absent else "start at 0"}.')


def mismatch(model, options, start, error):
    """What is wrong with weights whose loading ended in an error, and what to do; '' if that is not known."""
    other = models.of_names(tensor_names(start.path))
    if other not in (model, models.DEFAULT):  # which is also that of names nobody knows
        return (f'{start.path}: has weights of the model {other}, not of {model}; give {models.flag_of(other)}, or --model '
                f'{other} with --load')
    if start.kind != 'all' or 'does not fit' not in str(error):
        return ''
    advice = '' if options.test is not None else '; the encoder of other weights is loaded by --loadEncoder'
    return f'--load needs all weights of the same task{advice}'
