"""Ten real COCO images with real Faster R-CNN features, and nine real questions, through layers of the published size."""

import json
import shutil

import pytest
import torch
from conftest import SHARED

import models
from lxrt.config import LxrtConfig
from tasks.program import main
from tasks.vqa import VQA


def soft_scores(answers):
    """VQA's soft score of each of ten people's answers."""
    return {answer: min(1.0, [0, 0.3, 0.6, 0.9, 1.0][min(answers.count(answer), 4)]) for answer in set(answers)}


@pytest.mark.shared
def test_a_model_of_the_published_width_trains_on_real_regions_and_answers_real_questions(tmp_path, capsys):
    asked = json.loads((SHARED / 'coco_regions/vqa.json').read_text())
    examples = [{'img_id': q['img_id'], 'question_id': q['question_id'], 'sent': q['question'],
                 'label': soft_scores(q['answers'])} for q in asked]
    # Two steps of one question each, in float32, which is fast on every CPU; all nine are answered.
    (tmp_path / 'two.json').write_text(json.dumps(examples[::8]))
    (tmp_path / 'nine.json').write_text(json.dumps(examples))
    for source in ('coco_regions/train2014_obj36.tsv', 'answers/vqa/trainval_label2ans.json'):
        shutil.copy(SHARED / source, tmp_path)
    (tmp_path / 'bert').mkdir()
    shutil.copy(SHARED / 'vocab/bert-base-uncased-vocab.txt', tmp_path / 'bert/vocab.txt')
    splits = {name: {'annotations': f'{name}.json', 'features': ['train2014_obj36.tsv']} for name in ('two', 'nine')}
    (tmp_path / 'real.json').write_text(json.dumps({
        'kind': 'vqa', 'name': 'real', 'max_length': 20, 'answers': 'trainval_label2ans.json', 'splits': splits}))
    common = ['--device', 'cpu', '--dataset', str(tmp_path / 'real.json'), '--bert', str(tmp_path / 'bert'),
              '--output', str(tmp_path / 'run')]
    train = ['--train', 'two', '--valid', '', '--batchSize', '1', '--epochs', '1', '--fromScratch',
             '--llayers', '1', '--rlayers', '1', '--xlayers', '1']  # the others are alike, and take most of the time
    assert main(VQA, [*common, *train]) == 0, capsys.readouterr()
    printed = capsys.readouterr().out
    # 3,129 answers and 30,522 word pieces; without a config.json the sizes of a layer are the published ones.
    with torch.device('meta'):
        head = models.build('lxmert', 'vqa', LxrtConfig(l_layers=1, r_layers=1, x_layers=1), range(3129))
    millions = sum(p.numel() for p in head.parameters()) / 1e6
    assert 'two: 2 questions on 2 images.' in printed and f'Training {millions:.1f} M parameters' in printed
    assert main(VQA, [*common, '--test', 'nine', '--load', str(tmp_path / 'run/LAST')]) == 0
    predicted = json.loads((tmp_path / 'run/nine_predict.json').read_text())
    # The first step's rate is 0, so it is the second that moves the biases away from their 0.
    assert torch.load(tmp_path / 'run/LAST.pth', weights_only=True, mmap=True)['logit_fc.3.bias'].any()
    answers = json.loads((tmp_path / 'trainval_label2ans.json').read_text())
    assert [p['question_id'] for p in predicted] == [q['question_id'] for q in asked]
    assert all(p['answer'] in answers for p in predicted)
    printed = capsys.readouterr().out
    assert 'nine: 9 questions on 5 images.' in printed and 'Score on nine: ' in printed
    shutil.rmtree(tmp_path / 'run')  # gigabytes
