"""Image-text retrieval on COCO and Flickr30k (splits of Karpathy and Fei-Fei, 2015): which image belongs to a caption, and which
captions to an image? The program behind run/retrieval_{finetune,test}.bash."""

import sys
from pathlib import Path

from annotations.examples import ExampleSchema, read_examples, repeated_captions
from annotations.spec import DatasetSpec
from dist import print0, world_size
from files.json_files import DataError, write_list
from tasks import ranking
from tasks.program import main
from tasks.ranking import RECALLS, rank
from tasks.retrieval_files import numbered, read_ranks
from tasks.task import Task
from tasks.two_stage import recalls, rerank, similarities  # noqa: F401, for programs that rank images and texts of their own

FEATURES = {'coco_train': ('mscoco_imgfeat/train2014', 'mscoco_imgfeat/val2014'), 'coco_valid': ('mscoco_imgfeat/val2014',),
            'coco_test': ('mscoco_imgfeat/val2014',),
            **{f'flickr30k_{split}': ('flickr30k_imgfeat/flickr30k',) for split in ('train', 'valid', 'test')}}
VALIDATED = 200  # images of the validation after each epoch: all pairs of COCO's 5,000 would take hours
MEASURE = 'mean of the six recalls'


class Retrieval(Task):
    """Ranks images for captions and captions for images, by the score of each pair."""

    kind = 'retrieval'
    schema = ExampleSchema('img_id', str, captions=True)

    def __init__(self, options):
        super().__init__(options)
        self.most = VALIDATED if options.test is None else None
        if options.dumpProbs:
            raise ValueError('--dumpProbs: does not apply to retrieval, whose predictions are ranks; leave it out')
        if options.test is None and options.batchSize < 2 * options.accumulate * world_size():
            raise ValueError(f'--batchSize {options.batchSize}: expected at least 2 captions in each part of a step (of '
                             '--accumulate and processes), since the wrong images of a caption are those of others')

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'retrieval', 'name': 'retrieval', 'max_length': 40,
            'splits': {split: {'annotations': f'retrieval/{split}.json', 'features': [f'{name}_obj36.tsv' for name in names],
                               'images': [f'images/{Path(name).name}' for name in names]}
                       for split, names in FEATURES.items()},
        }, root, root)

    def predict(self, head, dataset, options, device, text='Evaluating'):
        """(ranks (n, 2), probabilities (n, 1)) of the captions, see tasks.ranking.rank."""
        if self.most is None:
            print0(*repetitions(dataset.examples))
        return rank(head, dataset, options, device, text, self.most)

    def report(self, sums):
        text, figures = super().report(sums)
        return f'{text} (right pairs among right and hard wrong ones)', figures

    def validate(self, head, dataset, options, device):
        ranks, _ = self.predict(head, dataset, options, device, 'Validating')
        figures, mean, _ = ranking.recalls(ranks, dataset.examples.images[:, 0])
        figures = {f'{what} R@{k}': value for (what, k), value in figures.items()}
        details = ', '.join(f'{name} {value:.2f}' for name, value in figures.items())
        return mean, f'{self.format_score(mean)} ({details})', figures | {'score': mean}

    @staticmethod
    def score(dataset, predictions):
        return ranking.recalls(predictions[0], dataset.examples.images[:, 0])[1]

    def table(self, dataset, predictions):
        """The recalls in both directions."""
        figures, mean, queries = ranking.recalls(predictions[0], dataset.examples.images[:, 0])
        lines = [f'{"":24s}   queries' + ''.join(f'{f"R@{k}":>8s}' for k in RECALLS)]
        lines += [f'{name:24s} {queries[what]:9,d}' + ''.join(f'{figures[what, k]:8.2f}' for k in RECALLS)
                  for what, name in (('text', 'texts for an image'), ('image', 'images for a text'))]
        return '\n'.join([*lines, f'{MEASURE:34s}{mean:8.2f}'])

    def dump(self, dataset, predictions, path):
        """Writes the ranks and the probability of each caption with its image."""
        rows = zip(numbered(dataset.examples.names()), predictions[0].tolist(), predictions[1][:, 0].tolist(), strict=True)
        write_list(path, ({'img_id': key, 'caption': number, 'image_rank': ranks[0], 'text_rank': ranks[1], 'match': round(p, 6)}
                          for (key, number), ranks, p in rows))

    @classmethod
    def evaluate(cls, predictions, annotations, subset=None):
        """The metrics of a file of ranks that `dump` wrote, see Scores.figures. annotations: this project's json."""
        if subset is not None and (subset.only is not None or subset.partial):
            raise DataError('--only and --subset: do not apply to retrieval: ranks are those among all captions and images')
        examples = read_examples([annotations], cls.schema, ())
        figures, mean, queries = ranking.recalls(read_ranks(predictions, examples, annotations), examples.images[:, 0])
        by = {f'{what} retrieval': {f'R@{k}': {'questions': queries[what], 'accuracy': figures[what, k]} for k in RECALLS}
              for what in queries}
        return {'questions': len(examples), 'accuracy': mean, 'by': by, 'measure': MEASURE, 'notes': repetitions(examples)}


def repetitions(examples):
    """Lines that count captions that occur more than once."""
    again, shared = repeated_captions(examples)
    return [f'{again:,} captions repeat one of the same image; {shared:,} are those of several images, of which one counts as '
            'right.'] if again or shared else []


if __name__ == '__main__':
    sys.exit(main(Retrieval))
