"""The batches of pre-training: sentences and regions, with what is masked, exchanged and asked (paper, section 3.1).

Whatever is drawn is a function of the seed, the epoch and an example's position in the epoch, never of the rank, of the size of a
batch, or of what ran before.
"""

import hashlib

import numpy as np
import torch

from annotations.pretraining_columns import open_columns
from annotations.split_regions import open_regions, say_twice
from bert.tokenization import CLS, MASK, SEP
from dist import print0
from files.json_files import DataError, some
from regions import placement

NO_LABEL = -1
TINY, FAST = 500, 5000  # images of a split with --tiny and --fast, as in the original code
MASKED, RANDOM = 0.8, 0.9  # of what is predicted, below the first is masked, from there to the second random, the rest kept
WORDS, REGIONS, ANSWERS, MATCHED, OTHERS = range(5)  # what is drawn, each independent of the others; OTHERS and above: attempts


def uniform(seed, epoch, what, first, shape):
    """Random numbers (n, width) in [0, 1) for n positions of an epoch from `first` on, each row the same whichever rows are
    asked for with it. epoch: None for those of validation."""
    n, width = shape
    blocks = -(-width // 4)  # Philox makes four numbers at a time
    bits = np.random.Philox(np.random.SeedSequence([seed, what, 0 if epoch is None else epoch + 1]))
    bits.advance(first * blocks)
    return np.random.Generator(bits).random((n, 4 * blocks))[:, :width]


def choose(draws, rate):
    """What becomes of things that are predicted at a rate: bool arrays like draws, (predicted, masked, random)."""
    predicted = draws < rate
    kind = draws / rate if rate else draws  # of what is predicted, uniform in [0, 1) again
    return predicted, predicted & (kind < MASKED), predicted & (kind >= MASKED) & (kind < RANDOM)


class SentenceDataset(torch.utils.data.Dataset):
    """Sentences with their images, n of them; dataset[a train.Part] is a batch of b, whose masks are drawn for the Part.

    A batch: input_ids, attention_mask and, of --taskMaskLM, masked_lm_labels (b, t) int64, cut to the longest sentence unless the
    Part is `whole`, and words_at (m,) int64: places in (b * t,) of the words that are predicted; of --taskMatched, matched_label
    (b,) int64; of --taskQA, ans (b,) int64; source (b,) int64, a place in `sources`; features (b, o, f), boxes (b, o, 4) as in
    `regions.placement.see`; visual_attention_mask (b, o) bool, only where numbers of regions differ; of --taskObjPredict also
    classes, attributes (b, o) int64, class_conf, attribute_conf (b, o) float32, region_mask (b, o) bool: the regions that are
    predicted, regions_at (p,) int64: their places in (b * o,), zeroed (b, o) bool, noise_at (k,) int64: places in (b * o,), and
    their features, noise (k, f), or, on the GPU, noise_places (k,). `finish` makes visual_feats and obj_labels of these.
    A label of -1 is none.
    """

    def __init__(self, columns, regions, rows, tokenizer, table, options):
        """columns: a Columns a file; rows: of each file the row in `regions` of each image, or -1 for one that is left out;
        table: the answers of the answer head, in order."""
        self.columns, self.regions, self.options, self.table = columns, regions, options, table
        # Examples are counted through the images that are used; an image is a block of sentences of one file, at least one.
        counts = [np.diff(file.image_start) for file in columns]
        used = [(own >= 0) & (count > 0) for own, count in zip(rows, counts, strict=True)]
        self.file = np.concatenate([np.full(own.sum(), i, np.int16) for i, own in enumerate(used)])
        self.row = np.concatenate([row[own] for row, own in zip(rows, used, strict=True)])
        self.begin = np.concatenate([file.image_start[:-1][own] for file, own in zip(columns, used, strict=True)])
        self.start = np.cumsum(np.concatenate([[0], *(count[own] for count, own in zip(counts, used, strict=True))]))
        self.name_sources()
        place = {answer: i for i, answer in enumerate(table)}
        self.answer_of = [np.array([place.get(answer, NO_LABEL) for answer in file.answers], np.int64) for file in columns]
        self.vocabulary = len(tokenizer)
        self.mask_id, *self.kept = (tokenizer.vocab[token] for token in (MASK, CLS, SEP))

    def __len__(self):
        return int(self.start[-1])

    def name_sources(self, first=()):
        """Numbers the sources of sentences: those of `first` as they stand there, the others after them."""
        self.sources = list(dict.fromkeys((*first, *(source for file in self.columns for source in file.sources))))
        self.source_of = [np.array([self.sources.index(source) for source in file.sources], np.int64) for file in self.columns]

    def digest(self):
        """Tells whether two datasets hold the same sentences, answers and images."""
        whole = hashlib.sha256(''.join(file.digest for file in self.columns).encode())
        for array in (self.file, self.begin, self.row, np.array(self.table, np.str_)):
            whole.update(np.ascontiguousarray(array))
        return whole.hexdigest()

    def __getitem__(self, part):
        options, image = self.options, self.image_of(part.indices)
        batch, said = {}, part.indices
        own = np.ones(len(said), bool)
        if options.taskMatched:
            own = self.draw(part, MATCHED, 1)[:, 0] >= 0.5
            said = np.where(own, said, self.of_other_images(part, self.row[image]))
            batch['matched_label'] = own.astype(np.int64)
        batch |= self.words(part, said)
        batch['source'] = self.take(part.indices, lambda file, rows, _: self.source_of[file][self.columns[file].source[rows]])
        if options.taskQA:
            batch['ans'] = np.where(own, self.answers(part), NO_LABEL)
        batch |= self.see(part, self.row[image])
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}

    def draw(self, part, what, width):
        return uniform(self.options.seed, part.epoch, what, part.first, (len(part.indices), width))

    def image_of(self, examples):
        """Which of the images each example is about."""
        return np.searchsorted(self.start, examples, side='right') - 1

    def take(self, examples, read):
        """read(file's number, rows there, which of the examples they are) put together for examples of all files."""
        image = self.image_of(examples)
        rows, files = self.begin[image] + examples - self.start[image], self.file[image]
        whole = None
        for file in np.unique(files).tolist():
            own = np.flatnonzero(files == file)
            found = read(file, rows[own], own)
            whole = np.empty((len(examples), *found.shape[1:]), np.int64) if whole is None else whole
            whole[own] = found
        return whole

    def of_other_images(self, part, rows):
        """An example of another image for each of the part's: any of them with the same chance."""
        found, wrong, attempt = np.zeros(len(rows), np.int64), np.ones(len(rows), bool), OTHERS
        while wrong.any():
            drawn = (self.draw(part, attempt, 1)[:, 0] * len(self)).astype(np.int64)
            found = np.where(wrong, drawn, found)
            wrong &= self.row[self.image_of(found)] == rows
            attempt += 1
        return found

    def words(self, part, said):
        """The token ids of some examples' sentences, and what is to be predicted of them."""
        ids = self.take(said, lambda file, rows, _: self.columns[file].input_ids[rows])  # (b, t)
        mask = ids != 0
        batch = {'input_ids': ids, 'attention_mask': mask}
        if self.options.taskMaskLM:
            draws = self.draw(part, WORDS, 2 * ids.shape[1])
            words = mask & ~np.isin(ids, self.kept)
            predicted, masked, random = (chosen & words for chosen in choose(draws[:, ::2], self.options.wordMaskRate))
            pieces = (draws[:, 1::2] * self.vocabulary).astype(np.int64)
            batch['input_ids'] = np.where(masked, self.mask_id, np.where(random, pieces, ids))
            batch['masked_lm_labels'] = np.where(predicted, ids, NO_LABEL)
        length = ids.shape[1] if part.whole else np.flatnonzero(mask.any(0))[-1] + 1
        batch = {name: array[:, :length] for name, array in batch.items()}
        if self.options.taskMaskLM:
            batch['words_at'] = np.flatnonzero(batch['masked_lm_labels'] != NO_LABEL)
        return batch

    def answers(self, part):
        """An answer in the table for each example, drawn in proportion to the scores; -1 where there is none."""
        draws = self.draw(part, ANSWERS, 1)

        def read(file, rows, own):
            columns = self.columns[file]
            starts = columns.label_start[rows]
            counts = columns.label_start[rows + 1] - starts
            there = np.arange(max(counts.max(), 1)) < counts[:, None]  # (own, the most answers that one has)
            labels = (starts[:, None] + np.arange(there.shape[1]))[there]
            answers, scores = np.full(there.shape, NO_LABEL), np.zeros(there.shape)
            answers[there], scores[there] = self.answer_of[file][columns.label_answer[labels]], columns.label_score[labels]
            ends = np.cumsum(np.where(answers == NO_LABEL, 0, scores), 1)
            chosen = (ends <= draws[own] * ends[:, -1:]).sum(1).clip(max=there.shape[1] - 1)
            return np.where(ends[:, -1] > 0, answers[np.arange(len(own)), chosen], NO_LABEL)

        return self.take(part.indices, read)

    def see(self, part, rows):
        """The regions of b images, and what is to be predicted of them."""
        seen = placement.see(self.regions, rows, part.whole)
        mask = seen.pop('mask')
        batch = seen if mask.all() else seen | {'visual_attention_mask': mask}
        if not self.options.taskObjPredict:
            return batch
        o = mask.shape[1]
        draws = self.draw(part, REGIONS, 3 * self.regions.max_regions).reshape(len(rows), -1, 3)[:, :o]
        predicted, zeroed, random = (chosen & mask for chosen in choose(draws[..., 0], self.options.objMaskRate))
        others = self.row[(draws[..., 1][random] * len(self.row)).astype(np.int64)]
        objects = {name: placement.widen(array, o) for name, array in self.regions.objects(rows).items()}
        return batch | objects | {
            'region_mask': predicted, 'regions_at': np.flatnonzero(predicted),
            'zeroed': zeroed, 'noise_at': np.flatnonzero(random), **placement.pick(self.regions, others, draws[..., 2][random])}

    def finish(self, batch):
        """A batch on the device, with visual_feats (b, o, f) float32, as the model is to see them, and obj_labels."""
        batch = placement.finish(self.regions, batch)
        features = batch.pop('features')
        if 'region_mask' not in batch:
            return batch | {'visual_feats': features}
        seen = features.masked_fill(batch.pop('zeroed')[..., None], 0.0)
        seen.view(-1, seen.shape[-1]).index_copy_(0, batch.pop('noise_at'), batch.pop('noise'))
        conf = {'obj': 'class_conf', 'attr': 'attribute_conf'}
        labels = {'obj': 'classes', 'attr': 'attributes'}
        obj_labels = {kind: (batch.pop(labels[kind]), batch.pop(conf[kind])) for kind in labels}
        return batch | {'visual_feats': seen, 'obj_labels': obj_labels | {'feat': (features, batch.pop('region_mask').float())}}


def load_sentences(spec, names, tokenizer, table, options, device):
    """The SentenceDataset of some splits, with what was left out said on the screen.

    names: what --train and the like call them; table: the answers of the answer head.
    Raises FileNotFoundError, RegionError or DataError.
    """
    splits = spec.named(names)
    columns = [open_columns(split.annotations, tokenizer, spec.max_length, options.storeRoot) for split in splits]
    limits = [None if split.whole else TINY if options.tiny else FAST if options.fast else None for split in splits]
    regions, whole = open_regions(splits, [np.unique(file.image_ids) for file in columns], limits, options.storeRoot)
    ids = [[img_id.decode() for img_id in file.image_ids.tolist()] for file in columns]
    if any(len(split.features) > 1 for split in splits):  # splits of their own may share images with other files, as COCO with VG
        say_twice(regions, list(set().union(*ids)), names)
    rows, lost = [], []
    for split, named, limit in zip(splits, ids, limits, strict=True):
        own = regions.rows(named)
        if not (own >= 0).any():
            raise DataError(f'{split.annotations}: none of its images has regions, {some(named)} among them; do they belong to '
                            f'{split.features[0]}?')
        chosen = np.unique(own[own >= 0])[:limit]  # rows are in file order
        if whole or limit is None or len(chosen) < limit:
            lost += [named[i] for i in np.flatnonzero(own < 0)]
        rows.append(np.where(np.isin(own, chosen), own, -1))
    if lost:
        print0(f'{len(lost):,} images of {names} have no regions ({some(lost)}): their sentences are skipped.')
    dataset = SentenceDataset(columns, placement.place(regions, options.featDevice, device), rows, tokenizer, table, options)
    if not len(dataset):
        raise DataError(f'{names}: no sentence is left whose image is among those used')
    if options.taskMatched and len(np.unique(dataset.row)) < 2:
        raise DataError(f'{names}: --taskMatched needs sentences of at least two images, found one')
    print0(f'{names}: {len(dataset):,} sentences on {len(np.unique(dataset.row)):,} images.')
    if options.taskQA:
        for file, places in zip(columns, dataset.answer_of, strict=True):
            counts = np.bincount(file.label_answer, minlength=len(places))
            unknown = [i for i in np.argsort(-counts, kind='stable').tolist() if places[i] == NO_LABEL]
            if unknown:
                print0(f'{file.folder.name}: {counts[unknown].sum():,} of {counts.sum():,} answers are not in the answer table '
                       f'({some([file.answers[i] for i in unknown])}): left out.')
    return dataset
