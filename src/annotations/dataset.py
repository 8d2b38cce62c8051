"""Datasets: from examples and regions on disk to batches. Text is tokenised once; a batch is an indexing of columns."""

import hashlib

import numpy as np
import torch

from annotations.split_regions import open_regions, say_twice
from dist import print0
from files.json_files import DataError, some
from regions import placement


class QuestionDataset(torch.utils.data.Dataset):
    """Examples about images, k an example, as columns over n examples; dataset[a train.Part] is a batch.

    A batch: input_ids (b, t) int64, cut to its longest sentence unless the Part is `whole`; features (b * k, o, f) and boxes
    (b * k, o, 4) float32 scaled to 0..1, or, of regions on the GPU, places (b * k, o) int64; `finish` makes them of those, and
    float32 of half features; visual_attention_mask (b * k, o) bool, only where numbers of regions differ; target (b, answers)
    float32, the soft scores, only where the examples have labels.
    """

    def __init__(self, examples, regions, rows, tokenizer, answers, max_length):
        """examples: an Examples; regions: a store; rows (n, k): each image's row there, or -1 for one without regions."""
        self.examples, self.regions, self.rows, self.answers = examples, regions, rows, answers
        used, self.sentence = np.unique(examples.sentence, return_inverse=True)
        self.sentence = self.sentence.astype(np.int32)
        self.input_ids = tokenizer.encode([examples.sentences[place] for place in used], max_length)  # (sentences, t)
        examples.sentences = ()  # a third of what millions of questions take
        self.lengths = ((self.input_ids != 0) * np.arange(1, max_length + 1)).max(1)
        self.label_start = np.searchsorted(examples.label_example, np.arange(len(self) + 1))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, part):
        indices = part.indices
        sentence = self.sentence[indices]
        seen = placement.see(self.regions, self.rows[indices].ravel(), part.whole)
        mask = seen.pop('mask')
        length = self.input_ids.shape[1] if part.whole else self.lengths[sentence].max()
        batch = {'input_ids': self.input_ids[sentence, :length].astype(np.int64), **seen}
        if not mask.all():
            batch['visual_attention_mask'] = mask.astype(bool)
        if self.examples.labelled:
            batch['target'] = self.target(indices)
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def finish(self, batch):
        """A batch that has reached the device."""
        return placement.finish(self.regions, batch)

    def digest(self):
        """Tells whether two datasets hold the same questions, labels and images."""
        whole, own = hashlib.sha256(), self.examples
        for column in (self.input_ids, self.sentence, own.images, self.rows >= 0, own.label_example, own.label_answer,
                       own.label_score):
            whole.update(np.ascontiguousarray(column))
        return whole.hexdigest()

    def target(self, indices):
        """Soft scores (b, answers) of some examples."""
        counts = self.label_start[indices + 1] - self.label_start[indices]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        labels = np.repeat(self.label_start[indices], counts) + within
        target = np.zeros((len(indices), len(self.answers)), dtype=np.float32)
        target[np.repeat(np.arange(len(indices)), counts), self.examples.label_answer[labels]] = self.examples.label_score[labels]
        return target

    def scores(self, predictions):
        """Each example's soft score of a predicted answer: (n,) answer indices -> (n,) float64 from 0 to 1."""
        own = self.examples
        hit = own.label_answer == np.asarray(predictions)[own.label_example]
        return np.bincount(own.label_example, weights=own.label_score * hit, minlength=len(self))

    def oracle(self):
        """The score, per cent, of the best prediction within the vocabulary for every example."""
        best = np.zeros(len(self))
        np.maximum.at(best, self.examples.label_example, self.examples.label_score)
        return 100 * best.mean()


def load_questions(spec, names, examples, tokenizer, answers, options, submit=False, device=None):
    """The QuestionDataset of some splits, with what was left out said on the screen.

    names: what --train and the like call them; examples: all of theirs. submit: the predictions are to be handed in, so that
    no example may be left out and --tiny and --fast do not apply; an image without regions is then an error unless
    --allowMissing. device: where regions go with --featDevice cuda.
    """
    splits = spec.named(names)
    limits = [None if submit or split.whole else options.image_limit for split in splits]
    wanted = [np.unique(examples.images[examples.part == number]) for number in range(len(splits))]
    regions, whole = open_regions(splits, wanted, limits, options.storeRoot)
    ids, image = np.unique(examples.images, return_inverse=True)
    ids = [img_id.decode() for img_id in ids.tolist()]
    rows = regions.rows(ids)[image.reshape(examples.images.shape)]  # (n, k)
    say_twice(regions, ids, names)
    seen, keep, missing = (rows >= 0).all(1), np.ones(len(rows), bool), np.zeros(len(rows), bool)
    for number, (split, limit) in enumerate(zip(splits, limits, strict=True)):
        own = examples.part == number
        lacking = own & ~seen
        if not (rows[own] >= 0).any() and not options.allowMissing:
            some_ids = some([ids[i] for i in image.reshape(rows.shape)[lacking][rows[lacking] < 0][:10]])
            raise DataError(f'{split.annotations}: none of its images has regions, {some_ids} among them; do they belong to '
                            f'{split.features[0]}?')
        if not submit:
            keep &= ~lacking
        if limit is not None:
            named = rows[own]
            chosen = np.unique(named[named >= 0])[:limit]  # rows are in file order
            keep &= ~own | np.isin(rows, chosen).all(1)
            if not whole and len(chosen) == limit:
                lacking = np.zeros_like(own)  # there may be regions of them in what was not read
        missing |= lacking
    if missing.any():
        lost = [ids[i] for i in np.unique(image.reshape(rows.shape)[missing][rows[missing] < 0])]
        what = (f'{missing.sum():,} of {len(examples):,} questions of {names} are about {len(lost):,} images without regions '
                f'({some(lost)})')
        if submit and not options.allowMissing:
            raise DataError(f'{what}; all must be answered: add their regions, or give --allowMissing to answer them '
                            'from the words alone')
        print0(f'{what}: ' + ('answered from the words alone.' if submit else 'skipped.'))
    if not keep.any():
        raise DataError(f'{names}: no question is left whose images are all among those used; leave out --tiny or --fast')
    if unknown := examples.unknown:
        print0(f'{unknown.total():,} labels of {names} are no answers of {spec.answers} ({some(unknown)}): left out.')
    if not keep.all():
        examples, rows = examples.select(keep), rows[keep]
    regions = placement.place(regions, options.featDevice, device)
    dataset = QuestionDataset(examples, regions, rows, tokenizer, answers, spec.max_length)
    print0(f'{names}: {len(dataset):,} questions on {len(np.unique(dataset.rows[dataset.rows >= 0])):,} images.')
    return dataset
