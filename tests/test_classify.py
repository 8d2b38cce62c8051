"""Classification of images with texts: one class or several labels, their metrics and files."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, run_program
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

import models
from annotations.examples import read_examples
from files.json_files import DataError
from regions import tsv
from tasks.classify import Classify, MultiLabel
from tasks.predictor import Predictor
from tasks.program import main
from tools.check_dataset import main as check_dataset

SHAPES = ['circle', 'square', 'triangle', 'star']


def describe(world, kind, classes, examples):
    """Writes a dataset of examples(questions of VQA) for --dataset and returns its path; its split test has no labels."""
    splits = {}
    for name, split, features in (('train', 'train', 'train2014'), ('dev', 'minival', 'val2014'), ('test', 'minival', 'val2014')):
        items = list(examples(json.loads((world / f'vqa/{split}.json').read_text()), features))
        if name == 'test':
            items = [{key: value for key, value in item.items() if key != 'label'} for item in items]
        (world / f'{kind}_{name}.json').write_text(json.dumps(items))
        splits[name] = {'annotations': f'{kind}_{name}.json', 'features': [f'mscoco_imgfeat/{features}_obj36.tsv']}
    (world / f'{kind}_classes.json').write_text(json.dumps(classes))
    path = world / f'{kind}.json'
    path.write_text(json.dumps({'kind': kind, 'name': 'mine', 'max_length': 20, 'answers': f'{kind}_classes.json',
                                'splits': splits}))
    return path


def memes(world):
    """Two classes, in the format of hateful memes."""
    def examples(questions, _):
        for question in questions:
            yield {'id': question['question_id'], 'img': f'img/{question["img_id"]}.png', 'text': question['sent'],
                   'label': int('yes' in question['label'])}

    return describe(world, 'classify', ['other', 'yes'], examples)


def colours(world):
    """Three classes, by name."""
    def examples(questions, _):
        for question in questions:
            label = max(question['label'], key=question['label'].get)
            yield {'id': f'q{question["question_id"]}', 'img_id': question['img_id'], 'sent': question['sent'],
                   'label': label if label in ('yes', 'no') else 'a, "third" one'}

    return describe(world, 'classify', ['yes', 'no', 'a, "third" one'], examples)


def shapes(world):
    """Several labels, by name and by index: the shapes of a picture."""
    def examples(questions, features):
        of_image = {image.img_id: sorted(set(image.classes[image.class_conf > 0.8].tolist()))
                    for _, image in tsv.read(world / f'mscoco_imgfeat/{features}_obj36.tsv')}
        for question in questions:
            labels = [label for label in of_image[question['img_id']] if label < len(SHAPES)]
            yield {'id': question['question_id'], 'img_id': question['img_id'], 'sent': 'a picture',
                   'label': [SHAPES[label] if label % 2 else label for label in labels]}

    return describe(world, 'multilabel', SHAPES, examples)


def run(world, output, *flags, model=(), program=Classify):
    return main(program, ['--device', 'cpu', '--dataRoot', str(world), '--bert', str(world / 'bert'), '--output', str(output),
                          '--batchSize', '32', '--lr', '1e-3', *model, *map(str, flags)])


def rows_of(path):
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.reader(file))


@pytest.mark.parametrize('make', [memes, colours, shapes])
@pytest.mark.parametrize('model', ['lxmert', 'single_stream'])
def test_metrics_are_those_of_scikit_learn_on_the_written_file(world, tmp_path, capsys, monkeypatch, make, model):
    monkeypatch.setitem(models.MODELS, 'single_stream', 'single_stream')
    path = make(world)
    begin = ['--dataset', path, '--model', model, '--train', 'train', '--valid', 'dev', '--epochs', '1', '--fromScratch']
    assert run(world, tmp_path / 'run', *begin) == 0, capsys.readouterr().err
    log = (tmp_path / 'run/log.log').read_text()
    shown = capsys.readouterr().out
    test = ['--dataset', path, '--load', tmp_path / 'run/BEST', '--dumpProbs', '1']
    assert run(world, tmp_path / 'dev', *test, '--test', 'dev') == 0
    tested = capsys.readouterr().out

    classes = json.loads((world / json.loads(path.read_text())['answers']).read_text())
    items = json.loads((world / json.loads(path.read_text())['splits']['dev']['annotations']).read_text())
    header, *rows = rows_of(tmp_path / 'dev/dev_predict.csv')
    assert [row[0] for row in rows] == [str(item['id']) for item in items]
    if make is memes:
        assert header == ['id', 'proba', 'label']
        truth, predicted = [item['label'] for item in items], [int(row[2]) for row in rows]
        area = roc_auc_score(truth, [float(row[1]) for row in rows])
        assert predicted == [int(float(row[1]) > 0.5) for row in rows]
    else:
        assert header == ['id', 'label', *classes]
        matrix = np.array([row[2:] for row in rows], float)
        if make is colours:
            truth, predicted = [item['label'] for item in items], [row[1] for row in rows]
            assert predicted == [classes[i] for i in matrix.argmax(1)] and np.allclose(matrix.sum(1), 1, atol=1e-5)
            area = roc_auc_score(truth, matrix[:, np.argsort(classes)], multi_class='ovr')
        else:
            labels = [{SHAPES[one] if isinstance(one, int) else one for one in item['label']} for item in items]
            truth = np.array([[name in names for name in SHAPES] for names in labels])
            assert [row[1] for row in rows] == ['|'.join(np.array(SHAPES)[row > 0.5]) for row in matrix]
            predicted = matrix > 0.5
            used = [i for i in range(len(SHAPES)) if 0 < truth[:, i].sum() < len(truth)]
            area = roc_auc_score(truth[:, used], matrix[:, used])
    figures = (f'accuracy {100 * accuracy_score(truth, predicted):.2f}, '
               f'macro F1 {100 * f1_score(truth, predicted, average="macro", zero_division=0):.2f}, AUROC {100 * area:.2f}')
    assert f'Epoch 0: Valid {figures}\n' in log and figures in shown and figures in tested
    score = re.search(r'accuracy ([\d.]+)' if make is not shapes else r'macro F1 ([\d.]+)', figures)[1]
    assert f'Score on dev: {score}\n' in tested and f'Epoch 0: Best {score}\n' in log and 'Oracle' not in shown
    probs = json.loads((tmp_path / 'dev/dev_probs.json').read_text())
    assert [len(item['answers']) for item in probs] == [1] * len(items)

    assert run(world, tmp_path / 'test', *test, '--test', 'test') == 0
    assert rows_of(tmp_path / 'test/test_predict.csv') == [header, *rows]
    assert 'test has no labels' in capsys.readouterr().out

    if model != 'lxmert':
        return
    predictor = Predictor.from_snapshot(tmp_path / 'run/BEST')
    _, image = next((place, one) for place, one in tsv.read(world / 'mscoco_imgfeat/val2014_obj36.tsv')
                    if one.img_id in json.dumps(items[0]))
    answers = dict(predictor.answer(image, items[0].get('sent') or items[0]['text'], len(classes))[0])
    expected = [1 - float(rows[0][1]), float(rows[0][1])] if make is memes else map(float, rows[0][2:])
    assert [answers[name] for name in classes] == pytest.approx(list(expected), abs=1e-5)


def test_learns(world, tmp_path, capsys):
    """Which shapes there are can be read off the regions."""
    assert run(world, tmp_path / 'run', '--dataset', shapes(world), '--train', 'train', '--valid', 'train', '--epochs', '5',
               '--fromScratch', '--optim', 'adam') == 0
    scores = re.findall(r'Valid .*AUROC ([\d.]+)', (tmp_path / 'run/log.log').read_text())
    assert float(scores[-1]) > 75


def test_two_processes_give_the_same_result(world, tmp_path):
    path = memes(world)
    start = ['--dataset', path, '--train', 'train', '--valid', 'dev', '--batchSize', '64', '--fromScratch', '--epochs', '1']
    two = run_program('classify', world, tmp_path / 'two', *start, '--dropout', '0', processes=2)
    assert two.returncode == 0, two.stderr
    one = run_program('classify', world, tmp_path / 'one', *start, '--dropout', '0')
    assert one.returncode == 0
    one, two = (torch.load(tmp_path / name / 'LAST.pth', weights_only=True) for name in ('one', 'two'))
    assert all(torch.allclose(tensor, two[name], rtol=0, atol=1e-4) for name, tensor in one.items())


def test_resumed_in_the_middle(world, tmp_path, monkeypatch):
    import train

    path = memes(world)
    flags = ['--dataset', path, '--train', 'train', '--valid', 'dev', '--fromScratch', '--epochs', '2', '--saveSteps', '2']
    assert run(world, tmp_path / 'run', *flags) == 0
    step, calls = train.train_step, []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(train, 'train_step', stop)
    assert run(world, tmp_path / 'stopped', *flags) == 130
    assert run(world, tmp_path / 'stopped', *flags, '--resume') == 0
    one, other = (torch.load(tmp_path / name / 'LAST.pth', weights_only=True) for name in ('run', 'stopped'))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(('kind', 'label', 'fault'), [
    ('classify', 'maybe', 'key "label": expected a class, by its name in "answers" (other, yes) or by its index there, 0 to 1'),
    ('classify', 2, 'key "label": expected a class'), ('classify', True, 'key "label": expected a class'),
    ('classify', ['yes'], 'key "label": expected a class'), ('classify', {'yes': 1}, 'key "label": expected a class'),
    ('multilabel', 1, 'key "label": expected a list of classes, each by its name'),
    ('multilabel', ['yes', 'maybe'], 'key "label": expected a list of classes'),
    ('multilabel', [-1], 'key "label": expected a list of classes')])
def test_a_faulty_label_is_named(tmp_path, kind, label, fault):
    schema = {'classify': Classify, 'multilabel': MultiLabel}[kind].schema
    sound = {'id': 1, 'img': '1.png', 'text': 'a', 'label': 'yes' if kind == 'classify' else ['yes']}
    path = tmp_path / 'a.json'
    path.write_text(json.dumps([sound, {'id': 'two', 'img_id': '2', 'sent': 'b', 'label': label}]))
    with pytest.raises(DataError) as error:
        read_examples([path], schema, ['other', 'yes'])
    assert str(error.value).startswith(f'{path}: example 1: {fault}')


def test_flags_and_descriptions_that_do_not_fit(world, tmp_path, capsys):
    assert run(world, tmp_path / 'none', '--train', 'train', '--valid', 'dev', '--fromScratch') == 1
    assert '--dataset: this task has no published data' in capsys.readouterr().err
    path = shapes(world)
    flags = ['--dataset', path, '--train', 'train', '--valid', 'dev', '--fromScratch']
    assert run(world, tmp_path / 'loss', *flags, '--mceLoss') == 1
    assert '--mceLoss: does not apply to the kind multilabel' in capsys.readouterr().err
    path.write_text(path.read_text().replace('"multilabel"', '"vqa"', 1))
    assert run(world, tmp_path / 'kind', *flags) == 1
    assert 'key "kind": expected "classify" or "multilabel" for this program, found "vqa"' in capsys.readouterr().err
    assert check_dataset([str(memes(world)), '--bert', str(world / 'bert')]) == 0
    described = shapes(world)
    assert 'examples of the classes: other ' in capsys.readouterr().out
    (world / 'multilabel_classes.json').write_text(json.dumps([*SHAPES, 'unicorn']))
    assert check_dataset([str(described)]) == 0
    assert '1 classes have no example (unicorn): nothing is learned about them' in capsys.readouterr().out


def test_one_class_in_the_labels_has_no_area(world, tmp_path, capsys):
    path = memes(world)
    dev = world / 'classify_dev.json'
    dev.write_text(json.dumps([item | {'label': 1} for item in json.loads(dev.read_text())]))
    assert run(world, tmp_path / 'run', '--dataset', path, '--train', 'train', '--valid', 'dev', '--epochs', '1',
               '--fromScratch') == 0
    assert 'AUROC' not in (tmp_path / 'run/log.log').read_text()
    assert 'no AUROC, since no class has' in capsys.readouterr().out


def test_the_example_of_the_documentation(world, tmp_path, capsys):
    readme = (ROOT / 'data/README.md').read_text()
    section = re.search(r'^### Classes of an image with a text\n(.*?)^### ', readme, re.S | re.M)[1]
    description, examples, several = (json.loads(block) for block in re.findall(r'```json\n(.*?)```', section, re.S))
    images = [image for _, image in tsv.read(world / 'mscoco_imgfeat/val2014_obj36.tsv')]
    (tmp_path / 'memes.json').write_text(json.dumps(description))
    (tmp_path / description['answers']).write_text(re.search(r'`(\["[^`]*\])`', section)[1])
    for split in description['splits'].values():
        (tmp_path / split['annotations']).write_text('\n'.join(map(json.dumps, examples)))  # as published, json lines
        for file in split['features']:
            ids = [item['img'].rpartition('/')[2].partition('.')[0] for item in examples]
            tsv.write(tmp_path / file, [replace(image, img_id=img_id) for image, img_id in zip(images, ids, strict=False)])
    assert check_dataset([str(tmp_path / 'memes.json'), '--bert', str(world / 'bert')]) == 0, capsys.readouterr().out
    assert run(world, tmp_path / 'run', '--dataset', tmp_path / 'memes.json', '--train', 'train', '--valid', 'dev', '--epochs',
               '1', '--fromScratch') == 0
    path = tmp_path / 'several.json'
    path.write_text(json.dumps(several))
    assert len(read_examples([path], MultiLabel.schema, ['circle', 'square', 'star'])) == len(several)


def test_an_error_report_and_a_converted_snapshot_give_the_same(world, tmp_path, capsys):
    from shapes.show import main as report
    from tools.convert import main as convert

    assert run(world, tmp_path / 'run', '--dataset', colours(world), '--train', 'train', '--valid', 'dev', '--epochs', '1',
               '--fromScratch') == 0
    assert convert(['to-hf', str(tmp_path / 'run/BEST.pth'), str(tmp_path / 'hf')]) == 0, capsys.readouterr().err
    assert 'question_answering_score.softmax(-1)' in (tmp_path / 'hf/README.md').read_text()
    _, image = next(tsv.read(world / 'mscoco_imgfeat/val2014_obj36.tsv'))
    one, other = (Predictor.from_snapshot(path).answer(image, 'a star?', 3) for path in (tmp_path / 'run/BEST', tmp_path / 'hf'))
    assert one == other and sum(probability for _, probability in one[0]) == pytest.approx(1, abs=1e-5)

    capsys.readouterr()
    for make, name in ((colours, 'one'), (shapes, 'several')):
        path = make(world)
        if name == 'several':
            assert run(world, tmp_path / 'several', '--dataset', path, '--train', 'train', '--valid', 'dev', '--epochs', '1',
                       '--fromScratch') == 0
        folder = tmp_path / ('run' if name == 'one' else name)
        best = re.search(r'Epoch 0: Best ([\d.]+)', (folder / 'log.log').read_text())[1]
        flags = ['--task', json.loads(path.read_text())['kind'], '--load', folder / 'BEST', '--test', 'dev', '--dataset', path,
                 '--dataRoot', world, '--device', 'cpu', '--out', tmp_path / f'{name}.html']
        assert report(['errors', *map(str, flags)]) == 0
        assert f'Score on dev: {best}\n' in capsys.readouterr().out
