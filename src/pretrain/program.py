"""Pre-training LXMERT on sentences and regions (paper, section 3). The program behind run/lxmert_pretrain.bash."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from annotations.answer_table import read_table, transfer_answers
from annotations.pretraining import load_sentences
from annotations.pretraining_text import KIND
from annotations.spec import DatasetSpec
from bert.tokenization import BertTokenizer
from dist import print0
from files.json_files import DataError
from lxrt.config import LxrtConfig
from lxrt.pretraining import LXRTPretraining, label_counts
from lxrt.weights import answer_head, load_bert, load_lxmert, load_pretraining
from param import Options
from run_folder import RunFolder
from tasks import start
from tasks.snapshot import answers_beside
from train import evaluate_losses, say_if_blind

FEATURES = {'mscoco_train': 'mscoco_imgfeat/train2014', 'mscoco_nominival': 'mscoco_imgfeat/val2014',
            'mscoco_minival': 'mscoco_imgfeat/val2014', 'vgnococo': 'vg_gqa_imgfeat/vg_gqa'}
FLAGS = ('taskMaskLM', 'taskMatched', 'taskObjPredict', 'taskQA')
ARGUMENTS = ('input_ids', 'attention_mask', 'masked_lm_labels', 'visual_feats', 'obj_labels', 'matched_label', 'ans',
             'visual_attention_mask')  # of the model, which a batch has or not
CLASSES = {'classes': 'num_object_labels', 'attributes': 'num_attr_labels'}


class Pretraining:
    """Up to five objectives at once: masked words, matching, region features, region labels, and question answering."""

    warmup, clip = 0.05, 1.0  # share of the steps; highest norm of the gradient (as in the original code)
    best_name, epoch_name = 'BEST_EVAL_LOSS_LXRT.pth', 'Epoch{:02d}_LXRT.pth'  # snapshots

    def __init__(self, model, sources):
        """sources: the names of the sources of sentences, in the order of the training data's."""
        self.model, self.sources = model, sources

    @staticmethod
    def counts(parts):
        """What each loss is a mean over, in some parts of a step."""
        counts = {}
        for part in parts:
            found = label_counts(part['boxes'], part.get('masked_lm_labels'), part.get('matched_label'), part.get('ans'),
                                 part.get('visual_attention_mask'))
            counts = {name: counts.get(name, 0) + count for name, count in found.items()}
        return counts

    @staticmethod
    def logits(model, batch):
        """What the model makes of each pair as a whole: the pooled vectors (b, d)."""
        seen = batch['visual_feats'], batch['boxes']
        return model.bert(batch['input_ids'], None, batch['attention_mask'], seen, batch.get('visual_attention_mask'))[1]

    def losses(self, model, batch, counts):
        """({loss: share of the whole batch's}, {'asked SOURCE', 'right SOURCE': how many questions})."""
        losses, logits = model(**{name: batch.get(name) for name in ARGUMENTS}, pos=batch['boxes'], counts=counts,
                               predicted={'words': batch.get('words_at'), 'regions': batch.get('regions_at')})
        tallies = {}
        if 'ans' in batch:
            asked = batch['ans'] != -1
            for what, chosen in (('asked', asked), ('right', asked & (logits.argmax(1) == batch['ans']))):
                # Not bincount, which waits for the device to tell it the largest source.
                counted = chosen.new_zeros(len(self.sources), dtype=torch.double).index_add_(0, batch['source'], chosen.double())
                tallies |= {f'{what} {source}': counted[i] for i, source in enumerate(self.sources)}
        return losses, tallies

    def report(self, sums):
        """The mean losses of an epoch of training, with the accuracy of its answers."""
        steps = max(sums.get('steps', 0), 1)
        return self.told({name.removeprefix('loss/'): value / steps for name, value in sums.items() if 'loss/' in name}, sums)

    def validate(self, dataset, options, device):
        """The same of a dataset; its score is the loss, negated."""
        losses, sums = evaluate_losses(self, dataset, options, device)
        return -sum(losses.values()), *self.told(losses, sums)

    def told(self, losses, sums):
        """(text, {name: number}) of {loss: mean} and of the sums of what was asked and right."""
        figures = {'loss': sum(losses.values()), **losses}
        text = f'{self.shown(-figures["loss"])} ({", ".join(f"{name} {value:.4f}" for name, value in losses.items())})'
        asked = {source: sums.get(f'asked {source}', 0) for source in self.sources}
        right = {source: sums.get(f'right {source}', 0) for source in self.sources}
        if any(asked.values()):
            figures['QA accuracy'] = 100 * sum(right.values()) / sum(asked.values())
            each = {source: 100 * right[source] / count for source, count in sorted(asked.items()) if count}
            figures |= {f'QA accuracy of {source}': value for source, value in each.items()}
            by_source = ", ".join(f"{source} {value:.2f}" for source, value in each.items())
            text += f', QA accuracy {figures["QA accuracy"]:.2f} ({by_source})'
        return text, figures

    @staticmethod
    def shown(score):
        return f'loss {-score:.4f}'


def published(root):
    """The DatasetSpec of the pre-training data of the paper below a data folder."""
    return DatasetSpec.from_dict({
        'kind': KIND, 'name': 'pre-training', 'max_length': 20, 'answers': 'lxmert/all_ans.json',
        'splits': {split: {'annotations': f'lxmert/{split}.json', 'features': [f'{features}_obj36.tsv']}
                   for split, features in FEATURES.items()},
    }, root, root)


@dataclass
class Program:
    """A pre-training run with all that it reads and writes."""

    options: Options
    device: torch.device
    folder: RunFolder
    spec: DatasetSpec
    weights: Path | None  # to start from
    bert: Path  # folder of vocabulary, config and perhaps BERT's weights
    config: LxrtConfig
    tokenizer: BertTokenizer
    answers: list  # the answer table, in the order of the answer head; empty without --taskQA

    @classmethod
    def prepare(cls, options, device):
        """Reads what is small, so that a fault in it is found before anything large is touched."""
        check_flags(options)
        spec = DatasetSpec.from_json(options.dataset) if options.dataset else published(Path(options.dataRoot))
        if spec.kind != KIND:
            raise DataError(f'{options.dataset}: key "kind": expected "{KIND}" for this program, found "{spec.kind}"')
        for flag in ('train', 'valid') if options.valid else ('train',):
            spec.named(getattr(options, flag), flag)
        answers = read_table(spec.answers, options.qaSets and options.qaSets.split(',')) if options.taskQA else []
        weights = start.starting_weights(options)
        bert = start.bert_folder(options, weights)
        config = start.read_config(bert, options)
        if spec.max_length > config.max_position_embeddings:
            raise DataError(f'sentences of {spec.max_length} tokens do not fit the model: max_position_embeddings is '
                            f'{config.max_position_embeddings}')
        tokenizer = start.read_tokenizer(bert, config)
        if weights:
            start.check_weights(options, weights, config, tokenizer, answers)
        return cls(options, device, RunFolder(options.output), spec, weights, bert, config, tokenizer, answers)

    def run(self):
        beside = start.files_beside(self.config, self.tokenizer, self.answers)
        start.train(self.options, self.folder, beside, self.make, self.device)

    def make(self):
        """The task, the training set, and that of --valid or None."""
        model = build_model(self.options, self.config, self.weights, self.bert, self.answers)
        model = start.place(model, self.options, self.device)
        train_set, valid_set = (self.load(names) if names else None for names in (self.options.train, self.options.valid))
        if valid_set is not None:  # sources are counted by their place
            valid_set.name_sources(train_set.sources)
        task = Pretraining(model, (valid_set or train_set).sources)
        if self.weights and not self.options.resume:
            say_if_blind(task, train_set, self.options, self.device)
        return task, train_set, valid_set

    def load(self, names):
        dataset = load_sentences(self.spec, names, self.tokenizer, self.answers, self.options, self.device)
        regions = dataset.regions
        start.check_features(regions, self.config, names, self.bert)
        for store in getattr(regions, 'stores', [regions]) if self.options.taskObjPredict else ():
            for name, size in CLASSES.items():
                if (most := int(store.arrays[name].max(initial=0))) >= (expected := getattr(self.config, size)):
                    raise DataError(f'{store.name}: has {name} up to {most}, but the model knows {expected} ({size} in '
                                    f'{self.bert / "config.json"})')
        return dataset


def check_flags(options):
    """Raises ValueError for flags that mean nothing here, or no objective."""
    if not any(getattr(options, flag) for flag in FLAGS):
        raise ValueError(f'nothing to learn: give some of {", ".join(f"--{flag}" for flag in FLAGS)}')
    if options.taskObjPredict and not options.visualLosses:
        raise ValueError('--taskObjPredict: --visualLosses names nothing to predict of regions')
    for flag in ('test', 'loadLXMERTQA', 'mceLoss', 'dumpProbs', 'allowMissing'):
        if getattr(options, flag):
            raise ValueError(f'--{flag}: has no meaning in pre-training')
    if options.transferAnswers and not options.taskQA:
        raise ValueError('--transferAnswers: has a meaning only with --taskQA')


def build_model(options, config, weights, folder, answers):
    """An LXRTPretraining with its starting weights, drawn from --seed where they are random.

    weights: the file to start from, or None; folder: where BERT's weights may lie; answers: the answer table (list of str).
    """
    torch.manual_seed(options.seed)
    model = LXRTPretraining(config, options.taskMaskLM, options.taskMatched, options.taskObjPredict, options.visualLosses,
                            options.taskQA, len(answers))
    # Which weights win: 1. a run state (--resume, later and over all of these), 2. --load, 3. --loadLXMERT, 4. --fromScratch,
    # 5. BERT's, for the language layers and the heads of words.
    if options.load:
        report, state = load_pretraining(model, weights, answers=not options.transferAnswers)
        print0(report)
        if options.transferAnswers:
            head = answer_head(state, weights)
            copied, new = transfer_answers(model.answer_head.logit_fc, head, answers_beside(weights), answers)
            print0(f'Answer head: {copied} answers from the head there, {new} start at 0.')
    elif weights:
        print0(load_lxmert(model, weights)[0])
    elif not options.fromScratch:
        print0(load_bert(model, start.bert_weights(folder)))
    return model


if __name__ == '__main__':
    sys.exit(start.run(Program.prepare))
