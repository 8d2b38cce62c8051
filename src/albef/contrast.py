"""The objectives that align images and texts: ITC with queues, and ITM with hard negatives, in pre-training and retrieval.

Negatives come from groups of consecutive examples of a step, as many as a GPU of the original code had, so that one process,
several and --accumulate give the same result. Where a micro-batch is no whole number of groups, the negatives that it lacks are
encoded again from the inputs of the others.

Shapes: b examples of a micro-batch, s of the step, g of a group, t tokens, v image tokens, d hidden size, e features that are
compared, q places of the queue.
"""

import torch
import torch.nn.functional as F
from torch import nn

import dist
from albef.modeling import Context
from albef.momentum import MomentumHead, mask_of

TEMPERATURES = 0.001, 0.5  # limits
NO_PICTURE = -100  # in idx_queue


def soft_cross_entropy(targets, logits):
    """-(targets * log softmax(logits)), summed over the last dimension."""
    return -(targets * logits.log_softmax(-1)).sum(-1)


class Contrast(MomentumHead):
    """ITC and ITM. A batch has pixels (b, 3, side, side), input_ids (b, t), attention_mask (b, t) (absent: no padding but 0), and
    image_id (b,) where pictures have numbers (`numbered`)."""

    numbered = False  # whether examples of one picture are no negatives of each other
    pretraining = True  # in fine-tuning the original code does not limit the temperature, and config.distill is an option
    objectives = frozenset({'ITC', 'ITM'})  # without ITC wrong images and texts are drawn with equal probabilities

    def __init__(self, encoder, recipe, options=None, ramp=True, group=64):
        model, config = encoder.model, encoder.config
        model.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
        model.text_proj = nn.Linear(config.hidden_size, config.embed_dim)
        super().__init__(encoder, recipe, options, ramp, group)
        self.itm_head = nn.Linear(config.hidden_size, 2)
        self.temp = nn.Parameter(torch.tensor(float(config.temp)))
        for name in ('image_queue', 'text_queue'):
            self.register_buffer(name, F.normalize(torch.randn(config.embed_dim, config.queue_size), dim=0))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.int64))

    # ---- features

    @staticmethod
    def image_features(model, tokens):
        """Image tokens (b, v, w) -> features of length 1 (b, e), float32."""
        with torch.autocast(tokens.device.type, enabled=False):
            return F.normalize(model.vision_proj(tokens[:, 0].float()), dim=-1)

    @staticmethod
    def text_features(model, states):
        """States (b, t, d) of the layers that read text alone -> features of length 1 (b, e), float32."""
        with torch.autocast(states.device.type, enabled=False):
            return F.normalize(model.text_proj(states[:, 0].float()), dim=-1)

    @staticmethod
    def text_states(model, ids, mask):
        """(b, t) -> states of the layers that read text alone (b, t, d)."""
        hidden, sequences = model.text.words(ids, mask)
        return sequences.pad_with_zeros(hidden)

    def match(self, states, mask, tokens, rows=None):
        """Logits (b, 2) of the states of texts (b, t, d) with image tokens (m, v, w); rows (b,): the image of each text."""
        return self.itm_head(self.encoder.fuse(states, mask, [Context(tokens, rows=rows)])[:, 0]).float()

    # ---- the step

    @torch.no_grad()
    def counts(self, micro_batches):
        """The numbers of pairs (ITC), and of positive and negative pairs (ITM). Computes the momentum models' features of the
        step, which are gathered over processes."""
        step = self.step = self.plan(micro_batches)
        if step.live and step.size > self.config.queue_size:
            raise ValueError(f'queue_size {self.config.queue_size}: expected at least {step.size}, the examples of a step; raise '
                             'it in the config, or lower --batchSize')
        features = {'image': [], 'text': [], 'id': []}
        for part in step.parts:
            part.twin_tokens = self.twin.visual_encoder(part.batch['pixels'])
            states = self.text_states(self.twin, part.batch['input_ids'], mask_of(part.batch))
            features['image'].append(self.image_features(self.twin, part.twin_tokens))
            features['text'].append(self.text_features(self.twin, states))
            if self.numbered:
                features['id'].append(self.picture_ids(part.batch))
        if not step.aligned:
            self.add_inputs(step, features)
        step.columns |= {name: self.in_step_order(step, rows) for name, rows in features.items() if rows}
        pairs = sum(len(part.batch['input_ids']) for part in step.parts)
        negatives = 0
        for start, end in step.groups:
            has_negative = ~self.same(step, start, end).all(1)
            for part in step.parts:
                negatives += has_negative[max(part.first - start, 0):max(part.last - start, 0)].sum()
        ones = self.temp.new_ones((), dtype=torch.float32)
        return {'ITC': ones * pairs, 'ITM': ones * pairs + 2 * negatives}

    def add_inputs(self, step, features):
        """Adds what groups of several micro-batches need: the inputs of all, and their features by the model."""
        longest = max(part.batch['input_ids'].shape[1] for part in step.parts)
        longest = max(dist.gather(longest)) if step.live else longest
        features |= {'pixels': [], 'ids': [], 'mask': [], 'model image': [], 'model text': []}
        for part in step.parts:
            model, ids, mask = self.encoder.model, part.batch['input_ids'], mask_of(part.batch)
            features['pixels'].append(part.batch['pixels'])
            features['ids'].append(F.pad(ids, (0, longest - ids.shape[1])))
            features['mask'].append(F.pad(mask.long(), (0, longest - ids.shape[1])))
            features['model image'].append(self.image_features(model, model.visual_encoder(part.batch['pixels'])))
            features['model text'].append(self.text_features(model, self.text_states(model, ids, mask)))

    def picture_ids(self, batch):
        if 'image_id' not in batch:
            raise ValueError('a batch without image_id: retrieval and grounding need the number of the picture of each text')
        return batch['image_id']

    def same(self, step, start, end):
        """(g, g) bool: examples of a group that are no negatives of each other."""
        if self.numbered:
            ids = step.columns['id'][start:end]
            return ids == ids[:, None]
        return torch.eye(end - start, dtype=torch.bool, device=self.temp.device)

    @torch.no_grad()
    def negatives(self, similarities, same):
        """Draws a column for each row of similarities / temperature (g, g), by their softmax, none that is `same`. A row without
        a negative, or whose weights are all 0 or not finite, draws any."""
        weights = similarities.softmax(1).masked_fill(same, 0).nan_to_num(0)
        some = torch.where(same.all(1, keepdim=True), True, ~same).float()
        return self.choose_negatives(torch.where(weights.sum(1, keepdim=True) > 0, weights, some))

    def targets(self, step, places, start, end):
        """Hard targets (rows, g + q) of the examples at `places` of the step: equal shares of what is of the same picture."""
        right = self.same(step, start, end)[places - start]
        queue = (step.columns['id'][places, None] == self.idx_queue[0]) if hasattr(self, 'idx_queue') else \
            right.new_zeros(len(places), self.config.queue_size)
        right = torch.cat([right, queue], 1).float()
        return right / right.sum(1, keepdim=True)

    def align(self, part, step, image, text):
        """(ITC summed over the micro-batch; for each text the place in the step of a negative image; for each image of a negative
        text; whether each example has negatives). image, text: features (b, e)."""
        columns, temp, total = step.columns, self.temp.float(), 0.0
        # Clones, since the queues change before the backward pass.
        queues = {'image': self.image_queue.clone(), 'text': self.text_queue.clone()}  # (e, q)
        to_queue = image @ queues['text'], text @ queues['image']  # (b, q)
        images, texts, has_negative = [], [], []
        for number, (start, end) in enumerate(step.groups):
            if start >= part.last or end <= part.first:
                continue
            places = torch.arange(max(start, part.first), min(end, part.last), device=image.device)
            rows = places - part.first
            to_texts, to_images = (
                torch.cat([features[rows] @ columns[other][start:end].T, queue[rows]], 1) / temp for features, other, queue in
                ((image, 'text', to_queue[0]), (text, 'image', to_queue[1])))  # (rows, g + q)
            with torch.no_grad():
                hard = self.targets(step, places, start, end)
                alpha = self.alpha if self.config.distill or self.pretraining else 0.0
                twins = (columns['image'][places], 'text'), (columns['text'][places], 'image')
                soft = (torch.cat([one @ columns[other][start:end].T, one @ queues[other]], 1) / temp for one, other in twins)
                soft = [alpha * scores.softmax(1) + (1 - alpha) * hard for scores in soft]
            total = total + 0.5 * (soft_cross_entropy(soft[0], to_texts) + soft_cross_entropy(soft[1], to_images)).sum()
            same, g = self.same(step, start, end), end - start
            if 'ITC' not in self.objectives:
                whole_images = whole_texts = temp.new_zeros(g, g)
            elif step.aligned:
                whole_images, whole_texts = to_texts[:, :g].detach(), to_images[:, :g].detach()
            else:
                whole_images = columns['model image'][start:end] @ columns['text'][start:end].T / temp
                whole_texts = columns['model text'][start:end] @ columns['image'][start:end].T / temp
            self.draws = self.generator(image.device, self.number * step.live, number, int(step.live))
            within = places - start
            images.append(start + self.negatives(whole_texts, same)[within])
            texts.append(start + self.negatives(whole_images, same)[within])
            has_negative.append(~same.all(1)[within])
        return total, torch.cat(images), torch.cat(texts), torch.cat(has_negative)

    def aligned_losses(self, batch, counts):
        """(those of ITC and ITM that are objectives, metrics, the Part and Step of the batch, image tokens)."""
        part, step = self.part_of(batch)
        if self.pretraining or 'temperature' in self.config.repairs:
            with torch.no_grad():
                self.temp.clamp_(*TEMPERATURES)
        model, ids, mask = self.encoder.model, batch['input_ids'], mask_of(batch)
        tokens = model.visual_encoder(batch['pixels'])
        states = self.text_states(model, ids, mask)
        image, text = self.image_features(model, tokens), self.text_features(model, states)
        with torch.autocast(tokens.device.type, enabled=False):
            itc, images, texts, has_negative = self.align(part, step, image, text)
        losses = {'ITC': itc / counts['ITC'].clamp(min=1)} if 'ITC' in self.objectives else {}
        if 'ITM' not in self.objectives:
            return losses, {}, part, step, tokens
        if step.aligned:
            masks = mask
        else:
            inputs, extra = step.columns, step.columns['ids'].shape[1] - ids.shape[1]
            states, masks = F.pad(states, (0, 0, 0, extra)), F.pad(mask.long(), (0, extra))
        pairs = torch.arange(len(ids), device=ids.device)
        all_tokens, negative = self.with_others(step, part, tokens, images, lambda at: model.visual_encoder(inputs['pixels'][at]))
        image_rows = torch.cat([pairs, negative, pairs])
        all_states, negative = self.with_others(
            step, part, states, texts, lambda at: self.text_states(model, inputs['ids'][at], inputs['mask'][at]))
        all_masks, _ = self.with_others(step, part, masks, texts, lambda at: inputs['mask'][at])
        rows = torch.cat([pairs, pairs, negative])
        logits = self.match(all_states[rows], all_masks[rows], all_tokens, image_rows)  # (3 * b, 2)
        label = torch.arange(3 * len(ids), device=logits.device) < len(ids)
        weight = torch.cat([torch.ones_like(has_negative), has_negative, has_negative]).float()
        itm = (F.cross_entropy(logits, label.long(), reduction='none') * weight).sum()
        right = ((logits.argmax(1) == label) * weight).sum()
        losses['ITM'] = itm / counts['ITM'].clamp(min=1)
        return losses, {'right ITM': right, 'predicted ITM': weight.sum()}, part, step, tokens

    @torch.no_grad()
    def finish(self, step):
        """To be called after the losses of each micro-batch: after the last one of a step, its features enter the queues."""
        step.left -= 1
        if step.left or not step.live:
            return
        places = (self.queue_ptr + torch.arange(step.size, device=self.queue_ptr.device)) % self.config.queue_size
        self.image_queue[:, places] = step.columns['image'].T
        self.text_queue[:, places] = step.columns['text'].T
        if hasattr(self, 'idx_queue'):
            self.idx_queue[:, places] = step.columns['id'][None]
        self.queue_ptr.add_(step.size).remainder_(self.config.queue_size)

    def match_logits(self, batch):
        return self.match_logits_of(self.encoder(batch))

    def match_logits_of(self, states):
        """(b,) from the States of a batch."""
        scores = self.itm_head(states.pooled).float()
        return scores[:, 1] - scores[:, 0]


class Retrieval(Contrast):
    """ITC and ITM of pictures with numbers: other captions of a picture, also of the queue, are right."""

    numbered, pretraining = True, False

    def __init__(self, encoder, recipe, options=None, group=32):
        super().__init__(encoder, recipe, options, group=group)
        self.register_buffer('idx_queue', torch.full((1, self.config.queue_size), NO_PICTURE, dtype=torch.int64))

    def forward(self, batch, counts):
        """The losses, and the metrics 'score', the pairs whose matching is right, and 'examples', the pairs."""
        losses, metrics, _, step, _ = self.aligned_losses(batch, counts)
        self.finish(step)
        return losses, {'score': metrics['right ITM'], 'examples': metrics['predicted ITM']}

    def encode_images(self, pixels):
        """Pixels (m, 3, side, side) -> (features (m, e), tokens (m, v, w)), for the two stages of ranking."""
        tokens = self.encoder.model.visual_encoder(pixels)
        return self.image_features(self.encoder.model, tokens), tokens

    def encode_texts(self, ids, mask):
        """(n, t) -> (features (n, e), states (n, t, d) of the layers that read text alone)."""
        states = self.text_states(self.encoder.model, ids, mask)
        return self.text_features(self.encoder.model, states), states

    def match_scores(self, states, mask, tokens):
        """Scores (p,) of pairs of text states (p, t, d) and image tokens (p, v, w), or of one image (1, v, w): the logit that
        they belong together, alone."""
        rows = torch.zeros(len(states), dtype=torch.int64, device=states.device) if len(tokens) == 1 else None
        return self.match(states, mask, tokens, rows)[:, 1]

    def logits_of(self, batch, states):
        """(b,): the log-odds that text and image belong together."""
        return self.match_logits_of(states)

    def probabilities(self, logits):
        return logits.sigmoid()

    def predict(self, batch, k=1):
        """Whether text and image match, (b, 1) int64, and the probability that they do, (b, 1)."""
        logits = self.match_logits(batch)[:, None]
        return (logits > 0).long(), self.probabilities(logits)
