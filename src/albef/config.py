"""The configuration of an ALBEF model, read from config.json, or from the yaml and json files of the original code."""

import copy
import dataclasses
import json
from dataclasses import asdict, dataclass, field, fields
from typing import ClassVar

from bert.config import BertConfig
from files.json_files import DataError, read_json
from files.memory import check_memory
from files.text import shown
from files.yaml_files import read_yaml

# What looks like a mistake in the original code and can be repaired; its published weights were trained without any of these.
REPAIRS = {
    'separator': 'a sentence ends with [SEP]',
    'imagenet': "pixels are normalised by ImageNet's mean and deviation, as for the weights of DeiT, instead of CLIP's",
    'twin_dropout': 'the momentum models run without dropout',
    'same_picture': 'in pre-training, other captions of a picture are no negatives, as in retrieval (a batch with image_id)',
    'temperature': 'the temperature is limited in retrieval and grounding too, and does not decay',
    'nlvr2_twin': "NLVR2's momentum models start as copies of the loaded weights",
    'first_piece': "an answer's first word piece counts once",
    'cut_texts': 'texts of retrieval and grounding are cut in training too',
    'mirror_words': 'left and right are exchanged in the texts of mirrored pictures',
}


@dataclass
class TextConfig(BertConfig):
    """The text encoder: the keys of config_bert.json of the original code."""

    num_hidden_layers: int = 12
    fusion_layer: int = 6  # the first layer with cross attention
    encoder_width: int = 768  # size of the states that it attends to

    def check_memory(self, answers=0, copies=2):
        """Left to AlbefConfig, of which this is a part."""


@dataclass
class AlbefConfig:
    """Sizes and rates of an ALBEF model; the defaults are the published model in pre-training."""

    image_res: int = 256  # pixels of a side
    patch_size: int = 16
    vision_width: int = 768
    vision_depth: int = 12
    vision_heads: int = 12
    embed_dim: int = 256  # of the features that are compared
    queue_size: int = 65536  # a multiple of the examples in a step
    momentum: float = 0.995
    alpha: float = 0.4  # share of the momentum models' predictions in the targets
    temp: float = 0.07
    bert: dict = field(default_factory=dict)  # of TextConfig; other keys are ignored
    group: int = 0  # examples of a step that are negatives of each other, 0: those of a GPU of the original code
    k_test: int = 128  # candidates that are ranked: answers of VQA, texts or images of retrieval
    distill: bool = True  # whether the momentum models' predictions are targets in fine-tuning
    augment: bool = True  # whether images of training are cropped, mirrored and changed by RandAugment
    repairs: tuple = ()  # of REPAIRS

    MODEL: ClassVar[str] = 'ALBEF'
    PAPER: ClassVar[str] = '[Li et al., NeurIPS 2021](https://arxiv.org/abs/2107.07651)'
    LICENSE: ClassVar[str] = 'bsd-3-clause'

    def __post_init__(self):
        if not isinstance(self.bert, dict):
            raise DataError(f'bert: expected an object with keys of config_bert.json, found {shown(self.bert)}; correct it')
        known = {one.name for one in fields(TextConfig)}
        try:
            values = {'encoder_width': self.vision_width} | self.bert
            self.text = TextConfig(**{name: value for name, value in values.items() if name in known})
        except DataError as error:
            raise DataError(f'bert: {error}') from None
        self.bert, self.repairs = asdict(self.text), tuple(self.repairs)
        for one in fields(self):
            value = getattr(self, one.name)
            if one.type is int:
                least = int(one.name not in ('vision_depth', 'group'))
                valid, expected = type(value) is int and value >= least, f'a whole number from {least}'
            elif one.type is float:
                valid, expected = type(value) in (int, float) and 0 <= value <= 1, 'a number from 0 to 1'
            elif one.type is bool:
                valid, expected = type(value) is bool, 'true or false'
            else:
                continue
            if not valid:
                raise DataError(f'{one.name}: expected {expected}, found {shown(value)}; correct it')
        for name, divisor in (('image_res', 'patch_size'), ('vision_width', 'vision_heads')):
            if getattr(self, name) % getattr(self, divisor):
                raise DataError(f'{name} {getattr(self, name)} is not a multiple of {divisor} {getattr(self, divisor)}; correct '
                                'one of them')
        if self.text.encoder_width != self.vision_width:
            raise DataError(f'bert: encoder_width: expected vision_width, {self.vision_width}, found {self.text.encoder_width}; '
                            'correct one of them')
        if self.text.fusion_layer >= self.text.num_hidden_layers:
            raise DataError(f'bert: fusion_layer: expected less than num_hidden_layers, {self.text.num_hidden_layers}, found '
                            f'{self.text.fusion_layer}; correct it')
        if not self.temp:
            raise DataError('temp: expected a number above 0, found 0; correct it')
        if unknown := set(self.repairs) - REPAIRS.keys():
            raise DataError(f'repairs: expected some of {", ".join(REPAIRS)}, found {shown(sorted(map(str, unknown)))}; correct '
                            'it')
        self.check_memory()

    # What programs read from the config of any model.

    @property
    def vocab_size(self):
        return self.text.vocab_size

    @property
    def hidden_size(self):
        return self.text.hidden_size

    @property
    def num_attention_heads(self):
        return self.text.num_attention_heads

    @property
    def max_position_embeddings(self):
        return self.text.max_position_embeddings

    def max_text_length(self, task=None):
        """Tokens of the longest text."""
        return self.max_position_embeddings

    def parameters(self, answers=0):
        """The number of parameters of the model of pre-training, with its momentum models and queues."""
        text, d, w = self.text, self.text.hidden_size, self.vision_width
        attention, rest = text.layer_parameters()
        cross = 2 * d * d + 2 * w * d + 6 * d
        words = (text.vocab_size + text.max_position_embeddings + text.type_vocab_size + 2) * d
        words += text.num_hidden_layers * (attention + rest) + (text.num_hidden_layers - text.fusion_layer) * cross
        words += d * d + 3 * d + text.vocab_size
        vision = (3 * self.patch_size ** 2 + 1) * w + ((self.image_res // self.patch_size) ** 2 + 2) * w + 2 * w
        vision += self.vision_depth * (12 * w * w + 13 * w)
        projections = (w + d + 2) * self.embed_dim
        return 2 * (words + vision + projections) + 2 * self.embed_dim * self.queue_size + 2 * d + 3

    def check_memory(self, answers=0, copies=2):
        """Raises DataError that names the largest size if `copies` of the weights, in float32, exceed this machine's memory."""
        parameters, smaller = self.parameters(answers), {}
        for name in ('image_res', 'vision_width', 'vision_depth', 'embed_dim', 'queue_size', 'bert'):
            other = copy.copy(self)
            setattr(other, 'text' if name == 'bert' else name, TextConfig() if name == 'bert' else getattr(AlbefConfig, name))
            smaller[name] = other.parameters(answers)
        largest = min(smaller, key=smaller.get)
        check_memory(4 * copies * parameters, f'{largest}: expected a size that fits this machine, found '
                     f'{shown(getattr(self, largest))}; the model of {parameters:,} parameters')

    @classmethod
    def from_json(cls, path):
        """Reads a config.json: of this model, or of BERT alone, whose width, depth and heads the image encoder then has too.

        Raises FileNotFoundError, or DataError that names the file and the key."""
        values = read_json(path, 'a config.json of BERT or ALBEF', dict)
        if 'bert' not in values:  # keys of both stand beside each other
            text = {one.name: values[one.name] for one in fields(TextConfig) if one.name in values}
            same = {'vision_width': 'hidden_size', 'vision_depth': 'num_hidden_layers', 'vision_heads': 'num_attention_heads'}
            values = {name: text[other] for name, other in same.items() if other in text} | values
            if type(layers := text.get('num_hidden_layers')) is int:
                text = {'fusion_layer': layers // 2} | text
            values['bert'] = text
        return cls.from_values(values, path)

    @classmethod
    def from_files(cls, yaml, config_bert, **changes):
        """Reads a yaml file of the original code (configs/*.yaml), of which keys about data and optimisation are not used, and
        its config_bert.json. changes: values that win.

        Raises FileNotFoundError, or DataError that names the file and the key."""
        values = read_yaml(yaml, 'a yaml file of the original ALBEF')
        bert = read_json(config_bert, 'config_bert.json of the original ALBEF', dict)
        values = {'vision_width': bert.get('encoder_width', cls.vision_width)} | values | {'bert': bert} | changes
        return cls.from_values(values, yaml)

    @classmethod
    def from_values(cls, values, path):
        known = {one.name for one in fields(cls)}
        try:
            if not isinstance(values.get('repairs', []), list | tuple):
                raise DataError(f'repairs: expected a list, found {shown(values["repairs"])}; correct it')
            return cls(**{name: value for name, value in values.items() if name in known})
        except ValueError as error:
            raise DataError(f'{path}: {error}') from None

    def to_json(self):
        """The config as the text of a config.json."""
        return json.dumps(asdict(self), indent=2) + '\n'

    def with_text(self, **changes):
        """This config with other values of the text encoder."""
        return dataclasses.replace(self, bert=self.bert | changes)
