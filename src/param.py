"""The flags of the programs, in groups, one sentence each."""

import argparse
import dataclasses
from dataclasses import dataclass


def flag(default, group, text, choices=None):
    """A field of Options that is a flag of the command line."""
    return dataclasses.field(default=default, metadata={'group': group, 'help': text, 'choices': choices})


@dataclass
class Options:
    """The resolved options of a run. Flags of the original code keep its names, defaults and
    meaning; the launchers give those that its launchers gave."""

    train: str = flag('train', 'Data', 'Splits to train on, separated by commas.')
    valid: str = flag('valid', 'Data', 'Splits to validate on after each epoch, separated by commas; "" for none.')
    test: str | None = flag(None, 'Data', 'Predict this split instead of training; scored where labels are known.')
    dataRoot: str = flag('data', 'Data', 'Folder that holds annotations and features, laid out as data/ is.')
    dataset: str | None = flag(None, 'Data', 'A json file that describes a dataset of your own (see data/README.md).')
    storeRoot: str | None = flag(None, 'Data', 'Folder for region stores where the folder of the TSV cannot be written.')
    tiny: bool = flag(False, 'Data', 'For each split only the first 512 images that its questions name (pre-training: 500).')
    fast: bool = flag(False, 'Data', 'For each split only the first 5,000 images that its questions name.')
    dumpProbs: int = flag(0, 'Data', 'With --test: also write the so many best answers with their probabilities.')
    allowMissing: bool = flag(False, 'Data', 'With --test: answer questions on images without regions from the words alone.')
    featDevice: str = flag('cpu', 'Data', 'Where features are kept: cpu (mapped from disk), ram, or cuda (in half precision).',
                           choices=('cpu', 'ram', 'cuda'))
    numWorkers: int = flag(0, 'Data', 'Processes that prepare batches beside the one that trains.')

    model: str | None = flag(None, 'Model', 'The model: lxmert; default: that of the weights to start from, else lxmert.')
    bert: str = flag('bert-base-uncased', 'Model', "Folder with vocab.txt, config.json and, optionally, BERT's weights; or its "
                     'address, such as hf://google-bert/bert-base-uncased.')
    llayers: int | None = flag(None, 'Model', 'Number of language layers; default: the config\'s l_layers, else 9.')
    xlayers: int | None = flag(None, 'Model', 'Number of cross-modality layers; default: the config\'s x_layers, else 5.')
    rlayers: int | None = flag(None, 'Model', 'Number of object relationship layers; default: the config\'s r_layers, else 5.')
    dropout: float | None = flag(None, 'Model', 'Dropout of hidden states and attention; default: the config\'s, else 0.1.')
    load: str | None = flag(None, 'Model', 'Start from a snapshot; a path without .pth (in pre-training: without _LXRT.pth), a '
                            'whole path of a .pth or .safetensors, a folder of Hugging Face, or an address of one of these.')
    loadLXMERT: str | None = flag(None, 'Model', "Start from pre-trained LXMERT, or another task's snapshot; a path without "
                                  '_LXRT.pth, or as --load.')
    loadLXMERTQA: str | None = flag(None, 'Model', 'The same, and the answer head from the one there, row by row by the answers.')
    transferAnswers: bool = flag(False, 'Model', 'With --load of a snapshot that has other answers: move the rows of its answer '
                                 'head by the answers. With --test what it does not know is never answered.')
    fromScratch: bool = flag(False, 'Model', 'Start from random weights, without BERT\'s.')

    batchSize: int = flag(256, 'Training', 'Examples in one optimizer step, over all processes and --accumulate.')
    mceLoss: bool = flag(False, 'Training',
                         'Cross entropy with the best answer instead of binary cross entropy (VQA, GQA); also with --dumpProbs.')
    optim: str = flag('bert', 'Training', 'The optimizer; all but bert run at a constant rate.',
                      choices=('bert', 'rms', 'adam', 'adamax', 'sgd'))
    lr: float = flag(1e-4, 'Training', 'Learning rate; for bert the highest, after the warm-up.')
    epochs: int = flag(10, 'Training', 'Passes over the training data.')
    accumulate: int = flag(1, 'Training', 'Split each step into this many parts, one after the other, to save memory.')
    seed: int = flag(9595, 'Training', 'Seed of initial weights, order of examples and dropout.')
    resume: bool = flag(False, 'Training', 'Go on from the run state in --output if there is one, else start.')
    saveSteps: int = flag(0, 'Training', 'Save the run state every so many steps as well as every epoch; 0: only every epoch.')

    taskMaskLM: bool = flag(False, 'Pre-training', 'Predict masked words.')
    taskMatched: bool = flag(False, 'Pre-training', 'Tell whether sentence and image belong together; half of them do not.')
    taskObjPredict: bool = flag(False, 'Pre-training', 'Predict regions, by --visualLosses.')
    taskQA: bool = flag(False, 'Pre-training', 'Answer the questions among the sentences.')
    visualLosses: str = flag('obj,attr,feat', 'Pre-training', 'What of regions: class (obj), attribute (attr), feature (feat).')
    qaSets: str | None = flag(None, 'Pre-training', 'Only answers of these sets of the table, such as vqa,gqa; default: all.')
    wordMaskRate: float = flag(0.15, 'Pre-training', 'Share of word pieces that are predicted.')
    objMaskRate: float = flag(0.15, 'Pre-training', 'Share of regions whose features are predicted.')

    output: str = flag('snap/test', 'Output', 'Folder for snapshots, logs and predictions.')
    tqdm: bool = flag(False, 'Output', 'Show the bars of training and testing even where the output is no terminal.')

    evalBatchSize: int | None = flag(None, 'Machine', 'Examples in one batch of validation and --test; default: --batchSize.')
    offline: bool = flag(False, 'Machine', 'Download nothing; addresses stand for what was downloaded before (HF_HUB_OFFLINE=1: '
                         'the same).')
    device: str | None = flag(None, 'Machine', 'Where to compute; default: cuda where there is a GPU, else cpu.', ('cpu', 'cuda'))
    multiGPU: bool = flag(False, 'Machine', 'One process a GPU (with NPROC=2 and cpu: two processes), started by the launchers.')
    bf16: bool = flag(False, 'Machine', 'Compute in bfloat16 where it is safe (autocast); weights stay in float32. Recommended '
                      'on GPUs since Ampere, and for models of the published size on CPUs with AVX512-BF16 or AMX.')
    fp16: bool = flag(False, 'Machine', 'The same in half precision, with scaled losses, for GPUs before Ampere.')
    compile: bool = flag(False, 'Machine', 'Compile the encoder (torch.compile; on a GPU with CUDA graphs), a minute or more.')
    checkpointing: bool = flag(False, 'Machine', 'Compute what is inside a layer twice instead of keeping it, to save memory.')
    apex: bool = flag(False, 'Machine', "Use the layer norms and Adam of NVIDIA's apex, where it is installed.")
    deterministic: bool = flag(False, 'Machine', 'Only operations that give the same bits each time on a GPU, slower.')

    def __post_init__(self):
        """Checks what can be checked without data, so that a wrong combination fails in the first second."""
        starts = [name for name in ('load', 'loadLXMERT', 'loadLXMERTQA', 'fromScratch') if getattr(self, name)]
        if len(starts) > 1:
            raise ValueError(f'--{starts[0]} and --{starts[1]}: a model can start from only one of them')
        if self.transferAnswers and not self.load:
            raise ValueError('--transferAnswers: has a meaning only with --load; --loadLXMERTQA always moves answers by name')
        if self.tiny and self.fast:
            raise ValueError('--tiny and --fast: give only one of them')
        for name, least in (('batchSize', 1), ('epochs', 1), ('accumulate', 1), ('saveSteps', 0), ('dumpProbs', 0),
                            ('numWorkers', 0), ('evalBatchSize', 1), ('llayers', 0), ('xlayers', 0), ('rlayers', 0), ('seed', 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f'--{name}: expected at least {least}, found {value}')
        if self.accumulate > self.batchSize:
            raise ValueError(f'--accumulate {self.accumulate}: more parts than examples in a step (--batchSize {self.batchSize})')
        if self.bf16 and self.fp16:
            raise ValueError('--bf16 and --fp16: give only one of them')
        if self.apex and (self.optim != 'bert' or self.device == 'cpu'):
            raise ValueError(f'--apex: needs a GPU and --optim bert, found --device {self.device} --optim {self.optim}; '
                             'leave --apex out')
        if not 0 < self.lr < float('inf'):
            raise ValueError(f'--lr: expected a rate above 0, found {self.lr}')
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f'--dropout: expected a share from 0 to below 1, found {self.dropout}')
        for name in ('wordMaskRate', 'objMaskRate'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'--{name}: expected a share from 0 to 1, found {getattr(self, name)}')
        kinds = self.visualLosses.split(',') if self.visualLosses else []
        if set(kinds) - {'obj', 'attr', 'feat'} or len(set(kinds)) < len(kinds):
            raise ValueError(f'--visualLosses: expected some of obj,attr,feat, each once, found {self.visualLosses!r}')
        if self.test is not None and not self.load:
            raise ValueError('--test: give the snapshot to test with --load, a path without .pth')
        if self.test is None and self.dumpProbs:
            raise ValueError('--dumpProbs: give the split to predict with --test')
        if self.test is not None and self.resume:
            raise ValueError('--test and --resume: testing does not train, there is nothing to resume')
        if self.featDevice == 'cuda' and self.device == 'cpu':
            raise ValueError('--featDevice cuda and --device cpu: features on the GPU need a model there')
        if self.test is None and not self.train:
            raise ValueError('--train: name at least one split')

    @property
    def image_limit(self):
        """How many images of a split are used, or None for all."""
        return 512 if self.tiny else 5000 if self.fast else None


def add_flags(parser, *names):
    """Adds flags of Options to the parser of another program, with the same meaning and default."""
    fields = {field.name: field for field in dataclasses.fields(Options)}
    for name in names:
        _add(parser, fields[name])


def _add(parser, field):
    text, choices = field.metadata['help'], field.metadata['choices']
    if field.type is bool:
        parser.add_argument(f'--{field.name}', action='store_true', help=text)
        return
    kind = next(kind for kind in (int, float, str) if field.type in (kind, kind | None))
    text = text if field.default is None else f'{text} (default: {field.default})'
    parser.add_argument(f'--{field.name}', type=kind, default=field.default, choices=choices,
                        metavar=None if choices else kind.__name__.upper(), help=text)


def parser():
    """The command line of the programs that train, made from the fields of Options."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    groups = {}
    for field in dataclasses.fields(Options):
        name = field.metadata['group']
        groups[name] = groups.get(name) or parser.add_argument_group(name)
        _add(groups[name], field)
    return parser


def parse_args(argv=None):
    """Options from the command line; a wrong one ends the program with a message and status 2."""
    arguments = parser()
    values = arguments.parse_args(argv)
    try:
        return Options(**vars(values))
    except ValueError as error:
        arguments.error(str(error))
