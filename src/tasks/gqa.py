"""GQA: compositional questions about images (Hudson & Manning, 2019). The program behind run/gqa_{finetune,test}.bash."""

import sys

from annotations.examples import TEXT_QUESTION
from annotations.spec import DatasetSpec
from tasks.program import main
from tasks.task import Task

TESTDEV = ('testdev', 'testdev_all')
SPLITS = ('train', 'train_all', 'valid', 'valid_all', *TESTDEV, 'submit')


class GQA(Task):
    """The answer with the highest score out of 1,842; one answer is right."""

    kind = 'gqa'
    schema = TEXT_QUESTION

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'gqa', 'name': 'gqa', 'max_length': 20, 'answers': 'gqa/trainval_label2ans.json',
            'splits': {split: {
                'annotations': f'gqa/{split}.json', 'whole': split in TESTDEV,
                'features': [f'vg_gqa_imgfeat/{"gqa_testdev" if split in TESTDEV else "vg_gqa"}_obj36.tsv'],
            } for split in SPLITS},
        }, root, root)

    @staticmethod
    def submission(key, answer):
        return {'questionId': key, 'prediction': answer}


if __name__ == '__main__':
    sys.exit(main(GQA))
