"""README.md, docs/ and run/README.md are true: folders, links, flags, and every command and example."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess

import pytest
import torch
import warm_python
from conftest import ROOT

import models
from lxrt.modeling import LxrtConfig, LXRTPretraining
from param import Options
from vlbert.config import VLBertConfig

README = ROOT / 'README.md'
DOCUMENTS = [README, *sorted((ROOT / 'docs').glob('*.md'))]
SNAPSHOT = 'snap/vqa/quickstart'  # the commands of the documents start from it
PICTURE = 'data/shapes/images/val2014/COCO_val2014_00000000160{}.png'  # the documents name the first two of the published size

# What makes a command quick; of a flag that is given twice the last value counts.
QUICK = {
    'run/shapes.bash': ['--images', '50', '--questions', '6'],
    **{f'run/{task}_finetune.bash': ['--epochs', '1', '--batchSize', '64']
       for task in ('vqa', 'gqa', 'nlvr2', 'classify', 'entailment', 'refcoco', 'retrieval', 'vcr', 'visual7w')},
    'run/lxmert_pretrain.bash': ['--epochs', '1', '--batchSize', '64'],
    'run/vlbert_pretrain.bash': ['--epochs', '1', '--batchSize', '64', '--fromScratch'],
    'run/albef_pretrain.bash': ['--epochs', '1', '--batchSize', '64', '--fromScratch'],
    'run/download.bash': ['--list'],
    'run/compare.bash': ['--help'],
    'run/nlvr.bash': ['--statements', '24', '--batchSize', '2', '--llayers', '1'],
}
PRINTED = {  # by the Python examples
    'adding_a_task.md: Run it': 'True\n',
    'README.md: From Python': r'(COCO_val2014_00000000160[12]\.png .+\n){4}',
    'library.md: From regions to answers': r'(.+: 0\.\d{3}\n){3}',
    'library.md: Matching images and sentences': r'\(2, 3\)\n\(2,\)\n(.+: 0\.\d{3}\n){3}',
    'library.md: The encoder': r'(torch\.Size\(\[2, [\d, ]*32\]\) ?){3,4}\n'}
IN_CI = {'run/quickstart.bash', 'run/test.bash', 'run/setup.bash'}  # run by .ci/run


def chains():
    """Commands and Python examples that build on each other: {name: [(language, code), ...]}, one chain per section of a
    document, or per row of a table of README.md."""
    found = {}
    for document in DOCUMENTS:
        for section in re.split(r'^## ', document.read_text(), flags=re.M):
            name = f'{document.name}: {section.splitlines()[0].strip("# ")}'
            for language, block in re.findall(r'^```(bash|python)\n(?!#!)(.*?)^```', section, re.S | re.M):
                parts = [line for line in block.splitlines() if line.strip()] if language == 'bash' else [block]
                found.setdefault(name, []).extend((language, part) for part in parts)
            if document == README:
                for row in re.findall(r'^\| (.*) \|$', section, re.M):
                    commands = [('bash', command) for command in re.findall(r'`(bash run/[^`]*)`', row)]
                    if commands:
                        found[f'{name}, {row.partition(" |")[0]}'] = commands
    return found


CHAINS = chains()


def code_of(document):
    """[(path, code)] of the blocks of a document that are of a file: those with a path after the language."""
    return re.findall(r'^```\w+ (\S+)\n(.*?)^```', (ROOT / 'docs' / document).read_text(), re.S | re.M)


def tracked():
    """The files of the repository, committed or to be committed, relative to its root."""
    listed = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    return [path for path in listed.stdout.splitlines() if (ROOT / path).is_file()]


def test_the_folder_list_is_that_of_the_repository():
    block = re.search(r'^## Folders\n+```\n(.*?)```', README.read_text(), re.S | re.M)[1]
    folders = {re.match(r'src/\w+/|src/\w+\.py|\w+/', path) for path in tracked()}
    assert {line.split()[0] for line in block.splitlines()} == {match[0] for match in folders if match}


@pytest.mark.parametrize('document', [path for path in tracked() if path.endswith('.md')])
def test_links_lead_to_files(document):
    for link in re.findall(r'(?:\]\(|src=")(?!http)([^)"]+)[)"]', (ROOT / document).read_text()):
        assert ((ROOT / document).parent / link).is_file(), link


def test_every_flag_is_in_the_flag_list_as_it_is():
    listed = (ROOT / 'run/README.md').read_text()
    for field in dataclasses.fields(Options):
        default = '' if field.default is None or field.default is False else f'`{field.default}`'
        assert f'| `--{field.name}` | {default} | {field.metadata["help"]} |' in listed
    flags = re.findall(r'^\| `--(\w+)`', listed, re.M)
    assert sorted(flags) == sorted(field.name for field in dataclasses.fields(Options))


def test_every_launcher_is_in_the_list_with_its_flags():
    rows = re.findall(r'^\| (`run/.*?`) \| (.*?) \| (.*?) \|$', (ROOT / 'run/README.md').read_text(), re.M)
    names = [name for launchers, *_ in rows for name in re.findall(r'run/\w+\.bash', launchers)]
    assert sorted(names) == sorted(f'run/{path.name}' for path in (ROOT / 'run').glob('*.bash')
                                   if path.name not in ('launch.bash', 'signals.bash'))
    for launcher, program, flags in rows:
        for path in re.findall(r'`((?:src|data)/[\w/]+\.py)`', program):
            assert (ROOT / path).is_file(), path
        if re.search(r'_(finetune|test|pretrain)\.bash', launcher):
            text = (ROOT / launcher.strip('`')).read_text()
            for flag, value in re.findall(r'(--\w+) ([\w.,/-]+)', ' '.join(re.findall(r'`(--.*?)`', flags))):
                assert re.search(rf'{flag} "?{re.escape(value.replace("NAME", ""))}', text), f'{launcher}: {flag} {value}'


def write_memes(folder, world):
    """A dataset of two classes, in the format of hateful memes."""
    folder.mkdir()
    splits = {}
    for split, questions, features in (('train', 'train', 'train2014'), ('dev', 'minival', 'val2014')):
        rows = [{'id': item['question_id'], 'img': f'img/{item["img_id"]}.png', 'text': item['sent'],
                 'label': int('yes' in item['label'])} for item in json.loads((world / f'vqa/{questions}.json').read_text())]
        (folder / f'{split}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
        splits[split] = {'annotations': f'{split}.jsonl', 'features': [f'../mscoco_imgfeat/{features}_obj36.tsv']}
    (folder / 'classes.json').write_text('["other", "yes"]')
    (folder / 'dataset.json').write_text(json.dumps(
        {'kind': 'classify', 'name': 'memes', 'max_length': 20, 'answers': 'classes.json', 'splits': splits}))


def test_quoted_code_is_that_of_the_files():
    """Lines of `...` stand for what is left out."""
    quoted = [(path, code) for path, code in code_of('adding_a_model.md') if (ROOT / path).is_file()]
    for path, code in quoted:
        for part in re.split(r'^ *\.\.\.\n', code, flags=re.M):
            assert part in (ROOT / path).read_text(), f'{path}:\n{part}'
    assert len(quoted) >= 6


@pytest.fixture(scope='session')
def template(made_world, tmp_path_factory):
    """A copy of the repository with a small world as sample world and as real data, a small BERT, a pre-trained LXMERT, a corpus
    of NLVR v1 and a trained VQA model."""
    folder = tmp_path_factory.mktemp('checkout') / 'repository'
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    if (ROOT / '.venv').exists():
        warm_python.install(ROOT / '.venv', folder / '.venv')
    for part in ('vqa', 'gqa', 'nlvr2', 'lxmert', 'mscoco_imgfeat', 'vg_gqa_imgfeat', 'nlvr2_imgfeat', 'cc', 'cc_imgfeat',
                 'corpus', 'entailment', 'flickr30k_imgfeat', 'images', 'refcoco', 'retrieval', 'vcr', 'vcr_imgfeat'):
        shutil.copytree(made_world / part, folder / 'data' / part, dirs_exist_ok=True)
    shutil.copytree(made_world, folder / 'data/shapes')
    for number, picture in enumerate(sorted((folder / 'data/shapes/images/val2014').glob('*.png'))[:2], 1):
        shutil.copy(picture, folder / PICTURE.format(number))
    shutil.copytree(made_world / 'bert', folder / 'data/bert-base-uncased')
    write_memes(folder / 'data/memes', made_world)
    answers = json.loads((made_world / 'vqa/trainval_label2ans.json').read_text())[3:]
    (folder / 'data/lxmert/all_ans.json').write_text(json.dumps([{'ans': answer, 'dsets': ['vqa']} for answer in answers]))
    (folder / 'snap/pretrained').mkdir(parents=True)
    config = LxrtConfig.from_json(made_world / 'bert/config.json')
    torch.save(LXRTPretraining(config, num_answers=len(answers)).state_dict(), folder / 'snap/pretrained/model_LXRT.pth')
    torch.save({f'module.{name}': tensor for name, tensor in models.build('vlbert', 'pretrain', VLBertConfig.from_json(
        made_world / 'bert/config.json')).original_state().items()}, folder / 'snap/pretrained/vl-bert-base-prec.model')
    (folder / 'corpus').mkdir()
    shape = {'x_loc': 20, 'y_loc': 40, 'type': 'circle', 'color': 'Yellow', 'size': 20}
    rows = [{'sentence': f'There are {word} yellow circles.', 'label': label, 'identifier': f'{i}-0', 'directory': '1',
             'structured_rep': [[shape], [], [shape]]} for i, (word, label) in enumerate([('two', 'true'), ('six', 'false')])]
    for split in ('train', 'dev'):
        (folder / f'corpus/{split}.json').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    with warm_python.serve(folder.parent / 'python') as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        run(folder, 'bash', 'bash run/vqa_finetune.bash cpu quickstart --dataRoot data/shapes --bert data/shapes/bert '
                            '--fromScratch')
        yield folder


@pytest.fixture
def checkout(template, tmp_path):
    """A copy of the template of one test's own; files are linked, since no program changes a file in place."""
    return shutil.copytree(template, tmp_path / 'repository', symlinks=True, copy_function=os.link)


def run(folder, language, code):
    """Runs a command of the documents, made quick, or a Python example; returns what it printed."""
    if language == 'bash':
        # One process for several GPUs: several are tested in test_launch.py.
        words = shlex.split(code.replace('0,1,2,3 --multiGPU', 'cpu').replace('NAME', 'name').replace('PATH', 'corpus'))
        command = ['env', *words, *QUICK.get(words[1], [])]  # words may begin with PYTHONPATH=src
    else:
        command = ['.venv/bin/python' if (folder / '.venv').exists() else 'python3', '-c', code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300,
                          env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': 'src'})
    assert done.returncode == 0, f'{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
    return done.stdout


@pytest.mark.parametrize('name', CHAINS)
def test_commands_and_examples_run(checkout, name):
    ci = (ROOT / '.ci/run').read_text() + (ROOT / 'run/test.bash').read_text() + (ROOT / 'run/quickstart.bash').read_text()
    for path, code in code_of(name.partition(':')[0]) if name.startswith('adding') else ():
        if not (ROOT / path).exists():  # a file that the document adds
            (checkout / path).parent.mkdir(exist_ok=True)
            (checkout / path).write_text(code)
    for language, code in CHAINS[name]:
        launcher = code.split()[1] if language == 'bash' else ''
        if launcher in IN_CI:
            assert f'bash {launcher}' in ci
            continue
        printed = run(checkout, language, code)
        assert language == 'bash' or re.search(f'{PRINTED[name]}$', printed), printed
        if launcher == 'run/lxmert_pretrain.bash' and '--resume' in code:
            last = checkout / 'snap/pretrain/lxmert/Epoch01_LXRT.pth'
            shutil.copy(last, last.with_name('Epoch20_LXRT.pth'))  # the last epoch of a full run
        if code == 'bash run/vqa_finetune.bash 0 NAME':  # the launcher's --loadLXMERTQA, and what it saves
            assert 'Answer head:' in printed and ' 3 start at 0' in printed
            assert (checkout / 'snap/vqa/name/run.bash').is_file()


def test_the_documents_have_commands():
    assert len(CHAINS) >= 18 and sum(map(len, CHAINS.values())) >= 35


def test_launchers_say_how_to_use_them(template):
    for launcher in ('lxmert_pretrain', 'vqa_finetune', 'vqa_test', 'gqa_finetune', 'gqa_test', 'nlvr2_finetune', 'nlvr2_test',
                     'classify_finetune', 'classify_test', 'entailment_finetune', 'entailment_test',
                     'refcoco_finetune', 'refcoco_test', 'retrieval_finetune', 'retrieval_test', 'vcr_finetune', 'vcr_test',
                     'nlvr', 'ensemble', 'encode', 'extract', 'match'):
        done = subprocess.run(['bash', f'run/{launcher}.bash'], cwd=template, capture_output=True, text=True)
        assert done.returncode == 2 and 'Usage: bash run/' in done.stderr
    for launcher in ('ask', 'encode', 'extract', 'match'):
        done = subprocess.run(['bash', f'run/{launcher}.bash', '--help'], cwd=template, capture_output=True, text=True)
        assert done.returncode == 0 and f'usage: bash run/{launcher}.bash' in done.stdout and not done.stderr
    done = subprocess.run(['bash', template / 'run/ask.bash', 'cpu', 'photo.jpg', 'what?'], cwd=template.parent,
                          capture_output=True, text=True)
    assert done.returncode == 1 and f'Paths are relative to {template.resolve()}' in done.stderr
    done = subprocess.run(['bash', 'run/vqa_finetune.bash', 'gpu0', 'x'], cwd=template, capture_output=True, text=True)
    assert done.returncode == 2 and "found 'gpu0'" in done.stderr
    done = subprocess.run(['bash', 'run/nlvr.bash', 'cpu', 'x', '--nlvr', 'corpus', '--epochs', '2'], cwd=template,
                          capture_output=True, text=True)
    assert done.returncode == 2 and '--epochs: is not to be given' in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason='this machine has a GPU')
def test_a_machine_without_gpu_falls_back_to_the_cpu_and_says_so(template):
    done = subprocess.run(
        ['bash', 'run/vqa_test.bash', '0', 'none', '--load', 'snap/vqa/none/BEST'], cwd=template, capture_output=True, text=True)
    assert 'using the CPU' in done.stdout and done.returncode == 1 and 'BEST.pth' in done.stderr
