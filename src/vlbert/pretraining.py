"""VL-BERT's pre-training: masked words of captions and of texts, and masked regions (paper, section 3.3)."""

import torch
import torch.nn.functional as F
from torch import nn

from bert.layers import BertLMPredictionHead, initialise
from bert.weights import fill
from heads import Head

NO_LABEL = -1
DISTRIBUTION = 0.1  # class probabilities of a region are a target if they sum to 1 within this, as in the original code
LOSSES = ('MLM_captions', 'MLM_text', 'MVRC')


class MaskedWordHead(nn.Module):
    def __init__(self, config, word_embeddings):
        super().__init__()
        self.predictions = BertLMPredictionHead(config, word_embeddings)


class RegionTransform(nn.Module):
    """Without the layer norm of BERT's transform, as in the original code."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden):
        return F.gelu(self.dense(hidden))


class RegionClassHead(nn.Module):
    """Logits of a region's class."""

    def __init__(self, config):
        super().__init__()
        self.transform = RegionTransform(config)
        self.region_cls_pred = nn.Linear(config.hidden_size, config.num_region_classes)

    def forward(self, hidden):
        return self.region_cls_pred(self.transform(hidden))


class RelationshipHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.caption_image_relationship = nn.Linear(config.hidden_size, 2)


class Pretraining(Head):
    """Predicts masked words and the classes of regions.

    A batch has, of n sequences, captions first, then texts, and of the m images of the captions: input_ids, token_type_ids,
    masked_lm_labels (n, t), -1: not predicted; pictures (n,): the row of its image or -1 for a text; features (m, o, f), boxes
    (m, o, 4), visual_attention_mask (m, o), the whole image first; masked_regions (m, o) bool, whose feature and word the mask
    embeddings replace; region_classes (m, o, classes): probabilities, rows that do not sum to 1 are not predicted. Optional:
    words_at (p,) and regions_at (q,), indices into (n * t) and (n * o) of what is predicted; without them they are computed,
    which waits for the GPU.
    """

    def __init__(self, encoder, recipe):
        super().__init__(encoder, recipe)
        config = encoder.config
        self.mlm_head = MaskedWordHead(config, encoder.model.vlbert.word_embeddings.weight)
        self.mvrc_head = RegionClassHead(config)
        if config.with_relationship:
            self.relationsip_head = RelationshipHead(config)  # the original's spelling
        for head in (self.mlm_head, self.mvrc_head, getattr(self, 'relationsip_head', None)):
            if head is not None:
                head.apply(initialise(config))

    @staticmethod
    def labels(batch):
        """{loss: (n, t) or (n, o) bool}: what each loss predicts of each sequence."""
        predicted, captions = batch['masked_lm_labels'] != NO_LABEL, batch['pictures'][:, None] >= 0
        regions = (batch['region_classes'].sum(-1) - 1).abs() < DISTRIBUTION  # (m, o)
        # Texts have the row after the last image.
        regions = F.pad(regions, (0, 0, 0, 1))[batch['pictures'].where(captions[:, 0], len(regions))]
        return dict(zip(LOSSES, (predicted & captions, predicted & ~captions, regions), strict=True))

    def counts(self, micro_batches):
        """The numbers of predicted word pieces of captions, of texts, and of predicted regions."""
        counts = [{name: label.sum().float() for name, label in self.labels(batch).items()} for batch in micro_batches]
        return {name: sum(one[name] for one in counts) for name in LOSSES}

    def forward(self, batch, counts):
        """The losses, each a mean over its predicted pieces or regions, 0 if there are none, and the metrics `right LOSS` and
        `predicted LOSS`: numbers of correct and of all predictions; of a region its most probable class is correct."""
        labels, t, o = self.labels(batch), batch['input_ids'].shape[1], batch['boxes'].shape[1]
        words, regions = (batch[key] if key in batch else mask.flatten().nonzero()[:, 0] for key, mask in (
            ('words_at', batch['masked_lm_labels'] != NO_LABEL), ('regions_at', labels['MVRC'])))
        s = t + o + 1
        places = torch.cat([words // t * s + words % t, regions // o * s + t + regions % o])
        states = self.encoder.states(batch, places)

        word_labels = batch['masked_lm_labels'].flatten()[words]
        word_logits = self.mlm_head.predictions(states[:len(words)]).float()
        word_losses = F.cross_entropy(word_logits, word_labels, reduction='none')
        targets = batch['region_classes'][batch['pictures'][regions // o], regions % o].float()
        region_logits = self.mvrc_head(states[len(words):]).float()
        region_losses = -(targets * region_logits.log_softmax(1)).sum(1)
        right_words = word_logits.argmax(1) == word_labels
        right_regions = region_logits.argmax(1) == targets.argmax(1)
        losses, metrics = {}, {}
        for name, at, loss, right in ((LOSSES[0], words, word_losses, right_words), (LOSSES[1], words, word_losses, right_words),
                                      (LOSSES[2], regions, region_losses, right_regions)):
            predicted = labels[name].flatten()[at]
            losses[name] = (loss * predicted).sum() / counts[name].clamp(min=1)
            metrics |= {f'right {name}': (right & predicted).sum(), f'predicted {name}': predicted.sum()}
        return losses, metrics

    def logits(self, batch):
        """The states of the first word (n, d)."""
        n, s = len(batch['input_ids']), batch['input_ids'].shape[1] + batch['boxes'].shape[1] + 1
        return self.encoder.states(batch, torch.arange(n, device=batch['input_ids'].device) * s, one_each=True)

    def match_logits(self, batch):
        scores = self.relationsip_head.caption_image_relationship(self.encoder(batch).pooled).float()
        return scores[:, 1] - scores[:, 0]

    def word_logits(self, batch, places):
        (_, t), o = batch['input_ids'].shape, batch['boxes'].shape[1]
        return self.mlm_head.predictions(self.encoder.states(batch, places // t * (t + o + 1) + places % t)).float()

    def load_original(self, state, source='a state dict'):
        """As Head.load_original. Of weights and model, one may have no embedding for texts, being trained on captions alone: in
        the model it stays random."""
        return fill(self, state, source, *[(r'aux_text_visual_embedding\.',)] * 2, rename=self.original_name)

    def untrained(self, objective, options):
        if objective == 'words' or hasattr(self, 'relationsip_head'):
            return ''
        return ('has no head that tells whether an image and a sentence belong together (vlbert.relationsip_head); the published '
                'files of VL-BERT have none, and only fill [MASK]')

    def original_name(self, name):
        name = super().original_name(name)
        return f'vlbert.{name}' if name.startswith(('mlm_head.', 'mvrc_head.', 'relationsip_head.')) else name
