"""How every program starts and ends: options, device, the folder that --bert names; faults as messages."""

import json
import os
import sys
from pathlib import Path

import torch

import dist
from bert.speed import accelerate
from bert.tokenization import BertTokenizer
from files.download import is_address
from files.json_files import DataError
from lxrt.config import LxrtConfig
from param import parse_args
from tasks.snapshot import (
    PRETRAINED,
    answers_beside,
    check_beside,
    difference,
    downloaded,
    find_weights,
    has_vocabulary,
    weights_in,
)
from train import Stopped, fit

STOPPED = 75  # exit status of a run that SIGTERM run_main with all saved: 'failed for now, try again' (sysexits.h)


def run(prepare, argv=None):
    """Runs a program; returns its exit status. Faults of the input end it with one message, not a traceback.

    prepare: (options, device) -> an object with `folder`, a RunFolder, and `run()`.
    """
    options, name = parse_args(argv), Path(sys.argv[0]).name
    program = None
    try:
        device = dist.start(options.device)
        options.resume |= options.test is None and dist.restarted()
        if options.deterministic:
            os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # which CUDA's matrix products ask for
            torch.use_deterministic_algorithms(True)
        program = prepare(options, device)
        program.run()
        dist.stop()  # not after an error: the other processes may still wait in a gathering that never ends
        return dist.end(0)
    except Stopped as stopped:
        dist.print0(f'{name}: {stopped}')
        dist.stop()
        return dist.end(STOPPED)
    except (ValueError, OSError, FloatingPointError, dist.DeviceError) as error:
        print(f'{name}: error: {error}', file=sys.stderr)
        return dist.end(1)
    except KeyboardInterrupt:
        print(f'\n{name}: interrupted; a run that was training goes on with the same command and --resume', file=sys.stderr)
        return 130
    finally:
        if program is not None:
            program.folder.close()


def starting_weights(options, load=PRETRAINED):
    """The file that --load, --loadLXMERT or --loadLXMERTQA names, or None. load: what may be left out of a path after --load.
    Raises FileNotFoundError that names the flag."""
    for flag, endings in (('load', load), ('loadLXMERT', PRETRAINED), ('loadLXMERTQA', PRETRAINED)):
        if value := getattr(options, flag):
            try:
                return find_weights(value, endings, options.offline)
            except FileNotFoundError as error:
                raise FileNotFoundError(f'--{flag} {value}: {error}') from None
    return None


def check_weights(options, weights, config, tokenizer, answers):
    """Raises DataError where what lies beside the weights to start from says that they mean something else than what is in use,
    though their sizes fit: other words, other heads, with --load other answers."""
    check_beside(weights, config, tokenizer)
    if not has_vocabulary(weights.parent) or not (weights.parent / 'config.json').is_file():
        dist.print0(f'{weights}: no vocabulary or no config.json lies beside it: its words and heads of attention are taken to '
                    f'be those of {tokenizer.vocab_file.parent}.')
    theirs = answers_beside(weights) if options.load and answers else answers
    if theirs is None and options.transferAnswers:
        raise DataError(f'--transferAnswers: {weights}: its answers are not known; put its answers.json beside it')
    if theirs is None:
        dist.print0(f'{weights}: no answers.json lies beside it: its answers are taken to be the {len(answers)} in use.')
    elif theirs != answers and not options.transferAnswers:
        advice = '--transferAnswers moves those that are in both, by their names' if set(theirs) & set(answers) else \
            'none is in both: a snapshot of another task is tested as that task, or started from by --loadLXMERT'
        raise DataError(f'--load {options.load}: its {len(theirs)} answers are not the {len(answers)} in use '
                        f'({difference(theirs, answers)}); {advice}')


def bert_folder(options, weights):
    """The folder that --bert names: a path, a name below --dataRoot, or an address; but with --load that of the weights, where it
    has a vocabulary and a config. Raises FileNotFoundError that says what to do."""
    if options.load and has_vocabulary(weights.parent) and (weights.parent / 'config.json').is_file():
        return weights.parent  # a snapshot carries its own
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


def read_config(folder, options):
    """The model's config: the folder's config.json (BERT base and lxr955 if there is none) with --llayers, --xlayers,
    --rlayers and --dropout over it."""
    path = folder / 'config.json'
    config = LxrtConfig.from_json(path) if path.is_file() else LxrtConfig()
    for name, value in (('l_layers', options.llayers), ('x_layers', options.xlayers), ('r_layers', options.rlayers),
                        ('hidden_dropout_prob', options.dropout), ('attention_probs_dropout_prob', options.dropout)):
        if value is not None:
            setattr(config, name, value)
    return config


def read_tokenizer(folder, config):
    """The folder's tokenizer. Raises ValueError if the vocabulary is larger than the model's."""
    tokenizer = BertTokenizer.from_pretrained(folder)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(f'{tokenizer.vocab_file}: {len(tokenizer)} word pieces, but vocab_size of the config is '
                         f'{config.vocab_size}')
    return tokenizer


def bert_weights(folder):
    """The file of BERT's weights in a folder. Raises FileNotFoundError that says what to do."""
    if path := weights_in(folder):
        return path
    raise FileNotFoundError(f"{folder}: found no model.safetensors or pytorch_model.bin with BERT's weights; put one there, or "
                            'give --fromScratch to start from random weights')


def files_beside(config, tokenizer, answers):
    """{file name: text} of what lies beside snapshots, so that they can be used without anything else."""
    return {
        'config.json': config.to_json(),
        'vocab.txt': '\n'.join(tokenizer.ids_to_tokens) + '\n',
        'answers.json': json.dumps(answers, indent=0) + '\n',
    }


def check_features(regions, config, names, folder):
    """Raises DataError if the regions of the splits that `names` calls do not fit the model."""
    if regions.feature_size != config.visual_feat_dim:
        raise DataError(f'features of {names} have {regions.feature_size} numbers a region, but the model expects '
                        f'{config.visual_feat_dim} (visual_feat_dim in {folder / "config.json"})')


def place(model, options, device):
    """The model on the device, to be computed there as the options say."""
    accelerate(model.to(device), options)
    return model


def train(options, folder, beside, make, device):
    """Trains from the start or from a saved run state, unless the run in `folder` is finished.

    beside: {file name: text} of what lies beside its snapshots; make: () -> (task, training set, validation set or None).
    Returns (task, validation set), or None if there was nothing to do.
    """
    state = folder.read_state(options, beside)
    if state is not None and state['progress']['epoch'] >= options.epochs:
        dist.print0(f'The run in {folder.path} is finished ({options.epochs} epochs): nothing to resume.')
        return None
    task, train_set, valid_set = make()
    step, parts = min(len(train_set), options.batchSize), dist.world_size() * options.accumulate
    if step < parts:
        raise DataError(f'a step of {step} examples cannot be split into {parts} parts (processes x --accumulate)')
    folder.begin(options, beside, state, train_set.digest())
    parameters = sum(p.numel() for p in task.model.parameters())
    dist.print0(f'Training {parameters / 1e6:.1f} M parameters on {device}, processes: {dist.world_size()}.')
    fit(task, train_set, valid_set, options, folder, state, device)
    dist.print0(f'\nSnapshots, log and events: {folder.path}')
    return task, valid_set
