"""The official downloads turned into the project's json: on files written by hand, and on the real samples."""

import gzip
import json
import re
import resource
import subprocess
import sys
from collections import Counter

import pytest
from conftest import ROOT, SHARED, data_script

from annotations import raw_data
from annotations.examples import QUESTION, TEXT_QUESTION, read_examples
from files import json_files
from files.json_files import DataError

vqa, gqa, nlvr2, lxmert = (data_script(f'{name}/process_{name}') for name in ('vqa', 'gqa', 'nlvr2', 'lxmert'))


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == '.gz' else text.encode())
    return path


def load(path):
    return json.loads(path.read_text())


# ---- VQA ----

def question(key, image, text='Is it?'):
    return {'image_id': image, 'question': text, 'question_id': key}


def annotation(key, image, most, answers, kind='other'):
    """answers: {answer: number of people}"""
    people = [{'answer': answer, 'answer_id': 1, 'answer_confidence': 'yes'} for answer, n in answers.items() for _ in range(n)]
    return {'question_type': 'is it', 'multiple_choice_answer': most, 'answers': people, 'image_id': image, 'answer_type': kind,
            'question_id': key}


TRAIN_QUESTIONS = [question(10, 1, 'How many?'), question(11, 1), question(20, 2), question(21, 2)]
TRAIN_ANNOTATIONS = [
    annotation(10, 1, 'two', {'two': 4, '2': 3, '3.': 1, '3': 2}, 'number'),
    annotation(11, 1, 'yes', {'yes': 6, 'no': 4}, 'yes/no'),
    annotation(20, 2, 'The red', {'The red': 5, 'red': 1, 'Red': 4}),
    annotation(21, 2, 'a', {'a': 6, '3': 4})]
VAL_QUESTIONS = [question(30, 3), question(40, 4)]
VAL_ANNOTATIONS = [annotation(30, 3, 'yes', {'yes': 10}), annotation(40, 4, 'red', {'red': 2, 'dunno': 8})]


def vqa_files(folder, suffix='', **changed):
    """The official files of two small splits and test; changed: other content by name."""
    content = {'train_questions': TRAIN_QUESTIONS, 'train_annotations': TRAIN_ANNOTATIONS, 'val_questions': VAL_QUESTIONS,
               'val_annotations': VAL_ANNOTATIONS, 'test_questions': [question(50, 581929, 'Why?')], 'minival': [4]} | changed
    for split, year in (('train', 'train2014'), ('val', 'val2014'), ('test', 'test2015')):
        save(folder / f'v2_OpenEnded_mscoco_{year}_questions.json{suffix}', {'questions': content[f'{split}_questions']})
        if split != 'test':
            save(folder / f'v2_mscoco_{year}_annotations.json{suffix}', {'annotations': content[f'{split}_annotations']})
    save(folder / 'images.json', content['minival'])
    return folder


def make_vqa(folder, out, *flags):
    vqa.main(['--raw', str(folder), '--minival', str(folder / 'images.json'), '--least', '1', '--out', str(out), *flags])
    return out


def labels(path):
    return {example['question_id']: example['label'] for example in load(path)}


@pytest.mark.parametrize('suffix', ['', '.gz'])
def test_vqa(tmp_path, capsys, suffix):
    out = make_vqa(vqa_files(tmp_path / 'raw', suffix), tmp_path / 'made')
    # yes and red are the most common answer of two questions, 2 (typed as two) of one; 'a' is nothing once normalised.
    assert load(out / 'trainval_label2ans.json') == ['', 'red', 'yes', '2']
    assert load(out / 'trainval_ans2label.json') == {'': 0, 'red': 1, 'yes': 2, '2': 3}
    assert load(out / 'train.json')[0] == {
        'img_id': 'COCO_train2014_000000000001', 'question_id': 10, 'sent': 'How many?', 'label': {'2': 0.9},
        'answer_type': 'number', 'question_type': 'is it'}
    assert labels(out / 'train.json') == {10: {'2': 0.9}, 11: {'yes': 1}, 20: {'red': 0.3}, 21: {}}
    assert labels(out / 'nominival.json') == {30: {'yes': 1}} and labels(out / 'minival.json') == {40: {'red': 0.6}}
    assert load(out / 'test.json') == [{'img_id': 'COCO_test2015_000000581929', 'question_id': 50, 'sent': 'Why?'}]
    for name in ('train', 'nominival', 'minival', 'test'):
        assert len(read_examples([out / f'{name}.json'], QUESTION, ['yes']))
    said = capsys.readouterr().out
    assert 'v2_OpenEnded_mscoco_test-dev2015_questions.json is not in' in said
    # Of 40 answers: 3 of '2', 6 of yes, 1 of red; normalised also 4 of two, 5 of The red, 4 of Red, 6 of a.
    assert 'train: of 40 answers of annotators 10 are in the vocabulary, 19 more only if normalised' in said
    assert '1 questions have no label and are kept' in said
    assert sorted(path.name for path in out.iterdir()) == [
        'minival.json', 'nominival.json', 'test.json', 'train.json', 'trainval_ans2label.json', 'trainval_label2ans.json']


@pytest.mark.parametrize(('people', 'score'), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (5, 1), (10, 1)])
def test_soft_scores(people, score):
    assert vqa.soft_scores(['x'] * people + ['y'] * (10 - people), {'x'}) == {'x': score}


def test_vqa_vocabulary_counts_questions(tmp_path):
    """An answer must be the most common one of --least questions; how many people gave it counts for nothing."""
    out = make_vqa(vqa_files(tmp_path / 'raw'), tmp_path / 'made', '--least', '2')
    assert load(out / 'trainval_label2ans.json') == ['', 'red', 'yes']
    assert labels(out / 'train.json')[10] == {}


def test_vqa_like_keeps_answers_and_order(tmp_path):
    like = save(tmp_path / 'like.json', ['', 'no', 'unheard', '3', 'yes'])
    out = make_vqa(vqa_files(tmp_path / 'raw'), tmp_path / 'made', '--like', str(like))
    assert load(out / 'trainval_label2ans.json') == ['', 'no', 'unheard', '3', 'yes']
    assert labels(out / 'train.json') == {10: {'3': 0.6}, 11: {'yes': 1, 'no': 1}, 20: {}, 21: {'3': 1}}


def test_vqa_files_in_different_orders(tmp_path, capsys):
    folder = vqa_files(tmp_path / 'raw', train_annotations=TRAIN_ANNOTATIONS[::-1][:3] + [annotation(99, 1, 'x', {'x': 10})])
    out = make_vqa(folder, tmp_path / 'made')
    assert labels(out / 'train.json') == {11: {'yes': 1}, 20: {'red': 0.3}, 21: {}}
    said = capsys.readouterr().out
    for dropped in (r'questions dropped: \S+_annotations.json has nothing for their question_id \(such as 10\)',
                    r'annotations dropped: \S+_questions.json has nothing for their question_id \(such as 99\)'):
        assert re.search(f'train: 1 {dropped}', said)


@pytest.mark.parametrize('minival', [[4], ['COCO_val2014_000000000004'], [{'img_id': 'COCO_val2014_000000000004', 'sent': 'x'}]])
def test_vqa_minival_may_be_ids_or_questions(tmp_path, minival):
    out = make_vqa(vqa_files(tmp_path / 'raw', minival=minival), tmp_path / 'made')
    assert list(labels(out / 'minival.json')) == [40] and list(labels(out / 'nominival.json')) == [30]


def test_vqa_minival_by_seed(tmp_path):
    """5,000 images, which depend neither on the run nor on the order of the questions."""
    questions = [question(10 * image, image) for image in range(5003)]
    first, again = (vqa.choose_minival(None, save(tmp_path / f'{i}.json', {'questions': some}))
                    for i, some in enumerate((questions, questions[::-1])))
    assert first == again and len(first) == 5000
    assert first < {f'COCO_val2014_{image:012d}' for image in range(5003)}
    with pytest.raises(DataError, match=r'few\.json: expected more than the 5,000 images .*found 2; .*--minival FILE'):
        vqa.choose_minival(None, save(tmp_path / 'few.json', {'questions': VAL_QUESTIONS}))


def test_vqa_under_other_names(tmp_path, capsys):
    questions = save(tmp_path / 'q.json', {'questions': TRAIN_QUESTIONS})
    annotations = save(tmp_path / 'a.json', {'annotations': TRAIN_ANNOTATIONS})
    vqa.main(['--train', str(questions), str(annotations), '--testDev', str(questions), '--out', str(tmp_path / 'made')])
    assert load(tmp_path / 'made/trainval_label2ans.json') == ['']
    assert load(tmp_path / 'made/test-dev.json')[0]['img_id'] == 'COCO_test2015_000000000001'
    with pytest.raises(SystemExit):
        vqa.main(['--test', str(questions), '--out', str(tmp_path / 'other')])
    assert '--train and --val, or --like' in capsys.readouterr().err


@pytest.mark.parametrize(('changed', 'message'), [
    ({'train_questions': [{'image_id': 1, 'question_id': 10}]}, r'questions\.json: key "question": expected str, found None'),
    ({'train_questions': [question('10', 1)]}, r'key "question_id": expected int, found \'10\''),
    ({'train_questions': []}, r'train2014_questions\.json: expected questions at questions\[\.\.\.\], found none'),
    ({'val_annotations': [{'question_id': 30}]}, r'val2014_annotations\.json: key "multiple_choice_answer": expected str'),
    ({'val_annotations': [annotation(7, 3, 'x', {'x': 10})]}, 'have no question_id in common'),
    ({'train_annotations': TRAIN_ANNOTATIONS[:1] * 2}, 'question_id 10 occurs twice'),
    ({'minival': [7]}, 'none of its images is of minival'),
    ({'minival': ['COCO_train2014_000000000001']}, r"images\.json: expected image ids .*found 'COCO_train2014_000000000001'"),
    ({'minival': {}}, r'images\.json: expected a list'),
])
def test_vqa_faults_are_named_and_nothing_is_left(tmp_path, changed, message):
    folder = vqa_files(tmp_path / 'raw', **changed)
    if 'twice' in message:  # before the question of this id is read
        folder = vqa_files(folder, train_questions=TRAIN_QUESTIONS[::-1], **changed)
    with pytest.raises(DataError, match=message):
        make_vqa(folder, tmp_path / 'made')
    assert not list((tmp_path / 'made').iterdir())


# ---- reading and writing ----

def test_a_broken_file_is_named_after_its_whole_items_were_read(tmp_path):
    """It is read item by item: the first two are handed out before the fault is met."""
    path = tmp_path / 'x.json'
    text = json.dumps({'questions': [{'a': 1}, {'a': 2}, {'a': 3}]})
    path.write_text(text[:text.index('3')])
    items = json_files.stream(path, 'questions.item', 'questions')
    assert [next(items), next(items)] == [{'a': 1}, {'a': 2}]
    with pytest.raises(DataError, match=r'x\.json: incomplete or invalid json after 2 questions .*download it again'):
        next(items)


@pytest.mark.parametrize('content', [b'{"questions": [', b'<html>404</html>', b'', b'{"questions": [{"a": "\xff"}]}'])
def test_what_is_no_json_is_named(tmp_path, content):
    path = tmp_path / 'x.json'
    path.write_bytes(content)
    with pytest.raises(DataError, match=r'x\.json: incomplete or invalid json after 0 questions'):
        list(json_files.stream(path, 'questions.item', 'questions'))


def test_broken_archives_are_named(tmp_path):
    whole = gzip.compress(json.dumps({'questions': [{'a': i} for i in range(1000)]}).encode())
    for content in (whole[:-9], whole[:20] + b'\0' * 9 + whole[29:], b'plain text'):
        path = tmp_path / 'x.json.gz'
        path.write_bytes(content)
        with pytest.raises(DataError, match=r'x\.json\.gz: incomplete or '):
            list(json_files.stream(path, 'questions.item', 'questions'))


def test_numbers_stay_numbers_of_json(tmp_path):
    path = save(tmp_path / 'x.json', [{'a': 0.3, 'b': 1}])
    item, = json_files.stream(path, 'item', 'items')
    assert item == {'a': 0.3, 'b': 1} and type(item['a']) is float and type(item['b']) is int


def test_outputs_appear_together_or_not_at_all(tmp_path):
    with raw_data.Outputs(tmp_path / 'made', ['a.json', 'b.json', 'c.json']) as out:
        for i in range(3):
            out.add('a.json', {'i': i, 'text': 'é"\n'})
        out.dump('b.json', ['x'])
        assert not list((tmp_path / 'made').glob('*.json'))
    assert load(tmp_path / 'made/a.json') == [{'i': i, 'text': 'é"\n'} for i in range(3)]
    assert load(tmp_path / 'made/b.json') == ['x'] and load(tmp_path / 'made/c.json') == []
    with pytest.raises(KeyError), raw_data.Outputs(tmp_path / 'other', ['a.json']) as out:
        out.add('a.json', 1)
        raise KeyError
    assert not list((tmp_path / 'other').iterdir())
    with pytest.raises(FileExistsError, match=r'a\.json: already exists; move it, .* --out'):
        raw_data.Outputs(tmp_path / 'made', ['a.json', 'new.json'])
    assert len(list((tmp_path / 'made').iterdir())) == 3
    for names in (['../x.json'], ['a/b.json'], ['.json'], ['a\nb.json'], ['x' * 200 + '.json'], ['d.json', 'e.json', 'd.json']):
        with pytest.raises(json_files.DataError, match='name the split otherwise'):
            raw_data.Outputs(tmp_path / 'none', names)
    assert not (tmp_path / 'none').exists()


def test_a_full_disk_is_named(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))  # of bytes in a file: Python ignores the signal and gets an error
    try:
        with pytest.raises(OSError, match=r"File too large: '.*made/a\.json'"), \
                raw_data.Outputs(tmp_path / 'made', ['a.json', 'b.json']) as out:
            for _ in range(200):
                out.add('a.json', 'x' * 500)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        with pytest.raises(KeyError), raw_data.Outputs(tmp_path / 'made', ['a.json', 'b.json']) as out:
            out.add('a.json', 'not yet on the disk, nor ever')
            raise KeyError
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / 'made').iterdir())


def test_a_fault_ends_a_script_with_one_message(tmp_path):
    run = subprocess.run([sys.executable, ROOT / 'data/vqa/process_vqa.py', '--raw', tmp_path, '--out', tmp_path / 'made'],
                         capture_output=True, text=True, env={'PYTHONPATH': str(ROOT / 'src'), 'PATH': ''})
    assert run.returncode == 1 and run.stderr.count('\n') == 1
    assert 'v2_OpenEnded_mscoco_train2014_questions.json: no such file, nor with .gz; get it from https' in run.stderr


# ---- GQA ----

def gqa_question(image, text, answer=None, structural='query'):
    return {'imageId': image, 'question': text, 'isBalanced': True, 'semantic': [{'operation': 'select', 'argument': 'x (1)'}],
            'types': {'structural': structural, 'semantic': 'rel', 'detailed': 'x'}} | ({'answer': answer} if answer else {})


GQA_FILES = {
    'train_balanced_questions.json': {'01': gqa_question('5', 'What?', 'man'), '1': gqa_question('5', 'Is it?', 'yes', 'verify')},
    'val_balanced_questions.json': {'2': gqa_question('6', 'Or?', 'yes', 'logical'), '3': gqa_question('7', 'Who?', 'boy')},
    'testdev_balanced_questions.json': {'4': gqa_question('n8', 'Which?', 'cup', 'choose')},
    'submission_all_questions.json': {'5': {'imageId': 'n9', 'question': 'How?', 'isBalanced': False}}}


def gqa_files(folder, **changed):
    for name, content in (GQA_FILES | changed).items():
        save(folder / name, content)
    return folder


def test_gqa(tmp_path, capsys):
    out = tmp_path / 'made'
    gqa.main(['--raw', str(gqa_files(tmp_path / 'raw')), '--out', str(out)])
    assert load(out / 'train.json') == [
        {'img_id': '5', 'question_id': '01', 'sent': 'What?', 'label': {'man': 1.0}, 'answer_type': 'open',
         'question_type': 'query'},
        {'img_id': '5', 'question_id': '1', 'sent': 'Is it?', 'label': {'yes': 1.0}, 'answer_type': 'binary',
         'question_type': 'verify'}]
    assert [(e['question_id'], e['label'], e['answer_type']) for e in load(out / 'valid.json')] == [
        ('2', {'yes': 1.0}, 'binary'), ('3', {'boy': 1.0}, 'open')]
    assert load(out / 'submit.json') == [{'img_id': 'n9', 'question_id': '5', 'sent': 'How?'}]
    assert load(out / 'trainval_label2ans.json') == ['yes', 'boy', 'man']  # by how often, then by name; not of testdev
    assert load(out / 'trainval_ans2label.json') == {'yes': 0, 'boy': 1, 'man': 2}
    said = capsys.readouterr().out
    assert "testdev: 1 questions have 1 answers that are not in the vocabulary (such as 'cup')" in said
    assert 'testdev_all_questions.json is not in' in said and not (out / 'testdev_all.json').exists()
    for name in ('train', 'valid', 'testdev', 'submit'):
        assert len(read_examples([out / f'{name}.json'], TEXT_QUESTION, ['yes']))


def test_gqa_all_and_like(tmp_path):
    folder = tmp_path / 'raw'
    for i in (10, 2, 0):
        save(folder / f'train_all_questions/train_all_questions_{i}.json', {str(i): gqa_question('5', 'What?', 'man')})
    save(folder / 'val_all_questions.json.gz', {'7': gqa_question('6', 'What?', 'boy')})
    like = save(tmp_path / 'like.json', ['boy', 'man'])
    gqa.main(['--raw', str(folder), '--all', '--like', str(like), '--out', str(tmp_path / 'made')])
    assert [e['question_id'] for e in load(tmp_path / 'made/train_all.json')] == ['0', '2', '10']
    assert load(tmp_path / 'made/valid_all.json')[0]['label'] == {'boy': 1.0}
    assert load(tmp_path / 'made/trainval_label2ans.json') == ['boy', 'man']
    assert len(list((tmp_path / 'made').iterdir())) == 4


@pytest.mark.parametrize(('content', 'message'), [
    ({'1': {'imageId': '5', 'question': 'Who?'}}, r'train_balanced_questions\.json: key "answer": expected str, found None'),
    ({'1': gqa_question(5, 'Who?', 'boy')}, 'key "imageId": expected str, found 5'),
    ({'1': ['Who?']}, 'key "question": expected str|key "imageId": expected str'),
    ([gqa_question('5', 'Who?', 'boy')], 'expected questions as the values of one object, found none'),
])
def test_gqa_faults_are_named(tmp_path, content, message):
    folder = gqa_files(tmp_path / 'raw', **{'train_balanced_questions.json': content})
    with pytest.raises(DataError, match=message):
        gqa.main(['--raw', str(folder), '--out', str(tmp_path / 'made')])
    assert not list((tmp_path / 'made').iterdir())


def test_gqa_needs_train_for_a_vocabulary(tmp_path):
    folder = gqa_files(tmp_path / 'raw')
    (folder / 'val_balanced_questions.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'val_balanced_questions\.json: no such file.*--like FILE'):
        gqa.main(['--raw', str(folder), '--out', str(tmp_path / 'made')])


# ---- NLVR2 ----

def statement(identifier, label='True', sentence='There is a cup.'):
    return {'identifier': identifier, 'sentence': sentence, 'label': label, 'writer': '1', 'left_url': 'http://x'}


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join((row if isinstance(row, str) else json.dumps(row)) + '\n' for row in rows))
    return path.parent


def test_nlvr2(tmp_path, capsys):
    unlabelled = statement('test2-7-0-0')
    del unlabelled['label']
    lines(tmp_path / 'raw/test2.json', [unlabelled])
    lines(tmp_path / 'raw/dev.json', [statement('dev-354-0-1'), statement('dev-354-0-0', 'False'), statement('dev-355-12-0')])
    nlvr2.main(['--raw', str(tmp_path / 'raw'), '--out', str(tmp_path / 'made')])
    valid = load(tmp_path / 'made/valid.json')
    assert valid[0] == {'identifier': 'dev-354-0-1', 'img0': 'dev-354-0-img0', 'img1': 'dev-354-0-img1',
                        'sent': 'There is a cup.', 'label': 1, 'uid': 'nlvr2_valid_0'}
    assert [(e['img1'], e['label'], e['uid']) for e in valid[1:]] == [
        ('dev-354-0-img1', 0, 'nlvr2_valid_1'), ('dev-355-12-img1', 1, 'nlvr2_valid_2')]
    assert load(tmp_path / 'made/hidden.json') == [
        {'identifier': 'test2-7-0-0', 'img0': 'test2-7-0-img0', 'img1': 'test2-7-0-img1', 'sent': 'There is a cup.',
         'uid': 'nlvr2_hidden_0'}]
    said = capsys.readouterr().out
    assert 'train.json is not in' in said and 'valid: 3 statements about 2 pairs of photographs, 66.7 % of them true.' in said
    assert 'hidden: 1 statements about 1 pairs of photographs, no labels.' in said


@pytest.mark.parametrize(('bad', 'message'), [
    ('{"identifier": "dev', 'expected one json object a line'),
    ('[1]', 'key "identifier": expected str'),
    (statement('dev-1'), "key \"identifier\": expected a text like dev-354-0-1, found 'dev-1'"),
    (statement('dev-1-0-0'), 'expected a new one, found dev-1-0-0, which line 1 has'),
    (statement('dev-2-0-0', True), 'key "label": expected "True" or "False", found True'),
    (statement('dev-2-0-0', sentence=None), 'key "sentence": expected str, found None'),
    ({k: v for k, v in statement('dev-2-0-0').items() if k != 'label'}, 'labels on all lines of a file or on none'),
])
def test_nlvr2_faults_name_the_line(tmp_path, bad, message):
    folder = lines(tmp_path / 'raw/dev.json', [statement('dev-1-0-0'), bad])
    with pytest.raises(DataError, match=rf'dev\.json:2: .*{message}'):
        nlvr2.main(['--raw', str(folder), '--out', str(tmp_path / 'made')])
    assert not list((tmp_path / 'made').iterdir())


# ---- pre-training ----

def caption(image, text):
    return {'image_id': image, 'id': 1, 'caption': text}


def asked(img_id, key, text, label):
    return {'img_id': img_id, 'question_id': key, 'sent': text, 'label': label}


TRAIN1, VAL2, VAL3 = 'COCO_train2014_000000000001', 'COCO_val2014_000000000002', 'COCO_val2014_000000000003'


@pytest.fixture
def sources(tmp_path):
    """One image of COCO's train2014, two of val2014 (3 is of minival); Visual Genome has 2 (as 70), 3 (as 71) and two others."""
    for split, rows in (('train', [caption(1, 'a dog'), caption(1, 'a brown dog '), caption(1, ' ')]),
                        ('val', [caption(3, 'a bus'), caption(2, 'a cat'), caption(3, 'a red bus')])):
        save(tmp_path / f'coco/captions_{split}2014.json', {'info': {}, 'images': [{'id': 1}], 'annotations': rows})
    images = [{'image_id': key, 'coco_id': coco, 'width': 9} for key, coco in ((70, 2), (71, 3), (72, None), (73, 999))]
    save(tmp_path / 'vg/image_data.json', images)
    save(tmp_path / 'vg/region_descriptions.json', [
        {'id': 72, 'regions': [{'phrase': 'a tree', 'image_id': 72}, {'phrase': '', 'image_id': 72}]},
        {'id': 70, 'regions': [{'phrase': 'black tail', 'image_id': 70}]}, {'id': 99, 'regions': []}])
    save(tmp_path / 'vg/question_answers.json', [
        {'id': 71, 'qas': [{'question': 'What colour?', 'answer': 'Red.', 'qa_id': 1, 'image_id': 71},
                           {'question': 'How many?', 'answer': 'One.', 'qa_id': 2, 'image_id': 71}]},
        {'id': 73, 'qas': [{'question': 'Who?', 'answer': 'The man.', 'qa_id': 3, 'image_id': 73}]}])
    save(tmp_path / 'vqa/train.json', [asked(TRAIN1, 1, 'Is it red?', {'no': 1, 'red': 0.3})])
    save(tmp_path / 'vqa/nominival.json', [asked(VAL2, 2, 'Is it?', {})])
    save(tmp_path / 'vqa/minival.json', [asked(VAL3, 3, 'How many?', {'1': 0.9})])
    save(tmp_path / 'gqa/train.json', [asked('72', 'a', 'Which plant?', {'tree': 1.0}), asked('71', 'b', 'Red?', {'yes': 1.0})])
    save(tmp_path / 'gqa/valid.json', [asked('n5', 'c', 'Lost?', {'no': 1.0}), asked('71', 'd', 'Who?', {'man': 1.0})])
    return tmp_path


def make_lxmert(folder, *flags):
    lxmert.main([*(word for part in ('coco', 'vg', 'vqa', 'gqa') for word in (f'--{part}', str(folder / part))),
                 '--out', str(folder / 'made'), '--least', '1', *flags])
    return {name: load(folder / f'made/{name}.json') for name in (*lxmert.PARTS, 'all_ans')}


@pytest.mark.parametrize('bucket', [1, 2, 2000])
def test_pretraining_data(sources, capsys, monkeypatch, bucket):
    monkeypatch.setattr(lxmert, 'BUCKET', bucket)
    made = make_lxmert(sources)
    assert made['mscoco_train'] == [{
        'img_id': TRAIN1, 'sentf': {'mscoco': ['a dog', 'a brown dog '], 'vqa': ['Is it red?']},
        'labelf': {'vqa': [{'no': 1, 'red': 0.3}]}}]
    assert made['mscoco_nominival'] == [{
        'img_id': VAL2, 'sentf': {'mscoco': ['a cat'], 'vqa': ['Is it?'], 'vg': ['black tail']}, 'labelf': {'vqa': [{}]}}]
    assert made['mscoco_minival'] == [{
        'img_id': VAL3,
        'sentf': {'mscoco': ['a bus', 'a red bus'], 'vqa': ['How many?'], 'gqa': ['Red?', 'Who?'],
                  'visual7w': ['What colour?', 'How many?']},
        'labelf': {'vqa': [{'1': 0.9}], 'gqa': [{'yes': 1.0}, {'man': 1.0}], 'visual7w': [{'Red.': 1.0}, {'One.': 1.0}]}}]
    assert made['vgnococo'] == [
        {'img_id': '72', 'sentf': {'gqa': ['Which plant?'], 'vg': ['a tree']}, 'labelf': {'gqa': [{'tree': 1.0}]}},
        {'img_id': '73', 'sentf': {'visual7w': ['Who?']}, 'labelf': {'visual7w': [{'The man.': 1.0}]}}]
    assert made['all_ans'] == [
        {'ans': '1', 'dsets': ['vqa', 'visual7w']}, {'ans': 'man', 'dsets': ['visual7w', 'gqa']}, {'ans': 'no', 'dsets': ['vqa']},
        {'ans': 'red', 'dsets': ['vqa', 'visual7w']}, {'ans': 'tree', 'dsets': ['gqa']}, {'ans': 'yes', 'dsets': ['gqa']}]
    said = capsys.readouterr().out
    assert '1 images have a COCO id that is neither in the captions nor in VQA (such as 999)' in said
    assert 'valid.json: 1 questions dropped' in said and 'region_descriptions.json: 1 images dropped' in said
    assert 'mscoco: 1 blank sentences dropped.' in said and 'vg: 1 blank sentences dropped.' in said
    # images; captions of COCO and of Visual Genome; questions of VQA, Visual Genome and GQA; all sentences
    assert [line.split()[1:] for line in said.splitlines() if line.startswith('all ')] == [['5', '5', '2', '3', '3', '3', '16']]
    assert sorted(path.name for path in (sources / 'made').iterdir()) == sorted(f'{name}.json' for name in made)


def test_pretraining_answers_by_count_or_as_they_were(sources):
    assert [entry['ans'] for entry in make_lxmert(sources, '--least', '2')['all_ans']] == ['1', 'man', 'red']
    for path in (sources / 'made').iterdir():
        path.unlink()
    like = [{'ans': 'yes', 'dsets': ['vqa']}, {'ans': '1', 'dsets': ['gqa']}]
    assert make_lxmert(sources, '--like', str(save(sources / 'like.json', like)))['all_ans'] == like


def test_pretraining_faults_are_named(sources):
    with pytest.raises(DataError, match=r'no answer belongs to 9 questions; lower --least'):
        make_lxmert(sources, '--least', '9')
    assert not list((sources / 'made').iterdir())
    save(sources / 'vg/region_descriptions.json', [{'id': 72, 'regions': [{'phrase': 5}]}])
    with pytest.raises(DataError, match=r'region_descriptions\.json: key "phrase": expected str, found 5'):
        make_lxmert(sources)
    assert not list((sources / 'made').iterdir())
    save(sources / 'vqa/train.json', [asked('71', 1, 'Is it red?', {'no': 1})])
    with pytest.raises(DataError, match=r"train\.json: key \"img_id\": expected an image of COCO .*, found '71'"):
        make_lxmert(sources)
    (sources / 'vqa/minival.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'--vqa .*no such file minival\.json.*get it from data/vqa/process_vqa\.py'):
        make_lxmert(sources)


# ---- the real samples ----

@pytest.mark.shared
def test_real_vqa_with_the_published_vocabulary(tmp_path):
    questions, annotations = (SHARED / f'vqa_raw/{name}.json.gz' for name in ('questions', 'annotations'))
    like = SHARED / 'answers/vqa/trainval_label2ans.json'
    vqa.main(['--train', str(questions), str(annotations), '--like', str(like), '--out', str(tmp_path / 'made')])
    made, vocabulary = labels(tmp_path / 'made/train.json'), set(load(like))
    assert load(tmp_path / 'made/trainval_label2ans.json') == load(like) and len(vocabulary) == 3129
    people = {row['question_id']: [answer['answer'] for answer in row['answers']]
              for row in json.loads(gzip.decompress(annotations.read_bytes()))['annotations']}
    assert len(made) == len(people) == 2962
    for key, answers in people.items():
        assert made[key] == {a: round(min(0.3 * n, 1) if n < 4 else 1, 1) for a, n in Counter(answers).items() if a in vocabulary}
    assert {vqa.normalise(answer) for answer in vocabulary} == vocabulary  # the published one is of normalised answers


@pytest.mark.shared
def test_real_gqa_and_nlvr2(tmp_path):
    like = SHARED / 'answers/gqa/trainval_label2ans.json'
    gqa.main(['--raw', str(SHARED / 'gqa_raw'), '--like', str(like), '--out', str(tmp_path / 'gqa')])
    source, made = load(SHARED / 'gqa_raw/testdev_balanced_questions.json'), load(tmp_path / 'gqa/testdev.json')
    assert [(e['question_id'], e['img_id'], e['sent'], e['label']) for e in made] == [
        (key, q['imageId'], q['question'], {q['answer']: 1.0}) for key, q in source.items()]
    assert all(answer in load(like) for e in made[::50] for answer in e['label'])
    nlvr2.main(['--raw', str(SHARED / 'nlvr2_raw'), '--out', str(tmp_path / 'nlvr2')])
    made = load(tmp_path / 'nlvr2/valid.json')
    assert (len(made), sum(e['label'] for e in made)) == (2300, 1150)
