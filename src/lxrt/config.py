"""The configuration of an LXMERT model, read from config files of BERT and of Hugging Face's LXMERT."""

from dataclasses import dataclass
from typing import ClassVar

from bert.config import BertConfig


@dataclass
class LxrtConfig(BertConfig):
    """Sizes and rates of an LXMERT model; the defaults are lxr955 over BERT base (paper, section 3.1).

    The names are those of BERT's config.json and of Hugging Face's LxmertConfig.
    """

    l_layers: int = 9  # language layers
    x_layers: int = 5  # cross-modality layers
    r_layers: int = 5  # object relationship layers
    visual_feat_dim: int = 2048
    visual_pos_dim: int = 4
    num_object_labels: int = 1600
    num_attr_labels: int = 400

    MODEL: ClassVar[str] = 'LXMERT'
    PAPER: ClassVar[str] = '[Tan & Bansal, EMNLP 2019](https://arxiv.org/abs/1908.07490)'
    LICENSE: ClassVar[str] = 'mit'
    FIXED: ClassVar[dict] = BertConfig.FIXED | {'visual_pos_dim': (4, '4, the sides of a box')}

    def parameters(self, answers=0):
        d, (attention, block) = self.hidden_size, self.layer_parameters()
        embeddings = (self.vocab_size + self.max_position_embeddings + self.type_vocab_size + 2) * d
        regions = (self.visual_feat_dim + self.visual_pos_dim + 6) * d
        layers = (self.l_layers + self.r_layers) * (attention + block) + self.x_layers * (3 * attention + 2 * block)
        transforms = 2 * (d * d + 3 * d) + self.vocab_size + 2 * d + 2
        labels = (self.num_object_labels + self.num_attr_labels + self.visual_feat_dim) * (d + 1)
        answer_head = 2 * d * (d + 3 + answers) + answers if answers else 0
        return embeddings + regions + layers + d * d + d + transforms + labels + answer_head
