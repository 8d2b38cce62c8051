"""Files of other datasets in the layouts of published ones, turned into a --dataset that trains."""

import csv
import gzip
import json
import pickle

import numpy as np
import pytest
from conftest import data_script

from annotations.examples import QUESTION, TEXT_QUESTION, read_examples
from annotations.spec import DatasetSpec
from annotations.vqa_files import soft_score
from files.json_files import DataError, layout
from regions import tsv
from regions.checks import question_images
from tasks.gqa import GQA
from tasks.program import main
from tasks.vqa import VQA, vqa_accuracy
from tools import check_dataset, evaluate
from tools.encode import read_pairs

process_vqa = data_script('vqa/process_vqa')


def save(path, value):
    """Writes rows as the ending says: json, json lines, csv, tsv; each also compressed."""
    name = path.name.removesuffix('.gz')
    if name.endswith(('.csv', '.tsv')):
        with open(path.with_name('table'), 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, list(value[0]), delimiter='\t' if name.endswith('.tsv') else ',')
            writer.writeheader()
            writer.writerows(value)
        data = path.with_name('table').read_bytes()
    else:
        data = ('\n'.join(map(json.dumps, value)) if name.endswith('.jsonl') else json.dumps(value)).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)
    return str(path)


def people(*counts):
    """The answers of annotators, of (answer, number of people)."""
    return [{'answer': answer, 'answer_confidence': 'yes'} for answer, count in counts for _ in range(count)]


def regions(path, *img_ids):
    ids, confidence, boxes = np.zeros(2, np.int64), np.ones(2, np.float32), np.array([[0, 0, 9, 9]] * 2, np.float32)
    rng = np.random.default_rng(0)
    tsv.write(path, (tsv.ImageRegions(img_id, 480, 640, ids, confidence, ids, confidence, boxes, rng.random((2, 8), np.float32))
                     for img_id in img_ids))
    return str(path)


@pytest.fixture
def convert(tmp_path, capsys):
    """convert(*flags) -> (the description, {split: examples}, vocabulary, what was printed)."""
    def go(*flags, out='out'):
        process_vqa.main([*flags, '--out', str(tmp_path / out)])
        described = json.loads((tmp_path / out / 'dataset.json').read_text())
        spec = DatasetSpec.from_json(tmp_path / out / 'dataset.json')
        for split in spec.splits.values():  # what training reads
            read_examples([split.annotations], {'vqa': QUESTION, 'gqa': TEXT_QUESTION}[described['kind']], spec.read_answers())
        splits = {split: json.loads((tmp_path / out / f'{split}.json').read_text()) for split in described['splits']}
        return described, splits, spec.read_answers(), capsys.readouterr().out

    return go


OKVQA_QUESTIONS = [{'image_id': 9, 'question': 'What is it?', 'question_id': 90},
                   {'image_id': 8, 'question': 'Why?', 'question_id': 80}]
OKVQA_ANNOTATIONS = [
    {'image_id': 8, 'question_id': 80, 'answer_type': 'other', 'question_type': 'four', 'confidence': 3,
     'answers': people(('rain', 6), ('the rain', 2), ('A storm.', 2))},
    {'image_id': 9, 'question_id': 90, 'answer_type': 'other', 'question_type': 'one', 'confidence': 3,
     'answers': people(('Two', 1), ('cat', 9))}]


@pytest.mark.parametrize('nested', [True, False], ids=['OK-VQA', 'VQA-CP'])
def test_questions_and_annotations(tmp_path, convert, nested):
    """Ten annotators without multiple_choice_answer, in another order than the questions, in an object or as lists."""
    questions, annotations = OKVQA_QUESTIONS, OKVQA_ANNOTATIONS
    if nested:
        questions = {'info': {'version': '1'}, 'questions': questions}
        annotations = {'info': {'version': '1'}, 'question_types': {'one': 'Vehicles'}, 'annotations': annotations}
    else:
        questions = [row | {'coco_split': 'train2014'} for row in questions]
    files = [save(tmp_path / f'mscoco_train2014_{name}.json', value) for name, value in
             (('questions', questions), ('annotations', annotations))]
    described, splits, answers, printed = convert('--split', 'train', *files)
    assert answers == ['cat', 'rain'] and 'those of annotators' in printed
    assert splits['train'] == [
        {'img_id': 'COCO_train2014_000000000008', 'question_id': 80, 'sent': 'Why?', 'label': {'rain': 1},
         'answer_type': 'other', 'question_type': 'four'},
        {'img_id': 'COCO_train2014_000000000009', 'question_id': 90, 'sent': 'What is it?', 'label': {'cat': 1},
         'answer_type': 'other', 'question_type': 'one'}]
    assert described['kind'] == 'vqa' and described['splits']['train']['features'] == ['out_obj36.tsv']


def test_multiple_choice_answer_makes_the_vocabulary(tmp_path, convert):
    rows = [{'image': 'a.jpg', 'question': 'x', 'multiple_choice_answer': 'Dogs', 'answers': people(('cat', 8), ('dogs', 2))}]
    _, splits, answers, _ = convert('--split', 'train', save(tmp_path / 'q.json', rows))
    assert answers == ['dogs'] and splits['train'][0]['label'] == {'dogs': 0.6}


def test_vizwiz(tmp_path, convert):
    """No question ids, answers and question in one row, and a test split without answers."""
    rows = [{'image': f'VizWiz_train_0000000{i}.jpg', 'question': 'What?', 'answer_type': 'other', 'answerable': 1,
             'answers': people(('unanswerable', 10 - i), ('mug', i))} for i in (2, 3)]
    test = [{'image': 'VizWiz_test_00000000.jpg', 'question': 'What?'}]
    _, splits, answers, printed = convert('--split', 'train', save(tmp_path / 'train.json', rows),
                                          '--split', 'test', save(tmp_path / 'test.json', test))
    assert answers == ['unanswerable']
    assert [(row['question_id'], row['img_id'], row['label']) for row in splits['train']] == [
        (0, 'VizWiz_train_00000002', {'unanswerable': 1}), (1, 'VizWiz_train_00000003', {'unanswerable': 1})]
    assert splits['test'] == [{'img_id': 'VizWiz_test_00000000', 'question_id': 0, 'sent': 'What?'}]
    assert 'test.json: 1 questions without answers' in printed


@pytest.mark.parametrize('name', ['q.json', 'q.jsonl', 'q.json.gz', 'q.jsonl.gz', 'q.csv', 'q.tsv', 'q.csv.gz'])
def test_one_answer(tmp_path, convert, name):
    """VQA-RAD: one answer scores 1, also a number; answers differ in case and white space."""
    rows = [{'qid': 7, 'image_name': 'synpic1.jpg', 'question': 'A "fracture", or\tnot?', 'answer': 'No ',
             'answer_type': 'CLOSED '},
            {'qid': 8, 'image_name': 'synpic2.jpg', 'question': 'How many?', 'answer': 3, 'answer_type': 'OPEN'},
            {'qid': 9, 'image_name': 'synpic2.jpg', 'question': 'Is it?', 'answer': 'no', 'answer_type': 'CLOSED'},
            {'qid': 10, 'image_name': 'synpic2.jpg', 'question': 'And?', 'answer': '', 'answer_type': 'CLOSED'}]
    _, splits, answers, printed = convert('--split', 'train', save(tmp_path / name, rows))
    assert answers == ['no', '3'] and 'questions without an answer: dropped' in printed
    assert [(row['question_id'], row['label'], row['answer_type']) for row in splits['train']] == [
        (7, {'no': 1}, 'CLOSED'), (8, {'3': 1}, 'OPEN'), (9, {'no': 1}, 'CLOSED')]


def test_slake(tmp_path, convert):
    """A language is chosen; pictures that share a file name keep their folder."""
    rows = [{'img_id': i, 'img_name': f'xmlab{i}/source.jpg', 'question': text, 'answer': answer, 'q_lang': language,
             'qid': 10 * i, 'content_type': 'Modality'} for i, (text, answer, language) in enumerate([
                 ('Which?', 'MRI', 'en'), ('什么?', '核磁共振', 'zh'), ('Where?', 'Left  lung', 'en')])]
    path = save(tmp_path / 'train.json', rows)
    _, splits, answers, printed = convert('--split', 'train', path, '--where', 'q_lang=en')
    assert answers == ['left lung', 'mri'] and '1 questions left out by --where: dropped' in printed
    assert [(row['img_id'], row['question_type']) for row in splits['train']] == [
        ('xmlab0/source', 'Modality'), ('xmlab2/source', 'Modality')]
    assert convert('--split', 'train', path, '--where', 'q_lang=zh', out='zh')[2] == ['核磁共振']
    with pytest.raises(DataError, match=r"no question is left: .*q_lang=de|such as 'q_lang=en', 'q_lang=zh'\); correct --where"):
        convert('--split', 'train', path, '--where', 'q_lang=de', out='de')


def test_splits_of_one_file(tmp_path, convert):
    """As VQA-RAD's phrase_type, of which two make a split."""
    rows = [{'image_name': 'a', 'question': kind, 'answer': 'x', 'phrase_type': kind}
            for kind in ('freeform', 'para', 'test_para')]
    path = save(tmp_path / 'q.json', rows)
    _, splits, _, _ = convert('--split', 'train', path, 'phrase_type=freeform', 'phrase_type=para',
                              '--split', 'test', path, 'phrase_type=test_para')
    assert {split: [row['sent'] for row in rows] for split, rows in splits.items()} == {
        'train': ['freeform', 'para'], 'test': ['test_para']}


def test_clevr(tmp_path, convert):
    row = {'image_index': 0, 'program': [{'inputs': []}], 'question_index': 4, 'image_filename': 'CLEVR_val_000000.png',
           'answer': 3, 'question': 'How many?', 'split': 'val'}
    path = save(tmp_path / 'q.json', {'info': {'split': 'val'}, 'questions': [row]})
    assert convert('--split', 'val', path)[1]['val'] == [
        {'img_id': 'CLEVR_val_000000', 'question_id': 4, 'sent': 'How many?', 'label': {'3': 1}}]


def test_gqa_ood(tmp_path, convert):
    """An object by id; ids stay texts, of which two may be the same number."""
    rows = {'0182': {'question': 'Is it?', 'imageId': '5', 'answer': 'yes', 'types': {'structural': 'verify'}},
            '182': {'semantic': [{'operation': 'select'}], 'question': 'What?', 'imageId': '5', 'answer': 'red',
                    'types': {'structural': 'query'}}}
    described, splits, answers, _ = convert('--split', 'all', save(tmp_path / 'q.json', rows))
    assert described['kind'] == 'gqa' and answers == ['red', 'yes']
    assert [(row['question_id'], row['answer_type']) for row in splits['all']] == [('0182', 'binary'), ('182', 'open')]
    described, splits, _, _ = convert('--split', 'all', str(tmp_path / 'q.json'), '--renumber', out='numbers')
    assert described['kind'] == 'vqa' and [row['question_id'] for row in splits['all']] == [0, 1]


@pytest.mark.parametrize('value, flags, expected', [
    (['car', 'automobile'], (), {'car': 1, 'automobile': 1}),
    ("['car', 'automobile']", (), {'car': 1, 'automobile': 1}),  # a cell of a csv
    (['car', 'Car', 'car', 'bus'], ('--lists', 'alternatives'), {'car': 1, 'bus': 1}),
    (['car', 'automobile'], ('--lists', 'annotators'), {'car': 0.5}),
    ({'car': 0.3, 'automobile': 1}, (), {'car': 0.3, 'automobile': 1}),
    ("{'car': 0.3, 'automobile': 1.0}", (), {'car': 0.3, 'automobile': 1}),
    ("['car' 'automobile']", (), {'car': 1, 'automobile': 1}),  # as NumPy prints it
    ("[{'answer': 'car'}\n {'answer': 'car'}]", (), {'car': 1}),
    ('{car} [x]', (), {'{car} [x]': 1}),
    ('{car}', (), {'{car}': 1}),
    (True, (), {'yes': 1})])
def test_lists_of_answers(tmp_path, convert, value, flags, expected):
    rows = {'data': [{'question': 'x', 'image_id': 'ab12', 'question_id': 1, 'answers': value}]}
    assert convert('--split', 'train', save(tmp_path / 'q.json', rows), *flags)[1]['train'][0]['label'] == expected


@pytest.mark.parametrize('annotators', [1, 2, 3, 4, 5, 10, 11])
def test_soft_scores(annotators):
    """As the official evaluator scores; fewer than four annotators, who can never agree three times among others: the share."""
    for count in range(1, annotators + 1):
        expected = count / annotators if annotators < 4 else vqa_accuracy('x', ['x'] * count + ['y'] * (annotators - count))
        assert soft_score(count, annotators) == pytest.approx(expected, abs=1e-4)
    assert soft_score(annotators, annotators) == 1


@pytest.mark.parametrize('images, ids, expected', [
    ([9, 12], ['COCO_train2014_000000000009', 'COCO_val2014_000000000012'], None),  # by number, whatever the prefix
    (['a.jpg', 'b.jpg'], ['a', 'b'], None), (['a.jpg', 'b.jpg'], ['a.jpg', 'b.jpg'], None),
    (['x/a.jpg', 'y/b.jpg'], ['a', 'b'], None), (['x/a.jpg', 'y/a.jpg'], ['x/a', 'y/a'], None),
    (['a', 'b'], ['mine-a', 'mine-b'], 'mine-{image}')])
def test_image_ids_are_those_of_the_regions(tmp_path, convert, images, ids, expected):
    rows = [{'image': image, 'question': 'x', 'answer': 'y'} for image in images]
    flags = ['--split', 'train', save(tmp_path / 'q.json', rows), '--features', regions(tmp_path / 'r.tsv', *ids, 'other0'),
             *(['--ids', expected] if expected else [])]
    described, splits, _, _ = convert(*flags)
    assert [row['img_id'] for row in splits['train']] == ids
    assert described['splits']['train']['features'] == ['../r.tsv']
    assert check_dataset.main([str(tmp_path / 'out/dataset.json')]) == 0


@pytest.mark.parametrize('text', ['\ufeff[{"image": "a", "question": "x", "answer": "y"}]',
                                  '\ufeffimage,question,answer\na,x,y\n'])
def test_byte_order_marks(tmp_path, convert, text):
    path = tmp_path / ('q.csv' if ',q' in text else 'q.json')
    path.write_text(text)
    assert convert('--split', 'train', str(path))[1]['train'][0]['label'] == {'y': 1}


def test_deep_nesting_is_refused(tmp_path):
    (tmp_path / 'q.json').write_text('[{"x": ' + '[' * 2000 + ']' * 2000 + ', "question": "x"}]')
    with pytest.raises(DataError, match='more than 100 levels of brackets'):
        process_vqa.main(['--split', 'train', str(tmp_path / 'q.json'), '--out', str(tmp_path / 'out')])


ROW = {'image': 'a.jpg', 'question': 'x', 'answer': 'y'}


@pytest.mark.parametrize('rows, flags, message', [
    ([ROW], ['--features'], 'images are a.jpg, regions other; give --ids'),
    ([ROW], ['--ids', '{gone}'], "row 1: --ids {gone}: KeyError 'gone'; the keys of this row are image, question, answer"),
    ([ROW], ['--ids', 'names'], 'expected name, path, stem, or a pattern'),
    ([ROW], ['--ids', 'number'], 'expected --features too'),
    ([{'pic': 'a.jpg', 'question': 'x', 'answer': 'y'}], [], 'row 1: expected an image (image_name'),
    ([{'image': 'a.jpg', 'question': 'x', 'answer': {'text': 'y'}}], [], 'expected a label {answer: score'),
    ([{'image': 'a.jpg', 'question': 'x', 'answer': [['y']]}], [], 'row 1: expected answers as one text'),
    ([ROW | {'question_id': 3}] * 2, [], 'row 2: expected a new question id, found 3'),
    ([ROW | {'question_id': 3}, ROW], [], 'row 2: expected a question id'),
    ({'question': ['x'], 'answer': ['y'], 'image': ['a']}, [], 'to_json(orient="records")'),
    ({'question': {'0': 'x'}, 'answer': {'0': 'y'}, 'image': {'0': 'a'}}, [], 'to_json(orient="records")'),
    ([{'image': 'a.jpg', 'qas': [{'question': 'x', 'answer': 'y'}]}], [], 'the first at item.qas.item.question, which is nested'),
    ([{'image': 'a.jpg'}], [], 'found none; is it the right file?'),
    (OKVQA_ANNOTATIONS, [], 'expected a file with questions (question'),
    ([{'image': 'a.jpg', 'question': 'x'}], [], 'no answer belongs to 1 questions; lower --least')])
def test_faults_are_named_and_nothing_is_left(tmp_path, rows, flags, message):
    if flags == ['--features']:
        flags = ['--features', regions(tmp_path / 'r.tsv', 'other')]
    with pytest.raises(DataError) as raised:
        process_vqa.main(['--split', 'train', save(tmp_path / 'q.json', rows), *flags, '--out', str(tmp_path / 'out')])
    assert message in str(raised.value) and '\n' not in str(raised.value)
    assert not (tmp_path / 'out').exists() or not list((tmp_path / 'out').iterdir())


def test_a_table_of_a_dataset_is_named(tmp_path):
    (tmp_path / 'q.csv').write_text('img_id,sent,label\nx,What?,y\n')
    with pytest.raises(DataError, match=r'q.csv: expected json or json lines, found .csv; .*process_vqa.py --split'):
        read_examples([tmp_path / 'q.csv'], QUESTION, ['y'])


@pytest.mark.parametrize('name, content, message', [
    ('q.pkl', pickle.dumps([{'question': 'x'}]), "json.dump(pickle.load(open('q.pkl', 'rb'))"),
    ('q.csv', b'image,question,answer\na.jpg,What, exactly?,y\n', "q.csv:2: expected 3 columns, found 4; put texts with ','"),
    ('q.csv', b'a.jpg,What?,y\n', 'expected a first line that names the columns'),
    ('q.csv', b'image,question,answer\na.jpg,\xff,y\n', 'expected a csv in UTF-8'),
    ('q.txt', b'synpic1|what?|ct\n', 'name it .csv if it is a table')])
def test_files_that_are_no_rows(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        process_vqa.main(['--split', 'train', str(tmp_path / name), '--out', str(tmp_path / 'out')])
    assert name in str(raised.value) and message in str(raised.value)


@pytest.mark.parametrize('flags', [
    ['--split', 'train'], ['--split', 'a/b', 'q.json'], ['--split', 't', 'q', '--split', 't', 'q'],
    ['--split', 't', 'q', '--raw', 'x'],
    ['--split', 't', 'q', '--where', 'q_lang'], ['--split', 't', 'q', '--vocabulary', 'v']])
def test_wrong_usage(flags, tmp_path):
    with pytest.raises(SystemExit):
        process_vqa.main([*flags, '--out', str(tmp_path / 'out')])
    with pytest.raises(SystemExit):  # --out is missing
        process_vqa.main(['--split', 't', 'q'])


@pytest.mark.parametrize('text, expected', [
    ('[{"sent": 1}]', 'list'), ('\n [\n', 'list'), ('{"sent": 1}\n{"sent": 2}\n', 'lines'), ('\ufeff\n{"sent": 1}\n', 'lines'),
    ('{"sent": 1}', 'lines'), ('{"questions": [{"a": 1}]}', 'object'), ('{"questions": []}', 'object'),
    ('{\n"sent": 1}', 'object'), ('{"1": {"question": "x"}}', 'object'), ('{}', 'object'),
    ('{"answers": [{"answer": "x"}]}\n{"answers": []}', 'lines')])
def test_layouts_of_json(tmp_path, text, expected):
    (tmp_path / 'x.json').write_text(text)
    assert layout(tmp_path / 'x.json') == expected


def test_a_broken_line_of_json_lines_is_named(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_text('{"img_id": "a", "question_id": 1, "sent": "x"}\n{"img_id": "b"\n')
    with pytest.raises(DataError, match=r'x\.jsonl: incomplete or invalid json after 1 examples'):
        read_examples([path], QUESTION, [])


def test_json_lines_in_every_reader(tmp_path, capsys):
    """Sentences of pre-training, the questions of `regions.bash check`, the pairs of `encode.bash`."""
    images = [{'img_id': name, 'sentf': {'captions': ['A dog.'], 'asked': ['Who?']}, 'labelf': {'asked': [{'dog': 1.0}]}}
              for name in 'ab']
    save(tmp_path / 'train.jsonl', images)
    save(tmp_path / 'answers.json', [{'ans': 'dog', 'dsets': ['asked']}])
    regions(tmp_path / 'r.tsv', 'a', 'b')
    path = save(tmp_path / 'd.json', {'kind': 'lxmert', 'name': 'd', 'max_length': 20, 'answers': 'answers.json', 'splits': {
        'train': {'annotations': 'train.jsonl', 'features': ['r.tsv']}}})
    assert check_dataset.main([path]) == 0
    assert '4 sentences on 2 images, 2 with labels' in capsys.readouterr().out
    questions = tmp_path / 'q.jsonl'
    save(questions, [{'img_id': 'a', 'sent': 'x', 'question_id': 1}, {'img_id': 'b', 'sent': 'y', 'question_id': 2}])
    assert question_images(questions) == {'a', 'b'}
    assert read_pairs(questions) == (['a', 'b'], ['x', 'y'])


@pytest.mark.parametrize('task', [VQA, GQA], ids=['vqa', 'gqa'])
def test_what_is_converted_trains_tests_and_is_evaluated(tmp_path, convert, capsys, task):
    rows = [{'image': f'{i % 3}.jpg', 'question_id': f'0{i}' if task is GQA else i, 'question': 'is it ?',
             'answer': ('yes', 'no')[i % 2]} for i in range(8)]
    description = tmp_path / 'out/dataset.json'
    convert('--split', 'train', save(tmp_path / 'q.csv', rows), '--split', 'dev', str(tmp_path / 'q.csv'),
            '--features', regions(tmp_path / 'r.tsv', '0', '1', '2'))
    bert = tmp_path / 'bert'
    bert.mkdir()
    (bert / 'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'is', 'it', '?']))
    (bert / 'config.json').write_text(json.dumps({
        'vocab_size': 8, 'hidden_size': 16, 'num_attention_heads': 2, 'intermediate_size': 16, 'l_layers': 1, 'r_layers': 1,
        'x_layers': 1, 'visual_feat_dim': 8}))
    flags = ['--device', 'cpu', '--dataset', str(description), '--bert', str(bert), '--batchSize', '4']
    assert main(task, [*flags, '--train', 'train', '--valid', 'dev', '--epochs', '1', '--fromScratch',
                       '--output', str(tmp_path / 'run')]) == 0
    assert main(task, [*flags, '--test', 'dev', '--load', str(tmp_path / 'run/BEST'), '--output', str(tmp_path / 'results')]) == 0
    (tmp_path / 'ids').write_text(f'{rows[0]["question_id"]}\n{rows[1]["question_id"]}\n')
    capsys.readouterr()
    assert evaluate.main([task.kind, str(tmp_path / 'results/dev_predict.json'), str(tmp_path / 'out/dev.json'),
                          '--only', str(tmp_path / 'ids')]) == 0
    assert '6 predictions for other questions are not scored' in capsys.readouterr().out
