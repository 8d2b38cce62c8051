"""The configuration of a VL-BERT model, read from BERT's config.json and from the yaml files of the original code."""

from dataclasses import dataclass, fields
from typing import ClassVar

from bert.config import BertConfig
from files.json_files import DataError
from files.text import shown
from files.yaml_files import read_yaml

YAML_NAMES = {'visual_region_classes': 'num_region_classes', 'with_rel_head': 'with_relationship'}  # where they differ from ours
# Keys of NETWORK.VLBERT of which the published models have one value, the only one that is implemented.
YAML_FIXED = {'type_vocab_size': 3, 'visual_ln': True, 'input_transform_type': 1, 'obj_pos_id_relative': True,
              'object_word_embed_mode': 2, 'word_embedding_frozen': False, 'pos_embedding_frozen': False,
              'position_padding_idx': -1}
YAML_IGNORED = ('visual_size', 'input_size', 'from_scratch', 'with_mlm_head', 'with_mvrc_head')  # the first is checked below


@dataclass
class VLBertConfig(BertConfig):
    """Sizes and rates of a VL-BERT model; the defaults are the base model, over BERT base."""

    type_vocab_size: int = 3  # words of two kinds, and regions with [END]
    num_hidden_layers: int = 12
    visual_feat_dim: int = 2048
    geometry_size: int = 2048  # sines and cosines of a box, beside its feature; a multiple of 8
    num_region_classes: int = 1601  # of the detector, background first
    visual_scale_text_init: float = 0.0  # initial weight of visual_ln_text; at 0 the model starts as BERT without an image
    visual_scale_object_init: float = 0.0  # the same of visual_ln_object
    with_pooler: bool = False
    pixels: bool = False  # end to end: features of regions are computed from pixels; visual_feat_dim follows resnet_width
    image_side: int = 600  # pixels of an image's short side, from which features are computed
    resnet_width: int = 64  # channels of its first layer
    resnet_blocks: tuple = (3, 4, 23, 3)  # of its stages, ResNet-101
    resnet_frozen: bool = True  # its first stage and all its norms are not trained
    with_relationship: bool = False  # the head that tells whether caption and image belong together; off in all published runs

    MODEL: ClassVar[str] = 'VL-BERT'
    PAPER: ClassVar[str] = '[Su et al., ICLR 2020](https://arxiv.org/abs/1908.08530)'
    LICENSE: ClassVar[str] = 'mit'
    FIXED: ClassVar[dict] = BertConfig.FIXED | {'type_vocab_size': (3, '3, the segments of VL-BERT')}

    def __post_init__(self):
        if self.pixels is True and type(self.resnet_width) is int:
            self.visual_feat_dim = 32 * self.resnet_width
        super().__post_init__()
        if self.geometry_size % 8:
            raise DataError(f'geometry_size: expected a multiple of 8, sines and cosines of four numbers, found '
                            f'{self.geometry_size}; correct it')

    def max_text_length(self, task=None):
        # Regions and [END] have positions too, and [MASK] and [SEP], which pre-training does not add.
        return max(self.max_position_embeddings - (2 if task == 'pretrain' else 4), 1)

    def parameters(self, answers=0):
        d, layer = self.hidden_size, sum(self.layer_parameters())
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 1 + 2 + 1 + 1 + 1) * d
        regions = (self.visual_feat_dim + self.geometry_size + 1) * d + self.visual_feat_dim * (not self.pixels)
        pooler = d * d + d if self.with_pooler or self.with_relationship else 0
        heads = 2 * d * d + 4 * d + self.vocab_size + self.num_region_classes * (d + 1) + 2 * (d + 1) * self.with_relationship
        answer_head = d * d + 3 * d + answers * (d + 1) if answers else 0
        layers = self.num_hidden_layers * layer + pooler
        return embeddings + 4 * d + regions + self.resnet_parameters() + layers + heads + answer_head

    def resnet_parameters(self):
        """The number of parameters of the convolutional branch of a model that reads pixels, else 0."""
        if not self.pixels:
            return 0
        width, inputs = self.resnet_width, self.resnet_width
        weights, norms = 3 * 49 * width, width
        for stage, blocks in enumerate(self.resnet_blocks):
            inner = width * 2 ** stage
            weights += 4 * inner * inputs + blocks * 13 * inner ** 2 + (inputs + (blocks - 1) * 4 * inner) * inner
            norms += 4 * inner + blocks * 6 * inner
            inputs = 4 * inner
        return weights if self.resnet_frozen else weights + 2 * norms

    @classmethod
    def from_values(cls, values, path):
        values = {name: value for name, value in values.items() if name != 'type_vocab_size'}  # BERT's is 2
        return super().from_values(values, path)

    @classmethod
    def from_yaml(cls, path):
        """Reads the section NETWORK.VLBERT of a yaml file of the original code (cfgs/TASK/*.yaml).

        Raises FileNotFoundError, or DataError that names the file and the key: also of a key that is not known, or whose value
        asks for a model that no published run has.
        """
        section = read_yaml(path, 'a yaml file of the original VL-BERT')
        for key in ('NETWORK', 'VLBERT'):
            section = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise DataError(f'{path}: key "NETWORK.VLBERT": expected an object, found {shown(section)}; give a file of '
                            'cfgs/TASK/ of the original code, or a config.json')
        values, known = {}, {*(field.name for field in fields(cls)), *YAML_NAMES, *YAML_FIXED, *YAML_IGNORED}
        for key, value in section.items():
            if key not in known:
                raise DataError(f'{path}: key "NETWORK.VLBERT.{key}": there is no such key; expected some of '
                                f'{", ".join(sorted(known))}')
            if key in YAML_FIXED and value != YAML_FIXED[key]:
                raise DataError(f'{path}: key "NETWORK.VLBERT.{key}": expected {shown(YAML_FIXED[key])}, as in the published '
                                f'models, found {shown(value)}; no other is implemented')
            if key not in (*YAML_FIXED, *YAML_IGNORED):
                values[YAML_NAMES.get(key, key)] = value
        config = cls.from_values(values, path)
        if (size := section.get('visual_size', config.hidden_size)) != config.hidden_size:
            raise DataError(f'{path}: key "NETWORK.VLBERT.visual_size": expected hidden_size, {config.hidden_size}, found '
                            f'{shown(size)}; correct it')
        return config
