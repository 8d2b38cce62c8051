"""What the configurations of BERT-like models share: BERT's keys, their checks, and reading and writing config.json."""

import copy
import json
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar

from files.json_files import DataError, read_json
from files.memory import check_memory
from files.text import shown
from param import MAX_LAYERS

MAX_SIZE = 2 ** 31 - 1


@dataclass
class BertConfig:
    """Sizes and rates of a BERT-like model. The names and defaults are those of BERT base's config.json."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = 'gelu'
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02

    MODEL: ClassVar[str]  # the model's name in messages and cards; each subclass has one
    PAPER: ClassVar[str] = ''  # a link in Markdown, for model cards
    LICENSE: ClassVar[str] = ''  # of the published weights, as the hub names it
    FIXED: ClassVar[dict] = {'hidden_act': ('gelu', "'gelu'")}  # key -> the only value that is possible, and its description

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in self.FIXED:
                only, expected = self.FIXED[field.name]
                valid = type(value) is type(only) and value == only
            elif field.name.endswith(('_layers', '_layer')):
                valid, expected = type(value) is int and 0 <= value <= MAX_LAYERS, f'a whole number from 0 to {MAX_LAYERS}'
            elif field.type is int:
                valid, expected = type(value) is int and 0 < value <= MAX_SIZE, f'a whole number from 1 to {MAX_SIZE}'
            elif field.type is tuple:
                count = len(field.default)
                valid = type(value) is tuple and len(value) == count and all(
                    type(one) is int and 0 < one <= MAX_LAYERS for one in value)
                expected = f'{count} whole numbers from 1 to {MAX_LAYERS}'
            elif field.type is float:
                valid, expected = type(value) in (int, float) and 0 <= value < 1, 'a number from 0 to below 1'
            else:
                valid, expected = type(value) is bool, 'true or false'
            if not valid:
                raise DataError(f'{field.name}: expected {expected}, found {shown(value)}; correct it')
        if self.hidden_size % self.num_attention_heads:
            raise DataError(
                f'hidden_size {self.hidden_size} is not a multiple of num_attention_heads '
                f'{self.num_attention_heads}; correct one of them'
            )
        self.check_memory()

    def max_text_length(self, task=None):
        """Tokens of the longest text of a task, or of any."""
        return self.max_position_embeddings

    def parameters(self, answers=0):
        """The number of parameters of the encoder with all heads of pre-training; answers: 0: without an answer head."""
        raise NotImplementedError

    def layer_parameters(self):
        """The numbers of parameters of (an attention with its output, the rest of a layer)."""
        d = self.hidden_size
        return 4 * (d * d + d) + 2 * d, 2 * d * self.intermediate_size + self.intermediate_size + 3 * d

    def check_memory(self, answers=0, copies=2):
        """Raises DataError that names the largest size if `copies` of the weights, in float32, exceed this machine's memory."""
        parameters = self.parameters(answers)
        smaller = {'answers': self.parameters()}
        for field in (field for field in fields(self) if field.type is not bool):
            setattr(other := copy.copy(self), field.name, field.default)
            smaller[field.name] = other.parameters(answers)
        largest = min(smaller, key=smaller.get)
        value = getattr(self, largest, answers)
        check_memory(4 * copies * parameters, f'{largest}: expected a size that fits this machine, found '
                     f'{f"{value:,}" if isinstance(value, int) else shown(value)}; the model of {parameters:,} parameters')

    @classmethod
    def from_json(cls, path):
        """Reads a config file; keys that are not fields of this class are ignored.

        Raises FileNotFoundError, or ValueError that names the file and the key.
        """
        return cls.from_values(read_json(path, f'a config.json of BERT or {cls.MODEL}', dict), path)

    @classmethod
    def from_values(cls, values, path):
        known = {field.name: field.type for field in fields(cls)}
        try:
            return cls(**{name: tuple(value) if known[name] is tuple and isinstance(value, list) else value
                          for name, value in values.items() if name in known})
        except ValueError as error:
            raise DataError(f'{path}: {error}') from None

    def to_json(self):
        """The config as the text of a config.json."""
        return json.dumps(asdict(self), indent=2) + '\n'


def refuse_layer_flags(options, has):
    """Raises ValueError for --llayers, --xlayers or --rlayers, which are of LXMERT. has: what the model has instead."""
    for flag in ('llayers', 'xlayers', 'rlayers'):
        if getattr(options, flag) is not None:
            raise ValueError(f'--{flag}: {has}; leave the flag out')


def read_config(cls, folder, options):
    """The config of class `cls` from the config.json of a folder (the default if there is none), with --dropout, of a model with
    one kind of layers. Raises ValueError for flags that it has not, and DataError."""
    path = folder / 'config.json'
    config = cls.from_json(path) if path.is_file() else cls()
    refuse_layer_flags(options, f'{cls.MODEL} has one kind of layers, num_hidden_layers in {path}')
    if not hasattr(cls, 'pixels') and (options.loadResNet or options.features == 'pixels'):
        raise ValueError(f'--{"loadResNet" if options.loadResNet else "features pixels"}: {cls.MODEL} reads region features; '
                         'leave it out')
    rate = options.dropout
    return config if rate is None else replace(config, hidden_dropout_prob=rate, attention_probs_dropout_prob=rate)


def check_config(path, config):
    """Raises ValueError if the config.json at `path` is of another number of attention heads, which sizes do not show."""
    heads = type(config).from_json(path).num_attention_heads
    if heads != config.num_attention_heads:
        raise ValueError(f'{path}: num_attention_heads: these weights are of {heads} heads, the model has '
                         f'{config.num_attention_heads}; give --bert {path.parent}')
