"""Ranks the images for each caption and the captions for each image, by a head that scores pairs.

All pairs are scored in chunks of images times texts, and only counts are kept of them: memory grows with the captions, not with
the pairs. Captions of the same words are scored once.
"""

import numpy as np
import torch

import dist
from batches import EVALUATED, MicroBatch, load_batches
from files.progress import ProgressBar
from heads import IMAGE_KEYS
from tasks import two_stage
from train import autocast

IMAGES = 16  # at a time, with all texts
ESTIMATED_BATCHES = 10  # after which the duration is predicted
ROUNDING = 1e-5  # logits that differ by less are equal: those of one pair differ by that much in different batches
RECALLS = (1, 5, 10)


@torch.no_grad()
def rank(head, dataset, options, device, text='Ranking', most=None):
    """The ranks and the probability of each caption with its own image, among all images and captions of a dataset.

    most: rank only the captions of so many images, evenly spread, among themselves; None: all. Returns, on every process, ranks
    (n, 2) int64 from 1 and probabilities (n, 1) float32 of the n captions; of those that are left out the ranks are 0. Rank 0 of
    a caption is that of its image among all images, rank 1 its own among the captions of other images. Images and captions with
    an equal score come first.
    """
    head.eval()
    size = options.evalBatchSize or options.batchSize or EVALUATED
    _, first, image = np.unique(dataset.examples.images[:, 0], return_index=True, return_inverse=True)
    chosen = np.arange(len(first)) if most is None or most >= len(first) else np.linspace(0, len(first) - 1, most).astype(int)
    captions = np.flatnonzero(np.isin(image, chosen))
    image = np.searchsorted(chosen, image[captions])  # (c,) place in `chosen`
    texts, text_of = np.unique(dataset.sentence[captions], return_inverse=True)
    if hasattr(head, 'encode_images'):
        return ranks_of_candidates(head, dataset, first[chosen], captions, image, options, device, text)
    matching = matching_scores(head, dataset, captions, size, options, device)
    ahead = np.zeros((len(captions), 2), np.int64)  # images, and captions of other images, that are not below
    for images, scores in scores_of_images(head, dataset, first[chosen], texts, size, options, device, text):
        scores = scores[:, text_of]  # (images, c)
        other = image != images[:, None]
        ahead[:, 0] += (other & (scores >= matching - ROUNDING)).sum(0)
        for number, row, is_other in zip(images, scores, other, strict=True):
            of_image = np.flatnonzero(image == number)
            ahead[of_image, 1] = (row[is_other] >= row[of_image, None] - ROUNDING).sum(1)
    ahead = dist.sum_over_ranks(torch.from_numpy(ahead).to(device)).cpu().numpy()
    ranks, probabilities = np.zeros((len(dataset), 2), np.int64), np.zeros((len(dataset), 1), np.float32)
    ranks[captions] = 1 + ahead
    probabilities[captions] = head.probabilities(torch.from_numpy(matching))[:, None].numpy()
    return ranks, probabilities


def ranks_of_candidates(head, dataset, examples, captions, image, options, device, text):
    """As of `rank`, by two_stage: only the most similar images and captions are ranked by the score of the pair, the others are
    equal.

    examples: an example with each image; captions (c,), image (c,): the captions, and the place of their image in `examples`.
    """
    batches = load_batches(dataset, [MicroBatch(part, 0, None, options.compile) for part in np.array_split(
        examples, -(-len(examples) // two_stage.IMAGES))], options, device)
    texts = [text_batch(dataset, dataset.sentence[part].ravel(), options.compile, device) for part in np.array_split(
        captions, -(-len(captions) // two_stage.TEXTS))]
    k = head.encoder.config.k_test
    dist.print0(f'{text}: {len(examples):,} images, {len(captions):,} captions; of each the {k} most similar ones are compared.')
    with autocast(options, device):
        similar = two_stage.similarities(head, (batch['pixels'] for batch in batches), texts)
        to_texts, to_images = (scores.numpy() for scores in two_stage.rerank(head, similar, k, text))
    ranks, probabilities = np.zeros((len(dataset), 2), np.int64), np.zeros((len(dataset), 1), np.float32)
    own = to_texts[image, np.arange(len(captions))]  # (c,)
    for number, place in enumerate(captions):
        row = to_texts[image[number], image != image[number]]
        ranks[place] = 1 + two_stage.best_ranks(to_images[number:number + 1], image[number:number + 1])[0], \
            1 + (row >= own[number]).sum()
    probabilities[captions, 0] = torch.from_numpy(own).sigmoid()
    return ranks, probabilities


def matching_scores(head, dataset, captions, size, options, device):
    """The logits of some captions (c,) with their own images, (c,) float32, on every process. size: pairs in a batch."""
    starts = range(size * dist.rank(), len(captions), size * dist.world_size())
    batches = load_batches(dataset, [MicroBatch(captions[start:start + size], 0, None, options.compile) for start in starts],
                           options, device)
    scores = torch.zeros(len(captions), device=device)
    for start, batch in zip(starts, batches, strict=True):
        with autocast(options, device):
            scores[start:start + size] = head.match_logits(batch)
    return dist.sum_over_ranks(scores).cpu().numpy()


def scores_of_images(head, dataset, examples, texts, size, options, device, text):
    """Yields (places in `examples` (i,), logits of these images with all texts (i, t) float32) for this process's images.

    examples: (images,) an example with each image; texts: (t,) places in dataset.text; size: pairs in a batch. Texts of similar
    length share a batch, in which the images are loaded once.
    """
    per_batch = max(size // IMAGES, 1)
    images_at_once = min(IMAGES, size)
    places = [np.arange(start, min(start + images_at_once, len(examples))) for start in
              range(images_at_once * dist.rank(), len(examples), images_at_once * dist.world_size())]
    by_length = np.argsort(dataset.lengths[texts], kind='stable')
    chunks = [by_length[start:start + per_batch] for start in range(0, len(texts), per_batch)]
    chunks = [chunks[i] for i in np.random.default_rng(0).permutation(len(chunks))]  # so that the first ones predict the duration
    written = [text_batch(dataset, texts[chunk], options.compile, device) for chunk in chunks]
    images = load_batches(dataset, [MicroBatch(examples[part], 0, None, options.compile) for part in places], options, device)
    dist.print0(f'{text}: {len(examples):,} images x {len(texts):,} different captions, {len(examples) * len(texts):,} pairs.')
    with ProgressBar(total=len(places) * len(chunks), desc=text, unit=' batches', shown=dist.is_main(), force=options.tqdm,
                     per_step=images_at_once * per_batch * dist.world_size(), rate_unit='pairs', leave=False) as bar:
        for part, batch in zip(places, images, strict=True):
            scores = torch.empty(len(part), len(texts), device=device)
            if 'pixels' in batch:
                with autocast(options, device):
                    batch = head.encoder.encode_images(batch)
            pixels_or_regions = {key: batch[key] for key in IMAGE_KEYS if key in batch}
            for chunk, columns in zip(chunks, written, strict=True):
                pairs = {key: column.repeat(len(part), *[1] * (column.ndim - 1)) for key, column in columns.items()}
                with autocast(options, device):
                    logits = head.match_logits({'examples': len(part), **pixels_or_regions, **pairs})  # (i * chunk,)
                scores[:, torch.from_numpy(chunk).to(device)] = logits.view(len(part), -1)
                bar.update()
                if bar.n == ESTIMATED_BATCHES < bar.total:
                    bar.note_estimate(bar.total, 'evaluation')
            yield part, scores.cpu().numpy()


def text_batch(dataset, texts, static_shape, device):
    """The columns of some texts, {name: (t, ...) int64} on the device, cut to the longest."""
    length = dataset.input_ids.shape[1] if static_shape else dataset.lengths[texts].max()
    columns = {name: column[texts, :length] if column.ndim > 1 else column[texts] for name, column in dataset.text.items()}
    return {name: torch.from_numpy(column.astype(np.int64)).to(device) for name, column in columns.items()}


def recalls(ranks, images):
    """{('text' or 'image', k): per cent of the queries with a right result among the first k}, and their mean.

    ranks: (n, 2) as of `rank`; images: (n,) the image of each caption. Queries for a text are images, for which any of their
    captions is right; queries for an image are captions.
    """
    ranks, images = ranks[ranks[:, 0] > 0], images[ranks[:, 0] > 0]
    _, image = np.unique(images, return_inverse=True)
    best = np.full(image.max(initial=-1) + 1, np.iinfo(np.int64).max)
    np.minimum.at(best, image, ranks[:, 1])
    figures = {(what, k): 100 * float((places <= k).mean()) for what, places in (('text', best), ('image', ranks[:, 0]))
               for k in RECALLS}
    return figures, float(np.mean(list(figures.values()))), {'text': len(best), 'image': len(ranks)}
