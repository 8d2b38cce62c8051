"""The configuration of an LXMERT model, read from config files of BERT and of Hugging Face's LXMERT."""

import json
from dataclasses import asdict, dataclass, fields

from files.json_files import read_json


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
            if field.type is int:
                valid = type(value) is int and value >= (0 if field.name.endswith('_layers') else 1)
            elif field.type is float:
                valid = type(value) in (int, float) and 0 <= value < 1
            else:
                valid = value == 'gelu'
            if not valid:
                expected = {int: 'a positive whole number', float: 'a number from 0 to below 1', str: "'gelu'"}[field.type]
                raise ValueError(f'{field.name}: expected {expected}, found {value!r}')
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f'hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}'
            )

    @classmethod
    def from_json(cls, path):
        """Read a config file; keys that are not fields of this class are ignored.

        Raises FileNotFoundError, or ValueError that names the file and the key.
        """
        values = read_json(path, 'a config.json of BERT or LXMERT')
        if not isinstance(values, dict):
            raise ValueError(f'{path}: expected a json object, found {type(values).__name__}')
        known = {field.name for field in fields(cls)}
        try:
            return cls(**{name: value for name, value in values.items() if name in known})
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None

    def to_json(self):
        """The config as the text of a config.json."""
        return json.dumps(asdict(self), indent=2) + '\n'
