"""The VL-BERT model (Su et al., ICLR 2020), under the parameter names of the original code.

Shapes: n sequences, each of a text and the regions of an image, or of a text alone; m images; t words, o regions (the first is
the whole image), s = t + o + 1 places of a sequence: words, regions, [END]; r tokens of all sequences without padding; d hidden
size, f feature size.
"""

import torch
import torch.nn.functional as F
from torch import nn

from bert.layers import (
    PACK_SEQUENCES,
    BertLayers,
    BertPooler,
    Dropout,
    PackedSequences,
    initialise,
    layer_norm,
)
from images.transforms import resized_sides
from vlbert.cnn import PixelFeatures

FEATURE_DROPOUT = 0.1  # before obj_downsample, whatever the config's rate is, as in the original code
REGION_SEGMENT = 2  # of regions and [END]
WAVELENGTH, BOX_SCALE = 1000, 100  # of the sines of a box, whose sides are scaled to 0..100
SHORT_SIDE, LONG_SIDE = 600, 1000  # pixels: the original code reads boxes in the coordinates of an image of this size


def fixed_dropout(rate, config):
    """A dropout layer of a fixed rate, which a config without dropout switches off."""
    return Dropout(rate if config.hidden_dropout_prob else 0.0)


def resized(image_size, longest=LONG_SIDE):
    """images.transforms.resized of many images: image_size (m, 2) height, width -> (m, 2) float64."""
    return torch.stack(resized_sides(*image_size.double().unbind(1), SHORT_SIDE, longest, torch.where), 1)


def original_boxes(boxes, image_size, mirrored=None, longest=LONG_SIDE):
    """Boxes as the original code sees them: cut at the last pixel of the resized image, and mirrored.

    boxes (m, o, 4) scaled to 0..1; image_size (m, 2) height, width in pixels; mirrored (m,) bool -> (m, o, 4).
    """
    return cut_boxes(boxes, resized(image_size, longest), mirrored)


def cut_boxes(boxes, size, mirrored=None):
    """original_boxes of images of which `size` (m, 2) is the height and width after resizing."""
    last = (1 - 1 / size.double()).flip(1).to(boxes.dtype)[:, None]  # (m, 1, 2): x, y
    x1, y1, x2, y2 = torch.minimum(boxes.clamp(min=0), last.repeat(1, 1, 2)).unbind(-1)
    if mirrored is not None:
        right = last[..., 0]  # (m, 1)
        x1, x2 = torch.where(mirrored[:, None], right - x2, x1), torch.where(mirrored[:, None], right - x1, x2)
    return torch.stack([x1, y1, x2, y2], -1)


def geometry(boxes, size=2048):
    """Sines and cosines of the centre, width and height of boxes (r, 4) scaled to 0..1: (r, size) (paper, section 3.2)."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    position = BOX_SCALE * torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], -1)  # (r, 4)
    count = size // 8
    wavelengths = WAVELENGTH ** (torch.arange(count, device=boxes.device, dtype=boxes.dtype) / count)
    angles = position[..., None] / wavelengths  # (r, 4, count)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


class RegionEmbedding(nn.Module):
    """A region's vector from its feature and its box. `cnn`, of models that read pixels, computes the features."""

    def __init__(self, config):
        super().__init__()
        self.geometry_size = config.geometry_size
        if config.pixels:
            self.cnn = PixelFeatures(config)
        self.obj_downsample = nn.Sequential(
            fixed_dropout(FEATURE_DROPOUT, config),
            nn.Linear(config.geometry_size + config.visual_feat_dim, config.hidden_size), nn.ReLU())

    def forward(self, features, boxes):
        """features (r, f), boxes (r, 4) scaled to 0..1 -> (r, d)."""
        return self.obj_downsample(torch.cat([geometry(boxes, self.geometry_size), features], -1))


class VisualLinguisticBert(nn.Module):
    """Embeddings, layers and pooler under the original names; VLBertModel puts them together."""

    def __init__(self, config):
        super().__init__()
        d = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, d)
        self.end_embedding = nn.Embedding(1, d)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, d)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, d)
        self.embedding_LayerNorm, self.dropout = layer_norm(d), Dropout(config.hidden_dropout_prob)
        self.visual_ln_text, self.visual_ln_object = layer_norm(d), layer_norm(d)
        self.encoder = BertLayers(config)
        if config.with_pooler or config.with_relationship:
            self.pooler = BertPooler(config)
        self.apply(initialise(config))
        for norm, scale in ((self.visual_ln_text, config.visual_scale_text_init),
                            (self.visual_ln_object, config.visual_scale_object_init)):
            nn.init.constant_(norm.weight, scale)
            norm.zeros_allowed = True


class VLBertModel(nn.Module):
    """Words, regions and [END] in one stream."""

    compile_as_one_graph = True  # read by bert.speed

    def __init__(self, config, text_only=False, masked_features=False):
        """text_only: sequences may have no image; masked_features: regions may be masked, as in pre-training."""
        super().__init__()
        self.config = config
        self.vlbert = VisualLinguisticBert(config)
        self.object_linguistic_embeddings = nn.Embedding(1, config.hidden_size)
        self.image_feature_extractor = RegionEmbedding(config)
        embeddings = [self.object_linguistic_embeddings]
        if masked_features:
            self.object_mask_word_embedding = nn.Embedding(1, config.hidden_size)
            embeddings.append(self.object_mask_word_embedding)
        self.masks_features = masked_features and not config.pixels  # else pixels are masked
        if self.masks_features:
            self.object_mask_visual_embedding = nn.Embedding(1, config.visual_feat_dim)
            self.object_mask_visual_embedding.zeros_allowed = True
        if text_only:
            self.aux_text_visual_embedding = nn.Embedding(1, config.hidden_size)
            embeddings.append(self.aux_text_visual_embedding)
        for embedding in embeddings:
            embedding.apply(initialise(config))
        if self.masks_features:
            nn.init.zeros_(self.object_mask_visual_embedding.weight)

    def forward(self, input_ids, token_type_ids, features, boxes, mask=None, pictures=None, word_regions=None,
                masked_regions=None, places=None, one_each=False, hidden_states=False, return_attention=False):
        """
        input_ids, token_type_ids (n, t) int64, 0 at padding; token_type_ids None: all 0. features (m, o, f); boxes (m, o, 4)
        scaled to 0..1; mask (m, o), None: no padding. pictures (n,) int64: the image of each sequence, -1 for a text alone; None:
        sequence i has image i. word_regions (n, t): the region that each word names; None: 0, the whole image. masked_regions
        (m, o): regions whose word is the mask's, and so is the feature, unless it comes from pixels, which are masked. places
        (p,): indices into (n * s) of the states that are needed; one_each: they are one of each sequence, in order.

        Returns the states (n, s, d) or those at `places` (p, d), 0 at padding. With hidden_states also [(n, s, d) of the
        embeddings and of each layer], with return_attention also [(n, heads, s, s) of each layer], 0 at padding; either needs
        places=None.
        """
        (n, t), (m, o) = input_ids.shape, boxes.shape[:2]
        mask = torch.ones(m, o, dtype=torch.bool, device=boxes.device) if mask is None else mask != 0
        masked_regions = None if masked_regions is None else masked_regions != 0
        token_type_ids = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        regions = self._regions(features, boxes, mask, masked_regions)  # (m, o, d)
        objects = self._object_words(masked_regions, regions) + self.vlbert.visual_ln_object(regions)
        if pictures is not None:
            # Texts alone take the row after the last image, which has no regions.
            pictures = torch.where(pictures < 0, m, pictures)
            regions, objects = (F.pad(states, (0, 0, 0, 0, 0, 1))[pictures] for states in (regions, objects))
            mask = F.pad(mask, (0, 0, 0, 1))[pictures]  # (n, o)
        visual = regions[:, :1] if word_regions is None else regions.gather(
            1, word_regions[..., None].expand(-1, -1, regions.shape[-1]))  # (n, 1 or t, d)
        if pictures is not None and hasattr(self, 'aux_text_visual_embedding'):
            visual = torch.where((pictures == m)[:, None, None], self.aux_text_visual_embedding.weight, visual)
        words = self.vlbert.word_embeddings(input_ids) + self.vlbert.visual_ln_text(visual)
        end = self.vlbert.end_embedding.weight.expand(n, 1, -1)
        mask = torch.cat([input_ids != 0, mask, mask.new_ones(n, 1)], 1)  # (n, s)
        length = (input_ids != 0).sum(1, keepdim=True)
        positions = torch.cat([torch.arange(t, device=mask.device).expand(n, t), length.expand(n, o), length + 1], 1)
        segments = F.pad(token_type_ids, (0, o + 1), value=REGION_SEGMENT)

        sequences, rows = self._pack(mask, compact=not return_attention)
        hidden, positions, segments = (
            states.flatten(0, 1) if rows is None else states.flatten(0, 1)[rows]
            for states in (torch.cat([words, objects, end], 1), positions, segments))
        hidden = hidden + self.vlbert.position_embeddings(positions) + self.vlbert.token_type_embeddings(segments)
        hidden = self.vlbert.dropout(self.vlbert.embedding_LayerNorm(hidden))

        if places is not None:
            padding = ~mask.flatten()[places]  # (p,)
            if rows is not None:
                index = rows.new_zeros(mask.numel())
                index[rows] = torch.arange(len(rows), device=rows.device)
                places = index[places]

        def padded(states):  # (r, d) -> (n, s, d)
            if rows is not None:
                states = states.new_zeros(mask.numel(), states.shape[-1]).index_copy(0, rows, states)
            return states.unflatten(0, mask.shape).masked_fill(~mask[..., None], 0)

        states = self.vlbert.encoder(hidden, sequences, padded, places, one_each, hidden_states, return_attention)
        return states if places is None else states.masked_fill(padding[:, None], 0)

    def _regions(self, features, boxes, mask, masked_regions):
        """The vectors of regions (m, o, d), 0 at padding."""
        if masked_regions is not None and self.masks_features:
            features = torch.where(masked_regions[..., None], self.object_mask_visual_embedding.weight, features)
        if mask.device.type not in PACK_SEQUENCES or torch.compiler.is_compiling() or mask.all():
            return self.image_feature_extractor(features, boxes).masked_fill(~mask[..., None], 0)
        rows = mask.flatten().nonzero()[:, 0]
        vectors = self.image_feature_extractor(features.flatten(0, 1)[rows], boxes.flatten(0, 1)[rows])
        return vectors.new_zeros(mask.numel(), vectors.shape[-1]).index_copy(0, rows, vectors).unflatten(0, mask.shape)

    def _object_words(self, masked_regions, regions):
        """The linguistic embeddings of regions, (1, 1, d) or (m, o, d)."""
        word = self.object_linguistic_embeddings.weight[None]
        if masked_regions is None:
            return word
        return torch.where(masked_regions[..., None], self.object_mask_word_embedding.weight[None], word)

    @staticmethod
    def _pack(mask, compact):
        """(PackedSequences, rows): where the tokens (r,) are in (n * s), None where padding stays.

        On devices in PACK_SEQUENCES no padding is left between the words and regions of a sequence; elsewhere the shape is
        static, and padding is masked. Both give the same states: only positions tell the order of tokens.
        """
        (n, s), device = mask.shape, mask.device
        if not compact or device.type not in PACK_SEQUENCES or torch.compiler.is_compiling() or mask.all():
            sequences = PackedSequences(mask, n, s, device)
            return sequences, sequences.rows
        lengths = mask.sum(1)
        longest = int(lengths.max())
        prefix = torch.arange(longest) < lengths[:, None]
        return PackedSequences(prefix, n, longest, device), mask.flatten().nonzero()[:, 0]
