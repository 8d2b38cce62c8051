"""NLVR2: is a statement true of two photographs? (Suhr et al., 2019). The program behind run/nlvr2_{finetune,test}.bash."""

import sys

from annotations.examples import PAIR
from annotations.spec import DatasetSpec
from tasks.metrics import consistency
from tasks.program import main
from tasks.task import Task

SPLITS = ('train', 'valid', 'test', 'hidden')


class NLVR2(Task):
    """False or true; each image is encoded with the statement, and the two pooled vectors are judged together."""

    kind = 'nlvr2'
    schema = PAIR
    suffix = 'csv'

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'nlvr2', 'name': 'nlvr2', 'max_length': 20,
            'splits': {split: {'annotations': f'nlvr2/{split}.json', 'features': [f'nlvr2_imgfeat/{split}_obj36.tsv']}
                       for split in SPLITS},
        }, root, root)

    def table(self, dataset, predictions):
        """The accuracy and, where identifiers are like NLVR2's, the consistency."""
        right = dataset.scores(predictions[0][:, 0]) == 1
        try:
            share = consistency(dataset.examples.names(), right)
            groups = f'\nConsistency (statements judged rightly about all of their pairs): {share:.2f}'
        except ValueError:  # identifiers of another dataset
            groups = ''
        return super().table(dataset, predictions) + groups

    @classmethod
    def write(cls, path, rows):
        """Writes (identifier, True or False) rows as the leaderboard takes them, and returns how many."""
        with open(path, 'w', encoding='utf-8') as file:
            return sum(bool(file.write(f'{key},{answer}\n')) for key, answer in rows)


if __name__ == '__main__':
    sys.exit(main(NLVR2))
