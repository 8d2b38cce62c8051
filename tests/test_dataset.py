"""A dataset of one's own: its description, run/check_dataset.bash, and the walk-through of data/README.md."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import ROOT, SHARED, SMALL

from annotations import pretraining_text
from annotations.examples import PAIR, QUESTION, TEXT_QUESTION
from annotations.spec import DatasetSpec
from bert.tokenization import SPECIAL_TOKENS
from files.json_files import DataError
from regions import store, tsv
from tasks.registry import TASKS, task_class
from tools import check_dataset

SECTIONS = re.split(r'^(?=##+ )', (ROOT / 'data/README.md').read_text(), flags=re.M)
DESCRIBED = {'kind': 'vqa', 'name': 'mine', 'max_length': 5, 'answers': 'answers.json', 'splits': {
    'train': {'annotations': 'train.json', 'features': ['a.tsv', 'b.tsv']},
    'dev': {'annotations': 'dev.json', 'features': ['b.tsv']}}}


def blocks(heading, language):
    """The fenced blocks of a section of data/README.md."""
    section, = (part for part in SECTIONS if re.match(f'##+ {re.escape(heading)}\n', part))
    return re.findall(f'```{language}\n(.*?)```', section, re.S)


def write_regions(path, *img_ids):
    ids, conf = np.zeros(1, np.int64), np.zeros(1, np.float32)
    tsv.write(path, (tsv.ImageRegions(img_id, 9, 9, ids, conf, ids, conf, np.float32([[0, 0, 5, 5]]), np.float32([[1, 2]]))
                     for img_id in img_ids))


def save(path, value):
    path.write_text(json.dumps(value))
    return path


def question(number, image, sent='is it', **others):
    return {'question_id': number, 'img_id': image, 'sent': sent, **others}


@pytest.fixture
def mine(tmp_path):
    """The folder of a dataset with regions of images 1, 2 (a.tsv) and 3, 4 (b.tsv), a vocabulary, and a text for BERT's."""
    write_regions(tmp_path / 'a.tsv', '1', '2')
    write_regions(tmp_path / 'b.tsv', '3', '4')
    save(tmp_path / 'answers.json', ['yes', 'no'])
    (tmp_path / 'vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, 'is', 'it', 'red', 'a']) + '\n')
    save(tmp_path / 'train.json', [question(10, '1', 'is it red', label={'yes': 1, 'maybe': 0.3}),
                                   question(11, '1', 'is it a red', label={'maybe': 1}), question(12, '9', label={'no': 0.5})])
    save(tmp_path / 'dev.json', [question(20, '3'), question(21, '4', 'is it a red'), question(22, '3', 'is it a red')])
    return tmp_path


@pytest.fixture
def check(mine, capsys):
    """check(description, flags): the program on mine/mine.json; returns (exit status, its lines without the folder)."""
    def run(described, *flags):
        status = check_dataset.main([str(save(mine / 'mine.json', described)), *flags])
        return status, capsys.readouterr().out.replace(f'{mine}/', '').splitlines()
    return run


def test_questions_are_counted_split_by_split(mine, check):
    status, lines = check(DESCRIBED, '--bert', str(mine))
    assert (status, lines) == (0, [
        'train: 3 sentences on 2 images, 3 with labels',
        '  text: 0.0 % of the word pieces are [UNK], 1 of 3 sentences have more than 5 tokens and are truncated.',
        '  2 answers are not in answers.json (maybe): left out',
        '  1 images have no regions (9): not trained on, and --test needs --allowMissing',
        '  3 images with regions have no sentences',
        'dev: 3 sentences on 2 images, 0 with labels',
        '  text: 0.0 % of the word pieces are [UNK], 2 of 3 sentences have more than 5 tokens and are truncated.',
        '  Warning: text: most sentences have more than 5 tokens, and what exceeds them is not read; the longest has 6: raise '
        'max_length.',
        '  0 images with regions have no sentences',
        'mine.json: 0 faults'])
    assert not list(mine.glob('*.store'))
    assert check(DESCRIBED)[1] == [line for line in lines if 'text: ' not in line and 'max_length' not in line]


def test_image_ids_come_from_a_store_where_there_is_one(mine, check):
    expected = check(DESCRIBED)
    store.open_regions(mine / 'a.tsv', mine / 'stores')
    store.open_regions(mine / 'b.tsv')
    (mine / 'b.tsv').unlink()  # gone; what was made of it is enough, also where other stores lie elsewhere
    assert check(DESCRIBED, '--storeRoot', str(mine / 'stores')) == expected
    assert check(DESCRIBED) == expected
    shutil.rmtree(mine / 'b.store')
    assert check(DESCRIBED, '--storeRoot', str(mine / 'stores'))[1][-1] == 'mine.json: 2 faults'


def test_statements_about_two_pictures(mine, check):
    pair = {'identifier': 'x', 'img0': '1', 'img1': '2', 'sent': 'is it'}
    save(mine / 'train.json', [{**pair, 'label': 1}, {**pair, 'identifier': 'y', 'img1': '8', 'label': 0}])
    described = {'kind': 'nlvr2', 'name': 'mine', 'max_length': 5,
                 'splits': {'train': {'annotations': 'train.json', 'features': ['a.tsv']}}}
    assert check(described) == (0, [
        'train: 2 sentences on 3 images, 2 with labels',
        '  1 images have no regions (8): not trained on, and --test needs --allowMissing',
        '  0 images with regions have no sentences', 'mine.json: 0 faults'])
    status, lines = check({**described, 'answers': 'answers.json'})
    assert status == 1 and 'key "answers": expected no such key, since nlvr2 answers False or True' in lines[0]
    assert check({**described, 'kind': 'nlvr'})[1][0] == (
        'mine.json: key "splits.train.annotations": train.json: example 0: key "img_id": expected an image id '
        "(text of 1 to 255 characters), found no such key among identifier, img0, img1, sent, label; correct the file")


TEXT = {'img_id': '3', 'sentf': {'mscoco': ['a red', 'is it a red'], 'vqa': ['is it', 'is it red', 'it']},
        'labelf': {'vqa': [{'Yes.': 1.0}, {'the yes': 0.3, 'seven': 1}, {}]}}


def test_sentences_of_pretraining(mine, check, monkeypatch):
    monkeypatch.setattr(check_dataset, 'CHUNK', 2)  # so that sentences are tokenised in several parts
    save(mine / 'train.json', [TEXT, {'img_id': '7', 'sentf': {'mscoco': ['it is a red']}}])
    save(mine / 'answers.json', [{'ans': 'yes', 'dsets': ['vqa']}, {'ans': '8', 'dsets': []}])
    described = {'kind': 'lxmert', 'name': 'mine', 'max_length': 5, 'answers': 'answers.json',
                 'splits': {'train': {'annotations': 'train.json', 'features': ['b.tsv']}}}
    assert check(described, '--bert', str(mine)) == (0, [
        'train: 6 sentences on 2 images, 3 with labels',
        '  text: 0.0 % of the word pieces are [UNK], 2 of 6 sentences have more than 5 tokens and are truncated.',
        '  1 answers are not in answers.json (7): left out',  # normalised as in the table: 'seven' is 7
        '  1 images have no regions (7): not trained on, and --test needs --allowMissing',
        '  1 images with regions have no sentences', 'mine.json: 0 faults'])
    save(mine / 'answers.json', [])
    assert 'annotations": all its 3 answers are not in answers.json (yes, 7); do they belong' in check(described)[1][1]
    save(mine / 'train.json', [TEXT, {**TEXT, 'sentf': {'vqa': ['it', 'is', 3]}}])
    assert check(described) == (1, ['mine.json: key "splits.train.annotations": train.json: example 1: key "sentf.vqa[2]": '
                                    'expected a sentence, found 3; correct the file', 'mine.json: 1 fault'])


def test_text_gives_each_sentence_with_its_source_and_label():
    assert pretraining_text.first_fault(TEXT) is None and list(pretraining_text.sentences(TEXT)) == [
        ('mscoco', 'a red', None), ('mscoco', 'is it a red', None), ('vqa', 'is it', {'Yes.': 1.0}),
        ('vqa', 'is it red', {'the yes': 0.3, 'seven': 1}), ('vqa', 'it', {})]


@pytest.mark.parametrize(('change', 'fault'), [
    ('x', ('img_id', "an object with img_id and sentf, found 'x'")),
    ({'img_id': 3}, ('img_id', 'an image id (text), found 3')),
    ({'img_id': 'a\tb'}, ('img_id', "an image id (text), found 'a\\tb'")),
    ({'sentf': ['it']}, ('sentf', "an object {source: [sentence, ...]}, found ['it']")),
    ({'sentf': None}, ('sentf', 'an object {source: [sentence, ...]}, found None')),
    ({'sentf': {'vqa': 'it'}}, ('sentf.vqa', "a list, as in {source: [sentence, ...]}, found 'it'")),
    ({'labelf': None}, ('labelf', 'an object {source: [{answer: score}, ...]}, found None')),
    ({'labelf': {'vqa': [{}]}}, ('labelf.vqa', 'a label for each of the 3 sentences of sentf.vqa, found 1')),
    ({'labelf': {'gqa': [{}]}}, ('labelf.gqa', 'a label for each of the 0 sentences of sentf.gqa, found 1')),
    ({'labelf': {'vqa': [{}, 'yes', {}]}}, ('labelf.vqa[1]', "an object {answer: score from 0 to 1}, found 'yes'")),
    ({'labelf': {'vqa': [{}, {}, {'a': 2}]}}, ('labelf.vqa[2]', "an object {answer: score from 0 to 1}, found {'a': 2}")),
])
def test_faults_of_pretraining_text_name_the_key(change, fault):
    assert pretraining_text.first_fault(TEXT | change if isinstance(change, dict) else change) == fault


def test_all_faults_of_a_dataset_are_told_at_once(mine, check):
    (mine / 'b.tsv').unlink()
    save(mine / 'answers.json', ['yes', 'yes'])
    save(mine / 'train.json', [question(1, '1'), question(1, '2')])
    (mine / 'dev.json').unlink()
    status, lines = check(DESCRIBED)
    assert status == 1 and [line.split(': ')[1] for line in lines if 'key' in line.split(': ')[1]] == [
        'key "answers"', 'key "splits.train.annotations"', 'key "splits.train.features[1]"', 'key "splits.dev.annotations"',
        'key "splits.dev.features[0]"']
    assert "answers.json: the answer 'yes' is listed twice" in lines[0]
    assert 'train.json: example 1: key "question_id": expected a new id (example 0 has the same), found 1' in lines[1]
    assert 'b.tsv: expected this file or its region store' in lines[2] and 'dev.json: no such file' in lines[3]
    assert lines[-1] == 'mine.json: 5 faults'


def test_files_that_do_not_belong_together_are_faults(mine, check):
    save(mine / 'train.json', [question(1, 'COCO_1', label={'teapot': 1}), question(2, 'COCO_2', label={'spout': 1})])
    status, lines = check(DESCRIBED)
    assert status == 1 and lines[1] == (
        'mine.json: key "splits.train.annotations": all its 2 answers are not in answers.json (teapot, spout); do they belong '
        'together?')
    assert lines[2].startswith('mine.json: key "splits.train.features": all 2 images have no regions (COCO_1, COCO_2): they name '
                               'images such as COCO_1, COCO_2, a.tsv has ')


@pytest.mark.parametrize(('change', 'message'), [
    ({'answer': 'answers.json'},
     'key "answer": there is no such key; expected kind, name, max_length, answers, splits, detector, made_from'),
    ({'kind': 'okvqa'},
     'key "kind": expected one of vqa, gqa, nlvr2, nlvr, classify, multilabel, entailment, refcoco, retrieval, vcr, '
     'lxmert, captions, found "okvqa"'),
    ({'kind': 'lxmert', 'answers': None}, 'key "answers": expected a text, found None'),
    ({'max_length': 2}, 'key "max_length": expected at least 3'),
    ({'splits': {'dev': []}},
     'key "splits.dev": expected an object with the keys annotations, features, images, boxes, whole, found []'),
    ({'splits': {'dev': {'annotation': 'dev.json', 'features': ['b.tsv']}}},
     'key "splits.dev.annotation": there is no such key; expected annotations, features, images, boxes, whole'),
    ({'splits': {'dev': {'annotations': 'dev.json', 'features': 'b.tsv'}}},
     'key "splits.dev.features": expected a list of paths, found \'b.tsv\''),
    ({'splits': {'dev': {'annotations': 'dev.json', 'features': ['b.tsv', 3]}}},
     'key "splits.dev.features[1]": expected a path, found 3'),
    ({'splits': {'dev': {'annotations': 'dev.json', 'features': ['b.tsv'], 'whole': 'no'}}},
     'key "splits.dev.whole": expected true or false, found \'no\''),
])
def test_a_faulty_description_names_the_key(check, change, message):
    status, lines = check(DESCRIBED | change)
    assert status == 1 and lines[0].startswith(f'mine.json: {message}') and lines[1] == 'mine.json: 1 fault'


def test_a_description_needs_answers_where_the_task_has_none_of_its_own(check):
    described = {key: value for key, value in DESCRIBED.items() if key != 'answers'}
    assert check(described) == (1, ['mine.json: key "answers": expected a path, found no such key', 'mine.json: 1 fault'])


def test_wrong_usage_and_a_missing_description(mine, capsys):
    with pytest.raises(SystemExit) as stopped:
        check_dataset.main(['--no-such-flag'])
    assert stopped.value.code == 2
    assert check_dataset.main([str(mine / 'nowhere.json')]) == 1
    assert 'nowhere.json: no such file' in capsys.readouterr().out
    assert check_dataset.main([str(save(mine / 'mine.json', DESCRIBED)), '--bert', str(mine / 'nowhere')]) == 1
    assert f'{mine}/nowhere: no such vocabulary' in capsys.readouterr().out


@pytest.mark.parametrize(('error', 'status', 'says'), [
    (KeyboardInterrupt, 130, 'interrupted'), (MemoryError, 1, 'error: there is not enough memory')])
def test_an_interrupted_check_has_no_traceback(mine, capsys, monkeypatch, error, status, says):
    monkeypatch.setattr(check_dataset, 'check', Mock(side_effect=error))
    assert check_dataset.main([str(save(mine / 'mine.json', DESCRIBED))]) == status
    assert capsys.readouterr().err.strip() == f'check_dataset.bash: {says}'


@pytest.mark.parametrize(('flags', 'message'), [
    (['--train', 'train', '--valid', 'minival'], '--valid minival: unknown split "minival" of mine; there are: train, dev'),
    (['--train', 'dev,trian'], '--train dev,trian: unknown split "trian" of mine; there are: train, dev'),
    (['--train', 'x', '--test', 'test', '--load', 'x'], '--test test: unknown split "test" of mine; there are: train, dev'),
])
def test_an_unknown_split_is_told_with_its_flag(mine, capsys, flags, message):
    from tasks.program import main

    path = save(mine / 'mine.json', DESCRIBED)
    assert main(task_class('vqa'), ['--device', 'cpu', '--output', str(mine / 'run'), '--dataset', str(path), *flags]) == 1
    assert capsys.readouterr().err.endswith(f'error: {message}\n')


def test_each_kind_has_its_class():
    assert {kind: task_class(kind).kind for kind in TASKS} == {kind: kind for kind in (
        'vqa', 'gqa', 'nlvr2', 'nlvr', 'classify', 'multilabel', 'entailment', 'refcoco', 'retrieval', 'vcr')}


def test_the_examples_of_the_readme_are_as_the_program_takes_them(tmp_path):
    forms = QUESTION, TEXT_QUESTION, PAIR, task_class('entailment').schema
    for form, block in zip(forms, blocks('Questions', 'json'), strict=True):
        example, = json.loads(block)
        assert form.first_fault(example) is None and form.scores(example)
    described = [json.loads(block) for heading in ('Questions and answers', 'Statements, true or false',
                                                   'Sentences for pre-training') for block in blocks(heading, 'json')]
    (statement,), (sentences,) = (block for block in described if isinstance(block, list))
    assert task_class('nlvr').schema.first_fault(statement) is None and pretraining_text.first_fault(sentences) is None
    specs = [DatasetSpec.from_dict(block, tmp_path, 'README.md') for block in described if isinstance(block, dict)]
    assert [spec.kind for spec in specs] == ['vqa', 'nlvr2', 'lxmert']


def test_the_walk_through_of_the_readme_runs(tmp_path):
    """As it stands there, but from random weights; 20 images, a question on each whether it is the red one."""
    folder, heading = tmp_path / 'repository', 'From a table of questions and a folder of features'
    mine, bert = folder / 'data/mine', folder / 'data/bert-base-uncased'
    for part in ('src', 'run'):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns('__pycache__'))
    (folder / '.venv').symlink_to(sys.prefix)
    (mine / 'features').mkdir(parents=True)
    bert.mkdir()
    (bert / 'vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, 'is', 'it', 'red', '?']) + '\n')
    (bert / 'config.json').write_text(json.dumps({**SMALL, 'visual_feat_dim': 6, 'vocab_size': 9}))
    with open(mine / 'questions.csv', 'w', newline='', encoding='utf-8') as file:
        table = csv.writer(file)
        table.writerow(['image', 'question', 'answer'])
        for number in range(20):
            # Odd pictures are red. 'Perhaps' comes once, and is no answer of the vocabulary then.
            table.writerow([f'img{number}', 'Is it red?', 'Perhaps' if number == 4 else 'Yes ' if number % 2 else 'no'])
            np.savez(mine / f'features/img{number}.npz', features=np.full((3, 6), number % 2, np.float32),
                     boxes=np.float32([[0, 0, 9, 9]] * 3), size=[10, 10])
    (mine / 'make.py').write_text(*blocks(heading, 'python'))
    commands = [line for block in blocks(heading, 'bash') for line in block.splitlines()]
    assert [command.split()[1] for command in commands] == [
        'run/regions.bash', 'data/mine/make.py', 'run/check_dataset.bash', 'run/vqa_finetune.bash', 'run/vqa_test.bash']
    more = {'run/vqa_finetune.bash': ' --fromScratch --epochs 1 --device cpu', 'run/vqa_test.bash': ' --device cpu'}
    printed = {}
    for command in commands:
        name = command.split()[1]
        run = subprocess.run(['bash', '-c', command + more.get(name, '')], cwd=folder, capture_output=True, text=True,
                             timeout=200, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        printed[name] = run.stdout
        assert run.returncode == 0, f'{command}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}'
    splits = {split: json.loads((mine / f'{split}.json').read_text()) for split in ('train', 'dev')}
    assert [len(splits[split]) for split in ('train', 'dev')] == [18, 2]
    assert {e['img_id']: e['label'] for examples in splits.values() for e in examples} == {
        f'img{i}': {'perhaps' if i == 4 else 'yes' if i % 2 else 'no': 1.0} for i in range(20)}
    assert json.loads((mine / 'label2ans.json').read_text()) == ['yes', 'no']
    told = printed['run/check_dataset.bash']
    assert 'train: 18 sentences on 18 images, 18 with labels\n' in told and '0 faults' in told
    assert 'Epoch 0: Valid' in printed['run/vqa_finetune.bash']
    predicted = json.loads((folder / 'snap/vqa/mine_results/dev_predict.json').read_text())
    assert [row['question_id'] for row in predicted] == [example['question_id'] for example in splits['dev']]


@pytest.mark.shared
def test_real_sentences_and_answers(tmp_path, capsys):
    """303 images of pre-training's minival with the published answers; the regions are of other images, which is told."""
    minival = {'annotations': f'{SHARED}/lxmert/mscoco_minival_withpi.json',
               'features': [f'{SHARED}/coco_regions/train2014_obj36.tsv']}
    described = {'kind': 'lxmert', 'name': 'real', 'max_length': 20, 'answers': f'{SHARED}/answers/lxmert/all_ans.json',
                 'splits': {'minival': minival}}
    images = json.loads((SHARED / 'lxmert/mscoco_minival_withpi.json').read_text())
    labelled = sum(len(labels) for image in images for labels in image['labelf'].values())
    assert check_dataset.main([str(save(tmp_path / 'real.json', described))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f'minival: 5,264 sentences on 303 images, {labelled:,} with labels'
    assert 'key "splits.minival.features": all 303 images have no regions' in lines[2]
    assert lines[-1].endswith('real.json: 1 fault')


def test_regions_may_be_named_by_their_store(tmp_path):
    split = {'annotations': 'a.json', 'features': ['b.tsv', 'c/d.store']}
    described = {'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'splits': {'dev': split}}
    spec = DatasetSpec.from_dict(described, tmp_path, 'mine.json')
    assert spec.splits['dev'].features == (tmp_path / 'b.tsv', tmp_path / 'c/d.tsv')


def test_an_item_of_the_description_that_is_no_object(tmp_path):
    with pytest.raises(DataError, match='expected an object with the keys kind, name'):
        DatasetSpec.from_dict([], tmp_path, 'mine.json')
