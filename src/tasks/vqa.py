"""VQA v2: answering questions about images (Goyal et al., 2017). The program behind run/vqa_{finetune,test}.bash."""

import json
import sys

import torch
import torch.nn.functional as F

from tasks.data import DatasetSpec
from tasks.program import main


class VQA:
    """The answer with the highest score out of a fixed vocabulary, trained on soft scores."""

    kind = 'vqa'
    id_type = int  # of question ids
    warmup, clip = 0.1, 5.0  # share of the steps; highest norm of the gradient (as in the original code)

    def __init__(self, model):
        self.model = model

    @staticmethod
    def spec(root):
        """The dataset's files below a data folder."""
        images = {'train': 'train2014', 'nominival': 'val2014', 'minival': 'val2014', 'valid': 'val2014', 'test': 'test2015'}
        return DatasetSpec.from_dict({
            'kind': 'vqa', 'name': 'vqa', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json',
            'splits': {split: {'annotations': f'vqa/{split}.json', 'features': [f'mscoco_imgfeat/{name}_obj36.tsv']}
                       for split, name in images.items()},
        }, root, root)

    @staticmethod
    def logits(model, batch):
        return model(batch['input_ids'], batch['features'], batch['boxes'], batch.get('visual_attention_mask')).float()

    @staticmethod
    def counts(parts):
        """What each loss is a mean over: the examples of a step's parts."""
        target = parts[0]['target']
        return {'BCE': target.new_tensor(sum(len(part['target']) for part in parts))}

    def losses(self, model, batch, counts):
        """({'BCE': share of the whole batch's loss}, sum of the predicted answers' soft scores).

        Binary cross entropy, mean over examples and answers, times the number of answers (as in the original code).
        """
        logits, target = self.logits(model, batch), batch['target']
        loss = F.binary_cross_entropy_with_logits(logits, target, reduction='sum') / counts['BCE']
        return {'BCE': loss}, target.gather(1, logits.detach().argmax(1, keepdim=True)).sum()

    def predict(self, model, batch):
        """Indices of the predicted answers, (b,)."""
        return self.logits(model, batch).argmax(1)

    @staticmethod
    def score(dataset, predictions):
        """Mean soft score of the predicted answers, per cent."""
        return 100 * float(dataset.scores(predictions).mean())

    @staticmethod
    def table(dataset, predictions):
        """The score by answer type and by question type, where the annotations have them, as a text."""
        scores = torch.from_numpy(dataset.scores(predictions))
        lines = [f'{"":24s} questions  share  score', f'{"all":24s} {len(scores):9d}  100.0  {100 * scores.mean():5.2f}']
        for key, types in dataset.types.items():
            found = sorted({kind for kind in types if kind is not None})
            if len(found) > 30:
                found = found[:0]  # VQA v2 has 65 question types; a table that long tells nothing
            for kind in found:
                chosen = torch.tensor([kind == other for other in types])
                lines.append(f'{key.split("_")[0] + ": " + kind:24s} {int(chosen.sum()):9d}  {100 * chosen.float().mean():5.1f}'
                             f'  {100 * scores[chosen].mean():5.2f}')
        return '\n'.join(lines)

    @staticmethod
    def dump(dataset, predictions, path):
        """Writes the leaderboard's file."""
        found = [{'question_id': key, 'answer': dataset.answers[answer]}
                 for key, answer in zip(dataset.question_ids, predictions, strict=True)]
        path.write_text(json.dumps(found, indent=0), encoding='utf-8')


if __name__ == '__main__':
    sys.exit(main(VQA))
