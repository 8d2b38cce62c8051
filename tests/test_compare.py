"""Comparing models with equal budgets: the plan, what is resumed and what is refused, the table. No model is trained here."""

import json

import pytest
import torch
from PIL import Image

from param import parse_args
from shapes import compare, step_costs
from shapes.compare import FIRST, PRETRAIN, PRETRAINING, RECIPES, TASKS, Job, Records, plan

COST = {'examples': 16000, 'batch': 32, 'parameters': 1000000, 'embeddings': 20000}


def costs(**seconds):
    return {model: COST | {'seconds': value} for model, value in seconds.items()}


@pytest.mark.parametrize('budget', [40, 300, 301, 5000])
def test_all_models_train_for_the_budget_on_the_same_data(budget):
    by_model = costs(fast=0.065, middle=0.12, slow=0.91)
    share, epochs = plan(by_model, budget)
    for model, one in by_model.items():
        spent = epochs[model] * (int(16000 * share) // 32) * one['seconds']
        assert spent == pytest.approx(budget, abs=max(compare.TOLERANCE * budget, one['seconds'] / 2))
    assert epochs['fast'] > epochs['middle'] > epochs['slow']


def test_as_much_data_is_used_as_the_budget_allows():
    assert plan(costs(one=0.1), 100) == (1.0, {'one': 2})
    share, epochs = plan(costs(one=0.1), 25)  # half an epoch
    assert share == pytest.approx(0.5, rel=0.06) and epochs == {'one': 1}
    share, epochs = plan(costs(one=0.1), 75)  # of two epochs three quarters
    assert share == pytest.approx(0.75, rel=0.06) and epochs == {'one': 2}


def test_a_budget_below_a_step_is_refused():
    with pytest.raises(ValueError, match=r'1 seconds are too few for slow, of which a step takes 9\.00; give more --seconds'):
        plan(costs(slow=9.0), 1)


@pytest.mark.parametrize('flags, message', [
    (['cpu', '--tasks', 'vqa,captioning'], '--tasks captioning: expected some of vqa,gqa'),
    (['cpu', '--models', 'uniter'], '--models uniter: expected some of lxmert,vlbert'),
    (['cpu', '--models', 'albef', '--tasks', 'vcr'], '--tasks vcr: expected a task that one of --models albef knows'),
    (['cpu', '--name', '../..'], "--name '../..': expected the name of a folder below snap/compare"),
    (['gpu0'], "expected cpu or GPU ids such as 0,1, found 'gpu0'")])
def test_unknown_names_are_named(flags, message, capsys):
    with pytest.raises(SystemExit):
        compare.parse_args(flags)
    assert message in capsys.readouterr().err


def test_seeds_and_budgets_have_defaults():
    options = compare.parse_args(['cpu', '--tasks', 'retrieval,vqa'])
    assert options.seeds == [9595, 1, 2] and options.tasks == ['vqa', 'retrieval'] and options.name == 'default'
    options = compare.parse_args(['0,1', '--fast', '--seconds', '9'])
    assert (options.seeds, options.seconds, options.name) == ([9595], 9, 'fast')
    assert compare.parse_args(['cpu', '--models', 'albef']).tasks == [task for task in TASKS if task != 'vcr']


@pytest.fixture
def made(tmp_path):
    """A plan of all models and of two tasks, of which ALBEF knows one, in the folder `comparison`."""
    (tmp_path / 'world').mkdir()
    (tmp_path / 'world/world.json').write_text('{"images": 5}')
    options = compare.parse_args(['cpu', '--tasks', 'vcr,retrieval', '--dataRoot', str(tmp_path / 'world')])
    known = [model for model in RECIPES if compare.supports(model, 'vcr')]
    counts = {FIRST: ['lxmert'], PRETRAIN: [*RECIPES], 'vcr': known, 'retrieval': [*RECIPES]}
    kinds = {kind: costs(**dict.fromkeys(names, 0.1)) for kind, names in counts.items()}
    made = {'settings': compare.settings_of(options), 'costs': kinds, 'text_only': {'vcr': 24.7, 'retrieval': 6.6},
            'share': {kind: dict.fromkeys(names, 0.5) for kind, names in counts.items()},
            'epochs': {kind: dict.fromkeys(names, 3) for kind, names in counts.items()}}
    (tmp_path / 'comparison').mkdir()
    (tmp_path / 'comparison/plan.json').write_text(json.dumps(made))
    return made


def test_other_settings_are_refused_and_the_same_resumed(made, tmp_path):
    flags = ['cpu', '--dataRoot', str(tmp_path / 'world'), '--tasks']
    assert compare.make_plan(compare.parse_args([*flags, 'vcr,retrieval', '--seeds', '5']), tmp_path / 'comparison') == made
    with pytest.raises(ValueError, match=r'tasks .* then, .* now; seconds 100 then, 90 now.*choose another --name'):
        compare.make_plan(compare.parse_args([*flags, 'retrieval', '--seconds', '90']), tmp_path / 'comparison')
    with pytest.raises(FileNotFoundError, match=r'bash run/shapes\.bash makes a sample world'):
        compare.make_plan(compare.parse_args(['cpu', '--dataRoot', str(tmp_path)]), tmp_path / 'other')


def test_the_plan_of_another_version_a_damaged_one_and_a_world_without_a_file_are_named(made, tmp_path):
    options = compare.parse_args(['cpu', '--dataRoot', str(tmp_path / 'world'), '--tasks', 'vcr,retrieval'])
    plan_file = tmp_path / 'comparison/plan.json'
    del made['settings']['recipes']['lxmert']['first']
    for content, message in ((made, r"version: lxmert, first None then, \['--taskQA', .*\] now\. Scores"),
                             ({}, r'plan\.json: key "settings": expected dict, found None')):
        plan_file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            compare.make_plan(options, tmp_path / 'comparison')
    plan_file.unlink()
    with pytest.raises(FileNotFoundError, match=r'vcr/train\.json: no such file.*another, for --dataRoot'):
        compare.make_plan(options, tmp_path / 'comparison')
    Records(tmp_path).write(Job('a', []), {})
    with pytest.raises(ValueError, match=r'records/a\.json: expected the keys command, .*, found {}; remove it'):
        Records(tmp_path).read(Job('a', []))


def test_complete_runs_are_kept_and_failed_ones_are_run_again(tmp_path):
    script, log, ended = tmp_path / 'launcher.bash', tmp_path / 'log', []
    script.write_text(f'echo "$1 $2" >> {log}\n[ "$2" != bad ] || [ -e {tmp_path}/mended ] || {{ echo what is wrong; exit 1; }}\n'
                      'echo "Score on val: 12.50"\n')
    jobs = [Job('a', [str(script), 'a'], 'bad'), Job('bad', [str(script), 'bad']), Job('c', [str(script), 'c'])]
    (tmp_path / 'runs').mkdir()
    records = Records(tmp_path)
    records.start(jobs[2])  # killed then
    assert compare.run_all(jobs, ['0', '1'], tmp_path, records, lambda: ended.append(1)) == {'bad': 'what is wrong'}
    assert sorted(log.read_text().splitlines()) == ['0 bad', '1 c'] and len(ended) == 2
    record = records.read(jobs[2])
    assert (record['complete'], record['score'], record['started'], record['ended']) == (True, 12.5, 2, 1)
    (tmp_path / 'mended').touch()
    assert compare.run_all(jobs, ['cpu'], tmp_path, records, lambda: None) == {}
    assert log.read_text().splitlines()[2:] == ['cpu bad', 'cpu a']
    with pytest.raises(ValueError, match=r'records/c.json: is of another command than now; choose another --name'):
        compare.run_all([Job('c', [str(script), 'c', '--epochs', '9'])], ['cpu'], tmp_path, records, lambda: None)


def test_the_table_has_means_spreads_baselines_and_costs(made, tmp_path):
    records, folder, scores = Records(tmp_path), tmp_path / 'comparison', {9595: 50, 1: 52, 2: 54}
    for job in compare.jobs_of(made, folder, list(scores)):
        task, model, *seed = job.name.removesuffix('_test').split('_')
        if (task, model, seed) == ('retrieval', 'vlbert', ['2']):
            continue  # not run yet
        records.start(job)
        if (task, model, seed) == ('retrieval', 'albef', ['1']):
            records.start(job)  # a run that was killed
        records.end(job, 100.0, 200.0, complete=True, **({'score': scores[int(seed[0])]} if job.name.endswith('_test') else {}))
    results = compare.results_of(made, folder, list(scores), records)
    assert results == json.loads(json.dumps(results))
    run = results['tasks']['retrieval']['lxmert']['1']
    assert run['score'] == 52 and run['steps'] == 750 and run['cpu_seconds'] == 100
    assert f'--loadEncoder {folder}/runs/pretrain_lxmert/Epoch03' in ' '.join(run['command'])
    halves = [results['pretraining'][kind]['lxmert']['command'] for kind in PRETRAINING]
    assert '--taskMatched' not in halves[0] and '--fromScratch' in halves[0] and '--taskMatched' in halves[1]
    assert f'--load {folder}/runs/pretrain_first_lxmert/Epoch03' in ' '.join(halves[1])
    rows = {row.split(' | ')[0].strip('| '): row.strip('| ').split(' | ')[1:] for row in compare.table(results).splitlines()}
    assert rows['vcr, val'] == ['24.7', '52.0 ± 2.0', '52.0 ± 2.0', '-']
    assert rows['retrieval, coco_valid'] == ['6.6', '52.0 ± 2.0', '51.0 ± 1.4 (!)', '52.0 ± 2.0 (*)']
    assert rows['trained parameters, M'][1:] == ['1.00'] * 3
    assert rows['first half of pre-training: epochs; steps; CPU s'][1:] == ['3; 750; 100', '-', '-']
    assert rows['pre-training, or its second half: epochs; steps; CPU s'][1:] == ['3; 750; 100'] * 3
    assert rows['vcr, 50 % of its data: the same'][1:] == ['3; 750; 100', '3; 750; 100', '-']
    assert rows['retrieval, 50 % of its data: the same'][1:] == ['3; 750; 100', '3; 750; 100', '3; 750; 100 (*)']
    text = compare.table(results)
    assert '(*) A run was interrupted' in text and '(!) or ...: not complete' in text and 'differ by' not in text
    made['costs'][PRETRAIN]['albef']['parameters'] = 1500000
    assert 'Parameters differ by 1.50 times' in compare.table(compare.results_of(made, folder, list(scores), records))
    compare.draw(results, tmp_path / 'figure.png')
    assert Image.open(tmp_path / 'figure.png').width > 400


def test_data_is_cut_to_a_share_and_else_that_of_the_world(tmp_path):
    world = tmp_path / 'world'
    files = {'vqa/train.json': json.dumps([*range(100)]), 'vqa/minival.json': '[1]', 'images/x': '', 'vqa/train.columns/y': ''}
    for name, text in files.items():
        (world / name).parent.mkdir(parents=True, exist_ok=True)
        (world / name).write_text(text)
    compare.make_data(tmp_path, world, 'vqa', {'vqa/train': 0.3})
    root = tmp_path / 'data/vqa'
    assert not (root / 'vqa/train.columns').exists()  # a cache of the whole file, into which a run would write
    chosen = json.loads((root / 'vqa/train.json').read_text())
    assert len(chosen) == len({*chosen}) == 30 and chosen == sorted(chosen) and max(chosen) > 50
    assert (root / 'vqa/minival.json').samefile(world / 'vqa/minival.json') and (root / 'images/x').samefile(world / 'images/x')


def test_a_recipe_has_flags_for_everything_that_its_model_knows(tmp_path):
    for model in RECIPES:
        for kind in (*PRETRAINING, *TASKS):
            assert parse_args(compare.training_flags(tmp_path, tmp_path, kind, model)).model == model
            assert compare.supports(model, kind) != ((kind == FIRST and model != 'lxmert') or (model, kind) == ('albef', 'vcr'))


def test_steps_are_measured_in_turns(made_world, tmp_path):
    for model in ('lxmert', 'albef'):
        (tmp_path / 'bert').mkdir(exist_ok=True)
        (tmp_path / 'bert' / model).symlink_to(made_world / 'bert')
    kinds = {kind: {model: {'program': RECIPES[model].program, 'flags': [
        *compare.training_flags(tmp_path, made_world, kind, model), '--fromScratch', '--batchSize', '8']} for model in names}
        for kind, names in ((PRETRAIN, ['albef']), ('entailment', ['lxmert', 'albef']))}
    measured = step_costs.measure(kinds, torch.device('cpu'), turns=1, steps=1)
    assert measured['entailment'].keys() == {'lxmert', 'albef'}
    one = measured[PRETRAIN]['albef']
    assert one['seconds'] > 0 and one['batch'] == 8 and 0 < one['embeddings'] < one['parameters']
    assert one['examples'] == sum(len(image['sentf']['cc']) for image in json.loads((made_world / 'cc/train.json').read_text()))
