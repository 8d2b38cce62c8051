"""ALBEF's json: its readers, and data/albef/process_albef.py, which makes it from the official downloads."""

import json

import numpy as np
import pytest
from conftest import SHARED

from annotations import pretraining_text
from annotations.examples import PAIR, QUESTION, TEXT_QUESTION, read_examples
from annotations.spec import read_answers
from files.json_files import DataError
from tasks.entailment import Entailment
from tasks.refcoco import RefCOCO
from tasks.retrieval import Retrieval
from tasks.vqa import VQA
from tools import evaluate

TINY = SHARED / 'albef_tiny'
VQA_ITEM = {'question_id': 7, 'question': 'What?', 'answer': ['cat', 'dog', 'cat', 'cat'], 'image': 'train2014/x.jpg', 'dataset': 'vqa'}
VG_ITEM = {'question': 'Where?', 'answer': 'c', 'image': 'VG_100K/5.jpg', 'dataset': 'vg'}
PAIR_ITEM = {'images': ['test1/a-img0.png', 'test1/a-img1.png'], 'sentence': 'Two dogs.', 'label': 'True'}
ENTAILED = {'image': '4564320256', 'sentence': 'A dog.', 'label': 'neutral'}
CAPTION = {'image': 'flickr30k-images/1.jpg', 'caption': ['A dog.', 'Dogs.'], 'image_id': 'f_1'}
EXPRESSION = {'image': 'train2014/COCO_train2014_000000000009.jpg', 'text': 'left cup', 'ref_id': 3}


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def load(path):
    return json.loads(path.read_text())


def images(examples):
    return [[one.decode() for one in row] for row in examples.images.tolist()]


# ---- readers

def test_questions_have_weights_for_answers(tmp_path):
    path = save(tmp_path / 'vqa.json', [VQA_ITEM, VG_ITEM])
    examples = read_examples([path], QUESTION, ('cat', 'dog', 'c'))
    assert examples.ids.tolist() == [7, 1] and images(examples) == [['train2014/x'], ['VG_100K/5']]
    assert examples.label_example.tolist() == [0, 0, 1] and examples.label_answer.tolist() == [0, 1, 2]
    np.testing.assert_allclose(examples.label_score, [0.75, 0.25, 0.5])
    unlabelled = {key: value for key, value in VQA_ITEM.items() if key != 'answer'}
    assert not read_examples([save(tmp_path / 'test.json', [unlabelled])], QUESTION, ()).labelled


def test_statements_pairs_captions_and_expressions(tmp_path):
    pairs = read_examples([save(tmp_path / 'nlvr.json', [PAIR_ITEM, {**PAIR_ITEM, 'label': 'False'}])], PAIR, PAIR.answers)
    assert pairs.names() == ['0', '1'] and images(pairs)[0] == ['test1/a-img0', 'test1/a-img1']
    assert pairs.label_answer.tolist() == [1, 0] and pairs.sentences == ['Two dogs.']
    entailed = read_examples([save(tmp_path / 've.json', [ENTAILED])], Entailment.schema, Entailment.schema.answers)
    assert images(entailed) == [['4564320256']] and entailed.label_answer.tolist() == [1] and entailed.names() == ['0']
    captions = read_examples([save(tmp_path / 'f.json', [CAPTION, {**CAPTION, 'caption': 'One.'}])], Retrieval.schema, ())
    assert [captions.sentences[place] for place in captions.sentence] == ['A dog.', 'Dogs.', 'One.']
    assert images(captions) == 3 * [['flickr30k-images/1']]
    expressions = read_examples([save(tmp_path / 'r.json', [EXPRESSION])], RefCOCO.schema, ())
    assert expressions.ids.tolist() == [3] and not expressions.labelled
    texts = list(pretraining_text.read(save(tmp_path / 'p.json', [CAPTION, {**CAPTION, 'caption': 'One.'}])))
    assert texts == [{'img_id': 'flickr30k-images/1', 'sentf': {'captions': sent}} for sent in (['A dog.', 'Dogs.'], ['One.'])]


@pytest.mark.parametrize(('schema', 'item', 'message'), [
    (QUESTION, {**VQA_ITEM, 'question': None}, 'key "question": expected a text, found None'),
    (QUESTION, {**VQA_ITEM, 'answer': []}, 'key "answer": expected a text or a list of texts, found []'),
    (QUESTION, {**VQA_ITEM, 'answer': ['a', 1]}, 'key "answer"'), (QUESTION, {**VQA_ITEM, 'image': 5}, 'key "image"'),
    (QUESTION, {**VQA_ITEM, 'question_id': '7'}, "key \"question_id\": expected a whole number, found '7'"),
    (QUESTION, {'image': 'a.jpg'}, 'a picture without a text'), (QUESTION, {**VQA_ITEM, 'image': ''}, 'key "image"'),
    (QUESTION, {**VQA_ITEM, 'image': 'a\x1b[0m.jpg'}, 'key "img_id": expected an image id'),
    (PAIR, {**PAIR_ITEM, 'images': ['a']}, 'key "images": expected the paths of two pictures'),
    (PAIR, {**PAIR_ITEM, 'label': True}, 'key "label": expected "True" or "False", found True'),
    (PAIR, {**PAIR_ITEM, 'label': ['True']}, 'key "label"'),
    (PAIR, {'images': ['a', 'b'], 'label': 'True'}, 'key "sentence": expected a text, found no such key among'),
    (Entailment.schema, {**ENTAILED, 'label': 'maybe'}, 'key "label": expected a class'),
    (Entailment.schema, {'image': '1', 'sentence': 'x', 'label': None}, 'key "label": expected a text, found None'),
    (Retrieval.schema, {**CAPTION, 'caption': {}}, 'key "caption": expected a text or a list of texts'),
    (Retrieval.schema, {**CAPTION, 'caption': ' '}, 'none of them empty'),
    (RefCOCO.schema, {'image': 'a', 'text': 'b'}, 'key "ref_id": expected a whole number, found no such key'),
    (TEXT_QUESTION, VQA_ITEM, 'key "question_id"'),
])
def test_wrong_items_are_errors_that_name_file_item_and_key(tmp_path, schema, item, message):
    path = save(tmp_path / 'x.json', [item])
    with pytest.raises(DataError) as error:
        read_examples([path], schema, ('a',))
    assert message in str(error.value) and f'{path}: example 0' in str(error.value) and '\n' not in str(error.value)


def test_predictions_are_evaluated_with_albefs_files(tmp_path, capsys):
    predictions = save(tmp_path / 'p.json', [{'question_id': 7, 'answer': 'cat'}])
    figures = VQA.evaluate(predictions, save(tmp_path / 'vqa.json', [VQA_ITEM]))
    assert figures['measure'].startswith('VQA accuracy') and figures['accuracy'] == pytest.approx(100 * (3 * 2 / 3 + 1) / 4)
    statements = tmp_path / 'p.csv'
    statements.write_text('0,True\n1,True\n')
    path = save(tmp_path / 'nlvr.json', [PAIR_ITEM, {**PAIR_ITEM, 'label': 'False'}])
    assert evaluate.main(['nlvr2', str(statements), str(path)]) == 0 and '50.0' in capsys.readouterr().out


@pytest.mark.shared
def test_the_published_files_are_read():
    answers = read_answers(SHARED / 'vqa_albef/answer_list.json')
    assert len(answers) == 3128
    questions = read_examples([SHARED / 'vqa_albef/vqa_train.json', TINY / 'vqa_train.json'], QUESTION, answers)
    assert len(questions) == 13 and questions.labelled and questions.label_score.max() == 1
    assert len(read_examples([TINY / 'vqa_test.json'], QUESTION, answers)) == 7
    statements = read_examples([SHARED / 'nlvr2_albef/nlvr_test_1500.json', TINY / 'nlvr.json'], PAIR, PAIR.answers)
    assert len(statements) == 1506 and images(statements)[0] == ['test1/test1-0-1-img0', 'test1/test1-0-1-img1']
    for name, captions in (('retrieval/flickr30k_test', 5000), ('retrieval/photos_train', 55), ('retrieval/photos_test', 50),
                           ('albef_tiny/retrieval_train', 20)):
        assert len(read_examples([SHARED / f'{name}.json'], Retrieval.schema, ())) == captions
    assert len(read_examples([SHARED / 've/ve_test.json'], Entailment.schema, Entailment.schema.answers)) == 594
    assert len(read_examples([SHARED / 'grounding/refcoco_testA_part.json'], RefCOCO.schema, ())) == 14
    texts = list(pretraining_text.read(TINY / 'pretrain.json'))
    assert len(texts) == 10 and {len(item['sentf']['captions']) for item in texts} == {1, 3}
