"""The VisualBERT model, under the parameter names of Hugging Face's VisualBertModel.

Shapes: n sequences of t words and o regions, s = t + o places; d hidden size, f feature size.
"""

import torch
from torch import nn

from bert.layers import BertEmbeddings, BertLayers, BertPooler, PackedSequences, initialise


class VisualBertEmbeddings(BertEmbeddings):
    """BERT's embeddings of words, and those of regions: the projected feature, the segment 1, and the position 0 of all regions.
    Boxes are not read (paper, section 3.2)."""

    def __init__(self, config):
        super().__init__(config, first=None)
        self.visual_token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.visual_position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.visual_projection = nn.Linear(config.visual_feat_dim, config.hidden_size)

    def forward(self, input_ids, token_type_ids, features):
        """input_ids, token_type_ids (n, t), features (n, o, f) -> (n, s, d)."""
        words = (self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
                 + self.position_embeddings.weight[:input_ids.shape[1]])
        regions = (self.visual_projection(features) + self.visual_token_type_embeddings.weight[1]
                   + self.visual_position_embeddings.weight[0])
        return self.dropout(self.LayerNorm(torch.cat([words, regions], 1)))


class VisualBertModel(nn.Module):
    """Words and regions in one stream of BERT's layers."""

    compile_as_one_graph = True  # read by bert.speed

    def __init__(self, config):
        super().__init__()
        self.embeddings = VisualBertEmbeddings(config)
        self.encoder = BertLayers(config)
        self.pooler = BertPooler(config)
        self.apply(initialise(config))

    def forward(self, input_ids, token_type_ids, features, mask=None, places=None, **options):
        """
        input_ids, token_type_ids (n, t) int64, 0 at padding; token_type_ids None: all 0. features (n, o, f); mask (n, o), None:
        no padding. places (p,): indices into (n * s) of the states that are needed, none of padding; options and what is
        returned: as of heads.SingleStream.states.
        """
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        mask = torch.ones(features.shape[:2], device=features.device) if mask is None else mask
        mask = torch.cat([input_ids != 0, mask != 0], 1)  # (n, s)
        sequences = PackedSequences(mask, *mask.shape, mask.device)
        if places is not None and sequences.rows is not None:
            places = torch.searchsorted(sequences.rows, places)
        hidden = sequences.pack(self.embeddings(input_ids, token_type_ids, features))
        return self.encoder(hidden, sequences, sequences.pad_with_zeros, places, **options)
