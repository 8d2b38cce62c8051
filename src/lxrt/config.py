"""The configuration of an LXMERT model, read from config files of BERT and of Hugging Face's LXMERT."""

import copy
import json
from dataclasses import asdict, dataclass, fields

from files.json_files import DataError, read_json
from files.memory import check_memory
from files.text import shown
from param import MAX_LAYERS

MAX_SIZE = 2 ** 31 - 1


@dataclass
class LxrtConfig:
    """Sizes and rates of an LXMERT model; the defaults are lxr955 over BERT base (paper, section 3.1).

    The names are those of BERT's config.json and of Hugging Face's LxmertConfig.
    """

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
    l_layers: int = 9  # language layers
    x_layers: int = 5  # cross-modality layers
    r_layers: int = 5  # object relationship layers
    visual_feat_dim: int = 2048
    visual_pos_dim: int = 4
    num_object_labels: int = 1600
    num_attr_labels: int = 400

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == 'visual_pos_dim':
                valid, expected = type(value) is int and value == 4, '4, the sides of a box'
            elif field.name.endswith('_layers'):
                valid, expected = type(value) is int and 0 <= value <= MAX_LAYERS, f'a whole number from 0 to {MAX_LAYERS}'
            elif field.type is int:
                valid, expected = type(value) is int and 0 < value <= MAX_SIZE, f'a whole number from 1 to {MAX_SIZE}'
            elif field.type is float:
                valid, expected = type(value) in (int, float) and 0 <= value < 1, 'a number from 0 to below 1'
            else:
                valid, expected = value == 'gelu', "'gelu'"
            if not valid:
                raise DataError(f'{field.name}: expected {expected}, found {shown(value)}; correct it')
        if self.hidden_size % self.num_attention_heads:
            raise DataError(
                f'hidden_size {self.hidden_size} is not a multiple of num_attention_heads '
                f'{self.num_attention_heads}; correct one of them'
            )
        self.check_memory()

    def parameters(self, answers=0):
        """The number of parameters of the encoder with all heads of pre-training; answers: 0: without an answer head."""
        d = self.hidden_size
        attention, block = 4 * (d * d + d) + 2 * d, 2 * d * self.intermediate_size + self.intermediate_size + 3 * d
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2) * d
        regions = (self.visual_feat_dim + self.visual_pos_dim + 6) * d
        layers = (self.l_layers + self.r_layers) * (attention + block) + self.x_layers * (3 * attention + 2 * block)
        transforms = 2 * (d * d + 3 * d) + self.vocab_size + 2 * d + 2
        labels = (self.num_object_labels + self.num_attr_labels + self.visual_feat_dim) * (d + 1)
        answer_head = 2 * d * (d + 3 + answers) + answers if answers else 0
        return embeddings + regions + layers + d * d + d + transforms + labels + answer_head

    def check_memory(self, answers=0, copies=2):
        """Raises DataError that names the largest size if `copies` of the weights, in float32, exceed this machine's memory."""
        parameters = self.parameters(answers)
        smaller = {'answers': self.parameters()}
        for field in fields(self):
            setattr(other := copy.copy(self), field.name, field.default)
            smaller[field.name] = other.parameters(answers)
        largest = min(smaller, key=smaller.get)
        check_memory(4 * copies * parameters, f'{largest}: expected a size that fits this machine, found '
                     f'{getattr(self, largest, answers):,}; the model of {parameters:,} parameters')

    @classmethod
    def from_json(cls, path):
        """Read a config file; keys that are not fields of this class are ignored.

        Raises FileNotFoundError, or ValueError that names the file and the key.
        """
        values = read_json(path, 'a config.json of BERT or LXMERT', dict)
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except ValueError as error:
            raise DataError(f'{path}: {error}') from None

    def to_json(self):
        """The config as the text of a config.json."""
        return json.dumps(asdict(self), indent=2) + '\n'
