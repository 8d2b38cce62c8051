"""NLVR v1: is a statement true of a picture of three boxes? (Suhr et al., 2017). The program behind run/nlvr.bash."""

import sys

from annotations.examples import Form
from annotations.spec import DatasetSpec
from tasks.program import main
from tasks.task import Answering


class NLVR(Answering):
    """False or true, one picture a statement."""

    kind = 'nlvr'
    form = Form('identifier', str, ('img_id',), ('false', 'true'))
    loss, factor = 'CE', 1

    @staticmethod
    def spec(root):
        return DatasetSpec.from_json(root / 'nlvr/made/dataset.json')

    @staticmethod
    def submission(key, answer):
        return {'identifier': key, 'prediction': answer}


if __name__ == '__main__':
    sys.exit(main(NLVR))
