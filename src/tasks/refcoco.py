"""RefCOCO, RefCOCO+, RefCOCOg: which region does an expression describe? (Yu et al., Mao et al., 2016). The program behind
run/refcoco_{finetune,test}.bash."""

import json
import math
import sys
from collections import Counter

import torch

from annotations.dataset import TARGET_OVERLAP
from annotations.examples import ExampleSchema
from annotations.spec import DatasetSpec
from files.json_files import stream
from heads import overlaps
from tasks.program import main
from tasks.scoring import CORRECT, PredictionFaults, Scores, match_predictions, read_split
from tasks.task import Task, warn_same_predictions

SPLITS = ('train', 'val', 'testA', 'testB', 'plus_train', 'plus_val', 'plus_testA', 'plus_testB', 'g_train', 'g_val', 'g_test')
TYPES = {'answer_type': 'answer type', 'question_type': 'question type'}
STRICT = 'with areas without "+1"'  # the second accuracy


class RefCOCO(Task):
    """Chooses the region that an expression describes. It is right if its intersection over union with the annotated box is 0.5
    or more, with sides one pixel longer as in the test program of VL-BERT's code; also reported without that."""
    kind = 'refcoco'
    schema = ExampleSchema('ref_id', int, box='box')

    @staticmethod
    def spec(root):
        """Splits of RefCOCO; plus_...: of RefCOCO+; g_...: of RefCOCOg. All images are of train2014."""
        return DatasetSpec.from_dict({
            'kind': 'refcoco', 'name': 'refcoco', 'max_length': 20,
            'splits': {split: {'annotations': f'refcoco/{split}.json', 'features': ['mscoco_imgfeat/train2014_obj36.tsv'],
                               'images': 'images/train2014'}
                       for split in SPLITS}}, root, root)

    @staticmethod
    def submission(key, box):
        return {'ref_id': key, 'box': box}

    def predict(self, head, dataset, options, device, text='Evaluating'):
        self.k = min(self.k, dataset.regions.max_regions + dataset.whole_image)
        return super().predict(head, dataset, options, device, text)

    def validate(self, head, dataset, options, device):
        predictions = self.predict(head, dataset, options, device, 'Validating')
        warn_same_predictions(dataset, predictions)
        score, strict = self.score(dataset, predictions), self.strict(dataset, predictions)
        return score, f'{score:.2f} ({strict:.2f} {STRICT})', {'score': score, 'strict': strict}

    @staticmethod
    def strict(dataset, predictions):
        return 100 * float((dataset.target_overlaps(predictions[0][:, 0], pixel=0) >= TARGET_OVERLAP).mean())

    def table(self, dataset, predictions):
        return f'{super().table(dataset, predictions)}\n{STRICT}: {self.strict(dataset, predictions):.2f}'

    def predicted(self, dataset, indices):
        return dataset.box_lists(indices)

    @classmethod
    def evaluate(cls, predictions, annotations, subset=None):
        """The metrics of a file of predictions, see Scores.figures, and 'strict'. annotations: this project's json, whose
        expressions of one object are answered in this order; subset: a scoring.Subset of ids REF_ID-0, REF_ID-1, ..."""
        faults, scores, strict, count = PredictionFaults(predictions), Scores(), 0, 0
        boxes, numbers = read_predictions(predictions, faults), Counter()
        questions = (question._replace(id=numbered(question.id, numbers))
                     for question in read_split(annotations, cls.schema, TYPES))
        for question, score in match_predictions(questions, boxes, annotations, faults, is_right, subset):
            count += 1
            if score is not None:
                scores.add(score, question.types)
                strict += is_right(boxes[question.id], question.label, pixel=0)
        figures = scores.figures(count, 'boxes that overlap the annotated one by half, with "+1" as in the original test program')
        if 'accuracy' in figures:
            figures['strict'] = 100 * strict / figures['questions']
            figures['notes'].append(f'{STRICT}: {figures["strict"]:.2f}')
        return figures


def numbered(ref_id, numbers):
    """REF_ID-0 for the first expression or prediction of an object, REF_ID-1 for the next. numbers: Counter of those so far."""
    numbers[ref_id] += 1
    return f'{ref_id}-{numbers[ref_id] - 1}'


def is_right(box, target, pixel=1):
    """Whether a box is right, as a float. pixel: as of heads.overlaps."""
    box, target = (torch.tensor([one], dtype=torch.float64) for one in (box, target))
    return float(overlaps(box[None], target, pixel) >= TARGET_OVERLAP)


def read_predictions(path, faults):
    """{id of `numbered`: box} of a list [{"ref_id": ..., "box": ...}, ...]; adds invalid items to `faults`."""
    boxes, numbers = {}, Counter()
    for i, item in enumerate(stream(path, 'item', 'predictions')):
        key, box = (item.get('ref_id'), item.get('box')) if isinstance(item, dict) else (None, None)
        if type(key) is int and isinstance(box, list) and len(box) == 4 and all(
                type(side) in (int, float) and math.isfinite(side) for side in box):
            boxes[numbered(key, numbers)] = box
        else:
            faults.add('predictions that are not {"ref_id": a whole number, "box": [x1, y1, x2, y2] in pixels}',
                       f'number {i} is {json.dumps(item)[:100]}', CORRECT)
    return boxes


if __name__ == '__main__':
    sys.exit(main(RefCOCO))
