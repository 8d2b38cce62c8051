"""ALBEF's json: its readers, and data/albef/process_albef.py, which makes it from the official downloads."""

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from conftest import SHARED, data_script

from annotations import pretraining_text
from annotations.examples import PAIR, QUESTION, TEXT_QUESTION, read_examples
from annotations.refer_files import read_boxes
from annotations.snli_ve import LABELS
from annotations.spec import read_answers
from batches import MicroBatch
from files.json_files import DataError
from pretrain import pairs
from tasks.entailment import Entailment
from tasks.refcoco import RefCOCO
from tasks.retrieval import Retrieval
from tasks.vqa import VQA
from tools import evaluate

TINY = SHARED / 'albef_tiny'
VQA_ITEM = {'question_id': 7, 'question': 'What?', 'answer': ['cat', 'dog', 'cat', 'cat'], 'image': 'train2014/x.jpg',
            'dataset': 'vqa'}
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
    assert not examples.further
    examples = read_examples([path], QUESTION, ('dog', 'x'), further=True)
    assert examples.label_answer.tolist() == [2, 0, 3] and examples.further == ['cat', 'c'] and not examples.unknown
    unlabelled = {key: value for key, value in VQA_ITEM.items() if key != 'answer'}
    assert not read_examples([save(tmp_path / 'test.json', [unlabelled])], QUESTION, ()).labelled


def test_statements_pairs_captions_and_expressions(tmp_path, capsys):
    pairs = read_examples([save(tmp_path / 'nlvr.json', [PAIR_ITEM, {**PAIR_ITEM, 'label': 'False'}])], PAIR, PAIR.answers)
    assert pairs.names() == ['0', '1'] and images(pairs)[0] == ['test1/a-img0', 'test1/a-img1']
    assert pairs.label_answer.tolist() == [1, 0] and pairs.sentences == ['Two dogs.']
    entailed = read_examples([save(tmp_path / 've.json', [ENTAILED])], Entailment.schema, LABELS)
    assert images(entailed) == [['4564320256']] and entailed.label_answer.tolist() == [1] and entailed.names() == ['0']
    undecided = {**ENTAILED, 'label': '-'}
    entailed = read_examples([save(tmp_path / 've.json', [undecided, ENTAILED, undecided])], Entailment.schema, LABELS)
    assert entailed.names() == ['1'] and '2 pairs without an agreed label' in capsys.readouterr().out
    with pytest.raises(DataError, match='did not agree on'):
        read_examples([save(tmp_path / 've.json', [undecided])], Entailment.schema, LABELS)
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
    assert len(read_examples([SHARED / 've/ve_test.json'], Entailment.schema, LABELS)) == 585  # of 594
    assert len(read_examples([SHARED / 'grounding/refcoco_testA_part.json'], RefCOCO.schema, ())) == 14
    texts = list(pretraining_text.read(TINY / 'pretrain.json'))
    assert len(texts) == 10 and {len(item['sentf']['captions']) for item in texts} == {1, 3}


def test_one_of_a_pictures_captions_is_drawn_each_time(tmp_path):
    paths = [save(tmp_path / 'a.json', [{'image': 'x/1.jpg', 'caption': ['a', 'b', 'c']}, {'image': 'x/1.jpg', 'caption': 'd'}]),
             save(tmp_path / 'b.json', [{'img_id': '7', 'sentf': {'one': ['e', 'f'], 'two': ['g']}}])]  # each is an example
    examples = pairs.read_pairs(paths)
    assert examples.ids.tolist() == [0, 0, 0, 1, 2, 3, 4] and examples.split.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert [examples.sentences[place] for place in examples.sentence] == list('abcdefg') and images(examples)[6] == ['7']

    class Captions:
        to_device = 'of the captions'

        def __init__(self):
            self.examples = examples

        def __getitem__(self, micro_batch):
            return micro_batch.indices.tolist()

    dataset = pairs.Pairs(Captions(), seed=3)
    assert len(dataset) == 5 and dataset.to_device == 'of the captions'
    drawn = [dataset[MicroBatch(np.arange(5), 0, epoch)] for epoch in range(60)]
    assert {tuple(batch[1:]) for batch in drawn} == {(3, 4, 5, 6)}
    counts = Counter(batch[0] for batch in drawn)
    assert set(counts) == {0, 1, 2} and min(counts.values()) > 8
    batch = MicroBatch(np.arange(5), 0, 7)  # the same whatever the batch begins with
    assert dataset[batch] == dataset[batch] and dataset[MicroBatch(np.arange(2, 5), 2, 7)] == dataset[batch][2:]
    with pytest.raises(DataError, match='example 0: key "caption"'):
        pairs.read_pairs([save(tmp_path / 'c.json', [{'image': 'x', 'caption': 3}])])


# ---- from the official downloads

process = data_script('albef/process_albef')
COCO = 'COCO_{0}_{1:012d}.jpg'


def karpathy(dataset, *images):
    folder = {'filepath': 'val2014'} if dataset == 'coco' else {}
    return {'dataset': dataset, 'images': [
        {'filename': name, 'split': split, 'sentences': [{'raw': text} for text in texts]} | folder
        for name, split, texts in images]}


def test_captions(tmp_path, capsys):
    flickr = save(tmp_path / 'dataset_flickr30k.json', karpathy(
        'flickr30k', ('1.jpg', 'train', ['A dog. ', 'Dogs.', ' ']), ('2.jpg', 'val', ['Two.']), ('3.jpg', 'test', ['x', 'y'])))
    coco = save(tmp_path / 'coco/annotations/dataset_coco.json', karpathy(
        'coco', ('a.jpg', 'train', ['one']), ('b.jpg', 'restval', ['two']), ('c.jpg', 'val', ['v']), ('d.jpg', 'test', ['t'])))
    process.main(['--flickr30k', str(flickr), '--coco', str(coco.parent.parent), '--out', str(tmp_path / 'out')])
    out = tmp_path / 'out'
    assert load(out / 'flickr30k_train.json') == [
        {'image': 'flickr30k-images/1.jpg', 'caption': text, 'image_id': 'flickr30k_0'} for text in ('A dog.', 'Dogs.')]
    assert load(out / 'flickr30k_test.json') == [{'image': 'flickr30k-images/3.jpg', 'caption': ['x', 'y']}]
    assert [item['image'] for item in load(out / 'coco_train.json')] == ['val2014/a.jpg', 'val2014/b.jpg']
    assert load(out / 'coco_val.json') == [{'image': 'val2014/c.jpg', 'caption': ['v']}]
    printed = capsys.readouterr().out
    assert 'flickr30k_train.json: 2 items' in printed and '1 empty captions of flickr30k_train left out' in printed
    (tmp_path / 'guide/images').mkdir(parents=True)
    for split in ('train', 'val', 'test'):
        save(tmp_path / f'guide/{split}.json', [{'image': f'{split}.jpg', 'caption': ['x']}])
    process.main(['--flickr30k', str(tmp_path / 'guide'), '--out', str(tmp_path / 'again')])
    assert load(tmp_path / 'again/flickr30k_val.json') == [{'image': 'images/val.jpg', 'caption': ['x']}]


def test_questions_and_candidate_answers(tmp_path, capsys):
    def folder(name, images, number, answers=None):
        save(tmp_path / f'vqa/Questions/v2_OpenEnded_mscoco_{images}_questions.json', {'questions': [
            {'question_id': number, 'image_id': 9, 'question': 'What?'}]})
        if answers:
            save(tmp_path / f'vqa/Annotations/v2_mscoco_{images}_annotations.json', {'annotations': [
                {'question_id': number, 'image_id': 9, 'multiple_choice_answer': answers[0],
                 'answers': [{'answer': answer} for answer in answers]}]})

    folder('train', 'train2014', 1, ['yes'] * 9 + ['no'])
    folder('val', 'val2014', 2, ['yes'] * 10)
    folder('test', 'test2015', 3)
    vocabulary = save(tmp_path / 'label2ans.json', ['', 'yes', 'no'])
    save(tmp_path / 'vg/image_data.json', [{'image_id': 5, 'url': 'https://x/VG_100K_2/5.jpg'}])
    genome = save(tmp_path / 'vg/question_answers.json', [{'id': 5, 'qas': [
        {'image_id': 5, 'qa_id': 1, 'question': 'Where?', 'answer': 'On the road.'}]}])
    process.main(['--vqa', str(tmp_path / 'vqa'), '--answers', str(vocabulary), '--genome', str(genome.parent), '--out',
                  str(tmp_path / 'out')])
    out = tmp_path / 'out'
    assert load(out / 'vqa_train.json') == [
        {'question_id': 1, 'question': 'What?', 'answer': ['yes'] * 9 + ['no'], 'dataset': 'vqa',
         'image': 'train2014/' + COCO.format('train2014', 9)}]
    assert load(out / 'vqa_test.json') == [
        {'question_id': 3, 'question': 'What?', 'image': 'test2015/' + COCO.format('test2015', 9), 'dataset': 'vqa'}]
    assert load(out / 'answer_list.json') == ['yes', 'no']
    assert load(out / 'vg_qa.json') == [
        {'question': 'Where?', 'answer': 'On the road', 'image': 'VG_100K_2/5.jpg', 'dataset': 'vg'}]
    paths = [out / f'{name}.json' for name in ('vqa_train', 'vqa_val', 'vg_qa')]
    assert read_examples(paths, QUESTION, ['yes', 'no', 'On the road']).ids.tolist() == [1, 2, 0]
    with pytest.raises(DataError, match=r'answer_list\.json: no item'):  # each answer is that of fewer than nine questions
        process.main(['--vqa', str(tmp_path / 'vqa'), '--out', str(tmp_path / 'counted')])
    assert not list((tmp_path / 'counted').iterdir())


def test_statements_and_pairs(tmp_path):
    folder = tmp_path / 'nlvr2'
    folder.mkdir()
    rows = {'train': {'identifier': 'train-7-0-1', 'sentence': 'Two.', 'label': 'True', 'directory': 44},
            'dev': {'identifier': 'dev-7-0-0', 'sentence': 'Dogs.', 'label': 'False'},
            'test1': {'identifier': 'test1-0-1-0', 'sentence': 'A glass.', 'label': 'False'}}
    for name, row in rows.items():
        (folder / f'{name}.json').write_text(json.dumps(row) + '\n')
    pairs = tmp_path / 'snli'
    pairs.mkdir()
    (pairs / 'snli_ve_dev.jsonl').write_text(''.join(json.dumps(
        {'pairID': f'{i}', 'Flickr30K_ID': '4564', 'sentence2': 'A dog.', 'gold_label': label}) + '\n'
        for i, label in enumerate(('neutral', '-'))))
    process.main(['--nlvr2', str(folder), '--snliVe', str(pairs), '--out', str(tmp_path / 'out')])
    out = tmp_path / 'out'
    assert load(out / 'nlvr_train.json') == [{'images': [f'images/train/44/train-7-0-img{i}.png' for i in (0, 1)],
                                              'sentence': 'Two.', 'label': 'True'}]
    assert load(out / 'nlvr_test.json')[0]['images'] == ['test1/test1-0-1-img0.png', 'test1/test1-0-1-img1.png']
    assert load(out / 've_dev.json') == [{'image': '4564', 'sentence': 'A dog.', 'label': 'neutral'}]
    picture = folder / 'images/dev/dev-7-0-img0.png'
    picture.parent.mkdir(parents=True)
    picture.touch()
    process.main(['--nlvr2', str(folder), '--out', str(tmp_path / 'again')])
    assert load(tmp_path / 'again/nlvr_dev.json')[0]['images'][1] == 'images/dev/dev-7-0-img1.png'


def ref(number, split, text):
    return {'ref_id': number, 'ann_id': number, 'image_id': 9, 'split': split, 'sentences': [{'sent': text, 'tokens': [text]}]}


@pytest.mark.parametrize('form', ['pickle', 'json', 'rows'])
def test_expressions(tmp_path, form):
    refs = [ref(1, 'train', 'cup'), ref(2, 'val', 'red cup'), ref(3, 'testA', 'man'), ref(4, 'testB', 'dog')]
    path = tmp_path / 'refcoco+/refs(unc).p'
    path.parent.mkdir()
    path.write_bytes(pickle.dumps(refs, 2))
    if form != 'pickle':
        path.unlink()
        rows = [one | {'raw_anns': json.dumps({'id': one['ann_id'], 'bbox': [1, 2, 3, 4], 'category_id': 7}),
                       'raw_image_info': json.dumps({'id': 9, 'height': 20, 'width': 30})} for one in refs]
        path = save(tmp_path / 'refcoco+/refs.json', {'train': rows[:1], 'test': rows[1:]} if form == 'rows' else refs)
    process.main(['--refcoco', str(path.parent), '--out', str(tmp_path / 'out')])
    out = tmp_path / 'out'
    assert load(out / 'refcoco+_val.json') == [
        {'image': 'train2014/' + COCO.format('train2014', 9), 'text': 'red cup', 'ref_id': 2}]
    assert [item['text'] for item in load(out / 'refcoco+_test.json')] == ['man', 'dog']
    if form == 'rows':
        assert load(out / 'refcoco+_refs.json') == refs
        boxes, _ = read_boxes(out / 'refcoco+_instances.json')
        assert boxes == {number: (9, [1, 2, 4, 6]) for number in (1, 2, 3, 4)}
    else:
        assert not (out / 'refcoco+_refs.json').exists()


@pytest.mark.parametrize(('flag', 'files', 'message'), [
    ('flickr30k', {'dataset_flickr30k.json': {'images': [{'split': 'dev'}]}}, 'key "split": expected train'),
    ('flickr30k', {}, 'expected dataset_flickr30k.json'), ('coco', {}, 'expected dataset_coco.json'),
    ('vqa', {}, 'expected files of at least one dataset'), ('genome', {}, 'expected question_answers.json'),
    ('nlvr2', {'dev.json': {'identifier': 'x', 'sentence': 'y'}}, 'key "identifier": expected a text like dev-354-0-1'),
    ('nlvr2', {'dev.json': {'identifier': 'dev-1-0-0', 'sentence': 5}}, 'key "sentence": expected str, found 5'),
    ('snliVe', {'dev.json': [{'image': '1', 'sentence': 'x', 'label': 3}]}, 'key gold_label or label'),
    ('refcoco', {'refs.json': [{'ref_id': 'x', 'split': 'val', 'sentences': []}]}, 'key "ref_id": expected int'),
    ('refcoco', {'refs.json': [ref(1, 'train', 'x') | {'raw_anns': '{', 'raw_image_info': '{}'}]}, 'incomplete or invalid json'),
    ('genome', {'question_answers.json': [{'qas': [{'image_id': 1}]}], 'image_data.json': [{'image_id': 2, 'url': 'x/y'}]},
     'found image_id 1'),
])
def test_wrong_downloads_are_one_line(tmp_path, flag, files, message):
    (tmp_path / 'raw').mkdir()
    for name, content in files.items():
        save(tmp_path / 'raw' / name, content)
    with pytest.raises((DataError, FileNotFoundError)) as error:
        process.main([f'--{flag}', str(tmp_path / 'raw'), '--out', str(tmp_path / 'out')])
    assert message in str(error.value) and '\n' not in str(error.value) and not list((tmp_path / 'out').glob('*'))


@pytest.mark.shared
def test_the_official_files(tmp_path):
    raw = tmp_path / 'nlvr2'
    raw.mkdir()
    (raw / 'dev.json').write_bytes((SHARED / 'nlvr2_raw/dev.json').read_bytes())
    pickled = TINY / 'refcoco+/refs(unc).p'
    process.main(['--nlvr2', str(raw), '--refcoco', str(pickled), '--out', str(tmp_path / 'out')])
    assert len(load(tmp_path / 'out/nlvr_dev.json')) == 2300
    assert [item['ref_id'] for item in load(tmp_path / 'out/refcoco+_val.json')]
