"""Pre-training: ITC, ITM and MLM; and text assignment, which prepares for two pictures (ALBEF paper, sections 3 and 4).

Shapes: as in albef.contrast.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

import dist
from albef.contrast import Contrast, soft_cross_entropy
from albef.modeling import Context
from albef.momentum import MomentumHead, mask_of
from bert.layers import PACK_SEQUENCES
from bert.tokenization import CLS, MASK

NO_LABEL = -1
PUBLISHED_IDS = {CLS: 101, MASK: 103}  # of bert-base-uncased, for an encoder without a tokenizer
NEITHER = 1 / 3  # the probability that neither picture belongs to the text
SECOND = 0.5  # the probability that the second one does, else
TEMPERATURE = 0.07  # of the similarities by which wrong pictures are drawn
FLAGS = {'ITC': 'taskContrast', 'ITM': 'taskMatched', 'MLM': 'taskMaskLM'}  # objective -> flag


class Pretraining(Contrast):
    """ITC, ITM and MLM, or those whose flags are given. A batch has also masked_input_ids and masked_lm_labels (b, t), -1: not
    predicted; absent: both are drawn."""

    def __init__(self, encoder, recipe, options=None, group=64):
        self.mask_rate = options.wordMaskRate if options else 0.15
        self.objectives = frozenset(name for name, flag in FLAGS.items() if options and getattr(options, flag)) or FLAGS.keys()
        super().__init__(encoder, recipe, options, group=group)
        self.numbered = 'same_picture' in self.config.repairs

    @torch.no_grad()
    def counts(self, micro_batches):
        """As of Contrast, and the number of predicted word pieces (MLM)."""
        counts, step = super().counts(micro_batches), self.step
        if any('masked_lm_labels' not in part.batch for part in step.parts):
            self.draw_masks(step)
        for part in step.parts:
            part.masked = part.masked or (part.batch['masked_input_ids'], part.batch['masked_lm_labels'])
        return counts | {'MLM': sum((part.masked[1] != NO_LABEL).sum() for part in step.parts).float()}

    def draw_masks(self, step):
        """Chooses the word pieces that are predicted: [PAD] and [CLS] aside each with a probability; of these 80 % become [MASK],
        10 % any piece of the vocabulary. Each draw is over all examples of the step, in the original code's order."""
        longest = max(part.batch['input_ids'].shape[1] for part in step.parts)
        longest = max(dist.gather(longest)) if step.live else longest
        device = step.parts[0].batch['input_ids'].device
        shape, draws = (step.size, longest), self.generator(device, self.number * step.live, 0, 2 + step.live)
        chosen, replaced, other = (torch.bernoulli(torch.full(shape, rate, device=device), generator=draws).bool()
                                   for rate in (self.mask_rate, 0.8, 0.5))
        pieces = torch.randint(self.config.vocab_size, shape, generator=draws, device=device)
        special = self.encoder.tokenizer.vocab if self.encoder.tokenizer else PUBLISHED_IDS
        if special[MASK] >= self.config.vocab_size:
            raise ValueError(f'vocab_size {self.config.vocab_size}: is not that of bert-base-uncased, whose [MASK] is '
                             f'{special[MASK]}; set encoder.tokenizer')
        for part in step.parts:
            if 'masked_lm_labels' in part.batch:
                continue
            ids = part.batch['input_ids']
            grid = slice(part.first, part.last), slice(ids.shape[1])
            predicted = chosen[grid] & (ids != 0) & (ids != special[CLS])
            mask = predicted & replaced[grid]
            masked = ids.masked_fill(mask, special[MASK])
            masked = torch.where(predicted & ~mask & other[grid], pieces[grid], masked)
            part.masked = masked, ids.masked_fill(~predicted, NO_LABEL)

    def forward(self, batch, counts):
        """The losses, and the metrics `right LOSS` and `predicted LOSS` of ITM and MLM."""
        losses, metrics, part, step, tokens = self.aligned_losses(batch, counts)
        if 'MLM' not in self.objectives:
            self.finish(step)
            return losses, metrics
        (ids, labels), mask = part.masked, mask_of(batch)
        places = self.predicted_places(labels, 'masked_lm_labels' in batch)
        labels = labels.flatten()[places]
        logits = self.word_logits_of(self.encoder.model, ids, mask, tokens, places)
        with torch.no_grad():
            soft = self.word_logits_of(self.twin, ids, mask, part.twin_tokens, places).softmax(-1)
        hard, predicted = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction='sum'), labels != NO_LABEL
        mlm = (1 - self.alpha) * hard + self.alpha * (soft_cross_entropy(soft, logits) * predicted).sum()
        losses['MLM'] = mlm / counts['MLM'].clamp(min=1)
        self.finish(step)
        return losses, metrics | {'right MLM': (logits.argmax(1) == labels).sum(),
                                  'predicted MLM': predicted.sum()}

    def predicted_places(self, labels, given):
        """Places in (b * t) of the labels (b, t) that are predicted. On a GPU, where the CPU would wait for their number, as many
        as drawn labels can be (8 standard deviations above the mean), filled up with the place of the first [CLS]. given: whether
        the labels were not drawn."""
        if given or labels.device.type in PACK_SEQUENCES:
            return (labels != NO_LABEL).flatten().nonzero()[:, 0]
        n, rate = labels.numel(), self.mask_rate
        most = math.ceil(n * rate + 8 * math.sqrt(n * rate * (1 - rate)))
        return torch.nonzero_static((labels != NO_LABEL).flatten(), size=min(most, n), fill_value=0)[:, 0]

    @staticmethod
    def word_logits_of(model, ids, mask, tokens, places):
        """Logits (p, vocabulary) of the word pieces at places (p,) of (b * t)."""
        states = model.encode(ids, mask, [tokens])
        return model.text_encoder.cls.predictions(states.flatten(0, 1)[places]).float()

    def logits_of(self, batch, states):
        """Logits (b, 2) that image and text do not, or do, belong together."""
        return self.itm_head(states.pooled).float()

    def untrained(self, objective, options):
        flag = FLAGS[{'match': 'ITM', 'words': 'MLM'}[objective]]
        some = any(options.get(one) for one in FLAGS.values())
        return f'was pre-trained without --{flag}, so that this head is random' if some and not options.get(flag) else ''

    def word_logits(self, batch, places):
        visual = self.encoder.visual(batch)
        return self.word_logits_of(self.encoder.model, batch['input_ids'], mask_of(batch), visual[0], places)


class TextAssignment(MomentumHead):
    """Does a text belong to the first picture (0), the second (1) or neither (2)? Wrong pictures are drawn from the group by
    their similarity. A batch is one of pre-training, with a picture for each text. There is no momentum model."""

    least = 3

    def __init__(self, encoder, recipe, options=None, group=64):
        super().__init__(encoder, recipe, options, group=group)
        del self.twin
        config = encoder.config
        self.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
        self.text_proj = nn.Linear(config.hidden_size, config.embed_dim)
        self.temp = nn.Parameter(torch.tensor(float(config.temp)))
        self.ta_head = nn.Linear(config.hidden_size, 3)
        for part in (self.vision_proj, self.text_proj, self.temp):  # they get no gradient in the original code
            part.requires_grad_(False)

    def begin_step(self, step, total):
        self.number = step

    @torch.no_grad()
    def counts(self, micro_batches):
        """The number of examples, but of those of a group of fewer than three, which only validation has."""
        step = self.step = self.plan(micro_batches)
        columns = {'feature': []}
        if not step.aligned:
            columns['pixels'] = [part.batch['pixels'] for part in step.parts]
            columns['feature'] = [self.features(self.encoder.visual(part.batch)[0]) for part in step.parts]
        step.columns |= {name: self.in_step_order(step, rows) for name, rows in columns.items() if rows}
        count = sum(len(self.places(part, start, end)) for part in step.parts
                    for start, end in step.groups if end - start >= self.least)
        return {'TA': self.temp.new_full((), float(count))}

    @staticmethod
    def places(part, start, end):
        """The places of a group that are in a micro-batch."""
        return range(max(start, part.first), min(end, part.last))

    def features(self, tokens):
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(self.vision_proj(tokens[:, 0].float()), dim=-1)

    @torch.no_grad()
    def pairs(self, features, draws):
        """Two pictures and a label for each text of a group, from features of its own pictures (g, e): ([(first, second)],
        [label]). draws: a generator on the CPU, or None."""
        weights = (features @ features.T / TEMPERATURE).softmax(1).fill_diagonal_(0).nan_to_num(0).cpu()
        weights = torch.where(weights.sum(1, keepdim=True) > 0, weights, 1 - torch.eye(len(weights)))
        pictures, labels = [], []
        for place, row in enumerate(weights):
            if torch.rand(1, generator=draws) > NEITHER:
                other = int(torch.multinomial(row, 1, generator=draws))
                second = not torch.rand(1, generator=draws) > SECOND
                pictures.append((other, place) if second else (place, other))
                labels.append(int(second))
            else:
                pictures.append(tuple(torch.multinomial(row, 2, generator=draws).tolist()))
                labels.append(2)
        return pictures, labels

    def forward(self, batch, counts):
        """The loss TA, and the metrics `right TA` and `predicted TA`."""
        part, step = self.part_of(batch)
        tokens = self.encoder.visual(batch)[0]
        pictures, labels = [], []
        for number, (start, end) in enumerate(step.groups):
            if not (places := self.places(part, start, end)):
                continue
            features = step.columns['feature'][start:end] if 'feature' in step.columns else \
                self.features(tokens.detach()[start - part.first:end - part.first])
            if end - start < self.least:
                chosen, right = [(place - start,) * 2 for place in range(start, end)], [NO_LABEL] * (end - start)
            else:
                draws = self.generator(torch.device('cpu'), self.number * step.live, number, int(step.live))
                chosen, right = self.pairs(features, draws)
            pictures += [(start + chosen[place - start][0], start + chosen[place - start][1]) for place in places]
            labels += [right[place - start] for place in places]
        pictures = torch.tensor(pictures, device=tokens.device).T  # (2, b)
        tokens, rows = self.with_others(step, part, tokens, pictures.flatten(), lambda at: self.encoder.model.visual_encoder(
            step.columns['pixels'][at]))
        first, second = (Context(tokens, rows=row) for row in rows.chunk(2))
        logits, labels = self.assign(batch, first, second), torch.tensor(labels, device=tokens.device)
        loss = F.cross_entropy(logits, labels, ignore_index=NO_LABEL, reduction='sum') / counts['TA'].clamp(min=1)
        return {'TA': loss}, {'right TA': (logits.argmax(1) == labels).sum(), 'predicted TA': (labels != NO_LABEL).sum()}

    def assign(self, batch, first, second):
        """Logits (b, 3) of texts with two pictures, each a Context."""
        states = self.encoder.model.text(batch['input_ids'], mask_of(batch), [first, second])
        return self.ta_head(states[:, 0]).float()

    def logits(self, batch):
        """(b, 3). A batch has two pictures a text, pixels (2 * b, ...); with one picture a text it stands in both places."""
        tokens = self.encoder.model.visual_encoder(batch['pixels'])
        tokens = tokens.unflatten(0, (len(batch['input_ids']), -1))
        return self.assign(batch, Context(tokens[:, 0]), Context(tokens[:, -1]))
