"""Evaluation without a server: the official rules in small cases by hand, whole files, and the faults of files."""

import gzip
import json
import os
import subprocess

import pytest
from conftest import ROOT, SHARED

from annotations.vqa_answers import CONTRACTIONS, normalise, without_punctuation
from tasks.gqa import belongs as gqa_belongs
from tasks.gqa import consistency as gqa_consistency
from tasks.nlvr2 import consistency
from tasks.vqa import vqa_accuracy
from tools.evaluate import main


@pytest.mark.parametrize('answer, expected', [
    ('  Red\tBall\n', 'red ball'), ('x/y/\tz', 'xy z'), ('x/y\n/z', 'xy z'),  # tabs and newlines are spaces; lower case
    ('the man on a horse with an umbrella', 'man on horse with umbrella'),  # articles
    ('None', '0'), ('zero', '0'), ('Two dogs', '2 dogs'), ('ten', '10'), ('eleven', 'eleven'),  # number words up to ten
    ('dont', "don't"), ("couldnt've", "couldn't've"), ("couldn'tve", "couldn't've"), ('twas', "'twas"),  # contractions
    ("somebody'd", 'somebodyd'), ("'ow'sat", "'ow's'at"), ("don't", "don't"),
    ('couldntve', 'couldntve'), ('shed', 'shed'), ('Im', 'im'),  # not in the table, the last for its capital
    ('t-shirt', 't shirt'), ('yes!', 'yes'), ('A.', ''),
])
def test_predictions_are_normalised_as_in_the_official_evaluator(answer, expected):
    assert normalise(answer) == expected


def test_no_contraction_is_missing():
    # The official table has 120; 4 begin with a capital, which nothing lower-cased reaches, and 2 change nothing (let's, she's).
    assert len(CONTRACTIONS) == 120 - 4 - 2


@pytest.mark.parametrize('answer, expected', [
    ('black/white', 'black white'), ('yes?', 'yes '),  # a mark becomes a space
    ('black/ white', 'black white'), ('black /white', 'black white'),  # beside a space it goes
    ('red/blue/ green', 'redblue green'),  # and then everywhere
    ('red/blue- green', 'red blue green'),  # but no other mark does
    ('1,000-2 a/b', '10002 ab'), ('1, 2', '1 2'), ('1,2', '12'),  # in an answer with a number such as 1,000 all go
    ('3.5', '3.5'), ('.5', '.5'), ('no.5', 'no.5'), ('5.', '5'), ('5.m', '5m'), ('a.m.', 'am'),  # a digit after it saves a period
    ('.' * 40, '.' * 8),  # the official evaluator drops 32, the value of re.UNICODE
    (';/[]"{}()=+\\_-><@`,?!', ' ' * 21), ("it's 10:30 & 'so' %#*", "it's 10:30 & 'so' %#*"),
    ('The Two', 'The Two'),
])
def test_punctuation_goes_as_in_the_official_evaluator(answer, expected):
    assert without_punctuation(answer) == expected


@pytest.mark.parametrize('prediction, answers, expected', [
    ('yes', ['no'] * 10, 0),
    ('yes', ['yes'] + ['no'] * 9, 0.3),  # left out once: 0 of 3; nine times 1 of 3
    ('yes', ['yes'] * 2 + ['no'] * 8, 0.6),  # (2 * 1/3 + 8 * 2/3) / 10
    ('yes', ['yes'] * 3 + ['no'] * 7, 0.9),  # (3 * 2/3 + 7 * 1) / 10
    ('yes', ['yes'] * 4 + ['no'] * 6, 1),
    ('The Yes.', ['yes'] * 10, 1),  # the prediction is always normalised
    ('yes', ['yes.'] * 4 + ['no'] * 6, 1),  # people's answers in punctuation,
    ('yes', ['yes.'] * 10, 0),  # but not where all are the same
    ('t-shirt', ['t-shirt'] * 10, 0), ('t-shirt', ['t-shirt'] * 9 + ['shirt'], 1),
    ('two', ['two'] * 9 + ['2'], 0.3), ('yes', ['Yes'] * 9 + ['no'], 0),  # and in nothing else
])
def test_vqa_accuracy(prediction, answers, expected):
    assert vqa_accuracy(prediction, answers) == pytest.approx(expected)


def test_gqa_consistency():
    right = {'a': True, 'b': False, 'c': True, 'd': False, 'e': True}
    entailed = {'a': ['a', 'b', 'c'], 'c': ['e'], 'd': ['a'], 'e': ['e']}
    # a entails b (wrong) and c (right): 1/2. c: 1. d is wrong itself, e entails only itself: neither counts.
    assert gqa_consistency(right, entailed) == 75
    assert gqa_consistency(right, {'d': ['a'], 'e': ['e']}) is None
    with pytest.raises(KeyError):
        gqa_consistency(right, {'a': ['x']})


def test_gqa_belongs():
    assert gqa_belongs('red', ['red', 'blue'], 'color') and not gqa_belongs('shape', ['red', 'blue'], 'color')
    assert gqa_belongs('shape', [], 'twoCommon') and not gqa_belongs('red', ['red'], 'twoCommon')


def test_nlvr2_consistency():
    names = ['dev-1-0-0', 'dev-1-1-0', 'dev-1-0-1', 'dev-1-1-1', 'dev-2-0-0', 'test1-1-0-0']
    # dev-1 sentence 0: both right; dev-1 sentence 1: one of two; dev-2 and test1-1 are statements of their own.
    assert consistency(names, [True, True, True, False, True, False]) == 50
    assert consistency(names, [1, 1, 1, 1, 1, 1]) == 100
    with pytest.raises(ValueError, match="found 1 others, the first is 'dev-1-0'"):
        consistency(['dev-1-0-0', 'dev-1-0'], [True, True])


@pytest.fixture
def run(tmp_path, capsys):
    """run(task, predictions, annotations) on values that are written first: (exit status, figures or None, out, err)."""
    def write(name, value):
        path = tmp_path / name
        text = value if isinstance(value, str) else json.dumps(value)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith('.gz') else text.encode())
        return str(path)

    def go(task, predictions, annotations, choices=None, annotations_name='a.json', flags=()):
        flags = [*flags, *(['--choices', write('c.json', choices)] if choices is not None else [])]
        out = tmp_path / 'figures.json'
        status = main([task, write('p.json', predictions), write(annotations_name, annotations), '--out', str(out), *flags])
        captured = capsys.readouterr()
        return status, json.loads(out.read_text()) if out.is_file() else None, captured.out, captured.err

    return go


def person(*answers):
    return [{'answer': answer, 'answer_id': i} for i, answer in enumerate(answers, 1)]


VQA = {'annotations': [
    {'question_id': 1, 'answers': person(*['yes'] * 10), 'answer_type': 'yes/no', 'question_type': 'is the'},
    {'question_id': 2, 'answers': person(*['no'] * 10), 'answer_type': 'yes/no', 'question_type': 'is the'},
    {'question_id': 3, 'answers': person('2', '2', *['3'] * 8), 'answer_type': 'number', 'question_type': 'how many'}]}
VQA_ANSWERS = [{'question_id': 3, 'answer': 'Two'}, {'question_id': 1, 'answer': 'yes'}, {'question_id': 2, 'answer': 'yes'}]
SPLIT = [{'img_id': 'i', 'question_id': 1, 'sent': 'Is it?', 'label': {'yes': 0.6, 'no': 1}, 'answer_type': 'yes/no'},
         {'img_id': 'i', 'question_id': 2, 'sent': 'How many?', 'label': {'2': 1}, 'answer_type': 'number'},
         {'img_id': 'i', 'question_id': 3, 'sent': 'What?', 'label': {}, 'answer_type': 'number'}]


@pytest.mark.parametrize('name', ['a.json', 'a.json.gz'])
def test_vqa_on_the_official_annotations(run, name):
    status, figures, out, _ = run('vqa', VQA_ANSWERS, VQA, annotations_name=name)
    sixty = pytest.approx(60)
    assert status == 0 and figures['questions'] == 3
    assert figures['accuracy'] == pytest.approx(160 / 3)  # 0.6, 1, 0
    assert figures['by'] == {
        'answer type': {'number': {'questions': 1, 'accuracy': sixty}, 'yes/no': {'questions': 2, 'accuracy': 50}},
        'question type': {'how many': {'questions': 1, 'accuracy': sixty}, 'is the': {'questions': 2, 'accuracy': 50}}}
    rows = [line.rsplit(maxsplit=3) for line in out.splitlines()[2:]]
    assert rows[0] == ['all', '3', '100.0', '53.33'] and ['answer type: yes/no', '2', '66.7', '50.00'] in rows


def test_vqa_on_the_projects_split_is_the_mean_soft_score_and_says_so(run):
    answers = [{'question_id': 1, 'answer': 'yes'}, {'question_id': 2, 'answer': 'two'}, {'question_id': 3, 'answer': 'x'}]
    status, figures, out, _ = run('vqa', answers, SPLIT)
    assert status == 0 and figures['accuracy'] == pytest.approx(20)  # 0.6, 0 (answers are compared as they are), 0
    assert figures['by']['answer type']['yes/no'] == {'questions': 1, 'accuracy': pytest.approx(60)}
    assert 'mean soft score' in out and 'needs the official annotations' in out


def test_a_split_without_labels_is_only_checked(run):
    asked = [{key: value for key, value in question.items() if key != 'label'} for question in SPLIT]
    answers = [{'question_id': i, 'answer': 'yes'} for i in (1, 2, 3)]
    status, figures, out, _ = run('vqa', answers, asked)
    assert status == 0 and figures['questions'] == 3 and 'accuracy' not in figures and 'All 3 questions are answered' in out
    status, _, _, error = run('vqa', answers[1:], asked)
    assert status == 1 and '1 questions not answered: 1' in error


def gqa_question(answer, structural, detailed='', balanced=True, entailed=()):
    return {'question': 'Is it?', 'answer': answer, 'isBalanced': balanced, 'entailed': list(entailed),
            'types': {'structural': structural, 'semantic': 'obj', 'detailed': detailed or 'exist'}}


GQA = {'q1': gqa_question('yes', 'verify', entailed=['q3', 'q4']), 'q2': gqa_question('red', 'query', entailed=['q4']),
       'q5': gqa_question('shape', 'compare', 'twoCommon'),
       'q3': gqa_question('no', 'verify', balanced=False), 'q4': gqa_question('cat', 'query', balanced=False)}


def gqa_answers(**answers):
    return [{'questionId': key, 'prediction': answer} for key, answer in answers.items()]


def test_gqa_on_all_questions_with_choices(run):
    choices = {key: {'valid': ['yes', 'no'], 'plausible': ['no']} for key in GQA}
    answers = gqa_answers(q1='yes', q2='blue', q3='no', q4='dog', q5='color')
    status, figures, out, _ = run('gqa', answers, GQA, choices)
    assert status == 0 and figures['questions'] == 3  # the balanced ones
    assert figures['accuracy'] == pytest.approx(100 / 3)
    assert figures['by']['answer type'] == {'binary': {'questions': 2, 'accuracy': 50}, 'open': {'questions': 1, 'accuracy': 0}}
    assert figures['by']['structural type']['compare'] == {'questions': 1, 'accuracy': 0}
    assert figures['by']['semantic type'] == {'obj': {'questions': 3, 'accuracy': pytest.approx(100 / 3)}}
    assert figures['consistency'] == 50  # q1 entails q3, right, and q4, wrong; q2 is wrong itself
    # q1's "yes" is valid, not plausible; q2's "blue" neither; q5's "color" both, whatever the file says
    assert figures['validity'] == pytest.approx(200 / 3) and figures['plausibility'] == pytest.approx(100 / 3)
    assert any(line.split() == ['consistency', '50.00'] for line in out.splitlines())


def test_gqas_unbalanced_questions_are_answered_all_or_not_at_all(run):
    status, figures, out, _ = run('gqa', gqa_answers(q1='yes', q2='red', q5='shape'), GQA)
    assert status == 0 and figures['accuracy'] == 100 and 'consistency' not in figures
    assert 'No consistency: 2 of 2 entailed questions' in out
    status, _, _, error = run('gqa', gqa_answers(q1='yes', q2='red', q5='shape', q3='no'), GQA)
    assert status == 1 and '1 unbalanced questions not answered, though others are: q4' in error


def test_gqa_on_the_projects_split_and_on_one_to_submit(run):
    split = [{'img_id': 'i', 'question_id': 'q1', 'sent': 'Is it?', 'label': {'yes': 1.0}, 'question_type': 'verify'},
             {'img_id': 'i', 'question_id': 'q2', 'sent': 'What?', 'label': {'cat': 1.0}, 'question_type': 'query'}]
    status, figures, _, _ = run('gqa', gqa_answers(q1='yes', q2='dog'), split)
    assert status == 0 and figures['accuracy'] == 50
    assert figures['by'] == {'structural type': {'query': {'questions': 1, 'accuracy': 0},
                                                 'verify': {'questions': 1, 'accuracy': 100}}}
    status, _, _, error = run('gqa', gqa_answers(q1='yes', q2='dog'), split, {'q1': {'valid': [], 'plausible': []}})
    assert status == 1 and '--choices needs' in error
    submit = {'q1': {'question': 'Is it?', 'imageId': 'i', 'isBalanced': False}, 'q2': {'question': 'What?', 'imageId': 'i'}}
    status, _, _, error = run('gqa', gqa_answers(q2='cat'), submit)
    assert status == 1 and '1 questions not answered: q1' in error
    assert run('gqa', gqa_answers(q1='yes', q2='cat'), submit)[0] == 0


NLVR2 = {'dev-1-0-0': 'True', 'dev-1-1-0': 'False', 'dev-2-0-0': 'True'}
NLVR2_LINES = ''.join(json.dumps({'identifier': key, 'label': label}) + '\n' for key, label in NLVR2.items())


@pytest.mark.parametrize('annotations', [NLVR2_LINES, [{'identifier': key, 'label': int(label == 'True'), 'uid': key,
                                                        'img0': 'a', 'img1': 'b', 'sent': 'x'} for key, label in NLVR2.items()]])
def test_nlvr2(run, annotations):
    status, figures, _, _ = run('nlvr2', 'dev-2-0-0,True\r\ndev-1-0-0,true\ndev-1-1-0,True', annotations)
    assert status == 0 and figures['accuracy'] == pytest.approx(200 / 3) and figures['consistency'] == 50


@pytest.mark.parametrize('change, expected', [
    (lambda p: p.pop(0), ['1 questions not answered: 3']),
    (lambda p: p.append({'question_id': 1, 'answer': 'no'}), ['1 questions answered again: 1']),
    (lambda p: p.extend({'question_id': i, 'answer': 'no'} for i in range(10, 15)),
     ['5 answers to questions that are not in ', ': 10; 11; 12; ...']),
    (lambda p: p[0].update(question_id='3'), ['1 predictions that are not {"question_id": a whole number, ', 'number 0 is ',
                                              '1 questions not answered: 3']),
    (lambda p: p[0].update(answer=2), ['"answer": a text}: number 0 is {"question_id": 3, "answer": 2}']),
    (lambda p: p[0].pop('answer'), ['number 0 is {"question_id": 3}']),
    (lambda p: p.append('yes'), ['number 3 is "yes"']),
    (lambda p: p.append({'question_id': True, 'answer': 'no'}), ['number 3 is']),
])
def test_a_bad_file_of_predictions_is_told_with_counts_and_first_offenders(run, change, expected):
    predictions = json.loads(json.dumps(VQA_ANSWERS))
    change(predictions)
    status, figures, out, error = run('vqa', predictions, VQA)
    assert status == 1 and figures is None and out == ''
    assert all(part in error for part in ['p.json: every question must be answered exactly once', *expected])


@pytest.mark.parametrize('predictions, expected', [
    ('dev-1-0-0,True\ndev-1-1-0,yes\n', ['1 lines that are not', "line 2 is b'dev-1-1-0,yes", '2 questions not answered']),
    (NLVR2_LINES, ['3 lines that are not', '3 questions not answered: dev-1-0-0; dev-1-1-0; dev-2-0-0']),
    ('dev-1-0-0,True\ndev-1-0-0,True\n', ['1 questions answered again: dev-1-0-0 in line 2']),
    ('test-1-0-0,True\n' + ''.join(f'{key},True\n' for key in NLVR2), ['1 answers to questions that are not in', ': test-1-0-0']),
])
def test_bad_lines_of_nlvr2(run, predictions, expected):
    status, _, out, error = run('nlvr2', predictions, NLVR2_LINES)
    assert status == 1 and out == '' and all(part in error for part in expected)


@pytest.mark.parametrize('task, predictions, annotations, choices, expected', [
    ('vqa', VQA, VQA, None, 'expected a list of predictions'),
    ('vqa', [], VQA, None, 'found none'),
    ('vqa', '[{"question_id": 1', VQA, None, 'p.json: incomplete or invalid json'),
    ('vqa', VQA_ANSWERS, {'questions': []}, None, 'expected annotations at annotations[...], found none'),
    ('vqa', VQA_ANSWERS, {'annotations': VQA['annotations'] * 2}, None, 'a.json: question 1 occurs twice'),
    ('vqa', VQA_ANSWERS, {'annotations': [{'question_id': 1, 'answers': []}]}, None, 'question 1: key "answers"'),
    ('vqa', VQA_ANSWERS, [SPLIT[0], {'img_id': 'i', 'question_id': 2, 'sent': ''}], None, 'question 2: expected labels on all'),
    ('vqa', VQA_ANSWERS, [SPLIT[0] | {'label': {'yes': '1'}}], None, 'example 0: key "label"'),
    ('gqa', gqa_answers(q1='yes'), {'q1': {'answer': 'yes'}}, None, 'key "question"'),
    ('gqa', gqa_answers(q1='yes'), {'q1': GQA['q1'] | {'isBalanced': 'yes'}}, None, 'question q1: key "isBalanced"'),
    ('gqa', gqa_answers(q5='shape'), {'q5': GQA['q5']}, {'q1': {}}, '1 of 1 questions have no choices'),
    ('gqa', gqa_answers(q5='shape'), {'q5': GQA['q5']}, {'q5': {'valid': []}}, 'c.json: key "plausible"'),
    ('nlvr2', 'dev-1-0-0,True', '{"identifier": "dev-1-0-0", "label": "yes"}', None, ':1: key "label"'),
    ('nlvr2', 'dev-1-0,True', '{"identifier": "dev-1-0", "label": "True"}', None, 'a.json: expected identifiers like'),
    ('nlvr2', 'dev-1-0-0,True', '{"identifier": ', None, 'a.json:1: incomplete or invalid json'),
])
def test_files_that_are_not_what_they_should_be_are_named(run, task, predictions, annotations, choices, expected):
    status, figures, out, error = run(task, predictions, annotations, choices)
    assert status == 1 and figures is None and out == '' and expected in error


def test_a_part_of_the_questions_is_scored_on_request(run, tmp_path):
    answers = gqa_answers(q1='yes', q2='blue', q5='shape')
    head = {key: GQA[key] for key in ('q1', 'q2')}
    status, figures, _, error = run('gqa', answers, head)
    assert status == 1 and figures is None and '1 answers to questions that are not in' in error
    assert error.endswith(f'  --subset scores only the questions of {tmp_path / "a.json"}\n')
    status, figures, out, _ = run('gqa', answers, head, flags=['--subset'])
    assert status == 0 and (figures['questions'], figures['accuracy']) == (2, 50)
    assert '1 predictions for other questions are not scored.' in out
    (tmp_path / 'head.json').write_text(json.dumps(head))
    _, figures, out, _ = run('gqa', answers, GQA, flags=['--only', str(tmp_path / 'head.json')])
    assert (figures['questions'], figures['accuracy'], figures['only']) == (2, 50, str(tmp_path / 'head.json'))
    assert '1 predictions for other questions' in out
    status, _, _, error = run('gqa', gqa_answers(q1='yes'), head, flags=['--subset'])  # a question of the part is not answered
    assert status == 1 and '1 questions not answered: q2' in error


@pytest.mark.parametrize('name, content', [
    ('ids.txt', '\ufeff1\r\n\r\n2\n'), ('ids.json', '[1, "2"]'), ('ids.jsonl', '{"question_id": 1}\n{"question_id": 2}\n'),
    ('ids.json', json.dumps({'questions': [{'question_id': 1, 'question': 'x'}, {'question_id': 2, 'question': 'y'}]})),
    ('ids.json', json.dumps(SPLIT[:2]))])
def test_ids_of_only(run, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    everything = [{'question_id': q['question_id'], 'answer': 'yes'} for q in SPLIT]
    status, figures, _, error = run('vqa', everything, SPLIT, flags=['--only', str(tmp_path / name)])
    assert status == 0 and figures['questions'] == 2, error


@pytest.mark.parametrize('content, message', [
    ('9\n1\n8\n', 'a.json: 8, 9; give ids of these annotations'), ('\n', 'found none; write one a line'),
    ('[{"x": 1}]', "number 1: expected a question id, found {'x': 1}; correct it")])
def test_ids_that_do_not_fit(run, tmp_path, content, message):
    path = tmp_path / ('ids.json' if content[0] == '[' else 'ids')
    path.write_text(content)
    status, figures, _, error = run('vqa', VQA_ANSWERS, SPLIT, flags=['--only', str(path)])
    assert status == 1 and figures is None and message in error


def test_predictions_of_none_of_the_questions(run):
    status, _, _, error = run('vqa', [{'question_id': 77, 'answer': 'yes'}], SPLIT, flags=['--subset'])
    assert status == 1 and 'none of them to a question that is scored, 77' in error.replace(':', ',').replace(',,', ',')


@pytest.mark.parametrize('task', ['vqa', 'gqa', 'nlvr2'])
def test_json_lines_of_the_project(run, task):
    """Annotations and predictions as json lines, also compressed."""
    if task == 'nlvr2':
        split = [{'identifier': 'dev-1-0-0', 'label': 1, 'img0': 'a', 'img1': 'b', 'sent': 'x'}]
        answers = 'dev-1-0-0,True\n'
    else:
        key, answer = ('question_id', 'answer') if task == 'vqa' else ('questionId', 'prediction')
        ids = [1, 2] if task == 'vqa' else ['1', '2']
        split = [{'img_id': 'i', 'question_id': i, 'sent': 'x', 'label': {'yes': 1.0}} for i in ids]
        answers = ''.join(json.dumps({key: i, answer: 'yes'}) + '\n' for i in ids)
    lines = '\n' + '\n'.join(map(json.dumps, split)) + '\n'
    for name in ('a.jsonl', 'a.jsonl.gz', 'a.json'):
        status, figures, _, error = run(task, answers, lines, annotations_name=name)
        assert status == 0 and (figures['questions'], figures['accuracy']) == (len(split), 100), error


def test_official_vqa_annotations_as_a_list(run):
    assert run('vqa', VQA_ANSWERS, VQA['annotations'])[1] == run('vqa', VQA_ANSWERS, VQA)[1]


@pytest.mark.parametrize('flags', [
    ('okvqa', 'p', 'a'), ('vqa', 'p'), ('vqa', 'p', 'a', '--choices', 'c'), ('vqa', 'p', 'a', '--out', 'no/o')])
def test_wrong_usage(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        main(list(flags))
    assert raised.value.code == 2


def test_a_missing_file_is_told_before_anything_is_read(tmp_path, capsys):
    (tmp_path / 'p.json').write_text('no json')
    assert main(['vqa', str(tmp_path / 'p.json'), str(tmp_path / 'a.json')]) == 1
    assert f'{tmp_path / "a.json"}: no such file' in capsys.readouterr().err


def test_the_launcher(tmp_path):
    (tmp_path / 'p.csv').write_text('dev-1-0-0,True\ndev-1-1-0,False\ndev-2-0-0,False\n')
    (tmp_path / 'a.json').write_text(NLVR2_LINES)
    run = subprocess.run(['bash', 'run/evaluate.bash', 'nlvr2', tmp_path / 'p.csv', tmp_path / 'a.json'], cwd=ROOT, text=True,
                         capture_output=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert run.returncode == 0, run.stderr
    assert ['all', '3', '100.0', '66.67'] in [line.split() for line in run.stdout.splitlines()]


@pytest.mark.shared
def test_always_yes_on_real_vqa_questions(run):
    annotations = json.loads(gzip.decompress((SHARED / 'vqa_raw/annotations.json.gz').read_bytes()))
    asked = annotations['annotations']
    status, figures, _, _ = run('vqa', [{'question_id': q['question_id'], 'answer': 'Yes.'} for q in asked], annotations)
    share = [0, 0.3, 0.6, 0.9, 1]  # of an answer that so many of ten people gave
    agree = [sum(a['answer'].strip('.!?,') == 'yes' for a in q['answers']) for q in asked]
    assert status == 0 and figures['questions'] == len(asked) == 2962
    assert figures['accuracy'] == pytest.approx(100 * sum(share[min(count, 4)] for count in agree) / len(asked))


@pytest.mark.shared
def test_always_yes_on_real_gqa_questions(run):
    asked = json.loads((SHARED / 'gqa_raw/testdev_balanced_questions.json').read_text())
    status, figures, out, _ = run('gqa', gqa_answers(**dict.fromkeys(asked, 'yes')), asked)
    kinds = {'open': [], 'binary': []}
    for question in asked.values():
        kinds['open' if question['types']['structural'] == 'query' else 'binary'].append(question['answer'] == 'yes')
    assert status == 0 and figures['accuracy'] == pytest.approx(100 * sum(map(sum, kinds.values())) / len(asked))
    assert {kind: 100 * sum(hits) / len(hits) for kind, hits in kinds.items()} == {
        kind: pytest.approx(figures['by']['answer type'][kind]['accuracy']) for kind in kinds}
    assert 'No consistency' in out  # the questions entailed are not among the balanced ones


@pytest.mark.shared
def test_always_true_on_real_nlvr2_statements(run):
    text = (SHARED / 'nlvr2_raw/dev.json').read_text()
    labels = {row['identifier']: row['label'] for row in map(json.loads, text.splitlines())}
    status, figures, _, _ = run('nlvr2', ''.join(f'{key},True\n' for key in labels), text)
    statements = {}
    for key, label in labels.items():
        statements.setdefault((key.rsplit('-', 2)[0], key[-1]), []).append(label == 'True')
    assert status == 0 and figures['accuracy'] == 50  # this set is balanced
    assert figures['consistency'] == pytest.approx(100 * sum(map(all, statements.values())) / len(statements))
