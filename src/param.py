"""The command-line flags, in groups, with one sentence of help each."""

import argparse
import dataclasses
import os
from dataclasses import dataclass

MAX_LAYERS = 1000  # of each kind
ENCODERS = ('loadEncoder', 'loadLXMERT', 'loadVLBERT', 'loadALBEF')  # flags of weights whose head is not used


def flag(default, group, text, choices=None):
    """A field of Options with the metadata of its command-line flag."""
    return dataclasses.field(default=default, metadata={'group': group, 'help': text, 'choices': choices})


@dataclass
class Options:
    """The options of a run. Flags of the original code keep their names, defaults and meaning; the launchers set the same
    values as the original launchers."""

    train: str = flag('train', 'Data', 'Splits to train on, separated by commas.')
    valid: str = flag('valid', 'Data', 'Splits to validate on after each epoch, separated by commas; "" for none.')
    test: str | None = flag(None, 'Data', 'Predict this split instead of training; print the score if it has labels.')
    dataRoot: str = flag('data', 'Data', 'Folder of annotations and features, with the layout of data/.')
    dataset: str | None = flag(None, 'Data', 'A json file that describes your own dataset (see data/README.md).')
    storeRoot: str | None = flag(None, 'Data', 'Folder for region stores, if the folder of the TSV is read-only.')
    tiny: bool = flag(False, 'Data', 'Use only the first 512 images (pre-training: 500) that each split refers to.')
    fast: bool = flag(False, 'Data', 'Use only the first 5,000 images that each split refers to.')
    dumpProbs: int = flag(0, 'Data', 'With --test: also write this many best answers per example with their probabilities.')
    allowMissing: bool = flag(False, 'Data', 'With --test: answer questions about images without regions from the text alone.')
    allowBroken: bool = flag(False, 'Data', 'Leave out images that cannot be read, which are listed, and what is about them.')
    featDevice: str = flag('cpu', 'Data', 'Where features are kept: cpu (memory-mapped), ram, or cuda (in half precision; there '
                           'also images, resized, unless training cuts them at random).',
                           choices=('cpu', 'ram', 'cuda'))
    numWorkers: int = flag(0, 'Data', 'Number of data loader worker processes; 0: load in the training process.')

    model: str | None = flag(None, 'Model', 'The model, by its name in src/models.py, such as lxmert, vlbert or albef; '
                             'default: that of the initial weights, else lxmert.')
    bert: str = flag('bert-base-uncased', 'Model', "Folder with vocab.txt, config.json and, optionally, BERT's weights; or its "
                     'address, such as hf://google-bert/bert-base-uncased.')
    llayers: int | None = flag(None, 'Model', 'Number of language layers; default: the config\'s l_layers, else 9.')
    xlayers: int | None = flag(None, 'Model', 'Number of cross-modality layers; default: the config\'s x_layers, else 5.')
    rlayers: int | None = flag(None, 'Model', 'Number of object relationship layers; default: the config\'s r_layers, else 5.')
    dropout: float | None = flag(None, 'Model', 'Dropout of hidden states and attention; default: the config\'s, else 0.1.')
    repairs: str | None = flag(None, 'Model', 'Of ALBEF: behaviour of the original code that is corrected, separated by commas, '
                               'such as separator,first_piece (docs/weights.md lists all).')
    load: str | None = flag(None, 'Model', 'Start from a snapshot: a path without .pth (in pre-training: without _LXRT.pth), a '
                            'full path of a .pth or .safetensors file, a Hugging Face folder, or the address of one of these.')
    loadEncoder: str | None = flag(None, 'Model', "Start from the encoder of pre-trained weights or of another task's snapshot, "
                                   'of --model or else of the model whose they are: a path, or as for --load.')
    loadLXMERT: str | None = flag(None, 'Model', 'The same for LXMERT: a path without _LXRT.pth, or as for --load.')
    loadVLBERT: str | None = flag(None, 'Model', 'The same for VL-BERT, such as vl-bert-base-prec.model of the original code; '
                                  'chooses --model vlbert.')
    loadALBEF: str | None = flag(None, 'Model', 'The same for ALBEF, such as ALBEF.pth or another file of the original code; '
                                 'chooses --model albef.')
    loadLXMERTQA: str | None = flag(None, 'Model', 'As --loadLXMERT; also copy the rows of its answer head, matched by answer.')
    features: str | None = flag(None, 'Model', 'What VL-BERT reads of images: precomputed (region features) or pixels (end to '
                                "end, by a ResNet that is trained too); default: the config's, else precomputed.",
                                choices=('precomputed', 'pixels'))
    loadResNet: str | None = flag(None, 'Model', "With --features pixels: start the ResNet from this file with torchvision's "
                                  'names, such as resnet101-pt-vgbua-0000.model of the original VL-BERT.')
    transferAnswers: bool = flag(False, 'Model', 'With --load of a snapshot that has other answers: copy the rows of its answer '
                                 'head, matched by answer. With --test the answers that it lacks are never predicted.')
    fromScratch: bool = flag(False, 'Model', "Start from random weights instead of BERT's.")

    batchSize: int | None = flag(None, 'Training', 'Examples in one optimizer step, over all processes and --accumulate; '
                                 'default: the recipe of model and task.')
    mceLoss: bool = flag(False, 'Training',
                         'Cross entropy with the best answer instead of binary cross entropy (VQA, GQA); also with --dumpProbs.')
    optim: str | None = flag(None, 'Training', 'The optimizer; default: the recipe of model and task.',
                             choices=('bert', 'adamw', 'adamw_pytorch', 'momentum', 'rms', 'adam', 'adamax', 'sgd'))
    lr: float | None = flag(None, 'Training', 'Learning rate; with a schedule the maximum, after the warm-up; default: the '
                            'recipe of model and task.')
    schedule: str | None = flag(
        None, 'Training', "Course of the learning rate: of bert one of warmup_..., of other optimizers one of the others; "
        "default: the recipe's where the optimizer has it, else constant.", choices=(
            'triangle', 'step', 'plateau', 'epochs', 'constant', 'warmup_linear', 'warmup_constant', 'warmup_cosine'))
    epochs: int | None = flag(None, 'Training', 'Passes over the training data; default: the recipe of model and task.')
    accumulate: int = flag(1, 'Training', 'Gradient accumulation: split each step into this many micro-batches.')
    seed: int = flag(9595, 'Training', 'Seed of the initial weights, the order of examples and dropout.')
    freeze: str | None = flag(None, 'Training', 'Parts of the encoder that are not trained: embeddings; a number N, the '
                              'embeddings and the first N layers; all, the whole encoder (linear probe). Snapshots stay '
                              'complete.')
    resume: bool = flag(False, 'Training', 'Resume from the run state in --output; without a run state, start.')
    saveSteps: int = flag(0, 'Training', 'Save the run state every this many steps and every epoch; 0: only every epoch.')

    rationale: bool = flag(False, 'VCR', 'Choose the rationale of the right answer (QA->R) instead of the answer (Q->A).')
    loadRationale: str | None = flag(
        None, 'VCR', 'With --test: the snapshot that chooses rationales, beside --load, which chooses answers: Q->AR, and the '
        "leaderboard's file.")

    taskMaskLM: bool = flag(False, 'Pre-training', 'Masked language modeling.')
    taskMatched: bool = flag(False, 'Pre-training', 'Predict whether sentence and image match; half of them do not (of '
                              'ALBEF two thirds).')
    taskContrast: bool = flag(False, 'Pre-training', 'Of ALBEF: contrast of images and texts (ITC).')
    taskAssign: bool = flag(False, 'Pre-training', 'Of ALBEF, alone, from pre-trained weights and before NLVR2: to which of two '
                            'images does a text belong (text assignment)?')
    withoutDistillation: bool = flag(False, 'Pre-training', 'Of ALBEF, also in fine-tuning: the predictions of the momentum '
                                     'models are no targets.')
    taskObjPredict: bool = flag(False, 'Pre-training', 'Masked region prediction with the losses of --visualLosses.')
    taskQA: bool = flag(False, 'Pre-training', 'Question answering, for the sentences that are questions.')
    visualLosses: str = flag('obj,attr,feat', 'Pre-training', 'What to predict of regions: obj (class), attr (attribute), feat '
                             '(features).')
    qaSets: str | None = flag(None, 'Pre-training', 'Use only the answers of these datasets, such as vqa,gqa; default: all.')
    withoutText: bool = flag(False, 'Pre-training', 'Pre-train on captions alone, without a corpus of texts.')
    wordMaskRate: float = flag(0.15, 'Pre-training', 'Probability that a word piece is masked and predicted.')
    objMaskRate: float = flag(0.15, 'Pre-training', 'Probability that a region is masked and predicted.')

    output: str = flag('snap/test', 'Output', 'Folder for snapshots, logs and predictions.')
    tqdm: bool = flag(False, 'Output', 'Show progress bars even if the output is not a terminal.')

    evalBatchSize: int | None = flag(None, 'Machine', 'Batch size of validation and --test; default: --batchSize.')
    offline: bool = flag(False, 'Machine', 'Download nothing; resolve addresses to files in the cache (same as '
                         'HF_HUB_OFFLINE=1).')
    device: str | None = flag(None, 'Machine', 'Device; default: cuda if there is a GPU, else cpu.', ('cpu', 'cuda'))
    multiGPU: bool = flag(False, 'Machine', 'One process per GPU (cpu with NPROC=2: two processes), started by the launchers.')
    bf16: bool = flag(False, 'Machine', 'bfloat16 autocast; weights stay in float32. Recommended on GPUs since Ampere, and for '
                      'models of the published size on CPUs with AVX512-BF16 or AMX.')
    fp16: bool = flag(False, 'Machine', 'float16 autocast with loss scaling, for GPUs before Ampere.')
    compile: bool = flag(False, 'Machine', 'torch.compile the encoder (on a GPU with CUDA graphs); takes a minute or more.')
    checkpointing: bool = flag(False, 'Machine', 'Gradient checkpointing: recompute activations inside a layer to save memory.')
    apex: bool = flag(False, 'Machine', "Use the layer norms and Adam of NVIDIA's apex, which must be installed.")
    deterministic: bool = flag(False, 'Machine', 'Use only deterministic operations on a GPU; slower.')

    def __post_init__(self):
        """Checks values and combinations before anything is loaded. Raises ValueError that names the flag."""
        starts = [name for name in ('load', *ENCODERS, 'loadLXMERTQA', 'fromScratch') if getattr(self, name)]
        if len(starts) > 1:
            raise ValueError(f'--{starts[0]} and --{starts[1]}: a model can start from only one of them')
        if self.transferAnswers and not self.load:
            raise ValueError('--transferAnswers: is valid only with --load; --loadLXMERTQA always matches answers by name')
        if self.tiny and self.fast:
            raise ValueError('--tiny and --fast: give only one of them')
        if self.loadResNet and self.load:
            raise ValueError('--loadResNet and --load: a snapshot has its ResNet in it; leave --loadResNet out')
        million, workers = 10 ** 6, max(64, 4 * os.cpu_count())
        for name, least, most in (
                ('batchSize', 1, million), ('epochs', 1, million), ('accumulate', 1, million), ('saveSteps', 0, 10 ** 9),
                ('dumpProbs', 0, million), ('numWorkers', 0, workers), ('evalBatchSize', 1, million), ('llayers', 0, MAX_LAYERS),
                ('xlayers', 0, MAX_LAYERS), ('rlayers', 0, MAX_LAYERS), ('seed', 0, 2 ** 63 - 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                limit = f'at least {least}' if value < least else f'at most {most}'
                raise ValueError(f'--{name}: expected {limit}, found {value}')
        if self.batchSize is not None and self.accumulate > self.batchSize:
            raise ValueError(f'--accumulate {self.accumulate}: more parts than examples in a step (--batchSize {self.batchSize})')
        if self.bf16 and self.fp16:
            raise ValueError('--bf16 and --fp16: give only one of them')
        if self.apex and (self.optim not in (None, 'bert') or self.device == 'cpu'):
            raise ValueError(f'--apex: needs a GPU and --optim bert, found --device {self.device} --optim {self.optim}; '
                             'remove --apex')
        layers = int(self.freeze) if (self.freeze or '').isdecimal() else 0
        if self.freeze not in (None, 'embeddings', 'all') and layers < 1:
            raise ValueError(f'--freeze: expected embeddings, all, or a number of layers from 1, found {self.freeze!r}')
        if self.lr is not None and not 0 < self.lr < float('inf'):
            raise ValueError(f'--lr: expected a rate above 0, found {self.lr}')
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f'--dropout: expected a share from 0 to below 1, found {self.dropout}')
        for name in ('wordMaskRate', 'objMaskRate'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'--{name}: expected a share from 0 to 1, found {getattr(self, name)}')
        losses = self.visualLosses.split(',') if self.visualLosses else []
        if set(losses) - {'obj', 'attr', 'feat'} or len(set(losses)) < len(losses):
            raise ValueError(f'--visualLosses: expected some of obj,attr,feat, each once, found {self.visualLosses!r}')
        if self.test is not None and not self.load:
            raise ValueError('--test: give the snapshot to test with --load, a path without .pth')
        if self.test is None and self.dumpProbs:
            raise ValueError('--dumpProbs: give the split to predict with --test')
        if self.test is not None and self.resume:
            raise ValueError('--test and --resume: testing does not train, so there is nothing to resume')
        if self.loadRationale and (self.test is None or self.rationale):
            raise ValueError('--loadRationale: is for --test, with --load of answers and without --rationale')
        if self.featDevice == 'cuda' and self.device == 'cpu':
            raise ValueError('--featDevice cuda and --device cpu: features on the GPU need the model on the GPU')
        if self.test is None and not self.train:
            raise ValueError('--train: name at least one split')

    def complete(self, recipe):
        """Fills in what is left to the heads.Recipe, and checks the whole. Raises ValueError that names the flag."""
        self.optim, self.batchSize = self.optim or recipe.optim, self.batchSize or recipe.batch_size
        self.lr, self.epochs = self.lr or recipe.rate(self.batchSize), self.epochs or recipe.epochs
        self.__post_init__()

    @property
    def encoder(self):
        """The value of the one of ENCODERS that is given, or None."""
        return next(filter(None, (getattr(self, flag) for flag in ENCODERS)), None)

    @property
    def image_limit(self):
        """The maximum number of images of a split, or None."""
        return 512 if self.tiny else 5000 if self.fast else None


def add_flags(parser, *names):
    """Adds flags of Options, with their defaults and help, to the parser of another program, which has no recipe."""
    fields = {field.name: field for field in dataclasses.fields(Options)}
    for name in names:
        if name == 'batchSize':
            parser.add_argument('--batchSize', type=int, default=256, metavar='INT', help='Examples in a batch (default: 256)')
        else:
            _add(parser, fields[name])


def _add(parser, field):
    text, choices = field.metadata['help'], field.metadata['choices']
    if field.type is bool:
        parser.add_argument(f'--{field.name}', action='store_true', help=text)
        return
    value_type = next(t for t in (int, float, str) if field.type in (t, t | None))
    text = text if field.default is None else f'{text} (default: {field.default})'
    parser.add_argument(f'--{field.name}', type=value_type, default=field.default, choices=choices,
                        metavar=None if choices else value_type.__name__.upper(), help=text)


def parser():
    """The argument parser of the programs that train, with a flag for each field of Options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    groups = {}
    for field in dataclasses.fields(Options):
        name = field.metadata['group']
        groups[name] = groups.get(name) or parser.add_argument_group(name)
        _add(groups[name], field)
    return parser


def parse_args(argv=None):
    """Options from the command line. Exits with a message and status 2 for a wrong flag."""
    argument_parser = parser()
    values = argument_parser.parse_args(argv)
    try:
        return Options(**vars(values))
    except ValueError as error:
        argument_parser.error(str(error))
