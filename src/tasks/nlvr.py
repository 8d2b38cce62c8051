"""NLVR v1: is a statement true of a picture of three boxes? (Suhr et al., 2017). The program behind run/nlvr.bash."""

import sys

from annotations.examples import ExampleSchema
from annotations.spec import DatasetSpec
from tasks.program import main
from tasks.task import Task


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


if __name__ == '__main__':
    sys.exit(main(NLVR))
