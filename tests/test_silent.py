"""Weights must not fail to load in silence. The ways in which they could, each tried here or in test_weights.py (W), and told:

Names: a prefix that nobody knows (W); the encoder alone, without any prefix; Hugging Face's answer head in a task; a name twice.
Contents: a tensor that lacks, is of another size, or has no place (W); not whole, an html page, an LFS pointer, code (W); a byte
that differs on disk; whole numbers, NaN, a hole of zeros; copies of tied weights that differ; a model on the meta device (W).
Meaning, though all sizes fit: other words, another number of heads, other answers, the same answers in another order, answers
that nobody named, a head whose rows match no answer (W).
Effect: predictions that are the same for all examples; a finished run that is resumed, whose own weights win; a file that the
ending of another one shadows.
"""

import json
import shutil
import zipfile

import pytest
import torch
import transformers
from conftest import lxmert_head, run_program

from bert.tokenization import BertTokenizer
from bert.weights import WeightsError, read_state, save_state
from lxrt.config import LxrtConfig
from lxrt.modeling import LXRTFeatureExtraction
from lxrt.pretraining import LXRTPretraining
from lxrt.weights import DECODER, WORDS, answer_head, load_lxmert, load_pretraining, read_lxmert, read_task
from tasks.checkpoints import find_weights, sidecar_files


@pytest.fixture
def small(world):
    return LxrtConfig.from_json(world / 'bert/config.json')


@pytest.fixture
def answers(world):
    return json.loads((world / 'vqa/trainval_label2ans.json').read_text())


@pytest.fixture
def snapshot(world, small, answers):
    """A snapshot of VQA with what lies beside it, not trained: snap/BEST.pth."""
    torch.manual_seed(3)
    folder = world.parent / 'snap'
    folder.mkdir()
    for name, text in sidecar_files('lxmert', small, BertTokenizer(world / 'bert/vocab.txt'), answers).items():
        (folder / name).write_text(text)
    head = lxmert_head(small, len(answers)).eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    batch = {'examples': 64, 'input_ids': torch.randint(5, 60, (64, 8)), 'features': torch.randn(64, 4, small.visual_feat_dim),
             'boxes': torch.rand(64, 4, 4)}
    with torch.no_grad():  # scores centred, so that answers differ between examples
        head.classifier[3].bias -= head.logits(batch).mean(0)
    save_state(head.original_state(), folder / 'BEST.pth', '.pth')
    return folder / 'BEST.pth'


@pytest.fixture
def test_it(run_here):
    """Predicts minival with a snapshot; returns (exit status, what it printed)."""
    return lambda path, *flags: run_here('--test', 'minival', '--load', str(path), *flags, scratch=False)


def predicted(world):
    return [row['answer'] for row in json.loads((world.parent / 'run/minival_predict.json').read_text())]


def change(path, **tensors):
    state = torch.load(path, weights_only=True)
    for name, tensor in tensors.items():
        state[name] = tensor(state.get(name))
    torch.save(state, path)


# ---- names

def test_an_encoder_by_itself_is_found_whatever_it_is_called(tmp_path, small):
    source = LXRTFeatureExtraction(small)
    for prefix in ('', 'module.', 'lxmert.', 'lxrt_encoder.model.module.bert.'):
        path = tmp_path / 'encoder.pth'
        torch.save({prefix + name.removeprefix('bert.'): tensor for name, tensor in source.state_dict().items()}, path)
        model = LXRTFeatureExtraction(small)
        report, _ = load_lxmert(model, path)
        assert not report.missing and not report.unexpected
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in source.state_dict().items())
    torch.save({f'net.{name}': tensor for name, tensor in source.state_dict().items()}, path)
    with pytest.raises(WeightsError, match='needs are missing'):
        load_lxmert(LXRTFeatureExtraction(small), path)


def test_a_name_that_comes_twice_is_refused(tmp_path):
    torch.save({'bert.pooler.dense.bias': torch.ones(2), 'module.bert.pooler.dense.bias': torch.zeros(2)}, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match=r'a\.pth: has bert\.pooler\.dense\.bias twice'):
        read_state(tmp_path / 'a.pth')


@pytest.mark.parametrize(('one', 'other', 'read'), [
    ('bert.pooler.dense.bias', 'lxrt_encoder.model.bert.pooler.dense.bias', lambda path: load_lxmert(None, path)),
    ('bert.embeddings.word_embeddings.weight', 'embeddings.word_embeddings.weight', read_lxmert),
    ('answer_head.logit_fc.0.bias', 'logit_fc.0.bias', read_task),
    ('answer_head.logit_fc.0.bias', 'logit_fc.0.bias', lambda path: answer_head(read_state(path), path)),
])
def test_names_that_become_one_are_refused(tmp_path, one, other, read):
    torch.save({one: torch.ones(2), other: torch.zeros(2)}, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match=r'a\.pth: has .* twice'):
        read(tmp_path / 'a.pth')


def test_question_answering_as_hugging_face_saves_it_can_be_tested(world, small, answers, test_it, tmp_path):
    saved = transformers.LxmertForQuestionAnswering(transformers.LxmertConfig(**vars(small), num_qa_labels=len(answers)))
    saved.save_pretrained(tmp_path / 'hf')
    shutil.copy(world / 'bert/vocab.txt', tmp_path / 'hf')
    state = read_task(tmp_path / 'hf/model.safetensors')
    assert torch.equal(state['logit_fc.3.bias'], saved.answer_head.logit_fc[3].bias)
    status, printed = test_it(tmp_path / 'hf')
    assert status == 0, printed.err
    assert 'missing        0' in printed.out and 'no answers.json beside it' in printed.out
    config = json.loads((tmp_path / 'hf/config.json').read_text())
    config['id2label'] = dict(enumerate(answers[::-1]))
    (tmp_path / 'hf/config.json').write_text(json.dumps(config))
    status, printed = test_it(tmp_path / 'hf')
    assert status == 1 and 'another order' in printed.err


# ---- contents

def test_a_byte_that_differs_on_disk_is_noticed(snapshot, test_it):
    with zipfile.ZipFile(snapshot) as file:
        largest = max(file.infolist(), key=lambda info: info.file_size)
    data = bytearray(snapshot.read_bytes())
    data[largest.header_offset + 200 + largest.file_size // 2] ^= 1
    snapshot.write_bytes(data)
    assert torch.load(snapshot, weights_only=True)  # PyTorch does not
    status, printed = test_it(snapshot.with_suffix(''))
    assert status == 1 and 'check sum differs' in printed.err and 'BEST.pth' in printed.err


@pytest.mark.parametrize(('make', 'says'), [
    (lambda tensor: tensor.to(torch.int8), 'expected plain floating point, found torch.int8, torch.strided'),
    (lambda tensor: tensor.index_fill(0, torch.tensor([1]), float('nan')), 'holds NaN or infinity'),
    (lambda tensor: torch.cat([torch.zeros_like(tensor[:8]), tensor[8:]]), 'holds one number throughout in 8 of its 64 rows'),
], ids=['whole numbers', 'NaN', 'a hole'])
def test_what_cannot_be_learned_weights(snapshot, test_it, make, says):
    name = 'lxrt_encoder.model.bert.encoder.layer.0.intermediate.dense.weight'
    change(snapshot, **{name: make})
    status, printed = test_it(snapshot.with_suffix(''))
    assert status == 1 and f'1 tensors are invalid (such as {name}: {says})' in printed.err


@pytest.mark.parametrize(('name', 'make', 'says'), [
    ('logit_fc.3.weight', lambda tensor: tensor * float('nan'), 'logit_fc.3.weight: holds NaN'),
    ('logit_fc.0.weight', lambda tensor: tensor.to(torch.int8), 'logit_fc.0.weight: expected plain floating point'),
    ('logit_fc.0.weight', torch.zeros_like, 'logit_fc.0.weight: holds one number throughout'),
    ('logit_fc.2.weight', torch.zeros_like, 'logit_fc.2.weight: holds 0 everywhere'),
    ('logit_fc.0.bias', lambda tensor: tensor[:1], r'logit_fc.0.bias: expected size (64,), found (1,)'),
])
def test_an_answer_head_that_is_transferred_is_looked_at_too(snapshot, run_here, name, make, says):
    change(snapshot, **{name: make})
    status, printed = run_here('--loadLXMERTQA', str(snapshot), scratch=False)
    assert status == 1 and says in printed.err


def test_tied_weights_that_differ_are_refused(tmp_path, small):
    model = LXRTPretraining(small)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[DECODER][1] += 1
    torch.save(state, tmp_path / 'a_LXRT.pth')
    before = model.state_dict()[WORDS].clone()
    with pytest.raises(WeightsError, match=f'{DECODER} and {WORDS} are one parameter'):
        load_pretraining(model, tmp_path / 'a_LXRT.pth')
    assert torch.equal(model.state_dict()[WORDS], before)


# ---- meaning

def test_other_words_or_heads_beside_the_weights_are_refused(world, snapshot, run_here):
    """Of --loadLXMERT, whose sizes fit; --load takes words and config from beside the snapshot."""
    vocabulary = snapshot.with_name('vocab.txt')
    words = vocabulary.read_text()
    lines = words.splitlines()
    vocabulary.write_text('\n'.join([*lines[:-2], lines[-1], lines[-2]]) + '\n')
    status, printed = run_here('--loadLXMERT', str(snapshot), scratch=False)
    assert status == 1 and f'they differ from word {len(lines) - 2} on' in printed.err
    vocabulary.write_text(words)
    tokens = json.dumps({'model': {'vocab': {word: place for place, word in enumerate([*lines[:-2], lines[-1], lines[-2]])}}})
    vocabulary.unlink()
    snapshot.with_name('tokenizer.json').write_text(tokens)  # as transformers writes it
    status, printed = run_here('--loadLXMERT', str(snapshot), scratch=False)
    assert status == 1 and f'they differ from word {len(lines) - 2} on' in printed.err
    snapshot.with_name('tokenizer.json').unlink()
    vocabulary.write_text(words)
    config = snapshot.with_name('config.json')
    config.write_text(config.read_text().replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    status, printed = run_here('--loadLXMERT', str(snapshot), scratch=False)
    assert status == 1 and 'num_attention_heads: these weights are of 4 heads, the model has 2' in printed.err


def test_weights_with_nothing_beside_them_are_told(snapshot, run_here):
    for name in ('config.json', 'vocab.txt'):
        snapshot.with_name(name).unlink()
    status, printed = run_here('--loadLXMERT', str(snapshot), scratch=False)
    assert status == 0 and 'no vocabulary or no config.json beside it: assuming the vocabulary' in printed.out


def test_a_cased_bert_is_refused(world, run_here):
    (world / 'bert/tokenizer_config.json').write_text('{"do_lower_case": false}')
    assert run_here()[0] == 0  # its vocabulary has no capitals, as that of bert-base-chinese
    words = (world / 'bert/vocab.txt').read_text().split('\n')
    (world / 'bert/vocab.txt').write_text('\n'.join(word if word.startswith('[') else word.capitalize() for word in words))
    status, printed = run_here('--output', str(world.parent / 'cased'))
    assert status == 1 and 'do_lower_case is false' in printed.err and 'use an uncased BERT' in printed.err


def test_other_answers_are_refused_unless_they_are_transferred(world, snapshot, answers, test_it):
    status, _ = test_it(snapshot.with_suffix(''), '--dumpProbs', '3')
    assert status == 0
    before = predicted(world)
    assert len(set(before)) > 2
    # The same answers elsewhere, one under another name of the same, one that nobody knows.
    other = ['The ' + answer.upper() if i == 5 else answer for i, answer in enumerate(answers)][::-1] + ['teapot']
    (world / 'vqa/trainval_label2ans.json').write_text(json.dumps(other))
    status, printed = test_it(snapshot.with_suffix(''))
    assert status == 1 and '--transferAnswers' in printed.err and 'teapot' in printed.err
    status, printed = test_it(snapshot.with_suffix(''), '--transferAnswers')
    assert status == 0, printed.err
    assert f'Answer head: {len(answers)} answers copied from BEST.pth, 1 are never predicted.' in printed.out
    assert [answer.removeprefix('The ').lower() for answer in predicted(world)] == [answer.lower() for answer in before]
    snapshot.with_name('answers.json').unlink()
    status, printed = test_it(snapshot.with_suffix(''), '--transferAnswers')
    assert status == 1 and 'its answers are unknown' in printed.err


def test_the_answer_head_of_a_task_starts_another_vocabulary(world, snapshot, answers, run_here):
    (world / 'vqa/trainval_label2ans.json').write_text(json.dumps(['teapot', *answers]))
    status, printed = run_here('--loadLXMERTQA', str(snapshot), '--lr', '1e-30', scratch=False)
    assert status == 0, printed.err
    assert f'Answer head: {len(answers)} answers copied from BEST.pth, 1 start at 0.' in printed.out
    head = torch.load(world.parent / 'run/LAST.pth', weights_only=True)['logit_fc.3.weight']
    assert head[0].abs().max() < 1e-20  # a step was taken
    torch.testing.assert_close(head[1:], torch.load(snapshot, weights_only=True)['logit_fc.3.weight'], rtol=0, atol=1e-20)


def test_pretraining_under_another_answer_table(world, pretrain, tmp_path):
    flags = ['--epochs', '1', '--valid', '', '--lr', '1e-30']
    assert pretrain(*flags).returncode == 0
    table = world / 'lxmert/all_ans.json'
    table.write_text(json.dumps(json.loads(table.read_text())[::-1]))  # of the same size
    run = pretrain('--load', tmp_path / 'run/Epoch01', *flags, name='other')
    assert run.returncode == 1 and 'another order' in run.stderr and 'Traceback' not in run.stderr
    run = pretrain('--load', tmp_path / 'run/Epoch01', *flags, '--transferAnswers', name='moved')
    assert run.returncode == 0, run.stderr
    before, after = (torch.load(tmp_path / name / 'Epoch01_LXRT.pth', weights_only=True) for name in ('run', 'moved'))
    moved = 'answer_head.logit_fc.3.weight', 'answer_head.logit_fc.3.bias'
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor.flip(0) if name in moved else tensor, rtol=0, atol=1e-20, msg=name)


def test_answers_without_a_name_are_told(snapshot, test_it):
    snapshot.with_name('answers.json').unlink()
    status, printed = test_it(snapshot.with_suffix(''))
    assert status == 0 and 'BEST.pth: no answers.json beside it: assuming the' in printed.out


# ---- effect

def test_the_same_prediction_for_all_is_told(world, snapshot, answers, test_it, run_here):
    status, printed = test_it(snapshot.with_suffix(''))
    assert status == 0 and 'Attention' not in printed.out
    change(snapshot, **{'logit_fc.3.weight': torch.zeros_like, 'logit_fc.3.bias': lambda bias: bias.index_fill(
        0, torch.tensor([2]), 99.0)})
    status, printed = test_it(snapshot.with_suffix(''))
    count = len(json.loads((world / 'vqa/minival.json').read_text()))
    assert status == 0 and f'Warning: all {count:,} predictions are "{answers[2]}"' in printed.out
    status, printed = run_here('--load', str(snapshot), scratch=False)
    assert status == 0 and 'gives the same scores to the first' in printed.out


def test_a_resumed_run_says_that_its_own_weights_are_taken(snapshot, world, tmp_path):
    def train(*flags):
        return run_program('vqa', world, tmp_path / 'again', '--valid', '', '--batchSize', '32', '--load',
                           snapshot.with_suffix(''), *flags)

    assert train('--epochs', '1').returncode == 0
    run = train('--epochs', '1', '--resume')
    assert run.returncode == 0 and 'finished' in run.stdout


def test_which_file_a_flag_means(snapshot, tmp_path):
    shutil.copy(snapshot, tmp_path / 'x.pth')
    shutil.copy(snapshot, tmp_path / 'x_LXRT.pth')
    endings = ('_LXRT.pth', '_LXRT.safetensors', '.pth', '.safetensors')
    assert find_weights(str(tmp_path / 'x'), endings).name == 'x_LXRT.pth'
    assert find_weights(str(tmp_path / 'x'), ('.pth',)).name == 'x.pth'
    assert find_weights(str(tmp_path / 'x.pth'), endings).name == 'x.pth'
    save_state(torch.load(snapshot, weights_only=True), tmp_path / 'y.safetensors', '.safetensors')
    assert find_weights(str(tmp_path / 'y'), endings).name == 'y.safetensors'
    with pytest.raises(FileNotFoundError, match=r'z_LXRT\.pth: no such file'):
        find_weights(str(tmp_path / 'z'), endings)
    one, other = read_state(tmp_path / 'y.safetensors'), read_state(snapshot)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
