"""NLVR v1: is a statement true of a picture of three boxes? (Suhr et al., 2017). The program behind run/nlvr.bash."""

import re
import sys

from annotations.examples import ExampleSchema
from annotations.spec import DatasetSpec
from tasks.nlvr2 import all_correct
from tasks.program import main
from tasks.task import Task

# The corpus's identifier n-m (statement n, presentation m) in ours, with its split, and in train with the order of the boxes.
IDENTIFIER = re.compile(r'(?:nlvr-(?P<split>\w+)-)?(?P<statement>\d+)-(?P<place>\d+)(?:-p(?P<order>\d))?')


class NLVR(Task):
    """Classifies a statement as false or true, with one image per statement."""

    kind = 'nlvr'
    schema = ExampleSchema('identifier', str, ('img_id',), ('false', 'true'))

    @staticmethod
    def spec(root):
        return DatasetSpec.from_json(root / 'nlvr/made/dataset.json')

    @staticmethod
    def submission(key, answer):
        return {'identifier': key, 'prediction': answer}

    def files(self, split):
        return super().files(split) | {f'{split}_predict.csv': self.dump_official}

    @staticmethod
    def dump_official(dataset, predictions, path):
        """Writes lines `identifier,true` with the corpus's identifiers, as its metrics_structured_rep.py reads them, and for all
        orders of the boxes with the names of the pictures, as metrics_images.py does."""
        rows = zip(dataset.examples.names(), predictions[0][:, 0].tolist(), strict=True)
        with open(path, 'w', encoding='utf-8') as file:
            file.writelines(f'{official(key)},{dataset.answers[index]}\n' for key, index in rows)

    def table(self, dataset, predictions):
        """The accuracy and, if the identifiers have the corpus's format, the consistency."""
        table, keys = super().table(dataset, predictions), map(IDENTIFIER.fullmatch, dataset.examples.names())
        if not all(keys := list(keys)):
            return table
        share = all_correct([key['statement'] for key in keys], dataset.scores(predictions[0][:, 0]) == 1)
        return f'{table}\nConsistency (statements classified correctly for all of their pictures): {share:.2f}'


def official(key):
    """The corpus's identifier of one of ours: nlvr-dev-9-0 is 9-0, nlvr-train-9-0-p3 the picture train-9-0-3.png."""
    match = IDENTIFIER.fullmatch(key)
    if not match:
        return key
    name = f'{match["statement"]}-{match["place"]}'
    return name if match['order'] is None else f'{match["split"] or "train"}-{name}-{match["order"]}.png'


if __name__ == '__main__':
    sys.exit(main(NLVR))
