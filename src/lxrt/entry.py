"""The encoder that tasks use: sentences and regions in, hidden states or a pooled vector out."""

import torch
from torch import nn

from bert.tokenization import TextStatistics
from lxrt.modeling import LXRTFeatureExtraction


class LXRTEncoder(nn.Module):
    """LXMERT on sentences or token ids, under the parameter names of the original code (`model.bert...`).

    tokenizer: needed only for sentences as text. mode: see LXRTFeatureExtraction.
    """

    def __init__(self, config, tokenizer=None, max_seq_length=20, mode='x'):
        super().__init__()
        self.config, self.tokenizer, self.max_seq_length = config, tokenizer, max_seq_length
        if max_seq_length > config.max_position_embeddings:
            raise ValueError(f'sentences of {max_seq_length} tokens do not fit the model: max_position_embeddings is '
                             f'{config.max_position_embeddings}; give a smaller max_seq_length')
        self.model = LXRTFeatureExtraction(config, mode)

    @property
    def dim(self):
        """Size of the pooled vector."""
        return self.config.hidden_size

    def forward(self, sents, feats, visual_attention_mask=None, hidden_states=False, return_attention=False):
        """
        sents: a list of b sentences, or token ids (b, t) padded with 0 ([PAD] is id 0 in every vocabulary);
        feats = (features (b, o, f), boxes (b, o, 4) scaled to 0..1); visual_attention_mask (b, o), 0 for padding. With k images
        a sentence, one after the other, each of these has b * k rows.
        Returns what the mode says: for 'x' the pooled vectors (b * k, d). With hidden_states or return_attention: (that, what
        LXRTModel returns for them). Raises ValueError for other shapes, and on the CPU for boxes in pixels.
        """
        if not isinstance(sents, torch.Tensor):
            if self.tokenizer is None:
                raise ValueError('this encoder has no tokenizer: give token ids (b, t), not sentences')
            ids, _, counts = self.tokenizer.encode_counted(list(sents), self.max_seq_length)
            TextStatistics(self.max_seq_length).add(counts).warn(self.tokenizer.vocab_file)
            sents = torch.from_numpy(ids).to(feats[0].device)
        features, boxes = feats
        n, o, f = len(sents) * max(len(features) // max(len(sents), 1), 1), features.shape[-2], self.config.visual_feat_dim
        if features.shape != (n, o, f) or boxes.shape != (n, o, 4):
            raise ValueError(f'{len(sents)} sentences: expected features ({n}, o, {f}) and boxes ({n}, o, 4), found '
                             f'{tuple(features.shape)} and {tuple(boxes.shape)}')
        if boxes.device.type == 'cpu' and boxes.numel() and boxes.max() > 2:
            raise ValueError(f'boxes: expected x1, y1, x2, y2 divided by the width and height of the picture, found '
                             f'{float(boxes.max()):.1f}; are they in pixels?')
        return self.model(sents, None, sents != 0, feats, visual_attention_mask, hidden_states, return_attention)
