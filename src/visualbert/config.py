"""The configuration of a VisualBERT model, read from config files of BERT and of Hugging Face's VisualBERT."""

from dataclasses import dataclass
from typing import ClassVar

from bert.config import BertConfig
from files.json_files import DataError


@dataclass
class VisualBertConfig(BertConfig):
    """Sizes and rates of a VisualBERT model; the defaults are the base model, over BERT base."""

    num_hidden_layers: int = 12
    visual_feat_dim: int = 2048  # of a region's feature; visual_embedding_dim in files of Hugging Face

    MODEL: ClassVar[str] = 'VisualBERT'
    PAPER: ClassVar[str] = '[Li et al., 2019](https://arxiv.org/abs/1908.03557)'
    FIXED: ClassVar[dict] = BertConfig.FIXED | {'type_vocab_size': (2, '2, the segments of words and regions')}

    def parameters(self, answers=0):
        d = self.hidden_size
        embeddings = (self.vocab_size + 2 * (self.max_position_embeddings + self.type_vocab_size) + 2) * d
        layers = self.num_hidden_layers * sum(self.layer_parameters()) + d * d + d
        heads = d * d + 3 * d + self.vocab_size + (2 + answers) * (d + 1)
        return embeddings + (self.visual_feat_dim + 1) * d + layers + heads

    @classmethod
    def from_values(cls, values, path):
        if values.get('bypass_transformer'):
            raise DataError(f'{path}: bypass_transformer: expected false, as in the published models, found true')
        return super().from_values({'visual_feat_dim': values.get('visual_embedding_dim', cls.visual_feat_dim)} | values, path)
