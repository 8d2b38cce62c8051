"""Bad input ends a run in its first seconds with a message that says where and what, or is skipped, counted and told."""

import json
import os
from unittest.mock import patch

import numpy as np
import pytest
import torch
from conftest import SMALL

from annotations.dataset import load_examples
from annotations.examples import read_examples
from bert.tokenization import BertTokenizer
from lxrt.config import LxrtConfig
from lxrt.heads import LxmertEncoder
from param import Options
from tasks.vqa import VQA


def edit(path, change):
    examples = json.loads(path.read_text())
    change(examples)
    path.write_text(json.dumps(examples))


def put(key, value):
    return lambda examples: examples[7].update({key: value})


def unlabel(examples):
    for example in examples:
        del example['label']


ANNOTATIONS = {
    'not_a_list': (lambda path: path.write_text('{}'), 'expected examples in a list'),
    'empty': (lambda path: path.write_text('[]'), 'found none'),
    'cut': (lambda path: path.write_bytes(path.read_bytes()[:-100]), 'incomplete or invalid json'),
    'missing': (lambda path: path.unlink(), 'no such file'),
    'no_sentence': (lambda path: edit(path, lambda examples: examples[7].pop('sent')), 'example 7: key "sent"'),
    'odd_id': (lambda path: edit(path, put('question_id', 'x')), 'example 7: key "question_id"'),
    'same_id': (lambda path: edit(path, lambda e: e[7].update(question_id=e[3]['question_id'])), 'example 3 has the same'),
    'odd_score': (lambda path: edit(path, put('label', {'yes': 2})), 'example 7: key "label"'),
    'some_labels': (lambda path: edit(path, lambda examples: examples[7].pop('label')), 'example 7: key "label"'),
    'no_labels': (lambda path: edit(path, unlabel), 'no labels'),
    'no_images': (lambda path: edit(path, lambda examples: [e.update(img_id='?') for e in examples]), 'none of its images has'),
    'odd_type': (lambda path: edit(path, put('answer_type', 3)), 'example 7: key "answer_type"'),
}


@pytest.mark.parametrize('fault', ANNOTATIONS)
def test_faulty_annotations_are_an_error_that_names_the_place(world, run_here, fault):
    spoil, message = ANNOTATIONS[fault]
    spoil(world / 'vqa/train.json')
    status, printed = run_here()
    assert status == 1 and message in printed.err and 'train' in printed.err, printed.err
    assert not (world.parent / 'run/LAST.pth').exists()


OTHER = {
    'no_features': (lambda world: (world / 'mscoco_imgfeat/train2014_obj36.tsv').unlink(), [], 'train2014_obj36.tsv'),
    'cut_features': (lambda world: cut(world / 'mscoco_imgfeat/train2014_obj36.tsv'), [], 'train2014_obj36.tsv:40'),
    'no_vocabulary': (lambda world: (world / 'bert/vocab.txt').unlink(), [], 'vocab.txt'),
    'short_vocabulary': (lambda world: (world / 'bert/vocab.txt').write_text('[PAD]\n[UNK]\n'), [], 'expected a line [CLS]'),
    'odd_config': (lambda world: edit_config(world, num_attention_heads=5), [], 'num_attention_heads 5'),
    'other_features': (lambda world: edit_config(world, visual_feat_dim=2048), [], 'visual_feat_dim'),
    'no_answers': (lambda world: (world / 'vqa/trainval_label2ans.json').unlink(), [], 'trainval_label2ans.json'),
    'no_split': (None, ['--train', ','], 'unknown split ","'),
    'unknown_split': (None, ['--train', 'trian'], 'unknown split "trian"'),
    'no_checkpoint': (None, ['--load', 'nowhere/BEST'], 'nowhere/BEST.pth: no such file'),
    'no_pretrained': (None, ['--loadLXMERTQA', 'nowhere/model'], 'nowhere/model_LXRT.pth: no such file'),
    'no_bert_weights': (None, ['--bert'], "with BERT's weights"),
    'no_dataset': (None, ['--dataset', 'nowhere.json'], 'nowhere.json: no such file'),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def edit_config(world, **values):
    path = world / 'bert/config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize('fault', OTHER)
def test_missing_or_unfit_files_are_an_error_that_names_them(world, run_here, fault):
    spoil, flags, message = OTHER[fault]
    if spoil:
        spoil(world)
    scratch = not any(flag in flags for flag in ('--load', '--loadLXMERTQA', '--bert'))
    flags = ['--bert', str(world / 'bert')] if flags == ['--bert'] else flags
    status, printed = run_here(*flags, scratch=scratch)
    assert status == 1 and message in printed.err, printed.err


@pytest.mark.parametrize(('flags', 'message'), [
    (['--load', 'a', '--loadLXMERT', 'b'], 'only one of them'), (['--tiny', '--fast'], 'only one of them'),
    (['--batchSize', '0'], '--batchSize'), (['--lr', '-1'], '--lr'), (['--dropout', '1'], '--dropout'),
    (['--test', 'minival'], '--load'), (['--batchSize', '256', '--accumulate', '400'], '--accumulate'),
    (['--epoch', '3'], 'unrecognized'),
    (['--optim', 'lion'], '--optim'), (['--train', ''], '--train'),
])
def test_wrong_flags_end_in_the_first_second(flags, message, capsys):
    from param import parse_args

    with pytest.raises(SystemExit) as stopped:
        parse_args(flags)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_an_unwritable_output_is_an_error(world, run_here):
    (world.parent / 'run').write_text('a file where the folder should be')
    status, printed = run_here()
    assert status == 1 and '--output' in printed.err


def test_questions_without_regions_and_unknown_answers_are_skipped_and_told(world, run_here):
    def spoil(examples):
        examples[3]['img_id'] = 'COCO_lost'
        examples[5]['label'] = {'a teapot': 1.0}

    edit(world / 'vqa/train.json', spoil)
    status, printed = run_here('--epochs', '1', '--valid', '')
    assert status == 0, printed.err
    assert '1 images without regions (COCO_lost): skipped' in printed.out
    assert '1 labels of train are no answers' in printed.out and 'a teapot' in printed.out
    total = len(json.loads((world / 'vqa/train.json').read_text()))
    assert f'train: {total - 1:,} questions' in printed.out


def test_a_submission_lacks_no_question(world, run_here):
    edit(world / 'vqa/test.json', lambda examples: examples[0].update(img_id='COCO_lost'))
    status, printed = run_here('--epochs', '1')
    assert status == 0, printed.err
    snapshot = str(world.parent / 'run/BEST')
    status, printed = run_here('--test', 'test', '--load', snapshot, scratch=False)
    assert status == 1 and '1 of' in printed.err and '--allowMissing' in printed.err
    status, printed = run_here('--test', 'test', '--load', snapshot, '--allowMissing', scratch=False)
    assert status == 0 and 'answered from the words alone' in printed.out
    assert len(json.loads((world.parent / 'run/test_predict.json').read_text())) == len(
        json.loads((world / 'vqa/test.json').read_text()))


def test_a_checkpoint_of_another_size_or_other_answers_is_refused(world, run_here):
    status, printed = run_here('--epochs', '1')
    assert status == 0, printed.err
    snapshot = world.parent / 'run/BEST'
    answers = json.loads((world / 'vqa/trainval_label2ans.json').read_text())
    (world / 'vqa/trainval_label2ans.json').write_text(json.dumps(answers[::-1]))
    status, printed = run_here('--test', 'minival', '--load', str(snapshot), scratch=False)
    assert status == 1 and 'another order' in printed.err
    (world / 'vqa/trainval_label2ans.json').write_text(json.dumps(answers))

    state = torch.load(f'{snapshot}.pth', weights_only=True)
    state['logit_fc.3.bias'] = state['logit_fc.3.bias'][:-1]
    torch.save(state, f'{snapshot}.pth')
    status, printed = run_here('--test', 'minival', '--load', str(snapshot), scratch=False)
    assert status == 1 and 'logit_fc.3.bias: expected' in printed.err


class Code:
    def __reduce__(self):
        return os.mkdir, ('made_by_a_checkpoint',)


def test_a_checkpoint_with_code_is_refused_and_not_run(world, run_here, tmp_path, monkeypatch):
    torch.save({'weight': Code()}, tmp_path / 'evil.pth')
    status, printed = run_here('--load', str(tmp_path / 'evil'), scratch=False)
    assert status == 1 and 'evil.pth' in printed.err
    assert not os.path.exists('made_by_a_checkpoint')


@pytest.mark.parametrize(('change', 'message'), [
    (lambda d: d.update(kind='gqa'), 'key "kind"'), (lambda d: d.pop('answers'), 'key "answers"'),
    (lambda d: d.update(max_length='20'), 'key "max_length"'),
    (lambda d: d['splits']['train'].pop('features'), 'key "splits.train.features"'),
])
def test_a_faulty_description_of_a_dataset_names_the_key(world, run_here, change, message):
    described = {'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json', 'splits': {
        'train': {'annotations': 'vqa/train.json', 'features': ['mscoco_imgfeat/train2014_obj36.tsv']}}}
    (world / 'mine.json').write_text(json.dumps(described))
    status, printed = run_here('--dataset', str(world / 'mine.json'), '--valid', '', '--epochs', '1')
    assert status == 0, printed.err
    change(described)
    (world / 'mine.json').write_text(json.dumps(described))
    status, printed = run_here('--dataset', str(world / 'mine.json'))
    assert status == 1 and 'mine.json' in printed.err and message in printed.err


def test_tiny_takes_the_first_images_of_each_split(world):
    encoder = LxmertEncoder(LxrtConfig(**SMALL), BertTokenizer.from_pretrained(world / 'bert'))
    spec, options = VQA.spec(world), Options()
    answers = spec.read_answers()
    for limit in (3, None):
        with patch.object(Options, 'image_limit', limit):
            both, *parts = (
                load_examples(spec, names, read_examples([split.annotations for split in spec.named(names)], VQA.schema, answers),
                               encoder, answers, options)
                for names in ('train,nominival', 'train', 'nominival'))
        images = [np.unique(part.rows) for part in parts]
        assert len(np.unique(both.rows)) == sum(map(len, images))
        assert len(both) == sum(map(len, parts))
        if limit:
            assert [len(rows) for rows in images] == [3, min(3, len(images[1]))]
            # In file order: the first rows that the split's questions name.
            names = {q['img_id'] for q in json.loads((world / 'vqa/train.json').read_text())}
            order = [line.split('\t')[0] for line in (world / 'mscoco_imgfeat/train2014_obj36.tsv').read_text().splitlines()]
            first = [i for i, name in enumerate(order) if name in names][:3]
            assert images[0].tolist() == first
