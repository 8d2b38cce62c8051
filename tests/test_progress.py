"""Progress without a terminal, what a run says at its start, statistics of text, other --epochs and --batchSize with --resume."""

import json
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from conftest import write_random_snapshot

from bench import report
from bert.tokenization import SPECIAL_TOKENS, BertTokenizer, TextStatistics, TextWarning
from bert.weights import WeightsError, read_state
from files import progress
from files.progress import ProgressBar
from lxrt.weights import read_lxmert
from param import Options
from regions import readers
from tasks.checkpoints import bert_folder
from tasks.predictor import Predictor
from tools import check_dataset

TIME = r'\d\d:\d\d:\d\d '


# ---- lines without a terminal


@pytest.fixture
def later(monkeypatch):
    """later(25) lets 25 seconds pass."""
    now = [0.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_line_is_printed_about_once_a_minute(later, capsys):
    for _ in ProgressBar(range(12), 'Reading', unit=' images'):
        later(25)
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(TIME, '', line) for line in lines] == [
        'Reading: 3 of 12 images, 0.040 images/s, 03:45 left', 'Reading: 6 of 12 images, 0.040 images/s, 02:30 left',
        'Reading: 9 of 12 images, 0.040 images/s, 01:15 left', 'Reading: 12 of 12 images, 0.040 images/s, 00:00 left']


def test_steps_have_losses_and_a_rate_in_examples(later, capsys):
    with ProgressBar(total=2000, desc='Epoch 3', unit='steps', initial=1000, per_step=32, rate_unit='examples') as bar:
        for seconds in (500, 10, 10, 10, 10, 10, 10, 10):  # the first step compiles
            later(seconds)
            bar.set_postfix_str('loss 0.250')
            bar.update()
        bar.note_estimate(2000, 'epoch')
    lines = [re.sub(TIME, '', line) for line in capsys.readouterr().err.splitlines()]
    assert lines[1:] == ['Epoch 3: 1,007 of 2,000 steps, loss 0.250, 3.2 examples/s, 2:45:30 left',
                         'Epoch 3: 10.00 s per step, 3.2 examples/s: about 5:33:20 per epoch']


def test_bytes_are_scaled_and_a_total_may_be_unknown(later, capsys):
    with ProgressBar(desc='a\x1b[31m', unit='B', unit_scale=True) as bar:
        for _ in range(3):
            later(50)
            bar.update(10 ** 6)
    assert re.sub(TIME, '', capsys.readouterr().err) == r'a\x1b[31m: 2.00MB, 20.0kB/s' + '\n'


def test_short_work_and_other_processes_print_nothing(capsys, monkeypatch):
    list(ProgressBar(range(1), 'Short'))
    monkeypatch.setattr(progress, 'INTERVAL', 0)
    list(ProgressBar(range(3), 'Rank 1', shown=False))
    assert capsys.readouterr().err == ''


def test_bars_are_drawn_where_they_are_wanted(capsys):
    list(ProgressBar(range(3), 'Drawn', force=True))
    assert '3/3' in capsys.readouterr().err


def test_no_other_module_uses_tqdm():
    sources = [path for folder in ('src', 'bench') for path in Path(folder).rglob('*.py') if path.name != 'progress.py']
    assert sources and not [path for path in sources if 'import tqdm' in path.read_text()]


def test_figures_of_benchmarks_are_on_the_disk_at_once(tmp_path, capsys):
    figures = report.Figures(tmp_path / 'new/x.json')
    figures['first, s'] = 0.5
    assert json.loads((tmp_path / 'new/x.json').read_text()) == {'first, s': 0.5}
    assert 'first, s' in capsys.readouterr().out
    figures |= {'second': 12345, 'third': 'CPU'}
    assert json.loads((tmp_path / 'new/x.json').read_text()) == figures == {'first, s': 0.5, 'second': 12345, 'third': 'CPU'}
    assert '12,345' in capsys.readouterr().out and figures.finish() == 0


# ---- text


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / 'vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, 'red', 'is', 'it']) + '\n')
    return BertTokenizer(tmp_path / 'vocab.txt')


def test_unknown_and_truncated_text_is_counted(tokenizer):
    texts = ['is it red', 'красный is', 'red ' * 9, ('is it', 'red red')]
    counts = tokenizer.encode_counted(texts, 6)[2]
    assert counts.tolist() == [[3, 0, 0, 5], [2, 1, 0, 4], [9, 0, 1, 11], [4, 0, 1, 7]]
    statistics = TextStatistics(6).add(counts)
    assert (statistics.sentences, statistics.truncated, statistics.longest) == (4, 2, 11)
    assert (statistics.pieces, statistics.unknown) == (18, 1)
    assert '5.6 % of the word pieces are [UNK], 2 of 4 sentences have more than 6 tokens' in str(statistics)
    often = TextStatistics(6).add(counts[:2], torch.tensor([3, 1]).numpy())
    assert (often.sentences, often.pieces, often.unknown) == (4, 11, 1)
    assert list(TextStatistics(6).add(counts[:1]).warnings('v')) == []
    assert list(TextStatistics(6).add(counts[:1] * 0).warnings('v')) == ['all sentences are empty; correct the annotations']
    assert 'raise max_length' in next(TextStatistics(6).add(counts[2:]).warnings('v'))


def rewrite(path, change):
    """Changes the sentences of a json of questions."""
    questions = json.loads(path.read_text())
    path.write_text(json.dumps([{**question, 'sent': change(question['sent'])} for question in questions]))


def test_training_warns_before_it_starts(world, run_here):
    rewrite(world / 'vqa/train.json', lambda text: 'какого цвета круг')
    rewrite(world / 'vqa/minival.json', lambda text: text + ' red' * 30)
    status, printed = run_here()
    before, _, after = printed.out.partition('Training ')
    assert status == 0 and after
    assert re.search(r'Warning: train: 100 % of the word pieces are \[UNK\]: the vocabulary .*vocab\.txt', before)
    assert re.search(r'Warning: minival: most sentences have more than 20 tokens.*the longest has \d+: raise max_length', before)
    assert 'minival: 0.0 % of the word pieces are [UNK]' in before


def test_a_file_without_any_label_is_warned_of(world, run_here):
    questions = json.loads((world / 'vqa/minival.json').read_text())
    (world / 'vqa/minival.json').write_text(json.dumps([{**question, 'label': {}} for question in questions]))
    status, printed = run_here()
    before = printed.out.partition('Training ')[0]
    assert status == 0 and 'Warning: minival: no question has an answer with a score above 0' in before


def test_check_dataset_reports_text_and_labels(world, capsys):
    described = {'kind': 'vqa', 'name': 'mine', 'max_length': 20, 'answers': 'vqa/trainval_label2ans.json',
                 'splits': {'dev': {'annotations': 'vqa/minival.json', 'features': ['mscoco_imgfeat/val2014_obj36.tsv']}}}
    (world / 'mine.json').write_text(json.dumps(described))
    rewrite(world / 'vqa/minival.json', lambda text: '日本語の質問')
    questions = json.loads((world / 'vqa/minival.json').read_text())
    (world / 'vqa/minival.json').write_text(json.dumps([{**question, 'label': {}} for question in questions]))
    assert check_dataset.main([str(world / 'mine.json'), '--bert', str(world / 'bert')]) == 1
    printed = capsys.readouterr().out
    assert 'Warning: text: 100 % of the word pieces are [UNK]' in printed
    assert 'no sentence has an answer with a score above 0' in printed


def test_the_library_warns_of_text_that_it_cannot_read(world, tmp_path):
    write_random_snapshot(tmp_path / 'snapshot', 'vqa', world)
    predictor = Predictor.from_snapshot(tmp_path / 'snapshot/BEST')
    image = next(iter(readers.images(world / 'mscoco_imgfeat/val2014_obj36.tsv')))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        predictor.answer(image, 'how many circles are there')
    with pytest.warns(TextWarning, match=r'100\.0 % of the word pieces are \[UNK\]'):
        predictor.answer(image, 'сколько кругов')
    with pytest.warns(TextWarning, match='1 of 2 sentences have more than 20 tokens'):
        predictor.answer(image, ['how many circles', 'red ' * 30])
    assert predictor.unread('how many') == [] and len(predictor.unread('кругов ' + 'red ' * 30)) == 2


# ---- the start of a run, and other settings with --resume


def lines_of(printed, *starts):
    return [line for line in printed.splitlines() if line.startswith(starts)]


def test_a_run_starts_with_what_is_checked_first(world, run_here):
    status, printed = run_here('--optim', 'adam')
    assert status == 0
    start = printed.out.partition('Training ')[2]
    assert re.match(r'[\d.]+ M parameters on cpu, processes: 1\.\n  \d+ threads; [\d,]+ parameters trained, 0 frozen\n'
                    r'  [\d,]+ examples, 32 in a step: [\d,]+ steps an epoch, [\d,]+ in 1 epochs\n'
                    r'  learning rate 5e-05 \(of the recipe; --lr sets another\), Adam, constant\n', start)
    assert re.search(rf'{TIME}Epoch 0: .* per epoch', printed.err)


def test_a_finished_run_is_trained_for_more_epochs(world, run_here, tmp_path):
    assert run_here()[0] == 0
    steps = torch.load(tmp_path / 'run/RUN_STATE.pth', weights_only=True)['progress']['steps_per_epoch']
    status, printed = run_here('--resume')
    assert status == 0 and 'is finished (1 epochs): nothing to resume; more --epochs continue it' in printed.out
    status, printed = run_here('--resume', '--epochs', '2')
    assert status == 0 and 'Epoch 1: Train' in printed.out
    assert f'--epochs 1 then, 2 now: the schedule ends at step {2 * steps}' in printed.out
    assert re.search(r'goes on with (?!0 )[\d.e-]+ instead of 0', printed.out)
    state = torch.load(tmp_path / 'run/RUN_STATE.pth', weights_only=True)
    assert state['progress']['epoch'] == 2 and state['options']['epochs'] == 2
    assert {entry['step'] for entry in state['optimizer']['state'].values()} == {2 * steps}


def test_a_run_goes_on_with_another_batch_size(world, run_here, tmp_path):
    assert run_here('--epochs', '2', '--batchSize', '16')[0] == 0
    steps = torch.load(tmp_path / 'run/RUN_STATE.pth', weights_only=True)['progress']['steps_per_epoch']
    status, printed = run_here('--resume', '--epochs', '3', '--batchSize', '32', '--accumulate', '2')
    state = torch.load(tmp_path / 'run/RUN_STATE.pth', weights_only=True)
    assert status == 0 and f'an epoch has {steps // 2} steps instead of {steps}' in printed.out
    assert '--accumulate 1 then, 2 now' in printed.out
    assert {int(entry['step']) for entry in state['optimizer']['state'].values()} == {3 * (steps // 2)}
    status, printed = run_here('--resume', '--epochs', '3', '--batchSize', '32', '--lr', '1e-3')
    assert status == 1 and '--lr' in printed.err and 'start a new run in another --output' in printed.err


# ---- checkpoints of other programs


STATE = {'module.bert.a.weight': torch.ones(2, 3), 'module.bert.a.bias': torch.ones(2)}
ADAM = {'state': {0: {'exp_avg': torch.ones(2, 3), 'step': torch.ones(())}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]}


@pytest.mark.parametrize('wrap', [
    lambda state: {'model': state, 'optimizer': ADAM, 'epoch': 3},
    lambda state: {'state_dict': state, 'optimizer_states': [ADAM], 'lr_schedulers': []},
    lambda state: {'checkpoint': {'net': state, 'step': 5}, 'args': {'lr': 0.1}},
    lambda state: {'model_state_dict': state, 'rng': {'cpu': torch.ones(8, dtype=torch.uint8)}},
    lambda state: {'state_dict': {f'model.{name}': tensor for name, tensor in state.items()}},
])
def test_wrapped_weights_are_read_and_named(tmp_path, capsys, wrap):
    torch.save(wrapped := wrap(STATE), tmp_path / 'x.pth')
    assert set(read_lxmert(tmp_path / 'x.pth')) == {'bert.a.weight', 'bert.a.bias'}
    assert f"x.pth: the weights are its entry '{next(iter(wrapped))}'" in capsys.readouterr().out


def test_weights_that_cannot_be_told_apart_are_listed(tmp_path):
    path = tmp_path / 'x.pth'
    for content, message in (({'model': STATE, 'model_ema': STATE}, r"found 2; its keys: 'model' \(tensors\), 'model_ema'"),
                             ({'epoch': 3, 'args': {}}, r"its keys: 'epoch' \(int\), 'args' \(dict\); save the weights alone"),
                             ([STATE], 'found list; save the model'),
                             (torch.nn.Linear(2, 2), r'Python objects \(torch\.nn\.modules\.linear\.Linear\).*save the weights')):
        torch.save(content, path)
        with pytest.raises(WeightsError, match=message) as error:
            read_state(path)
        assert 'weights_only=False' not in str(error.value) and 'x.pth' in str(error.value)


def test_plain_weights_say_nothing(tmp_path, capsys):
    torch.save(STATE, tmp_path / 'x.pth')
    assert len(read_state(tmp_path / 'x.pth')) == 2 and capsys.readouterr().out == ''


def test_a_hugging_face_folder_needs_no_bert(world, tmp_path):
    folder = shutil.copytree(world / 'bert', tmp_path / 'hf')
    for name in ('config.json', 'model.safetensors'):
        (folder / name).touch()
    options = Options(loadLXMERT=str(folder), dataRoot=str(tmp_path))
    assert bert_folder(options, folder / 'model.safetensors') == folder
    given = Options(loadLXMERT=str(folder), bert=str(world / 'bert'))
    assert bert_folder(given, folder / 'model.safetensors') == world / 'bert'
    (folder / 'vocab.txt').unlink()
    with pytest.raises(FileNotFoundError, match='found no vocab'):
        bert_folder(options, folder / 'model.safetensors')
