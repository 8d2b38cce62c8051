"""VCR: texts whose words name regions, four choices, both models, and the raw data."""

import gzip
import io
import json
import random
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, SMALL, data_script

import models
from annotations.examples import read_examples
from annotations.tagged_texts import TaggedSchema, cut_answers, cut_rationales, encode, tagged
from bert.tokenization import SPECIAL_TOKENS, BertTokenizer
from cli import run_main, train_main
from files.json_files import DataError
from heads import Start
from shapes import report, scene, tagged_questions
from tasks import vcr_files
from tasks.vcr import VCR, Rationale, VCRProgram, check_snapshot, given
from tools import ensemble, evaluate
from vlbert import heads
from vlbert.config import VLBertConfig

EXAMPLE = {'annot_id': 'a-1', 'img_id': 'film/1@0', 'names': ['casey', 'dog'], 'classes': [1, 17],
           'question': ['Why', 'is', [0, 1], 'here', '?'],
           'answer_choices': [[[0], 'left', '.'], ['no', '.'], [[1], 'barks', '.'], [[1, 0], 'sleep', '.']], 'answer_label': 2,
           'rationale_choices': [['so'], [[1], 'is', 'here'], ['no'], ['is', [0], '?']], 'rationale_label': 1}
CONFIG = {'vocab_size': 40, 'num_hidden_layers': 2, 'visual_feat_dim': 6, 'num_region_classes': 9,
          **{key: SMALL[key] for key in ('hidden_size', 'num_attention_heads', 'intermediate_size')}}


@pytest.fixture
def tokenizer(tmp_path):
    words = ['why', 'is', 'case', '##y', 'dog', 'and', 'here', '?', 'left', '.', 'no', 'barks', 'sleep', 'so']
    (tmp_path / 'vocab.txt').write_text('\n'.join([*SPECIAL_TOKENS, *words]) + '\n')
    return BertTokenizer(tmp_path / 'vocab.txt')


def examples_of(tmp_path, schema, *examples):
    path = tmp_path / 'examples.json'
    path.write_text(json.dumps(examples))
    return read_examples([path], schema, ())


def texts(tokenizer, examples, row, **how):
    """[(token, region), ...] of a text of the examples."""
    how = {'max_length': 67} | how
    columns = encode(tokenizer, [examples.sentences[i] for i in examples.sentence.ravel()], 4, **how)
    count = (columns['input_ids'][row] != 0).sum()
    tokens = tokenizer.convert_ids_to_tokens(columns['input_ids'][row, :count].tolist())
    return list(zip(tokens, columns['word_regions'][row, :count].tolist(), columns['token_type_ids'][row, :count].tolist(),
                    strict=True))


def test_words_name_regions_by_all_their_pieces(tmp_path, tokenizer):
    rows = texts(tokenizer, examples_of(tmp_path, VCR.schema, EXAMPLE), 3)
    assert rows == [('[CLS]', 0, 0), ('why', 0, 0), ('is', 0, 0), ('case', 1, 0), ('##y', 1, 0), ('and', 0, 0), ('dog', 2, 0),
                    ('here', 0, 0), ('?', 0, 0), ('[SEP]', 0, 0), ('dog', 2, 1), ('and', 0, 1), ('case', 1, 1), ('##y', 1, 1),
                    ('sleep', 0, 1), ('.', 0, 1), ('[SEP]', 0, 1)]
    rows = texts(tokenizer, examples_of(tmp_path, Rationale.schema, EXAMPLE), 1)
    assert [token for token, _, _ in rows[9:]] == ['dog', 'barks', '.', '[SEP]', 'dog', 'is', 'here', '[SEP]']
    rows = texts(tokenizer, examples_of(tmp_path, given(1).schema, EXAMPLE), 0)
    assert [token for token, _, _ in rows[9:]] == ['no', '.', '[SEP]', 'so', '[SEP]']
    assert TaggedSchema.plain((tagged(['a', [0]], ['dog']), '', tagged([[0], 'b'], ['dog']))) == ('a dog', 'dog b')


def test_texts_are_cut_as_in_the_original_code(tmp_path, tokenizer):
    question, answers = list('qqqqqq'), [list('aa'), list('aaaaaaaa'), list('aaaaaa'), list('a')]
    cut_answers(question, answers, 10)
    assert [len(question), *map(len, answers)] == [5, 2, 5, 5, 1]  # the first fits; of equals the question is cut
    question, answer, rationales = list('qqq'), list('aaaa'), [list('r' * 9), list('r' * 3), list('r' * 8)]
    cut_rationales(question, answer, rationales, 8)
    assert [len(question), len(answer), *map(len, rationales)] == [1, 3, 4, 3, 4]
    long = EXAMPLE | {'rationale_choices': [['so'] * 90, ['no'], ['is'], ['.']]}
    assert len(texts(tokenizer, examples_of(tmp_path, Rationale.schema, long), 0)) == 67
    uncut = {key: value for key, value in long.items() if not key.endswith('label')}
    assert len(texts(tokenizer, examples_of(tmp_path, given(0).schema, uncut), 0, max_length=200, cut=False)) > 100


@pytest.mark.parametrize(('change', 'message'), [
    ({'names': ['casey', ' ']}, 'key "names": expected a list with a name'),
    ({'names': ['casey'] * 40000, 'classes': [1] * 40000, 'question': [[39999]]}, 'key "names": .* at most 1,000, found'),
    ({'rationale_choices': [['so']]}, 'key "rationale_choices": expected a list of 4'), ({'rationale_label': 4}, 'found 4'),
    ({'question': ['Why', [2]]}, r'key "question": expected a list of words, and lists of indices of objects, 0 to 1'),
    ({'question': ['Why', []]}, 'key "question"'), ({'question': 'Why'}, 'key "question"'),
    ({'names': [], 'classes': []}, r'key "question": expected a list of words \(there are no objects\)'),
    ({'answer_choices': EXAMPLE['answer_choices'][:3]}, 'key "answer_choices": expected a list of 4 lists'),
    ({'answer_choices': [[True]] * 4}, 'key "answer_choices"'),
    ({'answer_label': 4}, 'key "answer_label": expected the index of the right choice, 0 to 3, found 4'),
    ({'classes': [1]}, 'key "classes": expected the class of each of the 2 objects, 1 to 80'),
    ({'classes': [0, 1]}, 'key "classes"'), ({'question_type': ['why']}, 'key "question_type": expected a text, or no such key'),
    ({'annot_id': 3}, 'key "annot_id"'), ({'img_id': ''}, 'key "img_id"')])
def test_faults_of_examples_are_told(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        examples_of(tmp_path, VCR.schema, EXAMPLE | change)


def test_a_rationale_needs_the_right_answer(tmp_path):
    with pytest.raises(DataError, match='key "answer_label"'):
        examples_of(tmp_path, Rationale.schema, {key: value for key, value in EXAMPLE.items() if key != 'answer_label'})


# ---- VL-BERT's head

def batch_of(b=2, o=3, t=7):
    torch.manual_seed(1)
    mask = torch.ones(b, o, dtype=torch.bool)
    mask[0, -1] = False
    return {'examples': b, 'input_ids': torch.randint(5, 40, (4 * b, t)), 'token_type_ids': torch.zeros(4 * b, t).long(),
            'word_regions': torch.randint(0, o - 1, (4 * b, t)), 'features': torch.randn(b, o, 6), 'boxes': torch.rand(b, o, 4),
            'visual_attention_mask': mask, 'image_size': torch.tensor([[30, 40]] * b), 'choice': torch.tensor([3, 0])[:b],
            'region_labels': torch.tensor([[0, 17, -1], [0, 1, 80]])[:b]}


def random_head(task='vcr', **sizes):
    head = models.build('vlbert', task, VLBertConfig(**CONFIG | sizes))
    torch.manual_seed(2)
    for parameter in head.parameters():
        parameter.data.normal_(0, 0.3)
    return head


def test_the_head_has_the_original_names_and_losses():
    head, batch = random_head(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), batch_of()
    shapes = {name: tuple(tensor.shape) for name, tensor in head.original_state().items()}
    assert shapes['final_mlp.1.weight'] == (1, 32) and shapes['cnn_loss_reg.2.weight'] == (81, 32)
    assert shapes['cnn_loss_reg.0.dense.weight'] == shapes['vlbert._module.pooler.dense.weight'] == (32, 32)
    assert {name.split('.')[0] for name in shapes} == {
        'vlbert', 'final_mlp', 'cnn_loss_reg', 'object_linguistic_embeddings', 'image_feature_extractor'}
    assert all('_module' in name for name in shapes if name.startswith('vlbert.'))

    counts = head.counts([batch])
    assert {name: int(count) for name, count in counts.items()} == {'BCE': 8, 'Classes': 20}
    losses, metrics = head.train()(batch, counts)
    with torch.no_grad():
        states = head.encoder(batch)
        logits = head.classifier(states.pooled).view(2, 4)
        target = torch.zeros(2, 4)
        target[0, 3] = target[1, 0] = 1
        torch.testing.assert_close(losses['BCE'], F.binary_cross_entropy_with_logits(logits, target))
        classes = batch['region_labels'].repeat_interleave(4, 0)
        known = classes >= 0
        torch.testing.assert_close(losses['Classes'], F.cross_entropy(head.classes(states.visual)[known], classes[known]))
        assert states.visual.shape == (8, 3, 32) and not states.visual[0, 2].any()
        torch.testing.assert_close(head.eval().logits(batch), logits)  # without the states of regions
        assert head.encoder(batch).visual is None
    indices, probabilities = head.predict(batch, 4)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2))
    assert metrics['examples'] == 2 and indices.shape == (2, 4)


def test_without_classes_the_loss_is_left_out():
    head, batch = random_head(), batch_of()
    del batch['region_labels']
    assert set(head.counts([batch])) == {'BCE'} and set(head.train()(batch, head.counts([batch]))[0]) == {'BCE'}


def test_words_read_the_region_that_they_name():
    head, batch = random_head().eval(), batch_of(1)
    before = head.logits(batch)
    batch['word_regions'] = batch['word_regions'].clone()
    batch['word_regions'][2, 3] = 1 - batch['word_regions'][2, 3]
    changed = (head.logits(batch) != before)[0].tolist()
    assert changed == [False, False, True, False]


@pytest.mark.parametrize('relationship', [False, True])
def test_vcr_starts_from_pretraining_and_from_berts_pooler(tmp_path, relationship):
    source = random_head('pretrain', with_relationship=relationship)
    torch.save({f'module.{name}': tensor for name, tensor in source.original_state().items() if '.pooler.' not in name},
               tmp_path / 'e2e.model')
    bert = random_head()  # of the same names as BERT, but for the prefix
    words = {name.removeprefix('vlbert._module.'): tensor for name, tensor in bert.original_state().items() if '_module' in name}
    state = {('embeddings.' if 'embedding' in name else '') + name.replace('embedding_LayerNorm', 'LayerNorm'): tensor
             for name, tensor in words.items() if not name.startswith(('end_', 'visual_ln'))}
    state['embeddings.token_type_embeddings.weight'] = state['embeddings.token_type_embeddings.weight'][:2] + 1
    torch.save(state, tmp_path / 'pytorch_model.bin')
    head = models.build('vlbert', 'vcr', VLBertConfig(**CONFIG))
    heads.load_start(head, Start('encoder', tmp_path / 'e2e.model', bert=tmp_path / 'pytorch_model.bin'))
    loaded, expected = head.original_state(), source.original_state()
    assert torch.equal(loaded['cnn_loss_reg.0.dense.weight'], expected['vlbert.mvrc_head.transform.dense.weight'])
    assert torch.equal(loaded['vlbert._module.pooler.dense.weight'], state['pooler.dense.weight'])
    name = 'token_type_embeddings.weight'
    assert torch.equal(loaded[f'vlbert._module.{name}'], expected[f'vlbert.{name}'][[0, 0, 2]])
    name = 'encoder.layer.1.output.dense.weight'
    assert torch.equal(loaded[f'vlbert._module.{name}'], expected[f'vlbert.{name}'])
    rows = expected.get('vlbert.relationsip_head.caption_image_relationship.weight')
    assert relationship == (rows is not None and torch.equal(loaded['final_mlp.1.weight'], rows[1:] - rows[:1]))

    torch.save(loaded, tmp_path / 'BEST.pth')  # its own snapshot
    other = models.build('vlbert', 'vcr', VLBertConfig(**CONFIG))
    heads.load_start(other, Start('all', tmp_path / 'BEST.pth'))
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in other.original_state().items())


def test_boxes_are_cut_at_the_side_of_vcrs_images():
    recipe = heads.recipe('vcr')
    assert models.build('vlbert', 'vcr', VLBertConfig(**CONFIG)).encoder.longest == 1200
    assert recipe.rate(64) == pytest.approx(4.48e-3) and recipe.milestones == (14, 18) and recipe.optim == 'momentum'
    assert models.build('lxmert', 'vcr', models.package('lxmert').LxrtConfig(**SMALL)).recipe.loss == 'CE'


# ---- the program

def run(*flags):
    return train_main(VCRProgram.prepare, ['--device', 'cpu', *map(str, flags)])


@pytest.mark.parametrize('model', ['vlbert', 'lxmert'])
def test_both_models_are_trained_and_tested_together(world, tmp_path, capsys, model):
    data = ['--dataRoot', world, '--bert', world / 'bert']
    begin = [*data, '--model', model, '--fromScratch', '--train', 'train', '--valid', 'val', '--batchSize', 32, '--epochs', 1,
             '--optim', 'adam', '--lr', '1e-3']
    answers, rationales, results = tmp_path / 'answers', tmp_path / 'rationales', tmp_path / 'results'
    assert run(*begin, '--output', answers) == 0, capsys.readouterr().err
    assert run(*begin, '--rationale', '--output', rationales) == 0, capsys.readouterr().err
    names = torch.load(answers / 'BEST.pth', weights_only=True)
    assert any('vlbert._module.' in name for name in names) == (model == 'vlbert')

    test = [*data, '--load', answers / 'BEST', '--loadRationale', rationales / 'BEST', '--output', results]
    capsys.readouterr()
    assert run(*test, '--test', 'val') == 0, capsys.readouterr().err
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('Score on val: '))
    assert evaluate.main(['vcr', str(results / 'val_predict.csv'), str(world / 'vcr/val.json')]) == 0
    table = capsys.readouterr().out
    for name in ('Q->A', 'QA->R'):
        value = line.split(f'{name} ')[1].split(',')[0]
        assert any(row.startswith(name + ' ') and row.endswith(value) for row in table.splitlines())
    assert f'{line.split("Q->AR ")[1]}' in table

    report.main([str(world), str(results / 'val_predict.csv'), '--task', 'vcr'])
    train, val = (json.loads((world / f'vcr/{split}.json').read_text()) for split in ('train', 'val'))
    baseline = tagged_questions.text_only(train, val, 'answer') * tagged_questions.text_only(train, val, 'rationale') / 100
    score = float(line.split('Q->AR ')[1])
    assert f'Score {score:.1f}, without pictures {baseline:.1f}: ' in capsys.readouterr().out

    same = str(results / 'val_predict.csv')
    assert ensemble.main(['vcr', same, same, '--out', str(tmp_path / 'same.csv')]) == 0
    assert (tmp_path / 'same.csv').read_text() == (results / 'val_predict.csv').read_text()

    # One of the models alone gives the same; the rationales of the right answer are those conditioned on it.
    assert run(*data, '--test', 'val', '--load', rationales / 'BEST', '--rationale', '--output', tmp_path / 'alone') == 0
    together = np.loadtxt(results / 'val_predict.csv', delimiter=',', skiprows=1, usecols=range(1, 21))
    alone = np.loadtxt(tmp_path / 'alone/val_predict.csv', delimiter=',', skiprows=1, usecols=range(1, 5))
    right = [example['answer_label'] for example in json.loads((world / 'vcr/val.json').read_text())]
    np.testing.assert_allclose(together[:, 4:].reshape(-1, 4, 4)[np.arange(len(right)), right], alone, atol=1e-5)
    np.testing.assert_allclose(together.reshape(-1, 5, 4).sum(2), 1, atol=1e-5)

    assert run(*test, '--test', 'test') == 0
    out = capsys.readouterr().out
    assert 'test has no labels' in out and len((results / 'test_predict.csv').read_text().splitlines()) == 1 + len(
        json.loads((world / 'vcr/test.json').read_text()))
    assert run(*data, '--test', 'val', '--load', rationales / 'BEST', '--output', results) == 1
    assert 'expected a model that chooses answers, found rationales' in capsys.readouterr().err


def test_flags_of_vcr_are_for_vcr(world, tmp_path, capsys):
    from tasks.program import main
    from tasks.vqa import VQA

    assert main(VQA, ['--device', 'cpu', '--dataRoot', str(world), '--train', 'train', '--rationale']) == 1
    assert '--rationale: is for VCR' in capsys.readouterr().err
    assert run('--dataRoot', world, '--train', 'train', '--loadRationale', 'x') != 0
    assert '--loadRationale: is for --test' in capsys.readouterr().err
    (tmp_path / 'options.json').write_text(json.dumps({'task': 'refcoco', 'options': {}}))
    with pytest.raises(DataError, match=r'--loadRationale .*BEST\.pth: expected a snapshot of vcr, found one of refcoco'):
        check_snapshot(tmp_path / 'BEST.pth', 'loadRationale', True)
    assert run('--dataRoot', world, '--test', 'val', '--load', 'x', '--loadRationale', 'x', '--dumpProbs', 4) == 1
    assert '--dumpProbs: does not apply with --loadRationale' in capsys.readouterr().err


def test_a_word_that_names_a_region_beyond_those_of_the_image(world, tmp_path, capsys):
    path = world / 'vcr/train.json'
    examples = json.loads(path.read_text())
    first = examples[0]
    first['names'], first['classes'] = first['names'] + ['star'] * 20, first['classes'] + [4] * 20
    first['question'] = [[len(first['names']) - 1], '?']
    path.write_text(json.dumps(examples))
    flags = ['--dataRoot', world, '--bert', world / 'bert', '--fromScratch', '--train', 'train', '--valid', '', '--batchSize', 64,
             '--epochs', 1, '--optim', 'adam', '--output', tmp_path / 'run']
    assert run(*flags, '--model', 'vlbert') == 1
    assert f'example {first["annot_id"]} names object {len(first["names"]) - 1}' in capsys.readouterr().err


# ---- predictions

def test_an_ensemble_is_the_mean_of_the_probabilities(tmp_path, capsys):
    def write(name, columns, *rows):
        lines = [','.join(['annot_id', *columns]), *(','.join(map(str, row)) for row in rows)]
        (tmp_path / name).write_text('\n'.join(lines) + '\n')
        return str(tmp_path / name)

    one = write('1.csv', vcr_files.ANSWERS, ('a', .1, .2, .3, .4), ('b', 1, 0, 0, 0))
    two = write('2.csv', vcr_files.ANSWERS, ('b', .5, .5, 0, 0), ('a', .5, .4, .1, 0))
    assert ensemble.main(['vcr', one, two, '--out', str(tmp_path / 'mean.csv')]) == 0
    assert (tmp_path / 'mean.csv').read_text().splitlines()[1:] == ['a,0.3,0.3,0.2,0.2', 'b,0.75,0.25,0,0']
    for other, message in (
            (write('3.csv', vcr_files.RATIONALES, ('a', 1, 0, 0, 0)), 'expected the 4 columns of '),
            (write('4.csv', vcr_files.ANSWERS, ('a', 1, 0, 0, 0)), "found 1 that only one of them has, such as 'b'"),
            (write('5.csv', vcr_files.ANSWERS, ('a', 1, 0, 0, 'x'), ('b', 1, 0, 0, 0)), '1 lines without 4 numbers')):
        assert ensemble.main(['vcr', one, other, '--out', str(tmp_path / 'mean.csv')]) == 1
        assert message in capsys.readouterr().err


def test_files_of_predictions_are_checked_and_scored(tmp_path, capsys):
    annotations, predictions = tmp_path / 'val.jsonl', tmp_path / 'val.csv'
    rows = [{'annot_id': f'v-{i}', 'answer_label': i % 4, 'rationale_label': 3} for i in range(4)]
    annotations.write_text('\n'.join(map(json.dumps, rows)))
    values = np.full((4, 20), 0.1)
    values[range(4), [0, 1, 2, 0]] = 0.7  # three answers are right
    for i, place in ((0, 3), (1, 7), (2, 8), (3, 15)):  # of the right answer three rationales are right
        values[i, 4 + place] = 0.7
    vcr_files.write_csv(predictions, [row['annot_id'] for row in rows], {vcr_files.HEADERS[-1]: values})
    figures = vcr_files.evaluate(predictions, annotations)
    assert (figures['accuracy'], figures['Q->A'], figures['QA->R']) == (50, 75, 75)

    lines = predictions.read_text().splitlines()
    for text, message in (([*lines, lines[1]], 'questions answered again: v-0'), (lines[:-1], 'questions not answered: v-3'),
                          ([*lines[:-1], 'v-3,nan'], 'lines without 20 numbers'), (lines[1:], 'expected the columns annot_id'),
                          ([*lines, lines[1].replace('v-0', 'x')], 'answers to questions that are not in'),
                          ([*lines, 'x' * (1 << 18)], f'{predictions}:6: expected an id and numbers separated by commas')):
        predictions.write_text('\n'.join(text) + '\n')
        assert evaluate.main(['vcr', str(predictions), str(annotations)]) == 1
        assert message in capsys.readouterr().err
    cut = tmp_path / 'val.csv.gz'
    cut.write_bytes(gzip.compress('\n'.join(lines).encode())[:-9])
    assert evaluate.main(['vcr', str(cut), str(annotations)]) == 1
    assert f'{cut}: incomplete or damaged gzip file' in capsys.readouterr().err
    predictions.write_text('\ufeff' + '\n'.join(lines))  # as spreadsheets write it
    assert evaluate.main(['vcr', str(predictions), str(annotations)]) == 0


# ---- raw data

process_vcr = data_script('vcr/process_vcr')


def process(*flags):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = run_main('process_vcr.py', lambda: process_vcr.main(list(map(str, flags)))) or 0
    return subprocess.CompletedProcess(flags, status, out.getvalue(), err.getvalue())


def unpacked(mask):
    return np.unpackbits(np.frombuffer(bytes.fromhex(f'{mask}0'), np.uint8))[:196].reshape(14, 14)


def raw(folder, objects=('person', 'dog', 'person'), count=5, image='film/a.b@1.jpg', **metadata):
    """A folder as VCR publishes it: examples about one image."""
    folder.mkdir(exist_ok=True)
    (folder / 'vcr1images').mkdir(exist_ok=True)
    row = {key: value for key, value in EXAMPLE.items() if key not in ('names', 'classes', 'img_id')}
    (folder / 'val.jsonl').write_text('\n'.join(json.dumps(row | {
        'annot_id': f'val-{i}', 'objects': objects, 'img_fn': image, 'metadata_fn': 'a.json'}) for i in range(count)))
    boxes = [[10, 10, 23, 23, 0.9], [0, 0, 99, 49, 0.5], [50, 10, 60, 20, 1]]
    square = [[10, 10], [17, 10], [17, 24], [10, 24]]
    (folder / 'vcr1images/a.json').write_text(json.dumps({
        'boxes': boxes, 'segms': [[square], [], [[[50, 10]]]], 'names': list(objects), 'width': 100, 'height': 50} | metadata))
    return folder


def test_raw_data_gets_names_boxes_and_masks(tmp_path):
    done = process('--raw', raw(tmp_path / 'raw'), '--out', tmp_path / 'out')
    assert done.returncode == 0 and 'val: 5 examples about 1 images with 3 objects.' in done.stdout, done.stderr
    examples = json.loads((tmp_path / 'out/val.json').read_text())
    assert [example['names'] for example in examples[:2]] == [['casey', 'dog', 'riley'], ['jessie', 'dog', 'jackie']]
    assert examples[0]['classes'] == [1, 17, 1] and examples[0]['img_id'] == 'film/a.b@1'
    assert len(read_examples([tmp_path / 'out/val.json'], Rationale.schema, ())) == 5
    image, = json.loads((tmp_path / 'out/val_boxes.json').read_text())
    masks = [unpacked(mask) for mask in image['masks']]
    assert masks[0][:13, :7].all() and masks[0].sum() == 13 * 7 and not masks[1].any() and not masks[2].any()
    assert image['boxes'][1] == [0, 0, 99, 49] and image['scores'] == [0.9, 0.5, 1]

    from detector.given_boxes import read_boxes
    assert read_boxes(tmp_path / 'out/val_boxes.json')['film/a.b@1'].shape == (3, 4)


@pytest.mark.parametrize(('change', 'message'), [
    ({'objects': ('person', 'unicorn', 'dog')}, 'val.jsonl:1: key "objects": expected classes of COCO without blanks, found'),
    ({'names': ['dog']}, 'a.json: expected names, boxes and segms of the 3 objects'),
    ({'boxes': [[0, 0, 1, 1, 1]] * 2}, 'found 3, 2 and 3'),
    ({'boxes': [[5, 0, 1, 1, 1]] * 3}, 'a.json: key "boxes[0]": expected x1, y1, x2, y2, score'),
    ({'boxes': [[100, 0, 120, 1, 1]] * 3}, 'key "boxes[0]": expected a box that touches the image of 100 x 50 pixels'),
    ({'segms': [[[1, 2]]] * 3}, 'a.json: key "segms[0]": expected a list of polygons'),
    ({'width': 0}, 'expected width and height'),
    ({'image': ''}, 'val.jsonl:1: key "img_id": expected an image id'),
    ({'image': '/'}, 'val.jsonl:1: key "img_id": expected an image id')])
def test_faults_of_raw_data_are_told(tmp_path, change, message):
    done = process('--raw', raw(tmp_path / 'raw', **change), '--out', tmp_path / 'out')
    assert done.returncode == 1 and message in done.stderr and not list((tmp_path / 'out').glob('*.json'))


def test_missing_metadata_is_an_error_or_counted(tmp_path):
    folder = raw(tmp_path / 'raw')
    text = (folder / 'val.jsonl').read_text().replace('"val-4"', '"val-4", "x": 0').splitlines()
    text[-1] = text[-1].replace('a.json', 'b.json').replace('film/a', 'film/b')
    (folder / 'val.jsonl').write_text('\n'.join(text))
    assert process('--raw', folder, '--out', tmp_path / 'out').returncode == 1
    done = process('--raw', folder, '--out', tmp_path / 'out', '--allowMissing')
    assert done.returncode == 0 and "val: 4 examples about 1 images with 3 objects; 1 left out whose 1 images" in done.stdout


# ---- the sample world

def test_words_alone_do_not_answer_the_sample_world():
    scenes = {str(i): scene.sample(1, i) for i in range(300)}
    parts = [dict(list(scenes.items())[start:start + 150]) for start in (0, 150)]
    made = [list(tagged_questions.generate(part, random.Random(1), 'x')) for part in parts]
    for kind in ('answer', 'rationale'):
        assert tagged_questions.text_only(*made, kind) < 35
    for schema, example in product((VCR.schema, Rationale.schema), made[0]):
        assert schema.first_fault(example) is None


# ---- real data

@pytest.mark.shared
def test_texts_tags_and_masks_are_those_of_the_original_reader(tmp_path):
    from safetensors.numpy import load_file

    cases = SHARED / 'vlbert_cases/vcr'
    assert process('--raw', cases, '--out', tmp_path).returncode == 0
    tokenizer = BertTokenizer(SHARED / 'vocab/bert-base-uncased-vocab.txt')
    expected = json.loads((cases / 'expected.json').read_text())
    tests = [('Q2A', 'val', None), ('Q2A', 'test', None), ('QA2R', 'val', None), *(('QA2R', 'test', a) for a in range(4))]
    for mode, split, answer in tests:
        schema = VCR.schema if mode == 'Q2A' else replace(Rationale.schema, given=answer)
        examples, uncut = read_examples([tmp_path / f'{split}.json'], schema, ()), answer is not None
        sentences = [examples.sentences[i] for i in examples.sentence.ravel()]
        columns = encode(tokenizer, sentences, 4, 512 if uncut else 67, not uncut)
        for row, (name, choice) in enumerate(product(examples.names(), range(4))):
            case = expected[f'{mode} {split} flip0 {name}']
            if split == 'val':  # mirroring exchanges no words
                assert {**expected[f'{mode} val flip1 {name}'], 'boxes': 0} == {**case, 'boxes': 0}
            question = case['question'] if answer is None else case['question'][answer]
            second = case['answer_choices' if mode == 'Q2A' else 'rationale_choices'][choice]
            ids = [101, *question[0], 102, *second[0], 102]
            assert columns['input_ids'][row][columns['input_ids'][row] > 0].tolist() == ids
            assert columns['word_regions'][row, :len(ids)].tolist() == [0, *question[1], 0, *second[1], 0]
    masks = load_file(cases / 'expected_masks_older_rule.safetensors')
    boxes = {image['img_id']: image for image in json.loads((tmp_path / 'val_boxes.json').read_text())}
    for example in json.loads((tmp_path / 'val.json').read_text()):
        image, case = boxes[example['img_id']], expected[f'Q2A val flip0 {example["annot_id"]}']
        bits = [unpacked(mask) for mask in image['masks']]
        np.testing.assert_array_equal(bits, masks[f'Q2A val flip0 {example["annot_id"]} older'][1:])
        assert example['classes'] == [int(box[5]) for box in case['boxes'][1:]]
        size = torch.tensor([[image['height'], image['width']]])
        scaled = torch.tensor([[[0, 0, image['width'] - 1, image['height'] - 1], *image['boxes']]]) / size[:, [1, 0, 1, 0]]
        from vlbert.modeling import original_boxes, resized
        for flip in (0, 1):
            pixels = original_boxes(scaled, size, torch.tensor([bool(flip)]), longest=1200)[0] * resized(size, 1200)[
                :, [1, 0, 1, 0]]
            case = expected[f'Q2A val flip{flip} {example["annot_id"]}']
            torch.testing.assert_close(pixels[1:].float(), torch.tensor(case['boxes'])[1:, :4], atol=1e-2, rtol=0)


@pytest.mark.shared
def test_the_real_sample_is_kept(tmp_path):
    folder = tmp_path / 'raw'
    folder.mkdir()
    (folder / 'train.jsonl').symlink_to(SHARED / 'vcr/train_sample.jsonl')
    done = process('--raw', folder, '--images', SHARED / 'vcr/vcr1images', '--out', tmp_path / 'out')
    assert 'train: 154 examples about 56 images with 462 objects.' in done.stdout, done.stderr
