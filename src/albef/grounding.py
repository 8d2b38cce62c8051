"""RefCOCO+ without boxes in training: Grad-CAM maps of cross attention choose a detected box (ALBEF paper, section 4).

Shapes: b expressions with a picture each, t tokens, o boxes, side x side patches of a picture.
"""

import torch
import torch.nn.functional as F

from albef.contrast import Retrieval
from albef.momentum import mask_of

ROUNDING = 1e-4  # pixels by which a box that is scaled to 0..1 and back may be too small


def box_scores(map_of_picture, boxes):
    """The sum of a map inside each box, divided by the root of the box's area.

    map_of_picture (side, side), is resized to the picture first by `resized`; boxes (o, 4): x, y, width, height in pixels.
    """
    height, width = map_of_picture.shape
    sums = F.pad(map_of_picture.double().cumsum(0).cumsum(1), (1, 0, 1, 0))  # sums[y, x]: of rows below y and columns below x
    x, y, w, h = boxes.double().unbind(-1)
    left, top, right, bottom = ((one + ROUNDING).floor().long() for one in (x, y, x + w, y + h))
    left, right = (one.clamp(0, width) for one in (left, right))
    top, bottom = (one.clamp(0, height) for one in (top, bottom))
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return (inside / (w * h).clamp(min=1e-6).sqrt()).float()


def resized(map_of_patches, height, width):
    """A map (side, side) in the size of its picture: bicubic, align_corners False."""
    return F.interpolate(map_of_patches[None, None].float(), (height, width), mode='bicubic', align_corners=False)[0, 0]


def choose_box(scores, before=0):
    """The place of the highest score (o,), or that of the box chosen for the expression before if no score is above 0."""
    best = int(scores.argmax()) if len(scores) else before
    return best if len(scores) and scores[best] > 0 else before


class Grounding(Retrieval):
    """Trained as retrieval on pictures and expressions; chooses among the boxes of a picture: boxes (b, o, 4) scaled to 0..1,
    image_size (b, 2), visual_attention_mask (b, o) (absent: no padding).

    mode: 'itm' or 'itc', from which score maps are made; block: of which layer of the text encoder (itm) or the image encoder
    (itc); at first it is that of `map_layer`.
    """

    gradients_in_evaluation = True
    mode = 'itm'

    def __init__(self, encoder, recipe, options=None, group=32):
        super().__init__(encoder, recipe, options, group)
        self.block = int(self.map_layer.removeprefix('text'))

    def piece_maps(self, batch, mode=None, block=None):
        """Maps of single word pieces (b, t, side, side), 0 at padding; with mode 'itc' one of the text (b, 1, side, side).

        The score of the pair is differentiated with respect to the attention probabilities of a layer; a map is their product
        with the positive gradients, the mean over heads.
        """
        mode, block = mode or self.mode, self.block if block is None else block
        text = self.config.text
        least, most = (text.fusion_layer, text.num_hidden_layers) if mode == 'itm' else (0, self.config.vision_depth)
        if mode not in ('itm', 'itc') or not least <= block < most:
            raise ValueError(f'mode {mode!r}, block {block}: expected itm or itc, and a block from {least} to {most - 1}')
        with torch.enable_grad():
            states = self.encoder(batch, record_attention=True)
            wanted = f'text{block}' if mode == 'itm' else f'image{block}', 'visual'
            attention = next(one.probabilities for one in states.attentions if (one.layer, one.keys) == wanted)
            if mode == 'itm':
                score = self.logits_of(batch, states).sum()
            else:
                model = self.encoder.model
                texts = self.text_features(model, self.text_states(model, batch['input_ids'], mask_of(batch)))
                score = (self.image_features(model, states.visual) * texts).sum() / self.temp
            gradient, = torch.autograd.grad(score, attention)
        maps = self.gradient_maps(attention, gradient)
        return maps if mode == 'itm' else maps[:, :1]  # from words, or from [CLS] of the picture, to patches

    def maps(self, batch, mode=None, block=None):
        """The maps of whole texts (b, side, side): the mean over all places of the batch's texts, padding included."""
        return self.piece_maps(batch, mode, block).mean(1)

    def logits_of(self, batch, states):
        """(b,): the score of which maps are made."""
        return self.itm_head(states.pooled)[:, 1].float()

    def word_maps(self, batch, places=None):
        """As of Head; the maps are those of the expression, whichever box is asked for."""
        logits = self.logits(batch)
        return logits, logits.argmax(1) if places is None else places, super().word_maps(batch)[2]

    def logits(self, batch):
        """The score of each box (b, o), -inf at padding."""
        if 'boxes' not in batch:
            return self.match_logits(batch)[:, None]
        mask, rows = batch.get('visual_attention_mask'), []
        for picture, boxes, size in zip(self.maps(batch), batch['boxes'], batch['image_size'].tolist(), strict=True):
            height, width = size
            corners = boxes.double() * boxes.new_tensor([width, height, width, height])
            sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)  # x, y, width, height
            rows.append(box_scores(resized(picture, height, width), sides))
        scores = torch.stack(rows)
        return scores if mask is None else scores.masked_fill(mask == 0, -torch.inf)

    def probabilities(self, logits):
        return logits.softmax(-1)

    def predict(self, batch, k=1):
        """The k boxes of the highest scores (b, k) int64, and the softmax of the scores (b, k); what a picture lacks has 0."""
        logits = self.logits(batch)
        best = logits.topk(min(k, logits.shape[1]))
        probabilities, lacking = logits.softmax(1).gather(1, best.indices).nan_to_num(), (0, k - best.indices.shape[1])
        return F.pad(best.indices, lacking, value=2 ** 31 - 1), F.pad(probabilities, lacking)
