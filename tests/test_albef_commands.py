"""run/albef.bash: ALBEF's configurations and flags, what they become, the files that they make, and what is wrong with them."""

import argparse
import json
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import ROOT, SHARED

import models
from annotations.spec import DatasetSpec
from bert.weights import read_state
from files.json_files import DataError
from param import parse_args
from tasks.registry import task_class
from tools import albef, albef_options

TINY = SHARED / 'albef_tiny'
needs_albef = pytest.mark.skipif('albef' not in models.MODELS, reason='needs the model albef')
BERT = {'vocab_size': 100, 'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'intermediate_size': 32,
        'max_position_embeddings': 64, 'fusion_layer': 1, 'encoder_width': 16}
MODEL = {'image_res': 16, 'patch_size': 8, 'vision_width': 16, 'vision_depth': 1, 'vision_heads': 2, 'embed_dim': 4,
         'queue_size': 8}
OPTIMIZATION = {'optimizer': {'opt': 'adamW', 'lr': 1e-5, 'weight_decay': 0.03},
                'schedular': {'sched': 'cosine', 'lr': 2e-5, 'epochs': 3, 'min_lr': 1e-6, 'decay_rate': 1, 'warmup_lr': 1e-5,
                              'warmup_epochs': 4, 'cooldown_epochs': 0}}


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def configuration(folder, **values):
    """The path of a yaml file with a small model."""
    bert = save(folder / 'config_bert.json', BERT)
    path = folder / 'x.yaml'
    path.write_text(yaml.safe_dump(MODEL | OPTIMIZATION | {
        'bert_config': str(bert), 'train_file': [str(folder / 'train.json')], 'image_root': str(folder / 'images')} | values))
    return path


def command(folder, *flags, name='Retrieval', **values):
    return [name, '--config', str(configuration(folder, **values)), '--output_dir', str(folder / 'out'), *flags]


def options_of(plan):
    return parse_args(plan.flags)


# ---- flags and configurations

@needs_albef
@pytest.mark.parametrize('name', albef_options.PROGRAMS)
def test_the_configurations_are_those_of_the_recipes(name, monkeypatch, tmp_path):
    """Each value of data/albef/configs is read, and the published training is that of the model's recipe."""
    monkeypatch.chdir(ROOT)
    file = {'Retrieval': 'Retrieval_flickr', 'Pretrain_nlvr': 'NLVR_pretrain'}.get(name, name)
    if name in ('VQA', 'Grounding'):  # whose annotations are read
        monkeypatch.setattr(albef_options, 'describe_splits', lambda plan: plan.splits.update(train={}))
    plan = albef_options.make_plan([name, '--config', f'./configs/{file}.yaml', '--output_dir', str(tmp_path)])
    options, kind = options_of(plan), albef_options.TASK_OF.get(name, plan.program.kind)
    recipe = models.package('albef').recipe(kind, options)
    assert (options.lr, options.epochs, 8 * options.batchSize) == (recipe.lr, recipe.epochs, recipe.batch_size)
    assert plan.recipe == {key: getattr(recipe, key) for key in ('weight_decay', 'min_lr', 'warmup_lr', 'warmup')}
    assert plan.config.image_res == (256 if 'Pretrain' in name else 384) and plan.config.group == options.batchSize
    assert plan.config.k_test == (128 if name in ('Retrieval', 'VQA') else plan.config.k_test)
    assert plan.config.text.fusion_layer == 6 and plan.config.queue_size == 65536


@needs_albef
def test_the_guides_commands_become_ours(tmp_path, monkeypatch):
    values = {'val_file': str(tmp_path / 'v.json'), 'test_file': [str(tmp_path / 't.json')], 'batch_size_train': 32,
              'batch_size_test': 64, 'k_test': 7, 'warm_up': False}
    flags = ['--textencoder', 'pretrained/bert', '--checkpoint', 'pretrained/ALBEF_14M.pth', '--device', 'cuda', '--distributed',
             'False']
    plan = albef_options.make_plan(command(tmp_path, *flags, **values))
    options = options_of(plan)
    assert (options.train, options.valid, options.test, options.loadALBEF) == ('train', 'val', None, 'pretrained/ALBEF_14M.pth')
    assert (options.lr, options.epochs, options.batchSize, options.evalBatchSize, options.seed) == (2e-5, 3, 32, 64, 42)
    assert (options.bert, options.device, options.model, options.load) == ('pretrained/bert', None, 'albef', None)
    assert plan.args.distributed is False and plan.config.k_test == 7 and plan.config.image_res == 16
    assert albef_options.make_plan(command(tmp_path, '--repairs', 'separator', **values)).config.repairs == ('separator',)
    assert plan.recipe == {'weight_decay': 0.03, 'min_lr': 1e-6, 'warmup_lr': 1e-5, 'warmup': 400}
    monkeypatch.setenv('WORLD_SIZE', '4')  # batch sizes are of a process
    assert options_of(albef_options.make_plan(command(tmp_path, *flags, **values))).batchSize == 128
    options = options_of(albef_options.make_plan(command(
        tmp_path, '--text_encoder', 'b', '--checkpoint', 'out/checkpoint_best.pth', '--evaluate', '--device', 'cpu', '--bf16',
        '--seed', '7', **values)))
    assert (options.load, options.test, options.loadALBEF) == ('out/checkpoint_best.pth', 'test', None)
    assert (options.device, options.bf16, options.seed, options.bert, options.numWorkers) == ('cpu', True, 7, 'b', 0)


def test_paths_are_looked_for_below_the_data_and_the_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ('data/albef/configs/a.yaml', 'snap/pretrained/b.pth', 'pretrained/c.pth', 'data/albef/pretrained/c.pth'):
        save(tmp_path / path, {})
    for typed, place in (('./configs/a.yaml', 'data/albef/configs/a.yaml'), ('pretrained/b.pth', 'snap/pretrained/b.pth'),
                         ('pretrained/c.pth', 'pretrained/c.pth'), ('none/x', 'none/x'), ('/none/x', '/none/x')):
        assert str(albef_options.located(typed)) == place


@pytest.mark.parametrize(('text', 'value'), [('False', False), ('false', False), ('0', False), ('True', True), ('1', True)])
def test_distributed_false_is_false(text, value):
    assert albef_options.parse_args(['VE', '--config', 'x', '--output_dir', 'y', '--distributed', text]).distributed is value


@pytest.mark.parametrize(('flags', 'message'), [
    (['--text_encodr', 'x'], '--text_encodr: there is no such flag; did you mean --text_encoder?'),
    (['--distributed', 'maybe'], 'expected True or False, found maybe'), (['--evaluate'], 'give the weights to evaluate'),
    (['--evaluate', '--resume', '--checkpoint', 'x'], '--evaluate and --resume'),
    (['--gradcam_mode', 'x'], "invalid choice: 'x'"), (['surplus'], 'surplus: there is no such flag'),
    (['--text_decoder', 'y'], '--text_decoder y: expected that of --text_encoder'),
])
def test_wrong_flags_are_one_error(capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        albef_options.parse_args(['VE', '--config', 'x', '--output_dir', 'y', *flags])
    assert end.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(('change', 'message'), [
    ({'image_rot': 'x'}, "key 'image_rot': there is no such key; did you mean \"image_root\"?"),
    ({'optimizer': {'lrr': 1}}, 'optimizer: key \'lrr\': there is no such key; did you mean "lr"? Known: opt, lr, weight_decay'),
    ({'optimizer': [1]}, 'key "optimizer": expected dict, found [1]'), ({'train_file': []}, 'key "train_file": expected a path'),
    ({'train_file': [1]}, 'key "train_file": expected a path or a list of paths, found [1]'),
    ({'schedular': {'epochs': 'ten'}}, "key \"schedular.epochs\": expected int, found 'ten'"),
    ({'schedular': {'epochs': True}}, 'key "schedular.epochs": expected int, found True'),
    ({'schedular': {'sched': 'step'}}, "key \"schedular.sched\": expected 'cosine', the only one that there is, found 'step'"),
    ({'schedular': {'lr': -1}}, 'key "schedular.lr": expected a number of at least 0, found -1'),
    ({'warm_up': 'yes'}, "key \"warm_up\": expected bool, found 'yes'"),
    ({'vqa_root': 'x'}, "key 'vqa_root': there is no such key"),
    ({1: 2}, 'key 1: there is no such key'), ({'bert_config': None}, 'key "bert_config": expected str, found None'),
])
def test_wrong_configurations_are_errors_that_name_file_and_key(tmp_path, change, message):
    path = configuration(tmp_path, **{key: value for key, value in change.items() if isinstance(key, str)})
    if 1 in change:
        path.write_text(path.read_text() + '1: 2\n')
    with pytest.raises(DataError) as error:
        albef_options.read_config(path, 'Retrieval')
    assert message in str(error.value) and str(error.value).startswith(str(path)) and '\n' not in str(error.value)


def test_damaged_configurations(tmp_path):
    for text, message in (('a: &x [1]\nb: *x\n', 'aliases are not read'), ('- 1\n', 'keys with values'),
                          ('a: [', 'is not plain yaml'), ('!!python/object/apply:os.system ["x"]', 'is not plain yaml'),
                          ('image_res: 3\n', 'key "train_file"')):
        (tmp_path / 'x.yaml').write_text(text)
        with pytest.raises(DataError, match=message):
            albef_options.read_config(tmp_path / 'x.yaml', 'VE')
    with pytest.raises(FileNotFoundError, match=r'data/albef/configs/Retrieval_flickr\.yaml'):
        albef_options.read_config(tmp_path / 'missing.yaml', 'VE')


@needs_albef
def test_wrong_models_are_errors_that_name_file_and_key(tmp_path, capsys):
    assert albef.main(command(tmp_path, image_res='big')) == 1
    assert 'x.yaml: image_res: expected a whole number from 1' in capsys.readouterr().err
    assert albef.main(command(tmp_path, '--device', 'tpu')) == 1 and '--device tpu: expected cuda' in capsys.readouterr().err


# ---- datasets

def plan_of(folder, name, **values):
    """A Plan with its splits, without a model."""
    path, values = albef_options.read_config(configuration(folder, **values), name)
    args = argparse.Namespace(output_dir=str(folder / 'out'), config=str(path), evaluate=False)
    plan = albef_options.Plan(name, values, args, SimpleNamespace(max_text_length=lambda: 64), {}, [])
    albef_options.describe_splits(plan)
    return plan


def written(plan):
    """The DatasetSpec of what a plan writes."""
    albef_options.write_dataset(plan)
    return DatasetSpec.from_json(plan.output / 'dataset.json')


def test_datasets_name_the_files_of_the_configuration(tmp_path):
    for name in ('t1', 't2', 'v'):
        save(tmp_path / f'{name}.json', [])
    plan = plan_of(tmp_path, 'NLVR', train_file=[str(tmp_path / 't1.json'), str(tmp_path / 't2.json')],
                   val_file=str(tmp_path / 'v.json'))
    spec = written(plan)
    assert spec.kind == 'nlvr2' and plan.names('train') == ['train', 'train2'] and plan.names('test') == []
    assert {name: split.annotations.resolve().name for name, split in spec.splits.items()} == {
        'train': 't1.json', 'train2': 't2.json', 'val': 'v.json'}
    assert json.loads((tmp_path / 'out/dataset.json').read_text())['splits']['val']['images'] == ['../images']


def test_each_question_file_has_the_pictures_of_its_dataset(tmp_path):
    save(tmp_path / 'vqa.json', [{'dataset': 'vqa'}])
    save(tmp_path / 'vg.json', [{'dataset': 'vg'}])
    values = {'train_file': [str(tmp_path / 'vqa.json'), str(tmp_path / 'vg.json')], 'vqa_root': 'coco', 'vg_root': 'genome'}
    with pytest.raises(DataError, match='key "answer_list"'):
        written(plan_of(tmp_path, 'VQA', **values))
    plan = plan_of(tmp_path, 'VQA', **values, answer_list=str(save(tmp_path / 'answers.json', ['a'])))
    assert [split['images'] for split in plan.splits.values()] == [['coco'], ['genome']]
    assert written(plan).answers.resolve() == (tmp_path / 'answers.json').resolve()
    del values['vg_root']
    with pytest.raises(DataError, match='key "vg_root"'):
        plan_of(tmp_path, 'VQA', **values)


def test_pretraining_lists_complete_paths_of_pictures(tmp_path):
    config = configuration(tmp_path)
    values = {key: value for key, value in yaml.safe_load(config.read_text()).items() if key != 'image_root'}
    save(tmp_path / 'train.json', [{'image': f'/pictures/{i % 2}.jpg', 'caption': 'x'} for i in range(3)])
    config.write_text(yaml.safe_dump(values))
    path, values = albef_options.read_config(config, 'Pretrain')
    args = argparse.Namespace(output_dir=str(tmp_path / 'out'), config=str(path), evaluate=False)
    plan = albef_options.Plan('Pretrain', values, args, SimpleNamespace(max_text_length=lambda: 64), {}, [])
    albef_options.describe_splits(plan)
    assert written(plan).max_length == 25
    assert (tmp_path / 'out/train.images.txt').read_text() == '/pictures/0.jpg\n/pictures/1.jpg\n'
    save(tmp_path / 'train.json', [{'image': 'a.jpg', 'caption': 'x'}])
    (tmp_path / 'out/train.images.txt').unlink()
    with pytest.raises(DataError, match='expected complete paths of pictures'):
        albef_options.write_dataset(plan)


REFS = [{'ref_id': i, 'ann_id': i, 'image_id': image, 'split': split, 'sentences': [{'sent': 'cup', 'tokens': ['cup']}]}
        for i, (image, split) in enumerate([(7, 'train'), (8, 'val'), (8, 'testA')])]


def grounding(folder, test, detected):
    save(folder / 'refcoco+/refs(unc).json', REFS)
    save(folder / 'refcoco+/instances.json', {
        'images': [{'id': i, 'width': 50, 'height': 40} for i in (7, 8)],
        'annotations': [{'id': i, 'image_id': image, 'bbox': [1, 2, 10, 20]} for i, image in enumerate((7, 8, 8))]})
    save(folder / 'train.json', [{'image': 'train2014/7.jpg', 'text': 'cup', 'ref_id': 0}])
    return plan_of(folder, 'Grounding', test_file=str(save(folder / 'test.json', test)), refcoco_data=str(folder),
                   det_file=str(save(folder / 'dets.json', detected)))


def test_expressions_get_their_boxes_from_the_refs(tmp_path):
    test = [{'image': 'train2014/8.jpg', 'text': 'cup', 'ref_id': ref_id} for ref_id in (1, 2)]
    spec = written(grounding(tmp_path, test, {'8': [[0, 0, 5, 5], [2, 2, 3, 3, 0.9]]}))
    assert list(spec.splits) == ['train', 'val', 'testA'] and spec.kind == 'refcoco'
    assert json.loads((tmp_path / 'out/testA.json').read_text()) == [
        {'img_id': 'train2014/8', 'ref_id': 2, 'sent': 'cup', 'box': [1, 2, 11, 22]}]
    assert json.loads((tmp_path / 'out/val_boxes.json').read_text()) == {'train2014/8': [[0, 0, 5, 5], [2, 2, 5, 5]]}
    with pytest.raises(DataError, match=r'dets\.json: expected boxes of image 8'):
        grounding(tmp_path, test, {'7': [[0, 0, 5, 5]]})
    with pytest.raises(DataError, match=r'test\.json: example 0: key "ref_id": expected a ref of'):
        grounding(tmp_path, [{**test[0], 'ref_id': 9}], {'8': [[0, 0, 5, 5]]})


# ---- the files of a run

class Weights(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2, 2))

    def original_state(self):
        return {'text_encoder.weight': self.weight}


def folder_of(path, name):
    folder = albef.AlbefFolder(path)
    folder.plan = SimpleNamespace(program=albef_options.PROGRAMS[name], values={'image_res': 16})
    return folder


def epoch(folder, number, improved, **figures):
    """What train.py calls at the end of an epoch."""
    if improved:
        folder.save_snapshot(albef.BEST, Weights())
    folder.scalars({'train/loss': 2.0}, 5)  # of a step: no figure of the epoch
    folder.scalars({'train/loss_ita': 1.5} | figures, 10)
    folder.save_snapshot(albef.EPOCH.format(number + 1), Weights())


def begin(folder, number, monkeypatch):
    monkeypatch.setattr(albef.RunFolder, 'begin', lambda *args: None)
    folder.begin(None, {}, SimpleNamespace(epoch=number) if number else None, 'retrieval')


def test_log_and_checkpoints_of_retrieval(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, 'Retrieval')
    begin(folder, 0, monkeypatch)
    epoch(folder, 0, True, **{'valid/text R@1': 50.0, 'valid/r_mean': 61.25, 'valid/test/image R@10': 12.5})
    epoch(folder, 1, False)
    epoch(folder, 2, True)
    folder.finish()
    lines = (tmp_path / 'log.txt').read_text().splitlines()
    assert json.loads(lines[0]) == {'train_loss_ita': '1.5000', 'val_txt_r1': 50.0, 'val_r_mean': 61.25, 'test_img_r10': 12.5,
                                    'epoch': 0, 'best_epoch': 0}
    assert [json.loads(line)['best_epoch'] for line in lines[:3]] == [0, 0, 2] and lines[3:] == ['best epoch: 2']
    assert {path.name for path in tmp_path.glob('*.pth')} == {'checkpoint_best.pth'}
    content = torch.load(tmp_path / 'checkpoint_best.pth', weights_only=True)
    assert content['epoch'] == 2 and content['config'] == {'image_res': 16} and list(content) == ['model', 'config', 'epoch']
    assert list(read_state(tmp_path / 'checkpoint_best.pth')) == ['text_encoder.weight']


def test_a_resumed_run_writes_its_epochs_again(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, 'Retrieval')
    begin(folder, 0, monkeypatch)
    epoch(folder, 0, True)
    epoch(folder, 1, False)
    folder.finish()
    folder.append({'test_r_mean': '1.0', 'epoch': 0})  # of --evaluate
    folder.close()
    folder = folder_of(tmp_path, 'Retrieval')
    begin(folder, 1, monkeypatch)
    epoch(folder, 1, True)
    folder.finish()
    lines = (tmp_path / 'log.txt').read_text().splitlines()
    assert [json.loads(line)['epoch'] for line in lines[:-1]] == [0, 0, 1] and lines[-1] == 'best epoch: 1'
    (tmp_path / 'log.txt').write_text('{broken\n')
    with pytest.raises(DataError, match=r'log\.txt: line 1: incomplete or invalid json'):
        folder.logged()


def test_checkpoints_of_every_epoch_and_of_better_ones(tmp_path, monkeypatch):
    for name, files in (('VQA', {'checkpoint_00.pth', 'checkpoint_01.pth'}),
                        ('NLVR', {'checkpoint_best.pth', 'checkpoint_01.pth'})):
        folder = folder_of(tmp_path / name, name)
        begin(folder, 0, monkeypatch)
        for number in (0, 1):
            epoch(folder, number, name == 'NLVR' and number == 1)
        folder.finish()
        assert {path.name for path in (tmp_path / name).glob('*.pth')} == files
    assert os.path.samefile(tmp_path / 'NLVR/checkpoint_best.pth', tmp_path / 'NLVR/checkpoint_01.pth')
    assert 'best' not in (tmp_path / 'VQA/log.txt').read_text().splitlines()[-1].partition('{')[0]


def test_figures_have_the_names_of_the_original_code():
    for kind, figures, expected in (
            ('retrieval', {'text R@1': 50.0, 'score': 40.0}, {'text R@1': 50.0, 'r_mean': 40.0}),
            ('entailment', {'score': 80.0}, {'acc': 0.8}), ('refcoco', {'score': 50.0}, {'d': 0.5})):
        base = task_class(kind)
        assert dict(albef.AlbefTask.original(SimpleNamespace(kind=base.kind), *one) for one in figures.items()) == expected


# ---- whole runs

TASK_FILES = {  # of albef_tiny, by program
    'Retrieval': {'train_file': 'retrieval_train', 'val_file': 'retrieval_test', 'test_file': 'retrieval_test', 'k_test': 8},
    'VQA': {'train_file': 'vqa_train', 'test_file': 'vqa_test'},
    'Pretrain': {'train_file': 'pretrain'}, 'Pretrain_nlvr': {'train_file': 'pretrain'},
    'NLVR': dict.fromkeys(('train_file', 'val_file', 'test_file'), 'nlvr'),
    'VE': dict.fromkeys(('train_file', 'val_file', 'test_file'), 've'),
    'Grounding': {'train_file': 'grounding', 'test_file': 'grounding', 'block_num': 1}}


@pytest.fixture
def tiny(tmp_path):
    """tiny(program, *flags): runs it on albef_tiny, with a small model; returns the exit status."""
    shutil.copytree(TINY, tmp_path / 'tiny')  # beside the pictures an index is written
    bert = tmp_path / 'bert'
    bert.mkdir()
    shutil.copy(SHARED / 'vocab/bert-base-uncased-vocab.txt', bert / 'vocab.txt')
    save(bert / 'config.json', BERT | {'vocab_size': 30522, 'max_position_embeddings': 512})

    def run(name, *flags, epochs=2, out='out', batch=2):
        values = {key: str(tmp_path / f'tiny/{value}.json') if isinstance(value, str) else value
                  for key, value in TASK_FILES[name].items() if key != 'block_num'}
        images = str(tmp_path / 'tiny/images') + '/ve' * (name == 'VE')
        if name == 'VQA':
            values |= dict.fromkeys(('vqa_root', 'vg_root'), images) | {
                'answer_list': str(save(tmp_path / 'answers.json', ['black', 'white', '2', '3', 'in the street']))}
        if name == 'Grounding':
            values |= {'refcoco_data': str(tmp_path / 'tiny'), 'det_file': str(tmp_path / 'tiny/refcoco+/dets.json')}
        path = configuration(tmp_path, **values, batch_size=batch)
        values = yaml.safe_load(path.read_text()) | {'bert_config': str(bert / 'config.json')}
        if name == 'VQA':
            del values['image_root']
        else:
            values['image_root'] = images
        path.write_text(yaml.safe_dump(values | {'schedular': OPTIMIZATION['schedular'] | {'epochs': epochs}}))
        extra = ['--block_num', '1'] if name == 'Grounding' else []
        return albef.main([name, '--config', str(path), '--output_dir', str(tmp_path / out), '--textencoder', str(bert),
                           '--device', 'cpu', '--distributed', 'False', *extra, *flags])

    return run


def logged(folder, out='out'):
    return (folder / out / 'log.txt').read_text().splitlines()


@needs_albef
@pytest.mark.shared
def test_the_guides_two_commands(tiny, tmp_path, capsys):
    assert tiny('Retrieval', '--fromScratch') == 0
    *epochs, best = logged(tmp_path)
    epochs = [json.loads(line) for line in epochs]
    assert [line['epoch'] for line in epochs] == [0, 1] and best == f'best epoch: {epochs[1]["best_epoch"]}'
    assert {f'{split}_{what}' for split in ('val', 'test') for what in (
        'txt_r1', 'txt_r5', 'txt_r10', 'txt_r_mean', 'img_r1', 'img_r5', 'img_r10', 'img_r_mean', 'r_mean')} <= set(epochs[0])
    checkpoint = tmp_path / 'out/checkpoint_best.pth'
    assert tiny('Retrieval', '--checkpoint', str(checkpoint), '--evaluate') == 0
    tested, of_best = json.loads(logged(tmp_path)[-1]), epochs[epochs[1]['best_epoch']]
    assert tested == {key: of_best[key] for key in tested if key != 'epoch'} | {'epoch': 0} and 'test_txt_r1' in tested
    assert [key for key in of_best if isinstance(of_best[key], str)] == ['train_score', 'train_loss_ita', 'train_loss_itm']
    assert json.loads((tmp_path / 'out/test_predict.json').read_text())[0]['img_id'] == 'flickr30k-images/1007129816'
    assert yaml.safe_load((tmp_path / 'out/config.yaml').read_text())['k_test'] == 8
    capsys.readouterr()
    assert tiny('Retrieval', '--fromScratch') == 1 and 'give --resume to continue it' in capsys.readouterr().err
    assert tiny('Retrieval', '--fromScratch', '--resume') == 0 and 'nothing to resume' in capsys.readouterr().out


@needs_albef
@pytest.mark.shared
def test_answers_for_the_server(tiny, tmp_path, capsys):
    assert tiny('VQA', '--fromScratch') == 0
    assert '3 answers beside the 5 candidates' in capsys.readouterr().out
    result = tmp_path / 'out/result/vqa_result_epoch1.json'
    answers = json.loads(result.read_text())
    candidates = json.loads((tmp_path / 'answers.json').read_text())
    assert {row['answer'] for row in answers} <= set(candidates) == set(json.loads((tmp_path / 'out/answers.json').read_text()))
    assert [row['question_id'] for row in answers] == list(range(2000, 2007)) and all(list(row) == [
        'question_id', 'answer'] for row in answers)
    assert {path.name for path in (tmp_path / 'out').glob('checkpoint*')} == {'checkpoint_00.pth', 'checkpoint_01.pth'}
    content = result.read_text()
    result.unlink()  # the run was killed before it was written
    assert tiny('VQA', '--fromScratch', '--resume') == 0 and result.read_text() == content
    assert tiny('VQA', '--checkpoint', str(tmp_path / 'out/checkpoint_01.pth'), '--evaluate') == 0
    assert (tmp_path / 'out/result/vqa_result_epoch0.json').read_text() == content


@needs_albef
@pytest.mark.shared
@pytest.mark.parametrize(('name', 'figures'), [
    ('VE', {'val_acc', 'test_acc'}), ('NLVR', {'val_acc', 'test_acc'}),
    ('Grounding', {'val_d', 'testA_d', 'testB_d', 'train_loss_ita', 'train_loss_itm'})])
def test_the_other_tasks(tiny, tmp_path, name, figures):
    assert tiny(name, '--fromScratch') == 0
    line = json.loads(logged(tmp_path)[0])
    assert figures <= set(line) and all(0 <= float(line[key]) <= 1 for key in figures if 'loss' not in key)
    numbered = {path.name for path in (tmp_path / 'out').glob('checkpoint_0*')}
    assert (tmp_path / 'out/checkpoint_best.pth').is_file() and bool(numbered) == (name == 'NLVR')


@needs_albef
@pytest.mark.shared
def test_pretraining_its_resumption_and_what_follows(tiny, tmp_path, capsys):
    assert tiny('Pretrain', '--fromScratch', epochs=1, batch=4) == 0
    assert tiny('Pretrain', '--fromScratch', '--resume', epochs=2, batch=4) == 0
    lines = [json.loads(line) for line in logged(tmp_path)]
    assert [line['epoch'] for line in lines] == [0, 1]
    assert all(float(lines[1][f'train_loss_{name}']) > 0 for name in ('ita', 'itm', 'mlm'))
    weights = tmp_path / 'out/checkpoint_01.pth'
    assert weights.is_file()
    assert tiny('Pretrain_nlvr', '--checkpoint', str(weights), epochs=1, out='assigned', batch=4) == 0
    assert tiny('NLVR', '--checkpoint', str(tmp_path / 'assigned/checkpoint_00.pth'), epochs=1, out='nlvr') == 0
    capsys.readouterr()
    assert tiny('Retrieval', '--checkpoint', str(weights), epochs=1, out='retrieval') == 0
    assert 'missing        1  idx_queue' in (printed := capsys.readouterr().out) and 'unexpected    14 ' in printed


# ---- the launcher

def test_the_launcher_says_how_to_use_it():
    def launch(*arguments):
        return subprocess.run(['bash', 'run/albef.bash', *arguments], cwd=ROOT, capture_output=True, text=True)

    done = launch()
    assert done.returncode == 2 and 'Usage: bash run/albef.bash Retrieval|VQA' in done.stderr
    done = launch('VE', '--config', 'x.yaml', '--output_dir', 'y', '--devise', 'cpu')
    assert done.returncode == 2 and 'did you mean --device?' in done.stderr
    done = launch('VE', '--config', 'no.yaml', '--output_dir', 'y', '--device', 'cpu')
    assert done.returncode == 1 and done.stderr.startswith('albef.bash: error: no.yaml: no such file; expected a configuration')
