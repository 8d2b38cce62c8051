"""The batches of pre-training: sentences and regions, with masks, exchanged sentences and answers (LXMERT paper, section 3.1).

Whatever is drawn is a function of the seed, the epoch and an example's position in the epoch, never of the rank, of the size of a
batch, or of what ran before.
"""

import numpy as np
import torch

from annotations.pretraining_columns import open_columns
from annotations.sentences import NO_LABEL, ImageSentences, choose, open_images, uniform  # noqa: F401, uniform: for callers
from bert.tokenization import CLS, MASK, SEP
from dist import print0
from files.json_files import DataError, some
from regions import placement
from regions.arrays import OBJECTS

TINY, FAST = 500, 5000  # images of a split with --tiny and --fast, as in the original code
WORDS, REGIONS, ANSWERS, MATCHED, OTHERS = range(5)  # independent streams of draws; OTHERS and above: attempts


class SentenceDataset(ImageSentences):
    """n sentences with their images; dataset[a batches.MicroBatch] is a batch of b of them, with masks drawn for this batch:

    examples: b. input_ids, attention_mask and, of --taskMaskLM, masked_lm_labels (b, t) int64, cut to the longest sentence unless
    the shape is static, and words_at (m,) int64: indices in (b * t,) of the words that are predicted; of --taskMatched,
    matched_label (b,) int64; of --taskQA, ans (b,) int64; source (b,) int64, an index in `sources`; features (b, o, f) and boxes
    (b, o, 4) as from `regions.placement.gather_batch`; visual_attention_mask (b, o) bool, only where numbers of regions differ.
    Of --taskObjPredict also classes, attributes (b, o) int64, class_conf, attribute_conf (b, o) float32, region_mask (b, o) bool:
    the regions that are predicted, regions_at (p,) int64: their indices in (b * o,), zeroed (b, o) bool, noise_at (q,) int64:
    indices in (b * o,) of regions that get another region's features, noise (q, f), or, on the GPU, noise_places (q,).
    `to_device` makes visual_feats and obj_labels of these. A label of -1 is none.
    """

    def __init__(self, columns, regions, rows, tokenizer, table, options):
        """columns: the Columns of each file; rows: of each file the row in `regions` of each image, or -1 for one that is left
        out; table: the answers of the answer head, in order."""
        super().__init__(columns, regions, rows, options)
        self.table = table
        self.name_sources()
        place = {answer: i for i, answer in enumerate(table)}
        self.answer_of = [np.array([place.get(answer, NO_LABEL) for answer in file.answers], np.int64) for file in columns]
        self.vocabulary = len(tokenizer)
        self.mask_id, *self.kept = (tokenizer.vocab[token] for token in (MASK, CLS, SEP))

    def name_sources(self, first=()):
        """Numbers the sources of sentences: those of `first` in their order, then the others."""
        self.sources = list(dict.fromkeys((*first, *(source for file in self.columns for source in file.sources))))
        self.source_of = [np.array([self.sources.index(source) for source in file.sources], np.int64) for file in self.columns]

    def digest(self):
        return super().digest(np.array(self.table, np.str_))

    def learnable(self):
        """Whether any objective has something to predict."""
        options = self.options
        return (options.taskMatched or (options.taskMaskLM and options.wordMaskRate > 0)
                or (options.taskObjPredict and bool({'obj', 'attr'} & set(options.visualLosses.split(','))
                                                    or options.objMaskRate > 0))
                or (options.taskQA and any(
                    ((places[file.label_answer] != NO_LABEL) & (file.label_score > 0)).any()
                    for file, places in zip(self.columns, self.answer_of, strict=True))))

    def __getitem__(self, micro_batch):
        options, image = self.options, self.image_of(micro_batch.indices)
        batch, sentences = {}, micro_batch.indices
        matched = np.ones(len(sentences), bool)
        if options.taskMatched:
            matched = self.draw(micro_batch, MATCHED, 1)[:, 0] >= 0.5
            sentences = np.where(matched, sentences, self.of_other_images(micro_batch, self.row[image]))
            batch['matched_label'] = matched.astype(np.int64)
        batch |= self.words(micro_batch, sentences)
        batch['source'] = self.read_columns(
            micro_batch.indices, lambda file, rows, _: self.source_of[file][self.columns[file].source[rows]])
        if options.taskQA:
            batch['ans'] = np.where(matched, self.answers(micro_batch), NO_LABEL)
        batch |= self.region_inputs(micro_batch, self.row[image])
        tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}
        return {'examples': len(micro_batch.indices), **tensors}

    def of_other_images(self, micro_batch, rows):
        """An example of another image for each of the batch's images, all with the same probability."""
        others, wrong, attempt = np.zeros(len(rows), np.int64), np.ones(len(rows), bool), OTHERS
        while wrong.any():
            drawn = (self.draw(micro_batch, attempt, 1)[:, 0] * len(self)).astype(np.int64)
            others = np.where(wrong, drawn, others)
            wrong &= self.row[self.image_of(others)] == rows
            attempt += 1
        return others

    def words(self, micro_batch, sentences):
        """The token ids of the sentences of some examples, and which are to be predicted."""
        ids = self.read_columns(sentences, lambda file, rows, _: self.columns[file].input_ids[rows])  # (b, t)
        mask = ids != 0
        batch = {'input_ids': ids, 'attention_mask': mask}
        if self.options.taskMaskLM:
            draws = self.draw(micro_batch, WORDS, 2 * ids.shape[1])
            words = mask & ~np.isin(ids, self.kept)
            predicted, masked, random = (chosen & words for chosen in choose(draws[:, ::2], self.options.wordMaskRate))
            pieces = (draws[:, 1::2] * self.vocabulary).astype(np.int64)
            batch['input_ids'] = np.where(masked, self.mask_id, np.where(random, pieces, ids))
            batch['masked_lm_labels'] = np.where(predicted, ids, NO_LABEL)
        length = ids.shape[1] if micro_batch.static_shape else np.flatnonzero(mask.any(0))[-1] + 1
        batch = {name: array[:, :length] for name, array in batch.items()}
        if self.options.taskMaskLM:
            batch['words_at'] = np.flatnonzero(batch['masked_lm_labels'] != NO_LABEL)
        return batch

    def answers(self, micro_batch):
        """An answer in the table for each example, drawn in proportion to the scores; -1 where there is none."""
        draws = self.draw(micro_batch, ANSWERS, 1)

        def read(file, rows, of_file):
            columns = self.columns[file]
            starts = columns.label_start[rows]
            counts = columns.label_start[rows + 1] - starts
            real = np.arange(max(counts.max(), 1)) < counts[:, None]  # (examples of the file, most answers of one)
            labels = (starts[:, None] + np.arange(real.shape[1]))[real]
            answers, scores = np.full(real.shape, NO_LABEL), np.zeros(real.shape)
            answers[real], scores[real] = self.answer_of[file][columns.label_answer[labels]], columns.label_score[labels]
            ends = np.cumsum(np.where(answers == NO_LABEL, 0, scores), 1)
            chosen = (ends <= draws[of_file] * ends[:, -1:]).sum(1).clip(max=real.shape[1] - 1)
            return np.where(ends[:, -1] > 0, answers[np.arange(len(of_file)), chosen], NO_LABEL)

        return self.read_columns(micro_batch.indices, read)

    def region_inputs(self, micro_batch, rows):
        """The regions of b images, and which are to be predicted."""
        batch = placement.gather_batch(self.regions, rows, micro_batch.static_shape)
        mask = batch.pop('mask')
        if not mask.all():
            batch['visual_attention_mask'] = mask
        if not self.options.taskObjPredict:
            return batch
        o = mask.shape[1]
        draws = self.draw(micro_batch, REGIONS, 3 * self.regions.max_regions).reshape(len(rows), -1, 3)[:, :o]
        predicted, zeroed, random = (chosen & mask for chosen in choose(draws[..., 0], self.options.objMaskRate))
        others = self.row[(draws[..., 1][random] * len(self.row)).astype(np.int64)]
        labels = {name: placement.pad_regions(array, o) for name, array in self.regions.read(rows, OBJECTS).items()}
        return batch | labels | {
            'region_mask': predicted, 'regions_at': np.flatnonzero(predicted), 'zeroed': zeroed,
            'noise_at': np.flatnonzero(random), **placement.gather_noise(self.regions, others, draws[..., 2][random])}

    def to_device(self, batch):
        """A batch whose tensors are on the device, with visual_feats (b, o, f) float32, as the model is to read them, and
        obj_labels."""
        batch = placement.to_device(self.regions, batch)
        features = batch.pop('features')
        if 'region_mask' not in batch:
            return batch | {'visual_feats': features}
        visual_feats = features.masked_fill(batch.pop('zeroed')[..., None], 0.0)
        visual_feats.view(-1, visual_feats.shape[-1]).index_copy_(0, batch.pop('noise_at'), batch.pop('noise'))
        conf = {'obj': 'class_conf', 'attr': 'attribute_conf'}
        labels = {'obj': 'classes', 'attr': 'attributes'}
        obj_labels = {kind: (batch.pop(labels[kind]), batch.pop(conf[kind])) for kind in labels}
        obj_labels['feat'] = features, batch.pop('region_mask').float()
        return batch | {'visual_feats': visual_feats, 'obj_labels': obj_labels}


def image_limit(options):
    """How many images of a split pre-training uses; None: all."""
    return TINY if options.tiny else FAST if options.fast else None


def load_sentences(spec, names, tokenizer, table, options, device):
    """The SentenceDataset of some splits; what was left out is printed.

    names: the value of --train and the like; table: the answers of the answer head.
    Raises FileNotFoundError, RegionError or DataError.
    """
    splits = {name: spec.splits[name] for name in spec.names(names)}
    texts = {name: open_columns(split.annotations, tokenizer, spec.max_length, options.storeRoot)
             for name, split in splits.items()}
    columns = list(texts.values())
    regions, rows = open_images(splits.values(), columns, names, image_limit(options), options.storeRoot)
    dataset = SentenceDataset(columns, placement.place(regions, options.featDevice, device), rows, tokenizer, table, options)
    dataset.describe(names, texts, tokenizer.vocab_file)
    if options.taskMatched and len(np.unique(dataset.row)) < 2:
        raise DataError(f'{names}: --taskMatched needs sentences of at least two images, found one; leave the flag out')
    for name, file in texts.items():
        if options.taskQA and not (file.label_score > 0).any():
            print0(f'Warning: {name}: no sentence has an answer: --taskQA learns nothing from it. Leave the flag out, or add '
                   f'labelf to {splits[name].annotations}.')
    if options.taskQA:
        for file, places in zip(columns, dataset.answer_of, strict=True):
            counts = np.bincount(file.label_answer, minlength=len(places))
            unknown = [i for i in np.argsort(-counts, kind='stable').tolist() if places[i] == NO_LABEL]
            if unknown:
                print0(f'{file.folder.name}: {counts[unknown].sum():,} of {counts.sum():,} answers are not in the answer table '
                       f'({some([file.answers[i] for i in unknown])}): left out.')
    return dataset
