"""What the README and run/README.md say is true: files, flags, and every command."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT

from lxrt.modeling import LxrtConfig, LXRTPretraining
from param import Options

README = (ROOT / 'README.md').read_text()
COMMANDS = [line for block in re.findall(r'```bash\n(.*?)```', README, re.S) for line in block.splitlines() if line.strip()]

# What makes a command of the README quick; for argparse the last of a flag's values counts.
QUICK = {
    'run/shapes.bash': ['--images', '50', '--questions', '6'],
    **{f'run/{task}_finetune.bash': ['--epochs', '1', '--batchSize', '16', '--llayers', '1', '--rlayers', '1', '--xlayers', '1']
       for task in ('vqa', 'gqa', 'nlvr2')},
    **{f'run/{task}_test.bash': [] for task in ('vqa', 'gqa', 'nlvr2')},
    'run/lxmert_pretrain.bash': ['--epochs', '1', '--batchSize', '64', '--llayers', '1', '--rlayers', '1', '--xlayers', '1'],
    'run/study.bash': ['--epochs', '1', '--fineEpochs', '1', '--seeds', '1', '--leaveOut', 'questions'],
    'run/evaluate.bash': [],
    'run/ensemble.bash': [],
    'run/convert.bash': [],
    'run/encode.bash': [],
    'run/show.bash': [],
    'run/extract.bash': [],
    'run/ask.bash': [],
    'run/regions.bash': [],
    'run/check_dataset.bash': [],
    'run/download.bash': ['--list'],
    'run/nlvr.bash': ['--statements', '24', '--batchSize', '2', '--llayers', '1'],
}
IN_CI = {'run/quickstart.bash', 'run/test.bash', 'run/setup.bash'}  # .ci/run and, in them, run/setup.bash


def tracked():
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]


def test_the_file_tree_is_that_of_the_repository():
    tree = re.search(r'```\n(README\.md .*?)```', README, re.S)[1]
    told, folder = set(), ''
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if name.endswith('/') else folder if line.startswith(' ') else ''
        if not name.endswith('/'):
            told.add(folder + name)
    there = {path for path in tracked() if not path.endswith('__init__.py') and path != '.gitignore'}
    assert told == there


def test_every_flag_stands_in_the_flag_list_as_it_is():
    listed = (ROOT / 'run/README.md').read_text()
    for field in dataclasses.fields(Options):
        default = '' if field.default is None or field.default is False else f'`{field.default}`'
        assert f'| `--{field.name}` | {default} | {field.metadata["help"]} |' in listed
    flags = re.findall(r'^\| `--(\w+)`', listed, re.M)
    assert sorted(flags) == sorted(field.name for field in dataclasses.fields(Options))


@pytest.fixture(scope='module')
def checkout(made_world, tmp_path_factory):
    """A copy of the repository with small data laid out as the real data is, a small BERT and pre-trained LXMERT."""
    folder = tmp_path_factory.mktemp('checkout') / 'repository'
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    if (ROOT / '.venv').exists():
        (folder / '.venv').symlink_to(ROOT / '.venv')
    for part in ('vqa', 'gqa', 'nlvr2', 'lxmert', 'mscoco_imgfeat', 'vg_gqa_imgfeat', 'nlvr2_imgfeat'):
        shutil.copytree(made_world / part, folder / 'data' / part, dirs_exist_ok=True)
    shutil.copytree(made_world, folder / 'data/shapes')
    shutil.copytree(made_world / 'bert', folder / 'data/bert-base-uncased')
    config = LxrtConfig.from_json(made_world / 'bert/config.json')
    answers = json.loads((made_world / 'vqa/trainval_label2ans.json').read_text())[3:]
    (folder / 'data/lxmert/all_ans.json').write_text(json.dumps([{'ans': answer, 'dsets': ['vqa']} for answer in answers]))
    (folder / 'snap/pretrained').mkdir(parents=True)
    torch.save(LXRTPretraining(config, num_answers=len(answers)).state_dict(), folder / 'snap/pretrained/model_LXRT.pth')
    (folder / 'corpus').mkdir()
    shape = {'x_loc': 20, 'y_loc': 40, 'type': 'circle', 'color': 'Yellow', 'size': 20}
    rows = [{'sentence': f'There are {word} yellow circles.', 'label': label, 'identifier': f'{i}-0', 'directory': '1',
             'structured_rep': [[shape], [], [shape]]} for i, (word, label) in enumerate([('two', 'true'), ('six', 'false')])]
    for split in ('train', 'dev'):
        (folder / f'corpus/{split}.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return folder


def test_each_command_of_the_readme_runs(checkout):
    """In the order in which they stand there, each on what those before have made."""
    assert len(COMMANDS) >= 8
    ci = (ROOT / '.ci/run').read_text() + (ROOT / 'run/test.bash').read_text() + (ROOT / 'run/quickstart.bash').read_text()
    for command in COMMANDS:
        words = [str(checkout / 'corpus') if word == 'PATH' else word for word in shlex.split(command, comments=True)]
        assert words[0] == 'bash', command
        if words[1] in IN_CI:
            assert f'bash {words[1]}' in ci
            continue
        run = subprocess.run([*words, *QUICK[words[1]]], cwd=checkout, capture_output=True, text=True, timeout=500,
                             env={**os.environ, 'OMP_NUM_THREADS': '1'})
        assert run.returncode == 0, f'{command}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}'
        if words[1] == 'run/lxmert_pretrain.bash':
            last = checkout / 'snap/pretrain' / ('tiny' if '--tiny' in words else 'lxmert') / 'Epoch01_LXRT.pth'
            shutil.copy(last, last.with_name('Epoch20_LXRT.pth'))  # the last, of a whole run
        if words[1] == 'run/vqa_finetune.bash' and words[3] in ('vqa_tiny', 'vqa_lxr955'):
            assert 'Answer head:' in run.stdout and ' 3 start at 0' in run.stdout  # the launcher's --loadLXMERTQA
    assert (checkout / 'snap/vqa/vqa_lxr955/run.bash').is_file()


def test_launchers_tell_how_to_use_them(checkout):
    for launcher in ('lxmert_pretrain', 'vqa_finetune', 'vqa_test', 'gqa_finetune', 'gqa_test', 'nlvr2_finetune', 'nlvr2_test',
                     'nlvr', 'ensemble', 'encode', 'extract'):
        run = subprocess.run(['bash', f'run/{launcher}.bash'], cwd=checkout, capture_output=True, text=True)
        assert run.returncode == 2 and 'Usage: bash run/' in run.stderr
    for launcher in ('ask', 'encode', 'extract'):
        run = subprocess.run(['bash', f'run/{launcher}.bash', '--help'], cwd=checkout, capture_output=True, text=True)
        assert run.returncode == 0 and f'usage: bash run/{launcher}.bash' in run.stdout and not run.stderr
    run = subprocess.run(['bash', checkout / 'run/ask.bash', 'cpu', 'photo.jpg', 'what?'], cwd=checkout.parent,
                         capture_output=True, text=True)
    assert run.returncode == 1 and f'Paths are relative to {checkout.resolve()}' in run.stderr
    run = subprocess.run(['bash', 'run/vqa_finetune.bash', 'gpu0', 'x'], cwd=checkout, capture_output=True, text=True)
    assert run.returncode == 2 and "found 'gpu0'" in run.stderr
    run = subprocess.run(['bash', 'run/nlvr.bash', 'cpu', 'x', '--nlvr', 'corpus', '--epochs', '2'], cwd=checkout,
                         capture_output=True, text=True)
    assert run.returncode == 2 and '--epochs: is not to be given' in run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_machine_without_gpu_goes_on_with_the_cpu_and_says_so(checkout):
    run = subprocess.run(
        ['bash', 'run/vqa_test.bash', '0', 'none', '--load', 'snap/vqa/none/BEST'], cwd=checkout, capture_output=True, text=True)
    assert 'going on with the CPU' in run.stdout and run.returncode == 1 and 'BEST.pth' in run.stderr
