"""VQA v2: answering questions about images (Goyal et al., 2017). The program behind run/vqa_{finetune,test}.bash."""

import sys

from annotations.spec import DatasetSpec
from tasks.program import main
from tasks.task import Task

IMAGES = {'train': 'train2014', 'nominival': 'val2014', 'minival': 'val2014', 'valid': 'val2014',
          'test': 'test2015', 'test-dev': 'test2015'}


class VQA(Task):
    """The answer with the highest score out of 3,129, trained on soft scores."""

    kind = 'vqa'

    @staticmethod
    def spec(root):
        return DatasetSpec.from_dict({
            'kind': 'vqa', 'name': 'vqa', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json',
            'splits': {split: {'annotations': f'vqa/{split}.json', 'features': [f'mscoco_imgfeat/{images}_obj36.tsv']}
                       for split, images in IMAGES.items()},
        }, root, root)

    @staticmethod
    def submission(key, answer):
        return {'question_id': key, 'answer': answer}


if __name__ == '__main__':
    sys.exit(main(VQA))
